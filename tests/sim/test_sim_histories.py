"""Random histories of a room: join, leave, kick, demote, death, restart, freeze, partition, loss, slow disks.

The model is small: who was left alone must end with the whole image; who was kicked or cancelled ends as
that, or complete if it was done before; who was cut off for too long may end as inactive; nobody hangs; and
the invariants of `Simulation.check` hold for everybody.
"""

import random

import pytest
from scenario import MEGABYTE, Simulation, seeds

ALLOWED = {
    "kick": {"kicked", "complete"},
    "cancel": {"cancelled", "complete"},
    "cut": {"complete", "inactive"},
}


class History:
    """One random run; at most one thing happens to each client, and only once the server knows it."""

    def __init__(self, seed):
        self.luck = luck = random.Random(f"{seed}/history")
        self.sim = Simulation(
            seed,
            size=luck.randrange(1, 2 * MEGABYTE),
            block_size=luck.choice([512, 1385, 1385, 8785]),
            rate=luck.choice([1.25e6, 12.5e6, 125e6]),
            latency=luck.choice([0.0001, 0.001, 0.02]),
            loss=luck.choice([0.0, 0.0, 0.001, 0.02, 0.05]),
            reorder=luck.choice([0.0, 0.01]),
            duplicate=luck.choice([0.0, 0.01]),
            bit_error=luck.choice([0.0, 0.002]),
            jitter=luck.choice([0.0, 0.001]),
        )
        self.server = self.sim.server(
            min_clients=luck.choice([1, 1, 2, 3]), max_wait=luck.choice([1.0, 5.0]), kick_interval=2.0
        )
        self.slower = self.sim.server()
        self.fate = {}
        self.log = []
        for _ in range(luck.randrange(1, 7)):
            self.join()
        for _ in range(luck.randrange(0, 8)):
            self.sim.at(luck.uniform(0.0, 3.0), luck.choice(self.STEPS), self)

    def join(self):
        disk = self.luck.choice([None, None, self.sim.disk(50e6), self.sim.disk(2e6)])
        self.log.append((self.sim.world.now, "join", len(self.sim.receivers)))
        self.sim.client(self.server, disk=disk, drift=self.luck.choice([0.0, 0.001, -0.001]))

    def one(self, what):
        known = self.server.session.transport.clients.active
        candidates = [
            each
            for each in self.sim.receivers
            if each.outcome is None and each not in self.fate and self.server.client_id(each) in known
        ]
        chosen = self.luck.choice(candidates) if candidates else None
        if chosen is not None:
            self.fate[chosen] = what
        self.log.append((self.sim.world.now, what, chosen.name if chosen else None))
        return chosen

    def kick(self):
        if client := self.one("kick"):
            self.server.kick(client)

    def cancel(self):
        if client := self.one("cancel"):
            client.cancel()

    def demote(self):
        if client := self.one("demote"):
            self.server.demote(client, self.slower)

    def kill(self):
        if client := self.one("kill"):
            client.kill()

    def restart(self):
        if client := self.one("restart"):
            client.kill()
            same = self.luck.random() < 0.5
            again = self.sim.client(
                self.server,
                host=client.host,
                port=client.port if same else client.port + 1,
                copy=client.copy if self.luck.random() < 0.5 else None,
            )
            self.fate[again] = "restart"

    def freeze(self):
        if client := self.one("freeze"):
            client.host.freeze()
            self.sim.at(self.sim.world.now + self.luck.uniform(0.01, 20.0), client.host.thaw)

    def cut(self):
        seconds = self.luck.choice([0.1, 2.0, 45.0, 90.0])
        if client := self.one("cut" if seconds > 20.0 else "cut briefly"):
            path = self.luck.choice([client.host.up, client.host.down])
            path.set(blocked=True)
            self.sim.at(self.sim.world.now + seconds, lambda: path.set(blocked=False))

    def stall(self):
        if (client := self.one("stall")) and client.disk is not None:
            client.disk.stall(self.luck.uniform(0.1, 15.0))

    STEPS = (join, join, kick, cancel, demote, kill, restart, freeze, cut, stall)

    def judge(self):
        self.sim.run(900.0)
        left = [each for each in self.sim.receivers if each.stays]
        for client in left:
            allowed = ALLOWED.get(self.fate.get(client, ""), {"complete"})
            if client.outcome not in allowed:
                self.sim.world.fail(
                    f"{client.name} ended as {client.outcome}, not {allowed}: "
                    f"{self.sim.describe(client)}; {self.log}"
                )
        self.sim.check(complete=[each for each in left if each.outcome == "complete"])


@pytest.mark.parametrize("seed", seeds(12))
def test_whatever_happens_everybody_ends_as_they_must(seed):
    History(seed).judge()
