"""The fast form of ODATA and RDATA against the declarations, on good batches and on broken ones."""

import pytest
from data_batches import (
    MODES,
    NO_LEAD,
    SESSION,
    STEADY,
    batch_of,
    block_of,
    check_against_declarations,
    declared,
    every_mode,
    judged,
    parsed,
    slots_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.wire import application
from wdstransport.wire import batch as module
from wdstransport.wire.batch import parse_data, record_of
from wdstransport.wire.layout import DataLayout
from wdstransport.wire.options import Option, fw_lead
from wdstransport.wire.security import ChecksumSecurity, HashSecurity, NoSecurity
from wdstransport.wire.transport import (
    DropReason,
    Kick,
    KickReason,
    Nack,
    OData,
    OpCode,
    Poll,
    RData,
    Spm,
    WireError,
    decode,
    encode,
)

# ---------------------------------------------------------------------- reading what is mixed or cut off


@every_mode
def test_shorter_control_packet_at_the_end_is_left_over(mode):
    security = MODES[mode]()
    data, segment = slots_of(security, 4, 100)
    spm = encode(Spm(1, 7, 1, 2, 3, 4, 5), session_id=SESSION, sender_time=1, security=security)
    assert len(spm) < segment
    records, leftover, dropped = check_against_declarations(data + spm, segment, security)
    assert (records.rows.tolist(), leftover.tolist(), dropped) == ([0, 1, 2, 3], [4], [])


def test_control_packets_of_the_same_length_are_left_over_wherever_they_are():
    security = ChecksumSecurity()
    data, segment = slots_of(security, 2, 100)
    overhead = len(encode(Poll(1, 2, b""), session_id=SESSION, sender_time=1, security=security))
    poll = encode(Poll(1, 2, bytes(segment - overhead)), session_id=SESSION, sender_time=1, security=security)
    assert len(poll) == segment
    for data_rows in ([0, 1], [1, 2], [0, 2]):
        pieces = [poll] * 3
        for row, start in zip(data_rows, (0, segment), strict=True):
            pieces[row] = data[start : start + segment]
        records, leftover, dropped = check_against_declarations(b"".join(pieces), segment, security)
        if data_rows[0] == 0:
            assert records.rows.tolist() == data_rows
            assert len(leftover) == 1
        assert dropped == []


def test_batch_without_any_data_is_left_over_whole():
    security = ChecksumSecurity()
    kick = encode(Kick(((1, KickReason.FAIL),) * 30), session_id=SESSION, sender_time=1, security=security)
    records, leftover, dropped = check_against_declarations(kick * 3, len(kick), security)
    assert records is None
    assert (leftover.tolist(), dropped) == ([0, 1, 2], [])


@every_mode
def test_shorter_last_block_is_left_over(mode):
    security = MODES[mode]()
    data, segment = slots_of(security, 3, 100)
    last = declared(security, 1, 40)
    _, leftover, dropped = check_against_declarations(data + last, segment, security)
    assert (leftover.tolist(), dropped) == ([3], [])


@every_mode
def test_every_place_to_cut_a_batch_leaves_the_whole_datagrams(mode):
    security = MODES[mode]()
    data, segment = slots_of(security, 3, 20)
    for length in range(1, len(data) + 1, 1 if mode in ("none", "checksum") else 7):
        records, leftover, _ = check_against_declarations(data[:length], segment, security)
        whole = length // segment
        assert (0 if records is None else len(records)) == whole
        assert leftover.tolist() == ([] if length == whole * segment else [whole])


def test_empty_batch_is_nothing():
    records, leftover, dropped = parsed(b"", 0, NoSecurity())
    assert (records, len(leftover), dropped) == (None, 0, [])


@every_mode
def test_rdata_without_options_count_is_read_and_odata_is_not(mode):
    security = MODES[mode]()
    for op_code, accepted in ((OpCode.RDATA, True), (OpCode.ODATA, False)):
        whole = declared(security, 1, 30, op_code=op_code, options=False)
        body = whole[security.header_len : -2]
        short = security.seal(body) + body
        records, leftover, dropped = check_against_declarations(short * 2, len(short), security)
        assert (records is not None) is accepted
        assert (len(leftover), dropped) == (0 if accepted else 2, [])
        assert isinstance(judged(short, security), tuple) is accepted


@every_mode
def test_packets_of_another_session_are_left_over(mode):
    security = MODES[mode]()
    data, segment = slots_of(security, 3, 30)
    records, leftover, dropped = parse_data(
        batch_of(data, segment), session_id=SESSION + 1, security=security
    )
    assert records is None
    assert (leftover.tolist(), dropped) == ([0, 1, 2], [])


@pytest.mark.parametrize("sender", MODES)
@pytest.mark.parametrize("reader", MODES)
def test_other_security_modes_never_pass(sender, reader):
    if sender == reader:
        return
    data, segment = slots_of(MODES[sender](), 3, 30)
    records, _, _ = parsed(data, segment, MODES[reader]())
    assert records is None


def test_wrong_key_is_dropped_and_counted():
    data, segment = slots_of(HashSecurity(b"one key"), 3, 30)
    records, leftover, dropped = parsed(data, segment, HashSecurity(b"another"))
    assert records is None
    assert not len(leftover)
    assert sum(count for reason, count in dropped if reason is DropReason.HMAC) == 3


@pytest.mark.parametrize("bad", [[0], [1], [2], [0, 1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize(
    ("mode", "reason"),
    [("checksum", DropReason.CHECKSUM), ("hash", DropReason.HMAC), ("sign", DropReason.SIGNATURE)],
)
def test_datagrams_that_are_not_authentic_are_dropped_and_the_others_kept(mode, reason, bad):
    security = MODES[mode]()
    data, segment = slots_of(security, 3, 30)
    data = bytearray(data)
    for row in bad:
        data[row * segment + DataLayout.of(security.data_len).data + 5] ^= 4
    records, leftover, dropped = check_against_declarations(bytes(data), segment, security)
    assert ([] if records is None else records.rows.tolist()) == [row for row in range(3) if row not in bad]
    assert not len(leftover)
    assert sum(count for why, count in dropped if why is reason) == len(bad)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("checksum", DropReason.CHECKSUM), ("hash", DropReason.HMAC), ("sign", DropReason.SIGNATURE)],
)
@pytest.mark.parametrize(("foreign", "bad"), [((0,), 2), ((1,), 3), ((0, 2), 1), ((0, 1), 4)])
def test_batch_of_all_kinds_at_once_is_told_apart_row_by_row(mode, reason, foreign, bad):
    """Some are of another session, one is not authentic, the last is shorter."""
    security = MODES[mode]()
    data, segment = slots_of(security, 5, 100)
    rows = [bytearray(data[at : at + segment]) for at in range(0, len(data), segment)]
    rows[bad][-20] ^= 4
    for place in foreign:
        body = (SESSION + 1).to_bytes(4, "big") + rows[place][security.header_len + 4 :]
        rows[place] = bytearray(security.seal(bytes(body)) + body)
    last = declared(security, 1, 40)
    records, leftover, dropped = check_against_declarations(b"".join(rows) + last, segment, security)
    assert records.rows.tolist() == [row for row in range(5) if row not in (*foreign, bad)]
    assert leftover.tolist() == [*foreign, 5]
    assert dropped == [(reason, 1)]


@pytest.mark.parametrize("length", range(1, 13))
def test_data_shorter_than_its_own_header_is_left_over(length):
    """DataLen counts the application's header, too (MS-WDSMA 2.2.4): what is less leaves no block."""
    security = NoSecurity()
    whole = bytearray(declared(security, 1, length - 1, op_code=OpCode.RDATA, options=False))
    at = DataLayout.of(0).header.fields["data_len"][1]
    whole[at : at + 2] = length.to_bytes(2, "big")
    records, leftover, dropped = parsed(bytes(whole) * 2, len(whole), security)
    assert (records, leftover.tolist(), dropped) == (None, [0, 1], [])


def test_batch_larger_than_any_table_is_read():
    data, segment = slots_of(NoSecurity(), 1600, 4)
    records, leftover, dropped = parsed(data, segment, NoSecurity())
    assert (len(records), len(leftover), dropped) == (1600, 0, [])
    assert records.odata_seq_no.tolist() == list(range(101, 1701))
    assert records.rows.tolist() == list(range(1600))


# ---------------------------------------------------------------------- reading what is broken


@st.composite
def broken_batches(draw):
    mode = draw(st.sampled_from(["none", "checksum", "checksum", "hash", "sign"]))
    security = MODES[mode]()
    op_code, options = draw(
        st.sampled_from([(OpCode.ODATA, True), (OpCode.ODATA, False), (OpCode.RDATA, False)])
    )
    count, block_len = draw(st.integers(1, 5)), draw(st.sampled_from([0, 1, 2, 13, 14, 40]))
    data, segment = slots_of(security, count, block_len, op_code=op_code, options=options)
    data = bytearray(data)
    head = DataLayout.of(security.data_len).data
    for _ in range(draw(st.integers(0, 6))):
        row = draw(st.integers(0, count - 1))
        # The header and the options decide; SecurityData and the block are hit now and then.
        offset = draw(
            st.one_of(
                st.integers(0, 4),
                st.integers(security.header_len, head - 1),
                st.integers(head, segment - 1),
                st.integers(max(0, segment - 16), segment - 1),
                st.integers(0, segment - 1),
            )
        )
        if offset < segment:
            place = row * segment + offset
            data[place] = draw(
                st.one_of(
                    st.integers(0, 255), st.just(data[place] ^ 1), st.sampled_from([0, 1, 6, 7, 13, 14])
                )
            )
    for row in draw(st.sets(st.integers(0, count - 1))):
        # Sealed again, so that it is judged by its fields.
        start = row * segment
        body = bytes(data[start + security.header_len : start + segment])
        data[start : start + security.header_len] = security.seal(body)
    if draw(st.integers(0, 3)) == 0:
        data += encode(
            Nack(7, 1, 0, ((1, 2),) * draw(st.integers(0, 4))),
            session_id=SESSION,
            sender_time=1,
            security=security,
        )[:segment]
    if draw(st.integers(0, 3)) == 0:
        data = data[: draw(st.integers(1, len(data)))]
    return bytes(data), segment, security


@given(broken_batches())
@settings(STEADY, max_examples=250)
def test_whatever_is_broken_the_fast_form_agrees_with_the_declarations(case):
    data, segment, security = case
    records, leftover, _ = check_against_declarations(data, segment, security)
    batch = batch_of(data, segment)
    rows = set() if records is None else set(records.rows.tolist())
    for row in range(-(-len(data) // segment)):
        verdict = judged(bytes(batch.datagram(row)), security)
        if isinstance(verdict, tuple):
            # Nothing that the declarations accept is lost, and nothing but data is in the records.
            assert (row in rows) != (row in leftover)
            if not isinstance(verdict[1], OData | RData):
                assert row in leftover


@pytest.mark.parametrize("flip", [0x01, 0x80])
@pytest.mark.parametrize("shape", ["ODATA with FW_LEAD", "RDATA", "RDATA without OptionsCount"])
def test_whichever_byte_of_a_datagram_is_changed_it_is_judged_as_declared_and_the_others_read(shape, flip):
    security = NoSecurity()
    op_code = OpCode.ODATA if shape.startswith("ODATA") else OpCode.RDATA
    whole = declared(security, 3, 2, op_code=op_code, options=op_code is OpCode.ODATA)
    if "without" in shape:
        whole = b"".join(whole[at : at + len(whole) // 3 - 2] for at in range(0, len(whole), len(whole) // 3))
    segment = len(whole) // 3
    assert len(check_against_declarations(whole, segment, security)[0]) == 3
    for place in range(segment):
        data = bytearray(whole)
        data[segment + place] ^= flip
        records, _, _ = check_against_declarations(bytes(data), segment, security)
        assert {0, 2} <= set(records.rows.tolist())


@given(st.binary(min_size=1, max_size=300), st.integers(1, 320), st.sampled_from(sorted(MODES)))
@settings(STEADY, max_examples=100)
def test_any_bytes_are_judged_like_the_declarations_judge_them(data, segment, mode):
    check_against_declarations(data, segment, MODES[mode]())


@given(st.integers(1, 4), st.integers(0, 30), st.binary(max_size=8), st.integers(1, 200))
@settings(STEADY, max_examples=60)
def test_segment_that_does_not_fit_the_datagrams_accepts_nothing_wrong(count, block_len, rest, segment):
    security = ChecksumSecurity()
    data, _ = slots_of(security, count, block_len)
    check_against_declarations(data + rest, segment, security)


# ---------------------------------------------------------------------- a lone datagram


@every_mode
@pytest.mark.parametrize("kind", [OData, RData])
@pytest.mark.parametrize(
    ("options", "lead"),
    [
        ((), NO_LEAD),
        ((fw_lead(77),), 77),
        ((Option(0x0999, b"abc"),), NO_LEAD),
        ((Option(0x0999, b""), fw_lead(0)), 0),
    ],
)
def test_record_of_one_datagram_is_what_was_decoded(mode, kind, options, lead):
    security = MODES[mode]()
    inner = application.Data(2**40, block_of(3, 33))
    packet = kind(9, 2**50, 2**49, application.encode(inner), options)
    datagram = encode(packet, session_id=SESSION, sender_time=2**60, security=security)
    _, read = decode(datagram, session_id=SESSION, security=security)
    record = record_of(read, batch_of(datagram, len(datagram)), security)
    assert len(record) == 1
    assert record.rows.tolist() == [0]
    assert record.header["op_code"].tolist() == [kind.op_code]
    assert record.header["sender_time"].tolist() == [2**60]
    assert record.client_id.tolist() == [9]
    assert record.odata_seq_no.tolist() == [2**50]
    assert record.trail_odata_seq_no.tolist() == [2**49]
    assert record.block_number.tolist() == [2**40]
    assert record.fw_lead.tolist() == [lead]
    assert (record.block_len, record.data_len) == (33, 46)
    assert datagram[record.data_offset : record.data_offset + 33] == inner.data


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        application.encode(application.Data(1, b""))[:-1],
        application.encode(application.SrvCir()),
        application.encode(application.CntCir(1, 2, ((1, 2),))),
        application.encode(application.Data(1, b"abc")) + b"\0",
        application.encode(application.Data(1, b"abc"))[:-1],
        b"\x00\x10\x03" + bytes(8) + b"\x00\x02abc",
        b"\x00\x10\x02" + bytes(8) + b"\x00\x03abc",
        b"\x00\x11\x03" + bytes(8) + b"\x00\x03abc",
    ],
)
def test_payload_that_is_no_data_packet_has_no_record(payload):
    datagram = encode(OData(1, 1, 1, payload), session_id=SESSION, sender_time=1, security=NoSecurity())
    _, packet = decode(datagram, session_id=SESSION, security=NoSecurity())
    assert record_of(packet, batch_of(datagram, len(datagram)), NoSecurity()) is None


@given(st.binary(max_size=30))
@STEADY
def test_record_exists_exactly_where_the_declaration_reads_data(payload):
    datagram = encode(OData(1, 1, 1, payload), session_id=SESSION, sender_time=1, security=NoSecurity())
    _, packet = decode(datagram, session_id=SESSION, security=NoSecurity())
    record = record_of(packet, batch_of(datagram, len(datagram)), NoSecurity())
    try:
        inner = application.decode(payload)
    except WireError:
        inner = None
    assert (record is not None) == isinstance(inner, application.Data)


# ---------------------------------------------------------------------- Batch


def test_batch_hands_out_its_datagrams_without_copying():
    data = bytearray(b"aaabbbcc")
    batch = batch_of(data, 3)
    assert [bytes(each) for each in batch.datagrams()] == [b"aaa", b"bbb", b"cc"]
    assert [bytes(batch.datagram(row)) for row in range(3)] == [b"aaa", b"bbb", b"cc"]
    data[0] = ord("x")
    assert bytes(batch.datagram(0)) == b"xaa"


def test_batch_of_one_is_its_buffer():
    assert [bytes(each) for each in batch_of(b"abc", 3).datagrams()] == [b"abc"]
    assert list(batch_of(b"", 0).datagrams()) == []


def without_options_count(data, segment):
    return b"".join(data[at : at + segment - 2] for at in range(0, len(data), segment)), segment - 2


@every_mode
@pytest.mark.parametrize(
    ("op_code", "options"), [(OpCode.ODATA, True), (OpCode.ODATA, False), (OpCode.RDATA, False)]
)
def test_usual_batch_is_judged_at_once_and_not_field_by_field(monkeypatch, mode, op_code, options):
    security = MODES[mode]()
    data, segment = slots_of(security, 5, 40, options=options, op_code=op_code)
    monkeypatch.setattr(module, "_good", None)
    records, leftover, dropped = parsed(data, segment, security)
    assert records.block_number.tolist() == [11, 12, 13, 14, 15]
    assert (leftover.tolist(), dropped) == ([], [])


def test_rdata_without_options_count_is_judged_at_once_too(monkeypatch):
    security = NoSecurity()
    data = without_options_count(*slots_of(security, 3, 40, options=False, op_code=OpCode.RDATA))
    monkeypatch.setattr(module, "_good", None)
    records, leftover, _ = parsed(*data, security)
    assert (records.block_number.tolist(), leftover.tolist()) == ([11, 12, 13], [])


@pytest.mark.parametrize("options", [True, False])
def test_batch_of_other_packets_that_look_like_data_is_left_over_whole(options):
    security = NoSecurity()
    data, segment = slots_of(security, 4, 40, options=options)
    other = bytearray(data)
    for at in range(data.index(bytes([OpCode.ODATA])), len(data), segment):
        assert other[at] == OpCode.ODATA
        other[at] = OpCode.POLL
    records, leftover, dropped = parsed(bytes(other), segment, security)
    assert (records, leftover.tolist(), dropped) == (None, [0, 1, 2, 3], [])


def test_content_that_looks_like_fw_lead_is_not_taken_for_options():
    security = NoSecurity()
    content = b"content" + bytes.fromhex("0001 0406 0008") + bytes(8)
    packet = OData(7, 101, 90, application.encode(application.Data(11, content)))
    whole = encode(packet, session_id=SESSION, sender_time=1, security=security)
    without, beyond = whole[:-2], whole[:-2] + b"\0\1"
    for datagram in (without, beyond):
        assert isinstance(judged(datagram, security), DropReason)
        records, leftover, dropped = parsed(datagram * 3, len(datagram), security)
        assert (records, leftover.tolist(), dropped) == (None, [0, 1, 2], [])


def test_odata_without_options_count_is_left_over_whole():
    security = NoSecurity()
    data = without_options_count(*slots_of(security, 4, 40, options=False))
    records, leftover, _ = parsed(*data, security)
    assert (records, leftover.tolist()) == (None, [0, 1, 2, 3])
