"""Signing what the firmware loads: by a key at hand, by a program, or by the answer to a request.

All ways sign the same bytes, the attributes of `authenticode.to_be_signed`, with RSASSA-PKCS1-v1_5 and SHA-256; the
outcome does not depend on the way. Only the tools for PKCS #11 tokens write signatures of their own.
"""

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

from oci2boot.digest import RootHash
from oci2boot.errors import FormatError, LimitError, PassphraseError, SignatureError
from oci2boot.formats import authenticode
from oci2boot.formats.x509 import MIN_RSA_BITS, Certificate, read_certificates, to_pem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

MAX_DOCUMENT: Final = 8 << 20
"""Bytes of a request or response."""
MAX_ITEMS: Final = 1024

REQUEST: Final = "oci2boot.sign-request.v1"
RESPONSE: Final = "oci2boot.sign-response.v1"
IMAGE: Final = "image"
ROOT_HASH: Final = "root-hash"
"""What is signed: an executable, or the root hash of a file system."""
_SUBJECT: Final = {IMAGE: "image_sha256", ROOT_HASH: "root_hash"}
ALGORITHM: Final = "RSASSA-PKCS1-v1_5 with SHA-256"

SignTool = Literal["sbsign", "systemd-sbsign", "osslsigncode"]


class Signer(Protocol):
    """Something that can use the private key of a certificate."""

    @property
    def certificate(self) -> Certificate: ...

    def sign(self, data: bytes) -> bytes:
        """Return the RSASSA-PKCS1-v1_5 signature of the SHA-256 of `data`."""


def load_key(data: bytes, passphrase: bytes | None = None) -> "RSAPrivateKey":
    """Read a PEM or DER private key that firmware can check signatures of."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

    load = load_pem_private_key if b"-----BEGIN" in data else load_der_private_key
    try:
        key = load(data, passphrase)
    except TypeError:
        if passphrase is None:
            raise PassphraseError("the private key is encrypted", hint="give its passphrase in a file") from None
        raise SignatureError("a passphrase is given, the private key is not encrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        # What the library says may hold parts of the key.
        why = "no private key in PEM or DER" if passphrase is None else "not a private key, or the wrong passphrase"
        raise SignatureError(f"the private key cannot be read: {why}") from None
    if not isinstance(key, RSAPrivateKey):
        raise SignatureError("the private key is not an RSA key", hint="UEFI firmware checks RSA signatures only")
    if key.key_size < MIN_RSA_BITS:
        raise SignatureError(f"the private key has {key.key_size} bits, at least {MIN_RSA_BITS} are needed")
    return key


@dataclass(frozen=True, slots=True)
class KeySigner:
    """A key in memory; it never shows in a representation."""

    certificate: Certificate
    key: "RSAPrivateKey" = field(repr=False)

    def __post_init__(self) -> None:
        if self.certificate.public_key().public_numbers() != self.key.public_key().public_numbers():
            raise SignatureError(f"the private key does not belong to the certificate of {self.certificate.subject}")

    def sign(self, data: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        return self.key.sign(data, PKCS1v15(), SHA256())


def sign_image(image: bytes, signer: Signer) -> bytes:
    """Return the executable with the signer's signature; as it is where it has that already."""
    if is_signed_by(image, signer.certificate):
        return image
    data = authenticode.to_be_signed(authenticode.image_hash(image))
    return authenticode.attach(image, signer.certificate, signer.sign(data))


def is_signed_by(image: bytes, certificate: Certificate) -> bool:
    return any(signature.signer == certificate for signature in authenticode.verify(image))


def check_signed(image: bytes, signed: bytes, certificate: Certificate) -> None:
    """See that signing changed nothing but the signatures, and that the certificate's is among them."""
    if authenticode.image_hash(signed) != authenticode.image_hash(image) or not is_signed_by(signed, certificate):
        raise SignatureError(f"what came back from signing is not the image with a signature of {certificate.subject}")


# ---- signing elsewhere


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    """Of the file, for people."""
    subject: bytes | RootHash
    """Authenticode's hash of an executable, or the root hash of a file system under dm-verity."""

    @property
    def kind(self) -> str:
        return ROOT_HASH if isinstance(self.subject, RootHash) else IMAGE

    @property
    def subject_hex(self) -> str:
        return str(self.subject) if isinstance(self.subject, RootHash) else self.subject.hex()

    @property
    def to_be_signed(self) -> bytes:
        if isinstance(self.subject, RootHash):
            return root_hash_to_be_signed(self.subject)
        return authenticode.to_be_signed(self.subject)

    @property
    def digest(self) -> bytes:
        """What a token is given to sign."""
        return hashlib.sha256(self.to_be_signed).digest()


