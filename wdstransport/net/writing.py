"""Storing what arrives: runs of blocks, from the buffer they arrived in, in few positioned writes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np

from wdstransport.content.sinks import Sink
from wdstransport.net.waiting import Worker
from wdstransport.protocol.events import BlocksArrived

__all__ = ["BlockWriter"]

_VIEWS_KEPT = 8192


class BlockWriter:
    """A worker thread that writes arrived blocks to a sink and hands the events back when they are stored."""

    def __init__(self, sink: Sink, block_size: int, wake: Callable[[], None]) -> None:
        self._sink = sink
        self._block_size = block_size
        self._views: dict[tuple[int, int, int, int, int], list[memoryview]] = {}
        self.outstanding = 0
        self.worker: Worker[BlocksArrived, list[BlocksArrived]] = Worker(
            "wdstransport-writer", self._write, wake
        )

    def put(self, event: BlocksArrived) -> None:
        """Hand blocks over; their memory must stay as it is until `collect` gives the event back."""
        self.outstanding += 1
        self.worker.put(event)

    def collect(self) -> list[BlocksArrived] | None:
        """Events whose blocks are stored, or None.

        Raises:
            StorageError: the sink failed.
        """
        done = self.worker.take()
        if done is not None:
            self.outstanding -= len(done)
        return done

    def _payload(self, event: BlocksArrived) -> list[memoryview]:
        """The views of a batch's blocks. Batches come back to the same places in memory again and again."""
        batch = event.batch
        rows = len(batch.buffer) // batch.segment or 1
        address = np.frombuffer(batch.buffer, np.uint8).__array_interface__["data"][0]
        key = (address, batch.segment, event.data_offset, event.block_len, rows)
        views = self._views.get(key)
        if views is None:
            if len(self._views) >= _VIEWS_KEPT:
                self._views.clear()
            buffer, length = batch.buffer, event.block_len
            starts = range(event.data_offset, rows * batch.segment, batch.segment)
            views = [buffer[start : start + length] for start in starts]
            # Only memory that stays mapped may be remembered by its address.
            if batch.owner is not None:
                self._views[key] = views
        return views[event.first_row : event.first_row + event.count]

    def _write(self, events: list[BlocksArrived]) -> list[BlocksArrived]:
        """In the worker thread: neighbours become one write."""
        pending: list[list[memoryview]] = []
        first = following = 0
        for event in events:
            if pending and event.first_block != following:
                self._sink.write(list(chain.from_iterable(pending)), (first - 1) * self._block_size)
                pending.clear()
            if not pending:
                first = event.first_block
            pending.append(self._payload(event))
            following = event.first_block + event.count
        self._sink.write(list(chain.from_iterable(pending)), (first - 1) * self._block_size)
        return events
