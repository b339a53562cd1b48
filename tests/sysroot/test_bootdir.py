"""The boot directory, by what Debian 13's bootctl says of it."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.digest import VerityDigest
from oci2boot.errors import TargetError
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.sysroot.bootdir import read_boot_directory
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_plan import plan_boot, plan_default, plan_remove
from oci2boot.sysroot.bootdir_steps import Source
from tests.sysroot.bootctl import listed
from tests.sysroot.boots import ONE, THREE, TWO, addon, install, menu, names, programs, put, type1, uki
from tests.workflows import sealable


def test_bootctl_sees_the_same_menu(esp: Path) -> None:
    """B.8, P.9"""
    put(esp, "EFI/Linux/debian_2.efi", uki("2"))
    put(esp, "EFI/Linux/debian_10+3-0.efi", uki("10"))
    put(esp, "EFI/Linux/debian_11+0-3.efi", uki("11"))
    put(esp, "EFI/Linux/arch_1.efi", uki("1", None, "arch"))
    put(esp, "EFI/Linux/debian_2.efi.extra.d/b.addon.efi", addon("quiet"))
    put(esp, "EFI/oci2boot/k/linux", b"kernel")
    put(esp, "EFI/oci2boot/k/initrd", b"initrd")
    put(esp, "loader/entries/debian_3.conf", type1("3"))
    put(esp, "loader/entries/other_7.conf", b"title Other\nversion 7\nlinux /EFI/oci2boot/k/linux\n")
    seen, ours = listed(esp), read_boot_directory(esp)
    assert ours.problems == ()
    assert [entry["id"] for entry in seen] == [entry.id for entry in ours.entries]
    for theirs, entry in zip(seen, ours.entries, strict=True):
        assert theirs["title"] == entry.title
        assert theirs.get("version") == entry.version
        assert theirs.get("sortKey") == entry.sort_key
        assert Path(theirs["path"]).relative_to("/mnt") == Path(entry.path)
        assert theirs.get("triesLeft") == entry.tries_left
        assert theirs.get("triesDone") == entry.tries_done
        promised = [word for word in (theirs.get("options") or "").split() if word.startswith("composefs=")]
        assert promised == [str(argument) for argument in entry.arguments]


def test_a_uki_with_a_root_hash_is_ours_only_with_its_record(esp: Path) -> None:
    """K0.1: another system's may have one too, and is neither renamed nor removed."""
    for number in (1, 2):
        put(esp, f"EFI/Linux/verity_{number}.efi", sealable.uki(f"quiet roothash={f'{number}e' * 32} ro"))
    put(esp, "EFI/Linux/verity_1.efi.extra.d/oci2boot.json", b"{}")
    put(esp, "EFI/Linux/verity_3.efi.extra.d/oci2boot.json", b"{}")
    other, own = sorted(read_boot_directory(esp).entries, key=lambda entry: entry.own)
    assert (other.name.stem, other.own, other.record) == ("verity_2", False, None)
    assert (own.name.stem, own.own, list(map(str, own.root_hashes))) == ("verity_1", True, ["1e" * 32])
    with pytest.raises(TargetError, match="not ours to remove"):
        plan_remove(read_boot_directory(esp), "verity_2.efi")
    apply_boot(plan_default(read_boot_directory(esp), "verity_1.efi"), esp)
    assert "EFI/Linux/verity_3.efi.extra.d/oci2boot.json" not in names(esp)


def test_an_addon_counts_for_its_entry(esp: Path) -> None:
    """C.11"""
    put(esp, "EFI/Linux/vendor_1+2-1.efi", uki("1", None))
    put(esp, "EFI/Linux/vendor_1.efi.extra.d/composefs.addon.efi", addon(f"composefs={'cd' * 32}"))
    (entry,) = read_boot_directory(esp).entries
    assert entry.arguments == (ComposefsArg(VerityDigest.parse("cd" * 32)),)
    assert entry.own
    assert set(entry.files) == set(names(esp))


