"""The send window and the list of packets that can be repaired (MS-WDSMT 3.1.1.3, 3.1.5.9, 3.1.6.7)."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

__all__ = ["DataPacketList", "SentRun", "Window"]


class Window:
    """CurrentWindowSize, in packets, and its growth and cut."""

    __slots__ = ("_cut_at", "_last_cut", "exp_max", "maximum", "size")

    def __init__(self, exp_max: int, maximum: int) -> None:
        self.size = 1
        self.exp_max = exp_max
        self.maximum = maximum
        self._last_cut: float | None = None
        self._cut_at = 0

    def acknowledged(self, packets: int) -> None:
        """Grow: by twice the packets up to ExpMaxWindowSize, then by their number (3.1.5.9.5)."""
        if self.size < self.exp_max:
            self.size = min(self.size + packets * 2, self.exp_max)
        elif self.size <= self.maximum:
            self.size = min(self.size + packets, self.maximum)

    def lost(self, now: float, mcrtt: float, newest: int, lead: int) -> bool:
        """Shrink to three quarters, not below 2 (3.1.5.9.6), once for each flight of packets (deviation 30).

        A repair is due no sooner than four MCRTT after the packet left, so a client reports each loss several
        times, and each report names what was lost meanwhile, too. Packets that left before the last cut left
        at the old pace and say nothing about the new one, and until the first repair can have come the window
        has to last: where losses are random, one cut in each MCRTT let it rest at eight round trips' worth,
        which a lost repair exceeds.

        Args:
            now: seconds.
            mcrtt: seconds; a second cut within four times that is none.
            newest: the highest sequence number reported lost.
            lead: the highest sequence number sent.

        Returns:
            Whether it shrank.
        """
        if self._last_cut is not None and (now - self._last_cut < 4 * mcrtt or newest <= self._cut_at):
            return False
        self._last_cut = now
        self._cut_at = lead
        self.size = max(self.size * 3 // 4, 2)
        return True


@dataclass(slots=True)
class SentRun:
    """Packets with consecutive sequence numbers that carried consecutive blocks and left together."""

    first_seq: int
    first_block: int
    count: int
    created: float


class DataPacketList:
    """Data Packet List: which block each sequence number carried, for as long as it can be repaired.

    Packets are not kept, only their numbers: a repair reads the block again. LastSendTime is the run's for a
    packet sent once, and kept one by one only for packets that were repaired.
    """

    __slots__ = ("_created", "_firsts", "_resent", "_runs")

    def __init__(self) -> None:
        self._runs: deque[SentRun] = deque()
        self._firsts: list[int] = []
        self._created: list[float] = []
        self._resent: dict[int, float] = {}

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __len__(self) -> int:
        """How many packets can be repaired."""
        return 0 if not self._runs else self.last_seq - self.first_seq + 1

    @property
    def first_seq(self) -> int:
        """The head's sequence number; IndexError when empty."""
        return self._runs[0].first_seq

    @property
    def last_seq(self) -> int:
        """The tail's sequence number; IndexError when empty."""
        run = self._runs[-1]
        return run.first_seq + run.count - 1

    @property
    def last_created(self) -> float:
        """When the newest packet was created; IndexError when empty."""
        return self._runs[-1].created

    def append(self, run: SentRun) -> None:
        """Add packets at the tail; their numbers follow the tail's."""
        self._runs.append(run)
        self._firsts.append(run.first_seq)
        self._created.append(run.created)

    def last_sent_before(self, moment: float) -> int:
        """The highest sequence number first sent at `moment` or earlier; one below the head if none."""
        place = bisect_right(self._created, moment)
        return self._firsts[place] - 1 if place < len(self._firsts) else self.last_seq

    def find(self, seq: int) -> tuple[int, float] | None:
        """The block and LastSendTime of a packet, or None when it is not in the list."""
        place = bisect_right(self._firsts, seq) - 1
        if place < 0:
            return None
        run = self._runs[place]
        offset = seq - run.first_seq
        if offset >= run.count:
            return None
        return run.first_block + offset, self._resent.get(seq, run.created)

    def resent(self, seq: int, now: float) -> None:
        """Set a packet's LastSendTime."""
        self._resent[seq] = now

    def clean_up(self, created_before: float, acknowledged: int) -> int:
        """Drop packets from the head that are both older and numbered below `acknowledged` (3.1.6.7).

        Returns:
            How many were dropped.
        """
        dropped = runs = 0
        while self._runs:
            run = self._runs[0]
            if run.created >= created_before or run.first_seq >= acknowledged:
                break
            count = min(run.count, acknowledged - run.first_seq)
            dropped += count
            if count < run.count:
                run.first_seq += count
                run.first_block += count
                run.count -= count
                self._firsts[runs] = run.first_seq
                break
            self._runs.popleft()
            runs += 1
        del self._firsts[:runs], self._created[:runs]
        head = self._runs[0].first_seq if self._runs else acknowledged
        self._resent = {seq: at for seq, at in self._resent.items() if seq >= head}
        return dropped
