from __future__ import annotations

import io

from screens import Terminal

from cli.live import LiveScreen
from cli.render import PlainScreen, View
from cli.screens import open_screen


def test_a_terminal_gets_the_live_screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(open_screen(Terminal()), LiveScreen)


def test_a_dumb_terminal_and_a_pipe_get_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(open_screen(Terminal()), PlainScreen)
    assert isinstance(open_screen(io.StringIO()), PlainScreen)


def test_a_closed_stream_shows_nothing_and_complains_about_nothing():
    screen = open_screen(None)
    screen.line("text")
    screen.view(View((), "text"))
    screen.close()
