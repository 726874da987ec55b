from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("256M", 256 << 20),
        ("256m", 256 << 20),
        ("1.5G", 3 << 29),
        (".5k", 512),
        ("64KiB", 65536),
        ("64KB", 64000),
        ("10b", 10),
        (" 2 T ", 2 << 40),
    ],
)
def test_sizes(text, size):
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1M", "1X", "1e9", "256 M B", "1.M", "one", "9" * 400, "\u0661M\n2"]
)
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="256M"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("900M", 112.5e6),
        ("900m", 112.5e6),
        ("900Mbit/s", 112.5e6),
        ("900Mbps", 112.5e6),
        ("900 Mb/s", 112.5e6),
        ("1G", 125e6),
        ("8000", 1000.0),
        ("112MB/s", 112e6),
        ("112MB", 112e6),
        ("1MiB/s", 1048576.0),
        ("800kbit", 1e5),
        ("2.5G", 312.5e6),
        ("1000B", 1000.0),
    ],
)
def test_rates_are_bits_per_second_unless_they_say_bytes(text, rate):
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-5M", "900X", "5iB", "1M/s", "900MBIT/S"])
def test_what_is_no_rate_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="900M"):
        units.parse_rate(text)


@pytest.mark.parametrize("text", ["0", "0M", "0.0MB/s"])
def test_a_rate_of_nothing_is_refused(text):
    with pytest.raises(ValueError, match="no limit"):
        units.parse_rate(text)


@pytest.mark.parametrize(
    ("text", "share"),
    [("1%", 0.01), ("0.5 %", 0.005), ("100%", 1.0), ("0.01", 0.01), ("0", 0.0), ("0%", 0.0)],
)
def test_shares(text, share):
    assert units.parse_share(text) == pytest.approx(share)


def test_a_bare_one_is_refused_since_it_could_mean_percent():
    with pytest.raises(ValueError, match="write 1% for percent"):
        units.parse_share("1")


@pytest.mark.parametrize("text", ["", "%", "-1%", "half", "1%%"])
def test_what_is_no_share_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"1% or 0\.01"):
        units.parse_share(text)


def test_more_than_everything_is_refused():
    with pytest.raises(ValueError, match="at most 100%"):
        units.parse_share("101%")


@pytest.mark.parametrize(
    ("text", "ports"),
    [("64001-64010", (64001, 64010)), ("64001 - 64010", (64001, 64010)), ("5000", (5000, 5000))],
)
def test_port_ranges(text, ports):
    assert units.parse_ports(text) == ports


@pytest.mark.parametrize("text", ["", "-", "1-", "64010-64001", "0-5", "5-65536", "a-b", "1-2-3"])
def test_what_is_no_port_range_is_refused(text):
    with pytest.raises(ValueError, match="range of ports"):
        units.parse_ports(text)


@settings(max_examples=60)
@given(st.text(max_size=12))
def test_no_text_makes_a_parser_fail_otherwise(text):
    for parse in (units.parse_size, units.parse_rate, units.parse_share, units.parse_ports):
        with contextlib.suppress(ValueError):
            parse(text)
