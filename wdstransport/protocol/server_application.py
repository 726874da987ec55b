"""The server of MS-WDSMA 3.1: ask who misses which blocks, send the union, ask again."""

from __future__ import annotations

import math
from enum import Enum
from typing import Protocol

from wdstransport.protocol.clients import ClientRecord
from wdstransport.protocol.events import SendingBegan, ServerSessionEvent
from wdstransport.protocol.parameters import ServerParameters
from wdstransport.protocol.ranges import RangeSet
from wdstransport.wire import application as wire
from wdstransport.wire.transport import WireError

__all__ = ["ApplicationState", "ServerApplication", "TransportTriggers"]


class ApplicationState(Enum):
    """SessionState (MS-WDSMA 3.1.1), and the two waits that the documents leave out."""

    IDLE = "waiting for clients"
    QUERY = "QueryState"
    DATA = "DataState"
    RESTING = "waiting to query again"


class TransportTriggers(Protocol):
    """What the application asks of the transport (MS-WDSMT 3.1.4)."""

    def ready(self) -> bool:
        """Whether there is a master, so that a POLL can be followed by data."""

    def active_clients(self) -> int:
        """How many clients are on the Active Client List."""

    def is_there(self, client_id: int) -> bool:
        """Whether a client is on it, or about to be."""

    def highest_rtt(self) -> float:
        """The largest RTT of an active client, seconds."""

    def poll(self, payload: bytes) -> float:
        """POLL Trigger; the back-off in seconds."""

    def give(self, ranges: list[tuple[int, int]]) -> None:
        """Data Trigger for every block of the inclusive ranges."""

    def withdraw(self) -> None:
        """Forget what was given: nobody is left."""


