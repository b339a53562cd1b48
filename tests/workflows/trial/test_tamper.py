"""What tampering does to a disk of composefs. Witnesses: mtools, objcopy, sbverify, debugfs, cmp.

What a machine says of such changes: tests/integration/test_secure_boot.py.
"""

import random
import subprocess
from pathlib import Path

import pytest

from oci2boot.boot.sign import KeySigner, load_key, sign_image
from oci2boot.formats.fsverity import measure
from oci2boot.workflows.trial.guarded import image_tamperings
from oci2boot.workflows.trial.tamper import INTRUSION, Tampering, look_at, tamperings
from oci2boot.workflows.verify.promises import find_promise
from tests import partitions, vm
from tests.faults.witnesses import section
from tests.keys import Pair, make
from tests.tarballs import file
from tests.witness import program
from tests.workflows.disks import UKI, Demo, installed, layers
from tests.workflows.sealable import addon, addon_stub, kernel, uki

INIT = random.Random(1).randbytes(100_000)
STUB = addon_stub()
LOADER = "EFI/BOOT/BOOTX64.EFI"
OWN_ADDON = f"{UKI}.extra.d/own.addon.efi"
INTRUDER = f"{UKI}.extra.d/zz-intruder.addon.efi"
OF_THE_ESP = [
    "a byte of the kernel in the UKI",
    "the command line of the UKI",
    "an unsigned UKI",
    "a byte of the boot loader",
    "a byte of an addon",
    "an unsigned addon",
    "a signed addon with a second promise",
]
OF_THE_ROOT = ["a byte of the EROFS image", "UKI A with rootfs B", "a byte of a file", "a byte of a file's Merkle tree"]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("keys"), "db")


def signed(key: Pair, data: bytes) -> bytes:
    return sign_image(data, KeySigner(key.certificate, load_key(key.key.read_bytes())))


