"""The 15 packets of MS-WDSMT as values (MS-WDSMT 2.2.5 to 2.2.19).

Field names are the document's. Sequence numbers and SenderTimes are unsigned 64-bit integers, times are
milliseconds, loss rates integers out of `LOSS_SCALE`, addresses bytes in network order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from wdstransport.wire.options import Option

__all__ = [
    "LOSS_SCALE",
    "MAX_DEMOTE_CLIENTS",
    "MAX_KICK_CLIENTS",
    "Ack",
    "Demote",
    "Join",
    "JoinAck",
    "Kick",
    "KickReason",
    "Leave",
    "LeaveReason",
    "Nack",
    "Ncf",
    "OData",
    "OpCode",
    "Poll",
    "PollAck",
    "Qcc",
    "Qcr",
    "RData",
    "SessionHeader",
    "Spm",
    "TransportPacket",
]

LOSS_SCALE = 10**16
"""A loss rate of 1 on the wire (MS-WDSMT 3.1.5.9.5 and 3.2.5.11; deviation 5)."""
MAX_KICK_CLIENTS = 200
"""Clients in one KICK (MS-WDSMT 3.1.1.2 and 3.1.5.6.1; deviation 19)."""
MAX_DEMOTE_CLIENTS = 250
"""Clients in one DEMOTE (MS-WDSMT 2.2.13)."""


class OpCode(IntEnum):
    """What a packet is (MS-WDSMT 2.2.3); POLLACK is 0x0D (deviation 3)."""

    SPM = 0x01
    JOIN = 0x02
    JOINACK = 0x03
    QCC = 0x04
    QCR = 0x05
    ODATA = 0x06
    RDATA = 0x07
    ACK = 0x08
    NACK = 0x09
    NCF = 0x0A
    LEAVE = 0x0B
    POLL = 0x0C
    POLLACK = 0x0D
    KICK = 0x0E
    DEMOTE = 0x0F


class LeaveReason(IntEnum):
    """Why a client leaves (MS-WDSMT 2.2.11)."""

    COMPLETE = 0
    CANCELLED = 1
    INACTIVE = 2


class KickReason(IntEnum):
    """Why a client is removed (MS-WDSMT 2.2.12.1)."""

    POLICY_NOT_MET = 0
    FALLBACK = 1
    FAIL = 2


@dataclass(frozen=True, slots=True)
class SessionHeader:
    """What every packet begins with, behind its security header (MS-WDSMT 2.2.3).

    `sender_time` is the sender's own clock in milliseconds, only ever echoed (deviation 17).
    """

    session_id: int
    op_code: OpCode
    sender_time: int


@dataclass(frozen=True, slots=True)
class Join:
    """JOIN, client to server (MS-WDSMT 2.2.5); `client_name` is at most 15 UTF-16 units."""

    op_code: ClassVar[OpCode] = OpCode.JOIN
    client_name: str
    ip_address: bytes
    mac_address: bytes
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class JoinAck:
    """JOINACK, server to one client (MS-WDSMT 2.2.6); times in milliseconds, `client_time` the JOIN's."""

    op_code: ClassVar[OpCode] = OpCode.JOINACK
    client_id: int
    min_nack_back_off: int
    max_nack_back_off: int
    rtt: int
    client_time: int


@dataclass(frozen=True, slots=True)
class Qcc:
    """QCC, server to group: report your quality (MS-WDSMT 2.2.7)."""

    op_code: ClassVar[OpCode] = OpCode.QCC
    qcc_seq_no: int
    qcr_back_off: int


@dataclass(frozen=True, slots=True)
class Qcr:
    """QCR, client to server: after JOINACK, after QCC, or unasked (MS-WDSMT 2.2.8).

    `loss_rate` is out of `LOSS_SCALE`; `server_time` is the answered packet's SenderTime or 0.
    """

    op_code: ClassVar[OpCode] = OpCode.QCR
    client_id: int
    qcc_seq_no: int
    back_off: int
    server_time: int
    hi_odata_seq_no: int
    loss_rate: int
    app_data: bytes
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class Poll:
    """POLL, server to group, for the application (MS-WDSMT 2.2.9)."""

    op_code: ClassVar[OpCode] = OpCode.POLL
    poll_seq_no: int
    back_off: int
    app_data: bytes


