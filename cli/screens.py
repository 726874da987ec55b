"""Which screen fits a stream."""

from __future__ import annotations

from typing import TextIO

from cli.render import PlainScreen, Screen

__all__ = ["open_screen"]


def open_screen(stream: TextIO) -> Screen:
    """The screen that fits `stream`."""
    if stream.isatty():
        # Only a terminal needs rich, whose import takes a tenth of a small transfer's processor time.
        from cli.live import live_screen

        screen = live_screen(stream)
        if screen is not None:
            return screen
    return PlainScreen(stream)
