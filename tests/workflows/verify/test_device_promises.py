"""What UKIs and type 1 entries promise of a root file system under dm-verity. systemd-veritysetup-generator(8)"""

import json
from pathlib import Path

import pytest

from oci2boot.formats import cpio
from oci2boot.rootfs.dmverity import SIGNATURE_NAME, VerityOptions
from oci2boot.workflows.verify.disk import Verified
from tests.workflows.sealable import KVER, OS_RELEASE, addon, kernel, uki
from tests.workflows.verify.looking import failures, seen, states
from tests.workflows.verity_disks import TARS, UKI, Image, converted

OPTIONS = "systemd.verity_root_options"
LINES = {
    "none": ("quiet", "no root hash: signed, it boots any root file system"),
    "another": (f"roothash={'ab' * 32}", "no such root file system is here"),
    "two": ("roothash={0} roothash={0}", "2 root hashes"),
    "malformed": ("roothash=zz", "not a root hash"),
    "debug": (f"roothash={{0}} {OPTIONS}=ignore-corruption", "only log what fails verification"),
    "dashes": (f"roothash={{0}} {OPTIONS.replace('_', '-')}=ignore-corruption", "only log what fails verification"),
    "quotes": (f'roothash={{0}} "{OPTIONS}=ignore-corruption"', "only log what fails verification"),
    "far": (f"roothash={{0}} {OPTIONS}=hash-offset={'9' * 19}", "its hash tree begins at"),
    "nowhere": (f"roothash={{0}} {OPTIONS}=hash-offset=x", "its hash tree begins at"),
}
"""By name of the UKI: its command line, and what is said of it."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return converted(tmp_path_factory.mktemp("store") / "repo", TARS, VerityOptions())


def in_table(fields: str) -> bytes:
    """Return a UKI whose initramfs has a table with the root hash. veritytab(5)"""
    table = f"# name data hash root-hash options\nusr a b {'cd' * 32}\nroot PARTLABEL=a PARTLABEL=b {fields}\n"
    return uki("quiet", OS_RELEASE, KVER, cpio.file(b"etc/veritytab", table.encode()))


@pytest.fixture(scope="module")
def verified(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Verified:
    """A disk with all of them."""
    files = {
        **{f"EFI/Linux/{name}.efi": uki(words.format(image.root_hash)) for name, (words, _) in LINES.items()},
        "EFI/Linux/unsigned.efi": uki(f"roothash={image.root_hash} dm_verity.require_signatures=1"),
        "EFI/Linux/table.efi": in_table(f"{image.root_hash} panic-on-corruption"),
        "EFI/Linux/table-debug.efi": in_table(f"{image.root_hash} panic-on-corruption,ignore-corruption"),
        "EFI/Linux/table-other.efi": in_table("ab" * 32),
        "EFI/Linux/added.efi": uki("quiet"),
        "EFI/Linux/added.efi.extra.d/a.addon.efi": addon(f"roothash={image.root_hash} systemd.debug_shell"),
        "loader/entries/good.conf": f"linux /l\noptions roothash={image.root_hash}\n".encode(),
        "loader/entries/none.conf": b"linux /l\noptions quiet\n",
        "EFI/BOOT/BOOTX64.EFI": kernel(),
    }
    made = converted(image.repo, TARS, VerityOptions(), esp=files)
    return seen(made.install(tmp_path_factory.mktemp("disk") / "disk.raw").target)


@pytest.mark.parametrize("name", LINES)
def test_a_uki_that_promises_something_else_is_told(verified: Verified, name: str) -> None:
    assert LINES[name][1] in failures(verified)[f"UKI EFI/Linux/{name}.efi"]


def test_a_signature_that_the_kernel_is_to_demand_is_there(verified: Verified) -> None:
    """K1.1"""
    told = failures(verified)[f"signature EFI/Linux/unsigned.efi.extra.d/{SIGNATURE_NAME}"]
    assert told == "the kernel demands it, and it is not there"


def test_a_table_in_the_initramfs_may_bring_the_promise(verified: Verified) -> None:
    """veritytab(5): where the command line has no root hash."""
    assert states(verified)["UKI EFI/Linux/table.efi"] == "ok"
    found = failures(verified)
    assert "only log what fails verification" in found["UKI EFI/Linux/table-debug.efi"]
    assert "no such root file system is here" in found["UKI EFI/Linux/table-other.efi"]


def test_an_addon_may_bring_the_promise_and_more(verified: Verified) -> None:
    """C.36"""
    found = states(verified)
    assert found["UKI EFI/Linux/added.efi"] == "ok"
    assert found["addon a.addon.efi of EFI/Linux/added.efi"] == "not checked"


def test_type_1_entries_are_held_to_their_word_too(verified: Verified) -> None:
    """D.16"""
    found = states(verified)
    assert found["entry loader/entries/good.conf"] == "ok"
    assert "no root hash" in failures(verified)["entry loader/entries/none.conf"]
    assert found["command line of loader/entries/good.conf"] == "not checked"


def test_without_a_signature_that_is_said(tmp_path: Path) -> None:
    disk = converted(tmp_path / "repo", TARS, VerityOptions()).install(tmp_path / "disk.raw").target
    verified = seen(disk)
    assert verified.ok
    assert states(verified)["signature of the root hash"] == "not checked"
    assert json.loads(json.dumps(verified.to_json()))["ok"] is True


def test_where_nothing_boots_that_is_said(tmp_path: Path) -> None:
    files = {"loader/loader.conf": b""}
    disk = converted(tmp_path / "repo", TARS, VerityOptions(), esp=files).install(tmp_path / "disk.raw").target
    found = failures(seen(disk))
    assert found["UKI"] == "there is none that could be booted"
    assert "no UKI here has a root hash" in found["root file system"]
    assert UKI not in "".join(found)
