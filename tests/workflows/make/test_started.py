"""What starts a signed UKI travels with it: sbverify says what firmware with one certificate would start."""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.errors import ImageError, LoaderError
from oci2boot.oci.reference import Reference
from oci2boot.store.images import Bootable
from oci2boot.workflows.keys.signing import answer
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.seal import SealRequest, seal
from oci2boot.workflows.make.uki_build import BuildRequest, build
from oci2boot.workflows.progress import Event, Warned, silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, SigningOptions
from tests.boot.debian import package
from tests.keys import Pair, make
from tests.oci.layouts import Layout
from tests.witness import program
from tests.workflows.make.seals import BUILTIN, last_layer, run, sealed_to
from tests.workflows.sealable import add_image, base, kernel, tar

SHIM = "usr/lib/shim/shimx64.efi.signed"
MOK_MANAGER = "usr/lib/shim/mmx64.efi.signed"


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("keys"), "db")


@pytest.fixture(scope="module")
def signing(db: Pair) -> SigningOptions:
    return SigningOptions(certificate=db.path, key=str(db.key))


@pytest.fixture(scope="module")
def with_shim(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Give an image that has Debian's shim as well, tagged `base`."""
    layout = Layout(tmp_path_factory.mktemp("shim") / "layout")
    shim, helpers = package("shim-signed"), package("shim-helpers-amd64-signed")
    files: dict[str, bytes | Path] = {
        SHIM: (shim / SHIM).read_bytes(),
        MOK_MANAGER: (helpers / MOK_MANAGER).read_bytes(),
    }
    add_image(layout, [*base(), tar(files)], "base")
    return layout


def keyless(
    repo: Path, source: str, *, report: Callable[[Event], None] = silent, **options: object
) -> dict[str, bytes]:
    """Convert with what a machine has, certificates, and return the files of its ESP."""
    boot = BootOptions(ukify="builtin", **options)  # type: ignore[arg-type]
    request = ConvertRequest(source=Reference.parse(source), repo=repo, name="keyless", boot=boot)
    return esp(repo, convert(request, report))


def esp(repo: Path, bootable: Bootable) -> dict[str, bytes]:
    return {
        path: (repo / "objects" / str(digest)[:2] / str(digest)[2:]).read_bytes()
        for path, digest in bootable.esp.items()
    }


def accepted(programs: Mapping[str, bytes], pair: Pair, folder: Path) -> set[str]:
    """Return the programs that sbverify(1) accepts by this certificate."""
    found = set()
    for path, data in programs.items():
        (folder / "one.efi").write_bytes(data)
        words: list[str | Path] = [program("sbverify"), "--cert", pair.path, folder / "one.efi"]
        if path.lower().endswith(".efi") and subprocess.run(words, check=False, capture_output=True).returncode == 0:
            found.add(path)
    return found


def test_a_machine_without_a_key_gets_a_loader_that_its_firmware_starts(
    layout: Layout, repo: Path, db: Pair, signing: SigningOptions, tmp_path: Path
) -> None:
    """C.26, C.35, D.1: loader and UKI by sbverify; the loader is Debian's and a signature."""
    out = tmp_path / "out"
    sealed = sealed_to(repo, f"oci:{layout.path}:base", f"oci:{out}:x", replace(BUILTIN, signing=signing))
    assert sealed.loader == ("/boot/EFI/systemd/systemd-bootx64.efi",)
    with last_layer(out, "x") as archive:
        names = [member.name for member in archive if member.isfile()]
    assert names == [path.lstrip("/") for path in (sealed.uki, *sealed.loader)]
    warned: list[Event] = []
    files = keyless(repo, f"oci:{out}:x", db=(db.path,), report=warned.append)
    assert not [event for event in warned if isinstance(event, Warned) and event.lint in ("", "signature")]
    uki = sealed.uki.removeprefix("/boot/")
    assert accepted(files, db, tmp_path) == {uki, "EFI/systemd/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"}


def test_composefs_takes_an_image_with_a_loader_in_its_layer(
    layout: Layout, repo: Path, signing: SigningOptions, tmp_path: Path
) -> None:
    """D.14, C.2: the digest is cfsctl's, and its `prepare-boot` finds the UKI, and nothing else to boot."""
    out, cfs, boot = tmp_path / "out", tmp_path / "cfs", tmp_path / "boot"
    boot.mkdir()
    sealed = sealed_to(repo, f"oci:{layout.path}:base", f"oci:{out}:x", replace(BUILTIN, signing=signing))
    cfsctl: list[str | Path] = [program("cfsctl"), "--repo", cfs, "--insecure"]
    run(program("cfsctl"), "init", "--algorithm", "fsverity-sha256-12", "--insecure", cfs)
    run(*cfsctl, "oci", "pull", f"oci:{out}:x", "x")
    assert run(*cfsctl, "--erofs-version=1", "oci", "compute-id", "--bootable", "x").strip() == sealed.rootfs
    run(*cfsctl, "oci", "prepare-boot", "--bootdir", boot, "x")
    assert [path.name for path in boot.rglob("*.efi")] == [Path(sealed.uki).name]


def test_behind_a_shim_all_that_starts_the_uki_comes_along(
    with_shim: Layout, repo: Path, db: Pair, signing: SigningOptions, tmp_path: Path
) -> None:
    """P.9: what seal signed is what convert takes; a machine may also leave the shim out."""
    out = tmp_path / "out"
    boot = replace(BUILTIN, signing=signing, loader="shim")
    sealed = sealed_to(repo, f"oci:{with_shim.path}:base", f"oci:{out}:x", boot)
    assert set(sealed.loader) == {
        "/boot/EFI/systemd/systemd-bootx64.efi", "/boot/EFI/BOOT/shimx64.efi", "/boot/EFI/BOOT/mmx64.efi",
    }  # fmt: skip
    uki = sealed.uki.removeprefix("/boot/")
    files = keyless(repo, f"oci:{out}:x", db=(db.path,), loader="shim")
    assert accepted(files, db, tmp_path) == {
        uki, "EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi", "EFI/BOOT/mmx64.efi",
    }  # fmt: skip
    files = keyless(repo, f"oci:{out}:x", db=(db.path,))
    assert accepted(files, db, tmp_path) == {uki, "EFI/systemd/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"}


def test_a_shim_that_others_signed_starts_the_builders_loader(
    with_shim: Layout, repo: Path, db: Pair, signing: SigningOptions, tmp_path: Path
) -> None:
    """P.9: sealed for systemd-boot alone; Microsoft's signature stays on the image's shim, whoever is in --db."""
    out = tmp_path / "out"
    sealed = sealed_to(repo, f"oci:{with_shim.path}:base", f"oci:{out}:x", replace(BUILTIN, signing=signing))
    files = keyless(repo, f"oci:{out}:x", db=(db.path,), loader="shim")
    assert files["EFI/BOOT/BOOTX64.EFI"] == (package("shim-signed") / SHIM).read_bytes()
    del files["EFI/BOOT/BOOTX64.EFI"]  # sbverify is no judge of one that others signed
    assert accepted(files, db, tmp_path) == {sealed.uki.removeprefix("/boot/"), "EFI/BOOT/grubx64.efi"}


def test_a_shim_that_nobody_signed_is_refused(repo: Path, db: Pair, signing: SigningOptions, tmp_path: Path) -> None:
    """C.35: no firmware starts it, whatever is behind."""
    made = Layout(tmp_path / "layout")
    add_image(made, [*base(), tar({"usr/lib/shim/shimx64.efi": kernel()})], "base")
    sealed_to(repo, f"oci:{made.path}:base", f"oci:{tmp_path}/out:x", replace(BUILTIN, signing=signing))
    with pytest.raises(LoaderError, match=r"EFI/BOOT/BOOTX64\.EFI is unsigned"):
        keyless(repo, f"oci:{tmp_path}/out:x", db=(db.path,), loader="shim")


@pytest.fixture(scope="module")
def uki_alone(layout: Layout, repo: Path, signing: SigningOptions, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give an image with a signed UKI, and what was there before to start it: nothing signed."""
    out = tmp_path_factory.mktemp("alone")
    sealed = sealed_to(repo, f"oci:{layout.path}:base", f"oci:{out}:x", replace(BUILTIN, signing=signing))
    with last_layer(out, "x") as archive:
        found = archive.extractfile(sealed.uki.lstrip("/"))
        assert found
        uki = found.read()
    made = Layout(out / "alone")
    add_image(made, [*base(), tar({sealed.uki.lstrip("/"): uki})], "x")
    return f"oci:{made.path}:x"


def test_a_signed_uki_is_not_given_to_a_loader_that_firmware_refuses(
    uki_alone: str, repo: Path, db: Pair, tmp_path: Path
) -> None:
    """C.35: refused by what the firmware trusts; by nobody's word a warning; a loader that is there is its own."""
    with pytest.raises(LoaderError, match=r"EFI/BOOT/BOOTX64\.EFI is unsigned: under Secure Boot"):
        keyless(repo, uki_alone, db=(db.path,))
    warned: list[Event] = []
    keyless(repo, uki_alone, report=warned.append)
    said = [event.text for event in warned if isinstance(event, Warned) and event.lint == "signature"]
    assert len(said) == 1
    assert "would be started by EFI/systemd/systemd-bootx64.efi, which is not signed" in said[0]
    for loader in ("none", "direct"):
        assert accepted(keyless(repo, uki_alone, db=(db.path,), loader=loader), db, tmp_path)


def test_a_loader_of_another_signer_is_refused(uki_alone: str, db: Pair, repo: Path, tmp_path: Path) -> None:
    """C.35: the sentence says whose signature was found."""
    other = make(tmp_path, "other")
    layout = Layout(Path(uki_alone.split(":")[1]))
    entry: dict[str, bytes | Path] = {"boot/EFI/systemd/systemd-bootx64.efi": other.sbsign(kernel())}
    with last_layer(layout.path, "x") as archive:
        (member,) = (member for member in archive if member.isfile())
        found = archive.extractfile(member)
        assert found
        made = Layout(tmp_path / "layout")
        add_image(made, [*base(), tar({member.name: found.read(), **entry})], "x")
    with pytest.raises(LoaderError, match=r"is signed by .*other.*none of the --db certificates"):
        keyless(repo, f"oci:{made.path}:x", db=(db.path,))


def test_an_unsigned_loader_in_boot_is_not_taken(repo: Path, layout: Layout, tmp_path: Path) -> None:
    """What somebody left in /boot does not come before what the packages have."""
    sealed_to(repo, f"oci:{layout.path}:base", f"oci:{tmp_path}/out:x")
    with last_layer(tmp_path / "out", "x") as archive:
        (member,) = (member for member in archive if member.isfile())
        found = archive.extractfile(member)
        assert found
        uki = found.read()
    made = Layout(tmp_path / "layout")
    left: dict[str, bytes | Path] = {member.name: uki, "boot/EFI/systemd/systemd-bootx64.efi": kernel() + b"left"}
    add_image(made, [*base(), tar(left)], "x")
    assert keyless(repo, f"oci:{made.path}:x")["EFI/BOOT/BOOTX64.EFI"] == kernel()


def test_what_is_asked_for_elsewhere_covers_the_loader(layout: Layout, repo: Path, db: Pair, tmp_path: Path) -> None:
    """B.5, C.25: one request for both, one answer to it, and the layer of the key holder himself."""
    request, response = tmp_path / "request.json", tmp_path / "response.json"
    source, target = Reference.parse(f"oci:{layout.path}:base"), Reference.parse(f"oci:{tmp_path}/out:x")
    boot = replace(BUILTIN, signing=SigningOptions(certificate=db.path, request=request))
    assert seal(SealRequest(source=source, destination=target, repo=repo, boot=boot), silent) is None
    asked = answer(request, db.key, None, response)
    assert len(asked.items) == 2
    boot = replace(BUILTIN, signing=SigningOptions(certificate=db.path, response=response))
    by_answer = seal(SealRequest(source=source, destination=target, repo=repo, boot=boot), silent)
    boot = replace(BUILTIN, signing=SigningOptions(certificate=db.path, key=str(db.key)))
    by_key = seal(SealRequest(source=source, destination=target, repo=repo, boot=boot), silent)
    assert by_answer == by_key


def test_an_image_without_a_loader_is_sealed_with_a_warning(
    repo: Path, signing: SigningOptions, tmp_path: Path
) -> None:
    """It may be for machines that have theirs; a shim that was asked for by name must be there."""
    layout = Layout(tmp_path / "layout")
    gone = tar({"usr/lib/systemd/boot/efi/.wh.systemd-bootx64.efi": b""})
    add_image(layout, [*base(), gone], "base")
    warned: list[Event] = []
    boot = replace(BUILTIN, signing=signing)
    sealed = sealed_to(repo, f"oci:{layout.path}:base", f"oci:{tmp_path}/out:x", boot, warned.append)
    assert sealed.loader == ()
    assert any("nothing that starts it" in event.text for event in warned if isinstance(event, Warned))
    with pytest.raises(ImageError):
        sealed_to(repo, f"oci:{layout.path}:base", f"oci:{tmp_path}/out:x", replace(boot, loader="shim"))


def test_a_uki_that_is_built_elsewhere_stays_alone(signing: SigningOptions, layout: Layout, tmp_path: Path) -> None:
    """The loader's place follows from EFI/Linux; another folder gets no files that nobody asked for."""
    root = tmp_path / "root"
    subprocess.run(
        [program("umoci"), "unpack", "--rootless", "--image", f"{layout.path}:base", tmp_path / "bundle"],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "bundle/rootfs").rename(root)
    target = tmp_path / "out"
    target.mkdir()
    warned: list[Event] = []
    built = build(BuildRequest(rootfs=root, output=target, boot=replace(BUILTIN, signing=signing)), warned.append)
    assert ([path.name for path in target.iterdir()], built.loader) == ([built.path.name], ())
    assert any("no boot loader is put beside it" in event.text for event in warned if isinstance(event, Warned))
