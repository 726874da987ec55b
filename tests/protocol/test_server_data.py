"""The server's Data state: SPM, the window, what goes out, ACK and NACK, repairs, and the end of a round."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocol_scripts import STEADY, ServerScript, T, address, ms

from wdstransport.protocol import server_data
from wdstransport.protocol.loss import scaled_loss
from wdstransport.protocol.server_data import ODataRun
from wdstransport.protocol.server_transport import ServerState
from wdstransport.protocol.timers import ServerTimer
from wdstransport.wire.transport import DropReason, KickReason, Leave, LeaveReason, Ncf, Spm


class Round(ServerScript):
    """A server in the Data state whose first client is the master."""

    def __init__(self, clients=1, *, rtt=0.0, **parameters):
        super().__init__(**parameters)
        ids, self.begun = self.data_state(*range(1, clients + 1), rtt=rtt)
        self.master = self.data.master_client_id
        assert self.master == ids[0]
        self.others = ids[1:]

    def send_all(self, now):
        """Take all that the window lets out, in runs."""
        runs = []
        while (run := self.data.take_odata(10_000, now)) is not None:
            runs.append(run)
        return runs

    def repairs(self, now=T):
        """What is to be sent again, which leaves at `now`."""
        numbers = [seq for seq, _ in self.data.take_repairs(10_000)]
        self.data.repairs_sent(numbers, now)
        return numbers

    def all_repairs(self, now):
        """The same until none waits, round trip after round trip, with the blocks."""
        found = []
        while taken := self.data.take_repairs(10_000):
            self.data.repairs_sent([seq for seq, _ in taken], now)
            self.data.repair_timer(now)
            found += taken
        return found


@pytest.fixture
def alone():
    return Round()


@pytest.fixture
def pair():
    return Round(2)


# ---------------------------------------------------------------------- SPM


def test_first_spm_names_the_master_before_anything_was_sent():
    server = ServerScript()
    client = server.activate(1, T, rtt=0.030)
    server.qcr(client, T + 0.030, seq=server.last_qcc(), rtt=0.030)
    server.sent()
    server.transport.handle_timers(server.timers.get(ServerTimer.IN_STATE_QCC))
    assert server.sent() == [(Spm(1, client, 60, 60, 0, 0, 30), None)]


def test_spm_tells_trail_and_lead(alone):
    alone.open_window(alone.master, T + 2)
    lead = alone.data.mc_lead
    alone.data.take_odata(5, T + 2)
    alone.sent()
    alone.data._send_spm(T + 2)
    spm, _ = alone.sent(Spm)[0]
    assert (spm.trail_odata_seq_no, spm.lead_odata_seq_no) == (1, lead + 5)


def test_spm_numbers_count_upwards_through_every_state(alone):
    alone.data._send_spm(T + 2)
    alone.transport.enter_qcc(T + 2)
    alone.qcr(alone.master, T + 2, seq=alone.last_qcc())
    alone.transport.handle_timers(T + 3)
    assert [spm.spm_seq_no for spm, _ in alone.sent(Spm)] == [2, 3]


def test_spm_numbers_have_no_gaps(alone):
    alone.sent()
    for _ in range(40):
        alone.data._send_spm(T + 2)
    numbers = [spm.spm_seq_no for spm, _ in alone.sent(Spm)]
    assert numbers == list(range(numbers[0], numbers[0] + 40))


def test_back_offs_are_twice_the_round_trip_and_a_fifth_of_a_millisecond_a_client():
    server = Round(20, rtt=0.015)
    server.data._send_spm(T + 2)
    spm, _ = server.sent(Spm)[0]
    assert (spm.min_nack_back_off, spm.max_nack_back_off, spm.rtt) == (30, 34, 15)
    assert server.data.max_nack_back_off == pytest.approx(0.034)


@pytest.mark.parametrize(("clients", "longer"), [(1, 0), (4, 0), (5, 1), (9, 1), (10, 2)])
def test_longest_back_off_grows_by_a_millisecond_for_each_five_clients_that_are_full(clients, longer):
    server = Round(clients, rtt=0.015)
    server.data._send_spm(T + 2)
    spm, _ = server.sent(Spm)[0]
    assert (spm.min_nack_back_off, spm.max_nack_back_off) == (30, 30 + longer)


def test_back_offs_are_never_below_a_millisecond(alone):
    alone.data.mcrtt = 0.0
    alone.data._send_spm(T + 2)
    spm, _ = alone.sent(Spm)[0]
    assert (spm.min_nack_back_off, spm.max_nack_back_off) == (1, 1)


def test_clients_that_have_not_confirmed_do_not_lengthen_the_back_off():
    server = Round(4, rtt=0.015)
    for number in range(5, 9):
        server.join(number, T + 2)
    server.sent()
    server.data._send_spm(T + 2)
    assert server.sent(Spm)[0][0].max_nack_back_off == 30


def test_spm_tells_the_round_trip_of_the_master_whoever_joined_first(pair):
    first, second = (pair.clients.active[client] for client in (pair.master, pair.others[0]))
    first.rtt, second.rtt = 0.050, 0.020
    for master, rtt in ((first, 50), (second, 20)):
        pair.data.enter(master, T + 2)
        assert [spm.rtt for spm, _ in pair.sent(Spm)] == [rtt]


@pytest.mark.parametrize(("rtt", "wait"), [(0.010, 0.22), (0.055, 0.22), (0.060, 0.24), (0.250, 1.0)])
def test_spm_comes_every_220_ms_or_four_round_trips(rtt, wait):
    server = Round()
    server.data.mcrtt = rtt
    server.data._send_spm(T + 2)
    assert server.timers.get(ServerTimer.SPM) == pytest.approx(T + 2 + wait)


def test_five_spms_without_an_ack_end_the_masters_reign():
    server = ServerScript()
    client = server.activate(1, T)
    server.qcr(client, T, seq=server.last_qcc())
    server.transport.handle_timers(T + 0.001)
    server.sent()
    seqs = [1]
    for _ in range(4):
        server.transport.handle_timers(server.timers.get(ServerTimer.SPM))
        seqs += [spm.spm_seq_no for spm, _ in server.sent(Spm)]
        assert server.transport.state is ServerState.DATA
    assert seqs == [1, 2, 3, 4, 5]
    server.transport.handle_timers(server.timers.get(ServerTimer.SPM))
    assert server.transport.state is ServerState.QCC
    assert server.sent(Spm) == []


def test_ack_starts_the_count_of_spms_anew(alone):
    for _ in range(20):
        due = alone.timers.get(ServerTimer.SPM)
        alone.ack(alone.master, 0, due - 0.001)
        alone.transport.handle_timers(due)
        assert alone.transport.state is ServerState.DATA


def test_five_spms_follow_the_last_ack(alone):
    alone.ack(alone.master, 0, alone.timers.get(ServerTimer.SPM) - 0.001)
    alone.sent()
    left = 0
    while alone.transport.state is ServerState.DATA:
        alone.transport.handle_timers(alone.timers.get(ServerTimer.SPM))
        left += len(alone.sent(Spm))
    assert left == 5


def test_ack_that_is_not_accepted_does_not_start_the_count_anew(pair):
    while pair.transport.state is ServerState.DATA:
        due = pair.timers.get(ServerTimer.SPM)
        assert pair.ack(pair.others[0], 0, due - 0.001) is DropReason.STATE
        assert pair.ack(pair.master, 1, due - 0.001) is DropReason.STALE
        pair.transport.handle_timers(due)
        assert due < T + 10
    assert pair.transport.state is ServerState.QCC


def test_extra_spms_cannot_jump_over_the_limit(alone):
    for _ in range(7):
        alone.data._send_spm(T + 2)
    alone.transport.handle_timers(alone.timers.get(ServerTimer.SPM))
    assert alone.transport.state is ServerState.QCC


def test_nacks_do_not_stand_for_the_acks_of_a_master(pair):
    while pair.transport.state is ServerState.DATA:
        due = pair.timers.get(ServerTimer.SPM)
        for client in (pair.master, pair.others[0]):
            assert pair.nack(client, [(1, 1)], due - 0.001) is None
        pair.transport.handle_timers(due)
        assert due < T + 10
    assert pair.transport.state is ServerState.QCC


def test_back_offs_follow_the_master_whoever_is_farther_away(pair):
    pair.clients.active[pair.others[0]].rtt = 0.5
    pair.data.mcrtt = 0.020
    pair.data._send_spm(T + 2)
    assert [spm.min_nack_back_off for spm, _ in pair.sent(Spm)] == [40]


def test_new_reign_starts_the_count_anew(alone):
    for _ in range(7):
        alone.data._send_spm(T + 2)
    alone.data.enter(alone.clients.active[alone.master], T + 3)
    due = alone.timers.get(ServerTimer.SPM)
    alone.data.spm_timer(due)
    assert alone.transport.state is ServerState.DATA


def test_new_reign_goes_on_with_the_window_and_what_is_in_flight(alone):
    alone.open_window(alone.master, T + 2)
    lead = alone.data.mc_lead
    alone.data.take_odata(5, T + 2)
    size = alone.data.window.size
    alone.transport.enter_qcc(T + 3)
    alone.qcr(alone.master, T + 3, seq=alone.last_qcc())
    alone.transport.handle_timers(T + 3.001)
    assert alone.transport.state is ServerState.DATA
    assert (alone.data.window.size, alone.data.in_flight, alone.data.trail) == (size, 5, 1)
    assert alone.ack(alone.master, lead + 5, T + 3.01) is None


# ---------------------------------------------------------------------- sending


def test_nothing_is_sendable_before_something_is_given(alone):
    assert alone.data.sendable() == 0
    assert alone.data.take_odata(10, T + 2) is None


def test_window_of_one_lets_out_one_packet(alone):
    alone.data.give([(11, 20)])
    assert alone.data.sendable() == 1
    assert alone.data.take_odata(64, T + 2) == ODataRun(1, 11, 1, 0)
    assert alone.data.sendable() == 0
    assert alone.data.take_odata(64, T + 2) is None
    assert alone.data.in_flight == 1


def test_ack_opens_the_window_for_as_many_as_it_allows(alone):
    alone.data.give([(11, 200)])
    alone.send_all(T + 2)
    alone.ack(alone.master, 1, T + 2)
    assert alone.data.window.size == 3
    assert alone.send_all(T + 2) == [ODataRun(2, 12, 3, 1)]
    alone.ack(alone.master, 3, T + 2)  # two more acknowledged, one in flight
    assert alone.data.window.size == 7
    assert alone.send_all(T + 2) == [ODataRun(5, 15, 6, 4)]


def test_runs_end_where_ranges_and_limits_end(alone):
    alone.open_window(alone.master, T + 2)
    alone.data._given.clear()
    first = alone.data.mc_lead + 1
    alone.data.give([(3, 5), (10, 10), (20, 29)])
    assert alone.data.given == ((3, 5), (10, 10), (20, 29))
    assert alone.data.take_odata(2, T + 2) == ODataRun(first, 3, 2, first - 1)
    assert alone.data.given == ((5, 5), (10, 10), (20, 29))
    assert alone.data.take_odata(64, T + 2) == ODataRun(first + 2, 5, 1, first + 1)
    assert alone.data.take_odata(64, T + 2) == ODataRun(first + 3, 10, 1, first + 2)
    assert alone.data.take_odata(10, T + 2) == ODataRun(first + 4, 20, 10, first + 3)
    assert alone.data.given == ()
    assert alone.data.take_odata(64, T + 2) is None
    assert alone.data.counters.data_packets == alone.data.mc_lead


def test_nothing_leaves_without_a_master(alone):
    alone.data.give([(1, 9)])
    alone.transport.enter_qcc(T + 2)
    assert alone.data.sendable() == 0
    assert alone.data.take_odata(9, T + 2) is None


def test_sequence_numbers_go_on_from_round_to_round(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.ack(alone.master, 1, T + 2)
    alone.data.give([(1, 2)])
    assert alone.send_all(T + 3) == [ODataRun(2, 1, 2, 1)]


def test_trail_is_the_head_of_what_can_be_repaired(alone):
    assert alone.data.trail == 0
    alone.data.give([(1, 9)])
    alone.send_all(T + 2)
    assert alone.data.trail == 1


def test_shrunken_window_lets_out_nothing_until_it_has_room(alone):
    alone.open_window(alone.master, T + 2)
    size = alone.data.window.size
    alone.send_all(T + 2)
    assert alone.data.in_flight == size
    alone.nack(alone.master, [], T + 3)
    assert alone.data.sendable() == 0
    alone.ack(alone.master, alone.data.mc_lead, T + 3)
    assert alone.data.sendable() == alone.data.window.size


# ---------------------------------------------------------------------- ACK


def test_ack_of_who_is_not_the_master_is_refused(pair):
    pair.data.give([(1, 9)])
    pair.send_all(T + 2)
    assert pair.ack(pair.others[0], 1, T + 2, loss=10**15) is DropReason.STATE
    assert pair.data.mc_trail == 0
    assert pair.data.window.size == 1
    assert pair.data.mc_loss == 0.0


@pytest.mark.parametrize("beyond", [1, 2, 2**63])
def test_ack_of_what_was_never_sent_is_refused(alone, beyond):
    alone.data.give([(1, 9)])
    alone.send_all(T + 2)
    assert alone.ack(alone.master, 1 + beyond, T + 2, loss=10**15) is DropReason.STALE
    assert (alone.data.mc_trail, alone.data.window.size, alone.data.mc_loss) == (0, 1, 0.0)


@pytest.mark.parametrize("seq", [0, 12])
def test_ack_that_is_not_accepted_measures_no_round_trip(alone, seq):
    alone.data.give([(1, 11)])
    alone.data.window.size = 11
    alone.send_all(T + 2)
    alone.ack(alone.master, 5, T + 2, rtt=0.050)
    assert alone.ack(alone.master, seq, T + 3, rtt=0.500) is DropReason.STALE
    assert alone.data.mcrtt == pytest.approx(0.050)


def test_loss_that_is_over_is_over_with_the_masters_next_ack(alone):
    alone.ack(alone.master, 0, T + 2, loss=10**15)
    alone.ack(alone.master, 0, T + 2, loss=0)
    assert alone.data.mc_loss == alone.clients.active[alone.master].loss == 0.0


def test_accepted_packets_are_counted_one_by_one(pair):
    pair.data.give([(1, 9)])
    pair.send_all(T + 2)
    pair.ack(pair.master, 1, T + 2.1)
    pair.ack(pair.master, 1, T + 2.2)
    pair.ack(pair.others[0], 1, T + 2.3)
    pair.ack(pair.master, 99, T + 2.4)
    pair.nack(pair.others[0], ((1, 1),), T + 2.5)
    pair.transport.enter_qcc(T + 2.6)
    pair.nack(pair.others[0], ((1, 1),), T + 2.6)
    counters = pair.data.counters
    assert (counters.acks, counters.nacks, counters.data_packets) == (2, 1, 1)


def test_counters_go_on_whoever_becomes_the_master(pair):
    pair.data.give([(1, 9)])
    pair.send_all(T + 2)
    pair.ack(pair.master, 1, T + 2.1)
    spms = pair.data.counters.spms
    pair.qcr(pair.others[0], T + 2.1)
    pair.receive(Leave(pair.master, LeaveReason.CANCELLED), address(1), T + 2.2)
    pair.transport.enter_qcc(T + 2.3)
    pair.data.enter(pair.clients.active[pair.others[0]], T + 2.3)
    counters = pair.data.counters
    assert (counters.acks, counters.data_packets, counters.spms) == (1, 1, spms + 2)


def test_ack_below_what_was_acknowledged_is_refused(alone):
    alone.open_window(alone.master, T + 2)
    trail, size = alone.data.mc_trail, alone.data.window.size
    assert alone.ack(alone.master, trail - 1, T + 2) is DropReason.STALE
    assert (alone.data.mc_trail, alone.data.window.size) == (trail, size)


def test_ack_of_nothing_new_is_accepted_and_opens_nothing(alone):
    alone.open_window(alone.master, T + 2)
    size = alone.data.window.size
    assert alone.ack(alone.master, alone.data.mc_trail, T + 2) is None
    assert alone.data.window.size == size


def test_every_one_of_three_hundred_acks_moves_the_window_and_opens_it(alone):
    alone.open_window(alone.master, T + 2)
    alone.data.take_odata(64, T + 2)
    first, size = alone.data.mc_trail, alone.data.window.size
    for number in range(1, 301):
        assert alone.ack(alone.master, first + number, T + 2) is None
        assert alone.data.mc_trail == first + number
        assert alone.data.window.size == size + 2 * number
        alone.data.take_odata(1, T + 2)


@pytest.mark.parametrize("packets", [1, 65, 1000, 8000])
def test_ack_of_many_packets_opens_the_window_by_twice_as_many(alone, packets):
    alone.data.give([(1, 10_000)])
    alone.data.window.size = packets
    alone.data.take_odata(packets, T + 2)
    assert alone.ack(alone.master, packets, T + 2) is None
    assert alone.data.window.size == min(3 * packets, 16_384)


def test_ack_is_nothing_in_qcc_state(alone):
    alone.data.give([(1, 9)])
    alone.send_all(T + 2)
    alone.transport.enter_qcc(T + 2)
    assert alone.ack(alone.master, 1, T + 2) is DropReason.STATE
    assert alone.data.mc_trail == 0


def test_ack_measures_the_masters_round_trip_and_loss(alone):
    record = alone.clients.active[alone.master]
    measured = record.rtt
    alone.ack(alone.master, 0, T + 2, rtt=0.025, loss=2 * 10**15, hi=5)
    assert alone.data.mcrtt == pytest.approx(0.025)
    assert record.rtt == measured != alone.data.mcrtt  # which only a QCR measures (3.1.5.8)
    assert alone.data.mc_loss == record.loss == pytest.approx(0.2)
    assert record.hi_odata_seq_no == 5


def test_ack_is_no_report_and_no_answer_to_qcc(alone):
    record = alone.clients.active[alone.master]
    alone.transport.enter_qcc(T + 2)
    alone.data.enter(record, T + 2)
    before = record.last_update
    alone.ack(alone.master, 0, T + 3)
    assert (record.last_update, record.qcr_received) == (before, False)


def test_ack_acknowledges_its_own_number_however_much_more_has_come(alone):
    alone.open_window(alone.master, T + 2, packets=8)
    alone.data.take_odata(8, T + 2)
    trail, lead = alone.data.mc_trail, alone.data.mc_lead
    alone.ack(alone.master, trail + 3, T + 3, hi=lead)
    assert (alone.data.mc_trail, alone.data.in_flight) == (trail + 3, lead - trail - 3)


def test_round_trip_is_never_below_a_millisecond(alone):
    alone.ack(alone.master, 0, T + 2, rtt=0.025)
    alone.ack(alone.master, 0, T + 3, rtt=0.0)
    assert alone.data.mcrtt == 0.001
    assert alone.clients.active[alone.master].rtt == 0.0


@pytest.mark.parametrize("server_time", [0, ms(T + 90)])
def test_ack_without_a_time_of_ours_does_not_touch_the_round_trip(alone, server_time):
    alone.ack(alone.master, 0, T + 2, rtt=0.025)
    alone.ack(alone.master, 0, T + 3, server_time=server_time)
    assert alone.data.mcrtt == pytest.approx(0.025)


# ---------------------------------------------------------------------- NACK


def test_nack_is_confirmed_to_the_group_and_repaired(alone):
    first = alone.open_window(alone.master, T + 2)
    alone.data.take_odata(10, T + 2)
    ranges = ((first + 1, first + 2), (first + 5, first + 5))
    assert alone.nack(alone.master, ranges, T + 3) is None
    assert alone.sent(Ncf) == [(Ncf(ranges), None)]
    assert alone.data.repairs_waiting == 3
    block = alone.data.packets.find(first + 1)[0]
    assert alone.data.take_repairs(2) == [(first + 1, block), (first + 2, block + 1)]
    assert alone.repairs() == [first + 5]
    assert alone.data.take_repairs(9) == []
    assert (alone.data.counters.nacks, alone.data.counters.repair_packets) == (1, 3)


def test_repair_carries_the_block_that_its_number_carried(alone):
    alone.data.give([(501, 501), (900, 902)])
    alone.data.take_odata(9, T + 2)
    alone.ack(alone.master, 1, T + 2)
    alone.data.take_odata(9, T + 2)
    alone.nack(alone.master, [(1, 4)], T + 3)
    assert alone.data.take_repairs(9) == [(1, 501), (2, 900), (3, 901), (4, 902)]


@pytest.mark.parametrize("size", [1, 2, 43, 44, 45, 352])
def test_every_packet_of_a_run_of_any_size_is_repaired_with_its_own_block(alone, size):
    alone.data.give([(501, 501 + 703)])
    alone.data.window.size = 704
    while alone.data.take_odata(size, T + 2) is not None:
        pass
    alone.nack(alone.master, [(1, 704)], T + 3)
    assert alone.all_repairs(T + 3) == [(1 + place, 501 + place) for place in range(704)]


@pytest.mark.parametrize("count", [64, 72, 80, 500])
def test_all_ranges_of_a_nack_are_repaired_however_many(alone, count):
    alone.data.give([(1, 2 * count)])
    alone.data.window.size = 2 * count
    alone.data.take_odata(2 * count, T + 2)
    lost = [2 * number + 1 for number in range(count)]
    alone.nack(alone.master, [(seq, seq) for seq in lost], T + 3)
    assert [seq for seq, _ in alone.all_repairs(T + 3)] == lost


def test_what_is_not_in_the_list_is_skipped(alone):
    first = alone.open_window(alone.master, T + 2)
    alone.data.take_odata(3, T + 2)
    alone.nack(alone.master, [(0, 0), (first + 2, first + 9), (2**63, 2**64 - 1)], T + 3)
    assert alone.repairs() == [first + 2]


def test_nack_before_anything_was_sent_is_confirmed_and_repairs_nothing(alone):
    assert alone.nack(alone.master, [(1, 5)], T + 2) is None
    assert alone.repairs() == []


@pytest.mark.parametrize(("age", "repaired"), [(0.399, False), (0.401, True)])
def test_packet_sent_within_four_round_trips_is_not_sent_again(age, repaired):
    server = Round()
    server.data.give([(1, 1)])
    server.send_all(T + 2)
    server.data.mcrtt = 0.1
    server.nack(server.master, [(1, 1)], T + 2 + age)
    assert server.repairs() == ([1] if repaired else [])


def test_packet_sent_exactly_four_round_trips_ago_is_sent_again_and_so_is_its_repair(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.data.mcrtt = 0.125
    for now in (T + 2.5, T + 3.0, T + 3.5):
        alone.nack(alone.master, [(1, 1)], now)
        assert alone.repairs(now) == [1]


def test_repair_counts_as_sending(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.data.mcrtt = 0.1
    results = []
    for now in (T + 3, T + 3.2, T + 3.39, T + 3.41, T + 3.6, T + 3.9):
        alone.nack(alone.master, [(1, 1)], now)
        results.append(alone.repairs(now))
    assert results == [[1], [], [], [1], [], [1]]


def test_largest_window_is_repaired_whole_and_as_often_as_it_is_asked_for():
    server = Round(max_nack_work=20_000)
    size = server.data.window.size = server.data.window.maximum
    server.data.give([(101, 100 + size)])
    server.data.take_odata(size, T + 2)
    for now in (T + 3, T + 4):
        server.nack(server.master, [(1, size)], now)
        assert server.all_repairs(now) == [(seq, 100 + seq) for seq in range(1, size + 1)]


@pytest.fixture
def overrun():
    """A thousand packets are sent in one flight, and lost; repairs have not been asked for yet."""
    server = Round(rtt=0.010)
    server.data.give([(1, 1000)])
    server.data.window.size = 1000
    assert server.data.take_odata(1000, T + 2).count == 1000
    return server


def test_of_many_repairs_64_leave_in_each_round_trip_while_nothing_is_acknowledged(overrun):
    overrun.nack(overrun.master, [(1, 150)], T + 3)
    assert overrun.repairs(T + 3) == list(range(1, 65))
    assert overrun.repairs(T + 3) == []
    assert overrun.timers.get(ServerTimer.REPAIR) == T + 3 + overrun.data.mcrtt
    overrun.transport.handle_timers(T + 3.0099)
    assert overrun.repairs(T + 3) == []
    overrun.transport.handle_timers(T + 3.0101)
    assert overrun.repairs(T + 3) == list(range(65, 129))
    overrun.transport.handle_timers(T + 3.02)
    overrun.transport.handle_timers(T + 3.03)
    assert overrun.repairs(T + 3) == list(range(129, 151))
    overrun.transport.handle_timers(T + 3.05)
    assert ServerTimer.REPAIR not in overrun.timers


def test_two_more_repairs_leave_for_each_packet_that_is_acknowledged(overrun):
    overrun.nack(overrun.master, [(1, 150)], T + 3)
    assert len(overrun.repairs(T + 3)) == 64
    overrun.ack(overrun.master, 10, T + 3)
    assert overrun.repairs(T + 3) == list(range(65, 85))
    overrun.ack(overrun.master, 10, T + 3)
    assert overrun.repairs(T + 3) == []


def test_repairs_that_may_leave_are_no_more_than_a_window_and_no_fewer_than_before(overrun):
    window = overrun.data.window
    window.exp_max = window.maximum = 1000
    overrun.ack(overrun.master, 800, T + 3)
    window.exp_max = window.maximum = window.size = 200
    overrun.ack(overrun.master, 801, T + 3)
    for now, numbers in ((T + 4, (1, 900)), (T + 5, (1, 1000))):
        overrun.nack(overrun.master, [numbers], now)
        overrun.transport.timers.stop(ServerTimer.REPAIR)
        left = overrun.repairs(now)
        assert left == list(range(1, 901 if now == T + 4 else 101))


def test_a_round_trip_takes_nothing_back_of_what_was_earned(overrun):
    overrun.ack(overrun.master, 800, T + 3)
    overrun.nack(overrun.master, [(801, 1000)], T + 4)
    overrun.transport.handle_timers(T + 4.1)
    assert overrun.repairs(T + 4.1) == list(range(801, 1001))


def test_each_of_many_repairs_that_left_together_can_be_asked_for_again(overrun):
    overrun.ack(overrun.master, 800, T + 3)
    for now in (T + 4, T + 5):
        overrun.nack(overrun.master, [(801, 1000)], now)
        assert overrun.repairs(now) == list(range(801, 1001))


@pytest.mark.parametrize(("window", "leave"), [(2, 64), (44, 64), (50, 70), (100, 84)])
def test_repairs_that_may_leave_are_no_more_than_the_window_that_the_ack_opens(overrun, window, leave):
    overrun.data.window.size = window
    overrun.ack(overrun.master, 10, T + 3)
    overrun.nack(overrun.master, [(1, 150)], T + 3)
    assert len(overrun.repairs(T + 3)) == leave


def test_round_trip_after_few_repairs_lets_64_leave_and_no_more(overrun):
    overrun.nack(overrun.master, [(1, 10)], T + 3)
    assert len(overrun.repairs(T + 3)) == 10
    overrun.transport.handle_timers(T + 3.02)
    overrun.nack(overrun.master, [(11, 150)], T + 3.02)
    assert len(overrun.repairs(T + 3.02)) == 64


def test_repairs_that_were_taken_and_have_not_left_need_no_repair_timer(overrun):
    overrun.nack(overrun.master, [(1, 10)], T + 3)
    assert len(overrun.data.take_repairs(10)) == 10
    overrun.transport.handle_timers(T + 3.02)
    assert ServerTimer.REPAIR not in overrun.timers


def test_withdrawn_round_leaves_the_next_no_more_repairs_than_it_had(overrun):
    overrun.nack(overrun.master, [(1, 64)], T + 3)
    assert len(overrun.repairs(T + 3)) == 64
    overrun.data.withdraw()
    overrun.nack(overrun.master, [(65, 100)], T + 3)
    assert overrun.repairs(T + 3) == []
    overrun.data.repair_timer(T + 3.02)
    assert overrun.repairs(T + 3.02) == list(range(65, 101))


def test_repairs_of_what_is_forgotten_leave_room_for_as_many_others(overrun):
    overrun.nack(overrun.master, [(1, 64)], T + 3)
    assert overrun.data.packets.clean_up(T + 3, 64) == 63
    assert overrun.repairs(T + 3) == [64]
    overrun.nack(overrun.master, [(101, 200)], T + 3)
    assert overrun.repairs(T + 3) == list(range(101, 164))


def test_repairs_that_fell_to_qcc_state_leave_room_for_as_many_others(overrun):
    overrun.nack(overrun.master, [(1, 64)], T + 3)
    overrun.transport.enter_qcc(T + 3)
    assert overrun.repairs(T + 3) == []
    overrun.data.enter(overrun.clients.active[overrun.master], T + 3)
    overrun.nack(overrun.master, [(1, 150)], T + 3)
    assert overrun.repairs(T + 3) == list(range(1, 65))


def test_round_trips_pass_in_qcc_state_for_repairs_too(overrun):
    overrun.nack(overrun.master, [(1, 150)], T + 3)
    assert overrun.repairs(T + 3) == list(range(1, 65))
    overrun.transport.enter_qcc(T + 3)
    assert overrun.repairs(T + 3) == []
    overrun.transport.handle_timers(T + 3.02)
    overrun.data.enter(overrun.clients.active[overrun.master], T + 3.02)
    overrun.nack(overrun.master, [(65, 150)], T + 3.02)
    assert overrun.repairs(T + 3.02) == list(range(65, 129))


@pytest.fixture
def slow_other():
    """A thousand packets are sent and lost; besides the master, at 10 ms, there is a client at 80 ms."""
    server = Round(2, rtt=0.010)
    server.clients.active[server.others[0]].rtt = 0.080
    server.data.give([(1, 1000)])
    server.data.window.size = 1000
    server.data.take_odata(1000, T + 2)
    return server


def test_repairs_wait_for_the_round_trip_that_the_master_acknowledged_last(slow_other):
    slow_other.ack(slow_other.master, 1, T + 3, rtt=0.030)
    slow_other.nack(slow_other.master, [(2, 150)], T + 3)
    assert slow_other.timers.get(ServerTimer.REPAIR) == pytest.approx(T + 3.03)


def test_repair_that_was_taken_waits_no_more(overrun):
    overrun.nack(overrun.master, [(1, 10)], T + 3)
    overrun.data.take_repairs(4)
    assert overrun.data.repairs_waiting == 6


def test_others_nack_waits_for_the_masters_round_trip_before_more_of_it_is_repaired(slow_other):
    slow_other.nack(slow_other.others[0], [(1, 150)], T + 3)
    assert slow_other.data.master_client_id == slow_other.master
    assert slow_other.timers.get(ServerTimer.REPAIR) == T + 3 + slow_other.data.mcrtt == T + 3.01


def test_client_that_takes_over_by_a_nack_has_no_more_repaired_at_once_for_it(slow_other):
    slow_other.nack(slow_other.master, [(1, 64)], T + 3)
    assert len(slow_other.repairs(T + 3)) == 64
    slow_other.nack(slow_other.others[0], [(65, 150)], T + 3, loss=scaled_loss(0.5))
    assert slow_other.data.master_client_id == slow_other.others[0]
    assert slow_other.repairs(T + 3) == []


def test_a_nack_does_not_put_off_when_more_repairs_may_leave(overrun):
    overrun.nack(overrun.master, [(1, 150)], T + 3)
    overrun.nack(overrun.master, [(1, 150)], T + 3.005)
    assert overrun.timers.get(ServerTimer.REPAIR) == T + 3 + overrun.data.mcrtt


def test_a_round_trip_that_got_shorter_lets_repairs_leave_sooner(overrun):
    overrun.data.mcrtt = 3.0
    overrun.nack(overrun.master, [(1, 150)], T + 20)
    assert overrun.timers.get(ServerTimer.REPAIR) == T + 23
    overrun.ack(overrun.master, 0, T + 20.1, rtt=0.005)
    assert overrun.timers.get(ServerTimer.REPAIR) == pytest.approx(T + 20.105)
    overrun.ack(overrun.master, 0, T + 20.101, rtt=0.5)
    assert overrun.timers.get(ServerTimer.REPAIR) == pytest.approx(T + 20.105)


def test_a_nack_that_has_nothing_repaired_starts_no_timer(overrun):
    overrun.nack(overrun.master, [(2000, 2001)], T + 3)
    assert ServerTimer.REPAIR not in overrun.timers


def test_repairs_that_leave_together_all_count_as_sent(alone):
    alone.open_window(alone.master, T + 2)
    alone.nack(alone.master, [(1, 5)], T + 3)
    assert alone.repairs(T + 3) == [1, 2, 3, 4, 5]
    alone.nack(alone.master, [(1, 5)], T + 3)
    assert alone.repairs(T + 3) == []


def test_repair_that_waits_when_the_next_round_is_given_leaves_in_it(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.ack(alone.master, 1, T + 2)
    alone.nack(alone.master, [(1, 1)], T + 3)
    alone.data.give([(8, 9)])
    assert alone.repairs(T + 3) == [1]


def test_repair_that_has_not_left_yet_is_not_queued_twice(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.nack(alone.master, [(1, 1)], T + 3)
    alone.nack(alone.master, [(1, 1)], T + 4)
    assert alone.repairs() == [1]


def test_repair_counts_as_sent_when_it_leaves_and_not_when_it_is_asked_for(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.data.mcrtt = 0.125
    alone.nack(alone.master, [(1, 1)], T + 2.5)
    assert alone.repairs(T + 3) == [1]
    alone.nack(alone.master, [(1, 1)], T + 3.49)
    assert alone.repairs() == []
    alone.nack(alone.master, [(1, 1)], T + 3.5)
    assert alone.repairs() == [1]


def test_repair_that_was_taken_and_waits_to_leave_is_not_queued_again(alone):
    """The driver reads it first, and a rate may hold it up for long."""
    alone.data.give([(1, 2)])
    alone.data.take_odata(1, T + 2)
    alone.ack(alone.master, 1, T + 2)
    alone.data.take_odata(1, T + 2)
    alone.nack(alone.master, [(1, 2)], T + 3)
    assert alone.data.take_repairs(10) == [(1, 1), (2, 2)]
    alone.nack(alone.master, [(1, 2)], T + 4)
    assert alone.data.take_repairs(10) == []
    alone.data.repairs_sent([2], T + 5)
    alone.nack(alone.master, [(1, 2)], T + 6)
    assert alone.data.take_repairs(10) == [(2, 2)]


def test_repairs_that_were_taken_and_fell_to_qcc_state_are_sent_in_the_next_data_state(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.nack(alone.master, [(1, 1)], T + 3)
    assert alone.data.take_repairs(10) == [(1, 1)]
    alone.transport.enter_qcc(T + 3)
    alone.qcr(alone.master, T + 3, seq=alone.last_qcc())
    alone.transport.handle_timers(T + 4)
    alone.nack(alone.master, [(1, 1)], T + 4)
    assert alone.data.take_repairs(10) == [(1, 1)]


def test_repairs_that_were_taken_and_that_nobody_wants_any_more_leave_no_trace(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.nack(alone.master, [(1, 1)], T + 3)
    alone.data.take_repairs(10)
    alone.data.withdraw()
    assert not alone.data._leaving


def test_repair_that_was_taken_and_forgotten_before_it_left_leaves_no_trace(alone):
    alone.data.give([(1, 3)])
    alone.send_all(T + 2)
    alone.ack(alone.master, 1, T + 2)
    alone.send_all(T + 2)
    alone.nack(alone.master, [(1, 3)], T + 3)
    assert alone.data.take_repairs(10) == [(1, 1), (2, 2), (3, 3)]
    alone.ack(alone.master, 3, T + 3)
    alone.data.cleanup_timer(T + 3.001)
    assert alone.data.trail == 3
    assert alone.data._leaving == {3}


def test_nack_in_qcc_state_is_nothing(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.transport.enter_qcc(T + 2)
    alone.sent()
    size = alone.data.window.size
    assert alone.nack(alone.master, [(1, 1)], T + 3) is DropReason.STATE
    assert alone.sent() == []
    assert alone.repairs() == []
    assert alone.data.window.size == size


def test_nack_cuts_the_window_once_in_four_round_trips(alone):
    alone.open_window(alone.master, T + 2)
    alone.data.window.size = 64
    alone.data.mcrtt = 0.1
    alone.data.mc_lead = 10
    for now, size in ((3.0, 48), (3.2, 48), (3.399, 48), (3.401, 36), (3.9, 27)):
        alone.nack(alone.master, [(1, 1), (alone.data.mc_lead, alone.data.mc_lead)], T + now)
        assert alone.data.window.size == size
        alone.data.mc_lead += 5


def test_nack_that_repeats_what_was_reported_cuts_the_window_no_more(alone):
    alone.open_window(alone.master, T + 2)
    alone.data.window.size = 64
    alone.data.mcrtt = 0.1
    alone.data.mc_lead = 10
    for now in (3.0, 3.2, 3.4):
        alone.nack(alone.master, [(1, 1), (9, 10)], T + now)
        assert alone.data.window.size == 48
    alone.nack(alone.master, [(9, 99)], T + 3.5)  # nobody lost what was never sent
    assert alone.data.window.size == 48
    alone.data.mc_lead = 20
    alone.nack(alone.master, [(9, 10)], T + 3.55)  # however much was sent since
    assert alone.data.window.size == 48
    alone.nack(alone.master, [(11, 11), (9, 9)], T + 3.6)  # in whatever order
    assert alone.data.window.size == 36


def test_nack_of_a_range_that_began_before_the_last_cut_and_ends_after_it_cuts_the_window_again(overrun):
    overrun.nack(overrun.master, [(1, 9)], T + 3)
    size = overrun.data.window.size
    overrun.data.window.size = 2000
    overrun.data.take_odata(10_000, T + 3)
    overrun.data.give([(1, 100)])
    overrun.data.take_odata(100, T + 3)
    overrun.nack(overrun.master, [(900, 1001)], T + 4)
    assert (size, overrun.data.window.size) == (750, 1500)


def test_zero_nack_cuts_the_window_and_repairs_nothing(alone):
    alone.open_window(alone.master, T + 2)
    alone.data.window.size = 64
    alone.nack(alone.master, [], T + 3)
    assert alone.data.window.size == 48
    assert alone.repairs() == []


def test_zero_nack_cuts_the_window_again_only_for_what_was_sent_since(alone):
    alone.open_window(alone.master, T + 2)
    alone.data.window.size = 64
    lead = alone.data.mc_lead
    alone.nack(alone.master, [], T + 3, hi=lead)
    alone.data.mc_lead += 5
    alone.nack(alone.master, [], T + 4, hi=lead)
    assert alone.data.window.size == 48
    alone.nack(alone.master, [], T + 5, hi=lead + 5)
    assert alone.data.window.size == 36


def test_zero_nack_is_confirmed_with_an_empty_ncf(alone):
    alone.nack(alone.master, [], T + 3)
    assert alone.sent(Ncf) == [(Ncf(()), None)]


def test_ncf_leaves_out_what_was_never_sent(alone):
    """Deviation 58: a range beyond MCLead is repeated to nobody, one that starts at it is."""
    first = alone.open_window(alone.master, T + 2)
    alone.data.take_odata(3, T + 2)
    lead = first + 2
    alone.nack(alone.master, [(first, first), (lead, lead + 9), (lead + 11, lead + 12)], T + 3)
    assert alone.sent(Ncf) == [(Ncf(((first, first), (lead, lead + 9))), None)]


def test_ncf_repeats_what_can_no_longer_be_repaired(alone):
    alone.open_window(alone.master, T + 2)
    alone.data.cleanup_timer(T + 4)
    assert alone.data.trail > 9
    alone.sent()
    alone.nack(alone.master, [(1, 2), (3, 3)], T + 4)
    assert alone.sent() == [(Ncf(((1, 2), (3, 3))), None)]


def test_nack_with_more_ranges_than_a_datagram_holds_is_confirmed_in_several(alone, monkeypatch):
    monkeypatch.setattr(server_data, "_NCF_RANGES", 2)
    first = alone.open_window(alone.master, T + 2)
    alone.data.take_odata(9, T + 2)
    ranges = tuple((first + place, first + place) for place in range(0, 9, 2))
    alone.nack(alone.master, ranges, T + 3)
    assert [packet for packet, _ in alone.sent(Ncf)] == [Ncf(ranges[:2]), Ncf(ranges[2:4]), Ncf(ranges[4:])]


def test_nack_of_who_has_not_confirmed_is_worth_as_much_as_any_but_makes_no_master(alone):
    alone.data.give([(1, 100)])
    alone.data.window.size = 100
    alone.send_all(T + 2)
    pending = alone.join(9, T + 2)
    alone.sent()
    assert alone.nack(pending, [(1, 3)], T + 3, loss=scaled_loss(1.0)) is None
    assert alone.sent(Ncf) == [(Ncf(((1, 3),)), None)]
    assert alone.repairs(T + 3) == [1, 2, 3]
    assert alone.data.window.size == 75
    assert alone.data.counters.nacks == 1
    assert alone.data.master_client_id == alone.master


def test_masters_nack_tells_its_loss(alone):
    alone.nack(alone.master, [(1, 1)], T + 3, loss=2 * 10**15, hi=9)
    assert alone.data.mc_loss == pytest.approx(0.2)
    assert alone.clients.active[alone.master].hi_odata_seq_no == 9
    alone.nack(alone.master, [(1, 1)], T + 3, loss=10**15)
    assert alone.data.mc_loss == pytest.approx(0.1)


def test_others_nack_is_repaired_too(pair):
    pair.data.give([(1, 1)])
    pair.send_all(T + 2)
    pair.nack(pair.others[0], [(1, 1)], T + 3)
    assert pair.repairs() == [1]
    assert len(pair.sent(Ncf)) == 1
    assert pair.data.mc_loss == 0.0


def test_nack_is_no_report(pair):
    record = pair.clients.active[pair.others[0]]
    before = record.last_update
    pair.nack(pair.others[0], [(1, 1)], T + 3)
    assert record.last_update == before


@pytest.mark.parametrize("gave_up_on", [False, True])
def test_others_nack_cuts_the_window_and_is_repaired_also_when_it_was_given_up_on(pair, gave_up_on):
    pair.open_window(pair.master, T + 2)
    size = pair.data.window.size
    pair.clients.active[pair.others[0]].gave_up_on = gave_up_on
    pair.nack(pair.others[0], [(1, 1)], T + 3)
    assert pair.data.master_client_id == pair.master
    assert pair.data.window.size == size * 3 // 4
    assert pair.repairs() == [1]


def test_client_that_loses_everything_takes_over(pair):
    pair.data.mc_loss = 0.5
    pair.nack(pair.others[0], [(1, 1)], T + 3, loss=10**16)
    assert pair.data.master_client_id == pair.others[0]
    assert pair.data.mc_loss == 1.0


def test_repair_that_left_keeps_no_other_packet_of_its_run_back(alone):
    alone.open_window(alone.master, T + 2)
    first = alone.data.mc_lead + 1
    alone.data.take_odata(5, T + 2)
    alone.data.mcrtt = 0.1
    for seq in (first, first + 1):
        alone.nack(alone.master, [(seq, seq)], T + 3)
        assert alone.repairs(T + 3) == [seq]


def test_repairs_are_counted_apart_from_data_when_they_are_taken(alone):
    alone.open_window(alone.master, T + 2)
    alone.data.take_odata(5, T + 2)
    sent, first = alone.data.mc_lead, alone.data.mc_lead - 4
    alone.nack(alone.master, [(1, 3), (first, first)], T + 3)
    alone.data.cleanup_timer(T + 4)
    assert alone.data.trail == first - 1  # the first three are gone meanwhile
    assert alone.repairs(T + 4) == [first]
    counters = alone.data.counters
    assert (counters.data_packets, counters.repair_packets) == (sent, 1)


def throughput_pair(loss, *, rtt=0.020, gave_up_on=False):
    """A master with 20 ms and 1 % loss; the other's NACK."""
    server = Round(2)
    server.data.mcrtt, server.data.mc_loss = 0.020, 0.01
    other = server.clients.active[server.others[0]]
    other.rtt, other.gave_up_on = rtt, gave_up_on
    server.nack(server.others[0], [(1, 1)], T + 3, loss=scaled_loss(loss))
    return server


