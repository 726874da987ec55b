"""What a batch of data says to every client alike, before it does anything to one.

Runs of packets and repairs are told apart with a few array operations, however many datagrams came together;
`client_transport` applies them one by one (MS-WDSMT 3.2.5.13, 3.2.5.14).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from wdstransport.protocol.events import BlockRun
from wdstransport.wire.batch import DataRecords
from wdstransport.wire.transport import OpCode

__all__ = ["Repairs", "Run", "Stretch", "repairs_of", "runs_of", "stretch_of"]


_RDATA = bytes([OpCode.RDATA])


class Run(NamedTuple):
    """Consecutive sequence numbers with consecutive blocks in consecutive rows, of one kind under one master.

    `trail` is its last packet's.
    """

    start: int
    rows: int
    first_seq: int
    first_block: int
    trail: int
    master: int


class Repairs(NamedTuple):
    """A batch of RDATA alone, under one master and one Trail, above no packet; lists have one entry each.

    `wanted` are the rows that FW_LEAD does not excuse from an ACK; `span` and `content` are the lowest and
    the highest of the numbers and of the blocks.
    """

    numbers: list[int]
    blocks: list[int]
    rows: list[int]
    wanted: list[int]
    trail: int
    master: int
    span: tuple[int, int]
    content: tuple[int, int]

    def runs(self, places: Iterable[int]) -> list[BlockRun]:
        """The blocks at some ascending places in the lists, neighbours in one run."""
        blocks, rows = self.blocks, self.rows
        runs: list[BlockRun] = []
        first_row = first_block = next_row = next_block = 0
        for place in places:
            row, block = rows[place], blocks[place]
            if row != next_row or block != next_block:
                if next_row:
                    runs.append(BlockRun(first_row, next_row - first_row, first_block))
                first_row, first_block = row, block
            next_row, next_block = row + 1, block + 1
        if next_row:
            runs.append(BlockRun(first_row, next_row - first_row, first_block))
        return runs


def repairs_of(records: DataRecords) -> Repairs | None:
    """What a batch of RDATA alone says to every client alike; None where it is another batch."""
    header, sequences = records.header, records.odata_seq_no
    count = len(sequences)
    masters, trails = header["client_id"].tobytes(), header["trail_odata_seq_no"].tobytes()
    if header["op_code"].tobytes() != _RDATA * count or masters != masters[:4] * count:
        return None
    trail = int.from_bytes(trails[-8:], "big")
    numbers, blocks = sequences.tolist(), records.block_number.tolist()
    if trails != trails[-8:] * count or trail > min(numbers):
        return None
    return Repairs(
        numbers,
        blocks,
        records.rows.tolist(),
        np.flatnonzero(records.fw_lead >= sequences).tolist(),
        trail,
        int.from_bytes(masters[:4], "big"),
        (min(numbers), max(numbers)),
        (min(blocks), max(blocks)),
    )


class Stretch(NamedTuple):
    """A batch as it comes while a round streams in: ascending, with the holes that losses left in it.

    Blocks go up as sequence numbers do, all under one master and one Trail: where that moves, each ACK says
    what was continuous under its own packet's.

    Attributes:
        first: the lowest sequence number.
        last: the highest.
        gaps: inclusive ranges of sequence numbers between the two that are not in the batch.
        ahead: what a block's number is more than its packet's.
        runs: (first row, count, first sequence number) of what is between the gaps.
        wanted: the packets that FW_LEAD does not excuse from an ACK (3.2.5.13), by their places.
    """

    first: int
    last: int
    gaps: list[tuple[int, int]]
    ahead: int
    runs: list[tuple[int, int, int]]
    wanted: list[int]
    trail: int
    master: int


_MANY_GAPS = 64
_FAR = 1 << 32


def stretch_of(records: DataRecords) -> Stretch | None:
    """What a batch in order says at a glance; None where `runs_of` has to take it apart."""
    sequences, rows, header = records.odata_seq_no, records.rows, records.header
    count = len(sequences)
    first, last = int(sequences[0]), int(sequences[-1])
    if not 0 < first <= last or last - first >= _FAR or int(rows[-1]) - int(rows[0]) != count - 1:
        return None
    ahead = records.block_number - sequences
    masters, trails = header["client_id"].tobytes(), header["trail_odata_seq_no"].tobytes()
    if ahead.tobytes() != ahead[:1].tobytes() * count or masters != masters[:4] * count:
        return None
    if trails != trails[:8] * count:
        return None
    before = np.flatnonzero(np.diff(sequences) != 1).tolist()
    if len(before) > _MANY_GAPS:
        return None
    row = int(rows[0])
    at, start = 0, first
    gaps: list[tuple[int, int]] = []
    runs: list[tuple[int, int, int]] = []
    for place in before:
        runs.append((row + at, place + 1 - at, start))
        end = start + place - at
        at, start = place + 1, int(sequences[place + 1])
        if start <= end:
            return None
        gaps.append((end + 1, start - 1))
    runs.append((row + at, count - at, start))
    return Stretch(
        first,
        last,
        gaps,
        int(records.block_number[0]) - first,
        runs,
        np.flatnonzero(records.fw_lead >= sequences).tolist(),
        int.from_bytes(trails[-8:], "big"),
        int.from_bytes(masters[:4], "big"),
    )


def runs_of(records: DataRecords) -> list[tuple[Run, list[int]]]:
    """The runs of a batch, which are the same to every client.

    Each comes with the rows in it that FW_LEAD does not excuse from an ACK (3.2.5.13).
    """
    count = len(records)
    sequences, blocks, trails = records.odata_seq_no, records.block_number, records.trail_odata_seq_no
    together = (
        (np.diff(sequences) == 1)
        & (np.diff(blocks) == 1)
        & (np.diff(records.rows) == 1)
        & (np.diff(records.client_id) == 0)
        & (np.diff(records.header["op_code"]) == 0)
    )
    edges = [0, *(np.flatnonzero(~together) + 1).tolist(), count]
    if not int(sequences.min()) or (trails > sequences).any():
        # Trail may move on within a run, but never past the packet that carries it: judge each alone. And no
        # number follows the largest but 0.
        edges = list(range(count + 1))
    starts = edges[:-1]
    lasts = [stop - 1 for stop in edges[1:]]
    wanted = np.flatnonzero(records.fw_lead >= sequences).tolist()
    wanted.append(count)
    place = 0
    runs: list[tuple[Run, list[int]]] = []
    for start, last, first_seq, first_block, trail, master in zip(
        starts,
        lasts,
        sequences[starts].tolist(),
        blocks[starts].tolist(),
        trails[lasts].tolist(),
        records.client_id[lasts].tolist(),
        strict=True,
    ):
        answered = place
        while wanted[place] <= last:
            place += 1
        run = Run(start, last - start + 1, first_seq, first_block, trail, master)
        runs.append((run, wanted[answered:place]))
    return runs
