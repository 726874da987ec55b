#!/usr/bin/env python3
"""What this machine carries at all: bare multicast datagrams, no protocol, no acknowledgement, no repair.

    ceiling.py send ADDRESS BYTES             ceiling.py receive ADDRESS FILE

Datagrams of 1472 bytes, which fill an Ethernet frame, 44 to a call (UDP_SEGMENT); received in merged runs
(UDP_GRO) and appended to FILE. The receiver says `ready` when it listens; both end with one line of JSON.
Whatever a receiver is too slow for is lost, so its rate counts what it wrote, and its loss is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import time

GROUP, PORT = "239.77.1.1", 45177
DATAGRAM, BATCH = 1472, 44
UDP_SEGMENT, UDP_GRO = 103, 104
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER, SEND_BUFFER = 64 << 20, 4 << 20
END = b"end"
REPEATS, PAUSE = 20, 0.02
SILENCE = 5.0
"""Seconds without a datagram after which a receiver takes it that every `END` was lost."""


def send(address: str, total: int) -> dict[str, float]:
    """Send at least `total` bytes from `address` as fast as the kernel takes them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        batch = [bytes(DATAGRAM * BATCH)]
        cut = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", DATAGRAM))]
        group = (GROUP, PORT)
        left = -(-total // (DATAGRAM * BATCH))
        sent = left * DATAGRAM * BATCH
        start = time.perf_counter()
        while left:
            sock.sendmsg(batch, cut, 0, group)
            left -= 1
        seconds = time.perf_counter() - start
        for _ in range(REPEATS):
            time.sleep(PAUSE)
            sock.sendto(END, group)
    return {"bytes": sent, "seconds": seconds}


def receive(address: str, path: str) -> dict[str, float]:
    """Write what comes to `address` into `path` until the sender has ended."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.bind((GROUP, PORT))
        group = socket.inet_aton(GROUP) + socket.inet_aton(address)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        print("ready", flush=True)
        buffer = bytearray(1 << 16)
        view = memoryview(buffer)
        received = calls = 0
        first = sock.recv_into(buffer)
        start = last = time.perf_counter()
        os.write(target, view[:first])
        received = first
        sock.settimeout(SILENCE)
        with contextlib.suppress(TimeoutError):
            while True:
                size = sock.recv_into(buffer)
                if size == len(END):
                    break
                os.write(target, view[:size])
                last = time.perf_counter()
                received += size
                calls += 1
        os.close(target)
    return {"bytes": received, "seconds": last - start, "calls": calls}


def main(words: list[str]) -> int:
    """The command line."""
    if len(words) != 3 or words[0] not in ("send", "receive"):
        print(__doc__, file=sys.stderr)
        return 2
    role, address, what = words
    result = send(address, int(what)) if role == "send" else receive(address, what)
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
