"""IRDPSRAPISharingSession::Open and Close, kept by the server."""

import random
import threading

import pytest
import trio
import trio.testing

import wdstransport
from wdstransport import (
    ClientJoined,
    ClientLeft,
    RemovedError,
    ServerListening,
    SessionEnded,
    TransportServer,
)

IMAGE = random.Random(20261121).randbytes(200_123)


class Told:
    def __init__(self):
        self.events = []
        self._news = trio.Event()

    def __call__(self, event):
        self.events.append(event)
        self._news.set()
        self._news = trio.Event()

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, kind, count=1):
        with trio.fail_after(20):
            while len(self.of(kind)) < count:
                await self._news.wait()


@pytest.fixture
def namespace(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    (root / "big.img").write_bytes(IMAGE)
    return wdstransport.DirectoryNamespace("images", root)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def make(namespace, told):
    def make_server(**settings):
        return TransportServer(
            [namespace], interface="127.0.0.1", port=0, block_size=1400, on_event=told, **settings
        )

    return make_server


async def receive(server, target, **settings):
    with trio.fail_after(30):
        return await wdstransport.receive(
            "big.img", target, server="127.0.0.1", interface="127.0.0.1", port=server.port, **settings
        )


class Client:
    """One `receive` in a task, and how it ended."""

    def __init__(self, nursery, server, target):
        self.error = None
        self.result = None
        nursery.start_soon(self._run, server, target)

    async def _run(self, server, target):
        try:
            self.result = await receive(server, target)
        except wdstransport.TransportError as error:
            self.error = error


# ------------------------------------------------------------------ Open


async def test_clients_are_accepted_from_when_open_returns(make, told, tmp_path):
    async with trio.open_nursery() as nursery:
        server = make()
        await server.open(nursery)
        assert [type(event) for event in told.events] == [ServerListening]
        assert server.address[1] == server.port != 0
        assert (await receive(server, tmp_path / "copy")).size == len(IMAGE)
        await server.close()


async def test_second_open_is_refused(make):
    async with trio.open_nursery() as nursery:
        server = make()
        await server.open(nursery)
        with pytest.raises(wdstransport.UsageError):
            await server.open(nursery)
        await server.close()


async def test_open_that_failed_can_be_repeated(make, namespace):
    async with make() as first:
        second = TransportServer([namespace], interface="127.0.0.1", port=first.port)
        async with trio.open_nursery() as nursery:
            with pytest.raises(wdstransport.TransportError):
                await second.open(nursery)
            await first.close()
            await second.open(nursery)
            await second.close()


# ------------------------------------------------------------------ Close


async def test_close_tells_every_client_and_no_left_event_comes_of_it(make, told, tmp_path):
    async with trio.open_nursery() as nursery:
        server = make(min_clients=3)
        await server.open(nursery)
        clients = [Client(nursery, server, tmp_path / f"copy{number}") for number in range(2)]
        await told.until(ClientJoined, 2)
        await server.close()
        at_close = len(told.events)
    assert [type(client.error) for client in clients] == [RemovedError, RemovedError]
    assert told.of(ClientLeft) == []
    assert [event.reason for event in told.of(SessionEnded)] == ["closed"]
    assert len(told.events) == at_close, "events after close"


async def test_client_that_is_about_to_join_is_told_as_well(make, told, tmp_path):
    async with trio.open_nursery() as nursery:
        server = make(min_clients=2)
        await server.open(nursery)
        client = Client(nursery, server, tmp_path / "copy")
        with trio.fail_after(20):
            while (
                not server._sessions.current() or not server._sessions.current()[0].driver.session.clients()
            ):
                await trio.lowlevel.checkpoint()
        await server.close()
    assert isinstance(client.error, RemovedError)
    assert told.of(ClientLeft) == []


async def test_clients_that_left_before_close_were_told(make, told, tmp_path):
    async with make() as server:
        await receive(server, tmp_path / "copy")
        await server.wait_completed(1)
        await told.until(ClientLeft)
    assert [event.reason for event in told.of(ClientLeft)] == ["complete"]


async def test_close_stops_listening(make, tmp_path):
    async with make() as server:
        await server.close()
        with pytest.raises(wdstransport.NobodyAnsweredError):
            await receive(server, tmp_path / "copy", timeout=0.2)
        with pytest.raises(wdstransport.UsageError):
            _ = server.address


async def test_port_is_free_when_close_returns(make, namespace):
    async with make() as server:
        await server.close()
        async with TransportServer([namespace], interface="127.0.0.1", port=server.port):
            pass


async def test_closed_server_cannot_be_opened_again(make):
    async with trio.open_nursery() as nursery:
        server = make()
        await server.open(nursery)
        await server.close()
        with pytest.raises(wdstransport.ClosedError):
            await server.open(nursery)


async def test_server_that_was_closed_before_it_was_opened_cannot_be_opened(make):
    server = make()
    await server.close()
    async with trio.open_nursery() as nursery:
        with pytest.raises(wdstransport.ClosedError):
            await server.open(nursery)


async def test_close_while_open_is_under_way_wins(make, monkeypatch):
    looked, go_on = threading.Event(), threading.Event()

    def find_interface(name):
        looked.set()
        assert go_on.wait(20)
        return wdstransport.list_interfaces()[0]

    monkeypatch.setattr("wdstransport.server.find_interface", find_interface)
    server = make()

    async def open_it():
        with pytest.raises(wdstransport.ClosedError):
            await server.open(nursery)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_it)
        assert await trio.to_thread.run_sync(looked.wait, 20)
        await server.close()
        go_on.set()


