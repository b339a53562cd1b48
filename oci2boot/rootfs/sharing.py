"""Second step of a composefs image: the xattr area of each inode, and the table of xattrs that several inodes share."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from oci2boot.digest import Hash, VerityDigest
from oci2boot.errors import FormatError, LimitError
from oci2boot.formats.erofs import xattrs
from oci2boot.rootfs import overlay
from oci2boot.rootfs.inodes import LIMITS, Area, Node, Pair, Pairs, Version

_SHARED_MAX: Final = 128
"""C mkcomposefs writes an inode's further shareable xattrs into the inode itself."""
_CONTENT: Final = (overlay.METACOPY, overlay.REDIRECT)
_DIGEST_SIZE: Final = {"sha256": 32, "sha512": 64}
_ACL: Final = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))


class Sharing:
    """Plans the areas of `nodes`, setting `node.area`; `encode` fills them once the table's place is known."""

    def __init__(self, nodes: list[Node], version: Version, algorithm: Hash) -> None:
        self._version = version
        self._areas: dict[tuple[Pairs, bytes | None], Area] = {}
        self._split: dict[bytes, tuple[int, bytes]] = {}
        dummy = VerityDigest(algorithm, bytes(_DIGEST_SIZE[algorithm]))

        natives = self._native_pairs(nodes)
        owners = Counter(node.digest.raw for node in nodes if node.digest)
        counts: Counter[Pair] = Counter()
        for pairs, count in Counter(natives).items():
            counts.update(dict.fromkeys(pairs, count))
        for raw, count in owners.items():
            if count > 1:
                counts.update(dict.fromkeys(_content_pairs(VerityDigest(algorithm, raw)), count))
        self._is_shared = {pair for pair, count in counts.items() if count > 1}
        for node, pairs in zip(nodes, natives, strict=True):
            digest = node.digest
            if digest is None:
                key: bytes | None = None
            elif owners[digest.raw] > 1:
                key = digest.raw
            else:
                key, digest = b"", dummy
            area = self._areas.get((pairs, key))
            if area is None:
                area = self._areas[pairs, key] = self._plan(self._in_order(pairs, digest), template=key == b"")
            node.area = area

        self.table = sorted(self._is_shared, key=self._table_key, reverse=version != 2)
        self.table_size = sum(xattrs.entry_size(self._split_name(name)[1], value) for name, value in self.table)
        self.has_acl = any(name in _ACL for pairs in set(natives) for name, _ in pairs)

    def _native_pairs(self, nodes: list[Node]) -> list[Pairs]:
        """Return each node's xattrs except where its content is: (escaped name, value) in order of original name."""
        known: dict[int, Pairs] = {}
        interned: dict[Pairs, Pairs] = {}
        natives = []
        for node in nodes:
            original = node.meta.xattrs
            if node.marks or node.sparse:
                content = {overlay.METACOPY: b""} if node.sparse else {}
                pairs = tuple({**content, **dict(_escaped(original)), **node.marks}.items())
            else:
                found = known.get(id(original))
                if found is not None:
                    natives.append(found)
                    continue
                pairs = _escaped(original)
                known[id(original)] = pairs = interned.setdefault(pairs, pairs)
            natives.append(pairs)
        return natives

    def _in_order(self, pairs: Pairs, digest: VerityDigest | None) -> Pairs:
        content = _content_pairs(digest) if digest else ()
        return content + pairs if self._version == 2 else tuple(sorted(content + pairs))

    def _plan(self, pairs: Pairs, *, template: bool) -> Area:
        if not pairs:
            return Area(template, pairs, [], [], 0, 0)
        limit = LIMITS[self._version].xattrs
        total = 12
        for name, value in pairs:
            if not 0 < len(name) <= xattrs.NAME_MAX or b"\0" in name or len(value) > xattrs.VALUE_MAX:
                raise FormatError(f"the xattr {name[:300]!r} with a value of {len(value)} bytes cannot be stored")
            total += 7 + len(name) + len(value)
        # A real digest may be all zeros too, and shared: the template's is neither.
        own = _CONTENT if template else ()
        shared = [pair for pair in pairs if pair in self._is_shared and pair[0] not in own]
        if self._version != 2:
            shared = shared[:_SHARED_MAX]
        chosen = set(shared)
        inline = [pair for pair in pairs if pair not in chosen]
        size = xattrs.HEADER_SIZE + 4 * len(shared)
        size += sum(xattrs.entry_size(self._split_name(name)[1], value) for name, value in inline)
        if total > limit:
            raise LimitError(f"the xattrs of an inode are {total} bytes, format V{self._version} has {limit}")
        if len(shared) > xattrs.SHARED_COUNT_MAX:
            raise LimitError(f"an inode has {len(shared)} shared xattrs, format V2 can count {xattrs.SHARED_COUNT_MAX}")
        return Area(template, pairs, shared, inline, size, xattrs.icount(size))

    def _split_name(self, name: bytes) -> tuple[int, bytes]:
        known = self._split.get(name)
        if known is None:
            known = self._split[name] = xattrs.split_name(name, lustre=self._version == 2)
        return known

    def _table_key(self, pair: Pair) -> tuple[object, ...]:
        name, value = pair
        return (*self._split_name(name), value) if self._version == 2 else (name, len(value), value)

    def encode(self, table_offset: int) -> bytes:
        """Fill every area's `encoded`, the table standing at `table_offset` in the image; return the table."""
        # V0 and V1 count from the table's block (xattr_blkaddr), V2 from the start of the image.
        at = table_offset if self._version == 2 else table_offset % 4096
        entries = []
        ids: dict[Pair, int] = {}
        for name, value in self.table:
            ids[name, value] = at // 4
            entry = xattrs.encode_entry(*self._split_name(name), value)
            entries.append(entry)
            at += len(entry)
        for area in self._areas.values():
            if area.pairs:
                self._encode_area(area, ids)
        return b"".join(entries)

    def _encode_area(self, area: Area, ids: Mapping[Pair, int]) -> None:
        parts = [
            xattrs.encode_header([self._split_name(name) for name, _ in area.pairs], [ids[p] for p in area.shared])
        ]
        at = len(parts[0])
        for name, value in area.inline:
            entry = xattrs.encode_entry(*self._split_name(name), value)
            parts.append(entry)
            value_at = at + xattrs.ENTRY_SIZE + len(self._split_name(name)[1])
            if name == overlay.METACOPY:
                area.digest_at = value_at + overlay.METACOPY_HEAD
            elif name == overlay.REDIRECT:
                area.redirect_at = value_at
            at += len(entry)
        area.encoded = b"".join(parts)


def _escaped(original: Mapping[bytes, bytes]) -> Pairs:
    return tuple([(overlay.escape(name), value) for name, value in sorted(original.items())])


def _content_pairs(digest: VerityDigest) -> Pairs:
    return (overlay.METACOPY, overlay.metacopy(digest)), (overlay.REDIRECT, overlay.redirect(digest))
