"""Buffers: memory on loan, valid until its end, an error afterwards, and never a stale byte."""

import gc
import pickle
import queue
import threading
import weakref

import numpy as np
import pytest

from wdstransport import wdstci as w
from wdstransport.handles.buffers import BufferRegistry, Loans
from wdstransport.net.slabs import SlabPool
from wdstransport.wire.batch import Batch


def ended(view):
    with pytest.raises(ValueError, match="released"):
        view[0]
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    return True


def keeping(kept, **options):
    """A ReceiveContents that keeps every view, and extends what `options` says."""

    def in_contents(consumer, view, size, offset):
        kept.append((offset, view))
        if options.get("extend"):
            w.AddRefBuffer(view)
        consumer.take(view, size, offset)

    return in_contents


def test_a_view_is_read_only_bytes_of_the_block(consume):
    def in_contents(consumer, view, size, offset):
        assert view.readonly
        assert (view.format, view.itemsize, view.ndim, view.contiguous) == ("B", 1, 1, True)
        assert view == consumer.content[offset : offset + size]
        with pytest.raises(TypeError):
            view[0] = 1
        consumer.take(view, size, offset)

    consume(in_contents=in_contents).run().assert_whole()


def test_blocks_are_delivered_without_a_copy(consume):
    consumer = consume("image")
    loans = consumer.handle._session.transfer.loans
    consumer.run().assert_whole()
    assert loans.copied == 0


def test_a_view_ends_when_its_callback_returns(consume):
    kept = []
    consumer = consume(in_contents=keeping(kept)).run()
    consumer.assert_whole()
    assert len(kept) == len(consumer.blocks)
    assert all(ended(view) for _, view in kept)


def test_a_view_of_an_earlier_block_has_ended_when_the_next_comes(consume):
    kept = []

    def in_contents(consumer, view, size, offset):
        assert all(ended(earlier) for earlier in kept)
        kept.append(view)
        consumer.take(view, size, offset)

    consume(in_contents=in_contents).run().assert_whole()


def test_a_view_ends_when_its_callback_raises(consume):
    kept = []

    def in_contents(consumer, view, size, offset):
        kept.append(view)
        raise OSError("disk full")

    assert consume(in_contents=in_contents).run().outcome == w.WDSTPC_E_UNKNOWN_ERROR
    assert ended(kept[0])


def test_an_extended_view_outlives_callback_completion_and_handle(consume):
    kept = []
    consumer = consume("image", in_contents=keeping(kept, extend=True)).run()
    consumer.assert_whole()
    w.CloseSession(consumer.handle)
    consume("image").run().assert_whole()  # somebody else's blocks pass by meanwhile
    for offset, view in kept:
        assert view == consumer.content[offset : offset + len(view)]
        w.ReleaseBuffer(view)
        assert ended(view)


def test_each_addref_wants_its_release(consume, refused):
    kept = []

    def in_contents(consumer, view, size, offset):
        for _ in range(3):
            w.AddRefBuffer(view)
        w.ReleaseBuffer(view)
        kept.append(view)

    consumer = consume(in_contents=in_contents).run()
    view = kept[0]
    w.ReleaseBuffer(view)
    w.AddRefBuffer(view)
    w.ReleaseBuffer(view)
    assert len(bytes(view)) == consumer.blocks[0][0]
    for each in kept[1:]:
        w.ReleaseBuffer(each)
        w.ReleaseBuffer(each)
    w.ReleaseBuffer(view)
    assert all(ended(each) for each in kept)
    for call in (w.AddRefBuffer, w.ReleaseBuffer):
        with refused(w.ERROR_INVALID_PARAMETER):
            call(view)


def test_release_without_addref_is_invalid_parameter(consume, refused):
    def in_contents(consumer, view, size, offset):
        with refused(w.ERROR_INVALID_PARAMETER, "ReleaseBuffer"):
            w.ReleaseBuffer(view)
        consumer.take(view, size, offset)

    consume(in_contents=in_contents).run().assert_whole()


@pytest.mark.parametrize("call", ["AddRefBuffer", "ReleaseBuffer"])
@pytest.mark.parametrize("wrong", [None, b"bytes", memoryview(b"mine"), 5])
def test_what_is_no_buffer_is_invalid_parameter(library, refused, call, wrong):
    with refused(w.ERROR_INVALID_PARAMETER, call):
        getattr(w, call)(wrong)


def test_a_slice_is_not_the_buffer(consume, refused):
    def in_contents(consumer, view, size, offset):
        for part in (view[1:], view[:], memoryview(view)):
            with refused(w.ERROR_INVALID_PARAMETER, "AddRefBuffer"):
                w.AddRefBuffer(part)
        consumer.take(view, size, offset)

    consume(in_contents=in_contents).run().assert_whole()


