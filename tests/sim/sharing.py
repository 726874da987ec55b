"""Decoding once what many receivers share: a batch that reached a thousand clients unharmed is one memory.

Decoders are pure functions of bytes, so their result for the same memory is the same for every receiver. Only
the work is shared: every session still handles every packet itself. Arrays are made read-only meanwhile, so
that a session that wrote into them would be noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from wdstransport.protocol import client_session
from wdstransport.wire.batch import Batch, parse_data
from wdstransport.wire.transport import WireError, decode

_KEEP = 256


class _Recent:
    """The last results, by identity of what they were made from, which is kept alive meanwhile."""

    def __init__(self) -> None:
        self._results: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def get(self, key: tuple[int, ...]) -> Any:
        found = self._results.get(key)
        return None if found is None else found[1]

    def put(self, key: tuple[int, ...], source: object, result: object) -> None:
        if len(self._results) >= _KEEP:
            del self._results[next(iter(self._results))]
        self._results[key] = (source, result)


@contextmanager
def shared_decoding() -> Iterator[None]:
    """Let client sessions share the decoding of what they share the memory of."""
    batches, packets = _Recent(), _Recent()

    def parse(batch: Batch, *, session_id: int, security: Any) -> Any:
        key = (id(batch), session_id, id(security))
        result = batches.get(key)
        if result is None:
            result = parse_data(batch, session_id=session_id, security=security)
            if result[0] is not None:
                for name in ("rows", "odata_seq_no", "block_number", "fw_lead"):
                    array = getattr(result[0], name)
                    if isinstance(array, np.ndarray):
                        array.flags.writeable = False
            batches.put(key, batch, result)
        return result

    def decoded(datagram: memoryview, *, session_id: int, security: Any) -> Any:
        source = datagram.obj
        if len(source) != len(datagram):
            return decode(datagram, session_id=session_id, security=security)
        key = (id(source), session_id, id(security))
        result = packets.get(key)
        if result is None:
            try:
                result = decode(datagram, session_id=session_id, security=security)
            except WireError as error:
                result = error
            packets.put(key, source, result)
        if isinstance(result, WireError):
            raise result
        return result

    names = vars(client_session)
    before = names["parse_data"], names["decode"]
    client_session.parse_data, client_session.decode = parse, decoded  # type: ignore[assignment, attr-defined]
    try:
        yield
    finally:
        client_session.parse_data, client_session.decode = before  # type: ignore[attr-defined]
