"""A real server on loopback in a thread of its own, and consumers that record what they are told."""

import functools
import os
import threading

import pytest
import trio
from loopback import MemoryNamespace

from wdstransport import TransportServer, wdstci

PATIENCE = 30
"""Seconds until a test that hangs is called failed; no test takes a time like it."""


class Server:
    """A TransportServer in a thread; its events are kept, and can be waited for."""

    def __init__(self, **options):
        self.contents = {"image": os.urandom(400_000), "small": os.urandom(5_000), "empty": b""}
        self.events = []
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._options = options
        self.namespace = MemoryNamespace(self.contents)
        self.contents = self.namespace.files
        self._thread = threading.Thread(target=lambda: trio.run(self._main), name="server")
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    async def _main(self):
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        options = {"interface": "127.0.0.1", "port": 0, "on_event": self._on_event, **self._options}
        async with TransportServer([self.namespace], **options) as self.transport:
            self.port = self.transport.port
            self._ready.set()
            await self._stop.wait()

    def _on_event(self, event):
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, kind, count=1, **fields):
        """The `count`-th event of a kind with these fields."""

        def found():
            return [
                event
                for event in self.events
                if isinstance(event, kind) and all(getattr(event, k) == v for k, v in fields.items())
            ]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, PATIENCE), self.events
            return found()[count - 1]

    def call(self, function, *arguments):
        """Run something in the server's thread."""
        return trio.from_thread.run_sync(functools.partial(function, *arguments), trio_token=self._token)

    def close(self):
        if self._thread.is_alive():
            self._token.run_sync_soon(self._stop.set)
            self._thread.join()


@pytest.fixture
def make_server(quick, monkeypatch):
    """Servers with options of their own, that answer however often one address asks."""
    monkeypatch.setattr("wdstransport.net.initiation.RequestLimiter.admits", lambda *arguments: True)
    servers = []

    def make(**options):
        servers.append(Server(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def server(make_server):
    return make_server()


def own_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("wdstci")]


def shut_down():
    """Call Shutdown until there is nothing left to shut down."""
    code = None
    while code != wdstci.WDSTPC_E_NOT_INITIALIZED:
        try:
            wdstci.Shutdown()
        except wdstci.WdsTransportClientError as error:
            code = error.winerror


@pytest.fixture(name="shut_down")
def shut_down_completely():
    return shut_down


@pytest.fixture
def library():
    """The library, initialised; it ends as it should whatever the test did."""
    wdstci.Initialize()
    yield wdstci
    shut_down()
    assert not own_threads()


class Gate:
    """A place where a callback waits until the test lets it go on."""

    def __init__(self):
        self._entered = threading.Event()
        self._opened = threading.Event()

    def pass_through(self):
        self._entered.set()
        assert self._opened.wait(PATIENCE)

    def wait_entered(self):
        assert self._entered.wait(PATIENCE)
        return self

    def open(self):
        self._opened.set()


class Consumer:
    """A session with callbacks that keep a record.

    `in_start`, `in_contents`, `in_complete`: functions of the consumer and the callback's own arguments,
    called in that callback; without `in_contents` the block is stored and completed.
    """

    def __init__(
        self,
        server,
        content="small",
        *,
        cache=0,
        caller_data="caller data",
        register=True,
        in_start=None,
        in_contents=None,
        in_complete=None,
        **options,
    ):
        self.calls = []
        self.threads = set()
        self.content = server.contents.get(content, b"")
        self.data = bytearray(len(self.content))
        self.caller_data = caller_data
        self.ended = threading.Event()
        self.in_start, self.in_contents, self.in_complete = in_start, in_contents, in_complete
        request = wdstci.WDS_TRANSPORTCLIENT_REQUEST(
            pwszServer="127.0.0.1", pwszNamespace="images", pwszObjectName=content, ulCacheSize=cache
        )
        self.handle = wdstci.InitializeSession(
            request, caller_data, **{"interface": "127.0.0.1", "port": server.port, **options}
        )
        if register:
            self.register()

    def register(self):
        wdstci.RegisterCallback(self.handle, wdstci.WDS_TRANSPORTCLIENT_SESSION_START, self._start)
        wdstci.RegisterCallback(self.handle, wdstci.WDS_TRANSPORTCLIENT_RECEIVE_CONTENTS, self._contents)
        wdstci.RegisterCallback(self.handle, wdstci.WDS_TRANSPORTCLIENT_SESSION_COMPLETE, self._complete)

    def _note(self, name, handle, data, *arguments):
        assert not self.ended.is_set(), f"{name} after SessionComplete"
        assert handle is self.handle
        assert data is self.caller_data
        self.calls.append((name, *arguments))
        self.threads.add(threading.current_thread())

    def _start(self, handle, data, size):
        self._note("SessionStart", handle, data, size)
        if self.in_start is not None:
            self.in_start(self, size)

    def _contents(self, handle, data, view, size, offset):
        self._note("ReceiveContents", handle, data, size, offset)
        assert len(view) == size
        if self.in_contents is not None:
            self.in_contents(self, view, size, offset)
        else:
            self.take(view, size, offset)

    def _complete(self, handle, data, error):
        self._note("SessionComplete", handle, data, error)
        try:
            if self.in_complete is not None:
                self.in_complete(self, error)
        finally:
            self.ended.set()

    def take(self, view, size, offset):
        self.data[offset : offset + size] = view
        wdstci.CompleteReceive(self.handle, size, offset)

    def start(self):
        wdstci.StartSession(self.handle)
        return self

    def finish(self):
        """Wait for the end, with or without a handle."""
        assert self.ended.wait(PATIENCE), self.calls[-3:]
        return self

    def run(self):
        """From the start until SessionComplete has returned."""
        self.start()
        assert wdstci.WaitForCompletion(self.handle, PATIENCE * 1000), self.calls[-3:]
        return self

    @property
    def names(self):
        return [name for name, *_ in self.calls]

    @property
    def blocks(self):
        return [tuple(arguments) for name, *arguments in self.calls if name == "ReceiveContents"]

    @property
    def outcome(self):
        """What SessionComplete was told; it was told once, and last."""
        assert self.names.count("SessionComplete") == 1
        assert self.names[-1] == "SessionComplete"
        return self.calls[-1][1]

    def assert_whole(self):
        assert self.outcome == wdstci.ERROR_SUCCESS
        assert self.data == self.content


@pytest.fixture
def consume(library, server):
    """Consumers of the test's server."""
    return functools.partial(Consumer, server)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def new_gate():
    return Gate


@pytest.fixture
def waited_for():
    """Whether some thread waits for the end of a consumer's session."""
    return lambda consumer: len(consumer.handle._session.done._cond._waiters)


@pytest.fixture
def refused():
    """A context in which a call must be refused with a code; its message names the call."""

    class Refused:
        def __init__(self, code, call=None):
            self.code, self.call = code, call

        def __enter__(self):
            return self

        def __exit__(self, kind, error, trace):
            assert kind is not None, "the call was accepted"
            if not isinstance(error, wdstci.WdsTransportClientError):
                return False
            assert error.winerror == self.code, str(error)
            if self.call is not None:
                assert str(error).startswith(f"{self.call}:"), str(error)
            return True

    return Refused


@pytest.fixture
def patience():
    return PATIENCE
