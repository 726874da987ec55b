"""A machine on the virtual network, and what a session needs of it: a socket, a clock, wake-ups."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from network import Address, Conditions, Network, Path, Socket
from world import World

from wdstransport.wire.batch import Batch


class Host:
    """A machine: an address, two paths, a clock of its own, and whether it runs.

    Attributes:
        frozen: it stands still; what arrives waits in its receive buffer.
        dead: it is off.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        ip: str,
        *,
        up: Conditions,
        down: Conditions,
        drift: float = 0.0,
        clock_offset: float = 1000.0,
        receive_buffer: int = 8 << 20,
    ) -> None:
        """Attach a machine.

        Args:
            world: the clock.
            network: the switch.
            ip: address.
            up: the path to the switch.
            down: the path from it.
            drift: by how much its clock runs fast, a share.
            clock_offset: what its clock shows when the run begins, seconds.
            receive_buffer: bytes that wait while it is frozen.
        """
        self.world, self.network, self.ip = world, network, ip
        self.up = Path(up, world.choices(f"{ip} up"))
        self.down = Path(down, world.choices(f"{ip} down"))
        self.sockets: dict[int, Socket] = {}
        self.drift, self.clock_offset = drift, clock_offset
        self.frozen = self.dead = False
        self._receive_buffer = receive_buffer
        self._waiting: list[tuple[Socket, Batch, bool]] = []
        self._waiting_bytes = 0
        self.overflowed = 0
        network.attach(self)

    def clock(self) -> float:
        """What its clock shows."""
        return self.clock_offset + self.world.now * (1 + self.drift)

    def when(self, clock: float) -> float:
        """The virtual time at which its clock shows that."""
        return (clock - self.clock_offset) / (1 + self.drift)

    def deliver(self, socket: Socket, batch: Batch, *, multicast: bool) -> None:
        """Network: a batch has arrived."""
        if self.dead:
            return
        if self.frozen:
            if self._waiting_bytes + len(batch.buffer) > self._receive_buffer:
                self.overflowed += 1
                return
            self._waiting_bytes += len(batch.buffer)
            self._waiting.append((socket, batch, multicast))
            return
        socket.arrived(batch, multicast=multicast)

    def freeze(self) -> None:
        """Stand still."""
        self.frozen = True

    def thaw(self) -> None:
        """Go on, with all that has arrived in between."""
        self.frozen = False
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        for socket, batch, multicast in waiting:
            socket.arrived(batch, multicast=multicast)
        for socket in list(self.sockets.values()):
            socket.pump()  # type: ignore[attr-defined]

    def die(self) -> None:
        """Go off without a word."""
        self.dead = True
        self.sockets.clear()
        self._waiting.clear()

    def set(self, **changes: object) -> None:
        """Change the conditions of both paths."""
        self.up.set(**changes)
        self.down.set(**changes)


class Driver(ABC):
    """What both kinds of session need of a machine: a socket, a clock that never stands still, wake-ups."""

    def __init__(self, host: Host, port: int) -> None:
        self.host, self.port = host, port
        self.address: Address = (host.ip, port)
        self.world, self.network = host.world, host.network
        self._local = -math.inf
        self._wake_at = math.inf
        self.wake_ups = 0
        host.sockets[port] = self

    @property
    def running(self) -> bool:
        """Whether this socket is the one that the machine has now, and the machine runs."""
        return not self.host.dead and not self.host.frozen and self.host.sockets.get(self.port) is self

    def now(self) -> float:
        """The machine's clock, monotonic."""
        host = self.host
        clock = host.clock_offset + self.world.now * (1 + host.drift)
        if clock > self._local:
            self._local = clock
        return self._local

    @abstractmethod
    def arrived(self, batch: Batch, *, multicast: bool) -> None:
        """Host: a batch for this socket."""

    @abstractmethod
    def pump(self) -> None:
        """Serve the session once."""

    def arm(self, deadline: float) -> None:
        """Wake up at a deadline of the machine's clock, unless that will happen earlier anyway."""
        if deadline < self._wake_at:
            self._wake_at = deadline
            self.world.at(self.host.when(deadline), self._wake, deadline)

    def _wake(self, deadline: float) -> None:
        if deadline != self._wake_at:
            return  # superseded by an earlier one
        self._wake_at = math.inf
        if self.running:
            self.wake_ups += 1
            # The way back from a deadline to virtual time rounds: never fall short of it.
            self._local = max(self._local, deadline)
            self.pump()
