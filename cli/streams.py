"""Standard streams that may be closed: `>&-` leaves `sys.stdout` None, its descriptor to the next socket."""

from __future__ import annotations

import os
from typing import TextIO

__all__ = ["needed", "occupy"]


def occupy() -> None:
    """Open the null device on each standard descriptor that is closed.

    Else the next file or socket gets its number, and what is meant for standard output goes there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one


def needed(stream: TextIO | None, name: str, what: str, instead: str) -> None:
    """Insist on an open stream.

    Raises:
        UsageError: `name` is closed; `what` should go there, and `instead` says how to do without.
    """
    if stream is None:
        import wdstransport  # not for --help, which need not wait for it

        raise wdstransport.UsageError(
            f"{what} would go to {name}, which is closed. Connect it to a file or a program, or {instead}."
        )