def test_what_is_broken_is_a_problem_and_no_end(esp: Path) -> None:
    put(esp, ONE, uki("1"))
    put(esp, "EFI/Linux/cut.efi", uki("2")[:5000])
    put(esp, "EFI/Linux/empty.efi", b"")
    put(esp, "EFI/Linux/loader.efi", programs()[1])
    put(esp, "EFI/Linux/two.efi", uki("3", f"{'ab' * 32} composefs=XYZ"))
    put(esp, "loader/entries/gone.conf", b"linux /nowhere\n")
    put(esp, "loader/entries/raw.conf", b"\xff\xfe")
    (esp / "EFI/Linux/link.efi").symlink_to("debian_1.efi")
    found = read_boot_directory(esp)
    assert [entry.path for entry in found.entries] == [ONE]
    text = "\n".join(found.problems)
    for name in ("cut.efi", "empty.efi", "loader.efi", "two.efi", "gone.conf", "raw.conf", "link.efi"):
        assert name in text
    assert set(found.unreadable) >= {"EFI/Linux/cut.efi", "EFI/Linux/two.efi", "loader/entries/raw.conf"}


def test_an_upgrade_is_counted_and_falls_back(esp: Path) -> None:
    """B.8, P.9"""
    install(esp, {ONE: uki("1")}, ONE, tries=3)
    assert menu(esp) == ["debian_1.efi"]  # nothing to fall back to
    install(esp, {TWO: uki("2"), f"{TWO}.extra.d/x.addon.efi": addon("quiet")}, TWO, tries=3)
    assert menu(esp) == ["debian_2+3-0.efi", "debian_1.efi"]
    (esp / "EFI/Linux/debian_2+3-0.efi").rename(esp / "EFI/Linux/debian_2+0-3.efi")
    assert menu(esp) == ["debian_1.efi", "debian_2+0-3.efi"]
    assert [entry["id"] for entry in listed(esp)] == ["debian_1.efi", "debian_2.efi"]


def test_a_rollback_puts_back_what_stands_before_and_nothing_else(esp: Path) -> None:
    """D.20, P.11"""
    for number, path in enumerate((ONE, TWO, THREE), 1):
        install(esp, {path: uki(str(number))}, path)
    apply_boot(plan_default(read_boot_directory(esp), "debian_2.efi"), esp)
    assert menu(esp) == ["debian_2.efi", "debian_1.efi", "debian_3+0-0.efi"]
    apply_boot(plan_default(read_boot_directory(esp), "debian_1.efi"), esp)
    assert menu(esp) == ["debian_1.efi", "debian_3+0-0.efi", "debian_2+0-0.efi"]
    apply_boot(plan_default(read_boot_directory(esp), "debian_3.efi", tries=2), esp)
    assert menu(esp) == ["debian_3+2-0.efi", "debian_1.efi", "debian_2+0-0.efi"]
    assert [entry["id"] for entry in listed(esp)] == ["debian_3.efi", "debian_1.efi", "debian_2.efi"]


def test_a_downgrade_boots_what_was_asked_for(esp: Path) -> None:
    install(esp, {THREE: uki("3")}, THREE)
    install(esp, {ONE: uki("1")}, ONE, tries=3)
    assert menu(esp) == ["debian_1+3-0.efi", "debian_3+0-0.efi"]


def test_the_same_bytes_are_not_written_twice_and_others_get_a_name_of_their_own(esp: Path) -> None:
    """B.8"""
    install(esp, {ONE: uki("1")}, ONE)
    assert plan_boot(read_boot_directory(esp), {ONE: uki("1")}, first=ONE).steps == ()
    for _ in range(2):
        plan = plan_boot(read_boot_directory(esp), {ONE: uki("1", "cd" * 32)}, first=ONE)
        apply_boot(plan, esp)
        assert plan.paths == {ONE: "EFI/Linux/debian_1.1.efi"}
        assert menu(esp) == ["debian_1.1.efi", "debian_1.efi"]
    assert [entry["id"] for entry in listed(esp)] == ["debian_1.1.efi", "debian_1.efi"]


