"""A server's session as its driver sees it: datagrams in, datagrams, runs to send and deadlines out."""

import math

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_scripts import STEADY, T, address, ms, snapshot
from session_scripts import SESSION, ServerWire, broken

from wdstransport.protocol.clients import DemoteTarget
from wdstransport.protocol.events import ClientActive, ClientGone, Gone, SendingBegan, Terminated
from wdstransport.protocol.server_application import ApplicationState
from wdstransport.protocol.server_data import ODataRun
from wdstransport.protocol.server_transport import ServerState
from wdstransport.wire.application import CntCir, ProgressReport, SrvCir
from wdstransport.wire.application import encode as encode_application
from wdstransport.wire.batch import Batch
from wdstransport.wire.security import ChecksumSecurity, HashSecurity, NoSecurity, SignSecurity
from wdstransport.wire.transport import (
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
    Poll,
    PollAck,
    Qcc,
    Qcr,
    Spm,
    WireError,
    decode,
    encode,
)

LOWER = DemoteTarget(99, bytes([239, 0, 0, 9]), 7009, bytes([10, 0, 0, 9]), 7010)


def missing(*ranges, time=0, progress=0):
    return encode_application(CntCir(progress, time, ranges))


def sending(server, *numbers, ranges=((1, 100),)):
    """Clients are there, the first round has been asked for and given."""
    ids, now = server.begin(*numbers)
    (poll, _, to) = server.sent(now, Poll)[-1]
    assert to is None
    for number, client_id in zip(numbers, ids, strict=True):
        server.pollack(number, client_id, poll.poll_seq_no, missing(*ranges), now + 0.1)
    now = server.session.application.next_deadline()
    server.session.handle_timers(now)
    server.sent(now)
    server.session.take_events()
    return ids, now


@pytest.fixture
def server():
    return ServerWire()


# ---------------------------------------------------------------------- a whole conversation


def test_one_client_gets_everything_and_leaves(server):
    session = server.session
    assert session.state == "waiting"
    assert session.total_blocks == 100
    (client,), now = server.begin(1)
    assert [type(event) for event in session.take_events()] == [ClientActive]
    assert session.state == "querying"
    packets = server.sent(now)
    assert [type(packet) for packet, *_ in packets] == [Spm, Poll]
    assert packets[1][0].app_data == encode_application(SrvCir())
    server.pollack(1, client, 1, missing((1, 30)), now + 0.1)
    now = session.next_deadline()
    while session.state == "querying":
        now = session.next_deadline()
        session.handle_timers(now)
    assert session.take_events() == [SendingBegan(1)]
    assert session.state == "sending"
    assert session.plan == (1, ((1, 30),))
    runs = []
    while session.state == "sending":
        now += 0.01
        while session.sendable():
            runs.append(session.take_odata(64, now))
        lead = runs[-1].first_seq + runs[-1].count - 1
        server.hear(Ack(client, lead, ms(now), lead, 0), 1, now)
    assert [block for run in runs for block in range(run.first_block, run.first_block + run.count)] == list(
        range(1, 31)
    )
    assert [seq for run in runs for seq in range(run.first_seq, run.first_seq + run.count)] == list(
        range(1, 31)
    )
    server.hear(Leave(client, LeaveReason.COMPLETE), 1, now)
    assert [(type(event), event.reason) for event in session.take_events()] == [(ClientGone, Gone.COMPLETE)]
    assert (session.completed, session.members, session.state) == (1, 0, "idle")
    assert not session.dropped.total()


def test_repairs_are_named_by_sequence_number_and_block(server):
    (client,), now = sending(server, 1, ranges=((11, 20),))
    assert server.session.take_odata(64, now) == ODataRun(1, 11, 1, 0)
    server.hear(Nack(client, 1, 0, ((1, 1),)), 1, now + 1)
    assert [type(packet) for packet, *_ in server.sent(now + 1)] == [Ncf]
    assert server.session.take_repairs(64) == [(1, 11)]
    server.session.repairs_sent([1], now + 1)
    server.hear(Nack(client, 1, 0, ((1, 1),)), 1, now + 1)
    assert server.session.take_repairs(64) == []  # it has left a moment ago
    server.hear(Nack(client, 1, 0, ((1, 1),)), 1, now + 2)
    assert server.session.take_repairs(64) == [(1, 11)]


