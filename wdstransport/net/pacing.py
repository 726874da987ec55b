"""How fast datagrams may leave: arithmetic on the caller's clock, and the kernel's own pacing.

A receiver's switch port or network card buffers little; a server that sends whole windows at its own
link's speed overruns whoever has a slower one. So the rate holds over short times too.
"""

from __future__ import annotations

import math
import socket
import struct
import sys

from wdstransport.errors import UsageError

__all__ = ["Pacer", "set_kernel_pacing"]

SO_MAX_PACING_RATE = 47

_CATCH_UP = 1.125
_ARREARS_SECONDS = 0.05
_UNLIMITED = 0xFFFFFFFF


class Pacer:
    """A rate in bytes per second with bounded bursts; knows no clock, as the machines it serves.

    Whoever paces by sleeping wakes up late, and a plain leaky bucket loses that time for ever or, with
    a deep bucket, gives it back in one burst. So there are two schedules, and both must agree: the exact one
    forgives up to 50 ms of lateness (more than that is a pause, and earns nothing), the other bounds how
    fast arrears are made good, to 1.125 x the rate after a burst of `burst_seconds`.

    In any time T at most rate x (T + 50 ms) and 1.125 x rate x (T + burst_seconds) bytes leave, plus one
    batch: a batch is not divided here. Batches of `burst_bytes` keep the bound at low rates too. The rate is
    exact while wake-ups are later than asked by no more than `burst_seconds` on average: epoll counts whole
    milliseconds, hence its default.

    Attributes:
        rate: bytes per second; None: unlimited.
        burst_bytes: what the rate makes of `burst_seconds`, rounded up; None: unlimited.
    """

    __slots__ = (
        "_due",
        "_peak_due",
        "_per_byte",
        "_per_byte_peak",
        "_slack",
        "burst_bytes",
        "rate",
    )

    def __init__(self, rate: float | None, burst_seconds: float = 0.002) -> None:
        """Raises UsageError for a rate that is not positive or a negative burst."""
        if rate is not None and not 0 < rate < math.inf:
            raise UsageError(f"a rate is a positive number of bytes per second, not {rate}")
        if not 0 <= burst_seconds <= _ARREARS_SECONDS:
            raise UsageError(f"a burst lasts 0 to {_ARREARS_SECONDS} seconds, not {burst_seconds}")
        self.rate = rate
        self.burst_bytes = None if rate is None else max(1, math.ceil(rate * burst_seconds))
        self._per_byte = 0.0 if rate is None else 1 / rate
        self._per_byte_peak = self._per_byte / _CATCH_UP
        self._slack = burst_seconds
        self._due = self._peak_due = -math.inf

    def ready_at(self, now: float) -> float:
        """When the next batch may leave, in seconds of the caller's clock; `now` if it may at once."""
        if self.rate is None:
            return now
        return max(now, self._due, self._peak_due)

    def spend(self, nbytes: int, now: float) -> None:
        """Note that `nbytes` leave at `now`, which should not be before `ready_at`."""
        earliest = now - self._slack
        due = self._due if self._due >= now - _ARREARS_SECONDS else earliest
        self._due = due + nbytes * self._per_byte
        self._peak_due = max(self._peak_due, earliest) + nbytes * self._per_byte_peak


def set_kernel_pacing(sock: socket.socket, rate: float | None) -> bool:
    """Ask the kernel to space this socket's packets (SO_MAX_PACING_RATE); None takes the limit off.

    Only the queueing discipline `fq` acts on it for UDP, and it spaces whole segmented buffers, so this
    comes on top of a `Pacer` and replaces none.

    Returns:
        Whether the kernel accepted the rate. That says nothing about the queueing discipline.
    """
    if not sys.platform.startswith("linux"):
        return False
    wanted = _UNLIMITED if rate is None else max(1, int(rate))
    # 32 bits for every kernel, all ones meaning no limit; a higher rate needs the long of Linux 4.20.
    value = struct.pack("=I" if wanted <= _UNLIMITED else "@Q", wanted)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, value)
    except OSError:
        return False
    return True
