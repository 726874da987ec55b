"""The sockets of both sides: who sends from where, who listens to which group.

The server sends everything, to the group and to single clients, from one socket bound to its unicast address
and the session's port, and receives on it. A client has two: one of its own, and one bound to the group.
All are plain non-blocking UDP sockets. What a user can put right is a UsageError, what the system refuses
for other reasons a TransportError; the OSError is its `__cause__`.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from dataclasses import dataclass

from wdstransport.errors import TransportError, UsageError
from wdstransport.net.buffers import buffer_warning, set_buffer
from wdstransport.net.interfaces import (
    Endpoint,
    Interface,
    family_of,
    list_interfaces,
    split_zone,
    with_zone,
)

__all__ = [
    "GroupSocket",
    "OpenSocket",
    "buffer_warning",
    "is_port_in_use",
    "join_group",
    "open_client_socket",
    "open_group_socket",
    "open_server_socket",
    "send_groups_to",
    "set_buffer",
]

# Linux's numbers, from linux/in.h and linux/in6.h; the socket module lacks them.
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_MCAST_JOIN_SOURCE_GROUP = 46

_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})

_Address = tuple[str, int] | tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """A bound, non-blocking UDP socket.

    Attributes:
        sock: the socket; whoever opened it closes it.
        address: where it is bound, with the port the system chose.
        rcvbuf: bytes of receive buffer granted.
        sndbuf: bytes of send buffer granted.
        warnings: what the administrator should know, ready to be shown.
    """

    sock: socket.socket
    address: Endpoint
    rcvbuf: int
    sndbuf: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupSocket(OpenSocket):
    """A socket that hears a group.

    Attributes:
        source_specific: the join asked the network for one source's packets only (RFC 4607).
    """

    source_specific: bool


def open_server_socket(
    address: str, port: int, interface: Interface, ttl: int, *, sndbuf: int, rcvbuf: int
) -> OpenSocket:
    """Open the one socket a session sends from: to its group out of `interface`, and to single clients.

    Clients on the server's own machine hear the group too. The port is not shared with anybody.

    Args:
        address: a unicast address of this machine, numeric.
        port: 0 lets the system choose.
        interface: where packets for groups go out.
        ttl: how many routers a group's packet may pass plus one, 0 to 255.
        sndbuf: bytes of send buffer wanted.
        rcvbuf: bytes of receive buffer wanted.

    Raises:
        UsageError: not an address of this machine, port in use (see `is_port_in_use`) or reserved, TTL out
            of range, an interface that carries no multicast.
        TransportError: the system refused for another reason.
    """
    if not 0 <= ttl <= 255:
        raise UsageError(f"a TTL is 0 to 255, not {ttl}")
    family = family_of(address)
    _check_interface(interface, family)
    sock = _new_socket(family)
    try:
        _bind(sock, _sockaddr(with_zone(address, interface), port))
        send_groups_to(sock, interface, ttl)
        return OpenSocket(sock, _bound_to(sock), *_buffers(sock, rcvbuf, sndbuf))
    except BaseException:
        sock.close()
        raise


def send_groups_to(sock: socket.socket, interface: Interface, ttl: int) -> None:
    """Let packets for groups leave by `interface`, with that TTL, and be heard on this machine too.

    An interface that was removed and came back is another one to the kernel, and needs this again.

    Raises:
        UsageError: the interface carries no multicast or is gone.
        TransportError: the system refused for another reason.
    """
    try:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _membership("0.0.0.0", interface))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface.index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, ttl)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
    except OSError as error:
        raise _unusable(interface, error) from error


def open_group_socket(
    group: str, port: int, interface: Interface, source: str | None, *, rcvbuf: int = 32 << 20
) -> GroupSocket:
    """Open a socket that hears what is sent to `group` and `port`, as any number of processes here may.

    The join is source-specific where the system can, so that the network carries only the server's packets;
    where it cannot, packets of others arrive as well. Compare the source in either case.

    Args:
        group: a multicast address, numeric.
        port: the session's port.
        interface: where the group is to be heard.
        source: the server's unicast address; None hears everybody.
        rcvbuf: bytes of receive buffer wanted; what arrives while the process is busy must fit.

    Raises:
        UsageError: not a multicast address, port held by somebody who does not share it, an interface that
            carries no multicast.
        TransportError: the system refused for another reason.
    """
    family = family_of(group)
    _check_group(group)
    _check_interface(interface, family)
    sock = _new_socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        zone = with_zone(group, interface)
        try:
            sock.bind(_sockaddr(zone, port))
        except OSError as error:
            if sys.platform.startswith("linux") or error.errno not in _NO_SUCH_ADDRESS:
                raise _not_bound(zone, port, error) from error
            # Windows binds no socket to a group. Then it also gets what is sent to the machine itself.
            _bind(sock, ("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        _only_own_groups(sock)
        specific = join_group(sock, group, interface, source)
        return GroupSocket(sock, _bound_to(sock), *_buffers(sock, rcvbuf, 0), specific)
    except BaseException:
        sock.close()
        raise


def open_client_socket(
    local_address: str | None, server: Endpoint, *, sndbuf: int = 256 << 10, rcvbuf: int = 1 << 20
) -> OpenSocket:
    """Open the socket a client sends from, on a port of its own.

    It is not connected: a client follows a DEMOTE to another address (MS-WDSMT 3.2.5.16) from this socket,
    and an ICMP error then does not end a read.

    Args:
        local_address: numeric, of this machine; None: any of the server's family.
        server: where it will send; decides the family only.
        sndbuf: bytes of send buffer wanted.
        rcvbuf: bytes of receive buffer wanted.

    Raises:
        UsageError: not an address of this machine, or not of the server's family.
        TransportError: the system refused for another reason.
    """
    family = family_of(server[0])
    if local_address is None:
        local_address = "::" if family == socket.AF_INET6 else "0.0.0.0"
    elif family_of(local_address) != family:
        raise UsageError(f"{local_address} cannot reach {server[0]}: one is IPv4, the other IPv6")
    sock = _new_socket(family)
    try:
        _bind(sock, _sockaddr(local_address, 0))
        return OpenSocket(sock, _bound_to(sock), *_buffers(sock, rcvbuf, sndbuf))
    except BaseException:
        sock.close()
        raise


def join_group(sock: socket.socket, group: str, interface: Interface, source: str | None) -> bool:
    """Join a group, source-specifically if that can be had; joining again what was joined is no error.

    An interface that vanishes takes its memberships along; this brings them back when it is there again.

    Returns:
        Whether the join is source-specific.

    Raises:
        UsageError: the interface carries no multicast.
        TransportError: the system refused.
    """
    if source is not None and _join_source(sock, group, interface, source):
        return True
    family = family_of(group)
    host = split_zone(group)[0]
    try:
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _membership(host, interface))
        else:
            request = socket.inet_pton(family, host) + struct.pack("@I", interface.index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        if error.errno == errno.ENOBUFS:
            raise TransportError(
                f"cannot join {group}: too many groups joined; raise the sysctl net.ipv4.igmp_max_memberships"
            ) from error
        raise _unusable(interface, error) from error
    return False


def is_port_in_use(error: BaseException) -> bool:
    """Whether opening failed only because somebody holds the port, so that another port may do."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE


