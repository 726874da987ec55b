"""Plants one fault after the other in a copy of the package, runs its tests, and says which fault nobody saw.

    .venv/bin/python tests/mutation/mutate.py [--jobs 2] [--only WORD] [--list]
    .venv/bin/python tests/mutation/mutate.py --results FILE --seconds 80 [--quick]

A fault counts as caught only when tests ran and failed, or hung until their time was over. A run that could
not collect its tests says nothing about them and counts as broken, a fault whose tests all pass as survived.
Before any fault the same tests must pass in the copy as it is. The exit code is 0 when all were caught.

The second form is a campaign in pieces: every outcome is added to FILE, and what FILE knows is not done
again until the fault changes; survivors are judged again when the tests have changed, or are others.
`--quick` leaves out the simulated networks, which take a minute; a campaign ends without it, for those that
survived it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from copies import SLOW, Copy, Outcome, Verdict
from fault import Fault, read_all
from generate import generate_all


class Results:
    """What is known of faults: a line of JSON each, the last one counts."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, dict[str, str]] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                known = json.loads(line)
                self._known[known["key"]] = known

    def add(self, key: str, **facts: str) -> None:
        """Remember, at once."""
        self._known[key] = {"key": key, **facts}
        if self._path is not None:
            with self._path.open("a") as lines:
                lines.write(json.dumps(self._known[key]) + "\n")

    def verdict(self, fault: Fault, tests: str = "", state: str = "") -> Verdict | None:
        """What became of a fault, if that still counts: survivors only for these tests in this state."""
        known = self._known.get(key_of(fault))
        if known is None:
            return None
        verdict = Verdict(known["verdict"])
        if verdict is not Verdict.CAUGHT and state and (known["tests"], known["state"]) != (tests, state):
            return None
        return verdict

    def passes(self, path: str, state: str) -> bool:
        """Whether tests were seen to pass without any fault, in this state of everything."""
        return self._known.get(path, {}).get("state") == state


def key_of(fault: Fault) -> str:
    """Names a fault, and changes when it does."""
    text = hashlib.sha256(f"{fault.old}\0{fault.new}".encode()).hexdigest()[:8]
    return f"{fault.path}: {fault.name} #{text}"


_copy: Copy


def _start(place: str) -> None:
    global _copy
    _copy = Copy(Path(tempfile.mkdtemp(dir=place)))


def _state() -> str:
    return _copy.digest()


def _passes(path: str) -> tuple[int, str]:
    return _copy.test((path,))


def _judge(fault: Fault, tests: tuple[str, ...], until: float) -> Outcome | None:
    return None if time.time() > until else _copy.judge(fault, tests)


def campaign(
    faults: list[Fault], results: Results, jobs: int, until: float, leave_out: tuple[str, ...]
) -> Iterator[Outcome]:
    """Judge what is not known yet, in as many copies as there are jobs.

    Raises:
        SystemExit: tests fail without any fault, so no verdict would mean anything.
    """
    with (
        tempfile.TemporaryDirectory(prefix="mutation-") as place,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start, (place,)) as pool,
    ):
        state = pool.submit(_state).result()
        plan = []
        for fault in faults:
            tests = tuple(path for path in fault.tests if path not in leave_out)
            if results.verdict(fault, " ".join(tests), state) is None:
                plan.append((fault, tests))
        for path in dict.fromkeys(path for _, tests in plan for path in tests):
            if not results.passes(path, state):
                code, who = pool.submit(_passes, path).result()
                if code:
                    raise SystemExit(f"without any fault, {path} ends with {code}: {who}")
                results.add(path, state=state)
        for (_, tests), future in [(each, pool.submit(_judge, *each, until)) for each in plan]:
            if (outcome := future.result()) is not None:
                results.add(
                    key_of(outcome.fault),
                    verdict=outcome.verdict.value,
                    who=outcome.who,
                    tests=" ".join(tests),
                    state=state,
                )
                yield outcome


def main() -> int:
    """Run the campaign and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="faults with this word in their module or name")
    parser.add_argument("--generated", action="store_true", help="faults of generate.py, not of the table")
    parser.add_argument("--list", action="store_true", help="print the table instead")
    parser.add_argument("--results", type=Path, help="a file to go on from; keep it outside the sources")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no fault after this time")
    parser.add_argument("--quick", action="store_true", help=f"without {' '.join(SLOW)}")
    options = parser.parse_args()
    planned = generate_all() if options.generated else read_all()
    chosen = [fault for fault in planned if options.only in f"{fault.path}: {fault.name}"]
    faults = [fault for fault in chosen if not fault.equivalent]
    if options.list:
        print(*(f"{fault.path}: {fault.name}" for fault in faults), sep="\n")
        return 0
    results = Results(options.results)
    until = time.time() + options.seconds
    for outcome in campaign(faults, results, options.jobs, until, SLOW if options.quick else ()):
        fault = outcome.fault
        print(
            f"{outcome.verdict.value} {outcome.seconds:.1f} s  {fault.path}: {fault.name}  [{outcome.who}]",
            flush=True,
        )
    verdicts = {key_of(fault): results.verdict(fault) for fault in faults}
    for name, verdict in verdicts.items():
        if verdict not in (Verdict.CAUGHT, None):
            print(f"{verdict.value}: {name}")
    counts = Counter(verdict for verdict in verdicts.values())
    waiting = f", {counts[None]} not judged yet" if counts[None] else ""
    print(
        f"{len(faults) - counts[None]} faults planted, {counts[Verdict.CAUGHT]} caught, "
        f"{counts[Verdict.SURVIVED]} survived, {counts[Verdict.BROKEN]} broken{waiting}; "
        f"{len(chosen) - len(faults)} not planted, because they change nothing"
    )
    return 0 if faults and counts[Verdict.CAUGHT] == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
