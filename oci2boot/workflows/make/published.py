"""Signatures that travel with an image: put beside it where it lies, and attached to what was rebuilt from it.

The bytes that are signed are made twice, by who asks for the signature and by the machine that boots them. They are
found by the hash that a signature is of: to another UKI, none belongs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from oci2boot.boot import roothash
from oci2boot.boot.names import LINUX, is_program
from oci2boot.boot.sign import SignRequest, SignResponse, root_hash_to_be_signed
from oci2boot.digest import OciDigest, RootHash
from oci2boot.errors import Error, SignatureError
from oci2boot.formats import authenticode
from oci2boot.formats.x509 import Certificate
from oci2boot.oci.destination import open_destination
from oci2boot.oci.manifest import OCI_MANIFEST, SIGNATURES, Descriptor
from oci2boot.oci.outgoing import pack_json
from oci2boot.oci.reference import Reference, RegistryReference
from oci2boot.oci.referrers import Detached, find_signatures, pack_artifact
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.workflows.keys.executables import read_executable
from oci2boot.workflows.keys.signing import read_bounded, read_trusted
from oci2boot.workflows.make.payload import BootFiles
from oci2boot.workflows.options import Option
from oci2boot.workflows.progress import Report, Told, Warned
from oci2boot.workflows.requests import ConvertRequest
from oci2boot.workflows.sources import parse_source


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    image: Annotated[
        Reference,
        Option("IMAGE", "REGISTRY/REPO:TAG or @DIGEST (or with docker://), oci:DIR[:TAG]", parse=parse_source),
    ]
    signed: Annotated[
        tuple[Path, ...], Option("SIGNED", "UKIs and boot loaders with signatures, of which these go")
    ] = ()
    asked: Annotated[Path | None, Option("--sign-request", "file with what was asked for")] = None
    answered: Annotated[Path | None, Option("--sign-response", "file with the answer to it")] = None
    dry_run: Annotated[bool, Option("--dry-run", "only say what would be put there; write nothing")] = False
    options: SourceOptions = field(default_factory=SourceOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    image: str
    manifest: OciDigest
    """Of the image."""
    artifact: OciDigest
    signatures: tuple[Detached, ...]
    written: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "manifest": str(self.manifest),
            "artifact": str(self.artifact),
            "signatures": [{"name": one.name, "image": str(one.image)} for one in self.signatures],
            "written": self.written,
        }


def attach(request: AttachRequest) -> Attached:
    """Put signatures beside an image, which stays as it is: its digest, its layers, its tag."""
    signatures = tuple(dict.fromkeys([*_of_executables(request.signed), *_of_answer(request.asked, request.answered)]))
    if not signatures:
        raise SignatureError(
            "there is no signature to attach",
            hint="name signed executables, or a request and its answer: --sign-request FILE --sign-response FILE",
        )
    with open_source(request.image, request.options) as source:
        subject = source.fetch().descriptor
    document, blobs = pack_artifact(subject, signatures)
    manifest = pack_json(document)
    descriptor = Descriptor(OCI_MANIFEST, OciDigest.of(manifest), len(manifest), {})
    if not request.dry_run:
        place = request.image
        if isinstance(place, RegistryReference):
            place = replace(place, tag=place.tag or "latest", digest=None)
        with open_destination(place, request.options) as destination:
            for blob, data in blobs:
                if not destination.has(blob):
                    destination.put(blob, partial(list, (data,)))
            destination.refer(descriptor, manifest, subject.digest, SIGNATURES)
    return Attached(
        image=str(request.image),
        manifest=subject.digest,
        artifact=descriptor.digest,
        signatures=signatures,
        written=not request.dry_run,
    )


def _of_executables(paths: Sequence[Path]) -> Iterator[Detached]:
    for path in paths:
        data = read_executable(path)
        try:
            signed = authenticode.verify(data)
        except Error as error:
            raise type(error)(f"{path}: {error.message}", hint="name a UKI or a boot loader that is signed") from error
        if not signed:
            raise SignatureError(f"{path} is not signed")
        for signature in authenticode.raw_signatures(data):
            yield Detached(path.name, _hash(data), signature)


def _of_answer(asked: Path | None, answered: Path | None) -> Iterator[Detached]:
    """Yield the signatures that an answer gives to a request, each checked."""
    if asked is None and answered is None:
        return
    if asked is None or answered is None:
        raise SignatureError(
            "a request and its answer belong together: the one says what was signed, the other has the signatures",
            hint="--sign-request FILE --sign-response FILE",
        )
    request, response = SignRequest.parse(read_bounded(asked)), SignResponse.parse(read_bounded(answered))
    for item in request.items:
        signature = response.signatures.get(item.digest)
        if signature is None:
            raise SignatureError(f"the answer has no signature for {item.name}, which was asked for")
        if isinstance(item.subject, RootHash):
            signed = roothash.detached(request.certificate, signature)
            roothash.check_root_hash(item.subject, signed, [request.certificate])
            yield Detached(item.name, _hash_of_root(item.subject), signed)
            continue
        signed = authenticode.detached(item.subject, request.certificate, signature)
        yield Detached(item.name, OciDigest("sha256", item.subject.hex()), signed)


def attach_published(
    files: BootFiles, request: ConvertRequest, manifest: OciDigest | None, report: Report
) -> BootFiles:
    """Attach the signatures by certificates of --db that are beside the image, where no key is here to sign.

    A UKI that is built here has no other; one that the image brings is held to --db as ever.
    """
    boot = request.boot
    if files.esp is None or files.flow == "type1" or manifest is None or boot is None or not boot.db or boot.signing:
        return files
    anchors = read_trusted(list(boot.db))
    lacking = {
        path: _hash(data) for path, data in files.esp.items() if is_program(path) and not _trusted(data, anchors)
    }
    if not lacking:
        return files
    with open_source(request.source, request.options) as source:
        wanted = set(lacking.values())
        found = list(find_signatures(source, manifest, wanted, lambda text: report(Warned(text))))
    signed: dict[str, bytes] = {}
    for path, digest in lacking.items():
        for one in found:
            if one.image == digest and (data := _with(files.esp[path], one, anchors, report)):
                signed[path] = data
                break
        else:
            if path.startswith(f"{LINUX}/") and path not in files.finished:
                raise SignatureError(
                    f"{path} is unsigned: built here, it needs a signature of {digest}, "
                    "none by --db is beside the image",
                    hint="`oci2boot attach` puts one there; with --secureboot-key it is signed here",
                )
    if signed:
        report(Told(f"signed elsewhere, attached to what was rebuilt here: {', '.join(signed)}"))
    return replace(files, esp={**files.esp, **signed}, finished=files.finished | signed.keys())


def published_root(
    request: ConvertRequest, manifest: OciDigest | None, root_hash: RootHash, report: Report
) -> tuple[bytes, Certificate]:
    """Return the signature of a root hash that is beside the image, and its signer, whose certificate `--db` names.

    `SignatureError` where none is there: the kernel would not open the root file system.
    """
    anchors = read_trusted(list(request.boot.db)) if request.boot else []
    wanted = _hash_of_root(root_hash)
    found: list[Detached] = []
    if anchors and manifest is not None:
        with open_source(request.source, request.options) as source:
            found = list(find_signatures(source, manifest, {wanted}, lambda text: report(Warned(text))))
    for one in found:
        try:
            signer = roothash.check_root_hash(root_hash, one.signature, anchors)
        except Error as error:
            report(Warned(f"a signature of the root hash beside the image does not hold: {error.message}"))
            continue
        report(Told(f"root hash signed elsewhere, by {signer.subject}"))
        return one.signature, signer
    raise SignatureError(
        f"the root hash {root_hash} is unsigned: it needs a signature, none by --db is beside the image",
        hint="`oci2boot attach` puts one there; with --secureboot-key it is signed here",
    )


def _hash_of_root(root_hash: RootHash) -> OciDigest:
    return OciDigest.of(root_hash_to_be_signed(root_hash))


def _with(data: bytes, one: Detached, anchors: Sequence[Certificate], report: Report) -> bytes | None:
    """Return the executable with a signature that holds and is trusted; None with one that is not."""
    try:
        signed = authenticode.attach_detached(data, one.signature)
        return signed if _trusted(signed, anchors) else None
    except Error as error:
        report(Warned(f"a signature of {one.image} beside the image does not hold: {error.message}"))
        return None


def _trusted(data: bytes, anchors: Sequence[Certificate]) -> bool:
    return any(signature.anchor for signature in authenticode.verify(data, anchors))


def _hash(data: bytes) -> OciDigest:
    return OciDigest("sha256", authenticode.image_hash(data).hex())
