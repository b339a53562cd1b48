"""The ext4 file system of a disk: made by mke2fs, filled by us.

Into a file that is one hole, everything goes to its place at once. Onto a device, and into LUKS, what is not written
reads as anything: the empty file system is made in a file of holes, and every block that it uses is written from
there, but neither free blocks nor inode tables without an inode: the kernel clears those, as after mke2fs with
lazy_itable_init.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from oci2boot.formats.ext4_reader import Ext4
from oci2boot.system.run import Argv, run
from oci2boot.target.copy import Progress, copy_files
from oci2boot.target.nodes import BLOCK, INODE_SIZE
from oci2boot.target.placement import Placement, Run, by_group, group_bitmap, place
from oci2boot.target.plan import DiskPlan, Partition
from oci2boot.target.space import inode_count, journal_mib
from oci2boot.target.volume import Volume, pwrite_all

_FEATURES: Final = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum,verity"
)
"""Named one by one, so that neither the version of mke2fs nor the host's mke2fs.conf decides."""


def ext4_of(plan: DiskPlan) -> Partition:
    """Return the partition of a plan that has one."""
    assert plan.ext4
    return plan.ext4


def mke2fs_argv(plan: DiskPlan, image: Path, start: int) -> Argv:
    """Make the file system `start` bytes into a file."""
    ext4 = ext4_of(plan)
    blocks = ext4.data_size // BLOCK
    extended = (
        f"offset={start},hash_seed={plan.hash_seed},root_owner=0:0,"
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard"  # the file is one hole: everything is zero already
    )
    return [
        "mke2fs", "-q", "-F",
        "-b", str(BLOCK), "-I", str(INODE_SIZE), "-N", str(inode_count(blocks, len(plan.nodes))),
        "-m", "1", "-G", "16", "-J", f"size={journal_mib(blocks)}",
        "-O", _FEATURES,
        "-U", str(ext4.filesystem_id), "-L", ext4.label,
        "-E", extended,
        image, str(blocks),
    ]  # fmt: skip


def write_ext4(plan: DiskPlan, fd: int, image: Path, progress: Progress) -> None:
    """Write the file system in its place in a disk image that is a hole there."""
    start = ext4_of(plan).start
    placement = _make(plan, fd, image, start, blank=True)
    copy_files(placement.files, Volume(fd, start, blank=True), progress)
    for write in placement.writes:
        pwrite_all(fd, write.data, start + write.offset)


def write_ext4_staged(plan: DiskPlan, volume: Volume, folder: Path, progress: Progress) -> None:
    """Write the file system to a volume that has anything on it; `folder` is for the file of holes."""
    image = folder / "root"
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, ext4_of(plan).data_size)
        placement = _make(plan, fd, image, 0, blank=False)
        copy_files(placement.files, volume, progress)
        for write in placement.writes:
            pwrite_all(fd, write.data, write.offset)
        for run_ in used_runs(Ext4(_reader(fd, 0, ext4_of(plan).data_size)), placement):
            volume.copy(fd, run_.start * BLOCK, run_.length * BLOCK)
    finally:
        os.close(fd)
        image.unlink()


def _make(plan: DiskPlan, fd: int, image: Path, start: int, *, blank: bool) -> Placement:
    # An empty configuration, so that the host's does not decide; e2fsprogs before 1.47.1 knows the first clock only,
    # and takes 0 for none.
    clock = str(max(plan.epoch, 1))
    env = {"MKE2FS_CONFIG": os.devnull, "E2FSPROGS_FAKE_TIME": clock, "SOURCE_DATE_EPOCH": clock}
    run(mke2fs_argv(plan, image, start), env=env, package="e2fsprogs")
    empty = Ext4(_reader(fd, start, ext4_of(plan).data_size))
    return place(empty, plan.nodes, plan.epoch, blank=blank)


def used_runs(fs: Ext4, placement: Placement) -> Iterator[Run]:
    """Yield the blocks in use besides the files' own, without the inode tables that no inode is in."""
    superblock = fs.superblock
    per_group = superblock.blocks_per_group
    table = superblock.inodes_per_group * INODE_SIZE // BLOCK
    unused = [
        Run(group.inode_table, table) for group in fs.groups if group.unused_inodes_lo == superblock.inodes_per_group
    ]
    left_out = by_group([*(run for file in placement.files for run in file.runs), *unused], per_group)
    for number in range(len(fs.groups)):
        # Behind the last block of the file system, the bitmap's bits are set for nothing.
        size = min(per_group, superblock.blocks_count - number * per_group)
        used = int.from_bytes(group_bitmap(fs, number), "little") & ((1 << size) - 1) & ~left_out.get(number, 0)
        for match in re.finditer("1+", bin(used)[:1:-1]):
            yield Run(number * per_group + match.start(), len(match[0]))


def _reader(fd: int, start: int, size: int) -> Callable[[int, int], bytes]:
    def read(offset: int, count: int) -> bytes:
        return os.pread(fd, max(min(count, size - offset), 0), start + offset)

    return read


def quiet(done: int) -> None:
    """Show no progress."""
