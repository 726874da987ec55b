"""A session with its place in the world: opened with nothing left behind, offered, told about, ended."""

import gc
import random
import socket
import warnings
from dataclasses import replace

import pytest
import trio
from loopback import HOST, PATIENCE, Client, Events, Player, image, until
from trio.testing import wait_all_tasks_blocked

from wdstransport.content.sources import MemorySource
from wdstransport.errors import ContentError, SourceChangedError, TransportError, UsageError
from wdstransport.net import serving
from wdstransport.net.pacing import SO_MAX_PACING_RATE
from wdstransport.net.places import SessionPlaces
from wdstransport.net.served_client import ClientRecords
from wdstransport.net.serving import SessionSettings, check_rate, open_session
from wdstransport.observe.events import ClientJoined, ClientLeft, SendingStarted, SessionEnded
from wdstransport.protocol.loss import scaled_loss
from wdstransport.protocol.parameters import ServerParameters
from wdstransport.wire.application import ProgressReport, encode
from wdstransport.wire.options import cpu_util, mem_util, net_util
from wdstransport.wire.security import SecurityMode, make_security
from wdstransport.wire.transport import (
    FW_LEAD_OPTION_LEN,
    Kick,
    KickReason,
    Leave,
    LeaveReason,
    Qcr,
    data_overhead,
)

pytestmark = pytest.mark.usefixtures("quick")


class Content(MemorySource):
    def __init__(self, data):
        super().__init__(data, "image")
        self.changed = False
        self.before_check = lambda: None

    def check(self):
        self.before_check()
        super().check()
        if self.changed:
            raise SourceChangedError("not what it was")


class Site:
    """Where sessions are opened."""

    def __init__(self, **settings):
        self.places = SessionPlaces(None, None)
        self.events = Events()
        self.completed = 0
        self.records = ClientRecords()
        self.settings = SessionSettings(
            **{
                "security": SecurityMode.CHECKSUM,
                "block_size": None,
                "rate": None,
                "ttl": 1,
                "min_clients": 1,
                "max_wait": None,
                **settings,
            }
        )

    def _count(self):
        self.completed += 1

    def open(self, data=b"x" * 5000):
        return open_session(
            Content(data),
            namespace="images",
            content="image",
            place=self.places.locate(HOST, False),
            places=self.places,
            settings=self.settings,
            session_id=77,
            rng=random.Random(1),
            start=trio.current_time(),
            clients=self.records,
            tell=self.events,
            completed=self._count,
        )


@pytest.fixture
def site():
    return Site()


class Running:
    def __init__(self, nursery, served):
        self.nursery = nursery
        self.served = served
        self.players = []
        nursery.start_soon(served.run)

    async def player(self, security=SecurityMode.CHECKSUM):
        client = Client(security)
        client.offer = self.served.offer()
        client.session_id = client.offer.session_id
        player = Player(client)
        self.players.append(player)
        await client.join()
        self.nursery.start_soon(player.run_in_scope)
        await client.confirm()
        return player

    async def ended(self):
        with trio.fail_after(PATIENCE):
            await self.served.ended.wait()


@pytest.fixture
async def run(nursery):
    runs = []

    def begin(served):
        runs.append(Running(nursery, served))
        return runs[-1]

    yield begin
    for each in runs:
        each.served.close(trio.current_time())
        for player in each.players:
            player.scope.cancel()
        await each.ended()
        await wait_all_tasks_blocked()  # reading from a socket that is closed meanwhile is an error
        for player in each.players:
            player.close()


def discard(served):
    """What a session that never runs leaves open."""
    served.driver._sock.close()


