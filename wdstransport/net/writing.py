"""Storing what arrives: runs of blocks, from the buffer they arrived in, in few positioned writes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np

from wdstransport.content.sinks import Sink
from wdstransport.net.waiting import Worker
from wdstransport.protocol.events import BlocksArrived

__all__ = ["BlockWriter"]

_VIEWS_KEPT = 65_536


class BlockWriter:
    """A worker thread that writes arrived blocks to a sink and hands the events back when they are stored."""

    def __init__(self, sink: Sink, block_size: int, wake: Callable[[], None]) -> None:
        self._sink = sink
        self._block_size = block_size
        self._views: dict[tuple[int, int, int, int], list[memoryview]] = {}
        self._views_kept = 0
        self.outstanding = 0
        self._gathered: list[BlocksArrived] = []
        self.worker: Worker[list[BlocksArrived], list[BlocksArrived]] = Worker(
            "wdstransport-writer", self._write, wake
        )

    def put(self, event: BlocksArrived) -> None:
        """Take blocks; their memory must stay as it is until `collect` gives the event back.

        The thread gets them with the next `hand_over`, a whole turn's at once: waking it costs more than
        a batch's write.
        """
        self.outstanding += 1
        self._gathered.append(event)

    def hand_over(self) -> None:
        """Let the thread have what was gathered. Best just before the driver sleeps: no lock is contended."""
        if self._gathered:
            self.worker.put(self._gathered)
            self._gathered = []

    def collect(self) -> list[BlocksArrived] | None:
        """Events whose blocks are stored, or None; hands over what was gathered.

        Raises:
            StorageError: the sink failed.
        """
        self.hand_over()
        done = self.worker.take()
        if done is not None:
            self.outstanding -= len(done)
        return done

    def _payload(self, event: BlocksArrived) -> list[memoryview]:
        """The views of a batch's blocks, from its first row to the last that is needed.

        Batches come back to the same places in memory again and again.
        """
        batch = event.batch
        last_row = max([run.first_row + run.rows for run in event.runs])
        address = np.frombuffer(batch.buffer, np.uint8).__array_interface__["data"][0]
        key = (address, batch.segment, event.data_offset, event.block_len)
        views = self._views.get(key)
        if views is None or len(views) < last_row:
            known = 0 if views is None else len(views)
            buffer, length = batch.buffer, event.block_len
            starts = range(known * batch.segment, last_row * batch.segment, batch.segment)
            fresh = [buffer[at + event.data_offset : at + event.data_offset + length] for at in starts]
            views = fresh if views is None else views + fresh
            # Only memory that stays mapped may be remembered by its address.
            if batch.owner is not None:
                if self._views_kept > _VIEWS_KEPT:
                    self._views.clear()
                    self._views_kept = 0
                self._views[key] = views
                self._views_kept += len(fresh)
        return views

    def _write(self, turns: list[list[BlocksArrived]]) -> list[BlocksArrived]:
        """In the worker thread: neighbours become one write."""
        events = list(chain.from_iterable(turns))
        pending: list[memoryview] = []
        first = following = 0
        for event in events:
            views = self._payload(event)
            for row, count, block in event.runs:
                if block != following:
                    if pending:
                        self._sink.write(pending, (first - 1) * self._block_size)
                    pending = views[row : row + count]
                    first = block
                else:
                    pending += views[row : row + count]
                following = block + count
        self._sink.write(pending, (first - 1) * self._block_size)
        return events
