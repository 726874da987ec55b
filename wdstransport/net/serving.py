"""Sessions as a server keeps them: where each is, what it offers, what it tells."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from wdstransport.content.sources import Source
from wdstransport.errors import ContentError, TransportError, UsageError
from wdstransport.net.batching import probe_merging, probe_segmentation
from wdstransport.net.interfaces import Endpoint, Interface, block_size_for, family_of, find_interface
from wdstransport.net.multicast import OpenSocket, is_port_in_use, open_server_socket
from wdstransport.net.pacing import set_kernel_pacing
from wdstransport.net.server_driver import ServerDriver
from wdstransport.observe.events import ClientJoined, ClientLeft, SendingStarted, ServerEvent, SessionEnded
from wdstransport.observe.statistics import ClientStatistics, SessionStatistics
from wdstransport.protocol.clients import ClientRecord
from wdstransport.protocol.events import (
    ClientActive,
    ClientGone,
    Gone,
    SendingBegan,
    ServerSessionEvent,
    Terminated,
)
from wdstransport.protocol.parameters import ServerParameters
from wdstransport.protocol.server_session import ServerSession
from wdstransport.wire.initiation import Reply, total_blocks
from wdstransport.wire.security import SecurityMode, make_security
from wdstransport.wire.transport import FW_LEAD_OPTION_LEN, data_overhead

__all__ = ["Place", "ServedSession", "SessionPlaces", "SessionSettings", "open_session"]

_GROUP4, _GROUP6 = "239.192.80.1", "ff15::5744:1"
_SNDBUF, _RCVBUF = 1 << 20, 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What every session of a server has in common; rates in bytes per second."""

    security: SecurityMode
    block_size: int | None
    rate: float | None
    ttl: int
    min_clients: int
    max_wait: float | None

    def slower(self, rate: float) -> SessionSettings:
        """The same for a session that demoted clients are sent to: it starts with whoever comes."""
        return replace(self, rate=rate, min_clients=1, max_wait=None)


@dataclass(frozen=True, slots=True)
class Place:
    """The address and interface that a session is served on."""

    interface: Interface
    address: str


class SessionPlaces:
    """Hands out groups and ports, and finds the interface behind an address."""

    def __init__(self, group: str | None, ports: tuple[int, int] | None) -> None:
        """Start with a group, or the default ones; `ports` is lowest and highest, None for any.

        Raises:
            UsageError: not a multicast address, or not a range of ports.
        """
        if group is not None:
            try:
                multicast = ipaddress.ip_address(group).is_multicast
            except ValueError:
                multicast = False
            if not multicast:
                raise UsageError(
                    f"{group} is not a multicast address; take one from 239.192.0.0 to 239.195.255.255, "
                    "or an IPv6 one that begins with ff15:"
                )
        if ports is not None and not 1 <= ports[0] <= ports[1] <= 65535:
            raise UsageError(f"{ports[0]}-{ports[1]} is not a range of UDP ports (1 to 65535, low first)")
        self._group = group
        self._ports = ports
        self._taken: set[str] = set()

    def locate(self, local: str, ipv6_capable: bool) -> Place:
        """Where to serve a request that came to `local` (MS-WDSMSI 3.1.5.3).

        IPv6 if the client can and this interface can, else IPv4. A link-local address serves only who asked
        it, since a reply has no room for its zone.
        """
        interface = find_interface(local)
        family = family_of(local)
        if ipv6_capable and interface.carries_multicast(socket.AF_INET6):
            address = interface.address_for(socket.AF_INET6) or ""
            if family == socket.AF_INET6:
                return Place(interface, local)
            if not ipaddress.ip_address(address.partition("%")[0]).is_link_local:
                return Place(interface, address)
        if not interface.carries_multicast(socket.AF_INET):
            raise TransportError(f"interface {interface} cannot send IPv4 multicast")
        if family == socket.AF_INET:
            return Place(interface, local)
        return Place(interface, interface.ipv4[0])

    def take_group(self, family: int) -> str:
        """The next free group of a family."""
        wanted = self._group
        if wanted is None or family_of(wanted) != family:
            wanted = _GROUP6 if family == socket.AF_INET6 else _GROUP4
        group = ipaddress.ip_address(wanted)
        while str(group) in self._taken:
            group += 1
        if not group.is_multicast:
            raise TransportError(f"no multicast address is left after {wanted}; start lower")
        self._taken.add(str(group))
        return str(group)

    def give_back(self, group: str) -> None:
        """A session has ended."""
        self._taken.discard(group)

    def open_socket(self, place: Place, ttl: int) -> OpenSocket:
        """A session's socket, on a port of the range.

        Raises:
            TransportError: no port is free, or the system refuses.
        """
        if self._ports is None:
            return open_server_socket(place.address, 0, place.interface, ttl, sndbuf=_SNDBUF, rcvbuf=_RCVBUF)
        for port in range(self._ports[0], self._ports[1] + 1):
            try:
                return open_server_socket(
                    place.address, port, place.interface, ttl, sndbuf=_SNDBUF, rcvbuf=_RCVBUF
                )
            except TransportError as error:
                if not is_port_in_use(error):
                    raise
        raise TransportError(
            f"no UDP port from {self._ports[0]} to {self._ports[1]} is free on {place.address}; "
            "widen --session-ports"
        )


