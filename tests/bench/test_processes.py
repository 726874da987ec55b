"""Processes that are measured."""

import os
import sys

import pytest
from processes import Fleet, Process

PATIENCE = 60.0

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux 5.3")


@pytest.fixture
def fleet():
    with Fleet() as fleet:
        yield fleet


def python(code):
    return [sys.executable, "-S", "-c", code]


def ended(fleet, code):
    process = fleet.start("one", python(code))
    assert fleet.wait_ended([process], PATIENCE)
    return process


def test_lines_of_both_streams_come_with_their_times(fleet):
    process = ended(fleet, "import sys; print('first'); sys.stdout.flush(); print('second', file=sys.stderr)")
    assert [line for _, line in process.lines] == ["first", "second"]
    assert process.started <= process.lines[0][0] <= process.lines[1][0] <= process.ended


def test_carriage_return_ends_a_line(fleet):
    process = ended(fleet, r"print('10 %\r20 %\r\ndone')")
    assert [line for _, line in process.lines] == ["10 %", "20 %", "done"]


def test_line_that_comes_in_pieces_is_one_line():
    process = Process("one", 0, 0.0)
    process.take(b"be", 1.0)
    process.take(b"gin\nen", 2.0)
    process.take(b"d\n", 3.0)
    assert process.lines == [(2.0, "begin"), (3.0, "end")]
    assert process.when("^en") == 3.0
    assert process.when("nothing") is None


def test_exit_code_and_processor_time_are_kept(fleet):
    process = ended(fleet, "import sys; sum(range(3_000_000)); sys.exit(3)")
    assert process.returncode == 3
    assert process.cpu_seconds > 0


def test_peak_memory_is_the_process_own(fleet):
    ballast = b"x" * (64 << 20)  # resident here, and no part of the child
    process = fleet.start("one", python("import signal; print('up', flush=True); signal.pause()"))
    assert fleet.wait(lambda: process.when("up") is not None, PATIENCE)
    fleet.stop([process])
    assert len(ballast) > process.peak_bytes > 1 << 20


def test_stop_ends_what_still_runs(fleet):
    process = fleet.start("one", python("import signal; print('up', flush=True); signal.pause()"))
    assert fleet.wait(lambda: process.when("up") is not None, PATIENCE)
    fleet.stop([process])
    assert process.returncode == -15


def test_leaving_the_context_ends_what_still_runs():
    with Fleet() as fleet:
        process = fleet.start("one", python("import signal; signal.pause()"))
    assert process.returncode is not None


def test_waiting_gives_up_in_time(fleet):
    process = fleet.start("one", python("import signal; signal.pause()"))
    assert not fleet.wait_ended([process], 0.05)


def test_a_line_of_megabytes_costs_no_more_than_its_length():
    process = Process("long", 1, 0.0)
    process.take(b"one\rtw", 1.0)
    process.take(b"o\n", 2.0)
    for number in range(32):
        process.take(b"x" * (1 << 16), float(number))
    process.take(b"\nrest", 40.0)
    assert [(at, len(line)) for at, line in process.lines] == [(1.0, 3), (2.0, 3), (40.0, 1 << 21)]
