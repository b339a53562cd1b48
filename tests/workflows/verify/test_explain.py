"""Why digests differ. B.3. The digests to be explained are those that composefs-rs and mkcomposefs gave."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import Error
from oci2boot.tree.dumpfile import write_dumpfile
from oci2boot.tree.prepare import prepare_for_boot
from oci2boot.workflows.make.convert import convert
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import ConvertRequest
from oci2boot.workflows.sources import parse_source
from oci2boot.workflows.verify.explain import Explained, ExplainRequest, explain
from tests.tarballs import file
from tests.tree.vectors import CASES, FORMS, NINE, NO_IMAGE, THREE, is_refused, load
from tests.witness import VECTORS, program
from tests.workflows.disks import Demo, installed, layers
from tests.workflows.sealable import uki

DUMPS = json.loads((VECTORS / "dumps.json").read_text())
LAYOUTS = [name for name in CASES if not is_refused(name) and (name, 2) not in NO_IMAGE]


def explained(a: object, b: object, repo: Path = Path("/nonexistent")) -> Explained:
    return explain(ExplainRequest(str(a), str(b), repo), silent)


def rules(found: Explained) -> dict[str, tuple[str, str]]:
    assert found.verdict == "rules"
    return {rule: (a, b) for rule, a, b in found.rules}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_plain_digest_of_format_2_is_explained(name: str) -> None:
    source = f"oci:{VECTORS}/oci/{name}:v"
    found = rules(explained(source, CASES[name][NINE]["v2_sha256"]["plain"]))
    assert found == {"EROFS format": ("V1", "V2"), "form": ("bootable", "plain")}


@pytest.mark.parametrize(("version", "algorithm"), FORMS)
@pytest.mark.parametrize("form", ["plain", "bootable"])
def test_each_digest_of_a_layout_is_explained_either_way(version: int, algorithm: str, form: str) -> None:
    source, digest = f"oci:{VECTORS}/oci/boot-sysroot:v", CASES["boot-sysroot"][NINE][f"v{version}_{algorithm}"][form]
    expected = {"EROFS format": ("V1", "V2")} if version == 2 else {}
    if form == "plain":
        expected["form"] = ("bootable", "plain")
    if not expected:
        assert explained(source, digest).verdict == "equal"
        return
    assert rules(explained(source, digest)) == expected
    assert rules(explained(digest, source)) == {rule: (b, a) for rule, (a, b) in expected.items()}


def test_labels_by_the_rules_of_composefs_rs_are_explained() -> None:
    """The vector's config says `SELINUXTYPE = targeted`, which libselinux takes for no policy."""
    found = rules(explained(f"oci:{VECTORS}/oci/selinux:v", CASES["selinux"][NINE]["v1_sha256"]["bootable"]))
    assert found == {"SELinux labels": ("libselinux", "composefs-rs")}


def test_a_digest_of_format_0_is_explained() -> None:
    digest = DUMPS["cases"]["mixed-big"]["c_v0"]["fsverity_sha256"]
    found = explained(f"dumpfile:{VECTORS}/dumps/mixed-big.dump", digest)
    assert rules(found) == {"EROFS format": ("V1", "V0")}


def mkcomposefs(dump: str, folder: Path) -> str:
    """Return the digest by composefs-rs's mkcomposefs."""
    tool, path = folder / "mkcomposefs", folder / "witness.dump"
    if not tool.exists():
        tool.symlink_to(program("cfsctl"))
    path.write_text(dump)
    words: list[str | Path] = ["--from-file", "--min-version=1", "--print-digest-only", path]
    return subprocess.run([tool, *words], check=True, capture_output=True, text=True).stdout.strip()


NANOSECONDS = """\
/ 0 40755 3 0 0 0 5.7 - - -
/usr 0 40755 2 0 0 0 5.7 - - -
/usr/file 5 100644 1 0 0 0 5.999 - hello -
"""


def test_times_cut_to_seconds_are_explained(tmp_path: Path) -> None:
    dump = tmp_path / "tree.dump"
    dump.write_text(NANOSECONDS)
    other = mkcomposefs(re.sub(r"5\.\d+", "5.0", NANOSECONDS), tmp_path)
    assert rules(explained(dump, other)) == {"times in": ("nanoseconds", "seconds")}


def test_xattrs_that_composefs_rs_kept_are_explained(tmp_path: Path) -> None:
    """`cfsctl --no-propagate-usr-to-root` takes a directory as it stands, its attributes too."""
    root = tmp_path / "root"
    for name in ("usr/bin", "boot", "sysroot", "run"):
        (root / name).mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"x" * 5000)
    os.setxattr(root / "usr/bin/tool", "user.note", b"kept")
    root.chmod(0o750)
    words: list[str | Path] = [
        "--hash",
        "sha256",
        "--erofs-version",
        "1",
        "compute-id",
        "--no-propagate-usr-to-root",
        root,
    ]
    said = subprocess.run([program("cfsctl"), *words], check=True, capture_output=True, text=True)
    found = rules(explained(f"dir:{root}", said.stdout.strip().rpartition(":")[2]))
    assert found["form"] == ("bootable", "as it stands")
    assert found["xattrs"] == ("allowlist-only", "keep-all")


