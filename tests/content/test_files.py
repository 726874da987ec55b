from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wdstransport.content import files
from wdstransport.content.files import FileSink
from wdstransport.content.sources import IOV_MAX
from wdstransport.errors import ClosedError, StorageError, UsageError

GIB = 1 << 30
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def views(*parts: bytes) -> list[memoryview]:
    return [memoryview(part) for part in parts]


def prepared(target: Path, size: int, force: bool = False) -> FileSink:
    sink = FileSink(target, size, force)
    sink.prepare()
    return sink


def failing(code: int) -> Callable[..., Any]:
    def fail(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.fixture(autouse=True)
def no_descriptor_stays_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "image.wim"


@pytest.fixture
def part(target: Path) -> Path:
    return target.with_name("image.wim.part")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        # A descriptor left open, which is a failure of its own, must not leave a mount behind as well.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_blocks_in_any_order_become_the_file_only_when_finished(target: Path, part: Path) -> None:
    sink = prepared(target, 10)
    assert sink.description == str(target)
    assert sink.part == part
    assert sink.horizon() is None
    sink.write(views(b"6789"), 6)
    sink.write(views(b"01", b"", b"2345"), 0)
    assert part.exists()
    assert not target.exists()
    sink.finish()
    assert target.read_bytes() == b"0123456789"
    assert not part.exists()


@pytest.mark.parametrize("force", [False, True])
def test_image_is_on_its_disk_before_it_has_its_name_and_the_name_before_it_is_finished(
    target: Path, part: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    flushed: list[tuple[str, bool]] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        sync(descriptor)
        what = os.readlink(f"/proc/self/fd/{descriptor}")
        flushed.append((Path(what).name, target.exists()))

    sink = prepared(target, 3, force)
    sink.write(views(b"new"), 0)
    monkeypatch.setattr(os, "fsync", note)
    sink.finish()
    assert flushed == [(part.name, False), (target.parent.name, True)]


def test_empty_image_becomes_an_empty_file(target: Path, part: Path) -> None:
    sink = prepared(target, 0)
    sink.write([], 0)
    sink.finish()
    assert target.read_bytes() == b""
    assert not part.exists()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 40)), max_size=12),
    st.randoms(use_true_random=True),
)
def test_any_cut_in_any_order_gives_the_image(
    tmp_path: Path, blocks: list[tuple[bytes, int]], random: Random
) -> None:
    image = b"".join(block for block, _ in blocks)
    sink = prepared(tmp_path / "image", len(image), force=True)
    places = []
    offset = 0
    for block, cut in blocks:
        places.append((offset, block[:cut], block[cut:]))
        offset += len(block)
    random.shuffle(places)
    for offset, *parts in places:
        sink.write(views(*parts), offset)
    sink.finish()
    assert (tmp_path / "image").read_bytes() == image


def test_more_views_than_one_system_call_takes(target: Path) -> None:
    count = 2 * IOV_MAX + 3
    image = os.urandom(count * 5)
    sink = prepared(target, len(image))
    sink.write([memoryview(image)[index * 5 : index * 5 + 5] for index in range(count)], 0)
    sink.finish()
    assert target.read_bytes() == image


