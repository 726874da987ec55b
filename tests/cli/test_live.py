from __future__ import annotations

import io
import os
import termios

import pytest
from rich.console import Console
from screens import HOSTILE, Clock, Terminal, view

from cli.live import LiveScreen, draw
from cli.render import Row, Section, View
from cli.screens import open_screen


def rows(count: int) -> list[Row]:
    return [Row(f"pc-{n}", "10.0.0.1:1", n / count, 1e8, 0.01, "active") for n in range(count)]


def drawn(shown: View, height: int = 50) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False)
    console.print(draw(shown, height))
    return console.file.getvalue()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_that_a_terminal_obeys_gets_into_a_table(hostile):
    table = drawn(view("", Row(hostile, "-", 0.0, None, None, "active")))
    assert all(line.isprintable() for line in table.splitlines())


def test_names_are_not_read_as_markup():
    assert "[red]pc[/red]" in drawn(view("", Row("[red]pc[/red]", "-", 0.0, None, None, "active")))


def test_a_table_shows_every_column_of_a_client():
    table = drawn(view("", Row("pc-1", "10.0.0.7:4001", 0.456, 112.6e6, 0.0102, "master")))
    for text in (
        "images/win.wim",
        "pc-1",
        "10.0.0.7:4001",
        "45.6 %",
        "112.6",
        "1.02 %",
        "master",
        "totals here",
    ):
        assert text in table


def test_what_is_not_known_yet_is_a_dash():
    assert drawn(view("", Row("pc-1", "-", 0.0, None, None, "pending"))).count(" - ") >= 3


def test_a_table_without_clients_is_title_and_totals():
    assert drawn(view("")).split("\n")[:2] == ["images/win.wim", "totals here"]


def test_too_many_clients_for_the_terminal_leaves_those_furthest_behind():
    table = drawn(view("", *rows(200)), height=24)
    assert len(table.splitlines()) < 24
    assert "pc-0 " in table
    assert "pc-199" not in table
    assert "more that are further on" in table


def test_several_transfers_share_the_terminal():
    section = Section("t", tuple(rows(50)), "s")
    assert len(drawn(View((section, section, section), ""), height=40).splitlines()) < 40


def test_no_transfer_draws_nothing():
    assert drawn(View((), "")).strip() == ""


def live(clock: Clock) -> tuple[LiveScreen, io.StringIO]:
    stream = Terminal()
    console = Console(file=stream, force_terminal=True, width=100, height=30, highlight=False, _environ={})
    return LiveScreen(console, clock), stream


def test_a_live_screen_draws_views_and_leaves_the_cursor_visible():
    clock = Clock()
    screen, stream = live(clock)
    clock.now = 1.0
    screen.view(view("", *rows(2)))
    screen.line("a line above")
    screen.close()
    written = stream.getvalue()
    assert "pc-1" in written
    assert "a line above" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_a_live_screen_skips_views_that_come_too_fast():
    clock = Clock()
    screen, stream = live(clock)
    clock.now = 1.0
    screen.view(view("", Row("first", "-", 0.0, None, None, "active")))
    clock.now = 1.01
    screen.view(view("", Row("second", "-", 0.0, None, None, "active")))
    assert "first" in stream.getvalue()
    assert "second" not in stream.getvalue()
    screen.close()


@pytest.fixture
def terminal():
    """A live screen on a real terminal, that terminal, and a function that takes what was written to it."""
    master, slave = os.openpty()

    def written() -> bytes:
        os.write(slave, b"<end>")
        text = b""
        while not text.endswith(b"<end>"):
            text += os.read(master, 65536)
        return text.removesuffix(b"<end>")

    with open(slave, "w") as stream:
        yield LiveScreen(Console(file=stream, force_terminal=True, _environ={}), Clock()), slave, written
    os.close(master)


def test_a_process_that_ends_at_once_gives_the_cursor_back_on_a_line_of_its_own(terminal):
    screen, _, written = terminal
    screen.view(view("", *rows(2)))
    assert b"\x1b[?25l" in written()
    screen.let_go()
    assert written() == b"\x1b[?25h\r\n"
    screen.close()


def test_a_process_that_ends_at_once_does_not_wait_for_a_stopped_terminal(terminal):
    screen, slave, written = terminal
    screen.view(view("", *rows(2)))
    written()
    termios.tcflow(slave, termios.TCOOFF)
    screen.let_go()
    termios.tcflow(slave, termios.TCOON)
    assert written() == b""
    screen.close()


def test_a_cursor_that_is_not_hidden_needs_nothing_when_the_process_ends_at_once(terminal):
    screen, _, written = terminal
    screen.let_go()
    assert written() == b""
    screen.view(view("", *rows(2)))
    screen.close()
    written()
    screen.let_go()
    assert written() == b""


def test_letting_go_of_what_is_no_terminal_does_nothing():
    screen, stream = live(Clock())
    screen.view(view("", *rows(2)))
    before = stream.getvalue()
    screen.let_go()
    assert stream.getvalue() == before
    screen.close()


def test_a_live_screen_that_showed_nothing_touches_no_terminal():
    screen, stream = live(Clock())
    screen.close()
    assert stream.getvalue() == ""


def test_a_long_line_is_left_to_the_terminal_to_wrap():
    screen, stream = live(Clock())
    screen.line("x" * 300)
    assert "x" * 300 in stream.getvalue()


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    screen = open_screen(stream)
    screen.view(view("", Row("pc", "-", 1.0, 1.0, 0.0, "complete")))
    screen.close()
    assert "pc" in stream.getvalue()
    assert "\x1b[32m" not in stream.getvalue()
