"""A server's sessions: whose end makes room for a new one."""

import socket

import pytest
import trio
from loopback import HOST, Client, Events, MemoryNamespace

from wdstransport.content.namespaces import DirectoryNamespace, FilesNamespace
from wdstransport.errors import ClosedError
from wdstransport.net.interfaces import find_interface
from wdstransport.net.places import NoFreePortError, Place, SessionPlaces
from wdstransport.net.served_client import ClientRecords
from wdstransport.net.serving import SessionSettings
from wdstransport.net.session_table import SessionTable
from wdstransport.observe.events import SessionEnded
from wdstransport.wire.security import SecurityMode

pytestmark = pytest.mark.usefixtures("quick")

OTHER_HOST = "127.0.0.2"
NAMESPACE = MemoryNamespace(dict.fromkeys("abcd", b"x" * 100))


def place(address=HOST):
    return Place(find_interface("lo"), address)


class Table(SessionTable):
    """One with two ports at each address."""

    def __init__(self, nursery, low):
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
            max_sessions=64,
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
