"""`deploy-image serve`: a server, what it says when it starts, and its table of clients."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

import wdstransport
from cli.render import Row, Section, View, counted, endpoint, features_line
from cli.run import HumanOutput, JsonOutput, Output, Post, remarks, run
from cli.screens import open_screen
from cli.streams import needed
from wdstransport import progress

__all__ = ["ServeNarrator", "ServeOptions", "run_serve", "serve"]

JSON_PERIOD = 1.0
HUMAN_PERIOD = 0.25
"""Seconds between two snapshots; a screen shows fewer when it is no terminal."""

_LISTED = 20
"""Contents that the start lines name, of a directory that may hold thousands."""
_REMEMBERED = 50
"""Sessions that the last lines name, of a server that may have run for months."""
_WILDCARDS = ("", "0.0.0.0", "::")
_REFUSALS = {
    30: "cannot be read",
    59: "cannot get a session on the network where it was asked for",
    69: "has to wait, every session that there may be has clients",
}
_LEAVING = {
    "complete": "has the whole image",
    "cancelled": "left before it was complete",
    "inactive": "left: it heard nothing any more",
    "dead": "is gone without a word",
    "kicked": "was removed",
    "demoted": "moved to a slower session",
    "ended": "was cut off by the end of the session",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What was asked for on the command line. Rates are bytes per second, times seconds."""

    paths: tuple[Path, ...]
    namespace: str = "images"
    interface: str | None = None
    port: int = 5041
    group: str | None = None
    session_ports: tuple[int, int] | None = None
    min_clients: int = 1
    max_wait: float | None = None
    block_size: int | None = None
    security: str = "checksum"
    rate: float | None = None
    ttl: int = 1
    exit_when_done: int | None = None
    json: bool = False
    verbose: bool = False


class Contents(Protocol):
    """What the narrator needs of a namespace."""

    @property
    def name(self) -> str:
        """What clients ask for."""

    def contents(self) -> Sequence[tuple[str, int]]:
        """Names and sizes in bytes."""


def run_serve(options: ServeOptions) -> int:
    """Serve until done or interrupted; the exit code."""
    narrator = ServeNarrator(options)
    output: Output = (
        JsonOutput(sys.stdout, remarks(narrator) if options.verbose else None)
        if options.json
        else HumanOutput(open_screen(sys.stdout), narrator)
    )

    async def work(post: Post) -> None:
        if options.json:
            needed(sys.stdout, "standard output", "The events of --json", "leave out --json")
        await serve(options, narrator, post)

    return run(work, output, needed=options.json)


async def serve(options: ServeOptions, narrator: ServeNarrator, post: Post) -> None:
    """Run the server, posting its events and, every so often, its statistics; the last of them at the end.

    Raises:
        TransportError: what cannot be served, or a server that cannot go on.
    """
    paths = [str(path) for path in options.paths]
    namespaces = await trio.to_thread.run_sync(wdstransport.build_namespaces, paths, options.namespace)
    narrator.namespaces = tuple(namespaces)
    server = wdstransport.TransportServer(
        namespaces,
        interface=options.interface,
        port=options.port,
        group=options.group,
        session_ports=options.session_ports,
        min_clients=options.min_clients,
        max_wait=options.max_wait,
        block_size=options.block_size,
        security=options.security,
        rate=options.rate,
        ttl=options.ttl,
        on_event=post,
    )
    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(
            _post_statistics, server.statistics, JSON_PERIOD if options.json else HUMAN_PERIOD, post
        )
        try:
            if options.exit_when_done is None:
                await trio.sleep_forever()
            else:
                await server.wait_completed(options.exit_when_done)
        finally:
            # Before the server closes: a closed server may have nothing left to tell.
            post(server.statistics())
            nursery.cancel_scope.cancel()


async def _post_statistics(
    statistics: Callable[[], wdstransport.ServerStatistics], period: float, post: Post
) -> None:
    while True:
        await trio.sleep(period)
        post(statistics())


@dataclass(slots=True)
class _Pace:
    """A client's rate, known only when it reports: held until the next report."""

    share: float = -1.0
    bytes_per_second: float | None = None


