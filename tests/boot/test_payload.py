import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from oci2boot.boot.payload import BootPayload, PayloadOptions, finish_payload, plan_payload
from oci2boot.boot.promise import ComposefsPromise
from oci2boot.digest import VerityDigest
from oci2boot.errors import DigestError, ImageError, LimitError
from oci2boot.formats import cpio, os_release, pe
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.tree.files import Read
from oci2boot.tree.model import Directory, File
from tests.boot.debian import kernel, package
from tests.boot.initrds import CLOSED, GROWING, INITRAMFS_TOOLS, SYSTEMD
from tests.boot.trees import joined, scan, tree_of
from tests.witness import program

PROMISE = ComposefsPromise(ComposefsArg(VerityDigest.parse("ab" * 32)))
OPTIONS = PayloadOptions(architecture="amd64", version="20261121.1", arguments=("console=ttyS0",))
OS_RELEASE = b'ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\n'


@pytest.fixture(scope="module")
def debian() -> tuple[Directory, Read]:
    """Debian's kernel and boot loader with an initramfs of three bytes more than a multiple of four."""
    version, files = kernel()
    tree, read_kernel = scan(files)
    loader, read_loader = scan(package("systemd-boot-efi"))
    packed = zstandard.compress(cpio.write(SYSTEMD))
    while len(packed) % 4 != 3:
        packed += b"\0"
    made = tree_of(
        {
            **GROWING,
            f"boot/initrd.img-{version}": packed,
            "usr/lib/os-release": OS_RELEASE,
            "etc/os-release": Path("../usr/lib/os-release"),
            "etc/kernel/cmdline": b"rw quiet\n",
        }
    )

    def read(file: object) -> bytes:
        for reader in (read_kernel, read_loader):
            try:
                return reader(file)  # type: ignore[arg-type]
            except KeyError:
                continue
        raise AssertionError(file)

    return joined(joined(tree, loader), made), read


@pytest.fixture(scope="module")
def payload(debian: tuple[Directory, Read]) -> BootPayload:
    return finish_payload(plan_payload(*debian, PROMISE, OPTIONS))


def section(payload: BootPayload, name: bytes) -> bytes:
    (found,) = pe.parse(payload.uki).sections_named(name)
    return pe.contents(payload.uki, found)


def test_the_uki_promises_the_root_after_the_images_and_the_users_arguments(payload: BootPayload) -> None:
    """C.1, D.9"""
    assert section(payload, b".cmdline").decode() == f"rw quiet {CLOSED} console=ttyS0 composefs={'ab' * 32}"
    assert payload.cmdline == section(payload, b".cmdline").decode()


def test_an_etc_without_content_is_refused(debian: tuple[Directory, Read]) -> None:
    """O.12: composefs-setup-root binds the state's own /etc, in which an installation has an upper directory alone."""
    tree, read = debian
    tree = joined(tree, tree_of({"usr/lib/composefs/setup-root-conf.toml": b'[etc]\nmount = "bind"\n'}))

    def read_any(file: File) -> bytes:
        return file.content if isinstance(file.content, bytes) else read(file)

    with pytest.raises(ImageError, match="which would be empty"):
        plan_payload(tree, read_any, PROMISE, OPTIONS)


def test_the_boot_menu_sorts_by_the_version_that_was_given(payload: BootPayload) -> None:
    """systemd-boot takes IMAGE_ID and IMAGE_VERSION of .osrel; the name says the same."""
    assert os_release.parse(section(payload, b".osrel")) == {
        **os_release.parse(OS_RELEASE),
        "IMAGE_ID": "debian",
        "IMAGE_VERSION": "20261121.1",
    }
    assert payload.uki_path == "EFI/Linux/debian_20261121.1.efi"
    assert section(payload, b".uname").decode() == payload.kernel_version == kernel()[0]


def test_the_kernel_unpacks_both_the_images_initramfs_and_the_glue(payload: BootPayload) -> None:
    found = cpio.read(section(payload, b".initrd"), lambda _: False)
    assert b"usr/lib/systemd/systemd" in found
    assert b"usr/lib/oci2boot/setup-root" in found
    assert payload.glue == "oci2boot"


def test_an_initramfs_with_glue_of_its_own_gets_no_other(debian: tuple[Directory, Read]) -> None:
    tree, read = debian
    own = cpio.write([*SYSTEMD, cpio.file(b"usr/bin/composefs-setup-root", b"")])
    tree = joined(tree, tree_of({f"boot/initrd.img-{kernel()[0]}": own}))
    payload = finish_payload(
        plan_payload(
            tree,
            lambda file: file.content if isinstance(file.content, bytes) else read(file),
            PROMISE,
            OPTIONS,
        )
    )
    assert payload.glue == "composefs-setup-root"
    initrd = section(payload, b".initrd")
    assert initrd.startswith(own)
    added = cpio.read(initrd[len(own) :], lambda _: False)
    assert b"etc/systemd/system/emergency.service" in added
    assert b"usr/lib/oci2boot/setup-root" not in added


