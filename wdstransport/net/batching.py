"""Many datagrams per call to the kernel: the only code that moves the data path's bytes.

The kernel's work per call is what limits plain UDP, so one call carries up to 64 datagrams: UDP_SEGMENT
lets the kernel (or the device) cut one buffer into datagrams of equal size, UDP_GRO hands such a run over
in one piece again. Where either is missing the same code runs with batches of one.

No Python statement here runs once per datagram, except where segmentation is not to be had.

Errors, for both directions, fall into three kinds:

- *would block*: reported by the return value, nothing is counted;
- *transient*: what a network does to a process that did nothing wrong. ICMP errors that earlier datagrams
  drew (ECONNREFUSED and its kin), an interface that goes down, loses its address or vanishes (ENETDOWN,
  ENETUNREACH, EHOSTUNREACH, ENODEV, EADDRNOTAVAIL), the refusal of a firewall (EPERM) or of a route
  (EACCES where it prohibits, EINVAL where it swallows), a full queue or no memory (ENOBUFS, ENOMEM). They
  are counted by name in `errors`; the datagrams concerned count as `lost`, exactly as if the wire had
  lost them, and the protocol repairs or times out. ENOBUFS is deliberately not "would block": the socket
  stays writable all the while, so whoever waited for it would spin;
- *fatal*: everything else (EBADF, EMSGSIZE for a datagram longer than the system can send, ...) is a
  mistake of this program or of its settings and is raised as the OSError it is.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter

from wdstransport.errors import UsageError
from wdstransport.net.interfaces import split_zone
from wdstransport.net.offload import (
    merged_size,
    probe_merging,
    probe_segmentation,
    segment_request,
    set_merging,
)
from wdstransport.net.slabs import READ_ROOM, Slab, SlabPool
from wdstransport.wire.batch import Batch

__all__ = [
    "BATCH_CALLS",
    "CALL_DATAGRAMS",
    "DATAGRAM_LIMIT",
    "SEGMENT_LIMIT",
    "BatchReader",
    "BatchSender",
    "Slab",
    "SlabPool",
    "probe_merging",
    "probe_segmentation",
]

SEGMENT_LIMIT = 64
"""Datagrams per call: what every kernel with UDP_SEGMENT accepts (newer ones accept 128)."""
DATAGRAM_LIMIT = 65507
"""Bytes per call: the longest payload of an IPv4 UDP packet, which also bounds a segmented one."""
CALL_DATAGRAMS = 44
"""Datagrams per call that the server fills: as many of an Ethernet packet's size as DATAGRAM_LIMIT holds."""
BATCH_CALLS = 8
"""Calls under one ACK, where the window allows: reading ahead comes in whole multiples of them."""

# A plain number: the enum's own & would cost more than the rest of a read.
_MSG_TRUNC = int(socket.MSG_TRUNC)
_ALIGNMENT = 64
_ANCILLARY_ROOM = 64
_READS_IN_VAIN = 64
_ENDPOINTS_KEPT = 1024


def _errnos(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_ICMP = _errnos(
    "ECONNREFUSED",
    "ECONNRESET",
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "ENETUNREACH",
    "ENONET",
    "ENOPROTOOPT",
    "EPROTO",
)
_RECEIVE_TRANSIENT = _ICMP | _errnos("ENETDOWN", "ENETRESET", "ENODEV", "ENXIO", "ENOBUFS", "ENOMEM")
_SEND_TRANSIENT = _RECEIVE_TRANSIENT | _errnos("EADDRNOTAVAIL", "EINVAL", "EPERM", "EACCES")
_REFUSES_SEGMENTATION = _errnos("EMSGSIZE", "EINVAL", "EIO", "ENOPROTOOPT", "EOPNOTSUPP")


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))


