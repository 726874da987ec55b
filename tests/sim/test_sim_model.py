"""A model to judge by: a small reference of who must end with what, and histories that hypothesis invents.

The reference knows nothing of packets. For each client it keeps the ends that are right: the whole image,
whatever happens to others; as kicked or cancelled, too, once somebody did that; as inactive, too, once it may
have heard nothing, or not been heard, for about as long as its Inactivity Timer runs. A session that nobody
spoke to for that long is over, and whoever comes then is in the next one. Whatever holds at every moment is
looked at after every step.

`SIM_MODEL=2000 pytest tests/sim/test_sim_model.py` plays so many histories, longer ones and other ones each
time (`--hypothesis-seed` repeats them); without it they are few and always the same.
"""

from __future__ import annotations

import math
import os

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from network import Bursts
from scenario import SHIFT, Simulation

from wdstransport.protocol.clients import ClientLists
from wdstransport.protocol.server_transport import ServerState

HISTORIES = int(os.environ.get("SIM_MODEL", "0"))
MOST_CLIENTS = 6
PATIENCE = 25.0
"""Seconds of trouble after which the Inactivity Timer (30 s) may end a client."""
CALM = 2.0
"""Seconds without trouble that end a trouble: SPM comes every 0.22 s, QCC every 0.5 s."""
SETTLED = 900.0
"""Virtual seconds that everybody has to end in, once the trouble is over."""
BUSY = 2500.0
"""Wake-ups a second that nobody may need: a NACK every millisecond is the most that a rule asks for."""

SHARES = st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.3])
WAITS = st.sampled_from([0.05, 0.3, 1.0, 3.0, 20.0, 40.0, 100.0])
PAUSES = st.sampled_from([0.0, 0.003, 0.05, 0.05, 0.3, 0.7])
"""Seconds that pass after a step: so short that what comes next hits what is under way."""


class Expected:
    """What the reference says of one client.

    Attributes:
        ends: the outcomes that are right.
        troubles: what keeps it from hearing or being heard now.
    """

    def __init__(self, now: float) -> None:
        self.ends = {"complete"}
        self.troubles: set[str] = set()
        self._since: float | None = None
        self._calm_since = now

    def look(self, now: float, everybodys: set[str]) -> None:
        """Time has passed with the troubles as they are."""
        if self.troubles or everybodys:
            self._since = self._calm_since if self._since is None else self._since
            if now - self._since > PATIENCE:
                self.ends.add("inactive")
        elif self._since is None or now - self._calm_since >= CALM:
            self._since = None
            self._calm_since = now
        elif now - self._since > PATIENCE:
            self.ends.add("inactive")

    def changed(self, now: float) -> None:
        """A trouble begins or ends now."""
        if self._since is None:
            self._since = now
        self._calm_since = now


