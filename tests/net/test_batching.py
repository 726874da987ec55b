import errno
import os
import select
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wdstransport.errors import UsageError
from wdstransport.net import batching
from wdstransport.net.batching import BatchReader, BatchSender, SlabPool, probe_merging, probe_segmentation
from wdstransport.net.interfaces import find_interface, with_zone
from wdstransport.net.multicast import open_client_socket, open_group_socket, open_server_socket
from wdstransport.net.slabs import READ_ROOM

LOOPBACK = "127.0.0.1"
GROUP = "239.192.77.1"
PEER = ("192.0.2.1", 5000)

needs_segmentation = pytest.mark.skipif(
    not probe_segmentation(socket.AF_INET), reason="this kernel has no UDP_SEGMENT"
)
needs_merging = pytest.mark.skipif(not probe_merging(socket.AF_INET), reason="this kernel has no UDP_GRO")


def numbered(count, segment, last=None):
    """`count` datagrams of `segment` bytes, each full of its own number; the last one `last` bytes long."""
    parts = [bytes([number % 256]) * segment for number in range(count)]
    parts[-1] = parts[-1][: last or segment]
    return b"".join(parts)


@pytest.fixture
def pair(sockets):
    """A server's socket on loopback, one client's on the group, and a place to send to."""
    interface = find_interface(LOOPBACK)
    server = sockets(open_server_socket, LOOPBACK, 0, interface, 1, sndbuf=1 << 20, rcvbuf=1 << 20)
    group = sockets(open_group_socket, GROUP, server.address[1], interface, LOOPBACK, rcvbuf=4 << 20)
    return server, group, (GROUP, server.address[1])


def read_all(reader, total):
    """Copies of the batches that bring `total` bytes in all."""
    found = []
    while total > 0:
        batch = reader.read()
        if batch is None:
            raise AssertionError(f"{total} bytes missing")
        found.append((bytes(batch.buffer), batch.segment, batch.source))
        total -= len(batch.buffer)
        batch.owner.release()
    return found


def datagrams_of(found):
    return [data[at : at + segment] for data, segment, _ in found for at in range(0, len(data), segment)]


def split(data, segment):
    return [data[at : at + segment] for at in range(0, len(data), segment)]


# reading


def test_reader_without_anything_to_read_is_not_starved(pair):
    reader = BatchReader(pair[1].sock, SlabPool(), merge=True)
    assert reader.read() is None
    assert not reader.starved


@needs_segmentation
@needs_merging
def test_batch_crosses_in_one_call_each_way(pair, readable):
    server, group, destination = pair
    sender, reader = BatchSender(server.sock, True), BatchReader(group.sock, SlabPool(), True)
    data = numbered(44, 1472, last=700)
    assert sender.send(data, 1472, destination)
    readable(group.sock)
    assert read_all(reader, len(data)) == [(data, 1472, server.address)]
    assert (sender.calls, sender.datagrams, sender.bytes) == (1, 44, len(data))
    assert (reader.calls, reader.bytes) == (1, len(data))


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("segment_ok", [probe_segmentation(socket.AF_INET), False])
def test_datagrams_arrive_the_same_whatever_the_kernel_can(pair, readable, merge, segment_ok):
    server, group, destination = pair
    sender, reader = BatchSender(server.sock, segment_ok), BatchReader(group.sock, SlabPool(), merge)
    data = numbered(70, 1000, last=1)
    assert sender.send(data, 1000, destination)
    readable(group.sock)
    found = read_all(reader, len(data))
    assert datagrams_of(found) == split(data, 1000)
    assert {source for _, _, source in found} == {server.address}
    assert sender.datagrams == 70
    if not segment_ok:
        assert sender.calls == 70


def test_lone_datagram_is_a_batch_of_one(pair, readable):
    server, group, destination = pair
    reader = BatchReader(group.sock, SlabPool(), True)
    BatchSender(server.sock, True).send(b"hello", 1472, destination)
    batch = readable(group.sock) and reader.read()
    assert bytes(batch.buffer) == b"hello"
    assert batch.segment == 5
    assert batch.owner is not None


