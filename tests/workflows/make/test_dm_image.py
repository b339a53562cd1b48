"""A tree under dm-verity in the store: veritysetup says what its root hash is, fsck.erofs what is in it."""

import subprocess
from pathlib import Path

import pytest

from oci2boot.digest import VerityDigest
from oci2boot.errors import DigestError, FormatError, ToolError
from oci2boot.rootfs.dmverity import VerityOptions, VerityRootfs
from oci2boot.rootfs.mkfs import Compression
from oci2boot.store.objects import ObjectBatch
from oci2boot.store.repository import Repository
from oci2boot.workflows.make.dm_image import build_verity
from oci2boot.workflows.progress import Event, Told, silent
from tests.boot import debian
from tests.rootfs.plain import Contents, every_kind
from tests.witness import program

IDENTITY = VerityDigest("sha256", bytes(range(32)))
ZSTD = Compression.parse("zstd,level=3")


@pytest.fixture
def erofs_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Debian 13's mkfs.erofs first on PATH."""
    folder = debian.erofs_utils("mkfs.erofs").parent
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def built(repository: Repository, options: VerityOptions, report: list[Event] | None = None) -> VerityRootfs:
    contents: Contents = {}
    tree = every_kind(contents)
    with ObjectBatch(repository) as batch:
        for data in contents.values():
            batch.add(data)
    return build_verity(tree, options, IDENTITY, repository, silent if report is None else report.append)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.ensure(tmp_path / "repo")


OPTIONS = {
    "plain": VerityOptions(),
    "sha512": VerityOptions(hash="sha512", salt=b""),
    "zstd": VerityOptions(compression=ZSTD),
    "first blocks": VerityOptions(blocks=100),
}


@pytest.mark.usefixtures("erofs_utils")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_veritysetup_verifies_what_is_stored(repository: Repository, options: VerityOptions) -> None:
    """K0.1, K0.5, K1.13"""
    root = built(repository, options)
    assert root.area is not None
    assert root.tree is not None
    image, tree = repository.object_path(root.image.digest), repository.object_path(root.tree.digest)
    assert (image.stat().st_size, tree.stat().st_size) == (root.image.size, root.tree.size)
    subprocess.run([program("veritysetup"), "verify", image, tree, str(root.root_hash)], check=True)
    dumped = subprocess.check_output([program("veritysetup"), "dump", tree], text=True)
    blocks = options.blocks or root.image.size // 4096
    assert f"Data blocks:     \t{blocks}\n" in dumped
    fsck = debian.erofs_utils("fsck.erofs")
    subprocess.run([fsck, "--extract", image], check=True, capture_output=True)


@pytest.mark.usefixtures("erofs_utils")
def test_the_sizes_are_told(repository: Repository) -> None:
    """K0.15"""
    told: list[Event] = []
    root = built(repository, OPTIONS["zstd"], told)
    (text,) = (event.text for event in told if isinstance(event, Told))
    assert text.startswith(f"EROFS {root.image.size / 2**20:.1f} MiB of {root.raw_size / 2**20:.1f} MiB")


@pytest.mark.usefixtures("erofs_utils")
def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    one, two = (built(Repository.ensure(tmp_path / name), OPTIONS["zstd"]) for name in ("1", "2"))
    assert one == two


def test_without_verity_there_is_no_root_hash(repository: Repository) -> None:
    """K0.5"""
    root = built(repository, VerityOptions(verity=False))
    assert (root.root_hash, root.area, root.tree) == (None, None, None)


def test_more_blocks_than_there_are_are_refused(repository: Repository) -> None:
    with pytest.raises(FormatError, match="--verity-blocks 99999: the image has"):
        built(repository, VerityOptions(blocks=99999))
    assert not list(repository.path.glob(".staging-*"))


def test_a_damaged_object_is_noticed(repository: Repository) -> None:
    built(repository, VerityOptions())
    contents: Contents = {}
    tree = every_kind(contents)
    victim = max(contents, key=lambda content: content.size)
    path = repository.object_path(victim.digest)
    path.chmod(0o644)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(DigestError, match="is damaged"):
        build_verity(tree, VerityOptions(), IDENTITY, repository, silent)


def test_an_old_program_is_named(repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "bin/mkfs.erofs"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho mkfs.erofs 1.5\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent), prepend=":")
    with pytest.raises(ToolError, match=r"mkfs.erofs is 1\.5"):
        built(repository, OPTIONS["zstd"])
