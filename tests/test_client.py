"""Receiving over loopback multicast: every row of what bad input gets, and every size of image."""

import functools
import os
import re
import socket
import threading
from contextlib import suppress

import pytest
import trio
from loopback import HOST, PATIENCE, Client, Player, Reception, Server, Sink, image, receive, serving, until

from wdstransport import (
    ClientJoined,
    ClientLeft,
    Finished,
    Initiated,
    JoinedSession,
    Kept,
    NobodyAnsweredError,
    PipeSink,
    Progress,
    RefusedError,
    RemoteError,
    RemovedError,
    SendingStarted,
    StorageError,
    Unanswered,
    UsageError,
    Warned,
)
from wdstransport.net import client_driver, initiation, reception
from wdstransport.protocol.parameters import ClientParameters, ServerParameters
from wdstransport.wire.transport import Kick, KickReason, Leave, LeaveReason, Nack, Spm

pytestmark = pytest.mark.usefixtures("quick")

SLOW = 800_000.0
BLOCK = 1401


@pytest.fixture
def impatient(monkeypatch):
    """Receivers that take a silence of a fifth of a second for the end of the server."""
    parameters = functools.partial(ClientParameters, inactivity_timeout=0.2)
    monkeypatch.setattr("wdstransport.net.reception.ClientParameters", parameters)


def unused_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        return sock.getsockname()[1]


class Pipe:
    """A pipe whose reader reads when the test lets it."""

    def __init__(self, window):
        self.reading, self.writing = os.pipe()
        self.sink = PipeSink(self.writing, window)
        self.data = bytearray()
        self.gate = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        self.gate.wait(PATIENCE)
        while chunk := os.read(self.reading, 1 << 16):
            self.data += chunk
        os.close(self.reading)

    async def end(self):
        """Close the writing end; everything that was written, once it is read."""
        self.gate.set()
        if not self._closed:
            self._closed = True
            os.close(self.writing)
        await trio.to_thread.run_sync(self._thread.join, PATIENCE)
        return bytes(self.data)


class TestSizes:
    @pytest.mark.parametrize("block_size", [None, 1000])
    @pytest.mark.parametrize("size", [0, 1, "block-1", "block", "block+1", "3*block", "100*block+7"])
    async def test_an_image_of_any_size_arrives_in_a_file(self, tmp_path, size, block_size):
        length = size if isinstance(size, int) else eval(size, {"block": block_size or BLOCK})
        data = image(length)
        async with serving(data, block_size=block_size) as site:
            result = await receive(site.port, tmp_path / "copy")
            if length:
                assert site.session.data_bytes == length
                assert (await site.events.wait(ClientLeft)).reason == "complete"
        assert (tmp_path / "copy").read_bytes() == data
        assert result.size == length
        assert result.target == str(tmp_path / "copy")
        assert os.listdir(tmp_path) == ["copy"]

    async def test_the_events_tell_the_story(self, tmp_path):
        data = image(300_000)
        async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port, tmp_path / "copy")
            await reception.ended.wait()
            session = site.session
        kinds = [type(event) for event in reception.events if not isinstance(event, Warned)]
        progress = reception.events.of(Progress)
        assert [kind for kind in kinds if kind is not Progress] == [Initiated, JoinedSession, Finished]
        (joined,) = reception.events.of(JoinedSession)
        assert set(joined.features) == {"merging", "segmentation", "joins"}
        assert all(event.dropped == sum(event.dropped_by_reason.values()) for event in progress)
        (initiated,) = reception.events.of(Initiated)
        assert initiated.session_id == session.session_id
        assert (initiated.size, initiated.total_blocks) == (len(data), session.total_blocks)
        assert initiated.server[0] == HOST
        stored = [event.stored for event in progress]
        assert stored == sorted(stored)
        assert all(event.stored <= event.received <= event.total == len(data) for event in progress)
        seconds = [event.seconds for event in reception.events]
        assert seconds == sorted(seconds)
        assert reception.result.seconds >= seconds[-1]
        assert reception.result.bytes_per_second > 0

    async def test_many_receivers_in_one_process(self, tmp_path):
        data = image(200_000)
        async with serving(data, min_clients=6) as site, trio.open_nursery() as nursery:
            receptions = [Reception(nursery, site.port, tmp_path / str(number)) for number in range(6)]
            for reception in receptions:
                await reception.ended.wait()
        assert {path.read_bytes() == data for path in tmp_path.iterdir()} == {True}


