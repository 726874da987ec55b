"""The data path's fast form of ODATA, RDATA and ACK: whole batches of datagrams as numpy records.

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
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wdstransport.wire.options import fw_lead_seq_no
from wdstransport.wire.security import Security, SecurityMode
from wdstransport.wire.transport import (
    LOSS_SCALE,
    Ack,
    DropReason,
    OData,
    OpCode,
    RData,
    SessionHeader,
    WireError,
)

__all__ = [
    "Batch",
    "DataLayout",
    "DataRecords",
    "Holder",
    "SlotBuffer",
    "decode_ack",
    "encode_ack",
    "parse_data",
    "record_of",
]

_IDENTIFIER = 0x5744
_OPTION_ID = 0x0406
_OPTION_LEN = 8
_SRV_DATA = 0x03
_DATA = struct.Struct(">HBQH")

U64 = npt.NDArray[np.uint64]


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


@dataclass(frozen=True, slots=True)
class DataLayout:
    """Where the fields of a data datagram lie, in bytes from its first, for one length of SecurityData.

    Attributes:
        security_len: bytes of SecurityData (MS-WDSMT 2.2.2).
        header: the record from the identifier to the block's first byte.
        data: offset of the block's first byte.
    """

    security_len: int
    header: np.dtype[np.void]
    data: int

    @staticmethod
    @lru_cache(maxsize=16)
    def of(security_len: int) -> DataLayout:
        """The layout for `security_len` bytes of SecurityData."""
        fields: list[tuple[str, Any]] = [
            ("identifier", ">u2"),
            ("security_type", "u1"),
            ("security_len", ">u2"),
            ("security_data", "u1", (security_len,)),  # type: ignore[list-item]
            ("session_id", ">u4"),
            ("op_code", "u1"),
            ("sender_time", ">u8"),
            ("client_id", ">u4"),
            ("odata_seq_no", ">u8"),
            ("trail_odata_seq_no", ">u8"),
            ("data_len", ">u2"),
            ("packet_size", ">u2"),
            ("ma_op_code", "u1"),
            ("block_number", ">u8"),
            ("block_len", ">u2"),
        ]
        header = np.dtype(fields)
        return DataLayout(security_len, header, header.itemsize)


# The extended options of a data datagram, after the block: none, or FW_LEAD alone (2.2.16).
_NO_OPTIONS = np.dtype([("options_count", ">u2")])
_FW_LEAD = np.dtype(
    [("options_count", ">u2"), ("option_id", ">u2"), ("option_len", ">u2"), ("fw_lead", ">u8")]
)


def _records(
    dtype: np.dtype[np.void], buffer: memoryview, offset: int, count: int, stride: int
) -> npt.NDArray[Any]:
    return np.ndarray((count,), dtype, buffer, offset, (stride,))


@dataclass(slots=True)
class DataRecords:
    """The data datagrams of one batch that passed every check, in order of arrival.

    Every array has one entry per accepted datagram.

    Attributes:
        rows: its place in the batch.
        retransmitted: whether it is an RDATA.
        fw_lead: FW_LEAD's value, or the largest number where the option is absent, so that
            `fw_lead >= odata_seq_no` is the rule of MS-WDSMT 3.2.5.13 in both cases.
        data_offset: bytes from a datagram's first to its block's first.
        block_len: bytes of content in each.
        data_len: bytes of the whole MS-WDSMA packet in each, what the cache is charged (3.2.5.13).
    """

    batch: Batch
    rows: npt.NDArray[np.intp]
    retransmitted: npt.NDArray[np.bool_]
    sender_time: U64
    client_id: npt.NDArray[np.uint32]
    odata_seq_no: U64
    trail_odata_seq_no: U64
    block_number: U64
    fw_lead: U64
    data_offset: int
    block_len: int
    data_len: int

    def __len__(self) -> int:
        return len(self.rows)


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
    leftover = np.arange(count, total, dtype=np.intp)
    if not count:
        return None, leftover, []
    header = _records(layout.header, batch.buffer, 0, count, segment)
    data_len = int(header["data_len"][0])
    block_len = data_len - 13
    options_at = layout.data + block_len
    room = segment - options_at
    if block_len < 0 or room not in (0, 2, 14):
        return None, np.arange(total, dtype=np.intp), []
    op_code = header["op_code"]
    odata = op_code == OpCode.ODATA
    rdata = op_code == OpCode.RDATA
    good = (
        (header["identifier"] == _IDENTIFIER)
        & (header["security_type"] == security.mode)
        & (header["security_len"] == layout.security_len)
        & (header["session_id"] == session_id)
        & (odata | rdata)
        & (header["data_len"] == data_len)
        & (header["packet_size"] == data_len)
        & (header["ma_op_code"] == _SRV_DATA)
        & (header["block_len"] == block_len)
    )
    fw_lead: U64 | None = None
    if room == 0:
        good &= rdata  # RDATA may come without OptionsCount (deviation 13); ODATA never does (2.2.16).
    elif room == 2:
        good &= _records(_NO_OPTIONS, batch.buffer, options_at, count, segment)["options_count"] == 0
    else:
        options = _records(_FW_LEAD, batch.buffer, options_at, count, segment)
        good &= (
            (options["options_count"] == 1)
            & (options["option_id"] == _OPTION_ID)
            & (options["option_len"] == _OPTION_LEN)
        )
        fw_lead = options["fw_lead"].astype(np.uint64)
    dropped: list[tuple[DropReason, int]] = []
    rows: npt.NDArray[np.intp]
    if good.all():
        rows = np.arange(count, dtype=np.intp)
    else:
        rows = np.flatnonzero(good)
        leftover = np.concatenate((np.flatnonzero(~good), leftover))
        if not len(rows):
            return None, leftover, []
    authentic = _authentic(batch, header, rows, layout, security, dropped)
    if authentic is not None:
        rows = rows[authentic]
        if not len(rows):
            return None, leftover, dropped
    everything = len(rows) == count
    chosen = header if everything else header[rows]
    if fw_lead is None:
        lead = np.full(len(rows), _NO_FW_LEAD, dtype=np.uint64)
    else:
        lead = fw_lead if everything else fw_lead[rows]
    records = DataRecords(
        batch=batch,
        rows=rows,
        retransmitted=rdata if everything else rdata[rows],
        sender_time=chosen["sender_time"].astype(np.uint64),
        client_id=chosen["client_id"].astype(np.uint32),
        odata_seq_no=chosen["odata_seq_no"].astype(np.uint64),
        trail_odata_seq_no=chosen["trail_odata_seq_no"].astype(np.uint64),
        block_number=chosen["block_number"].astype(np.uint64),
        fw_lead=lead,
        data_offset=layout.data,
        block_len=block_len,
        data_len=data_len,
    )
    return records, leftover, dropped


def _authentic(
    batch: Batch,
    header: npt.NDArray[Any],
    rows: npt.NDArray[np.intp],
    layout: DataLayout,
    security: Security,
    dropped: list[tuple[DropReason, int]],
) -> npt.NDArray[np.bool_] | None:
    """Which of `rows` carry valid SecurityData; None means all of them."""
    if security.mode is SecurityMode.NONE:
        return None
    if security.mode is SecurityMode.CHECKSUM:
        everything = len(rows) == len(header)
        body = np.frombuffer(batch.buffer, np.uint8, len(header) * batch.segment)
        body = body.reshape(len(header), batch.segment)[:, 5 + layout.security_len :]
        sums = (body if everything else body[rows]).sum(axis=1, dtype=np.uint32)
        stated = (header if everything else header[rows])["security_data"].view(">u4").ravel()
        valid: npt.NDArray[np.bool_] = ~sums == stated
        if valid.all():
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


def record_of(
    header: SessionHeader, packet: OData | RData, batch: Batch, security: Security
) -> DataRecords | None:
    """The record of one decoded data datagram that has options `parse_data` does not know.

    Args:
        header: its session header.
        packet: the packet.
        batch: the datagram alone.
        security: the sender's mode.

    Returns:
        The record, or None when the payload is no DATA packet of MS-WDSMA 2.2.4.
    """
    data = packet.data
    if len(data) < _DATA.size:
        return None
    size, op_code, block_number, block_len = _DATA.unpack_from(data)
    if size != len(data) or op_code != _SRV_DATA or block_len != len(data) - _DATA.size:
        return None
    lead = fw_lead_seq_no(packet.options)
    u64 = partial(np.array, dtype=np.uint64)
    return DataRecords(
        batch=batch,
        rows=np.zeros(1, dtype=np.intp),
        retransmitted=np.array([isinstance(packet, RData)]),
        sender_time=u64([header.sender_time]),
        client_id=np.array([packet.client_id], dtype=np.uint32),
        odata_seq_no=u64([packet.odata_seq_no]),
        trail_odata_seq_no=u64([packet.trail_odata_seq_no]),
        block_number=u64([block_number]),
        fw_lead=np.array([_NO_FW_LEAD]) if lead is None else u64([lead]),
        data_offset=DataLayout.of(security.data_len).data,
        block_len=block_len,
        data_len=size,
    )


class SlotBuffer:
    """A buffer of equal slots, one data datagram each: content is read straight into place.

    Attributes:
        segment: bytes of one slot, header and options included.
        payload: one writable view per slot, where its block belongs; filled by `os.preadv` and the like.
    """

    def __init__(
        self, slots: int, block_len: int, *, session_id: int, security: Security, fw_lead: bool
    ) -> None:
        """Lay out `slots` datagrams.

        Args:
            slots: how many.
            block_len: bytes of content in each.
            session_id: of the session they will be sent in.
            security: the server's mode and keys.
            fw_lead: whether each carries ODATA_FW_LEAD_SEQ_NO (ODATA) or no option (RDATA, deviation 33).
        """
        layout = DataLayout.of(security.data_len)
        options = _FW_LEAD if fw_lead else _NO_OPTIONS
        self.segment = layout.data + block_len + options.itemsize
        self.block_len = block_len
        self.slots = slots
        self._security = security
        self._body_at = 5 + layout.security_len
        self._bytes = bytearray(slots * self.segment)
        self._view = memoryview(self._bytes)
        self.payload = [
            self._view[start : start + block_len]
            for start in range(layout.data, slots * self.segment, self.segment)
        ]
        self._header = _records(layout.header, self._view, 0, slots, self.segment)
        self._options = _records(options, self._view, layout.data + block_len, slots, self.segment)
        self._matrix = np.frombuffer(self._bytes, np.uint8).reshape(slots, self.segment)[:, self._body_at :]
        header = self._header
        header["identifier"] = _IDENTIFIER
        header["security_type"] = security.mode
        header["security_len"] = layout.security_len
        header["session_id"] = session_id
        header["data_len"] = 13 + block_len
        header["packet_size"] = 13 + block_len
        header["ma_op_code"] = _SRV_DATA
        header["block_len"] = block_len
        self._fw_lead = fw_lead
        if fw_lead:
            self._options["options_count"] = 1
            self._options["option_id"] = _OPTION_ID
            self._options["option_len"] = _OPTION_LEN

    def fill(
        self,
        start: int,
        count: int,
        *,
        op_code: OpCode,
        sender_time: int,
        client_id: int,
        odata_seq_no: U64,
        trail_odata_seq_no: int,
        block_number: U64,
        previous_lead: int = 0,
    ) -> memoryview:
        """Write the headers of `count` slots from `start`, seal them, and hand over the datagrams.

        With FW_LEAD, all but the last carry `previous_lead` and the last its own number (deviation 35), so
        that a batch gets one ACK.

        Args:
            start: first slot.
            count: how many slots, which hold their blocks already.
            op_code: ODATA or RDATA.
            sender_time: milliseconds (MS-WDSMT 2.2.3).
            client_id: the master client's (3.1.5.9.7).
            odata_seq_no: one sequence number a slot.
            trail_odata_seq_no: lowest sequence number that can be repaired.
            block_number: one block number a slot, from 1.
            previous_lead: the highest sequence number sent before this batch.

        Returns:
            The bytes of the datagrams, `segment` each.
        """
        stop = start + count
        header = self._header[start:stop]
        header["op_code"] = op_code
        header["sender_time"] = sender_time
        header["client_id"] = client_id
        header["odata_seq_no"] = odata_seq_no
        header["trail_odata_seq_no"] = trail_odata_seq_no
        header["block_number"] = block_number
        if self._fw_lead:
            options = self._options
            options["fw_lead"][start:stop] = previous_lead
            options["fw_lead"][stop - 1] = odata_seq_no[-1]
        if self._security.mode is SecurityMode.CHECKSUM:
            sums = self._matrix[start:stop].sum(axis=1, dtype=np.uint32)
            header["security_data"] = (~sums).astype(">u4").view(np.uint8).reshape(count, 4)
        elif self._security.mode is not SecurityMode.NONE:
            for slot in range(start, stop):
                at = slot * self.segment
                body = self._view[at + self._body_at : at + self.segment]
                self._view[at : at + self._body_at] = self._security.seal(body)
        return self._view[start * self.segment : stop * self.segment]


# ACK comes and goes once a batch (MS-WDSMT 2.2.15): session header, five fields, OptionsCount 0.
_ACK = struct.Struct(">IBQIQQQQH")


def encode_ack(packet: Ack, *, session_id: int, sender_time: int, security: Security) -> bytes:
    """The bytes of an ACK, equal to what `transport.encode` makes of it."""
    body = _ACK.pack(
        session_id,
        OpCode.ACK,
        sender_time,
        packet.client_id,
        packet.odata_seq_no,
        packet.server_time,
        packet.hi_odata_seq_no,
        packet.loss_rate,
        0,
    )
    return security.seal(body) + body


def decode_ack(datagram: memoryview, *, session_id: int, security: Security) -> Ack | None:
    """An ACK in its usual form, or None when `transport.decode` is to judge the datagram."""
    at = 5 + security.data_len
    if len(datagram) != at + _ACK.size or datagram[at + 4] != OpCode.ACK:
        return None
    session, _, _, client_id, sequence, server_time, highest, loss, options = _ACK.unpack_from(datagram, at)
    if session != session_id or options or loss > LOSS_SCALE:
        return None
    try:
        security.verify(datagram)
    except WireError:
        return None
    return Ack(client_id, sequence, server_time, highest, loss)