def test_no_more_is_taken_than_was_asked_for(server):
    (client,), now = sending(server, 1)
    server.transport.data.window.size = 50
    assert server.session.take_odata(7, now) == ODataRun(1, 1, 7, 0)
    server.hear(Nack(client, 7, 0, ((1, 7),)), 1, now + 1)
    assert [len(server.session.take_repairs(limit)) for limit in (2, 4, 9)] == [2, 4, 1]


def test_round_goes_on_for_people_while_another_master_is_looked_for(server):
    _, now = sending(server, 1)
    server.transport.enter_qcc(now)
    assert server.session.state == "sending"


def test_what_leaves_is_what_the_plan_loses(server):
    _, now = sending(server, 1, ranges=((11, 12), (20, 20)))
    assert server.session.plan == (1, ((11, 12), (20, 20)))
    server.session.take_odata(64, now)
    assert server.session.plan == (1, ((12, 12), (20, 20)))
    assert server.session.trail == 1
    assert server.session.window == 1


def test_clients_are_listed_with_their_place(server):
    (master, other), now = server.begin(1, 2)
    kicked, demoted = server.activate(3, now), server.activate(4, now)
    server.hear(Join("pc", bytes(4), b""), 5, now)
    assert server.session.kick(kicked, KickReason.FAIL, now)
    assert server.session.demote(demoted, LOWER, now)
    places = {record.client_id: place for record, place in server.session.clients()}
    assert places[master] == "master"
    assert places[other] == "active"
    assert places[kicked] == "kicked"
    assert places[demoted] == "demoted"
    assert list(places.values()).count("pending") == 1
    assert server.session.master_client_id == master
    assert server.session.members == 4


def test_who_was_removed_does_not_count_for_the_application_and_who_has_not_confirmed_only_answers(server):
    (master, other), now = server.begin(1, 2)
    kicked, demoted = server.activate(3, now), server.activate(4, now)
    server.hear(Join("pc", bytes(4), b""), 5, now)
    server.session.kick(kicked, KickReason.FAIL, now)
    server.session.demote(demoted, LOWER, now)
    lists = server.transport.clients
    assert server.session.active_clients() == 2
    (pending,) = lists.pending
    there = [each for each in (master, other, kicked, demoted, pending) if server.session.is_there(each)]
    assert there == [master, other, pending]
    lists.active[other].rtt = 0.5
    lists.kicked[kicked].rtt = lists.pending[pending].rtt = 0.9
    assert server.session.highest_rtt() == 0.5


def test_removing_somebody_says_whether_there_was_such_a_client(server):
    (client,), now = server.begin(1)
    server.sent(now)
    assert not server.session.kick(client + 1, KickReason.FAIL, now)
    assert not server.session.demote(client + 1, LOWER, now)
    assert server.session.kick(client, KickReason.FALLBACK, now)
    assert not server.session.kick(client, KickReason.FAIL, now)
    assert not server.session.demote(client, LOWER, now)
    assert server.sent(now, Kick) == [(Kick(((client, KickReason.FALLBACK),)), ms(now), None)]


@pytest.mark.parametrize("reason", list(KickReason))
def test_closing_tells_its_reason_and_is_not_over_while_clients_have_not_left(server, reason):
    (client,), now = server.begin(1)
    server.sent(now)
    server.session.close(reason, now)
    assert server.sent(now, Kick) == [(Kick(((client, reason),)), ms(now), None)]
    assert not server.session.over
    assert server.session.next_deadline() < math.inf


def test_what_is_for_one_goes_to_one_and_the_rest_to_the_group(server):
    server.hear(Join("pc", bytes(4), b""), 1, T)
    assert [to for _, _, to in server.sent(T)] == [address(1)]
    _, now = server.begin(2)
    server.session.close(KickReason.FAIL, now)
    assert {type(packet): to for packet, _, to in server.sent(now)} == {Spm: None, Poll: None, Kick: None}


def test_what_the_transport_saw_is_told_before_what_the_application_made_of_it(server):
    server.session.transport.events.append(Terminated())
    server.session.application.events.append(SendingBegan(1))
    assert server.session.take_events() == [Terminated(), SendingBegan(1)]


