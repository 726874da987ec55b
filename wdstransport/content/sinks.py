"""Where a received image lands: each byte at its place, and nothing visible before all is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from wdstransport.content.files import FileSink
from wdstransport.content.pipes import PipeSink
from wdstransport.content.targets import check_target

__all__ = ["FileSink", "MemorySink", "NullSink", "PipeSink", "Sink", "check_target"]


class Sink(Protocol):
    """Takes the bytes of one image. All but `horizon` may block and belong in a worker thread.

    The order of calls is prepare, write..., then one of finish, abandon and discard. The last two may be
    called at any time, from any thread, repeatedly, and after a failed finish.
    """

    @property
    def description(self) -> str:
        """What to call the target in messages."""

    def prepare(self) -> None:
        """Do everything that can fail before the first byte. Idempotent.

        Raises:
            StorageError: the target cannot take the image.
        """

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """Store the views, one after the other, from `offset` (bytes) on. They may be reused afterwards.

        Raises:
            StorageError: the storage failed.
            ValueError: the bytes lie outside what this sink accepts.
        """

    def horizon(self) -> int | None:
        """The offset in bytes up to which `write` accepts now; None when it accepts everything."""

    def finish(self) -> None:
        """Make the whole image durable and visible: every byte of it has been written.

        Raises:
            StorageError: it is not; what there is stays for `abandon` or `discard` to decide about.
        """

    def abandon(self) -> Path | None:
        """Let go and keep what arrived, for a person to look at; its path, None if there is no such file."""

    def discard(self) -> None:
        """Let go and remove what arrived."""


class MemorySink:
    """Keeps the image in memory, for tests and small files.

    Attributes:
        data: what was written so far; bytes not written yet are zero.
        finished: whether `finish` was called.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self.finished = False

    @property
    def description(self) -> str:
        """See `Sink.description`."""
        return "memory"

    def prepare(self) -> None:
        """See `Sink.prepare`."""

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """See `Sink.write`."""
        joined = b"".join(views)
        if offset < 0:
            raise ValueError(f"offset {offset}")
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(joined)] = joined

    def horizon(self) -> None:
        """See `Sink.horizon`."""

    def finish(self) -> None:
        """See `Sink.finish`."""
        self.finished = True

    def abandon(self) -> Path | None:
        """See `Sink.abandon`."""

    def discard(self) -> None:
        """See `Sink.discard`."""
        self.data = bytearray()


class NullSink:
    """Throws the image away, for measuring everything but the disk.

    Attributes:
        written: bytes thrown away so far.
    """

    def __init__(self) -> None:
        self.written = 0

    @property
    def description(self) -> str:
        """See `Sink.description`."""
        return "nowhere"

    def prepare(self) -> None:
        """See `Sink.prepare`."""

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """See `Sink.write`."""
        self.written += sum(map(len, views))

    def horizon(self) -> None:
        """See `Sink.horizon`."""

    def finish(self) -> None:
        """See `Sink.finish`."""

    def abandon(self) -> Path | None:
        """See `Sink.abandon`."""

    def discard(self) -> None:
        """See `Sink.discard`."""
