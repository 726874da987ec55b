from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wdstransport.content import namespaces
from wdstransport.content.namespaces import (
    DirectoryNamespace,
    FilesNamespace,
    Namespace,
    build_namespaces,
)
from wdstransport.errors import ContentError, ContentNotFoundError, UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret.wim").write_bytes(b"secret")
    root = tmp_path / "images"
    (root / "win" / "eleven").mkdir(parents=True)
    (root / "boot.wim").write_bytes(b"boot")
    (root / "win" / "install.wim").write_bytes(b"install")
    (root / "win" / "eleven" / "pro.wim").write_bytes(b"pro")
    return root


@pytest.fixture
def images(root: Path) -> DirectoryNamespace:
    return DirectoryNamespace("images", root)


def content(namespace: Namespace, name: str) -> bytes:
    source = namespace.open(name)
    try:
        buffer = bytearray(source.size)
        source.read_into([memoryview(buffer)], 0)
        return bytes(buffer)
    finally:
        source.close()


@pytest.mark.parametrize(
    ("asked", "name", "data"),
    [
        ("boot.wim", "boot.wim", b"boot"),
        ("win/install.wim", "win/install.wim", b"install"),
        ("win\\install.wim", "win/install.wim", b"install"),
        ("win\\eleven/pro.wim", "win/eleven/pro.wim", b"pro"),
    ],
)
def test_directory_opens_files_at_any_depth(
    images: DirectoryNamespace, asked: str, name: str, data: bytes
) -> None:
    assert content(images, asked) == data
    source = images.open(asked)
    assert source.name == images.canonical(asked) == name
    source.close()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "\\",
        "../secret.wim",
        "..\\secret.wim",
        "win/../../secret.wim",
        "win/../boot.wim",
        "./boot.wim",
        "win//install.wim",
        "boot.wim/",
        "win",
        "/boot.wim",
        "\\boot.wim",
        "boot.wim/..",
        "boot.wim/x",
        "BOOT.WIM",
        "boot.wim\0",
        "\0",
        "boot.wim\0/../../secret.wim",
        "C:\\boot.wim",
        "missing",
        "x" * 300,
        "x/" * 5000 + "x",
        "\ud800",
        "...",
    ],
)
def test_directory_refuses_what_is_not_a_file_in_it(images: DirectoryNamespace, name: str) -> None:
    with pytest.raises(ContentNotFoundError):
        images.open(name)


def test_directory_refuses_every_absolute_path(images: DirectoryNamespace, root: Path) -> None:
    for path in (root / "boot.wim", root.parent / "secret.wim", Path("/etc/passwd")):
        for name in (f"{path}", f"{path}".replace("/", "\\"), f"//{path}"):
            with pytest.raises(ContentNotFoundError):
                images.open(name)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("link", "boot.wim"),
        ("link", "./win/.././boot.wim"),
        ("win/link", "../boot.wim"),
        ("win/link", "{root}/boot.wim"),
        ("link", "{root}/win//../boot.wim"),
    ],
)
def test_link_that_stays_inside_is_followed(
    images: DirectoryNamespace, root: Path, link: str, target: str
) -> None:
    (root / link).symlink_to(target.format(root=root))
    assert content(images, link) == b"boot"
    assert (link, 4) in images.contents()


@pytest.mark.parametrize(
    "target",
    [
        "../secret.wim",
        "../boot.wim",
        "win/../../secret.wim",
        "{root}/../secret.wim",
        "{root}/../images/boot.wim",
        "{root}-other/boot.wim",
        "/etc/passwd",
        "/",
        "/proc/self/root{root}/boot.wim",
        "..",
        ".",
        "{root}",
        "link",
        "missing",
    ],
)
def test_link_that_leaves_or_leads_nowhere_is_not_found(
    images: DirectoryNamespace, root: Path, target: str
) -> None:
    (root.parent / "images-other").mkdir()
    (root.parent / "images-other" / "boot.wim").write_bytes(b"other")
    (root / "-other").mkdir()
    (root / "-other" / "boot.wim").write_bytes(b"inside")
    (root / "link").symlink_to(target.format(root=root))
    for name in ("link", "link/link"):
        with pytest.raises(ContentNotFoundError):
            images.open(name)
    assert "link" not in dict(images.contents())


