"""A disk image file, written by an ordinary user: no loop device, no mount, no fs-verity in the running kernel."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from oci2boot.errors import TargetError
from oci2boot.formats.ext4_reader import Ext4
from oci2boot.system.files import plain_errors, sync_directory, temporary_name
from oci2boot.system.run import Argv, run
from oci2boot.target.copy import Progress, copy_files, pwrite_all
from oci2boot.target.esp import write_esp
from oci2boot.target.layout import lay_out
from oci2boot.target.nodes import BLOCK, INODE_SIZE
from oci2boot.target.plan import SECTOR, DiskPlan, Partition
from oci2boot.target.space import inode_count, journal_mib

_FEATURES: Final = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum,verity"
)
"""Named one by one, so that neither the version of mke2fs nor the host's mke2fs.conf decides."""
_OVERHEAD: Final = 16 << 20
"""What bitmaps, tables and directories take in the file, generously."""


def sfdisk_script(plan: DiskPlan) -> bytes:
    """Return the partition table as sfdisk(8) reads it, in sectors."""
    lines = ["label: gpt", f"label-id: {plan.guid}", "unit: sectors", f"sector-size: {SECTOR}", ""]
    for part in (plan.esp, plan.root):
        lines.append(
            f"start={part.start // SECTOR}, size={part.size // SECTOR}, type={part.type}, uuid={part.guid}, "
            f'name="{part.label}"'
        )
    return "\n".join(lines).encode() + b"\n"


def mke2fs_argv(plan: DiskPlan, image: Path) -> Argv:
    root: Partition = plan.root
    blocks = root.size // BLOCK
    extended = (
        f"offset={root.start},hash_seed={plan.hash_seed},root_owner=0:0,"
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard"  # the file is one hole: everything is zero already
    )
    return [
        "mke2fs", "-q", "-F",
        "-b", str(BLOCK), "-I", str(INODE_SIZE), "-N", str(inode_count(blocks, len(plan.nodes))),
        "-m", "1", "-G", "16", "-J", f"size={journal_mib(blocks)}",
        "-O", _FEATURES,
        "-U", root.filesystem_id, "-L", root.label,
        "-E", extended,
        image, str(blocks),
    ]  # fmt: skip


def _quiet(done: int) -> None:
    """Show no progress."""


def write_disk(plan: DiskPlan, target: Path, *, overwrite: bool = False, progress: Progress = _quiet) -> None:
    """Write the disk under a temporary name beside `target`, sync it, and rename it; an error leaves nothing behind.

    `progress` is told the bytes of content copied since its last call, from more than one thread; they sum up to
    `plan.content_size`. Raises `TargetError`; `DigestError` where an object's content is not what its name says.
    """
    with plain_errors(TargetError, f"write the disk image {target}"):
        _check_target(plan, target, overwrite)
        temporary = temporary_name(target)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            _write(plan, fd, temporary, progress)
            os.fsync(fd)
            _publish(temporary, target, overwrite)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(fd)
        sync_directory(target.parent)


def _check_target(plan: DiskPlan, target: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(target):
        raise TargetError(f"{target} exists already", hint="remove it, or replace it by --wipe")
    if target.exists() and not target.is_file():
        raise TargetError(f"{target} is not a regular file")
    needed = plan.root.used + plan.esp.used + _OVERHEAD
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise TargetError(
            f"cannot write the disk image {target}: {needed} bytes are needed, {free} are free",
            hint="free some space, or choose another place",
        )


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)  # unlike rename, it never replaces what appeared in the meantime
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise TargetError(f"{target} exists already") from error
        temporary.replace(target)  # a file system without hard links
    else:
        temporary.unlink()


def _write(plan: DiskPlan, fd: int, image: Path, progress: Progress) -> None:
    os.ftruncate(fd, plan.size)
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", image], data=sfdisk_script(plan), package="fdisk")
    write_esp(plan, image)
    progress(plan.content_size - sum(node.entry.size for node in plan.nodes))
    # An empty configuration, so that the host's does not decide; e2fsprogs before 1.47.1 knows the first clock only,
    # and takes 0 for none.
    clock = str(max(plan.epoch, 1))
    env = {"MKE2FS_CONFIG": os.devnull, "E2FSPROGS_FAKE_TIME": clock, "SOURCE_DATE_EPOCH": clock}
    run(mke2fs_argv(plan, image), env=env, package="e2fsprogs")
    start = plan.root.start
    layout = lay_out(Ext4(_reader(fd, start, plan.root.size)), plan.nodes, plan.epoch)
    copy_files(layout.files, fd, start, progress)
    for write in layout.writes:
        pwrite_all(fd, write.data, start + write.offset)


def _reader(fd: int, start: int, size: int) -> Callable[[int, int], bytes]:
    def read(offset: int, count: int) -> bytes:
        return os.pread(fd, max(min(count, size - offset), 0), start + offset)

    return read
