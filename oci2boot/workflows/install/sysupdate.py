"""What systemd-sysupdate needs to bring an image to the slots of machines: transfer definitions, and the files by
the names that they match. sysupdate.d(5), systemd-sysupdate(8).
"""

import hashlib
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from oci2boot.boot.names import EXTRA, MAX_UKI, RECORD, TRIES
from oci2boot.errors import TargetError
from oci2boot.rootfs.dmverity import SIGNATURE_NAME
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.images import Bootable, find_image
from oci2boot.store.repository import Repository
from oci2boot.system.files import (
    atomic_file,
    half_written,
    make_directories,
    plain_errors,
    read_limited,
    write_atomically,
)
from oci2boot.target.images import Image
from oci2boot.target.slots import SUFFIXES, kind, labels
from oci2boot.workflows.images import image_names
from oci2boot.workflows.install.slots import check_slots, record_bytes
from oci2boot.workflows.install.verity_disk import image_partitions
from oci2boot.workflows.make.canonical import reader
from oci2boot.workflows.make.payload import os_release_of
from oci2boot.workflows.options import Option
from oci2boot.workflows.progress import Report, Told, Warned
from oci2boot.workflows.requests import Repo

DEFINITIONS: Final = "sysupdate.d"
SUMS: Final = "SHA256SUMS"
Packing = Literal["xz", "none"]
Suffix = Literal["transfer", "conf"]
"""Of definitions: systemd before 257 reads `.conf` alone."""

