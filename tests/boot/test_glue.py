import bz2
import gzip
import lzma
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from oci2boot.boot import glue
from oci2boot.boot.glue import Glue, plan_glue, unpack_module
from oci2boot.boot.kernel import KernelSupport, check_kernel
from oci2boot.boot.programs import libraries
from oci2boot.errors import FormatError, ImageError, LimitError
from oci2boot.formats import cpio
from oci2boot.tree.files import Read
from oci2boot.tree.model import Directory
from tests.boot.debian import kernel
from tests.boot.initrds import GROWING, INITRAMFS_TOOLS, ORDER, PROGRAMS, SYSTEMD
from tests.boot.trees import read_inline, scan, tree_of
from tests.initramfs.scripts import needed_by
from tests.witness import program

NO_MODULES = KernelSupport((), None, ())


def initramfs(members: list[cpio.Member]) -> dict[bytes, cpio.Found]:
    return cpio.read(cpio.write(members), glue.keep)


def unpacked(plan: Glue) -> dict[bytes, cpio.Found]:
    return cpio.read(plan.archive, lambda _: True)


@pytest.mark.parametrize(
    ("path", "brought"),
    [
        (b"usr/bin/composefs-setup-root", "composefs-setup-root"),
        (b"usr/lib/systemd/system/composefs-setup-root.service", "composefs-setup-root"),
        (b"usr/lib/bootc/initramfs-setup", "bootc"),
        (b"usr/lib/systemd/system/bootc-root-setup.service", "bootc"),
        (b"usr/lib/oci2boot/setup-root", "oci2boot"),
        (b"lib/oci2boot/setup-root", "oci2boot"),
    ],
)
def test_an_initramfs_with_glue_is_left_alone(path: bytes, brought: str) -> None:
    closed = b"[Unit]\nFailureAction=reboot-force\n"
    plan = plan_glue(tree_of({}), read_inline, initramfs([*SYSTEMD, cpio.file(path, closed)]), NO_MODULES)
    assert (plan.brought, plan.archive, plan.arguments) == (brought, b"", ("rw",))
    # Glue that no known unit starts is said, not mended.
    assert bool(plan.notes) == (brought != "oci2boot" and b"/systemd/" not in path)


def test_an_image_with_our_module_is_told_where_its_root_is() -> None:
    """C.15: as one that gets our glue here: an initramfs without systemd's generator finds the disk by its label."""
    members = [member for member in SYSTEMD if not member.path.endswith(b"gpt-auto-generator")]
    brought = plan_glue(
        tree_of({}), read_inline, initramfs([*members, cpio.file(b"usr/lib/oci2boot/setup-root", b"")]), NO_MODULES
    )
    assert brought.arguments == plan_glue(tree_of(GROWING), read_inline, initramfs(members), NO_MODULES).arguments
    assert brought.arguments == ("rw", "root=LABEL=oci2boot")


# Of the units of composefs-rs 0.9 and bootc 1.17, what decides.
OPEN = {
    "passed over": "ConditionKernelCommandLine=composefs\nFailureAction=reboot-force\n",
    "another by mistake": "ConditionKernelCommandLine=composefs.digest\nFailureAction=reboot-force\n",
    "a shell": "OnFailure=emergency.target\nOnFailureJobMode=isolate\n",
    "taken back": "FailureAction=reboot-force\nFailureAction=\n",
    "another action": "FailureAction=none\n",
}


