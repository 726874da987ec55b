"""Sessions as a server keeps them: where each is, what it offers, what it tells."""

from __future__ import annotations

import ipaddress
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import trio

from wdstransport.content.sources import Source
from wdstransport.errors import ClosedError, ContentError, UsageError
from wdstransport.net.batching import probe_merging, probe_segmentation
from wdstransport.net.interfaces import Endpoint, block_size_for, family_of
from wdstransport.net.multicast import OpenSocket
from wdstransport.net.pacing import set_kernel_pacing
from wdstransport.net.places import Place, SessionPlaces
from wdstransport.net.served_client import ClientRecords, ServedClient
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
from wdstransport.wire.transport import FW_LEAD_OPTION_LEN, KickReason, data_overhead

__all__ = ["ServedSession", "SessionSettings", "check_rate", "open_session"]


_FASTEST = 1e12
_ASKERS = 4096
_PENDING_LISTED = 50
"""Clients that have not confirmed and are listed in statistics all the same. A flood of JOINs makes a
thousand of them, a quarter of a megabyte of JSON each second for whoever watches."""


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
        clients: ClientRecords,
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
        self._askers: set[Endpoint] = set()
        self._without_joining = 0
        self._places = places
        self._start = start
        self._clients = clients
        self._tell = tell
        self._completed = completed
        self._ending = False
        self._silent = False
        self._reason = "closed"
        self._samples: deque[tuple[float, int]] = deque(maxlen=8)
        self.driver: ServerDriver

    def offer(self, asker: Endpoint | None = None) -> Reply:
        """The reply to a request of `asker` for this content (MS-WDSMSI 2.2.2.2)."""
        session = self.driver.session
        size = self.driver.source.size
        if not size and asker is not None and asker not in self._askers:
            # Content of no bytes is whole without joining (deviation 46), once for each who asks.
            if len(self._askers) >= _ASKERS:
                self._askers.clear()
            self._askers.add(asker)
            self._without_joining += 1
            self._completed()
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
        if self.ending:
            return False
        try:
            await trio.to_thread.run_sync(self.driver.source.check)
        except ClosedError:
            return False  # it ended meanwhile, which is no failure of whoever asks
        except ContentError as error:
            self.driver.error = error
            self.end(trio.current_time())
            return False
        return not self.ending

    @property
    def ending(self) -> bool:
        """Whether it is on its way out, or over: nobody is let in any more."""
        return self._ending or self.ended.is_set() or self.driver.error is not None

    async def run(self) -> None:
        """Run until it is over."""
        error: str | None = None
        try:
            await self.driver.run()
            error = None if self.driver.error is None else str(self.driver.error)
        except trio.Cancelled:
            self._silent = True
            raise
        except OSError as failure:
            error = (
                f"the session's socket failed ({failure}); check the interface {self.place.interface.name}"
            )
        finally:
            self._places.give_back(self.group[0])
            self.ended.set()
            if error is not None:
                self._reason = "error"
            for record, _ in self.driver.session.clients():
                self._left(record, Gone.ENDED)
            self._tell(
                SessionEnded(
                    seconds=self._seconds(),
                    session_id=self.driver.session.session_id,
                    reason=self._reason,
                    error=error,
                )
            )

    def end(self, now: float) -> None:
        """Tell every client (KICK) and end, once they have left or after a second."""
        self._ending = True
        self.driver.close(now)

    def close(self, now: float) -> None:
        """End because the caller wants it; nobody is told of the clients that this disconnects."""
        self._silent = True
        self.end(now)

    def _seconds(self) -> float:
        return trio.current_time() - self._start

    def on_event(self, event: ServerSessionEvent) -> None:
        """Translate a core's event."""
        session_id = self.driver.session.session_id
        match event:
            case ClientActive(client):
                self._joined(client)
            case ClientGone(client, reason):
                if reason is Gone.COMPLETE:
                    self._completed()
                self._left(client, reason)
            case SendingBegan(clients):
                self._tell(SendingStarted(seconds=self._seconds(), session_id=session_id, clients=clients))
            case Terminated():
                self._reason = "idle"

    def _joined(self, record: ClientRecord) -> None:
        event = ClientJoined(
            seconds=self._seconds(),
            session_id=self.driver.session.session_id,
            client_id=record.client_id,
            name=record.name,
            address=record.address,
            mac=record.mac_address.hex(":"),
        )
        self._clients.joined(ServedClient(event, self, self._clients))
        self._tell(event)

    def _left(self, record: ClientRecord, reason: Gone) -> None:
        client = self._clients.connected.get((self.driver.session.session_id, record.client_id))
        if client is None:
            return  # it had not confirmed, so nobody knows it
        last = _client(record, "left", trio.current_time())
        if not self._silent:
            self._tell(
                ClientLeft(
                    seconds=self._seconds(),
                    session_id=client.session_id,
                    client_id=client.client_id,
                    name=client.name,
                    address=client.address,
                    reason=reason.value,
                )
            )
        self._clients.left(client, reason.value, last, silent=self._silent)

    def kick(self, client_id: int, reason: KickReason) -> bool:
        """Remove a client (MS-WDSMT 3.1.5.6); whether there was such an active client."""
        kicked = self.driver.session.kick(client_id, reason, trio.current_time())
        if kicked:
            self.driver.wake()
        return kicked

    def client_statistics(self, client_id: int) -> ClientStatistics | None:
        """A snapshot of one client."""
        for record, state in self.driver.session.clients():
            if record.client_id == client_id:
                return _client(record, state, trio.current_time())
        return None

    def _listed(self) -> Iterator[tuple[ClientRecord, str]]:
        """Every client of the session, but only the first of those that have not confirmed.

        A session that closes tells those as well, and then has them as kicked (deviation 52).
        """
        room = _PENDING_LISTED
        session_id = self.driver.session.session_id
        for record, state in self.driver.session.clients():
            if (session_id, record.client_id) not in self._clients.connected:
                room -= 1
                if room < 0:
                    continue
            yield record, state

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
            completed=session.completed + self._without_joining,
            clients=tuple(_client(record, state, now) for record, state in self._listed()),
            dropped=dict(session.dropped),
            catch_up_bytes=driver.catch_up_bytes,
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


def check_rate(rate: float | None) -> None:
    """Refuse a rate that cannot be; bytes per second, None for unlimited.

    Raises:
        UsageError: it is not positive, or beyond any network.
    """
    if rate is not None and not 0 < rate <= _FASTEST:
        raise UsageError(f"a rate is more than 0 and at most {_FASTEST:.0e} bytes per second, not {rate}")


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
    clients: ClientRecords,
    tell: Callable[[ServerEvent], None],
    completed: Callable[[], None],
) -> ServedSession:
    """Open a session's socket and set up its core and its driver.

    Raises:
        UsageError: a block size that no datagram can hold.
        NoFreePortError: every port of the range for sessions is taken.
        TransportError: no group is left, or the interface cannot do it.
    """
    check_rate(settings.rate)
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
        clients=clients,
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
        parameters=ServerParameters(
            min_clients=settings.min_clients,
            max_wait=settings.max_wait,
            join_acks_unanswered=max(16, min(512, opened.sndbuf // 2048)),
        ),
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