def test_empty_datagrams_are_passed_over(pair, readable):
    server, group, destination = pair
    reader = BatchReader(group.sock, SlabPool(), True)
    for data in (b"", b"", b"after"):
        server.sock.sendto(data, destination)
    readable(group.sock)
    assert bytes(reader.read().buffer) == b"after"


def test_flood_of_empty_datagrams_lets_the_caller_have_its_turn(pair, readable):
    server, group, destination = pair
    reader = BatchReader(group.sock, SlabPool(), True)
    for _ in range(100):
        server.sock.sendto(b"", destination)
    server.sock.sendto(b"after", destination)
    readable(group.sock)
    assert reader.read() is None
    assert not reader.starved
    assert bytes(reader.read().buffer) == b"after"


def test_held_batches_keep_their_bytes_and_are_aligned(pair, readable):
    server, group, destination = pair
    reader = BatchReader(group.sock, SlabPool(), True)
    held = []
    for number in range(20):
        server.sock.sendto(bytes([number]) * (number + 1), destination)
        held.append(readable(group.sock) and reader.read())
    assert [bytes(batch.buffer) for batch in held] == [bytes([n]) * (n + 1) for n in range(20)]
    assert len({id(batch.owner) for batch in held}) == 1
    assert held[0].owner.holds == 21


def test_memory_is_used_again_once_everybody_let_go(pair, readable):
    server, group, destination = pair
    pool = SlabPool(READ_ROOM, 1)
    reader = BatchReader(group.sock, pool, True)
    for number in range(5):
        server.sock.sendto(bytes([number]), destination)
        batch = readable(group.sock) and reader.read()
        assert bytes(batch.buffer) == bytes([number])
        batch.owner.release()
    assert pool.in_use == 1


def test_exhausted_pool_starves_the_reader_until_a_batch_is_released(pair, readable):
    server, group, destination = pair
    pool = SlabPool(READ_ROOM, 1)
    reader = BatchReader(group.sock, pool, True)
    told = []
    pool.on_free = lambda: told.append(True)
    server.sock.sendto(b"one", destination)
    server.sock.sendto(b"two", destination)
    readable(group.sock)
    first = reader.read()
    for _ in range(2):
        assert reader.read() is None
        assert reader.starved
    assert bytes(first.buffer) == b"one"
    first.owner.release()
    assert told == [True]
    assert bytes(reader.read().buffer) == b"two"
    assert not reader.starved


def test_closed_reader_gives_its_slab_back(pair, readable):
    server, group, destination = pair
    pool = SlabPool()
    reader = BatchReader(group.sock, pool, True)
    server.sock.sendto(b"x", destination)
    batch = readable(group.sock) and reader.read()
    reader.close()
    reader.close()
    assert pool.in_use == 1
    batch.owner.release()
    assert pool.in_use == 0


class BrokenSocket:
    """Reading brings the scripted errors, then one datagram, then nothing."""

    family = socket.AF_INET

    def __init__(self, *script, flags=0):
        self.script, self.flags = list(script), flags

    def setsockopt(self, *_):
        raise OSError(errno.ENOPROTOOPT, "no such option")

    def recvfrom_into(self, room):
        if not self.script:
            raise BlockingIOError
        outcome = self.script.pop(0)
        if outcome is not None:
            raise OSError(outcome, os.strerror(outcome))
        room[:2] = b"ok"
        return 2, PEER


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENOBUFS])
def test_transient_error_on_reading_is_counted_and_passed_over(number):
    reader = BatchReader(BrokenSocket(number, None), SlabPool(), True)
    assert not reader.merge
    assert bytes(reader.read().buffer) == b"ok"
    assert reader.errors == {errno.errorcode[number]: 1}
    assert reader.read() is None


def test_endless_errors_on_reading_do_not_hold_the_caller():
    reader = BatchReader(BrokenSocket(*[errno.ENETDOWN] * 1000), SlabPool(), False)
    assert reader.read() is None
    assert 0 < reader.errors["ENETDOWN"] < 1000


def test_fatal_error_on_reading_is_raised():
    reader = BatchReader(BrokenSocket(errno.EBADF), SlabPool(), False)
    with pytest.raises(OSError, match="Bad file"):
        reader.read()


