"""`deploy-image receive`: one image, with its progress and an exit code that says how it ended."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TextIO

import trio

import wdstransport
from cli.render import Row, Section, View, endpoint, features_line
from cli.run import HumanOutput, JsonOutput, Output, Post, remarks, run
from cli.screens import open_screen
from cli.streams import needed
from wdstransport import progress

__all__ = ["ReceiveNarrator", "ReceiveOptions", "run_receive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveOptions:
    """What was asked for on the command line. Times are seconds, shares 0 to 1."""

    content: str
    target: str
    server: str
    namespace: str = "images"
    interface: str | None = None
    port: int = 5041
    security: str = "checksum"
    timeout: float = 30.0
    force: bool = False
    json: bool = False
    verbose: bool = False
    drop_share: float = 0.0
    drop_seed: int = 0


def run_receive(options: ReceiveOptions) -> int:
    """Receive one image; the exit code."""
    # Standard output carries the image when the target is "-": whatever is said goes beside it.
    aside = options.target == "-"
    where = "standard error" if aside else "standard output"
    stream: TextIO | None = sys.stderr if aside else sys.stdout
    narrator = ReceiveNarrator(options)
    output: Output = (
        JsonOutput(stream, remarks(narrator) if options.verbose and not aside else None)
        if options.json
        else HumanOutput(open_screen(stream), narrator)
    )

    async def work(post: Post) -> None:
        if aside:
            needed(sys.stdout, "standard output", "The image", "name a file as TARGET")
        if options.json:
            needed(stream, where, "The events of --json", "leave out --json")
        if aside and sys.stdout.isatty():
            raise wdstransport.UsageError(
                "The image would go to this terminal, because TARGET is - and standard output is not "
                f"redirected. Redirect it ({_typed(options)} > FILE), or name a file as TARGET."
            )
        kept: list[wdstransport.Kept] = []

        def on_event(event: wdstransport.ClientEvent) -> None:
            if isinstance(event, wdstransport.Kept):
                kept.append(event)
            post(event)

        try:
            result = await wdstransport.receive(
                options.content,
                options.target,
                server=options.server,
                namespace=options.namespace,
                interface=options.interface,
                port=options.port,
                security=options.security,
                timeout=options.timeout,
                force=options.force,
                on_event=on_event,
                drop_share=options.drop_share,
                drop_seed=options.drop_seed,
            )
        except* trio.Cancelled:  # out of nurseries it comes in groups
            for event in kept:  # the message of a failure says it itself
                post(f"What arrived is kept in {event.part}.")
            raise
        post(result)

    # On one stream NDJSON and prose do not mix: there the error event has the message.
    return run(work, output, complain=not (options.json and aside), needed=options.json, where=where)


def _typed(options: ReceiveOptions) -> str:
    return f"deploy-image receive {options.content} - --server {options.server}"


class ReceiveNarrator:
    """A receiver's events in human terms. Its first line says server, interface and group."""

    def __init__(self, options: ReceiveOptions) -> None:
        self._options = options
        self._held: list[str] | None = []
        self._initiated: wdstransport.Initiated | None = None
        self._progress: wdstransport.Progress | None = None
        self._meter = progress.RateMeter()
        self._joined = False
        self._done = False

    def tell(self, item: object) -> Iterable[str | View]:
        """See `Narrator.tell`."""
        match item:
            case wdstransport.Unanswered():
                yield item.message
            case wdstransport.Initiated():
                self._initiated = item
                yield from self._tell_initiated(item)
                yield from self._release()
            case wdstransport.Warned():
                yield from self._hold(f"warning: {item.message}")
            case wdstransport.JoinedSession():
                self._joined = True
                if self._options.verbose:
                    yield f"Joined as client {item.client_id}"
                    yield features_line(item.features)
                yield self._view()
            case wdstransport.Progress():
                self._progress = item
                self._meter.add(item.seconds, item.stored)
                yield self._view()
            case wdstransport.Finished():
                yield from self._release()
            case wdstransport.ReceiveResult():
                self._done = True
                yield from self._tell_result(item)

    def farewell(self) -> Iterable[str]:
        """See `Narrator.farewell`: of a failure, what was dropped often is the cause."""
        yield from self._release()
        if self._options.verbose and self._progress is not None and not self._done:
            yield _dropped(self._progress.dropped_by_reason)

    def _hold(self, text: str) -> Iterator[str]:
        if self._held is None:
            yield text
        else:
            self._held.append(text)

    def _release(self) -> Iterator[str]:
        held, self._held = self._held, None
        yield from held or ()

    def _tell_initiated(self, event: wdstransport.Initiated) -> Iterator[str]:
        yield (
            f"Receiving {self._options.namespace}/{self._options.content} "
            f"({progress.format_bytes(event.size)}) from {endpoint(event.server)} on {event.interface}, "
            f"group {endpoint(event.group)}"
        )
        if self._options.verbose:
            yield f"Session {event.session_id}: {event.total_blocks} blocks of {event.block_size} bytes"

    def _view(self) -> View:
        title = f"{self._options.namespace}/{self._options.content}"
        now = self._progress
        if now is None or (now.total and not now.received):
            waiting = "joined; waiting for the server to begin" if self._joined else "asking to be let in"
            if now is not None and self._options.verbose:
                waiting += f", {now.dropped} dropped"
            return View((Section(title, (), waiting),), waiting)
        left = now.total - now.stored
        state = "receiving" if left else "flushing"
        share = now.stored / now.total if now.total else 1.0
        # The event's rate is of a moment, and a column of figures that jump cannot be read.
        rate = self._meter.rate(now.seconds)
        eta = progress.format_duration(progress.remaining_seconds(left, rate))
        totals = f"{progress.format_bytes(now.stored)} of {progress.format_bytes(now.total)}, ETA {eta}"
        server = endpoint(self._initiated.server) if self._initiated else self._options.server
        row = Row(self._options.target, server, share, rate, now.loss, state)
        summary = (
            f"{state} {progress.format_share(share)}, {totals}, "
            f"{progress.format_rate(rate)}, loss {progress.format_loss(now.loss)}"
        )
        if self._options.verbose:
            summary += f", {now.duplicates} duplicate, {now.refused} refused, {now.dropped} dropped"
        return View((Section(title, (row,), totals),), summary)

    def _tell_result(self, result: wdstransport.ReceiveResult) -> Iterator[str]:
        where = "standard output" if self._options.target == "-" else result.target
        yield (
            f"Done: {progress.format_bytes(result.size)} in {progress.format_duration(result.seconds)}, "
            f"{progress.format_rate(result.bytes_per_second)}, loss {progress.format_loss(result.loss)}, "
            f"to {where}"
        )
        if self._options.verbose:
            yield f"{result.duplicates} duplicate blocks, {result.refused} refused because storing was behind"
            yield _dropped(result.dropped)


def _dropped(counts: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    return f"Datagrams dropped: {reasons or 'none'}"
