"""What a server's session does not even take apart, and what one client may make it do."""

import pytest
from protocol_scripts import T
from session_scripts import SESSION, ServerWire

from wdstransport.protocol.allowance import Allowance
from wdstransport.protocol.clients import DemoteTarget
from wdstransport.protocol.door import Door
from wdstransport.wire.security import ChecksumSecurity
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
    PollAck,
    Qcr,
    Spm,
    encode,
)

EVERYTHING = ((1, 2**64 - 1),)
LOWER = DemoteTarget(99, bytes([239, 0, 0, 9]), 7009, bytes([10, 0, 0, 9]), 7010)
CLIENT_PACKETS = {
    "ACK": Ack(7, 1, 1, 1, 0),
    "NACK": Nack(7, 1, 0, EVERYTHING),
    "QCR": Qcr(7, 0, 0, 0, 0, 0, b""),
    "POLLACK": PollAck(7, 1, b""),
    "LEAVE": Leave(7, LeaveReason.COMPLETE),
}


@pytest.fixture
def decoded(monkeypatch):
    """How many datagrams a session has taken apart."""
    seen = []
    inner = Door.refuses

    def refuses(self, datagram, source, now):
        refused = inner(self, datagram, source, now)
        if refused is None:
            seen.append(bytes(datagram))
        return refused

    monkeypatch.setattr(Door, "refuses", refuses)
    return seen


@pytest.mark.parametrize("name", CLIENT_PACKETS)
def test_packets_of_somebody_who_never_joined_are_dropped_unread(decoded, name):
    script = ServerWire()
    script.hear(CLIENT_PACKETS[name], 10, T)
    assert decoded == []
    assert script.session.dropped == {"unknown_client": 1}


def test_a_run_of_a_stranger_s_packets_is_dropped_unread_packet_by_packet(decoded):
    script = ServerWire()
    leave = script.sealed(CLIENT_PACKETS["LEAVE"])
    script.hear(leave * 40, 10, T, segment=len(leave))
    assert decoded == []
    assert script.session.dropped == {"unknown_client": 40}


def test_a_stranger_s_join_and_packets_that_no_client_sends_are_read(decoded):
    script = ServerWire()
    script.hear(Join("pc", bytes(4), bytes(6)), 10, T)
    script.hear(Spm(1, 7, 1, 1, 1, 1, 1), 11, T)
    assert len(decoded) == 2
    assert len(script.sent(T, JoinAck)) == 1
    assert script.session.dropped == {"state": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"\x00", DropReason.NOT_WDS), (ServerWire().sealed(CLIENT_PACKETS["LEAVE"])[:8], DropReason.TRUNCATED)],
)
def test_junk_is_dropped_for_what_it_is(data, reason):
    script = ServerWire()
    script.hear(data, 10, T)
    assert script.session.dropped == {reason.value: 1}


def test_another_session_s_packets_are_dropped_for_that():
    script = ServerWire()
    leave = encode(
        CLIENT_PACKETS["LEAVE"], session_id=SESSION + 1, sender_time=1, security=ChecksumSecurity()
    )
    script.hear(leave, 10, T)
    assert script.session.dropped == {DropReason.SESSION_ID.value: 1}


# ---------------------------------------------------------------------- NACK work


def sending(script, *numbers):
    """Clients in the Data state, and packets sent more than four MCRTT ago; the ids, and the time."""
    ids, now = script.begin(*numbers)
    script.transport.data.give([(1, 100)])
    script.transport.data.window.acknowledged(1000)
    assert script.session.take_odata(100, now).count == 100
    script.sent(now)
    return ids, now + 4


def test_a_client_s_nacks_beyond_its_share_are_dropped_unread_and_not_repeated_to_the_group():
    script = ServerWire(nack_work_per_second=100.0, nack_work_burst=50.0, nack_own_work=20.0)
    (one, two), now = sending(script, 10, 11)
    nack = Nack(one, 1, 0, ((1, 5),))
    for _ in range(10):
        script.hear(nack, 10, now)
    # 20 for the first and the 5 numbers it names, then 20 and 5 again: nothing is left.
    assert len(script.sent(now, Ncf)) == 2
    assert script.session.dropped == {"too_many_nacks": 8}
    script.hear(Nack(two, 1, 0, ((1, 5),)), 11, now)
    assert len(script.sent(now, Ncf)) == 1, "another client has a share of its own"
    script.hear(nack, 10, now + 0.1)
    assert len(script.sent(now + 0.1, Ncf)) == 1, "the share grows again"


def test_joining_again_does_not_give_a_client_a_new_share():
    script = ServerWire(nack_work_per_second=1.0, nack_work_burst=20.0, nack_own_work=20.0)
    (one,), now = sending(script, 10)
    nack = Nack(one, 1, 0, ())
    for _ in range(2):
        script.hear(nack, 10, now)
        script.hear(Join("pc", bytes(4), bytes(6)), 10, now)
    assert script.session.dropped == {"too_many_nacks": 1}


def test_the_numbers_a_nack_makes_the_server_look_at_are_charged():
    script = ServerWire(nack_work_per_second=10.0, nack_work_burst=100.0, nack_own_work=1.0, max_nack_work=99)
    (one,), now = sending(script, 10)
    for _ in range(2):
        script.hear(Nack(one, 1, 0, EVERYTHING), 10, now)
    assert script.session.dropped == {"too_many_nacks": 1}