class TestNobodyAnswers:
    async def test_a_server_that_is_not_there(self, tmp_path):
        port = unused_port()
        with pytest.raises(NobodyAnsweredError) as caught:
            await receive(port, tmp_path / "copy", timeout=0.1)
        text = str(caught.value)
        assert caught.value.exit_code == 5
        assert all(part in text for part in (HOST, str(port), "on lo", "0.1 seconds", "firewall"))
        assert os.listdir(tmp_path) == []

    async def test_a_server_that_offers_and_then_says_nothing(self, tmp_path):
        server = Server(image(1000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.answer)
            with pytest.raises(NobodyAnsweredError, match=r"join.*--security"):
                await receive(server.port, tmp_path / "copy", timeout=0.2)
        server.close()
        assert not (tmp_path / "copy").exists()

    async def test_a_server_that_does_not_answer_is_an_event_before_it_is_an_error(self, monkeypatch):
        monkeypatch.setattr(initiation, "_RETRY", 0.001)
        told = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf, trio.CancelScope() as scope:
            deaf.bind((HOST, 0))
            address = deaf.getsockname()

            def on_event(event):
                told.append(event)
                scope.cancel()

            await receive(address[1], Sink(), on_event=on_event)
        (event,) = told
        assert isinstance(event, Unanswered)
        assert (event.server, event.interface, event.asked) == (address, "lo", 5)
        assert event.seconds > 0

    @pytest.mark.parametrize(("ours", "theirs"), [("checksum", "none"), ("none", "checksum")])
    async def test_a_server_with_another_security_is_named_as_a_cause(self, ours, theirs):
        async with serving(image(1000), security=theirs) as site:
            with pytest.raises(NobodyAnsweredError, match="--security"):
                await site.receive(security=ours, timeout=0.3)
            assert site.events.of(ClientJoined) == []
            assert sum(site.session.dropped.values()) > 0

    async def test_a_server_that_is_gone_in_the_middle(self, tmp_path, impatient):
        server = Server(image(20_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.answer)
            reception = Reception(nursery, server.port, tmp_path / "copy")
            await server.admit()
            await server.send_blocks(range(1, 10))
            server.close()
            await reception.ended.wait()
        assert isinstance(reception.error, NobodyAnsweredError)
        part = tmp_path / "copy.part"
        assert str(part) in " ".join(reception.error.__notes__)
        assert [event.part for event in reception.events.of(Kept)] == [str(part)]
        assert os.listdir(tmp_path) == ["copy.part"]
        assert part.read_bytes()[:9000] == image(20_000)[:9000]

    async def test_a_server_that_falls_silent_is_told_that_the_client_left_as_inactive(self, impatient):
        server = Server(image(20_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.answer)
            reception = Reception(nursery, server.port)
            await server.admit()
            await server.send_blocks(range(1, 10))
            _, leave, _ = await server.take(Leave)
            assert leave.leave_reason is LeaveReason.INACTIVE
            await reception.ended.wait()
        server.close()
        assert isinstance(reception.error, NobodyAnsweredError)
        assert reception.sink.abandoned

    async def test_a_server_that_only_lives_is_waited_for(self, impatient):
        server = Server(image(3000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.answer)
            reception = Reception(nursery, server.port)
            await server.admit()
            for number in range(1, 8):
                await server.say(Spm(number, 0, 1, 1, 0, 0, 1))
                with trio.move_on_after(0.1):
                    await reception.ended.wait()
            assert not reception.ended.is_set()
            await server.send_blocks(range(1, 4))
            await reception.ended.wait()
        server.close()
        assert reception.data == image(3000)


class TestTargets:
    async def ask_nobody(self, target, **options):
        """A reception whose server would fail the test if it were asked."""
        deaf = Server(b"x")
        try:
            with pytest.raises(StorageError) as caught:
                await receive(deaf.port, target, **options)
        finally:
            assert deaf.taken() == []
            with suppress(BlockingIOError):
                pytest.fail(f"the server was asked: {deaf.door._sock.recv(4096)!r}")
            deaf.close()
        assert caught.value.exit_code == 7
        return str(caught.value)

    async def test_a_directory(self, tmp_path):
        assert "directory" in await self.ask_nobody(tmp_path)

    async def test_a_file_that_exists(self, tmp_path):
        (tmp_path / "copy").write_bytes(b"old")
        assert "--force" in await self.ask_nobody(tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"old"

    async def test_a_directory_that_does_not_exist(self, tmp_path):
        assert str(tmp_path / "nowhere") in await self.ask_nobody(tmp_path / "nowhere" / "copy")

    async def test_a_file_that_exists_and_shall_be_replaced(self, tmp_path):
        (tmp_path / "copy").write_bytes(b"old")
        async with serving(image(5000)) as site:
            await receive(site.port, tmp_path / "copy", force=True)
        assert (tmp_path / "copy").read_bytes() == image(5000)

    async def test_a_file_that_appears_meanwhile_is_not_replaced(self, tmp_path):
        async with serving(image(200_000), rate=SLOW) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port, tmp_path / "copy")
            await site.events.wait(SendingStarted)
            (tmp_path / "copy").write_bytes(b"somebody's")
            await reception.ended.wait()
            assert isinstance(reception.error, StorageError)
            left = await site.events.wait(ClientLeft)
        assert left.reason == "cancelled"
        assert (tmp_path / "copy").read_bytes() == b"somebody's"

    async def test_two_receivers_of_one_target_do_not_mix(self, tmp_path):
        async with serving(image(200_000), rate=SLOW) as site, trio.open_nursery() as nursery:
            first = Reception(nursery, site.port, tmp_path / "copy")
            await site.events.wait(ClientJoined)
            with pytest.raises(StorageError):
                await receive(site.port, tmp_path / "copy")
            await first.ended.wait()
            assert first.error is None
        assert (tmp_path / "copy").read_bytes() == image(200_000)

    async def test_an_image_that_will_not_fit_is_refused_before_the_first_byte(self, tmp_path):
        server = Server(b"x" * 2500)
        offer = server.offer(content_size=2**60, block_size=2**15, total_blocks=2**45)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.answer, offer)
            with pytest.raises((StorageError, RemoteError)):
                await receive(server.port, tmp_path / "copy")
        assert server.taken() == []
        server.close()
        assert os.listdir(tmp_path) == []


class TestStorageFails:
    async def test_a_disk_that_is_full_in_the_middle_ends_this_reception_and_no_other(self):
        data = image(300_000)
        async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
            full = Sink()
            full.fail_at = 50_000
            victim = Reception(nursery, site.port, full)
            other = Reception(nursery, site.port)
            await victim.ended.wait()
            assert isinstance(victim.error, StorageError)
            assert full.abandoned
            left = await site.events.wait(ClientLeft)
            assert left.reason == "cancelled"
            await other.ended.wait()
            assert other.data == data

    async def test_a_disk_that_cannot_be_flushed_is_no_complete_download(self):
        async with serving(image(50_000)) as site, trio.open_nursery() as nursery:
            sink = Sink()
            sink.fail_finish = True
            reception = Reception(nursery, site.port, sink)
            await reception.ended.wait()
            assert isinstance(reception.error, StorageError)
            assert (await site.events.wait(ClientLeft)).reason == "cancelled"
            assert site.server.statistics().completed == 0

    async def test_a_slow_disk_slows_nobody_for_good(self):
        data = image(400_000)
        gate = threading.Event()

        class SlowSink(Sink):
            def write(self, views, offset):
                assert gate.wait(PATIENCE)
                super().write(views, offset)

        async with serving(data) as site, trio.open_nursery() as nursery:
            slow = Reception(nursery, site.port, SlowSink(), cache_bytes=50_000)
            fast = Reception(nursery, site.port)
            await fast.ended.wait()
            assert fast.data == data
            assert not slow.ended.is_set()
            gate.set()
            await slow.ended.wait()
            assert slow.data == data


class TestPipes:
    async def test_a_pipe_gets_the_image_in_order(self):
        data = image(700_000)
        pipe = Pipe(100_000)
        pipe.gate.set()
        async with serving(data) as site:
            await receive(site.port, pipe.sink)
        assert await pipe.end() == data

    async def test_a_pipe_of_a_late_joiner_gets_the_image_in_order_and_with_bounded_memory(self):
        data = image(600_000)
        pipe = Pipe(60_000)
        pipe.gate.set()
        async with serving(data, rate=2 * SLOW) as site, trio.open_nursery() as nursery:
            first = Reception(nursery, site.port)
            await until(lambda: len(first.sink.data) > 200_000)
            late = Reception(nursery, site.port, pipe.sink)
            for reception in (first, late):
                await reception.ended.wait()
                assert reception.error is None
        # What lies further than the window beyond what was passed on would have been refused with an error.
        assert await pipe.end() == data

    async def test_a_pipe_with_loss_gets_the_image_in_order(self):
        data = image(300_000)
        pipe = Pipe(50_000)
        pipe.gate.set()
        async with serving(data) as site:
            await receive(site.port, pipe.sink, drop_share=0.05, drop_seed=4)
        assert await pipe.end() == data

    async def test_a_reader_that_starts_late_gets_everything(self):
        data = image(500_000)
        pipe = Pipe(100_000)
        async with serving(data) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port, pipe.sink)
            await until(lambda: pipe.sink.horizon() > 150_000)
            pipe.gate.set()
            await reception.ended.wait()
            assert reception.error is None
        assert await pipe.end() == data

    async def test_a_reader_that_is_gone_is_a_storage_error_and_the_server_is_told(self):
        reading, writing = os.pipe()
        async with serving(image(400_000), rate=SLOW) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port, PipeSink(writing, 100_000))
            await site.events.wait(SendingStarted)
            os.close(reading)
            await reception.ended.wait()
            assert isinstance(reception.error, StorageError)
            assert (await site.events.wait(ClientLeft)).reason == "cancelled"
        os.close(writing)

    async def test_a_cancellation_ends_the_reception_also_while_the_reader_has_stopped(self):
        pipe = Pipe(100_000)
        async with serving(image(500_000)) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port, pipe.sink)
            await until(lambda: pipe.sink.horizon() > 150_000)  # the pipe is full
            reception.scope.cancel()
            with trio.move_on_after(3):
                await reception.ended.wait()
            ended = reception.ended.is_set()
            await pipe.end()  # lets a writer that hangs come to its end, so that the test can say so
            await reception.ended.wait()
            assert ended

    async def test_a_kick_ends_the_reception_also_while_the_reader_has_stopped(self):
        pipe = Pipe(100_000)
        async with serving(image(500_000)) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port, pipe.sink)
            await until(lambda: pipe.sink.horizon() > 150_000)  # the pipe is full
            (joined,) = reception.events.of(JoinedSession)
            site.server.kick(site.session.session_id, joined.client_id)
            with trio.move_on_after(3):
                await reception.ended.wait()
            ended = reception.ended.is_set()
            await pipe.end()
            await reception.ended.wait()
            assert ended
            assert isinstance(reception.error, RemovedError)


