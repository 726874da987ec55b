"""The server's object for one client, after `IWTSProtocolConnection`, and the records of all of them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import trio

from wdstransport.errors import ClosedError, StillConnectedError, UsageError
from wdstransport.observe.events import Address, ClientJoined
from wdstransport.observe.statistics import ClientStatistics
from wdstransport.wire.transport import KickReason

__all__ = ["MAX_DISCONNECTED", "ClientCallback", "ClientRecords", "ClientSessionLink", "ServedClient"]

MAX_DISCONNECTED = 1024
"""How many records a server keeps of clients that have left and whose objects nobody closed. Beyond it
the one that left first is closed: a server that runs for a year cannot remember every client."""

_log = logging.getLogger("wdstransport.server")


class ClientCallback:
    """What a program wants to hear of one client; override what is of interest.

    The methods are called in the trio thread and must return soon. An exception is logged and does no harm.
    """

    def disconnected(self, client: ServedClient, reason: str) -> None:
        """The client is gone; `reason` is that of `ClientLeft`. `client.close()` is valid from here on.

        Not called when the server was closed: the caller did that.
        """

    def rejoined(self, client: ServedClient, newcomer: ServedClient) -> None:
        """The machine behind a disconnected client (same name, host and MAC address) has joined again.

        Args:
            client: the object this callback was set on; it stays disconnected.
            newcomer: the object of the new client, which has a ClientId and a callback of its own.
        """


class ClientSessionLink(Protocol):
    """What a client's object needs of its session."""

    def kick(self, client_id: int, reason: KickReason) -> bool:
        """Remove a client; whether there was such an active client."""

    def client_statistics(self, client_id: int) -> ClientStatistics | None:
        """A snapshot of one client."""


class ServedClient:
    """One client, from its joining a session until its record is closed; made by the server.

    A client that joins again, or a slower session after a DEMOTE, is another client with another object.

    Attributes:
        session_id: its session.
        client_id: its ClientId in it.
        name: what it calls itself; untrusted.
        address: where it sends from.
        mac: its MAC address, as it says.
        reason: why it was disconnected, as in `ClientLeft`; None while it is connected.
    """

    def __init__(self, joined: ClientJoined, link: ClientSessionLink, records: ClientRecords) -> None:
        """Made by the server when a client has joined."""
        self.session_id = joined.session_id
        self.client_id = joined.client_id
        self.name = joined.name
        self.address: Address = joined.address
        self.mac = joined.mac
        self.reason: str | None = None
        self._link: ClientSessionLink | None = link
        self._records: ClientRecords | None = records
        self._last: ClientStatistics | None = None
        self._callback: ClientCallback | None = None
        self._gone = trio.Event()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "connected" if self.connected else f"left: {self.reason}"
        return f"<ServedClient {self.client_id} of session {self.session_id}, {self.name!r}, {state}>"

    @property
    def connected(self) -> bool:
        """Whether it is in its session; true after `disconnect` until it has left or counts as dead."""
        return self._link is not None

    @property
    def closed(self) -> bool:
        """Whether its record is freed."""
        return self._records is None

    def statistics(self) -> ClientStatistics:
        """A snapshot; of a disconnected client the last one, with the state `left`.

        Raises:
            ClosedError: it was closed.
        """
        self._check_open("statistics()")
        if self._link is not None:
            now = self._link.client_statistics(self.client_id)
            if now is not None:
                return now
        assert self._last is not None
        return self._last

    def set_callback(self, callback: ClientCallback | None) -> None:
        """Have `callback` called for this client, in place of the one before; None for nobody.

        Raises:
            ClosedError: it was closed.
        """
        self._check_open("set_callback()")
        self._callback = callback

    def disconnect(self, reason: KickReason = KickReason.FAIL) -> None:
        """Remove it from its session (KICK, MS-WDSMT 3.1.5.6); returns at once.

        It is disconnected once it has answered, or when it has been silent for a minute; see
        `wait_disconnected`. Nothing happens if it was told to leave before.

        Raises:
            ClosedError: it was closed.
            UsageError: it is disconnected already.
        """
        self._check_open("disconnect()")
        if self._link is None:
            raise UsageError(f"disconnect(): {self!r} is not connected; call close() to free its record")
        self._link.kick(self.client_id, reason)

    async def wait_disconnected(self) -> None:
        """Wait until it is disconnected, whoever the cause."""
        await self._gone.wait()

    def close(self) -> None:
        """Free the record of a disconnected client and drop its callback: nothing is called for it any more.

        Raises:
            StillConnectedError: it is connected; `disconnect` it and wait first.
            ClosedError: it was closed before.
        """
        self._check_open("close()")
        if self._link is not None:
            raise StillConnectedError(
                f"close(): {self!r} cannot be closed before it is disconnected; call disconnect() and "
                "await wait_disconnected() first"
            )
        assert self._records is not None
        self._records.forget(self)
        self._free()

    def _check_open(self, call: str) -> None:
        if self._records is None:
            raise ClosedError(f"{call}: {self!r} was closed; its record is gone")

    def _free(self) -> None:
        self._records = self._last = self._callback = None

    def _left(self, reason: str, last: ClientStatistics, silent: bool) -> None:
        self.reason, self._last, self._link = reason, last, None
        self._gone.set()
        if not silent:
            self._call(lambda callback: callback.disconnected(self, reason))

    def _rejoined(self, newcomer: ServedClient) -> None:
        self._call(lambda callback: callback.rejoined(self, newcomer))

    def _call(self, what: Callable[[ClientCallback], None]) -> None:
        callback = self._callback
        if callback is None:
            return
        try:
            what(callback)
        except Exception:
            _log.exception("the callback of %r raised an error", self)


