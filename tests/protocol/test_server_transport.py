"""The server's transport: who joins, answers, leaves and is removed, and how a master is found."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_scripts import STEADY, ServerScript, T, address, ms

from wdstransport.protocol.clients import DemoteTarget
from wdstransport.protocol.events import ClientActive, ClientGone, Gone, Terminated
from wdstransport.protocol.parameters import ServerParameters
from wdstransport.protocol.server_transport import ServerState
from wdstransport.protocol.timers import ServerTimer
from wdstransport.wire.options import CAP_MULTISTREAM, Option, capabilities, cpu_util, mem_util, net_util
from wdstransport.wire.transport import (
    LOSS_SCALE,
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
    RData,
    Spm,
)

LOWER = DemoteTarget(99, bytes([239, 0, 0, 9]), 7009, bytes([10, 0, 0, 9]), 7010)


@pytest.fixture
def server():
    return ServerScript()


def test_defaults_are_the_documents():
    defaults = ServerParameters()
    assert defaults.inactivity_timeout == 300.0
    assert defaults.join_ack_to_qcr_timeout == 0.5
    assert defaults.max_join_ack_sends == 3
    assert defaults.poll_back_off == 0.2
    assert defaults.kick_interval == 15.0
    assert defaults.no_client_qcc_interval == 0.5
    assert defaults.client_dead_timeout == 60.0
    assert defaults.spm_interval == 0.22
    assert defaults.cleanup_data_list_interval == 0.2
    assert defaults.max_no_response_spm == 5
    assert defaults.demote_interval == 0.5


# ---------------------------------------------------------------------- PreStart


def test_nothing_is_sent_before_the_first_client(server):
    assert server.transport.state is ServerState.PRE_START
    for second in range(1, 299):
        server.transport.handle_timers(T + second)
    assert server.sent() == []


def test_join_alone_does_not_end_prestart(server):
    server.join(1, T)
    assert server.transport.state is ServerState.PRE_START
    assert server.sent(Qcc) == []


def test_qcr_to_the_joinack_ends_prestart_with_a_qcc(server):
    client = server.activate(1, T)
    assert server.transport.state is ServerState.QCC
    assert [packet.qcc_seq_no for packet, _ in server.sent(Qcc)] == [1]
    assert list(server.clients.active) == [client]
    assert server.events() == [ClientActive(server.clients.active[client])]
    assert server.application.named("clients_changed") == [("clients_changed", T)]


def test_every_client_that_confirms_is_told_once(server):
    ids = [server.activate(number, T) for number in (1, 2, 3)]
    for client in ids:
        server.qcr(client, T + 1)
    assert server.events() == [ClientActive(server.clients.active[client]) for client in ids]


# ---------------------------------------------------------------------- JOIN


def test_join_is_answered_to_its_address_with_its_time():
    first_id = random.Random(1).getrandbits(32)
    server = ServerScript()
    assert server.receive(Join("pc", bytes(4), b""), address(1), T, sender_time=4711) is None
    assert server.sent() == [(JoinAck(first_id, 1, 1, 0, 4711), address(1))]


def test_client_ids_count_upwards(server):
    ids = [server.join(number, T) for number in (1, 2, 3)]
    assert ids == [ids[0], ids[0] + 1, ids[0] + 2]


class Chance:
    def __init__(self, value):
        self.value = value

    def getrandbits(self, bits):
        assert bits == 32
        return self.value


def test_client_ids_wrap_around_and_leave_out_zero():
    server = ServerScript(rng=Chance(2**32 - 1))
    assert [server.join(number, T) for number in (1, 2, 3)] == [2**32 - 1, 1, 2]


def test_client_id_is_not_given_twice():
    server = ServerScript(rng=Chance(2**32 - 1))
    taken = {server.join(number, T) for number in range(1, 5)}
    server.transport._next_client_id = 2**32 - 1
    assert server.join(9, T) not in taken


@pytest.mark.parametrize("removed", ["pending", "active", "kicked", "demoted"])
def test_client_id_of_a_client_on_any_list_is_not_given_again(removed):
    server = ServerScript(rng=Chance(9))
    if removed == "pending":
        server.join(1, T)
    else:
        client = server.activate(1, T)
        if removed == "kicked":
            server.transport.kick(client, KickReason.FAIL, T)
        elif removed == "demoted":
            server.transport.demote(client, LOWER, T)
    assert 9 in getattr(server.clients, removed)
    server.transport._next_client_id = 9
    assert server.join(2, T) == 10


def test_record_holds_what_the_join_said(server):
    client = server.join(3, T + 1, name="node-3", sender_time=123)
    record = server.clients.pending[client]
    assert record.address == address(3)
    assert record.name == "node-3"
    assert record.mac_address == b"\2\0\0\0\0\1"
    assert record.client_time == 123
    assert record.last_update == T + 1
    assert record.joined_at == T + 1
    assert record.supports_demote


@pytest.mark.parametrize(("options", "supports"), [((), False), ((capabilities(2, 3),), False)])
def test_client_without_the_multistream_capability_does_not_support_demote(server, options, supports):
    client = server.join(3, T, options=options)
    assert server.clients.pending[client].supports_demote is supports


def test_repeated_join_gets_the_same_id_and_the_new_time(server):
    client = server.join(1, T)
    server.sent()
    assert server.receive(Join("pc", bytes(4), b""), address(1), T + 0.5, sender_time=9999) is None
    assert server.sent() == [(JoinAck(client, 1, 1, 0, 9999), address(1))]
    assert len(server.clients.pending) == 1


def test_same_host_with_another_port_is_another_client(server):
    client = server.join(1, T)
    server.receive(Join("pc", bytes(4), b""), (address(1)[0], 5), T)
    assert len(server.clients.pending) == 2
    assert client in server.clients.pending


def test_join_of_an_active_client_is_answered_and_it_stays_active(server):
    client = server.activate(1, T)
    server.sent()
    assert server.join(1, T + 5) == client
    assert list(server.clients.active) == [client]
    assert not server.clients.pending
    server.sent()
    server.transport.handle_timers(T + 6)
    assert server.sent(JoinAck) == []


def test_join_of_an_active_client_changes_nothing_that_its_reports_told(server):
    client = server.activate(1, T, rtt=0.040)
    server.qcr(client, T + 1, rtt=0.040, hi=77)
    record = server.clients.active[client]
    record.gave_up_on = True
    server.join(1, T + 5)
    assert (record.joined_at, record.last_update) == (T + 0.040, T + 1)
    assert (record.rtt, record.hi_odata_seq_no) == (pytest.approx(0.040), 77)
    assert record.qcr_received
    assert record.gave_up_on


def test_client_that_joins_in_the_data_state_does_not_disturb_it(server):
    (master,), now = server.data_state(1)
    deadlines = {timer: server.timers.get(timer) for timer in (ServerTimer.SPM, ServerTimer.OUT_STATE_QCC)}
    server.activate(2, now)
    assert [type(packet) for packet, _ in server.sent()] == [JoinAck]
    assert server.transport.state is ServerState.DATA
    assert server.data.master_client_id == master
    assert {timer: server.timers.get(timer) for timer in deadlines} == deadlines
    assert server.application.named("clients_changed") == [("clients_changed", now)]


def test_application_hears_once_of_the_master_that_qcc_state_found_when_it_is_there(server):
    client = server.activate(1, T)
    server.qcr(client, T, seq=server.last_qcc())
    heard = []
    server.application.clients_changed = lambda _: heard.append(
        (server.transport.state, server.data.master_client_id)
    )
    server.transport.handle_timers(T + 0.001)
    assert heard == [(ServerState.DATA, client)]


@pytest.mark.parametrize("who", ["master", "other"])
@pytest.mark.parametrize("how", ["leave", "kick", "demote", "dead"])
def test_application_hears_once_of_a_client_that_is_gone_when_its_successor_is_there(server, who, how):
    (master, other), now = server.data_state(1, 2)
    heard = []
    server.application.clients_changed = lambda _: heard.append(
        (sorted(server.clients.active), server.data.master_client_id)
    )
    gone, stays = (master, other) if who == "master" else (other, master)
    match how:
        case "leave":
            server.receive(Leave(gone, LeaveReason.CANCELLED), server.where[gone], now)
        case "kick":
            server.transport.kick(gone, KickReason.FAIL, now)
        case "demote":
            server.transport.demote(gone, LOWER, now)
        case "dead":
            server.clients.active[gone].last_update = now - 61
            server.transport._client_cleanup_timer(now)
    assert heard == [([stays], stays)]
    assert [spm.master_client_id for spm, _ in server.sent(Spm)] == ([stays] if who == "master" else [])


def test_joinack_tells_back_offs_and_round_trip_of_the_data_state(server):
    _, now = server.data_state(1, rtt=0.030)
    server.join(2, now)
    (answer, _) = server.sent(JoinAck)[0]
    assert (answer.min_nack_back_off, answer.max_nack_back_off, answer.rtt) == (60, 60, 30)


def test_joinack_tells_no_round_trip_in_qcc_state_after_the_data_state(server):
    (client,), now = server.data_state(1, rtt=0.015)
    server.open_window(client, now)
    server.transport.enter_qcc(now)
    server.sent()
    server.join(2, now)
    assert [packet.rtt for packet, _ in server.sent(JoinAck)] == [0]


def test_joinack_is_sent_three_times_in_all_and_the_client_forgotten(server):
    client = server.join(1, T)
    server.sent()
    assert server.transport.next_deadline() == T + 0.5
    for due in (T + 0.5, T + 1.0):
        server.transport.handle_timers(math.nextafter(due, 0))
        assert server.sent() == []
        server.transport.handle_timers(due)
        assert [(packet.client_id, to) for packet, to in server.sent()] == [(client, address(1))]
    server.transport.handle_timers(T + 1.5)
    assert server.sent() == []
    assert not server.clients.pending
    assert server.qcr(client, T + 1.6) is DropReason.UNKNOWN_CLIENT
    assert server.events() == []


def test_joinack_that_is_late_is_followed_by_the_next_a_whole_wait_later(server):
    server.join(1, T)
    server.transport.handle_timers(T + 0.7)
    assert server.transport.next_deadline() == T + 1.2


def test_clients_that_never_confirm_are_all_forgotten_at_once(server):
    for number in range(1, 4):
        server.join(number, T)
    for due in (T + 0.5, T + 1.0, T + 1.5):
        server.transport.handle_timers(due)
    assert not server.clients.pending


def test_client_that_goes_on_joining_keeps_its_id_however_long_it_does_not_confirm(server):
    client = server.join(1, T)
    for second in range(1, 125):
        server.transport.handle_timers(T + second)
        assert server.join(1, T + second) == client


def test_client_about_to_join_does_not_hold_up_what_is_due_before_its_joinack(server):
    server.data_state(1)
    server.join(2, T + 0.3)
    earliest = server.timers.next_deadline()
    assert earliest < T + 0.8
    assert server.transport.next_deadline() == earliest


def test_qcr_ends_the_joinacks(server):
    server.activate(1, T)
    server.sent()
    server.transport.handle_timers(T + 0.5)
    server.transport.handle_timers(T + 1.0)
    assert server.sent(JoinAck) == []


def test_join_that_comes_again_starts_the_three_joinacks_anew(server):
    server.join(1, T)
    server.transport.handle_timers(T + 0.5)
    server.transport.handle_timers(T + 1.0)
    server.join(1, T + 1.2)
    server.sent()
    for due in (T + 1.7, T + 2.2):
        assert server.transport.next_deadline() == due
        server.transport.handle_timers(due)
        assert len(server.sent(JoinAck)) == 1
    server.transport.handle_timers(T + 2.7)
    assert server.sent(JoinAck) == []


def test_full_session_refuses_a_join_without_an_answer():
    server = ServerScript(max_clients=1)
    server.activate(1, T)
    server.sent()
    assert server.receive(Join("pc", bytes(4), b""), address(2), T) is DropReason.STATE
    assert server.sent() == []
    assert not server.clients.pending


def test_clients_that_are_removed_leave_their_place_in_a_full_session_to_others():
    server = ServerScript(max_clients=2)
    kicked, demoted = server.activate(1, T), server.activate(2, T)
    server.transport.kick(kicked, KickReason.FAIL, T)
    server.transport.demote(demoted, LOWER, T)
    ids = [server.activate(number, T) for number in (3, 4)]
    assert list(server.clients.active) == ids


def test_full_session_answers_a_client_that_it_knows():
    server = ServerScript(max_clients=1)
    waiting = server.join(2, T)
    client = server.activate(1, T)
    assert server.join(1, T + 0.1) == client
    assert server.join(2, T + 0.1) == waiting
    for due in (T + 0.6, T + 1.1, T + 1.6):
        server.transport.handle_timers(due)
    assert not server.clients.pending  # whom it could not admit it forgets like any other


def test_clients_that_joined_together_do_not_exceed_the_limit():
    server = ServerScript(max_clients=1)
    first, second = server.join(1, T), server.join(2, T)
    assert server.qcr(first, T) is None
    assert server.qcr(second, T) is DropReason.STATE
    assert len(server.clients.active) == 1


def test_active_clients_of_a_full_session_are_heard_as_ever():
    server = ServerScript(max_clients=1)
    client = server.activate(1, T)
    assert server.qcr(client, T + 3, seq=server.last_qcc()) is None
    record = server.clients.active[client]
    assert (record.qcr_received, record.last_update) == (True, T + 3)


def test_flood_of_joins_drops_the_oldest_and_leaves_the_active_alone():
    server = ServerScript(max_pending_clients=4)
    client = server.activate(1, T)
    for number in range(2, 200):
        server.join(number, T + number / 1000)
    assert len(server.clients.pending) == 4
    assert list(server.clients.active) == [client]
    assert server.qcr(client, T + 1) is None


# ---------------------------------------------------------------------- QCR


def test_first_qcr_measures_the_round_trip(server):
    client = server.join(1, T)
    server.qcr(client, T + 0.040, server_time=ms(T))
    record = server.clients.active[client]
    assert record.rtt == pytest.approx(0.040)
    assert record.last_update == record.joined_at == T + 0.040


def test_pending_client_is_not_confirmed_by_a_qcr_to_a_qcc_that_was_never_sent(server):
    client = server.join(1, T)
    assert server.qcr(client, T, seq=1) is DropReason.STALE
    assert client in server.clients.pending
    assert server.qcr(client, T, seq=0) is None
    assert client in server.clients.active


def test_pending_client_is_confirmed_by_its_answer_to_a_qcc(server):
    server.data_state(1)
    client = server.join(2, T + 1)
    server.transport._out_state_qcc_timer(T + 1)
    assert server.qcr(client, T + 1, seq=server.transport._next_qcc_seq_no - 1) is None
    assert client in server.clients.active


def test_progress_in_the_qcr_that_confirms_a_client_is_passed_on(server):
    server.data_state(1)
    client = server.join(2, T + 1)
    server.transport._out_state_qcc_timer(T + 1)
    server.application.calls.clear()
    assert server.qcr(client, T + 1, seq=server.last_qcc(), app=b"progress") is None
    assert server.application.named("status") == [("status", client, b"progress")]


def test_client_whose_confirming_qcr_carries_no_progress_stays_pending(server):
    client = server.join(1, T)
    server.application.accepts = False
    assert server.qcr(client, T, app=b"x") is DropReason.FIELD
    assert client in server.clients.pending


def test_two_programs_of_one_machine_are_two_clients(server):
    packet = Join("pc", bytes([10, 0, 0, 1]), b"\2\0\0\0\0\1")
    for port in (40001, 40002):
        assert server.receive(packet, ("10.0.0.1", port), T) is None
    assert [record.address[1] for record in server.clients.pending.values()] == [40001, 40002]


def test_qcr_from_another_address_or_port_is_not_that_client(server):
    client = server.join(1, T)
    packet = Qcr(client, 0, 0, 0, 0, 0, b"")
    assert server.receive(packet, address(2), T) is DropReason.UNKNOWN_CLIENT
    assert server.receive(packet, (address(1)[0], 1), T) is DropReason.UNKNOWN_CLIENT
    assert server.transport.state is ServerState.PRE_START


def test_qcr_under_another_clients_id_changes_neither(server):
    one, two = server.join(1, T), server.join(2, T)
    packet = Qcr(one, 0, 0, 0, 77, 0, b"")
    assert server.receive(packet, address(2), T) is DropReason.UNKNOWN_CLIENT
    assert list(server.clients.pending) == [one, two]
    assert not server.clients.active


def test_qcr_updates_what_is_known_of_the_client(server):
    client = server.activate(1, T)
    seq = server.last_qcc()
    packet = Qcr(client, seq, 0, 0, 77, 10**15, b"x", (cpu_util(1), mem_util(2), net_util(3)))
    assert server.receive(packet, address(1), T + 3) is None
    record = server.clients.active[client]
    assert (record.hi_odata_seq_no, record.last_update) == (77, T + 3)
    assert record.loss == pytest.approx(0.1)
    assert record.utilization == {"CPU_UTIL": 1, "MEM_UTIL": 2, "NET_UTIL": 3}
    assert server.application.named("status") == [("status", client, b"x")]


def test_qcr_replaces_all_that_the_last_one_told(server):
    client = server.activate(1, T)
    reports = (
        (900, 5 * 10**15, (cpu_util(90), mem_util(80), net_util(70))),
        (20, 10**15, (cpu_util(4), mem_util(5), net_util(6))),
    )
    for hi, loss, options in reports:
        packet = Qcr(client, 0, 0, 0, hi, loss, b"", options)
        assert server.receive(packet, address(1), T + 3) is None
    record = server.clients.active[client]
    assert (record.hi_odata_seq_no, record.loss) == (20, pytest.approx(0.1))
    assert record.utilization == {"CPU_UTIL": 4, "MEM_UTIL": 5, "NET_UTIL": 6}


def test_loss_that_is_over_is_over_with_the_next_qcr(server):
    client = server.activate(1, T)
    server.qcr(client, T + 1, loss=10**15)
    server.qcr(client, T + 2, loss=0)
    assert server.clients.active[client].loss == 0.0


def test_options_of_a_qcr_that_tell_no_utilization_mean_nothing(server):
    client = server.activate(1, T)
    options = (capabilities(CAP_MULTISTREAM), Option(0x7777, b""), mem_util(2))
    packet = Qcr(client, server.last_qcc(), 0, 0, 0, 0, b"", options)
    assert server.receive(packet, address(1), T + 3) is None
    assert server.clients.active[client].utilization == {"MEM_UTIL": 2}


def test_round_trip_leaves_out_the_clients_back_off(server):
    client = server.activate(1, T)
    server.qcr(client, T + 1, seq=server.last_qcc(), server_time=ms(T), back_off=960)
    assert server.clients.active[client].rtt == pytest.approx(0.040)
    server.qcr(client, T + 1, seq=server.last_qcc(), server_time=ms(T), back_off=5000)
    assert server.clients.active[client].rtt == 0.0


def test_round_trip_that_takes_no_whole_millisecond_is_none_and_not_the_last_one(server):
    client = server.activate(1, T, rtt=0.040)
    server.qcr(client, T + 1, seq=server.last_qcc(), server_time=ms(T + 1))
    assert server.clients.active[client].rtt == 0.0


def test_voluntary_qcr_does_not_touch_the_round_trip(server):
    client = server.activate(1, T, rtt=0.040)
    server.qcr(client, T + 20, server_time=0, app=b"p")
    record = server.clients.active[client]
    assert record.rtt == pytest.approx(0.040)
    assert record.last_update == T + 20
    assert server.application.named("status")


def test_voluntary_qcr_does_not_touch_the_round_trip_on_a_young_clock():
    server = ServerScript(now=1.0)
    client = server.activate(1, 1.0, rtt=0.040)
    server.qcr(client, 6.0, server_time=0)  # six seconds would be believed
    assert server.clients.active[client].rtt == pytest.approx(0.040)


@pytest.mark.parametrize("server_time", [ms(T + 100), ms(T) - 61_000, ms(T) - 9_000])
def test_server_time_that_cannot_be_ours_does_not_touch_the_round_trip(server, server_time):
    client = server.activate(1, T, rtt=0.040)
    server.qcr(client, T + 1, server_time=server_time)
    assert server.clients.active[client].rtt == pytest.approx(0.040)


@pytest.mark.parametrize("off", [-1, 1])
def test_qcr_must_answer_the_latest_qcc(server, off):
    client = server.activate(1, T)
    server.transport.handle_timers(T + 0.25)
    server.sent()
    record = server.clients.active[client]
    before = record.last_update
    seq = server.transport._next_qcc_seq_no - 1
    assert server.qcr(client, T + 1, seq=seq + off, app=b"x") is DropReason.STALE
    assert record.last_update == before
    assert not record.qcr_received
    assert not server.application.named("status")


def test_qcr_whose_payload_is_no_progress_is_refused_whole(server):
    client = server.activate(1, T)
    server.application.accepts = False
    assert server.qcr(client, T + 3, seq=server.last_qcc(), hi=9, app=b"x") is DropReason.FIELD
    record = server.clients.active[client]
    assert (record.last_update, record.hi_odata_seq_no, record.qcr_received) == (T, 0, False)


def test_qcr_without_payload_triggers_no_status(server):
    client = server.activate(1, T)
    server.application.accepts = False
    assert server.qcr(client, T + 3, seq=server.last_qcc()) is None
    assert not server.application.named("status")


# ---------------------------------------------------------------------- QCC state


def waits(server, count):
    """The back-offs of the next QCCs in QCC state, each with how long the server waited before it."""
    found = []
    for _ in range(count):
        before = server.timers.get(ServerTimer.IN_STATE_QCC)
        server.transport.handle_timers(before)
        ((packet, to),) = server.sent(Qcc)
        assert to is None
        found.append((packet.qcr_back_off, server.timers.get(ServerTimer.IN_STATE_QCC) - before))
    return found


def test_wait_for_answers_doubles_up_to_its_limit(server):
    server.activate(1, T)
    ((packet, to),) = server.sent(Qcc)
    assert (packet.qcr_back_off, to) == (1, None)
    found = waits(server, 11)
    assert [back_off for back_off, _ in found] == [2, 4, 8, 16, 32, 64, 128, 256, 500, 500, 500]
    assert all(wait == pytest.approx(back_off / 1000) for back_off, wait in found)


def test_wait_starts_with_a_millisecond_for_each_client(server):
    for number in range(1, 8):
        server.activate(number, T)
    server.sent()
    server.transport.enter_qcc(T)
    assert server.sent(Qcc)[0][0].qcr_back_off == 7
    assert [back_off for back_off, _ in waits(server, 2)] == [14, 28]


def test_millisecond_for_each_client_is_given_beyond_the_limit_too():
    server = ServerScript(no_client_qcc_interval=0.003)
    for number in range(1, 8):
        server.activate(number, T)
    server.sent()
    server.transport.enter_qcc(T)
    assert server.sent(Qcc)[0][0].qcr_back_off == 7
    assert [back_off for back_off, _ in waits(server, 2)] == [7, 7]


def test_wait_is_the_back_off_and_the_highest_round_trip(server):
    server.activate(1, T, rtt=0.030)
    server.activate(2, T, rtt=0.200)
    server.sent()
    server.transport.enter_qcc(T + 1)
    assert server.sent(Qcc)[0][0].qcr_back_off == 202
    found = waits(server, 2)
    assert [back_off for back_off, _ in found] == [204, 208]
    # Whoever answers when the back-off is over is still heard (deviation 65).
    assert [wait for _, wait in found] == pytest.approx([0.404, 0.408])


def test_wait_starts_small_again_with_every_entry(server):
    server.activate(1, T)
    server.sent()
    waits(server, 6)
    server.transport.enter_qcc(T + 10)
    assert server.sent(Qcc)[0][0].qcr_back_off == 1


def test_wait_for_answers_is_not_begun_anew_because_somebody_leaves(server):
    ids = [server.activate(number, T) for number in (1, 2)]
    for _ in range(4):
        server.transport.handle_timers(server.timers.get(ServerTimer.IN_STATE_QCC))
    before = server.transport._wait_time
    server.receive(Leave(ids[1], LeaveReason.CANCELLED), address(2), T + 0.1)
    server.transport.handle_timers(server.timers.get(ServerTimer.IN_STATE_QCC))
    assert server.transport._wait_time == min(2 * before, server.parameters.no_client_qcc_interval)


def test_wait_for_nobody_is_doubled_before_it_is_first_used(server):
    (client,), now = server.data_state(1)
    server.sent()
    server.receive(Leave(client, LeaveReason.COMPLETE), server.where[client], now)
    ((packet, _),) = server.sent(Qcc)
    assert packet.qcr_back_off == 2
    assert [back_off for back_off, _ in waits(server, 9)] == [4, 8, 16, 32, 64, 128, 256, 500, 500]


def test_wait_starts_small_again_for_the_first_client_after_nobody(server):
    (client,), now = server.data_state(1)
    server.receive(Leave(client, LeaveReason.COMPLETE), server.where[client], now)
    server.sent()
    assert [back_off for back_off, _ in waits(server, 11)][-1] == 500
    now = server.timers.get(ServerTimer.IN_STATE_QCC) - 0.010
    server.activate(2, now)
    assert [back_off for back_off, _ in waits(server, 2)] == [1, 2]


def test_wait_goes_on_growing_when_another_client_comes(server):
    server.activate(1, T)
    server.sent()
    waits(server, 4)
    server.activate(2, server.timers.get(ServerTimer.IN_STATE_QCC))
    assert [back_off for back_off, _ in waits(server, 2)] == [32, 64]


def test_qcc_numbers_count_upwards_without_gaps(server):
    server.activate(1, T)
    seqs = [packet.qcc_seq_no for packet, _ in server.sent(Qcc)]
    for _ in range(40):
        server.transport.handle_timers(server.timers.get(ServerTimer.IN_STATE_QCC))
        seqs += [packet.qcc_seq_no for packet, _ in server.sent(Qcc)]
    assert seqs == list(range(1, 42))


def test_no_master_is_chosen_before_the_wait_is_over(server):
    client = server.activate(1, T)
    server.qcr(client, T, seq=server.last_qcc())
    assert server.transport.state is ServerState.QCC
    server.transport.handle_timers(T + 0.001)
    assert server.transport.state is ServerState.DATA
    assert server.data.master_client_id == client


def test_slowest_of_those_who_answered_becomes_the_master(server):
    fast, slow, silent = (server.activate(number, T) for number in (1, 2, 3))
    server.clients.active[silent].rtt = 5.0
    server.sent()
    server.transport.enter_qcc(T + 1)
    seq = server.last_qcc()
    server.qcr(fast, T + 1.02, seq=seq, rtt=0.020)
    server.qcr(slow, T + 1.05, seq=seq, rtt=0.050)
    server.transport.handle_timers(server.timers.get(ServerTimer.IN_STATE_QCC))
    assert server.data.master_client_id == slow
    assert server.data.mcrtt == pytest.approx(0.050)


def test_last_of_many_who_answered_becomes_the_master_if_it_is_the_slowest(server):
    ids = [server.activate(number, T) for number in range(1, 6)]
    server.transport.enter_qcc(T + 1)
    seq = server.last_qcc()
    for place, client in enumerate(ids, 1):
        server.qcr(client, T + 1 + place / 100, seq=seq, rtt=place / 100)
    server.transport.handle_timers(server.timers.get(ServerTimer.IN_STATE_QCC))
    assert server.data.master_client_id == ids[-1]


def test_answers_to_the_last_qcc_do_not_count_for_the_next(server):
    client = server.activate(1, T)
    server.qcr(client, T, seq=server.last_qcc())
    server.transport.enter_qcc(T)
    server.transport.handle_timers(server.timers.get(ServerTimer.IN_STATE_QCC))
    assert server.transport.state is ServerState.QCC


@pytest.mark.parametrize("server_time", [0, ms(T)])
def test_qcr_that_answers_no_qcc_makes_a_master_as_well(server, server_time):
    client = server.activate(1, T, rtt=0.040)
    server.sent()
    server.transport.enter_qcc(T + 1)
    server.qcr(client, T + 1, seq=0, server_time=server_time)  # voluntary, or the answer to another JOINACK
    server.transport.handle_timers(server.timers.get(ServerTimer.IN_STATE_QCC))
    assert server.transport.state is ServerState.DATA
    assert server.data.master_client_id == client


def test_qcr_that_confirms_a_client_does_not_answer_the_qcc(server):
    server.activate(1, T)
    server.transport.handle_timers(T + 0.001)
    assert server.transport.state is ServerState.QCC


def test_data_state_stops_the_wait_and_starts_its_own_timers(server):
    client = server.activate(1, T)
    server.qcr(client, T, seq=server.last_qcc())
    server.sent()
    server.transport.handle_timers(T + 0.001)
    assert ServerTimer.IN_STATE_QCC not in server.timers
    assert server.timers.get(ServerTimer.SPM) == pytest.approx(T + 0.221)
    assert server.timers.get(ServerTimer.CLEANUP_DATA_LIST) == pytest.approx(T + 0.201)
    assert server.timers.get(ServerTimer.OUT_STATE_QCC) == pytest.approx(T + 0.251)
    assert [type(packet) for packet, _ in server.sent()] == [Spm]


def test_leaving_the_data_state_stops_its_timers(server):
    server.data_state(1)
    server.transport.enter_qcc(T + 5)
    assert not {ServerTimer.SPM, ServerTimer.CLEANUP_DATA_LIST, ServerTimer.OUT_STATE_QCC} & {
        timer for timer in ServerTimer if timer in server.timers
    }
    assert server.data.master_client_id == 0
    assert ServerTimer.IN_STATE_QCC in server.timers


# ---------------------------------------------------------------------- QCC outside of QCC state


def test_qcc_goes_out_once_an_interval_in_the_data_state(server):
    _, now = server.data_state(1, 2, rtt=0.050)
    due = now + 0.25
    for _ in range(3):
        assert server.timers.get(ServerTimer.OUT_STATE_QCC) == pytest.approx(due)
        seq = server.transport._next_qcc_seq_no
        server.transport._out_state_qcc_timer(due)
        assert server.sent(Qcc) == [(Qcc(seq, 300), None)]
        due += 0.350


def test_timer_of_the_data_state_sends_qcc_and_starts_anew(server):
    """MS-WDSMT 3.1.6.5: without it nobody's RTT, loss and progress come again."""
    _, now = server.data_state(1)
    sequence = server.transport._next_qcc_seq_no
    for times in (1, 2, 3):
        server.transport.handle_timers(now + 0.25 * times)
        assert server.sent(Qcc) == [(Qcc(sequence + times - 1, 250), None)]


