"""A server's sessions: whose end makes room for a new one."""

import dataclasses
import random
import socket

import pytest
import trio
from loopback import HOST, PATIENCE, Client, Events, MemoryNamespace
from trio.testing import wait_all_tasks_blocked

from wdstransport.content.namespaces import DirectoryNamespace, FilesNamespace
from wdstransport.errors import ClosedError, UsageError
from wdstransport.net.interfaces import find_interface
from wdstransport.net.pacing import SO_MAX_PACING_RATE
from wdstransport.net.places import NoFreePortError, Place, SessionPlaces
from wdstransport.net.served_client import ClientRecords
from wdstransport.net.serving import SessionSettings
from wdstransport.net.session_table import SessionTable
from wdstransport.observe.events import ClientJoined, ClientLeft, SessionEnded, SessionOpened, Warned
from wdstransport.wire.security import SecurityMode
from wdstransport.wire.transport import Leave, LeaveReason

pytestmark = pytest.mark.usefixtures("quick")

OTHER_HOST = "127.0.0.2"
NAMESPACE = MemoryNamespace(dict.fromkeys("abcd", b"x" * 100))


def place(address=HOST):
    return Place(find_interface("lo"), address)


class Table(SessionTable):
    """One with two ports at each address."""

    def __init__(self, nursery, low, max_sessions=64):
        self.events = Events()
        super().__init__(
            places=SessionPlaces(None, (low, low + 1)),
            settings=SessionSettings(
                security=SecurityMode.CHECKSUM,
                block_size=None,
                rate=None,
                ttl=1,
                min_clients=1,
                max_wait=None,
            ),
            max_sessions=max_sessions,
            clients=ClientRecords(),
            tell=self.events,
            completed=lambda: None,
        )
        self.open(nursery, trio.current_time())

    async def find_or_open(self, content, address=HOST):
        return await self.session(NAMESPACE, content, place(address))

    def contents(self):
        return [(served.content, served.place.address) for served in self.current()]


def two_free_ports():
    """The lower of two UDP ports in a row that nobody holds at the moment."""
    for low in range(42_000, 60_000, 10):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
        ):
            try:
                one.bind(("0.0.0.0", low))
                two.bind(("0.0.0.0", low + 1))
            except OSError:
                continue
            return low
    raise AssertionError("no free ports")


@pytest.fixture
async def table(nursery):
    made = Table(nursery, two_free_ports())
    yield made
    await made.close(trio.current_time())


@pytest.fixture
async def joined():
    """Clients of sessions: `await joined(served)`."""
    clients = []

    async def join(served):
        client = Client()
        client.offer = served.offer()
        client.session_id = client.offer.session_id
        await client.join()
        await client.confirm()
        clients.append(client)
        return client

    yield join
    for client in clients:
        await client.say(Leave(client.client_id, LeaveReason.CANCELLED))
        client.close()


@pytest.fixture
async def narrow(nursery):
    """A table with room for one session."""
    made = Table(nursery, two_free_ports(), max_sessions=1)
    yield made
    await made.close(trio.current_time())


class Dice(random.Random):
    """Falls as it is told first."""

    def __init__(self, *told):
        super().__init__(1)
        self.told = list(told)

    def getrandbits(self, bits):
        return self.told.pop(0) if self.told else super().getrandbits(bits)


async def test_a_session_that_opens_is_told_of_with_what_makes_it_this_one(table):
    served = await table.find_or_open("a")
    (opened,) = table.events.of(SessionOpened)
    offer = served.offer()
    assert (opened.session_id, opened.namespace, opened.content) == (offer.session_id, "images", "a")
    assert (opened.size, opened.block_size, opened.total_blocks) == (100, offer.block_size, 1)
    assert opened.group == (socket.inet_ntoa(offer.multicast_address), offer.multicast_port)
    assert opened.address == (HOST, offer.server_port)
    assert opened.interface == str(served.place.interface)
    assert 0 <= opened.seconds < PATIENCE
    await table.find_or_open("a")
    assert len(table.events.of(SessionOpened)) == 1


async def test_what_is_wrong_with_a_sessions_socket_is_told(table, monkeypatch):
    open_socket = SessionPlaces.open_socket
    monkeypatch.setattr(
        SessionPlaces,
        "open_socket",
        lambda *where: dataclasses.replace(open_socket(*where), warnings=("small", "slow")),
    )
    await table.find_or_open("a")
    assert [event.message for event in table.events.of(Warned)] == ["small", "slow"]


