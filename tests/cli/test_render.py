from __future__ import annotations

import io

import pytest
from screens import HOSTILE, Clock, view

from cli.render import PlainScreen, counted, endpoint, printable


def test_a_plain_screen_prints_every_line_at_once():
    stream = io.StringIO()
    PlainScreen(stream).line("client joined")
    assert stream.getvalue() == "client joined\n"


def test_a_plain_screen_prints_views_only_every_period():
    stream, clock = io.StringIO(), Clock()
    screen = PlainScreen(stream, clock, period=5)
    for second in range(12):
        clock.now = float(second)
        screen.view(view(f"at {second}"))
    assert stream.getvalue() == "at 5\nat 10\n"


def test_a_plain_screen_does_not_repeat_a_view_that_did_not_change():
    stream, clock = io.StringIO(), Clock()
    screen = PlainScreen(stream, clock, period=5)
    for second in range(100):
        clock.now = float(second)
        screen.view(view("idle"))
        screen.view(view(""))
    assert stream.getvalue() == "idle\n"


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_that_a_terminal_obeys_gets_into_a_line(hostile):
    stream = io.StringIO()
    PlainScreen(stream).line(f"name {hostile} joined")
    written = stream.getvalue()
    assert written.endswith("\n")
    assert written[:-1].isprintable()


def test_printable_keeps_letters_of_every_script():
    assert printable("b\u00fcro-\u96fb\u8133") == "b\u00fcro-\u96fb\u8133"


def test_addresses_of_both_families():
    assert endpoint(("10.0.0.1", 5041)) == "10.0.0.1:5041"
    assert endpoint(("fe80::1", 5041)) == "[fe80::1]:5041"


def test_one_is_counted_in_the_singular():
    assert [counted(1, "receiver"), counted(2, "receiver")] == ["1 receiver", "2 receivers"]
    assert [counted(1, "copy", "copies"), counted(3, "copy", "copies")] == ["1 copy", "3 copies"]
