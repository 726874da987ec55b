"""Sets of whole numbers as sorted, disjoint, merged ranges, and a bitmap of blocks.

`RangeSet` is the RangeList of MS-WDSMT 3.2.1.3.1 and the merged list of MS-WDSMA 3.1.6.1; `BlockMap` is the
MissingBlocksBitmap of MS-WDSMA 3.2.1: one bit a block, whatever the image's size.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

__all__ = ["BlockMap", "RangeSet"]


class RangeSet:
    """Whole numbers kept as inclusive (start, end) ranges: sorted, disjoint, never adjacent."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        """How many ranges; `total` is how many numbers."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._starts, number) - 1
        return place >= 0 and number <= self._ends[place]

    @property
    def total(self) -> int:
        """How many numbers are in the set."""
        return sum(self._ends) - sum(self._starts) + len(self._starts)

    @property
    def first(self) -> int:
        """The smallest number; IndexError when empty."""
        return self._starts[0]

    @property
    def last(self) -> int:
        """The largest number; IndexError when empty."""
        return self._ends[-1]

    def first_ranges(self, limit: int) -> tuple[tuple[int, int], ...]:
        """The lowest `limit` ranges."""
        return tuple(zip(self._starts[:limit], self._ends[:limit], strict=True))

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of the ranges that lie in `start` to `end`, both included."""
        if end < start:
            return []
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        return [
            (max(first, start), min(last, end))
            for first, last in zip(self._starts[low:high], self._ends[low:high], strict=True)
        ]

    def add(self, start: int, end: int) -> None:
        """Put `start` to `end`, both included, into the set; nothing when `end < start`."""
        if end < start:
            return
        low = bisect_left(self._ends, start - 1)
        high = bisect_right(self._starts, end + 1)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def extend(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Put ranges in that are ascending, not adjacent and above everything in the set, nor next to it."""
        self._starts.extend([start for start, _ in ranges])
        self._ends.extend([end for _, end in ranges])

    def remove(self, start: int, end: int) -> None:
        """Take `start` to `end`, both included, out of the set."""
        if end < start:
            return
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low >= high:
            return
        starts: list[int] = []
        ends: list[int] = []
        if self._starts[low] < start:
            starts.append(self._starts[low])
            ends.append(start - 1)
        if self._ends[high - 1] > end:
            starts.append(end + 1)
            ends.append(self._ends[high - 1])
        self._starts[low:high] = starts
        self._ends[low:high] = ends

    def discard(self, number: int) -> bool:
        """Take one number out of the set; whether it was in it."""
        starts, ends = self._starts, self._ends
        place = bisect_right(starts, number) - 1
        if place < 0 or number > ends[place]:
            return False
        if number == ends[place]:
            if number == starts[place]:
                del starts[place], ends[place]
            else:
                ends[place] = number - 1
        elif number == starts[place]:
            starts[place] = number + 1
        else:
            starts.insert(place + 1, number + 1)
            ends.insert(place, number - 1)
        return True

    def discard_each(self, numbers: Iterable[int], *, beyond: int) -> list[int]:
        """Take single numbers out of the set, one after the other.

        Returns:
            The smallest number that was left after each; `beyond` where none was.
        """
        starts, discard = self._starts, self.discard
        left = []
        for number in numbers:
            discard(number)
            left.append(starts[0] if starts else beyond)
        return left

    def remove_below(self, number: int) -> None:
        """Take every number smaller than `number` out of the set."""
        if self._starts:
            self.remove(self._starts[0], number - 1)

    def clear(self) -> None:
        """Empty the set."""
        self._starts.clear()
        self._ends.clear()


_CHUNK = 1 << 16
_HOLES = 4096


