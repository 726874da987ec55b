from __future__ import annotations

import json
import shlex
import signal
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import trio
from typer.testing import CliRunner

import wdstransport
from cli.deploy_image import app
from cli.render import View
from cli.serve import JSON_PERIOD, ServeNarrator, ServeOptions, receive_command, run_serve, serve

LISTENING = wdstransport.ServerListening(
    seconds=0.0, address=("10.0.0.1", 5041), interface="eth0", namespaces=("images",)
)
JOINED = wdstransport.ClientJoined(
    seconds=1.0, session_id=1, client_id=1, name="pc-1", address=("10.0.0.7", 4001), mac="02:00"
)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "win.wim"
    path.write_bytes(bytes(1500))
    return path


@pytest.fixture
def fake(monkeypatch, statistics, session, client):
    """Stands in for the server; `fake.arguments` is what it was made with."""

    class FakeServer:
        arguments: ClassVar[dict[str, Any]] = {}
        namespaces: ClassVar[list[wdstransport.Namespace]] = []
        waited: ClassVar[list[int]] = []
        closed = False
        error: Exception | None = None
        snapshot: wdstransport.ServerStatistics

        def __init__(self, namespaces, **arguments) -> None:
            FakeServer.namespaces = namespaces
            FakeServer.arguments = arguments

        async def __aenter__(self):
            if FakeServer.error:
                raise FakeServer.error
            FakeServer.arguments["on_event"](LISTENING)
            return self

        async def __aexit__(self, *exception):
            FakeServer.closed = True
            FakeServer.arguments["on_event"](
                wdstransport.SessionEnded(seconds=9.0, session_id=1, reason="closed", error=None)
            )

        def statistics(self):
            return FakeServer.snapshot

        async def wait_completed(self, count):
            FakeServer.waited.append(count)
            FakeServer.arguments["on_event"](JOINED)

    FakeServer.snapshot = statistics(session(client(1)))
    monkeypatch.setattr(wdstransport, "TransportServer", FakeServer)
    return FakeServer


def invoke(*words: str):
    return CliRunner().invoke(app, ["serve", *words])


def test_without_options_the_defaults_of_the_documentation_are_used(fake, image):
    assert invoke(str(image), "--exit-when-done", "1").exit_code == 0
    arguments = {name: value for name, value in fake.arguments.items() if name != "on_event"}
    assert arguments == {
        "interface": None,
        "port": 5041,
        "group": None,
        "session_ports": None,
        "min_clients": 1,
        "max_wait": None,
        "block_size": None,
        "security": "checksum",
        "rate": None,
        "ttl": 1,
    }
    assert [(namespace.name, namespace.contents()) for namespace in fake.namespaces] == [
        ("images", [("win.wim", 1500)])
    ]


def test_every_option_reaches_the_server(fake, image):
    result = invoke(
        *(str(image), "--namespace", "n", "--interface", "eth1", "--port", "6000", "--group", "239.1.1.1"),
        *("--session-ports", "7000-7010", "--min-clients", "30", "--max-wait", "60", "--block-size", "8785"),
        *("--security", "none", "--rate", "900M", "--ttl", "4", "--exit-when-done", "2"),
    )
    assert result.exit_code == 0
    arguments = {name: value for name, value in fake.arguments.items() if name != "on_event"}
    assert arguments == {
        "interface": "eth1",
        "port": 6000,
        "group": "239.1.1.1",
        "session_ports": (7000, 7010),
        "min_clients": 30,
        "max_wait": 60.0,
        "block_size": 8785,
        "security": "none",
        "rate": 112.5e6,
        "ttl": 4,
    }
    assert fake.waited[-1] == 2
    assert fake.namespaces[0].name == "n"


def test_the_start_says_where_it_listens_what_it_has_and_what_to_type(fake, image):
    output = invoke(str(image), "--exit-when-done", "1").stdout.splitlines()
    assert output[:4] == [
        "Listening at 10.0.0.1:5041 on eth0, serving images:",
        "  images/win.wim  1.50 kB",
        "On a client, type:",
        "  deploy-image receive --server 10.0.0.1 win.wim win.wim",
    ]


