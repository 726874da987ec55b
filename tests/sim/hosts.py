"""Machines on the virtual network: a server and its session, a client with its session and its disk.

The drivers here do what `wdstransport.net` does on a real machine, against the same three questions: what is
to be sent, what happened, when is the next deadline.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import numpy as np
from bounds import ServerBounds, watch_missing
from disk import Disk
from image import Copy, Image
from machine import Driver, Host
from monitor import Monitor
from network import Address, packed, unpacked
from witness import Witness

from wdstransport.protocol.client_session import ClientSession
from wdstransport.protocol.events import (
    AllReceived,
    BlocksArrived,
    ClientGone,
    Demoted,
    Departed,
    Gone,
    Joined,
    Left,
    SendingBegan,
    ServerSessionEvent,
    Terminated,
)
from wdstransport.protocol.parameters import ClientParameters, ServerParameters
from wdstransport.protocol.server_session import ServerSession
from wdstransport.wire.batch import Batch
from wdstransport.wire.security import ChecksumSecurity, Security
from wdstransport.wire.slots import SlotBuffer
from wdstransport.wire.transport import KickReason, OpCode

BATCH = 44
"""Datagrams in one batch of ODATA: what UDP_SEGMENT takes of 1,477 bytes each."""
SEND_AHEAD = 0.0005
"""Seconds of data a server puts into its link's queue before it waits."""


