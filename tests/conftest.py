"""Lets tests of every directory import what they share, `tests/support`, by its modules' own names."""

import functools
import signal
import sys
from pathlib import Path

import pytest

from wdstransport.protocol.parameters import ServerParameters

sys.path.insert(0, str(Path(__file__).parent / "support"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background deaf to SIGINT, which is what some tests are about.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def quick(monkeypatch):
    """Servers that wait less than the documents say; the order of what happens stays the same."""
    parameters = functools.partial(
        ServerParameters, poll_back_off=0.02, query_margin=0.02, data_linger=0.1, empty_query_wait=0.05
    )
    monkeypatch.setattr("wdstransport.net.serving.ServerParameters", parameters)
