"""A repository and a state that are not whole, on a disk and in a directory. Done by debugfs, or by hand."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from oci2boot.boot.names import MAX_UKI
from oci2boot.formats.fsverity import measure
from oci2boot.sysroot.deployments import RECORD_MAX
from tests.flips import damaged
from tests.partitions import table
from tests.witness import program
from tests.workflows.disks import BIG, SMALL, UKI, Demo, copied, debugfs
from tests.workflows.sealable import uki
from tests.workflows.verify.looking import failures, on_esp, physical_root, seen, states


def record(demo: Demo) -> str:
    return f"/state/deploy/{demo.digest}/oci2boot.json"


def stream(demo: Demo) -> Path:
    """Return the object of a stream that is on the disk."""
    argv = [program("debugfs"), "-R", "ls -p /composefs/streams", demo.root]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    name = next(name for name in said.split("/") if name.startswith("oci2boot-"))
    return (demo.repo / "streams" / name).resolve()


def at(demo: Demo, path: Path) -> str:
    return f"/composefs/{path.relative_to(demo.repo)}"


DAMAGES: dict[str, tuple[Callable[[Demo], list[str]], Callable[[Demo], str], str]] = {
    "no meta.json": (
        lambda _: ["rm /composefs/meta.json"],
        lambda _: "repository",
        "meta.json is missing",
    ),
    "meta.json without fs-verity": (
        lambda _: ["sif /composefs/meta.json flags 0x80000"],
        lambda _: "repository",
        "meta.json: it has no fs-verity",
    ),
    "no rootfs image": (
        lambda demo: [f"rm /composefs/images/{demo.digest}"],
        lambda _: "repository",
        "it has no rootfs image",
    ),
    "the name of an image at another": (
        lambda demo: [
            f"rm /composefs/images/{demo.digest}",
            f"symlink /composefs/images/{demo.digest} ../objects/{measure(SMALL).path}",
        ],
        lambda _: "repository",
        f"images/{{digest}} links to another image, {measure(SMALL)}",
    ),
    "an image that is none": (
        lambda _: [f"symlink /composefs/images/{measure(SMALL)} ../objects/{measure(SMALL).path}"],
        lambda _: f"rootfs image {measure(SMALL)}",
        "it cannot be used",
    ),
    "a name that leads elsewhere": (
        lambda _: ["symlink /composefs/images/abc /etc/passwd"],
        lambda _: "repository",
        "",
    ),
    "a stream cut off": (
        lambda demo: [f"sif {at(demo, stream(demo))} size 10"],
        lambda _: "stream ",
        "is damaged",
    ),
    "an object whose blocks are unknown": (
        lambda _: [f"sif /composefs/objects/{measure(BIG).path} block[0] 0"],
        lambda _: f"object {measure(BIG)}",
        "",
    ),
    "a state that cannot be listed": (
        lambda _: ["sif /state/deploy block[0] 0"],
        lambda _: "state",
        "",
    ),
    "a record cut off": (
        lambda demo: [f"sif {record(demo)} size 100"],
        lambda demo: f"record {demo.digest}",
        "cannot be read",
    ),
    "a record that is too long": (
        lambda demo: [f"sif {record(demo)} size {RECORD_MAX + 1}"],
        lambda demo: f"record {demo.digest}",
        f"at most {RECORD_MAX} are read",
    ),
}


@pytest.mark.parametrize(("requests", "name", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_not_whole_on_a_disk_is_named(
    demo: Demo, requests: Callable[[Demo], list[str]], name: Callable[[Demo], str], said: str, tmp_path: Path
) -> None:
    """K0.10"""
    copy = copied(demo, tmp_path)
    for request in requests(demo):
        debugfs(copy, request)
    found = {check: text for check, text in failures(seen(copy.disk)).items() if check.startswith(name(demo))}
    assert len(found) == 1
    assert said.format(digest=demo.digest) in next(iter(found.values()))


def test_without_a_record_nothing_is_said_of_boot_files(demo: Demo, tmp_path: Path) -> None:
    copy = copied(demo, tmp_path)
    debugfs(copy, f"rm {record(demo)}")
    verified = seen(copy.disk)
    assert failures(verified) == {}
    assert states(verified)["boot files"] == "not checked"


def test_an_image_of_a_directory_that_is_none_is_not_booted(demo: Demo, tmp_path: Path) -> None:
    """Its name is right, and it is no EROFS."""
    root = physical_root(demo, tmp_path)
    (root / "composefs/images" / measure(SMALL).hex).symlink_to(f"../objects/{measure(SMALL).path}")
    found = failures(seen(root, esp=on_esp(tmp_path, {UKI: uki(f"composefs={measure(SMALL)}")})))
    assert f"the root file system {measure(SMALL)} cannot be used" in found[f"UKI {UKI}"]


def test_what_nobody_named_is_not_checked(root: Path) -> None:
    verified = seen(root)
    (boot_files,) = (check for check in verified.checks if check.name == "boot files")
    assert (boot_files.state, "--esp" in boot_files.evidence) == ("not checked", True)


def test_records_of_a_mounted_root_are_held_to_its_esp(demo: Demo, tmp_path: Path) -> None:
    root = physical_root(demo, tmp_path)
    state = root / "state/deploy" / demo.digest
    state.mkdir()
    extracted = [program("debugfs"), "-R", f"dump {record(demo)} {state}/oci2boot.json", demo.root]
    subprocess.run(extracted, check=True, capture_output=True)
    esp = on_esp(tmp_path, {UKI: uki(f"composefs={demo.digest} other"), "efi/boot/bootx64.efi": b""})
    os.truncate(esp / "efi/boot/bootx64.efi", MAX_UKI + 1)
    found = failures(seen(root, esp=esp))
    told = {name: text for name, text in found.items() if name.startswith("boot file")}
    assert told.keys() == {f"boot file {UKI}", "boot file EFI/BOOT/BOOTX64.EFI", "boot file loader/loader.conf"}
    assert "not those that were installed" in told[f"boot file {UKI}"]
    assert "is gone" in told["boot file loader/loader.conf"]
    assert f"at most {MAX_UKI}" in told["boot file EFI/BOOT/BOOTX64.EFI"]
    os.truncate(state / "oci2boot.json", 100)
    assert "cannot be read" in failures(seen(root))[f"record {demo.digest}"]


# The EFI system partition: Microsoft, FAT: General Overview of On-Disk Format, 1.03


def esp_bytes(demo: Demo) -> bytes:
    with demo.disk.open("rb") as file:
        file.seek(table(demo.disk)[0]["start"])
        return file.read(512)


def test_allocation_tables_that_differ_are_told(demo: Demo) -> None:
    boot = esp_bytes(demo)
    sector, reserved = (int.from_bytes(boot[offset : offset + 2], "little") for offset in (11, 14))
    size = int.from_bytes(boot[36:40], "little") * sector
    with damaged(demo.disk, table(demo.disk)[0]["start"] + reserved * sector + size + size - 4):
        assert failures(seen(demo.disk)) == {"EFI system partition": "its two allocation tables differ"}


def test_an_esp_that_is_none_is_one_failed_check(demo: Demo) -> None:
    with damaged(demo.disk, table(demo.disk)[0]["start"] + 11):
        assert failures(seen(demo.disk)).keys() == {"EFI system partition"}