def test_sender_time_is_the_time_of_leaving(server):
    server.hear(Join("pc", bytes(4), b""), 1, T)
    ((_, sent_at, _),) = server.sent(T + 0.5)
    assert sent_at == ms(T + 0.5)


def test_joinack_echoes_the_time_that_the_join_was_sent_at(server):
    server.hear(Join("pc", bytes(4), b""), 1, T, sender_time=4711)
    ((answer, _, _),) = server.sent(T, JoinAck)
    assert answer.client_time == 4711


def test_demote_reaches_the_group(server):
    client = server.activate(1, T)
    assert server.session.demote(client, LOWER, T)
    ((packet, _, to),) = server.sent(T, Demote)
    assert (packet.lower_session_id, packet.clients, to) == (99, (client,), None)


def test_qcr_after_qcc_tells_progress(server):
    (client,), now = server.begin(1)
    payload = encode_application(ProgressReport(12, 34))
    server.hear(Qcr(client, 0, 0, 0, 5, 0, payload), 1, now)
    ((record, _),) = server.session.clients()
    assert (record.time_in_session, record.progress, record.hi_odata_seq_no) == (12, 34, 5)


def test_client_that_joins_in_the_middle_gets_the_rest_and_then_what_it_missed(server):
    (first,), now = sending(server, 1)
    session = server.session
    for _ in range(3):
        while session.sendable():
            session.take_odata(64, now)
        lead = session.transport.data.mc_lead
        server.hear(Ack(first, lead, ms(now), lead, 0), 1, now)
    sent = session.transport.data.mc_lead
    assert 0 < sent < 100
    late = server.activate(2, now)
    assert session.state == "sending"
    while session.transport.data.given or session.transport.data.in_flight:
        while session.sendable():
            session.take_odata(64, now)
        lead = session.transport.data.mc_lead
        server.hear(Ack(first, lead, ms(now), lead, 0), 1, now)
    assert session.transport.data.mc_lead == 100
    server.hear(Leave(first, LeaveReason.COMPLETE), 1, now)
    server.session.handle_timers(now + 0.3)
    seq = server.sent(now + 0.3, Qcc)[-1][0].qcc_seq_no
    server.hear(Qcr(late, seq, 0, ms(now + 0.3), 0, 0, b""), 2, now + 0.3)
    while not (polls := server.sent(now, Poll)):
        now = session.next_deadline()
        session.handle_timers(now)
    server.pollack(2, late, polls[-1][0].poll_seq_no, missing((1, sent)), now)
    while session.state == "querying":
        now = session.next_deadline()
        session.handle_timers(now)
    assert session.plan == (2, ((1, sent),))


def test_client_that_has_answered_and_left_is_not_sent_anything(server):
    (one, two), now = server.begin(1, 2)
    server.pollack(1, one, 1, missing((1, 50)), now)
    server.pollack(2, two, 1, missing((40, 60)), now)
    server.hear(Leave(one, LeaveReason.CANCELLED), 1, now)
    while server.session.state == "querying":
        now = server.session.next_deadline()
        server.session.handle_timers(now)
    assert server.session.plan[1] == ((40, 60),)


# ---------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda good: good[:-12], "checksum"),
        (lambda good: good[:7], "truncated"),
        (lambda good: b"", None),
        (lambda good: b"XX" + good[2:], "not_wds"),
        (lambda good: good[:2] + b"\0" + good[3:], "security_type"),
        (lambda good: good[:-1] + bytes([good[-1] ^ 1]), "checksum"),
    ],
)
def test_damaged_packet_is_dropped_and_counted_by_its_reason(server, damage, reason):
    data = damage(server.sealed(Join("pc", bytes(4), b"")))
    server.hear(data, 1, T)
    assert server.session.dropped == ({reason: 1} if reason else {})
    assert server.sent(T) == []
    assert server.session.clients() == []


@pytest.mark.parametrize("packet", [Join("pc", bytes(4), b""), Ack(1, 0, 0, 0, 0), Nack(1, 9, 0, ((1, 2),))])
def test_packet_that_ends_at_any_byte_is_dropped_and_counted(server, packet):
    whole = server.sealed(packet)
    lengths = range(1, len(whole) - 2)
    for length in lengths:
        server.hear(whole[:length], 1, T)
    assert server.session.dropped.total() == len(lengths)
    assert server.sent(T) == []
    assert server.session.clients() == []


