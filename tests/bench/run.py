#!/usr/bin/env python3
"""The benchmark: the ceiling, the peers and `deploy-image` in turn, on one network and one file.

    sudo .venv/bin/python tests/bench/run.py            everything: about an hour
    sudo .venv/bin/python tests/bench/run.py --size 100MB --runs 1 --clients 1,4 --loss 0,1%
    sudo .venv/bin/python tests/bench/run.py --runs 1 --raw FILE --add         again and again: one round more

Writes a Markdown report, a plot beside it (`pip install '.[bench]'`) and, with --raw, every single outcome
as JSON. Without root there is no network to build: then it measures the ceiling and `deploy-image` over the
loopback interface, and says so in the report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

# Until everything is measured, nothing big is imported: a child's peak memory begins with its parent's.
from lab import Lab, LabError, Loopback, missing_tools, remove_labs  # noqa: E402
from transfers import PACKAGES, PROGRAMS, Outcome, Setting, run_transfer  # noqa: E402

from cli.units import parse_share, parse_size  # noqa: E402

DEFAULT_FOLDER = Path("/dev/shm")
PIECE = 16 << 20
SLOWEST = 4e6
"""Bytes per second below which a transfer is given up."""
SETTLE = 0.5


def main(words: Sequence[str]) -> int:
    """The command line."""
    options = _parse(words)
    signal.signal(signal.SIGTERM, _end)
    as_root = os.geteuid() == 0 and not options.loopback
    programs, remarks = _choose(options, as_root)
    for remark in remarks:
        print(f"run.py: {remark}", file=sys.stderr)
    if not programs:
        print("run.py: nothing is left to measure", file=sys.stderr)
        return 2
    outcomes = _earlier(options.raw) if options.add else []
    before = max((outcome.run for outcome in outcomes), default=0)
    interrupted = False
    try:
        if as_root:
            for name in remove_labs(only_abandoned=True):
                print(f"removed {name}, which an earlier run left behind")
        with _workspace(options.folder) as folder:
            image = folder / "image.bin"
            _make_image(image, options.size)
            for outcome in _measure(options, as_root, programs, image):
                outcome.run += before
                outcomes.append(outcome)
                print(_line(outcome), flush=True)
    except KeyboardInterrupt:
        interrupted = True
    except LabError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    if outcomes:
        _write(options, as_root, programs, remarks, outcomes, interrupted=interrupted)
    broken = any(outcome.problem for outcome in outcomes if outcome.program == "deploy-image")
    return 130 if interrupted else 1 if broken else 0


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure the ceiling, udpcast, uftp and deploy-image in turn, on the same file."
    )
    known = ",".join(PROGRAMS)
    parser.add_argument("--size", type=parse_size, default="1GB", help="of the file; 1GB is 10^9 bytes")
    parser.add_argument("--runs", type=int, default=5, metavar="K", help="paired runs of each cell")
    parser.add_argument("--clients", type=_counts, default="1,2,4,8", metavar="N,...")
    parser.add_argument("--loss", type=_losses, default="0,1%,5%", metavar="P,...", help="such as 0,1%%,5%%")
    parser.add_argument("--peers", type=_programs, default=known, metavar="NAME,...", help=f"of {known}")
    parser.add_argument("--offload", action="store_true", help="leave the cutting of frames to the device")
    parser.add_argument(
        "--loss-point",
        choices=("wire", "host"),
        default="wire",
        help="lose datagrams one by one in the cable, or after the receiver's card merged them",
    )
    parser.add_argument(
        "--security", choices=("checksum", "none"), default="checksum", help="of deploy-image"
    )
    parser.add_argument("--loopback", action="store_true", help="the loopback interface, even for root")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md", help="the report; .png beside it")
    parser.add_argument("--raw", type=Path, help="every outcome, as JSON lines")
    parser.add_argument("--add", action="store_true", help="to what --raw names: the report covers both")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where image and copies go")
    options = parser.parse_args(words)
    if options.size < 1 or options.runs < 1:
        parser.error("--size and --runs are at least 1")
    if options.add and options.raw is None:
        parser.error("--add needs --raw, the file to add to")
    return options


def _earlier(raw: Path) -> list[Outcome]:
    """What earlier runs left, on the same machine with the same options: that is the caller's to see to."""
    if not raw.exists():
        return []
    return [Outcome.from_record(json.loads(line)) for line in raw.read_text().splitlines()]


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if not all(1 <= count <= 64 for count in counts):
        raise argparse.ArgumentTypeError("1 to 64 receivers")
    return counts


