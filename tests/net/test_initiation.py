"""Session initiation over real UDP: who is answered, from where, how often; and how one asks."""

import errno
import socket
import struct
import threading
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import HOST, PATIENCE, needs_ipv6, until
from trio.testing import wait_all_tasks_blocked

from wdstransport.errors import TransportError, UsageError
from wdstransport.net import initiation
from wdstransport.net.initiation import InitiationListener, RequestLimiter, request_session
from wdstransport.wire.initiation import ErrorReply, Reply, Request, decode, encode

REQUEST = Request("images", "win.wim", bytes(6))
REPLY = Reply(bytes([239, 1, 2, 3]), bytes([127, 0, 0, 1]), 5000, 5000, 10_000, 1000, 10, 7)


def udp(host=HOST, family=socket.AF_INET):
    sock = trio.socket.socket(family, socket.SOCK_DGRAM)
    sock._sock.bind((host, 0))
    return sock


class TestRequestLimiter:
    def test_a_burst_is_admitted_and_then_the_rate(self):
        limiter = RequestLimiter(per_second=2, burst=3)
        assert [limiter.admits("a", 100.0) for _ in range(5)] == [True, True, True, False, False]
        assert [limiter.admits("a", 100.6) for _ in range(2)] == [True, False]
        assert [limiter.admits("a", 1000.0) for _ in range(4)] == [True, True, True, False]

    def test_addresses_do_not_pay_for_each_other(self):
        limiter = RequestLimiter(burst=1)
        assert limiter.admits("a", 0.0)
        assert not limiter.admits("a", 0.0)
        assert limiter.admits("b", 0.0)

    def test_the_address_quiet_for_longest_is_forgotten_first(self):
        limiter = RequestLimiter(burst=1, addresses=2)
        assert limiter.admits("a", 0.0)
        assert limiter.admits("b", 0.0)
        assert not limiter.admits("a", 0.0)
        assert limiter.admits("c", 0.0)  # b goes
        assert not limiter.admits("a", 0.0)
        assert limiter.admits("b", 0.0)

    def test_forty_at_once_and_twenty_a_second_are_admitted_of_four_thousand_addresses(self):
        limiter = RequestLimiter()
        assert [limiter.admits("a", 0.0) for _ in range(41)] == [True] * 40 + [False]
        assert [limiter.admits("a", 0.5) for _ in range(11)] == [True] * 10 + [False]
        for number in range(4095):
            assert limiter.admits(str(number), 0.5)
        assert not limiter.admits("a", 0.5), "one of 4096"
        for number in range(4096):
            assert limiter.admits(str(-1 - number), 0.5)
        assert limiter.admits("a", 0.5), "the 4097th took its place"

    @settings(max_examples=50)
    @given(
        st.lists(
            st.tuples(st.integers(0, 50), st.floats(0, 0.2)),
            max_size=200,
        )
    )
    def test_the_table_is_bounded_and_nobody_gets_more_than_burst_and_rate(self, asked):
        limiter = RequestLimiter(per_second=5, burst=4, addresses=10)
        now = 0.0
        admitted = {}
        for host, wait in asked:
            now += wait
            if limiter.admits(str(host), now):
                admitted.setdefault(host, []).append(now)
        assert len(limiter._table) <= 10
        if len({host for host, _ in asked}) <= 10:
            for times in admitted.values():
                assert len(times) <= 4 + 5 * (times[-1] - times[0]) + 1


class Door:
    """A listener that answers what the test says, and a socket that asks it."""

    def __init__(self, nursery, address=HOST, family=socket.AF_INET, answer=REPLY):
        self.listener = InitiationListener(address, 0, family)
        self.answer = answer
        self.asked = []
        nursery.start_soon(self.listener.serve, self._answer)

    @property
    def port(self):
        return self.listener.address[1]

    async def _answer(self, request, source, local):
        self.asked.append((request, source, local))
        return self.answer(request) if callable(self.answer) else self.answer


@pytest.fixture
async def door(nursery):
    door = Door(nursery)
    yield door
    door.listener.close()


@pytest.fixture
async def asker():
    with udp() as sock:
        yield sock


async def ask(sock, port, data=None, host=HOST):
    with trio.fail_after(PATIENCE):
        await sock.sendto(encode(REQUEST) if data is None else data, (host, port))
        answer, source = await sock.recvfrom(4096)
    return decode(answer), source


