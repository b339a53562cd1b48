"""What is handed to an attester, and what becomes of its answer."""

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.boot.pcr import beside_pcr
from oci2boot.errors import Error, ToolError
from oci2boot.oci.source import SourceOptions
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.rootfs.mkfs import Compression
from oci2boot.store.images import Bootable
from oci2boot.store.objects import ObjectBatch
from oci2boot.store.repository import Repository
from oci2boot.store.roots import DmVerityRoot
from oci2boot.system.run import Argv
from oci2boot.workflows.requests import SigningOptions
from oci2boot.workflows.verify.attest import ExpectedPcrs, expected_pcrs
from oci2boot.workflows.verify.inspect import inspect, measured_manifest
from oci2boot.workflows.verify.manifest import read_manifest
from tests.boot import debian
from tests.keys import make
from tests.witness import program
from tests.workflows.sealable import addon_stub, with_sections
from tests.workflows.verity_images import BUILTIN_OPTIONS, CONTENT, convert_verity, make_image, make_signing


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repo")


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> SigningOptions:
    return make_signing(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def signed(repo: Path, signing: SigningOptions, tmp_path_factory: pytest.TempPathFactory) -> Bootable:
    source = make_image(tmp_path_factory.mktemp("image"))
    return convert_verity(source, repo, VerityOptions(), boot=replace(BUILTIN_OPTIONS, signing=signing))


def test_the_manifest_has_the_root_hash_and_every_path(repo: Path, signed: Bootable, tmp_path: Path) -> None:
    """K0.6; sha256sum's and fsverity's answers"""
    found = json.loads(json.dumps(measured_manifest("demo", repo).to_json()))
    assert isinstance(signed.root, DmVerityRoot)
    assert found["dm-verity"] == {"root hash": str(signed.root.root_hash), "hash": "sha256"}
    assert found["rootfs"]["fs-verity"] == str(signed.root.tree)
    assert found["rules"] == "canonical-1"
    assert found["image"] == str(signed.manifest)
    content = CONTENT["usr/bin/tool"]
    assert isinstance(content, bytes)
    (tmp_path / "tool").write_bytes(content)
    digest = subprocess.check_output([program("fsverity"), "digest", "--compact", tmp_path / "tool"], text=True)
    tool = found["paths"]["/usr/bin/tool"]
    assert (tool["sha256"], tool["fs-verity"]) == (hashlib.sha256(content).hexdigest(), digest.strip())
    assert {"/efi", "/proc", "/etc/motd"} <= found["paths"].keys()
    assert measured_manifest("demo", repo).to_json() == found
    (tmp_path / "manifest.json").write_text(json.dumps(found))
    read = read_manifest(tmp_path / "manifest.json")
    assert (read.root_hash, read.rules) == (signed.root.root_hash, "canonical-1")


def test_inspect_tells_mode_root_hash_and_ratio(repo: Path, signed: Bootable) -> None:
    """K0.15"""
    found = json.loads(json.dumps(inspect("demo", repo, SourceOptions()).to_json()))
    assert isinstance(signed.root, DmVerityRoot)
    assert found["mode"] == "verity"
    assert found["verity"]["root_hash"] == str(signed.root.root_hash)
    image = repo / "objects" / signed.root.image.path
    assert found["verity"]["data_size"] == image.stat().st_size
    assert found["ratio"] == round(image.stat().st_size / found["verity"]["raw_size"], 4)
    assert found["verity"]["signature_object"]


def test_the_pcrs_are_systemd_measures_and_those_of_what_lies_beside(repo: Path, signed: Bootable) -> None:
    """K0.7"""
    with Repository.open(repo) as repository:
        (uki,) = expected_pcrs(repository, signed)
        assert isinstance(uki, ExpectedPcrs)
        data = repository.read_object(signed.esp[uki.path])
        (name,) = (path for path in signed.esp if path.endswith(".cred"))
        credential = repository.read_object(signed.esp[name])
    path = repo.parent / "measured.efi"
    path.write_bytes(data)
    sections = {}
    listed = subprocess.check_output([program("objdump"), "-h", path], text=True)
    for section in (".osrel", ".linux", ".cmdline", ".initrd", ".uname", ".sbat"):
        assert section in listed
        out = repo.parent / f"section{section}"
        argv: Argv = [program("objcopy"), "--dump-section", f"{section}={out}", path, repo.parent / "copy.efi"]
        subprocess.run(argv, check=True, stderr=subprocess.DEVNULL)
        sections[section] = out
    words = [f"--{name.removeprefix('.')}={file}" for name, file in sections.items()]
    argv = [str(debian.systemd_measure()), "calculate", "--bank=sha256", "--json=short", *words]
    said = json.loads(subprocess.check_output(argv, text=True))["sha256"]
    phases = dict(uki.pcr_11)
    assert phases.pop("")
    assert phases == {one["phase"]: one["hash"] for one in said if one["pcr"] == 11}
    assert uki.pcr_12 == beside_pcr([], {"roothash.p7s.cred": credential}).hex()


def test_an_addon_that_no_machine_takes_is_not_promised(repo: Path, signed: Bootable, tmp_path: Path) -> None:
    """K0.7; systemd-stub(7): one for another kernel is passed over, and under Secure Boot one that nobody signed."""
    ukis = [path for path in signed.esp if path.endswith(".efi") and path.startswith("EFI/Linux/")]
    folder = f"{ukis[0]}.extra.d"
    line, db = (b".cmdline", b"debug"), make(tmp_path, "db")

    def pcr_12(**addons: bytes) -> str:
        with Repository.open(repo) as repository:
            with ObjectBatch(repository) as batch:
                esp = {f"{folder}/{name}.addon.efi": batch.add(data) for name, data in addons.items()}
            (uki,) = expected_pcrs(repository, replace(signed, esp={**signed.esp, **esp}))
        assert isinstance(uki, ExpectedPcrs)
        assert uki.secure_boot
        return uki.pcr_12

    alone = pcr_12()
    assert pcr_12(unsigned=with_sections(addon_stub(), [line])) == alone
    foreign = with_sections(addon_stub(), [line, (b".uname", b"6.1.0-other")])
    assert pcr_12(foreign=db.sbsign(foreign)) == alone
    assert pcr_12(taken=db.sbsign(with_sections(addon_stub(), [line]))) != alone


@pytest.mark.usefixtures("signed")
def test_a_hook_gets_both_files_and_its_failure_is_ours(repo: Path, tmp_path: Path) -> None:
    """K0.7"""
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\nset -e\n[ "$1" = word ]\ncp "$2" {tmp_path}/got.json\ncp "$3" {tmp_path}/pcrs.json\n')
    hook.chmod(0o755)
    manifest = measured_manifest("demo", repo, f"{hook} word").to_json()
    assert json.loads((tmp_path / "got.json").read_text()) == manifest
    assert json.loads((tmp_path / "pcrs.json").read_text())["format"] == "oci2boot-pcrs-1"
    first = (tmp_path / "got.json").read_bytes()
    measured_manifest("demo", repo, f"{hook} word")
    assert (tmp_path / "got.json").read_bytes() == first
    hook.write_text("#!/bin/sh\necho the attester says no >&2\nexit 3\n")
    with pytest.raises(ToolError, match=r"--attest-hook.*the attester says no"):
        measured_manifest("demo", repo, str(hook))


@pytest.mark.usefixtures("signed")
@pytest.mark.parametrize("command", ["", "'open", "/nowhere/hook"])
def test_a_hook_that_is_none_is_refused(repo: Path, command: str) -> None:
    with pytest.raises(Error):
        measured_manifest("demo", repo, command)


def test_without_verity_the_manifest_has_no_root_hash(tmp_path: Path) -> None:
    """K0.6, K0.5"""
    options = VerityOptions(compression=Compression(), verity=False, signature=False)
    convert_verity(make_image(tmp_path), tmp_path / "repo", options)
    assert measured_manifest("demo", tmp_path / "repo").to_json()["dm-verity"] is None