def test_the_end_says_how_often_the_image_crossed_the_wire(fake, image):
    output = invoke(str(image), "--exit-when-done", "1").stdout.splitlines()
    assert (
        output[-1] == "images/win.wim: 0 complete downloads, 610 MB sent, 0.61 x the image (10.0 MB repairs)"
    )


def test_the_end_tells_what_late_clients_got_again_from_repairs(narrator, statistics, session):
    list(narrator.tell(statistics(session(data_bytes=1_400_000_000, catch_up_bytes=400_000_000))))
    assert list(narrator.farewell()) == [
        "images/win.wim: 0 complete downloads, 1.41 GB sent, 1.41 x the image "
        "(10.0 MB repairs, 400 MB again for late or slow clients)"
    ]


def test_json_has_every_event_and_the_last_statistics(fake, image):
    result = invoke(str(image), "--json", "--exit-when-done", "1")
    events = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert events == ["server-listening", "client-joined", "statistics", "session-ended"]
    assert fake.closed


def test_an_error_is_said_on_standard_error_and_as_an_event(fake, image):
    fake.error = wdstransport.UsageError("Port 5041 is in use. Choose another with --port.")
    result = invoke(str(image), "--json")
    assert result.exit_code == 2
    assert result.stderr == "deploy-image: Port 5041 is in use. Choose another with --port.\n"
    record = json.loads(result.stdout)
    assert (record["event"], record["error"], record["exit_code"]) == ("error", "usage", 2)


def test_an_interrupt_closes_the_server_and_is_exit_code_130(fake, image, monkeypatch):
    async def interrupted(self, count):
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    monkeypatch.setattr(fake, "wait_completed", interrupted)
    result = invoke(str(image), "--json", "--exit-when-done", "1")
    assert result.exit_code == 130
    assert fake.closed
    assert [json.loads(line)["event"] for line in result.stdout.splitlines()] == [
        "server-listening",
        "statistics",
        "session-ended",
        "interrupted",
    ]


def test_a_path_that_does_not_exist_is_a_usage_error(fake, tmp_path):
    result = invoke(str(tmp_path / "nowhere.wim"))
    assert result.exit_code == 2
    assert "nowhere.wim" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--rate", "fast"],
        ["--rate", "0"],
        ["--session-ports", "9-1"],
        ["--min-clients", "0"],
        ["--port", "70000"],
        ["--security", "hash"],
        ["--ttl", "0"],
        ["--exit-when-done", "0"],
    ],
)
def test_values_that_cannot_be_are_usage_errors(fake, image, words):
    result = invoke(str(image), *words)
    assert result.exit_code == 2
    assert words[0] in result.stderr


async def test_statistics_are_posted_every_period_while_it_serves(fake, image, autojump_clock):
    times = []

    def post(item: object) -> None:
        if isinstance(item, wdstransport.ServerStatistics):
            times.append(trio.current_time())
            if len(times) == 6:
                scope.cancel()

    with trio.CancelScope() as scope:
        options = ServeOptions(paths=(image,), json=True)
        await serve(options, ServeNarrator(options), post)
    # The seventh is the one that every end posts.
    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx([JSON_PERIOD] * 5 + [0])
    assert fake.closed


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_with_a_closed_stream_it_serves_all_the_same(fake, monkeypatch, image, name):
    monkeypatch.setattr(sys, name, None)
    assert run_serve(ServeOptions(paths=(image,), exit_when_done=1)) == 0


