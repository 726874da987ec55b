"""What bad use gets: the code of the table, at once, and a message that names call, state and remedy."""

import dataclasses
import errno
import pickle
import socket
import subprocess
import sys
import threading

import pytest

import wdstransport
from wdstransport import wdstci as w
from wdstransport.handles import library as library_module
from wdstransport.handles.transfer import code_of

WITH_HANDLE = {
    "RegisterCallback": lambda handle: w.RegisterCallback(handle, 0, print),
    "StartSession": w.StartSession,
    "CompleteReceive": lambda handle: w.CompleteReceive(handle, 1, 0),
    "CancelSession": w.CancelSession,
    "CancelSessionEx": lambda handle: w.CancelSessionEx(handle, 5),
    "WaitForCompletion": w.WaitForCompletion,
    "QueryStatus": w.QueryStatus,
    "CloseSession": w.CloseSession,
    "NegotiateRequiredDataRange": lambda handle: w.NegotiateRequiredDataRange(handle, object(), 0, 1),
}


@pytest.mark.parametrize("call", WITH_HANDLE)
@pytest.mark.parametrize("wrong", [None, 0, 1, "1", object(), w.NegotiateKey(), memoryview(b"x"), print])
def test_what_is_no_session_key_is_an_invalid_handle(library, refused, call, wrong):
    with refused(w.ERROR_INVALID_HANDLE, call):
        WITH_HANDLE[call](wrong)


def request(**changes):
    good = {"pwszServer": "127.0.0.1", "pwszNamespace": "images", "pwszObjectName": "small"}
    return w.WDS_TRANSPORTCLIENT_REQUEST(**{**good, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"ulLength": 0},
        {"ulLength": 63},
        {"ulApiVersion": 0},
        {"ulApiVersion": 2},
        {"ulAuthLevel": 0},
        {"ulAuthLevel": 3},
        {"ulProtocol": 0},
        {"ulProtocol": 2},
        {"pvProtocolData": b""},
        {"ulProtocolDataLength": 4},
        {"ulCacheSize": -1},
        {"ulCacheSize": 1 << 32},
        {"ulCacheSize": 1.5},
        {"pwszServer": ""},
        {"pwszServer": None},
        {"pwszNamespace": b"images"},
        {"pwszNamespace": "im\0ages"},
        {"pwszObjectName": ""},
        {"pwszObjectName": "\ud800"},
    ],
)
def test_a_request_that_cannot_be_is_invalid_parameter_and_names_the_field(library, refused, changes):
    with pytest.raises(
        w.WdsTransportClientError, match=next(iter(changes)).replace("pv", "protocol data|pv")
    ):
        w.InitializeSession(request(**changes))
    with refused(w.ERROR_INVALID_PARAMETER, "InitializeSession"):
        w.InitializeSession(request(**changes))


def test_a_request_of_another_kind_is_invalid_parameter(library, refused):
    with refused(w.ERROR_INVALID_PARAMETER, "InitializeSession"):
        w.InitializeSession({"pwszServer": "127.0.0.1"})


@pytest.mark.parametrize(
    "options",
    [
        {"port": 0},
        {"port": 65536},
        {"port": "5041"},
        {"security": "sign"},
        {"timeout": 0},
        {"timeout": float("inf")},
        {"timeout": float("nan")},
        {"interface": 1},
    ],
)
def test_options_that_cannot_be_are_invalid_parameter(library, refused, options):
    with refused(w.ERROR_INVALID_PARAMETER, "InitializeSession"):
        w.InitializeSession(request(), **options)


def test_auth_is_not_supported_and_says_what_to_use(library, refused):
    with pytest.raises(w.WdsTransportClientError, match="WDS_TRANSPORTCLIENT_NO_AUTH") as caught:
        w.InitializeSession(request(ulAuthLevel=w.WDS_TRANSPORTCLIENT_AUTH))
    assert caught.value.winerror == w.ERROR_NOT_SUPPORTED


