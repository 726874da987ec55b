"""What all commands share: signals, exit codes, and output that never holds up the packets.

Events are queued by whoever has them and written by one worker thread at a time: a terminal that was stopped,
or a reader of NDJSON that is slow, delays what is shown and nothing else.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import FrameType
from typing import Protocol, TextIO

import trio

import wdstransport
from cli import ndjson
from cli.render import Screen, View, printable
from cli.screens import open_screen

__all__ = ["INTERRUPTED", "HumanOutput", "JsonOutput", "Narrator", "Output", "Post", "remarks", "run"]

INTERRUPTED = 130
"""Exit code after SIGINT and SIGTERM: what shells give for SIGINT."""

Post = Callable[[object], None]
"""Hands an event, a snapshot, a `View` or a line of text to the output. Never blocks."""

_BACKLOG = 512
"""Items that may wait; beyond it, snapshots are left out, since newer ones are coming. Events never are."""

_STUCK = 2.0
"""Seconds that an interrupted command waits for an output that takes nothing."""

_TOGETHER = 2.0
"""Seconds in which further signals mean the same as the first: `timeout -s INT` sends two at once, and a
terminal's Ctrl-C reaches the demo's children twice."""

_AT_ONCE = b"deploy-image: ended at once by another signal; whoever was connected may not have been told.\n"

_SUPERSEDED = (wdstransport.ServerStatistics, wdstransport.Progress, View)


class Narrator(Protocol):
    """Says in human terms what an item means."""

    def tell(self, item: object) -> Iterable[str | View]:
        """Lines and views for one item."""

    def farewell(self) -> Iterable[str]:
        """Lines for the end."""


class Output(Protocol):
    """Takes items one by one, in a worker thread."""

    def show(self, item: object) -> None:
        """Write one item."""

    def close(self) -> None:
        """Write what is left; leave the terminal as it was."""

    def let_go(self) -> None:
        """The process ends in this call: make the terminal usable. Called in a signal handler, and while
        `show` or `close` is running or hangs; does not wait for them.
        """


class JsonOutput:
    """NDJSON on a stream; the lines for people beside it, or nowhere."""

    def __init__(self, stream: TextIO | None, beside: Output | None = None) -> None:
        self._stream = stream
        self._beside = beside

    def show(self, item: object) -> None:
        """See `Output.show`. Lines of text are for people and are left out."""
        if type(item) in ndjson.TYPES and self._stream is not None:
            self._stream.write(ndjson.encode(item) + "\n")
            self._stream.flush()
        if self._beside is not None:
            with contextlib.suppress(OSError):
                self._beside.show(item)

    def close(self) -> None:
        """See `Output.close`."""
        if self._beside is not None:
            with contextlib.suppress(OSError):
                self._beside.close()

    def let_go(self) -> None:
        """See `Output.let_go`."""
        if self._beside is not None:
            self._beside.let_go()


class HumanOutput:
    """Lines and tables on a screen."""

    def __init__(self, screen: Screen, narrator: Narrator) -> None:
        self._screen = screen
        self._narrator = narrator

    def show(self, item: object) -> None:
        """See `Output.show`."""
        if isinstance(item, (str, View)):
            self._put(item)
            return
        for piece in self._narrator.tell(item):
            self._put(piece)

    def close(self) -> None:
        """See `Output.close`."""
        self._screen.close()
        for text in self._narrator.farewell():
            self._screen.line(text)

    def let_go(self) -> None:
        """See `Output.let_go`."""
        self._screen.let_go()

    def _put(self, piece: str | View) -> None:
        if isinstance(piece, View):
            self._screen.view(piece)
        else:
            self._screen.line(piece)


def remarks(narrator: Narrator) -> HumanOutput:
    """What `--verbose` says beside NDJSON: plain lines on standard error, terminal or not."""
    return HumanOutput(open_screen(sys.stderr, live=False), narrator)


def run(
    work: Callable[[Post], Awaitable[None]],
    output: Output,
    *,
    complain: bool = True,
    needed: bool = False,
    where: str = "standard output",
) -> int:
    """Run `work` until it ends, fails or a signal comes; the exit code.

    On SIGINT and SIGTERM `work` is cancelled: its clean-up tells the other side (LEAVE, or KICK from a
    server). More signals within two seconds change nothing; one after that ends the process at once. With
    `complain`, what went wrong is said on standard error.

    An output that can no longer be written (it goes to the stream that `where` names) ends the work only
    when it is `needed`.
    """
    command = _Command(work, output, needed=needed, where=where)
    # What is imported by now lives as long as the process, and batches make many short-lived objects without
    # cycles: without this the collector looks through all of it several times a second.
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    # From before trio runs until the last word is said: Python's own handler would raise KeyboardInterrupt
    # wherever the program happens to be, in the clean-up and in the middle of trio as well.
    with _handled(command.on_signal):
        try:
            trio.run(command.main)
        finally:
            if command.stuck and command.interrupted:
                output.let_go()
                # The thread that hangs in write() would hang the interpreter's own flush at its exit as well.
                os._exit(INTERRUPTED)
        for text in command.complaints if complain else ():
            _complain(text)
    return command.code


def _complain(text: str) -> None:
    if sys.stderr is None:
        return  # print() would take that for standard output
    try:
        print("\n".join(printable(line) for line in text.splitlines()), file=sys.stderr, flush=True)
    except OSError:
        _divert(sys.stderr)


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


class _Command:
    def __init__(
        self, work: Callable[[Post], Awaitable[None]], output: Output, *, needed: bool, where: str
    ) -> None:
        self._work = work
        self._output = output
        self._needed = needed
        self._where = where
        self._send, self._receive = trio.open_memory_channel[object](math.inf)
        self._working = trio.CancelScope()
        self._writing = trio.CancelScope()
        self._worked = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._signal = ""
        self._signalled = math.inf
        self._ending = False
        self.code = 0
        self.interrupted = False
        self.stuck = False
        self.complaints: list[str] = []

    async def main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._signal:
            self._interrupt()
        with self._writing:
            async with trio.open_nursery() as writers:
                writers.start_soon(self._write)
                with self._working:
                    await self._supervise()
                self._worked = True
                if self.interrupted:
                    self._post(ndjson.Interrupted(signal=self._signal, exit_code=INTERRUPTED))
                    self._limit_writing()
                self._send.close()

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT or SIGTERM, wherever the main thread happens to be."""
        now = time.monotonic()
        if not self._signal:
            self._signal = signal.Signals(number).name
            self._signalled = now
            if self._token is not None:
                with contextlib.suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._interrupt)
        elif now - self._signalled >= _TOGETHER:
            if not self._ending:  # the line may hang, and the next signal come in the middle of it
                self._ending = True
                self._output.let_go()
                with contextlib.suppress(OSError):
                    os.write(2, _AT_ONCE)
            os._exit(INTERRUPTED)

    def _interrupt(self) -> None:
        if self.interrupted:
            return
        self.interrupted = True
        self.code = INTERRUPTED
        self.complaints.append(
            f"deploy-image: interrupted by {self._signal}; whoever was connected has been told."
        )
        self._working.cancel()
        if self._worked:
            self._limit_writing()

    def _limit_writing(self) -> None:
        self._writing.deadline = trio.current_time() + _STUCK

    def _post(self, item: object) -> None:
        if isinstance(item, _SUPERSEDED) and self._send.statistics().current_buffer_used > _BACKLOG:
            return
        try:
            self._send.send_nowait(item)
        except trio.BrokenResourceError:
            # The output is lost, and the work is being cancelled for it. Its last words have another way.
            if self._needed and isinstance(item, str):
                self.complaints.append(item)

    async def _supervise(self) -> None:
        try:
            await self._work(self._post)
        except* wdstransport.TransportError as group:
            error = next(_leaves(group))
            self.code = self.code or error.exit_code
            self.complaints.append(f"deploy-image: {ndjson.message_of(error)}")
            if not self.interrupted:
                self._post(ndjson.report_error(error))

    async def _write(self) -> None:
        try:
            async with self._receive:
                async for item in self._receive:
                    await self._in_thread(self._output.show, item)
            await self._in_thread(self._output.close)
        except OSError as error:
            self._lose_output(error)
        except trio.Cancelled:
            if not self.stuck:
                self._output.close()
            raise

    async def _in_thread(self, function: Callable[..., None], *arguments: object) -> None:
        self.stuck = True
        try:
            await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True)
        except Exception:
            self.stuck = False
            raise
        self.stuck = False

    def _lose_output(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            what = f"whoever read {self._where} has closed it"
        else:
            what = f"cannot write to {self._where}: {error.strerror or error}"
        if self._needed:
            self._working.cancel()
            self.code = self.code or 1
            self.complaints.append(
                f"deploy-image: {what}. The events of --json go there, so the command ends. Let the reader "
                "read to the end, make room, or leave out --json."
            )
        else:
            self.complaints.append(f"deploy-image: warning: {what}; the rest was done without showing it.")
        # What is still buffered can go nowhere; without this the interpreter complains about it at its exit.
        for stream in (sys.stdout, sys.stderr):
            _divert(stream)


def _leaves(group: BaseExceptionGroup[wdstransport.TransportError]) -> Iterator[wdstransport.TransportError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _divert(stream: TextIO | None) -> None:
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
