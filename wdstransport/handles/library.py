"""The library: one background thread that runs trio for every session, started and ended by counted calls."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from wdstransport.handles.buffers import BufferRegistry
from wdstransport.handles.constants import (
    ERROR_BUSY,
    ERROR_INVALID_HANDLE,
    ERROR_NO_SYSTEM_RESOURCES,
    ERROR_POSSIBLE_DEADLOCK,
    WDSTPC_E_NOT_INITIALIZED,
    WdsTransportClientError,
)

if TYPE_CHECKING:
    from wdstransport.handles.session import Session

__all__ = [
    "LIBRARY",
    "LOGGER",
    "Library",
    "Runtime",
    "SessionHandle",
    "calling_session",
    "not_initialized",
    "set_calling_session",
]

LOGGER = logging.getLogger("wdstransport.wdstci")
_NAMED = 10
_numbers = itertools.count(1)


class SessionHandle:
    """An opaque session key: compared by identity, never reused, kept by whoever likes."""

    __slots__ = ("__weakref__", "_number", "_session")

    def __init__(self, session: Session, number: int) -> None:
        self._session = session
        self._number = number

    def __repr__(self) -> str:
        return f"<WDS transport client session {self._number}>"

    def __copy__(self) -> SessionHandle:
        return self

    def __deepcopy__(self, memo: object) -> SessionHandle:
        return self


_current = threading.local()


def calling_session() -> Session | None:
    """The session in whose callback the caller is, if it is in one."""
    session: Session | None = getattr(_current, "session", None)
    return session


def set_calling_session(session: Session | None) -> None:
    """This thread calls the session's callbacks from now on; None when it is done."""
    _current.session = session


def not_initialized(call: str) -> WdsTransportClientError:
    """What every function raises before Initialize and after Shutdown."""
    return WdsTransportClientError(
        WDSTPC_E_NOT_INITIALIZED,
        f"{call}: the library is not initialised; call Initialize first, and Shutdown last",
    )


