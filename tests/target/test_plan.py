"""Disk plans: sizes, names and refusals before the first byte. P.8."""

import json
import stat
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import TargetError
from oci2boot.target.entries import EspFile, FileSource, RootEntry
from oci2boot.target.plan import derive_uuid
from oci2boot.target.space import ext4_capacity, ext4_minimum, fat_capacity, fat_minimum
from oci2boot.target.types import TYPES
from oci2boot.tree.model import Metadata
from tests.target.disks import Root, directory, plan_of, regular, said, working_directory, write

MIB = 1 << 20


def test_a_plan_is_json_and_the_same_each_time() -> None:
    entries = [regular(b"/b", b"x"), regular(b"/a", b"y")]
    first, second = plan_of(entries), plan_of(entries[::-1])
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())
    assert first.root.start == first.esp.start + first.esp.size
    assert first.size == first.root.start + first.root.size + MIB


def test_names_come_from_the_seed_alone() -> None:
    one, other = plan_of([]), plan_of([regular(b"/a", bytes(5 * MIB))])
    assert (one.guid, one.root.guid, one.root.filesystem_id) == (other.guid, other.root.guid, other.root.filesystem_id)
    assert len({one.guid, one.esp.guid, one.root.guid, one.root.filesystem_id, one.hash_seed}) == 5
    assert plan_of([], seed=b"another").guid != one.guid


@given(st.binary(), st.text())
def test_derived_uuids_are_of_version_8(seed: bytes, purpose: str) -> None:
    parsed = uuid.UUID(derive_uuid(seed, purpose))
    assert (parsed.version, parsed.variant) == (8, uuid.RFC_4122)


def test_the_partition_types_are_those_that_util_linux_knows() -> None:
    known = {
        line.split()[0].lower(): " ".join(line.split()[1:])
        for line in said("sfdisk", "-T", "--label", "gpt").splitlines()
        if "Linux root" in line
    }
    names = {
        "386": "x86", "amd64": "x86-64", "arm": "ARM", "arm64": "ARM-64", "loong64": "LoongArch-64",
        "ppc64le": "PPC64LE", "riscv64": "RISC-V-64", "s390x": "S390X",
    }  # fmt: skip
    found = {
        architecture: [known[guid] for guid in (types.root, types.verity, types.signature)]
        for architecture, types in TYPES.items()
    }
    assert found == {
        architecture: [f"Linux root{what} ({name})" for what in ("", " verity", " verity sign.")]
        for architecture, name in names.items()
    }


def needed_size(entries: list[RootEntry], esp: list[EspFile], **options: Any) -> int:
    with pytest.raises(TargetError, match="too small") as caught:
        plan_of(entries, esp, **options)
    assert caught.value.hint
    return int(caught.value.message.split(": ")[1].split()[0])


@pytest.mark.parametrize("content", [0, 5 * MIB, 127 * MIB, 700 * MIB])
def test_the_size_that_an_error_names_is_enough_and_less_is_not(content: int) -> None:
    """Written, to prove the arithmetic against mke2fs: the smallest disk that is offered holds the content."""
    with working_directory() as place:
        source = place / "source"
        with source.open("wb") as file:
            file.truncate(content)
        entries = [directory(b"/d"), *(regular(b"/d/%d" % number, b"x" * 5000) for number in range(300))]
        entries.append(regular(b"/big", FileSource.of(source)))
        esp_size = 270 * MIB
        needed = needed_size(entries, [], size=MIB, esp_size=esp_size)
        assert needed_size(entries, [], size=needed - 1, esp_size=esp_size) == needed
        plan = plan_of(entries, [], size=needed, esp_size=esp_size)
        assert plan.size == needed
        write(plan, place / "disk.raw")
        Root(place / "disk.raw", plan).check()
        assert needed < content * 1.05 + esp_size + 64 * MIB


def test_the_smallest_esp_that_is_offered_holds_its_files() -> None:
    files = [EspFile(f"EFI/Linux/a long name of a kernel image {number}.efi", b"x" * 5000) for number in range(40)]
    files.append(EspFile("EFI/BOOT/BOOTX64.EFI", bytes(262 * MIB)))
    needed = needed_size([], files, esp_size=MIB)
    assert needed % MIB == 0
    assert needed_size([], files, esp_size=needed - 1) == needed
    with working_directory() as place:
        plan = plan_of([], files, esp_size=needed)
        write(plan, place / "disk.raw")
        free = said("mdir", "-i", f"{place / 'disk.raw'}@@{plan.esp.start}", "::/").splitlines()[-2]
        assert "bytes free" in free
        assert int("".join(free.split("bytes")[0].split())) < 2 * MIB