class BatchReader:
    """Reads batches from a non-blocking UDP socket into slabs, one call to the kernel each.

    `read` gives None in two cases: the socket would block (wait until it is readable), or, with `starved`
    True, every slab of the pool is held (wait for `SlabPool.on_free`; the kernel's socket buffer holds what
    comes in meanwhile, and drops what does not fit).

    An IPv6 source with a zone is reported as `address%index`, see `interfaces.with_zone`.

    Attributes:
        starved: the last `read` found no free slab.
        merge: the socket merges datagrams (UDP_GRO is on).
        calls: reads that brought something.
        bytes: bytes they brought.
        truncated: datagrams longer than any buffer; dropped.
        errors: transient errors by errno name; see the module.
    """

    def __init__(self, sock: socket.socket, pool: SlabPool, merge: bool) -> None:
        """Take over reading from `sock`; with `merge`, try to turn UDP_GRO on (`self.merge` tells)."""
        self.starved = False
        self.calls = 0
        self.bytes = 0
        self.truncated = 0
        self.errors: Counter[str] = Counter()
        self.merge = merge and set_merging(sock)
        self._sock = sock
        self._pool = pool
        self._slab: Slab | None = None
        self._offset = 0
        self._last_offset = pool.slab_bytes - READ_ROOM
        self._zoned = sock.family == socket.AF_INET6
        self._endpoints: dict[tuple[object, ...], tuple[str, int]] = {}

    def read(self) -> Batch | None:
        """Read what is ready, at most one datagram or one merged run.

        The batch's owner is already held once, for the caller, who releases it when done with the bytes.

        Returns:
            A batch of at least one byte; empty datagrams are passed over. None: see the class.

        Raises:
            OSError: for a fatal error (see the module).
        """
        in_vain = 0
        while True:
            slab = self._slab
            if slab is None:
                slab = self._next_slab()
                if slab is None:
                    return None
            elif slab.holds == 1:
                # Everybody else has let go of it: go on in the part that the processor still has cached.
                self._offset = 0
            elif self._offset > self._last_offset:
                slab.release()
                slab = self._next_slab()
                if slab is None:
                    return None
            offset = self._offset
            room = slab.view[offset : offset + READ_ROOM]
            ancillary: list[tuple[int, int, bytes]] | None = None
            flags = 0
            try:
                if self.merge:
                    size, ancillary, flags, source = self._sock.recvmsg_into((room,), _ANCILLARY_ROOM)
                else:
                    size, source = self._sock.recvfrom_into(room)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno not in _RECEIVE_TRANSIENT:
                    raise
                self.errors[_name(error)] += 1
            else:
                if size and not flags & _MSG_TRUNC:
                    segment = size
                    if ancillary:
                        segment = merged_size(ancillary) or size
                    self.calls += 1
                    self.bytes += size
                    self._offset = (offset + size + _ALIGNMENT - 1) & -_ALIGNMENT
                    if self._zoned:
                        source = self._endpoint(source)
                    slab.holds += 1
                    return Batch(room[:size], segment, source, slab)
                if size:
                    self.truncated += 1
            in_vain += 1
            if in_vain == _READS_IN_VAIN:
                # Only empty datagrams and errors: let the caller's other work have its turn.
                return None

    def _next_slab(self) -> Slab | None:
        slab = self._slab = self._pool.acquire()
        self._offset = 0
        self.starved = slab is None
        return slab

    def _endpoint(self, raw: tuple[str, int, int, int]) -> tuple[str, int]:
        endpoint = self._endpoints.get(raw)
        if endpoint is None:
            if len(self._endpoints) >= _ENDPOINTS_KEPT:
                self._endpoints.clear()
            host, port, _, scope = raw
            endpoint = self._endpoints[raw] = (f"{host}%{scope}" if scope else host, port)
        return endpoint

    def close(self) -> None:
        """Let go of the current slab; batches that were handed out stay valid. The socket stays open."""
        if self._slab is not None:
            self._slab.release()
            self._slab = None


