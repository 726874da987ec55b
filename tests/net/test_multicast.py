import errno
import os
import socket
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from loopback import needs_ipv6

from wdstransport.errors import TransportError, UsageError
from wdstransport.net import buffers, multicast
from wdstransport.net.interfaces import find_interface, with_zone
from wdstransport.net.multicast import (
    is_port_in_use,
    join_group,
    open_client_socket,
    open_group_socket,
    open_server_socket,
    send_groups_to,
)

LOOPBACK = "127.0.0.1"
GROUP = "239.192.77.2"
SMALL = {"sndbuf": 1 << 16, "rcvbuf": 1 << 16}

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's options")


@pytest.fixture
def lo():
    return find_interface(LOOPBACK)


@pytest.fixture
def server(sockets, lo):
    return sockets(open_server_socket, LOOPBACK, 0, lo, 1, **SMALL)


@pytest.fixture
def other_system(monkeypatch):
    monkeypatch.setattr(multicast, "sys", SimpleNamespace(platform="other"))


def hear(readable, opened):
    data, source = readable(opened.sock).recvfrom(100)
    return data, source[:2]


def test_every_socket_of_a_group_gets_its_copy(sockets, lo, server, readable):
    port = server.address[1]
    groups = [sockets(open_group_socket, GROUP, port, lo, LOOPBACK, rcvbuf=1 << 16) for _ in range(3)]
    server.sock.sendto(b"all", (GROUP, port))
    assert [hear(readable, group) for group in groups] == [(b"all", server.address)] * 3


def test_sockets_do_not_block(sockets, lo, server):
    group = sockets(open_group_socket, GROUP, server.address[1], lo, LOOPBACK)
    client = sockets(open_client_socket, LOOPBACK, server.address)
    for opened in (server, group, client):
        with pytest.raises(BlockingIOError):
            opened.sock.recv(1)


@linux
def test_source_specific_join_keeps_other_senders_out(sockets, lo, server, readable):
    port = server.address[1]
    stranger = sockets(open_server_socket, "127.0.0.2", port, lo, 1, **SMALL)
    group = sockets(open_group_socket, GROUP, port, lo, LOOPBACK)
    anybody = sockets(open_group_socket, GROUP, port, lo, None)
    assert (group.source_specific, anybody.source_specific) == (True, False)
    stranger.sock.sendto(b"spoof", (GROUP, port))
    server.sock.sendto(b"real", (GROUP, port))
    assert hear(readable, group) == (b"real", server.address)
    assert hear(readable, anybody) == (b"spoof", ("127.0.0.2", port))


def test_kernel_without_source_specific_joins_hears_everybody(sockets, lo, server, readable, monkeypatch):
    monkeypatch.setattr(multicast, "_MCAST_JOIN_SOURCE_GROUP", 9999)
    group = sockets(open_group_socket, GROUP, server.address[1], lo, LOOPBACK)
    assert not group.source_specific
    server.sock.sendto(b"x", (GROUP, server.address[1]))
    assert hear(readable, group)[0] == b"x"


def test_another_system_gets_along_with_the_portable_options(sockets, lo, readable, other_system):
    server = sockets(open_server_socket, LOOPBACK, 0, lo, 1, **SMALL)
    group = sockets(open_group_socket, GROUP, server.address[1], lo, LOOPBACK)
    assert not group.source_specific
    server.sock.sendto(b"x", (GROUP, server.address[1]))
    assert hear(readable, group)[0] == b"x"


class NoGroupSocket(socket.socket):
    """A socket that, as on Windows, cannot be bound to a group."""

    def bind(self, address):
        if address[0] == GROUP:
            raise OSError(errno.EADDRNOTAVAIL, "not valid in its context")
        super().bind(address)


