"""Virtual time: a heap of events, jumped through in order; one seed decides everything."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np


class SimulationFailure(AssertionError):
    """An invariant does not hold; the message names the seed that shows it."""


class World:
    """A clock that only events move.

    Attributes:
        now: virtual seconds since the run began.
        seed: what every random choice of the run follows from.
        events: how many were processed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something at a time; what is late happens now, one instant's events in their order of making."""
        if when != math.inf:
            heapq.heappush(self._heap, (max(when, self.now), next(self._order), action, arguments))

    def after(self, delay: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something `delay` seconds from now."""
        self.at(self.now + delay, action, *arguments)

    def run(self, until: float, done: Callable[[], bool]) -> None:
        """Process events up to a time, or until `done`."""
        heap = self._heap
        while heap and heap[0][0] <= until and not done():
            self.now, _, action, arguments = heapq.heappop(heap)
            self.events += 1
            action(*arguments)
        if not done():
            self.now = max(self.now, until)

    def choices(self, name: str) -> random.Random:
        """A source of choices of its own for each name, so that a new host changes nobody else's luck."""
        return random.Random(f"{self.seed}/{name}")

    def bytes(self, name: str, size: int) -> np.ndarray:
        """Random content."""
        words = np.random.default_rng(self.choices(name).getrandbits(64)).bytes(size)
        return np.frombuffer(words, np.uint8)

    def fail(self, what: str) -> None:
        """Stop the run; the seed is in the message."""
        raise SimulationFailure(f"seed {self.seed}, t = {self.now:.6f} s: {what}")

    def require(self, holds: bool, what: str) -> None:
        """Fail unless `holds`."""
        if not holds:
            self.fail(what)
