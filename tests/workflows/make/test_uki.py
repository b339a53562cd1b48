"""UKIs as files: built from a directory, signed, verified and looked into. P.7, D.10, D.13, C.24, C.26, C.28"""

import hashlib
import io
import os
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.errors import Error, FormatError, ImageError, LintError, SignatureError, TargetError
from oci2boot.formats import pe
from oci2boot.oci.reference import Reference
from oci2boot.store.repository import Repository
from oci2boot.workflows.keys import executables as workflow
from oci2boot.workflows.keys.signing import answer
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.uki_build import BuildRequest, BuiltUki, build, write_addon
from oci2boot.workflows.progress import Event, Warned, silent
from oci2boot.workflows.requests import ConvertRequest, Linting, SigningOptions
from tests.boot.initrds import CLOSED
from tests.keys import Pair, make
from tests.oci.layouts import Layout
from tests.witness import program
from tests.workflows import sealable
from tests.workflows.make.seals import BUILTIN, EXACT, by_cfsctl, section
from tests.workflows.sealable import KVER, addon_stub, base, profiles


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def db(folder: Path) -> Pair:
    return make(folder, "db")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An operating system unpacked into a directory by Python's tarfile."""
    path = tmp_path / "root"
    for layer in base():
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            archive.extractall(path, filter="tar")
    return path


def sbverify(pair: Pair, path: Path) -> None:
    subprocess.run([program("sbverify"), "--cert", pair.path, path], check=True, capture_output=True)


# ---- build


def test_a_directory_gets_the_uki_that_promises_it(root: Path, db: Pair) -> None:
    """D.10, C.26; the digest is cfsctl's of the files as they are, before and after the UKI is there."""
    digest = by_cfsctl(root)
    signing = SigningOptions(certificate=db.path, key=str(db.key))
    request = BuildRequest(rootfs=root, tree=EXACT, boot=replace(BUILTIN, signing=signing))
    built = build(request, silent)
    assert built.path.parent == root / "boot/EFI/Linux"
    assert section(built.path, b".cmdline").decode() == f"rw quiet {CLOSED} composefs={digest}"
    loader = root / "boot/EFI/systemd/systemd-bootx64.efi"
    assert built == BuiltUki(built.path, digest, f"rw quiet {CLOSED} composefs={digest}", KVER, (loader,))
    for program_of_ours in (built.path, loader):
        sbverify(db, program_of_ours)
    assert by_cfsctl(root) == digest
    before = built.path.read_bytes()
    assert build(request, silent).path.read_bytes() == before


def test_a_uki_of_a_stage_with_nanoseconds_is_taken_with_the_layer_of_it(root: Path, tmp_path: Path) -> None:
    """C.26: GNU tar makes the layer, in the format of POSIX of 1988, which has seconds."""
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(0, (1_700_000_000 + number) * 10**9 + 987_654_321), follow_symlinks=False)
    built = build(BuildRequest(rootfs=root, boot=BUILTIN), silent)
    argv: list[str | Path] = [
        program("tar"),
        "--format=ustar",
        "--numeric-owner",
        "-C",
        root,
        "-cf",
        tmp_path / "layer.tar",
        ".",
    ]
    subprocess.run(argv, check=True)
    layout = Layout(tmp_path / "layout")
    layout.tag(layout.image([layout.layer((tmp_path / "layer.tar").read_bytes())]), "latest")
    request = ConvertRequest(
        source=Reference.parse(f"oci:{layout.path}:latest"), repo=tmp_path / "repo", name="x", boot=BUILTIN
    )
    bootable = convert(request, silent)
    assert (bootable.flow, str(bootable.root.image)) == ("sealed", built.digest)


def test_a_directory_is_checked_as_a_sealed_image_is(root: Path) -> None:
    """P.12, D.10: warnings by name, all of them refused by --strict, and nothing is written then."""
    (root / "tmp").mkdir()
    (root / "tmp/left").write_text("over")
    request = BuildRequest(rootfs=root, boot=BUILTIN)
    told: list[Event] = []
    with pytest.raises(LintError, match="nonempty-run-tmp"):
        build(replace(request, linting=Linting(strict=True)), told.append)
    assert not (root / "boot/EFI").exists()
    with pytest.raises(FormatError, match="no check intit"):
        build(replace(request, linting=Linting(skip=("intit",))), silent)
    build(request, told.append)
    warned = [event.lint for event in told if isinstance(event, Warned)]
    assert "nonempty-run-tmp" in warned
    told.clear()
    build(replace(request, linting=Linting(skip=("nonempty-run-tmp",))), told.append)
    assert "nonempty-run-tmp" not in [event.lint for event in told if isinstance(event, Warned)]


