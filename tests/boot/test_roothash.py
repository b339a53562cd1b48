"""Signatures of root hashes, held against openssl's."""

import json
from pathlib import Path

import pytest

from oci2boot.boot.roothash import check_root_hash, pack_partition, parse_partition, sign_root_hash
from oci2boot.digest import RootHash
from oci2boot.errors import Error, FormatError, SignatureError
from tests.keys import Pair, make, openssl

ROOT_HASH = RootHash.parse("d4" * 32)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("keys"), "db")


def openssl_signs(db: Pair, *more: str) -> bytes:
    return openssl("smime", "-sign", "-binary", "-outform", "DER", "-inkey", db.key, "-signer", db.path, *more,
                   data=str(ROOT_HASH).encode())  # fmt: skip


def test_the_signature_is_that_of_openssl(db: Pair) -> None:
    """K1.1: the kernel's form, no signed attributes."""
    assert sign_root_hash(ROOT_HASH, db.signer) == openssl_signs(db, "-noattr")


def test_openssl_verifies_it(db: Pair, tmp_path: Path) -> None:
    (tmp_path / "sig").write_bytes(sign_root_hash(ROOT_HASH, db.signer))
    (tmp_path / "hash").write_text(str(ROOT_HASH))
    openssl("smime", "-verify", "-in", tmp_path / "sig", "-inform", "DER", "-content", tmp_path / "hash", "-binary",
            "-CAfile", db.path, "-purpose", "any")  # fmt: skip


def test_a_signature_says_who_made_it(db: Pair) -> None:
    signature = openssl_signs(db, "-noattr")
    certificate = db.certificate
    assert check_root_hash(ROOT_HASH, signature, [certificate]) == certificate


def test_what_the_kernel_refuses_is_refused(db: Pair, tmp_path: Path) -> None:
    signature = openssl_signs(db, "-noattr")
    with pytest.raises(SignatureError, match="not trusted"):
        check_root_hash(ROOT_HASH, signature, [make(tmp_path, "other").certificate])
    with pytest.raises(SignatureError, match="digits alone"):
        check_root_hash(ROOT_HASH, openssl_signs(db))
    with pytest.raises(SignatureError):
        check_root_hash(RootHash.parse("d5" * 32), signature)
    with pytest.raises(Error):
        check_root_hash(ROOT_HASH, signature[:-1])


def test_the_partition_is_as_systemd_describes_it(db: Pair) -> None:
    """K1.8: 16 KiB, JSON and zeros; the fingerprint is openssl's."""
    signature = sign_root_hash(ROOT_HASH, db.signer)
    partition = pack_partition(ROOT_HASH, signature, db.certificate)
    assert len(partition) == 16384
    document = json.loads(partition.rstrip(b"\0"))
    printed = openssl("x509", "-in", db.path, "-noout", "-fingerprint", "-sha256").decode()
    assert document["certificateFingerprint"] == printed.strip().partition("=")[2].replace(":", "").lower()
    assert document["rootHash"] == str(ROOT_HASH)
    assert parse_partition(partition) == (ROOT_HASH, signature)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"rootHash":"x","signature":""}', b"{" * 9999, b"\xff"])
def test_a_partition_with_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_partition(data)


def test_bytes_behind_the_signature_are_refused(db: Pair) -> None:
    partition = pack_partition(ROOT_HASH, b"x", db.certificate)
    with pytest.raises(FormatError, match="bytes behind it"):
        parse_partition(partition[:-1] + b"x")