class TestCancelling:
    async def test_the_server_hears_that_the_client_left_as_cancelled(self, tmp_path):
        data = image(400_000)
        async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
            leaver = Reception(nursery, site.port, tmp_path / "copy")
            stays = Reception(nursery, site.port)
            await stays.sink.begun.wait()
            await until(lambda: leaver.events.of(Progress)[-1].stored)
            leaver.scope.cancel()
            left = await site.events.wait(ClientLeft)
            assert left.reason == "cancelled"
            await leaver.ended.wait()
            assert leaver.error is None
            assert leaver.result is None
            assert [event.part for event in leaver.events.of(Kept)] == [str(tmp_path / "copy.part")]
            await stays.ended.wait()
            assert stays.data == data
        assert os.listdir(tmp_path) == ["copy.part"]

    async def test_before_anything_came_nothing_is_said_to_be_kept(self, tmp_path):
        (tmp_path / "copy.part").write_bytes(b"of an earlier run")
        async with serving(image(1000), min_clients=2) as site, trio.open_nursery() as nursery:
            leaver = Reception(nursery, site.port, tmp_path / "copy")
            await leaver.events.wait(JoinedSession)
            leaver.scope.cancel()
            await leaver.ended.wait()
        assert leaver.events.of(Kept) == []
        assert os.listdir(tmp_path) == []

    async def test_before_the_server_has_answered(self, tmp_path):
        deaf = Server(b"x")
        async with trio.open_nursery() as nursery:
            reception = Reception(nursery, deaf.port, tmp_path / "copy")
            await deaf.door.recv(4096)
            reception.scope.cancel()
            await reception.ended.wait()
        deaf.close()
        assert os.listdir(tmp_path) == []

    async def test_before_the_server_has_let_it_join(self, tmp_path):
        server = Server(image(5000))
        async with trio.open_nursery() as nursery:
            reception = Reception(nursery, server.port, tmp_path / "copy")
            await server.answer()
            await until(server.taken)
            reception.scope.cancel()
            await reception.ended.wait()
        server.close()
        assert not (tmp_path / "copy").exists()

    async def test_a_hundred_cancellations_leave_neither_threads_nor_sockets(self):
        async with serving(image(500_000), rate=SLOW) as site, trio.open_nursery() as nursery:
            await Reception(nursery, site.port, content="gone").ended.wait()
            before = len(os.listdir("/proc/self/fd"))
            for round_ in range(10):
                receptions = [Reception(nursery, site.port) for _ in range(5)]
                await site.events.wait(ClientJoined, 5 * (round_ + 1))
                for reception in receptions:
                    reception.scope.cancel()
                for reception in receptions:
                    await reception.ended.wait()
            await site.events.wait(ClientLeft, 50)
            # One session was opened: its socket and what its wake-up needs.
            assert len(os.listdir("/proc/self/fd")) <= before + 6
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("wdstransport-writer") == 0


