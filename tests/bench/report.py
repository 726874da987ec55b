"""Outcomes as a Markdown table and a plot."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from transfers import CLOCKS, PACKAGES, Outcome

__all__ = ["Cell", "cells", "describe_machine", "markdown", "most_runs", "plot"]

OURS = "deploy-image"
PEERS = tuple(PACKAGES)
COLORS = {"ceiling": "#9a9a9a", "udpcast": "#d98c4a", "uftp": "#c25b6e", OURS: "#2b6cb0"}
MEBI = 1 << 20


@dataclass(frozen=True, slots=True)
class Cell:
    """All runs with so many receivers and so much loss, by program; a run's outcomes stand in its place."""

    receivers: int
    loss: float
    runs: Mapping[str, Sequence[Outcome]]

    def good(self, program: str) -> list[Outcome]:
        """The runs whose copies were whole."""
        return [outcome for outcome in self.runs.get(program, ()) if outcome.good]

    def median(self, program: str, figure: Callable[[Outcome], float | None]) -> float | None:
        """Median of a figure over the good runs."""
        values = [value for outcome in self.good(program) if (value := figure(outcome)) is not None]
        return statistics.median(values) if values else None

    def ratio(self, over: Sequence[str], figure: Callable[[Outcome], float], *, best: bool) -> float | None:
        """Median, over the runs, of ours divided by the best of `over` in the same run.

        A program whose copies were not whole is not compared with in that run: where the better one failed
        often, the ratio is one to the others.

        Args:
            over: programs to compare with.
            figure: what to compare.
            best: whether the highest figure is the best; the lowest otherwise.
        """
        others: dict[int, list[float]] = {}
        for program in over:
            for outcome in self.good(program):
                others.setdefault(outcome.run, []).append(figure(outcome))
        choose = max if best else min
        ratios = [
            figure(outcome) / choose(others[outcome.run])
            for outcome in self.good(OURS)
            if outcome.run in others and choose(others[outcome.run]) > 0
        ]
        return statistics.median(ratios) if ratios else None


def cells(outcomes: Iterable[Outcome]) -> list[Cell]:
    """Sort outcomes into cells, in the order of loss and receivers."""
    found: dict[tuple[float, int], dict[str, list[Outcome]]] = {}
    for outcome in outcomes:
        runs = found.setdefault((outcome.loss, outcome.receivers), {})
        runs.setdefault(outcome.program, []).append(outcome)
    return [Cell(receivers, loss, runs) for (loss, receivers), runs in sorted(found.items())]


# ---------------------------------------------------------------------- figures


def _rate(outcome: Outcome) -> float:
    return outcome.rate


def _cpu(outcome: Outcome) -> float:
    return outcome.cpu_per_gigabyte


def _number(value: float | None, form: str = "{:.1f}") -> str:
    return "–" if value is None else form.format(value)


def _peak(cell: Cell, program: str) -> str:
    sender = cell.median(program, lambda outcome: outcome.peak_sender / MEBI)
    receiver = cell.median(program, lambda outcome: outcome.peak_receiver / MEBI)
    return f"{_number(sender, '{:.0f}')} / {_number(receiver, '{:.0f}')}"


def _name(outcome: Outcome) -> str:
    return f"{_percent(outcome.loss)}, N = {outcome.receivers}, run {outcome.run}, {outcome.program}"


def _arrived(outcome: Outcome) -> list[float]:
    """Share of what was sent that came, receiver by receiver; the ceiling tells."""
    return outcome.details.get("arrived") or [1.0]


def _is_swamped(outcome: Outcome) -> bool:
    return min(_arrived(outcome)) < 0.9 * (1 - outcome.loss)


def _percent(share: float) -> str:
    return f"{share * 100:g} %"


# ---------------------------------------------------------------------- Markdown


def most_runs(outcomes: Sequence[Outcome]) -> int:
    """How often the cell with the most runs was measured; rounds that were added may hold other cells."""
    return max((len(runs) for cell in cells(outcomes) for runs in cell.runs.values()), default=0)