def test_client_with_three_quarters_of_the_masters_throughput_takes_over():
    # Equal delay: 1 % against 2.5 % is about 0.57 of the throughput.
    server = throughput_pair(0.025)
    assert server.data.master_client_id == server.others[0]
    assert server.data.mcrtt == pytest.approx(0.020)
    assert server.data.mc_loss == pytest.approx(0.025)


def test_client_that_did_not_answer_as_master_does_not_take_over_by_a_nack():
    server = throughput_pair(0.025, gave_up_on=True)
    assert server.data.master_client_id == server.master


def test_client_just_above_three_quarters_does_not_take_over():
    # sqrt(0.01/0.0145) x 1.0903/1.131 is about 0.80.
    server = throughput_pair(0.0145)
    assert server.data.master_client_id == server.master
    assert (server.data.mcrtt, server.data.mc_loss) == (0.020, 0.01)


@pytest.mark.parametrize(("rtt", "takes_over"), [(0.026, False), (0.027, True)])
def test_delay_decides_too(rtt, takes_over):
    server = throughput_pair(0.01, rtt=rtt)
    assert (server.data.master_client_id == server.others[0]) is takes_over
    if takes_over:
        assert server.data.mcrtt == rtt


def test_round_trip_below_a_millisecond_counts_as_one_when_throughputs_are_compared(pair):
    pair.data.mcrtt, pair.data.mc_loss = 0.001, 0.01
    pair.clients.active[pair.others[0]].rtt = 0.0
    pair.nack(pair.others[0], [(1, 1)], T + 3, loss=scaled_loss(0.01))
    assert pair.data.master_client_id == pair.master


