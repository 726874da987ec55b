"""Where sessions are served: groups and ports handed out, interfaces found."""

import ipaddress
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import HOST

from wdstransport.errors import TransportError, UsageError
from wdstransport.net import places as module
from wdstransport.net.interfaces import Interface
from wdstransport.net.places import Place, SessionPlaces

V4, V6 = socket.AF_INET, socket.AF_INET6
LINK_LOCAL = "fe80::1%7"


def interface(**changes):
    fields = {
        "name": "eth7",
        "index": 7,
        "mtu": 1500,
        "mac": bytes(6),
        "ipv4": ("192.0.2.1", "192.0.2.9"),
        "ipv6": ("2001:db8::1", LINK_LOCAL),
        "up": True,
        "multicast": True,
    }
    return Interface(**{**fields, **changes})


def located(monkeypatch, there, local, ipv6_capable):
    monkeypatch.setattr(module, "find_interface", lambda name: there)
    place = SessionPlaces(None, None).locate(local, ipv6_capable)
    assert place.interface is there
    return place.address


class TestGroups:
    def test_each_session_gets_the_next_group(self):
        places = SessionPlaces("239.200.0.254", None)
        assert [places.take_group(V4) for _ in range(3)] == ["239.200.0.254", "239.200.0.255", "239.200.1.0"]

    def test_a_group_that_was_given_back_is_used_again(self):
        places = SessionPlaces("239.200.0.1", None)
        first, second = places.take_group(V4), places.take_group(V4)
        places.give_back(first)
        assert places.take_group(V4) == first
        places.give_back(second)
        places.give_back(second)
        assert places.take_group(V4) == second

    def test_the_default_groups_are_administratively_scoped(self):
        places = SessionPlaces(None, None)
        group4, group6 = places.take_group(V4), places.take_group(V6)
        assert ipaddress.ip_address(group4) in ipaddress.ip_network("239.192.0.0/14")
        assert ipaddress.ip_address(group6) in ipaddress.ip_network("ff15::/16")

    def test_a_group_of_one_family_leaves_the_default_to_the_other(self):
        places = SessionPlaces("ff15::99", None)
        assert places.take_group(V6) == "ff15::99"
        assert places.take_group(V4) == SessionPlaces(None, None).take_group(V4)

    def test_after_the_last_group_there_is_none(self):
        places = SessionPlaces("239.255.255.254", None)
        places.take_group(V4)
        places.take_group(V4)
        with pytest.raises(TransportError, match="lower"):
            places.take_group(V4)
        places.give_back("239.255.255.255")
        assert places.take_group(V4) == "239.255.255.255"

    @pytest.mark.parametrize(
        "group", ["192.0.2.1", "223.255.255.255", "240.0.0.0", "fe80::1", "nonsense", ""]
    )
    def test_what_is_no_group_is_refused(self, group):
        with pytest.raises(UsageError, match=r"239\.192"):
            SessionPlaces(group, None)

    @pytest.mark.parametrize(
        ("group", "why"),
        [
            ("224.0.0.0", "every port"),
            ("224.0.0.251", "every port"),
            ("ff01::1", "this machine"),
            ("ff11::5744:1", "this machine"),
        ],
    )
    def test_a_group_that_is_flooded_or_stays_inside_is_refused_with_its_reason(self, group, why):
        with pytest.raises(UsageError, match=rf"{why}.*239\.192.*ff15:"):
            SessionPlaces(group, None)

    @pytest.mark.parametrize(("group", "family"), [("224.0.1.0", V4), ("ff02::5744:1", V6)])
    def test_a_group_next_to_the_refused_ones_is_taken(self, group, family):
        assert SessionPlaces(group, None).take_group(family) == group

    @pytest.mark.parametrize(
        ("group", "mine", "families", "theirs", "instead"),
        [("ff15::1", "IPv6", {V4}, "IPv4", "239.192"), ("239.192.0.1", "IPv4", {V6}, "IPv6", "ff15:")],
    )
    def test_a_group_of_a_family_that_is_not_listened_on_is_refused(
        self, group, mine, families, theirs, instead
    ):
        why = f"{group} is {mine} and the server listens on {theirs} only"
        with pytest.raises(UsageError, match=f"{why}.*{instead}.*--group.*--interface.* {mine} "):
            SessionPlaces(group, None).check_group(families)

    @pytest.mark.parametrize("group", [None, "ff15::1", "239.192.0.1"])
    def test_a_group_of_one_of_the_families_listened_on_is_taken(self, group):
        SessionPlaces(group, None).check_group({V4, V6})

    @settings(max_examples=50)
    @given(st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=60))
    def test_no_group_is_handed_out_twice_at_a_time(self, steps):
        places = SessionPlaces("239.200.0.0", None)
        out = []
        for step in steps:
            if step is None or not out:
                group = places.take_group(V4)
                assert group not in out
                out.append(group)
            else:
                places.give_back(out.pop(step % len(out)))