def test_a_debug_shell_is_left_where_it_is_asked_for(debian: tuple[Directory, Read], payload: BootPayload) -> None:
    """B.12"""
    opened = finish_payload(plan_payload(*debian, PROMISE, replace(OPTIONS, debug_shell=True)))
    name = b"etc/systemd/system/emergency.service"
    closed = section(payload, b".initrd")
    assert (name in closed, name in section(opened, b".initrd")) == (True, False)
    assert "rd.shell" not in opened.cmdline


def test_the_same_image_gives_the_same_bytes(debian: tuple[Directory, Read], payload: BootPayload) -> None:
    """C.24"""
    assert finish_payload(plan_payload(*debian, PROMISE, OPTIONS)).uki == payload.uki


def test_objdump_reads_the_uki(payload: BootPayload, tmp_path: Path) -> None:
    (tmp_path / "uki.efi").write_bytes(payload.uki)
    said = subprocess.run([program("objdump"), "-h", tmp_path / "uki.efi"], check=True, capture_output=True, text=True)
    names = [line.split()[1] for line in said.stdout.splitlines() if line[:3].strip().isdigit()]
    assert names == [
        ".text",
        ".rodata",
        ".data",
        ".sbat",
        ".sdmagic",
        ".reloc",
        ".osrel",
        ".cmdline",
        ".uname",
        ".linux",
        ".initrd",
    ]


def test_a_uki_that_was_built_wrong_is_not_taken(debian: tuple[Directory, Read], payload: BootPayload) -> None:
    plan = plan_payload(*debian, PROMISE, replace(OPTIONS, arguments=()))
    with pytest.raises(DigestError):
        finish_payload(plan, payload.uki)


def test_sizes_are_told_and_a_limit_holds(debian: tuple[Directory, Read], payload: BootPayload) -> None:
    """C.19"""
    assert payload.sizes.total == len(payload.uki)
    assert payload.sizes.kernel == len(section(payload, b".linux"))
    with pytest.raises(LimitError, match="bytes, 1000 are allowed"):
        finish_payload(plan_payload(*debian, PROMISE, replace(OPTIONS, size_limit=1000)))


def test_a_uki_says_when_the_rootfs_image_is_read_where_that_is_not_as_usual(
    debian: tuple[Directory, Read], payload: BootPayload
) -> None:
    """D.5, C.24: in its initramfs, which its signature covers; what reads ahead has the bytes that it always had."""
    promise = replace(PROMISE, read="on-demand")
    other = finish_payload(plan_payload(*debian, promise, OPTIONS))
    found = cpio.read(section(other, b".initrd"), lambda path: path.endswith(b"/read"))
    assert found.pop(b"usr/lib/oci2boot/read").content == b"on-demand\n"
    assert found.keys() == cpio.read(section(payload, b".initrd"), lambda _: False).keys()
    assert other.cmdline == payload.cmdline


def test_initramfs_tools_find_the_disk_by_its_label(debian: tuple[Directory, Read]) -> None:
    tree, read = debian
    tree = joined(tree, tree_of({f"boot/initrd.img-{kernel()[0]}": cpio.write(INITRAMFS_TOOLS)}))
    payload = finish_payload(plan_payload(tree, read, PROMISE, OPTIONS))
    found = cpio.read(section(payload, b".initrd"), lambda path: path.startswith(b"conf/"))
    assert found[b"conf/conf.d/oci2boot"].content == b"ROOT=LABEL=oci2boot\n"
    assert "root=" not in payload.cmdline


@pytest.mark.parametrize(
    ("path", "words", "hint"),
    [
        ("usr/lib/systemd/boot/efi/linuxx64.efi.stub", "no systemd-stub", "systemd-boot-efi"),
        ("usr/lib/os-release", "no os-release", "systemd"),
    ],
)
def test_what_is_missing_is_named_with_its_package(
    path: str, words: str, hint: str, debian: tuple[Directory, Read]
) -> None:
    tree, read = debian
    hidden = joined(tree, tree_of({path: Path("/nowhere")}))
    with pytest.raises(ImageError, match=words) as caught:
        plan_payload(hidden, read, PROMISE, OPTIONS)
    assert hint in (caught.value.hint or "")


def test_an_image_for_another_machine_is_refused(debian: tuple[Directory, Read]) -> None:
    with pytest.raises(ImageError, match=r"linuxaa64\.efi\.stub"):
        plan_payload(*debian, PROMISE, replace(OPTIONS, architecture="arm64"))
    with pytest.raises(ImageError, match="s390x"):
        plan_payload(*debian, PROMISE, replace(OPTIONS, architecture="s390x"))


@pytest.mark.parametrize(
    ("version", "name"), [("1+2~a b/ä", "debian_1-2-a-b"), ("...", "debian_0"), ("v1.2_3-x", "debian_v1.2_3-x")]
)
def test_names_hold_only_what_systemd_boot_allows(version: str, name: str, debian: tuple[Directory, Read]) -> None:
    assert plan_payload(*debian, PROMISE, replace(OPTIONS, version=version)).name == name
