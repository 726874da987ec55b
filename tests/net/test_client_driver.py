"""One client session on real sockets, against a server that says what the test tells it to."""

import itertools
import math
import random
import socket
from types import SimpleNamespace

import pytest
import trio
from loopback import HOST, PATIENCE, Peer, Server, image, until
from trio.testing import wait_all_tasks_blocked

from wdstransport.errors import StorageError
from wdstransport.net import client_driver
from wdstransport.net.client_driver import ClientDriver, Sockets
from wdstransport.net.interfaces import find_interface
from wdstransport.net.multicast import open_client_socket, open_group_socket
from wdstransport.net.slabs import READ_ROOM
from wdstransport.protocol.client_session import ClientSession
from wdstransport.protocol.events import BlockRun, BlocksArrived, Left
from wdstransport.protocol.parameters import ClientParameters
from wdstransport.wire.batch import Batch
from wdstransport.wire.security import SecurityMode, make_security
from wdstransport.wire.transport import (
    Ack,
    Demote,
    Join,
    JoinAck,
    Kick,
    KickReason,
    Leave,
    LeaveReason,
    Nack,
    Ncf,
    Poll,
    PollAck,
    Qcc,
    Qcr,
    Spm,
)

BLOCK = 1000
SRVCIR = b"\0\3\1"


class Shelf:
    """A consumer that keeps blocks by number, at once or when the test says so."""

    def __init__(self):
        self.blocks = {}
        self.waiting = []
        self.holding = False
        self.error = None
        self.limit = None
        self.everything = trio.Event()
        self.ids = []

    def arrived(self, event):
        for row, count, block in event.runs:
            for place in range(count):
                datagram = event.batch.datagram(row + place)
                payload = datagram[event.data_offset : event.data_offset + event.block_len]
                assert block + place not in self.blocks
                self.blocks[block + place] = bytes(payload)
        self.waiting.append(event)

    def collect(self):
        if self.error is not None:
            raise self.error
        if self.holding or not self.waiting:
            return None
        done, self.waiting = self.waiting, []
        return done

    def horizon(self):
        return self.limit

    def all_received(self):
        self.everything.set()

    def joined(self, client_id):
        self.ids.append(client_id)

    def about_to_sleep(self):
        return self.holding or not self.waiting

    def awake(self):
        pass


class Test:
    """A driver under test, its consumer and its server."""

    __test__ = False

    def __init__(self, data, *, seed=1, server=None, cache_bytes=1 << 21, **options):
        self.server = Server(data, BLOCK) if server is None else server
        self.data = data
        self.shelf = Shelf()
        self.reopened = []
        none = make_security(SecurityMode.CHECKSUM)
        self.session = ClientSession(
            session_id=self.server.session_id,
            server=self.server.address,
            content_size=len(data),
            block_size=BLOCK,
            total_blocks=self.server.total_blocks,
            client_name="PC",
            ip_address=socket.inet_aton(HOST),
            mac_address=bytes(6),
            client_security=none,
            server_security=none,
            parameters=ClientParameters(max_cache_size=cache_bytes),
            rng=random.Random(seed),
            now=trio.current_time(),
        )
        self.sockets = self.open(self.server.group, self.server.address)
        self.driver = ClientDriver(
            self.session,
            self.sockets,
            self.shelf,
            cache_bytes=cache_bytes,
            reopen=self._reopen,
            **{"on_turn": lambda now: math.inf, **options},
        )
        self.scope = trio.CancelScope()
        self.error = None
        self.ended = trio.Event()

    @staticmethod
    def open(group, server):
        group_socket = open_group_socket(group, server[1], find_interface("lo"), server[0])
        return Sockets(group_socket, open_client_socket(HOST, server), server)

    def _reopen(self, event):
        self.reopened.append(event)
        group = socket.inet_ntoa(event.multicast_address)
        sockets = self.open(group, (socket.inet_ntoa(event.unicast_address), event.unicast_port))
        self.sockets = sockets
        return sockets

    @property
    def dropped(self):
        return self.session.dropped

    @property
    def received(self):
        return b"".join(self.shelf.blocks[number] for number in sorted(self.shelf.blocks))

    async def run(self):
        try:
            with self.scope:
                await self.driver.run()
        except StorageError as error:
            self.error = error
        finally:
            self.ended.set()

    async def over(self):
        with trio.fail_after(PATIENCE):
            await self.ended.wait()
        assert self.sockets.group.sock.fileno() == self.sockets.own.sock.fileno() == -1