class TestOpening:
    async def test_an_offer_says_what_the_session_is(self, site):
        served = site.open(image(5000))
        offer = served.offer()
        assert offer.server_address == socket.inet_aton(HOST)
        assert offer.multicast_port == offer.server_port == served.address[1]
        assert socket.inet_ntoa(offer.multicast_address) == served.group[0]
        assert offer.content_size == 5000
        assert offer.total_blocks == -(-5000 // offer.block_size)
        assert offer.session_id == 77
        discard(served)

    async def test_a_block_fills_a_frame_unless_it_is_given(self, site):
        served = site.open()
        assert 1300 < served.driver.block_size < 1472
        given = Site(block_size=777).open()
        assert given.driver.block_size == 777
        discard(served)
        discard(given)

    @pytest.mark.parametrize("security", [SecurityMode.CHECKSUM, SecurityMode.NONE])
    async def test_the_largest_block_fits_a_datagram_and_a_larger_one_is_refused(self, run, security):
        largest = None
        for size in range(65_300, 65_600):
            try:
                served = Site(block_size=size, security=security).open()
            except UsageError:
                break
            largest = size
            discard(served)
        assert largest is not None
        with pytest.raises(UsageError, match="--block-size"):
            Site(block_size=largest + 1, security=security).open()
        running = run(Site(block_size=largest, security=security).open(image(largest)))
        player = await running.player(security)
        await until(lambda: player.complete)
        assert player.data == image(largest)
        await player.leave()

    async def test_a_block_leaves_forty_bytes_of_the_longest_datagram_beside_what_is_around_it(self):
        largest = 65_507 - 40 - data_overhead(make_security(SecurityMode.CHECKSUM)) - FW_LEAD_OPTION_LEN
        discard(Site(block_size=largest).open())
        with pytest.raises(UsageError, match=f"blocks of {largest + 1} bytes"):
            Site(block_size=largest + 1).open()

    @pytest.mark.parametrize(
        ("sndbuf", "unanswered"),
        [(0, 16), (2048 * 17 - 1, 16), (2048 * 17, 17), (2048 * 512 - 1, 511), (2048 * 600, 512)],
    )
    async def test_as_many_joins_go_unanswered_as_the_socket_has_room_for_answers(
        self, site, monkeypatch, sndbuf, unanswered
    ):
        opened, open_socket = [], site.places.open_socket

        def with_buffer(*arguments):
            opened.append(replace(open_socket(*arguments), sndbuf=sndbuf, warnings=("small",)))
            return opened[0]

        monkeypatch.setattr(site.places, "open_socket", with_buffer)
        given = []

        def parameters(**fields):
            given.append(fields["join_acks_unanswered"])
            return ServerParameters(**fields)

        monkeypatch.setattr(serving, "ServerParameters", parameters)
        served = site.open()
        assert given == [unanswered]
        assert served.warnings == ("small",)
        discard(served)

    async def test_no_socket_is_left_when_there_is_no_group(self):
        site = Site()
        site.places = SessionPlaces("239.255.255.255", None)
        site.places.take_group(socket.AF_INET)
        with _no_socket_leaks(), pytest.raises(TransportError, match="multicast address"):
            site.open()

    @pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf"), 1e30])
    async def test_a_rate_that_cannot_be_takes_nothing(self, rate):
        site = Site(rate=rate)
        with _no_socket_leaks(), pytest.raises(UsageError):
            site.open()
        assert site.places.take_group(socket.AF_INET) == SessionPlaces(None, None).take_group(socket.AF_INET)

    @pytest.mark.parametrize("rate", [1.0, 1e12, None])
    def test_a_rate_that_can_be_is_taken(self, rate):
        check_rate(rate)

    @pytest.mark.parametrize("rate", [125_000.0, None])
    async def test_its_packets_are_spaced_by_the_kernel_only_at_a_rate(self, rate):
        served = Site(rate=rate).open()
        given = served.driver._sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8)
        assert int.from_bytes(given, "little") == rate or (rate is None and set(given) == {0xFF})
        discard(served)

    @pytest.mark.parametrize("ttl", [-1, 256])
    async def test_a_ttl_that_cannot_be_is_refused(self, ttl):
        with _no_socket_leaks(), pytest.raises(UsageError, match="TTL"):
            Site(ttl=ttl).open()

    def test_a_slower_session_does_not_wait_for_a_crowd(self):
        slower = Site(min_clients=5, max_wait=9.0, rate=10.0).settings.slower(3.0)
        assert (slower.rate, slower.min_clients, slower.max_wait) == (3.0, 1, None)


