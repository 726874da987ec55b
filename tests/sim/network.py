"""A star of hosts around one switch: each has a path up to it and a path down from it, with its own troubles.

A path carries batches, and everything that can befall a datagram befalls single datagrams of them. Whoever
loses nothing shares the sender's memory; only what was hit is copied.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from world import World

from wdstransport.wire.batch import Batch

if TYPE_CHECKING:
    from pcapng import Capture

Address = tuple[str, int]

FRAME_OVERHEAD = 66
"""Bytes a datagram costs on the wire besides itself: IPv4 20, UDP 8, Ethernet 18, preamble and gap 20."""


def packed(ip: str) -> bytes:
    """An IPv4 address as 4 bytes."""
    return bytes(int(part) for part in ip.split("."))


def unpacked(ip: bytes) -> str:
    """And back."""
    return ".".join(str(part) for part in ip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """Gilbert and Elliott: a good state without loss and a bad one; shares are chances per datagram."""

    enter: float
    leave: float
    loss: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What one path is like; times in seconds, rates in bytes per second, shares are chances per datagram."""

    rate: float | None = None
    queue: int = 1 << 20
    """Bytes that wait for the link; what finds no room is dropped."""
    latency: float = 0.0001
    jitter: float = 0.0
    """Up to so much more latency; the order stays, as on one cable."""
    loss: float = 0.0
    bursts: Bursts | None = None
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_delay: float = 0.005
    bit_error: float = 0.0
    """A datagram arrives with one bit turned, as if no lower checksum had noticed."""
    blocked: bool = False


class Chance:
    """Which of the next datagrams something happens to: gaps are drawn, not datagrams."""

    def __init__(self, share: float, rng: random.Random) -> None:
        self._log = math.log1p(-share) if 0 < share < 1 else -math.inf if share >= 1 else 0.0
        self._rng = rng
        self.left = self._gap()
        """How many datagrams nothing happens to before the next hit."""

    def _gap(self) -> float:
        if not self._log:
            return math.inf
        return int(math.log(1.0 - self._rng.random()) / self._log)

    def hits(self, count: int) -> list[int]:
        """Places, among the next `count` datagrams, of those that are hit."""
        if self.left >= count:
            self.left -= count
            return []
        found = []
        while self.left < count:
            found.append(int(self.left))
            self.left += 1 + self._gap()
        self.left -= count
        return found


class BurstChance:
    """The same for losses in bursts."""

    def __init__(self, bursts: Bursts, rng: random.Random) -> None:
        self._bursts, self._rng = bursts, rng
        self._bad = False
        self._left = self._stay()

    def _stay(self) -> int:
        share = self._bursts.leave if self._bad else self._bursts.enter
        if share <= 0:
            return 1 << 62
        return 1 + (0 if share >= 1 else int(math.log(1.0 - self._rng.random()) / math.log1p(-share)))

    def hits(self, count: int) -> list[int]:
        """Places, among the next `count` datagrams, of those that are lost."""
        found: list[int] = []
        place = 0
        while place < count:
            run = min(self._left, count - place)
            if self._bad:
                found += [p for p in range(place, place + run) if self._rng.random() < self._bursts.loss]
            place += run
            self._left -= run
            if not self._left:
                self._bad = not self._bad
                self._left = self._stay()
        return found


Parcel = tuple[float, memoryview, int]
"""When a batch arrives, its bytes, and the bytes of each of its datagrams."""


@dataclass(slots=True)
class Remnant(Batch):
    """What is left of a batch that lost datagrams on its way; `kept` are the places of the others in it."""

    whole: Batch | None = None
    kept: tuple[int, ...] = ()


