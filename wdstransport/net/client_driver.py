"""One client session on its sockets: the pump that gives the core time, datagrams and a place for blocks."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import groupby
from typing import Protocol

import trio

from wdstransport.net.batching import (
    BatchReader,
    BatchSender,
    SlabPool,
    probe_merging,
    probe_segmentation,
)
from wdstransport.net.joining import RunReader
from wdstransport.net.lossy import Lossy
from wdstransport.net.multicast import GroupSocket, OpenSocket
from wdstransport.net.offload import name_features
from wdstransport.net.slabs import READ_ROOM
from wdstransport.net.waiting import Waiter, open_tasks
from wdstransport.protocol.client_session import ClientSession
from wdstransport.protocol.events import AllReceived, BlocksArrived, Demoted, Departed, Joined, Left
from wdstransport.wire.batch import Batch

__all__ = ["ClientDriver", "Consumer", "Sockets"]

_READS_A_TURN = 32
_FAREWELL = 0.5
_STALL = 0.5
_GLIMPSE = 0.1
_ROOM = 1 << 20
"""A full cache leaves the socket unread while storing moves on, only slower: the kernel's buffer fills, and
what it then drops makes this client ask for repairs, become the master and set the pace. Blocks are refused
(MS-WDSMT 3.2.5.13) when nothing has been stored for `_STALL` seconds: a disk that stands still must not hold
the others up. Every `_GLIMPSE` seconds one read lets control packets in all the same."""
_NAP = 0.001
_LONGEST_NAP = 0.008
_NAP_BYTES = 1 << 15
_NAP_WORTH = 1 << 20
_NAP_SHARE = 16
"""While data streams in, whoever has taken all there was sleeps a millisecond before looking again: then
one check, one write and one ACK serve several merged runs, as a network card's interrupt moderation does
for packets. It sleeps up to eight where less than `_NAP_WORTH` bytes come in one, but at most twice as long
as the time before: a server whose window is still small waits for it. A nap needs a turn that brought
`_NAP_BYTES` at least, so that nobody's round trip at the start is longer for it, and one that brought no
more than a `_NAP_SHARE`th of the receive buffer, so that what comes meanwhile has room. A timer that is due
meanwhile waits for the nap's end, but for the answers to QCC and POLL, which have a time limit: those of the
documents are random, or count in tenths of seconds."""


class Consumer(Protocol):
    """Where a driver's blocks go. Called in the trio thread."""

    def arrived(self, event: BlocksArrived) -> None:
        """Take blocks; their memory is held until the event comes back from `collect`."""

    def collect(self) -> list[BlocksArrived] | None:
        """Events whose blocks are stored, or None; raises when storing failed."""

    def horizon(self) -> int | None:
        """The last block that can be taken now; None for any."""

    def all_received(self) -> None:
        """Every block has come; some may not be stored yet."""

    def joined(self, client_id: int) -> None:
        """The server gave this client an id."""

    def about_to_sleep(self) -> bool:
        """The driver is about to sleep; False when `collect` has something already."""

    def awake(self) -> None:
        """The driver woke up."""


class Sockets:
    """A client's two sockets: the group's, and its own for all it sends and for JOINACK.

    Attributes:
        server: where everything must come from.
    """

    def __init__(self, group: GroupSocket, own: OpenSocket, server: tuple[str, int]) -> None:
        self.group = group
        self.own = own
        self.server = server

    def close(self) -> None:
        """Close both."""
        self.group.sock.close()
        self.own.sock.close()