class TruncatingSocket:
    family = socket.AF_INET

    def __init__(self):
        self.left = [socket.MSG_TRUNC, 0]

    def setsockopt(self, *_):
        pass

    def recvmsg_into(self, rooms, _):
        if not self.left:
            raise BlockingIOError
        rooms[0][:4] = b"data"
        return 4, [], self.left.pop(0), PEER


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname != "Linux", reason="merging is Linux's")
def test_truncated_datagram_is_dropped_and_counted():
    reader = BatchReader(TruncatingSocket(), SlabPool(), True)
    assert bytes(reader.read().buffer) == b"data"
    assert (reader.truncated, reader.calls) == (1, 1)


# sending


@needs_segmentation
def test_batch_beyond_the_limits_is_split_and_arrives_in_order(pair, readable):
    server, group, destination = pair
    sender, reader = BatchSender(server.sock, True), BatchReader(group.sock, SlabPool(), True)
    for count, segment in ((150, 100), (100, 1472)):
        data = numbered(count, segment, last=50)
        calls = sender.calls
        assert sender.send(data, segment, destination)
        readable(group.sock)
        assert datagrams_of(read_all(reader, len(data))) == split(data, segment)
        assert sender.calls - calls == 3


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(min_size=1, max_size=3000),
    segment=st.integers(1, 400),
    blocks_at=st.sets(st.integers(0, 40), max_size=12),
    segments=st.booleans(),
)
def test_retries_after_blocking_send_each_datagram_exactly_once(scripted, data, segment, blocks_at, segments):
    script = [errno.EAGAIN if call in blocks_at else None for call in range(41)]
    sock = scripted(*script)
    sender = BatchSender(sock, segments)
    control = b"control of another session"
    refused = 0
    while not sender.send(data, segment, PEER):
        refused += 1
        sender.send(control, len(control), PEER)
    assert [sent for sent in sock.sent if sent != control] == split(data, segment)
    assert refused <= len(blocks_at)


def test_unfinished_batch_to_somebody_else_starts_from_its_beginning(scripted):
    sock = scripted(None, errno.EAGAIN)
    sender = BatchSender(sock, False)
    data = b"aabb"
    assert not sender.send(data, 2, PEER)
    assert sender.send(data, 2, ("192.0.2.9", 1))
    assert sock.sent == [b"aa", b"aa", b"bb"]


@pytest.mark.parametrize("number", [errno.EMSGSIZE, errno.EINVAL, errno.EIO])
def test_refused_segmentation_falls_back_for_good_and_loses_nothing(scripted, number):
    sock = scripted(refuses_segments=number)
    sender = BatchSender(sock, True)
    for _ in range(2):
        assert sender.send(b"aabbc", 2, PEER)
    assert sock.sent == [b"aa", b"bb", b"c"] * 2
    assert sender.fell_back
    assert not sender.segment_ok
    assert sender.lost == 0
    assert len(sock.calls) == 1 + 6


def test_fall_back_that_would_block_at_once_is_tried_again(scripted):
    sock = scripted(errno.EINVAL, errno.EAGAIN, errno.EINVAL)
    sender = BatchSender(sock, True)
    assert not sender.send(b"aabb", 2, PEER)
    assert sender.segment_ok
    assert sender.send(b"aabb", 2, PEER)
    assert sock.sent == [b"aa", b"bb"]
    assert not sender.segment_ok


def test_error_that_a_lone_datagram_meets_too_does_not_blame_segmentation(scripted):
    sock = scripted(errno.EINVAL, errno.EINVAL)
    sender = BatchSender(sock, True)
    assert sender.send(b"aabb", 2, PEER)
    assert sender.send(b"ccdd", 2, PEER)
    assert sock.sent == [b"cc", b"dd"]
    assert (sender.segment_ok, sender.lost, sender.errors) == (True, 2, {"EINVAL": 1})


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOBUFS, errno.ENETDOWN, errno.ENODEV, errno.EACCES])
def test_transient_error_loses_the_datagram_and_is_counted(scripted, number):
    sock = scripted(number)
    sender = BatchSender(sock, True)
    assert sender.send(b"aabb", 2, PEER)
    assert sock.sent == []
    assert (sender.lost, sender.errors) == (2, {errno.errorcode[number]: 1})
    assert (sender.calls, sender.datagrams, sender.bytes) == (0, 0, 0)