def test_system_that_binds_no_group_binds_the_port(sockets, lo, server, readable, other_system, monkeypatch):
    def make(family):
        sock = NoGroupSocket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        return sock

    monkeypatch.setattr(multicast, "_new_socket", make)
    free = sockets(open_client_socket, None, server.address)
    port = free.address[1]
    free.sock.close()
    group = sockets(open_group_socket, GROUP, port, lo, LOOPBACK)
    assert group.address == ("0.0.0.0", port)
    server.sock.sendto(b"x", (GROUP, port))
    assert hear(readable, group)[0] == b"x"


@linux
def test_group_that_cannot_be_bound_is_refused_where_binding_to_groups_is_usual(lo, server, monkeypatch):
    monkeypatch.setattr(multicast, "_new_socket", lambda family: NoGroupSocket(family, socket.SOCK_DGRAM))
    with pytest.raises(UsageError, match=f"no address {GROUP}"):
        open_group_socket(GROUP, server.address[1], lo, LOOPBACK)


def test_port_in_use_is_no_reason_to_bind_it_for_all_addresses(lo, other_system, monkeypatch):
    monkeypatch.setattr(multicast, "_new_socket", lambda _: Refusing(errno.EADDRINUSE, options=False))
    with pytest.raises(UsageError, match=f"on {GROUP} is in use"):
        open_group_socket(GROUP, 5000, lo, LOOPBACK)


def test_system_that_binds_no_ipv6_group_binds_the_port_of_that_family(lo, other_system, monkeypatch):
    refusing = Refusing(errno.EADDRNOTAVAIL, options=False)
    monkeypatch.setattr(multicast, "_new_socket", lambda _: refusing)
    with pytest.raises(UsageError, match="no address"):
        open_group_socket("ff15::77", 5000, replace(lo, multicast=True, ipv6=("fd99::1",)), None)
    assert [host for host, *_ in refusing.bound] == ["ff15::77", "::"]


def test_interface_without_an_index_is_told_by_its_address(sockets, lo, readable):
    nameless = replace(lo, name=LOOPBACK, index=0)
    server = sockets(open_server_socket, LOOPBACK, 0, nameless, 1, **SMALL)
    group = sockets(open_group_socket, GROUP, server.address[1], nameless, LOOPBACK)
    assert not group.source_specific
    server.sock.sendto(b"x", (GROUP, server.address[1]))
    assert hear(readable, group)[0] == b"x"


@linux
def test_interface_that_has_lost_its_address_is_told_by_its_index(sockets, lo, server, readable):
    group = sockets(open_group_socket, GROUP, server.address[1], lo, LOOPBACK)
    other = "239.192.77.3"
    assert join_group(group.sock, other, replace(lo, ipv4=()), None) is False
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        group.sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, multicast._membership(other, lo))


def test_another_system_is_told_of_an_interface_by_its_address_alone(lo, other_system):
    assert multicast._membership(GROUP, lo) == socket.inet_aton(GROUP) + socket.inet_aton(LOOPBACK)


def test_joining_again_changes_nothing(sockets, lo, server, readable):
    port = server.address[1]
    specific = sockets(open_group_socket, GROUP, port, lo, LOOPBACK)
    general = sockets(open_group_socket, GROUP, port, lo, None)
    assert join_group(specific.sock, GROUP, lo, LOOPBACK) is specific.source_specific
    assert join_group(general.sock, GROUP, lo, None) is False
    server.sock.sendto(b"x", (GROUP, port))
    assert hear(readable, specific)[0] == hear(readable, general)[0] == b"x"


@linux
def test_group_socket_hears_only_groups_it_joined(sockets, lo, server):
    group = sockets(open_group_socket, GROUP, server.address[1], lo, LOOPBACK)
    assert group.sock.getsockopt(socket.IPPROTO_IP, multicast._IP_MULTICAST_ALL) == 0


@linux
def test_another_system_is_not_given_linuxs_number_for_it(sockets, lo, server, other_system):
    group = sockets(open_group_socket, GROUP, server.address[1], lo, LOOPBACK)
    assert group.sock.getsockopt(socket.IPPROTO_IP, multicast._IP_MULTICAST_ALL) == 1