@pytest.fixture
async def start(nursery):
    """`start(data, ...)`: a driver under test, running."""
    tests = []

    def begin(data=b"", **options):
        test = Test(data or image(10 * BLOCK), **options)
        tests.append(test)
        nursery.start_soon(test.run)
        return test

    yield begin
    for test in tests:
        test.scope.cancel()
        await test.over()
        test.server.close()


def spm(test, number, *, master=0, trail=0, lead=0):
    return Spm(number, master, 1, 1, trail, lead, 1)


async def test_a_whole_content_arrives_and_the_last_word_is_leave(start):
    test = start(image(10 * BLOCK - 1))
    join = await test.server.admit()
    assert (join.client_name, join.ip_address) == ("PC", socket.inet_aton(HOST))
    await test.server.send_blocks(range(1, 11))
    with trio.fail_after(PATIENCE):
        await test.shelf.everything.wait()
    assert test.received == test.data
    await until(lambda: test.driver.stored == len(test.data))
    assert test.driver.received == len(test.data)
    assert test.shelf.ids == [test.server.client_id]
    test.session.leave(Left.COMPLETE, trio.current_time())
    test.driver.wake()
    _, leave, source = await test.server.take(Leave)
    assert leave == Leave(test.server.client_id, LeaveReason.COMPLETE)
    assert source == test.server.client
    await test.over()
    assert test.driver.departed.why is Left.COMPLETE


async def test_what_is_stored_holds_no_memory_any_more(start):
    test = start()
    await test.server.admit()
    await test.server.send_blocks(range(1, 11))
    await until(lambda: test.driver.stored == len(test.data))
    test.session.leave(Left.COMPLETE, trio.current_time())
    test.driver.wake()
    await test.over()
    assert test.driver.pool.in_use == 0


async def test_a_join_that_nobody_answers_is_said_again(start):
    test = start()
    first, _, source = await test.server.take(Join)
    second, _, again = await test.server.take(Join)
    assert source == again
    assert second.sender_time > first.sender_time


async def test_everything_is_sent_from_one_port(start):
    test = start()
    await test.server.admit()
    await test.server.say(spm(test, 1, master=test.server.client_id))
    await test.server.say(Qcc(1, 1))
    await test.server.say(Poll(1, 1, SRVCIR))
    seen = {Ack: None, Qcr: None, PollAck: None}
    while None in seen.values():
        _, packet, source = await test.server.take(*seen)
        seen[type(packet)] = source
    assert set(seen.values()) == {test.server.client}


async def test_the_master_acknowledges_and_asks_for_what_is_missing(start):
    test = start()
    await test.server.admit()
    await test.server.say(spm(test, 1, master=test.server.client_id))
    await test.server.take(Ack)
    await test.server.say(test.server.block(1, client_id=test.server.client_id))
    lost = test.server.block(2)
    await test.server.say(test.server.block(3, client_id=test.server.client_id))
    _, nack, _ = await test.server.take(Nack)
    assert nack.ranges == ((lost.odata_seq_no, lost.odata_seq_no),)
    await test.server.say(lost)
    await until(lambda: sorted(test.shelf.blocks) == [1, 2, 3])


