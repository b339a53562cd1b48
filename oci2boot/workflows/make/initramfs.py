"""An initramfs by dracut, run in the image's own root: confined, without network, on a copy of the tree.

Nothing here asks for root. What runs is the image's code, so the rest of this machine is out of its sight.
"""

import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from oci2boot.boot.dracut import VERITY_MODULES, DracutOptions, complaints, dracut_argv, plan_dracut
from oci2boot.boot.payload import MAX_INITRAMFS
from oci2boot.errors import ToolError
from oci2boot.system.confine import Confined, choose_way, run_confined
from oci2boot.system.files import plain_errors, read_all
from oci2boot.tree.files import Read
from oci2boot.tree.lookup import look_up
from oci2boot.tree.model import Directory, File, Inode, Symlink, walk
from oci2boot.workflows.progress import Report, Told

SECONDS: Final = 1800
OUTPUT: Final = ".oci2boot-initramfs"
ENVIRONMENT: Final[Mapping[str, str]] = {
    # A user who cannot make device nodes needs none: the kernel mounts devtmpfs.
    "DRACUT_NO_MKNOD": "1",
    # Labels and capabilities of files in an initramfs mean nothing, and depend on this machine.
    "DRACUT_NO_XATTR": "1",
}


def build_dracut(
    tree: Directory,
    read: Read,
    kernel: str | None,
    version: str,
    options: DracutOptions,
    report: Report,
    *,
    verity: bool,
) -> bytes:
    """Return the initramfs that the image's dracut makes for its kernel.

    `version` is the image's, `%Y%m%d%H%M%S`: no file of the initramfs is younger. Raises `ImageError` for what the
    image lacks, before anything runs; `ToolError` if dracut fails, or says that something is left out.
    """
    kver = plan_dracut(tree, read, kernel, options, verity=verity)
    epoch = int(datetime.strptime(version, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp())
    with tempfile.TemporaryDirectory(prefix="oci2boot-dracut-") as folder:
        root = Path(folder, "root")
        with plain_errors(ToolError, "lay out the image's files for dracut"):
            check_out(tree, read, root)
        way = _choose_way(root)
        report(Told(f"dracut of the image makes an initramfs for {kver}, by {way.name}"))
        argv = dracut_argv(kver, options, VERITY_MODULES if verity else (), f"/{OUTPUT}")
        said = run_confined(way, root, argv, {**ENVIRONMENT, "SOURCE_DATE_EPOCH": str(epoch)}, SECONDS)
        if failed := complaints(said):
            raise ToolError(
                f"dracut left something out: {failed[0]}", hint="install in the image what is missing (as zstd, kmod)"
            )
        return _take(root)


def _choose_way(root: Path) -> Confined:
    try:
        return choose_way(root)
    except ToolError as error:
        hint = f"{error.hint}; --initrd builtin runs nothing of the image"
        raise ToolError(f"dracut of the image cannot be run: {error.message}", hint=hint) from error


def check_out(tree: Directory, read: Read, root: Path) -> None:
    """Write a tree to a new directory: no owners, xattrs and device nodes, and its user may read and enter all."""
    made: dict[int, Path] = {}
    for path, inode in walk(tree):
        target = root / os.fsdecode(path.lstrip(b"/"))
        if isinstance(inode, File) and id(inode) in made:
            target.hardlink_to(made[id(inode)])
            continue
        _write(inode, target, read)
        if isinstance(inode, File):
            made[id(inode)] = target
    # What is mounted there may not land where a symlink of the image leads.
    for name in ("dev", "proc", "run"):
        place = root / name
        if place.is_symlink() or not place.is_dir():
            place.unlink(missing_ok=True)
            place.mkdir()
    # Of the state, in images whose /var is empty; dracut takes the directory over.
    home = root / "root"
    if home.is_symlink() and not look_up(tree, b"root"):
        home.unlink()
        home.mkdir(0o700)


def _write(inode: Inode, target: Path, read: Read) -> None:
    match inode:
        case Directory():
            target.mkdir()
            target.chmod(inode.meta.mode & 0o1777 | 0o700)
        case Symlink():
            target.symlink_to(os.fsdecode(inode.target))
        case File():
            with target.open("xb") as file:
                file.write(read(inode))
            target.chmod(inode.meta.mode & 0o777 | 0o600)
            # Older than the image's version, a file keeps its time in the initramfs.
            os.utime(target, ns=(0, inode.meta.mtime * 10**9 + inode.meta.mtime_nsec))


def _take(root: Path) -> bytes:
    """Return what dracut wrote; the image's code may have put anything in its place."""
    with (
        plain_errors(ToolError, "read the initramfs that dracut made"),
        os.fdopen(os.open(root / OUTPUT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file,
    ):
        return read_all(file, MAX_INITRAMFS, "the initramfs that dracut made")
