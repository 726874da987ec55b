import pytest
from monitor import body_of
from network import Bursts
from scenario import MEGABYTE, Simulation, seeds

JOINACK, POLLACK = 0x03, 0x0D


@pytest.mark.parametrize(
    "trouble",
    [
        {"bursts": Bursts(enter=0.002, leave=0.1)},
        {"duplicate": 0.05},
        {"reorder": 0.02, "reorder_delay": 0.025},
        {"bit_error": 0.01},
        {"jitter": 0.01},
        {"loss": 0.1},
        {
            "loss": 0.02,
            "bursts": Bursts(enter=0.001, leave=0.2, loss=0.8),
            "duplicate": 0.02,
            "reorder": 0.02,
            "bit_error": 0.005,
            "jitter": 0.002,
        },
    ],
    ids=["bursts", "duplicates", "reordering", "bit errors", "jitter", "10 % loss", "all of it"],
)
@pytest.mark.parametrize("seed", seeds(2))
def test_everybody_finishes_whatever_the_network_does(seed, trouble):
    sim = Simulation(seed, size=MEGABYTE, **trouble)
    server = sim.server(min_clients=3)
    sim.clients(server, 3)
    sim.run()
    sim.check()


@pytest.mark.parametrize("seed", seeds(2))
def test_bit_errors_are_counted_as_wrong_checksums(seed):
    sim = Simulation(seed, size=MEGABYTE, bit_error=0.02)
    server = sim.server()
    client = sim.client(server)
    sim.run()
    sim.check()
    assert client.session.dropped["checksum"] > 0


@pytest.mark.parametrize("seed", seeds(2))
def test_every_pollack_lost_means_nothing_is_sent_and_it_goes_on_when_they_come(seed):
    sim = Simulation(seed)
    server = sim.server(min_clients=3)
    server.host.down.swallow = lambda datagram: body_of(datagram)[0] == POLLACK
    sim.clients(server, 3)
    sim.at(20.0, setattr, server.host.down, "swallow", None)
    sim.run(19.0)
    assert server.monitor.packets["ODATA"] == 0
    assert server.monitor.packets["POLL"] < 100
    sim.run(60.0)
    sim.check()


@pytest.mark.parametrize("seed", seeds(2))
def test_one_client_whose_pollacks_are_all_lost_gets_what_the_others_miss(seed):
    sim = Simulation(seed, size=MEGABYTE)
    server = sim.server(min_clients=3)
    sim.clients(server, 2)
    mute = sim.client(server)
    mute.host.up.swallow = lambda datagram: body_of(datagram)[0] == POLLACK
    sim.run()
    sim.check()


@pytest.mark.parametrize("seed", seeds(2))
def test_a_client_on_a_ten_times_slower_link_gets_the_image_at_its_speed(seed):
    sim = Simulation(seed, size=4 * MEGABYTE)
    server = sim.server(min_clients=4)
    sim.clients(server, 3)
    slow = sim.client(server, rate=12.5e6, queue=128 << 10)
    sim.run()
    sim.check()
    assert slow.ended_at - server.began_at < 3 * sim.image.size * 1.1 / 12.5e6


@pytest.mark.parametrize("way", ["both", "up", "down"])
@pytest.mark.parametrize("seconds", [1.0, 8.0])
@pytest.mark.parametrize("seed", seeds(2))
def test_a_partition_that_heals_costs_the_cut_off_client_time_only(seed, seconds, way):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6)
    server = sim.server(min_clients=3)
    clients = sim.clients(server, 3)
    cut = clients[1]
    paths = {"both": [cut.host.up, cut.host.down], "up": [cut.host.up], "down": [cut.host.down]}[way]

    def block(blocked):
        for path in paths:
            path.set(blocked=blocked)

    sim.at(0.35, block, True)
    sim.at(0.35 + seconds, block, False)
    sim.run()
    sim.check()
    others = max(each.ended_at for each in clients if each is not cut)
    assert others < 6.0


@pytest.mark.parametrize("seed", seeds(2))
def test_a_partition_longer_than_the_inactivity_time_ends_the_client_cleanly(seed):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6)
    server = sim.server(min_clients=3)
    clients = sim.clients(server, 3)
    sim.at(0.35, clients[1].host.set)
    sim.at(0.35, lambda: clients[1].host.set(blocked=True))
    sim.run()
    sim.check(expected={clients[1]: "inactive"})
    assert 30.0 < clients[1].ended_at < 31.0


@pytest.mark.parametrize("seed", seeds(2))
def test_a_client_the_server_gave_up_as_dead_ends_all_the_same(seed):
    """Its way up is cut for longer than ClientDeadTimeout while it still hears everything."""
    sim = Simulation(seed, size=3 * MEGABYTE, rate=20_000)
    server = sim.server(min_clients=2)
    clients = sim.clients(server, 2)
    deaf = clients[1]
    deaf.host.down.set(loss=0.01)
    sim.at(5.0, lambda: deaf.host.up.set(blocked=True))
    sim.at(140.0, lambda: deaf.host.up.set(blocked=False))
    sim.run(600.0)
    assert clients[0].outcome == "complete"
    assert deaf.outcome in ("complete", "inactive")
    sim.check(complete=[clients[0]])


