"""How one task sleeps: until its socket is ready, its deadline has come or somebody wakes it.

A trio socket call per batch costs a quarter of the throughput, so drivers drain their non-blocking sockets
and come here only when these would block.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

import trio

__all__ = ["Waiter", "Worker", "cause_of", "open_tasks"]


@asynccontextmanager
async def open_tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery whose caller meets the error of its one failing task, not a group around it."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        raise cause_of(group) from None


def cause_of(error: BaseException) -> BaseException:
    """The first error in a group that is no cancellation; the error itself when it is no group."""
    while isinstance(error, BaseExceptionGroup):
        _, rest = error.split(trio.Cancelled)
        if rest is None:
            return error
        error = rest.exceptions[0]
    return error


class Waiter:
    """The sleep of one task on one socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._woken = False
        self._scope: trio.CancelScope | None = None

    def wake(self) -> None:
        """End the sleep under way, or the next one at once; from the trio thread."""
        self._woken = True
        if self._scope is not None:
            self._scope.cancel()

    async def wait(self, deadline: float, *, writable: bool = False) -> None:
        """Sleep until the socket is readable (or `writable`), until `deadline` (seconds), or woken."""
        if self._woken:
            self._woken = False
            await trio.lowlevel.checkpoint()
            return
        with trio.CancelScope(deadline=deadline) as self._scope:
            if writable:
                await trio.lowlevel.wait_writable(self._sock)
            else:
                await trio.lowlevel.wait_readable(self._sock)
        self._scope = None
        self._woken = False

    async def pause(self, deadline: float) -> None:
        """Sleep until `deadline` or woken, whatever the socket has."""
        if self._woken:
            self._woken = False
            await trio.lowlevel.checkpoint()
            return
        with trio.CancelScope(deadline=deadline) as self._scope:
            await trio.sleep_forever()
        self._scope = None
        self._woken = False


Job = TypeVar("Job")
Result = TypeVar("Result")


class Worker(Generic[Job, Result]):
    """A thread that does blocking work for one driver, many jobs a turn.

    The driver looks at `done` whenever it passes by, and is woken only if it announced that it sleeps: a
    hand-over costs an append, not a trip through the event loop.
    """

    def __init__(self, name: str, work: Callable[[list[Job]], Result], wake: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            name: of the thread, for debuggers.
            work: does a list of jobs, in order; may raise, which becomes the result.
            wake: called in the trio thread when results wait for a sleeping driver.
        """
        self._work = work
        self._wake = wake
        self._token = trio.lowlevel.current_trio_token()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._done: deque[Result | BaseException] = deque()
        self._sleeping = False
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Add a job."""
        self._jobs.put(job)

    def take(self) -> Result | None:
        """The oldest result, or None.

        Raises:
            BaseException: what the work raised.
        """
        if not self._done:
            return None
        result = self._done.popleft()
        if isinstance(result, BaseException):
            raise result
        return result

    def about_to_sleep(self) -> bool:
        """Announce a sleep; False when results wait already, and the driver should look first."""
        self._sleeping = True
        if self._done:
            self._sleeping = False
            return False
        return True

    def awake(self) -> None:
        """The sleep is over."""
        self._sleeping = False

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            while not self._jobs.empty():
                another = self._jobs.get()
                if another is None:
                    self._jobs.put(None)
                    break
                jobs.append(another)
            try:
                self._done.append(self._work(jobs))
            except BaseException as error:
                self._done.append(error)
            if self._sleeping:
                self._sleeping = False
                try:
                    self._token.run_sync_soon(self._wake)
                except trio.RunFinishedError:
                    return

    async def close(self) -> None:
        """Let the thread finish what it was given, and end."""
        self._jobs.put(None)
        await trio.to_thread.run_sync(self._thread.join)
