"""Boot directories with real UKIs, small ones: Debian's stub with systemd-boot for a kernel."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from oci2boot.boot.uki import UkiParts, build_addon, build_uki
from oci2boot.sysroot.bootdir import read_boot_directory
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_plan import plan_boot
from oci2boot.sysroot.bootdir_steps import Source
from tests.boot.debian import package

EFI = "usr/lib/systemd/boot/efi"
ONE, TWO, THREE = ("EFI/Linux/debian_1.efi", "EFI/Linux/debian_2.efi", "EFI/Linux/debian_3.efi")


@cache
def programs() -> tuple[bytes, bytes, bytes]:
    """The stub, systemd-boot, and the stub for addons."""
    files = package("systemd-boot-efi") / EFI
    names = ("linuxx64.efi.stub", "systemd-bootx64.efi", "addonx64.efi.stub")
    return tuple((files / name).read_bytes() for name in names)  # type: ignore[return-value]


@cache
def uki(version: str, digest: str | None = "ab" * 32, image: str = "debian", extra: bytes = b"") -> bytes:
    stub, kernel, _ = programs()
    words = ["rw", *([f"composefs={digest}"] if digest else [])]
    release = f'IMAGE_ID={image}\nIMAGE_VERSION={version}\nPRETTY_NAME="{image} {version}"\n'.encode()
    return build_uki(
        stub,
        UkiParts(
            kernel=kernel, initrds=(b"070701" + extra,), cmdline=" ".join(words), os_release=release, uname="6.12"
        ),
    )


@cache
def addon(line: str) -> bytes:
    return build_addon(programs()[2], line, "6.12")


def put(esp: Path, path: str, data: bytes) -> None:
    (esp / path).parent.mkdir(parents=True, exist_ok=True)
    (esp / path).write_bytes(data)


def names(esp: Path) -> Sequence[str]:
    """Every file below a directory, in order."""
    return sorted(str(path.relative_to(esp)) for path in esp.rglob("*") if path.is_file())


def install(
    esp: Path, new: dict[str, Source], first: str, keep: frozenset[str] = frozenset(), tries: int | None = None
) -> None:
    apply_boot(plan_boot(read_boot_directory(esp), new, first=first, keep=keep, tries=tries), esp)


def menu(esp: Path) -> list[str]:
    return [entry.path.rpartition("/")[2] for entry in read_boot_directory(esp).entries]


def type1(version: str, digest: str = "cd" * 32, folder: str = "k") -> bytes:
    return (
        f"title Debian\nversion {version}\nsort-key debian\noptions rw composefs={digest}\n"
        f"linux /EFI/oci2boot/{folder}/linux\ninitrd /EFI/oci2boot/{folder}/initrd\n"
    ).encode()
