"""One transfer by each of the programs that are compared, on one network, measured alike.

The clock of the *transfer phase* starts when the program itself says that it begins to send, and stops with
the last change of the last copy (its change time, so nothing is measured while it runs). The *whole* time is
what somebody who waits for the copies would measure; `CLOCKS` says from when to when, program by program.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import Host, Lab, Loopback
from processes import Fleet, Process

__all__ = ["CLOCKS", "PACKAGES", "PROGRAMS", "Outcome", "Setting", "run_transfer"]

HERE = Path(__file__).resolve().parent
HOME = HERE.parent.parent
MERGE = 4 << 20

CLOCKS: Mapping[str, tuple[str, str]] = {
    "ceiling": (
        "first datagram received to last one written; the rate counts what was written",
        "the same",
    ),
    "udpcast": (
        "the sender's `Starting transfer` to the last write to the last copy",
        "start of the sender, the receivers running, to the end of the last process "
        "(2 s of it are its wait for more receivers)",
    ),
    "uftp": (
        "the sender's `Sending file` to the last copy's closing",
        "start of the sender, the receivers running, to its end (announcing and registering included)",
    ),
    "deploy-image": (
        "the server's event `sending-started` to the last copy's getting its name, flushing included",
        "the first receiver's request to the last copy's getting its name",
    ),
}
"""What each program's transfer phase and whole time cover."""

PACKAGES: Mapping[str, tuple[str, str]] = {"udpcast": ("udp-sender", "udpcast"), "uftp": ("uftpd", "uftp")}
"""A command that must be there, and Debian's package that brings it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What one transfer is given. Seconds, bytes."""

    place: Lab | Loopback
    image: Path
    folder: Path
    patience: float
    security: str = "checksum"

    @property
    def size(self) -> int:
        """Of the image."""
        return self.image.stat().st_size

    def copy(self, number: int) -> Path:
        """Where receiver `number`, counted from 0, puts its copy."""
        return self.folder / f"copy-{number + 1}"


@dataclass(slots=True)
class Outcome:
    """How one transfer went. Seconds, bytes; None for what is not known.

    Attributes:
        whole: how many copies equal the image; for the ceiling, how many receivers ended.
        transfer_seconds: see `CLOCKS`.
        whole_seconds: see `CLOCKS`.
        bytes_each: what every receiver got; the mean for the ceiling, which loses.
        cpu_seconds: of all processes together.
        machine_seconds: of the machine meanwhile, kernel threads and strangers included.
        sent_bytes: what left the server, frame headers included.
        data_share: content sent, repairs included, by the size of the image, as the server counts it.
        problem: what went wrong.
    """

    program: str
    receivers: int
    loss: float
    run: int = 0
    whole: int = 0
    transfer_seconds: float | None = None
    whole_seconds: float | None = None
    bytes_each: float = 0.0
    cpu_seconds: float = 0.0
    cpu_sender: float = 0.0
    machine_seconds: float = 0.0
    peak_sender: int = 0
    peak_receiver: int = 0
    sent_bytes: int | None = None
    data_share: float | None = None
    problem: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Every copy is whole and the times are known."""
        return self.whole == self.receivers and bool(self.transfer_seconds) and not self.problem

    @property
    def rate(self) -> float:
        """Bytes per second to each receiver, in the transfer phase."""
        return self.bytes_each / self.transfer_seconds if self.transfer_seconds else 0.0

    @property
    def cpu_per_gigabyte(self) -> float:
        """CPU seconds of all processes for 10^9 bytes of image, however many receivers there are."""
        return self.cpu_seconds / (self.bytes_each / 1e9) if self.bytes_each else 0.0

    def record(self) -> dict[str, Any]:
        """For a file of raw results."""
        return {**asdict(self), "good": self.good}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Outcome:
        """What `record` gave, read back from a file."""
        return cls(**{name: value for name, value in record.items() if name != "good"})


class _Failed(Exception):
    """The transfer did not come about, or did not end in time."""


Times = tuple[float, float, float, float]
"""Start and end of the transfer phase, start and end of the whole."""


def run_transfer(program: str, setting: Setting, *, loss: float, run: int) -> Outcome:
    """Run one transfer, compare its copies with the image and remove them."""
    place = setting.place
    outcome = Outcome(program, len(place.receivers), loss, run)
    setting.folder.mkdir()
    try:
        with Fleet() as fleet:
            sent = place.server.sent_bytes()
            busy = _machine_seconds()
            try:
                began, ended, whole_began, whole_ended = PROGRAMS[program](fleet, setting, outcome)
                outcome.transfer_seconds = ended - began
                outcome.whole_seconds = whole_ended - whole_began
            except _Failed as error:
                outcome.problem = str(error)
            outcome.machine_seconds = _machine_seconds() - busy
            if sent is not None:
                outcome.sent_bytes = (place.server.sent_bytes() or 0) - sent
        _measure(fleet.processes, outcome)
        if program != "ceiling":
            outcome.bytes_each = setting.size
            outcome.whole = sum(
                _is_whole(setting.image, setting.copy(number)) for number in range(outcome.receivers)
            )
            if outcome.whole < outcome.receivers and not outcome.problem:
                outcome.problem = f"{outcome.receivers - outcome.whole} of {outcome.receivers} copies broken"
    finally:
        shutil.rmtree(setting.folder, ignore_errors=True)
    return outcome


def _measure(processes: Sequence[Process], outcome: Outcome) -> None:
    senders = [process for process in processes if process.name == "sender"]
    receivers = [process for process in processes if process.name != "sender"]
    outcome.cpu_sender = sum(process.cpu_seconds for process in senders)
    outcome.cpu_seconds = outcome.cpu_sender + sum(process.cpu_seconds for process in receivers)
    outcome.peak_sender = max((process.peak_bytes for process in senders), default=0)
    outcome.peak_receiver = max((process.peak_bytes for process in receivers), default=0)


def _machine_seconds() -> float:
    """CPU time of the whole machine that was neither idle nor stolen, so far."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq = map(int, stat.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _is_whole(image: Path, copy: Path) -> bool:
    try:
        with open(image, "rb", buffering=0) as one, open(copy, "rb", buffering=0) as other:
            if os.fstat(one.fileno()).st_size != os.fstat(other.fileno()).st_size:
                return False
            while piece := one.read(MERGE):
                if piece != other.read(MERGE):
                    return False
    except OSError:
        return False
    return True