class TestListener:
    async def test_a_request_is_answered_to_who_asked(self, door, asker):
        answer, source = await ask(asker, door.port)
        assert answer == REPLY
        assert source == (HOST, door.port)
        assert door.asked == [(REQUEST, asker.getsockname(), HOST)]
        await until(lambda: door.listener.requests == 1)

    async def test_requests_from_many_ports_of_one_address_are_limited_together(self, door):
        sent = 5 * int(door.listener._limiter._burst)
        for _ in range(sent):
            with udp() as sock:
                await sock.sendto(encode(REQUEST), (HOST, door.port))
        await until(lambda: len(door.asked) + door.listener.dropped["too_many_requests"] == sent)
        assert door.listener.dropped["too_many_requests"] > 0

    async def test_a_request_with_names_as_long_as_paths_can_be_is_read_whole(self, door, asker):
        request = Request("images", "/".join(["x" * 255] * 15), bytes(6))
        answer, _ = await ask(asker, door.port, encode(request))
        assert answer == REPLY
        assert [asked for asked, _, _ in door.asked] == [request]

    async def test_replies_that_wait_for_arp_have_a_large_buffer(self, monkeypatch):
        wanted = []
        monkeypatch.setattr(initiation, "set_buffer", lambda _, kind, size: wanted.append((kind, size)))
        InitiationListener(HOST, 0, socket.AF_INET).close()
        assert wanted == [(socket.SO_SNDBUF, 4 << 20)]

    async def test_an_error_of_the_socket_is_counted_and_the_next_request_answered(self, nursery, asker):
        listener = InitiationListener(HOST, 0, socket.AF_INET)
        sock, failures = listener._sock, [OSError(errno.ENETDOWN, "Network is down")] * 2

        async def recvmsg(*arguments):
            if failures:
                raise failures.pop()
            return await sock.recvmsg(*arguments)

        async def answer(*_):
            return REPLY

        listener._sock = SimpleNamespace(recvmsg=recvmsg, fileno=sock.fileno, sendmsg=sock.sendmsg)
        nursery.start_soon(listener.serve, answer)
        with trio.fail_after(PATIENCE):
            await asker.sendto(encode(REQUEST), sock.getsockname())
            assert decode(await asker.recv(4096)) == REPLY
        assert listener.dropped == {"socket_error": 2}
        sock.close()

    async def test_a_reply_that_cannot_leave_is_counted_and_the_next_one_leaves(self, door, asker):
        sock, failures = door.listener._sock, [OSError(errno.EPERM, "Operation not permitted")]

        async def sendmsg(*arguments):
            if failures:
                raise failures.pop()
            return await sock.sendmsg(*arguments)

        door.listener._sock = SimpleNamespace(
            recvmsg=sock.recvmsg,
            fileno=sock.fileno,
            sendmsg=sendmsg,
            getsockname=sock.getsockname,
            close=sock.close,
        )
        await asker.sendto(encode(REQUEST), (HOST, door.port))
        assert (await ask(asker, door.port))[0] == REPLY
        assert door.listener.dropped == {"reply_not_sent": 1}
        assert door.listener.requests == 2

    async def test_the_reply_is_sent_from_the_address_asked_by_whichever_interface_leads_back(self, door):
        asked, here, there = 3, socket.inet_aton("10.0.0.1"), socket.inet_aton("10.0.0.255")
        info = (
            socket.IPPROTO_IP,
            initiation._IP_PKTINFO,
            struct.pack("=i4s4s", asked, here, there) + b"rest",
        )
        other = (socket.SOL_SOCKET, initiation._IP_PKTINFO, b"")
        back = (socket.IPPROTO_IP, initiation._IP_PKTINFO, struct.pack("=i4s4s", 0, here, bytes(4)))
        assert door.listener._destination([other, info]) == ("10.0.0.1", [back])
        for level, kind in (
            (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT),
            (socket.SOL_SOCKET, socket.IPV6_PKTINFO),
            (socket.IPPROTO_IP, socket.IP_TTL),
        ):
            assert door.listener._destination([other, (level, kind, bytes(20))]) == (None, [])

    @pytest.mark.parametrize(
        ("source", "endpoint"),
        [
            (("192.0.2.1", 9), ("192.0.2.1", 9)),
            (("2001:db8::1", 9, 0, 0), ("2001:db8::1", 9)),
            (("fe80::1", 9, 0, 3), ("fe80::1%3", 9)),
            (("fe80::1%3", 9, 0, 3), ("fe80::1%3", 9)),
        ],
    )
    async def test_a_zone_is_part_of_who_asks_once(self, door, source, endpoint):
        assert door.listener._endpoint(source) == endpoint

    async def test_a_request_that_came_to_no_address_is_not_answered(self, nursery, asker):
        door = Door(nursery)
        door.listener._destination = lambda _: (None, [])
        await asker.sendto(encode(REQUEST), (HOST, door.port))
        await until(lambda: door.listener.dropped["state"] == 1)
        assert (door.asked, door.listener.requests) == ([], 0)
        door.listener.close()

    async def test_an_error_goes_out_like_an_offer(self, door, asker):
        door.answer = ErrorReply(2)
        assert (await ask(asker, door.port))[0] == ErrorReply(2)

    async def test_the_answer_leaves_from_the_address_that_was_asked(self, nursery, asker):
        everywhere = Door(nursery, address=None)
        for host in ("127.0.0.1", "127.0.0.2"):
            _, source = await ask(asker, everywhere.port, host=host)
            assert source == (host, everywhere.port)
        assert [local for _, _, local in everywhere.asked] == ["127.0.0.1", "127.0.0.2"]
        everywhere.listener.close()

    @needs_ipv6
    async def test_ipv6_works_the_same(self, nursery):
        door = Door(nursery, "::1", socket.AF_INET6)
        with udp("::1", socket.AF_INET6) as sock, trio.fail_after(PATIENCE):
            await sock.sendto(encode(REQUEST), ("::1", door.port))
            data, source = await sock.recvfrom(4096)
        assert decode(data) == REPLY
        assert source[:2] == ("::1", door.port)
        assert [local for _, _, local in door.asked] == ["::1"]
        door.listener.close()

    @needs_ipv6
    async def test_one_port_is_listened_on_for_both_families(self):
        first = InitiationListener(None, 0, socket.AF_INET)
        second = InitiationListener(None, first.address[1], socket.AF_INET6)
        assert (first.address[0], second.address[0]) == ("0.0.0.0", "::")
        assert first.address[1] == second.address[1]
        first.close()
        second.close()

    @pytest.mark.root
    def test_over_ipv6_both_ends_are_known_with_their_zones_and_the_answer_comes_from_where_was_asked(
        self, own_network, monkeypatch
    ):
        async def asked_at(host):
            zone = f"%{socket.if_nametoindex('wds0')}" if host.startswith("fe80") else ""
            async with trio.open_nursery() as nursery:
                door = Door(nursery, address=None, family=socket.AF_INET6)
                server = (host + zone, door.port)
                # Who passes over what comes from elsewhere.
                assert await request_session(server, host + zone, REQUEST, PATIENCE) == REPLY
                for request, source, local in door.asked:
                    assert (request, source[0], local) == (REQUEST, host + zone, host + zone)
                door.listener.close()

        monkeypatch.setattr(initiation, "_RETRY", 0.05)  # the link may only just come up
        for host in ("fe80::99", "fd99::1"):
            own_network(lambda sh, host=host: trio.run(asked_at, host))

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "truncated"),
            (b"\1", "truncated"),
            (b"\0\0\0", "op_code"),
            (b"\xff" * 300, "field"),
            (encode(REQUEST) + b"x", "trailing"),
            (encode(REQUEST)[:-1], "truncated"),
            (encode(REPLY), "state"),
            (encode(ErrorReply(2)), "state"),
            (b"\1\0\0", "options"),
            (encode(Request("images", "x" * 30_000, bytes(6))), "truncated"),
        ],
        ids=[
            "empty",
            "one-byte",
            "no-opcode",
            "ones",
            "one-byte-more",
            "one-byte-less",
            "an-offer",
            "an-error",
            "no-options",
            "huge",
        ],
    )
    async def test_what_is_no_request_is_counted_and_not_answered(self, door, asker, data, reason):
        await asker.sendto(data, (HOST, door.port))
        assert (await ask(asker, door.port))[0] == REPLY  # and it is the first thing that comes back
        assert door.listener.dropped == {reason: 1}
        assert len(door.asked) == 1

    async def test_a_request_that_shall_not_be_answered_is_not(self, door, asker):
        answers = iter([None, REPLY])
        door.answer = lambda request: next(answers)
        await asker.sendto(encode(REQUEST), (HOST, door.port))
        assert (await ask(asker, door.port))[0] == REPLY
        assert len(door.asked) == 2

    async def test_a_flood_from_one_address_is_cut_and_counted_and_others_are_served(self, door, asker):
        for _ in range(200):
            await asker.sendto(encode(REQUEST), (HOST, door.port))
        with udp("127.0.0.9") as other:
            assert (await ask(other, door.port))[0] == REPLY
        await until(lambda: len(door.asked) + door.listener.dropped["too_many_requests"] == 201)
        assert door.listener.dropped["too_many_requests"] > 100

    async def test_who_is_gone_before_the_answer_harms_nobody(self, door, asker):
        gone = udp()
        await gone.sendto(encode(REQUEST), (HOST, door.port))
        gone.close()
        for _ in range(3):
            assert (await ask(asker, door.port))[0] == REPLY

    async def test_a_port_that_is_taken_is_said_with_what_to_do(self):
        with udp() as taken:
            port = taken.getsockname()[1]
            with pytest.raises(TransportError, match=rf"port {port}.*--port"):
                InitiationListener(HOST, port, socket.AF_INET)

    async def test_an_address_of_another_machine_is_said(self):
        with pytest.raises(TransportError, match=r"192\.0\.2\.77"):
            InitiationListener("192.0.2.77", 0, socket.AF_INET)

    async def test_closing_ends_the_service(self):
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                door = Door(nursery)
                await wait_all_tasks_blocked()
                door.listener.close()

    async def test_closing_while_a_request_is_being_answered_ends_the_service(self, asker):
        working, gate = trio.Event(), trio.Event()

        async def answer(request, source, local):
            working.set()
            await gate.wait()
            return REPLY

        listener = InitiationListener(HOST, 0, socket.AF_INET)
        ended = trio.Event()

        async def serve():
            await listener.serve(answer)
            ended.set()

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                await asker.sendto(encode(REQUEST), listener.address)
                await working.wait()
                listener.close()
                gate.set()
                for _ in range(100):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert ended.is_set()


