"""KICK and DEMOTE under loss, confused and hostile hosts."""

import pytest
from network import Address
from scenario import MEGABYTE, Simulation, seeds

from wdstransport.protocol.events import Gone
from wdstransport.wire.transport import (
    LOSS_SCALE,
    Ack,
    Join,
    KickReason,
    Leave,
    LeaveReason,
    Nack,
    PollAck,
    Qcr,
    encode,
)


def speak(sim, server, host, packet, *, port=6000, to: Address | None = None):
    """Let a host send a packet of its own making to the server."""
    datagram = encode(packet, session_id=server.session_id, sender_time=5, security=server.security)
    sim.network.send(host, port, to or server.address, memoryview(datagram), len(datagram))


@pytest.mark.parametrize("loss", [0.05, 0.2])
@pytest.mark.parametrize("seed", seeds(2))
def test_a_kick_reaches_its_client_under_loss(seed, loss):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=2.5e6)
    server = sim.server(min_clients=3, max_wait=3.0, kick_interval=0.1)
    clients = sim.clients(server, 3)
    unlucky = clients[1]
    unlucky.host.set(loss=loss)
    sim.when(lambda: unlucky.copy.stored > 100, server.kick, unlucky, KickReason.FAIL)
    sim.run(300.0)
    sim.check(expected={unlucky: "kicked"})
    assert unlucky.kick_reason is KickReason.FAIL
    assert max(each.ended_at for each in clients if each is not unlucky) < 5.0


@pytest.mark.parametrize("seed", seeds(2))
def test_a_kicked_client_whose_leave_is_lost_is_forgotten_in_the_end(seed):
    sim = Simulation(seed, size=MEGABYTE)
    server = sim.server(min_clients=2)
    clients = sim.clients(server, 2)

    def kick():
        clients[0].host.up.set(blocked=True)
        server.kick(clients[0])

    sim.when(lambda: clients[0].copy.stored > 10, kick)
    sim.run(200.0, to_the_end=True)
    sim.check(expected={clients[0]: "kicked"})
    assert not server.session.transport.clients.kicked
    assert server.monitor.packets["KICK"] <= 12


@pytest.mark.parametrize("seed", seeds(2))
def test_everybody_kicked_at_once_leaves(seed):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=2.5e6, loss=0.05)
    server = sim.server(min_clients=5, kick_interval=1.0)
    clients = sim.clients(server, 5)

    def kick_all():
        for client in clients:
            server.kick(client)

    sim.when(lambda: clients[0].copy.stored > 100, kick_all)
    sim.run()
    sim.check(expected=dict.fromkeys(clients, "kicked"))


@pytest.mark.parametrize("loss", [0.05, 0.1])
@pytest.mark.parametrize("seed", seeds(2))
def test_a_demote_moves_half_the_room_under_loss(seed, loss):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=2.5e6, loss=loss)
    server, slower = sim.server(min_clients=4), sim.server()
    clients = sim.clients(server, 4)

    def demote():
        for client in clients[:2]:
            server.demote(client, slower)

    sim.when(lambda: clients[0].copy.stored > 500, demote)
    sim.run(300.0)
    sim.check()
    moved = [each for each in clients if each.session.session_id == slower.session_id]
    assert moved == clients[:2]


@pytest.mark.parametrize("seed", seeds(2))
def test_a_host_that_uses_others_client_ids_changes_nothing(seed):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6)
    server = sim.server(min_clients=3)
    sim.clients(server, 3)
    confused = sim.host()
    before = server.session.transport

    def lie():
        for client_id in list(before.clients.active):
            lead = before.data.mc_lead
            for packet in (
                Leave(client_id, LeaveReason.CANCELLED),
                Ack(client_id, lead, 1, lead, 0),
                Nack(client_id, lead, LOSS_SCALE, ((1, lead),)),
                Qcr(client_id, 0, 0, 1, lead, LOSS_SCALE, b""),
                PollAck(client_id, 1, b""),
            ):
                speak(sim, server, confused, packet)

    for number in range(20):
        sim.at(0.3 + number * 0.01, lie)
    sim.run()
    sim.check()
    assert server.session.dropped["unknown_client"] >= 100
    assert server.monitor.packets["RDATA"] == 0
    assert server.session.completed == 3


@pytest.mark.parametrize("seed", seeds(2))
def test_two_receivers_on_one_machine_are_two_clients(seed):
    sim = Simulation(seed, loss=0.01)
    server = sim.server(min_clients=2)
    host = sim.host()
    first = sim.client(server, host=host)
    second = sim.client(server, host=host, port=5001)
    sim.run()
    sim.check()
    assert first.client_ids != second.client_ids


@pytest.mark.parametrize("seed", seeds(2))
def test_a_flood_of_joins_fills_a_bounded_table_and_disturbs_nobody(seed):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6)
    server = sim.server(min_clients=2, max_pending_clients=64)
    sim.clients(server, 2)
    hostile = sim.host()

    def flood():
        for port in range(7000, 7500):
            speak(sim, server, hostile, Join("x", bytes(4), bytes(6)), port=port)

    sim.at(0.3, flood)
    sim.run()
    sim.check()
    assert server.bounds.largest_pending == 64
    assert sim.odata_share() <= 1.0
    assert sim.finished_at < 1.5
    assert [reason for _, _, reason in server.gone] == [Gone.COMPLETE, Gone.COMPLETE]


@pytest.mark.parametrize("seed", seeds(2))
def test_a_client_that_asks_for_everything_again_and_again_slows_only_a_little(seed):
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6)
    server = sim.server(min_clients=3)
    greedy = sim.clients(server, 3)[0]
    lists = server.session.transport

    def ask():
        lead = lists.data.mc_lead
        if lead and greedy.outcome is None:
            nack = Nack(greedy.client_ids[-1], lead, 0, ((1, lead),))
            speak(sim, server, greedy.host, nack, port=greedy.port)

    for number in range(100):
        sim.at(0.3 + number * 0.005, ask)
    sim.run()
    sim.check()
    assert sim.finished_at < 6.0
