"""What a client session tells and shows: its events and their queue, its clock, content and capabilities."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Flag, auto
from pathlib import Path
from typing import Self

import trio

from wdstransport.errors import InvalidRequestError, ShutdownError
from wdstransport.net.reception import ReceiveResult
from wdstransport.observe.events import ClientEvent, Progress

__all__ = [
    "ContentDescription",
    "SessionCapability",
    "SessionClock",
    "SessionClosed",
    "SessionEvent",
    "SessionEvents",
    "SessionStarted",
    "SessionStopped",
    "TransferEnded",
]

_MAX_EVENTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStarted:
    """A `start()` was dealt with: a transfer has begun, or, with `error`, none has."""

    seconds: float
    error: InvalidRequestError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStopped:
    """A `stop()` was dealt with: the server was told (LEAVE); what arrived is `kept`, if in a file."""

    seconds: float
    kept: Path | None = None
    error: InvalidRequestError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferEnded:
    """A transfer ended by itself: whole, with its `result`, or by an `error`; not by `stop` or `close`."""

    seconds: float
    result: ReceiveResult | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed:
    """The last event. A transfer that ran has been left; what arrived is `kept`, for a target in a file."""

    seconds: float
    kept: Path | None = None


SessionEvent = ClientEvent | SessionStarted | SessionStopped | TransferEnded | SessionClosed


class SessionCapability(Flag):
    """What a session would do now, if asked."""

    START = auto()
    STOP = auto()
    CLOSE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentDescription:
    """What a session is about; what only the server knows is None until it has answered.

    Attributes:
        server: as given.
        namespace: where the content is.
        name: the content's name in it.
        target: where it goes.
        size: bytes.
        block_size: bytes.
        total_blocks: number of blocks.
        session_id: the server's number for the multicast session.
        group: that session's multicast address and port.
    """

    server: str
    namespace: str
    name: str
    target: str
    size: int | None = None
    block_size: int | None = None
    total_blocks: int | None = None
    session_id: int | None = None
    group: tuple[str, int] | None = None


class SessionClock:
    """The time that `seconds` of a session's events is measured in. It outlives the session."""

    __slots__ = ("_zero",)

    def __init__(self, zero: float) -> None:
        self._zero = zero

    def time(self) -> float:
        """Seconds since the session was entered, monotonic."""
        return trio.current_time() - self._zero


class SessionEvents:
    """A session's events, oldest first, until `SessionClosed`; reading them is no request to the session.

    Unread events are bounded: a newer `Progress` replaces one that nobody has read, and of more than 256
    others the oldest goes.

        async for event in session.events:  # ends after SessionClosed
            ...
    """

    def __init__(self) -> None:
        self._queue: deque[SessionEvent] = deque()
        self._changed = trio.Event()
        self._ended = False
        self._shut = False

    @property
    def exhausted(self) -> bool:
        """Whether `SessionClosed` has been read."""
        return self._ended and not self._queue

    async def get(self) -> SessionEvent:
        """The next event, as soon as there is one.

        Raises:
            InvalidRequestError: `SessionClosed` was read already; nothing comes after it.
            ShutdownError: the session was shut down, also while this waited.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._shut:
                raise ShutdownError("reading events: the session was shut down; make a new one")
            if self._queue:
                return self._queue.popleft()
            if self._ended:
                raise InvalidRequestError(
                    "SessionClosed was the last event and has been read; call shutdown() now"
                )
            await self._changed.wait()

    def __aiter__(self) -> AsyncIterator[SessionEvent]:
        """Events until `SessionClosed`, which is the last one that comes."""
        return _Iteration(self)

    def put(self, event: SessionEvent) -> None:
        """Add an event; for the session."""
        if self._shut:
            return
        if isinstance(event, Progress):
            for unread in self._queue:
                if isinstance(unread, Progress):
                    self._queue.remove(unread)
                    break
        if len(self._queue) >= _MAX_EVENTS:
            self._queue.popleft()
        self._queue.append(event)
        self._ended = isinstance(event, SessionClosed)
        self._notify()

    def shut_down(self) -> None:
        """Forget what is unread and let nobody read any more; for the session."""
        self._shut = True
        self._queue.clear()
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


class _Iteration:
    """One `async for` over a session's events."""

    def __init__(self, events: SessionEvents) -> None:
        self._events = events
        self._last = events.exhausted

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionEvent:
        if self._last:
            raise StopAsyncIteration
        event = await self._events.get()
        self._last = isinstance(event, SessionClosed)
        return event