@pytest.mark.parametrize("seed", seeds(2))
def test_a_client_that_the_group_no_longer_reaches_ends_though_its_joins_are_answered(seed):
    """As with IGMP snooping without a querier: what is for it alone still comes."""
    sim = Simulation(seed, size=4 * MEGABYTE, rate=3e6)
    clients = sim.clients(sim.server(min_clients=3), 3)
    down = clients[1].host.down
    sim.at(0.5, lambda: setattr(down, "swallow", lambda datagram: body_of(datagram)[0] != JOINACK))
    sim.run(600.0)
    sim.check(expected={clients[1]: "inactive"})
    assert 30.0 < clients[1].ended_at < 31.0


@pytest.mark.parametrize("seed", seeds(2))
def test_a_client_that_the_group_never_reaches_ends_and_so_does_its_session(seed):
    sim = Simulation(seed)
    server = sim.server()
    deaf = sim.client(server)
    deaf.host.down.swallow = lambda datagram: body_of(datagram)[0] != JOINACK
    sim.run(600.0, to_the_end=True)
    assert deaf.outcome == "inactive"
    assert 30.0 < deaf.ended_at < 32.0
    assert server.terminated


@pytest.mark.parametrize("seed", seeds(2))
def test_a_client_that_nobody_hears_ends_though_others_keep_the_session_busy(seed):
    """Somebody's disk stands still, so that queries, and blocks for it, never end."""
    sim = Simulation(seed, size=4 * MEGABYTE, rate=6e6)
    server = sim.server(min_clients=3)
    clients, disk = sim.clients(server, 2), sim.disk()
    slow = sim.client(server, disk=disk)
    clients[1].host.down.set(loss=0.05)
    sim.when(lambda: slow.copy.stored > 500, disk.stall, 300.0)
    sim.at(0.3, lambda: clients[1].host.up.set(blocked=True))
    sim.run(600.0)
    sim.check(expected={clients[1]: "unheard"})
    assert clients[1].ended_at < 200.0


@pytest.mark.parametrize("seed", seeds(2))
def test_a_full_queue_in_front_of_everybody_does_not_stop_the_transfer(seed):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=125e6)
    server = sim.server(min_clients=3)
    for _ in range(3):
        sim.client(server, down={"rate": 25e6, "queue": 64 << 10})
    sim.run()
    sim.check()
    assert sim.finished_at - server.began_at < 3 * sim.image.size * 1.1 / 25e6


@pytest.mark.parametrize(
    ("rate", "queue", "repairs"), [(12.5e6, 256 << 10, 2.0), (12.5e6, 64 << 10, 3.0), (1.5e6, 64 << 10, 7.0)]
)
@pytest.mark.parametrize("seed", seeds(2))
def test_a_slow_link_with_a_short_queue_costs_some_repairs_but_no_flood_of_them(seed, rate, queue, repairs):
    """Sent as fast as they are asked for they overflow the queue again and again: 13 times the image."""
    sim = Simulation(seed, size=4 * MEGABYTE)
    server = sim.server(min_clients=3)
    sim.clients(server, 2)
    sim.client(server, down={"rate": rate, "queue": queue})
    sim.run(60.0)
    sim.check()
    assert server.monitor.packets["RDATA"] < repairs * sim.image.total_blocks
    assert sim.finished_at - server.began_at < 2.5 * sim.image.size / rate


@pytest.mark.parametrize("seed", seeds(2))
def test_more_holes_than_a_client_keeps_apart_are_filled_all_the_same(seed):
    """Half of what comes is lost and no NACK gets out: `BlockMap` goes over from holes to bits."""
    sim = Simulation(seed, size=40 * MEGABYTE, rate=12.5e6)
    server = sim.server(min_clients=2)
    sim.clients(server, 2)
    holes = []

    def cut():
        # Not the master, for whose ACKs the server would wait.
        victim = next(each for each in sim.receivers if each.address != server.master())
        victim.host.down.set(loss=0.5)
        victim.host.up.set(blocked=True)
        sim.at(3.0, heal, victim)
        look(victim)

    def heal(victim):
        victim.host.down.set(loss=0.0)
        victim.host.up.set(blocked=False)

    def look(victim):
        holes.append(len(victim.session.application.blocks._holes))
        if victim.outcome is None:
            sim.world.after(0.001, look, victim)

    sim.at(0.35, cut)
    sim.run()
    sim.check()
    most = max(holes)
    assert most > 4000, most
    assert min(holes[holes.index(most) :]) == 0
