"""Kills: transfers of which one process ends by `kill -9` at a moment that a seed decides.

A wave is several such transfers at once, each with a server, a port and receivers of its own: whose server is
killed waits half a minute for nothing, and so do the others of its wave.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from neighbourhood import PATIENCE, Neighbourhood, Receiver, events, image
from processes import Process

__all__ = ["Trial", "run_wave"]

SIZE = 2_000_000
RATE = "4M"
OLD = b"what stood there before"


class Trial:
    """One transfer and its kill.

    Attributes:
        victim: `server` or `receiver`.
        moment: `start` (of the receivers), `middle` (of the image) or `end` (of storing it).
        hit: the kill came while there was something to spoil.
    """

    def __init__(
        self, place: Neighbourhood, number: int, rng: random.Random, victim: str | None = None
    ) -> None:
        self.place = place
        self.port = str(6000 + number)
        self.victim = victim or rng.choice(("server", "receiver"))
        self.count = 1 if self.victim == "server" else 2
        self.moment = rng.choice(("start", "middle", "middle", "end"))
        self.share = rng.random()
        self.delay = rng.random() * {"start": 2.0, "middle": 0.5, "end": 0.8}[self.moment]
        self.force = rng.random() < 0.5
        self.folder = place.folder / f"trial-{number}"
        self.folder.mkdir()
        self.content = image(self.folder / "image", SIZE + rng.randrange(5000), rng.randrange(2**32))
        self.server: Process | None = None
        self.receivers: list[Receiver] = []
        self.killed: Process | None = None
        self.hit = False
        self.state = "nothing"
        self._due: float | None = None

    def serve(self) -> Process:
        """A server of this trial's content, on its port."""
        # A receiver may be killed before it joins: the other does not wait for it.
        clients = ("--min-clients", str(self.count), "--max-wait", "3")
        words = ("--rate", RATE, *clients, "--port", self.port)
        return self.place.serve(self.content, *words)

    def receive(self, number: int) -> Receiver:
        """A receiver; the same number means the same target."""
        target = self.folder / f"copy-{number}"
        words = ["--port", self.port]
        if self.force:
            target.write_bytes(OLD)
            words.append("--force")
        host = self.place.lab.receivers[number]
        return self.place.receive(self.content, host, *words, target=target)

    def start(self) -> None:
        """Start the receivers; the server runs."""
        self.receivers = [self.receive(number) for number in range(self.count)]

    def step(self) -> None:
        """Kill when the moment has come."""
        if self.killed is not None:
            return
        assert self.server is not None
        victim = self.server if self.victim == "server" else self.receivers[0].process
        if self._due is None and self._reached(victim):
            self._due = time.monotonic() + self.delay
        over = all(each.process.returncode is not None for each in self.receivers)
        if over or (self._due is not None and time.monotonic() >= self._due):
            self._kill(victim)

    def _reached(self, victim: Process) -> bool:
        if self.moment == "start":
            return True
        first = self.receivers[0]
        if self.moment == "end":
            part = Path(f"{first.target}.part")
            reports = events(first.process, "progress")
            stored = bool(reports) and reports[-1]["stored"] >= 0.8 * reports[-1]["total"]
            return stored or (first.whole() and not part.exists())
        reports = events(first.process, "progress")
        return bool(reports) and reports[-1]["received"] >= self.share * 0.8 * reports[-1]["total"]

    def _kill(self, victim: Process) -> None:
        running = [each.process for each in self.receivers if each.process.returncode is None]
        self.hit = bool(running) if self.victim == "server" else victim in running
        if victim.returncode is None:
            os.kill(victim.pid, signal.SIGKILL)
        self.killed = victim
        parts = [Path(f"{each.target}.part").exists() for each in self.receivers[:1]]
        self.state = "whole" if self.receivers[0].whole() else "part" if any(parts) else "nothing"

    def inspect(self) -> list[str]:
        """What is wrong under the final names now."""
        return [f"{self}: {each.target.name}" for each in self.receivers if each.wrong_name()]

    def judge(self, counts: Counter[str]) -> list[str]:
        """What is wrong with how everybody ended; counts what happened."""
        problems = []
        for receiver in self.receivers:
            code = receiver.process.returncode
            killed = receiver.process is self.killed
            allowed = {0, -9} if killed else {0, 5} if self.victim == "server" else {0}
            if code not in allowed:
                problems.append(f"exit code {code} of {receiver.process.name}, allowed {sorted(allowed)}")
            if problem := receiver.judge():
                problems.append(problem)
            counts[f"exit {code}"] += 1
        if self.hit:
            counts["kills"] += 1
            counts[f"{self.victim} killed at the {self.moment}"] += 1
            counts[f"the first receiver had then: {self.state}"] += 1
        else:
            counts["too late to kill"] += 1
        return [f"{self}: {problem}" for problem in problems]

    def __str__(self) -> str:
        return f"port {self.port}: {self.victim} killed at its {self.moment} + {self.delay:.3f} s"


def _until(place: Neighbourhood, trials: list[Trial], holds: Callable[[], bool], problems: list[str]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            return False
        place.fleet.wait(lambda: False, 0.005)
        for trial in trials:
            before = trial.killed
            trial.step()
            if trial.killed is not before:
                problems += trial.inspect()
    return True


def run_wave(place: Neighbourhood, trials: list[Trial]) -> Counter[str]:
    """Kill, judge, and receive once more over what the dead have left; what happened, counted.

    Raises:
        AssertionError: something is wrong; it says what.
    """
    counts: Counter[str] = Counter()
    problems: list[str] = []
    for trial in trials:
        trial.server = trial.serve()
    for trial in trials:
        trial.start()
    ended = _until(
        place,
        trials,
        lambda: all(
            trial.killed is not None and all(each.process.returncode is not None for each in trial.receivers)
            for trial in trials
        ),
        problems,
    )
    if not ended:
        problems.append("somebody still runs")
    for trial in trials:
        problems += trial.judge(counts)
        problems += trial.inspect()
    # Once more: leftovers of the dead are in nobody's way, and neither is a dead server's port.
    again = []
    for trial in trials:
        if trial.killed is trial.server:
            place.fleet.wait_ended([trial.killed], PATIENCE)
            trial.server = trial.serve()
        trial.force = True
        again.append(trial.receive(0))
    place.fleet.wait_ended([each.process for each in again], PATIENCE)
    for receiver in again:
        if receiver.process.returncode != 0 or not receiver.whole():
            problems.append(f"again: {receiver.process.returncode}, {receiver.process.last_words()}")
        else:
            counts["whole when received again"] += 1
    assert not problems, "\n".join(problems)
    return counts
