import math
import random
import socket
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.errors import UsageError
from wdstransport.net import pacing
from wdstransport.net.pacing import Pacer, set_kernel_pacing


def test_no_rate_means_no_waiting():
    pacer = Pacer(None)
    pacer.spend(1 << 40, 5.0)
    assert pacer.ready_at(5.0) == 5.0
    assert pacer.burst_bytes is None


@pytest.mark.parametrize("rate", [0, -1.0, math.inf, math.nan])
def test_impossible_rate_is_refused(rate):
    with pytest.raises(UsageError):
        Pacer(rate)


@pytest.mark.parametrize("burst", [-0.001, 1.0, math.nan])
def test_impossible_burst_is_refused(burst):
    with pytest.raises(UsageError):
        Pacer(1e6, burst)


def test_burst_bytes_are_what_the_rate_makes_of_the_burst():
    assert Pacer(1e6, 0.001).burst_bytes == 1000
    assert Pacer(10, 0.001).burst_bytes == 1
    assert Pacer(1e6, 0.0).burst_bytes == 1
    assert Pacer(1e6, 0.05).burst_bytes == 50_000


@settings(max_examples=50, deadline=None)
@given(
    rate=st.floats(1e4, 1e10),
    batch=st.integers(1, 65507),
    lateness=st.floats(0, 0.001),
    start=st.floats(0, 1e7),
)
def test_long_run_rate_is_exact_however_late_the_wake_ups(rate, batch, lateness, start):
    pacer = Pacer(rate)
    chance = random.Random(1)
    now, sent = start, 0
    while sent < max(rate / 2, 400 * batch) and sent < 4000 * batch:
        ready = pacer.ready_at(now)
        now = max(now, ready) + (chance.uniform(0, lateness) if ready > now else 0)
        pacer.spend(batch, now)
        sent += batch
    # What has been sent is paid for by the time the next batch may leave.
    elapsed = pacer.ready_at(now) - start
    tolerance = 0.01 * elapsed + 0.003
    assert abs(elapsed - sent / rate) <= tolerance


@settings(max_examples=50, deadline=None)
@given(
    rate=st.floats(1e4, 1e10),
    batches=st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 65507)), min_size=2, max_size=40),
    burst=st.sampled_from([0.0, 0.001, 0.002, 0.01]),
)
def test_bytes_in_any_time_stay_within_the_stated_bounds(rate, batches, burst):
    pacer = Pacer(rate, burst)
    now, log = 1000.0, []
    for pause, size in batches:
        now = pacer.ready_at(now + pause)
        pacer.spend(size, now)
        log.append((now, size))
    # The clock's own grain: a float near 1000 has steps of 1e-13 seconds.
    largest = max(size for _, size in log) + rate * 1e-11
    for first in range(len(log)):
        total = 0
        for at, size in log[first:]:
            total += size
            span = at - log[first][0]
            assert total <= rate * (span + 0.05) * 1.000001 + largest
            assert total <= 1.125 * rate * (span + burst) * 1.000001 + largest


def test_arrears_are_made_good_at_an_eighth_above_the_rate():
    pacer = Pacer(1000.0)
    pacer.spend(100, 0.0)
    late = pacer.ready_at(0.0) + 0.04
    pacer.spend(100, late)
    first = pacer.ready_at(late)
    pacer.spend(100, first)
    assert pacer.ready_at(first) - first == pytest.approx(0.1 / 1.125)
    assert first - late == pytest.approx(0.1 / 1.125 - 0.002)


def test_long_pause_earns_no_more_than_one_burst():
    pacer = Pacer(1e6, 0.002)
    pacer.spend(1000, 0.0)
    now, sent = 100.0, 0
    while pacer.ready_at(now) == now:
        pacer.spend(100, now)
        sent += 100
    assert sent <= 1.125 * 2000 + 100


def test_kernel_is_given_the_rate_or_says_no(sockets):
    sock = sockets(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    try:
        sock.setsockopt(socket.SOL_SOCKET, pacing.SO_MAX_PACING_RATE, 1_000_000)
    except OSError:
        assert not set_kernel_pacing(sock, 1e6)
        return
    for rate, granted in ((123_456, 123_456), (0.5, 1), (1.0, 1)):
        assert set_kernel_pacing(sock, rate)
        assert sock.getsockopt(socket.SOL_SOCKET, pacing.SO_MAX_PACING_RATE) == granted
    assert isinstance(set_kernel_pacing(sock, 20e9), bool)
    assert set_kernel_pacing(sock, None)
    # All ones in as many bytes as this kernel has for a rate: anything less is a limit.
    assert set(sock.getsockopt(socket.SOL_SOCKET, pacing.SO_MAX_PACING_RATE, 8)) == {0xFF}


def test_kernel_pacing_is_no_where_there_is_none(monkeypatch, sockets):
    sock = sockets(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    monkeypatch.setattr(pacing, "SO_MAX_PACING_RATE", 9999)
    assert not set_kernel_pacing(sock, 1e6)
    monkeypatch.setattr(pacing, "sys", SimpleNamespace(platform="darwin"))
    assert not set_kernel_pacing(sock, 1e6)
