"""What the UKI of an image for dm-verity says to its initramfs, and what that has to have."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.cli.hints import hint_of
from oci2boot.errors import Error, ImageError
from oci2boot.formats import cpio, pe
from oci2boot.oci.reference import Reference
from oci2boot.rootfs.dmverity import Overlay, VerityOptions
from oci2boot.store.roots import DmVerityRoot
from tests.boot import debian
from tests.boot.initrds import CLOSED
from tests.initramfs.scripts import needed_by
from tests.workflows.verity_images import (
    BUILTIN_OPTIONS,
    HASH_ONLY,
    INITRAMFS,
    ZSTD,
    convert_verity,
    make_image,
    object_of,
    uki_of,
    verity_layers,
    words_of,
)

pytestmark = pytest.mark.usefixtures("erofs_utils")


def test_the_images_arguments_stay_and_rw_does_not(source: Reference, tmp_path: Path) -> None:
    """K1.15, K1.16, K1.18; the image's /etc/kernel/cmdline is `rw quiet`."""
    kargs = ("rd.debug", 'demo="two words"', "systemd.verity_root_options=panic-on-corruption")
    boot = replace(BUILTIN_OPTIONS, kargs=kargs, console="serial")
    words = words_of(tmp_path, convert_verity(source, tmp_path, HASH_ONLY, boot=boot))
    assert words[0] == "ro"
    assert "rw" not in words
    own = ("roothash", "ro", "console")
    closed = CLOSED.split()
    assert [word for word in words if not word.startswith(own) and word not in closed] == ["quiet", *kargs]
    assert set(closed) <= set(words)
    assert "console=ttyS0,115200" in words
    assert not any(word.startswith("composefs") for word in words)


@pytest.mark.parametrize(
    ("karg", "said"),
    [
        (f"roothash={'f' * 64}", "is given, the image has"),
        ('"roothash=0"', "is given, the image has"),
        ("root=/dev/vda2", "contradicts"),
        (f"composefs={'0' * 64}", "contradicts"),
        ("rw", "cannot be written"),
        ("two words", "would not be read back"),
        ('open="quote', "would not be read back"),
        ("systemd.verity_root_data=/dev/vda", "is given, the image has"),
        ("systemd.verity_root_options=whatever", "not an option"),
    ],
)
def test_an_argument_that_contradicts_is_refused(source: Reference, karg: str, said: str, tmp_path: Path) -> None:
    """K1.6, K1.18"""
    with pytest.raises(Error, match=said):
        convert_verity(source, tmp_path / "repo", HASH_ONLY, boot=replace(BUILTIN_OPTIONS, kargs=(karg, "quiet")))


def test_both_partitions_can_be_named(source: Reference, tmp_path: Path) -> None:
    """K1.7, K1.8, K1.9"""
    options = replace(HASH_ONLY, place="embedded", form="systemd", options=("restart-on-corruption",))
    bootable = convert_verity(source, tmp_path, options)
    assert isinstance(bootable.root, DmVerityRoot)
    assert bootable.root.root_hash
    digits = str(bootable.root.root_hash)
    guid = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"
    words = words_of(tmp_path, bootable)
    assert set(CLOSED.split()) <= set(words)
    assert [word for word in words[2:] if word not in CLOSED.split()] == [
        f"roothash={digits}",
        f"systemd.verity_root_data=PARTUUID={guid}",
        f"systemd.verity_root_hash=PARTUUID={guid}",
        f"systemd.verity_root_options=hash-offset={bootable.root.data_size},restart-on-corruption",
    ]


def test_a_veritytab_goes_into_the_initramfs(source: Reference, tmp_path: Path) -> None:
    """K1.20"""
    bootable = convert_verity(source, tmp_path, replace(HASH_ONLY, form="veritytab"))
    uki = uki_of(tmp_path, bootable)
    (section,) = pe.parse(uki).sections_named(b".initrd")
    found = cpio.read(bytes(pe.contents(uki, section)), lambda path: path == b"etc/veritytab")
    assert b"usr/lib/systemd/systemd-veritysetup" in found
    content = found[b"etc/veritytab"].content
    assert content
    assert isinstance(bootable.root, DmVerityRoot)
    assert content.split()[3].decode() == str(bootable.root.root_hash)
    words = words_of(tmp_path, bootable)
    assert "root=/dev/mapper/root" in words
    assert not any(word.startswith("roothash") for word in words)


