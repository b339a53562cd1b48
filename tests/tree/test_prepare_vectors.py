"""Every OCI layout of `tests/vectors`: layers to tree, dump and digest, as composefs-rs 0.9 made them."""

from dataclasses import replace
from typing import cast

import pytest

from oci2boot.digest import Hash, parse_hash
from oci2boot.errors import Error, FormatError, ImageError
from oci2boot.formats.file_contexts.specs import Rules
from oci2boot.rootfs.composefs import build_rootfs
from oci2boot.rootfs.inodes import Version
from oci2boot.tree.dumpfile import write_dumpfile
from oci2boot.tree.model import Directory
from oci2boot.tree.prepare import prepare, prepare_for_boot
from oci2boot.tree.selinux import label, load_policy
from tests.tree.vectors import CASES, FORMS, NO_IMAGE, THREE, Layout, expected, is_refused, load

REFUSED: dict[str, tuple[type[Error], str]] = {
    "dotdot": (FormatError, "a path with .."),
    "hardlink-before": (ImageError, "which is not there"),
    "run-file": (ImageError, "/run of the image is not a directory"),
}
"""Layouts that composefs-rs refuses whatever the form, and so do we."""

ACCEPTED = {
    "mtime-neg": "a PAX mtime before 1970 means what it means in base-256, which composefs-rs takes (mtime-neg-gnu)",
}
"""Layouts that composefs-rs 0.9 refuses and we take, with the reason."""

OTHER_IMAGE = {
    (
        "mtime-neg-gnu",
        1,
    ): "times before 1970: in V1, C mkcomposefs decides (dumps.json, mtime-negative-u64), 0.9 differs",
}
"""Layouts whose image in a format version is not that of composefs-rs 0.9, with the reason."""


OTHER_LABELS = {
    "selinux": "its config says `SELINUXTYPE = targeted`; libselinux knows no blank before =, so no policy is named",
}
"""Layouts that get other labels by the rules of libselinux than by those of composefs-rs, with the reason."""

NO_BOOT = 'Error: Directory entry "boot" does not exist'
"""composefs-rs wants /boot and /sysroot in the image; we make the mount points and say so."""


def dump(tree: Directory) -> str:
    return b"".join(write_dumpfile(tree)).decode()


def bootable(layout: Layout, rules: Rules = "libselinux") -> Directory:
    tree = prepare_for_boot(layout.merged, layout.warnings.append)
    return label(tree, load_policy(tree, layout.read, rules))


def test_each_layout_that_composefs_refuses_is_accounted_for() -> None:
    assert len(CASES) == 37
    assert {name for name in CASES if is_refused(name)} == REFUSED.keys() | ACCEPTED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_what_composefs_refuses_is_refused(name: str) -> None:
    family, message = REFUSED[name]
    with pytest.raises(family, match=message):
        prepare(load(name).merged)


@pytest.mark.parametrize("name", [name for name in CASES if not is_refused(name)])
def test_the_dump_of_the_plain_form_is_that_of_composefs(name: str) -> None:
    assert dump(prepare(load(name).merged)) == expected(name, 1, "sha256")["dump"]


@pytest.mark.parametrize(("version", "algorithm"), FORMS)
@pytest.mark.parametrize("name", [name for name in CASES if not is_refused(name)])
def test_the_digest_of_the_plain_form_is_that_of_composefs(name: str, version: Version, algorithm: Hash) -> None:
    tree = prepare(load(name, algorithm).merged)
    if (name, version) in NO_IMAGE:
        with pytest.raises(FormatError):
            build_rootfs(tree, version, algorithm)
        return
    digest = build_rootfs(tree, version, algorithm).digest.hex
    assert (digest == expected(name, version, algorithm)["plain"]) == ((name, version) not in OTHER_IMAGE)


@pytest.mark.parametrize("rules", ["libselinux", "composefs-rs"])
@pytest.mark.parametrize(("version", "algorithm"), FORMS)
@pytest.mark.parametrize("name", [name for name in CASES if not is_refused(name)])
def test_the_digest_of_the_bootable_form_is_that_of_composefs(
    name: str, version: Version, algorithm: Hash, rules: Rules
) -> None:
    layout = load(name, algorithm)
    tree = bootable(layout, rules)
    wanted = expected(name, version, algorithm)["bootable"]
    if isinstance(wanted, dict):
        assert wanted["rejected"] == NO_BOOT
        assert any("the image has no /boot and /sysroot" in warning for warning in layout.warnings)
    elif rules == "libselinux" and name in OTHER_LABELS:
        assert "security.selinux" not in dump(tree)
    else:
        assert build_rootfs(tree, version, algorithm).digest.hex == wanted


@pytest.mark.parametrize("name", [name for name in CASES if not is_refused(name)])
def test_mount_points_that_an_image_lacks_are_made_with_the_mtime_of_usr(name: str) -> None:
    wanted = expected(name, 1, "sha256")
    if not isinstance(wanted["bootable"], dict):
        return
    lines = {line.split(" ")[0]: line for line in wanted["dump"].splitlines()}
    root, usr = lines["/"].split(" "), lines["/usr"].split(" ")
    root[3] = str(int(root[3]) + 2)
    lines["/"] = " ".join(root)
    for made in ("/boot", "/sysroot"):
        lines[made] = f"{made} 0 40755 2 0 0 0 {usr[7]} - - -"
    order = sorted(lines, key=lambda path: path.encode().split(b"/") if path != "/" else [])
    assert dump(bootable(load(name))) == "".join(lines[path] + "\n" for path in order)


def test_a_pax_mtime_before_1970_gives_the_digest_of_the_same_time_in_base256() -> None:
    assert dump(prepare(load("mtime-neg").merged)) == expected("mtime-neg-gnu", 1, "sha256")["dump"]
    for algorithm in ("sha256", "sha512"):
        tree = prepare(load("mtime-neg", parse_hash(algorithm)).merged)
        wanted = expected("mtime-neg-gnu", 2, algorithm)["plain"]
        assert build_rootfs(tree, 2, parse_hash(algorithm)).digest.hex == wanted


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize(
    "name", [name for name in CASES if "rejected" not in CASES[name][THREE]["sha256"] and (name, 2) not in NO_IMAGE]
)
def test_merging_alone_keeps_every_attribute_as_composefs_0_3_does(name: str, algorithm: Hash) -> None:
    merged = load(name, algorithm).merged
    usr = merged.entries[b"usr"]
    tree = Directory(usr.meta, dict(merged.entries))
    if b"run" in tree.entries:
        run = replace(tree.entries[b"run"].meta, mtime=usr.meta.mtime)
        tree = Directory(usr.meta, {**tree.entries, b"run": Directory(run, {})})
    wanted = cast("str", CASES[name][THREE][algorithm]["plain"])
    assert build_rootfs(tree, 2, algorithm).digest.hex == wanted


def test_what_the_image_specification_would_keep_is_named() -> None:
    assert [warning for warning in load("opaque-late").warnings if "image specification" in warning] == [
        (
            "layer 2: /etc/b: removed by a later whiteout of the same layer, as composefs-rs does;"
            " the image specification would keep it"
        )
    ]
    assert ["/f: more than once" in warning for warning in load("dup").warnings] == [True]