def test_kernel_without_that_option_is_no_obstacle(sockets, lo, server, monkeypatch):
    monkeypatch.setattr(multicast, "_IP_MULTICAST_ALL", 9999)
    assert sockets(open_group_socket, GROUP, server.address[1], lo, LOOPBACK).address == (
        GROUP,
        server.address[1],
    )


def test_server_socket_sends_groups_with_the_ttl_it_was_given(sockets, lo):
    server = sockets(open_server_socket, LOOPBACK, 0, lo, 7, **SMALL)
    assert server.sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 7
    assert server.sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == 1
    assert server.address[0] == LOOPBACK
    assert server.address[1] != 0


@pytest.mark.parametrize("ttl", [0, 255])
def test_every_ttl_that_there_is_may_be_given(sockets, lo, ttl):
    server = sockets(open_server_socket, LOOPBACK, 0, lo, ttl, **SMALL)
    assert server.sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == ttl


def test_groups_are_heard_on_this_machine_also_if_the_socket_did_not_let_them(server, lo):
    server.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
    send_groups_to(server.sock, lo, 1)
    assert server.sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == 1


@needs_ipv6
def test_ipv6_groups_leave_by_the_interface_and_are_heard_on_this_machine(sockets, lo):
    sock = sockets(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    send_groups_to(sock, lo, 5)
    options = (socket.IPV6_MULTICAST_IF, socket.IPV6_MULTICAST_HOPS, socket.IPV6_MULTICAST_LOOP)
    assert [sock.getsockopt(socket.IPPROTO_IPV6, option) for option in options] == [lo.index, 5, 1]


def test_client_socket_reaches_the_server_from_its_own_port(sockets, server, readable):
    client = sockets(open_client_socket, LOOPBACK, server.address)
    client.sock.sendto(b"join", server.address)
    assert hear(readable, server) == (b"join", client.address)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        client.sock.getpeername()


def test_client_socket_without_a_local_address_takes_the_servers_family(sockets):
    assert sockets(open_client_socket, None, ("192.0.2.1", 5041)).address[0] == "0.0.0.0"


@needs_ipv6
def test_client_socket_of_an_ipv6_server_is_of_that_family_alone(sockets):
    client = sockets(open_client_socket, None, ("::1", 5041))
    assert client.address[0] == "::"
    assert client.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_clients_of_one_machine_have_ports_of_their_own(sockets, server):
    clients = [sockets(open_client_socket, LOOPBACK, server.address) for _ in range(3)]
    assert len({client.address for client in clients}) == 3


def test_capped_buffers_are_warned_about(sockets, lo, monkeypatch):
    monkeypatch.setattr(buffers, "_SO_FORCE", {socket.SO_SNDBUF: 9999, socket.SO_RCVBUF: 9999})
    opened = sockets(open_server_socket, LOOPBACK, 0, lo, 1, sndbuf=1 << 30, rcvbuf=1 << 30)
    assert opened.rcvbuf < 1 << 30
    assert opened.sndbuf < 1 << 30
    assert "rmem_max" in opened.warnings[0]
    assert "wmem_max" in opened.warnings[1]


def test_granted_buffers_are_not_warned_about(server):
    assert server.warnings == ()
    assert server.rcvbuf >= 1 << 16


# what a user can put right


def test_port_in_use_is_a_usage_error_that_can_be_told_apart(sockets, lo, server):
    port = server.address[1]
    with pytest.raises(UsageError, match=f"port {port} on {LOOPBACK} is in use") as caught:
        open_server_socket(LOOPBACK, port, lo, 1, **SMALL)
    assert is_port_in_use(caught.value)


def test_error_that_the_system_has_not_caused_is_no_port_in_use():
    assert not is_port_in_use(UsageError("a TTL is 0 to 255, not 256"))


def test_port_of_a_group_that_somebody_does_not_share(sockets, lo):
    alone = sockets(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    alone.bind(("0.0.0.0", 0))
    with pytest.raises(UsageError, match="in use"):
        open_group_socket(GROUP, alone.getsockname()[1], lo, LOOPBACK)


def test_address_of_another_machine_is_refused_with_what_there_is(lo):
    with pytest.raises(UsageError, match=r"no address 192\.0\.2\.77; there are .*127\.0\.0\.1") as caught:
        open_server_socket("192.0.2.77", 0, lo, 1, **SMALL)
    assert not is_port_in_use(caught.value)
    with pytest.raises(UsageError, match="no address"):
        open_client_socket("192.0.2.77", ("192.0.2.1", 5041))


@pytest.mark.parametrize("ttl", [-1, 256])
def test_impossible_ttl_is_refused(lo, ttl):
    with pytest.raises(UsageError, match="TTL"):
        open_server_socket(LOOPBACK, 0, lo, ttl, **SMALL)


@pytest.mark.parametrize("port", [-1, 65536])
def test_impossible_port_is_refused(lo, port):
    with pytest.raises(UsageError, match="port"):
        open_server_socket(LOOPBACK, port, lo, 1, **SMALL)


@pytest.mark.parametrize("port", [0, 65535])
def test_every_port_that_there_is_may_be_given(lo, monkeypatch, port):
    taken = Refusing(errno.EADDRINUSE)
    monkeypatch.setattr(multicast, "_new_socket", lambda _: taken)
    with pytest.raises(UsageError, match=f"port {port} on {LOOPBACK} is in use"):
        open_server_socket(LOOPBACK, port, lo, 1, **SMALL)
    assert taken.bound == [(LOOPBACK, port)]


@pytest.mark.parametrize("group", ["10.0.0.1", "240.0.0.1", "fd00::1"])
def test_group_that_is_none_is_refused(lo, group):
    with pytest.raises(UsageError, match="not a multicast address"):
        open_group_socket(group, 5000, lo, None)


def test_families_that_do_not_meet_are_refused():
    with pytest.raises(UsageError, match="IPv4"):
        open_client_socket(LOOPBACK, ("fd99::1", 5041))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"up": False}, "down"),
        ({"ipv4": ()}, "no IPv4 address"),
        ({"loopback": False}, "MULTICAST"),
    ],
)
def test_interface_without_multicast_is_refused_with_those_that_have_it(lo, change, why):
    with pytest.raises(UsageError, match=f"{why}.*these do: .*127") as caught:
        open_server_socket(LOOPBACK, 0, replace(lo, multicast=False, **change), 1, **SMALL)
    assert lo.name in str(caught.value)


