"""The trio side of a session: from the server's name to the last block, with the consumer's credit."""

from __future__ import annotations

import math
import random
import secrets
import socket
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING

import trio

from wdstransport.errors import NobodyAnsweredError, RefusedError, RemoteError, TransportError, UsageError
from wdstransport.handles.buffers import Loans
from wdstransport.handles.constants import (
    ERROR_CANCELLED,
    ERROR_INVALID_DATA,
    ERROR_INVALID_PARAMETER,
    ERROR_SUCCESS,
    ERROR_TIMEOUT,
    WDSTPC_E_KICKED_FAIL,
    WDSTPC_E_KICKED_FALLBACK,
    WDSTPC_E_KICKED_POLICY_NOT_MET,
    WDSTPC_E_KICKED_UNKNOWN,
    WDSTPC_E_UNKNOWN_ERROR,
    WSAHOST_NOT_FOUND,
    WdsTransportClientError,
    error_name,
)
from wdstransport.handles.library import LOGGER
from wdstransport.handles.records import TRANSPORTCLIENT_SESSION_INFO
from wdstransport.net.client_driver import ClientDriver
from wdstransport.net.client_setup import Offer, demoted_sockets, find_offer, new_session, open_sockets
from wdstransport.protocol.events import BlocksArrived, Departed, Left
from wdstransport.protocol.parameters import ClientParameters
from wdstransport.protocol.ranges import RangeSet
from wdstransport.wire.application import DATA_HEADER_LEN
from wdstransport.wire.batch import Batch
from wdstransport.wire.transport import KickReason

if TYPE_CHECKING:
    from wdstransport.handles.session import Session

__all__ = ["Transfer", "code_of"]

_NOWHERE = Batch(memoryview(b""), 0, ("", 0))
_KICKED = {
    KickReason.POLICY_NOT_MET: WDSTPC_E_KICKED_POLICY_NOT_MET,
    KickReason.FALLBACK: WDSTPC_E_KICKED_FALLBACK,
    KickReason.FAIL: WDSTPC_E_KICKED_FAIL,
}
_LEAST_LIMIT = 8


def code_of(error: TransportError) -> int:
    """The code that a session completes with after an error."""
    match error:
        case WdsTransportClientError():
            return error.winerror
        case RefusedError():
            return error.code & 0xFFFFFFFF or WDSTPC_E_UNKNOWN_ERROR
        case NobodyAnsweredError():
            return ERROR_TIMEOUT
        case UsageError():
            unknown_name = isinstance(error.__cause__, socket.gaierror | UnicodeError)
            return WSAHOST_NOT_FOUND if unknown_name else ERROR_INVALID_PARAMETER
        case RemoteError():
            return ERROR_INVALID_DATA
        case _:
            return WDSTPC_E_UNKNOWN_ERROR


