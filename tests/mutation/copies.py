"""A copy of the package in which one fault at a time is planted, and how its tests are run there.

Each run is a fork of a process that has imported what the package and its tests import of others, but nothing
of the copy: what a run of a few tests costs is mostly that.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import hypothesis
import pytest
from fault import PACKAGE, ROOT, Fault

NEEDED = (PACKAGE, "cli", "tests", "captures", "docs", "pyproject.toml", "README.md", "Makefile")
OTHERS = ("construct", "cryptography.hazmat.primitives.asymmetric.rsa", "numpy", "rich", "trio", "typer")
TEST_TIMEOUT = 30
"""Seconds for one test; a fault that makes a loop endless is caught by it."""
RUN_TIMEOUT = 120
SLOW_RUN_TIMEOUT = 600
"""Seconds for a run without and with simulated networks: no test's own timeout ends a fixture that hangs."""
SLOW = ("tests/sim",)
FAILED = 1
"""Exit code of pytest when tests ran and failed; 2 to 5 are its own troubles."""
OPTIONS = (
    "-x",
    "-q",
    "--tb=no",
    "--hypothesis-seed=0",
    f"--timeout={TEST_TIMEOUT}",
    *("-p", "no:cacheprovider"),
    *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),
)


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
        for name in OTHERS:
            importlib.import_module(name)
        # That a test fails is all one wants to know, not by which smallest example; being slow is no failure.
        hypothesis.settings.register_profile(
            "faults",
            phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
            database=None,
            deadline=None,
            suppress_health_check=(hypothesis.HealthCheck.too_slow,),
        )
        hypothesis.settings.load_profile("faults")
        # Bytecode of the modules as they are; a run writes none, and a planted module is newer than its own.
        compileall.compile_dir(place, quiet=2)
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests"],
            cwd=place,
            env=self._environment(),
            capture_output=True,
            check=False,
        )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.place)}

    def digest(self) -> str:
        """Names the sources and tests as they are, so that a baseline counts for these alone."""
        digest = hashlib.sha256()
        for path in sorted(self.place.rglob("*.py")):
            digest.update(str(path.relative_to(self.place)).encode() + path.read_bytes())
        return digest.hexdigest()[:16]

    def test(self, paths: tuple[str, ...]) -> tuple[int, str]:
        """Run tests to the first failure: pytest's exit code, and what failed."""
        with tempfile.TemporaryFile("w+") as said:
            child = os.fork()
            if not child:
                self._run(paths, said.fileno())
            most = SLOW_RUN_TIMEOUT if set(paths) & set(SLOW) else RUN_TIMEOUT
            code = _ended(child, time.monotonic() + most)
            said.seek(0)
            text = said.read()
        if code is None:
            return FAILED, f"the run had no end in {most} s"
        failures = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if code and failures and failures[0].startswith("FAILED"):
            # A test that hung, and was ended, may take the rest of the session with it.
            code = FAILED
        return code, failures[0] if failures else text[-300:]

    def _run(self, paths: tuple[str, ...], said: int) -> None:
        """What the forked child does; never returns."""
        code = 99
        try:
            os.setpgid(0, 0)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.chdir(self.place)
            os.environ.update(self._environment(), PYTHONDONTWRITEBYTECODE="1")
            sys.dont_write_bytecode = True
            sys.path.insert(0, str(self.place))
            package = importlib.import_module(PACKAGE)
            # Otherwise the tests would run against the package as installed: verdicts about nothing.
            assert str(package.__file__).startswith(str(self.place)), package.__file__
            code = int(pytest.main([*OPTIONS, *paths]))
        except BaseException as error:
            print(f"the tests could not be run: {error!r}")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def judge(self, fault: Fault, tests: tuple[str, ...]) -> Outcome:
        """Plant a fault, run tests, take it out again."""
        begun = time.perf_counter()
        module = self.place / PACKAGE / fault.path
        original, stood = module.read_text(), module.stat()
        module.write_text(fault.plant(original))
        try:
            code, who = self.test(tests)
        finally:
            module.write_text(original)
            os.utime(module, ns=(stood.st_atime_ns, stood.st_mtime_ns))
        verdict = {0: Verdict.SURVIVED, FAILED: Verdict.CAUGHT}.get(code, Verdict.BROKEN)
        return Outcome(fault, verdict, who, time.perf_counter() - begun)


def _ended(child: int, deadline: float) -> int | None:
    """The exit code of a child; none if it had to be ended."""
    watch = os.pidfd_open(child)
    try:
        in_time, _, _ = select.select([watch], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(watch)
    if not in_time:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if in_time else None
