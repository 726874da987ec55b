"""Packets on their way out, as values: they are encoded, and get their SenderTime, when they leave."""

from __future__ import annotations

from dataclasses import dataclass, field

from wdstransport.protocol.clients import Address
from wdstransport.wire.transport import TransportPacket

__all__ = ["Outbox", "milliseconds"]


@dataclass(slots=True)
class Outbox:
    """Packets to send, each with its address; None stands for a server's group or a client's server."""

    packets: list[tuple[TransportPacket, Address | None]] = field(default_factory=list)

    def put(self, packet: TransportPacket, to: Address | None = None) -> None:
        """Queue a packet."""
        self.packets.append((packet, to))

    def drain(self) -> list[tuple[TransportPacket, Address | None]]:
        """Everything queued, oldest first; the outbox is empty afterwards."""
        packets, self.packets = self.packets, []
        return packets


def milliseconds(seconds: float) -> int:
    """Seconds as the whole milliseconds of the 16-bit fields, clamped (deviation 18)."""
    return max(0, min(0xFFFF, round(seconds * 1000)))