class TestLeaving:
    async def test_a_cancellation_says_leave_as_cancelled(self, start):
        test = start()
        await test.server.admit()
        await wait_all_tasks_blocked()
        test.scope.cancel()
        assert (await test.server.take(Leave))[1] == Leave(test.server.client_id, LeaveReason.CANCELLED)
        await test.over()

    async def test_a_cancellation_in_the_middle_of_the_data_says_so_too(self, start):
        test = start(image(500 * BLOCK))
        await test.server.admit()
        await test.server.send_blocks(range(1, 100))
        await until(lambda: test.shelf.blocks)
        test.scope.cancel()
        assert (await test.server.take(Leave))[1].leave_reason is LeaveReason.CANCELLED
        await test.over()

    async def test_who_has_not_joined_has_nothing_to_leave(self, start):
        test = start()
        await test.server.take(Join)
        test.scope.cancel()
        await test.over()
        assert test.server.taken() == []

    async def test_a_consumer_that_fails_ends_the_session_and_the_server_is_told(self, start):
        test = start()
        await test.server.admit()
        test.shelf.error = StorageError("disk full")
        test.driver.wake()
        assert (await test.server.take(Leave))[1].leave_reason is LeaveReason.CANCELLED
        await test.over()
        assert str(test.error) == "disk full"

    async def test_a_kick_is_answered_with_leave_and_ends_the_session(self, start):
        test = start()
        await test.server.admit()
        await test.server.say(Kick(((5, KickReason.FAIL), (test.server.client_id, KickReason.FALLBACK))))
        assert (await test.server.take(Leave))[1].leave_reason is LeaveReason.CANCELLED
        await test.over()
        assert test.driver.departed.why is Left.KICKED
        assert test.driver.departed.kick_reason is KickReason.FALLBACK

    async def test_a_kick_for_somebody_else_changes_nothing(self, start):
        test = start()
        await test.server.admit()
        await test.server.say(Kick(((5, KickReason.FAIL),)))
        await test.server.send_blocks(range(1, 11))
        with trio.fail_after(PATIENCE):
            await test.shelf.everything.wait()

    async def test_a_cancellation_says_leave_also_where_round_trips_are_long(self, start, monkeypatch):
        monkeypatch.setattr(client_driver, "_FAREWELL", 0.05)
        test = start(seed=3)
        await test.server.admit()
        await wait_all_tasks_blocked()
        test.session.transport.data.max_nack_back_off = 1e6
        test.scope.cancel()
        await test.over()
        assert any(isinstance(packet, Leave) for packet in test.server.taken())

    async def test_a_cancelled_client_is_gone_as_soon_as_its_leave_is(self, start, monkeypatch):
        monkeypatch.setattr(client_driver, "_FAREWELL", 3600.0)
        test = start()
        await test.server.admit()
        await wait_all_tasks_blocked()
        test.scope.cancel()
        await test.over()
        assert (await test.server.take(Leave))[1] == Leave(test.server.client_id, LeaveReason.CANCELLED)

    async def test_a_cancelled_client_takes_half_a_second_at_most_for_its_leave(self, start, mock_clock):
        test, given = start(), []

        async def farewell(until_then):
            given.append(until_then - trio.current_time())

        test.driver._farewell = farewell
        await wait_all_tasks_blocked()
        test.scope.cancel()
        await test.over()
        assert given == [0.5]