def test_any_loss_is_less_throughput_than_a_master_without_loss(pair):
    pair.nack(pair.others[0], [(1, 1)], T + 3, loss=10**14)
    assert pair.data.master_client_id == pair.others[0]
    assert pair.data.mcrtt == 0.001


def test_client_without_loss_does_not_take_over(pair):
    pair.nack(pair.others[0], [(1, 1)], T + 3, loss=0)
    assert pair.data.master_client_id == pair.master


def test_one_nack_makes_bounded_work():
    server = Round(max_nack_work=5)
    server.open_window(server.master, T + 2)
    server.data.take_odata(50, T + 2)
    server.nack(server.master, [(1, 3), (2, 50)], T + 4)
    assert server.repairs() == [1, 2, 3]
    server.nack(server.master, [(7, 50)], T + 4)
    assert server.repairs() == [7, 8, 9, 10, 11]


def test_nack_costs_its_client_what_it_makes_the_server_look_at_and_nothing_for_what_was_not_sent():
    server = Round(nack_work_per_second=0.0, nack_work_burst=1000.0, nack_own_work=20.0)
    work = server.clients.active[server.master].nack_work
    server.nack(server.master, [(1, 500)], T + 2)
    assert work.left(T + 2) == 980
    server.data.give([(1, 1)])
    server.send_all(T + 2)
    server.nack(server.master, [(1, 500)], T + 3)
    assert work.left(T + 3) == 959
    server.nack(server.master, [], T + 3)
    assert work.left(T + 3) == 939


