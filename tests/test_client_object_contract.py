"""IWTSProtocolConnection::Close, kept by the server's object for one client."""

import gc
import logging
import random
import weakref

import pytest
import trio

import wdstransport
from wdstransport import (
    ClientCallback,
    ClientJoined,
    ClientLeft,
    ClosedError,
    KickReason,
    RemovedError,
    StillConnectedError,
    UsageError,
)
from wdstransport.net.served_client import ClientRecords, ServedClient

IMAGE = random.Random(20261122).randbytes(200_123)


class Calls(ClientCallback):
    """Remembers every call."""

    def __init__(self):
        self.calls = []

    def disconnected(self, client, reason):
        self.calls.append(("disconnected", client, reason))

    def rejoined(self, client, newcomer):
        self.calls.append(("rejoined", client, newcomer))


class Site:
    """A server that waits for two clients, and clients for it."""

    def __init__(self, nursery, tmp_path):
        self.server = None
        self.events = []
        self.errors = []
        self.nursery = nursery
        self.scope = None
        self._path = tmp_path
        self._count = 0
        self._news = trio.Event()

    def tell(self, event):
        self.events.append(event)
        self._news.set()
        self._news = trio.Event()

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    async def join(self):
        """A new client's object."""
        count = len(self.of(ClientJoined)) + 1
        self._count += 1
        self.scope = trio.CancelScope()
        self.nursery.start_soon(self._receive, self._path / f"copy{self._count}", self.scope)
        with trio.fail_after(20):
            while len(self.of(ClientJoined)) < count:
                await self._news.wait()
        event = self.of(ClientJoined)[-1]
        return self.server.client(event.session_id, event.client_id)

    async def _receive(self, target, scope):
        with scope:
            try:
                await wdstransport.receive(
                    "big.img", target, server="127.0.0.1", interface="127.0.0.1", port=self.server.port
                )
            except wdstransport.TransportError as error:
                self.errors.append(error)


@pytest.fixture
async def site(tmp_path, nursery):
    root = tmp_path / "served"
    root.mkdir()
    (root / "big.img").write_bytes(IMAGE)
    site = Site(nursery, tmp_path)
    async with wdstransport.TransportServer(
        [wdstransport.DirectoryNamespace("images", root)],
        interface="127.0.0.1",
        port=0,
        min_clients=99,
        on_event=site.tell,
    ) as site.server:
        yield site


async def gone(client):
    with trio.fail_after(20):
        await client.wait_disconnected()


# ------------------------------------------------------------------ connected


async def test_connected_client_shows_who_it_is_and_how_it_does(site):
    client = await site.join()
    joined = site.of(ClientJoined)[0]
    assert client.connected
    assert not client.closed
    assert client.reason is None
    assert (client.name, client.address, client.mac) == (joined.name, joined.address, joined.mac)
    statistics = client.statistics()
    assert statistics.client_id == client.client_id
    assert statistics.state in ("active", "master")
    assert site.server.clients() == (client,)
    assert site.server.client(client.session_id, client.client_id) is client


async def test_unknown_client_is_a_usage_error(site):
    with pytest.raises(UsageError):
        site.server.client(1, 2)


async def test_disconnect_kicks_and_calls_back_once_it_has_left(site):
    client, calls = await site.join(), Calls()
    client.set_callback(calls)
    client.disconnect(KickReason.FALLBACK)
    assert client.connected, "it has been told, but has not left"
    client.disconnect()
    await gone(client)
    assert calls.calls == [("disconnected", client, "kicked")]
    assert not client.connected
    assert client.reason == "kicked"
    assert client.statistics().state == "left"
    assert [event.reason for event in site.of(ClientLeft)] == ["kicked"]
    with trio.fail_after(20):
        while not site.errors:
            await trio.lowlevel.checkpoint()
    assert isinstance(site.errors[0], RemovedError)
    assert site.errors[0].reason == KickReason.FALLBACK
    with pytest.raises(UsageError):
        client.disconnect()


async def test_client_that_leaves_by_itself_is_disconnected(site):
    client, calls = await site.join(), Calls()
    client.set_callback(calls)
    site.scope.cancel()
    await gone(client)
    assert calls.calls == [("disconnected", client, "cancelled")]


# ------------------------------------------------------------------ Close


