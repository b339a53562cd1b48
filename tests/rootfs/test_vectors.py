"""Every dump file of `tests/vectors`, against what C mkcomposefs 1.0.8 and composefs-rs 0.3 and 0.9 made of it.

For V0 and V1 the bytes of C decide, for V2 those of composefs-rs 0.9. Each exception is in one of three tables, and
each entry of a table must be needed: a result that is in no table is one that we reproduce, or refuse as well.
"""

import hashlib
import json
from typing import Any

import pytest

from oci2boot.digest import parse_hash
from oci2boot.errors import Error
from oci2boot.formats import fsverity
from oci2boot.rootfs.composefs import build_rootfs
from oci2boot.rootfs.inodes import Version
from oci2boot.tree.dumpfile import parse_dumpfile
from tests.rootfs.dumps import CASES, build
from tests.witness import VECTORS

OCI: dict[str, dict[str, Any]] = json.loads((VECTORS / "oci.json").read_text())
DUMPS: dict[str, str] = {
    name: case["composefs-rs 0.9"]["v1_sha256"]["dump"]
    for name, case in OCI.items()
    if "dump" in case["composefs-rs 0.9"]["v1_sha256"]
}

C = ("c_default", "c_v0", "c_v1")
RUST_03 = ("rust_v2_sha256", "rust_v2_sha512")
RUST_09_V01 = ("rust09_v0_sha256", "rust09_v0_sha512", "rust09_v1_sha256", "rust09_v1_sha512")
RUST_09_V2 = ("rust09_v2_sha256", "rust09_v2_sha512")
V2 = RUST_03 + RUST_09_V2
RUST = RUST_03 + RUST_09_V01 + RUST_09_V2
RUST_SHA256 = tuple(key for key in RUST if key.endswith("sha256"))
ALL = C + RUST

REFUSED = {
    "ext-u64max": (ALL, "no file has 2^64-1 bytes; C's chunk count wraps to 0"),
    "ext-nodigest": (C, "nothing would verify the content"),
    "ext-payload-abs": (
        C + RUST_SHA256,
        "the content is read from PAYLOAD by C, from the digest's path by composefs-rs",
    ),
    "ext-payload-other": (C + RUST_SHA256, "as ext-payload-abs"),
    "ext-payload-and-content": (C + RUST_SHA256, "C takes the content, composefs-rs the payload"),
    "ext-content-and-digest": (C, "C drops the digest, composefs-rs refuses"),
    "ext-upper-digest": (C + RUST_SHA256, "as ext-payload-abs; a digest is lower-case"),
    "name-256": (RUST, "a corrupt directory for the kernel"),
    "hardlink-nlink-wrong": (ALL, "C writes the NLINK of the line, composefs-rs counts the names"),
    "nlink-65536": (ALL, "as hardlink-nlink-wrong"),
    "hardlink-forward": (C, "composefs-dump(5) wants the target first; composefs-rs refuses"),
    "hardlink-relative": (C, "composefs-dump(5) wants a path from the root; composefs-rs refuses"),
    "hardlink-whiteout": (C + RUST_03, "C after 1.0.8 and composefs-rs 0.9 refuse; a whiteout is no inode"),
    "device-rdev64": (C + RUST_03, "the number is cut to 32 bits"),
    "device-size": (ALL, "C lets the SIZE of a device decide the size of its inode"),
    "file-rdev": (C, "composefs-rs refuses; C drops the number"),
    "whiteout": (V2, "V2 leaves a whiteout that hides its own name"),
    "whiteout-many": (V2, "as whiteout"),
    "whiteout-opaque": (V2, "as whiteout"),
    "xattr-big-plus1": (RUST_09_V01, "C refuses more than 32767 bytes of xattrs"),
    "xattr-65535": (RUST_09_V01, "as xattr-big-plus1"),
    "xattr-300": (V2, "composefs-rs writes the count of shared xattrs modulo 256: a corrupt inode"),
    "xattr-dup": (ALL, "C takes the last value, composefs-rs the largest"),
    "xattr-emptykey": (RUST, "no xattr has an empty name; C refuses"),
    "mtime-nsec-overflow": (C + RUST_03, "not a number of nanoseconds; composefs-rs 0.9 refuses"),
    "escape-nul": (C, "C cuts the name at the NUL"),
    "line-nodigest": (C, "a field is missing; composefs-rs refuses"),
    "line-trailsp": (C, "an xattr without a name; composefs-rs refuses"),
    "path-dup": (RUST_03, "one of the two files is lost"),
    "path-dup-dir": (RUST_03, "the first directory's content is lost"),
    "root-twice": (RUST, "one of the two is lost; C refuses"),
    "root-notdir": (RUST, "a file as root; C refuses"),
    "num-neg": (C, "the uid wraps to 2^32-1; composefs-rs refuses"),
    "num-badgid-uid": (C, "the gid `x` becomes 0; composefs-rs refuses"),
    "content-size": (RUST, "SIZE is not the content's size; C refuses"),
}
"""What we refuse and these implementations accept."""