def test_nack_costs_whoever_sent_it_and_not_the_master():
    server = Round(2, nack_work_per_second=0.0, nack_work_burst=1000.0, nack_own_work=20.0)
    server.open_window(server.master, T + 2)
    server.nack(server.others[0], [(1, 5)], T + 3)
    left = [server.clients.active[client].nack_work.left(T + 3) for client in (server.master, *server.others)]
    assert left == [1000, 975]


@pytest.mark.parametrize(("limit", "cost"), [("max_nack_work", 5), ("max_repairs_queued", 7)])
def test_nack_that_asks_for_more_than_it_gets_costs_what_was_looked_at(limit, cost):
    server = Round(nack_work_per_second=0.0, nack_own_work=20.0, **{limit: 5})
    server.open_window(server.master, T + 2)
    work = server.clients.active[server.master].nack_work
    before = work.left(T + 4)
    server.nack(server.master, [(1, 3), (2, 50)], T + 4)
    assert before - work.left(T + 4) == 20 + cost  # 2 and 3 are looked at twice and queued once


def test_nack_costs_its_client_its_own_price_in_qcc_state_too():
    server = Round(nack_work_per_second=0.0, nack_work_burst=1000.0, nack_own_work=20.0)
    server.transport.enter_qcc(T + 2)
    assert server.nack(server.master, [(1, 500)], T + 2) is DropReason.STATE
    assert server.clients.active[server.master].nack_work.left(T + 2) == 980


