from __future__ import annotations

import subprocess
import sys

import pytest
import trio

from cli import children


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def run(code: str) -> list[children.Record]:
    records: list[children.Record] = []
    await children.run_child("The child", python(code), records.append)
    return records


async def test_every_record_of_a_child_is_handed_on_in_order():
    code = 'for n in range(3): print(\'{"event": "e", "n": %d}\' % n, flush=True)'
    assert await run(code) == [{"event": "e", "n": n} for n in range(3)]


async def test_a_last_line_without_its_end_counts_and_other_text_does_not():
    code = 'import sys; sys.stdout.write(\'prose\\n[1]\\n{}\\n{"event": "last"}\')'
    assert await run(code) == [{"event": "last"}]


async def test_a_record_longer_than_a_pipe_holds_arrives_whole():
    (record,) = await run("print('{\"event\": \"' + 'x' * 300000 + '\"}')")
    assert len(record["event"]) == 300_000


async def failure(code: str) -> children.ChildError:
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, code)
    (error,) = caught.value.exceptions
    assert isinstance(error, children.ChildError)
    return error


async def test_a_child_that_fails_passes_on_its_message_and_its_exit_code():
    code = 'print(\'{"event": "error", "message": "no room"}\'); raise SystemExit(7)'
    error = await failure(code)
    assert str(error) == "The child failed: no room"
    assert error.exit_code == 7


async def test_a_child_that_crashes_passes_on_what_it_said():
    error = await failure("raise RuntimeError('bug here')")
    assert "bug here" in str(error)
    assert error.exit_code == 1


async def test_a_child_that_is_killed_is_an_ordinary_failure():
    error = await failure("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert str(error) == "The child failed: it was ended by SIGKILL"
    assert error.exit_code == 1


async def test_a_child_that_fails_silently_is_named():
    assert "exit code 9 without a word" in str(await failure("raise SystemExit(9)"))


async def test_cancelling_ends_the_child():
    ended = []

    async def follow(scope: trio.CancelScope) -> None:
        def note(record: children.Record) -> None:
            ended.append(record["event"])
            if record["event"] == "ready":
                scope.cancel()

        code = 'import signal\nprint(\'{"event": "ready"}\', flush=True)\nsignal.pause()\n'
        await children.run_child("The child", python(code), note)

    with trio.CancelScope() as scope:
        await follow(scope)
    assert scope.cancelled_caught
    assert ended == ["ready"]


def test_our_own_command_runs_and_not_what_the_working_directory_calls_cli(tmp_path):
    decoy = tmp_path / "cli"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("raise SystemExit('decoy')")
    done = subprocess.run(
        children.command("--help"),
        cwd=tmp_path,
        env=children.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "deploy-image" in done.stdout