def test_icmp_error_of_an_earlier_datagram_costs_this_one_only_a_second_call(scripted):
    sock = scripted(errno.ECONNREFUSED)
    sender = BatchSender(sock, True)
    assert sender.send(b"aa", 2, PEER)
    assert sock.sent == [b"aa"]
    assert (sender.lost, sender.errors) == (0, {"ECONNREFUSED": 1})


def test_unreachable_network_loses_the_datagram_after_one_retry(scripted):
    sock = scripted(errno.ENETUNREACH, errno.ENETUNREACH)
    sender = BatchSender(sock, True)
    assert sender.send(b"aa", 2, PEER)
    assert (sender.lost, len(sock.calls)) == (1, 2)


@pytest.mark.parametrize("number", [errno.EBADF, errno.EMSGSIZE])
def test_fatal_error_on_sending_is_raised(scripted, number):
    with pytest.raises(OSError, match=os.strerror(number)):
        BatchSender(scripted(number), True).send(b"aa", 2, PEER)


@pytest.mark.parametrize("segment", [0, -1, 65508])
def test_impossible_length_of_a_datagram_is_refused(scripted, segment):
    with pytest.raises(UsageError):
        BatchSender(scripted(), True).send(b"aa", segment, PEER)


def test_nothing_to_send_is_no_call(scripted):
    sock = scripted()
    assert BatchSender(sock, True).send(b"", 2, PEER)
    assert sock.calls == []


def test_full_send_buffer_would_block_and_the_rest_follows():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)

        class Redirected:
            family = socket.AF_INET

            def sendto(self, data, _):
                return near.send(data)

        sender = BatchSender(Redirected(), False)
        data = numbered(2000, 1000)
        got, blocked = [], 0
        while not sender.send(data, 1000, PEER):
            blocked += 1
            got.append(far.recv(2000))
        while len(got) < 2000:
            got.append(far.recv(2000))
        assert blocked
        assert got == split(data, 1000)


def test_datagrams_above_the_mtu_go_one_by_one(pair, readable):
    server, group, destination = pair
    sender, reader = BatchSender(server.sock, True), BatchReader(group.sock, SlabPool(), True)
    data = numbered(2, 65507, last=9000)
    assert sender.send(data, 65507, destination)
    readable(group.sock)
    assert datagrams_of(read_all(reader, len(data))) == split(data, 65507)
    assert sender.calls == 2


def test_ports_nobody_listens_on_disturb_neither_sending_nor_reading(pair, sockets, readable):
    server, _, _ = pair
    gone = sockets(open_client_socket, LOOPBACK, server.address)
    gone.sock.close()
    sender, reader = BatchSender(server.sock, True), BatchReader(server.sock, SlabPool(), True)
    for _ in range(3):
        assert sender.send(b"x", 1, gone.address)
    assert reader.read() is None
    there = sockets(open_client_socket, LOOPBACK, server.address)
    assert sender.send(b"y", 1, there.address)
    assert readable(there.sock).recv(10) == b"y"


# addresses of IPv6


class SixSocket(BrokenSocket):
    family = socket.AF_INET6

    def __init__(self, *sources):
        self.sources = list(sources)

    def recvfrom_into(self, room):
        if not self.sources:
            raise BlockingIOError
        return 1, self.sources.pop(0)


def test_zone_of_a_link_local_source_is_part_of_the_address():
    sources = [("fe80::1", 7, 0, 2), ("fd99::1", 7, 0, 0), ("fe80::1", 7, 0, 2)]
    reader = BatchReader(SixSocket(*sources), SlabPool(), True)
    found = [reader.read().source for _ in sources]
    assert found == [("fe80::1%2", 7), ("fd99::1", 7), ("fe80::1%2", 7)]


