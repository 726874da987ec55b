"""The data path's fast form of ODATA and RDATA: whole batches of datagrams as numpy records.

A *batch* is what UDP_GRO hands over or UDP_SEGMENT takes: one buffer, every datagram in it as long as the
first, only the last may be shorter. The header of a data datagram has a fixed layout for a given security
mode (MS-WDSMT 2.2.2, 2.2.3, 2.2.16 and MS-WDSMA 2.2.4 one after the other, no padding), so a batch is an
array of records whose stride is the segment. `tests/wire/test_batch.py` proves the records equal to the
construct declarations of `transport` and `application`, on good input and on broken.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wdstransport.wire.layout import (
    FW_LEAD,
    IDENTIFIER,
    NO_OPTIONS,
    OPTION_ID,
    OPTION_LEN,
    SRV_DATA,
    U64,
    DataLayout,
    records_in,
)
from wdstransport.wire.options import fw_lead_seq_no
from wdstransport.wire.security import Security, SecurityMode
from wdstransport.wire.transport import DropReason, OData, OpCode, RData, WireError

__all__ = [
    "Batch",
    "DataRecords",
    "Holder",
    "parse_data",
    "record_of",
]

_DATA = struct.Struct(">HBQH")
# Plain numbers for the data path: a member of an enum costs a slow look-up in Python 3.11.
_ODATA, _RDATA = int(OpCode.ODATA), int(OpCode.RDATA)
_NONE, _CHECKSUM = SecurityMode.NONE, SecurityMode.CHECKSUM
_STEPS = 1536
_ROWS = np.arange(_STEPS, dtype=np.intp)
_NO_ROWS = _ROWS[:0]


class Holder(Protocol):
    """Whoever owns a batch's memory and wants to know when it may be used again."""

    def hold(self) -> None:
        """Keep the memory for one more user."""

    def release(self) -> None:
        """One user is done."""


@dataclass(slots=True)
class Batch:
    """Datagrams that arrived together.

    Attributes:
        buffer: exactly the bytes received.
        segment: bytes per datagram; only the last may be shorter.
        source: host and port they came from.
        owner: whose memory `buffer` is; None when it is nobody's but the batch's.
    """

    buffer: memoryview
    segment: int
    source: tuple[str, int]
    owner: Holder | None = None

    def datagrams(self) -> Iterator[memoryview]:
        """Every datagram of the batch, in order, without a copy."""
        for start in range(0, len(self.buffer), self.segment or 1):
            yield self.buffer[start : start + self.segment]

    def datagram(self, row: int) -> memoryview:
        """Datagram number `row`, counted from 0."""
        return self.buffer[row * self.segment : (row + 1) * self.segment]


@dataclass(slots=True)
class DataRecords:
    """The data datagrams of one batch that passed every check, in order of arrival.

    Every array has one entry per accepted datagram.

    Attributes:
        rows: its place in the batch.
        header: its fields as they lie in the datagram, in network order.
        odata_seq_no: ODATASeqNo.
        block_number: BlockNumber.
        fw_lead: FW_LEAD's value, or the largest number where the option is absent, so that
            `fw_lead >= odata_seq_no` is the rule of MS-WDSMT 3.2.5.13 in both cases.
        data_offset: bytes from a datagram's first to its block's first.
        block_len: bytes of content in each.
        data_len: bytes of the whole MS-WDSMA packet in each, what the cache is charged (3.2.5.13).
    """

    batch: Batch
    rows: npt.NDArray[np.intp]
    header: npt.NDArray[Any]
    odata_seq_no: U64
    block_number: U64
    fw_lead: U64
    data_offset: int
    block_len: int
    data_len: int

    def __len__(self) -> int:
        return len(self.odata_seq_no)

    @property
    def client_id(self) -> npt.NDArray[np.uint32]:
        """ClientId of each: the master's."""
        return self.header["client_id"].astype(np.uint32)

    @property
    def trail_odata_seq_no(self) -> U64:
        """TrailODATASeqNo of each."""
        return self.header["trail_odata_seq_no"].astype(np.uint64)


_NO_FW_LEAD = np.uint64(0xFFFFFFFFFFFFFFFF)