def test_packet_of_another_session_is_dropped(server):
    server.hear(server.sealed(Join("pc", bytes(4), b""), session_id=SESSION + 1), 1, T)
    server.hear(server.sealed(Ack(1, 0, 0, 0, 0), session_id=SESSION + 1), 1, T)
    assert server.session.dropped == {"session_id": 2}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda good: good[:30] + b"\1" + good[31:], "checksum"),
        (lambda good: good[:-1] + bytes([good[-1] ^ 1]), "checksum"),
        (lambda good: good + b"\0", "trailing"),
    ],
)
def test_damaged_ack_is_dropped_and_counted_by_its_reason(server, damage, reason):
    (client,), now = server.begin(1)
    server.hear(damage(server.sealed(Ack(client, 0, ms(now), 0, 0))), 1, now)
    assert server.session.dropped == {reason: 1}


def test_ack_without_options_count_is_read_too(server):
    (client,), now = server.begin(1)
    whole = server.sealed(Ack(client, 0, ms(now - 0.05), 0, 0))
    header = server.client_security.header_len
    body = whole[header:-2]
    server.hear(server.client_security.seal(body) + body, 1, now)
    assert not server.session.dropped.total()
    assert server.transport.data.mcrtt == pytest.approx(0.05)


def test_batch_of_datagrams_is_taken_one_by_one(server):
    (client,), now = server.begin(1)
    ack = server.sealed(Ack(client, 0, ms(now), 0, 0))
    bad = ack[:-1] + b"\1"
    server.hear(ack + bad + ack[:-1], 1, now, segment=len(ack))
    assert server.transport.data.counters.acks == 1
    assert server.session.dropped == {"checksum": 1, "truncated": 1}


def test_loss_rate_above_one_is_refused_in_every_packet_that_carries_it(server):
    (client,), now = server.begin(1)
    loss = (10**16 + 1).to_bytes(8, "big")
    for packet, at in ((Ack(client, 0, 0, 0, 0), 28), (Nack(client, 0, 0, ()), 12)):
        data = bytearray(server.sealed(packet))
        header = server.client_security.header_len
        data[header + 13 + at : header + 13 + at + 8] = loss
        data[:header] = server.client_security.seal(bytes(data[header:]))
        server.hear(bytes(data), 1, now)
    assert server.session.dropped == {"field": 2}


def test_client_that_is_unknown_is_counted(server):
    server.begin(1)
    for packet in (Leave(1, LeaveReason.COMPLETE), Qcr(1, 0, 0, 0, 0, 0, b""), Ack(1, 0, 0, 0, 0)):
        server.hear(packet, 2, T)
    assert server.session.dropped == {"unknown_client": 3}


@pytest.mark.parametrize("security", [NoSecurity, ChecksumSecurity, lambda: HashSecurity(b"k" * 24)])
def test_conversation_works_in_every_mode_a_client_can_have(security):
    server = ServerWire(client_security=security(), server_security=security())
    (client,), now = sending(server, 1)
    server.session.take_odata(1, now)
    server.hear(Ack(client, 1, ms(now), 1, 0), 1, now)
    assert server.session.window == 3
    assert not server.session.dropped.total()


def test_longest_nack_is_confirmed_with_an_ncf_that_udp_can_carry():
    signing = SignSecurity(rsa.generate_private_key(public_exponent=65537, key_size=1024))
    server = ServerWire(client_security=HashSecurity(b"k" * 24), server_security=signing)
    (client,), now = sending(server, 1)
    nack = server.sealed(Nack(client, 1, 0, tuple((number, number) for number in range(1, 4090))))
    assert len(nack) <= 65507
    server.hear(nack, 1, now)
    assert all(len(datagram) <= 65507 for datagram, _ in server.session.take_outgoing(now))


def test_junk_that_looks_like_a_join_uses_up_nobodys_budget():
    server = ServerWire(join_burst=2)
    good = server.sealed(Join("pc", bytes(4), b""))
    for number in range(2, 9):
        server.hear(good[:-12] + b"\x55" * 12, number, T)
        server.hear(server.sealed(Join("pc", bytes(4), b""), session_id=SESSION + 1), number, T)
    server.hear(good, 1, T)
    assert [to for _, _, to in server.sent(T, JoinAck)] == [address(1)]


