"""One reception, from a server's name to a whole target: what `receive` and the client session stand on."""

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
from wdstransport.net.client_setup import (
    MODES,
    Offer,
    Silence,
    demoted_sockets,
    find_offer,
    new_session,
    open_sockets,
)
from wdstransport.net.waiting import open_tasks
from wdstransport.net.writing import BlockWriter
from wdstransport.observe.events import (
    ClientEvent,
    Finished,
    Initiated,
    JoinedSession,
    Kept,
    Progress,
    Unanswered,
    Warned,
)
from wdstransport.protocol.events import BlocksArrived, Departed, Left
from wdstransport.protocol.parameters import ClientParameters
from wdstransport.wire.transport import KickReason

__all__ = ["ReceiveResult", "Reception", "ReceptionSettings"]

_PROGRESS_INTERVAL = 0.5
_PIPE_WINDOW = 40 << 20
"""Bytes. More than a server's window (MaxWindowSize: 16384 Ethernet packets, 23 MB) beyond a lost block: what
comes beyond the ring is refused, and comes again only in another round."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceptionSettings:
    """What is to be received, from where and into what; the arguments of `receive`, which explains them.

    Raises:
        UsageError: a value that cannot be.
    """

    content: str
    target: str | Path | Sink
    server: str
    namespace: str
    interface: str | None
    port: int
    security: str
    timeout: float
    force: bool
    cache_bytes: int
    drop_share: float
    drop_seed: int

    def __post_init__(self) -> None:
        if self.security not in MODES:
            raise UsageError(f"security is one of {', '.join(MODES)}, not {self.security!r}")
        if not 0 <= self.timeout < math.inf:
            raise UsageError(f"a timeout is a number of seconds, 0 or more, not {self.timeout}")
        if not 1 <= self.port <= 65535:
            raise UsageError(f"a UDP port is 1 to 65535, not {self.port}")
        if self.cache_bytes < 1:
            raise UsageError(f"a cache holds at least one block, so not {self.cache_bytes} bytes")
        if not 0 <= self.drop_share < 1:
            raise UsageError(
                f"a share of datagrams to lose is at least 0 and less than 1, not {self.drop_share}"
            )

    @property
    def is_path(self) -> bool:
        """Whether the target is a path, which can be tried again after a failure; a sink or a pipe cannot."""
        return isinstance(self.target, str | Path) and str(self.target) != "-"

    def sink(self, size: int) -> Sink:
        """The sink that the target names, for an image of `size` bytes."""
        if not isinstance(self.target, str | Path):
            return self.target
        if str(self.target) == "-":
            return PipeSink(1, _PIPE_WINDOW)
        return FileSink(self.target, size, self.force)


class Reception:
    """One reception; also its driver's consumer.

    Attributes:
        offer: the server's, once it came.
        kept: where what arrived is kept, after a failure or a cancellation.
        whole: the target is whole, flushed and under its name, whatever happens from now on.
    """

    def __init__(
        self, settings: ReceptionSettings, on_event: Callable[[ClientEvent], None], zero: float | None = None
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            settings: what to receive.
            on_event: called with each event, in the trio thread.
            zero: the time from which events count their seconds; None for now.
        """
        self.offer: Offer | None = None
        self.kept: Path | None = None
        self.whole = False
        self._settings = settings
        self._start = trio.current_time()
        self._zero = self._start if zero is None else zero
        self._tell = on_event
        self._driver: ClientDriver | None = None
        self._writer: BlockWriter | None = None
        self._sink: Sink | None = None
        self._everything = False
        self._stored = trio.Event()
        self._joined_at: float | None = None
        self._done_at = self._start
        self._join_by = math.inf
        self._last_progress = (self._start, 0)

    async def run(self) -> ReceiveResult:
        """Receive; cancelling leaves the session cleanly (LEAVE as cancelled) and keeps what arrived.

        Raises:
            TransportError: as `receive` documents.
        """
        settings = self._settings
        if settings.is_path:
            assert isinstance(settings.target, str | Path)
            await trio.to_thread.run_sync(check_target, settings.target, settings.force)
        offer = await find_offer(
            settings.server,
            port=settings.port,
            namespace=settings.namespace,
            content=settings.content,
            interface=settings.interface,
            timeout=settings.timeout,
            on_silence=self._unanswered,
        )
        self._initiated(offer)
        # The cache is charged the whole MS-WDSMA packet, 13 bytes more than its block (MS-WDSMT 3.2.5.13).
        if settings.cache_bytes < offer.block_size + 13:
            raise UsageError(
                f"a cache of {settings.cache_bytes} bytes cannot take this server's blocks of "
                f"{offer.block_size} bytes; give it {offer.block_size + 13} at least, better many times that."
            )
        sink = self._sink = await trio.to_thread.run_sync(settings.sink, offer.content_size)
        try:
            await trio.to_thread.run_sync(sink.prepare)
            if offer.total_blocks:
                await self._transfer(offer, sink)
            else:
                await self._complete(sink)  # content of no bytes (deviation 46)
        except BaseException as error:
            self.kept = sink.abandon()
            if self.kept is not None:
                self._tell(Kept(seconds=self._seconds(), part=str(self.kept)))
                if isinstance(error, TransportError):
                    error.add_note(f"What arrived is kept in {self.kept}.")
            raise
        self._tell(Finished(seconds=self._seconds(), target=sink.description, size=offer.content_size))
        return self.result()

    def _seconds(self) -> float:
        return trio.current_time() - self._zero

    def _unanswered(self, silence: Silence) -> None:
        self._tell(
            Unanswered(
                seconds=self._seconds(),
                server=silence.server,
                interface=silence.interface,
                asked=silence.asked,
                message=silence.message,
            )
        )

    def _initiated(self, offer: Offer) -> None:
        self.offer = offer
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

    async def _transfer(self, offer: Offer, sink: Sink) -> None:
        settings = self._settings
        parameters = ClientParameters(max_cache_size=settings.cache_bytes)
        sockets = open_sockets(offer)
        for warning in (*sockets.group.warnings, *sockets.own.warnings):
            self._tell(Warned(seconds=self._seconds(), message=warning))
        session = new_session(
            offer,
            security=settings.security,
            parameters=parameters,
            rng=random.Random(secrets.randbits(64)),
        )
        driver = self._driver = ClientDriver(
            session,
            sockets,
            self,
            cache_bytes=parameters.max_cache_size,
            reopen=lambda event: demoted_sockets(offer, event),
            drop_share=settings.drop_share,
            drop_seed=settings.drop_seed,
            on_turn=self._turn,
        )
        self._writer = BlockWriter(sink, offer.block_size, driver.wake)
        self._join_by = trio.current_time() + settings.timeout
        horizon = self.horizon()
        if horizon is not None:
            session.application.horizon = horizon
        try:
            async with open_tasks() as nursery:
                nursery.start_soon(self._finish, sink)
                await driver.run()
                nursery.cancel_scope.cancel()
        finally:
            # A write to a pipe whose reader has stopped ends only when the sink lets go of it, however this
            # ended. A file first gets what waits for it.
            if not self.whole and sink.horizon() is not None:
                sink.abandon()
            with trio.CancelScope(shield=True):
                await self._writer.worker.close()
        self._check_departure(driver.departed, offer)

    async def _finish(self, sink: Sink) -> None:
        """Make the target whole before leaving as complete: LEAVE says that the content is there."""
        await self._stored.wait()
        self._done_at = trio.current_time()
        await self._complete(sink)
        assert self._driver is not None
        self._driver.session.leave(Left.COMPLETE, trio.current_time())
        self._driver.wake()

    async def _complete(self, sink: Sink) -> None:
        def finish() -> None:
            sink.finish()
            self.whole = True

        await trio.to_thread.run_sync(finish)

    def _check_departure(self, departed: Departed | None, offer: Offer) -> None:
        assert departed is not None
        if departed.why is Left.COMPLETE or self.whole:
            return  # once the target is whole, a KICK on the way does not make it less so
        if departed.why is Left.KICKED:
            reason = departed.kick_reason or KickReason.POLICY_NOT_MET
            why = {
                KickReason.POLICY_NOT_MET: "this client does not meet its policy",
                KickReason.FALLBACK: "its administrator asks to get the content in another way",
                KickReason.FAIL: "its administrator ended the transfer, the server shut down, or the image "
                "changed or could not be read there",
            }[reason]
            raise RemovedError(
                f"the server {offer.server[0]} removed this client: {why}. Ask its administrator before "
                "trying again.",
                int(reason),
            )
        if departed.why is Left.UNHEARD:
            raise NobodyAnsweredError(
                f"{offer.server[0]} has not answered this client for two minutes, though its own packets "
                f"come. Check that its UDP port {offer.server[1]} passes the firewalls on the way there, and "
                "that its session is not full; then start again."
            )
        if self._joined_at is None:
            raise NobodyAnsweredError(
                f"{offer.server[0]} offered the content, but nobody let this client join at port "
                f"{offer.server[1]}. Check that this UDP port passes the firewalls both ways, and that "
                "both sides use the same --security."
            )
        raise NobodyAnsweredError(
            f"nothing has come from {offer.server[0]} for 30 seconds. The server may have stopped, or the "
            f"network no longer delivers the group {offer.group[0]} (IGMP snooping without a querier does "
            "that after some minutes). Start again when it is mended."
        )

    def _turn(self, now: float) -> float:
        driver = self._driver
        assert driver is not None
        assert self.offer is not None
        if self._joined_at is None and now >= self._join_by:
            driver.session.leave(Left.INACTIVE, now)
        then, bytes_then = self._last_progress
        rate = (driver.stored - bytes_then) / (now - then) if now > then else 0.0
        self._last_progress = (now, driver.stored)
        transport = driver.session.transport
        self._tell(
            Progress(
                seconds=now - self._zero,
                received=driver.received,
                stored=driver.stored,
                total=self.offer.content_size,
                bytes_per_second=rate,
                loss=transport.data.loss.rate,
                duplicates=driver.session.application.duplicates,
                refused=transport.refused,
                dropped=sum(driver.session.dropped.values()),
                dropped_by_reason=dict(driver.session.dropped),
            )
        )
        return now + _PROGRESS_INTERVAL

    # ------------------------------------------------------------------ Consumer

    @property
    def _blocks(self) -> BlockWriter:
        assert self._writer is not None
        return self._writer

    def arrived(self, event: BlocksArrived) -> None:
        """See `Consumer.arrived`."""
        self._blocks.put(event)

    def collect(self) -> list[BlocksArrived] | None:
        """See `Consumer.collect`."""
        done = self._blocks.collect()
        if self._everything and not self._blocks.outstanding:
            self._stored.set()
        return done

    def horizon(self) -> int | None:
        """See `Consumer.horizon`."""
        assert self._sink is not None
        assert self.offer is not None
        offset = self._sink.horizon()
        if offset is None:
            return None
        if offset >= self.offer.content_size:
            return self.offer.total_blocks
        return offset // self.offer.block_size

    def all_received(self) -> None:
        """See `Consumer.all_received`."""
        self._everything = True

    def joined(self, client_id: int) -> None:
        """See `Consumer.joined`."""
        if self._joined_at is None:
            self._joined_at = trio.current_time()
        features = self._driver.features if self._driver is not None else {}
        self._tell(JoinedSession(seconds=self._seconds(), client_id=client_id, features=features))

    def about_to_sleep(self) -> bool:
        """See `Consumer.about_to_sleep`."""
        self._blocks.hand_over()
        # Being woken for every write that is done costs more than the write. It matters only when reading
        # waits for room, or nothing else will wake the pump any more.
        driver = self._driver
        assert driver is not None
        session = driver.session
        room_matters = driver.stalled or session.cache_room * 2 < session.cache_size
        if self._everything or room_matters or self.horizon() is not None:
            return self._blocks.worker.about_to_sleep()
        return True

    def awake(self) -> None:
        """See `Consumer.awake`."""
        self._blocks.worker.awake()

    # ------------------------------------------------------------------ the end

    def result(self) -> ReceiveResult:
        """How it went, once the target is whole."""
        assert self.offer is not None
        assert self._sink is not None
        size = self.offer.content_size
        session = self._driver.session if self._driver is not None else None
        span = self._done_at - self._joined_at if self._joined_at is not None else 0.0
        return ReceiveResult(
            target=self._sink.description,
            size=size,
            seconds=trio.current_time() - self._start,
            bytes_per_second=size / span if span > 0 else 0.0,
            loss=session.transport.data.loss.rate if session else 0.0,
            duplicates=session.application.duplicates if session else 0,
            refused=session.transport.refused if session else 0,
            dropped=dict(session.dropped) if session else {},
        )
