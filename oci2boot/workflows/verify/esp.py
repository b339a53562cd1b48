"""The files that the firmware starts from, wherever they lie: what their UKIs promise, and who signed them."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from oci2boot.boot.names import EXTRA, GLOBAL_ADDONS, MAX_ADDON, MAX_UKI, addons_folder, is_addon, is_program, uncounted
from oci2boot.boot.sealed import Uki, find_sealable
from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, LimitError, SignatureError, TargetError
from oci2boot.formats import authenticode, bls, cmdline, pe
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.formats.fat import Fat
from oci2boot.formats.fsverity import measure
from oci2boot.formats.x509 import Certificate
from oci2boot.store.images import Bootable
from oci2boot.system.files import read_limited
from oci2boot.tree.model import Directory, File, Inode, Metadata
from oci2boot.workflows.verify.checks import Checks

FILES_MAX: Final = 1 << 16

EspFiles = Mapping[str, Callable[[], bytes]]
"""By path from the root of the ESP, with slashes: what reads the file."""
_Images = Mapping[VerityDigest, str | None]

_ENTRY: Final = re.compile(r"loader/entries/[^/.][^/]*\.conf", re.IGNORECASE)


def esp_of_fat(fat: Fat) -> EspFiles:
    def reader(path: str) -> Callable[[], bytes]:
        return lambda: fat.content(path, _limit(path))

    return {path: reader(path) for path in sorted(fat.files)}


def esp_of_directory(top: Path) -> EspFiles:
    """Take a directory as the root of an ESP; symbolic links, which FAT does not know, are left out."""

    found: dict[str, Callable[[], bytes]] = {}
    if not top.is_dir():
        raise TargetError(f"{top} is not a directory")
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                relative = str(path.relative_to(top))
                found[relative] = partial(read_limited, path, _limit(relative), TargetError)
        if len(found) > FILES_MAX:
            raise LimitError(f"{top} has more than {FILES_MAX} files")
    return found


def _limit(path: str) -> int:
    if is_entry(path):
        return bls.MAX_SIZE
    return MAX_ADDON if is_addon(path) else MAX_UKI


def is_entry(path: str) -> bool:
    """Say whether a file is a type 1 entry. The Boot Loader Specification, by its place and name."""
    return bool(_ENTRY.fullmatch(path))


def find_ukis(files: EspFiles) -> Iterator[tuple[str, Uki | Error]]:
    """Yield each UKI by its path, with the addons that the stub would find; an `Error` for one that cannot be read."""
    for path in files:
        if is_program(path) and not is_addon(path):
            try:
                for uki in find_sealable(_as_image(files, path), _read):
                    yield path, uki
            except Error as error:
                yield path, error


def _as_image(files: EspFiles, path: str) -> Directory:
    """Return the tree of an image with this UKI alone, and its addons, where an image has them."""
    name = path.rpartition("/")[2]
    own = addons_folder(path).lower()
    beside: dict[str, dict[bytes, Inode]] = {own: {}, GLOBAL_ADDONS: {}}
    for other in files:
        folder, _, file = other.rpartition("/")
        if folder.lower() in beside and is_addon(other):
            beside[folder.lower()][file.encode()] = _file(files[other])
    linux: dict[bytes, Inode] = {name.encode(): _file(files[path]), f"{name}{EXTRA}".encode(): _directory(beside[own])}
    boot = {
        b"EFI": _directory({b"Linux": _directory(linux)}),
        b"loader": _directory({b"addons": _directory(beside[GLOBAL_ADDONS])}),
    }
    return _directory({b"boot": _directory(boot)})


def _file(read: Callable[[], bytes]) -> File:
    return File(Metadata(0o644), read())


def _directory(entries: Mapping[bytes, Inode]) -> Directory:
    return Directory(Metadata(0o755), entries)


def _read(file: File) -> bytes:
    assert isinstance(file.content, bytes)
    return file.content


def check_ukis(files: EspFiles, images: _Images | None, checks: Checks) -> None:
    """Hold every UKI and type 1 entry to its word: each root file system that it may boot is here.

    `images` are the root file systems that are here, with what is wrong about each; None where nobody can see them.
    """
    found = False
    for path, uki in find_ukis(files):
        found = True
        name = f"UKI {path}"
        with checks.attempt(name):
            if isinstance(uki, Error):
                raise uki
            lines = [[*promised, *uki.added()] for promised in uki.promises()]
            _check_promises(name, lines, images, checks)
            for addon in uki.addons:
                if decisive := addon.decisive():
                    checks.unchecked(f"addon {addon.name} of {path}", decisive)
    for path in filter(is_entry, files):
        found = True
        name = f"entry {path}"
        with checks.attempt(name):
            entry = bls.Type1.parse(files[path]())
            arguments = cmdline.find_composefs(cmdline.split(entry.options))
            _check_promises(name, [arguments], images, checks)
            checks.unchecked(f"command line of {path}", "nothing signs it, nor the initramfs beside it")
    if not found:
        checks.failed("UKI", "there is none that could be booted")


def _check_promises(name: str, lines: Sequence[Sequence[ComposefsArg]], images: _Images | None, checks: Checks) -> None:
    broken = list(_broken_promises(lines, images))
    promised = " and ".join(dict.fromkeys(str(argument) for arguments in lines for argument in arguments))
    if images is None and not broken:
        checks.unchecked(name, f"whether the rootfs image {promised} is here cannot be seen")
    else:
        checks.verdict(name, broken, f"{promised} is a rootfs image that is here")


def _broken_promises(lines: Sequence[Sequence[ComposefsArg]], images: _Images | None) -> Iterator[str]:
    for arguments in lines:
        if not arguments:
            yield "its command line has no composefs argument: signed, it boots any root file system"
            continue
        if any(argument.insecure for argument in arguments):
            yield "its composefs argument has the mark `?`, which makes verification optional"
        if images is None:
            continue
        here = [argument for argument in arguments if argument.digest in images]
        if not here:
            yield f"it promises {' and '.join(map(str, arguments))}, and no such rootfs image is here"
        yield from (
            f"the rootfs image {argument.digest} {problem}"
            for argument in here
            if (problem := images[argument.digest]) is not None
        )


def _lasting(path: str) -> str:
    """Return what a path on FAT keeps when letters change case and boots are counted."""
    return uncounted(path).lower()


def check_installed(files: EspFiles, records: Sequence[Bootable], checks: Checks) -> None:
    """Compare the files with those that were installed, which the deployments' records name by digest."""
    expected: dict[str, set[VerityDigest]] = {}
    shown: dict[str, str] = {}
    for record in records:
        for path, digest in record.esp.items():
            expected.setdefault(_lasting(path), set()).add(digest)
            shown[_lasting(path)] = path
    here = {_lasting(path): read for path, read in files.items()}
    failures = []
    for key, digests in sorted(expected.items()):
        name = f"boot file {shown[key]}"
        if key not in here:
            failures.append((name, "it was installed, and is gone"))
            continue
        try:
            data = here[key]()
            if not any(measure(data, digest.algorithm) == digest for digest in digests):
                failures.append((name, "its bytes are not those that were installed"))
        except Error as error:
            failures.append((name, error.message))
    if expected:
        checks.each(failures, "boot files", f"{len(expected)} files are what was installed")
    else:
        checks.unchecked("boot files", "there is no record of what was installed")


def check_signatures(files: EspFiles, trusted: Sequence[Certificate], checks: Checks) -> None:
    """Check every EFI program against the certificates of the firmware's db; without any, only that signatures hold."""
    for path in files:
        if not is_program(path):
            continue
        name = f"signature {path}"
        with checks.attempt(name):
            data = files[path]()
            if not pe.parse(data).signed:
                if trusted:
                    raise SignatureError("it is not signed: with Secure Boot, the firmware refuses it")
                checks.unchecked(name, "it is not signed")
                continue
            signatures = authenticode.verify(data, trusted)
            signers = ", ".join(signature.signer.subject for signature in signatures)
            if any(signature.anchor for signature in signatures):
                checks.ok(name, f"signed by {signers}")
            elif trusted:
                raise SignatureError(f"signed by {signers}, whom no certificate of --db vouches for")
            else:
                checks.unchecked(name, f"signed by {signers}; --db says whom to trust")