_Key = tuple[int, int]
"""Session id and ClientId."""


class ClientRecords:
    """Every client of a server: the connected ones, and a bounded number of those that have left.

    Attributes:
        connected: by session id and ClientId, in order of joining.
        disconnected: those that left and were not closed, the one that left first in front.
    """

    def __init__(self, limit: int = MAX_DISCONNECTED) -> None:
        self.connected: dict[_Key, ServedClient] = {}
        self.disconnected: OrderedDict[_Key, ServedClient] = OrderedDict()
        self._limit = limit

    def all(self) -> tuple[ServedClient, ...]:
        """The disconnected ones, then the connected ones."""
        return (*self.disconnected.values(), *self.connected.values())

    def find(self, session_id: int, client_id: int) -> ServedClient:
        """One client.

        Raises:
            UsageError: no such client, or closed.
        """
        key = (session_id, client_id)
        client = self.connected.get(key) or self.disconnected.get(key)
        if client is None:
            raise UsageError(f"session {session_id} has no client {client_id}, or its record was closed")
        return client

    def session_ids(self) -> set[int]:
        """Sessions that are spoken of; a new one must have another id."""
        return {session_id for session_id, _ in (*self.connected, *self.disconnected)}

    def joined(self, newcomer: ServedClient) -> None:
        """Add a client, and tell the callbacks of its earlier selves."""
        key = (newcomer.session_id, newcomer.client_id)
        stale = self.disconnected.pop(key, None)  # ClientId is 32 bits wide and comes round again
        if stale is not None:
            stale._free()
        self.connected[key] = newcomer
        machine = _machine(newcomer)
        for client in [each for each in self.disconnected.values() if _machine(each) == machine]:
            client._rejoined(newcomer)

    def left(self, client: ServedClient, reason: str, last: ClientStatistics, *, silent: bool) -> None:
        """A client is gone; its callback is told unless `silent`."""
        key = (client.session_id, client.client_id)
        del self.connected[key]
        self.disconnected[key] = client
        client._left(reason, last, silent)
        while len(self.disconnected) > self._limit:
            _, oldest = self.disconnected.popitem(last=False)
            oldest._free()

    def forget(self, client: ServedClient) -> None:
        """A disconnected client was closed."""
        self.disconnected.pop((client.session_id, client.client_id), None)


def _machine(client: ServedClient) -> tuple[str, str, str]:
    return client.name, client.address[0], client.mac