class TestStrangers:
    async def test_what_strangers_send_to_the_group_is_counted_and_changes_nothing(self):
        data = image(200_000)
        async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port)
            joined = await site.events.wait(ClientJoined)
            await reception.sink.begun.wait()
            stranger = Client()
            await stranger.ask(site.port)
            stranger.raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HOST))
            group = socket.inet_ntoa(stranger.offer.multicast_address), stranger.offer.multicast_port
            for packet in (
                Kick(((joined.client_id, KickReason.FAIL),)),
                Spm(10**6, joined.client_id, 1, 1, 10**6, 10**9, 1),
            ):
                stranger.raw.sendto(stranger.seal(packet), group)
            stranger.raw.sendto(os.urandom(1400), group)
            await reception.ended.wait()
            stranger.close()
        assert reception.data == data
        assert reception.result.dropped["foreign_source"] == 3

    async def test_recorded_packets_played_again_change_nothing(self):
        data = image(150_000)
        async with serving(data, rate=SLOW) as site, trio.open_nursery() as nursery:
            spy = Client()
            await spy.enter(site.port)
            player = Player(spy)
            recorded = []

            async def record():
                while True:
                    recorded.append(await player.group.sock.recv(65536))

            nursery.start_soon(record)
            reception = Reception(nursery, site.port)
            await until(lambda: len(recorded) > 30)
            spy.raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HOST))
            group = socket.inet_ntoa(spy.offer.multicast_address), spy.offer.multicast_port
            played = recorded[:30]
            for datagram in played:
                spy.raw.sendto(datagram, group)
            # Sent back to the server they are a server's packets, or from a member that said no such thing.
            for datagram in played:
                spy.raw.sendto(datagram, spy.server)
            await player.leave(LeaveReason.CANCELLED)
            await reception.ended.wait()
            assert reception.data == data
            assert reception.result.dropped["foreign_source"] >= 30
            assert site.session.dropped["state"] >= 30
            nursery.cancel_scope.cancel()
        player.close()