def test_group_is_not_heard_on_an_interface_that_is_down(lo):
    with pytest.raises(UsageError, match="carries no IPv4 multicast: it is down"):
        open_group_socket(GROUP, 5000, replace(lo, up=False), LOOPBACK)


def test_interface_without_an_ipv6_address_is_refused_as_such(lo):
    with pytest.raises(UsageError, match="carries no IPv6 multicast: it has no IPv6 address"):
        open_group_socket("ff15::77", 5000, replace(lo, ipv6=()), None)


def test_interface_that_is_gone_is_refused(sockets, lo, server):
    gone = replace(lo, index=99_999)
    for call in (
        lambda: send_groups_to(server.sock, gone, 1),
        lambda: join_group(server.sock, GROUP, gone, None),
    ):
        with pytest.raises(UsageError, match="gone"):
            call()


class Refusing:
    """A socket whose binding, and options unless they are granted, are refused with one errno."""

    family = socket.AF_INET

    def __init__(self, number, *, options=True):
        self.number = number
        self.options = options
        self.bound = []

    def bind(self, address):
        self.bound.append(address)
        raise OSError(self.number, os.strerror(self.number))

    def setsockopt(self, *_):
        if self.options:
            raise OSError(self.number, os.strerror(self.number))

    def close(self):
        pass


