"""Our own commands as child processes, followed through their NDJSON. For `deploy-image demo`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

import wdstransport

__all__ = ["ChildError", "Record", "command", "environment", "run_child"]

Record = dict[str, Any]
"""One line of NDJSON."""

_KEPT = 4000
"""Characters of a child's standard error that are kept for the message when it fails."""


class ChildError(wdstransport.TransportError):
    """A process of the demo failed; the demo ends with the same exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        # A child that a signal killed has a negative code, which no process can exit with.
        self.exit_code = exit_code if exit_code > 0 else 1


def command(*words: str) -> list[str]:
    """The command line for a `deploy-image` of this very installation."""
    # -P: else the working directory comes first, and anything there that is called `cli` would run instead.
    return [sys.executable, "-P", "-m", "cli.deploy_image", *words]


async def run_child(name: str, words: Sequence[str], note: Callable[[Record], None]) -> None:
    """Run a command to its end, handing each line of its NDJSON to `note`. Cancelling sends it SIGTERM.

    Raises:
        ChildError: it failed; the message is the child's own.
    """
    failure = ""
    complaints = ""

    async def read_records(stream: trio.abc.ReceiveStream) -> None:
        nonlocal failure
        async for line in _lines(stream):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "event" in record:
                if record["event"] == "error":
                    failure = str(record.get("message", ""))
                note(record)

    async def read_complaints(stream: trio.abc.ReceiveStream) -> None:
        nonlocal complaints
        async for chunk in stream:
            complaints = (complaints + chunk.decode(errors="replace"))[-_KEPT:]

    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
                env=environment(),
            )
        )
        assert process.stdout is not None
        assert process.stderr is not None
        nursery.start_soon(read_records, process.stdout)
        nursery.start_soon(read_complaints, process.stderr)
    if process.returncode:
        why = failure or complaints.strip() or _ended(process.returncode)
        raise ChildError(f"{name} failed: {why}", process.returncode)


def _ended(code: int) -> str:
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended with exit code {code} without a word"


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in stream:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
    if rest:
        yield rest


def environment() -> dict[str, str]:
    """The environment of a child: ours, and the way to this installation."""
    # Works from a checkout that was never installed, too.
    home = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([home, inherited] if inherited else [home])}
