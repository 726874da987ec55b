"""Sizes, rates, shares and port ranges as people type them.

Every parser raises `ValueError` with a message that shows what would have been right.
"""

from __future__ import annotations

import re

__all__ = ["parse_ports", "parse_rate", "parse_share", "parse_size"]

_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
# Bounded: a number that no float holds is a typing error, and not worth an exception of its own.
_NUMBER = r"(?P<number>[0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18})"
_SIZE = re.compile(rf"{_NUMBER}\s*(?P<prefix>[kmgt]?)(?P<base>ib|b|)", re.IGNORECASE)
_RATE = re.compile(
    rf"{_NUMBER}\s*(?P<prefix>[kKmMgGtT]?)(?P<binary>i?)(?P<unit>bit/s|bits/s|bps|b/s|bit|b|B/s|Bps|B|)"
)
_LEAST_RATE = 1000.0
"""Bytes per second. Less is a prefix that was forgotten."""
_SHARE = re.compile(rf"{_NUMBER}\s*(?P<percent>%?)")
_PORTS = re.compile(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?")


def parse_size(text: str) -> int:
    """A size in bytes: `256M`, `1.5GiB`, `64KB`, `4096`.

    A bare prefix and `KiB` count in 1024s, as `dd` and `truncate` do; `KB` counts in 1000s.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 256M, 1.5G or 4096")
    base = 1000 if match["base"].lower() == "b" else 1024
    return int(float(match["number"]) * float(base) ** _POWER[match["prefix"].lower()])


def parse_rate(text: str) -> float:
    """A rate in bytes per second: `900M` is 900 Mbit/s, as on a switch; `112MB/s` is bytes.

    Prefixes count in 1000s, `Mi` in 1024s. Bits and bytes differ by case only: `b` or nothing, and `B`.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None or (match["binary"] and not match["prefix"]):
        raise ValueError(
            f"{text!r} is not a rate; write for example 900M (bits per second) or 112MB/s (bytes)"
        )
    base = 1024 if match["binary"] else 1000
    rate = float(match["number"]) * float(base) ** _POWER[match["prefix"].lower()]
    if not match["unit"].startswith("B"):
        rate /= 8
    if rate <= 0:
        raise ValueError("a rate of 0 sends nothing; leave the option out for no limit")
    if rate < _LEAST_RATE:
        raise ValueError(
            f"{text.strip()!r} is less than 8 kbit/s, and an image would take for ever; a bare number is "
            "bits per second: write for example 10M"
        )
    return rate


def parse_share(text: str) -> float:
    """A share from 0 to 1: `1%`, `0.5 %`, or `0.01`.

    A bare number from 1 on is refused: `1` could mean one percent or all of it.
    """
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a share; write for example 1% or 0.01")
    number = float(match["number"])
    if match["percent"]:
        number /= 100
    elif number >= 1:
        raise ValueError(f"{text!r} could be percent or a share; write {text.strip()}% for percent")
    if number > 1:
        raise ValueError(f"{text!r} is more than everything; a share is at most 100%")
    return number


def parse_ports(text: str) -> tuple[int, int]:
    """A range of UDP ports, both ends included: `64001-64010`, or one port."""
    match = _PORTS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a range of ports; write for example 64001-64010")
    low = int(match[1])
    high = int(match[2] or match[1])
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{text!r} is not a range of ports: they go from 1 to 65535, the lower one first")
    return low, high