def test_the_uki_goes_where_it_is_told(root: Path, tmp_path: Path) -> None:
    """C.24: unsigned, and the same bytes in each place; the root, which may be a read-only mount, is left alone."""
    file = build(BuildRequest(rootfs=root, output=tmp_path / "my.efi", boot=BUILTIN), silent).path
    inside = build(BuildRequest(rootfs=root, output=tmp_path, boot=BUILTIN), silent).path
    assert (file, inside.parent) == (tmp_path / "my.efi", tmp_path)
    assert file.read_bytes() == inside.read_bytes()
    assert not (root / "boot/EFI").exists()
    with pytest.raises(TargetError, match="cannot write"):
        build(BuildRequest(rootfs=root, output=tmp_path / "missing/my.efi", boot=BUILTIN), silent)


def test_a_key_that_does_not_sign_leaves_no_uki(root: Path, db: Pair) -> None:
    signing = SigningOptions(certificate=db.path, command="false")
    with pytest.raises(SignatureError):
        build(BuildRequest(rootfs=root, boot=replace(BUILTIN, signing=signing)), silent)
    assert not (root / "boot/EFI").exists()


# ---- convert


def esp_of(layout: Layout, repo: Path, signing: SigningOptions | None) -> dict[str, bytes]:
    request = ConvertRequest(
        source=Reference.parse(f"oci:{layout.path}:base"),
        repo=repo,
        name="base",
        boot=replace(BUILTIN, signing=signing),
    )
    bootable = convert(request, silent)
    with Repository.open(repo) as repository:
        return {path: repository.read_object(digest) for path, digest in bootable.esp.items()}


def test_convert_signs_the_uki_and_the_boot_loader(layout: Layout, db: Pair, tmp_path: Path) -> None:
    """P.7"""
    signed = esp_of(layout, tmp_path / "repo", SigningOptions(certificate=db.path, key=str(db.key)))
    programs = sorted(path for path in signed if path.lower().endswith(".efi"))
    assert [path.partition("_")[0] for path in programs] == [
        "EFI/BOOT/BOOTX64.EFI", "EFI/Linux/debian", "EFI/systemd/systemd-bootx64.efi",
    ]  # fmt: skip
    for path in programs:
        (tmp_path / "one.efi").write_bytes(signed[path])
        sbverify(db, tmp_path / "one.efi")
    unsigned = esp_of(layout, tmp_path / "other", None)
    assert list(unsigned) == list(signed)
    assert all(unsigned[path] == signed[path] for path in signed if path not in programs)
    assert not any(pe.parse(unsigned[path]).signed for path in programs)


def test_convert_twice_with_an_answer_gives_what_the_key_gives(layout: Layout, db: Pair, tmp_path: Path) -> None:
    """B.5: in the first run nothing is signed, in the second all; the key was never here."""
    request, response = tmp_path / "request.json", tmp_path / "response.json"
    asking = esp_of(layout, tmp_path / "repo", SigningOptions(certificate=db.path, request=request))
    assert asking == esp_of(layout, tmp_path / "unsigned", None)
    answer(request, db.key, None, response)
    applied = esp_of(layout, tmp_path / "repo", SigningOptions(certificate=db.path, response=response))
    assert applied == esp_of(layout, tmp_path / "inline", SigningOptions(certificate=db.path, key=str(db.key)))


# ---- sign, verify, describe


@pytest.fixture(scope="module")
def signed(folder: Path, db: Pair) -> Path:
    source, target = folder / "uki.efi", folder / "signed.efi"
    source.write_bytes(sealable.uki(f"rw composefs={'ab' * 32}"))
    workflow.sign(source, target, SigningOptions(certificate=db.path, key=str(db.key)), silent)
    return target


def test_a_signed_uki_is_verified_against_its_certificate(signed: Path, db: Pair, folder: Path) -> None:
    """C.35"""
    sbverify(db, signed)
    (found,) = workflow.verify(signed, [db.path]).signatures
    assert (found.signer, found.trusted_by) == ("CN=db", "CN=db")
    assert found.fingerprint == hashlib.sha256(db.certificate.der).hexdigest()
    assert workflow.verify(signed, []).signatures[0].trusted_by is None
    stranger = make(folder, "stranger")
    with pytest.raises(SignatureError, match="by none of the certificates"):
        workflow.verify(signed, [stranger.path])
    assert workflow.verify(signed, [stranger.path, db.path]).signatures


def test_what_is_unsigned_or_changed_is_not_verified(signed: Path, db: Pair, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="not signed"):
        workflow.verify(signed.with_name("uki.efi"), [])
    data = signed.read_bytes()
    at = data.index(b"composefs=")
    (tmp_path / "changed.efi").write_bytes(data[:at] + b"C" + data[at + 1 :])
    with pytest.raises(SignatureError, match="changed after it was signed"):
        workflow.verify(tmp_path / "changed.efi", [db.path])