class _no_socket_leaks:
    """Fails when a socket is dropped without being closed."""

    def __enter__(self):
        gc.collect()
        self._caught = warnings.catch_warnings(record=True)
        self._warnings = self._caught.__enter__()
        warnings.simplefilter("always")

    def __exit__(self, kind, error, trace):
        if error is not None:
            error.__traceback__ = None
        del error, trace
        gc.collect()
        self._caught.__exit__(None, None, None)
        leaks = [str(each.message) for each in self._warnings if each.category is ResourceWarning]
        assert not leaks, leaks


class TestRunning:
    async def test_a_client_is_told_about_from_its_joining_to_its_leaving(self, site, run):
        running = run(site.open(image(20_000)))
        player = await running.player()
        joined = await site.events.wait(ClientJoined)
        assert (joined.session_id, joined.client_id) == (77, player.client.client_id)
        assert (joined.name, joined.address) == ("PEER", player.client.address)
        assert joined.mac == "00:00:00:00:00:00"
        sending = await site.events.wait(SendingStarted)
        assert sending.clients == 1
        await until(lambda: player.complete)
        await player.leave()
        left = await site.events.wait(ClientLeft)
        assert (left.client_id, left.reason) == (player.client.client_id, "complete")
        assert site.completed == 1
        times = [event.seconds for event in site.events]
        assert times == sorted(times)

    async def test_who_asked_only_is_told_about_to_nobody(self, site, run):
        running = run(site.open())
        client = Client()
        client.offer = running.served.offer()
        client.session_id = 77
        await client.join()
        assert [each.state for each in running.served.statistics().clients] == ["pending"]
        running.served.close(trio.current_time())
        await running.ended()
        client.close()
        assert [type(event) for event in site.events] == [SessionEnded]

    async def test_a_kick_names_only_who_is_there(self, site, run):
        running = run(site.open(image(20_000)))
        player = await running.player()
        await site.events.wait(ClientJoined)
        client_id = player.client.client_id
        assert not running.served.kick(client_id + 1, KickReason.FAIL)
        assert running.served.kick(client_id, KickReason.FALLBACK)
        assert not running.served.kick(client_id, KickReason.FAIL)
        await player.leave(LeaveReason.CANCELLED)
        assert (await site.events.wait(ClientLeft)).reason == "kicked"
        assert site.completed == 0

    async def test_a_kick_leaves_though_no_moment_that_is_waited_for_comes(self, run, mock_clock):
        site = Site(min_clients=2)
        running = run(site.open())
        player = await running.player()
        group = player.client.hear()
        await site.events.wait(ClientJoined)
        await wait_all_tasks_blocked()
        assert running.served.kick(player.client.client_id, KickReason.FALLBACK)
        _, kick, _ = await group.take(Kick)
        mock_clock.rate = 1
        group.close()
        await player.leave(LeaveReason.CANCELLED)
        await site.events.wait(ClientLeft)
        assert kick.clients == ((player.client.client_id, KickReason.FALLBACK),)

    async def test_a_snapshot_of_a_client_has_the_figures_of_its_last_report(self, site, run, mock_clock):
        mock_clock.jump(50.0)
        served = run(site.open()).served
        client = Client()
        client.offer = served.offer()
        client.session_id = 77
        mock_clock.jump(3.0)
        await client.join()
        await client.confirm()
        assert (await site.events.wait(ClientJoined)).seconds == 3.0
        mock_clock.jump(7.5)
        # It answers what was sent a quarter of a second ago, and says that it waited for 100 ms of that.
        sent = int(trio.current_time() * 1000) - 250
        report = encode(ProgressReport(7, 40))
        figures = (cpu_util(11), mem_util(22), net_util(33))
        await client.say(Qcr(client.client_id, 0, 100, sent, 0, scaled_loss(0.5), report, figures))
        await client.say(Leave(client.client_id, LeaveReason.CANCELLED))
        await site.events.wait(ClientLeft)
        mock_clock.rate = 1
        client.close()
        shown = site.records.find(77, client.client_id).statistics()
        assert shown.state == "left"
        assert (shown.progress, shown.rtt, shown.loss) == pytest.approx((0.4, 0.15, 0.5), abs=0.001)
        assert (shown.cpu, shown.memory, shown.network) == (11, 22, 33)
        assert shown.seconds_in_session == 7.5

    async def test_statistics_show_the_session_and_its_clients(self, site, run):
        served = site.open(image(20_000))
        assert served.statistics().state == "waiting"
        running = run(served)
        player = await running.player()
        await until(lambda: player.complete)
        shown = served.statistics()
        assert (shown.session_id, shown.namespace, shown.content) == (77, "images", "image")
        assert (shown.size, shown.data_bytes, shown.repair_bytes) == (20_000, 20_000, 0)
        assert shown.data_packets == shown.total_blocks == len(player.sequence)
        assert shown.acks > 0
        assert shown.round == 1
        (client,) = shown.clients
        assert (client.client_id, client.state) == (player.client.client_id, "master")
        assert served.client_statistics(client.client_id).address == client.address
        assert served.client_statistics(client.client_id + 1) is None
        await player.leave()
        await site.events.wait(ClientLeft)
        assert served.statistics().completed == 1
        assert served.statistics().state == "idle"

    async def test_content_of_no_bytes_is_complete_for_each_who_asks_however_often(self, site, run):
        served = site.open(b"")
        run(served)
        for asker in ((HOST, 4001), (HOST, 4002), (HOST, 4001)):
            served.offer(asker)
        assert served.statistics().completed == site.completed == 2

    async def test_an_offer_of_some_bytes_or_to_nobody_completes_nothing(self, run):
        for data, asker in ((b"x", (HOST, 4001)), (b"", None)):
            site = Site()
            served = site.open(data)
            run(served)
            served.offer(asker)
            assert served.statistics().completed == site.completed == 0

    async def test_who_asks_for_content_of_no_bytes_is_remembered_within_bounds(self, site, run, monkeypatch):
        monkeypatch.setattr(serving, "_ASKERS", 2)
        served = site.open(b"")
        run(served)
        counted = []
        for port in (1, 2, 1, 3, 3, 1):
            served.offer((HOST, port))
            counted.append(site.completed)
        # The third to ask makes the first two forgotten.
        assert counted == [1, 2, 2, 3, 3, 4]

    async def test_of_clients_that_have_not_confirmed_only_the_first_are_listed(self, site, run, monkeypatch):
        monkeypatch.setattr(serving, "_PENDING_LISTED", 2)
        running = run(site.open())
        await running.player()
        await site.events.wait(ClientJoined)
        askers = []
        for _ in range(3):
            asker = Client()
            asker.offer = running.served.offer()
            asker.session_id = 77
            await asker.join()
            askers.append(asker)
        listed = {client.client_id: client.state for client in running.served.statistics().clients}
        assert [listed.get(asker.client_id) for asker in askers] == ["pending", "pending", None]
        assert len(listed) == 3
        for asker in askers:
            asker.close()

    async def test_a_snapshot_says_how_fast_data_and_repairs_left_since_the_eighth_before(
        self, site, mock_clock
    ):
        mock_clock.jump(100.0)
        served = site.open()
        rates = []
        for data, repairs in [(0, 0), (600, 400), *[(0, 0)] * 8]:
            served.driver.data_bytes += data
            served.driver.repair_bytes += repairs
            rates.append(served.statistics().bytes_per_second)
            mock_clock.jump(2.0)
        assert rates[:3] == [0.0, 500.0, 250.0]
        assert rates[7] > 0 == rates[8], "the first snapshot is out"
        assert rates[-1] == 0.0
        discard(served)

    async def test_two_snapshots_at_the_same_moment_are_no_division_by_zero(self, site, run, autojump_clock):
        served = site.open()
        assert served.statistics().bytes_per_second == served.statistics().bytes_per_second == 0.0
        discard(served)


