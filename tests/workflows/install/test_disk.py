"""A converted image on a disk. Witnesses: e2fsck, debugfs, mtools, and `cfsctl` on the repository that lies there."""

import json
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import DigestError, StoreError, TargetError
from oci2boot.formats.fsverity import measure
from oci2boot.store.fsck import check
from oci2boot.store.images import Bootable, find_image, save
from oci2boot.store.layers import has_layer
from oci2boot.store.repository import Repository
from oci2boot.sysroot.first_boot import FirstBoot
from oci2boot.target.luks import Secret
from oci2boot.workflows.install.disk import Installed, install
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import DiskRequest, InstallRequest
from oci2boot.workflows.verify.disk import VerifyRequest, verify
from tests.flips import flip
from tests.partitions import partition
from tests.store.stored import ESP, SKELETON, Stored, layer, store_image
from tests.tarballs import directory, file, hard_link, pax, symlink
from tests.witness import program

OWNED = layer(
    SKELETON,
    file(b"usr/bin/tool", b"tool" * 3000),
    directory(b"var/lib/"),
    file(b"var/lib/state", b"state" * 100, uid=7, gid=8, mode=0o640, mtime=1234),
    hard_link(b"var/lib/other", b"var/lib/state"),
    symlink(b"var/run", b"../run"),
    pax((b"SCHILY.xattr.security.capability", b"\1\0\0\2\0\4\0\0" + bytes(12))),
    file(b"var/lib/capable", b"x" * 100),
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Stored]:
    repo = tmp_path_factory.mktemp("store") / "repo"
    with Repository.ensure(repo) as repository:
        return repo, store_image(repository, "demo", [OWNED])


