"""From a server's name to a client session: offers that hold, offers that cannot be, sockets."""

import errno
import random
import socket
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from loopback import HOST, PATIENCE, Server, image

from wdstransport.errors import NobodyAnsweredError, RefusedError, RemoteError, TransportError, UsageError
from wdstransport.net import client_setup, initiation
from wdstransport.net.client_setup import demoted_sockets, find_offer, new_session, open_sockets
from wdstransport.net.interfaces import find_interface
from wdstransport.protocol.events import Demoted
from wdstransport.protocol.parameters import ClientParameters
from wdstransport.wire.application import MAX_BLOCK_SIZE
from wdstransport.wire.initiation import ErrorReply
from wdstransport.wire.transport import Join, decode

MULTICAST = bytes([239, 192, 81, 9])
LOCAL = socket.inet_aton(HOST)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(initiation, "_RETRY", 0.02)


async def find(port, **options):
    arguments = {
        "port": port,
        "namespace": "images",
        "content": "image",
        "interface": None,
        "timeout": PATIENCE,
        **options,
    }
    server = arguments.pop("server", HOST)
    return await find_offer(server, **arguments)


@asynccontextmanager
async def server_answering(reply=None, data=b"x" * 2500, **changes):
    """A server that answers one request, with its offer changed in some fields."""
    server = Server(data)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.answer, server.offer(**changes) if reply is None else reply)
            yield server
    finally:
        server.close()


