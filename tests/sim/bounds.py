"""How large what a session keeps may become, whatever befalls it; every run is held to it.

A server keeps
- active and pending clients: as many as its settings say;
- removed ones (KICK, DEMOTE): until they were silent for ClientDeadTimeout, and a cleanup (MS-WDSMT 3.1.6.2);
- packets that can be repaired: a window, and what was sent within a second and two cleanups (3.1.6.7); a new
  master that is behind keeps them longer, but nothing is sent meanwhile (deviation 55);
- moments of repairs: one for each of those packets;
- repairs to be sent: `max_repairs_queued`;
- repairs that were taken and have not left: what the driver reads ahead, 319 in the program (`_REPAIRS_AHEAD`
  and a last set of 64), none here, where they leave at once;
- ranges to be sent: 64 for each answer to a query (MS-WDSMA 2.2.3), and no more than every other block.

A client keeps
- blocks on their way to the disk: MaxAppCacheSize;
- missing ranges: every other number between Trail and the highest it knows of.

Neither keeps packets to be sent, nor events, beyond the turn in which they came up.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from wdstransport.protocol.client_session import ClientSession
from wdstransport.protocol.parameters import ServerParameters
from wdstransport.protocol.server_session import ServerSession

if TYPE_CHECKING:
    from world import World

RANGES = 64


class ServerBounds:
    """One server session's tables; times in seconds of its own clock.

    Attributes:
        largest_pending: the most pending clients there were.
    """

    def __init__(self, world: World, parameters: ServerParameters) -> None:
        self._world, self._parameters = world, parameters
        self._kept_for = 1.0 + 2.1 * parameters.cleanup_data_list_interval
        self._sent: deque[tuple[float, int]] = deque([(0.0, 0)])
        self._burst = 0
        self.largest_pending = 0

    def watch(self, session: ServerSession, now: float) -> None:
        """A turn is over."""
        parameters, require = self._parameters, self._world.require
        lists, data = session.transport.clients, session.transport.data
        sent, count = self._sent, data.counters.data_packets
        if sent[-1][1] != count:
            sent.append((now, count))
        while len(sent) > 1 and sent[1][0] < now - self._kept_for:
            sent.popleft()
        self._burst = max(self._burst, count - sent[0][1])
        kept = len(data.packets)
        require(kept <= data.window.maximum + self._burst, f"{kept} packets are kept for repairs")
        require(len(data.packets._resent) <= kept, "moments of repairs outlive their packets")
        require(data.repairs_waiting <= parameters.max_repairs_queued, "too many repairs queued")
        require(not data._leaving, "repairs that have left are taken for waiting")
        require(len(lists.active) <= parameters.max_clients, "too many active clients")
        require(len(lists.pending) <= parameters.max_pending_clients, "too many pending clients")
        self.largest_pending = max(self.largest_pending, len(lists.pending))
        most = min(RANGES * parameters.max_clients, session.total_blocks // 2 + 1)
        require(len(data.given) <= most, f"{len(data.given)} ranges are to be sent")
        require(not session.transport.outbox.packets, "packets to be sent were left behind")
        require(not session.transport.events and not session.application.events, "events were left behind")

    def at_the_end(self, session: ServerSession, now: float) -> None:
        """The run is over: nobody is remembered who has been silent for long."""
        lists = session.transport.clients
        limit = 2 * self._parameters.client_dead_timeout
        for record in (*lists.active.values(), *lists.kicked.values(), *lists.demoted.values()):
            silent = now - record.last_update
            self._world.require(silent <= limit, f"{record.name}, silent for {silent} s, is remembered")


def watch_missing(world: World, session: ClientSession, name: str) -> None:
    """A client's list of missing ranges is longer than ever."""
    data = session.transport.data
    most = max(0, data.end - max(data.first, data.trail) + 2) // 2
    world.require(len(data.missing) <= most, f"{name} keeps {len(data.missing)} ranges, not {most}")
