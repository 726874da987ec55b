"""Serving, for programs that run on trio: `TransportServer` offers namespaces and runs their sessions."""

from __future__ import annotations

import math
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

import trio

from wdstransport.content.namespaces import Namespace
from wdstransport.errors import (
    ClosedError,
    ContentError,
    ContentNotFoundError,
    TransportError,
    UsageError,
)
from wdstransport.net.batching import probe_merging, probe_segmentation
from wdstransport.net.client_setup import MODES
from wdstransport.net.initiation import InitiationListener
from wdstransport.net.interfaces import Endpoint, Interface, family_of, find_interface
from wdstransport.net.offload import name_features
from wdstransport.net.places import NoFreePortError, SessionPlaces
from wdstransport.net.served_client import ClientCallback, ClientRecords, ServedClient
from wdstransport.net.serving import SessionSettings, check_rate
from wdstransport.net.session_table import SessionTable
from wdstransport.net.waiting import open_tasks
from wdstransport.observe.events import RequestRefused, ServerEvent, ServerListening, Warned
from wdstransport.observe.statistics import ServerStatistics
from wdstransport.protocol.allowance import Allowance
from wdstransport.protocol.clients import DemoteTarget
from wdstransport.wire.initiation import ErrorReply, InitiationPacket, Reply, Request
from wdstransport.wire.transport import KickReason

__all__ = ["ClientCallback", "ServedClient", "TransportServer"]

_TOLD_PER_SECOND, _TOLD_AT_ONCE = 20.0, 100.0
"""Events of requests that fail, a second and at once. Events are never left out behind a slow reader, and
forged requests cost their sender nothing: without a bound, what waits to be told grows."""
_SAME_WARNING = 60.0
"""Seconds in which one and the same warning is given once: who is refused may ask again every second."""
_FILE_NOT_FOUND, _PATH_NOT_FOUND, _READ_FAULT, _NETWORK_ERROR, _TOO_MANY_SESSIONS = 2, 3, 30, 59, 69


