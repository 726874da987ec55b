"""Where the demo puts its image and its copies."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import wdstransport
from wdstransport import progress

__all__ = ["free_bytes", "sha256", "workspace", "write_random"]

_SHARED_MEMORY = Path("/dev/shm")
_CHUNK = 1 << 20
_MARGIN = 64 << 20
"""Bytes that stay free beside the copies."""


@contextmanager
def workspace(size: int) -> Iterator[Path]:
    """A folder with room for `size` bytes, in memory if that is roomy enough; gone at the end.

    Raises:
        StorageError: there is no room.
    """
    tried = []
    for place in (_SHARED_MEMORY, Path(tempfile.gettempdir())):
        free = free_bytes(place)
        if free >= size + _MARGIN:
            folder = Path(tempfile.mkdtemp(prefix="deploy-image-demo-", dir=place))
            break
        tried.append(f"{place} has {progress.format_bytes(free)} free")
    else:
        raise wdstransport.StorageError(
            f"The demo needs {progress.format_bytes(size + _MARGIN)} for its copies, and {', '.join(tried)}. "
            "Ask for less with --size or --clients, or set TMPDIR to a place with more room."
        )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_bytes(place: Path) -> int:
    """Bytes that may be used in `place`; 0 when it is not there or cannot be written to."""
    if not os.access(place, os.W_OK | os.X_OK):
        return 0
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if place == _SHARED_MEMORY:
        # Its size is only a limit: the bytes are the machine's memory, and others need it as well.
        free = min(free, _available_memory() // 2)
    return free


def _available_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def write_random(path: Path, size: int) -> str:
    """Write `size` random bytes; their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, _CHUNK):
            chunk = os.urandom(min(_CHUNK, size - start))
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
