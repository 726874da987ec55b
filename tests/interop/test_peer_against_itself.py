"""The peer's client and server against each other: whole copies, and nothing that the checkers object to."""

import random
import struct
import threading

import peer_wire as wire
import pytest
from peer import PeerClient, PeerServer

DATA = random.Random("content").randbytes(400_123)
CONTENT, NAMESPACE = "big.img", "images"


@pytest.fixture
def serve():
    servers = []

    def start(kind=PeerServer, data=DATA, **options):
        servers.append(kind(data, CONTENT, NAMESPACE, initiation_port=0, **options).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def client(server, kind=PeerClient, **options):
    return kind(("127.0.0.1", server.initiation_port), CONTENT, NAMESPACE, **options)


def until(server, condition, seconds=30):
    with server.turn:
        assert server.turn.wait_for(condition, seconds)


def rules(violations):
    return {text.split(":")[0] for text in violations}


@pytest.mark.parametrize("block_size", [1385, 8785])
@pytest.mark.parametrize("mode", ["checksum", "none"])
@pytest.mark.parametrize("loss", [0, 0.02, 0.1])
def test_whole_copies_with_loss_on_the_client_s_side(serve, loss, mode, block_size):
    server = serve(mode=mode, block_size=block_size, remote_loss=loss)
    result = client(server, mode=mode, loss=loss, seed=1, first=True, alone=True).run(60)
    assert (result.status, result.violations) == ("complete", [])
    assert result.data == DATA
    if not loss:
        until(server, lambda: server.completed == [result.client_id])
    server.stop()
    assert server.violations == []


@pytest.mark.parametrize("block_size", [1385, 8785])
@pytest.mark.parametrize("loss", [0.02, 0.1])
def test_whole_copies_with_loss_on_the_server_s_side(serve, loss, block_size):
    server = serve(loss=loss, block_size=block_size, fw_lead=True, seed=1)
    result = client(server, first=True, alone=True, remote_loss=loss).run(60)
    assert (result.status, result.violations) == ("complete", [])
    assert result.data == DATA
    server.stop()
    assert server.violations == []


def test_three_clients_one_late_with_loss_on_both_sides(serve):
    server, results = serve(loss=0.02, remote_loss=0.02), []

    def run(number):
        if number == 2:
            until(server, lambda: server.sent["ODATA"])
        results.append(client(server, loss=0.02, remote_loss=0.02, seed=number).run(60))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.stop()
    assert [(r.status, r.violations, r.data == DATA) for r in results] == [("complete", [], True)] * 3
    assert len({r.client_id for r in results}) == 3
    assert server.violations == []


def test_acks_thinned_by_the_forward_lead(serve):
    server = serve(fw_lead=True)
    result = client(server, first=True, alone=True).run(60)
    assert (result.data == DATA, result.violations) == (True, [])
    assert result.sent["ACK"] < result.seen["ODATA"] / 2
    server.stop()
    assert server.violations == []


def test_a_cache_that_is_full_asks_for_the_blocks_again(serve):
    server = serve(data=DATA[:60_000])
    result = client(server, first=True, alone=True, cache=30_000, drain=300_000).run(60)
    assert (result.data == DATA[:60_000], result.violations) == (True, [])
    assert result.sent["NACK"] > 0
    server.stop()
    assert server.violations == []


def test_a_client_that_falls_silent_is_replaced(serve):
    server = serve()
    peer = client(server, first=True, alone=True, mute=50)
    result = peer.run(40, until=lambda: server.log.count("master is silent") == 2)
    assert (result.status, result.violations) == ("timeout", [])
    assert server.log.count("master is silent") == 2
    server.stop()
    assert rules(server.violations) <= {"ACK"}  # its checker may see that ACK packets are missing


def test_kick_and_demote_are_followed(serve):
    slow, server = serve(group="239.192.7.42", seed=2, fresh=False), serve()
    results = []
    for order in (lambda number: server.kick(number, 2), lambda number: server.demote(number, slow)):
        peer = client(server, mute=50)
        thread = threading.Thread(target=lambda peer=peer: results.append(peer.run(60)))
        thread.start()
        until(server, lambda peer=peer: peer.result.sent["ACK"] >= 50)
        order(peer.result.client_id)
        until(server, lambda peer=peer: peer.result.sent["LEAVE"])
        peer.mute = None
        thread.join()
    assert [(r.status, r.kick_reason, r.violations) for r in results] == [
        ("kicked", 2, []),
        ("complete", None, []),
    ]
    assert results[1].data == DATA
    for one in (server, slow):
        one.stop()
        assert one.violations == []


def test_refusals_and_silence_end(serve):
    server = serve()
    where = ("127.0.0.1", server.initiation_port)
    assert PeerClient(where, "other", NAMESPACE).run(5).error == 2
    assert PeerClient(where, CONTENT, "other").run(5).error == 1168
    assert client(serve(data=b"")).run(5).status == "complete"
    server.stop()
    assert PeerClient(where, CONTENT, NAMESPACE).run(1).status == "no answer"


def test_sizes_of_the_published_layout():
    data = wire.build_ma(wire.DATA, struct.pack(">QH", 1, 1385) + bytes(1385))
    assert len(wire.build("ODATA", 1, "none", 0, (1, 1, 1), data)) == 1472 - 32
    packet, complaints = wire.parse(wire.build("ODATA", 1, "checksum", 7, (1, 2, 3), data), "checksum", 1)
    assert (packet.op, packet.time, packet.seq, packet.data, complaints) == ("ODATA", 7, 2, data, [])


# --- peers that break a rule, and the rule that must be named ----------------------------------------------


class Quick(PeerServer):
    POLL_BACKOFF = 20


def wrong_server(name, **how):
    """A server whose packets of one kind are changed on their way out."""

    class Wrong(Quick):
        def send(self, op, fields, tail=None, options=(), to=None):
            if op == name:
                if how.get("drop"):
                    return False
                fields, tail = how.get("fields", lambda f: f)(fields), how.get("tail", lambda t: t)(tail)
                options, to = how.get("options", options), how.get("to", to)
            return super().send(op, fields, tail, options, to or None)

    return Wrong


def at(index, change):
    return {"fields": lambda f: (*f[:index], change(f[index]), *f[index + 1 :])}


def flipped(tail):
    return tail[:-1] + bytes([tail[-1] ^ 1])


class Impatient(Quick):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.flooded = threading.Event()

    def pump(self):
        self.window = 200
        super().pump()
        if self.lead:
            self.flooded.set()


class Late(PeerClient):
    """Answers no data before the server has sent all that it sends without an answer."""

    sender: Impatient

    def on_odata(self, p):
        assert self.sender.flooded.wait(30)
        super().on_odata(p)


class Stubborn(Quick):
    MAX_SPM = 50


WRONG_SERVERS = [
    ("ClientTime", wrong_server("JOINACK", **at(4, lambda v: v + 1)), 0),
    ("JOINACK", wrong_server("JOINACK", **at(3, lambda v: v + 1)), 0),
    ("QCCSeqNo", wrong_server("QCC", **at(0, lambda v: 2 * v)), 0),
    ("POLLSeqNo", wrong_server("POLL", **at(0, lambda v: v + 1)), 0),
    ("SPMSeqNo", wrong_server("SPM", **at(0, lambda v: 3 * v)), 0),
    ("LeadODATASeqNo", wrong_server("SPM", **at(5, lambda v: v + 1)), 0),
    ("SPM", wrong_server("SPM", **at(2, lambda v: v + 40)), 0),
    ("SPM", wrong_server("SPM", drop=True), 0),
    ("MaxNoResponseSPM", Stubborn, {"mute": 20}),
    ("master", wrong_server("SPM", **at(1, lambda v: v + 1)), 0),
    ("SRVCIR", wrong_server("POLL", tail=lambda t: t + b"\0"), 0),
    ("TrailODATASeqNo", wrong_server("ODATA", **at(2, lambda v: 0)), 0),
    ("DATA", wrong_server("ODATA", tail=lambda t: t + b"\0"), 0),
    ("layout", wrong_server("QCC", options=[(0x0406, bytes(8))]), 0),
    ("FW_LEAD", wrong_server("ODATA", options=[(0x0406, struct.pack(">Q", 10**6))]), 0),
    ("RDATA", wrong_server("NCF", drop=True), {"loss": 0.1}),
    ("NCF", wrong_server("NCF", tail=lambda t: [*t, (1, 1)]), {"loss": 0.1}),
    ("RDATA", wrong_server("RDATA", tail=flipped), {"loss": 0.1}),
]


@pytest.mark.parametrize(("rule", "kind", "options"), WRONG_SERVERS)
def test_a_wrong_server_is_noticed(serve, rule, kind, options):
    server = serve(kind, data=DATA[:150_000])
    peer = client(server, first=True, alone=True, seed=1, **(options or {}))
    result = peer.run(40, until=lambda: rule in peer.violations.counts)
    assert rule in rules(result.violations)


def test_data_beyond_what_acknowledgements_opened_the_window_to_is_noticed(serve):
    server = serve(Impatient, data=DATA[:150_000])
    peer = client(server, Late, first=True, alone=True, seed=1)
    peer.sender = server
    result = peer.run(40, until=lambda: "CurrentWindowSize" in peer.violations.counts)
    assert "CurrentWindowSize" in rules(result.violations)


def wrong_client(name, **how):
    class Wrong(PeerClient):
        def send(self, op, fields, tail=None, options=()):
            if op == name:
                if how.get("drop"):
                    return False
                fields, tail = how.get("fields", lambda f: f)(fields), how.get("tail", lambda t: t)(tail)
                for _ in range(how.get("more", 0)):
                    super().send(op, fields, tail, options)
            return super().send(op, fields, tail, options)

    return Wrong


class Shouting(PeerClient):
    def on_spm(self, p):
        self.own.send(b"hello", self.plan.group)
        super().on_spm(p)


def no_range_merged(tail):
    return [(n, n) for start, end in tail for n in range(start, end + 1)] + [(1, 1)]


WRONG_CLIENTS = [
    ("JOIN", wrong_client("JOIN", fields=lambda f: b"A" * 32 + f[32:]), 0),
    ("ClientId", wrong_client("QCR", **at(0, lambda v: v + 1)), 0),
    ("QCR", wrong_client("QCR", **at(3, lambda v: v + 1)), 0),
    ("QCR", wrong_client("QCR", **at(2, lambda v: v + 9000)), 0),
    ("PROGRESS", wrong_client("QCR", tail=lambda t: t and t + b"\0"), 0),
    ("POLLACK", wrong_client("POLLACK", **at(1, lambda v: v + 1)), 0),
    ("POLLACK", wrong_client("POLLACK", more=1), 0),
    ("CNTCIR", wrong_client("POLLACK", tail=lambda t: t[:-9] + bytes([255]) + t[-8:]), 0),
    ("CNTCIR", wrong_client("POLLACK", tail=lambda t: wire.build_ma(wire.CNTCIR, t[3:8] + bytes(2))), 0),
    ("ACK", wrong_client("ACK", more=1), 0),
    ("ACK", wrong_client("ACK", **at(1, lambda v: v + 20)), 0),
    ("ACK", wrong_client("ACK", **at(2, lambda v: v + 1)), 0),
    ("ACK", wrong_client("ACK", **at(4, lambda v: 10**17)), 0),
    ("NACK", wrong_client("NACK", tail=no_range_merged), {"loss": 0.1}),
    ("LEAVE", wrong_client("LEAVE", more=1), 0),
    ("LEAVE", wrong_client("LEAVE", **at(1, lambda v: 3)), 0),
    ("destination", Shouting, 0),
]


@pytest.mark.parametrize(("rule", "kind", "options"), WRONG_CLIENTS)
def test_a_wrong_client_is_noticed(serve, rule, kind, options):
    server = serve(Quick, data=DATA[:150_000])
    client(server, kind, seed=1, **(options or {})).run(40, until=lambda: rule in server.collected.counts)
    until(server, lambda: rule in server.collected.counts)