class TestLoss:
    @pytest.mark.parametrize(("share", "seed"), [(0.05, 1), (0.05, 2), (0.05, 3), (0.2, 1)])
    async def test_a_whole_copy_arrives_though_much_is_lost_both_ways(self, tmp_path, share, seed):
        data = image(300_000)
        async with serving(data) as site:
            result = await receive(site.port, tmp_path / "copy", drop_share=share, drop_seed=seed)
        assert (tmp_path / "copy").read_bytes() == data
        assert result.loss > 0

    async def test_three_receivers_that_lose_different_packets_all_get_whole_copies(self):
        data = image(400_000)
        async with serving(data, min_clients=3) as site, trio.open_nursery() as nursery:
            receptions = [Reception(nursery, site.port, drop_share=0.05, drop_seed=seed) for seed in range(3)]
            for reception in receptions:
                await reception.ended.wait()
                assert reception.data == data
            sent = site.session
            assert sent.data_bytes + sent.repair_bytes < 3 * len(data)

    async def test_one_that_loses_much_does_not_keep_the_others_from_their_copies(self):
        data = image(200_000)
        async with serving(data) as site, trio.open_nursery() as nursery:
            lossy = Reception(nursery, site.port, drop_share=0.5, drop_seed=1)
            others = [Reception(nursery, site.port) for _ in range(2)]
            for reception in others:
                await reception.ended.wait()
                assert reception.data == data
            lossy.scope.cancel()


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"security": "hash"},
            {"security": ""},
            {"drop_share": 1.0},
            {"drop_share": -0.1},
            {"drop_share": float("nan")},
            {"interface": "nosuch0"},
            {"interface": "192.0.2.77"},
            {"server": ""},
            {"server": "a..b"},
        ],
        ids=str,
    )
    async def test_what_cannot_be_is_a_usage_error(self, options):
        with pytest.raises(UsageError) as caught:
            await receive(5041, Sink(), **options)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        "options",
        [
            {"timeout": -1.0},
            {"timeout": float("nan")},
            {"port": 0},
            {"port": 65_536 + 5041},
            {"cache_bytes": 0},
            {"cache_bytes": -5},
        ],
        ids=str,
    )
    async def test_these_cannot_be_either(self, options):
        deaf = Server(b"x")
        try:
            with pytest.raises(UsageError):
                await receive(**{"port": deaf.port, "target": Sink(), "timeout": 0.1, **options})
        finally:
            deaf.close()

    async def test_a_cache_smaller_than_a_block_is_refused_or_takes_blocks_one_by_one(self):
        async with serving(image(5000), block_size=2000) as site, trio.open_nursery() as nursery:
            reception = Reception(nursery, site.port, cache_bytes=1000)
            with trio.move_on_after(2):
                await reception.ended.wait()
            reception.scope.cancel()
            assert isinstance(reception.error, UsageError) or reception.data == image(5000)

    async def test_who_watches_may_be_anything_that_can_be_called(self):
        class Log(list):
            """Empty, and so false, at first."""

            __call__ = list.append

        told = Log()
        async with serving(image(100)) as site:
            await site.receive(on_event=told)
        assert isinstance(told[-1], Finished)


