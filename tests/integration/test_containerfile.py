"""containerfiles/builder and containerfiles/sealed, built by buildah from the demo image."""

import gzip
import json
import os
import re
import ssl
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from oci2boot.formats import cpio, pe
from oci2boot.workflows.progress import silent
from oci2boot.workflows.trial.boot import BootTestRequest, try_disk
from tests.conftest import ROOT, Initramfs
from tests.keys import Pair, openssl
from tests.vm import BOOT_SECONDS, oci2boot, read_uki
from tests.witness import program

pytestmark = pytest.mark.demo

RULES = ("--selinux-rules", "composefs-rs")
"""Those of cfsctl, which is to agree on the digest."""

MEASURE = """\
ARG BASE
FROM ${BASE} AS base
FROM oci2boot-builder AS measured
RUN --mount=type=bind,from=base,target=/mnt/base oci2boot digest dir:/mnt/base --selinux-rules composefs-rs >/digest
FROM scratch
COPY --from=measured /digest /digest
"""

CHANGED = """\
ARG BASE
FROM ${BASE} AS below
FROM ${BASE} AS base
RUN touch /usr/bin/new && rm /usr/bin/dpkg && ln /usr/bin/bash /usr/bin/shell && chmod 700 /usr/bin/apt
COPY Containerfile /usr/share/doc/
FROM oci2boot-builder AS measured
ARG TIMES
RUN --mount=type=bind,from=base,target=/mnt/base --mount=type=bind,from=below,target=/mnt/below \
    oci2boot digest dir:/mnt/base --selinux-rules composefs-rs ${TIMES} >/digest
FROM base
COPY --from=measured /digest /boot/digest
"""
EPOCH = "1700000000"
BARE = """\
ARG BASE
FROM ${BASE}
RUN rm -r /boot /usr/lib/modules /usr/lib/systemd/boot && mkdir /boot
"""
"""An operating system without kernel, initramfs, modules, stub and boot loader."""
BUILDS: dict[str, tuple[tuple[str, ...], str]] = {
    "each step is a layer": (("--layers=true",), ""),
    "each stage is a layer": (("--layers=false",), ""),
    "each stage is a layer of one time": (
        ("--layers=false", "--timestamp", EPOCH),
        f"--times {EPOCH} --times-below /mnt/below",
    ),
}


@dataclass(frozen=True, slots=True)
class Built:
    """An image in an OCI layout, tagged `latest`."""

    layout: Path

    def blob(self, descriptor: dict[str, str]) -> bytes:
        algorithm, _, name = descriptor["digest"].partition(":")
        return (self.layout / "blobs" / algorithm / name).read_bytes()

    @property
    def manifest(self) -> bytes:
        return self.blob(json.loads((self.layout / "index.json").read_bytes())["manifests"][0])

    @property
    def config(self) -> bytes:
        return self.blob(json.loads(self.manifest)["config"])

    @property
    def layers(self) -> Iterator[bytes]:
        """The tar files, from the lowest."""
        for descriptor in json.loads(self.manifest)["layers"]:
            blob = self.blob(descriptor)
            yield gzip.decompress(blob) if descriptor["mediaType"].endswith("gzip") else blob

    @property
    def top(self) -> tarfile.TarFile:
        *_, last = self.layers
        return tarfile.open(fileobj=BytesIO(last))


@dataclass(frozen=True, slots=True)
class Storage:
    """Images of one module; nothing of it stays."""

    folder: Path
    driver: str

    def run(self, *words: str | Path) -> None:
        argv = [
            program("buildah"), "--root", str(self.folder / "root"), "--runroot", str(self.folder / "run"),
            "--storage-driver", self.driver, *map(str, words),
        ]  # fmt: skip
        done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    def build(self, tag: str, context: Path, *words: str | Path) -> None:
        self.run("bud", "--isolation", "chroot", "--pull-never", "--tag", tag, *words, context)

    def export(self, tag: str) -> Built:
        layout = self.folder / f"{tag}-layout"
        self.run("push", "--quiet", "--format", "oci", tag, f"oci:{layout}:latest")
        return Built(layout)


@pytest.fixture(scope="module")
def base(demo_image: Callable[[Initramfs], Path]) -> Built:
    return Built(demo_image("dracut"))


