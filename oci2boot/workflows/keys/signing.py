"""Executables become signed ones, by whichever way the user keeps the key."""

import hashlib
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from oci2boot.boot.names import MAX_UKI, is_program
from oci2boot.boot.roothash import check_root_hash, sign_root_hash
from oci2boot.boot.sign import (
    KeySigner,
    ResponseSigner,
    Signer,
    SignRequest,
    SignResponse,
    SignTool,
    check_key_name,
    check_signed,
    load_key,
    sign_image,
    sign_tool_argv,
)
from oci2boot.digest import RootHash
from oci2boot.errors import Error, FormatError, SignatureError, SourceError
from oci2boot.formats.esl import trusted_certificates
from oci2boot.formats.x509 import Certificate, read_certificates
from oci2boot.system.epoch import now, source_date_epoch
from oci2boot.system.files import plain_errors, read_limited, write_atomically
from oci2boot.system.run import run
from oci2boot.workflows.progress import Report, Told, Warned
from oci2boot.workflows.requests import SigningOptions

MAX_FILE: Final = 8 << 20
"""Bytes of a key, certificate, request or response."""
SIGN_SECONDS: Final = 120
"""For one signature by another program: someone may have to touch a token."""
ONE_WAY: Final = "there must be one way to the private key"
WAYS: Final = "give one of --secureboot-key, --sign-command, --sign-request and --sign-response"

Sign = Callable[[bytes], bytes]
"""An executable → the same with a signature."""


def read_certificate(path: Path) -> Certificate:
    """Return the one certificate in a file."""
    found = read_certificates(read_bounded(path))
    if len(found) != 1:
        raise SignatureError(f"{path} holds {len(found)} certificates", hint="name the file with the signer's alone")
    return found[0]


def read_trusted(paths: list[Path]) -> list[Certificate]:
    return [certificate for path in paths for certificate in trusted_certificates(read_bounded(path))]


def read_bounded(path: Path) -> bytes:
    return read_limited(path, MAX_FILE)


def open_key(path: Path, passphrase: Path | None, certificate: Certificate) -> KeySigner:
    secret = read_bounded(passphrase).rstrip(b"\r\n") if passphrase else None
    return KeySigner(certificate, load_key(read_bounded(path), secret))


def sign_files(
    files: Mapping[str, bytes], options: SigningOptions, report: Report, root_hash: RootHash | None = None
) -> dict[str, bytes]:
    """Return the files, the executables among them signed, each checked after it.

    With `options.request` they stay as they are, and what would be signed is written there, `root_hash` too.
    """
    certificate = read_certificate(options.certificate)
    certificate.public_key()
    if certificate.expired(datetime.now(UTC)):
        when = f"{certificate.not_after:%Y-%m-%d}"
        report(Warned(f"the certificate of {certificate.subject} expired on {when}; firmware does not mind"))
    images = {name: data for name, data in files.items() if is_program(name)}
    if options.request:
        request = SignRequest.of(images, certificate, root_hash)
        with plain_errors(SourceError, f"write {options.request}"):
            write_atomically(options.request, request.pack())
        report(Warned(f"nothing is signed yet: {len(request.items)} signatures are asked for in {options.request}"))
        return dict(files)
    sign = _open(options, certificate)
    signed: dict[bytes, bytes] = {}
    for name, image in images.items():
        key = hashlib.sha256(image).digest()
        if key not in signed:
            try:
                signed[key] = sign(image)
                check_signed(image, signed[key], certificate)
            except Error as error:
                raise SignatureError(f"{name} cannot be signed: {error.message}", hint=error.hint) from error
    report(Told(f"signed by {certificate.subject}: {', '.join(images)}"))
    return {name: signed[hashlib.sha256(data).digest()] if name in images else data for name, data in files.items()}


def check_signing(options: SigningOptions) -> None:
    """Refuse keys and certificates that are not there, or do not belong together, before any work is done."""
    certificate = read_certificate(options.certificate)
    if not options.request:
        _open(options, certificate)