# ---------------------------------------------------------------------- the end


def test_only_who_left_with_everything_counts_as_completed(server):
    ids, now = server.begin(1, 2, 3)
    for number, client_id, reason in zip((1, 2, 3), ids, LeaveReason, strict=True):
        server.hear(Leave(client_id, reason), number, now)
    gone = [event.reason for event in server.session.take_events() if isinstance(event, ClientGone)]
    assert sorted(reason.name for reason in gone) == ["CANCELLED", "COMPLETE", "INACTIVE"]
    assert server.session.completed == 1


def test_every_client_that_left_with_everything_counts_as_completed(server):
    ids, now = server.begin(1, 2, 3)
    for number, client_id in zip((1, 2, 3), ids, strict=True):
        server.hear(Leave(client_id, LeaveReason.COMPLETE), number, now)
        server.session.take_events()
        assert server.session.completed == number


def test_removed_client_that_leaves_with_everything_does_not_count_as_completed(server):
    (kicked, demoted), now = server.begin(1, 2)
    server.session.kick(kicked, KickReason.FAIL, now)
    server.session.demote(demoted, LOWER, now)
    for number, client_id in ((1, kicked), (2, demoted)):
        server.hear(Leave(client_id, LeaveReason.COMPLETE), number, now)
    gone = [event.reason for event in server.session.take_events() if isinstance(event, ClientGone)]
    assert (gone, server.session.completed) == ([Gone.KICKED, Gone.DEMOTED], 0)


def test_session_that_asks_again_later_is_querying_meanwhile(server):
    (client,), now = server.begin(1)
    server.pollack(1, client, 1, missing(), now)
    server.session.handle_timers(server.session.application.next_deadline())
    assert server.session.application.state is ApplicationState.RESTING
    assert server.session.state == "querying"


def test_client_that_is_found_dead_while_the_application_rests_leaves_nothing_due():
    server = ServerWire(client_dead_timeout=2.0)
    (one, _), now = server.begin(1, 2)
    while server.session.members == 2:
        now = server.session.next_deadline()
        for packet, sent_at, _ in server.sent(now):
            if isinstance(packet, Qcc):
                server.hear(Qcr(one, packet.qcc_seq_no, 0, sent_at, 0, 0, b""), 1, now)
            elif isinstance(packet, Spm):
                server.hear(Ack(one, 0, sent_at, 0, 0), 1, now)
            elif isinstance(packet, Poll):
                server.pollack(1, one, packet.poll_seq_no, missing(), now)
        before = server.session.application.state
        server.session.handle_timers(now)
        assert server.session.next_deadline() > now
    assert (before, now) == (ApplicationState.RESTING, T + 4)


def test_session_that_ends_in_the_middle_of_a_query_has_no_deadline_any_more():
    server = ServerWire(inactivity_timeout=5.0)
    _, now = server.begin(1)
    server.session.handle_timers(now + 5)
    assert server.session.over
    assert server.session.application.next_deadline() < math.inf
    assert server.session.next_deadline() == math.inf


def test_session_without_clients_ends_and_is_silent(server):
    server.session.handle_timers(T + 300)
    assert server.session.take_events() == [Terminated()]
    assert server.session.over
    assert server.session.state == "ended"
    assert server.session.next_deadline() == math.inf
    server.hear(Join("pc", bytes(4), b""), 1, T + 301)
    assert server.session.dropped == {"state": 1}
    assert server.sent(T + 301) == []


def test_closing_tells_everybody_and_stops_sending(server):
    (one, two), now = sending(server, 1, 2)
    server.session.take_odata(1, now)
    server.session.close(KickReason.FALLBACK, now)
    ((packet, _, _),) = server.sent(now)
    assert packet == Kick(((one, KickReason.FALLBACK), (two, KickReason.FALLBACK)))
    assert server.session.sendable() == 0
    assert server.session.take_odata(64, now) is None
    assert server.session.members == 2
    for number, client in ((1, one), (2, two)):
        server.hear(Leave(client, LeaveReason.CANCELLED), number, now + 0.1)
    assert server.session.members == 0
    assert [event.reason for event in server.session.take_events()] == [Gone.KICKED, Gone.KICKED]


