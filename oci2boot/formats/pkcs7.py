"""SignedData with one signer, RSA and SHA-256: what Secure Boot knows. PKCS #7, RFC 2315, section 9."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Self

from oci2boot.errors import FormatError, LimitError, SignatureError
from oci2boot.formats import der
from oci2boot.formats.x509 import Certificate

MAX_SIGNED_DATA: Final = 1 << 20
MAX_EMBEDDED: Final = 16
"""Certificates in one signature."""
MAX_ATTRIBUTES: Final = 32

SIGNED_DATA: Final = der.oid("1.2.840.113549.1.7.2")
DATA: Final = der.oid("1.2.840.113549.1.7.1")
CONTENT_TYPE: Final = der.oid("1.2.840.113549.1.9.3")
MESSAGE_DIGEST: Final = der.oid("1.2.840.113549.1.9.4")
SHA256: Final = der.encode(der.SEQUENCE, der.oid("2.16.840.1.101.3.4.2.1"), der.encode(der.NULL))
_SHA256_BARE: Final = der.encode(der.SEQUENCE, der.oid("2.16.840.1.101.3.4.2.1"))
RSA: Final = der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.1.1"), der.encode(der.NULL))
_RSA_SHA256: Final = der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.1.11"), der.encode(der.NULL))
_VERSION: Final = der.integer(1)
_BY_ATTRIBUTES, _CERTIFICATES, _UNSIGNED, _CONTENT = (
    der.context(0),
    der.context(0),
    der.context(1),
    der.context(0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedData:
    content_type: bytes
    """Encoded."""
    content: bytes
    """The value that is signed, encoded; nothing where it is kept elsewhere."""
    certificates: tuple[Certificate, ...]
    issuer_and_serial: bytes
    """The signer."""
    attributes: bytes
    """The authenticated attributes as they are signed, a SET OF; nothing where the content itself is signed."""
    signature: bytes

    @property
    def signer(self) -> Certificate:
        for certificate in self.certificates:
            if certificate.issuer_and_serial == self.issuer_and_serial:
                return certificate
        raise SignatureError("a signature without its signer's certificate")

    def attribute(self, name: bytes) -> der.Value:
        """Return the one value of the one attribute of this name."""
        found = []
        reader = der.Reader.within(self.attributes, der.SET, "the signed attributes")
        for _ in range(MAX_ATTRIBUTES):
            if not reader.more:
                break
            fields = reader.take(der.SEQUENCE, "a signed attribute").members()
            kind = fields.take(der.OBJECT_IDENTIFIER, "a signed attribute's name").raw
            values = fields.take(der.SET, "a signed attribute's values").members()
            fields.end("a signed attribute")
            value = values.take_any("a signed attribute's value")
            values.end("a signed attribute's value")
            if kind == name:
                found.append(value)
        reader.end("the signed attributes")
        if len(found) != 1:
            raise FormatError("a signature without its one content type and one digest")
        return found[0]

    def check(self, data: bytes) -> None:
        """See that the signer's key signed `data`: by attributes that hold its digest, or directly. RFC 2315, 9.3."""
        signed = data
        if self.attributes:
            digest = der.encode(der.OCTET_STRING, sha256(data).digest())
            if self.attribute(CONTENT_TYPE).raw != self.content_type or self.attribute(MESSAGE_DIGEST).raw != digest:
                raise SignatureError("the signature is of something else")
            signed = self.attributes
        self.signer.check_signature(self.signature, signed)

    def pack(self) -> bytes:
        """Return the SignedData alone, as UEFI variables want it."""
        signer = der.encode(
            der.SEQUENCE,
            _VERSION,
            self.issuer_and_serial,
            SHA256,
            der.context(0).to_bytes() + self.attributes[1:] if self.attributes else b"",
            RSA,
            der.encode(der.OCTET_STRING, self.signature),
        )
        return der.encode(
            der.SEQUENCE,
            _VERSION,
            der.set_of(SHA256),
            der.encode(der.SEQUENCE, self.content_type, der.encode(_CONTENT, self.content) if self.content else b""),
            der.encode(_CERTIFICATES, *(certificate.der for certificate in self.certificates)),
            der.set_of(signer),
        )

    def pack_content_info(self) -> bytes:
        """Return it as the ContentInfo that files carry."""
        return der.encode(der.SEQUENCE, SIGNED_DATA, der.encode(_CONTENT, self.pack()))

    @classmethod
    def parse_content_info(cls, data: bytes) -> Self:
        reader = der.Reader.within(data, der.SEQUENCE, "a signature")
        reader.expect(SIGNED_DATA, "the type of a signature")
        inner = reader.take(_CONTENT, "the content of a signature")
        reader.end("a signature")
        return cls.parse(inner.content)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) > MAX_SIGNED_DATA:
            raise LimitError(f"a signature of {len(data)} bytes, at most {MAX_SIGNED_DATA} are read")
        reader = der.Reader.within(data, der.SEQUENCE, "a signature")
        reader.expect(_VERSION, "the version of a signature")
        algorithms = reader.take(der.SET, "the digest algorithms of a signature").members()
        _take_sha256(algorithms)
        algorithms.end("the digest algorithms of a signature")
        what = reader.take(der.SEQUENCE, "what is signed").members()
        content_type = what.take(der.OBJECT_IDENTIFIER, "the type of what is signed").raw
        content = what.take(_CONTENT, "what is signed").content if what.more else b""
        what.end("what is signed")
        certificates: list[Certificate] = []
        if reader.next_is(_CERTIFICATES):
            embedded = reader.take(_CERTIFICATES, "the certificates of a signature").members()
            while embedded.more:
                if len(certificates) == MAX_EMBEDDED:
                    raise LimitError(f"a signature with more than {MAX_EMBEDDED} certificates")
                certificates.append(Certificate.parse(embedded.take(der.SEQUENCE, "a certificate").raw))
        signers = reader.take(der.SET, "the signers of a signature").members()
        reader.end("a signature")
        fields = signers.take(der.SEQUENCE, "a signer").members()
        signers.end("the signer")
        fields.expect(_VERSION, "the version of a signer")
        issuer_and_serial = fields.take(der.SEQUENCE, "a signer's name").raw
        _take_sha256(fields)
        attributes = b""
        if fields.next_is(_BY_ATTRIBUTES):
            attributes = fields.take(_BY_ATTRIBUTES, "the signed attributes").with_tag(der.SET)
        algorithm = fields.take(der.SEQUENCE, "the signature algorithm").raw
        if algorithm not in (RSA, _RSA_SHA256):
            raise SignatureError("a signature by another algorithm than RSA")
        signature = fields.take(der.OCTET_STRING, "a signature's value").content
        if fields.next_is(_UNSIGNED):
            fields.take(_UNSIGNED, "unsigned attributes")  # countersigned time stamps, which firmware ignores
        fields.end("a signer")
        return cls(
            content_type=content_type,
            content=content,
            certificates=tuple(certificates),
            issuer_and_serial=issuer_and_serial,
            attributes=attributes,
            signature=signature,
        )


def _take_sha256(reader: der.Reader) -> None:
    if reader.take(der.SEQUENCE, "a digest algorithm").raw not in (SHA256, _SHA256_BARE):
        raise SignatureError("a signature by another digest than SHA-256")
