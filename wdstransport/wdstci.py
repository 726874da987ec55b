"""The handle face: `wdstci.h` without its prefix, in Python's manners.

One function for each of the header's (`InitializeSession` for `WdsTransportClientInitializeSession`), with
its names for parameters, records, constants and callback ids. Results are returned; errors are raised as
`WdsTransportClientError`, whose `winerror` is the Win32 code or HRESULT. `docs/handle-api.md` has an example,
and what happens where Microsoft's documentation is silent.

Every function may be called from any thread, from callbacks, and from programs that run an event loop of
their own; only Initialize (for a moment), WaitForCompletion and Shutdown block. The transfers run on one
background thread of the library; each session calls its callbacks one at a time on a thread of its own:
SessionStart, SessionStartEx, SessionNegotiate, ReceiveMetadata (initiation over UDP brings none),
ReceiveContents in whatever order blocks arrive, and SessionComplete exactly once and last.

An exception in a callback is logged to `wdstransport.wdstci`; its session ends with WDSTPC_E_UNKNOWN_ERROR.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wdstransport.handles import constants as _constants
from wdstransport.handles.constants import *  # noqa: F403
from wdstransport.handles.constants import (
    ERROR_CANCELLED,
    ERROR_INVALID_PARAMETER,
    INFINITE,
    WdsTransportClientError,
)
from wdstransport.handles.library import LIBRARY as _LIBRARY
from wdstransport.handles.library import SessionHandle
from wdstransport.handles.records import (
    TRANSPORTCLIENT_SESSION_INFO,
    WDS_TRANSPORTCLIENT_REQUEST,
    NegotiateKey,
    PFN_WdsTransportClientReceiveContents,
    PFN_WdsTransportClientReceiveMetadata,
    PFN_WdsTransportClientSessionComplete,
    PFN_WdsTransportClientSessionNegotiate,
    PFN_WdsTransportClientSessionStart,
    PFN_WdsTransportClientSessionStartEx,
    checked_request,
)
from wdstransport.handles.session import Session, SessionStatus

__all__ = [
    "TRANSPORTCLIENT_SESSION_INFO",
    "WDS_TRANSPORTCLIENT_REQUEST",
    "AddRefBuffer",
    "CancelSession",
    "CancelSessionEx",
    "CloseSession",
    "CompleteReceive",
    "Initialize",
    "InitializeSession",
    "NegotiateKey",
    "NegotiateRequiredDataRange",
    "PFN_WdsTransportClientReceiveContents",
    "PFN_WdsTransportClientReceiveMetadata",
    "PFN_WdsTransportClientSessionComplete",
    "PFN_WdsTransportClientSessionNegotiate",
    "PFN_WdsTransportClientSessionStart",
    "PFN_WdsTransportClientSessionStartEx",
    "QueryStatus",
    "RegisterCallback",
    "ReleaseBuffer",
    "SessionHandle",
    "SessionStatus",
    "Shutdown",
    "StartSession",
    "WaitForCompletion",
]
__all__ += _constants.__all__


def Initialize() -> None:
    """Start the library; before every other call. Counted: each needs its Shutdown.

    Raises:
        WdsTransportClientError: ERROR_NO_SYSTEM_RESOURCES, no thread can be had; ERROR_POSSIBLE_DEADLOCK, in
            a callback for which the last Shutdown waits.
    """
    _LIBRARY.initialize()


def Shutdown() -> None:
    """Undo one Initialize. The last one cancels what runs, waits for each SessionComplete, ends the thread.

    Sessions that were never started are discarded without a callback. Buffers must have been released.

    Raises:
        WdsTransportClientError: WDSTPC_E_NOT_INITIALIZED; ERROR_POSSIBLE_DEADLOCK in a callback, whatever the
            count; ERROR_BUSY when buffers with an AddRefBuffer were not released. The library is shut down
            then, the message names the buffers, and their views have ended.
    """
    _LIBRARY.shutdown()


def InitializeSession(
    pSessionRequest: WDS_TRANSPORTCLIENT_REQUEST,
    pCallerData: Any = None,
    *,
    interface: str | None = None,
    port: int = 5041,
    security: str = "checksum",
    timeout: float = 30.0,
) -> SessionHandle:
    """Make a session; nothing is sent before StartSession.

    Args:
        pSessionRequest: what to transfer; copied.
        pCallerData: handed to every callback.
        interface: name or address of the interface to use; None for the one that leads to the server. This
            and what follows is not in the header.
        port: the server's UDP port for requests (MS-WDSMSI 1.9).
        security: checksum or none, as the server has it.
        timeout: seconds to wait for the server's first answers.

    Returns:
        The session key of all further calls; opaque, compared by identity, never reused.

    Raises:
        WdsTransportClientError: WDSTPC_E_NOT_INITIALIZED; ERROR_INVALID_PARAMETER naming the field;
            ERROR_NOT_SUPPORTED for WDS_TRANSPORTCLIENT_AUTH.
    """
    _LIBRARY.runtime("InitializeSession")
    settings = checked_request(
        pSessionRequest, interface=interface, port=port, security=security, timeout=timeout
    )
    return _LIBRARY.add(
        lambda runtime, number: Session(runtime, number, settings, pCallerData), "InitializeSession"
    )


def RegisterCallback(hSessionKey: SessionHandle, CallbackId: int, pfnCallback: Callable[..., object]) -> None:
    """Set or replace a callback of a session that is not started; see the `PFN_...` types.

    Raises:
        WdsTransportClientError: WDSTPC_E_ALREADY_IN_PROGRESS, WDSTPC_E_ALREADY_COMPLETED,
            ERROR_INVALID_HANDLE, ERROR_INVALID_PARAMETER, WDSTPC_E_NOT_INITIALIZED.
    """
    _LIBRARY.session(hSessionKey, "RegisterCallback").register(CallbackId, pfnCallback)


def StartSession(hSessionKey: SessionHandle) -> None:
    """Start the transfer. Callbacks may come before this returns; only SessionComplete tells the outcome.

    Raises:
        WdsTransportClientError: WDSTPC_E_CALLBACKS_NOT_REG, WDSTPC_E_ALREADY_IN_PROGRESS,
            WDSTPC_E_ALREADY_COMPLETED, ERROR_INVALID_HANDLE, ERROR_NO_SYSTEM_RESOURCES,
            WDSTPC_E_NOT_INITIALIZED.
    """
    _LIBRARY.session(hSessionKey, "StartSession").start()


def CompleteReceive(hSessionKey: SessionHandle, ulSize: int, ullOffset: int) -> None:
    """Say that a block has been dealt with, so that another may take its room in the cache.

    Once for each ReceiveContents, with its size and offset (bytes), in the callback or later, from any
    thread, also on a closed handle and after SessionComplete.

    Raises:
        WdsTransportClientError: ERROR_INVALID_PARAMETER, no such block is outstanding; ERROR_INVALID_HANDLE;
            WDSTPC_E_NOT_INITIALIZED.
    """
    _LIBRARY.session(hSessionKey, "CompleteReceive").complete_receive(ulSize, ullOffset)


def CancelSession(hSessionKey: SessionHandle) -> None:
    """Ask for the end: SessionComplete follows with ERROR_CANCELLED. Also from a callback.

    No further ReceiveContents comes, except for one that is under way. A second call changes nothing.

    Raises:
        WdsTransportClientError: WDSTPC_E_ALREADY_COMPLETED, ERROR_INVALID_HANDLE, WDSTPC_E_NOT_INITIALIZED.
    """
    _LIBRARY.session(hSessionKey, "CancelSession").cancel(ERROR_CANCELLED, "CancelSession")


def CancelSessionEx(hSessionKey: SessionHandle, dwErrorCode: int) -> None:
    """CancelSession with the code that SessionComplete is to carry; the first code given stands.

    Raises:
        WdsTransportClientError: as CancelSession; ERROR_INVALID_PARAMETER for 0 and for no 32-bit number.
    """
    session = _LIBRARY.session(hSessionKey, "CancelSessionEx")
    if not isinstance(dwErrorCode, int) or not 0 < dwErrorCode <= 0xFFFFFFFF:
        raise WdsTransportClientError(
            ERROR_INVALID_PARAMETER,
            f"CancelSessionEx: dwErrorCode is a Win32 code or HRESULT, 1 to 0xFFFFFFFF, not {dwErrorCode!r}",
        )
    session.cancel(int(dwErrorCode), "CancelSessionEx")


def WaitForCompletion(hSessionKey: SessionHandle, uTimeout: int = INFINITE) -> bool:
    """Wait until SessionComplete has returned; tells of the wait, not of the outcome (see QueryStatus).

    Args:
        hSessionKey: the session, started or not.
        uTimeout: milliseconds, or INFINITE.

    Returns:
        True when the session is complete, False when the time was up before.

    Raises:
        WdsTransportClientError: ERROR_INVALID_HANDLE, also when the session is closed before its start while
            this waits; ERROR_POSSIBLE_DEADLOCK, in a callback of this session, or of one that this session
            waits for; ERROR_INVALID_PARAMETER; WDSTPC_E_NOT_INITIALIZED.
    """
    return _LIBRARY.session(hSessionKey, "WaitForCompletion").wait(uTimeout)


def QueryStatus(hSessionKey: SessionHandle) -> SessionStatus:
    """How a session is doing.

    Returns:
        `(puStatus, puErrorCode)`; the code is 0 unless the status is FAILURE.

    Raises:
        WdsTransportClientError: ERROR_INVALID_HANDLE, WDSTPC_E_NOT_INITIALIZED.
    """
    return _LIBRARY.session(hSessionKey, "QueryStatus").status()


def CloseSession(hSessionKey: SessionHandle) -> None:
    """Give up the handle; at once, and without cancelling.

    A running transfer goes on, and so do its callbacks, with this same handle and the caller data, until
    SessionComplete; nothing can stop it any more but Shutdown. A session that was not started is discarded.

    Raises:
        WdsTransportClientError: ERROR_INVALID_HANDLE, WDSTPC_E_NOT_INITIALIZED.
    """
    _LIBRARY.session(hSessionKey, "CloseSession").close()


def AddRefBuffer(pvBuffer: memoryview) -> None:
    """Keep a buffer of ReceiveContents valid beyond its callback, its session and its handle.

    Raises:
        WdsTransportClientError: ERROR_INVALID_PARAMETER, it is not the very view that the callback was given,
            or has ended; WDSTPC_E_NOT_INITIALIZED.
    """
    _LIBRARY.runtime("AddRefBuffer").buffers.add_ref(pvBuffer)


def ReleaseBuffer(pvBuffer: memoryview) -> None:
    """Match one AddRefBuffer. After the last, and after the callback, touching the view raises ValueError.

    Raises:
        WdsTransportClientError: ERROR_INVALID_PARAMETER, there is no AddRefBuffer to match;
            WDSTPC_E_NOT_INITIALIZED.
    """
    _LIBRARY.runtime("ReleaseBuffer").buffers.release(pvBuffer)


def NegotiateRequiredDataRange(
    hSessionKey: SessionHandle, hNegotiateKey: NegotiateKey, ullDataRangeStart: int, ullDataRangeSize: int
) -> None:
    """Restrict a session to ranges of bytes, from within its SessionNegotiate callback.

    Only blocks that touch one of the ranges are asked for and delivered, each whole; the session is complete
    when they are in. Without a call everything is required.

    Args:
        hSessionKey: the session.
        hNegotiateKey: what SessionNegotiate was given.
        ullDataRangeStart: first byte.
        ullDataRangeSize: how many; 0 requires nothing.

    Raises:
        WdsTransportClientError: ERROR_INVALID_HANDLE, no such callback is under way;
            ERROR_INVALID_PARAMETER, the range is not within the content; WDSTPC_E_NOT_INITIALIZED.
    """
    session = _LIBRARY.session(hSessionKey, "NegotiateRequiredDataRange")
    session.require_range(hNegotiateKey, ullDataRangeStart, ullDataRangeSize)
