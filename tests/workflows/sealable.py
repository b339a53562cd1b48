"""Small images that can be sealed: real boot loader and stub of Debian, a kernel that is one in name only."""

import struct
from collections.abc import Sequence
from pathlib import Path

from oci2boot.boot.uki import UkiParts, build_uki
from oci2boot.formats import cpio
from tests.boot.debian import package
from tests.boot.initrds import GROWING, SYSTEMD
from tests.oci.layouts import Layout
from tests.tarballs import END, directory, file, symlink

EFI = "usr/lib/systemd/boot/efi"
KVER = "6.12.1-test"
OS_RELEASE = b'ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\n'
CREATED = "2026-11-21T10:00:00Z"
CONFIG = b"".join(
    b"CONFIG_%s=y\n" % name
    for name in (b"EROFS_FS", b"OVERLAY_FS", b"BLK_DEV_LOOP", b"FS_VERITY", b"EROFS_FS_XATTR", b"MODULES")
)
BUILTIN = b"".join(b"kernel/%s.ko\n" % name for name in (b"erofs", b"overlay", b"loop"))


def stub() -> bytes:
    return (package("systemd-boot-efi") / EFI / "linuxx64.efi.stub").read_bytes()


def addon_stub() -> bytes:
    return (package("systemd-boot-efi") / EFI / "addonx64.efi.stub").read_bytes()


def kernel() -> bytes:
    """systemd-boot stands for a kernel: an EFI program with revocation entries of its own."""
    return (package("systemd-boot-efi") / EFI / "systemd-bootx64.efi").read_bytes()


def uki(cmdline: str, os_release: bytes = OS_RELEASE, uname: str = KVER, *extra: cpio.Member) -> bytes:
    return build_uki(
        stub(),
        UkiParts(
            kernel=kernel(),
            initrds=(cpio.write([*SYSTEMD, *extra]),),
            cmdline=cmdline,
            os_release=os_release,
            uname=uname,
        ),
    )


def with_sections(stub: bytes, sections: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return a PE with these sections after its own, by the PE format alone."""
    data = bytearray(stub)
    at = int.from_bytes(data[60:64], "little")
    count, optional_size = struct.unpack_from("<H", data, at + 6)[0], struct.unpack_from("<H", data, at + 20)[0]
    table = at + 24 + optional_size
    align, file_align = struct.unpack_from("<II", data, at + 24 + 32)
    size, address = struct.unpack_from("<II", data, table + (count - 1) * 40 + 8)
    address += size
    for number, (name, content) in enumerate(sections, count):
        address += -address % align
        data += bytes(-len(data) % file_align)
        raw = len(content) + -len(content) % file_align
        header = struct.pack("<8sIIIIIIHHI", name, len(content), address, raw, len(data), 0, 0, 0, 0, 0x40000040)
        data[table + number * 40 : table + number * 40 + 40] = header
        data += content.ljust(raw, b"\0")
        address += len(content)
    struct.pack_into("<H", data, at + 6, count + len(sections))
    struct.pack_into("<I", data, at + 24 + 56, address + -address % align)
    return bytes(data)


def profiles(base: str | None, *lines: str | None) -> bytes:
    """Return a UKI with the base's command line and those of its profiles; None is a profile without one."""
    sections = [(b".osrel", OS_RELEASE), (b".linux", kernel()), (b".initrd", b"070701")]
    if base is not None:
        sections.append((b".cmdline", base.encode()))
    for number, line in enumerate(lines):
        sections.append((b".profile", b"ID=p%d\n" % number))
        if line is not None:
            sections.append((b".cmdline", line.encode() + b"\0"))  # dracut's NUL
    return with_sections(stub(), sections)


def addon(cmdline: str) -> bytes:
    return with_sections(addon_stub(), [(b".cmdline", cmdline.encode())])


def tar(files: dict[str, bytes | Path], **fields: int) -> bytes:
    """Return a layer with these files and every directory above them; a `Path` is the target of a symlink."""
    parts: dict[str, bytes] = {}
    for name, content in sorted(files.items()):
        for parent in reversed(Path(name).parents[:-1]):
            parts.setdefault(f"{parent}/", directory(f"{parent}/".encode(), **fields))
        if isinstance(content, Path):
            parts[name] = symlink(name.encode(), bytes(content), **fields)
        elif name.endswith("/"):
            parts[name] = directory(name.encode(), **fields)
        else:
            parts[name] = file(name.encode(), content, **fields)
    return b"".join(parts.values()) + END


def base(extra: dict[str, bytes | Path] | None = None) -> list[bytes]:
    """Return two layers of an operating system."""
    modules = f"usr/lib/modules/{KVER}"
    system: dict[str, bytes | Path] = {
        "boot/": b"", "sysroot/": b"", "var/": b"", "run/": b"", "etc/": b"",
        "usr/lib/os-release": OS_RELEASE,
        "etc/os-release": Path("../usr/lib/os-release"),
        f"{EFI}/linuxx64.efi.stub": stub(),
        f"{EFI}/addonx64.efi.stub": addon_stub(),
        f"{EFI}/systemd-bootx64.efi": kernel(),
        **GROWING,
    }  # fmt: skip
    kernel_package: dict[str, bytes | Path] = {
        f"{modules}/vmlinuz": kernel(),
        f"{modules}/config": CONFIG,
        f"{modules}/modules.builtin": BUILTIN,
        f"{modules}/modules.dep": b"",
        f"{modules}/initramfs.img": cpio.write(SYSTEMD),
        "etc/kernel/cmdline": b"rw quiet\n",
        **(extra or {}),
    }
    return [tar(system), tar(kernel_package)]


def add_image(layout: Layout, tars: Sequence[bytes], tag: str, compression: str = "gzip") -> None:
    """Add an image with a proper history."""
    layers = [layout.layer(data, compression) for data in tars]
    history = [{"created": CREATED, "created_by": f"layer {number}"} for number in range(len(tars))]
    config = layout.config([diff_id for _, diff_id in layers], created=CREATED, history=history)
    layout.tag(layout.image(layers, config=config), tag)
