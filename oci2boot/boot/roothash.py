"""The signature of a root hash: PKCS #7 as the kernel checks it, and the partition that systemd finds it in.

Linux, Documentation/admin-guide/device-mapper/verity.rst, `root_hash_sig_key_desc`; UAPI group, Discoverable Partitions
Specification, "Verity Signature Partitions". The kernel wants the hash of the hex digits signed directly, by a key in
its trusted keyrings (those of Secure Boot are in `.platform`).
"""

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Final

from oci2boot.boot.sign import Signer, root_hash_to_be_signed
from oci2boot.digest import RootHash
from oci2boot.errors import FormatError, LimitError, SignatureError
from oci2boot.formats import pkcs7
from oci2boot.formats.x509 import Certificate

PARTITION_SIZE: Final = 16 << 10
"""Bytes; systemd-repart makes it as large, and fills it with zeros behind the JSON."""


def sign_root_hash(root_hash: RootHash, signer: Signer) -> bytes:
    """Return the detached signature in DER, with the certificate and without signed attributes."""
    return detached(signer.certificate, signer.sign(root_hash_to_be_signed(root_hash)))


def detached(certificate: Certificate, signature: bytes) -> bytes:
    """Return the PKCS #7 signature of a root hash; the key signed its digits, which `check_root_hash` sees."""
    signed = pkcs7.SignedData(
        content_type=pkcs7.DATA,
        content=b"",
        certificates=(certificate,),
        issuer_and_serial=certificate.issuer_and_serial,
        attributes=b"",
        signature=signature,
    )
    return signed.pack_content_info()


def check_root_hash(root_hash: RootHash, signature: bytes, trusted: Sequence[Certificate] = ()) -> Certificate:
    """Return the signer. Raises `SignatureError` where the kernel would refuse, or for a signer that is not trusted."""
    signed = pkcs7.SignedData.parse_content_info(signature)
    if signed.content or signed.attributes or signed.content_type != pkcs7.DATA:
        raise SignatureError(
            "the root hash's signature is not one that the kernel takes: it must cover the digits alone"
        )
    signed.check(root_hash_to_be_signed(root_hash))
    if trusted and signed.signer not in trusted:
        raise SignatureError(f"the root hash is signed by {signed.signer.subject}, who is not trusted")
    return signed.signer


def pack_partition(root_hash: RootHash, signature: bytes, certificate: Certificate) -> bytes:
    """Return the content of a `-verity-sig` partition."""
    document = {
        "rootHash": str(root_hash),
        "certificateFingerprint": hashlib.sha256(certificate.der).hexdigest(),
        "signature": b64encode(signature).decode(),
    }
    data = json.dumps(document, separators=(",", ":")).encode()
    if len(data) > PARTITION_SIZE:
        raise LimitError(f"the root hash's signature takes {len(data)} bytes, the partition has {PARTITION_SIZE}")
    return data.ljust(PARTITION_SIZE, b"\0")


def parse_partition(data: bytes) -> tuple[RootHash, bytes]:
    """Return root hash and signature. Raises `FormatError`; neither is checked."""
    text, _, padding = data.partition(b"\0")
    try:
        document = json.loads(text)
        root_hash = RootHash.parse(document["rootHash"])
        signature = b64decode(document["signature"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError("the partition holds no signature of a root hash") from error
    if any(padding):
        raise FormatError("the partition with the root hash's signature has bytes behind it")
    return root_hash, signature
