"""The server's Data state (MS-WDSMT 3.1.5.9): the master client, the window, data, repairs, SPM.

Data packets are not built here. `give` takes the block ranges that the application wants sent (the Data
Trigger for each of their blocks), and the driver takes batches when the window is open: `take_odata` numbers
them, `take_repairs` names the ones to send again, and `repairs_sent` says when those have left.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wdstransport.protocol.clients import ClientRecord
from wdstransport.protocol.loss import throughput, unscaled_loss
from wdstransport.protocol.outbox import milliseconds
from wdstransport.protocol.timers import ServerTimer
from wdstransport.protocol.window import DataPacketList, SentRun, Window
from wdstransport.wire.transport import Ack, DropReason, Nack, Ncf, Spm

if TYPE_CHECKING:
    from wdstransport.protocol.server_transport import ServerTransport

__all__ = ["DataCounters", "DataState", "ODataRun"]

_REPAIRS_A_ROUND_TRIP = 64
"""Repairs need a credit: two for each packet that the master acknowledges, up to a window, and so many in
each MCRTT whatever it acknowledges (deviation 53).

A link that is slower than the others drops most of a burst: sent at once, what a client behind 12 Mbit/s had
lost went out thirteen times. Where losses are random, or many clients', more is hardly ever asked for."""
_NCF_RANGES = 4000
"""As many as one UDP datagram carries behind any security header; a longer NACK gets several NCF."""


@dataclass(frozen=True, slots=True)
class ODataRun:
    """Consecutive blocks to send now, under consecutive sequence numbers (3.1.5.9.5).

    Attributes:
        previous_lead: MCLeadODATASeqNo before them.
    """

    first_seq: int
    first_block: int
    count: int
    previous_lead: int


@dataclass(slots=True)
class DataCounters:
    """How much was sent and answered."""

    data_packets: int = 0
    repair_packets: int = 0
    acks: int = 0
    nacks: int = 0
    spms: int = 0


