"""The client's transport, state by state: a script of packets and times, and what it sends."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_client import LiteralClient
from protocol_scripts import NO_LEAD, STEADY, ClientScript, T, ms, records

from wdstransport.protocol import client_transport as module
from wdstransport.protocol.client_transport import ClientState
from wdstransport.protocol.events import BlockRun, BlocksArrived, Demoted, Departed, Joined, Left
from wdstransport.protocol.parameters import ClientParameters
from wdstransport.protocol.timers import ClientTimer
from wdstransport.wire.application import CntCir, ProgressReport, SrvCir, decode, encode
from wdstransport.wire.options import CAP_MULTISTREAM, OptionId, cpu_util, find
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
)

ME = 7
OTHER = 8


@pytest.fixture
def client():
    """In RegularState since T, as client 7."""
    return ClientScript().regular(client_id=ME)


def deadlines(script):
    """When each timer is due; that of joining again has tests of its own."""
    return {timer: script.timers.get(timer) for timer in ClientTimer if timer is not ClientTimer.REJOIN}


def test_defaults_are_the_documents():
    defaults = ClientParameters()
    assert defaults.inactivity_timeout == 30.0
    assert defaults.join_interval == 0.5
    assert defaults.max_leave_delay == 0.2
    assert defaults.force_qcc_interval == 20.0
    assert defaults.max_cache_size == 2_097_152


def test_parameters_that_are_set_take_the_place_of_the_documents():
    script = ClientScript(
        join_interval=2.0,
        inactivity_timeout=50.0,
        force_qcc_interval=3.0,
        max_leave_delay=9.0,
        max_nack_wait=0.4,
        max_nack_ranges=2,
    )
    assert script.timers.get(ClientTimer.JOIN) == T + 2
    assert script.timers.get(ClientTimer.INACTIVITY) == T + 50
    script.regular(T + 1)
    assert script.timers.get(ClientTimer.FORCE_QCC) == T + 4
    script.transport.heard(T + 1)
    assert script.timers.get(ClientTimer.INACTIVITY) == T + 51
    script.transport.handle_timers(T + 4)
    assert script.timers.get(ClientTimer.FORCE_QCC) == T + 7
    script.odata(T + 4, 1, 3, 5, 7, master=ME)
    assert [nack.ranges for nack in script.sent(Nack)] == [((2, 2), (4, 4))]
    *_, before, last = nack_times(script, T + 6)
    assert last - before == pytest.approx(0.4)
    script.transport._rng = Latest()
    script.transport.leave(LeaveReason.COMPLETE, T + 6, Departed(Left.COMPLETE))
    assert script.timers.get(ClientTimer.LEAVE) == T + 15


# ---------------------------------------------------------------------- Join state


def test_client_begins_with_a_join_that_names_it_and_its_capability():
    script = ClientScript()
    (join,) = script.sent()
    assert isinstance(join, Join)
    assert (join.client_name, join.ip_address, join.mac_address) == ("pc", bytes(4), bytes(6))
    assert CAP_MULTISTREAM in find(join.options, OptionId.CAPABILITIES)
    assert script.transport.state is ClientState.JOIN


def test_join_is_repeated_every_500_ms_until_it_is_answered():
    script = ClientScript()
    script.sent()
    script.transport.handle_timers(T + 0.499)
    assert script.sent() == []
    for times in range(1, 60):
        script.transport.handle_timers(T + 0.5 * times)
        assert [type(packet) for packet in script.sent()] == [Join]
    script.receive(JoinAck(ME, 1, 1, 0, ms(T)), T + 29.6)
    script.transport.heard(T + 29.6)
    script.sent()
    script.transport.handle_timers(T + 34)
    assert script.sent(Join) == []


def joins_while(script, first, last, *, spm_until=0.0):
    """When the client sends JOIN, in tenths of a second from `first` to `last`, SPM coming every second."""
    sent = []
    for tenth in range(round(first * 10), round(last * 10) + 1):
        now = T + tenth / 10
        if tenth % 10 == 0 and tenth / 10 <= spm_until:
            script.transport.heard(now)
            script.spm(now, tenth)
        script.transport.handle_timers(now)
        sent += [tenth / 10] * len(script.sent(Join))
    return sent


def test_client_that_hears_of_no_session_for_five_seconds_sends_its_join_again_and_then_ever_less_often():
    script = ClientScript()
    script.regular(T)
    script.spm(T + 1, 1)
    script.sent()
    assert joins_while(script, 1, 28.4) == [6.0, 6.5, 7.5, 9.5, 13.5, 18.5, 23.5]
    assert script.transport.state is ClientState.REGULAR


def test_nack_that_brings_nothing_is_repeated_ever_less_often_and_at_last_every_50_ms():
    script = ClientScript()
    script.regular(T)
    script.spm(T, 1, low=1, high=1, lead=9)
    now, waits = T, []
    for _ in range(12):
        due = script.transport.timers.get(ClientTimer.NACK)
        waits.append(due - now)
        now = due
        script.transport.handle_timers(now)
    assert waits[-1] == pytest.approx(0.05)
    assert waits[2:] == sorted(waits[2:])
    script.odata(now, (9, 9), rdata=True)


@pytest.mark.parametrize(
    "packet",
    [
        Spm(1, ME, 0, 0, 0, 5, 0),
        Qcc(1, 100),
        Poll(1, 100, b""),
        Ncf(()),
        Kick(((0, KickReason.FAIL),)),
        Demote(1, bytes(4), 1, bytes(4), 1, (0,)),
    ],
    ids=lambda packet: type(packet).__name__,
)
def test_join_state_ignores_everything_but_joinack(packet):
    script = ClientScript()
    script.sent()
    due = deadlines(script)
    assert script.receive(packet, T + 0.1) is DropReason.STATE
    assert script.transport.state is ClientState.JOIN
    assert (script.sent(), script.events()) == ([], [])
    assert script.data.first == 0
    assert deadlines(script) == due


def test_join_state_ignores_data():
    script = ClientScript()
    script.sent()
    due = deadlines(script)
    assert script.odata(T + 0.1, 1, 2, 3) == [(DropReason.STATE, 3)]
    assert (script.sent(), script.events(), script.data.first) == ([], [], 0)
    assert deadlines(script) == due


def test_joinack_is_answered_with_an_empty_qcr_that_echoes_its_sender_time():
    script = ClientScript()
    script.sent()
    assert script.receive(JoinAck(ME, 20, 35, 10, ms(T)), T + 0.01, sender_time=4711) is None
    assert script.sent() == [Qcr(ME, 0, 0, 4711, 0, 0, b"")]
    assert script.transport.state is ClientState.REGULAR
    assert script.transport.client_id == ME
    assert (script.data.min_nack_back_off, script.data.max_nack_back_off) == (0.020, 0.035)
    assert script.events() == [Joined(ME)]


@pytest.mark.parametrize("number", [2**16, 2**32 - 1])
def test_client_id_is_said_whole_in_all_that_is_sent_and_told(number):
    script = ClientScript()
    assert script.receive(JoinAck(number, 0, 0, 0, ms(T)), T) is None
    assert script.events() == [Joined(number)]
    script.odata(T, 1, 3, master=number)
    script.receive(poll(1, 0), T)
    script.receive(Qcc(1, 0), T)
    script.transport.handle_timers(T)
    script.transport.leave(LeaveReason.COMPLETE, T, Departed(Left.COMPLETE))
    script.transport.handle_timers(T + 1)
    sent = [packet for packet in script.sent() if not isinstance(packet, Join)]
    assert {type(packet) for packet in sent} == {Qcr, Ack, Nack, PollAck, Leave}
    assert {packet.client_id for packet in sent} == {number}


@pytest.mark.parametrize("time", [2**16, 2**32 + 5, 2**64 - 1])
def test_times_of_a_server_that_has_run_for_long_are_echoed_whole(time):
    """SenderTime counts milliseconds since some start (MS-WDSMT 2.2.3): 32 bits are full after 50 days."""
    script = ClientScript()
    script.receive(JoinAck(ME, 0, 0, 0, ms(T)), T, sender_time=time)
    script.receive(Qcc(1, 0), T, sender_time=time)
    script.transport.handle_timers(T)
    script.spm(T, 1, master=ME, trail=1, lead=1, sender_time=time)
    script.odata(T, 1, master=ME, times=[time])
    script.odata(T, 2, master=ME, times=[time])
    script.odata(T, 1, master=ME, times=[time], rdata=True)
    echoes = [packet.server_time for packet in script.sent() if isinstance(packet, Qcr | Ack)]
    assert echoes == [time] * 6


def test_joinack_arms_force_qcc_and_disarms_join():
    script = ClientScript()
    script.receive(JoinAck(ME, 0, 0, 0, ms(T)), T + 0.25)
    assert ClientTimer.JOIN not in script.timers
    assert script.timers.get(ClientTimer.FORCE_QCC) == T + 20.25


def test_second_joinack_means_that_the_qcr_was_lost(client):
    client.transport.handle_timers(T + 0.3)
    assert client.receive(JoinAck(ME, 4, 9, 0, ms(T)), T + 0.5, sender_time=99) is None
    assert client.sent() == [Qcr(ME, 0, 0, 99, 0, 0, b"")]
    assert client.data.max_nack_back_off == 0.009
    assert client.events() == []
    assert client.timers.get(ClientTimer.FORCE_QCC) == T + 20.5


def test_repeated_joinack_of_the_same_client_changes_nothing_that_waits_or_is_missing(client):
    client.receive(Spm(50, OTHER, 100, 300, 1, 5, 0), T)
    client.odata(T, 5, 9, master=OTHER)
    client.receive(poll(60), T)
    client.receive(Qcc(70, 500), T, sender_time=4712)
    waiting = (ClientTimer.NACK, ClientTimer.QCC, ClientTimer.POLL)
    due, missing = [client.timers.get(timer) for timer in waiting], list(client.data.missing)
    assert client.receive(JoinAck(ME, 100, 300, 0, ms(T)), T) is None
    assert [client.timers.get(timer) for timer in waiting] == due
    assert client.transport.data is client.data
    assert (list(client.data.missing), client.data.highest, client.data.master) == (missing, 9, OTHER)
    assert client.receive(poll(60), T) is DropReason.STALE
    client.sent()
    client.transport.handle_timers(T + 0.5)
    assert {type(packet) for packet in client.sent()} == {Nack, Qcr, PollAck}


def test_qcr_to_a_repeated_joinack_reports_nothing_though_data_came(client):
    client.odata(T, 1, 2, 9)
    client.sent()
    client.receive(JoinAck(ME, 0, 0, 0, ms(T)), T + 0.5, sender_time=99)
    assert client.sent(Qcr) == [Qcr(ME, 0, 0, 99, 0, 0, b"")]
    assert client.data.highest == 9


def test_another_client_id_makes_all_numbers_begin_anew(client):
    """The server has forgotten this client, or began anew under its old SessionId."""
    client.odata(T, 900, 903)
    client.receive(Spm(50, OTHER, 0, 0, 900, 905, 0), T)
    client.receive(Qcc(70, 100), T)
    client.receive(poll(60), T)
    assert client.receive(JoinAck(ME + 1, 0, 0, 0, ms(T)), T + 1) is None
    for timer in (ClientTimer.NACK, ClientTimer.QCC, ClientTimer.POLL):
        assert timer not in client.timers
    assert client.transport.polls == 0
    client.odata(T + 1, 3, 5)
    data = client.transport.data
    assert (data.first, data.highest, list(data.missing)) == (3, 5, [(4, 4)])
    for packet in (Spm(1, OTHER, 0, 0, 3, 5, 0), Qcc(1, 0), poll(1)):
        assert client.receive(packet, T + 1) is None


@pytest.mark.parametrize("wrong", [ms(T) - 1, ms(T) + 501, 0, 2**64 - 1])
def test_joinack_that_echoes_no_join_of_ours_is_not_for_us(wrong):
    script = ClientScript()
    script.transport.handle_timers(T + 0.5)
    script.sent()
    due = deadlines(script)
    assert script.receive(JoinAck(ME, 0, 0, 0, wrong), T + 0.5) is DropReason.NOT_FOR_US
    assert script.transport.state is ClientState.JOIN
    assert script.sent() == []
    assert deadlines(script) == due


@pytest.mark.parametrize("at", [T + 0.001, T + 0.25, T + 0.999])
def test_joinack_that_echoes_the_millisecond_before_the_first_join_is_not_for_us(at):
    script = ClientScript(now=at)
    assert script.receive(JoinAck(ME, 0, 0, 0, ms(at) - 1), at + 0.01) is DropReason.NOT_FOR_US
    assert script.receive(JoinAck(ME, 0, 0, 0, ms(at)), at + 0.01) is None


def test_joinack_that_echoes_a_time_after_the_repeated_join_is_not_for_us(client):
    client.transport.handle_timers(T + 5)
    assert client.receive(JoinAck(ME, 0, 0, 0, ms(T + 5) + 1), T + 5) is DropReason.NOT_FOR_US
    assert client.receive(JoinAck(ME, 0, 0, 0, ms(T + 5)), T + 5) is None


def test_joinack_to_an_earlier_join_is_accepted():
    script = ClientScript()
    for times in range(1, 4):
        script.transport.handle_timers(T + 0.5 * times)
    assert script.receive(JoinAck(ME, 0, 0, 0, ms(T)), T + 1.6) is None
    assert script.transport.state is ClientState.REGULAR


def test_joinack_to_a_join_of_the_clocks_first_millisecond_is_accepted_after_the_second():
    script = ClientScript(now=0.0)
    script.transport.handle_timers(0.5)
    script.sent()
    assert script.receive(JoinAck(ME, 0, 0, 0, 0), 0.6) is None


def test_time_in_session_starts_with_the_first_joinack_only():
    script = ClientScript()
    script.regular(T + 5)
    script.receive(JoinAck(ME, 0, 0, 0, ms(T + 5)), T + 9)
    assert decode(script.application.progress_packet(T + 15)).time_in_session == 10


# ---------------------------------------------------------------------- inactivity


def test_client_that_never_hears_a_server_is_over_without_a_leave():
    script = ClientScript()
    script.transport.handle_timers(T + 29.9)
    assert script.transport.state is ClientState.JOIN
    script.sent()
    script.transport.handle_timers(T + 30)
    assert script.sent(Leave) == []
    assert script.events() == [Departed(Left.INACTIVE)]
    assert script.transport.state is ClientState.OVER
    assert script.timers.next_deadline() == math.inf


def test_silent_server_is_left_after_30_seconds_as_inactive(client):
    client.transport.heard(T + 10)
    client.transport.handle_timers(T + 39.9)
    assert client.transport.state is ClientState.REGULAR
    client.sent()
    client.transport.handle_timers(T + 40)
    assert client.transport.state is ClientState.LEAVING
    client.transport.handle_timers(T + 40.2)
    assert client.sent() == [Leave(ME, LeaveReason.INACTIVE)]
    assert client.events() == [Departed(Left.INACTIVE)]


def test_hearing_the_server_while_leaving_does_not_bring_the_timer_back(client):
    client.transport.leave(LeaveReason.COMPLETE, T, Departed(Left.COMPLETE))
    client.transport.heard(T)
    assert ClientTimer.INACTIVITY not in client.timers


# ---------------------------------------------------------------------- a server that forgot this client


def test_client_that_is_not_counted_joins_again_though_it_hears_the_server(client):
    for second in range(1, 30):
        client.transport.heard(T + second)
    assert joins_while(client, 1, 28.4) == [5.0, 5.5, 6.5, 8.5, 12.5, 17.5, 22.5, 27.5]
    assert client.transport.state is ClientState.REGULAR


@pytest.mark.parametrize(
    "sign",
    [
        lambda client, now: client.spm(now, 1),
        lambda client, now: client.receive(poll(1, 0), now),
        lambda client, now: client.odata(now, 1),
        lambda client, now: client.odata(now, (1, 0), (2, 2)),
        lambda client, now: client.receive(JoinAck(ME, 0, 0, 0, ms(T)), now),
    ],
    ids=["SPM", "POLL", "ODATA", "ODATA of which some is good", "JOINACK"],
)
def test_sign_that_somebody_is_counted_puts_joining_again_off(client, sign):
    sign(client, T + 4)
    assert client.timers.get(ClientTimer.REJOIN) == T + 9


def test_spm_that_is_heard_late_makes_joining_again_due_at_once_and_not_in_the_past(client):
    client.transport.heard(T + 40)
    client.spm(T + 40, 1)
    assert client.timers.get(ClientTimer.REJOIN) == T + 40


def test_spm_alone_puts_joining_again_off_for_30_seconds_only(client):
    for second in range(1, 30):
        client.transport.heard(T + second)
        client.spm(T + second, second)
        client.transport.handle_timers(T + second)
    client.transport.handle_timers(T + 29.999)
    assert client.sent(Join) == []
    client.transport.handle_timers(T + 30)
    assert len(client.sent(Join)) == 1


@pytest.mark.parametrize(
    "weak",
    [
        lambda client, now: client.receive(poll(int(now - T), 0), now),
        lambda client, now: client.odata(now, (int(now - T), 1)),
        lambda client, now: client.odata(now, (1, 1), rdata=True),
    ],
    ids=["POLL", "ODATA of a block that is here", "RDATA of a block that is here"],
)
def test_what_is_for_others_puts_joining_again_off_for_30_seconds_only(client, weak):
    client.odata(T, (1, 1))
    for second in range(2, 30):
        client.transport.heard(T + second)
        weak(client, T + second)
        client.transport.handle_timers(T + second)
    client.transport.handle_timers(T + 29.999)
    assert client.sent(Join) == []
    client.transport.handle_timers(T + 30)
    assert len(client.sent(Join)) == 1


def test_block_that_was_missing_shows_that_the_client_is_served(client):
    client.spm(T + 29, 1)
    client.odata(T + 29.5, (1, 1))
    assert client.timers.get(ClientTimer.REJOIN) == T + 34.5
    client.spm(T + 59, 2)
    assert client.timers.get(ClientTimer.REJOIN) == T + 59.5


def test_client_that_is_not_heard_for_two_minutes_leaves_as_inactive_and_says_so(client):
    assert joins_while(client, 1, 149.9, spm_until=200)[:3] == [30.0, 30.5, 31.5]
    assert client.transport.state is ClientState.REGULAR
    assert joins_while(client, 150, 160, spm_until=149) == []
    assert client.sent(Leave) == []
    assert client.transport.state is ClientState.OVER
    assert client.events() == [Departed(Left.UNHEARD)]


def test_client_that_is_not_heard_tells_the_server_all_the_same_that_it_leaves(client):
    client.spm(T + 29, 1)
    client.transport.handle_timers(T + 30)
    for second in range(31, 154):
        client.transport.heard(T + second)
        client.transport.handle_timers(T + second)
    (leave,) = client.sent(Leave)
    assert leave.leave_reason is LeaveReason.INACTIVE


def test_joining_again_is_repeated_though_spm_comes_until_it_is_answered(client):
    assert joins_while(client, 1, 42.4, spm_until=99) == [30.0, 30.5, 31.5, 33.5, 37.5]
    client.receive(JoinAck(ME, 0, 0, 0, ms(T)), T + 42.4)
    assert joins_while(client, 42.5, 73.4, spm_until=99) == [72.4, 72.9]


def test_sign_that_somebody_is_counted_makes_repetition_begin_quickly_again(client):
    assert joins_while(client, 1, 12) == [5.0, 5.5, 6.5, 8.5]
    client.odata(T + 12, 1)
    assert joins_while(client, 12, 19) == [17.0, 17.5, 18.5]


@pytest.mark.parametrize(
    "no_sign",
    [
        lambda client, now: client.receive(Qcc(1, 0), now),
        lambda client, now: client.receive(Ncf(()), now),
        lambda client, now: client.odata(now, (1, 0)),
        lambda client, now: client.receive(Poll(1, 0, b"junk"), now),
    ],
    ids=["QCC", "NCF", "bad data", "bad POLL"],
)
def test_what_a_server_without_clients_sends_does_not_put_joining_again_off(client, no_sign):
    no_sign(client, T + 4)
    assert client.timers.get(ClientTimer.REJOIN) == T + 5


def test_client_that_misses_nothing_does_not_join_again_while_it_stores():
    script = ClientScript(total_blocks=3).regular()
    script.odata(T + 1, 1, 2, 3)
    for second in range(2, 100):
        script.transport.heard(T + second)
        script.spm(T + second, second)
        script.transport.handle_timers(T + second)
    assert script.sent(Join) == []
    assert script.transport.state is ClientState.REGULAR


def test_client_that_has_everything_already_does_not_join_again():
    script = ClientScript(total_blocks=3, have=[(1, 3)]).regular()
    script.transport.handle_timers(T + 29)
    assert script.sent(Join) == []


def test_answer_to_joining_again_may_bring_a_new_id(client):
    client.transport.handle_timers(T + 5)
    client.sent()
    assert client.receive(JoinAck(OTHER, 0, 0, 0, ms(T + 5)), T + 5.1, sender_time=9) is None
    assert client.transport.client_id == OTHER
    assert client.sent(Qcr) == [Qcr(OTHER, 0, 0, 9, 0, 0, b"")]
    assert client.events() == []


# ---------------------------------------------------------------------- POLL


def poll(seq, back_off=200):
    return Poll(seq, back_off, encode(SrvCir()))


def test_poll_that_cannot_be_read_does_not_make_a_good_one_of_its_number_stale(client):
    assert client.receive(Poll(1, 200, b"\xff"), T) is DropReason.FIELD
    assert client.receive(poll(1), T) is None


def test_poll_is_answered_within_its_back_off_with_the_missing_ranges(client):
    client.application.data(1, 40_000)
    assert client.receive(poll(1), T + 1) is None
    due = client.timers.get(ClientTimer.POLL)
    assert T + 1 <= due <= T + 1.2
    assert client.sent() == []
    client.transport.handle_timers(due)
    (answer,) = client.sent()
    assert (answer.client_id, answer.poll_seq_no) == (ME, 1)
    assert isinstance(answer, PollAck)
    assert decode(answer.app_data) == CntCir(
        progress=40, time_in_session=int(due - T), ranges=((40_001, 100_000),)
    )


def test_client_that_has_everything_answers_a_poll_with_nothing(client):
    client.application.data(1, 100_000)
    client.receive(poll(1), T + 1)
    client.transport.handle_timers(T + 1.2)
    (answer,) = client.sent(PollAck)
    assert decode(answer.app_data) == CntCir(progress=100, time_in_session=1, ranges=())


@pytest.mark.parametrize("last", [2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**64 - 2])
def test_numbers_of_poll_and_spm_and_qcc_are_compared_whole(client, last):
    assert client.receive(poll(last), T) is None
    assert client.spm(T, last) is None
    assert client.receive(Qcc(last, 0), T) is None
    for seq in (0, 1, last - 1, last):
        assert client.receive(poll(seq), T) is DropReason.STALE
        assert client.spm(T, seq) is DropReason.STALE
        assert client.receive(Qcc(seq, 0), T) is DropReason.STALE
    client.transport.handle_timers(T + 0.2)
    assert [packet.poll_seq_no for packet in client.sent(PollAck)] == [last]
    assert client.receive(poll(last + 1), T) is None
    assert client.spm(T, last + 1) is None
    assert client.receive(Qcc(last + 1, 0), T) is None
    assert client.transport.polls == last + 1


def test_poll_draws_spread_over_the_whole_back_off():
    draws = []
    for seed in range(60):
        script = ClientScript(seed=seed).regular()
        script.receive(poll(1, 1000), T)
        draws.append(script.timers.get(ClientTimer.POLL) - T)
    assert min(draws) < 0.1
    assert max(draws) > 0.9
    assert all(0 <= draw <= 1 for draw in draws)


class Latest(random.Random):
    """Draws the end of every range."""

    def uniform(self, a, b):
        return b


def test_latest_answers_to_poll_and_qcc_leave_when_their_back_offs_end(client):
    """The draw is between zero and the back-off (MS-WDSMT 3.2.5.6, 3.2.5.7)."""
    client.transport._rng = Latest()
    client.receive(poll(1, 1000), T)
    client.receive(Qcc(1, 500), T)
    assert client.timers.get(ClientTimer.POLL) == T + 0.998
    assert client.timers.get(ClientTimer.QCC) == T + 0.498


@pytest.mark.parametrize(("back_off", "latest"), [(0, 0), (1, 0.5), (2, 1), (4, 2), (5, 3)])
def test_answers_within_a_short_back_off_leave_time_for_a_late_timer(client, back_off, latest):
    client.transport._rng = Latest()
    client.receive(poll(1, back_off), T)
    client.receive(Qcc(1, back_off), T)
    assert client.timers.get(ClientTimer.POLL) == pytest.approx(T + latest / 1000, abs=1e-9)
    assert client.timers.get(ClientTimer.QCC) == pytest.approx(T + latest / 1000, abs=1e-9)


def test_next_answer_is_due_when_the_earlier_of_both_timers_is(client):
    assert client.transport.answer_deadline() == math.inf
    client.transport._rng = Latest()
    client.receive(poll(1, 1000), T)
    assert client.transport.answer_deadline() == T + 0.998
    client.receive(Qcc(1, 500), T)
    assert client.transport.answer_deadline() == T + 0.498
    client.transport.handle_timers(T + 0.5)
    assert client.transport.answer_deadline() == T + 0.998
    client.transport.handle_timers(T + 1)
    assert client.transport.answer_deadline() == math.inf


def test_poll_answer_tells_what_is_missing_when_it_is_sent(client):
    client.receive(poll(1), T)
    client.application.data(1, 10)
    client.transport.handle_timers(T + 0.2)
    assert decode(client.sent(PollAck)[0].app_data).ranges == ((11, 100_000),)


@pytest.mark.parametrize("seq", [3, 4])
def test_stale_poll_is_not_answered(client, seq):
    client.receive(poll(4), T)
    client.transport.handle_timers(T + 0.2)
    client.sent()
    assert client.receive(poll(seq), T + 1) is DropReason.STALE
    assert ClientTimer.POLL not in client.timers


def test_newer_poll_replaces_the_one_that_waits_and_its_back_off(client):
    client.receive(poll(1), T)
    client.receive(poll(2), T + 0.01)
    client.transport.handle_timers(T + 1)
    assert [packet.poll_seq_no for packet in client.sent(PollAck)] == [2]
    client.receive(poll(3, 60_000), T + 1)
    client.receive(poll(4, 0), T + 1.01)
    assert client.timers.get(ClientTimer.POLL) == T + 1.01
    client.transport._rng = Latest()
    client.receive(poll(5, 1000), T + 1.01)
    assert client.timers.get(ClientTimer.POLL) == T + 2.008


@pytest.mark.parametrize("payload", [b"", b"\x00\x03\x09", encode(ProgressReport(1, 1))])
def test_poll_without_a_query_inside_is_refused_and_not_answered(client, payload):
    assert client.receive(Poll(1, 0, payload), T) is DropReason.FIELD
    client.transport.handle_timers(T + 1)
    assert client.sent(PollAck) == []


def test_client_that_has_everything_goes_on_in_the_session_until_it_leaves():
    """While it stores, others need it: the window of the master, the round of everybody."""
    script = ClientScript(total_blocks=2).regular()
    script.odata(T, (1, 1), (2, 2), master=ME)
    assert script.application.complete
    script.sent()
    assert script.odata(T, (5, 1), master=ME) == []
    script.spm(T, 1, master=ME, trail=1, lead=6)
    script.receive(poll(1, 0), T)
    script.receive(Qcc(1, 0), T)
    script.transport.handle_timers(T)
    sent = script.sent()
    assert [(ack.odata_seq_no, ack.hi_odata_seq_no) for ack in sent if isinstance(ack, Ack)] == [(2, 5)] * 2
    assert [nack.ranges for nack in sent if isinstance(nack, Nack)] == [((3, 4),)]
    assert [answer.qcc_seq_no for answer in sent if isinstance(answer, Qcr)] == [1]
    assert [decode(answer.app_data).ranges for answer in sent if isinstance(answer, PollAck)] == [()]
    script.odata(T, (3, 1), (4, 2), (6, 2), master=ME, rdata=True)
    assert [ack.odata_seq_no for ack in script.sent(Ack)] == [3, 5, 6]
    script.transport.handle_timers(T + 20)
    assert [report.qcc_seq_no for report in script.sent(Qcr)] == [0]


# ---------------------------------------------------------------------- QCC, and QCR unasked


def test_qcc_is_answered_within_its_back_off_with_all_that_is_measured(client):
    client.odata(T, 1, 5)
    client.sent()
    rate = round(client.data.loss.rate * 10**16)
    assert client.receive(Qcc(3, 400), T + 1, sender_time=4712) is None
    due = client.timers.get(ClientTimer.QCC)
    assert T + 1 <= due <= T + 1.4
    client.transport.handle_timers(T + 1.4)
    (answer,) = client.sent(Qcr)
    assert answer == Qcr(ME, 3, 400, 4712, 5, rate, answer.app_data)
    assert rate > 0
    assert decode(answer.app_data) == ProgressReport(time_in_session=1, progress=0)


@pytest.mark.parametrize("highest", [2**32, 2**64 - 1])
def test_qcr_tells_the_highest_number_whole(client, highest):
    client.odata(T, (highest, 1))
    client.receive(Qcc(1, 0), T)
    client.transport.handle_timers(T)
    assert client.sent(Qcr)[0].hi_odata_seq_no == highest


def test_qcr_says_how_long_it_waited_by_the_clock(client):
    client.receive(Qcc(1, 400), T + 1, sender_time=1)
    client.transport.handle_timers(T + 1.75)
    assert client.sent(Qcr)[0].back_off == 750


def test_qcr_says_how_long_it_waited_since_its_own_qcc(client):
    client.receive(Qcc(1, 400), T + 1, sender_time=1)
    client.transport.handle_timers(T + 1.75)
    client.sent()
    client.receive(Qcc(2, 400), T + 5, sender_time=2)
    client.transport.handle_timers(T + 5.5)
    assert client.sent(Qcr)[0].back_off == 500


def test_qcc_draws_spread_over_the_whole_back_off():
    draws = []
    for seed in range(60):
        script = ClientScript(seed=seed).regular()
        script.receive(Qcc(1, 1000), T)
        draws.append(script.timers.get(ClientTimer.QCC) - T)
    assert min(draws) < 0.1
    assert max(draws) > 0.9
    assert all(0 <= draw <= 1 for draw in draws)


@pytest.mark.parametrize("seq", [5, 6])
def test_stale_qcc_is_not_answered(client, seq):
    client.receive(Qcc(6, 10), T, sender_time=1)
    client.transport.handle_timers(T + 1)
    client.sent()
    assert client.receive(Qcc(seq, 10), T + 1, sender_time=2) is DropReason.STALE
    client.transport.handle_timers(T + 2)
    assert client.sent(Qcr) == []


def test_newer_qcc_replaces_the_one_that_waits_and_its_back_off(client):
    client.receive(Qcc(1, 60_000), T, sender_time=11)
    client.receive(Qcc(9, 0), T + 0.5, sender_time=5)
    assert client.timers.get(ClientTimer.QCC) == T + 0.5
    client.transport.handle_timers(T + 0.5)
    (answer,) = client.sent(Qcr)
    assert (answer.qcc_seq_no, answer.server_time, answer.back_off) == (9, 5, 0)


def test_report_unasked_leaves_the_answer_to_a_qcc_that_waits(client):
    client.transport._rng = Latest()
    client.receive(Qcc(4, 2000), T + 19, sender_time=8)
    client.transport.handle_timers(T + 20)
    assert [packet.qcc_seq_no for packet in client.sent(Qcr)] == [0]
    client.transport.handle_timers(T + 21)
    assert [(packet.qcc_seq_no, packet.back_off) for packet in client.sent(Qcr)] == [(4, 2000)]


def test_stale_qcc_does_not_change_the_answer_that_waits(client):
    client.receive(Qcc(6, 100), T, sender_time=11)
    client.receive(Qcc(5, 100), T + 0.05, sender_time=22)
    client.transport.handle_timers(T + 0.1)
    (answer,) = client.sent(Qcr)
    assert (answer.qcc_seq_no, answer.server_time, answer.back_off) == (6, 11, 100)


def test_qcr_carries_the_utilization_it_was_given(client):
    client.transport.utilization = (cpu_util(12),)
    client.receive(Qcc(1, 0), T)
    client.transport.handle_timers(T)
    assert client.sent(Qcr)[0].options == (cpu_util(12),)


def test_qcr_to_a_join_ack_carries_the_utilization_too():
    script = ClientScript()
    script.transport.utilization = (cpu_util(12),)
    script.sent()
    script.receive(JoinAck(ME, 0, 0, 0, ms(T)), T)
    assert script.sent(Qcr)[0].options == (cpu_util(12),)


def test_report_unasked_answers_no_qcc_that_came_before(client):
    client.receive(Qcc(3, 0), T + 1, sender_time=4712)
    client.transport.handle_timers(T + 1)
    client.sent()
    client.transport.heard(T + 20)
    client.transport.handle_timers(T + 21)
    (report,) = client.sent(Qcr)
    assert (report.qcc_seq_no, report.back_off, report.server_time) == (0, 0, 0)


def test_more_given_back_than_was_charged_leaves_nothing_charged(client):
    client.odata(T, 1, 2)
    assert client.transport.cache_used > 0
    client.transport.cache_done(10**9)
    assert client.transport.cache_used == 0


def test_client_without_qcc_reports_every_20_seconds_by_itself(client):
    client.odata(T, 1, 2)
    client.sent()
    for turn in (1, 2):
        client.transport.heard(T + 20 * turn - 1)
        client.transport.handle_timers(T + 20 * turn - 0.001)
        assert client.sent(Qcr) == []
        client.transport.handle_timers(T + 20 * turn)
        (report,) = client.sent(Qcr)
        assert (report.client_id, report.qcc_seq_no, report.back_off, report.server_time) == (ME, 0, 0, 0)
        assert report.hi_odata_seq_no == 2
        assert decode(report.app_data) == ProgressReport(20 * turn, 0)


def test_answered_qcc_postpones_the_voluntary_report(client):
    client.receive(Qcc(1, 0), T + 15)
    client.transport.heard(T + 15)
    client.transport.handle_timers(T + 15)
    client.sent()
    assert client.timers.get(ClientTimer.FORCE_QCC) == T + 35


# ---------------------------------------------------------------------- SPM and ACK


def test_master_acknowledges_every_spm_with_its_sender_time(client):
    client.odata(T, 1, 2, 4)
    client.sent()
    assert client.spm(T + 1, 1, master=ME, trail=1, lead=4, sender_time=31) is None
    (ack,) = client.sent(Ack)
    assert ack == Ack(ME, 2, 31, 4, round(client.data.loss.rate * 10**16))


def test_master_acknowledges_an_spm_before_any_data(client):
    client.spm(T, 1, master=ME, sender_time=31)
    assert client.sent() == [Ack(ME, 0, 31, 0, 0)]


@pytest.mark.parametrize("master", [OTHER, 0], ids=["another is", "nobody is"])
def test_who_is_not_the_master_does_not_acknowledge(client, master):
    client.spm(T, 1, master=master, trail=1, lead=4)
    client.odata(T, 5, 6, master=master)
    client.odata(T, 6, 5, master=master)
    client.odata(T, 4, master=master, rdata=True)
    assert client.sent(Ack) == []


def test_who_was_the_master_does_not_acknowledge_any_more(client):
    client.odata(T, 1, 2, master=ME)
    client.spm(T, 1, master=ME, trail=1, lead=2)
    assert len(client.sent(Ack)) == 3
    client.spm(T, 2, master=OTHER, trail=1, lead=2)
    client.odata(T, 3, master=OTHER)
    client.spm(T, 3, master=OTHER, trail=1, lead=3)
    assert client.sent(Ack) == []


def test_stale_spm_is_not_acknowledged(client):
    client.spm(T, 2, master=ME)
    client.sent()
    assert client.spm(T, 2, master=ME) is DropReason.STALE
    assert client.spm(T, 1, master=ME) is DropReason.STALE
    assert client.sent() == []


def test_each_spm_is_acknowledged_with_its_own_time(client):
    for number in (1, 2, 3):
        client.spm(T + number, number, master=ME, trail=1, lead=1, sender_time=100 * number)
    assert [packet.server_time for packet in client.sent(Ack)] == [100, 200, 300]


@pytest.mark.parametrize("lost", [999, 1000, 1001, 5000, 60_000])
def test_hole_of_any_length_is_asked_for_whole_and_stays_missing_however_far_behind_it_is(client, lost):
    client.odata(T, 1)
    client.odata(T, lost + 2, master=OTHER)
    client.spm(T, 1, master=OTHER, trail=1, lead=lost + 2 + 30_000)
    client.sent()
    client.transport._nack_timer(T + 1)
    tail = (lost + 3, lost + 2 + 30_000)
    assert [packet.ranges for packet in client.sent(Nack)] == [((2, lost + 1), tail)]
    literal = (1 - 500 / 65536) ** (lost + 30_000)
    assert client.data.loss.rate == pytest.approx(1 - literal, abs=1e-2)


def test_spm_alone_shows_the_loss_of_the_tail_which_is_asked_for_before_the_ack(client):
    """The order of MS-WDSMT 3.2.5.9."""
    client.odata(T, 1, 2)
    client.sent()
    client.spm(T + 1, 1, master=ME, trail=1, lead=6)
    asked, acknowledged = client.sent()
    assert asked.ranges == ((3, 6),)
    assert isinstance(acknowledged, Ack)


def test_spm_shows_a_loss_to_a_client_whose_cache_is_full():
    script = ClientScript(max_cache_size=23).regular()
    script.odata(T, 1, master=ME)
    script.sent()
    script.spm(T, 1, master=ME, trail=1, lead=4)
    assert [nack.ranges for nack in script.sent(Nack)] == [((2, 4),)]


def test_master_acknowledges_every_packet_without_fw_lead(client):
    client.odata(T, 1, 2, 3, master=ME, times=[11, 12, 13])
    assert [(ack.odata_seq_no, ack.server_time) for ack in client.sent(Ack)] == [(1, 11), (2, 12), (3, 13)]


def test_fw_lead_below_the_packet_excuses_it_from_an_ack(client):
    client.odata(T, 1, 2, 3, master=ME, leads=[0, 0, 3], times=[11, 12, 13])
    assert [(ack.odata_seq_no, ack.server_time) for ack in client.sent(Ack)] == [(3, 13)]


def test_batch_of_which_no_packet_wants_an_ack_gets_none(client):
    client.odata(T, 1, 2, 5, master=ME, leads=[0, 1, 4])
    client.odata(T, 6, 7, 9, master=ME, leads=[5, 5, 5])
    client.odata(T, 3, 8, master=ME, leads=[0, 0], rdata=True)
    client.odata(T, 2, 1, master=ME, leads=[0, 0])
    assert client.sent(Ack) == []
    assert list(client.data.missing) == [(4, 4)]


def test_fw_lead_above_the_packet_wants_an_ack(client):
    client.odata(T, 1, 2, master=ME, leads=[5, 1])
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [1]


def test_ack_never_covers_a_packet_that_did_not_come(client):
    client.odata(T, 1, 2, master=ME)
    client.sent()
    client.odata(T, 4, 5, 6, master=ME)
    acks = client.sent(Ack)
    assert [ack.odata_seq_no for ack in acks] == [2, 2, 2]
    assert acks[-1].hi_odata_seq_no == 6


def test_each_packet_of_a_mixed_batch_is_acknowledged_up_to_the_hole_behind_it(client):
    client.odata(T, 1, 3, 5, 6, master=ME)
    client.sent()
    client.odata(T, 2, 3, 4, 7, master=ME, rdata=[True, True, True, False])
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [3, 3, 6, 7]


def test_reports_name_the_highest_packet_that_came_and_not_the_highest_that_was_sent(client):
    client.odata(T, 1, 2, 5, master=OTHER)
    client.spm(T + 1, 1, master=OTHER, lead=9, high=1)
    assert client.data.end == 9
    client.receive(Qcc(1, 0), T + 1)
    client.transport.handle_timers(T + 1.1)
    sent = client.sent()
    assert [packet.hi_odata_seq_no for packet in sent if isinstance(packet, Qcr)] == [5]
    assert [packet.hi_odata_seq_no for packet in sent if isinstance(packet, Nack)][-1] == 5


def test_repair_that_fills_the_gap_lets_the_ack_jump(client):
    client.odata(T, 1, 2, 4, 5, 6, master=ME)
    client.sent()
    client.odata(T, 3, master=ME, rdata=True)
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [6]


def test_ack_carries_the_loss_rate_scaled(client):
    client.odata(T, 1, 3, master=ME)
    (ack,) = client.sent(Ack)[-1:]
    assert ack.loss_rate == round(client.data.loss.rate * 10**16) > 10**13


def test_ack_of_a_trail_is_up_to_the_packet_before_it(client):
    client.odata(T, 1, 9, master=ME)
    client.sent()
    client.spm(T + 1, 1, master=ME, trail=5, lead=9)
    assert client.sent(Ack)[0].odata_seq_no == 4


# ---------------------------------------------------------------------- NACK


def test_master_asks_for_lost_packets_at_once(client):
    client.odata(T, 1, 4, master=ME)
    (nack,) = client.sent(Nack)
    assert nack == Nack(ME, 4, round(client.data.loss.rate * 10**16), ((2, 3),))


def test_lost_packets_are_asked_for_though_others_of_the_batch_were_refused(client):
    assert client.odata(T, (1, 1), (4, 4), (5, 0), master=ME) == [(DropReason.FIELD, 1)]
    assert [nack.ranges for nack in client.sent(Nack)] == [((2, 3),)]


def test_lost_packets_are_asked_for_though_the_cache_refused_what_came():
    script = ClientScript(max_cache_size=30).regular()
    script.odata(T, 1, 4, master=ME)
    assert [nack.ranges for nack in script.sent(Nack)] == [(), ((2, 3),)]
    script.odata(T, 5, master=ME)
    assert [nack.ranges for nack in script.sent(Nack)] == [()]


def test_repair_of_somebody_elses_loss_shows_the_master_its_own(client):
    client.odata(T, 1, master=ME)
    client.odata(T, 5, master=ME, rdata=True)
    assert [nack.ranges for nack in client.sent(Nack)] == [((2, 4),)]


def test_others_wait_between_the_two_back_offs_first():
    draws = []
    for seed in range(40):
        script = ClientScript(seed=seed).regular(low=100, high=300)
        script.odata(T, 1, 4, master=OTHER)
        assert script.sent(Nack) == []
        draws.append(script.timers.get(ClientTimer.NACK) - T)
    assert all(0.0999 <= draw <= 0.3001 for draw in draws)
    assert min(draws) < 0.15
    assert max(draws) > 0.25


def test_nack_is_repeated_until_nothing_is_missing(client):
    client.spm(T, 1, master=OTHER, low=100, high=300, trail=1, lead=0)
    client.odata(T, 1, 5, 9, master=OTHER)
    for _ in range(4):
        due = client.timers.get(ClientTimer.NACK)
        client.transport.handle_timers(due)
        assert client.sent(Nack)[0].ranges == ((2, 4), (6, 8))
        assert due + 0.1 - 1e-6 <= client.timers.get(ClientTimer.NACK) <= due + 0.3 + 1e-6
    client.odata(due, 2, 3, 4, 6, 7, 8, master=OTHER)
    client.transport.handle_timers(due + 1)
    assert client.sent(Nack) == []
    assert ClientTimer.NACK not in client.timers


def nack_times(client, until):
    """When NACKs leave while nothing comes."""
    found = []
    while (due := client.timers.get(ClientTimer.NACK)) is not None and due <= until:
        client.transport.handle_timers(due)
        if client.sent(Nack):
            found.append(due)
    return found


def test_repair_that_comes_makes_the_next_nack_prompt_again(client):
    client.spm(T, 1, master=OTHER, low=2, high=2, trail=1, lead=1)
    client.odata(T, 1, 5, master=OTHER)
    last = nack_times(client, T + 0.5)[-1]
    client.odata(last + 0.001, 2, master=OTHER)
    first, *others = nack_times(client, T + 1)
    assert first - last == pytest.approx(0.05)
    assert round((others[0] - first) * 1000) == 2


def test_repair_of_the_last_packet_of_a_range_makes_the_next_nack_prompt_again(client):
    client.spm(T, 1, master=OTHER, low=2, high=2, trail=1, lead=1)
    client.odata(T, 1, 5, master=OTHER)
    last = nack_times(client, T + 0.5)[-1]
    client.odata(last + 0.001, 4, master=OTHER)
    first, *others = nack_times(client, T + 1)
    assert first - last == pytest.approx(0.05)
    assert round((others[0] - first) * 1000) == 2


@pytest.mark.parametrize("base", [0, 1, 2**32 - 61, 2**32])
def test_every_packet_of_the_master_is_acknowledged_and_every_loss_asked_for(client, base):
    client.spm(T, 1, master=ME, low=2, high=2, trail=base + 1, lead=base + 1)
    client.odata(T, (base + 1, 1), master=ME, trail=base + 1)
    assert [packet.hi_odata_seq_no for packet in client.sent(Ack)] == [0, base + 1]
    for seq in range(base + 3, base + 243, 2):
        client.odata(T + 1, (seq, seq - base), master=ME, trail=base + 1)
        client.transport.handle_timers(client.timers.get(ClientTimer.NACK))
        sent = client.sent()
        (asked, *_) = [packet for packet in sent if isinstance(packet, Nack)]
        assert (asked.ranges, asked.hi_odata_seq_no) == (((seq - 1, seq - 1),), seq)
        client.odata(T + 1, (seq - 1, seq - 1 - base), master=ME, trail=base + 1, rdata=True)
        acks = [packet for packet in (*sent, *client.sent()) if isinstance(packet, Ack)]
        assert [(each.odata_seq_no, each.hi_odata_seq_no) for each in acks] == [(seq - 2, seq), (seq, seq)]


def test_wait_doubles_only_after_the_nacks_that_two_repairs_take(client):
    """A repair is due four round trips after its packet, two back-offs; the second for one that is lost."""
    client.spm(T, 1, master=OTHER, low=2, high=2, trail=1, lead=1)
    client.odata(T, 1, 5, master=OTHER)
    times = nack_times(client, T + 0.3)
    waits = [round((after - before) * 1000) for before, after in pairwise(times)]
    assert waits[:9] == [2, 2, 2, 2, 2, 4, 8, 16, 32]
    assert set(waits[9:]) == {50}


def test_wait_stays_at_its_limit_after_two_thousand_nacks_that_brought_nothing(client):
    client.spm(T, 1, master=OTHER, low=2, high=2, trail=1, lead=1)
    client.odata(T, 1, 5, master=OTHER)
    now = T
    for _ in range(2000):
        now += 0.05
        client.transport._nack_timer(now)
    assert client.timers.get(ClientTimer.NACK) == pytest.approx(now + 0.05)


def test_first_nack_to_a_server_that_began_anew_is_prompt_though_the_same_packets_are_missing(client):
    client.spm(T, 1, master=OTHER, low=2, high=2, trail=1, lead=1)
    client.odata(T, 1, 5, master=OTHER)
    now = nack_times(client, T + 0.5)[-1]
    client.receive(JoinAck(ME + 1, 2, 2, 0, ms(T)), now)
    client.transport.heard(now)
    client.odata(now, 1, 5, master=OTHER)
    first, second, *_ = nack_times(client, now + 0.2)
    assert (first - now, second - first) == pytest.approx((0.002, 0.002))


def test_repair_of_later_packets_alone_does_not_make_the_next_nack_prompt(client):
    """Four NACKs for the same packet is what deviation 57 counts: this server repairs, but not that one."""
    client.spm(T, 1, master=OTHER, low=2, high=2, trail=1, lead=1)
    client.odata(T, 1, 3, *range(5, 45, 2), master=OTHER)
    times = [T]
    for seq in range(42, 2, -2):
        due = client.timers.get(ClientTimer.NACK)
        client.odata(due, seq, master=OTHER, rdata=True)
        client.transport.handle_timers(due)
        times.append(due)
    assert times[-1] - times[-2] == pytest.approx(0.05)


def test_long_back_off_is_not_shortened_by_the_limit_of_repetitions(client):
    client.spm(T, 1, master=OTHER, low=400, high=400, trail=1, lead=1)
    client.odata(T, 1, 5, master=OTHER)
    times = nack_times(client, T + 3)
    assert len(times) >= 5
    assert [after - before for before, after in pairwise(times)] == pytest.approx([0.4] * (len(times) - 1))


def test_nack_names_what_is_missing_when_it_is_sent(client):
    client.spm(T, 1, master=OTHER, low=100, high=100)
    client.odata(T, 1, 5, master=OTHER)
    client.odata(T + 0.05, 3, master=OTHER)
    client.transport.handle_timers(T + 0.1 + 1e-6)
    assert client.sent(Nack)[0].ranges == ((2, 2), (4, 4))


def test_nack_of_others_than_the_master_may_wait_as_long_as_the_longer_back_off(client):
    client.transport._rng = Latest()
    client.spm(T, 1, master=OTHER, low=100, high=300)
    client.odata(T, 1, 3, master=OTHER)
    assert client.timers.get(ClientTimer.NACK) == pytest.approx(T + 0.3)


@pytest.mark.parametrize("was_master", [True, False])
def test_who_is_not_the_master_draws_every_wait_from_both_back_offs(client, was_master):
    client.transport._rng = Latest()
    client.spm(T, 1, master=ME if was_master else OTHER, low=100, high=300, trail=1, lead=1)
    client.odata(T, 1, 3, master=ME if was_master else OTHER)
    now = nack_times(client, T + 0.65)[-1]
    client.spm(now, 2, master=OTHER, low=100, high=300, trail=1, lead=3)
    first, second, third = nack_times(client, now + 0.95)
    assert (second - first, third - second) == pytest.approx((0.3, 0.3))


def test_losses_that_one_nack_cannot_hold_are_asked_for_when_the_others_are_repaired(client):
    client.odata(T, *range(1, 802, 2), master=ME)
    asked = set()
    while client.data.missing:
        client.transport.handle_timers(client.timers.get(ClientTimer.NACK))
        ranges = client.sent(Nack)[-1].ranges
        assert len(ranges) == 80
        asked |= set(ranges)
        client.odata(T + 1, *[first for first, _ in ranges], master=ME, rdata=True)
    assert asked == {(seq, seq) for seq in range(2, 801, 2)}


def test_packets_and_losses_that_follow_do_not_change_when_the_first_loss_is_asked_for(client):
    client.spm(T, 1, master=OTHER, low=1, high=1000)
    client.odata(T, 1, 3, master=OTHER)
    due = client.timers.get(ClientTimer.NACK)
    for seq in (*range(5, 50, 2), *range(50, 70)):
        client.odata(T, seq, master=OTHER)
        assert client.timers.get(ClientTimer.NACK) == due


def test_loss_after_one_that_was_asked_for_in_vain_and_then_repaired_is_asked_for_promptly(client):
    client.spm(T, 1, master=OTHER, low=2, high=2, trail=1, lead=1)
    client.odata(T, 1, 3, master=OTHER)
    last = nack_times(client, T + 0.5)[-1]
    client.odata(last, 2, master=OTHER)
    assert nack_times(client, T + 1) == []
    client.odata(T + 1, 5, master=OTHER)
    first, second, *_ = nack_times(client, T + 1.2)
    assert (first - T - 1, second - first) == pytest.approx((0.002, 0.002))


@pytest.mark.parametrize(("low", "high"), [(100, 300), (300, 100)])
def test_master_takes_the_shorter_back_off_whichever_comes_first(client, low, high):
    client.spm(T, 1, master=ME, low=low, high=high)
    client.odata(T, 1, 3, master=ME)
    assert client.timers.get(ClientTimer.NACK) == pytest.approx(T + 0.1)


@pytest.mark.parametrize("low", [1, 2, 100])
def test_master_does_not_nack_again_while_its_timer_runs(client, low):
    client.spm(T, 1, master=ME, low=low, high=100)
    client.odata(T, 1, 3, master=ME)
    assert len(client.sent(Nack)) == 1
    client.odata(T + low / 2000, 5, master=ME)
    assert client.sent(Nack) == []
    client.transport.handle_timers(T + low / 1000 + 1e-6)
    assert client.sent(Nack)[0].ranges == ((2, 2), (4, 4))


def test_master_always_draws_the_shortest_back_off(client):
    client.spm(T, 1, master=ME, low=2, high=202)
    client.odata(T, 1, 3, master=ME)
    assert len(client.sent(Nack)) == 1
    assert nack_times(client, T + 0.009) == pytest.approx([T + 0.002, T + 0.004, T + 0.006, T + 0.008])


def test_client_that_becomes_the_master_does_not_wait_for_the_others_draw(client):
    client.spm(T, 1, master=OTHER, low=100, high=300)
    client.odata(T, 1, 3, master=OTHER)
    client.odata(T + 0.01, 4, master=ME)
    assert client.sent(Nack) == []
    assert client.timers.get(ClientTimer.NACK) == pytest.approx(T + 0.11)
    client.odata(T + 0.05, 5, master=ME)
    assert client.timers.get(ClientTimer.NACK) == pytest.approx(T + 0.11)


def test_client_that_becomes_the_master_does_not_ask_sooner_for_what_nobody_repairs(client):
    client.spm(T, 1, master=OTHER, low=2, high=2)
    client.odata(T, 1, 3, master=OTHER)
    now = nack_times(client, T + 0.5)[-1]
    due = client.timers.get(ClientTimer.NACK)
    client.odata(now, 4, master=ME)
    assert client.timers.get(ClientTimer.NACK) == due


def test_batch_that_loses_and_repairs_is_silent(client):
    client.odata(T, 1, 3, 2, master=ME)
    assert client.sent(Nack) == []


def test_one_nack_holds_at_most_80_ranges_and_the_lowest(client):
    client.odata(T, *range(1, 400, 2), master=ME)
    ranges = client.sent(Nack)[0].ranges
    assert len(ranges) == 80
    assert ranges[0] == (2, 2)
    assert ranges[-1] == (160, 160)


@pytest.mark.parametrize(("master", "high"), [(ME, 0), (ME, 100), (OTHER, 0)])
def test_back_off_of_zero_is_a_millisecond(client, master, high):
    client.spm(T, 1, master=master, low=0, high=high)
    client.odata(T, 1, 3, master=master)
    for _ in range(3):
        due = client.timers.get(ClientTimer.NACK)
        client.transport.handle_timers(due)
        assert client.timers.get(ClientTimer.NACK) == due + 0.001


def test_back_offs_in_the_wrong_order_are_still_a_range(client):
    client.spm(T, 1, master=OTHER, low=300, high=100)
    client.odata(T, 1, 3, master=OTHER)
    assert T + 0.1 - 1e-6 <= client.timers.get(ClientTimer.NACK) <= T + 0.3 + 1e-6


def test_back_offs_in_the_wrong_order_are_drawn_from_all_of_their_range():
    draws = []
    for seed in range(40):
        script = ClientScript(seed=seed).regular()
        script.spm(T, 1, master=OTHER, low=300, high=100)
        script.odata(T, 1, 3, master=OTHER)
        draws.append(script.timers.get(ClientTimer.NACK) - T)
    assert min(draws) < 0.15
    assert max(draws) > 0.25


def test_ncf_changes_nothing(client):
    client.spm(T, 1, master=OTHER, low=100, high=100)
    client.odata(T, 1, 3, master=OTHER)
    due = client.timers.get(ClientTimer.NACK)
    assert client.receive(Ncf(((2, 2),)), T + 0.01) is None
    assert client.timers.get(ClientTimer.NACK) == due
    assert list(client.data.missing) == [(2, 2)]


# ---------------------------------------------------------------------- what leaves the rest alone


LATER = T + 1


@pytest.fixture
def busy():
    """Everything waits: answers to POLL and QCC, a NACK, the next report; the cache is full."""
    script = ClientScript(max_cache_size=50).regular()
    script.spm(T, 10, master=OTHER, low=100, high=300, trail=1, lead=0)
    script.odata(T, 1, 5, 6, master=OTHER)
    script.receive(poll(10, 5000), T)
    script.receive(Qcc(10, 5000), T)
    script.sent()
    script.events()
    return script


@pytest.mark.parametrize(
    ("act", "touched"),
    [
        (lambda busy: busy.spm(LATER, 11, master=OTHER, low=1, high=2, trail=1, lead=6), set()),
        (lambda busy: busy.spm(LATER, 9, master=ME, trail=1, lead=6), set()),
        (lambda busy: busy.receive(Ncf(((2, 4),)), LATER), set()),
        (lambda busy: busy.receive(Qcc(11, 3000), LATER), {ClientTimer.QCC}),
        (lambda busy: busy.receive(Qcc(9, 3000), LATER), set()),
        (lambda busy: busy.receive(poll(11, 3000), LATER), {ClientTimer.POLL}),
        (lambda busy: busy.receive(poll(9, 3000), LATER), set()),
        (lambda busy: busy.receive(Poll(11, 0, b"junk"), LATER), set()),
        (lambda busy: busy.receive(Kick(((OTHER, KickReason.FAIL),)), LATER), set()),
        (lambda busy: busy.receive(Demote(9, bytes(4), 1, bytes(4), 1, (OTHER,)), LATER), set()),
        (lambda busy: busy.receive(JoinAck(9, 0, 0, 0, ms(T) - 1), LATER), set()),
        (lambda busy: busy.odata(LATER, 5, 1, master=OTHER), set()),
        (lambda busy: busy.odata(LATER, 5, master=OTHER, rdata=True), set()),
        (lambda busy: busy.odata(LATER, (7, 0), master=OTHER), set()),
        (lambda busy: busy.transport._qcc_timer(LATER), {ClientTimer.FORCE_QCC}),
        (lambda busy: busy.transport._poll_timer(LATER), set()),
        (lambda busy: busy.transport._nack_timer(LATER), {ClientTimer.NACK}),
        (lambda busy: busy.transport.cache_done(0), set()),
    ],
    ids=[
        "SPM",
        "stale SPM",
        "NCF",
        "QCC",
        "stale QCC",
        "POLL",
        "stale POLL",
        "bad POLL",
        "KICK of another",
        "DEMOTE of another",
        "JOINACK of another",
        "ODATA again",
        "RDATA again",
        "bad data",
        "QCR",
        "POLLACK",
        "NACK",
        "nothing stored",
    ],
)
def test_packet_sets_no_timer_but_its_own_and_counts_nothing_else(busy, act, touched):
    before, missing = deadlines(busy), list(busy.data.missing)
    for timer in touched:
        busy.timers.set(timer, T + 60)
    act(busy)
    after = deadlines(busy)
    assert {timer for timer in before if after[timer] != before[timer]} <= touched
    assert all(after[timer] != T + 60 for timer in touched)
    assert list(busy.data.missing) == missing
    transport = busy.transport
    assert (transport.state, transport.client_id) == (ClientState.REGULAR, ME)
    assert (transport.cache_used, transport.refused) == (46, 1)
    assert (busy.application.blocks.count, busy.events()) == (2, [])


@pytest.mark.parametrize(
    "act",
    [
        lambda client, now: client.receive(poll(1, 0), now),
        lambda client, now: client.receive(Qcc(1, 0), now),
        lambda client, now: client.receive(Ncf(((2, 4),)), now),
        lambda client, now: client.spm(now, 1, master=ME, low=2, high=2, trail=1, lead=5),
        lambda client, now: client.spm(now, 2, master=OTHER, low=2, high=2, trail=1, lead=5),
        lambda client, now: client.odata(now, 5, master=OTHER),
    ],
    ids=["POLL", "QCC", "NCF", "stale SPM", "SPM", "what is there"],
)
def test_only_a_repair_makes_nacks_prompt_again(client, act):
    client.spm(T, 1, master=OTHER, low=2, high=2, trail=1, lead=1)
    client.odata(T, 1, 5, master=OTHER)
    last = nack_times(client, T + 0.5)[-1]
    act(client, last + 0.001)
    times = [last, *nack_times(client, last + 0.175)]
    assert [after - before for before, after in pairwise(times)] == pytest.approx([0.05] * 3)


def test_zero_nacks_are_no_nacks_that_brought_nothing():
    script = ClientScript(max_cache_size=46).regular()
    script.spm(T, 1, master=OTHER, low=2, high=2, trail=1, lead=1)
    script.odata(T, 1, 5, master=OTHER)
    (first,) = nack_times(script, T + 0.003)
    for seq in range(6, 11):
        script.odata(first, seq, master=OTHER)
    assert [nack.ranges for nack in script.sent(Nack)] == [()] * 5
    assert [round((after - first) * 1000) for after in nack_times(script, T + 0.011)] == [2, 4, 6, 8]


# ---------------------------------------------------------------------- blocks and the cache


def arrived(script):
    return [
        (run.first_row, run.first_block, run.rows, run.rows * event.charged // event.count)
        for event in script.events()
        if isinstance(event, BlocksArrived)
        for run in event.runs
    ]


def test_consecutive_blocks_of_a_batch_are_one_event(client):
    client.odata(T, (1, 11), (2, 12), (3, 13))
    (event,) = client.events()
    assert (event.runs, event.count) == ([BlockRun(0, 3, 11)], 3)
    assert (event.data_offset, event.block_len, event.charged) == (53, 10, 69)


def test_blocks_that_do_not_follow_each_other_are_apart(client):
    client.odata(T, (1, 11), (2, 12), (3, 20), (5, 21))
    assert arrived(client) == [(0, 11, 2, 46), (2, 20, 1, 23), (3, 21, 1, 23)]


def test_known_blocks_are_left_out_and_not_charged(client):
    client.application.data(12, 1)
    client.odata(T, (1, 11), (2, 12), (3, 13))
    assert arrived(client) == [(0, 11, 1, 23), (2, 13, 1, 23)]
    assert client.transport.cache_used == 46
    assert client.application.duplicates == 1


def test_server_that_forgets_a_client_twice_counts_it_in_twice(client):
    for client_id in (8, 9):
        assert client.receive(JoinAck(client_id, 0, 0, 0, ms(T)), T + 1) is None
        assert client.transport.client_id == client_id


def test_another_joinack_may_shorten_the_back_off(client):
    for high in (200, 10):
        client.receive(JoinAck(ME, 5, high, 0, ms(T)), T + 1)
    assert client.transport.data.max_nack_back_off == 0.01


def test_rdata_delivers_like_odata(client):
    client.odata(T, (1, 11), (3, 13))
    client.events()
    client.odata(T, (2, 12), rdata=True)
    assert arrived(client) == [(0, 12, 1, 23)]
    assert list(client.data.missing) == []


def test_late_client_takes_the_block_of_a_repair_that_comes_first_and_misses_nothing_behind_it(client):
    client.odata(T, (100, 5), (102, 7), master=ME, trail=90, rdata=True)
    assert arrived(client) == [(0, 5, 1, 23), (1, 7, 1, 23)]
    client.odata(T, (500, 405), (501, 406), trail=95)
    assert client.data.first == 500
    assert list(client.data.missing) == []
    assert client.data.loss.rate == 0.0
    assert client.sent() == []


def test_late_client_takes_and_charges_every_block_of_repairs_that_come_first_in_a_row(client):
    client.odata(T, (100, 5), (101, 6), (102, 7), master=OTHER, trail=90, rdata=True)
    (event,) = client.events()
    assert event.runs == [BlockRun(0, 3, 5)]
    assert client.transport.cache_used == event.charged == 69


def test_short_last_block_is_charged_and_credited_as_short_as_it_is_whether_new_or_repaired():
    for rdata in (False, True):
        client = ClientScript(total_blocks=100, content_size=997).regular()
        client.odata(T, (1, 1), (3, 3), master=OTHER)
        client.events()
        client.odata(T, (2 if rdata else 4, 100), master=OTHER, rdata=rdata, block_len=7)
        (event,) = client.events()
        assert (event.charged, client.transport.cache_used) == (20, 2 * 23 + 20)


def test_client_from_before_the_start_places_a_repair_that_comes_first(client):
    client.spm(T, 1)
    client.odata(T, 2, rdata=True)
    assert list(client.data.missing) == [(1, 1)]
    client.odata(T, 3)
    assert client.data.continuous() == 0
    assert list(client.data.missing) == [(1, 1)]


def test_full_cache_refuses_with_one_empty_nack():
    script = ClientScript(max_cache_size=50).regular()
    script.odata(T, 1, 2, 3, 4)
    assert arrived(script) == [(0, 1, 2, 46)]
    assert script.transport.refused == 2
    rate = round(script.data.loss.rate * 10**16)
    assert script.sent(Nack) == [Nack(ME, 4, rate, ())]


def test_full_cache_refuses_blocks_that_do_not_follow_each_other_with_one_empty_nack():
    script = ClientScript(max_cache_size=20).regular()
    script.odata(T, (1, 1), (2, 3), (3, 5))
    assert script.transport.refused == 3
    assert [nack.ranges for nack in script.sent(Nack)] == [()]


def test_zero_nack_scales_its_loss_rate():
    script = ClientScript(max_cache_size=20).regular()
    script.odata(T, 1)
    script.sent()
    script.odata(T, 3)
    (zero,) = [nack for nack in script.sent(Nack) if not nack.ranges]
    assert zero.loss_rate == round(script.data.loss.rate * 10**16) > 10**13


def test_batch_with_a_bad_block_before_one_that_the_cache_refuses_gets_its_empty_nack():
    script = ClientScript(max_cache_size=20).regular()
    assert script.odata(T, (1, 0), (2, 2)) == [(DropReason.FIELD, 1)]
    assert [nack.ranges for nack in script.sent(Nack)] == [()]


def test_next_batch_is_refused_with_an_empty_nack_of_its_own():
    script = ClientScript(max_cache_size=20).regular()
    script.odata(T, 1)
    script.odata(T + 1, 2)
    assert [nack.ranges for nack in script.sent(Nack)] == [(), ()]


def test_refused_block_counts_as_received_for_the_transport_only():
    script = ClientScript(max_cache_size=23).regular()
    script.odata(T, 1, 2, 3, master=ME)
    assert list(script.data.missing) == []
    assert script.sent(Ack)[-1].odata_seq_no == 3
    assert decode(script.application.missing_packet(T)).ranges == ((2, 100_000),)


def test_block_that_just_fits_is_taken():
    script = ClientScript(max_cache_size=23).regular()
    script.odata(T, 1)
    assert arrived(script) == [(0, 1, 1, 23)]
    assert script.sent(Nack) == []


def test_block_that_is_one_byte_too_long_is_refused():
    script = ClientScript(max_cache_size=22).regular()
    script.odata(T, 1)
    assert arrived(script) == []
    assert len(script.sent(Nack)) == 1


def test_cache_done_makes_room_again():
    script = ClientScript(max_cache_size=50).regular()
    script.odata(T, 1, 2, 3)
    script.sent()
    script.events()
    script.transport.cache_done(23)
    script.odata(T, (4, 3), (5, 4))
    assert arrived(script) == [(0, 3, 1, 23)]
    assert len(script.sent(Nack)) == 1


def test_duplicates_do_not_leak_the_cache():
    script = ClientScript(max_cache_size=50).regular()
    for seq in range(1, 100):
        script.odata(T, (seq, 1))
    assert script.transport.cache_used == 23
    assert script.sent(Nack) == []


def test_duplicates_do_not_use_up_the_room_of_new_blocks():
    script = ClientScript(max_cache_size=46, have=[(1, 8)]).regular()
    script.odata(T, *range(1, 11))
    assert arrived(script) == [(8, 9, 2, 46)]
    assert script.application.duplicates == 8
    assert (script.transport.refused, script.sent(Nack)) == (0, [])


def test_too_many_credits_do_not_make_the_cache_larger_than_it_is(client):
    client.transport.cache_done(1000)
    assert client.transport.cache_used == 0


# ---------------------------------------------------------------------- data that is refused


@pytest.mark.parametrize(
    ("rows", "trail", "block_len"),
    [
        ([(0, 1)], 0, 10),  # numbers start with 1
        ([(5, 1)], 6, 10),  # no packet is below its own trail
        ([(5, 0)], 1, 10),
        ([(5, 100_001)], 1, 10),
        ([(5, 1)], 1, 9),
        ([(5, 100_000), (6, 100_001)], 1, 10),
    ],
)
def test_data_that_cannot_be_of_this_content_is_dropped_whole(client, rows, trail, block_len):
    assert client.odata(T, *rows, trail=trail, block_len=block_len, master=ME) == [
        (DropReason.FIELD, len(rows))
    ]
    assert (client.sent(), client.events()) == ([], [])
    assert (client.data.first, client.data.master) == (0, 0)


def test_packets_before_the_first_are_counted_as_stale_and_not_delivered(client):
    client.odata(T, 50, master=ME)
    client.sent()
    client.events()
    assert client.odata(T, 48, 49, 50, 51, master=ME) == [(DropReason.STALE, 2)]
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [50, 51]
    assert arrived(client) == [(3, 51, 1, 23)]
    assert client.odata(T, 10, 11, master=ME) == [(DropReason.STALE, 2)]
    assert (client.sent(), client.events()) == ([], [])


def test_sequence_numbers_that_wrap_around_are_not_consecutive(client):
    last = 2**64 - 1
    assert client.odata(T, (last, 1), (0, 2)) == [(DropReason.FIELD, 1)]
    assert arrived(client) == [(0, 1, 1, 23)]


# ---------------------------------------------------------------------- KICK, DEMOTE, LEAVE


@pytest.mark.parametrize("reason", KickReason)
def test_kick_of_this_client_sends_a_leave_and_ends_the_session(client, reason):
    before, behind = (other for other in KickReason if other is not reason)
    kick = Kick(((1, before), (ME, reason), (9, behind)))
    assert client.receive(kick, T + 1) is None
    assert client.transport.state is ClientState.LEAVING
    client.transport.handle_timers(T + 1.2)
    assert client.sent() == [Leave(ME, LeaveReason.CANCELLED)]
    assert client.events() == [Departed(Left.KICKED, reason)]
    assert client.transport.state is ClientState.OVER


def test_kick_of_others_changes_nothing(client):
    before = client.timers.next_deadline()
    assert client.receive(Kick(((1, KickReason.FAIL), (8, KickReason.FAIL))), T + 1) is None
    assert client.transport.state is ClientState.REGULAR
    assert client.timers.next_deadline() == before


LOWER = Demote(99, bytes([239, 0, 0, 9]), 7009, bytes([10, 0, 0, 9]), 7010, (1, ME))


def test_demote_of_this_client_sends_a_leave_and_names_the_lower_session(client):
    assert client.receive(LOWER, T + 1) is None
    client.transport.handle_timers(T + 1.2)
    assert client.sent() == [Leave(ME, LeaveReason.CANCELLED)]
    assert client.events() == [Demoted(99, bytes([239, 0, 0, 9]), 7009, bytes([10, 0, 0, 9]), 7010)]
    assert client.transport.state is ClientState.OVER


def test_demote_of_others_changes_nothing(client):
    others = Demote(99, bytes(4), 1, bytes(4), 1, (1, 2, 3))
    assert client.receive(others, T + 1) is None
    assert client.transport.state is ClientState.REGULAR


def test_leave_waits_up_to_200_ms_when_no_back_off_is_known():
    waits = []
    for seed in range(60):
        script = ClientScript(seed=seed).regular(low=0, high=0)
        script.transport.leave(LeaveReason.COMPLETE, T, Departed(Left.COMPLETE))
        waits.append(script.timers.next_deadline() - T)
    assert all(0 <= wait <= 0.2001 for wait in waits)
    assert min(waits) < 0.03
    assert max(waits) > 0.17


@pytest.mark.parametrize("high", [20, 1000])
def test_leave_waits_up_to_the_larger_back_off_when_one_is_known(high):
    waits = []
    for seed in range(60):
        script = ClientScript(seed=seed).regular(low=5, high=high)
        script.transport.leave(LeaveReason.COMPLETE, T, Departed(Left.COMPLETE))
        waits.append((script.timers.next_deadline() - T) / high * 1000)
    assert all(0 <= wait <= 1.0001 for wait in waits)
    assert min(waits) < 0.1
    assert max(waits) > 0.9


def test_what_was_to_be_sent_and_told_before_leaving_still_is(client):
    client.odata(T, 1, master=ME)
    client.transport.leave(LeaveReason.COMPLETE, T, Departed(Left.COMPLETE))
    client.transport.handle_timers(T + 0.2)
    assert [type(packet) for packet in client.sent()] == [Ack, Leave]
    assert [type(event) for event in client.events()] == [BlocksArrived, Departed]


@pytest.mark.parametrize("reason", LeaveReason)
def test_leave_carries_the_reason_it_was_given(client, reason):
    client.transport.leave(reason, T, Departed(Left.COMPLETE))
    client.transport.handle_timers(T + 0.2)
    assert client.sent() == [Leave(ME, reason)]


def test_first_reason_to_leave_is_the_one_that_counts(client):
    client.transport.leave(LeaveReason.COMPLETE, T, Departed(Left.COMPLETE))
    client.transport.leave(LeaveReason.CANCELLED, T, Departed(Left.CANCELLED))
    client.transport.handle_timers(T + 1)
    client.transport.leave(LeaveReason.CANCELLED, T, Departed(Left.CANCELLED))
    client.transport.handle_timers(T + 2)
    assert client.sent() == [Leave(ME, LeaveReason.COMPLETE)]
    assert client.events() == [Departed(Left.COMPLETE)]


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        (LeaveReason.COMPLETE, Left.COMPLETE),
        (LeaveReason.CANCELLED, Left.CANCELLED),
        (LeaveReason.INACTIVE, Left.INACTIVE),
    ],
)
def test_who_ends_on_the_way_to_a_lower_session_does_not_go_there(client, reason, why):
    client.receive(LOWER, T)
    client.transport.leave(reason, T, Departed(why))
    client.transport.leave(LeaveReason.CANCELLED, T, Departed(Left.KICKED))
    client.transport.handle_timers(T + 1)
    assert client.sent() == [Leave(ME, reason)]
    assert client.events() == [Departed(why)]


def test_leaving_client_does_nothing_else(client):
    client.receive(poll(1), T)
    client.receive(Qcc(1, 100), T)
    client.odata(T, 1, 5, master=OTHER)
    client.events()
    client.transport.leave(LeaveReason.COMPLETE, T, Departed(Left.COMPLETE))
    for packet in (poll(2), Qcc(2, 0), Spm(1, ME, 0, 0, 1, 9, 0), JoinAck(ME, 0, 0, 0, ms(T)), LOWER):
        assert client.receive(packet, T) is DropReason.STATE
    assert client.odata(T, 6, master=ME) == [(DropReason.STATE, 1)]
    client.transport.handle_timers(T + 60)
    assert client.sent() == [Leave(ME, LeaveReason.COMPLETE)]
    assert client.events() == [Departed(Left.COMPLETE)]


def test_leaving_before_joinack_has_nobody_to_tell():
    script = ClientScript()
    script.sent()
    script.transport.leave(LeaveReason.CANCELLED, T, Departed(Left.CANCELLED))
    assert script.events() == [Departed(Left.CANCELLED)]
    script.transport.handle_timers(T + 60)
    assert script.sent() == []


@pytest.mark.parametrize(
    "packet",
    [Join("x", bytes(4), b""), Qcr(ME, 0, 0, 0, 0, 0, b""), Ack(ME, 0, 0, 0, 0), OData(1, 1, 1, b"")],
)
def test_packets_that_a_server_does_not_send_are_refused(client, packet):
    assert client.receive(packet, T) is DropReason.STATE
    assert (client.sent(), client.events()) == ([], [])


# ---------------------------------------------------------------------- batches against single packets


@st.composite
def batches(draw):
    """Batches of one server: consecutive, repeated and lost packets; master and trail move with time.

    Each is (which are RDATA, rows): all or none as a rule, since a kind has its own length where there is
    FW_LEAD, and both kinds mixed where there is not. Repairs are in any order, asked for by anybody: some are
    from before this client's first packet, some run ahead of ODATA that was lost.
    """
    found, seq, trail, master = [], draw(st.integers(1, 5)), 0, draw(st.sampled_from([ME, OTHER]))
    for _ in range(draw(st.integers(1, 6))):
        rows = []
        if draw(st.integers(0, 9)) == 0:
            master = draw(st.sampled_from([ME, OTHER]))
        trail = max(trail, draw(st.integers(0, max(0, seq - 3))))
        kinds = draw(st.sampled_from([(False,), (False,), (True,), (False, True)]))
        repairs = []
        for _ in range(draw(st.integers(1, 9))):
            repairs.append(draw(st.sampled_from(kinds)))
            if draw(st.integers(0, 9)) == 0:
                trail = max(trail, draw(st.integers(0, max(0, seq - 3))))
            if repairs[-1]:
                low = max(1, trail, seq - 12)
                number = draw(st.integers(low, max(low, seq + draw(st.sampled_from([-1, -1, 2])))))
                seq = max(seq, number + 1)
            else:
                kind = draw(st.integers(0, 9))
                if kind == 0:
                    seq += draw(st.integers(1, 4))
                number = seq
                if kind == 1 and seq > 4:
                    number = draw(st.integers(max(1, trail), seq - 1))
                else:
                    seq += 1
            lead = draw(st.sampled_from([NO_LEAD, 0, number]))
            rows.append((number, trail if trail <= number else number, master, lead))
        found.append((repairs, rows))
    return found


def literally(literal, rows, repairs):
    """ACKs as (sequence number, server time) and what remains missing, one packet after the other."""
    acks = []
    for place, (seq, trail, master, lead) in enumerate(rows):
        taken = literal.data(seq, trail=trail, master=master, repair=repairs[place])
        if taken and literal.master == ME and lead >= seq:
            acks.append((literal.continuous(), 500 + place))
    return acks


@given(batches())
@settings(STEADY, max_examples=200)
def test_batch_leaves_what_its_packets_leave_one_by_one(script):
    client, literal = ClientScript().regular(), LiteralClient()
    for repairs, rows in script:
        client.transport.on_data(
            records(
                [(seq, seq) for seq, *_ in rows],
                block_len=10,
                trails=[trail for _, trail, _, _ in rows],
                masters=[master for _, _, master, _ in rows],
                leads=[lead for *_, lead in rows],
                rdata=repairs,
            ),
            T,
        )
        expected = literally(literal, rows, repairs)
        assert list(client.data.missing) == [tuple(each) for each in literal.ranges]
        assert client.data.continuous() == literal.continuous()
        assert client.data.highest == literal.hi
        assert client.data.loss.rate == pytest.approx(literal.loss, abs=1e-12)
        assert [(ack.odata_seq_no, ack.server_time) for ack in client.sent(Ack)] == expected


@pytest.mark.parametrize("rdata", [True, False])
def test_run_whose_trail_moves_past_its_first_packet_is_taken_packet_by_packet(client, rdata):
    client.odata(T, 9, 20)
    client.events()
    dropped = client.transport.on_data(
        records([(10, 10), (11, 11)], block_len=10, trails=[10, 11], masters=[OTHER, OTHER], rdata=rdata),
        T,
    )
    assert dropped == []
    assert arrived(client) == [(0, 10, 2, 46)]


@pytest.mark.parametrize("rdata", [True, False])
@pytest.mark.parametrize("between", [(11, 15), (15, 15)], ids=["its block", "another"])
def test_what_follows_with_a_row_between_is_two_events(client, between, rdata):
    client.odata(T, 9, 20)
    client.events()
    last = (12, 11) if between == (11, 15) else (11, 11)
    found = records([(10, 10), between, last], block_len=10, trails=[9] * 3, masters=[OTHER] * 3, rdata=rdata)
    for name in ("rows", "header", "odata_seq_no", "block_number", "fw_lead"):
        setattr(found, name, getattr(found, name)[[0, 2]])  # the one between failed its checksum
    assert client.transport.on_data(found, T) == []
    assert arrived(client) == [(0, 10, 1, 23), (2, 11, 1, 23)]


def test_repairs_are_counted_as_what_they_are(client):
    """Some are asked for by others, one fills a hole of this client's, one is acknowledged."""
    client.odata(T, 1, 2, 6, master=OTHER)
    client.events()
    client.sent()
    found = records(
        [(1, 1), (4, 4), (6, 6)], block_len=10, trails=[1] * 3, masters=[ME] * 3, leads=[0, 4, 0], rdata=True
    )
    loss = client.data.loss.rate
    assert client.transport.on_data(found, T) == []
    assert list(client.data.missing) == [(3, 3), (5, 5)]
    assert client.transport.application.duplicates == 2
    assert arrived(client) == [(1, 4, 1, 23)]
    assert [(ack.odata_seq_no, ack.server_time) for ack in client.sent(Ack)] == [(2, 501)]
    assert client.data.loss.rate == pytest.approx(loss * (1 - 500 / 65536) ** 3)


