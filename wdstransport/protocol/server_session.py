"""One multicast session of a server: datagrams and time in, datagrams and events out.

The facade over MS-WDSMT 3.1 and MS-WDSMA 3.1. It decodes at the door, counts what cannot be accepted, and
encodes at the exit. Content never passes through: `take_odata` and `take_repairs` name blocks, and the driver
that holds their bytes sends them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from wdstransport.protocol.clients import Address, ClientRecord, DemoteTarget
from wdstransport.protocol.door import Door
from wdstransport.protocol.events import ClientGone, Gone, ServerSessionEvent
from wdstransport.protocol.parameters import ServerParameters
from wdstransport.protocol.server_application import ApplicationState, ServerApplication
from wdstransport.protocol.server_data import ODataRun
from wdstransport.protocol.server_transport import ServerState, ServerTransport
from wdstransport.wire.answers import decode_answer, encode_answer
from wdstransport.wire.batch import Batch
from wdstransport.wire.security import Security
from wdstransport.wire.transport import DropReason, KickReason, Ncf, OpCode, WireError, decode, encode

__all__ = ["ServerSession"]

_ACK = int(OpCode.ACK)


class ServerSession:
    """A server's side of one session.

    Attributes:
        session_id: the session's number on this server.
        dropped: datagrams not accepted, by reason.
        completed: clients that left with everything.
    """

    def __init__(
        self,
        *,
        session_id: int,
        total_blocks: int,
        client_security: Security,
        server_security: Security,
        parameters: ServerParameters,
        rng: random.Random,
        now: float,
    ) -> None:
        """Set up a session in PreStart state (MS-WDSMT 3.1.3, MS-WDSMA 3.1.3).

        Args:
            session_id: 32 bits, unique on the server.
            total_blocks: how many blocks the content has.
            client_security: the mode and keys of what clients send.
            server_security: those of what this session sends.
            parameters: timers, windows and limits.
            rng: where NextClientId comes from.
            now: seconds.
        """
        self.session_id = session_id
        self.total_blocks = total_blocks
        self.dropped: Counter[str] = Counter()
        self.completed = 0
        self._client_security = client_security
        self._server_security = server_security
        self.application = ServerApplication(total_blocks=total_blocks, parameters=parameters)
        self.transport = ServerTransport(
            parameters=parameters, rng=rng, application=self.application, now=now
        )
        self.application.connect(self)
        self._door = Door(
            session_id=session_id,
            security=client_security,
            clients=self.transport.clients,
            parameters=parameters,
            now=now,
        )

    # ------------------------------------------------------------------ TransportTriggers

    def ready(self) -> bool:
        """Whether there is a master, so that a POLL can be followed by data."""
        return self.transport.state is ServerState.DATA

    def active_clients(self) -> int:
        """How many clients are on the Active Client List."""
        return len(self.transport.clients.active)

    def is_there(self, client_id: int) -> bool:
        """Whether a client is on the Active Client List, or about to be."""
        clients = self.transport.clients
        return client_id in clients.active or client_id in clients.pending

    def highest_rtt(self) -> float:
        """The largest RTT of an active client, seconds."""
        return self.transport.clients.highest_rtt()

    def poll(self, payload: bytes) -> float:
        """POLL Trigger; the back-off in seconds."""
        return self.transport.poll(payload)

    def give(self, ranges: list[tuple[int, int]]) -> None:
        """Data Trigger for every block of the inclusive ranges."""
        self.transport.data.give(ranges)

    def withdraw(self) -> None:
        """Forget what was given: nobody is left."""
        self.transport.data.withdraw()

    # ------------------------------------------------------------------ in

    def receive(self, batch: Batch, now: float) -> None:
        """Take datagrams that clients sent to the unicast address; never raises on any bytes."""
        source = batch.source
        for datagram, alike in groupby(batch.datagrams()):
            repeats = sum(1 for _ in alike)
            # Every repair is acknowledged (MS-WDSMT 2.2.17 knows no FW_LEAD), mostly in the same words; what
            # an ACK says is set, not added (3.1.5.9.5), so hearing it again would change nothing.
            if self._is_ack(datagram):
                refused = self._judge(datagram, source, now)
                if refused is None:
                    self.transport.data.counters.acks += repeats - 1
                else:
                    self.dropped[refused] += repeats
                continue
            for _ in range(repeats):
                refused = self._judge(datagram, source, now)
                if refused is not None:
                    self.dropped[refused] += 1

    def _is_ack(self, datagram: memoryview) -> bool:
        at = self._client_security.header_len + 4
        return len(datagram) > at and datagram[at] == _ACK

    def _judge(self, datagram: memoryview, source: Address, now: float) -> str | None:
        """Take one datagram; the key to count it under when it was not accepted."""
        refused = self._door.refuses(datagram, source, now)
        if refused is not None:
            return refused
        reason = self._receive_one(datagram, source, now)
        return None if reason is None else reason.value

    def _receive_one(self, datagram: memoryview, source: Address, now: float) -> DropReason | None:
        if self.transport.terminated:
            return DropReason.STATE
        answer = decode_answer(datagram, session_id=self.session_id, security=self._client_security)
        if answer is not None:
            return self.transport.receive(answer[1], answer[0], source, now)
        try:
            header, packet = decode(datagram, session_id=self.session_id, security=self._client_security)
        except WireError as error:
            return error.reason
        return self.transport.receive(packet, header.sender_time, source, now)

    def handle_timers(self, now: float) -> None:
        """Do what is due at `now`; afterwards `next_deadline` is later than `now`."""
        self.transport.handle_timers(now)
        self.application.handle_timers(now)

    def next_deadline(self) -> float:
        """When to call `handle_timers` next, seconds; infinity when the session is over."""
        if self.transport.terminated:
            return float("inf")
        return min(self.transport.next_deadline(), self.application.next_deadline())

    def kick(self, client_id: int, reason: KickReason, now: float) -> bool:
        """Remove a client (MS-WDSMT 3.1.5.6); whether there was such a client."""
        return self.transport.kick(client_id, reason, now)

    def demote(self, client_id: int, target: DemoteTarget, now: float) -> bool:
        """Send a client to a slower session (MS-WDSMT 3.1.5.10); whether there was such a client."""
        return self.transport.demote(client_id, target, now)

    def close(self, reason: KickReason, now: float) -> None:
        """Tell every client with a KICK that the session is over; nobody joins from then on."""
        self.transport.close(reason, now)

    # ------------------------------------------------------------------ out

    def take_outgoing(self, now: float) -> list[tuple[bytes, Address | None]]:
        """Control datagrams to send, each with its address, or None for the group."""
        packets = self.transport.outbox.drain()
        if not packets:
            return []
        sender_time, session_id, security = int(now * 1000), self.session_id, self._server_security
        return [
            (
                encode_answer(packet, session_id=session_id, sender_time=sender_time, security=security)
                if isinstance(packet, Ncf)
                else encode(packet, session_id=session_id, sender_time=sender_time, security=security),
                to,
            )
            for packet, to in packets
        ]

    def sendable(self) -> int:
        """How many blocks the window lets out now."""
        return self.transport.data.sendable()

    def take_odata(self, limit: int, now: float) -> ODataRun | None:
        """Number up to `limit` consecutive blocks that leave now; None when the window is closed."""
        return self.transport.data.take_odata(limit, now)

    def take_repairs(self, limit: int) -> list[tuple[int, int]]:
        """Up to `limit` (sequence number, block number) to send again; `repairs_sent` says when they left."""
        return self.transport.data.take_repairs(limit)

    def repairs_sent(self, numbers: list[int], now: float) -> None:
        """These sequence numbers, which `take_repairs` named, leave now."""
        self.transport.data.repairs_sent(numbers, now)

    @property
    def plan(self) -> tuple[int, Sequence[tuple[int, int]]]:
        """A number that changes with the round, and the block ranges that remain to be sent in it."""
        return self.application.plan_number, self.transport.data.given

    def take_events(self) -> list[ServerSessionEvent]:
        """What happened since the last call, oldest first."""
        events = [*self.transport.events, *self.application.events]
        self.transport.events.clear()
        self.application.events.clear()
        for event in events:
            if isinstance(event, ClientGone) and event.reason is Gone.COMPLETE:
                self.completed += 1
        return events

    @property
    def over(self) -> bool:
        """Whether the Inactivity Timer has ended the session."""
        return self.transport.terminated

    @property
    def members(self) -> int:
        """Clients that have joined and not left, removed ones included."""
        lists = self.transport.clients
        return len(lists.active) + len(lists.kicked) + len(lists.demoted)

    @property
    def window(self) -> int:
        """CurrentWindowSize, packets."""
        return self.transport.data.window.size

    @property
    def trail(self) -> int:
        """TrailODATASeqNo of what leaves now."""
        return self.transport.data.trail

    @property
    def master_client_id(self) -> int:
        """MasterClientId."""
        return self.transport.data.master_client_id

    @property
    def state(self) -> str:
        """One word for people: waiting, querying, sending, idle or ended."""
        if self.transport.terminated:
            return "ended"
        match self.application.state:
            case ApplicationState.QUERY | ApplicationState.RESTING:
                return "querying"
            case ApplicationState.DATA:
                return "sending"
            case _:
                return "idle" if self.application.rounds else "waiting"

    def clients(self) -> list[tuple[ClientRecord, str]]:
        """Every client with the list it is on: pending, active, master, kicked or demoted."""
        lists = self.transport.clients
        master = self.transport.data.master_client_id
        return [
            *((record, "pending") for record in lists.pending.values()),
            *(
                (record, "master" if record.client_id == master else "active")
                for record in lists.active.values()
            ),
            *((record, "kicked") for record in lists.kicked.values()),
            *((record, "demoted") for record in lists.demoted.values()),
        ]
