"""Received memory on loan: views that end, counted extensions of their life, and never a stale byte.

A block is delivered where it was received, as a memoryview. Two things can keep its memory from being read
into again:

- the view itself, until its callback has returned and every AddRefBuffer is matched; then the view is
  released, and touching it raises ValueError;
- whatever the consumer derived from the view (a slice, a numpy array), which Python lets nobody take away.

So every batch is lent through an exporter of its own, on which all these views hang, and its memory counts
as in use until that exporter is gone. A derived view that outlives the callback therefore stays valid and
keeps showing its own block. It costs memory, never correctness: when loans that outlived their callbacks pin
`limit` slabs of a session, further blocks are delivered from copies of their own size.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import ref

import numpy as np

from wdstransport.handles.constants import ERROR_INVALID_PARAMETER, WdsTransportClientError
from wdstransport.wire.batch import Batch, Holder

__all__ = ["Buffer", "BufferRegistry", "Loans"]


class Buffer:
    """A view that a consumer was handed.

    Attributes:
        view: what the consumer has.
        refs: AddRefBuffer calls without their ReleaseBuffer.
        in_callback: its ReceiveContents has not returned.
    """

    __slots__ = ("in_callback", "offset", "refs", "session", "view")

    def __init__(self, view: memoryview, session: int, offset: int) -> None:
        self.view = view
        self.session = session
        self.offset = offset
        self.refs = 0
        self.in_callback = True

    def __str__(self) -> str:
        return f"{len(self.view)} bytes at offset {self.offset} of session {self.session}"


class BufferRegistry:
    """Every view that is valid now, by identity; one per Initialize."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: dict[int, Buffer] = {}
        self._stuck: list[ref[memoryview]] = []

    def lend(self, view: memoryview, session: int, offset: int) -> Buffer:
        """A view that is valid until `returned`, and longer if AddRefBuffer says so."""
        buffer = Buffer(view, session, offset)
        self._live[id(view)] = buffer
        return buffer

    def returned(self, buffer: Buffer) -> None:
        """The callback has returned."""
        with self._lock:
            buffer.in_callback = False
            if not buffer.refs:
                self._end(buffer)
            if self._stuck:
                self._sweep()

    def _find(self, view: memoryview, call: str) -> Buffer:
        buffer = self._live.get(id(view))
        if buffer is None:
            if not isinstance(view, memoryview):
                what = f"a {type(view).__name__} is no buffer of ReceiveContents"
            else:
                what = "this buffer has ended, or never was one of ReceiveContents"
            raise WdsTransportClientError(
                ERROR_INVALID_PARAMETER,
                f"{call}: {what}; pass the very memoryview that the callback was given, no slice or copy of "
                "it, before the callback returns or while an AddRefBuffer is unmatched",
            )
        return buffer

    def add_ref(self, view: memoryview) -> None:
        """Keep the view valid until one more `release`.

        Raises:
            WdsTransportClientError: ERROR_INVALID_PARAMETER, it is not valid now.
        """
        with self._lock:
            self._find(view, "AddRefBuffer").refs += 1

    def release(self, view: memoryview) -> None:
        """Match one `add_ref`.

        Raises:
            WdsTransportClientError: ERROR_INVALID_PARAMETER, there is none to match.
        """
        with self._lock:
            buffer = self._find(view, "ReleaseBuffer")
            if not buffer.refs:
                raise WdsTransportClientError(
                    ERROR_INVALID_PARAMETER,
                    f"ReleaseBuffer: no AddRefBuffer of {buffer} is unmatched; the callback's own hold ends "
                    "by itself when it returns",
                )
            buffer.refs -= 1
            if not buffer.refs and not buffer.in_callback:
                self._end(buffer)

    def _end(self, buffer: Buffer) -> None:
        del self._live[id(buffer.view)]
        try:
            buffer.view.release()
        except BufferError:
            # A system call is reading it, or a consumer's object has it open: it ends once that is done.
            self._stuck.append(ref(buffer.view))

    def _sweep(self) -> None:
        still: list[ref[memoryview]] = []
        for waiting in self._stuck:
            view = waiting()
            if view is not None:
                try:
                    view.release()
                except BufferError:
                    still.append(waiting)
        self._stuck = still

    def sweep(self) -> None:
        """End the views that could not be ended before because something had them open."""
        with self._lock:
            self._sweep()

    def close(self) -> list[str]:
        """End every view; says which were still extended."""
        with self._lock:
            kept = list(self._live.values())
            described = [str(buffer) for buffer in kept]
            for buffer in kept:
                self._end(buffer)
            self._sweep()
        return described


class _Loan(ref[Any]):
    """Whether anybody can still see a batch's memory: a weak reference to its exporter."""

    __slots__ = ("owner",)
    owner: Holder


class Loans:
    """One session's batches on loan to its callbacks.

    Attributes:
        returned: owners whose batch nobody can see any more, for the trio thread to release.
        copied: blocks delivered from copies because too many slabs are pinned. What the reader put aside,
            such as a shorter last block, is small and nobody's slab: its copies are not counted.
    """

    def __init__(self, limit: int, notify: Callable[[], None]) -> None:
        """`limit` slabs may stay pinned beyond the callbacks; `notify` is called when `returned` grew."""
        self.returned: deque[Holder] = deque()
        self.copied = 0
        self._limit = limit
        self._notify = notify
        self._closed = False
        self._out: dict[int, _Loan] = {}
        self._ended: deque[int] = deque()
        # These two belong to the callback thread.
        self._kept: dict[int, Holder] = {}
        self._pinned: dict[Holder, int] = {}

    def lend(self, batch: Batch) -> tuple[memoryview, _Loan | None]:
        """A read-only view of the batch to cut blocks from, and its loan; in the callback thread.

        No loan means that the caller is to deliver copies.
        """
        owner = batch.owner
        self._settle()
        if owner is None or len(self._pinned) >= self._limit:
            return batch.buffer.toreadonly(), None
        exporter = np.frombuffer(batch.buffer.toreadonly(), np.uint8)
        loan = _Loan(exporter, self._end)
        loan.owner = owner
        self._out[id(loan)] = loan
        return exporter.data, loan

    def settle(self, batch: Batch, loan: _Loan | None) -> None:
        """The batch's callbacks have returned, and the caller has dropped its own views."""
        if loan is None:
            self.give_back(batch)
        elif loan() is not None:
            self._kept[id(loan)] = loan.owner
            self._pinned[loan.owner] = self._pinned.get(loan.owner, 0) + 1
        self._settle()

    def give_back(self, batch: Batch) -> None:
        """Nobody was lent the batch, or only copies of it."""
        if batch.owner is not None:
            self.returned.append(batch.owner)
            self._notify()

    def _settle(self) -> None:
        while self._ended:
            owner = self._kept.pop(self._ended.popleft(), None)
            if owner is not None:
                left = self._pinned[owner] - 1
                if left:
                    self._pinned[owner] = left
                else:
                    del self._pinned[owner]

    def _end(self, loan: ref[Any]) -> None:
        """The exporter is gone. Runs in any thread at any moment, also in the collector: so no locks."""
        key = id(loan)
        gone = self._out.pop(key)
        if not self._closed:
            self.returned.append(gone.owner)
            self._ended.append(key)
            self._notify()

    def close(self) -> None:
        """The session is over, and nobody reads into its memory any more: what is seen stays as it is."""
        self._closed = True
        self.returned.clear()
        self._kept.clear()
        self._pinned.clear()