class TestFindOffer:
    @pytest.mark.parametrize("interface", [None, "lo", HOST])
    @pytest.mark.parametrize("name", [HOST, "localhost"])
    async def test_an_offer_says_from_where_and_on_which_interface(self, name, interface, monkeypatch):
        resolve = client_setup.resolve
        monkeypatch.setattr(
            client_setup, "resolve", lambda *args: [at for at in resolve(*args) if at[0] == HOST]
        )
        async with server_answering() as server:
            offer = await find(server.port, server=name, interface=interface)
        assert offer.asked == (HOST, server.port)
        assert offer.server == (HOST, server.address[1])
        assert offer.group == (server.group, server.address[1])
        assert (offer.interface.name, offer.local_address) == ("lo", HOST)
        assert (offer.content_size, offer.block_size, offer.total_blocks) == (2500, 1000, 3)
        assert offer.session_id == server.session_id

    async def test_the_request_names_namespace_and_content(self):
        server = Server(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask_for, server, nursery.cancel_scope)
            request = await server.answer()
        server.close()
        assert (request.namespace, request.content) == ("other", "a/b.wim")
        assert request.ipv6_capable is None

    @pytest.mark.parametrize("multicast", [True, False])
    async def test_who_asks_over_ipv6_says_whether_its_interface_hears_groups_there(
        self, multicast, monkeypatch
    ):
        there = replace(
            find_interface("lo"), ipv6=("2001:db8::1",), multicast=multicast, mac=bytes([2, 0, 0, 0, 0, 1])
        )
        asked = []

        async def request(server, local, request, timeout, silent):
            asked.append(request)
            return ErrorReply(2)

        monkeypatch.setattr(client_setup, "route_to", lambda *_: (there, "2001:db8::1"))
        monkeypatch.setattr(client_setup, "request_session", request)
        with pytest.raises(RefusedError):
            await find(5041, server="2001:db8::2")
        assert [request.ipv6_capable for request in asked] == [multicast]

    @pytest.mark.parametrize("block_size", [8785, 65_452, MAX_BLOCK_SIZE])
    async def test_an_offer_of_any_block_that_a_packet_can_count_is_taken(self, block_size):
        async with server_answering(block_size=block_size, total_blocks=1) as server:
            assert (await find(server.port)).block_size == block_size

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            (2, "no such content"),
            (3, "no such namespace"),
            (5, "not allow"),
            (30, "cannot read"),
            (59, "cannot set up a session on the network"),
            (69, "Try again when one is done"),
            (1234, "1234"),
        ],
    )
    async def test_a_refusal_carries_the_code_the_names_and_what_it_means(self, code, words):
        async with server_answering(ErrorReply(code)) as server:
            with pytest.raises(RefusedError, match=words) as caught:
                await find(server.port)
        assert caught.value.code == code
        assert "'image'" in str(caught.value)
        assert "'images'" in str(caught.value)
        assert caught.value.exit_code == 3

    async def test_silence_is_an_error_that_says_where_it_asked_from_and_what_to_check(self):
        server = Server(b"x")
        with pytest.raises(NobodyAnsweredError) as caught:
            await find(server.port, timeout=0.1)
        server.close()
        text = str(caught.value)
        assert HOST in text
        assert f"port {server.port}" in text
        assert "on lo" in text
        assert "firewall" in text
        assert "--interface" in text

    @pytest.mark.parametrize(
        ("failure", "cause"),
        [
            (None, "may not be running, or a firewall"),
            (OSError(errno.ENETUNREACH, "Network is unreachable"), "cannot leave this machine: Network is"),
        ],
    )
    async def test_silence_is_told_meanwhile_with_its_likely_cause_and_what_to_check(
        self, monkeypatch, failure, cause
    ):
        async def silent(server, local, request, timeout, on_silence):
            on_silence(5, failure)

        monkeypatch.setattr(client_setup, "request_session", silent)
        told = []
        with pytest.raises(NobodyAnsweredError):
            await find(5041, timeout=30.0, on_silence=told.append)
        (silence,) = told
        assert (silence.server, silence.interface, silence.asked) == ((HOST, 5041), "lo", 5)
        asked = f"no answer yet from {HOST} ({HOST} port 5041), asked from {HOST} on lo 5 times. "
        assert silence.message.startswith(asked)
        assert cause in silence.message
        assert "--interface" in silence.message
        assert "until 30 seconds are over" in silence.message

    @pytest.mark.parametrize(
        "changes",
        [
            {"multicast_address": LOCAL},
            {"multicast_address": bytes(4)},
            {"server_address": MULTICAST},
            {"block_size": MAX_BLOCK_SIZE + 1, "total_blocks": 1},
            {"block_size": 2**32 - 1, "total_blocks": 1},
        ],
        ids=lambda changes: " ".join(changes),
    )
    async def test_an_offer_that_contradicts_itself_is_refused(self, changes):
        async with server_answering(**changes) as server:
            with pytest.raises(RemoteError, match="contradicts itself"):
                await find(server.port)

    async def test_an_offer_over_ipv6_on_an_interface_without_it_is_refused(self, monkeypatch):
        find_route = client_setup.route_to
        monkeypatch.setattr(
            client_setup,
            "route_to",
            lambda *args: (replace(find_route(*args)[0], ipv6=()), HOST),
        )
        addresses = {
            "multicast_address": socket.inet_pton(socket.AF_INET6, "ff15::1"),
            "server_address": socket.inet_pton(socket.AF_INET6, "::1"),
        }
        async with server_answering(**addresses) as server:
            with pytest.raises(RemoteError, match="IPv6"):
                await find(server.port)

    async def test_an_unknown_interface_is_a_usage_error(self):
        with pytest.raises(UsageError, match="nosuch0"):
            await find(5041, interface="nosuch0")

    async def test_an_interface_of_the_wrong_family_is_a_usage_error(self):
        with pytest.raises(UsageError, match="--interface"):
            await find(5041, server="2001:db8::1", interface=_without_ipv6())

    async def test_a_name_nobody_knows_is_a_usage_error(self):
        with pytest.raises(UsageError, match=r"a\.\.b"):
            await find(5041, server="a..b")

    @pytest.mark.parametrize(
        "names",
        [
            {"content": "caf\udce9.wim"},
            {"namespace": "caf\udce9"},
            {"content": "a\0b"},
            {"content": "x" * 40_000},
        ],
        ids=["not-utf8", "namespace-not-utf8", "null", "too-long"],
    )
    async def test_a_name_that_no_request_can_carry_is_a_usage_error(self, names):
        with pytest.raises(UsageError):
            await find(5041, **names)

    async def test_an_offer_that_no_machine_can_keep_a_record_of_is_refused(self):
        huge = {"content_size": 2**62, "block_size": 1, "total_blocks": 2**62}
        async with server_answering(**huge) as server:
            with pytest.raises(TransportError):
                _session(await find(server.port))


