"""A transfer as its driver's consumer: credits, memory given back, when to leave, when to wake."""

from types import SimpleNamespace

import pytest
import trio

from wdstransport.errors import NobodyAnsweredError
from wdstransport.handles.constants import (
    ERROR_CANCELLED,
    ERROR_SUCCESS,
    WDSTPC_E_KICKED_UNKNOWN,
    WdsTransportClientError,
)
from wdstransport.handles.transfer import _LEAST_LIMIT, Transfer
from wdstransport.protocol.events import Departed, Left
from wdstransport.protocol.ranges import RangeSet
from wdstransport.wire.application import DATA_HEADER_LEN
from wdstransport.wire.transport import KickReason


class Desk:
    """A transfer without a network: what would run in the trio thread is noted, and run by the test."""

    def __init__(self, *, cache_size=1 << 20):
        self.soon = []
        settings = SimpleNamespace(cache_size=cache_size, server="server")
        self.session = SimpleNamespace(
            settings=settings, cancel_code=None, runtime=SimpleNamespace(soon=self.soon.append)
        )
        self.transfer = Transfer(self.session)
        self.left = []
        self.woken = []
        self.driver = SimpleNamespace(
            session=SimpleNamespace(leave=lambda why, now: self.left.append((why, now))),
            wake=lambda: self.woken.append(True),
        )
        self.transfer._driver = self.driver

    def finish(self, arrived=0, delivered=0):
        for _ in range(arrived):
            self.transfer.arrived(SimpleNamespace())
        for _ in range(delivered):
            self.transfer.delivered_one()
        self.transfer.all_received()


@pytest.fixture
async def desk():
    return Desk()


async def test_credits_are_collected_once_and_charged_with_a_header_each(desk):
    assert desk.transfer.collect() is None
    desk.transfer.credit(1000)
    desk.transfer.credit(500)
    (event,) = desk.transfer.collect()
    assert event.count * event.block_len == 1500
    assert event.charged == 1500 + 2 * DATA_HEADER_LEN
    assert desk.transfer.collect() is None


async def test_memory_that_nobody_sees_is_given_back_on_the_way(desk):
    released = []
    owner = SimpleNamespace(release=lambda: released.append(True))
    desk.transfer.loans.returned.extend([owner, owner])
    assert desk.transfer.collect() is None
    assert len(released) == 2


async def test_it_leaves_once_when_everything_that_arrived_is_delivered(desk, autojump_clock):
    desk.finish(arrived=2, delivered=1)
    desk.transfer.collect()
    assert desk.left == []
    desk.transfer.delivered_one()
    desk.transfer.collect()
    desk.transfer.collect()
    assert desk.left == [(Left.COMPLETE, trio.current_time())]


async def test_what_is_delivered_before_all_has_come_is_no_end(desk):
    desk.transfer.arrived(SimpleNamespace())
    desk.transfer.delivered_one()
    desk.transfer.collect()
    assert desk.left == []


async def test_a_cancelled_session_does_not_leave_as_complete(desk):
    desk.session.cancel_code = ERROR_CANCELLED
    desk.finish()
    desk.transfer.collect()
    assert desk.left == []
    assert desk.transfer.about_to_sleep()


async def test_whatever_waits_forbids_to_sleep(desk):
    transfer = desk.transfer
    assert transfer.about_to_sleep()
    transfer.awake()
    transfer.credit(5)
    assert not transfer.about_to_sleep()
    transfer.collect()
    transfer.loans.returned.append(SimpleNamespace(release=lambda: None))
    assert not transfer.about_to_sleep()
    transfer.collect()
    desk.finish()
    assert not transfer.about_to_sleep()
    transfer.collect()
    assert desk.left
    assert transfer.about_to_sleep(), "it has left: nothing waits any more"