def _last_change(copies: Sequence[Path]) -> float:
    try:
        return max(copy.stat().st_ctime_ns for copy in copies) / 1e9
    except OSError as error:
        raise _Failed(f"no copy: {error.strerror}") from None


def _need(at: float | None, process: Process, what: str) -> float:
    if at is None:
        raise _Failed(f"{process.name} never said {what!r}: {process.last_words()}")
    return at


def _check_ends(fleet: Fleet, setting: Setting, awaited: Sequence[Process]) -> float:
    """When the last of them ended.

    Raises:
        _Failed: one failed, or one did not end in time.
    """
    # A process that failed keeps the others waiting for ever.
    fleet.wait(
        lambda: (
            all(process.returncode is not None for process in awaited)
            or any(process.returncode for process in awaited)
        ),
        setting.patience,
    )
    for process in awaited:
        if process.returncode:
            raise _Failed(f"{process.name} ended with exit code {process.returncode}: {process.last_words()}")
    for process in awaited:
        if process.returncode is None:
            raise _Failed(f"{process.name} was not done after {setting.patience:.0f} s")
    return max(process.ended or 0.0 for process in awaited)


def _await_line(fleet: Fleet, processes: Sequence[Process], pattern: str, seconds: float = 30.0) -> None:
    def ready() -> bool:
        return all(process.when(pattern) is not None for process in processes)

    def failed() -> bool:
        return any(process.returncode is not None for process in processes)

    if not fleet.wait(lambda: ready() or failed(), seconds) or not ready():
        words = "; ".join(process.last_words() for process in processes)
        raise _Failed(f"not ready within {seconds:.0f} s: {words}")


# ---------------------------------------------------------------------- the programs


def _ceiling(fleet: Fleet, setting: Setting, outcome: Outcome) -> Times:
    script = [sys.executable, "-S", str(HERE / "ceiling.py")]
    server = setting.place.server
    receivers = [
        fleet.start(host.name, host.words(*script, "receive", host.address, str(setting.copy(number))))
        for number, host in enumerate(setting.place.receivers)
    ]
    _await_line(fleet, receivers, "^ready")
    sender = fleet.start("sender", server.words(*script, "send", server.address, str(setting.size)))
    _check_ends(fleet, setting, [sender, *receivers])
    results = [json.loads(process.lines[-1][1]) for process in receivers]
    sent = json.loads(sender.lines[-1][1])["bytes"]
    outcome.whole = len(results)
    outcome.bytes_each = sum(result["bytes"] for result in results) / len(results)
    outcome.details = {"arrived": [round(result["bytes"] / sent, 4) for result in results]}
    seconds = max(result["seconds"] for result in results)
    return 0.0, seconds, 0.0, seconds


def _udpcast(fleet: Fleet, setting: Setting, outcome: Outcome) -> Times:
    del outcome
    place = setting.place
    common = ("--interface", place.server.interface, "--nokbd")
    receivers = [
        fleet.start(host.name, host.words("udp-receiver", *common, "--file", str(setting.copy(number))))
        for number, host in enumerate(place.receivers)
    ]
    _await_line(fleet, receivers, "UDP receiver for")
    fleet.wait(lambda: False, 0.3)
    words = ("udp-sender", *common, "--full-duplex", "--min-receivers", str(len(receivers)))
    sender = fleet.start("sender", place.server.words(*words, "--file", str(setting.image)))
    ended = _check_ends(fleet, setting, [sender, *receivers])
    began = _need(sender.when("Starting transfer"), sender, "Starting transfer")
    copies = [setting.copy(number) for number in range(len(receivers))]
    return began, _last_change(copies), sender.started, ended


