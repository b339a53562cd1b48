"""PCR values by systemd-measure of Debian 13, by hand from systemd-stub(7) where it has no word."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from oci2boot.boot.pcr import addons_pcr, after, beside_pcr, by_phase, count_profiles, uki_pcr
from oci2boot.boot.uki import UkiParts, build_uki
from oci2boot.errors import FormatError
from oci2boot.formats import pe
from oci2boot.workflows.keys.executables import Pcr11, describe
from tests.boot.pcrs import measured
from tests.witness import program
from tests.workflows.sealable import OS_RELEASE, kernel, profiles, stub, with_sections

LINE = f"rw composefs={'ab' * 32}"
PARTS = UkiParts(
    kernel=kernel(),
    initrds=(b"070701 first", b"070701 second"),
    cmdline=LINE,
    os_release=OS_RELEASE,
    uname="6.12.1-test",
    microcode=b"microcode",
)


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_pcr_11_is_what_systemd_measure_calculates(bank: str, tmp_path: Path) -> None:
    """C.33"""
    uki = build_uki(stub(), PARTS)
    (sbat,) = pe.parse(uki).sections_named(b".sbat")
    sections = {**{name: b"".join(pieces) for name, pieces in PARTS.sections()}, b".sbat": pe.contents(uki, sbat)}
    assert dict(by_phase(uki_pcr(uki, 0, bank), bank)) == measured(tmp_path, sections, bank)


def test_each_profile_has_a_pcr_11_of_its_own(tmp_path: Path) -> None:
    """C.33: a profile's section takes the place of the base's."""
    uki = profiles(LINE, None, f"{LINE} debug")
    assert count_profiles(uki) == 2
    (tmp_path / "uki.efi").write_bytes(uki)
    shown = describe(tmp_path / "uki.efi").pcr11
    assert isinstance(shown, tuple)
    (sbat,) = pe.parse(uki).sections_named(b".sbat")
    base = {b".osrel": OS_RELEASE, b".linux": kernel(), b".initrd": b"070701", b".sbat": pe.contents(uki, sbat)}
    for number, line in enumerate((LINE.encode(), f"{LINE} debug\0".encode())):
        sections = {**base, b".cmdline": line, b".profile": b"ID=p%d\n" % number}
        expected = measured(tmp_path, sections, "sha256")
        assert dict(by_phase(uki_pcr(uki, number))) == expected
        assert shown[number] == Pcr11(number, expected)


def test_a_uki_that_does_not_insist_has_another_pcr_11() -> None:
    """C.32: unsealed is possible, and shows."""
    unsealed = UkiParts(
        kernel=PARTS.kernel,
        initrds=PARTS.initrds,
        cmdline=LINE.replace("=", "=?"),
        os_release=OS_RELEASE,
        uname=PARTS.uname,
        microcode=b"microcode",
    )
    assert uki_pcr(build_uki(stub(), unsealed)) != uki_pcr(build_uki(stub(), PARTS))


def test_phases_that_an_image_leaves_out_are_not_extended() -> None:
    value = bytes(range(32))
    by_hand = hashlib.sha256(value + hashlib.sha256(b"sysinit").digest()).digest()
    assert after(value, ["sysinit"]) == by_hand
    assert after(value, []) == value


def test_pcr_12_is_extended_once_by_all_that_addons_append() -> None:
    """systemd-stub(7): the joined command line in UTF-16 with its end; no addon, no event."""
    event = hashlib.sha256("a=1 b=\N{LATIN SMALL LETTER A WITH DIAERESIS}\0".encode("utf-16-le")).digest()
    assert (
        addons_pcr(["a=1", "b=\N{LATIN SMALL LETTER A WITH DIAERESIS}"]) == hashlib.sha256(bytes(32) + event).digest()
    )
    assert addons_pcr([]) == bytes(32)


def test_what_depends_on_the_machine_is_not_predicted(tmp_path: Path) -> None:
    uki = with_sections(stub(), [(b".linux", kernel()), (b".dtbauto", b"tree")])
    with pytest.raises(FormatError, match="depends on the machine"):
        uki_pcr(uki)
    (tmp_path / "uki.efi").write_bytes(uki)
    assert "depends on the machine" in str(describe(tmp_path / "uki.efi").pcr11)
    with pytest.raises(FormatError, match="no profile 3"):
        uki_pcr(profiles(LINE, LINE), 3)


def test_credentials_beside_a_uki_are_measured_as_the_archive_that_the_stub_makes() -> None:
    """K0.7: systemd-stub, cpio.c: directories 0555 and 0500, files 0400, inodes from 1, one link each, no times.

    GNU cpio reads the archive; its fields stand here by hand.
    """

    def entry(inode: int, mode: int, name: bytes, data: bytes = b"") -> bytes:
        head = b"070701%08x%08x" % (inode, mode) + b"0" * 16 + b"00000001" + b"0" * 8 + b"%08x" % len(data)
        head += b"0" * 32 + b"%08x" % (len(name) + 1) + b"0" * 8 + name + b"\0"
        return head.ljust((len(head) + 3) & -4, b"\0") + data.ljust((len(data) + 3) & -4, b"\0")

    trailer = b"070701" + b"0" * 32 + b"00000001" + b"0" * 48 + b"0000000B" + b"0" * 8 + b"TRAILER!!!\0\0\0\0"
    archive = entry(1, 0o40555, b".extra") + entry(2, 0o40500, b".extra/credentials")
    archive += entry(3, 0o100400, b".extra/credentials/a.cred", b"12345")
    archive += entry(4, 0o100400, b".extra/credentials/b.cred", b"six bytes") + trailer
    listed = subprocess.run([program("cpio"), "-itv", "--quiet"], input=archive, capture_output=True, check=True)
    assert [line.split()[0] for line in listed.stdout.decode().splitlines()] == [
        "dr-xr-xr-x",
        "dr-x------",
        "-r--------",
        "-r--------",
    ]
    zero = bytes(32)
    first = hashlib.sha256(zero + hashlib.sha256(archive).digest()).digest()
    credentials = {"b.cred": b"six bytes", "a.cred": b"12345"}
    assert beside_pcr([], credentials) == first
    line = hashlib.sha256(zero + hashlib.sha256("quiet\0".encode("utf-16-le")).digest()).digest()
    assert beside_pcr(["quiet"], credentials) == hashlib.sha256(line + hashlib.sha256(archive).digest()).digest()
    assert beside_pcr(["quiet"], {}) == addons_pcr(["quiet"])
