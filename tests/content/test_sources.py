from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdstransport.content.sources import IOV_MAX, FileSource, MemorySource, Source, after
from wdstransport.errors import ClosedError, ContentError, ContentNotFoundError, SourceChangedError

GIB = 1 << 30


def read(source: Source, offset: int, *lengths: int) -> bytes:
    buffer = memoryview(bytearray(sum(lengths)))
    views, start = [], 0
    for length in lengths:
        views.append(buffer[start : start + length])
        start += length
    source.read_into(views, offset)
    return bytes(buffer)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.wim"
    path.write_bytes(bytes(range(256)) * 64)
    os.utime(path, ns=(1, 1))
    # Change times tick slowly on older kernels; a change in a test must not share the tick of this one.
    probe = tmp_path / "probe"
    probe.touch()
    while probe.stat().st_ctime_ns <= path.stat().st_ctime_ns:
        probe.touch()
    return path


def test_reads_any_range_into_several_views(image: Path) -> None:
    source = FileSource(image)
    assert (source.name, source.size) == ("image.wim", 16384)
    assert read(source, 250, 3, 0, 10) == image.read_bytes()[250:263]
    assert read(source, 16380, 4) == bytes([252, 253, 254, 255])
    source.close()


def test_reads_more_views_than_one_system_call_takes(image: Path) -> None:
    source = FileSource(image)
    assert read(source, 0, *[3] * (2 * IOV_MAX + 5)) == image.read_bytes()[: 3 * (2 * IOV_MAX + 5)]
    source.close()


def test_continues_after_a_partial_read(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def stingy(descriptor: int, views: list[memoryview], offset: int) -> int:
        return real(descriptor, [views[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", stingy)
    source = FileSource(image)
    assert read(source, 1, 10, 20, 1) == image.read_bytes()[1:32]
    source.close()


def test_reads_beyond_four_gib(tmp_path: Path) -> None:
    path = tmp_path / "large.wim"
    with path.open("wb") as file:
        file.truncate(5 * GIB)
        file.seek(4 * GIB - 2)
        file.write(b"across")
    source = FileSource(path)
    assert source.size == 5 * GIB
    assert read(source, 4 * GIB - 3, 4, 4) == b"\0across\0"
    assert read(source, 5 * GIB - 1, 1) == b"\0"
    source.close()


def test_empty_file_has_size_zero_and_nothing_to_read(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    source = FileSource(path)
    assert source.size == 0
    source.read_into([], 0)
    source.check()
    with pytest.raises(ValueError, match="which has 0"):
        read(source, 0, 1)
    source.close()


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (16384, 1), (16000, 385)])
def test_range_outside_the_content_is_the_callers_mistake(image: Path, offset: int, length: int) -> None:
    source = FileSource(image)
    with pytest.raises(ValueError):
        read(source, offset, length)
    source.close()


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"new")


def overwrite_and_set_time_back(path: Path) -> None:
    overwrite(path)
    os.utime(path, ns=(1, 1))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (overwrite, "written to"),
    (overwrite_and_set_time_back, "rewritten"),
    (append, "now has 16388"),
    (lambda path: os.truncate(path, 100), "now has 100"),
    (lambda path: os.truncate(path, 0), "now has 0"),
    (replace, "deleted or replaced"),
    (os.unlink, "deleted or replaced"),
    (lambda path: path.chmod(0o600), "permissions"),
]


@pytest.mark.parametrize(("change", "how"), CHANGES)
def test_change_before_a_read_is_refused(image: Path, change: Callable[[Path], None], how: str) -> None:
    source = FileSource(image)
    read(source, 0, 10)
    change(image)
    with pytest.raises(SourceChangedError, match=how):
        read(source, 0, 10)
    with pytest.raises(SourceChangedError, match=r"image\.wim.*start again"):
        source.check()
    source.close()


@pytest.mark.parametrize(("change", "how"), CHANGES)
def test_change_during_a_read_is_refused(
    image: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], how: str
) -> None:
    real = os.preadv

    def read_then_change(descriptor: int, views: list[memoryview], offset: int) -> int:
        monkeypatch.setattr(os, "preadv", real)
        got = real(descriptor, views, offset)
        change(image)
        return got

    source = FileSource(image)
    monkeypatch.setattr(os, "preadv", read_then_change)
    with pytest.raises(SourceChangedError, match=how):
        read(source, 0, 10)
    source.close()


