from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import threading

import pytest
import trio
import trio.testing

import wdstransport
from cli import run as running
from cli.render import PlainScreen, View
from cli.run import HumanOutput, JsonOutput, run

WARNING = wdstransport.Warned(seconds=1.0, message="careful")


class Recording:
    def __init__(self) -> None:
        self.items: list[object] = []
        self.threads: set[int] = set()
        self.closed = 0
        self.let_go_of = 0

    def show(self, item: object) -> None:
        self.items.append(item)
        self.threads.add(threading.get_ident())

    def close(self) -> None:
        self.closed += 1

    def let_go(self) -> None:
        self.let_go_of += 1


def test_work_that_ends_is_exit_code_0_and_everything_posted_is_written():
    output = Recording()

    async def work(post):
        for number in range(100):
            post(f"line {number}")

    assert run(work, output) == 0
    assert output.items == [f"line {number}" for number in range(100)]
    assert output.closed == 1


def test_output_is_not_written_by_the_thread_that_moves_packets():
    output = Recording()

    async def work(post):
        post("line")

    run(work, output)
    assert threading.get_ident() not in output.threads


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (wdstransport.TransportError("m"), 1),
        (wdstransport.SourceChangedError("m"), 1),
        (wdstransport.UsageError("m"), 2),
        (wdstransport.RefusedError("m", 2), 3),
        (wdstransport.ContentNotFoundError("m"), 3),
        (wdstransport.RemovedError("m", 0), 4),
        (wdstransport.NobodyAnsweredError("m"), 5),
        (wdstransport.IntegrityError("m"), 6),
        (wdstransport.StorageError("m"), 7),
    ],
)
def test_every_error_has_its_exit_code_and_one_error_event(error, code, capsys):
    output = Recording()

    async def work(post):
        raise error

    assert run(work, output) == code
    (report,) = output.items
    assert (report.exit_code, report.message) == (code, "m")
    captured = capsys.readouterr()
    assert captured.err == "deploy-image: m\n"
    assert captured.out == ""


def test_an_error_inside_nurseries_is_found(capsys):
    async def fail():
        raise wdstransport.StorageError("disk full")

    async def work(post):
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(fail)

    assert run(work, Recording()) == 7
    assert capsys.readouterr().err == "deploy-image: disk full\n"


def test_a_message_of_several_lines_keeps_them_and_loses_what_terminals_obey(capsys):
    async def work(post):
        raise wdstransport.TransportError("first\nsecond \x1b[2J")

    run(work, Recording())
    assert capsys.readouterr().err == "deploy-image: first\nsecond \N{REPLACEMENT CHARACTER}[2J\n"


def test_what_was_added_to_an_error_is_said_too(capsys):
    output = Recording()

    async def work(post):
        error = wdstransport.NobodyAnsweredError("Nothing comes any more.")
        error.add_note("What arrived is kept in x.part.")
        raise error

    assert run(work, output) == 5
    assert output.items[0].message == "Nothing comes any more. What arrived is kept in x.part."
    assert capsys.readouterr().err == f"deploy-image: {output.items[0].message}\n"


def test_without_complaints_only_the_event_tells(capsys):
    async def work(post):
        raise wdstransport.TransportError("m")

    output = Recording()
    assert run(work, output, complain=False) == 1
    assert len(output.items) == 1
    assert capsys.readouterr().err == ""


def test_a_bug_is_not_hidden_and_the_terminal_is_restored():
    output = Recording()

    async def work(post):
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        run(work, output)
    assert output.closed == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_work_lets_it_clean_up_and_is_exit_code_130(number, capsys):
    output = Recording()

    async def work(post):
        try:
            signal.raise_signal(number)
            await trio.sleep_forever()
        finally:
            post("LEAVE sent")

    assert run(work, output) == 130
    assert output.items[0] == "LEAVE sent"
    assert output.items[1].signal == number.name
    assert output.closed == 1
    assert f"interrupted by {number.name}" in capsys.readouterr().err


def test_an_error_while_cleaning_up_after_a_signal_does_not_change_the_exit_code():
    output = Recording()

    async def work(post):
        try:
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()
        finally:
            raise wdstransport.StorageError("m")

    assert run(work, output) == 130
    assert [type(item).__name__ for item in output.items] == ["Interrupted"]


def test_a_second_signal_soon_after_the_first_does_not_break_the_clean_up(capsys):
    output = Recording()

    async def work(post):
        try:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGTERM)
            post("LEAVE sent")

    assert run(work, output) == 130
    assert output.items[0] == "LEAVE sent"
    assert output.items[1].signal == "SIGINT"
    assert output.closed == 1
    assert capsys.readouterr().err.count("interrupted by SIGINT") == 1


def test_a_signal_while_the_last_words_are_said_changes_nothing(monkeypatch, capsys):
    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            signal.raise_signal(signal.SIGINT)
            return super().write(text)

    errors = Interrupting()
    monkeypatch.setattr(sys, "stderr", errors)

    async def work(post):
        raise wdstransport.StorageError("disk full")

    assert run(work, Recording()) == 7
    assert errors.getvalue() == "deploy-image: disk full\n"