@pytest.mark.parametrize("unit", ["composefs-setup-root.service", "bootc-root-setup.service"])
@pytest.mark.parametrize("case", OPEN)
def test_a_peers_unit_that_fails_open_is_closed(unit: str, case: str) -> None:
    """B.10, C.15: systemd.unit(5): the drop-in of the last name has the last word."""
    path = b"usr/lib/systemd/system/" + unit.encode()
    theirs = [cpio.file(path, f"[Unit]\n{OPEN[case]}".encode()), cpio.directory(path + b".d")]
    theirs.append(cpio.file(path + b".d/50-more.conf", b"[Unit]\nAfter=sysroot.mount\n"))
    plan = plan_glue(tree_of({}), read_inline, initramfs([*SYSTEMD, *theirs]), NO_MODULES)
    added = unpacked(plan)
    (drop_in,) = (name for name in added if name.endswith(b".conf"))
    assert drop_in.rpartition(b"/")[0] == path + b".d"
    assert drop_in.rpartition(b"/")[2] > b"50-more.conf"
    assert (added[drop_in].content or b"").splitlines()[1:] == [
        b"[Unit]", b"ConditionKernelCommandLine=", b"OnFailure=", b"FailureAction=reboot-force",
    ]  # fmt: skip
    link = added[b"usr/lib/systemd/system/initrd-root-fs.target.requires/" + unit.encode()]
    assert (stat.S_ISLNK(link.mode), link.content) == (True, b"../" + unit.encode())
    assert unit in plan.notes[0]
    again = plan_glue(
        tree_of({}), read_inline, cpio.read(cpio.write([*SYSTEMD, *theirs]) + plan.archive, glue.keep), NO_MODULES
    )
    assert (again.archive, again.notes) == (b"", ())


def test_systemd_gets_a_unit_that_its_root_target_requires() -> None:
    """C.15, B.10"""
    plan = plan_glue(tree_of(GROWING), read_inline, initramfs(SYSTEMD), NO_MODULES)
    found = unpacked(plan)
    unit = b"usr/lib/systemd/system/oci2boot-setup-root.service"
    assert b"FailureAction=reboot-force" in (found[unit].content or b"")
    assert b"Condition" not in (found[unit].content or b"")  # a condition would let the boot go on without the check
    link = found[b"usr/lib/systemd/system/initrd-root-fs.target.requires/oci2boot-setup-root.service"]
    assert link.content == b"../oci2boot-setup-root.service"
    assert stat.S_IMODE(found[glue.OWN].mode) == 0o755
    assert (plan.arguments, plan.modules, plan.programs, plan.notes) == (("rw",), (), (), ())


@pytest.mark.parametrize("below", [SYSTEMD, INITRAMFS_TOOLS], ids=["systemd", "initramfs-tools"])
def test_what_setup_root_needs_comes_along(below: list[cpio.Member]) -> None:
    """C.15"""
    found = unpacked(plan_glue(tree_of(GROWING), read_inline, initramfs(below), NO_MODULES))
    assert {f"usr/lib/oci2boot/{name}".encode() for name in needed_by("setup-root")} <= set(found)


def test_a_systemd_that_knows_no_partition_types_is_told_the_label() -> None:
    plan = plan_glue(tree_of(GROWING), read_inline, initramfs(SYSTEMD[:-1]), NO_MODULES)
    assert plan.arguments == ("rw", "root=LABEL=oci2boot")


def test_initramfs_tools_keeps_its_order_and_gets_one_more_script() -> None:
    found = unpacked(plan_glue(tree_of(GROWING), read_inline, initramfs(INITRAMFS_TOOLS), NO_MODULES))
    order = found[b"scripts/local-bottom/ORDER"].content or b""
    assert order.startswith(ORDER)
    assert b'/scripts/local-bottom/oci2boot "$@"\n' in order[len(ORDER) :]
    assert found[b"conf/conf.d/oci2boot"].content == b"ROOT=LABEL=oci2boot\n"
    assert stat.S_IMODE(found[b"scripts/local-bottom/oci2boot"].mode) == 0o755


def test_another_kind_of_initramfs_is_refused_with_a_way_out() -> None:
    with pytest.raises(ImageError, match="neither") as caught:
        plan_glue(tree_of({}), read_inline, initramfs(PROGRAMS), NO_MODULES)
    assert "mkinitcpio" in (caught.value.hint or "")


def test_no_directory_takes_the_place_of_a_link() -> None:
    """The kernel removes what is in a new entry's place when the type differs: `lib` of a merged /usr would be gone."""
    found = unpacked(plan_glue(tree_of(GROWING), read_inline, initramfs(SYSTEMD), NO_MODULES))
    assert not any(path == b"lib" or path.startswith(b"lib/") for path in found)
    below = initramfs([*SYSTEMD, cpio.symlink(b"conf", b"real/conf"), cpio.directory(b"real"), *INITRAMFS_TOOLS])
    del below[b"usr/lib/systemd/systemd"]
    assert b"real/conf/conf.d/oci2boot" in unpacked(plan_glue(tree_of(GROWING), read_inline, below, NO_MODULES))


