"""Live ISOs, as xorriso, sgdisk, blkid, mtools and veritysetup read them."""

import codecs
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.digest import RootHash, VerityDigest
from oci2boot.errors import DigestError, TargetError, ToolError
from oci2boot.formats.fsverity import measure
from oci2boot.target.entries import EspFile
from oci2boot.target.images import Part, VerityParts, verity_images
from oci2boot.target.iso import plan_iso, volume_id, write_iso
from oci2boot.target.plan import DiskOptions, DiskPlan
from tests.target.disks import EPOCH, SEED, ordinarily, said, working_directory
from tests.witness import program

CONTENT = b"".join(number.to_bytes(4, "little") for number in range(1 << 18))
UKI = b"a kernel" * (1 << 19)
OPTIONS = DiskOptions(seed=SEED, epoch=EPOCH)


def plan(root_hash: str = "ab" * 32, area: bytes = bytes(4096), digest: VerityDigest | None = None) -> DiskPlan:
    given = VerityParts(Part(CONTENT, digest), RootHash.parse(root_hash), Part(area))
    images = verity_images(given, "amd64", "00000000-0000-0000-0000-000000000001", embedded=False)
    files = [EspFile("EFI/BOOT/BOOTX64.EFI", b"loader"), EspFile("EFI/Linux/a.efi", UKI)]
    return plan_iso(files, images, OPTIONS)


def test_other_programs_find_what_is_on_it() -> None:
    """K0.13: an ordinary user makes it, and every reader agrees on what boots, what is where and that it is intact."""
    with working_directory() as folder:
        root, tree, iso = folder / "root", folder / "tree", folder / "live.iso"
        root.write_bytes(CONTENT)
        told = said("veritysetup", "format", root, tree)
        root_hash = re.search(r"Root hash:\s+([0-9a-f]{64})", told)
        assert root_hash
        codecs.lookup("utf-16-le")  # an ordinary user may not read Python's own files
        made = plan(root_hash[1], tree.read_bytes())
        ordinarily(lambda: write_iso(made, iso, "A_NAME"))
        assert sorted(path.name for path in folder.iterdir()) == ["live.iso", "root", "tree"]

        torito = said("xorriso", "-no_rc", "-indev", iso, "-report_el_torito", "plain")
        image = re.search(r"boot img : +1 +UEFI +y +none +0x0000 +0x00 +(\d+) +(\d+)", torito)
        assert image
        assert int(image[2]) * 2048 == made.esp.start
        assert int(image[1]) == 0, "more than 65535 sectors cannot be said: UEFI then takes all that follows"
        assert "No problems found" in said("sgdisk", "--verify", iso)
        known = said("blkid", "--probe", "--output", "export", iso)
        assert "TYPE=iso9660\n" in known
        assert "LABEL=A_NAME\n" in known
        assert f"PTUUID={made.guid}\n" in known

        esp, size = made.esp.start, made.esp.size
        assert size < 48 << 20
        part = folder / "part"
        part.write_bytes(iso.read_bytes()[esp : esp + size])
        said("fsck.vfat", "-n", part)
        assert subprocess.check_output([program("mtype"), "-i", part, "::EFI/Linux/a.efi"]) == UKI

        pieces = []
        for number, half in ((2, root_hash[1][:32]), (3, root_hash[1][32:])):
            told = said("sgdisk", f"--info={number}", iso).lower()
            found = re.search(r"unique guid: (\S+)", told)
            assert found
            assert found[1].replace("-", "") == half
            assert "attribute flags: 1000000000000000" in told
            first, last = (int(re.search(rf"{word} sector: (\d+)", told)[1]) for word in ("first", "last"))  # type: ignore[index]
            pieces.append(folder / f"piece{number}")
            pieces[-1].write_bytes(iso.read_bytes()[first * 512 : (last + 1) * 512])
        said("veritysetup", "verify", *pieces, root_hash[1])


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one.iso", tmp_path / "two.iso"
    write_iso(plan(), one, "A_NAME")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.sleep(1.1)  # both formats have times in seconds
    write_iso(plan(), two, "A_NAME")
    assert one.read_bytes() == two.read_bytes()
    write_iso(replace(plan(), epoch=0), two, "A_NAME", overwrite=True)
    assert one.read_bytes() != two.read_bytes()


def test_what_is_there_stays(tmp_path: Path) -> None:
    target = tmp_path / "live.iso"
    target.write_text("mine")
    with pytest.raises(TargetError, match="exists already"):
        write_iso(plan(), target, "A_NAME")
    with pytest.raises(DigestError, match="partition root"):
        write_iso(plan(digest=measure(b"other content")), target, "A_NAME", overwrite=True)
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_without_xorriso_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("mkfs.vfat", "mmd", "mcopy"):
        (tools / name).symlink_to(program(name))
    monkeypatch.setattr(
        "oci2boot.system.run.find_program", lambda name: str(tools / name) if (tools / name).exists() else None
    )
    with pytest.raises(ToolError, match="xorriso is not installed") as caught:
        write_iso(plan(), tmp_path / "live.iso", "A_NAME")
    assert caught.value.hint == "install the package xorriso"
    assert list(tmp_path.iterdir()) == [tools]


def test_what_no_live_iso_can_have() -> None:
    with pytest.raises(TargetError, match="root file system") as caught:
        plan_iso([], [], OPTIONS)
    assert "the mode verity" in str(caught.value.hint)
    images = verity_images(
        VerityParts(Part(CONTENT), RootHash.parse("ab" * 32), Part(bytes(4096))), "amd64", "", embedded=False
    )
    for options, why in ((replace(OPTIONS, size=1 << 40), "a size"), (replace(OPTIONS, sector=4096), "512 bytes")):
        with pytest.raises(TargetError, match=why):
            plan_iso([], images, options)


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("demo", "DEMO"),
        ("quay.io/x/y:1.0", "QUAY_IO_X_Y_1_0"),
        ("ä/ö", "OCI2BOOT"),
        ("a" * 40, "A" * 32),
    ],
)
def test_a_name_becomes_a_volume_identifier(name: str, identifier: str) -> None:
    assert volume_id(name) == identifier