def test_qcc_interval_grows_with_the_number_of_clients():
    server = ServerScript(qcc_interval=0.004)
    _, now = server.data_state(*range(1, 8))
    server.transport._out_state_qcc_timer(now)
    assert server.sent(Qcc)[0][0].qcr_back_off == 7


def test_qcc_interval_has_a_limit_whatever_the_round_trip(server):
    (client,), now = server.data_state(1)
    server.clients.active[client].rtt = 1000.0
    server.transport._out_state_qcc_timer(now)
    assert server.sent(Qcc)[0][0].qcr_back_off == 65_000
    assert server.timers.get(ServerTimer.OUT_STATE_QCC) == now + 65


def test_qcc_leaves_time_for_the_slowest_whether_it_answered_the_last_one_or_not(server):
    (_, slow), now = server.data_state(1, 2)
    server.clients.active[slow].rtt = 0.4
    server.clients.active[slow].qcr_received = False
    server.transport._out_state_qcc_timer(now)
    assert [packet.qcr_back_off for packet, _ in server.sent(Qcc)] == [650]


def test_answer_in_the_data_state_does_not_change_the_master(server):
    (master, other), now = server.data_state(1, 2)
    server.transport._out_state_qcc_timer(now)
    server.qcr(other, now + 0.5, seq=server.last_qcc(), rtt=0.4)
    assert server.data.master_client_id == master