async def test_second_close_does_nothing(make, told):
    async with make() as server:
        await server.close()
        before = list(told.events)
        await server.close()
        assert told.events == before


async def test_request_that_is_being_answered_opens_no_session_in_a_closed_server(told, namespace, tmp_path):
    asked, go_on = threading.Event(), threading.Event()

    class Slow:
        name = "images"

        def contents(self):
            return namespace.contents()

        def open(self, content):
            asked.set()
            assert go_on.wait(20)
            return namespace.open(content)

    async with trio.open_nursery() as nursery:
        server = TransportServer([Slow()], interface="127.0.0.1", port=0, on_event=told)
        await server.open(nursery)
        with trio.CancelScope() as asking:
            nursery.start_soon(_ask_in_vain, asking, server, tmp_path / "copy")
            assert await trio.to_thread.run_sync(asked.wait, 20)
            await server.close()
            go_on.set()
    assert told.of(wdstransport.SessionOpened) == []
    assert server.statistics().sessions == ()


async def _ask_in_vain(scope, server, target):
    with pytest.raises(wdstransport.NobodyAnsweredError):
        await receive(server, target, timeout=0.3)


async def test_leaving_the_block_closes(make, told, tmp_path):
    async with trio.open_nursery() as nursery:
        async with make(min_clients=2) as server:
            client = Client(nursery, server, tmp_path / "copy")
            await told.until(ClientJoined)
        assert told.of(ClientLeft) == []
    assert isinstance(client.error, RemovedError)


async def test_cancelling_the_block_tells_every_client_too(make, told, tmp_path):
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with make(min_clients=2) as server:
                client = Client(nursery, server, tmp_path / "copy")
                await told.until(ClientJoined)
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert told.of(ClientLeft) == []
    assert isinstance(client.error, RemovedError)


async def test_waiting_for_completions_ends_with_the_server(make):
    async with make() as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.wait_completed, 5)
        await trio.testing.wait_all_tasks_blocked()
        await server.close()


async def test_clients_of_a_session_that_ended_for_its_contents_sake_are_reported(make, told, tmp_path):
    """Not the caller's doing, so these left-events do come."""
    async with trio.open_nursery() as nursery, make(min_clients=2) as server:
        client = Client(nursery, server, tmp_path / "copy")
        await told.until(ClientJoined)
        (tmp_path / "served" / "big.img").write_bytes(IMAGE + b"more")
        other = Client(nursery, server, tmp_path / "other")
        await told.until(ClientLeft)
        await told.until(SessionEnded)
        await told.until(ClientJoined, 2)
    assert [event.reason for event in told.of(ClientLeft)] == ["kicked"]
    assert isinstance(client.error, RemovedError)
    assert isinstance(other.error, RemovedError)
