"""What people see: a live table on a terminal (`cli.live`), plain lines everywhere else.

Both screens take the same two things, lines and views. Names come from the network, so nothing is
interpreted: no markup, no control characters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TextIO

__all__ = [
    "PlainScreen",
    "Row",
    "Screen",
    "Section",
    "View",
    "counted",
    "endpoint",
    "features_line",
    "printable",
]

PLAIN_PERIOD = 5.0
"""Seconds between two lines of progress where there is no terminal."""


@dataclass(frozen=True, slots=True)
class Row:
    """One client in a table. Rates are bytes per second, shares 0 to 1; None is not known (yet)."""

    name: str
    address: str
    share: float
    bytes_per_second: float | None
    loss: float | None
    state: str


@dataclass(frozen=True, slots=True)
class Section:
    """One transfer: its clients under a title, its totals below."""

    title: str
    rows: tuple[Row, ...]
    totals: str


@dataclass(frozen=True, slots=True)
class View:
    """A moment: `sections` for a terminal, the same in one line for everything else."""

    sections: tuple[Section, ...]
    summary: str


class Screen(Protocol):
    """Where lines and views go. One thread at a time."""

    def line(self, text: str) -> None:
        """Print a line that stays."""

    def view(self, view: View) -> None:
        """Show a new state of things, instead of the one before."""

    def close(self) -> None:
        """Leave the terminal as it was."""

    def let_go(self) -> None:
        """The process ends in this call: make the terminal usable, in a signal handler as well."""


def printable(text: str) -> str:
    """`text` without what a terminal would obey: escape sequences, line ends, changes of direction."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def endpoint(address: tuple[str, int]) -> str:
    """`10.0.0.1:5041`, `[fe80::1]:5041`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def features_line(features: Mapping[str, str]) -> str:
    """The parts of the fast path in use, for `--verbose`."""
    return "features: " + (", ".join(f"{name} {value}" for name, value in features.items()) or "none")


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 copy`, `2 copies`; without `plural`, an s is added."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


class PlainScreen:
    """One line per event, and one every few seconds while something moves."""

    def __init__(
        self, stream: TextIO, clock: Callable[[], float] = time.monotonic, period: float = PLAIN_PERIOD
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._period = period
        self._next = clock() + period
        self._last = ""

    def line(self, text: str) -> None:
        """See `Screen.line`."""
        self._stream.write(printable(text) + "\n")
        self._stream.flush()

    def view(self, view: View) -> None:
        """See `Screen.view`. An idle server prints nothing: the line before still holds."""
        now = self._clock()
        if now < self._next or not view.summary or view.summary == self._last:
            return
        self._next = now + self._period
        self._last = view.summary
        self.line(view.summary)

    def close(self) -> None:
        """See `Screen.close`."""

    def let_go(self) -> None:
        """See `Screen.let_go`."""