DIFFERENT = {
    "ext-size0": (RUST_09_V01, "C drops the digest of an empty file"),
    "ext-nopayload": (RUST_03, "0.3 loses the size of a sparse file, 0.9 keeps it"),
    "whiteout-opaque": (RUST_09_V01[2:], "0.9 writes the xattr twice where C replaces it"),
    "xattr-many": (RUST_09_V01, "C shares at most 128 xattrs of an inode"),
    "xattr-300": (RUST_09_V01, "as xattr-many; the count is written modulo 256"),
    "acl-prefix": (RUST_09_V01, "0.9 takes names that only begin like an ACL's for one"),
    "mtime-negative-u64": (RUST_09_V01, "0.9 compares seconds as unsigned, so it finds another minimum"),
}
"""What these implementations make other bytes of than the one that decides, whose bytes we make."""

_C_ONLY = (
    *("inline-513", "inline-2047", "inline-2048", "inline-2049", "inline-4096"),
    *("symlink-1025", "symlink-3000", "symlink-4000", "symlink-4060", "symlink-4061", "symlink-4095"),
)
ACCEPTED = {
    **dict.fromkeys(_C_ONLY, (RUST_09_V01, "longer than composefs-rs allows, in a format that C defines")),
    "devices": (RUST_03, "0.3 knows no sockets, 0.9 does"),
    "mtime-negative": (RUST, "composefs-rs wants 2^64-5 for -5"),
    "line-nonutf8": (RUST, "a name is bytes; composefs-rs wants them escaped"),
}
"""What these implementations refuse and we accept, with the bytes of the one that decides where it accepts too."""


def compare(case: dict[str, Any], result: str) -> str:
    """Return how our answer stands to the implementation's."""
    theirs = case[result]
    try:
        ours = build(case, result)
    except Error:
        return "same" if "rejected" in theirs else "refused"
    if "rejected" in theirs:
        return "accepted"
    facts = {"size": len(ours.image), "sha256": hashlib.sha256(ours.image).hexdigest()}
    for algorithm in ("sha256", "sha512"):
        if f"fsverity_{algorithm}" in theirs:
            facts[f"fsverity_{algorithm}"] = str(fsverity.measure(ours.image, parse_hash(algorithm)))
    if "header_composefs_version" in theirs:
        facts["header_composefs_version"] = ours.version
    assert str(ours.digest) in facts.values()
    return "same" if facts == theirs else "different"


def expected(name: str, result: str) -> str:
    verdicts = [
        verdict
        for verdict, table in (("refused", REFUSED), ("different", DIFFERENT), ("accepted", ACCEPTED))
        if name in table and result in table[name][0]
    ]
    assert len(verdicts) <= 1
    return verdicts[0] if verdicts else "same"


@pytest.mark.parametrize("name", CASES)
def test_every_implementation_agrees_or_the_tables_say_why_not(name: str) -> None:
    """P.3, C.24."""
    case = CASES[name]
    results = [key for key, value in case.items() if isinstance(value, dict)]
    assert set(results) == set(ALL)
    assert {key: compare(case, key) for key in results} == {key: expected(name, key) for key in results}


def test_the_tables_name_only_cases_that_exist() -> None:
    assert len(CASES) == 156
    assert (REFUSED.keys() | DIFFERENT.keys() | ACCEPTED.keys()) <= CASES.keys()


OF_LAYERS = {
    ("mtime-neg-gnu", 1): "different",  # as mtime-negative-u64
    ("devices", 2): "refused",  # as whiteout
}


@pytest.mark.parametrize("name", DUMPS)
def test_the_dumps_of_cfsctl_have_the_digests_of_cfsctl(name: str) -> None:
    """C.24: the same tree, as it stood after layers were merged."""
    tree = parse_dumpfile(DUMPS[name].encode())
    versions: tuple[Version, ...] = (1, 2)
    for version in versions:
        said = OCI[name]["composefs-rs 0.9"][f"v{version}_sha256"]["plain"]
        try:
            verdict = "same" if str(build_rootfs(tree, version).digest) == said else "different"
        except Error:
            verdict = "refused"
        assert verdict == OF_LAYERS.get((name, version), "same")