@given(st.integers(0, 1 << 33))
def test_the_minima_have_the_capacity(needed: int) -> None:
    assert fat_capacity(fat_minimum(needed // 4096 * 4096)) >= needed // 4096 * 4096
    blocks = ext4_minimum([], needed // 4096)
    assert ext4_capacity(blocks, 0) >= needed // 4096


def test_defaults_leave_room_for_more() -> None:
    plan = plan_of([regular(b"/a", FileSource(Path("never read"), 1000 * MIB))], [EspFile("a", bytes(200 * MIB))])
    assert plan.esp.size >= 4 * 200 * MIB
    assert plan.root.size >= (1500 + 256) * MIB
    assert plan_of([]).esp.size >= 512 * MIB


LONG = b"n" * 256
FILE, FOLDER, LINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
PLAIN = Metadata(0o644)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([RootEntry(b"/a/b", FILE, PLAIN)], "no directory to lie in"),
        ([RootEntry(b"/a", FILE, PLAIN), RootEntry(b"/a/b", FILE, PLAIN)], "no directory to lie in"),
        ([RootEntry(b"/lost+found/b", FILE, PLAIN)], "no directory to lie in"),
        ([RootEntry(b"/a", FILE, PLAIN), RootEntry(b"/a", FOLDER, PLAIN)], "same path"),
        ([RootEntry(b"/a", FILE, PLAIN, links=[b"/b"]), RootEntry(b"/b", FILE, PLAIN)], "the path b'/b'"),
        ([RootEntry(b"a", FILE, PLAIN)], "not a path"),
        ([RootEntry(b"/..", FILE, PLAIN)], "not a path"),
        ([RootEntry(b"/a/", FILE, PLAIN)], "not a path"),
        ([RootEntry(b"", FILE, PLAIN)], "not a path"),
        ([RootEntry(b"/a\0", FILE, PLAIN)], "not a path"),
        ([RootEntry(b"/" + LONG, FILE, PLAIN)], "not a path"),
        ([RootEntry(b"/", FILE, PLAIN)], "must be a directory"),
        ([RootEntry(b"/a", FOLDER, PLAIN, links=[b"/b"])], "hard links"),
        ([RootEntry(b"/a", LINK, PLAIN, b"")], "symbolic link"),
        ([RootEntry(b"/a", LINK, PLAIN, b"l" * 4096)], "symbolic link"),
        ([RootEntry(b"/a", 0o170000, PLAIN)], "unknown kind"),
        ([RootEntry(b"/a", FILE, Metadata(0o10000))], "a mode or an owner"),
        ([RootEntry(b"/a", FILE, Metadata(0, 1 << 32))], "a mode or an owner"),
        ([RootEntry(b"/a", FILE, Metadata(0, xattrs={b"btrfs.compression": b"x"}))], "extended attribute"),
        ([RootEntry(b"/a", FILE, Metadata(0, xattrs={b"user.a": b"x" * 4096}))], "ext4 has room for"),
        ([RootEntry(b"/a", FILE, Metadata(0, xattrs={b"system.posix_acl_access": b"x"}))], "POSIX ACL"),
        ([RootEntry(b"/a", FILE, PLAIN, FileSource(Path("a"), 1 << 50))], "at most"),
    ],
)
def test_what_ext4_cannot_hold_is_refused(entries: list[RootEntry], match: str) -> None:
    with pytest.raises(TargetError, match=match):
        plan_of(entries)


@pytest.mark.parametrize(
    ("paths", "match"),
    [
        (["EFI/a", "efi/b"], "cannot hold both"),
        (["EFI/a", "EFI/A"], "cannot hold both"),
        (["EFI/a", "EFI/a"], "cannot hold both"),
        (["EFI", "EFI/a"], "cannot hold both"),
        (["/EFI/a"], "not a path"),
        (["EFI/../a"], "not a path"),
        (["EFI/a."], "not a path"),
        (["EFI/a*"], "not a path"),
        (["EFI/" + "a" * 256], "not a path"),
        ([""], "not a path"),
    ],
)
def test_what_fat_cannot_name_is_refused(paths: list[str], match: str) -> None:
    with pytest.raises(TargetError, match=match):
        plan_of([], [EspFile(path, b"") for path in paths])


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "pdp11"},
        {"epoch": -1},
        {"epoch": 1 << 32},
        {"ext4_label": 'a"b'},
        {"esp_label": ""},
        {"size": 1 << 60},
        {"size": -1},
        {"esp_size": 0},
        {"esp_size": 1 << 45, "size": 1 << 40},
    ],
)
def test_options_that_make_no_disk_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TargetError):
        plan_of([], **options)
