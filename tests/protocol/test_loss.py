"""The loss filter and the throughput estimate."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol_scripts import STEADY

from wdstransport.protocol.loss import LossFilter, scaled_loss, throughput, unscaled_loss

WEIGHT = 500 / 65536


def test_rate_is_zero_at_first():
    assert LossFilter().rate == 0.0


def test_one_loss_moves_the_rate_a_131st_of_the_way_to_one():
    loss = LossFilter()
    loss.lost()
    assert loss.rate == pytest.approx(WEIGHT)
    loss.lost()
    assert loss.rate == pytest.approx(WEIGHT + (1 - WEIGHT) * WEIGHT)


def test_one_arrival_moves_the_rate_as_far_to_zero():
    loss = LossFilter()
    loss.rate = 0.5
    loss.arrived()
    assert loss.rate == pytest.approx(0.5 * (1 - WEIGHT))


def test_no_packets_and_fewer_change_nothing():
    loss = LossFilter()
    loss.rate = 0.1  # 1 - (1 - 0.1) is another number
    for count in (0, -3):
        loss.lost(count)
        loss.arrived(count)
    assert loss.rate == 0.1


def test_rate_settles_at_the_share_of_packets_lost():
    loss = LossFilter()
    for _ in range(2000):
        loss.arrived(9)
        loss.lost(1)
    assert loss.rate == pytest.approx(0.1, abs=0.01)


@given(st.floats(0, 1), st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=10))
@STEADY
def test_many_packets_at_once_count_as_many_one_by_one(start, steps):
    at_once, one_by_one = LossFilter(), LossFilter()
    at_once.rate = one_by_one.rate = start
    for lost, count in steps:
        (at_once.lost if lost else at_once.arrived)(count)
        for _ in range(count):
            rate = one_by_one.rate
            one_by_one.rate = rate + WEIGHT * (1 - rate) if lost else rate - WEIGHT * rate
    assert at_once.rate == pytest.approx(one_by_one.rate, abs=1e-9)
    assert 0 <= at_once.rate <= 1


def test_astronomic_gap_is_a_rate_of_one():
    loss = LossFilter()
    loss.lost(2**64)
    assert loss.rate == 1.0


def test_wire_carries_the_rate_times_ten_to_the_sixteenth():
    assert scaled_loss(0.0) == 0
    assert scaled_loss(0.25) == 25 * 10**14
    assert scaled_loss(1.0) == 10**16
    assert scaled_loss(1.6e-16) == 2
    assert scaled_loss(1.5) == 10**16
    assert scaled_loss(-0.5) == 0


def test_wire_rate_above_one_reads_as_one():
    assert unscaled_loss(10**15) == pytest.approx(0.1)
    assert unscaled_loss(2**64 - 1) == 1.0


def test_throughput_is_the_documents_formula_with_its_brackets_closed():
    # p = 0.01: sqrt 0.1; 1 + 0.09 x (1 + 0.0032) = 1.090288
    assert throughput(0.1, 0.01) == pytest.approx(1 / (0.1 * 0.1 * 1.090288))
    assert throughput(0.2, 0.04) == pytest.approx(1 / (0.2 * 0.2 * (1 + 0.36 * (1 + 32 * 0.0016))))


def test_throughput_without_loss_is_infinite():
    assert throughput(0.1, 0.0) == math.inf
    assert throughput(0.0, 0.1) == math.inf


@given(st.floats(0.001, 10), st.floats(0.0001, 0.9), st.floats(1.01, 1.1))
@STEADY
def test_more_loss_or_more_delay_is_less_throughput(rtt, loss, factor):
    assert throughput(rtt, loss * factor) < throughput(rtt, loss)
    assert throughput(rtt * factor, loss) < throughput(rtt, loss)