def markdown(
    outcomes: Sequence[Outcome], *, size: int, conditions: Sequence[str], plot_name: str | None
) -> str:
    """The report.

    Args:
        outcomes: of all transfers.
        size: of the image, bytes.
        conditions: lines that describe machine, network and options.
        plot_name: file name of the plot beside it, or None.
    """
    table = cells(outcomes)
    programs = list(dict.fromkeys(outcome.program for outcome in outcomes))
    runs = most_runs(outcomes)
    lines = [
        "# Benchmark",
        "",
        f"One file of {size / 1e6:,.0f} MB of random bytes, sent to N receivers at once; medians of {runs} "
        "runs in which the programs take turns. Ratios are medians of the ratios within a run, in which only "
        "programs whose copies were whole are compared. Written by `make bench`.",
        "",
        *(f"- {line}" for line in conditions),
        "",
        *_summary(table, programs),
        "## All figures",
        "",
        *_figures(table, programs),
        "",
        *_legend(programs),
    ]
    if plot_name:
        lines += ["", f"![The same as a plot]({plot_name})"]
    problems = [f"- {_name(outcome)}: {outcome.problem}" for outcome in outcomes if outcome.problem]
    if problems:
        lines += ["", "## Runs that do not count", "", *problems]
    swamped = [outcome for outcome in outcomes if _is_swamped(outcome)]
    if swamped:
        lines += [
            "",
            "## Where the ceiling is none",
            "",
            "Its receivers were too slow for its sender, which waits for nobody, and lost what did not fit "
            "their buffers. What they got in the end says little about what the machine carries.",
            "",
            *(f"- {_name(outcome)}: {min(_arrived(outcome)):.0%} arrived" for outcome in swamped),
        ]
    return "\n".join(lines) + "\n"


def _summary(table: Sequence[Cell], programs: Sequence[str]) -> list[str]:
    if OURS not in programs or len(programs) < 2:
        return []
    peers = [peer for peer in PEERS if peer in programs]
    losses = sorted({cell.loss for cell in table})
    counts = sorted({cell.receivers for cell in table})
    found = {(cell.loss, cell.receivers): cell for cell in table}
    unharmed = {cell.receivers: cell.median(OURS, _rate) for cell in table if not cell.loss}

    def against_ceiling(cell: Cell) -> str:
        return _number(cell.ratio(["ceiling"], _rate, best=True), "{:.0%}")

    def against_peer(cell: Cell) -> str:
        return _number(cell.ratio(peers, _rate, best=True), "{:.1f} x")

    def cpu_against_peer(cell: Cell) -> str:
        return _number(cell.ratio(peers, _cpu, best=False), "{:.2f} x")

    def against_no_loss(cell: Cell) -> str:
        mine, other = cell.median(OURS, _rate), unharmed.get(cell.receivers)
        return _number(mine / other if mine and other else None, "{:.0%}")

    def sent(cell: Cell) -> str:
        return _number(cell.median(OURS, lambda outcome: outcome.data_share), "{:.3f} x")

    rows: list[tuple[str, Callable[[Cell], str], bool]] = [
        ("of the ceiling", against_ceiling, "ceiling" in programs),
        ("rate by the faster peer's", against_peer, bool(peers)),
        ("CPU time by the thriftier peer's", cpu_against_peer, bool(peers)),
        ("rate by our own without loss", against_no_loss, len(losses) > 1 and 0.0 in losses),
        ("data sent by the image's size", sent, True),
    ]
    lines = [
        "## `deploy-image` in ratios",
        "",
        "| | loss | " + " | ".join(f"N = {count}" for count in counts) + " |",
        "| --- | --- |" + " --- |" * len(counts),
    ]
    for title, figure, wanted in rows:
        for loss in losses if wanted else ():
            values = [
                figure(found[loss, count]) if (loss, count) in found else _number(None) for count in counts
            ]
            lines.append(f"| {title} | {_percent(loss)} | " + " | ".join(values) + " |")
    return [*lines, ""]


