"""What the machines tell their driver, in past tense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from wdstransport.protocol.clients import ClientRecord
from wdstransport.wire.batch import Batch
from wdstransport.wire.transport import KickReason

__all__ = [
    "AllReceived",
    "BlockRun",
    "BlocksArrived",
    "ClientActive",
    "ClientGone",
    "ClientSessionEvent",
    "Demoted",
    "Departed",
    "Gone",
    "Joined",
    "Left",
    "SendingBegan",
    "ServerSessionEvent",
    "Terminated",
]


class Gone(Enum):
    """How a server lost a client."""

    COMPLETE = "complete"
    CANCELLED = "cancelled"
    INACTIVE = "inactive"
    DEAD = "dead"
    KICKED = "kicked"
    DEMOTED = "demoted"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class ClientActive:
    """A client's QCR answered its JOINACK (MS-WDSMT 3.1.5.2.3)."""

    client: ClientRecord


@dataclass(frozen=True, slots=True)
class ClientGone:
    """A client left the active, kick or demoted list."""

    client: ClientRecord
    reason: Gone


@dataclass(frozen=True, slots=True)
class SendingBegan:
    """The first query of a session found clients that miss blocks."""

    clients: int


@dataclass(frozen=True, slots=True)
class Terminated:
    """The server's Inactivity Timer ran out (MS-WDSMT 3.1.6.9)."""


ServerSessionEvent = ClientActive | ClientGone | SendingBegan | Terminated


@dataclass(frozen=True, slots=True)
class Joined:
    """JOINACK came (MS-WDSMT 3.2.5.3.2)."""

    client_id: int


class BlockRun(NamedTuple):
    """Consecutive blocks, each in the row after the last.

    Attributes:
        first_row: the datagram of a batch with the first of them.
        rows: how many.
        first_block: its block number, from 1.
    """

    first_row: int
    rows: int
    first_block: int


@dataclass(frozen=True, slots=True)
class BlocksArrived:
    """Blocks that were missing have come, in one batch.

    Attributes:
        batch: where they lie.
        runs: which they are and where; no block twice.
        count: how many blocks.
        data_offset: bytes from a datagram's first to its block's first.
        block_len: bytes in each block.
        charged: bytes to give back with `stored` once they are at their place (MS-WDSMT 3.2.5.18).
    """

    batch: Batch
    runs: Sequence[BlockRun]
    count: int
    data_offset: int
    block_len: int
    charged: int


@dataclass(frozen=True, slots=True)
class AllReceived:
    """Every block asked for has come; some may not be stored yet."""


class Left(Enum):
    """Why a client's session is over."""

    COMPLETE = "complete"
    CANCELLED = "cancelled"
    INACTIVE = "inactive"
    UNHEARD = "unheard"
    KICKED = "kicked"


@dataclass(frozen=True, slots=True)
class Departed:
    """LEAVE is on its way and nothing will follow; `kick_reason` is set when the server said KICK."""

    why: Left
    kick_reason: KickReason | None = None


@dataclass(frozen=True, slots=True)
class Demoted:
    """The server sent this client to a slower session (MS-WDSMT 3.2.5.16), which it joins now."""

    session_id: int
    multicast_address: bytes
    multicast_port: int
    unicast_address: bytes
    unicast_port: int


ClientSessionEvent = Joined | BlocksArrived | AllReceived | Departed | Demoted