class TestPorts:
    @pytest.mark.parametrize("ports", [(1, 65535), (5000, 5000)])
    def test_the_widest_and_the_narrowest_range_are_taken(self, ports):
        assert SessionPlaces(None, ports)

    @pytest.mark.parametrize("ports", [(0, 10), (10, 9), (1, 65536), (-5, 5)])
    def test_what_is_no_range_is_refused(self, ports):
        with pytest.raises(UsageError, match="range of UDP ports"):
            SessionPlaces(None, ports)

    def test_without_a_range_the_system_chooses(self):
        places = SessionPlaces(None, None)
        first, second = [places.open_socket(places.locate(HOST, False), 1) for _ in range(2)]
        with first.sock, second.sock:
            assert first.address[0] == HOST
            assert 0 != first.address[1] != second.address[1] != 0

    def test_a_range_is_used_up_from_its_low_end_and_then_said_to_be(self):
        low = free_ports(3)
        places = SessionPlaces(None, (low, low + 2))
        place = places.locate(HOST, False)
        opened = [places.open_socket(place, 1) for _ in range(3)]
        try:
            assert [each.address[1] for each in opened] == [low, low + 1, low + 2]
            with pytest.raises(TransportError, match=rf"{low} to {low + 2}.*--session-ports"):
                places.open_socket(place, 1)
            opened[1].sock.close()
            again = places.open_socket(place, 1)
            assert again.address[1] == low + 1
            again.sock.close()
        finally:
            for each in opened:
                each.sock.close()

    def test_an_address_that_went_is_not_taken_for_a_busy_port(self):
        places = SessionPlaces(None, (20_000, 65_535))
        with pytest.raises(UsageError, match=r"192\.0\.2\.77"):
            places.open_socket(Place(places.locate(HOST, False).interface, "192.0.2.77"), 1)


def free_ports(count):
    """The first of `count` UDP ports in a row that nobody holds at the moment."""
    for low in range(42_000, 60_000, 10):
        socks = []
        try:
            for port in range(low, low + count):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                socks.append(sock)
                sock.bind((HOST, port))
        except OSError:
            continue
        else:
            return low
        finally:
            for sock in socks:
                sock.close()
    raise AssertionError("no free ports")


class TestLocate:
    def test_loopback_is_served_over_ipv4(self):
        places = SessionPlaces(None, None)
        for local, capable in ((HOST, False), (HOST, True)):
            place = places.locate(local, capable)
            assert (place.interface.name, place.address) == ("lo", HOST)

    def test_a_client_without_ipv6_is_served_where_it_asked(self, monkeypatch):
        assert located(monkeypatch, interface(), "192.0.2.9", False) == "192.0.2.9"

    def test_a_client_with_ipv6_is_served_over_ipv6(self, monkeypatch):
        assert located(monkeypatch, interface(), "192.0.2.1", True) == "2001:db8::1"
        assert located(monkeypatch, interface(), "2001:db8::1", True) == "2001:db8::1"

    def test_a_link_local_address_serves_only_who_asked_it(self, monkeypatch):
        there = interface(ipv6=(LINK_LOCAL,))
        assert located(monkeypatch, there, LINK_LOCAL, True) == LINK_LOCAL
        assert located(monkeypatch, there, "192.0.2.1", True) == "192.0.2.1"

    def test_who_asks_over_ipv6_without_being_capable_is_served_over_ipv4(self, monkeypatch):
        assert located(monkeypatch, interface(), "2001:db8::1", False) == "192.0.2.1"

    def test_an_interface_without_ipv4_cannot_serve_who_needs_it(self, monkeypatch):
        with pytest.raises(TransportError, match="IPv4"):
            located(monkeypatch, interface(ipv4=()), "2001:db8::1", False)

    def test_an_interface_that_is_down_serves_nobody(self, monkeypatch):
        with pytest.raises(TransportError, match="multicast"):
            located(monkeypatch, interface(up=False), "192.0.2.1", True)

    def test_an_address_of_nobody_is_an_error(self):
        with pytest.raises(TransportError):
            SessionPlaces(None, None).locate("192.0.2.77", False)
