"""Session initiation over UDP (MS-WDSMSI 2.2.2, 3.1.5.3): the server's listener and the client's request."""

from __future__ import annotations

import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from wdstransport.errors import TransportError, UsageError
from wdstransport.net.buffers import set_buffer
from wdstransport.net.interfaces import Endpoint, family_of, split_zone
from wdstransport.wire.initiation import ErrorReply, InitiationPacket, Reply, Request, decode, encode
from wdstransport.wire.transport import DropReason, WireError

__all__ = ["InitiationListener", "RequestLimiter", "request_session"]

_PKTINFO4 = struct.Struct("=i4s4s")
_PKTINFO6 = struct.Struct("=16sI")
_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
_SNDBUF = 4 << 20
"""Bytes of send buffer wanted. A reply to a forged address of the server's own network holds a kilobyte of it
for the three seconds that ARP takes to give up, and everybody else's replies wait behind."""
_LONGEST_REQUEST = 3 * 4096
"""A path's 4096 letters (PATH_MAX) in UTF-16, and half as much for a namespace and options. What is cut off
looks like a damaged packet, which is never answered. Much more would let strangers swell what is told of
their requests."""
_LONGEST_REPLY = 65535
_RETRY = 1.0
"""Seconds a client waits before it asks again (MS-WDSMSI 3.1.6)."""
_FIRST_WORD = 5
"""Requests without an answer after which that is said; then after twice as many more each time."""


class RequestLimiter:
    """How often one address may ask (deviation 64); a bounded table, who was quiet for longest out first."""

    def __init__(self, per_second: float = 20.0, burst: float = 40.0, addresses: int = 4096) -> None:
        self._per_second = per_second
        self._burst = burst
        self._addresses = addresses
        self._table: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admits(self, host: str, now: float) -> bool:
        """Whether a request from `host` is to be answered now (seconds)."""
        credit, at = self._table.pop(host, (self._burst, now))
        credit = min(self._burst, credit + (now - at) * self._per_second)
        admitted = credit >= 1
        self._table[host] = (credit - 1 if admitted else credit, now)
        if len(self._table) > self._addresses:
            self._table.popitem(last=False)
        return admitted


class InitiationListener:
    """Answers requests on the initiation port, from the address each was sent to.

    Attributes:
        dropped: datagrams not answered, by reason.
        requests: requests answered.
    """

    def __init__(self, address: str | None, port: int, family: int) -> None:
        """Bind.

        Args:
            address: one of this machine's, or None for all of them.
            port: UDP port, 5041 by MS-WDSMSI 1.9.
            family: AF_INET or AF_INET6.

        Raises:
            TransportError: the port is taken or may not be used.
        """
        self.dropped: Counter[str] = Counter()
        self.requests = 0
        self._family = family
        self._limiter = RequestLimiter()
        self._sock = trio.socket.socket(family, socket.SOCK_DGRAM)
        host = address or ("::" if family == socket.AF_INET6 else "0.0.0.0")
        try:
            if family == socket.AF_INET6:
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                self._sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            set_buffer(self._sock._sock, socket.SO_SNDBUF, _SNDBUF)  # type: ignore[attr-defined]
            self._bind(host, port)
        except OSError as error:
            self._sock.close()
            raise TransportError(
                f"cannot listen for requests on {host} port {port}: {error.strerror or error}. Another "
                "server may be running there already; stop it, or choose another --port and tell the clients."
            ) from error

    def _bind(self, host: str, port: int) -> None:
        plain, zone = split_zone(host)
        raw = self._sock._sock  # type: ignore[attr-defined]
        raw.bind((plain, port, 0, zone) if self._family == socket.AF_INET6 else (plain, port))

    @property
    def address(self) -> Endpoint:
        """Where it listens."""
        host, port = self._sock.getsockname()[:2]
        return host, port

    async def serve(
        self, answer: Callable[[Request, Endpoint, str], Awaitable[InitiationPacket | None]]
    ) -> None:
        """Answer requests until cancelled.

        Args:
            answer: makes the reply from a request, its source and the local address it came to; None for
                no reply at all.
        """
        while True:
            try:
                data, ancillary, _, source = await self._sock.recvmsg(_LONGEST_REQUEST, 128)
            except trio.ClosedResourceError:
                return
            except OSError:
                if self._sock.fileno() < 0:
                    return  # closed between two reads, or before the first
                self.dropped["socket_error"] += 1  # ICMP of an earlier reply, or an interface that went
                await trio.lowlevel.checkpoint()
                continue
            local, info = self._destination(ancillary)
            endpoint = self._endpoint(source)
            try:
                packet = decode(data)
            except WireError as error:
                self.dropped[error.reason.value] += 1
                continue
            if not isinstance(packet, Request) or local is None:
                self.dropped[DropReason.STATE.value] += 1
                continue
            if not self._limiter.admits(endpoint[0], trio.current_time()):
                self.dropped["too_many_requests"] += 1
                continue
            reply = await answer(packet, endpoint, local)
            if reply is None:
                continue
            self.requests += 1
            try:
                await self._sock.sendmsg([encode(reply)], info, 0, source)
            except (OSError, trio.ClosedResourceError):
                self.dropped["reply_not_sent"] += 1

    def _endpoint(self, source: Any) -> Endpoint:
        host, port = str(source[0]), int(str(source[1]))
        if len(source) > 3 and source[3] and "%" not in host:
            host = f"{host}%{source[3]}"
        return host, port

    def _destination(
        self, ancillary: list[tuple[int, int, bytes]]
    ) -> tuple[str | None, list[tuple[int, int, bytes]]]:
        """The local address a request came to, and the ancillary data that makes the reply leave from it."""
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                _, spec_dst, _ = _PKTINFO4.unpack(data[: _PKTINFO4.size])
                back = _PKTINFO4.pack(0, spec_dst, bytes(4))
                return socket.inet_ntop(socket.AF_INET, spec_dst), [(level, kind, back)]
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                destination, index = _PKTINFO6.unpack(data[: _PKTINFO6.size])
                host = socket.inet_ntop(socket.AF_INET6, destination)
                zone = f"%{index}" if host.startswith("fe80") else ""
                return host + zone, [(level, kind, data)]
        return None, []

    def close(self) -> None:
        """Stop listening."""
        self._sock.close()


