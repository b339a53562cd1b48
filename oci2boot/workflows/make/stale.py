"""Why a UKI does not promise the image that it is in: the path and the field that changed, or the rule.

It is asked only where a UKI is refused, so it may take its time.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from oci2boot.boot.sealed import Uki
from oci2boot.boot.uki_layer import MAX_SHIPPED, shipped_path
from oci2boot.digest import VerityDigest
from oci2boot.errors import Error
from oci2boot.formats.fsverity import measure
from oci2boot.rootfs.reader import read_rootfs
from oci2boot.store.layers import read_layer
from oci2boot.store.repository import Repository
from oci2boot.tree.diff import compare, describe, first_of
from oci2boot.tree.files import read_file
from oci2boot.tree.merge import merge
from oci2boot.tree.model import Directory
from oci2boot.workflows.make.rules import Rules, Workbench
from oci2boot.workflows.make.unpack import Unpacked, object_reader, renamer

NAMED: Final = 3
"""Differences that are told; the others are counted."""


class Stale:
    """Asks `explain`'s workbench; called with a UKI, it says what is known, nothing where that is nothing."""

    def __init__(self, unpacked: Unpacked, bench: Workbench, repository: Repository) -> None:
        self._unpacked = unpacked
        self._bench = bench
        self._repository = repository

    def __call__(self, uki: Uki) -> str:
        layer = self._unpacked.uki_layers.above(uki.path)
        promised = [argument.digest for argument in uki.about_composefs]
        for theirs, rules in self._promised_trees(uki, promised):
            if said := self._differences(theirs, rules):
                return "; ".join(filter(None, (layer, said)))
        if other := self._bench.search(promised, _ignore):
            told = [f"{name} {theirs} there, {ours} here" for name, ours, theirs in self._bench.own.differences(other)]
            return f"the tree is the same, and was measured by other rules: {', '.join(told)}"
        return layer or "no rule set gives its digest: other files were measured, or their times were other ones"

    def _promised_trees(self, uki: Uki, promised: list[VerityDigest]) -> Iterator[tuple[Directory, Rules]]:
        """Yield trees that the UKI promises, in the form of these rules: the layers up to its own, what it ships."""
        if origin := self._unpacked.uki_layers.origins.get(uki.path):
            # A layer may bring the UKI and, besides, what makes it stale.
            for last in (origin, origin - 1):
                with suppress(Error):  # layers that alone are no system
                    yield from self._lower(self._merged(last), promised)
        read = object_reader(self._repository)
        for digest in promised:
            with suppress(Error):
                shipped = read_file(self._unpacked.tree, read, shipped_path(digest), MAX_SHIPPED)
                if shipped is not None and measure(shipped, digest.algorithm) == digest:
                    yield read_rootfs(shipped), self._bench.own

    def _merged(self, last: int) -> Directory:
        oci, left_out = self._unpacked.oci, self._unpacked.uki_layers.left_out
        assert oci
        below = [one for number, one in enumerate(oci.diff_ids, 1) if number <= last and number not in left_out]
        return merge((list(read_layer(self._repository, one)) for one in below), _ignore)

    def _lower(self, tree: Directory, promised: list[VerityDigest]) -> Iterator[tuple[Directory, Rules]]:
        bench = Workbench(tree, self._bench.own, object_reader(self._repository), renamer(self._repository))
        if rules := bench.search(promised, _ignore):
            # Contents are named by the store's hash on both sides.
            rules = replace(rules, hash=self._bench.own.hash)
            yield bench.tree(rules), rules

    def _differences(self, theirs: Directory, rules: Rules) -> str:
        algorithm = self._bench.own.hash
        found = compare(describe(theirs, algorithm), describe(self._bench.tree(rules), algorithm))
        first, more = first_of(found, NAMED)
        told = [f"{one.path}: {one.field}: promised {one.a}, found {one.b}" for one in first]
        return "; ".join(told) + (f"; and {more} more differences" if more else "")


def _ignore(_: object) -> None:
    pass