# ---------------------------------------------------------------------- LEAVE


@pytest.mark.parametrize(
    ("reason", "gone"),
    [
        (LeaveReason.COMPLETE, Gone.COMPLETE),
        (LeaveReason.CANCELLED, Gone.CANCELLED),
        (LeaveReason.INACTIVE, Gone.INACTIVE),
    ],
)
def test_leave_removes_the_client_and_tells_why(server, reason, gone):
    client = server.activate(1, T)
    record = server.clients.active[client]
    server.events()
    assert server.receive(Leave(client, reason), address(1), T + 1) is None
    assert server.events() == [ClientGone(record, gone)]
    assert not server.clients.active
    assert server.clients.at(address(1)) is None
    assert server.receive(Leave(client, reason), address(1), T + 1) is DropReason.UNKNOWN_CLIENT


def test_leave_from_another_address_removes_nobody(server):
    client = server.activate(1, T)
    server.events()
    assert server.receive(Leave(client, LeaveReason.COMPLETE), address(2), T) is DropReason.UNKNOWN_CLIENT
    assert (
        server.receive(Leave(client, LeaveReason.COMPLETE), (address(1)[0], 1), T)
        is DropReason.UNKNOWN_CLIENT
    )
    assert client in server.clients.active
    assert server.events() == []


