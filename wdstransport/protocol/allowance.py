"""How much of something may be asked for: a share that is used up and grows again with time."""

from __future__ import annotations

__all__ = ["Allowance"]


class Allowance:
    """A number of units that grows by `per_second` up to `burst`; whoever spends may leave it below zero."""

    __slots__ = ("_at", "_burst", "_left", "_per_second")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        """Start with all of it; `now` in seconds, like every time here."""
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._at = now

    def left(self, now: float) -> float:
        """What there is at `now`; asking changes nothing."""
        return min(self._burst, self._left + (now - self._at) * self._per_second)

    def spend(self, units: float, now: float) -> None:
        """Take some of it; a negative number gives back."""
        self._left = self.left(now) - units
        self._at = now