class Path:
    """One direction between a host and the switch.

    Attributes:
        free_at: when the link has sent all that was accepted, virtual seconds.
        swallow: which datagrams vanish, whatever the conditions; None for none.
        counts: what happened to datagrams, by name.
        kept: places of what arrived of the batch carried last, when losses were all that befell it.
    """

    def __init__(self, conditions: Conditions, rng: random.Random) -> None:
        self._rng = rng
        self.free_at = 0.0
        self.swallow: Callable[[memoryview], bool] | None = None
        self.counts: Counter[str] = Counter()
        self.kept: tuple[int, ...] = ()
        self._last_arrival = 0.0
        self.conditions = conditions
        self.set()

    def set(self, **changes: object) -> None:
        """Change conditions from now on."""
        self.conditions = conditions = replace(self.conditions, **changes)  # type: ignore[arg-type]
        self._loss = Chance(conditions.loss, self._rng)
        self._bursts = BurstChance(conditions.bursts, self._rng) if conditions.bursts else None
        self._duplicate = Chance(conditions.duplicate, self._rng)
        self._reorder = Chance(conditions.reorder, self._rng)
        self._bit_error = Chance(conditions.bit_error, self._rng)
        self._only_loss = not (
            conditions.bursts or conditions.duplicate or conditions.reorder or conditions.bit_error
        )
        self._simple = (
            self._only_loss and conditions.rate is not None and not (conditions.blocked or conditions.jitter)
        )
        self._rate, self._latency = conditions.rate or 0.0, conditions.latency
        self._queue_limit = conditions.queue

    def unharmed(self, wire: int, count: int, first: float, now: float) -> float | None:
        """When a batch arrives, if it arrives whole.

        The usual case of `carry`, which is to be asked where this says None and has changed nothing.

        Args:
            wire: its bytes, and those that its datagrams cost besides.
            count: its datagrams.
            first: when the first of them began to come, virtual seconds.
            now: when the last has come.
        """
        chance = self._loss
        if not self._simple or self.swallow is not None or chance.left < count:
            return None
        start = self.free_at
        if start < first:
            start = first
        if (start - first) * self._rate + wire > self._queue_limit:
            return None
        free = start + wire / self._rate
        if free < now:
            free = now
        chance.left -= count
        self.free_at = free
        self._last_arrival = arrival = free + self._latency
        return arrival

    def carry(self, buffer: memoryview, segment: int, now: float, span: float = 0.0) -> list[Parcel]:
        """Take a batch whose last datagram came at `now` and whose first `span` seconds before it."""
        conditions = self.conditions
        count = -(-len(buffer) // segment)
        self.kept = ()
        if conditions.blocked:
            self.counts["blocked"] += count
            return []
        if self.swallow is not None:
            kept = [
                row for row in range(count) if not self.swallow(buffer[row * segment : (row + 1) * segment])
            ]
            self.counts["swallowed"] += count - len(kept)
            if not kept:
                return []
            if len(kept) < count:
                buffer, count = self._rows(buffer, segment, kept, set()), len(kept)
        keep: list[int] | None = None
        when = now
        if conditions.rate is not None:
            keep, when = self._queue(buffer, segment, count, now, span)
            if keep == []:
                return []
        arrival = when + conditions.latency
        if conditions.jitter:
            arrival = max(self._last_arrival, arrival + self._rng.uniform(0, conditions.jitter))
        self._last_arrival = arrival
        left = count if keep is None else len(keep)
        lost = self._loss.hits(left)
        if self._only_loss and not lost and keep is None:
            return [(arrival, buffer, segment)]
        if self._bursts is not None:
            lost = sorted({*lost, *self._bursts.hits(left)})
        later = self._reorder.hits(left)
        twice = self._duplicate.hits(left)
        flipped = self._bit_error.hits(left)
        if keep is None and not (lost or later or twice or flipped):
            return [(arrival, buffer, segment)]
        self.counts["lost"] += len(lost)
        rows = list(range(count)) if keep is None else keep
        return self._troubled(buffer, segment, rows, lost, later, twice, flipped, arrival)

    def _queue(
        self, buffer: memoryview, segment: int, count: int, now: float, span: float
    ) -> tuple[list[int] | None, float]:
        """Which datagrams find room, and when the last of them is through."""
        rate = self.conditions.rate
        assert rate is not None
        wire = len(buffer) + count * FRAME_OVERHEAD
        first = now - span
        start = max(self.free_at, first)
        if (start - first) * rate + wire <= self.conditions.queue:
            self.free_at = max(start + wire / rate, now)
            return None, self.free_at
        each = segment + FRAME_OVERHEAD
        kept = []
        free = self.free_at
        for place in range(count):
            come = first + span * (place + 1) / count
            free = max(free, come)
            if (free - come) * rate + each <= self.conditions.queue:
                free += each / rate
                kept.append(place)
        self.counts["overflow"] += count - len(kept)
        self.free_at = free
        return (None if len(kept) == count else kept), max(free, now)

    def _troubled(
        self,
        buffer: memoryview,
        segment: int,
        keep: list[int],
        lost: list[int],
        later: list[int],
        twice: list[int],
        flipped: list[int],
        arrival: float,
    ) -> list[Parcel]:
        gone = {*lost, *later}
        parcels: list[Parcel] = []
        stay = [row for place, row in enumerate(keep) if place not in gone]
        turned = {keep[place] for place in flipped}
        if stay:
            parcels.append((arrival, self._rows(buffer, segment, stay, turned), segment))
            if self._only_loss and self.swallow is None:
                self.kept = tuple(stay)
        delay = self.conditions.reorder_delay
        for place in later:
            if place not in lost:
                self.counts["reordered"] += 1
                row = self._rows(buffer, segment, [keep[place]], turned)
                parcels.append((arrival + self._rng.uniform(0, delay), row, len(row)))
        for place in twice:
            if place not in lost:
                self.counts["duplicated"] += 1
                row = self._rows(buffer, segment, [keep[place]], turned)
                parcels.append((arrival + self._rng.uniform(0, delay), row, len(row)))
        self.counts["flipped"] += len(flipped)
        return parcels

    def _rows(self, buffer: memoryview, segment: int, rows: list[int], turned: set[int]) -> memoryview:
        """A copy of some datagrams, in order."""
        size = len(buffer)
        if size % segment == 0:
            matrix = np.frombuffer(buffer, np.uint8).reshape(-1, segment)
            copy = matrix[rows].ravel()
        else:
            copy = np.concatenate(
                [np.frombuffer(buffer[row * segment : (row + 1) * segment], np.uint8) for row in rows]
            )
        if turned:
            for place, row in enumerate(rows):
                if row in turned:
                    length = min(segment, len(copy) - place * segment)
                    bit = self._rng.randrange(length * 8)
                    copy[place * segment + bit // 8] ^= 1 << bit % 8
        return memoryview(copy)


class Socket(Protocol):
    """What a batch is delivered to."""

    def arrived(self, batch: Batch, *, multicast: bool) -> None:
        """Take it."""


class Node(Protocol):
    """What the network knows of a host."""

    ip: str
    up: Path
    down: Path
    sockets: dict[int, Socket]

    def deliver(self, socket: Socket, batch: Batch, *, multicast: bool) -> None:
        """Hand a batch to one of its sockets, if the host lives."""


class Network:
    """The switch, who is attached to it, and which groups they joined."""

    def __init__(self, world: World, capture: Capture | None = None) -> None:
        self.world = world
        self.capture = capture
        self.nodes: dict[str, Node] = {}
        self._groups: defaultdict[Address, dict[str, list[Socket]]] = defaultdict(dict)

    def attach(self, node: Node) -> None:
        """Connect a host."""
        self.nodes[node.ip] = node

    def join(self, group: Address, node: Node, socket: Socket) -> None:
        """Let a socket of a host receive a group's datagrams."""
        self._groups[group].setdefault(node.ip, []).append(socket)

    def leave(self, group: Address, node: Node, socket: Socket) -> None:
        """Undo `join`; nothing when it was not done."""
        sockets = self._groups[group].get(node.ip, [])
        if socket in sockets:
            sockets.remove(socket)
            if not sockets:
                del self._groups[group][node.ip]

    def send(self, node: Node, port: int, to: Address, buffer: memoryview, segment: int) -> None:
        """Send a batch from a host; `buffer` must not change any more."""
        source = (node.ip, port)
        if self.capture is not None:
            self.capture.record(self.world.now, node.ip, source, to, buffer, segment)
        rate = node.up.conditions.rate
        for arrival, part, part_segment in node.up.carry(buffer, segment, self.world.now):
            span = 0.0
            if rate is not None:
                span = (len(part) + -(-len(part) // part_segment) * FRAME_OVERHEAD) / rate
            self.world.at(arrival, self._forward, source, to, part, part_segment, span)

    def _forward(self, source: Address, to: Address, buffer: memoryview, segment: int, span: float) -> None:
        """At the switch: onto the path down to whoever gets it."""
        now = self.world.now
        whole = Batch(buffer, segment, source)
        if to in self._groups:
            targets = [(self.nodes[ip], sockets) for ip, sockets in self._groups[to].items()]
        elif to[0] in self.nodes and to[1] in self.nodes[to[0]].sockets:
            node = self.nodes[to[0]]
            targets = [(node, [node.sockets[to[1]]])]
        else:
            return
        multicast = to in self._groups
        size = len(buffer)
        count = -(-size // segment)
        wire, first = size + count * FRAME_OVERHEAD, now - span
        together: defaultdict[float, list[tuple[Node, Socket, Batch]]] = defaultdict(list)
        for node, sockets in targets:
            path = node.down
            arrival = path.unharmed(wire, count, first, now)
            if arrival is not None:
                for socket in sockets:
                    together[arrival].append((node, socket, whole))
                continue
            for arrival, part, part_segment in path.carry(buffer, segment, now, span):
                batch = whole
                if path.kept:
                    batch = Remnant(part, part_segment, source, None, whole, path.kept)
                elif part is not buffer:
                    batch = Batch(part, part_segment, source)
                for socket in sockets:
                    together[arrival].append((node, socket, batch))
        for arrival, deliveries in together.items():
            self.world.at(arrival, self._deliver, to, multicast, deliveries)

    def _deliver(self, to: Address, multicast: bool, deliveries: list[tuple[Node, Socket, Batch]]) -> None:
        for node, socket, batch in deliveries:
            if self.capture is not None:
                self.capture.record(self.world.now, node.ip, batch.source, to, batch.buffer, batch.segment)
            node.deliver(socket, batch, multicast=multicast)