def test_leave_in_another_clients_name_removes_nobody(server):
    one, two = server.activate(1, T), server.activate(2, T)
    assert server.receive(Leave(one, LeaveReason.COMPLETE), address(2), T) is DropReason.UNKNOWN_CLIENT
    assert set(server.clients.active) == {one, two}


def test_pending_client_that_leaves_was_never_there(server):
    client = server.join(1, T)
    assert server.receive(Leave(client, LeaveReason.CANCELLED), address(1), T) is None
    assert server.events() == []
    server.sent()
    server.transport.handle_timers(T + 1)
    assert server.sent() == []


def test_another_client_that_leaves_does_not_end_the_masters_reign(server):
    (master, other, third), now = server.data_state(1, 2, 3)
    server.clients.active[third].rtt = 5.0  # who would succeed, if there were anything to succeed to
    server.sent()
    server.receive(Leave(other, LeaveReason.COMPLETE), server.where[other], now)
    assert server.data.master_client_id == master
    assert server.sent(Spm) == []


def test_master_that_leaves_is_replaced_at_once_by_who_has_answered(server):
    (master, other), now = server.data_state(1, 2)
    server.sent()
    server.receive(Leave(master, LeaveReason.COMPLETE), server.where[master], now)
    assert server.transport.state is ServerState.DATA
    assert server.data.master_client_id == other
    assert [spm.master_client_id for spm, _ in server.sent(Spm)] == [other]


def test_who_has_not_answered_the_qcc_just_sent_takes_over_all_the_same(server):
    (master, other), _ = server.data_state(1, 2)
    now = server.timers.get(ServerTimer.OUT_STATE_QCC)
    server.transport._out_state_qcc_timer(now)
    server.receive(Leave(master, LeaveReason.COMPLETE), server.where[master], now + 0.001)
    assert server.transport.state is ServerState.DATA
    assert server.data.master_client_id == other


def test_of_those_who_still_miss_blocks_the_slowest_takes_over(server):
    (master, *others), now = server.data_state(1, 2, 3, 4, 5)
    for number, (progress, rtt) in enumerate([(100, 0.009), (40, 0.002), (40, 0.005), (99, 0.004)]):
        record = server.clients.active[others[number]]
        record.progress, record.rtt = progress, rtt
    server.receive(Leave(master, LeaveReason.COMPLETE), server.where[master], now)
    assert server.data.master_client_id == others[2]
    assert server.data.mcrtt == 0.005
    server.clients.active[others[3]].gave_up_on = True
    server.transport.kick(others[2], KickReason.FAIL, now)
    assert server.data.master_client_id == others[1]


def test_master_that_leaves_is_asked_for_again_when_nobody_has_answered_lately(server):
    (master, other), _ = server.data_state(1, 2)
    record = server.clients.active[other]
    late = record.last_update + 3 * max(0.25, 0.002) + 0.001
    server.receive(Leave(master, LeaveReason.COMPLETE), server.where[master], late)
    assert server.transport.state is ServerState.QCC
    server.qcr(other, late, seq=server.last_qcc())
    server.transport.handle_timers(late + 1)
    assert server.data.master_client_id == other


def test_master_that_leaves_is_replaced_by_who_has_answered_within_three_queries(server):
    (master, other), _ = server.data_state(1, 2)
    late = server.clients.active[other].last_update + 3 * 0.25 - 0.001
    server.receive(Leave(master, LeaveReason.COMPLETE), server.where[master], late)
    assert server.data.master_client_id == other


@pytest.mark.parametrize("doubt", ["qcr_received", "gave_up_on"])
def test_master_that_leaves_is_asked_for_again_when_the_others_are_in_doubt(server, doubt):
    (master, other), now = server.data_state(1, 2)
    setattr(server.clients.active[other], doubt, doubt == "gave_up_on")
    server.receive(Leave(master, LeaveReason.COMPLETE), server.where[master], now)
    assert server.transport.state is ServerState.QCC


