"""A disk whose root file system is under dm-verity: is every block of it what a UKI promises?

Nothing is taken from the partitions' own word: the root hash is the UKI's, and all data is hashed again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from oci2boot.boot.roothash import PARTITION_SIZE, check_root_hash, parse_partition
from oci2boot.boot.sealed import Uki
from oci2boot.boot.verity import VERITYTAB, signature_path
from oci2boot.digest import RootHash
from oci2boot.errors import Error, FormatError
from oci2boot.formats import cmdline, cpio, dmverity, pe
from oci2boot.formats.erofs.structs import EROFS_MAGIC, SUPERBLOCK_OFFSET, Superblock
from oci2boot.formats.gpt import Partition
from oci2boot.formats.x509 import Certificate
from oci2boot.rootfs.verity import DEBUG_ONLY, REQUIRE_SIGNATURES, ROOT_HASH, plain_word
from oci2boot.store.images import Bootable
from oci2boot.sysroot.layout import RECORD
from oci2boot.target.installed import InstalledRoot
from oci2boot.target.opened import OpenedDisk
from oci2boot.target.slots import EMPTY
from oci2boot.target.types import READ_ONLY, ROOT_TYPES, SIGNATURE_TYPES, VERITY_TYPES
from oci2boot.workflows.progress import Report, Step
from oci2boot.workflows.verify.checks import Checks
from oci2boot.workflows.verify.erofs_files import FSCK, fsck_is_missing, run_fsck
from oci2boot.workflows.verify.esp import EspFiles, find_ukis

RECORD_MAX: Final = 1 << 20
_PIECE: Final = 1 << 20
_BLOCK: Final = 4096
_OPTIONS: Final = "systemd.verity_root_options="


@dataclass(frozen=True, slots=True)
class Promise:
    """What one command line of a UKI says of the root file system."""

    uki: str
    root_hash: RootHash
    hash_offset: int = 0
    """Of the hash area, in a partition that it shares with the data; 0 where it has one of its own."""
    signed: bool = False
    """The kernel is to demand a signature."""


@dataclass(frozen=True, slots=True)
class Root:
    """A root file system that a UKI promises."""

    root_hash: RootHash
    partition: Partition
    size: int
    """Bytes of the EROFS image."""
    intact: bool
    """Data and hash tree are those that are promised."""


@dataclass(frozen=True, slots=True)
class Roots:
    found: list[Root]
    records: list[Bootable]
    """What was installed."""


def check_verity_disk(
    disk: OpenedDisk, esp: EspFiles, trusted: Sequence[Certificate], checks: Checks, report: Report
) -> Roots:
    """Check all but the boot files' own signatures."""
    promises = list(_check_ukis(disk, esp, checks))
    by_hash = {promise.root_hash: promise for promise in promises}
    found = [root for promise in by_hash.values() if (root := _check_root(disk, promise, checks, report))]
    if not promises:
        checks.failed("root file system", "nothing says what it has to be: no UKI here has a root hash")
    _check_attributes(disk, {promise.root_hash for promise in promises}, checks)
    _check_signatures(disk, esp, promises, trusted, checks)
    return Roots(found, _check_state(disk, checks))


# What is promised


def _check_ukis(disk: OpenedDisk, esp: EspFiles, checks: Checks) -> Iterator[Promise]:
    here = {part.guid for part in disk.of_types(ROOT_TYPES)}
    for path, uki in find_ukis(esp):
        name = f"UKI {path}"
        with checks.attempt(name):
            if isinstance(uki, Error):
                raise uki
            promises = list(promises_of(path, uki, esp[path]()))
            problems = [
                f"it promises the root hash {promise.root_hash}, and no root partition has its GUID"
                for promise in promises
                if promise.root_hash.data_uuid not in here
            ]
            checks.verdict(name, problems, f"it promises {', '.join(str(one.root_hash) for one in promises)}")
            for addon in uki.addons:
                if decisive := addon.decisive():
                    checks.unchecked(f"addon {addon.name} of {path}", decisive)
            yield from promises


