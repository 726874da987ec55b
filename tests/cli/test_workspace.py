from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest

import wdstransport
from cli import workspace as place
from cli.workspace import free_bytes, sha256, workspace, write_random


def test_the_folder_is_gone_afterwards_even_when_the_work_failed():
    def fail(folder: Path) -> None:
        folders.append(folder)
        (folder / "copy").write_bytes(b"data")
        raise ZeroDivisionError

    folders: list[Path] = []
    with pytest.raises(ZeroDivisionError), workspace(10) as folder:
        fail(folder)
    assert not folders[0].exists()


def test_memory_is_used_when_it_has_room_and_the_disk_when_not(monkeypatch, tmp_path):
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    disk.mkdir()
    monkeypatch.setattr(place, "_SHARED_MEMORY", memory)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(disk))
    room = {memory: 1 << 30, disk: 1 << 40}
    monkeypatch.setattr(place, "free_bytes", room.__getitem__)
    with workspace(100 << 20) as folder:
        assert folder.parent == memory
    with workspace(2 << 30) as folder:
        assert folder.parent == disk


def test_without_room_it_fails_before_the_first_byte_and_says_how_much_is_needed(monkeypatch):
    monkeypatch.setattr(place, "free_bytes", lambda path: 1000)
    with (
        pytest.raises(wdstransport.StorageError, match=r"needs 1\.0\d GB.*1\.00 kB free.*--size"),
        workspace(10**9),
    ):
        pass


def test_a_place_that_does_not_exist_has_no_room(tmp_path):
    assert free_bytes(tmp_path / "nowhere") == 0


def test_shared_memory_counts_only_as_far_as_the_machine_has_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(place, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(place, "_available_memory", lambda: 4000)
    assert free_bytes(tmp_path) == 2000


@pytest.mark.parametrize("size", [1, (1 << 20) - 1, 1 << 20, (2 << 20) + 7])
def test_a_random_image_has_its_size_and_the_digest_that_was_returned(tmp_path, size):
    image = tmp_path / "image.bin"
    digest = write_random(image, size)
    assert image.stat().st_size == size
    assert digest == sha256(image) == hashlib.sha256(image.read_bytes()).hexdigest()