def test_client_that_has_only_confirmed_does_not_take_over_before_it_is_asked(server):
    (master,), now = server.data_state(1)
    newcomer = server.activate(2, now)
    server.receive(Leave(master, LeaveReason.CANCELLED), server.where[master], now)
    assert server.transport.state is ServerState.QCC
    assert not server.clients.active[newcomer].qcr_received


def test_where_round_trips_are_long_who_answered_longer_ago_may_take_over(server):
    (master, other), now = server.data_state(1, 2)
    server.clients.active[other].rtt = 0.5  # so that a QCC comes every 1.25 s only
    server.qcr(other, now, server_time=0)
    server.receive(Leave(master, LeaveReason.CANCELLED), server.where[master], now + 3.5)
    assert server.data.master_client_id == other


def test_other_client_that_leaves_does_not_disturb_the_master(server):
    (master, other), now = server.data_state(1, 2)
    server.receive(Leave(other, LeaveReason.COMPLETE), server.where[other], now)
    assert server.transport.state is ServerState.DATA
    assert server.data.master_client_id == master


# ---------------------------------------------------------------------- POLL


def test_poll_goes_to_the_group_with_its_number_and_back_off(server):
    assert server.transport.poll(b"query") == 0.2
    assert server.transport.poll(b"query") == 0.2
    assert server.sent() == [(Poll(1, 200, b"query"), None), (Poll(2, 200, b"query"), None)]


def test_poll_numbers_count_on_when_everybody_has_gone_and_others_come(server):
    (client,), now = server.data_state(1)
    server.transport.poll(b"a")
    server.receive(Leave(client, LeaveReason.COMPLETE), server.where[client], now)
    server.activate(2, now + 1)
    server.transport.poll(b"b")
    assert [packet.poll_seq_no for packet, _ in server.sent(Poll)] == [1, 2]


def test_poll_tells_the_application_its_back_off_without_anybodys_round_trip(server):
    client = server.activate(1, T, rtt=0.040)
    assert server.clients.active[client].rtt == pytest.approx(0.040)
    assert server.transport.poll(b"q") == server.parameters.poll_back_off


def test_poll_numbers_count_on_in_the_next_data_state(server):
    (client,), now = server.data_state(1)
    server.transport.poll(b"q")
    server.transport.enter_qcc(now)
    server.qcr(client, now, seq=server.last_qcc())
    server.transport.handle_timers(now + 1)
    assert server.transport.state is ServerState.DATA
    server.transport.poll(b"q")
    assert [packet.poll_seq_no for packet, _ in server.sent(Poll)] == [1, 2]


def test_pollack_must_answer_the_latest_poll(server):
    client = server.activate(1, T)
    server.transport.poll(b"")
    server.transport.poll(b"")
    for seq, reason in ((1, DropReason.STALE), (3, DropReason.STALE), (2, None)):
        assert server.receive(PollAck(client, seq, b"x"), address(1), T) is reason
    assert server.application.named("poll_ack") == [("poll_ack", client, b"x")]


def test_pollack_that_the_application_refuses_is_dropped(server):
    client = server.activate(1, T)
    server.transport.poll(b"")
    server.application.accepts = False
    assert server.receive(PollAck(client, 1, b"x"), address(1), T) is DropReason.FIELD


@pytest.mark.parametrize(
    "packet",
    [
        lambda client: PollAck(client, 1, b""),
        lambda client: Ack(client, 0, 0, 0, 0),
        lambda client: Nack(client, 0, 0, ()),
    ],
    ids=["PollAck", "Ack", "Nack"],
)
def test_strangers_and_clients_that_were_removed_are_not_heard(server, packet):
    server.data_state(1)
    server.transport.poll(b"")
    kicked, demoted = server.activate(3, T + 2), server.activate(4, T + 2)
    server.transport.kick(kicked, KickReason.FAIL, T + 2)
    server.clients.demote(server.clients.active[demoted])
    assert server.receive(packet(kicked), address(3), T + 2) is DropReason.UNKNOWN_CLIENT
    assert server.receive(packet(demoted), address(4), T + 2) is DropReason.UNKNOWN_CLIENT
    assert server.receive(packet(12345), address(1), T + 2) is DropReason.UNKNOWN_CLIENT
    pending = server.join(2, T + 2)
    assert server.receive(packet(pending), address(1), T + 2) is DropReason.UNKNOWN_CLIENT
    assert not server.application.named("poll_ack")
    assert server.sent(Ncf) == []


def test_pollack_of_a_client_whose_qcr_was_lost_says_what_it_misses(server):
    server.data_state(1)
    server.transport.poll(b"")
    pending = server.join(2, T + 2)
    assert server.receive(PollAck(pending, 1, b"x"), address(2), T + 2) is None
    assert server.application.named("poll_ack") == [("poll_ack", pending, b"x")]
    assert pending not in server.clients.active


def test_who_has_not_confirmed_is_not_heard_by_a_full_session():
    server = ServerScript(max_clients=2)
    pending = server.join(3, T + 2)
    server.data_state(1, now=T + 2)
    server.transport.poll(b"")
    now = T + 3
    pending = server.join(3, now)
    assert server.receive(Nack(pending, 0, 0, ()), address(3), now) is None
    server.activate(2, now)
    for packet in (Nack(pending, 0, 0, ()), PollAck(pending, 1, b"x")):
        assert server.receive(packet, address(3), now) is DropReason.UNKNOWN_CLIENT


