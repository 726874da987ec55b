"""MS-WDSMT 2.2.4, 2.2.5.1, 2.2.8.4 and 2.2.16: layout, helpers, and options that cannot mean anything."""

from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.wire import options as wire
from wdstransport.wire.fields import RuleError, build, parse
from wdstransport.wire.options import MAX_OPTIONS, OPTIONS, Option, OptionId, check_options
from wdstransport.wire.reasons import DropReason, WireError
from wdstransport.wire.security import NoSecurity
from wdstransport.wire.transport import Join, decode, encode

any_option = st.builds(Option, st.integers(0, 0xFFFF), st.binary(max_size=40))


def test_no_options_are_a_count_of_zero():
    assert build(OPTIONS, ()) == bytes.fromhex("0000")
    assert len(build(OPTIONS, ())) == wire.OPTIONS_COUNT_LEN


def test_layout_is_count_then_id_length_and_value_of_each():
    written = bytes.fromhex("0002 0505 0001 01 0504 0003 AABBCC")
    options = (wire.capabilities(wire.CAP_MULTISTREAM), wire.user_sid(b"\xaa\xbb\xcc"))
    assert build(OPTIONS, options) == written
    assert parse(OPTIONS, BytesIO(written)) == options


def test_fw_lead_costs_12_bytes():
    written = bytes.fromhex("0001 0406 0008 0102030405060708")
    assert build(OPTIONS, (wire.fw_lead(0x0102030405060708),)) == written
    assert len(written) == wire.OPTIONS_COUNT_LEN + wire.FW_LEAD_OPTION_LEN


@settings(deadline=None, max_examples=100)
@given(st.lists(any_option, max_size=8).map(tuple))
def test_parsing_what_was_built_gives_the_options_unknown_ones_included(options):
    written = build(OPTIONS, options)
    assert parse(OPTIONS, BytesIO(written)) == options
    for length in range(len(written)):
        with pytest.raises(WireError) as caught:
            parse(OPTIONS, BytesIO(written[:length]))
        assert caught.value.reason is DropReason.TRUNCATED


def test_find_returns_the_first_value_or_none():
    options = (Option(9, b"a"), Option(9, b"b"))
    assert wire.find(options, 9) == b"a"
    assert wire.find(options, 8) is None


def test_readers_return_what_makers_made():
    options = (wire.cpu_util(0), wire.mem_util(50), wire.net_util(100), wire.fw_lead(2**64 - 1))
    check_options(options)
    assert wire.utilization(options, OptionId.CPU_UTIL) == 0
    assert wire.utilization(options, OptionId.MEM_UTIL) == 50
    assert wire.utilization(options, OptionId.NET_UTIL) == 100
    assert wire.fw_lead_seq_no(options) == 2**64 - 1


@pytest.mark.parametrize("number", [0, 1, 0x0102030405060708, 2**64 - 1])
def test_fw_lead_is_read_as_it_was_made(number):
    assert wire.fw_lead_seq_no((wire.fw_lead(number),)) == number


def test_security_identifier_is_taken_as_it_is():
    sid = bytes.fromhex("0105 000000000005 15000000 00000000 00000000")
    assert wire.user_sid(sid) == Option(OptionId.USER_SID, sid)


def test_readers_return_none_where_the_option_is_absent():
    assert wire.utilization((), OptionId.CPU_UTIL) is None
    assert wire.fw_lead_seq_no(()) is None


def test_capability_is_looked_for_among_all_bytes_of_the_option():
    assert wire.has_capability((wire.capabilities(7, 1),), wire.CAP_MULTISTREAM)
    assert not wire.has_capability((wire.capabilities(7),), wire.CAP_MULTISTREAM)
    assert not wire.has_capability((wire.capabilities(),), wire.CAP_MULTISTREAM)
    assert not wire.has_capability((), wire.CAP_MULTISTREAM)


@pytest.mark.parametrize("maker", [wire.cpu_util, wire.mem_util, wire.net_util])
@pytest.mark.parametrize("percent", [-1, 101])
def test_percentage_out_of_range_is_not_made(maker, percent):
    with pytest.raises(ValueError, match="percentage"):
        maker(percent)


@pytest.mark.parametrize("option_id", [OptionId.CPU_UTIL, OptionId.MEM_UTIL, OptionId.NET_UTIL])
@pytest.mark.parametrize("value", [b"", b"\x00\x00", b"\x65"])
def test_utilization_that_is_no_percentage_in_one_byte_is_refused(option_id, value):
    with pytest.raises(RuleError, match="percentage") as caught:
        check_options([Option(option_id, value)])
    assert caught.value.reason is DropReason.OPTIONS


@pytest.mark.parametrize("length", [0, 7, 9])
def test_fw_lead_of_another_length_than_8_is_refused(length):
    with pytest.raises(RuleError, match="8 bytes"):
        check_options([Option(OptionId.ODATA_FW_LEAD_SEQ_NO, bytes(length))])


@pytest.mark.parametrize("option_id", OptionId)
def test_known_option_twice_is_refused(option_id):
    value = bytes(8) if option_id is OptionId.ODATA_FW_LEAD_SEQ_NO else b"\x01"
    check_options([Option(option_id, value)])
    with pytest.raises(RuleError, match="twice"):
        check_options([Option(option_id, value), Option(9, b""), Option(option_id, value)])


def test_unknown_options_may_repeat_and_carry_anything():
    check_options([Option(9, b""), Option(9, bytes(300))])


@pytest.mark.parametrize(
    ("count", "readable"), [(MAX_OPTIONS, True), (MAX_OPTIONS + 1, False), (14_000, False)]
)
def test_options_by_the_thousand_are_not_worth_reading(count, readable):
    join = encode(Join("pc", bytes(4), bytes(6)), session_id=1, sender_time=1, security=NoSecurity())
    options = b"".join((0x7000 + number).to_bytes(2, "big") + b"\0\0" for number in range(count))
    datagram = join[:-2] + count.to_bytes(2, "big") + options
    if readable:
        _, packet = decode(datagram, session_id=1, security=NoSecurity())
        assert len(packet.options) == count
    else:
        with pytest.raises(WireError):
            decode(datagram, session_id=1, security=NoSecurity())
