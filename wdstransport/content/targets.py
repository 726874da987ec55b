"""What can be asked of a target's file system before and beside the writing."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

from wdstransport.errors import StorageError

__all__ = ["allocate", "check_target", "storage_error"]

_NO_ALLOCATION = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

_NO_RIGHT = "this user may not write there; change the permissions or choose another target."
_CAUSES = {
    errno.ENOSPC: "the file system is full; free space there or choose another target.",
    errno.EDQUOT: "the user's quota is used up; free space or choose another target.",
    errno.EFBIG: "a file of this size is not allowed there (FAT32 ends at 4 GiB; see also ulimit -f); choose "
    "another target or raise the limit.",
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: "it is mounted read-only; remount it or choose another target.",
    errno.EIO: "the disk or its file server failed; check the system log and do not trust what is there.",
    errno.EBUSY: "it is in use; unmount it or end the program that has it open.",
    errno.ENOENT: "its directory is not there (any more); create it or choose another target.",
    errno.ENOTDIR: "what should be its directory is a file; choose another target.",
    errno.EISDIR: "it is a directory; name a file in it.",
    errno.ENAMETOOLONG: "the name is too long, with the five letters of '.part' added; choose a shorter one.",
}


def check_target(target: str | os.PathLike[str], force: bool = False) -> None:
    """Refuse a target that is hopeless whatever the image: worth asking before any packet is sent.

    Raises:
        StorageError: it is a directory, a pipe or a character device; it exists and `force` is not given; its
            directory does not exist or cannot be written to.
    """
    path = Path(os.path.abspath(target))
    try:
        status = os.stat(path)
    except FileNotFoundError:
        status = None
    except (OSError, ValueError) as error:
        cause = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
        raise storage_error(f"{path} cannot be written", cause) from error
    if status is not None:
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            raise StorageError(f"{path} is a directory; name a file in it, such as {path / 'image.wim'}.")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise StorageError(f"{path} is neither a file nor a disk; use '-' to write to a pipe.")
        if stat.S_ISBLK(mode):
            if not force:
                raise StorageError(f"{path} is a disk; --force overwrites what is on it.")
            return
    if not force and os.path.lexists(path):
        raise StorageError(f"{path} exists already; --force replaces it, or choose another name.")
    if not path.parent.is_dir():
        raise StorageError(f"There is no directory {path.parent}; create it or choose another target.")
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        raise StorageError(
            f"{path} cannot be written: this user may not write to {path.parent}, or it is mounted "
            "read-only; change that or choose another target."
        )


def storage_error(what: str, error: OSError) -> StorageError:
    """The error to raise for `error`: `what` happened, then the likely cause and what to do about it."""
    other = f"{error.strerror}; check the system log, or choose another target."
    return StorageError(f"{what}: {_CAUSES.get(error.errno or 0, other)}")


def allocate(descriptor: int, size: int) -> bool:
    """Reserve the file's blocks; False where the file system cannot.

    This is fallocate(2) itself: posix_fallocate(3) never says that it cannot, but writes to every block of
    the file, and then the image crosses the disk's cable twice.
    """
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except (AttributeError, OSError):
        return False
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    while fallocate(descriptor, 0, 0, size):
        code = ctypes.get_errno()
        if code in _NO_ALLOCATION:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
