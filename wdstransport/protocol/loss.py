"""The loss filter of MS-WDSMT 3.2.5.10 and the throughput estimate of 3.1.5.9.6.1."""

from __future__ import annotations

import math

from wdstransport.wire.transport import LOSS_SCALE

__all__ = ["LossFilter", "scaled_loss", "throughput", "unscaled_loss"]

_WEIGHT = 500 / 65536


class LossFilter:
    """LossRate, a share: 500/65536 of the way to 1 for a loss, to 0 for an arrival (deviation 4)."""

    __slots__ = ("rate",)

    def __init__(self) -> None:
        self.rate = 0.0

    def lost(self, packets: int = 1) -> None:
        """Count `packets` packets that did not come."""
        if packets > 0:
            self.rate = 1.0 - (1.0 - self.rate) * (1.0 - _WEIGHT) ** packets

    def arrived(self, packets: int = 1) -> None:
        """Count `packets` packets that came."""
        if packets > 0:
            self.rate *= (1.0 - _WEIGHT) ** packets


def scaled_loss(rate: float) -> int:
    """A share as the wire carries it: times 10^16, in every packet (deviation 5)."""
    return min(LOSS_SCALE, max(0, round(rate * LOSS_SCALE)))


def unscaled_loss(value: int) -> float:
    """A wire LossRate as a share, never above 1 whatever the peer says."""
    return min(1.0, value / LOSS_SCALE)


def throughput(rtt: float, loss: float) -> float:
    """1 / (RTT x sqrt(p) x (1 + 9p(1 + 32p^2))); infinite when nothing is lost (deviation 6).

    Args:
        rtt: seconds.
        loss: share.
    """
    cost = rtt * math.sqrt(loss) * (1 + 9 * loss * (1 + 32 * loss * loss))
    return 1 / cost if cost > 0 else math.inf