class Transfer:
    """One session's transfer; also its driver's consumer.

    The callback thread and the callers of CompleteReceive leave what they have in queues, from which the
    driver takes it as it passes by; it is woken only when it sleeps.

    Attributes:
        inbox: what the callback thread is to do next; None ends it.
        code: what the transfer ended with, before the caller's own cancelling counts.
        block_size: bytes, once the server has told.
        loans: the batches that callbacks can see.
    """

    def __init__(self, session: Session) -> None:
        self.inbox: SimpleQueue[BlocksArrived | TRANSPORTCLIENT_SESSION_INFO | None] = SimpleQueue()
        self.code = WDSTPC_E_UNKNOWN_ERROR
        self.block_size = 0
        # As many slabs beyond the callbacks as the cache could fill, and a few.
        self._limit = max(_LEAST_LIMIT, -(-session.settings.cache_size >> 20))
        self.loans = Loans(self._limit, self._notify)
        self._session = session
        self._scope = trio.CancelScope()
        self._opened = trio.Event()
        self._driver: ClientDriver | None = None
        self._required: RangeSet | None = None
        self._credits: deque[int] = deque()
        self._sleeping = False
        self._arrived = 0
        self._delivered = 0
        self._everything = False
        self._leaving = False
        self._joined = False
        self._join_by = math.inf

    # ------------------------------------------------------------------ from other threads

    def cancel(self) -> None:
        """End the transfer; whoever calls has noted why."""
        self._session.runtime.soon(self._scope.cancel)

    def opened(self) -> None:
        """The callbacks about the start have returned."""
        self._session.runtime.soon(self._opened.set)

    def credit(self, size: int) -> None:
        """A block of `size` bytes is completed."""
        self._credits.append(size)
        self._notify()

    def delivered_one(self) -> None:
        """The callbacks of one arrived event have returned."""
        self._delivered += 1
        self._notify()

    def require(self, start: int, size: int) -> None:
        """Restrict the transfer to this range of bytes, and to any other such range."""
        if self._required is None:
            self._required = RangeSet()
        self._required.add(start, start + size - 1)

    def _notify(self) -> None:
        if self._sleeping:
            self._sleeping = False
            self._session.runtime.soon(self._wake)

    # ------------------------------------------------------------------ the task

    async def run(self) -> None:
        """Transfer; whatever happens, the callback thread is told the end."""
        session = self._session
        try:
            with self._scope:
                self.code = await self._transfer()
            if self._scope.cancelled_caught:
                self.code = ERROR_CANCELLED
        except TransportError as error:
            self.code = code_of(error)
            LOGGER.warning(
                "%s (%s) completes with %s: %s",
                session,
                session.settings,
                error_name(self.code),
                error.args[-1] if isinstance(error, WdsTransportClientError) else error,
            )
        except Exception:
            LOGGER.exception("%s (%s) failed", session, session.settings)
        finally:
            self._end_driver()
            self.inbox.put(None)

    def _end_driver(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            # The pool's memory goes with the last view of it, not with the next garbage collection.
            driver.pool.on_free = None
            driver.pool.close()

    async def _transfer(self) -> int:
        settings = self._session.settings
        offer = await find_offer(
            settings.server,
            port=settings.port,
            namespace=settings.namespace,
            content=settings.content,
            interface=settings.interface,
            timeout=settings.timeout,
        )
        self.block_size = offer.block_size
        slots = settings.cache_size // offer.block_size
        if not slots:
            raise WdsTransportClientError(
                ERROR_INVALID_PARAMETER,
                f"ulCacheSize is {settings.cache_size} bytes and a block has {offer.block_size}; ask for a "
                "cache that holds at least one, better some megabytes",
            )
        self.inbox.put(TRANSPORTCLIENT_SESSION_INFO(offer.content_size, offer.block_size))
        await self._opened.wait()
        have = self._not_required(offer)
        if have.total == offer.total_blocks:
            return ERROR_SUCCESS  # nothing to ask for: no bytes at all (deviation 46), or none required
        # MS-WDSMT 3.2.5.13 charges the DATA header, too; a block costs its caller only its own bytes.
        parameters = ClientParameters(max_cache_size=slots * (offer.block_size + DATA_HEADER_LEN))
        departed = await self._drive(offer, parameters, have)
        return self._departed(departed)

    def _not_required(self, offer: Offer) -> RangeSet:
        """The blocks that need not come."""
        have = RangeSet()
        if self._required is not None and offer.total_blocks:
            have.add(1, offer.total_blocks)
            for start, end in self._required:
                have.remove(start // offer.block_size + 1, end // offer.block_size + 1)
        return have

    async def _drive(self, offer: Offer, parameters: ClientParameters, have: RangeSet) -> Departed:
        settings = self._session.settings
        sockets = open_sockets(offer)
        try:
            for warning in (*sockets.group.warnings, *sockets.own.warnings):
                LOGGER.info("%s: %s", self._session, warning)
            rng = random.Random(secrets.randbits(64))
            driver = self._driver = ClientDriver(
                new_session(offer, security=settings.security, parameters=parameters, rng=rng, have=have),
                sockets,
                self,
                # What outlives callbacks must not starve the reader (see `Loans`).
                cache_bytes=settings.cache_size + (self._limit << 20),
                reopen=lambda event: demoted_sockets(offer, event),
                on_turn=self._turn,
            )
        except BaseException:
            sockets.close()
            raise
        self._join_by = trio.current_time() + settings.timeout
        await driver.run()
        assert driver.departed is not None
        return driver.departed

    def _departed(self, departed: Departed) -> int:
        server = self._session.settings.server
        match departed.why:
            case Left.COMPLETE:
                return ERROR_SUCCESS
            case Left.KICKED:
                code = WDSTPC_E_KICKED_UNKNOWN
                if departed.kick_reason is not None:
                    code = _KICKED.get(departed.kick_reason, code)
                raise WdsTransportClientError(
                    code, f"the server {server} removed this client; ask its administrator what to do"
                )
            case Left.INACTIVE if self._joined:
                raise NobodyAnsweredError(
                    f"nothing has come from {server} for 30 seconds; the server may have stopped, or the "
                    "network no longer delivers the group (IGMP snooping without a querier does that)"
                )
            case Left.UNHEARD:
                raise NobodyAnsweredError(
                    f"{server} has not answered this client for two minutes, though its own packets come; "
                    "check that its session port passes the firewalls on the way there, and that the session "
                    "is not full"
                )
            case Left.INACTIVE:
                raise NobodyAnsweredError(
                    f"{server} offered the content, but nobody let this client join; check that its session "
                    "port passes the firewalls both ways, and that both sides use the same security"
                )
            case _:
                return ERROR_CANCELLED

    def _turn(self, now: float) -> float:
        if self._joined or self._driver is None:
            return math.inf
        if now >= self._join_by:
            self._driver.session.leave(Left.INACTIVE, now)
            self._driver.wake()
            return math.inf
        return self._join_by

    def _wake(self) -> None:
        if self._driver is not None:
            self._driver.wake()

    # ------------------------------------------------------------------ Consumer

    def arrived(self, event: BlocksArrived) -> None:
        """Blocks for the callback thread; the driver has held their memory for us."""
        self._arrived += 1
        self.inbox.put(event)

    def collect(self) -> list[BlocksArrived] | None:
        """Give back the memory nobody sees and the credit that was paid, which are separate things."""
        loans = self.loans
        while loans.returned:
            loans.returned.popleft().release()
        if self._all_delivered() and not self._leaving and self._driver is not None:
            self._leaving = True
            self._driver.session.leave(Left.COMPLETE, trio.current_time())
        if not self._credits:
            return None
        blocks = size = 0
        while self._credits:
            size += self._credits.popleft()
            blocks += 1
        charged = size + blocks * DATA_HEADER_LEN
        return [BlocksArrived(_NOWHERE, (), 1, 0, size, charged)]

    def _all_delivered(self) -> bool:
        # A cancelled session throws the rest away, which is no reason to leave as complete.
        whole = self._everything and self._delivered == self._arrived
        return whole and self._session.cancel_code is None

    def horizon(self) -> int | None:
        """Any block, in whatever order."""
        return None

    def all_received(self) -> None:
        """Every required block has come; some may not be delivered yet."""
        self._everything = True

    def joined(self, client_id: int) -> None:
        """The server answers."""
        self._joined = True

    def about_to_sleep(self) -> bool:
        """Announce a sleep, unless something waits already."""
        self._sleeping = True
        pending = self.loans.returned or self._credits or (self._all_delivered() and not self._leaving)
        if pending:
            self._sleeping = False
        return not pending

    def awake(self) -> None:
        """The sleep is over."""
        self._sleeping = False
