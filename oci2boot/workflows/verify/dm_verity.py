"""A root file system under dm-verity: is every block of it what a UKI promises?

Nothing is taken from the partitions' own word: the root hash is the UKI's, and all data is hashed again.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from oci2boot.boot.roothash import PARTITION_SIZE, parse_partition
from oci2boot.digest import RootHash
from oci2boot.errors import FormatError
from oci2boot.formats import dmverity
from oci2boot.formats.erofs.structs import EROFS_MAGIC, SUPERBLOCK_OFFSET, Superblock
from oci2boot.formats.gpt import Partition
from oci2boot.target.installed import InstalledRoot
from oci2boot.target.opened import OpenedDisk
from oci2boot.target.slots import EMPTY
from oci2boot.target.types import READ_ONLY, ROOT_TYPES, SIGNATURE_TYPES, VERITY_TYPES
from oci2boot.tree.diff import Difference
from oci2boot.workflows.progress import Report, Step
from oci2boot.workflows.verify.checks import Checks
from oci2boot.workflows.verify.contents import Contents, Root, RootSignature, State, read_state
from oci2boot.workflows.verify.erofs_files import FSCK, differences, run_fsck
from oci2boot.workflows.verify.esp import EspFiles
from oci2boot.workflows.verify.manifest import Manifest
from oci2boot.workflows.verify.promises import DevicePromise, Digest, find_starts

_PIECE: Final = 1 << 20
_BLOCK: Final = 4096


def read_verity_disk(disk: OpenedDisk, kind: str, esp: EspFiles | None, checks: Checks, report: Report) -> Contents:
    starts = tuple(find_starts(esp or {}, "verity"))
    promises = [one for start in starts for one in start.promises if isinstance(one, DevicePromise)]
    trees = dict.fromkeys((root_hash, promise.hash_offset) for promise in promises for root_hash in promise.root_hashes)
    roots: dict[Digest, Root] = {}
    for root_hash, offset in trees:
        root = _read_root(disk, root_hash, offset, checks, report)
        # Where two command lines place the tree differently, the worse one counts.
        if root and (root_hash not in roots or roots[root_hash].intact):
            roots[root_hash] = root
    if not trees:
        checks.failed("root file system", "nothing says what it has to be: no UKI here has a root hash")
    _check_attributes(disk, {root_hash for root_hash, _ in trees}, checks)
    return Contents(
        kind=kind,
        mode="verity",
        esp=esp,
        starts=starts,
        roots=roots,
        signatures=tuple(_signatures(disk, checks)),
        state=_read_state(disk, checks),
    )


def _read_root(disk: OpenedDisk, root_hash: RootHash, hash_offset: int, checks: Checks, report: Report) -> Root | None:
    """Hold data and hash tree to the root hash; None where no partition has its GUID."""
    name = f"root file system {root_hash}"
    root = None
    with checks.attempt(name):
        data = find_partition(disk, "root", ROOT_TYPES, root_hash.data_uuid)
        root = Root(intact=False, differences=None)
        tree = data if hash_offset else find_partition(disk, "hash", VERITY_TYPES, root_hash.hash_uuid)
        read_tree = disk.reader(tree)

        def read(offset: int, size: int) -> bytes:
            return read_tree(hash_offset + offset, size)

        area = _read_area(read, root_hash, hash_offset or data.size)
        problems = list(dmverity.check_tree(area, _hash_data(disk, data, area, report), read, root_hash))
        root = replace(root, intact=not problems)
        evidence = f"{area.data_blocks} blocks of {area.parameters.data_block} bytes hashed, and the whole hash tree"
        checks.verdict(name, problems, evidence)
        size = _file_system_size(disk, data)
        root = replace(root, differences=partial(_differences, disk, data, size))
        end = hash_offset + area.size if hash_offset else size
        _check_file_system(disk, data, size, _covered(area), end, checks)
    return root


def _differences(disk: OpenedDisk, part: Partition, size: int, manifest: Manifest) -> Iterable[Difference]:
    return differences(disk.pieces(part, size), manifest)


def _read_area(read: Callable[[int, int], bytes], root_hash: RootHash, size: int) -> dmverity.Area:
    """Return what the superblock says of the hash tree, over data of at most `size` bytes."""
    area = dmverity.read_superblock(read(0, _BLOCK))
    if area.parameters.algorithm != root_hash.algorithm:
        raise FormatError(f"the hash tree is of {area.parameters.algorithm}, the root hash of {root_hash.algorithm}")
    if _covered(area) > size:
        raise FormatError(f"the hash tree covers {_covered(area)} bytes, and there are fewer")
    return area


def _covered(area: dmverity.Area) -> int:
    return area.data_blocks * area.parameters.data_block


def _hash_data(disk: OpenedDisk, data: Partition, area: dmverity.Area, report: Report) -> bytes:
    """Return the leaves of the hash tree that the data has."""
    leaves, done, total = [], 0, _covered(area)
    for piece in disk.pieces(data, total):
        leaves.append(dmverity.hash_blocks(piece, area.parameters, area.parameters.data_block))
        done += len(piece)
        report(Step("data", done, total))
    report(Step("data", total, total, finished=True, note="hashed"))
    return b"".join(leaves)


def find_partition(disk: OpenedDisk, what: str, types: Collection[str], guid: str) -> Partition:
    """Return the one partition of a GUID; the root hash says which."""
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


def _check_file_system(disk: OpenedDisk, part: Partition, size: int, covered: int, end: int, checks: Checks) -> None:
    """Look at what is on the partition: the file system, what of it is guarded, and zeros from `end` on."""
    read, name = disk.reader(part), f"partition {part.number}"
    if covered < size:
        checks.unchecked(name, f"only the first {covered} of the {size} bytes of its file system are guarded")
    behind = next((at for at in range(end, part.size, _PIECE) if any(read(at, _PIECE))), None)
    problems = [] if behind is None else [f"there is something behind the file system, from byte {behind} on"]
    checks.verdict(name, problems, f"EROFS of {size} bytes, and zeros")
    with checks.attempt("EROFS"):
        run_fsck(disk.pieces(part, size))
        checks.ok("EROFS", f"{FSCK} reads every file")


def _check_attributes(disk: OpenedDisk, promised: Collection[RootHash], checks: Checks) -> None:
    guids = {guid for root_hash in promised for guid in (root_hash.data_uuid, root_hash.hash_uuid)}
    failures, seen = [], 0
    for part in disk.of_types(ROOT_TYPES | VERITY_TYPES):
        seen += 1
        if part.guid not in guids:
            checks.unchecked(f"partition {part.number}", f"{part.name or 'it has no name'}: no UKI boots it")
        elif not part.attributes & READ_ONLY:
            failures.append((f"partition {part.number}", "it has no read-only attribute"))
    checks.each(failures, "read-only attributes", f"{seen} partitions")


def _signatures(disk: OpenedDisk, checks: Checks) -> Iterator[RootSignature]:
    """Yield the signatures that lie in partitions of their own."""
    for part in disk.of_types(SIGNATURE_TYPES):
        name = f"partition {part.number}"
        if part.name == EMPTY:
            checks.unchecked(name, f"{EMPTY}: it waits for a signature")
            continue
        with checks.attempt(name):
            yield RootSignature(name, *parse_partition(disk.reader(part)(0, PARTITION_SIZE)))


def _read_state(disk: OpenedDisk, checks: Checks) -> State:
    state = State()
    with checks.attempt("state"):
        fs = disk.state()
        if fs is None:
            checks.ok("state", "the machine keeps nothing that it writes")
        else:
            checks.ok("state", f"ext4 of {fs.superblock.blocks_count} blocks of {fs.block_size} bytes")
            root = InstalledRoot(fs)
            places = (f"/{name.decode(errors='replace')}" for name in sorted(root.listing(b"/state/overlays")))
            state = read_state(root, places, checks)
    return state
