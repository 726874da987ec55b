"""Reading ahead: the blocks of a round, straight into the slots they will be sent from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from wdstransport.content.sources import Source
from wdstransport.net.batching import BATCH_CALLS, CALL_DATAGRAMS
from wdstransport.net.waiting import Worker
from wdstransport.wire.security import Security
from wdstransport.wire.slots import SlotBuffer

__all__ = ["Chunk", "ReadAhead", "RepairSet"]

_CHUNK_BYTES = 1_000_000
_DEPTH = 4
_REPAIR_SLOTS = 64
_REMEMBERED_BYTES = 24_000_000
"""What was sent last stays in memory: a repair is asked for within some round trips, and finds its block
here. This is more than the widest window of Ethernet packets (16384, MaxWindowSize)."""


@dataclass(slots=True)
class Chunk:
    """Consecutive blocks in one buffer, being read or ready to be sent."""

    plan_number: int
    first_block: int
    count: int
    buffer: SlotBuffer
    ready: bool = False
    sent: int = 0


@dataclass(slots=True)
class RepairSet:
    """Blocks to be sent again, each under its sequence number; all of one length; `sent` of them are done."""

    items: list[tuple[int, int]]
    buffer: SlotBuffer
    sent: int = 0


class ReadAhead:
    """Keeps a few chunks ahead of the sender, read by a worker thread in large positioned reads.

    The content's last block may be shorter than the others (MS-WDSMSI 2.2.2.2), so it stands in a buffer of
    its own.
    """

    def __init__(
        self,
        source: Source,
        *,
        block_size: int,
        total_blocks: int,
        session_id: int,
        security: Security,
        wake: Callable[[], None],
    ) -> None:
        self._source = source
        self._block_size = block_size
        self._total = total_blocks
        self._session_id = session_id
        self._security = security
        self._last_len = source.size - (total_blocks - 1) * block_size if total_blocks else 0
        # Whole multiples of what the sender takes at once.
        batch = BATCH_CALLS * CALL_DATAGRAMS
        self._slots = max(1, batch * (_CHUNK_BYTES // (batch * block_size)) or _CHUNK_BYTES // block_size)
        self._plan_number = 0
        self._cursor: Iterator[tuple[int, int]] = iter(())
        self._chunks: deque[Chunk] = deque()
        self._sent: deque[Chunk] = deque()
        self._sent_bytes = 0
        self._repairs: deque[RepairSet] = deque()
        self._spare: dict[tuple[int, bool], list[SlotBuffer]] = {}
        self.repairs_reading = 0
        self.worker: Worker[Chunk | RepairSet, list[Chunk | RepairSet]] = Worker(
            "wdstransport-reader", self._read, wake
        )

    def _buffer(self, slots: int, block_len: int, fw_lead: bool) -> SlotBuffer:
        spare = self._spare.setdefault((block_len, fw_lead), [])
        if spare:
            return spare.pop()
        return SlotBuffer(
            slots, block_len, session_id=self._session_id, security=self._security, fw_lead=fw_lead
        )

    def _length(self, block: int) -> int:
        return self._last_len if block == self._total else self._block_size

    def _read(self, jobs: list[Chunk | RepairSet]) -> list[Chunk | RepairSet]:
        """In the worker thread: fill the slots."""
        for job in jobs:
            if isinstance(job, Chunk):
                offset = (job.first_block - 1) * self._block_size
                self._source.read_into(job.buffer.payload[: job.count], offset)
            else:
                for place, (_, block) in enumerate(job.items):
                    self._source.read_into(
                        job.buffer.payload[place : place + 1], (block - 1) * self._block_size
                    )
        return jobs

    def follow(self, plan_number: int, remaining: Sequence[tuple[int, int]]) -> None:
        """Go on with a plan, or start reading a new one.

        Args:
            plan_number: the round's number.
            remaining: the inclusive block ranges still to be sent in it, when it is new.
        """
        if plan_number != self._plan_number:
            self._plan_number = plan_number
            self._cursor = self._pieces(remaining)
            self.head()  # makes room: what was read for the old plan is of no use
            # A round ends when nobody can ask for its packets any more (MS-WDSMT 3.1.6.7).
            self._forget(0)
        while len(self._chunks) < _DEPTH:
            piece = next(self._cursor, None)
            if piece is None:
                return
            first, count = piece
            length = self._length(first)
            # Buffers of one length are used in place of each other, so they are of one size.
            buffer = self._buffer(self._slots if length == self._block_size else 1, length, True)
            chunk = Chunk(plan_number, first, count, buffer)
            self._chunks.append(chunk)
            self.worker.put(chunk)

    def _pieces(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for start, end in ranges:
            whole_end = min(end, self._total - 1) if self._last_len != self._block_size else end
            at = start
            while at <= whole_end:
                count = min(self._slots, whole_end - at + 1)
                yield at, count
                at += count
            if end > whole_end:
                yield self._total, 1

    def collect(self) -> None:
        """Take what the worker has finished.

        Raises:
            SourceChangedError: the content is not what it was.
        """
        while (jobs := self.worker.take()) is not None:
            for job in jobs:
                if isinstance(job, Chunk):
                    job.ready = True
                else:
                    self._repairs.append(job)

    def head(self) -> Chunk | None:
        """The chunk to send from next, if it is read; chunks of an earlier plan are thrown away."""
        while self._chunks and self._chunks[0].ready:
            chunk = self._chunks[0]
            if chunk.sent < chunk.count and chunk.plan_number == self._plan_number:
                return chunk
            self._remember(self._chunks.popleft())
        return None

    def _remember(self, chunk: Chunk) -> None:
        """Keep what was sent for repairs; the newest always, since its last batch may still be leaving."""
        self._sent.append(chunk)
        self._sent_bytes += chunk.buffer.nbytes
        self._forget(_REMEMBERED_BYTES)

    def _forget(self, most: int) -> None:
        """Give back the oldest buffers beyond `most` bytes, but never the newest."""
        while self._sent_bytes > most and len(self._sent) > 1:
            oldest = self._sent.popleft()
            self._sent_bytes -= oldest.buffer.nbytes
            self._spare.setdefault((oldest.buffer.block_len, True), []).append(oldest.buffer)

    def _holder(self, block: int, guess: Chunk | None) -> Chunk | None:
        """A chunk in memory that `block` was sent from; `guess` is tried first."""
        for chunk in chain((guess,) if guess is not None else (), reversed(self._sent), self._chunks):
            if chunk.first_block <= block < chunk.first_block + chunk.sent:
                return chunk
        return None

    def wanted(self, window_open: bool) -> bool:
        """Whether the sender waits for what is being read."""
        return self.repairs_reading > 0 or (window_open and bool(self._chunks) and self.head() is None)

    def request_repairs(self, items: list[tuple[int, int]]) -> None:
        """Prepare blocks to be sent again, by sequence number and block; what is not in memory is read."""
        whole = [item for item in items if self._length(item[1]) == self._block_size]
        short = [item for item in items if self._length(item[1]) != self._block_size]
        for group in (whole, short):
            if group:
                length = self._length(group[0][1])
                self.repairs_reading += len(group)
                slots = 1 if length != self._block_size else _REPAIR_SLOTS
                for start in range(0, len(group), slots):
                    part = RepairSet(group[start : start + slots], self._buffer(slots, length, False))
                    if self._copy(part):
                        self._repairs.append(part)
                    else:
                        self.worker.put(part)

    def _copy(self, part: RepairSet) -> bool:
        """Fill a set from memory; False when a block of it has to be read."""
        chunk: Chunk | None = None
        for place, (_, block) in enumerate(part.items):
            chunk = self._holder(block, chunk)
            if chunk is None:
                return False
            part.buffer.payload[place][:] = chunk.buffer.payload[block - chunk.first_block]
        return True

    def repairs(self) -> RepairSet | None:
        """The oldest repairs that are read."""
        return self._repairs.popleft() if self._repairs else None

    def give_back(self, done: RepairSet) -> None:
        """These repairs were sent; their buffer is free."""
        self.repairs_reading -= len(done.items)
        self._spare.setdefault((done.buffer.block_len, False), []).append(done.buffer)