def test_endpoints_remembered_are_bounded(scripted, monkeypatch):
    monkeypatch.setattr(batching, "_ENDPOINTS_KEPT", 4)
    reader = BatchReader(SixSocket(*[("fd99::1", port, 0, 0) for port in range(1, 50)]), SlabPool(), False)
    assert [reader.read().source[1] for _ in range(49)] == list(range(1, 50))
    assert len(reader._endpoints) <= 4
    sender = BatchSender(scripted(family=socket.AF_INET6), False)
    for port in range(1, 50):
        sender.send(b"x", 1, ("fd99::1", port))
    assert len(sender._addresses) <= 4


def test_zone_of_a_destination_reaches_the_kernel_as_a_number(scripted):
    sock = scripted(family=socket.AF_INET6)
    BatchSender(sock, False).send(b"x", 1, ("fe80::1%3", 9))
    assert sock.calls == [(1, ("fe80::1", 9, 0, 3))]


@pytest.mark.root
@pytest.mark.parametrize("own", ["fd99::1", "fe80::99"])
def test_ipv6_batch_crosses_a_link(own_network, sockets, readable, own):
    def body(_):
        interface = find_interface("wds0")
        address = with_zone(own, interface)
        server = sockets(open_server_socket, address, 0, interface, 1, sndbuf=1 << 20, rcvbuf=1 << 20)
        group = sockets(open_group_socket, "ff15::7:7", server.address[1], interface, address)
        client = sockets(open_client_socket, address, server.address)
        sender = BatchSender(server.sock, probe_segmentation(socket.AF_INET6))
        reader = BatchReader(group.sock, SlabPool(), True)
        data = numbered(40, 1400, last=3)
        assert sender.send(data, 1400, ("ff15::7:7", server.address[1]))
        readable(group.sock)
        found = read_all(reader, len(data))
        assert datagrams_of(found) == split(data, 1400)
        assert {source for _, _, source in found} == {server.address}
        assert server.address[0] == address
        for _ in range(100):  # a link-local route may appear a moment after its address, on a busy machine
            assert sender.send(b"one", 3, client.address)
            if select.select([client.sock], [], [], 0.1)[0]:
                break
        assert readable(client.sock).recv(10) == b"one"

    own_network(body)


@pytest.mark.root
def test_network_that_vanishes_costs_datagrams_and_nothing_else(own_network, sockets, readable):
    def body(sh):
        interface = find_interface("wds0")
        server = sockets(open_server_socket, "10.99.0.1", 0, interface, 1, sndbuf=1 << 20, rcvbuf=1 << 20)
        group = sockets(open_group_socket, GROUP, server.address[1], interface, "10.99.0.1")
        destination = (GROUP, server.address[1])
        sender = BatchSender(server.sock, probe_segmentation(socket.AF_INET))
        segment_ok = sender.segment_ok
        reader = BatchReader(group.sock, SlabPool(), True)
        sh("ip link set wds0 down")
        assert sender.send(bytes(5000), 1000, destination)
        assert (sender.lost, sender.segment_ok) == (5, segment_ok)
        assert set(sender.errors) <= {"ENETUNREACH", "ENETDOWN"}
        assert reader.read() is None
        sh("ip link set wds0 up")
        assert sender.send(bytes(5000), 1000, destination)
        readable(group.sock)
        assert len(datagrams_of(read_all(reader, 5000))) == 5
        sh("ip link del wds0")
        assert sender.send(bytes(5000), 1000, destination)
        assert sender.lost == 10
        assert reader.read() is None

    own_network(body)


@pytest.mark.root
def test_link_narrower_than_the_datagrams_falls_back_to_fragments(own_network, sockets, readable):
    def body(sh):
        interface = find_interface("wds0")
        server = sockets(open_server_socket, "10.99.0.1", 0, interface, 1, sndbuf=1 << 20, rcvbuf=1 << 20)
        group = sockets(open_group_socket, GROUP, server.address[1], interface, "10.99.0.1")
        sender = BatchSender(server.sock, True)
        reader = BatchReader(group.sock, SlabPool(), True)
        data = numbered(4, 8872)
        assert sender.send(data, 8872, (GROUP, server.address[1]))
        assert (sender.fell_back, sender.lost, sender.datagrams) == (True, 0, 4)
        readable(group.sock)
        assert datagrams_of(read_all(reader, len(data))) == split(data, 8872)

    own_network(body)