async def request_session(
    server: Endpoint,
    local_address: str,
    request: Request,
    timeout: float,
    on_silence: Callable[[int, OSError | None], None] | None = None,
) -> Reply | ErrorReply | None:
    """Ask a server for a content, again every second, until it answers (MS-WDSMSI 3.1.6).

    Args:
        server: numeric address and port.
        local_address: to ask from.
        request: what to ask.
        timeout: seconds.
        on_silence: called when nothing has come for long, ever more seldom, with how often the server was
            asked and why the last request could not leave, if it could not.

    Returns:
        The answer, or None when there was none in time. Whatever else arrives is ignored.
    """
    family = family_of(server[0])
    host, zone = split_zone(server[0])
    local, local_zone = split_zone(local_address)
    v6 = family == socket.AF_INET6
    datagram = encode(request)
    with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            await sock.bind((local, 0, 0, local_zone) if v6 else (local, 0))
        except OSError as error:
            raise UsageError(
                f"cannot ask from {local_address}: {error.strerror or error}; check --interface"
            ) from error
        target = (host, server[1], 0, zone) if v6 else (host, server[1])
        asked, patience, next_word = 0, _FIRST_WORD, _FIRST_WORD
        with trio.move_on_after(timeout):
            while True:
                failure: OSError | None = None
                try:
                    await sock.sendto(datagram, target)
                except OSError as error:
                    failure = error
                    await trio.lowlevel.checkpoint()  # an ICMP error or a link that comes up: ask again
                asked += 1
                with trio.move_on_after(_RETRY):
                    reply = await _answer(sock, (host, server[1]))
                    if reply is not None:
                        return reply
                if asked == next_word and on_silence is not None:
                    patience *= 2
                    next_word += patience
                    on_silence(asked, failure)
    return None


async def _answer(sock: trio.socket.SocketType, server: Endpoint) -> Reply | ErrorReply:
    while True:
        try:
            data, source = await sock.recvfrom(_LONGEST_REPLY)
        except OSError:
            # Port unreachable: perhaps the server is only starting. The caller's clock decides.
            await trio.sleep(0.05)
            continue
        if (str(source[0]).partition("%")[0], source[1]) != server:
            continue
        try:
            packet = decode(data)
        except WireError:
            continue
        if isinstance(packet, Reply | ErrorReply):
            return packet
