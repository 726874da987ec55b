"""The rules under the table of calls and states, one by one, in their order."""

import copy
import gc
import threading
import weakref

import pytest

import wdstransport
from wdstransport import wdstci as w
from wdstransport.handles.delivery import CallbackThread
from wdstransport.handles.library import LIBRARY

EVERY_FUNCTION = {
    "InitializeSession": lambda handle, view: w.InitializeSession(w.WDS_TRANSPORTCLIENT_REQUEST()),
    "RegisterCallback": lambda handle, view: w.RegisterCallback(handle, 0, print),
    "StartSession": lambda handle, view: w.StartSession(handle),
    "CompleteReceive": lambda handle, view: w.CompleteReceive(handle, 1, 0),
    "CancelSession": lambda handle, view: w.CancelSession(handle),
    "CancelSessionEx": lambda handle, view: w.CancelSessionEx(handle, 5),
    "WaitForCompletion": lambda handle, view: w.WaitForCompletion(handle),
    "QueryStatus": lambda handle, view: w.QueryStatus(handle),
    "CloseSession": lambda handle, view: w.CloseSession(handle),
    "AddRefBuffer": lambda handle, view: w.AddRefBuffer(view),
    "ReleaseBuffer": lambda handle, view: w.ReleaseBuffer(view),
    "NegotiateRequiredDataRange": lambda handle, view: w.NegotiateRequiredDataRange(handle, object(), 0, 1),
    "Shutdown": lambda handle, view: w.Shutdown(),
}


@pytest.fixture
def begin_shutdown(library, gate):
    """Calls Shutdown in a thread once a session's callback is at the gate; the session is cancelled then."""

    def begin(consumer):
        gate.wait_entered()
        shutting = threading.Thread(target=library.Shutdown)
        shutting.start()
        while not consumer.handle._session.cancel_code:
            pass
        return shutting

    return begin


# ------------------------------------------------------------- Before Initialize, and after Shutdown


@pytest.mark.parametrize("name", EVERY_FUNCTION)
def test_every_function_before_initialize_is_not_initialized(refused, name):
    with refused(w.WDSTPC_E_NOT_INITIALIZED, name):
        EVERY_FUNCTION[name](object(), memoryview(b"x"))


def test_every_function_after_shutdown_is_not_initialized(consume, library, refused):
    kept = []
    consumer = consume(in_contents=lambda consumer, view, size, offset: kept.append(view)).run()
    library.Shutdown()
    for name, function in EVERY_FUNCTION.items():
        with refused(w.WDSTPC_E_NOT_INITIALIZED, name):
            function(consumer.handle, kept[0])


def test_a_handle_of_an_earlier_life_is_an_invalid_handle(consume, library, refused):
    fresh, done = consume(), consume().run()
    library.Shutdown()
    library.Initialize()
    for consumer in (fresh, done):
        for function in (w.StartSession, w.QueryStatus, w.CloseSession, w.WaitForCompletion):
            with refused(w.ERROR_INVALID_HANDLE):
                function(consumer.handle)


def test_initialize_and_shutdown_are_counted(consume, library, refused):
    library.Initialize()
    library.Initialize()
    library.Shutdown()
    library.Shutdown()
    consume().run().assert_whole()
    library.Shutdown()
    with refused(w.WDSTPC_E_NOT_INITIALIZED, "Shutdown"):
        library.Shutdown()


def test_the_last_shutdown_cancels_what_runs_and_waits_for_each_session_complete(consume, library, new_gate):
    gates = [new_gate() for _ in range(3)]
    consumers = [
        consume("image", in_start=lambda consumer, size, gate=gate: gate.pass_through()).start()
        for gate in gates
    ]
    unstarted = consume()
    for gate in gates:
        gate.wait_entered()
    w.CloseSession(consumers[0].handle)  # even what nobody else can stop any more
    over = threading.Event()
    shutting = threading.Thread(target=lambda: (library.Shutdown(), over.set()))
    shutting.start()
    while not all(consumer.handle._session.cancel_code for consumer in consumers):
        pass  # each is cancelled before any is waited for
    for gate in gates:
        assert not over.is_set()
        gate.open()
    shutting.join()
    for consumer in consumers:
        assert consumer.outcome == w.ERROR_CANCELLED
    assert unstarted.calls == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("wdstci")]


