"""Boot directories with real UKIs, small ones: Debian's stub with systemd-boot for a kernel."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from oci2boot.boot.uki import UkiParts, build_addon, build_uki
from tests.boot.debian import package

EFI = "usr/lib/systemd/boot/efi"


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
