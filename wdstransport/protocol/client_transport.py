"""The client of MS-WDSMT 3.2: join, answer, repair, leave."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from enum import Enum

from wdstransport.protocol.client_application import ClientApplication
from wdstransport.protocol.client_data import ClientData
from wdstransport.protocol.client_runs import Run, repairs_of, runs_of, stretch_of
from wdstransport.protocol.events import (
    BlockRun,
    BlocksArrived,
    ClientSessionEvent,
    Demoted,
    Departed,
    Joined,
    Left,
)
from wdstransport.protocol.loss import scaled_loss
from wdstransport.protocol.outbox import Outbox, milliseconds
from wdstransport.protocol.parameters import ClientParameters
from wdstransport.protocol.presence import Presence
from wdstransport.protocol.timers import ClientTimer, TimerTable
from wdstransport.wire.batch import DataRecords
from wdstransport.wire.options import CAP_MULTISTREAM, Option, OptionId
from wdstransport.wire.transport import (
    Ack,
    Demote,
    DropReason,
    Join,
    JoinAck,
    Kick,
    KickReason,
    Leave,
    LeaveReason,
    Nack,
    Ncf,
    OpCode,
    Poll,
    PollAck,
    Qcc,
    Qcr,
    Spm,
    TransportPacket,
)

__all__ = ["ClientState", "ClientTransport"]


# A plain number: a member of an enum costs a slow look-up in Python 3.11.
_RDATA = int(OpCode.RDATA)
_PATIENT_NACKS = 4
"""A server repeats nothing within four round trips (MS-WDSMT 3.1.5.9.6), which are two back-offs: a repair,
and one more where that is lost, take as many NACKs for the same packet. Only then is silence a sign
(deviation 57)."""
_LATENESS = 0.002
"""Seconds by which an answer's timer is served late as a rule."""


class ClientState(Enum):
    """SessionState (MS-WDSMT 3.2.1.1), and the way out."""

    JOIN = "JoinState"
    REGULAR = "RegularState"
    LEAVING = "waiting to send LEAVE"
    OVER = "over"


