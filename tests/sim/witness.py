"""What a client is held to, read from the datagrams that reached it and from those that left it.

Like the monitor of a server it asks the session nothing: which sequence numbers came it reads from the
datagrams, which blocks are there it learns from what was handed over to be stored.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from monitor import body_of
from world import World

from wdstransport.wire.batch import Batch

_SPM, _JOIN, _JOINACK, _QCR, _ODATA, _RDATA = 0x01, 0x02, 0x03, 0x05, 0x06, 0x07
_ACK, _NACK, _POLLACK = 0x08, 0x09, 0x0D
_RANGES = 64


class Witness:
    """One client's packets, judged.

    Attributes:
        broken: datagrams that came with a wrong checksum.
    """

    def __init__(
        self,
        world: World,
        name: str,
        session_id: int,
        total_blocks: int,
        have: Iterable[tuple[int, int]],
        *,
        checksums: bool,
    ) -> None:
        self._world, self._name, self._session_id = world, name, session_id
        self._checksums = checksums
        self._there = np.zeros(total_blocks, bool)
        for start, end in have:
            self._there[start - 1 : end] = True
        self.broken = 0
        self._joins: set[bytes] = set()
        self._client_id = b""
        self._begin()

    def _begin(self) -> None:
        self._joined = False
        self._from_the_start = False
        self._first = 0
        self._trail = 0
        self._came: set[int] = set()
        self._highest = 0
        self._lead = 0
        self._continuous = 0

    def moved(self, session_id: int) -> None:
        """A DEMOTE sent it to another session: the blocks stay, the numbers start anew."""
        self._session_id = session_id
        self._joins.clear()
        self._begin()

    # ------------------------------------------------------------------ what reaches the client

    def heard(self, batch: Batch) -> None:
        """Datagrams of its server have reached it."""
        for datagram in batch.datagrams():
            try:
                op_code, body = body_of(datagram)
                if not self._genuine(datagram):
                    self.broken += 1
                elif op_code == _JOINACK:
                    if bytes(body[10:18]) not in self._joins:
                        continue  # for an earlier process of this host at the same port
                    if bytes(body[:4]) != self._client_id:
                        # Of a server that has forgotten it; its numbers may begin anew.
                        self._begin()
                    self._client_id = bytes(body[:4])
                    self._joined = True
                elif self._joined and op_code == _SPM:
                    self._spm(*struct.unpack_from(">QQ", body, 16))
                elif self._joined and op_code in (_ODATA, _RDATA):
                    self._data(*struct.unpack_from(">QQ", body, 4), repair=op_code == _RDATA)
            except (struct.error, ValueError, IndexError):
                self.broken += 1

    def _genuine(self, datagram: memoryview) -> bool:
        at = 5 + int.from_bytes(datagram[3:5])
        if int.from_bytes(datagram[at : at + 4]) != self._session_id:
            return False
        if not self._checksums:
            return True  # bits are turned in sessions with a checksum only
        total = int(np.frombuffer(datagram, np.uint8)[at:].sum(dtype=np.uint64))
        return (
            bytes(datagram[:5]) == b"WD\x03\x00\x04" and int.from_bytes(datagram[5:9]) == ~total & 0xFFFFFFFF
        )

    def _spm(self, trail: int, lead: int) -> None:
        if not self._first and not lead:
            self._from_the_start = True
        elif not self._first:
            self._first = 1 if self._from_the_start else lead
            self._continuous = self._first - 1
        self._lead, self._trail = max(self._lead, lead), max(self._trail, trail)

    def _data(self, seq: int, trail: int, *, repair: bool) -> None:
        if not self._first:
            if repair and not self._from_the_start:
                return  # what a late client missed before it came is no business of its list
            self._first = 1 if self._from_the_start else seq
            self._continuous = self._first - 1
        if seq < self._first:
            return
        self._came.add(seq)
        self._highest = max(self._highest, seq)
        self._lead, self._trail = max(self._lead, seq), max(self._trail, trail)

    def delivered(self, first: int, count: int) -> None:
        """These blocks were handed over to be stored."""
        self._there[first - 1 : first - 1 + count] = True

    # ------------------------------------------------------------------ what leaves the client

    def sent(self, datagram: bytes) -> None:
        """A datagram leaves: it may not say what is not so."""
        op_code, body = body_of(memoryview(datagram))
        if op_code == _JOIN:
            at = 5 + int.from_bytes(datagram[3:5]) + 5
            self._joins.add(datagram[at : at + 8])  # SenderTime, which JOINACK echoes
        elif op_code == _ACK:
            self._acknowledged(*struct.unpack_from(">QQQ", body, 4))
        elif op_code == _QCR:
            if body[38:40] != b"\0\0":  # without a payload it answers JOINACK, and reports nothing (2.2.8.1)
                self._reported(int.from_bytes(body[22:30]))
        elif op_code == _NACK:
            self._reported(int.from_bytes(body[4:12]))
            count = int.from_bytes(body[20:22])
            self._asked([struct.unpack_from(">QQ", body, 22 + 16 * index) for index in range(count)])
        elif op_code == _POLLACK:
            self._answered(body)

    def _acknowledged(self, seq: int, server_time: int, highest: int) -> None:
        """An ACK covers nothing that did not come and can still be repaired (MS-WDSMT 3.2.5.11)."""
        reach = max(self._continuous, self._trail - 1 if self._first else 0)
        while reach + 1 in self._came:
            reach += 1
        self._continuous = reach
        if seq > reach:
            self._world.fail(f"{self._name} acknowledged {seq}, but {reach + 1} never came")
        self._reported(highest)

    def _reported(self, highest: int) -> None:
        """HiODATASeqNo is no higher than what came, or Trail (3.2.5.9, 3.2.5.13)."""
        if highest > max(self._highest, self._trail):
            self._world.fail(f"{self._name} says it received {highest}, but {self._highest} is the highest")

    def _asked(self, ranges: list[tuple[int, int]]) -> None:
        """A NACK names what was sent, did not come and can be repaired, in order (3.2.5.12.1)."""
        before = -1
        for start, end in ranges:
            if not before < start <= end <= self._lead:
                self._world.fail(f"{self._name} asked for {ranges[:5]} where {self._lead} was sent last")
            if start < self._first or end < self._trail:
                self._world.fail(
                    f"{self._name} asked for {start} to {end}, below {self._first}, {self._trail}"
                )
            if not self._came.isdisjoint(range(start, end + 1)):
                self._world.fail(f"{self._name} asked for {start} to {end}, of which some came")
            before = end + 1

    def _answered(self, body: memoryview) -> None:
        """A CNTCIR names the first missing ranges, all of them up to 64 (MS-WDSMA 2.2.3, 3.2.5.4)."""
        cntcir = body[14:]
        count = int.from_bytes(cntcir[8:10])
        ranges = [struct.unpack_from(">QQ", cntcir, 10 + 16 * index) for index in range(count)]
        edges = np.flatnonzero(np.diff(np.concatenate(([1], self._there, [1])).astype(np.int8)))
        missing = [(start + 1, end) for start, end in edges.reshape(-1, 2).tolist()]
        if ranges != missing[:_RANGES]:
            self._world.fail(f"{self._name} says it misses {ranges[:5]}, but it is {missing[:5]}")
        percent = int(self._there.sum()) * 100 // max(1, len(self._there))
        if cntcir[3] != percent:
            self._world.fail(f"{self._name} says it has {cntcir[3]} %, but it is {percent} %")
