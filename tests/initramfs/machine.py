"""One virtual machine in which setup-root meets many disks and command lines, one after the other."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oci2boot.boot import glue
from oci2boot.boot.kernel import check_kernel
from oci2boot.digest import Hash
from oci2boot.formats import cpio
from oci2boot.formats.fsverity import Hasher
from tests.boot.debian import kernel, package
from tests.boot.trees import scan
from tests.flips import flip
from tests.witness import program

TIMEOUT = 300
"""Seconds; it takes 15 to 60."""
CPU = "qemu64,-cx16"
"""QEMU 7.2's emulation of cmpxchg16b, which Linux's allocator uses, now and then leaves garbage in the flags: the guest
then dies of a double fault in kmalloc."""
APPLETS = (
    *(
        "sh",
        "mount",
        "umount",
        "mkdir",
        "cat",
        "ln",
        "rm",
        "ls",
        "touch",
        "echo",
        "chroot",
        "dmesg",
        "insmod",
        "modprobe",
        "chmod",
        "sed",
    ),
    *("poweroff", "grep", "find", "wc", "tr", "readlink"),
)

INIT = r"""#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
echo 1 >/proc/sys/kernel/printk
/usr/lib/oci2boot/setup-root modules
mount -t ext4 /dev/vda /disk || echo NO DISK
# As in a kernel that counts a file-backed EROFS as a level of stacking: no overlay on an overlay on it.
cat >/shallow <<'END'
mount() {
    case $* in
    *erofs*ro,nodev,loop*) touch /by-loop ;;
    *erofs*ro,nodev*) rm -f /by-loop ;;
    *'overlay -o rw,'*) [ -e /by-loop ] || { echo "mount: too deep" >&2; return 32; } ;;
    esac
    command mount "$@"
}
END
sed '/^set -uf$/r /shallow' /usr/lib/oci2boot/setup-root >/usr/lib/oci2boot/shallow-setup-root
chmod 755 /usr/lib/oci2boot/shallow-setup-root
# Instead of growing, say what lies over the image and the disk in it.
printf '#!/bin/sh\necho "grow-over=$(grep -c " $2/" /proc/self/mountinfo)"\n' >/usr/lib/oci2boot/grow
mkdir /run/planted
run() { # NAME STORE CONFIGURATION SEALED COMMAND_LINE
    echo "=== $1"
    case $1 in shallow*) shallow=shallow- ;; *) shallow= ;; esac
    printf "$3" >/usr/lib/composefs/setup-root-conf.toml
    if [ -n "$4" ]; then printf "$4\\n" >/usr/lib/composefs/rootfs.digest; fi
    case $1 in
    on-demand*) echo on-demand >/usr/lib/oci2boot/read ;;
    unknown-read) echo later >/usr/lib/oci2boot/read ;;
    esac
    echo "$5" >/cmdline
    mount --bind /cmdline /proc/cmdline
    mount --bind "/disk/$2" /sysroot
    dmesg -c >/dev/null
    "/usr/lib/oci2boot/${shallow}setup-root" /sysroot 2>&1
    echo "exit=$?"
    mountinfo=$(cat /proc/self/mountinfo)
    echo "left=$(echo "$mountinfo" | grep -c ' /run/oci2boot/')"
    echo "root=$(echo "$mountinfo" | grep -o ' /sysroot .* - .*' | grep -o ' - [^ ]*' | tr '\n' ' ')"
    look() { echo "$1=$(eval "$2" 2>&1)"; }
    look file 'cat /sysroot/usr/share/file'
    look big 'cat /sysroot/usr/share/big | wc -c'
    look usr 'touch /sysroot/usr/new'
    look top 'touch /sysroot/new && echo written'
    look etc 'cat /sysroot/etc/conf && echo new >/sysroot/etc/new && cat /sysroot/etc/new'
    look etc-kept "find /disk/$2/state -path '*/etc/upper/new' | wc -l"
    look var 'touch /sysroot/var/new && echo written'
    look physical 'touch /sysroot/sysroot/new'
    look damage 'ls -lR /sysroot/usr/share /sysroot/etc /sysroot/var >/dev/null; dmesg | grep CORRUPTED'
    look flags "grep -o ' /sysroot/[a-z]* [^ ]* ' /proc/self/mountinfo"
    look planted 'ls -A /run/planted'
    look link 'readlink /run/systemd/volatile-root'
    umount -l /proc/cmdline
    while umount -l /sysroot 2>/dev/null; do :; done
    while grep -q ' /run/oci2boot/' /proc/self/mountinfo; do
        for at in top root image transient; do umount -l /run/oci2boot/$at 2>/dev/null; done
    done
    rm -f /usr/lib/composefs/rootfs.digest /usr/lib/oci2boot/read
}
. /cases
echo "=== end"
poweroff -f
"""


@dataclass(frozen=True)
class Case:
    name: str
    store: str
    command_line: str
    configuration: str = ""
    sealed: str = ""


@dataclass(frozen=True)
class Outcome:
    said: str
    seen: dict[str, str]
    """What was asked for after the attempt, whatever its end."""


def make_repository(root: Path, algorithm: Hash, path: Path) -> str:
    """Have cfsctl make a repository and the bootable image of `root`; return the image's digest."""
    cfsctl = program("cfsctl")
    subprocess.run(
        [cfsctl, "init", "--insecure", "--algorithm", f"fsverity-{algorithm}-12", path], check=True, capture_output=True
    )
    argv: list[str | Path] = [cfsctl, "--insecure", "--repo", path, "create-image", "--bootable", root]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip().rpartition(":")[2]