def test_linked_directories_are_followed_inside_and_refused_outside(
    images: DirectoryNamespace, root: Path
) -> None:
    (root / "inside").symlink_to("win/eleven")
    (root / "back").symlink_to("win/eleven/../..")
    (root / "home").symlink_to(root)
    (root / "outside").symlink_to(root.parent)
    assert content(images, "inside/pro.wim") == b"pro"
    assert content(images, "back/boot.wim") == b"boot"
    assert content(images, "home/home/win/install.wim") == b"install"
    for name in ("outside/secret.wim", "outside/images/boot.wim"):
        with pytest.raises(ContentNotFoundError):
            images.open(name)


def test_root_may_itself_be_a_link(root: Path) -> None:
    alias = root.parent / "alias"
    alias.symlink_to(root)
    (root / "real").symlink_to(root / "boot.wim")
    (root / "aliased").symlink_to(alias / "boot.wim")
    images = DirectoryNamespace("images", alias)
    assert [content(images, name) for name in ("boot.wim", "real", "aliased")] == [b"boot"] * 3


def test_endless_links_are_not_found(images: DirectoryNamespace, root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(ContentNotFoundError):
        images.open("a")


def test_devices_and_pipes_are_not_found_and_not_waited_for(images: DirectoryNamespace, root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "null").symlink_to("/dev/null")
    for name in ("fifo", "null"):
        with pytest.raises(ContentNotFoundError):
            images.open(name)


@pytest.mark.parametrize("victim", ["win", "win/install.wim"])
def test_component_that_becomes_a_link_after_the_look_is_not_followed(
    images: DirectoryNamespace, root: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    real = os.open
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "install.wim").write_bytes(b"secret")

    def swap_then_open(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == os.path.basename(victim):
            (root / victim).rename(root / "moved")
            (root / victim).symlink_to(outside if victim == "win" else outside / "install.wim")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swap_then_open)
    with pytest.raises(ContentNotFoundError):
        images.open("win/install.wim")


def test_unreadable_file_is_an_error_but_not_missing(
    images: DirectoryNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "boot.wim":
            raise PermissionError(13, "Permission denied")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ContentError, match="may read it") as caught:
        images.open("boot.wim")
    assert not isinstance(caught.value, ContentNotFoundError)


def test_open_leaks_no_descriptor(images: DirectoryNamespace, root: Path) -> None:
    (root / "link").symlink_to("win/eleven/../../../secret.wim")
    before = len(os.listdir("/proc/self/fd"))
    images.open("win/eleven/pro.wim").close()
    for name in ("link", "win/eleven", "win/eleven/none"):
        with pytest.raises(ContentNotFoundError):
            images.open(name)
    (root / "inside").symlink_to("boot.wim")
    assert ("inside", 4) in images.contents()
    FilesNamespace("images", [root / "boot.wim", root / "win" / "install.wim"]).open("boot.wim").close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_contents_lists_files_that_can_be_asked_for(images: DirectoryNamespace, root: Path) -> None:
    (root / "back\\slash").touch()
    (root / "empty").touch()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff")).touch()
    os.mkfifo(root / "fifo")
    assert images.contents() == [
        ("boot.wim", 4),
        ("empty", 0),
        ("win/eleven/pro.wim", 3),
        ("win/install.wim", 7),
    ]


def test_directory_sees_files_that_come_and_go(images: DirectoryNamespace, root: Path) -> None:
    (root / "late.wim").write_bytes(b"late")
    assert content(images, "late.wim") == b"late"
    (root / "late.wim").unlink()
    with pytest.raises(ContentNotFoundError):
        images.open("late.wim")


def test_relative_root_survives_a_change_of_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    images = DirectoryNamespace("images", "images")
    monkeypatch.chdir("/")
    assert content(images, "boot.wim") == b"boot"


PIECES = st.sampled_from(
    ["..", ".", "", "/", "\\", "boot.wim", "win", "out", "in", "up", "secret.wim", "images"]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES, max_size=8), st.sampled_from(["/", "\\", ""]))
