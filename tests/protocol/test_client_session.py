"""A client's session as its driver sees it: datagrams in, datagrams, blocks and deadlines out."""

import math

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_scripts import STEADY, T, ms, snapshot
from session_scripts import ME, SERVER, SESSION, ClientWire, broken, data_batch, payload_of

from wdstransport.protocol.events import AllReceived, BlockRun, BlocksArrived, Demoted, Departed, Joined, Left
from wdstransport.protocol.timers import ClientTimer
from wdstransport.wire.application import Data, SrvCir
from wdstransport.wire.application import decode as decode_application
from wdstransport.wire.application import encode as encode_application
from wdstransport.wire.batch import Batch
from wdstransport.wire.options import Option, fw_lead
from wdstransport.wire.security import ChecksumSecurity, HashSecurity, NoSecurity, SignSecurity
from wdstransport.wire.transport import (
    Ack,
    Demote,
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
    Qcc,
    Qcr,
    RData,
    Spm,
    WireError,
    decode,
    encode,
)


@pytest.fixture
def client():
    return ClientWire().regular()


def arrived(client):
    return [event for event in client.session.take_events() if isinstance(event, BlocksArrived)]


def content(event):
    """The blocks of an event, cut out of its batch."""
    batch = event.batch
    return [
        bytes(batch.datagram(run.first_row + row))[event.data_offset : event.data_offset + event.block_len]
        for run in event.runs
        for row in range(run.rows)
    ]


# ---------------------------------------------------------------------- joining


@pytest.mark.parametrize("uptime", [0.0, 5_000_000.0], ids=["minutes", "two months"])
@pytest.mark.parametrize("later", [0.0, 0.003, 0.0039])
def test_join_leaves_at_once_with_the_time_of_leaving(later, uptime):
    client = ClientWire(name="node-17", now=T + uptime)
    ((header, join),) = client.sent(T + uptime + later)
    assert (header.session_id, header.sender_time) == (SESSION, ms(T + uptime + later))
    assert isinstance(join, Join)
    assert join.client_name == "node-17"


def test_joinack_to_the_join_that_left_is_accepted():
    client = ClientWire()
    ((header, _),) = client.sent(T + 0.003)
    client.hear(JoinAck(ME, 1, 1, 0, header.sender_time), T + 0.01, multicast=False, sender_time=88)
    assert [packet for _, packet in client.sent(T + 0.01)] == [Qcr(ME, 0, 0, 88, 0, 0, b"")]
    assert client.session.take_events() == [Joined(ME)]


def test_joinack_on_the_groups_socket_is_not_for_us():
    client = ClientWire()
    client.sent(T)
    join_ack = client.sealed(JoinAck(ME, 1, 1, 0, ms(T)))
    client.hear(join_ack, T, multicast=True)
    client.hear(join_ack * 2, T, multicast=True, segment=len(join_ack))
    assert client.session.dropped == {"not_for_us": 3}
    assert client.sent(T) == []
    assert client.session.take_events() == []


def test_joinack_behind_data_on_the_groups_socket_is_not_for_us(client):
    data = client.data(1, 1, 2)
    join_ack = client.sealed(JoinAck(ME + 1, 1, 1, 0, ms(T)))
    client.hear(data + join_ack, T, segment=len(data) // 2)
    assert client.session.dropped == {"not_for_us": 1}
    assert client.transport.client_id == ME


# ---------------------------------------------------------------------- the door


def test_everything_from_another_address_is_dropped_and_counted(client):
    data = client.data(1, 1, 3)
    for source in ((SERVER[0], SERVER[1] + 1), ("10.0.0.98", SERVER[1])):
        client.hear(data, T, source=source, segment=len(data) // 3)
    assert client.session.dropped == {"foreign_source": 6}
    assert client.session.datagrams == 7
    assert arrived(client) == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda good: good[:-1], "truncated"),  # a zero less is the same sum
        (lambda good: good[:-3], "checksum"),
        (lambda good: good[:7], "truncated"),
        (lambda good: b"XX" + good[2:], "not_wds"),
        (lambda good: good[:2] + b"\0" + good[3:], "security_type"),
        (lambda good: good[:4] + b"\x05" + good[5:], "security_length"),
        (lambda good: good[:-1] + bytes([good[-1] ^ 1]), "checksum"),
    ],
)
def test_damaged_packet_is_dropped_and_counted_by_its_reason(client, damage, reason):
    client.hear(damage(client.sealed(Spm(1, ME, 1, 1, 0, 5, 1))), T)
    assert client.session.dropped == {reason: 1}
    assert client.sent(T) == []


