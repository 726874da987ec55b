"""What the core alone costs: `pytest tests/bench/test_micro.py --benchmark-enable`, or `make micro`.

Batches are what the data path carries on Ethernet: 44 datagrams with blocks of 1401 bytes. `extra_info` says
how many bytes of content one round handles, so that seconds become a rate.
"""

import random
from itertools import count

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from wdstransport.protocol.ranges import BlockMap, RangeSet
from wdstransport.protocol.window import DataPacketList, SentRun, Window
from wdstransport.wire.batch import Batch, parse_data
from wdstransport.wire.security import ChecksumSecurity, HashSecurity, NoSecurity, SignSecurity
from wdstransport.wire.slots import SlotBuffer
from wdstransport.wire.transport import OpCode

SESSION, MASTER = 7, 3
DATAGRAMS, BLOCK = 44, 1401
SOURCE = ("10.77.0.1", 64001)
SEED = 20
IMAGE_BLOCKS = 1 << 20
"""Blocks of an image of 1.4 GB."""


def _sign():
    return SignSecurity(rsa.generate_private_key(public_exponent=65537, key_size=2048))


MODES = {
    "none": NoSecurity,
    "checksum": ChecksumSecurity,
    "hash": lambda: HashSecurity(bytes(range(32))),
    "sign": _sign,
}


@pytest.fixture(params=MODES)
def security(request):
    return MODES[request.param]()


def slots(security):
    buffer = SlotBuffer(DATAGRAMS, BLOCK, session_id=SESSION, security=security, fw_lead=True)
    source = random.Random(SEED)
    for payload in buffer.payload:
        payload[:] = source.randbytes(BLOCK)
    return buffer


def fill(buffer, first):
    numbers = np.arange(first, first + DATAGRAMS, dtype=np.uint64)
    return buffer.fill(
        0,
        DATAGRAMS,
        op_code=OpCode.ODATA,
        sender_time=1_000,
        client_id=MASTER,
        odata_seq_no=numbers,
        trail_odata_seq_no=1,
        block_number=numbers,
        previous_lead=first - 1,
    )


def parse(batch, security):
    return parse_data(batch, session_id=SESSION, security=security)


# ---------------------------------------------------------------------- batches


def test_build_batch(benchmark, security):
    buffer = slots(security)
    benchmark.extra_info["bytes"] = DATAGRAMS * BLOCK
    datagrams = benchmark(fill, buffer, 1)
    assert len(datagrams) == DATAGRAMS * buffer.segment


def test_parse_batch(benchmark, security):
    buffer = slots(security)
    batch = Batch(memoryview(bytes(fill(buffer, 1))), buffer.segment, SOURCE)
    benchmark.extra_info["bytes"] = DATAGRAMS * BLOCK
    records, leftover, dropped = benchmark(parse, batch, security)
    assert records is not None
    assert len(records) == DATAGRAMS
    assert not len(leftover)
    assert not dropped


def test_parse_batch_with_a_damaged_datagram(benchmark):
    security = ChecksumSecurity()
    buffer = slots(security)
    datagrams = bytearray(fill(buffer, 1))
    datagrams[20 * buffer.segment + 500] ^= 1
    batch = Batch(memoryview(datagrams), buffer.segment, SOURCE)
    records, _, dropped = benchmark(parse, batch, security)
    assert records is not None
    assert len(records) == DATAGRAMS - 1
    assert sum(number for _, number in dropped) == 1


def test_parse_lone_datagram(benchmark):
    security = ChecksumSecurity()
    buffer = slots(security)
    batch = Batch(memoryview(bytes(fill(buffer, 1)))[: buffer.segment], buffer.segment, SOURCE)
    benchmark.extra_info["bytes"] = BLOCK
    records, _, _ = benchmark(parse, batch, security)
    assert records is not None
    assert len(records) == 1


# ---------------------------------------------------------------------- sets of numbers


def test_range_set_grows_at_its_end(benchmark):
    """What a client does with every batch when nothing is lost."""

    def grow():
        numbers = RangeSet()
        for start in range(1, 100 * DATAGRAMS, DATAGRAMS):
            numbers.add(start, start + DATAGRAMS - 1)
        return numbers

    assert len(benchmark(grow)) == 1


def test_range_set_loses_and_repairs(benchmark):
    """4000 numbers, one in a hundred missing for a while: the window of a client at 1 % loss."""
    holes = random.Random(SEED).sample(range(1, 4001), 40)
    order = random.Random(SEED + 1).sample(holes, len(holes))

    def go_round():
        missing = RangeSet()
        for hole in holes:
            missing.add(hole, hole)
        for hole in order:
            missing.remove(hole, hole)
        return missing

    assert not benchmark(go_round)


def test_block_map_takes_an_image_in_order(benchmark):
    """1000 batches of a new image."""

    def fill_up():
        blocks = BlockMap(1000 * DATAGRAMS)
        for first in range(1, blocks.total, DATAGRAMS):
            blocks.add(first, DATAGRAMS)
        return blocks

    assert benchmark(fill_up).complete


def test_block_map_takes_an_image_with_holes(benchmark):
    """1000 batches that lost a datagram each, and then what they lost."""
    source = random.Random(SEED)
    lost = [source.randrange(1, DATAGRAMS - 1) for _ in range(1000)]

    def fill_up():
        blocks = BlockMap(1000 * DATAGRAMS)
        for first, hole in zip(count(1, DATAGRAMS), lost, strict=False):
            blocks.add(first, hole)
            blocks.add(first + hole + 1, DATAGRAMS - hole - 1)
        for first, hole in zip(count(1, DATAGRAMS), lost, strict=False):
            blocks.add(first + hole, 1)
        return blocks

    assert benchmark(fill_up).complete


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_block_map_names_what_is_missing(benchmark, share):
    """The first 64 ranges, which a CNTCIR carries, when this share of a big image is there."""
    source = random.Random(SEED)
    blocks = BlockMap(IMAGE_BLOCKS)
    for block in source.sample(range(1, IMAGE_BLOCKS + 1), int(share * IMAGE_BLOCKS)):
        blocks.add(block, 1)
    assert len(benchmark(blocks.missing, 64)) == (64 if share else 1)


# ---------------------------------------------------------------------- the window


def test_window_follows_acknowledgements_and_losses(benchmark):
    def run():
        window = Window(1024, 4096)
        for turn in range(1000):
            window.acknowledged(DATAGRAMS)
            if turn % 50 == 49:
                window.lost(float(turn), 0.5, turn, turn)
        return window

    assert benchmark(run).size > 1024


def test_sent_packets_are_listed_found_and_forgotten(benchmark):
    """1000 batches: each is recorded, one packet of it is repaired, and old ones go."""

    def run():
        packets = DataPacketList()
        for turn in range(1000):
            first = 1 + turn * DATAGRAMS
            packets.append(SentRun(first, first, DATAGRAMS, float(turn)))
            assert packets.find(first + 7) is not None
            packets.resent(first + 7, float(turn))
            if turn % 20 == 19:
                packets.clean_up(turn - 100.0, first - 10 * DATAGRAMS)
        return packets

    assert len(benchmark(run)) < 200 * DATAGRAMS
