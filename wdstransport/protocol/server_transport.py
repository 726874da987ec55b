"""The server of MS-WDSMT 3.1: who is in the session, and who is its master client.

Joining (3.1.5.2), leaving (3.1.5.3), POLL (3.1.5.4), KICK (3.1.5.6), QCC state (3.1.5.7) and DEMOTE
(3.1.5.10) are here; the Data state (3.1.5.9) is `server_data`. Packets to send go to the outbox as values
and get their SenderTime when they leave (deviation 34).
"""

from __future__ import annotations

import random
from enum import Enum
from typing import Protocol

from wdstransport.protocol.allowance import Allowance
from wdstransport.protocol.clients import Address, ClientLists, ClientRecord, DemoteTarget
from wdstransport.protocol.events import ClientActive, ClientGone, Gone, ServerSessionEvent, Terminated
from wdstransport.protocol.loss import unscaled_loss
from wdstransport.protocol.outbox import Outbox, milliseconds
from wdstransport.protocol.parameters import ServerParameters
from wdstransport.protocol.server_data import DataState
from wdstransport.protocol.timers import ServerTimer, TimerTable
from wdstransport.wire.options import CAP_MULTISTREAM, OptionId, find
from wdstransport.wire.transport import (
    MAX_DEMOTE_CLIENTS,
    MAX_KICK_CLIENTS,
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
    Poll,
    PollAck,
    Qcc,
    Qcr,
    TransportPacket,
)

__all__ = ["ServerState", "ServerTransport", "ServerTriggers"]

_UINT32 = 0xFFFFFFFF
_LONGEST_RTT = 10.0
"""Seconds; what is longer is a client's mistake or a lie, and every wait of the session would follow it."""


class ServerState(Enum):
    """SessionState (MS-WDSMT 3.1.1.1)."""

    PRE_START = "PreStartState"
    QCC = "QCCState"
    DATA = "DataState"


class ServerTriggers(Protocol):
    """What the transport tells the application (MS-WDSMT 3.1.5.1), as method calls."""

    def poll_ack(self, client: ClientRecord, payload: bytes, now: float) -> bool:
        """POLLACK Trigger (3.1.5.5); whether the payload is what it should be."""

    def status(self, client: ClientRecord, payload: bytes, now: float) -> bool:
        """Status Trigger (3.1.5.8); whether the payload is what it should be."""

    def data_empty(self, now: float) -> None:
        """Data Empty Trigger (3.1.6.7)."""

    def clients_changed(self, now: float) -> None:
        """The Active Client List or the master changed."""


