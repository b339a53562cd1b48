"""The initramfs that is made of an image's own files."""

import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from oci2boot.boot.initrd import GOAL, OVERLAYS_FILE, SIGNATURE_REQUIRED, Initrd, overlays_file, plan_initrd
from oci2boot.boot.kernel import check_verity_kernel
from oci2boot.errors import ImageError
from oci2boot.formats import cpio
from oci2boot.rootfs.dmverity import Overlay, VerityOptions
from oci2boot.rootfs.mkfs import Compression
from oci2boot.tree.files import Read
from oci2boot.tree.model import Directory
from tests.boot.debian import kernel, package
from tests.boot.trees import joined, read_inline, scan, tree_of
from tests.initramfs.scripts import needed_by
from tests.witness import program

PACKAGES = (
    *("cryptsetup-bin", "libcryptsetup12", "libdevmapper1.02.1", "libargon2-1", "libjson-c5", "libpopt0", "libblkid1"),
    *("libuuid1", "libssl3t64", "libudev1", "libselinux1", "libpcre2-8-0", "libmount1", "mount", "util-linux"),
    *("coreutils", "kmod", "liblzma5", "libzstd1", "zlib1g", "dash", "libc6", "libcap2", "libgmp10", "libacl1"),
    *("libattr1", "libsmartcols1", "libgcc-s1", "libsystemd0"),
)
OVERLAYS = {OVERLAYS_FILE: overlays_file([Overlay("/etc"), Overlay("/var", "tmpfs")])}


