"""The content of a session, as blocks, and one receiver's copy of it."""

from __future__ import annotations

import numpy as np
from world import World

from wdstransport.protocol.events import BlocksArrived


class Image:
    """Random bytes cut into blocks numbered from 1; the last may be shorter."""

    def __init__(self, world: World, name: str, size: int, block_size: int) -> None:
        self.name, self.size, self.block_size = name, size, block_size
        self.total_blocks = -(-size // block_size)
        self._matrix = np.zeros((self.total_blocks, block_size), np.uint8)
        self._matrix.reshape(-1)[:size] = world.bytes(f"image {name}", size)

    def length_of(self, block: int) -> int:
        """Bytes in a block."""
        return self.size - (block - 1) * self.block_size if block == self.total_blocks else self.block_size

    def blocks(self, first: int, count: int) -> np.ndarray:
        """`count` blocks from `first`, one a row; only a lone last block has its own length."""
        if count == 1:
            return self._matrix[first - 1 : first, : self.length_of(first)]
        return self._matrix[first - 1 : first - 1 + count]

    def gather(self, numbers: list[int]) -> np.ndarray:
        """Blocks of full length, one a row."""
        return self._matrix[np.array(numbers) - 1]

    def matches(self, event: BlocksArrived) -> bool:
        """Whether the bytes that came are those of the blocks they came as."""
        batch = event.batch
        for first_row, count, first_block in event.runs:
            rows = np.ndarray(
                (count, event.block_len),
                np.uint8,
                batch.buffer,
                first_row * batch.segment + event.data_offset,
                (batch.segment, 1),
            )
            if not np.array_equal(rows, self.blocks(first_block, count)):
                return False
        return sum(run.rows for run in event.runs) == event.count


class Copy:
    """What one receiver wrote, block by block compared with the image when it is written.

    Attributes:
        writes: how often each block was written; index 0 is block 1.
        stored: how many different blocks are there.
    """

    def __init__(self, world: World, image: Image, who: str) -> None:
        self._world, self.image, self._who = world, image, who
        self.writes = np.zeros(image.total_blocks, np.uint8)
        self.stored = 0

    def write(self, event: BlocksArrived) -> None:
        """Store the blocks of an event; fail on a wrong byte, a wrong length or a second write."""
        for _, count, first in event.runs:
            last = first + count - 1
            if not 1 <= first <= last <= self.image.total_blocks:
                self._world.fail(f"{self._who} got blocks {first} to {last} of {self.image.total_blocks}")
            if event.block_len != self.image.length_of(last) or (
                count > 1 and event.block_len != self.image.block_size
            ):
                self._world.fail(f"{self._who} got block {last} with {event.block_len} bytes")
            written = self.writes[first - 1 : last]
            if written.any():
                self._world.fail(f"{self._who} was told to write blocks {first} to {last} twice")
            written[:] = 1
            self.stored += count
        if not self.image.matches(event):
            self._world.fail(f"{self._who} got wrong bytes in {event.runs}")

    def have(self) -> list[tuple[int, int]]:
        """What is there, as inclusive ranges: what a restarted receiver need not ask for."""
        edges = np.flatnonzero(np.diff(np.concatenate(([0], self.writes, [0])).astype(np.int8)))
        return [(int(start) + 1, int(end)) for start, end in edges.reshape(-1, 2).tolist()]

    @property
    def whole(self) -> bool:
        """Whether every block is there."""
        return self.stored == self.image.total_blocks
