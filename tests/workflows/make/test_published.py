"""Signatures made elsewhere, beside an image: what a machine rebuilds gets them. sbverify judges."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from oci2boot.errors import FormatError, LoaderError, SignatureError, TargetError
from oci2boot.oci.reference import Reference
from oci2boot.store.images import Bootable
from oci2boot.workflows.keys.signing import answer
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.published import Attached, AttachRequest, attach
from oci2boot.workflows.make.seal import SealRequest, seal
from oci2boot.workflows.progress import Event, Warned, silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, SigningOptions
from tests.keys import Pair, make
from tests.oci.layouts import Layout
from tests.oci.registries import docker_registry, push
from tests.witness import program
from tests.workflows.make.seals import BUILTIN, LOOPBACK
from tests.workflows.sealable import add_image, base, tar

UKI = "EFI/Linux/debian_20261121100000.efi"
LOADER = "EFI/BOOT/BOOTX64.EFI"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the image lies, and the folder of who works with it."""

    source: str
    folder: Path

    def convert(self, who: str, report: list[Event] | None = None, **options: object) -> tuple[Bootable, Path]:
        repo = self.folder / who
        boot = replace(BootOptions(), **options)  # type: ignore[arg-type]
        request = ConvertRequest(source=Reference.parse(self.source), repo=repo, name="x", options=LOOPBACK, boot=boot)
        return convert(request, report.append if report is not None else silent), repo

    def esp(self, who: str, report: list[Event] | None = None, **options: object) -> dict[str, bytes]:
        """Convert, and return the programs of the ESP."""
        bootable, repo = self.convert(who, report, **options)
        objects = {path: str(digest) for path, digest in bootable.esp.items() if path.lower().endswith(".efi")}
        return {path: (repo / "objects" / name[:2] / name[2:]).read_bytes() for path, name in objects.items()}

    def ask(self, certificate: Path) -> Path:
        """Have the builder, who has no key either, write down what he wants signed."""
        request = self.folder / "request.json"
        self.convert("builder", signing=SigningOptions(certificate=certificate, request=request))
        return request

    def attach(self, *signed: Path, **more: object) -> Attached:
        return attach(
            AttachRequest(image=Reference.parse(self.source), signed=signed, options=LOOPBACK, **more)  # type: ignore[arg-type]
        )

    def answered(self, pair: Pair) -> Attached:
        """Ask, sign and attach."""
        request, response = self.ask(pair.path), self.folder / "response.json"
        answer(request, pair.key, None, response)
        return self.attach(asked=request, answered=response)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry") / "storage") as address:
        yield address


@pytest.fixture(params=["registry", "layout"])
def place(request: pytest.FixtureRequest, layout: Layout, registry: str, tmp_path: Path) -> Place:
    """Give an image in a registry that knows no referrers, as Debian's, or in a layout that has nothing else."""
    name = f"docker://{registry}/{tmp_path.name.replace('_', '').lower()}/os:v"
    if request.param == "layout":
        name = f"oci:{tmp_path}/layout:v"
        copy = [program("skopeo"), "copy", "--preserve-digests", "--insecure-policy", f"oci:{layout.path}:base", name]
        subprocess.run(copy, check=True, capture_output=True)
    else:
        push(f"oci:{layout.path}:base", name)
    return Place(name, tmp_path)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("keys"), "db")


def accepted(esp: dict[str, bytes], pair: Pair, folder: Path) -> set[str]:
    """Return what sbverify(1) accepts."""
    found = set()
    for path, data in esp.items():
        (folder / "one.efi").write_bytes(data)
        words: list[str | Path] = [program("sbverify"), "--cert", pair.path, folder / "one.efi"]
        if subprocess.run(words, check=False, capture_output=True).returncode == 0:
            found.add(path)
    return found


def inspected(source: str) -> str:
    words = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", source]
    return subprocess.run([program("skopeo"), *words], check=True, capture_output=True, text=True).stdout


