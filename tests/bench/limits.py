"""What is promised whatever the image: `--rate` to the percent, and memory that does not grow.

limits.py rate 10M,100M,1G       needs root, for the lab; IP bytes that left the server's interface
limits.py memory 20GiB           loopback, 1 % of datagrams lost; a receiver into a pipe, one into a file
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lab import Host, Lab, Loopback
from processes import Fleet, Process

HOME = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-P", "-m", "cli.deploy_image")
ETHERNET_HEADER = 14
WARM_UP, MEASURED = 1.0, 4.0


def start(fleet: Fleet, name: str, host: Host, *words: str) -> Process:
    """Run deploy-image of this checkout on a host."""
    command = (*PROGRAM, *words)
    if words[-1] == "-":
        command = ("sh", "-c", 'exec "$@" > /dev/null', "sh", *command)
    return fleet.start(name, host.words(*command), {"PYTHONPATH": str(HOME)})


def serve(fleet: Fleet, host: Host, image: Path, *words: str) -> tuple[Process, str]:
    """A server that listens, and its port."""
    group = f"239.193.{random.randrange(256)}.{random.randrange(1, 255)}"
    options = ("--interface", host.address, "--port", "0", "--group", group, "--json")
    server = start(fleet, "server", host, "serve", *options, *words, str(image))
    fleet.wait(lambda: server.when('"server-listening"') is not None or server.returncode is not None, 30.0)
    found = re.search(
        r'"server-listening".*?"address":\["[^"]*",(\d+)\]', "\n".join(t for _, t in server.lines)
    )
    if found is None:
        raise SystemExit(f"the server does not listen: {server.last_words()}")
    return server, found[1]


def measure_rate(asked: str, folder: Path) -> None:
    """Print what leaves at a `--rate`, a sparse image into a pipe."""
    image = folder / "image"
    with open(image, "wb") as file:
        file.truncate(8_000_000_000)
    with Lab(1) as lab, Fleet() as fleet:
        server, port = serve(fleet, lab.server, image, "--rate", asked)
        receiver = lab.receivers[0]
        to = ("receive", "--server", lab.server.address, "--interface", receiver.address, "--port", port)
        start(fleet, "receiver", receiver, *to, image.name, "-")
        fleet.wait(lambda: server.when('"sending-started"') is not None, 30.0)
        fleet.wait(lambda: False, WARM_UP)
        before, began = lab.server.sent(), time.perf_counter()
        fleet.wait(lambda: False, MEASURED)
        after, ended = lab.server.sent(), time.perf_counter()
    content = after[0] - before[0] - ETHERNET_HEADER * (after[1] - before[1])
    print(f"--rate {asked}: {content * 8 / (ended - began) / 1e6:.2f} Mbit/s left the server", flush=True)


def measure_memory(size: str, folder: Path) -> None:
    """Print peak memory of a server and two receivers of a sparse image."""
    number, unit = re.fullmatch(r"(\d+)(MiB|GiB)", size).groups()  # type: ignore[union-attr]
    image = folder / "image"
    with open(image, "wb") as file:
        file.truncate(int(number) << (20 if unit == "MiB" else 30))
    host = Loopback(1).receivers[0]
    with Fleet() as fleet:
        server, port = serve(fleet, host, image, "--min-clients", "2", "--exit-when-done", "2")
        to = ("receive", "--server", host.address, "--interface", host.address, "--port", port)
        lossy = (*to, "--drop-share", "0.01", "--json", image.name)
        pipe = start(fleet, "pipe", host, *lossy, "-")
        file_copy = start(fleet, "file", host, *lossy, str(folder / "copy"))
        everybody = (server, pipe, file_copy)
        fleet.wait(lambda: all(each.returncode is not None for each in everybody), 3600.0)
    for each in everybody:
        print(
            f"{size}, {each.name}: exit code {each.returncode}, "
            f"{each.peak_bytes / (1 << 20):.0f} MiB at most, "
            f"{each.cpu_seconds:.0f} s of processor time"
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("rate", "memory"))
    parser.add_argument("values", help="rates, or one size, such as 10M,1G or 20GiB")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="where image and copy go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wds-limits-", dir=options.folder) as folder:
        if options.what == "memory":
            measure_memory(options.values, Path(folder))
        else:
            for rate in options.values.split(","):
                measure_rate(rate, Path(folder))


if __name__ == "__main__":
    main()
