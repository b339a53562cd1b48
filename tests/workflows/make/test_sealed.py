"""Sealed images: the digests that their UKIs promise come from `cfsctl`, the UKIs from ukify's builder and PE alone."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.cli.hints import hint_of
from oci2boot.errors import Error, FlowError, ImageError, SignatureError
from oci2boot.formats import cpio
from oci2boot.oci.reference import Reference
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.workflows.keys.signing import read_trusted
from oci2boot.workflows.make.again import request_again
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import Event, Report, Warned, silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, SigningOptions
from tests.boot.initrds import CLOSED
from tests.keys import make, openssl
from tests.oci.layouts import Layout
from tests.witness import program
from tests.workflows.sealable import KVER, OS_RELEASE, add_image, addon, base, profiles, tar, uki

Karg = Callable[..., str]
Convert = Callable[..., Bootable]


@pytest.fixture(scope="module")
def karg(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Karg:
    """Return the kernel argument that cfsctl gives the base image."""
    folder = tmp_path_factory.mktemp("cfsctl")
    known: dict[tuple[int, str], str] = {}

    def ask(version: int = 1, algorithm: str = "sha256", old: bool = False) -> str:
        if (version, algorithm) not in known:
            repo = str(folder / algorithm)
            cfsctl = [program("cfsctl"), "--repo", repo]
            if not (folder / algorithm).exists():
                init = [*cfsctl, "init", "--algorithm", f"fsverity-{algorithm}-12", "--insecure", repo]
                subprocess.run(init, check=True, capture_output=True)
                subprocess.run([*cfsctl, "oci", "pull", f"oci:{layout.path}:base", "base"], check=True)
            argv = [*cfsctl, f"--erofs-version={version}", "oci", "compute-id", "--bootable", "base"]
            known[version, algorithm] = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
        digest = known[version, algorithm]
        return f"composefs={digest}" if old else f"composefs.digest=v{version}-{algorithm}-12:{digest}"

    return ask


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of stores, by hash."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def converted(layout: Layout, repos: Path) -> Convert:
    """Give a function that converts the base image with a layer of these files on top."""

    def make(
        files: dict[str, bytes | Path], *, hash_name: str = "sha256", report: Report = silent, **options: object
    ) -> Bootable:
        tag = f"t{len(layout.manifests)}"
        add_image(layout, [*base(), tar(files)], tag)
        request = ConvertRequest(
            source=Reference.parse(f"oci:{layout.path}:{tag}"),
            repo=repos / hash_name,
            name="sealed",
            hash=hash_name,  # type: ignore[arg-type]
            boot=BootOptions(ukify="builtin", **options),  # type: ignore[arg-type]
        )
        return convert(request, report)

    return make


def esp(repos: Path, bootable: Bootable, path: str) -> bytes:
    with Repository.open(repos / bootable.root.image.algorithm) as repository:
        return repository.read_object(bootable.esp[path])


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize(("version", "old"), [(1, False), (2, False), (1, True), (2, True), (0, True)])
def test_a_uki_with_cfsctls_argument_is_installed_byte_for_byte(
    version: int, algorithm: str, old: bool, karg: Karg, converted: Convert, repos: Path
) -> None:
    """C.2, C.35: all formats and hashes that an argument may name, and both spellings."""
    made = uki(f"rw quiet {karg(version, algorithm, old)}")
    bootable = converted({"boot/EFI/Linux/os.efi": made}, hash_name=algorithm)
    assert (bootable.flow, bootable.root.erofs_version) == ("sealed", version)
    assert bootable.root.image.hex in karg(version, algorithm)
    assert esp(repos, bootable, "EFI/Linux/os.efi") == made
    assert {"EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"} < set(bootable.esp)
    assert bootable.cmdline == f"rw quiet {karg(version, algorithm, old)}"


@pytest.mark.parametrize("version", [1, 2])
def test_an_image_sealed_by_the_recipe_of_composefs_rs_is_taken(
    version: int, layout: Layout, repos: Path, tmp_path: Path
) -> None:
    """P.9, D.10: `cfsctl compute-karg` on the files of a build stage, then COPY of /boot."""
    bundle = tmp_path / "bundle"
    argv = [program("umoci"), "unpack", "--rootless", "--image", f"{layout.path}:base", str(bundle)]
    subprocess.run(argv, check=True, capture_output=True)
    argv = [program("cfsctl"), "--no-repo", "--hash=sha256", f"--erofs-version={version}", "compute-karg"]
    said = subprocess.run([*argv, str(bundle / "rootfs")], check=True, capture_output=True, text=True).stdout.strip()
    (bundle / "rootfs/boot/EFI/Linux").mkdir(parents=True)
    (bundle / "rootfs/boot/EFI/Linux/os.efi").write_bytes(uki(said))
    source = Reference.parse(f"dir:{bundle}/rootfs")
    bootable = convert(ConvertRequest(source=source, repo=repos / "sha256", name="theirs"), silent)
    assert (bootable.flow, bootable.root.erofs_version, bootable.cmdline) == ("sealed", version, said)


def test_an_image_without_a_sealed_uki_gets_one_built_here(converted: Convert) -> None:
    bootable = converted({"boot/EFI/Linux/os.efi": uki("rw quiet")})
    assert bootable.flow == "local"
    assert "EFI/Linux/os.efi" not in bootable.esp
    assert bootable.cmdline
    assert bootable.cmdline.endswith(f"composefs={bootable.root.image}")


def test_a_debug_shell_is_for_what_nobody_signs(karg: Karg, converted: Convert, tmp_path: Path) -> None:
    """B.12"""
    vendor = make(tmp_path, "debug")
    signing = SigningOptions(certificate=vendor.path, key=str(vendor.key))
    with pytest.raises(ImageError, match="gives whoever makes the boot fail a root shell"):
        converted({}, debug_shell=True, signing=signing)
    assert "rd.shell" not in str(converted({}, debug_shell=True).cmdline)
    sealed = {"boot/EFI/Linux/os.efi": uki(f"rw {karg(1, 'sha256', True)}")}
    for option in ("debug_shell", "strip_kernel"):
        with pytest.raises(FlowError, match=f"--{option.replace('_', '-')}, and the image's own UKI"):
            converted(sealed, **{option: True})


def test_a_stale_uki_is_refused_with_both_digests(karg: Karg, converted: Convert) -> None:
    """C.4: /usr changed above the layer of the UKI."""
    old = karg().rpartition(":")[2]
    files: dict[str, bytes | Path] = {"boot/EFI/Linux/os.efi": uki(karg()), "usr/bin/added": b"new"}
    with pytest.raises(ImageError, match=rf"stale UKI: /boot/EFI/Linux/os.efi promises {old}; this image is") as caught:
        converted(files)
    assert "; /usr/bin/added: path: promised absent, found file" in caught.value.message
    assert "oci2boot seal" in str(caught.value.hint)
    assert "--times" in str(hint_of(caught.value))
    assert converted(files, flow="local").flow == "local"


def test_a_uki_that_was_measured_by_another_rule_is_refused_with_it(karg: Karg, converted: Convert) -> None:
    """C.4, B.3: the argument names a format, and the digest is that of the other one."""
    wrong = karg(2).replace("=v2-", "=v1-")
    with pytest.raises(ImageError, match=r"measured by other rules: EROFS format V2 there, V1 here$"):
        converted({"boot/EFI/Linux/os.efi": uki(wrong)})


@pytest.mark.parametrize("place", ["boot/EFI/Linux/sub/os.efi", "boot/EFI/Linux/OS.EFI"])
def test_where_a_uki_lies_in_boot_does_not_matter(place: str, karg: Karg, converted: Convert) -> None:
    """C.5"""
    assert f"EFI/Linux/{Path(place).name}" in converted({place: uki(karg())}).esp


def test_of_several_the_newest_version_is_taken(karg: Karg, converted: Convert, repos: Path) -> None:
    """The order is systemd-boot's: IMAGE_VERSION before anything of the name; 10 is newer than 9."""
    nine = uki(karg(), OS_RELEASE + b"IMAGE_VERSION=9\n")
    ten = uki(karg(), OS_RELEASE + b"IMAGE_VERSION=10\n")
    stale = uki("composefs=" + "ab" * 32, OS_RELEASE + b"IMAGE_VERSION=11\n")
    files: dict[str, bytes | Path] = {
        "boot/EFI/Linux/z.efi": nine,
        "boot/EFI/Linux/b.efi": ten,
        "boot/EFI/Linux/stale.efi": stale,
    }
    assert esp(repos, converted(files), "EFI/Linux/b.efi") == ten
    assert esp(repos, converted(files, uki="z.efi"), "EFI/Linux/z.efi") == nine
    with pytest.raises(ImageError, match="stale"):
        converted(files, uki="stale.efi")
    with pytest.raises(ImageError, match=r"no UKI 'x\.efi'"):
        converted(files, uki="x.efi")


