"""Which network interfaces there are, and which one leads to a peer.

Addresses are strings as `ipaddress` prints them. An IPv6 address that means something on one link only
(link-local, or a group of that scope) carries its zone as `%index`, in numbers, everywhere in
`wdstransport.net`: so two such strings are equal exactly when they name the same endpoint.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from wdstransport.errors import TransportError, UsageError

__all__ = [
    "ETHERNET_MTU",
    "Endpoint",
    "Interface",
    "block_size_for",
    "family_of",
    "find_interface",
    "list_interfaces",
    "resolve",
    "route_to",
    "split_zone",
    "with_zone",
]

Endpoint = tuple[str, int]

ETHERNET_MTU = 1500

# No link that cuts data into frames goes so far; an MTU beyond it is a loopback's or a tunnel's device.
_LARGEST_FRAME = 16000
_LONGEST_DATAGRAM = 65507

# linux/rtnetlink.h, if_link.h, if_addr.h, if.h
_RTM_GETLINK, _RTM_GETADDR = 18, 22
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x08, 0x20, 0x40
_IFF_UP, _IFF_LOOPBACK, _IFF_MULTICAST = 0x1, 0x8, 0x1000
_NO_MAC = bytes(6)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface as it was when it was looked up.

    Attributes:
        name: what the system calls it; where the system tells only addresses, the address.
        index: the system's number for it; 0 where it tells none.
        mtu: bytes of the largest IP packet it carries unfragmented.
        mac: 6 bytes, zeros where there is none (loopback, tunnels).
        ipv4: its IPv4 addresses, the primary one first.
        ipv6: its IPv6 addresses, link-local and deprecated ones last.
        up: administratively up.
        multicast: has the MULTICAST flag, which Linux's loopback interface lacks.
        loopback: the machine itself.
    """

    name: str
    index: int
    mtu: int
    mac: bytes
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    up: bool
    multicast: bool
    loopback: bool = False

    def address_for(self, family: int) -> str | None:
        """The first address of `family` (AF_INET or AF_INET6), or None."""
        addresses = self.ipv6 if family == socket.AF_INET6 else self.ipv4
        return addresses[0] if addresses else None

    def carries_multicast(self, family: int) -> bool:
        """Whether a group of `family` works here: loopback does IPv4 multicast without having the flag."""
        if not self.up or self.address_for(family) is None:
            return False
        return self.multicast or (self.loopback and family == socket.AF_INET)

    def __str__(self) -> str:
        """Name and addresses, as in messages."""
        return (
            f"{self.name} ({', '.join(self.ipv4 + self.ipv6) or 'no address'}{'' if self.up else ', down'})"
        )