def test_every_file_comes_after_its_directory_and_all_is_roots(tmp_path: Path) -> None:
    plan = plan_glue(tree_of(GROWING), read_inline, initramfs(SYSTEMD), NO_MODULES)
    argv = [program("cpio"), "--quiet", "-i", "-t", "-v", "-n"]
    listed = subprocess.run(argv, input=plan.archive, check=True, capture_output=True, text=False).stdout.decode()
    assert {tuple(line.split()[2:4]) for line in listed.splitlines()} == {("0", "0")}
    argv = [program("cpio"), "--quiet", "-i"]  # without -d: a missing directory fails
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd").mkdir()
    subprocess.run(argv, cwd=tmp_path, input=plan.archive, check=True)
    assert (tmp_path / "usr/lib/oci2boot/setup-root").is_file()


def test_the_archive_is_the_same_every_time() -> None:
    """C.24"""
    plans = [plan_glue(tree_of(GROWING), read_inline, initramfs(INITRAMFS_TOOLS), NO_MODULES) for _ in range(2)]
    assert plans[0].archive == plans[1].archive


def test_configuration_of_the_image_goes_along() -> None:
    """O.3, O.12"""
    path = "usr/lib/composefs/setup-root-conf.toml"
    tree = tree_of({**GROWING, path: b"[etc]\ntransient = true\n"})
    found = unpacked(plan_glue(tree, read_inline, initramfs(SYSTEMD), NO_MODULES))
    assert found[path.encode()].content == b"[etc]\ntransient = true\n"


def test_configuration_that_would_stop_the_boot_stops_convert() -> None:
    """O.3, O.4: /etc hides /usr/lib, ostree's file counts too."""
    own, usr = "etc/ostree/prepare-root.conf", "usr/lib/ostree/prepare-root.conf"
    tree = tree_of({**GROWING, own: b"[composefs]\nenabled = verity\n", usr: b"[composefs]\nenabled = no\n"})
    plan = plan_glue(tree, read_inline, initramfs(SYSTEMD), NO_MODULES)
    assert own.encode() in unpacked(plan)
    assert usr.encode() not in unpacked(plan)
    assert plan.configuration.composefs == "verity"
    tree = tree_of({**GROWING, usr: b"[composefs]\nenabled = no\n"})
    with pytest.raises(ImageError, match=r"/usr/lib/ostree/prepare-root\.conf turns composefs off"):
        plan_glue(tree, read_inline, initramfs(SYSTEMD), NO_MODULES)


def test_modules_that_the_initramfs_lacks_go_along_unpacked_and_in_order() -> None:
    version, files = kernel()
    tree, read = scan(files)
    support = check_kernel(tree, read, version)
    libcrc32c = next(path for path in support.modules if b"libcrc32c.ko" in path)
    below = initramfs([*INITRAMFS_TOOLS, cpio.file(libcrc32c, b"")])
    plan = plan_glue(tree, read, below, support)
    found = unpacked(plan)
    assert {"erofs", "overlay", "loop"} <= set(plan.modules)
    assert "libcrc32c" not in plan.modules
    packed = next(path for path in support.modules if b"erofs.ko" in path)
    assert found[b"usr/lib/oci2boot/modules.d/erofs.ko"].content == lzma.decompress(read_file(files, packed))
    order = (found[b"usr/lib/oci2boot/modules"].content or b"").split()
    # modprobe loads what is there, in its turn
    assert order.index(b"libcrc32c") < order.index(b"/usr/lib/oci2boot/modules.d/erofs.ko")
    assert found[b"scripts/init-premount/ORDER"].content == b"/usr/lib/oci2boot/setup-root modules\n"
    systemd = unpacked(plan_glue(tree, read, initramfs(SYSTEMD), support))
    assert b"usr/lib/systemd/system/sysinit.target.wants/oci2boot-modules.service" in systemd