class ClientTransport:
    """One client's transport.

    Attributes:
        state: SessionState.
        data: Data Configuration (3.2.1.3).
        outbox: what is to be sent, all of it to the server's unicast address (2.1).
        events: what happened since the driver last asked.
        cache_used: CurrentAppCacheSize, bytes passed on and not given back by Cache Done.
        refused: blocks that came while the cache was full, or before their turn in a pipe.
        utilization: options that QCRs carry (2.2.8.4); the driver may set them.
    """

    def __init__(
        self,
        *,
        client_name: str,
        ip_address: bytes,
        mac_address: bytes,
        parameters: ClientParameters,
        application: ClientApplication,
        rng: random.Random,
        now: float,
    ) -> None:
        self.parameters = parameters
        self.application = application
        self.state = ClientState.JOIN
        self.outbox = Outbox()
        self.events: list[ClientSessionEvent] = []
        self.timers: TimerTable[ClientTimer] = TimerTable()
        self.data = ClientData()
        self.client_id = 0
        self.cache_used = 0
        self.refused = 0
        self.utilization: tuple[Option, ...] = ()
        self._rng = rng
        capabilities = Option(OptionId.CAPABILITIES, bytes([CAP_MULTISTREAM]))
        self._join = Join(client_name, ip_address, mac_address, (capabilities,))
        self._oldest_join = int(now * 1000)
        self._after_leave: Departed | Demoted | None = None
        self._leave_reason = LeaveReason.COMPLETE
        self._last_poll_seq_no = 0
        self._last_qcc_seq_no = 0
        self._last_qcc_time = 0
        self._qcc_received_at = 0.0
        self._zero_nack_sent = False
        self._nack_repeats = 0
        self._last_nacked = (0, 0)
        self._presence = Presence(parameters, now)
        self._arrived: list[BlockRun] = []
        self.timers.set(ClientTimer.INACTIVITY, now + parameters.inactivity_timeout)
        self._send_join(now)

    # ------------------------------------------------------------------ joining

    def _send_join(self, now: float) -> None:
        """3.2.5.3, and again at JoinInterval (3.2.5.3.1)."""
        self.outbox.put(self._join)
        self.timers.set(ClientTimer.JOIN, now + self.parameters.join_interval)

    def _on_join_ack(self, packet: JoinAck, sender_time: int, now: float) -> DropReason | None:
        """3.2.5.3.2, and 3.2.5.5 when the QCR was lost."""
        # ClientTime echoes a JOIN of ours (deviation 63), which may leave a little after it was queued.
        if not self._oldest_join <= packet.client_time <= int(now * 1000):
            return DropReason.NOT_FOR_US
        first = self.state is ClientState.JOIN
        if not first and packet.client_id != self.client_id:
            self._forget_numbers()
        self.client_id = packet.client_id
        self.data.min_nack_back_off = packet.min_nack_back_off / 1000
        self.data.max_nack_back_off = packet.max_nack_back_off / 1000
        self.outbox.put(Qcr(self.client_id, 0, 0, sender_time, 0, 0, b"", self.utilization))
        self.timers.stop(ClientTimer.JOIN)
        self.state = ClientState.REGULAR
        self.timers.set(ClientTimer.FORCE_QCC, now + self.parameters.force_qcc_interval)
        self._counted_in(now)
        if first:
            self.application.joined(now)
            self.events.append(Joined(self.client_id))
        return None

    def _forget_numbers(self) -> None:
        """Another ClientId: the server has forgotten this client, or began anew under its old SessionId.

        Then its numbers begin anew, too, and whoever compares them to those from before takes nothing that
        comes, but never ends either, as every JOINACK is accepted (deviation 56).
        """
        self.data = ClientData()
        self._last_poll_seq_no = self._last_qcc_seq_no = 0
        self._last_nacked = (0, 0)
        for timer in (ClientTimer.POLL, ClientTimer.QCC, ClientTimer.NACK):
            self.timers.stop(timer)

    # ------------------------------------------------------------------ control packets

    def heard(self, now: float) -> None:
        """A packet of the server was accepted: it is alive (3.2.5.1, deviation 60)."""
        self.timers.postpone(ClientTimer.INACTIVITY, now + self.parameters.inactivity_timeout)

    def receive(self, packet: TransportPacket, sender_time: int, now: float) -> DropReason | None:
        """Process a control packet that passed validation (3.2.5.1).

        Returns:
            Why it was not accepted, or None when it was.
        """
        if self.state is not ClientState.REGULAR:
            if self.state is ClientState.JOIN and isinstance(packet, JoinAck):
                return self._on_join_ack(packet, sender_time, now)
            return DropReason.STATE
        match packet:
            case Ncf():
                return None  # ignored, unlike in PGM (3.2.5.19, deviation 15); the most frequent by far
            case JoinAck():
                return self._on_join_ack(packet, sender_time, now)
            case Spm():
                return self._on_spm(packet, sender_time, now)
            case Qcc():
                return self._on_qcc(packet, sender_time, now)
            case Poll():
                return self._on_poll(packet, now)
            case Kick():
                return self._on_kick(packet, now)
            case Demote():
                return self._on_demote(packet, now)
            case _:
                return DropReason.STATE

    def _counted_in(self, now: float, *, strongly: bool = True) -> None:
        """A sign that the server has somebody in its session, and `strongly` that it has this client."""
        if self.application.complete:
            # To a server that keeps a record for every JOIN (3.1.5.2.1) joining again makes another client,
            # and leaves it waiting for this one's ACKs. Who misses nothing has no reason to.
            self.timers.stop(ClientTimer.REJOIN)
            return
        due = self._presence.served(now) if strongly else self._presence.seen(now)
        self.timers.set(ClientTimer.REJOIN, due)

    def _rejoin_timer(self, now: float) -> None:
        if self._presence.hopeless(now):
            self.leave(LeaveReason.INACTIVE, now, Departed(Left.UNHEARD))
            return
        self.outbox.put(self._join)
        self.timers.set(ClientTimer.REJOIN, self._presence.asked(now))

    def _on_spm(self, packet: Spm, sender_time: int, now: float) -> DropReason | None:
        """3.2.5.9."""
        if not self.data.on_spm(packet):
            return DropReason.STALE
        self._counted_in(now, strongly=False)
        self._manage_nack(now)
        self._acknowledge([(self.data.continuous(), sender_time)])
        return None

    def _on_qcc(self, packet: Qcc, sender_time: int, now: float) -> DropReason | None:
        """3.2.5.7."""
        if packet.qcc_seq_no <= self._last_qcc_seq_no:
            return DropReason.STALE
        self._last_qcc_seq_no = packet.qcc_seq_no
        self._last_qcc_time = sender_time
        self._qcc_received_at = now
        self.timers.set(ClientTimer.QCC, now + self._answer_wait(packet.qcr_back_off / 1000))
        return None

    def _answer_wait(self, back_off: float) -> float:
        """Seconds from a query to its answer: random, and within the back-off where the timer is late, too.

        An operating system's clock ticks, and a driver reads before it looks at its timers (deviation 70).
        """
        return self._rng.uniform(0, max(back_off / 2, back_off - _LATENESS))

    def answer_deadline(self) -> float:
        """When the answer to a QCC or a POLL is due, seconds; infinity where none is."""
        due = [self.timers.get(timer) for timer in (ClientTimer.QCC, ClientTimer.POLL)]
        return min([deadline for deadline in due if deadline is not None], default=math.inf)

    def _qcc_timer(self, now: float) -> None:
        """3.2.5.7.1."""
        waited = milliseconds(now - self._qcc_received_at)
        self._send_qcr(now, self._last_qcc_seq_no, waited, self._last_qcc_time)

    def _send_qcr(self, now: float, qcc_seq_no: int, back_off: int, server_time: int) -> None:
        packet = Qcr(
            self.client_id,
            qcc_seq_no,
            back_off,
            server_time,
            self.data.highest,
            scaled_loss(self.data.loss.rate),
            self.application.progress_packet(now),
            self.utilization,
        )
        self.outbox.put(packet)
        self.timers.set(ClientTimer.FORCE_QCC, now + self.parameters.force_qcc_interval)

    @property
    def polls(self) -> int:
        """The last POLLSeqNo seen: every query begins another round of blocks."""
        return self._last_poll_seq_no

    def _on_poll(self, packet: Poll, now: float) -> DropReason | None:
        """3.2.5.6."""
        if packet.poll_seq_no <= self._last_poll_seq_no:
            return DropReason.STALE
        if not self.application.is_query(packet.app_data):
            return DropReason.FIELD  # deviation 69
        self._last_poll_seq_no = packet.poll_seq_no
        self._counted_in(now, strongly=False)
        self.timers.set(ClientTimer.POLL, now + self._answer_wait(packet.back_off / 1000))
        return None

    def _poll_timer(self, now: float) -> None:
        """3.2.5.6.1."""
        payload = self.application.missing_packet(now)
        self.outbox.put(PollAck(self.client_id, self._last_poll_seq_no, payload))

    def _on_kick(self, packet: Kick, now: float) -> DropReason | None:
        """3.2.5.15, a LEAVE first (deviation 32)."""
        for client_id, reason in packet.clients:
            if client_id == self.client_id:
                self.leave(LeaveReason.CANCELLED, now, Departed(Left.KICKED, KickReason(reason)))
                break
        return None

    def _on_demote(self, packet: Demote, now: float) -> DropReason | None:
        """3.2.5.16: a LEAVE, then everything of the transport anew in the lower session."""
        if self.client_id in packet.clients:
            target = Demoted(
                packet.lower_session_id,
                packet.multicast_address,
                packet.multicast_port,
                packet.unicast_address,
                packet.unicast_port,
            )
            self.leave(LeaveReason.CANCELLED, now, target)
        return None

    # ------------------------------------------------------------------ data

    def on_data(self, records: DataRecords, now: float) -> list[tuple[DropReason, int]]:
        """Process a batch's ODATA and RDATA in their order (3.2.5.13, 3.2.5.14).

        Returns:
            What was not accepted, as (reason, count).
        """
        count = len(records)
        if self.state is not ClientState.REGULAR:
            return [(DropReason.STATE, count)]
        self._zero_nack_sent = False
        dropped: list[tuple[DropReason, int]] = []
        repairs = int(records.header["op_code"][0]) == _RDATA
        if not (self._on_repairs(records) if repairs else self._on_stretch(records)):
            for run, wanted in runs_of(records):
                self._on_run(records, run, wanted, dropped)
        news = bool(self._arrived)
        if news:
            runs, self._arrived = self._arrived, []
            blocks = sum([run.rows for run in runs])
            self.events.append(
                BlocksArrived(
                    records.batch,
                    runs,
                    blocks,
                    records.data_offset,
                    records.block_len,
                    blocks * records.data_len,
                )
            )
        if sum(number for _, number in dropped) < count:
            self._counted_in(now, strongly=news)
        self._manage_nack(now)
        return dropped

    def _on_stretch(self, records: DataRecords) -> bool:
        """A batch of new packets in order, with holes or none: all but a few are (3.2.5.13).

        Returns:
            Whether it was such a batch; if not, nothing has changed.
        """
        stretch = stretch_of(records)
        if stretch is None:
            return False
        first, last, gaps, ahead, runs, wanted, trail, master = stretch
        data, application = self.data, self.application
        length, size = records.block_len, len(records) * records.data_len
        if (
            not data.new_only(first, trail)
            or self.parameters.max_cache_size - self.cache_used < size
            or not application.accepts(first + ahead, 1, length)
            or not application.accepts(last + ahead, 1, length)
            or not application.stretch(
                first + ahead, last + ahead, [(start + ahead, end + ahead) for start, end in gaps]
            )
        ):
            return False
        data.on_new(first, last, gaps, trail=trail, master=master)
        if master == self.client_id:
            # Continuous as of each packet: earlier gaps hold it back, later packets do not count.
            reached, sent = data.continuous(), records.header["sender_time"]
            self._acknowledge(
                [(min(int(records.odata_seq_no[row]), reached), int(sent[row])) for row in wanted]
            )
        self.cache_used += size
        self._arrived = [BlockRun(row, count, number + ahead) for row, count, number in runs]
        return True

    def _on_repairs(self, records: DataRecords) -> bool:
        """A batch of RDATA alone, each a repair that somebody asked for: most are not for this client.

        Returns:
            Whether it was such a batch; if not, nothing has changed.
        """
        repairs = repairs_of(records)
        if repairs is None:
            return False
        data, application = self.data, self.application
        # What lies between two blocks of the content, of a length that is right for both, is right too.
        length, (low, high) = records.block_len, repairs.content
        size = len(records) * records.data_len
        if (
            not data.repairs_only(*repairs.span)
            or self.parameters.max_cache_size - self.cache_used < size
            or high > application.horizon
            or not (application.accepts(low, 1, length) and application.accepts(high, 1, length))
        ):
            return False
        reached = data.on_repairs(repairs.numbers, trail=repairs.trail, master=repairs.master)
        if repairs.master == self.client_id:
            sent = records.header["sender_time"].tolist()
            self._acknowledge([(reached[place], sent[place]) for place in repairs.wanted])
        fresh = application.repairs(repairs.blocks)
        self.cache_used += len(fresh) * records.data_len
        self._arrived = repairs.runs(fresh)
        return True

    def _on_run(
        self, records: DataRecords, run: Run, wanted: list[int], dropped: list[tuple[DropReason, int]]
    ) -> None:
        """One run; `wanted` are the rows in it that FW_LEAD does not excuse from an ACK (3.2.5.13)."""
        start, count, first_seq, first_block, trail, master = run
        # No packet of a Data Packet List lies below the list's head (deviation 61).
        sound = first_seq >= 1 and (count > 1 or trail <= first_seq)
        if not sound or not self.application.accepts(first_block, count, records.block_len):
            dropped.append((DropReason.FIELD, count))
            return
        if self.data.unplaced and int(records.header["op_code"][start]) == _RDATA:
            # Its number lies far back: from there on, what was sent before this client came would be its
            # losses. The block is welcome (deviation 50).
            self._pass_on(records, start, start + count, first_block)
            return
        # An ACK says what is continuous as of its packet: the run is taken up to each that wants one.
        stale, end = 0, start + count
        for row in wanted if master == self.client_id else ():
            stale += self._on_part(records, run, start, row + 1, acknowledge=True)
            start = row + 1
        if start < end:
            stale += self._on_part(records, run, start, end, acknowledge=False)
        if stale:
            dropped.append((DropReason.STALE, stale))

    def _on_part(self, records: DataRecords, run: Run, start: int, stop: int, *, acknowledge: bool) -> int:
        """Rows `start` to one before `stop` of a run; the last of them wants an ACK, or none does.

        Returns:
            How many of the first were ignored.
        """
        ahead, last = start - run.start, records.header[stop - 1]
        first, count = run.first_seq + ahead, stop - start
        trail = int(last["trail_odata_seq_no"])
        ignored = self.data.on_data(first, first + count - 1, trail=trail, master=run.master)
        if ignored < count:
            if acknowledge:
                self._acknowledge([(self.data.continuous(), int(last["sender_time"]))])
            self._pass_on(records, start + ignored, stop, run.first_block + ahead + ignored)
        return ignored

    def _pass_on(self, records: DataRecords, start: int, stop: int, first_block: int) -> None:
        """DATA Trigger for what the cache has room for; the rest is refused with a Zero-NACK (3.2.5.13).

        The transport has counted the refused packets as received, so they come back through the next query
        of missing blocks (deviation 9). One Zero-NACK speaks for a batch (deviation 51).
        """
        size = records.data_len
        room = (self.parameters.max_cache_size - self.cache_used) // size
        taken = stop - start
        self.refused += self.application.out_of_reach(first_block, taken)
        if room < taken:
            taken, refused = self.application.fitting(first_block, taken, room)
            if refused:
                self.refused += refused
                self._send_zero_nack()
        # Duplicates are credited at once by never being charged (deviation 10).
        row = int(records.rows[start]) - first_block
        for block, count in self.application.data(first_block, taken):
            self.cache_used += count * size
            self._arrived.append(BlockRun(row + block, count, block))

    def cache_done(self, size: int) -> None:
        """Cache Done Trigger (3.2.5.18): `size` bytes are at their place."""
        self.cache_used = max(0, self.cache_used - size)

    # ------------------------------------------------------------------ ACK and NACK

    def _acknowledge(self, received: Iterable[tuple[int, int]]) -> None:
        """ACKs (3.2.5.11), each for a sequence number and a SenderTime; only the master client sends any."""
        client_id, highest = self.client_id, self.data.highest
        if self.data.master != client_id:
            return
        loss = scaled_loss(self.data.loss.rate)
        self.outbox.packets += [
            (Ack(client_id, sequence, server_time, highest, loss), None) for sequence, server_time in received
        ]

    def _manage_nack(self, now: float) -> None:
        """3.2.5.12: the master asks at once, the others after a back-off."""
        if not self.data.missing:
            return
        due = self.timers.get(ClientTimer.NACK)
        if self.data.master != self.client_id:
            if due is None:
                self.timers.set(ClientTimer.NACK, now + self._nack_back_off())
        elif due is None:
            self._nack_timer(now)
        else:
            # Drawn while another was the master, it may be a hundred times as long (deviation 59).
            self.timers.set(ClientTimer.NACK, min(due, now + self._nack_wait()))

    def _nack_back_off(self) -> float:
        """Seconds to the next NACK: random, but the shortest for the master, whose losses stop the window."""
        low, high = sorted((self.data.min_nack_back_off, self.data.max_nack_back_off))
        if self.data.master == self.client_id:
            return max(0.001, low)  # deviation 59
        return max(0.001, self._rng.uniform(low, high))

    def _nack_timer(self, now: float) -> None:
        """3.2.5.12.1; the lowest ranges first when a datagram cannot hold all (deviation 49)."""
        if not self.data.missing:
            return
        missing = self.data.missing.first_ranges(self.parameters.max_nack_ranges)
        self._send_nack(missing)
        # A NACK that brought nothing is repeated ever less often: whoever does not hear it will not hear a
        # thousand a second better (deviation 57).
        self._nack_repeats = self._nack_repeats + 1 if missing[0] == self._last_nacked else 0
        self._last_nacked = missing[0]
        self.timers.set(ClientTimer.NACK, now + self._nack_wait())

    def _nack_wait(self) -> float:
        """Seconds from a NACK to the next: the back-off, and more after many that brought nothing."""
        back_off = self._nack_back_off()
        factor = 1 << min(16, max(0, self._nack_repeats - _PATIENT_NACKS))
        return max(back_off, min(back_off * factor, self.parameters.max_nack_wait))

    def _send_nack(self, ranges: tuple[tuple[int, int], ...]) -> None:
        loss = scaled_loss(self.data.loss.rate)
        self.outbox.put(Nack(self.client_id, self.data.highest, loss, ranges))

    def _send_zero_nack(self) -> None:
        """3.2.5.12.2, LossRate scaled as everywhere (deviation 5)."""
        if not self._zero_nack_sent:
            self._zero_nack_sent = True
            self._send_nack(())

    # ------------------------------------------------------------------ leaving

    def leave(self, reason: LeaveReason, now: float, after: Departed | Demoted) -> None:
        """Send LEAVE after a random, silent wait (3.2.5.4.3, deviation 62), then end with `after`."""
        if self.state in (ClientState.LEAVING, ClientState.OVER):
            if isinstance(self._after_leave, Demoted):
                # A Terminate Trigger may come at any point (3.2.4): who has everything has no business in the
                # lower session, where nobody would end it again.
                self._leave_reason, self._after_leave = reason, after
            return
        if self.state is ClientState.JOIN:
            # No ClientId, so nothing to leave (deviation 68): the server forgets a JOIN that nobody confirms.
            self._end(after)
            return
        self.state = ClientState.LEAVING
        self._leave_reason = reason
        self._after_leave = after
        self.timers.stop_all()
        wait = self.data.max_nack_back_off or self.parameters.max_leave_delay
        self.timers.set(ClientTimer.LEAVE, now + self._rng.uniform(0, wait))

    def _leave_timer(self) -> None:
        assert self._after_leave is not None
        self.outbox.put(Leave(self.client_id, self._leave_reason))
        self._end(self._after_leave)

    def _end(self, after: Departed | Demoted) -> None:
        self.state = ClientState.OVER
        self.timers.stop_all()
        self.events.append(after)

    # ------------------------------------------------------------------ time

    def handle_timers(self, now: float) -> None:
        """Do what is due (3.2.5.1)."""
        while (timer := self.timers.pop_due(now)) is not None:
            match timer:
                case ClientTimer.NACK:
                    self._nack_timer(now)
                case ClientTimer.QCC:
                    self._qcc_timer(now)
                case ClientTimer.POLL:
                    self._poll_timer(now)
                case ClientTimer.FORCE_QCC:
                    self._send_qcr(now, 0, 0, 0)
                case ClientTimer.JOIN:
                    self._send_join(now)
                case ClientTimer.REJOIN:
                    self._rejoin_timer(now)
                case ClientTimer.LEAVE:
                    self._leave_timer()
                case ClientTimer.INACTIVITY:
                    # INACTIVE exists for exactly this (deviation 8).
                    self.leave(LeaveReason.INACTIVE, now, Departed(Left.INACTIVE))