def family_of(address: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6 of a numeric address.

    Raises:
        UsageError: it is not one.
    """
    return socket.AF_INET if _parse(address).version == 4 else socket.AF_INET6


def split_zone(address: str) -> tuple[str, int]:
    """Take `fe80::1%2` or `fe80::1%eth0` apart into host and interface index; 0 when there is no zone.

    Raises:
        UsageError: no interface of that name.
    """
    host, _, zone = address.partition("%")
    if not zone:
        return host, 0
    if zone.isascii() and zone.isdigit():
        return host, int(zone)
    try:
        return host, socket.if_nametoindex(zone)
    except OSError as error:
        raise UsageError(
            f"no interface {zone!r}, which {address!r} names; there are {_inventory()}"
        ) from error


def with_zone(address: str, interface: Interface) -> str:
    """The canonical form of an address, with the interface as its zone if it needs one and has none.

    Raises:
        UsageError: not a numeric address, or its zone is no interface.
    """
    parsed = _parse(address)
    host, zone = split_zone(address)
    plain = str(ipaddress.ip_address(host))
    if not _needs_zone(parsed):
        return plain
    zone = zone or interface.index
    return f"{plain}%{zone}" if zone else plain


def list_interfaces() -> list[Interface]:
    """Every interface of this machine (of this network namespace), with or without addresses."""
    if sys.platform.startswith("linux"):
        try:
            return _from_netlink()
        except OSError:
            # A sandbox may forbid netlink; what binding and routing tell must do.
            pass
    return _from_addresses()


def find_interface(name_or_address: str) -> Interface:
    """The interface of that name, or the one that has that address.

    Raises:
        UsageError: there is none; the message lists those that exist.
    """
    interfaces = list_interfaces()
    for interface in interfaces:
        if interface.name == name_or_address:
            return interface
    try:
        wanted = _parse(name_or_address)
    except UsageError:
        wanted = None
    if wanted is not None:
        found = _owner(interfaces, wanted)
        if found is not None:
            return found
    raise UsageError(f"no interface {name_or_address!r} on this machine; there are {_inventory(interfaces)}")


def resolve(host: str, port: int, family: int = socket.AF_UNSPEC) -> tuple[Endpoint, ...]:
    """Numeric endpoints of a host name, best first; asks the system's resolver, so it may block.

    Raises:
        UsageError: the name is not known.
    """
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"cannot find the address of {host!r} ({error}); check the name, or give the address itself"
        ) from error
    return tuple(dict.fromkeys(_endpoint(info[4]) for info in found))


def route_to(host: str, port: int) -> tuple[Interface, str]:
    """The interface and local address from which packets to a host would leave; none is sent.

    Raises:
        UsageError: the host's name is not known (see `resolve`).
        TransportError: no route leads there.
    """
    failure: OSError | None = None
    for endpoint in resolve(host, port):
        try:
            local = _local_address(endpoint)
        except OSError as error:
            failure = error
            continue
        address = _parse(local)
        interfaces = list_interfaces()
        found = _owner(interfaces, address)
        return (found if found is not None else _nameless(local)), local
    raise TransportError(
        f"no route to {host} ({failure}); check that the interface that leads there is up, or name one: "
        f"{_inventory()}"
    ) from failure


def block_size_for(mtu: int, family: int, overhead: int, *, keep_large: bool = False) -> int:
    """The biggest block that fits one unfragmented datagram.

    Args:
        mtu: bytes; beyond 16,000 it is no real link's (loopback has 65536), and Ethernet's 1500 counts, since
            blocks of such a session would be cut to pieces by any other network.
        family: AF_INET (28 bytes of IP and UDP headers) or AF_INET6 (48).
        overhead: bytes of the datagram's payload that are not the block.
        keep_large: take a large MTU at its word, up to the longest datagram there can be.

    Raises:
        UsageError: the MTU leaves no room for a block.
    """
    if mtu > _LARGEST_FRAME and not keep_large:
        mtu = ETHERNET_MTU
    payload = min(mtu - (48 if family == socket.AF_INET6 else 28), _LONGEST_DATAGRAM)
    if payload <= overhead:
        raise UsageError(f"an MTU of {mtu} bytes has no room for a block beside {overhead} bytes of headers")
    return payload - overhead


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(address)
    except ValueError as error:
        raise UsageError(f"{address!r} is not an IPv4 or IPv6 address") from error


def _needs_zone(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    # RFC 4291 2.7: scope 1 is the interface, 2 the link.
    if address.version == 4:
        return False
    return address.is_link_local or (address.is_multicast and address.packed[1] & 0x0F in (1, 2))


def _endpoint(raw: tuple[object, ...]) -> Endpoint:
    host, port = str(raw[0]), int(str(raw[1]))
    scope = raw[3] if len(raw) == 4 else 0
    return (f"{host.partition('%')[0]}%{scope}" if scope else host), port


def _local_address(endpoint: Endpoint) -> str:
    host, zone = split_zone(endpoint[0])
    family = family_of(host)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(
            (host, endpoint[1] or 9, 0, zone) if family == socket.AF_INET6 else (host, endpoint[1] or 9)
        )
        return _endpoint(probe.getsockname())[0]


def _owner(
    interfaces: list[Interface], address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> Interface | None:
    host, zone = split_zone(str(address))
    for interface in interfaces:
        if zone and zone != interface.index:
            continue
        if any(host == own.partition("%")[0] for own in interface.ipv4 + interface.ipv6):
            return interface
    if address.is_loopback:
        # All of 127.0.0.0/8 is local, though only 127.0.0.1 is listed.
        return next((interface for interface in interfaces if interface.loopback), None)
    return None


def _nameless(address: str) -> Interface:
    parsed = _parse(address)
    v4, v6 = ((address,), ()) if parsed.version == 4 else ((), (address,))
    return Interface(
        name=address,
        index=split_zone(address)[1],
        mtu=ETHERNET_MTU,
        mac=_NO_MAC,
        ipv4=v4,
        ipv6=v6,
        up=True,
        multicast=not parsed.is_loopback,
        loopback=parsed.is_loopback,
    )


def _inventory(interfaces: list[Interface] | None = None) -> str:
    return ", ".join(map(str, list_interfaces() if interfaces is None else interfaces)) or "none"


def _from_addresses() -> list[Interface]:
    """What a system tells that has no rtnetlink: addresses, each taken for an interface of its own."""
    found: dict[str, None] = {"127.0.0.1": None, "::1": None}
    try:
        own = socket.getaddrinfo(socket.gethostname(), None, socket.AF_UNSPEC, socket.SOCK_DGRAM)
    except OSError:
        own = []
    found.update((_endpoint(info[4])[0], None) for info in own)
    return [_nameless(address) for address in found if _is_bindable(address)]


def _is_bindable(address: str) -> bool:
    host, zone = split_zone(address)
    family = family_of(host)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0, 0, zone) if family == socket.AF_INET6 else (host, 0))
    except OSError:
        return False
    return True


def _from_netlink() -> list[Interface]:
    addresses: dict[int, list[tuple[bool, str]]] = {}
    for body in _dump(_RTM_GETADDR):
        family, _, flags, _, index = struct.unpack_from("=BBBBI", body)
        attributes = _attributes(body[8:])
        raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if raw is None or family not in (socket.AF_INET, socket.AF_INET6):
            continue
        if family == socket.AF_INET6 and flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED):
            continue
        address = ipaddress.ip_address(bytes(raw))
        last_resort = address.is_link_local or bool(flags & _IFA_F_DEPRECATED)
        text = f"{address}%{index}" if _needs_zone(address) else str(address)
        addresses.setdefault(index, []).append((last_resort, text))
    interfaces = []
    for body in _dump(_RTM_GETLINK):
        _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
        attributes = _attributes(body[16:])
        mac = bytes(attributes.get(_IFLA_ADDRESS, _NO_MAC))
        own = [text for _, text in sorted(addresses.get(index, []), key=lambda pair: pair[0])]
        interfaces.append(
            Interface(
                name=bytes(attributes[_IFLA_IFNAME]).rstrip(b"\0").decode(errors="surrogateescape"),
                index=index,
                mtu=struct.unpack("=I", attributes[_IFLA_MTU])[0],
                mac=mac if len(mac) == 6 else _NO_MAC,
                ipv4=tuple(text for text in own if ":" not in text),
                ipv6=tuple(text for text in own if ":" in text),
                up=bool(flags & _IFF_UP),
                multicast=bool(flags & _IFF_MULTICAST),
                loopback=bool(flags & _IFF_LOOPBACK),
            )
        )
    return sorted(interfaces, key=lambda interface: interface.index)


def _dump(kind: int) -> Iterator[memoryview]:
    """The bodies of the messages that answer a dump request (RFC 3549)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        # The family byte, and the padding that makes it the ifinfomsg which stricter kernels want.
        request = bytes(16)
        netlink.send(struct.pack("=IHHII", 16 + len(request), kind, _NLM_F_REQUEST_DUMP, 1, 0) + request)
        while True:
            data = memoryview(netlink.recv(1 << 18))
            while len(data) >= 16:
                length, answer, *_ = struct.unpack_from("=IHHII", data)
                if answer == _NLMSG_DONE:
                    return
                if answer == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, 16)[0]
                    raise OSError(code, errno.errorcode.get(code, "netlink error"))
                yield data[16:length]
                data = data[(length + 3) & ~3 :]


def _attributes(data: memoryview) -> dict[int, memoryview]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found