@pytest.mark.parametrize("master", [ME, OTHER])
def test_repair_that_comes_twice_in_a_batch_is_two_arrivals_of_one_block(client, master):
    client.odata(T, 1, 2, 6, master=OTHER)
    client.events()
    loss = client.data.loss.rate
    assert client.odata(T, 4, 4, 5, master=master, rdata=True) == []
    assert client.data.loss.rate == pytest.approx(loss * (1 - 500 / 65536) ** 3)
    assert sorted(block for _, block, *_ in arrived(client)) == [4, 5]
    assert client.application.duplicates == 1
    assert client.transport.cache_used == 5 * 23


def test_repairs_that_follow_each_other_in_the_middle_of_a_batch_are_one_event(client):
    client.odata(T, 1, 20)
    client.events()
    client.odata(T, (1, 1), (5, 5), (6, 6), (7, 7), (9, 9), (10, 10), trail=1, rdata=True)
    assert arrived(client) == [(1, 5, 3, 69), (4, 9, 2, 46)]


@pytest.mark.parametrize("block", [0, 100_001])
def test_repairs_of_another_content_are_dropped_alone(client, block):
    client.odata(T, 9, 30)
    client.events()
    dropped = client.odata(T, (10, 10), (11, block), (12, 12), trail=9, rdata=True)
    assert dropped == [(DropReason.FIELD, 1)]
    assert arrived(client) == [(0, 10, 1, 23), (2, 12, 1, 23)]
    assert 11 in client.data.missing