def test_an_entry_of_another_system_is_left_alone_and_named(esp: Path) -> None:
    put(esp, "EFI/Linux/arch_1.efi", uki("1", None, "arch"))
    plan = plan_boot(read_boot_directory(esp), {ONE: uki("1")}, first=ONE)
    assert plan.problems == ("EFI/Linux/arch_1.efi, of another system, stands before debian_1.efi",)
    apply_boot(plan, esp)
    assert menu(esp) == ["arch_1.efi", "debian_1.efi"]
    with pytest.raises(TargetError, match="not ours"):
        plan_remove(read_boot_directory(esp), "arch_1.efi")


@pytest.mark.parametrize(("value", "kept"), [("debian_1*", True), ("debian_2*", False), ("@saved", True)])
def test_a_default_in_loader_conf_that_goes_before_is_named(esp: Path, value: str, kept: bool) -> None:
    put(esp, "loader/loader.conf", f"timeout 3\ndefault {value}\n".encode())
    install(esp, {ONE: uki("1")}, ONE)
    plan = plan_boot(read_boot_directory(esp), {TWO: uki("2"), "loader/loader.conf": b"timeout 0\n"}, first=TWO)
    assert any("loader.conf" in problem for problem in plan.problems) is kept
    apply_boot(plan, esp)
    assert (esp / "loader/loader.conf").read_bytes().endswith(f"{value}\n".encode())


def test_variables_of_the_boot_loader_go_before_the_order(esp: Path) -> None:
    install(esp, {ONE: uki("1")}, ONE)
    install(esp, {TWO: uki("2")}, TWO)
    found = read_boot_directory(esp)
    assert found.overridden("debian_2.efi") is None
    assert "debian_1.efi" in (found.overridden("debian_2.efi", ["debian_1.efi"]) or "")


def test_the_boot_loader_of_another_system_or_a_newer_one_stays(esp: Path) -> None:
    loader = programs()[1]
    newer = re.sub(rb"(systemd-boot,1,[^\n]*,)257", rb"\g<1>999", loader, count=1)
    assert newer != loader
    put(esp, "EFI/BOOT/BOOTX64.EFI", programs()[0])  # any other program
    put(esp, "EFI/systemd/systemd-bootx64.efi", loader + bytes(8))
    put(esp, "EFI/systemd/newer.efi", newer)
    new: dict[str, Source] = {ONE: uki("1"), "EFI/BOOT/BOOTX64.EFI": loader, "EFI/systemd/systemd-bootx64.efi": loader}
    new["EFI/systemd/newer.efi"] = loader
    plan = plan_boot(read_boot_directory(esp), new, first=ONE)
    apply_boot(plan, esp)
    assert (esp / "EFI/BOOT/BOOTX64.EFI").read_bytes() == programs()[0]
    assert (esp / "EFI/systemd/systemd-bootx64.efi").read_bytes() == loader
    assert (esp / "EFI/systemd/newer.efi").read_bytes() == newer
    assert plan.problems == (
        "EFI/BOOT/BOOTX64.EFI is systemd-stub, and left as it is",
        "EFI/systemd/newer.efi is systemd-boot 999, newer than 257, and left as it is",
    )


def test_without_room_the_bytes_are_named_and_nothing_is_written(esp: Path) -> None:
    """B.8"""
    install(esp, {ONE: uki("1")}, ONE)
    short = replace(read_boot_directory(esp), free=100_000, size=1 << 30)
    size = len(uki("2"))
    with pytest.raises(TargetError, match=r"has 100000 bytes free, (\d+) are needed") as caught:
        plan_boot(short, {TWO: uki("2")}, first=TWO)
    needed = int(caught.value.message.split("free, ")[1].split()[0])
    assert size < needed < size + 4 * short.cluster
    assert menu(esp) == ["debian_1.efi"]


