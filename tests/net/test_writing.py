"""Storing what arrives: every block at its place, neighbours in one write."""

import threading

import pytest
import trio
from loopback import image, until

from wdstransport.content.sinks import MemorySink
from wdstransport.errors import StorageError
from wdstransport.net import writing
from wdstransport.net.slabs import SlabPool
from wdstransport.net.writing import BlockWriter
from wdstransport.protocol.events import BlockRun, BlocksArrived
from wdstransport.wire.batch import Batch

SOURCE = ("127.0.0.1", 5000)
HEADER = 7
BLOCK = 100
SEGMENT = HEADER + BLOCK + 2


class Watched(MemorySink):
    """Writes down what it is asked to write, and writes only while the test lets it."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.writes = []
        self.broken = False

    def write(self, views, offset):
        assert self.gate.wait(60)
        self.writes.append((offset, len(views)))
        if self.broken:
            raise StorageError("disk full")
        super().write(views, offset)


class Writing:
    def __init__(self, data):
        self.data = data
        self.sink = Watched()
        self.woken = trio.Event()
        self.writer = BlockWriter(self.sink, BLOCK, lambda: self.woken.set())
        self.pool = SlabPool(1 << 17, 4)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.sink.gate.set()
        await self.writer.worker.close()

    def block(self, number):
        return self.data[(number - 1) * BLOCK : number * BLOCK]

    def arrive(self, first, count, *, rows_before=0, owner=None, at=None):
        """Blocks `first` and following, behind `rows_before` other datagrams of the same batch."""
        datagrams = [bytes(SEGMENT)] * rows_before
        datagrams += [b"h" * HEADER + self.block(number) + b"tt" for number in range(first, first + count)]
        joined = b"".join(datagrams)
        buffer = memoryview(bytearray(joined))
        if owner is not None:
            buffer = owner.view[at : at + len(joined)]
            buffer[:] = joined
        event = BlocksArrived(
            batch=Batch(buffer, SEGMENT, SOURCE, owner),
            runs=[BlockRun(rows_before, count, first)],
            count=count,
            data_offset=HEADER,
            block_len=BLOCK,
            charged=count * BLOCK,
        )
        self.writer.put(event)
        return event

    async def stored(self, count):
        """The first `count` events that are done."""
        done = []

        def look():
            while (events := self.writer.collect()) is not None:
                done.extend(events)
            return len(done) >= count

        await until(look)
        return done


async def test_blocks_land_at_their_places_in_any_order():
    async with Writing(image(10 * BLOCK)) as test:
        events = [test.arrive(5, 6), test.arrive(1, 2), test.arrive(3, 2)]
        assert await test.stored(3) == events
        assert bytes(test.sink.data) == test.data
        assert test.writer.outstanding == 0


async def test_neighbours_that_wait_together_become_one_write():
    async with Writing(image(20 * BLOCK)) as test:
        for first in (1, 5, 9):
            test.arrive(first, 4)
        test.arrive(17, 4)
        await test.stored(4)
        assert test.sink.writes == [(0, 12), (16 * BLOCK, 4)]


async def test_what_lies_before_the_blocks_in_their_batch_is_not_written():
    async with Writing(image(4 * BLOCK)) as test:
        test.arrive(1, 4, rows_before=3)
        await test.stored(1)
        assert bytes(test.sink.data) == test.data


async def test_events_count_as_outstanding_until_they_come_back():
    async with Writing(image(4 * BLOCK)) as test:
        test.sink.gate.clear()
        test.arrive(1, 2)
        test.arrive(3, 2)
        assert test.writer.collect() is None
        assert test.writer.outstanding == 2
        test.sink.gate.set()
        await test.stored(2)
        assert test.writer.outstanding == 0


async def test_a_sink_that_fails_is_an_error_where_events_are_collected():
    async with Writing(image(4 * BLOCK)) as test:
        test.sink.broken = True
        test.arrive(1, 4)
        with pytest.raises(StorageError, match="disk full"):
            await test.stored(1)


async def test_a_driver_that_sleeps_is_woken_when_its_blocks_are_stored():
    async with Writing(image(4 * BLOCK)) as test:
        test.sink.gate.clear()
        test.arrive(1, 4)
        assert test.writer.collect() is None
        assert test.writer.worker.about_to_sleep()
        test.sink.gate.set()
        with trio.fail_after(60):
            await test.woken.wait()


async def test_the_same_place_in_memory_may_hold_other_blocks_later():
    async with Writing(image(60 * BLOCK)) as test:
        slab = test.pool.acquire()
        for turn in range(10):
            test.arrive(turn * 6 + 1, 6, owner=slab, at=0)
            await test.stored(1)
        assert bytes(test.sink.data) == test.data
        slab.release()


async def test_batches_of_other_lengths_at_the_same_place_are_not_mixed_up():
    async with Writing(image(40 * BLOCK)) as test:
        slab = test.pool.acquire()
        first = 1
        for count in (3, 1, 8, 2, 8, 5, 13):
            test.arrive(first, count, owner=slab, at=0)
            await test.stored(1)
            first += count
        assert bytes(test.sink.data) == test.data
        slab.release()


async def test_what_is_remembered_of_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(writing, "_VIEWS_KEPT", 10)
    async with Writing(image(40 * BLOCK)) as test:
        slab = test.pool.acquire()
        for place in range(10):
            test.arrive(4 * place + 1, 4, owner=slab, at=place * 4 * SEGMENT)
            await test.stored(1)
        assert bytes(test.sink.data) == test.data
        assert sum(map(len, test.writer._views.values())) <= 10 + 4 * 2
        slab.release()


async def test_memory_that_nobody_owns_is_not_remembered():
    async with Writing(image(8 * BLOCK)) as test:
        test.arrive(1, 4)
        test.arrive(5, 4)
        await test.stored(2)
        assert test.writer._views == {}
        assert bytes(test.sink.data) == test.data


async def test_runs_of_one_batch_land_at_their_places_and_neighbours_are_one_write():
    async with Writing(image(9 * BLOCK)) as test:
        kept = {1: 1, 2: 2, 4: 3, 5: 4, 7: 8, 8: 9}  # by rows; another stands where blocks were there already
        datagrams = [bytes(SEGMENT)] * 9
        for row, number in kept.items():
            datagrams[row] = b"h" * HEADER + test.block(number) + b"tt"
        batch = Batch(memoryview(b"".join(datagrams)), SEGMENT, SOURCE)
        runs = [BlockRun(1, 2, 1), BlockRun(4, 2, 3), BlockRun(7, 2, 8)]
        test.writer.put(BlocksArrived(batch, runs, 6, HEADER, BLOCK, 6 * BLOCK))
        test.arrive(5, 3, rows_before=2)
        await test.stored(2)
        assert bytes(test.sink.data) == test.data
        assert test.sink.writes == [(0, 4), (7 * BLOCK, 2), (4 * BLOCK, 3)]


async def test_a_writer_that_was_given_nothing_writes_nothing():
    async with Writing(b"") as test:
        for _ in range(3):
            assert test.writer.collect() is None
        test.writer.hand_over()
    assert test.writer.collect() is None
    assert test.sink.writes == []
