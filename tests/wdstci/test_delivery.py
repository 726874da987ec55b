"""What the callback thread makes of a batch: each block once, at its place, and the memory back."""

from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from wdstransport.handles.buffers import BufferRegistry, Loans
from wdstransport.handles.constants import (
    ERROR_CANCELLED,
    ERROR_SUCCESS,
    WDS_TRANSPORTCLIENT_RECEIVE_CONTENTS,
    WDS_TRANSPORTCLIENT_SESSION_COMPLETE,
    WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE,
    WDS_TRANSPORTCLIENT_SESSION_START,
    WDS_TRANSPORTCLIENT_SESSION_STARTEX,
    WDSTPC_E_UNKNOWN_ERROR,
)
from wdstransport.handles.delivery import CallbackThread
from wdstransport.handles.records import TRANSPORTCLIENT_SESSION_INFO
from wdstransport.net.slabs import SlabPool
from wdstransport.protocol.events import BlockRun, BlocksArrived
from wdstransport.wire.batch import Batch

HEADER, BLOCK, SEGMENT = 7, 100, 110


class Delivery:
    """A session with nothing behind it: what its inbox holds is delivered in the test's own thread."""

    def __init__(self, *, limit=4):
        self.pool = SlabPool(1 << 17, 4)
        self.seen = []
        self.views = []
        self.cancel_after = None
        self.look = None
        self.loans = Loans(limit, lambda: None)
        self.session = SimpleNamespace(
            number=1,
            handle=None,
            caller_data=None,
            settings=None,
            cancel_code=None,
            outstanding={},
            runtime=SimpleNamespace(buffers=BufferRegistry()),
            transfer=SimpleNamespace(
                inbox=SimpleQueue(),
                loans=self.loans,
                block_size=BLOCK,
                code=ERROR_SUCCESS,
                delivered_one=lambda: None,
            ),
            callbacks={
                WDS_TRANSPORTCLIENT_RECEIVE_CONTENTS: self._contents,
                WDS_TRANSPORTCLIENT_SESSION_COMPLETE: lambda *_: None,
            },
            completing=lambda code: code,
            completed=lambda: None,
        )

    def _contents(self, _handle, _data, view, size, offset):
        self.seen.append((offset, bytes(view)))
        self.views.append(view)
        assert size == len(view)
        if len(self.seen) == self.cancel_after:
            self.session.cancel_code = ERROR_CANCELLED
        if self.look is not None:
            self.look(view)

    def deliver(self, *runs, block_len=BLOCK, owner=True, mark=0):
        """Runs of blocks, each datagram with its row's number and `mark` all through."""
        rows = max(row + count for row, count, _ in runs)
        data = b"".join(
            b"h" * HEADER + bytes([mark + row]) * block_len + b"t" * (SEGMENT - HEADER - block_len)
            for row in range(rows)
        )
        buffer, slab = memoryview(data), None
        if owner:
            slab = self.pool.acquire()
            buffer = slab.view[: len(data)]
            buffer[:] = data
        count = sum(count for _, count, _ in runs)
        batch = Batch(buffer, SEGMENT, ("10.0.0.1", 1), slab)
        event = BlocksArrived(batch, [BlockRun(*run) for run in runs], count, HEADER, block_len, 0)
        self.session.transfer.inbox.put(event)
        self.session.transfer.inbox.put(None)
        del event, buffer, batch
        CallbackThread(self.session).run()

    def give_back(self):
        while self.loans.returned:
            self.loans.returned.popleft().release()
        return self.pool.in_use


@pytest.mark.parametrize("owner", [True, False])
def test_runs_of_a_batch_are_delivered_block_by_block_each_where_it_belongs(owner):
    delivery = Delivery()
    delivery.deliver((1, 2, 5), (4, 1, 9), (6, 3, 2), owner=owner)
    assert delivery.seen == [
        ((block - 1) * BLOCK, bytes([row]) * BLOCK)
        for row, block in ((1, 5), (2, 6), (4, 9), (6, 2), (7, 3), (8, 4))
    ]
    assert delivery.session.outstanding == {offset: BLOCK for offset, _ in delivery.seen}
    assert delivery.loans.copied == 0
    assert delivery.give_back() == 0
    for view in delivery.views:
        with pytest.raises(ValueError, match="released"):
            view[0]


def test_shorter_last_block_belongs_behind_the_whole_ones():
    delivery = Delivery()
    delivery.deliver((0, 1, 4), block_len=30)
    assert delivery.seen == [(3 * BLOCK, bytes(30))]
    assert delivery.session.outstanding == {3 * BLOCK: 30}


