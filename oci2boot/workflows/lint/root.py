"""What a root file system has to have, and what in it is of no use: init, mount points, /boot, /run, names."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from oci2boot.boot.configuration import configuration_files
from oci2boot.boot.discover import read_os_release
from oci2boot.errors import Error
from oci2boot.tree.files import find_file, list_directory
from oci2boot.tree.model import Directory, File, Inode, Symlink, find, walk
from oci2boot.workflows.lint.model import Found, Lint, Subject

SYSTEMD: Final = (b"usr/lib/systemd/systemd", b"lib/systemd/systemd")
INITS: Final = (*SYSTEMD, b"sbin/init", b"etc/init", b"bin/init")
"""What is started after the initramfs: switch-root of systemd and the kernel look at these."""
API_DIRECTORIES: Final = (b"dev", b"proc", b"sys", b"run", b"tmp", b"var")
"""systemd, API_FILE_SYSTEMS; /var is mounted from the machine's state."""
RUNTIME: Final = (b"run", b"tmp")
INJECTED: Final = (b"run/systemd/resolve/stub-resolv.conf",)
"""What container tools leave; the directories above it, too."""
HOMES: Final = (b"home", b"root")

_TAKEN: Final = re.compile(
    rb"(vmlinu[xz]|initrd|initramfs|config|System\.map|symvers)([-.].*)?|(amd|intel)-ucode\.img"
    rb"|EFI|efi|loader|lost\+found|composefs"
)
"""Of /boot: what a conversion takes from there, and what belongs to it."""


def _init(subject: Subject) -> Iterator[Found]:
    for path in INITS:
        file = find_file(subject.tree, path)
        if file and file.meta.mode & 0o111:
            return
    yield Found("the image has no init: neither /usr/lib/systemd/systemd nor /sbin/init is a program")


def _systemd(subject: Subject) -> Iterator[Found]:
    if not any(find_file(subject.tree, path) for path in SYSTEMD):
        yield Found(
            "the image has no systemd: the root file system does not grow, no boot counts as good, "
            "and nothing tells the first boot its host name and keys"
        )


def _api_directories(subject: Subject) -> Iterator[Found]:
    there = {name: subject.tree.entries.get(name) for name in API_DIRECTORIES}
    if missing := [name for name, inode in there.items() if inode is None]:
        yield Found("the image does not have", missing, later=subject.verity is not None)
    if other := [name for name, inode in there.items() if inode is not None and not isinstance(inode, Directory)]:
        yield Found("the image has something else than a directory at", other)


def _root_directories(subject: Subject) -> Iterator[Found]:
    """/sysroot for the store; and /ostree, by which the image's own bootc finds it."""
    sysroot = subject.tree.entries.get(b"sysroot")
    if sysroot is None:
        yield Found("the image has no /sysroot, where the store is mounted: it is made", later=True)
    elif not isinstance(sysroot, Directory):
        yield Found("/sysroot of the image is no directory", later=True)
    if find_file(subject.tree, b"usr/bin/bootc") or find_file(subject.tree, b"usr/bin/ostree"):
        link = subject.tree.entries.get(b"ostree")
        if not (isinstance(link, Symlink) and link.target == b"sysroot/ostree"):
            yield Found("the image has bootc or ostree, and /ostree is no symlink to sysroot/ostree")


def _composefs(subject: Subject) -> Iterator[Found]:
    """Settings that setup-root would stop the boot for, and images made for ostree that do not ask for composefs."""
    _ = subject.configuration
    named = any(b"enabled" in content for _, content in configuration_files(subject.tree, subject.read))
    if find_file(subject.tree, b"usr/bin/ostree") and not named:
        yield Found("the image has ostree, and no prepare-root.conf that enables composefs")


def _var_run(subject: Subject) -> Iterator[Found]:
    inode = find(subject.tree, b"var/run")
    if inode is not None and not isinstance(inode, Symlink):
        yield Found("/var/run is no symlink to /run: what is written there outlives a boot")


def _boot(subject: Subject) -> Iterator[Found]:
    boot = subject.tree.entries.get(b"boot")
    if boot is None:
        yield Found("the image has no /boot, where the boot directory is mounted: it is made", later=True)
        return
    if not isinstance(boot, Directory):
        yield Found("/boot of the image is no directory", later=True)
        return
    if others := [b"boot/" + name for name in sorted(boot.entries) if not _TAKEN.fullmatch(name)]:
        yield Found("the machine has an empty /boot, and no conversion takes what the image has there", others)


def _runtime(subject: Subject) -> Iterator[Found]:
    content = {path for name in RUNTIME for path in _below(subject.tree, name)}
    for path in INJECTED:
        content.discard(path)
        while (path := path.rpartition(b"/")[0]) != b"run" and not any(one.startswith(path + b"/") for one in content):
            content.discard(path)
    if tops := [path for path in sorted(content) if path.count(b"/") == 1]:
        yield Found("the machine mounts empty file systems over /run and /tmp, which hide", tops)


def _below(tree: Directory, name: bytes) -> Iterator[bytes]:
    inode = tree.entries.get(name)
    if isinstance(inode, Directory):
        yield from (name + path for path, _ in walk(inode) if path != b"/")


