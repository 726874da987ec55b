"""A server with real receivers over loopback multicast: gates, groups, ports, floods, kicks, demotions."""

import os
import socket
import threading
from dataclasses import replace

import pytest
import trio
import trio.testing
from loopback import (
    HOST,
    PATIENCE,
    Client,
    Events,
    MemoryNamespace,
    Player,
    Reception,
    Serving,
    Sink,
    image,
    receive,
    serving,
    until,
)

import wdstransport
from wdstransport import (
    ClientJoined,
    ClientLeft,
    DirectoryNamespace,
    RefusedError,
    RemovedError,
    RequestRefused,
    SendingStarted,
    ServerListening,
    SessionEnded,
    SessionOpened,
    Warned,
)
from wdstransport.net.offload import name_features
from wdstransport.net.serving import ServedSession, SessionSettings, open_session
from wdstransport.wire.initiation import ErrorReply, Request, encode
from wdstransport.wire.security import SecurityMode
from wdstransport.wire.transport import Demote, Join, Kick, LeaveReason, Nack

pytestmark = pytest.mark.usefixtures("quick")

SLOW = 400_000.0
"""Bytes per second at which a transfer is under way for as long as a test needs it to be."""


def free_port():
    """A UDP port that nobody holds at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@pytest.fixture
def opened(monkeypatch):
    """The settings of every session that is opened."""
    seen = []

    def opening(*arguments, settings, **others):
        seen.append(settings)
        return open_session(*arguments, settings=settings, **others)

    monkeypatch.setattr("wdstransport.net.session_table.open_session", opening)
    return seen


class TestServing:
    async def test_one_receiver_gets_the_image_and_the_events_tell_the_story(self):
        data = image(50_000)
        before = trio.current_time()
        async with serving(data) as site:
            assert await site.receive() == data
            left = await site.events.wait(ClientLeft)
            assert left.reason == "complete"
            session = site.session
            assert session.data_bytes == len(data)
            assert session.completed == site.server.statistics().completed == 1
        kinds = [type(event) for event in site.events if not isinstance(event, Warned)]
        assert kinds == [
            ServerListening,
            SessionOpened,
            ClientJoined,
            SendingStarted,
            ClientLeft,
            SessionEnded,
        ]
        (opened,) = site.events.of(SessionOpened)
        assert (opened.namespace, opened.content, opened.size) == ("images", "image", len(data))
        assert opened.total_blocks == -(-len(data) // opened.block_size)
        assert opened.session_id == session.session_id
        seconds = [event.seconds for event in site.events]
        assert seconds == sorted(seconds)
        assert seconds[0] >= 0
        assert seconds[-1] <= site.server.statistics().seconds <= trio.current_time() - before

    @pytest.mark.parametrize("security", ["checksum", "none"])
    @pytest.mark.parametrize("block_size", [1, 1385, 8785, 65_000])
    async def test_any_block_size_in_any_security_arrives(self, security, block_size):
        data = image(70_001 if block_size > 1 else 701)
        async with serving(data, security=security, block_size=block_size) as site:
            assert await site.receive(security=security) == data
            assert site.session.block_size == block_size

    async def test_eight_receivers_at_once_share_one_stream(self):
        data = image(300_000)
        async with serving(data, min_clients=8) as site, trio.open_nursery() as nursery:
            receptions = [Reception(nursery, site.port) for _ in range(8)]
            for reception in receptions:
                await reception.ended.wait()
                assert reception.error is None
                assert reception.data == data
            assert len(site.sessions) == 1
            assert site.session.data_bytes < 1.5 * len(data)

    async def test_who_comes_later_is_served_by_the_same_session(self):
        data = image(30_000)
        async with serving(data) as site:
            for _ in range(3):
                assert await site.receive() == data
            assert len(site.events.of(SessionOpened)) == 1
            assert site.session.completed == 3

    async def test_a_namespace_can_be_added_while_open(self):
        async with serving(b"first") as site:
            with pytest.raises(RefusedError) as caught:
                await site.receive("second", namespace="more")
            assert caught.value.code == 3
            site.server.add_namespace(MemoryNamespace({"second": b"second"}, "more"))
            assert await site.receive("second", namespace="more") == b"second"
            with pytest.raises(wdstransport.UsageError, match="'more'"):
                site.server.add_namespace(MemoryNamespace({}, "more"))

    async def test_two_contents_are_delivered_at_once_to_different_groups(self):
        files = {"one": image(400_000, 1), "two": image(400_000, 2)}
        async with serving(files, rate=2 * SLOW) as site, trio.open_nursery() as nursery:
            receptions = {name: Reception(nursery, site.port, content=name) for name in files}
            for reception in receptions.values():
                await reception.sink.begun.wait()
            assert len(site.sessions) == 2
            opened = site.events.of(SessionOpened)
            assert len({event.group[0] for event in opened}) == 2
            assert len({event.session_id for event in opened}) == 2
            for name, reception in receptions.items():
                await reception.ended.wait()
                assert reception.data == files[name]

    async def test_two_servers_on_one_machine_do_not_get_in_each_others_way(self):
        one, two = image(100_000, 1), image(100_000, 2)
        async with serving(one) as first, serving(two) as second, trio.open_nursery() as nursery:
            receptions = [Reception(nursery, site.port) for site in (first, second)]
            for reception, data in zip(receptions, (one, two), strict=True):
                await reception.ended.wait()
                assert reception.data == data

    async def test_statistics_show_who_is_there(self):
        async with serving(image(200_000), rate=SLOW) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port)
            await reception.sink.begun.wait()
            shown = site.server.statistics()
            (client,) = shown.sessions[0].clients
            assert client.state == "master"
            assert client.address[0] == HOST
            assert shown.sessions[0].state == "sending"
            assert shown.requests == 1
            nursery.cancel_scope.cancel()

    async def test_a_session_has_what_its_server_was_told(self, opened):
        options = {"block_size": 50, "rate": SLOW, "ttl": 7, "min_clients": 2, "max_wait": 90.0}
        async with serving(image(100), security="none", **options) as site:
            client = Client()
            await client.ask(site.port)
            client.close()
        assert opened == [SessionSettings(security=SecurityMode.NONE, **options)]

    async def test_statistics_tell_requests_from_refusals_and_from_completions(self):
        async with serving(image(1000)) as site:
            for name in ("gone", "gone too"):
                with pytest.raises(RefusedError):
                    await site.receive(name)
            await site.receive()
            await site.events.wait(ClientLeft)
            shown = site.server.statistics()
            assert (shown.requests, shown.refused, shown.completed) == (3, 2, 1)

    @pytest.mark.parametrize(("segmentation", "merging"), [(True, False), (False, True)])
    @pytest.mark.parametrize(("rate", "pacing"), [(None, "none"), (SLOW, "own")])
    async def test_statistics_name_what_of_the_fast_path_is_in_use(
        self, monkeypatch, segmentation, merging, rate, pacing
    ):
        monkeypatch.setattr("wdstransport.server.probe_segmentation", lambda family: segmentation)
        monkeypatch.setattr("wdstransport.server.probe_merging", lambda family: merging)
        async with serving({}, rate=rate) as site:
            features = site.server.statistics().features
        assert features == {**name_features(segment_ok=segmentation, merge_ok=merging), "pacing": pacing}


class TestNames:
    @pytest.mark.parametrize(
        ("namespace", "content", "code"),
        [
            ("images", "gone", 2),
            ("images", "", 2),
            ("images", "../image", 2),
            ("images", "/etc/passwd", 2),
            ("images", "..\\image", 2),
            ("other", "image", 3),
            ("", "image", 3),
            ("IMAGES", "image", 3),
        ],
    )
    async def test_what_is_not_there_is_refused_with_its_code(self, tmp_path, namespace, content, code):
        root = tmp_path / "root"
        root.mkdir()
        (root / "image").write_bytes(b"inside")
        (tmp_path / "image").write_bytes(b"outside")
        async with serving(DirectoryNamespace("images", root)) as site:
            with pytest.raises(RefusedError) as caught:
                await site.receive(content, namespace=namespace)
            assert caught.value.code == code
            assert repr(content) in str(caught.value)
            (refused,) = site.events.of(RequestRefused)
            assert (refused.namespace, refused.content, refused.code) == (namespace, content, code)
            shown = site.server.statistics()
            assert (shown.requests, shown.refused, shown.sessions) == (1, 1, ())

    async def test_a_file_that_cannot_be_read_is_an_error_reply_and_a_warning(self, tmp_path):
        class Broken(MemoryNamespace):
            def open(self, content):
                raise wdstransport.ContentError("the disk is failing")

        async with serving(Broken({})) as site:
            with pytest.raises(RefusedError) as caught:
                await site.receive()
            assert caught.value.code == 30
            assert "disk is failing" in site.events.of(Warned)[-1].message

    async def test_a_session_that_has_no_place_on_the_network_is_an_error_reply_and_a_warning(self):
        async with serving(b"x") as site:
            place = site.server._places.locate(HOST, False)
            site.server._places.locate = lambda *_: replace(
                place, interface=replace(place.interface, up=False)
            )
            with pytest.raises(RefusedError, match="network") as caught:
                await site.receive()
            assert caught.value.code == 59
            assert len(site.events.of(RequestRefused, code=59)) == 1
            assert "it is down" in site.events.of(Warned)[-1].message


class TestTheGate:
    async def test_nothing_is_sent_before_enough_have_joined(self):
        data = image(30_000)
        async with serving(data, min_clients=3) as site, trio.open_nursery() as nursery:
            receptions = [Reception(nursery, site.port) for _ in range(2)]
            await site.events.wait(ClientJoined, 2)
            await until(lambda: [each.state for each in site.session.clients].count("master") == 1)
            assert site.session.state == "waiting"
            assert site.events.of(SendingStarted) == []
            receptions.append(Reception(nursery, site.port))
            sending = await site.events.wait(SendingStarted)
            assert sending.clients == 3
            for reception in receptions:
                await reception.ended.wait()
                assert reception.data == data
            assert site.session.data_bytes == len(data)

    async def test_after_the_longest_wait_it_starts_with_who_is_there(self):
        data = image(30_000)
        async with serving(data, min_clients=30, max_wait=0.2) as site:
            assert await site.receive() == data
            assert site.events.of(SendingStarted)[0].clients == 1

    async def test_one_who_leaves_before_the_gate_opens_does_not_count(self):
        data = image(30_000)
        async with serving(data, min_clients=2) as site, trio.open_nursery() as nursery:
            leaver = Reception(nursery, site.port)
            await site.events.wait(ClientJoined)
            leaver.scope.cancel()
            await site.events.wait(ClientLeft)
            first = Reception(nursery, site.port)
            await site.events.wait(ClientJoined, 2)
            assert site.events.of(SendingStarted) == []
            second = Reception(nursery, site.port)
            for reception in (first, second):
                await reception.ended.wait()
                assert reception.data == data

    async def test_who_comes_after_the_gate_has_opened_need_not_wait(self):
        data = image(30_000)
        async with serving(data, min_clients=2) as site, trio.open_nursery() as nursery:
            for reception in [Reception(nursery, site.port) for _ in range(2)]:
                await reception.ended.wait()
            assert await site.receive() == data


class TestGroupsAndPorts:
    async def test_sessions_take_one_group_after_the_other_from_the_one_given(self):
        files = {name: image(100) for name in "abc"}
        async with serving(files, group="239.193.7.254") as site:
            for name in files:
                await site.receive(name)
            groups = [event.group[0] for event in site.events.of(SessionOpened)]
        assert groups == ["239.193.7.254", "239.193.7.255", "239.193.8.0"]

    async def test_a_group_of_a_family_that_is_not_listened_on_fails_the_opening_which_may_be_repeated(self):
        options = {"interface": HOST, "port": 0}
        async with trio.open_nursery() as nursery:
            server = wdstransport.TransportServer([], group="ff15::1", **options)
            for _ in range(2):
                with pytest.raises(wdstransport.UsageError, match=r"ff15::1 is IPv6.*IPv4 only.*--interface"):
                    await server.open(nursery)
            assert server.port == 0
        async with serving(image(100), group="239.193.7.1") as site:
            assert await site.receive() == image(100)

    async def test_when_no_port_is_free_the_oldest_idle_session_ends_and_the_next_takes_its_port(self):
        port = free_port()
        files = {name: image(100) for name in "abc"}
        async with serving(files, session_ports=(port, port)) as site:
            for name in files:
                assert await site.receive(name) == files[name]
                await site.events.wait(ClientLeft, "abc".index(name) + 1)
            opened = site.events.of(SessionOpened)
            assert [event.content for event in opened] == list(files)
            assert all(event.address[1] == event.group[1] == port for event in opened)
            ended = [event.session_id for event in site.events.of(SessionEnded)]
            assert ended == [event.session_id for event in opened[:2]]
            assert site.session.content == "c"
            assert not any("--session-ports" in event.message for event in site.events.of(Warned))

    async def test_when_no_port_is_free_who_joined_and_has_not_confirmed_yet_is_not_cut_off(self):
        port = free_port()
        async with serving({"a": image(100), "b": image(100)}, session_ports=(port, port)) as site:
            client, other = Client(), Client()
            await client.ask(site.port, "a")
            await client.join()
            assert await other.ask(site.port, "b") == ErrorReply(69)
            assert site.session.content == "a"
            for each in (client, other):
                each.close()

    async def test_a_changed_file_is_served_anew_from_the_only_port(self, tmp_path):
        port, path = free_port(), tmp_path / "image"
        path.write_bytes(image(10_000, 1))
        namespace = DirectoryNamespace("images", tmp_path)
        async with serving(namespace, session_ports=(port, port)) as site:
            early = Client()
            await early.enter(site.port)
            await site.events.wait(ClientJoined)
            path.write_bytes(image(20_000, 2))
            assert await site.receive() == image(20_000, 2)
            early.close()

    async def test_when_every_port_has_clients_requests_are_refused_and_warned_of_once(self):
        port = free_port()
        files = {"a": image(500_000), "b": image(1000), "c": image(1000)}
        async with (
            serving(files, session_ports=(port, port), rate=SLOW) as site,
            trio.open_nursery() as nursery,
        ):
            busy = Reception(nursery, site.port, content="a")
            await busy.sink.begun.wait()
            for count, name in ((1, "b"), (2, "b"), (3, "c")):
                with pytest.raises(RefusedError, match="Try again when one is done") as caught:
                    await site.receive(name)
                assert caught.value.code == 69
                assert len(site.events.of(RequestRefused, code=69)) == count
            (warned,) = [event for event in site.events.of(Warned) if "--session-ports" in event.message]
            assert HOST in warned.message
            await busy.ended.wait()
            assert busy.data == files["a"]
            assert await site.receive("b") == files["b"]

    async def test_when_there_are_too_many_sessions_the_oldest_idle_one_goes(self):
        files = {name: image(1000) for name in "abc"}
        async with serving(files, max_sessions=2) as site:
            for name in "abc":
                assert await site.receive(name) == files[name]
                await site.events.wait(ClientLeft, "abc".index(name) + 1)
            ended = await site.events.wait(SessionEnded)
            assert ended.session_id == site.events.of(SessionOpened)[0].session_id
            assert {session.content for session in site.sessions} == {"b", "c"}

    async def test_a_session_in_use_does_not_go_and_the_newcomer_is_refused(self):
        files = {"a": image(500_000), "b": image(1000)}
        async with serving(files, max_sessions=1, rate=SLOW) as site, trio.open_nursery() as nursery:
            busy = Reception(nursery, site.port, content="a")
            await busy.sink.begun.wait()
            with pytest.raises(RefusedError, match="Try again when one is done") as caught:
                await site.receive("b")
            assert caught.value.code == 69
            await busy.ended.wait()
            assert busy.data == files["a"]
            assert await site.receive("b") == files["b"]

    @pytest.mark.parametrize(
        "options",
        [
            {"security": "hash"},
            {"min_clients": 0},
            {"block_size": 0},
            {"block_size": 65_001},
            {"group": "192.0.2.1"},
            {"group": "224.0.0.77"},
            {"session_ports": (5, 4)},
        ],
        ids=str,
    )
    def test_options_that_cannot_be_are_refused_at_once(self, options):
        with pytest.raises(wdstransport.UsageError):
            wdstransport.TransportServer([], **options)

    @pytest.mark.parametrize(
        "options",
        [
            {"min_clients": 1},
            {"block_size": 1},
            {"block_size": 65_000},
            {"port": 65_535},
            {"ttl": 0},
            {"ttl": 255},
            {"max_wait": 0},
            {"max_sessions": 1},
        ],
        ids=str,
    )
    def test_options_at_their_limits_are_taken(self, options):
        wdstransport.TransportServer([], **options)

    @pytest.mark.parametrize(
        "options",
        [
            {"rate": 0},
            {"rate": -1.0},
            {"rate": float("nan")},
            {"rate": float("inf")},
            {"rate": 1e30},
            {"ttl": -1},
            {"ttl": 256},
            {"port": -1},
            {"port": 65_536},
            {"max_wait": -1.0},
            {"max_wait": float("nan")},
            {"max_wait": float("inf")},
            {"max_sessions": 0},
        ],
        ids=str,
    )
    def test_these_options_cannot_be_either(self, options):
        with pytest.raises(wdstransport.UsageError):
            wdstransport.TransportServer([], **options)


class TestChangedContent:
    async def test_a_file_that_changes_ends_its_session_and_clients_are_told(self, tmp_path):
        path = tmp_path / "image"
        path.write_bytes(image(6_000_000))  # more than is read ahead
        async with (
            serving(DirectoryNamespace("images", tmp_path), rate=5 * SLOW) as site,
            trio.open_nursery() as nursery,
        ):
            receptions = [Reception(nursery, site.port) for _ in range(2)]
            for reception in receptions:
                await reception.sink.begun.wait()
            with path.open("r+b") as file:
                file.write(b"changed")
            for reception in receptions:
                await reception.ended.wait()
                assert isinstance(reception.error, RemovedError)
                assert "the image changed or could not be read there" in str(reception.error)
                assert not reception.sink.finished
            ended = await site.events.wait(SessionEnded)
            assert ended.reason == "error"
            assert "'image' changed" in ended.error
            assert {event.reason for event in site.events.of(ClientLeft)} == {"kicked"}

    async def test_a_request_for_a_changed_file_opens_a_new_session_with_the_new_bytes(self, tmp_path):
        path = tmp_path / "image"
        path.write_bytes(image(10_000, 1))
        async with serving(DirectoryNamespace("images", tmp_path)) as site:
            assert await site.receive() == image(10_000, 1)
            replacement = tmp_path / "new"
            replacement.write_bytes(image(20_000, 2))
            os.replace(replacement, path)
            assert await site.receive() == image(20_000, 2)
            first, second = site.events.of(SessionOpened)
            assert first.session_id != second.session_id
            assert (await site.events.wait(SessionEnded)).session_id == first.session_id

    async def test_a_file_that_was_deleted_is_gone_for_the_next_who_asks(self, tmp_path):
        path = tmp_path / "image"
        path.write_bytes(image(10_000))
        async with serving(DirectoryNamespace("images", tmp_path)) as site:
            await site.receive()
            path.unlink()
            with pytest.raises(RefusedError) as caught:
                await site.receive()
            assert caught.value.code == 2

    async def test_other_sessions_take_no_notice(self, tmp_path):
        (tmp_path / "image").write_bytes(image(6_000_000))
        (tmp_path / "other").write_bytes(image(1_000_000, 2))
        async with (
            serving(DirectoryNamespace("images", tmp_path), rate=5 * SLOW) as site,
            trio.open_nursery() as nursery,
        ):
            victim = Reception(nursery, site.port)
            other = Reception(nursery, site.port, content="other")
            for reception in (victim, other):
                await reception.sink.begun.wait()
            (tmp_path / "image").write_bytes(b"")
            await victim.ended.wait()
            assert victim.error is not None
            await other.ended.wait()
            assert other.data == image(1_000_000, 2)


class TestKickAndDemote:
    @pytest.mark.parametrize("reason", list(wdstransport.KickReason))
    async def test_a_kicked_client_is_told_why_and_the_others_go_on(self, reason):
        data = image(300_000)
        async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
            victim = Reception(nursery, site.port)
            joined = await site.events.wait(ClientJoined)
            other = Reception(nursery, site.port)
            for reception in (victim, other):
                await reception.sink.begun.wait()
            site.server.kick(joined.session_id, joined.client_id, reason)
            await victim.ended.wait()
            assert isinstance(victim.error, RemovedError)
            assert victim.error.reason == reason
            left = await site.events.wait(ClientLeft, client_id=joined.client_id)
            assert left.reason == "kicked"
            await other.ended.wait()
            assert other.data == data

    async def test_whom_it_does_not_have_it_cannot_kick(self):
        async with serving(image(100_000), rate=SLOW) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port)
            joined = await site.events.wait(ClientJoined)
            with pytest.raises(wdstransport.UsageError, match="session"):
                site.server.kick(joined.session_id ^ 1, joined.client_id)
            with pytest.raises(wdstransport.UsageError, match="client"):
                site.server.kick(joined.session_id, joined.client_id ^ 1)
            await reception.ended.wait()
            assert reception.error is None

    async def test_a_demoted_client_follows_to_a_slower_session_and_finishes_there(self):
        data = image(300_000)
        async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
            follower = Reception(nursery, site.port)
            joined = await site.events.wait(ClientJoined)
            stays = Reception(nursery, site.port)
            for reception in (follower, stays):
                await reception.sink.begun.wait()
            lower = await site.server.demote(joined.session_id, joined.client_id)
            assert lower != joined.session_id
            left = await site.events.wait(ClientLeft, client_id=joined.client_id)
            assert left.reason == "demoted"
            again = await site.events.wait(ClientJoined, session_id=lower)
            assert again.name == joined.name
            for reception in (follower, stays):
                await reception.ended.wait()
                assert reception.error is None
                assert reception.data == data
            done = await site.events.wait(ClientLeft, session_id=lower)
            assert done.reason == "complete"
            sent = {session.session_id: session.data_bytes for session in site.sessions}
            # What came before the demotion was not sent again.
            assert 0 < sent[lower] < len(data)
            assert sent[joined.session_id] <= 1.2 * len(data)

    async def test_there_is_nothing_slower_than_the_slower_session(self):
        async with serving(image(300_000), rate=SLOW) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port)
            joined = await site.events.wait(ClientJoined)
            await reception.sink.begun.wait()
            lower = await site.server.demote(joined.session_id, joined.client_id, 2 * SLOW)
            again = await site.events.wait(ClientJoined, session_id=lower)
            with pytest.raises(wdstransport.UsageError, match="slowest"):
                await site.server.demote(lower, again.client_id)
            await reception.ended.wait()
            assert reception.error is None

    async def test_a_second_demotion_leads_to_the_same_slower_session(self):
        data = image(300_000)
        async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
            receptions = [Reception(nursery, site.port) for _ in range(2)]
            await site.events.wait(ClientJoined, 2)
            for reception in receptions:
                await reception.sink.begun.wait()
            joined = site.events.of(ClientJoined)
            lower = {
                await site.server.demote(event.session_id, event.client_id, 2 * SLOW) for event in joined
            }
            assert len(lower) == 1
            for reception in receptions:
                await reception.ended.wait()
                assert reception.data == data

    @pytest.mark.parametrize(
        ("rate", "asked", "slower"),
        [(SLOW, None, SLOW / 2), (SLOW, 150_000.0, 150_000.0), (None, 150_000.0, 150_000.0)],
    )
    async def test_the_slower_session_has_the_rate_asked_for_or_half(self, opened, rate, asked, slower):
        async with serving(image(100), rate=rate, min_clients=2) as site:
            client = Client()
            await client.enter(site.port)
            joined = await site.events.wait(ClientJoined)
            await site.server.demote(joined.session_id, joined.client_id, asked)
            client.close()
        assert [settings.rate for settings in opened] == [rate, slower]

    @pytest.mark.parametrize("sent", [800_000.0, 0.0])
    async def test_without_a_rate_the_slower_session_has_half_of_what_is_sent(
        self, opened, monkeypatch, sent
    ):
        """Or, before anything is sent, some rate: without one it would not be slower."""
        statistics = ServedSession.statistics
        monkeypatch.setattr(
            ServedSession, "statistics", lambda each: replace(statistics(each), bytes_per_second=sent)
        )
        async with serving(image(100), min_clients=2) as site:
            client = Client()
            await client.enter(site.port)
            joined = await site.events.wait(ClientJoined)
            await site.server.demote(joined.session_id, joined.client_id)
            client.close()
        rate = opened[1].rate
        assert rate == sent / 2 if sent else rate > 0

    async def test_a_demotion_for_which_there_is_no_room_is_a_usage_error(self):
        async with serving(image(100), min_clients=2, max_sessions=1) as site:
            client = Client()
            await client.enter(site.port)
            joined = await site.events.wait(ClientJoined)
            with pytest.raises(wdstransport.UsageError, match="too many"):
                await site.server.demote(joined.session_id, joined.client_id)
            assert site.server.client(joined.session_id, joined.client_id).connected
            client.close()

    @pytest.mark.parametrize("how", ["kick", "demote"])
    async def test_who_is_sent_away_is_told_at_once(self, mock_clock, how):
        """The clock stands still: no timer makes the session send."""
        async with serving(image(100), min_clients=2) as site:
            client = Client()
            await client.enter(site.port)
            group = client.hear()
            joined = await site.events.wait(ClientJoined)
            await trio.testing.wait_all_tasks_blocked()
            if how == "kick":
                site.server.kick(joined.session_id, joined.client_id)
                await group.take(Kick)
            else:
                await site.server.demote(joined.session_id, joined.client_id)
                await group.take(Demote)
            mock_clock.rate = 1  # for closing, which gives clients a second
            group.close()
            client.close()

    async def test_who_cannot_be_demoted_is_not(self):
        async with serving(image(100_000), rate=SLOW) as site:
            client = Client()
            await client.ask(site.port)
            await client.join(demotable=False)
            await client.confirm()
            joined = await site.events.wait(ClientJoined)
            with pytest.raises(wdstransport.UsageError, match="kick it"):
                await site.server.demote(joined.session_id, joined.client_id)
            client.close()

    async def test_demoting_whom_it_does_not_have_is_a_usage_error(self):
        async with serving(image(100)) as site:
            with pytest.raises(wdstransport.UsageError):
                await site.server.demote(1, 2)
            await site.receive()
            with pytest.raises(wdstransport.UsageError):
                await site.server.demote(site.session.session_id, 2)


class TestClosing:
    async def test_clients_in_the_middle_are_told_with_kick(self):
        async with trio.open_nursery() as nursery:
            async with serving(image(3_000_000), rate=SLOW) as site:
                receptions = [Reception(nursery, site.port) for _ in range(3)]
                for reception in receptions:
                    await reception.sink.begun.wait()
                await site.server.close()
                for reception in receptions:
                    await reception.ended.wait()
                    assert isinstance(reception.error, RemovedError)
                    assert reception.error.reason == wdstransport.KickReason.FAIL
                    assert reception.sink.abandoned
            assert site.events.of(ClientLeft) == []
            assert [event.reason for event in site.events.of(SessionEnded)] == ["closed"]

    async def test_waiting_for_completions_counts_who_left_with_everything(self):
        async with serving(image(1000)) as site, trio.open_nursery() as nursery:
            done = trio.Event()

            async def wait():
                await site.server.wait_completed(2)
                done.set()

            nursery.start_soon(wait)
            await site.receive()
            await site.events.wait(ClientLeft)
            assert not done.is_set()
            await site.receive()
            await done.wait()

    async def test_content_of_no_bytes_counts_once_for_each_who_asks(self):
        async with serving(b"") as site:
            assert await site.receive() == b""
            assert site.server.statistics().completed == 1
            assert await site.receive() == b""
            assert site.server.statistics().completed == 2

    async def test_content_of_no_bytes_counts_once_for_one_who_asks_twice(self):
        async with serving(b"") as site:
            client = Client()
            await client.ask(site.port)
            await client.ask(site.port)
            client.close()
            assert site.server.statistics().completed == 1


class Failing(MemoryNamespace):
    """Contents that cannot be read, each for a reason of its own."""

    def open(self, content):
        raise wdstransport.ContentError(f"the disk of {content} is failing")


class TestFailedRequests:
    """What is told of requests that fail: everything at first, and a bounded part of a flood."""

    @pytest.fixture
    async def site(self, mock_clock):
        events, namespace = Events(), Failing({})
        server = wdstransport.TransportServer([namespace], interface=HOST, port=0, on_event=events)
        async with server:
            yield Serving(server, events, namespace)

    async def ask(self, site, content="image", namespace="images", **options):
        request = Request(namespace, content, bytes(6), **options)
        return await site.server._answer(request, ("192.0.2.1", 7), HOST)

    async def test_a_flood_of_refusals_is_counted_whole_and_told_in_part(self, site, mock_clock):
        for _ in range(150):
            assert await self.ask(site, namespace="other") == ErrorReply(3)
        assert site.server.statistics().refused == 150
        assert len(site.events.of(RequestRefused)) == 100
        mock_clock.jump(1.0)
        for _ in range(50):
            await self.ask(site, namespace="other")
        assert len(site.events.of(RequestRefused)) == 120
        told = site.events.of(RequestRefused)[-1]
        assert (told.address, told.seconds) == (("192.0.2.1", 7), 1.0)

    async def test_a_flood_of_different_warnings_is_told_in_part_too(self, site, mock_clock):
        for number in range(150):
            assert await self.ask(site, str(number)) == ErrorReply(30)
        warned, refused = site.events.of(Warned), site.events.of(RequestRefused)
        assert len(warned) + len(refused) == 100
        assert warned
        assert refused

    async def test_one_and_the_same_warning_is_given_once_a_minute_and_others_meanwhile(
        self, site, mock_clock
    ):
        async def warned(content):
            before = len(site.events.of(Warned))
            await self.ask(site, content)
            return len(site.events.of(Warned)) - before

        assert [await warned(content) for content in ("a", "a", "b", "a", "b")] == [1, 0, 1, 0, 0]
        mock_clock.jump(59)
        assert [await warned(content) for content in ("a", "c", "a")] == [0, 1, 0]
        mock_clock.jump(1)
        assert [await warned(content) for content in ("a", "a", "c", "b")] == [1, 0, 0, 1]
        assert (site.events[-2].message, site.events[-2].seconds) == ("the disk of b is failing", 60)
        mock_clock.jump(1000)
        await warned("d")
        assert list(site.server._warned) == ["the disk of d is failing"], "no cause is kept for ever"

    @pytest.mark.parametrize("capable", [None, False, True])
    async def test_a_place_is_looked_for_where_was_asked_and_by_what_the_asker_can(
        self, site, mock_clock, capable
    ):
        """MS-WDSMSI 3.1.5.3: IPv6 only for who says that it can."""
        asked = []
        locate = site.server._places.locate
        site.server._places.locate = lambda *each: (asked.append(each), locate(HOST, False))[1]
        assert await self.ask(site, ipv6_capable=capable) == ErrorReply(30)
        assert asked == [(HOST, capable is True)]


class TestFloods:
    async def test_a_flood_of_requests_does_not_disturb_a_transfer(self):
        data = image(300_000)
        async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port)
            await reception.sink.begun.wait()
            flood = encode(Request("images", "gone", bytes(6)))
            attackers = [Client(host=f"127.0.1.{number}") for number in range(1, 50)]
            for _ in range(20):
                for attacker in attackers:
                    attacker.raw.sendto(flood, (HOST, site.port))
                await trio.lowlevel.checkpoint()
            await reception.ended.wait()
            assert reception.data == data
            assert len(site.sessions) == 1
            for attacker in attackers:
                attacker.close()

    async def test_one_host_that_asks_all_the_time_is_not_answered_all_the_time(self):
        async with serving(image(1000)) as site:
            attacker = Client(host="127.0.1.1")
            for _ in range(150):
                attacker.raw.sendto(encode(Request("images", "gone", bytes(6))), (HOST, site.port))
            shown = await until(
                lambda: (
                    site.server.statistics().requests
                    + site.server.statistics().dropped.get("too_many_requests", 0)
                    == 150
                    and site.server.statistics()
                )
            )
            assert shown.dropped["too_many_requests"] > 50
            assert await site.receive() == image(1000)
            attacker.close()

    async def test_requests_for_many_contents_open_a_bounded_number_of_sessions(self):
        files = {str(number): image(100) for number in range(30)}
        async with serving(files, max_sessions=5) as site:
            attacker = Client()
            for name in files:
                await attacker.ask(site.port, name)
                assert len(site.sessions) <= 5
            attacker.close()
            await until(lambda: len(site.events.of(SessionEnded)) == 25)
            assert threading.active_count() < 40

    async def test_joins_that_nobody_confirms_do_not_disturb_a_transfer(self):
        data = image(300_000)
        async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port)
            await reception.sink.begun.wait()
            attackers = [Client() for _ in range(100)]
            await attackers[0].ask(site.port)
            join = attackers[0].seal(Join("FLOOD", socket.inet_aton(HOST), bytes(6)))
            for attacker in attackers:
                attacker.raw.sendto(join, attackers[0].server)
            late = Reception(nursery, site.port)
            for each in (reception, late):
                await each.ended.wait()
                assert each.data == data
            assert {event.name for event in site.events.of(ClientJoined)}.isdisjoint({"FLOOD"})
            for attacker in attackers:
                attacker.close()

    async def test_garbage_to_both_ports_is_counted(self):
        async with serving(image(1000)) as site:
            attacker = Client()
            await attacker.ask(site.port)
            for datagram in (b"", b"x", bytes(1000), os.urandom(5000)):
                attacker.raw.sendto(datagram, (HOST, site.port))
                attacker.raw.sendto(datagram, attacker.server)
            await until(lambda: sum(site.server.statistics().dropped.values()) == 4)
            # An empty datagram says nothing that could be wrong: the reader passes it over.
            await until(lambda: sum(site.session.dropped.values()) == 3)
            assert await site.receive() == image(1000)
            attacker.close()

    async def test_a_member_that_wants_everything_again_all_the_time_leaves_the_others_a_share(self):
        data = image(1_500_000)
        async with serving(data, rate=4_000_000.0) as site, trio.open_nursery() as nursery:
            attacker = Client()
            await attacker.enter(site.port)
            player = Player(attacker)
            nursery.start_soon(player.run)
            everything = attacker.seal(Nack(attacker.client_id, 1, 10**16, ((1, 2**64 - 1),)))

            async def attack():
                while True:
                    attacker.raw.sendto(everything, attacker.server)
                    with trio.move_on_after(0.001):
                        await trio.sleep_forever()

            await site.events.wait(SendingStarted)
            nursery.start_soon(attack)
            reception = Reception(nursery, site.port)
            await until(lambda: reception.result)
            assert reception.data == data
            nursery.cancel_scope.cancel()
        player.close()


async def test_a_peer_that_leaves_as_complete_without_anything_is_believed_and_harms_nobody():
    data = image(200_000)
    async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
        reception = Reception(nursery, site.port)
        await reception.sink.begun.wait()
        client = Client()
        await client.enter(site.port)
        await site.events.wait(ClientJoined, 2)
        player = Player(client)
        await player.leave(LeaveReason.COMPLETE)
        await reception.ended.wait()
        assert reception.data == data
        player.close()


async def test_an_independent_request_gets_the_protocols_error_reply():
    async with serving(b"x") as site:
        client = Client()
        assert await client.ask(site.port, "gone") == ErrorReply(2)
        assert await client.ask(site.port, "image", "gone") == ErrorReply(3)
        client.close()


async def test_a_server_can_run_in_a_nursery_of_the_callers(nursery):
    data = image(5000)
    server = wdstransport.TransportServer([MemoryNamespace({"image": data})], interface=HOST, port=0)
    with trio.fail_after(PATIENCE):
        await server.open(nursery)
        sink = Sink()
        await receive(server.port, sink)
        assert bytes(sink.data) == data
        await server.close()