class ServedSession:
    """A session with its place in the world.

    Attributes:
        driver: what runs it.
        ended: set when it is over.
    """

    def __init__(
        self,
        *,
        namespace: str,
        content: str,
        place: Place,
        places: SessionPlaces,
        opened: OpenSocket,
        group: str,
        start: float,
        tell: Callable[[ServerEvent], None],
        completed: Callable[[], None],
    ) -> None:
        self.namespace = namespace
        self.content = content
        self.place = place
        self.address: Endpoint = (place.address, opened.address[1])
        self.group: Endpoint = (group, opened.address[1])
        self.warnings = opened.warnings
        self.ended = trio.Event()
        self._places = places
        self._start = start
        self._tell = tell
        self._completed = completed
        self._closing = False
        self._reason = "closed"
        self._samples: deque[tuple[float, int]] = deque(maxlen=8)
        self.driver: ServerDriver

    def offer(self) -> Reply:
        """The reply to a request for this content (MS-WDSMSI 2.2.2.2)."""
        session = self.driver.session
        size = self.driver.source.size
        if not size:
            self._completed()  # content of no bytes is whole without joining (deviation 46)
        return Reply(
            multicast_address=_packed(self.group[0]),
            server_address=_packed(self.address[0]),
            multicast_port=self.group[1],
            server_port=self.address[1],
            content_size=size,
            block_size=self.driver.block_size,
            total_blocks=session.total_blocks,
            session_id=session.session_id,
        )

    async def is_current(self) -> bool:
        """Whether it can take one more client: running, and its content what it was when it began."""
        if self._closing or self.ended.is_set() or self.driver.error is not None:
            return False
        try:
            await trio.to_thread.run_sync(self.driver.source.check)
        except ContentError as error:
            self.driver.error = error
            self.close(trio.current_time())
            return False
        return not self.ended.is_set()

    async def run(self) -> None:
        """Run until it is over."""
        error: str | None = None
        try:
            await self.driver.run()
            error = None if self.driver.error is None else str(self.driver.error)
        except OSError as failure:
            error = (
                f"the session's socket failed ({failure}); check the interface {self.place.interface.name}"
            )
        finally:
            self._places.give_back(self.group[0])
            self.ended.set()
            if error is not None:
                self._reason = "error"
            self._tell(
                SessionEnded(
                    seconds=self._seconds(),
                    session_id=self.driver.session.session_id,
                    reason=self._reason,
                    error=error,
                )
            )

    def close(self, now: float) -> None:
        """Tell every client and end; nobody is told that they left."""
        self._closing = True
        self.driver.close(now)

    def _seconds(self) -> float:
        return trio.current_time() - self._start

    def on_event(self, event: ServerSessionEvent) -> None:
        """Translate a core's event."""
        session_id = self.driver.session.session_id
        match event:
            case ClientActive(client):
                self._tell(
                    ClientJoined(
                        seconds=self._seconds(),
                        session_id=session_id,
                        client_id=client.client_id,
                        name=client.name,
                        address=client.address,
                        mac=client.mac_address.hex(":"),
                    )
                )
            case ClientGone(client, reason):
                if reason is Gone.COMPLETE:
                    self._completed()
                if not self._closing or reason is Gone.COMPLETE:
                    self._tell(
                        ClientLeft(
                            seconds=self._seconds(),
                            session_id=session_id,
                            client_id=client.client_id,
                            name=client.name,
                            address=client.address,
                            reason=reason.value,
                        )
                    )
            case SendingBegan(clients):
                self._tell(SendingStarted(seconds=self._seconds(), session_id=session_id, clients=clients))
            case Terminated():
                self._reason = "idle"

    def statistics(self) -> SessionStatistics:
        """A snapshot."""
        driver, session = self.driver, self.driver.session
        counters = session.transport.data.counters
        now = trio.current_time()
        sent = driver.data_bytes + driver.repair_bytes
        self._samples.append((now, sent))
        (then, sent_then), *_ = self._samples
        return SessionStatistics(
            session_id=session.session_id,
            namespace=self.namespace,
            content=self.content,
            size=driver.source.size,
            block_size=driver.block_size,
            total_blocks=session.total_blocks,
            state=session.state,
            round=session.application.rounds,
            window=session.window,
            data_bytes=driver.data_bytes,
            repair_bytes=driver.repair_bytes,
            data_packets=counters.data_packets,
            repair_packets=counters.repair_packets,
            nacks=counters.nacks,
            acks=counters.acks,
            bytes_per_second=(sent - sent_then) / (now - then) if now > then else 0.0,
            completed=session.completed,
            clients=tuple(_client(record, state, now) for record, state in session.clients()),
            dropped=dict(session.dropped),
        )


