"""One session as its caller sees it: the state machine behind a handle, callable from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from wdstransport.handles.constants import (
    ERROR_CANCELLED,
    ERROR_INVALID_HANDLE,
    ERROR_INVALID_PARAMETER,
    ERROR_NO_SYSTEM_RESOURCES,
    ERROR_POSSIBLE_DEADLOCK,
    ERROR_SUCCESS,
    INFINITE,
    TRANSPORTCLIENT_CALLBACK_ID,
    WDS_TRANSPORTCLIENT_MAX_CALLBACKS,
    WDS_TRANSPORTCLIENT_RECEIVE_CONTENTS,
    WDS_TRANSPORTCLIENT_SESSION_COMPLETE,
    WDS_TRANSPORTCLIENT_SESSION_START,
    WDS_TRANSPORTCLIENT_STATUS_FAILURE,
    WDS_TRANSPORTCLIENT_STATUS_IN_PROGRESS,
    WDS_TRANSPORTCLIENT_STATUS_SUCCESS,
    WDSTPC_E_ALREADY_COMPLETED,
    WDSTPC_E_ALREADY_IN_PROGRESS,
    WDSTPC_E_CALLBACKS_NOT_REG,
    WDSTPC_E_UNKNOWN_ERROR,
    WdsTransportClientError,
)
from wdstransport.handles.delivery import CallbackThread
from wdstransport.handles.library import LIBRARY, Runtime, SessionHandle, calling_session, not_initialized
from wdstransport.handles.records import NegotiateKey, Settings
from wdstransport.handles.transfer import Transfer

__all__ = ["Phase", "Session", "SessionStatus"]

_REQUIRED = (
    WDS_TRANSPORTCLIENT_SESSION_START,
    WDS_TRANSPORTCLIENT_RECEIVE_CONTENTS,
    WDS_TRANSPORTCLIENT_SESSION_COMPLETE,
)


class SessionStatus(NamedTuple):
    """What QueryStatus returns; `puErrorCode` is 0 unless `puStatus` is FAILURE."""

    puStatus: int
    puErrorCode: int


class Phase(Enum):
    """Where a session is; the values are what messages say."""

    NEW = "not started"
    RUNNING = "running"
    COMPLETE = "complete"
    DISCARDED = "discarded"


class Session:
    """A session.

    Attributes:
        runtime: the life of the library that it belongs to.
        handle: what the caller knows it by; None once no callback will need it any more.
        settings: what to transfer.
        caller_data: goes to every callback.
        callbacks: by id; they do not change once the session has started.
        phase: where it is.
        closed: CloseSession was called.
        cancel_code: what it will complete with because somebody asked for it; None otherwise.
        outcome: what it completed with.
        done: SessionComplete has returned, or will never be called.
        outstanding: size by offset of blocks delivered and not completed. Its single operations are atomic,
            so the data path takes no lock for it.
        waits_for: the session that a callback of this one waits for; guarded by the library's lock.
    """

    def __init__(self, runtime: Runtime, number: int, settings: Settings, caller_data: Any) -> None:
        self.runtime = runtime
        self.number = number
        self.settings = settings
        self.caller_data = caller_data
        self.handle: SessionHandle | None = SessionHandle(self, number)
        self.callbacks: dict[int, Callable[..., object]] = {}
        self.phase = Phase.NEW
        self.closed = False
        self.cancel_code: int | None = None
        self.outcome = ERROR_SUCCESS
        self.done = threading.Event()
        self.outstanding: dict[int, int] = {}
        self.waits_for: Session | None = None
        self.transfer = Transfer(self)
        self._lock = threading.Lock()
        self._thread: CallbackThread | None = None
        self._negotiating: tuple[NegotiateKey, int] | None = None

    def __str__(self) -> str:
        return f"session {self.number}"

    # ------------------------------------------------------------------ before the start

    def register(self, callback_id: int, callback: Callable[..., object]) -> None:
        """RegisterCallback."""
        known = isinstance(callback_id, int) and 0 <= callback_id < WDS_TRANSPORTCLIENT_MAX_CALLBACKS
        if not known:
            raise WdsTransportClientError(
                ERROR_INVALID_PARAMETER,
                f"RegisterCallback: there is no callback {callback_id!r}; see TRANSPORTCLIENT_CALLBACK_ID",
            )
        if not callable(callback):
            raise WdsTransportClientError(
                ERROR_INVALID_PARAMETER, f"RegisterCallback: {callback!r} cannot be called; pass a function"
            )
        with self._lock:
            self._require_new("RegisterCallback", "register every callback before StartSession")
            self.callbacks[int(callback_id)] = callback

    def start(self) -> None:
        """StartSession."""
        with self._lock:
            self._require_new("StartSession", "a session is one transfer; make another for the next")
            missing = [TRANSPORTCLIENT_CALLBACK_ID(i).name for i in _REQUIRED if i not in self.callbacks]
            if missing:
                raise WdsTransportClientError(
                    WDSTPC_E_CALLBACKS_NOT_REG,
                    f"StartSession: {self} is not started and lacks {', '.join(missing)}; register it first",
                )
            self._start_thread("StartSession")
            self.phase = Phase.RUNNING
        self.runtime.start(self.transfer.run)

    def _require_new(self, call: str, remedy: str) -> None:
        self._require_open(call)
        if self.phase is not Phase.NEW:
            running = self.phase is Phase.RUNNING
            code = WDSTPC_E_ALREADY_IN_PROGRESS if running else WDSTPC_E_ALREADY_COMPLETED
            raise WdsTransportClientError(code, f"{call}: {self} is {self.phase.value}; {remedy}")

    def _require_open(self, call: str) -> None:
        if self.closed:
            raise WdsTransportClientError(
                ERROR_INVALID_HANDLE,
                f"{call}: the handle of {self} was given up by CloseSession; close it only when nothing but "
                "its callbacks matters any more",
            )
        if self.phase is Phase.DISCARDED:
            raise not_initialized(call)

    def _start_thread(self, call: str) -> None:
        thread = CallbackThread(self)
        try:
            thread.start()
        except RuntimeError as error:
            raise WdsTransportClientError(
                ERROR_NO_SYSTEM_RESOURCES,
                f"{call}: {self} gets no thread for its callbacks ({error}); end other sessions first",
            ) from error
        self._thread = thread

    # ------------------------------------------------------------------ while it runs

    def complete_receive(self, size: int, offset: int) -> None:
        """CompleteReceive: also on a closed handle, since its callbacks still come."""
        if self.phase is Phase.DISCARDED:
            self._require_open("CompleteReceive")
        delivered = self.outstanding.get(offset) if isinstance(offset, int) else None
        if delivered is not None and delivered == size:
            if self.outstanding.pop(offset, None) is not None:
                self.transfer.credit(size)
                return
            delivered = None  # another thread was faster
        if delivered is None:
            what = f"no block at offset {offset!r} is outstanding (not delivered yet, or completed before)"
        else:
            what = f"the block at offset {offset} has {delivered} bytes, not {size!r}"
        raise WdsTransportClientError(
            ERROR_INVALID_PARAMETER,
            f"CompleteReceive: {self} is {self.phase.value}, and {what}; call it once for each "
            "ReceiveContents, with the size and the offset that it was given",
        )

    def cancel(self, code: int, call: str) -> None:
        """CancelSession and CancelSessionEx."""
        with self._lock:
            self._require_open(call)
            if self.phase is Phase.COMPLETE:
                raise WdsTransportClientError(
                    WDSTPC_E_ALREADY_COMPLETED,
                    f"{call}: {self} is complete, so nothing is left to cancel; QueryStatus says how it went",
                )
            if self.phase is Phase.NEW:
                self._complete_unstarted(code, call)
            else:
                self._end_running(code)

    def _complete_unstarted(self, code: int, call: str) -> None:
        self._start_thread(call)
        self.cancel_code = self.outcome = code
        self.phase = Phase.COMPLETE
        self.transfer.inbox.put(None)

    def end(self, code: int) -> None:
        """Make a running session complete with `code`; the first such code stands."""
        with self._lock:
            if self.phase is Phase.COMPLETE:
                # An exception in SessionComplete: it was told a success that its caller cannot keep.
                if code == WDSTPC_E_UNKNOWN_ERROR and self.outcome == ERROR_SUCCESS:
                    self.outcome = code
                return
            self._end_running(code)

    def _end_running(self, code: int) -> None:
        if self.cancel_code is None:
            self.cancel_code = code
            self.transfer.cancel()

    def wait(self, timeout: int) -> bool:
        """WaitForCompletion; `timeout` in milliseconds."""
        if not isinstance(timeout, int) or not 0 <= timeout <= INFINITE:
            raise WdsTransportClientError(
                ERROR_INVALID_PARAMETER,
                f"WaitForCompletion: uTimeout is milliseconds, 0 to INFINITE (0xFFFFFFFF), not {timeout!r}",
            )
        self._require_open("WaitForCompletion")
        caller = calling_session()
        if caller is self:
            raise WdsTransportClientError(
                ERROR_POSSIBLE_DEADLOCK,
                f"WaitForCompletion: {self} is {self.phase.value} and cannot complete before this callback "
                "of it returns; wait from another thread",
            )
        if caller is not None:
            LIBRARY.begin_wait(caller, self)
        try:
            over = self.done.wait(None if timeout == INFINITE else timeout / 1000)
        finally:
            if caller is not None:
                LIBRARY.end_wait(caller)
        if over and self.phase is Phase.DISCARDED:
            self._require_open("WaitForCompletion")
        return over

    def status(self) -> SessionStatus:
        """QueryStatus."""
        with self._lock:
            self._require_open("QueryStatus")
            if self.phase is not Phase.COMPLETE:
                return SessionStatus(WDS_TRANSPORTCLIENT_STATUS_IN_PROGRESS, ERROR_SUCCESS)
            if self.outcome == ERROR_SUCCESS:
                return SessionStatus(WDS_TRANSPORTCLIENT_STATUS_SUCCESS, ERROR_SUCCESS)
            return SessionStatus(WDS_TRANSPORTCLIENT_STATUS_FAILURE, self.outcome)

    def close(self) -> None:
        """CloseSession: gives up the handle; what runs goes on."""
        with self._lock:
            self._require_open("CloseSession")
            self.closed = True
            if self.phase is not Phase.NEW:
                return
            self.phase = Phase.DISCARDED
        self._forget()

    # ------------------------------------------------------------------ NegotiateRequiredDataRange

    def begin_negotiation(self, size: int) -> NegotiateKey:
        """SessionNegotiate is about to be called about a content of `size` bytes."""
        key = NegotiateKey()
        with self._lock:
            self._negotiating = (key, size)
        return key

    def end_negotiation(self) -> None:
        """It has returned."""
        with self._lock:
            self._negotiating = None

    def require_range(self, key: object, start: int, size: int) -> None:
        """NegotiateRequiredDataRange."""
        call = "NegotiateRequiredDataRange"
        with self._lock:
            self._require_open(call)
            if self._negotiating is None or key is not self._negotiating[0]:
                raise WdsTransportClientError(
                    ERROR_INVALID_HANDLE,
                    f"{call}: {key!r} is not the key of a SessionNegotiate callback of {self} under way; "
                    "call it from within that callback, with the key it was given",
                )
            whole = self._negotiating[1]
            sound = isinstance(start, int) and isinstance(size, int) and start >= 0 and size >= 0
            if not sound or start + size > whole:
                raise WdsTransportClientError(
                    ERROR_INVALID_PARAMETER,
                    f"{call}: the content of {self} has {whole} bytes, and {size!r} bytes from {start!r} are "
                    "not all in it",
                )
            self.transfer.require(start, size)

    # ------------------------------------------------------------------ the end

    def completing(self, code: int) -> int:
        """The transfer is over with `code`; says what SessionComplete is told."""
        with self._lock:
            if self.phase is Phase.RUNNING:
                self.outcome = code if self.cancel_code is None else self.cancel_code
                self.phase = Phase.COMPLETE
            return self.outcome

    def completed(self) -> None:
        """SessionComplete has returned."""
        self._forget()

    def _forget(self) -> None:
        """Let go of all that belongs to the caller; only what QueryStatus needs stays."""
        self.callbacks.clear()
        self.caller_data = None
        self.handle = None
        self.transfer.loans.close()
        self.runtime.buffers.sweep()
        LIBRARY.remove(self)
        self.done.set()

    def shut_down(self) -> None:
        """The last Shutdown: an unstarted session is discarded, a running one cancelled."""
        with self._lock:
            fresh = self.phase is Phase.NEW
            if fresh:
                self.phase = Phase.DISCARDED
        if fresh:
            self._forget()
        else:
            self.end(ERROR_CANCELLED)

    def join(self) -> None:
        """Wait for the end of the last callback and of its thread."""
        self.done.wait()
        if self._thread is not None:
            self._thread.join()
