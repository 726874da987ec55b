"""A receiver's disk, on the virtual clock."""

from __future__ import annotations

from world import World


class Disk:
    """Where a receiver stores: so many bytes a second, one write after the other, with stalls."""

    def __init__(self, world: World, rate: float | None = None) -> None:
        self._world, self.rate = world, rate
        self._free_at = 0.0
        self._stalls: list[tuple[float, float]] = []

    def stall(self, seconds: float) -> None:
        """Store nothing for that long from now on; what is under way is late by it too."""
        self._stalls.append((self._world.now, self._world.now + seconds))

    def finished(self, size: int) -> float:
        """When a write that starts now will be done."""
        at = max(self._free_at, self._world.now)
        for start, end in self._stalls:
            if start <= at < end:
                at = end
        self._free_at = at + (size / self.rate if self.rate else 0.0)
        return self._free_at