def _figures(table: Sequence[Cell], programs: Sequence[str]) -> list[str]:
    lines = [
        "| loss | N | program | MB/s to each | transfer, s | whole, s | CPU s/GB | sender's share | "
        "machine s/GB | peak MiB | wire bytes | good runs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in table:
        for program in programs:
            if program not in cell.runs:
                continue
            columns = [
                _percent(cell.loss),
                str(cell.receivers),
                program,
                _number(cell.median(program, lambda outcome: outcome.rate / 1e6), "{:.0f}"),
                _number(cell.median(program, lambda outcome: outcome.transfer_seconds), "{:.2f}"),
                _number(cell.median(program, lambda outcome: outcome.whole_seconds), "{:.2f}"),
                _number(cell.median(program, _cpu), "{:.2f}"),
                _number(
                    cell.median(program, lambda outcome: outcome.cpu_sender / (outcome.cpu_seconds or 1)),
                    "{:.0%}",
                ),
                _number(
                    cell.median(
                        program, lambda outcome: outcome.machine_seconds / (outcome.bytes_each / 1e9 or 1)
                    ),
                    "{:.1f}",
                ),
                _peak(cell, program),
                _number(
                    cell.median(
                        program,
                        lambda outcome: (
                            None if outcome.sent_bytes is None else outcome.sent_bytes / outcome.bytes_each
                        ),
                    ),
                    "{:.3f}",
                ),
                f"{len(cell.good(program))}/{len(cell.runs[program])}",
            ]
            lines.append("| " + " | ".join(columns) + " |")
    return lines


def _legend(programs: Sequence[str]) -> list[str]:
    return [
        "Every copy is compared with the image byte by byte; a run counts when all copies are whole. "
        "CPU s/GB is user and system time of all processes together, from their start to their end, for 10^9 "
        "bytes of image, whatever N is; machine s/GB is the time the machine's processors were busy, kernel "
        "threads and whatever else runs included. Peak MiB is the resident memory of the sender and of "
        "the largest receiver. Wire bytes are all the server sent, frame headers included, by the bytes each "
        "receiver got. MB is 10^6 bytes.",
        "",
        "What the clocks cover:",
        "",
        "| program | transfer | whole |",
        "| --- | --- | --- |",
        *(f"| {program} | {CLOCKS[program][0]} | {CLOCKS[program][1]} |" for program in programs),
    ]


# ---------------------------------------------------------------------- the plot


def plot(outcomes: Sequence[Outcome], path: Path, *, title: str) -> None:
    """Draw rates with ratios, CPU time and memory; one column of panels a loss.

    Raises:
        ImportError: there is no matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = cells(outcomes)
    programs = list(dict.fromkeys(outcome.program for outcome in outcomes))
    peers = [peer for peer in PEERS if peer in programs]
    losses = sorted({cell.loss for cell in table})
    panels: list[tuple[str, Callable[[Outcome], float]]] = [
        ("MB/s to each receiver", lambda outcome: outcome.rate / 1e6),
        ("CPU seconds per GB of image, all processes", _cpu),
        ("peak resident MiB, largest process", lambda o: max(o.peak_sender, o.peak_receiver) / MEBI),
    ]
    figure, axes = pyplot.subplots(
        len(panels), len(losses), figsize=(1.5 + 4.6 * len(losses), 10.5), squeeze=False, sharey="row"
    )
    width = 0.8 / len(programs)
    for column, loss in enumerate(losses):
        row_cells = [cell for cell in table if cell.loss == loss]
        for row, (label, value) in enumerate(panels):
            axis = axes[row][column]
            for place, program in enumerate(programs):
                heights = [cell.median(program, value) or 0.0 for cell in row_cells]
                at = [index + (place - (len(programs) - 1) / 2) * width for index in range(len(row_cells))]
                bars = axis.bar(at, heights, width, label=program, color=COLORS.get(program))
                if program == OURS and row == 0:
                    axis.bar_label(bars, [_label(cell, peers) for cell in row_cells], fontsize=7, padding=2)
            axis.set_xticks(range(len(row_cells)), [str(cell.receivers) for cell in row_cells])
            axis.margins(y=0.16)
            axis.grid(axis="y", alpha=0.3)
            axis.set_axisbelow(True)
            if not column:
                axis.set_ylabel(label)
            if not row:
                axis.set_title(f"{_percent(loss)} loss")
            if row == len(panels) - 1:
                axis.set_xlabel("receivers")
    axes[0][-1].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.text(0.01, 0.005, "over our bars: share of the ceiling, and times the faster peer", fontsize=8)
    figure.tight_layout(rect=(0, 0.015, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _label(cell: Cell, peers: Sequence[str]) -> str:
    ceiling = cell.ratio(["ceiling"], _rate, best=True)
    peer = cell.ratio(peers, _rate, best=True)
    parts = [_number(ceiling, "{:.0%}") if ceiling else "", _number(peer, "{:.1f}x") if peer else ""]
    return "\n".join(part for part in parts if part)


# ---------------------------------------------------------------------- the machine


def describe_machine(programs: Sequence[str]) -> list[str]:
    """Lines about processor, kernel and versions; nothing that names the machine or its user."""
    with open("/proc/cpuinfo") as cpuinfo:
        models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    with open("/proc/meminfo") as meminfo:
        memory = int(meminfo.readline().split()[1]) / (1 << 20)
    virtual = ", virtual" if _is_virtual() else ""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "trio"))
    lines = [
        f"Machine: {os.cpu_count()} x {models[0] if models else platform.machine()}{virtual}, "
        f"{memory:.0f} GiB; Linux {platform.release().split('-')[0]}",
        f"Python {platform.python_version()}, {libraries}",
    ]
    versions = [f"{package} {_debian_version(package)}" for name in programs if (package := _package(name))]
    if versions:
        lines.append(f"Peers, from Debian: {', '.join(versions)}")
    return lines


def _is_virtual() -> bool:
    with open("/proc/cpuinfo") as cpuinfo:
        return any(line.startswith("flags") and " hypervisor" in line for line in cpuinfo)


def _package(program: str) -> str | None:
    return PACKAGES[program][1] if program in PACKAGES else None


def _debian_version(package: str) -> str:
    try:
        query = ["dpkg-query", "-W", "-f", "${Version}", package]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout or "?"
    except (OSError, subprocess.CalledProcessError):
        return "?"
