from __future__ import annotations

import io
import json
import signal
import sys

import pytest
import trio
from typer.testing import CliRunner

import wdstransport
from cli.deploy_image import app
from cli.receive import ReceiveNarrator, ReceiveOptions, run_receive
from cli.render import View

INITIATED = wdstransport.Initiated(
    seconds=0.1,
    server=("10.0.0.1", 5041),
    group=("239.1.1.1", 64001),
    interface="eth0",
    session_id=7,
    size=4_000_000_000,
    block_size=1385,
    total_blocks=2_888_087,
)
CAPPED = wdstransport.Warned(seconds=0.0, message="the kernel capped the buffer")


def progress_event(stored: int = 1_000_000_000, **changes: object) -> wdstransport.Progress:
    fields: dict[str, object] = {
        "seconds": 9.0,
        "received": stored,
        "stored": stored,
        "total": 4_000_000_000,
        "bytes_per_second": 100e6,
        "loss": 0.01,
        "duplicates": 3,
        "refused": 2,
        "dropped": 1,
    }
    return wdstransport.Progress(**{**fields, **changes})


@pytest.fixture
def fake(monkeypatch):
    class Fake:
        def __init__(self) -> None:
            self.arguments: dict[str, object] = {}
            self.error: Exception | None = None
            self.kept: wdstransport.Kept | None = None

    fake = Fake()

    async def receive(content, target, *, on_event, **arguments):
        fake.arguments = {"content": content, "target": target, **arguments}
        on_event(CAPPED)
        if fake.kept:
            on_event(fake.kept)
        if fake.error:
            raise fake.error
        on_event(INITIATED)
        on_event(wdstransport.JoinedSession(seconds=0.2, client_id=4))
        on_event(progress_event(4_000_000_000))
        on_event(wdstransport.Finished(seconds=40.0, target=str(target), size=4_000_000_000))
        return wdstransport.ReceiveResult(**RESULT)

    monkeypatch.setattr(wdstransport, "receive", receive)
    return fake


RESULT: dict[str, object] = {
    "target": "/srv/win.wim",
    "size": 4_000_000_000,
    "seconds": 40.0,
    "bytes_per_second": 100e6,
    "loss": 0.01,
    "duplicates": 3,
    "refused": 2,
    "dropped": {"checksum": 1},
}


def invoke(*words: str):
    return CliRunner().invoke(app, ["receive", *words])


def test_without_options_the_defaults_of_the_documentation_are_used(fake):
    assert invoke("win.wim", "/srv/win.wim", "--server", "h").exit_code == 0
    assert fake.arguments == {
        "content": "win.wim",
        "target": "/srv/win.wim",
        "server": "h",
        "namespace": "images",
        "interface": None,
        "port": 5041,
        "security": "checksum",
        "timeout": 30.0,
        "force": False,
        "drop_share": 0.0,
        "drop_seed": 0,
    }


def test_every_option_reaches_the_receiver(fake):
    result = invoke(
        *("a/b.wim", "t", "--server", "h", "--namespace", "n", "--interface", "10.0.0.2", "--port", "6000"),
        *("--security", "none", "--timeout", "2.5", "--force", "--drop-share", "0.05", "--drop-seed", "9"),
    )
    assert result.exit_code == 0
    assert fake.arguments == {
        "content": "a/b.wim",
        "target": "t",
        "server": "h",
        "namespace": "n",
        "interface": "10.0.0.2",
        "port": 6000,
        "security": "none",
        "timeout": 2.5,
        "force": True,
        "drop_share": 0.05,
        "drop_seed": 9,
    }


def test_the_first_line_says_server_interface_and_group_even_when_a_warning_came_before(fake):
    lines = invoke("win.wim", "/srv/win.wim", "--server", "h").stdout.splitlines()
    assert lines == [
        "Receiving images/win.wim (4.00 GB) from 10.0.0.1:5041 on eth0, group 239.1.1.1:64001",
        "warning: the kernel capped the buffer",
        "Done: 4.00 GB in 0:40, 100.0 MB/s, loss 1.00 %, to /srv/win.wim",
    ]


def test_json_has_every_event_and_the_result(fake):
    lines = invoke("win.wim", "/srv/win.wim", "--server", "h", "--json").stdout.splitlines()
    assert [json.loads(line)["event"] for line in lines] == [
        "warned",
        "initiated",
        "joined-session",
        "progress",
        "finished",
        "result",
    ]


def test_a_failure_shows_the_warnings_that_explain_it_and_its_message(fake):
    fake.error = wdstransport.NobodyAnsweredError("Nobody answered at h:5041 from eth0. Check the firewall.")
    result = invoke("win.wim", "t", "--server", "h")
    assert result.exit_code == 5
    assert result.stdout == "warning: the kernel capped the buffer\n"
    assert result.stderr == "deploy-image: Nobody answered at h:5041 from eth0. Check the firewall.\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (wdstransport.RefusedError("No such content: x.", 2), 3),
        (wdstransport.RemovedError("Removed.", 1), 4),
        (wdstransport.IntegrityError("Wrong."), 6),
        (wdstransport.StorageError("Full."), 7),
    ],
)
def test_failures_have_their_exit_codes(fake, error, code):
    fake.error = error
    result = invoke("x", "t", "--server", "h", "--json")
    assert result.exit_code == code
    record = json.loads(result.stdout.splitlines()[-1])
    assert (record["event"], record["exit_code"]) == ("error", code)