class DataState:
    """Data State Configuration (3.1.1.3) and its rules.

    Attributes:
        master_client_id: MasterClientId, 0 while there is none.
        mcrtt: MCRTT, seconds.
        mc_loss: MCLossRate, a share.
        mc_trail: MCTrailODATASeqNo.
        mc_lead: MCLeadODATASeqNo.
    """

    def __init__(self, transport: ServerTransport) -> None:
        self._transport = transport
        self._parameters = transport.parameters
        self.min_nack_back_off = 0.001
        self.max_nack_back_off = 0.001
        self.mcrtt = 0.001
        self.master_client_id = 0
        self.mc_trail = 0
        self.mc_lead = 0
        self.mc_loss = 0.0
        self.window = Window(self._parameters.exp_max_window_size, self._parameters.max_window_size)
        self.packets = DataPacketList()
        self.counters = DataCounters()
        self._next_spm_seq_no = 1
        self._spm_count = 0
        self._reached = 0
        self._moved_at = 0.0
        self._given: deque[tuple[int, int]] = deque()
        self._waiting_for_empty = False
        self._repairs: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._unheard = False
        self._repair_credit = _REPAIRS_A_ROUND_TRIP

    # ------------------------------------------------------------------ entering, SPM

    def enter(self, master: ClientRecord, now: float) -> None:
        """3.1.5.9.1; a new master comes with its RTT and its loss (deviation 29)."""
        self._leaving.clear()  # what was taken before QCC state, in which nothing leaves
        timers = self._transport.timers
        timers.set(ServerTimer.CLEANUP_DATA_LIST, now + self._parameters.cleanup_data_list_interval)
        timers.set(ServerTimer.OUT_STATE_QCC, now + self._parameters.qcc_interval)
        self.succeed(master, now)

    def succeed(self, master: ClientRecord, now: float) -> None:
        """The master is gone and another takes over (deviation 31); where it stands its first ACK tells.

        Refused until it has caught up, a client that is far behind would count as one that does not answer.
        """
        self._set_master(master)
        self._moved_at = now
        self._unheard = True
        self._send_spm(now)

    def _set_master(self, master: ClientRecord) -> None:
        """SPMCount is about the master's silence (3.1.1.3), so nobody answers for that of another."""
        self._unheard = False
        self._spm_count = 0
        self.master_client_id = master.client_id
        self.mcrtt = max(0.001, master.rtt)
        self.mc_loss = master.loss

    def _send_spm(self, now: float) -> None:
        """3.1.5.9.3, in whole milliseconds: a fifth of a client's is none."""
        clients = len(self._transport.clients.active)
        self.min_nack_back_off = max(self.mcrtt * 2, 0.001)
        self.max_nack_back_off = self.min_nack_back_off + clients // 5 / 1000
        packet = Spm(
            spm_seq_no=self._next_spm_seq_no,
            master_client_id=self.master_client_id,
            min_nack_back_off=milliseconds(self.min_nack_back_off),
            max_nack_back_off=milliseconds(self.max_nack_back_off),
            trail_odata_seq_no=self.trail,
            lead_odata_seq_no=self.mc_lead,
            rtt=milliseconds(self.mcrtt),
        )
        self._next_spm_seq_no += 1
        self._spm_count += 1
        self.counters.spms += 1
        self._transport.outbox.put(packet)
        wait = max(self._parameters.spm_interval, 4 * self.mcrtt)
        self._transport.timers.set(ServerTimer.SPM, now + wait)

    @property
    def trail(self) -> int:
        """TrailODATASeqNo: the head of what can be repaired, 0 before anything was sent (deviation 27)."""
        return self.packets.first_seq if self.packets else self.mc_lead

    def spm_timer(self, now: float) -> None:
        """3.1.6.6; other SPMs count too and can jump over the limit (deviation 28)."""
        if self._spm_count >= self._parameters.max_no_response_spm:
            self._transport.clients.active[self.master_client_id].gave_up_on = True
            self._transport.enter_qcc(now)
        else:
            self._send_spm(now)

    # ------------------------------------------------------------------ data out

    def give(self, ranges: list[tuple[int, int]]) -> None:
        """Data Trigger for every block of the inclusive `ranges` (3.1.5.9.4).

        A block gets its sequence number when it is sent: until then the number is visible to nobody.
        """
        self._given.extend(ranges)
        for client in self._transport.clients.active.values():
            client.gave_up_on = False
        self._waiting_for_empty = bool(self._given)

    def withdraw(self) -> None:
        """Drop what was given and not sent, or not acknowledged: nobody wants it (deviation 66)."""
        self._given.clear()
        self._repairs.clear()
        self._leaving.clear()
        self._waiting_for_empty = False
        self.mc_trail = self._reached = self.mc_lead

    @property
    def given(self) -> tuple[tuple[int, int], ...]:
        """The block ranges given and not sent yet."""
        return tuple(self._given)

    @property
    def in_flight(self) -> int:
        """InFlightPackets (3.1.5.9.5)."""
        return self.mc_lead - self.mc_trail

    def sendable(self) -> int:
        """How many ODATA the window lets out now (deviation 23: whenever there is something to send)."""
        if not self._given or not self.master_client_id:
            return 0
        return max(0, self.window.size - self.in_flight)

    def take_odata(self, limit: int, now: float) -> ODataRun | None:
        """Number and record up to `limit` consecutive blocks; the caller sends them at once."""
        count = min(limit, self.sendable())
        if count <= 0:
            return None
        start, end = self._given[0]
        count = min(count, end - start + 1)
        if start + count > end:
            self._given.popleft()
        else:
            self._given[0] = (start + count, end)
        previous = self.mc_lead
        self.packets.append(SentRun(previous + 1, start, count, now))
        self.mc_lead = previous + count
        self.counters.data_packets += count
        return ODataRun(previous + 1, start, count, previous)

    @property
    def repairs_waiting(self) -> int:
        """How many RDATA are to be sent."""
        return len(self._repairs)

    def take_repairs(self, limit: int) -> list[tuple[int, int]]:
        """Up to `limit` (sequence number, block) to send as RDATA now; the caller tells `repairs_sent`."""
        if not self.master_client_id:
            # No data leaves in QCC state (3.1.5.9); whoever still misses something asks again.
            self._repairs.clear()
        limit = min(limit, self._repair_credit)
        taken: list[tuple[int, int]] = []
        while self._repairs and len(taken) < limit:
            seq = next(iter(self._repairs))
            block = self._repairs.pop(seq)
            if self.packets.first_seq <= seq:
                taken.append((seq, block))
                self._leaving.add(seq)
        self.counters.repair_packets += len(taken)
        self._repair_credit -= len(taken)
        return taken

    def repairs_sent(self, numbers: list[int], now: float) -> None:
        """RDATA that `take_repairs` named has left: its LastSendTime is now (3.1.5.9.6).

        Not when it was asked for: where many wait for their turn, or for a rate, the NACKs that come while
        the first repair is on its way would have each sent twice.
        """
        self._leaving.difference_update(numbers)
        for seq in numbers:
            self.packets.resent(seq, now)

    # ------------------------------------------------------------------ answers in

    def on_ack(self, packet: Ack, record: ClientRecord, now: float) -> DropReason | None:
        """3.1.5.9.5; nothing in QCC state (deviation 47), where there is no master."""
        if packet.client_id != self.master_client_id:
            return DropReason.STATE
        if self._unheard and packet.odata_seq_no <= self.mc_lead:
            self._unheard = False
            self._follow(packet.odata_seq_no, now)
        if not self.mc_trail <= packet.odata_seq_no <= self.mc_lead:
            return DropReason.STALE
        self.counters.acks += 1
        self._spm_count = 0
        rtt = self._transport.round_trip(packet.server_time, now)
        if rtt is not None:
            self.mcrtt = max(0.001, rtt)  # deviation 29
            self._expect_repairs(now)
        self.mc_loss = record.loss = unscaled_loss(packet.loss_rate)
        record.hi_odata_seq_no = packet.hi_odata_seq_no
        moved = packet.odata_seq_no - self.mc_trail
        self.window.acknowledged(moved)
        self._repair_credit = max(self._repair_credit, min(self._repair_credit + 2 * moved, self.window.size))
        if packet.odata_seq_no > self.mc_trail:
            self._moved_at = now
        self.mc_trail = packet.odata_seq_no
        self._check_empty(now)
        return None

    def on_nack(self, packet: Nack, client: ClientRecord, now: float) -> DropReason | None:
        """3.1.5.9.6 and 3.1.5.9.6.1."""
        client.nack_work.spend(self._parameters.nack_own_work, now)
        if not self.master_client_id:
            return DropReason.STATE
        self.counters.nacks += 1
        client.loss = unscaled_loss(packet.loss_rate)
        client.hi_odata_seq_no = packet.hi_odata_seq_no
        if client.client_id == self.master_client_id:
            self.mc_loss = client.loss
        elif self._is_slower(client):
            self._set_master(client)
            has = packet.ranges[0][0] - 1 if packet.ranges else packet.hi_odata_seq_no
            self._follow(has, now)
        # A Zero-NACK names nothing: it speaks of what came last (3.2.5.13). Nobody lost what was never sent.
        newest = max((end for _, end in packet.ranges), default=packet.hi_odata_seq_no)
        self.window.lost(now, self.mcrtt, min(newest, self.mc_lead), self.mc_lead)
        # Ranges of what was never sent are not repeated to the group (deviation 58).
        known = tuple(each for each in packet.ranges if each[0] <= self.mc_lead)
        for start in range(0, len(known) or 1, _NCF_RANGES):
            self._transport.outbox.put(Ncf(known[start : start + _NCF_RANGES]))
        client.nack_work.spend(self._queue_repairs(packet.ranges, now), now)
        self._expect_repairs(now)
        return None

    def _is_slower(self, client: ClientRecord) -> bool:
        """Whether an active client's throughput is less than 75 % of the master's (3.1.5.9.6.1)."""
        if client.gave_up_on or client.client_id not in self._transport.clients.active:
            return False
        ours = throughput(max(0.001, client.rtt), client.loss)  # deviation 29
        return ours < 0.75 * throughput(self.mcrtt, self.mc_loss)

    def on_report(self, client: ClientRecord, now: float) -> None:
        """A QCR tells how far a client is: one that falls behind becomes the master (deviation 55).

        Only the master's pace moves the window. A client that is further behind than any window reaches is
        about to lose what its buffers hold, and says nothing about it before it has.
        """
        if not self.master_client_id or client.client_id == self.master_client_id:
            return
        behind = self.mc_lead - client.hi_odata_seq_no
        if client.hi_odata_seq_no and behind > self.window.maximum and not client.gave_up_on:
            self._set_master(client)
            self._follow(client.hi_odata_seq_no, now)

    def _follow(self, has: int, now: float) -> None:
        """MCTrail is what the master has acknowledged: for a new one, what it says it has (deviation 55)."""
        if not self.packets:
            return
        self._reached = max(self._reached, self.mc_trail)
        self.mc_trail = min(self.mc_trail, max(has, self.packets.first_seq - 1))
        self._moved_at = now

    def _watch_progress(self, now: float) -> None:
        """Nobody may hold the session for ever: after a second without progress MCTrail is what it was."""
        if self.mc_trail >= self._reached or now - self._moved_at < self._parameters.data_linger:
            return
        self.mc_trail = self._reached
        self._transport.clients.active[self.master_client_id].gave_up_on = True

    def _queue_repairs(self, ranges: tuple[tuple[int, int], ...], now: float) -> int:
        """Queue each requested packet that is there, is not about to leave, and did not within 4 x MCRTT.

        Returns:
            How many sequence numbers it looked at.
        """
        if not self.packets:
            return 0
        too_recent = now - 4 * self.mcrtt
        first, last = self.packets.first_seq, self.packets.last_sent_before(too_recent)
        most = self._parameters.max_nack_work
        work = 0
        for start, end in ranges:
            for seq in range(max(start, first), min(end, last) + 1):
                if work == most or len(self._repairs) >= self._parameters.max_repairs_queued:
                    return work
                work += 1
                found = self.packets.find(seq)
                if found is None or found[1] > too_recent or seq in self._repairs or seq in self._leaving:
                    continue
                self._repairs[seq] = found[0]
        return work

    def _expect_repairs(self, now: float) -> None:
        """Where repairs wait, more may leave after a round trip, as short as it is known to be by now."""
        if self._repairs:
            due = self._transport.timers.get(ServerTimer.REPAIR)
            soon = now + self.mcrtt
            self._transport.timers.set(ServerTimer.REPAIR, soon if due is None else min(due, soon))

    def repair_timer(self, now: float) -> None:
        """A round trip has passed: some repairs may leave, whatever was acknowledged."""
        self._repair_credit = max(self._repair_credit, _REPAIRS_A_ROUND_TRIP)
        self._expect_repairs(now)

    # ------------------------------------------------------------------ the end of what was given

    def cleanup_timer(self, now: float) -> None:
        """3.1.6.7: forget what nobody can ask for again; an SPM tells the new Trail."""
        self._watch_progress(now)
        interval = self._parameters.cleanup_data_list_interval
        self._transport.timers.set(ServerTimer.CLEANUP_DATA_LIST, now + interval)
        if self.packets.clean_up(now - 1.0, self.mc_trail):
            head = self.trail
            self._leaving = {seq for seq in self._leaving if seq >= head}
            self._send_spm(now)
        self._check_empty(now)

    def _check_empty(self, now: float) -> None:
        """Data Empty Trigger, as deviation 22 defines it.

        All that was given is sent and acknowledged, and either the last packet is old enough that repairs
        of it are done with, or the master, which has everything, is the only client.
        """
        if not self._waiting_for_empty or self._given or self._repairs or self.mc_trail < self.mc_lead:
            return
        alone = set(self._transport.clients.active) <= {self.master_client_id}
        if alone or now - self.packets.last_created >= self._parameters.data_linger:
            self._waiting_for_empty = False
            self._transport.application.data_empty(now)
