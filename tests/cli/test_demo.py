from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import wdstransport
from cli import children
from cli import demo as demonstration
from cli import workspace as place
from cli.demo import Board, DemoOptions, receive_words, serve_words
from cli.deploy_image import app

# Stands in for both commands: the server tells of a session, a receiver copies the file beside its target.
PRETENDER = r"""
import json, os, pathlib, shutil, sys
def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)
words = sys.argv[1:]
mode = os.environ.get("PRETEND", "")
if words[0] == "serve":
    if mode == "server-fails":
        say("error", message="no such interface"); raise SystemExit(2)
    if mode == "server-is-mute":
        raise SystemExit(0)
    say("server-listening", address=["127.0.0.1", 6000])
    say("client-joined", client_id=1, address=["127.0.0.1", 7001])
    say("sending-started")
    size = pathlib.Path(words[-1]).stat().st_size
    say("statistics", features={"segmentation": "on"},
        sessions=[{"session_id": 1, "data_bytes": size, "repair_bytes": size // 10}])
else:
    image, target = words[-2:]
    number = target[-1]
    say("initiated"); say("joined-session", client_id=int(number))
    if mode == "receiver-fails" and number == "2":
        say("error", message="disk full"); raise SystemExit(7)
    source = os.environ.get("PRETEND_IMAGE") or pathlib.Path(target).parent / image
    shutil.copyfile(source, target)
    size = os.path.getsize(target)
    if mode == "copy-is-wrong" and number == "2":
        with open(target, "r+b") as file:
            file.write(b"wrong")
    say("progress", stored=size, seconds=1.0, loss=0.01)
    say("finished")
"""


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    commands: list[list[str]] = []

    def command(*words: str) -> list[str]:
        commands.append(list(words))
        return [sys.executable, "-S", "-c", PRETENDER, *words]

    monkeypatch.setattr(children, "command", command)
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(place, "_SHARED_MEMORY", shared)
    monkeypatch.setattr(place, "_MARGIN", 0)
    monkeypatch.setattr(demonstration, "_PATIENCE", 60.0)
    yield commands
    assert list(shared.iterdir()) == []


def invoke(*words: str):
    return CliRunner().invoke(app, ["demo", *words])


def test_a_demo_that_works_reports_copies_throughput_and_crossings(pretend):
    result = invoke("--size", "1M", "--clients", "3")
    assert result.exit_code == 0, result.output
    assert "All 3 copies are identical with the source: SHA-256 " in result.stdout
    assert "Throughput: 1.05 MB in " in result.stdout
    assert "1.100 x the image (105 kB repairs); one by one it would have been 3.000 x" in result.stdout
    group = pretend[0][pretend[0].index("--group") + 1]
    assert f"Server at 127.0.0.1:6000, group {group}; 3 receivers, each losing 1.00 %" in result.stdout


def test_a_given_image_is_sent_and_left_alone(pretend, tmp_path, monkeypatch):
    image = tmp_path / "-odd name.wim"
    image.write_bytes(b"image" * 1000)
    monkeypatch.setenv("PRETEND_IMAGE", str(image))
    result = invoke("--clients", "1", "--loss", "0", "--", str(image))
    assert result.exit_code == 0, result.output
    assert "The copy is identical" in result.stdout
    assert image.read_bytes() == b"image" * 1000


def test_a_copy_that_differs_is_exit_code_6_and_named(pretend, monkeypatch):
    monkeypatch.setenv("PRETEND", "copy-is-wrong")
    result = invoke("--size", "1M")
    assert result.exit_code == 6
    assert "copy-2 differ" in result.stderr
    assert "identical" not in result.stdout


def test_a_receiver_that_fails_ends_the_demo_with_its_exit_code_and_message(pretend, monkeypatch):
    monkeypatch.setenv("PRETEND", "receiver-fails")
    result = invoke("--size", "1M")
    assert result.exit_code == 7
    assert result.stderr == "deploy-image: receiver 2 failed: disk full\n"


def test_a_server_that_cannot_start_ends_the_demo_with_its_message(pretend, monkeypatch):
    monkeypatch.setenv("PRETEND", "server-fails")
    result = invoke("--size", "1M")
    assert result.exit_code == 2
    assert result.stderr == "deploy-image: The server failed: no such interface\n"


def test_a_server_that_ends_without_listening_does_not_hang_the_demo(pretend, monkeypatch):
    monkeypatch.setenv("PRETEND", "server-is-mute")
    result = invoke("--size", "1M")
    assert result.exit_code == 1
    assert "ended before it listened" in result.stderr


def test_verbose_shows_the_commands_and_the_features(pretend):
    result = invoke("--size", "1M", "--clients", "1", "--verbose")
    assert "Running: " in result.stdout
    assert "features: segmentation on" in result.stdout


def test_no_room_is_exit_code_7(pretend, monkeypatch):
    monkeypatch.setattr(place, "free_bytes", lambda path: 10)
    assert invoke("--size", "1M").exit_code == 7
    assert pretend == []