def test_every_profile_must_promise_this_image(karg: Karg, converted: Convert) -> None:
    """Whoever reads no profiles takes the base's arguments."""
    good = f"rw {karg()}"
    stale = "composefs=" + "ab" * 32

    def image(*lines: str | None) -> dict[str, bytes | Path]:
        return {"boot/EFI/Linux/os.efi": profiles(*lines)}

    assert converted(image(good, None, f"{good} debug")).flow == "sealed"
    assert converted(image(None, good, f"{good} debug")).flow == "sealed"
    with pytest.raises(ImageError, match="profile without a composefs argument"):
        converted(image(good, None, "rw debug"))
    with pytest.raises(ImageError, match="profile without a composefs argument"):
        converted(image("rw", good, good))
    with pytest.raises(ImageError, match="stale"):
        converted(image(good, None, stale))


def test_addons_go_along_byte_for_byte_and_are_held_to_the_promise(karg: Karg, converted: Convert, repos: Path) -> None:
    """C.36: an addon appends to the command line."""
    sealed = uki(karg())
    serial, everywhere = addon("console=ttyS0"), addon("quiet")
    files: dict[str, bytes | Path] = {
        "boot/EFI/Linux/os.efi": sealed,
        "boot/EFI/Linux/os.efi.extra.d/serial.addon.efi": serial,
        "boot/EFI/Linux/os.efi.extra.d/not-loaded.efi": b"systemd-stub passes over it",
        "boot/loader/addons/all.addon.efi": everywhere,
    }
    bootable = converted(files)
    assert esp(repos, bootable, "EFI/Linux/os.efi.extra.d/serial.addon.efi") == serial
    assert esp(repos, bootable, "EFI/Linux/os.efi.extra.d/all.addon.efi") == everywhere
    assert not any("not-loaded" in path for path in bootable.esp)
    assert bootable.cmdline == f"{karg()} quiet console=ttyS0"
    other = addon("composefs=" + "ab" * 32)
    with pytest.raises(ImageError, match=r"stale UKI.*abab"):
        converted({**files, "boot/loader/addons/other.addon.efi": other})


