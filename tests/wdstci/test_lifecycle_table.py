"""The table of calls and states, cell by cell: a test is named after its row and its column."""

import threading

import pytest

from wdstransport import wdstci as w


@pytest.fixture
def unstarted(consume):
    return consume()


@pytest.fixture
def running(consume, gate):
    """A session that is in its SessionStart callback, and will go on when the gate opens."""
    consumer = consume(in_start=lambda consumer, size: gate.pass_through()).start()
    gate.wait_entered()
    yield consumer
    gate.open()


@pytest.fixture
def complete(consume):
    return consume().run()


@pytest.fixture
def closed(consume, gate):
    """A closed session whose transfer goes on."""
    consumer = consume(in_start=lambda consumer, size: gate.pass_through()).start()
    gate.wait_entered()
    w.CloseSession(consumer.handle)
    yield consumer
    gate.open()


@pytest.fixture
def closed_unstarted(consume):
    consumer = consume()
    w.CloseSession(consumer.handle)
    return consumer


@pytest.fixture
def closed_complete(consume):
    consumer = consume().run()
    w.CloseSession(consumer.handle)
    return consumer


@pytest.fixture(params=["closed", "closed_unstarted", "closed_complete"])
def any_closed(request):
    return request.getfixturevalue(request.param)


# ---------------------------------------------------------------------- RegisterCallback


def test_register_callback_before_start_sets_or_replaces(unstarted):
    told = []
    w.RegisterCallback(
        unstarted.handle, w.WDS_TRANSPORTCLIENT_SESSION_STARTEX, lambda *a: told.append("first")
    )
    w.RegisterCallback(
        unstarted.handle, w.WDS_TRANSPORTCLIENT_SESSION_STARTEX, lambda *a: told.append("second")
    )
    unstarted.run()
    assert told == ["second"]
    assert unstarted.names[0] == "SessionStart"


def test_register_callback_running_is_already_in_progress(running, refused):
    with refused(w.WDSTPC_E_ALREADY_IN_PROGRESS, "RegisterCallback"):
        running.register()


def test_register_callback_after_session_complete_is_already_completed(complete, refused):
    with refused(w.WDSTPC_E_ALREADY_COMPLETED, "RegisterCallback"):
        complete.register()


def test_register_callback_after_close_session_is_invalid_handle(any_closed, refused):
    with refused(w.ERROR_INVALID_HANDLE, "RegisterCallback"):
        any_closed.register()


# ---------------------------------------------------------------------- StartSession


def test_start_session_before_start_starts(unstarted):
    unstarted.run().assert_whole()


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_start_session_before_start_without_a_required_callback_is_callbacks_not_reg(
    consume, refused, missing
):
    consumer = consume(register=False)
    for required in {0, 1, 2} - {missing}:
        w.RegisterCallback(consumer.handle, required, lambda *a: None)
    with refused(w.WDSTPC_E_CALLBACKS_NOT_REG, "StartSession"):
        w.StartSession(consumer.handle)
    consumer.register()
    consumer.run().assert_whole()


def test_start_session_running_is_already_in_progress(running, refused):
    with refused(w.WDSTPC_E_ALREADY_IN_PROGRESS, "StartSession"):
        w.StartSession(running.handle)


def test_start_session_after_session_complete_is_already_completed(complete, refused):
    with refused(w.WDSTPC_E_ALREADY_COMPLETED, "StartSession"):
        w.StartSession(complete.handle)


def test_start_session_after_close_session_is_invalid_handle(any_closed, refused):
    with refused(w.ERROR_INVALID_HANDLE, "StartSession"):
        w.StartSession(any_closed.handle)


# ---------------------------------------------------------------------- CompleteReceive


def test_complete_receive_before_start_is_invalid_parameter(unstarted, refused):
    with refused(w.ERROR_INVALID_PARAMETER, "CompleteReceive"):
        w.CompleteReceive(unstarted.handle, 1385, 0)


def test_complete_receive_running_credits_the_block(consume):
    # Room for one block only: without the credit there would be no second.
    consumer = consume(cache=4000).run()
    consumer.assert_whole()
    assert len(consumer.blocks) > 2