def test_without_verity_there_is_no_root_hash(source: Reference, tmp_path: Path) -> None:
    """K0.5"""
    options = VerityOptions(compression=ZSTD, verity=False, signature=False)
    bootable = convert_verity(source, tmp_path, options)
    assert bootable.mode == "verity"
    assert isinstance(bootable.root, DmVerityRoot)
    assert (bootable.root.root_hash, bootable.root.hash_object, bootable.root.signature_object) == (None,) * 3
    superblock = subprocess.check_output(
        [debian.erofs_utils("dump.erofs"), "-s", object_of(tmp_path, bootable, "image")], text=True
    )
    uuid = re.search(r"Filesystem UUID: +([0-9a-f-]{36})", superblock)
    assert uuid
    assert words_of(tmp_path, bootable) == ["ro", "quiet", *CLOSED.split(), f"root=UUID={uuid[1]}"]


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        (b"usr/lib/systemd/systemd-veritysetup", "no systemd-veritysetup"),
        (b"usr/lib/systemd/system-generators/systemd-veritysetup-generator", "no systemd-veritysetup-generator"),
    ],
)
def test_an_initramfs_that_cannot_is_refused(left_out: bytes, said: str, tmp_path: Path) -> None:
    """K0.8"""
    source = make_image(tmp_path, verity_layers([one for one in INITRAMFS if one.path != left_out]))
    with pytest.raises(ImageError, match=said) as caught:
        convert_verity(source, tmp_path / "repo", HASH_ONLY)
    assert "--initrd builtin" in (hint_of(caught.value) or "")


@pytest.mark.parametrize("overlays", [(Overlay("/etc"), Overlay("/var", "tmpfs")), ()])
def test_the_images_initramfs_gets_what_lays_the_overlays(
    source: Reference, overlays: tuple[Overlay, ...], tmp_path: Path
) -> None:
    """K0.3, K0.4: a unit that initrd-root-fs.target requires, so that nothing boots without them"""
    uki = uki_of(tmp_path, convert_verity(source, tmp_path, replace(HASH_ONLY, overlays=overlays)))
    (section,) = pe.parse(uki).sections_named(b".initrd")
    found = cpio.read(bytes(pe.contents(uki, section)), lambda path: b"overlays" in path)
    unit = b"usr/lib/systemd/system/oci2boot-setup-overlays.service"
    link = b"usr/lib/systemd/system/initrd-root-fs.target.requires/oci2boot-setup-overlays.service"
    assert (unit in found, link in found) == (bool(overlays), bool(overlays))
    listed = found[b"usr/lib/oci2boot/overlays"].content
    assert listed is not None
    assert listed.split() == [word.encode() for overlay in overlays for word in (overlay.path, overlay.kept)]
    if overlays:
        assert b"FailureAction=reboot-force" in (found[unit].content or b"")
        assert found[link].content == b"../oci2boot-setup-overlays.service"
        # The witness is of composefs: here setup-root only lends its functions.
        names = {name for name in needed_by("setup-overlays") if not name.startswith("witness-")}
        assert {f"usr/lib/oci2boot/{name}".encode() for name in names} <= set(found)
        assert "grow" in names


@pytest.mark.parametrize("overlays", [(Overlay("/etc"),), ()])
def test_the_kernel_is_asked_what_it_mounted(source: Reference, overlays: tuple[Overlay, ...], tmp_path: Path) -> None:
    """C.36, B.12: also where nothing is laid over the root file system; the words of a command line can be appended."""
    bootable = convert_verity(source, tmp_path, replace(HASH_ONLY, overlays=overlays))
    uki = uki_of(tmp_path, bootable)
    (section,) = pe.parse(uki).sections_named(b".initrd")
    found = cpio.read(bytes(pe.contents(uki, section)), lambda _: True)
    unit = b"usr/lib/systemd/system/oci2boot-check-verity.service"
    assert b"FailureAction=reboot-force" in (found[unit].content or b"")
    assert b"Condition" not in (found[unit].content or b"")
    link = found[b"usr/lib/systemd/system/initrd-root-fs.target.requires/oci2boot-check-verity.service"]
    assert link.content == b"../oci2boot-check-verity.service"
    assert isinstance(bootable.root, DmVerityRoot)
    assert found[b"usr/lib/oci2boot/root-hash"].content == f"{bootable.root.root_hash}\n".encode()
    assert {f"usr/lib/oci2boot/{name}".encode() for name in needed_by("check-verity") if "witness" not in name} <= {
        *found, b"usr/lib/oci2boot/grow"
    }  # fmt: skip
    unguarded = VerityOptions(compression=ZSTD, verity=False, signature=False, overlays=overlays)
    uki = uki_of(tmp_path, convert_verity(source, tmp_path, unguarded))
    (section,) = pe.parse(uki).sections_named(b".initrd")
    assert unit not in cpio.read(bytes(pe.contents(uki, section)), lambda _: False)
