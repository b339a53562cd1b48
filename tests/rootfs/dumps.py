"""The dump files of `tests/vectors`, and what we make of them."""

import json
from typing import Any

from oci2boot.digest import parse_hash
from oci2boot.rootfs.composefs import Rootfs, build_rootfs, default_c_version
from oci2boot.rootfs.inodes import Version
from oci2boot.tree.dumpfile import parse_dumpfile
from tests.witness import VECTORS

CASES: dict[str, dict[str, Any]] = json.loads((VECTORS / "dumps.json").read_text())["cases"]


def build(case: dict[str, Any], result: str) -> Rootfs:
    algorithm = parse_hash("sha512" if result.endswith("sha512") else "sha256")
    dump = case.get("dump_sha512", case["dump"]) if algorithm == "sha512" else case["dump"]
    tree = parse_dumpfile((VECTORS / dump).read_bytes(), algorithm)
    versions: dict[str, Version] = {"v0": 0, "v1": 1, "v2": 2}
    version = default_c_version(tree) if result == "c_default" else versions[result.split("_")[1]]
    return build_rootfs(tree, version, algorithm)
