"""The server's four lists of clients (MS-WDSMT 3.1.1, 3.1.1.2), bounded, and who may speak as whom."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from math import inf

from wdstransport.protocol.allowance import Allowance
from wdstransport.wire.transport import KickReason

__all__ = ["Address", "ClientLists", "ClientRecord", "DemoteTarget"]

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class DemoteTarget:
    """The slower session that demoted clients are to join (MS-WDSMT 2.2.13)."""

    session_id: int
    multicast_address: bytes
    multicast_port: int
    unicast_address: bytes
    unicast_port: int


@dataclass(slots=True)
class ClientRecord:
    """One client, with the specification's fields (MS-WDSMT 3.1.1.2) and what its reports told.

    Times are seconds of the session's clock, shares 0 to 1. `address` is IPAddress and UDPPort.
    """

    client_id: int
    address: Address
    client_time: int
    last_update: float
    joined_at: float
    name: str = ""
    mac_address: bytes = b""
    rtt: float = 0.0
    supports_demote: bool = False
    kick_reason: KickReason = KickReason.POLICY_NOT_MET
    demote_target: DemoteTarget | None = None
    join_ack_send_count: int = 0
    join_ack_due: float = 0.0
    join_acks_unanswered: int = 0
    qcr_received: bool = False
    loss: float = 0.0
    hi_odata_seq_no: int = 0
    progress: int = 0
    time_in_session: int = 0
    gave_up_on: bool = False
    """It was master and did not answer or did not move: in this round the others do not wait for it again."""
    nack_work: Allowance = field(default_factory=lambda: Allowance(0.0, inf, 0.0))
    """What its NACKs may still cost (`nack_work_per_second`)."""
    utilization: dict[str, int] = field(default_factory=dict)


class ClientLists:
    """Pending, active, kicked and demoted clients, each in one list at a time.

    Pending clients stay ordered by `join_ack_due`: they all wait equally long, so a client that is re-armed
    goes to the end.
    """

    __slots__ = ("_by_address", "active", "demoted", "kicked", "max_pending", "pending")

    def __init__(self, max_pending: int) -> None:
        self.max_pending = max_pending
        self.pending: OrderedDict[int, ClientRecord] = OrderedDict()
        self.active: dict[int, ClientRecord] = {}
        self.kicked: dict[int, ClientRecord] = {}
        self.demoted: dict[int, ClientRecord] = {}
        self._by_address: dict[Address, ClientRecord] = {}

    def at(self, address: Address) -> ClientRecord | None:
        """The client that joined from an address and port."""
        return self._by_address.get(address)

    def speaking(self, client_id: int, address: Address) -> ClientRecord | None:
        """The client with this id, if the packet came from where it joined; else None."""
        record = self._by_address.get(address)
        return record if record is not None and record.client_id == client_id else None

    def add_pending(self, record: ClientRecord) -> ClientRecord | None:
        """Add a client that has not confirmed.

        Returns:
            The oldest unconfirmed one, if it had to go.
        """
        evicted = None
        if len(self.pending) >= self.max_pending:
            _, evicted = self.pending.popitem(last=False)
            self._by_address.pop(evicted.address, None)
        self.pending[record.client_id] = record
        self._by_address[record.address] = record
        return evicted

    def rearm(self, record: ClientRecord, due: float) -> None:
        """Set when a pending client's next JOINACK is due."""
        record.join_ack_due = due
        self.pending.move_to_end(record.client_id)

    def activate(self, record: ClientRecord) -> None:
        """Move a pending client to the active list (3.1.5.2.3)."""
        del self.pending[record.client_id]
        self.active[record.client_id] = record

    def kick(self, record: ClientRecord) -> None:
        """Move an active client to the Kick Client List (3.1.5.6)."""
        del self.active[record.client_id]
        self.kicked[record.client_id] = record

    def demote(self, record: ClientRecord) -> None:
        """Move an active client to the Demoted Client List (3.1.5.10)."""
        del self.active[record.client_id]
        self.demoted[record.client_id] = record

    def remove(self, record: ClientRecord) -> None:
        """Forget a client, whichever list it is in."""
        for group in (self.pending, self.active, self.kicked, self.demoted):
            group.pop(record.client_id, None)
        if self._by_address.get(record.address) is record:
            del self._by_address[record.address]

    def highest_rtt(self) -> float:
        """The largest RTT among active clients, seconds; 0 without any."""
        return max((record.rtt for record in self.active.values()), default=0.0)

    def successor(self, heard_since: float) -> ClientRecord | None:
        """Who takes over from a master that is gone, by the rule of 3.1.6.4 and answers that are there.

        Those who still miss blocks come first: the others are about to leave, too.

        Args:
            heard_since: time of the oldest QCR that counts, seconds.

        Returns:
            The client, or None where a QCC has to ask.
        """
        there = [
            record
            for record in self.active.values()
            if record.qcr_received and record.last_update >= heard_since and not record.gave_up_on
        ]
        return max(there, key=lambda record: (record.progress < 100, record.rtt), default=None)