@pytest.mark.parametrize("content", [None, b""])
def test_an_image_that_is_not_there_or_empty_is_a_usage_error(pretend, tmp_path, content):
    image = tmp_path / "x.wim"
    if content is not None:
        image.write_bytes(content)
    result = invoke(str(image))
    assert result.exit_code == 2
    assert "x.wim" in result.stderr


@pytest.mark.parametrize(
    "words", [["--loss", "1"], ["--loss", "60%"], ["--size", "0"], ["--size", "big"], ["--clients", "0"]]
)
def test_values_that_cannot_be_are_usage_errors(pretend, words):
    result = invoke(*words)
    assert result.exit_code == 2
    assert words[0] in result.stderr


def test_the_defaults_are_those_of_the_documentation():
    options = DemoOptions()
    assert (options.clients, options.loss, options.size) == (3, 0.01, 256 << 20)


def test_the_server_waits_for_all_receivers_on_loopback_and_ends_after_them():
    words = serve_words(DemoOptions(clients=5, rate=1e6), Path("/i.bin"), "239.255.1.1")
    text = " ".join(words)
    for part in (
        "--interface 127.0.0.1",
        "--port 0",
        "--group 239.255.1.1",
        "--min-clients 5",
        "--exit-when-done 5",
        "--rate 1000000B",
        "--json",
        "-- /i.bin",
    ):
        assert part in text


def test_every_receiver_loses_other_datagrams():
    options = DemoOptions(loss=0.05)
    first, second = (receive_words(options, Path("/i.bin"), Path("/c"), 6000, index) for index in range(2))
    assert first[first.index("--drop-share") + 1] == "0.05"
    assert first[first.index("--drop-seed") + 1] != second[second.index("--drop-seed") + 1]
    assert "--drop-share" not in receive_words(DemoOptions(loss=0.0), Path("/i"), Path("/c"), 1, 0)


@pytest.fixture
def board():
    made = Board(size=1000, names=("receiver 1", "receiver 2"))
    made.note("server", {"event": "client-joined", "client_id": 9, "address": ["127.0.0.1", 7001]}, 1.0)
    made.note("receiver 1", {"event": "joined-session", "client_id": 9}, 1.0)
    return made


def states(board: Board) -> list[str]:
    return [row.state for row in board.view(5.0).sections[0].rows]


def test_the_board_shows_each_receivers_address_share_and_state(board):
    board.note("server", {"event": "sending-started"}, 2.0)
    record = {"event": "progress", "stored": 250, "seconds": 2.0, "loss": 0.01}
    board.note("receiver 1", record, 3.0)
    first, second = board.view(4.0).sections[0].rows
    assert (first.address, first.share, first.state) == ("127.0.0.1:7001", 0.25, "receiving")
    assert (second.address, second.share, second.state) == ("-", 0.0, "starting")


def test_the_board_follows_a_receiver_through_its_states(board):
    assert states(board) == ["waiting", "starting"]
    board.note("receiver 2", {"event": "initiated"}, 2.0)
    assert states(board) == ["waiting", "joining"]
    record = {"event": "progress", "stored": 1000, "seconds": 2.0, "loss": 0.0}
    board.note("receiver 1", record, 3.0)
    board.note("receiver 2", {"event": "error", "message": "m"}, 3.0)
    assert states(board) == ["flushing", "failed"]
    board.note("receiver 1", {"event": "finished"}, 4.0)
    assert states(board) == ["done", "failed"]


def test_the_eta_goes_by_the_slowest(board):
    board.note("server", {"event": "sending-started"}, 0.0)
    for name, stored in (("receiver 1", 900), ("receiver 2", 250)):
        record = {"event": "progress", "stored": stored, "seconds": 2.0, "loss": 0.0}
        board.note(name, record, 4.0)
    assert "ETA 0:12" in board.view(4.0).summary


def test_the_last_snapshot_of_every_session_counts(board):
    def statistics(*sessions: tuple[int, int, int]) -> children.Record:
        fields = ("session_id", "data_bytes", "repair_bytes")
        return {
            "event": "statistics",
            "features": {},
            "sessions": [dict(zip(fields, session, strict=True)) for session in sessions],
        }

    board.note("server", statistics((1, 400, 0)), 1.0)
    board.note("server", statistics((1, 1000, 20)), 2.0)
    board.note("server", statistics((2, 500, 0)), 3.0)
    assert (board.sent, board.repairs) == (1520, 20)


def test_unknown_events_are_ignored(board):
    board.note("server", {"event": "new-in-a-later-version"}, 1.0)
    board.note("receiver 1", {"event": "new-in-a-later-version"}, 1.0)
    assert states(board) == ["waiting", "starting"]


def test_without_times_the_report_leaves_throughput_out(board):
    lines = list(board.report("abc"))
    assert not any("Throughput" in line for line in lines)


def test_an_integrity_error_has_exit_code_6():
    assert wdstransport.IntegrityError.exit_code == 6