def test_session_that_is_cancelled_within_a_batch_gets_no_further_block_of_it():
    delivery = Delivery()
    delivery.cancel_after = 2
    delivery.deliver((0, 1, 1), (2, 3, 3))
    assert [offset for offset, _ in delivery.seen] == [0, 2 * BLOCK]
    assert delivery.give_back() == 0


def test_cancelled_session_gets_no_batch_and_its_memory_goes_back():
    delivery = Delivery()
    delivery.session.cancel_code = ERROR_CANCELLED
    delivery.deliver((0, 3, 1))
    assert delivery.seen == []
    assert delivery.give_back() == 0


def test_blocks_are_copied_and_counted_only_where_too_many_slabs_are_pinned():
    delivery = Delivery(limit=1)
    kept = []
    delivery.look = lambda view: kept.append(view[10:20])
    delivery.deliver((0, 2, 1))
    assert (delivery.loans.copied, delivery.give_back()) == (0, 1)
    delivery.deliver((1, 2, 3))
    assert (delivery.loans.copied, delivery.give_back()) == (2, 1)
    delivery.deliver((5, 1, 5), mark=100)  # where the second batch lay
    assert [bytes(part) for part in kept] == [bytes([row]) * 10 for row in (0, 1, 1, 2, 105)]


# ---------------------------------------------------------------------- the start

STARTS = (
    WDS_TRANSPORTCLIENT_SESSION_START,
    WDS_TRANSPORTCLIENT_SESSION_STARTEX,
    WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE,
)
INFO = TRANSPORTCLIENT_SESSION_INFO(950, BLOCK)


class Start(Delivery):
    """What the callbacks about the start see, in which order, and when the transfer may go on."""

    def __init__(self, *registered, cancel_in=None, raise_in=None):
        super().__init__()
        self.told = []
        session = self.session

        def end(code):
            self.told.append(("end", code))
            session.cancel_code = code

        def callback(which):
            def called(_handle, _data, *arguments):
                self.told.append((which.name, *arguments))
                if which is cancel_in:
                    session.cancel_code = ERROR_CANCELLED
                if which is raise_in:
                    raise RuntimeError("a consumer's mistake")

            return called

        def begin_negotiation(size):
            self.told.append(("begin", size))
            return "key"

        session.end = end
        session.begin_negotiation = begin_negotiation
        session.end_negotiation = lambda: self.told.append(("end of negotiation",))
        session.transfer.opened = lambda: self.told.append(("opened",))
        for which in registered:
            session.callbacks[which] = callback(which)

    def open(self):
        self.session.transfer.inbox.put(INFO)
        self.session.transfer.inbox.put(None)
        CallbackThread(self.session).run()
        return self.told


def test_start_is_told_in_three_ways_and_the_transfer_goes_on_after_them():
    assert Start(*STARTS).open() == [
        ("WDS_TRANSPORTCLIENT_SESSION_START", 950),
        ("WDS_TRANSPORTCLIENT_SESSION_STARTEX", INFO),
        ("begin", 950),
        ("WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE", INFO, "key"),
        ("end of negotiation",),
        ("opened",),
    ]


def test_nobody_negotiates_where_nobody_registered_for_it():
    assert Start(WDS_TRANSPORTCLIENT_SESSION_STARTEX).open() == [
        ("WDS_TRANSPORTCLIENT_SESSION_STARTEX", INFO),
        ("opened",),
    ]


@pytest.mark.parametrize(("place", "told"), [(0, 1), (1, 2)])
def test_session_cancelled_in_a_callback_about_the_start_gets_no_further_one(place, told):
    start = Start(*STARTS, cancel_in=STARTS[place])
    assert [name for name, *_ in start.open()] == [*(which.name for which in STARTS[:told]), "opened"]


def test_session_cancelled_before_its_start_gets_no_callback_about_it():
    start = Start(*STARTS)
    start.session.cancel_code = ERROR_CANCELLED
    assert start.open() == [("opened",)]


def test_negotiation_that_raises_ends_and_the_session_with_it(caplog):
    start = Start(*STARTS, raise_in=WDS_TRANSPORTCLIENT_SESSION_NEGOTIATE)
    assert start.open()[-3:] == [("end", WDSTPC_E_UNKNOWN_ERROR), ("end of negotiation",), ("opened",)]
    assert "SESSION_NEGOTIATE" in caplog.text
