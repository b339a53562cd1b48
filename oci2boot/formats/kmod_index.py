"""The indexes by which modprobe finds modules, `modules.*.bin`: a radix tree. kmod, libkmod/libkmod-index.c."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

MAGIC: Final = 0xB007F457
VERSION: Final = 0x00020001

_PREFIX, _VALUES, _CHILDREN = 0x80000000, 0x40000000, 0x20000000


@dataclass(slots=True)
class _Node:
    prefix: bytes
    children: dict[int, "_Node"] = field(default_factory=dict)
    values: list[tuple[int, bytes]] = field(default_factory=list)

    def insert(self, key: bytes, value: tuple[int, bytes]) -> None:
        node = self
        while True:
            pairs = enumerate(zip(node.prefix, key, strict=False))
            common = next((at for at, (own, other) in pairs if own != other), min(len(node.prefix), len(key)))
            if common < len(node.prefix):
                lower = _Node(node.prefix[common + 1 :], node.children, node.values)
                node.children, node.values = {node.prefix[common]: lower}, []
                node.prefix = node.prefix[:common]
            key = key[common:]
            if not key:
                node.values.append(value)
                node.values.sort(key=lambda pair: pair[0])
                return
            if key[0] not in node.children:
                node.children[key[0]] = _Node(key[1:], values=[value])
                return
            node, key = node.children[key[0]], key[1:]

    def write(self, out: bytearray) -> int:
        """Append the node, its children before it; return where it is, with what it has in the upper bits."""
        first, last = (min(self.children), max(self.children)) if self.children else (0, -1)
        offsets = [self.children[byte].write(out) if byte in self.children else 0 for byte in range(first, last + 1)]
        offset = len(out)
        if self.prefix:
            offset |= _PREFIX
            out += self.prefix + b"\0"
        if offsets:
            offset |= _CHILDREN
            out += struct.pack(f">BB{len(offsets)}I", first, last, *offsets)
        if self.values:
            offset |= _VALUES
            out += struct.pack(">I", len(self.values))
            for priority, value in self.values:
                out += struct.pack(">I", priority) + value + b"\0"
        return offset


def write(entries: Iterable[tuple[bytes, bytes, int]]) -> bytes:
    """Return the index of (key, value, priority), lowest first; keys are ASCII, and short: each byte may be a level."""
    root = _Node(b"")
    for key, value, priority in entries:
        root.insert(key, (priority, value))
    out = bytearray(12)
    struct.pack_into(">III", out, 0, MAGIC, VERSION, root.write(out))
    return bytes(out)
