"""The codec of MS-WDSMSI over UDP: request, reply and error (MS-WDSMSI 2.2.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from typing import Any

from construct import (
    Construct,
    ExprAdapter,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Struct,
    ValidationError,
)

from wdstransport.wire.fields import Buffer, RuleError, build, check_address, parse, refuse_rest
from wdstransport.wire.options import OPTION_LIST
from wdstransport.wire.reasons import DropReason, WireError

__all__ = [
    "DropReason",
    "ErrorReply",
    "InitiationOption",
    "InitiationPacket",
    "OpCode",
    "Reply",
    "Request",
    "WireError",
    "decode",
    "encode",
    "total_blocks",
]


class OpCode(IntEnum):
    """What an initiation packet is (MS-WDSMSI 2.2.2); an error is a REPLY (deviation 45)."""

    REQUEST = 0x01
    REPLY = 0x02


class InitiationOption(IntEnum):
    """The options that the document defines (MS-WDSMSI 2.2.2.1 to 2.2.2.3)."""

    IPV6_CAPABLE = 0x010D
    MULTICAST_PORT = 0x0205
    SERVER_PORT = 0x0206
    BLOCK_SIZE = 0x0309
    SESSION_ID = 0x030A
    ERROR = 0x030B
    CONTENT_SIZE = 0x0407
    TOTAL_BLOCKS = 0x0408
    MULTICAST_ADDR = 0x0503
    SERVER_ADDR = 0x0504
    MAC_ADDRESS = 0x050C
    NAMESPACE = 0x0601
    CONTENT = 0x0602


@dataclass(frozen=True, slots=True)
class Request:
    """A client asks for a content (MS-WDSMSI 2.2.2.1); `ipv6_capable` None leaves the option out."""

    namespace: str
    content: str
    mac_address: bytes
    ipv6_capable: bool | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The server offers a session (MS-WDSMSI 2.2.2.2); sizes in bytes, addresses in network order."""

    multicast_address: bytes
    server_address: bytes
    multicast_port: int
    server_port: int
    content_size: int
    block_size: int
    total_blocks: int
    session_id: int


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The server refuses with a Win32 error code (MS-WDSMSI 2.2.2.3; deviation 45)."""

    error: int


InitiationPacket = Request | Reply | ErrorReply


def total_blocks(content_size: int, block_size: int) -> int:
    """Returns how many blocks a content of so many bytes has; none if it is empty (deviation 46)."""
    return -(-content_size // block_size)


def _decode_string(raw: bytes, context: object) -> str:
    try:
        text = raw.decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise ValidationError("a string is not UTF-16") from error
    if not text.endswith("\0") or "\0" in text[:-1]:
        raise ValidationError("a string does not end at its only null character")
    return text[:-1]


def _encode_string(text: str, context: object) -> bytes:
    if "\0" in text:
        raise ValidationError("a string has a null character")
    try:
        return f"{text}\0".encode("utf-16-le")
    except UnicodeEncodeError as error:
        raise ValidationError("a string cannot be written as UTF-16") from error


def _decode_flag(value: int, context: object) -> bool:
    if value > 1:
        raise ValidationError(f"{value} is neither 0 nor 1")
    return bool(value)


_PACKET: Construct = Struct("op_code" / Int8ub, "options" / OPTION_LIST)
"""MS-WDSMSI 2.2.2."""

_STRING: Construct = ExprAdapter(GreedyBytes, decoder=_decode_string, encoder=_encode_string)
_FLAG: Construct = ExprAdapter(Int8ub, decoder=_decode_flag, encoder=lambda value, context: int(value))


@dataclass(frozen=True, slots=True)
class _Field:
    """Which option carries a field, and how its value is declared."""

    option: InitiationOption
    value: Construct
    required: bool = True


_REQUEST = {
    "namespace": _Field(InitiationOption.NAMESPACE, _STRING),
    "content": _Field(InitiationOption.CONTENT, _STRING),
    "mac_address": _Field(InitiationOption.MAC_ADDRESS, GreedyBytes),
    "ipv6_capable": _Field(InitiationOption.IPV6_CAPABLE, _FLAG, required=False),
}
_REPLY = {
    "multicast_address": _Field(InitiationOption.MULTICAST_ADDR, GreedyBytes),
    "server_address": _Field(InitiationOption.SERVER_ADDR, GreedyBytes),
    "multicast_port": _Field(InitiationOption.MULTICAST_PORT, Int16ub),
    "server_port": _Field(InitiationOption.SERVER_PORT, Int16ub),
    "content_size": _Field(InitiationOption.CONTENT_SIZE, Int64ub),
    "block_size": _Field(InitiationOption.BLOCK_SIZE, Int32ub),
    "total_blocks": _Field(InitiationOption.TOTAL_BLOCKS, Int64ub),
    "session_id": _Field(InitiationOption.SESSION_ID, Int32ub),
}
_ERROR = {"error": _Field(InitiationOption.ERROR, Int32ub)}

_LAYOUTS: dict[type[Any], tuple[OpCode, dict[str, _Field]]] = {
    Request: (OpCode.REQUEST, _REQUEST),
    Reply: (OpCode.REPLY, _REPLY),
    ErrorReply: (OpCode.REPLY, _ERROR),
}
_KNOWN = {
    OpCode.REQUEST: {each.option: each.value for each in _REQUEST.values()},
    OpCode.REPLY: {each.option: each.value for each in (*_REPLY.values(), *_ERROR.values())},
}


def _check(packet: InitiationPacket) -> None:
    """Applies the rules that a layout cannot express, to what was read and to what is to be written."""
    if isinstance(packet, ErrorReply) and packet.error == 0:
        raise RuleError("an error reply without an error")
    if not isinstance(packet, Reply):
        return
    check_address("MULTICAST_ADDR", packet.multicast_address)
    check_address("SERVER_ADDR", packet.server_address)
    if len(packet.multicast_address) != len(packet.server_address):
        raise RuleError("one address is IPv4, the other IPv6")
    if packet.multicast_port != packet.server_port or not packet.server_port:
        raise RuleError(f"ports {packet.multicast_port} and {packet.server_port}")
    if not packet.block_size:
        raise RuleError("BLOCK_SIZE is 0")
    if packet.total_blocks != total_blocks(packet.content_size, packet.block_size):
        raise RuleError(
            f"{packet.total_blocks} blocks of {packet.block_size} are not {packet.content_size} bytes"
        )


def encode(packet: InitiationPacket) -> bytes:
    """Encodes one packet as a datagram (MS-WDSMSI 2.2.2).

    Raises:
        ValueError: a value does not fit its field or breaks a rule of its section.
    """
    try:
        _check(packet)
    except RuleError as error:
        raise ValueError(str(error)) from error
    op_code, layout = _LAYOUTS[type(packet)]
    options = [
        {"option_id": field.option.value, "value": build(field.value, getattr(packet, name))}
        for name, field in layout.items()
        if getattr(packet, name) is not None
    ]
    return build(_PACKET, {"op_code": op_code.value, "options": options})


def decode(datagram: Buffer) -> InitiationPacket:
    """Decodes one datagram (MS-WDSMSI 2.2.2).

    Unknown options must be well-formed and are then ignored. A reply with an error option is an error,
    whatever else it carries.

    Raises:
        WireError: it is anything but one well-formed packet.
    """
    stream = BytesIO(datagram)
    found = parse(_PACKET, stream)
    refuse_rest(stream)
    if found.op_code not in _KNOWN:
        raise WireError(DropReason.OP_CODE, f"no initiation packet has OpCode {found.op_code:#x}")
    op_code = OpCode(found.op_code)
    values = _read_options(_KNOWN[op_code], found.options)
    kind: type[Any] = Request
    if op_code is OpCode.REPLY:
        kind = ErrorReply if InitiationOption.ERROR in values else Reply
    arguments = {}
    for name, field in _LAYOUTS[kind][1].items():
        if field.required and field.option not in values:
            raise WireError(DropReason.OPTIONS, f"option {field.option.name} is missing")
        arguments[name] = values.get(field.option)
    packet: InitiationPacket = kind(**arguments)
    try:
        _check(packet)
    except RuleError as error:
        raise WireError(error.reason, str(error)) from error
    return packet


def _read_options(known: dict[InitiationOption, Construct], options: Iterable[Any]) -> dict[int, Any]:
    values: dict[int, Any] = {}
    for option in options:
        declaration = known.get(option.option_id)
        if declaration is None:
            continue
        if option.option_id in values:
            raise WireError(DropReason.OPTIONS, f"option {option.option_id:#06x} appears twice")
        stream = BytesIO(option.value)
        values[option.option_id] = parse(declaration, stream)
        refuse_rest(stream)
    return values