def _new_socket(family: socket.AddressFamily) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        raise TransportError(f"this system gives no UDP socket for {family.name} ({error})") from error
    sock.setblocking(False)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _sockaddr(address: str, port: int) -> _Address:
    if not 0 <= port <= 0xFFFF:
        raise UsageError(f"a port is 0 to 65535, not {port}")
    host, zone = split_zone(address)
    return (host, port, 0, zone) if ":" in host else (host, port)


def _bind(sock: socket.socket, address: _Address) -> None:
    try:
        sock.bind(address)
    except OSError as error:
        raise _not_bound(address[0], address[1], error) from error


def _not_bound(host: str, port: int, error: OSError) -> TransportError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(
            f"port {port} on {host} is in use; stop who holds it (ss -ulpn), or give another port"
        )
    if error.errno in _NO_SUCH_ADDRESS:
        there = ", ".join(map(str, list_interfaces()))
        return UsageError(f"this machine has no address {host}; there are {there}")
    if error.errno in _FORBIDDEN:
        return UsageError(f"not permitted to use port {port} on {host}; give one above 1023, or run as root")
    return TransportError(f"cannot use port {port} on {host} ({error})")


def _bound_to(sock: socket.socket) -> Endpoint:
    name = sock.getsockname()
    scope = name[3] if len(name) == 4 else 0
    return (f"{name[0]}%{scope}" if scope else name[0]), name[1]