class TransportServer:
    """Offers contents over UDP (MS-WDSMSI 3.1.5.3) and streams each to whoever joins.

    Opening puts it into its active state: when `open` returns, it listens and accepts clients. Closing tells
    every client (KICK) and stops listening; there are no client-left events for these, since the caller did
    it. A closed server cannot be opened again. `clients` has an object for every client, whose life is
    described at `ServedClient`.

        async with TransportServer([DirectoryNamespace("images", "/srv/images")]) as server:
            await server.wait_completed(30)
    """

    def __init__(
        self,
        namespaces: Sequence[Namespace] = (),
        *,
        interface: str | None = None,
        port: int = 5041,
        group: str | None = None,
        session_ports: tuple[int, int] | None = None,
        min_clients: int = 1,
        max_wait: float | None = None,
        block_size: int | None = None,
        security: str = "checksum",
        rate: float | None = None,
        ttl: int = 1,
        max_sessions: int = 64,
        on_event: Callable[[ServerEvent], None] | None = None,
    ) -> None:
        """Set the server up; nothing is opened yet.

        Args:
            namespaces: what to offer.
            interface: name or address to serve on; None for every interface, each client by the one that it
                asked on.
            port: UDP port for requests (MS-WDSMSI 1.9).
            group: multicast address of the first session; each further one takes the next. None for one of
                the administratively scoped ones, which serve clients of the other address family, too.
            session_ports: lowest and highest UDP port for sessions; None lets the system choose. When all are
                taken, the oldest session without clients ends for a new one.
            min_clients: how many must have joined before sending starts (1: with the first, AutoCast).
            max_wait: seconds after the first client when sending starts all the same; None: no limit.
            block_size: bytes; None for the largest that fits the interface's MTU.
            security: checksum or none.
            rate: bytes per second, IP headers included, of each session; None: unlimited.
            ttl: how many networks the group's packets may cross.
            max_sessions: contents in delivery at a time.
            on_event: called with each `ServerEvent`, in the trio thread.

        Raises:
            UsageError: an argument that cannot be.
        """
        if security not in MODES:
            raise UsageError(f"security is one of {', '.join(MODES)}, not {security!r}")
        if min_clients < 1:
            raise UsageError(f"at least 1 client, not {min_clients}")
        if block_size is not None and not 1 <= block_size <= 65_000:
            raise UsageError(f"a block has 1 to 65,000 bytes, not {block_size}")
        if not 0 <= port <= 65535:
            raise UsageError(f"a UDP port is 0 (any) to 65535, not {port}")
        if not 0 <= ttl <= 255:
            raise UsageError(f"a TTL is 0 to 255, not {ttl}")
        if max_wait is not None and not 0 <= max_wait < math.inf:
            raise UsageError(f"a wait is 0 seconds or more, not {max_wait}")
        if max_sessions < 1:
            raise UsageError(f"at least 1 session, not {max_sessions}")
        check_rate(rate)
        self._namespaces: dict[str, Namespace] = {}
        self._interface_name = interface
        self._port = port
        self._tell = on_event if on_event is not None else (lambda event: None)
        self._settings = SessionSettings(
            security=MODES[security],
            block_size=block_size,
            rate=rate,
            ttl=ttl,
            min_clients=min_clients,
            max_wait=max_wait,
        )
        self._places = SessionPlaces(group, session_ports)
        self._clients = ClientRecords()
        self._sessions = SessionTable(
            places=self._places,
            settings=self._settings,
            max_sessions=max_sessions,
            clients=self._clients,
            tell=self._tell,
            completed=self._count_completed,
        )
        self._listeners: list[InitiationListener] = []
        self._state = "new"
        self._start = 0.0
        self._requests = 0
        self._refused = 0
        self._refusals = Allowance(_TOLD_PER_SECOND, _TOLD_AT_ONCE, -math.inf)
        self._warned: dict[str, float] = {}
        self._completed = 0
        self._completion = trio.Condition()
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        self._features = {
            **name_features(
                segment_ok=probe_segmentation(socket.AF_INET), merge_ok=probe_merging(socket.AF_INET)
            ),
            "pacing": "none" if rate is None else "own",
        }
        for namespace in namespaces:
            self.add_namespace(namespace)

    def add_namespace(self, namespace: Namespace) -> None:
        """Offer another namespace, also while open.

        Raises:
            UsageError: there is one of that name.
        """
        if namespace.name in self._namespaces:
            raise UsageError(f"there is a namespace {namespace.name!r} already; give this one another name")
        self._namespaces[namespace.name] = namespace

    # ------------------------------------------------------------------ open and close

    async def __aenter__(self) -> Self:
        manager = self._nursery_manager = open_tasks()
        nursery = await manager.__aenter__()
        try:
            await self.open(nursery)
        except BaseException as error:
            await manager.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._nursery_manager is not None
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2.0):
            await self.close()
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        return await self._nursery_manager.__aexit__(kind, error, trace)

    async def open(self, nursery: trio.Nursery) -> None:
        """Listen; from when this returns, clients are accepted. `async with` does it, too.

        Args:
            nursery: where the server's tasks run; it must outlive the server.

        Raises:
            ClosedError: it was closed before, or while this waited.
            UsageError: it is open, there is no such interface, or the group's family is not listened on.
            TransportError: the port is taken. It may be tried again, as after an UsageError.
        """
        self._check_not_closed()
        if self._state != "new":
            raise UsageError("the server is open already")
        self._state = "opening"
        try:
            interface: Interface | None = None
            if self._interface_name is not None:
                interface = await trio.to_thread.run_sync(find_interface, self._interface_name)
            self._check_not_closed()
            self._listen(interface)
        except BaseException:
            if self._state == "opening":
                self._state = "new"
            raise
        self._start = trio.current_time()
        self._nursery = nursery
        self._sessions.open(nursery, self._start)
        self._state = "open"
        for listener in self._listeners:
            nursery.start_soon(listener.serve, self._answer)
        self._tell(
            ServerListening(
                seconds=0.0,
                address=self._listeners[0].address,
                interface=str(interface) if interface is not None else "all",
                namespaces=tuple(self._namespaces),
            )
        )

    def _check_not_closed(self) -> None:
        if self._state == "closed":
            raise ClosedError("a closed server cannot be opened again; make a new one")

    def _listen(self, interface: Interface | None) -> None:
        port, families = self._port, set()
        try:
            for address, family in self._listen_on(interface):
                try:
                    self._listeners.append(InitiationListener(address, port, family))
                except TransportError:
                    if family == socket.AF_INET6 and self._listeners:
                        continue  # a machine without IPv6 serves IPv4
                    raise
                families.add(family)
                port = self._listeners[0].address[1]
            self._places.check_group(families)
        except TransportError:
            for listener in self._listeners:
                listener.close()
            self._listeners.clear()
            raise
        self._port = port

    def _listen_on(self, interface: Interface | None) -> list[tuple[str | None, int]]:
        if interface is None:
            return [(None, socket.AF_INET), (None, socket.AF_INET6)]
        name = self._interface_name or ""
        try:
            return [(name, family_of(name))]
        except UsageError:
            pass
        found: list[tuple[str | None, int]] = [(host, socket.AF_INET) for host in interface.ipv4[:1]]
        found += [(host, socket.AF_INET6) for host in interface.ipv6[:1]]
        if not found:
            raise UsageError(f"interface {interface} has no address to serve on; give it one")
        return found

    async def close(self) -> None:
        """Disconnect every client (KICK) and stop listening; a second close does nothing.

        Returns when every client has left or after a second at the latest; after that no event comes. No
        `ClientLeft` and no `ClientCallback.disconnected` is told of the clients that this disconnects.
        """
        self._state = "closed"
        for listener in self._listeners:
            listener.close()
        await self._sessions.close(trio.current_time())
        async with self._completion:
            self._completion.notify_all()

    @property
    def port(self) -> int:
        """The UDP port for requests, once open."""
        return self._port

    @property
    def address(self) -> Endpoint:
        """Where requests are listened for, once open."""
        if self._state != "open":
            raise UsageError("the server is not open")
        return self._listeners[0].address

    # ------------------------------------------------------------------ requests

    async def _answer(self, request: Request, source: Endpoint, local: str) -> InitiationPacket | None:
        """MS-WDSMSI 3.1.5.3; whatever prevents a session is answered with an error (2.2.2.3)."""
        self._requests += 1
        try:
            namespace = self._namespaces.get(request.namespace)
            if namespace is None:
                return self._refuse(request, source, _PATH_NOT_FOUND)
            place = await trio.to_thread.run_sync(self._places.locate, local, bool(request.ipv6_capable))
            served = await self._sessions.session(namespace, request.content, place)
            if served is None:
                return self._refuse(request, source, _TOO_MANY_SESSIONS)
        except ClosedError:
            return None
        except ContentNotFoundError:
            return self._refuse(request, source, _FILE_NOT_FOUND)
        except ContentError as error:
            self._warn(str(error), str(error))
            return self._refuse(request, source, _READ_FAULT)
        except NoFreePortError as error:
            self._warn(str(error), f"request of {source[0]} for {request.content!r} refused: {error}")
            return self._refuse(request, source, _TOO_MANY_SESSIONS)
        except TransportError as error:
            self._warn(str(error), f"request of {source[0]} for {request.content!r} refused: {error}")
            return self._refuse(request, source, _NETWORK_ERROR)
        return served.offer(source)

    def _refuse(self, request: Request, source: Endpoint, code: int) -> ErrorReply:
        self._refused += 1
        if self._may_tell():
            self._tell(
                RequestRefused(
                    seconds=self._seconds(),
                    address=source,
                    namespace=request.namespace,
                    content=request.content,
                    code=code,
                )
            )
        return ErrorReply(code)

    def _may_tell(self) -> bool:
        """Whether there is room for one more event that a stranger's request brings about."""
        now = trio.current_time()
        if self._refusals.left(now) < 1:
            return False
        self._refusals.spend(1, now)
        return True

    def _warn(self, cause: str, message: str) -> None:
        """Tell what went wrong with a request, for each cause once a minute."""
        now = trio.current_time()
        if now - self._warned.get(cause, -math.inf) < _SAME_WARNING or not self._may_tell():
            return
        self._warned = {old: at for old, at in self._warned.items() if now - at < _SAME_WARNING}
        self._warned[cause] = now
        self._tell(Warned(seconds=self._seconds(), message=message))

    def _seconds(self) -> float:
        return trio.current_time() - self._start

    def _count_completed(self) -> None:
        self._completed += 1
        assert self._nursery is not None
        self._nursery.start_soon(self._notify_completed)

    async def _notify_completed(self) -> None:
        async with self._completion:
            self._completion.notify_all()

    async def wait_completed(self, count: int) -> None:
        """Wait until `count` clients have left with everything; also ends when the server is closed."""
        async with self._completion:
            while self._completed < count and self._state == "open":
                await self._completion.wait()

    # ------------------------------------------------------------------ what an administrator does

    def kick(self, session_id: int, client_id: int, reason: KickReason = KickReason.FAIL) -> None:
        """Remove a client (MS-WDSMT 3.1.5.6).

        Raises:
            UsageError: no such session, or no such active client in it.
        """
        _, served = self._sessions.find(session_id)
        if not served.kick(client_id, reason):
            raise UsageError(f"session {session_id} has no active client {client_id}")

    async def demote(self, session_id: int, client_id: int, rate: float | None = None) -> int:
        """Send a client to a slower session of the same content (MS-WDSMT 3.1.5.10).

        Args:
            session_id: where it is.
            client_id: which.
            rate: bytes per second of the slower session, if it does not exist yet; None for half of what
                this one may send or is sending.

        Returns:
            The slower session's id.

        Raises:
            UsageError: no such session or client, a client that cannot be demoted, or a session that
                is the slowest already.
        """
        key, served = self._sessions.find(session_id)
        record = served.driver.session.transport.clients.active.get(client_id)
        if record is None:
            raise UsageError(f"session {session_id} has no active client {client_id}")
        if not record.supports_demote:
            raise UsageError(f"client {client_id} does not support being demoted; kick it instead")
        if key[3]:
            raise UsageError(f"session {session_id} is the slowest already")
        if rate is None:
            rate = (self._settings.rate or served.statistics().bytes_per_second or 10e6) / 2
        lower = await self._sessions.session(self._namespaces[key[0]], key[1], served.place, 1, rate)
        if lower is None:
            raise UsageError("too many sessions for one more")
        offer: Reply = lower.offer()
        target = DemoteTarget(
            offer.session_id,
            offer.multicast_address,
            offer.multicast_port,
            offer.server_address,
            offer.server_port,
        )
        served.driver.session.demote(client_id, target, trio.current_time())
        served.driver.wake()
        return offer.session_id

    def clients(self) -> tuple[ServedClient, ...]:
        """Every client that is connected, and those that have left and were not closed.

        Of the latter at most `wdstransport.net.served_client.MAX_DISCONNECTED` (1024) are kept; then the one
        that left first is closed.
        """
        return self._clients.all()

    def client(self, session_id: int, client_id: int) -> ServedClient:
        """One client, connected or not, by the numbers that `ClientJoined` told.

        Raises:
            UsageError: there is no such client, or it was closed.
        """
        return self._clients.find(session_id, client_id)

    def statistics(self) -> ServerStatistics:
        """A snapshot of everything."""
        dropped: Counter[str] = Counter()
        for listener in self._listeners:
            dropped.update(listener.dropped)
        return ServerStatistics(
            seconds=self._seconds(),
            sessions=tuple(served.statistics() for served in self._sessions.current()),
            requests=self._requests,
            refused=self._refused,
            completed=self._completed,
            dropped=dict(dropped),
            features=dict(self._features),
        )
