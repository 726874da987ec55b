"""UDP_SEGMENT and UDP_GRO: many datagrams as one piece of memory, if this kernel can."""

from __future__ import annotations

import socket
import struct
import sys

__all__ = [
    "UDP_GRO",
    "UDP_SEGMENT",
    "merged_size",
    "name_features",
    "probe_merging",
    "probe_segmentation",
    "segment_request",
    "set_merging",
]

# include/uapi/linux/udp.h; the socket module does not name them.
UDP_SEGMENT = 103
UDP_GRO = 104

_SEGMENT_SIZE = struct.Struct("=H")
_MERGED_SIZE = struct.Struct("=i")

Ancillary = tuple[int, int, bytes]


def segment_request(segment: int) -> Ancillary:
    """The ancillary item that asks for datagrams of `segment` bytes."""
    return socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT_SIZE.pack(segment)


def merged_size(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Bytes per datagram of what was received; 0 when it was not merged."""
    for level, kind, data in ancillary:
        if kind == UDP_GRO and level == socket.IPPROTO_UDP:
            return int(_MERGED_SIZE.unpack(data)[0])
    return 0


def set_merging(sock: socket.socket) -> bool:
    """Turn UDP_GRO on; False where there is none."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    except OSError:
        return False
    return True


def probe_segmentation(family: int) -> bool:
    """Whether the kernel cuts one buffer into datagrams (UDP_SEGMENT), tried on the loopback interface."""
    return _probe(family, merge=False)


def probe_merging(family: int) -> bool:
    """Whether the kernel hands a run of datagrams over in one piece (UDP_GRO), tried likewise."""
    return _probe(family, merge=True)


def name_features(*, segment_ok: bool, merge_ok: bool) -> dict[str, str]:
    """What the probes found, in the words of events and statistics."""
    return {
        "segmentation": "UDP_SEGMENT" if segment_ok else "one by one",
        "merging": "UDP_GRO" if merge_ok else "one by one",
    }


def _probe(family: int, *, merge: bool) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    option = UDP_GRO if merge else UDP_SEGMENT
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    segment, size = 100, 250
    try:
        with (
            socket.socket(family, socket.SOCK_DGRAM) as sender,
            socket.socket(family, socket.SOCK_DGRAM) as receiver,
        ):
            (receiver if merge else sender).setsockopt(socket.IPPROTO_UDP, option, segment)
            try:
                receiver.bind((loopback, 0))
            except OSError:
                # No loopback address of this family to try it on; accepting the option must do.
                return True
            receiver.settimeout(1.0)
            ancillary = [segment_request(segment)]
            sender.sendmsg([bytes(size)], ancillary, 0, receiver.getsockname())
            data, received, _, _ = receiver.recvmsg(1024, 64)
            return len(data) == (size if merge else segment) and (merged_size(received) == segment) is merge
    except OSError:
        return False