def test_addons_that_run_something_else_are_named(karg: Karg, converted: Convert) -> None:
    """C.36, O.15: signed, they are taken; the digest holds the files, not what is run of them."""
    told: list[Event] = []
    shell = {"boot/EFI/Linux/os.efi.extra.d/shell.addon.efi": addon("console=ttyS0 init=/bin/sh")}
    bootable = converted({"boot/EFI/Linux/os.efi": uki(karg()), **shell}, report=told.append)
    assert bootable.flow == "sealed"
    warned = [event.text for event in told if isinstance(event, Warned)]
    assert [text for text in warned if "shell.addon.efi" in text and "init=/bin/sh" in text]
    assert not any("console" in text for text in warned)


def test_verification_that_is_optional_is_refused(karg: Karg, converted: Convert) -> None:
    """C.32, D.23"""
    files: dict[str, bytes | Path] = {"boot/EFI/Linux/os.efi": uki(karg().replace("=", "=?", 1))}
    with pytest.raises(ImageError, match="does not insist on verification"):
        converted(files)
    assert converted(files, allow_missing_verity=True).flow == "sealed"


def test_the_sealed_flow_takes_no_uki_without_a_digest(converted: Convert) -> None:
    """C.31"""
    with pytest.raises(ImageError, match="promises no root file system"):
        converted({"boot/EFI/Linux/os.efi": uki("rw quiet")}, flow="sealed")
    with pytest.raises(ImageError, match="has no UKI"):
        converted({"boot/other": b""}, flow="sealed")


def test_a_digest_of_the_other_hash_says_so(karg: Karg, converted: Convert) -> None:
    with pytest.raises(ImageError, match="by its sha512 digest, but the store uses sha256") as caught:
        converted({"boot/EFI/Linux/os.efi": uki(karg(1, "sha512"))})
    assert "of sha512. --hash" in str(hint_of(caught.value))


def test_a_pair_of_formats_and_hashes_is_legitimate(karg: Karg, converted: Convert) -> None:
    """composefs-rs 0.9 writes `composefs.digest=` once for each."""
    line = f"{karg(2, 'sha256', True)} {karg(1, 'sha512')} {karg(1)}"
    bootable = converted({"boot/EFI/Linux/os.efi": uki(line)})
    assert bootable.root.image.hex == karg().rpartition(":")[2]


