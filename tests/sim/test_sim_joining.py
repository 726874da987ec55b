import os

import pytest
from scenario import BLOCK, MEGABYTE, SHIFT, Simulation, seeds


@pytest.mark.parametrize("seed", seeds(3))
def test_all_join_at_once_and_the_image_crosses_the_wire_once(seed):
    sim = Simulation(seed, size=2 * MEGABYTE)
    server = sim.server(min_clients=4)
    sim.clients(server, 4)
    sim.run()
    sim.check()
    assert sim.odata_share() <= 1.02
    assert server.monitor.packets["RDATA"] == 0


@pytest.mark.parametrize("loss", [0.01, 0.05])
@pytest.mark.parametrize("seed", seeds(3))
def test_all_join_at_once_under_loss(seed, loss):
    sim = Simulation(seed, size=2 * MEGABYTE, loss=loss)
    server = sim.server(min_clients=4)
    sim.clients(server, 4)
    sim.run()
    sim.check()


@pytest.mark.parametrize("seed", seeds(3))
def test_one_joins_half_way_and_the_other_is_done_no_later(seed):
    alone = Simulation(seed, size=5 * MEGABYTE, rate=12.5e6)
    alone.client(alone.server())
    alone.run()
    sim = Simulation(seed, size=5 * MEGABYTE, rate=12.5e6)
    server = sim.server()
    first = sim.client(server)
    sim.when(lambda: first.copy.stored > sim.image.total_blocks // 2, sim.client, server)
    sim.run()
    sim.check()
    assert sim.odata_share() <= 1.55
    assert first.ended_at <= alone.finished_at + 0.02


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_smallest_images(seed, size):
    sim = Simulation(seed, size=size)
    sim.clients(sim.server(min_clients=2), 2)
    sim.run()
    sim.check()
    assert sim.servers[0].monitor.content == size


def test_an_image_of_no_bytes_has_no_blocks():
    sim = Simulation(1, size=0)
    assert sim.image.total_blocks == 0


@pytest.mark.skipif("SIM_LARGE" not in os.environ, reason="a minute of work: set SIM_LARGE=1")
@pytest.mark.timeout(600)
def test_a_thousand_clients_cost_the_wire_no_more_than_one():
    sim = Simulation(SHIFT + 1, size=20 * MEGABYTE, share=True)
    server = sim.server(min_clients=1000, max_pending_clients=1000)
    sim.clients(server, 1000)
    sim.run()
    sim.check()
    assert sim.odata_share() <= 1.02