def test_no_thread_is_left_when_the_last_shutdown_returns(consume, library, gate, monkeypatch):
    """Not even one that takes its time after its last callback: it ends no sooner than it is waited for."""
    run, join = CallbackThread.run, CallbackThread.join
    monkeypatch.setattr(CallbackThread, "run", lambda thread: (run(thread), gate.pass_through()))
    monkeypatch.setattr(CallbackThread, "join", lambda thread: (gate.open(), join(thread)))

    def in_start(consumer, size):
        while not consumer.handle._session.cancel_code:
            pass

    consume(in_start=in_start).start()
    library.Shutdown()
    left = [thread for thread in threading.enumerate() if thread.name.startswith("wdstci")]
    gate.open()
    assert left == []


def test_a_session_can_still_be_completed_while_the_last_shutdown_waits(
    consume, library, gate, begin_shutdown, refused
):
    codes = []

    def in_contents(consumer, view, size, offset):
        gate.pass_through()
        consumer.take(view, size, offset)
        with refused(w.WDSTPC_E_NOT_INITIALIZED, "InitializeSession"):
            consume()
        with refused(w.ERROR_POSSIBLE_DEADLOCK, "Initialize"):
            library.Initialize()
        codes.append(w.QueryStatus(consumer.handle))

    consumer = consume(in_contents=in_contents).start()
    shutting = begin_shutdown(consumer)
    gate.open()
    shutting.join()
    assert codes == [(w.WDS_TRANSPORTCLIENT_STATUS_IN_PROGRESS, 0)]
    assert consumer.outcome == w.ERROR_CANCELLED


def test_initialize_during_the_last_shutdown_waits_for_its_end(consume, library, gate, begin_shutdown):
    consumer = consume(in_start=lambda consumer, size: gate.pass_through()).start()
    shutting = begin_shutdown(consumer)
    again = threading.Thread(target=library.Initialize)
    again.start()
    while not LIBRARY._changed._waiters:
        pass
    gate.open()
    shutting.join()
    again.join()
    consume().run().assert_whole()


def test_another_shutdown_during_the_last_one_has_nothing_to_undo(
    consume, library, gate, begin_shutdown, refused
):
    consumer = consume(in_start=lambda consumer, size: gate.pass_through()).start()
    shutting = begin_shutdown(consumer)
    with refused(w.WDSTPC_E_NOT_INITIALIZED, "Shutdown"):
        library.Shutdown()
    gate.open()
    shutting.join()


def test_shutdown_while_session_complete_is_called_does_not_change_the_outcome(
    consume, library, gate, waited_for
):
    told = []

    def in_complete(consumer, error):
        gate.pass_through()
        told.append(w.QueryStatus(consumer.handle))

    consumer = consume(in_complete=in_complete).start()
    gate.wait_entered()
    shutting = threading.Thread(target=library.Shutdown)
    shutting.start()
    while not waited_for(consumer):
        pass
    gate.open()
    shutting.join()
    assert told == [(w.WDS_TRANSPORTCLIENT_STATUS_SUCCESS, 0)]
    consumer.assert_whole()


def test_a_wait_under_way_for_an_unstarted_session_ends_with_the_last_shutdown(
    consume, library, refused, waited_for
):
    consumer, ended = consume(), []

    def wait():
        with refused(w.WDSTPC_E_NOT_INITIALIZED, "WaitForCompletion"):
            w.WaitForCompletion(consumer.handle)
        ended.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not waited_for(consumer):
        pass
    library.Shutdown()
    waiting.join()
    assert ended
    assert consumer.calls == []


@pytest.mark.parametrize("count", [1, 2])
def test_shutdown_from_a_callback_is_refused(consume, library, refused, count):
    def in_start(consumer, size):
        with refused(w.ERROR_POSSIBLE_DEADLOCK, "Shutdown"):
            library.Shutdown()

    for _ in range(count - 1):
        library.Initialize()
    consume(in_start=in_start).run().assert_whole()


# ------------------------------------------------------------- Callbacks of one session


def test_callbacks_come_on_one_thread_of_the_session_and_never_on_the_callers(consume):
    consumers = [consume().start(), consume().start()]
    threads = [consumer.finish().threads for consumer in consumers]
    assert [len(each) for each in threads] == [1, 1]
    assert len(set.union(*threads, {threading.current_thread()})) == 3


