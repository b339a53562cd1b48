"""`convert` for boot chains without UKI, and one size budget for every flow, from the command line."""

import json
import subprocess
from pathlib import Path

import pytest

from oci2boot.errors import DigestError, FormatError
from oci2boot.formats import cpio
from oci2boot.workflows.make.loose import read_loose
from tests.boot.initrds import CLOSED
from tests.cli.conftest import Run
from tests.oci.layouts import Layout
from tests.witness import program
from tests.workflows.sealable import EFI, KVER, add_image, base, tar

BOARD = f"usr/lib/modules/{KVER}/dtb/board.dtb"
FLOWS = ("local", "type1", "files", "aboot", "sealed")


@pytest.fixture(scope="module")
def device_tree() -> bytes:
    argv = [program("dtc"), "-q", "-I", "dts", "-O", "dtb"]
    return subprocess.run(argv, input=b"/dts-v1/; / { };", check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, device_tree: bytes) -> str:
    layout = Layout(tmp_path_factory.mktemp("images") / "layout")
    add_image(layout, base({BOARD: device_tree}), "base")
    return f"oci:{layout.path}:base"


def by_cfsctl(source: str, folder: Path) -> str:
    """Return the digest that cfsctl gives the image."""
    cfsctl = [program("cfsctl"), "--repo", str(folder / "cfsctl")]
    init = [*cfsctl, "init", "--algorithm", "fsverity-sha256-12", "--insecure", str(folder / "cfsctl")]
    subprocess.run(init, check=True, capture_output=True)
    subprocess.run([*cfsctl, "oci", "pull", source, "base"], check=True, capture_output=True)
    argv = [*cfsctl, "--erofs-version=1", "oci", "compute-id", "--bootable", "base"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def test_plain_files_promise_the_image_and_are_the_same_again(
    run: Run, source: str, device_tree: bytes, tmp_path: Path
) -> None:
    """C.16, C.24: the digest is cfsctl's, in the initramfs and on the command line; the manifest names all of it."""
    digest = by_cfsctl(source, tmp_path)
    words = ["convert", source, "--repo", tmp_path / "repo", "--flow", "files", "--devicetree", "board.dtb", "--json"]
    status, said, errors = run(*words, tmp_path / "out")
    assert status == 0, errors
    assert "nothing here signs them" in " ".join(errors.split())
    document = json.loads((tmp_path / "out/manifest.json").read_bytes())
    assert (document["rootfs"], document["image"]) == (digest, json.loads(said)["manifest"])
    assert set(document["files"]) == {"kernel", "initramfs", "cmdline", "devicetree.dtb"}
    assert (tmp_path / "out/devicetree.dtb").read_bytes() == device_tree
    # A boot loader of the board's own tells systemd of no disk, so the root is found by its label.
    words_of_the_line = (tmp_path / "out/cmdline").read_text().split()
    assert words_of_the_line == ["rw", "quiet", *CLOSED.split(), "root=LABEL=oci2boot", f"composefs={digest}"]
    found = cpio.read((tmp_path / "out/initramfs").read_bytes(), lambda path: path.endswith(b"rootfs.digest"))
    assert found[b"usr/lib/composefs/rootfs.digest"].content == f"{digest}\n".encode()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(*words, tmp_path / "out")[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_an_android_boot_image_takes_the_place_of_plain_files(run: Run, source: str, tmp_path: Path) -> None:
    """C.37: what unpack_bootimg finds in it are the same files."""
    words = ["convert", source, "--repo", tmp_path / "repo", "--devicetree", "board.dtb"]
    assert run(*words, tmp_path / "plain", "--flow", "files")[0] == 0
    assert run(*words, tmp_path / "out", "--flow", "files")[0] == 0
    layout = "pagesize=4096,base=0x80000000,board=demo"
    status, _, errors = run(*words, tmp_path / "out", "--flow", "aboot", "--aboot", layout)
    assert status == 0, errors
    assert "avbtool" in errors
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"boot.img", "manifest.json"}
    argv = [
        program("unpack_bootimg"),
        "--boot_img",
        str(tmp_path / "out/boot.img"),
        "--out",
        str(tmp_path / "unpacked"),
    ]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    for theirs, ours in (("kernel", "kernel"), ("ramdisk", "initramfs"), ("dtb", "devicetree.dtb")):
        assert (tmp_path / "unpacked" / theirs).read_bytes() == (tmp_path / "plain" / ours).read_bytes()
    assert f"command line args: {(tmp_path / 'plain/cmdline').read_text()}" in said
    assert "page size: 4096\n" in said
    assert "product name: demo\n" in said


def test_the_image_needs_neither_a_loader_nor_a_stub(run: Run, tmp_path: Path) -> None:
    """C.16: a board without UEFI has no use for them, and the checks before a conversion do not ask for them."""
    layout = Layout(tmp_path / "layout")
    gone = {f"{EFI}/.wh.{name}": b"" for name in ("systemd-bootx64.efi", "linuxx64.efi.stub", "addonx64.efi.stub")}
    add_image(layout, [*base(), tar({**gone})], "bare")
    words = ["convert", f"oci:{layout.path}:bare", "--repo", tmp_path / "repo"]
    assert run(*words)[0] == 1
    status, _, errors = run(*words, tmp_path / "out", "--flow", "files")
    assert status == 0, errors
    assert "systemd-boot" not in errors
    assert "systemd-stub" not in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--flow", "files"], "where should the files go"),
        (["--flow", "aboot"], "where should the files go"),
        (["OUT"], "nothing is written to"),
        (["OUT", "--flow", "type1"], "nothing is written to"),
        (["OUT", "--flow", "aboot"], "needs a device tree"),
        (["OUT", "--flow", "aboot", "--aboot", "pagesize=3"], "pages of 3 bytes"),
        (["OUT", "--flow", "files", "--aboot", "base=0"], "--aboot is of --flow aboot"),
        (["OUT", "--flow", "files", "--loader", "shim"], "brings no boot loader"),
        (["OUT", "--flow", "files", "--secure-boot-enroll", "force"], "brings no boot loader"),
        (["OUT", "--flow", "files", "--secureboot-certificate", "c", "--secureboot-key", "k"], "nothing to sign"),
        (["OUT", "--flow", "files", "--devicetree", "other.dtb"], "no device tree other.dtb"),
        (["--devicetree", "board.dtb"], "--devicetree is of the flows without UKI"),
        (["--read", "on-demand", "--allow-missing-verity"], "without fs-verity nothing verifies"),
        (["--read", "on-demand", "--mode", "verity", "--no-verity-signature"], "--read is of --mode composefs"),
        (["OUT", "--flow", "files", "--mode", "verity", "--no-verity-signature"], "only a UKI that is built here"),
    ],
)
def test_what_does_not_go_together_is_refused(
    run: Run, source: str, tmp_path: Path, words: list[str], message: str
) -> None:
    given = [tmp_path / "out" if word == "OUT" else word for word in words]
    status, _, errors = run("convert", source, *given, "--repo", tmp_path / "repo")
    assert status == 1
    assert message in " ".join(errors.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "files", [{"notes.txt": b""}, {"kernel": b"mine"}, {"manifest.json": b"{}"}, {"manifest.json": b"[" * 100_000}]
)
def test_a_directory_with_files_of_others_is_left_alone(
    run: Run, source: str, tmp_path: Path, files: dict[str, bytes]
) -> None:
    (tmp_path / "out").mkdir()
    for name, data in files.items():
        (tmp_path / "out" / name).write_bytes(data)
    status, _, errors = run("convert", source, tmp_path / "out", "--flow", "files", "--repo", tmp_path / "repo")
    assert status == 1
    assert "has other files than those of an earlier run" in " ".join(errors.split())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


