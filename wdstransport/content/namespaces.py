r"""Names for what is served: a client asks for a content of a namespace (MS-WDSMSI 2.2.2.1).

Names come from the network. They are matched letter by letter, `/` and `\` both separate components, and
nothing that is not a regular file below the namespace's root can be named, by whatever spelling.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol, runtime_checkable

from wdstransport.content.sources import FileSource, Source, open_error
from wdstransport.errors import ContentError, ContentNotFoundError, UsageError

__all__ = ["DirectoryNamespace", "FilesNamespace", "Namespace", "SpellingNamespace", "build_namespaces"]

_MAX_LINKS = 40
"""Symbolic links followed for one name: Linux's own limit (path_resolution(7))."""

# O_PATH needs no read permission on the directories above a file, just as opening its path would not.
_DIRECTORY = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Namespace(Protocol):
    """A set of contents under one name. Safe to use from several threads at once."""

    @property
    def name(self) -> str:
        """What clients ask for."""

    def open(self, content: str) -> Source:
        """Open a content; its `Source.name` is the same for every spelling of a name. Blocks.

        Raises:
            ContentNotFoundError: no such content, or the name leaves the namespace.
            ContentError: it is there but cannot be opened.
        """

    def contents(self) -> list[tuple[str, int]]:
        """What can be asked for now: names and sizes in bytes, sorted by name. Blocks."""


@runtime_checkable
class SpellingNamespace(Protocol):
    """What a namespace has as well in which one content can be asked for by several names."""

    def canonical(self, content: str) -> str:
        """The name that is the same for every spelling; there need be no such content. Does not block."""