class ServerTransport:
    """One multicast session's transport, on the server.

    Attributes:
        state: SessionState.
        clients: the four lists.
        data: the Data State Configuration and its rules.
        outbox: what is to be sent.
        events: what happened since the driver last asked.
    """

    def __init__(
        self, *, parameters: ServerParameters, rng: random.Random, application: ServerTriggers, now: float
    ) -> None:
        self.parameters = parameters
        self.application = application
        self.state = ServerState.PRE_START
        self.clients = ClientLists(parameters.max_pending_clients)
        self.outbox = Outbox()
        self.events: list[ServerSessionEvent] = []
        self.timers: TimerTable[ServerTimer] = TimerTable()
        self.data = DataState(self)
        self.terminated = False
        self.closing = False
        self._next_client_id = rng.getrandbits(32)
        self._next_poll_seq_no = 1
        self._next_qcc_seq_no = 1
        self._wait_time = 0.0
        unanswered = parameters.join_acks_unanswered
        self._join_acks = Allowance(unanswered / 2, unanswered, now)
        self.timers.set(ServerTimer.INACTIVITY, now + parameters.inactivity_timeout)
        self.timers.set(ServerTimer.CLIENT_CLEANUP, now + parameters.client_dead_timeout)

    # ------------------------------------------------------------------ what arrives

    def receive(
        self, packet: TransportPacket, sender_time: int, source: Address, now: float
    ) -> DropReason | None:
        """Process a packet that passed validation (3.1.5.1).

        Only what is accepted resets the Inactivity Timer (deviation 60).

        Returns:
            Why it was not accepted, or None when it was.
        """
        match packet:
            case Ack():
                reason = self._on_ack(packet, source, now)
            case Nack():
                reason = self._on_nack(packet, source, now)
            case Qcr():
                reason = self._on_qcr(packet, source, now)
            case PollAck():
                reason = self._on_poll_ack(packet, source, now)
            case Join():
                reason = self._on_join(packet, sender_time, source, now)
            case Leave():
                reason = self._on_leave(packet, source, now)
            case _:
                return DropReason.STATE  # the server's own packets, sent back to it
        if reason is None:
            self.timers.set(ServerTimer.INACTIVITY, now + self.parameters.inactivity_timeout)
        return reason

    def _speaker(self, client_id: int, source: Address) -> ClientRecord | None:
        """Whose ACK, NACK or POLLACK it is: one that joined from there and was not removed (deviation 63).

        It may not have confirmed yet: while its QCR is on its way again, it already misses what others do. A
        full session will not take it in (deviation 54).
        """
        record = self.clients.speaking(client_id, source)
        room = len(self.clients.active) < self.parameters.max_clients
        there = client_id in self.clients.active or (room and client_id in self.clients.pending)
        return record if there else None

    def _on_join(self, packet: Join, sender_time: int, source: Address, now: float) -> DropReason | None:
        """3.1.5.2; one record for an address and port (deviation 24)."""
        if self.closing:
            return DropReason.STATE
        record = self.clients.at(source)
        kicked = record is not None and record.client_id in self.clients.kicked
        if record is not None and (kicked or record.client_id in self.clients.demoted):
            if record.join_ack_send_count < self.parameters.max_removed_joins:
                # It has not heard yet that it is removed; joining again does not undo that.
                record.join_ack_send_count += 1
                if kicked:
                    self._send_kick()
                else:
                    self._send_demote()
                return DropReason.STATE
            # Another program at that address, to which KICK and DEMOTE mean nothing (deviation 56).
            self._forget(record, Gone.KICKED if kicked else Gone.DEMOTED)
            record = None
        if record is None:
            if len(self.clients.active) >= self.parameters.max_clients:
                return DropReason.STATE  # deviation 54
            record = ClientRecord(
                client_id=self._take_client_id(),
                address=source,
                client_time=0,
                last_update=now,
                joined_at=now,
                nack_work=Allowance(
                    self.parameters.nack_work_per_second, self.parameters.nack_work_burst, now
                ),
            )
            self.clients.add_pending(record)
        record.client_time = sender_time
        record.name = packet.client_name
        record.mac_address = packet.mac_address
        capabilities = find(packet.options, OptionId.CAPABILITIES)
        record.supports_demote = capabilities is not None and CAP_MULTISTREAM in capabilities
        record.join_ack_send_count = 0
        self._send_join_ack(record, now)
        if record.client_id in self.clients.pending:
            self.clients.rearm(record, now + self.parameters.join_ack_to_qcr_timeout)
        return None

    def _take_client_id(self) -> int:
        """NextClientId, which never repeats the id of a client still on a list; 0 means no master."""
        lists = self.clients
        while True:
            client_id = self._next_client_id
            self._next_client_id = (client_id + 1) & _UINT32
            taken = (
                client_id in lists.active
                or client_id in lists.pending
                or client_id in lists.kicked
                or client_id in lists.demoted
            )
            if client_id and not taken:
                return client_id

    def _send_join_ack(self, record: ClientRecord, now: float) -> None:
        """3.1.5.2.2; RTT is zero until the Data state (deviation 36)."""
        record.join_ack_send_count += 1
        if record.client_id in self.clients.pending:
            # Beyond it nobody gets one (deviation 54), and half is kept for those who have had none yet.
            first = record.join_ack_send_count == 1
            if self._join_acks.left(now) < (1 if first else self.parameters.join_acks_unanswered / 2):
                return
            self._join_acks.spend(1, now)
            record.join_acks_unanswered += 1
        data = self.data
        packet = JoinAck(
            client_id=record.client_id,
            min_nack_back_off=milliseconds(data.min_nack_back_off),
            max_nack_back_off=milliseconds(data.max_nack_back_off),
            rtt=milliseconds(data.mcrtt) if self.state is ServerState.DATA else 0,
            client_time=record.client_time,
        )
        self.outbox.put(packet, record.address)

    def _on_qcr(self, packet: Qcr, source: Address, now: float) -> DropReason | None:
        """3.1.5.2.3 and 3.1.5.8."""
        record = self.clients.speaking(packet.client_id, source)
        if record is None:
            return DropReason.UNKNOWN_CLIENT
        if packet.qcc_seq_no not in (0, self._next_qcc_seq_no - 1):
            return DropReason.STALE
        pending = record.client_id in self.clients.pending
        if pending and len(self.clients.active) >= self.parameters.max_clients:
            return DropReason.STATE
        # A Status Trigger carries a PROGRESS; the QCR after JOINACK carries nothing (deviations 43 and 69).
        if packet.app_data and not self.application.status(record, packet.app_data, now):
            return DropReason.FIELD
        if pending:
            # An answer to QCC confirms as well: the first QCRs may all have been lost (deviation 56).
            self.clients.activate(record)
            self._join_acks.spend(-record.join_acks_unanswered, now)
            record.joined_at = now
            self._update(record, packet, now)
            self.events.append(ClientActive(record))
            if self.state is ServerState.PRE_START:
                self.enter_qcc(now)  # PreStart ends with the QCR, not with the JOIN (deviation 37)
            elif len(self.clients.active) == 1:
                self._wait_time = 0.0  # it grew while nobody was there; a client is asked briefly (3.1.5.7.3)
            self.application.clients_changed(now)
            return None
        self._update(record, packet, now)
        record.qcr_received = True  # whatever it answers: 3.1.5.8 makes no difference
        if record.client_id in self.clients.active:
            self.data.on_report(record, now)
        return None

    def _update(self, record: ClientRecord, packet: Qcr, now: float) -> None:
        record.last_update = now
        rtt = self.round_trip(packet.server_time, now)
        if rtt is not None:
            # The client waited BackOff before it answered (deviation 20).
            record.rtt = max(0.0, rtt - packet.back_off / 1000)
        record.loss = unscaled_loss(packet.loss_rate)
        record.hi_odata_seq_no = packet.hi_odata_seq_no
        for option in packet.options:
            if option.option_id in (OptionId.CPU_UTIL, OptionId.MEM_UTIL, OptionId.NET_UTIL):
                record.utilization[OptionId(option.option_id).name] = option.value[0]

    @staticmethod
    def round_trip(server_time: int, now: float) -> float | None:
        """Seconds since a SenderTime of ours; None for 0 or a time that cannot be ours (deviation 20)."""
        if not server_time:
            return None
        rtt = (int(now * 1000) - server_time) / 1000
        return rtt if 0 <= rtt < _LONGEST_RTT else None

    def _on_leave(self, packet: Leave, source: Address, now: float) -> DropReason | None:
        """3.1.5.3, from any list (deviation 67)."""
        record = self.clients.speaking(packet.client_id, source)
        if record is None:
            return DropReason.UNKNOWN_CLIENT
        reasons = {
            LeaveReason.COMPLETE: Gone.COMPLETE,
            LeaveReason.CANCELLED: Gone.CANCELLED,
            LeaveReason.INACTIVE: Gone.INACTIVE,
        }
        why = reasons[packet.leave_reason]
        if record.client_id in self.clients.kicked:
            why = Gone.KICKED
        elif record.client_id in self.clients.demoted:
            why = Gone.DEMOTED
        self._forget(record, why)
        self._lost_active(record, now)
        return None

    def _forget(self, record: ClientRecord, why: Gone) -> None:
        was_member = record.client_id not in self.clients.pending
        self.clients.remove(record)
        if was_member:
            self.events.append(ClientGone(record, why))

    def _lost_active(self, record: ClientRecord, now: float) -> None:
        """Choose another master when it was the master (deviation 31)."""
        if record.client_id == self.data.master_client_id:
            # Three intervals: a client that missed one QCC, or whose QCR was lost, has still answered.
            master = self.clients.successor(now - 3 * self._out_state_wait())
            if master is not None:
                self.data.succeed(master, now)
            else:
                self.enter_qcc(now)
        self.application.clients_changed(now)

    def _on_poll_ack(self, packet: PollAck, source: Address, now: float) -> DropReason | None:
        """3.1.5.5."""
        record = self._speaker(packet.client_id, source)
        if record is None:
            return DropReason.UNKNOWN_CLIENT
        if packet.poll_seq_no != self._next_poll_seq_no - 1:
            return DropReason.STALE
        # What MS-WDSMA cannot take is dropped whole (deviation 69).
        return None if self.application.poll_ack(record, packet.app_data, now) else DropReason.FIELD

    def _on_ack(self, packet: Ack, source: Address, now: float) -> DropReason | None:
        record = self._speaker(packet.client_id, source)
        return DropReason.UNKNOWN_CLIENT if record is None else self.data.on_ack(packet, record, now)

    def _on_nack(self, packet: Nack, source: Address, now: float) -> DropReason | None:
        record = self._speaker(packet.client_id, source)
        return DropReason.UNKNOWN_CLIENT if record is None else self.data.on_nack(packet, record, now)

    # ------------------------------------------------------------------ triggers from above

    def poll(self, payload: bytes) -> float:
        """POLL Trigger (3.1.5.4): send `payload` to all clients.

        Returns:
            PollBackOff, seconds.
        """
        back_off = self.parameters.poll_back_off
        self.outbox.put(Poll(self._next_poll_seq_no, milliseconds(back_off), payload))
        self._next_poll_seq_no += 1
        return back_off

    def kick(self, client_id: int, reason: KickReason, now: float) -> bool:
        """Kick Trigger (3.1.5.6).

        Returns:
            Whether there is such an active client.
        """
        record = self.clients.active.get(client_id)
        if record is None:
            return False
        record.kick_reason = reason
        record.join_ack_send_count = 0
        # A timer that runs on for an empty list (3.1.6.3) is no reason to let this client wait for it.
        waiting = bool(self.clients.kicked)
        self.clients.kick(record)
        if not waiting:
            self._send_kick()
            self.timers.set(ServerTimer.KICK, now + self.parameters.kick_interval)
        self._lost_active(record, now)
        return True

    def close(self, reason: KickReason, now: float) -> None:
        """Remove every client, in as few KICK packets as they fit (3.1.5.6.1), and admit nobody any more.

        A client whose QCR is still on its way has its ClientId already, so it is told, too. KICK is repeated
        sooner than usual: a server that shuts down cannot wait KickInterval (deviation 52).
        """
        self.closing = True
        for record in list(self.clients.pending.values()):
            self.clients.activate(record)
        for record in list(self.clients.active.values()):
            record.kick_reason = reason
            self.clients.kick(record)
        if self.clients.kicked:
            self._send_kick()
            self.timers.set(ServerTimer.KICK, now + self._kick_interval())
        for timer in (
            ServerTimer.IN_STATE_QCC,
            ServerTimer.OUT_STATE_QCC,
            ServerTimer.SPM,
            ServerTimer.CLEANUP_DATA_LIST,
        ):
            self.timers.stop(timer)
        self.data.master_client_id = 0
        self.application.clients_changed(now)

    def _kick_interval(self) -> float:
        return self.parameters.closing_kick_interval if self.closing else self.parameters.kick_interval

    def _send_kick(self) -> None:
        kicked = [(record.client_id, record.kick_reason) for record in self.clients.kicked.values()]
        for start in range(0, len(kicked), MAX_KICK_CLIENTS):
            self.outbox.put(Kick(tuple(kicked[start : start + MAX_KICK_CLIENTS])))

    def demote(self, client_id: int, target: DemoteTarget, now: float) -> bool:
        """Demote Trigger (3.1.5.10).

        Returns:
            Whether there is such an active client.
        """
        record = self.clients.active.get(client_id)
        if record is None or not record.supports_demote:
            return False
        record.demote_target = target
        record.join_ack_send_count = 0
        self.clients.demote(record)
        if ServerTimer.DEMOTE not in self.timers:
            self._send_demote()
            self.timers.set(ServerTimer.DEMOTE, now + self.parameters.demote_interval)
        self._lost_active(record, now)
        return True

    def _send_demote(self) -> None:
        by_target: dict[DemoteTarget, list[int]] = {}
        for client_id, record in self.clients.demoted.items():
            assert record.demote_target is not None
            by_target.setdefault(record.demote_target, []).append(client_id)
        for target, demoted in by_target.items():
            for start in range(0, len(demoted), MAX_DEMOTE_CLIENTS):
                packet = Demote(
                    target.session_id,
                    target.multicast_address,
                    target.multicast_port,
                    target.unicast_address,
                    target.unicast_port,
                    tuple(demoted[start : start + MAX_DEMOTE_CLIENTS]),
                )
                self.outbox.put(packet)

    # ------------------------------------------------------------------ QCC state

    def enter_qcc(self, now: float) -> None:
        """3.1.5.7.1, leaving the Data state by 3.1.5.9.2 where it was that."""
        for timer in (ServerTimer.SPM, ServerTimer.CLEANUP_DATA_LIST, ServerTimer.OUT_STATE_QCC):
            self.timers.stop(timer)
        self.state = ServerState.QCC
        self.data.master_client_id = 0
        self._wait_time = 0.0
        self._send_in_state_qcc(now)

    def _send_in_state_qcc(self, now: float) -> None:
        """3.1.5.7.3: 1 ms a client first, then doubling, plus the highest RTT (deviation 21).

        With nobody there WaitTime is doubled before it is first used: it was 1 on entering (3.1.5.7.1).
        """
        active = self.clients.active
        for record in active.values():
            record.qcr_received = False
        first = 0.001 * len(active) if active else 0.002
        self._wait_time = min(
            max(first, 2 * self._wait_time), max(first, self.parameters.no_client_qcc_interval)
        )
        rtt = self.clients.highest_rtt()
        self._send_qcc(self._wait_time + rtt)
        # The last answer takes its way when the back-off is over (deviation 65).
        self.timers.set(ServerTimer.IN_STATE_QCC, now + self._wait_time + 2 * rtt)

    def _send_qcc(self, back_off: float) -> None:
        self.outbox.put(Qcc(self._next_qcc_seq_no, milliseconds(back_off)))
        self._next_qcc_seq_no += 1

    def _in_state_qcc_timer(self, now: float) -> None:
        """3.1.6.4: the answering client with the highest RTT becomes the master."""
        answered = [record for record in self.clients.active.values() if record.qcr_received]
        if not answered:
            self._send_in_state_qcc(now)
            return
        self.state = ServerState.DATA
        # Somebody who answers QCC but no data, by mistake or by intent, is chosen only where nobody else is.
        self.data.enter(max(answered, key=lambda record: (not record.gave_up_on, record.rtt)), now)
        self.application.clients_changed(now)

    def _out_state_qcc_timer(self, now: float) -> None:
        """3.1.6.5, with time for the last answer to come (deviation 65)."""
        self._send_qcc(self._out_state_back_off())
        self.timers.set(ServerTimer.OUT_STATE_QCC, now + self._out_state_wait())

    def _out_state_back_off(self) -> float:
        """QCRBackOff, seconds; RTTs exclude back-off, so this does not feed on itself (deviation 20)."""
        back_off = max(self.parameters.qcc_interval, 0.001 * len(self.clients.active))
        return min(back_off + self.clients.highest_rtt(), 65.0)

    def _out_state_wait(self) -> float:
        """From one QCC to the next, seconds."""
        return min(self._out_state_back_off() + self.clients.highest_rtt(), 65.0)

    # ------------------------------------------------------------------ time

    def next_deadline(self) -> float:
        """When `handle_timers` is to be called next, seconds."""
        deadline = self.timers.next_deadline()
        for record in self.clients.pending.values():
            return min(deadline, record.join_ack_due)
        return deadline

    def handle_timers(self, now: float) -> None:
        """Do what is due (3.1.6)."""
        self._join_ack_timers(now)
        while (timer := self.timers.pop_due(now)) is not None:
            match timer:
                case ServerTimer.SPM:
                    self.data.spm_timer(now)
                case ServerTimer.REPAIR:
                    self.data.repair_timer(now)
                case ServerTimer.CLEANUP_DATA_LIST:
                    self.data.cleanup_timer(now)
                case ServerTimer.IN_STATE_QCC:
                    self._in_state_qcc_timer(now)
                case ServerTimer.OUT_STATE_QCC:
                    self._out_state_qcc_timer(now)
                case ServerTimer.CLIENT_CLEANUP:
                    self._client_cleanup_timer(now)
                case ServerTimer.KICK:
                    if self.clients.kicked:
                        self._send_kick()
                        self.timers.set(ServerTimer.KICK, now + self._kick_interval())
                case ServerTimer.DEMOTE:
                    if self.clients.demoted:
                        self._send_demote()
                        self.timers.set(ServerTimer.DEMOTE, now + self.parameters.demote_interval)
                case ServerTimer.INACTIVITY:
                    self.terminated = True
                    self.timers.stop_all()
                    self.events.append(Terminated())

    def _join_ack_timers(self, now: float) -> None:
        """3.1.6.1, for every pending client that is due; they stand in order of their deadlines."""
        while self.clients.pending:
            record = next(iter(self.clients.pending.values()))
            if record.join_ack_due > now:
                return
            if record.join_ack_send_count >= self.parameters.max_join_ack_sends:
                self.clients.remove(record)
                continue
            self._send_join_ack(record, now)
            self.clients.rearm(record, now + self.parameters.join_ack_to_qcr_timeout)

    def _client_cleanup_timer(self, now: float) -> None:
        """3.1.6.2, ClientDeadTimeout and DeadClientTimeout being one parameter (deviation 7)."""
        self.timers.set(ServerTimer.CLIENT_CLEANUP, now + self.parameters.client_dead_timeout)
        lists = self.clients
        members = (*lists.active.values(), *lists.kicked.values(), *lists.demoted.values())
        for record in members:
            if now - record.last_update > self.parameters.client_dead_timeout:
                was_active = record.client_id in lists.active
                self._forget(record, Gone.DEAD)
                if was_active:
                    self._lost_active(record, now)
