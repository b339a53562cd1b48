"""Disk images as e2fsck, debugfs, fsverity, fsck.fat, mtools, sfdisk and sgdisk see them. B.1, D.4, D.8, P.8."""

import os
import re
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oci2boot.digest import Hash
from oci2boot.formats.ext4_reader import Ext4
from oci2boot.target.disk import write_disk
from oci2boot.target.entries import EspFile, FileSource, RootEntry
from oci2boot.target.plan import DiskPlan
from oci2boot.tree.model import Metadata
from tests.partitions import partition
from tests.target.disks import (
    MIB,
    Root,
    content,
    directory,
    plan_of,
    regular,
    said,
    verified,
    write,
)

LABEL = b"system_u:object_r:usr_t:s0\0"
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *one)
    for one in [(1, 6, 2**32 - 1), (2, 7, 1234), (4, 4, 2**32 - 1), (16, 7, 2**32 - 1), (32, 0, 2**32 - 1)]
)
ACL_ON_DISK = bytes.fromhex("01000000 01000600 02000700d2040000 04000400 10000700 20000000")
"""Linux, fs/ext4/acl.h: version 1, and an id only with the entries that name somebody."""
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
SIZES = [0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 131072, 131073, 4096 * 129, 3_000_001]
VERIFIED = [
    *((f"/v/{size}-{algorithm[3:]}", size, algorithm) for size in SIZES for algorithm in ("sha256", "sha512")),
    ("/v/big", 70 * MIB, "sha256"),
]
NAMES = [
    b" lead",
    b"-n",
    b"quote'one",
    b"back\\slash",
    b"\xff\xfe\x80",
    b"new\nline",
    "größe".encode(),
    b"n" * 255,
    b"...",
]


class Rich:
    """One disk with everything on it."""

    def __init__(self, place: Path) -> None:
        big = place / "big"
        with big.open("wb") as file:
            file.write(b"head")
            file.truncate(70 * MIB)
            file.seek(40 * MIB + 3)
            file.write(b"tail")
        self.big = FileSource.of(big)
        label = {b"security.selinux": LABEL}
        self.entries = [
            RootEntry(b"/", stat.S_IFDIR, Metadata(0o755, xattrs=label)),
            RootEntry(b"/lost+found", stat.S_IFDIR, Metadata(0o700, 0, 0, 77, xattrs=label)),
            directory(b"/v", xattrs=label),
            *(verified(b"/v/%d-256" % size, content(size), "sha256") for size in SIZES),
            *(verified(b"/v/%d-512" % size, content(size), "sha512") for size in SIZES),
            verified(b"/v/big", self.big),
            *(regular(b"/plain-%d" % size, content(size)) for size in SIZES),
            regular(b"/owned", b"x", Metadata(0o6755, 70000, 2_000_000_000, 1_600_000_000, 123_456_789)),
            regular(b"/past", b"", Metadata(0o600, mtime=-5)),
            regular(b"/future", b"", Metadata(0o600, mtime=6_000_000_000)),
            regular(b"/labelled", b"x", Metadata(0o644, xattrs=label)),
            regular(b"/full", b"x", Metadata(0o644, xattrs={
                b"security.selinux": LABEL, b"security.capability": CAPABILITY, b"user.long": b"v" * 500,
                b"user.empty": b"", b"trusted.overlay.opaque": b"y", b"system.posix_acl_access": ACL,
            })),
            RootEntry(b"/short", stat.S_IFLNK, Metadata(0o777), b"s" * 59),
            RootEntry(b"/middle", stat.S_IFLNK, Metadata(0o777), b"m" * 60),
            RootEntry(b"/long", stat.S_IFLNK, Metadata(0o777), b"l" * 4000),
            RootEntry(b"/null", stat.S_IFCHR, Metadata(0o666), rdev=0x103),
            RootEntry(b"/disk", stat.S_IFBLK, Metadata(0o660, 0, 6), rdev=0x12310345),
            RootEntry(b"/pipe", stat.S_IFIFO, Metadata(0o600)),
            RootEntry(b"/socket", stat.S_IFSOCK, Metadata(0o600)),
            RootEntry(b"/linked", stat.S_IFREG, Metadata(0o644), b"one inode", links=[b"/v/also", b"/again"]),
            directory(b"/many"),
            *(regular(b"/many/%05d" % number, b"%d" % number) for number in range(5000)),
            directory(b"/odd"),
            *(regular(b"/odd/" + name, name) for name in NAMES),
        ]  # fmt: skip
        self.esp = [
            EspFile("EFI/BOOT/BOOTX64.EFI", content(100_000)),
            EspFile("EFI/Linux/debian_13+3-0.efi", self.big),
            EspFile("EFI/Linux/debian_13+3-0.efi.extra.d/a.addon.efi", b"addon"),
            EspFile("loader/loader.conf", b"timeout 3\n"),
            EspFile("loader/empty", b""),
        ]
        self.options = {"size": 640 * MIB, "esp_size": 280 * MIB}
        self.plan: DiskPlan = plan_of(self.entries, self.esp, **self.options)
        self.disk = place / "disk.raw"
        write(self.plan, self.disk)
        self.root = Root(self.disk, self.plan)