@pytest.fixture(scope="module")
def image() -> tuple[Directory, Read]:
    """Return Debian's packages as the root file system that they make."""
    links: dict[str, bytes | Path] = {name: Path(f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")}
    tree = tree_of({**links, "usr/bin/sh": Path("dash")})
    reads: list[tuple[Directory, Read]] = [scan(package(name)) for name in PACKAGES]
    everything, module_read = scan(kernel()[1])
    module_tree = Directory(everything.meta, {name: everything.entries[name] for name in (b"usr", b"boot")})
    for part, _ in [*reads, (module_tree, module_read)]:
        tree = joined(tree, part)
    every = [module_read, *(read for _, read in reads)]

    def read(file):  # type: ignore[no-untyped-def]
        for one in every:
            try:
                return one(file)
            except KeyError:
                continue
        raise AssertionError

    return tree, read


@pytest.fixture(scope="module")
def built(image: tuple[Directory, Read]) -> Initrd:
    return plan_initrd(*image, kernel()[0], "verity", OVERLAYS)


@pytest.fixture(scope="module")
def unpacked(built: Initrd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have zstd and cpio unpack it."""
    folder = tmp_path_factory.mktemp("initrd")
    plain = subprocess.run([program("zstd"), "-dc"], input=built.archive, check=True, capture_output=True).stdout
    subprocess.run([program("cpio"), "-idm", "--quiet"], input=plain, cwd=folder, check=True)
    return folder


def test_an_initramfs_for_verity_is_small(built: Initrd) -> None:
    """C.19"""
    assert len(built.archive) < GOAL
    assert not [note for note in built.notes if "MiB" in note]


def test_it_is_compressed_as_the_kernel_reads_it(built: Initrd, image: tuple[Directory, Read]) -> None:
    """Without a configuration of the kernel it is gzip, which every one reads."""
    tree, read = image
    unknown = Directory(tree.meta, {name: inode for name, inode in tree.entries.items() if name != b"boot"})
    packed = plan_initrd(unknown, read, kernel()[0], "verity", OVERLAYS).archive
    plain = subprocess.run([program("gzip"), "-dc"], input=packed, check=True, capture_output=True).stdout
    assert built.archive.startswith(b"\x28\xb5\x2f\xfd")
    assert cpio.read(plain, lambda _: False) == cpio.read(built.archive, lambda _: False)


def test_the_same_image_gives_the_same_bytes(built: Initrd, image: tuple[Directory, Read]) -> None:
    assert plan_initrd(*image, kernel()[0], "verity", OVERLAYS) == built


def test_every_program_finds_its_libraries(unpacked: Path) -> None:
    """The programs run where nothing else is."""
    libraries = unpacked / "usr/lib/x86_64-linux-gnu"
    for path in [*(unpacked / "usr/bin").iterdir(), *(unpacked / "usr/sbin").iterdir()]:
        file = unpacked / path.readlink().relative_to("/") if path.is_symlink() else path
        argv: list[str | Path] = [
            unpacked / "usr/lib64/ld-linux-x86-64.so.2",
            "--library-path",
            libraries,
            "--list",
            file,
        ]
        listed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        assert "not found" not in listed, path
        assert all(str(unpacked) in line for line in listed.splitlines() if "=>" in line), listed


def test_modprobe_finds_the_drivers(unpacked: Path) -> None:
    """K0.8"""
    for name in (
        "erofs",
        "overlay",
        "dm_verity",
        "virtio:d00000002v00001AF4",
        "pci:v00008086d00002922sv0sd0bc01sc06i01",
    ):
        argv: list[str | Path] = [program("modprobe"), "-d", unpacked, "-S", kernel()[0], "--show-depends", name]
        shown = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        paths = [Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod")]
        assert paths, name
        assert all(path.read_bytes().startswith(b"\x7fELF") for path in paths)


def test_init_is_the_first_program(unpacked: Path) -> None:
    target = unpacked / (unpacked / "init").readlink()
    assert target.read_bytes().startswith(b"#!/bin/sh\n")
    assert target.stat().st_mode & stat.S_IXUSR
    assert {file.name for file in (unpacked / "usr/lib/oci2boot").iterdir()} >= needed_by("init")
    assert (unpacked / "usr/lib/oci2boot/mode").read_text() == "verity\n"
    assert (unpacked / "usr/lib/oci2boot/overlays").read_text() == "/etc persistent\n/var tmpfs\n"


def test_tools_and_files_can_be_added(image: tuple[Directory, Read]) -> None:
    """K1.15: veritysetup in an initramfs of the other mode, for debugging."""
    plain = plan_initrd(*image, kernel()[0], "composefs")
    more = plan_initrd(*image, kernel()[0], "composefs", {SIGNATURE_REQUIRED: b""}, ["veritysetup"])
    assert not [path for path in names(plain) if path.endswith(b"/veritysetup")]
    assert {b"usr/sbin/veritysetup", SIGNATURE_REQUIRED} <= names(more)
    assert plain.arguments == ("root=LABEL=oci2boot", "rw")


def names(initrd: Initrd) -> set[bytes]:
    return set(cpio.read(initrd.archive, lambda _: False))


def test_a_program_that_the_image_lacks_is_named_with_its_package(image: tuple[Directory, Read]) -> None:
    tree, read = image
    usr = tree.entries[b"usr"]
    assert isinstance(usr, Directory)
    sbin = usr.entries[b"sbin"]
    assert isinstance(sbin, Directory)
    without = Directory(sbin.meta, {name: file for name, file in sbin.entries.items() if name != b"veritysetup"})
    poorer = Directory(tree.meta, {**tree.entries, b"usr": Directory(usr.meta, {**usr.entries, b"sbin": without})})
    with pytest.raises(ImageError, match="no program veritysetup") as refused:
        plan_initrd(poorer, read, kernel()[0], "verity", OVERLAYS)
    assert "cryptsetup-bin" in (refused.value.hint or "")


# ---- the kernel

GOOD = dict.fromkeys(
    (
        *("EROFS_FS", "EROFS_FS_XATTR", "EROFS_FS_ZIP", "EROFS_FS_ZIP_ZSTD", "DM_VERITY", "OVERLAY_FS", "EXT4_FS"),
        "DM_VERITY_VERIFY_ROOTHASH_SIG",
    ),
    "y",
)
ZSTD = VerityOptions(compression=Compression.parse("zstd,level=12"))


def check(config: Mapping[str, str], options: VerityOptions) -> None:
    lines = "".join(f"CONFIG_{name}={value}\n" for name, value in config.items())
    check_verity_kernel(tree_of({"boot/config-6.12.1": lines.encode()}), read_inline, "6.12.1", options)


@pytest.mark.parametrize("option", GOOD)
def test_a_kernel_that_could_not_boot_it_is_refused(option: str) -> None:
    """K0.8: the build fails, not the boot."""
    check(GOOD, ZSTD)
    with pytest.raises(ImageError, match=f"without CONFIG_{option}:"):
        check({name: value for name, value in GOOD.items() if name != option}, ZSTD)


def test_what_is_not_asked_for_need_not_be_there() -> None:
    """K0.4, K0.5"""
    check({"EROFS_FS": "y", "EROFS_FS_XATTR": "y"}, VerityOptions(verity=False, signature=False, overlays=()))


def test_debians_kernel_can_all_of_it() -> None:
    version, files = kernel()
    everything = VerityOptions(compression=Compression.parse("zstd:lz4hc:lzma:deflate"))
    assert check_verity_kernel(*scan(files), version, everything).notes == ()