class BatchSender:
    """Sends batches on a non-blocking UDP socket, each datagram once.

    A batch within 64 datagrams and 65507 bytes is one call to the kernel; a longer one is split. Without
    segmentation (never there, or refused by the kernel or the device on first use) it is one call per
    datagram.

    Attributes:
        segment_ok: UDP_SEGMENT is in use.
        fell_back: it was in use until the kernel refused it.
        calls: calls that sent something.
        datagrams: datagrams sent.
        bytes: bytes sent.
        lost: datagrams that a transient error swallowed; see the module.
        errors: transient errors by errno name.
    """

    def __init__(self, sock: socket.socket, segment_ok: bool) -> None:
        """Send on `sock`; `segment_ok` is what `probe_segmentation` said."""
        self.segment_ok = segment_ok
        self.fell_back = False
        self.calls = 0
        self.datagrams = 0
        self.bytes = 0
        self.lost = 0
        self.errors: Counter[str] = Counter()
        self._sock = sock
        self._zoned = sock.family == socket.AF_INET6
        self._addresses: dict[tuple[str, int], tuple[str, int, int, int]] = {}
        self._unfinished: tuple[object, int, tuple[str, int]] | None = None
        self._offset = 0
        self._prepare(DATAGRAM_LIMIT)

    def send(
        self, buffer: bytes | bytearray | memoryview, segment: int, destination: tuple[str, int]
    ) -> bool:
        """Send `buffer` as datagrams of `segment` bytes, the last one possibly shorter.

        Args:
            buffer: one-dimensional bytes; not changed and not kept, unless False is returned.
            segment: bytes per datagram.
            destination: numeric host (IPv6 with `%index` where it needs a zone) and port.

        Returns:
            True when all is sent or lost. False when the socket would block: wait until it is writable and
            call again with the same buffer object, segment and destination, which goes on where this call
            stopped. Other batches may be sent in between, but only one unfinished batch is remembered.

        Raises:
            OSError: for a fatal error (see the module).
            UsageError: `segment` is not a possible length of a datagram.
        """
        if segment != self._segment:
            self._prepare(segment)
        size = len(buffer)
        if size <= self._room and (self._unfinished is None or self._unfinished[0] is not buffer):
            address = self._address(destination) if self._zoned else destination
            error = None
            try:
                if size > segment:
                    self._sock.sendmsg((buffer,), self._ancillary, 0, address)
                elif size:
                    self._sock.sendto(buffer, address)
                else:
                    return True
            except BlockingIOError:
                return False
            except OSError as failure:
                error = failure
            else:
                self.calls += 1
                self.datagrams += (size + segment - 1) // segment
                self.bytes += size
                return True
            return self._send_in_parts(buffer, segment, destination, error)
        return self._send_in_parts(buffer, segment, destination, None)

    def _prepare(self, segment: int) -> None:
        if not 0 < segment <= DATAGRAM_LIMIT:
            raise UsageError(f"a datagram has 1 to {DATAGRAM_LIMIT} bytes, not {segment}")
        self._segment = segment
        self._ancillary = (segment_request(segment),)
        per_call = min(SEGMENT_LIMIT, DATAGRAM_LIMIT // segment) if self.segment_ok else 1
        self._room = per_call * segment

    def _address(self, destination: tuple[str, int]) -> tuple[str, int, int, int]:
        address = self._addresses.get(destination)
        if address is None:
            if len(self._addresses) >= _ENDPOINTS_KEPT:
                self._addresses.clear()
            host, zone = split_zone(destination[0])
            address = self._addresses[destination] = (host, destination[1], 0, zone)
        return address

    def _send_in_parts(
        self,
        buffer: bytes | bytearray | memoryview,
        segment: int,
        destination: tuple[str, int],
        error: OSError | None,
    ) -> bool:
        # `error` is what the one call for the whole buffer met, when there was one.
        this = (buffer, segment, destination)
        offset = 0
        if self._unfinished is not None and self._unfinished[0] is buffer:
            if self._unfinished[1:] == this[1:]:
                offset = self._offset
            self._unfinished = None
        address = self._address(destination) if self._zoned else destination
        view = memoryview(buffer)
        size = len(view)
        retried = False
        while offset < size:
            part = view[offset : offset + self._room]
            try:
                if error is None:
                    self._call(part, segment, address)
            except BlockingIOError:
                return self._stop(this, offset)
            except OSError as failure:
                error = failure
            if error is not None and len(part) > segment and error.errno in _REFUSES_SEGMENTATION:
                # EINVAL has other causes as well: only a datagram that goes through alone proves
                # that it was the segmentation that was refused.
                alone = part[:segment]
                try:
                    self._call(alone, segment, address)
                except BlockingIOError:
                    return self._stop(this, offset)
                except OSError as failure:
                    error = failure
                else:
                    error = None
                    part = alone
                    self.segment_ok = False
                    self.fell_back = True
                    self._prepare(segment)
            if error is not None:
                if error.errno not in _SEND_TRANSIENT:
                    raise error
                self.errors[_name(error)] += 1
                # An ICMP error belongs to an earlier datagram, and reporting it kept this one from going out.
                if error.errno in _ICMP and not retried:
                    retried = True
                    error = None
                    continue
                self.lost += (len(part) + segment - 1) // segment
            retried = False
            error = None
            offset += len(part)
        return True

    def _stop(self, this: tuple[object, int, tuple[str, int]], offset: int) -> bool:
        # What has not begun needs no memory, and must not push out the memory of what has.
        if offset:
            self._unfinished = this
            self._offset = offset
        return False

    def _call(
        self, part: memoryview, segment: int, address: tuple[str, int] | tuple[str, int, int, int]
    ) -> None:
        size = len(part)
        if size > segment:
            self._sock.sendmsg((part,), self._ancillary, 0, address)
        else:
            self._sock.sendto(part, address)
        self.calls += 1
        self.datagrams += (size + segment - 1) // segment
        self.bytes += size
