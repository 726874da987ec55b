"""The sessions of a server: found or opened for a request, ended when there are too many, closed together."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable

import trio

from wdstransport.content.namespaces import Namespace, SpellingNamespace
from wdstransport.content.sources import Source
from wdstransport.errors import ClosedError, UsageError
from wdstransport.net.places import NoFreePortError, Place, SessionPlaces
from wdstransport.net.served_client import ClientRecords
from wdstransport.net.serving import ServedSession, SessionSettings, open_session
from wdstransport.observe.events import ServerEvent, SessionOpened, Warned

__all__ = ["SessionKey", "SessionTable"]

SessionKey = tuple[str, str, str, int]
"""Namespace, content, local address and level; level 1 is the slower session of DEMOTE."""
_LEAVING = 2.0
"""Seconds to wait for the port of a session that ends: as long as it may tell its clients, and some more."""


class SessionTable:
    """What a server delivers at the moment."""

    def __init__(
        self,
        *,
        places: SessionPlaces,
        settings: SessionSettings,
        max_sessions: int,
        clients: ClientRecords,
        tell: Callable[[ServerEvent], None],
        completed: Callable[[], None],
    ) -> None:
        self._places = places
        self._settings = settings
        self._max_sessions = max_sessions
        self._clients = clients
        self._tell = tell
        self._completed = completed
        self._current: dict[SessionKey, ServedSession] = {}
        self._running: set[ServedSession] = set()
        self._opening: dict[SessionKey, trio.Event] = {}
        self._rng = random.Random(secrets.randbits(128))
        self._nursery: trio.Nursery | None = None
        self._start = 0.0
        self._closed = False

    def open(self, nursery: trio.Nursery, start: float) -> None:
        """Say where sessions run, and from when their events count."""
        self._nursery = nursery
        self._start = start

    async def close(self, now: float) -> None:
        """Disconnect every client, and wait until every session is over; none is opened any more."""
        self._closed = True
        running = list(self._running)
        for served in running:
            served.close(now)
        for served in running:
            await served.ended.wait()

    def current(self) -> list[ServedSession]:
        """The sessions that clients can join, the oldest first."""
        return list(self._current.values())

    def find(self, session_id: int) -> tuple[SessionKey, ServedSession]:
        """One session.

        Raises:
            UsageError: no such session.
        """
        for key, served in self._current.items():
            if served.driver.session.session_id == session_id:
                return key, served
        raise UsageError(f"there is no session {session_id}")

    async def session(
        self, namespace: Namespace, content: str, place: Place, level: int = 0, rate: float | None = None
    ) -> ServedSession | None:
        """The session that delivers a content at a place; a new one if there is none. None when full.

        Raises:
            ClosedError: the server was closed, perhaps meanwhile.
            ContentError: there is no such content, or it cannot be read.
            NoFreePortError: every port of the range is taken, and no session that nobody uses holds one.
            TransportError: the session has no place on this machine.
        """
        if isinstance(namespace, SpellingNamespace):
            content = namespace.canonical(content)
        key = (namespace.name, content, place.address, level)
        while key in self._opening:
            await self._opening[key].wait()
        self._opening[key] = trio.Event()
        try:
            served = self._current.get(key)
            if served is not None and await served.is_current():
                return served
            if not self._closed and len(self._current) >= self._max_sessions and not self._evict():
                return None
            served = await self._open_in_its_turn(namespace, key, place, rate)
        finally:
            self._opening.pop(key).set()
        self._announce(served)
        return served

    async def _open_in_its_turn(
        self, namespace: Namespace, key: SessionKey, place: Place, rate: float | None
    ) -> ServedSession:
        """Open a session; when no port is free, after one has ended that nobody uses, or that ends anyway."""
        while True:
            source = await trio.to_thread.run_sync(namespace.open, key[1])
            try:
                return self._open(key, source, place, rate)
            except NoFreePortError:
                leaving = self._leaving(place.address)
                if leaving is None:
                    raise
                with trio.move_on_after(_LEAVING) as patience:
                    await leaving.ended.wait()
                if patience.cancelled_caught:
                    raise

    def _leaving(self, address: str) -> ServedSession | None:
        """A session at an address that is about to free its port; an unused one is ended if need be."""
        for served in self._running:
            if served.ending and served.place.address == address:
                return served
        return self._evict(address)

    def _open(self, key: SessionKey, source: Source, place: Place, rate: float | None) -> ServedSession:
        try:
            if self._closed:
                raise ClosedError("the server was closed")
            served = open_session(
                source,
                namespace=key[0],
                content=key[1],
                place=place,
                places=self._places,
                settings=self._settings if rate is None else self._settings.slower(rate),
                session_id=self._new_session_id(),
                rng=self._rng,
                start=self._start,
                clients=self._clients,
                tell=self._tell,
                completed=self._completed,
            )
        except BaseException:
            source.close()
            raise
        self._current[key] = served
        self._running.add(served)
        assert self._nursery is not None
        self._nursery.start_soon(self._run, key, served)
        return served

    def _announce(self, served: ServedSession) -> None:
        session = served.driver.session
        seconds = trio.current_time() - self._start
        self._tell(
            SessionOpened(
                seconds=seconds,
                session_id=session.session_id,
                namespace=served.namespace,
                content=served.content,
                size=served.driver.source.size,
                block_size=served.driver.block_size,
                total_blocks=session.total_blocks,
                group=served.group,
                address=served.address,
                interface=str(served.place.interface),
            )
        )
        for warning in served.warnings:
            self._tell(Warned(seconds=seconds, message=warning))

    def _evict(self, address: str | None = None) -> ServedSession | None:
        """End the oldest session that nobody has joined or everybody has left, at an address or at any."""
        for key, served in self._current.items():
            # Who has joined and not confirmed yet is a client, too.
            if not served.driver.session.clients() and address in (None, served.place.address):
                served.end(trio.current_time())
                del self._current[key]
                return served
        return None

    def _new_session_id(self) -> int:
        taken = {served.driver.session.session_id for served in self._running} | self._clients.session_ids()
        while (session_id := self._rng.getrandbits(32)) in taken or not session_id:
            pass
        return session_id

    async def _run(self, key: SessionKey, served: ServedSession) -> None:
        try:
            await served.run()
        finally:
            self._running.discard(served)
            if self._current.get(key) is served:
                del self._current[key]
