"""One server session on its socket: the pump that gives the core time, datagrams and content."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import trio

from wdstransport.content.sources import Source
from wdstransport.errors import ContentError, TransportError
from wdstransport.net.batching import (
    BATCH_CALLS,
    CALL_DATAGRAMS,
    DATAGRAM_LIMIT,
    BatchReader,
    BatchSender,
    SlabPool,
)
from wdstransport.net.multicast import OpenSocket
from wdstransport.net.pacing import Pacer
from wdstransport.net.reading import Chunk, ReadAhead, RepairSet
from wdstransport.net.waiting import Waiter
from wdstransport.protocol.events import ServerSessionEvent
from wdstransport.protocol.server_session import ServerSession
from wdstransport.wire.security import Security
from wdstransport.wire.transport import KickReason, OpCode

__all__ = ["ServerDriver"]

_READS_A_TURN = 64
_READING = 0.004
"""Seconds of a turn after which reading waits for the next one. Merged runs of control packets, which only
a flood brings, take milliseconds each: sixty-four of them in a row would hold up all that is to be sent."""
_SENDS_A_TURN = 1
_REPAIRS_AHEAD = 256
"""Repairs that are read and not sent. At a rate they leave slower than they are asked for; the rest stays in
the session's queue, which is bounded and holds each packet once."""
_HEADERS = 28  # IPv4 and UDP, which a rate counts too

Address = tuple[str, int]


