"""MS-WDSMA 2.2: vectors, inverse, and everything that is refused."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.wire.application import (
    DATA_HEADER_LEN,
    MAX_BLOCK_SIZE,
    CntCir,
    Data,
    DropReason,
    ProgressReport,
    SrvCir,
    WireError,
    decode,
    encode,
)

TEXT = (Path(__file__).parents[1] / "vectors" / "application.txt").read_text()
VECTORS = {
    name: bytes.fromhex(re.sub(r"[;#].*", "", body)) for name, body in re.findall(r"\[(\S+)\]([^\[]*)", TEXT)
}
PACKETS = {
    "srvcir": SrvCir(),
    "cntcir": CntCir(progress=50, time_in_session=30, ranges=((5, 9), (0x6FB00, 0x6FB00))),
    "data": Data(block_number=5, data=bytes.fromhex("DEADBEEF")),
    "progress": ProgressReport(time_in_session=30, progress=50),
}

ranges = st.lists(
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)).map(lambda pair: (min(pair), max(pair))),
    max_size=64,
).map(tuple)
percent = st.integers(0, 100)
seconds = st.integers(0, 2**32 - 1)
packets = st.one_of(
    st.just(SrvCir()),
    st.builds(CntCir, percent, seconds, ranges),
    st.builds(Data, st.integers(0, 2**64 - 1), st.binary(max_size=3000)),
    st.builds(ProgressReport, seconds, percent),
)


def refused(payload):
    with pytest.raises(WireError) as caught:
        decode(payload)
    return caught.value.reason


def test_vectors_and_packets_are_the_same_set():
    assert VECTORS.keys() == PACKETS.keys()


@pytest.mark.parametrize("name", PACKETS)
def test_vector_is_built_and_parsed(name):
    assert encode(PACKETS[name]) == VECTORS[name]
    assert decode(VECTORS[name]) == PACKETS[name]
    assert decode(memoryview(bytearray(VECTORS[name]))) == PACKETS[name]


@settings(deadline=None, max_examples=150)
@given(packets)
def test_parsing_what_was_built_gives_the_packet(packet):
    payload = encode(packet)
    assert int.from_bytes(payload[:2], "big") == len(payload)
    assert decode(payload) == packet


@pytest.mark.parametrize("name", PACKETS)
def test_every_proper_prefix_is_refused_as_truncated(name):
    for length in range(len(VECTORS[name])):
        assert refused(VECTORS[name][:length]) is DropReason.TRUNCATED


@pytest.mark.parametrize("name", PACKETS)
def test_every_proper_prefix_is_refused_even_with_a_packet_size_to_match(name):
    for length in range(2, len(VECTORS[name])):
        refused(length.to_bytes(2, "big") + VECTORS[name][2:length])


@pytest.mark.parametrize("name", PACKETS)
def test_trailing_byte_is_refused_with_and_without_a_packet_size_to_match(name):
    longer = VECTORS[name] + b"\0"
    assert refused(longer) is DropReason.TRAILING
    assert refused(len(longer).to_bytes(2, "big") + longer[2:]) is DropReason.TRAILING


@pytest.mark.parametrize("op_code", [0, 5, 255])
def test_unknown_op_code_is_refused(op_code):
    assert refused(bytes([0, 3, op_code])) is DropReason.OP_CODE


def test_progress_above_100_is_refused_in_both_packets():
    assert refused(bytes.fromhex("0008 04 0000001E 65")) is DropReason.FIELD
    assert refused(bytes.fromhex("000A 02 65 0000001E 0000")) is DropReason.FIELD
    for packet in (ProgressReport(0, 101), CntCir(101, 0, ())):
        with pytest.raises(ValueError, match="percentage"):
            encode(packet)


@pytest.mark.parametrize("packet", [ProgressReport(9, 100), ProgressReport(9, 0), CntCir(100, 9, ())])
def test_progress_of_0_and_of_100_is_read(packet):
    assert decode(encode(packet)) == packet


def test_64_ranges_are_the_most():
    most = tuple((n, n) for n in range(64))
    assert decode(encode(CntCir(0, 0, most))).ranges == most
    more = bytes.fromhex("041A 02 00 00000000 0041") + bytes(65 * 16)
    assert len(more) == 0x41A
    assert refused(more) is DropReason.FIELD
    with pytest.raises(ValueError, match="65 ranges"):
        encode(CntCir(0, 0, (*most, (64, 64))))


def test_range_that_ends_before_it_starts_is_refused():
    backwards = bytes.fromhex("001A 02 00 00000000 0001 0000000000000002 0000000000000001")
    assert refused(backwards) is DropReason.FIELD
    for ranges in (((2, 1),), ((1, 1), (3, 5), (2, 1))):
        with pytest.raises(ValueError, match="2 to 1"):
            encode(CntCir(0, 0, ranges))


def test_data_len_other_than_the_rest_of_the_packet_is_refused():
    assert refused(bytes.fromhex("0011 03 0000000000000005 0003 DEADBEEF")) is DropReason.TRAILING
    assert refused(bytes.fromhex("0011 03 0000000000000005 0005 DEADBEEF")) is DropReason.TRUNCATED


def test_data_header_is_13_bytes_and_the_biggest_block_fills_packet_size():
    assert len(encode(Data(1, b""))) == DATA_HEADER_LEN == 13
    assert len(encode(Data(1, bytes(MAX_BLOCK_SIZE)))) == 0xFFFF
    with pytest.raises(ValueError, match="cannot be written"):
        encode(Data(1, bytes(MAX_BLOCK_SIZE + 1)))


@pytest.mark.parametrize(
    "packet", [Data(-1, b""), Data(2**64, b""), ProgressReport(2**32, 0), ProgressReport(0, -1)]
)
def test_value_that_does_not_fit_is_an_error_of_the_caller(packet):
    with pytest.raises(ValueError, match="cannot be written"):
        encode(packet)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80), st.integers(0, 5), st.booleans())
def test_any_bytes_are_a_packet_or_a_wire_error(payload, op_code, dressed):
    if dressed:
        payload = (len(payload) + 3).to_bytes(2, "big") + bytes([op_code]) + payload
    try:
        packet = decode(payload)
    except WireError:
        return
    assert encode(packet) == payload