@pytest.fixture(scope="module")
def rich(place: Path) -> Rich:
    return Rich(place)


def test_e2fsck_finds_nothing(rich: Rich) -> None:
    """B.1: written as an ordinary user."""
    assert rich.disk.stat().st_uid == (65534 if os.geteuid() == 0 else os.geteuid())
    rich.root.check()


def test_fsck_fat_finds_nothing(rich: Rich, place: Path) -> None:
    esp = partition(rich.disk, "ESP", place / "esp.img")
    said("fsck.fat", "-n", esp)
    assert 'disk type="FAT32' in said("minfo", "-i", esp, "::")
    esp.unlink()


def test_the_partition_table_is_sound_and_discoverable(rich: Rich) -> None:
    """P.8: types by which systemd finds ESP and root, and the mark by which it grows the root."""
    assert "No errors detected" in said("sfdisk", "--verify", rich.disk)
    assert "No problems found" in said("sgdisk", "-v", rich.disk)
    shown = said("sgdisk", "-i", "1", rich.disk)
    assert "EFI system partition" in shown
    shown = said("sgdisk", "-i", "2", rich.disk)
    assert "Linux x86-64 root (/)" in shown
    assert "Attribute flags: 0000000000000000" in shown
    assert f"Partition unique GUID: {rich.plan.root.guid.upper()}" in shown
    assert said("sfdisk", "--disk-id", rich.disk).strip().lower() == rich.plan.guid
    for part in (rich.plan.esp, rich.plan.root):
        assert part.start % MIB == part.size % MIB == 0


def test_every_content_is_read_back_by_debugfs(rich: Rich, place: Path) -> None:
    """With sizes around every boundary, 5000 files in one directory, and a file of 70 MiB."""
    into = place / "dump"
    into.mkdir()
    rich.root.debugfs(f"rdump / {into}")
    found = {
        b"/" + os.fsencode(path.relative_to(into)): path.read_bytes()
        for path in into.rglob("*")
        if not path.is_symlink() and path.is_file()
    }
    expected = {
        path: entry.source if isinstance(entry.source, bytes) else entry.source.path.read_bytes()
        for entry in rich.entries
        if entry.kind == stat.S_IFREG
        for path in (entry.path, *entry.links)
    }
    assert found.keys() == expected.keys()
    assert found == expected
    assert (into / "short").readlink() == Path("s" * 59)
    assert (into / "middle").readlink() == Path("m" * 60)
    assert rich.root.cat("/long") == b"l" * 4000
    subprocess.run(["rm", "-rf", into], check=True)


