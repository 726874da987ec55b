"""MS-WDSMT 2.2: vectors of all 15 packets, inverse in every security mode, and everything that is refused."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wdstransport.wire import application
from wdstransport.wire.options import (
    CAP_MULTISTREAM,
    Option,
    capabilities,
    cpu_util,
    fw_lead,
    mem_util,
    net_util,
    user_sid,
)
from wdstransport.wire.security import ChecksumSecurity, HashSecurity, NoSecurity, SignSecurity
from wdstransport.wire.transport import (
    DATA_HEADER_LEN,
    FW_LEAD_OPTION_LEN,
    LOSS_SCALE,
    NACK_FIXED_LEN,
    ODATA_FIXED_LEN,
    OPTIONS_COUNT_LEN,
    RANGE_LEN,
    SESSION_HEADER_LEN,
    Ack,
    Demote,
    DropReason,
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
    WireError,
    data_overhead,
    decode,
    encode,
    fit_client_name,
)

SESSION = 0x6D19EE7E
TIME = 123456
LOSS = LOSS_SCALE // 100
PRIVATE = rsa.generate_private_key(65537, 1024)
SECURITY = {
    "none": NoSecurity(),
    "checksum": ChecksumSecurity(),
    "hash": HashSecurity(bytes(range(24))),
    "sign": SignSecurity(PRIVATE),
}
NONE = SECURITY["none"]

TEXT = (Path(__file__).parents[1] / "vectors" / "transport.txt").read_text()
VECTORS = {
    name: bytes.fromhex(re.sub(r"[;#].*", "", body)) for name, body in re.findall(r"\[(\S+)\]([^\[]*)", TEXT)
}
PACKETS = {
    "join": Join(
        "TestMachine",
        bytes([192, 168, 0, 5]),
        bytes.fromhex("005056C00008"),
        (capabilities(CAP_MULTISTREAM),),
    ),
    "joinack": JoinAck(7, 20, 200, 25, 0xABCD),
    "qcc": Qcc(1, 200),
    "qcr": Qcr(
        7,
        1,
        15,
        0xABCD,
        100,
        LOSS,
        application.encode(application.ProgressReport(30, 50)),
        (cpu_util(10), mem_util(50), net_util(90)),
    ),
    "poll": Poll(2, 200, application.encode(application.SrvCir())),
    "pollack": PollAck(7, 2, b"\xaa\xbb\xcc"),
    "leave": Leave(7, LeaveReason.INACTIVE),
    "kick": Kick(((7, KickReason.POLICY_NOT_MET), (8, KickReason.FAIL))),
    "demote": Demote(0x6D19EE7F, bytes([239, 0, 0, 112]), 0xFA86, bytes([192, 168, 0, 200]), 0xFA87, (7, 8)),
    "spm": Spm(3, 7, 20, 200, 33, 100, 25),
    "ack": Ack(7, 99, 0xABCD, 100, LOSS),
    "odata": OData(
        7, 100, 33, application.encode(application.Data(5, bytes.fromhex("DEADBEEF"))), (fw_lead(99),)
    ),
    "rdata": RData(7, 100, 33, application.encode(application.Data(5, bytes.fromhex("DEADBEEF")))),
    "nack": Nack(7, 100, LOSS, ((50, 50), (52, 60))),
    "ncf": Ncf(((50, 60),)),
}
OPTIONS_REQUIRED = {OpCode.JOIN, OpCode.QCR, OpCode.ODATA}
each_packet = pytest.mark.parametrize("name", PACKETS)
each_mode = pytest.mark.parametrize("mode", SECURITY)

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
loss = st.integers(0, LOSS_SCALE)
app_data = st.binary(max_size=200)
address = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
client_name = st.text(max_size=20).map(fit_client_name)
options = st.lists(
    st.one_of(
        st.builds(cpu_util, st.integers(0, 100)),
        st.builds(fw_lead, u64),
        st.builds(user_sid, st.binary(max_size=28)),
        st.builds(Option, st.integers(0x0600, 0xFFFF), st.binary(max_size=20)),
    ),
    max_size=4,
    unique_by=lambda option: option.option_id,
).map(tuple)
ranges = st.lists(st.tuples(u64, u64).map(lambda pair: (min(pair), max(pair))), max_size=20).map(tuple)
packets = st.one_of(
    st.builds(Join, client_name, address, st.binary(max_size=20), options),
    st.builds(JoinAck, u32, u16, u16, u16, u64),
    st.builds(Qcc, u64, u16),
    st.builds(Qcr, u32, u64, u16, u64, u64, loss, app_data, options),
    st.builds(Poll, u64, u16, app_data),
    st.builds(PollAck, u32, u64, app_data),
    st.builds(Leave, u32, st.sampled_from(LeaveReason)),
    st.builds(Kick, st.lists(st.tuples(u32, st.sampled_from(KickReason)), max_size=20).map(tuple)),
    st.builds(Demote, u32, address, u16, address, u16, st.lists(u32, max_size=20).map(tuple)),
    st.builds(Spm, u64, u32, u16, u16, u64, u64, u16),
    st.builds(Ack, u32, u64, u64, u64, loss),
    st.builds(OData, u32, u64, u64, app_data, options),
    st.builds(RData, u32, u64, u64, app_data, options),
    st.builds(Nack, u32, u64, loss, ranges),
    st.builds(Ncf, ranges),
)


def send(packet, security=NONE):
    return encode(packet, session_id=SESSION, sender_time=TIME, security=security)


def receive(datagram, security=NONE):
    return decode(datagram, session_id=SESSION, security=security)[1]


def refused(datagram, security=NONE):
    with pytest.raises(WireError) as caught:
        decode(datagram, session_id=SESSION, security=security)
    return caught.value.reason


def raw(op_code, body, security=NONE):
    """A datagram with any body at all, sealed as it should be."""
    whole = SESSION.to_bytes(4, "big") + bytes([op_code]) + TIME.to_bytes(8, "big") + bytes.fromhex(body)
    return security.seal(whole) + whole


def test_every_packet_has_a_vector():
    assert {packet.op_code for packet in PACKETS.values()} == set(OpCode)
    assert VECTORS.keys() == {*PACKETS, "qcc-checksum"}


@each_packet
def test_vector_is_built_and_parsed(name):
    packet = PACKETS[name]
    assert send(packet) == VECTORS[name]
    assert decode(VECTORS[name], session_id=SESSION, security=NONE) == (
        SessionHeader(SESSION, packet.op_code, TIME),
        packet,
    )


def test_vector_with_checksum_is_built_and_parsed():
    assert send(PACKETS["qcc"], SECURITY["checksum"]) == VECTORS["qcc-checksum"]
    assert receive(VECTORS["qcc-checksum"], SECURITY["checksum"]) == PACKETS["qcc"]


@pytest.mark.parametrize(("block", "datagram"), [(1385, 1472), (8785, 8872)])
def test_odata_with_a_windows_block_under_hmac_sha256_fills_its_frames(block, datagram):
    data = application.encode(application.Data(1, bytes(block)))
    assert len(send(OData(7, 1, 1, data), SECURITY["hash"])) == datagram


@each_mode
def test_data_overhead_and_lengths_are_what_is_written(mode):
    security = SECURITY[mode]
    data = application.encode(application.Data(1, bytes(1000)))
    plain = send(OData(7, 1, 1, data), security)
    assert len(plain) == 1000 + data_overhead(security)
    assert len(send(OData(7, 1, 1, data, (fw_lead(1),)), security)) == len(plain) + FW_LEAD_OPTION_LEN
    parts = SESSION_HEADER_LEN + ODATA_FIXED_LEN + DATA_HEADER_LEN + OPTIONS_COUNT_LEN
    assert data_overhead(security) == security.header_len + parts
    empty = send(Nack(7, 1, 0, ()), security)
    assert len(empty) == security.header_len + SESSION_HEADER_LEN + NACK_FIXED_LEN + OPTIONS_COUNT_LEN
    assert len(send(Nack(7, 1, 0, ((1, 2),)), security)) == len(empty) + RANGE_LEN


def test_data_overhead_under_hmac_sha256_is_87():
    assert data_overhead(SECURITY["hash"]) == 87


@each_mode
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(packets, u32, u64)
def test_parsing_what_was_built_gives_the_packet(mode, packet, session_id, sender_time):
    security = SECURITY[mode]
    datagram = encode(packet, session_id=session_id, sender_time=sender_time, security=security)
    expected = (SessionHeader(session_id, packet.op_code, sender_time), packet)
    assert decode(datagram, session_id=session_id, security=security) == expected
    assert decode(datagram, session_id=None, security=security) == expected


@each_packet
@each_mode
def test_every_proper_prefix_is_refused_but_the_one_without_an_optional_options_count(name, mode):
    """One prefix is a packet of its own: what lacks the two zero bytes of OptionsCount (deviation 13).

    That is so where the section says that there are no options, and where the security mode cannot see
    that bytes are gone: NONE has nothing to see it with, and a sum of bytes stays the same without zeros.
    """
    security = SECURITY[mode]
    packet = replace(PACKETS[name], options=()) if name == "rdata" else PACKETS[name]
    datagram = send(packet, security)
    decode(datagram, session_id=SESSION, security=security)
    accepted = {}
    for length in range(len(datagram)):
        try:
            accepted[length] = receive(datagram[:length], security)
        except WireError:
            continue
    if mode in ("none", "checksum") and packet.op_code not in OPTIONS_REQUIRED:
        assert datagram.endswith(b"\0\0")
        assert accepted == {len(datagram) - OPTIONS_COUNT_LEN: packet}
    else:
        assert accepted == {}


@each_packet
def test_half_an_options_count_is_refused(name):
    bare = replace(PACKETS[name], options=()) if hasattr(PACKETS[name], "options") else PACKETS[name]
    assert refused(send(bare)[:-1]) is DropReason.TRUNCATED


@each_packet
@each_mode
def test_sealed_packet_without_an_options_count_is_accepted_where_the_section_has_no_options(name, mode):
    security = SECURITY[mode]
    packet = PACKETS[name]
    if hasattr(packet, "options"):
        packet = replace(packet, options=())
    body = send(packet)[NONE.header_len : -OPTIONS_COUNT_LEN]
    if packet.op_code in OPTIONS_REQUIRED:
        assert refused(security.seal(body) + body, security) is DropReason.TRUNCATED
    else:
        assert receive(security.seal(body) + body, security) == packet


@each_packet
@each_mode
@pytest.mark.parametrize("extra", [b"\0", b"\0\0", b"\xff"])
def test_trailing_bytes_are_refused_appended_or_sealed(name, mode, extra):
    security = SECURITY[mode]
    datagram = send(PACKETS[name], security)
    refused(datagram + extra, security)
    body = send(PACKETS[name])[NONE.header_len :] + extra
    assert refused(security.seal(body) + body, security) is DropReason.TRAILING


@each_packet
@pytest.mark.parametrize("mode", ["checksum", "hash", "sign"])
def test_every_single_bit_flip_is_refused(name, mode):
    security = SECURITY[mode]
    datagram = send(PACKETS[name], security)
    receive(datagram, security)
    damaged = bytearray(datagram)
    for place in range(len(damaged)):
        for bit in range(8):
            damaged[place] ^= 1 << bit
            refused(damaged, security)
            damaged[place] ^= 1 << bit
    assert damaged == datagram


@each_packet
def test_packet_of_another_session_is_refused_unless_any_is_accepted(name):
    with pytest.raises(WireError) as caught:
        decode(VECTORS[name], session_id=SESSION + 1, security=NONE)
    assert caught.value.reason is DropReason.SESSION_ID
    with pytest.raises(WireError, match="session"):
        decode(VECTORS[name], session_id=0, security=NONE)
    assert decode(VECTORS[name], session_id=None, security=NONE)[0].session_id == SESSION


@pytest.mark.parametrize("op_code", [0, 0x10, 0xFF])
def test_unknown_op_code_is_refused(op_code):
    assert refused(raw(op_code, "0000")) is DropReason.OP_CODE


@pytest.mark.parametrize("name", [name for name, packet in PACKETS.items() if not hasattr(packet, "options")])
def test_options_where_the_section_has_none_are_refused(name):
    datagram = VECTORS[name][:-2] + bytes.fromhex("0001 7777 0000")
    assert refused(datagram) is DropReason.OPTIONS


def test_rdata_with_the_options_of_its_odata_is_accepted():
    copy = bytearray(VECTORS["odata"])
    copy[NONE.header_len + 4] = OpCode.RDATA
    packet = receive(copy)
    assert packet == RData(7, 100, 33, PACKETS["rdata"].data, (fw_lead(99),))
    assert send(packet) == copy


@pytest.mark.parametrize("name", ["join", "qcr", "odata", "rdata"])
def test_unknown_options_are_kept(name):
    packet = replace(PACKETS[name], options=(Option(0x7777, b"anything"), Option(0x7777, b"")))
    assert receive(send(packet)) == packet


@pytest.mark.parametrize("name", ["join", "qcr", "odata", "rdata"])
@pytest.mark.parametrize(
    "bad",
    [
        (Option(0x0101, b""),),
        (Option(0x0102, b"\0\0"),),
        (Option(0x0103, b"\x65"),),
        (Option(0x0406, bytes(7)),),
        (Option(0x0406, bytes(9)),),
        (fw_lead(1), fw_lead(1)),
    ],
)
def test_option_that_cannot_mean_anything_is_refused_and_never_sent(name, bad):
    with pytest.raises(ValueError):
        send(replace(PACKETS[name], options=bad))
    plain = send(replace(PACKETS[name], options=()))[:-2]
    written = len(bad).to_bytes(2, "big") + b"".join(
        option.option_id.to_bytes(2, "big") + len(option.value).to_bytes(2, "big") + option.value
        for option in bad
    )
    assert refused(plain + written) is DropReason.OPTIONS


REST_OF_JOIN = "04 C0A80005 06 005056C00008 0000"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0000" + "FF" * 30, ""),
        ("4100 0000" + "00D8" * 14, "A"),
        ("4100" * 15 + "0000", "A" * 15),
        ("3DD8BEDC" * 7 + "4100 0000", "\U0001f4be" * 7 + "A"),
    ],
)
def test_client_name_ends_at_its_null_and_the_rest_is_ignored(name, expected):
    assert receive(raw(OpCode.JOIN, name + REST_OF_JOIN)).client_name == expected


@pytest.mark.parametrize("name", ["4100" * 16, "FF" * 32, "41 0000 42" * 8, "00D8 0000" * 8, "0041" * 16])
def test_client_name_without_a_null_or_not_utf16_is_refused(name):
    assert refused(raw(OpCode.JOIN, name + REST_OF_JOIN)) is DropReason.FIELD


@pytest.mark.parametrize("name", ["A" * 16, "\U0001f4be" * 8, "A\0B", "\ud800"])
def test_client_name_that_does_not_fit_is_an_error_of_the_caller(name):
    with pytest.raises(ValueError):
        send(replace(PACKETS["join"], client_name=name))


@pytest.mark.parametrize(
    ("name", "fitted"),
    [
        ("host", "host"),
        ("", ""),
        ("A" * 16, "A" * 15),
        ("\U0001f4be" * 8, "\U0001f4be" * 7),
        ("A\0B", "A"),
        ("x\ud800y", "x?y"),
    ],
)
def test_fitted_client_name_is_cut_between_characters(name, fitted):
    assert fit_client_name(name) == fitted
    assert receive(send(replace(PACKETS["join"], client_name=fitted))).client_name == fitted


@pytest.mark.parametrize("length", [0, 3, 5, 15, 17, 255])
def test_ip_address_of_another_length_than_4_or_16_is_refused(length):
    body = "00" * 32 + bytes([length]).hex() + "00" * length + "00 0000"
    assert refused(raw(OpCode.JOIN, body)) is DropReason.FIELD
    with pytest.raises(ValueError, match="IPAddress"):
        send(replace(PACKETS["join"], ip_address=bytes(length)))


@pytest.mark.parametrize("length", [0, 6, 8, 20, 255])
def test_mac_address_may_have_any_length(length):
    packet = replace(PACKETS["join"], mac_address=bytes(length))
    assert receive(send(packet)) == packet


@pytest.mark.parametrize("field", ["multicast_address", "unicast_address"])
@pytest.mark.parametrize("length", [0, 3, 5, 17])
def test_demote_to_another_length_than_4_or_16_is_refused(field, length):
    with pytest.raises(ValueError, match="Address"):
        send(replace(PACKETS["demote"], **{field: bytes(length)}))
    group, server = "04 EF000070", "04 C0A800C8"
    wrong = bytes([length]).hex() + "00" * length
    group, server = (wrong, server) if field == "multicast_address" else (group, wrong)
    assert refused(raw(OpCode.DEMOTE, f"6D19EE7F {group} FA86 {server} FA87 0000 0000")) is DropReason.FIELD


def test_demote_between_ipv6_addresses_is_accepted():
    packet = replace(PACKETS["demote"], multicast_address=bytes(16), unicast_address=bytes(range(16)))
    assert receive(send(packet)) == packet


@pytest.mark.parametrize(
    ("op_code", "body"),
    [
        (OpCode.LEAVE, "00000007 03 0000"),
        (OpCode.LEAVE, "00000007 FF 0000"),
        (OpCode.KICK, "0001 00000007 03 0000"),
        (OpCode.KICK, "0002 00000007 00 00000008 FF 0000"),
    ],
)
def test_reason_that_does_not_exist_is_refused(op_code, body):
    assert refused(raw(op_code, body)) is DropReason.FIELD


def test_kick_holds_200_clients_and_no_more():
    most = Kick(tuple((client, KickReason.FALLBACK) for client in range(200)))
    assert receive(send(most)) == most
    with pytest.raises(ValueError, match="201 clients"):
        send(Kick((*most.clients, (200, KickReason.FAIL))))
    assert refused(raw(OpCode.KICK, "00C9" + "0000000700" * 201 + "0000")) is DropReason.FIELD


def test_demote_holds_250_clients_and_no_more():
    most = replace(PACKETS["demote"], clients=tuple(range(250)))
    assert receive(send(most)) == most
    with pytest.raises(ValueError, match="251 clients"):
        send(replace(most, clients=tuple(range(251))))
    body = "6D19EE7F 04 EF000070 FA86 04 C0A800C8 FA87 00FB" + "00000007" * 251 + "0000"
    assert refused(raw(OpCode.DEMOTE, body)) is DropReason.FIELD


@pytest.mark.parametrize("make", [lambda data: PollAck(7, 1, data), lambda data: Poll(1, 2, data)])
@pytest.mark.parametrize("size", [255, 256, 7 + 3 + 64 * 16, 60_000])
def test_application_data_of_any_length_is_read_whole(make, size):
    packet = make(bytes(place % 251 for place in range(size)))
    assert receive(send(packet)) == packet


NACK_HEAD = "00000007 0000000000000064 0000000000000000"
BACKWARDS = "0001 0000000000000002 0000000000000001 0000"


SECOND_BACKWARDS = "0002 0000000000000005 0000000000000005 0000000000000002 0000000000000001 0000"


@pytest.mark.parametrize(
    ("packet", "body"),
    [
        (Nack(7, 100, 0, ((2, 1),)), NACK_HEAD + BACKWARDS),
        (Nack(7, 100, 0, ((5, 5), (2, 1))), NACK_HEAD + SECOND_BACKWARDS),
        (Ncf(((2, 1),)), BACKWARDS),
        (Ncf(((5, 5), (2, 1))), SECOND_BACKWARDS),
    ],
)
def test_range_that_ends_before_it_starts_is_refused_and_never_sent(packet, body):
    assert refused(raw(packet.op_code, body)) is DropReason.FIELD
    with pytest.raises(ValueError, match="2 to 1"):
        send(packet)


def test_range_count_other_than_the_ranges_is_refused():
    one = "0000000000000001 0000000000000002"
    assert refused(raw(OpCode.NCF, f"0002 {one} 0000")) is DropReason.TRUNCATED
    assert refused(raw(OpCode.NCF, f"FFFF {one} 0000")) is DropReason.TRUNCATED
    assert refused(raw(OpCode.NCF, f"0000 {one} 0000")) is DropReason.TRAILING


def test_zero_nack_has_no_ranges():
    assert receive(raw(OpCode.NACK, NACK_HEAD + "0000 0000")) == Nack(7, 100, 0, ())


def test_as_many_ranges_as_a_datagram_holds_survive():
    packet = Nack(7, 9000, 0, tuple((2 * n + 1, 2 * n + 1) for n in range(4000)))
    assert receive(send(packet)) == packet


@pytest.mark.parametrize("name", ["qcr", "ack", "nack"])
def test_loss_rate_above_1_is_refused_and_1_is_not(name):
    certain = replace(PACKETS[name], loss_rate=LOSS_SCALE)
    assert receive(send(certain)) == certain
    with pytest.raises(ValueError, match="above 1"):
        send(replace(certain, loss_rate=LOSS_SCALE + 1))
    above = send(certain).replace(LOSS_SCALE.to_bytes(8, "big"), (LOSS_SCALE + 1).to_bytes(8, "big"))
    assert refused(above) is DropReason.FIELD


DURATIONS = [
    ("joinack", "min_nack_back_off"),
    ("joinack", "max_nack_back_off"),
    ("joinack", "rtt"),
    ("qcc", "qcr_back_off"),
    ("qcr", "back_off"),
    ("poll", "back_off"),
    ("spm", "min_nack_back_off"),
    ("spm", "max_nack_back_off"),
    ("spm", "rtt"),
]


@pytest.mark.parametrize(("name", "field"), DURATIONS)
@pytest.mark.parametrize(("value", "written"), [(65535, 65535), (65536, 65535), (10**9, 65535), (-1, 0)])
def test_milliseconds_are_clamped_to_16_bits(name, field, value, written):
    packet = replace(PACKETS[name], **{field: value})
    assert receive(send(packet)) == replace(packet, **{field: written})


def test_other_numbers_that_do_not_fit_are_an_error_of_the_caller():
    with pytest.raises(ValueError, match="cannot be written"):
        send(replace(PACKETS["ack"], odata_seq_no=2**64))
    with pytest.raises(ValueError, match="cannot be written"):
        send(Kick(((2**32, KickReason.FAIL),)))
    with pytest.raises(ValueError, match="cannot be written"):
        send(OData(7, 1, 1, bytes(65536)))
    with pytest.raises(ValueError, match="cannot be written"):
        encode(PACKETS["ack"], session_id=2**32, sender_time=0, security=NONE)
    with pytest.raises(ValueError, match="cannot be written"):
        encode(PACKETS["ack"], session_id=0, sender_time=-1, security=NONE)


@each_packet
def test_packets_are_frozen_slotted_and_independent_of_the_datagram(name):
    memory = bytearray(VECTORS[name])
    packet = receive(memoryview(memory))
    memory[:] = bytes(len(memory))
    assert packet == PACKETS[name]
    assert not hasattr(packet, "__dict__")
    with pytest.raises(AttributeError):
        setattr(packet, fields(packet)[0].name, None)


def survives(datagram, security):
    """Decodes; whatever is accepted can be sent again and means the same."""
    try:
        header, packet = decode(datagram, session_id=None, security=security)
    except WireError:
        return
    again = encode(packet, session_id=header.session_id, sender_time=header.sender_time, security=security)
    assert decode(again, session_id=None, security=security) == (header, packet)


@each_mode
@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=120))
def test_any_bytes_are_a_packet_or_a_wire_error(mode, datagram):
    survives(datagram, SECURITY[mode])


@pytest.mark.parametrize("mode", ["none", "checksum", "hash"])
@settings(deadline=None, max_examples=300)
@given(st.integers(0, 17), st.binary(max_size=120))
def test_any_sealed_body_is_a_packet_or_a_wire_error(mode, op_code, body):
    survives(raw(op_code, body.hex(), SECURITY[mode]), SECURITY[mode])


@pytest.mark.parametrize("mode", ["none", "checksum"])
@settings(deadline=None, max_examples=300)
@given(packets, st.data())
def test_damaged_packet_sealed_again_is_a_packet_or_a_wire_error(mode, packet, data):
    security = SECURITY[mode]
    body = bytearray(send(packet)[NONE.header_len :])
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[place] = data.draw(st.sampled_from([0, 1, 2, 4, 15, 16, 100, 127, 128, 255]))
    cut = data.draw(st.integers(0, 4))
    body = body[: len(body) - cut]
    survives(security.seal(body) + body, security)
