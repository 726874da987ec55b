"""IRDPSRAPISharingSession::Open and Close, kept by the server."""

import random
import socket
import threading
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from loopback import needs_ipv6

import wdstransport
from wdstransport import (
    ClientJoined,
    ClientLeft,
    RemovedError,
    ServerListening,
    SessionEnded,
    TransportServer,
)
from wdstransport.net.initiation import InitiationListener
from wdstransport.wire.initiation import ErrorReply, Request, decode, encode

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


@contextmanager
def udp(host):
    """A UDP socket on a local address."""
    sock = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock._sock.bind((host, 0))
        yield sock


async def refusal(host, port):
    """What a request to an address is refused with: there is no such namespace."""
    with udp(host) as sock, trio.fail_after(20):
        await sock.sendto(encode(Request("nowhere", "nothing", bytes(6))), (host, port))
        return decode(await sock.recv(4096))


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


async def test_block_whose_port_is_taken_is_entered_when_it_is_free(make, namespace):
    async with make() as first:
        second = TransportServer([namespace], interface="127.0.0.1", port=first.port)
        with pytest.raises(wdstransport.TransportError, match="port"):
            await second.__aenter__()
        await first.close()
        async with second:
            assert second.port == first.port


async def test_failed_opening_leaves_no_port_taken(namespace):
    with udp("127.0.0.1") as probe:
        _, port = probe.getsockname()
    server = TransportServer([namespace], interface="127.0.0.1", port=port, group="ff15::1")
    async with trio.open_nursery() as nursery:
        with pytest.raises(wdstransport.UsageError):
            await server.open(nursery)
    async with TransportServer([namespace], interface="127.0.0.1", port=port) as another:
        assert another.port == port


@pytest.mark.parametrize("interface", [None, "lo", "127.0.0.1"])
async def test_listening_is_told_with_its_address_interface_and_namespaces(
    told, namespace, tmp_path, interface
):
    more = wdstransport.DirectoryNamespace("more", tmp_path)
    async with TransportServer([namespace, more], interface=interface, port=0, on_event=told) as server:
        (listening,) = told.of(ServerListening)
        assert listening.address == server.address
        assert listening.address == ("127.0.0.1" if interface else "0.0.0.0", server.port)
        assert listening.namespaces == ("images", "more")
        assert listening.interface.startswith("lo (127.0.0.1" if interface else "all")


@needs_ipv6
@pytest.mark.parametrize("interface", [None, "lo"])
async def test_both_families_are_answered_on_one_port_and_counted_together(namespace, interface):
    async with TransportServer([namespace], interface=interface, port=0) as server:
        for host in ("127.0.0.1", "::1"):
            assert await refusal(host, server.port) == ErrorReply(3)
            with udp(host) as stranger:
                await stranger.sendto(b"garbage", (host, server.port))
        with trio.fail_after(20):
            while sum(server.statistics().dropped.values()) < 2:
                await trio.lowlevel.checkpoint()
        assert server.statistics().requests == 2


@pytest.fixture
def without(monkeypatch):
    """Makes a family of addresses one that cannot be listened on."""

    def forbid(family):
        def listen(address, port, asked):
            if asked == family:
                raise wdstransport.TransportError("no such family here")
            return InitiationListener(address, port, asked)

        monkeypatch.setattr("wdstransport.server.InitiationListener", listen)

    return forbid


async def test_machine_without_ipv6_serves_ipv4(without, namespace):
    without(socket.AF_INET6)
    async with TransportServer([namespace], port=0) as server:
        assert await refusal("127.0.0.1", server.port) == ErrorReply(3)


@pytest.mark.parametrize(
    ("family", "interface"), [(socket.AF_INET, None), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"]
)
async def test_family_that_was_asked_for_and_cannot_be_listened_on_fails_the_opening(
    without, namespace, family, interface
):
    without(family)
    server = TransportServer([namespace], interface=interface, port=0)
    async with trio.open_nursery() as nursery:
        with pytest.raises(wdstransport.TransportError, match="no such family"):
            await server.open(nursery)


async def test_interface_without_an_address_is_a_usage_error(namespace, monkeypatch):
    bare = wdstransport.Interface("bare0", 9, 1500, bytes(6), (), (), True, True)
    monkeypatch.setattr("wdstransport.server.find_interface", lambda name: bare)
    server = TransportServer([namespace], interface="bare0", port=0)
    async with trio.open_nursery() as nursery:
        with pytest.raises(wdstransport.UsageError, match=r"bare0.*no address"):
            await server.open(nursery)


async def test_server_that_is_not_open_yet_has_no_sessions_to_show(make):
    shown = make().statistics()
    assert (shown.sessions, shown.requests, shown.refused, shown.completed) == ((), 0, 0, 0)
    assert shown.dropped == {}


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


class Looking:
    """Looking for the interface, which takes until the test lets it go on."""

    def __init__(self):
        self._looked, self._go_on = threading.Event(), threading.Event()
        self.go_on = self._go_on.set

    def __call__(self, name):
        self._looked.set()
        assert self._go_on.wait(20)
        return wdstransport.list_interfaces()[0]

    async def begun(self):
        assert await trio.to_thread.run_sync(self._looked.wait, 20)


@pytest.fixture
def looking(monkeypatch):
    looking = Looking()
    monkeypatch.setattr("wdstransport.server.find_interface", looking)
    return looking


async def test_close_while_open_is_under_way_wins(make, looking):
    server = make()

    async def open_it():
        with pytest.raises(wdstransport.ClosedError):
            await server.open(nursery)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_it)
        await looking.begun()
        await server.close()
        looking.go_on()
    async with trio.open_nursery() as nursery:
        with pytest.raises(wdstransport.ClosedError):
            await server.open(nursery)


async def test_second_open_while_the_first_is_under_way_is_refused_and_does_not_disturb_it(
    make, told, looking
):
    server = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.open, nursery)
        await looking.begun()
        with pytest.raises(wdstransport.UsageError, match="open already"):
            await server.open(nursery)
        looking.go_on()
        await told.until(ServerListening)
        await server.close()


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


async def test_error_in_the_block_comes_out_of_it_alone(make):
    async def fail():
        async with make():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


async def test_leaving_the_block_does_not_wait_for_ever_for_sessions_that_do_not_end(
    make, monkeypatch, autojump_clock
):
    async def close(table, now):
        await trio.sleep_forever()

    monkeypatch.setattr("wdstransport.net.session_table.SessionTable.close", close)
    async with make():
        begun = trio.current_time()
    assert trio.current_time() - begun <= 2


async def test_leaving_the_block_ends_what_a_request_still_waits_for(make, monkeypatch):
    asked = trio.Event()

    async def session(table, *arguments):
        asked.set()
        await trio.sleep_forever()

    monkeypatch.setattr("wdstransport.net.session_table.SessionTable.session", session)
    with trio.fail_after(20):
        async with make() as server:
            with udp("127.0.0.1") as sock:
                await sock.sendto(encode(Request("images", "big.img", bytes(6))), server.address)
                await asked.wait()


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