@pytest.mark.parametrize(("name", "size", "algorithm"), VERIFIED)
def test_the_verity_metadata_is_where_and_what_the_kernel_wants(
    rich: Rich, place: Path, name: str, size: int, algorithm: Hash
) -> None:
    """D.4: the blocks of the inode, in order of their place in the file, against `fsverity digest`. ext4/verity.rst."""
    plain = place / "plain"
    if name == "/v/big":
        plain = rich.big.path
    else:
        plain.write_bytes(content(size))
    tree, descriptor = place / "tree", place / "descriptor"
    tree.write_bytes(b"")
    said(
        "fsverity",
        "digest",
        f"--hash-alg={algorithm}",
        f"--out-merkle-tree={tree}",
        f"--out-descriptor={descriptor}",
        plain,
    )
    shown = rich.root.stat(name)
    assert re.search(r"Flags: 0x180000\b", shown)
    assert f"Size: {size}\n" in shown
    block = -(-size // 65536) * 16
    wanted = tree.read_bytes() + descriptor.read_bytes().ljust(4092, b"\0") + struct.pack("<I", 256)
    found = b""
    with rich.disk.open("rb") as disk:
        for at in range(len(wanted) // 4096):
            physical = int(rich.root.debugfs(f"bmap {name} {block + at}").split("\n")[1])
            disk.seek(rich.plan.root.start + physical * 4096)
            found += disk.read(4096)
    assert found == wanted
    assert rich.root.debugfs(f"bmap {name} {block + len(wanted) // 4096}").split("\n")[1] == "0"


def test_owner_mode_and_times_are_those_asked_for(rich: Rich) -> None:
    shown = rich.root.stat("/owned")
    assert re.search(r"Type: regular +Mode: +06755", shown)
    assert re.search(r"User: 70000 +Group: 2000000000\b", shown)
    assert re.search(rf"mtime: 0x{1_600_000_000:08x}:{123_456_789 << 2:08x}", shown)
    for field in ("ctime", "atime", "crtime"):
        assert re.search(rf"{field}: 0x{1_700_000_000:08x}:00000000", shown)
    assert re.search(r"mtime: .* 1969", rich.root.stat("/past"))
    assert re.search(r"mtime: .* 2160", rich.root.stat("/future"))
    assert re.search(r"mtime: 0x0000004d:", rich.root.stat("/lost+found"))
    for inode in ("<7>", "<8>"):
        assert re.search(rf"ctime: 0x{1_700_000_000:08x}", rich.root.stat(inode))


def test_devices_have_their_numbers(rich: Rich) -> None:
    assert re.search(r"Type: character special +Mode: +0666", rich.root.stat("/null"))
    assert re.search(r"Device major/minor number: 01:03", rich.root.stat("/null"))
    shown = rich.root.stat("/disk")
    assert re.search(r"Type: block special +Mode: +0660", shown)
    assert re.search(r"\(New-style\) Device major/minor number: 259:74565\b", shown)
    assert "Type: FIFO" in rich.root.stat("/pipe")
    assert "Type: socket" in rich.root.stat("/socket")


def test_hard_links_are_one_inode(rich: Rich) -> None:
    shown = {rich.root.stat(path) for path in ("/linked", "/v/also", "/again")}
    assert len({re.sub("debugfs:.*", "", one) for one in shown}) == 1
    assert "Links: 3 " in shown.pop()


def test_extended_attributes_are_those_asked_for(rich: Rich) -> None:
    for path in ("/", "/lost+found", "/v", "/labelled"):
        assert 'security.selinux (27) = "system_u:object_r:usr_t:s0\\000"' in rich.root.debugfs(f"ea_list {path}")
        assert "File ACL: 0\n" in rich.root.stat(path)
    listed = rich.root.debugfs(
        "ea_list /full", "ea_get -x /full security.capability", "ea_get -x /full system.posix_acl_access"
    )
    assert "user.long (500)" in listed
    assert "user.empty (0)" in listed
    assert 'trusted.overlay.opaque (1) = "y"' in listed
    assert CAPABILITY.hex(" ") in listed
    assert ACL_ON_DISK.hex(" ") in listed
    assert "File ACL: 0\n" not in rich.root.stat("/full")


def test_our_reader_agrees_with_what_was_asked(rich: Rich) -> None:
    with rich.disk.open("rb") as disk:

        def read(offset: int, size: int) -> bytes:
            return os.pread(disk.fileno(), size, rich.plan.root.start + offset)

        fs = Ext4(read)
        found = {path: (number, inode) for path, number, inode in fs.walk()}
        asked = {path: entry for entry in rich.entries for path in (entry.path, *entry.links)}
        assert found.keys() == asked.keys()
        for path, entry in asked.items():
            number, inode = found[path]
            assert (inode.mode, inode.uid, inode.gid) == (entry.kind | entry.meta.mode, entry.meta.uid, entry.meta.gid)
            assert fs.xattrs(number) == dict(entry.meta.xattrs)
            if entry.kind == stat.S_IFLNK:
                assert fs.symlink(number) == entry.source
            metadata = fs.verity(number)
            assert (metadata is None) == (entry.verity is None)
            if entry.kind == stat.S_IFREG and isinstance(entry.source, bytes):
                assert b"".join(fs.content(number)) == entry.source


def test_the_esp_holds_its_files(rich: Rich, place: Path) -> None:
    """D.8."""
    drive = f"{rich.disk}@@{rich.plan.esp.start}"
    for file in rich.esp:
        out = place / "out"
        said("mcopy", "-n", "-i", drive, f"::/{file.path}", out)
        assert out.read_bytes() == (file.source if isinstance(file.source, bytes) else file.source.path.read_bytes())
        out.unlink()
    assert "2023-11-14  22:13" in said("mdir", "-i", drive, "::/loader")


def test_two_runs_give_the_same_bytes(rich: Rich) -> None:
    """B.1: bit-identical from run to run, also from entries in another order."""
    again = rich.disk.with_name("again.raw")
    write(plan_of(rich.entries[::-1], rich.esp[::-1], **rich.options), again)
    subprocess.run(["cmp", rich.disk, again], check=True)
    again.unlink()


def test_the_file_is_sparse(rich: Rich) -> None:
    """The 70 MiB file of holes is there twice and takes next to nothing."""
    assert rich.disk.stat().st_size == rich.plan.size
    assert rich.disk.stat().st_blocks * 512 < 110 * MIB


def test_progress_counts_every_byte_of_content(place: Path) -> None:
    plan = plan_of([regular(b"/a", content(3 * MIB)), verified(b"/b", content(12 * MIB))], [EspFile("c", b"12345")])
    counts: list[int] = []
    write_disk(plan, place / "progress.raw", progress=counts.append)
    assert sum(counts) == plan.content_size == 15 * MIB + 5
    (place / "progress.raw").unlink()


def test_a_file_in_many_extents_is_sound(place: Path) -> None:
    """1 GiB passes 8 block groups: more extents than an inode holds, so that the tree has a block of its own."""
    source = place / "huge"
    with source.open("wb") as file:
        file.truncate(1 << 30)
        file.seek((1 << 30) - 3)
        file.write(b"end")
    plan = plan_of([regular(b"/huge", FileSource.of(source)), regular(b"/after", b"x")])
    disk = place / "huge.raw"
    write(plan, disk)
    root = Root(disk, plan)
    root.check()
    last = int(root.debugfs(f"bmap /huge {(1 << 30) // 4096 - 1}").split("\n")[1])
    with disk.open("rb") as image:
        image.seek(plan.root.start + last * 4096)
        assert image.read(4096) == b"end".rjust(4096, b"\0")
    assert "(ETB0):" in root.stat("/huge")
    disk.unlink()
    source.unlink()


NAME = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..", b"lost+found")
)
ATTRIBUTE = st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name).map(lambda name: b"user." + name)