class Runtime:
    """One life of the library, from the first Initialize to the last Shutdown.

    Attributes:
        buffers: the views that are valid.
        live: sessions whose SessionComplete has not returned; guarded by the library's lock.
        closing: the last Shutdown is under way.
        token: how other threads reach the trio thread.
    """

    def __init__(self) -> None:
        self.buffers = BufferRegistry()
        self.live: set[Session] = set()
        self.closing = False
        self.token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery
        self._stop = trio.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        # Daemon: a process that exits without Shutdown does not wait for a transfer.
        self._thread = threading.Thread(target=self._run, name="wdstci", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except OSError as error:
            self._failure = error  # no file descriptors for its event loop
        finally:
            self._ready.set()

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    def soon(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the trio thread; silently not at all when that has ended."""
        with contextlib.suppress(trio.RunFinishedError):
            self.token.run_sync_soon(function, *args)

    def start(self, task: Callable[[], Awaitable[object]]) -> None:
        """Run a task in the trio thread."""
        self.soon(self._nursery.start_soon, task)

    def stop(self) -> None:
        """End the trio thread."""
        self.soon(self._stop.set)
        self._thread.join()


class Library:
    """Initialize and Shutdown, and who may call what in between."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._runtime: Runtime | None = None

    def initialize(self) -> None:
        """Start the library, or count one more user.

        Raises:
            WdsTransportClientError: ERROR_POSSIBLE_DEADLOCK from a callback while the last Shutdown waits
                for it; ERROR_NO_SYSTEM_RESOURCES when no thread can be had.
        """
        with self._changed:
            while self._runtime is not None and self._runtime.closing:
                if calling_session() is not None:
                    raise WdsTransportClientError(
                        ERROR_POSSIBLE_DEADLOCK,
                        "Initialize: the last Shutdown is under way and waits for this callback to return; "
                        "initialise again after it",
                    )
                self._changed.wait()
            if self._runtime is None:
                try:
                    self._runtime = Runtime()
                except (RuntimeError, OSError) as error:
                    raise WdsTransportClientError(
                        ERROR_NO_SYSTEM_RESOURCES,
                        f"Initialize: the system gives no thread, or no file descriptors for one: {error}; "
                        "close some and try again",
                    ) from error
            self._count += 1

    def runtime(self, call: str) -> Runtime:
        """The running library.

        Raises:
            WdsTransportClientError: WDSTPC_E_NOT_INITIALIZED.
        """
        runtime = self._runtime
        if runtime is None:
            raise not_initialized(call)
        return runtime

    def session(self, handle: object, call: str) -> Session:
        """The session of a handle, closed or not.

        Raises:
            WdsTransportClientError: WDSTPC_E_NOT_INITIALIZED; ERROR_INVALID_HANDLE for anything else than a
                handle of this life of the library.
        """
        runtime = self.runtime(call)
        if not isinstance(handle, SessionHandle):
            raise WdsTransportClientError(
                ERROR_INVALID_HANDLE,
                f"{call}: {handle!r} is no session key; pass what InitializeSession returned",
            )
        session = handle._session
        if session.runtime is not runtime:
            raise WdsTransportClientError(
                ERROR_INVALID_HANDLE,
                f"{call}: {handle!r} ended with an earlier Shutdown; make a new one with InitializeSession",
            )
        return session

    def add(self, make: Callable[[Runtime, int], Session], call: str) -> SessionHandle:
        """The handle of a new session, made with the runtime and its number.

        Raises:
            WdsTransportClientError: WDSTPC_E_NOT_INITIALIZED.
        """
        with self._changed:
            runtime = self.runtime(call)
            if runtime.closing:
                raise not_initialized(call)
            session = make(runtime, next(_numbers))
            runtime.live.add(session)
            assert session.handle is not None
            return session.handle

    def remove(self, session: Session) -> None:
        """The session's last callback has returned, or none will ever come."""
        with self._changed:
            session.runtime.live.discard(session)

    def begin_wait(self, waiting: Session, target: Session) -> None:
        """A callback of one session waits for another.

        Raises:
            WdsTransportClientError: ERROR_POSSIBLE_DEADLOCK, that one waits for this one already.
        """
        with self._changed:
            other: Session | None = target
            while other is not None:
                if other is waiting:
                    raise WdsTransportClientError(
                        ERROR_POSSIBLE_DEADLOCK,
                        f"WaitForCompletion: {target} cannot complete before this callback of {waiting} "
                        "returns, so the wait would never end; wait from another thread",
                    )
                other = other.waits_for
            waiting.waits_for = target

    def end_wait(self, waiting: Session) -> None:
        """That wait is over."""
        with self._changed:
            waiting.waits_for = None

    def shutdown(self) -> None:
        """Count one user less; the last one cancels what runs, waits for its end and stops the thread.

        Raises:
            WdsTransportClientError: WDSTPC_E_NOT_INITIALIZED; ERROR_POSSIBLE_DEADLOCK from a callback;
                ERROR_BUSY, the library is shut down, but these buffers were not released before.
        """
        with self._changed:
            runtime = self.runtime("Shutdown")
            caller = calling_session()
            if caller is not None:
                raise WdsTransportClientError(
                    ERROR_POSSIBLE_DEADLOCK,
                    f"Shutdown: it would wait for this callback of {caller} to return; call it from another "
                    "thread",
                )
            if runtime.closing:
                raise not_initialized("Shutdown")
            if self._count > 1:
                self._count -= 1
                return
            runtime.closing = True
            sessions = list(runtime.live)
        try:
            for session in sessions:
                session.shut_down()
            for session in sessions:
                session.join()
        except BaseException:
            # Interrupted (Ctrl-C) while a callback took its time: it can be called again.
            with self._changed:
                runtime.closing = False
                self._changed.notify_all()
            raise
        unreleased = runtime.buffers.close()
        try:
            runtime.stop()
        finally:
            with self._changed:
                self._runtime = None
                self._count = 0
                self._changed.notify_all()
        if unreleased:
            more = f" and {len(unreleased) - _NAMED} more" if len(unreleased) > _NAMED else ""
            raise WdsTransportClientError(
                ERROR_BUSY,
                "Shutdown: the library is shut down, but buffers with an AddRefBuffer were never released: "
                f"{'; '.join(unreleased[:_NAMED])}{more}. Call ReleaseBuffer for each before the last "
                "Shutdown",
            )


LIBRARY = Library()
