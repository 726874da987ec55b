from __future__ import annotations

import os
from pathlib import Path

import pytest

from wdstransport.content.sinks import FileSink, MemorySink, NullSink, PipeSink, Sink


def views(*parts: bytes) -> list[memoryview]:
    return [memoryview(part) for part in parts]


def test_memory_sink_keeps_blocks_at_their_places() -> None:
    sink = MemorySink()
    sink.prepare()
    sink.write(views(b"de", b"f"), 3)
    assert (bytes(sink.data), sink.finished) == (b"\0\0\0def", False)
    sink.write(views(b"abc"), 0)
    sink.write(views(b"i"), 8)
    assert bytes(sink.data) == b"abcdef\0\0i"
    sink.write(views(b"gh"), 6)
    sink.finish()
    assert (bytes(sink.data), sink.finished) == (b"abcdefghi", True)


def test_memory_sink_keeps_or_drops_what_came() -> None:
    sink = MemorySink()
    sink.write(views(b"abc"), 0)
    assert sink.abandon() is None
    assert sink.data == b"abc"
    sink.discard()
    assert sink.data == b""


def test_memory_sink_refuses_a_negative_offset() -> None:
    with pytest.raises(ValueError):
        MemorySink().write(views(b"x"), -1)


def test_null_sink_only_counts() -> None:
    sink = NullSink()
    sink.prepare()
    sink.write(views(b"abc", b"de"), 1 << 40)
    sink.write([], 0)
    sink.finish()
    assert sink.written == 5
    assert sink.abandon() is None
    sink.discard()


@pytest.mark.parametrize("kind", ["file", "pipe", "memory", "null"])
def test_every_sink_goes_through_the_same_life(tmp_path: Path, kind: str) -> None:
    reader, writer = os.pipe()
    sinks: dict[str, Sink] = {
        "file": FileSink(tmp_path / "image", 6),
        "pipe": PipeSink(writer, 6),
        "memory": MemorySink(),
        "null": NullSink(),
    }
    sink = sinks[kind]
    sink.prepare()
    assert sink.description
    assert sink.horizon() == (6 if kind == "pipe" else None)
    sink.write(views(b"def"), 3)
    sink.write(views(b"abc"), 0)
    sink.finish()
    assert sink.abandon() is None
    os.close(writer)
    got = {
        "file": (tmp_path / "image").read_bytes() if kind == "file" else b"",
        "pipe": os.read(reader, 10),
        "memory": bytes(getattr(sink, "data", b"")),
        "null": b"abcdef",
    }
    os.close(reader)
    assert got[kind] == b"abcdef"