@dataclass(frozen=True, slots=True)
class SignRequest:
    """Everything that one certificate is to sign."""

    certificate: Certificate
    items: tuple[Item, ...]

    @classmethod
    def of(cls, images: Mapping[str, bytes], certificate: Certificate, root_hash: RootHash | None = None) -> Self:
        items: dict[bytes | RootHash, Item] = {root_hash: Item("root hash", root_hash)} if root_hash else {}
        for name, image in images.items():
            if not is_signed_by(image, certificate):
                digest = authenticode.image_hash(image)
                items.setdefault(digest, Item(name, digest))
        return cls(certificate, tuple(items.values()))

    def pack(self) -> bytes:
        return _json(
            {
                "format": REQUEST,
                "algorithm": ALGORITHM,
                "certificate": to_pem("CERTIFICATE", self.certificate.der).decode(),
                "items": [
                    {
                        "name": item.name,
                        "kind": item.kind,
                        _SUBJECT[item.kind]: item.subject_hex,
                        "digest": item.digest.hex(),
                        "to_be_signed": b64encode(item.to_be_signed).decode(),
                    }
                    for item in self.items
                ],
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Self:
        document, listed = _document(data, REQUEST, "items")
        certificates = read_certificates(_text(document, "certificate").encode())
        if len(certificates) != 1:
            raise FormatError("a sign-request is for one certificate")
        items = []
        for one in listed:
            item = Item(_text(one, "name"), _parse_subject(one))
            # A key holder signs an image by its hash, not whatever bytes someone calls so.
            asked = _bytes(_text(one, "to_be_signed"), "base64")
            if item.to_be_signed != asked or item.digest.hex() != one.get("digest"):
                raise SignatureError(
                    f"the request for {item.name!r} asks for a signature of something other than it says"
                )
            items.append(item)
        return cls(certificates[0], tuple(items))

    def answer(self, signer: Signer) -> "SignResponse":
        if signer.certificate != self.certificate:
            raise SignatureError(
                f"the request is for the certificate of {self.certificate.subject}, the key belongs to another"
            )
        return SignResponse({item.digest: signer.sign(item.to_be_signed) for item in self.items})


def _parse_subject(item: Mapping[str, Any]) -> bytes | RootHash:
    kind = item.get("kind", IMAGE)
    if kind == IMAGE:
        return _bytes(_text(item, _SUBJECT[IMAGE]), "hex")
    if kind == ROOT_HASH:
        return RootHash.parse(_text(item, _SUBJECT[ROOT_HASH]))
    raise FormatError(f"a sign-request for something that is not known here: {str(kind)[:40]!r}")


def root_hash_to_be_signed(root_hash: RootHash) -> bytes:
    """Return the bytes that the kernel wants signed: the digits. dm-verity, `verity_verify_root_hash`."""
    return str(root_hash).encode()


@dataclass(frozen=True, slots=True)
class SignResponse:
    signatures: Mapping[bytes, bytes]
    """Digest of what was signed → signature."""

    def pack(self) -> bytes:
        parts = [
            {"digest": digest.hex(), "signature": b64encode(signature).decode()}
            for digest, signature in self.signatures.items()
        ]
        return _json({"format": RESPONSE, "signatures": parts})

    @classmethod
    def parse(cls, data: bytes) -> Self:
        _, listed = _document(data, RESPONSE, "signatures")
        return cls({_bytes(_text(one, "digest"), "hex"): _bytes(_text(one, "signature"), "base64") for one in listed})


@dataclass(frozen=True, slots=True)
class ResponseSigner:
    """Signs with what was signed elsewhere."""

    certificate: Certificate
    response: SignResponse

    def sign(self, data: bytes) -> bytes:
        signature = self.response.signatures.get(hashlib.sha256(data).digest())
        if signature is None:
            raise SignatureError(
                "the response holds no signature for one of the images",
                hint="it must answer a request made from the same image, with the same options",
            )
        return signature


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _document(data: bytes, kind: str, items: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    what = kind.removeprefix("oci2boot.").rpartition(".")[0]
    if len(data) > MAX_DOCUMENT:
        raise LimitError(f"a {what} of {len(data)} bytes, at most {MAX_DOCUMENT} are read")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a {what}: it is no JSON") from error
    if not isinstance(document, dict) or document.get("format") != kind:
        raise FormatError(f"not a {what}: its format is not {kind!r}")
    listed = document.get(items)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise FormatError(f"a {what} without a list of {items}")
    if len(listed) > MAX_ITEMS:
        raise LimitError(f"a {what} with {len(listed)} {items}, at most {MAX_ITEMS} are read")
    return document, listed


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise FormatError(f"a signing document without {name!r}")
    return value


def _bytes(text: str, kind: Literal["hex", "base64"]) -> bytes:
    try:
        return bytes.fromhex(text) if kind == "hex" else b64decode(text, validate=True)
    except ValueError as error:
        raise FormatError(f"a signing document with bytes that are not {kind}: {text[:40]!r}") from error


# ---- tools, for keys in PKCS #11 tokens


def check_key_name(key: str) -> None:
    """Refuse a PKCS #11 URI with the PIN in it: every user of the machine sees the words of a command. RFC 7512."""
    if key.startswith("pkcs11:") and "pin-value" in key.lower():
        raise SignatureError(
            "the key's URI holds the PIN, and other users would see it", hint="use pin-source=file:/… instead"
        )


def sign_tool_argv(
    tool: SignTool, key: str, certificate: Path, source: Path, target: Path, epoch: int, module: Path | None = None
) -> Sequence[str | Path]:
    """Return the call that signs `source` into `target`; `key` is a file or a `pkcs11:` URI.

    `epoch` is the signing time, where the tool can be told; sbsign cannot.
    """
    token = key.startswith("pkcs11:")
    match tool:
        case "sbsign":
            engine = ["--engine", "pkcs11"] if token else []
            return ["sbsign", *engine, "--key", key, "--cert", certificate, "--output", target, source]
        case "systemd-sbsign":
            provider = ["--private-key-source=provider:pkcs11"] if token else []
            return [
                "/usr/lib/systemd/systemd-sbsign", "sign", *provider,
                "--private-key", key,
                "--certificate", certificate,
                "--output", target, source,
            ]  # fmt: skip
        case "osslsigncode":
            return [
                "osslsigncode", "sign", "-h", "sha256",
                *(("-pkcs11module", module) if token and module else ()),
                "-key", key,
                "-certs", certificate,
                "-time", str(epoch),
                "-in", source,
                "-out", target,
            ]  # fmt: skip
