"""Events as NDJSON: one object per line, `event` first, then the fields of its dataclass.

The schema is the dataclasses: `docs/ndjson.md` describes every field, and a test compares the two.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping

import wdstransport

__all__ = [
    "TYPES",
    "ErrorReport",
    "Interrupted",
    "encode",
    "event_name",
    "json_type",
    "message_of",
    "report_error",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReport:
    """The command failed; this is its last event."""

    error: str
    message: str
    exit_code: int
    code: int | None
    reason: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """A signal ended the command; the other side was told."""

    signal: str
    exit_code: int


_NAMES: Mapping[type, str] = {
    wdstransport.ServerStatistics: "statistics",
    wdstransport.ReceiveResult: "result",
    ErrorReport: "error",
}

TYPES: tuple[type, ...] = (
    wdstransport.ServerListening,
    wdstransport.SessionOpened,
    wdstransport.SendingStarted,
    wdstransport.ClientJoined,
    wdstransport.ClientLeft,
    wdstransport.SessionEnded,
    wdstransport.RequestRefused,
    wdstransport.Warned,
    wdstransport.ServerStatistics,
    wdstransport.Unanswered,
    wdstransport.Initiated,
    wdstransport.JoinedSession,
    wdstransport.Progress,
    wdstransport.Finished,
    wdstransport.Kept,
    wdstransport.ReceiveResult,
    ErrorReport,
    Interrupted,
)
"""Everything that becomes a line, in the order of the documentation."""


def event_name(kind: type) -> str:
    """What `event` says for a dataclass: `ClientJoined` is `client-joined`."""
    return _NAMES.get(kind) or _kebab(kind.__name__)


def encode(event: object) -> str:
    """One line, without its end, in ASCII.

    Raises:
        TypeError: `event` is none of `TYPES`.
    """
    if type(event) not in TYPES:
        raise TypeError(f"{type(event).__name__} has no place in the NDJSON schema")
    return json.dumps(
        {"event": event_name(type(event)), **_fields(event)}, allow_nan=False, separators=(",", ":")
    )


def report_error(error: wdstransport.TransportError) -> ErrorReport:
    """The last line of a command that failed."""
    return ErrorReport(
        error=_kebab(type(error).__name__.removesuffix("Error")),
        message=message_of(error),
        exit_code=error.exit_code,
        code=error.code if isinstance(error, wdstransport.RefusedError) else None,
        reason=error.reason if isinstance(error, wdstransport.RemovedError) else None,
    )


def message_of(error: wdstransport.TransportError) -> str:
    """What an error says, with what was added to it on its way, such as where the part that arrived is."""
    return " ".join([str(error), *getattr(error, "__notes__", ())])


def json_type(annotation: object) -> str:
    """The JSON type of a field, as the documentation names it.

    Raises:
        TypeError: for an annotation that has no JSON form here.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        kinds = [json_type(argument) for argument in arguments if argument is not type(None)]
        return " or ".join([*kinds, "null"] if type(None) in arguments else kinds)
    if annotation == tuple[str, int]:
        return "[host, port]"
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"array of {json_type(arguments[0])}"
    if origin in (Mapping, dict):
        return f"object of {json_type(arguments[1])}"
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return "object"
    simple: Mapping[object, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
    if annotation not in simple:
        raise TypeError(f"{annotation!r} has no JSON form")
    return simple[annotation]


def _kebab(name: str) -> str:
    return re.sub(r"(?<=.)([A-Z])", r"-\1", name).lower()


def _fields(record: object) -> dict[str, object]:
    assert dataclasses.is_dataclass(record)
    return {field.name: _value(getattr(record, field.name)) for field in dataclasses.fields(record)}


def _value(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _value(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_value(item) for item in value]
    if dataclasses.is_dataclass(value):
        return _fields(value)
    return str(value)