def check_root_signing(options: SigningOptions) -> None:
    """Refuse what cannot sign a root hash: the tools, which sign executables only, or a key that is another's."""
    if (options.key or "").startswith("pkcs11:"):
        raise SignatureError(
            "a root hash cannot be signed by a key in a token here",
            hint="--sign-command can ask the token; or name another key: --verity-key FILE --verity-certificate FILE",
        )
    if sum(way is not None for way in (options.key, options.command, options.request, options.response)) != 1:
        raise SignatureError(ONE_WAY, hint=WAYS)
    if not options.request:
        _signer(options, read_certificate(options.certificate))


def sign_root(root_hash: RootHash, options: SigningOptions, report: Report) -> bytes | None:
    """Return the signature of a root hash, checked; None where it is asked of others, by `sign_files`."""
    check_root_signing(options)
    if options.request:
        return None
    certificate = read_certificate(options.certificate)
    signature = sign_root_hash(root_hash, _signer(options, certificate))
    check_root_hash(root_hash, signature, [certificate])
    report(Told(f"root hash signed by {certificate.subject}"))
    return signature


def _open(options: SigningOptions, certificate: Certificate) -> Sign:
    ways = [options.tool or options.key, options.command, options.response]
    if sum(way is not None for way in ways) != 1:
        raise SignatureError(ONE_WAY, hint=WAYS)
    if options.tool:
        return _tool(options.tool, options)
    signer = _signer(options, certificate)
    return lambda image: sign_image(image, signer)


def _signer(options: SigningOptions, certificate: Certificate) -> Signer:
    if options.command:
        return CommandSigner(certificate, options.command)
    if options.response:
        return ResponseSigner(certificate, SignResponse.parse(read_bounded(options.response)))
    assert options.key
    if options.key.startswith("pkcs11:"):
        raise SignatureError(
            "a key in a token needs a tool to sign with",
            hint="add --signtool sbsign, systemd-sbsign or osslsigncode",
        )
    return open_key(Path(options.key), options.passphrase, certificate)


@dataclass(frozen=True, slots=True)
class CommandSigner:
    certificate: Certificate
    command: str

    def sign(self, data: bytes) -> bytes:
        try:
            argv = shlex.split(self.command)
        except ValueError as error:
            raise FormatError(f"--sign-command is not a command: {error}") from error
        if not argv:
            raise FormatError("--sign-command is empty")
        signature = run(argv, data=data, timeout=SIGN_SECONDS)
        size = self.certificate.public_key().key_size // 8
        if len(signature) != size:
            raise SignatureError(
                f"{Path(argv[0]).name} wrote {len(signature)} bytes, a signature by this certificate has {size}",
                hint="it must write the raw signature: openssl dgst -sha256 -sign KEY",
            )
        return signature


def _tool(tool: SignTool, options: SigningOptions) -> Sign:
    key = options.key
    if key is None:
        raise SignatureError(f"{tool} needs a key", hint="--secureboot-key FILE or pkcs11:URI")
    check_key_name(key)
    env = {"PKCS11_MODULE_PATH": str(options.pkcs11_module)} if options.pkcs11_module else {}
    epoch = source_date_epoch(now())

    def sign(image: bytes) -> bytes:
        with tempfile.TemporaryDirectory(prefix="oci2boot-") as folder:
            source, target = Path(folder, "unsigned.efi"), Path(folder, "signed.efi")
            source.write_bytes(image)
            argv = sign_tool_argv(tool, key, options.certificate, source, target, epoch, options.pkcs11_module)
            run(argv, env=env, timeout=SIGN_SECONDS, package="systemd-ukify" if tool == "systemd-sbsign" else None)
            return read_limited(target, MAX_UKI, SignatureError)

    return sign


def answer(request: Path, key: Path, passphrase: Path | None, response: Path) -> SignRequest:
    """Sign what a request asks for; the certificate is the request's own, and must be the key's."""
    asked = SignRequest.parse(read_bounded(request))
    signer = open_key(key, passphrase, asked.certificate)
    with plain_errors(SourceError, f"write {response}"):
        write_atomically(response, asked.answer(signer).pack())
    return asked