class Script:
    """A server on a plain socket, in a thread: one entry of the script for each request that comes."""

    def __init__(self, *script):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((HOST, 0))
        self.sock.settimeout(PATIENCE)
        self.script = script
        self.requests = []
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.thread.join(PATIENCE)
        self.sock.close()

    @property
    def address(self):
        return self.sock.getsockname()

    def _run(self):
        for answers in self.script:
            data, source = self.sock.recvfrom(4096)
            self.requests.append(decode(data))
            for answer in answers:
                self.sock.sendto(answer, source)


class TestRequestSession:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(initiation, "_RETRY", 0.02)

    async def test_the_answer_is_handed_over(self):
        with Script([encode(REPLY)]) as server:
            assert await request_session(server.address, HOST, REQUEST, PATIENCE) == REPLY
        assert server.requests == [REQUEST]

    async def test_a_client_asks_from_a_port_of_its_own(self, door):
        for _ in range(2):
            assert await request_session((HOST, door.port), HOST, REQUEST, PATIENCE) == REPLY
        assert all(source[0] == HOST and source[1] > 1023 for _, source, _ in door.asked)

    async def test_an_answer_with_long_unknown_options_is_read_whole(self):
        unknown = bytes.fromhex("7777 EA60") + bytes(60_000)
        offer = encode(REPLY)
        longer = offer[:1] + (int.from_bytes(offer[1:3], "big") + 1).to_bytes(2, "big") + offer[3:] + unknown
        with Script([longer]) as server:
            assert await request_session(server.address, HOST, REQUEST, PATIENCE) == REPLY

    async def test_an_error_is_an_answer(self):
        with Script([encode(ErrorReply(3))]) as server:
            assert await request_session(server.address, HOST, REQUEST, PATIENCE) == ErrorReply(3)

    async def test_it_asks_again_until_it_is_answered(self):
        with Script([], [], [], [encode(REPLY)]) as server:
            assert await request_session(server.address, HOST, REQUEST, PATIENCE) == REPLY
        assert server.requests == [REQUEST] * 4

    async def test_garbage_requests_and_truncated_answers_are_passed_over(self):
        rubbish = [b"", b"\2", encode(REQUEST), encode(REPLY)[:-1], encode(REPLY) + b"x", bytes(4000)]
        with Script([*rubbish, encode(REPLY)]) as server:
            assert await request_session(server.address, HOST, REQUEST, PATIENCE) == REPLY

    @pytest.mark.parametrize("host", [HOST, "127.0.0.2"])
    async def test_what_somebody_else_answers_is_passed_over(self, host):
        # The stranger knows where to send: it heard the request first.
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        stranger.bind((host, 0))

        class Forged(Script):
            def _run(self):
                _, source = self.sock.recvfrom(4096)
                stranger.sendto(encode(ErrorReply(5)), source)
                self.sock.sendto(encode(REPLY), source)

        with Forged() as server, stranger:
            assert await request_session(server.address, HOST, REQUEST, PATIENCE) == REPLY

    async def test_silence_ends_with_the_time_allowed(self):
        with udp() as deaf:
            assert await request_session(deaf.getsockname(), HOST, REQUEST, 0.1) is None

    async def test_silence_is_told_after_five_requests_and_then_ever_more_seldom(self, monkeypatch):
        monkeypatch.setattr(initiation, "_RETRY", 0.0)
        told = []
        with udp() as deaf, trio.CancelScope() as scope:

            def on_silence(asked, failure):
                told.append((asked, failure))
                if len(told) == 4:
                    scope.cancel()

            await request_session(deaf.getsockname(), HOST, REQUEST, PATIENCE, on_silence)
        assert told == [(5, None), (15, None), (35, None), (75, None)]

    async def test_an_answer_to_the_fifth_request_leaves_nothing_to_tell(self, monkeypatch):
        waits = []

        async def answer(*_):
            waits.append(None)
            if len(waits) < 5:
                await trio.sleep_forever()
            return REPLY

        monkeypatch.setattr(initiation, "_RETRY", 0.0)
        monkeypatch.setattr(initiation, "_answer", answer)
        told = []
        with udp() as deaf:
            reply = await request_session(
                deaf.getsockname(), HOST, REQUEST, PATIENCE, lambda *silence: told.append(silence)
            )
        assert (reply, len(waits), told) == (REPLY, 5, [])

    async def test_a_request_that_cannot_leave_is_told_with_its_cause(self, monkeypatch):
        async def refuse(sock, *arguments):
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

        monkeypatch.setattr(initiation, "_RETRY", 0.0)
        told = []
        with udp() as deaf, trio.CancelScope() as scope:
            monkeypatch.setattr(type(deaf), "sendto", refuse)

            def on_silence(asked, failure):
                told.append((asked, failure.errno))
                scope.cancel()

            await request_session(deaf.getsockname(), HOST, REQUEST, PATIENCE, on_silence)
        assert told == [(5, errno.ENETUNREACH)]

    async def test_a_closed_port_is_asked_until_the_time_is_up(self):
        with udp() as sock:
            closed = sock.getsockname()
        assert await request_session(closed, HOST, REQUEST, 0.1) is None

    async def test_a_server_that_only_starts_is_found(self, nursery):
        with udp() as sock:
            port = sock.getsockname()[1]
        answers = []

        async def work():
            answers.append(await request_session((HOST, port), HOST, REQUEST, PATIENCE))

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as asking:
                asking.start_soon(work)
                await wait_all_tasks_blocked()
                listener = InitiationListener(HOST, port, socket.AF_INET)

                async def answer(*_):
                    return REPLY

                nursery.start_soon(listener.serve, answer)
        assert answers == [REPLY]
        listener.close()

    async def test_an_address_that_is_not_here_is_a_usage_error(self):
        with pytest.raises(UsageError, match=r"192\.0\.2\.77.*--interface"):
            await request_session((HOST, 5041), "192.0.2.77", REQUEST, 1)

    async def test_a_cancellation_leaves_no_socket_behind(self):
        with udp() as deaf:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(request_session, deaf.getsockname(), HOST, REQUEST, PATIENCE)
                await deaf.recv(4096)
                nursery.cancel_scope.cancel()