def test_complete_receive_after_session_complete_credits_the_block_while_it_is_outstanding(consume, refused):
    consumer = consume(in_contents=lambda consumer, view, size, offset: None).run()
    assert consumer.outcome == w.ERROR_SUCCESS
    for size, offset in consumer.blocks:
        w.CompleteReceive(consumer.handle, size, offset)
    with refused(w.ERROR_INVALID_PARAMETER, "CompleteReceive"):
        w.CompleteReceive(consumer.handle, *consumer.blocks[0])


def test_complete_receive_after_close_session_credits_as_running(consume, gate):
    consumer = consume(cache=4000, in_start=lambda consumer, size: gate.pass_through()).start()
    gate.wait_entered()
    w.CloseSession(consumer.handle)
    gate.open()
    consumer.finish().assert_whole()
    assert len(consumer.blocks) > 2


def test_complete_receive_after_close_session_and_completion_credits_what_is_outstanding(consume, refused):
    consumer = consume(in_contents=lambda consumer, view, size, offset: None).start()
    w.CloseSession(consumer.handle)
    consumer.finish()
    for size, offset in consumer.blocks:
        w.CompleteReceive(consumer.handle, size, offset)
    with refused(w.ERROR_INVALID_PARAMETER, "CompleteReceive"):
        w.CompleteReceive(consumer.handle, *consumer.blocks[0])


def test_complete_receive_on_a_discarded_session_is_invalid_handle(closed_unstarted, refused):
    with refused(w.ERROR_INVALID_HANDLE, "CompleteReceive"):
        w.CompleteReceive(closed_unstarted.handle, 1385, 0)


# ---------------------------------------------------------------------- CancelSession, CancelSessionEx


def cancel_with_ex(handle):
    w.CancelSessionEx(handle, 0x80004005)


CANCELS = pytest.mark.parametrize(
    ("cancel", "code"), [(w.CancelSession, w.ERROR_CANCELLED), (cancel_with_ex, 0x80004005)]
)


@CANCELS
def test_cancel_session_before_start_completes_with_the_code_and_without_traffic(
    consume, server, cancel, code, patience
):
    consumer = consume()
    cancel(consumer.handle)
    assert w.WaitForCompletion(consumer.handle, patience * 1000)
    assert consumer.calls == [("SessionComplete", code)]
    assert w.QueryStatus(consumer.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_FAILURE, code)
    assert threading.current_thread() not in consumer.threads
    assert server.call(server.transport.statistics).requests == 0


def test_cancel_session_before_start_without_callbacks_completes(consume, patience):
    consumer = consume(register=False)
    w.CancelSession(consumer.handle)
    assert w.WaitForCompletion(consumer.handle, patience * 1000)
    assert w.QueryStatus(consumer.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_FAILURE, w.ERROR_CANCELLED)


@CANCELS
def test_cancel_session_running_is_asynchronous_and_completes_with_the_code(running, gate, cancel, code):
    cancel(running.handle)
    # The callback under way has not returned: the call has not waited for it.
    assert running.calls == [("SessionStart", 5000)]
    assert w.QueryStatus(running.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_IN_PROGRESS, 0)
    gate.open()
    assert running.finish().outcome == code
    assert w.WaitForCompletion(running.handle)
    assert w.QueryStatus(running.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_FAILURE, code)
    assert running.names == ["SessionStart", "SessionComplete"]


@CANCELS
def test_cancel_session_after_session_complete_is_already_completed(complete, refused, cancel, code):
    with refused(w.WDSTPC_E_ALREADY_COMPLETED):
        cancel(complete.handle)
    assert w.QueryStatus(complete.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_SUCCESS, 0)


@CANCELS
def test_cancel_session_after_close_session_is_invalid_handle(any_closed, refused, cancel, code):
    with refused(w.ERROR_INVALID_HANDLE):
        cancel(any_closed.handle)


def test_cancel_session_after_close_session_does_not_cancel(closed, gate, refused):
    with refused(w.ERROR_INVALID_HANDLE, "CancelSession"):
        w.CancelSession(closed.handle)
    gate.open()
    closed.finish().assert_whole()


