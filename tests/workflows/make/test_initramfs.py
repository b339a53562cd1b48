"""`convert --initrd dracut`: dracut of the image runs in its root; GNU cpio says what is in the initramfs."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from oci2boot.boot.dracut import DracutOptions
from oci2boot.errors import FormatError, ImageError, LimitError, ToolError
from oci2boot.formats import pe
from oci2boot.oci.reference import Reference
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.store.images import Bootable
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.asked import AskedDracut
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.initramfs import build_dracut, check_out
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest
from tests.boot.debian import package
from tests.boot.trees import scan, tree_of
from tests.witness import program

ASKED = DracutOptions.parse(["/etc/hostname /usr/bin/sha256sum"], ["vfat"], ["nbd"], ["bash"])


def test_a_checked_out_tree_is_the_tree(tmp_path: Path) -> None:
    """K1.14: files, modes, times and symlinks; what a mount would cover is a directory"""
    tree = tree_of({"a/b": b"content", "a/link": Path("/etc/passwd"), "root": Path("var/none"), "proc": Path("a")})
    check_out(tree, lambda file: bytes(file.content), tmp_path / "root")  # type: ignore[arg-type]
    root = tmp_path / "root"
    assert (root / "a/b").read_bytes() == b"content"
    assert (root / "a/b").stat().st_mode & 0o7777 == 0o644
    assert (root / "a/b").stat().st_mtime == 0
    assert (root / "a/link").readlink() == Path("/etc/passwd")
    assert all((root / name).is_dir() and not (root / name).is_symlink() for name in ("root", "proc", "dev", "run"))


def test_options_of_dracut_want_dracut() -> None:
    """K1.14"""
    with pytest.raises(FormatError) as caught:
        AskedDracut(install=("/a",)).options("builtin")
    assert "--initrd dracut" in (caught.value.hint or "")
    assert AskedDracut(install=("/a /b",)).options("dracut").install == ("/a", "/b")
    assert AskedDracut().options("builtin") == DracutOptions()


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[[str], bytes]:
    """Return what makes an initramfs by an image's dracut that is a line of shell; `$o` is where it is wanted."""
    shutil.copytree(package("busybox-static") / "usr/bin", tmp_path / "image/bin")
    (tmp_path / "image/bin/sh").symlink_to("busybox")
    for path in ("usr/bin/cpio", "usr/bin/dracut", "usr/lib/modules/6.1/vmlinuz"):
        (tmp_path / "image" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "image" / path).touch(0o755)

    def make(line: str) -> bytes:
        script = f"#!/bin/busybox sh\nexec 2>&1\nfor o; do :; done\ncd /bin\n./busybox {line}\n"
        (tmp_path / "image/usr/bin/dracut").write_text(script)
        return build_dracut(*scan(tmp_path / "image"), None, "20250101000000", DracutOptions(), silent, verity=False)

    return make


def test_what_dracut_wrote_is_taken(faulty: Callable[[str], bytes]) -> None:
    """K1.14"""
    assert faulty("echo initramfs >$o") == b"initramfs\n"


def test_a_link_to_a_file_of_this_machine_is_not_taken_for_an_initramfs(
    faulty: Callable[[str], bytes], tmp_path: Path
) -> None:
    """K1.14: the image's code chooses where a link leads, and out here it leads to this machine's files"""
    (tmp_path / "secret").write_text("of this machine")
    with pytest.raises(ToolError, match=r"^cannot read the initramfs"):
        faulty(f"ln -s {tmp_path}/secret $o")


def test_an_initramfs_without_end_is_refused(faulty: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """K1.14"""
    monkeypatch.setattr("oci2boot.workflows.make.initramfs.MAX_INITRAMFS", 9)
    with pytest.raises(LimitError, match="more than 9 bytes"):
        faulty("echo initramfs >$o")


# ---- Debian


def initrd_of(repo: Path, bootable: Bootable) -> bytes:
    (path,) = (path for path in bootable.esp if re.fullmatch(r"EFI/Linux/[^/]*\.efi", path))
    uki = (repo / "objects" / bootable.esp[path].path).read_bytes()
    (section,) = pe.parse(uki).sections_named(b".initrd")
    return pe.contents(uki, section)


def listed(initrd: bytes) -> set[str]:
    """Return the paths in the first archive; the glue's comes behind it."""
    archive = zstandard.ZstdDecompressor().decompressobj().decompress(initrd)
    done = subprocess.run([program("cpio"), "--list", "--quiet"], input=archive, capture_output=True, check=True)
    return set(done.stdout.decode().splitlines())


@pytest.mark.demo
def test_dracut_puts_into_the_initramfs_what_was_asked_for(demo_image: Callable[[str], Path], tmp_path: Path) -> None:
    """K1.14, K1.15: and so for the image's next version, in the same bytes"""
    source = Reference.parse(f"oci:{demo_image('dracut')}:latest")
    repo = tmp_path / "repo"
    boot = BootOptions(ukify="builtin", initrd="dracut", dracut=ASKED)
    first = convert(ConvertRequest(source=source, repo=repo, name="demo", boot=boot), silent)
    paths = listed(initrd_of(repo, first))
    modules = f"usr/lib/modules/{first.kernel}/kernel"
    assert {"etc/hostname", "usr/bin/sha256sum", "usr/bin/bash"} <= paths
    assert {f"{modules}/fs/fat/vfat.ko.xz", f"{modules}/drivers/block/nbd.ko.xz"} <= paths
    again = request_again(first, repo, tmp_path, BootOptions())
    assert again.boot
    assert again.boot.dracut == ASKED
    assert initrd_of(repo, convert(again, silent)) == initrd_of(repo, first)
    absent = BootOptions(ukify="builtin", initrd="dracut", dracut=DracutOptions(install=("/none",)))
    with pytest.raises(ImageError, match="no /none"):
        convert(ConvertRequest(source=source, repo=repo, name="demo", boot=absent), silent)


@pytest.mark.demo
def test_dracut_makes_an_initramfs_for_dm_verity(demo_image: Callable[[str], Path], tmp_path: Path) -> None:
    """K1.14, K1.15: the demo image has no initramfs for it; with Debian's package for it, its dracut makes one"""
    layout, files = tmp_path / "layout", tmp_path / "files"
    shutil.copytree(demo_image("dracut"), layout)
    for name in ("systemd-cryptsetup", "libcryptsetup12", "libdevmapper1.02.1", "dmsetup", "libargon2-1", "libjson-c5"):
        shutil.copytree(package(name) / "usr", files / "usr", symlinks=True, dirs_exist_ok=True)
    subprocess.run([program("tar"), "-C", files, "-cf", tmp_path / "layer.tar", "usr"], check=True)
    add = ["raw", "add-layer", "--image", f"{layout}:latest", "--tag", "verity", tmp_path / "layer.tar"]
    subprocess.run([program("umoci"), *map(str, add)], check=True)
    source, repo = Reference.parse(f"oci:{layout}:verity"), tmp_path / "repo"
    boot = BootOptions(ukify="builtin", initrd="dracut")
    options = VerityOptions(signature=False)
    paths = listed(
        initrd_of(
            repo, convert(ConvertRequest(source=source, repo=repo, name="demo", boot=boot, verity=options), silent)
        )
    )
    assert {"usr/lib/systemd/systemd-veritysetup", "usr/sbin/dmsetup"} <= paths
    assert any(path.endswith("/libcryptsetup.so.12") for path in paths)
    assert any(path.endswith("/dm-verity.ko.xz") for path in paths)