def test_what_was_signed_elsewhere_is_attached_to_what_is_rebuilt_here(place: Place, db: Pair) -> None:
    """C.25, C.24: three stores; no machine has the key, and the bytes are those that the key holder would have made."""
    before = inspected(place.source)
    attached = place.answered(db)
    assert {one.name for one in attached.signatures} >= {UKI}
    found = place.esp("machine", db=(db.path,))
    assert accepted(found, db, place.folder) == {UKI, LOADER, "EFI/systemd/systemd-bootx64.efi"}
    key = SigningOptions(certificate=db.path, key=str(db.key))
    assert place.esp("holder", signing=key) == found
    assert inspected(place.source) == before, "the image stays what it is"
    assert place.answered(db).artifact == attached.artifact, "once more is the same"


def test_a_signed_executable_gives_its_signature(place: Place, db: Pair) -> None:
    """C.25: by sbsign, as services that sign whole files do it; its signature holds a time, and goes on as it is."""
    signed = []
    for path, data in place.esp("builder", db=()).items():
        if path in (UKI, LOADER):
            signed.append(place.folder / Path(path).name)
            signed[-1].write_bytes(db.sbsign(data))
    place.attach(*signed)
    found = place.esp("machine", db=(db.path,))
    assert accepted(found, db, place.folder) == {UKI, LOADER, "EFI/systemd/systemd-bootx64.efi"}
    assert found[UKI] == signed[0].read_bytes()


def test_the_signature_of_another_image_is_not_attached(place: Place, db: Pair, layout: Layout) -> None:
    """C.25: the next version has another UKI, and what is beside the old one is not looked at."""
    place.answered(db)
    add_image(layout, [*base(), tar({"usr/bin/new": b"new"})], "next")
    target = place.source
    if target.startswith("docker"):
        push(f"oci:{layout.path}:next", target)
    else:
        copy = [program("skopeo"), "copy", "--preserve-digests", "--insecure-policy"]
        subprocess.run([*copy, f"oci:{layout.path}:next", target], check=True, capture_output=True)
    with pytest.raises(SignatureError, match=f"{UKI} is unsigned: built here, it needs a signature of sha256:"):
        place.esp("machine", db=(db.path,))


def test_a_signature_by_another_key_is_not_attached(place: Place, db: Pair) -> None:
    """C.35: who may write into the registry may not sign."""
    other = make(place.folder, "other")
    place.answered(other)
    with pytest.raises(SignatureError, match="none by --db is beside the image"):
        place.esp("machine", db=(db.path,))
    place.answered(db)
    assert UKI in accepted(place.esp("again", db=(db.path,)), db, place.folder)


def test_a_sealed_image_may_be_signed_later(layout: Layout, db: Pair, tmp_path: Path) -> None:
    """C.25, C.35: its UKI lies unsigned in its layer; --db refuses it until the signature is there, the loader too."""
    source, target = Reference.parse(f"oci:{layout.path}:base"), f"oci:{tmp_path}/sealed:v"
    request, response = tmp_path / "request.json", tmp_path / "response.json"
    seal(SealRequest(source=source, destination=Reference.parse(target), repo=tmp_path / "b", boot=BUILTIN), silent)
    place = Place(target, tmp_path)
    with pytest.raises(SignatureError, match=r"\.(efi|EFI) is unsigned"):
        place.esp("machine", db=(db.path,))
    boot = replace(BUILTIN, signing=SigningOptions(certificate=db.path, request=request))
    asked = SealRequest(source=source, destination=Reference.parse(target), repo=tmp_path / "b", boot=boot)
    assert seal(asked, silent) is None
    answer(request, db.key, None, response)
    place.attach(asked=request, answered=response)
    assert {UKI, LOADER} <= accepted(place.esp("machine", db=(db.path,)), db, tmp_path)


def test_a_loader_that_nobody_signed_stops_a_uki_that_somebody_did(place: Place, db: Pair) -> None:
    """C.35."""
    uki = place.folder / "uki.efi"
    uki.write_bytes(db.sbsign(place.esp("builder", db=())[UKI]))
    place.attach(uki)
    with pytest.raises(LoaderError, match=f"{LOADER} is unsigned"):
        place.esp("machine", db=(db.path,))


