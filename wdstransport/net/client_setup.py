"""From a server's name to a client session: initiation, interface, sockets (MS-WDSMSI, MS-WDSMT 3.2.3)."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import trio

from wdstransport.errors import NobodyAnsweredError, RefusedError, RemoteError, UsageError
from wdstransport.net.client_driver import Sockets
from wdstransport.net.initiation import request_session
from wdstransport.net.interfaces import (
    Endpoint,
    Interface,
    family_of,
    find_interface,
    resolve,
    route_to,
    with_zone,
)
from wdstransport.net.multicast import open_client_socket, open_group_socket
from wdstransport.protocol.client_session import ClientSession
from wdstransport.protocol.events import Demoted
from wdstransport.protocol.parameters import ClientParameters
from wdstransport.wire.application import MAX_BLOCK_SIZE
from wdstransport.wire.initiation import ErrorReply, Reply, Request, encode, total_blocks
from wdstransport.wire.security import SecurityMode, make_security
from wdstransport.wire.transport import fit_client_name

__all__ = ["MODES", "Offer", "Silence", "demoted_sockets", "find_offer", "new_session", "open_sockets"]

MODES = {"checksum": SecurityMode.CHECKSUM, "none": SecurityMode.NONE}
"""What both sides may be told; UDP initiation itself knows checksums alone (deviation 71)."""
_MOST_BLOCKS = 1 << 33
"""More than any image: 11 TB in Ethernet frames, and a gigabyte for one bit a block."""
_CODES = {
    2: "it has no such content. Check the name; the server prints what it has when it starts",
    3: "it has no such namespace. Check --namespace; the server prints its own when it starts",
    5: "it does not allow this content. Ask its administrator",
    30: "it cannot read it. Its administrator finds the reason in the server's output",
    59: "it cannot set up a session on the network from which it was asked. Its administrator finds the "
    "reason in the server's output",
    69: "others are receiving as many contents as it serves at a time. Try again when one is done, or widen "
    "the server's --session-ports",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server offered, and from where it was asked.

    Attributes:
        asked: the initiation port.
        server: the session's unicast address.
        group: the session's multicast address.
    """

    asked: Endpoint
    interface: Interface
    local_address: str
    server: Endpoint
    group: Endpoint
    session_id: int
    content_size: int
    block_size: int
    total_blocks: int


@dataclass(frozen=True, slots=True)
class Silence:
    """A server that has been asked and has not answered yet.

    Attributes:
        server: where it was asked.
        interface: from where.
        asked: how often.
        message: that, the likely cause and what to do.
    """

    server: Endpoint
    interface: str
    asked: int
    message: str


