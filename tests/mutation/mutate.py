"""Plants one fault after the other in a copy of the package, runs its tests, and says which fault nobody saw.

    .venv/bin/python tests/mutation/mutate.py [--jobs 2] [--only WORD] [--list]

A fault counts as caught only when tests ran and failed, or hung until their time was over. A run that could
not collect its tests says nothing about them and counts as broken, a fault whose tests all pass as survived.
Before any fault the same tests must pass in the copy as it is. The exit code is 0 when all were caught.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fault import PACKAGE, ROOT, Fault, read_all

NEEDED = (PACKAGE, "cli", "tests", "captures", "docs", "pyproject.toml", "README.md", "Makefile")
TEST_TIMEOUT = 60
"""Seconds for one test; a fault that makes a loop endless is caught by it."""
RUN_TIMEOUT = 600
FAILED = 1
"""Exit code of pytest when tests ran and failed; 2 to 5 are its own troubles."""


class Verdict(Enum):
    """What became of a fault."""

    CAUGHT = "caught"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault's fate; `who` is the test that saw it, or why nothing can be said."""

    fault: Fault
    verdict: Verdict
    who: str
    seconds: float


class Copy:
    """A copy of what tests need, in which one fault at a time is planted."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for name in NEEDED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__", "bench"))
            elif source.exists():
                shutil.copy2(source, place / name)

    def python(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run the interpreter where this copy of the package comes first; no caches of bytecode survive."""
        environment = {**os.environ, "PYTHONPATH": str(self.place), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def test(self, paths: tuple[str, ...]) -> tuple[int, str]:
        """Run tests to the first failure: pytest's exit code, and what failed."""
        options = ("-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--timeout={TEST_TIMEOUT}")
        try:
            done = self.python("-m", "pytest", *options, *paths, timeout=RUN_TIMEOUT)
        except subprocess.TimeoutExpired:
            return FAILED, f"the run had no end in {RUN_TIMEOUT} s"
        failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if "+ Timeout +" in done.stdout + done.stderr:
            return FAILED, "a test had no end"
        return done.returncode, failures[0] if failures else (done.stdout + done.stderr)[-300:]

    def judge(self, fault: Fault) -> Outcome:
        """Plant a fault, run its tests, take it out again."""
        begun = time.perf_counter()
        module = self.place / PACKAGE / fault.path
        original = module.read_text()
        module.write_text(fault.plant(original))
        try:
            code, who = self.test(fault.tests)
        finally:
            module.write_text(original)
        verdict = {0: Verdict.SURVIVED, FAILED: Verdict.CAUGHT}.get(code, Verdict.BROKEN)
        return Outcome(fault, verdict, who, time.perf_counter() - begun)

    def check(self, faults: list[Fault]) -> None:
        """Make sure that this copy is what runs, and that its tests pass without a fault.

        Raises:
            SystemExit: one of the two does not hold, so no verdict would mean anything.
        """
        where = self.python("-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", timeout=60).stdout.strip()
        if not where.startswith(str(self.place)):
            raise SystemExit(f"tests would run against {where}, not against the copy in {self.place}")
        for paths in dict.fromkeys(fault.tests for fault in faults):
            code, who = self.test(paths)
            if code:
                raise SystemExit(f"without any fault, {' '.join(paths)} end with {code}: {who}")


def campaign(faults: list[Fault], jobs: int) -> list[Outcome]:
    """Judge every fault, in as many copies as there are jobs."""
    waiting: queue.SimpleQueue[Fault] = queue.SimpleQueue()
    for fault in faults:
        waiting.put(fault)
    outcomes: list[Outcome] = []
    said = threading.Lock()

    def work(copy: Copy) -> None:
        while True:
            try:
                fault = waiting.get_nowait()
            except queue.Empty:
                return
            outcome = copy.judge(fault)
            with said:
                outcomes.append(outcome)
                head = f"{len(outcomes)}/{len(faults)} {outcome.verdict.value} {outcome.seconds:.1f} s"
                print(f"{head}  {fault.path}: {fault.name}  [{outcome.who}]", flush=True)

    with tempfile.TemporaryDirectory(prefix="mutation-") as place:
        copies = [Copy(Path(place) / str(number)) for number in range(jobs)]
        copies[0].check(faults)
        threads = [threading.Thread(target=work, args=(copy,)) for copy in copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return outcomes


def main() -> int:
    """Run the campaign and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="faults with this word in their module or name")
    parser.add_argument("--list", action="store_true", help="print the table instead")
    options = parser.parse_args()
    faults = [fault for fault in read_all() if options.only in f"{fault.path}: {fault.name}"]
    if options.list:
        print(*(f"{fault.path}: {fault.name}" for fault in faults), sep="\n")
        return 0
    outcomes = campaign(faults, options.jobs)
    missed = [outcome for outcome in outcomes if outcome.verdict is not Verdict.CAUGHT]
    for outcome in missed:
        print(f"{outcome.verdict.value}: {outcome.fault.path}: {outcome.fault.name}  [{outcome.who}]")
    print(f"{len(outcomes)} faults planted, {len(outcomes) - len(missed)} caught")
    return 1 if missed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