def test_callbacks_of_one_session_come_one_at_a_time(consume):
    inside = []

    def in_contents(consumer, view, size, offset):
        inside.append(offset)
        consumer.take(view, size, offset)
        assert inside.pop() == offset
        assert not inside

    consume("image", in_contents=in_contents).run().assert_whole()


def test_callbacks_come_in_the_published_order(consume):
    order = []
    consumer = consume(in_start=lambda consumer, size: order.append("SessionStart"))

    def session_start_ex(handle, data, info):
        assert (handle, data) == (consumer.handle, consumer.caller_data)
        order.append(("SessionStartEx", info))

    def negotiate(handle, data, info, key):
        order.append(("SessionNegotiate", info))

    w.RegisterCallback(consumer.handle, w.WDS_TRANSPORTCLIENT_SESSION_STARTEX, session_start_ex)
    w.RegisterCallback(consumer.handle, w.WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE, negotiate)
    w.RegisterCallback(consumer.handle, w.WDS_TRANSPORTCLIENT_RECEIVE_METADATA, lambda *a: order.append(a))
    consumer.run().assert_whole()
    block_size = max(size for size, _ in consumer.blocks)
    info = w.TRANSPORTCLIENT_SESSION_INFO(5000, block_size)
    assert order == ["SessionStart", ("SessionStartEx", info), ("SessionNegotiate", info)]
    assert info.ulStructureLength == 24
    assert consumer.names == ["SessionStart", *["ReceiveContents"] * len(consumer.blocks), "SessionComplete"]
    assert consumer.calls[0] == ("SessionStart", 5000)
    assert sorted(offset for _, offset in consumer.blocks) == list(range(0, 5000, block_size))


def test_content_of_no_bytes_starts_and_completes(consume):
    assert consume("empty").run().calls == [("SessionStart", 0), ("SessionComplete", 0)]


def test_session_complete_comes_once_also_when_the_start_failed(consume):
    assert consume("no such content").run().calls == [("SessionComplete", w.ERROR_FILE_NOT_FOUND)]


RAISING = ("in_start", "in_contents")


@pytest.mark.parametrize("where", RAISING)
@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_an_exception_in_a_callback_ends_the_session_as_failure_and_is_logged(consume, caplog, where, error):
    def raising(consumer, *arguments):
        raise error("the consumer's own mistake")

    other = consume("image").start()
    consumer = consume("image", **{where: raising}).run()
    assert consumer.outcome == w.WDSTPC_E_UNKNOWN_ERROR
    assert len(consumer.blocks) <= 1
    assert w.QueryStatus(consumer.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_FAILURE, w.WDSTPC_E_UNKNOWN_ERROR)
    assert "Traceback" in caplog.text
    assert "the consumer's own mistake" in caplog.text
    other.finish().assert_whole()


def test_an_exception_in_session_complete_makes_a_success_a_failure(consume, caplog):
    def raising(consumer, error):
        assert w.QueryStatus(consumer.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_SUCCESS, 0)
        raise OSError("cannot flush")

    consumer = consume(in_complete=raising).run()
    assert consumer.outcome == w.ERROR_SUCCESS
    assert w.QueryStatus(consumer.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_FAILURE, w.WDSTPC_E_UNKNOWN_ERROR)
    assert "cannot flush" in caplog.text


def test_an_exception_in_session_complete_leaves_a_failure_as_it_is(consume, caplog):
    def raising(consumer, error):
        raise OSError("cannot flush")

    consumer = consume("no such content", in_complete=raising).run()
    assert w.QueryStatus(consumer.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_FAILURE, w.ERROR_FILE_NOT_FOUND)
    assert "cannot flush" in caplog.text


def test_an_exception_after_cancelling_leaves_the_callers_code(consume, caplog):
    def cancelling(consumer, view, size, offset):
        w.CancelSessionEx(consumer.handle, 112)
        raise OSError("disk full")

    assert consume(in_contents=cancelling).run().outcome == 112
    assert "disk full" in caplog.text


# ------------------------------------------------------------- WaitForCompletion


def test_wait_for_completion_is_true_only_after_session_complete_has_returned(consume, gate, patience):
    consumer = consume(in_complete=lambda consumer, error: gate.pass_through()).start()
    gate.wait_entered()
    assert w.QueryStatus(consumer.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_SUCCESS, 0)
    assert w.WaitForCompletion(consumer.handle, 1) is False
    gate.open()
    assert w.WaitForCompletion(consumer.handle, patience * 1000) is True
    assert consumer.ended.is_set()