def test_nack_costs_one_for_a_packet_whose_repair_waits_to_leave():
    server = Round(nack_work_per_second=0.0, nack_work_burst=1000.0, nack_own_work=20.0)
    work = server.clients.active[server.master].nack_work
    server.data.give([(1, 1)])
    server.send_all(T + 2)
    server.nack(server.master, [(1, 1)], T + 3)
    assert server.data.take_repairs(1) == [(1, 1)]
    server.nack(server.master, [(1, 1)], T + 4)
    assert work.left(T + 4) == 1000 - 2 * 21


def test_nack_costs_nothing_for_packets_that_left_within_four_round_trips():
    server = Round(nack_work_per_second=0.0, nack_work_burst=1000.0, nack_own_work=20.0)
    server.open_window(server.master, T + 2)
    server.data.mcrtt = 0.1
    server.data.take_odata(50, T + 2.0)
    first = server.data.mc_lead - 49
    server.data.take_odata(10, T + 2.3)
    server.nack(server.master, [(first, first + 59)], T + 2.41)
    assert server.clients.active[server.master].nack_work.left(T + 2.41) == 1000 - 20 - 50


def test_queue_of_repairs_is_bounded():
    server = Round(max_repairs_queued=4)
    server.open_window(server.master, T + 2)
    server.data.take_odata(50, T + 2)
    server.nack(server.master, [(1, 3)], T + 4)
    server.nack(server.master, [(10, 30)], T + 5)
    assert server.repairs() == [1, 2, 3, 10]


