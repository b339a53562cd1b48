"""Certificates as Secure Boot uses them: compared byte by byte, RSA only, expiry looked at by nobody. RFC 5280."""

import re
import warnings
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Self, TypeVar

from oci2boot.errors import FormatError, LimitError, SignatureError
from oci2boot.formats import der

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

MAX_CERTIFICATES: Final = 64
"""In one file."""
MAX_CERTIFICATE: Final = 64 << 10
MIN_RSA_BITS: Final = 2048
"""UEFI 2.10, section 32.5.1; the kernel's lockdown and shim ask for no less."""
MAX_CHAIN: Final = 8

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Certificate:
    der: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Take the DER encoding of one certificate."""
        if len(data) > MAX_CERTIFICATE:
            raise LimitError(f"a certificate of {len(data)} bytes, at most {MAX_CERTIFICATE} are read")
        certificate = cls(bytes(data))
        _ = certificate.issuer_and_serial
        certificate._ask(lambda loaded: (loaded.subject, loaded.issuer, loaded.extensions, loaded.not_valid_after_utc))
        return certificate

    def _ask(self, question: Callable[["x509.Certificate"], _T]) -> _T:
        from cryptography import x509

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about serial numbers that others gave
                return question(x509.load_der_x509_certificate(self.der))
        except Exception as error:  # the library raises half a dozen kinds for bad bytes
            raise FormatError("a certificate that cannot be read") from error

    @property
    def issuer_and_serial(self) -> bytes:
        """The PKCS #7 IssuerAndSerialNumber by which a signature names its signer."""
        reader = der.Reader.within(self.der, der.SEQUENCE, "a certificate")
        fields = reader.take(der.SEQUENCE, "a certificate's body").members()
        if fields.next_is(der.context(0)):
            fields.take(der.context(0), "a certificate's version")
        serial = fields.take(der.INTEGER, "a certificate's serial number")
        fields.take(der.SEQUENCE, "a certificate's algorithm")
        issuer = fields.take(der.SEQUENCE, "a certificate's issuer")
        return der.encode(der.SEQUENCE, issuer.raw, serial.raw)

    @property
    def subject(self) -> str:
        return self._ask(lambda loaded: loaded.subject.rfc4514_string()) or "nobody"

    @property
    def issuer(self) -> str:
        return self._ask(lambda loaded: loaded.issuer.rfc4514_string()) or "nobody"

    @property
    def fingerprint(self) -> str:
        return sha256(self.der).hexdigest()

    @property
    def key_id(self) -> str:
        """The SHA-256 of the SubjectPublicKeyInfo: that of the key, whoever certified it when."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return sha256(self._ask(lambda loaded: loaded.public_key().public_bytes(*form))).hexdigest()

    @property
    def to_be_signed(self) -> bytes:
        """The part that its issuer signed, TBSCertificate: firmware may revoke it by the hash of that."""
        return self._ask(lambda loaded: loaded.tbs_certificate_bytes)

    @property
    def not_after(self) -> datetime:
        return self._ask(lambda loaded: loaded.not_valid_after_utc)

    def expired(self, now: datetime) -> bool:
        return self.not_after < now

    def public_key(self) -> "RSAPublicKey":
        """Return the key; `SignatureError` where firmware would not take it."""
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

        key = self._ask(lambda loaded: loaded.public_key())
        if not isinstance(key, RSAPublicKey):
            raise SignatureError(
                f"the certificate of {self.subject} has no RSA key", hint="UEFI firmware checks RSA signatures only"
            )
        if key.key_size < MIN_RSA_BITS:
            raise SignatureError(
                f"the certificate of {self.subject} has a key of {key.key_size} bits, {MIN_RSA_BITS} are the least"
            )
        return key

    def check_signature(self, signature: bytes, data: bytes) -> None:
        """See that this certificate's key signed `data`: RSASSA-PKCS1-v1_5 with SHA-256."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        try:
            self.public_key().verify(signature, data, PKCS1v15(), SHA256())
        except InvalidSignature as error:
            raise SignatureError(f"the signature is not by the key of {self.subject}") from error

    def issued_by(self, other: Self) -> bool:
        """Whether `other` is an authority and signed this certificate."""
        from cryptography import x509

        def check(loaded: x509.Certificate) -> None:
            authority = x509.load_der_x509_certificate(other.der)
            if not authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                raise ValueError
            loaded.verify_directly_issued_by(authority)

        try:
            self._ask(check)
        except FormatError:
            return False
        return True


def read_certificates(data: bytes) -> list[Certificate]:
    """Return the certificates of a file: one as DER, or any number as PEM."""
    if data[:1] == b"\x30":
        return [Certificate.parse(data)]
    blocks = _PEM.findall(data)
    if not blocks:
        raise FormatError("no certificate, neither PEM nor DER")
    if len(blocks) > MAX_CERTIFICATES:
        raise LimitError(f"{len(blocks)} certificates, at most {MAX_CERTIFICATES} are read")
    try:
        encoded = [b64decode(b"".join(text.split()), validate=True) for text in blocks]
    except ValueError as error:
        raise FormatError("a PEM certificate that is not base64") from error
    return [Certificate.parse(one) for one in encoded]


def to_pem(label: str, data: bytes) -> bytes:
    """Write PEM as OpenSSL does. RFC 7468."""
    text = b64encode(data).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def find_anchor(
    signer: Certificate, others: Sequence[Certificate], trusted: Sequence[Certificate]
) -> Certificate | None:
    """Return the trusted certificate that is the signer's or issued it, over `others` if need be.

    UEFI 2.10, section 32.5.3.3: certificates are trusted by equality of their bytes; usage and expiry do not count.
    """
    current, left = signer, list(others)
    for _ in range(MAX_CHAIN):
        for anchor in trusted:
            if anchor.der == current.der:
                return anchor
            # One that has an anchor's name and number but not its bytes is an imitation.
            if anchor.issuer_and_serial != current.issuer_and_serial and current.issued_by(anchor):
                return anchor
        issuer = next((one for one in left if one.der != current.der and current.issued_by(one)), None)
        if issuer is None:
            return None
        left.remove(issuer)
        current = issuer
    return None