def test_a_request_is_copied(consume, server):
    mine = request()
    handle = w.InitializeSession(mine, port=server.port, interface="127.0.0.1")
    mine.pwszObjectName = "changed"
    told, done = [], threading.Event()
    w.RegisterCallback(handle, 0, lambda handle, data, size: told.append(size))
    w.RegisterCallback(handle, 1, lambda handle, data, view, size, offset: None)
    w.RegisterCallback(handle, 2, lambda handle, data, error: done.set())
    w.StartSession(handle)
    assert done.wait(30)
    assert told == [5000]
    assert dataclasses.replace(mine) == mine


@pytest.mark.parametrize("callback_id", [-1, w.WDS_TRANSPORTCLIENT_MAX_CALLBACKS, 7, "0", None])
def test_a_callback_id_that_is_none_is_invalid_parameter(consume, refused, callback_id):
    with refused(w.ERROR_INVALID_PARAMETER, "RegisterCallback"):
        w.RegisterCallback(consume().handle, callback_id, print)


def test_a_callback_that_cannot_be_called_is_invalid_parameter(consume, refused):
    with refused(w.ERROR_INVALID_PARAMETER, "RegisterCallback"):
        w.RegisterCallback(consume().handle, 0, None)


@pytest.mark.parametrize("code", [0, -1, 1 << 32, "5", None])
def test_a_code_that_is_none_is_invalid_parameter(consume, refused, code):
    with refused(w.ERROR_INVALID_PARAMETER, "CancelSessionEx"):
        w.CancelSessionEx(consume().handle, code)


@pytest.mark.parametrize("timeout", [-1, 1 << 32, 0.5, None])
def test_a_timeout_that_is_none_is_invalid_parameter(consume, refused, timeout):
    with refused(w.ERROR_INVALID_PARAMETER, "WaitForCompletion"):
        w.WaitForCompletion(consume().handle, timeout)


def test_a_complete_receive_that_does_not_match_is_invalid_parameter(consume, refused):
    def in_contents(consumer, view, size, offset):
        wrong = [
            (size + 1, offset),
            (size - 1, offset),
            (size, offset + 1),
            (0, offset),
            (size, -1),
            (None, None),
        ]
        for arguments in wrong:
            with refused(w.ERROR_INVALID_PARAMETER, "CompleteReceive"):
                w.CompleteReceive(consumer.handle, *arguments)
        consumer.take(view, size, offset)
        with refused(w.ERROR_INVALID_PARAMETER, "CompleteReceive"):
            w.CompleteReceive(consumer.handle, size, offset)

    consume(in_contents=in_contents).run().assert_whole()


def test_a_refused_complete_receive_says_what_does_not_match(consume):
    said = []

    def attempt(consumer, *arguments):
        with pytest.raises(w.WdsTransportClientError) as caught:
            w.CompleteReceive(consumer.handle, *arguments)
        said.append(str(caught.value))

    def in_contents(consumer, view, size, offset):
        if not offset:
            attempt(consumer, size + 1, offset)
            attempt(consumer, size, offset + 1)
        consumer.take(view, size, offset)
        if not offset:
            attempt(consumer, size, offset)

    consumer = consume(in_contents=in_contents).run()
    consumer.assert_whole()
    size, _ = consumer.blocks[0]
    assert f"the block at offset 0 has {size} bytes, not {size + 1}" in said[0]
    assert "no block at offset 1 is outstanding" in said[1]
    assert "no block at offset 0 is outstanding" in said[2]


