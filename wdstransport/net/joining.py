"""Joining what consecutive reads brought: under load, one check for several merged runs of datagrams."""

from __future__ import annotations

import socket

from wdstransport.net.batching import BatchReader
from wdstransport.net.slabs import SlabPool
from wdstransport.wire.batch import Batch

__all__ = ["RunReader"]

_ALIGNMENT = 64


class RunReader(BatchReader):
    """A `BatchReader` whose batches may be several reads long.

    A read brings at most 64 KiB. When more is waiting, the next read goes right behind the last one in the
    same slab; if it has the same shape and source, both are one batch, and its checks cost hardly more. A
    reader that keeps up with its sender never waits for more.
    """

    def __init__(
        self, sock: socket.socket, pool: SlabPool, merge: bool, *, join_bytes: int = 1 << 19
    ) -> None:
        """Read from `sock`; stop joining at `join_bytes`."""
        super().__init__(sock, pool, merge)
        self._join_bytes = join_bytes
        self._next: Batch | None = None

    def read(self) -> Batch | None:
        """Read what is ready; see `BatchReader.read`."""
        if self._next is not None:
            batch, self._next = self._next, None
            return batch
        first = super().read()
        slab = self._slab
        if first is None or slab is None:
            return first
        segment, size = first.segment, len(first.buffer)
        start = self._offset - (size + _ALIGNMENT - 1 & -_ALIGNMENT)
        while not size % segment and size < self._join_bytes and start + size <= self._last_offset:
            self._offset = start + size
            more = super().read()
            if more is None:
                break
            if more.source != first.source or (more.segment != segment and len(more.buffer) > segment):
                self._next = more
                break
            size += len(more.buffer)
            slab.release()
        self._offset = self._offset + _ALIGNMENT - 1 & -_ALIGNMENT
        if size == len(first.buffer):
            return first
        return Batch(slab.view[start : start + size], segment, first.source, slab)

    def close(self) -> None:
        """Let go of the current slab and of a batch that was not handed out."""
        if self._next is not None and self._next.owner is not None:
            self._next.owner.release()
            self._next = None
        super().close()
