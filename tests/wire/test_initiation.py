"""MS-WDSMSI 2.2.2 and 4.1: vectors, inverse, and everything that is refused."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.wire.initiation import (
    DropReason,
    ErrorReply,
    Reply,
    Request,
    WireError,
    decode,
    encode,
    total_blocks,
)
from wdstransport.wire.options import MAX_OPTIONS

TEXT = (Path(__file__).parents[1] / "vectors" / "initiation.txt").read_text()
VECTORS = {
    name: bytes.fromhex(re.sub(r"[;#].*", "", body)) for name, body in re.findall(r"\[(\S+)\]([^\[]*)", TEXT)
}
REPLY = Reply(
    multicast_address=bytes([239, 0, 0, 111]),
    server_address=bytes([192, 168, 0, 200]),
    multicast_port=64132,
    server_port=64132,
    content_size=0xEF8B56EC,
    block_size=8785,
    total_blocks=0x6FB00,
    session_id=0x6D19EE7E,
)
MAC = bytes.fromhex("005056C00008")
PACKETS = {
    "request": Request("images", "install.wim", MAC),
    "request-ipv6": Request("images", "install.wim", MAC, ipv6_capable=True),
    "reply": REPLY,
    "error": ErrorReply(2),
}

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
addresses = st.sampled_from([4, 16]).flatmap(
    lambda size: st.tuples(st.binary(min_size=size, max_size=size), st.binary(min_size=size, max_size=size))
)


@st.composite
def replies(draw):
    group, server = draw(addresses)
    port = draw(st.integers(1, 0xFFFF))
    size = draw(st.integers(0, 2**64 - 1))
    block = draw(st.integers(1, 2**32 - 1))
    return Reply(group, server, port, port, size, block, -(-size // block), draw(st.integers(0, 2**32 - 1)))


packets = st.one_of(
    st.builds(Request, names, names, st.binary(max_size=20), st.sampled_from([None, False, True])),
    replies(),
    st.builds(ErrorReply, st.integers(1, 2**32 - 1)),
)


def refused(datagram):
    with pytest.raises(WireError) as caught:
        decode(datagram)
    return caught.value.reason


def options(op_code, *pairs):
    count = len(pairs).to_bytes(2, "big")
    return bytes([op_code]) + count + b"".join(option(*pair) for pair in pairs)


def option(option_id, value):
    return option_id.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


def utf16(text):
    return text.encode("utf-16-le")


REQUEST_OPTIONS = [(0x0601, utf16("a\0")), (0x0602, utf16("b\0")), (0x050C, MAC)]
REPLY_OPTIONS = [
    (0x0503, REPLY.multicast_address),
    (0x0504, REPLY.server_address),
    (0x0205, bytes.fromhex("FA84")),
    (0x0206, bytes.fromhex("FA84")),
    (0x0407, (0xEF8B56EC).to_bytes(8, "big")),
    (0x0309, (8785).to_bytes(4, "big")),
    (0x0408, (0x6FB00).to_bytes(8, "big")),
    (0x030A, bytes.fromhex("6D19EE7E")),
]


def replaced(pairs, option_id, value):
    return [(known, value if known == option_id else old) for known, old in pairs]


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
    assert decode(encode(packet)) == packet


@pytest.mark.parametrize("name", PACKETS)
def test_every_proper_prefix_is_refused_as_truncated(name):
    for length in range(len(VECTORS[name])):
        assert refused(VECTORS[name][:length]) is DropReason.TRUNCATED


@pytest.mark.parametrize("name", PACKETS)
def test_trailing_byte_is_refused(name):
    assert refused(VECTORS[name] + b"\0") is DropReason.TRAILING


@pytest.mark.parametrize(
    ("size", "block", "blocks"),
    [(0xEF8B56EC, 0x2251, 0x6FB00), (0, 1385, 0), (1, 1385, 1), (1385, 1385, 1), (1386, 1385, 2)],
)
def test_total_blocks_is_the_size_divided_and_rounded_up(size, block, blocks):
    assert total_blocks(size, block) == blocks
    reply = replace(REPLY, content_size=size, block_size=block, total_blocks=blocks)
    assert decode(encode(reply)) == reply


@pytest.mark.parametrize("op_code", [0, 3, 255])
def test_unknown_op_code_is_refused(op_code):
    assert refused(options(op_code, *REQUEST_OPTIONS)) is DropReason.OP_CODE


@pytest.mark.parametrize("missing", range(3))
def test_request_without_a_required_option_is_refused(missing):
    kept = REQUEST_OPTIONS[:missing] + REQUEST_OPTIONS[missing + 1 :]
    assert refused(options(1, *kept)) is DropReason.OPTIONS


@pytest.mark.parametrize("missing", range(8))
def test_reply_without_a_required_option_is_refused(missing):
    kept = REPLY_OPTIONS[:missing] + REPLY_OPTIONS[missing + 1 :]
    assert refused(options(2, *kept)) is DropReason.OPTIONS


def test_known_option_twice_is_refused():
    for op_code, pairs in ((1, REQUEST_OPTIONS), (2, REPLY_OPTIONS)):
        for pair in pairs:
            assert refused(options(op_code, *pairs, pair)) is DropReason.OPTIONS


def test_unknown_options_are_ignored_even_twice_and_in_any_order():
    unknown = (0x7777, b"anything")
    assert decode(options(2, unknown, *reversed(REPLY_OPTIONS), unknown)) == REPLY
    assert decode(options(1, unknown, *REQUEST_OPTIONS, unknown)) == Request("a", "b", MAC)


def test_unknown_option_must_still_be_whole():
    whole = options(2, *REPLY_OPTIONS, (0x7777, b"anything"))
    assert refused(whole[:-1]) is DropReason.TRUNCATED


def test_options_of_the_other_packet_mean_nothing():
    assert decode(options(1, *REQUEST_OPTIONS, (0x0205, b""))) == Request("a", "b", MAC)
    assert decode(options(2, *REPLY_OPTIONS, (0x0601, b""))) == REPLY


def test_count_below_and_above_the_number_of_options_is_refused():
    whole = options(1, *REQUEST_OPTIONS)
    assert refused(b"\1\0\2" + whole[3:]) is DropReason.TRAILING
    assert refused(b"\1\0\4" + whole[3:]) is DropReason.TRUNCATED
    assert refused(b"\1\0\x40" + whole[3:]) is DropReason.TRUNCATED


def test_options_by_the_thousand_are_not_worth_reading():
    """A datagram of three thousand takes tens of milliseconds, in which a server sends nothing."""
    unknown = [(0x7777, b"")] * (MAX_OPTIONS - len(REQUEST_OPTIONS))
    assert decode(options(1, *REQUEST_OPTIONS, *unknown)) == Request("a", "b", MAC)
    assert refused(options(1, *REQUEST_OPTIONS, *unknown, (0x7777, b""))) is DropReason.FIELD
    assert refused(b"\1\xff\xff" + options(1, *REQUEST_OPTIONS)[3:]) is DropReason.FIELD


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "no null"),
        (utf16("images"), "no null"),
        (utf16("im\0ages\0"), "a null in the middle"),
        (utf16("images\0\0"), "two nulls"),
        (utf16("images\0")[:-1], "odd length"),
        (utf16("images\0") + b"a", "odd length"),
        (bytes.fromhex("00D8 0000"), "half a surrogate pair"),
    ],
)
@pytest.mark.parametrize("option_id", [0x0601, 0x0602])
def test_string_that_is_not_one_is_refused(option_id, value, why):
    assert refused(options(1, *replaced(REQUEST_OPTIONS, option_id, value))) is DropReason.FIELD, why


def test_names_outside_the_basic_plane_survive():
    request = Request("Ümlaut", "images/\U0001f4be.wim", MAC, ipv6_capable=False)
    assert decode(encode(request)) == request


@pytest.mark.parametrize("text", ["nu\0ll", "\ud800"])
def test_string_that_cannot_be_written_is_an_error_of_the_caller(text):
    with pytest.raises(ValueError, match="cannot be written"):
        encode(Request(text, "b", MAC))


def test_ipv6_capable_is_0_or_1_in_one_byte():
    for value, expected in ((b"\0", False), (b"\1", True)):
        assert decode(options(1, *REQUEST_OPTIONS, (0x010D, value))).ipv6_capable is expected
    assert refused(options(1, *REQUEST_OPTIONS, (0x010D, b"\2"))) is DropReason.FIELD
    assert refused(options(1, *REQUEST_OPTIONS, (0x010D, b""))) is DropReason.TRUNCATED
    assert refused(options(1, *REQUEST_OPTIONS, (0x010D, b"\1\1"))) is DropReason.TRAILING


@pytest.mark.parametrize("option_id", [0x0205, 0x0206, 0x0407, 0x0309, 0x0408, 0x030A])
def test_number_of_the_wrong_width_is_refused(option_id):
    right = dict(REPLY_OPTIONS)[option_id]
    assert refused(options(2, *replaced(REPLY_OPTIONS, option_id, right[1:]))) is DropReason.TRUNCATED
    assert refused(options(2, *replaced(REPLY_OPTIONS, option_id, b"\0" + right))) is DropReason.TRAILING


BROKEN = [
    ("multicast_address", b"", 0x0503, b""),
    ("multicast_address", bytes(5), 0x0503, bytes(5)),
    ("multicast_address", bytes(16), 0x0503, bytes(16)),
    ("server_address", bytes(3), 0x0504, bytes(3)),
    ("multicast_port", 0xFA85, 0x0205, bytes.fromhex("FA85")),
    ("block_size", 0, 0x0309, bytes(4)),
    ("total_blocks", 0x6FAFF, 0x0408, (0x6FAFF).to_bytes(8, "big")),
    ("total_blocks", 0x6FB01, 0x0408, (0x6FB01).to_bytes(8, "big")),
    ("content_size", 0xEF8B6EEC, 0x0407, (0xEF8B6EEC).to_bytes(8, "big")),
]


@pytest.mark.parametrize(("name", "value", "option_id", "raw"), BROKEN)
def test_reply_that_contradicts_itself_is_refused_and_never_sent(name, value, option_id, raw):
    assert refused(options(2, *replaced(REPLY_OPTIONS, option_id, raw))) is DropReason.FIELD
    with pytest.raises(ValueError):
        encode(replace(REPLY, **{name: value}))


def test_port_0_is_refused():
    nowhere = replaced(replaced(REPLY_OPTIONS, 0x0205, b"\0\0"), 0x0206, b"\0\0")
    assert refused(options(2, *nowhere)) is DropReason.FIELD


def test_reply_with_an_error_option_is_an_error_whatever_else_it_carries():
    assert decode(options(2, *REPLY_OPTIONS, (0x030B, bytes.fromhex("00000005")))) == ErrorReply(5)


def test_error_reply_without_an_error_is_refused_and_never_sent():
    assert refused(options(2, (0x030B, bytes(4)))) is DropReason.FIELD
    with pytest.raises(ValueError, match="without an error"):
        encode(ErrorReply(0))


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, 3),
    st.lists(
        st.tuples(
            st.sampled_from([pair[0] for pair in REQUEST_OPTIONS + REPLY_OPTIONS] + [0x010D, 0x030B, 9]),
            st.one_of(
                st.sampled_from([pair[1] for pair in REQUEST_OPTIONS + REPLY_OPTIONS]), st.binary(max_size=9)
            ),
        ),
        max_size=10,
    ),
    st.binary(max_size=3),
)
def test_any_options_are_a_packet_or_a_wire_error(op_code, pairs, tail):
    try:
        packet = decode(options(op_code, *pairs) + tail)
    except WireError:
        return
    assert decode(encode(packet)) == packet


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_packet_or_a_wire_error(datagram):
    try:
        packet = decode(datagram)
    except WireError:
        return
    assert decode(encode(packet)) == packet


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(VECTORS)), st.data())
def test_damaged_packet_is_a_packet_or_a_wire_error(name, data):
    damaged = bytearray(VECTORS[name])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        packet = decode(bytes(damaged))
    except WireError:
        return
    assert decode(encode(packet)) == packet