def test_of_two_threads_that_complete_a_block_one_is_refused(consume):
    results = []

    def complete(consumer, barrier, size, offset):
        barrier.wait()
        try:
            w.CompleteReceive(consumer.handle, size, offset)
            results.append("accepted")
        except w.WdsTransportClientError as error:
            results.append(error.winerror)

    def in_contents(consumer, view, size, offset):
        barrier = threading.Barrier(2)
        threads = [
            threading.Thread(target=complete, args=(consumer, barrier, size, offset)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    consumer = consume(in_contents=in_contents).run()
    blocks = len(consumer.blocks)
    assert sorted(map(str, results)) == sorted(
        ["accepted"] * blocks + [str(w.ERROR_INVALID_PARAMETER)] * blocks
    )


def test_messages_name_the_call_the_state_and_the_remedy(consume):
    consumer = consume().run()
    with pytest.raises(w.WdsTransportClientError) as caught:
        w.StartSession(consumer.handle)
    text = str(caught.value)
    assert text.startswith("StartSession: session ")
    assert "is complete" in text
    assert "make another" in text
    assert "WDSTPC_E_ALREADY_COMPLETED (0xC1220301)" in text


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(w.WdsTransportClientError(w.ERROR_CANCELLED, "why")))
    assert error.winerror == w.ERROR_CANCELLED
    assert str(error) == "why [ERROR_CANCELLED (1223)]"
    assert isinstance(error, wdstransport.TransportError)


def test_every_value_of_the_header_is_as_published():
    assert [w.WDSTPC_E_CALLBACKS_NOT_REG + i for i in range(14)] == [
        w.WDSTPC_E_CALLBACKS_NOT_REG,
        w.WDSTPC_E_ALREADY_COMPLETED,
        w.WDSTPC_E_ALREADY_IN_PROGRESS,
        w.WDSTPC_E_UNKNOWN_ERROR,
        w.WDSTPC_E_NOT_INITIALIZED,
        w.WDSTPC_E_KICKED_POLICY_NOT_MET,
        w.WDSTPC_E_KICKED_FALLBACK,
        w.WDSTPC_E_KICKED_FAIL,
        w.WDSTPC_E_KICKED_UNKNOWN,
        w.WDSTPC_E_MULTISTREAM_NOT_ENABLED,
        w.WDSTPC_E_ALREADY_IN_LOWEST_SESSION,
        w.WDSTPC_E_CLIENT_DEMOTE_NOT_SUPPORTED,
        w.WDSTPC_E_NO_IP4_INTERFACE,
        w.WDSTPTC_E_WIM_APPLY_REQUIRES_REFERENCE_IMAGE,
    ]
    assert w.WDSTPC_E_CALLBACKS_NOT_REG == 0xC1220300
    assert [member.value for member in w.TRANSPORTCLIENT_CALLBACK_ID] == list(range(7))
    assert (w.WDS_TRANSPORTCLIENT_AUTH, w.WDS_TRANSPORTCLIENT_NO_AUTH) == (1, 2)
    assert w.WDS_TRANSPORTCLIENT_CURRENT_API_VERSION == w.WDS_TRANSPORTCLIENT_PROTOCOL_MULTICAST == 1
    assert w.WDS_TRANSPORTCLIENT_NO_CACHE == 0
    assert w.WDS_TRANSPORTCLIENT_STATUS_IN_PROGRESS == 1
    assert w.WDS_TRANSPORTCLIENT_STATUS_SUCCESS == 2
    assert w.WDS_TRANSPORTCLIENT_STATUS_FAILURE == 3
    assert set(w.__all__) <= set(dir(w))


def caused_by(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (wdstransport.RefusedError("", 69), 69),
        (wdstransport.RefusedError("", 0), w.WDSTPC_E_UNKNOWN_ERROR),
        (wdstransport.NobodyAnsweredError(""), w.ERROR_TIMEOUT),
        (wdstransport.UsageError(""), w.ERROR_INVALID_PARAMETER),
        (caused_by(wdstransport.UsageError(""), socket.gaierror()), w.WSAHOST_NOT_FOUND),
        (wdstransport.RemoteError(""), w.ERROR_INVALID_DATA),
        (wdstransport.TransportError(""), w.WDSTPC_E_UNKNOWN_ERROR),
        (w.WdsTransportClientError(5, ""), 5),
    ],
)
def test_what_goes_wrong_has_a_code(error, code):
    assert code_of(error) == code


