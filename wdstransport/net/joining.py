"""Joining what consecutive reads brought: under load, one check for several merged runs of datagrams."""

from __future__ import annotations

import socket
from collections import deque

from wdstransport.net.batching import BatchReader
from wdstransport.net.slabs import SlabPool
from wdstransport.wire.batch import Batch

__all__ = ["RunReader"]

_ALIGNMENT = 64
_ASIDE_BYTES = 1 << 16
_ASIDE = 32


class RunReader(BatchReader):
    """A `BatchReader` whose batches may be several reads long.

    A read brings at most 64 KiB. When more is waiting, the next read goes right behind the last one in the
    same slab; if it has the same shape and source, both are one batch, and its checks cost hardly more. A
    reader that keeps up with its sender never waits for more.

    Where packets are lost, NCF and repairs stand between the runs of data, or end them: the kernel takes a
    shorter datagram for a run's last. They are copied aside, which is cheap for what is small, and follow the
    batch that they would have parted. UDP promises no order, and none of them depends on one.
    """

    def __init__(
        self, sock: socket.socket, pool: SlabPool, merge: bool, *, join_bytes: int = 1 << 19
    ) -> None:
        """Read from `sock`; stop joining at `join_bytes`."""
        super().__init__(sock, pool, merge)
        self._join_bytes = join_bytes
        self._next: Batch | None = None
        self._start = 0
        self._aside: deque[tuple[bytearray, int, tuple[str, int]]] = deque()
        self._aside_bytes = 0

    def read(self) -> Batch | None:
        """Read what is ready; see `BatchReader.read`."""
        if self._aside:
            datagrams, segment, source = self._aside.popleft()
            self._aside_bytes -= len(datagrams)
            return Batch(memoryview(datagrams), segment, source)
        first, self._next = self._next, None
        if first is None:
            first = super().read()
            if first is not None:
                self._start = self._offset - (len(first.buffer) + _ALIGNMENT - 1 & -_ALIGNMENT)
        slab = self._slab
        if first is None or slab is None:
            return first
        segment, source, start = first.segment, first.source, self._start
        size = self._whole(first)
        while size < self._join_bytes and start + size <= self._last_offset and len(self._aside) < _ASIDE:
            self._offset = start + size
            more = super().read()
            if more is None:
                break
            if more.segment == segment and more.source == source:
                size += self._whole(more)
            elif self._aside_bytes + len(more.buffer) <= _ASIDE_BYTES:
                self._put_aside(more.buffer, more)
            else:
                self._next, self._start = more, start + size
                break
            slab.release()
        # A batch that waits is handed out, and says anew where to go on, before anything is read.
        self._offset = start + size + _ALIGNMENT - 1 & -_ALIGNMENT
        if size == len(first.buffer):
            return first
        return Batch(slab.view[start : start + size], segment, source, slab)

    def _whole(self, batch: Batch) -> int:
        """Bytes of the batch's datagrams of full length; a shorter last one is put aside."""
        short = len(batch.buffer) % batch.segment
        if short:
            self._put_aside(batch.buffer[-short:], batch)
        return len(batch.buffer) - short

    def _put_aside(self, datagrams: memoryview, batch: Batch) -> None:
        """Copy the end of a batch, or all of it."""
        self._aside_bytes += len(datagrams)
        segment = min(batch.segment, len(datagrams))
        if self._aside:
            last, its_segment, its_source = self._aside[-1]
            if its_segment == segment and its_source == batch.source and not len(last) % segment:
                last += datagrams  # in place: a flood of tiny datagrams must not be copied ever again
                return
        self._aside.append((bytearray(datagrams), segment, batch.source))

    def close(self) -> None:
        """Let go of the current slab and of what was not handed out."""
        if self._next is not None and self._next.owner is not None:
            self._next.owner.release()
            self._next = None
        self._aside.clear()
        super().close()
