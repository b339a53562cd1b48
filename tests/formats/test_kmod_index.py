"""modprobe's indexes, against those that depmod makes of Debian's kernel."""

from hypothesis import given
from hypothesis import strategies as st

from oci2boot.formats import kmod_index
from tests.boot.debian import kernel


def test_the_index_is_depmods() -> None:
    """More than a thousand modules; those in modules.order come first, in that order."""
    version, files = kernel()
    modules = files / "usr/lib/modules" / version
    order = {line.partition(".ko")[0]: at for at, line in enumerate((modules / "modules.order").read_text().split())}
    entries = []
    for line in (modules / "modules.dep").read_text().splitlines():
        path = line.partition(":")[0].partition(".ko")[0]
        name = path.rpartition("/")[2].replace("-", "_")
        entries.append((name.encode(), line.encode(), order[path]))
    assert len(entries) > 1000
    assert kmod_index.write(entries) == (modules / "modules.dep.bin").read_bytes()


@given(st.sets(st.text("ab*_", min_size=1, max_size=8), max_size=30))
def test_each_key_is_found(keys: set[str]) -> None:
    index = kmod_index.write((key.encode(), key.encode(), 0) for key in sorted(keys))
    assert {key for key, _ in walk(index, int.from_bytes(index[8:12], "big"))} == keys


def walk(index: bytes, offset: int) -> list[tuple[str, bytes]]:
    """Read a tree as libkmod-index.c does."""
    at, prefix, found = offset & 0x0FFFFFFF, b"", []
    if offset & 0x80000000:
        end = index.index(b"\0", at)
        prefix, at = index[at:end], end + 1
    children = []
    if offset & 0x20000000:
        first, last = index[at], index[at + 1]
        at += 2
        for byte in range(first, last + 1):
            child = int.from_bytes(index[at : at + 4], "big")
            at += 4
            if child:
                children.append((bytes([byte]), child))
    if offset & 0x40000000:
        count = int.from_bytes(index[at : at + 4], "big")
        at += 4
        for _ in range(count):
            end = index.index(b"\0", at + 4)
            found.append((prefix.decode(), index[at + 4 : end]))
            at = end + 1
    for step, child in children:
        found += [((prefix + step).decode() + key, value) for key, value in walk(index, child)]
    return found