@pytest.fixture(scope="module")
def storage(base: Built) -> Iterator[Storage]:
    """Give a storage with `debian:trixie`, which is the demo image's lowest layer, and `oci2boot-builder`."""
    folder = Path(tempfile.mkdtemp(prefix="oci2boot-buildah-"))
    try:
        # Without root there is no overlayfs to count on.
        made = Storage(folder, "overlay" if os.geteuid() == 0 else "vfs")
        debian = folder / "debian"
        debian.mkdir()
        (debian / "base.tar").write_bytes(next(base.layers))
        (debian / "Containerfile").write_text("FROM scratch\nADD base.tar /\n")
        made.build("debian:trixie", debian)
        authorities = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
        secrets = ["--secret", f"id=ca,src={authorities}"] if authorities else []
        made.build("oci2boot-builder", ROOT, "--file", ROOT / "containerfiles/builder/Containerfile", *secrets)
        yield made
    finally:
        # buildah leaves the bind-mounted stages mounted.
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for point in reversed([point for point in mounted if Path(point).is_relative_to(folder)]):
            subprocess.run([program("umount"), point], check=True)
        namespace = [] if os.geteuid() == 0 else [program("buildah"), "unshare"]
        subprocess.run([*namespace, "rm", "-rf", str(folder)], check=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    oci2boot("keys", "generate", folder / "made", home=folder, demote=False)
    return folder / "made"


@pytest.fixture(scope="module")
def pair(keys: Path) -> Pair:
    return Pair(keys / "db.key", keys / "db.crt")


def seal(storage: Storage, base: Built, pair: Pair, recipe: str, *more: str, options: tuple[str, ...] = ()) -> Built:
    storage.build(
        recipe, ROOT / "containerfiles/sealed" / recipe,
        "--secret", f"id=key,src={pair.key}", "--secret", f"id=cert,src={pair.path}",
        "--build-arg", f"BASE=oci:{base.layout}:latest", "--build-arg", f"UKI_OPTIONS={' '.join((*RULES, *options))}",
        *more,
    )  # fmt: skip
    return storage.export(recipe)


@pytest.fixture(scope="module")
def sealed(storage: Storage, base: Built, pair: Pair) -> Built:
    return seal(storage, base, pair, "debian")


@pytest.fixture(scope="module")
def bare(storage: Storage, base: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("bare")
    (folder / "Containerfile").write_text(BARE)
    storage.build("bare", folder, "--build-arg", f"BASE=oci:{base.layout}:latest")
    return storage.export("bare")


@pytest.fixture(scope="module")
def without_kernel(storage: Storage, base: Built, bare: Built, pair: Pair) -> Built:
    """Give that system, sealed by the recipe for the kernel of another image."""
    kernel = f"KERNEL=oci:{base.layout}:latest"
    options = ("--initrd", "builtin", "--both-hashes")
    return seal(storage, bare, pair, "kernel-root", "--build-arg", kernel, options=options)


@pytest.fixture(scope="module")
def uki(sealed: Built) -> bytes:
    return uki_of(sealed)


def uki_of(sealed: Built) -> bytes:
    with sealed.top as layer:
        members = {member.name: member for member in layer if member.isfile()}
        loader = members.pop("boot/EFI/systemd/systemd-bootx64.efi")
        assert loader.size > 0
        (member,) = members.values()
        assert re.fullmatch(r"boot/EFI/Linux/[^/]+\.efi", member.name)
        content = layer.extractfile(member)
        assert content
        return content.read()


def bootable_id(image: Built, folder: Path) -> str:
    argv = [program("cfsctl"), "--repo", str(folder), "--insecure"]
    subprocess.run(
        [argv[0], "init", "--algorithm", "fsverity-sha256-12", "--insecure", str(folder)],
        check=True,
        capture_output=True,
    )
    subprocess.run([*argv, "oci", "pull", f"oci:{image.layout}:latest", "it"], check=True, capture_output=True)
    argv += ["--erofs-version=1", "oci", "compute-id", "--bootable", "it"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def test_the_uki_promises_what_cfsctl_computes_of_the_sealed_image_and_of_its_base(
    sealed: Built, base: Built, uki: bytes, tmp_path: Path
) -> None:
    """C.26, D.14: the UKI was made from the bind-mounted stage, cfsctl reads layers; /boot does not count."""
    promised = re.findall(rb"composefs=([0-9a-f]{64})\b", uki)
    assert [bootable_id(sealed, tmp_path / "sealed").encode()] == promised
    assert [bootable_id(base, tmp_path / "base").encode()] == promised


def test_convert_installs_the_uki_that_the_build_made(sealed: Built, uki: bytes, pair: Pair, tmp_path: Path) -> None:
    """C.26: the sealed flow, byte for byte, by its signature."""
    repo = tmp_path / "repo"
    source = f"oci:{sealed.layout}:latest"
    said = oci2boot("convert", source, "--repo", repo, "--db", pair.path, "--json", home=tmp_path, demote=False)
    converted = json.loads(said)
    assert converted["flow"] == "sealed"
    assert b"composefs=" + converted["rootfs"].encode() in uki
    (digest,) = (digest for path, digest in converted["esp"].items() if path.startswith("EFI/Linux/"))
    assert (repo / "objects" / digest[:2] / digest[2:]).read_bytes() == uki


def test_a_root_without_a_kernel_is_promised_by_the_uki_of_another(
    without_kernel: Built, bare: Built, base: Built, tmp_path: Path
) -> None:
    """C.7, C.26: cfsctl computes the digest of the layers that were pushed; kernel and initramfs are in the UKI."""
    uki = uki_of(without_kernel)
    promised = re.findall(rb"composefs=([0-9a-f]{64})\b", uki)
    assert [bootable_id(without_kernel, tmp_path / "sealed").encode()] == promised
    assert [bootable_id(bare, tmp_path / "bare").encode()] == promised
    assert bootable_id(base, tmp_path / "base").encode() not in promised
    (section,) = pe.parse(uki).sections_named(b".initrd")
    initramfs = cpio.read(pe.contents(uki, section), lambda path: path == b"usr/lib/oci2boot/mode")
    assert initramfs[b"usr/lib/oci2boot/mode"].content == b"composefs\n"
    assert b" panic=10 " in uki  # it gives no shell, and the kernel does not stand still either
    assert {b"erofs.ko", b"overlay.ko"} <= {path.rpartition(b"/")[2] for path in initramfs}


def test_firmware_would_accept_the_uki(uki: bytes, pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "uki.efi"
    file.write_bytes(uki)
    subprocess.run([program("sbverify"), "--cert", pair.path, file], check=True, capture_output=True)


def test_the_sealed_image_is_its_base_and_a_layer_of_boot(sealed: Built, base: Built) -> None:
    """D.14."""
    *below, _ = json.loads(sealed.config)["rootfs"]["diff_ids"]
    assert below == json.loads(base.config)["rootfs"]["diff_ids"]
    with sealed.top as layer:
        assert {name.split("/")[0] for name in layer.getnames()} == {"boot"}


def test_the_key_is_in_no_layer(sealed: Built, pair: Pair) -> None:
    """D.13: neither as text nor as numbers; the certificate is found, so the search finds."""
    pem = pair.key.read_bytes()
    key = load_pem_private_key(pem, None)
    assert isinstance(key, RSAPrivateKey)
    numbers = key.private_numbers()
    secret = [line for line in pem.splitlines() if len(line) == 64]
    assert len(secret) > 20
    secret += [number.to_bytes(-(-number.bit_length() // 8), "big") for number in (numbers.d, numbers.p, numbers.q)]
    certificate = openssl("x509", "-in", pair.path, "-outform", "DER")
    holds_certificate = []
    for content in (sealed.manifest, sealed.config, *sealed.layers):
        assert not [needle for needle in secret if needle in content]
        holds_certificate.append(certificate in content)
    assert holds_certificate == [False] * (len(holds_certificate) - 1) + [True]
    with sealed.top as layer:
        assert not [name for name in layer.getnames() if "secrets" in name]


def test_a_stage_prints_the_digest_of_the_stage_before(
    storage: Storage, base: Built, uki: bytes, tmp_path: Path
) -> None:
    """D.11: nothing but the digest on standard output."""
    (tmp_path / "Containerfile").write_text(MEASURE)
    storage.build("measured", tmp_path, "--build-arg", f"BASE=oci:{base.layout}:latest")
    with storage.export("measured").top as layer:
        content = layer.extractfile("digest")
        assert content
        printed = content.read()
    assert re.fullmatch(rb"[0-9a-f]{64}\n", printed)
    assert b"composefs=" + printed.strip() in uki


@pytest.mark.parametrize("case", BUILDS)
def test_a_stage_with_run_and_copy_has_the_digest_of_what_is_pushed(
    storage: Storage, base: Built, tmp_path: Path, case: str
) -> None:
    """D.11, D.14: the digest of the stage lies in /boot of the pushed image, of which cfsctl computes it; the same of
    what a second build adds to that image.
    """
    words, times = BUILDS[case]
    (tmp_path / "Containerfile").write_text(CHANGED)
    built = base
    for number in (1, 2) if case == "each stage is a layer" else (1,):
        tag = f"changed-{number}-{list(BUILDS).index(case)}"
        storage.build(
            tag, tmp_path, *words,
            "--build-arg", f"BASE=oci:{built.layout}:latest", "--build-arg", f"TIMES={times}",
        )  # fmt: skip
        built = storage.export(tag)
        with built.top as layer:
            printed = layer.extractfile("boot/digest")
            assert printed
            assert printed.read().decode() == bootable_id(built, tmp_path / tag) + "\n"
        (tmp_path / "Containerfile").write_text(CHANGED.replace("rm /usr/bin/dpkg &&", "rm /usr/bin/shell &&"))


def payload(uki: bytes, folder: Path) -> dict[str, bytes]:
    """Return what is in a UKI by objcopy; what systemd adds at the end of a text is left out."""
    path = folder / "uki.efi"
    path.write_bytes(uki)
    names = (".linux", ".initrd", ".cmdline", ".osrel", ".uname")
    dumps = [word for name in names for word in ("--dump-section", f"{name}={folder / name}")]
    subprocess.run([program("objcopy"), *dumps, path, folder / "copy"], check=True, capture_output=True)
    return {name: (folder / name).read_bytes().strip(b"\0 ") for name in names}


def test_the_distributions_kernel_install_builds_the_same_uki(
    storage: Storage, base: Built, pair: Pair, uki: bytes, tmp_path: Path
) -> None:
    """D.12: Debian's kernel-install and ukify, told by `uki config`; convert takes the image as sealed."""
    by_kernel_install = seal(storage, base, pair, "kernel-install")
    assert payload(uki_of(by_kernel_install), tmp_path) == payload(uki, tmp_path)
    source = f"oci:{by_kernel_install.layout}:latest"
    words: list[str | Path] = ["convert", source, "--repo", tmp_path / "repo", "--db", pair.path, "--json"]
    assert json.loads(oci2boot(*words, home=tmp_path, demote=False))["flow"] == "sealed"


@pytest.mark.boot
def test_the_image_of_the_containerfile_boots_under_secure_boot(
    without_kernel: Built, keys: Path, pair: Pair, tmp_path: Path
) -> None:
    """C.7, C.26, D.1, D.10, D.14: UKI and loader as the build stage signed them, with another image's kernel; who
    converts has a certificate, no key.
    """
    uki = uki_of(without_kernel)
    repo, disk = tmp_path / "repo", tmp_path / "disk.raw"
    source = f"oci:{without_kernel.layout}:latest"
    # The store has the other hash than the recipe's digest, which cfsctl agrees with: the UKI promises both.
    words = ("convert", source, "--repo", repo, "--hash", "sha512", "--db", pair.path)
    oci2boot(*words, home=tmp_path, demote=False)
    oci2boot("install", "--target", disk, "--repo", repo, home=tmp_path, demote=False)
    assert read_uki(disk, tmp_path)[1] == uki
    said = oci2boot("verify", disk, "--db", pair.path, "--json", home=tmp_path, demote=False)
    assert {check["result"] for check in json.loads(said)["checks"]} <= {"ok", "not checked"}
    tested = try_disk(BootTestRequest(disk=disk, keys=keys, timeout=BOOT_SECONDS), silent)
    assert {case.name: case.evidence for case in tested.cases if not case.ok} == {}
    assert re.findall(rb"composefs=([0-9a-f]{128})", uki) == [str(tested.digest).encode()]
    assert str(tested.digest) in tested.cases[0].evidence
