"""Where sessions are served: interfaces, groups and ports."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Set
from dataclasses import dataclass

from wdstransport.errors import TransportError, UsageError
from wdstransport.net.interfaces import Interface, family_of, find_interface
from wdstransport.net.multicast import OpenSocket, is_port_in_use, open_server_socket

__all__ = ["NoFreePortError", "Place", "SessionPlaces"]

_USABLE = {
    socket.AF_INET: "an IPv4 one from 239.192.0.0 to 239.195.255.255",
    socket.AF_INET6: "an IPv6 one that begins with ff15:",
}
_FLOODED = ipaddress.ip_network("224.0.0.0/24")
_GROUP4, _GROUP6 = "239.192.80.1", "ff15::5744:1"
_SNDBUF, _RCVBUF = 1 << 20, 4 << 20


class NoFreePortError(TransportError):
    """Every UDP port of the range for sessions is taken; one is free again when a session ends."""


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
            UsageError: not a multicast address or one that cannot be used, or not a range of ports.
        """
        if group is not None and (why := _unfit(group)) is not None:
            raise UsageError(f"{group} {why}; give {' or '.join(_USABLE.values())}")
        if ports is not None and not 1 <= ports[0] <= ports[1] <= 65535:
            raise UsageError(f"{ports[0]}-{ports[1]} is not a range of UDP ports (1 to 65535, low first)")
        self._group = group
        self._ports = ports
        self._taken: set[str] = set()

    def check_group(self, families: Set[int]) -> None:
        """Refuse a group that no session of a server that listens on these families could be sent to.

        Raises:
            UsageError: the group is of another family.
        """
        if self._group is None or (family := family_of(self._group)) in families:
            return
        mine, theirs = ("IPv6", "IPv4") if family == socket.AF_INET6 else ("IPv4", "IPv6")
        other = _USABLE[socket.AF_INET if family == socket.AF_INET6 else socket.AF_INET6]
        raise UsageError(
            f"the group {self._group} is {mine} and the server listens on {theirs} only, so no session could "
            f"use it; give {other} as --group, or an --interface with an {mine} address"
        )

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
            NoFreePortError: every port of the range is taken.
            TransportError: the system refuses.
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
        raise NoFreePortError(
            f"no UDP port from {self._ports[0]} to {self._ports[1]} is free on {place.address}; "
            "widen --session-ports"
        )


def _unfit(group: str) -> str | None:
    """Why sessions cannot be sent to a group, or None."""
    try:
        address = ipaddress.ip_address(group)
    except ValueError:
        return "is not a multicast address"
    if not address.is_multicast:
        return "is not a multicast address"
    if address in _FLOODED:
        return "belongs to the network's own protocols (224.0.0.0/24): switches send it to every port"
    if address.version == 6 and address.packed[1] & 0x0F <= 1:
        return "is interface-local: it does not leave this machine"
    return None
