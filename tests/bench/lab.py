#!/usr/bin/env python3
"""A network of hosts on one machine: one server, N receivers, a bridge between them.

    lab.py up N [--loss SHARE] [--offload]   then: ip netns exec wds-lab-server ...
    lab.py down                              removes every namespace that a lab made, whoever left it behind

Needs root, iproute2 and ethtool, and nftables when datagrams are to be lost. Every host is a network
namespace `wds-LABEL-NAME`, so nothing else on the machine is touched, and two labs can stand side by side.

Frames are cut to the MTU in software at the sender, and a receiver may merge them again (GRO): what a plain
network card does. With `offload`, the cutting is left to the device, and since there is none, frames of up to
64 KiB cross: what a card does that cuts them itself, without the wire's limit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

__all__ = ["Host", "Lab", "LabError", "Loopback", "LossPoint", "missing_tools", "remove_labs"]

PREFIX = "wds-"
NETWORK = "10.77.0"
NETWORK6 = "fd77::"
MAX_RECEIVERS = 200
INTERFACE = "eth0"
"""Every host's interface; in the switch, a port is called as its host."""

LossPoint = Literal["wire", "host"]


class LabError(Exception):
    """The lab cannot be built; the message says what the system refused."""


@dataclass(frozen=True, slots=True)
class Host:
    """One host: a network namespace with one interface, or, with no namespace, this machine."""

    name: str
    namespace: str
    address: str
    address6: str
    interface: str = INTERFACE

    def words(self, *words: str) -> list[str]:
        """The command line that runs `words` on this host; `ip` becomes the command, it does not fork."""
        return ["ip", "netns", "exec", self.namespace, *words] if self.namespace else list(words)

    def sent_bytes(self) -> int | None:
        """Bytes that left its interface, frame headers included; None for this machine, which others use."""
        if not self.namespace:
            return None
        return self.sent()[0]

    def sent(self) -> tuple[int, int]:
        """Bytes and frames that left its interface, frame headers included."""
        counters = f"/sys/class/net/{self.interface}/statistics"
        sent, frames = _run(*self.words("cat", f"{counters}/tx_bytes", f"{counters}/tx_packets")).split()
        return int(sent), int(frames)


