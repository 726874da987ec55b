"""Both sides over real loopback multicast, and peers that say what a test tells them to."""

import random
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

import wdstransport
from wdstransport.wire import application, initiation, transport
from wdstransport.wire.options import capabilities, fw_lead, fw_lead_seq_no
from wdstransport.wire.security import SecurityMode, make_security

HOST = "127.0.0.1"
SEED = 20261120
PATIENCE = 60
"""Seconds until a test that waits for what never comes fails; no test measures time."""


def _has_ipv6():
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")


def image(size, seed=SEED):
    """The same pseudo-random bytes each time."""
    return random.Random(seed).randbytes(size)


class Events(list):
    """Collects events; a test waits for the one it needs."""

    def __init__(self):
        super().__init__()
        self._changed = trio.Event()

    def __bool__(self):
        return True  # an empty one is still somebody to tell

    def __call__(self, event):
        self.append(event)
        self.touch()

    def touch(self):
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def of(self, kind, **fields):
        return [
            event
            for event in self
            if isinstance(event, kind) and all(getattr(event, key) == value for key, value in fields.items())
        ]

    async def wait(self, kind, count=1, **fields):
        """The `count`-th event of a kind with these fields, once it has come."""
        with trio.fail_after(PATIENCE):
            while len(found := self.of(kind, **fields)) < count:
                await self._changed.wait()
        return found[count - 1]


async def until(condition):
    """Let other tasks and processes run until `condition()` is true; what it becomes."""
    with trio.fail_after(PATIENCE):
        while not (found := condition()):
            # Looked at every millisecond, not all the time: who is waited for needs the processor.
            with trio.move_on_after(0.001):
                await trio.sleep_forever()
    return found


class MemoryNamespace:
    """Contents in memory; `files` may be changed at any time."""

    def __init__(self, files, name="images"):
        self.name = name
        self.files = dict(files)
        self.opened = []

    def open(self, content):
        if content not in self.files:
            raise wdstransport.ContentNotFoundError(f"no {content!r}")
        data = self.files[content]
        source = wdstransport.MemorySource(data, content) if isinstance(data, bytes) else data(content)
        self.opened.append(source)
        return source

    def contents(self):
        return [(name, len(data)) for name, data in self.files.items()]


class Sink(wdstransport.MemorySink):
    """Keeps what arrives; a test waits for the first write, holds writes up or lets them fail."""

    def __init__(self):
        super().__init__()
        self.begun = trio.Event()
        self.abandoned = False
        self.fail_at = None
        self.fail_finish = False
        self._token = trio.lowlevel.current_trio_token()

    def write(self, views, offset):
        if self.fail_at is not None and offset + sum(map(len, views)) > self.fail_at:
            raise wdstransport.StorageError("no space left for the test's image")
        super().write(views, offset)
        self._token.run_sync_soon(self.begun.set)

    def finish(self):
        if self.fail_finish:
            raise wdstransport.StorageError("the test's disk cannot be flushed")
        super().finish()

    def abandon(self):
        self.abandoned = True


@dataclass
class Serving:
    """A server under test with its events."""

    server: wdstransport.TransportServer
    events: Events
    namespace: MemoryNamespace

    @property
    def port(self):
        return self.server.port

    @property
    def sessions(self):
        return self.server.statistics().sessions

    @property
    def session(self):
        (only,) = self.sessions
        return only

    async def receive(self, content="image", sink=None, **options):
        """One reception into memory; its bytes."""
        sink = Sink() if sink is None else sink
        await receive(self.port, sink, content, **options)
        return bytes(sink.data)


@asynccontextmanager
async def serving(files, **options):
    """A server on loopback with contents in memory; `files` may also be bytes, offered as `image`."""
    events = Events()
    if isinstance(files, bytes):
        files = {"image": files}
    namespace = files if hasattr(files, "open") else MemoryNamespace(files)
    arguments = {"interface": HOST, "port": 0, "on_event": events, **options}
    with trio.fail_after(PATIENCE):
        async with wdstransport.TransportServer([namespace], **arguments) as server:
            yield Serving(server, events, namespace)


async def receive(port, target, content="image", **options):
    """`wdstransport.receive` from loopback, with patience."""
    with trio.fail_after(PATIENCE):
        return await wdstransport.receive(content, target, **{"server": HOST, "port": port, **options})


class Reception:
    """A reception under way in a nursery: what it told, what came of it, and a way to cancel it."""

    def __init__(self, nursery, port, target=None, content="image", **options):
        self.events = Events()
        self.sink = Sink() if target is None else target
        self.scope = trio.CancelScope()
        self.error = None
        self.result = None
        self.ended = trio.Event()
        nursery.start_soon(self._run, port, content, {"on_event": self.events, **options})

    async def _run(self, port, content, options):
        try:
            with self.scope:
                self.result = await receive(port, self.sink, content, **options)
        except wdstransport.TransportError as error:
            self.error = error
        finally:
            self.ended.set()

    @property
    def data(self):
        return bytes(self.sink.data)


