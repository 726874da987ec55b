"""Scenarios as scripts: build a room, let things happen, run, and judge what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from disk import Disk
from hosts import Host, Receiver, Server
from image import Copy, Image
from network import Conditions, Network
from pcapng import Capture
from sharing import shared_decoding
from world import SimulationFailure, World

from wdstransport.protocol.parameters import ClientParameters, ServerParameters
from wdstransport.wire.security import Security

GIGABIT = 125e6
"""Bytes per second."""
BLOCK = 1385
MEGABYTE = 1_000_000
SETTLE = 0.1
"""Seconds a run goes on after its last receiver, so that what is under way arrives."""
SHIFT = int(os.environ.get("SIM_SEED", "0"))
"""Added to the seeds of the tests: `SIM_SEED=100 pytest tests/sim` plays them with other luck, but for those
of `test_sim_findings.py`, which keep the seeds that found something."""


def seeds(count: int) -> list[int]:
    """The seeds a test runs with."""
    return [SHIFT + number for number in range(1, count + 1)]


class Simulation:
    """One run: a network, one or more server sessions, and receivers.

    Attributes:
        receivers: every client session ever started, in order.
        servers: every server session ever started.
    """

    def __init__(
        self,
        seed: int,
        *,
        size: int = MEGABYTE,
        block_size: int = BLOCK,
        latency: float = 0.0001,
        rate: float = GIGABIT,
        capture: Path | None = None,
        capture_hosts: Iterable[str] | None = None,
        share: bool = False,
        **conditions: Any,
    ) -> None:
        """Prepare a network.

        Args:
            seed: decides everything.
            size: of the image, bytes.
            block_size: bytes.
            latency: from a host to the switch, or back, seconds.
            rate: of every host's link, bytes per second each way.
            capture: where to write a pcapng.
            capture_hosts: whose traffic it holds; by default everybody's.
            share: decode once what many receivers share; changes nothing but the real time it takes.
            conditions: further `Conditions` of the paths down to clients and up from them.
        """
        self.world = World(seed)
        self.share = share
        self.capture = None
        if capture is not None:
            self.capture = Capture(capture, None if capture_hosts is None else set(capture_hosts))
        self.network = Network(self.world, self.capture)
        self.plain = Conditions(rate=rate, latency=latency)
        self.conditions = replace(self.plain, **conditions)
        self.image = Image(self.world, "image", size, block_size)
        self.servers: list[Server] = []
        self.receivers: list[Receiver] = []
        self._hosts = 0
        self._unfinished = 0
        self._expected = 0

    # ------------------------------------------------------------------ who is there

    def server(
        self,
        *,
        parameters: ServerParameters | None = None,
        host: Host | None = None,
        image: Image | None = None,
        session_id: int | None = None,
        security: Security | None = None,
        batch: int = 44,
        **changes: Any,
    ) -> Server:
        """Start a server session; `changes` are `ServerParameters`."""
        number = len(self.servers) + 1
        if host is None:
            host = Host(
                self.world,
                self.network,
                f"10.1.0.{number}",
                up=replace(self.plain, queue=1 << 30),
                down=replace(self.plain, queue=8 << 20),
            )
        server = Server(
            host,
            9000 + number,
            (f"239.1.0.{number}", 9000 + number),
            image or self.image,
            session_id=7000 + number if session_id is None else session_id,
            parameters=replace(parameters or ServerParameters(), **changes),
            security=security,
            batch=batch,
        )
        self.servers.append(server)
        return server

    def host(
        self,
        *,
        up: dict[str, Any] | None = None,
        down: dict[str, Any] | None = None,
        drift: float = 0.0,
        **both: Any,
    ) -> Host:
        """Attach a client's machine; arguments change the conditions of its paths."""
        self._hosts += 1
        number = self._hosts
        return Host(
            self.world,
            self.network,
            f"10.2.{number >> 8}.{number & 255}",
            up=replace(self.conditions, **both, **(up or {})),
            down=replace(self.conditions, **both, **(down or {})),
            drift=drift,
            clock_offset=1000.0 + 7.7 * number,
        )

    def client(
        self,
        server: Server,
        *,
        host: Host | None = None,
        port: int = 5000,
        parameters: ClientParameters | None = None,
        disk: Disk | None = None,
        copy: Copy | None = None,
        session_id: int | None = None,
        **conditions: Any,
    ) -> Receiver:
        """Start a receiver now."""
        host = host or self.host(**conditions)
        receiver = Receiver(
            host,
            port,
            server,
            name=f"client {len(self.receivers) + 1}",
            parameters=parameters,
            disk=disk,
            copy=copy,
            session_id=session_id,
            watched=not self.share,
        )
        self.receivers.append(receiver)
        self._unfinished += 1
        receiver.on_over = self._one_over
        return receiver

    def clients(self, server: Server, count: int, **how: Any) -> list[Receiver]:
        """Start several receivers now, all alike."""
        return [self.client(server, **how) for _ in range(count)]

    def disk(self, rate: float | None = None) -> Disk:
        """A disk for a receiver."""
        return Disk(self.world, rate)

    def _one_over(self, receiver: Receiver) -> None:
        self._unfinished -= 1

    # ------------------------------------------------------------------ what happens

    def at(self, when: float, action: Callable[..., Any], *arguments: Any) -> None:
        """Let something happen at a time; receivers that it starts are waited for."""
        self._expected += 1

        def happen() -> None:
            self._expected -= 1
            action(*arguments)

        self.world.at(when, happen)

    def when(self, condition: Callable[[], bool], action: Callable[..., Any], *arguments: Any) -> None:
        """Let something happen as soon as a condition holds, looked at every millisecond."""
        self._expected += 1

        def look() -> None:
            if condition():
                self._expected -= 1
                action(*arguments)
            else:
                self.world.after(0.001, look)

        look()

    def run(self, until: float = 120.0, *, to_the_end: bool = False) -> None:
        """Run until every receiver has ended, or to a time.

        Args:
            until: virtual seconds.
            to_the_end: go on until then though nobody is left.
        """
        try:
            with shared_decoding() if self.share else nullcontext():
                self.world.run(until, lambda: not (to_the_end or self._unfinished or self._expected))
                self.world.run(self.world.now + SETTLE, lambda: False)
        except Exception as error:
            if not isinstance(error, SimulationFailure):
                error.add_note(f"seed {self.world.seed}, t = {self.world.now:.6f} s")
            raise
        finally:
            if self.capture is not None:
                self.capture.close()

    # ------------------------------------------------------------------ what came of it

    def check(
        self, *, complete: Iterable[Receiver] | None = None, expected: dict[Receiver, str] | None = None
    ) -> None:
        """The invariants of every run.

        Args:
            complete: who must have the whole image; by default everybody who was not killed.
            expected: other outcomes that are right, by receiver.
        """
        world = self.world
        expected = expected or {}
        for receiver in self.receivers:
            if not receiver.stays:
                continue
            want = expected.get(receiver)
            if want is None and complete is not None and receiver not in complete:
                world.require(receiver.outcome is not None, f"{receiver.name} never ended")
                continue
            want = want or "complete"
            if receiver.outcome != want:
                world.fail(
                    f"{receiver.name} ended as {receiver.outcome}, not {want}: {self.describe(receiver)}"
                )
            if want == "complete":
                world.require(receiver.copy.whole, f"{receiver.name} has no whole copy")
        for server in self.servers:
            self._check_server(server)
        for receiver in self.receivers:
            self._check_receiver(receiver)

    def _check_server(self, server: Server) -> None:
        monitor, world = server.monitor, self.world
        for sent, wanted in zip(monitor.round_blocks, monitor.round_wanted, strict=True):
            world.require(sent <= wanted, f"{sent} ODATA in a round for {wanted} blocks")
        world.require(not monitor.useless_repairs, f"{monitor.useless_repairs} RDATA that nobody asked for")
        if server.running:
            server.bounds.at_the_end(server.session, server.now())

    def _check_receiver(self, receiver: Receiver) -> None:
        world = self.world
        limit = receiver.parameters.max_cache_size
        world.require(receiver.largest_cache <= limit, f"{receiver.name} went beyond its cache")
        if receiver.outcome == "complete":
            left = receiver.session.transport.cache_used
            world.require(left == 0, f"{receiver.name} ended with {left} bytes still charged")

    def describe(self, receiver: Receiver) -> str:
        """Where a receiver stands, for messages."""
        transport = receiver.session.transport
        server = self.servers[-1].session
        return (
            f"{receiver.copy.stored}/{receiver.copy.image.total_blocks} blocks, {transport.state}, "
            f"missing {list(transport.data.missing)[:5]}, highest {transport.data.highest}, "
            f"dropped {dict(receiver.session.dropped)}, refused {transport.refused}; server "
            f"{server.transport.state}, {server.application.state}, dropped {dict(server.dropped)}, "
            f"clients {len(server.transport.clients.active)}, "
            f"window {server.transport.data.window.size}, trail {server.transport.data.mc_trail} "
            f"lead {server.transport.data.mc_lead}, given {server.transport.data.given[:3]}"
        )

    @property
    def finished_at(self) -> float:
        """When the last receiver ended."""
        return max(receiver.ended_at or self.world.now for receiver in self.receivers)

    def odata_share(self, server: Server | None = None) -> float:
        """Bytes of content in ODATA, as a multiple of the image."""
        server = server or self.servers[0]
        return server.monitor.content / max(1, server.image.size)
