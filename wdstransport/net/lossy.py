"""Losing datagrams on purpose, at the socket's edge: for demonstrations and tests on a perfect loopback."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from wdstransport.wire.batch import Batch

__all__ = ["Lossy"]


class Lossy:
    """Drops each datagram with the same probability, decided by a seeded generator."""

    def __init__(self, share: float, rng: random.Random) -> None:
        self._share = share
        self._rng = rng
        self._numbers = np.random.default_rng(rng.getrandbits(64))
        self.lost = 0

    def loses(self) -> bool:
        """Whether to lose one datagram."""
        if self._rng.random() >= self._share:
            return False
        self.lost += 1
        return True

    def thin(self, batch: Batch) -> Iterator[Batch]:
        """What is left of a batch: itself when nothing is lost, else copies of the rest."""
        rows = -(-len(batch.buffer) // batch.segment)
        lost = self._numbers.random(rows) < self._share
        count = int(lost.sum())
        if not count:
            yield batch
            return
        self.lost += count
        kept = [batch.datagram(int(row)) for row in np.flatnonzero(~lost)]
        if kept:
            yield Batch(memoryview(bytearray().join(kept)), batch.segment, batch.source)