@dataclass(slots=True)
class ServeNarrator:
    """A server's events and statistics in human terms."""

    options: ServeOptions
    namespaces: tuple[Contents, ...] = ()
    _features_told: bool = False
    _paces: dict[tuple[int, int], _Pace] = field(default_factory=dict)
    _latest: dict[int, wdstransport.SessionStatistics] = field(default_factory=dict)

    def tell(self, item: object) -> Iterable[str | View]:
        """See `Narrator.tell`."""
        match item:
            case wdstransport.ServerListening():
                yield from self._tell_listening(item)
            case wdstransport.SessionOpened():
                yield (
                    f"{item.namespace}/{item.content}: session {item.session_id} to group "
                    f"{endpoint(item.group)} from {endpoint(item.address)} on {item.interface}, "
                    f"{progress.format_bytes(item.size)} in {item.total_blocks} blocks of "
                    f"{item.block_size} bytes"
                )
            case wdstransport.SendingStarted():
                yield f"session {item.session_id}: sending to {counted(item.clients, 'client')}"
            case wdstransport.ClientJoined():
                yield f"{item.name} ({endpoint(item.address)}, {item.mac}) joined session {item.session_id}"
            case wdstransport.ClientLeft():
                self._paces.pop((item.session_id, item.client_id), None)
                how = _LEAVING.get(item.reason, item.reason)
                yield f"{item.name} ({endpoint(item.address)}) {how}"
            case wdstransport.SessionEnded():
                why = f"failed: {item.error}" if item.error else f"ended ({item.reason})"
                yield f"session {item.session_id} {why}"
            case wdstransport.RequestRefused():
                what, fault = f"{item.namespace}/{item.content}", _REFUSALS.get(item.code)
                yield (
                    f"refused {endpoint(item.address)}: {f'{what} {fault}' if fault else f'no {what} here'} "
                    f"(error {item.code} sent)"
                )
            case wdstransport.Warned():
                yield f"warning: {item.message}"
            case wdstransport.ServerStatistics():
                if self.options.verbose and not self._features_told:
                    self._features_told = True
                    yield features_line(item.features)
                yield self._view(item)

    def farewell(self) -> Iterable[str]:
        """See `Narrator.farewell`: what each session sent, and how often that is the image."""
        for session in self._latest.values():
            sent = session.data_bytes + session.repair_bytes
            times = f", {sent / session.size:.2f} x the image" if session.size else ""
            again = f"{progress.format_bytes(session.repair_bytes)} repairs"
            if session.catch_up_bytes:
                again += f", {progress.format_bytes(session.catch_up_bytes)} again for late or slow clients"
            yield (
                f"{session.namespace}/{session.content}: {counted(session.completed, 'complete download')}, "
                f"{progress.format_bytes(sent)} sent{times} ({again})"
            )

    def _tell_listening(self, event: wdstransport.ServerListening) -> Iterator[str]:
        host, port = event.address
        names = ", ".join(event.namespaces)
        if host in _WILDCARDS:
            hosts = _own_addresses(host)
            yield f"Listening at port {port} on all interfaces ({', '.join(hosts)}), serving {names}:"
            host = hosts[0]
        else:
            yield f"Listening at {endpoint(event.address)} on {event.interface}, serving {names}:"
        example = None
        for namespace in self.namespaces:
            contents = namespace.contents()
            for name, size in contents[:_LISTED]:
                yield f"  {namespace.name}/{name}  {progress.format_bytes(size)}"
            if len(contents) > _LISTED:
                yield f"  and {len(contents) - _LISTED} more in {namespace.name}"
            if contents and example is None:
                example = (namespace.name, contents[0][0])
        if example is None:
            yield "  nothing yet: files that appear in the directory can be asked for at once"
            example = (event.namespaces[0] if event.namespaces else self.options.namespace, "CONTENT")
        yield "On a client, type:"
        yield "  " + receive_command(*example, host=host, port=port, security=self.options.security)

    def _view(self, statistics: wdstransport.ServerStatistics) -> View:
        sections = []
        summaries = []
        for session in statistics.sessions:
            self._remember(session)
            if session.state == "ended":
                continue
            totals = self._totals(session)
            name = f"{session.namespace}/{session.content}"
            title = f"{name}  {progress.format_bytes(session.size)}  {session.state}"
            if session.round > 1:
                title += f", round {session.round}"
            sections.append(Section(title, tuple(self._rows(session)), totals))
            summaries.append(f"{name}: {session.state}, {totals}")
        return View(tuple(sections), "; ".join(summaries))

    def _remember(self, session: wdstransport.SessionStatistics) -> None:
        self._latest[session.session_id] = session
        if len(self._latest) > _REMEMBERED:
            del self._latest[next(iter(self._latest))]

    def _rows(self, session: wdstransport.SessionStatistics) -> Iterator[Row]:
        for client in session.clients:
            pace = self._paces.setdefault((session.session_id, client.client_id), _Pace())
            if client.progress != pace.share and client.seconds_in_session > 0:
                pace.share = client.progress
                pace.bytes_per_second = client.progress * session.size / client.seconds_in_session
            yield Row(
                client.name,
                endpoint(client.address),
                client.progress,
                pace.bytes_per_second,
                client.loss,
                client.state,
            )

    def _totals(self, session: wdstransport.SessionStatistics) -> str:
        clients = len(session.clients)
        if session.state == "waiting":
            return f"{clients}/{self.options.min_clients} clients have joined"
        sent = session.data_bytes + session.repair_bytes
        parts = [f"{progress.format_bytes(sent)} sent"]
        if session.size:
            parts[0] += f" ({sent / session.size:.2f} x)"
        parts.append(progress.format_rate(session.bytes_per_second))
        parts.append(counted(clients, "client"))
        if session.completed:
            parts.append(f"{session.completed} complete")
        if session.clients:
            slowest = min(session.clients, key=lambda client: client.progress)
            # Reports come seldom. In the first round, who was there from its start has what was sent.
            had = max(slowest.progress * session.size, session.data_bytes if session.round <= 1 else 0)
            parts.append(f"slowest {slowest.name} {progress.format_share(slowest.progress)}")
            left = progress.remaining_seconds(session.size - had, session.bytes_per_second)
            if left:
                parts.append(f"ETA {progress.format_duration(left)}")
        return ", ".join(parts)


def receive_command(namespace: str, content: str, *, host: str, port: int, security: str) -> str:
    """The command that fetches a content, for a shell."""
    target = content.replace("\\", "/").rsplit("/", 1)[-1]
    words = ["deploy-image", "receive", "--server", host]
    if namespace != "images":
        words += ["--namespace", namespace]
    if port != 5041:
        words += ["--port", str(port)]
    if security != "checksum":
        words += ["--security", security]
    if content.startswith("-") or target.startswith("-"):
        words.append("--")
    return shlex.join([*words, content, target])


def _own_addresses(wildcard: str) -> list[str]:
    """Where clients can reach a server that listens on all addresses, loopback last."""
    interfaces = sorted(
        (interface for interface in wdstransport.list_interfaces() if interface.up),
        key=lambda interface: interface.loopback,
    )
    found = [
        address
        for interface in interfaces
        for address in (interface.ipv6 if wildcard == "::" else interface.ipv4)
    ]
    return found[:_LISTED] or [wildcard]