def test_closing_an_empty_session_sends_nothing(server):
    server.session.close(KickReason.FALLBACK, T)
    assert server.sent(T) == []
    assert server.session.members == 0


def test_last_client_that_goes_in_the_middle_stops_the_sending(server):
    (client,), now = sending(server, 1)
    server.session.take_odata(1, now)
    server.hear(Leave(client, LeaveReason.CANCELLED), 1, now)
    assert server.session.sendable() == 0
    assert server.session.plan[1] == ()
    assert server.session.state == "idle"
    assert server.transport.state is ServerState.QCC


# ---------------------------------------------------------------------- properties

LAST = 2**64 - 1


@pytest.mark.parametrize(
    "packet",
    [
        lambda client: Ack(client, LAST, LAST, LAST, 10**16),
        lambda client: Ack(client, 0, 0, LAST, 10**16),
        lambda client: Nack(client, LAST, 10**16, ((0, LAST),) * 100),
        lambda client: Nack(client, LAST, 10**16, ((LAST, LAST), (1, 1), (0, 0))),
        lambda client: Qcr(client, LAST, 0xFFFF, LAST, LAST, 10**16, b""),
        lambda client: Qcr(client, 0, 0xFFFF, LAST, LAST, 10**16, b""),
        lambda client: PollAck(client, LAST, missing((1, LAST))),
        lambda client: PollAck(client, 1, missing((1, 100), time=2**32 - 1, progress=100)),
        lambda client: Join("x" * 15, bytes(16), bytes(255)),
    ],
)
def test_largest_values_are_answered_with_packets_that_can_be_written(server, packet):
    (client, _), now = sending(server, 1, 2)
    for _ in range(20):
        while server.session.take_odata(64, now) is not None:
            pass
        server.hear(server.sealed(packet(client), sender_time=LAST), 1, now)
        server.session.repairs_sent([seq for seq, _ in server.session.take_repairs(64)], now)
        server.sent(now)
        now += 0.3
        server.session.handle_timers(now)
        assert server.session.next_deadline() > now
        server.sent(now)


SECURITY = ChecksumSecurity()
FIRST_ID = ServerWire().activate(1, T)


def datagram(packet):
    return encode(packet, session_id=SESSION, sender_time=ms(T), security=SECURITY)


EVERY_PACKET = [
    datagram(packet)
    for packet in (
        Join("pc", bytes(4), bytes(6)),
        JoinAck(FIRST_ID, 1, 1, 0, 0),
        Qcc(3, 100),
        Qcr(FIRST_ID, 0, 0, 0, 0, 0, encode_application(ProgressReport(1, 2))),
        Qcr(FIRST_ID, 2, 0, ms(T), 0, 10**14, encode_application(ProgressReport(1, 2))),
        Qcr(FIRST_ID + 2, 0, 0, ms(T), 0, 0, b""),
        Poll(3, 100, encode_application(SrvCir())),
        PollAck(FIRST_ID, 1, missing((1, 9))),
        PollAck(FIRST_ID + 1, 1, missing()),
        Leave(FIRST_ID, LeaveReason.COMPLETE),
        Leave(FIRST_ID + 1, LeaveReason.INACTIVE),
        Kick(((FIRST_ID, KickReason.FAIL),)),
        Spm(3, FIRST_ID, 1, 2, 1, 30, 1),
        Ack(FIRST_ID, 1, ms(T), 1, 1),
        Ack(FIRST_ID + 1, 0, ms(T), 1, 1),
        OData(FIRST_ID, 25, 1, b""),
        Nack(FIRST_ID, 1, 1, ((1, 2),)),
        Nack(FIRST_ID + 1, 1, 10**13, ((1, 1),)),
        Nack(FIRST_ID, 1, 1, ()),
        Ncf(((1, 2),)),
    )
]


def in_use():
    """A session with two clients, data in flight, and one client that has not confirmed."""
    server = ServerWire()
    _, now = sending(server, 1, 2)
    server.session.take_odata(1, now)
    server.hear(Join("pc", bytes(4), b""), 3, now)
    server.sent(now)
    server.session.take_events()
    return server, now


def refusal(data):
    """Why the codec refuses a datagram, or None."""
    try:
        decode(data, session_id=SESSION, security=SECURITY)
    except WireError as error:
        return error.reason.value
    return None


