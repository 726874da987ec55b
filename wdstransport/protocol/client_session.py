"""One client's session: datagrams and time in, datagrams and blocks out.

The facade over MS-WDSMT 3.2 and MS-WDSMA 3.2. Whole batches are checked at once; control packets are decoded
one by one; what cannot be accepted is counted and never answered.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from wdstransport.protocol.client_application import ClientApplication
from wdstransport.protocol.client_transport import ClientState, ClientTransport
from wdstransport.protocol.events import AllReceived, BlocksArrived, ClientSessionEvent, Departed, Left
from wdstransport.protocol.parameters import ClientParameters
from wdstransport.wire.answers import decode_answer, encode_answer
from wdstransport.wire.batch import Batch, DataRecords, parse_data, record_of
from wdstransport.wire.security import Security
from wdstransport.wire.transport import (
    Ack,
    DropReason,
    JoinAck,
    LeaveReason,
    Nack,
    OData,
    OpCode,
    RData,
    TransportPacket,
    WireError,
    decode,
    encode,
)

__all__ = ["ClientSession"]


_DATA_CODES = (int(OpCode.ODATA), int(OpCode.RDATA))


class ClientSession:
    """A client's side of one session.

    Attributes:
        session_id: the server's number for the session; a DEMOTE changes it.
        dropped: datagrams not accepted, by reason.
        datagrams: datagrams that came, accepted or not.
    """

    def __init__(
        self,
        *,
        session_id: int,
        server: tuple[str, int],
        content_size: int,
        block_size: int,
        total_blocks: int,
        client_name: str,
        ip_address: bytes,
        mac_address: bytes,
        client_security: Security,
        server_security: Security,
        parameters: ClientParameters,
        rng: random.Random,
        now: float,
        have: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Start joining at once (MS-WDSMT 3.2.3).

        Args:
            session_id: from the initiation reply.
            server: address and port that everything must come from.
            content_size: bytes.
            block_size: bytes.
            total_blocks: number of blocks.
            client_name: at most 15 characters (MS-WDSMT 2.2.5).
            ip_address: of the interface used, 4 or 16 bytes.
            mac_address: of the interface used.
            client_security: mode and keys of what this side sends.
            server_security: those of what the server sends.
            parameters: timers and the cache.
            rng: where back-offs come from.
            now: seconds.
            have: inclusive ranges of blocks that are here already and will not be asked for.
        """
        self.session_id = session_id
        self.server = server
        self.dropped: Counter[str] = Counter()
        self.datagrams = 0
        self._client_security = client_security
        self._server_security = server_security
        self._op_code_at = server_security.header_len + 4
        self._parameters = parameters
        self._rng = rng
        self._identity = (client_name, ip_address, mac_address)
        self._announced_all = False
        self.application = ClientApplication(
            content_size=content_size, block_size=block_size, total_blocks=total_blocks, now=now, have=have
        )
        self.transport = self._new_transport(now)

    def _new_transport(self, now: float) -> ClientTransport:
        client_name, ip_address, mac_address = self._identity
        return ClientTransport(
            client_name=client_name,
            ip_address=ip_address,
            mac_address=mac_address,
            parameters=self._parameters,
            application=self.application,
            rng=self._rng,
            now=now,
        )

    # ------------------------------------------------------------------ in

    def receive(self, batch: Batch, now: float, *, multicast: bool) -> None:
        """Take datagrams; never raises on any bytes.

        Args:
            batch: what came together.
            now: seconds.
            multicast: whether it came to the group's socket; JOINACK never does (MS-WDSMT 2.2.6).
        """
        total = -(-len(batch.buffer) // batch.segment) if batch.segment else 0
        self.datagrams += total
        if batch.source != self.server:
            self.dropped[DropReason.FOREIGN_SOURCE.value] += total
            return
        if total == 1 and not self._may_be_data(batch):
            self._receive_one(batch, 0, now, multicast)
            return
        records, leftover, dropped = parse_data(
            batch, session_id=self.session_id, security=self._server_security
        )
        for reason, count in dropped:
            self.dropped[reason.value] += count
        if not len(leftover):
            if records is not None:
                self._on_records(records, now)
            return
        # A batch can mix control packets with data only at its ends; data keeps its order among itself.
        if records is not None:
            before = leftover[leftover < records.rows[0]]
            for row in before.tolist():
                self._receive_one(batch, row, now, multicast)
            self._on_records(records, now)
            leftover = leftover[leftover > records.rows[0]]
        for row in leftover.tolist():
            self._receive_one(batch, row, now, multicast)

    def _may_be_data(self, batch: Batch) -> bool:
        """Whether a lone datagram's OpCode is that of data; most are NCF, one for each NACK of anybody."""
        at, buffer = self._op_code_at, batch.buffer
        return len(buffer) > at and buffer[at] in _DATA_CODES

    def _on_records(self, records: DataRecords, now: float) -> None:
        accepted = len(records)
        for reason, count in self.transport.on_data(records, now):
            self.dropped[reason.value] += count
            accepted -= count
        if accepted:
            self.transport.heard(now)

    def _receive_one(self, batch: Batch, row: int, now: float, multicast: bool) -> None:
        datagram = batch.datagram(row)
        answer = decode_answer(datagram, session_id=self.session_id, security=self._server_security)
        if answer is not None:
            self._judged(self.transport.receive(answer[1], answer[0], now), now)
            return
        try:
            header, packet = decode(datagram, session_id=self.session_id, security=self._server_security)
        except WireError as error:
            self.dropped[error.reason.value] += 1
            return
        reason: DropReason | None
        if isinstance(packet, OData | RData):
            lone = Batch(datagram, len(datagram), batch.source, batch.owner)
            records = record_of(packet, lone, self._server_security)
            if records is not None:
                self._on_records(records, now)
                return
            reason = DropReason.FIELD  # a data packet whose payload is no DATA of MS-WDSMA 2.2.4
        elif multicast and isinstance(packet, JoinAck):
            reason = DropReason.NOT_FOR_US
        else:
            # Another JOINACK answers this client's own JOIN. It does not show that the group still comes, and
            # must not keep it waiting for that (deviation 60).
            again = isinstance(packet, JoinAck) and self.transport.state is ClientState.REGULAR
            reason = self.transport.receive(packet, header.sender_time, now)
            if again and reason is None:
                return
        self._judged(reason, now)

    def _judged(self, reason: DropReason | None, now: float) -> None:
        if reason is None:
            self.transport.heard(now)
        else:
            self.dropped[reason.value] += 1

    def stored(self, event: BlocksArrived, now: float) -> None:
        """The blocks of an event are at their place: Cache Done (MS-WDSMT 3.2.5.18)."""
        del now
        self.transport.cache_done(event.charged)

    def handle_timers(self, now: float) -> None:
        """Do what is due at `now`; afterwards `next_deadline` is later than `now`."""
        self.transport.handle_timers(now)

    def next_deadline(self) -> float:
        """When to call `handle_timers` next, seconds; infinity when the session is over."""
        return self.transport.timers.next_deadline()

    def answer_deadline(self) -> float:
        """When an answer to the server's QCC or POLL is due, seconds; infinity where none is."""
        return self.transport.answer_deadline()

    def leave(self, why: Left, now: float) -> None:
        """Terminate Trigger (MS-WDSMT 3.2.5.4.1): LEAVE follows, then `Departed`."""
        reason = {Left.COMPLETE: LeaveReason.COMPLETE, Left.INACTIVE: LeaveReason.INACTIVE}.get(
            why, LeaveReason.CANCELLED
        )
        self.transport.leave(reason, now, Departed(why))

    def enter_lower_session(self, session_id: int, server: tuple[str, int], now: float) -> None:
        """Join the session a DEMOTE named; blocks that came stay (MS-WDSMT 3.2.5.16, deviation 44)."""
        self.session_id = session_id
        self.server = server
        used, refused = self.transport.cache_used, self.transport.refused
        self.transport = self._new_transport(now)
        self.transport.cache_used, self.transport.refused = used, refused

    # ------------------------------------------------------------------ out

    def take_outgoing(self, now: float) -> list[bytes]:
        """Datagrams to send to the server's unicast address."""
        packets = self.transport.outbox.drain()
        if not packets:
            return []
        sender_time = int(now * 1000)
        session_id, security = self.session_id, self._client_security
        datagrams: list[bytes] = []
        previous: TransportPacket | None = None
        for packet, _ in packets:
            # A batch of repairs is acknowledged packet by packet, mostly in the same words.
            if packet == previous:
                datagrams.append(datagrams[-1])
            elif isinstance(packet, Ack | Nack):
                datagrams.append(
                    encode_answer(packet, session_id=session_id, sender_time=sender_time, security=security)
                )
            else:
                datagrams.append(
                    encode(packet, session_id=session_id, sender_time=sender_time, security=security)
                )
            previous = packet
        return datagrams

    def take_events(self) -> list[ClientSessionEvent]:
        """What happened since the last call, oldest first."""
        events, self.transport.events = self.transport.events, []
        if not self._announced_all and self.application.complete:
            self._announced_all = True
            events.append(AllReceived())
        return events

    @property
    def over(self) -> bool:
        """Whether LEAVE is out and nothing will follow."""
        return self.transport.state is ClientState.OVER

    @property
    def cache_size(self) -> int:
        """MaxAppCacheSize, bytes."""
        return self._parameters.max_cache_size

    @property
    def cache_room(self) -> int:
        """Bytes that may still be passed on before blocks are refused."""
        return self._parameters.max_cache_size - self.transport.cache_used
