"""Several reads as one batch: what goes together, what is put aside, and where the memory goes."""

import select
import socket
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.net import joining
from wdstransport.net.batching import BatchSender, SlabPool, probe_merging, probe_segmentation
from wdstransport.net.interfaces import find_interface
from wdstransport.net.joining import RunReader
from wdstransport.net.multicast import open_group_socket, open_server_socket
from wdstransport.net.slabs import READ_ROOM

SERVER, OTHER = ("10.0.0.1", 5000), ("10.0.0.2", 5000)
LONG, REPAIR, SHORT = 1000, 900, 60
_UDP_GRO = 104


class Queue:
    """A socket in whose queue is what a test put there, merged or one by one."""

    family = socket.AF_INET

    def __init__(self, *, merge):
        self._merge = merge
        self._waiting = []
        self._number = 0
        self.sent = []
        self.reads = 0

    def setsockopt(self, *_):
        pass

    def put(self, count, segment, *, tail=0, source=SERVER):
        """`count` datagrams, each different, and a shorter one as the kernel appends it to a merged run."""
        sizes = [segment] * count + [tail] * bool(tail)
        datagrams = [
            struct.pack(">I", self._number + place) * (size // 4) for place, size in enumerate(sizes)
        ]
        self._number += len(sizes)
        self.sent += datagrams
        if self._merge:
            self._waiting.append((b"".join(datagrams), segment, source))
        else:
            self._waiting += [(datagram, len(datagram), source) for datagram in datagrams]

    def recvmsg_into(self, buffers, _room):
        if not self._waiting:
            raise BlockingIOError
        data, segment, source = self._waiting.pop(0)
        self.reads += 1
        buffers[0][: len(data)] = data
        told = [(socket.IPPROTO_UDP, _UDP_GRO, struct.pack("=i", segment))] if len(data) > segment else []
        return len(data), told, 0, source

    def recvfrom_into(self, buffer):
        size, _, _, source = self.recvmsg_into((buffer,), 0)
        return size, source


class Line:
    """A queue and who reads it."""

    def __init__(self, *, merge=True, slab_bytes=1 << 20, slabs=3, join_bytes=1 << 19):
        self.queue = Queue(merge=merge)
        self.put = self.queue.put
        self.pool = SlabPool(slab_bytes, slabs)
        self.reader = RunReader(self.queue, self.pool, merge, join_bytes=join_bytes)

    @property
    def sent(self):
        return self.queue.sent

    def batches(self):
        """All that is there, as lists of datagrams; each batch is given back before the next read."""
        found = []
        while (batch := self.reader.read()) is not None:
            found.append([bytes(datagram) for datagram in batch.datagrams()])
            if batch.owner is not None:
                batch.owner.release()
        return found

    def held(self):
        """All that is there, as batches that are held."""
        found = []
        while (batch := self.reader.read()) is not None:
            found.append(batch)
        return found


def contents(batches):
    return [[bytes(datagram) for datagram in batch.datagrams()] for batch in batches]


def flat(batches):
    return [datagram for batch in batches for datagram in batch]


def shapes(batches):
    return [(len(batch), len(batch[0])) for batch in batches]


@pytest.mark.parametrize("merge", [True, False])
def test_runs_of_one_shape_are_one_batch(merge):
    line = Line(merge=merge)
    line.put(60, LONG)
    line.put(60, LONG)
    assert line.batches() == [line.sent]


@pytest.mark.parametrize("merge", [True, False])
def test_what_is_small_is_put_aside_and_follows(merge):
    line = Line(merge=merge)
    for _ in range(3):
        line.put(20, LONG)
        line.put(1, SHORT)
        line.put(5, REPAIR)
    found = line.batches()
    assert sorted(flat(found)) == sorted(line.sent)
    assert shapes(found)[0] == (60, LONG)
    assert flat(found[:1]) == [datagram for datagram in line.sent if len(datagram) == LONG]
    for size in (SHORT, REPAIR):
        assert [each for each in flat(found) if len(each) == size] == [
            each for each in line.sent if len(each) == size
        ]


def test_repairs_in_a_row_stay_together_when_put_aside():
    line = Line(merge=False)
    line.put(10, LONG)
    line.put(6, REPAIR)
    line.put(10, LONG)
    assert shapes(line.batches()) == [(20, LONG), (6, REPAIR)]


def test_what_comes_from_elsewhere_keeps_its_source():
    line = Line()
    line.put(10, LONG)
    line.put(2, LONG, source=OTHER)
    line.put(10, LONG)
    first = line.reader.read()
    second = line.reader.read()
    assert (first.source, len(first.buffer)) == (SERVER, 20 * LONG)
    assert (second.source, len(second.buffer)) == (OTHER, 2 * LONG)


def test_batch_ends_at_what_is_too_large_to_put_aside_and_the_next_goes_on_there(monkeypatch):
    monkeypatch.setattr(joining, "_ASIDE_BYTES", 3 * SHORT)
    line = Line()
    line.put(10, LONG)
    line.put(3, SHORT)  # just fits
    line.put(7, REPAIR)
    line.put(7, REPAIR)
    line.put(2, SHORT)
    line.put(10, LONG)  # does not fit, and joins nothing
    line.put(2, SHORT)
    line.put(2, SHORT)  # does not fit behind the two before
    line.put(10, LONG)
    batches = line.held()
    found = contents(batches)
    assert shapes(found) == [
        (10, LONG),
        (3, SHORT),
        (14, REPAIR),
        (2, SHORT),
        (10, LONG),
        (2, SHORT),
        (2, SHORT),
        (10, LONG),
    ]
    assert flat(found) == line.sent


def test_number_put_aside_is_bounded(monkeypatch):
    monkeypatch.setattr(joining, "_ASIDE", 3)
    line = Line()
    line.put(2, LONG)
    for size in range(4, 40, 4):
        line.put(1, size)
    line.put(2, LONG)
    line.reader.read().owner.release()
    assert line.queue.reads == 1 + 3
    found = [line.sent[:2], *line.batches()]
    assert shapes(found)[:4] == [(2, LONG), (1, 4), (1, 8), (1, 12)]
    assert sorted(flat(found)) == sorted(line.sent)


@pytest.mark.parametrize("limit", [50, 60])
def test_joining_stops_at_its_size(limit):
    line = Line(join_bytes=limit * LONG)
    for _ in range(4):
        line.put(30, LONG)
    assert shapes(line.batches()) == [(60, LONG), (60, LONG)]


def test_everything_goes_back_to_the_pool_and_memory_that_is_held_stays_as_it_is():
    line = Line()
    line.put(30, LONG)
    line.put(1, SHORT)
    line.put(64, REPAIR)
    line.put(64, REPAIR)
    held = line.reader.read()
    before = bytes(held.buffer)
    others = line.batches()
    line.put(64, LONG)
    later = line.batches()
    assert bytes(held.buffer) == before == b"".join(line.sent[:30])
    assert sorted(flat(others) + flat(later)) == sorted(line.sent[30:])
    held.owner.release()
    line.reader.close()
    assert line.pool.in_use == 0


def test_closing_lets_go_of_what_was_not_handed_out(monkeypatch):
    monkeypatch.setattr(joining, "_ASIDE_BYTES", SHORT)
    line = Line()
    line.put(5, LONG)
    line.put(1, SHORT)
    line.put(5, REPAIR)
    line.reader.read().owner.release()
    line.reader.close()
    assert line.pool.in_use == 0
    line.reader.close()
    assert line.reader.read() is None


@given(
    st.lists(
        st.tuples(
            st.integers(1, 60), st.sampled_from([LONG, LONG, REPAIR, SHORT]), st.sampled_from([0, 0, 40])
        ),
        max_size=12,
    ),
    st.booleans(),
    st.sampled_from([1 << 12, 1 << 16, 1 << 19]),
    st.booleans(),
)
@settings(deadline=None)
def test_every_datagram_comes_once_and_in_order_among_its_like(runs, merge, join_bytes, hold):
    line = Line(merge=merge, slab_bytes=1 << 18, slabs=64, join_bytes=join_bytes)
    for count, size, tail in runs:
        line.put(count, size, tail=tail)
    if hold:
        batches = line.held()
        found = flat(contents(batches))
        for batch in batches:
            if batch.owner is not None:
                batch.owner.release()
    else:
        found = flat(line.batches())
    assert sorted(found) == sorted(line.sent)
    assert [each for each in found if len(each) == LONG] == [each for each in line.sent if len(each) == LONG]
    assert line.reader.bytes == sum(map(len, line.sent))
    line.reader.close()
    assert line.pool.in_use == 0


def test_shorter_end_of_a_run_does_not_end_the_batch():
    line = Line()
    line.put(20, LONG, tail=SHORT)
    line.put(20, LONG, tail=REPAIR)
    line.put(20, LONG)
    assert shapes(line.batches()) == [(60, LONG), (1, SHORT), (1, REPAIR)]


def test_real_sockets_lose_nothing_to_joining(sockets):
    interface = find_interface("127.0.0.1")
    server = sockets(open_server_socket, "127.0.0.1", 0, interface, 1, sndbuf=4 << 20, rcvbuf=1 << 20)
    port = server.address[1]
    group = sockets(open_group_socket, "239.192.77.2", port, interface, "127.0.0.1", rcvbuf=8 << 20)
    queue = Queue(merge=True)
    sender = BatchSender(server.sock, probe_segmentation(socket.AF_INET))
    for count, size in ((20, LONG), (1, SHORT), (5, REPAIR), (40, LONG), (1, SHORT), (40, LONG)):
        before = len(queue.sent)
        queue.put(count, size)
        assert sender.send(b"".join(queue.sent[before:]), size, ("239.192.77.2", port))
    reader = RunReader(group.sock, SlabPool(1 << 20, 2), probe_merging(socket.AF_INET))
    found = []
    while len(found) < len(queue.sent):
        assert select.select([group.sock], [], [], 10)[0], "nothing arrived"
        while (batch := reader.read()) is not None:
            found += [bytes(datagram) for datagram in batch.datagrams()]
            if batch.owner is not None:
                batch.owner.release()
    assert sorted(found) == sorted(queue.sent)


def test_shorter_ends_of_one_length_are_one_batch():
    line = Line()
    line.put(20, LONG, tail=SHORT)
    line.put(20, LONG, tail=SHORT)
    assert shapes(line.batches()) == [(40, LONG), (2, SHORT)]


def test_what_follows_a_shorter_end_that_was_put_aside_starts_a_batch_of_its_own():
    line = Line()
    line.put(20, LONG)
    line.put(3, REPAIR, tail=SHORT)
    line.put(3, REPAIR)
    found = line.batches()
    assert shapes(found) == [(20, LONG), (4, REPAIR), (3, REPAIR)]
    assert flat(found) == line.sent


def test_what_is_put_aside_keeps_its_source():
    line = Line()
    line.put(10, LONG)
    line.put(2, SHORT)
    line.put(3, SHORT, source=OTHER)
    line.put(1, SHORT)
    found = [(batch.source, len(batch.buffer)) for batch in line.held()]
    assert found == [(SERVER, 10 * LONG), (SERVER, 2 * SHORT), (OTHER, 3 * SHORT), (SERVER, SHORT)]


def test_batches_that_are_held_stay_as_they_are_while_others_are_read_behind_them():
    line = Line()
    held, sent = [], []
    for count in (3, 20, 7):
        for _ in range(2):
            line.put(count, REPAIR + 4)  # no multiple of a cache line
        held += line.held()
        sent.append(line.sent[-2 * count :])
        assert contents(held) == sent
    for batch in held:
        batch.owner.release()
    line.reader.close()
    assert line.pool.in_use == 0


def test_a_slabs_memory_is_used_from_lines_of_the_cache_on():
    line = Line()
    begun = []
    for _ in range(3):
        for _ in range(2):
            line.put(3, REPAIR + 4)
        batch = line.reader.read()
        begun.append(np.frombuffer(batch.buffer, np.uint8).ctypes.data % 64)
    assert begun == [0, 0, 0]


@pytest.mark.parametrize(("room", "together"), [(LONG - 1, False), (LONG, True)])
def test_reads_are_joined_as_long_as_the_slab_has_room_for_one_more(room, together):
    line = Line(slab_bytes=READ_ROOM + room)
    line.put(1, LONG)
    line.put(1, LONG)
    found = contents(line.held())
    assert found == ([line.sent] if together else [line.sent[:1], line.sent[1:]])


def test_closed_reader_hands_out_nothing_that_it_had_put_aside():
    line = Line()
    line.put(5, LONG)
    line.put(1, SHORT)
    line.reader.read().owner.release()
    line.reader.close()
    assert line.reader.read() is None