def test_repair_below_its_own_trail_is_dropped_alone(client):
    client.odata(T, 9, 30)
    client.events()
    dropped = client.transport.on_data(
        records([(10, 10), (15, 15)], block_len=10, trails=[11, 9], masters=[OTHER] * 2, rdata=True), T
    )
    assert dropped == [(DropReason.FIELD, 1)]
    assert arrived(client) == [(1, 15, 1, 23)]
    assert 10 in client.data.missing


def test_trail_of_repairs_ends_the_search_for_what_is_below_it(client):
    client.odata(T, 9, 30)
    client.odata(T, 20, 25, trail=15, rdata=True)
    assert list(client.data.missing) == [(15, 19), (21, 24), (26, 29)]
    assert client.data.trail == 15


def test_packet_of_a_run_that_is_below_its_own_trail_is_dropped_alone(client):
    dropped = client.transport.on_data(
        records([(10, 10), (11, 11), (12, 12)], block_len=10, trails=[10, 12, 12], masters=[ME] * 3), T
    )
    assert dropped == [(DropReason.FIELD, 1)]
    assert arrived(client) == [(0, 10, 1, 23), (2, 12, 1, 23)]


def test_packet_of_a_run_that_is_numbered_zero_is_dropped_alone(client):
    assert client.odata(T, (0, 1), (1, 2), (2, 3)) == [(DropReason.FIELD, 1)]
    assert arrived(client) == [(1, 2, 1, 23), (2, 3, 1, 23)]
    assert client.data.first == 1


