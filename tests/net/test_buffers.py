import errno
import socket
from types import SimpleNamespace

import pytest

from wdstransport.net import buffers

BOTH = [socket.SO_RCVBUF, socket.SO_SNDBUF]


@pytest.fixture
def sock(sockets):
    return sockets(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


class Buffered:
    """A socket with a limit and, for Linux, a privilege."""

    def __init__(self, limit, refused=(), doubles=True):
        self.size, self.limit, self.refused, self.doubles = 4096, limit, refused, doubles

    def setsockopt(self, level, option, value):
        if option in self.refused:
            raise OSError(self.refused[option], "refused")
        self.size = value if option in buffers._SO_FORCE.values() else min(value, self.limit)

    def getsockopt(self, level, option):
        return self.size * (2 if self.doubles else 1)


@pytest.mark.parametrize("which", BOTH)
def test_small_wish_is_granted_and_a_smaller_one_takes_nothing_away(sock, which):
    got = buffers.set_buffer(sock, which, 150_000)
    assert got >= 150_000
    assert buffers.set_buffer(sock, which, 1) == got


@pytest.mark.parametrize("which", BOTH)
def test_force_goes_past_the_limit(which):
    assert buffers.set_buffer(Buffered(limit=10_000), which, 1 << 20) == 1 << 20


@pytest.mark.parametrize("which", BOTH)
def test_without_the_privilege_the_limit_holds(which):
    refused = {buffers._SO_FORCE[which]: errno.EPERM}
    assert buffers.set_buffer(Buffered(10_000, refused), which, 1 << 20) == 10_000


def test_system_that_refuses_too_much_keeps_what_it_had(monkeypatch):
    monkeypatch.setattr(buffers, "sys", SimpleNamespace(platform="darwin"))
    refusing = Buffered(10_000, {socket.SO_RCVBUF: errno.ENOBUFS}, doubles=False)
    assert buffers.set_buffer(refusing, socket.SO_RCVBUF, 1 << 20) == 4096


def test_other_systems_report_the_size_itself(monkeypatch):
    monkeypatch.setattr(buffers, "sys", SimpleNamespace(platform="darwin"))
    assert buffers.set_buffer(Buffered(10_000, doubles=False), socket.SO_RCVBUF, 8000) == 8000


def test_warning_names_the_buffer_and_the_limit_that_helps_and_only_when_capped():
    assert buffers.buffer_warning(10, 10) is None
    receiving = buffers.buffer_warning(212992, 32 << 20)
    assert "receive buffer at 208 KiB of 32768 KiB" in receiving
    assert "net.core.rmem_max=33554432" in receiving
    sending = buffers.buffer_warning(212992, 4 << 20, socket.SO_SNDBUF)
    assert "send buffer at 208 KiB of 4096 KiB" in sending
    assert "net.core.wmem_max=4194304" in sending