def test_completing_a_block_does_not_end_its_buffer_nor_the_other_way_round(consume):
    kept = []
    consumer = consume(in_contents=keeping(kept, extend=True)).run()
    for offset, view in kept:
        assert view == consumer.content[offset : offset + len(view)]
        w.ReleaseBuffer(view)
    lazy = consume(in_contents=lambda consumer, view, size, offset: None).run()
    for size, offset in lazy.blocks:
        w.CompleteReceive(lazy.handle, size, offset)


DERIVED = {
    "a slice": lambda view: view[1:-1],
    "a slice of a slice": lambda view: view[:][1:-1],
    "another view": lambda view: memoryview(view)[1:-1],
    "a cast": lambda view: view.cast("B")[1:-1],
    "an array": lambda view: np.frombuffer(view, np.uint8)[1:-1],
    "an array by asarray": lambda view: np.asarray(view)[1:-1],
    "a buffer object": pickle.PickleBuffer,
    "the view's own exporter": lambda view: np.asarray(view.obj),
}


@pytest.mark.parametrize("how", DERIVED)
def test_what_a_consumer_derived_from_a_view_never_shows_other_bytes(consume, how):
    kept = []

    def in_contents(consumer, view, size, offset):
        part = DERIVED[how](view)
        kept.append((part, bytes(part)))
        consumer.take(view, size, offset)

    # Far more than the pool has: whatever is not held is overwritten.
    consume("image", cache=4000 * 100, in_contents=in_contents).run().assert_whole()
    for _ in range(3):
        consume("image").run().assert_whole()
    assert len(kept) > 200
    for part, was in kept:
        assert bytes(part) == was


def test_a_view_that_is_being_read_ends_once_its_reader_is_done():
    """A system call in another thread, or anything else that has the view itself open."""
    registry = BufferRegistry()
    view = memoryview(bytes(range(10)))
    reader = pickle.PickleBuffer(view)
    registry.returned(registry.lend(view, 1, 0))
    assert bytes(view) == bytes(range(10))
    another = memoryview(b"another")
    registry.returned(registry.lend(another, 1, 10))
    assert ended(another)
    reader.release()
    registry.sweep()
    assert ended(view)


def test_references_counted_within_the_callback_do_not_end_the_view_before_it_returns():
    registry = BufferRegistry()
    view = memoryview(b"content")
    buffer = registry.lend(view, 1, 0)
    for _ in range(2):
        registry.add_ref(view)
        registry.release(view)
        assert bytes(view) == b"content"
    registry.returned(buffer)
    assert ended(view)


def test_view_ends_with_the_last_of_its_references_after_the_callback():
    registry = BufferRegistry()
    view = memoryview(b"content")
    buffer = registry.lend(view, 1, 0)
    registry.add_ref(view)
    registry.add_ref(view)
    registry.returned(buffer)
    registry.release(view)
    assert bytes(view) == b"content"
    registry.release(view)
    assert ended(view)
    with pytest.raises(w.WdsTransportClientError, match="ReleaseBuffer: this buffer has ended"):
        registry.release(view)


def test_what_could_not_be_ended_is_forgotten_once_it_has():
    registry = BufferRegistry()
    view = memoryview(bytes(10))
    reader = pickle.PickleBuffer(view)
    registry.returned(registry.lend(view, 1, 0))
    registry.sweep()
    assert len(registry._stuck) == 1, "it is still read"
    reader.release()
    registry.sweep()
    assert registry._stuck == []


def test_closing_ends_every_view_and_names_those_that_were_extended():
    registry = BufferRegistry()
    views = [memoryview(bytes(10)) for _ in range(2)]
    for place, view in enumerate(views):
        registry.lend(view, 3, 10 * place)
        registry.add_ref(view)
    assert registry.close() == ["10 bytes at offset 0 of session 3", "10 bytes at offset 10 of session 3"]
    assert all(ended(view) for view in views)
    assert registry.close() == []


# ---------------------------------------------------------------------- the pool


class Pool:
    """Slabs filled batch by batch, as the reader does it."""

    def __init__(self, limit, slabs):
        self.pool = SlabPool(1 << 16, slabs)
        self.woken = 0
        self.loans = Loans(limit, self._notify)
        self.filled = 0

    def _notify(self):
        self.woken += 1

    def collect(self):
        """What the trio thread does with what came back."""
        while self.loans.returned:
            self.loans.returned.popleft().release()

    def batch(self):
        slab = self.pool.acquire()
        assert slab is not None, "the reader starves"
        self.filled += 1
        slab.view[:] = bytes([self.filled % 251]) * len(slab.view)
        return Batch(slab.view[:3000], 1000, ("server", 1), slab)

    def lend(self):
        """One batch, lent; its blocks, and what settles it."""
        batch = self.batch()
        whole, loan = self.loans.lend(batch)
        blocks = [whole[start : start + 1000] for start in range(0, 3000, 1000)]
        if loan is None:
            blocks = [memoryview(bytes(block)) for block in blocks]
        whole.release()
        return batch, loan, blocks