def test_master_that_changes_inside_a_run_acknowledges_only_its_own_packets(client):
    client.transport.on_data(
        records([(1, 1), (2, 2), (3, 3)], block_len=10, trails=[1, 1, 1], masters=[OTHER, ME, ME]), T
    )
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [2, 3]


def test_client_that_a_batch_makes_the_master_acknowledges_this_batch_already(client):
    client.odata(T, 1, master=OTHER)
    client.odata(T, 2, 3, master=ME)
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [2, 3]


def test_last_ack_of_a_run_says_all_that_was_reached(client):
    client.odata(T, 1, 2, 5, 6, 9, master=ME)
    client.sent()
    client.odata(T, 3, 4, master=ME)  # late, not repaired
    assert client.sent(Ack)[-1].odata_seq_no == 6


def test_acks_of_packets_that_came_again_say_all_that_was_reached(client):
    client.odata(T, 1, 2, 3, 4, 5, 6, master=ME)
    client.sent()
    client.odata(T, 3, 4, master=ME)
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [6, 6]


def test_last_ack_of_a_batch_says_all_that_was_reached(client):
    client.odata(T, 1, 2, 5, 6, 9, master=ME)
    client.sent()
    client.odata(T, 3, 4, 5, 6, master=ME, rdata=True)
    assert client.sent(Ack)[-1].odata_seq_no == 6