def parse_data(
    batch: Batch, *, session_id: int, security: Security
) -> tuple[DataRecords | None, npt.NDArray[np.intp], list[tuple[DropReason, int]]]:
    """Check a whole batch at once and hand over its data datagrams.

    A datagram that is well-formed ODATA or RDATA of the batch's common shape ends in the records. One that
    has that shape but fails its checksum or HMAC is counted. Everything else (control packets, other
    options, a shorter last datagram) is left for `transport.decode`, which judges it alone.

    Args:
        batch: the datagrams.
        session_id: the session's own (MS-WDSMT 3.2.5.2).
        security: the sender's mode and keys.

    Returns:
        The records or None, the places of the datagrams left over, and (reason, count) of what was dropped.
    """
    segment = batch.segment
    size = len(batch.buffer)
    total = -(-size // segment) if segment else 0
    layout = DataLayout.of(security.data_len)
    count = size // segment if segment >= layout.data + 2 else 0
    leftover = _NO_ROWS if count == total else np.arange(count, total, dtype=np.intp)
    if not count:
        return None, leftover, []
    header = records_in(layout.header, batch.buffer, 0, count, segment)
    data_len = int(header["data_len"][0])
    block_len = data_len - 13
    options_at = layout.data + block_len
    room = segment - options_at
    if block_len < 0 or room not in (0, 2, 14):
        return None, np.arange(total, dtype=np.intp), []
    options = records_in(FW_LEAD, batch.buffer, options_at, count, segment) if room == 14 else None
    rows = _ROWS[:count] if count <= _STEPS else np.arange(count, dtype=np.intp)
    matrix = np.ndarray((count, segment), np.uint8, batch.buffer)
    op_code = batch.buffer[layout.op_code]
    usual = _template(layout.security_len, int(security.mode), session_id, op_code, data_len, room)
    if usual is None or matrix.take(usual[0], axis=1).tobytes() != usual[1] * count:
        good = _good(header, batch, session_id, security, data_len, room)
        if not good.all():
            rows = np.flatnonzero(good)
            leftover = np.concatenate((np.flatnonzero(~good), leftover))
            if not len(rows):
                return None, leftover, []
    dropped: list[tuple[DropReason, int]] = []
    authentic = _authentic(batch, header, matrix, rows, layout, security, dropped)
    if authentic is not None:
        rows = rows[authentic]
        if not len(rows):
            return None, leftover, dropped
    if len(rows) != count:
        header = header[rows]
        options = options[rows] if options is not None else None
    records = DataRecords(
        batch=batch,
        rows=rows,
        header=header,
        odata_seq_no=header["odata_seq_no"].astype(np.uint64),
        block_number=header["block_number"].astype(np.uint64),
        fw_lead=(
            np.full(len(rows), _NO_FW_LEAD, dtype=np.uint64)
            if options is None
            else options["fw_lead"].astype(np.uint64)
        ),
        data_offset=layout.data,
        block_len=block_len,
        data_len=data_len,
    )
    return records, leftover, dropped


@lru_cache(maxsize=64)
def _template(
    security_len: int, mode: int, session_id: int, op_code: int, data_len: int, room: int
) -> tuple[npt.NDArray[np.intp], bytes] | None:
    """The bytes that all ODATA or RDATA of a session share: at which offsets they lie, and what they are."""
    if op_code != _RDATA and (op_code != _ODATA or room == 0):
        return None
    layout = DataLayout.of(security_len)
    length = layout.data + data_len - 13 + room
    header = np.zeros(1, layout.header)
    header["identifier"] = IDENTIFIER
    header["security_type"] = mode
    header["security_len"] = security_len
    header["session_id"] = session_id
    header["op_code"] = op_code
    header["data_len"] = header["packet_size"] = data_len
    header["ma_op_code"] = SRV_DATA
    header["block_len"] = data_len - 13
    fixed = (
        "identifier",
        "security_type",
        "security_len",
        "session_id",
        "op_code",
        "data_len",
        "packet_size",
        "ma_op_code",
        "block_len",
    )
    row = bytearray(header.tobytes())
    places = [
        at + offset
        for name in fixed
        for dtype, at, *_ in (layout.header.fields[name],)  # type: ignore[index]
        for offset in range(dtype.itemsize)
    ]
    tail = struct.pack(">HHH", 1, OPTION_ID, OPTION_LEN) if room == 14 else bytes(room)
    row += bytes(length - room - len(row)) + tail
    places += range(length - room, length - room + len(tail))
    columns = np.array(sorted(places), dtype=np.intp)
    return columns, bytes(row[place] for place in sorted(places))


def _good(
    header: npt.NDArray[Any], batch: Batch, session_id: int, security: Security, data_len: int, room: int
) -> npt.NDArray[np.bool_]:
    """Which datagrams are well-formed ODATA or RDATA of the batch's shape, field by field."""
    count, segment = len(header), batch.segment
    odata = header["op_code"] == _ODATA
    rdata = header["op_code"] == _RDATA
    good: npt.NDArray[np.bool_] = (
        (header["identifier"] == IDENTIFIER)
        & (header["security_type"] == security.mode)
        & (header["security_len"] == security.data_len)
        & (header["session_id"] == session_id)
        & (odata | rdata)
        & (header["data_len"] == data_len)
        & (header["packet_size"] == data_len)
        & (header["ma_op_code"] == SRV_DATA)
        & (header["block_len"] == data_len - 13)
    )
    if room == 0:
        good &= rdata  # RDATA may come without OptionsCount (deviation 13); ODATA never does (2.2.16).
    elif room == 2:
        good &= records_in(NO_OPTIONS, batch.buffer, segment - 2, count, segment)["options_count"] == 0
    else:
        options = records_in(FW_LEAD, batch.buffer, segment - 14, count, segment)
        good &= (
            (options["options_count"] == 1)
            & (options["option_id"] == OPTION_ID)
            & (options["option_len"] == OPTION_LEN)
        )
    return good


def _authentic(
    batch: Batch,
    header: npt.NDArray[Any],
    matrix: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.intp],
    layout: DataLayout,
    security: Security,
    dropped: list[tuple[DropReason, int]],
) -> npt.NDArray[np.bool_] | None:
    """Which of `rows` carry valid SecurityData; None means all of them."""
    if security.mode is _NONE:
        return None
    if security.mode is _CHECKSUM:
        everything = len(rows) == len(header)
        body = matrix[:, 5 + layout.security_len :]
        sums = np.add.reduce(body if everything else body[rows], axis=1, dtype=np.uint32)
        stated = (header if everything else header[rows])["security_data"].view(">u4").ravel()
        valid: npt.NDArray[np.bool_] = ~sums == stated
        if np.logical_and.reduce(valid):
            return None
        dropped.append((DropReason.CHECKSUM, int(len(valid) - valid.sum())))
        return valid
    # Authenticated modes cost one digest a datagram whatever the form of the loop.
    verdicts = np.ones(len(rows), dtype=np.bool_)
    for place, row in enumerate(rows):
        try:
            security.verify(batch.datagram(int(row)))
        except WireError as error:
            verdicts[place] = False
            dropped.append((error.reason, 1))
    return None if verdicts.all() else verdicts


def record_of(packet: OData | RData, batch: Batch, security: Security) -> DataRecords | None:
    """The record of one decoded data datagram that has options `parse_data` does not know.

    Args:
        packet: the packet.
        batch: the datagram alone.
        security: the sender's mode.

    Returns:
        The record, or None when the payload is no DATA packet of MS-WDSMA 2.2.4.
    """
    data = packet.data
    if len(data) < _DATA.size:
        return None
    size, op_code, _, block_len = _DATA.unpack_from(data)
    if size != len(data) or op_code != SRV_DATA or block_len != len(data) - _DATA.size:
        return None
    lead = fw_lead_seq_no(packet.options)
    layout = DataLayout.of(security.data_len)
    fields = np.frombuffer(batch.buffer, layout.header, 1)
    return DataRecords(
        batch=batch,
        rows=_ROWS[:1],
        header=fields,
        odata_seq_no=fields["odata_seq_no"].astype(np.uint64),
        block_number=fields["block_number"].astype(np.uint64),
        fw_lead=np.array([_NO_FW_LEAD if lead is None else lead], dtype=np.uint64),
        data_offset=layout.data,
        block_len=block_len,
        data_len=size,
    )