def _losses(text: str) -> list[float]:
    try:
        return [parse_share(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _programs(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PROGRAMS]:
        raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; choose from {', '.join(PROGRAMS)}")
    return [name for name in PROGRAMS if name in names]


def _choose(options: argparse.Namespace, as_root: bool) -> tuple[list[str], list[str]]:
    """The programs that can be measured, and what has to be said about the others."""
    remarks = []
    programs = list(options.peers)
    if not as_root:
        why = "asked for" if os.geteuid() == 0 else "this is not root"
        remarks.append(
            f"loopback interface only ({why}): no network is built, nothing is lost, frames of 64 KiB cross "
            "uncut, and udpcast and uftp are left out"
        )
        options.loss = [0.0]
        return [name for name in programs if name not in PACKAGES], remarks
    if missing := missing_tools(loss=any(options.loss)):
        raise SystemExit(f"run.py: apt-get install {' '.join(missing)}, or use --loopback")
    absent = [name for name in programs if name in PACKAGES and shutil.which(PACKAGES[name][0]) is None]
    if absent:
        packages = " ".join(PACKAGES[name][1] for name in absent)
        remarks.append(f"left out, since not installed: {', '.join(absent)} (apt-get install {packages})")
    return [name for name in programs if name not in absent], remarks


def _measure(
    options: argparse.Namespace, as_root: bool, programs: Sequence[str], image: Path
) -> Iterator[Outcome]:
    patience = 60 + options.size / SLOWEST
    for loss in options.loss:
        for count in options.clients:
            place: Lab | Loopback = Loopback(count)
            if as_root:
                place = Lab(count, loss=loss, offload=options.offload, loss_point=options.loss_point)
            with place:
                for run in range(1, options.runs + 1):
                    for program in programs:
                        time.sleep(SETTLE)
                        _warm(image.parent / "warm", count * options.size)
                        setting = Setting(place, image, image.parent / "copies", patience, options.security)
                        yield run_transfer(program, setting, loss=loss, run=run)


@contextlib.contextmanager
def _workspace(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="wds-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_image(path: Path, size: int) -> None:
    with open(path, "wb") as image:
        for start in range(0, size, PIECE):
            image.write(os.urandom(min(PIECE, size - start)))


def _warm(path: Path, size: int) -> None:
    """Touch and free as much memory as the copies will take.

    A virtual machine may have handed free memory back to its host, and fetching it again costs several times
    what a write costs: whoever came first after a pause would pay for that.
    """
    piece = bytes(1 << 20)
    with open(path, "wb", buffering=0) as file:
        for start in range(0, size, len(piece)):
            file.write(piece[: min(len(piece), size - start)])
    path.unlink()


def _line(outcome: Outcome) -> str:
    text = f"loss {outcome.loss * 100:g} % N {outcome.receivers} run {outcome.run} {outcome.program:12} "
    if outcome.problem:
        return text + outcome.problem
    text += (
        f"{outcome.rate / 1e6:6.0f} MB/s  transfer {outcome.transfer_seconds or 0:6.2f} s  "
        f"whole {outcome.whole_seconds or 0:6.2f} s  CPU {outcome.cpu_per_gigabyte:6.2f} s/GB  "
        f"{max(outcome.peak_sender, outcome.peak_receiver) >> 20:4} MiB"
    )
    arrived = outcome.details.get("arrived")
    return text + (f"  arrived {min(arrived):.1%}" if arrived else "")


def _write(
    options: argparse.Namespace,
    as_root: bool,
    programs: Sequence[str],
    remarks: Sequence[str],
    outcomes: Sequence[Outcome],
    *,
    interrupted: bool,
) -> None:
    import report

    conditions = report.describe_machine(programs)
    if as_root:
        cut = "left to the device (64 KiB cross)" if options.offload else "cut in software at the sender"
        conditions.append(
            f"Hosts: network namespaces on one bridge, MTU 1500; frames {cut}; receivers may merge them (GRO)"
        )
        where = {
            "wire": "one by one in the cable to it",
            "host": "after its network card merged them: whole runs where a program asks for merging",
        }
        conditions.append(f"Loss: at random and at each receiver for itself, {where[options.loss_point]}")
    if options.security != "checksum":
        conditions.append(f"`deploy-image` with --security {options.security}")
    conditions += [remark[0].upper() + remark[1:] for remark in remarks]
    if interrupted:
        conditions.append("Interrupted: this is what there was until then")
    if options.raw:
        options.raw.write_text("".join(json.dumps(outcome.record()) + "\n" for outcome in outcomes))
    picture: Path | None = options.output.with_suffix(".png")
    assert picture is not None
    try:
        network = "namespaces" if as_root else "loopback"
        title = f"{options.size / 1e6:,.0f} MB to N receivers at once ({network})"
        report.plot(outcomes, picture, title=f"{title}, medians of {report.most_runs(outcomes)}")
    except ImportError:
        print("run.py: no plot without matplotlib: pip install '.[bench]'", file=sys.stderr)
        picture = None
    text = report.markdown(
        outcomes, size=options.size, conditions=conditions, plot_name=picture.name if picture else None
    )
    options.output.write_text(text)
    print(f"written: {options.output}" + (f", {picture}" if picture else ""))


def _end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
