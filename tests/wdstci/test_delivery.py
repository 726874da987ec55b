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
)
from wdstransport.handles.delivery import CallbackThread
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
