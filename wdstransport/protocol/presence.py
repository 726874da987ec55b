"""What tells a client that the server still counts it in, and when to join again (deviation 56)."""

from __future__ import annotations

from wdstransport.protocol.parameters import ClientParameters

__all__ = ["Presence"]

_WEAK_INTERVALS = 6


class Presence:
    """One client's doubts. Every time is in seconds; each method but `hopeless` says when to join again.

    A server that hears its clients answer QCC goes on to send them what they miss. One that does not may have
    forgotten this client, whose first QCRs were all lost, and has no packet to say so. Its packets alone are
    a weak sign: while a start waits for more clients, SPM is all that anybody hears, and POLL and data
    may all be for others. A JOINACK, or a block that was missing, is a strong one.
    """

    def __init__(self, parameters: ClientParameters, now: float) -> None:
        """Nothing has been heard yet."""
        self._parameters = parameters
        self._weak_until = now
        self._wait = parameters.join_interval
        self._asked_first: float | None = None

    def served(self, now: float) -> float:
        """A strong sign came."""
        self._weak_until = now + _WEAK_INTERVALS * self._parameters.rejoin_interval
        self._wait = self._parameters.join_interval
        self._asked_first = None
        return now + self._parameters.rejoin_interval

    def seen(self, now: float) -> float:
        """A weak sign came."""
        return min(now + self._parameters.rejoin_interval, max(now, self._weak_until))

    def asked(self, now: float) -> float:
        """A JOIN left once more.

        It or its answer may be lost, too: the next one comes as soon as at the beginning, but ever less often
        for a server that is gone. Until it is answered, weak signs must not put it off.
        """
        if self._asked_first is None:
            self._asked_first = now
        self._weak_until = now + min(self._wait, self._parameters.rejoin_interval)
        self._wait *= 2
        return self._weak_until

    def hopeless(self, now: float) -> bool:
        """Whether JOIN was repeated for so long in vain that the way to the server must be cut."""
        return self._asked_first is not None and now - self._asked_first >= self._parameters.unheard_timeout
