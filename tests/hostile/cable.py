#!/usr/bin/env python3
"""A bad cable in user space: `cable.py A B LOSS DELAY SHARE SEED` carries frames between two interfaces.

What `tc qdisc ... netem loss LOSS delay DELAY reorder` does where the kernel has netem, for UDP both ways:
a share LOSS of the datagrams is lost, a share SHARE comes up to DELAY seconds later, after those sent behind
it.
Prints `ready`, and at its end how many frames it carried, lost and delayed.
"""

from __future__ import annotations

import heapq
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab import Host, Lab

ETH_P_ALL = 3
PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, SOL_PACKET = 1, 1, 263
FRAME = 1 << 16
ENDS = ("wire-a", "wire-b")
IPV4, UDP = b"\x08\x00", 17


def lay(lab: Lab, host: Host) -> str:
    """Puts a namespace between the switch and a host; its name. Its interfaces are ENDS.

    Frames have to be whole on the way: the senders' checksums and segments are made before they leave.
    """
    prefix = lab.server.namespace.removesuffix("server")
    switch, cable = f"{prefix}switch", f"{prefix}cable"
    for line in (
        f"ip netns add {cable}",
        f"ip -n {switch} link set {host.name} nomaster",
        f"ip -n {switch} link set {host.name} netns {cable}",
        f"ip -n {cable} link set {host.name} name wire-b",
        f"ip -n {switch} link add {host.name} type veth peer name wire-a netns {cable}",
        f"ip -n {switch} link set {host.name} master br0 up",
        f"ip -n {cable} link set wire-a up",
        f"ip -n {cable} link set wire-b up",
        *(f"ip netns exec {cable} ethtool -K {end} gro off tso off gso off tx off" for end in ENDS),
        f"ip netns exec {switch} ethtool -K {host.name} tso off gso off tx-udp-segmentation off",
        *(" ".join(each.words("ethtool", "-K", "eth0", "tx", "off")) for each in (lab.server, host)),
    ):
        subprocess.run(line.split(), check=True, capture_output=True)
    return cable


def _open(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind((interface, 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
    request = struct.pack("IHH8s", socket.if_nametoindex(interface), PACKET_MR_PROMISC, 0, b"")
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
    return sock


def main(a: str, b: str, loss: float, delay: float, share: float, seed: int) -> None:
    """Carry frames until SIGTERM."""
    ends = {end.fileno(): end for end in (_open(a), _open(b))}
    one, other = ends.values()
    across = {one.fileno(): other, other.fileno(): one}
    rng = random.Random(seed)
    late: list[tuple[float, int, socket.socket, bytes]] = []
    carried = lost = delayed = 0
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    while not stopped:
        wait = max(0.0, late[0][0] - time.monotonic()) if late else 1.0
        readable, _, _ = select.select(list(ends), [], [], wait)
        for end in readable:
            frame, address = ends[end].recvfrom(FRAME)
            if address[2] == socket.PACKET_OUTGOING:
                continue
            carried += 1
            if frame[12:14] == IPV4 and len(frame) > 23 and frame[23] == UDP:
                if rng.random() < loss:
                    lost += 1
                    continue
                if rng.random() < share:
                    delayed += 1
                    due = time.monotonic() + rng.random() * delay
                    heapq.heappush(late, (due, carried, across[end], frame))
                    continue
            across[end].send(frame)
        now = time.monotonic()
        while late and late[0][0] <= now:
            _, _, to, frame = heapq.heappop(late)
            to.send(frame)
    print(f"carried {carried} lost {lost} delayed {delayed}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(float, sys.argv[3:6]), int(sys.argv[6]))
