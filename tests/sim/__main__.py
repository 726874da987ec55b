"""One run from the command line, with a capture if wanted.

PYTHONPATH=. .venv/bin/python tests/sim --seed 3 --clients 4 --loss 0.01 --size 2e6 --pcapng run.pcapng
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scenario import GIGABIT, Simulation


def main() -> None:
    """Run one room that starts at once, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--size", type=float, default=2e6, help="bytes")
    parser.add_argument("--rate", type=float, default=GIGABIT, help="bytes per second")
    parser.add_argument("--latency", type=float, default=0.0001, help="seconds, one half of one way")
    parser.add_argument("--late", type=float, help="let the last client join so many seconds later")
    for trouble in ("loss", "duplicate", "reorder", "bit-error", "jitter"):
        parser.add_argument(f"--{trouble}", type=float, default=0.0)
    parser.add_argument("--until", type=float, default=3600.0, help="seconds of virtual time")
    parser.add_argument("--pcapng", type=Path)
    options = parser.parse_args()
    sim = Simulation(
        options.seed,
        size=int(options.size),
        rate=options.rate,
        latency=options.latency,
        capture=options.pcapng,
        loss=options.loss,
        duplicate=options.duplicate,
        reorder=options.reorder,
        bit_error=options.bit_error,
        jitter=options.jitter,
    )
    late = 0 if options.late is None else 1
    server = sim.server(min_clients=max(1, options.clients - late), max_wait=5.0)
    sim.clients(server, options.clients - late)
    if late:
        sim.at(options.late, sim.client, server)
    sim.run(options.until)
    sim.check()
    for receiver in sim.receivers:
        print(f"{receiver.name}: {receiver.outcome} at {receiver.ended_at:.3f} s")
    print(f"sent {dict(server.monitor.packets)}")
    print(f"heard {dict(server.monitor.received)}")
    print(f"ODATA {sim.odata_share():.3f} x image, {server.monitor.wire_bytes} bytes on the wire")


if __name__ == "__main__":
    main()
