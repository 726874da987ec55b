"""The target that is a file, or a disk.

A `FileSink` writes `name.part` beside the target. The part is locked (flock), because two receivers in one
file would both be wrong; what an earlier run left is thrown away, for nothing says which bytes arrived.
Space is reserved before the first byte. In the end the part is flushed and renamed; without `force` that
cannot replace a file that appeared meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from wdstransport.content.sources import IOV_MAX, after
from wdstransport.content.targets import allocate, check_target, storage_error
from wdstransport.errors import ClosedError, StorageError, UsageError

__all__ = ["FileSink"]

_MAX_OFFSET = 2**63 - 1
_ATTEMPTS = 16
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})
_NO_DIRECTORY_FLUSH = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF})


class FileSink:
    """A file, or with `force` a block device.

    The new file gets the permissions that the umask leaves, also when it replaces another; a symbolic link as
    the target is itself replaced. A block device is written in place, exclusively (the kernel refuses one
    that is mounted): there is no `.part`, and an interrupted reception leaves it half written.

    Left to chance: on file systems without hard links (FAT, some network mounts) a file that appears under
    the target's name between the last look and the rename is replaced even without `force`; on file systems
    without locks two receivers are not told apart.
    """

    def __init__(self, target: str | os.PathLike[str], size: int, force: bool = False) -> None:
        """Name the target; nothing happens before `prepare`.

        Args:
            target: the final path.
            size: the image's length in bytes.
            force: whether an existing file, or what is on a block device, may be replaced.

        Raises:
            ValueError: the size is negative.
        """
        if size < 0:
            raise ValueError(f"an image of {size} bytes")
        self._target = Path(os.path.abspath(target))
        self._part = Path(f"{self._target}.part")
        self._size = size
        self._force = force
        self._device = False
        self._directory: int | None = None
        self._descriptor: int | None = None
        self._written = False
        self._over = False
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        """See `Sink.description`."""
        return str(self._target)

    @property
    def part(self) -> Path:
        """Where the bytes are until `finish`."""
        return self._target if self._device else self._part

    def prepare(self) -> None:
        """See `Sink.prepare`: check, lock, reserve the space. After an error nothing new is left behind."""
        with self._lock:
            if self._over:
                raise self._ended()
            if self._descriptor is not None:
                return
            check_target(self._target, self._force)
            self._device = _is_block_device(self._target)
            try:
                if self._device:
                    self._open_device()
                else:
                    self._directory = _open_directory(self._target.parent)
                    self._descriptor = self._create_part(self._directory)
                    self._reserve(self._descriptor)
            except OSError as error:
                self._close(remove=True)
                raise storage_error(f"{self._target} cannot be written", error) from error
            except StorageError:
                self._close(remove=True)
                raise

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """See `Sink.write`."""
        total = sum(map(len, views))
        if offset < 0 or offset + total > self._size:
            raise ValueError(f"bytes {offset} to {offset + total} of an image of {self._size}")
        with self._lock:
            descriptor = self._opened()
            try:
                for first in range(0, len(views), IOV_MAX):
                    chunk = views[first : first + IOV_MAX]
                    want = total if len(chunk) == len(views) else sum(map(len, chunk))
                    while want:
                        done = os.pwritev(descriptor, chunk, offset)
                        if not done:
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                        self._written = True
                        offset += done
                        want -= done
                        if want:
                            chunk = after(chunk, done)
            except OSError as error:
                raise storage_error(f"{self.part} could not be written at byte {offset}", error) from error

    def horizon(self) -> None:
        """See `Sink.horizon`: a file takes its bytes in any order."""

    def finish(self) -> None:
        """See `Sink.finish`: flush, rename, flush the directory."""
        with self._lock:
            descriptor = self._opened()
            self._written = True  # an image of no bytes is whole, too
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise storage_error(f"{self.part} could not be flushed to its disk", error) from error
            if self._directory is not None:
                self._publish(descriptor, self._directory)
            self._close(remove=False)

    def abandon(self) -> Path | None:
        """See `Sink.abandon`: a part that nothing was written to is only reserved space, and is removed."""
        with self._lock:
            stays = self._descriptor is not None and (self._device or self._is_named(self._descriptor))
            self._close(remove=not self._written)
            return self.part if stays and self._written else None

    def discard(self) -> None:
        """See `Sink.discard`; a block device keeps what was written to it."""
        with self._lock:
            self._close(remove=True)

    def _opened(self) -> int:
        if self._over:
            raise self._ended()
        if self._descriptor is None:
            raise UsageError(f"{self._target} is not prepared; call prepare() before write() and finish().")
        return self._descriptor

    def _open_device(self) -> None:
        self._descriptor = os.open(self._target, os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC)
        # Without this, a file that took the device's place since the last look would be written in place.
        if not stat.S_ISBLK(os.fstat(self._descriptor).st_mode):
            raise StorageError(f"{self._target} was replaced just now; look what it is and start again.")
        self._take_lock(self._descriptor)
        capacity = os.lseek(self._descriptor, 0, os.SEEK_END)
        if self._size > capacity:
            raise StorageError(
                f"{self._target} holds {capacity} bytes and the image has {self._size}; choose a larger disk."
            )

    def _create_part(self, directory: int) -> int:
        for _ in range(_ATTEMPTS):
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                descriptor = os.open(self._part.name, flags, 0o666, dir_fd=directory)
            except FileExistsError:
                with suppress(FileNotFoundError):
                    self._remove_leftover(directory)
                continue
            try:
                self._take_lock(descriptor)
            except StorageError:
                os.close(descriptor)
                raise
            # Another receiver may have removed this file as a leftover before the lock was ours.
            if self._is_named(descriptor):
                return descriptor
            os.close(descriptor)
        raise StorageError(f"{self._part} keeps being replaced by somebody else; choose another target.")

    def _remove_leftover(self, directory: int) -> None:
        """Remove the part of an earlier run, never truncate it.

        A run that died between link and unlink in `_link` has left one file under both names.
        """
        if not stat.S_ISREG(os.stat(self._part.name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise StorageError(
                f"{self._part} is in the way and is not a regular file; remove it or choose another target."
            )
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._part.name, flags, dir_fd=directory)
        except PermissionError as error:
            raise StorageError(
                f"{self._part} is in the way and belongs to another user, who may be receiving; remove it or "
                "choose another target."
            ) from error
        try:
            self._take_lock(descriptor)
            if self._is_named(descriptor):
                os.unlink(self._part.name, dir_fd=directory)
        finally:
            os.close(descriptor)

    def _take_lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"Another receiver is writing {self.part}; wait until it is done or choose another target."
            ) from error
        except OSError:
            # Some network file systems know no locks; refusing them would help nobody.
            pass

    def _reserve(self, descriptor: int) -> None:
        room = os.fstatvfs(descriptor)
        free = room.f_bavail * room.f_frsize
        # Some FUSE file systems report no blocks at all.
        if self._size > _MAX_OFFSET or (room.f_blocks and self._size > free):
            raise StorageError(
                f"There is not enough space for {self._target}: the image has {self._size} bytes, and {free} "
                f"are free in {self._target.parent}. Free {self._size - free} bytes there or choose another "
                "target."
            )
        if self._size and not allocate(descriptor, self._size):
            os.ftruncate(descriptor, self._size)

    def _is_named(self, descriptor: int) -> bool:
        """Whether the part's name still means the open file."""
        try:
            named = os.stat(self._part.name, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(named, os.fstat(descriptor))

    def _publish(self, descriptor: int, directory: int) -> None:
        if not self._is_named(descriptor):
            raise StorageError(
                f"{self._part} was removed or replaced while it was written, by another program; receive "
                "again."
            )
        try:
            if self._force:
                os.rename(self._part.name, self._target.name, src_dir_fd=directory, dst_dir_fd=directory)
            else:
                self._link(directory)
        except FileExistsError as error:
            raise StorageError(
                f"{self._target} appeared during the transfer and was left alone. The whole image is in "
                f"{self._part}: rename that, or receive again with --force."
            ) from error
        except OSError as error:
            what = f"{self._part} is whole but could not be renamed to {self._target}"
            raise storage_error(what, error) from error
        try:
            os.fsync(directory)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_FLUSH:
                what = f"{self._target} is whole, but its name could not be flushed to its disk"
                raise storage_error(what, error) from error

    def _link(self, directory: int) -> None:
        """Rename without replacing, which rename(2) cannot: give the second name, then take the first."""
        part, target = self._part.name, self._target.name
        try:
            os.link(part, target, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self._target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
            os.rename(part, target, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            # A second name that stays is untidy, not wrong: the next run's `_remove_leftover` takes it away.
            with suppress(OSError):
                os.unlink(part, dir_fd=directory)

    def _close(self, *, remove: bool) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            if remove and not self._device and self._is_named(descriptor):
                with suppress(OSError):
                    os.unlink(self._part.name, dir_fd=self._directory)
            os.close(descriptor)
        directory, self._directory = self._directory, None
        if directory is not None:
            os.close(directory)
        self._over = True

    def _ended(self) -> ClosedError:
        return ClosedError(f"{self._target} takes no more: the reception ended; start a new one.")


def _open_directory(path: Path) -> int:
    flags = os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDONLY | flags)
    except PermissionError:
        # A drop box: it may be written to but not listed. Its own flush is then left to the system.
        return os.open(path, os.O_PATH | flags)


def _is_block_device(path: Path) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False