def _uftp(fleet: Fleet, setting: Setting, outcome: Outcome) -> Times:
    place = setting.place
    options = ("-I", place.server.interface, "-B", "4000000")
    daemons, copies = [], []
    for number, host in enumerate(place.receivers):
        folder = setting.folder / f"uftp-{number + 1}"
        folder.mkdir()
        copies.append(folder / setting.image.name)
        daemons.append(fleet.start(host.name, host.words("uftpd", "-d", *options, "-D", str(folder))))
    _await_line(fleet, daemons, "Loaded")
    fleet.wait(lambda: False, 0.5)
    words = ("uftp", *options, "-R", "-1", str(setting.image))
    sender = fleet.start("sender", place.server.words(*words))
    ended = _check_ends(fleet, setting, [sender])
    fleet.wait(lambda: False, 0.3)
    fleet.stop(daemons)
    began = _need(sender.when("Sending file"), sender, "Sending file")
    own = re.search(r"Total elapsed time: ([0-9.]+)", "\n".join(line for _, line in sender.lines))
    outcome.details = {"own_seconds": float(own[1]) if own else None}
    last = _last_change(copies)
    for number, copy in enumerate(copies):
        copy.rename(setting.copy(number))
    return began, last, sender.started, ended


def _deploy_image(fleet: Fleet, setting: Setting, outcome: Outcome) -> Times:
    place = setting.place
    count = str(len(place.receivers))
    # -P, and the way home: the checkout that this file is in, whatever else is installed.
    program = (sys.executable, "-P", "-m", "cli.deploy_image")
    home = {"PYTHONPATH": str(HOME)}
    common = ("--security", setting.security, "--json")
    # A group of its own, so that two benchmarks on one loopback interface do not meet.
    group = f"239.193.{random.randrange(256)}.{random.randrange(1, 255)}"
    words = (*program, "serve", "--interface", place.server.address, "--port", "0", "--group", group)
    words += ("--min-clients", count, "--exit-when-done", count, *common, str(setting.image))
    server = fleet.start("sender", place.server.words(*words), home)
    _await_line(fleet, [server], '"server-listening"')
    port = str(_records(server, "server-listening")[0][1]["address"][1])

    def receive(host: Host, copy: Path) -> Process:
        words = (*program, "receive", "--server", place.server.address, "--interface", host.address)
        words += ("--port", port, *common, setting.image.name, str(copy))
        return fleet.start(host.name, host.words(*words), home)

    receivers = [receive(host, setting.copy(number)) for number, host in enumerate(place.receivers)]
    _check_ends(fleet, setting, [*receivers, server])
    sending = _records(server, "sending-started")
    if not sending:
        raise _Failed(f"the server never began to send: {server.last_words()}")
    began = _clock_start(server) + sending[0][1]["seconds"]
    requested = min(map(_clock_start, receivers))
    _note_statistics(server, receivers, setting, outcome)
    last = _last_change([setting.copy(number) for number in range(len(receivers))])
    return began, last, requested, last


def _clock_start(process: Process) -> float:
    """When the clock of a process's events stood at 0; a receiver's starts with its request.

    A line takes its time to get here; the one that took the least tells best.
    """
    starts = []
    for at, line in process.lines:
        match = re.match(r'\{"event":"[a-z-]+","seconds":([0-9.]+)', line)
        if match is not None:
            starts.append(at - float(match[1]))
    return min(starts, default=process.started)


def _note_statistics(
    server: Process, receivers: Sequence[Process], setting: Setting, outcome: Outcome
) -> None:
    statistics = [record for _, record in _records(server, "statistics") if record["sessions"]]
    if statistics:
        session = statistics[-1]["sessions"][0]
        outcome.data_share = (session["data_bytes"] + session["repair_bytes"]) / setting.size
        told = ("round", "window", "nacks", "acks", "data_packets", "repair_packets")
        outcome.details |= {key: session[key] for key in told}
        outcome.details["features"] = statistics[-1]["features"]
    results = [record for process in receivers for _, record in _records(process, "result")]
    outcome.details |= {
        "duplicates": [result["duplicates"] for result in results],
        "refused": [result["refused"] for result in results],
    }
    warnings = {
        record["message"] for process in (server, *receivers) for _, record in _records(process, "warned")
    }
    if warnings:
        outcome.details["warnings"] = sorted(warnings)


def _records(process: Process, event: str) -> list[tuple[float, dict[str, Any]]]:
    """The NDJSON objects of one kind, with the time each came."""
    start = f'{{"event":"{event}"'
    return [(at, json.loads(line)) for at, line in process.lines if line.startswith(start)]


PROGRAMS: Mapping[str, Callable[[Fleet, Setting, Outcome], Times]] = {
    "ceiling": _ceiling,
    "udpcast": _udpcast,
    "uftp": _uftp,
    "deploy-image": _deploy_image,
}
"""In the order of their turns."""