@dataclass(frozen=True, slots=True)
class PollAck:
    """POLLACK, client to server, for the application (MS-WDSMT 2.2.10)."""

    op_code: ClassVar[OpCode] = OpCode.POLLACK
    client_id: int
    poll_seq_no: int
    app_data: bytes


@dataclass(frozen=True, slots=True)
class Leave:
    """LEAVE, client to server (MS-WDSMT 2.2.11)."""

    op_code: ClassVar[OpCode] = OpCode.LEAVE
    client_id: int
    leave_reason: LeaveReason


@dataclass(frozen=True, slots=True)
class Kick:
    """KICK, server to group (MS-WDSMT 2.2.12): ClientId and reason of at most `MAX_KICK_CLIENTS`."""

    op_code: ClassVar[OpCode] = OpCode.KICK
    clients: tuple[tuple[int, KickReason], ...]


@dataclass(frozen=True, slots=True)
class Demote:
    """DEMOTE, server to group (MS-WDSMT 2.2.13): at most `MAX_DEMOTE_CLIENTS` go to a slower session."""

    op_code: ClassVar[OpCode] = OpCode.DEMOTE
    lower_session_id: int
    multicast_address: bytes
    multicast_port: int
    unicast_address: bytes
    unicast_port: int
    clients: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Spm:
    """SPM, server to group: the session's state (MS-WDSMT 2.2.14)."""

    op_code: ClassVar[OpCode] = OpCode.SPM
    spm_seq_no: int
    master_client_id: int
    min_nack_back_off: int
    max_nack_back_off: int
    trail_odata_seq_no: int
    lead_odata_seq_no: int
    rtt: int


@dataclass(frozen=True, slots=True)
class Ack:
    """ACK, master client to server (MS-WDSMT 2.2.15).

    `odata_seq_no` and everything below it arrived; `loss_rate` is out of `LOSS_SCALE`.
    """

    op_code: ClassVar[OpCode] = OpCode.ACK
    client_id: int
    odata_seq_no: int
    server_time: int
    hi_odata_seq_no: int
    loss_rate: int


@dataclass(frozen=True, slots=True)
class OData:
    """ODATA, server to group: application data, for the first time (MS-WDSMT 2.2.16)."""

    op_code: ClassVar[OpCode] = OpCode.ODATA
    client_id: int
    odata_seq_no: int
    trail_odata_seq_no: int
    data: bytes
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class RData:
    """RDATA, server to group: a repair (MS-WDSMT 2.2.17).

    Its section knows no options, but a repair is a copy of the ODATA: options are accepted (deviation 33).
    """

    op_code: ClassVar[OpCode] = OpCode.RDATA
    client_id: int
    odata_seq_no: int
    trail_odata_seq_no: int
    data: bytes
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class Nack:
    """NACK, client to server: missing sequence numbers, inclusive (MS-WDSMT 2.2.18).

    Without ranges it is the Zero-NACK of 3.2.5.12.2. `loss_rate` is out of `LOSS_SCALE`.
    """

    op_code: ClassVar[OpCode] = OpCode.NACK
    client_id: int
    hi_odata_seq_no: int
    loss_rate: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Ncf:
    """NCF, server to group: repairs that are coming, inclusive (MS-WDSMT 2.2.19)."""

    op_code: ClassVar[OpCode] = OpCode.NCF
    ranges: tuple[tuple[int, int], ...]


TransportPacket = (
    Join
    | JoinAck
    | Qcc
    | Qcr
    | Poll
    | PollAck
    | Leave
    | Kick
    | Demote
    | Spm
    | Ack
    | OData
    | RData
    | Nack
    | Ncf
)
