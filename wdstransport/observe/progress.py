"""How fast, how long still, and how to say it: rates over a sliding window, ETA, numbers for people.

Nothing here reads a clock: times are seconds that the caller passes in, on any clock that does not go back.
Sizes are bytes and are shown in powers of 1000, as links and disks are sold and as MB/s is meant.
"""

from __future__ import annotations

import math
from collections import deque

__all__ = [
    "RateMeter",
    "format_bytes",
    "format_duration",
    "format_loss",
    "format_rate",
    "format_share",
    "remaining_seconds",
]

_SAMPLES_PER_WINDOW = 64
_PREFIXES = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


class RateMeter:
    """The rate of a counter that only grows, over the last `window` seconds.

    Memory is bounded however often it is fed: samples closer together than a 64th of the window are merged.
    """

    def __init__(self, window: float = 5.0) -> None:
        """Measure over `window` seconds.

        Raises:
            ValueError: `window` is not above 0.
        """
        if not window > 0:
            raise ValueError(f"a window of {window} seconds measures nothing")
        self._window = window
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, now: float, total: float) -> None:
        """Note that the counter stands at `total`. A counter that went back starts a new measurement."""
        samples = self._samples
        if samples and (total < samples[-1][1] or now < samples[-1][0]):
            samples.clear()
        if len(samples) > 1 and now - samples[-2][0] < self._window / _SAMPLES_PER_WINDOW:
            samples[-1] = (now, total)
        else:
            samples.append((now, total))
        self._forget(now)

    def rate(self, now: float) -> float | None:
        """Units per second up to `now`, or None before there is anything to compare.

        A counter that stands still sinks to 0 within a window: a stall must show.
        """
        self._forget(now)
        if not self._samples:
            return None
        since, low = self._samples[0]
        if now <= since:
            return None
        return (self._samples[-1][1] - low) / (now - since)

    def _forget(self, now: float) -> None:
        # The newest sample from before the window stays: it is where the window begins.
        while len(self._samples) > 1 and self._samples[1][0] <= now - self._window:
            self._samples.popleft()


def remaining_seconds(missing: float, rate: float | None) -> float | None:
    """Seconds until `missing` units are there at `rate` units per second; None when nobody can tell."""
    if missing <= 0:
        return 0.0
    if rate is None or not rate > 0:
        return None
    seconds = missing / rate
    return seconds if math.isfinite(seconds) else None


def format_bytes(count: float) -> str:
    """A size with three figures: `999 B`, `1.50 MB`, `12.3 GB`, `123 GB`."""
    value, power = float(count), 0
    # 999.5 is shown as 1000 with three figures, so it already belongs to the next prefix.
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value /= 1000
        power += 1
    if power == 0:
        return f"{value:.0f} B"
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f} {_PREFIXES[power]}"


def format_rate(bytes_per_second: float | None) -> str:
    """A rate in MB/s, always the same unit so that lines can be compared: `112.6 MB/s`; `-` for None."""
    return "-" if bytes_per_second is None else f"{bytes_per_second / 1e6:.1f} MB/s"


def format_share(share: float) -> str:
    """A share of 0 to 1 as percent, rounded down: only the whole is `100 %`."""
    if share >= 1:
        return "100 %"
    return f"{max(0, math.floor(share * 1000)) / 10:.1f} %"


def format_loss(share: float) -> str:
    """A loss rate of 0 to 1 as percent with two decimals: `0.25 %`."""
    return f"{share * 100:.2f} %"


def format_duration(seconds: float | None) -> str:
    """A time to wait or that has passed: `0:42`, `1:02:03`, `3 d 4 h`; `-` for None."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    # Rounded up: a countdown that shows 0:00 is over.
    whole = max(0, math.ceil(seconds - 1e-9))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 72:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"