@pytest.mark.parametrize(
    "line",
    [
        '"{karg}"',
        "{karg} composefs=" + "ab" * 32,
        "{karg} composefs=",
        "{karg} COMPOSEFS=" + "ab" * 32,
        "composefs.digest=v3-sha256-12:" + "ab" * 32,
        "composefs=" + "AB" * 32,
        "composefs.digest=v2-sha256-12:{digest}",  # it is the digest of format 1
    ],
)
def test_contradictory_quoted_and_malformed_arguments_are_refused(line: str, karg: Karg, converted: Convert) -> None:
    """The readers of such a line do not agree."""
    made = uki(line.replace("{karg}", karg()).replace("{digest}", karg().rpartition(":")[2]))
    with pytest.raises(Error, match=r"/boot/EFI/Linux/os\.efi"):
        converted({"boot/EFI/Linux/os.efi": made})


def test_an_efi_program_that_cannot_be_read_does_not_make_an_image_unsealed(converted: Convert) -> None:
    with pytest.raises(Error, match=r"/boot/EFI/Linux/os\.efi: not an EFI executable"):
        converted({"boot/EFI/Linux/os.efi": b"MZ"})


def test_a_uki_for_another_machine_is_refused(karg: Karg, converted: Convert) -> None:
    data = bytearray(uki(karg()))
    at = int.from_bytes(data[60:64], "little") + 4
    data[at : at + 2] = (0xAA64).to_bytes(2, "little")
    with pytest.raises(ImageError, match="for aarch64"):
        converted({"boot/EFI/Linux/os.efi": bytes(data)})


def test_signatures_are_held_to_the_certificates_given(karg: Karg, converted: Convert, tmp_path: Path) -> None:
    """C.35: sbsign signed it; the certificate of another does not do, nor an addon or a loader without a signature."""
    db, other = make(tmp_path, "db"), make(tmp_path, "other")
    files: dict[str, bytes | Path] = {"boot/EFI/Linux/os.efi": db.sbsign(uki(karg()))}
    assert converted(files, db=(other.path, db.path), loader="none").flow == "sealed"
    with pytest.raises(SignatureError, match=r"signed by .*db.*none of the --db"):
        converted(files, db=(other.path,), loader="none")
    with pytest.raises(SignatureError, match=r"EFI/Linux/os\.efi is unsigned"):
        converted({"boot/EFI/Linux/os.efi": uki(karg())}, db=(db.path,), loader="none")
    with pytest.raises(SignatureError, match=r"a\.addon\.efi is unsigned"):
        converted({**files, "boot/EFI/Linux/os.efi.extra.d/a.addon.efi": addon("quiet")}, db=(db.path,), loader="none")
    with pytest.raises(SignatureError, match=r"EFI/BOOT/BOOTX64\.EFI is unsigned"):
        converted(files, db=(db.path,))
    signing = SigningOptions(certificate=other.path, key=str(other.key))
    assert converted(files, db=(db.path,), signing=signing).flow == "sealed"


def test_a_certificate_that_nothing_is_signed_by_is_not_named_in_vain(converted: Convert, tmp_path: Path) -> None:
    """C.35: an image without a UKI of its own would be installed whatever `--db` says."""
    db, own = make(tmp_path, "db"), make(tmp_path, "own")
    signing = SigningOptions(certificate=own.path, key=str(own.key))
    files: dict[str, bytes | Path] = {"usr/bin/x": b""}
    with pytest.raises(SignatureError, match=r"nothing that would be installed is signed by CN=db"):
        converted(files, db=(db.path,), signing=signing)
    with pytest.raises(SignatureError, match=r"is unsigned"):
        converted(files, db=(db.path,))
    with pytest.raises(SignatureError, match=r"nothing that would be installed is signed by CN=db"):
        converted(files, db=(db.path,), flow="type1", loader="none")
    assert converted(files, db=(own.path,), signing=signing).flow == "local"


def test_the_next_version_is_asked_for_alike(karg: Karg, converted: Convert, repos: Path, tmp_path: Path) -> None:
    """P.11: certificates are remembered whatever file they came in, and what the firmware starts."""
    db, der = make(tmp_path, "db"), tmp_path / "db.der"
    der.write_bytes(openssl("x509", "-in", db.path, "-outform", "DER"))
    files: dict[str, bytes | Path] = {"boot/EFI/Linux/os.efi": db.sbsign(uki(karg()))}
    bootable = converted(files, db=(der,), loader="direct", timeout=7)
    kept = Bootable.parse(json.dumps(bootable.to_json()).encode())
    boot = request_again(kept, repos, tmp_path, BootOptions()).boot
    assert boot
    assert read_trusted(list(boot.db)) == read_trusted([der])
    assert (boot.loader, boot.timeout, boot.secure_boot_enroll, boot.flow) == ("direct", 7, None, "auto")
    with pytest.raises(Error, match="cannot be read"):
        request_again(replace(kept, options={**kept.options, "loader": "grub"}), repos, tmp_path, BootOptions())


