"""Packets on their way out."""

import pytest

from wdstransport.protocol.outbox import milliseconds


@pytest.mark.parametrize(
    ("seconds", "field"),
    [
        (-1.0, 0),
        (0.0, 0),
        (0.0004, 0),
        (0.0006, 1),
        (1.0, 1000),
        (65.535, 65535),
        (65.536, 65535),
        (1e9, 65535),
    ],
)
def test_times_are_whole_milliseconds_within_their_field(seconds, field):
    assert milliseconds(seconds) == field
