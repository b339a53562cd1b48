"""What a boot chain without UKI loads, as plain files: for U-Boot, PXE, and in one piece for Android's boot loaders.

Their names and digests stand in one manifest, for what vouches for them: the signature of a FIT image, AVB, a signed
manifest. The initramfs has the digest of the root file system in it, so that it may be all that is vouched for.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from oci2boot.boot.budget import Sizes
from oci2boot.errors import DeviceTreeError
from oci2boot.formats import android_boot

KERNEL: Final = "kernel"
INITRAMFS: Final = "initramfs"
CMDLINE: Final = "cmdline"
DEVICETREE: Final = "devicetree.dtb"
ABOOT: Final = "boot.img"
MANIFEST: Final = "manifest.json"
FORMAT: Final = "oci2boot-boot-files-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LooseParts:
    kernel: bytes
    initrds: tuple[bytes, ...]
    """In the order in which they are unpacked."""
    cmdline: str
    devicetree: bytes = b""

    @property
    def initramfs(self) -> bytes:
        """All in one: the kernel wants a plain archive to begin at a multiple of four bytes."""
        return b"".join(piece for initrd in self.initrds for piece in (initrd, bytes(-len(initrd) % 4)))

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            kernel=len(self.kernel),
            cmdline=len(self.cmdline),
            devicetree=len(self.devicetree),
            initramfs=sum(map(len, self.initrds)),
        )


def plain_files(parts: LooseParts) -> dict[str, bytes]:
    files = {KERNEL: parts.kernel, INITRAMFS: parts.initramfs, CMDLINE: f"{parts.cmdline}\n".encode()}
    if parts.devicetree:
        files[DEVICETREE] = parts.devicetree
    return files


def aboot_files(parts: LooseParts, layout: android_boot.Layout) -> dict[str, bytes]:
    if not parts.devicetree:
        raise DeviceTreeError("an Android boot image of header version 2 needs a device tree")
    image = android_boot.write(parts.kernel, parts.initramfs, parts.devicetree, parts.cmdline, layout)
    return {ABOOT: image}


def manifest(files: Mapping[str, bytes], facts: Mapping[str, Any]) -> bytes:
    """Return the list of files, as JSON that is the same for the same files."""
    listed = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sorted(files.items())
    }
    document = {"format": FORMAT, **facts, "files": listed}
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
