"""What disks under dm-verity promise, and what tampering does to them. Witnesses: veritysetup, fsck.erofs, mtools.

What the kernel says of such changes: tests/integration/test_verity.py.
"""

import random
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from oci2boot.boot.roothash import sign_root_hash
from oci2boot.errors import FormatError
from oci2boot.rootfs.dmverity import SIGNATURE_NAME, VerityOptions
from oci2boot.workflows.progress import silent
from oci2boot.workflows.trial.boot import BootTestRequest, try_disk
from oci2boot.workflows.trial.guarded import device_tamperings
from oci2boot.workflows.trial.tamper import look_at, tamperings
from oci2boot.workflows.verify.promises import find_promise
from tests import vm
from tests.boot import debian
from tests.keys import Pair, make
from tests.partitions import partition, table
from tests.store.stored import SKELETON, layer
from tests.tarballs import file
from tests.target.disks import said
from tests.witness import program
from tests.workflows.sealable import kernel, uki
from tests.workflows.verity_disks import EMBEDDED, TARS, UKI, Image, converted

INIT = "usr/lib/systemd/systemd"
CONTENT = random.Random(1).randbytes(3 << 20)
SYSTEMD = layer(SKELETON, file(INIT.encode(), CONTENT), file(b"usr/lib/other", CONTENT[::-1]))
BLOCKS, CONTENTS, TREE, SIGNATURE = (
    "a byte of the file system's first block",
    "a byte of a file",
    "a byte of the hash tree",
    "the signature of the root hash taken away",
)


@pytest.fixture(autouse=True)
def erofs_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Debian 13's fsck.erofs and dump.erofs first on PATH."""
    monkeypatch.setenv("PATH", str(debian.erofs_utils("fsck.erofs").parent), prepend=":")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("keys"), "db")


@pytest.fixture(scope="module")
def image(key: Pair, tmp_path_factory: pytest.TempPathFactory) -> Image:
    repo = tmp_path_factory.mktemp("store") / "repo"
    plain = converted(repo, [SYSTEMD], VerityOptions(), key)
    signer = key.signer
    files = {
        UKI: uki(f"quiet roothash={plain.root_hash} dm_verity.require_signatures=1"),
        f"{UKI}.extra.d/{SIGNATURE_NAME}": sign_root_hash(plain.root_hash, signer),
        "EFI/BOOT/BOOTX64.EFI": kernel(),
    }
    return converted(repo, [SYSTEMD], VerityOptions(), key, esp=files)


