"""The lab of network namespaces: what it builds, and that nothing of it stays."""

import os
import subprocess

import pytest
from lab import Lab, LabError, Loopback, missing_tools, remove_labs

LABEL = f"test{os.getpid()}"

needs_root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}"),
]


def root(test):
    for mark in needs_root:
        test = mark(test)
    return test


def namespaces():
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in done.stdout.splitlines() if LABEL in line}


def output(words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@root
def test_every_host_has_its_address_and_nothing_stays():
    with Lab(2, label=LABEL) as lab:
        assert len(namespaces()) == 4
        for host in (lab.server, *lab.receivers):
            assert f"{host.address}/24" in output(host.words("ip", "-o", "address"))
        assert lab.server.sent_bytes() is not None
    assert not namespaces()


@root
@pytest.mark.parametrize("offload", [False, True])
def test_device_cuts_frames_only_with_offload(offload):
    with Lab(1, offload=offload, label=LABEL) as lab:
        features = output(lab.server.words("ethtool", "-k", "eth0"))
        assert f"tx-udp-segmentation: {'on' if offload else 'off'}" in features


@root
@pytest.mark.parametrize(("point", "hook"), [("wire", "egress"), ("host", "ingress")])
def test_loss_is_a_rule_where_it_was_asked_for(point, hook):
    with Lab(1, loss=0.05, loss_point=point, label=LABEL) as lab:
        inside = output(lab.receivers[0].words("nft", "list", "ruleset"))
        switch = output(["ip", "netns", "exec", f"wds-{LABEL}-switch", "nft", "list", "ruleset"])
        with_rules, without = (switch, inside) if point == "wire" else (inside, switch)
        assert f"hook {hook}" in with_rules
        assert "mod 1000000 < 50000 drop" in with_rules
        assert "drop" not in without


@root
def test_lab_that_cannot_be_built_leaves_nothing():
    with pytest.raises(LabError, match="mtu"):
        Lab(1, mtu=1, label=LABEL).up()
    assert not namespaces()


@root
def test_abandoned_labs_are_told_from_others():
    with Lab(1, label=LABEL):
        removed = remove_labs(only_abandoned=True)
        assert not any(LABEL in name for name in removed)
        assert len(namespaces()) == 3


@pytest.mark.parametrize("changes", [{"receivers": 0}, {"receivers": 201}, {"loss": 1.0}, {"loss": -0.1}])
def test_impossible_lab_is_refused(changes):
    with pytest.raises(LabError):
        Lab(**{"receivers": 1, **changes})


def test_loopback_runs_commands_as_they_are():
    with Loopback(3) as place:
        assert len(place.receivers) == 3
        assert place.server.words("true", "x") == ["true", "x"]
        assert place.server.sent_bytes() is None
