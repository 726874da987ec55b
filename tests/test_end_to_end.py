"""The commands as real processes: a server, receivers that come, go, are killed and start again."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from loopback import HOST, PATIENCE, image

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "cli.deploy_image"]


class Process:
    """One command, followed line by line."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self.complaints = ""
        self._changed = trio.Event()
        self._followed = 0

    @classmethod
    async def start(cls, nursery, *words, stdout=subprocess.PIPE):
        process = await trio.lowlevel.open_process(
            [*COMMAND, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        self = cls(process)
        if process.stdout is not None:
            nursery.start_soon(self._follow, process.stdout, self.lines)
        nursery.start_soon(self._follow, process.stderr, None)
        return self

    async def _follow(self, stream, lines):
        rest = b""
        async for chunk in stream:
            if lines is None:
                self.complaints += chunk.decode()
                continue
            *whole, rest = (rest + chunk).split(b"\n")
            lines.extend(whole)
            self._touch()
        if rest:
            lines.append(rest)
        self._followed += 1
        self._touch()

    def _touch(self):
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    @property
    def records(self):
        return [json.loads(line) for line in self.lines]

    def of(self, event):
        return [record for record in self.records if record["event"] == event]

    async def wait(self, event, condition=lambda record: True, count=1):
        """The `count`-th record of an event for which `condition` holds, once it has been printed."""
        with trio.fail_after(PATIENCE):
            while len(found := [each for each in self.of(event) if condition(each)]) < count:
                assert self.process.poll() is None or self._followed < 2, self.complaints
                await self._changed.wait()
        return found[count - 1]

    async def ended(self):
        """The exit code, once the process has ended and everything that it said has been read."""
        with trio.fail_after(PATIENCE):
            await self.process.wait()
            streams = 2 if self.process.stdout is not None else 1
            while self._followed < streams:
                await self._changed.wait()
        return self.process.returncode

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()


@pytest.fixture
async def start(nursery):
    """`start("serve", ...)`: a command, running; it is ended with the test."""
    processes = []

    async def begin(*words, **options):
        processes.append(await Process.start(nursery, *words, **options))
        return processes[-1]

    yield begin
    for process in processes:
        process.end()
        with trio.CancelScope(shield=True):
            await process.process.wait()


@pytest.fixture
def serve(start):
    """`serve(path, ...)`: a server on loopback that listens, and its port."""

    async def begin(*words):
        server = await start("serve", *words, "--interface", HOST, "--port", 0, "--json")
        listening = await server.wait("server-listening")
        return server, listening["address"][1]

    return begin


@pytest.fixture
def fetch(start):
    """`fetch(port, content, target, ...)`: a receiver."""

    async def begin(port, content, target, *words, **options):
        return await start(
            "receive", content, target, "--server", HOST, "--port", port, "--json", *words, **options
        )

    return begin


@pytest.fixture
def served(tmp_path):
    """A directory to serve from, and what is in it."""
    root = tmp_path / "served"
    root.mkdir()
    files = {"big.img": image(6_000_000), "small.img": image(30_000), "empty.img": b""}
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root, files


async def test_eight_receivers_come_go_and_are_killed_and_the_others_never_notice(
    tmp_path, served, serve, fetch
):
    root, files = served
    server, port = await serve(root, "--rate", "20M", "--min-clients", 7, "--exit-when-done", 7)
    copies = {name: tmp_path / name for name in ("a", "b", "c", "d", "e", "killed", "leaver", "late")}
    running = {name: await fetch(port, "big.img", copies[name]) for name in copies if name != "late"}

    def some(record):
        return record["stored"] > 0

    await running["killed"].wait("progress", some)
    running["killed"].signal(signal.SIGKILL)
    await running["leaver"].wait("progress", some)
    running["leaver"].signal(signal.SIGINT)
    running["late"] = await fetch(port, "big.img", copies["late"])
    assert await running["killed"].ended() == -signal.SIGKILL
    assert not copies["killed"].exists()
    again = await fetch(port, "big.img", copies["killed"], "--force")
    assert await running["leaver"].ended() == 130
    assert [record["signal"] for record in running["leaver"].of("interrupted")] == ["SIGINT"]
    left = await server.wait("client-left")
    assert left["reason"] == "cancelled"

    for name in ("a", "b", "c", "d", "e", "late"):
        assert await running[name].ended() == 0, running[name].complaints
        assert copies[name].read_bytes() == files["big.img"]
        assert running[name].of("error") == []
        assert running[name].of("result")[0]["size"] == len(files["big.img"])
    assert await again.ended() == 0, again.complaints
    assert copies["killed"].read_bytes() == files["big.img"]
    assert not copies["leaver"].exists()

    assert await server.ended() == 0, server.complaints
    reasons = [record["reason"] for record in server.of("client-left")]
    assert sorted(reasons) == ["cancelled"] + ["complete"] * 7
    assert len(server.of("client-joined")) == 9
    assert len(server.of("session-opened")) == 1
    assert server.of("statistics")[-1]["completed"] == 7
    parts = sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".part")
    assert parts == ["leaver.part"]


async def test_every_exit_code_of_receiving(tmp_path, served, serve, fetch, start):
    root, files = served
    _, port = await serve(root)
    (tmp_path / "there").write_bytes(b"old")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        deaf = sock.getsockname()[1]
        expected = {
            0: await fetch(port, "small.img", tmp_path / "copy"),
            3: await fetch(port, "gone.img", tmp_path / "gone"),
            5: await fetch(deaf, "small.img", tmp_path / "lonely", "--timeout", 0.2),
            7: await fetch(port, "small.img", tmp_path / "there"),
            2: await fetch(port, "small.img", tmp_path / "nowhere", "--interface", "nosuch0"),
        }
        for code, process in expected.items():
            assert await process.ended() == code, process.complaints
            if code:
                (error,) = process.of("error")
                assert error["exit_code"] == code
                assert error["message"] in process.complaints
    assert (tmp_path / "copy").read_bytes() == files["small.img"]
    assert (tmp_path / "there").read_bytes() == b"old"
    assert "gone.img" in expected[3].of("error")[0]["message"]
    assert expected[3].of("error")[0]["code"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "served", "there"]


@pytest.mark.parametrize(
    "words",
    [
        ("receive", "a", "b"),
        ("receive", "a", "b", "--server", HOST, "--security", "hash"),
        ("receive", "a", "b", "--server", HOST, "--port", "70000"),
        ("receive", "a", "b", "--server", HOST, "--timeout", "nan"),
        ("receive", b"caf\xe9.wim", "b", "--server", HOST, "--timeout", "0.2"),
        ("serve",),
        ("serve", ".", "--group", "192.0.2.1"),
        ("serve", ".", "--session-ports", "9-1"),
        ("serve", ".", "--rate", "0"),
        ("serve", ".", "--rate", "999999999999999999T"),
        ("serve", ".", "--block-size", "70000"),
        ("demo", "--loss", "100%"),
    ],
    ids=str,
)
async def test_what_cannot_be_typed_is_exit_code_2_without_a_traceback(start, words):
    process = await start(*[os.fsdecode(word) for word in words])
    assert await process.ended() == 2
    assert process.complaints
    assert "Traceback" not in process.complaints


async def test_a_server_that_is_interrupted_removes_its_clients(tmp_path, served, serve, fetch):
    root, _ = served
    server, port = await serve(root, "--rate", "4M")
    client = await fetch(port, "big.img", tmp_path / "copy")
    await client.wait("progress", lambda record: record["stored"] > 0)
    server.signal(signal.SIGTERM)
    assert await client.ended() == 4
    assert client.of("error")[0]["reason"] == 2
    assert str(tmp_path / "copy.part") in client.of("error")[0]["message"]
    assert await server.ended() == 130
    assert [record["signal"] for record in server.of("interrupted")] == ["SIGTERM"]
    assert (tmp_path / "copy.part").exists()


async def test_a_port_that_is_taken_is_said(served, serve, start):
    root, _ = served
    _, port = await serve(root)
    second = await start("serve", root, "--interface", HOST, "--port", port)
    assert await second.ended() == 1
    assert str(port) in second.complaints
    assert "--port" in second.complaints


async def test_content_of_no_bytes_is_a_complete_download(tmp_path, served, serve, fetch):
    root, _ = served
    server, port = await serve(root, "--exit-when-done", 1)
    client = await fetch(port, "empty.img", tmp_path / "copy")
    assert await client.ended() == 0
    assert (tmp_path / "copy").read_bytes() == b""
    assert await server.ended() == 0
    last = server.of("statistics")[-1]
    assert [session["completed"] for session in last["sessions"]] == [last["completed"]] == [1]


async def test_an_image_on_standard_output_goes_to_another_program(served, serve, start, nursery):
    root, files = served
    _, port = await serve(root)
    hashing = await trio.lowlevel.open_process(
        [
            sys.executable,
            "-c",
            "import hashlib,sys; print(hashlib.file_digest(sys.stdin.buffer,'sha256').hexdigest())",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    words = ["receive", "big.img", "-", "--server", HOST, "--port", port, "--json"]
    receiver = await start(*words, stdout=hashing.stdin.fileno())
    await hashing.stdin.aclose()
    digest = b""
    with trio.fail_after(PATIENCE):
        async for chunk in hashing.stdout:
            digest += chunk
        await hashing.wait()
    assert await receiver.ended() == 0, receiver.complaints
    assert digest.decode().strip() == hashlib.sha256(files["big.img"]).hexdigest()
    # Standard output is the image's, so the events are on standard error, and nothing else is.
    records = [json.loads(line) for line in receiver.complaints.splitlines()]
    assert [record["event"] for record in records if record["event"] in ("finished", "result")] == [
        "finished",
        "result",
    ]


async def test_a_reader_that_takes_a_part_only_is_exit_code_7(served, serve, start):
    root, _ = served
    _, port = await serve(root, "--rate", "16M")
    reading, writing = os.pipe()
    receiver = await start(
        "receive", "big.img", "-", "--server", HOST, "--port", port, "--json", stdout=writing
    )
    os.close(writing)
    await trio.to_thread.run_sync(os.read, reading, 1000)
    os.close(reading)
    assert await receiver.ended() == 7


async def test_the_lines_that_people_see_name_server_group_and_command(tmp_path, served, start):
    root, _ = served
    server = await start("serve", root, "--interface", HOST, "--port", 0, "--exit-when-done", 1)
    port = None
    with trio.fail_after(PATIENCE):
        while port is None:
            for line in server.lines:
                words = line.decode().split()
                if "--port" in words:
                    port = words[words.index("--port") + 1]
            if port is None:
                await server._changed.wait()
    client = await start("receive", "small.img", tmp_path / "copy", "--server", HOST, "--port", port)
    assert await client.ended() == 0, client.complaints
    assert await server.ended() == 0, server.complaints
    said = b"\n".join(client.lines).decode()
    assert "group 239." in said
    assert "Done" in said
    assert "1 complete download" in b"\n".join(server.lines).decode()


async def test_the_demo_shows_three_equal_copies_at_five_percent_loss(start):
    demo = await start("demo", "--size", "8M", "--loss", "5%")
    assert await demo.ended() == 0, demo.complaints
    said = b"\n".join(demo.lines).decode()
    assert "3" in said
    assert "x the image" in said or "times" in said


async def test_the_demo_takes_an_image_of_ones_own(start, tmp_path):
    (tmp_path / "own.img").write_bytes(image(1_000_001))
    demo = await start("demo", tmp_path / "own.img", "--clients", 1, "--loss", "0%")
    assert await demo.ended() == 0, demo.complaints
