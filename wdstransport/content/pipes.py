"""The target `-`: an image written in order to a pipe, with bounded memory.

Blocks arrive in any order. What comes early waits in a ring of fixed size; what lies beyond the ring's end is
the sender's to repeat, which the driver achieves by reporting a full cache up to `PipeSink.horizon`.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import threading
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from wdstransport.errors import ClosedError, StorageError, UsageError

__all__ = ["PipeSink"]

_PIPE_STEP = select.PIPE_BUF
"""A pipe that polls writable takes this many bytes without blocking (pipe(7)), and no more is certain."""

_FILE_STEP = 1 << 20


class PipeSink:
    """Writes an image in order to a descriptor that it does not own: a pipe, a socket or a redirected file.

    One thread writes. `horizon`, `abandon` and `discard` may be called from others; the last two end a write
    that waits for a reader who does not read.
    """

    def __init__(self, descriptor: int, window_bytes: int, description: str = "standard output") -> None:
        """Write to `descriptor`, which stays open in the end.

        Args:
            descriptor: an open file descriptor.
            window_bytes: memory for what arrives early, in bytes; also the furthest that one write may reach
                beyond what was passed on.
            description: what to call it in messages.

        Raises:
            ValueError: the window is not positive.
        """
        if window_bytes < 1:
            raise ValueError(f"a window of {window_bytes} bytes")
        self._descriptor = descriptor
        self._window = window_bytes
        self._description = description
        self._position = 0
        self._ring = memoryview(b"")
        self._early: list[tuple[int, int]] = []
        self._lock = threading.Lock()
        self._waking = threading.Lock()
        self._wake: tuple[int, int] | None = None
        self._poll = select.poll()
        self._step = _PIPE_STEP
        self._regular = False
        self._closed = False

    @property
    def description(self) -> str:
        """See `Sink.description`."""
        return self._description

    def prepare(self) -> None:
        """See `Sink.prepare`.

        Raises:
            StorageError: the descriptor is closed, not open for writing, or a terminal.
        """
        with self._lock:
            if self._closed:
                raise self._over()
            if self._wake is not None:
                return
            try:
                writable = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
                self._regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            except OSError:
                writable = False
            if not writable:
                raise StorageError(
                    f"{self._description} is not open for writing; connect it to a program or a file, or "
                    "name a file as the target."
                )
            if os.isatty(self._descriptor):
                raise StorageError(
                    f"{self._description} is a terminal, which an image would garble; connect it to a "
                    "program or a file, or name a file as the target."
                )
            # Waiting in poll, not in write, is what lets `abandon` end a write to a reader who has stopped.
            # O_NONBLOCK is no way to it: that flag is shared with whoever else has the pipe open.
            self._step = _FILE_STEP if self._regular else _PIPE_STEP
            self._ring = memoryview(bytearray(self._window))
            self._wake = os.pipe()
            self._poll.register(self._descriptor, select.POLLOUT)
            self._poll.register(self._wake[0], select.POLLIN)

    def write(self, views: Sequence[memoryview], offset: int) -> None:
        """See `Sink.write`. What was passed on already is passed over.

        Raises:
            StorageError: the reader is gone, or the redirected file cannot take more.
            ClosedError: after the end, or when `abandon` came meanwhile.
            UsageError: before `prepare`.
            ValueError: the views reach beyond `horizon`.
        """
        data = memoryview(b"".join(views))
        end = offset + len(data)
        with self._lock:
            if self._closed:
                raise self._over()
            if self._wake is None:
                raise UsageError(f"{self._description} is not prepared; call prepare() before write().")
            if offset < 0 or end > self.horizon():
                raise ValueError(f"bytes {offset} to {end} when {self.horizon()} is the horizon")
            if offset > self._position:
                self._keep(data, offset)
                return
            self._pass_on(data[self._position - offset :])
            while self._early and self._early[0][0] <= self._position:
                for piece in self._pieces(self._position, self._early.pop(0)[1]):
                    self._pass_on(piece)

    def horizon(self) -> int:
        """See `Sink.horizon`: what was passed on, plus the window."""
        return self._position + self._window

    def finish(self) -> None:
        """See `Sink.finish`; a redirected file is flushed to its disk.

        Raises:
            StorageError: the flush failed.
            ClosedError: after the end.
            UsageError: before `prepare`, or bytes are missing before some that arrived.
        """
        with self._lock:
            if self._closed:
                raise self._over()
            if self._wake is None or self._early:
                raise UsageError(f"{self._description} lacks what follows byte {self._position}; write that.")
            if self._regular:
                try:
                    os.fsync(self._descriptor)
                except OSError as error:
                    raise self._failed(error) from error
            self._close()

    def abandon(self) -> Path | None:
        """See `Sink.abandon`: nothing stays, so None."""
        with self._waking:
            self._closed = True
            if self._wake is not None:
                os.write(self._wake[1], b"\0")
        with self._lock:
            self._close()
        return None

    def discard(self) -> None:
        """See `Sink.discard`; what was passed on cannot be taken back."""
        self.abandon()

    def _keep(self, data: memoryview, offset: int) -> None:
        start, end = offset, offset + len(data)
        if start == end:
            return
        for piece in self._pieces(start, end):
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]
        first = bisect_left(self._early, start, key=lambda span: span[1])
        last = first
        while last < len(self._early) and self._early[last][0] <= end:
            start = min(start, self._early[last][0])
            end = max(end, self._early[last][1])
            last += 1
        self._early[first:last] = [(start, end)]

    def _pieces(self, start: int, end: int) -> list[memoryview]:
        """The ring's memory for bytes `start` to `end` of the image, in one piece or two."""
        if end <= start:
            return []
        low = start % self._window
        high = low + end - start
        if high <= self._window:
            return [self._ring[low:high]]
        return [self._ring[low:], self._ring[: high - self._window]]

    def _pass_on(self, data: memoryview) -> None:
        while data:
            self._poll.poll()
            if self._closed:
                raise self._over()
            try:
                written = os.write(self._descriptor, data[: self._step])
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._failed(error) from error
            self._position += written
            data = data[written:]

    def _close(self) -> None:
        with self._waking:
            self._closed = True
            wake, self._wake = self._wake, None
            for descriptor in wake or ():
                os.close(descriptor)
        self._ring = memoryview(b"")
        self._early.clear()

    def _over(self) -> ClosedError:
        return ClosedError(f"{self._description} takes no more: the reception ended; start a new one.")

    def _failed(self, error: OSError) -> StorageError:
        if isinstance(error, BrokenPipeError):
            return StorageError(
                f"The reader of {self._description} ended after {self._position} bytes, before the image "
                "did; look at that program's own message and start again."
            )
        return StorageError(
            f"{self._description} failed after {self._position} bytes: {error.strerror}. Check where it "
            "leads and the space there, then start again."
        )