# ---------------------------------------------------------------------- WaitForCompletion


def test_wait_for_completion_before_start_waits(unstarted, patience):
    assert w.WaitForCompletion(unstarted.handle, 0) is False
    results = []
    waiter = threading.Thread(
        target=lambda: results.append(w.WaitForCompletion(unstarted.handle, patience * 1000))
    )
    waiter.start()
    unstarted.start()
    waiter.join()
    assert results == [True]
    unstarted.assert_whole()


def test_wait_for_completion_running_waits(running, gate, patience):
    assert w.WaitForCompletion(running.handle, 1) is False
    gate.open()
    assert w.WaitForCompletion(running.handle, patience * 1000) is True
    assert running.ended.is_set()


def test_wait_for_completion_after_session_complete_returns_at_once(complete):
    assert w.WaitForCompletion(complete.handle, 0) is True
    assert w.WaitForCompletion(complete.handle) is True


def test_wait_for_completion_after_close_session_is_invalid_handle(any_closed, refused):
    with refused(w.ERROR_INVALID_HANDLE, "WaitForCompletion"):
        w.WaitForCompletion(any_closed.handle)


def start_waiting(handle):
    """A thread in WaitForCompletion, and where its result or its error will be."""
    entered, results = threading.Event(), []

    def wait():
        entered.set()
        try:
            results.append(w.WaitForCompletion(handle))
        except w.WdsTransportClientError as error:
            results.append(error.winerror)

    thread = threading.Thread(target=wait)
    thread.start()
    entered.wait()
    return thread, results


def test_wait_for_completion_under_way_when_the_session_is_closed_finishes(running, gate, waited_for):
    thread, results = start_waiting(running.handle)
    while not waited_for(running):
        pass
    w.CloseSession(running.handle)
    gate.open()
    thread.join()
    assert results == [True]
    running.assert_whole()


def test_wait_for_completion_under_way_when_the_session_is_discarded_is_invalid_handle(unstarted):
    thread, results = start_waiting(unstarted.handle)
    w.CloseSession(unstarted.handle)
    thread.join()
    assert results == [w.ERROR_INVALID_HANDLE]


# ---------------------------------------------------------------------- QueryStatus


def test_query_status_before_start_is_in_progress(unstarted):
    assert w.QueryStatus(unstarted.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_IN_PROGRESS, 0)


def test_query_status_running_is_in_progress(running):
    assert w.QueryStatus(running.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_IN_PROGRESS, 0)


def test_query_status_after_session_complete_is_success(complete):
    assert w.QueryStatus(complete.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_SUCCESS, 0)


def test_query_status_after_session_complete_is_failure_and_its_code(consume):
    consumer = consume("no such content").run()
    assert consumer.calls == [("SessionComplete", w.ERROR_FILE_NOT_FOUND)]
    assert w.QueryStatus(consumer.handle) == (w.WDS_TRANSPORTCLIENT_STATUS_FAILURE, w.ERROR_FILE_NOT_FOUND)


def test_query_status_after_close_session_is_invalid_handle(any_closed, refused):
    with refused(w.ERROR_INVALID_HANDLE, "QueryStatus"):
        w.QueryStatus(any_closed.handle)


# ---------------------------------------------------------------------- CloseSession


def test_close_session_before_start_discards_and_no_callback_ever_comes(consume, library):
    consumer = consume()
    w.CloseSession(consumer.handle)
    library.Shutdown()
    assert consumer.calls == []


def test_close_session_running_returns_at_once_and_the_transfer_goes_on(running, gate):
    w.CloseSession(running.handle)
    assert running.names == ["SessionStart"]
    gate.open()
    # Same handle, same caller data: the consumer checks them in every callback.
    running.finish().assert_whole()


def test_close_session_after_session_complete_frees_the_rest(complete):
    w.CloseSession(complete.handle)


def test_close_session_after_close_session_is_invalid_handle(any_closed, refused):
    with refused(w.ERROR_INVALID_HANDLE, "CloseSession"):
        w.CloseSession(any_closed.handle)