@pytest.mark.parametrize("security", [NoSecurity(), ChecksumSecurity(), HashSecurity(b"key")])
@pytest.mark.parametrize("what", ["data", "spm"])
def test_packet_that_ends_at_any_byte_is_dropped_and_counted(security, what):
    client = ClientWire(client_security=security, server_security=security).regular()
    whole = client.data(1, 1, 1) if what == "data" else client.sealed(Spm(1, ME, 1, 1, 0, 5, 1))
    known = snapshot(client.transport)
    # Without a checksum a packet may also end before its OptionsCount (deviation 13).
    lengths = range(1, len(whole) - 2)
    for length in lengths:
        client.hear(whole[:length], T)
    assert client.session.dropped.total() == len(lengths)
    assert snapshot(client.transport) == known
    assert client.sent(T) == []


@pytest.mark.parametrize("packet", [Ack(ME, 1, 2, 3, 4), Nack(ME, 1, 2, ((1, 2),))])
def test_answer_of_another_client_is_counted_once(client, packet):
    client.hear(packet, T)
    assert client.session.dropped == {"state": 1}


def test_packet_of_another_session_is_dropped(client):
    client.hear(client.sealed(Qcc(1, 0), session_id=SESSION + 1), T)
    data = client.data(1, 1, 2, session_id=SESSION + 1)
    client.hear(data, T, segment=len(data) // 2)
    assert client.session.dropped == {"session_id": 3}
    assert client.session.next_deadline() > T


@pytest.mark.parametrize("place", [-64, -20, -10], ids=["SenderTime", "block", "options"])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_one_bad_checksum_in_a_batch_costs_one_datagram(client, bad, place):
    data = bytearray(client.data(1, 1, 3))
    segment = len(data) // 3
    data[(bad + 1) * segment + place] ^= 0x10
    client.hear(data, T, segment=segment)
    assert client.session.dropped == {"checksum": 1}
    blocks = [
        run.first_block + row for event in arrived(client) for run in event.runs for row in range(run.rows)
    ]
    assert blocks == [block for block in (1, 2, 3) if block != bad + 1]


@pytest.mark.parametrize("bad", [(0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_every_bad_checksum_of_a_batch_is_counted(client, bad):
    data = bytearray(client.data(1, 1, 3))
    segment = len(data) // 3
    for place in bad:
        data[(place + 1) * segment - 20] ^= 0x10
    client.hear(data, T + 9, segment=segment)
    assert client.session.dropped == {"checksum": len(bad)}
    heard = len(bad) < 3
    assert client.transport.timers.get(ClientTimer.INACTIVITY) == T + (39 if heard else 30)
    assert sum(event.count for event in arrived(client)) == 3 - len(bad)


@pytest.mark.parametrize("packet", [Ncf(((1, 2),)), Qcc(1, 0)])
def test_packet_that_another_client_could_have_sealed_is_dropped(packet):
    """Every client has the HMAC's key; only the server can sign (MS-WDSMSI 3.1.5.1)."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    everybody = HashSecurity(b"k" * 24)
    client = ClientWire(client_security=everybody, server_security=SignSecurity(private)).regular()
    forged = encode(packet, session_id=SESSION, sender_time=66, security=everybody)
    client.hear(forged, T + 9)
    assert client.session.dropped == {"security_type": 1}
    assert client.transport.timers.get(ClientTimer.INACTIVITY) == T + 30


def test_lone_datagram_shorter_than_its_batch_says_is_counted_and_read(client):
    for packet in (client.data(1, 1, 1), client.sealed(Spm(1, ME, 0, 0, 1, 1, 0))):
        client.hear(packet, T, segment=len(packet) + 100)
    assert [event.count for event in arrived(client)] == [1]
    assert len(client.sent(T)) == 2
    assert client.session.datagrams == 3  # and the JOINACK


def test_empty_batch_is_nothing(client):
    before = snapshot(client.session)
    client.session.receive(Batch(memoryview(b""), 0, SERVER), T, multicast=True)
    assert snapshot(client.session) == before
    assert not client.session.dropped.total()
    assert client.session.datagrams == 1  # the JOINACK


# ---------------------------------------------------------------------- data


@pytest.mark.parametrize("op_code", [OpCode.ODATA, OpCode.RDATA])
def test_batch_of_data_is_one_event_whose_bytes_can_be_found(client, op_code):
    data = client.data(1, 21, 5, op_code=op_code)
    client.hear(data, T, segment=len(data) // 5)
    (event,) = arrived(client)
    assert (event.runs, event.count, event.block_len) == ([BlockRun(0, 5, 21)], 5, 10)
    assert content(event) == [payload_of(block, 10) for block in range(21, 26)]
    assert event.charged == 5 * 23


def test_batch_gets_one_ack(client):
    data = client.data(1, 1, 5)
    client.hear(data, T, segment=len(data) // 5)
    assert [packet for _, packet in client.sent(T)] == [Ack(ME, 5, 900, 5, 0)]


def test_ack_is_encoded_like_any_packet(client):
    client.hear(Spm(1, ME, 0, 0, 0, 0, 0), T)
    (datagram,) = client.session.take_outgoing(T + 1)
    assert datagram == encode(
        Ack(ME, 0, 66, 0, 0), session_id=SESSION, sender_time=ms(T + 1), security=client.client_security
    )


def test_acks_of_one_number_tell_each_what_it_answers(client):
    for number, sent_at in ((1, 66), (2, 67)):
        client.hear(Spm(number, ME, 0, 0, 0, 0, 0), T, sender_time=sent_at)
    assert [packet for _, packet in client.sent(T)] == [Ack(ME, 0, 66, 0, 0), Ack(ME, 0, 67, 0, 0)]


def test_last_block_is_shorter_and_comes_alone_at_the_end_of_a_batch():
    client = ClientWire(total_blocks=3).regular()
    client.session.application.content_size = 25
    data = client.data(1, 1, 2)
    segment = len(data) // 2
    client.hear(data + client.data(3, 3, 1, block_len=5), T, segment=segment)
    first, last = arrived(client)
    assert first.runs == [BlockRun(0, 2, 1)]
    ((_, count, block),) = last.runs
    assert (block, count, last.block_len, last.charged) == (3, 1, 5, 18)
    assert content(last) == [payload_of(3, 5)]
    assert client.session.application.complete


def test_control_packet_behind_the_data_of_a_batch_is_processed_after_it(client):
    data = client.data(1, 1, 2, block_len=10)
    spm = client.sealed(Spm(1, ME, 0, 0, 1, 4, 0))
    assert len(spm) < len(data) // 2
    client.hear(data + spm, T, segment=len(data) // 2)
    acks = [packet for _, packet in client.sent(T) if isinstance(packet, Ack)]
    assert [(ack.odata_seq_no, ack.server_time) for ack in acks] == [(2, 900), (2, 66)]


KICK_AS_LONG = Kick((*((client, KickReason.FAIL) for client in range(100, 110)), (ME, KickReason.FAIL)))


def kick_and_data(client):
    """A KICK that is exactly as long as a data datagram of 10-byte blocks, and two of those."""
    kick = client.sealed(KICK_AS_LONG)
    data = client.data(1, 1, 2)
    assert len(kick) == len(data) // 2
    return kick, data


def test_control_packet_before_the_data_of_a_batch_is_processed_before_it(client):
    kick, data = kick_and_data(client)
    client.hear(kick + data, T, segment=len(kick))
    assert arrived(client) == []
    assert client.session.dropped == {"state": 2}


def test_data_before_a_control_packet_of_the_same_length_is_still_delivered(client):
    kick, data = kick_and_data(client)
    client.hear(data + kick, T, segment=len(kick))
    assert [event.count for event in arrived(client)] == [2]
    client.session.handle_timers(T + 1)
    assert client.session.over


def test_control_packet_between_data_of_the_same_length_is_processed_after_it(client):
    kick, data = kick_and_data(client)
    client.hear(data[: len(kick)] + kick + data[len(kick) :], T, segment=len(kick))
    assert [event.count for event in arrived(client)] == [2]
    assert not client.session.dropped
    client.session.handle_timers(T + 1)
    assert client.session.over


def test_control_packets_that_came_together_are_each_processed(client):
    spm, qcc = client.sealed(Spm(1, ME, 1, 1, 0, 5, 1)), client.sealed(Qcc(1, 0))
    client.hear(spm + qcc, T, segment=len(spm))
    assert [packet.odata_seq_no for _, packet in client.sent(T) if isinstance(packet, Ack)] == [4]
    client.session.handle_timers(T)
    assert [packet.qcc_seq_no for _, packet in client.sent(T) if isinstance(packet, Qcr)] == [1]
    assert not client.session.dropped


def test_answers_that_are_the_same_leave_as_often_as_they_were_given(client):
    ack, other, nack = Ack(ME, 1, 2, 3, 4), Ack(ME, 2, 2, 3, 4), Nack(ME, 1, 2, ((1, 2),))
    report = Qcr(ME, 0, 0, 0, 0, 0, b"")
    packets = [ack, ack, ack, other, other, ack, nack, ack, report, ack, report, nack, report, report, nack]
    for packet in packets:
        client.transport.outbox.put(packet)
    assert [packet for _, packet in client.sent(T)] == packets


def test_data_with_options_of_others_is_delivered_one_by_one(client):
    block = encode_application(Data(4, payload_of(4, 10)))
    for options in ((Option(0x0999, b"new"),), (fw_lead(0), Option(0x0999, b""))):
        client.hear(OData(ME, 1, 1, block, options), T)
    (event,) = arrived(client)
    assert (event.runs[0].first_block, content(event)) == (4, [payload_of(4, 10)])
    assert [packet.odata_seq_no for _, packet in client.sent(T) if isinstance(packet, Ack)] == [1]


class Slab:
    """Somebody who lends the memory of a batch."""

    def hold(self):
        """Nothing here is used again."""

    def release(self):
        """Nor here."""


def test_blocks_that_came_alone_name_whose_memory_they_lie_in(client):
    owner = Slab()
    for number, options in ((1, ()), (2, (Option(0x0999, b"new"),))):
        block = encode_application(Data(number, payload_of(number, 10)))
        data = client.sealed(OData(ME, number, 1, block, options))
        client.session.receive(Batch(memoryview(data), len(data), SERVER, owner), T, multicast=True)
    assert [event.batch.owner for event in arrived(client)] == [owner, owner]


@pytest.mark.parametrize("payload", [b"", b"junk", encode_application(SrvCir())])
def test_data_packet_without_a_block_inside_is_dropped(client, payload):
    client.hear(OData(ME, 1, 1, payload), T)
    assert client.session.dropped == {"field": 1}
    assert client.sent(T) == []


def test_blocks_are_credited_when_they_are_stored(client):
    data = client.data(1, 1, 5)
    assert client.session.cache_room == 2_097_152
    client.hear(data, T, segment=len(data) // 5)
    (event,) = arrived(client)
    assert client.session.cache_room == 2_097_152 - 5 * 23
    client.session.stored(event, T + 1)
    assert client.session.cache_room == 2_097_152


def test_room_of_the_cache_is_what_its_size_leaves():
    client = ClientWire(max_cache_size=100).regular()
    assert (client.session.cache_size, client.session.cache_room) == (100, 100)
    client.hear(client.data(1, 1, 1), T)
    assert (client.session.cache_size, client.session.cache_room) == (100, 77)


def test_all_received_is_told_once_and_after_the_blocks():
    client = ClientWire(total_blocks=3).regular()
    data = client.data(1, 1, 3)
    client.hear(data, T, segment=len(data) // 3)
    events = client.session.take_events()
    assert [type(event) for event in events] == [BlocksArrived, AllReceived]
    assert not client.session.over
    client.hear(client.data(4, 1, 1), T)
    assert client.session.take_events() == []


def test_client_that_has_everything_already_is_told_at_once():
    assert ClientWire(have=[(1, 100)]).session.take_events() == [AllReceived()]


def test_numbers_that_wrap_around_are_answered_with_packets_that_can_be_written(client):
    last = client.data(2**64 - 1, 1, 1)
    zero = client.data(0, 2, 1, trail=0)
    client.hear(last + zero, T, segment=len(last))
    client.session.take_outgoing(T)


# ---------------------------------------------------------------------- every security mode


def securities():
    private = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    return [
        (NoSecurity, NoSecurity, NoSecurity),
        (ChecksumSecurity, ChecksumSecurity, ChecksumSecurity),
        (lambda: HashSecurity(b"k" * 24), lambda: HashSecurity(b"k" * 24), lambda: HashSecurity(b"k" * 24)),
        (
            lambda: HashSecurity(b"k" * 24),
            lambda: SignSecurity(private),
            lambda: SignSecurity(private.public_key()),
        ),
    ]


@pytest.mark.parametrize("number", range(4))
def test_transfer_works_in_every_security_mode(number):
    of_client, of_server, seen_by_client = securities()[number]
    client = ClientWire(client_security=of_client(), server_security=of_server())
    client.session._server_security = seen_by_client()
    client.sent(T)
    client.regular()
    data = client.data(1, 1, 4)
    client.hear(data, T, segment=len(data) // 4)
    assert [event.count for event in arrived(client)] == [4]
    assert [packet.odata_seq_no for _, packet in client.sent(T)] == [4]
    assert not client.session.dropped.total()


# ---------------------------------------------------------------------- inactivity


def test_every_accepted_packet_resets_the_inactivity_timer(client):
    now = T
    packets = [
        Spm(1, 0, 0, 0, 0, 0, 0),
        Qcc(1, 0),
        Poll(1, 0, encode_application(SrvCir())),
        Ncf(()),
        Kick(()),
        Demote(1, bytes(4), 1, bytes(4), 1, ()),
        client.data(1, 1, 1),
        OData(ME, 2, 1, encode_application(Data(2, payload_of(2, 10))), (Option(0x999, b""),)),
    ]
    for packet in packets:
        now += 1
        client.hear(packet, now)
        assert client.transport.timers.get(ClientTimer.INACTIVITY) == now + 30


def test_first_joinack_resets_the_inactivity_timer():
    client = ClientWire()
    client.hear(JoinAck(ME, 0, 0, 0, ms(T)), T + 9, multicast=False)
    assert client.transport.timers.get(ClientTimer.INACTIVITY) == T + 39


def test_another_joinack_does_not_reset_the_inactivity_timer_since_it_shows_nothing_of_the_group(client):
    client.hear(JoinAck(ME, 0, 0, 0, ms(T)), T + 9, multicast=False)
    assert client.transport.timers.get(ClientTimer.INACTIVITY) == T + 30
    assert not client.session.dropped


def test_another_joinack_that_answers_no_join_of_this_client_is_counted_as_dropped(client):
    client.hear(JoinAck(ME, 0, 0, 0, ms(T + 60)), T + 9, multicast=False)
    assert client.session.dropped == {"not_for_us": 1}


def test_dropped_control_packets_do_not_reset_the_inactivity_timer(client):
    client.hear(Qcc(5, 0), T)
    for packet in (Qcc(5, 0), client.sealed(Qcc(6, 0))[:-1], Leave(ME, LeaveReason.COMPLETE)):
        client.hear(packet, T + 9)
    client.hear(Qcc(6, 0), T + 9, source=("10.9.9.9", 1))
    assert client.transport.timers.get(ClientTimer.INACTIVITY) == T + 30


@pytest.mark.parametrize("count", [1, 3])
def test_dropped_data_is_counted_and_does_not_reset_the_inactivity_timer(client, count):
    data = client.data(1, 101, count)
    client.hear(data, T + 9, segment=len(data) // count)
    assert client.session.dropped == {"field": count}
    assert client.transport.timers.get(ClientTimer.INACTIVITY) == T + 30


def test_data_of_which_some_is_dropped_resets_the_inactivity_timer(client):
    client.hear(client.data(50, 50, 1), T)
    data = client.data(48, 48, 4)
    client.hear(data, T + 9, segment=len(data) // 4)
    assert client.session.dropped == {"stale": 2}
    assert client.transport.timers.get(ClientTimer.INACTIVITY) == T + 39


def test_what_the_client_does_itself_does_not_reset_the_inactivity_timer(client):
    client.hear(client.data(1, 1, 1), T)
    (event,) = arrived(client)
    client.hear(Poll(1, 0, encode_application(SrvCir())), T)
    client.session.handle_timers(T + 4)
    assert len(client.sent(T + 4)) == 2
    client.session.stored(event, T + 4)
    assert client.transport.timers.get(ClientTimer.INACTIVITY) == T + 30


def test_data_that_does_not_answer_a_join_does_not_keep_a_client_waiting_for_ever():
    client = ClientWire()
    for second in range(1, 60):
        client.hear(client.data(second, 1, 1), T + second)
        client.session.handle_timers(T + second)
    assert client.session.over


# ---------------------------------------------------------------------- leaving


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (Left.COMPLETE, LeaveReason.COMPLETE),
        (Left.CANCELLED, LeaveReason.CANCELLED),
        (Left.INACTIVE, LeaveReason.INACTIVE),
    ],
)
def test_leave_says_why_and_is_the_last_word(client, why, reason):
    client.session.leave(why, T)
    assert not client.session.over
    client.session.handle_timers(T + 0.2)
    assert [packet for _, packet in client.sent(T + 0.2)] == [Leave(ME, reason)]
    assert client.session.take_events() == [Departed(why)]
    assert client.session.over
    assert client.session.next_deadline() == math.inf
    client.hear(Qcc(1, 0), T + 1)
    data = client.data(1, 1, 3)
    client.hear(data, T + 1, segment=len(data) // 3)
    assert client.session.dropped == {"state": 4}
    assert client.session.datagrams == 5  # and the JOINACK
    client.session.leave(Left.CANCELLED, T + 1)
    client.session.handle_timers(T + 60)
    assert client.sent(T + 60) == []
    assert client.session.take_events() == []


@pytest.mark.parametrize("count", [1, 44, 352])
def test_stored_blocks_leave_nothing_charged_however_many_came_together(count):
    size = 1000
    client = ClientWire(total_blocks=1000, block_size=size).regular()
    data = client.data(1, 1, count, block_len=size)
    client.hear(data, T, segment=len(data) // count)
    (event,) = arrived(client)
    assert client.session.cache_room < client.session.cache_size
    client.session.stored(event, T)
    assert client.session.cache_room == client.session.cache_size


def test_demoted_client_joins_the_lower_session_with_its_blocks(client):
    data = client.data(1, 1, 40)
    client.hear(data, T, segment=len(data) // 40)
    (event,) = arrived(client)
    client.hear(Demote(9, bytes([239, 1, 1, 1]), 77, bytes([10, 0, 0, 5]), 78, (ME,)), T + 1)
    client.session.handle_timers(T + 2)
    assert [packet for _, packet in client.sent(T + 2)][-1:] == [Leave(ME, LeaveReason.CANCELLED)]
    assert client.session.take_events() == [Demoted(9, bytes([239, 1, 1, 1]), 77, bytes([10, 0, 0, 5]), 78)]
    heard = client.session.datagrams
    client.session.enter_lower_session(9, ("10.0.0.5", 78), T + 2)
    assert client.session.datagrams == heard > 40
    client.transport = client.session.transport
    ((header, join),) = client.sent(T + 2)
    assert header.session_id == 9
    assert isinstance(join, Join)
    assert client.session.application.blocks.count == 40
    assert client.session.cache_room == 2_097_152 - 40 * 23
    client.session.stored(event, T + 2)
    assert client.session.cache_room == 2_097_152
    client.hear(Qcc(1, 0), T + 3)
    assert client.session.dropped == {"foreign_source": 1}
    lower = client.sealed(JoinAck(70, 0, 0, 0, ms(T + 2)), session_id=9)
    client.hear(lower, T + 3, multicast=False, source=("10.0.0.5", 78))
    assert client.session.take_events() == [Joined(70)]
    assert client.transport.data.first == 0
    client.hear(client.data(5, 41, 1, session_id=9), T + 3, source=("10.0.0.5", 78))
    assert [event.runs for event in arrived(client)] == [[BlockRun(0, 1, 41)]]
    client.hear(client.data(6, 42, 1), T + 3, source=("10.0.0.5", 78))
    assert client.session.dropped == {"foreign_source": 1, "session_id": 1}


def test_counts_go_on_in_the_lower_session_and_everything_is_told_once():
    client = ClientWire(total_blocks=3, name="node-17", join_interval=9.0).regular()
    client.hear(b"junk", T)
    data = client.data(1, 1, 3)
    client.hear(data, T, segment=len(data) // 3)
    client.hear(client.data(4, 2, 1), T)
    assert AllReceived() in client.session.take_events()
    client.hear(Demote(9, bytes(4), 77, bytes(4), 78, (ME,)), T + 1)
    client.session.handle_timers(T + 2)
    client.sent(T + 2)
    client.session.take_events()
    client.session.enter_lower_session(9, ("10.0.0.5", 78), T + 2)
    assert client.session.take_events() == []
    assert client.session.dropped == {"not_wds": 1}
    assert client.session.application.duplicates == 1
    ((_, join),) = client.sent(T + 2)
    assert (join.client_name, join.ip_address, join.mac_address) == ("node-17", bytes(4), bytes(6))
    assert client.session.transport.timers.get(ClientTimer.JOIN) == T + 11


def test_lower_session_begins_anew_but_for_its_content():
    client = ClientWire().regular()
    query = encode_application(SrvCir())
    for packet in (Spm(50, 0, 0, 0, 0, 0, 0), Qcc(50, 0), Poll(50, 0, query)):
        client.hear(packet, T)
    client.session.application.horizon = 45
    client.session.enter_lower_session(SESSION, SERVER, T + 2)
    client.transport = client.session.transport
    client.hear(JoinAck(70, 0, 0, 0, ms(T + 2)), T + 30, multicast=False)
    client.sent(T + 30)
    client.session.take_events()
    assert client.transport.polls == 0
    for packet in (Qcc(1, 0), Poll(1, 0, query)):
        client.hear(packet, T + 35)
    client.session.handle_timers(T + 35)
    answers = [decode_application(packet.app_data) for _, packet in client.sent(T + 35)]
    assert [answer.time_in_session for answer in answers] == [5, 5]
    # A late client there, which a repair does not place.
    client.hear(client.data(9, 9, 1, op_code=OpCode.RDATA, fw_lead=False), T + 36)
    assert client.transport.data.first == 0
    data = client.data(44, 44, 3)
    client.hear(data, T + 36, segment=len(data) // 3)
    client.hear(Spm(1, ME, 0, 0, 40, 46, 0), T + 36)
    assert not client.session.dropped
    assert [run for event in arrived(client) for run in event.runs] == [BlockRun(0, 1, 9), BlockRun(0, 2, 44)]


def test_blocks_refused_before_a_demote_stay_counted():
    client = ClientWire(max_cache_size=2 * 23).regular()
    data = client.data(1, 1, 5)
    client.hear(data, T, segment=len(data) // 5)
    assert client.session.transport.refused == 3
    client.session.enter_lower_session(9, ("10.0.0.5", 78), T + 2)
    assert client.session.transport.refused == 3


# ---------------------------------------------------------------------- properties

LAST = 2**64 - 1


@pytest.mark.parametrize(
    "packet",
    [
        Spm(LAST, ME, 0xFFFF, 0xFFFF, LAST, LAST, 0xFFFF),
        Spm(1, ME, 0xFFFF, 0, 1, LAST, 0),
        Spm(1, ME, 0, 0, LAST, 1, 0),
        Qcc(LAST, 0xFFFF),
        Poll(LAST, 0xFFFF, encode_application(SrvCir())),
        OData(ME, LAST, LAST, encode_application(Data(1, bytes(10))), (fw_lead(LAST),)),
        OData(ME, LAST, 1, encode_application(Data(100, bytes(10)))),
        OData(ME, 1, 1, encode_application(Data(LAST, bytes(10)))),
        RData(2**32 - 1, 2**63, 0, encode_application(Data(1, bytes(10)))),
        JoinAck(2**32 - 1, 0xFFFF, 0xFFFF, 0xFFFF, ms(T)),
    ],
)
def test_largest_values_are_answered_with_packets_that_can_be_written(client, packet):
    now = T
    client.hear(client.data(3, 3, 2), now)
    for step in range(1, 40):
        client.hear(packet, now, multicast=not isinstance(packet, JoinAck))
        client.hear(client.data(3 + step, 3 + step, 1), now)
        client.sent(now)
        now += 0.9
        client.session.handle_timers(now)
        assert client.session.next_deadline() > now
        client.sent(now)


SECURITY = ChecksumSecurity()
BLOCK = encode_application(Data(50, payload_of(50, 10)))


def datagram(packet, session_id=SESSION):
    return encode(packet, session_id=session_id, sender_time=ms(T), security=SECURITY)


EVERY_PACKET = [
    datagram(packet)
    for packet in (
        Join("pc", bytes(4), bytes(6)),
        JoinAck(ME, 1, 1, 0, ms(T)),
        Qcc(3, 100),
        Qcr(ME, 0, 0, 0, 0, 0, b""),
        Poll(3, 100, encode_application(SrvCir())),
        Leave(ME, LeaveReason.COMPLETE),
        Kick(((1, KickReason.FAIL), (ME, KickReason.FAIL))),
        Demote(1, bytes(4), 1, bytes(4), 1, (1, ME)),
        Spm(3, ME, 1, 2, 1, 30, 1),
        Ack(ME, 1, 1, 1, 1),
        OData(ME, 25, 1, BLOCK),
        OData(ME, 25, 1, BLOCK, (fw_lead(0),)),
        RData(ME, 15, 1, BLOCK),
        Nack(ME, 1, 1, ((1, 2),)),
        Ncf(((1, 2),)),
    )
]


def in_use(joined=True):
    """A session with some history: gaps, answers that wait, half of the blocks."""
    client = ClientWire(total_blocks=100)
    client.sent(T)
    if joined:
        client.regular(low=100, high=100)
        for packet in (
            Qcc(2, 5000),
            Poll(2, 5000, encode_application(SrvCir())),
            Spm(2, 0, 100, 100, 1, 9, 1),
        ):
            client.hear(packet, T)
        for first in (10, 20):
            data = client.data(first, first, 5, master=0)
            client.hear(data, T, segment=len(data) // 5)
        client.session.take_events()
        client.sent(T)
    return client


def refusal(data):
    """Why the codec refuses a datagram, or None."""
    try:
        decode(data, session_id=SESSION, security=SECURITY)
    except WireError as error:
        return error.reason.value
    return None


@given(
    st.one_of(st.binary(max_size=200), broken(EVERY_PACKET, SECURITY)),
    st.booleans(),
    st.booleans(),
)
@settings(STEADY, max_examples=200)
def test_whatever_is_not_accepted_changes_nothing_and_is_not_answered(data, joined, multicast):
    client = in_use(joined)
    session = client.session
    before = snapshot(session)
    session.receive(Batch(memoryview(data), len(data), SERVER), T + 0.01, multicast=multicast)
    if (reason := refusal(data)) and data:
        assert session.dropped == {reason: 1}
    if session.dropped.total() or not data:
        assert snapshot(session) == before
        assert session.take_outgoing(T + 0.01) == []
        assert session.take_events() == []


@given(
    st.lists(st.one_of(st.binary(max_size=90), broken(EVERY_PACKET, SECURITY)), max_size=6),
    st.integers(1, 150),
)
@settings(STEADY, max_examples=150)
def test_no_batch_of_any_bytes_raises_and_every_datagram_is_counted(pieces, segment):
    client = in_use()
    data = b"".join(pieces)
    before = client.session.datagrams
    client.session.receive(Batch(memoryview(data), segment, SERVER), T + 0.01, multicast=True)
    assert client.session.datagrams - before == -(-len(data) // segment)
    client.session.handle_timers(T + 1)
    client.session.take_outgoing(T + 1)
    assert client.session.next_deadline() > T + 1


events = st.one_of(
    st.tuples(st.just("packet"), st.sampled_from(range(len(EVERY_PACKET))), st.booleans()),
    st.tuples(st.just("data"), st.integers(1, 40), st.integers(1, 8)),
    st.tuples(st.just("spm"), st.integers(0, 60), st.integers(0, 2)),
    st.tuples(st.just("qcc"), st.integers(1, 60), st.integers(0, 300)),
    st.tuples(st.just("stored"), st.just(0), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 40), st.just(0)),
)
pauses = st.sampled_from([0.0, 0.0, 0.001, 0.02, 0.5, 5.0, 25.0, 31.0])


@given(st.lists(st.tuples(pauses, events), max_size=40), st.integers(0, 3))
@settings(STEADY, max_examples=120)
def test_after_its_timers_the_next_deadline_is_always_later(script, seed):
    client, now, waiting = ClientWire(seed=seed, total_blocks=60, max_cache_size=300), T, []
    session = client.session
    for step, (pause, (kind, first, second)) in enumerate(script):
        now += pause
        session.handle_timers(now)
        assert session.next_deadline() > now
        match kind:
            case "packet":
                session.receive(
                    Batch(memoryview(EVERY_PACKET[first]), len(EVERY_PACKET[first]), SERVER),
                    now,
                    multicast=second,
                )
            case "data":
                count = min(second, 60 - first)
                data = data_batch(SECURITY, first + 60 * (step // 10), first, count, master=ME * (step % 2))
                client.hear(data, now, segment=len(data) // count)
            case "spm":
                client.hear(
                    Spm(step + 1, ME * (step % 2), second, 2 * second, first // 2, first, second), now
                )
            case "qcc":
                client.hear(Qcc(first, second), now)
                client.hear(Poll(first, second, encode_application(SrvCir())), now)
            case "stored" if waiting:
                session.stored(waiting.pop(), now)
            case "leave" if first == 0:
                session.leave(Left.CANCELLED, now)
        session.handle_timers(now)
        assert session.next_deadline() > now
        for sent in session.take_outgoing(now):
            decode(sent, session_id=SESSION, security=SECURITY)
        waiting += [event for event in session.take_events() if isinstance(event, BlocksArrived)]
        assert session.transport.cache_used == sum(event.charged for event in waiting) <= 300
        missing = session.transport.data.missing
        assert not missing or session.transport.data.first <= missing.first
        # While something is missing, a NACK is on its way or waits for its time.
        if missing and session.transport.state.value == "RegularState":
            assert ClientTimer.NACK in session.transport.timers
