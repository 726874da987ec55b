"""The fast forms of ACK, NACK and NCF against the declarations, on good packets and on broken ones."""

import pytest
from data_batches import MODES, SESSION, STEADY, every_mode
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.wire.answers import decode_answer, encode_answer
from wdstransport.wire.security import ChecksumSecurity
from wdstransport.wire.transport import (
    LOSS_SCALE,
    Ack,
    DropReason,
    Nack,
    Ncf,
    Qcc,
    WireError,
    decode,
    encode,
)

u64 = st.integers(0, 2**64 - 1)
ids = st.integers(0, 2**32 - 1)
losses = st.integers(0, LOSS_SCALE)
ranges = st.lists(st.tuples(u64, u64).map(sorted).map(tuple), max_size=90).map(tuple)
answers = st.one_of(
    st.builds(Ack, ids, u64, u64, u64, losses),
    st.builds(Nack, ids, u64, losses, ranges),
    st.builds(Ncf, ranges),
)


def judged(datagram, security):
    try:
        header, packet = decode(datagram, session_id=SESSION, security=security)
    except WireError as error:
        return error.reason
    return header.sender_time, packet


def sealed(body, security):
    return security.seal(body) + body


def tried(data, security, session=SESSION):
    return decode_answer(memoryview(bytes(data)), session_id=session, security=security)


@every_mode
@given(answer=answers, sender_time=u64)
@settings(STEADY, max_examples=30)
def test_answer_is_encoded_and_decoded_like_the_declaration_does(mode, answer, sender_time):
    security = MODES[mode]()
    fast = encode_answer(answer, session_id=SESSION, sender_time=sender_time, security=security)
    assert fast == encode(answer, session_id=SESSION, sender_time=sender_time, security=security)
    assert tried(fast, security) == (sender_time, answer)


LAST = 2**64 - 1


@every_mode
@pytest.mark.parametrize(
    "answer",
    [
        Ack(2**32 - 1, LAST, LAST - 1, LAST - 2, LOSS_SCALE),
        Nack(2**32 - 1, LAST, LOSS_SCALE, ((LAST - 3, LAST - 1),)),
        Ncf(((LAST - 3, LAST - 1),)),
    ],
)
def test_largest_numbers_of_an_answer_are_written_and_read_whole(mode, answer):
    security = MODES[mode]()
    fast = encode_answer(answer, session_id=SESSION, sender_time=LAST, security=security)
    assert fast == encode(answer, session_id=SESSION, sender_time=LAST, security=security)
    assert tried(fast, security) == (LAST, answer)


@every_mode
@pytest.mark.parametrize("tail", [b"\0", b"\0\0", bytes(8)])
@pytest.mark.parametrize("answer", [Ack(1, 2, 3, 4, 5), Nack(1, 2, 3, ((4, 5),)), Ncf(((4, 5),))])
def test_answer_with_bytes_behind_it_is_left_to_the_declaration(mode, answer, tail):
    security = MODES[mode]()
    data = encode_answer(answer, session_id=SESSION, sender_time=1, security=security)
    longer = sealed(data[security.header_len :] + tail, security)
    assert tried(longer, security) is None
    assert judged(longer, security) is DropReason.TRAILING


@st.composite
def broken_answers(draw):
    security = MODES[draw(st.sampled_from(sorted(MODES)))]()
    answer = draw(answers)
    data = bytearray(encode_answer(answer, session_id=SESSION, sender_time=1, security=security))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    match draw(st.integers(0, 4)):
        case 0:
            data = data[: draw(st.integers(0, len(data)))]
        case 1:
            data += draw(st.binary(max_size=18))
    if len(data) > security.header_len and draw(st.booleans()):
        data[: security.header_len] = security.seal(bytes(data[security.header_len :]))
    return bytes(data), security


@given(broken_answers())
@settings(STEADY, max_examples=300)
def test_broken_answer_is_never_read_where_the_declaration_reads_something_else(case):
    data, security = case
    answer = tried(data, security)
    assert answer is None or answer == judged(data, security)


@pytest.mark.parametrize("flip", [0x01, 0x80])
@pytest.mark.parametrize("answer", [Ack(1, 2, 3, 4, 5), Nack(1, 2, 3, ((4, 5), (7, 7))), Ncf(((4, 5),))])
def test_whichever_byte_of_an_answer_is_changed_it_is_never_read_as_something_else(answer, flip):
    security = ChecksumSecurity()
    whole = encode_answer(answer, session_id=SESSION, sender_time=1, security=security)
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= flip
        for sent in (bytes(data), sealed(bytes(data[security.header_len :]), security)):
            found = tried(sent, security)
            assert found is None or found == judged(sent, security)


@every_mode
def test_answer_cut_at_any_byte_is_left_to_the_declaration(mode):
    security = MODES[mode]()
    for answer in (Ack(1, 2, 3, 4, 5), Nack(1, 2, 3, ((4, 5), (7, 7))), Ncf(((4, 5),))):
        whole = encode_answer(answer, session_id=SESSION, sender_time=1, security=security)
        for length in range(len(whole)):
            assert tried(whole[:length], security) is None
            if length >= security.header_len:
                assert tried(sealed(whole[security.header_len : length], security), security) is None


@pytest.mark.parametrize("place", [-10, -12 - 8])
def test_loss_rate_above_one_is_left_to_the_declaration(place):
    security = ChecksumSecurity()
    answer = Ack(1, 2, 3, 4, 0) if place == -10 else Nack(1, 2, 0, ())
    data = bytearray(encode_answer(answer, session_id=SESSION, sender_time=1, security=security))
    at = len(data) - 10 if place == -10 else len(data) - 12
    data[at : at + 8] = (LOSS_SCALE + 1).to_bytes(8, "big")
    data[: security.header_len] = security.seal(bytes(data[security.header_len :]))
    assert tried(data, security) is None
    assert judged(bytes(data), security) is DropReason.FIELD


def test_range_that_ends_before_it_starts_is_left_to_the_declaration():
    security = ChecksumSecurity()
    data = bytearray(encode_answer(Ncf(((4, 5),)), session_id=SESSION, sender_time=1, security=security))
    data[-18:-10] = (6).to_bytes(8, "big")
    data[: security.header_len] = security.seal(bytes(data[security.header_len :]))
    assert tried(data, security) is None
    assert judged(bytes(data), security) is DropReason.FIELD


@pytest.mark.parametrize("answer", [Ack(1, 2, 3, 4, 5), Nack(1, 2, 3, ((4, 5),)), Ncf(((4, 5),))])
def test_answer_of_another_session_or_without_options_count_is_left_to_the_declaration(answer):
    security = ChecksumSecurity()
    data = encode_answer(answer, session_id=SESSION, sender_time=1, security=security)
    assert tried(data, security, session=SESSION + 1) is None
    short = sealed(data[security.header_len : -2], security)
    assert tried(short, security) is None
    assert judged(short, security) == (1, answer)


def test_packet_of_another_kind_is_left_to_the_declaration():
    security = ChecksumSecurity()
    assert tried(encode(Qcc(1, 2), session_id=SESSION, sender_time=1, security=security), security) is None