def test_file_that_ends_between_check_and_read_is_refused(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def truncate_then_read(descriptor: int, views: list[memoryview], offset: int) -> int:
        os.truncate(image, 5)
        return real(descriptor, views, offset)

    source = FileSource(image)
    monkeypatch.setattr(os, "preadv", truncate_then_read)
    with pytest.raises(SourceChangedError, match="truncated"):
        read(source, 0, 10)
    source.close()


def test_reading_is_not_a_change(image: Path) -> None:
    source = FileSource(image)
    image.read_bytes()
    assert read(source, 0, 4) == bytes([0, 1, 2, 3])
    source.check()
    source.close()


def test_failing_disk_is_named(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, views: list[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    source = FileSource(image)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ContentError, match=r"image\.wim.* byte 40: .*system log"):
        read(source, 40, 10)
    source.close()


@pytest.mark.parametrize("name", ["missing", "image.wim/below", "x" * 300, "nul\0"])
def test_missing_file_is_not_found(image: Path, name: str) -> None:
    with pytest.raises(ContentNotFoundError):
        FileSource(f"{image.parent}/{name}")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(ContentError, match="not a regular file"):
            FileSource(path)


def test_unreadable_file_is_an_error_but_not_missing(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ContentError, match="may read it") as caught:
        FileSource(image)
    assert not isinstance(caught.value, ContentNotFoundError)


def test_closed_source_refuses_and_closes_again(image: Path) -> None:
    source = FileSource(image)
    source.close()
    source.close()
    with pytest.raises(ClosedError):
        read(source, 0, 1)
    with pytest.raises(ClosedError):
        source.check()


def test_close_during_two_reads_waits_for_both(image: Path) -> None:
    source = FileSource(image)
    descriptor = source._descriptor
    source._enter()
    source._enter()
    source.close()
    source._leave()
    os.fstat(descriptor)
    source._leave()
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_close_during_a_read_lets_the_read_end_first(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    used: list[int] = []

    def close_then_read(descriptor: int, views: list[memoryview], offset: int) -> int:
        used.append(descriptor)
        source.close()
        return real(descriptor, views, offset)

    source = FileSource(image)
    monkeypatch.setattr(os, "preadv", close_then_read)
    assert read(source, 0, 2) == b"\0\1"
    with pytest.raises(OSError):
        os.fstat(used[0])


def test_content_has_the_name_it_is_given(image: Path) -> None:
    source = FileSource(image, "folder/other.wim")
    assert source.name == "folder/other.wim"
    image.write_bytes(b"")
    with pytest.raises(SourceChangedError, match=r"'folder/other\.wim' changed"):
        source.check()
    source.close()


def test_open_file_is_served_under_its_name_and_closed_with_the_source(image: Path) -> None:
    descriptor = os.open(image, os.O_RDONLY)
    source = FileSource.from_descriptor(descriptor, "folder/image.wim")
    assert (source.name, source.size) == ("folder/image.wim", 16384)
    assert read(source, 250, 3) == image.read_bytes()[250:253]
    source.close()
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_open_directory_is_refused_and_closed(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(ContentError, match="'folder' is not a regular file"):
        FileSource.from_descriptor(descriptor, "folder")
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_opening_leaks_no_descriptor(image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    source = FileSource(image)
    source.check()
    read(source, 0, 1)
    with pytest.raises(ValueError):
        read(source, 16384, 1)
    source.close()
    with pytest.raises(ContentError):
        FileSource(image.parent)
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_source_behaves_like_a_file() -> None:
    source = MemorySource(b"0123456789", "digits")
    assert (source.name, source.size) == ("digits", 10)
    assert read(source, 2, 3, 5) == b"23456789"
    for offset in (9, -4):
        with pytest.raises(ValueError):
            read(source, offset, 2)
    source.close()
    with pytest.raises(ClosedError):
        read(source, 0, 1)


@given(st.lists(st.binary(max_size=5), max_size=8), st.data())
def test_after_is_what_is_left(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    count = data.draw(st.integers(0, len(whole)))
    assert b"".join(after([memoryview(part) for part in parts], count)) == whole[count:]