class TestStrangers:
    async def test_what_a_stranger_sends_to_the_group_is_counted_and_has_no_effect(self, start):
        test = start()
        await test.server.admit()
        stranger = Peer()
        stranger.session_id = test.server.session_id
        group = (test.server.group, test.server.address[1])
        forged = [
            spm(test, 1000, master=test.server.client_id, trail=500, lead=900),
            Kick(((test.server.client_id, KickReason.FAIL),)),
            test.server.block(4, data=b"x" * 1013),
            Demote(9, bytes([239, 1, 1, 1]), 1, bytes(4), 1, (test.server.client_id,)),
            Poll(99, 1, SRVCIR),
        ]
        stranger.raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HOST))
        for packet in forged:
            await stranger.sock.sendto(stranger.seal(packet), group)
        stranger.close()
        await until(lambda: test.dropped["foreign_source"] == len(forged))
        test.server.lead = 0
        await test.server.send_blocks(range(1, 11))
        with trio.fail_after(PATIENCE):
            await test.shelf.everything.wait()
        assert test.received == test.data
        assert test.dropped == {"foreign_source": len(forged)}
        assert not any(isinstance(packet, Ack | Nack | PollAck) for packet in test.server.taken())

    async def test_what_a_stranger_sends_to_the_clients_own_port_is_counted(self, start):
        test = start()
        header, _, client = await test.server.take(Join)
        stranger = Peer()
        stranger.session_id = test.server.session_id
        forged = JoinAck(13, 1, 1, 0, header.sender_time)
        for _ in range(3):
            await stranger.sock.sendto(stranger.seal(forged), client)
        stranger.close()
        await until(lambda: test.dropped["foreign_source"] == 3)
        assert test.shelf.ids == []

    async def test_garbage_from_the_server_is_counted_by_reason_and_never_answered(self, start):
        test = start()
        await test.server.admit()
        group = (test.server.group, test.server.address[1])
        good = test.server.seal(spm(test, 1))
        broken = bytearray(good)
        broken[-1] ^= 1
        rubbish = [b"x", good[:-1], bytes(broken), good + b"x", bytes(1400), b"WD" * 700]
        for datagram in rubbish:
            await test.server.sock.sendto(datagram, group)
        other_session = test.server.seal(spm(test, 2), session_id=8)
        await test.server.sock.sendto(other_session, group)
        await until(lambda: sum(test.dropped.values()) == len(rubbish) + 1)
        assert set(test.dropped) >= {"truncated", "not_wds", "session_id"}
        assert test.server.taken() == []

    async def test_a_join_ack_to_the_group_is_not_for_anybody(self, start):
        test = start()
        header, _, _ = await test.server.take(Join)
        await test.server.say(JoinAck(13, 1, 1, 0, header.sender_time))
        await until(lambda: test.dropped["not_for_us"] == 1)
        assert test.shelf.ids == []

    @pytest.mark.parametrize("echo", [-1, 1, 2**40])
    async def test_a_join_ack_that_echoes_no_join_of_ours_is_not_for_us(self, start, echo):
        test = start()
        header, _, client = await test.server.take(Join)
        client_time = header.sender_time + echo if echo > 1 else (0 if echo < 0 else echo)
        await test.server.say(JoinAck(13, 1, 1, 0, client_time), client)
        await until(lambda: test.dropped["not_for_us"] == 1)
        assert test.shelf.ids == []

    async def test_a_repeated_join_ack_is_answered_and_joins_once(self, start):
        test = start()
        header, _, client = await test.server.take(Join)
        answer = JoinAck(77, 1, 1, 0, header.sender_time)
        for _ in range(5):
            await test.server.say(answer, client)
            assert (await test.server.take(Qcr))[1].client_id == 77
        assert test.shelf.ids == [77]

    async def test_packets_of_the_clients_side_are_not_taken(self, start):
        test = start()
        await test.server.admit()
        await test.server.say(Leave(test.server.client_id, LeaveReason.COMPLETE))
        await test.server.say(Nack(test.server.client_id, 5, 0, ((1, 5),)))
        await test.server.say(Ncf(((1, 5),)))
        await until(lambda: test.dropped["state"] == 2)
        assert test.driver.departed is None

    async def test_old_spms_polls_and_queries_are_stale(self, start):
        test = start()
        await test.server.admit()
        for packet in (
            spm(test, 5),
            Poll(5, 1, SRVCIR),
            Qcc(5, 1),
            spm(test, 5),
            Poll(4, 1, SRVCIR),
            Qcc(1, 1),
        ):
            await test.server.say(packet)
        await until(lambda: test.dropped["stale"] == 3)

    async def test_numbers_at_the_end_of_their_range_harm_nobody(self, start):
        test = start()
        await test.server.admit()
        top = 2**64 - 1
        await test.server.say(spm(test, 1, master=test.server.client_id, trail=1, lead=top))
        await test.server.take(Ack)
        await test.server.say(test.server.block(1, odata_seq_no=top, trail_odata_seq_no=top))
        await test.server.say(test.server.block(2, odata_seq_no=0, trail_odata_seq_no=0))
        await test.server.say(spm(test, top, master=test.server.client_id, trail=top, lead=top))
        await test.server.say(Qcc(top, 0xFFFF))
        await until(lambda: test.dropped["field"] == 1)
        assert not test.ended.is_set()

    @pytest.mark.parametrize("number", [0, 11, 2**64 - 1])
    async def test_blocks_that_the_content_has_not_are_dropped(self, start, number):
        from wdstransport.wire import application

        test = start()
        await test.server.admit()
        payload = application.encode(application.Data(number, bytes(BLOCK)))
        await test.server.say(test.server.block(1, data=payload))
        await until(lambda: sum(test.dropped.values()) == 1)
        assert test.shelf.blocks == {}

    @pytest.mark.parametrize("length", [0, BLOCK - 1, BLOCK + 1])
    async def test_blocks_of_a_wrong_length_are_dropped(self, start, length):
        from wdstransport.wire import application

        test = start()
        await test.server.admit()
        payload = application.encode(application.Data(1, bytes(length)))
        await test.server.say(test.server.block(1, data=payload))
        await until(lambda: test.dropped["field"] == 1)
        assert test.shelf.blocks == {}


