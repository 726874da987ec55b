from __future__ import annotations

import errno
import fcntl
import os
import pty
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstransport.content.pipes import PipeSink
from wdstransport.errors import ClosedError, StorageError, UsageError


def views(*parts: bytes) -> list[memoryview]:
    return [memoryview(part) for part in parts]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def prepared(descriptor: int, window: int) -> PipeSink:
    sink = PipeSink(descriptor, window)
    sink.prepare()
    return sink


def test_blocks_in_order_pass_straight_through(pipe: tuple[int, int]) -> None:
    sink = prepared(pipe[1], 8)
    assert sink.description == "standard output"
    assert sink.horizon() == 8
    sink.write(views(b"ab", b"", b"cd"), 0)
    assert sink.horizon() == 12
    assert os.read(pipe[0], 100) == b"abcd"
    sink.finish()


def test_early_blocks_wait_for_the_missing_one(pipe: tuple[int, int]) -> None:
    sink = prepared(pipe[1], 6)
    sink.write(views(b"ef"), 4)
    sink.write(views(b"cd"), 2)
    assert sink.horizon() == 6
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 100)
    sink.write(views(b"ab"), 0)
    assert os.read(pipe[0], 100) == b"abcdef"
    assert sink.horizon() == 12
    sink.write(views(b"kl"), 10)
    sink.write(views(b"ghij"), 6)
    assert os.read(pipe[0], 100) == b"ghijkl"
    sink.finish()


def test_block_beyond_the_window_is_refused_and_changes_nothing(pipe: tuple[int, int]) -> None:
    sink = prepared(pipe[1], 4)
    for data, offset in ((b"x", 4), (b"abcde", 0), (b"x", 1 << 70), (b"x", -1)):
        with pytest.raises(ValueError, match="horizon"):
            sink.write(views(data), offset)
    sink.write(views(b"abcd"), 0)
    assert os.read(pipe[0], 100) == b"abcd"
    sink.discard()


def test_repeated_and_overlapping_blocks_are_written_once(pipe: tuple[int, int]) -> None:
    sink = prepared(pipe[1], 10)
    for data, offset in (
        (b"cdef", 2),
        (b"de", 3),
        (b"", 5),
        (b"bcdefg", 1),
        (b"i", 8),
        (b"abc", 0),
        (b"abc", 0),
        (b"ghi", 6),
    ):
        sink.write(views(data), offset)
    assert os.read(pipe[0], 100) == b"abcdefghi"
    sink.finish()


def test_block_over_several_early_stretches_takes_them_all_along(pipe: tuple[int, int]) -> None:
    sink = prepared(pipe[1], 10)
    sink.write(views(b"cd"), 2)
    sink.write(views(b"gh"), 6)
    sink.write(views(b"abcdefghi"), 0)
    assert os.read(pipe[0], 100) == b"abcdefghi"
    sink.finish()


def test_early_stretch_that_a_later_block_covers_and_passes_is_not_passed_on_again(
    pipe: tuple[int, int],
) -> None:
    sink = prepared(pipe[1], 100)
    image = bytes(range(250))
    sink.write(views(image[:100]), 0)
    sink.write(views(image[100:150]), 100)
    sink.write(views(image[180:190]), 180)
    sink.write(views(image[150:205]), 150)
    assert os.read(pipe[0], 1000) == image[:205]
    sink.finish()


@pytest.mark.parametrize(
    "early",
    [
        [(2, b"cdef"), (4, b"efgh")],
        [(2, b"cd"), (6, b"gh"), (3, b"defg")],
    ],
    ids=["its beginning", "the end of the second that it joins"],
)
def test_early_block_that_overlaps_others_keeps_what_they_have_beyond_it(
    pipe: tuple[int, int], early: list[tuple[int, bytes]]
) -> None:
    sink = prepared(pipe[1], 10)
    for offset, block in [*early, (0, b"ab")]:
        sink.write(views(block), offset)
    assert os.read(pipe[0], 100) == b"abcdefgh"
    sink.finish()


def test_what_came_early_outlives_another_prepare(pipe: tuple[int, int]) -> None:
    sink = prepared(pipe[1], 10)
    sink.write(views(b"cd"), 2)
    sink.prepare()
    sink.write(views(b"ab"), 0)
    assert os.read(pipe[0], 100) == b"abcd"
    sink.finish()


def test_pipe_that_another_writer_fills_first_is_waited_for(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def full_once(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", real)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    sink = prepared(pipe[1], 4)
    monkeypatch.setattr(os, "write", full_once)
    sink.write(views(b"abcd"), 0)
    assert os.read(pipe[0], 100) == b"abcd"
    sink.finish()


def test_short_writes_are_continued(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:3])))
    sink = prepared(pipe[1], 10)
    sink.write(views(b"abcdefgh"), 0)
    assert os.read(pipe[0], 100) == b"abcdefgh"
    assert sink.horizon() == 18
    sink.finish()