def _utf8(subject: Subject) -> Iterator[Found]:
    if odd := list(_not_text(walk(subject.tree))):
        yield Found("names and targets of symlinks that are no UTF-8 are kept, but bootc's ostree refuses them", odd)


def _not_text(inodes: Iterable[tuple[bytes, Inode]]) -> Iterator[bytes]:
    for path, inode in inodes:
        try:
            path.rpartition(b"/")[2].decode()
            if isinstance(inode, Symlink):
                inode.target.decode()
        except UnicodeDecodeError:
            yield path


def _os_release(subject: Subject) -> Iterator[Found]:
    if read_os_release(subject.tree, subject.read) is None:
        yield Found("the image has no os-release file: systemd boots no root file system without one", later=True)


def _homes(subject: Subject) -> Iterator[Found]:
    overlays = [overlay.path.encode().strip(b"/") for overlay in subject.verity.overlays] if subject.verity else []
    if subject.verity is None and _transient(subject):
        return
    homes = [name for name in HOMES if isinstance(subject.tree.entries.get(name), Directory) and name not in overlays]
    if homes:
        yield Found("nobody can write to what is a directory of the verified root", homes)


def _transient(subject: Subject) -> bool:
    try:
        return subject.configuration.root_transient
    except Error:  # the check of the configuration says so
        return False


def _identity(subject: Subject) -> Iterator[Found]:
    """Identity that every machine made of the image would share."""
    for path in (b"etc/machine-id", b"var/lib/dbus/machine-id"):
        inode = find(subject.tree, path)
        if isinstance(inode, File) and subject.read(inode).strip() not in (b"", b"uninitialized"):
            yield Found("every machine would have the machine-id of the image", [path])
    keys = [b"etc/ssh/" + name for name, _ in list_directory(subject.tree, b"etc/ssh") if _HOST_KEY.fullmatch(name)]
    if keys:
        yield Found("every machine would have the ssh host keys of the image, and whoever has the image has them", keys)


_HOST_KEY: Final = re.compile(rb"ssh_host_.*_key")

LINTS: Final = (
    Lint(
        name="init",
        severity="error",
        what="There is a program to start: systemd, or /sbin/init.",
        hint="install systemd in the image (Debian: systemd-sysv)",
        check=_init,
        stage="root",
    ),
    Lint(
        name="systemd",
        severity="warning",
        what="What is started is systemd, which boot counting, growth and credentials need.",
        hint="install systemd in the image",
        check=_systemd,
        stage="root",
    ),
    Lint(
        name="os-release",
        severity="error",
        what="There is an os-release file, which names the system in the boot menu.",
        hint="install it in the image: /usr/lib/os-release",
        check=_os_release,
    ),
    Lint(
        name="api-base-directories",
        severity="error",
        what="The directories are there over which /dev, /proc, /sys, /run, /tmp and /var are mounted.",
        hint="make it in the image: nobody can on a root that is verified",
        check=_api_directories,
        stage="root",
        bootc=True,
    ),
    Lint(
        name="baseimage-root",
        severity="warning",
        what="/sysroot is a directory; with bootc or ostree in the image, /ostree is a symlink into it.",
        hint="mkdir /sysroot; ln -s sysroot/ostree /ostree",
        check=_root_directories,
        stage="root",
        bootc=True,
    ),
    Lint(
        name="baseimage-composefs",
        severity="warning",
        what="Settings of prepare-root.conf and setup-root-conf.toml do not stop the boot; ostree's enable composefs.",
        hint="/usr/lib/ostree/prepare-root.conf: [composefs] enabled = verity",
        check=_composefs,
        stage="root",
        bootc=True,
    ),
    Lint(
        name="nonempty-boot",
        severity="warning",
        what="/boot is there, and has nothing but what boots the image.",
        hint="move it elsewhere, or remove it: /boot of the machine is the boot directory",
        check=_boot,
        bootc=True,
    ),
    Lint(
        name="nonempty-run-tmp",
        severity="warning",
        what="/run and /tmp are empty.",
        hint="remove it in the image; tmpfiles.d(5) makes at each boot what is needed there",
        check=_runtime,
        bootc=True,
    ),
    Lint(
        name="var-run",
        severity="error",
        what="/var/run is a symlink to /run, or not there.",
        hint="ln -s ../run /var/run",
        check=_var_run,
        stage="root",
        bootc=True,
    ),
    Lint(
        name="read-only-home",
        severity="warning",
        what="/home and /root can be written on the machine.",
        hint="make it a symlink into /var, made at boot by tmpfiles.d(5); or a place that --overlay names",
        check=_homes,
        stage="root",
    ),
    Lint(
        name="machine-identity",
        severity="warning",
        what="The image has no machine-id and no ssh host keys of its own.",
        hint="remove it in the image: each machine makes its own",
        check=_identity,
        stage="root",
    ),
    Lint(
        name="utf8",
        severity="note",
        what="Names are UTF-8.",
        hint="rename it, where bootc with ostree is to take the image",
        check=_utf8,
        stage="root",
        bootc=True,
    ),
)
