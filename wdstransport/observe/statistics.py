"""Frozen snapshots of a server's and its sessions' state, for tables, NDJSON and tests.

Sizes are bytes, times seconds, shares 0 to 1. Counters only grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wdstransport.observe.events import Address

__all__ = ["ClientStatistics", "ServerStatistics", "SessionStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStatistics:
    """One client of a session, as its last QCR, CNTCIR, ACK and NACK told."""

    client_id: int
    name: str
    address: Address
    mac: str
    state: str
    """pending, active, master, kicked or demoted."""
    progress: float
    """Share of blocks it holds, from its last report (whole percents on the wire)."""
    rtt: float
    loss: float
    seconds_in_session: float
    cpu: int | None = None
    memory: int | None = None
    network: int | None = None
    """Percent, where the client's QCR carries the options of MS-WDSMT 2.2.8.4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatistics:
    """One multicast session."""

    session_id: int
    namespace: str
    content: str
    size: int
    block_size: int
    total_blocks: int
    state: str
    """waiting, querying, sending, idle or ended."""
    round: int
    """How many times the missing blocks were asked for."""
    window: int
    """CurrentWindowSize, in packets."""
    data_bytes: int
    """Bytes of content sent as ODATA, in whichever round."""
    repair_bytes: int
    """Bytes of content sent again as RDATA: repairs of losses."""
    data_packets: int
    repair_packets: int
    nacks: int
    acks: int
    bytes_per_second: float
    completed: int
    clients: tuple[ClientStatistics, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Datagrams dropped, by reason."""
    catch_up_bytes: int = 0
    """Bytes, of `data_bytes`, of blocks that an earlier round had sent: for clients that joined late, and for
    those that could not repair or store what they missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatistics:
    """The whole server."""

    seconds: float
    sessions: tuple[SessionStatistics, ...]
    requests: int
    refused: int
    completed: int
    dropped: Mapping[str, int]
    """Initiation datagrams dropped, by reason."""
    features: Mapping[str, str]
    """What of the fast path is in use: segmentation, receive-merging, pacing."""