@pytest.fixture(scope="module")
def demo(key: Pair, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    # The rootfs image has blocks up to the one that is changed, and more.
    many = [file(b"usr/lib/%d" % number, b"x" * 100 + b"%d" % number) for number in range(1500)]
    tars = layers(
        file(b"usr/lib/systemd/systemd", INIT), file(b"usr/lib/systemd/boot/efi/addonx64.efi.stub", STUB), *many
    )
    digest = installed(tmp_path_factory.mktemp("first"), tars).digest
    files = {
        UKI: signed(key, uki(f"quiet composefs={digest}")),
        LOADER: signed(key, kernel()),
        OWN_ADDON: signed(key, addon("debug")),
    }
    return installed(tmp_path_factory.mktemp("demo"), tars, files)


def changes(demo: Demo, key: Pair | None, *, secure_boot: bool = True) -> dict[str, Tampering]:
    subject = look_at(demo.disk, find_promise(demo.disk))
    sign = (lambda data: signed(key, data)) if key else None
    assert subject.init
    found = [
        *tamperings(subject, secure_boot=secure_boot, sign=sign),
        *image_tamperings(demo.disk, demo.stored.rootfs.digest, subject.init),
    ]
    return {one.name: one for one in found}


def changed(demo: Demo, key: Pair, name: str, folder: Path) -> Path:
    copy = vm.copy(demo.disk, folder / "changed.raw")
    changes(demo, key)[name].apply(copy)
    return copy


def on_esp(disk: Path, path: str, folder: Path) -> bytes:
    """By mtools."""
    start = partitions.table(disk)[0]["start"]
    target = folder / "copied"
    subprocess.run([program("mcopy"), "-n", "-o", "-i", f"{disk}@@{start}", f"::/{path}", target], check=True)
    return target.read_bytes()


def differing(a: bytes, b: bytes) -> list[int]:
    return [at for at, (one, other) in enumerate(zip(a, b, strict=True)) if one != other]


def test_every_tampering_is_there(demo: Demo, key: Pair) -> None:
    """C.23, C.36, K0.9; without Secure Boot, nothing on the ESP is anybody's to guard."""
    assert sorted(changes(demo, key)) == sorted(OF_THE_ESP + OF_THE_ROOT)
    assert sorted(changes(demo, None)) == sorted({*OF_THE_ESP, *OF_THE_ROOT} - {"a signed addon with a second promise"})
    assert sorted(changes(demo, None, secure_boot=False)) == sorted(["an addon with a second promise", *OF_THE_ROOT])


@pytest.mark.parametrize(
    ("name", "path", "inside"),
    [
        ("a byte of the kernel in the UKI", UKI, ".linux"),
        ("the command line of the UKI", UKI, ".cmdline"),
        ("a byte of the boot loader", LOADER, ".text"),
        ("a byte of an addon", OWN_ADDON, ".cmdline"),
    ],
)
def test_a_byte_of_a_program_is_one_byte_of_its_section(
    demo: Demo, key: Pair, name: str, path: str, inside: str, tmp_path: Path
) -> None:
    before = on_esp(demo.disk, path, tmp_path)
    after = on_esp(changed(demo, key, name, tmp_path), path, tmp_path)
    assert len(differing(before, after)) == 1
    (at,) = differing(section(before, inside, tmp_path), section(after, inside, tmp_path))
    if path == UKI and inside == ".cmdline":
        assert at in range(len("quiet composefs="), len(f"quiet composefs={demo.digest}"))


def test_an_unsigned_uki_is_the_uki_without_its_signature(demo: Demo, key: Pair, tmp_path: Path) -> None:
    """By sbverify."""
    on_esp(demo.disk, UKI, tmp_path)
    argv: list[str | Path] = [program("sbverify"), "--cert", key.path, tmp_path / "copied"]
    assert subprocess.run(argv, check=False, capture_output=True).returncode == 0
    stripped = on_esp(changed(demo, key, "an unsigned UKI", tmp_path), UKI, tmp_path)
    said = subprocess.run([program("sbverify"), "--list", tmp_path / "copied"], check=False, capture_output=True)
    assert b"No signature table present" in said.stdout + said.stderr
    assert section(stripped, ".cmdline", tmp_path) == f"quiet composefs={demo.digest}".encode()


def test_an_intruder_brings_its_words(demo: Demo, key: Pair, tmp_path: Path) -> None:
    """By objcopy and sbverify."""
    change = changes(demo, key)["an unsigned addon"]
    assert change.ignored == INTRUSION
    unsigned = on_esp(changed(demo, key, change.name, tmp_path), INTRUDER, tmp_path)
    assert section(unsigned, ".cmdline", tmp_path) == INTRUSION.encode()
    trusted = on_esp(changed(demo, key, "a signed addon with a second promise", tmp_path), INTRUDER, tmp_path)
    line = section(trusted, ".cmdline", tmp_path).decode()
    assert line == f"composefs={measure(INIT)}"
    assert line != f"composefs={demo.digest}"
    subprocess.run([program("sbverify"), "--cert", key.path, tmp_path / "copied"], check=True, capture_output=True)


def debugfs(disk: Path, start: int, *words: str | Path) -> str:
    argv = [program("debugfs"), "-R", " ".join(map(str, words)), f"{disk}?offset={start}"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", OF_THE_ROOT)
def test_the_root_is_changed_in_one_place(demo: Demo, key: Pair, name: str, tmp_path: Path) -> None:
    """By debugfs, which knows the blocks of a file, those of its Merkle tree among them, and cmp."""
    copy, start = changed(demo, key, name, tmp_path), demo.root_start
    promised, init = (f"/composefs/objects/{one.path}" for one in (demo.stored.rootfs.digest, measure(INIT)))
    if name == "UKI A with rootfs B":
        debugfs(copy, start, "dump", promised, tmp_path / "dumped")
        assert (tmp_path / "dumped").read_bytes() == INIT
        return
    path, content = (promised, demo.stored.rootfs.image) if "EROFS" in name else (init, INIT)
    said = subprocess.run([program("cmp"), "-l", demo.disk, copy], check=False, capture_output=True, text=True).stdout
    ((place, *_),) = (line.split() for line in said.splitlines())
    block, offset = divmod(int(place) - 1 - start, 4096)
    blocks = [int(number) for number in debugfs(demo.disk, start, "blocks", path).split()]
    at = blocks.index(block) * 4096 + offset
    debugfs(copy, start, "dump", path, tmp_path / "dumped")
    assert differing(content, (tmp_path / "dumped").read_bytes()) == ([] if "Merkle" in name else [at])
    assert (at >= len(content)) is ("Merkle" in name)
