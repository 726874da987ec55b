"""What a batch of data says to every client alike, before it does anything to one.

Runs of packets and repairs are told apart with a few array operations, however many datagrams came together;
`client_transport` applies them one by one (MS-WDSMT 3.2.5.13, 3.2.5.14).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wdstransport.wire.batch import DataRecords

__all__ = ["Repairs", "Run", "repairs_of", "runs_of"]


class Run(NamedTuple):
    """Consecutive sequence numbers with consecutive blocks in consecutive rows, under one master.

    `trail` is its last packet's.
    """

    start: int
    rows: int
    first_seq: int
    first_block: int
    trail: int
    master: int


class Repairs(NamedTuple):
    """A batch of RDATA alone, under one master, none with a Trail above itself; lists have one entry each.

    `trail` is its last packet's; `wanted` are the rows that FW_LEAD does not excuse from an ACK; `span` and
    `content` are the lowest and the highest of the numbers and of the blocks.
    """

    numbers: list[int]
    blocks: list[int]
    rows: list[int]
    wanted: frozenset[int]
    trail: int
    master: int
    span: tuple[int, int]
    content: tuple[int, int]


def repairs_of(records: DataRecords) -> Repairs | None:
    """What a batch of RDATA alone says to every client alike; None where it is another batch."""
    sequences = records.odata_seq_no
    if not records.retransmitted.all() or (records.trail_odata_seq_no > sequences).any():
        return None
    masters = records.client_id.tolist()
    if masters.count(masters[-1]) != len(masters):
        return None
    numbers, blocks = sequences.tolist(), records.block_number.tolist()
    return Repairs(
        numbers,
        blocks,
        records.rows.tolist(),
        frozenset(np.flatnonzero(records.fw_lead >= sequences).tolist()),
        int(records.trail_odata_seq_no[-1]),
        masters[-1],
        (min(numbers), max(numbers)),
        (min(blocks), max(blocks)),
    )


def runs_of(records: DataRecords) -> list[tuple[Run, list[int]]]:
    """The runs of a batch, which are the same to every client.

    Each comes with the rows in it that FW_LEAD does not excuse from an ACK (3.2.5.13).
    """
    count = len(records)
    sequences, blocks, trails = records.odata_seq_no, records.block_number, records.trail_odata_seq_no
    if records.is_one_run():
        edges = [0, count]
    else:
        together = (
            (np.diff(sequences) == 1)
            & (np.diff(blocks) == 1)
            & (np.diff(records.rows) == 1)
            & (sequences[1:] > sequences[:-1])
            & (blocks[1:] > blocks[:-1])
            & (np.diff(records.client_id) == 0)
        )
        edges = [0, *(np.flatnonzero(~together) + 1).tolist(), count]
    if not int(sequences.min()) or (trails > sequences).any():
        # Trail may move on within a run, but never past the packet that carries it: judge each alone.
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
