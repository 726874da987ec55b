"""The records that callers fill and callbacks get, and what a request must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from wdstransport.handles.constants import (
    DEFAULT_CACHE_SIZE,
    ERROR_INVALID_PARAMETER,
    ERROR_NOT_SUPPORTED,
    WDS_TRANSPORTCLIENT_AUTH,
    WDS_TRANSPORTCLIENT_CURRENT_API_VERSION,
    WDS_TRANSPORTCLIENT_NO_AUTH,
    WDS_TRANSPORTCLIENT_PROTOCOL_MULTICAST,
    WdsTransportClientError,
)
from wdstransport.net.client_setup import MODES
from wdstransport.wire.initiation import Request, encode

__all__ = [
    "TRANSPORTCLIENT_SESSION_INFO",
    "WDS_TRANSPORTCLIENT_REQUEST",
    "NegotiateKey",
    "PFN_WdsTransportClientReceiveContents",
    "PFN_WdsTransportClientReceiveMetadata",
    "PFN_WdsTransportClientSessionComplete",
    "PFN_WdsTransportClientSessionNegotiate",
    "PFN_WdsTransportClientSessionStart",
    "PFN_WdsTransportClientSessionStartEx",
    "Settings",
    "checked_request",
]

_REQUEST_LENGTH = 64
_SESSION_INFO_LENGTH = 24


@dataclass
class WDS_TRANSPORTCLIENT_REQUEST:
    """What to transfer; InitializeSession takes a copy, so later changes have no effect.

    Attributes:
        ulLength: bytes of the structure in its 64-bit layout; the default is right.
        ulApiVersion: WDS_TRANSPORTCLIENT_CURRENT_API_VERSION.
        ulAuthLevel: WDS_TRANSPORTCLIENT_NO_AUTH; AUTH means initiation over RPC (MS-WDSC), which
            InitializeSession refuses with ERROR_NOT_SUPPORTED.
        pwszServer: name or address of the server.
        pwszNamespace: where the content is.
        pwszObjectName: the content's name there.
        ulCacheSize: bytes delivered and not completed before delivery pauses; 0 means 2 MiB.
        ulProtocol: WDS_TRANSPORTCLIENT_PROTOCOL_MULTICAST.
        pvProtocolData: None.
        ulProtocolDataLength: 0.
    """

    ulLength: int = _REQUEST_LENGTH
    ulApiVersion: int = WDS_TRANSPORTCLIENT_CURRENT_API_VERSION
    ulAuthLevel: int = WDS_TRANSPORTCLIENT_NO_AUTH
    pwszServer: str = ""
    pwszNamespace: str = ""
    pwszObjectName: str = ""
    ulCacheSize: int = 0
    ulProtocol: int = WDS_TRANSPORTCLIENT_PROTOCOL_MULTICAST
    pvProtocolData: object = None
    ulProtocolDataLength: int = 0


@dataclass(frozen=True, slots=True)
class TRANSPORTCLIENT_SESSION_INFO:
    """What SessionStartEx and SessionNegotiate are told.

    Attributes:
        ullFileSize: bytes of the content.
        ulBlockSize: bytes in a block; only the last may be shorter.
        ulStructureLength: bytes of the structure in its 64-bit layout.
    """

    ullFileSize: int
    ulBlockSize: int
    ulStructureLength: int = _SESSION_INFO_LENGTH


class NegotiateKey:
    """What SessionNegotiate hands out for NegotiateRequiredDataRange; dead once the callback returned."""

    __slots__ = ()


PFN_WdsTransportClientSessionStart = Callable[[Any, Any, int], object]
"""(hSessionKey, pCallerData, ullFileSize)"""
PFN_WdsTransportClientSessionStartEx = Callable[[Any, Any, TRANSPORTCLIENT_SESSION_INFO], object]
"""(hSessionKey, pCallerData, Info)"""
PFN_WdsTransportClientSessionNegotiate = Callable[
    [Any, Any, TRANSPORTCLIENT_SESSION_INFO, NegotiateKey], object
]
"""(hSessionKey, pCallerData, pInfo, hNegotiateKey)"""
PFN_WdsTransportClientReceiveMetadata = Callable[[Any, Any, memoryview, int], object]
"""(hSessionKey, pCallerData, pMetadata, ulSize)"""
PFN_WdsTransportClientReceiveContents = Callable[[Any, Any, memoryview, int, int], object]
"""(hSessionKey, pCallerData, pContents, ulSize, ullContentOffset)"""
PFN_WdsTransportClientSessionComplete = Callable[[Any, Any, int], object]
"""(hSessionKey, pCallerData, dwError)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A checked request and what the header has no field for."""

    server: str
    namespace: str
    content: str
    cache_size: int
    interface: str | None
    port: int
    security: str
    timeout: float

    def __str__(self) -> str:
        return f"{self.content!r} in namespace {self.namespace!r} of {self.server}"


def checked_request(
    request: WDS_TRANSPORTCLIENT_REQUEST, *, interface: str | None, port: int, security: str, timeout: float
) -> Settings:
    """The settings of a session.

    Raises:
        WdsTransportClientError: ERROR_INVALID_PARAMETER or ERROR_NOT_SUPPORTED, naming the field.
    """

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise WdsTransportClientError(ERROR_INVALID_PARAMETER, f"InitializeSession: {what}")

    require(
        isinstance(request, WDS_TRANSPORTCLIENT_REQUEST),
        f"pSessionRequest is a WDS_TRANSPORTCLIENT_REQUEST, not {type(request).__name__}",
    )
    request = replace(request)
    require(
        request.ulLength == _REQUEST_LENGTH,
        f"ulLength is {_REQUEST_LENGTH}, not {request.ulLength!r}; leave it at its default",
    )
    require(
        request.ulApiVersion == WDS_TRANSPORTCLIENT_CURRENT_API_VERSION,
        f"ulApiVersion is WDS_TRANSPORTCLIENT_CURRENT_API_VERSION (1), not {request.ulApiVersion!r}",
    )
    if request.ulAuthLevel == WDS_TRANSPORTCLIENT_AUTH:
        raise WdsTransportClientError(
            ERROR_NOT_SUPPORTED,
            "InitializeSession: WDS_TRANSPORTCLIENT_AUTH means initiation over authenticated RPC (MS-WDSC), "
            "which this client does not speak; use WDS_TRANSPORTCLIENT_NO_AUTH with a server that allows it",
        )
    require(
        request.ulAuthLevel == WDS_TRANSPORTCLIENT_NO_AUTH,
        f"ulAuthLevel is WDS_TRANSPORTCLIENT_NO_AUTH (2), not {request.ulAuthLevel!r}",
    )
    require(
        request.ulProtocol == WDS_TRANSPORTCLIENT_PROTOCOL_MULTICAST,
        f"ulProtocol is WDS_TRANSPORTCLIENT_PROTOCOL_MULTICAST (1), not {request.ulProtocol!r}",
    )
    require(
        request.pvProtocolData is None and request.ulProtocolDataLength == 0,
        "multicast has no protocol data: pvProtocolData is None and ulProtocolDataLength 0",
    )
    cache = request.ulCacheSize
    require(
        isinstance(cache, int) and 0 <= cache <= 0xFFFFFFFF,
        f"ulCacheSize is 0 (2 MiB) or a number of bytes below 2**32, not {cache!r}",
    )
    for field in ("pwszServer", "pwszNamespace", "pwszObjectName"):
        value = getattr(request, field)
        require(isinstance(value, str) and value != "", f"{field} is a name, not {value!r}")
        require("\0" not in value, f"{field} has a null character")
    try:
        encode(Request(request.pwszNamespace, request.pwszObjectName, bytes(6)))
    except ValueError as error:
        require(False, f"pwszNamespace or pwszObjectName cannot be sent: {error}")
    require(interface is None or isinstance(interface, str), "interface is a name, an address or None")
    require(isinstance(port, int) and 0 < port < 65536, f"port is 1 to 65535, not {port!r}")
    require(security in MODES, f"security is one of {', '.join(MODES)}, not {security!r}")
    require(
        isinstance(timeout, int | float) and 0 < timeout < math.inf,
        f"timeout is a number of seconds above 0, not {timeout!r}",
    )
    return Settings(
        server=request.pwszServer,
        namespace=request.pwszNamespace,
        content=request.pwszObjectName,
        cache_size=cache or DEFAULT_CACHE_SIZE,
        interface=interface,
        port=port,
        security=security,
        timeout=timeout,
    )