def test_a_pipes_ring_reaches_beyond_the_widest_window_of_a_server():
    in_flight = ServerParameters().max_window_size * 1500
    assert in_flight + client_driver._ROOM < reception._PIPE_WINDOW


async def test_a_refusal_says_what_was_asked_for():
    async with serving(image(100)) as site:
        with pytest.raises(RefusedError, match=re.escape("'no such thing'")) as caught:
            await site.receive("no such thing")
    assert caught.value.exit_code == 3


async def test_an_offer_that_contradicts_itself_leaves_nothing_behind(tmp_path):
    server = Server(b"x" * 2500)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.answer, server.offer(multicast_address=socket.inet_aton(HOST)))
        with pytest.raises(RemoteError):
            await receive(server.port, tmp_path / "copy")
    server.close()
    assert os.listdir(tmp_path) == []


async def test_a_receiver_that_misses_blocks_asks_for_exactly_these():
    server = Server(image(10_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.answer)
        reception = Reception(nursery, server.port)
        await server.admit()
        await server.send_blocks(range(1, 4))
        lost = [server.block(4), server.block(5)]
        await server.send_blocks(range(6, 11))
        _, nack, _ = await server.take(Nack)
        assert nack.ranges == ((4, 5),)
        for packet in lost:
            await server.say(packet)
        await server.take(Leave)
        await reception.ended.wait()
    server.close()
    assert reception.data == image(10_000)
    assert reception.result.duplicates == 0
