"""The simulator is honest: same seed, same run; captures tell the same story; faults are noticed."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from hosts import Receiver, Server
from network import Bursts, Chance, Conditions, Network, Path
from scenario import MEGABYTE, Simulation, seeds
from witness import Witness
from world import SimulationFailure, World

from wdstransport.protocol.client_application import ClientApplication
from wdstransport.protocol.client_data import ClientData
from wdstransport.protocol.events import BlocksArrived
from wdstransport.protocol.ranges import RangeSet
from wdstransport.protocol.window import DataPacketList
from wdstransport.wire.application import CntCir, encode
from wdstransport.wire.batch import Batch
from wdstransport.wire.security import NoSecurity
from wdstransport.wire.transport import Ack, Join, JoinAck, OData
from wdstransport.wire.transport import encode as encode_packet


def story(sim):
    return (
        sim.world.events,
        [(each.outcome, each.ended_at) for each in sim.receivers],
        [(dict(each.monitor.packets), dict(each.monitor.received)) for each in sim.servers],
    )


def troubled(seed, **how):
    sim = Simulation(seed, loss=0.02, reorder=0.01, duplicate=0.01, jitter=0.001, bit_error=0.002, **how)
    sim.clients(sim.server(min_clients=3), 3)
    sim.run()
    sim.check()
    return sim


@pytest.mark.parametrize("seed", seeds(1))
def test_one_seed_decides_everything(seed):
    assert story(troubled(seed)) == story(troubled(seed))
    assert story(troubled(seed)) != story(troubled(seed + 1))


@pytest.mark.parametrize("seed", seeds(1))
def test_shared_decoding_changes_no_result(seed):
    assert story(troubled(seed)) == story(troubled(seed, share=True))


def test_a_capture_holds_every_datagram_with_its_virtual_time(tmp_path):
    path = tmp_path / "run.pcapng"
    sim = Simulation(1, size=MEGABYTE // 4, capture=path, capture_hosts=["10.1.0.1"])
    server = sim.server(min_clients=2)
    sim.clients(server, 2)
    sim.run()
    sim.check()
    raw = path.read_bytes()
    at, stamps, sent, heard = 0, [], 0, 0
    while at < len(raw):
        kind, size = struct.unpack_from("<II", raw, at)
        assert raw[at + size - 4 : at + size] == struct.pack("<I", size)
        if kind == 6:
            _, high, low, length, original = struct.unpack_from("<IIIII", raw, at + 8)
            packet = raw[at + 28 : at + 28 + length]
            assert length == original == int.from_bytes(packet[2:4])
            words = np.frombuffer(packet[:20], ">u2").astype(int).sum()
            assert (words & 0xFFFF) + (words >> 16) == 0xFFFF
            stamps.append((high << 32 | low) / 1e9)
            sent += packet[12:16] == bytes([10, 1, 0, 1])
            heard += packet[16:20] == bytes([10, 1, 0, 1])
        at += size
    assert stamps == sorted(stamps)
    assert stamps[-1] <= sim.world.now
    assert sent == sum(server.monitor.packets.values())
    assert heard == sum(server.monitor.received.values())


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 1.0])
def test_loss_has_the_share_it_says(share):
    chance = Chance(share, World(1).choices("loss"))
    hits = sum(len(chance.hits(44)) for _ in range(5000))
    assert abs(hits / 220_000 - share) < 0.02 * share + 0.0005


def test_bursts_lose_in_runs():
    world = World(1)
    path = Path(Conditions(bursts=Bursts(enter=0.01, leave=0.25)), world.choices("path"))
    lost = []
    for number in range(20_000):
        lost.append(not path.carry(memoryview(b"x"), 1, number * 1.0))
    share = sum(lost) / len(lost)
    follow = sum(a and b for a, b in pairwise(lost)) / sum(lost)
    assert 0.02 < share < 0.06
    assert follow > 0.6


def test_a_slow_link_delays_and_its_full_queue_drops():
    world = World(1)
    path = Path(Conditions(rate=1000.0, queue=1000, latency=0.0), world.choices("path"))
    batch = memoryview(bytes(20 * 34))  # 20 datagrams of 100 bytes on the wire each
    [(arrival, kept, _)] = path.carry(batch, 34, 0.0)
    assert len(kept) == 10 * 34
    assert arrival == pytest.approx(1.0)
    assert path.counts["overflow"] == 10


def test_a_wrong_byte_at_a_receiver_fails_the_run(monkeypatch):
    sim = Simulation(1)
    sim.clients(sim.server(), 1)
    right = Receiver._handle_events

    def mangle(self, now):
        for event in self.session.transport.events:
            if isinstance(event, BlocksArrived):
                spoiled = bytearray(event.batch.buffer)
                spoiled[event.data_offset + 3] ^= 1
                event.batch.buffer = memoryview(spoiled)
        right(self, now)

    monkeypatch.setattr(Receiver, "_handle_events", mangle)
    with pytest.raises(SimulationFailure, match=r"seed 1.*wrong bytes"):
        sim.run()


def test_a_session_that_forgets_its_losses_is_noticed(monkeypatch):
    monkeypatch.setattr(ClientData, "_update_end", lambda self, end: setattr(self, "end", max(self.end, end)))
    sim = Simulation(1, loss=0.02)
    sim.clients(sim.server(min_clients=2), 2)
    with pytest.raises(SimulationFailure, match=r"seed 1.*client \d acknowledged \d+, but \d+ never came"):
        sim.run()


def test_the_answer_to_an_earlier_process_on_the_same_port_is_not_taken_for_this_one_s():
    world, server = World(1), ("10.1.0.1", 5001)
    witness = Witness(world, "client 2", session_id=7, total_blocks=9, have=(), checksums=False)

    def of(packet, sender_time):
        return encode_packet(packet, session_id=7, sender_time=sender_time, security=NoSecurity())

    def hears(packet):
        datagram = of(packet, 0)
        witness.heard(Batch(memoryview(datagram), len(datagram), server, datagram))

    witness.sent(of(Join("pc", bytes(4), bytes(6)), 2000))
    hears(JoinAck(1, 1, 1, 1, client_time=1000))
    hears(OData(0, 1, 1, bytes(8)))
    hears(JoinAck(1, 1, 1, 1, client_time=2000))
    hears(OData(0, 4, 1, bytes(8)))
    witness.sent(of(Ack(1, 4, 0, 4, 0), 2001))  # its list begins with what came first to it
    with pytest.raises(SimulationFailure, match="client 2 acknowledged 6, but 5 never came"):
        witness.sent(of(Ack(1, 6, 0, 4, 0), 2002))


def test_forgotten_losses_cost_further_rounds(monkeypatch):
    """Without NACKs the copies still become whole; the number of rounds tells."""
    monkeypatch.setattr(ClientData, "_update_end", lambda self, end: setattr(self, "end", max(self.end, end)))
    sim = Simulation(1, loss=0.02, share=True)  # nobody watches what clients say
    server = sim.server(min_clients=2)
    sim.clients(server, 2)
    sim.run()
    sim.check()
    assert len(server.monitor.round_blocks) > 1


def test_packets_that_are_kept_for_ever_are_noticed(monkeypatch):
    monkeypatch.setattr(DataPacketList, "clean_up", lambda self, created_before, acknowledged: 0)
    monkeypatch.setattr(Server, "_watch_cleanup", lambda self: None)  # which would notice it first
    sim = Simulation(1, size=8 * MEGABYTE, rate=2.5e6)
    sim.clients(sim.server(exp_max_window_size=64, max_window_size=64), 1)
    with pytest.raises(SimulationFailure, match=r"seed 1.*\d+ packets are kept for repairs"):
        sim.run()


def test_ranges_that_nobody_repairs_any_more_are_noticed(monkeypatch):
    monkeypatch.setattr(RangeSet, "remove_below", lambda self, number: None)
    monkeypatch.setattr(RangeSet, "discard", lambda self, number: False)
    sim = Simulation(1, size=8 * MEGABYTE, rate=2.5e6, loss=0.02)
    sim.clients(sim.server(min_clients=2), 2)
    with pytest.raises(SimulationFailure, match=r"seed 1.*(client \d keeps \d+ ranges|asked for)"):
        sim.run()


def test_a_client_that_asks_for_what_it_has_is_noticed(monkeypatch):
    monkeypatch.setattr(
        ClientApplication, "missing_packet", lambda self, now: encode(CntCir(0, 0, ((1, 2),)))
    )
    sim = Simulation(1)
    server = sim.server()
    sim.client(server)
    with pytest.raises(SimulationFailure, match=r"says it misses \[\(1, 2\)\]"):
        sim.run()


def test_an_error_in_a_session_names_the_seed(monkeypatch):
    monkeypatch.setattr(ClientData, "continuous", lambda self: 1 // 0)
    sim = Simulation(7)
    sim.client(sim.server())
    with pytest.raises(ZeroDivisionError) as caught:
        sim.run()
    assert caught.value.__notes__[0].startswith("seed 7, t = 0.")


def test_datagrams_to_nobody_vanish():
    world = World(1)
    network = Network(world)
    sim = Simulation(1)
    host = sim.host()
    network.attach(host)
    network.send(host, 1, ("10.9.9.9", 9), memoryview(b"x"), 1)
    world.run(1.0, lambda: False)
    assert world.events == 1
