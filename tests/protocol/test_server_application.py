"""The server's rounds: ask who misses which blocks, give the union, ask again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol_scripts import STEADY, T, address

from wdstransport.protocol.clients import ClientRecord
from wdstransport.protocol.events import SendingBegan
from wdstransport.protocol.parameters import ServerParameters
from wdstransport.protocol.server_application import ApplicationState, ServerApplication
from wdstransport.wire.application import CntCir, Data, ProgressReport, SrvCir, encode


class Below:
    """A transport that only remembers what it was told."""

    def __init__(self):
        self.clients = {}
        self.master = True
        self.rtt = 0.0
        self.polls = []
        self.given = []
        self.withdrawn = 0

    def ready(self):
        return self.master

    def active_clients(self):
        return len(self.clients)

    def is_there(self, client_id):
        return client_id in self.clients

    def highest_rtt(self):
        return self.rtt

    def poll(self, payload):
        self.polls.append(payload)
        return 0.2

    def give(self, ranges):
        self.given.append(ranges)

    def withdraw(self):
        self.withdrawn += 1


class Script:
    def __init__(self, *, total_blocks=1000, clients=(1,), master=True, start=True, **parameters):
        self.parameters = ServerParameters(**parameters)
        self.application = ServerApplication(total_blocks=total_blocks, parameters=self.parameters)
        self.below = Below()
        self.below.master = master
        self.application.connect(self.below)
        for number in clients:
            self.below.clients[number] = ClientRecord(number, address(number), 0, 0.0, 0.0)
        if start:
            self.application.clients_changed(T)

    @property
    def state(self):
        return self.application.state

    def come(self, number, now):
        self.below.clients[number] = ClientRecord(number, address(number), 0, now, now)
        self.application.clients_changed(now)

    def go(self, number, now):
        del self.below.clients[number]
        self.application.clients_changed(now)

    def answer(self, number, ranges, now, *, time=0, progress=0):
        packet = CntCir(progress, time, tuple(ranges))
        return self.application.poll_ack(self.below.clients[number], encode(packet), now)

    def due(self):
        """Let the next deadline pass; when that was."""
        now = self.application.next_deadline()
        self.application.handle_timers(now)
        assert self.application.next_deadline() > now
        return now

    def round(self, answers, now=T):
        """One query with its answers, until it is decided."""
        for number, ranges in answers.items():
            assert self.answer(number, ranges, now)
        self.due()
        return self.below.given[-1] if self.below.given else None


# ---------------------------------------------------------------------- when sending starts


def test_nothing_is_asked_before_the_first_client():
    script = Script(clients=())
    assert script.state is ApplicationState.IDLE
    assert script.application.next_deadline() == math.inf
    script.application.handle_timers(T + 1000)
    assert script.below.polls == []


def test_first_client_with_a_master_is_asked_at_once():
    script = Script()
    assert script.below.polls == [encode(SrvCir())]
    assert script.state is ApplicationState.QUERY


def test_query_waits_for_a_master():
    script = Script(master=False)
    assert script.below.polls == []
    assert script.application.next_deadline() == math.inf
    script.below.master = True
    script.application.clients_changed(T + 1)
    assert len(script.below.polls) == 1


def test_scheduled_cast_waits_for_enough_clients():
    script = Script(min_clients=3)
    script.come(2, T + 5)
    assert script.below.polls == []
    script.come(3, T + 60)
    assert len(script.below.polls) == 1


def test_scheduled_cast_starts_at_the_latest_after_its_wait():
    script = Script(min_clients=3, max_wait=30.0)
    script.come(2, T + 20)
    assert script.application.next_deadline() == T + 30
    script.application.handle_timers(T + 29.9)
    assert script.below.polls == []
    script.application.handle_timers(T + 30)
    assert len(script.below.polls) == 1


def test_scheduled_cast_whose_only_client_leaves_waits_for_nothing():
    script = Script(min_clients=3, max_wait=30.0)
    script.go(1, T + 1)
    assert script.application.next_deadline() == math.inf


def test_scheduled_cast_with_enough_clients_and_no_master_waits_for_nothing_else():
    script = Script(min_clients=2, max_wait=30.0, master=False)
    script.come(2, T + 1)
    assert script.application.next_deadline() == math.inf


def test_wait_of_a_scheduled_cast_counts_from_the_first_client():
    script = Script(clients=(), min_clients=3, max_wait=30.0)
    script.come(1, T + 100)
    assert script.application.next_deadline() == T + 130


def test_scheduled_cast_whose_wait_is_over_without_a_master_starts_with_one():
    script = Script(min_clients=3, max_wait=30.0, master=False)
    script.application.handle_timers(T + 30)
    assert script.below.polls == []
    script.below.master = True
    script.application.clients_changed(T + 31)
    assert len(script.below.polls) == 1


def test_scheduled_cast_that_lost_a_client_before_it_had_a_master_waits_for_another():
    script = Script(min_clients=2, clients=(1, 2), master=False)
    script.go(2, T + 1)
    script.below.master = True
    script.application.clients_changed(T + 2)
    assert script.below.polls == []
    script.come(3, T + 3)
    assert len(script.below.polls) == 1


def test_who_comes_after_the_start_is_served_without_waiting_for_others():
    script = Script(min_clients=2, clients=(1, 2))
    script.round({1: [(1, 9)], 2: []})
    script.go(1, T + 5)
    script.go(2, T + 5)
    script.come(3, T + 6)
    assert len(script.below.polls) == 2


def test_clients_that_are_gone_before_the_start_leave_nothing_to_do():
    script = Script(min_clients=3, max_wait=30.0)
    script.go(1, T + 5)
    script.application.handle_timers(T + 30)
    assert script.below.polls == []
    assert script.application.next_deadline() == math.inf


def test_wait_of_a_scheduled_cast_counts_anew_when_everybody_had_gone():
    script = Script(min_clients=3, max_wait=30.0)
    script.go(1, T + 5)
    script.come(2, T + 100)
    assert script.below.polls == []
    assert script.application.next_deadline() == T + 130


# ---------------------------------------------------------------------- QueryState


def test_query_waits_back_off_round_trip_and_margin():
    script = Script(start=False)
    script.below.rtt = 0.150
    script.application.clients_changed(T)
    margin = script.parameters.query_margin
    assert margin > 0
    assert script.application.next_deadline() == pytest.approx(T + 0.2 + 0.150 + margin)


def test_answers_are_merged_and_given_in_ascending_order():
    script = Script(clients=(1, 2, 3))
    given = script.round({1: [(50, 60), (90, 99)], 2: [(55, 70)], 3: [(1, 3), (71, 71), (100, 100)]})
    assert given == [(1, 3), (50, 71), (90, 100)]
    assert script.state is ApplicationState.DATA
    assert script.application.plan == ((1, 3), (50, 71), (90, 100))
    assert script.application.next_deadline() == math.inf


def test_union_does_not_depend_on_who_answers_first():
    first, second = Script(clients=(1, 2)), Script(clients=(1, 2))
    assert first.round({1: [(5, 9)], 2: [(1, 5)]}) == second.round({2: [(1, 5)], 1: [(5, 9)]}) == [(1, 9)]


def test_union_may_have_more_ranges_than_one_answer():
    script = Script(clients=(1, 2, 3))
    ranges = [(3 * number + 1, 3 * number + 1) for number in range(192)]
    assert script.round({1: ranges[::3], 2: ranges[1::3], 3: ranges[2::3]}) == ranges


def test_clients_that_do_not_answer_in_time_miss_the_round_only():
    script = Script(clients=(1, 2))
    assert script.round({1: [(5, 9)]}) == [(5, 9)]


def test_last_answer_of_a_client_counts():
    script = Script()
    script.answer(1, [(1, 100)], T)
    assert script.round({1: [(1, 9)]}) == [(1, 9)]


def test_query_without_an_answer_is_asked_again():
    script = Script()
    now = script.due()
    assert len(script.below.polls) == 2
    assert script.state is ApplicationState.QUERY
    assert script.application.next_deadline() == pytest.approx(now + 0.2 + script.parameters.query_margin)


def test_query_without_an_answer_and_without_a_master_waits_for_one():
    script = Script()
    script.below.master = False
    script.due()
    assert len(script.below.polls) == 1
    for _ in range(5):
        script.due()
    assert len(script.below.polls) == 1
    script.below.master = True
    script.application.clients_changed(script.application.next_deadline() - 0.01)
    script.due()
    assert len(script.below.polls) == 2


def test_rest_that_ends_without_a_master_is_followed_by_the_shortest_wait():
    script = Script()
    for _ in range(5):
        script.answer(1, [], T)
        script.due()
        script.due()
    script.answer(1, [], T)
    script.due()
    script.below.master = False
    over = script.due()
    assert script.state is ApplicationState.RESTING
    assert script.application.next_deadline() == over + script.parameters.empty_query_wait


def test_answers_of_the_last_round_do_not_count_in_the_next():
    script = Script(clients=(1, 2))
    script.round({1: [(1, 9)], 2: []})
    script.application.data_empty(T + 5)
    assert script.round({2: [(20, 21)]}) == [(20, 21)]


def test_answer_of_a_client_that_left_does_not_count():
    script = Script(clients=(1, 2))
    script.answer(1, [(1, 9)], T)
    script.go(1, T + 0.1)
    assert script.round({2: [(20, 21)]}) == [(20, 21)]


@pytest.mark.parametrize(("young", "counts"), [(69, False), (70, True), (99, True)])
def test_client_that_joined_30_seconds_after_the_oldest_waits_for_the_next_round(young, counts):
    script = Script(clients=(1, 2))
    script.answer(1, [(50, 60)], T, time=100)
    script.answer(2, [(1, 60)], T, time=young)
    script.due()
    assert script.below.given == [[(1, 60)] if counts else [(50, 60)]]


def test_oldest_client_always_counts():
    script = Script(clients=(1, 2))
    script.answer(1, [(1, 60)], T, time=0)
    script.answer(2, [(50, 60)], T, time=10)
    script.due()
    assert script.below.given == [[(1, 60)]]


def test_who_has_everything_keeps_no_younger_client_waiting():
    script = Script(clients=(1, 2))
    script.answer(1, [], T, time=100)
    script.answer(2, [(1, 60)], T, time=10)
    script.due()
    assert script.below.given == [[(1, 60)]]


@pytest.mark.parametrize(("again", "counts"), [([(1, 40)], True), ([(2, 40)], False)])
def test_whom_the_last_round_brought_nothing_keeps_no_younger_client_waiting(again, counts):
    script = Script(clients=(1, 2))
    script.answer(1, [(1, 40)], T, time=100)
    script.due()
    script.application.data_empty(T + 5)
    script.answer(1, again, T + 5, time=105)
    script.answer(2, [(1, 60)], T + 5, time=10)
    script.due()
    assert script.below.given[1] == ([(1, 60)] if counts else again)


def test_every_plan_has_a_number_of_its_own_though_it_is_the_same():
    script = Script()
    numbers = []
    for turn in range(20):
        script.round({1: [(turn + 1, 900)]})
        numbers.append(script.application.plan_number)
        script.application.data_empty(T + turn)
    assert numbers == list(range(1, 21))


def test_round_begins_are_told_once():
    script = Script(clients=(1, 2))
    script.round({1: [(1, 9)]})
    assert script.application.events == [SendingBegan(2)]
    script.application.data_empty(T + 5)
    script.round({1: [(1, 3)]})
    assert script.application.events == [SendingBegan(2)]
    assert (script.application.rounds, script.application.plan_number) == (2, 2)


# ---------------------------------------------------------------------- nothing is missing


def test_nobody_misses_anything_and_the_next_query_waits_longer_each_time():
    script = Script()
    waits = []
    for _ in range(8):
        script.answer(1, [], T)
        decided = script.due()
        assert script.state is ApplicationState.RESTING
        waits.append(script.application.next_deadline() - decided)
        script.due()
        assert script.state is ApplicationState.QUERY
    first, longest = script.parameters.empty_query_wait, script.parameters.max_empty_query_wait
    assert waits == pytest.approx([min(first * 2**turn, longest) for turn in range(8)])
    assert script.below.given == []
    assert script.application.rounds == 0


def test_wait_is_short_again_after_a_round_with_data():
    script = Script()
    for ranges in ([], [], [(1, 9)]):
        script.answer(1, ranges, T)
        script.due()
        if script.state is ApplicationState.RESTING:
            script.due()
    script.application.data_empty(T + 50)
    script.answer(1, [], T + 50)
    decided = script.due()
    assert script.application.next_deadline() == pytest.approx(decided + script.parameters.empty_query_wait)


def test_blocks_of_which_a_round_brought_nobody_any_are_sent_again_after_a_wait_that_grows():
    script = Script()
    now, waits = T, []
    for turn in range(8):
        script.answer(1, [(1, 9)], now)
        decided = script.due()
        if turn:
            assert script.state is ApplicationState.RESTING
            assert len(script.below.given) == turn
            waits.append(script.application.next_deadline() - decided)
            script.answer(1, [(1, 9)], script.due())
            script.due()
        assert script.state is ApplicationState.DATA
        assert script.application.rounds == len(script.below.given) == turn + 1
        now = decided + 50
        script.application.data_empty(now)
    first, longest = script.parameters.empty_query_wait, script.parameters.max_empty_query_wait
    assert waits == pytest.approx([min(first * 2**turn, longest) for turn in range(7)])


@pytest.mark.parametrize("again", [[(1, 8)], [(2, 9)], [(1, 9), (11, 12)]])
def test_blocks_are_sent_again_at_once_when_the_round_changed_what_somebody_misses(again):
    script = Script(clients=(1, 2))
    script.round({1: [(1, 9)], 2: [(1, 9)]})
    script.application.data_empty(T + 50)
    script.answer(1, [(1, 9)], T + 50)
    script.answer(2, again, T + 50)
    script.due()
    assert script.state is ApplicationState.DATA
    assert len(script.below.given) == 2


def test_client_that_the_last_round_left_out_waits_for_nothing_though_it_misses_what_it_missed_before():
    """Its answer was lost, so the round could bring it nothing: that is no disk that stands still."""
    script = Script(clients=(1, 2))
    script.round({1: [(1, 10)], 2: [(11, 20)]})
    script.application.data_empty(T + 5)
    script.round({2: [(15, 20)]})
    script.application.data_empty(T + 10)
    assert script.round({1: [(1, 10)], 2: [(15, 20)]}) == [(1, 10), (15, 20)]
    assert script.state is ApplicationState.DATA
    assert script.application.rounds == 3


def test_wait_for_a_disk_that_stands_still_is_short_again_when_it_has_moved():
    script = Script()
    waits = []
    for start in (1, 1, 1, 2, 2):
        script.answer(1, [(start, 9)], T)
        decided = script.due()
        if script.state is ApplicationState.RESTING:
            waits.append(script.application.next_deadline() - decided)
            script.answer(1, [(start, 9)], script.due())
            script.due()
        script.application.data_empty(decided + 50)
    assert waits == pytest.approx([0.25, 0.5, 0.25])


def test_disk_that_moved_while_it_was_waited_for_is_waited_for_again_when_it_stands_still():
    script = Script()
    states = []
    for missing in ([(1, 9)], [(1, 9)], [(5, 9)], [(5, 9)]):
        script.answer(1, missing, T)
        script.due()
        states.append(script.state)
        if script.state is ApplicationState.RESTING:
            script.due()
        else:
            script.application.data_empty(T + 50)
    data, rest = ApplicationState.DATA, ApplicationState.RESTING
    assert states == [data, rest, data, rest]


def test_client_that_just_came_and_stores_nothing_is_served_however_little_may_lie_between_clients():
    script = Script(late_client_share=0.0)
    for _ in range(3):
        script.answer(1, [(1, 9)], T)
        script.due()
        if script.state is ApplicationState.RESTING:
            script.due()
        else:
            script.application.data_empty(T + 50)
    assert script.below.given == [[(1, 9)]] * 2


def resting():
    """A session whose only client has answered four queries that it misses nothing."""
    script = Script()
    for _ in range(3):
        script.answer(1, [], T)
        script.due()
        script.due()
    script.answer(1, [], T)
    return script


def test_newcomer_ends_the_rest_at_once():
    script = resting()
    now = script.due()
    script.come(2, now + 0.01)
    assert script.application.next_deadline() == now + 0.01
    polls = len(script.below.polls)
    script.due()
    assert len(script.below.polls) == polls + 1


def test_wait_is_short_again_after_a_newcomer_that_misses_nothing_either():
    script = resting()
    script.come(2, script.due() + 0.01)
    now = script.due()
    for number in (1, 2):
        script.answer(number, [], now)
    decided = script.due()
    assert script.application.next_deadline() == pytest.approx(decided + script.parameters.empty_query_wait)


def test_wait_grows_with_each_query_that_nobody_answered_though_there_was_no_master_then():
    script = Script()
    waits = []
    for _ in range(3):
        script.below.master = False
        decided = script.due()
        waits.append(script.application.next_deadline() - decided)
        script.below.master = True
        script.due()
        assert script.state is ApplicationState.QUERY
    assert waits == pytest.approx([0.25, 0.5, 1.0])


# ---------------------------------------------------------------------- DataState


def test_data_empty_asks_again():
    script = Script()
    script.round({1: [(1, 9)]})
    script.application.data_empty(T + 5)
    assert script.state is ApplicationState.QUERY
    assert len(script.below.polls) == 2
    assert script.application.next_deadline() == pytest.approx(T + 5.2 + script.parameters.query_margin)


def test_data_empty_outside_of_the_data_state_is_ignored():
    script = Script()
    deadline = script.application.next_deadline()
    script.application.data_empty(T + 0.1)
    assert (script.state, script.application.next_deadline()) == (ApplicationState.QUERY, deadline)
    script.answer(1, [], T)
    script.due()
    script.application.data_empty(T + 5)
    assert script.state is ApplicationState.RESTING
    assert len(script.below.polls) == 1


def test_nothing_is_asked_while_data_goes_out():
    script = Script()
    script.round({1: [(1, 9)]})
    script.application.handle_timers(T + 1000)
    script.come(2, T + 1000)
    assert len(script.below.polls) == 1
    assert script.state is ApplicationState.DATA


def test_answer_to_a_query_stands_for_no_qcr():
    script = Script()
    script.round({1: [(1, 9)]})
    before = script.below.clients[1].last_update
    assert script.answer(1, [(1, 500)], T + 5)
    assert script.below.clients[1].last_update == before


def test_answer_while_data_goes_out_changes_only_what_is_known_of_the_client():
    script = Script()
    script.round({1: [(1, 9)]})
    assert script.answer(1, [(1, 500)], T + 5, time=7, progress=33)
    record = script.below.clients[1]
    assert (record.progress, record.time_in_session) == (33, 7)
    assert script.application.plan == ((1, 9),)
    assert script.answer(1, [], T + 5)
    assert (script.state, len(script.below.polls)) == (ApplicationState.DATA, 1)
    script.application.data_empty(T + 6)
    script.due()
    assert len(script.below.given) == 1


# ---------------------------------------------------------------------- nobody is left


@pytest.mark.parametrize("state", ["query", "data", "rest"])
def test_session_idles_when_the_last_client_goes(state):
    script = Script()
    if state != "query":
        script.round({1: [(1, 9)] if state == "data" else []})
    polls = len(script.below.polls)
    script.go(1, T + 3)
    assert script.state is ApplicationState.IDLE
    assert script.below.withdrawn == 1
    assert script.application.next_deadline() == math.inf
    script.application.handle_timers(T + 1000)
    assert len(script.below.polls) == polls


def test_next_client_after_the_last_is_served():
    script = Script()
    script.round({1: [(1, 9)]})
    script.go(1, T + 3)
    script.come(2, T + 100)
    assert len(script.below.polls) == 2
    assert script.round({2: [(1, 1000)]}, T + 100) == [(1, 1000)]


def test_session_counts_on_when_everybody_had_gone():
    script = Script()
    script.round({1: [(1, 9)]})
    script.go(1, T + 3)
    assert script.application.events == [SendingBegan(1)]  # it did, though nobody had asked yet
    script.come(2, T + 100)
    script.round({2: [(1, 9)]}, T + 100)
    assert (script.application.rounds, script.application.plan_number) == (2, 2)
    assert script.application.events == [SendingBegan(1)]


def test_newcomer_does_not_start_a_query_anew_that_is_under_way():
    script = Script(clients=(1,))
    due = script.application.next_deadline()
    assert script.answer(1, [(1, 9)], T + 0.1)
    script.come(2, T + 0.1)
    assert (len(script.below.polls), script.application.next_deadline()) == (1, due)
    script.come(3, due - 0.001)
    assert (len(script.below.polls), script.application.next_deadline()) == (1, due)
    script.due()
    assert script.below.given == [[(1, 9)]]


def test_client_that_goes_while_others_stay_does_not_stop_the_round():
    script = Script(clients=(1, 2))
    script.round({1: [(1, 9)], 2: [(1, 9)]})
    script.go(1, T + 3)
    assert script.state is ApplicationState.DATA
    assert script.below.withdrawn == 0


# ---------------------------------------------------------------------- payloads


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00",
        encode(SrvCir()),
        encode(Data(1, b"x")),
        encode(ProgressReport(1, 1)),
        encode(CntCir(1, 1, ((1, 2),)))[:-1],
        encode(CntCir(1, 1, ())) + b"\0",
        encode(CntCir(1, 1, ((0, 5),))),
        encode(CntCir(1, 1, ((5, 1001),))),
        encode(CntCir(1, 1, ((1, 5), (2000, 2001)))),
    ],
)
def test_payload_that_is_no_cntcir_for_this_content_is_refused_whole(payload):
    script = Script()
    record = script.below.clients[1]
    assert not script.application.poll_ack(record, payload, T + 1)
    assert (record.progress, record.time_in_session, record.last_update) == (0, 0, 0.0)
    script.due()
    assert script.below.given == []


def test_whole_content_may_be_missing():
    script = Script(total_blocks=1000)
    assert script.round({1: [(1, 1000)]}) == [(1, 1000)]


@pytest.mark.parametrize("progress", [0, 100])
def test_status_takes_nothing_and_everything(progress):
    script = Script()
    record = script.below.clients[1]
    record.progress = 50
    assert script.application.status(record, encode(ProgressReport(1, progress)), T + 1)
    assert record.progress == progress


@pytest.mark.parametrize("progress", [0, 100])
def test_answer_tells_nothing_and_everything(progress):
    script = Script()
    assert script.answer(1, [(1, 2)], T, progress=progress)
    assert script.below.clients[1].progress == progress


def test_status_takes_progress_and_time():
    script = Script()
    record = script.below.clients[1]
    assert script.application.status(record, encode(ProgressReport(12, 34)), T + 1)
    assert (record.time_in_session, record.progress) == (12, 34)


@pytest.mark.parametrize(
    "payload",
    [b"", b"junk", encode(SrvCir()), encode(CntCir(1, 2, ())), encode(ProgressReport(1, 1)) + b"\0"],
)
def test_status_that_is_no_progress_is_refused(payload):
    script = Script()
    record = script.below.clients[1]
    assert not script.application.status(record, payload, T + 1)
    assert (record.time_in_session, record.progress) == (0, 0)


# ---------------------------------------------------------------------- properties

block_ranges = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 10)).map(lambda pair: (pair[0], min(60, sum(pair)))),
    max_size=5,
)
answers = st.dictionaries(st.integers(1, 6), st.tuples(st.integers(0, 90), block_ranges))


@given(answers)
@STEADY
def test_plan_is_the_union_of_what_the_counted_clients_miss(found):
    script = Script(total_blocks=60, clients=range(1, 7))
    for number, (time, ranges) in found.items():
        assert script.answer(number, ranges, T, time=time)
    script.due()
    oldest = max((time for time, ranges in found.values() if ranges), default=0)
    expected = {
        block
        for time, ranges in found.values()
        if time >= oldest - 30
        for start, end in ranges
        for block in range(start, end + 1)
    }
    plan = script.below.given[0] if script.below.given else []
    blocks = [block for start, end in plan for block in range(start, end + 1)]
    assert blocks == sorted(expected)
    assert all(start <= end for start, end in plan)


steps = st.one_of(
    st.tuples(st.sampled_from(["come", "go", "answer", "nothing", "status"]), st.integers(1, 3)),
    st.tuples(st.sampled_from(["empty", "master", "orphan", "changed"]), st.just(0)),
)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.05, 0.4, 6.0]), steps), max_size=40))
@STEADY
def test_after_its_timers_the_next_deadline_is_always_later(script_steps):
    script, now = Script(clients=(), min_clients=2, max_wait=3.0), T
    application, clients = script.application, script.below.clients
    for pause, (name, number) in script_steps:
        now += pause
        match name:
            case "come" if number not in clients:
                script.come(number, now)
            case "go" if number in clients:
                script.go(number, now)
            case "answer" if number in clients:
                script.answer(number, [(number, number + 5)], now)
            case "nothing" if number in clients:
                script.answer(number, [], now)
            case "empty":
                application.data_empty(now)
            case "master" | "orphan":
                script.below.master = name == "master"
                application.clients_changed(now)
            case "changed":
                application.clients_changed(now)
        application.handle_timers(now)
        assert application.next_deadline() > now
        # Nobody is asked while nobody is there, and whoever is there is never forgotten.
        if not clients:
            assert script.state is ApplicationState.IDLE
        elif script.state is ApplicationState.IDLE:
            assert not script.below.master or application.next_deadline() < math.inf
        elif script.state is not ApplicationState.DATA:
            assert application.next_deadline() < math.inf
