"""One server session on its socket, against clients that do what the test tells them to."""

import errno
import os
import random
import socket
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import trio
from loopback import HOST, PATIENCE, Client, Events, Peer, Player, image, until
from trio.testing import wait_all_tasks_blocked

from wdstransport.content.sources import MemorySource
from wdstransport.errors import SourceChangedError
from wdstransport.net.interfaces import find_interface
from wdstransport.net.multicast import open_server_socket
from wdstransport.net.reading import Chunk, ReadAhead, RepairSet
from wdstransport.net.server_driver import ServerDriver
from wdstransport.protocol.events import ClientActive, ClientGone, Gone, SendingBegan
from wdstransport.protocol.parameters import ServerParameters
from wdstransport.protocol.server_data import ODataRun
from wdstransport.protocol.server_session import ServerSession
from wdstransport.wire.application import Data
from wdstransport.wire.application import decode as decode_application
from wdstransport.wire.batch import Batch
from wdstransport.wire.initiation import Reply
from wdstransport.wire.security import SecurityMode, make_security
from wdstransport.wire.slots import SlotBuffer
from wdstransport.wire.transport import (
    Ack,
    Join,
    JoinAck,
    Kick,
    KickReason,
    Leave,
    LeaveReason,
    Nack,
    Ncf,
    OData,
    Qcr,
    Spm,
    decode,
)

GROUP = "239.192.82.1"
BLOCK = 1000
QUICK = {"poll_back_off": 0.01, "query_margin": 0.02, "data_linger": 0.1, "empty_query_wait": 0.05}


class Content(MemorySource):
    """Bytes that a test changes under the server, or keeps from it from an offset on until it may go on."""

    changed = False

    def __init__(self, data):
        super().__init__(data)
        self.readable = len(data)
        self.go_on = threading.Event()

    def read_into(self, views, offset):
        if offset >= self.readable:
            assert self.go_on.wait(PATIENCE)
        if self.changed:
            raise SourceChangedError("not what it was")
        super().read_into(views, offset)


