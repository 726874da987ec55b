"""More servers than one, and servers that are gone: two on one group, one that dies, one to be demoted to."""

import pytest
from hosts import Server
from network import Bursts
from scenario import MEGABYTE, Simulation, seeds


def second_server(sim, first):
    """Another machine that serves to the first one's group and port, under another session number."""
    host = sim.server().host  # an address of its own; its own session has no clients
    server = Server(host, first.port, first.group, sim.image, session_id=first.session_id + 1000)
    sim.servers.append(server)
    return server


@pytest.mark.parametrize("loss", [0.0, 0.02])
@pytest.mark.parametrize("seed", seeds(2))
def test_two_servers_on_one_group_and_port_do_not_mix(seed, loss):
    sim = Simulation(seed, size=2 * MEGABYTE, rate=25e6, loss=loss)
    server = sim.server(min_clients=2)
    other = second_server(sim, server)
    arrives = {"loss": 0.0}  # so that no LEAVE is lost, which is sent once
    first, second = sim.clients(server, 2, up=arrives), sim.clients(other, 2, up=arrives)
    sim.run()
    sim.check()
    for client in (*first, *second):
        assert client.session.datagrams > 0
        # What the other server sends comes to the same group; it is dropped by its source or its number.
        assert sum(client.session.dropped.values()) > 0
    assert server.session.completed == other.session.completed == 2


@pytest.mark.parametrize("seed", seeds(2))
def test_two_sessions_of_one_machine_share_its_link(seed):
    sim = Simulation(seed, size=2 * MEGABYTE, rate=25e6)
    server = sim.server(min_clients=2)
    other = sim.server(host=server.host, min_clients=2)
    sim.clients(server, 2)
    sim.clients(other, 2)
    sim.run()
    sim.check()
    assert sim.odata_share(server) <= 1.1
    assert sim.odata_share(other) <= 1.1


@pytest.mark.parametrize("seed", seeds(2))
def test_a_server_that_dies_leaves_everybody_to_end_by_inactivity(seed):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6, loss=0.01)
    server = sim.server(min_clients=3)
    clients = sim.clients(server, 3)
    sim.at(0.35, server.host.die)
    sim.run()
    sim.check(expected=dict.fromkeys(clients, "inactive"))
    # Whose JOIN was lost has heard nothing since its start at 0.
    assert all(29.99 < each.ended_at < 31.5 for each in clients)


@pytest.mark.parametrize("seed", seeds(2))
def test_clients_of_a_server_that_restarts_find_the_new_session_and_ask_for_the_rest_only(seed):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6)
    server = sim.server(min_clients=3)
    before = sim.clients(server, 3)
    had = []

    def restart():
        server.stop()
        had.extend(each.copy.stored for each in before)
        again = sim.server(host=server.host, min_clients=3)
        for place, client in enumerate(before):
            client.on_over = follow(again, client, place)

    def follow(again, client, place):
        counted = client.on_over

        def over(receiver):
            # Only then is it known that nothing comes any more.
            sim.client(again, host=client.host, port=5100 + place, copy=client.copy)
            counted(receiver)

        return over

    sim.at(0.35, restart)
    sim.run()
    sim.check(expected=dict.fromkeys(before, "inactive"))
    assert [each.outcome for each in sim.receivers[3:]] == ["complete"] * 3
    assert min(had) > 100
    assert sim.servers[-1].monitor.packets["ODATA"] <= sim.image.total_blocks - min(had)


@pytest.mark.parametrize("seed", seeds(2))
def test_who_is_demoted_to_a_session_that_is_gone_ends_by_inactivity(seed):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6)
    server, slower = sim.server(min_clients=3), sim.server()
    clients = sim.clients(server, 3)
    slower.host.die()
    sim.when(lambda: clients[0].copy.stored > 500, server.demote, clients[0], slower)
    sim.run()
    sim.check(expected={clients[0]: "inactive"})
    assert 30.0 < clients[0].ended_at < 32.0


@pytest.mark.parametrize("seed", seeds(2))
def test_demote_and_kick_arrive_through_bursts_of_loss(seed):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=5e6, bursts=Bursts(enter=0.02, leave=0.05))
    server, slower = sim.server(min_clients=4, kick_interval=0.2), sim.server()
    clients = sim.clients(server, 4)
    demoted = clients[0]

    def single_losses():
        demoted.host.set(bursts=None, loss=0.1)

    sim.when(lambda: demoted.copy.stored > 300, server.demote, demoted, slower)
    # In the lower session only a JOIN now and then would count a burst down: it would last for 30 s and more.
    sim.when(lambda: demoted.session.session_id == slower.session_id, single_losses)
    sim.when(lambda: clients[1].copy.stored > 300, server.kick, clients[1])
    sim.run(300.0)
    sim.check(expected={clients[1]: "kicked"})
    assert demoted.session.session_id == slower.session_id
    # What came before the DEMOTE stayed: the slower session sends no more than the rest.
    assert slower.monitor.content < sim.image.size - 200 * sim.image.block_size


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("seed", seeds(2))
def test_a_server_cut_off_one_way_goes_on_when_the_way_is_open_again(seed, way):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6)
    server = sim.server(min_clients=3)
    sim.clients(server, 3)
    path = getattr(server.host, way)
    sim.at(0.3, lambda: path.set(blocked=True))
    sim.at(10.3, lambda: path.set(blocked=False))
    sim.run()
    sim.check()
    assert sim.finished_at < 13.0