@pytest.mark.parametrize(
    ("where", "state"), [("in_start", "running"), ("in_contents", "running"), ("in_complete", "complete")]
)
def test_wait_for_completion_from_a_callback_of_its_own_session_is_refused(consume, where, state):
    def waiting(consumer, *arguments):
        with pytest.raises(w.WdsTransportClientError, match=rf"session \d+ is {state}") as caught:
            w.WaitForCompletion(consumer.handle)
        assert caught.value.winerror == w.ERROR_POSSIBLE_DEADLOCK
        assert str(caught.value).startswith("WaitForCompletion:")
        if where == "in_contents":
            consumer.take(*arguments)

    consume(**{where: waiting}).run().assert_whole()


@pytest.mark.parametrize(("milliseconds", "seconds"), [(0, 0), (1, 0.001), (1500, 1.5), (w.INFINITE, None)])
def test_a_timeout_is_milliseconds_or_none_at_all(consume, monkeypatch, milliseconds, seconds):
    waited = []
    consumer = consume()
    with monkeypatch.context() as patch:
        patch.setattr(consumer.handle._session.done, "wait", waited.append)
        assert not w.WaitForCompletion(consumer.handle, milliseconds)
    assert waited == [seconds]


def test_wait_for_completion_from_a_callback_of_another_session_waits(consume):
    other = consume("image")

    def waiting(consumer, error):
        other.start()
        assert w.WaitForCompletion(other.handle)

    consume(in_complete=waiting).run().assert_whole()
    other.assert_whole()


def test_two_sessions_that_would_wait_for_each_other_are_told(consume, new_gate, refused):
    entered = new_gate()
    second = consume(in_start=lambda consumer, size: wait_for(first, entered))

    def wait_for(other, gate):
        gate.pass_through()
        w.WaitForCompletion(other.handle)

    def in_start(consumer, size):
        entered.wait_entered()
        entered.open()
        while second.handle._session.waits_for is None:
            pass
        with refused(w.ERROR_POSSIBLE_DEADLOCK, "WaitForCompletion"):
            w.WaitForCompletion(second.handle)

    first = consume(in_start=in_start).start()
    second.start()
    first.finish().assert_whole()
    second.finish().assert_whole()


def test_a_session_whose_callback_has_waited_may_be_waited_for(consume):
    second = consume(in_start=lambda consumer, size: w.WaitForCompletion(first.handle))
    waits = []
    first = consume(in_start=lambda consumer, size: waits.append(w.WaitForCompletion(second.handle, 0)))
    first.run().assert_whole()
    assert waits == [False]
    second.run().assert_whole()


def test_wait_for_completion_reports_the_wait_and_not_the_outcome(consume, patience):
    consumer = consume("no such content").start()
    assert w.WaitForCompletion(consumer.handle, patience * 1000) is True


# ------------------------------------------------------------- ulCacheSize


@pytest.mark.parametrize("blocks", [1, 3])
def test_when_the_cache_is_outstanding_nothing_more_is_delivered_until_some_is_completed(
    library, make_server, consume, blocks
):
    delivered = threading.Semaphore(0)
    outstanding = []

    def hold(consumer, view, size, offset):
        consumer.data[offset : offset + size] = view
        outstanding.append((size, offset))
        assert len(outstanding) <= blocks
        delivered.release()

    server = make_server(block_size=1000)
    cache = blocks * 1000 + 999
    consumer = consume.func(
        server, cache=cache, in_contents=hold, in_complete=lambda consumer, error: delivered.release(blocks)
    ).start()
    while not consumer.ended.is_set():
        # Pay only when everything is outstanding, so that a block too many would be seen.
        for _ in range(blocks):
            delivered.acquire()
        while outstanding:
            w.CompleteReceive(consumer.handle, *outstanding.pop())
    consumer.assert_whole()


def test_a_cache_of_exactly_one_block_is_enough(consume, make_server):
    server = make_server(block_size=1000)
    consume.func(server, cache=1000).run().assert_whole()