def test_nack_of_a_client_whose_qcr_was_lost_is_answered_but_does_not_make_it_the_master(server):
    (master,), _ = server.data_state(1)
    pending = server.join(2, T + 2)
    server.data.give([(1, 9)])
    server.data.take_odata(9, T + 2)
    lead = server.data.mc_lead
    assert server.receive(Nack(pending, lead, LOSS_SCALE // 2, ((1, 1),)), address(2), T + 3) is None
    assert server.sent(Ncf) == [(Ncf(((1, 1),)), None)]
    assert server.data.take_repairs(9) == [(1, 1)]
    assert server.data.master_client_id == master
    assert server.receive(Ack(pending, lead, 0, lead, 0), address(2), T + 3) is DropReason.STATE
    assert server.data.mc_trail == 0


def test_active_client_is_heard_only_from_its_own_address(server):
    (master,), now = server.data_state(1)
    server.transport.poll(b"")
    for packet in (PollAck(master, 1, b""), Ack(master, 0, 0, 0, 0), Nack(master, 0, 0, ())):
        assert server.receive(packet, address(2), now) is DropReason.UNKNOWN_CLIENT
        assert server.receive(packet, (address(1)[0], 9), now) is DropReason.UNKNOWN_CLIENT


@pytest.mark.parametrize(
    "packet",
    [
        Spm(1, 1, 0, 0, 0, 0, 0),
        JoinAck(1, 0, 0, 0, 0),
        Qcc(1, 0),
        Poll(1, 0, b""),
        OData(1, 1, 1, b""),
        RData(1, 1, 1, b""),
        Ncf(()),
        Kick(()),
        Demote(1, bytes(4), 1, bytes(4), 1, ()),
    ],
    ids=lambda packet: type(packet).__name__,
)
def test_packets_of_a_server_are_refused_by_a_server(server, packet):
    server.data_state(1)
    before = server.timers.get(ServerTimer.INACTIVITY)
    assert server.receive(packet, address(1), T + 9) is DropReason.STATE
    assert server.sent() == []
    assert server.timers.get(ServerTimer.INACTIVITY) == before


# ---------------------------------------------------------------------- KICK


def test_kick_is_sent_at_once_with_its_reason(server):
    client = server.activate(1, T)
    server.sent()
    assert server.transport.kick(client, KickReason.FALLBACK, T)
    assert server.sent(Kick) == [(Kick(((client, KickReason.FALLBACK),)), None)]
    assert client in server.clients.kicked
    assert not server.clients.active


def test_kick_of_nobody_says_so(server):
    pending = server.join(1, T)
    server.sent()
    assert not server.transport.kick(4711, KickReason.FAIL, T)
    assert not server.transport.kick(pending, KickReason.FAIL, T)
    assert server.sent() == []


def test_client_that_is_removed_already_cannot_be_removed_again(server):
    kicked, demoted = server.activate(1, T), server.activate(2, T)
    server.transport.kick(kicked, KickReason.FALLBACK, T)
    server.transport.demote(demoted, LOWER, T)
    for client in (kicked, demoted):
        assert not server.transport.kick(client, KickReason.FAIL, T)
        assert not server.transport.demote(client, LOWER, T)
    assert not server.clients.active
    assert [record.kick_reason for record in server.clients.kicked.values()] == [KickReason.FALLBACK]
    assert list(server.clients.demoted) == [demoted]


def test_kick_is_repeated_every_15_seconds_until_the_client_has_left(server):
    client = server.activate(1, T)
    server.transport.kick(client, KickReason.FAIL, T)
    server.sent()
    for due in (T + 15, T + 30):
        assert server.timers.get(ServerTimer.KICK) == due
        server.transport.handle_timers(due)
        assert server.sent(Kick) == [(Kick(((client, KickReason.FAIL),)), None)]
    server.events()
    assert server.receive(Leave(client, LeaveReason.CANCELLED), address(1), T + 31) is None
    assert [event.reason for event in server.events()] == [Gone.KICKED]
    server.transport.handle_timers(T + 45)
    assert server.sent(Kick) == []
    assert ServerTimer.KICK not in server.timers


def test_second_kick_waits_for_the_repetition_and_goes_with_the_first(server):
    one, two = server.activate(1, T), server.activate(2, T)
    server.transport.kick(one, KickReason.FAIL, T)
    server.sent()
    server.transport.kick(two, KickReason.FALLBACK, T + 1)
    assert server.sent(Kick) == []
    server.transport.handle_timers(T + 15)
    assert server.sent(Kick) == [(Kick(((one, KickReason.FAIL), (two, KickReason.FALLBACK))), None)]


def test_kick_after_the_timer_has_ended_is_sent_at_once_again(server):
    one, two = server.activate(1, T), server.activate(2, T)
    server.transport.kick(one, KickReason.FAIL, T)
    server.receive(Leave(one, LeaveReason.CANCELLED), address(1), T + 1)
    server.transport.handle_timers(T + 15)
    server.sent()
    server.transport.kick(two, KickReason.FAIL, T + 16)
    assert len(server.sent(Kick)) == 1


def test_kick_after_everybody_before_it_has_left_is_sent_at_once_though_the_timer_runs(server):
    one, two = server.activate(1, T), server.activate(2, T)
    server.transport.kick(one, KickReason.FAIL, T)
    server.receive(Leave(one, LeaveReason.CANCELLED), address(1), T + 1)
    server.sent()
    server.transport.kick(two, KickReason.FALLBACK, T + 2)
    assert server.sent(Kick) == [(Kick(((two, KickReason.FALLBACK),)), None)]
    assert server.timers.get(ServerTimer.KICK) == T + 17


def test_kick_for_201_clients_is_two_packets(server):
    ids = [server.activate(number, T) for number in range(1, 202)]
    server.transport.kick(ids[0], KickReason.FAIL, T)
    for client in ids[1:]:
        server.transport.kick(client, KickReason.FAIL, T)
    server.sent()
    server.transport.handle_timers(T + 15)
    packets = [packet for packet, _ in server.sent(Kick)]
    assert [len(packet.clients) for packet in packets] == [200, 1]
    assert [client for packet in packets for client, _ in packet.clients] == ids


def test_kick_for_200_clients_is_one_packet(server):
    ids = [server.activate(number, T) for number in range(1, 201)]
    for client in ids:
        server.transport.kick(client, KickReason.FAIL, T)
    server.sent()
    server.transport.handle_timers(T + 15)
    assert [len(packet.clients) for packet, _ in server.sent(Kick)] == [200]


def test_kicked_master_is_replaced_at_once(server):
    (master, other), now = server.data_state(1, 2)
    server.application.calls.clear()
    server.transport.kick(master, KickReason.FAIL, now)
    assert server.data.master_client_id == other
    assert server.application.named("clients_changed")


def test_kicked_client_may_still_report_and_is_not_dead(server):
    client = server.activate(1, T)
    server.transport.kick(client, KickReason.FAIL, T)
    assert server.qcr(client, T + 50, app=b"p") is None
    assert server.clients.kicked[client].last_update == T + 50


@pytest.mark.parametrize("how", ["kick", "demote"])
def test_removed_client_is_heard_and_told_until_it_leaves_through_every_state(server, how):
    (client,), now = server.data_state(1)
    if how == "kick":
        server.transport.kick(client, KickReason.FAIL, now)
    else:
        server.transport.demote(client, LOWER, now)
    assert server.transport.state is ServerState.QCC  # nobody is left to be the master
    server.sent()
    server.transport.handle_timers(now + 15)
    assert [packet for packet, _ in server.sent(Kick if how == "kick" else Demote)]
    assert server.qcr(client, now + 15, app=b"progress") is None
    assert server.application.named("status") == [("status", client, b"progress")]
    (record,) = (*server.clients.kicked.values(), *server.clients.demoted.values())
    assert record.last_update == now + 15


@pytest.mark.parametrize("how", ["kick", "demote", "close"])
def test_silent_removed_client_is_forgotten_in_qcc_state_and_when_closing_too(server, how):
    (client,), now = server.data_state(1)
    match how:
        case "kick":
            server.transport.kick(client, KickReason.FAIL, now)
        case "demote":
            server.transport.demote(client, LOWER, now)
        case "close":
            server.transport.close(KickReason.FAIL, now)
    for _ in range(2):
        server.transport.handle_timers(server.timers.get(ServerTimer.CLIENT_CLEANUP))
    assert not server.clients.kicked
    assert not server.clients.demoted
    assert [event.reason for event in server.events()] == [Gone.DEAD]


def test_kicked_client_that_joins_again_is_told_again_and_stays_removed(server):
    client = server.activate(1, T)
    server.transport.kick(client, KickReason.FAIL, T)
    server.events()
    server.sent()
    packet = Join("pc", bytes(4), bytes(6))
    assert server.receive(packet, address(1), T + 1) is DropReason.STATE
    assert server.sent() == [(Kick(((client, KickReason.FAIL),)), None)]
    assert list(server.clients.kicked) == [client]
    assert server.events() == []


@pytest.mark.parametrize("could", [False, True])
def test_client_is_and_can_what_its_last_join_says(server, could):
    multistream = (capabilities(CAP_MULTISTREAM),)
    client = server.join(1, T, name="old", options=multistream if could else ())
    packet = Join("new", bytes(4), b"\2\0\0\0\0\7", () if could else multistream)
    assert server.receive(packet, address(1), T + 1) is None
    record = server.clients.pending[client]
    assert (record.name, record.mac_address) == ("new", b"\2\0\0\0\0\7")
    assert record.supports_demote is not could


def test_client_that_confirms_gives_back_every_join_ack_it_took():
    server = ServerScript(join_acks_unanswered=10)
    for _ in range(3):
        client = server.join(1, T)
    assert server.transport._join_acks.left(T) == 7
    server.qcr(client, T)
    assert server.transport._join_acks.left(T) == 10


def test_client_that_makes_way_for_a_younger_one_gives_no_join_ack_back():
    server = ServerScript(join_acks_unanswered=10, max_pending_clients=1)
    server.join(1, T)
    server.join(2, T)
    assert server.transport._join_acks.left(T) == 8


def test_clients_that_never_confirm_give_no_join_ack_back_when_they_are_forgotten():
    server = ServerScript(join_acks_unanswered=20)
    for number in range(1, 13):
        server.join(number, T)
    server.transport.handle_timers(T + 0.5)
    server.transport.handle_timers(T + 1.0)
    before = server.transport._join_acks.left(T + 1.5)
    server.transport.handle_timers(T + 1.5)
    assert not server.clients.pending
    assert server.transport._join_acks.left(T + 1.5) == before < 20


def test_join_ack_that_was_not_sent_is_not_given_back():
    server = ServerScript(join_acks_unanswered=2)
    waiting = [server.join(1, T), server.join(2, T)]
    server.sent()
    assert server.receive(Join("late", bytes(4), bytes(6)), address(3), T) is None
    assert server.sent(JoinAck) == []
    (late,) = set(server.clients.pending) - set(waiting)
    server.where[late] = address(3)
    server.qcr(late, T)
    assert server.transport._join_acks.left(T) == 0


def test_join_acks_are_repeated_in_the_order_in_which_clients_joined(server):
    server.join(1, T)
    server.join(2, T + 0.2)
    assert server.transport.next_deadline() == T + 0.5


def test_join_ack_in_the_data_state_has_the_back_offs_of_the_last_spm(server):
    server.data_state(*range(1, 21))
    server.data.mcrtt = 0.015
    server.data._send_spm(T + 2)
    server.sent()
    server.join(30, T + 2)
    ((answer, _),) = server.sent(JoinAck)
    assert (answer.min_nack_back_off, answer.max_nack_back_off) == (30, 34)


def test_closing_session_in_qcc_state_asks_nobody_any_more(server):
    server.activate(1, T)
    assert server.transport.state is ServerState.QCC
    server.transport.close(KickReason.FAIL, T)
    server.sent()
    for turn in range(20):
        server.transport.handle_timers(T + turn)
    assert server.sent(Qcc) == []


def test_program_that_follows_a_kicked_one_at_its_address_is_let_in_after_eight_joins(server):
    client = server.activate(1, T)
    server.transport.kick(client, KickReason.FAIL, T)
    server.events()
    packet = Join("pc", bytes(4), bytes(6))
    for turn in range(8):
        assert server.receive(packet, address(1), T + turn / 2) is DropReason.STATE
    server.sent()
    assert server.receive(packet, address(1), T + 4) is None
    ((answer, to),) = server.sent(JoinAck)
    assert (answer.client_id != client, to) == (True, address(1))
    assert not server.clients.kicked
    assert [event.reason for event in server.events()] == [Gone.KICKED]


# ---------------------------------------------------------------------- closing


def test_closing_kicks_everybody_in_packets_of_200(server):
    for number in range(1, 402):
        server.activate(number, T)
    server.sent()
    server.transport.close(KickReason.FALLBACK, T + 1)
    packets = [packet for packet, to in server.sent() if to is None]
    assert [len(packet.clients) for packet in packets] == [200, 200, 1]
    assert {reason for packet in packets for _, reason in packet.clients} == {KickReason.FALLBACK}
    assert server.application.named("clients_changed")[-1] == ("clients_changed", T + 1)


def test_closing_kicks_all_who_have_not_confirmed_however_many_they_are(server):
    clients = {server.join(number, T) for number in range(1, 302)}
    server.sent()
    server.transport.close(KickReason.FAIL, T + 0.1)
    packets = [packet for packet, to in server.sent(Kick) if to is None]
    assert [len(packet.clients) for packet in packets] == [200, 101]
    assert {client for packet in packets for client, _ in packet.clients} == clients


def test_closing_repeats_kick_sooner_until_everybody_has_left(server):
    (one, two), now = server.data_state(1, 2)
    server.transport.close(KickReason.FALLBACK, now)
    server.sent()
    interval = server.parameters.closing_kick_interval
    assert interval < server.parameters.kick_interval
    assert server.timers.get(ServerTimer.KICK) == now + interval
    server.receive(Leave(one, LeaveReason.CANCELLED), server.where[one], now)
    server.transport.handle_timers(now + interval)
    assert server.sent(Kick) == [(Kick(((two, KickReason.FALLBACK),)), None)]
    server.receive(Leave(two, LeaveReason.CANCELLED), server.where[two], now)
    server.transport.handle_timers(now + 2 * interval)
    assert server.sent(Kick) == []


def test_closing_tells_those_who_were_kicked_before_sooner_and_with_their_own_reason(server):
    one, two = server.activate(1, T), server.activate(2, T)
    server.transport.kick(one, KickReason.FAIL, T)
    server.sent()
    server.transport.close(KickReason.FALLBACK, T + 1)
    due = T + 1 + server.parameters.closing_kick_interval
    assert server.timers.get(ServerTimer.KICK) == due
    server.transport.handle_timers(due)
    kick = Kick(((one, KickReason.FAIL), (two, KickReason.FALLBACK)))
    assert server.sent(Kick) == [(kick, None), (kick, None)]


def test_closing_again_tells_those_who_have_not_left_once_more(server):
    one, two = server.activate(1, T), server.activate(2, T)
    server.transport.close(KickReason.FALLBACK, T)
    server.receive(Leave(one, LeaveReason.CANCELLED), address(1), T + 0.1)
    server.sent()
    server.transport.close(KickReason.FAIL, T + 0.1)
    assert server.sent(Kick) == [(Kick(((two, KickReason.FALLBACK),)), None)]


def test_closing_session_whose_clients_never_leave_ends_with_the_inactivity_timer(server):
    server.activate(1, T)
    server.transport.close(KickReason.FALLBACK, T)
    server.transport.handle_timers(T + 300)
    assert server.transport.terminated


def test_closing_session_tells_whom_it_demoted_until_it_has_left(server):
    client, other = server.activate(1, T), server.activate(2, T)
    server.transport.demote(client, LOWER, T)
    server.transport.close(KickReason.FALLBACK, T)
    server.sent()
    server.transport.handle_timers(T + 0.5)
    assert [packet.clients for packet, _ in server.sent(Demote)] == [(client,)]
    assert other in server.clients.kicked


def test_removed_client_is_forgotten_when_it_is_silent_whoever_else_is_there(server):
    kicked, demoted, other = (server.activate(number, T) for number in (1, 2, 3))
    server.transport.kick(kicked, KickReason.FAIL, T)
    server.transport.demote(demoted, LOWER, T)
    server.qcr(other, T + 50)
    server.transport._client_cleanup_timer(T + 61)
    assert not server.clients.kicked
    assert not server.clients.demoted
    assert set(server.clients.active) == {other}


def test_closing_session_admits_nobody(server):
    server.data_state(1)
    server.transport.close(KickReason.FALLBACK, T + 5)
    server.sent()
    assert server.receive(Join("pc", bytes(4), b""), address(9), T + 5) is DropReason.STATE
    assert server.sent() == []


def test_closing_session_admits_nobody_at_the_address_of_whom_it_kicked(server):
    client = server.activate(1, T)
    server.transport.close(KickReason.FALLBACK, T)
    for _ in range(2 * server.parameters.max_removed_joins):
        assert server.receive(Join("pc", bytes(4), b""), address(1), T) is DropReason.STATE
    assert list(server.clients.kicked) == [client]


def test_closing_session_does_not_admit_who_was_about_to_join(server):
    pending = server.join(2, T)
    server.transport.close(KickReason.FALLBACK, T)
    server.qcr(pending, T)
    assert not server.clients.active
    assert server.sent(Qcc) == []


def test_closing_tells_nobody_that_who_was_about_to_join_has_come(server):
    server.join(2, T)
    server.transport.close(KickReason.FALLBACK, T)
    assert server.events() == []


def test_closing_session_of_nobody_has_nothing_to_repeat(server):
    server.transport.close(KickReason.FALLBACK, T)
    assert server.sent() == []
    assert ServerTimer.KICK not in server.transport.timers


def test_closing_session_sends_nothing_but_kick(server):
    (master, _), now = server.data_state(1, 2)
    server.open_window(master, now)
    assert server.data.sendable()
    server.transport.close(KickReason.FALLBACK, now)
    assert not server.data.sendable()
    server.data.withdraw()  # what the application does when nobody is left
    server.sent()
    for step in range(1, 60):
        server.transport.handle_timers(now + step / 10)
    assert {type(packet) for packet, _ in server.sent()} == {Kick}


# ---------------------------------------------------------------------- DEMOTE


def test_demote_is_sent_at_once_with_the_lower_session(server):
    client = server.activate(1, T)
    server.sent()
    assert server.transport.demote(client, LOWER, T)
    expected = Demote(99, bytes([239, 0, 0, 9]), 7009, bytes([10, 0, 0, 9]), 7010, (client,))
    assert server.sent(Demote) == [(expected, None)]
    assert client in server.clients.demoted
    assert not server.clients.active


def test_demote_of_nobody_says_so(server):
    assert not server.transport.demote(1, LOWER, T)
    assert server.sent() == []


def test_client_that_cannot_be_demoted_is_not(server):
    client = server.join(1, T, options=())
    server.qcr(client, T)
    assert not server.transport.demote(client, LOWER, T)
    assert client in server.clients.active


def test_demote_is_repeated_every_500_ms_until_the_client_has_left(server):
    client = server.activate(1, T)
    server.transport.demote(client, LOWER, T)
    server.sent()
    for due in (T + 0.5, T + 1.0):
        assert server.timers.get(ServerTimer.DEMOTE) == due
        server.transport.handle_timers(due)
        assert len(server.sent(Demote)) == 1
    server.events()
    server.receive(Leave(client, LeaveReason.CANCELLED), address(1), T + 1.1)
    assert [event.reason for event in server.events()] == [Gone.DEMOTED]
    server.transport.handle_timers(T + 1.5)
    assert server.sent(Demote) == []
    assert ServerTimer.DEMOTE not in server.timers


def test_demote_is_repeated_to_each_client_with_the_lower_session_that_it_was_meant_for(server):
    one, two, three = (server.activate(number, T) for number in (1, 2, 3))
    lowest = DemoteTarget(98, bytes([239, 0, 0, 8]), 7007, bytes([10, 0, 0, 8]), 7008)
    for client, target in ((one, LOWER), (two, lowest), (three, LOWER)):
        server.transport.demote(client, target, T)
    server.sent()
    server.transport.handle_timers(T + 0.5)
    told = [(packet.lower_session_id, packet.clients) for packet, _ in server.sent(Demote)]
    assert told == [(99, (one, three)), (98, (two,))]


def test_demote_tells_sessions_of_one_number_on_two_servers_apart(server):
    one, two = server.activate(1, T), server.activate(2, T)
    elsewhere = DemoteTarget(99, bytes([239, 0, 0, 9]), 7009, bytes([10, 0, 0, 7]), 7010)
    server.transport.demote(one, LOWER, T)
    server.transport.demote(two, elsewhere, T)
    server.sent()
    server.transport.handle_timers(T + 0.5)
    told = [(packet.unicast_address, packet.clients) for packet, _ in server.sent(Demote)]
    assert told == [(bytes([10, 0, 0, 9]), (one,)), (bytes([10, 0, 0, 7]), (two,))]


def test_demote_names_the_lower_session_it_was_asked_for_last(server):
    one, two = server.activate(1, T), server.activate(2, T)
    server.transport.demote(one, LOWER, T)
    server.receive(Leave(one, LeaveReason.CANCELLED), address(1), T + 0.1)
    server.sent()
    lowest = DemoteTarget(98, bytes([239, 0, 0, 8]), 7007, bytes([10, 0, 0, 8]), 7008)
    server.transport.demote(two, lowest, T + 0.2)
    server.transport.handle_timers(T + 0.5)
    expected = Demote(98, bytes([239, 0, 0, 8]), 7007, bytes([10, 0, 0, 8]), 7008, (two,))
    assert server.sent(Demote) == [(expected, None)]


def test_demoted_client_that_joins_again_is_told_again_and_stays_removed(server):
    client = server.activate(1, T)
    server.transport.demote(client, LOWER, T)
    ((demote, _),) = server.sent(Demote)
    packet = Join("pc", bytes(4), bytes(6))
    assert server.receive(packet, address(1), T + 0.1) is DropReason.STATE
    assert server.sent() == [(demote, None)]
    assert list(server.clients.demoted) == [client]


def test_program_that_follows_a_demoted_one_at_its_address_is_let_in_after_eight_joins(server):
    client = server.activate(1, T)
    server.transport.demote(client, LOWER, T)
    server.events()
    packet = Join("pc", bytes(4), bytes(6))
    for turn in range(8):
        assert server.receive(packet, address(1), T + turn / 2) is DropReason.STATE
    server.sent()
    assert server.receive(packet, address(1), T + 4) is None
    ((answer, to),) = server.sent(JoinAck)
    assert (answer.client_id != client, to) == (True, address(1))
    assert not server.clients.demoted
    assert [event.reason for event in server.events()] == [Gone.DEMOTED]


def test_demote_for_251_clients_is_two_packets(server):
    ids = [server.activate(number, T) for number in range(1, 252)]
    for client in ids:
        server.transport.demote(client, LOWER, T)
    assert len(server.sent(Demote)) == 1
    server.transport.handle_timers(T + 0.5)
    packets = [packet for packet, _ in server.sent(Demote)]
    assert [len(packet.clients) for packet in packets] == [250, 1]
    assert [client for packet in packets for client in packet.clients] == ids


def test_demoted_master_is_replaced_at_once(server):
    (master, other), now = server.data_state(1, 2)
    server.transport.demote(master, LOWER, now)
    assert server.data.master_client_id == other


# ---------------------------------------------------------------------- silence


def test_client_that_reports_nothing_for_60_seconds_is_removed(server):
    one, two = server.activate(1, T + 10), server.activate(2, T + 10)
    server.events()
    server.transport._client_cleanup_timer(T + 60)
    assert set(server.clients.active) == {one, two}
    server.qcr(two, T + 61)
    server.transport._client_cleanup_timer(T + 120)
    assert set(server.clients.active) == {two}
    assert [(event.client.client_id, event.reason) for event in server.events()] == [(one, Gone.DEAD)]
    assert server.application.named("clients_changed")[-1] == ("clients_changed", T + 120)


def test_silent_client_is_removed_however_much_the_others_say(server):
    silent, other = server.activate(1, T), server.activate(2, T)
    for second in range(1, 122):
        server.transport.handle_timers(T + second)
        server.qcr(other, T + second)
    assert list(server.clients.active) == [other]
    assert [event.client.client_id for event in server.events() if isinstance(event, ClientGone)] == [silent]


def test_exactly_60_seconds_are_not_too_long(server):
    client = server.activate(1, T + 10)
    server.transport._client_cleanup_timer(T + 70)
    assert client in server.clients.active
    server.transport._client_cleanup_timer(math.nextafter(T + 70, math.inf))
    assert client not in server.clients.active


def test_cleanup_comes_round_every_60_seconds(server):
    assert server.timers.get(ServerTimer.CLIENT_CLEANUP) == T + 60
    server.transport.handle_timers(T + 60)
    assert server.timers.get(ServerTimer.CLIENT_CLEANUP) == T + 120


def test_removed_clients_that_never_leave_are_forgotten_too(server):
    one, two = server.activate(1, T), server.activate(2, T)
    server.transport.kick(one, KickReason.FAIL, T)
    server.transport.demote(two, LOWER, T)
    server.application.calls.clear()
    server.events()
    server.transport._client_cleanup_timer(T + 61)
    assert not server.application.named("clients_changed")
    assert not server.clients.kicked
    assert not server.clients.demoted
    assert [event.reason for event in server.events()] == [Gone.DEAD, Gone.DEAD]
    server.sent()
    server.transport.handle_timers(T + 75)
    assert (server.sent(Kick), server.sent(Demote)) == ([], [])


def test_dead_master_is_replaced_at_once(server):
    (master, other), now = server.data_state(1, 2)
    server.qcr(other, now + 61)
    server.transport._client_cleanup_timer(now + 62)
    assert master not in server.clients.active
    assert server.transport.state is ServerState.QCC  # the last answer is a second old


def test_session_ends_after_300_seconds_without_any_client(server):
    server.join(1, T + 100)
    for due in (T + 299.9, T + 399.9):
        server.transport.handle_timers(due)
        assert not server.transport.terminated
    server.transport.handle_timers(T + 400)
    assert server.transport.terminated
    assert server.events() == [Terminated()]
    assert server.timers.next_deadline() == math.inf


def test_session_that_ends_says_so_once_and_nothing_to_its_clients():
    server = ServerScript(inactivity_timeout=5.0)
    server.activate(1, T)
    server.sent()
    server.events()
    server.transport.handle_timers(T + 5)
    server.transport.handle_timers(T + 6)
    assert server.events() == [Terminated()]
    assert {type(packet) for packet, _ in server.sent()} <= {Qcc}


@pytest.mark.parametrize("kind", ["join", "qcr", "ack", "nack", "poll_ack", "leave"])
def test_whatever_is_accepted_of_a_client_keeps_a_session_alive(server, kind):
    (master, other), _ = server.data_state(1, 2)
    server.transport.poll(b"")
    now = T + 100
    match kind:
        case "join":
            server.join(3, now)
        case "qcr":
            assert server.qcr(other, now) is None
        case "ack":
            assert server.ack(master, 0, now) is None
        case "nack":
            assert server.nack(other, [], now) is None
        case "poll_ack":
            assert server.receive(PollAck(other, 1, b"payload"), server.where[other], now) is None
        case "leave":
            packet = Leave(other, LeaveReason.COMPLETE)
            assert server.receive(packet, server.where[other], now) is None
    assert server.timers.get(ServerTimer.INACTIVITY) == now + 300


def test_nack_of_who_has_not_confirmed_keeps_a_session_alive(server):
    server.data_state(1)
    pending = server.join(2, T + 1)
    assert server.nack(pending, [], T + 9) is None
    assert server.timers.get(ServerTimer.INACTIVITY) == T + 309


def test_dropped_packets_do_not_keep_a_session_alive(server):
    server.receive(Leave(1, LeaveReason.COMPLETE), address(1), T + 100)
    server.receive(Nack(1, 0, 0, ()), address(1), T + 100)
    assert server.timers.get(ServerTimer.INACTIVITY) == T + 300


# ---------------------------------------------------------------------- properties

clients = st.integers(1, 4)
actions = st.one_of(
    st.tuples(st.sampled_from(["join", "confirm", "answer", "report", "pollack", "zero"]), clients),
    st.tuples(st.sampled_from(["leave", "kick", "demote"]), clients),
    st.tuples(st.sampled_from(["ack", "nack", "send"]), clients),
    st.tuples(st.sampled_from(["give", "close"]), st.just(1)),
)
scripts = st.lists(
    st.tuples(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.6, 3.0, 70.0]), st.one_of(*[actions] * 9)),
    max_size=50,
)


