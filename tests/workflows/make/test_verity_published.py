"""Signatures made elsewhere in the mode verity: the root hash's is found beside the image, too. openssl judges."""

import json
import subprocess
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from oci2boot.digest import OciDigest
from oci2boot.errors import SignatureError
from oci2boot.oci.destination import open_destination
from oci2boot.oci.manifest import OCI_MANIFEST, SIGNATURES, Descriptor
from oci2boot.oci.outgoing import pack_json
from oci2boot.oci.reference import Reference
from oci2boot.oci.referrers import Detached, pack_artifact
from oci2boot.oci.source import SourceOptions, open_source
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.store.images import Bootable
from oci2boot.store.roots import DmVerityRoot
from oci2boot.workflows.keys.signing import answer
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.published import AttachRequest, attach
from oci2boot.workflows.progress import Event, Told, Warned, silent
from oci2boot.workflows.requests import BootOptions, SigningOptions
from tests.oci.layouts import Layout
from tests.witness import program
from tests.workflows.verity_images import (
    BUILTIN_OPTIONS,
    Publisher,
    check_signature,
    convert_verity,
    credential,
    make_signing,
    object_of,
    uki_of,
)

pytestmark = pytest.mark.usefixtures("erofs_utils")
OTHER = VerityOptions(salt=b"other")
"""Of the same tree, another root hash."""
UNSIGNED = r"^the root hash [0-9a-f]{64} is unsigned: it needs a signature, none by --db is beside the image$"


@dataclass(frozen=True, slots=True)
class Place:
    publisher: Publisher
    folder: Path

    @property
    def source(self) -> Reference:
        return Reference.parse(self.publisher.source)

    def machine(self, signing: SigningOptions, report: list[Event] | None = None) -> Bootable:
        """Convert where no key is."""
        boot = replace(BUILTIN_OPTIONS, db=(signing.certificate,))
        told = report if report is not None else []
        return convert_verity(self.source, self.folder / "machine", VerityOptions(), boot=boot, report=told.append)

    def ask(self, signing: SigningOptions, folder: Path, options: VerityOptions) -> tuple[Path, Path]:
        """Have what the image needs signed by who has the key."""
        asked, answered = folder / "request.json", folder / "response.json"
        boot = replace(BUILTIN_OPTIONS, signing=replace(signing, key=None, request=asked))
        convert_verity(self.source, folder / "builder", options, boot=boot)
        assert signing.key
        answer(asked, Path(signing.key), None, answered)
        return asked, answered

    def sign(self, signing: SigningOptions, folder: Path, options: VerityOptions = VerityOptions()) -> list[str]:  # noqa: B008
        folder.mkdir()
        asked, answered = self.ask(signing, folder, options)
        return [one.name for one in attach(AttachRequest(image=self.source, asked=asked, answered=answered)).signatures]

    def put(self, *signatures: Detached) -> None:
        """Put beside the image what a registry may serve."""
        with open_source(self.source, SourceOptions()) as source:
            subject = source.fetch().descriptor
        document, blobs = pack_artifact(subject, signatures)
        manifest = pack_json(document)
        with open_destination(self.source, SourceOptions()) as destination:
            for blob, data in blobs:
                destination.put(blob, partial(list, (data,)))
            descriptor = Descriptor(OCI_MANIFEST, OciDigest.of(manifest), len(manifest), {})
            destination.refer(descriptor, manifest, subject.digest, SIGNATURES)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(Publisher(Layout(tmp_path / "layout")), tmp_path)
    made.publisher.release(b"one")
    return made


def test_a_machine_without_a_key_gets_what_the_key_holder_would_make(
    place: Place, signing: SigningOptions, tmp_path: Path
) -> None:
    """C.25, K1.1: root hash, UKI and boot loader, to the byte; openssl and sbverify take them."""
    assert place.sign(signing, tmp_path / "signed")[0] == "root hash"
    told: list[Event] = []
    found, repo = place.machine(signing, told), tmp_path / "machine"
    assert "root hash signed elsewhere, by CN=owner" in [one.text for one in told if isinstance(one, Told)]
    check_signature(repo, found, signing, tmp_path)
    (tmp_path / "uki.efi").write_bytes(uki_of(repo, found))
    subprocess.run([program("sbverify"), "--cert", signing.certificate, tmp_path / "uki.efi"], check=True)
    boot = replace(BUILTIN_OPTIONS, signing=signing)
    holder = convert_verity(place.source, tmp_path / "holder", VerityOptions(), boot=boot)
    assert (found.root, found.esp) == (holder.root, holder.esp)
    partitions = [
        object_of(at, one, "signature").read_bytes() for at, one in ((repo, found), (tmp_path / "holder", holder))
    ]
    assert partitions[0] == partitions[1]


