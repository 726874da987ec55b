import pytest
from scenario import MEGABYTE, Simulation, seeds

from wdstransport.protocol.events import Gone


def room(seed, kick_interval=15.0, **conditions):
    """Four receivers of which the master is known once half the image is there."""
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6, **conditions)
    server = sim.server(min_clients=4, kick_interval=kick_interval)
    sim.clients(server, 4)
    return sim, server


def master_of(sim, server):
    return next((each for each in sim.receivers if each.address == server.master()), None)


def half_way(sim, server):
    def reached():
        master = master_of(sim, server)
        return master is not None and master.copy.stored > sim.image.total_blocks // 2

    return reached


@pytest.mark.parametrize("loss", [0.0, 0.02])
@pytest.mark.parametrize("seed", seeds(2))
def test_the_master_dies_and_the_others_finish(seed, loss):
    sim, server = room(seed, loss=loss)

    def kill():
        master = master_of(sim, server)
        master.kill()
        master.host.die()

    sim.when(half_way(sim, server), kill)
    sim.run()
    sim.check()
    assert sum(each.outcome == "complete" for each in sim.receivers) == 3
    # Five SPMs without an answer, a new master, then the rest: the loss of one costs about two seconds.
    assert sim.finished_at < 5.0


@pytest.mark.parametrize("loss", [0.0, 0.02])
@pytest.mark.parametrize("seed", seeds(2))
def test_the_master_leaves_and_the_others_finish(seed, loss):
    sim, server = room(seed, loss=loss)
    sim.when(half_way(sim, server), lambda: master_of(sim, server).cancel())
    sim.run()
    cancelled = [each for each in sim.receivers if each.outcome == "cancelled"]
    assert len(cancelled) == 1
    sim.check(expected={cancelled[0]: "cancelled"})
    assert sim.finished_at < 5.0


@pytest.mark.parametrize("loss", [0.0, 0.05])
@pytest.mark.parametrize("seed", seeds(2))
def test_the_master_is_demoted_and_finishes_in_the_slower_session(seed, loss):
    sim, server = room(seed, loss=loss)
    slower = sim.server()
    sim.when(half_way(sim, server), lambda: server.demote(master_of(sim, server), slower))
    sim.run()
    sim.check()
    demoted = [each for each in sim.receivers if each.session.session_id == slower.session_id]
    assert len(demoted) == 1
    # A LEAVE is sent once: where packets are lost, it may be the one.
    assert loss or Gone.DEMOTED in [reason for _, _, reason in server.gone]
    # What came before the DEMOTE was kept.
    assert slower.monitor.content < 0.6 * sim.image.size


@pytest.mark.parametrize("loss", [0.0, 0.05])
@pytest.mark.parametrize("seed", seeds(2))
def test_the_master_is_kicked_and_says_so(seed, loss):
    sim, server = room(seed, kick_interval=0.02, loss=loss)
    sim.when(half_way(sim, server), lambda: server.kick(master_of(sim, server)))
    sim.run()
    kicked = [each for each in sim.receivers if each.outcome == "kicked"]
    assert len(kicked) == 1
    sim.check(expected={kicked[0]: "kicked"})


@pytest.mark.parametrize("seed", seeds(2))
def test_a_slow_master_sets_the_pace_and_loses_little(seed):
    sim = Simulation(seed, size=4 * MEGABYTE)
    server = sim.server(min_clients=3)
    sim.clients(server, 2)
    sim.client(server, down={"rate": 12.5e6, "queue": 256 << 10})
    sim.run()
    sim.check()
    wire = 4 * MEGABYTE * 1.1 / 12.5e6
    assert sim.finished_at - server.began_at < 3 * wire


@pytest.mark.parametrize("seed", seeds(2))
def test_a_master_far_away_is_chosen_and_the_image_still_comes_in_time(seed):
    sim = Simulation(seed, size=4 * MEGABYTE)
    server = sim.server(min_clients=3)
    sim.clients(server, 2)
    far = sim.client(server, latency=0.02)
    sim.run()
    sim.check()
    assert far.outcome == "complete"
    assert sim.finished_at < 3.0