def test_a_cache_smaller_than_a_block_is_invalid_parameter(consume, make_server):
    server = make_server(block_size=1000)
    consumer = consume.func(server, cache=999).run()
    assert consumer.calls == [("SessionComplete", w.ERROR_INVALID_PARAMETER)]


def test_a_cache_of_zero_is_two_mebibytes(make_server, library, consume):
    server = make_server()
    server.contents["large"] = bytes(3 << 20)
    stalled = threading.Event()
    outstanding = []

    def keep(consumer, view, size, offset):
        outstanding.append((size, offset))
        if sum(size for size, _ in outstanding) > (2 << 20) - size:
            stalled.set()

    consumer = consume.func(server, "large", in_contents=keep).start()
    assert stalled.wait(30)
    assert sum(size for size, _ in outstanding) <= 2 << 20
    w.CancelSession(consumer.handle)
    assert consumer.finish().outcome == w.ERROR_CANCELLED
    assert sum(size for size, _ in outstanding) <= 2 << 20


def test_completion_does_not_wait_for_the_last_blocks_to_be_completed(consume):
    consumer = consume(in_contents=lambda consumer, view, size, offset: None).run()
    assert consumer.outcome == w.ERROR_SUCCESS


def test_the_server_hears_complete_only_when_every_block_was_delivered(consume, server, gate):
    last = 5000 - 1

    def in_contents(consumer, view, size, offset):
        if offset <= last < offset + size:
            gate.pass_through()
        consumer.take(view, size, offset)

    consumer = consume(in_contents=in_contents).start()
    gate.wait_entered()
    assert not [event for event in server.events if isinstance(event, wdstransport.ClientLeft)]
    gate.open()
    consumer.finish().assert_whole()
    server.wait_for(wdstransport.ClientLeft, reason="complete")


# ------------------------------------------------------------- NegotiateRequiredDataRange


def negotiating(consumer, *ranges):
    w.RegisterCallback(
        consumer.handle,
        w.WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE,
        lambda handle, data, info, key: [w.NegotiateRequiredDataRange(handle, key, *each) for each in ranges],
    )
    return consumer


@pytest.mark.parametrize(
    ("ranges", "offsets"),
    [
        ([(0, 1)], [0]),
        ([(999, 2)], [0, 1000]),
        ([(1000, 1000)], [1000]),
        ([(4999, 1), (0, 1000)], [0, 4000]),
        ([(0, 5000)], [0, 1000, 2000, 3000, 4000]),
        ([(2000, 0)], []),
    ],
)
def test_negotiated_ranges_bring_only_the_blocks_that_touch_them(
    library, make_server, consume, ranges, offsets
):
    server = make_server(block_size=1000)
    consumer = negotiating(consume.func(server), *ranges).run()
    assert consumer.outcome == w.ERROR_SUCCESS
    assert sorted(offset for _, offset in consumer.blocks) == offsets
    for size, offset in consumer.blocks:
        assert consumer.data[offset : offset + size] == consumer.content[offset : offset + size]


@pytest.mark.parametrize("content", ["empty", "small"])
def test_a_session_that_needs_no_block_is_complete_without_joining(consume, monkeypatch, content):
    """Content of no bytes, and content of which nothing is required (deviation 46)."""
    monkeypatch.setattr("wdstransport.handles.transfer.open_sockets", None)
    consumer = consume(content)
    if content == "small":
        negotiating(consumer, (0, 0))
    assert consumer.run().outcome == w.ERROR_SUCCESS


@pytest.mark.parametrize("bad", [(-1, 5), (4999, 2), (5001, 0), (0, -1), ("0", 1), (0, None)])
def test_a_range_outside_the_content_is_invalid_parameter(consume, refused, bad):
    consumer = consume()

    def negotiate(handle, data, info, key):
        with refused(w.ERROR_INVALID_PARAMETER, "NegotiateRequiredDataRange"):
            w.NegotiateRequiredDataRange(handle, key, *bad)

    w.RegisterCallback(consumer.handle, w.WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE, negotiate)
    consumer.run().assert_whole()


@pytest.mark.parametrize("wrong", [None, object(), w.NegotiateKey()], ids=["none", "an object", "a key"])
def test_a_range_with_another_key_than_the_callbacks_is_an_invalid_handle(consume, refused, wrong):
    consumer = consume()

    def negotiate(handle, data, info, key):
        with refused(w.ERROR_INVALID_HANDLE, "NegotiateRequiredDataRange"):
            w.NegotiateRequiredDataRange(handle, wrong, 0, 1)

    w.RegisterCallback(consumer.handle, w.WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE, negotiate)
    consumer.run().assert_whole()