class BlockMap:
    """Which of `total` blocks, numbered from 1, are there; one bit each."""

    __slots__ = ("_bits", "_end", "_holes", "_low", "_start", "count", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0
        self._bits = np.zeros((total + 7) // 8, dtype=np.uint8)
        self._low = 0  # every byte below this one is full
        # The stretch where blocks come in order, with the few holes that losses left in it: not in the bits
        # yet, and nothing is there after it. An image that arrives as it was sent costs two additions a run.
        self._start = self._end = 0
        self._holes = RangeSet()

    def __contains__(self, block: int) -> bool:
        place = block - 1
        if self._start <= place < self._end:
            return place not in self._holes
        return bool(self._bits[place >> 3] >> (7 - (place & 7)) & 1)

    @property
    def complete(self) -> bool:
        """Whether every block is there."""
        return self.count == self.total

    def add(self, first: int, count: int) -> list[tuple[int, int]]:
        """Mark `count` blocks from `first` as there.

        Returns:
            The (first, count) runs that were not there before.
        """
        if count <= 0:
            return []
        place = first - 1
        if len(self._holes) < _HOLES:
            if place >= self._end:
                if place > self._end:
                    self._holes.add(self._end, place - 1)
                self._end = place + count
                self.count += count
                return [(first, count)]
            if place >= self._start and place + count <= self._end:
                return self._fill_holes(place, place + count - 1)
        self._settle()
        fresh = self._add_bits(place, count)
        if place + count >= self._end:
            # The next run can grow from here.
            self._start = self._end = place + count
        return fresh

    def append(self, first: int, last: int, absent: Sequence[tuple[int, int]]) -> bool:
        """Mark blocks `first` to `last` as there, but for the ranges `absent`, if that can be done quickly.

        Args:
            first: a block that is there.
            last: another.
            absent: inclusive ranges between the two, ascending, that do not touch.

        Returns:
            Whether it was done; if not, nothing has changed, and `add` is the way.
        """
        place = first - 1
        if place < self._end or len(self._holes) + len(absent) >= _HOLES:
            return False
        if place > self._end:
            self._holes.add(self._end, place - 1)
        self._end = last
        self.count += last - place
        if absent:
            holes = [(start - 1, end - 1) for start, end in absent]
            self._holes.extend(holes)
            self.count -= sum([end - start + 1 for start, end in holes])
        return True

    def add_each(self, blocks: Iterable[int]) -> list[int]:
        """Mark single blocks as there, in any order: what `add` does for each, at a fraction of the cost.

        Returns:
            The places in `blocks`, counted from 0, of those that were not there before.
        """
        start, end, bits, holes = self._start, self._end, self._bits, self._holes
        fresh, fill = [], holes.discard
        for place, block in enumerate(blocks):
            at = block - 1
            if at >= end or (at >= start and len(holes) >= _HOLES):
                known = not self.add(block, 1)
                start, end = self._start, self._end
                if known:
                    continue
            elif at >= start:
                if not fill(at):
                    continue
                self.count += 1
            else:
                bit = 0x80 >> (at & 7)
                byte = int(bits[at >> 3])
                if byte & bit:
                    continue
                bits[at >> 3] = byte | bit
                self.count += 1
            fresh.append(place)
        return fresh

    def _fill_holes(self, low: int, high: int) -> list[tuple[int, int]]:
        fresh = [(start + 1, end - start + 1) for start, end in self._holes.within(low, high)]
        if fresh:
            self._holes.remove(low, high)
            self.count += sum(run for _, run in fresh)
        return fresh

    def _settle(self) -> None:
        """Put the blocks that came in order into the bits."""
        at = self._start
        for start, end in (*self._holes, (self._end, self._end)):
            while at < start:
                step = min(start - at, _CHUNK)
                self.count -= step  # counted when it came
                self._add_bits(at, step)
                at += step
            at = end + 1
        self._start = self._end
        self._holes.clear()

    def _add_bits(self, place: int, count: int) -> list[tuple[int, int]]:
        first = place + 1
        low, high = place >> 3, (place + count + 7) >> 3
        flags = np.unpackbits(self._bits[low:high])
        skip = place - (low << 3)
        window = flags[skip : skip + count]
        had = int(window.sum())
        if had == count:
            return []
        if had == 0:
            fresh = [(first, count)]
        else:
            edges = np.flatnonzero(np.diff(np.concatenate(([1], window, [1])).astype(np.int8)))
            fresh = [(first + int(start), int(end - start)) for start, end in edges.reshape(-1, 2).tolist()]
        window[:] = 1
        self._bits[low:high] = np.packbits(flags)
        self.count += count - had
        return fresh

    def missing(self, limit: int) -> tuple[tuple[int, int], ...]:
        """The first `limit` ranges of missing blocks as inclusive (start, end), ascending."""
        if self.complete:
            return ()
        self._settle()
        found: list[tuple[int, int]] = []
        size = len(self._bits)
        while self._bits[self._low] == 0xFF:  # one is not, or all would be there
            step = self._bits[self._low : self._low + _CHUNK]
            full = np.flatnonzero(step != 0xFF)
            self._low += int(full[0]) if len(full) else len(step)
        at = self._low
        open_start: int | None = None
        while at < size:
            flags = np.unpackbits(self._bits[at : at + _CHUNK])
            base = (at << 3) + 1
            flags = flags[: self.total - base + 1]
            previous = 0 if open_start is not None else 1
            edges = np.flatnonzero(np.diff(np.concatenate(([previous], flags)).astype(np.int8)))
            for edge in edges.tolist():
                if open_start is None:
                    open_start = base + edge
                else:
                    found.append((open_start, base + edge - 1))
                    open_start = None
                    if len(found) == limit:
                        return tuple(found)
            at += _CHUNK
        if open_start is not None:
            found.append((open_start, self.total))
        return tuple(found[:limit])
