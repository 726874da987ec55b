"""What leaves from slots against the declarations."""

import numpy as np
import pytest
from data_batches import (
    MODES,
    SESSION,
    block_of,
    check_against_declarations,
    declared,
    every_mode,
    parsed,
    slots_of,
)

from wdstransport.wire.layout import DataLayout
from wdstransport.wire.security import ChecksumSecurity, NoSecurity
from wdstransport.wire.slots import SlotBuffer
from wdstransport.wire.transport import OpCode, data_overhead


def test_odata_with_a_block_of_1385_bytes_under_hmac_sha256_is_1472_bytes():
    security = MODES["hash"]()
    data, segment = slots_of(security, 2, 1385, options=False)
    assert segment == data_overhead(security) + 1385 == 1472
    assert data == declared(security, 2, 1385, options=False)
    records, _, _ = check_against_declarations(data, segment, security)
    assert len(records) == 2


@every_mode
@pytest.mark.parametrize("block_len", [0, 1, 500, 8785])
@pytest.mark.parametrize(
    ("op_code", "options"), [(OpCode.ODATA, True), (OpCode.ODATA, False), (OpCode.RDATA, False)]
)
def test_slots_hold_the_bytes_that_the_declarations_build(mode, block_len, op_code, options):
    security = MODES[mode]()
    data, segment = slots_of(security, 5, block_len, op_code=op_code, options=options)
    assert data == declared(security, 5, block_len, op_code=op_code, options=options)
    records, leftover, dropped = check_against_declarations(data, segment, security)
    assert (len(records), len(leftover), dropped) == (5, 0, [])


def test_all_but_the_last_of_a_batch_carry_the_previous_lead():
    data, segment = slots_of(NoSecurity(), 4, 10, first_seq=101, previous=100)
    records, _, _ = parsed(data, segment, NoSecurity())
    assert records.fw_lead.tolist() == [100, 100, 100, 104]
    assert (records.fw_lead >= records.odata_seq_no).tolist() == [False, False, False, True]


def test_data_without_the_option_wants_an_ack_for_each():
    data, segment = slots_of(NoSecurity(), 3, 10, options=False)
    records, _, _ = parsed(data, segment, NoSecurity())
    assert (records.fw_lead >= records.odata_seq_no).all()


@every_mode
def test_some_of_the_slots_are_filled_without_touching_the_others(mode):
    security = MODES[mode]()
    slots = SlotBuffer(6, 32, session_id=SESSION, security=security, fw_lead=True)
    for place, view in enumerate(slots.payload):
        view[:] = block_of(20 + place, 32)

    def fill(start, count):
        return slots.fill(
            start,
            count,
            op_code=OpCode.ODATA,
            sender_time=5,
            client_id=7,
            odata_seq_no=np.arange(50 + start, 50 + start + count, dtype=np.uint64),
            trail_odata_seq_no=1,
            block_number=np.arange(20 + start, 20 + start + count, dtype=np.uint64),
            previous_lead=49 + start,
        )

    fields = {"master": 7, "trail": 1, "sender_time": 5}
    first = fill(0, 2)
    before = bytes(first)
    second = bytes(fill(2, 3))
    assert (
        bytes(first)
        == before
        == declared(security, 2, 32, first_seq=50, first_block=20, previous=49, **fields)
    )
    assert second == declared(security, 3, 32, first_seq=52, first_block=22, previous=51, **fields)


def test_slots_that_are_filled_again_say_nothing_of_before():
    security = ChecksumSecurity()
    slots = SlotBuffer(4, 32, session_id=SESSION, security=security, fw_lead=True)
    for place, view in enumerate(slots.payload):
        view[:] = block_of(20 + place, 32)

    def fill(count, first_seq, trail, sender_time, start=0):
        return slots.fill(
            start,
            count,
            op_code=OpCode.ODATA,
            sender_time=sender_time,
            client_id=7,
            odata_seq_no=np.arange(first_seq, first_seq + count, dtype=np.uint64),
            trail_odata_seq_no=trail,
            block_number=np.arange(20 + start, 20 + start + count, dtype=np.uint64),
            previous_lead=first_seq - 1,
        )

    fill(2, first_seq=90, trail=60, sender_time=5)
    for first_seq, trail, sender_time in ((50, 41, 9), (54, 40, 8)):
        fields = {"master": 7, "trail": trail, "sender_time": sender_time}
        again = bytes(fill(4, first_seq, trail, sender_time))
        assert again == declared(
            security, 4, 32, first_seq=first_seq, first_block=20, previous=first_seq - 1, **fields
        )
    fields = {"master": 7, "trail": 39, "sender_time": 7}
    again = bytes(fill(2, first_seq=30, trail=39, sender_time=7, start=1))
    assert again == declared(security, 2, 32, first_seq=30, first_block=21, previous=29, **fields)


@every_mode
def test_slots_that_are_filled_again_may_hold_other_packets_of_another_master(mode):
    security = MODES[mode]()
    slots = SlotBuffer(3, 32, session_id=SESSION, security=security, fw_lead=False)
    for op_code, master, first_block in ((OpCode.ODATA, 7, 20), (OpCode.RDATA, 6, 90), (OpCode.ODATA, 8, 3)):
        for place, view in enumerate(slots.payload):
            view[:] = block_of(first_block + place, 32)
        data = slots.fill(
            0,
            3,
            op_code=op_code,
            sender_time=2**40,
            client_id=master,
            odata_seq_no=np.arange(50, 53, dtype=np.uint64),
            trail_odata_seq_no=1,
            block_number=np.arange(first_block, first_block + 3, dtype=np.uint64),
        )
        fields = {"first_block": first_block, "master": master, "trail": 1, "sender_time": 2**40}
        assert bytes(data) == declared(
            security, 3, 32, options=False, op_code=op_code, first_seq=50, **fields
        )


def test_repairs_may_have_any_numbers():
    security = ChecksumSecurity()
    slots = SlotBuffer(3, 8, session_id=SESSION, security=security, fw_lead=False)
    data = slots.fill(
        0,
        3,
        op_code=OpCode.RDATA,
        sender_time=1,
        client_id=2,
        odata_seq_no=np.array([9, 3, 2**64 - 1], dtype=np.uint64),
        trail_odata_seq_no=2**63,
        block_number=np.array([4, 2**40, 1], dtype=np.uint64),
    )
    records, _, _ = check_against_declarations(bytes(data), slots.segment, security)
    assert records.odata_seq_no.tolist() == [9, 3, 2**64 - 1]
    assert records.block_number.tolist() == [4, 2**40, 1]
    assert (records.header["op_code"] == OpCode.RDATA).all()


def test_slots_can_be_read_into_and_lie_where_the_layout_says():
    security = ChecksumSecurity()
    slots = SlotBuffer(3, 100, session_id=SESSION, security=security, fw_lead=True)
    assert (slots.slots, slots.block_len) == (3, 100)
    assert [len(view) for view in slots.payload] == [100, 100, 100]
    assert all(not view.readonly for view in slots.payload)
    assert DataLayout.of(security.data_len).data + 100 + 14 == slots.segment
    assert slots.segment == data_overhead(security) + 100 + 12
    assert slots.nbytes == 3 * slots.segment
