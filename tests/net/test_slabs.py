import pytest

from wdstransport.errors import UsageError
from wdstransport.net.slabs import READ_ROOM, SlabPool


def small_pool(slabs=2):
    return SlabPool(slab_bytes=READ_ROOM, slabs=slabs)


def test_slab_returns_to_its_pool_only_when_the_last_holder_lets_go():
    pool = small_pool()
    slab = pool.acquire()
    slab.hold()
    slab.release()
    assert pool.in_use == 1
    slab.release()
    assert pool.in_use == 0
    assert pool.acquire() is slab


def test_slab_is_writable_over_its_whole_length():
    slab = small_pool().acquire()
    slab.view[0] = slab.view[-1] = 7
    assert len(slab.view) == READ_ROOM
    assert slab.view.nbytes == READ_ROOM


def test_exhausted_pool_says_no_and_tells_when_a_slab_is_back():
    pool = small_pool(slabs=1)
    told = []
    pool.on_free = lambda: told.append(pool.in_use)
    slab = pool.acquire()
    assert pool.acquire() is None
    slab.release()
    assert told == [0]
    pool.acquire().release()
    assert told == [0]


def test_exhausted_pool_with_nobody_to_tell_hands_out_what_came_back():
    pool = small_pool(slabs=1)
    slab = pool.acquire()
    assert pool.acquire() is None
    slab.release()
    assert pool.acquire() is slab


def test_return_to_a_pool_that_refused_nobody_is_not_told():
    pool = small_pool()
    pool.on_free = lambda: pytest.fail("nobody waits")
    pool.acquire().release()


def test_release_beyond_the_holds_is_refused():
    slab = small_pool().acquire()
    slab.release()
    with pytest.raises(UsageError, match="more often than held"):
        slab.release()


def test_closed_pool_hands_out_nothing_and_leaves_held_slabs_valid():
    pool = small_pool()
    held, free = pool.acquire(), pool.acquire()
    free.release()
    pool.close()
    assert pool.acquire() is None
    held.view[:3] = b"abc"
    assert bytes(held.view[:3]) == b"abc"
    held.release()
    assert pool.in_use == 0
    assert pool.acquire() is None


@pytest.mark.parametrize(("size", "slabs"), [(READ_ROOM - 1, 1), (READ_ROOM, 0)])
def test_pool_that_could_serve_no_read_is_refused(size, slabs):
    with pytest.raises(UsageError):
        SlabPool(size, slabs)