# ---------------------------------------------------------------------- batches with holes, at a glance


def test_batch_with_holes_is_one_event_and_one_list_of_what_is_missing(client):
    client.odata(T, (1, 11), (2, 12), (4, 14), (7, 17), master=OTHER)
    (event,) = client.events()
    assert event.runs == [BlockRun(0, 2, 11), BlockRun(2, 1, 14), BlockRun(3, 1, 17)]
    assert (event.count, event.charged, client.transport.cache_used) == (4, 92, 92)
    client.odata(T, (9, 19), (12, 22), master=OTHER)
    (event,) = client.events()
    assert event.runs == [BlockRun(0, 1, 19), BlockRun(1, 1, 22)]
    assert list(client.data.missing) == [(3, 3), (5, 6), (8, 8), (10, 11)]
    missing = [block for block in range(11, 23) if block not in client.application.blocks]
    assert missing == [13, 15, 16, 18, 20, 21]


@pytest.mark.parametrize("last", [40, 41])
def test_batch_that_reaches_beyond_the_content_is_dropped_where_it_does(client, last):
    client.odata(T, (1, 1), master=OTHER)
    client.events()
    first = client.application.total_blocks + last - 42
    dropped = client.odata(T, (2, first), (4, first + 2), master=OTHER)
    assert dropped == ([] if last == 40 else [(DropReason.FIELD, 1)])
    assert [block for _, block, *_ in arrived(client)] == [first, first + 2][: 42 - last]


