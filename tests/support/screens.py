"""What the tests of screens share: a terminal of text, a clock that a test sets, a view of one transfer."""

import io

from cli.render import Row, Section, View

HOSTILE = ["\x1b[2J", "a\rb", "a\nb", "\u202egpj", "\x9b31m", "\x00"]
"""Names that a terminal would obey."""


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def view(summary: str, *rows: Row) -> View:
    """A view of one transfer."""
    return View((Section("images/win.wim", rows, "totals here"),), summary)
