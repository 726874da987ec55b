"""Declarations that the three documents share, and the one way declarations are run."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from io import BytesIO
from typing import Any

from construct import (
    Bytes,
    Construct,
    ConstructError,
    ExprAdapter,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Prefixed,
    Rebuild,
    StreamError,
    Struct,
    ValidationError,
    this,
)

from wdstransport.wire.reasons import DropReason, WireError

__all__ = [
    "BYTES_8",
    "BYTES_16",
    "RANGES",
    "Buffer",
    "RuleError",
    "build",
    "check_address",
    "check_ranges",
    "counted",
    "member",
    "parse",
    "refuse_rest",
]

Buffer = bytes | bytearray | memoryview

BYTES_8: Construct = Prefixed(Int8ub, GreedyBytes)
"""Bytes after their length in one byte."""
BYTES_16: Construct = Prefixed(Int16ub, GreedyBytes)
"""Bytes after their length in two bytes."""


class RuleError(Exception):
    """A value that its section forbids, found before it is known whether it was read or is to be written.

    Never leaves this package: decoders make it a `WireError`, encoders a `ValueError`.

    Attributes:
        reason: what to count the datagram under, when it was read.
    """

    def __init__(self, message: str, reason: DropReason = DropReason.FIELD) -> None:
        super().__init__(message)
        self.reason = reason


def counted(record: str) -> Construct:
    """Declares an array of fixed records after its two-byte count.

    Construct's own arrays cost several microseconds an element, and one datagram holds a NACK of 4,000
    ranges: the elements are unpacked at once instead, from exactly count x size bytes.

    Args:
        record: one element in the notation of `struct`, without byte order, which is the network's.

    Returns:
        A declaration whose value is a tuple of tuples.
    """
    element = struct.Struct(">" + record)
    return ExprAdapter(
        Struct(
            "count" / Rebuild(Int16ub, lambda context: len(context.rows) // element.size),
            "rows" / Bytes(this.count * element.size),
        ),
        decoder=lambda value, context: tuple(element.iter_unpack(value.rows)),
        encoder=lambda value, context: {"rows": b"".join(element.pack(*row) for row in value)},
    )


RANGES = counted("QQ")
"""Pairs of first and last, both inclusive (MS-WDSMT 2.2.18.1 and 2.2.19.1, MS-WDSMA 2.2.3.1)."""


def member(subcon: Construct, kind: type[IntEnum]) -> Construct:
    """Declares a number that must be a member of an enumeration."""

    def decode(value: int, context: object) -> IntEnum:
        try:
            return kind(value)
        except ValueError as error:
            raise ValidationError(f"{value} is no {kind.__name__}") from error

    return ExprAdapter(subcon, decoder=decode, encoder=lambda value, context: int(value))


def parse(declaration: Construct, stream: BytesIO) -> Any:
    """Parses one declaration from where a stream stands.

    Raises:
        WireError: the stream ends inside a field, or a field has a value that it cannot have.
    """
    try:
        return declaration.parse_stream(stream)
    except StreamError as error:
        raise WireError(DropReason.TRUNCATED, "ends inside a field") from error
    except ConstructError as error:
        raise WireError(DropReason.FIELD, str(error)) from error


def refuse_rest(stream: BytesIO) -> None:
    """Refuses bytes after the end of what was declared.

    Raises:
        WireError: there are some.
    """
    if stream.read(1):
        raise WireError(DropReason.TRAILING, "bytes follow the end of the packet")


def build(declaration: Construct, value: Any) -> bytes:
    """Builds one declaration.

    Raises:
        ValueError: a value does not fit its field.
    """
    try:
        built: bytes = declaration.build(value)
    except (ConstructError, struct.error) as error:
        raise ValueError(f"cannot be written: {error}") from error
    return built


def check_address(name: str, address: bytes) -> None:
    """Refuses what is neither an IPv4 nor an IPv6 address.

    Raises:
        RuleError: the length is neither 4 nor 16 bytes.
    """
    if len(address) not in (4, 16):
        raise RuleError(f"{name} has {len(address)} bytes, not 4 or 16")


def check_ranges(ranges: Iterable[tuple[int, int]]) -> None:
    """Refuses ranges that end before they start.

    Which numbers exist at all is for the session to judge.

    Raises:
        RuleError: one does.
    """
    for first, last in ranges:
        if first > last:
            raise RuleError(f"range {first} to {last} ends before it starts")
