from __future__ import annotations

import pytest

import wdstransport


def make_client(client_id: int = 1, **changes: object) -> wdstransport.ClientStatistics:
    fields: dict[str, object] = {
        "client_id": client_id,
        "name": f"pc-{client_id}",
        "address": ("10.0.0.7", 4000 + client_id),
        "mac": "02:00:00:00:00:01",
        "state": "active",
        "progress": 0.5,
        "rtt": 0.001,
        "loss": 0.01,
        "seconds_in_session": 10.0,
    }
    return wdstransport.ClientStatistics(**{**fields, **changes})


def make_session(
    *clients: wdstransport.ClientStatistics, **changes: object
) -> wdstransport.SessionStatistics:
    fields: dict[str, object] = {
        "session_id": 1,
        "namespace": "images",
        "content": "win.wim",
        "size": 1_000_000_000,
        "block_size": 1385,
        "total_blocks": 722_022,
        "state": "sending",
        "round": 1,
        "window": 44,
        "data_bytes": 600_000_000,
        "repair_bytes": 10_000_000,
        "data_packets": 433_000,
        "repair_packets": 7_000,
        "nacks": 5,
        "acks": 9_000,
        "bytes_per_second": 100_000_000.0,
        "completed": 0,
        "clients": clients,
        "dropped": {"checksum": 2},
    }
    return wdstransport.SessionStatistics(**{**fields, **changes})


def make_statistics(
    *sessions: wdstransport.SessionStatistics, **changes: object
) -> wdstransport.ServerStatistics:
    fields: dict[str, object] = {
        "seconds": 12.0,
        "sessions": sessions,
        "requests": 3,
        "refused": 0,
        "completed": 0,
        "dropped": {},
        "features": {"segmentation": "on"},
    }
    return wdstransport.ServerStatistics(**{**fields, **changes})


@pytest.fixture(name="client")
def client_factory():
    return make_client


@pytest.fixture(name="session")
def session_factory():
    return make_session


@pytest.fixture(name="statistics")
def statistics_factory():
    return make_statistics


@pytest.fixture
def server_statistics() -> wdstransport.ServerStatistics:
    return make_statistics(make_session(make_client(1), make_client(2, progress=0.25)))