class ServerDriver:
    """Runs one session until it ends by itself, by an error of its content or by `close`.

    Attributes:
        session: the core.
        data_bytes: content sent as ODATA.
        repair_bytes: content sent again as RDATA.
        catch_up_bytes: of `data_bytes`, blocks that had been sent in an earlier round.
        error: why the session ended, when it was its content's fault.
    """

    def __init__(
        self,
        session: ServerSession,
        source: Source,
        opened: OpenSocket,
        *,
        group: Address,
        block_size: int,
        security: Security,
        rate: float | None,
        segment_ok: bool,
        merge_ok: bool,
        on_event: Callable[[ServerSessionEvent], None],
    ) -> None:
        self.session = session
        self.source = source
        self.group = group
        self.block_size = block_size
        self.data_bytes = 0
        self.repair_bytes = 0
        self.catch_up_bytes = 0
        self._farthest = 0
        self.error: TransportError | None = None
        self._sock = opened.sock
        self._security = security
        self._on_event = on_event
        self._waiter = Waiter(opened.sock)
        self._pool = SlabPool(1 << 18, 2)
        self.reader = BatchReader(opened.sock, self._pool, merge_ok)
        self.sender = BatchSender(opened.sock, segment_ok)
        self._pacer = Pacer(rate)
        self._ahead: ReadAhead | None = None
        self._unsent: tuple[bytes | memoryview, int, Address] | None = None
        self._control: list[tuple[bytes, Address | None]] = []
        self._repair: RepairSet | None = None
        self._repairs_owed = 0  # datagrams of data, for repairs that went first
        self._closing_at = math.inf

    def wake(self) -> None:
        """Look at the session again: a call from outside changed it."""
        self._waiter.wake()

    def close(self, now: float, patience: float = 1.0) -> None:
        """Tell every client (KICK) and end when they have left, at the latest after `patience` seconds."""
        if self._closing_at == math.inf:
            self._closing_at = now + patience
            self.session.close(KickReason.FAIL, now)
            self.wake()

    async def run(self) -> None:
        """Pump until the session is over; closes the socket and the source."""
        self._ahead = ReadAhead(
            self.source,
            block_size=self.block_size,
            total_blocks=self.session.total_blocks,
            session_id=self.session.session_id,
            security=self._security,
            wake=self.wake,
        )
        try:
            await self._pump(self._ahead)
        except trio.Cancelled:
            self._farewell()
            raise
        finally:
            with trio.CancelScope(shield=True):
                await self._ahead.worker.close()
            self.reader.close()
            self._pool.close()
            self._sock.close()
            self.source.close()

    def _farewell(self) -> None:
        """Tell every client once, without waiting: whoever cancels gets no further."""
        now = trio.current_time()
        self.session.close(KickReason.FAIL, now)
        self._unsent = None
        with suppress(OSError):
            self._send_control(now)

    async def _pump(self, ahead: ReadAhead) -> None:
        busy = 0
        while True:
            received = self._receive()
            now = trio.current_time()
            self.session.handle_timers(now)
            try:
                ahead.collect()
                ahead.follow(*self.session.plan)
            except ContentError as error:
                self.error = error
                self.close(now)
            sent = self._send(ahead, now)
            self._emit()
            closed = self._closing_at < math.inf and (now >= self._closing_at or not self.session.members)
            if (closed or self.session.over) and self._unsent is None:
                return
            if sent or received:
                busy += 1
                if busy < 16:
                    continue
                busy = 0
                await trio.lowlevel.checkpoint()
                continue
            busy = 0
            # Waking the pump for content that it does not wait for would cost more than reading it.
            wanted = ahead.wanted(self.session.sendable() > 0)
            if not wanted or ahead.worker.about_to_sleep():
                deadline = min(self.session.next_deadline(), self._closing_at, self._paced_until(ahead, now))
                await self._waiter.wait(deadline, writable=self._unsent is not None)
                ahead.worker.awake()

    def _receive(self) -> bool:
        until = math.inf
        for count in range(_READS_A_TURN):
            batch = self.reader.read()
            if batch is None:
                return count > 0
            now = trio.current_time()
            self.session.receive(batch, now)
            if batch.owner is not None:
                batch.owner.release()
            if not count:
                until = now + _READING
            elif now > until:
                return True
        return True

    def _emit(self) -> None:
        for event in self.session.take_events():
            self._on_event(event)

    # ------------------------------------------------------------------ sending

    def _paced_until(self, ahead: ReadAhead, now: float) -> float:
        """When the pacer lets the next data out; infinity when there is none to send."""
        if self._unsent is not None:
            return math.inf
        waiting = ahead.repairs_reading > 0 or (ahead.head() is not None and self.session.sendable() > 0)
        return self._pacer.ready_at(now) if waiting else math.inf

    def _put(self, buffer: bytes | memoryview, segment: int, to: Address) -> bool:
        """Send, or remember what the socket could not take yet."""
        if self.sender.send(buffer, segment, to):
            return True
        self._unsent = (buffer, segment, to)
        return False

    def _send(self, ahead: ReadAhead, now: float) -> bool:
        """Send what may leave now; whether anything did."""
        if self._unsent is not None:
            if not self.sender.send(*self._unsent):
                return False
            self._unsent = None
        if not self._send_control(now):
            return True
        repairs = self.session.take_repairs(64) if ahead.repairs_reading < _REPAIRS_AHEAD else []
        if repairs:
            ahead.request_repairs(repairs)
        sent = bool(repairs)
        for _ in range(_SENDS_A_TURN):
            if self._pacer.ready_at(now) > now:
                return sent
            # Repairs go first, and then as much data before the next: a member that wants everything again
            # all the time leaves the others half of the rate.
            repaired = not self._repairs_owed and self._send_repairs(ahead, now)
            if not repaired and not self._send_data(ahead, now):
                self._repairs_owed = 0
                if not self._send_repairs(ahead, now):
                    return sent
            sent = True
            if self._unsent is not None:
                return False
        return sent

    def _send_control(self, now: float) -> bool:
        """Send control packets; False when the socket is full."""
        self._control.extend(self.session.take_outgoing(now))
        while self._control:
            datagram, to = self._control.pop(0)
            if not self._put(datagram, len(datagram), to or self.group):
                return False
        return True

    def _batch_limit(self, segment: int) -> int:
        """Datagrams under one ACK: a batch of full calls, less where the window or the rate is small."""
        call = min(CALL_DATAGRAMS, DATAGRAM_LIMIT // segment)
        limit = max(1, self.session.window // 8)
        if limit > call:
            limit = min(limit // call, BATCH_CALLS) * call
        return self._within_burst(limit, segment)

    def _within_burst(self, limit: int, segment: int) -> int:
        if self._pacer.burst_bytes is None:
            return limit
        return max(1, min(limit, self._pacer.burst_bytes // (segment + _HEADERS)))

    def _send_data(self, ahead: ReadAhead, now: float) -> bool:
        chunk: Chunk | None = ahead.head()
        if chunk is None:
            return False
        limit = min(self._batch_limit(chunk.buffer.segment), chunk.count - chunk.sent)
        run = self.session.take_odata(limit, now)
        if run is None:
            return False
        assert run.first_block == chunk.first_block + chunk.sent
        datagrams = chunk.buffer.fill(
            chunk.sent,
            run.count,
            op_code=OpCode.ODATA,
            sender_time=int(now * 1000),
            client_id=self.session.master_client_id,
            odata_seq_no=np.arange(run.first_seq, run.first_seq + run.count, dtype=np.uint64),
            trail_odata_seq_no=self.session.trail,
            block_number=np.arange(run.first_block, run.first_block + run.count, dtype=np.uint64),
            previous_lead=run.previous_lead,
        )
        chunk.sent += run.count
        self._repairs_owed = max(0, self._repairs_owed - run.count)
        self.data_bytes += run.count * chunk.buffer.block_len
        # A round goes upwards, and who wants the image misses what was never sent: up to the farthest block
        # all were. Where programs ask for ranges of it, this is an upper bound, without a bit for each block.
        last = run.first_block + run.count - 1
        if run.first_block <= self._farthest:
            again = min(last, self._farthest) - run.first_block + 1
            self.catch_up_bytes += again * chunk.buffer.block_len
        self._farthest = max(self._farthest, last)
        self._pacer.spend(len(datagrams) + run.count * _HEADERS, now)
        self._put(datagrams, chunk.buffer.segment, self.group)
        return True

    def _send_repairs(self, ahead: ReadAhead, now: float) -> bool:
        """Send a burst of repairs of a set that is read; the call after its last frees the set's buffer."""
        repair = self._repair
        if repair is not None and repair.sent == len(repair.items):
            ahead.give_back(repair)
            repair = None
        repair = self._repair = repair or ahead.repairs()
        if repair is None:
            return False
        if not self.session.master_client_id:
            repair.sent = len(repair.items)  # read before the master went: QCC state sends no data
            return True
        first = repair.sent
        repair.sent += self._within_burst(len(repair.items) - first, repair.buffer.segment)
        numbers = self._still_wanted(repair, first)
        count = len(numbers)
        if not count:
            return True
        datagrams = repair.buffer.fill(
            first,
            count,
            op_code=OpCode.RDATA,
            sender_time=int(now * 1000),
            client_id=self.session.master_client_id,
            odata_seq_no=numbers[:, 0],
            trail_odata_seq_no=self.session.trail,
            block_number=numbers[:, 1],
        )
        self.session.repairs_sent(numbers[:, 0].tolist(), now)
        self._repairs_owed += count
        self.repair_bytes += count * repair.buffer.block_len
        self._pacer.spend(len(datagrams) + count * _HEADERS, now)
        self._put(datagrams, repair.buffer.segment, self.group)
        return True

    def _still_wanted(self, repair: RepairSet, first: int) -> npt.NDArray[np.uint64]:
        """Sequence numbers and blocks from slot `first` to `sent`; those that were forgotten meanwhile go.

        While they were read the Data Packet List's head may have moved on (MS-WDSMT 3.1.6.7). What is not in
        the list is not sent again (3.1.5.9.6): its number would lie below the Trail that it carries.
        """
        numbers = np.array(repair.items[first : repair.sent], dtype=np.uint64)
        kept = np.flatnonzero(numbers[:, 0] >= self.session.trail)
        if len(kept) == len(numbers):
            return numbers
        for to, place in enumerate(kept.tolist()):
            repair.buffer.payload[first + to][:] = repair.buffer.payload[first + place]
        return numbers[kept]
