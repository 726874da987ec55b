"""The live table: what a terminal shows of transfers, drawn over itself."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.render import Row, Section, View, printable
from wdstransport import progress

__all__ = ["LiveScreen", "draw", "live_screen"]

_LIVE_PERIOD = 0.1
_CURSOR_AND_NEW_LINE = b"\x1b[?25h\n"
_TAKES_IT = 100
"""Milliseconds that a process which ends at once waits for its terminal: one that was stopped (Ctrl-S) takes
nothing, and another thread may just be writing to it."""
_FRAME_LINES = 5
"""Lines that a section takes beside its rows: title, heading, rule, totals and one between sections."""


def live_screen(stream: TextIO) -> LiveScreen | None:
    """A live screen on `stream`, or None where a terminal cannot move its cursor."""
    console = Console(file=stream, highlight=False)
    return None if console.is_dumb_terminal else LiveScreen(console)


class LiveScreen:
    """A table that is drawn over itself, with the lines above it. `NO_COLOR` is rich's to respect."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._next = 0.0
        # Without rich's refresh thread: one thread writes, and it is not the one that moves packets.
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._started = False
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):  # what is in memory only has none
            self._descriptor = console.file.fileno()

    def line(self, text: str) -> None:
        """See `Screen.line`."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def view(self, view: View) -> None:
        """See `Screen.view`."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _LIVE_PERIOD
        if not self._started:
            self._live.start()
            self._started = True
        self._live.update(draw(view, self._console.height), refresh=True)

    def close(self) -> None:
        """See `Screen.close`."""
        if self._started:
            self._live.stop()
            self._started = False

    def let_go(self) -> None:
        """See `Screen.let_go`."""
        if not self._started or self._descriptor is None:
            return
        # Past rich and past the stream: the thread that was interrupted or hangs may hold their locks.
        with contextlib.suppress(OSError):
            terminal = select.poll()
            terminal.register(self._descriptor, select.POLLOUT)
            if terminal.poll(_TAKES_IT):
                os.write(self._descriptor, _CURSOR_AND_NEW_LINE)


def draw(view: View, height: int) -> RenderableType:
    """The tables of a view, cut so that they fit into `height` lines of a terminal."""
    sections = len(view.sections)
    room = max(3, (height - 1 - sections * _FRAME_LINES) // sections) if sections else 0
    return Group(*(part for section in view.sections for part in _draw_section(section, room)))


def _draw_section(section: Section, room: int) -> Sequence[RenderableType]:
    title = Text(printable(section.title), style="bold", no_wrap=True, overflow="ellipsis")
    totals = Text(printable(section.totals), no_wrap=True, overflow="ellipsis")
    if not section.rows:
        return (title, totals)
    table = Table(box=None, pad_edge=False)
    table.add_column("client", no_wrap=True, overflow="ellipsis")
    table.add_column("address", no_wrap=True, overflow="ellipsis")
    for heading, width in (("share", len("100.0 %")), ("MB/s", len("1000.0")), ("loss", len("10.00 %"))):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    table.add_column("state", no_wrap=True, min_width=len("receiving"))
    shown: Sequence[Row] = section.rows
    if len(shown) > room:
        # Whoever is furthest behind is who holds up the others: these are the rows worth the space.
        shown = sorted(shown, key=lambda row: row.share)[: room - 1]
    for row in shown:
        table.add_row(
            Text(printable(row.name)),
            Text(printable(row.address)),
            progress.format_share(row.share),
            "-" if row.bytes_per_second is None else f"{row.bytes_per_second / 1e6:.1f}",
            "-" if row.loss is None else progress.format_loss(row.loss),
            Text(printable(row.state), style=_STYLES.get(row.state, "")),
        )
    hidden = len(section.rows) - len(shown)
    if hidden:
        return (title, table, Text(f"and {hidden} more that are further on", style="dim"), totals)
    return (title, table, totals)


_STYLES = {
    "master": "cyan",
    "complete": "green",
    "done": "green",
    "kicked": "red",
    "demoted": "yellow",
    "failed": "red",
    "pending": "dim",
}
