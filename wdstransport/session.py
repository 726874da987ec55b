"""A reception as an object with a life, after Media Foundation's `IMFMediaSession`.

Closing is the request to end and `SessionClosed` its last word. (In the handle API, `wdstransport.wdstci`,
cancelling is the request, and closing only gives up the handle.)
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractAsyncContextManager
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from wdstransport.content.sinks import Sink
from wdstransport.errors import InvalidRequestError, ShutdownError
from wdstransport.net.client_setup import Offer
from wdstransport.net.reception import ReceiveResult, Reception, ReceptionSettings
from wdstransport.net.session_events import (
    ContentDescription,
    SessionCapability,
    SessionClock,
    SessionClosed,
    SessionEvent,
    SessionEvents,
    SessionStarted,
    SessionStopped,
    TransferEnded,
)
from wdstransport.net.waiting import open_tasks
from wdstransport.observe.events import ClientEvent, Progress

__all__ = [
    "ContentDescription",
    "ReceiveSession",
    "SessionCapability",
    "SessionClock",
    "SessionClosed",
    "SessionEvent",
    "SessionEvents",
    "SessionStarted",
    "SessionStopped",
    "TransferEnded",
]

_MAX_REQUESTS = 64
_CLOSING_PATIENCE = 5.0


def _shut_down(call: str) -> ShutdownError:
    return ShutdownError(f"{call}: the session was shut down; make a new one")


class _Request(Enum):
    START = "start"
    STOP = "stop"
    CLOSE = "close"


class _State(Enum):
    NEW = "not entered yet"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
    SHUT_DOWN = "shut down"


class ReceiveSession:
    """Receives one content of a server, step by step, with the life of an `IMFMediaSession`.

    `start`, `stop` and `close` are requests: they return at once, are dealt with in order, and are answered
    by an event. A refused request is answered by its event with the error in it. `SessionClosed` is the last
    event of all. After `close()` four calls are valid: `clock()`, `content()`, `capabilities()` and
    `shutdown()`; any other is an `InvalidRequestError`, raised at once, or for `start` and `stop`, as long as
    `SessionClosed` has not been told, in their event. After `shutdown()` every call is a `ShutdownError`.

        async with ReceiveSession("win11.wim", "/srv/win11.wim", server="deploy.example") as session:
            session.start()
            async for event in session.events:
                match event:
                    case TransferEnded():
                        session.close()
                    case SessionClosed():
                        session.shutdown()

    Leaving the block closes and shuts down what the program has not. All calls belong in the trio thread.

    Attributes:
        events: where events are read.
    """

    def __init__(
        self,
        content: str,
        target: str | Path | Sink,
        *,
        server: str,
        namespace: str = "images",
        interface: str | None = None,
        port: int = 5041,
        security: str = "checksum",
        timeout: float = 30.0,
        force: bool = False,
        cache_bytes: int = 32 << 20,
        drop_share: float = 0.0,
        drop_seed: int = 0,
    ) -> None:
        """Say what to receive; the arguments are those of `receive`. Nothing is asked before `start()`.

        Raises:
            UsageError: an argument that cannot be.
        """
        self._settings = ReceptionSettings(
            content=content,
            target=target,
            server=server,
            namespace=namespace,
            interface=interface,
            port=port,
            security=security,
            timeout=timeout,
            force=force,
            cache_bytes=cache_bytes,
            drop_share=drop_share,
            drop_seed=drop_seed,
        )
        self.events = SessionEvents()
        self._state = _State.NEW
        self._requests: deque[_Request] = deque()
        self._requested = trio.Event()
        self._life = trio.CancelScope()
        self._over = trio.Event()
        self._zero = 0.0
        self._clock = SessionClock(self._zero)
        self._reception: Reception | None = None
        self._transfer_scope: trio.CancelScope | None = None
        self._transfer_over = trio.Event()
        self._used = False
        self._progress: Progress | None = None
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None

    # ------------------------------------------------------------------ the block

    async def __aenter__(self) -> Self:
        if self._state is _State.SHUT_DOWN:
            raise _shut_down("async with")
        if self._state is not _State.NEW:
            raise InvalidRequestError("a session is entered once; make a new one")
        self._state = _State.OPEN
        self._zero = trio.current_time()
        self._clock = SessionClock(self._zero)
        self._manager = open_tasks()
        nursery = await self._manager.__aenter__()
        nursery.start_soon(self._live)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._manager is not None
        if self._state is _State.OPEN:
            self.close()
        if self._state is _State.CLOSING:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSING_PATIENCE):
                await self._over.wait()
        if self._state is not _State.SHUT_DOWN:
            self.shutdown()
        return await self._manager.__aexit__(kind, error, trace)

    # ------------------------------------------------------------------ requests, answered by events

    def start(self) -> None:
        """Begin the transfer; `SessionStarted` answers, and `TransferEnded` comes when it ends by itself.

        One that failed or was stopped can be started again, from the beginning, if the target is a path.
        """
        self._request(_Request.START)

    def stop(self) -> None:
        """End the transfer (LEAVE as cancelled) and stay open; `SessionStopped` answers."""
        self._request(_Request.STOP)

    def close(self) -> None:
        """End everything; returns at once, and `SessionClosed` is the last event.

        A transfer under way is left first: the server is told (LEAVE as cancelled) and what arrived is kept.

        Raises:
            InvalidRequestError: it was closed before.
            ShutdownError: it was shut down.
        """
        self._check("close()")
        self._state = _State.CLOSING
        self._put(_Request.CLOSE)

    def _request(self, request: _Request) -> None:
        call = f"{request.value}()"
        self._check(call, closing=True)
        if len(self._requests) >= _MAX_REQUESTS:
            raise InvalidRequestError(f"{call}: {_MAX_REQUESTS} requests wait already; read the events first")
        self._put(request)

    def _put(self, request: _Request) -> None:
        self._requests.append(request)
        self._requested.set()

    def _check(self, call: str, *, closing: bool = False, closed: bool = False) -> None:
        """Refuse a call that the state does not allow; `closing`, `closed`: it is valid then, too."""
        match self._state:
            case _State.SHUT_DOWN:
                raise _shut_down(call)
            case _State.NEW:
                raise InvalidRequestError(f"{call}: the session is not entered yet; use `async with` first")
            case _State.CLOSING if not (closing or closed):
                raise _refusal(call)
            case _State.CLOSED if not closed:
                raise _refusal(call)

    # ------------------------------------------------------------------ calls, answered at once

    def progress(self) -> Progress | None:
        """The newest `Progress`; None before there is any.

        Raises:
            InvalidRequestError: it was closed.
            ShutdownError: it was shut down.
        """
        self._check("progress()")
        return self._progress

    def clock(self) -> SessionClock:
        """The clock of the events. Valid after `close()`.

        Raises:
            ShutdownError: it was shut down.
        """
        self._check("clock()", closed=True)
        return self._clock

    def content(self) -> ContentDescription:
        """What is received. Valid after `close()`.

        Raises:
            ShutdownError: it was shut down.
        """
        self._check("content()", closed=True)
        settings = self._settings
        target = settings.target
        offer: Offer | None = self._reception.offer if self._reception is not None else None
        return ContentDescription(
            server=settings.server,
            namespace=settings.namespace,
            name=settings.content,
            target=str(target) if isinstance(target, str | Path) else target.description,
            size=offer.content_size if offer else None,
            block_size=offer.block_size if offer else None,
            total_blocks=offer.total_blocks if offer else None,
            session_id=offer.session_id if offer else None,
            group=offer.group if offer else None,
        )

    def capabilities(self) -> SessionCapability:
        """What would be done now; requests that still wait are not reckoned with. Valid after `close()`.

        Raises:
            ShutdownError: it was shut down.
        """
        self._check("capabilities()", closed=True)
        if self._state is not _State.OPEN:
            return SessionCapability(0)
        able = SessionCapability.CLOSE
        if self._transfer_scope is not None:
            return able | SessionCapability.STOP
        return able if self._used else able | SessionCapability.START

    def shutdown(self) -> None:
        """Release everything, now; no event comes of it, and unread ones are gone. Valid after `close()`.

        A transfer that still runs is cut off: the server is told, and what arrived is kept, but nobody hears
        of it. Close first and wait for `SessionClosed` to know.

        Raises:
            ShutdownError: it was shut down before.
        """
        self._check("shutdown()", closed=True)
        self._state = _State.SHUT_DOWN
        self._requests.clear()
        self.events.shut_down()
        self._life.cancel()

    # ------------------------------------------------------------------ the task behind it

    async def _live(self) -> None:
        try:
            with self._life:
                async with open_tasks() as nursery:
                    while (request := await self._next_request()) is not _Request.CLOSE:
                        if request is _Request.START:
                            self._begin(nursery)
                        else:
                            await self._stop()
                    kept = await self._end_transfer()
                    self._last_words(kept)
        finally:
            self._over.set()

    async def _next_request(self) -> _Request:
        while not self._requests:
            self._requested = trio.Event()
            await self._requested.wait()
        return self._requests.popleft()

    def _begin(self, nursery: trio.Nursery) -> None:
        error: InvalidRequestError | None = None
        if self._transfer_scope is not None:
            error = InvalidRequestError("start(): a transfer is running already; stop() it first")
        elif self._used:
            error = InvalidRequestError(
                "start(): the target can be written once and has been; make a new session"
            )
        self.events.put(SessionStarted(seconds=self._clock.time(), error=error))
        if error is not None:
            return
        self._used = not self._settings.is_path
        self._progress = None
        self._reception = Reception(self._settings, self._on_event, self._zero)
        self._transfer_scope = trio.CancelScope()
        self._transfer_over = trio.Event()
        nursery.start_soon(self._transfer, self._reception, self._transfer_scope)

    async def _transfer(self, reception: Reception, scope: trio.CancelScope) -> None:
        result: ReceiveResult | None = None
        failure: Exception | None = None
        try:
            with scope:
                result = await reception.run()
        except Exception as error:
            failure = error
        self._transfer_scope = None
        if result is None and failure is None and reception.whole:
            result = reception.result()  # the request to end came after the end
        if result is not None or failure is not None:
            self.events.put(TransferEnded(seconds=self._clock.time(), result=result, error=failure))
        self._transfer_over.set()

    async def _end_transfer(self) -> Path | None:
        """End the transfer that runs, if any; where what arrived is kept."""
        if self._transfer_scope is None or self._reception is None:
            return None
        self._transfer_scope.cancel()
        await self._transfer_over.wait()
        return self._reception.kept

    async def _stop(self) -> None:
        if self._transfer_scope is None:
            error = InvalidRequestError("stop(): no transfer is running; start() one first")
            self.events.put(SessionStopped(seconds=self._clock.time(), error=error))
            return
        kept = await self._end_transfer()
        self.events.put(SessionStopped(seconds=self._clock.time(), kept=kept))

    def _last_words(self, kept: Path | None) -> None:
        """Refuse what was requested after `close()`, and say the last word."""
        if self._state is _State.SHUT_DOWN:
            # It came when this task was about to go on already, so that cancelling it changed nothing here.
            return
        self._state = _State.CLOSED
        for request in self._requests:
            error = _refusal(f"{request.value}()")
            seconds = self._clock.time()
            if request is _Request.START:
                self.events.put(SessionStarted(seconds=seconds, error=error))
            else:
                self.events.put(SessionStopped(seconds=seconds, error=error))
        self._requests.clear()
        self.events.put(SessionClosed(seconds=self._clock.time(), kept=kept))

    def _on_event(self, event: ClientEvent) -> None:
        if isinstance(event, Progress):
            self._progress = event
        self.events.put(event)


def _refusal(call: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{call}: the session was closed; only clock(), content(), capabilities() and shutdown() "
        "are valid now"
    )