@st.composite
def trees(draw: st.DrawFn) -> list[RootEntry]:
    entries: list[RootEntry] = []
    folders = [b"/"]
    for name in draw(st.lists(NAME, max_size=25, unique=True)):
        path = draw(st.sampled_from(folders)).rstrip(b"/") + b"/" + name
        meta = Metadata(
            draw(st.integers(0, 0o7777)),
            draw(st.integers(0, 2**32 - 1)),
            draw(st.integers(0, 2**32 - 1)),
            draw(st.integers(-(2**31), 2**34 - 2**31 - 1)),
            draw(st.integers(0, 999_999_999)),
            draw(st.dictionaries(ATTRIBUTE, st.binary(max_size=200), max_size=3)),
        )
        kind = draw(st.sampled_from([stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO]))
        source = draw(st.binary(min_size=1, max_size=100).filter(lambda target: b"\0" not in target))
        entries.append(RootEntry(path, kind, meta, source, rdev=draw(st.integers(0, 2**32 - 1))))
        if kind == stat.S_IFDIR:
            folders.append(path)
    return entries


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=trees())
def test_any_tree_is_sound_and_comes_back(place: Path, entries: list[RootEntry]) -> None:
    plan, disk = plan_of(entries), place / "any.raw"
    write_disk(plan, disk, overwrite=True)
    Root(disk, plan).check()
    with disk.open("rb") as file:
        fs = Ext4(lambda offset, size: os.pread(file.fileno(), size, plan.root.start + offset))
        found = {path: (number, inode) for path, number, inode in fs.walk()}
        assert found.keys() == {entry.path for entry in entries} | {b"/", b"/lost+found"}
        for entry in entries:
            number, inode = found[entry.path]
            assert (inode.mode, inode.uid, inode.gid) == (entry.kind | entry.meta.mode, entry.meta.uid, entry.meta.gid)
            assert fs.xattrs(number) == dict(entry.meta.xattrs)
            assert inode.mtime_extra >> 2 == entry.meta.mtime_nsec
            signed = inode.mtime - (inode.mtime >> 31 << 32) + ((inode.mtime_extra & 3) << 32)
            assert signed == entry.meta.mtime
