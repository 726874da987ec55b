from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from wdstransport.content import targets
from wdstransport.content.targets import allocate, check_target, storage_error
from wdstransport.errors import StorageError


def test_new_name_in_a_directory_is_accepted_and_not_created(tmp_path: Path) -> None:
    check_target(tmp_path / "image.wim")
    check_target(str(tmp_path / "image.wim"), force=True)
    assert list(tmp_path.iterdir()) == []


def test_existing_file_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "image.wim"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match="exists already; --force"):
        check_target(path)
    check_target(path, force=True)
    assert path.read_bytes() == b"old"


def test_link_to_nothing_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(StorageError, match="exists already"):
        check_target(tmp_path / "link")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "is a directory; name a file in it"),
        ("link-to-directory", "is a directory"),
        ("fifo", "use '-'"),
        ("file/image.wim", "is a file"),
        ("missing/image.wim", "no directory .*missing; create it"),
        ("loop", "loop|exists"),
        ("x" * 300, "too long"),
        ("nul\0", "null"),
    ],
)
def test_hopeless_target_is_refused_whatever_force_says(
    tmp_path: Path, name: str, message: str, force: bool
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    (tmp_path / "link-to-directory").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match=message):
        check_target(f"{tmp_path}/{name}", force)


def test_disk_is_taken_with_force_only_and_needs_no_right_to_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    try:
        os.mknod(disk, stat.S_IFBLK | 0o600, os.makedev(7, 255))
    except PermissionError:
        pytest.skip("this user may not make a device node")
    monkeypatch.setattr(os, "access", lambda *args, **options: False)
    with pytest.raises(StorageError, match="is a disk; --force"):
        check_target(disk)
    check_target(disk, force=True)


def test_character_device_is_refused() -> None:
    with pytest.raises(StorageError, match="neither a file nor a disk"):
        check_target("/dev/null", force=True)


def test_directory_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *args, **options: False)
    with pytest.raises(StorageError, match="may not write to"):
        check_target(tmp_path / "image.wim")


@pytest.mark.parametrize("code", sorted(targets._CAUSES))
def test_every_known_cause_has_a_remedy(code: int) -> None:
    message = str(storage_error("It failed", OSError(code, os.strerror(code))))
    cause, remedy = message.removeprefix("It failed: ").split(";", 1)
    assert cause
    assert remedy.endswith(".")


def test_unknown_cause_is_quoted() -> None:
    assert "Too many links" in str(storage_error("It failed", OSError(errno.EMLINK, "Too many links")))
    assert "It failed" in str(storage_error("It failed", OSError("no number")))


def test_allocated_file_has_its_size_and_blocks(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        done = allocate(file.fileno(), 1 << 20)
        status = os.fstat(file.fileno())
        assert (status.st_size, status.st_blocks > 0) == ((1 << 20, True) if done else (0, False))


@pytest.mark.parametrize("size", [65537, 1 << 33])
def test_allocation_beyond_the_limit_is_an_error(tmp_path: Path, size: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "file").open("wb") as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
        try:
            with pytest.raises(OSError) as caught:
                allocate(file.fileno(), size)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG


class FakeLibrary:
    def __init__(self, codes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.codes = codes
        self.fallocate64 = lambda *args: -1 if self.codes else 0
        self.fallocate64.argtypes = []  # type: ignore[attr-defined]
        monkeypatch.setattr(targets.ctypes, "CDLL", lambda *args, **options: self)
        monkeypatch.setattr(targets.ctypes, "get_errno", lambda: self.codes.pop(0))


def test_allocation_interrupted_by_a_signal_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeLibrary([errno.EINTR, errno.EINTR], monkeypatch)
    assert allocate(0, 1)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_that_cannot_allocate_is_told(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    FakeLibrary([code], monkeypatch)
    assert not allocate(0, 1)


def test_full_file_system_is_an_error_of_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeLibrary([errno.ENOSPC], monkeypatch)
    with pytest.raises(OSError) as caught:
        allocate(0, 1)
    assert caught.value.errno == errno.ENOSPC


def test_library_without_the_call_cannot_allocate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.ctypes, "CDLL", lambda *args, **options: object())
    assert not allocate(0, 1)