class Test:
    __test__ = False

    def __init__(self, data, *, rate=None, security=SecurityMode.CHECKSUM, **parameters):
        self.data = data
        self.source = Content(data)
        self.opened = open_server_socket(HOST, 0, find_interface("lo"), 1, sndbuf=1 << 20, rcvbuf=4 << 20)
        port = self.opened.address[1]
        total = -(-len(data) // BLOCK)
        self.offer = Reply(
            socket.inet_aton(GROUP), socket.inet_aton(HOST), port, port, len(data), BLOCK, total, 5
        )
        self.events = Events()
        self.security = make_security(security)
        self.session = ServerSession(
            session_id=5,
            total_blocks=total,
            client_security=self.security,
            server_security=self.security,
            parameters=ServerParameters(**{**QUICK, **parameters}),
            rng=random.Random(1),
            now=trio.current_time(),
        )
        self.driver = ServerDriver(
            self.session,
            self.source,
            self.opened,
            group=(GROUP, port),
            block_size=BLOCK,
            security=self.security,
            rate=rate,
            segment_ok=True,
            merge_ok=True,
            on_event=self.events,
        )
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.failure = None
        self.players = []

    async def run(self):
        try:
            with self.scope:
                await self.driver.run()
        except OSError as error:
            self.failure = error
        finally:
            self.ended.set()

    def client(self):
        client = Client(self.security.mode)
        client.offer = self.offer
        client.session_id = 5
        return client

    async def player(self, nursery, **attributes):
        """One more client, joined and doing what it should."""
        client = self.client()
        player = Player(client)
        for name, value in attributes.items():
            setattr(player, name, value)
        self.players.append(player)
        await client.join()
        nursery.start_soon(player.run_in_scope)
        await client.confirm()
        return player

    async def over(self):
        with trio.fail_after(PATIENCE):
            await self.ended.wait()
        assert self.opened.sock.fileno() == -1
        assert self.source._closed
        assert self.driver._pool.acquire() is None


@pytest.fixture
async def start(nursery):
    tests = []

    def begin(data=None, **options):
        test = Test(image(20 * BLOCK - 7) if data is None else data, **options)
        tests.append(test)
        nursery.start_soon(test.run)
        return test

    yield begin
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        for test in tests:
            await test.over()
        await wait_all_tasks_blocked()  # reading from a socket that is closed meanwhile is an error
    for test in tests:
        for player in test.players:
            player.close()


def kicked(player):
    return [pair for kick in player.of(Kick) for pair in kick.clients]


@pytest.mark.parametrize("security", [SecurityMode.CHECKSUM, SecurityMode.NONE])
async def test_a_client_gets_every_block_once_in_order(start, nursery, security):
    test = start(security=security)
    player = await test.player(nursery)
    await until(lambda: player.complete)
    assert player.data == test.data
    assert [kind for kind, _, _ in player.sequence] == ["ODATA"] * 20
    assert [block for _, _, block in player.sequence] == list(range(1, 21))
    assert test.driver.data_bytes == len(test.data)
    assert (test.driver.repair_bytes, test.driver.catch_up_bytes) == (0, 0)
    await player.leave()
    gone = await test.events.wait(ClientGone)
    assert gone.reason is Gone.COMPLETE
    assert len(test.events.of(ClientActive)) == len(test.events.of(SendingBegan)) == 1


async def test_content_larger_than_what_is_read_ahead_arrives_whole(start, nursery):
    test = start(image(3_000_001))
    player = await test.player(nursery)
    await until(lambda: player.complete)
    assert player.data == test.data
    assert test.driver.data_bytes == len(test.data)


async def test_what_a_client_misses_is_sent_again_under_its_number(start, nursery):
    lost = {3, 4, 11, 20}
    test = start()
    player = await test.player(nursery, lose=lambda number: number in lost)
    await until(lambda: player.complete)
    assert player.data == test.data
    repairs = {(number, block) for kind, number, block in player.sequence if kind == "RDATA"}
    assert repairs == {(number, number) for number in lost}
    assert test.driver.repair_bytes >= 4 * BLOCK - 7
    assert {span for ncf in player.of(Ncf) for span in ncf.ranges} == {(number, number) for number in lost}


async def test_repair_has_the_number_that_its_block_was_sent_under(start, nursery):
    test = start()
    here = {block: test.data[(block - 1) * BLOCK : block * BLOCK] for block in range(1, 6)}
    player = await test.player(nursery, blocks=here, lose=lambda number: number in (3, 4))
    await until(lambda: player.complete)
    assert player.data == test.data
    repairs = {(number, block) for kind, number, block in player.sequence if kind == "RDATA"}
    assert repairs == {(3, 8), (4, 9)}


class RepairDesk:
    """A driver and one set of repairs of eight bytes each, sent without a socket."""

    def __init__(self, driver, items, *, trail=1, master=6, burst_bytes=None):
        self.driver = driver
        self.sent = []
        self.given_back = []
        self.buffer = SlotBuffer(len(items), 8, session_id=5, security=driver._security, fw_lead=False)
        for payload, (_, block) in zip(self.buffer.payload, items, strict=True):
            payload[:] = bytes([block]) * 8
        self.repair = RepairSet(items, self.buffer)
        read = [self.repair]
        self._ahead = SimpleNamespace(
            repairs=lambda: read.pop() if read else None, give_back=self.given_back.append
        )
        self.told = []
        self.session = SimpleNamespace(
            trail=trail,
            master_client_id=master,
            repairs_sent=lambda numbers, now: self.told.append((now, numbers)),
        )
        self.spent = []
        self._pacer = SimpleNamespace(burst_bytes=burst_bytes, spend=lambda *cost: self.spent.append(cost))

    def send(self):
        """What one call sends: header and packet of each datagram; None when there was nothing to send."""
        driver, sent = self.driver, []
        kept = driver.session, driver._pacer
        driver.session, driver._pacer = self.session, self._pacer
        driver._put = lambda datagrams, segment, to: sent.append(Batch(bytes(datagrams), segment, HOST))
        went = driver._send_repairs(self._ahead, 1.0)
        driver.session, driver._pacer = kept
        del driver._put
        if not went:
            assert not sent
            return None
        return [decode(each, session_id=5, security=driver._security) for b in sent for each in b.datagrams()]


@pytest.mark.parametrize(("trail", "numbers"), [(1, [7, 3, 9, 5]), (5, [7, 9, 5]), (9, [9]), (10, [])])
async def test_repair_that_the_trail_has_passed_since_it_was_read_is_not_sent(start, trail, numbers):
    desk = RepairDesk(start().driver, [(7, 17), (3, 13), (9, 19), (5, 15)], trail=trail)
    pairs = desk.send()
    assert {(header.sender_time, each.client_id) for header, each in pairs} <= {(1000, 6)}
    found = [each for _, each in pairs]
    assert [(each.odata_seq_no, each.trail_odata_seq_no) for each in found] == [(n, trail) for n in numbers]
    blocks = [decode_application(each.data) for each in found]
    assert blocks == [Data(n + 10, bytes([n + 10]) * 8) for n in numbers]
    assert desk.given_back == [], "what was sent last may still be leaving"
    assert desk.send() is None
    assert desk.given_back == [desk.repair]
    assert desk.driver.repair_bytes == 8 * len(numbers)
    assert desk.told == ([(1.0, numbers)] if numbers else []), "LastSendTime is when a repair leaves"


async def test_repairs_of_a_set_leave_in_bursts_that_the_rate_allows(start):
    items = [(number, number + 10) for number in (8, 2, 9, 1, 7, 3, 6)]
    desk = RepairDesk(start().driver, items)
    desk._pacer.burst_bytes = 3 * (desk.buffer.segment + 28)
    bursts = []
    while (pairs := desk.send()) is not None:
        bursts.append([each.odata_seq_no for _, each in pairs])
        desk.session.trail = 3
        assert all(
            decode_application(each.data) == Data(each.odata_seq_no + 10, bytes([each.odata_seq_no + 10]) * 8)
            for _, each in pairs
        )
    assert bursts == [[8, 2, 9], [7, 3], [6]]
    assert desk.told == [(1.0, burst) for burst in bursts]
    assert desk.driver._repairs_owed == 6, "as much data goes before the next"
    assert desk.spent == [(len(burst) * (desk.buffer.segment + 28), 1.0) for burst in bursts]
    assert desk.given_back == [desk.repair]


async def test_repairs_that_no_master_could_acknowledge_are_not_sent(start):
    desk = RepairDesk(start().driver, [(7, 17), (3, 13)], master=0)
    assert desk.send() == []
    assert desk.send() is None
    assert desk.given_back == [desk.repair]


async def test_data_names_the_master_and_the_time_in_milliseconds(start):
    driver, sent = start().driver, []
    buffer = SlotBuffer(2, 8, session_id=5, security=driver._security, fw_lead=True)
    for payload in buffer.payload:
        payload[:] = b"contents"
    chunk = Chunk(1, 1, 2, buffer, ready=True)
    session = driver.session
    run = ODataRun(first_seq=11, first_block=1, count=2, previous_lead=10)
    driver.session = SimpleNamespace(
        trail=4, master_client_id=6, window=16, take_odata=lambda limit, now: run if limit == 2 else None
    )
    driver._put = lambda datagrams, segment, to: sent.append(Batch(datagrams, segment, HOST))
    driver._repairs_owed = 3
    assert driver._send_data(SimpleNamespace(head=lambda: chunk), 1.5)
    driver.session = session
    del driver._put
    (batch,) = sent
    pairs = [decode(each, session_id=5, security=driver._security) for each in batch.datagrams()]
    assert [header.sender_time for header, _ in pairs] == [1500, 1500]
    assert [(each.client_id, each.odata_seq_no, each.trail_odata_seq_no) for _, each in pairs] == [
        (6, 11, 4),
        (6, 12, 4),
    ]
    assert (chunk.sent, driver.data_bytes, driver._repairs_owed) == (2, 16, 1)


@pytest.mark.parametrize(
    ("farthest", "sent_again", "farthest_then"),
    [(0, 0, 6), (3, 0, 6), (4, 1, 6), (5, 2, 6), (6, 3, 6), (9, 3, 9)],
)
async def test_data_that_was_sent_in_an_earlier_round_is_counted_as_such(
    start, farthest, sent_again, farthest_then
):
    driver, sent, spent, asked = start().driver, [], [], []
    buffer = SlotBuffer(8, 100, session_id=5, security=driver._security, fw_lead=True)
    for place, payload in enumerate(buffer.payload):
        payload[:] = bytes([place]) * 100
    chunk = Chunk(1, 2, 5, buffer, ready=True, sent=2)
    run = ODataRun(first_seq=11, first_block=4, count=3, previous_lead=10)
    session, pacer = driver.session, driver._pacer

    def take_odata(limit, now):
        asked.append((limit, now))
        return run

    driver.session = SimpleNamespace(trail=4, master_client_id=6, window=999, take_odata=take_odata)
    driver._pacer = SimpleNamespace(burst_bytes=None, spend=lambda *cost: spent.append(cost))
    driver._put = lambda datagrams, segment, to: sent.append((Batch(datagrams, segment, HOST), to))
    driver._farthest, driver._repairs_owed = farthest, 2
    assert driver._send_data(SimpleNamespace(head=lambda: chunk), 1.5)
    driver.session, driver._pacer = session, pacer
    del driver._put
    ((batch, to),) = sent
    blocks = [
        decode_application(decode(each, session_id=5, security=driver._security)[1].data)
        for each in batch.datagrams()
    ]
    assert blocks == [Data(block, bytes([block - 2]) * 100) for block in (4, 5, 6)]
    assert to == driver.group
    assert asked == [(3, 1.5)], "no more than the chunk has left"
    assert spent == [(3 * (batch.segment + 28), 1.5)]
    assert (driver.data_bytes, driver.catch_up_bytes) == (300, 100 * sent_again)
    assert (driver._farthest, driver._repairs_owed, chunk.sent) == (farthest_then, 0, 5)


async def test_where_the_window_is_shut_or_nothing_is_read_no_data_leaves(start):
    driver = start().driver
    chunk = Chunk(
        1, 1, 2, SlotBuffer(2, 8, session_id=5, security=driver._security, fw_lead=True), ready=True
    )
    session, limits = driver.session, []
    driver.session = SimpleNamespace(window=15, take_odata=lambda limit, now: limits.append(limit))
    found = [driver._send_data(SimpleNamespace(head=lambda head=head: head), 1.5) for head in (None, chunk)]
    driver.session = session
    assert found == [False, False]
    assert limits == [1], "an eighth of the window"
    assert (chunk.sent, driver.data_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("window", "burst", "segment", "datagrams"),
    [
        (1, None, 1472, 1),
        (15, None, 1472, 1),
        (16, None, 1472, 2),
        (352, None, 1472, 44),
        (8 * 87, None, 1472, 44),
        (8 * 88, None, 1472, 88),
        (16384, None, 1472, 352),
        (16384, None, 9000, 56),
        (16384, None, 100, 352),
        (16384, 1500 * 10, 1472, 10),
        (16384, 1500 * 10 - 1, 1472, 9),
        (16384, 1, 1472, 1),
    ],
)
async def test_a_batch_is_an_eighth_of_the_window_in_whole_calls_and_within_the_burst(
    start, window, burst, segment, datagrams
):
    driver = start().driver
    session, driver.session = driver.session, SimpleNamespace(window=window)
    pacer, driver._pacer = driver._pacer, SimpleNamespace(burst_bytes=burst)
    limit = driver._batch_limit(segment)
    driver.session, driver._pacer = session, pacer
    assert limit == datagrams


async def test_repairs_cost_the_rate_what_they_weigh(start, nursery):
    class Budget:
        burst_bytes = None
        spent = 0

        def ready_at(self, now):
            return now

        def spend(self, count, now):
            self.spent += count

    test = start()
    budget = test.driver._pacer = Budget()
    player = await test.player(nursery, lose=lambda number: number in (3, 4, 11, 20))
    await until(lambda: player.complete)
    assert test.driver.repair_bytes >= 4 * BLOCK - 7
    assert budget.spent > test.driver.data_bytes + test.driver.repair_bytes


async def test_after_repairs_as_much_data_leaves_before_the_next(start):
    driver, sent = start().driver, []

    def repairs(*_):
        sent.append("repairs")
        driver._repairs_owed += 3
        return True

    def data(*_):
        sent.append("data")
        driver._repairs_owed -= 1
        return True

    driver._send_repairs, driver._send_data = repairs, data
    while len(sent) < 6:
        assert driver._send(SimpleNamespace(repairs_reading=0), trio.current_time())
    del driver._send_repairs, driver._send_data
    assert sent == ["repairs", "data", "data", "data", "repairs", "data"]


async def test_repairs_wait_for_no_data_where_none_may_leave(start):
    driver, sent = start().driver, []

    def repairs(*_):
        sent.append("repairs")
        driver._repairs_owed += 3
        return True

    def data(*_):
        sent.append("data")
        driver._repairs_owed -= 1
        return True

    driver._send_repairs, driver._send_data = repairs, lambda *_: False
    while len(sent) < 3:
        assert driver._send(SimpleNamespace(repairs_reading=0), trio.current_time())
    driver._send_data = data
    while len(sent) < 7:
        assert driver._send(SimpleNamespace(repairs_reading=0), trio.current_time())
    del driver._send_repairs, driver._send_data
    assert sent == [*["repairs"] * 3, *["data"] * 3, "repairs"], "one set is made up for, not three"


class Turn:
    """One turn of a driver's sending, without a socket: what it asked for and what left."""

    def __init__(self, driver, *, reading=0, repairs=(), ready_at=0.0, full_after=10**6):
        self.log = []
        self.full_after = full_after
        self.driver = driver
        self.repairs = list(repairs)
        self.ahead = SimpleNamespace(
            repairs_reading=reading, request_repairs=lambda items: self.log.append(("read", items))
        )
        self.changed = {
            "session": SimpleNamespace(
                take_outgoing=lambda now: [(b"control", None), (b"to one", (HOST, 9))],
                take_repairs=self._take_repairs,
            ),
            "_pacer": SimpleNamespace(ready_at=lambda now: ready_at),
            "sender": SimpleNamespace(send=self._send),
            "_send_repairs": lambda ahead, now: False,
            "_send_data": lambda ahead, now: self._data(),
        }

    def _take_repairs(self, most):
        self.log.append(("asked", most))
        return self.repairs

    def _send(self, data, segment, to):
        if len(self.sent) >= self.full_after:
            return False
        self.log.append((bytes(data), segment, to))
        return True

    def _data(self):
        self.driver._put(b"datadata", 4, self.driver.group)
        return True

    @property
    def sent(self):
        return [entry for entry in self.log if len(entry) == 3]

    def send(self, now=1.0):
        kept = {name: self.driver.__dict__.get(name) for name in self.changed}
        self.driver.__dict__.update(self.changed)
        went = self.driver._send(self.ahead, now)
        for name, value in kept.items():
            self.driver.__dict__.pop(name)
            if value is not None:
                setattr(self.driver, name, value)
        return went


class TestOneTurn:
    async def test_control_packets_leave_before_data_to_the_group_or_to_one(self, start):
        driver = start().driver
        turn = Turn(driver)
        assert turn.send()
        assert turn.sent == [
            (b"control", 7, driver.group),
            (b"to one", 6, (HOST, 9)),
            (b"datadata", 4, driver.group),
        ]

    async def test_a_full_socket_keeps_what_it_did_not_take_and_later_all_leaves_in_order(self, start):
        driver = start().driver
        turn = Turn(driver, full_after=1)
        assert turn.send(), "something left"
        assert turn.sent == [(b"control", 7, driver.group)]
        assert not turn.send(), "nothing did, and nothing will before there is room"
        assert turn.log == turn.sent, "no repairs are taken that could not leave"
        turn.full_after = 10**6
        turn.changed["session"].take_outgoing = lambda now: []
        assert turn.send()
        assert [data for data, _, _ in turn.sent] == [b"control", b"to one", b"datadata"]

    async def test_data_that_fills_the_socket_ends_the_turn_without_another(self, start):
        driver = start().driver
        turn = Turn(driver, full_after=2)
        assert not turn.send()
        assert driver._unsent == (b"datadata", 4, driver.group)
        driver._unsent = None

    @pytest.mark.parametrize("repairs", [[], [(3, 3), (4, 4)]])
    async def test_what_the_rate_does_not_let_out_yet_is_not_sent_but_repairs_are_read(self, start, repairs):
        driver = start().driver
        turn = Turn(driver, ready_at=1.001, repairs=repairs)
        assert turn.send(1.0) == bool(repairs)
        assert [data for data, _, _ in turn.sent] == [b"control", b"to one"]
        assert [entry for entry in turn.log if entry[0] == "read"] == ([("read", repairs)] if repairs else [])
        assert turn.send(1.001), "now it does"
        assert turn.sent[-1] == (b"datadata", 4, driver.group)

    @pytest.mark.parametrize(("reading", "asked"), [(0, [("asked", 64)]), (255, [("asked", 64)]), (256, [])])
    async def test_repairs_are_taken_up_to_a_number_that_waits_to_be_sent(self, start, reading, asked):
        turn = Turn(start().driver, reading=reading)
        turn.send()
        assert [entry for entry in turn.log if entry[0] == "asked"] == asked


@pytest.mark.parametrize(
    ("unsent", "reading", "head", "sendable", "until_then"),
    [
        (None, 0, None, 9, np.inf),
        (None, 0, "chunk", 0, np.inf),
        (None, 0, "chunk", 1, 7.5),
        (None, 1, None, 0, 7.5),
        ((b"x", 1, (GROUP, 9)), 1, "chunk", 9, np.inf),
    ],
)
async def test_the_rate_is_waited_for_only_with_something_that_may_leave(
    start, unsent, reading, head, sendable, until_then
):
    driver = start().driver
    session, pacer = driver.session, driver._pacer
    driver.session = SimpleNamespace(sendable=lambda: sendable)
    driver._pacer = SimpleNamespace(ready_at=lambda now: now + 6.5)
    driver._unsent = unsent
    found = driver._paced_until(SimpleNamespace(repairs_reading=reading, head=lambda: head), 1.0)
    driver.session, driver._pacer, driver._unsent = session, pacer, None
    assert found == until_then


class TestReading:
    """What is read before the next turn; a read takes some of a made-up clock's time."""

    @pytest.mark.parametrize(
        ("seconds", "there", "reads", "brought"),
        [
            (0.0, 0, 1, False),
            (0.0, 1, 2, True),
            (0.0, 63, 64, True),
            (0.0, 999, 64, True),
            (0.004, 999, 3, True),
            (0.00390625, 999, 3, True),
            (0.0009765625, 999, 6, True),
            (0.5, 1, 2, True),
        ],
    )
    async def test_a_turn_ends_with_what_there_is_after_so_many_reads_or_so_much_time(
        self, start, mock_clock, seconds, there, reads, brought
    ):
        driver = start().driver
        reader, session, received, released, asked = driver.reader, driver.session, [], [], []

        def read():
            asked.append(1)
            mock_clock.jump(seconds)
            if len(asked) > there:
                return None
            owner = SimpleNamespace(release=lambda: released.append(1)) if len(asked) % 2 else None
            return SimpleNamespace(owner=owner)

        driver.reader = SimpleNamespace(read=read)
        driver.session = SimpleNamespace(receive=lambda batch, now: received.append(now))
        assert driver._receive() is brought
        driver.reader, driver.session = reader, session
        assert len(asked) == reads
        assert len(received) == min(reads, there)
        assert len(released) == -(-len(received) // 2)
        assert received == [received[0] + seconds * number for number in range(len(received))] or not received


async def test_blocks_that_come_too_late_for_repairs_come_in_another_round(start, nursery):
    test = start()
    # As if there had been no room for them: acknowledged, and missing when the server asks.
    player = await test.player(nursery, lose=lambda number: number in (2, 9), asks_again=False)
    await until(lambda: player.complete)
    assert player.data == test.data
    assert [block for _, number, block in player.sequence if number > 20] == [2, 9]
    assert (test.driver.catch_up_bytes, test.driver.repair_bytes) == (2 * BLOCK, 0)


async def test_at_a_rate_everything_arrives_as_well(start, nursery):
    test = start(rate=400_000.0)
    lost = {5, 6, 7, 19}
    player = await test.player(nursery, lose=lambda number: number in lost)
    await until(lambda: player.complete)
    assert player.data == test.data


async def test_a_socket_that_is_full_delays_and_loses_nothing(start, nursery):
    test = start(image(500 * BLOCK))
    send = test.driver.sender.send
    calls = {"tried": 0, "refused": 0}

    def sometimes(*args):
        calls["tried"] += 1
        if calls["tried"] % 3:
            calls["refused"] += 1
            return False
        return send(*args)

    test.driver.sender.send = sometimes
    player = await test.player(nursery)
    await until(lambda: player.complete)
    assert player.data == test.data
    assert [number for _, number, _ in player.sequence] == list(range(1, 501))
    assert calls["refused"] > 10


def sleeps(driver):
    """Until when the driver sleeps, each time."""
    found = []
    wait = driver._waiter.wait

    async def noted(deadline, **options):
        found.append(deadline)
        await wait(deadline, **options)

    driver._waiter.wait = noted
    return found


async def test_the_driver_sleeps_until_the_rate_lets_the_next_data_out(start, nursery):
    test = start(rate=400_000.0)
    until_then = sleeps(test.driver)
    player = await test.player(nursery)
    ready = set()
    pacer = test.driver._pacer

    def noted(now):
        moment = pacer.ready_at(now)
        ready.add(moment)
        return moment

    test.driver._pacer = SimpleNamespace(burst_bytes=pacer.burst_bytes, spend=pacer.spend, ready_at=noted)
    await until(lambda: player.complete)
    assert ready & set(until_then)


async def test_a_driver_with_something_to_do_all_the_time_lets_others_run(start):
    test, turns = start(), []

    def receive():
        turns.append(1)
        assert len(turns) < 10**5
        return True

    test.driver._receive = receive
    await until(lambda: len(turns) > 100)


async def test_while_content_that_is_waited_for_is_being_read_the_driver_sleeps(start, nursery):
    test = start()
    test.source.readable = 0
    until_then = sleeps(test.driver)
    player = await test.player(nursery)
    await until(lambda: test.driver._ahead.wanted(test.session.sendable() > 0))
    slept = len(until_then)
    test.driver.wake()
    await until(lambda: len(until_then) > slept)
    assert player.blocks == {}
    test.source.go_on.set()
    await until(lambda: player.complete)


@pytest.mark.parametrize(("sendable", "window_open"), [(0, False), (1, True)])
async def test_content_is_waited_for_where_a_single_packet_may_leave(
    start, monkeypatch, sendable, window_open
):
    asked = []

    def wanted(_, window_open):
        asked.append(window_open)
        return False

    monkeypatch.setattr(ReadAhead, "wanted", wanted)
    test = start()
    test.session.sendable = lambda: sendable
    await until(lambda: asked)
    assert set(asked) == {window_open}


@pytest.mark.parametrize(
    ("wanted", "story"),
    [
        (False, ["slept", "awake", "slept"]),
        (True, ["read meanwhile", "read meanwhile", "announced", "slept", "awake", "announced", "slept"]),
    ],
)
async def test_a_driver_that_waits_for_content_says_so_before_it_sleeps(start, monkeypatch, wanted, story):
    log, told = [], trio.Event()
    answers = iter([False, False, True, True])

    def about_to_sleep():
        answer = next(answers)
        log.append("announced" if answer else "read meanwhile")
        return answer

    async def wait(deadline, *, writable):
        log.append("slept")
        if log.count("slept") == 2:
            told.set()
            await trio.sleep_forever()

    async def close():
        await trio.lowlevel.checkpoint()

    worker = SimpleNamespace(about_to_sleep=about_to_sleep, awake=lambda: log.append("awake"), close=close)
    ahead = SimpleNamespace(
        worker=worker,
        repairs_reading=0,
        collect=lambda: None,
        follow=lambda *plan: None,
        head=lambda: None,
        repairs=lambda: None,
        wanted=lambda window_open: wanted,
    )
    monkeypatch.setattr("wdstransport.net.server_driver.ReadAhead", lambda *_, **__: ahead)
    start().driver._waiter = SimpleNamespace(wait=wait, wake=lambda: None)
    with trio.fail_after(PATIENCE):
        await told.wait()
    assert log == story


class TestTheEnd:
    async def test_the_driver_sleeps_no_longer_than_a_closing_session_has_patience(self, start, nursery):
        test = start()
        until_then = sleeps(test.driver)
        await test.player(nursery)
        await test.events.wait(ClientActive)
        test.driver.close(trio.current_time(), patience=0.05)
        await test.over()
        assert test.driver._closing_at in until_then

    async def test_what_the_socket_has_not_taken_leaves_before_the_session_ends(self, start):
        test = start()
        refused, sent = [], []

        def reluctant(datagram, *_):
            (refused if len(refused) < 20 else sent).append(datagram)
            return bool(sent)

        test.driver.sender.send = reluctant
        test.driver._unsent = (b"last words", 10, (GROUP, 9))
        test.driver.close(trio.current_time(), patience=0.0)
        await test.over()
        assert sent[0] == b"last words"

    async def test_closing_kicks_everybody_and_ends_when_they_have_left(self, start, nursery):
        test = start()
        one, two = await test.player(nursery), await test.player(nursery)
        await test.events.wait(ClientActive, 2)
        test.driver.close(trio.current_time(), patience=1e6)
        for player in (one, two):
            await until(lambda player=player: len(kicked(player)) >= 2)
            assert (player.client.client_id, KickReason.FAIL) in kicked(player)
        await one.leave(LeaveReason.CANCELLED)
        await test.events.wait(ClientGone)
        assert not test.ended.is_set()
        await two.leave(LeaveReason.CANCELLED)
        await test.over()
        assert {event.reason for event in test.events.of(ClientGone)} == {Gone.KICKED}

    async def test_closing_does_not_wait_for_who_says_nothing(self, start, nursery):
        test = start()
        await test.player(nursery)
        await test.events.wait(ClientActive)
        test.driver.close(trio.current_time(), patience=0.05)
        await test.over()

    async def test_closing_tells_who_does_not_hear_it_more_than_once(self, start, nursery):
        test = start()
        player = await test.player(nursery)
        await test.events.wait(ClientActive)
        test.driver.close(trio.current_time())
        await test.over()
        assert len(player.of(Kick)) >= 2 or await until(lambda: len(player.of(Kick)) >= 2)

    async def test_closing_without_clients_ends_at_once(self, start):
        test = start()
        test.driver.close(trio.current_time(), patience=1e6)
        await test.over()

    async def test_who_is_told_has_a_second_to_leave_however_often_a_session_is_closed(self, start):
        driver = start().driver
        told, session = [], driver.session
        driver.session = SimpleNamespace(close=lambda *reason: told.append(reason))
        driver.close(100.0)
        driver.close(100.5)
        driver.session = session
        assert driver._closing_at == 101.0
        assert told == [(KickReason.FAIL, 100.0)]

    async def test_nobody_joins_a_session_that_closes(self, start, nursery):
        test = start()
        await test.player(nursery)
        await test.events.wait(ClientActive)
        test.driver.close(trio.current_time(), patience=0.3)
        late = test.client()
        await late.say(Join("LATE", socket.inet_aton(HOST), bytes(6)))
        await test.over()
        assert late.taken() == []
        late.close()

    async def test_content_that_changes_ends_the_session_and_clients_are_told(self, start, nursery):
        test = start(image(3_000_000), rate=500_000.0)
        player = await test.player(nursery)
        await until(lambda: len(player.blocks) > 10)
        test.source.changed = True
        await until(lambda: kicked(player))
        await player.leave(LeaveReason.CANCELLED)
        await test.over()
        assert isinstance(test.driver.error, SourceChangedError)
        assert not player.complete
        whole = {number: test.data[(number - 1) * BLOCK : number * BLOCK] for number in player.blocks}
        assert player.blocks == whole

    async def test_a_cancellation_tells_every_client_once(self, start, nursery):
        test = start()
        player = await test.player(nursery)
        await test.events.wait(ClientActive)
        test.scope.cancel()
        await test.over()
        await until(lambda: kicked(player))
        assert kicked(player) == [(player.client.client_id, KickReason.FAIL)]

    async def test_a_socket_that_is_broken_ends_the_session_with_its_error(self, start, nursery):
        test = start()

        def broken(*args):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

        await test.player(nursery)
        test.driver.sender.send = broken
        await test.over()
        assert test.failure.errno == errno.EBADF

    async def test_a_session_that_nobody_joins_is_over_after_its_time(self, start):
        test = start(inactivity_timeout=0.05)
        await test.over()
        assert test.session.over


class TestAttackers:
    async def test_garbage_is_counted_by_reason_and_never_answered(self, start, nursery):
        test = start()
        attacker = test.client()
        good = attacker.seal(Join("X", socket.inet_aton(HOST), bytes(6)))
        flipped = bytearray(good)
        flipped[30] ^= 0xFF
        rubbish = [b"x", good[:-3], bytes(flipped), good + b"!", bytes(1400), os.urandom(60_000)]
        for datagram in rubbish:
            await attacker.sock.sendto(datagram, attacker.server)
        await attacker.say(Join("X", socket.inet_aton(HOST), bytes(6)), session_id=6)
        await attacker.say(Spm(1, 1, 1, 1, 1, 1, 1))
        await attacker.say(OData(1, 1, 1, b"x"))
        await attacker.say(Kick(((1, KickReason.FAIL),)))
        await until(lambda: sum(test.session.dropped.values()) == len(rubbish) + 4)
        assert set(test.session.dropped) >= {"truncated", "not_wds", "session_id", "state"}
        assert attacker.taken() == []
        attacker.close()

    async def test_who_has_not_joined_can_change_nothing(self, start, nursery):
        test = start(image(300_000), rate=500_000.0)
        player = await test.player(nursery)
        await until(lambda: len(player.blocks) > 5)
        attacker = test.client()
        known = player.client.client_id
        forged = [
            Leave(known, LeaveReason.COMPLETE),
            Ack(known, 2**63, 1, 2**63, 0),
            Nack(known, 5, 10**16, ((1, 2**64 - 1),)),
            Qcr(known, 0, 0, 1, 0, 0, b""),
            Nack(12345, 5, 0, ((1, 5),)),
        ]
        for packet in forged:
            await attacker.say(packet)
        await until(lambda: test.session.dropped["unknown_client"] == len(forged))
        assert attacker.taken() == []
        assert test.driver.repair_bytes == 0
        attacker.close()
        await until(lambda: player.complete)
        assert player.data == test.data

    async def test_a_flood_of_joins_is_bounded_and_the_transfer_goes_on(self, start, nursery):
        test = start(image(300_000), rate=500_000.0)
        player = await test.player(nursery)
        await until(lambda: len(player.blocks) > 5)
        attackers = [test.client() for _ in range(300)]
        for _ in range(3):
            for attacker in attackers:
                await attacker.say(Join("FLOOD", socket.inet_aton(HOST), bytes(6)))
            assert len(test.session.transport.clients.pending) <= 1024
        await until(lambda: player.complete)
        assert len(test.session.transport.clients.pending) <= 1024
        assert player.data == test.data
        assert [client.name for client, _ in test.session.clients() if client.client_id == player.master] == [
            "PEER"
        ]
        for attacker in attackers:
            attacker.close()

    async def test_a_member_that_asks_for_everything_gets_it_and_does_not_stop_the_others(
        self, start, nursery
    ):
        test = start(image(500_000))
        player = await test.player(nursery)
        attacker = await test.player(nursery)
        await until(lambda: len(player.blocks) > 5)
        for count in (1, 80, 4000):
            everything = Nack(attacker.client.client_id, 1, 10**16, ((1, 2**64 - 1),) * count)
            for _ in range(20):
                await attacker.client.say(everything)
        await until(lambda: player.complete)
        assert player.data == test.data

    async def test_repairs_asked_for_faster_than_they_may_leave_are_not_piled_up(self, start, nursery):
        test = start(image(600_000), rate=300_000.0)
        player = await test.player(nursery)
        attacker = await test.player(nursery)
        await until(lambda: len(player.blocks) > 100)
        everything = Nack(attacker.client.client_id, 1, 0, ((1, 2**64 - 1),))
        counters = test.session.transport.data.counters
        most = 0
        while not player.complete:
            heard = counters.nacks
            await attacker.client.say(everything)
            await until(lambda heard=heard: counters.nacks > heard or player.complete)
            most = max(most, test.driver._ahead.repairs_reading)
        assert 0 < most <= 256 + 64, "3243 without the bound"

    async def test_a_member_that_acknowledges_what_was_never_sent_is_not_believed(self, start, nursery):
        test = start()
        player = await test.player(nursery, acknowledges=False)
        await until(lambda: player.of(Spm))
        for number in (2**64 - 1, 10**6):
            await player.client.say(Ack(player.client.client_id, number, 1, number, 0))
        # On a busy machine five SPMs without an answer come first: then it is not the master any more.
        dropped = test.session.dropped
        await until(lambda: dropped["stale"] + dropped["state"] == 2)
        player.acknowledges = True
        await until(lambda: player.complete)

    async def test_a_replayed_join_changes_nothing(self, start, nursery):
        test = start()
        player = await test.player(nursery)
        await test.events.wait(ClientActive)
        for _ in range(10):
            acknowledged = player.client.client_id
            assert (await player.client.join()).client_id == acknowledged
        assert len(test.session.clients()) == 1
        await until(lambda: player.complete)

    async def test_a_client_that_says_goodbye_twice_is_gone_once(self, start, nursery):
        test = start()
        player = await test.player(nursery)
        await test.events.wait(ClientActive)
        await player.leave()
        await player.leave(LeaveReason.CANCELLED)
        await until(lambda: test.session.dropped["unknown_client"])
        assert [event.reason for event in test.events.of(ClientGone)] == [Gone.COMPLETE]

    async def test_a_stranger_with_another_session_on_the_same_port_is_refused(self, start):
        test = start()
        stranger = Peer()
        stranger.session_id = 77
        await stranger.sock.sendto(
            stranger.seal(Join("X", socket.inet_aton(HOST), bytes(6))), (HOST, test.opened.address[1])
        )
        await until(lambda: test.session.dropped["session_id"])
        assert not any(isinstance(packet, JoinAck) for packet in stranger.taken())
        stranger.close()


async def test_two_clients_and_one_leaves_in_the_middle(start, nursery):
    test = start(image(300_000), rate=500_000.0)
    stays, goes = await test.player(nursery), await test.player(nursery)
    await until(lambda: len(goes.blocks) > 20)
    await goes.leave(LeaveReason.CANCELLED)
    await until(lambda: stays.complete)
    assert stays.data == test.data
    assert [event.reason for event in test.events.of(ClientGone)] == [Gone.CANCELLED]


async def test_the_master_that_falls_silent_is_replaced(start, nursery):
    test = start(image(600_000), spm_interval=0.02)
    stays, dies = await test.player(nursery), await test.player(nursery)
    first = await until(lambda: test.session.master_client_id)
    silent, other = (stays, dies) if first == stays.client.client_id else (dies, stays)
    silent.scope.cancel()
    await until(lambda: other.complete)
    assert other.data == test.data
    assert other.master == other.client.client_id


async def test_a_client_that_joins_in_the_middle_gets_the_rest_and_then_what_it_missed(
    start, nursery, monkeypatch
):
    # The round must not be over before somebody is late: reading stops, but not among the first chunks.
    monkeypatch.setattr("wdstransport.net.reading._CHUNK_BYTES", 100 * BLOCK)
    test = start(image(1000 * BLOCK), rate=3_000_000.0)
    test.source.readable = 700 * BLOCK
    first = await test.player(nursery)
    await until(lambda: len(first.blocks) > 100)
    late = await test.player(nursery)
    await until(lambda: len(test.events.of(ClientActive)) == 2)
    test.source.go_on.set()
    await until(lambda: first.complete)
    await first.leave()
    await until(lambda: late.complete)
    assert late.data == test.data
    numbers = np.array([block for _, _, block in late.sequence])
    assert numbers[0] > 100
    assert numbers[-1] < numbers[0]
    assert test.driver.data_bytes < 2 * len(test.data)
    assert 0 < test.driver.catch_up_bytes == test.driver.data_bytes - len(test.data)
