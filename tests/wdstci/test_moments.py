"""Close and Cancel at every moment, from many threads, many times, and many sessions at once."""

import functools
import gc
import os
import resource
import threading
from pathlib import Path

import pytest

import wdstransport
from wdstransport import wdstci as w

ACTIONS = {
    "close": [w.CloseSession],
    "cancel": [w.CancelSession],
    "cancel then close": [w.CancelSession, w.CloseSession],
    "close then cancel": [w.CloseSession, w.CancelSession],
}
MOMENTS = (
    "right after start",
    "in SessionStart",
    "in the middle",
    "in the last ReceiveContents",
    "in SessionComplete",
)


def perform(action, handle):
    """The calls of an action; each ends with the code it was refused with, or 0."""
    codes = []
    for call in ACTIONS[action]:
        try:
            call(handle)
            codes.append(0)
        except w.WdsTransportClientError as error:
            codes.append(error.winerror)
    return codes


def consumer_acting(consume, action, moment):
    codes = []

    def act(consumer, *arguments):
        codes.extend(perform(action, consumer.handle))

    def in_contents(consumer, view, size, offset):
        last = sum(size for size, _ in consumer.blocks) == len(consumer.content)
        consumer.take(view, size, offset)
        middle = len(consumer.blocks) == 20
        if (moment == "in the middle" and middle) or (moment == "in the last ReceiveContents" and last):
            act(consumer)

    consumer = consume(
        "image",
        in_start=act if moment == "in SessionStart" else None,
        in_contents=in_contents,
        in_complete=act if moment == "in SessionComplete" else None,
    )
    return consumer, codes


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("action", ACTIONS)
def test_close_and_cancel_at_every_moment(consume, action, moment):
    consumer, codes = consumer_acting(consume, action, moment)
    consumer.start()
    if moment == "right after start":
        codes.extend(perform(action, consumer.handle))
    consumer.finish()
    complete = moment == "in SessionComplete"
    expected = {
        "close": [0],
        "cancel": [w.WDSTPC_E_ALREADY_COMPLETED if complete else 0],
        "cancel then close": [w.WDSTPC_E_ALREADY_COMPLETED if complete else 0, 0],
        "close then cancel": [0, w.ERROR_INVALID_HANDLE],
    }
    assert codes == expected[action]
    if action.startswith("cancel") and not complete:
        assert consumer.outcome == w.ERROR_CANCELLED
    else:
        consumer.assert_whole()
    if moment == "in the last ReceiveContents":
        assert consumer.data == consumer.content


@pytest.mark.parametrize("moment", ["in the middle", "in SessionStart"])
def test_a_cancelled_session_delivers_nothing_more_and_leaves(consume, server, moment):
    consumer, _ = consumer_acting(consume, "cancel", moment)
    consumer.start().finish()
    assert len(consumer.blocks) == (20 if moment == "in the middle" else 0)
    if moment == "in the middle":
        assert server.wait_for(wdstransport.ClientLeft).reason == "cancelled"


def test_a_session_cancelled_with_everything_received_is_not_told_to_be_complete(consume, server):
    """All blocks have come, the first is being delivered, and the rest is thrown away."""

    for number in range(1, 11):
        everything = threading.Event()

        def in_contents(consumer, view, size, offset, everything=everything):
            assert everything.wait(30)
            w.CancelSession(consumer.handle)

        consumer = consume(in_contents=in_contents)
        transfer = consumer.handle._session.transfer
        tell = transfer.all_received
        transfer.all_received = lambda tell=tell, everything=everything: (tell(), everything.set())
        assert consumer.start().finish().outcome == w.ERROR_CANCELLED
        assert server.wait_for(wdstransport.ClientLeft, number).reason == "cancelled"


def test_close_and_cancel_before_start(consume):
    assert perform("close then cancel", consume().handle) == [0, w.ERROR_INVALID_HANDLE]
    consumer = consume()
    assert perform("cancel then close", consumer.handle) == [0, 0]
    assert consumer.finish().calls == [("SessionComplete", w.ERROR_CANCELLED)]


def test_the_first_of_two_cancels_stands(consume, gate):
    consumer = consume(in_start=lambda consumer, size: gate.pass_through()).start()
    gate.wait_entered()
    w.CancelSessionEx(consumer.handle, 5)
    w.CancelSession(consumer.handle)
    gate.open()
    assert consumer.finish().outcome == 5


def test_cancel_while_the_server_does_not_answer(consume, server):
    server.close()
    consumer = consume().start()
    w.CancelSession(consumer.handle)
    assert consumer.finish().calls == [("SessionComplete", w.ERROR_CANCELLED)]