class TestEnding:
    async def test_a_session_that_nobody_joins_ends_as_idle(self, site, run, monkeypatch):
        monkeypatch.setattr(
            "wdstransport.net.serving.ServerParameters",
            lambda **fields: ServerParameters(**fields, inactivity_timeout=0.02),
        )
        running = run(site.open())
        await running.ended()
        ended = site.events.of(SessionEnded)
        assert [(event.reason, event.error) for event in ended] == [("idle", None)]

    async def test_its_group_is_free_again(self, site, run):
        running = run(site.open())
        group = running.served.group[0]
        running.served.close(trio.current_time())
        await running.ended()
        assert site.places.take_group(socket.AF_INET) == group

    async def test_closing_is_silent_about_clients_and_ending_is_not(self, run):
        for silent in (True, False):
            site = Site()
            running = run(site.open(image(20_000)))
            player = await running.player()
            await site.events.wait(ClientJoined)
            getattr(running.served, "close" if silent else "end")(trio.current_time())
            await player.leave(LeaveReason.CANCELLED)
            await running.ended()
            assert [event.reason for event in site.events.of(ClientLeft)] == ([] if silent else ["kicked"])
            assert [event.reason for event in site.events.of(SessionEnded)] == ["closed"]

    async def test_content_that_changed_takes_no_more_clients_and_ends_the_session(self, site, run):
        running = run(site.open(image(20_000)))
        player = await running.player()
        await site.events.wait(ClientJoined)
        assert await running.served.is_current()
        running.served.driver.source.changed = True
        assert not await running.served.is_current()
        assert not await running.served.is_current()
        await player.leave(LeaveReason.CANCELLED)
        await running.ended()
        (ended,) = site.events.of(SessionEnded)
        assert ended.reason == "error"
        assert "not what it was" in ended.error

    async def test_content_that_changes_once_a_session_is_ending_is_not_why_it_ended(self, site, run):
        running = run(site.open(image(20_000)))
        player = await running.player()
        await site.events.wait(ClientJoined)
        running.served.end(trio.current_time())
        running.served.driver.source.changed = True
        assert not await running.served.is_current()
        await player.leave(LeaveReason.CANCELLED)
        await running.ended()
        assert [(event.reason, event.error) for event in site.events.of(SessionEnded)] == [("closed", None)]

    async def test_a_session_whose_content_could_not_be_read_takes_no_more_clients(self, site, run):
        served = site.open(image(20_000))

        def fail(views, offset):
            raise ContentError("the disk fails")

        served.driver.source.read_into = fail
        running = run(served)
        player = await running.player()
        await until(lambda: served.driver.error)
        assert not await served.is_current()
        await player.leave(LeaveReason.CANCELLED)
        await running.ended()
        assert site.events.of(SessionEnded)[0].error == "the disk fails"

    async def test_who_cancels_a_session_is_told_of_no_client(self, site, nursery):
        served = site.open(image(20_000))
        scope = trio.CancelScope()

        async def run():
            with scope:
                await served.run()

        nursery.start_soon(run)
        client = Client()
        client.offer = served.offer()
        client.session_id = 77
        await client.join()
        await client.confirm()
        await site.events.wait(ClientJoined)
        scope.cancel()
        await site.events.wait(SessionEnded)
        assert site.events.of(ClientLeft) == []
        assert not site.records.connected
        client.close()

    async def test_a_session_that_ends_while_its_content_is_looked_at_takes_no_more_clients(self, site, run):
        running = run(site.open())

        async def end():
            running.served.close(trio.current_time())
            await running.served.ended.wait()

        running.served.driver.source.before_check = lambda: trio.from_thread.run(end)
        assert not await running.served.is_current()

    async def test_a_socket_that_fails_ends_the_session_and_says_which_interface(self, site, run):
        running = run(site.open())

        def broken():
            raise OSError(9, "Bad file descriptor")

        running.served.driver.reader.read = broken
        await running.ended()
        (ended,) = site.events.of(SessionEnded)
        assert ended.reason == "error"
        assert "interface lo" in ended.error

    async def test_clients_that_do_not_answer_are_told_of_as_ended(self, site, run):
        running = run(site.open(image(20_000)))
        await running.player()
        await site.events.wait(ClientJoined)
        running.served.driver.close(trio.current_time(), patience=0.02)
        await running.ended()
        assert [event.reason for event in site.events.of(ClientLeft)] == ["ended"]
