"""Every exception a user of this project can meet, in one tree.

    TransportError
    ├── UsageError              the caller asked for something that cannot be (exit code 2)
    │   ├── ClosedError         a call on an object whose life is over
    │   │   └── ShutdownError   a call on a client session after its `shutdown()`
    │   ├── InvalidRequestError a call that a client session does not take in its present state
    │   └── StillConnectedError a client's object was to be closed before the client had left
    ├── RemoteError             the other side said no, went away or misbehaved
    │   ├── RefusedError        the server answered with a Win32 code (exit code 3)
    │   ├── RemovedError        the server sent KICK (exit code 4)
    │   └── NobodyAnsweredError no server, or no longer (exit code 5)
    ├── ContentError            what is served cannot be served
    │   ├── ContentNotFoundError  no such name, or one that leaves its namespace
    │   └── SourceChangedError    the file changed while it was being served
    ├── IntegrityError          a copy is not what it should be (exit code 6)
    ├── StorageError            the target cannot take the data (exit code 7)
    └── WdsTransportClientError raised by `wdstransport.wdstci`, with a Win32 code or HRESULT

Every message says what happened, the likely cause and what to do next. Datagrams are never an exception:
what cannot be accepted is counted (see `wdstransport.wire.transport.DropReason`).
"""

from __future__ import annotations

__all__ = [
    "ClosedError",
    "ContentError",
    "ContentNotFoundError",
    "IntegrityError",
    "InvalidRequestError",
    "NobodyAnsweredError",
    "RefusedError",
    "RemoteError",
    "RemovedError",
    "ShutdownError",
    "SourceChangedError",
    "StillConnectedError",
    "StorageError",
    "TransportError",
    "UsageError",
]


class TransportError(Exception):
    """Anything this project raises on purpose.

    Attributes:
        exit_code: what `deploy-image` exits with when this error ends it.
    """

    exit_code: int = 1


class UsageError(TransportError):
    """The caller asked for something impossible: a bad argument, a wrong moment."""

    exit_code = 2


class ClosedError(UsageError):
    """A call on an object that was closed; it cannot be opened again."""


class ShutdownError(ClosedError):
    """A call on a client session that was shut down.

    Attributes:
        winerror: MF_E_SHUTDOWN, what Media Foundation returns in the same place.
    """

    winerror: int = 0xC00D3E85


class InvalidRequestError(UsageError):
    """A request that a client session cannot do in its present state, such as any but four after `close()`.

    Attributes:
        winerror: MF_E_INVALIDREQUEST, what Media Foundation returns in the same place.
    """

    winerror: int = 0xC00D36B2


class StillConnectedError(UsageError):
    """A client's object can be closed only after the client has been disconnected."""


class RemoteError(TransportError):
    """The other side refused, vanished or removed us."""


class RefusedError(RemoteError):
    """The server answered the request with an error (MS-WDSMSI 2.2.2.3).

    Attributes:
        code: the Win32 error code of the reply.
    """

    exit_code = 3

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RemovedError(RemoteError):
    """The server removed this client with a KICK (MS-WDSMT 2.2.12).

    Attributes:
        reason: the KICK reason, 0 policy not met, 1 fall back, 2 fail.
    """

    exit_code = 4

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason


class NobodyAnsweredError(RemoteError):
    """No answer within the time allowed, or none any more in the middle."""

    exit_code = 5


class ContentError(TransportError):
    """What is to be served cannot be served."""


class ContentNotFoundError(ContentError):
    """No content of that name in the namespace, or a name that would leave it."""

    exit_code = 3


class SourceChangedError(ContentError):
    """A file changed or shrank while it was being served; the session must end."""


class IntegrityError(TransportError):
    """A copy differs from what was sent."""

    exit_code = 6


class StorageError(TransportError):
    """The target cannot take the data: no space, no permission, already there."""

    exit_code = 7