def test_events_for_closed_standard_output_are_exit_code_2_with_a_sentence(fake, monkeypatch, image, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert run_serve(ServeOptions(paths=(image,), exit_when_done=1, json=True)) == 2
    assert "The events of --json would go to standard output, which is closed." in capsys.readouterr().err


def test_json_with_verbose_says_the_features_on_standard_error(fake, image):
    result = CliRunner().invoke(app, ["serve", str(image), "--exit-when-done", "1", "--json", "--verbose"])
    assert all(json.loads(line)["event"] for line in result.stdout.splitlines())
    assert "features: segmentation on" in result.stderr


@pytest.fixture
def narrator():
    return ServeNarrator(ServeOptions(paths=(), min_clients=30))


def told(narrator, item) -> list[str]:
    return [piece for piece in narrator.tell(item) if isinstance(piece, str)]


def viewed(narrator, item) -> View:
    (view,) = (piece for piece in narrator.tell(item) if isinstance(piece, View))
    return view


def test_every_event_of_a_server_has_a_line(narrator):
    address = ("10.0.0.7", 4001)
    left = {"seconds": 1.0, "session_id": 1, "client_id": 1, "name": "pc-1", "address": address}
    opened = wdstransport.SessionOpened(
        seconds=1.0,
        session_id=1,
        namespace="images",
        content="win.wim",
        size=1_000_000,
        block_size=1385,
        total_blocks=723,
        group=("239.1.1.1", 64001),
        address=("10.0.0.1", 64001),
        interface="eth0",
    )
    assert told(narrator, opened) == [
        "images/win.wim: session 1 to group 239.1.1.1:64001 from 10.0.0.1:64001 on eth0, 1.00 MB in 723 "
        "blocks of 1385 bytes"
    ]
    assert told(narrator, wdstransport.SendingStarted(seconds=1.0, session_id=1, clients=1)) == [
        "session 1: sending to 1 client"
    ]
    assert told(narrator, JOINED) == ["pc-1 (10.0.0.7:4001, 02:00) joined session 1"]
    assert told(narrator, wdstransport.ClientLeft(**left, reason="complete")) == [
        "pc-1 (10.0.0.7:4001) has the whole image"
    ]
    assert told(narrator, wdstransport.ClientLeft(**left, reason="new-reason")) == [
        "pc-1 (10.0.0.7:4001) new-reason"
    ]
    refused = wdstransport.RequestRefused(
        seconds=1.0, address=address, namespace="images", content="../x", code=2
    )
    assert told(narrator, refused) == ["refused 10.0.0.7:4001: no images/../x here (error 2 sent)"]
    for code, why in (
        (3, "no images/a here"),
        (30, "images/a cannot be read"),
        (59, "images/a cannot get a session on the network where it was asked for"),
        (69, "images/a has to wait, every session that there may be has clients"),
    ):
        event = replace(refused, content="a", code=code)
        assert told(narrator, event) == [f"refused 10.0.0.7:4001: {why} (error {code} sent)"]
    assert told(narrator, wdstransport.Warned(seconds=1.0, message="m")) == ["warning: m"]
    ended = wdstransport.SessionEnded(seconds=1.0, session_id=1, reason="source-changed", error="it shrank")
    assert told(narrator, ended) == ["session 1 failed: it shrank"]


def test_the_view_has_a_row_per_client_and_the_session_totals(narrator, statistics, session, client):
    view = viewed(
        narrator, statistics(session(client(1), client(2, progress=0.25, state="master"), completed=3))
    )
    (section,) = view.sections
    assert [(row.name, row.share, row.state) for row in section.rows] == [
        ("pc-1", 0.5, "active"),
        ("pc-2", 0.25, "master"),
    ]
    assert section.totals == (
        "610 MB sent (0.61 x), 100.0 MB/s, 2 clients, 3 complete, slowest pc-2 25.0 %, ETA 0:04"
    )
    assert view.summary == f"images/win.wim: sending, {section.totals}"


def test_after_the_first_round_the_eta_goes_by_the_slowest_client(narrator, statistics, session, client):
    view = viewed(narrator, statistics(session(client(1, progress=0.25), round=2)))
    assert "ETA 0:08" in view.summary
    assert "round 2" in view.sections[0].title


def test_a_clients_rate_is_held_until_it_reports_again(narrator, statistics, session, client):
    first = viewed(narrator, statistics(session(client(1, progress=0.5, seconds_in_session=5.0))))
    later = viewed(narrator, statistics(session(client(1, progress=0.5, seconds_in_session=50.0))))
    assert first.sections[0].rows[0].bytes_per_second == 100e6
    assert later.sections[0].rows[0].bytes_per_second == 100e6


def test_waiting_shows_how_many_have_joined_of_how_many(narrator, statistics, session, client):
    view = viewed(narrator, statistics(session(client(1), client(2), state="waiting", data_bytes=0)))
    assert view.sections[0].totals == "2/30 clients have joined"


def test_ended_sessions_are_not_shown(narrator, statistics, session):
    assert viewed(narrator, statistics(session(state="ended"))) == View((), "")


def test_an_empty_image_divides_nothing_by_zero(narrator, statistics, session, client):
    empty = session(client(1), size=0, total_blocks=0, data_bytes=0, repair_bytes=0, bytes_per_second=0.0)
    assert viewed(narrator, statistics(empty)).sections
    assert list(narrator.farewell()) == ["images/win.wim: 0 complete downloads, 0 B sent (0 B repairs)"]


def test_features_are_told_once_and_only_when_asked_for(statistics):
    quiet = ServeNarrator(ServeOptions(paths=()))
    assert told(quiet, statistics()) == []
    verbose = ServeNarrator(ServeOptions(paths=(), verbose=True))
    assert told(verbose, statistics()) == ["features: segmentation on"]
    assert told(verbose, statistics()) == []


def test_a_server_of_months_remembers_a_bounded_number_of_sessions(narrator, statistics, session):
    for number in range(500):
        viewed(narrator, statistics(session(session_id=number)))
    assert len(list(narrator.farewell())) <= 50


class Listed:
    def __init__(self, *contents: tuple[str, int]) -> None:
        self.name = "images"
        self._contents = list(contents)

    def contents(self):
        return self._contents


def test_a_large_directory_is_not_listed_whole(narrator):
    narrator.namespaces = (Listed(*((f"{number:04}.wim", 1) for number in range(1000))),)
    lines = told(narrator, LISTENING)
    assert len(lines) < 30
    assert "  and 980 more in images" in lines


def test_an_empty_directory_says_so_and_shows_the_form_of_the_command(narrator):
    narrator.namespaces = (Listed(),)
    lines = told(narrator, LISTENING)
    assert any("nothing yet" in line for line in lines)
    assert lines[-1].endswith("deploy-image receive --server 10.0.0.1 CONTENT CONTENT")


@pytest.mark.parametrize(
    ("wildcard", "chosen"), [("0.0.0.0", "10.0.0.1"), ("::", "fd00::1"), ("", "10.0.0.1")]
)
def test_a_server_on_all_addresses_names_one_that_clients_can_reach(narrator, monkeypatch, wildcard, chosen):
    loopback = SimpleNamespace(up=True, loopback=True, ipv4=("127.0.0.1",), ipv6=("::1",))
    down = SimpleNamespace(up=False, loopback=False, ipv4=("10.9.9.9",), ipv6=("fd09::1",))
    wired = SimpleNamespace(up=True, loopback=False, ipv4=("10.0.0.1",), ipv6=("fd00::1",))
    monkeypatch.setattr(wdstransport, "list_interfaces", lambda: [loopback, down, wired])
    event = wdstransport.ServerListening(
        seconds=0.0, address=(wildcard, 5041), interface="", namespaces=("images",)
    )
    lines = told(narrator, event)
    assert f"--server {chosen} " in lines[-1]
    assert lines[0].startswith(f"Listening at port 5041 on all interfaces ({chosen}, ")


def test_a_server_without_any_address_says_so_by_its_wildcard(narrator, monkeypatch):
    monkeypatch.setattr(wdstransport, "list_interfaces", list)
    event = wdstransport.ServerListening(
        seconds=0.0, address=("0.0.0.0", 5041), interface="all", namespaces=("images",)
    )
    assert "--server 0.0.0.0 " in told(narrator, event)[-1]


def test_the_command_names_only_what_is_not_default_and_survives_a_shell():
    text = receive_command("lab", "a dir/b's.wim", host="fd00::1", port=6000, security="none")
    *options, content, target = shlex.split(text)
    assert options == shlex.split(
        "deploy-image receive --server fd00::1 --namespace lab --port 6000 --security none"
    )
    assert (content, target) == ("a dir/b's.wim", "b's.wim")
    assert receive_command("images", "-x", host="h", port=5041, security="checksum").endswith("-- -x -x")
