"""Both our sides against an independent implementation of the same documents: whole copies, no violation."""

import random
import re
import threading

import pytest
import trio
from peer import PeerClient, PeerServer

import wdstransport

SEED = 20261120
LOSSES = [0.0, 0.02, 0.1]
SECURITY = ["checksum", "none"]


def broken_rules(violations):
    """What the checker saw, less what depends on how busy this machine is: answers that took too many ms."""
    return [each for each in violations if not re.search(r"\d ms\b", each)]


def image(size: int) -> bytes:
    return random.Random(SEED).randbytes(size)


def run_clients(clients):
    """Run peer clients in threads; their results in order."""
    results = [None] * len(clients)

    def work(place, client, delay):
        if delay is not None:
            delay.wait(30)
        results[place] = client.run(60)

    threads = [
        threading.Thread(target=work, args=(place, client, delay), daemon=True)
        for place, (client, delay) in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return results


async def serve_peers(tmp_path, data, count, *, block_size, loss, security, late=False):
    (tmp_path / "big.img").write_bytes(data)
    halfway = threading.Event()
    namespace = wdstransport.DirectoryNamespace("images", tmp_path)
    async with wdstransport.TransportServer(
        [namespace],
        interface="127.0.0.1",
        port=0,
        block_size=block_size,
        security=security,
        min_clients=count if not late else 1,
        rate=2_000_000 if late else None,
    ) as server:
        address = ("127.0.0.1", server.port)
        clients = []
        for place in range(count):
            client = PeerClient(
                address,
                "big.img",
                "images",
                security,
                loss,
                seed=f"{SEED} {place}",
                first=not late and place == 0 and count == 1,
                alone=count == 1,
                name=f"PEER{place}",
            )
            clients.append((client, halfway if late and place else None))
        async with trio.open_nursery() as nursery:
            if late:
                nursery.start_soon(_signal_halfway, server, len(data), halfway)
            results = await trio.to_thread.run_sync(run_clients, clients)
            nursery.cancel_scope.cancel()
        return results, server.statistics()


async def _signal_halfway(server, size, halfway):
    while True:
        sessions = server.statistics().sessions
        if sessions and sessions[0].data_bytes * 2 > size:
            halfway.set()
            return
        await trio.lowlevel.checkpoint()
        await trio.sleep(0)


@pytest.mark.parametrize("security", SECURITY)
@pytest.mark.parametrize("block_size", [1385, 8785])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("count", [1, 3])
async def test_independent_clients_get_the_whole_image_from_our_server(
    tmp_path, count, loss, block_size, security
):
    data = image(300_123)
    results, _ = await serve_peers(tmp_path, data, count, block_size=block_size, loss=loss, security=security)
    for result in results:
        assert result.status == "complete", (SEED, result.log[-20:])
        assert result.data == data, SEED
        assert broken_rules(result.violations) == [], SEED


async def test_an_independent_client_that_joins_half_way_gets_the_rest_and_then_what_it_missed(tmp_path):
    data = image(900_321)
    results, statistics = await serve_peers(
        tmp_path, data, 2, block_size=1385, loss=0.0, security="checksum", late=True
    )
    for result in results:
        assert result.status == "complete", (SEED, result.log[-20:])
        assert result.data == data
        assert broken_rules(result.violations) == []
    assert statistics.sessions[0].data_bytes <= 1.65 * len(data)


@pytest.mark.parametrize("security", SECURITY)
@pytest.mark.parametrize("block_size", [1385, 8785])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("fw_lead", [False, True])
async def test_our_clients_get_the_whole_image_from_an_independent_server(
    tmp_path, count, loss, block_size, security, fw_lead
):
    data = image(300_123)
    server = PeerServer(
        data,
        "big.img",
        "images",
        initiation_port=0,
        mode=security,
        block_size=block_size,
        loss=loss,
        seed=SEED,
        fw_lead=fw_lead,
    ).start()
    try:
        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                for place in range(count):
                    nursery.start_soon(_receive, server, tmp_path / f"copy{place}", security)
    finally:
        await trio.to_thread.run_sync(server.stop)
    for place in range(count):
        assert (tmp_path / f"copy{place}").read_bytes() == data, SEED
    assert broken_rules(server.violations) == [], SEED


async def _receive(server, target, security):
    await wdstransport.receive(
        "big.img",
        target,
        server="127.0.0.1",
        port=server.initiation_port,
        interface="127.0.0.1",
        security=security,
    )


async def test_an_independent_client_is_refused_what_is_not_there(tmp_path):
    (tmp_path / "there.img").write_bytes(b"x")
    namespace = wdstransport.DirectoryNamespace("images", tmp_path)
    async with wdstransport.TransportServer([namespace], interface="127.0.0.1", port=0) as server:
        address = ("127.0.0.1", server.port)
        clients = [
            (PeerClient(address, "gone.img", "images"), None),
            (PeerClient(address, "there.img", "other"), None),
            (PeerClient(address, "../there.img", "images"), None),
        ]
        results = await trio.to_thread.run_sync(run_clients, clients)
    assert [result.status for result in results] == ["refused"] * 3
    assert all(broken_rules(result.violations) == [] for result in results)