class Rooms(RuleBasedStateMachine):
    """One server, one for those it demotes, and a few clients to whom things happen."""

    @initialize(
        seed=st.integers(0, 1 << 20),
        size=st.sampled_from([1, 1385, 1386, 20_000, 150_000, 400_000, 400_000, 600_000]),
        block_size=st.sampled_from([512, 1385, 8785]),
        rate=st.sampled_from([0.1e6, 0.3e6, 1.25e6, 12.5e6, 125e6]),
        latency=st.sampled_from([0.0001, 0.002, 0.02]),
        trouble=st.sampled_from(
            [
                {},
                {},
                {"reorder": 0.02, "duplicate": 0.02},
                {"bit_error": 0.005, "jitter": 0.001},
                {"bursts": Bursts(enter=0.002, leave=0.2)},
            ]
        ),
        min_clients=st.integers(1, 3),
        clients=st.integers(1, 4),
    )
    def open(self, seed, size, block_size, rate, latency, trouble, min_clients, clients):
        self.sim = Simulation(
            SHIFT + seed, size=size, block_size=block_size, rate=rate, latency=latency, **trouble
        )
        self.how = {"min_clients": min_clients, "max_wait": 2.0, "kick_interval": 2.0}
        self.server = self.sim.server(**self.how)
        self.slower = self.sim.server()
        self.expected = {}
        self.everybodys = set()
        self.wake_ups = {}
        self.looked_at = 0.0
        for _ in range(clients):
            self.add()

    def teardown(self):
        if not hasattr(self, "sim"):
            return
        if self.server.host.frozen:
            self.thaw_the_server()
        self.trouble_changed("server", on=False)
        for client in self.living():
            self.calm(client)
        self.sim.conditions = self.sim.plain
        self.sim.run(self.sim.world.now + SETTLED)
        for client, expected in self.expected.items():
            if client.stays and client.outcome not in expected.ends:
                self.sim.world.fail(
                    f"{client.name} ended as {client.outcome}, not {sorted(expected.ends)}: "
                    f"{self.sim.describe(client)}"
                )
        self.sim.check(complete=[each for each in self.expected if each.outcome == "complete"])

    # ------------------------------------------------------------------ the reference

    def living(self):
        return [client for client in self.expected if client.outcome is None]

    def pick(self, data, condition=lambda client: True):
        """One of the clients that are there and for which a condition holds, or None."""
        fitting = [client for client in self.living() if condition(client)]
        return data.draw(st.sampled_from(fitting), "whom") if fitting else None

    def trouble(self, client, name, *, on):
        expected = self.expected[client]
        expected.look(self.sim.world.now, self.everybodys)
        (expected.troubles.add if on else expected.troubles.discard)(name)
        expected.changed(self.sim.world.now)

    def trouble_changed(self, name, *, on):
        """A trouble of everybody's begins or ends."""
        now = self.sim.world.now
        for expected in self.expected.values():
            expected.look(now, self.everybodys)
        (self.everybodys.add if on else self.everybodys.discard)(name)
        for expected in self.expected.values():
            expected.changed(now)

    def calm(self, client):
        client.host.set(blocked=False, loss=0.01, bursts=None, bit_error=0.0)
        if client.host.frozen:
            client.host.thaw()
        for name in tuple(self.expected[client].troubles):
            self.trouble(client, name, on=False)

    def home(self, client):
        """The server session that a client is in now."""
        return self.slower if client.session.session_id == self.slower.session_id else self.server

    def open_session(self, server, **how):
        """The session a newcomer gets: initiation offers none whose Inactivity Timer has ended it."""
        if not server.terminated:
            return server
        server.stop()
        return self.sim.server(host=server.host, **how)

    def thaw_the_server(self):
        """Its clock went on: a session frozen for longer than its Inactivity Timer is over at once."""
        there = [client for client in self.living() if self.home(client) is self.server]
        server = self.server
        server.host.thaw()
        if server.terminated:
            for client in there:
                self.expected[client].ends.add("inactive")

    def add(self, **how):
        self.server = self.open_session(self.server, **self.how)
        client = self.sim.client(self.server, **how)
        self.expected[client] = Expected(self.sim.world.now)
        self.wake_ups[client] = 0
        return client

    # ------------------------------------------------------------------ what happens

    @precondition(lambda self: len(self.living()) < MOST_CLIENTS)
    @rule(disk=st.sampled_from([None, None, 50e6, 1e6]), drift=st.sampled_from([0.0, 0.0, 0.001, -0.001]))
    def join(self, disk, drift):
        self.add(disk=None if disk is None else self.sim.disk(disk), drift=drift)

    @rule(seconds=WAITS)
    def wait(self, seconds):
        self.pass_time(seconds)

    def pass_time(self, seconds):
        world = self.sim.world
        for _ in range(math.ceil(seconds)):
            world.run(world.now + min(seconds, 1.0), lambda: False)
            for expected in self.expected.values():
                expected.look(world.now, self.everybodys)

    @rule(data=st.data(), pause=PAUSES)
    def leave(self, data, pause):
        client = self.pick(data, lambda each: not each.host.frozen)
        if client is not None:
            self.expected[client].ends.add("cancelled")
            client.cancel()
        self.pass_time(pause)

    @rule(data=st.data(), pause=PAUSES)
    def kick(self, data, pause):
        client = self.pick(data, lambda each: not self.home(each).host.frozen)
        if client is not None and self.home(client).kick(client):
            self.expected[client].ends |= {"kicked"} | self.ends_of_the_unaddressed(client)
        self.pass_time(pause)

    @rule(data=st.data(), pause=PAUSES)
    def demote(self, data, pause):
        client = self.pick(data, lambda each: self.home(each) is self.server and not self.server.host.frozen)
        self.slower = self.open_session(self.slower)
        if client is not None and self.server.demote(client, self.slower):
            self.expected[client].ends |= self.ends_of_the_unaddressed(client)
        self.pass_time(pause)

    @staticmethod
    def ends_of_the_unaddressed(client):
        """Who came back at its old port and has no ClientId yet does not know that KICK or DEMOTE mean it."""
        return set() if client.client_ids else {"inactive"}

    @rule(data=st.data(), pause=PAUSES, share=SHARES)
    def lose(self, data, pause, share):
        client = self.pick(data)
        if client is not None:
            client.host.set(loss=share)
        self.pass_time(pause)

    @rule(data=st.data(), pause=PAUSES, way=st.sampled_from(["up", "down", "both"]))
    def cut(self, data, pause, way):
        client = self.pick(data)
        if client is not None:
            self.trouble(client, "cut", on=True)
            for name in ("up", "down") if way == "both" else (way,):
                getattr(client.host, name).set(blocked=True)
        self.pass_time(pause)

    @rule(data=st.data(), pause=PAUSES)
    def heal(self, data, pause):
        client = self.pick(data, lambda each: "cut" in self.expected[each].troubles)
        if client is not None:
            client.host.set(blocked=False)
            self.trouble(client, "cut", on=False)
        self.pass_time(pause)

    @rule(data=st.data(), pause=PAUSES)
    def freeze(self, data, pause):
        client = self.pick(data, lambda each: not each.host.frozen)
        if client is not None:
            self.trouble(client, "frozen", on=True)
            client.host.freeze()
        self.pass_time(pause)

    @rule(data=st.data(), pause=PAUSES)
    def thaw(self, data, pause):
        client = self.pick(data, lambda each: each.host.frozen)
        if client is not None:
            client.host.thaw()
            self.trouble(client, "frozen", on=False)
        self.pass_time(pause)

    @rule(data=st.data(), pause=PAUSES, seconds=st.sampled_from([0.2, 2.0, 15.0]))
    def stall(self, data, pause, seconds):
        client = self.pick(data, lambda each: each.disk is not None)
        if client is not None:
            client.disk.stall(seconds)
        self.pass_time(pause)

    @rule(data=st.data(), pause=PAUSES)
    def die(self, data, pause):
        client = self.pick(data)
        if client is not None:
            client.kill()
            client.host.die()
        self.pass_time(pause)

    @rule(data=st.data(), pause=PAUSES, same_port=st.booleans(), keeps=st.booleans())
    def restart(self, data, pause, same_port, keeps):
        """The process dies, another starts at once: from the same port only where nobody removed it."""
        client = self.pick(data, lambda each: not each.host.frozen and self.home(each) is self.server)
        if client is not None:
            removed = self.server.session.transport.clients.at(client.address) is not None and (
                "kicked" in self.expected[client].ends or client.session.session_id != self.server.session_id
            )
            troubles = self.expected[client].troubles
            client.kill()
            again = self.add(
                host=client.host,
                port=client.port if same_port and not removed else 5000 + len(self.expected),
                copy=client.copy if keeps and not client.pending else None,
            )
            for name in troubles:
                self.trouble(again, name, on=True)
        self.pass_time(pause)

    @precondition(lambda self: not self.server.host.frozen)
    @rule()
    def freeze_server(self):
        self.trouble_changed("server", on=True)
        self.server.host.freeze()

    @precondition(lambda self: self.server.host.frozen)
    @rule()
    def thaw_server(self):
        self.thaw_the_server()
        self.trouble_changed("server", on=False)

    @precondition(lambda self: not self.server.host.frozen and len(self.sim.servers) < 4)
    @rule()
    def restart_server(self):
        """Another session, another number: who was in the old one ends, by itself, as what it is."""
        for client in self.living():
            if self.home(client) is self.server:
                self.expected[client].ends.add("inactive")
        self.server.stop()
        self.server = self.sim.server(host=self.server.host, **self.how)

    # ------------------------------------------------------------------ what always holds

    @invariant()
    def books_of_clients_are_right(self):
        for client in getattr(self, "expected", ()):
            if client.outcome is not None:
                continue
            transport, application = client.session.transport, client.session.application
            require = self.sim.world.require
            held = sum(event.count for event in client.pending.values())
            charged = sum(event.charged for event in client.pending.values())
            require(client.copy.stored + held == application.blocks.count, f"{client.name} lost a block")
            require(charged == transport.cache_used, f"{client.name}'s cache holds {transport.cache_used}")
            require(charged <= client.parameters.max_cache_size, f"{client.name}'s cache is too full")
            data = transport.data
            before = max(data.first, data.trail) - 1
            for start, end in data.missing:
                require(before < start <= end <= data.end, f"{client.name} misses {start} to {end}")
                before = end + 1

    @invariant()
    def tables_of_servers_stay_within_their_bounds(self):
        for server in (getattr(self, "sim", None) and self.sim.servers) or ():
            lists: ClientLists = server.session.transport.clients
            data, parameters, require = (
                server.session.transport.data,
                server.parameters,
                self.sim.world.require,
            )
            everybody = [*lists.pending, *lists.active, *lists.kicked, *lists.demoted]
            require(len(everybody) == len(set(everybody)), "a client is on two lists")
            require(len(lists._by_address) == len(everybody), "an address is remembered for nobody")
            require(len(lists.active) <= parameters.max_clients, "too many active clients")
            require(data.repairs_waiting <= parameters.max_repairs_queued, "too many repairs queued")
            require(data.mc_trail <= data.mc_lead, f"MCTrail {data.mc_trail} above {data.mc_lead}")
            require(2 <= data.window.size <= data.window.maximum or data.window.size == 1, "window")
            if data.master_client_id:
                require(data.master_client_id in lists.active, "the master is not there")
                require(server.session.transport.state is ServerState.DATA, "a master outside of Data state")

    @invariant()
    def deadlines_move_forward_and_nobody_spins(self):
        if not hasattr(self, "sim"):
            return
        passed = self.sim.world.now - self.looked_at
        self.looked_at = self.sim.world.now
        for driver in [*self.living(), *self.sim.servers]:
            if driver.running:
                session = driver.session
                # A driver that took what came and slept again may be past `now`, never past its deadline.
                self.sim.world.require(
                    session.next_deadline() > driver.now() - 1e-6, "a deadline stayed behind"
                )
            spent = driver.wake_ups - self.wake_ups.get(driver, 0)
            self.wake_ups[driver] = driver.wake_ups
            self.sim.world.require(spent <= 100 + BUSY * passed, f"{spent} wake-ups in {passed} s")


TestRooms = Rooms.TestCase
TestRooms.settings = settings(
    max_examples=HISTORIES or 150,
    stateful_step_count=40 if HISTORIES else 20,
    derandomize=not HISTORIES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate) if not HISTORIES else tuple(Phase),
)
TestRooms = pytest.mark.timeout(36_000 if HISTORIES else 120)(TestRooms)
