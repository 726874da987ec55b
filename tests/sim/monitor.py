"""What a server is held to, read from its packets by a parser of its own.

Nothing here asks the server what it thinks: what clients reported and asked for is read from the datagrams
that reached it, what it sent from those that left.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict

import numpy as np
from world import World

_HEADER = struct.Struct(">IBQ")
_SPM, _POLL, _POLLACK, _NACK = 0x01, 0x0C, 0x0D, 0x09
NAMES = {
    0x01: "SPM",
    0x02: "JOIN",
    0x03: "JOINACK",
    0x04: "QCC",
    0x05: "QCR",
    0x06: "ODATA",
    0x07: "RDATA",
    0x08: "ACK",
    0x09: "NACK",
    0x0A: "NCF",
    0x0B: "LEAVE",
    0x0C: "POLL",
    0x0D: "POLLACK",
    0x0E: "KICK",
    0x0F: "DEMOTE",
}
BIN = 0.1
"""Seconds over which peaks of load are counted."""


def body_of(datagram: memoryview) -> tuple[int, memoryview]:
    """OpCode, and what follows the session header."""
    at = 5 + int.from_bytes(datagram[3:5])
    _, op_code, _ = _HEADER.unpack_from(datagram, at)
    return op_code, datagram[at + _HEADER.size :]


class Monitor:
    """One server session's packets, counted and judged.

    Attributes:
        packets: datagrams the server sent, by name.
        wire: their bytes, UDP payloads.
        content: bytes of content in ODATA.
        received: datagrams that reached the server, by name.
        received_bytes: their bytes.
        round_blocks: blocks sent as ODATA in each round.
        round_wanted: blocks that clients reported missing before each round.
        useless_repairs: RDATA for a number nobody had asked for since it was last sent.
    """

    def __init__(self, world: World, total_blocks: int) -> None:
        self._world = world
        self.packets: Counter[str] = Counter()
        self.wire: Counter[str] = Counter()
        self.content = 0
        self.received: Counter[str] = Counter()
        self.received_bytes: Counter[str] = Counter()
        self.round_blocks: list[int] = []
        self.round_wanted: list[int] = []
        self.useless_repairs = 0
        self.repairs_by_block = np.zeros(total_blocks + 1, np.uint32)
        self.peaks: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._wanted = np.zeros(total_blocks + 1, bool)
        self._poll = 0
        self._plan = -1
        self._highest_seq = 0
        self._asked: dict[int, int] = {}
        self._sent_block: dict[int, int] = {}

    # ------------------------------------------------------------------ what reaches the server

    def heard(self, datagram: memoryview, joined: bool) -> None:
        """A datagram reached the server, from the address of one that joined and was not removed, or not."""
        try:
            op_code, body = body_of(datagram)
            name = NAMES.get(op_code, "other")
            self.received[name] += 1
            self.received_bytes[name] += len(datagram)
            self.peaks[name][int(self._world.now / BIN)] += 1
            if op_code == _POLLACK and joined:
                self._poll_ack(body)
            elif op_code == _NACK and joined:
                count = int.from_bytes(body[20:22])
                for index in range(count):
                    start, end = struct.unpack_from(">QQ", body, 22 + 16 * index)
                    for seq in range(start, min(end, start + 65535) + 1):
                        self._asked[seq] = self._asked.get(seq, 0) + 1
        except (struct.error, ValueError):
            self.received["broken"] += 1

    def _poll_ack(self, body: memoryview) -> None:
        _, seq_no, size = struct.unpack_from(">IQH", body)
        if seq_no != self._poll:
            return
        cntcir = body[14 : 14 + size]
        count = int.from_bytes(cntcir[8:10])
        for index in range(count):
            start, end = struct.unpack_from(">QQ", cntcir, 10 + 16 * index)
            self._wanted[start : end + 1] = True

    # ------------------------------------------------------------------ what leaves the server

    def control(self, datagram: bytes) -> None:
        """A control datagram leaves."""
        op_code, body = body_of(memoryview(datagram))
        name = NAMES[op_code]
        self.packets[name] += 1
        self.wire[name] += len(datagram)
        if op_code == _POLL:
            self._poll = int.from_bytes(body[:8])
            self._wanted[:] = False
        elif op_code == _SPM:
            trail, lead = struct.unpack_from(">QQ", body, 16)
            self._world.require(trail <= lead, f"SPM with Trail {trail} above Lead {lead}")

    def odata(self, plan: int, first_seq: int, first_block: int, count: int, wire: int, content: int) -> None:
        """ODATA leaves: only for blocks that somebody reported missing, and once a round."""
        world = self._world
        self.packets["ODATA"] += count
        self.wire["ODATA"] += wire
        self.content += content
        if plan != self._plan:
            self._plan = plan
            self.round_blocks.append(0)
            self.round_wanted.append(int(self._wanted.sum()))
            self._left = self._wanted.copy()
        self.round_blocks[-1] += count
        blocks = self._left[first_block : first_block + count]
        if not blocks.all():
            world.fail(f"ODATA for blocks {first_block} to {first_block + count - 1}, which nobody misses")
        blocks[:] = False
        # The first number of a session is the server's choice; from then on they are consecutive.
        if self._highest_seq and first_seq != self._highest_seq + 1:
            world.fail(f"ODATA {first_seq} after {self._highest_seq}")
        self._highest_seq = first_seq + count - 1
        for place in range(count):
            self._sent_block[first_seq + place] = first_block + place

    def rdata(self, repairs: list[tuple[int, int]], wire: int) -> None:
        """RDATA leaves: the block of that number, and only if somebody asked for it since."""
        self.packets["RDATA"] += len(repairs)
        self.wire["RDATA"] += wire
        for seq, block in repairs:
            self.repairs_by_block[block] += 1
            before = self._sent_block.get(seq)
            if before != block:
                self._world.fail(f"RDATA {seq} carries block {block}, ODATA carried {before}")
            if not self._asked.pop(seq, 0):
                self.useless_repairs += 1

    # ------------------------------------------------------------------ summaries

    @property
    def wire_bytes(self) -> int:
        """Bytes of UDP payload the server sent."""
        return sum(self.wire.values())

    def peak(self, name: str) -> int:
        """Most datagrams of a kind that reached the server within `BIN` seconds."""
        return max(self.peaks[name].values(), default=0)
