"""`deploy-image demo`: a real server and real receivers on one machine, over loopback multicast.

Every process is a `deploy-image` command of its own, followed through its NDJSON. What they lose, they really
lose: each receiver drops its share of datagrams between the socket and the protocol.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

import wdstransport
from cli import children
from cli.render import Row, Section, View, counted, endpoint, features_line
from cli.run import HumanOutput, Post, run
from cli.screens import open_screen
from cli.workspace import sha256, workspace, write_random
from wdstransport import progress

__all__ = ["MAX_LOSS", "Board", "DemoOptions", "demo", "run_demo"]

MAX_LOSS = 0.5
"""Highest loss the demo offers."""

_LOOPBACK = "127.0.0.1"
_SERVER = "server"
_PERIOD = 0.25
_PATIENCE = 15.0
"""Seconds the server may take to end after the last receiver did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What was asked for on the command line. Sizes are bytes, shares 0 to 1, rates bytes per second."""

    image: Path | None = None
    clients: int = 3
    loss: float = 0.01
    size: int = 256 << 20
    rate: float | None = None
    verbose: bool = False


def run_demo(options: DemoOptions) -> int:
    """Run the demo; the exit code."""
    return run(partial(demo, options), HumanOutput(open_screen(sys.stdout), _Silent()))


async def demo(options: DemoOptions, post: Post) -> None:
    """Make the image, serve it, receive it, compare, and say how it went.

    Raises:
        TransportError: a process failed, a copy differs, or there is no room for the copies.
    """
    size = options.size if options.image is None else _size_of(options.image)
    copies = options.clients + (options.image is None)
    with workspace(size * copies) as folder:
        if options.image is None:
            image = folder / "image.bin"
            post(f"Making an image of {progress.format_bytes(size)} random bytes in {folder}")
            digest = await trio.to_thread.run_sync(write_random, image, size)
        else:
            image = options.image.resolve()
            post(f"Reading {image} ({progress.format_bytes(size)}); the copies go to {folder}")
            digest = await trio.to_thread.run_sync(sha256, image)
        targets = [folder / f"copy-{number}" for number in range(1, options.clients + 1)]
        board = Board(
            size=size, names=tuple(f"receiver {number}" for number in range(1, options.clients + 1))
        )
        await _transfer(options, image, targets, board, post)
        post(f"Comparing {counted(options.clients, 'copy', 'copies')} with the source by SHA-256")
        await _compare(targets, digest)
        for text in board.report(digest, verbose=options.verbose):
            post(text)


async def _transfer(options: DemoOptions, image: Path, targets: list[Path], board: Board, post: Post) -> None:
    listening = trio.Event()
    # A group and a port of its own: two demos on one machine must not meet.
    group = f"239.255.{random.randrange(1, 255)}.{random.randrange(1, 255)}"

    def note(name: str, record: children.Record) -> None:
        board.note(name, record, time.monotonic())
        if name == _SERVER and record.get("event") == "server-listening":
            listening.set()

    async def show() -> None:
        while True:
            post(board.view(time.monotonic()))
            await trio.sleep(_PERIOD)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(show)
        async with trio.open_nursery() as serving:
            words = serve_words(options, image, group)
            if options.verbose:
                post("Running: " + " ".join(words))
            ended = trio.Event()
            serving.start_soon(_run_server, words, partial(note, _SERVER), listening, ended)
            await listening.wait()
            post(
                f"Server at {endpoint(board.server_address)}, group {group}; "
                f"{counted(options.clients, 'receiver')}, each losing "
                f"{progress.format_loss(options.loss)} of what arrives"
            )
            async with trio.open_nursery() as receiving:
                for index, (name, target) in enumerate(zip(board.names, targets, strict=True)):
                    words = receive_words(options, image, target, board.server_address[1], index)
                    if options.verbose:
                        post("Running: " + " ".join(words))
                    receiving.start_soon(children.run_child, name, words, partial(note, name))
            with trio.move_on_after(_PATIENCE):
                await ended.wait()
            serving.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


async def _run_server(
    words: list[str], note: Callable[[children.Record], None], listening: trio.Event, ended: trio.Event
) -> None:
    await children.run_child("The server", words, note)
    if not listening.is_set():
        raise children.ChildError("The server ended before it listened; run the demo with --verbose.", 1)
    ended.set()


def serve_words(options: DemoOptions, image: Path, group: str) -> list[str]:
    """The server's command line; it picks a free port and tells it."""
    words = ["serve", "--interface", _LOOPBACK, "--port", "0", "--group", group, "--json"]
    words += [
        "--min-clients",
        str(options.clients),
        "--max-wait",
        "15",
        "--exit-when-done",
        str(options.clients),
    ]
    if options.rate is not None:
        words += ["--rate", f"{options.rate:.0f}B"]
    return children.command(*words, "--", str(image))


def receive_words(options: DemoOptions, image: Path, target: Path, port: int, index: int) -> list[str]:
    """One receiver's command line. The seeds differ: receivers that lose the same datagrams prove little."""
    words = ["receive", "--server", _LOOPBACK, "--interface", _LOOPBACK, "--port", str(port), "--json"]
    if options.loss:
        words += ["--drop-share", str(options.loss), "--drop-seed", str(index + 1)]
    return children.command(*words, "--", image.name, str(target))


async def _compare(targets: list[Path], digest: str) -> None:
    found: dict[str, str] = {}

    async def read(target: Path) -> None:
        found[target.name] = await trio.to_thread.run_sync(sha256, target)

    async with trio.open_nursery() as nursery:
        for target in targets:
            nursery.start_soon(read, target)
    wrong = sorted(name for name, other in found.items() if other != digest)
    if wrong:
        raise wdstransport.IntegrityError(
            f"{', '.join(wrong)} differ from the source: its SHA-256 is {digest}, theirs "
            f"{', '.join(found[name] for name in wrong)}. This should never happen: please report it, with "
            "the command line."
        )


