"""What happened, as frozen facts: one type per event, the same for programs, logs and `--json`.

Times are seconds, sizes bytes, shares 0 to 1. `seconds` in every event is the time since its server or
its receiver started, on a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "ClientEvent",
    "ClientJoined",
    "ClientLeft",
    "Finished",
    "Initiated",
    "JoinedSession",
    "Kept",
    "Progress",
    "RequestRefused",
    "SendingStarted",
    "ServerEvent",
    "ServerListening",
    "SessionEnded",
    "SessionOpened",
    "Unanswered",
    "Warned",
]

Address = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerListening:
    """The server answers initiation requests (MS-WDSMSI 3.1.3) on `address`, out of `interface`."""

    seconds: float
    address: Address
    interface: str
    namespaces: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """A multicast session exists for a content: somebody asked for it."""

    seconds: float
    session_id: int
    namespace: str
    content: str
    size: int
    block_size: int
    total_blocks: int
    group: Address
    address: Address
    interface: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendingStarted:
    """The first block of a session is about to be sent, to `clients` clients."""

    seconds: float
    session_id: int
    clients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientJoined:
    """A client finished joining: its QCR answered the JOINACK (MS-WDSMT 3.1.5.2.3)."""

    seconds: float
    session_id: int
    client_id: int
    name: str
    address: Address
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLeft:
    """A client is gone.

    `reason` is one of complete, cancelled, inactive (its own LEAVE, MS-WDSMT 2.2.11), dead (silent for
    ClientDeadTimeout, 3.1.6.2), kicked, demoted (it left because the server told it to), ended (the session
    ended under it).
    """

    seconds: float
    session_id: int
    client_id: int
    name: str
    address: Address
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded:
    """A session is over; `error` is None when it simply ended (idle, closed)."""

    seconds: float
    session_id: int
    reason: str
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused:
    """An initiation request was answered with a Win32 error code (MS-WDSMSI 2.2.2.3)."""

    seconds: float
    address: Address
    namespace: str
    content: str
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something the administrator should know, such as a socket buffer that the kernel capped."""

    seconds: float
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """The server was `asked` so often and has not answered yet; told after seconds, then ever more seldom.

    `message` says the likely cause and what to do.
    """

    seconds: float
    server: Address
    interface: str
    asked: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Initiated:
    """The server offered the content (MS-WDSMSI 2.2.2.2); joining comes next."""

    seconds: float
    server: Address
    group: Address
    interface: str
    session_id: int
    size: int
    block_size: int
    total_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedSession:
    """The server gave this receiver its ClientId (MS-WDSMT 2.2.6); `features` of the fast path are in use."""

    seconds: float
    client_id: int
    features: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a receiver is: bytes stored at their place, of `total`; `loss` is the filter of 3.2.5.10."""

    seconds: float
    received: int
    stored: int
    total: int
    bytes_per_second: float
    loss: float
    duplicates: int
    refused: int
    dropped: int
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The target is whole, flushed and under its final name."""

    seconds: float
    target: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The reception failed or was cancelled, and what arrived in it is in the file `part`."""

    seconds: float
    part: str


ServerEvent = (
    ServerListening
    | SessionOpened
    | SendingStarted
    | ClientJoined
    | ClientLeft
    | SessionEnded
    | RequestRefused
    | Warned
)
ClientEvent = Unanswered | Initiated | JoinedSession | Progress | Finished | Kept | Warned