class Lab:
    """The hosts of one lab, from entering the context to leaving it.

    Attributes:
        server: the host at 10.77.0.1.
        receivers: the hosts at 10.77.0.11 and up.
    """

    def __init__(
        self,
        receivers: int,
        *,
        loss: float = 0.0,
        offload: bool = False,
        mtu: int = 1500,
        loss_point: LossPoint = "wire",
        label: str | None = None,
    ) -> None:
        """Describe a lab.

        Args:
            receivers: how many.
            loss: share of UDP datagrams that each receiver loses at random on their way in.
            offload: leave the cutting of long frames to the device.
            mtu: of every interface, bytes.
            loss_point: `wire` loses frames in the cable, one by one; `host` in the receiver, after the
                network card merged them, so that a receiver that has them merged (UDP_GRO) loses whole runs.
            label: makes the namespaces' names this lab's own; the process id when not given.
        """
        if not 1 <= receivers <= MAX_RECEIVERS:
            raise LabError(f"a lab has 1 to {MAX_RECEIVERS} receivers, not {receivers}")
        if not 0 <= loss < 1:
            raise LabError(f"a share of datagrams to lose is at least 0 and less than 1, not {loss}")
        self._prefix = f"{PREFIX}{os.getpid() if label is None else label}-"
        self._switch = f"{self._prefix}switch"
        self._loss = loss
        self._loss_point = loss_point
        self._offload = "on" if offload else "off"
        self._mtu = mtu
        self.server = self._host("server", 1)
        self.receivers = [self._host(f"r{number}", 10 + number) for number in range(1, receivers + 1)]

    def _host(self, name: str, number: int) -> Host:
        return Host(name, f"{self._prefix}{name}", f"{NETWORK}.{number}", f"{NETWORK6}{number}")

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self) -> None:
        """Build it; nothing is left of it when that fails.

        Raises:
            LabError: no root, a tool is missing, or the system refused a step.
        """
        if os.geteuid() != 0:
            raise LabError("network namespaces need root")
        if missing := missing_tools(loss=bool(self._loss)):
            raise LabError(f"install {', '.join(missing)}")
        self.down()
        try:
            _run("ip", "netns", "add", self._switch)
            _run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
            _run("ip", "-n", self._switch, "link", "set", "br0", "mtu", str(self._mtu), "up")
            for host in (self.server, *self.receivers):
                self._connect(host)
            if self._loss:
                for host in self.receivers:
                    self._lose(host)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Remove it, whatever of it is there."""
        for name in _namespaces():
            if name.startswith(self._prefix):
                _run("ip", "netns", "del", name)

    def _connect(self, host: Host) -> None:
        inside, switch, mtu = host.namespace, self._switch, str(self._mtu)
        _run("ip", "netns", "add", inside)
        # Built in the switch and moved from there: no interface of the machine's own namespace is involved.
        peer = ("peer", "name", INTERFACE, "mtu", mtu, "netns", inside)
        _run("ip", "-n", switch, "link", "add", host.name, "mtu", mtu, "type", "veth", *peer)
        _run("ip", "-n", switch, "link", "set", host.name, "master", "br0", "up")
        _run("ip", "-n", inside, "link", "set", "lo", "up")
        _run("ip", "-n", inside, "address", "add", f"{host.address}/24", "brd", "+", "dev", INTERFACE)
        _run("ip", "-n", inside, "address", "add", f"{host.address6}/64", "dev", INTERFACE, "nodad")
        _run("ip", "-n", inside, "link", "set", INTERFACE, "up")
        _run("ip", "-n", inside, "route", "add", "224.0.0.0/4", "dev", INTERFACE)
        features = ("gro", "on", "tx-udp-segmentation", self._offload)
        _run(*host.words("ethtool", "-K", INTERFACE, *features))
        _run("ip", "netns", "exec", switch, "ethtool", "-K", host.name, "tso", self._offload)

    def _lose(self, host: Host) -> None:
        if self._loss_point == "wire":
            where, hook, device = self._switch, "egress", host.name
        else:
            where, hook, device = host.namespace, "ingress", INTERFACE
        share = round(self._loss * 1_000_000)
        rules = (
            f"table netdev loss-{host.name} {{ chain way {{\n"
            f"type filter hook {hook} device {device} priority 0;\n"
            f"meta l4proto udp numgen random mod 1000000 < {share} drop\n"
            "}\n}\n"
        )
        _run("ip", "netns", "exec", where, "nft", "-f", "-", stdin=rules)


class Loopback:
    """What is left without root: everybody on this machine, over its loopback interface, and no loss."""

    def __init__(self, receivers: int) -> None:
        self.server = Host("server", "", "127.0.0.1", "::1", "lo")
        self.receivers = [
            Host(f"r{number}", "", "127.0.0.1", "::1", "lo") for number in range(1, receivers + 1)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def missing_tools(*, loss: bool = True) -> list[str]:
    """Debian packages of the tools that are not installed."""
    tools = {"ip": "iproute2", "ethtool": "ethtool"} | ({"nft": "nftables"} if loss else {})
    return [package for tool, package in tools.items() if shutil.which(tool) is None]


def remove_labs(*, only_abandoned: bool) -> list[str]:
    """Remove namespaces that labs left behind; all of them, or those whose process is gone.

    Returns:
        Their names.
    """
    removed = []
    for name in _namespaces():
        match = re.fullmatch(rf"{PREFIX}([a-z0-9]+)-(switch|server|r[0-9]+)", name)
        if match is None:
            continue
        label = match[1]
        if only_abandoned and (not label.isdigit() or os.path.exists(f"/proc/{label}")):
            continue
        _run("ip", "netns", "del", name)
        removed.append(name)
    return removed


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line.strip()]


def _run(*words: str, stdin: str | None = None) -> str:
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    except OSError as error:
        raise LabError(f"{words[0]}: {error.strerror}") from error
    if done.returncode:
        raise LabError(f"{' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def main(words: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="A network of hosts on one machine; needs root.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="build the lab `wds-lab-...`")
    up.add_argument("receivers", type=int, metavar="N")
    up.add_argument("--loss", type=float, default=0.0, metavar="SHARE", help="0.01 is 1 %%")
    up.add_argument("--loss-point", choices=("wire", "host"), default="wire")
    up.add_argument("--offload", action="store_true", help="leave the cutting of frames to the device")
    commands.add_parser("down", help="remove every lab")
    options = parser.parse_args(words)
    try:
        if options.command == "down":
            for name in remove_labs(only_abandoned=False):
                print("removed", name)
            return 0
        lab = Lab(
            options.receivers,
            loss=options.loss,
            loss_point=options.loss_point,
            offload=options.offload,
            label="lab",
        )
        lab.up()
    except LabError as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 1
    for host in (lab.server, *lab.receivers):
        print(f"{host.namespace:24} {host.address:12} {host.address6}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
