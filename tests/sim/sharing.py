"""Decoding once what many receivers share: a batch that reached a thousand clients unharmed is one memory.

Decoders are pure functions of bytes, so their result for the same memory is the same for every receiver, and
what is left of a batch that lost some datagrams decodes to what is left of its result. Only the work is
shared: every session still handles every packet itself. Arrays are made read-only meanwhile, so that
a session that wrote into them would be noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from image import Image
from network import Remnant

from wdstransport.protocol import client_session, client_transport
from wdstransport.protocol.client_runs import repairs_of, runs_of, stretch_of
from wdstransport.protocol.events import BlocksArrived
from wdstransport.wire.answers import decode_answer
from wdstransport.wire.batch import Batch, DataRecords, parse_data
from wdstransport.wire.transport import WireError, decode

_KEEP = 256
_MISSING = object()


class _Recent:
    """The last results, by identity of what they were made from, which is kept alive meanwhile."""

    def __init__(self) -> None:
        self._results: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def get(self, key: tuple[int, ...]) -> Any:
        found = self._results.get(key)
        return _MISSING if found is None else found[1]

    def put(self, key: tuple[int, ...], source: object, result: Any) -> Any:
        if len(self._results) >= _KEEP:
            del self._results[next(iter(self._results))]
        self._results[key] = (source, result)
        return result


def _sealed(records: DataRecords) -> DataRecords:
    for name in ("rows", "odata_seq_no", "block_number", "fw_lead"):
        getattr(records, name).flags.writeable = False
    return records


def _left_of(records: DataRecords, remnant: Remnant) -> DataRecords:
    """The records of a remnant, its whole being nothing but records."""
    kept = list(remnant.kept)
    return DataRecords(
        batch=remnant,
        rows=np.arange(len(kept), dtype=np.intp),
        header=records.header[kept],
        odata_seq_no=records.odata_seq_no[kept],
        block_number=records.block_number[kept],
        fw_lead=records.fw_lead[kept],
        data_offset=records.data_offset,
        block_len=records.block_len,
        data_len=records.data_len,
    )


class _Shared:
    """Stands in for the decoders while a simulation runs."""

    def __init__(self) -> None:
        self._batches, self._packets, self._answers = _Recent(), _Recent(), _Recent()
        self._matches = _Recent()
        self._compare = Image.matches

    def parse(self, batch: Batch, *, session_id: int, security: Any) -> Any:
        if isinstance(batch, Remnant) and batch.whole is not None:
            result = self.parse(batch.whole, session_id=session_id, security=security)
            records = result[0]
            if records is not None and records.rows.size * batch.segment == len(batch.whole.buffer):
                return _left_of(records, batch), *result[1:]
            return parse_data(batch, session_id=session_id, security=security)
        key = (id(batch), session_id, id(security))
        result = self._batches.get(key)
        if result is _MISSING:
            result = parse_data(batch, session_id=session_id, security=security)
            if result[0] is not None:
                _sealed(result[0])
            self._batches.put(key, batch, result)
        return result

    def decode(self, datagram: memoryview, *, session_id: int, security: Any) -> Any:
        source = datagram.obj
        if len(source) != len(datagram):
            return decode(datagram, session_id=session_id, security=security)
        key = (id(source), session_id, id(security))
        result = self._packets.get(key)
        if result is _MISSING:
            try:
                result = decode(datagram, session_id=session_id, security=security)
            except WireError as error:
                result = error
            self._packets.put(key, source, result)
        if isinstance(result, WireError):
            raise result
        return result

    def answer(self, datagram: memoryview, *, session_id: int, security: Any) -> Any:
        source = datagram.obj
        key = (id(source), session_id, id(security))
        result = self._answers.get(key)
        if result is _MISSING or len(source) != len(datagram):
            result = decode_answer(datagram, session_id=session_id, security=security)
            if len(source) == len(datagram):
                self._answers.put(key, source, result)
        return result

    def glance(self, tell: Callable[[DataRecords], Any]) -> Callable[[DataRecords], Any]:
        """What `tell` says of a batch's records, said once."""
        told = _Recent()

        def say(records: DataRecords) -> Any:
            if isinstance(records.batch, Remnant):
                return tell(records)
            result = told.get((id(records),))
            if result is _MISSING:
                result = told.put((id(records),), records, tell(records))
            return result

        return say

    def matches(self, image: Image, event: BlocksArrived) -> bool:
        if isinstance(event.batch, Remnant):
            return self._compare(image, event)
        place = (tuple(event.runs), event.block_len, event.data_offset)
        key = (id(image), id(event.batch), *place)
        result = self._matches.get(key)
        if result is _MISSING:
            result = self._matches.put(key, event.batch, self._compare(image, event))
        return result


@contextmanager
def shared_decoding() -> Iterator[None]:
    """Let client sessions share the decoding of what they share the memory of."""
    shared = _Shared()
    with ExitStack() as stack:
        for where, name, stand_in in (
            (client_session, "parse_data", shared.parse),
            (client_session, "decode", shared.decode),
            (client_session, "decode_answer", shared.answer),
            (client_transport, "runs_of", shared.glance(runs_of)),
            (client_transport, "repairs_of", shared.glance(repairs_of)),
            (client_transport, "stretch_of", shared.glance(stretch_of)),
            (Image, "matches", lambda image, event: shared.matches(image, event)),
        ):
            stack.enter_context(patch.object(where, name, stand_in))
        yield
