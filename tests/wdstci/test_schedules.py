"""Hunting deadlocks: random calls from several threads and from callbacks, in schedules that can be replayed.

A failure prints the schedule, and hypothesis the line that reproduces it.
"""

import faulthandler
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from wdstransport import wdstci as w

SESSIONS = 3
GONE = {w.WDSTPC_E_NOT_INITIALIZED, w.ERROR_INVALID_HANDLE}
PAST = {w.WDSTPC_E_ALREADY_COMPLETED, w.WDSTPC_E_ALREADY_IN_PROGRESS}

# What each call may be refused with, at whatever moment it comes.
MAY_BE = {
    "start": GONE | PAST,
    "register": GONE | PAST,
    "cancel": GONE | {w.WDSTPC_E_ALREADY_COMPLETED},
    "cancel ex": GONE | {w.WDSTPC_E_ALREADY_COMPLETED},
    "close": GONE,
    "query": GONE,
    "poll": GONE | {w.ERROR_POSSIBLE_DEADLOCK},
    "wait": GONE | {w.ERROR_POSSIBLE_DEADLOCK},
    "complete": GONE | {w.ERROR_INVALID_PARAMETER},
    "addref": GONE | {w.ERROR_INVALID_PARAMETER},
    "release": GONE | {w.ERROR_INVALID_PARAMETER},
    "initialize": {w.ERROR_POSSIBLE_DEADLOCK},
    "shutdown": {w.WDSTPC_E_NOT_INITIALIZED, w.ERROR_POSSIBLE_DEADLOCK, w.ERROR_BUSY},
}


class Play:
    """One schedule: threads of calls, and calls that callbacks make, on a few sessions."""

    def __init__(self, consume, shut_down, in_callbacks, let_run):
        self.shut_down = shut_down
        self.views = []
        self.started = set()
        self.let_run = let_run
        self.lock = threading.Lock()
        self.script = list(in_callbacks)
        self.wrong = []
        contents = ["small", "image", "no such content"]
        self.consumers = [
            consume(
                contents[number % 3],
                cache=20_000,
                in_start=self.callback,
                in_contents=self.contents,
                in_complete=self.callback,
            )
            for number in range(SESSIONS)
        ]

    def callback(self, consumer, *arguments):
        with self.lock:
            call = self.script.pop() if self.script else None
        if call is not None:
            self.perform(*call)

    def contents(self, consumer, view, size, offset):
        self.views.append(view)
        self.callback(consumer)
        consumer.data[offset : offset + size] = view
        try:
            w.CompleteReceive(consumer.handle, size, offset)
        except w.WdsTransportClientError as error:
            self.wrong.append(("CompleteReceive in its callback", error))

    def perform(self, name, number):
        consumer = self.consumers[number % SESSIONS]
        handle = consumer.handle
        view = self.views[number % len(self.views)] if self.views else memoryview(b"")
        calls = {
            "start": lambda: w.StartSession(handle),
            "register": consumer.register,
            "cancel": lambda: w.CancelSession(handle),
            "cancel ex": lambda: w.CancelSessionEx(handle, 1 + number),
            "close": lambda: w.CloseSession(handle),
            "query": lambda: w.QueryStatus(handle),
            "poll": lambda: w.WaitForCompletion(handle, number % 3),
            "wait": lambda: (w.CancelSession(handle), w.WaitForCompletion(handle)),
            "complete": lambda: w.CompleteReceive(handle, 1, number),
            "addref": lambda: w.AddRefBuffer(view),
            "release": lambda: w.ReleaseBuffer(view),
            "initialize": w.Initialize,
            "shutdown": w.Shutdown,
        }
        try:
            calls[name]()
            if name == "start":
                self.started.add(consumer)
        except w.WdsTransportClientError as error:
            if error.winerror not in MAY_BE[name] | (MAY_BE["cancel"] if name == "wait" else set()):
                self.wrong.append((name, error))

    def run(self, threads, patience):
        running = [
            threading.Thread(target=lambda calls=calls: [self.perform(*call) for call in calls], daemon=True)
            for calls in threads
        ]
        running.append(threading.Thread(target=self.end, args=(list(running),), daemon=True))
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(patience)
            if thread.is_alive():
                faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
                pytest.fail("deadlock; the stacks are on standard error")

    def end(self, others):
        """The last Shutdown, after everything."""
        for thread in others:
            thread.join()
        if self.let_run:
            for consumer in list(self.started):
                consumer.finish()
        self.shut_down()


often = st.sampled_from(
    ["start", "start", "start", "cancel", "close", "query", "poll", "wait", "addref", "release"]
)
seldom = st.sampled_from(sorted(MAY_BE))
calls = st.tuples(st.one_of(often, often, often, seldom), st.integers(0, 5))
schedules = st.lists(st.lists(calls, min_size=1, max_size=8), min_size=2, max_size=4)


@pytest.fixture
def hasty_switching():
    """Threads that take turns a hundred times as often as usual, so that more happens in between."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 100)
    yield
    sys.setswitchinterval(usual)


@settings(
    max_examples=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(threads=schedules, in_callbacks=st.lists(calls, max_size=6), let_run=st.booleans())
def test_no_schedule_of_calls_hangs_or_breaks_the_contract(
    consume, shut_down, patience, hasty_switching, threads, in_callbacks, let_run
):
    note(f"{threads=} {in_callbacks=} {let_run=}")
    shut_down()  # what the fixture, or the example before, began
    w.Initialize()
    play = Play(consume, shut_down, in_callbacks, let_run)
    play.run(threads, patience)
    assert play.wrong == []
    for consumer in play.consumers:
        if consumer.calls:
            assert consumer.names.count("SessionComplete") == 1
            assert consumer.names[-1] == "SessionComplete"
            assert len(set(consumer.blocks)) == len(consumer.blocks)
            assert len(consumer.threads) == 1
            for size, offset in consumer.blocks:
                assert consumer.data[offset : offset + size] == consumer.content[offset : offset + size]
            if consumer.outcome == w.ERROR_SUCCESS:
                consumer.assert_whole()
    for view in play.views:
        with pytest.raises(ValueError, match="released"):
            view[0]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("wdstci")]
