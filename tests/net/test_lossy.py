"""Losing datagrams on purpose."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.net.lossy import Lossy
from wdstransport.wire.batch import Batch

SOURCE = ("127.0.0.1", 5000)


class Owner:
    def hold(self):
        pass

    def release(self):
        pass


def batch_of(datagrams, segment):
    return Batch(memoryview(b"".join(datagrams)), segment, SOURCE, Owner())


def numbered(count, segment, last=None):
    rows = [bytes([number % 256]) * segment for number in range(count)]
    if last is not None:
        rows[-1] = rows[-1][:last]
    return rows


def test_a_share_of_zero_loses_nothing():
    lossy = Lossy(0.0, random.Random(1))
    batch = batch_of(numbered(44, 100), 100)
    assert not any(lossy.loses() for _ in range(1000))
    assert list(lossy.thin(batch)) == [batch]
    assert lossy.lost == 0


def test_a_batch_that_loses_nothing_is_handed_on_itself():
    lossy = Lossy(1e-9, random.Random(1))
    batch = batch_of(numbered(44, 100), 100)
    (same,) = lossy.thin(batch)
    assert same is batch


def test_what_is_left_is_a_copy_that_nobody_owns():
    lossy = Lossy(0.5, random.Random(1))
    batch = batch_of(numbered(44, 100), 100)
    (rest,) = lossy.thin(batch)
    assert rest.owner is None
    assert rest.source == SOURCE
    assert not set(map(id, [rest.buffer.obj])) & {id(batch.buffer.obj)}


def test_about_the_share_is_lost_and_counted():
    lossy = Lossy(0.05, random.Random(7))
    sent, arrived = 0, 0
    for _ in range(500):
        batch = batch_of(numbered(40, 10), 10)
        sent += 40
        arrived += sum(len(rest.buffer) // 10 for rest in lossy.thin(batch))
    assert sent - arrived == lossy.lost
    assert 0.04 < lossy.lost / sent < 0.06
    lost_alone = sum(lossy.loses() for _ in range(20_000))
    assert 0.04 < lost_alone / 20_000 < 0.06
    assert lossy.lost == sent - arrived + lost_alone


def test_one_seed_loses_the_same_datagrams_every_time_and_another_seed_others():
    def survivors(seed):
        lossy = Lossy(0.3, random.Random(seed))
        rows = [bytes(rest.buffer) for _ in range(5) for rest in lossy.thin(batch_of(numbered(44, 8), 8))]
        return rows, [lossy.loses() for _ in range(50)]

    assert survivors(1) == survivors(1)
    assert survivors(1) != survivors(2)


def test_a_batch_that_is_lost_altogether_leaves_nothing_behind():
    lossy = Lossy(0.999999, random.Random(1))
    assert list(lossy.thin(batch_of(numbered(10, 100), 100))) == []
    assert lossy.lost == 10


@pytest.mark.parametrize("length", [1, 99, 100])
def test_a_datagram_alone_is_lost_or_whole(length):
    lossy = Lossy(0.5, random.Random(3))
    for _ in range(50):
        rest = list(lossy.thin(Batch(memoryview(bytes(length)), length, SOURCE)))
        assert [len(each.buffer) for each in rest] in ([], [length])


@settings(max_examples=60)
@given(
    count=st.integers(1, 60),
    segment=st.integers(1, 50),
    short=st.integers(1, 50),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_what_is_left_is_whole_datagrams_in_their_order(count, segment, short, share, seed):
    rows = numbered(count, segment, min(short, segment))
    lossy = Lossy(share, random.Random(seed))
    rest = [bytes(each) for batch in lossy.thin(batch_of(rows, segment)) for each in batch.datagrams()]
    remaining = iter(rows)
    assert all(row in remaining for row in rest)  # a subsequence
    assert len(rest) + lossy.lost == count
