"""What boot files promise is here, and who signed them. C.2"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from oci2boot.errors import LimitError
from tests import partitions
from tests.flips import flip
from tests.keys import Pair, make
from tests.witness import program
from tests.workflows.disks import UKI, Demo, boot_files, copied
from tests.workflows.sealable import addon, profiles, uki
from tests.workflows.verify.looking import failures, on_esp, seen, states


def test_a_mounted_root_with_its_esp_is_intact(demo: Demo, root: Path, tmp_path: Path) -> None:
    verified = seen(root, esp=on_esp(tmp_path, boot_files(demo.digest)))
    assert verified.kind == "physical root"
    assert failures(verified) == {}
    assert states(verified)[f"UKI {UKI}"] == "ok"


GOOD = "composefs={digest}"
OTHER = "composefs=" + "ab" * 32
PROMISES: dict[str, tuple[Callable[[str], dict[str, bytes]], str | None]] = {
    "by composefs.digest=": (lambda d: {UKI: uki(f"composefs.digest=v1-sha256-12:{d}")}, None),
    "by an addon": (
        lambda d: {UKI: uki("quiet"), f"{UKI}.extra.d/a.addon.efi": addon(f"composefs={d}")},
        None,
    ),
    "by an addon of a UKI that counts its boots": (
        lambda d: {
            "EFI/Linux/demo+2-1.efi": uki("quiet"),
            "EFI/Linux/demo.efi.extra.d/a.addon.efi": addon(f"composefs={d}"),
        },
        None,
    ),
    "for the other of two hashes": (lambda d: {UKI: uki(f"composefs={d} composefs={'ab' * 64}")}, None),
    "in every profile": (lambda d: {UKI: profiles(f"composefs={d}", None, f"quiet composefs={d}")}, None),
    "another in one profile": (
        lambda d: {UKI: profiles(f"composefs={d}", None, OTHER)},
        "no such root file system is here",
    ),
    "none in one profile": (lambda d: {UKI: profiles(f"composefs={d}", "quiet")}, "has no composefs argument"),
    "optional": (lambda d: {UKI: uki(f"composefs=?{d}")}, "makes verification optional"),
    "malformed": (lambda _: {UKI: uki("composefs=zz")}, "not a composefs argument"),
    "none": (lambda _: {UKI: uki("quiet")}, "has no composefs argument"),
    "by an addon that is not loaded": (
        lambda d: {UKI: uki("quiet"), f"{UKI}.extra.d/a.efi": addon(f"composefs={d}")},
        "has no composefs argument",
    ),
    "by what is no UKI": (lambda _: {UKI: b"MZ" + bytes(100)}, "not an EFI executable"),
}


@pytest.mark.parametrize(("files", "said"), PROMISES.values(), ids=PROMISES.keys())
def test_what_a_uki_promises_is_here(
    demo: Demo, root: Path, files: Callable[[str], dict[str, bytes]], said: str | None, tmp_path: Path
) -> None:
    """C.2"""
    found = failures(seen(root, esp=on_esp(tmp_path, files(demo.digest))))
    ukis = [text for name, text in found.items() if name.startswith("UKI EFI/Linux/demo")]
    if said is None:
        assert ukis == []
    else:
        assert len(ukis) == 1
        assert said in ukis[0]


def test_an_addon_that_runs_something_else_is_named(demo: Demo, root: Path, tmp_path: Path) -> None:
    """C.36: no failure, for who may sign addons may do so."""
    shell = {f"{UKI}.extra.d/shell.addon.efi": addon("quiet systemd.unit=emergency.target")}
    verified = seen(root, esp=on_esp(tmp_path, {UKI: uki(f"composefs={demo.digest}"), **shell}))
    (check,) = [check for check in verified.checks if check.name == f"addon shell.addon.efi of {UKI}"]
    assert check.state == "not checked"
    assert "systemd.unit=emergency.target" in check.evidence
    assert "quiet" not in check.evidence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("rw composefs={}", None),
        ("rw", "has no composefs argument"),
        (OTHER, "no such root file system is here"),
        ("composefs=?{}", "makes verification optional"),
    ],
)
def test_what_a_type_1_entry_promises_is_here(
    demo: Demo, root: Path, options: str, said: str | None, tmp_path: Path
) -> None:
    """C.2, D.16"""
    text = f"linux /linux\noptions {options.format(demo.digest)}\n"
    verified = seen(root, esp=on_esp(tmp_path, {"loader/entries/demo.conf": text.encode()}))
    found = failures(verified)
    assert list(found) == ([] if said is None else ["entry loader/entries/demo.conf"])
    assert said is None or said in found["entry loader/entries/demo.conf"]
    assert states(verified)["command line of loader/entries/demo.conf"] == "not checked"


@pytest.mark.parametrize(
    ("options", "told", "said"),
    [
        ("composefs={}", "{}", None),
        ("rw", "{}", None),
        (OTHER, "{}", "its initramfs promises"),
        ("composefs={}", "ab" * 32, "its initramfs promises " + "ab" * 32),
        ("rw", "ab" * 32, "no such root file system is here"),
        ("composefs={}", "text", "not an fs-verity digest"),
    ],
)
def test_what_the_initramfs_of_an_entry_promises_counts(
    demo: Demo, root: Path, options: str, told: str, said: str | None, tmp_path: Path
) -> None:
    """C.16: the archive is made by cpio; setup-root boots what it says, and no line that says another."""
    (tmp_path / "usr/lib/composefs").mkdir(parents=True)
    (tmp_path / "usr/lib/composefs/rootfs.digest").write_text(told.format(demo.digest) + "\n")
    name = b"usr/lib/composefs/rootfs.digest\n"
    argv = [program("cpio"), "-o", "-H", "newc", "--quiet"]
    archive = subprocess.run(argv, input=name, cwd=tmp_path, check=True, capture_output=True).stdout
    lines = ["linux /EFI/oci2boot/a/linux", "initrd /EFI/oci2boot/a/initrd", "initrd /EFI/oci2boot/B/initrd1"]
    text = "\n".join([*lines, f"options {options.format(demo.digest)}\n"])
    files = {"loader/entries/demo.conf": text.encode(), "efi/OCI2BOOT/b/initrd1": archive}
    found = failures(seen(root, esp=on_esp(tmp_path, files))).get("entry loader/entries/demo.conf")
    assert (found is None) if said is None else (found is not None and said in found)


def test_an_esp_without_a_uki_boots_nothing(root: Path, tmp_path: Path) -> None:
    found = failures(seen(root, esp=on_esp(tmp_path, {"loader/loader.conf": b""})))
    assert found == {"UKI": "there is none that could be booted"}


def test_a_link_is_no_boot_file(demo: Demo, root: Path, tmp_path: Path) -> None:
    """FAT has none; what it leads to may be anywhere."""
    esp = on_esp(tmp_path, {"elsewhere": uki(f"composefs={demo.digest}")})
    (esp / UKI).parent.mkdir(parents=True)
    (esp / UKI).symlink_to(esp / "elsewhere")
    assert failures(seen(root, esp=esp)) == {"UKI": "there is none that could be booted"}


def test_an_esp_has_so_many_files_at_most(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oci2boot.workflows.verify.esp.FILES_MAX", 3)
    with pytest.raises(LimitError, match="more than 3 files"):
        seen(root, esp=on_esp(tmp_path, {f"{number}": b"" for number in range(4)}))


def test_a_uki_that_counts_its_boots_is_the_one_that_was_installed(demo: Demo, tmp_path: Path) -> None:
    """FAT takes upper and lower case for the same. Renamed by mtools."""
    copy = copied(demo, tmp_path)
    esp = f"{copy.disk}@@{partitions.table(copy.disk)[0]['start']}"
    subprocess.run([program("mren"), "-i", esp, f"::/{UKI}", "::/EFI/Linux/DEMO_1+2-1.EFI"], check=True)
    verified = seen(copy.disk)
    assert failures(verified) == {}
    assert states(verified)["boot files"] == "ok"


# Signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Pair]:
    folder = tmp_path_factory.mktemp("keys")
    return make(folder, "ours"), make(folder, "theirs")


def test_signatures_are_held_to_the_certificates_given(
    demo: Demo, root: Path, keys: tuple[Pair, Pair], tmp_path: Path
) -> None:
    """A signature by sbsign; C.2"""
    ours, theirs = keys
    files = {path: ours.sbsign(data) for path, data in boot_files(demo.digest).items() if path[-3:] in ("efi", "EFI")}
    esp = on_esp(tmp_path, files)
    assert states(seen(root, esp=esp, db=(ours.path,)))[f"signature {UKI}"] == "ok"
    assert states(seen(root, esp=esp))[f"signature {UKI}"] == "not checked"
    strangers = failures(seen(root, esp=esp, db=(theirs.path,)))
    assert strangers.keys() == {f"signature {UKI}", "signature EFI/BOOT/BOOTX64.EFI"}
    flip(esp / UKI, files[UKI].index(b"quiet composefs"))
    for options in ({}, {"db": (ours.path,)}):
        assert "changed after it was signed" in failures(seen(root, esp=esp, **options))[f"signature {UKI}"]
    unsigned = on_esp(tmp_path / "unsigned", boot_files(demo.digest))
    assert "not signed" in failures(seen(root, esp=unsigned, db=(ours.path,)))[f"signature {UKI}"]
