"""Receiving, for programs that run on trio.

`receive` is one call from a server's name to a whole file; `ReceiveSession` (`wdstransport.session`) is the
same as an object with a life: started, watched, closed and shut down.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wdstransport.content.sinks import Sink
from wdstransport.net.reception import ReceiveResult, Reception, ReceptionSettings
from wdstransport.observe.events import ClientEvent
from wdstransport.session import ReceiveSession

__all__ = ["ReceiveResult", "ReceiveSession", "receive"]


async def receive(
    content: str,
    target: str | Path | Sink,
    *,
    server: str,
    namespace: str = "images",
    interface: str | None = None,
    port: int = 5041,
    security: str = "checksum",
    timeout: float = 30.0,
    force: bool = False,
    on_event: Callable[[ClientEvent], None] | None = None,
    cache_bytes: int = 32 << 20,
    drop_share: float = 0.0,
    drop_seed: int = 0,
) -> ReceiveResult:
    """Receive one content of a server into a file, a pipe or a sink.

    Cancelling leaves the session cleanly (LEAVE as cancelled). The target appears under its name only when
    it is whole; until then, and after a failure, what arrived is in `target` with `.part` added.

    Args:
        content: its name in the namespace.
        target: a path, `-` for standard output, or any `Sink`.
        server: name or address.
        namespace: where the content is.
        interface: name or address of the interface to use; None for the one that leads to the server.
        port: the server's initiation port (MS-WDSMSI 1.9).
        security: checksum or none; it must be what the server uses.
        timeout: seconds to wait for the server's first answers.
        force: replace an existing target.
        on_event: called with each `ClientEvent`, in the trio thread.
        cache_bytes: how much may have arrived without being stored (MaxCacheSize, MS-WDSMA 3.2.1).
        drop_share: share of datagrams to lose on purpose, for demonstrations and tests.
        drop_seed: which ones.

    Returns:
        The result; the target is whole, flushed and under its name.

    Raises:
        UsageError: an argument that cannot be.
        RefusedError: the server has no such content.
        RemovedError: the server removed this client.
        NobodyAnsweredError: no server, or none any more.
        StorageError: the target cannot take the image.
    """
    settings = ReceptionSettings(
        content=content,
        target=target,
        server=server,
        namespace=namespace,
        interface=interface,
        port=port,
        security=security,
        timeout=timeout,
        force=force,
        cache_bytes=cache_bytes,
        drop_share=drop_share,
        drop_seed=drop_seed,
    )
    return await Reception(settings, on_event if on_event is not None else (lambda event: None)).run()