def test_batch_with_holes_of_which_the_cache_takes_a_part_is_refused_from_there():
    client = ClientScript(max_cache_size=5 * 23).regular()
    client.odata(T, (1, 1), (2, 2), master=OTHER)
    client.events()
    client.odata(T, (3, 3), (5, 5), (6, 6), (8, 8), master=OTHER)
    (event,) = client.events()
    assert event.runs == [BlockRun(0, 1, 3), BlockRun(1, 2, 5)]
    assert (client.transport.cache_used, client.transport.refused) == (115, 1)
    assert () in [nack.ranges for nack in client.sent(Nack)]


def test_batch_with_holes_beyond_the_horizon_is_passed_on_up_to_it(client):
    client.odata(T, (1, 1), master=OTHER)
    client.events()
    client.application.horizon = 5
    client.odata(T, (2, 2), (5, 5), (7, 7), master=OTHER)
    (event,) = client.events()
    assert event.runs == [BlockRun(0, 1, 2), BlockRun(1, 1, 5)]
    assert client.transport.refused == 1


@pytest.mark.parametrize(
    ("horizon", "blocks", "refused"),
    [(5, (4, 5, 6, 7), 2), (5, (6, 7, 8), 3), (4, (6, 7), 2), (5, (4, 5), 0), (3, (4, 5), 2), (9, (2, 3), 0)],
)
def test_blocks_that_a_pipe_cannot_take_yet_count_as_refused_without_a_zero_nack(
    client, horizon, blocks, refused
):
    client.application.horizon = horizon
    client.odata(T, *blocks, master=ME)
    assert client.transport.refused == refused
    assert client.sent(Nack) == []
    client.application.horizon = 20
    client.odata(T, *((40 + block, block) for block in blocks), master=ME)
    assert client.transport.refused == refused


