"""What the kernel command line says of a root under dm-verity, by systemd-veritysetup-generator(8) and veritytab(5)."""

from typing import Any
from uuid import UUID

import pytest

from oci2boot.digest import External, RootHash, VerityDigest
from oci2boot.errors import FormatError
from oci2boot.formats.dmverity import Parameters, plan_area
from oci2boot.rootfs.dmverity import (
    KargForm,
    Overlay,
    VerityOptions,
    VerityRootfs,
    check_sealed,
    merge_arguments,
    verity_arguments,
    veritytab,
)

HEX = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
DATA = "PARTUUID=00010203-0405-0607-0809-0a0b0c0d0e0f"
TREE = "PARTUUID=10111213-1415-1617-1819-1a1b1c1d1e1f"
SIZE = 40960
ROOT = VerityRootfs(
    image=External(VerityDigest("sha256", bytes(32)), SIZE),
    raw_size=99999,
    uuid=UUID(int=7),
    area=plan_area(SIZE, Parameters()),
    root_hash=RootHash.parse(HEX),
)

UNSIGNED = VerityOptions(signature=False)


@pytest.mark.parametrize("form", ["roothash", "systemd", "veritytab"])
def test_a_signature_is_required_and_found_where_the_stub_puts_it(form: KargForm) -> None:
    """K1.1; root-hash-signature= of veritytab(5), /.extra/credentials/*.cred of systemd-stub(7)"""
    options = VerityOptions(form=form)
    words = verity_arguments(ROOT, options)
    assert "dm_verity.require_signatures=1" in words
    said = veritytab(ROOT, options).decode() if form == "veritytab" else words[-1]
    assert "root-hash-signature=/.extra/credentials/roothash.p7s.cred" in said
    assert "signature" not in "".join(verity_arguments(ROOT, VerityOptions(form=form, signature=False)))


def test_the_root_hash_is_enough_for_discoverable_partitions() -> None:
    """K1.6, K1.8"""
    assert verity_arguments(ROOT, UNSIGNED) == [f"roothash={HEX}"]


def test_both_partitions_can_be_named() -> None:
    """K1.7, K1.21"""
    options = VerityOptions(form="systemd", signature=False, options=("panic-on-corruption",))
    assert verity_arguments(ROOT, options) == [
        f"roothash={HEX}",
        f"systemd.verity_root_data={DATA}",
        f"systemd.verity_root_hash={TREE}",
        "systemd.verity_root_options=panic-on-corruption",
    ]


def test_an_embedded_tree_is_found_by_its_offset() -> None:
    """K1.9"""
    options = VerityOptions(form="systemd", place="embedded", signature=False, options=("restart-on-corruption",))
    assert verity_arguments(ROOT, options)[1:] == [
        f"systemd.verity_root_data={DATA}",
        f"systemd.verity_root_hash={DATA}",
        f"systemd.verity_root_options=hash-offset={SIZE},restart-on-corruption",
    ]
    with pytest.raises(FormatError, match="not found by the root hash alone"):
        VerityOptions(place="embedded")


def test_a_veritytab_says_the_same() -> None:
    """K1.20"""
    options = VerityOptions(form="veritytab", signature=False, options=("panic-on-corruption",))
    assert verity_arguments(ROOT, options) == ["root=/dev/mapper/root"]
    assert veritytab(ROOT, options).decode() == f"root {DATA} {TREE} {HEX} panic-on-corruption\n"
    assert veritytab(ROOT, VerityOptions(form="veritytab", signature=False)).decode() == f"root {DATA} {TREE} {HEX} -\n"


def test_without_verity_the_file_system_is_named() -> None:
    """K0.5"""
    root = VerityRootfs(image=ROOT.image, raw_size=1, uuid=UUID(int=7))
    own = verity_arguments(root, VerityOptions(verity=False, signature=False))
    assert own == ["root=UUID=00000000-0000-0000-0000-000000000007"]
    with pytest.raises(FormatError, match="contradicts"):
        merge_arguments(["root=/dev/vda2"], own)


def test_the_root_hash_is_there_exactly_once() -> None:
    """K1.6"""
    own = verity_arguments(ROOT, UNSIGNED)
    assert merge_arguments(["quiet", f"roothash={HEX}", "rd.debug"], own) == ["quiet", "rd.debug", f"roothash={HEX}"]
    assert merge_arguments(["systemd.verity_root_options=check-at-most-once"], own) == [
        f"roothash={HEX}",
        "systemd.verity_root_options=check-at-most-once",
    ]


@pytest.mark.parametrize(
    "word",
    [
        f"roothash={'f' * 64}",
        "roothash=",
        "roothash",
        "root=/dev/vda2",
        "systemd.verity_root_data=/dev/vda9",
        f"composefs={HEX}",
        "systemd.verity_root_options=ignore-corruption,panic-on-corruption",
        "systemd.verity_root_options=root-hash-signature=/x",
        f'"roothash={"f" * 64}"',
        'ro"ot"=/dev/vda2',
        "systemd.verity-root-data=/dev/vda9",
        "dm_verity.require_signatures=0",
        "dm-verity.require_signatures=0",
        "systemd.verity=no",
        "rd.systemd.verity=0",
        "rd.veritytab=0",
    ],
)
def test_a_contradiction_is_an_error(word: str) -> None:
    """K1.6"""
    with pytest.raises(FormatError):
        merge_arguments([word], verity_arguments(ROOT, VerityOptions()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"verity": False, "options": ("panic-on-corruption",)}, "dm-verity is left out"),
        ({"verity": False, "blocks": 5}, "dm-verity is left out"),
        ({"blocks": 0}, "at least one must be guarded"),
        ({"salt": bytes(257)}, "salt of 257"),
        ({"options": ("panic",)}, "not an option"),
        ({"options": ("panic-on-corruption", "ignore-corruption")}, "two options say"),
        ({"overlays": (Overlay("/var"), Overlay("/var"))}, "two overlays are on /var"),
        ({"overlays": (Overlay("/var"), Overlay("/var/lib"))}, "two overlays are on /var/lib"),
    ],
)
def test_what_cannot_go_together_is_refused(options: dict[str, Any], words: str) -> None:
    """K0.16"""
    with pytest.raises(FormatError, match=words):
        VerityOptions(**options)


def test_debugging_is_not_signed() -> None:
    """K1.21"""
    with pytest.raises(FormatError, match="switches verification off"):
        check_sealed(("panic-on-corruption", "ignore-corruption"))
    check_sealed(("panic-on-corruption",))


@pytest.mark.parametrize("text", ["/var", "/home", "/etc", "/var:tmpfs", "/srv/data"])
def test_an_overlay_is_read_and_written(text: str) -> None:
    """K0.4"""
    assert str(Overlay.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "/", "var", "/usr", "/usr/local", "/bin", "/boot", "/var/../usr", "/var:disk", "/var:", "/a b", "//var"],
)
def test_an_overlay_over_what_is_verified_is_refused(text: str) -> None:
    """K0.16, K0.17"""
    with pytest.raises(FormatError):
        Overlay.parse(text)
