"""The client of MS-WDSMA 3.2: which blocks are here, which are missing, and how far that is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wdstransport.protocol.ranges import BlockMap
from wdstransport.wire import application as wire
from wdstransport.wire.transport import WireError

__all__ = ["ClientApplication"]


class ClientApplication:
    """What a client holds of one content.

    A client starts from the blocks that it has, never from nothing by assumption: blocks it does not want
    from the network are simply not asked for.

    Attributes:
        blocks: MissingBlocksBitmap, a set bit being a block that came (MS-WDSMA 3.2.1).
        horizon: the last block it can take now; later ones are treated as if they had not come.
    """

    def __init__(
        self,
        *,
        content_size: int,
        block_size: int,
        total_blocks: int,
        now: float,
        have: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Start from the blocks in `have`, inclusive (start, end) ranges."""
        self.content_size = content_size
        self.block_size = block_size
        self.total_blocks = total_blocks
        self.blocks = BlockMap(total_blocks)
        for start, end in have:
            self.blocks.add(start, end - start + 1)
        self.horizon = total_blocks
        self.duplicates = 0
        self._join_time = now

    def joined(self, now: float) -> None:
        """Start JoinTime anew; what has come stays (deviation 44)."""
        self._join_time = now

    @property
    def complete(self) -> bool:
        """Whether every block has come (3.2.5.1)."""
        return self.blocks.complete

    def length_of(self, block: int) -> int:
        """Bytes of content in a block; only the last may be shorter."""
        if block == self.total_blocks:
            return self.content_size - (block - 1) * self.block_size
        return self.block_size

    def accepts(self, first: int, count: int, block_len: int) -> bool:
        """Whether `count` blocks from `first`, of `block_len` bytes each, belong to this content."""
        last = first + count - 1
        if first < 1 or last > self.total_blocks:
            return False
        return block_len == self.length_of(last) and (count == 1 or block_len == self.block_size)

    def data(self, first: int, count: int) -> list[tuple[int, int]]:
        """DATA Trigger for consecutive blocks (3.2.5.1).

        Returns:
            The (first, count) runs that were missing; the rest are duplicates or beyond the horizon.
        """
        usable = max(0, min(count, self.horizon - first + 1))
        fresh = self.blocks.add(first, usable)
        self.duplicates += usable - sum(run for _, run in fresh)
        return fresh

    def out_of_reach(self, first: int, count: int) -> int:
        """How many of some blocks lie beyond the horizon: they come again (deviation 9)."""
        return max(0, first + count - 1 - max(first - 1, self.horizon))

    def stretch(self, first: int, last: int, absent: Sequence[tuple[int, int]]) -> bool:
        """DATA Trigger for blocks `first` to `last` but for the ranges `absent` (3.2.5.1).

        Returns:
            Whether it was done at once, all being new; if not, nothing has changed and `data` is the way.
        """
        return last <= self.horizon and self.blocks.append(first, last, absent)

    def repairs(self, blocks: Sequence[int]) -> list[int]:
        """DATA Trigger for single blocks, none of them beyond the horizon (3.2.5.1).

        Returns:
            The places in `blocks` of those that were missing; the rest are duplicates.
        """
        fresh = self.blocks.add_each(blocks)
        self.duplicates += len(blocks) - len(fresh)
        return fresh

    def fitting(self, first: int, count: int, room: int) -> tuple[int, int]:
        """How much of a run to take when the cache has room for `room` more blocks; duplicates need none.

        Returns:
            How many blocks from `first` to take, and how many missing ones after them are refused.
        """
        taken = refused = 0
        for block in range(first, first + count):
            missing = block <= self.horizon and block not in self.blocks
            if refused or (missing and room == 0):
                refused += missing
            else:
                room -= missing
                taken += 1
        return taken, refused

    @staticmethod
    def is_query(payload: bytes) -> bool:
        """Whether a POLL's payload is a SRVCIR (2.2.2)."""
        try:
            return isinstance(wire.decode(payload), wire.SrvCir)
        except WireError:
            return False

    def progress(self) -> int:
        """Percent of the blocks received, 0 to 100 (deviation 2); 100 only when all are."""
        return 100 if self.complete else self.blocks.count * 100 // self.total_blocks

    def _time_in_session(self, now: float) -> int:
        return max(0, min(0xFFFFFFFF, int(now - self._join_time)))

    def progress_packet(self, now: float) -> bytes:
        """QCC Trigger: a PROGRESS packet (3.2.5.3)."""
        return wire.encode(wire.ProgressReport(self._time_in_session(now), self.progress()))

    def missing_packet(self, now: float) -> bytes:
        """POLL Trigger: a CNTCIR packet with the first 64 missing ranges (3.2.5.4, 2.2.3)."""
        ranges = self.blocks.missing(64)
        return wire.encode(wire.CntCir(self.progress(), self._time_in_session(now), ranges))
