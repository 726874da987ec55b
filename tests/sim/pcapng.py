"""A pcapng writer with virtual times: one interface for each host whose traffic is wanted."""

from __future__ import annotations

import struct
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

Address = tuple[str, int]

_RAW_IPV4 = 101  # LINKTYPE_RAW
_SNAPLEN = 262144


def _block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _sum16(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ip(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


class Capture:
    """A file of what hosts sent and received.

    A datagram stands in it once on the sender's interface, when it was handed to the link, and once on each
    receiver's, when it arrived there.
    """

    def __init__(self, path: Path, hosts: Collection[str] | None = None) -> None:
        """Open a file.

        Args:
            path: where to write.
            hosts: addresses whose traffic is wanted; None for everybody's.
        """
        self._file = path.open("wb")
        self._hosts = hosts
        self._interfaces: dict[str, int] = {}
        self._identification = 0
        self.packets = 0
        # Section Header Block, version 1.0, length unknown.
        self._file.write(_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()

    def _interface(self, host: str) -> int:
        if host not in self._interfaces:
            self._interfaces[host] = len(self._interfaces)
            # Interface Description Block: if_name, if_tsresol 10^-9, end of options.
            options = _option(2, host.encode()) + _option(9, b"\x09") + _option(0, b"")
            self._file.write(_block(1, struct.pack("<HHI", _RAW_IPV4, 0, _SNAPLEN) + options))
        return self._interfaces[host]

    def record(
        self, now: float, host: str, source: Address, to: Address, buffer: memoryview, segment: int
    ) -> None:
        """Write every datagram of a batch."""
        if self._hosts is not None and host not in self._hosts:
            return
        interface = self._interface(host)
        stamp = round(now * 1e9)
        for start in range(0, len(buffer), segment):
            packet = self._packet(source, to, bytes(buffer[start : start + segment]))
            head = struct.pack("<IIIII", interface, stamp >> 32, stamp & 0xFFFFFFFF, len(packet), len(packet))
            self._file.write(_block(6, head + packet))  # Enhanced Packet Block
            self.packets += 1

    def _packet(self, source: Address, to: Address, payload: bytes) -> bytes:
        self._identification = (self._identification + 1) & 0xFFFF
        ends = _ip(source[0]) + _ip(to[0])
        udp_len = 8 + len(payload)
        udp = struct.pack(">HHH", source[1], to[1], udp_len)
        check = _sum16(ends + struct.pack(">HH", 17, udp_len) + udp + bytes(2) + payload) or 0xFFFF
        head = struct.pack(">BBHHHBB", 0x45, 0, 20 + udp_len, self._identification, 0x4000, 1, 17)
        head_check = struct.pack(">H", _sum16(head + bytes(2) + ends))
        return head + head_check + ends + udp + struct.pack(">H", check) + payload
