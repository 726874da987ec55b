"""Receiving, for programs that run on trio: `receive` is one call from a server's name to a whole file."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from wdstransport.content.sinks import FileSink, PipeSink, Sink, check_target
from wdstransport.errors import NobodyAnsweredError, RemovedError, TransportError, UsageError
from wdstransport.net.client_driver import ClientDriver
from wdstransport.net.client_setup import MODES, Offer, demoted_sockets, find_offer, new_session, open_sockets
from wdstransport.net.waiting import open_tasks
from wdstransport.net.writing import BlockWriter
from wdstransport.observe.events import ClientEvent, Finished, Initiated, JoinedSession, Progress, Warned
from wdstransport.protocol.events import BlocksArrived, Departed, Left
from wdstransport.protocol.parameters import ClientParameters
from wdstransport.wire.transport import KickReason

__all__ = ["ReceiveResult", "receive"]

_PROGRESS_INTERVAL = 0.5
_PIPE_WINDOW = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveResult:
    """How a reception went.

    Attributes:
        target: what was written.
        size: bytes of the image.
        seconds: from the first request to the end, flushing included.
        bytes_per_second: of content, over the time from joining to the last block.
        loss: LossRate at the end, a share.
        duplicates: blocks that came again.
        refused: blocks refused because storing was behind.
        dropped: datagrams not accepted, by reason.
    """

    target: str
    size: int
    seconds: float
    bytes_per_second: float
    loss: float
    duplicates: int
    refused: int
    dropped: dict[str, int]


async def receive(
    content: str,
    target: str | Path | Sink,
    *,
    server: str,
    namespace: str = "images",
    interface: str | None = None,
    port: int = 5041,
    security: str = "checksum",
    timeout: float = 30.0,
    force: bool = False,
    on_event: Callable[[ClientEvent], None] | None = None,
    cache_bytes: int = 32 << 20,
    drop_share: float = 0.0,
    drop_seed: int = 0,
) -> ReceiveResult:
    """Receive one content of a server into a file, a pipe or a sink.

    Cancelling leaves the session cleanly (LEAVE as cancelled). The target appears under its name only when
    it is whole; until then, and after a failure, what arrived is in `target` with `.part` added.

    Args:
        content: its name in the namespace.
        target: a path, `-` for standard output, or any `Sink`.
        server: name or address.
        namespace: where the content is.
        interface: name or address of the interface to use; None for the one that leads to the server.
        port: the server's initiation port (MS-WDSMSI 1.9).
        security: checksum or none; it must be what the server uses.
        timeout: seconds to wait for the server's first answers.
        force: replace an existing target.
        on_event: called with each `ClientEvent`, in the trio thread.
        cache_bytes: how much may have arrived without being stored (MaxCacheSize, MS-WDSMA 3.2.1).
        drop_share: share of datagrams to lose on purpose, for demonstrations and tests.
        drop_seed: which ones.

    Returns:
        The result; the target is whole, flushed and under its name.

    Raises:
        UsageError: an argument that cannot be.
        RefusedError: the server has no such content.
        RemovedError: the server removed this client.
        NobodyAnsweredError: no server, or none any more.
        StorageError: the target cannot take the image.
    """
    if security not in MODES:
        raise UsageError(f"security is one of {', '.join(MODES)}, not {security!r}")
    if not 0 <= drop_share < 1:
        raise UsageError(f"a share of datagrams to lose is at least 0 and less than 1, not {drop_share}")
    if isinstance(target, str | Path) and str(target) != "-":
        await trio.to_thread.run_sync(check_target, target, force)
    start = trio.current_time()
    reception = _Reception(start, on_event or (lambda event: None))
    offer = await find_offer(
        server, port=port, namespace=namespace, content=content, interface=interface, timeout=timeout
    )
    reception.initiated(offer)
    sink = await trio.to_thread.run_sync(_sink_for, target, offer.content_size, force)
    try:
        await trio.to_thread.run_sync(sink.prepare)
        if offer.total_blocks:
            parameters = ClientParameters(max_cache_size=cache_bytes)
            await reception.run(offer, sink, security, parameters, timeout, drop_share, drop_seed)
        else:
            await trio.to_thread.run_sync(sink.finish)  # content of no bytes (deviation 46)
    except BaseException as error:
        kept = sink.abandon()
        if kept is not None and isinstance(error, TransportError):
            error.add_note(f"What arrived is kept in {kept}.")
        raise
    return reception.result(sink, offer)


def _sink_for(target: str | Path | Sink, size: int, force: bool) -> Sink:
    if not isinstance(target, str | Path):
        return target
    if str(target) == "-":
        return PipeSink(1, _PIPE_WINDOW)
    return FileSink(target, size, force)


class _Reception:
    """One `receive` under way; also its driver's consumer."""

    def __init__(self, start: float, on_event: Callable[[ClientEvent], None]) -> None:
        self._start = start
        self._tell = on_event
        self._driver: ClientDriver | None = None
        self._writer: BlockWriter | None = None
        self._sink: Sink | None = None
        self._offer: Offer | None = None
        self._everything = False
        self._stored = trio.Event()
        self._joined_at: float | None = None
        self._done_at = start
        self._join_by = math.inf
        self._last_progress = (start, 0)

    def _seconds(self) -> float:
        return trio.current_time() - self._start

    def initiated(self, offer: Offer) -> None:
        self._offer = offer
        self._tell(
            Initiated(
                seconds=self._seconds(),
                server=offer.server,
                group=offer.group,
                interface=str(offer.interface),
                session_id=offer.session_id,
                size=offer.content_size,
                block_size=offer.block_size,
                total_blocks=offer.total_blocks,
            )
        )

    async def run(
        self,
        offer: Offer,
        sink: Sink,
        security: str,
        parameters: ClientParameters,
        timeout: float,
        drop_share: float,
        drop_seed: int,
    ) -> None:
        sockets = open_sockets(offer)
        for warning in (*sockets.group.warnings, *sockets.own.warnings):
            self._tell(Warned(seconds=self._seconds(), message=warning))
        session = new_session(
            offer, security=security, parameters=parameters, rng=random.Random(secrets.randbits(64))
        )
        driver = self._driver = ClientDriver(
            session,
            sockets,
            self,
            cache_bytes=parameters.max_cache_size,
            reopen=lambda event: demoted_sockets(offer, event),
            drop_share=drop_share,
            drop_seed=drop_seed,
            on_turn=self._turn,
        )
        self._sink = sink
        self._writer = BlockWriter(sink, offer.block_size, driver.wake)
        self._join_by = trio.current_time() + timeout
        horizon = self.horizon()
        if horizon is not None:
            session.application.horizon = horizon
        try:
            async with open_tasks() as nursery:
                nursery.start_soon(self._finish, sink)
                await driver.run()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._writer.worker.close()
        self._check_departure(driver.departed, offer)

    async def _finish(self, sink: Sink) -> None:
        """Make the target whole before leaving as complete: LEAVE says that the content is there."""
        await self._stored.wait()
        self._done_at = trio.current_time()
        await trio.to_thread.run_sync(sink.finish)
        assert self._driver is not None
        self._driver.session.leave(Left.COMPLETE, trio.current_time())
        self._driver.wake()

    def _check_departure(self, departed: Departed | None, offer: Offer) -> None:
        assert departed is not None
        if departed.why is Left.COMPLETE:
            return
        if departed.why is Left.KICKED:
            reason = departed.kick_reason or KickReason.POLICY_NOT_MET
            why = {
                KickReason.POLICY_NOT_MET: "this client does not meet its policy",
                KickReason.FALLBACK: "its administrator asks to get the content in another way",
                KickReason.FAIL: "its administrator ended the transfer, or the server shut down",
            }[reason]
            raise RemovedError(
                f"the server {offer.server[0]} removed this client: {why}. Ask its administrator before "
                "trying again.",
                int(reason),
            )
        if self._joined_at is None:
            raise NobodyAnsweredError(
                f"{offer.server[0]} offered the content, but nobody let this client join at port "
                f"{offer.server[1]}. Check that this UDP port passes the firewalls both ways, and that "
                "both sides use the same --security."
            )
        raise NobodyAnsweredError(
            f"nothing has come from {offer.server[0]} for 30 seconds. The server may have stopped, or the "
            f"network no longer delivers the group {offer.group[0]} (IGMP snooping without a querier does that "
            "after some minutes). Start again to get the rest."
        )

    def _turn(self, now: float) -> float:
        driver = self._driver
        assert driver is not None
        assert self._offer is not None
        if self._joined_at is None and now >= self._join_by:
            driver.session.leave(Left.INACTIVE, now)
        then, bytes_then = self._last_progress
        rate = (driver.stored - bytes_then) / (now - then) if now > then else 0.0
        self._last_progress = (now, driver.stored)
        transport = driver.session.transport
        self._tell(
            Progress(
                seconds=now - self._start,
                received=driver.received,
                stored=driver.stored,
                total=self._offer.content_size,
                bytes_per_second=rate,
                loss=transport.data.loss.rate,
                duplicates=driver.session.application.duplicates,
                refused=transport.refused,
                dropped=sum(driver.session.dropped.values()),
            )
        )
        return now + _PROGRESS_INTERVAL

    # ------------------------------------------------------------------ Consumer

    @property
    def _blocks(self) -> BlockWriter:
        assert self._writer is not None
        return self._writer

    def arrived(self, event: BlocksArrived) -> None:
        self._blocks.put(event)

    def collect(self) -> list[BlocksArrived] | None:
        done = self._blocks.collect()
        if self._everything and not self._blocks.outstanding:
            self._stored.set()
        return done

    def horizon(self) -> int | None:
        assert self._sink is not None
        assert self._offer is not None
        offset = self._sink.horizon()
        if offset is None:
            return None
        if offset >= self._offer.content_size:
            return self._offer.total_blocks
        return offset // self._offer.block_size

    def all_received(self) -> None:
        self._everything = True

    def joined(self, client_id: int) -> None:
        if self._joined_at is None:
            self._joined_at = trio.current_time()
        self._tell(JoinedSession(seconds=self._seconds(), client_id=client_id))

    def about_to_sleep(self) -> bool:
        return self._blocks.worker.about_to_sleep()

    def awake(self) -> None:
        self._blocks.worker.awake()

    # ------------------------------------------------------------------ the end

    def result(self, sink: Sink, offer: Offer) -> ReceiveResult:
        seconds = self._seconds()
        size = offer.content_size
        self._tell(Finished(seconds=seconds, target=sink.description, size=size))
        session = self._driver.session if self._driver is not None else None
        span = self._done_at - self._joined_at if self._joined_at is not None else 0.0
        return ReceiveResult(
            target=sink.description,
            size=size,
            seconds=seconds,
            bytes_per_second=size / span if span > 0 else 0.0,
            loss=session.transport.data.loss.rate if session else 0.0,
            duplicates=session.application.duplicates if session else 0,
            refused=session.transport.refused if session else 0,
            dropped=dict(session.dropped) if session else {},
        )
