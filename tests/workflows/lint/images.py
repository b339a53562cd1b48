"""An image that no check has anything to say of, and what changes it. Real boot loader and stub of Debian."""

from collections.abc import Mapping
from pathlib import Path

from oci2boot.formats import cpio
from oci2boot.tree.model import Directory, File, Inode, Metadata, Symlink
from oci2boot.workflows.lint.model import Subject
from oci2boot.workflows.lint.run import run_lints
from tests.boot.initrds import GROWING, SYSTEMD
from tests.boot.trees import read_inline
from tests.workflows.sealable import BUILTIN, CONFIG, EFI, KVER, OS_RELEASE, kernel, stub

MODULES = f"usr/lib/modules/{KVER}"
Changes = Mapping[str, bytes | Path | None]
"""Path → content, or a symlink's target; a path with a slash at its end is a directory, None takes something away."""

# systemd, API_FILE_SYSTEMS; file-hierarchy(7).
DIRECTORIES = ("boot/", "dev/", "etc/", "proc/", "run/", "sys/", "sysroot/", "tmp/", "var/")


def good() -> dict[str, bytes | Path | None]:
    return {
        **dict.fromkeys(DIRECTORIES, b""),
        "home": Path("var/home"),
        "root": Path("var/roothome"),
        "usr/lib/systemd/systemd": b"\x7fELF",
        "usr/lib/systemd/systemd-bless-boot": b"\x7fELF",
        "sbin/init": Path("../usr/lib/systemd/systemd"),
        "usr/lib/os-release": OS_RELEASE,
        "etc/machine-id": b"uninitialized\n",
        f"{EFI}/linuxx64.efi.stub": stub(),
        f"{EFI}/systemd-bootx64.efi": kernel(),
        f"{MODULES}/vmlinuz": kernel(),
        f"{MODULES}/config": CONFIG,
        f"{MODULES}/modules.builtin": BUILTIN,
        f"{MODULES}/modules.dep": b"",
        f"{MODULES}/initramfs.img": cpio.write(SYSTEMD),
        "etc/kernel/cmdline": b"rw console=ttyS0\n",
        **GROWING,
    }


def tree_with(changes: Changes) -> Directory:
    """Return the good image with these changes; programs can be run."""
    root: dict[bytes, Inode] = {}
    for path, content in {**good(), **changes}.items():
        if content is None:
            continue
        *parents, name = path.rstrip("/").encode(errors="surrogateescape").split(b"/")
        at = root
        for parent in parents:
            below = at.setdefault(parent, Directory(Metadata(mode=0o755), {}))
            assert isinstance(below, Directory), path
            assert isinstance(below.entries, dict)
            at = below.entries
        if path.endswith("/"):
            at.setdefault(name, Directory(Metadata(mode=0o755), {}))
        elif isinstance(content, Path):
            at[name] = Symlink(Metadata(mode=0o777), bytes(content))
        else:
            at[name] = File(Metadata(mode=0o755 if content.startswith((b"\x7fELF", b"#!")) else 0o644), content)
    return Directory(Metadata(mode=0o755), root)


def subject(changes: Changes, **more: object) -> Subject:
    return Subject(tree=tree_with(changes), read=read_inline, architecture="amd64", **more)  # type: ignore[arg-type]


def found(changes: Changes, name: str | None = None, **more: object) -> list[str]:
    """Return what the check of this name has to say of the changed image, or all of them."""
    linted = run_lints(subject(changes, **more), "image")
    return [finding.sentence for finding in linted.findings if name in (None, finding.lint.name)]
