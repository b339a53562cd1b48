"""What dracut is asked for: dracut(8) says how its words are written."""

from pathlib import Path

import pytest

from oci2boot.boot.dracut import DracutOptions, complaints, dracut_argv, plan_dracut
from oci2boot.errors import FormatError, ImageError
from tests.boot.trees import read_inline, tree_of

KVER = "6.12.0"
MODULES = f"usr/lib/modules/{KVER}"
FILES: dict[str, bytes | Path] = {
    f"{MODULES}/vmlinuz": b"",
    f"{MODULES}/modules.dep": b"kernel/fs/fat/vfat.ko.xz: kernel/fs/fat/fat.ko.xz\nkernel/fs/fat/fat.ko.xz:\n",
    f"{MODULES}/modules.builtin": b"kernel/fs/erofs/erofs.ko\nkernel/drivers/virtio/virtio-blk.ko\n",
    "usr/bin/dracut": b"",
    "usr/bin/cpio": b"",
    "usr/lib/dracut/modules.d/00bash/module-setup.sh": b"",
    "usr/lib/systemd/systemd-veritysetup": b"",
    "usr/bin/tool": b"",
    "bin": Path("usr/bin"),
}


def test_the_words_are_those_of_the_manual() -> None:
    """K1.14"""
    options = DracutOptions.parse(["/a /b", "/c"], ["vfat"], ["nvme  ahci"], ["bash", "dm"], ["ext4"])
    assert dracut_argv(KVER, options, ("dm", "systemd-veritysetup"), "/out") == [
        "/usr/bin/dracut", "--force", "--no-hostonly", "--no-hostonly-cmdline", "--reproducible", "--kver", KVER,
        "--add", "dm systemd-veritysetup bash",
        "--add-drivers", "vfat",
        "--force-drivers", "nvme ahci",
        "--install", "/a /b /c",
        "--filesystems", "ext4",
        "/out",
    ]  # fmt: skip


def test_what_nobody_asked_for_is_not_said() -> None:
    """K1.14: an empty --filesystems would be a list of none."""
    assert dracut_argv(KVER, DracutOptions(), (), "/out")[5:] == ["--kver", KVER, "/out"]


@pytest.mark.parametrize(
    ("install", "drivers"),
    [
        (["tool"], []),
        (["/usr/bin/$(id)"], []),
        (["/usr/*"], []),
        (["/usr/../etc"], []),
        (["--help"], []),
        ([], ["--help"]),
        ([], ["a;b"]),
        ([], ["fs/vfat"]),
    ],
)
def test_what_a_shell_would_read_otherwise_is_refused(install: list[str], drivers: list[str]) -> None:
    """K1.14"""
    with pytest.raises(FormatError, match="for dracut: "):
        DracutOptions.parse(install, drivers)


@pytest.mark.parametrize(
    "options",
    [
        DracutOptions(),
        DracutOptions(("/bin/tool",), ("vfat", "virtio_blk"), ("virtio-blk",), ("bash",), ("erofs",)),
    ],
)
def test_what_the_image_has_is_planned(options: DracutOptions) -> None:
    """K1.14: paths through symlinks, modules by either spelling and built into the kernel"""
    assert plan_dracut(tree_of(FILES), read_inline, None, options, verity=True) == KVER


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (DracutOptions(install=("/usr/bin/other",)), "no /usr/bin/other"),
        (DracutOptions(add_drivers=("btrfs",)), "no module btrfs"),
        (DracutOptions(force_drivers=("btrfs",)), "no module btrfs"),
        (DracutOptions(filesystems=("xfs",)), "no module xfs"),
        (DracutOptions(modules=("ash",)), "no module ash"),
    ],
)
def test_what_is_not_in_the_image_is_refused(options: DracutOptions, said: str) -> None:
    """K1.14"""
    with pytest.raises(ImageError, match=said):
        plan_dracut(tree_of(FILES), read_inline, None, options)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("usr/bin/dracut", "package dracut"),
        ("usr/bin/cpio", "package cpio"),
        ("usr/lib/systemd/systemd-veritysetup", "Debian: systemd-cryptsetup"),
    ],
)
def test_an_image_without_the_programs_hears_which_package_to_install(path: str, hint: str) -> None:
    """K1.14"""
    files = {name: content for name, content in FILES.items() if name != path}
    with pytest.raises(ImageError) as caught:
        plan_dracut(tree_of(files), read_inline, None, DracutOptions(), verity=True)
    assert hint in (caught.value.hint or "")


def test_what_dracut_leaves_out_is_heard() -> None:
    """K1.14: as dracut 106 says it, without zstd and without a file"""
    said = (
        "dracut[I]: *** Including module: bash ***\n"
        "dracut-install: ERROR: installing '/none'\n"
        "dracut[E]: FAILED: /usr/lib/dracut/dracut-install -D /var/tmp/x /none\n"
        "dracut[W]: a warning\n"
    )
    assert len(complaints(said)) == 2