def test_partial_writes_are_continued(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def stingy(descriptor: int, chunk: list[memoryview], offset: int) -> int:
        return real(descriptor, [b"".join(chunk)[:7]], offset)

    monkeypatch.setattr(os, "pwritev", stingy)
    image = os.urandom(100)
    sink = prepared(target, 100)
    sink.write([memoryview(image)[index : index + 3] for index in range(0, 100, 3)], 0)
    sink.finish()
    assert target.read_bytes() == image


def test_write_that_stores_nothing_is_an_error_not_a_loop(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = prepared(target, 10)
    monkeypatch.setattr(os, "pwritev", lambda *args: 0)
    with pytest.raises(StorageError, match="byte 2: the file system is full"):
        sink.write(views(b"x"), 2)
    sink.discard()


def test_image_beyond_four_gib(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "allocate", lambda descriptor, size: False)
    room = os.fstatvfs
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: _with(room(descriptor), f_bavail=1 << 40))
    sink = prepared(target, 5 * GIB)
    sink.write(views(b"acr", b"oss"), 4 * GIB - 3)
    sink.write(views(b"end"), 5 * GIB - 3)
    sink.finish()
    assert target.stat().st_size == 5 * GIB
    with target.open("rb") as file:
        file.seek(4 * GIB - 4)
        assert file.read(8) == b"\0across\0"
        file.seek(5 * GIB - 3)
        assert file.read() == b"end"


def _with(status: os.statvfs_result, **changes: int) -> os.statvfs_result:
    names = ["f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail"]
    names += ["f_files", "f_ffree", "f_favail", "f_flag", "f_namemax"]
    return os.statvfs_result([changes.get(name, getattr(status, name)) for name in names])


@pytest.mark.parametrize(("offset", "data"), [(-1, b"x"), (10, b"x"), (8, b"xyz")])
def test_bytes_outside_the_image_are_the_callers_mistake(target: Path, offset: int, data: bytes) -> None:
    sink = prepared(target, 10)
    with pytest.raises(ValueError):
        sink.write(views(data), offset)
    sink.discard()


def test_negative_size_is_the_callers_mistake(target: Path) -> None:
    with pytest.raises(ValueError):
        FileSink(target, -1)


def test_calls_out_of_order_are_refused(target: Path) -> None:
    sink = FileSink(target, 1)
    for call in (lambda: sink.write(views(b"x"), 0), sink.finish):
        with pytest.raises(UsageError, match="prepare"):
            call()
    sink.prepare()
    sink.prepare()
    sink.write(views(b"x"), 0)
    sink.finish()
    for call in (sink.prepare, sink.finish, lambda: sink.write(views(b"x"), 0)):
        with pytest.raises(ClosedError):
            call()
    assert sink.abandon() is None
    sink.discard()
    assert target.read_bytes() == b"x"


def test_abandon_keeps_the_part_and_names_it(target: Path, part: Path) -> None:
    sink = prepared(target, 4)
    sink.write(views(b"ab"), 0)
    assert sink.abandon() == part
    assert sink.abandon() is None
    sink.discard()
    assert part.read_bytes() == b"ab\0\0"
    assert not target.exists()


def test_abandon_removes_a_part_that_nothing_was_written_to(target: Path, tmp_path: Path) -> None:
    assert prepared(target, 4).abandon() is None
    assert list(tmp_path.iterdir()) == []


def test_abandon_keeps_the_part_of_an_image_of_no_bytes_that_is_whole(target: Path, part: Path) -> None:
    sink = prepared(target, 0)
    target.write_bytes(b"somebody's")
    with pytest.raises(StorageError, match="The whole image is in"):
        sink.finish()
    assert sink.abandon() == part


def test_discard_leaves_nothing(target: Path, tmp_path: Path) -> None:
    sink = prepared(target, 4)
    sink.write(views(b"ab"), 0)
    sink.discard()
    assert sink.abandon() is None
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_abandon_before_prepare(target: Path, tmp_path: Path) -> None:
    assert FileSink(target, 4).abandon() is None
    FileSink(target, 4).discard()
    assert list(tmp_path.iterdir()) == []


def test_every_end_closes_its_descriptors(target: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for end in (FileSink.finish, FileSink.abandon, FileSink.discard):
        end(prepared(target, 4, force=True))
    with pytest.raises(StorageError):
        prepared(target, 1 << 62, force=True)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["image.wim", "missing/image.wim", "."])
def test_hopeless_target_is_refused_before_anything_is_created(tmp_path: Path, name: str) -> None:
    (tmp_path / "image.wim").write_bytes(b"old")
    with pytest.raises(StorageError):
        prepared(tmp_path / name, 4)
    assert os.listdir(tmp_path) == ["image.wim"]


def test_root_directory_as_the_target_is_refused() -> None:
    with pytest.raises(StorageError, match="is a directory"):
        prepared(Path("/"), 4, force=True)


def test_existing_file_stays_until_force_replaces_it_whole(target: Path) -> None:
    target.write_bytes(b"old")
    target.chmod(0o600)
    sink = prepared(target, 3, force=True)
    sink.write(views(b"new"), 0)
    assert target.read_bytes() == b"old"
    sink.finish()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0, 0o666)])