@pytest.mark.parametrize("news", ["credit", "delivered"])
async def test_news_wakes_a_sleeping_driver_once_and_no_other(desk, news):
    transfer = desk.transfer
    tell = {"credit": lambda: transfer.credit(1), "delivered": transfer.delivered_one}[news]
    tell()
    assert desk.soon == []
    transfer.collect()
    assert transfer.about_to_sleep()
    tell()
    tell()
    assert len(desk.soon) == 1
    desk.soon[0]()
    assert desk.woken == [True]
    transfer.collect()
    assert transfer.about_to_sleep()
    transfer.awake()
    tell()
    assert len(desk.soon) == 1


async def test_news_after_a_sleep_that_was_forbidden_wakes_nobody(desk):
    desk.transfer.credit(1)
    assert not desk.transfer.about_to_sleep()
    desk.transfer.credit(1)
    assert desk.soon == []


async def test_a_wake_that_comes_after_the_driver_is_nothing(desk):
    desk.transfer._driver = None
    desk.transfer._wake()
    desk.finish()
    assert desk.transfer.collect() is None
    assert desk.left == []


async def test_who_has_not_joined_in_time_leaves_and_who_has_does_not(desk):
    transfer = desk.transfer
    transfer._join_by = 30.0
    assert transfer._turn(29.0) == 30.0
    assert desk.left == []
    assert transfer._turn(30.0) == float("inf")
    assert desk.left == [(Left.INACTIVE, 30.0)]
    assert desk.woken == [True]
    other = Desk()
    other.transfer._join_by = 30.0
    other.transfer.joined(7)
    assert other.transfer._turn(31.0) == float("inf")
    assert other.left == []


def offer(size, block_size=100):
    total = -(-size // block_size)
    return SimpleNamespace(content_size=size, block_size=block_size, total_blocks=total)


@pytest.mark.parametrize(
    ("required", "size", "have"),
    [
        ([], 950, []),
        ([(0, 1)], 950, [(2, 10)]),
        ([(99, 2)], 950, [(3, 10)]),
        ([(100, 100)], 950, [(1, 1), (3, 10)]),
        ([(0, 100), (500, 100)], 950, [(2, 5), (7, 10)]),
        ([(949, 1)], 950, [(1, 9)]),
        ([(0, 950)], 950, []),
    ],
)
async def test_blocks_outside_the_required_ranges_need_not_come(desk, required, size, have):
    for start, length in required:
        desk.transfer.require(start, length)
    assert list(desk.transfer._not_required(offer(size))) == have


async def test_of_no_bytes_no_block_is_left_out(desk):
    desk.transfer._required = RangeSet()
    assert list(desk.transfer._not_required(offer(0))) == []


async def test_how_a_session_departed_becomes_a_code_or_an_error(desk):
    transfer = desk.transfer
    assert transfer._departed(Departed(Left.COMPLETE)) == ERROR_SUCCESS
    assert transfer._departed(Departed(Left.CANCELLED)) == ERROR_CANCELLED
    with pytest.raises(NobodyAnsweredError, match="nobody let this client join"):
        transfer._departed(Departed(Left.INACTIVE))
    transfer.joined(1)
    with pytest.raises(NobodyAnsweredError, match="30 seconds"):
        transfer._departed(Departed(Left.INACTIVE))
    with pytest.raises(NobodyAnsweredError, match="has not answered this client for two minutes"):
        transfer._departed(Departed(Left.UNHEARD))
    codes = set()
    for reason in (None, *KickReason):
        with pytest.raises(WdsTransportClientError, match="removed this client") as caught:
            transfer._departed(Departed(Left.KICKED, reason))
        codes.add(caught.value.winerror)
    assert WDSTPC_E_KICKED_UNKNOWN in codes
    assert len(codes) > 2


@pytest.mark.parametrize(("cache_size", "limit"), [(1, 1), (64 << 20, 64), ((64 << 20) + 1, 65)])
async def test_pinned_slabs_are_as_many_as_the_cache_could_fill(cache_size, limit):
    assert Desk(cache_size=cache_size).transfer._limit == max(_LEAST_LIMIT, limit)


async def test_a_transfer_wants_blocks_in_any_order(desk):
    assert desk.transfer.horizon() is None
