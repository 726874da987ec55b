"""Real servers and receivers as processes on a lab's hosts, and the judge of how they ended.

Whoever waits here waits for a line of NDJSON, for the end of a process, or for both.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lab import Host, Lab, missing_tools
from processes import Fleet, Process

__all__ = ["LARGE", "PATIENCE", "SEED", "Neighbourhood", "Receiver", "events", "image", "why_not"]

HERE = Path(__file__).resolve().parent
HOME = HERE.parent.parent
PROGRAM = (sys.executable, "-P", "-m", "cli.deploy_image")
LARGE = bool(os.environ.get("HOSTILE_LARGE"))
"""Whether what takes long was asked for (`make hostile`)."""
SEED = int(os.environ.get("HOSTILE_SEED", "5041"))
"""What decides every random moment here."""
PATIENCE = 250.0
"""Seconds until somebody who waits for what never comes fails; nothing here measures time."""
DOCUMENTED = frozenset({0, 1, 3, 4, 5, 7})
"""README's exit codes, less those that no neighbour can bring about: 2, 6 and 130."""
KILLED = -9


def why_not(*tools: str) -> str | None:
    """Why there can be no lab here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = subprocess.run(["which", *tools], capture_output=True, check=False) if tools else None
    if (missing := missing_tools(loss=False)) or (probe is not None and probe.returncode):
        return f"not installed: {', '.join((*missing, *tools))}"
    return None


def image(path: Path, size: int, seed: int) -> Path:
    """A file of pseudo-random bytes."""
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


class Receiver:
    """A `deploy-image receive` with what it was to bring."""

    def __init__(self, process: Process, target: Path, source: Path) -> None:
        self.process = process
        self.target = target
        self.source = source
        self.before = target.read_bytes() if target.exists() else None

    def wrong_name(self) -> bool:
        """Whether what stands under the final name is neither the image nor what stood there before."""
        if not self.target.exists():
            return self.before is not None
        return self.target.read_bytes() not in (self.source.read_bytes(), self.before)

    def whole(self) -> bool:
        """Whether the image stands under its final name."""
        return self.target.exists() and self.target.read_bytes() == self.source.read_bytes()

    def judge(self) -> str:
        """What is wrong with its end and its target; nothing, as a rule."""
        code = self.process.returncode
        problems = []
        if code is None:
            problems.append("still runs")
        elif code != KILLED and code not in DOCUMENTED:
            problems.append(f"exit code {code} is not documented")
        if code == 0 and not self.whole():
            problems.append("exit code 0 without the image")
        if self.wrong_name():
            problems.append("what has the final name is wrong")
        if problems:
            problems.append(f"last words: {self.process.last_words()}")
        return "; ".join(problems)


class Neighbourhood:
    """The processes on one lab. Leaving the context ends whatever still runs.

    Attributes:
        fleet: listens to them.
        environment: what makes them this checkout's.
    """

    environment: ClassVar[dict[str, str]] = {"PYTHONPATH": str(HOME)}

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.fleet = Fleet()
        self.receivers: list[Receiver] = []

    def __enter__(self) -> Neighbourhood:
        return self

    def __exit__(self, *error: object) -> None:
        self.fleet.__exit__(None, None, None)

    def serve(self, content: Path, *words: str, host: Host | None = None) -> Process:
        """A server that listens."""
        host = self.lab.server if host is None else host
        line = (*PROGRAM, "serve", "--json", "--interface", host.address, *words, str(content))
        server = self._start(f"server of {host.name}", host, line)
        self.wait(server, "server-listening")
        return server

    def receive(
        self, content: Path, host: Host, *words: str, target: Path | None = None, server: Host | None = None
    ) -> Receiver:
        """A receiver of what a server offers; `words` may name its port."""
        server = self.lab.server if server is None else server
        target = self.folder / f"copy-{len(self.receivers)}" if target is None else target
        line = (*PROGRAM, "receive", "--json", "--server", server.address, "--interface", host.address)
        process = self._start(f"receiver of {host.name}", host, (*line, *words, content.name, str(target)))
        self.receivers.append(Receiver(process, target, content))
        return self.receivers[-1]

    def piped(self, content: Path, host: Host) -> list[str]:
        """The command line of a receiver that writes to its standard output."""
        line = (*PROGRAM, "receive", "--json", "--server", self.lab.server.address)
        return [*line, "--interface", host.address, content.name, "-"]

    def attack(self, host: Host, *words: str) -> Process:
        """An attacker that has begun."""
        line = (sys.executable, "-P", str(HERE / "attacker.py"), *words)
        attacker = self._start(f"attacker of {host.name}", host, line)
        assert self.fleet.wait(
            lambda: attacker.when("^flooding") is not None or attacker.returncode is not None, PATIENCE
        )
        assert attacker.when("^flooding") is not None, attacker.last_words()
        return attacker

    def _start(self, name: str, host: Host, line: Sequence[str]) -> Process:
        return self.fleet.start(name, host.words(*line), self.environment)

    def wait(self, process: Process, event: str, count: int = 1) -> dict[str, Any]:
        """The `count`-th event of a kind, once it has come."""
        assert self.until(process, lambda: len(events(process, event)) >= count), (
            f"{process.name}: no {event!r}; last words: {process.last_words()}"
        )
        return events(process, event)[count - 1]

    def until(self, process: Process, holds: Callable[[], bool]) -> bool:
        """Listen until something holds, or until the process has ended; whether it holds."""
        self.fleet.wait(lambda: holds() or process.returncode is not None, PATIENCE)
        return holds()

    def progressed(self, receiver: Receiver, share: float) -> bool:
        """Listen until a receiver has a share of the content; False when it ended before."""

        def far() -> bool:
            reports = events(receiver.process, "progress")
            return bool(reports) and reports[-1]["received"] >= share * reports[-1]["total"]

        return self.until(receiver.process, far)

    def all_end(self) -> list[int | None]:
        """Listen until every receiver has ended, judge them, and give their exit codes."""
        self.fleet.wait_ended([receiver.process for receiver in self.receivers], PATIENCE)
        problems = [f"{each.process.name}: {problem}" for each in self.receivers if (problem := each.judge())]
        assert not problems, "\n".join(problems)
        return [receiver.process.returncode for receiver in self.receivers]

    def finish(self, server: Process, left: int) -> dict[str, Any]:
        """Stop a server once so many clients have left it; its session in its last statistics.

        A receiver that has ended has sent its LEAVE; a server with little of the processor reads it later.
        """
        self.wait(server, "client-left", left)
        self.fleet.stop([server])
        sessions = [record for record in events(server, "statistics") if record["sessions"]]
        assert sessions, server.last_words()
        found: dict[str, Any] = sessions[-1]["sessions"][0]
        return found


def events(process: Process, event: str) -> list[dict[str, Any]]:
    """The NDJSON objects of one kind that a process has printed."""
    start = f'{{"event":"{event}"'
    return [json.loads(line) for _, line in process.lines if line.startswith(start)]