@settings(max_examples=80)
@given(st.binary(max_size=60), st.integers(1, 20), st.randoms(use_true_random=True))
def test_whatever_the_order_the_pipe_gets_the_image(image: bytes, window: int, random: Random) -> None:
    # Every byte is the start of a block of some length, so blocks repeat and overlap.
    starts = range(len(image))
    blocks = [(start, min(len(image), start + random.randint(1, window))) for start in starts]
    random.shuffle(blocks)
    source, drain = os.pipe()
    sink = prepared(drain, window)
    while blocks:
        start, end = next(block for block in blocks if block[1] <= sink.horizon())
        blocks.remove((start, end))
        sink.write(views(image[start:end]), start)
    sink.finish()
    os.close(drain)
    assert os.read(source, 100) == image
    os.close(source)


def test_image_larger_than_the_pipe_waits_for_its_reader(pipe: tuple[int, int]) -> None:
    image = os.urandom(1 << 20)
    taken = bytearray()

    def read() -> None:
        while piece := os.read(pipe[0], 10_000):
            taken.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    sink = prepared(pipe[1], 1 << 19)
    half = 1 << 19
    sink.write(views(image[100:half]), 100)
    sink.write(views(image[:100]), 0)
    sink.write(views(image[half:]), half)
    sink.finish()
    os.close(pipe[1])
    reader.join()
    assert bytes(taken) == image


def test_empty_image_writes_nothing(pipe: tuple[int, int]) -> None:
    prepared(pipe[1], 4).finish()
    os.close(pipe[1])
    assert os.read(pipe[0], 1) == b""


def test_reader_that_ends_is_a_storage_error(pipe: tuple[int, int]) -> None:
    sink = prepared(pipe[1], 100)
    sink.write(views(b"abc"), 0)
    os.close(pipe[0])
    with pytest.raises(StorageError, match=r"reader of standard output ended after 3 bytes.*start again"):
        sink.write(views(b"def"), 3)
    sink.discard()


def test_abandon_ends_a_write_whose_reader_does_not_read(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    results: list[BaseException | None] = []
    sink = prepared(pipe[1], 1 << 20)
    real = os.write
    # The first write of 4096 bytes fills it, so the next must wait.
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4096)

    def write(descriptor: int, data: bytes) -> int:
        done = real(descriptor, data)
        full.set()
        return done

    def work() -> None:
        try:
            sink.write(views(bytes(1 << 20)), 0)
            results.append(None)
        except BaseException as error:
            results.append(error)

    monkeypatch.setattr(os, "write", write)
    worker = threading.Thread(target=work)
    worker.start()
    full.wait(30)
    assert sink.abandon() is None
    worker.join(30)
    assert isinstance(results[0], ClosedError)


def test_non_blocking_pipe_is_waited_for(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    test_image_larger_than_the_pipe_waits_for_its_reader(pipe)


def test_redirected_file_is_written_and_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    image = os.urandom(3_000_000)
    with (tmp_path / "out").open("wb") as file:
        sink = prepared(file.fileno(), len(image))
        sink.write(views(image[10:]), 10)
        sink.write(views(image[:10]), 0)
        sink.finish()
        assert flushed == [file.fileno()]
    assert (tmp_path / "out").read_bytes() == image


def test_failing_flush_of_a_redirected_file_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with (tmp_path / "out").open("wb") as file:
        sink = prepared(file.fileno(), 4)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="after 0 bytes"):
            sink.finish()
        sink.discard()


def test_full_device_is_a_storage_error() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    sink = prepared(descriptor, 4)
    with pytest.raises(StorageError, match="No space left"):
        sink.write(views(b"x"), 0)
    sink.discard()
    os.close(descriptor)


def test_terminal_is_refused() -> None:
    leader, follower = pty.openpty()
    with pytest.raises(StorageError, match="is a terminal"):
        prepared(follower, 4)
    os.close(leader)
    os.close(follower)


def test_descriptor_that_cannot_be_written_is_refused(pipe: tuple[int, int]) -> None:
    with pytest.raises(StorageError, match="not open for writing"):
        prepared(pipe[0], 4)
    os.close(pipe[1])
    with pytest.raises(StorageError, match="not open for writing"):
        prepared(pipe[1], 4)


def test_window_must_hold_something(pipe: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        PipeSink(pipe[1], 0)


def test_calls_out_of_order_are_refused(pipe: tuple[int, int]) -> None:
    sink = PipeSink(pipe[1], 4)
    for call in (lambda: sink.write(views(b"x"), 0), sink.finish):
        with pytest.raises(UsageError):
            call()
    sink.prepare()
    sink.prepare()
    sink.write(views(b"x"), 1)
    with pytest.raises(UsageError, match="lacks what follows byte 0"):
        sink.finish()
    sink.write(views(b"x"), 0)
    sink.finish()
    for call in (lambda: sink.write(views(b"x"), 0), sink.finish, sink.prepare):
        with pytest.raises(ClosedError):
            call()
    assert sink.abandon() is None
    sink.discard()


def test_the_descriptor_stays_open_and_no_other_does(pipe: tuple[int, int]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    prepared(pipe[1], 4).finish()
    prepared(pipe[1], 4).discard()
    twice = prepared(pipe[1], 4)
    twice.prepare()
    twice.finish()
    assert len(os.listdir("/proc/self/fd")) == before
    os.fstat(pipe[1])
