from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.observe import progress


def test_a_meter_without_samples_has_no_rate():
    assert progress.RateMeter().rate(1.0) is None


def test_a_meter_with_one_sample_at_the_same_moment_has_no_rate():
    meter = progress.RateMeter()
    meter.add(1.0, 100)
    assert meter.rate(1.0) is None


def test_a_steady_counter_gives_its_rate():
    meter = progress.RateMeter(window=5)
    for second in range(20):
        meter.add(float(second), second * 100)
    assert meter.rate(19.0) == pytest.approx(100)


def test_only_the_window_counts_after_a_change_of_speed():
    meter = progress.RateMeter(window=5)
    for second in range(10):
        meter.add(float(second), second * 1000)
    for second in range(10, 20):
        meter.add(float(second), 9000 + (second - 9) * 10)
    assert meter.rate(19.0) == pytest.approx(10)


def test_a_stalled_counter_sinks_to_zero():
    meter = progress.RateMeter(window=5)
    meter.add(0.0, 0)
    meter.add(1.0, 1000)
    assert meter.rate(2.0) == pytest.approx(500)
    assert meter.rate(100.0) == 0


def test_a_counter_that_goes_back_starts_a_new_measurement():
    meter = progress.RateMeter(window=5)
    meter.add(0.0, 1000)
    meter.add(1.0, 2000)
    meter.add(2.0, 0)
    meter.add(3.0, 50)
    assert meter.rate(3.0) == pytest.approx(50)


def test_a_clock_that_goes_back_starts_a_new_measurement():
    meter = progress.RateMeter(window=5)
    meter.add(10.0, 1000)
    meter.add(1.0, 2000)
    meter.add(2.0, 2050)
    assert meter.rate(2.0) == pytest.approx(50)


def test_memory_is_bounded_when_fed_very_often():
    meter = progress.RateMeter(window=1)
    for step in range(20_000):
        meter.add(step / 10_000, step)
    assert len(meter._samples) < 200
    assert meter.rate(1.9999) == pytest.approx(10_000, rel=0.05)


@pytest.mark.parametrize("window", [0, -1, math.nan])
def test_a_window_of_nothing_is_refused(window):
    with pytest.raises(ValueError, match="measures nothing"):
        progress.RateMeter(window)


@settings(max_examples=50)
@given(
    steps=st.lists(
        st.tuples(st.floats(0.001, 3), st.integers(0, 10**9)),
        min_size=1,
        max_size=100,
    )
)
def test_a_rate_never_leaves_the_range_of_the_speeds_it_was_fed(steps):
    meter = progress.RateMeter(window=2)
    now, total, fastest = 0.0, 0, 0.0
    meter.add(now, total)
    for pause, grown in steps:
        now += pause
        total += grown
        fastest = max(fastest, grown / pause)
        meter.add(now, total)
        rate = meter.rate(now)
        assert rate is not None
        assert 0 <= rate <= fastest * 1.0001 + 1e-6


@pytest.mark.parametrize(
    ("missing", "rate", "seconds"),
    [
        (0, None, 0.0),
        (-5, 1.0, 0.0),
        (100, 50.0, 2.0),
        (100, 0.0, None),
        (100, None, None),
        (1e300, 1e-300, None),
    ],
)
def test_remaining_seconds(missing, rate, seconds):
    assert progress.remaining_seconds(missing, rate) == seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (4_120_000_000, "4.12 GB"),
        (268_435_456, "268 MB"),
        (2e24, "2000000 EB"),
    ],
)
def test_format_bytes_shows_three_figures(count, text):
    assert progress.format_bytes(count) == text


@pytest.mark.parametrize(("rate", "text"), [(None, "-"), (112_600_000, "112.6 MB/s"), (40_000, "0.0 MB/s")])
def test_format_rate_is_always_in_megabytes(rate, text):
    assert progress.format_rate(rate) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (0.29, "29.0 %"), (0.9999, "99.9 %"), (1, "100 %"), (1.2, "100 %"), (-0.1, "0.0 %")],
)
def test_format_share_says_100_percent_for_the_whole_only(share, text):
    assert progress.format_share(share) == text


def test_format_loss_has_two_decimals():
    assert progress.format_loss(0.0102) == "1.02 %"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (math.inf, "-"),
        (-3, "0:00"),
        (0, "0:00"),
        (0.2, "0:01"),
        (59.5, "1:00"),
        (42, "0:42"),
        (3723, "1:02:03"),
        (76 * 3600, "3 d 4 h"),
    ],
)
def test_format_duration_rounds_up(seconds, text):
    assert progress.format_duration(seconds) == text