@given(st.one_of(st.binary(max_size=200), broken(EVERY_PACKET, SECURITY)), st.integers(1, 4))
@settings(STEADY, max_examples=200)
def test_whatever_is_not_accepted_changes_nothing_and_is_not_answered(data, number):
    server, now = in_use()
    session = server.session
    before = snapshot(session)
    session.receive(Batch(memoryview(data), len(data), address(number)), now + 0.01)
    if (reason := refusal(data)) and data:
        assert session.dropped in ({reason: 1}, {DropReason.UNKNOWN_CLIENT.value: 1})
    if session.dropped.total() or not data:
        assert snapshot(session) == before
        assert session.take_outgoing(now + 0.01) == []
        assert session.take_events() == []


@given(
    st.lists(st.one_of(st.binary(max_size=90), broken(EVERY_PACKET, SECURITY)), max_size=6),
    st.integers(1, 150),
)
@settings(STEADY, max_examples=100)
def test_no_batch_of_any_bytes_raises(pieces, segment):
    server, now = in_use()
    data = b"".join(pieces)
    server.session.receive(Batch(memoryview(data), segment, address(1)), now)
    server.session.handle_timers(now + 1)
    server.sent(now + 1)
    assert server.session.next_deadline() > now + 1


steps = st.one_of(
    st.tuples(st.just("packet"), st.integers(1, 3), st.sampled_from(range(len(EVERY_PACKET)))),
    st.tuples(st.just("join"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("answer"), st.integers(1, 3), st.integers(0, 40)),
    st.tuples(st.just("answer"), st.integers(1, 3), st.integers(0, 40)),
    st.tuples(st.just("send"), st.integers(1, 3), st.integers(0, 40)),
    st.tuples(st.just("send"), st.integers(1, 3), st.integers(0, 40)),
    st.tuples(st.just("leave"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("kick"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("close"), st.just(1), st.integers(0, 9)),
)
pauses = st.sampled_from([0.0, 0.001, 0.05, 0.4, 2.0, 70.0])


@given(st.lists(st.tuples(pauses, steps), max_size=40))
@settings(STEADY, max_examples=120)
def test_after_its_timers_the_next_deadline_is_always_later(script):
    server, now, ids = ServerWire(min_clients=1), T, {}
    session, data = server.session, server.transport.data
    for pause, (name, number, value) in script:
        now += pause
        session.handle_timers(now)
        assert session.next_deadline() > now
        client = ids.get(number, FIRST_ID)
        match name:
            case "packet":
                server.hear(EVERY_PACKET[value], number, now)
            case "join":
                server.hear(Join("pc", bytes(4), b""), number, now, sender_time=ms(now))
                record = server.transport.clients.at(address(number))
                if record is not None:
                    ids[number] = record.client_id
                    server.hear(Qcr(record.client_id, 0, 0, ms(now), 0, 0, b""), number, now)
            case "answer":
                qcc = server.transport._next_qcc_seq_no - 1
                poll = server.transport._next_poll_seq_no - 1
                server.hear(Qcr(client, qcc, 0, ms(now), 0, value * 10**13, b""), number, now)
                ranges = ((value, value + 9),) if value else ()
                server.pollack(number, client, poll, missing(*ranges), now)
            case "send":
                while session.take_odata(16, now) is not None:
                    pass
                session.repairs_sent([seq for seq, _ in session.take_repairs(16)], now)
                server.hear(Ack(client, data.mc_lead, ms(now), 0, 0), number, now)
                server.hear(Nack(client, 0, value * 10**13, ((data.trail, data.mc_lead + 1),)), number, now)
            case "leave":
                server.hear(Leave(client, LeaveReason.COMPLETE), number, now)
            case "kick":
                session.kick(client, KickReason.FAIL, now)
            case "close" if value == 0:
                session.close(KickReason.FAIL, now)
        session.handle_timers(now)
        assert session.next_deadline() > now
        server.sent(now)
        session.take_events()
        assert session.sendable() <= server.session.window
        # Whoever is there is waited for: the session never sleeps until it ends.
        if session.active_clients() and not session.over and not server.transport.closing:
            assert session.next_deadline() <= now + 65


def test_ack_that_came_in_the_same_words_three_times_is_counted_three_times():
    server = ServerWire()
    (master,), now = sending(server, 1)
    run = server.session.take_odata(1, now)
    ack = server.sealed(Ack(master, run.first_seq, 0, run.first_seq, 0))
    server.hear(ack * 3, 1, now, segment=len(ack))
    assert server.transport.data.counters.acks == 3
    assert server.transport.data.mc_trail == run.first_seq
    assert not server.session.dropped
    server.hear(ack * 3, 2, now, segment=len(ack))
    assert server.transport.data.counters.acks == 3
    assert server.session.dropped == {"unknown_client": 3}


def test_datagrams_of_a_batch_are_taken_in_their_order(server):
    (client,), now = sending(server, 1)
    server.transport.data.window.size = 50
    server.session.take_odata(50, now)
    acks = [server.sealed(Ack(client, seq, ms(now), seq, 0)) for seq in range(1, 51)]
    server.hear(b"".join(acks), 1, now, segment=len(acks[0]))
    assert server.transport.data.counters.acks == 50
    assert not server.session.dropped.total()


def test_equal_acks_are_looked_at_once_and_equal_nacks_each_time(server, monkeypatch):
    (client,), now = server.begin(1)
    looked_at, receive = [], server.transport.receive
    monkeypatch.setattr(
        server.transport, "receive", lambda packet, *rest: looked_at.append(packet) or receive(packet, *rest)
    )
    for packet in (Ack(client, 0, ms(now), 0, 0), Nack(client, 0, 0, ())):
        datagram = server.sealed(packet)
        server.hear(datagram * 3, 1, now, segment=len(datagram))
    assert [type(packet) for packet in looked_at] == [Ack, Nack, Nack, Nack]


def test_equal_datagrams_of_any_length_are_each_dropped_and_counted(server):
    (client,), now = server.begin(1)
    whole = server.sealed(Ack(client, 0, ms(now), 0, 0))
    for length in range(1, len(whole) - 2):  # without its OptionsCount it is sound (deviation 13)
        server.hear(whole[:length] * 3, 1, now, segment=length)
        assert server.session.dropped.total() == 3 * length


def test_next_deadline_is_the_applications_where_that_comes_first():
    server = ServerWire(poll_back_off=0.02, query_margin=0.03)
    _, now = server.begin(1)
    assert server.session.application.next_deadline() == pytest.approx(now + 0.05)
    assert server.session.transport.next_deadline() > now + 0.05
    assert server.session.next_deadline() == server.session.application.next_deadline()


# ---------------------------------------------------------------------- a flood of JOINs


def forged_join(number):
    return Join("forged", bytes([10, 9, number >> 8 & 255, number & 255]), bytes(6))


def test_joins_beyond_the_budget_are_dropped_unread_and_counted():
    script = ServerWire(joins_per_second=10.0, join_burst=3)
    for number in range(5):
        script.hear(forged_join(number), 10 + number, T)
    assert len(script.session.transport.clients.pending) == 3
    assert script.session.dropped["too_many_joins"] == 2
    script.hear(forged_join(9), 30, T + 0.1)
    assert len(script.session.transport.clients.pending) == 4


def test_budget_of_joins_is_a_burst_however_long_nobody_joined():
    script = ServerWire(joins_per_second=10.0, join_burst=3)
    for number in range(5):
        script.hear(forged_join(number), 10 + number, T + 100)
    assert len(script.session.transport.clients.pending) == 3
    assert script.session.dropped["too_many_joins"] == 2


def test_client_that_was_not_confirmed_yet_joins_again_at_the_cost_of_the_budget():
    script = ServerWire(joins_per_second=0.0, join_burst=2)
    for _ in range(3):
        script.hear(forged_join(1), 11, T)
    assert script.session.dropped["too_many_joins"] == 1


def test_a_confirmed_client_may_join_again_during_a_flood():
    script = ServerWire(joins_per_second=0.0, join_burst=1)
    script.activate(10, T)
    script.sent(T)
    script.hear(forged_join(1), 11, T + 0.5)
    assert script.session.dropped["too_many_joins"] == 1
    script.hear(forged_join(1), 10, T + 0.5)
    assert script.session.dropped["too_many_joins"] == 1
    assert len(script.sent(T + 0.5, JoinAck)) == 1
