"""Socket buffers: as much as the kernel gives, and what to do when it gives less."""

from __future__ import annotations

import socket
import sys

__all__ = ["buffer_warning", "set_buffer"]

# asm-generic/socket.h
_SO_FORCE = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}
_SYSCTL = {socket.SO_SNDBUF: "net.core.wmem_max", socket.SO_RCVBUF: "net.core.rmem_max"}


def set_buffer(sock: socket.socket, which: int, want: int) -> int:
    """Ask for a buffer of `want` bytes, past the system's limit where allowed; never makes it smaller.

    Args:
        sock: any socket.
        which: SO_RCVBUF or SO_SNDBUF.
        want: bytes.

    Returns:
        Bytes granted. Linux reports twice what it grants, for its own bookkeeping; that is taken off.
    """
    have = _buffer(sock, which)
    if want <= have:
        return have
    if sys.platform.startswith("linux"):
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_FORCE[which], want)
            return _buffer(sock, which)
        except OSError:
            # It takes CAP_NET_ADMIN.
            pass
    try:
        sock.setsockopt(socket.SOL_SOCKET, which, want)
    except OSError:
        # BSD and macOS refuse what Linux trims.
        return _buffer(sock, which)
    return _buffer(sock, which)


def buffer_warning(got: int, want: int, which: int = socket.SO_RCVBUF) -> str | None:
    """What to tell the administrator when the kernel capped a buffer; None when it did not."""
    if got >= want:
        return None
    kind = "receive" if which == socket.SO_RCVBUF else "send"
    return (
        f"the kernel capped the {kind} buffer at {got >> 10} KiB of {want >> 10} KiB: packets may be lost at "
        f"high speed; raise the limit with: sysctl -w {_SYSCTL[which]}={want}"
    )


def _buffer(sock: socket.socket, which: int) -> int:
    reported = sock.getsockopt(socket.SOL_SOCKET, which)
    return reported // 2 if sys.platform.startswith("linux") else reported
