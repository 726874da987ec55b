"""Counted memory that many batches share, so that received bytes are never copied."""

from __future__ import annotations

import mmap
from collections.abc import Callable

from wdstransport.errors import UsageError

__all__ = ["READ_ROOM", "Slab", "SlabPool"]

READ_ROOM = 65536
"""Bytes a read needs free: more than any datagram or merged run of datagrams can have."""


class Slab:
    """A piece of memory that many batches share, counted: it returns to its pool when nobody holds it.

    Not for several threads: hold and release in the thread that reads.

    Attributes:
        view: the whole slab, writable.
    """

    __slots__ = ("_pool", "holds", "view")

    def __init__(self, pool: SlabPool, view: memoryview) -> None:
        self._pool = pool
        self.view = view
        self.holds = 0

    def hold(self) -> None:
        """Keep the slab's bytes as they are until a matching `release`."""
        self.holds += 1

    def release(self) -> None:
        """Let go; the last one to do so gives the memory back for the next read.

        Raises:
            UsageError: it was released more often than held, so somebody's bytes are already overwritten.
        """
        holds = self.holds = self.holds - 1
        if holds <= 0:
            if holds < 0:
                raise UsageError("slab released more often than held")
            self._pool._take_back(self)


class SlabPool:
    """Bounded memory for reading: `slabs` pieces of `slab_bytes` bytes, touched only when first used.

    The slab returned last is the next one handed out, so a reader whose batches are dealt with at once stays
    within memory the processor has cached.

    Attributes:
        on_free: called when a slab returns after `acquire` had to say no; a starved reader can go on then.
    """

    def __init__(self, slab_bytes: int = 1 << 20, slabs: int = 64) -> None:
        """Raises UsageError for slabs that cannot hold one read, or for none at all."""
        if slab_bytes < READ_ROOM or slabs < 1:
            raise UsageError(f"a pool needs slabs of at least {READ_ROOM} bytes, and at least one")
        self.slab_bytes = slab_bytes
        self.slabs = slabs
        self.on_free: Callable[[], None] | None = None
        self._free: list[Slab] = []
        self._made = 0
        self._refused = False
        self._closed = False

    @property
    def in_use(self) -> int:
        """Slabs somebody holds."""
        return self._made - len(self._free)

    def acquire(self) -> Slab | None:
        """Hand out a slab, held once; None when all are out or the pool is closed."""
        if self._free:
            slab = self._free.pop()
        elif self._made < self.slabs and not self._closed:
            # An anonymous mapping: page-aligned, zero cost until touched, given back whole.
            slab = Slab(self, memoryview(mmap.mmap(-1, self.slab_bytes)))
            self._made += 1
        else:
            self._refused = True
            return None
        slab.holds = 1
        return slab

    def _take_back(self, slab: Slab) -> None:
        if self._closed:
            self._made -= 1
            return
        self._free.append(slab)
        if self._refused:
            self._refused = False
            if self.on_free is not None:
                self.on_free()

    def close(self) -> None:
        """Give the memory back; slabs still held stay valid and go when they are released."""
        self._closed = True
        self._made -= len(self._free)
        self._free.clear()
