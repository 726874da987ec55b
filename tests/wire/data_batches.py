"""Batches of data datagrams, as slots fill them and as the declarations build and judge them."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, settings

from wdstransport.wire import application
from wdstransport.wire.batch import Batch, parse_data
from wdstransport.wire.options import fw_lead
from wdstransport.wire.security import ChecksumSecurity, HashSecurity, NoSecurity, SignSecurity
from wdstransport.wire.slots import SlotBuffer
from wdstransport.wire.transport import DropReason, OData, OpCode, RData, WireError, decode, encode

SESSION = 0x6D19EE7E
STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SOURCE = ("10.0.0.1", 64132)
NO_LEAD = 2**64 - 1
KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
MODES = {
    "none": NoSecurity,
    "hash": lambda: HashSecurity(b"0123456789abcdef01234567"),
    "sign": lambda: SignSecurity(KEY),
    "checksum": ChecksumSecurity,
}
every_mode = pytest.mark.parametrize("mode", MODES)


def block_of(number, block_len):
    return bytes((7 * number + place) % 256 for place in range(block_len))


def batch_of(data, segment):
    return Batch(memoryview(data), segment, SOURCE)


def parsed(data, segment, security):
    return parse_data(batch_of(data, segment), session_id=SESSION, security=security)


def slots_of(
    security,
    count,
    block_len,
    *,
    options=True,
    op_code=OpCode.ODATA,
    first_seq=101,
    first_block=11,
    master=7,
    trail=90,
    previous=100,
    sender_time=123456789,
):
    slots = SlotBuffer(count, block_len, session_id=SESSION, security=security, fw_lead=options)
    for place, view in enumerate(slots.payload):
        view[:] = block_of(first_block + place, block_len)
    data = slots.fill(
        0,
        count,
        op_code=op_code,
        sender_time=sender_time,
        client_id=master,
        odata_seq_no=np.arange(first_seq, first_seq + count, dtype=np.uint64),
        trail_odata_seq_no=trail,
        block_number=np.arange(first_block, first_block + count, dtype=np.uint64),
        previous_lead=previous,
    )
    return bytes(data), slots.segment


def declared(
    security,
    count,
    block_len,
    *,
    options=True,
    op_code=OpCode.ODATA,
    first_seq=101,
    first_block=11,
    master=7,
    trail=90,
    previous=100,
    sender_time=123456789,
):
    """What the declarations make of the same datagrams."""
    kind = OData if op_code is OpCode.ODATA else RData
    datagrams = []
    for place in range(count):
        number = first_block + place
        lead = first_seq + place if place == count - 1 else previous
        packet = kind(
            master,
            first_seq + place,
            trail,
            application.encode(application.Data(number, block_of(number, block_len))),
            (fw_lead(lead),) if options else (),
        )
        datagrams.append(encode(packet, session_id=SESSION, sender_time=sender_time, security=security))
    return b"".join(datagrams)


def judged(datagram, security):
    """What the declarations make of one datagram: (header, packet), or the reason to drop it."""
    try:
        return decode(datagram, session_id=SESSION, security=security)
    except WireError as error:
        return error.reason


def check_against_declarations(data, segment, security):
    """Every row ends in one place, and whatever is in the records is what the declarations read."""
    records, leftover, dropped = parsed(data, segment, security)
    batch = batch_of(data, segment)
    total = -(-len(data) // segment)
    rows = [] if records is None else records.rows.tolist()
    rest = leftover.tolist()
    assert rows == sorted(set(rows))
    assert rest == sorted(set(rest))
    assert not set(rows) & set(rest)
    assert len(rows) + len(rest) + sum(count for _, count in dropped) == total
    for place, row in enumerate(rows):
        datagram = bytes(batch.datagram(row))
        header, packet = judged(datagram, security)
        assert isinstance(packet, OData | RData)
        inner = application.decode(packet.data)
        assert isinstance(inner, application.Data)
        lead = packet.options
        assert lead == () or (len(lead) == 1 and lead[0].option_id == 0x0406)
        assert int(records.header["op_code"][place]) == packet.op_code
        assert int(records.header["sender_time"][place]) == header.sender_time
        assert int(records.client_id[place]) == packet.client_id
        assert int(records.odata_seq_no[place]) == packet.odata_seq_no
        assert int(records.trail_odata_seq_no[place]) == packet.trail_odata_seq_no
        assert int(records.block_number[place]) == inner.block_number
        assert int(records.fw_lead[place]) == (int.from_bytes(lead[0].value, "big") if lead else NO_LEAD)
        assert records.block_len == len(inner.data)
        assert records.data_len == len(packet.data)
        assert datagram[records.data_offset : records.data_offset + records.block_len] == inner.data
    lost = [row for row in range(total) if row not in rows and row not in rest]
    verdicts = [judged(bytes(batch.datagram(row)), security) for row in lost]
    assert all(isinstance(verdict, DropReason) for verdict in verdicts)
    counted = [reason for reason, count in dropped for _ in range(count)]
    assert sorted(verdicts) == sorted(counted)
    return records, leftover, dropped
