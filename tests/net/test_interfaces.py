import errno
import ipaddress
import socket
import struct
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.errors import TransportError, UsageError
from wdstransport.net import interfaces
from wdstransport.net.interfaces import (
    Interface,
    block_size_for,
    family_of,
    find_interface,
    list_interfaces,
    resolve,
    route_to,
    split_zone,
    with_zone,
)


def made_up(**changes):
    facts = {
        "name": "eth7",
        "index": 7,
        "mtu": 1500,
        "mac": b"\2\0\0\0\0\7",
        "ipv4": ("192.0.2.7",),
        "ipv6": ("2001:db8::7", "fe80::7%7"),
        "up": True,
        "multicast": True,
    }
    return Interface(**(facts | changes))


@pytest.fixture
def no_netlink(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(interfaces, "_dump", refuse)


class Netlink:
    """A netlink socket that answers a request with these messages, each datagram a list of them."""

    def __init__(self, *datagrams):
        self.datagrams = list(datagrams)
        self.asked = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def bind(self, address):
        assert address == (0, 0)

    def send(self, request):
        self.asked.append(bytes(request))

    def recv(self, _):
        return b"".join(padded(message) for message in self.datagrams.pop(0))


def padded(data):
    return data + bytes(-len(data) % 4)


def netlink_message(kind, body):
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body


def attributes(*pairs):
    return b"".join(padded(struct.pack("=HH", 4 + len(value), kind) + value) for kind, value in pairs)


def link_message(index, flags, *pairs, unpadded=0):
    body = struct.pack("=BxHiII", 0, 1, index, flags, 0) + attributes(*pairs)
    return netlink_message(16, body[: len(body) - unpadded])


def address_message(index, address, *, flags=0, kind=2, family=None, more=()):
    packed = ipaddress.ip_address(address).packed
    family = family or (socket.AF_INET if len(packed) == 4 else socket.AF_INET6)
    body = struct.pack("=BBBBI", family, 24, flags, 0, index)
    return netlink_message(20, body + attributes((kind, packed), *more))


DONE = netlink_message(3, bytes(4))


def test_loopback_is_listed_and_carries_ipv4_multicast():
    loopback = next(interface for interface in list_interfaces() if interface.loopback)
    assert "127.0.0.1" in loopback.ipv4
    assert loopback.up
    assert loopback.mac == bytes(6)
    assert loopback.mtu >= 1500
    assert loopback.carries_multicast(socket.AF_INET)
    assert not loopback.carries_multicast(socket.AF_INET6)


def test_interfaces_agree_with_the_systems_own_list():
    assert {(one.index, one.name) for one in list_interfaces()} == set(socket.if_nameindex())


def test_what_the_kernel_tells_becomes_interfaces_in_the_order_of_their_numbers(monkeypatch):
    up, loopback, multicast = 0x1, 0x8, 0x1000
    address, name, mtu = 1, 3, 4
    peer = ipaddress.ip_address("10.0.0.200").packed
    tentative, failed, deprecated = 0x40, 0x08, 0x20
    addresses = Netlink(
        [address_message(9, "10.0.9.1"), address_message(4, "10.0.0.1", kind=2, more=((1, peer),))],
        [
            address_message(9, "10.0.1.1", kind=1, flags=tentative),
            address_message(9, "fe80::9", kind=1),
            address_message(9, "fd99::2", kind=1, flags=deprecated),
            address_message(9, "fd99::9", kind=1),
            address_message(9, "fd99::1", kind=1),
            address_message(9, "fd99::66", kind=1, flags=tentative),
            address_message(9, "fd99::67", kind=1, flags=failed),
            address_message(9, "10.0.0.66", family=17),
            address_message(9, "10.0.0.67", kind=3),
            DONE,
        ],
    )
    links = Netlink(
        [
            link_message(
                4, up, (address, b""), (mtu, struct.pack("=I", 1400)), (name, b"tun4\0"), unpadded=3
            ),
            link_message(
                9,
                up | multicast,
                (address, b"\2\0\0\0\0\7"),
                (name, b"eth9\0"),
                (mtu | 0x8000, struct.pack("=I", 9000)),
            ),
        ],
        [
            link_message(
                1, up | loopback, (name, b"lo\0"), (address, bytes(6)), (mtu, struct.pack("=I", 65536))
            ),
            link_message(5, 0, (name, b"ib0\0"), (address, bytes(range(20))), (mtu, struct.pack("=I", 2044))),
        ],
        [netlink_message(3, b"")],
    )
    netlinks = [addresses, links]
    opened = []

    def make(*kind):
        opened.append(kind)
        return netlinks.pop(0)

    monkeypatch.setattr(interfaces, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(interfaces.socket, "socket", make)
    assert list_interfaces() == [
        Interface("lo", 1, 65536, bytes(6), (), (), True, False, True),
        Interface("tun4", 4, 1400, bytes(6), ("10.0.0.1",), (), True, False),
        Interface("ib0", 5, 2044, bytes(6), (), (), False, False),
        Interface(
            "eth9",
            9,
            9000,
            b"\2\0\0\0\0\7",
            ("10.0.9.1", "10.0.1.1"),
            ("fd99::9", "fd99::1", "fe80::9%9", "fd99::2"),
            True,
            True,
        ),
    ]
    assert opened == [(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)] * 2
    asked = [struct.unpack_from("=IHHII", request) for (request,) in (addresses.asked, links.asked)]
    assert [(length, kind, flags) for length, kind, flags, *_ in asked] == [(32, 22, 0x301), (32, 18, 0x301)]
    assert [len(request) for (request,) in (addresses.asked, links.asked)] == [32, 32]


@pytest.mark.parametrize(("code", "name"), [(errno.EPERM, "EPERM"), (9999, "netlink error")])
def test_what_the_kernel_refuses_to_tell_is_an_error_with_its_number(monkeypatch, code, name):
    refusal = netlink_message(2, struct.pack("=i", -code) + bytes(16))
    monkeypatch.setattr(interfaces.socket, "socket", lambda *_: Netlink([refusal]))
    with pytest.raises(OSError, match=name) as caught:
        list(interfaces._dump(18))
    assert caught.value.errno == code


@pytest.mark.parametrize("rest", [struct.pack("=HH", 3, 7) + attributes((2, b"y")), bytes(3), b""])
def test_attribute_that_cannot_be_ends_the_list_of_them(rest):
    found = interfaces._attributes(memoryview(attributes((1, b"x"), (9, b"")) + rest))
    assert {kind: bytes(value) for kind, value in found.items()} == {1: b"x", 9: b""}


class Probe:
    """A socket that only notes what it is bound and connected to."""

    def __init__(self, family, kind):
        assert kind == socket.SOCK_DGRAM
        self.family = family
        self.noted = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def bind(self, address):
        self.noted.append(address)

    connect = bind

    def getsockname(self):
        return ("fe80::99", 40000, 0, 3) if self.family == socket.AF_INET6 else ("10.0.0.9", 40000)


@pytest.fixture
def probes(monkeypatch):
    made = []

    def make(family, kind):
        made.append(Probe(family, kind))
        return made[-1]

    monkeypatch.setattr(interfaces.socket, "socket", make)
    return made


def test_address_is_tried_on_a_port_that_the_system_chooses(probes):
    assert all(map(interfaces._is_bindable, ("10.0.0.9", "fd99::1", "fe80::99%3")))
    assert [probe.noted for probe in probes] == [
        [("10.0.0.9", 0)],
        [("fd99::1", 0, 0, 0)],
        [("fe80::99", 0, 0, 3)],
    ]


def test_route_is_looked_for_to_the_port_asked_or_to_some_port_where_none_is(probes):
    asked = [("192.0.2.1", 5041), ("192.0.2.1", 0), ("fe80::1%3", 5041), ("fe80::1%3", 0)]
    found = [interfaces._local_address(endpoint) for endpoint in asked]
    assert found == ["10.0.0.9", "10.0.0.9", "fe80::99%3", "fe80::99%3"]
    assert [probe.noted for probe in probes] == [
        [("192.0.2.1", 5041)],
        [("192.0.2.1", 9)],
        [("fe80::1", 5041, 0, 3)],
        [("fe80::1", 9, 0, 3)],
    ]


def test_machine_without_any_interface_says_so(monkeypatch):
    monkeypatch.setattr(interfaces, "list_interfaces", list)
    with pytest.raises(UsageError, match="there are none"):
        find_interface("eth0")


@pytest.mark.parametrize("name", ["127.0.0.1", "127.0.0.99"])
def test_interface_is_found_by_its_address(name):
    found = find_interface(name)
    assert found.loopback
    assert find_interface(found.name) == found


@pytest.mark.parametrize("name", ["nosuch0", "192.0.2.200", "2001:db8::99", ""])
def test_unknown_interface_is_refused_with_those_that_exist(name):
    with pytest.raises(UsageError, match=r"there are .*127\.0\.0\.1"):
        find_interface(name)


def test_ipv6_address_is_found_in_any_spelling_and_only_in_its_zone(monkeypatch):
    monkeypatch.setattr(
        interfaces,
        "list_interfaces",
        lambda: [made_up(name="a", index=6, ipv6=("fe80::7%6",)), made_up()],
    )
    assert find_interface("2001:0DB8:0:0::7").name == "eth7"
    assert find_interface("fe80::7").name == "a"
    assert find_interface("fe80::7%7").name == "eth7"
    with pytest.raises(UsageError):
        find_interface("fe80::7%8")


def test_route_to_loopback_is_by_loopback():
    interface, address = route_to("127.0.0.1", 5041)
    assert interface.loopback
    assert address == "127.0.0.1"


def test_route_to_a_name_resolves_it(monkeypatch):
    answer = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(interfaces.socket, "getaddrinfo", lambda *_: answer)
    assert route_to("server.example", 0)[1] == "127.0.0.1"


def test_route_of_a_host_with_two_addresses_is_that_of_the_first_that_can_be_reached(monkeypatch):
    monkeypatch.setattr(
        interfaces, "resolve", lambda *_: (("192.0.2.1", 9), ("127.0.0.1", 9), ("192.0.2.2", 9))
    )

    def local(endpoint):
        if endpoint[0].startswith("192"):
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return endpoint[0]

    monkeypatch.setattr(interfaces, "_local_address", local)
    assert route_to("server.example", 9)[1] == "127.0.0.1"


def test_host_that_no_route_leads_to_is_refused_with_what_the_system_said(monkeypatch):
    def refuse(_):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(interfaces, "_local_address", refuse)
    with pytest.raises(TransportError, match=r"no route to 192\.0\.2\.1 .*Network is unreachable") as caught:
        route_to("192.0.2.1", 9)
    assert caught.value.__cause__.errno == errno.ENETUNREACH


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label")])
def test_unknown_host_is_a_usage_error_with_the_name(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(interfaces.socket, "getaddrinfo", fail)
    with pytest.raises(UsageError, match=r"nowhere\.example"):
        route_to("nowhere.example", 5041)


def test_resolved_endpoints_are_canonical_and_without_repeats(monkeypatch):
    raw = [("fe80::7", 9, 0, 3), ("2001:db8::7", 9, 0, 0), ("fe80::7%eth7", 9, 0, 3)]
    monkeypatch.setattr(
        interfaces.socket, "getaddrinfo", lambda *_: [(10, 2, 17, "", address) for address in raw]
    )
    assert resolve("server.example", 9) == (("fe80::7%3", 9), ("2001:db8::7", 9))


def test_local_address_that_no_interface_lists_still_routes(monkeypatch):
    monkeypatch.setattr(interfaces, "list_interfaces", list)
    interface, address = route_to("127.0.0.1", 1)
    assert (interface.name, interface.index, interface.ipv4) == (address, 0, (address,))
    assert interface.carries_multicast(socket.AF_INET)


def test_without_netlink_addresses_stand_for_interfaces(no_netlink):
    found = find_interface("127.0.0.1")
    assert (found.name, found.index, found.loopback) == ("127.0.0.1", 0, True)
    assert route_to("127.0.0.1", 1) == (found, "127.0.0.1")


def test_another_system_lists_addresses(monkeypatch):
    monkeypatch.setattr(interfaces, "sys", SimpleNamespace(platform="darwin"))
    assert "127.0.0.1" in [interface.name for interface in list_interfaces()]


def test_machine_that_does_not_know_its_own_name_has_loopback_at_least(monkeypatch, no_netlink):
    def fail(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(interfaces.socket, "getaddrinfo", fail)
    assert "127.0.0.1" in [interface.name for interface in list_interfaces()]


@pytest.mark.parametrize(
    ("changes", "v4", "v6"),
    [
        ({}, True, True),
        ({"up": False}, False, False),
        ({"ipv6": ()}, True, False),
        ({"ipv4": ()}, False, True),
        ({"multicast": False}, False, False),
        ({"multicast": False, "loopback": True}, True, False),
    ],
)
def test_which_interfaces_carry_multicast(changes, v4, v6):
    interface = made_up(**changes)
    assert interface.carries_multicast(socket.AF_INET) is v4
    assert interface.carries_multicast(socket.AF_INET6) is v6


def test_interface_in_a_message_has_its_name_addresses_and_state():
    assert str(made_up()) == "eth7 (192.0.2.7, 2001:db8::7, fe80::7%7)"
    assert str(made_up(ipv4=(), ipv6=(), up=False)) == "eth7 (no address, down)"


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("239.1.2.3", "239.1.2.3"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("2001:db8::1%7", "2001:db8::1"),
        ("fe80::1", "fe80::1%7"),
        ("fe80::1%9", "fe80::1%9"),
        ("ff01::1", "ff01::1%7"),
        ("ff02::1", "ff02::1%7"),
        ("ff10::1", "ff10::1"),
        ("ff13::1", "ff13::1"),
        ("ff12::1", "ff12::1%7"),
        ("ff15::1", "ff15::1"),
    ],
)
def test_zone_goes_to_addresses_that_need_one(address, canonical):
    assert with_zone(address, made_up()) == canonical


def test_zone_is_unknown_where_the_interface_has_no_index():
    assert with_zone("fe80::1", made_up(index=0)) == "fe80::1"


def test_zone_by_name_becomes_its_number():
    index, name = socket.if_nameindex()[0]
    assert split_zone(f"fe80::1%{name}") == ("fe80::1", index)
    assert with_zone(f"fe80::1%{name}", made_up()) == f"fe80::1%{index}"
    for zone in ("nosuch0", "\u00b2"):
        with pytest.raises(UsageError, match=zone):
            split_zone(f"fe80::1%{zone}")


def test_family_of_what_is_no_address_is_refused():
    assert family_of("192.0.2.1") is socket.AF_INET
    assert family_of("fe80::1%3") is socket.AF_INET6
    with pytest.raises(UsageError, match=r"server\.example"):
        family_of("server.example")


@pytest.mark.parametrize(
    ("mtu", "family", "overhead", "block"),
    [
        (1500, socket.AF_INET, 87, 1385),
        (1500, socket.AF_INET6, 87, 1365),
        (9000, socket.AF_INET, 87, 8885),
        (65536, socket.AF_INET, 87, 1385),
        (16000, socket.AF_INET, 87, 15885),
        (16001, socket.AF_INET, 87, 1385),
        (116, socket.AF_INET, 87, 1),
    ],
)
def test_biggest_block_in_one_datagram(mtu, family, overhead, block):
    assert block_size_for(mtu, family, overhead) == block


def test_loopbacks_mtu_counts_when_asked_for():
    assert block_size_for(65536, socket.AF_INET, 87, keep_large=True) == 65507 - 87


@pytest.mark.parametrize("mtu", [28, 115])
def test_mtu_without_room_for_a_block_is_refused(mtu):
    with pytest.raises(UsageError, match="no room"):
        block_size_for(mtu, socket.AF_INET, 87)


@settings(max_examples=50)
@given(
    mtu=st.integers(300, 70000),
    family=st.sampled_from([socket.AF_INET, socket.AF_INET6]),
    overhead=st.integers(0, 200),
    keep_large=st.booleans(),
)
def test_block_its_headers_and_those_of_ip_fit_the_mtu(mtu, family, overhead, keep_large):
    block = block_size_for(mtu, family, overhead, keep_large=keep_large)
    headers = 48 if family == socket.AF_INET6 else 28
    assert block > 0
    assert block + overhead + headers <= mtu
    assert block + overhead <= 65507


@pytest.mark.root
def test_addresses_of_a_link_best_first_with_mac_and_mtu(own_network):
    def body(sh):
        sh("ip link set wds0 mtu 1400; ip link set wds1 address 02:00:00:00:00:42; ip link set wds1 down")
        sh("ip addr add 10.99.1.1/24 dev wds0")
        link, peer = find_interface("wds0"), find_interface("wds1")
        assert (link.mtu, link.ipv4) == (1400, ("10.99.0.1", "10.99.1.1"))
        assert link.ipv6 == ("fd99::1", f"fe80::99%{link.index}")
        assert link.address_for(socket.AF_INET6) == "fd99::1"
        assert (peer.mac, peer.up, peer.ipv4) == (b"\2\0\0\0\0\x42", False, ())
        assert link.carries_multicast(socket.AF_INET6)
        assert find_interface("10.99.1.1") == find_interface("fe80::99") == link

    own_network(body)


@pytest.mark.root
def test_without_netlink_an_address_of_one_link_stands_for_that_link(own_network, monkeypatch, no_netlink):
    def body(_):
        index = socket.if_nametoindex("wds0")
        own = [("fe80::99", 0, 0, index), ("fd99::1", 0, 0, 0), ("10.99.0.1", 0), ("192.0.2.1", 0)]
        monkeypatch.setattr(
            interfaces.socket, "getaddrinfo", lambda *_: [(0, 2, 17, "", address) for address in own]
        )
        found = {each.name: each for each in list_interfaces()}
        link = f"fe80::99%{index}"
        assert set(found) - {"127.0.0.1", "::1"} == {link, "fd99::1", "10.99.0.1"}
        assert found[link] == Interface(link, index, 1500, bytes(6), (), (link,), True, True)
        v4 = Interface("10.99.0.1", 0, 1500, bytes(6), ("10.99.0.1",), (), True, True)
        assert found["10.99.0.1"] == v4

    own_network(body)


@pytest.mark.root
def test_route_leads_out_of_the_link_that_reaches_the_host_or_is_refused(own_network):
    def body(_):
        link = find_interface("wds0")
        assert route_to("10.99.0.77", 5041) == (link, "10.99.0.1")
        assert route_to("fd99::77", 5041) == (link, "fd99::1")
        assert route_to(f"fe80::77%{link.index}", 5041) == (link, f"fe80::99%{link.index}")
        with pytest.raises(TransportError, match=r"no route to 192\.0\.2\.1.*wds0"):
            route_to("192.0.2.1", 5041)

    own_network(body)


def test_every_listed_address_parses():
    for interface in list_interfaces():
        for address in interface.ipv4 + interface.ipv6:
            assert ipaddress.ip_address(address)
            assert with_zone(address, interface) == address