def at_once(*functions):
    """Run functions in threads of their own that begin together; what each returned or was refused with."""
    barrier = threading.Barrier(len(functions))
    results = [None] * len(functions)

    def run(place, function):
        barrier.wait()
        try:
            results[place] = function()
        except w.WdsTransportClientError as error:
            results[place] = error.winerror

    threads = [threading.Thread(target=run, args=each) for each in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("action", [w.CloseSession, w.CancelSession, w.StartSession])
def test_the_same_call_from_four_threads_at_once(consume, gate, action):
    consumer = consume(in_start=lambda consumer, size: gate.pass_through())
    if action is not w.StartSession:
        consumer.start()
        gate.wait_entered()
    results = at_once(*[lambda: action(consumer.handle)] * 4)
    refusal = {
        w.CloseSession: w.ERROR_INVALID_HANDLE,
        w.CancelSession: None,
        w.StartSession: w.WDSTPC_E_ALREADY_IN_PROGRESS,
    }[action]
    assert sorted(map(str, results)) == sorted(map(str, [None, refusal, refusal, refusal]))
    gate.open()
    consumer.finish()
    assert consumer.outcome == (w.ERROR_CANCELLED if action is w.CancelSession else 0)


def test_close_and_cancel_from_four_threads_at_once(consume):
    for _ in range(20):
        consumer = consume().start()
        close = functools.partial(w.CloseSession, consumer.handle)
        cancel = functools.partial(w.CancelSession, consumer.handle)
        closes = at_once(close, cancel, close, cancel)
        assert sorted(map(str, closes[::2])) == sorted(["None", str(w.ERROR_INVALID_HANDLE)])
        # One that was cancelled can be complete before the other call comes.
        assert set(closes[1::2]) <= {None, w.ERROR_INVALID_HANDLE, w.WDSTPC_E_ALREADY_COMPLETED}
        consumer.finish()
        assert consumer.outcome == (w.ERROR_CANCELLED if None in closes[1::2] else w.ERROR_SUCCESS)


def test_initialize_and_shutdown_from_four_threads_at_once(refused):
    for _ in range(20):
        assert at_once(*[w.Initialize] * 4) == [None] * 4
        assert at_once(*[w.Shutdown] * 4) == [None] * 4
        with refused(w.WDSTPC_E_NOT_INITIALIZED):
            w.Shutdown()


def resources():
    gc.collect()
    threads = [thread.name for thread in threading.enumerate() if not thread.name.startswith("Trio thread")]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(threads), len(os.listdir("/proc/self/fd")), pages * resource.getpagesize()


def require_nothing(consumer):
    w.RegisterCallback(
        consumer.handle,
        w.WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE,
        lambda handle, data, info, key: w.NegotiateRequiredDataRange(handle, key, 0, 0),
    )
    return consumer


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="counts what Linux tells in /proc")
def test_a_thousand_sessions_in_a_row_leave_nothing_behind(consume):
    def one(number):
        if number % 100 == 0:
            consumer = consume("image").run()
            consumer.assert_whole()
        elif number % 100 == 1:
            cancel = functools.partial(perform, "cancel")
            consumer = consume("image", in_start=lambda consumer, size: cancel(consumer.handle)).run()
            assert consumer.outcome == w.ERROR_CANCELLED
        elif number % 10 == 2:
            consumer = consume("no such content").run()
            assert consumer.outcome == w.ERROR_FILE_NOT_FOUND
        elif number % 10 == 3:
            consumer = require_nothing(consume("image")).run()
            assert consumer.outcome == w.ERROR_SUCCESS
        elif number % 10 == 4:
            consumer = consume("empty").run()
            consumer.assert_whole()
        elif number % 10 < 8:
            consumer = consume()
            w.CancelSession(consumer.handle)
            assert consumer.finish().outcome == w.ERROR_CANCELLED
        else:
            consumer = consume()
        w.CloseSession(consumer.handle)

    for number in range(200):
        one(number)
    before = resources()
    for number in range(200, 1000):
        one(number)
    after = resources()
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 8 << 20


def test_eight_sessions_at_once_each_end_as_the_contract_says(consume, make_server, new_gate):
    server = make_server()
    names = [f"image {number}" for number in range(8)]
    for name in names:
        server.namespace.files[name] = os.urandom(600_000)
    others_done = new_gate()

    def hold_back(consumer, view, size, offset):
        """Completes nothing until all the others are done, and then everything."""
        consumer.data[offset : offset + size] = view
        stalled.append((size, offset))
        if others_done._opened.is_set():
            pay()

    def pay():
        while stalled:
            w.CompleteReceive(consumers[7].handle, *stalled.pop())

    def cancel_in_the_middle(consumer, view, size, offset):
        consumer.take(view, size, offset)
        if len(consumer.blocks) == 10:
            w.CancelSession(consumer.handle)

    stalled = []
    special = {5: cancel_in_the_middle, 7: hold_back}
    consumers = [
        consume.func(server, name, cache=100_000, caller_data=object(), in_contents=special.get(number))
        for number, name in enumerate(names)
    ]
    for consumer in consumers:
        consumer.start()
    w.CloseSession(consumers[6].handle)
    w.CancelSessionEx(consumers[4].handle, 1234)
    for consumer in consumers[:7]:
        consumer.finish()
    assert not consumers[7].ended.is_set()
    assert sum(size for size, _ in stalled) <= 100_000
    others_done.open()
    pay()
    consumers[7].finish().assert_whole()
    for consumer in [*consumers[:4], consumers[6]]:
        consumer.assert_whole()
    assert consumers[4].outcome == 1234
    assert consumers[5].outcome == w.ERROR_CANCELLED
    assert len(consumers[5].blocks) == 10


def test_many_sessions_of_one_content_share_it(consume):
    consumers = [consume("image").start() for _ in range(8)]
    for consumer in consumers:
        consumer.finish().assert_whole()


async def test_within_a_program_that_runs_trio(consume):
    consumer = consume().start()
    assert w.WaitForCompletion(consumer.handle)
    consumer.assert_whole()


def test_within_a_program_that_runs_asyncio(consume):
    import asyncio

    async def main():
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        consumer = consume(in_complete=lambda consumer, error: loop.call_soon_threadsafe(done.set))
        consumer.start()
        await done.wait()
        return consumer

    asyncio.run(main()).finish().assert_whole()
