"""What the simulator found: what is marked is not mended yet, the rest stays mended."""

from functools import cache

import pytest
from hosts import Server
from monitor import body_of
from scenario import MEGABYTE, Simulation

from wdstransport.protocol.client_transport import ClientState
from wdstransport.protocol.events import ClientActive, Gone
from wdstransport.protocol.parameters import ClientParameters

QCR, ODATA, NACK, KICK = 0x05, 0x06, 0x09, 0x0E


def test_a_room_of_300_starts_at_once_with_default_limits():
    sim = Simulation(1, size=MEGABYTE // 4, loss=0.001, share=True)
    server = sim.server(min_clients=300, max_wait=0.5)
    sim.clients(server, 300)
    sim.run(3.0)
    sim.check()


def test_a_client_whose_first_two_seconds_of_qcrs_are_lost_joins_again():
    sim = Simulation(1, size=MEGABYTE)
    server = sim.server()
    client = sim.client(server)
    client.host.up.swallow = lambda datagram: body_of(datagram)[0] == QCR
    sim.at(2.0, setattr, client.host.up, "swallow", None)
    sim.run(60.0)
    sim.check()


def test_a_client_that_nobody_hears_repeats_its_nack_ever_less_often():
    sim = Simulation(2, size=4 * MEGABYTE, rate=12.5e6)
    server = sim.server(min_clients=2)
    clients = sim.clients(server, 2)
    clients[0].host.down.set(loss=0.02)
    nacks = []

    def count(datagram):
        if body_of(datagram)[0] == NACK:
            nacks.append(sim.world.now)
        return 0.35 < sim.world.now < 3.35

    clients[0].host.up.swallow = count
    sim.run()
    sim.check()
    assert len([at for at in nacks if 1.35 < at < 3.35]) < 100


def test_the_first_packet_of_a_session_is_repaired_like_any_other():
    sim = Simulation(1, size=MEGABYTE)
    server = sim.server(min_clients=3)
    sim.clients(server, 3)
    lost = []

    def lose_first_odata():
        for client in sim.receivers:
            if client.address != server.master():
                client.host.down.swallow = swallow

    def swallow(datagram):
        op_code, body = body_of(datagram)
        if op_code == ODATA and int.from_bytes(body[4:12]) == 1:
            lost.append(sim.world.now)
            return True
        return False

    sim.at(0.1, lose_first_odata)
    sim.run()
    sim.check()
    assert len(lost) == 2
    assert len(server.monitor.round_blocks) == 1
    assert sim.finished_at - server.began_at < 0.5


@cache
def slow_link(seed):
    """Two fast receivers and one on a ten times slower link with a queue of 256 KB."""
    sim = Simulation(seed, size=4 * MEGABYTE)
    server = sim.server(min_clients=3)
    sim.clients(server, 2)
    sim.client(server, down={"rate": 12.5e6, "queue": 256 << 10})
    sim.run()
    sim.check()
    return server


@pytest.mark.parametrize("seed", [1, 3])
def test_repairs_for_a_slow_link_are_sent_about_once(seed):
    server = slow_link(seed)
    assert server.monitor.packets["RDATA"] < 2 * server.monitor.packets["ODATA"]


@pytest.mark.parametrize("seed", [1, 3])
def test_the_acks_of_a_slower_new_master_count(seed):
    server = slow_link(seed)
    assert server.session.dropped["stale"] < 0.1 * server.monitor.received["ACK"]


@pytest.mark.parametrize("seed", [1, 3])
def test_no_repair_is_queued_twice(seed):
    assert slow_link(seed).monitor.useless_repairs == 0


def test_a_client_forgotten_before_sending_begins_joins_again():
    """Nothing was sent yet, so it misses nothing that it could ask for: only its QCRs go unanswered."""
    sim = Simulation(1, size=MEGABYTE)
    server = sim.server(min_clients=2)
    clients = sim.clients(server, 2)
    clients[0].host.up.swallow = lambda datagram: body_of(datagram)[0] == QCR
    sim.at(2.0, setattr, clients[0].host.up, "swallow", None)
    sim.run(100.0)
    sim.check()


def test_a_kick_that_is_lost_is_not_undone_by_joining_again():
    sim = Simulation(1, size=4 * MEGABYTE, rate=2.5e6)
    server = sim.server(min_clients=2)
    clients = sim.clients(server, 2)
    clients[0].host.down.set(loss=0.02)
    kicks = []

    def lose_the_first(datagram):
        if body_of(datagram)[0] == KICK and not kicks:
            kicks.append(sim.world.now)
            return True
        return False

    clients[0].host.down.swallow = lose_the_first
    back = []

    def kick():
        server.kick(clients[0])
        server.on_event = lambda event: back.append(event) if isinstance(event, ClientActive) else None

    sim.at(0.5, kick)
    sim.run(100.0)
    assert len(kicks) == 1
    assert not back
    assert clients[0].outcome in ("kicked", "complete")


@pytest.mark.parametrize("ends", ["complete", "cancelled"])
def test_who_ends_on_the_way_to_a_lower_session_does_not_join_it(ends):
    """Its last word was COMPLETE or CANCELLED: nobody would ever end it in the lower session."""
    sim = Simulation(1, size=MEGABYTE, latency=0.02)
    server, slower = sim.server(), sim.server()
    disk = sim.disk()
    client = sim.client(server, disk=disk)
    sim.when(lambda: client.copy.stored > 0, disk.stall, 5.0)

    def demote():
        server.demote(client, slower)
        sim.when(lambda: client.session.transport.state is ClientState.LEAVING, end)

    def end():
        if ends == "cancelled":
            client.cancel()
        else:
            for event in list(client.pending.values()):
                client._stored(event)

    sim.when(lambda: client.session.application.complete, demote)
    sim.run(60.0)
    sim.check(expected={client: ends})
    assert client.session.session_id == server.session_id
    assert slower.monitor.received["JOIN"] == 0
    assert [reason for _, _, reason in server.gone] == [Gone.DEMOTED]


@pytest.mark.parametrize("seed", [1, 2])
def test_clients_of_a_server_that_restarts_under_its_old_session_number_go_on_with_it(seed):
    """Its numbers begin far below theirs: they take nothing of it, and every JOINACK keeps them waiting."""
    sim = Simulation(seed, size=4 * MEGABYTE, rate=12.5e6)
    server = sim.server(min_clients=3)
    before = server.session.transport
    before._next_qcc_seq_no = before._next_poll_seq_no = before.data._next_spm_seq_no = 100_000
    before.data.mc_lead = before.data.mc_trail = 100_000
    clients = sim.clients(server, 3)

    def restart():
        server.stop()
        again = Server(server.host, server.port, server.group, sim.image, session_id=server.session_id)
        again.session.transport._next_client_id = 5  # as it would: these are drawn from the same seed
        sim.servers.append(again)

    sim.when(lambda: clients[0].copy.stored > 500, restart)
    sim.run(60.0)
    sim.check()
    assert sim.finished_at < 10.0


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_a_client_300_ms_away_starts_at_once_and_no_qcr_of_it_is_late(seed):
    """JOIN, QCR to the JOINACK, one or two QCCs and a query: not five seconds of answers to earlier QCCs."""
    sim = Simulation(seed, size=MEGABYTE, latency=0.075)
    server = sim.server()
    sim.client(server)
    sim.run()
    sim.check()
    assert server.began_at < 2.0
    assert server.session.dropped["stale"] <= 0.1 * server.monitor.received["QCR"]


def test_a_client_whose_disk_stands_still_keeps_nobody_waiting_who_joins_later():
    """It misses the same blocks in every query, and 30 s after it nobody else counted in a round any more."""
    sim = Simulation(1, size=MEGABYTE // 4, rate=2.5e6)
    server = sim.server()
    disk = sim.disk()
    first = sim.client(server, disk=disk, parameters=ClientParameters(max_cache_size=100_000))
    sim.when(lambda: first.copy.stored > 20, disk.stall, 60.0)
    sim.at(40.0, sim.client, server)
    sim.run()
    sim.check()
    assert first.ended_at > 60.0
    assert sim.receivers[1].ended_at < 50.0
