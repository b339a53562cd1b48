"""One UKI that promises a root file system by both hashes. C.31, D.3, P.3"""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.boot.told import DIGEST_FILE
from oci2boot.digest import Hash
from oci2boot.errors import FlowError, HashError, ImageError
from oci2boot.formats import cpio
from oci2boot.oci.reference import Reference
from oci2boot.store.images import Bootable
from oci2boot.store.repository import Repository
from oci2boot.workflows.install.disk import install
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.make.uki_build import BuildRequest, build
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import BootOptions, ConvertRequest, InstallRequest
from oci2boot.workflows.verify.promises import find_promise
from tests.oci.layouts import Layout
from tests.tarballs import unpack
from tests.witness import program
from tests.workflows.make.seals import BUILTIN, EXACT, sealed_to, section
from tests.workflows.sealable import add_image, base, tar, uki

BOTH = replace(BUILTIN, both_hashes=True)


def by_cfsctl(root: Path, algorithm: Hash) -> str:
    argv: list[str | Path] = [
        program("cfsctl"),
        "--hash",
        algorithm,
        "--erofs-version",
        "1",
        "compute-id",
        "--bootable",
    ]
    said = subprocess.run([*argv, root], check=True, capture_output=True, text=True)
    return said.stdout.strip().rpartition(":")[2]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    add_image(made, base(), "base")
    return made


def converted(source: str, repo: Path, algorithm: Hash, boot: BootOptions = BUILTIN) -> Bootable:
    return convert(
        ConvertRequest(source=Reference.parse(source), repo=repo, hash=algorithm, name="x", boot=boot), silent
    )


def uki_in(repo: Path, bootable: Bootable) -> bytes:
    (digest,) = (digest for path, digest in bootable.esp.items() if path.startswith("EFI/Linux/"))
    with Repository.open(repo) as repository:
        return repository.read_object(digest)


def test_a_uki_promises_both_digests_and_its_initramfs_has_them(tmp_path: Path) -> None:
    """D.10: both are cfsctl's of the directory."""
    root = unpack(base(), tmp_path / "root")
    built = build(BuildRequest(rootfs=root, tree=EXACT, boot=BOTH), silent)
    digests = [by_cfsctl(root, algorithm) for algorithm in ("sha256", "sha512")]
    assert section(built.path, b".cmdline").decode().split()[-2:] == [f"composefs={digest}" for digest in digests]
    found = cpio.read(section(built.path, b".initrd"), lambda path: path == DIGEST_FILE)
    assert found[DIGEST_FILE].content == "".join(f"{digest}\n" for digest in digests).encode()


def test_a_sealed_image_goes_into_a_store_of_either_hash(layout: Layout, tmp_path: Path) -> None:
    """C.26: the same UKI, byte for byte, with the digest that such a store has."""
    sealed = sealed_to(tmp_path / "build", f"oci:{layout.path}:base", f"oci:{tmp_path}/out:x", BOTH)
    found = {}
    for algorithm in ("sha256", "sha512"):
        repo = tmp_path / algorithm
        bootable = converted(f"oci:{tmp_path}/out:x", repo, algorithm)
        assert (bootable.flow, bootable.root.image.algorithm) == ("sealed", algorithm)
        found[algorithm] = uki_in(repo, bootable)
        assert f"composefs={bootable.root.image}".encode() in found[algorithm]
        install(InstallRequest(repo=repo, target=tmp_path / f"{algorithm}.raw", name="x"), silent)
        assert find_promise(tmp_path / f"{algorithm}.raw").digest == bootable.root.image
    assert found["sha256"] == found["sha512"]
    assert sealed.rootfs.encode() in found["sha256"]
    one = sealed_to(tmp_path / "build", f"oci:{layout.path}:base", f"oci:{tmp_path}/one:x")
    assert one.rootfs == sealed.rootfs
    with pytest.raises(HashError):
        converted(f"oci:{tmp_path}/one:x", tmp_path / "sha512", "sha512")


def test_a_conversion_promises_both_too(layout: Layout, tmp_path: Path) -> None:
    made = [
        converted(f"oci:{layout.path}:base", tmp_path / algorithm, algorithm, BOTH)
        for algorithm in ("sha256", "sha512")
    ]
    words = [str(bootable.cmdline).split()[-2:] for bootable in made]
    assert words[0] == words[1][::-1] == [f"composefs={bootable.root.image}" for bootable in made]


def test_several_digests_are_not_optional(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="one of several digests must not"):
        converted(
            f"oci:{layout.path}:base",
            tmp_path / "repo",
            "sha256",
            replace(BOTH, allow_missing_verity=True, flow="local"),
        )


def test_both_hashes_are_nothing_for_a_uki_that_is_taken_as_it_is(layout: Layout, tmp_path: Path) -> None:
    sealed_to(tmp_path / "build", f"oci:{layout.path}:base", f"oci:{tmp_path}/out:x")
    with pytest.raises(FlowError, match="--both-hashes, and the image's own UKI"):
        converted(f"oci:{tmp_path}/out:x", tmp_path / "repo", "sha256", BOTH)


@pytest.mark.parametrize("told", ["none", "one", "both"])
def test_our_glue_wants_a_set_for_several_digests(told: str, layout: Layout, tmp_path: Path) -> None:
    """C.28: a UKI that would not boot is not installed; peers' glue takes several from the command line."""
    made = [converted(f"oci:{layout.path}:base", tmp_path / algorithm, algorithm) for algorithm in ("sha256", "sha512")]
    digests = [str(bootable.root.image) for bootable in made]
    known = {"none": [], "one": digests[:1], "both": digests}[told]
    glue = [cpio.file(b"usr/lib/oci2boot/setup-root", b"")]
    if known:
        glue.append(cpio.file(DIGEST_FILE, "".join(f"{digest}\n" for digest in known).encode()))
    line = "rw " + " ".join(f"composefs={digest}" for digest in digests)
    other = Layout(tmp_path / "other")
    add_image(other, [*base(), tar({"boot/EFI/Linux/x.efi": uki(line, b"ID=x\n", "6.12.1-test", *glue)})], "x")
    if told == "both":
        assert converted(f"oci:{other.path}:x", tmp_path / "sha512", "sha512").flow == "sealed"
    else:
        with pytest.raises(ImageError, match="would not boot: it promises 2 digests"):
            converted(f"oci:{other.path}:x", tmp_path / "sha512", "sha512")
    peers = [cpio.file(b"usr/bin/composefs-setup-root", b"")]
    add_image(other, [*base(), tar({"boot/EFI/Linux/x.efi": uki(line, b"ID=x\n", "6.12.1-test", *peers)})], "peers")
    assert converted(f"oci:{other.path}:peers", tmp_path / "sha512", "sha512").flow == "sealed"