def test_a_removed_client_s_nacks_have_a_share_too():
    script = ServerWire(nack_work_per_second=1.0, nack_work_burst=10.0, nack_own_work=20.0)
    (one,), now = sending(script, 10)
    nack = Nack(one, 1, 0, ((1, 5),))
    script.hear(nack, 10, now)
    script.transport.kick(one, KickReason.FAIL, now)
    script.hear(nack, 10, now)
    assert script.session.dropped == {"too_many_nacks": 1}


def test_a_part_of_a_join_is_not_enough():
    script = ServerWire(joins_per_second=1.0, join_burst=1.0)
    for number, later in ((10, 0.0), (11, 0.5)):
        script.hear(Join("pc", bytes(4), bytes(6)), number, T + later)
    assert script.session.dropped == {"too_many_joins": 1}


def test_a_part_of_a_unit_is_not_enough_for_a_nack():
    script = ServerWire(nack_work_per_second=1.0, nack_work_burst=20.0, nack_own_work=20.0)
    (one,), now = sending(script, 10)
    heard = []
    for later in (0.0, 0.5, 1.0):
        script.hear(Nack(one, 1, 0, ()), 10, now + later)
        heard.append(len(script.sent(now + later, Ncf)))
    assert heard == [1, 0, 1]


@pytest.mark.parametrize("how", ["kick", "demote"])
def test_a_removed_client_is_told_again_however_many_others_ask_to_join(how):
    script = ServerWire(joins_per_second=0.0, join_burst=1)
    client = script.activate(10, T)
    if how == "kick":
        script.session.kick(client, KickReason.FAIL, T)
    else:
        script.session.demote(client, LOWER, T)
    told = script.sent(T, Kick if how == "kick" else Demote)
    script.hear(Join("pc", bytes(4), bytes(6)), 11, T)
    script.hear(Join("pc", bytes(4), bytes(6)), 10, T)
    assert script.sent(T) == told
    assert script.session.dropped == {"too_many_joins": 1, "state": 1}


def test_a_client_beyond_its_share_of_nacks_is_heard_in_everything_else():
    script = ServerWire(nack_work_per_second=1.0, nack_work_burst=1.0)
    (one,), now = sending(script, 10)
    script.hear(Nack(one, 1, 0, ((1, 5),)), 10, now)
    script.hear(Nack(one, 1, 0, ((1, 5),)), 10, now)
    assert script.session.dropped == {"too_many_nacks": 1}
    script.hear(Leave(one, LeaveReason.COMPLETE), 10, now)
    assert script.session.completed == 0  # counted when its event is taken
    script.session.take_events()
    assert script.session.completed == 1


# ---------------------------------------------------------------------- JOINACKs without an answer


def test_join_acks_that_nobody_confirms_are_bounded_whoever_asks_for_them():
    script = ServerWire(join_acks_unanswered=8)
    for number in range(20):
        script.hear(Join("forged", bytes(4), bytes(6)), 10 + number, T)
    assert len(script.sent(T, JoinAck)) == 8
    script.session.handle_timers(T + 0.5)
    assert len(script.sent(T + 0.5, JoinAck)) == 0, "half of it is for those who have had none yet"
    script.hear(Join("pc", bytes(4), bytes(6)), 99, T + 0.5)
    assert len(script.sent(T + 0.5, JoinAck)) == 1


def test_a_join_ack_is_repeated_where_few_are_unanswered():
    script = ServerWire(join_acks_unanswered=8)
    for number in range(4):
        script.hear(Join("slow", bytes(4), bytes(6)), 10 + number, T)
    script.sent(T)
    script.session.handle_timers(T + 0.5)
    assert len(script.sent(T + 0.5, JoinAck)) == 3, "4 were left and 2 have come, so 3 before half is left"


def test_clients_that_confirm_never_meet_the_bound_on_join_acks():
    script = ServerWire(join_acks_unanswered=1)
    assert len({script.activate(10 + number, T) for number in range(50)}) == 50


def test_client_that_confirms_gives_back_the_join_acks_it_got_and_no_more():
    script = ServerWire(join_acks_unanswered=8)
    for number in range(6):
        script.hear(Join("forged", bytes(4), bytes(6)), 10 + number, T)
    script.sent(T)
    script.activate(99, T)
    assert script.transport._join_acks.left(T) == 2


def test_client_that_has_confirmed_is_answered_again_however_many_have_not():
    script = ServerWire(join_acks_unanswered=1)
    client = script.activate(99, T)
    script.hear(Join("forged", bytes(4), bytes(6)), 10, T)
    script.sent(T)
    script.hear(Join("pc", bytes(4), bytes(6)), 99, T)
    assert [answer.client_id for answer, _, _ in script.sent(T, JoinAck)] == [client]


# ---------------------------------------------------------------------- allowances


def test_an_allowance_grows_to_its_burst_and_no_further():
    share = Allowance(10.0, 30.0, T)
    assert share.left(T + 100) == 30
    share.spend(35, T + 100)
    assert share.left(T + 100) == -5
    assert share.left(T + 101) == 5
    assert share.left(T + 100.75) == 2.5
    assert share.left(T + 101) == 5, "asking changes nothing"
    share.spend(5, T + 101)
    assert share.left(T + 102) == 10
    assert share.left(T + 200) == 30
    share.spend(-50, T + 200)
    assert share.left(T + 200) == 30, "what is given back does not go beyond the burst either"
