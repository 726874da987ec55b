"""Why a datagram was dropped: the one vocabulary of codecs, sessions and statistics."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["DropReason", "WireError"]


class DropReason(StrEnum):
    """Why a datagram was not accepted; the value is the key it is counted under."""

    TRUNCATED = "truncated"
    """It ends inside a field."""
    NOT_WDS = "not_wds"
    """It does not begin with the identifier of MS-WDSMT 2.2.2."""
    SECURITY_TYPE = "security_type"
    """Its SecurityHeaderType is not that of the session (MS-WDSMT 3.1.5.1.1, 3.2.5.2)."""
    SECURITY_LENGTH = "security_length"
    """Its SecurityDataLen is not that of the session's security mode."""
    CHECKSUM = "checksum"
    HMAC = "hmac"
    SIGNATURE = "signature"
    SESSION_ID = "session_id"
    OP_CODE = "op_code"
    OPTIONS = "options"
    """Options where none are allowed, twice the same one, or one with an impossible value."""
    TRAILING = "trailing"
    """Bytes follow the end of the packet."""
    FIELD = "field"
    """A field's value is one that its section does not allow."""
    STATE = "state"
    """Well-formed, but not expected in the session's state. From here on, reasons that sessions count."""
    FOREIGN_SOURCE = "foreign_source"
    STALE = "stale"
    UNKNOWN_CLIENT = "unknown_client"
    NOT_FOR_US = "not_for_us"


class WireError(Exception):
    """Bytes that are not what they should be: the only exception decoding raises.

    Not part of the tree of `wdstransport.errors`: it never reaches a user. Sessions count its reason.

    Attributes:
        reason: what to count the datagram under.
    """

    def __init__(self, reason: DropReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
