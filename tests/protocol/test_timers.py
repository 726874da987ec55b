"""One optional instant per name."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol_scripts import STEADY

from wdstransport.protocol.timers import ClientTimer, ServerTimer, TimerTable


@pytest.fixture
def timers():
    return TimerTable()


def test_no_timer_is_due_at_first(timers):
    assert timers.next_deadline() == math.inf
    assert timers.pop_due(math.inf) is None
    assert timers.get(ClientTimer.JOIN) is None
    assert ClientTimer.JOIN not in timers


def test_timer_is_due_at_its_instant_and_not_before(timers):
    timers.set(ClientTimer.JOIN, 2.0)
    assert timers.pop_due(math.nextafter(2.0, 0)) is None
    assert ClientTimer.JOIN in timers
    assert timers.pop_due(2.0) is ClientTimer.JOIN


def test_popped_timer_is_disarmed(timers):
    timers.set(ClientTimer.JOIN, 2.0)
    timers.pop_due(5.0)
    assert ClientTimer.JOIN not in timers
    assert timers.pop_due(5.0) is None


def test_only_a_timer_that_is_armed_is_postponed(timers):
    timers.postpone(ClientTimer.JOIN, 2.0)
    assert ClientTimer.JOIN not in timers
    timers.set(ClientTimer.JOIN, 2.0)
    for at in (3.0, 1.0):
        timers.postpone(ClientTimer.JOIN, at)
        assert timers.get(ClientTimer.JOIN) == at


def test_rearming_moves_the_one_deadline(timers):
    timers.set(ClientTimer.NACK, 1.0)
    timers.set(ClientTimer.NACK, 9.0)
    assert timers.get(ClientTimer.NACK) == 9.0
    assert timers.pop_due(8.0) is None
    assert timers.pop_due(9.0) is ClientTimer.NACK
    assert timers.pop_due(9.0) is None


def test_timers_go_off_in_the_order_of_their_deadlines(timers):
    timers.set(ServerTimer.SPM, 3.0)
    timers.set(ServerTimer.KICK, 1.0)
    timers.set(ServerTimer.DEMOTE, 2.0)
    assert [timers.pop_due(10.0) for _ in range(4)] == [
        ServerTimer.KICK,
        ServerTimer.DEMOTE,
        ServerTimer.SPM,
        None,
    ]


def test_stopped_timer_never_goes_off_and_stopping_twice_is_nothing(timers):
    timers.set(ServerTimer.SPM, 1.0)
    timers.set(ServerTimer.KICK, 2.0)
    timers.stop(ServerTimer.SPM)
    timers.stop(ServerTimer.SPM)
    assert timers.next_deadline() == 2.0
    timers.stop_all()
    assert timers.next_deadline() == math.inf
    assert timers.pop_due(100.0) is None


def test_every_timer_of_the_documents_has_its_name():
    server = {timer.value for timer in ServerTimer}
    client = {timer.value for timer in ClientTimer}
    assert {  # MS-WDSMT 3.1.2, 3.1.6.3 and 3.1.6.8; JoinAck's lives in each client's record
        "Inactivity Timer",
        "Client Cleanup Timer",
        "InState QCC Timer",
        "OutState QCC Timer",
        "SPM Timer",
        "Cleanup Data List Timer",
        "Kick Timer",
        "Demote Timer",
    } <= server
    assert {  # 3.2.2
        "Inactivity Timer",
        "Join Timer",
        "Poll Timer",
        "QCC Timer",
        "Force QCC Timer",
        "NACK Timer",
    } <= client


names = st.sampled_from(ClientTimer)
instants = st.integers(0, 20).map(float)
operations = st.one_of(
    st.tuples(st.just("set"), names, instants),
    st.tuples(st.just("stop"), names),
    st.tuples(st.just("pop"), instants),
)


@given(st.lists(operations, max_size=40))
@STEADY
def test_table_behaves_like_a_plain_dictionary(steps):
    timers, model = TimerTable(), {}
    for step in steps:
        match step:
            case "set", name, at:
                timers.set(name, at)
                model[name] = at
            case "stop", name:
                timers.stop(name)
                model.pop(name, None)
            case "pop", now:
                popped = timers.pop_due(now)
                due = {name: at for name, at in model.items() if at <= now}
                assert (popped is None) == (not due)
                if popped is not None:
                    assert due[popped] == min(due.values())
                    del model[popped]
        assert timers.next_deadline() == min(model.values(), default=math.inf)
        assert {name: timers.get(name) for name in ClientTimer if name in timers} == model