def test_the_loader_that_was_asked_for_is_on_the_esp(karg: Karg, converted: Convert, repos: Path) -> None:
    """P.9, K0.13: the UKI's bytes are the same wherever it lies."""
    made = uki(karg())
    files: dict[str, bytes | Path] = {
        "boot/EFI/Linux/os.efi": made,
        "boot/EFI/Linux/os.efi.extra.d/a.addon.efi": addon("quiet"),
    }
    direct = converted(files, loader="direct")
    assert set(direct.esp) == {"EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/BOOTX64.EFI.extra.d/a.addon.efi"}
    assert esp(repos, direct, "EFI/BOOT/BOOTX64.EFI") == made
    menu = converted(files, timeout=10, secure_boot_enroll="manual")
    assert esp(repos, menu, "loader/loader.conf") == b"timeout 10\neditor no\nsecure-boot-enroll manual\n"
    told: list[Event] = []
    converted(files, console="serial", report=told.append)
    assert [event for event in told if isinstance(event, Warned) and "without --karg and --console" in event.text]
    local = converted(files, flow="local", console="serial")
    assert str(local.cmdline).startswith(f"rw quiet {CLOSED} console=tty0 console=ttyS0,115200 composefs=")
    with pytest.raises(ImageError, match="no shim for x64"):
        converted(files, loader="shim")
    with pytest.raises(ImageError, match="no systemd-boot that could enrol"):
        converted(files, loader="direct", secure_boot_enroll="force")


def test_a_vendors_uki_gets_its_digest_from_a_signed_addon(
    karg: Karg, converted: Convert, repos: Path, tmp_path: Path
) -> None:
    """Its bytes are untouched; sbverify accepts the addon, which is for this kernel alone."""
    vendor, ours = make(tmp_path, "vendor"), make(tmp_path, "ours")
    glue = cpio.file(b"usr/lib/composefs/composefs-setup-root", b"")
    signed = vendor.sbsign(uki("rw quiet", OS_RELEASE, KVER, glue))
    signing = SigningOptions(certificate=ours.path, key=str(ours.key))
    bootable = converted({"boot/EFI/Linux/os.efi": signed}, flow="vendor", signing=signing, db=(vendor.path,))
    digest = karg().rpartition(":")[2]
    assert (bootable.flow, bootable.cmdline) == ("vendor", f"rw quiet composefs={digest}")
    assert esp(repos, bootable, "EFI/Linux/os.efi") == signed
    made = tmp_path / "made.efi"
    made.write_bytes(esp(repos, bootable, "EFI/Linux/os.efi.extra.d/composefs.addon.efi"))
    subprocess.run([program("sbverify"), "--cert", ours.path, made], check=True, capture_output=True)
    found = {}
    for name in (".cmdline", ".uname", ".sbat"):
        dump = ["-O", "binary", "--dump-section", f"{name}={tmp_path}/{name}"]
        subprocess.run([program("objcopy"), *dump, made, tmp_path / "x"], check=True, capture_output=True)
        found[name] = (tmp_path / name).read_bytes().rstrip(b"\0").decode()
    assert found[".cmdline"] == f"composefs={digest}"
    assert found[".uname"] == KVER
    assert found[".sbat"].startswith("sbat,1,")


def test_the_vendor_flow_refuses_what_would_not_keep_the_promise(
    karg: Karg, converted: Convert, tmp_path: Path
) -> None:
    ours = make(tmp_path, "ours")
    signing = SigningOptions(certificate=ours.path, key=str(ours.key))
    glue = cpio.file(b"usr/lib/composefs/composefs-setup-root", b"")
    with pytest.raises(ImageError, match="must be signed"):
        converted({"boot/EFI/Linux/os.efi": uki("rw", OS_RELEASE, KVER, glue)}, flow="vendor")
    for made, why in (
        (uki("rw"), "knows nothing of composefs"),
        (uki(karg(), OS_RELEASE, KVER, glue), "no UKI that an addon could give"),
        (uki("rw", OS_RELEASE, "", glue), "does not say which kernel"),
    ):
        with pytest.raises(ImageError, match=why):
            converted({"boot/EFI/Linux/os.efi": made}, flow="vendor", signing=signing)
