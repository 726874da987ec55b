"""Reading ahead: a plan's blocks, in its order, in the slots they are sent from."""

import random
import threading

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import image, until

from wdstransport.content.sources import MemorySource
from wdstransport.errors import SourceChangedError
from wdstransport.net import reading
from wdstransport.net.reading import ReadAhead
from wdstransport.wire.application import Data
from wdstransport.wire.application import decode as decode_application
from wdstransport.wire.security import SecurityMode, make_security
from wdstransport.wire.transport import OpCode, decode

SESSION = 9
CHECKSUM = make_security(SecurityMode.CHECKSUM)


class Gated(MemorySource):
    """Bytes that can be read only while the test lets them."""

    def __init__(self, data):
        super().__init__(data)
        self.gate = threading.Event()
        self.gate.set()
        self.reads = []
        self.changed = False

    def read_into(self, views, offset):
        assert self.gate.wait(60)
        if self.changed:
            raise SourceChangedError("not what it was")
        self.reads.append((offset, sum(map(len, views))))
        super().read_into(views, offset)


class Reader:
    def __init__(self, data, block_size):
        self.data = data
        self.source = data if isinstance(data, MemorySource) else Gated(data)
        self.total = -(-self.source.size // block_size)
        self.block_size = block_size
        self.woken = trio.Event()
        self.ahead = ReadAhead(
            self.source,
            block_size=block_size,
            total_blocks=self.total,
            session_id=SESSION,
            security=CHECKSUM,
            wake=lambda: self.woken.set(),
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.source.gate.set()
        await self.ahead.worker.close()

    async def head(self, plan_number=None, ranges=()):
        """The chunk to send from next, once it is read; as a sender does, turn by turn."""

        def look():
            self.ahead.collect()
            if plan_number is not None:
                self.ahead.follow(plan_number, ranges)
            return self.ahead.head()

        return await until(look)

    async def drain(self, plan_number, ranges):
        """Every block of a plan as (number, bytes), in the order of sending."""
        found = []
        wanted = sum(end - start + 1 for start, end in ranges)
        while len(found) < wanted:
            chunk = await self.head(plan_number, ranges)
            assert chunk.plan_number == plan_number
            for place in range(chunk.count):
                found.append((chunk.first_block + place, bytes(chunk.buffer.payload[place])))
            chunk.sent = chunk.count
        return found

    def expected(self, ranges):
        data, size = bytes(self.source._data), self.block_size
        return [
            (block, data[(block - 1) * size : block * size])
            for start, end in ranges
            for block in range(start, end + 1)
        ]


async def test_a_plan_is_read_in_its_order():
    async with Reader(image(10_500), 1000) as reader:
        ranges = [(2, 4), (7, 7), (9, 11)]
        assert await reader.drain(1, ranges) == reader.expected(ranges)


async def test_blocks_of_a_chunk_are_read_in_one_go():
    async with Reader(image(50_000), 1000) as reader:
        await reader.drain(1, [(1, 50)])
        assert reader.source.reads == [(0, 50_000)]


async def test_the_short_last_block_stands_alone():
    async with Reader(image(10_001), 1000) as reader:
        blocks = await reader.drain(1, [(1, 11)])
        assert blocks == reader.expected([(1, 11)])
        assert len(blocks[-1][1]) == 1
        assert reader.source.reads == [(0, 10_000), (10_000, 1)]


async def test_a_last_block_as_long_as_the_others_is_read_with_them():
    async with Reader(image(10_000), 1000) as reader:
        await reader.drain(1, [(1, 10)])
        assert reader.source.reads == [(0, 10_000)]


async def test_a_round_of_the_last_block_alone_leaves_no_short_buffer_to_later_rounds(monkeypatch):
    monkeypatch.setattr(reading, "_REMEMBERED_BYTES", 0)
    async with Reader(image(10_000), 1000) as reader:
        for number, ranges in enumerate(([(10, 10)], [(10, 10)], [(10, 10)], [(1, 10)], [(1, 10)]), 1):
            assert await reader.drain(number, ranges) == reader.expected(ranges)


async def test_content_of_one_byte_is_one_block():
    async with Reader(b"x", 1000) as reader:
        assert await reader.drain(1, [(1, 1)]) == [(1, b"x")]


async def test_a_block_larger_than_a_chunk_is_a_chunk(monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK_BYTES", 1000)
    async with Reader(image(10_000), 3000) as reader:
        assert await reader.drain(1, [(1, 4)]) == reader.expected([(1, 4)])


@pytest.mark.parametrize(
    ("block_size", "blocks"),
    [(1, 352 * 2840), (1385, 704), (1420, 704), (1421, 352), (2840, 352), (2841, 351), (8885, 112)],
)
async def test_a_chunk_is_a_megabyte_in_whole_batches_where_one_fits(block_size, blocks):
    async with Reader(image(10), block_size) as reader:
        assert reader.ahead._slots == blocks


@pytest.mark.parametrize(("block_size", "blocks"), [(65_000, 15), (500_001, 1), (1_000_001, 1)])
async def test_of_large_blocks_a_chunk_is_a_megabyte_and_one_at_least(block_size, blocks):
    async with Reader(image(10), block_size) as reader:
        assert reader.ahead._slots == blocks


async def test_content_of_no_bytes_has_nothing_to_read():
    async with Reader(b"", 1000) as reader:
        reader.ahead.follow(1, [])
        assert reader.ahead.head() is None
        assert not reader.ahead.wanted(True)


async def test_only_a_few_chunks_are_read_ahead():
    async with Reader(image(8_000_000), 1000) as reader:
        reader.ahead.follow(1, [(1, 8000)])
        await reader.head()
        reader.ahead.follow(1, ())
        assert sum(length for _, length in reader.source.reads) <= reading._DEPTH * 1_000_000
        assert len(reader.ahead._chunks) == reading._DEPTH


async def test_buffers_are_used_again(monkeypatch):
    monkeypatch.setattr(reading, "_REMEMBERED_BYTES", 0)
    async with Reader(image(8_000_000), 1000) as reader:
        seen = set()
        done = 0
        while done < 8000:
            chunk = await reader.head(1, [(1, 8000)])
            seen.add(id(chunk.buffer))
            done += chunk.count
            chunk.sent = chunk.count
        assert len(seen) <= reading._DEPTH + 2


async def test_what_is_remembered_is_bounded():
    async with Reader(image(30_000_000), 1000) as reader:
        done = 0
        while done < 30_000:
            chunk = await reader.head(1, [(1, 30_000)])
            done += chunk.count
            chunk.sent = chunk.count
        reader.ahead.head()
        held = sum(chunk.buffer.nbytes for chunk in reader.ahead._sent)
        assert reading._REMEMBERED_BYTES * 0.9 < held <= reading._REMEMBERED_BYTES


async def test_what_was_sent_last_is_not_read_over_while_it_may_still_be_leaving(monkeypatch):
    monkeypatch.setattr(reading, "_REMEMBERED_BYTES", 0)
    async with Reader(image(8_000_000), 1000) as reader:
        chunk = await reader.head(1, [(1, 8000)])
        before = bytes(chunk.buffer.payload[0])
        chunk.sent = chunk.count
        while (await reader.head(1, ())).first_block < chunk.first_block + chunk.count:
            pass
        await until(lambda: reader.ahead.collect() or all(each.ready for each in reader.ahead._chunks))
        assert all(each.buffer is not chunk.buffer for each in reader.ahead._chunks)
        assert bytes(chunk.buffer.payload[0]) == before


async def test_what_was_sent_last_may_still_be_leaving_when_the_next_round_begins():
    async with Reader(image(5000), 1000) as reader:
        chunk = await reader.head(1, [(1, 5)])
        chunk.sent = chunk.count
        following = await reader.head(2, [(2, 5)])
        assert following.plan_number == 2
        assert following.buffer is not chunk.buffer


async def test_repairs_of_what_was_just_sent_come_from_memory_at_once():
    async with Reader(image(10_001), 1000) as reader:
        await reader.drain(1, [(1, 11)])
        reads = len(reader.source.reads)
        reader.ahead.request_repairs([(40, 3), (41, 11), (45, 9)])
        whole, short = reader.ahead.repairs(), reader.ahead.repairs()
        assert (whole.items, short.items) == ([(40, 3), (45, 9)], [(41, 11)])
        data = bytes(reader.source._data)
        assert [bytes(view) for view in whole.buffer.payload[:2]] == [data[2000:3000], data[8000:9000]]
        assert bytes(short.buffer.payload[0]) == data[10_000:]
        assert len(reader.source.reads) == reads


async def test_repairs_of_a_chunks_first_and_last_block_come_from_memory():
    async with Reader(image(10_000), 1000) as reader:
        await reader.drain(1, [(3, 7)])
        reader.ahead.request_repairs([(40, 3), (44, 7)])
        repairs = reader.ahead.repairs()
        data = bytes(reader.source._data)
        assert repairs.items == [(40, 3), (44, 7)]
        assert [bytes(view) for view in repairs.buffer.payload[:2]] == [data[2000:3000], data[6000:7000]]


async def test_a_repair_of_a_block_that_has_not_been_sent_from_its_chunk_is_read():
    async with Reader(image(10_000), 1000) as reader:
        chunk = await reader.head(1, [(1, 10)])
        chunk.sent = 4
        reader.ahead.request_repairs([(40, 4), (41, 5)])
        assert reader.ahead.repairs() is None

        def look():
            reader.ahead.collect()
            return reader.ahead.repairs()

        found = await until(look)
        data = bytes(reader.source._data)
        assert [bytes(view) for view in found.buffer.payload[:2]] == [data[3000:4000], data[4000:5000]]


async def test_one_round_after_another_lives_on_the_same_buffers():
    async with Reader(image(4_000_000), 1000) as reader:
        buffers = []
        for number in range(1, 12):
            while True:
                chunk = await reader.head(number, [(1, 4000)])
                chunk.sent = chunk.count
                buffers.append(chunk.buffer)  # kept, so that no two have the same id
                if chunk.first_block + chunk.count > 4000:
                    break
            if number == 3:
                known = len({id(buffer) for buffer in buffers})
        assert len({id(buffer) for buffer in buffers}) == known


async def test_a_new_plan_takes_the_place_of_the_old_one():
    async with Reader(image(8_000_000), 1000) as reader:
        reader.ahead.follow(1, [(1, 8000)])
        await reader.head()
        assert await reader.drain(2, [(5000, 5002)]) == reader.expected([(5000, 5002)])


async def test_a_new_plan_is_begun_at_once_though_the_old_one_is_still_in_the_queue():
    async with Reader(image(8_000_000), 1000) as reader:
        reader.ahead.follow(1, [(1, 8000)])
        await until(lambda: reader.ahead.collect() or all(each.ready for each in reader.ahead._chunks))
        reader.ahead.follow(2, [(5000, 5002)])
        reader.ahead.head()
        assert reader.ahead.wanted(True)


async def test_a_chunk_half_sent_is_the_next_one_to_send_from():
    async with Reader(image(10_000), 1000) as reader:
        reader.ahead.follow(1, [(1, 10)])
        chunk = await reader.head()
        chunk.sent = 4
        assert reader.ahead.head() is chunk
        chunk.sent = 10
        assert reader.ahead.head() is None


async def test_nothing_is_there_to_send_while_it_is_being_read():
    source = Gated(image(10_000))
    source.gate.clear()
    async with Reader(source, 1000) as reader:
        reader.ahead.follow(1, [(1, 10)])
        reader.ahead.collect()
        assert reader.ahead.head() is None
        assert reader.ahead.wanted(True)
        assert not reader.ahead.wanted(False)
        source.gate.set()
        await reader.head()
        assert not reader.ahead.wanted(True)


async def test_a_sender_that_sleeps_is_woken_when_its_content_is_there():
    source = Gated(image(10_000))
    source.gate.clear()
    async with Reader(source, 1000) as reader:
        reader.ahead.follow(1, [(1, 10)])
        assert reader.ahead.worker.about_to_sleep()
        source.gate.set()
        with trio.fail_after(60):
            await reader.woken.wait()
        reader.ahead.worker.awake()
        assert (await reader.head()).count == 10


async def test_content_that_changed_is_an_error_where_results_are_collected():
    async with Reader(image(10_000), 1000) as reader:
        reader.source.changed = True
        reader.ahead.follow(1, [(1, 10)])
        with pytest.raises(SourceChangedError):
            await reader.head()


async def test_repairs_are_read_each_under_its_number_the_short_block_apart():
    async with Reader(image(10_001), 1000) as reader:
        reader.ahead.request_repairs([(40, 3), (41, 11), (45, 9)])
        assert reader.ahead.repairs_reading == 3
        assert reader.ahead.wanted(False)
        sets = []

        def look():
            reader.ahead.collect()
            if (found := reader.ahead.repairs()) is not None:
                sets.append(found)
            return len(sets) == 2

        await until(look)
        whole, short = sets
        assert whole.items == [(40, 3), (45, 9)]
        assert short.items == [(41, 11)]
        data = bytes(reader.source._data)
        assert [bytes(view) for view in whole.buffer.payload[:2]] == [data[2000:3000], data[8000:9000]]
        assert bytes(short.buffer.payload[0]) == data[10_000:]
        for done in sets:
            reader.ahead.give_back(done)
        assert reader.ahead.repairs_reading == 0


async def test_a_single_repair_that_is_being_read_is_waited_for():
    async with Reader(image(10_000), 1000) as reader:
        assert not reader.ahead.wanted(False)
        reader.ahead.request_repairs([(40, 3)])
        assert reader.ahead.wanted(False)


async def test_many_repairs_come_in_sets_of_bounded_size_whose_buffers_are_used_again():
    async with Reader(image(1_000_000), 1000) as reader:
        buffers = set()
        for turn in range(5):
            items = [(turn * 1000 + place, place + 1) for place in range(200)]
            reader.ahead.request_repairs(items)
            back = []

            def look(back=back):
                reader.ahead.collect()
                while (found := reader.ahead.repairs()) is not None:
                    assert len(found.items) <= 64
                    buffers.add(id(found.buffer))
                    back.extend(found.items)
                    reader.ahead.give_back(found)
                return len(back) == 200

            await until(look)
            assert back == items
        assert len(buffers) <= 4


async def test_the_slots_become_datagrams_that_say_what_they_hold():
    async with Reader(image(3000), 1000) as reader:
        reader.ahead.follow(1, [(1, 3)])
        chunk = await reader.head()
        datagrams = chunk.buffer.fill(
            0,
            3,
            op_code=OpCode.ODATA,
            sender_time=5,
            client_id=6,
            odata_seq_no=np.arange(100, 103, dtype=np.uint64),
            trail_odata_seq_no=90,
            block_number=np.arange(1, 4, dtype=np.uint64),
            previous_lead=99,
        )
        for place in range(3):
            one = datagrams[place * chunk.buffer.segment : (place + 1) * chunk.buffer.segment]
            header, packet = decode(one, session_id=SESSION, security=CHECKSUM)
            assert (header.sender_time, packet.odata_seq_no) == (5, 100 + place)
            start = place * 1000
            block = Data(place + 1, bytes(reader.source._data[start : start + 1000]))
            assert decode_application(packet.data) == block


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 6000),
    block_size=st.integers(1, 700),
    chunk_bytes=st.integers(1, 3000),
    seed=st.integers(0, 2**32),
)
async def test_every_plan_gives_its_blocks_and_only_these(size, block_size, chunk_bytes, seed):
    rng = random.Random(seed)
    old, reading._CHUNK_BYTES = reading._CHUNK_BYTES, chunk_bytes
    try:
        async with Reader(image(size, seed), block_size) as reader:
            for plan_number in (1, 2):
                cuts = sorted(rng.sample(range(1, reader.total + 2), min(reader.total + 1, 6)))
                ranges = [(low, high - 1) for low, high in zip(cuts[::2], cuts[1::2], strict=False)]
                assert await reader.drain(plan_number, ranges) == reader.expected(ranges)
    finally:
        reading._CHUNK_BYTES = old