def test_a_layout_with_signatures_still_has_one_image(layout: Layout, db: Pair, tmp_path: Path) -> None:
    """Without a tag too; and a copy by skopeo is the image."""
    copy = [program("skopeo"), "copy", "--preserve-digests", "--insecure-policy"]
    subprocess.run([*copy, f"oci:{layout.path}:base", f"oci:{tmp_path}/one:v"], check=True, capture_output=True)
    place = Place(f"oci:{tmp_path}/one", tmp_path)
    place.answered(db)
    assert UKI in accepted(place.esp("machine", db=(db.path,)), db, tmp_path)
    subprocess.run([*copy, f"oci:{tmp_path}/one:v", f"oci:{tmp_path}/two:v"], check=True, capture_output=True)


def broken(layout: Path) -> list[str]:
    """Put artifacts beside the image of a layout that are not what they say; return how each is named."""
    made = Layout(layout)
    index = json.loads((layout / "index.json").read_text())
    subject = {name: value for name, value in index["manifests"][0].items() if name != "annotations"}
    kind = "application/vnd.oci2boot.signatures.v1"
    real = json.loads(made.blob_path(index["manifests"][-1]["digest"]).read_text())
    signs = real["layers"][-1]["annotations"]
    layers = [
        made.blob(b"not DER", "application/pkcs7-signature", annotations=signs),
        made.blob(bytes(65537), "application/pkcs7-signature", annotations=signs),
        made.blob(b"", "application/pkcs7-signature", annotations={"io.oci2boot.signs.v1": "md5:00"}),
        made.blob(b"", "application/pkcs7-signature"),
    ]
    documents = [{**real, "subject": subject, "layers": [layer]} for layer in layers]
    documents += [{**real, "artifactType": "another"}, {"artifactType": kind}]
    entries = [made.document(document, real["mediaType"], artifactType=kind) for document in documents]
    made.write_index(json.dumps({**index, "manifests": [*entries, *index["manifests"]]}).encode())
    return [entry["digest"] for entry in entries[1:]]


def test_artifacts_that_are_broken_are_named_and_passed_over(layout: Layout, db: Pair, tmp_path: Path) -> None:
    """B.2: who can write there cannot keep a machine from its signature, nor have it read much."""
    copy = [program("skopeo"), "copy", "--preserve-digests", "--insecure-policy"]
    subprocess.run([*copy, f"oci:{layout.path}:base", f"oci:{tmp_path}/one:v"], check=True, capture_output=True)
    place = Place(f"oci:{tmp_path}/one:v", tmp_path)
    place.answered(db)
    named = broken(tmp_path / "one")
    told: list[Event] = []
    found = place.esp("machine", told, db=(db.path,))
    assert UKI in accepted(found, db, tmp_path)
    said = [event.text for event in told if isinstance(event, Warned)]
    for digest in named:
        assert any(f"the signatures in {digest} are passed over" in text for text in said), digest
    assert any("does not hold" in text for text in said)


def test_nothing_to_attach_is_an_error(place: Place, db: Pair) -> None:
    with pytest.raises(SignatureError, match="there is no signature to attach"):
        place.attach()
    request = place.ask(db.path)
    with pytest.raises(SignatureError, match="belong together"):
        place.attach(asked=request)
    other, response = make(place.folder, "other"), place.folder / "response.json"
    answer(Place(place.source, place.folder).ask(other.path), other.key, None, response)
    asked = place.ask(db.path)
    with pytest.raises(SignatureError):
        place.attach(asked=asked, answered=response)
    unsigned = place.folder / "unsigned.efi"
    unsigned.write_bytes(place.esp("builder", db=())[UKI])
    with pytest.raises(SignatureError, match="is not signed"):
        place.attach(unsigned)
    (place.folder / "other.efi").write_bytes(b"")
    with pytest.raises(FormatError, match=r"/other\.efi: not an EFI executable"):
        place.attach(place.folder / "other.efi")
    assert place.esp("machine", db=())


def test_an_archive_takes_no_signatures(layout: Layout, db: Pair, tmp_path: Path) -> None:
    archive = f"oci-archive:{tmp_path}/os.tar:v"
    copy = [program("skopeo"), "copy", "--insecure-policy", f"oci:{layout.path}:base", archive]
    subprocess.run(copy, check=True, capture_output=True)
    with pytest.raises(TargetError):
        Place(archive, tmp_path).answered(db)
