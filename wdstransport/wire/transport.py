"""The codec of MS-WDSMT: every packet's declaration, `encode` and `decode` (MS-WDSMT 2.2)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

from construct import (
    Bytes,
    Construct,
    ExprAdapter,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Struct,
    ValidationError,
)

from wdstransport.wire.application import DATA_HEADER_LEN
from wdstransport.wire.fields import (
    BYTES_8,
    BYTES_16,
    RANGES,
    RuleError,
    build,
    check_address,
    check_ranges,
    counted,
    member,
    parse,
    refuse_rest,
)
from wdstransport.wire.options import FW_LEAD_OPTION_LEN, OPTIONS, OPTIONS_COUNT_LEN, Option, check_options
from wdstransport.wire.packets import (
    LOSS_SCALE,
    MAX_DEMOTE_CLIENTS,
    MAX_KICK_CLIENTS,
    Ack,
    Demote,
    Join,
    JoinAck,
    Kick,
    KickReason,
    Leave,
    LeaveReason,
    Nack,
    Ncf,
    OData,
    OpCode,
    Poll,
    PollAck,
    Qcc,
    Qcr,
    RData,
    SessionHeader,
    Spm,
    TransportPacket,
)
from wdstransport.wire.reasons import DropReason, WireError
from wdstransport.wire.security import Security

__all__ = [
    "DATA_HEADER_LEN",
    "FW_LEAD_OPTION_LEN",
    "LOSS_SCALE",
    "MAX_CLIENT_NAME",
    "MAX_DEMOTE_CLIENTS",
    "MAX_KICK_CLIENTS",
    "NACK_FIXED_LEN",
    "ODATA_FIXED_LEN",
    "OPTIONS_COUNT_LEN",
    "RANGE_LEN",
    "SESSION_HEADER_LEN",
    "Ack",
    "Demote",
    "DropReason",
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
    "Option",
    "Poll",
    "PollAck",
    "Qcc",
    "Qcr",
    "RData",
    "SessionHeader",
    "Spm",
    "TransportPacket",
    "WireError",
    "data_overhead",
    "decode",
    "encode",
    "fit_client_name",
]

SESSION_HEADER_LEN = 13
ODATA_FIXED_LEN = 22
"""ClientId, ODATASeqNo, TrailODATASeqNo and DataLen (MS-WDSMT 2.2.16)."""
NACK_FIXED_LEN = 22
"""ClientId, HiODATASeqNo, LossRate and RangeCount (MS-WDSMT 2.2.18)."""
RANGE_LEN = 16
"""One range of a NACK or an NCF (MS-WDSMT 2.2.18.1)."""
MAX_CLIENT_NAME = 15
"""UTF-16 units of ClientName besides its null (MS-WDSMT 2.2.5)."""

_CLIENT_NAME_LEN = 32


def fit_client_name(name: str) -> str:
    """Returns as much of a machine's name as ClientName holds (MS-WDSMT 2.2.5).

    Cuts at the first null and after 15 UTF-16 units, never through a surrogate pair; what UTF-16 cannot
    express is replaced.
    """
    kept = name.partition("\0")[0].encode("utf-16-le", "replace")[: 2 * MAX_CLIENT_NAME]
    return kept.decode("utf-16-le", "ignore")


def _decode_name(raw: bytes, context: object) -> str:
    for index in range(0, _CLIENT_NAME_LEN, 2):
        if raw[index] == raw[index + 1] == 0:
            try:
                return raw[:index].decode("utf-16-le")
            except UnicodeDecodeError as error:
                raise ValidationError("ClientName is not UTF-16") from error
    raise ValidationError("ClientName has no null character")


def _encode_name(name: str, context: object) -> bytes:
    try:
        raw = name.encode("utf-16-le")
    except UnicodeEncodeError as error:
        raise ValidationError("ClientName cannot be written as UTF-16") from error
    if len(raw) > 2 * MAX_CLIENT_NAME or "\0" in name:
        raise ValidationError(f"ClientName {name!r} is longer than {MAX_CLIENT_NAME} units or has a null")
    return raw.ljust(_CLIENT_NAME_LEN, b"\0")


def _decode_kicked(rows: tuple[tuple[int, int], ...], context: object) -> tuple[tuple[int, KickReason], ...]:
    try:
        return tuple((client_id, KickReason(reason)) for client_id, reason in rows)
    except ValueError as error:
        raise ValidationError("no such KICK reason") from error


_SESSION_HEADER: Construct = Struct("session_id" / Int32ub, "op_code" / Int8ub, "sender_time" / Int64ub)
"""MS-WDSMT 2.2.3."""

_MILLISECONDS: Construct = ExprAdapter(
    Int16ub,
    decoder=lambda value, context: value,
    encoder=lambda value, context: min(max(value, 0), 0xFFFF),
)
"""A duration: clamped here and nowhere else (deviation 18)."""

_CLIENT_NAME: Construct = ExprAdapter(Bytes(_CLIENT_NAME_LEN), decoder=_decode_name, encoder=_encode_name)
_KICKED: Construct = ExprAdapter(
    counted("LB"), decoder=_decode_kicked, encoder=lambda clients, context: clients
)
_CLIENT_IDS: Construct = ExprAdapter(
    counted("L"),
    decoder=lambda rows, context: tuple(row[0] for row in rows),
    encoder=lambda clients, context: [(client_id,) for client_id in clients],
)

_ODATA: Construct = Struct(
    "client_id" / Int32ub,
    "odata_seq_no" / Int64ub,
    "trail_odata_seq_no" / Int64ub,
    "data" / BYTES_16,
)


@dataclass(frozen=True, slots=True)
class _Format:
    """How one packet is written.

    `options` is whether its section defines extended options; `required` whether OptionsCount must be
    there: where a section says that there are none, some leave out the count as well (deviation 13).
    """

    packet: type[Any]
    body: Construct
    options: bool = False
    required: bool = False


_ALL = (
    _Format(
        Join,
        Struct("client_name" / _CLIENT_NAME, "ip_address" / BYTES_8, "mac_address" / BYTES_8),
        options=True,
        required=True,
    ),
    _Format(
        JoinAck,
        Struct(
            "client_id" / Int32ub,
            "min_nack_back_off" / _MILLISECONDS,
            "max_nack_back_off" / _MILLISECONDS,
            "rtt" / _MILLISECONDS,
            "client_time" / Int64ub,
        ),
    ),
    _Format(Qcc, Struct("qcc_seq_no" / Int64ub, "qcr_back_off" / _MILLISECONDS)),
    _Format(
        Qcr,
        Struct(
            "client_id" / Int32ub,
            "qcc_seq_no" / Int64ub,
            "back_off" / _MILLISECONDS,
            "server_time" / Int64ub,
            "hi_odata_seq_no" / Int64ub,
            "loss_rate" / Int64ub,
            "app_data" / BYTES_16,
        ),
        options=True,
        required=True,
    ),
    _Format(Poll, Struct("poll_seq_no" / Int64ub, "back_off" / _MILLISECONDS, "app_data" / BYTES_16)),
    _Format(PollAck, Struct("client_id" / Int32ub, "poll_seq_no" / Int64ub, "app_data" / BYTES_16)),
    _Format(Leave, Struct("client_id" / Int32ub, "leave_reason" / member(Int8ub, LeaveReason))),
    _Format(Kick, Struct("clients" / _KICKED)),
    _Format(
        Demote,
        Struct(
            "lower_session_id" / Int32ub,
            "multicast_address" / BYTES_8,
            "multicast_port" / Int16ub,
            "unicast_address" / BYTES_8,
            "unicast_port" / Int16ub,
            "clients" / _CLIENT_IDS,
        ),
    ),
    _Format(
        Spm,
        Struct(
            "spm_seq_no" / Int64ub,
            "master_client_id" / Int32ub,
            "min_nack_back_off" / _MILLISECONDS,
            "max_nack_back_off" / _MILLISECONDS,
            "trail_odata_seq_no" / Int64ub,
            "lead_odata_seq_no" / Int64ub,
            "rtt" / _MILLISECONDS,
        ),
    ),
    _Format(
        Ack,
        Struct(
            "client_id" / Int32ub,
            "odata_seq_no" / Int64ub,
            "server_time" / Int64ub,
            "hi_odata_seq_no" / Int64ub,
            "loss_rate" / Int64ub,
        ),
    ),
    _Format(OData, _ODATA, options=True, required=True),
    _Format(RData, _ODATA, options=True),
    _Format(
        Nack,
        Struct(
            "client_id" / Int32ub,
            "hi_odata_seq_no" / Int64ub,
            "loss_rate" / Int64ub,
            "ranges" / RANGES,
        ),
    ),
    _Format(Ncf, Struct("ranges" / RANGES)),
)
_FORMATS: dict[int, _Format] = {each.packet.op_code: each for each in _ALL}
_NAMES: dict[int, tuple[str, ...]] = {
    each.packet.op_code: tuple(field.name for field in fields(each.packet) if field.name != "options")
    for each in _ALL
}


def _check(packet: TransportPacket) -> None:
    """Applies the rules that a layout cannot express, to what was read and to what is to be written."""
    match packet:
        case Join():
            check_address("IPAddress", packet.ip_address)
        case Qcr() | Ack() | Nack() if packet.loss_rate > LOSS_SCALE:
            raise RuleError(f"LossRate {packet.loss_rate} is above 1")
        case Nack() | Ncf():
            check_ranges(packet.ranges)
        case Kick() if len(packet.clients) > MAX_KICK_CLIENTS:
            raise RuleError(f"KICK for {len(packet.clients)} clients")
        case Demote():
            check_address("MAddress", packet.multicast_address)
            check_address("UAddress", packet.unicast_address)
            if len(packet.clients) > MAX_DEMOTE_CLIENTS:
                raise RuleError(f"DEMOTE for {len(packet.clients)} clients")
    check_options(_options_of(packet))


def _options_of(packet: TransportPacket) -> tuple[Option, ...]:
    return packet.options if isinstance(packet, Join | Qcr | OData | RData) else ()


def encode(packet: TransportPacket, *, session_id: int, sender_time: int, security: Security) -> bytes:
    """Encodes one packet as a datagram (MS-WDSMT 2.2.1).

    OptionsCount is written on every packet (deviation 13), and milliseconds are clamped to 16 bits
    (deviation 18).

    Args:
        packet: what to send.
        session_id: the session it belongs to.
        sender_time: the sender's clock in milliseconds (deviation 17).
        security: that of the sender's direction.

    Raises:
        ValueError: a value does not fit its field or breaks a rule of its section.
    """
    try:
        _check(packet)
    except RuleError as error:
        raise ValueError(str(error)) from error
    op_code = packet.op_code
    values = {name: getattr(packet, name) for name in _NAMES[op_code]}
    header = {"session_id": session_id, "op_code": op_code.value, "sender_time": sender_time}
    body = (
        build(_SESSION_HEADER, header)
        + build(_FORMATS[op_code].body, values)
        + build(OPTIONS, _options_of(packet))
    )
    return security.seal(body) + body


def decode(
    datagram: bytes | bytearray | memoryview, *, session_id: int | None, security: Security
) -> tuple[SessionHeader, TransportPacket]:
    """Decodes one datagram (MS-WDSMT 2.2.1, 3.1.5.1.1, 3.2.5.2).

    Args:
        datagram: exactly one datagram; nothing of the result refers to its memory.
        session_id: the session it must belong to; None accepts any.
        security: that of the direction it came from.

    Raises:
        WireError: it is anything but one well-formed packet of that session.
    """
    stream = BytesIO(security.verify(memoryview(datagram)))
    header = parse(_SESSION_HEADER, stream)
    if session_id is not None and header.session_id != session_id:
        raise WireError(DropReason.SESSION_ID, f"session {header.session_id:#x}, not {session_id:#x}")
    layout = _FORMATS.get(header.op_code)
    if layout is None:
        raise WireError(DropReason.OP_CODE, f"no packet has OpCode {header.op_code:#x}")
    found = parse(layout.body, stream)
    values = {name: found[name] for name in _NAMES[header.op_code]}
    options = _read_options(layout, stream)
    refuse_rest(stream)
    if layout.options:
        values["options"] = options
    elif options:
        raise WireError(DropReason.OPTIONS, f"{layout.packet.__name__} has no extended options")
    packet: TransportPacket = layout.packet(**values)
    try:
        _check(packet)
    except RuleError as error:
        raise WireError(error.reason, str(error)) from error
    return SessionHeader(header.session_id, packet.op_code, header.sender_time), packet


def _read_options(layout: _Format, stream: BytesIO) -> tuple[Option, ...]:
    if not layout.required and stream.tell() == len(stream.getbuffer()):
        return ()
    found: tuple[Option, ...] = parse(OPTIONS, stream)
    return found


def data_overhead(security: Security) -> int:
    """Returns the bytes of a datagram with one block that are not the block's (MS-WDSMT 2.2.16).

    87 under HMAC-SHA256. ODATA_FW_LEAD_SEQ_NO, where it is sent, takes `FW_LEAD_OPTION_LEN` more.
    """
    return security.header_len + SESSION_HEADER_LEN + ODATA_FIXED_LEN + DATA_HEADER_LEN + OPTIONS_COUNT_LEN
