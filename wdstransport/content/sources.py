"""What is served: bytes of a fixed length that must not change while they are read.

The rule is that a session ends rather than hand on a mixture of two versions of a file. A `FileSource`
therefore compares the file's identity (device, inode, size, modification and change time) before and
after every read with what it was when the file was opened. Linux stamps a file before it copies new bytes
into it, so a read that saw one new byte also sees the new stamp.

What remains, and cannot be seen from user space: a change within the clock tick of the previous one (1 to
10 ms on kernels before 6.13, seconds on FAT) that keeps the size; a store through a mapping into a page that
is already dirty, which is not stamped before write-back; and a file system that keeps no true change time.
Whoever wants to be sure replaces images by rename, never in place.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Sequence
from typing import Protocol, Self

from wdstransport.errors import ClosedError, ContentError, ContentNotFoundError, SourceChangedError

__all__ = ["FileSource", "MemorySource", "Source"]

IOV_MAX = os.sysconf("SC_IOV_MAX")

_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class Source(Protocol):
    """One content, opened: `size` bytes that stay what they are until `close`."""

    @property
    def name(self) -> str:
        """The content's one name in its namespace, with `/` between components."""

    @property
    def size(self) -> int:
        """Length in bytes, fixed when the source was opened."""

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill every view, one after the other, with the bytes from `offset` on. Blocks.

        Args:
            views: writable byte views; together they must end within the content.
            offset: position of the first byte, in bytes.

        Raises:
            SourceChangedError: the content is no longer what was opened; what the views hold is void.
            ContentError: the storage failed.
            ClosedError: after `close`.
            ValueError: the range is not within the content.
        """

    def check(self) -> None:
        """Raise `SourceChangedError` when the content is no longer what was opened."""

    def close(self) -> None:
        """Let go of the content; a read under way in another thread ends first. Idempotent."""


class FileSource:
    """A regular file, read in place.

    A change of anything but the access time counts: what `chmod`, `mv` or a new hard link does to the change
    time cannot be told from a rewrite whose modification time was set back, and of the two mistakes
    ending a session is the one that copies survive.
    """

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        """Open `path`, following symbolic links.

        Args:
            path: the file.
            name: the content's name; the file's base name when not given.

        Raises:
            ContentNotFoundError: there is no such file.
            ContentError: it cannot be opened, or is no regular file.
        """
        text = os.fspath(path)
        try:
            # A FIFO in the place of the file must not make the open wait for a writer.
            descriptor = os.open(text, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise open_error(text, error) from error
        self._adopt(descriptor, os.path.basename(text) if name is None else name)

    @classmethod
    def from_descriptor(cls, descriptor: int, name: str) -> Self:
        """Serve the open file `descriptor`, which the source then owns and closes, errors included.

        Raises:
            ContentError: it is no regular file.
        """
        source = cls.__new__(cls)
        source._adopt(descriptor, name)
        return source

    def _adopt(self, descriptor: int, name: str) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise ContentError(f"{name!r} is not a regular file and cannot be served; name a file.")
        self._descriptor = descriptor
        self._name = name
        self._size = status.st_size
        self._opened = _identity(status)
        self._lock = threading.Lock()
        self._readers = 0
        self._closed = False

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return self._name

    @property
    def size(self) -> int:
        """See `Source.size`."""
        return self._size

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """See `Source.read_into`."""
        total = sum(map(len, views))
        _check_range(self._name, offset, total, self._size)
        self._enter()
        try:
            self._compare()
            try:
                self._read(views, offset, total)
            except OSError as error:
                raise ContentError(
                    f"{self._name!r} could not be read at byte {offset}: {error.strerror}. Its disk or file "
                    "server is failing; check the system log, then start the session again."
                ) from error
            self._compare()
        finally:
            self._leave()

    def check(self) -> None:
        """See `Source.check`."""
        self._enter()
        try:
            self._compare()
        finally:
            self._leave()

    def close(self) -> None:
        """See `Source.close`; a read under way in another thread closes the file when it ends."""
        with self._lock:
            last = not self._closed and not self._readers
            self._closed = True
        if last:
            os.close(self._descriptor)

    def _read(self, views: Sequence[memoryview], offset: int, total: int) -> None:
        for first in range(0, len(views), IOV_MAX):
            chunk = views[first : first + IOV_MAX]
            want = total if len(chunk) == len(views) else sum(map(len, chunk))
            while want:
                got = os.preadv(self._descriptor, chunk, offset)
                if not got:
                    raise self._changed("it ended early: it was truncated")
                offset += got
                want -= got
                if want:
                    chunk = after(chunk, got)

    def _compare(self) -> None:
        status = os.fstat(self._descriptor)
        if _identity(status) != self._opened:
            raise self._changed(self._difference(status))

    def _difference(self, status: os.stat_result) -> str:
        if status.st_size != self._size:
            return f"it had {self._size} bytes and now has {status.st_size}"
        if not status.st_nlink:
            return "it was deleted or replaced"
        if status.st_mtime_ns != self._opened[3]:
            return "it was written to"
        return "its change time moved: it was rewritten, renamed, linked, or its permissions were changed"

    def _changed(self, how: str) -> SourceChangedError:
        return SourceChangedError(
            f"{self._name!r} changed while it was served: {how}. The session ends, because clients would mix "
            "two versions. Leave the file alone while it is served; start again when it is final."
        )

    # The descriptor is closed by whoever leaves last: a number that is closed under a reader may already
    # name another file when the reader gets to it.
    def _enter(self) -> None:
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self._name!r} was closed; open it again in its namespace.")
            self._readers += 1

    def _leave(self) -> None:
        with self._lock:
            self._readers -= 1
            last = self._closed and not self._readers
        if last:
            os.close(self._descriptor)


class MemorySource:
    """Bytes in memory, for tests and benchmarks."""

    def __init__(self, data: bytes, name: str = "memory") -> None:
        self._data = memoryview(data)
        self._name = name
        self._closed = False

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return self._name

    @property
    def size(self) -> int:
        """See `Source.size`."""
        return len(self._data)

    def read_into(self, views: Sequence[memoryview], offset: int) -> None:
        """See `Source.read_into`."""
        self.check()
        _check_range(self._name, offset, sum(map(len, views)), len(self._data))
        for view in views:
            view[:] = self._data[offset : offset + len(view)]
            offset += len(view)

    def check(self) -> None:
        """See `Source.check`; bytes never change."""
        if self._closed:
            raise ClosedError(f"{self._name!r} was closed; open it again.")

    def close(self) -> None:
        """See `Source.close`."""
        self._closed = True


def open_error(what: str, error: OSError | ValueError) -> ContentError:
    """The error to raise for a content that could not be opened; `what` is as the asker named it."""
    if isinstance(error, ValueError) or error.errno in _NOT_THERE:
        return ContentNotFoundError(f"There is no content {what!r}. Check the name; letters' case counts.")
    return ContentError(
        f"{what!r} could not be opened: {error.strerror}. Check that the server's user may read it and every "
        "directory above it, and its limit of open files."
    )


def after(views: Sequence[memoryview], count: int) -> Sequence[memoryview]:
    """What is left of `views` behind their first `count` bytes, when a vectored call stopped midway."""
    for index, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[index + 1 :]]
        count -= len(view)
    return []


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _check_range(name: str, offset: int, total: int, size: int) -> None:
    if offset < 0 or offset + total > size:
        raise ValueError(f"bytes {offset} to {offset + total} of {name!r}, which has {size}")