_TYPES: Final = ("root", "root-verity", "root-verity-sig")
_NUMBERS: Final = (50, 51, 52)
_CHUNK: Final = 1 << 20
SUMS_MAX: Final = 16 << 20
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.~^+-]*")
_UNPACKED: Final = (f"{EXTRA}/{SIGNATURE_NAME}", f"{EXTRA}/{RECORD}")
"""What lies beside a UKI, by what follows its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SysupdateRequest:
    output: Annotated[Path, Option("DIRECTORY", "folder for the files; those of other versions stay")]
    source: Annotated[str, Option("--source", "where machines find the files: https://…", metavar="URL|DIR")]
    name: Annotated[str | None, Option("--image", "a converted image", complete=image_names)] = None
    packing: Annotated[Packing, Option("--packing", "compression of what goes into partitions")] = "xz"
    suffix: Annotated[Suffix, Option("--suffix", "ending of the definitions' names; before systemd 257 it is conf")] = (
        "transfer"
    )
    repo: Repo


@dataclass(frozen=True, slots=True)
class Published:
    version: str
    files: dict[str, str]
    """Names, and SHA-256 in hex digits."""
    definitions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "files": self.files, "definitions": list(self.definitions)}


def publish(request: SysupdateRequest, report: Report) -> Published:
    """Write files and definitions for an image; files of other versions stay, and are in the list of hashes."""
    with (
        Repository.open(request.repo) as repository,
        plain_errors(TargetError, f"write {request.output}"),
        half_written(request.output),
    ):
        bootable = find_image(repository, request.name)
        record, root_hash, uki = check_slots(bootable)
        stem = Path(uki).stem
        name, _, version = stem.rpartition("_")
        images = labels(stem, image_partitions(repository, bootable, record, root_hash.raw, None))
        if not name or not _VERSION.fullmatch(version) or images[0].label != stem:
            raise TargetError(
                f"{stem} cannot be the label of a partition with a version that systemd-sysupdate reads",
                hint="a version has letters, digits and .~^+-, and both together at most 25 characters",
            )
        protect = _image_version(repository, bootable) == version
        if not protect:
            report(Warned(f"os-release has no IMAGE_VERSION={version}: a rollback may be overwritten by an update"))
        make_directories(request.output)
        written: dict[str, str] = {}
        for image in images:
            target = f"{name}_{version}_{image.guid}.{_TYPES[kind(image.type)]}.raw"
            written |= _pack(request, target, _pieces(image))
        parts = {path: repository.read_object(digest, MAX_UKI) for path, digest in bootable.esp.items()}
        parts[f"{uki}{EXTRA}/{RECORD}"] = record_bytes(bootable)
        for path, data in parts.items():
            if path.startswith(uki):
                write_atomically(request.output / _flat(f"{stem}.efi", path.removeprefix(uki)), data)
                written[_flat(f"{stem}.efi", path.removeprefix(uki))] = hashlib.sha256(data).hexdigest()
        beside = [suffix for suffix in _UNPACKED if f"{uki}{suffix}" in parts]
        definitions = dict(_definitions(request, name, images, beside, protect=protect))
        make_directories(request.output / DEFINITIONS)
        for file, text in definitions.items():
            write_atomically(request.output / DEFINITIONS / file, text.encode())
        _write_sums(request.output, written)
    report(Told(f"version {version}; {SUMS} wants a signature: gpg --detach-sign {SUMS} makes {SUMS}.gpg"))
    return Published(version, written, tuple(definitions))


def _image_version(repository: Repository, bootable: Bootable) -> str | None:
    tree = read_rootfs(repository.read_object(bootable.root.tree))
    release = os_release_of(tree, reader(lambda content: repository.read_object(content.digest)))
    return release.get("IMAGE_VERSION")


def _flat(uki: str, suffix: str) -> str:
    """Return the name of a file beside a UKI, in a directory without others."""
    return f"{uki}{suffix}".replace("/", ".") if suffix else uki


def _pieces(image: Image) -> Iterator[bytes]:
    at = 0
    for part in image.parts:
        yield bytes(part.offset - at)
        if isinstance(part.source, bytes):
            yield part.source
        else:
            with part.source.path.open("rb") as file:
                while piece := file.read(_CHUNK):
                    yield piece
        at = part.end
    yield bytes(-at % 512)


def _pack(request: SysupdateRequest, name: str, pieces: Iterator[bytes]) -> dict[str, str]:
    packer = lzma.LZMACompressor(preset=1) if request.packing == "xz" else None
    name = f"{name}.xz" if packer else name
    hasher = hashlib.sha256()
    with atomic_file(request.output / name) as file:
        for piece in pieces:
            data = packer.compress(piece) if packer else piece
            hasher.update(data)
            file.write(data)
        if packer:
            data = packer.flush()
            hasher.update(data)
            file.write(data)
    return {name: hasher.hexdigest()}


def _definitions(
    request: SysupdateRequest, name: str, images: list[Image], beside: list[str], *, protect: bool
) -> Iterator[tuple[str, str]]:
    head = "[Transfer]\n" + ("ProtectVersion=%A\n" if protect else "")
    kind_of_source = "url-file" if "://" in request.source else "regular-file"
    packed = ".xz" if request.packing == "xz" else ""

    def definition(pattern: str, target: str) -> str:
        source = f"[Source]\nType={kind_of_source}\nPath={request.source}\nMatchPattern={pattern}\n"
        return f"{head}\n{source}\n[Target]\n{target}InstancesMax=2\n"

    for image in images:
        number = kind(image.type)
        yield (
            f"{_NUMBERS[number]}-{_TYPES[number]}.{request.suffix}",
            definition(
                f"{name}_@v_@u.{_TYPES[number]}.raw{packed}",
                f"Type=partition\nPath=auto\nMatchPattern={name}_@v{SUFFIXES[number]}\n"
                f"MatchPartitionType={_TYPES[number]}\n" + ("ReadOnly=1\n" if image.attributes else ""),
            ),
        )
    place = "Type=regular-file\nPath=/EFI/Linux\nPathRelativeTo=boot\nMode=0444\n"
    for number, suffix in enumerate(beside, 60):
        own = suffix.rpartition("/")[2].partition(".")[0]
        pattern = f"MatchPattern={name}_@v.efi{suffix}\n"
        yield f"{number}-{own}.{request.suffix}", definition(_flat(f"{name}_@v.efi", suffix), place + pattern)
    patterns = " ".join(f"{name}_@v{counter}.efi" for counter in ("+@l-@d", "+@l", ""))
    counted = f"MatchPattern={patterns}\nTriesLeft={TRIES}\nTriesDone=0\n"
    yield f"70-uki.{request.suffix}", definition(f"{name}_@v.efi", place + counted)


def _write_sums(output: Path, written: dict[str, str]) -> None:
    path = output / SUMS
    kept = {}
    if path.is_file():
        for line in read_limited(path, SUMS_MAX, TargetError).decode(errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            if (output / name).is_file():
                kept[name] = digest
    lines = [f"{digest}  {name}\n" for name, digest in sorted((kept | written).items())]
    write_atomically(path, "".join(lines).encode())