def test_a_signal_before_trio_runs_interrupts_the_work(monkeypatch):
    real = trio.run

    def interrupted_run(main):
        signal.raise_signal(signal.SIGTERM)
        real(main)

    monkeypatch.setattr(trio, "run", interrupted_run)
    assert run(lambda post: trio.sleep_forever(), Recording()) == 130


def test_a_later_signal_ends_a_clean_up_that_hangs_at_once_and_says_so(monkeypatch, capfd):
    codes = []
    hanging = trio.Event()

    def exit_now(code: int) -> None:
        codes.append(code)
        hanging.set()

    monkeypatch.setattr(os, "_exit", exit_now)
    monkeypatch.setattr(running, "_TOGETHER", 0.0)

    async def work(post):
        try:
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                signal.raise_signal(signal.SIGINT)
                await hanging.wait()

    output = Recording()
    run(work, output)
    assert codes == [130]
    assert output.let_go_of == 1
    assert "ended at once by another signal" in capfd.readouterr().err


def test_after_the_command_signals_mean_what_they_meant_before():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    async def work(post):
        post("line")

    run(work, Recording())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


class Failing(Recording):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def show(self, item: object) -> None:
        raise self.error


GONE = BrokenPipeError(errno.EPIPE, "Broken pipe")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (GONE, "whoever read standard output has closed it"),
        (FULL, "cannot write to standard output: No space left on device"),
    ],
)
def test_progress_that_cannot_be_written_is_one_warning_and_the_work_goes_on(error, what, capsys):
    done = []

    async def work(post):
        post("line")
        await trio.testing.wait_all_tasks_blocked()
        post("line after the loss")
        done.append(True)

    assert run(work, Failing(error)) == 0
    assert done
    assert capsys.readouterr().err == (
        f"deploy-image: warning: {what}; the rest was done without showing it.\n"
    )


def test_progress_that_cannot_be_written_does_not_hide_how_the_work_failed(capsys):
    async def work(post):
        post("line")
        await trio.testing.wait_all_tasks_blocked()
        raise wdstransport.StorageError("disk full")

    assert run(work, Failing(GONE)) == 7
    assert "deploy-image: disk full" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (GONE, "whoever read standard output has closed it."),
        (FULL, "cannot write to standard output: No space left on device."),
    ],
)
def test_events_that_cannot_be_written_end_the_work_with_exit_code_1_and_a_message(error, what, capsys):
    async def work(post):
        try:
            post("line")
            await trio.sleep_forever()
        finally:
            post("What arrived is kept in x.part.")

    assert run(work, Failing(error), needed=True) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"deploy-image: {what}")
    assert last == "What arrived is kept in x.part."


def test_a_warning_that_cannot_be_written_either_changes_nothing(monkeypatch):
    class Lost(io.StringIO):
        def write(self, text: str) -> int:
            raise GONE

    monkeypatch.setattr(sys, "stderr", Lost())

    async def work(post):
        post("line")

    assert run(work, Failing(GONE), where="standard error") == 0


def test_an_interrupted_command_does_not_wait_for_an_output_that_takes_nothing(monkeypatch):
    codes = []

    def exit_now(code: int) -> None:
        codes.append(code)

    monkeypatch.setattr(os, "_exit", exit_now)
    monkeypatch.setattr(running, "_STUCK", 0.0)
    release = threading.Event()

    class Stuck(Recording):
        def show(self, item: object) -> None:
            release.wait()

    async def work(post):
        post("line")
        await trio.testing.wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep_forever()

    stuck = Stuck()
    try:
        run(work, stuck)
    finally:
        release.set()
    assert codes == [130]
    assert stuck.let_go_of == 1


def test_a_slow_reader_loses_snapshots_and_never_events(monkeypatch, server_statistics):
    monkeypatch.setattr(running, "_BACKLOG", 10)
    output = Recording()

    async def work(post):
        for _ in range(100):
            post(server_statistics)
            post(WARNING)

    run(work, output)
    assert output.items.count(WARNING) == 100
    assert output.items.count(server_statistics) < 20


def test_json_output_writes_events_and_leaves_out_what_is_for_people():
    stream = io.StringIO()
    output = JsonOutput(stream)
    output.show(WARNING)
    output.show("a line")
    output.show(View((), "a view"))
    output.close()
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line) == {"event": "warned", "seconds": 1.0, "message": "careful"}


def test_lines_beside_the_events_that_cannot_be_written_do_not_lose_an_event():
    stream = io.StringIO()
    output = JsonOutput(stream, Failing(FULL))
    output.show(WARNING)
    output.show(WARNING)
    output.close()
    assert len(stream.getvalue().splitlines()) == 2


def test_human_output_shows_what_the_narrator_makes_of_an_event():
    class Narrator:
        def tell(self, item):
            yield f"told: {item.message}"
            yield View((), "a view")

        def farewell(self):
            yield "goodbye"

    stream = io.StringIO()
    output = HumanOutput(PlainScreen(stream, lambda: 0.0, period=0.0), Narrator())
    output.show(WARNING)
    output.show("as it is")
    output.close()
    assert stream.getvalue().splitlines() == ["told: careful", "a view", "as it is", "goodbye"]