def test_without_a_signature_of_the_root_hash_nothing_is_made(
    place: Place, signing: SigningOptions, tmp_path: Path
) -> None:
    """C.25, C.35: none there, one by a stranger, one of another root hash; each is no signature."""
    with pytest.raises(SignatureError, match=UNSIGNED):
        place.machine(signing)
    place.sign(make_signing(tmp_path, "stranger"), tmp_path / "strange")
    told: list[Event] = []
    with pytest.raises(SignatureError, match=UNSIGNED):
        place.machine(signing, told)
    assert any("CN=stranger, who is not trusted" in one.text for one in told if isinstance(one, Warned))
    place.sign(signing, tmp_path / "other", OTHER)
    with pytest.raises(SignatureError, match=UNSIGNED):
        place.machine(signing)
    assert list((tmp_path / "machine/streams/refs").rglob("demo")) == []
    place.sign(signing, tmp_path / "signed")
    check_signature(tmp_path / "machine", place.machine(signing), signing, tmp_path)


def test_a_signature_of_another_root_hash_is_passed_over(place: Place, signing: SigningOptions, tmp_path: Path) -> None:
    """C.25: it says of itself that it is of this one, and its key is the right one."""
    boot = replace(BUILTIN_OPTIONS, signing=signing)
    right = convert_verity(place.source, tmp_path / "holder", VerityOptions(), boot=boot)
    assert isinstance(right.root, DmVerityRoot)
    digits = str(right.root.root_hash).encode()
    wrong = convert_verity(place.source, tmp_path / "holder", OTHER, boot=boot)
    signature = credential(tmp_path / "holder", wrong).read_bytes()
    place.put(
        *(Detached("root hash", OciDigest.of(digits), data) for data in (signature, b"", b"\x30\x80", signature[:-1]))
    )
    told: list[Event] = []
    with pytest.raises(SignatureError, match=UNSIGNED):
        place.machine(signing, told)
    assert sum("of the root hash beside the image does not hold" in getattr(one, "text", "") for one in told) == 4


def test_an_answer_that_does_not_sign_the_root_hash_is_not_attached(
    place: Place, signing: SigningOptions, tmp_path: Path
) -> None:
    """C.25, B.5: it is of something else, or has none under the digest of what was asked."""
    asked, answered = place.ask(signing, tmp_path, VerityOptions())
    items = json.loads(asked.read_text())["items"]
    (digest,) = (one["digest"] for one in items if one["kind"] == "root-hash")
    response = json.loads(answered.read_text())
    signatures = {one["digest"]: one["signature"] for one in response["signatures"]}
    forged = tmp_path / "forged.json"
    changed = signatures | {digest: next(one for key, one in signatures.items() if key != digest)}
    listed = [{"digest": key, "signature": one} for key, one in changed.items()]
    forged.write_text(json.dumps({**response, "signatures": listed}))
    with pytest.raises(SignatureError, match="the signature is not by the key of CN=owner"):
        attach(AttachRequest(image=place.source, asked=asked, answered=forged))
    other = tmp_path / "other"
    other.mkdir()
    _, wrong = place.ask(signing, other, OTHER)
    with pytest.raises(SignatureError, match="no signature for"):
        attach(AttachRequest(image=place.source, asked=asked, answered=wrong))
    assert attach(AttachRequest(image=place.source, asked=asked, answered=answered)).signatures


def test_the_next_version_needs_its_own(place: Place, signing: SigningOptions, tmp_path: Path) -> None:
    """C.25, P.11: what an upgrade does; no option, no key."""
    place.sign(signing, tmp_path / "signed")
    first = place.machine(signing)

    def upgrade() -> Bootable:
        folder = tmp_path / "scratch"
        folder.mkdir(exist_ok=True)
        return convert(request_again(first, tmp_path / "machine", folder, BootOptions()), silent)

    place.publisher.release(b"two")
    with pytest.raises(SignatureError, match=UNSIGNED):
        upgrade()
    place.sign(signing, tmp_path / "next")
    check_signature(tmp_path / "machine", upgrade(), signing, tmp_path)