def test_repair_of_what_is_no_longer_in_the_list_is_not_sent(alone):
    alone.data.give([(1, 3)])
    alone.send_all(T + 2)
    alone.ack(alone.master, 1, T + 2)
    alone.send_all(T + 2)
    alone.ack(alone.master, 3, T + 2)
    alone.nack(alone.master, [(1, 1)], T + 3)
    alone.data.cleanup_timer(T + 3.001)
    assert alone.data.trail == 3
    assert alone.repairs() == []


# ---------------------------------------------------------------------- cleaning up


def test_packets_go_when_they_are_a_second_old_and_below_the_acknowledged_one(alone):
    alone.open_window(alone.master, T + 2)
    lead = alone.data.mc_lead
    alone.sent()
    alone.data.cleanup_timer(T + 3)
    assert (alone.data.trail, alone.sent(Spm)) == (1, [])
    alone.data.cleanup_timer(math.nextafter(T + 3, math.inf))
    assert alone.data.trail == lead
    spm, to = alone.sent(Spm)[0]
    assert to is None
    assert (spm.trail_odata_seq_no, spm.lead_odata_seq_no) == (lead, lead)
    assert alone.data.packets.find(lead) is not None


def test_one_packet_that_goes_is_told_like_many(alone):
    alone.data.give([(1, 2)])
    alone.data.take_odata(1, T + 2)
    alone.ack(alone.master, 1, T + 2)
    alone.data.take_odata(1, T + 2)
    alone.ack(alone.master, 2, T + 2)
    alone.sent()
    alone.data.cleanup_timer(T + 3.001)
    assert [spm.trail_odata_seq_no for spm, _ in alone.sent(Spm)] == [2]


def test_unacknowledged_packets_stay_however_old(alone):
    alone.data.give([(1, 9)])
    alone.send_all(T + 2)
    alone.data.cleanup_timer(T + 50)
    assert alone.data.packets.find(1) is not None
    first = alone.open_window(alone.master, T + 51)
    alone.data.take_odata(5, T + 51)
    alone.ack(alone.master, first + 1, T + 52)
    alone.data.cleanup_timer(T + 60)
    assert [alone.data.packets.find(seq) is None for seq in (first, first + 1, first + 4)] == [
        True,
        False,
        False,
    ]


def test_cleanup_without_anything_to_drop_sends_no_spm(alone):
    alone.sent()
    alone.data.cleanup_timer(T + 3)
    assert alone.sent() == []


def test_first_cleanup_comes_200_ms_after_the_data_state_was_entered():
    server = Round()
    assert server.timers.get(ServerTimer.CLEANUP_DATA_LIST) == pytest.approx(server.begun + 0.2)
    assert server.data.counters.spms == 1


def test_data_state_that_is_entered_again_cleans_up_after_200_ms_and_not_at_once(alone):
    alone.transport.enter_qcc(T + 5)
    alone.data.enter(alone.clients.active[alone.master], T + 6)
    assert alone.timers.get(ServerTimer.CLEANUP_DATA_LIST) == T + 6.2


def test_cleanup_comes_round_every_200_ms(alone):
    alone.data.cleanup_timer(T + 3)
    assert alone.timers.get(ServerTimer.CLEANUP_DATA_LIST) == T + 3.2


# ---------------------------------------------------------------------- Data Empty


def finish(server, now):
    """Send and acknowledge all that was given."""
    for _ in range(100):
        if not server.send_all(now) and not server.data.in_flight:
            return
        server.ack(server.data.master_client_id, server.data.mc_lead, now)


def empties(server):
    return [now for _, now in server.application.named("data_empty")]


def test_only_client_that_has_everything_ends_the_round_at_once(alone):
    alone.data.give([(1, 50)])
    finish(alone, T + 2)
    assert empties(alone) == [T + 2]


def test_round_is_not_over_before_everything_is_sent(alone):
    alone.data.give([(1, 2)])
    alone.send_all(T + 2)
    alone.ack(alone.master, 1, T + 2)
    alone.data.cleanup_timer(T + 9)
    assert empties(alone) == []