@pytest.fixture(scope="module")
def installed(stored: tuple[Path, Stored], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(InstallRequest(repo=stored[0], target=tmp_path_factory.mktemp("disk") / "disk.raw"), silent)


def root_of(installed: Installed) -> Path:
    """Return the root partition as a file of its own."""
    root = installed.target.with_suffix(".root")
    if not root.exists():
        partition(installed.target, "oci2boot", root)
    return root


def debugfs(installed: Installed, command: str) -> str:
    done = subprocess.run(
        [program("debugfs"), "-R", command, root_of(installed)], check=True, capture_output=True, text=True
    )
    return done.stdout


def test_the_repository_on_the_disk_is_one_for_cfsctl(
    installed: Installed, stored: tuple[Path, Stored], tmp_path: Path
) -> None:
    """D.2, D.8, O.2, P.11: objects, images and streams, the layers an upgrade can reuse, and nothing without a use."""
    assert subprocess.run([program("e2fsck"), "-fn", root_of(installed)], check=False).returncode == 0
    debugfs(installed, f"rdump /composefs {tmp_path}")
    repo = tmp_path / "composefs"
    assert repo.stat().st_mode & 0o777 == 0o700
    said = subprocess.run(
        [program("cfsctl"), "--repo", repo, "fsck"], check=True, capture_output=True, text=True
    ).stdout
    assert "status: ok" in said
    assert "images: 1/1 ok" in said
    layers = subprocess.run([program("cfsctl"), "--repo", repo, "oci", "images"], check=True, capture_output=True)
    assert b"demo" in layers.stdout
    with Repository.open(repo) as repository:
        assert all(has_layer(repository, diff_id) for diff_id in stored[1].diff_ids)
        assert find_image(repository, "demo") == stored[1].bootable
        assert not check(repository).problems
    collected = subprocess.run(
        [program("cfsctl"), "--repo", repo, "gc", "--dry-run"], check=True, capture_output=True, text=True
    )
    assert "Objects: 0 removed" in collected.stdout
    assert (repo / "images" / stored[1].rootfs.digest.hex).read_bytes() == stored[1].rootfs.image


def test_the_state_is_where_composefs_setup_root_looks(installed: Installed, stored: tuple[Path, Stored]) -> None:
    """C.22: a state directory for each digest, /var shared by the deployments of one system."""
    deploy = f"/state/deploy/{stored[1].rootfs.digest}"
    assert "Type: directory" in debugfs(installed, f"stat {deploy}/etc/upper")
    assert "Type: directory" in debugfs(installed, f"stat {deploy}/etc/work")
    assert '"../../os/default/var"' in debugfs(installed, f"stat {deploy}/var")
    record = json.loads(debugfs(installed, f"cat {deploy}/oci2boot.json"))
    assert record["rootfs"] == str(stored[1].rootfs.digest)
    assert record["rules"] == "canonical-1"
    assert record["deployment"]["tool"].startswith("oci2boot ")


def test_var_begins_as_the_image_has_it(installed: Installed) -> None:
    var = "/state/os/default/var"
    said = debugfs(installed, f"stat {var}/lib/state")
    assert "Mode:  0640" in said
    assert "User:     7   Group:     8" in said
    assert "Links: 2" in said
    assert "Verity" not in said
    assert debugfs(installed, f"cat {var}/lib/other") == "state" * 100
    assert '"../run"' in debugfs(installed, f"stat {var}/run")
    assert "security.capability" in debugfs(installed, f"ea_list {var}/lib/capable")


def test_objects_are_verity_files_of_root(installed: Installed, stored: tuple[Path, Stored]) -> None:
    """D.3, D.4: flag 0x100000 is EXT4_VERITY_FL."""
    said = debugfs(installed, f"stat /composefs/objects/{stored[1].rootfs.digest.path}")
    assert "Flags: 0x180000" in said
    assert "User:     0   Group:     0" in said
    assert "Flags: 0x180000" in debugfs(installed, "stat /composefs/meta.json")


def test_the_esp_holds_the_boot_files(installed: Installed) -> None:
    image = f"{installed.target}@@{installed.plan.esp.start}"
    for path, content in ESP.items():
        copied = subprocess.run([program("mtype"), "-i", image, f"::{path}"], check=True, capture_output=True).stdout
        assert copied == content


def test_installing_twice_gives_the_same_bytes(
    installed: Installed, stored: tuple[Path, Stored], tmp_path: Path
) -> None:
    """B.1: bit-identical from run to run."""
    again = install(InstallRequest(repo=stored[0], target=tmp_path / "again.raw"), silent)
    assert subprocess.run(["cmp", installed.target, again.target], check=False).returncode == 0


def test_a_dry_run_plans_and_writes_nothing(stored: tuple[Path, Stored], tmp_path: Path) -> None:
    planned = install(InstallRequest(repo=stored[0], target=tmp_path / "disk.raw"), silent, dry_run=True)
    assert json.loads(json.dumps(planned.to_json()))["written"] is False
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_refused_with_the_size_it_needs(stored: tuple[Path, Stored], tmp_path: Path) -> None:
    request = InstallRequest(repo=stored[0], target=tmp_path / "disk.raw", disk=DiskRequest(size=64 << 20))
    with pytest.raises(TargetError, match="bytes are needed"):
        install(request, silent)
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_there_stays(stored: tuple[Path, Stored], tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    target.write_text("precious")
    with pytest.raises(TargetError, match="exists"):
        install(InstallRequest(repo=stored[0], target=target), silent)
    assert target.read_text() == "precious"
    install(InstallRequest(repo=stored[0], target=target, wipe=True), silent)
    assert target.stat().st_size > 500 << 20


def test_an_image_without_boot_files_is_refused(tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo") as repository:
        stored = store_image(repository, "demo", [OWNED])
        fields = {name: getattr(stored.bootable, name) for name in Bootable.__dataclass_fields__}
        save(repository, Bootable(**(fields | {"name": "bare"})), stored.rootfs.image, {}, None)
    with pytest.raises(StoreError, match="without boot files"):
        install(InstallRequest(repo=tmp_path / "repo", target=tmp_path / "disk.raw", name="bare"), silent)


@pytest.mark.parametrize("what", ["rootfs image", "file"])
def test_a_damaged_object_never_gets_onto_a_disk(what: str, tmp_path: Path) -> None:
    with Repository.ensure(tmp_path / "repo") as repository:
        stored = store_image(repository, "demo", [OWNED])
        digest = stored.rootfs.digest if what == "rootfs image" else measure(b"tool" * 3000)
        victim = repository.object_path(digest)
    flip(victim, 100)
    with pytest.raises(DigestError):
        install(InstallRequest(repo=tmp_path / "repo", target=tmp_path / "disk.raw"), silent)
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_a_new_machine_is_told_its_name(stored: tuple[Path, Stored], tmp_path: Path) -> None:
    """P.8: in its own /etc, which the digest does not cover; the disk is else that of any machine."""
    request = InstallRequest(
        repo=stored[0], target=tmp_path / "disk.raw", first_boot=FirstBoot("box", credentials={"token": b"secret"})
    )
    named = install(request, silent)
    upper = f"/state/deploy/{stored[1].rootfs.digest}/etc/upper"
    assert debugfs(named, f"cat {upper}/hostname") == "box\n"
    assert debugfs(named, f"cat {upper}/credstore/token") == "secret"
    assert "Mode:  0600" in debugfs(named, f"stat {upper}/credstore/token")
    assert "secret" not in json.dumps(named.to_json())
    failed = [check.name for check in verify(VerifyRequest(named.target), silent).checks if check.state == "failed"]
    assert all("EFI/" in name for name in failed)  # the image's boot files are none


def test_the_format_is_that_of_the_name(installed: Installed, stored: tuple[Path, Stored], tmp_path: Path) -> None:
    converted = install(InstallRequest(repo=stored[0], target=tmp_path / "disk.qcow2"), silent)
    assert converted.format == "qcow2"
    said = subprocess.run(
        [program("qemu-img"), "compare", "-f", "raw", "-F", "qcow2", installed.target, converted.target],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Images are identical" in said.stdout


def test_an_encrypted_disk_shows_no_names_of_files(stored: tuple[Path, Stored], tmp_path: Path) -> None:
    """C.18: the boot files of a composefs image name nothing of what is in it; the rest is encrypted."""
    names = [b"state/deploy", b"composefs/objects", b"capable", b"usr/bin/tool", stored[1].rootfs.digest.path.encode()]
    names += [b"oci2boot.json", b"lost+found"]
    plain, secret = tmp_path / "plain.raw", tmp_path / "secret.raw"
    install(InstallRequest(repo=stored[0], target=plain), silent)
    once = install(InstallRequest(repo=stored[0], target=secret, secret=Secret(b"sesame", 32 << 10)), silent)
    data = plain.read_bytes()
    assert {b"capable", b"oci2boot.json", b"lost+found"} <= {name for name in names if name in data}
    data = secret.read_bytes()
    assert [name for name in names if name in data] == []
    again = install(
        InstallRequest(repo=stored[0], target=tmp_path / "again.raw", secret=Secret(b"sesame", 32 << 10)), silent
    )
    assert once.plan.root.guid != again.plan.root.guid
    assert once.to_json()["plan"]["partitions"][1]["encryption"] == "luks2"


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("/dev/no-such-disk", "no block device"),
        ("/dev/null", "neither a disk nor a disk image"),
        ("/", "is a directory"),
    ],
)
def test_what_is_no_target_is_refused(stored: tuple[Path, Stored], target: str, match: str) -> None:
    with pytest.raises(TargetError, match=match):
        install(InstallRequest(repo=stored[0], target=Path(target), wipe=True), silent)


def test_the_disk_of_the_running_system_is_refused(stored: tuple[Path, Stored]) -> None:
    """P.8: whatever is mounted stays, also with --wipe. Only planned, in case that it is not refused."""
    mounted = subprocess.run(
        [program("lsblk"), "--list", "--noheadings", "--output", "PATH,MOUNTPOINTS"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for words in map(str.split, mounted.splitlines()):
        if len(words) > 1 and words[1] != "[SWAP]":
            with pytest.raises(TargetError, match=r"in use|partition of"):
                install(InstallRequest(repo=stored[0], target=Path(words[0]), wipe=True), silent, dry_run=True)