async def test_close_while_connected_is_refused_and_changes_nothing(site):
    client, calls = await site.join(), Calls()
    client.set_callback(calls)
    with pytest.raises(StillConnectedError) as caught:
        client.close()
    assert isinstance(caught.value, UsageError)
    assert not client.closed
    client.disconnect()
    with pytest.raises(StillConnectedError):
        client.close()
    await gone(client)
    assert len(calls.calls) == 1


async def test_close_after_disconnection_frees_the_record(site):
    client = await site.join()
    client.disconnect()
    await gone(client)
    assert site.server.clients() == (client,)
    client.close()
    assert client.closed
    assert site.server.clients() == ()
    with pytest.raises(UsageError):
        site.server.client(client.session_id, client.client_id)


async def test_closed_object_refuses_every_call(site):
    client = await site.join()
    client.disconnect()
    await gone(client)
    client.close()
    for call in (client.close, client.statistics, client.disconnect, lambda: client.set_callback(Calls())):
        with pytest.raises(ClosedError):
            call()


async def test_nothing_is_called_for_a_closed_client_ever_again(site):
    first = await site.join()
    calls = Calls()
    first.set_callback(calls)
    first.disconnect()
    await gone(first)
    second = await site.join()
    assert calls.calls[1:] == [("rejoined", first, second)], "an open record is told"
    first.close()
    second.disconnect()
    await gone(second)
    await site.join()
    assert len(calls.calls) == 2, "a closed one is not"


async def test_close_lets_go_of_the_callback_object(site):
    client = await site.join()
    calls = Calls()
    watched = weakref.ref(calls)
    client.set_callback(calls)
    client.disconnect()
    await gone(client)
    client.close()
    del calls
    gc.collect()
    assert watched() is None


async def test_close_from_within_the_disconnected_callback_is_valid(site):
    class Closer(Calls):
        def disconnected(self, client, reason):
            super().disconnected(client, reason)
            client.close()

    client, calls = await site.join(), Closer()
    client.set_callback(calls)
    client.disconnect()
    await gone(client)
    assert client.closed
    await site.join()
    assert len(calls.calls) == 1


async def test_callback_can_be_taken_away(site):
    client, calls = await site.join(), Calls()
    client.set_callback(calls)
    client.set_callback(None)
    client.disconnect()
    await gone(client)
    assert calls.calls == []


async def test_callback_that_raises_is_logged_and_harms_nobody(site, caplog):
    class Broken(ClientCallback):
        def disconnected(self, client, reason):
            raise ValueError("broken on purpose")

    client = await site.join()
    client.set_callback(Broken())
    with caplog.at_level(logging.ERROR, "wdstransport.server"):
        client.disconnect()
        await gone(client)
    assert "broken on purpose" in caplog.text
    assert (await site.join()).connected


async def test_closing_the_server_disconnects_silently_and_leaves_objects_to_be_closed(site):
    client, calls = await site.join(), Calls()
    client.set_callback(calls)
    await site.server.close()
    assert not client.connected
    assert calls.calls == []
    client.close()
    assert site.server.clients() == ()


# ------------------------------------------------------------------ bounded


class NoSession:
    def kick(self, client_id, reason):
        return True

    def client_statistics(self, client_id):
        return None


def statistics(client_id):
    return wdstransport.ClientStatistics(
        client_id=client_id,
        name="pc",
        address=("192.0.2.1", 1),
        mac="",
        state="left",
        progress=0.0,
        rtt=0.0,
        loss=0.0,
        seconds_in_session=0.0,
    )


def test_records_of_disconnected_clients_are_bounded_and_the_oldest_is_closed():
    records = ClientRecords(limit=3)
    clients = []
    for number in range(5):
        joined = ClientJoined(
            seconds=0.0, session_id=7, client_id=number, name="pc", address=("192.0.2.1", 1), mac=""
        )
        client = ServedClient(joined, NoSession(), records)
        calls = Calls()
        client.set_callback(calls)
        records.joined(client)
        clients.append((client, calls))
    for number, (client, _) in enumerate(clients):
        records.left(client, "dead", statistics(number), silent=False)
    assert [client.closed for client, _ in clients] == [True, True, False, False, False]
    assert records.all() == tuple(client for client, _ in clients[2:])
    with pytest.raises(ClosedError):
        clients[0][0].statistics()
