"""The curve: image time and load against the number of clients and the share of independent loss.

    PYTHONPATH=. .venv/bin/python tests/sim/curve.py

prints a Markdown table of virtual results, the same on every machine; real seconds go to stderr. `make curve`
writes it to `tests/sim/CURVE.md` and draws it with `plot.py`; `test_sim_curve.py` holds its cheap rows
against the code.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from scenario import GIGABIT, Simulation

HEAD = (
    "| clients | loss | seconds | ODATA x image | RDATA x image | wire x image | rounds "
    "| NACK | peak NACK/s | ACK | NCF | QCR | up KB | useless RDATA | window |"
)

NOTES = """
Made by `make curve`: seed 1, every loss at random, at each client and on its way back for itself. Times are
virtual, from the first data to the last client's LEAVE.

Where it is not flat, and why:

- *RDATA, and with it the time, grows with loss x clients*: at least one of N clients loses a packet with the
  chance 1 - (1 - p)^N: 63 % for 1 % and 100 clients, all packets for 1000. Without forward error correction,
  which the documents do not have, each is repaired once, for all who lost it, and again with the chance
  1 - (1 - p^2)^N that one of them loses that, too, and so on: 1.096 repairs a packet for 1 % and 1000
  clients, and 1.092 are sent. No grouping of NACKs could save one. The link is full for 0.40 s then, until
  the last block is out; what follows are the back-offs of the last NACKs and the LEAVEs.
- *ACK grows with RDATA*: the master acknowledges each repair (MS-WDSMT 3.2.5.13); RDATA has no option to
  excuse it (2.2.17).
- *NCF follows NACK*: the server confirms each (3.1.5.9.6) that comes in Data state (deviation 47).
- *NACK grows to ten thousand a second*: a thousand clients, each of which waits a tenth of a second on
  average between two (3.1.5.9.3), or is silent when what it lost was repaired meanwhile.
- *Without loss a hundred clients take 20 ms longer, a thousand 200 ms*: that is MaxNACKBackOff, a fifth of a
  millisecond a client (3.1.5.9.3), up to which each waits before its LEAVE (3.2.5.4.3). With loss it is also
  how long a client that lost something may wait before it asks.

What the documents leave free, and how it is used (figures of a thousand clients at 1 %):

- A master that leaves is succeeded at once (deviation 31). A QCC state would stop all repairs for a
  millisecond a client whenever one leaves.
- The master draws the shortest back-off (deviation 59), since the window waits for its losses: up to 200 ms
  otherwise, and with windows of 6144 packets, 70 ms. Both together brought 1.65 s down to 0.71.
- A window of 16384 packets instead of 6144 is more than the image, and brings the rest.
- Repairs are not held back to go out together. Under load a batch of ODATA takes half a millisecond, in which
  35 of them gather by themselves; without load a few clients would wait for nothing.
- They need a credit (deviation 53): two for each packet that the master acknowledges, up to a window, and 64
  in a round trip. That changes nothing above. It is for links that are slower than the others: in a room of
  three, one of them behind 12.5 MB/s with a queue of 64 KB, 4 MB take 0.59 s with 2.3 repairs for each block,
  instead of 0.75 and 2.6; behind 2 MB/s and 128 KB 10 MB take 8.6 s with 3.7, instead of 11.1 and 7.2; behind
  1.5 MB/s and 64 KB 4 MB take 4.9 s with 5.9, instead of 8.2 and 12.6. Most of these repairs still overflow
  that queue. What the documents leave no way to mend is why: by their rules the window grows by what is
  acknowledged, that is, doubles in a round trip, and is cut by a quarter."""


def run(seed: int, clients: int, loss: float, size: int, rate: float, rtt: float) -> tuple[Simulation, str]:
    """One point of the curve: everybody is there before sending begins.

    Args:
        seed: decides everything.
        clients: how many.
        loss: share of datagrams lost, at each client on its own, and on its way back.
        size: of the image, bytes.
        rate: of every link, bytes per second.
        rtt: seconds there and back.
    """
    sim = Simulation(seed, size=size, rate=rate, latency=rtt / 4, share=True, loss=loss)
    server = sim.server(min_clients=clients, max_wait=5.0, max_pending_clients=max(256, clients))
    sim.clients(server, clients)
    sim.run(until=600.0)
    sim.check()
    monitor = server.monitor
    began = server.began_at or 0.0
    packets = sim.image.total_blocks
    window = server.session.transport.data.window.size
    row = (
        f"| {clients} | {loss:.1%} | {sim.finished_at - began:.3f} "
        f"| {monitor.packets['ODATA'] / packets:.3f} "
        f"| {monitor.packets['RDATA'] / packets:.3f} | {monitor.wire_bytes / size:.3f} "
        f"| {len(monitor.round_blocks)} | {monitor.received['NACK']} | {monitor.peak('NACK') * 10} "
        f"| {monitor.received['ACK']} | {monitor.packets['NCF']} | {monitor.received['QCR']} "
        f"| {sum(monitor.received_bytes.values()) / 1000:.0f} | {monitor.useless_repairs} | {window} |"
    )
    return sim, row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", default="1,10,100,1000")
    parser.add_argument("--loss", default="0,0.001,0.01")
    parser.add_argument("--size", type=float, default=20e6, help="bytes")
    parser.add_argument("--rate", type=float, default=GIGABIT, help="bytes per second")
    parser.add_argument("--rtt", type=float, default=0.0002, help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("# The curve: one image, ever more clients\n")
    print(f"{int(options.size)} bytes, {options.rate / 125000:.0f} Mbit/s, RTT {options.rtt * 1000:g} ms\n")
    print("![Image time, bytes on the wire, ACK and NACK against clients, one line a loss](curve.png)\n")
    print(HEAD)
    print("| ---: " * HEAD.count(" |") + "|", flush=True)
    for loss in (float(part) for part in options.loss.split(",")):
        for clients in (int(part) for part in options.clients.split(",")):
            begun = time.perf_counter()
            sim, row = run(options.seed, clients, loss, int(options.size), options.rate, options.rtt)
            print(row, flush=True)
            spent = time.perf_counter() - begun
            print(f"  {spent:.1f} real seconds, {sim.world.events} events", file=sys.stderr)
    print(NOTES)


if __name__ == "__main__":
    main()