class DirectoryNamespace:
    """Every regular file below a directory, as `file.wim` or `folder/file.wim`.

    Files may come and go while the namespace is in use. A symbolic link works when what it leads to
    is below the root as well; absolute links must spell the root as the namespace or the system does.

    Attributes:
        name: what clients ask for.
        root: the directory, absolute.
    """

    def __init__(self, name: str, root: str | os.PathLike[str]) -> None:
        """Name the directory `root`.

        Raises:
            UsageError: the name is empty or contains a NUL, or `root` is no directory.
        """
        self.name = _checked_name(name)
        self.root = os.path.abspath(root)
        self._real_root = os.path.realpath(self.root)
        if not os.path.isdir(self.root):
            raise UsageError(f"{os.fspath(root)} is not a directory; name a directory that exists, or files.")

    def canonical(self, content: str) -> str:
        """See `SpellingNamespace.canonical`."""
        return content.replace("\\", "/")

    def open(self, content: str) -> Source:
        """See `Namespace.open`."""
        parts = self.canonical(content).split("/")
        # One file must not have several names: `a//b` and `./a/b` would each get a session of their own.
        if "\0" in content or any(part in ("", ".", "..") for part in parts):
            raise ContentNotFoundError(
                f"There is no content {content!r}: names are relative to the namespace and cannot leave it. "
                "Ask for a file's name as the server lists it."
            )
        try:
            descriptor = self._walk(parts)
        except (OSError, ValueError) as error:
            raise open_error(content, error) from error
        if descriptor is None:
            raise ContentNotFoundError(
                f"There is no content {content!r}: it is not a regular file of the namespace {self.name!r}. "
                "Ask for a file's name as the server lists it."
            )
        return FileSource.from_descriptor(descriptor, "/".join(parts))

    def contents(self) -> list[tuple[str, int]]:
        """See `Namespace.contents`; links to directories are not descended into.

        Files whose names no request can carry (a backslash, no valid Unicode) are left out.
        """
        found: list[tuple[str, int]] = []
        for folder, _, files in os.walk(self.root):
            for file in files:
                path = os.path.join(folder, file)
                name = os.path.relpath(path, self.root)
                if "\\" in name:
                    continue
                try:
                    name.encode("utf-16-le")
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode):
                        found.append((name, status.st_size))
                    elif stat.S_ISLNK(status.st_mode):
                        source = self.open(name)
                        found.append((name, source.size))
                        source.close()
                except (OSError, ContentError, UnicodeEncodeError):
                    continue
        return sorted(found)

    def _walk(self, parts: Sequence[str]) -> int | None:
        """Open the file that `parts` lead to, or None when they do not lead to a regular file in here.

        Every component is opened relative to the descriptor of the one before, and links are followed by
        hand: no check of a path that could be another one by the time it is opened.
        """
        todo = deque(parts)
        links = 0
        with ExitStack() as stack:
            chain = [_directory(stack, self.root, None, follow=True)]
            while todo:
                part = todo.popleft()
                if part == "..":
                    if len(chain) == 1:
                        return None
                    chain.pop()
                    continue
                mode = os.stat(part, dir_fd=chain[-1], follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    links += 1
                    rest = self._below(os.readlink(part, dir_fd=chain[-1]))
                    if rest is None or links > _MAX_LINKS:
                        return None
                    absolute, components = rest
                    if absolute:
                        del chain[1:]
                    todo.extendleft(reversed(components))
                elif stat.S_ISDIR(mode):
                    chain.append(_directory(stack, part, chain[-1], follow=False))
                elif stat.S_ISREG(mode) and not todo:
                    return os.open(part, _FILE, dir_fd=chain[-1])
                else:
                    return None
        return None

    def _below(self, link: str) -> tuple[bool, list[str]] | None:
        """Whether a link is absolute, and its components, from the root on if so; None when it leaves."""
        absolute = link.startswith("/")
        if absolute:
            for root in (self.root, self._real_root):
                if link == root or link.startswith(root.rstrip("/") + "/"):
                    link = link[len(root) :]
                    break
            else:
                return None
        return absolute, [part for part in link.split("/") if part not in ("", ".")]


class FilesNamespace:
    """A list of files, each under its base name.

    The paths are the administrator's, so links in them are followed; a content's name is only ever looked
    up in the list and never reaches the file system.

    Attributes:
        name: what clients ask for.
    """

    def __init__(self, name: str, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Name the files `paths`.

        Raises:
            UsageError: the name is empty or contains a NUL; no path; one that is no readable regular file;
                two files of one base name.
        """
        self.name = _checked_name(name)
        self._paths: dict[str, str] = {}
        if not paths:
            raise UsageError("There is nothing to serve; name a directory or at least one file.")
        for path in paths:
            full = os.path.abspath(path)
            base = os.path.basename(full)
            if base in self._paths:
                raise UsageError(
                    f"{full} and {self._paths[base]} would both be served as {base!r}; rename one, or serve "
                    "a directory that holds both."
                )
            try:
                FileSource(full).close()
            except ContentNotFoundError as error:
                raise UsageError(f"{full} does not exist; check the path.") from error
            except ContentError as error:
                raise UsageError(f"{full} cannot be served. {error}") from error
            self._paths[base] = full

    def open(self, content: str) -> Source:
        """See `Namespace.open`."""
        try:
            path = self._paths[content]
        except KeyError:
            raise ContentNotFoundError(
                f"There is no content {content!r} in the namespace {self.name!r}. Ask for one of the served "
                "files by its base name; letters' case counts."
            ) from None
        return FileSource(path, content)

    def contents(self) -> list[tuple[str, int]]:
        """See `Namespace.contents`; a file that is gone is left out."""
        found: list[tuple[str, int]] = []
        for name, path in sorted(self._paths.items()):
            try:
                status = os.stat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                found.append((name, status.st_size))
        return found


def build_namespaces(paths: Sequence[str | os.PathLike[str]], name: str) -> list[Namespace]:
    """The namespaces for a command line: one directory, or any number of files, under `name`.

    Raises:
        UsageError: no path, a path that does not exist, several directories or a mixture.
    """
    if any(os.path.isdir(path) for path in paths):
        if len(paths) > 1:
            raise UsageError(
                "Only one directory, or any number of files, can be served under one name; serve the "
                "directory that holds them all, or start a server on another port."
            )
        return [DirectoryNamespace(name, paths[0])]
    return [FilesNamespace(name, paths)]


def _checked_name(name: str) -> str:
    if not name or "\0" in name:
        raise UsageError("A namespace needs a name of at least one character and no NUL, such as 'images'.")
    return name


def _directory(stack: ExitStack, path: str, parent: int | None, *, follow: bool) -> int:
    descriptor = os.open(path, _DIRECTORY & ~os.O_NOFOLLOW if follow else _DIRECTORY, dir_fd=parent)
    stack.callback(os.close, descriptor)
    return descriptor
