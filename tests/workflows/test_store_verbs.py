"""`pull`, `mount` and `uki objects`: the store as `cfsctl` and the kernel see it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci2boot.digest import VerityDigest
from oci2boot.errors import FormatError, SourceError, StoreError, TargetError, ToolError
from oci2boot.oci.reference import Reference
from oci2boot.oci.source import SourceOptions
from oci2boot.store.images import Bootable, remove_image
from oci2boot.store.reach import collect
from oci2boot.store.repository import Repository
from oci2boot.workflows.machine import mount
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.pull import Pulled, pull
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest
from oci2boot.workflows.verify.inspect import InspectedImage, inspect
from oci2boot.workflows.verify.uki_objects import list_objects
from tests.oci.layouts import Layout
from tests.store.stored import everything
from tests.witness import program
from tests.workflows.sealable import add_image, addon, base, tar, uki

CONTENT = b"many words " * 1000


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("images") / "layout")
    add_image(layout, base({"usr/share/words": CONTENT}), "one")
    add_image(layout, [*base({"usr/share/words": CONTENT}), tar({"usr/share/two": b"two" * 1000})], "two")
    return layout


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return tmp_path / "repo"


def pulled(layout: Layout, repo: Path, tag: str) -> Pulled:
    reference = Reference.parse(f"oci:{layout.path}:{tag}")
    return pull(reference, repo, silent, name=tag, algorithm=None, options=SourceOptions())


def converted(layout: Layout, repo: Path, tag: str) -> Bootable:
    request = ConvertRequest(
        source=Reference.parse(f"oci:{layout.path}:{tag}"), repo=repo, name=tag, boot=BootOptions(ukify="builtin")
    )
    return convert(request, silent)


def cfsctl(repo: Path, *words: str | Path) -> str:
    argv = [program("cfsctl"), "--repo", str(repo), "--insecure", *map(str, words)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pulling_stores_layers_and_no_rootfs_image(layout: Layout, repo: Path) -> None:
    """C.8: cfsctl lists the image, finds nothing wrong, collects none of it, and computes its digest from it."""
    found = pulled(layout, repo, "one")
    assert not list((repo / "images").iterdir())
    assert "one" in cfsctl(repo, "oci", "images")
    assert "status: ok" in cfsctl(repo, "fsck")
    assert "Objects: 0 removed" in cfsctl(repo, "gc", "--dry-run")
    before = everything(repo)
    assert pulled(layout, repo, "one") == found
    assert everything(repo) == before
    bootable = converted(layout, repo, "one")
    assert cfsctl(repo, "--erofs-version=1", "oci", "compute-id", "--bootable", "one").strip() == str(
        bootable.root.image
    )
    assert before - everything(repo) <= {name for name in before if name.startswith("streams/refs/oci/")}


def test_what_was_pulled_can_be_forgotten(layout: Layout, repo: Path) -> None:
    pulled(layout, repo, "one")
    one = everything(repo)
    pulled(layout, repo, "two")
    with Repository.open(repo) as repository:
        remove_image(repository, "two")
        collect(repository)
        assert everything(repo) == one
        with pytest.raises(StoreError, match="no image is called 'two'"):
            remove_image(repository, "two")


def test_a_directory_has_no_layers_to_pull(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no layers to pull"):
        pull(Reference.parse(f"dir:{tmp_path}"), repo, silent, name="x", algorithm=None, options=SourceOptions())
    assert not repo.exists()


# ---- objects


@pytest.fixture
def esp(layout: Layout, repo: Path, tmp_path: Path) -> Path:
    """Return the directory of an ESP with the UKIs of both images, written to it from the store."""
    for tag in ("one", "two"):
        bootable = converted(layout, repo, tag)
        (digest,) = (digest for path, digest in bootable.esp.items() if path.startswith("EFI/Linux/"))
        target = tmp_path / f"esp/EFI/Linux/{tag}+3-0.efi"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((repo / "objects" / digest.path).read_bytes())
    return tmp_path / "esp"


def image_objects(repo: Path, rootfs: VerityDigest) -> set[str]:
    return {line.strip().rpartition(":")[2] for line in cfsctl(repo, "image-objects", str(rootfs)).splitlines()}


def test_the_objects_of_ukis_are_those_that_cfsctl_lists(layout: Layout, repo: Path, esp: Path) -> None:
    """C.11"""
    one, two = list_objects([esp], repo)
    expected = {tag: converted(layout, repo, tag).root.image for tag in ("one", "two")}
    for found, tag in ((one, "one"), (two, "two")):
        assert found.uki.endswith(f"EFI/Linux/{tag}+3-0.efi")
        assert found.rootfs == (expected[tag],)
        assert set(map(str, found.objects)) == image_objects(repo, expected[tag]) | {str(expected[tag])}
    assert list_objects([esp / "EFI/Linux/two+3-0.efi"], repo)[0].objects == two.objects


def test_without_the_second_uki_gc_frees_what_only_it_needed(layout: Layout, repo: Path, esp: Path) -> None:
    """C.12: objects of files, by cfsctl's lists."""
    one, two = (converted(layout, repo, tag).root.image for tag in ("one", "two"))
    only_two = (image_objects(repo, two) | {str(two)}) - (image_objects(repo, one) | {str(one)})
    (esp / "EFI/Linux/two+3-0.efi").unlink()
    kept = {str(digest) for found in list_objects([esp], repo) for digest in found.objects}
    with Repository.open(repo) as repository:
        remove_image(repository, "two")
        freed = {str(digest) for digest in collect(repository).objects}
    assert only_two <= freed
    assert not kept & freed