@pytest.mark.parametrize("flow", FLOWS)
def test_one_budget_holds_in_every_flow(run: Run, source: str, tmp_path: Path, flow: str) -> None:
    """C.19: the parts and their sizes are named, and the goal for the initramfs."""
    repo: list[str | Path] = ["--repo", tmp_path / "repo"]
    if flow == "sealed":
        sealed = f"oci:{tmp_path}/sealed:base"
        assert run("seal", source, sealed, *repo, "--quiet")[0] == 0
        source = sealed
    words: list[str | Path] = ["convert", source, *repo, "--flow", flow, "--json"]
    if flow in ("files", "aboot"):
        words += [tmp_path / "out", "--devicetree", "board.dtb"]
    status, said, errors = run(*words)
    assert status == 0, errors
    assert "(not more than the goal of 10)" in " ".join(errors.split())
    sizes = json.loads(said)["sizes"]
    assert sizes["total"] == sum(size for name, size in sizes.items() if name != "total")
    assert min(sizes["kernel"], sizes["cmdline"], sizes["initramfs"]) > 0
    assert bool(sizes["devicetree"]) == (flow in ("files", "aboot"))
    assert run(*words, "--uki-limit", str(sizes["total"]))[0] == 0
    words.remove("--json")
    status, _, errors = run(*words, "--uki-limit", str(sizes["total"] - 1))
    assert status == 1
    assert f"has {sizes['total']} bytes, {sizes['total'] - 1} are allowed (MiB: kernel" in " ".join(errors.split())


