import os
import socket
import sys
from types import SimpleNamespace

import pytest

from wdstransport.net import offload

PROBES = [offload.probe_segmentation, offload.probe_merging]


def recent_linux():
    return sys.platform.startswith("linux") and tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 4)


@pytest.mark.skipif(not recent_linux(), reason="UDP_SEGMENT and UDP_GRO need a Linux kernel")
@pytest.mark.parametrize("probe", PROBES)
def test_probe_finds_the_feature_on_a_kernel_that_has_it(probe):
    assert probe(socket.AF_INET)


@pytest.mark.parametrize("probe", PROBES)
def test_probe_says_no_on_another_system(probe, monkeypatch):
    monkeypatch.setattr(offload, "sys", SimpleNamespace(platform="darwin"))
    assert not probe(socket.AF_INET)


@pytest.mark.parametrize("probe", PROBES)
def test_probe_says_no_when_the_kernel_does_not_know_the_option(probe, monkeypatch):
    monkeypatch.setattr(offload, "UDP_SEGMENT", 9999)
    monkeypatch.setattr(offload, "UDP_GRO", 9999)
    assert not probe(socket.AF_INET)


@pytest.mark.parametrize("probe", PROBES)
def test_probe_says_no_when_the_family_is_missing(probe, monkeypatch):
    def refuse(*_):
        raise OSError(97, "Address family not supported")

    monkeypatch.setattr(offload.socket, "socket", refuse)
    assert not probe(socket.AF_INET6)


def test_merging_is_off_where_it_cannot_be_turned_on(monkeypatch, sockets):
    sock = sockets(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    monkeypatch.setattr(offload, "UDP_GRO", 9999)
    assert not offload.set_merging(sock)
    monkeypatch.setattr(offload, "sys", SimpleNamespace(platform="win32"))
    assert not offload.set_merging(sock)


def test_merged_size_is_found_among_foreign_items():
    merged = (socket.IPPROTO_UDP, offload.UDP_GRO, (1472).to_bytes(4, sys.byteorder))
    foreign = (socket.SOL_SOCKET, offload.UDP_GRO, b"\1\0\0\0")
    assert offload.merged_size([foreign, merged]) == 1472
    assert offload.merged_size([foreign]) == 0
