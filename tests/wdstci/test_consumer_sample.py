"""Microsoft's consumer sample, transcribed step by step, against our server.

Its one change: NO_AUTH for AUTH, which needs authenticated RPC. What is odd in it stays: the file handle
itself is the caller data, and is closed before the session is cancelled or closed.
"""

import os
import threading

import pytest

import wdstransport
from wdstransport import wdstci as w

S_OK = 0


def hresult_from_win32(code):
    """The macro: a negative value, which is an HRESULT already, passes unchanged."""
    if code == 0 or code & 0x80000000:
        return code
    return (code & 0xFFFF) | 0x80070000


class Sample:
    """`consumer.exe <server> <namespace> <remote file> <local file>`."""

    def __init__(self, *, auth=w.WDS_TRANSPORTCLIENT_NO_AUTH, pwrite=os.pwrite, options):
        self.auth = auth
        self.pwrite = pwrite
        self.options = options
        self.printed = []
        self.calls = []

    # The callbacks.

    def session_start(self, session_key, caller_data, file_size):
        self.calls.append("SessionStart")
        self.printed.append(f"Session start: {file_size}")

    def receive_contents(self, session_key, caller_data, contents, size, content_offset):
        self.calls.append("ReceiveContents")
        file = caller_data
        try:
            self.pwrite(file, contents, content_offset)
            w.CompleteReceive(session_key, size, content_offset)
        except (OSError, w.WdsTransportClientError) as error:
            self.printed.append(f"ReceiveContents: {error}")
            w.CancelSession(session_key)

    def session_complete(self, session_key, caller_data, error):
        self.calls.append("SessionComplete")
        self.printed.append(f"Session complete: {error}")

    def main(self, server, namespace, remote_file, local_file):
        file = session = None
        initialized = False
        hr = S_OK
        try:
            w.Initialize()
            initialized = True
            file = os.open(local_file, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            request = w.WDS_TRANSPORTCLIENT_REQUEST()
            request.ulApiVersion = w.WDS_TRANSPORTCLIENT_CURRENT_API_VERSION
            request.ulAuthLevel = self.auth
            request.pwszServer = server
            request.pwszNamespace = namespace
            request.pwszObjectName = remote_file
            request.ulCacheSize = 0x2000000
            request.ulProtocol = w.WDS_TRANSPORTCLIENT_PROTOCOL_MULTICAST
            request.pvProtocolData = None
            request.ulProtocolDataLength = 0
            session = w.InitializeSession(request, file, **self.options)
            w.RegisterCallback(session, w.WDS_TRANSPORTCLIENT_SESSION_COMPLETE, self.session_complete)
            w.RegisterCallback(session, w.WDS_TRANSPORTCLIENT_SESSION_START, self.session_start)
            w.RegisterCallback(session, w.WDS_TRANSPORTCLIENT_RECEIVE_CONTENTS, self.receive_contents)
            w.StartSession(session)
            w.WaitForCompletion(session, w.INFINITE)
            status, error = w.QueryStatus(session)
            hr = hresult_from_win32(error)
            self.printed.append(f"status {status}")
        except w.WdsTransportClientError as error:
            hr = hresult_from_win32(error.winerror)
        finally:
            if file is not None:
                os.close(file)
            if session is not None:
                if hr != S_OK:
                    try:
                        w.CancelSession(session)
                    except w.WdsTransportClientError as error:
                        self.printed.append(f"CancelSession: {error}")
                w.CloseSession(session)
            if initialized:
                w.Shutdown()
        return hr


@pytest.fixture
def sample(server):
    return lambda **changes: Sample(options={"port": server.port, "interface": "127.0.0.1"}, **changes)


def test_the_sample_receives_a_file(sample, server, tmp_path):
    target = tmp_path / "local"
    consumer = sample()
    assert consumer.main("127.0.0.1", "images", "image", target) == S_OK
    assert target.read_bytes() == server.contents["image"]
    assert consumer.calls[0] == "SessionStart"
    assert consumer.calls[-1] == "SessionComplete"
    assert consumer.printed[-2:] == ["Session complete: 0", "status 2"]


@pytest.mark.parametrize("writes", [0, 1, 50])
def test_a_failing_write_cancels_from_within_the_callback(sample, server, tmp_path, writes):
    done = []

    def failing(file, contents, offset):
        if len(done) == writes:
            raise OSError(28, "No space left on device")
        done.append(os.pwrite(file, contents, offset))

    consumer = sample(pwrite=failing)
    assert consumer.main("127.0.0.1", "images", "image", tmp_path / "local") == 0x800704C7
    assert consumer.calls == ["SessionStart", *["ReceiveContents"] * (writes + 1), "SessionComplete"]
    assert f"Session complete: {w.ERROR_CANCELLED}" in consumer.printed
    # The clean-up's own CancelSession comes too late, and is told so.
    assert "ALREADY_COMPLETED" in consumer.printed[-1]
    server.wait_for(wdstransport.ClientLeft, reason="cancelled")


def test_content_that_is_not_there_is_the_samples_result(sample, tmp_path):
    assert sample().main("127.0.0.1", "images", "no such content", tmp_path / "local") == 0x80070002


def test_auth_ends_the_sample_with_a_code_and_a_clean_end(sample, tmp_path, refused):
    consumer = sample(auth=w.WDS_TRANSPORTCLIENT_AUTH)
    assert consumer.main("127.0.0.1", "images", "image", tmp_path / "local") == 0x80070032
    with refused(w.WDSTPC_E_NOT_INITIALIZED):
        w.Shutdown()


def test_a_registration_that_fails_leads_to_cancel_of_a_session_never_started(
    sample, tmp_path, monkeypatch, patience
):
    register = w.RegisterCallback

    def failing(session, callback_id, callback):
        if callback_id == w.WDS_TRANSPORTCLIENT_RECEIVE_CONTENTS:
            callback = None
        register(session, callback_id, callback)

    monkeypatch.setattr(w, "RegisterCallback", failing)
    consumer = sample()
    assert consumer.main("127.0.0.1", "images", "image", tmp_path / "local") == 0x80070057
    assert consumer.calls == ["SessionComplete"]


def test_the_samples_clean_up_order_with_a_session_that_still_runs(sample, server, tmp_path, monkeypatch):
    """The hazard of the original: its file is closed while callbacks may still come. They fail cleanly."""
    entered, closed = threading.Event(), threading.Event()

    def late(file, contents, offset):
        entered.set()
        assert closed.wait(30)
        return os.pwrite(file, contents, offset)  # EBADF

    def interrupted(session, timeout):
        assert entered.wait(30)
        raise w.WdsTransportClientError(w.ERROR_TIMEOUT, "somebody gave up waiting")

    monkeypatch.setattr(w, "WaitForCompletion", interrupted)
    cancel = w.CancelSession
    monkeypatch.setattr(w, "CancelSession", lambda session: (cancel(session), closed.set()))
    consumer = sample(pwrite=late)
    assert consumer.main("127.0.0.1", "images", "image", tmp_path / "local") == 0x800705B4
    assert consumer.calls == ["SessionStart", "ReceiveContents", "SessionComplete"]
    assert f"Session complete: {w.ERROR_CANCELLED}" in consumer.printed