def test_a_uki_that_cannot_be_followed_is_an_error(repo: Path, esp: Path, tmp_path: Path) -> None:
    """Who prunes by the list would remove what such a UKI needs."""
    other = esp / "EFI/Linux/other.efi"
    for made, why in (
        (uki(f"composefs={'ab' * 32}"), "promises abab.*does not have"),
        (uki("rw"), "promises no rootfs image"),
        (b"MZ", "not an EFI executable"),
    ):
        other.write_bytes(made)
        with pytest.raises((StoreError, FormatError), match=why):
            list_objects([esp], repo)
    other.write_bytes(uki("rw"))
    (esp / "EFI/Linux/other.efi.extra.d").mkdir()
    (esp / "EFI/Linux/other.efi.extra.d/x.addon.efi").write_bytes(addon(f"composefs={'ab' * 32}"))
    with pytest.raises(StoreError, match="promises abab"):
        list_objects([other], repo)
    with pytest.raises(FormatError, match="has no UKI in it"):
        list_objects([tmp_path / "repo"], repo)


# ---- mount


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "mounted"
    target.mkdir()
    yield target
    if os.path.ismount(target):
        subprocess.run([program("umount"), target], check=True)


def attempt(repo: Path, target: Path) -> str:
    """Mount the image; return why it could not be done."""
    try:
        mount.mount(repo, "one", target, allow_missing_verity=True)
    except ToolError as error:
        return error.message
    return ""


def test_the_kernel_shows_the_files_of_the_image(layout: Layout, repo: Path, target: Path) -> None:
    """C.14, C.9: EROFS and overlayfs of this kernel. Where tests may not mount, nothing is left of the attempt."""
    converted(layout, repo, "one")
    before = set(Path("/run").glob("oci2boot-*"))
    if refused := attempt(repo, target):
        assert "mount" in refused
        assert not os.path.ismount(target)
    else:
        assert (target / "usr/share/words").read_bytes() == CONTENT
        assert sorted(path.name for path in target.iterdir()) == ["boot", "etc", "run", "sysroot", "usr", "var"]
        assert not list((target / "boot").iterdir())
        with pytest.raises(OSError, match="Read-only file system"):
            (target / "usr/share/words").write_bytes(b"")
    assert set(Path("/run").glob("oci2boot-*")) == before


def test_only_verified_images_of_the_store_are_mounted(layout: Layout, repo: Path, target: Path) -> None:
    """D.24: what `images/` does not name is not given to the kernel."""
    bootable = converted(layout, repo, "one")
    (digest,) = (digest for path, digest in bootable.esp.items() if path.startswith("EFI/Linux/"))
    with pytest.raises(StoreError, match="has no rootfs image"):
        mount.mount(repo, str(digest), target)
    with pytest.raises(StoreError, match="no image is called"):
        mount.mount(repo, "another", target)
    with pytest.raises(TargetError, match="not a directory"):
        mount.mount(repo, str(bootable.root.image), target / "absent", allow_missing_verity=True)
    with Repository.open(repo) as repository:
        secure = repository.secure
    if not secure:
        with pytest.raises(StoreError, match="without fs-verity"):
            mount.mount(repo, "one", target)


def test_the_calls_of_mount() -> None:
    """mount(8), overlayfs.rst: data-only lower layers, `verity=require`."""
    assert mount.erofs_argv(Path("/i"), Path("/m")) == [
        "mount", "-t", "erofs", "-o", "ro,nodev,loop", Path("/i"), Path("/m"),
    ]  # fmt: skip
    argv = mount.overlay_argv(Path("/m"), Path("/r/objects"), Path("/t"), secure=True)
    assert argv[4] == "ro,metacopy=on,redirect_dir=on,verity=require,lowerdir=/m::/r/objects"


def test_the_metadata_is_told_with_its_size_as_it_is_sent(layout: Layout, repo: Path) -> None:
    """C.38: the object's own size, and zstd(1)'s; its frames differ by a few bytes of header and checksum."""
    bootable = converted(layout, repo, "one")
    image = repo / "objects" / bootable.root.image.path
    found = inspect("one", repo, SourceOptions())
    assert isinstance(found, InspectedImage)
    packed = subprocess.run([program("zstd"), "-3", "-c", image], check=True, capture_output=True).stdout
    assert found.rootfs_image_size == image.stat().st_size
    assert abs(found.rootfs_image_compressed_size - len(packed)) <= 32