async def _ask_for(server, scope):
    await find(server.port, namespace="other", content="a/b.wim")
    scope.cancel()


def _without_ipv6():
    for interface in client_setup.find_interface("lo"), *client_setup_interfaces():
        if interface.ipv4 and not interface.ipv6:
            return interface.name
    pytest.skip("every interface here has IPv6")
    return None


def client_setup_interfaces():
    from wdstransport.net.interfaces import list_interfaces

    return list_interfaces()


def _session(offer, **options):
    return new_session(
        offer,
        security="checksum",
        parameters=ClientParameters(),
        rng=random.Random(1),
        **options,
    )


class TestSockets:
    @pytest.fixture
    async def offer(self):
        async with server_answering() as server:
            return await find(server.port)

    async def test_one_hears_the_group_and_the_other_sends_from_its_own_port(self, offer):
        sockets = open_sockets(offer)
        assert sockets.server == offer.server
        assert sockets.group.address == offer.group
        host, port = sockets.own.address
        assert host == HOST
        assert port not in (0, offer.group[1])
        sockets.close()
        assert sockets.group.sock.fileno() == sockets.own.sock.fileno() == -1

    async def test_two_clients_on_one_machine_hear_the_same_group(self, offer):
        first, second = open_sockets(offer), open_sockets(offer)
        assert first.group.address == second.group.address
        first.close()
        second.close()

    async def test_no_socket_is_left_when_the_second_cannot_be_opened(self, offer, monkeypatch):
        opened = []
        open_group = client_setup.open_group_socket

        def keep(*args):
            opened.append(open_group(*args))
            return opened[-1]

        monkeypatch.setattr(client_setup, "open_group_socket", keep)
        with pytest.raises(UsageError):
            open_sockets(replace(offer, local_address="192.0.2.77"))
        assert opened[0].sock.fileno() == -1

    async def test_a_demotion_names_the_next_sockets(self, offer):
        event = Demoted(9, MULTICAST, 12345, LOCAL, 23456)
        sockets = demoted_sockets(offer, event)
        assert sockets.server == (HOST, 23456)
        assert sockets.group.address == ("239.192.81.9", 12345)
        sockets.close()

    async def test_a_demotion_to_no_group_is_the_servers_fault(self, offer):
        with pytest.raises(RemoteError):
            demoted_sockets(offer, Demoted(9, LOCAL, 12345, LOCAL, 23456))

    async def test_a_new_session_joins_at_once_and_wants_what_it_has_not(self, offer):
        session = _session(offer, have=[(1, 2)])
        (datagram,) = session.take_outgoing(trio.current_time())
        _, packet = decode(datagram, session_id=offer.session_id, security=session._client_security)
        assert isinstance(packet, Join)
        assert packet.ip_address == LOCAL
        assert not session.application.complete
        assert session.application.blocks.missing(64) == ((3, 3),)

    async def test_a_machine_with_a_long_name_joins_under_what_fits(self, offer, monkeypatch):
        monkeypatch.setattr(socket, "gethostname", lambda: "a-machine-with-a-very-long-name.example.org")
        (datagram,) = _session(offer).take_outgoing(0.0)
        _, packet = decode(datagram, session_id=offer.session_id, security=_session(offer)._client_security)
        assert packet.client_name == "a-machine-with-"


async def test_data_of_an_offer_fits_what_the_server_has():
    data = image(1234)
    async with server_answering(data=data) as server:
        offer = await find(server.port)
    assert offer.content_size == 1234
    assert offer.total_blocks == 2


async def test_link_local_server_without_a_zone_is_told_to_name_the_interface():
    with pytest.raises(UsageError, match=r"link-local.*fe80::1%eth0, or --interface eth0"):
        await find(5041, server="fe80::1")
