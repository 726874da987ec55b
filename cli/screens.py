"""Which screen fits a stream."""

from __future__ import annotations

from typing import TextIO

from cli.render import PlainScreen, Screen, View

__all__ = ["open_screen"]


class _NoScreen:
    """Where the stream is closed: what would be shown goes nowhere."""

    def line(self, text: str) -> None:
        """See `Screen.line`."""

    def view(self, view: View) -> None:
        """See `Screen.view`."""

    def close(self) -> None:
        """See `Screen.close`."""

    def let_go(self) -> None:
        """See `Screen.let_go`."""


def open_screen(stream: TextIO | None, *, live: bool = True) -> Screen:
    """The screen that fits `stream`; None is one that is closed. Without `live`, lines on a terminal, too."""
    if stream is None:
        return _NoScreen()
    if live and stream.isatty():
        # Only a terminal needs rich, whose import takes a tenth of a small transfer's processor time.
        from cli.live import live_screen

        screen = live_screen(stream)
        if screen is not None:
            return screen
    return PlainScreen(stream)