def test_blocks_out_of_reach_are_refused_behind_those_that_the_cache_has_no_room_for():
    client = ClientScript(max_cache_size=3 * 23).regular()
    client.application.horizon = 5
    client.odata(T, *range(1, 11), master=OTHER)
    assert client.transport.refused == 7


def test_master_acknowledges_packets_of_a_batch_with_holes_up_to_the_first(client):
    client.transport.on_data(
        records(
            [(1, 1), (2, 2), (4, 4), (5, 5)],
            block_len=10,
            trails=[1] * 4,
            masters=[ME] * 4,
            leads=[NO_LEAD, 0, NO_LEAD, NO_LEAD],
        ),
        T,
    )
    client.sent()
    client.transport.on_data(
        records(
            [(6, 6), (7, 7), (9, 9)],
            block_len=10,
            trails=[3, 4, 4],
            masters=[ME] * 3,
            leads=[NO_LEAD, NO_LEAD, NO_LEAD],
        ),
        T,
    )
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [2, 7, 7]


@pytest.mark.parametrize(
    ("cache", "horizon", "trail", "rows"),
    [
        (1000, 100, 0, [(2, 12), (3, 13), (5, 15)]),
        (4 * 23, 100, 0, [(2, 12), (3, 13), (5, 15)]),
        (1000, 15, 0, [(2, 12), (3, 13), (5, 15)]),
        (1000, 100, 2, [(2, 12), (3, 13), (5, 15)]),
        (1000, 100, 0, [(7, 17), (9, 19)]),
        (1000, 100_000, 0, [(2, 99_998), (4, 100_000)]),
        (1000, 100_000, 0, [(2, 100_000)]),
    ],
    ids=[
        "usual",
        "fills the cache",
        "up to the horizon",
        "Trail is the first",
        "behind a hole",
        "up to the content's end",
        "the last block alone",
    ],
)
def test_batch_in_order_is_taken_at_a_glance_and_charged(monkeypatch, cache, horizon, trail, rows):
    client = ClientScript(max_cache_size=cache).regular()
    client.odata(T, (1, 11), master=OTHER)
    client.events()
    client.application.horizon = horizon
    monkeypatch.setattr(module, "runs_of", None)
    client.odata(T, *rows, trail=trail, master=OTHER)
    (event,) = client.events()
    assert [block for _, count, first in event.runs for block in range(first, first + count)] == [
        block for _, block in rows
    ]
    assert client.transport.cache_used == 23 + event.charged == 23 * (1 + len(rows))


