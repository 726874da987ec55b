"""An independent client and server of MS-WDSMSI, MS-WDSMT and MS-WDSMA, to test another implementation with.

By hand, as two processes:

    python peer.py server FILE --port 5041 --block-size 1385
    python peer.py client CONTENT --server 127.0.0.1 --port 5041 --output COPY
"""

import argparse
import pathlib
import sys

from peer_client import PeerClient, Result
from peer_server import PeerServer

__all__ = ["PeerClient", "PeerServer", "Result"]


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("server")
    server.add_argument("file", type=pathlib.Path)
    server.add_argument("--content", help="its name, else that of the file")
    server.add_argument("--address", default="127.0.0.1")
    server.add_argument("--session-port", type=int, default=0)
    server.add_argument("--group", default="239.192.7.41")
    server.add_argument("--block-size", type=int, default=1385)
    server.add_argument("--fw-lead", action="store_true")
    server.add_argument("--clients", type=int, default=0, help="stop after so many complete downloads")
    client = commands.add_parser("client")
    client.add_argument("content")
    client.add_argument("--server", default="127.0.0.1")
    client.add_argument("--interface", default="127.0.0.1")
    client.add_argument("--output", type=pathlib.Path)
    client.add_argument("--first", action="store_true", help="nobody has used the session before")
    client.add_argument("--alone", action="store_true", help="nobody else uses the session")
    client.add_argument("--verbose", action="store_true")
    for command in (server, client):
        command.add_argument("--namespace", default="images")
        command.add_argument("--port", type=int, default=5041)
        command.add_argument("--mode", choices=("checksum", "none"), default="checksum")
        command.add_argument("--loss", type=float, default=0.0, help="probability, each way")
        command.add_argument("--remote-loss", type=float, default=0.0, help="loss that the other side adds")
        command.add_argument("--seed", default=0)
        command.add_argument("--timeout", type=float, default=60.0)
    return parser.parse_args()


def main():
    a = arguments()
    common = {"mode": a.mode, "loss": a.loss, "seed": a.seed, "remote_loss": a.remote_loss}
    if a.command == "client":
        flags = {"first": a.first, "alone": a.alone, "interface": a.interface}
        result = PeerClient((a.server, a.port), a.content, a.namespace, **common, **flags).run(a.timeout)
        if a.output and result.status == "complete":
            a.output.write_bytes(result.data)
        print(
            "\n".join(result.log) if a.verbose else "", f"{result.status}: {len(result.data)} bytes", sep="\n"
        )
        print("seen", dict(result.seen), "sent", dict(result.sent))
        done, violations = result.status == "complete", result.violations
    else:
        name = a.content or a.file.name
        places = (a.address, a.port, a.session_port, a.group)
        common |= {"block_size": a.block_size, "fw_lead": a.fw_lead}
        server = PeerServer(a.file.read_bytes(), name, a.namespace, *places, **common).start()
        print(f"serving {name} on port {server.initiation_port}", flush=True)
        with server.turn:
            server.turn.wait_for(lambda: a.clients and len(server.completed) >= a.clients, a.timeout)
        server.stop()
        print("\n".join(server.log), f"sent {dict(server.sent)}", sep="\n")
        done, violations = len(server.completed) >= a.clients, server.violations
    print(*[f"violation: {text}" for text in violations] or ["no violations"], sep="\n")
    return 0 if done and not violations else 1


if __name__ == "__main__":
    sys.exit(main())