class TestStorage:
    async def test_while_storing_is_behind_memory_is_bounded_and_the_server_hears_of_it(self, start):
        test = start(image(200 * BLOCK), cache_bytes=20 * BLOCK)
        await test.server.admit()
        test.shelf.holding = True
        await test.server.send_blocks(range(1, 201))
        nack = None
        while nack is None or nack.ranges:
            _, nack, _ = await test.server.take(Nack)
        assert len(test.shelf.blocks) <= 20
        test.shelf.holding = False
        test.driver.wake()
        await until(lambda: not test.shelf.waiting)
        missing = [number for number in range(1, 201) if number not in test.shelf.blocks]
        for number in missing:
            await test.server.say(test.server.block(number))
            await until(lambda number=number: number in test.shelf.blocks)
        assert test.received == test.data

    async def test_what_is_joined_on_arrival_always_fits_the_cache(self, start):
        test = start(image(140 * BLOCK), cache_bytes=100 * BLOCK)
        await test.server.admit()
        group = (test.server.group, test.server.address[1])
        for number in range(1, 141):  # all of it is there before the driver looks once
            test.server.raw.sendto(test.server.seal(test.server.block(number)), group)
        with trio.fail_after(PATIENCE):
            await test.shelf.everything.wait()
        assert test.received == test.data
        assert test.session.transport.refused == 0

    async def test_what_a_pipe_cannot_take_yet_waits_in_the_kernels_buffer(self, start, monkeypatch):
        monkeypatch.setattr(client_driver, "_STALL", 3600.0)
        monkeypatch.setattr(client_driver, "_GLIMPSE", 3600.0)
        test = start(image(100 * BLOCK), cache_bytes=40 * BLOCK)
        test.session.application.horizon = test.shelf.limit = 50
        await test.server.admit()
        group = (test.server.group, test.server.address[1])
        for number in range(1, 101):
            test.server.raw.sendto(test.server.seal(test.server.block(number)), group)
        await until(lambda: test.driver.stalled)
        assert 0 < len(test.shelf.blocks) <= 50
        test.shelf.limit = 100
        test.driver.wake()
        with trio.fail_after(PATIENCE):
            await test.shelf.everything.wait()
        assert test.received == test.data

    async def test_data_has_reached_as_far_as_the_last_block_of_any_run(self, start):
        test = start()
        datagrams = Batch(memoryview(bytes(9 * BLOCK)), BLOCK, test.server.address)
        runs = [BlockRun(0, 2, 3), BlockRun(5, 2, 8), BlockRun(2, 1, 1)]
        test.session.transport.events.append(BlocksArrived(datagrams, runs, 5, 0, BLOCK, 0))
        test.driver._events(trio.current_time())
        assert sorted(test.shelf.blocks) == [1, 3, 4, 8, 9]
        assert test.driver._reached == 9

    async def test_what_the_last_round_reached_does_not_bound_the_next(self, start):
        test = start(image(100 * BLOCK), cache_bytes=40 * BLOCK)
        driver, transport = test.driver, test.session.transport
        test.session.application.horizon = 50
        assert not driver._beyond_reach()
        driver._reached = 45
        assert driver._beyond_reach()
        transport._last_poll_seq_no += 1
        assert not driver._beyond_reach()
        assert driver._reached == 0

    async def test_a_disk_stands_still_only_since_there_was_something_to_store(self, start, monkeypatch):
        monkeypatch.setattr(client_driver, "_GLIMPSE", math.inf)
        driver = start().driver
        driver._room = driver.session.cache_size + 1
        driver._stored_at = 100.0
        stall = client_driver._STALL
        assert [driver._may_read(200 + late) for late in (0, 0.9 * stall, stall)] == [False, False, True]

    async def test_while_storing_is_behind_control_packets_are_looked_for_now_and_then(
        self, start, monkeypatch
    ):
        monkeypatch.setattr(client_driver, "_STALL", math.inf)
        driver = start().driver
        driver._room = driver.session.cache_size + 1
        glimpse = client_driver._GLIMPSE
        times = (0, 0.9 * glimpse, glimpse, 1.9 * glimpse, 2 * glimpse)
        assert [driver._may_read(200 + late) for late in times] == [False, False, True, False, True]

    async def test_blocks_beyond_the_horizon_are_left_for_later(self, start):
        test = start()
        test.session.application.horizon = test.shelf.limit = 4
        await test.server.admit()
        test.shelf.holding = True
        await test.server.send_blocks(range(1, 11))
        await until(lambda: sorted(test.shelf.blocks) == [1, 2, 3, 4])
        test.shelf.limit = 10
        test.shelf.holding = False
        test.driver.wake()
        await until(lambda: not test.shelf.waiting)
        await test.server.send_blocks(range(5, 11))
        with trio.fail_after(PATIENCE):
            await test.shelf.everything.wait()
        assert test.received == test.data

    async def test_a_pipe_has_room_as_long_as_what_comes_next_fits_it(self, start):
        test = start(image(100 * BLOCK), cache_bytes=40 * BLOCK)
        driver, application = test.driver, test.session.application
        found = []
        for horizon, reached in ((50, 30), (50, 31), (99, 79), (99, 80), (100, 90), (101, 90)):
            application.horizon, driver._reached = horizon, reached
            found.append(driver._beyond_reach())
        assert found == [False, True, False, True, False, False]

    @pytest.mark.parametrize(
        ("cache_bytes", "slabs", "room", "join_bytes"),
        [
            (16 << 20, 20 + 2, 1 << 20, 1 << 19),
            ((16 << 20) + 1, 21 + 2, 1 << 20, 1 << 19),
            (2 << 20, 4 + 2, 1 << 20, 1 << 19),
            (1 << 20, 4 + 2, 1 << 19, (1 << 19) - READ_ROOM),
            (READ_ROOM, 4 + 2, READ_ROOM // 2, 0),
        ],
    )
    async def test_memory_read_into_is_a_cache_and_a_quarter(
        self, start, cache_bytes, slabs, room, join_bytes
    ):
        driver = start(cache_bytes=cache_bytes).driver
        assert (driver.pool.slabs, driver.pool.slab_bytes) == (slabs, 1 << 20)
        assert (driver._room, driver._join_bytes) == (room, join_bytes)

    async def test_a_cache_with_just_the_room_for_one_read_is_read_into(self, start):
        driver = start().driver
        driver._full, driver._room = True, driver.session.cache_room
        assert driver._may_read(200.0)
        assert not driver._full
        driver._room += 1
        assert not driver._may_read(200.0)
        assert driver._full

    async def test_without_memory_to_read_into_the_socket_is_left_alone_for_a_while(self, start):
        driver = start().driver
        reader, driver.reader = driver.reader, SimpleNamespace(read=lambda: None, starved=False)
        driver._read_group()
        assert (driver._drained, driver._full, driver._glimpse_at) == (True, False, -math.inf)
        driver.reader.starved = True
        before = trio.current_time()
        driver._read_group()
        assert (driver._drained, driver._full) == (True, True)
        late = client_driver._GLIMPSE
        assert before + late <= driver._glimpse_at <= trio.current_time() + late
        driver.reader = reader

    async def test_a_turn_reads_so_often_at_most_and_answers_after_every_read(self, start):
        driver, turn = start().driver, []
        reader, take, send = driver.reader, driver._take, driver._send
        driver.reader = SimpleNamespace(read=lambda: turn.append("read") or "batch")
        driver._take = lambda batch, now, *, multicast: turn.append((batch, multicast))
        driver._send = lambda now: turn.append("send")
        driver._read_group()
        assert turn == ["read", ("batch", True), "send"] * client_driver._READS_A_TURN
        assert not driver._drained
        driver.reader, driver._take, driver._send = reader, take, send

    async def test_nothing_is_read_any_more_once_the_client_has_departed(self, start):
        test = start()
        driver, reads = test.driver, []
        reader, take = driver.reader, driver._take
        driver.reader = SimpleNamespace(read=lambda: reads.append(1) or "batch")
        driver._take = lambda batch, now, *, multicast: setattr(driver, "departed", "by a kick")
        driver._read_group()
        assert len(reads) == 1
        driver.reader, driver._take, driver.departed = reader, take, None


class Bed:
    """A driver's sleeps, made up: how long each is meant to be."""

    def __init__(
        self,
        driver,
        *,
        rcvbuf=16 << 20,
        deadline=1e6,
        answer=1e6,
        turn=1e6,
        cache_room=0,
        room=1,
        starved=False,
    ):
        self.driver = driver
        self.slept = []
        self.changed = {
            "_waiter": SimpleNamespace(pause=self.pause, wait=self.wait),
            "sockets": SimpleNamespace(group=SimpleNamespace(rcvbuf=rcvbuf)),
            "session": SimpleNamespace(
                next_deadline=lambda: deadline, answer_deadline=lambda: answer, cache_room=cache_room
            ),
            "reader": SimpleNamespace(starved=starved),
            "_room": room,
            "_next_turn": turn,
        }

    async def pause(self, until):
        self.slept.append(("paused", until))

    async def wait(self, until):
        self.slept.append(("waited", until))

    async def sleep(self, now, brought=0):
        """One sleep: what was slept, and until when."""
        kept = {name: getattr(self.driver, name) for name in self.changed}
        for name, value in self.changed.items():
            setattr(self.driver, name, value)
        await self.driver._sleep(now, brought)
        for name, value in kept.items():
            setattr(self.driver, name, value)
        return self.slept[-1]


class TestSleeping:
    async def test_naps_grow_where_less_comes_in_one_and_shrink_where_more_does(self, start):
        bed = Bed(start().driver, rcvbuf=64 << 20)
        worth = 1 << 20
        turns = [(worth, 1), (worth // 2, 2), (worth, 2), (worth * 2, 1), (worth * 4, 1)]
        turns += [(worth * 2 // 3, 1.5), (1 << 15, 3), (worth // 4, 6), (worth // 2, 8), (1 << 15, 8)]
        turns += [(worth * 4, 2), (worth * 4, 1)]
        for brought, milliseconds in turns:
            what, until_then = await bed.sleep(100.0, brought)
            assert what == "paused"
            assert until_then - 100 == pytest.approx(milliseconds / 1000, rel=1e-3)

    async def test_a_nap_ends_when_an_answer_to_the_server_is_due(self, start):
        driver = start().driver
        assert await Bed(driver, answer=100.0004).sleep(100.0, 1 << 20) == ("paused", 100.0004)
        assert await Bed(driver, answer=100.002).sleep(100.0, 1 << 20) == ("paused", 100.001)

    async def test_a_turn_that_brought_little_or_too_much_is_followed_by_no_nap(self, start):
        bed = Bed(start().driver, rcvbuf=16 << 20, deadline=105.0)
        small, large = 1 << 15, 1 << 20
        for brought in (0, small - 1, large + 1):
            assert (await bed.sleep(100.0, large // 2))[0] == "paused"
            assert await bed.sleep(100.0, brought) == ("waited", 105.0)
            assert bed.driver._nap == 0.001
        for brought in (small, large):
            assert (await bed.sleep(100.0, brought))[0] == "paused"

    async def test_a_sleep_is_told_what_the_turn_before_it_brought(self, start):
        test = start()
        sleep, brought = test.driver._sleep, []

        async def noted(now, count):
            brought.append(count)
            await sleep(now, count)

        test.driver._sleep = noted
        test.shelf.about_to_sleep = lambda: True
        await test.server.admit()
        for number in range(1, 11):
            await test.server.send_blocks([number])
            await until(lambda number=number: number in test.shelf.blocks)
        await wait_all_tasks_blocked()
        assert sum(brought) == test.driver.reader.bytes > 10 * BLOCK

    async def test_the_driver_sleeps_no_longer_than_until_who_watches_wants_to_look(self, start):
        driver = start().driver
        assert await Bed(driver, turn=103.0, deadline=105.0).sleep(100.0) == ("waited", 103.0)
        assert await Bed(driver, turn=103.0, deadline=101.0).sleep(100.0) == ("waited", 101.0)

    async def test_who_had_no_memory_looks_at_once_when_there_is_some(self, start):
        driver = start().driver
        driver._full = True  # as without memory, when nothing has been stored yet
        driver._glimpse_at = 1e6
        assert await Bed(driver).sleep(100.0) == ("paused", 100.0)

    @pytest.mark.parametrize(
        ("facts", "until_then"),
        [
            ({"deadline": 100.01}, 100.01),
            ({}, 100.3),
            ({"glimpse_at": 100.2}, 100.2),
            ({"glimpse_at": 100.4}, 100.3),
            ({"glimpse_at": 100.4, "stored_at": 99.0}, 100.0),
            ({"cache_room": 1}, 100.008),
            ({"cache_room": 1, "deadline": 100.001}, 100.001),
            ({"cache_room": 1, "glimpse_at": 100.002}, 100.002),
            ({"starved": True}, 1e6),
            ({"starved": True, "deadline": 101.0, "glimpse_at": 100.2, "cache_room": 1}, 101.0),
        ],
    )
    async def test_while_storing_is_behind_only_memory_time_or_a_call_end_a_sleep(
        self, start, facts, until_then
    ):
        driver = start().driver
        driver._full = True
        driver._glimpse_at = facts.pop("glimpse_at", 1e6)
        driver._stored_at = facts.pop("stored_at", 99.8)
        what, found = await Bed(driver, **facts).sleep(100.0, 1 << 16)
        assert what == "paused"
        assert found == pytest.approx(until_then, abs=1e-6)


class TestDemotion:
    @pytest.fixture
    async def lower(self):
        server = Server(image(10 * BLOCK), BLOCK, session_id=8, group="239.192.81.8")
        server.client_id = 78
        yield server
        server.close()

    def demote(self, test, lower):
        return Demote(
            lower.session_id,
            socket.inet_aton(lower.group),
            lower.address[1],
            socket.inet_aton(HOST),
            lower.address[1],
            (test.server.client_id,),
        )

    async def test_the_client_leaves_joins_the_lower_session_and_keeps_what_it_has(self, start, lower):
        test = start()
        await test.server.admit()
        await test.server.send_blocks(range(1, 5))
        await until(lambda: len(test.shelf.blocks) == 4)
        old = test.sockets
        await test.server.say(self.demote(test, lower))
        assert (await test.server.take(Leave))[1].leave_reason is LeaveReason.CANCELLED
        await lower.admit()
        assert old.group.sock.fileno() == old.own.sock.fileno() == -1
        await lower.say(Poll(1, 1, SRVCIR))
        await lower.take(PollAck)
        await lower.send_blocks(range(5, 11))
        with trio.fail_after(PATIENCE):
            await test.shelf.everything.wait()
        assert test.received == test.data
        assert test.shelf.ids == [77, 78]
        assert test.driver.departed is None

    async def test_the_session_that_was_left_is_foreign_from_then_on(self, start, lower):
        test = start()
        await test.server.admit()
        await test.server.say(self.demote(test, lower))
        await test.server.take(Leave)
        await lower.admit()
        client = lower.client
        await test.server.sock.sendto(test.server.seal(Kick(((78, KickReason.FAIL),)), session_id=8), client)
        await until(lambda: test.dropped["foreign_source"] == 1)
        assert test.driver.departed is None

    async def test_a_cancellation_on_the_way_leaves_no_socket_open(self, start, lower):
        test = start()
        await test.server.admit()
        await test.server.say(self.demote(test, lower))
        await lower.take(Join)
        test.scope.cancel()
        await test.over()

    async def test_twenty_demotions_in_a_row_leave_only_the_last_sockets_open(self, start, lower):
        test = start()
        await test.server.admit()
        here, there = test.server, lower
        for _ in range(20):
            await here.say(
                Demote(
                    there.session_id,
                    socket.inet_aton(there.group),
                    there.address[1],
                    socket.inet_aton(HOST),
                    there.address[1],
                    (here.client_id,),
                )
            )
            await here.take(Leave)
            await there.admit()
            here, there = there, here
        await here.send_blocks(range(1, 11))
        with trio.fail_after(PATIENCE):
            await test.shelf.everything.wait()


async def test_losing_on_purpose_loses_both_ways(start):
    test = start(image(300 * BLOCK), drop_share=0.3, drop_seed=5)
    header, _, client = await test.server.take(Join)
    while not test.shelf.ids:
        await test.server.say(JoinAck(77, 1, 1, 0, header.sender_time), client)
        await wait_all_tasks_blocked(0.001)
    await test.server.send_blocks(range(1, 301))
    await test.server.say(spm(test, 1, master=77, lead=300))
    await until(lambda: test.driver._lossy.lost > 50)
    assert 0 < len(test.shelf.blocks) < 300


async def test_losing_on_purpose_loses_what_the_client_says(start):
    test = start(drop_share=0.5)
    asked = []
    test.driver._lossy = SimpleNamespace(loses=lambda: asked.append(1) or True, thin=lambda batch: (batch,))
    await until(lambda: asked)
    assert test.driver._sender.calls == 0


async def test_who_watches_is_called_when_it_asked_to_be(start):
    calls = []

    def turn(now):
        calls.append(now)
        return now + 0.01

    test = start(on_turn=turn)
    await test.server.admit()
    await until(lambda: len(calls) > 3)
    assert all(later - earlier >= 0.01 for earlier, later in itertools.pairwise(calls))


async def test_the_driver_says_how_it_joined_its_group(start):
    test = start()
    assert test.sockets.group.source_specific
    assert test.driver.features["joins"] == "source-specific"
    group = open_group_socket(test.server.group, test.server.address[1], find_interface("lo"), None)
    own = open_client_socket(HOST, test.server.address)
    sockets = Sockets(group, own, test.server.address)
    driver = ClientDriver(test.session, sockets, test.shelf, cache_bytes=1, reopen=test._reopen)
    assert driver.features["joins"] == "any source"
    driver.pool.close()
    sockets.close()


async def test_a_driver_that_never_has_read_everything_lets_others_run(start):
    driver, turns = start().driver, []

    def read_group():
        turns.append(1)
        assert len(turns) < 10**5
        driver._drained = False

    driver._read_group = read_group
    await until(lambda: len(turns) > 100)


async def test_without_anybody_who_watches_the_driver_sleeps(start):
    test = start(on_turn=None)
    await test.server.admit()
    with trio.fail_after(2):
        await wait_all_tasks_blocked()
