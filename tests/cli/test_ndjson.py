from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest

import wdstransport
from cli import ndjson

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ndjson.md").read_text()
_ROW = re.compile(r"\| `(\w+)` \| ([^|]+) \| ([^|]+) \|")
NESTED = {"session": wdstransport.SessionStatistics, "client": wdstransport.ClientStatistics}


def documented() -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in PAGE.splitlines():
        if line.startswith("#"):
            current = sections.setdefault(line.lstrip("# "), {})
        elif match := _ROW.fullmatch(line):
            assert match[1] not in current, f"{match[1]} is documented twice"
            current[match[1]] = match[2].strip()
    return {name: fields for name, fields in sections.items() if fields}


def declared(kind: type) -> dict[str, str]:
    hints = typing.get_type_hints(kind)
    return {field.name: ndjson.json_type(hints[field.name]) for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", ndjson.TYPES, ids=ndjson.event_name)
def test_every_field_of_an_event_is_documented_with_its_type(kind):
    assert documented()[ndjson.event_name(kind)] == declared(kind)


@pytest.mark.parametrize("name", NESTED)
def test_every_field_of_a_nested_object_is_documented_with_its_type(name):
    assert documented()[name] == declared(NESTED[name])


def test_nothing_is_documented_that_does_not_exist():
    assert set(documented()) == {ndjson.event_name(kind) for kind in ndjson.TYPES} | set(NESTED)


def test_every_event_of_the_api_has_a_place_in_the_schema():
    api = {*typing.get_args(wdstransport.ServerEvent), *typing.get_args(wdstransport.ClientEvent)}
    assert api <= set(ndjson.TYPES)


def test_every_error_name_is_documented():
    kinds = [wdstransport.TransportError]
    names = set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.__module__ == "wdstransport.errors":
            names.add(ndjson.report_error(_instance(kind)).error)
    row = next(line for line in PAGE.splitlines() if line.startswith("| `error` | string | its kind"))
    assert names == set(re.findall(r"`([\w-]+)`", row)) - {"error"}


def _instance(kind: type[wdstransport.TransportError]) -> wdstransport.TransportError:
    if kind in (wdstransport.RefusedError, wdstransport.RemovedError):
        return kind("message", 2)
    return kind("message")


def test_event_names_are_kebab_case():
    assert ndjson.event_name(wdstransport.ClientJoined) == "client-joined"
    assert ndjson.event_name(wdstransport.ServerStatistics) == "statistics"
    assert ndjson.event_name(wdstransport.Warned) == "warned"


def test_an_event_becomes_one_ascii_line_with_its_fields():
    event = wdstransport.ClientJoined(
        seconds=1.5,
        session_id=7,
        client_id=3,
        name="b\u00fcro\n\x1b[31m",
        address=("10.0.0.7", 4000),
        mac="00",
    )
    line = ndjson.encode(event)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {
        "event": "client-joined",
        "seconds": 1.5,
        "session_id": 7,
        "client_id": 3,
        "name": "b\u00fcro\n\x1b[31m",
        "address": ["10.0.0.7", 4000],
        "mac": "00",
    }


def test_statistics_nest_sessions_and_clients(server_statistics):
    record = json.loads(ndjson.encode(server_statistics))
    assert record["event"] == "statistics"
    assert record["sessions"][0]["clients"][0]["name"] == "pc-1"
    assert record["sessions"][0]["clients"][0]["cpu"] is None
    assert record["sessions"][0]["dropped"] == {"checksum": 2}
    assert record["features"] == {"segmentation": "on"}


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_a_number_that_json_cannot_hold_is_null(number):
    assert json.loads(ndjson.encode(wdstransport.Warned(seconds=number, message="m")))["seconds"] is None


def test_what_is_no_event_is_refused():
    with pytest.raises(TypeError, match="no place"):
        ndjson.encode("text")


def test_an_error_carries_its_exit_code_and_its_own_details():
    refused = ndjson.report_error(wdstransport.RefusedError("no such image", 2))
    assert refused == ndjson.ErrorReport(
        error="refused", message="no such image", exit_code=3, code=2, reason=None
    )
    removed = ndjson.report_error(wdstransport.RemovedError("kicked", 1))
    assert (removed.error, removed.exit_code, removed.code, removed.reason) == ("removed", 4, None, 1)
    assert ndjson.report_error(wdstransport.NobodyAnsweredError("x")).error == "nobody-answered"


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (int, "integer"),
        (bool, "boolean"),
        (str | None, "string or null"),
        (tuple[str, ...], "array of string"),
        (Mapping[str, int], "object of integer"),
        (tuple[str, int], "[host, port]"),
    ],
)
def test_json_types_of_annotations(annotation, name):
    assert ndjson.json_type(annotation) == name


def test_an_annotation_without_a_json_form_is_refused():
    with pytest.raises(TypeError, match="no JSON form"):
        ndjson.json_type(complex)