@pytest.mark.parametrize("cache", [1000, 4 * 23], ids=["", "which are the last that the cache has room for"])
def test_repairs_are_taken_at_a_glance(monkeypatch, cache):
    client = ClientScript(max_cache_size=cache).regular()
    client.odata(T, 1, 6, master=OTHER)
    monkeypatch.setattr(module, "runs_of", None)
    client.odata(T, 3, 4, master=OTHER, rdata=True)
    assert list(client.data.missing) == [(2, 2), (5, 5)]
    assert client.transport.cache_used == 4 * 23


def test_repairs_that_want_no_ack_fill_their_holes_before_and_after_one_that_does(client):
    client.odata(T, 1, 8, master=ME)
    client.sent()
    client.odata(T, 2, 3, 5, 6, master=ME, rdata=True, leads=[0, NO_LEAD, 0, 0])
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [3]
    assert list(client.data.missing) == [(4, 4), (7, 7)]


def test_repairs_that_want_no_ack_fill_their_holes_though_the_first_of_them_did(client):
    client.odata(T, 1, 8, master=ME)
    client.sent()
    client.odata(T, 2, 3, 5, 6, master=ME, rdata=True, leads=[NO_LEAD, 0, 0, 0])
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [2]
    assert list(client.data.missing) == [(4, 4), (7, 7)]


def test_repairs_that_the_cache_would_hold_without_their_headers_alone_go_one_by_one():
    client = ClientScript(max_cache_size=76).regular()
    client.odata(T, 1, 4, master=OTHER)
    client.events()
    client.odata(T, 2, 3, master=OTHER, rdata=True)
    assert [each[:3] for each in arrived(client)] == [(0, 2, 1)]
    assert (client.transport.cache_used, client.transport.refused) == (69, 1)


def test_repairs_that_are_there_already_are_not_refused(client):
    client.odata(T, 1, 2, 3, 9, master=OTHER)
    client.odata(T, 2, 3, 4, master=OTHER, rdata=True)
    assert (client.application.duplicates, client.transport.refused) == (2, 0)


def test_repairs_that_a_pipe_cannot_take_yet_are_acknowledged_once_each(client):
    client.odata(T, 1, 9, master=ME)
    client.sent()
    client.application.horizon = 5
    client.odata(T, 2, 7, master=ME, rdata=True)
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [2, 2]


def test_repair_of_the_lost_tail_is_the_highest_packet_that_came(client):
    """HiODATASeqNo (MS-WDSMT 3.2.5.14): an SPM alone had told of it."""
    client.odata(T, 1, 2, 3, master=OTHER)
    client.spm(T, 1, master=OTHER, trail=1, lead=8)
    assert client.odata(T, 6, master=OTHER, rdata=True) == []
    assert client.data.highest == 6
    assert list(client.data.missing) == [(4, 5), (7, 8)]


def test_master_acknowledges_the_rest_of_a_run_that_began_before_its_list(client):
    client.odata(T, 5, master=ME)
    client.sent()
    assert client.odata(T, 3, 4, 5, 6, 7, master=ME, leads=[0, 0, 0, 0, NO_LEAD]) == [(DropReason.STALE, 2)]
    assert [ack.odata_seq_no for ack in client.sent(Ack)] == [7]


def test_repair_numbered_zero_before_any_data_is_dropped(client):
    assert client.odata(T, (0, 1), master=ME, rdata=True) == [(DropReason.FIELD, 1)]
    assert (client.sent(), client.events()) == ([], [])


def test_repair_that_is_there_already_between_two_that_are_not_counts_once_as_a_duplicate(client):
    client.odata(T, 1, 3, 9, master=OTHER)
    client.events()
    client.odata(T, 2, 3, 4, master=OTHER, rdata=True)
    assert client.application.duplicates == 1
    assert arrived(client) == [(0, 2, 1, 23), (2, 4, 1, 23)]


def test_acks_of_a_batch_with_holes_answer_each_its_packet_up_to_the_hole_before_it(client):
    client.odata(T, 1, master=ME)
    client.sent()
    client.odata(
        T, 2, 3, 4, 6, 7, master=ME, leads=[NO_LEAD, 0, NO_LEAD, 0, NO_LEAD], times=[10, 20, 30, 40, 50]
    )
    acks = [(ack.odata_seq_no, ack.server_time) for ack in client.sent(Ack)]
    assert acks == [(2, 10), (4, 30), (4, 50)]


def test_batch_that_does_not_fit_as_a_whole_changes_nothing_before_it_goes_run_by_run(client):
    """What is refused at a glance must not count twice: not for loss, not for the cache."""
    client.odata(T, 1, 5, master=OTHER)
    other = ClientScript().regular()
    other.odata(T, 1, 5, master=OTHER)
    client.application.horizon = other.application.horizon = 8
    client.odata(T, 6, 8, 9, master=OTHER)
    for row in (6, 8, 9):
        other.odata(T, row, master=OTHER)
    assert client.data.loss.rate == other.data.loss.rate
    assert list(client.data.missing) == list(other.data.missing)
    assert client.transport.cache_used == other.transport.cache_used == 4 * 23
    assert client.application.blocks.count == other.application.blocks.count == 4


@pytest.mark.parametrize(
    ("rows", "block_len", "kept"),
    [
        ([(2, 0), (4, 2)], 10, [2]),
        ([(2, 98), (4, 100)], 10, [98]),
        ([(2, 98), (4, 100)], 7, [100]),
        ([(2, 98), (4, 100)], 6, []),
    ],
    ids=["before the first", "the last is too long", "only the last may be short", "none is so short"],
)
def test_blocks_of_a_batch_with_holes_that_are_none_of_the_content_are_dropped(rows, block_len, kept):
    client = ClientScript(total_blocks=100, content_size=997).regular()
    client.odata(T, (1, 1), master=OTHER)
    client.events()
    dropped = client.odata(T, *rows, master=OTHER, block_len=block_len)
    assert sum(count for _, count in dropped) == len(rows) - len(kept)
    assert [block for _, block, *_ in arrived(client)] == kept
