"""The codec of MS-WDSMA: what travels inside MS-WDSMT as application data (MS-WDSMA 2.2)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from io import BytesIO
from typing import Any, ClassVar

from construct import Construct, Int8ub, Int16ub, Int32ub, Int64ub, Struct

from wdstransport.wire.fields import (
    BYTES_16,
    RANGES,
    Buffer,
    RuleError,
    build,
    check_ranges,
    parse,
    refuse_rest,
)
from wdstransport.wire.reasons import DropReason, WireError

__all__ = [
    "DATA_HEADER_LEN",
    "MAX_BLOCK_SIZE",
    "MAX_RANGES",
    "PACKET_HEADER_LEN",
    "ApplicationPacket",
    "CntCir",
    "Data",
    "DropReason",
    "PacketType",
    "ProgressReport",
    "SrvCir",
    "WireError",
    "decode",
    "encode",
]

PACKET_HEADER_LEN = 3
DATA_HEADER_LEN = 13
"""Packet-Size, OpCode, BlockNumber and DataLen (MS-WDSMA 2.2.1 and 2.2.4)."""
MAX_RANGES = 64
"""Ranges in one CNTCIR (MS-WDSMA 2.2.3)."""
MAX_BLOCK_SIZE = 0xFFFF - DATA_HEADER_LEN
"""Bytes of a block that Packet-Size can count; UDP leaves less."""


class PacketType(IntEnum):
    """What an application packet is (MS-WDSMA 2.2.1)."""

    SRV_CIR = 0x01
    CNT_CIR = 0x02
    SRV_DATA = 0x03
    CNT_PROGRESS = 0x04


@dataclass(frozen=True, slots=True)
class SrvCir:
    """SRVCIR, server to clients: which blocks do you miss (MS-WDSMA 2.2.2)."""

    op_code: ClassVar[PacketType] = PacketType.SRV_CIR


@dataclass(frozen=True, slots=True)
class CntCir:
    """CNTCIR, client to server: the first ranges of blocks it misses (MS-WDSMA 2.2.3).

    `progress` is the percentage received (deviation 2), `time_in_session` seconds, ranges are inclusive.
    Progress comes before time here, and after it in `ProgressReport` (deviation 42).
    """

    op_code: ClassVar[PacketType] = PacketType.CNT_CIR
    progress: int
    time_in_session: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Data:
    """DATA, server to clients: one block (MS-WDSMA 2.2.4); blocks count from 1 (deviation 1)."""

    op_code: ClassVar[PacketType] = PacketType.SRV_DATA
    block_number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """PROGRESS, client to server (MS-WDSMA 2.2.5): seconds, and the percentage received (deviation 2)."""

    op_code: ClassVar[PacketType] = PacketType.CNT_PROGRESS
    time_in_session: int
    progress: int


ApplicationPacket = SrvCir | CntCir | Data | ProgressReport

_HEADER: Construct = Struct("packet_size" / Int16ub, "op_code" / Int8ub)
_BODIES: dict[int, tuple[type[Any], Construct]] = {
    PacketType.SRV_CIR: (SrvCir, Struct()),
    PacketType.CNT_CIR: (
        CntCir,
        Struct("progress" / Int8ub, "time_in_session" / Int32ub, "ranges" / RANGES),
    ),
    PacketType.SRV_DATA: (Data, Struct("block_number" / Int64ub, "data" / BYTES_16)),
    PacketType.CNT_PROGRESS: (ProgressReport, Struct("time_in_session" / Int32ub, "progress" / Int8ub)),
}
_NAMES = {code: tuple(field.name for field in fields(kind)) for code, (kind, _) in _BODIES.items()}


def _check(packet: ApplicationPacket) -> None:
    match packet:
        case CntCir() | ProgressReport() if packet.progress > 100:
            raise RuleError(f"Progress {packet.progress} is no percentage")
        case CntCir():
            check_ranges(packet.ranges)
            if len(packet.ranges) > MAX_RANGES:
                raise RuleError(f"CNTCIR with {len(packet.ranges)} ranges")


def encode(packet: ApplicationPacket) -> bytes:
    """Encodes one packet (MS-WDSMA 2.2.1).

    Raises:
        ValueError: a value does not fit its field or breaks a rule of its section.
    """
    try:
        _check(packet)
    except RuleError as error:
        raise ValueError(str(error)) from error
    values = {name: getattr(packet, name) for name in _NAMES[packet.op_code]}
    body = build(_BODIES[packet.op_code][1], values)
    header = {"packet_size": PACKET_HEADER_LEN + len(body), "op_code": packet.op_code.value}
    return build(_HEADER, header) + body


def decode(payload: Buffer) -> ApplicationPacket:
    """Decodes one packet (MS-WDSMA 2.2.1).

    Raises:
        WireError: it is anything but one well-formed packet whose Packet-Size is its length.
    """
    stream = BytesIO(payload)
    header = parse(_HEADER, stream)
    if header.packet_size != len(payload):
        reason = DropReason.TRUNCATED if header.packet_size > len(payload) else DropReason.TRAILING
        raise WireError(reason, f"Packet-Size {header.packet_size} in {len(payload)} bytes")
    if header.op_code not in _BODIES:
        raise WireError(DropReason.OP_CODE, f"no application packet has OpCode {header.op_code:#x}")
    kind, body = _BODIES[header.op_code]
    found = parse(body, stream)
    refuse_rest(stream)
    packet: ApplicationPacket = kind(**{name: found[name] for name in _NAMES[header.op_code]})
    try:
        _check(packet)
    except RuleError as error:
        raise WireError(error.reason, str(error)) from error
    return packet