async def test_requests_at_once_for_one_content_are_for_one_session(table):
    found = []

    async def ask():
        found.append(await table.find_or_open("a"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert found == [found[0]] * 3
    assert len(table.events.of(SessionOpened)) == 1


@pytest.mark.parametrize(
    "other",
    [
        (MemoryNamespace({"a": b"y"}, "others"), "a", HOST, 0),
        (NAMESPACE, "b", HOST, 0),
        (NAMESPACE, "a", OTHER_HOST, 0),
        (NAMESPACE, "a", HOST, 1),
    ],
    ids=["namespace", "content", "address", "level"],
)
async def test_a_session_is_for_one_namespace_content_address_and_level(table, other):
    served = await table.find_or_open("a")
    namespace, content, address, level = other
    another = await table.session(namespace, content, place(address), level)
    assert another is not served
    assert await table.session(namespace, content, place(address), level) is another
    assert await table.find_or_open("a") is served
    assert table.find(served.offer().session_id) == (("images", "a", HOST, 0), served)
    assert table.find(another.offer().session_id) == ((namespace.name, content, address, level), another)


async def test_a_session_that_is_not_there_is_not_found(table):
    served = await table.find_or_open("a")
    with pytest.raises(UsageError, match="no session"):
        table.find(served.offer().session_id ^ 1)


async def test_a_session_id_is_neither_nothing_nor_another_sessions(table):
    table._rng = Dice(0, 7)
    assert (await table.find_or_open("a")).offer().session_id == 7
    table._rng = Dice(7, 8)
    assert (await table.find_or_open("b")).offer().session_id == 8


async def test_the_id_of_an_ended_session_is_not_used_while_its_clients_are_spoken_of(table, joined):
    table._rng = Dice(7)
    first = await table.find_or_open("a")
    client = await joined(first)
    await table.events.wait(ClientJoined)
    await client.say(Leave(client.client_id, LeaveReason.CANCELLED))
    await table.events.wait(ClientLeft)
    first.end(trio.current_time())
    await first.ended.wait()
    table._rng = Dice(7, 8)
    assert (await table.find_or_open("a")).offer().session_id == 8


async def test_a_slower_session_has_its_rate(table):
    served = await table.session(NAMESPACE, "a", place(), 1, 125_000.0)
    assert served.driver._sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE) == 125_000


async def test_a_full_table_ends_an_unused_session_for_a_new_one(narrow):
    first = await narrow.find_or_open("a")
    assert await narrow.find_or_open("a") is first
    second = await narrow.find_or_open("b")
    assert second.content == "b"
    assert narrow.current() == [second]
    await first.ended.wait()


async def test_a_full_table_whose_sessions_are_used_opens_none(narrow, joined):
    served = await narrow.find_or_open("a")
    await joined(served)
    for _ in range(2):
        assert await narrow.find_or_open("b") is None
    assert narrow.current() == [served]


async def test_a_full_table_that_closes_does_not_say_that_it_is_full(narrow, joined):
    client = await joined(await narrow.find_or_open("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(narrow.close, trio.current_time())
        await wait_all_tasks_blocked()
        with pytest.raises(ClosedError):
            await narrow.find_or_open("b")
        await client.say(Leave(client.client_id, LeaveReason.CANCELLED))


async def test_a_session_that_has_ended_is_not_offered_any_more(table):
    first = await table.find_or_open("a")
    first.end(trio.current_time())
    await first.ended.wait()
    assert table.current() == []
    second = await table.find_or_open("a")
    assert second is not first
    assert table.current() == [second]


async def test_a_session_that_takes_the_place_of_one_that_is_ending_outlasts_it(table, joined):
    first = await table.find_or_open("a")
    client = await joined(first)
    first.end(trio.current_time())
    second = await table.find_or_open("a")
    assert second is not first
    await client.say(Leave(client.client_id, LeaveReason.CANCELLED))
    await first.ended.wait()
    await wait_all_tasks_blocked()
    assert table.current() == [second]


async def test_closing_returns_when_every_session_is_over(table, joined):
    sessions = [await table.find_or_open(name) for name in "ab"]
    client = await joined(sessions[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.say, Leave(client.client_id, LeaveReason.CANCELLED))
        await table.close(trio.current_time())
        assert [served.ended.is_set() for served in sessions] == [True, True]


async def test_without_a_free_port_a_session_that_ends_anyway_is_waited_for(table, joined):
    first, _ = [await table.find_or_open(name) for name in "ab"]
    await joined(first)
    first.driver.close(trio.current_time(), patience=0.1)
    first.end(trio.current_time())
    await table.find_or_open("c")
    assert table.contents() == [("b", HOST), ("c", HOST)]


async def test_without_a_free_port_a_session_that_ends_elsewhere_is_not_waited_for(table, joined):
    elsewhere = await table.find_or_open("a", OTHER_HOST)
    await joined(elsewhere)
    elsewhere.driver.close(trio.current_time(), patience=PATIENCE)
    elsewhere.end(trio.current_time())
    for name in "bcd":
        await table.find_or_open(name)
    assert not elsewhere.ended.is_set()
    assert table.contents() == [("a", OTHER_HOST), ("c", HOST), ("d", HOST)]


async def test_without_a_free_port_the_oldest_unused_session_ends_for_a_new_one(table):
    first, _, third = [await table.find_or_open(name) for name in "abc"]
    assert table.contents() == [("b", HOST), ("c", HOST)]
    assert first.ended.is_set()
    assert third.address == first.address


async def test_a_session_at_another_address_does_not_end_for_a_port_here(table):
    await table.find_or_open("a", OTHER_HOST)
    for name in "bcd":
        await table.find_or_open(name)
    assert table.contents() == [("a", OTHER_HOST), ("c", HOST), ("d", HOST)]


async def test_requests_at_once_each_get_a_port_as_long_as_sessions_are_unused(table):
    async with trio.open_nursery() as nursery:
        for name in "abcd":
            nursery.start_soon(table.find_or_open, name)
    assert len(table.contents()) == 2
    await table.events.wait(SessionEnded, 2)


async def test_without_a_free_port_a_session_that_somebody_is_joining_does_not_end(table):
    client = Client()
    served = await table.find_or_open("a")
    client.offer = served.offer()
    client.session_id = client.offer.session_id
    await client.join()
    await table.find_or_open("b")
    await table.find_or_open("c")
    assert table.contents() == [("a", HOST), ("c", HOST)]
    client.close()


async def test_ports_that_others_hold_end_no_wait_and_no_session_elsewhere(table):
    await table.find_or_open("a", OTHER_HOST)
    held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    low = min(served.address[1] for served in table.current())
    for offset, sock in enumerate(held):
        sock.bind((HOST, low + offset))
    with pytest.raises(NoFreePortError, match="--session-ports"):
        await table.find_or_open("b")
    assert table.contents() == [("a", OTHER_HOST)]
    with pytest.raises(ClosedError):
        NAMESPACE.opened[-1].check()
    for sock in held:
        sock.close()


async def test_a_port_that_is_not_freed_in_time_is_not_waited_for_any_longer(table, monkeypatch):
    monkeypatch.setattr("wdstransport.net.session_table._LEAVING", 0.0)
    for name in "ab":
        await table.find_or_open(name)
    with pytest.raises(NoFreePortError):
        await table.find_or_open("c")


async def test_a_table_that_closes_while_a_port_is_waited_for_opens_nothing(table):
    for name in "ab":
        await table.find_or_open(name)
    raised = []

    async def ask():
        try:
            await table.find_or_open("c")
        except ClosedError as error:
            raised.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await table.events.wait(SessionEnded)
        await table.close(trio.current_time())
    assert len(raised) == 1
    assert table.contents() == []


async def test_a_file_asked_for_with_backslashes_is_delivered_by_the_session_for_slashes(table, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tiny.bin").write_bytes(b"tiny")
    namespace = DirectoryNamespace("images", tmp_path)
    one, other = [await table.session(namespace, name, place()) for name in ("sub\\tiny.bin", "sub/tiny.bin")]
    assert one is other
    assert one.content == "sub/tiny.bin"


async def test_a_backslash_in_the_name_of_a_listed_file_is_left_as_it_is(table, tmp_path):
    (tmp_path / "a\\b").write_bytes(b"tiny")
    namespace = FilesNamespace("images", [tmp_path / "a\\b"])
    served = await table.session(namespace, "a\\b", place())
    assert served.content == "a\\b"
