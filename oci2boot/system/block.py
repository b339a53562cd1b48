"""Block devices: what a disk is, who uses it, and what the kernel does to its blocks.

Linux, Documentation/ABI/stable/sysfs-block; proc(5) for mountinfo and swaps; include/uapi/linux/fs.h for the numbers.
"""

import errno
import fcntl
import json
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from oci2boot.errors import FormatError, ToolError
from oci2boot.system.run import run

_BLKRRPART: Final = 0x125F
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F
_UNSUPPORTED: Final = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_SYSFS_SECTOR: Final = 512
"""sysfs counts in these, whatever the disk's own sectors are."""
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDevice:
    """A whole disk or a partition as the running system sees it."""

    path: Path
    name: str
    """The kernel's: `nvme0n1`."""
    disk: str | None
    """Of a partition: the name of the disk that it is on."""
    size: int
    """In bytes."""
    sector: int
    """Bytes of a logical block."""
    model: str
    removable: bool
    read_only: bool
    partitions: tuple[str, ...]
    uses: tuple[str, ...]
    """What the system does with it or with one of its partitions now, a sentence each: mounts, swap, holders."""
    signatures: tuple[str, ...] = ()
    """What is found on it: `gpt`, `ext4 on sda2`. `with_signatures` looks."""

    def to_json(self) -> dict[str, object]:
        return {
            "path": str(self.path),
            "size": self.size,
            "sector_size": self.sector,
            "model": self.model,
            "removable": self.removable,
            "partitions": list(self.partitions),
            "signatures": list(self.signatures),
        }


def read_block_device(path: Path, *, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> BlockDevice:
    """Describe the block device at `path`; `FormatError` where it is none."""
    mode = path.stat()
    if not stat.S_ISBLK(mode.st_mode):
        raise FormatError(f"{path} is not a block device")
    number = f"{os.major(mode.st_rdev)}:{os.minor(mode.st_rdev)}"
    folder = (sys / "dev/block" / number).resolve(strict=True)
    parent = folder.parent.name if (folder / "partition").exists() else None
    whole = folder.parent if parent else folder
    partitions = tuple(sorted(part.parent.name for part in folder.glob("*/partition")))
    parts = [folder, *(folder / name for name in partitions)]
    return BlockDevice(
        path=path,
        name=folder.name,
        disk=parent,
        size=int(_line(folder / "size")) * _SYSFS_SECTOR,
        sector=int(_line(whole / "queue/logical_block_size")),
        model=" ".join(filter(None, (_line(whole / "device/vendor"), _line(whole / "device/model")))),
        removable=_line(whole / "removable") == "1",
        read_only=_line(folder / "ro") == "1",
        partitions=partitions,
        uses=tuple(use for part in parts for use in _uses(part, proc)),
    )


def _line(path: Path) -> str:
    try:
        return " ".join(path.read_text(errors="replace").split())
    except OSError:
        return ""


def _uses(folder: Path, proc: Path) -> Iterator[str]:
    """Say who uses the device: directly, or by way of what stands on it (md, dm, LUKS)."""
    number, name = _line(folder / "dev"), folder.name
    for line in (proc / "self/mountinfo").read_text(errors="replace").splitlines():
        words = line.split()
        source = words[words.index("-") + 2]  # of btrfs, the number is not the device's
        if number in (words[2], _number(_unescaped(source))):
            yield f"{name} is mounted on {_unescaped(words[4])}"
    swaps = (line.split() for line in (proc / "swaps").read_text(errors="replace").splitlines()[1:])
    yield from (f"{name} is in use as swap" for words in swaps if words and _number(_unescaped(words[0])) == number)
    yield from (f"{name} is held by {holder}" for holder in sorted(_listing(folder / "holders")))


def _listing(path: Path) -> list[str]:
    with suppress(OSError):
        return [entry.name for entry in path.iterdir()]
    return []


def _number(path: str) -> str:
    with suppress(OSError):
        status = Path(path).stat()
        if stat.S_ISBLK(status.st_mode):
            return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return ""


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def with_signatures(device: BlockDevice) -> BlockDevice:
    """Read what kinds of tables and file systems are on a disk and its partitions."""
    return replace(device, signatures=tuple(_signatures((device.name, *device.partitions))))


def _signatures(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        node = Path("/dev", name.replace("!", "/"))
        where = "" if name == names[0] else f" on {name}"
        if node.exists():  # without udev, partitions may have no node
            yield from (f"{kind}{where}" for kind in kinds_on(node))


def kinds_on(path: Path) -> list[str]:
    """Return what a device or a file begins or ends with, as libblkid names it: `gpt`, `ext4`."""
    found = json.loads(run(["wipefs", "--no-act", "--json", path], package="util-linux") or b"{}")
    return list(dict.fromkeys(str(one["type"]) for one in found.get("signatures", [])))


def zero_out(fd: int, offset: int, size: int) -> None:
    """Make bytes zero: by the device itself where it can, else by writing them."""
    try:
        fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("QQ", offset, size))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        zeros, end = memoryview(bytes(_CHUNK)), offset + size
        while offset < end:
            offset += os.pwrite(fd, zeros[: end - offset], offset)


def discard(fd: int, size: int) -> bool:
    """Tell the device that nothing on it is needed any more; False where it does not want to know."""
    return _ask(lambda: fcntl.ioctl(fd, _BLKDISCARD, struct.pack("QQ", 0, size)))


def read_partitions_again(fd: int, path: Path) -> bool:
    """Have the kernel read the partition table of `path`, open as `fd`; False where it cannot, as for a plain file.

    It refuses the whole table while one partition is in use; partx tells it of each that has changed.
    """
    if _ask(lambda: fcntl.ioctl(fd, _BLKRRPART, 0)):
        return True
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return False
    try:
        run(["partx", "--update", path], package="util-linux")
    except ToolError:
        return False
    return True


def _ask(request: Callable[[], object]) -> bool:
    try:
        request()
    except OSError as error:
        if error.errno in {*_UNSUPPORTED, errno.EBUSY}:
            return False
        raise
    return True