@dataclass(slots=True)
class _Receiver:
    state: str = "starting"
    stored: int = 0
    seconds: float = 0.0
    meter: progress.RateMeter = field(default_factory=progress.RateMeter)
    loss: float | None = None
    client_id: int | None = None
    finished: float | None = None


@dataclass(slots=True)
class Board:
    """What the processes have told so far. Pure: records and times are passed in."""

    size: int
    names: tuple[str, ...]
    server_address: tuple[str, int] = (_LOOPBACK, 0)
    started: float | None = None
    _receivers: dict[str, _Receiver] = field(default_factory=dict)
    _sessions: dict[int, dict[str, Any]] = field(default_factory=dict)
    _addresses: dict[int, tuple[str, int]] = field(default_factory=dict)
    _features: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._receivers = {name: _Receiver() for name in self.names}

    def note(self, name: str, record: children.Record, now: float) -> None:
        """Take in one line of NDJSON of the server or of a receiver."""
        if name == _SERVER:
            self._note_server(record, now)
        else:
            self._note_receiver(self._receivers[name], record, now)

    def _note_server(self, record: children.Record, now: float) -> None:
        match record["event"]:
            case "server-listening":
                host, port = record["address"]
                self.server_address = (host, port)
            case "sending-started":
                self.started = now if self.started is None else self.started
            case "client-joined":
                host, port = record["address"]
                self._addresses[record["client_id"]] = (host, port)
            case "statistics":
                self._features = record["features"]
                for session in record["sessions"]:
                    self._sessions[session["session_id"]] = session

    def _note_receiver(self, receiver: _Receiver, record: children.Record, now: float) -> None:
        match record["event"]:
            case "initiated":
                receiver.state = "joining"
            case "joined-session":
                receiver.state = "waiting"
                receiver.client_id = record["client_id"]
            case "progress":
                receiver.stored = record["stored"]
                receiver.seconds = record["seconds"]
                receiver.meter.add(receiver.seconds, receiver.stored)
                receiver.loss = record["loss"]
                receiver.state = "receiving" if receiver.stored < self.size else "flushing"
            case "finished":
                receiver.state = "done"
                receiver.stored = self.size
                receiver.finished = now
            case "error":
                receiver.state = "failed"

    @property
    def sent(self) -> int:
        """Bytes of content that crossed the wire, repairs included."""
        return sum(session["data_bytes"] + session["repair_bytes"] for session in self._sessions.values())

    @property
    def repairs(self) -> int:
        """Bytes of content that were sent again because somebody lost them."""
        return sum(session["repair_bytes"] for session in self._sessions.values())

    def view(self, now: float) -> View:
        """The table of receivers, with the server's totals."""
        rows = tuple(self._row(name, receiver) for name, receiver in self._receivers.items())
        slowest = min(receiver.stored for receiver in self._receivers.values())
        parts = [
            f"{progress.format_bytes(self.sent)} sent ({self.sent / self.size:.2f} x the image)",
            f"{progress.format_bytes(self.repairs)} repairs",
        ]
        if self.started is not None:
            passed = now - self.started
            rate = slowest / passed if passed > 0 else None
            parts.append(
                f"ETA {progress.format_duration(progress.remaining_seconds(self.size - slowest, rate))}"
            )
        totals = ", ".join(parts)
        shares = ", ".join(f"{row.name} {progress.format_share(row.share)} {row.state}" for row in rows)
        return View((Section("deploy-image demo", rows, totals),), f"{shares}; {totals}")

    def _row(self, name: str, receiver: _Receiver) -> Row:
        address = self._addresses.get(receiver.client_id) if receiver.client_id is not None else None
        return Row(
            name,
            endpoint(address) if address else "-",
            receiver.stored / self.size,
            receiver.meter.rate(receiver.seconds),
            receiver.loss,
            receiver.state,
        )

    def report(self, digest: str, *, verbose: bool = False) -> Iterator[str]:
        """The last lines: copies, throughput, and how often the image crossed the wire."""
        count = len(self.names)
        copies = "The copy is" if count == 1 else f"All {count} copies are"
        yield f"{copies} identical with the source: SHA-256 {digest}"
        ends = [receiver.finished for receiver in self._receivers.values() if receiver.finished is not None]
        if self.started is not None and len(ends) == count:
            passed = max(max(ends) - self.started, 1e-6)
            rate = self.size / passed
            yield (
                f"Throughput: {progress.format_bytes(self.size)} in {passed:.2f} s, "
                f"{progress.format_rate(rate)} to each, {progress.format_rate(rate * count)} delivered in all"
            )
        yield (
            f"On the wire: {progress.format_bytes(self.sent)}, {self.sent / self.size:.3f} x the image "
            f"({progress.format_bytes(self.repairs)} repairs); one by one it would have been {count}.000 x"
        )
        if verbose:
            yield features_line(self._features)


def _size_of(image: Path) -> int:
    try:
        size = image.stat().st_size
    except OSError as error:
        raise wdstransport.UsageError(
            f"Cannot read {image}: {error.strerror}. Name a file that exists."
        ) from None
    if not image.is_file() or size == 0:
        raise wdstransport.UsageError(f"{image} is not a file with something in it. Name an image file.")
    return size


class _Silent:
    """The demo says everything itself."""

    def tell(self, item: object) -> Iterable[str | View]:
        """Nothing."""
        return ()

    def farewell(self) -> Iterable[str]:
        """Nothing."""
        return ()