def test_no_spelling_reaches_a_file_outside(
    images: DirectoryNamespace, root: Path, pieces: list[str], joint: str
) -> None:
    for link, target in (("out", ".."), ("in", "win"), ("up", "win/../..")):
        if not (root / link).is_symlink():
            (root / link).symlink_to(target)
    try:
        data = content(images, joint.join(pieces))
    except ContentNotFoundError:
        return
    assert data in (b"boot", b"install", b"pro")


def test_files_are_known_by_their_base_names_only(root: Path) -> None:
    files = FilesNamespace("images", [root / "boot.wim", root / "win" / "install.wim"])
    assert files.contents() == [("boot.wim", 4), ("install.wim", 7)]
    assert content(files, "install.wim") == b"install"
    for name in ("win/install.wim", "./boot.wim", str(root / "boot.wim"), "pro.wim", "..", "", "\0"):
        with pytest.raises(ContentNotFoundError, match="letters' case"):
            files.open(name)


def test_file_may_be_a_link_to_anywhere(root: Path) -> None:
    (root / "link.wim").symlink_to(root.parent / "secret.wim")
    assert content(FilesNamespace("images", [root / "link.wim"]), "link.wim") == b"secret"


def test_file_that_is_gone_is_not_found(root: Path) -> None:
    files = FilesNamespace("images", [root / "boot.wim"])
    (root / "boot.wim").unlink()
    assert files.contents() == []
    with pytest.raises(ContentNotFoundError):
        files.open("boot.wim")


def test_two_files_of_one_name_are_refused(root: Path) -> None:
    (root / "win" / "boot.wim").touch()
    with pytest.raises(UsageError, match=r"win/boot\.wim and .*boot\.wim.*rename one"):
        build_namespaces([root / "boot.wim", root / "win" / "boot.wim"], "images")


def test_one_directory_becomes_a_directory_namespace(root: Path) -> None:
    (namespace,) = build_namespaces([root], "images")
    assert isinstance(namespace, DirectoryNamespace)
    assert namespace.name == "images"


def test_files_become_a_files_namespace(root: Path) -> None:
    (namespace,) = build_namespaces([str(root / "boot.wim")], "other")
    assert isinstance(namespace, FilesNamespace)
    assert namespace.name == "other"


def test_what_cannot_be_served_is_a_usage_error(root: Path) -> None:
    os.mkfifo(root / "fifo")
    for paths, message in (
        ([], "nothing to serve"),
        ([root, root], "Only one directory"),
        ([root / "boot.wim", root], "Only one directory"),
        ([root / "missing"], "does not exist"),
        ([root / "fifo"], "regular file"),
    ):
        with pytest.raises(UsageError, match=message):
            build_namespaces(paths, "images")
    with pytest.raises(UsageError, match="not a directory"):
        DirectoryNamespace("images", root / "boot.wim")


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_namespace_needs_a_name_that_can_be_asked_for(root: Path, name: str) -> None:
    for path in (root, root / "boot.wim"):
        with pytest.raises(UsageError, match="needs a name"):
            build_namespaces([path], name)


def test_links_are_limited_as_in_the_kernel(images: DirectoryNamespace, root: Path) -> None:
    (root / "dot").symlink_to(".")
    assert content(images, "dot/" * namespaces._MAX_LINKS + "boot.wim") == b"boot"
    with pytest.raises(ContentNotFoundError):
        images.open("dot/" * (namespaces._MAX_LINKS + 1) + "boot.wim")