def test_the_oldest_entry_that_nobody_needs_makes_room(esp: Path) -> None:
    """B.8, D.20"""
    paths = [f"EFI/Linux/debian_{number}.efi" for number in range(1, 6)]
    for number, path in enumerate(paths, 1):
        install(esp, {path: uki(str(number))}, path)
        os.utime(esp / path, (number * 100, number * 100))
    found = replace(read_boot_directory(esp), free=300_000, size=8 << 20)
    new: dict[str, Source] = {"EFI/Linux/debian_6.efi": uki("6")}
    plan = plan_boot(found, new, first="EFI/Linux/debian_6.efi", keep=frozenset({"debian_1.efi", "debian_3+1-2.efi"}))
    assert plan.removed == ("debian_2.efi", "debian_4.efi")  # 5 % of 8 MiB stay free
    order = [json.dumps(step.to_json()) for step in plan.steps]
    assert order[0] == '{"remove": "EFI/Linux/debian_2.efi"}'
    assert '"write"' in order[-1]
    with pytest.raises(TargetError, match="are needed"):
        plan_boot(
            replace(found, free=0, size=0),
            new,
            first="EFI/Linux/debian_6.efi",
            keep=frozenset(path[10:] for path in paths),
        )


def test_shared_files_go_with_the_last_entry_that_needs_them(esp: Path) -> None:
    """P.5"""
    data: dict[str, Source] = {"EFI/oci2boot/k/linux": b"kernel" * 999, "EFI/oci2boot/k/initrd": b"initrd"}
    for number in (1, 2):
        path = f"loader/entries/debian_{number}.conf"
        install(esp, {path: type1(str(number)), **data}, path)
    assert menu(esp) == ["debian_2.conf", "debian_1.conf"]
    apply_boot(plan_remove(read_boot_directory(esp), "debian_1.conf"), esp)
    assert names(esp) == ["EFI/oci2boot/k/initrd", "EFI/oci2boot/k/linux", "loader/entries/debian_2.conf"]
    install(esp, {THREE: uki("3")}, THREE)
    apply_boot(plan_remove(read_boot_directory(esp), "debian_2.conf"), esp)
    assert names(esp) == [THREE]
    assert not (esp / "EFI/oci2boot/k").exists()


def test_the_last_and_the_booted_entry_are_not_removed(esp: Path) -> None:
    install(esp, {ONE: uki("1")}, ONE)
    with pytest.raises(TargetError, match="last entry"):
        plan_remove(read_boot_directory(esp), "debian_1.efi")
    install(esp, {TWO: uki("2")}, TWO)
    with pytest.raises(TargetError, match="booted"):
        plan_remove(read_boot_directory(esp), "debian_1.efi", keep=frozenset({"debian_1+1-2.efi"}))
    with pytest.raises(TargetError, match="no entry"):
        plan_remove(read_boot_directory(esp), "debian_9.efi")


def test_what_failed_is_not_all_that_boots_when_the_default_goes(esp: Path) -> None:
    """B.8: a good entry that was put back counts again, before one that is known to fail."""
    for path, version, image in (
        ("arch_1.efi", "1", "arch"), ("arch_2+0-2.efi", "2", "arch"), ("debian_1+2-0.efi", "1", "debian"),
        ("debian_2+0-0.efi", "2", "debian"),
    ):  # fmt: skip
        put(esp, f"EFI/Linux/{path}", uki(version, image=image))
    plan = plan_remove(read_boot_directory(esp), "arch_1.efi", keep=frozenset({"debian_2.efi"}))
    apply_boot(plan, esp)
    assert plan.first == "debian_2.efi"
    assert menu(esp) == ["debian_2.efi", "debian_1+2-0.efi", "arch_2+0-2.efi"]


def test_leftovers_of_interrupted_runs_are_cleared_and_strange_addons_do_not_join(esp: Path) -> None:
    put(esp, "EFI/Linux/.oci2boot-0123456789abcdef.tmp", b"half")
    put(esp, f"{ONE}.extra.d/strange.addon.efi", addon("init=/bin/sh"))
    put(esp, "EFI/Linux/gone_1.efi.extra.d/composefs.addon.efi", addon(f"composefs={'ab' * 32}"))
    put(esp, "EFI/Linux/foreign.efi.extra.d/quiet.addon.efi", addon("quiet"))
    put(esp, "EFI/oci2boot/old/linux", b"kernel")
    install(esp, {ONE: uki("1")}, ONE)
    assert names(esp) == [ONE, "EFI/Linux/foreign.efi.extra.d/quiet.addon.efi"]