class ClientDriver:
    """Runs one client session until it has departed.

    Attributes:
        session: the core.
        departed: how it ended; None while it runs.
        received: bytes of content that came and were new.
        stored: bytes of content at their place.
    """

    def __init__(
        self,
        session: ClientSession,
        sockets: Sockets,
        consumer: Consumer,
        *,
        cache_bytes: int,
        reopen: Callable[[Demoted], Sockets],
        drop_share: float = 0.0,
        drop_seed: int = 0,
        on_turn: Callable[[float], float] | None = None,
    ) -> None:
        """Prepare to run.

        Args:
            session: a new session.
            sockets: open ones.
            consumer: takes the blocks.
            cache_bytes: the session's cache, which also bounds the memory read into.
            reopen: opens the sockets of the session that a DEMOTE names.
            drop_share: share of datagrams to lose on purpose, both ways, for demonstrations and tests.
            drop_seed: which ones.
            on_turn: called now and then with the time; says when to be called again.
        """
        self.session = session
        self.departed: Departed | None = None
        self.received = 0
        self.stored = 0
        self._consumer = consumer
        self._merge_ok = probe_merging(sockets.group.sock.family)
        self._segment_ok = probe_segmentation(sockets.own.sock.family)
        self.features = {
            **name_features(segment_ok=self._segment_ok, merge_ok=self._merge_ok),
            "joins": "source-specific" if sockets.group.source_specific else "any source",
        }
        self._reopen = reopen
        self._on_turn = on_turn
        self._next_turn = math.inf if on_turn is None else -math.inf
        self._lossy = Lossy(drop_share, random.Random(drop_seed)) if drop_share else None
        self.pool = SlabPool(1 << 20, max(4, -(-cache_bytes * 5 // 4 >> 20)) + 2)
        self.pool.on_free = self.wake
        self._own_pool = SlabPool(1 << 16, 2)
        # What is joined on arrival fits the room that a read requires: none of it is refused.
        self._room = min(_ROOM, session.cache_size // 2)
        self._join_bytes = min(1 << 19, max(0, self._room - READ_ROOM))
        self._full = False
        self._stored_at = -math.inf
        self._glimpse_at = -math.inf
        self._own_seen = trio.Event()
        self._drained = True
        self._reached = self._reached_in = 0
        self._nap = _NAP
        self._open(sockets)

    def _open(self, sockets: Sockets) -> None:
        self.sockets = sockets
        self._waiter = Waiter(sockets.group.sock)
        self.reader = RunReader(sockets.group.sock, self.pool, self._merge_ok, join_bytes=self._join_bytes)
        self._own_reader = BatchReader(sockets.own.sock, self._own_pool, False)
        self._sender = BatchSender(sockets.own.sock, self._segment_ok)
        self._own_ready = True

    @property
    def stalled(self) -> bool:
        """Whether the socket is left unread because storing is behind."""
        return self._full

    def wake(self) -> None:
        """Look at the session again: a call from outside changed it."""
        self._waiter.wake()

    async def run(self) -> None:
        """Pump until the session has departed; the sockets are closed afterwards.

        Raises:
            TransportError: what the consumer raised.
        """
        try:
            async with open_tasks() as nursery:
                nursery.start_soon(self._watch_own_socket)
                try:
                    await self._pump()
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await self._farewell(trio.current_time() + _FAREWELL)
                    raise
                nursery.cancel_scope.cancel()
        finally:
            self._close_sockets()

    async def _watch_own_socket(self) -> None:
        """Wake the pump when something comes to the client's own address, which is rare."""
        while True:
            sock = self.sockets.own.sock
            try:
                await trio.lowlevel.wait_readable(sock)
            except trio.ClosedResourceError:
                continue  # a DEMOTE opened others
            self._own_ready = True
            self._own_seen = trio.Event()
            self.wake()
            await self._own_seen.wait()

    async def _pump(self) -> None:
        session, consumer = self.session, self._consumer
        busy = 0
        while self.departed is None:
            now = trio.current_time()
            self._collect(now)
            if self._own_ready:
                self._read_own(now)
            brought = self.reader.bytes
            self._read_group()
            brought = self.reader.bytes - brought
            now = trio.current_time()
            session.handle_timers(now)
            self._events(now)
            self._send(now)
            if self._on_turn is not None and now >= self._next_turn:
                self._next_turn = self._on_turn(now)
            if self.departed is not None:
                break
            if not self._drained:
                busy += 1
                if busy >= 8:
                    busy = 0
                    await trio.lowlevel.checkpoint()
                continue
            busy = 0
            if consumer.about_to_sleep():
                await self._sleep(now, brought)
                consumer.awake()

    async def _sleep(self, now: float, brought: int) -> None:
        deadline = min(self.session.next_deadline(), self._next_turn)
        if not self._full:
            if _NAP_BYTES <= brought <= self.sockets.group.rcvbuf // _NAP_SHARE:
                wanted = self._nap * min(2.0, _NAP_WORTH / brought)
                self._nap = min(_LONGEST_NAP, max(_NAP, wanted))
                await self._waiter.pause(min(now + self._nap, self.session.answer_deadline()))
            else:
                self._nap = _NAP
                await self._waiter.wait(deadline)
            return
        # Not reading on purpose: only memory, time or a call may end this sleep.
        if not self.reader.starved:
            if self.session.cache_room >= self._room:
                deadline = min(deadline, now + _LONGEST_NAP)  # nobody says how far a pipe has got
            deadline = min(deadline, self._glimpse_at, max(now, self._stored_at + _STALL))
        await self._waiter.pause(deadline)

    def _collect(self, now: float) -> None:
        while (events := self._consumer.collect()) is not None:
            self._stored_at = now
            for event in events:
                self.session.stored(event, now)
                self.stored += event.count * event.block_len
                if event.batch.owner is not None:
                    event.batch.owner.release()
        horizon = self._consumer.horizon()
        if horizon is not None:
            self.session.application.horizon = horizon

    def _may_read(self, now: float) -> bool:
        """Whether to take data from the socket, or leave it to the kernel's buffer."""
        if self.session.cache_room >= self._room and not self._beyond_reach():
            self._full = False
            return True
        if not self._full:
            self._full = True
            self._stored_at = now
            self._glimpse_at = now + _GLIMPSE
        if now >= self._glimpse_at:
            self._glimpse_at = now + _GLIMPSE
            return True
        return now - self._stored_at >= _STALL

    def _beyond_reach(self) -> bool:
        """Whether what comes next may lie beyond the consumer's horizon, and would have to come again.

        A pipe takes blocks in order, and counts as stored what waits in its ring: only how far it got says
        how much more it can take. While it moves on, the kernel's buffer waits for it.
        """
        application = self.session.application
        if application.horizon >= application.total_blocks:
            return False
        rounds = self.session.transport.polls
        if rounds != self._reached_in:
            self._reached, self._reached_in = 0, rounds
        return (application.horizon - self._reached) * application.block_size < self._room

    def _read_group(self) -> None:
        self._drained = False
        for _ in range(_READS_A_TURN):
            # A turn can be long: a packet's time of arrival goes back to the server as BackOff.
            now = trio.current_time()
            if not self._may_read(now):
                self._drained = True
                return
            batch = self.reader.read()
            if batch is None:
                self._drained = True
                if self.reader.starved:
                    self._full = True
                    self._glimpse_at = now + _GLIMPSE
                return
            self._take(batch, now, multicast=True)
            self._send(now)
            if self.departed is not None:
                return

    def _read_own(self, now: float) -> None:
        while (batch := self._own_reader.read()) is not None:
            self._take(batch, now, multicast=False)
        self._own_ready = False
        self._own_seen.set()

    def _take(self, batch: Batch, now: float, *, multicast: bool) -> None:
        for kept in (batch,) if self._lossy is None else self._lossy.thin(batch):
            self.session.receive(kept, now, multicast=multicast)
        self._events(now)
        if batch.owner is not None:
            batch.owner.release()

    def _events(self, now: float) -> None:
        for event in self.session.take_events():
            match event:
                case BlocksArrived():
                    self.received += event.count * event.block_len
                    for run in event.runs:
                        self._reached = max(self._reached, run.first_block + run.rows - 1)
                    if event.batch.owner is not None:
                        event.batch.owner.hold()
                    self._consumer.arrived(event)
                case AllReceived():
                    self._consumer.all_received()
                case Joined():
                    self._consumer.joined(event.client_id)
                case Departed():
                    self._send(now)
                    self.departed = event
                case Demoted():
                    self._send(now)
                    self._enter_lower_session(event, now)

    def _enter_lower_session(self, event: Demoted, now: float) -> None:
        """New sockets for the session that the DEMOTE named (MS-WDSMT 3.2.5.16)."""
        sockets = self._reopen(event)
        self._close_sockets()
        self._open(sockets)
        self.session.enter_lower_session(event.session_id, sockets.server, now)

    def _close_sockets(self) -> None:
        self.reader.close()
        self._own_reader.close()
        trio.lowlevel.notify_closing(self.sockets.own.sock)
        trio.lowlevel.notify_closing(self.sockets.group.sock)
        self.sockets.close()

    async def _farewell(self, until: float) -> None:
        """Leave as cancelled: the server is told, whatever ends this run."""
        session = self.session
        session.leave(Left.CANCELLED, trio.current_time())
        while not session.over:
            await trio.sleep_until(min(session.next_deadline(), until))
            # Where round trips are long, the wait of MS-WDSMT 3.2.5.4.3 exceeds a caller's patience.
            now = trio.current_time()
            session.handle_timers(now if now < until else session.next_deadline())
        self._send(trio.current_time())

    def _send(self, now: float) -> None:
        """Send what the session has to say; a full socket loses it, as a wire would."""
        datagrams = self.session.take_outgoing(now)
        if self._lossy is not None:
            datagrams = [datagram for datagram in datagrams if not self._lossy.loses()]
        # A batch of repairs is acknowledged packet by packet (MS-WDSMT 2.2.17): its ACKs leave in one call.
        for length, alike in groupby(datagrams, len):
            self._sender.send(b"".join(alike), length, self.session.server)
