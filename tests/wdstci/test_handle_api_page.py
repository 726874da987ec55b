"""The programs of docs/handle-api.md, run as they stand there, and its promises about names."""

import re
import sys
from pathlib import Path

import pytest

import wdstransport
from wdstransport import wdstci

PAGE = Path(__file__).parents[2] / "docs" / "handle-api.md"
HANDLES, ASYNC = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def run(server, tmp_path, monkeypatch, capsys):
    """Run a program of the page against the test's server, whose port is not the usual one."""
    for function in (wdstci.InitializeSession, wdstransport.receive):
        monkeypatch.setitem(function.__kwdefaults__, "port", server.port)

    def run(program, remote, target):
        monkeypatch.setattr(sys, "argv", ["consumer", "127.0.0.1", "images", remote, str(target)])
        exec(compile(program, str(PAGE), "exec"), {"__name__": "__main__"})
        return capsys.readouterr()

    return run


@pytest.mark.parametrize("program", [HANDLES, ASYNC], ids=["handles", "async"])
def test_the_program_receives_the_file(run, server, tmp_path, program):
    target = tmp_path / "image"
    target.write_bytes(b"something older and longer" * 100_000)
    assert "done" in run(program, "image", target).out
    assert target.read_bytes() == server.contents["image"]


def test_the_program_says_what_failed(run, tmp_path):
    out = run(HANDLES, "no such content", tmp_path / "image").out
    assert "failed: ERROR_FILE_NOT_FOUND (2)" in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that takes nothing")
def test_the_program_cancels_when_it_cannot_write(run):
    said = run(HANDLES, "image", "/dev/full")
    assert "failed: ERROR_CANCELLED (1223)" in said.out
    assert said.err.count("cannot write") == 1


def test_the_programs_are_as_long_as_promised():
    lines = [line for line in HANDLES.splitlines() if line.strip()]
    assert len(lines) <= 40
    assert len([line for line in ASYNC.splitlines() if line.strip()]) <= 10


def test_every_function_of_the_header_has_its_row():
    functions = re.findall(r"^\| `WdsTransportClient(\w+)\(", PAGE.read_text(), re.MULTILINE)
    assert len(functions) == 14
    for name in functions:
        assert callable(getattr(wdstci, name))


def test_every_code_and_constant_that_the_page_names_is_there():
    named = set(re.findall(r"\b(?:ERROR|WSA|WDSTPC_E|WDS_TRANSPORTCLIENT)_?[A-Z0-9_]+\b", PAGE.read_text()))
    assert len(named) > 20
    assert {name for name in named if not hasattr(wdstci, name)} == {"WDS_TRANSPORTCLIENT_CALLBACKS"}
