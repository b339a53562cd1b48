"""Signatures of root hashes, held against openssl's."""

import json
import subprocess
from pathlib import Path

import pytest

from oci2boot.boot.roothash import check_root_hash, pack_partition, parse_partition, sign_root_hash
from oci2boot.boot.sign import KeySigner, load_key
from oci2boot.digest import RootHash
from oci2boot.errors import Error, FormatError, SignatureError
from oci2boot.formats.x509 import read_certificates
from tests.witness import program

ROOT_HASH = RootHash.parse("d4" * 32)


def openssl(*words: str | Path) -> bytes:
    return subprocess.run([program("openssl"), *words], check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("db", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-days", "30",
                "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt")  # fmt: skip
    (folder / "hash").write_text(str(ROOT_HASH))
    return folder


def signer(folder: Path, name: str = "db") -> KeySigner:
    (certificate,) = read_certificates((folder / f"{name}.crt").read_bytes())
    return KeySigner(certificate, load_key((folder / f"{name}.key").read_bytes()))


def openssl_signs(folder: Path, *more: str) -> bytes:
    return openssl("smime", "-sign", "-in", folder / "hash", "-binary", "-outform", "DER", "-inkey", folder / "db.key",
                   "-signer", folder / "db.crt", *more)  # fmt: skip


def test_the_signature_is_that_of_openssl(folder: Path) -> None:
    """K1.1: the kernel's form, no signed attributes."""
    assert sign_root_hash(ROOT_HASH, signer(folder)) == openssl_signs(folder, "-noattr")


def test_openssl_verifies_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sig").write_bytes(sign_root_hash(ROOT_HASH, signer(folder)))
    openssl("smime", "-verify", "-in", tmp_path / "sig", "-inform", "DER", "-content", folder / "hash", "-binary",
            "-CAfile", folder / "db.crt", "-purpose", "any")  # fmt: skip


def test_a_signature_says_who_made_it(folder: Path) -> None:
    signature = openssl_signs(folder, "-noattr")
    certificate = signer(folder).certificate
    assert check_root_hash(ROOT_HASH, signature, [certificate]) == certificate


def test_what_the_kernel_refuses_is_refused(folder: Path) -> None:
    signature = openssl_signs(folder, "-noattr")
    with pytest.raises(SignatureError, match="not trusted"):
        check_root_hash(ROOT_HASH, signature, [signer(folder, "other").certificate])
    with pytest.raises(SignatureError, match="digits alone"):
        check_root_hash(ROOT_HASH, openssl_signs(folder))
    with pytest.raises(SignatureError):
        check_root_hash(RootHash.parse("d5" * 32), signature)
    with pytest.raises(Error):
        check_root_hash(ROOT_HASH, signature[:-1])


def test_the_partition_is_as_systemd_describes_it(folder: Path) -> None:
    """K1.8: 16 KiB, JSON and zeros; the fingerprint is openssl's."""
    signature = sign_root_hash(ROOT_HASH, signer(folder))
    partition = pack_partition(ROOT_HASH, signature, signer(folder).certificate)
    assert len(partition) == 16384
    document = json.loads(partition.rstrip(b"\0"))
    printed = openssl("x509", "-in", folder / "db.crt", "-noout", "-fingerprint", "-sha256").decode()
    assert document["certificateFingerprint"] == printed.strip().partition("=")[2].replace(":", "").lower()
    assert document["rootHash"] == str(ROOT_HASH)
    assert parse_partition(partition) == (ROOT_HASH, signature)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"rootHash":"x","signature":""}', b"{" * 9999, b"\xff"])
def test_a_partition_with_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_partition(data)


def test_bytes_behind_the_signature_are_refused(folder: Path) -> None:
    partition = pack_partition(ROOT_HASH, b"x", signer(folder).certificate)
    with pytest.raises(FormatError, match="bytes behind it"):
        parse_partition(partition[:-1] + b"x")