def read_file(files: Path, path: bytes) -> bytes:
    return (files / path.decode()).read_bytes()


def test_a_damaged_module_is_refused() -> None:
    support = KernelSupport((b"m/erofs.ko.xz",), None, ())
    for content in (b"\xfd7zXZ\0 no", lzma.compress(b"no ELF")):
        with pytest.raises(FormatError, match="erofs"):
            plan_glue(tree_of({"m/erofs.ko.xz": content}), read_inline, initramfs(SYSTEMD), support)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_module_that_unpacks_to_more_than_is_read_is_refused(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glue, "MAX_MODULE", 4096)
    module, name = b"\x7fELF".ljust(4096, b"m"), f"m/erofs.ko.{suffix}".encode()
    assert unpack_module(PACKERS[suffix](module), name) == module
    with pytest.raises(LimitError, match="the kernel module erofs has more than 4096 bytes"):
        unpack_module(PACKERS[suffix](module + b"m"), name)


def test_klibc_gets_a_mount_that_can_loop() -> None:
    """Debian's initramfs-tools without busybox."""
    tree, read = scan_host_programs()
    klibc = [*INITRAMFS_TOOLS, cpio.file(b"usr/lib/klibc-cbxFsLVJ9bt.so", b"")]
    plan = plan_glue(tree, read, initramfs(klibc), NO_MODULES)
    assert plan.programs == ("mount", "umount")
    found = unpacked(plan)
    assert found[b"usr/lib/oci2boot/bin/mount"].content == Path("/bin/mount").read_bytes()
    assert any(path.endswith(b"/libmount.so.1") for path in found)
    assert plan_glue(tree, read, initramfs([*klibc, cpio.file(b"bin/busybox", b"")]), NO_MODULES).programs == ()


def test_a_program_that_nobody_has_is_an_error() -> None:
    with pytest.raises(ImageError, match="mkdir"):
        plan_glue(
            tree_of(GROWING), read_inline, initramfs([m for m in SYSTEMD if m.path != b"usr/bin/mkdir"]), NO_MODULES
        )


def test_what_keeps_the_root_from_growing_is_said() -> None:
    """P.8"""
    plan = plan_glue(tree_of({"usr/sbin/sfdisk": b""}), read_inline, initramfs(SYSTEMD), NO_MODULES)
    assert plan.notes == (
        "the root file system will not grow to the disk on first boot: the image has no partx and no resize2fs",
    )


HOST_PROGRAMS = ("/bin/mount", "/bin/umount", "/bin/sh", "/sbin/mke2fs")


def scan_host_programs() -> tuple[Directory, Read]:
    """This machine's programs and libraries as an image: those that ld.so itself lists."""
    files: dict[str, bytes | Path] = {}
    for path in HOST_PROGRAMS:
        files["usr" + path] = Path(path).read_bytes()
        for library in by_ld_so(path):
            files["usr" + library.removeprefix("/usr")] = Path(library).read_bytes()
    files |= {"bin": Path("usr/bin"), "sbin": Path("usr/sbin"), "lib": Path("usr/lib"), "lib64": Path("usr/lib64")}
    return tree_of(files), read_inline


def by_ld_so(path: str) -> set[str]:
    """ldd(1), which runs the dynamic loader."""
    said = subprocess.run([program("ldd"), path], check=True, capture_output=True, text=True).stdout
    return {word for word in said.split() if word.startswith("/")}


@pytest.mark.parametrize("path", HOST_PROGRAMS)
def test_libraries_are_those_that_the_loader_loads(path: str) -> None:
    tree, read = scan_host_programs()
    found = libraries(tree, read, [b"usr" + path.encode()])
    assert {"/" + name.decode() for name in found} == {"/usr" + name.removeprefix("/usr") for name in by_ld_so(path)}


def test_a_missing_library_is_an_error() -> None:
    tree = tree_of({"usr/bin/mount": Path("/bin/mount").read_bytes()})
    with pytest.raises(ImageError, match=r"libmount\.so\.1"):
        libraries(tree, read_inline, [b"usr/bin/mount"])