def test_round_is_not_over_before_everything_is_acknowledged(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.data.cleanup_timer(T + 9)
    assert empties(alone) == []
    alone.ack(alone.master, 1, T + 9)
    assert empties(alone) == [T + 9]


def test_round_with_others_is_over_when_the_last_packet_is_a_second_old(pair):
    pair.data.give([(1, 50)])
    finish(pair, T + 2)
    pair.data.cleanup_timer(T + 2.999)
    assert empties(pair) == []
    pair.data.cleanup_timer(T + 3)
    assert empties(pair) == [T + 3]


def test_round_with_others_lasts_until_its_last_packet_is_old_whatever_the_first_one_is(pair):
    pair.data.give([(1, 2)])
    for seq, now in ((1, T + 2), (2, T + 2.5)):
        pair.data.take_odata(1, now)
        pair.ack(pair.master, seq, now)
    pair.ack(pair.master, 2, T + 3.1)
    assert empties(pair) == []


def test_round_with_others_that_were_kicked_is_over_at_once(pair):
    pair.data.give([(1, 50)])
    pair.transport.kick(pair.others[0], KickReason.FAIL, T + 2)
    finish(pair, T + 2)
    assert empties(pair) == [T + 2]


def test_client_that_is_about_to_join_does_not_keep_a_round_waiting(alone):
    alone.join(2, T + 2)
    alone.data.give([(1, 50)])
    finish(alone, T + 2)
    assert empties(alone) == [T + 2]


def test_application_may_give_the_next_round_when_it_hears_of_the_end_of_one(alone, monkeypatch):
    ends = []

    def data_empty(now):
        ends.append(now)
        if len(ends) < 3:
            alone.data.give([(1, 5)])

    monkeypatch.setattr(alone.application, "data_empty", data_empty)
    alone.data.give([(1, 5)])
    for second in (2, 3, 4):
        finish(alone, T + second)
        assert alone.data.given == ()
    assert len(ends) == 3


def test_round_with_others_is_over_a_second_after_its_last_packet_whenever_that_was_acknowledged(pair):
    pair.data.give([(1, 1)])
    pair.send_all(T + 2)
    pair.ack(pair.master, 1, T + 2.6)
    pair.data.cleanup_timer(T + 2.999)
    assert empties(pair) == []
    pair.data.cleanup_timer(T + 3)
    assert empties(pair) == [T + 3]


def test_round_is_over_once(alone):
    alone.data.give([(1, 5)])
    finish(alone, T + 2)
    alone.ack(alone.master, alone.data.mc_lead, T + 3)
    alone.data.cleanup_timer(T + 9)
    assert empties(alone) == [T + 2]


def test_round_is_not_over_while_repairs_wait(pair):
    pair.data.give([(1, 5)])
    finish(pair, T + 2)
    pair.nack(pair.others[0], [(2, 3)], T + 2.9)
    pair.data.cleanup_timer(T + 3.1)
    assert empties(pair) == []
    pair.repairs()
    pair.data.cleanup_timer(T + 3.3)
    assert empties(pair) == [T + 3.3]


def test_round_is_over_though_a_repair_that_was_taken_has_not_left(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.nack(alone.master, [(1, 1)], T + 3)
    assert alone.data.take_repairs(10) == [(1, 1)]
    alone.ack(alone.master, 1, T + 3.1)
    assert alone.application.named("data_empty") == [("data_empty", T + 3.1)]


def test_data_state_without_a_round_triggers_nothing(alone):
    alone.ack(alone.master, 0, T + 2)
    alone.data.cleanup_timer(T + 9)
    assert empties(alone) == []


def test_withdrawn_round_never_ends_and_leaves_nothing_behind(alone):
    alone.open_window(alone.master, T + 2)
    alone.data.take_odata(5, T + 2)
    alone.nack(alone.master, [(1, 3)], T + 3)
    size = alone.data.window.size
    alone.data.withdraw()
    assert alone.data.window.size == size
    assert alone.data.given == ()
    assert alone.data.in_flight == 0
    assert alone.repairs() == []
    alone.data.cleanup_timer(T + 9)
    assert empties(alone) == []


def test_packets_of_a_withdrawn_round_are_forgotten_when_they_are_old_like_any(alone):
    alone.data.give([(1, 1)])
    alone.data.take_odata(1, T + 2)
    alone.ack(alone.master, 1, T + 2)
    alone.data.give([(1, 9)])
    alone.data.take_odata(9, T + 2)
    alone.data.withdraw()
    lead = alone.data.mc_lead
    alone.data.cleanup_timer(T + 2.9)
    assert (alone.data.trail, lead > 1) == (1, True)
    alone.data.cleanup_timer(T + 3.1)
    assert alone.data.trail == lead


def test_new_master_goes_on_where_the_old_one_was(pair):
    pair.qcr(pair.others[0], T + 2)
    pair.open_window(pair.master, T + 2)
    given = pair.data.given
    pair.receive(Leave(pair.master, LeaveReason.CANCELLED), address(1), T + 2)
    assert pair.data.master_client_id == pair.others[0]
    assert pair.data.given == given
    assert pair.data.sendable() == pair.data.window.size


def test_first_ack_of_who_takes_over_tells_where_it_stands(pair):
    pair.qcr(pair.others[0], T + 2)
    pair.open_window(pair.master, T + 2)
    pair.send_all(T + 2)
    lead = pair.data.mc_lead
    pair.ack(pair.master, lead, T + 2)
    pair.receive(Leave(pair.master, LeaveReason.CANCELLED), address(1), T + 2)
    assert pair.ack(pair.others[0], 5, T + 2) is None
    assert pair.data.in_flight == lead - 5
    assert pair.ack(pair.others[0], 3, T + 2) is DropReason.STALE
    assert pair.ack(pair.others[0], lead, T + 2.1) is None
    assert pair.data.in_flight == 0


def test_first_ack_of_a_master_that_qcc_state_found_tells_where_it_stands(pair):
    """However far behind it is, it is no client that does not answer."""
    pair.open_window(pair.master, T + 2)
    pair.send_all(T + 2)
    lead = pair.data.mc_lead
    pair.ack(pair.master, lead, T + 2)
    pair.transport.enter_qcc(T + 3)
    pair.qcr(pair.others[0], T + 3, seq=pair.last_qcc(), hi=5)
    pair.transport.handle_timers(T + 3.1)
    assert pair.data.master_client_id == pair.others[0]
    assert pair.ack(pair.others[0], 5, T + 3.2) is None
    assert pair.data.in_flight == lead - 5
    assert pair.ack(pair.others[0], 3, T + 3.2) is DropReason.STALE
    for number in range(1, 8):
        pair.transport.handle_timers(T + 3.2 + number / 10)
        assert pair.ack(pair.others[0], 5 + number, T + 3.2 + number / 10) is None
    assert pair.data.master_client_id == pair.others[0]


def test_ack_of_what_was_never_sent_is_not_the_first_of_who_takes_over(pair):
    pair.qcr(pair.others[0], T + 2)
    lead = pair.open_window(pair.master, T + 2) - 1
    pair.receive(Leave(pair.master, LeaveReason.CANCELLED), address(1), T + 2)
    assert pair.ack(pair.others[0], lead + 1, T + 2) is DropReason.STALE
    assert pair.ack(pair.others[0], 5, T + 2) is None
    assert pair.data.in_flight == lead - 5


def test_who_takes_over_brings_its_shorter_round_trip(slow_other):
    slow_other.clients.active[slow_other.others[0]].rtt = 0.004
    slow_other.qcr(slow_other.others[0], T + 2, server_time=0)
    slow_other.receive(Leave(slow_other.master, LeaveReason.CANCELLED), address(1), T + 2)
    assert slow_other.data.master_client_id == slow_other.others[0]
    assert slow_other.data.mcrtt == 0.004


def test_first_ack_of_who_takes_over_counts_once(pair):
    pair.qcr(pair.others[0], T + 2)
    pair.open_window(pair.master, T + 2)
    pair.receive(Leave(pair.master, LeaveReason.CANCELLED), address(1), T + 2)
    before = pair.data.counters.acks
    pair.ack(pair.others[0], 5, T + 2)
    assert pair.data.counters.acks == before + 1


def test_who_takes_over_has_five_spms_of_its_own(pair):
    pair.qcr(pair.others[0], T + 2)
    pair.data._spm_count = 4
    pair.receive(Leave(pair.master, LeaveReason.CANCELLED), address(1), T + 2)
    assert pair.data._spm_count == 1
    pair.data.spm_timer(T + 3)
    assert pair.transport.state is ServerState.DATA


# ---------------------------------------------------------------------- a model of the sender

actions = st.one_of(
    st.tuples(st.just("give"), st.integers(1, 30), st.integers(1, 40)),
    st.tuples(st.just("take"), st.integers(1, 20), st.just(0)),
    st.tuples(st.just("ack"), st.integers(-2, 40), st.just(0)),
    st.tuples(st.just("nack"), st.integers(1, 60), st.integers(0, 10)),
    st.tuples(st.just("repair"), st.integers(1, 20), st.just(0)),
    st.tuples(st.just("leave"), st.integers(1, 20), st.just(0)),
    st.tuples(st.just("cleanup"), st.just(0), st.just(0)),
)


@given(st.lists(st.tuples(st.integers(0, 700), actions), max_size=40))
@settings(STEADY, max_examples=80)
def test_sender_keeps_the_documents_books(script):
    server = Round(exp_max_window_size=8, max_window_size=12)
    data, now, blocks, size, trail = server.data, T + 2, {}, 1, 0
    given, sent_at, cut, cut_at, head = [], {}, None, 0, 1
    queued, leaving = [], []
    for pause, (name, first, second) in script:
        now = round(now + pause / 1000, 3)
        match name:
            case "give":
                data.give([(first, first + second - 1)])
                given += range(first, first + second)
            case "take":
                lead = len(blocks)
                run = data.take_odata(first, now)
                allowed = min(first, max(0, size - (lead - trail)), len(given))
                assert (run is None) == (allowed <= 0)
                if run is not None:
                    assert run.first_seq == lead + 1
                    assert run.previous_lead == lead
                    assert 0 < run.count <= allowed
                    for offset in range(run.count):
                        assert given.pop(0) == run.first_block + offset
                        blocks[run.first_seq + offset] = run.first_block + offset
                        sent_at[run.first_seq + offset] = [now, now]
            case "ack":
                seq = trail + first
                reason = server.ack(server.master, seq, now, server_time=0) if seq >= 0 else None
                if trail <= seq <= len(blocks):
                    assert reason is None
                    grown = seq - trail
                    size = min(size + 2 * grown, 8) if size < 8 else min(size + grown, 12)
                    trail = seq
                elif seq >= 0:
                    assert reason is DropReason.STALE
            case "nack":
                server.nack(server.master, [(first, first + second)], now)
                fresh = min(first + second, len(blocks)) > cut_at
                if cut is None or (fresh and now - cut >= data.mcrtt):
                    cut, cut_at, size = now, len(blocks), max(int(size * 0.75), 2)
                queued += [
                    seq
                    for seq in range(max(first, head), first + second + 1)
                    if seq in sent_at and now - sent_at[seq][1] >= 4 * data.mcrtt - 1e-9
                    if seq not in queued and seq not in leaving
                ]
            case "repair":
                expected = []
                while queued and len(expected) < first:
                    seq = queued.pop(0)
                    if seq >= head:
                        expected.append(seq)
                assert data.take_repairs(first) == [(seq, blocks[seq]) for seq in expected]
                leaving += expected
            case "leave":
                gone, leaving = leaving[:first], leaving[first:]
                data.repairs_sent(gone, now)
                for seq in gone:
                    sent_at[seq][1] = now
            case "cleanup":
                data.cleanup_timer(now)
                while head < trail and sent_at[head][0] < now - 1.0:
                    head += 1
        assert data.window.size == size
        assert data.repairs_waiting == len(queued)
        assert (data.mc_trail, data.mc_lead) == (trail, len(blocks))
        assert data.trail == (head if blocks else 0)
        assert data.sendable() == (max(0, size - (len(blocks) - trail)) if given else 0)
        server.sent()


# ---------------------------------------------------------------------- a client that falls behind


@pytest.fixture
def narrow():
    server = ServerScript(max_window_size=50, exp_max_window_size=50)
    clients, now = server.data_state(1, 2)
    server.master = server.data.master_client_id
    assert server.master in clients
    assert now < T + 2
    return server


def report(server, client, hi, now):
    server.transport._out_state_qcc_timer(now)
    server.qcr(client, now, seq=server.transport._next_qcc_seq_no - 1, hi=hi)


def test_client_further_behind_than_any_window_reaches_becomes_the_master(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.qcr(slow, now, rtt=0.040, loss=10**15, hi=100)
    assert narrow.data.master_client_id == slow
    assert (narrow.data.mcrtt, narrow.data.mc_loss) == (pytest.approx(0.040), pytest.approx(0.1))
    assert narrow.data.mc_trail == 100
    assert narrow.data.sendable() == 0  # 100 in flight to it, a window of 50


def test_client_within_the_window_does_not_become_the_master(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 150, now)
    assert narrow.data.master_client_id == narrow.master
    assert narrow.data.mc_trail == 200


@pytest.mark.parametrize(("hi", "takes_over"), [(179, True), (180, False)])
def test_how_far_behind_a_client_is_counts_what_is_in_flight(narrow, hi, takes_over):
    slow, now = behind_in_steps(narrow)
    narrow.data.take_odata(30, now)
    report(narrow, slow, hi, now)
    assert (narrow.data.master_client_id == slow) is takes_over


def test_client_behind_a_window_that_losses_made_small_does_not_become_the_master(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.data.window.size = 10
    report(narrow, slow, 160, now)
    assert narrow.data.master_client_id == narrow.master


def test_client_that_says_it_has_more_than_was_sent_does_not_become_the_master(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 10_000, now)
    assert narrow.data.master_client_id == narrow.master


def test_master_that_reports_how_far_behind_it_is_stays_where_it_is(narrow):
    _, now = behind_in_steps(narrow)
    report(narrow, narrow.master, 100, now)
    assert narrow.data.master_client_id == narrow.master
    assert narrow.data.mc_trail == 200


def test_client_that_is_being_removed_does_not_become_the_master_however_far_behind(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.transport.kick(slow, KickReason.FAIL, now)
    report(narrow, slow, 100, now)
    assert narrow.data.master_client_id == narrow.master
    assert narrow.data.mc_trail == 200


def test_client_that_reports_unasked_how_far_behind_it_is_becomes_the_master(narrow):
    slow, now = behind_in_steps(narrow)
    assert narrow.qcr(slow, now, hi=100) is None
    assert narrow.data.master_client_id == slow


def test_client_far_behind_is_no_master_while_everybody_is_asked(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.transport.enter_qcc(now)
    narrow.qcr(slow, now, seq=narrow.last_qcc(), hi=100)
    assert narrow.data.master_client_id == 0
    assert narrow.data.mc_trail == 200


def test_client_that_has_received_nothing_yet_does_not_become_the_master(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 0, now)
    assert narrow.data.master_client_id == narrow.master


def test_slow_master_moves_the_window_again_once_it_acknowledges(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 100, now)
    narrow.ack(slow, 180, now + 0.1)
    assert narrow.data.mc_trail == 180
    assert narrow.data.sendable() == 30


def test_master_that_does_not_move_for_a_second_does_not_hold_the_others(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 100, now)
    narrow.data.cleanup_timer(now + 0.9)
    assert narrow.data.mc_trail == 100
    narrow.data.cleanup_timer(now + 1.0)
    assert narrow.data.mc_trail == 200
    narrow.data._set_master(narrow.clients.active[narrow.master])
    report(narrow, slow, 101, now + 1.1)
    assert narrow.data.master_client_id == narrow.master


def test_master_that_does_not_move_does_not_hold_the_next_round_either(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 100, now)
    narrow.data.give([(1, 9)])
    narrow.data.cleanup_timer(now + 1.0)
    assert narrow.data.mc_trail == 200


def test_giving_up_on_a_master_drops_no_repair_and_makes_no_other_master(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 100, now)
    narrow.nack(slow, ((101, 102),), now + 0.9, hi=200)
    narrow.data.cleanup_timer(now + 1.0)
    assert narrow.clients.active[slow].gave_up_on
    assert narrow.data.master_client_id == slow
    assert [seq for seq, _ in narrow.data.take_repairs(9)] == [101, 102]


def test_master_that_never_gets_the_last_packet_does_not_hold_the_others_either(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.data.cleanup_timer(now + 1.5)
    assert narrow.data.packets.first_seq == 200
    narrow.nack(slow, ((200, 200),), now + 1.6, loss=10**15, hi=199)
    assert (narrow.data.master_client_id, narrow.data.in_flight) == (slow, 1)
    narrow.data.cleanup_timer(now + 2.6)
    assert narrow.data.in_flight == 0


def test_slow_master_that_moves_holds_the_others_for_as_long_as_it_moves(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 100, now)
    narrow.ack(slow, 120, now + 0.9)
    narrow.data.cleanup_timer(now + 1.5)
    assert narrow.data.mc_trail == 120
    narrow.ack(slow, 120, now + 1.8)  # nothing new is no progress
    narrow.data.cleanup_timer(now + 1.95)
    assert narrow.data.mc_trail == 200


def test_slow_master_that_moves_by_one_packet_moves(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 100, now)
    for step in range(1, 5):
        narrow.ack(slow, 100 + step, now + 0.9 * step)
        narrow.data.cleanup_timer(now + 0.9 * step + 0.5)
        assert narrow.data.mc_trail == 100 + step
    assert not narrow.clients.active[slow].gave_up_on


def test_what_was_reached_is_remembered_through_two_changes_of_the_master(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 100, now)
    narrow.nack(narrow.master, ((200, 200),), now, loss=5 * 10**15, hi=199)
    assert narrow.data.master_client_id == narrow.master
    assert narrow.data.mc_trail == 100
    narrow.data.cleanup_timer(now + 1.0)
    assert narrow.data.mc_trail == 200


def test_master_that_has_caught_up_is_not_given_up_on_for_having_nothing_to_acknowledge(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 100, now)
    narrow.ack(slow, 200, now + 0.1)
    narrow.data.cleanup_timer(now + 5)
    assert not narrow.clients.active[slow].gave_up_on


def behind_in_steps(server):
    """200 blocks sent and acknowledged through a window of 50; the other client and the time."""
    now = T + 2
    server.data.window.size = 50
    server.data.give([(1, 10_000)])
    for lead in (50, 100, 150, 200):
        assert server.data.take_odata(50, now) is not None
        server.ack(server.master, lead, now)
    return next(client for client in server.clients.active if client != server.master), now


def test_nack_that_changes_the_master_sets_the_window_to_what_the_new_one_has(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.sent()
    narrow.nack(slow, ((121, 125), (150, 151)), now, loss=10**15, hi=199)
    assert narrow.data.master_client_id == slow
    assert narrow.data.mc_trail == 120
    assert [type(packet) for packet, _ in narrow.sent()] == [Ncf]  # the next packet names the new master


@pytest.mark.parametrize("by", ["nack", "report"])
def test_who_takes_over_from_a_silent_master_has_five_spms_of_its_own(narrow, by):
    slow, now = behind_in_steps(narrow)
    for _ in range(5):
        narrow.data._send_spm(now)  # none of which the master answers
    if by == "nack":
        narrow.nack(slow, ((121, 125),), now, loss=10**15, hi=199)
    else:
        report(narrow, slow, 100, now)
    assert narrow.data.master_client_id == slow
    narrow.sent()
    narrow.transport.handle_timers(narrow.timers.get(ServerTimer.SPM))
    assert len(narrow.sent(Spm)) == 1
    assert not narrow.clients.active[slow].gave_up_on
    for _ in range(5):
        narrow.transport.handle_timers(narrow.timers.get(ServerTimer.SPM))
    assert narrow.transport.state is ServerState.QCC


def test_nack_that_changes_the_master_drops_no_repair_that_waits(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.nack(narrow.master, ((130, 131),), now + 1, hi=200)
    narrow.nack(slow, ((121, 122),), now + 1, loss=10**15, hi=199)
    assert narrow.data.master_client_id == slow
    assert [seq for seq, _ in narrow.data.take_repairs(9)] == [130, 131, 121, 122]


def test_master_given_up_on_leaves_what_nobody_acknowledged_in_flight(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.data.take_odata(30, now)
    report(narrow, slow, 100, now)
    assert narrow.data.in_flight == 130
    narrow.data.cleanup_timer(now + 1.0)
    assert (narrow.data.mc_trail, narrow.data.in_flight) == (200, 30)


def test_ack_below_what_the_new_master_named_itself_does_not_move_the_window_back(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.nack(slow, ((121, 125),), now, loss=10**15, hi=199)
    assert narrow.ack(slow, 110, now) is DropReason.STALE
    assert narrow.data.mc_trail == 120


def test_who_takes_over_by_a_nack_from_a_master_not_heard_yet_is_believed_what_it_named(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.data.succeed(narrow.clients.active[narrow.master], now)
    narrow.nack(slow, ((121, 125),), now, loss=10**15, hi=199)
    assert narrow.ack(slow, 110, now) is DropReason.STALE
    assert narrow.data.mc_trail == 120


def test_zero_nack_that_changes_the_master_sets_the_window_to_the_highest_packet_it_names(narrow):
    slow, now = behind_in_steps(narrow)
    assert narrow.nack(slow, (), now, loss=10**15, hi=150) is None
    assert narrow.data.master_client_id == slow
    assert narrow.data.mc_trail == 150


def test_new_master_that_has_more_than_the_old_one_acknowledged_does_not_move_the_window(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.data.take_odata(50, now)
    narrow.nack(slow, ((231, 235),), now, loss=10**15, hi=250)
    assert narrow.data.master_client_id == slow
    assert narrow.data.mc_trail == 200


def test_new_master_that_misses_what_is_no_longer_kept_starts_at_the_oldest_packet_kept(narrow):
    slow, now = behind_in_steps(narrow)
    narrow.data.cleanup_timer(now + 1.5)
    assert narrow.data.packets.first_seq == 200
    narrow.nack(slow, ((121, 125),), now + 1.6, loss=10**15, hi=199)
    assert narrow.data.master_client_id == slow
    assert narrow.data.mc_trail == 199


def test_nack_costs_nothing_for_packets_that_are_no_longer_kept(narrow):
    _, now = behind_in_steps(narrow)
    narrow.data.cleanup_timer(now + 1.5)
    assert narrow.data.packets.first_seq == 200
    work = narrow.clients.active[narrow.master].nack_work
    before = work.left(now + 1.5)
    narrow.nack(narrow.master, ((1, 200),), now + 1.5)
    assert before - work.left(now + 1.5) == narrow.parameters.nack_own_work + 1


def test_new_master_has_a_second_of_its_own_however_long_nothing_moved_before(narrow):
    slow, now = behind_in_steps(narrow)
    report(narrow, slow, 100, now + 5)
    narrow.data.cleanup_timer(now + 5.9)
    assert narrow.data.mc_trail == 100
    narrow.data.cleanup_timer(now + 6.0)
    assert narrow.data.mc_trail == 200


@pytest.mark.parametrize("by", ["qcc", "successor"])
def test_master_that_did_not_ask_for_its_reign_has_a_second_of_its_own_too(narrow, by):
    slow, now = behind_in_steps(narrow)
    first = narrow.master
    report(narrow, slow, 100, now)
    now += 1.5  # in which nothing moved, nor could
    if by == "qcc":
        narrow.transport.enter_qcc(now)
        narrow.data.enter(narrow.clients.active[first], now)
    else:
        narrow.data.succeed(narrow.clients.active[first], now)
    narrow.data.cleanup_timer(now + 0.9)
    assert not narrow.clients.active[first].gave_up_on
    narrow.data.cleanup_timer(now + 1.0)
    assert narrow.clients.active[first].gave_up_on
    assert narrow.data.mc_trail == 200


def test_master_that_does_not_answer_is_not_chosen_again_while_there_is_another():
    server = Round(2, rtt=0.010)
    server.clients.active[server.master].rtt = 0.5
    for _ in range(7):
        server.data._send_spm(T + 2)
    now = server.timers.get(ServerTimer.SPM)
    server.transport.handle_timers(now)
    assert server.transport.state is ServerState.QCC
    seq = server.last_qcc()
    for client, rtt in ((server.master, 0.5), (server.others[0], 0.01)):
        server.qcr(client, now + rtt, seq=seq, server_time=ms(now))
    server.transport.handle_timers(server.timers.get(ServerTimer.IN_STATE_QCC))
    assert server.data.master_client_id == server.others[0]


def test_master_that_did_not_answer_is_chosen_where_nobody_else_is(alone):
    for _ in range(7):
        alone.data._send_spm(T + 2)
    now = alone.timers.get(ServerTimer.SPM)
    alone.transport.handle_timers(now)
    alone.qcr(alone.master, now, seq=alone.last_qcc())
    alone.transport.handle_timers(now + 1)
    assert alone.data.master_client_id == alone.master


def test_next_round_forgets_who_did_not_answer(pair):
    record = pair.clients.active[pair.others[0]]
    record.gave_up_on = True
    pair.data.give([(1, 9)])
    assert not record.gave_up_on


def test_what_is_left_of_a_round_is_sent_after_qcc_state(alone):
    alone.data.give([(1, 5)])
    alone.send_all(T + 2)
    alone.transport.enter_qcc(T + 2)
    assert alone.data.sendable() == 0
    assert alone.data.given == ((2, 5),)


def test_nothing_is_repaired_in_qcc_state_and_nothing_later_for_that(alone):
    alone.data.give([(1, 1)])
    alone.send_all(T + 2)
    alone.nack(alone.master, [(1, 1)], T + 3)
    alone.transport.enter_qcc(T + 3)
    assert alone.repairs() == []
    assert alone.data.repairs_waiting == 0
