"""What lies where on an ESP, with the programs that Debian delivers."""

from pathlib import Path

import pytest

from oci2boot.boot.loader import check_sbat, find_loader, loader_conf
from oci2boot.errors import ImageError
from oci2boot.tree.model import Directory
from tests.boot.debian import package
from tests.boot.trees import read_inline, tree_of

EFI = "usr/lib/systemd/boot/efi"
CONF = b"timeout 9\n"


def delivered(name: str, path: str) -> bytes:
    return (package(name) / path).read_bytes()


@pytest.fixture(scope="module")
def systemd_boot() -> bytes:
    return delivered("systemd-boot-efi", f"{EFI}/systemd-bootx64.efi")


@pytest.fixture(scope="module")
def shim() -> bytes:
    """Signed by Microsoft, twice."""
    return delivered("shim-signed", "usr/lib/shim/shimx64.efi.signed")


@pytest.fixture(scope="module")
def mok_manager() -> bytes:
    return delivered("shim-helpers-amd64-signed", "usr/lib/shim/mmx64.efi.signed")


@pytest.fixture(scope="module")
def debian(systemd_boot: bytes, shim: bytes, mok_manager: bytes) -> Directory:
    return tree_of(
        {
            f"{EFI}/systemd-bootx64.efi": systemd_boot,
            "usr/lib/shim/shimx64.efi.signed": shim,
            "usr/lib/shim/shimx64.efi": b"unsigned",
            "usr/lib/shim/mmx64.efi.signed": mok_manager,
        }
    )


def test_systemd_boot_lies_where_bootctl_puts_it(debian: Directory, systemd_boot: bytes) -> None:
    """D.8, P.9: the removable path too."""
    loader = find_loader(debian, read_inline, "amd64", "systemd-boot", CONF)
    assert loader.programs == {
        "EFI/systemd/systemd-bootx64.efi": systemd_boot,
        "EFI/BOOT/BOOTX64.EFI": systemd_boot,
        "loader/loader.conf": CONF,
        "loader/entries.srel": b"type1\n",
    }
    assert loader.place("EFI/Linux/os_1.efi") == "EFI/Linux/os_1.efi"


def test_a_signed_loader_is_taken_before_one_that_is_not() -> None:
    tree = tree_of({f"{EFI}/systemd-bootx64.efi": b"unsigned", f"{EFI}/systemd-bootx64.efi.signed": b"signed"})
    programs = find_loader(tree, read_inline, "amd64", "systemd-boot", CONF).programs
    assert programs["EFI/BOOT/BOOTX64.EFI"] == programs["EFI/systemd/systemd-bootx64.efi"] == b"signed"


def test_the_menu_is_as_was_asked() -> None:
    """K0.13, P.7; loader.conf(5)"""
    assert loader_conf() == b"timeout 3\neditor no\n"
    assert loader_conf(0, "force") == b"timeout 0\neditor no\nsecure-boot-enroll force\n"


def test_shim_finds_systemd_boot_under_grubs_name(
    debian: Directory, systemd_boot: bytes, shim: bytes, mok_manager: bytes
) -> None:
    """P.9: the names are in shim itself, in UTF-16."""
    programs = dict(find_loader(debian, read_inline, "amd64", "shim", CONF).programs)
    assert programs.pop("EFI/BOOT/BOOTX64.EFI") == shim
    assert programs.pop("EFI/BOOT/grubx64.efi") == systemd_boot
    assert programs.pop("EFI/BOOT/mmx64.efi") == mok_manager
    assert set(programs) == {"loader/loader.conf", "loader/entries.srel"}
    for name in ("\\grubx64.efi", "\\mmx64.efi"):
        assert name.encode("utf-16-le") in shim


@pytest.mark.parametrize(
    "folder",
    ["boot/efi/EFI/fedora", "usr/lib/bootupd/updates/EFI/fedora", "usr/lib/efi/shim/16.1-4/EFI/fedora"],
)
def test_shim_is_found_where_fedora_has_it(folder: str, systemd_boot: bytes, shim: bytes, mok_manager: bytes) -> None:
    files: dict[str, bytes | Path] = {
        f"{EFI}/systemd-bootx64.efi": systemd_boot,
        f"{folder}/shimx64.efi": shim,
        f"{folder}/mmx64.efi": mok_manager,
    }
    programs = find_loader(tree_of(files), read_inline, "amd64", "shim", CONF).programs
    assert (programs["EFI/BOOT/BOOTX64.EFI"], programs["EFI/BOOT/mmx64.efi"]) == (shim, mok_manager)
    del files[f"{folder}/mmx64.efi"]
    loader = find_loader(tree_of(files), read_inline, "amd64", "shim", CONF)
    assert "EFI/BOOT/mmx64.efi" not in loader.programs
    assert "no MokManager" in loader.notes[0]


def test_the_uki_alone_takes_the_place_of_a_loader() -> None:
    """P.9; systemd-stub(7): addons lie beside the UKI under its name."""
    loader = find_loader(tree_of({}), read_inline, "arm64", "direct", CONF)
    assert loader.programs == {}
    assert loader.place("EFI/Linux/os_1.efi") == "EFI/BOOT/BOOTAA64.EFI"
    assert loader.place("EFI/Linux/os_1.efi.extra.d/a.addon.efi") == "EFI/BOOT/BOOTAA64.EFI.extra.d/a.addon.efi"
    assert "no boot menu" in loader.notes[0]


def test_what_is_missing_is_named_with_its_package(debian: Directory) -> None:
    with pytest.raises(ImageError, match="no systemd-boot") as caught:
        find_loader(tree_of({}), read_inline, "amd64", "systemd-boot", CONF)
    assert "systemd-boot-efi" in str(caught.value.hint)
    tree = tree_of({f"{EFI}/systemd-bootx64.efi": b"MZ"})
    with pytest.raises(ImageError, match="no shim for x64") as caught:
        find_loader(tree, read_inline, "amd64", "shim", CONF)
    assert "shim-signed" in str(caught.value.hint)
    with pytest.raises(ImageError, match="s390x"):
        find_loader(debian, read_inline, "s390x", "direct", CONF)


def test_shim_would_refuse_what_has_no_revocation_entry(systemd_boot: bytes) -> None:
    """shim's SBAT.md; Debian's stub for addons has none, what is built of it has to."""
    check_sbat({"EFI/BOOT/grubx64.efi": systemd_boot, "loader/loader.conf": b""})
    stub = delivered("systemd-boot-efi", f"{EFI}/addonx64.efi.stub")
    with pytest.raises(ImageError, match=r"a\.addon\.efi has no section \.sbat"):
        check_sbat({"EFI/Linux/os.efi.extra.d/a.addon.efi": stub})
