"""Packets on their way out."""

import pytest

from wdstransport.protocol.outbox import Outbox, milliseconds
from wdstransport.wire.transport import Poll, Qcc


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


def test_packets_leave_once_each_and_in_the_order_in_which_they_were_put():
    outbox = Outbox()
    one, two = ("10.0.0.1", 1), ("10.0.0.2", 2)
    queued = [(Qcc(1, 0), None), (Poll(1, 0, b""), one), (Qcc(1, 0), one), (Qcc(1, 0), two), (Qcc(1, 0), one)]
    for packet, to in queued:
        outbox.put(packet, to)
    assert outbox.drain() == queued
    assert outbox.drain() == []
    outbox.put(Qcc(2, 0))
    assert outbox.drain() == [(Qcc(2, 0), None)]
