"""What the tests of sockets share: waiting without sleeping, scripted sockets, a network of one's own."""

import ctypes
import os
import select
import shutil
import socket
import subprocess
import threading

import pytest

CLONE_NEWNET = 0x40000000


@pytest.fixture
def readable():
    """Wait until a socket has something to read; fail when it never has."""

    def wait(sock, seconds=10):
        ready, _, _ = select.select([sock], [], [], seconds)
        assert ready, "nothing arrived"
        return sock

    return wait


@pytest.fixture
def sockets():
    """Opened sockets, closed at the end: `sockets(open_..., ...)`, or `sockets(sock)`."""
    opened = []

    def keep(what, *args, **kwargs):
        result = what(*args, **kwargs) if callable(what) else what
        opened.append(getattr(result, "sock", result))
        return result

    yield keep
    for sock in opened:
        sock.close()


class ScriptedSocket:
    """A UDP socket whose calls end as the script says: None for success, or an errno."""

    def __init__(self, *script, family=socket.AF_INET, refuses_segments=None):
        self.family = family
        self.script = list(script)
        self.refuses_segments = refuses_segments
        self.sent = []
        self.calls = []

    def _next(self):
        outcome = self.script.pop(0) if self.script else None
        if outcome is not None:
            raise OSError(outcome, os.strerror(outcome))

    def sendto(self, data, address):
        self.calls.append((len(data), address))
        self._next()
        self.sent.append(bytes(data))

    def sendmsg(self, buffers, ancillary, flags, address):
        (data,) = buffers
        segment = int.from_bytes(ancillary[0][2], "little")
        self.calls.append((len(data), address))
        self._next()
        if self.refuses_segments is not None:
            raise OSError(self.refuses_segments, os.strerror(self.refuses_segments))
        self.sent.extend(bytes(data[at : at + segment]) for at in range(0, len(data), segment))


@pytest.fixture
def scripted():
    return ScriptedSocket


@pytest.fixture
def own_network():
    """Run a function in a network namespace that only its thread sees and that ends with it.

    The namespace holds `wds0` (10.99.0.1, fd99::1, fe80::99; a veth end) and its peer `wds1`. The function is
    called with `sh`, which runs a command there.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root, to make a network namespace")
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (iproute2)")

    def sh(command):
        subprocess.run(["sh", "-ec", command], check=True, capture_output=True)

    def run(function):
        outcome = {}

        def body():
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNET) != 0:
                outcome["skip"] = os.strerror(ctypes.get_errno())
                return
            try:
                sh(
                    "ip link set lo up; ip link add wds0 type veth peer name wds1;"
                    "ip link set wds0 addrgenmode none; ip link set wds1 addrgenmode none;"
                    "ip addr add 10.99.0.1/24 dev wds0; ip link set wds1 up; ip link set wds0 up;"
                    "ip -6 addr add fe80::99/64 dev wds0 nodad; ip -6 addr add fd99::1/64 dev wds0 nodad"
                )
            except subprocess.CalledProcessError as error:
                outcome["skip"] = error.stderr.decode().strip()
                return
            try:
                outcome["result"] = function(sh)
            except BaseException as error:
                outcome["error"] = error

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if "skip" in outcome:
            pytest.skip(f"this machine lets root make no network namespace with a veth: {outcome['skip']}")
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    return run
