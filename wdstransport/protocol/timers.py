"""Named timers: one optional instant per name (the tables of MS-WDSMT 3.1.2 and 3.2.2)."""

from __future__ import annotations

import math
from enum import Enum
from typing import Generic, TypeVar

__all__ = ["ClientTimer", "ServerTimer", "TimerTable"]

Name = TypeVar("Name", bound=Enum)


class TimerTable(Generic[Name]):
    """At most one deadline per timer name, in seconds of the caller's clock."""

    __slots__ = ("_deadlines",)

    def __init__(self) -> None:
        self._deadlines: dict[Name, float] = {}

    def set(self, name: Name, at: float) -> None:
        """Arm or re-arm a timer."""
        self._deadlines[name] = at

    def postpone(self, name: Name, at: float) -> None:
        """Re-arm a timer if it is armed."""
        if name in self._deadlines:
            self._deadlines[name] = at

    def stop(self, name: Name) -> None:
        """Disarm a timer; one that is not armed stays so."""
        self._deadlines.pop(name, None)

    def stop_all(self) -> None:
        """Disarm every timer."""
        self._deadlines.clear()

    def __contains__(self, name: Name) -> bool:
        return name in self._deadlines

    def get(self, name: Name) -> float | None:
        """When a timer is due, or None."""
        return self._deadlines.get(name)

    def next_deadline(self) -> float:
        """The earliest deadline; infinity when none is armed."""
        return min(self._deadlines.values()) if self._deadlines else math.inf

    def pop_due(self, now: float) -> Name | None:
        """Disarm and name the timer that has been due the longest, or None."""
        if not self._deadlines:
            return None
        name = min(self._deadlines, key=self._deadlines.__getitem__)
        if self._deadlines[name] > now:
            return None
        del self._deadlines[name]
        return name


class _Name(Enum):
    """Members are single objects, and looked up for every datagram: an Enum's own hash is Python and slow."""

    __hash__ = object.__hash__


class ServerTimer(_Name):
    """The timers of MS-WDSMT 3.1.2, and of deviation 53; JoinAck's instances live in the clients' records."""

    INACTIVITY = "Inactivity Timer"
    CLIENT_CLEANUP = "Client Cleanup Timer"
    KICK = "Kick Timer"
    DEMOTE = "Demote Timer"
    IN_STATE_QCC = "InState QCC Timer"
    OUT_STATE_QCC = "OutState QCC Timer"
    SPM = "SPM Timer"
    CLEANUP_DATA_LIST = "Cleanup Data List Timer"
    REPAIR = "Repair Timer"


class ClientTimer(_Name):
    """The timers of MS-WDSMT 3.2.2, the wait before LEAVE (3.2.5.4.3), and that of deviation 56."""

    INACTIVITY = "Inactivity Timer"
    JOIN = "Join Timer"
    POLL = "Poll Timer"
    QCC = "QCC Timer"
    FORCE_QCC = "Force QCC Timer"
    NACK = "NACK Timer"
    REJOIN = "Rejoin Timer"
    LEAVE = "Leave delay"