async def find_offer(
    server: str,
    *,
    port: int,
    namespace: str,
    content: str,
    interface: str | None,
    timeout: float,
    on_silence: Callable[[Silence], None] | None = None,
) -> Offer:
    """Ask a server to set up a content for delivery.

    Args:
        server: its name or address.
        port: its initiation port.
        namespace: where the content is.
        content: its name.
        interface: name or address of the interface to use; None for the one that leads to the server.
        timeout: seconds.
        on_silence: called when nothing has come for five seconds, and then ever more seldom.

    Raises:
        UsageError: no such interface, or the server's name is not known.
        RefusedError: the server has no such content.
        NobodyAnsweredError: no answer in time.
        RemoteError: an answer that cannot be right.
    """
    endpoints = await trio.to_thread.run_sync(resolve, server, port, abandon_on_cancel=True)
    asked = endpoints[0]
    if interface is None:
        if "%" not in asked[0] and ipaddress.ip_address(asked[0]).is_link_local and ":" in asked[0]:
            raise UsageError(
                f"{server} is a link-local address, which each network has its own of; say which one is "
                f"meant: {asked[0]}%eth0, or --interface eth0"
            )
        chosen, local = await trio.to_thread.run_sync(route_to, asked[0], port, abandon_on_cancel=True)
    else:
        chosen = await trio.to_thread.run_sync(find_interface, interface)
        usable = [at for at in endpoints if chosen.address_for(family_of(at[0])) is not None]
        if not usable:
            raise UsageError(
                f"interface {chosen} has no address of the kind that {server} has ({asked[0]}); "
                "choose another --interface"
            )
        asked = usable[0]
        local = interface if _is_address(interface) else chosen.address_for(family_of(asked[0])) or ""
    v6 = family_of(asked[0]) == socket.AF_INET6
    if v6:
        asked, local = (with_zone(asked[0], chosen), asked[1]), with_zone(local, chosen)
    # Who asks over IPv6 need not be able to hear a group there: loopback and many tunnels are not (2.2.2.1).
    request = Request(
        namespace, content, chosen.mac, chosen.carries_multicast(socket.AF_INET6) if v6 else None
    )
    try:
        encode(request)
    except ValueError as error:
        raise UsageError(
            f"{content!r} in namespace {namespace!r} cannot be asked for ({error}); check both names"
        ) from error
    where = f"{server} ({asked[0]} port {asked[1]}), asked from {local} on {chosen.name}"

    def still_silent(times: int, failure: OSError | None) -> None:
        if on_silence is None:
            return
        if failure is not None:
            cause = f"The request cannot leave this machine: {failure.strerror or failure}"
        else:
            cause = "The server may not be running, or a firewall may drop what goes either way"
        message = (
            f"no answer yet from {where} {times} times. {cause}. Check the server, its --port, UDP port "
            f"{asked[1]} and --interface; it is asked again until {timeout:g} seconds are over."
        )
        on_silence(Silence(asked, chosen.name, times, message))

    answer = await request_session(asked, local, request, timeout, still_silent)
    if answer is None:
        raise NobodyAnsweredError(
            f"no answer from {where} within {timeout:g} seconds. Check that the server is running there with "
            f"this --port, that UDP port {asked[1]} passes the firewalls, and that --interface is right."
        )
    if isinstance(answer, ErrorReply):
        why = _CODES.get(answer.error, f"Win32 error {answer.error}. Ask its administrator")
        raise RefusedError(
            f"{where} refused {content!r} in namespace {namespace!r}: {why}.",
            answer.error,
        )
    return _checked(answer, asked, chosen, local, where)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _checked(reply: Reply, asked: Endpoint, interface: Interface, local: str, where: str) -> Offer:
    """An offer made of a reply whose parts fit together (MS-WDSMSI 2.2.2.2)."""
    group = ipaddress.ip_address(reply.multicast_address)
    unicast = ipaddress.ip_address(reply.server_address)
    sound = (
        group.is_multicast
        and group.version == unicast.version
        and not unicast.is_multicast
        and reply.multicast_port == reply.server_port != 0
        and 0 < reply.block_size <= MAX_BLOCK_SIZE
        and reply.total_blocks <= _MOST_BLOCKS
        and reply.total_blocks == total_blocks(reply.content_size, reply.block_size)
    )
    if not sound:
        raise RemoteError(
            f"{where} answered with an offer that contradicts itself: group {group} port "
            f"{reply.multicast_port}, server {unicast} port {reply.server_port}, {reply.content_size} bytes "
            f"in {reply.total_blocks} blocks of {reply.block_size}. Is it a WDS server?"
        )
    family = socket.AF_INET if group.version == 4 else socket.AF_INET6
    if family_of(local) != family:
        other = interface.address_for(family)
        if other is None:
            raise RemoteError(
                f"{where} offered a session over IPv{group.version}, and {interface.name} has no such "
                "address; choose another --interface."
            )
        local = other
    server_host, group_host = str(unicast), str(group)
    if group.version == 6:
        server_host, group_host = with_zone(server_host, interface), with_zone(group_host, interface)
    return Offer(
        asked=asked,
        interface=interface,
        local_address=local,
        server=(server_host, reply.server_port),
        group=(group_host, reply.multicast_port),
        session_id=reply.session_id,
        content_size=reply.content_size,
        block_size=reply.block_size,
        total_blocks=reply.total_blocks,
    )


def open_sockets(offer: Offer) -> Sockets:
    """The two sockets of a client (one of its own, one of the group's), open.

    Raises:
        TransportError: the interface cannot do it.
    """
    group_host, port = offer.group
    group = open_group_socket(group_host, port, offer.interface, offer.server[0])
    try:
        own = open_client_socket(offer.local_address, offer.server)
    except BaseException:
        group.sock.close()
        raise
    return Sockets(group, own, offer.server)


def demoted_sockets(offer: Offer, event: Demoted) -> Sockets:
    """The sockets for the session that a DEMOTE named (MS-WDSMT 3.2.5.16)."""
    if not ipaddress.ip_address(event.multicast_address).is_multicast:
        raise RemoteError(
            f"{offer.server[0]} sent this client to a slower session without a multicast address; it cannot "
            "follow. Start again, and tell the server's administrator."
        )
    server_host = str(ipaddress.ip_address(event.unicast_address))
    group_host = str(ipaddress.ip_address(event.multicast_address))
    if ":" in server_host:
        server_host = with_zone(server_host, offer.interface)
        group_host = with_zone(group_host, offer.interface)
    lower = replace(offer, server=(server_host, event.unicast_port), group=(group_host, event.multicast_port))
    return open_sockets(lower)


def new_session(
    offer: Offer,
    *,
    security: str,
    parameters: ClientParameters,
    rng: random.Random,
    have: Iterable[tuple[int, int]] = (),
) -> ClientSession:
    """A client session for an offer; it starts joining at once.

    Args:
        offer: the server's.
        security: checksum or none; initiation over UDP does not say which (MS-WDSMSI 3.1.5.3 means checksum).
        parameters: timers and cache.
        rng: where back-offs come from.
        have: inclusive ranges of blocks that need not come.
    """
    mode = MODES[security]
    host = offer.local_address.partition("%")[0]
    return ClientSession(
        session_id=offer.session_id,
        server=offer.server,
        content_size=offer.content_size,
        block_size=offer.block_size,
        total_blocks=offer.total_blocks,
        client_name=fit_client_name(socket.gethostname().partition(".")[0]),
        ip_address=ipaddress.ip_address(host).packed,
        mac_address=offer.interface.mac,
        client_security=make_security(mode),
        server_security=make_security(mode),
        parameters=parameters,
        rng=rng,
        now=trio.current_time(),
        have=have,
    )