def object_path(digest: str) -> str:
    return f"{digest[:2]}/{digest[2:]}"


class Disk:
    """An ext4 file system in a file, its fs-verity files made by debugfs: data, a hole to 64 KiB, tree, descriptor."""

    def __init__(self, directory: Path) -> None:
        self._stage = directory / "stage"
        self.image = directory / "disk.img"
        self._commands: dict[str, list[str]] = {}

    def add(self, path: str, content: bytes, algorithm: Hash | None) -> None:
        """Add or replace a file; without an algorithm it has no verity."""
        self.remove(path)
        target = self._stage / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if algorithm is None:
            target.write_bytes(content)
            return
        hasher = Hasher(algorithm)
        hasher.update(content)
        tree, descriptor = hasher.metadata()
        with target.open("wb") as file:
            file.write(content)
            file.seek(-(-len(content) // 65536) * 65536)
            file.write(tree + descriptor.ljust(4092, b"\0") + len(descriptor).to_bytes(4, "little"))
        self._commands[path] = [f"sif /{path} flags 0x180000", f"sif /{path} size {len(content)}"]

    def remove(self, path: str) -> None:
        (self._stage / path).unlink(missing_ok=True)
        self._commands.pop(path, None)

    def symlink(self, path: str, target: str) -> None:
        (self._stage / path).parent.mkdir(parents=True, exist_ok=True)
        (self._stage / path).symlink_to(target)

    def mkdir(self, path: str) -> None:
        (self._stage / path).mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        with self.image.open("wb") as file:
            file.truncate(256 << 20)
        argv: list[str | Path] = [
            program("mke2fs"),
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "verity",
            "-b",
            "4096",
            "-d",
            self._stage,
            self.image,
        ]
        subprocess.run(argv, check=True)
        self._debugfs([command for commands in self._commands.values() for command in commands])
        subprocess.run([program("e2fsck"), "-fn", self.image], check=True, capture_output=True)
        shutil.rmtree(self._stage)

    def _debugfs(self, commands: Sequence[str]) -> str:
        argv: list[str | Path] = [program("debugfs"), "-w", "-f", "-", self.image]
        return subprocess.run(argv, input="\n".join(commands), check=True, capture_output=True, text=True).stdout

    def flip(self, path: str, offset: int) -> None:
        """Change one bit of a file behind the file system's back."""
        said = self._debugfs([f"bmap /{path} {offset // 4096}"])
        (block,) = re.findall(r"^\d+$", said, re.MULTILINE)
        flip(self.image, int(block) * 4096 + offset % 4096)


def run(cases: Sequence[Case], disk: Path, scratch: Path) -> dict[str, Outcome]:
    """Boot Debian's kernel with busybox and the glue that a build adds to an initramfs, and try every case."""
    version, files = kernel()
    lines = "".join(
        f"run {case.name} {case.store} '{case.configuration}' '{case.sealed}' '{case.command_line}'\n" for case in cases
    )
    busybox = (package("busybox-static") / "usr/bin/busybox").read_bytes()
    base = [
        *(
            cpio.directory(path)
            for path in (b"bin", b"dev", b"disk", b"proc", b"run", b"sys", b"sysroot", b"usr", b"usr/lib")
        ),
        cpio.directory(b"usr/lib/composefs"),
        cpio.file(b"bin/busybox", busybox, 0o755),
        *(cpio.symlink(f"bin/{name}".encode(), b"busybox") for name in APPLETS),
        cpio.file(b"init", INIT.encode(), 0o755),
        cpio.file(b"cases", lines.encode()),
        *(cpio.file(path, b"") for path in (b"scripts/functions", b"scripts/local")),
        cpio.directory(b"scripts"),
    ]
    tree, read = scan(files)
    plan = glue.plan_glue(tree, read, cpio.read(cpio.write(base), glue.keep), check_kernel(tree, read, version))
    (scratch / "initrd").write_bytes(cpio.write(sorted(base, key=lambda member: member.path)) + plan.archive)
    argv: list[str | Path] = [
        program("qemu-system-x86_64"), "-machine", "q35", "-accel", "tcg", "-cpu", CPU, "-smp", "1", "-m", "512",
        "-nodefaults", "-display", "none", "-no-reboot",
        "-kernel", files / "boot" / f"vmlinuz-{version}", "-initrd", scratch / "initrd",
        # A busy host misses timer interrupts, which the kernel takes for a broken IO-APIC.
        "-append", "console=ttyS0 quiet panic=-1 no_timer_check",
        "-drive", f"file={disk},format=raw,if=none,id=d0,snapshot=on", "-device", "virtio-blk-pci,drive=d0",
        "-serial", f"file:{scratch / 'console'}",
    ]  # fmt: skip
    subprocess.run(argv, check=True, timeout=TIMEOUT)
    console = (scratch / "console").read_text(errors="replace").replace("\r", "")
    outcomes = {}
    for part in console.split("=== ")[1:]:
        name, _, text = part.partition("\n")
        seen = dict(re.findall(r"^([a-z-]+)=(.*(?:\n(?![a-z-]+=).*)*)", text, re.MULTILINE))
        outcomes[name] = Outcome(text.partition("exit=")[0], {key: value.strip() for key, value in seen.items()})
    assert "end" in outcomes, console[-2000:]
    return outcomes