def promises_of(path: str, uki: Uki, data: bytes) -> Iterator[Promise]:
    """Yield what each command line promises; `FormatError` for one that does not, or for two at once."""
    added = [word for addon in uki.addons for word in cmdline.split(addon.cmdline)]
    for line in uki.cmdlines:
        words = [plain_word(word) for word in (*cmdline.split(line), *added)]
        hashes = [word.partition("=")[2] for word in words if word.startswith(f"{ROOT_HASH}=")]
        options = [
            option for word in words if word.startswith(_OPTIONS) for option in word.removeprefix(_OPTIONS).split(",")
        ]
        if not hashes:
            fields = _veritytab(data)
            hashes, options = fields[3:4], (fields[4].split(",") if len(fields) > 4 else [])
        if len(hashes) != 1:
            said = f"{len(hashes)} root hashes" if hashes else "no root hash: signed, it boots any root file system"
            raise FormatError(f"its command line has {said}")
        if found := DEBUG_ONLY.intersection(options):
            raise FormatError(f"its option {', '.join(found)} makes verification a remark in the log")
        offset = next((option.partition("=")[2] for option in options if option.startswith("hash-offset=")), "0")
        if not offset.isdecimal() or len(offset) > 18:
            raise FormatError(f"its hash tree begins at {offset[:40]!r}")
        yield Promise(path, RootHash.parse(hashes[0]), int(offset), REQUIRE_SIGNATURES in words)


def _veritytab(uki: bytes) -> list[str]:
    """Return the fields of the root's line in the initramfs's table; nothing where there is none. veritytab(5)"""
    for section in pe.parse(uki).sections_named(b".initrd"):
        found = cpio.read(bytes(pe.contents(uki, section)), lambda path: path == VERITYTAB).get(VERITYTAB)
        if found and found.content is not None:
            lines = [line.split() for line in found.content.decode(errors="replace").splitlines()]
            return next((fields for fields in lines if fields[:1] == ["root"]), [])
    return []


# What is there


def _check_root(disk: OpenedDisk, promise: Promise, checks: Checks, report: Report) -> Root | None:
    """Hold data and hash tree to the root hash; return what there is at all."""
    root_hash = promise.root_hash
    name = f"root file system {root_hash}"
    with checks.attempt(name):
        data = _partition(disk, "root", ROOT_TYPES, root_hash.data_uuid)
        tree = data if promise.hash_offset else _partition(disk, "hash", VERITY_TYPES, root_hash.hash_uuid)
        read_tree = disk.reader(tree)

        def read(offset: int, size: int) -> bytes:
            return read_tree(promise.hash_offset + offset, size)

        area = dmverity.read_superblock(read(0, _BLOCK))
        if area.parameters.algorithm != root_hash.algorithm:
            raise FormatError(
                f"the hash tree is of {area.parameters.algorithm}, the root hash of {root_hash.algorithm}"
            )
        covered = area.data_blocks * area.parameters.data_block
        if covered > (promise.hash_offset or data.size):
            raise FormatError(f"the hash tree covers {covered} bytes, and there are fewer")
        leaves = []
        done = 0
        for piece in disk.pieces(data, covered):
            leaves.append(dmverity.hash_blocks(piece, area.parameters, area.parameters.data_block))
            done += len(piece)
            report(Step("data", done, covered))
        problems = list(dmverity.check_tree(area, b"".join(leaves), read, root_hash))
        evidence = f"{area.data_blocks} blocks of {area.parameters.data_block} bytes hashed, and the whole hash tree"
        checks.verdict(name, problems, evidence)
        report(Step("data", covered, covered, finished=True, note="hashed"))
        end = promise.hash_offset + area.size if promise.hash_offset else None
        size = _file_system_size(disk, data)
        _check_file_system(disk, data, size, covered, end, checks)
        return Root(root_hash, data, size, intact=not problems)
    return None


def _partition(disk: OpenedDisk, what: str, types: frozenset[str], guid: str) -> Partition:
    found = [part for part in disk.of_types(types) if part.guid == guid]
    if len(found) != 1:
        raise FormatError(f"{len(found) or 'no'} {what} partition has the GUID {guid}")
    return found[0]


def _file_system_size(disk: OpenedDisk, part: Partition) -> int:
    superblock = Superblock.unpack(disk.reader(part)(SUPERBLOCK_OFFSET, Superblock.layout().size))
    size = superblock.blocks << superblock.blkszbits
    if superblock.magic != EROFS_MAGIC or not 0 < size <= part.size:
        raise FormatError("there is no EROFS that fits into the partition")
    return size