def test_the_rules_next_to_its_own_explain_a_tree_that_is_canonical_already(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("usr", "boot", "sysroot", "run"):
        (root / name).mkdir(parents=True)
    for path in (*root.iterdir(), root):
        os.utime(path, (1000, 1000))
    words: list[str | Path] = ["--hash", "sha256", "--erofs-version", "2", "compute-id", "--bootable", root]
    said = subprocess.run([program("cfsctl"), *words], check=True, capture_output=True, text=True)
    assert rules(explained(f"dir:{root}", said.stdout.strip().rpartition(":")[2])) == {"EROFS format": ("V1", "V2")}


def test_every_rule_set_that_composefs_rs_03_had_is_known() -> None:
    source = f"oci:{VECTORS}/oci/selinux:v"
    for form, digest in CASES["selinux"][THREE]["sha256"].items():
        if form in ("plain", "bootable") and isinstance(digest, str):
            assert rules(explained(source, digest))["EROFS format"] == ("V1", "V2")


def test_a_tree_that_is_another_one_is_said_to_be() -> None:
    found = explained(f"oci:{VECTORS}/oci/boot-sysroot:v", CASES["selinux"][NINE]["v1_sha256"]["plain"])
    assert found.verdict == "unknown"
    assert found.tried >= 9


# Two trees


def test_an_edited_dump_file_differs_by_path_and_field(tmp_path: Path) -> None:
    dump = b"".join(write_dumpfile(prepare_for_boot(load("plain").merged, print))).decode()
    one, other = tmp_path / "one.dump", tmp_path / "other.dump"
    one.write_text(dump)
    line = next(line for line in dump.splitlines() if " 100644 " in line)
    path, mode = line.split(" ")[0], line.split(" ")[2]
    other.write_text(dump.replace(f"{path} {line.split(' ')[1]} {mode}", f"{path} {line.split(' ')[1]} 104711"))
    found = explained(one, f"dumpfile:{other}")
    assert found.verdict == "content"
    assert [(one.path, one.field, one.a, one.b) for one in found.differences] == [
        (path, "mode", f"0{mode[-3:]}", "4711")
    ]
    assert explained(one, one).verdict == "equal"


def test_more_differences_than_shown_are_counted(tmp_path: Path) -> None:
    head = "/ 0 40755 2 0 0 0 1.0 - - -\n"
    for name, mode in (("a", "100644"), ("b", "100600")):
        (tmp_path / name).write_text(
            head + "".join(f"/{number:03} 0 {mode} 1 0 0 0 1.0 - - -\n" for number in range(100))
        )
    found = explained(tmp_path / "a", tmp_path / "b")
    assert len(found.differences) == 20
    assert found.more == 80
    assert json.loads(json.dumps(found.to_json()))["more_differences"] == 80


# Everything that has a digest


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return installed(tmp_path_factory.mktemp("demo"), layers())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return installed(tmp_path_factory.mktemp("other"), layers(file(b"usr/bin/small", b"other" * 100, mode=0o755)))


def test_image_disk_rootfs_image_uki_and_argument_of_one_tree_are_equal(demo: Demo, tmp_path: Path) -> None:
    image, program_file = tmp_path / "image.erofs", tmp_path / "demo.efi"
    image.write_bytes(demo.stored.rootfs.image)
    program_file.write_bytes(uki(f"composefs={demo.digest}"))
    for thing in (demo.disk, image, program_file, f"composefs={demo.digest}", demo.digest):
        assert explained("demo", thing, demo.repo).verdict == "equal"


@pytest.mark.parametrize("form", ["plain", "bootable"])
def test_the_other_hash_of_a_converted_image_is_explained(form: str, tmp_path: Path) -> None:
    """Its contents are at hand, so that they can be measured again."""
    name = "boot-sysroot"
    convert(
        ConvertRequest(source=parse_source(f"oci:{VECTORS}/oci/{name}:v"), repo=tmp_path, name="demo", boot=None),
        silent,
    )
    found = rules(explained("demo", CASES[name][NINE]["v1_sha512"][form], tmp_path))
    assert found["hash"] == ("sha256", "sha512")
    assert ("form" in found) == (form == "plain")


def test_two_disks_differ_by_path_and_field(demo: Demo, other: Demo) -> None:
    found = explained(demo.disk, other.disk)
    assert found.verdict == "content"
    assert {(one.path, one.field) for one in found.differences} == {
        ("/usr/bin/small", "size"),
        ("/usr/bin/small", "fs-verity"),
    }


def test_a_converted_image_and_a_stale_uki_have_different_trees(demo: Demo, other: Demo, tmp_path: Path) -> None:
    path = tmp_path / "stale.efi"
    path.write_bytes(uki(f"composefs={other.digest}"))
    assert explained("demo", path, demo.repo).verdict == "unknown"


# Hostile input


@pytest.mark.parametrize(
    "thing",
    [
        "ab" * 31,
        "AB" * 32,
        "composefs=zz",
        "composefs.digest=v3-sha256-12:" + "ab" * 32,
        "/nowhere",
        "dumpfile:/nowhere",
        "oci:/nowhere",
        "",
        "\0",
        "a\0b",
        "§§",
        "/dev/null",
    ],
)
def test_what_has_no_digest_is_one_sentence(thing: str) -> None:
    with pytest.raises(Error):
        explained(thing, "ab" * 32)
    with pytest.raises(Error):
        explained("ab" * 32, thing)


def test_two_bare_digests_cannot_be_explained() -> None:
    with pytest.raises(Error, match="no tree"):
        explained("ab" * 32, "cd" * 32)


def test_damaged_files_are_one_sentence(demo: Demo, tmp_path: Path) -> None:
    for number, data in enumerate(
        (
            b"",
            b"MZ" + bytes(2000),
            uki("quiet"),
            demo.stored.rootfs.image[:3000],
            bytes(512) + b"EFI PART" + bytes(4000),
            b"/ 0 40755",
        )
    ):
        path = tmp_path / str(number)
        path.write_bytes(data)
        with pytest.raises(Error):
            explained(path, "ab" * 32)