@pytest.fixture(scope="module")
def disk(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image.install(tmp_path_factory.mktemp("disk") / "disk.raw").target


def made(folder: Path, files: Mapping[str, bytes] | None = None, options: VerityOptions | None = None) -> Path:
    image = converted(folder / "repo", TARS, options or VerityOptions(), esp=files)
    return image.install(folder / "made.raw").target


def changed(disk: Path, name: str, folder: Path) -> Path:
    promised = find_promise(disk)
    assert promised.verity
    (change,) = (one for one in device_tamperings(disk, promised.path, promised.verity, silent) if one.name == name)
    copy = vm.copy(disk, folder / "changed.raw")
    change.apply(copy)
    return copy


def verified(disk: Path, folder: Path, *words: str, tree: str = "root-verity") -> str:
    """Return what veritysetup has to object; nothing of an intact disk."""
    parts = [partition(disk, name, folder / name) for name in ("root", tree)]
    promise = find_promise(disk)
    argv = [program("veritysetup"), "verify", *words, *map(str, parts), str(promise.digest)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


def test_a_uki_promises_its_root_hash(image: Image, disk: Path) -> None:
    """K0.1"""
    promised = find_promise(disk)
    assert (promised.path, promised.digest) == (UKI, image.root_hash)
    assert promised.verity
    assert promised.verity.signed


def test_an_entry_of_type_1_promises_its_image(tmp_path: Path) -> None:
    """The one that systemd-boot shows first."""
    old, new = "ab" * 32, "cd" * 32
    entry = "title demo\nversion {}\nsort-key demo\nlinux /vmlinuz\noptions quiet composefs={}\n"
    files = {
        f"loader/entries/{name}.conf": entry.format(name, digest).encode() for name, digest in ((1, old), (2, new))
    }
    disk = made(tmp_path, files | {"loader/entries/other.conf": b"title other\nlinux /vmlinuz\n"})
    promised = find_promise(disk)
    assert (promised.path, promised.uki, str(promised.digest)) == ("loader/entries/2.conf", None, new)
    with pytest.raises(FormatError, match="is a type 1 entry: Secure Boot"):
        try_disk(BootTestRequest(disk=disk, keys=tmp_path), silent)


def test_what_promises_nothing_is_refused(tmp_path: Path) -> None:
    disk = made(tmp_path, {UKI: uki("quiet")})
    with pytest.raises(FormatError, match="promises a root file system"):
        find_promise(disk)


def test_every_tampering_has_its_place(disk: Path, tmp_path: Path) -> None:
    """C.23, K0.9"""
    promised = find_promise(disk)
    assert promised.verity
    subject = look_at(disk, promised)
    names = [change.name for change in tamperings(subject, secure_boot=True, sign=None)]
    expected = ["a byte of the kernel in the UKI", "the command line of the UKI", "an unsigned UKI"]
    assert names == [*expected, "a byte of the boot loader"]
    assert list(tamperings(subject, secure_boot=False, sign=None)) == []
    found = [change.name for change in device_tamperings(disk, promised.path, promised.verity, silent)]
    assert found == [BLOCKS, CONTENTS, TREE, SIGNATURE]
    assert verified(disk, tmp_path) == ""


@pytest.mark.parametrize("name", [BLOCKS, CONTENTS, TREE])
def test_a_changed_byte_is_one_that_dm_verity_guards(disk: Path, name: str, tmp_path: Path) -> None:
    """K0.9: by veritysetup."""
    assert "Verification failed" in verified(changed(disk, name, tmp_path), tmp_path)


def test_the_byte_of_a_file_is_one_of_systemd(disk: Path, tmp_path: Path) -> None:
    """By fsck.erofs; other files are as they were."""
    root = partition(changed(disk, CONTENTS, tmp_path), "root", tmp_path / "root")
    said("fsck.erofs", f"--extract={tmp_path / 'files'}", root)
    content = (tmp_path / "files" / INIT).read_bytes()
    assert sum(a != b for a, b in zip(content, CONTENT, strict=True)) == 1
    assert (tmp_path / "files/usr/lib/other").read_bytes() == CONTENT[::-1]


def test_a_tree_behind_the_file_system_is_found(tmp_path: Path) -> None:
    """K1.9"""
    image = converted(tmp_path / "repo", [SYSTEMD], EMBEDDED)
    offset = image.record.data_size
    words = f"roothash={image.root_hash} systemd.verity_root_options=hash-offset={offset}"
    image = converted(tmp_path / "repo", [SYSTEMD], EMBEDDED, esp={UKI: uki(words)})
    disk = image.install(tmp_path / "disk.raw").target
    assert verified(disk, tmp_path, f"--hash-offset={offset}", tree="root") == ""
    before = partition(disk, "root", tmp_path / "before").read_bytes()
    copy = changed(disk, TREE, tmp_path)
    assert partition(copy, "root", tmp_path / "after").read_bytes()[:offset] == before[:offset]
    assert "Verification" in verified(copy, tmp_path, f"--hash-offset={offset}", tree="root")


def test_no_signature_is_left(disk: Path, tmp_path: Path) -> None:
    """K1.1: by mtools, neither on the ESP nor in its partition."""

    def listing(one: Path) -> str:
        esp = f"{one}@@{table(one)[0]['start']}"
        return said("mdir", "-b", "-s", "-i", esp, "::EFI")

    assert SIGNATURE_NAME in listing(disk)
    counting = vm.copy(disk, tmp_path / "counting.raw")
    said("mren", "-i", f"{counting}@@{table(disk)[0]['start']}", f"::/{UKI}", "::/EFI/Linux/demo_1+3.efi")
    assert SIGNATURE_NAME not in listing(changed(counting, SIGNATURE, tmp_path))
    copy = changed(disk, SIGNATURE, tmp_path)
    assert SIGNATURE_NAME not in listing(copy)
    assert UKI.rpartition("/")[2] in listing(copy)
    assert not any(partition(copy, "root-verity-sig", tmp_path / "part").read_bytes())
    assert verified(copy, tmp_path) == ""