class Peer:
    """A UDP socket that sends and takes packets of one session as values."""

    def __init__(self, security=SecurityMode.CHECKSUM, host=HOST):
        self.sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.raw = self.sock._sock
        self.raw.bind((host, 0))
        self.address = self.raw.getsockname()
        self.security = make_security(security)
        self.session_id = 0
        self.clock = 1000

    def close(self):
        self.sock.close()

    def seal(self, packet, *, session_id=None, sender_time=None):
        """A packet's bytes."""
        self.clock += 1
        return transport.encode(
            packet,
            session_id=self.session_id if session_id is None else session_id,
            sender_time=self.clock if sender_time is None else sender_time,
            security=self.security,
        )

    async def take(self, *kinds):
        """The next packet of one of these kinds, with its header; others are passed over."""
        with trio.fail_after(PATIENCE):
            while True:
                data, source = await self.sock.recvfrom(65536)
                header, packet = transport.decode(data, session_id=self.session_id, security=self.security)
                if isinstance(packet, kinds):
                    return header, packet, source

    def taken(self):
        """Everything that has come, without waiting."""
        found = []
        while True:
            try:
                data, _ = self.raw.recvfrom(65536)
            except BlockingIOError:
                return found
            found.append(transport.decode(data, session_id=self.session_id, security=self.security)[1])


class Client(Peer):
    """A client of a server under test, that does nothing by itself."""

    offer = None
    client_id = None

    async def ask(self, port, content="image", namespace="images"):
        """Initiation: the server's answer."""
        request = initiation.encode(initiation.Request(namespace, content, bytes(6)))
        with trio.fail_after(PATIENCE):
            await self.sock.sendto(request, (HOST, port))
            answer = initiation.decode(await self.sock.recv(4096))
        if isinstance(answer, initiation.Reply):
            self.offer = answer
            self.session_id = answer.session_id
        return answer

    @property
    def server(self):
        return socket.inet_ntoa(self.offer.server_address), self.offer.server_port

    async def say(self, packet, **header):
        await self.sock.sendto(self.seal(packet, **header), self.server)

    async def join(self, name="PEER", demotable=True):
        """JOIN and what answers it; not confirmed yet."""
        options = (capabilities(1),) if demotable else ()
        await self.say(transport.Join(name, socket.inet_aton(HOST), bytes(6), options))
        header, self.acknowledged, _ = await self.take(transport.JoinAck)
        self.client_id = self.acknowledged.client_id
        self.join_ack_time = header.sender_time
        return self.acknowledged

    async def confirm(self):
        """The QCR that makes it an active client."""
        await self.say(transport.Qcr(self.client_id, 0, 0, self.join_ack_time, 0, 0, b""))

    async def enter(self, port, content="image"):
        """Ask, join, confirm."""
        await self.ask(port, content)
        await self.join()
        await self.confirm()

    def hear(self):
        """A peer that hears the session's group."""
        return Group(self.offer, self.security)


class Group(Peer):
    """Hears what a session sends to its group."""

    def __init__(self, offer, security):
        self.session_id = offer.session_id
        self.security = security
        self.sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.raw = self.sock._sock
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.raw.bind((socket.inet_ntoa(offer.multicast_address), offer.multicast_port))
        membership = offer.multicast_address + socket.inet_aton(HOST)
        self.raw.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)