def _check_file_system(
    disk: OpenedDisk, part: Partition, size: int, covered: int, end: int | None, checks: Checks
) -> None:
    """Look at what is on the partition: the file system, what of it is guarded, and zeros from `end` on."""
    read, name = disk.reader(part), f"partition {part.number}"
    if covered < size:
        checks.unchecked(name, f"only the first {covered} of the {size} bytes of its file system are guarded")
    behind = next((at for at in range(end or size, part.size, _PIECE) if any(read(at, _PIECE))), None)
    problems = [] if behind is None else [f"there is something behind the file system, from byte {behind} on"]
    checks.verdict(name, problems, f"EROFS of {size} bytes, and zeros")
    with checks.attempt("EROFS"):
        if reason := fsck_is_missing():
            checks.unchecked("EROFS", reason)
        else:
            run_fsck(disk.pieces(part, size))
            checks.ok("EROFS", f"{FSCK} reads every file")


def _check_attributes(disk: OpenedDisk, promised: set[RootHash], checks: Checks) -> None:
    guids = {guid for root_hash in promised for guid in (root_hash.data_uuid, root_hash.hash_uuid)}
    failures, seen = [], 0
    for part in disk.of_types(ROOT_TYPES | VERITY_TYPES):
        seen += 1
        if part.guid not in guids:
            checks.unchecked(f"partition {part.number}", f"{part.name or 'it has no name'}: no UKI boots it")
        elif not part.attributes & READ_ONLY:
            failures.append((f"partition {part.number}", "it has no read-only attribute"))
    checks.each(failures, "read-only attributes", f"{seen} partitions")


# Who signed


def _check_signatures(
    disk: OpenedDisk, esp: EspFiles, promises: Sequence[Promise], trusted: Sequence[Certificate], checks: Checks
) -> None:
    """Check the signature that the initramfs hands to the kernel, on the ESP, and that of the partition for it."""
    found: list[tuple[str, RootHash, bytes]] = []
    for promise in promises:
        path = signature_path(promise.uki)
        if path in esp:
            found.append((path, promise.root_hash, esp[path]()))
        elif promise.signed:
            checks.failed(f"signature {path}", "the kernel is to demand it, and it is not there")
    for part in disk.of_types(SIGNATURE_TYPES):
        name = f"partition {part.number}"
        if part.name == EMPTY:
            checks.unchecked(name, f"{EMPTY}: it waits for a signature")
            continue
        with checks.attempt(name):
            root_hash, signature = parse_partition(disk.reader(part)(0, PARTITION_SIZE))
            if any(root_hash == promise.root_hash for promise in promises):
                found.append((name, root_hash, signature))
            else:
                checks.failed(name, f"it has the signature of the root hash {root_hash}, which no UKI promises")
    for place, root_hash, signature in found:
        name = f"signature {place}"
        with checks.attempt(name):
            signer = check_root_hash(root_hash, signature, trusted)
            said = f"the root hash {root_hash} is signed by {signer.subject}"
            checks.ok(name, said) if trusted else checks.unchecked(name, f"{said}; --db says whom to trust")
    if not found and not any(promise.signed for promise in promises):
        checks.unchecked("signature of the root hash", "there is none: it is as good as the UKI that promises it")


# What the machine writes


def _check_state(disk: OpenedDisk, checks: Checks) -> list[Bootable]:
    records: list[Bootable] = []
    with checks.attempt("state"):
        fs = disk.state()
        if fs is None:
            checks.ok("state", "the machine keeps nothing that it writes")
            return records
        checks.ok("state", f"ext4 of {fs.superblock.blocks_count} blocks of {fs.block_size} bytes")
        root = InstalledRoot(fs)
        for name in sorted(root.listing(b"/state/deploy")):
            number = root.find(b"/state/deploy/" + name + b"/" + RECORD)
            if number is not None:
                with checks.attempt(f"record {name.decode(errors='replace')}"):
                    records.append(Bootable.parse(root.content(number, RECORD_MAX)))
        for name in sorted(root.listing(b"/state/overlays")):
            shown = f"/{name.decode(errors='replace')}"
            checks.unchecked(shown, "what the machine changed there is written and read unverified")
    return records