@pytest.mark.parametrize("name", ["kernel", "initramfs", "cmdline"])
def test_a_file_that_is_not_the_one_of_the_manifest_is_not_started(
    name: str, run: Run, source: str, tmp_path: Path
) -> None:
    """C.16: `test` holds them to it before it boots anything."""
    out = tmp_path / "out"
    assert run("convert", source, out, "--flow", "files", "--repo", tmp_path / "repo")[0] == 0
    assert read_loose(out).cmdline == (out / "cmdline").read_text().rstrip()
    data = (out / name).read_bytes()
    (out / name).write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(DigestError, match=rf"{name}: its manifest promises sha256:[0-9a-f]+, found is sha256:"):
        read_loose(out)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "other", "rootfs": "%s", "files": {}}',
        '{"format": "oci2boot-boot-files-1", "rootfs": "x", "files": {}}',
        '{"format": "oci2boot-boot-files-1", "rootfs": "%s", "files": {}}',
    ],
)
def test_what_is_no_manifest_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text.replace("%s", "ab" * 32))
    with pytest.raises(FormatError, match=r"is no manifest of boot files|names no cmdline"):
        read_loose(tmp_path)


def test_a_disk_is_not_started_by_the_files_of_another(run: Run, source: str, tmp_path: Path) -> None:
    """C.16, C.23: nor by files that nothing on a disk or in the firmware's keys could check."""
    repo = ["--repo", tmp_path / "repo"]
    assert run("convert", source, tmp_path / "out", "--flow", "files", "--name", "one", *repo)[0] == 0
    status, _, errors = run("install", "one", "--target", tmp_path / "disk.raw", *repo)
    assert status == 0, errors
    for words in (["--tamper"], ["--keys", tmp_path]):
        status, _, errors = run("test", tmp_path / "disk.raw", "--files", tmp_path / "out", *words)
        assert (status, "goes without --keys and --tamper" in " ".join(errors.split())) == (1, True)
    layout = Layout(tmp_path / "layout")
    add_image(layout, base({"usr/lib/more": b"more"}), "other")
    words = ["convert", f"oci:{layout.path}:other", tmp_path / "other", "--flow", "files", *repo]
    assert run(*words)[0] == 0
    status, _, errors = run("test", tmp_path / "disk.raw", "--files", tmp_path / "other")
    digests = [json.loads((tmp_path / name / "manifest.json").read_bytes())["rootfs"] for name in ("other", "out")]
    assert status == 1
    assert f"the boot files promise {digests[0]}, the disk has {digests[1]}" in " ".join(errors.split())