def _buffers(sock: socket.socket, rcvbuf: int, sndbuf: int) -> tuple[int, int, tuple[str, ...]]:
    got_in, got_out = set_buffer(sock, socket.SO_RCVBUF, rcvbuf), set_buffer(sock, socket.SO_SNDBUF, sndbuf)
    told = (buffer_warning(got_in, rcvbuf), buffer_warning(got_out, sndbuf, socket.SO_SNDBUF))
    return got_in, got_out, tuple(warning for warning in told if warning is not None)


def _check_group(group: str) -> None:
    host = split_zone(group)[0]
    first = socket.inet_pton(family_of(group), host)[0]
    if first != 0xFF if ":" in host else first >> 4 != 0xE:
        raise UsageError(f"{group} is not a multicast address (239.0.0.0/8 and ff00::/8 are)")


def _check_interface(interface: Interface, family: socket.AddressFamily) -> None:
    if interface.carries_multicast(family):
        return
    version = "IPv6" if family == socket.AF_INET6 else "IPv4"
    if not interface.up:
        why = "it is down"
    elif interface.address_for(family) is None:
        why = f"it has no {version} address"
    else:
        why = "it lacks the MULTICAST flag"
    fit = [str(other) for other in list_interfaces() if other.carries_multicast(family)]
    raise UsageError(
        f"interface {interface.name} carries no {version} multicast: {why}; "
        f"{'these do: ' + ', '.join(fit) if fit else 'no interface here does'}"
    )


def _unusable(interface: Interface, error: OSError) -> TransportError:
    if error.errno in _NO_SUCH_ADDRESS:
        return UsageError(f"interface {interface} carries no multicast, or is gone ({error}); name another")
    return TransportError(f"the system refuses multicast on interface {interface} ({error})")


def _membership(group: str, interface: Interface) -> bytes:
    # struct ip_mreqn, or its first two fields where nothing is known of an index.
    address = socket.inet_aton(group) + socket.inet_aton(interface.address_for(socket.AF_INET) or "0.0.0.0")
    by_index = sys.platform.startswith("linux") and interface.index
    return address + struct.pack("@i", interface.index) if by_index else address


def _only_own_groups(sock: socket.socket) -> None:
    """Hear only groups this socket joined; Linux's default is every group that anybody here joined."""
    if not sys.platform.startswith("linux"):
        return
    option = (
        (socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL)
        if sock.family == socket.AF_INET6
        else (socket.IPPROTO_IP, _IP_MULTICAST_ALL)
    )
    try:
        sock.setsockopt(*option, 0)
    except OSError:
        # Before Linux 4.20 there is no such thing for IPv6; the socket is bound to the group anyway.
        return


def _join_source(sock: socket.socket, group: str, interface: Interface, source: str) -> bool:
    if not sys.platform.startswith("linux") or not interface.index:
        return False
    # struct group_source_req (RFC 3678 5.1.2): an index and two sockaddr_storage, which long-align.
    request = struct.pack("@I0L", interface.index) + _storage(group, interface) + _storage(source, interface)
    level = socket.IPPROTO_IPV6 if ":" in group else socket.IPPROTO_IP
    try:
        sock.setsockopt(level, _MCAST_JOIN_SOURCE_GROUP, request)
    except OSError as error:
        # What ip_mc_source and ip6_mc_source say of a source that is joined already.
        return error.errno == errno.EADDRNOTAVAIL
    return True


def _storage(address: str, interface: Interface) -> bytes:
    host, zone = split_zone(with_zone(address, interface))
    if ":" in host:
        raw = struct.pack("@HHI", socket.AF_INET6, 0, 0) + socket.inet_pton(socket.AF_INET6, host)
        return (raw + struct.pack("@I", zone)).ljust(128, b"\0")
    return (struct.pack("@HH", socket.AF_INET, 0) + socket.inet_aton(host)).ljust(128, b"\0")