@given(scripts)
@settings(STEADY, max_examples=120)
def test_whatever_happens_the_lists_the_master_and_the_timers_agree(script):
    server, now, ids = ServerScript(), T, {}
    transport, data, lists = server.transport, server.data, server.clients
    for step, (pause, (name, number)) in enumerate(script):
        now += pause
        transport.handle_timers(now)
        assert transport.next_deadline() > now
        client = ids.get(number, 0)
        where = address(number)
        match name:
            case "join":
                transport.receive(Join("pc", bytes(4), b""), ms(now), where, now)
                record = lists.at(where)
                ids[number] = record.client_id if record else 0
            case "confirm":
                transport.receive(Qcr(client, 0, 0, ms(now), 0, 0, b""), 0, where, now)
            case "answer":
                seq = transport._next_qcc_seq_no - 1
                transport.receive(Qcr(client, seq, 0, ms(now - 0.01), 0, step * 10**13, b""), 0, where, now)
            case "report":
                transport.receive(Qcr(client, 0, 0, 0, 0, 0, b""), 0, where, now)
            case "pollack":
                transport.receive(PollAck(client, 0, b""), 0, where, now)
            case "leave":
                transport.receive(Leave(client, LeaveReason.COMPLETE), 0, where, now)
            case "kick":
                transport.kick(client, KickReason.FAIL, now)
            case "demote":
                transport.demote(client, LOWER, now)
            case "ack":
                transport.receive(Ack(client, data.mc_lead, ms(now), 0, 0), 0, where, now)
            case "nack":
                ranges = ((max(1, data.mc_lead - 2), data.mc_lead + 2),)
                transport.receive(Nack(client, 0, step * 10**13, ranges), 0, where, now)
            case "zero":
                transport.receive(Nack(client, 0, 0, ()), 0, where, now)
            case "send":
                data.take_odata(16, now)
                data.repairs_sent([seq for seq, _ in data.take_repairs(16)], now)
            case "give":
                data.give([(1, 20)])
            case "close" if step > 40:
                transport.close(KickReason.FAIL, now)
        transport.handle_timers(now)
        assert transport.next_deadline() > now
        groups = (lists.pending, lists.active, lists.kicked, lists.demoted)
        everybody = [client_id for group in groups for client_id in group]
        assert len(everybody) == len(set(everybody))
        assert 0 not in everybody
        assert {record.address for group in groups for record in group.values()} == set(lists._by_address)
        if not transport.closing and not transport.terminated:
            assert (data.master_client_id != 0) == (transport.state is ServerState.DATA)
            assert data.master_client_id in {0, *lists.active}
        assert 0 <= data.mc_trail <= data.mc_lead
        assert data.trail <= data.mc_lead
        assert 1 <= data.window.size <= server.parameters.max_window_size
        for packet, _ in server.sent(Kick):
            assert 0 < len(packet.clients) <= 200