class Server(Peer):
    """A server for a receiver under test: it answers requests and says what a test tells it to."""

    GROUP = "239.192.81.7"

    def __init__(self, data, block_size=1000, security=SecurityMode.CHECKSUM, session_id=7, group=GROUP):
        super().__init__(security)
        self.session_id = session_id
        self.data = data
        self.block_size = block_size
        self.group = group
        self.raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HOST))
        self.raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        self.door = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.door._sock.bind((HOST, 0))
        self.port = self.door._sock.getsockname()[1]
        self.client = None
        self.client_id = 77
        self.lead = 0

    def close(self):
        super().close()
        self.door.close()

    @property
    def total_blocks(self):
        return -(-len(self.data) // self.block_size)

    def offer(self, **changes):
        fields = {
            "multicast_address": socket.inet_aton(self.group),
            "server_address": socket.inet_aton(HOST),
            "multicast_port": self.address[1],
            "server_port": self.address[1],
            "content_size": len(self.data),
            "block_size": self.block_size,
            "total_blocks": self.total_blocks,
            "session_id": self.session_id,
        }
        return initiation.Reply(**{**fields, **changes})

    async def answer(self, reply=None):
        """Answer one request; what it asked."""
        with trio.fail_after(PATIENCE):
            data, source = await self.door.recvfrom(4096)
        await self.door.sendto(initiation.encode(self.offer() if reply is None else reply), source)
        return initiation.decode(data)

    async def admit(self, max_nack_back_off=1):
        """Take a JOIN, give the client its id, take its QCR."""
        header, join, self.client = await self.take(transport.Join)
        await self.say(
            transport.JoinAck(self.client_id, 1, max_nack_back_off, 0, header.sender_time), self.client
        )
        await self.take(transport.Qcr)
        return join

    async def say(self, packet, to=None, **header):
        """Send to the group, or to one address."""
        await self.sock.sendto(self.seal(packet, **header), to or (self.group, self.address[1]))

    def block(self, number, **changes):
        """ODATA with a block of the data."""
        start = (number - 1) * self.block_size
        payload = application.encode(application.Data(number, self.data[start : start + self.block_size]))
        self.lead += 1
        fields = {
            "client_id": self.client_id,
            "odata_seq_no": self.lead,
            "trail_odata_seq_no": 1,
            "data": payload,
            "options": (fw_lead(self.lead - 1),),
        }
        return transport.OData(**{**fields, **changes})

    async def send_blocks(self, numbers):
        for number in numbers:
            await self.say(self.block(number))


class Player:
    """A client that does what the documents ask of it, packet by packet, unless a test tells it otherwise.

    Attributes:
        blocks: what came, by block number.
        sequence: ODATA and RDATA in order of arrival, as (kind, sequence number, block number).
        heard: every other packet.
        lose: says which sequence numbers do not arrive the first time.
    """

    def __init__(self, client):
        self.client = client
        self.group = client.hear()
        self.blocks = {}
        self.sequence = []
        self.heard = []
        self.lose = lambda number: False
        self.acknowledges = True
        self.asks_again = True
        self.master = 0
        self.first = 0
        self.highest = 0
        self.missing = set()
        self.scope = trio.CancelScope()

    def close(self):
        self.group.close()
        self.client.close()

    @property
    def data(self):
        return b"".join(self.blocks[number] for number in sorted(self.blocks))

    @property
    def complete(self):
        return len(self.blocks) == self.client.offer.total_blocks

    def of(self, kind):
        return [packet for packet in self.heard if isinstance(packet, kind)]

    async def run_in_scope(self):
        """`run`, until the scope is cancelled: then it falls silent without a word."""
        with self.scope:
            await self.run()

    async def run(self):
        while True:
            data, _ = await self.group.sock.recvfrom(65536)
            header, packet = transport.decode(
                data, session_id=self.client.session_id, security=self.client.security
            )
            if isinstance(packet, transport.OData | transport.RData):
                await self._on_data(header, packet)
            else:
                self.heard.append(packet)
                await self._on_control(header, packet)

    async def _on_data(self, header, packet):
        number = packet.odata_seq_no
        block = application.decode(packet.data)
        self.sequence.append((packet.op_code.name, number, block.block_number))
        self.master = packet.client_id
        lost = isinstance(packet, transport.OData) and self.lose(number)
        if lost and self.asks_again:
            return
        self._reach(number)
        self.missing.discard(number)
        if not lost:
            self.blocks[block.block_number] = block.data
        lead = fw_lead_seq_no(packet.options)
        await self._answer(header, lead is None or lead >= number)

    def _reach(self, number):
        """Everything up to a number was sent."""
        if not self.first:
            self.first = self.highest = number
        self.missing.update(range(self.highest + 1, number + 1))
        self.highest = max(self.highest, number)

    async def _answer(self, header, acknowledge):
        if self.missing:
            await self.nack(*((each, each) for each in sorted(self.missing)[:80]))
        if acknowledge and self.acknowledges and self.master == self.client.client_id:
            reached = min(self.missing) - 1 if self.missing else self.highest
            await self.client.say(
                transport.Ack(self.client.client_id, reached, header.sender_time, self.highest, 0)
            )

    async def _on_control(self, header, packet):
        if isinstance(packet, transport.Spm):
            self.master = packet.master_client_id
            if self.first or packet.lead_odata_seq_no:
                self._reach(packet.lead_odata_seq_no)
                self.missing = {each for each in self.missing if each >= packet.trail_odata_seq_no}
            await self._answer(header, True)
        elif isinstance(packet, transport.Qcc):
            await self.client.say(
                transport.Qcr(
                    self.client.client_id,
                    packet.qcc_seq_no,
                    0,
                    header.sender_time,
                    self.highest,
                    0,
                    application.encode(application.ProgressReport(1, self._progress())),
                )
            )
        elif isinstance(packet, transport.Poll):
            await self.client.say(
                transport.PollAck(
                    self.client.client_id,
                    packet.poll_seq_no,
                    application.encode(application.CntCir(self._progress(), 1, self._missing())),
                )
            )

    async def nack(self, *ranges):
        await self.client.say(transport.Nack(self.client.client_id, self.highest, 0, tuple(ranges)))

    async def leave(self, reason=transport.LeaveReason.COMPLETE):
        await self.client.say(transport.Leave(self.client.client_id, reason))

    def _progress(self):
        return len(self.blocks) * 100 // self.client.offer.total_blocks

    def _missing(self):
        total = self.client.offer.total_blocks
        missing = [number for number in range(1, total + 1) if number not in self.blocks]
        ranges = []
        for number in missing:
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1] = (ranges[-1][0], number)
            else:
                ranges.append((number, number))
        return tuple(ranges[:64])