def test_memory_comes_back_when_nobody_sees_it():
    pool = Pool(limit=2, slabs=1)
    for _ in range(20):
        batch, loan, blocks = pool.lend()
        for block in blocks:
            block.release()
        pool.loans.settle(batch, loan)
        pool.collect()
        assert pool.pool.in_use == 0
    assert pool.woken == 20


def test_one_view_keeps_its_batch():
    pool = Pool(limit=2, slabs=2)
    batch, loan, (kept, *others) = pool.lend()
    for block in others:
        block.release()
    pool.loans.settle(batch, loan)
    pool.collect()
    assert pool.pool.in_use == 1
    kept.release()
    pool.collect()
    assert pool.pool.in_use == 0


def test_beyond_the_limit_blocks_are_copies_and_the_reader_never_starves():
    pool = Pool(limit=3, slabs=4)
    kept = []
    for number in range(1, 51):
        batch, loan, (first, *others) = pool.lend()
        assert (loan is None) == (number > 3)
        for block in others:
            block.release()
        del block, others
        kept.append((first, number))
        pool.loans.settle(batch, loan)
        pool.collect()
        assert pool.pool.in_use <= 3
    for view, number in kept:
        assert bytes(view) == bytes([number % 251]) * 1000
    first = kept.pop(0)[0]
    first.release()
    pool.collect()
    # Room again: no copy.
    _, loan, _ = pool.lend()
    assert loan is not None


def test_memory_that_only_a_cycle_keeps_comes_back_with_the_collector():
    pool = Pool(limit=2, slabs=1)
    batch, loan, (kept, *others) = pool.lend()
    cycle = [kept]
    cycle.append(cycle)
    del kept, others, cycle
    pool.loans.settle(batch, loan)
    gc.collect()
    pool.collect()
    assert pool.pool.in_use == 0


def test_after_the_session_nothing_is_given_back_and_what_is_seen_stays():
    pool = Pool(limit=2, slabs=1)
    batch, loan, (kept, *others) = pool.lend()
    pool.loans.settle(batch, loan)
    pool.loans.close()
    assert bytes(kept) == bytes([1]) * 1000
    del others
    kept.release()
    assert not pool.loans.returned


def test_after_the_session_its_memory_goes_with_the_last_view_of_it():
    pool = Pool(limit=2, slabs=1)
    batch, loan, (kept, *others) = pool.lend()
    memory = weakref.ref(batch.owner.view)
    pool.loans.settle(batch, loan)
    pool.loans.close()
    del batch, loan, others
    kept.release()
    del kept
    assert memory() is None


def test_a_consumer_that_keeps_every_block_gets_them_all_and_bounded_pool_memory(consume, make_server):
    server = make_server()
    server.contents["large"] = np.random.default_rng(1).bytes(24 << 20)
    kept = []
    consumer = consume.func(server, "large", in_contents=keeping(kept, extend=True))
    loans = consumer.handle._session.transfer.loans
    consumer.run().assert_whole()
    assert loans.copied > 0
    for offset, view in kept:
        assert view == consumer.content[offset : offset + len(view)]
        w.ReleaseBuffer(view)


# ---------------------------------------------------------------------- Shutdown


def test_shutdown_says_which_buffers_were_not_released_and_ends_them(consume, library):
    kept = []
    consumer = consume("image", in_contents=keeping(kept, extend=True)).run()
    for _, view in kept[20:]:
        w.ReleaseBuffer(view)
    with pytest.raises(w.WdsTransportClientError) as caught:
        library.Shutdown()
    assert caught.value.winerror == w.ERROR_BUSY
    size, offset = consumer.blocks[0]
    assert f"{size} bytes at offset {offset} of session" in str(caught.value)
    assert "and 10 more" in str(caught.value)
    assert all(ended(view) for _, view in kept)
    with pytest.raises(w.WdsTransportClientError) as caught:
        w.QueryStatus(consumer.handle)
    assert caught.value.winerror == w.WDSTPC_E_NOT_INITIALIZED


def test_buffers_released_from_the_outside_while_the_session_runs(consume):
    """AddRef in the callback, work and ReleaseBuffer elsewhere: what AddRefBuffer is for."""
    jobs = queue.SimpleQueue()
    consumer = consume(
        "image",
        cache=64 << 10,
        in_contents=lambda consumer, view, size, offset: (
            w.AddRefBuffer(view),
            jobs.put((view, size, offset)),
        ),
        in_complete=lambda consumer, error: jobs.put(None),
    )

    def work():
        while (job := jobs.get()) is not None:
            view, size, offset = job
            consumer.take(view, size, offset)
            w.ReleaseBuffer(view)

    worker = threading.Thread(target=work)
    worker.start()
    consumer.run()
    worker.join()
    consumer.assert_whole()