def test_a_description_has_what_objdump_and_the_stub_see(signed: Path, db: Pair) -> None:
    found = workflow.describe(signed, [db.path])
    said = subprocess.run([program("objdump"), "-h", signed], check=True, capture_output=True, text=True).stdout
    listed = [words[1] for line in said.splitlines() if (words := line.split()) and words[0].isdecimal()]
    assert [one.name for one in found.sections] == listed
    texts = {one.name: one.text for one in found.sections if one.text is not None}
    assert texts[".cmdline"] == f"rw composefs={'ab' * 32}"
    assert texts[".uname"] == KVER
    assert (found.kind, found.machine) == ("UKI", "x86_64")
    assert found.composefs == (f"composefs={'ab' * 32}",)
    assert isinstance(found.signatures, tuple)
    assert found.signatures[0].trusted_by == "CN=db"


def test_every_profile_is_described(tmp_path: Path) -> None:
    path = tmp_path / "profiles.efi"
    path.write_bytes(profiles(f"rw composefs={'ab' * 32}", None, f"debug composefs={'cd' * 32}"))
    found = workflow.describe(path)
    assert found.composefs == (f"composefs={'ab' * 32}", f"composefs={'cd' * 32}")
    lines = [(one.profile, one.text) for one in found.sections if one.name == ".cmdline"]
    assert lines == [(None, f"rw composefs={'ab' * 32}"), (1, f"debug composefs={'cd' * 32}")]


@pytest.mark.parametrize(
    "line",
    [
        f'"composefs={"ab" * 32}"', f"composefs={'AB' * 32}", "composefs=", "composefs", f"COMPOSEFS={'ab' * 32}",
        f"composefs={'ab' * 31}", f"composefs.digest={'ab' * 32}",
    ],
)  # fmt: skip
def test_arguments_that_readers_see_differently_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.efi"
    path.write_bytes(sealable.with_sections(sealable.stub(), [(b".linux", b"x"), (b".cmdline", line.encode())]))
    with pytest.raises(FormatError, match="composefs"):
        workflow.describe(path)


def test_other_files_are_refused(tmp_path: Path, db: Pair) -> None:
    path = tmp_path / "file.efi"
    for data in (b"", b"text", b"MZ" + bytes(200)):
        path.write_bytes(data)
        for act in (
            lambda: workflow.describe(path),
            lambda: workflow.verify(path, [db.path]),
            lambda: workflow.sign(path, path, SigningOptions(certificate=db.path, key=str(db.key)), silent),
        ):
            with pytest.raises(Error):
                act()
    assert path.read_bytes() == b"MZ" + bytes(200)


# ---- addons


def test_an_addon_is_signed_and_says_what_it_is_for(tmp_path: Path, db: Pair) -> None:
    stub, target = tmp_path / "stub", tmp_path / "10-console.addon.efi"
    stub.write_bytes(addon_stub())
    signing = SigningOptions(certificate=db.path, key=str(db.key))
    write_addon(stub, "console=ttyS0  quiet", KVER, target, signing, silent)
    sbverify(db, target)
    assert section(target, b".cmdline") == b"console=ttyS0 quiet"
    assert section(target, b".uname").rstrip(b"\0").decode() == KVER
    assert b"sbat,1," in section(target, b".sbat")
    assert workflow.describe(target).kind == "addon"


@pytest.mark.parametrize(
    "line",
    [
        f"composefs={'ab' * 32}",
        "root=/dev/vda2",
        "quiet init=/bin/sh",
        "rd.break",
        '"init=/bin/sh"',
        "rescue",
        "quiet S",
        "systemd.unit=rescue.target",
        "systemd.debug_shell",
        'systemd.run="/bin/sh x"',
        "systemd.verity_root_data=/dev/vda",
    ],
)
def test_an_addon_that_decides_what_is_booted_takes_force(line: str, tmp_path: Path) -> None:
    """C.36: a signed addon is taken by every UKI of the same key."""
    stub, target = tmp_path / "stub", tmp_path / "x.addon.efi"
    stub.write_bytes(addon_stub())
    with pytest.raises(ImageError, match="would change what"):
        write_addon(stub, line, KVER, target, None, silent)
    assert not target.exists()
    write_addon(stub, line, KVER, target, None, silent, force=True)
    assert section(target, b".cmdline").decode() == line


@pytest.mark.parametrize(("name", "line", "uname"), [
    ("x.efi", "quiet", KVER), (".x.addon.efi", "quiet", KVER), ("ü.addon.efi", "quiet", KVER),
    ("x.addon.efi", "", KVER), ("x.addon.efi", "quiet", ""), ("x.addon.efi", "quiet", "6\n7"),
])  # fmt: skip
def test_addons_that_the_stub_passes_over_are_refused(name: str, line: str, uname: str, tmp_path: Path) -> None:
    stub = tmp_path / "stub"
    stub.write_bytes(addon_stub())
    with pytest.raises(FormatError):
        write_addon(stub, line, uname, tmp_path / name, None, silent)


def test_the_stub_of_addons_comes_from_the_named_file(tmp_path: Path) -> None:
    with pytest.raises(Error, match="no such file"):
        write_addon(tmp_path / "none", "quiet", KVER, tmp_path / "x.addon.efi", None, silent)
