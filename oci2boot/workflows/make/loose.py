"""The flows whose boot files go to a boot loader that we do not write to: U-Boot, PXE, Android's. C.16."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oci2boot.boot.loose import (
    ABOOT,
    CMDLINE,
    DEVICETREE,
    FORMAT,
    INITRAMFS,
    KERNEL,
    MANIFEST,
    LooseParts,
    aboot_files,
    manifest,
    plain_files,
)
from oci2boot.boot.payload import MAX_INITRAMFS
from oci2boot.digest import VerityDigest
from oci2boot.errors import DigestError, FormatError, TargetError
from oci2boot.formats import android_boot
from oci2boot.formats.android_boot import Layout
from oci2boot.store.images import LOOSE, WITHOUT_UKI, Bootable
from oci2boot.system.files import is_temporary, plain_errors, read_limited, write_atomically
from oci2boot.workflows.progress import Report, Told
from oci2boot.workflows.requests import BootOptions, ConvertRequest

NAMES: Final = (KERNEL, INITRAMFS, CMDLINE, DEVICETREE, ABOOT)
MAX_MANIFEST: Final = 1 << 20
VOUCHED: Final[Mapping[str, str]] = {
    "files": "nothing here signs them: the signature of a FIT image, or another, is to cover kernel, initramfs and "
    "command line",
    "aboot": f"{ABOOT} is not signed: avbtool adds the footer of Android Verified Boot",
}


def check_flow(request: ConvertRequest) -> None:
    """Refuse options that do not go together, before anything is fetched."""
    boot = request.boot or BootOptions()
    if request.directory and boot.flow not in LOOSE:
        raise FormatError(f"nothing is written to {request.directory}", hint="--flow files or --flow aboot does")
    if boot.devicetree and boot.flow not in WITHOUT_UKI:
        raise FormatError("--devicetree is of the flows without UKI", hint="--flow files, aboot or type1")
    if boot.aboot is not None and boot.flow != "aboot":
        raise FormatError("--aboot is of --flow aboot", hint="add --flow aboot, or leave it out")
    if boot.read == "on-demand" and boot.allow_missing_verity:
        raise FormatError(
            "--read on-demand and --allow-missing-verity: without fs-verity nothing verifies what is read on demand",
            hint="leave one of the two out",
        )
    if boot.flow not in LOOSE:
        return
    if request.directory is None:
        raise FormatError(f"--flow {boot.flow}: where should the files go?", hint="name a directory behind the source")
    if boot.signing:
        raise FormatError(
            f"--flow {boot.flow} makes nothing that Secure Boot checks: there is nothing to sign",
            hint="what loads the files has its own signatures: those of a FIT image, or AVB",
        )
    if boot.loader not in ("systemd-boot", "none") or boot.secure_boot_enroll:
        raise FormatError(f"--flow {boot.flow} brings no boot loader", hint="leave out what is said of one")
    if boot.flow == "aboot":
        Layout.parse(boot.aboot or "")
    _check_directory(request.directory)


def _check_directory(directory: Path) -> None:
    """Raise `TargetError` for a directory with anything else in it than an earlier run left."""
    with plain_errors(TargetError, f"look into {directory}"):
        every = {path.name for path in directory.iterdir()} if directory.exists() else set()
        names = {name for name in every if not is_temporary(name)}
        others = names - {*NAMES, MANIFEST}
        if MANIFEST in names and not others:
            found = read_limited(directory / MANIFEST, MAX_MANIFEST, TargetError)
            try:
                others = set() if json.loads(found)["format"] == FORMAT else {MANIFEST}
            except (ValueError, TypeError, KeyError, RecursionError):
                others = {MANIFEST}
        elif names:
            others = others or names
        if others:
            raise TargetError(
                f"{directory} has other files than those of an earlier run: {min(others)}",
                hint="name a new or an empty directory",
            )


def files_of(parts: LooseParts, options: BootOptions) -> Mapping[str, bytes]:
    if options.flow == "aboot":
        return aboot_files(parts, Layout.parse(options.aboot or ""))
    return plain_files(parts)


@dataclass(frozen=True, slots=True)
class ReadFiles:
    """Boot files that are what their manifest says."""

    kernel: bytes
    initramfs: bytes
    cmdline: str
    digest: VerityDigest


def read_loose(directory: Path) -> ReadFiles:
    """Read what `write_loose` wrote; `DigestError` for a file that is not the one that the manifest names."""
    try:
        document = json.loads(read_limited(directory / MANIFEST, MAX_MANIFEST, TargetError))
        digest = VerityDigest.parse(document["rootfs"])
        wanted = {name: str(document["files"][name]["sha256"]) for name in NAMES if name in document["files"]}
        if document["format"] != FORMAT:
            raise ValueError
    except (FormatError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(f"{directory / MANIFEST} is no manifest of boot files") from error
    files = {name: read_limited(directory / name, MAX_INITRAMFS, TargetError) for name in wanted}
    for name, data in files.items():
        found = hashlib.sha256(data).hexdigest()
        if found != wanted[name]:
            raise DigestError(
                f"{directory / name}: its manifest promises sha256:{wanted[name]}, found is sha256:{found}"
            )
    if ABOOT in files:
        image = android_boot.read(files[ABOOT])
        return ReadFiles(image.kernel, image.ramdisk, image.cmdline, digest)
    if missing := {KERNEL, INITRAMFS, CMDLINE} - files.keys():
        raise FormatError(f"{directory / MANIFEST} names no {min(missing)}", hint="a run that wrote it was stopped")
    line = files[CMDLINE].decode("ascii", errors="replace").removesuffix("\n")
    return ReadFiles(files[KERNEL], files[INITRAMFS], line, digest)


def write_loose(directory: Path, files: Mapping[str, bytes], bootable: Bootable, report: Report) -> None:
    """Write the boot files, and their manifest last: until then it lists none."""
    facts = {
        "rootfs": str(bootable.root.image),
        "hash": bootable.root.image.algorithm,
        "cmdline": bootable.cmdline,
        "kernel": bootable.kernel,
        "architecture": bootable.architecture,
        "image": str(bootable.manifest) if bootable.manifest else None,
        "flow": bootable.flow,
        "sizes": dict(bootable.sizes),
    }
    with plain_errors(TargetError, f"write {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / MANIFEST, manifest({}, facts))
        for name in NAMES:
            if name in files:
                write_atomically(directory / name, files[name])
            else:
                (directory / name).unlink(missing_ok=True)
        write_atomically(directory / MANIFEST, manifest(files, facts))
    report(Told(f"{', '.join(files)} and {MANIFEST} are in {directory}; {VOUCHED[bootable.flow]}"))
