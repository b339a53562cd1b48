"""PCR 12 by hand, from systemd-stub(7) and what systemd's stub.c drops."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from oci2boot.boot.beside import predict_pcr_12
from oci2boot.boot.pcr import beside_pcr
from oci2boot.errors import FormatError
from tests.keys import make
from tests.workflows.sealable import KVER, addon, addon_stub, uki, with_sections

PATH = "EFI/Linux/os.efi"
EXTRA = f"{PATH}.extra.d"
UKI = uki(f"rw composefs={'ab' * 32}")
NOTHING = bytes(32)


def predicted(
    beside: Mapping[str, bytes], *, program: bytes = UKI, path: str = PATH, secure_boot: bool = False
) -> bytes:
    files = {path: program, **beside}
    return predict_pcr_12({name: partial(bytes, data) for name, data in files.items()}, path, secure_boot=secure_boot)


def measured(line: str) -> bytes:
    """systemd-stub(7): one event, the line in UTF-16 with its end."""
    return hashlib.sha256(NOTHING + hashlib.sha256(f"{line}\0".encode("utf-16-le")).digest()).digest()


def for_kernel(uname: bytes, line: bytes = b"debug") -> bytes:
    return with_sections(addon_stub(), [(b".cmdline", line), (b".uname", uname)])


def test_addons_for_all_come_before_those_of_the_uki_each_in_order_of_name() -> None:
    beside = {
        f"{EXTRA}/b.addon.efi": addon("four"),
        f"{EXTRA}/a.addon.efi": addon("three"),
        "loader/addons/z.addon.efi": addon("two"),
        "loader/addons/Y.ADDON.EFI": addon("one"),
        "EFI/Linux/other.efi.extra.d/a.addon.efi": addon("another"),
        f"{EXTRA}/deeper/a.addon.efi": addon("deeper"),
    }
    assert predicted(beside) == measured("one two three four")
    assert predicted({}) == NOTHING


def test_an_addon_for_another_kernel_is_not_counted() -> None:
    assert predicted({f"{EXTRA}/a.addon.efi": for_kernel(b"6.1.0-other")}) == NOTHING
    assert predicted({f"{EXTRA}/a.addon.efi": for_kernel(KVER.encode())}) == measured("debug")
    assert predicted({f"{EXTRA}/a.addon.efi": for_kernel(KVER.encode() + b"\0")}) == measured("debug")
    # strncmp() looks at no more than the section has, and at all that it has.
    assert predicted({f"{EXTRA}/a.addon.efi": for_kernel(KVER[:4].encode())}) == measured("debug")
    assert predicted({f"{EXTRA}/a.addon.efi": for_kernel(KVER[:4].encode() + b"\0")}) == NOTHING
    assert predicted({f"{EXTRA}/a.addon.efi": for_kernel(KVER.encode() + b"\n")}) == NOTHING
    nameless = with_sections(addon_stub(), [(b".linux", b"kernel")])
    assert predicted({f"{EXTRA}/a.addon.efi": for_kernel(b"6.1.0-other")}, program=nameless) == measured("debug")


def test_under_secure_boot_an_unsigned_addon_is_not_counted(tmp_path: Path) -> None:
    beside = {
        f"{EXTRA}/a.addon.efi": addon("debug"),
        f"{EXTRA}/b.addon.efi": make(tmp_path, "db").sbsign(addon("quiet")),
    }
    assert predicted(beside, secure_boot=True) == measured("quiet")
    assert predicted(beside) == measured("debug quiet")


def test_the_line_is_measured_as_the_stub_cleans_it() -> None:
    beside = {f"{EXTRA}/a.addon.efi": addon("\n a\tb\x7f\0rest"), f"{EXTRA}/b.addon.efi": addon("c \n")}
    assert predicted(beside) == measured("a b  c")
    assert predicted({f"{EXTRA}/a.addon.efi": addon(" \n")}) == NOTHING


def test_what_is_no_addon_is_passed_over() -> None:
    beside = {
        f"{EXTRA}/.hidden.addon.efi": addon("one"),
        f"{EXTRA}/\N{LATIN SMALL LETTER A WITH DIAERESIS}.addon.efi": addon("two"),
        f"{EXTRA}/kernel.addon.efi": with_sections(addon_stub(), [(b".cmdline", b"three"), (b".linux", b"kernel")]),
        f"{EXTRA}/oci2boot.json": b"{}",
    }
    assert predicted(beside) == NOTHING


def test_a_uki_keeps_what_lies_beside_it_while_its_boots_are_counted() -> None:
    beside = {f"{EXTRA}/a.addon.efi": addon("debug")}
    assert predicted(beside, path="EFI/Linux/os+3-0.efi") == measured("debug")


def test_credentials_follow_the_command_line() -> None:
    beside = {f"{EXTRA}/b.cred": b"secret", f"{EXTRA}/a.addon.efi": addon("debug")}
    assert predicted(beside) == beside_pcr(["debug"], {"b.cred": b"secret"})


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        (f"{EXTRA}/x.confext.raw", b"", "x.confext.raw"),
        ("loader/credentials/x.cred", b"", "x.cred"),
        (f"{EXTRA}/a.addon.efi", with_sections(addon_stub(), [(b".initrd", b"070701")]), "a section .initrd"),
        (f"{EXTRA}/a.addon.efi", addon("\N{LATIN SMALL LETTER A WITH DIAERESIS}"), "outside ASCII"),
    ],
)
def test_what_is_measured_otherwise_is_not_predicted(path: str, data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=f"PCR 12 is not known.*{message}"):
        predicted({path: data})


def test_a_stub_that_measures_each_addon_alone_is_not_predicted() -> None:
    assert b"systemd-stub 257" in UKI
    old = UKI.replace(b"systemd-stub 257", b"systemd-stub 254")
    assert predicted({}, program=old) == NOTHING
    with pytest.raises(FormatError, match="systemd-stub 254 measures each addon alone"):
        predicted({f"{EXTRA}/a.addon.efi": addon("debug")}, program=old)
