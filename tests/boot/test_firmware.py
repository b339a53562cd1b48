"""What firmware starts, by its variables: programs of Debian, keys of openssl, lists and hashes of virt-firmware."""

import re
from functools import partial
from pathlib import Path

import pytest

from oci2boot.boot.firmware import Firmware
from oci2boot.errors import FormatError
from oci2boot.system.efivars import read_variable
from tests.boot.debian import package
from tests.boot.efivars import Variables, image_hash, list_of, lists
from tests.boot.loaders import loader, shim
from tests.keys import Pair, make, openssl


@pytest.fixture
def variables(tmp_path: Path) -> Variables:
    made = Variables(tmp_path / "efivars")
    made.secure_boot()
    return made


def firmware(variables: Variables) -> Firmware:
    found = Firmware.read(partial(read_variable, variables.folder))
    assert found
    return found


def why(variables: Variables, program: bytes, *, first: bool = False, behind_shim: bool = False) -> str | None:
    return firmware(variables).refuses(program, first=first, behind_shim=behind_shim)


@pytest.mark.parametrize("value", [b"\0", b"", b"\2"])
def test_secure_boot_is_on_where_the_variable_is_1(value: bytes, variables: Variables) -> None:
    """UEFI 2.10, 3.3."""
    variables.put("SecureBoot", "8be4df61-93ca-11d2-aa0d-00e098032b8c", value)
    assert Firmware.read(partial(read_variable, variables.folder)) is None
    assert Firmware.read(lambda _name, _vendor: None) is None


def test_a_program_may_be_known_by_its_hash(variables: Variables, tmp_path: Path) -> None:
    """UEFI 2.10, 32.5.3.3: in db it starts unsigned, in dbx not even signed."""
    key = make(tmp_path, "key")
    assert "it is signed by nobody" in (why(variables, loader()) or "")
    variables.db(hashes=(image_hash(loader()),))
    assert why(variables, loader()) is None
    variables.db(key)
    signed = key.sbsign(loader())
    assert why(variables, signed) is None
    variables.dbx(hashes=(bytes(32), image_hash(signed)))
    assert "revoked the image with the hash" in (why(variables, signed) or "")


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("826ca512-cf10-4ac9-b187-be01496631bd", "sha1"),
        ("0b6e5233-a65c-44c9-9407-d9ab83bfc8bd", "sha224"),
        ("ff3e5307-9fd0-48c9-85f1-8ad56c701e01", "sha384"),
        ("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a", "sha512"),
    ],
)
def test_a_program_may_be_revoked_by_any_hash(kind: str, method: str, variables: Variables, tmp_path: Path) -> None:
    """B.11; UEFI 2.10, 32.4.1: a kind for each hash. db by another than SHA-256 is left to the firmware."""
    key = make(tmp_path, "key")
    signed, digest = key.sbsign(loader()), image_hash(loader(), method)
    assert image_hash(signed, method) == digest
    variables.db(key)
    variables.dbx(more=list_of(kind, bytes(len(digest))))
    assert why(variables, signed) is None
    assert firmware(variables).keys.unknown() == []
    variables.dbx(more=list_of(kind, digest))
    assert why(variables, signed) == f"the firmware has revoked the image with the hash {digest.hex()}"
    variables.put("db", "d719b2cb-3d3a-4596-a3bc-dad00e67656f", list_of(kind, digest))
    variables.dbx()
    assert "it is signed by CN=key" in (why(variables, signed) or "")


def test_one_signature_that_is_revoked_is_enough(variables: Variables, tmp_path: Path) -> None:
    """EDK2, DxeImageVerificationHandler: it looks at all of them."""
    good, bad = make(tmp_path, "good"), make(tmp_path, "bad")
    variables.db(good)
    twice = bad.sbsign(good.sbsign(loader()))
    assert why(variables, twice) is None
    variables.dbx(bad)
    assert why(variables, twice) == "the firmware has revoked the certificate of CN=bad"


def test_an_authority_in_db_is_behind_what_it_issued(variables: Variables, tmp_path: Path) -> None:
    """And one in dbx against it, whatever db says of the signer."""
    authority, leaf = make(tmp_path, "authority"), Pair(tmp_path / "leaf.key", tmp_path / "leaf.crt")
    words: list[str | Path] = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=leaf", "-keyout", leaf.key]
    openssl("req", "-new", *words, "-out", tmp_path / "leaf.csr")
    issuer: list[str | Path] = ["-CA", authority.path, "-CAkey", authority.key, "-CAcreateserial"]
    openssl("x509", "-req", "-in", tmp_path / "leaf.csr", *issuer, "-out", leaf.path)
    signed = leaf.sbsign(loader())
    variables.db(authority)
    assert why(variables, signed) is None
    variables.db(leaf)
    variables.dbx(authority)
    assert why(variables, signed) == "the firmware has revoked the certificate of CN=authority"


def test_what_was_changed_after_signing_is_refused(variables: Variables, tmp_path: Path) -> None:
    key = make(tmp_path, "key")
    variables.db(key)
    signed = bytearray(key.sbsign(loader()))
    signed[0x1000] ^= 1
    assert why(variables, bytes(signed)) == "the executable was changed after it was signed"


def test_shim_itself_is_the_firmwares(variables: Variables, tmp_path: Path) -> None:
    """The owner's keys are good for what shim starts, not for shim; its level is for both."""
    owner = make(tmp_path, "owner")
    variables.shim("MokListRT", lists(owner))
    mine = owner.sbsign(shim())
    assert why(variables, mine, behind_shim=True) is None
    assert "it is signed by " in (why(variables, mine, first=True, behind_shim=True) or "")
    variables.db(owner)
    assert why(variables, mine, first=True, behind_shim=True) is None
    variables.shim("SbatLevelRT", b"sbat,1,2025051000\nshim,5\n")
    refused = why(variables, mine, first=True, behind_shim=True)
    assert refused == "it is shim 1 (SBAT 4), and generations below 5 are revoked"


def test_without_knowing_shims_keys_only_what_is_revoked_is_refused(variables: Variables, tmp_path: Path) -> None:
    key = make(tmp_path, "key")
    assert why(variables, key.sbsign(loader()), behind_shim=True) is None
    assert "signed by CN=key" in (why(variables, key.sbsign(loader())) or "")
    variables.dbx(key)
    assert "revoked" in (why(variables, key.sbsign(loader()), behind_shim=True) or "")


def test_what_microsoft_and_debian_signed_is_read(variables: Variables, tmp_path: Path) -> None:
    other = make(tmp_path, "other")
    variables.db(other)
    assert re.search("Microsoft.*trusts CN=other", why(variables, shim()) or "")
    debian = package("systemd-boot-efi-amd64-signed") / "usr/lib/systemd/boot/efi/systemd-bootx64.efi.signed"
    assert re.search("Debian.*trusts CN=other", why(variables, debian.read_bytes()) or "")


@pytest.mark.parametrize("data", [b"sbat", b"\xff\xff", b"sbat,1\nshim\n"])
def test_a_level_that_cannot_be_read_is_an_error(data: bytes, variables: Variables) -> None:
    variables.shim("SbatLevelRT", data)
    with pytest.raises(FormatError):
        firmware(variables)