def test_new_file_gets_the_permissions_of_the_umask(target: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        prepared(target, 0).finish()
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == mode


def test_force_replaces_a_link_and_not_what_it_points_to(target: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    target.symlink_to("other")
    sink = prepared(target, 3, force=True)
    sink.write(views(b"new"), 0)
    sink.finish()
    assert (target.is_symlink(), target.read_bytes()) == (False, b"new")
    assert (tmp_path / "other").read_bytes() == b"other"


@pytest.mark.parametrize("links", [True, False])
def test_file_that_appears_meanwhile_is_left_alone(
    target: Path, part: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
    sink = prepared(target, 3)
    sink.write(views(b"new"), 0)
    target.write_bytes(b"somebody's")
    with pytest.raises(StorageError, match=r"appeared.*image\.wim\.part.*--force"):
        sink.finish()
    assert target.read_bytes() == b"somebody's"
    assert sink.abandon() == part
    assert part.read_bytes() == b"new"


def test_directory_that_appears_meanwhile_stops_force_too(target: Path, part: Path) -> None:
    sink = prepared(target, 3, force=True)
    target.mkdir()
    with pytest.raises(StorageError, match="could not be renamed"):
        sink.finish()
    assert sink.abandon() == part


def test_file_system_without_hard_links_renames(
    target: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EOPNOTSUPP))
    sink = prepared(target, 3)
    sink.write(views(b"new"), 0)
    sink.finish()
    assert target.read_bytes() == b"new"
    assert not part.exists()


def test_file_system_without_hard_links_does_not_replace_a_link_to_nothing_that_appeared(
    target: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EOPNOTSUPP))
    sink = prepared(target, 3)
    target.symlink_to("nothing")
    with pytest.raises(StorageError):
        sink.finish()
    assert target.is_symlink()
    assert sink.abandon() == part


def test_file_system_without_reservations_gives_the_part_its_length(
    target: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "allocate", lambda *_: False)
    sink = prepared(target, 12345)
    assert part.stat().st_size == 12345
    sink.discard()


def test_failing_rename_keeps_the_part(target: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = prepared(target, 3)
    monkeypatch.setattr(os, "link", failing(errno.EIO))
    with pytest.raises(StorageError, match=r"is whole but could not be renamed .*disk"):
        sink.finish()
    assert sink.abandon() == part


def test_part_from_an_earlier_run_is_replaced(target: Path, part: Path) -> None:
    part.write_bytes(b"a longer leftover")
    sink = prepared(target, 3)
    sink.write(views(b"x"), 1)
    sink.finish()
    assert target.read_bytes() == b"\0x\0"


def test_leftover_with_a_second_name_is_not_written_to(target: Path, part: Path) -> None:
    target.write_bytes(b"whole")
    os.link(target, part)
    sink = prepared(target, 3, force=True)
    assert target.read_bytes() == b"whole"
    sink.discard()
    assert target.read_bytes() == b"whole"
    assert not part.exists()


def test_second_receiver_of_one_target_is_refused(target: Path, part: Path) -> None:
    first = prepared(target, 3)
    first.write(views(b"one"), 0)
    with pytest.raises(StorageError, match=r"Another receiver is writing .*image\.wim\.part"):
        prepared(target, 3)
    assert part.read_bytes() == b"one"
    first.finish()
    assert target.read_bytes() == b"one"
    prepared(target, 3, force=True).discard()


def test_receiver_that_loses_the_race_for_a_leftover_is_refused(
    target: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part.write_bytes(b"leftover")
    real = fcntl.flock
    winners: list[FileSink] = []

    def other_first(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        winners.append(prepared(target, 3))
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", other_first)
    with pytest.raises(StorageError, match="Another receiver"):
        prepared(target, 3)
    winners[0].write(views(b"won"), 0)
    winners[0].finish()
    assert target.read_bytes() == b"won"


def test_receiver_whose_new_part_another_locks_first_is_refused(
    target: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.EWOULDBLOCK))
    with pytest.raises(StorageError, match="Another receiver"):
        prepared(target, 3)
    assert part.exists()


def test_part_replaced_between_creation_and_lock_is_created_again(
    target: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def remove_first(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        part.unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    sink = prepared(target, 3)
    sink.write(views(b"new"), 0)
    sink.finish()
    assert target.read_bytes() == b"new"


def test_part_that_is_always_replaced_ends_in_an_error(
    target: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *args: part.unlink())
    with pytest.raises(StorageError, match="keeps being replaced"):
        prepared(target, 3)


def test_file_system_without_locks_is_used_all_the_same(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    prepared(target, 0).finish()
    assert target.exists()


@pytest.mark.parametrize("pointing", ["victim", "nowhere"])
def test_part_that_is_a_link_is_not_followed(target: Path, part: Path, tmp_path: Path, pointing: str) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    part.symlink_to(pointing)
    with pytest.raises(StorageError, match=r"image\.wim\.part is in the way .*remove it"):
        prepared(target, 3)
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_part_that_is_no_file_is_refused_without_waiting(target: Path, part: Path) -> None:
    for make in (os.mkfifo, os.mkdir):
        make(part)
        with pytest.raises(StorageError, match="in the way"):
            prepared(target, 3)
        part.rmdir() if part.is_dir() else part.unlink()


def test_part_of_another_user_is_named(target: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part.write_bytes(b"theirs")
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if path == part.name and not flags & os.O_EXCL:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match="another user"):
        prepared(target, 3)
    assert part.read_bytes() == b"theirs"


@pytest.mark.parametrize("replace", [False, True])
def test_part_that_is_taken_away_meanwhile_is_not_published(target: Path, part: Path, replace: bool) -> None:
    sink = prepared(target, 3)
    part.unlink()
    if replace:
        part.write_bytes(b"another's")
    with pytest.raises(StorageError, match="removed or replaced"):
        sink.finish()
    assert sink.abandon() is None
    assert not target.exists()
    assert part.exists() == replace


def test_link_to_the_part_in_its_place_is_not_published(target: Path, part: Path, tmp_path: Path) -> None:
    sink = prepared(target, 3)
    part.rename(tmp_path / "elsewhere")
    part.symlink_to("elsewhere")
    with pytest.raises(StorageError, match="removed or replaced"):
        sink.finish()
    sink.abandon()
    assert not target.exists()


def test_discard_does_not_remove_what_took_the_parts_place(target: Path, part: Path) -> None:
    sink = prepared(target, 3)
    part.unlink()
    part.write_bytes(b"another's")
    sink.discard()
    assert part.read_bytes() == b"another's"


def test_too_little_space_is_known_before_the_first_byte(target: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"not enough space for .*{1 << 62} bytes.*Free \d+ bytes"):
        prepared(target, 1 << 62)
    assert list(tmp_path.iterdir()) == []


def test_space_that_this_user_may_use_is_what_counts_to_the_byte(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = os.fstatvfs
    free = {"f_bsize": 1 << 20, "f_frsize": 512, "f_blocks": 1000, "f_bfree": 900, "f_bavail": 10}
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: _with(room(descriptor), **free))
    with pytest.raises(StorageError, match=r"image has 5123 bytes, and 5120 are free .* Free 3 bytes"):
        prepared(target, 5123)
    prepared(target, 5120).finish()
    assert target.stat().st_size == 5120


@pytest.mark.parametrize("size", [1 << 63, 1 << 64])
def test_size_no_file_can_have_is_refused(target: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    room = os.fstatvfs
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: _with(room(descriptor), f_blocks=0))
    with pytest.raises(StorageError, match="not enough space"):
        prepared(target, size)


def test_file_system_that_reports_no_blocks_is_tried(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.fstatvfs
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: _with(room(descriptor), f_blocks=0, f_bavail=0))
    prepared(target, 3).finish()
    assert target.stat().st_size == 3


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "full"), (errno.EDQUOT, "quota"), (errno.EFBIG, "FAT32")]
)
def test_reservation_that_fails_leaves_nothing(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    monkeypatch.setattr(files, "allocate", failing(code))
    with pytest.raises(StorageError, match=rf"image\.wim cannot be written: .*{message}"):
        prepared(target, 3)
    assert list(tmp_path.iterdir()) == []


def test_file_size_limit_of_the_shell_is_named(target: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    try:
        with pytest.raises(StorageError, match="ulimit -f"):
            prepared(target, 65537)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "full"), (errno.EIO, "system log"), (errno.EROFS, "read-only")]
)
def test_failing_write_names_the_place_and_keeps_the_part(
    target: Path, part: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    sink = prepared(target, 100)
    sink.write(views(b"x"), 0)
    monkeypatch.setattr(os, "pwritev", failing(code))
    with pytest.raises(StorageError, match=rf"image\.wim\.part could not be written at byte 40: .*{message}"):
        sink.write(views(b"x"), 40)
    assert sink.abandon() == part
    assert not target.exists()


def test_failing_flush_publishes_nothing(target: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = prepared(target, 3)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(StorageError, match=r"could not be flushed.*do not trust"):
        sink.finish()
    assert not target.exists()
    assert sink.abandon() == part


def flush_files_only(code: int) -> Callable[[int], None]:
    real = os.fsync

    def flush(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    return flush


def test_directory_that_cannot_be_flushed_by_its_nature_is_accepted(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = prepared(target, 3)
    monkeypatch.setattr(os, "fsync", flush_files_only(errno.EINVAL))
    sink.finish()
    assert target.exists()


def test_failing_flush_of_the_directory_is_told(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = prepared(target, 3)
    monkeypatch.setattr(os, "fsync", flush_files_only(errno.EIO))
    with pytest.raises(StorageError, match="is whole, but its name"):
        sink.finish()
    assert sink.abandon() is None


def test_directory_that_may_be_written_but_not_read_is_used(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_DIRECTORY and not flags & os.O_PATH:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    sink = prepared(target, 3)
    sink.write(views(b"new"), 0)
    sink.finish()
    assert target.read_bytes() == b"new"


def test_renamed_directory_takes_the_image_along(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    sink = prepared(tmp_path / "before" / "image.wim", 3)
    (tmp_path / "before").rename(tmp_path / "after")
    sink.write(views(b"new"), 0)
    sink.finish()
    assert (tmp_path / "after" / "image.wim").read_bytes() == b"new"


def test_relative_target_survives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sink = FileSink("image.wim", 0)
    monkeypatch.chdir("/")
    sink.prepare()
    sink.finish()
    assert (tmp_path / "image.wim").exists()


@ROOT
def test_real_small_disk_is_refused_before_the_first_byte(small_disk: Path) -> None:
    with pytest.raises(StorageError, match="not enough space"):
        prepared(small_disk / "image.wim", 1 << 20)
    assert list(small_disk.iterdir()) == []


@ROOT
def test_real_disk_that_fills_up_in_the_middle(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "allocate", lambda descriptor, size: False)
    sink = prepared(small_disk / "image.wim", 200_000)
    (small_disk / "other").write_bytes(bytes(150_000))
    with pytest.raises(StorageError, match="is full; free space"):
        sink.write(views(*[b"x" * 1000] * 200), 0)
    assert sink.abandon() == small_disk / "image.wim.part"
    assert not (small_disk / "image.wim").exists()


@ROOT
def test_space_of_a_leftover_counts_as_free(small_disk: Path) -> None:
    (small_disk / "image.wim.part").write_bytes(bytes(200_000))
    prepared(small_disk / "image.wim", 200_000).finish()


@ROOT
def test_real_read_only_disk_is_refused(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match="read-only"):
        prepared(small_disk / "image.wim", 3)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(1 << 20))
    try:
        done = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no losetup command")
    if done.returncode:
        pytest.skip(f"loop devices are not allowed here: {done.stderr.decode().strip()}")
    device = Path(done.stdout.decode().strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


@ROOT
def test_disk_is_written_in_place_with_force_only(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a disk; --force"):
        prepared(disk, 4)
    link = tmp_path / "by-name"
    link.symlink_to(disk)
    sink = prepared(link, 4, force=True)
    assert sink.part == link
    with pytest.raises(StorageError):
        prepared(disk, 4, force=True)
    sink.write(views(b"disk"), 0)
    sink.finish()
    assert disk.read_bytes()[:5] == b"disk\0"
    assert link.is_symlink()
    assert not Path(f"{link}.part").exists()


@ROOT
def test_disk_too_small_for_the_image_is_refused(disk: Path) -> None:
    with pytest.raises(StorageError, match=f"holds {1 << 20} bytes .*larger disk"):
        prepared(disk, (1 << 20) + 1, force=True)


@ROOT
def test_disk_of_an_interrupted_reception_is_named(disk: Path) -> None:
    sink = prepared(disk, 4, force=True)
    sink.write(views(b"ab"), 0)
    assert sink.abandon() == disk
    assert prepared(disk, 4, force=True).abandon() is None
    prepared(disk, 4, force=True).discard()
    assert disk.is_block_device()


def test_file_that_takes_a_disks_place_is_not_written_in_place(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.write_bytes(b"precious")
    monkeypatch.setattr(files, "_is_block_device", lambda path: True)
    with pytest.raises(StorageError, match="was replaced just now"):
        prepared(target, 4, force=True)
    assert target.read_bytes() == b"precious"