def test_ranges_are_refused_outside_of_session_negotiate(consume, refused):
    keys = []

    def late(consumer, view, size, offset):
        with refused(w.ERROR_INVALID_HANDLE, "NegotiateRequiredDataRange"):
            w.NegotiateRequiredDataRange(consumer.handle, keys[0], 0, 1)
        consumer.take(view, size, offset)

    consumer = consume(in_contents=late)
    w.RegisterCallback(
        consumer.handle, w.WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE, lambda *arguments: keys.append(arguments[3])
    )
    with refused(w.ERROR_INVALID_HANDLE, "NegotiateRequiredDataRange"):
        w.NegotiateRequiredDataRange(consumer.handle, object(), 0, 1)
    consumer.run().assert_whole()


# ------------------------------------------------------------- Handles


def test_a_session_that_is_complete_is_kept_by_its_handle_alone(consume):
    """A service that transfers for years and never calls Shutdown must not grow."""
    consumer = consume()
    runtime = consumer.handle._session.runtime
    assert len(runtime.live) == 1
    consumer.run().assert_whole()
    assert runtime.live == set()
    cancelled = consume()
    w.CancelSession(cancelled.handle)
    cancelled.finish()
    w.WaitForCompletion(cancelled.handle)
    closed = consume()
    w.CloseSession(closed.handle)
    assert runtime.live == set()


@pytest.mark.parametrize("how", ["complete", "discarded"])
def test_a_session_that_is_over_lets_go_of_what_was_its_callers(consume, how):
    class Data:
        pass

    consumer = consume(caller_data=Data())
    handle = consumer.handle
    watched = [weakref.ref(consumer), weakref.ref(consumer.caller_data)]
    if how == "complete":
        consumer.run().assert_whole()
    else:
        w.CloseSession(handle)
    del consumer
    gc.collect()
    assert [each() for each in watched] == [None, None]


def test_handles_are_opaque_compared_by_identity_and_never_reused(consume):
    handles = [consume().handle for _ in range(50)]
    for handle in handles[::2]:
        w.CloseSession(handle)
    handles += [consume().handle for _ in range(50)]
    assert len(set(handles)) == len(handles)
    assert len({repr(handle) for handle in handles}) == len(handles)
    assert copy.copy(handles[0]) is copy.deepcopy(handles[0]) is handles[0]


def test_how_a_server_removes_a_client_is_told_by_its_own_code(consume, server, new_gate):
    for reason, code in [
        (wdstransport.KickReason.POLICY_NOT_MET, w.WDSTPC_E_KICKED_POLICY_NOT_MET),
        (wdstransport.KickReason.FALLBACK, w.WDSTPC_E_KICKED_FALLBACK),
        (wdstransport.KickReason.FAIL, w.WDSTPC_E_KICKED_FAIL),
    ]:
        gate = new_gate()
        consumer = consume("image", in_contents=lambda *arguments, gate=gate: gate.pass_through()).start()
        gate.wait_entered()
        joined = server.wait_for(wdstransport.ClientJoined, len(server.call(joined_so_far, server)))
        server.call(server.transport.kick, joined.session_id, joined.client_id, reason)
        gate.open()
        assert consumer.finish().outcome == code


def joined_so_far(server):
    return [event for event in server.events if isinstance(event, wdstransport.ClientJoined)]


def test_a_server_that_does_not_answer_is_a_timeout(consume, server):
    server.close()
    assert consume(timeout=0.05).run().calls == [("SessionComplete", w.ERROR_TIMEOUT)]


def test_a_session_that_lets_nobody_join_is_a_timeout(library, make_server, consume):
    server = make_server(security="none")
    consumer = consume.func(server, timeout=0.3).run()
    assert consumer.calls == [("SessionStart", 5000), ("SessionComplete", w.ERROR_TIMEOUT)]
    consume.func(server, security="none").run().assert_whole()


def test_an_interface_that_is_not_there_is_invalid_parameter(consume, caplog):
    assert consume(interface="nosuch0").run().outcome == w.ERROR_INVALID_PARAMETER
    assert "nosuch0" in caplog.text