def _client(record: ClientRecord, state: str, now: float) -> ClientStatistics:
    return ClientStatistics(
        client_id=record.client_id,
        name=record.name,
        address=record.address,
        mac=record.mac_address.hex(":"),
        state=state,
        progress=record.progress / 100,
        rtt=record.rtt,
        loss=record.loss,
        seconds_in_session=now - record.joined_at,
        cpu=record.utilization.get("CPU_UTIL"),
        memory=record.utilization.get("MEM_UTIL"),
        network=record.utilization.get("NET_UTIL"),
    )


def open_session(
    source: Source,
    *,
    namespace: str,
    content: str,
    place: Place,
    places: SessionPlaces,
    settings: SessionSettings,
    session_id: int,
    rng: random.Random,
    start: float,
    tell: Callable[[ServerEvent], None],
    completed: Callable[[], None],
) -> ServedSession:
    """Open a session's socket and set up its core and its driver.

    Raises:
        UsageError: a block size that no datagram can hold.
        TransportError: no port or group is free, or the interface cannot do it.
    """
    family = family_of(place.address)
    security = make_security(settings.security)
    overhead = data_overhead(security) + FW_LEAD_OPTION_LEN
    block_size = settings.block_size or block_size_for(place.interface.mtu, family, overhead)
    if block_size + overhead > 65_507 - 40:
        raise UsageError(f"blocks of {block_size} bytes do not fit a datagram; choose a smaller --block-size")
    opened = places.open_socket(place, settings.ttl)
    try:
        group = places.take_group(family)
    except BaseException:
        opened.sock.close()
        raise
    served = ServedSession(
        namespace=namespace,
        content=content,
        place=place,
        places=places,
        opened=opened,
        group=group,
        start=start,
        tell=tell,
        completed=completed,
    )
    if settings.rate is not None:
        set_kernel_pacing(opened.sock, settings.rate)
    session = ServerSession(
        session_id=session_id,
        total_blocks=total_blocks(source.size, block_size),
        client_security=make_security(settings.security),
        server_security=security,
        parameters=ServerParameters(min_clients=settings.min_clients, max_wait=settings.max_wait),
        rng=rng,
        now=trio.current_time(),
    )
    served.driver = ServerDriver(
        session,
        source,
        opened,
        group=served.group,
        block_size=block_size,
        security=security,
        rate=settings.rate,
        segment_ok=probe_segmentation(family),
        merge_ok=probe_merging(family),
        on_event=served.on_event,
    )
    return served


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address.partition("%")[0]).packed