def test_to_standard_output_the_image_is_alone_there(fake):
    result = invoke("win.wim", "-", "--server", "h")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "Receiving images/win.wim" in result.stderr
    assert "to standard output" in result.stderr


def test_to_standard_output_with_json_standard_error_is_nothing_but_objects(fake):
    fake.error = wdstransport.StorageError("The pipe broke.")
    result = invoke("win.wim", "-", "--server", "h", "--json")
    assert result.exit_code == 7
    assert result.stdout == ""
    assert [json.loads(line)["event"] for line in result.stderr.splitlines()] == ["warned", "error"]


def test_an_image_is_not_written_to_a_terminal(fake, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    errors = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", errors)
    assert run_receive(ReceiveOptions(content="win.wim", target="-", server="h")) == 2
    assert "deploy-image receive win.wim - --server h > FILE" in errors.getvalue()
    assert fake.arguments == {}


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_with_a_closed_stream_the_image_arrives_all_the_same(fake, monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    assert run_receive(ReceiveOptions(content="win.wim", target="t", server="h")) == 0
    assert fake.arguments["target"] == "t"


def test_with_closed_standard_error_the_image_still_goes_to_standard_output(fake, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    assert run_receive(ReceiveOptions(content="win.wim", target="-", server="h")) == 0


def test_with_closed_standard_error_a_failure_is_not_said_on_standard_output(fake, monkeypatch):
    fake.error = wdstransport.StorageError("Full.")
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", None)
    assert run_receive(ReceiveOptions(content="win.wim", target="t", server="h")) == 7
    assert "Full." not in output.getvalue()


@pytest.mark.parametrize(("target", "as_json"), [("-", False), ("-", True), ("t", True)])
def test_closed_standard_output_that_is_needed_is_exit_code_2_with_a_sentence(
    fake, monkeypatch, target, as_json
):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", errors)
    assert run_receive(ReceiveOptions(content="win.wim", target=target, server="h", json=as_json)) == 2
    assert "would go to standard output, which is closed" in errors.getvalue()
    assert fake.arguments == {}


def test_events_for_closed_standard_error_are_exit_code_2(fake, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    assert run_receive(ReceiveOptions(content="win.wim", target="-", server="h", json=True)) == 2
    assert fake.arguments == {}


def test_an_interrupt_lets_the_receiver_leave_and_is_exit_code_130(monkeypatch):
    left = []

    async def receive(content, target, **arguments):
        try:
            signal.raise_signal(signal.SIGTERM)
            await trio.sleep_forever()
        finally:
            left.append(True)

    monkeypatch.setattr(wdstransport, "receive", receive)
    result = invoke("win.wim", "t", "--server", "h", "--json")
    assert result.exit_code == 130
    assert left
    assert json.loads(result.stdout) == {"event": "interrupted", "signal": "SIGTERM", "exit_code": 130}


def test_after_an_interrupt_the_part_that_arrived_is_named(monkeypatch, tmp_path):
    async def receive(content, target, *, on_event, **arguments):
        try:
            await interrupted()
        finally:
            on_event(wdstransport.Kept(seconds=1.0, part=f"{target}.part"))

    async def interrupted():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()

    monkeypatch.setattr(wdstransport, "receive", receive)
    result = invoke("win.wim", str(tmp_path / "win.wim"), "--server", "h")
    assert result.exit_code == 130
    assert result.stdout == f"What arrived is kept in {tmp_path / 'win.wim.part'}.\n"


def test_after_an_interrupt_the_part_of_an_earlier_run_is_not_what_arrived(monkeypatch, tmp_path):
    async def receive(content, target, **arguments):
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    (tmp_path / "win.wim.part").write_text("of yesterday")
    monkeypatch.setattr(wdstransport, "receive", receive)
    result = invoke("win.wim", str(tmp_path / "win.wim"), "--server", "h")
    assert (result.exit_code, result.stdout) == (130, "")


def test_a_failure_names_what_was_kept_once(fake):
    fake.error = wdstransport.RemovedError("removed.", 0)
    fake.error.add_note("What arrived is kept in t.part.")
    fake.kept = wdstransport.Kept(seconds=1.0, part="t.part")
    result = invoke("win.wim", "t", "--server", "h")
    assert result.output.count("What arrived is kept in t.part.") == 1
    events = [
        json.loads(line) for line in invoke("win.wim", "t", "--server", "h", "--json").stdout.splitlines()
    ]
    assert [event["event"] for event in events] == ["warned", "kept", "error"]


def test_a_server_must_be_named(fake):
    result = invoke("win.wim", "t")
    assert result.exit_code == 2
    assert "--server" in result.stderr


def pieces(narrator: ReceiveNarrator, item: object) -> list[str | View]:
    return list(narrator.tell(item))


@pytest.fixture
def narrator():
    made = ReceiveNarrator(ReceiveOptions(content="win.wim", target="t", server="h"))
    pieces(made, INITIATED)
    return made


def test_progress_is_a_row_with_totals_and_eta(narrator):
    pieces(narrator, progress_event(500_000_000, seconds=4.0))
    (view,) = pieces(narrator, progress_event())
    (section,) = view.sections
    (row,) = section.rows
    assert (row.address, row.share, row.bytes_per_second, row.loss, row.state) == (
        "10.0.0.1:5041",
        0.25,
        100e6,
        0.01,
        "receiving",
    )
    assert section.totals == "1.00 GB of 4.00 GB, ETA 0:30"
    assert view.summary == "receiving 25.0 %, 1.00 GB of 4.00 GB, ETA 0:30, 100.0 MB/s, loss 1.00 %"


def test_the_rate_is_that_of_the_last_seconds_and_not_of_a_moment(narrator):
    for second in range(10):
        pieces(narrator, progress_event(second * 50_000_000, seconds=float(second), bytes_per_second=1e9))
    (view,) = pieces(narrator, progress_event(500_000_000, seconds=10.0, bytes_per_second=0.0))
    assert view.sections[0].rows[0].bytes_per_second == 50e6


def test_when_all_is_stored_it_is_flushing(narrator):
    (view,) = pieces(narrator, progress_event(4_000_000_000))
    assert view.sections[0].rows[0].state == "flushing"


def test_an_image_of_no_bytes_is_complete(narrator):
    (view,) = pieces(narrator, progress_event(0, total=0))
    assert view.sections[0].rows[0].share == 1.0


def test_before_the_first_block_it_says_what_it_waits_for(narrator):
    (view,) = pieces(narrator, wdstransport.JoinedSession(seconds=0.2, client_id=4))
    assert view.summary == "joined; waiting for the server to begin"
    (view,) = pieces(narrator, progress_event(0))
    assert view.summary == view.sections[0].totals == "joined; waiting for the server to begin"
    assert view.sections[0].rows == ()


def test_before_it_is_let_in_it_says_that_it_asks(narrator):
    (view,) = pieces(narrator, progress_event(0))
    assert view.summary == "asking to be let in"


def test_verbose_adds_the_session_the_client_and_the_counters():
    narrator = ReceiveNarrator(ReceiveOptions(content="c", target="t", server="h", verbose=True))
    assert "Session 7: 2888087 blocks of 1385 bytes" in pieces(narrator, INITIATED)
    joined = wdstransport.JoinedSession(seconds=0.2, client_id=4, features={"merging": "UDP_GRO"})
    assert pieces(narrator, joined)[:2] == ["Joined as client 4", "features: merging UDP_GRO"]
    (view,) = pieces(narrator, progress_event())
    assert view.summary.endswith("3 duplicate, 2 refused, 1 dropped")
    done = pieces(narrator, wdstransport.ReceiveResult(**RESULT))
    assert done[1:] == [
        "3 duplicate blocks, 2 refused because storing was behind",
        "Datagrams dropped: checksum 1",
    ]
    assert list(narrator.farewell()) == []


def test_verbose_says_after_a_failure_too_what_was_dropped():
    narrator = ReceiveNarrator(ReceiveOptions(content="c", target="t", server="h", verbose=True))
    pieces(narrator, INITIATED)
    pieces(narrator, progress_event(0, dropped=7, dropped_by_reason={"checksum": 7}))
    assert list(narrator.farewell()) == ["Datagrams dropped: checksum 7"]


def test_json_with_verbose_has_the_lines_for_people_on_standard_error(fake):
    result = invoke("win.wim", "/srv/win.wim", "--server", "h", "--json", "--verbose")
    assert [json.loads(line)["event"] for line in result.stdout.splitlines()][-1] == "result"
    assert "Joined as client 4" in result.stderr
    assert "Datagrams dropped: checksum 1" in result.stderr


def test_json_with_verbose_to_standard_output_is_nothing_but_objects_on_standard_error(fake):
    result = invoke("win.wim", "-", "--server", "h", "--json", "--verbose")
    assert [json.loads(line)["event"] for line in result.stderr.splitlines()][-1] == "result"


def test_a_server_that_does_not_answer_is_told_at_once(fake):
    silent = ReceiveNarrator(ReceiveOptions(content="win.wim", target="t", server="h"))
    event = wdstransport.Unanswered(
        seconds=5.0, server=("10.0.0.1", 5041), interface="eth0", asked=5, message="no answer yet from h"
    )
    assert pieces(silent, event) == ["no answer yet from h"]


def test_a_warning_in_the_middle_is_told_at_once(narrator):
    assert pieces(narrator, CAPPED) == ["warning: the kernel capped the buffer"]