def test_a_server_name_nobody_knows_is_host_not_found(consume, monkeypatch):
    def unknown(*arguments):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert consume().run().calls == [("SessionComplete", w.WSAHOST_NOT_FOUND)]


def test_a_mistake_of_our_own_ends_the_session_and_is_logged(consume, monkeypatch, caplog):
    monkeypatch.setattr("wdstransport.handles.transfer.open_sockets", lambda offer: 1 / 0)
    assert consume().run().outcome == w.WDSTPC_E_UNKNOWN_ERROR
    assert "ZeroDivisionError" in caplog.text


def no_thread(*arguments):
    raise RuntimeError("can't start new thread")


def test_without_a_thread_to_be_had_the_call_says_so_and_can_be_repeated(consume, refused, monkeypatch):
    consumer = consume()
    with monkeypatch.context() as patch, refused(w.ERROR_NO_SYSTEM_RESOURCES, "StartSession"):
        patch.setattr(threading.Thread, "start", no_thread)
        w.StartSession(consumer.handle)
    consumer.run().assert_whole()


def test_without_a_thread_to_be_had_initialize_says_so(refused, monkeypatch):
    with monkeypatch.context() as patch, refused(w.ERROR_NO_SYSTEM_RESOURCES, "Initialize"):
        patch.setattr(threading.Thread, "start", no_thread)
        w.Initialize()
    with refused(w.WDSTPC_E_NOT_INITIALIZED):
        w.Shutdown()


def test_without_file_descriptors_initialize_says_so(refused, monkeypatch):
    def no_files(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch, refused(w.ERROR_NO_SYSTEM_RESOURCES, "Initialize"):
        patch.setattr(library_module.trio, "run", no_files)
        w.Initialize()
    with refused(w.WDSTPC_E_NOT_INITIALIZED):
        w.Shutdown()


def test_shutdown_that_is_interrupted_can_be_called_again(consume, library, gate, monkeypatch):
    consumer = consume(in_start=lambda consumer, size: gate.pass_through()).start()
    gate.wait_entered()

    # Who waits for the end of this Shutdown in an Initialize of its own need wait no more.
    again = threading.Thread(target=library.Initialize)

    def interrupted(session):
        again.start()
        while not library_module.LIBRARY._changed._waiters:
            pass
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wdstransport.handles.session.Session.join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            library.Shutdown()
    again.join()
    gate.open()
    library.Shutdown()
    library.Shutdown()
    assert consumer.outcome == w.ERROR_CANCELLED


EXITS_WITHOUT_SHUTDOWN = """
import sys, threading
from wdstransport import wdstci as w
w.Initialize()
request = w.WDS_TRANSPORTCLIENT_REQUEST(pwszServer="127.0.0.1", pwszNamespace="images")
request.pwszObjectName = "image"
handle = w.InitializeSession(request, port=int(sys.argv[1]), interface="127.0.0.1")
entered = threading.Event()
def contents(handle, data, view, size, offset):
    entered.set()
    threading.Event().wait()
w.RegisterCallback(handle, w.WDS_TRANSPORTCLIENT_SESSION_START, lambda *arguments: None)
w.RegisterCallback(handle, w.WDS_TRANSPORTCLIENT_RECEIVE_CONTENTS, contents)
w.RegisterCallback(handle, w.WDS_TRANSPORTCLIENT_SESSION_COMPLETE, lambda *arguments: None)
w.StartSession(handle)
entered.wait()
print("leaving")
"""


def test_a_process_that_exits_without_shutdown_exits(server):
    command = [sys.executable, "-c", EXITS_WITHOUT_SHUTDOWN, str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")
