"""A boot directory through years: whatever happens to it, something boots, and first what is wanted."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from oci2boot.errors import TargetError
from oci2boot.sysroot.bootdir import read_boot_directory
from oci2boot.sysroot.bootdir_apply import apply_boot
from oci2boot.sysroot.bootdir_plan import plan_boot, plan_default, plan_remove
from tests.sysroot import chooser
from tests.sysroot.boots import addon, names, put, uki
from tests.sysroot.chooser import Said

VERSIONS = ("1", "2", "10")
IMAGES = ("debian", "arch")
DIGESTS = ("ab" * 32, "cd" * 32)
KNOWN = {
    uki(version, digest, image): Said(image, version, f"{image} {version} {digest[:2]}")
    for version in VERSIONS
    for image in IMAGES
    for digest in DIGESTS
}
BY_LABEL = {said.label: data for data, said in KNOWN.items()}
TRIES = 2


class Machine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.esp = Path(tempfile.mkdtemp(prefix="oci2boot-life-"))
        self.install("debian 2 ab", tries=None)
        self.booted = "debian 2 ab"

    def first(self) -> chooser.Line:
        return chooser.menu(self.esp, KNOWN)[0]

    @rule(label=st.sampled_from(sorted(BY_LABEL)), tries=st.sampled_from([None, TRIES]))
    def install(self, label: str, tries: int | None) -> None:
        data = BY_LABEL[label]
        said = KNOWN[data]
        path = f"EFI/Linux/{said.image}_{said.version}.efi"
        plan = plan_boot(read_boot_directory(self.esp), {path: data}, first=path, tries=tries)
        apply_boot(plan, self.esp)
        assert plan.problems == ()
        assert self.first().said.label == label
        assert (self.esp / plan.paths[path]).read_bytes() == data
        again = plan_boot(read_boot_directory(self.esp), {path: data}, first=path, tries=tries)
        assert again.steps == ()

    @rule(choice=st.integers(0, 20))
    def roll_back(self, choice: int) -> None:
        lines = chooser.menu(self.esp, KNOWN)
        line = lines[choice % len(lines)]
        apply_boot(plan_default(read_boot_directory(self.esp), line.file.name), self.esp)
        assert self.first().said.label == line.said.label

    @rule(choice=st.integers(0, 20))
    def remove(self, choice: int) -> None:
        lines = chooser.menu(self.esp, KNOWN)
        line = lines[choice % len(lines)]
        booted = frozenset(other.file.name for other in lines if other.said.label == self.booted)
        if len(lines) == 1 or line.said.label == self.booted:
            with pytest.raises(TargetError, match="booted"):
                plan_remove(read_boot_directory(self.esp), line.file.name, keep=booted)
            return
        apply_boot(plan_remove(read_boot_directory(self.esp), line.file.name, keep=booted), self.esp)
        assert line.said.label not in [other.said.label for other in chooser.menu(self.esp, KNOWN)]

    @rule()
    def boot_well(self) -> None:
        line = self.first()
        file = chooser.attempt(line)
        if line.left is not None:
            chooser.bless(file)
        self.booted = line.said.label

    @rule()
    @precondition(lambda self: self.first().left)
    def fail_until_it_is_given_up(self) -> None:
        """A counted entry is one that something good follows."""
        failing = self.first()
        for _ in range(failing.left or 0):
            assert self.first().said.label == failing.said.label
            chooser.attempt(self.first())
        after = self.first()
        assert after.said.label != failing.said.label
        assert after.left is None or after.done == 0

    @invariant()
    def something_boots(self) -> None:
        assert chooser.menu(self.esp, KNOWN)
        assert not list(self.esp.rglob("*.tmp"))

    def teardown(self) -> None:
        shutil.rmtree(getattr(self, "esp", "/nonexistent"), ignore_errors=True)


Machine.TestCase.settings = settings(max_examples=30, stateful_step_count=12, deadline=None, derandomize=True)
TestLife = Machine.TestCase
TestLife.__doc__ = "B.8, D.20, P.9"

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "open")


def cut_after(count: int, work: object) -> bool:
    """Do the work in a process of its own that ends, as by a power cut, before its change number `count`; say if so."""
    child = os.fork()
    if child == 0:
        import sys

        left = count

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event not in CHANGES:
                return
            flags = arguments[2] if event == "open" else os.O_CREAT
            if isinstance(flags, int) and flags & os.O_CREAT:
                if left == 0:
                    os._exit(9)
                left -= 1

        sys.addaudithook(watch)
        try:
            work()  # type: ignore[operator]
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), f"cut {count}: it failed by itself"
    return code == 9


def test_a_cut_after_any_step_leaves_what_booted_before_or_what_is_wanted(tmp_path: Path) -> None:
    """B.8"""
    old, new = BY_LABEL["debian 2 ab"], BY_LABEL["debian 1 cd"]
    path, extra = "EFI/Linux/debian_1.efi", "EFI/Linux/debian_1.efi.extra.d/local.addon.efi"
    files = {path: new, extra: addon("quiet"), "loader/entries.srel": b"type1\n"}
    needed = {KNOWN[new].label: [(extra, addon("quiet"))]}
    cuts = 0
    for count in range(100):
        esp = tmp_path / str(count)
        for version in ("2", "10"):
            put(esp, f"EFI/Linux/debian_{version}.efi", BY_LABEL[f"debian {version} ab"])
        before = chooser.menu(esp, KNOWN)[0].said.label

        def work(esp: Path = esp) -> None:
            apply_boot(plan_boot(read_boot_directory(esp), files, first=path, tries=3), esp)

        cut = cut_after(count, work)
        cuts += cut
        first = chooser.menu(esp, KNOWN)[0].said.label
        assert first in (before, KNOWN[new].label), count
        assert chooser.complete(esp, first, needed), count
        assert old in {(esp / name).read_bytes() for name in names(esp)}
        work()
        assert chooser.menu(esp, KNOWN)[0].said.label == KNOWN[new].label
        assert len(chooser.menu(esp, KNOWN)) == 3
        assert not list(esp.rglob("*.tmp"))
        if not cut:
            break
    assert cuts >= 10


@pytest.mark.parametrize("verb", ["rollback", "remove"])
def test_a_cut_in_a_rollback_or_a_removal_leaves_something_that_boots(verb: str, tmp_path: Path) -> None:
    """B.8, D.20"""
    for count in range(20):
        esp = tmp_path / str(count)
        esp.mkdir()
        for version in VERSIONS:
            name = f"EFI/Linux/debian_{version}.efi"
            files = {name: BY_LABEL[f"debian {version} ab"], f"{name}.extra.d/x.addon.efi": addon("quiet")}
            apply_boot(plan_boot(read_boot_directory(esp), files, first=name), esp)

        def work(esp: Path = esp) -> None:
            directory = read_boot_directory(esp)
            if verb == "rollback":
                apply_boot(plan_default(directory, "debian_1.efi"), esp)
            elif directory.find("debian_2.efi"):
                apply_boot(plan_remove(directory, "debian_2.efi"), esp)

        cut = cut_after(count, work)
        first = chooser.menu(esp, KNOWN)[0].said
        assert first.version in ({"10", "1"} if verb == "rollback" else {"10"})
        work()
        lasting = [line.said.version for line in chooser.menu(esp, KNOWN)]
        assert lasting == (["1", "10", "2"] if verb == "rollback" else ["10", "1"])
        if not cut:
            break
    assert count >= 2