class Server(Driver):
    """A server session with its content.

    Attributes:
        began_at: virtual time at which sending began.
        gone: how clients were lost, in order, as (virtual time, ClientId, reason).
        monitor: its packets, counted and judged.
    """

    def __init__(
        self,
        host: Host,
        port: int,
        group: Address,
        image: Image,
        *,
        session_id: int,
        parameters: ServerParameters | None = None,
        security: Security | None = None,
        batch: int = BATCH,
    ) -> None:
        super().__init__(host, port)
        self.group, self.image, self.batch = group, image, batch
        self.session_id = session_id
        self.security = security or ChecksumSecurity()
        self.parameters = parameters or ServerParameters()
        rng: random.Random = self.world.choices(f"{host.ip} session {session_id}")
        self.session = ServerSession(
            session_id=session_id,
            total_blocks=image.total_blocks,
            client_security=self.security,
            server_security=self.security,
            parameters=self.parameters,
            rng=rng,
            now=self.now(),
        )
        self.monitor = Monitor(self.world, image.total_blocks)
        self.bounds = ServerBounds(self.world, self.parameters)
        self.gone: list[tuple[float, int, Gone]] = []
        self.terminated = False
        self.began_at: float | None = None
        self._heard_at = self.now()
        self.on_event: Callable[[ServerSessionEvent], None] | None = None
        self._resume_armed = False
        self._stale_head = (0, 0.0)
        self._slots: dict[tuple[int, bool], SlotBuffer] = {}
        self.pump()

    def arrived(self, batch: Batch, *, multicast: bool) -> None:
        """A client's datagrams."""
        clients = self.session.transport.clients
        speaker = clients.at(batch.source)
        joined = speaker is not None and (
            speaker.client_id in clients.active or speaker.client_id in clients.pending
        )
        for datagram in batch.datagrams():
            self.monitor.heard(datagram, joined)
        refused = self.session.dropped.total()
        self.session.receive(batch, self.now())
        if self.session.dropped.total() - refused < -(-len(batch.buffer) // batch.segment):
            self._heard_at = self.now()
        self.pump()

    def pump(self) -> None:
        """Timers, control packets, data, events, deadline: in the order of the real pump."""
        if not self.running:
            return
        now = self.now()
        session = self.session
        session.handle_timers(now)
        self._send_control(now)
        self._send_data(now)
        self._send_control(now)
        for event in session.take_events():
            if isinstance(event, ClientGone):
                self.gone.append((self.world.now, event.client.client_id, event.reason))
            elif isinstance(event, SendingBegan):
                self.began_at = self.world.now
            elif isinstance(event, Terminated):
                self.terminated = True
                silent = now - self._heard_at
                self.world.require(
                    silent >= self.parameters.inactivity_timeout - 1e-6, f"ended after {silent} s of silence"
                )
            if self.on_event is not None:
                self.on_event(event)
        deadline = session.next_deadline()
        if deadline <= now:
            # A change may make something due at once; handling it must move the deadline on.
            session.handle_timers(now)
            self._send_control(now)
            deadline = session.next_deadline()
            self.world.require(deadline > now, f"server's deadline {deadline} is not after {now}")
        self.arm(deadline)
        self.bounds.watch(session, now)
        self._watch_cleanup()

    def _send_control(self, now: float) -> None:
        for datagram, to in self.session.take_outgoing(now):
            self.monitor.control(datagram)
            self.network.send(self.host, self.port, to or self.group, memoryview(datagram), len(datagram))

    def _send_data(self, now: float) -> None:
        session = self.session
        while True:
            ahead = self.host.up.free_at - self.world.now
            if ahead > SEND_AHEAD:
                if not self._resume_armed:
                    self._resume_armed = True
                    self.world.after(ahead - SEND_AHEAD / 2, self._resume)
                return
            repairs = session.take_repairs(self.batch)
            if repairs:
                self._send_repairs(repairs, now)
                session.repairs_sent([seq for seq, _ in repairs], now)
                continue
            plan, ranges = session.plan
            if not ranges:
                return
            start, end = ranges[0]
            last = self.image.total_blocks
            limit = 1 if start == last else min(self.batch, min(end, last - 1) - start + 1)
            run = session.take_odata(limit, now)
            if run is None:
                return
            content = self.image.blocks(run.first_block, run.count)
            buffer, segment = self._datagrams(
                OpCode.ODATA,
                content,
                np.arange(run.first_seq, run.first_seq + run.count, dtype=np.uint64),
                np.arange(run.first_block, run.first_block + run.count, dtype=np.uint64),
                now,
                run.previous_lead,
            )
            self.monitor.odata(plan, run.first_seq, run.first_block, run.count, len(buffer), content.size)
            self.network.send(self.host, self.port, self.group, buffer, segment)

    def _resume(self) -> None:
        self._resume_armed = False
        self.pump()

    def _send_repairs(self, repairs: list[tuple[int, int]], now: float) -> None:
        image = self.image
        short = image.total_blocks if image.length_of(image.total_blocks) != image.block_size else 0
        full = [(seq, block) for seq, block in repairs if block != short]
        for part in (full, *([repair] for repair in repairs if repair[1] == short)):
            if not part:
                continue
            blocks = [block for _, block in part]
            content = image.blocks(blocks[0], 1) if len(part) == 1 else image.gather(blocks)
            buffer, segment = self._datagrams(
                OpCode.RDATA,
                content,
                np.array([seq for seq, _ in part], dtype=np.uint64),
                np.array(blocks, dtype=np.uint64),
                now,
            )
            self.monitor.rdata(part, len(buffer))
            self.network.send(self.host, self.port, self.group, buffer, segment)

    def _datagrams(
        self,
        op_code: OpCode,
        content: np.ndarray,
        sequences: np.ndarray,
        blocks: np.ndarray,
        now: float,
        previous_lead: int = 0,
    ) -> tuple[memoryview, int]:
        """One batch, in memory that nobody writes again."""
        count, length = content.shape
        odata = op_code is OpCode.ODATA
        slots = self._slots.get((length, odata))
        if slots is None:
            slots = SlotBuffer(
                self.batch, length, session_id=self.session_id, security=self.security, fw_lead=odata
            )
            self._slots[length, odata] = slots
        for place in range(count):
            slots.payload[place][:] = content[place].data
        filled = slots.fill(
            0,
            count,
            op_code=op_code,
            sender_time=int(now * 1000),
            client_id=self.session.transport.data.master_client_id,
            odata_seq_no=sequences,
            trail_odata_seq_no=self.session.transport.data.trail,
            block_number=blocks,
            previous_lead=previous_lead,
        )
        return memoryview(bytes(filled)), slots.segment

    def _watch_cleanup(self) -> None:
        """In the Data state a packet that is a second old and acknowledged goes within a cleanup or two."""
        data = self.session.transport.data
        head = data.trail
        if not data.master_client_id or not data.packets or head >= data.mc_trail:
            self._stale_head = (0, 0.0)
        elif self.now() - data.packets.find(head)[1] <= 1.0 or self._stale_head[0] != head:  # type: ignore[index]
            self._stale_head = (head, self.world.now)
        elif self.world.now - self._stale_head[1] > 2.1 * self.parameters.cleanup_data_list_interval:
            self.world.fail(f"packet {head} is acknowledged and old, and kept all the same")

    def client_id(self, receiver: Receiver) -> int:
        """The ClientId of a receiver, 0 when it has none here."""
        record = self.session.transport.clients.at(receiver.address)
        return record.client_id if record is not None else 0

    def master(self) -> Address | None:
        """The master client's address."""
        master = self.session.transport.clients.active.get(self.session.transport.data.master_client_id)
        return master.address if master is not None else None

    def kick(self, receiver: Receiver, reason: KickReason = KickReason.POLICY_NOT_MET) -> bool:
        """Kick a receiver; whether the server knew it."""
        done = self.session.kick(self.client_id(receiver), reason, self.now())
        self.pump()
        return done

    def demote(self, receiver: Receiver, to: Server) -> bool:
        """Send a receiver to another session; whether the server knew it."""
        from wdstransport.protocol.clients import DemoteTarget

        target = DemoteTarget(to.session_id, packed(to.group[0]), to.group[1], packed(to.host.ip), to.port)
        done = self.session.demote(self.client_id(receiver), target, self.now())
        self.pump()
        return done

    def stop(self) -> None:
        """The process dies: its socket is gone, nobody is told."""
        self.host.sockets.pop(self.port, None)


class Receiver(Driver):
    """A client session with its copy and its disk.

    Attributes:
        outcome: how it ended, or None; "complete" means that every block was compared and stored.
        ended_at: virtual time of that.
        stays: whether the scenario lets it run to its end (it does not kill it).
        pending: blocks on their way to the disk, by the first of them.
    """

    def __init__(
        self,
        host: Host,
        port: int,
        server: Server,
        *,
        name: str,
        parameters: ClientParameters | None = None,
        disk: Disk | None = None,
        copy: Copy | None = None,
        session_id: int | None = None,
        watched: bool = True,
    ) -> None:
        super().__init__(host, port)
        self.name = name
        self.server = server
        self.disk = disk
        self.outcome: str | None = None
        self.kick_reason: KickReason | None = None
        self.ended_at: float | None = None
        self.started_at = self.world.now
        self.stays = True
        self.client_ids: list[int] = []
        self.largest_missing = 0
        self.largest_cache = 0
        self.on_over: Callable[[Receiver], None] | None = None
        self.pending: dict[int, BlocksArrived] = {}
        self._all = False
        self._sessions: dict[tuple[int, int], Server] = {}
        image = server.image
        have: Iterable[tuple[int, int]] = copy.have() if copy is not None else ()
        self.copy = copy or Copy(self.world, image, name)
        self.group = server.group
        self.parameters = parameters or ClientParameters()
        number = server.session_id if session_id is None else session_id
        self.witness: Witness | None = None
        if watched:
            checksums = isinstance(server.security, ChecksumSecurity)
            self.witness = Witness(self.world, name, number, image.total_blocks, have, checksums=checksums)
        self.session = ClientSession(
            session_id=number,
            server=server.address,
            content_size=image.size,
            block_size=image.block_size,
            total_blocks=image.total_blocks,
            client_name=name[:15],
            ip_address=packed(host.ip),
            mac_address=b"\x02\x00" + packed(host.ip),
            client_security=server.security,
            server_security=server.security,
            parameters=self.parameters,
            rng=self.world.choices(f"{host.ip}:{port} at {self.world.now}"),
            now=self.now(),
            have=have,
        )
        self.network.join(self.group, host, self)
        self.pump()

    def __repr__(self) -> str:
        return self.name

    def arrived(self, batch: Batch, *, multicast: bool) -> None:
        """Datagrams for this client's own socket or its group's."""
        if self.host.sockets.get(self.port) is not self:
            return
        now = self.now()
        session = self.session
        if self.witness is not None and batch.source == session.server:
            self.witness.heard(batch)
        session.receive(batch, now, multicast=multicast)
        transport = session.transport
        missing = len(transport.data.missing)
        if missing > self.largest_missing:
            self.largest_missing = missing
            watch_missing(self.world, session, self.name)
        if transport.cache_used > self.largest_cache:
            self.largest_cache = transport.cache_used
        if transport.events or transport.outbox.packets:
            self._serve(now)
            return
        deadline = transport.timers.next_deadline()
        if deadline < self._wake_at or deadline <= now:
            self._serve(now)

    def pump(self) -> None:
        """Timers, events, control packets, deadline."""
        if self.running and self.outcome is None:
            self._serve(self.now())

    def _serve(self, now: float) -> None:
        if self.session.next_deadline() <= now:
            self.session.handle_timers(now)
        self._handle_events(now)
        self._send(now)
        if self.outcome is not None:
            return
        deadline = self.session.next_deadline()
        if deadline <= now:
            # What an event led to may be due at once; handling it must move the deadline on.
            self.session.handle_timers(now)
            self._handle_events(now)
            self._send(now)
            if self.outcome is not None:
                return
            deadline = self.session.next_deadline()
            self.world.require(deadline > now, f"{self.name}'s deadline {deadline} is not after {now}")
        if deadline < self._wake_at:
            self.arm(deadline)

    def _send(self, now: float) -> None:
        for datagram in self.session.take_outgoing(now):
            if self.witness is not None:
                self.witness.sent(datagram)
            self.network.send(self.host, self.port, self.session.server, memoryview(datagram), len(datagram))

    def _handle_events(self, now: float) -> None:
        for event in self.session.take_events():
            match event:
                case BlocksArrived():
                    if self.witness is not None:
                        for run in event.runs:
                            self.witness.delivered(run.first_block, run.rows)
                    if self.disk is None:
                        self.copy.write(event)
                        self.session.stored(event, now)
                    else:
                        self.pending[event.runs[0].first_block] = event
                        size = event.count * event.block_len
                        self.world.at(self.disk.finished(size), self._stored, event)
                case AllReceived():
                    self._all = True
                case Departed():
                    self._over(event)
                    return
                case Demoted():
                    self._follow(event)
                case Joined():
                    self.client_ids.append(event.client_id)
        if self._all and not self.pending and not self.session.over:
            self.session.leave(Left.COMPLETE, now)
            self._all = False
            for event in self.session.take_events():
                if isinstance(event, Departed):
                    self._over(event)

    def _stored(self, event: BlocksArrived) -> None:
        if self.host.dead or self.outcome is not None:
            return
        if self.host.frozen:
            self.world.after(0.01, self._stored, event)
            return
        self.copy.write(event)
        del self.pending[event.runs[0].first_block]
        self.session.stored(event, self.now())
        self.pump()

    def _over(self, event: Departed) -> None:
        self._send(self.now())
        self.kick_reason = event.kick_reason
        if event.why is Left.COMPLETE:
            self.world.require(self.copy.whole, f"{self.name} left as complete with blocks missing")
        self._end(event.why.value)

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        self.ended_at = self.world.now
        self.network.leave(self.group, self.host, self)
        if self.host.sockets.get(self.port) is self:
            del self.host.sockets[self.port]
        if self.on_over is not None:
            self.on_over(self)

    def _follow(self, event: Demoted) -> None:
        """Join the lower session; the LEAVE goes out first, under the old session's number."""
        self._send(self.now())
        self.network.leave(self.group, self.host, self)
        self.group = (unpacked(event.multicast_address), event.multicast_port)
        self.network.join(self.group, self.host, self)
        server = (unpacked(event.unicast_address), event.unicast_port)
        self.session.enter_lower_session(event.session_id, server, self.now())
        if self.witness is not None:
            self.witness.moved(event.session_id)

    def cancel(self) -> None:
        """The user interrupts it."""
        self.session.leave(Left.CANCELLED, self.now())
        self.pump()

    def kill(self) -> None:
        """The process dies: no LEAVE."""
        self.stays = False
        self._end("killed")