class ServerApplication:
    """Who misses which blocks of one content, round after round.

    Attributes:
        state: SessionState.
        rounds: how many queries found blocks to send.
        plan: MissingBlockRanges of the round under way, inclusive (start, end).
        plan_number: grows with every new plan, so that a reader can tell them apart.
    """

    def __init__(self, *, total_blocks: int, parameters: ServerParameters) -> None:
        self._total_blocks = total_blocks
        self._parameters = parameters
        self._transport: TransportTriggers | None = None
        self.state = ApplicationState.IDLE
        self.rounds = 0
        self.plan: tuple[tuple[int, int], ...] = ()
        self.plan_number = 0
        self.events: list[ServerSessionEvent] = []
        self._answers: dict[int, wire.CntCir] = {}
        self._missed: dict[int, tuple[tuple[int, int], ...]] = {}
        self._deadline = math.inf
        self._rest = parameters.empty_query_wait
        self._rested = False
        self._gate_open = False
        self._first_client_at: float | None = None

    def connect(self, transport: TransportTriggers) -> None:
        """Name the transport below; once, before anything else."""
        self._transport = transport

    @property
    def _below(self) -> TransportTriggers:
        assert self._transport is not None
        return self._transport

    # ------------------------------------------------------------------ triggers from the transport

    def poll_ack(self, client: ClientRecord, payload: bytes, now: float) -> bool:
        """POLLACK Trigger (3.1.5.1.1).

        Returns:
            Whether the payload is a CNTCIR for this content.
        """
        try:
            packet = wire.decode(payload)
        except WireError:
            return False
        if not isinstance(packet, wire.CntCir):
            return False
        if any(not 1 <= start <= end <= self._total_blocks for start, end in packet.ranges):
            return False
        client.progress = packet.progress
        client.time_in_session = packet.time_in_session
        if self.state is ApplicationState.QUERY:
            self._answers[client.client_id] = packet
        return True

    def status(self, client: ClientRecord, payload: bytes, now: float) -> bool:
        """Status Trigger (3.1.5.3).

        Returns:
            Whether the payload is a PROGRESS.
        """
        try:
            packet = wire.decode(payload)
        except WireError:
            return False
        if not isinstance(packet, wire.ProgressReport):
            return False
        client.progress = packet.progress
        client.time_in_session = packet.time_in_session
        return True

    def data_empty(self, now: float) -> None:
        """Data Empty Trigger (3.1.5.2.1)."""
        if self.state is ApplicationState.DATA:
            self._query(now)

    def clients_changed(self, now: float) -> None:
        """Somebody came, went or became master; start, or stop when nobody is left (deviation 39)."""
        active = self._below.active_clients()
        if active == 0:
            self._first_client_at = None
            self.state = ApplicationState.IDLE
            self._deadline = math.inf
            self._below.withdraw()
            return
        if self._first_client_at is None:
            self._first_client_at = now
        if self.state is ApplicationState.RESTING:
            self._rest = self._parameters.empty_query_wait
            self._deadline = now
        elif self.state is ApplicationState.IDLE:
            self._start(now)

    def _start(self, now: float) -> None:
        """AutoCast starts with the first client, ScheduledCast with MinimumClients or after a wait."""
        assert self._first_client_at is not None
        parameters = self._parameters
        if not self._gate_open:
            latest = math.inf if parameters.max_wait is None else self._first_client_at + parameters.max_wait
            if self._below.active_clients() < parameters.min_clients and now < latest:
                self._deadline = latest
                return
        # POLL waits for the Data state, as the data that follows it would have to (deviation 39).
        if self._below.ready():
            self._gate_open = True
            self._query(now)
        else:
            self._deadline = math.inf  # clients_changed comes again when there is a master

    # ------------------------------------------------------------------ Query state

    def _query(self, now: float) -> None:
        """3.1.5.1; the wait is the back-off, the highest RTT and a margin (deviation 41)."""
        self._answers.clear()
        self.state = ApplicationState.QUERY
        back_off = self._below.poll(wire.encode(wire.SrvCir()))
        self._deadline = now + back_off + self._below.highest_rtt() + self._parameters.query_margin

    def _query_timer(self, now: float) -> None:
        """3.1.6.1."""
        # Nothing is sent for who is gone (deviation 66).
        self._answers = {key: value for key, value in self._answers.items() if self._below.is_there(key)}
        if not self._answers:
            if self._below.ready():
                self._query(now)
            else:
                self._rest_before_query(now)
            return
        # Whoever has everything needs no round of its own, and whom the last one brought nothing, perhaps
        # since its disk stands still, keeps nobody waiting (deviation 40).
        before = self._missed
        self._missed = {client_id: answer.ranges for client_id, answer in self._answers.items()}
        moving = [
            answer
            for client_id, answer in self._answers.items()
            if answer.ranges and before.get(client_id) != answer.ranges
        ]
        oldest = max((answer.time_in_session for answer in moving), default=0)
        merged = RangeSet()
        for answer in self._answers.values():
            if answer.time_in_session < oldest - self._parameters.late_client_share:
                continue  # deviation 40
            for start, end in answer.ranges:
                merged.add(start, end)
        if not merged:
            self._rest_before_query(now)
            return
        if not moving and not self._rested:
            self._rested = True
            self._rest_before_query(now)
            return
        self._rested = False
        if moving:
            self._rest = self._parameters.empty_query_wait
        self.state = ApplicationState.DATA
        if not self.rounds:
            self.events.append(SendingBegan(self._below.active_clients()))
        self.rounds += 1
        self.plan = tuple(merged)
        self.plan_number += 1
        self._below.give(list(self.plan))

    def _rest_before_query(self, now: float) -> None:
        """Nothing to send, or nothing of what was sent was stored: ask again, ever later (deviation 38)."""
        self.state = ApplicationState.RESTING
        self._deadline = now + self._rest
        self._rest = min(self._rest * 2, self._parameters.max_empty_query_wait)

    # ------------------------------------------------------------------ time

    def next_deadline(self) -> float:
        """When `handle_timers` is to be called next, seconds."""
        return self._deadline

    def handle_timers(self, now: float) -> None:
        """Do what is due."""
        if self._deadline > now:
            return
        self._deadline = math.inf
        match self.state:
            case ApplicationState.QUERY:
                self._query_timer(now)
            case ApplicationState.RESTING:
                if self._below.ready():
                    self._query(now)
                else:
                    self._deadline = now + self._parameters.empty_query_wait
            case ApplicationState.IDLE:
                if self._below.active_clients():
                    self._start(now)
