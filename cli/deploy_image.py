"""`deploy-image`: what can be typed, and what `--help` says about it.

The commands' work is imported when one of them runs, so that `--help` and shell completion stay quick.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from cli import streams, units

__all__ = ["app", "main"]

_T = TypeVar("_T")

_EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 no such content or refused, 4 removed by the server, "
    "5 nobody answered, 6 copy is wrong, 7 storage, 130 interrupted."
)

app = typer.Typer(
    name="deploy-image",
    help="Stream one image to many machines over UDP multicast.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Security(StrEnum):
    """How packets are protected: MS-WDSMT 2.2.2, as far as UDP initiation can agree on it."""

    CHECKSUM = "checksum"
    NONE = "none"


Namespace = Annotated[str, typer.Option(metavar="NAME", help="Namespace that the content is in.")]
ServerInterface = Annotated[
    str | None,
    typer.Option("--interface", metavar="IF", help="Network interface, by name or address. Default: all."),
]
ClientInterface = Annotated[
    str | None,
    typer.Option(
        "--interface",
        metavar="IF",
        help="Network interface, by name or address. Default: the one that leads to the server.",
    ),
]
SecurityMode = Annotated[
    Security, typer.Option(help="Packet protection; server and clients must use the same.")
]
Json = Annotated[bool, typer.Option("--json", help="Print events as NDJSON (docs/ndjson.md).")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also print details and the features in use.")]
Rate = Annotated[
    str | None,
    typer.Option(
        "--rate",
        metavar="RATE",
        help="Send no faster than this. 900M means 900 Mbit/s; for bytes write 112MB/s. Default: no limit.",
    ),
]


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"deploy-image {version('wdstransport')}")
        except PackageNotFoundError:
            typer.echo(
                "deploy-image: its version is not known: it runs from a directory of sources that is not "
                "installed, and the version is in the package's metadata. Install it (pip install -e . in "
                "that directory), or look into pyproject.toml there.",
                err=True,
            )
            raise typer.Exit(1) from None
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Stream one image to many machines over UDP multicast."""


def _settle() -> None:
    """What is imported stays: let no garbage collection look at it again."""
    gc.freeze()
    gc.enable()


def _parsed(option: str, parse: Callable[[str], _T], text: str) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


@app.command(epilog=_EXIT_CODES)
def serve(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="A directory, or the files, to offer.")],
    namespace: Namespace = "images",
    interface: ServerInterface = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="UDP port where clients ask; 0 picks a free one.")
    ] = 5041,
    group: Annotated[
        str | None,
        typer.Option(metavar="ADDR", help="Multicast group to send to. Default: chosen per session."),
    ] = None,
    session_ports: Annotated[
        str | None,
        typer.Option(
            metavar="LOW-HIGH", help="UDP ports that sessions may use, for firewalls. Default: any."
        ),
    ] = None,
    min_clients: Annotated[
        int, typer.Option(min=1, metavar="N", help="Begin to send when N clients have joined.")
    ] = 1,
    max_wait: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="S", help="Begin S seconds after the first client, however many there are."
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Bytes per block. Default: what fits the interface's MTU."),
    ] = None,
    security: SecurityMode = Security.CHECKSUM,
    rate: Rate = None,
    ttl: Annotated[
        int, typer.Option(min=1, max=255, metavar="N", help="Routers that the packets may cross, plus one.")
    ] = 1,
    exit_when_done: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after N complete downloads.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Offer images and stream each to every client that asks.

    Sending begins with the first client, or as --min-clients and --max-wait say. Who joins later is
    served all the same: it gets the rest, then what it missed.
    """
    from cli.serve import ServeOptions, run_serve

    _settle()
    options = ServeOptions(
        paths=tuple(paths),
        namespace=namespace,
        interface=interface,
        port=port,
        group=group,
        session_ports=_parsed("--session-ports", units.parse_ports, session_ports) if session_ports else None,
        min_clients=min_clients,
        max_wait=max_wait,
        block_size=block_size,
        security=security.value,
        rate=_parsed("--rate", units.parse_rate, rate) if rate else None,
        ttl=ttl,
        exit_when_done=exit_when_done,
        json=json,
        verbose=verbose,
    )
    raise typer.Exit(run_serve(options))


@app.command(epilog=_EXIT_CODES)
def receive(
    content: Annotated[str, typer.Argument(metavar="CONTENT", help="Name of the image on the server.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="File to write, or - for standard output (in order).")
    ],
    server: Annotated[str, typer.Option(metavar="HOST", help="The server's name or address.")],
    namespace: Namespace = "images",
    interface: ClientInterface = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="UDP port where the server answers.")] = 5041,
    security: SecurityMode = Security.CHECKSUM,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="S", help="Give up after S seconds when nobody answers.")
    ] = 30.0,
    force: Annotated[bool, typer.Option("--force", help="Replace TARGET if it exists.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    drop_share: Annotated[float, typer.Option(hidden=True, min=0, max=1)] = 0.0,
    drop_seed: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Fetch one image from a server, together with everybody else who asks for it.

    TARGET appears under its name only when it is whole; until then the data is in TARGET.part beside it.
    When TARGET is -, standard output carries the image and everything else goes to standard error.
    """
    from cli.receive import ReceiveOptions, run_receive

    if not timeout > 0:
        raise typer.BadParameter(
            "0 seconds are no time to answer; write for example 30", param_hint="--timeout"
        )

    _settle()
    options = ReceiveOptions(
        content=content,
        target=target,
        server=server,
        namespace=namespace,
        interface=interface,
        port=port,
        security=security.value,
        timeout=timeout,
        force=force,
        json=json,
        verbose=verbose,
        drop_share=drop_share,
        drop_seed=drop_seed,
    )
    raise typer.Exit(run_receive(options))


@app.command(epilog=_EXIT_CODES)
def demo(
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="The image to send. Default: random bytes.")
    ] = None,
    clients: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="How many receivers to start.")
    ] = 3,
    loss: Annotated[
        str, typer.Option(metavar="SHARE", help="Share of datagrams that each receiver loses on purpose.")
    ] = "1%",
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="Size of the random image.")] = "256M",
    rate: Rate = None,
    verbose: Verbose = False,
) -> None:
    """Show it on this machine: a real server and real receivers, over loopback multicast.

    Every copy is compared with the source by SHA-256. Nothing is left behind.
    """
    from cli.demo import MAX_LOSS, DemoOptions, run_demo

    _settle()
    share = _parsed("--loss", units.parse_share, loss)
    if share > MAX_LOSS:
        raise typer.BadParameter(
            f"at most {MAX_LOSS:.0%}: beyond it, next to nothing arrives", param_hint="--loss"
        )
    length = _parsed("--size", units.parse_size, size)
    if length < 1:
        raise typer.BadParameter("an image of no bytes shows nothing", param_hint="--size")
    options = DemoOptions(
        image=image,
        clients=clients,
        loss=share,
        size=length,
        rate=_parsed("--rate", units.parse_rate, rate) if rate else None,
        verbose=verbose,
    )
    raise typer.Exit(run_demo(options))


def main() -> None:
    """The console script."""
    # Before and after a command's work there is nothing to tidy up: a signal need not raise anything.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    streams.occupy()
    for stream in (sys.stdout, sys.stderr):
        # Client names come from the network; in a terminal that is not UTF-8 they must not end the program.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # numpy's linear algebra is not used here, and its idle threads cost a few per cent of a busy processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()  # until everything is imported: what imports make is no garbage
    app(prog_name="deploy-image")


if __name__ == "__main__":
    main()