def test_too_many_groups_names_the_limit(lo):
    with pytest.raises(TransportError, match="igmp_max_memberships"):
        join_group(Refusing(errno.ENOBUFS), GROUP, lo, LOOPBACK)


def test_forbidden_port_is_a_usage_error(lo, monkeypatch):
    monkeypatch.setattr(multicast, "_new_socket", lambda _: Refusing(errno.EACCES))
    with pytest.raises(UsageError, match="above 1023"):
        open_server_socket(LOOPBACK, 99, lo, 1, **SMALL)


def test_refusal_nobody_can_put_right_is_no_usage_error(lo, monkeypatch):
    monkeypatch.setattr(multicast, "_new_socket", lambda _: Refusing(errno.EIO))
    with pytest.raises(TransportError) as caught:
        open_server_socket(LOOPBACK, 99, lo, 1, **SMALL)
    assert not isinstance(caught.value, UsageError)
    with pytest.raises(TransportError) as caught:
        join_group(Refusing(errno.EIO), GROUP, lo, None)
    assert not isinstance(caught.value, UsageError)


def test_machine_out_of_sockets_is_no_usage_error(lo, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(multicast.socket, "socket", refuse)
    with pytest.raises(TransportError, match="Too many"):
        open_client_socket(None, ("127.0.0.1", 1))


# IPv6 and interfaces that go away: these need a network of their own


@pytest.mark.root
@pytest.mark.parametrize("group", ["ff15::77", "ff12::77", "ff02::7777"])
def test_ipv6_group_of_any_scope_is_heard_source_specifically(own_network, sockets, readable, group):
    def body(_):
        interface = find_interface("wds0")
        address = with_zone("fe80::99" if group.startswith("ff02") else "fd99::1", interface)
        server = sockets(open_server_socket, address, 0, interface, 3, **SMALL)
        assert server.address[0] == address
        assert server.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS) == 3
        opened = sockets(open_group_socket, group, server.address[1], interface, address)
        assert opened.source_specific
        assert join_group(opened.sock, group, interface, address)
        server.sock.sendto(b"six", (group, server.address[1]))
        assert readable(opened.sock).recv(10) == b"six"

    own_network(body)


@pytest.mark.root
def test_ipv6_join_falls_back_to_any_source(own_network, sockets, readable, monkeypatch):
    monkeypatch.setattr(multicast, "_MCAST_JOIN_SOURCE_GROUP", 9999)
    monkeypatch.setattr(multicast, "_IPV6_MULTICAST_ALL", 9999)

    def body(_):
        interface = find_interface("wds0")
        server = sockets(open_server_socket, "fd99::1", 0, interface, 1, **SMALL)
        opened = sockets(open_group_socket, "ff15::78", server.address[1], interface, "fd99::1")
        assert not opened.source_specific
        server.sock.sendto(b"six", ("ff15::78", server.address[1]))
        assert readable(opened.sock).recv(10) == b"six"

    own_network(body)


@pytest.mark.root
def test_interface_that_came_back_is_joined_and_sent_to_again(own_network, sockets, readable):
    def body(sh):
        first = find_interface("wds0")
        server = sockets(open_server_socket, "10.99.0.1", 0, first, 1, **SMALL)
        opened = sockets(open_group_socket, GROUP, server.address[1], first, "10.99.0.1")
        sh(
            "ip link del wds0; ip link add wds0 type veth peer name wds1; ip link set wds1 up;"
            "ip addr add 10.99.0.1/24 dev wds0; ip link set wds0 up"
        )
        second = find_interface("wds0")
        assert second.index != first.index
        send_groups_to(server.sock, second, 1)
        join_group(opened.sock, GROUP, second, "10.99.0.1")
        server.sock.sendto(b"again", (GROUP, server.address[1]))
        assert readable(opened.sock).recv(10) == b"again"

    own_network(body)
