import os
from pathlib import Path

import pytest

from oci2boot.boot.kernel import check_kernel, module_name
from oci2boot.errors import FormatError, ImageError
from tests.boot.debian import kernel
from tests.boot.trees import read_inline, scan, tree_of

VERSION = "6.12.1"
GOOD = dict.fromkeys(("EROFS_FS", "OVERLAY_FS", "BLK_DEV_LOOP", "FS_VERITY", "EROFS_FS_XATTR", "EXT4_FS"), "y")


def image(options: dict[str, str] | None, **files: bytes) -> dict[str, bytes | Path]:
    tree: dict[str, bytes | Path] = {
        f"usr/lib/modules/{VERSION}/{name.replace('__', '.')}": data for name, data in files.items()
    }
    if options is not None:
        lines = [f"# CONFIG_{k} is not set" if v == "n" else f"CONFIG_{k}={v}" for k, v in options.items()]
        tree[f"boot/config-{VERSION}"] = "\n".join(lines).encode()
    return tree


def test_a_kernel_with_everything_built_in_needs_no_modules() -> None:
    support = check_kernel(tree_of(image(GOOD)), read_inline, VERSION)
    assert (support.modules, support.file_backed, support.notes) == ((), False, ())


@pytest.mark.parametrize("option", ["EROFS_FS", "OVERLAY_FS", "BLK_DEV_LOOP", "FS_VERITY", "EROFS_FS_XATTR"])
@pytest.mark.parametrize("state", ["n", None])
def test_a_kernel_without_a_needed_feature_is_refused_by_its_name(option: str, state: str | None) -> None:
    """O.9, B.10, K0.8"""
    options = (
        {**GOOD, option: state or ""} if state else {name: value for name, value in GOOD.items() if name != option}
    )
    with pytest.raises(ImageError, match=f"without CONFIG_{option}:"):
        check_kernel(tree_of(image(options)), read_inline, VERSION)


def test_verity_as_a_module_is_no_verity() -> None:
    with pytest.raises(ImageError, match="FS_VERITY"):
        check_kernel(tree_of(image({**GOOD, "FS_VERITY": "m"})), read_inline, VERSION)


def test_a_module_that_the_image_does_not_have_is_refused() -> None:
    """K0.8: the build fails, not the boot."""
    with pytest.raises(ImageError, match="no module erofs"):
        check_kernel(tree_of(image({**GOOD, "EROFS_FS": "m"})), read_inline, VERSION)


# Lines of Debian's modules.dep; the modules that a line names after the colon are to be loaded last first (depmod(8)).
DEP = b"""kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz
kernel/lib/crc16.ko.xz:
kernel/fs/mbcache.ko.xz:
kernel/fs/jbd2/jbd2.ko.xz:
kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/lib/libcrc32c.ko.xz:
kernel/fs/overlayfs/overlay.ko.xz:
kernel/drivers/block/loop.ko.xz:
"""


def test_modules_come_after_those_they_need() -> None:
    options = {
        **GOOD,
        "EROFS_FS": "m",
        "OVERLAY_FS": "m",
        "BLK_DEV_LOOP": "m",
        "EXT4_FS": "m",
        "EROFS_FS_BACKED_BY_FILE": "y",
    }
    support = check_kernel(tree_of(image(options, modules__dep=DEP)), read_inline, VERSION)
    names = [module_name(path) for path in support.modules]
    assert names == ["jbd2", "mbcache", "crc16", "ext4", "libcrc32c", "erofs", "overlay", "loop"]
    assert support.modules[0] == b"usr/lib/modules/6.12.1/kernel/fs/jbd2/jbd2.ko.xz"
    assert support.file_backed is True


def test_without_a_configuration_the_lists_of_modules_speak() -> None:
    builtin = b"kernel/fs/overlayfs/overlay.ko\nkernel/drivers/block/loop.ko\nkernel/fs/ext4/ext4.ko\n"
    support = check_kernel(tree_of(image(None, modules__dep=DEP, modules__builtin=builtin)), read_inline, VERSION)
    assert [module_name(path) for path in support.modules] == ["libcrc32c", "erofs"]
    assert "no configuration" in support.notes[0]
    with pytest.raises(ImageError, match="no module erofs"):
        check_kernel(tree_of(image(None, modules__builtin=builtin)), read_inline, VERSION)


def test_paths_out_of_the_modules_directory_are_refused() -> None:
    with pytest.raises(FormatError, match="outside"):
        check_kernel(
            tree_of(image(None, modules__dep=DEP.replace(b"kernel/lib", b"../../../etc"))), read_inline, VERSION
        )


def test_an_old_kernel_is_noted() -> None:
    files = {path.replace(VERSION, "6.1.0"): data for path, data in image(GOOD).items()}
    assert "older than 6.6" in check_kernel(tree_of(files), read_inline, "6.1.0").notes[0]


def test_debians_kernel_passes() -> None:
    version, files = kernel()
    tree, read = scan(files)
    support = check_kernel(tree, read, version)
    assert support.file_backed is True
    assert {"erofs", "libcrc32c", "overlay", "loop"} <= {module_name(path) for path in support.modules}
    assert all((files / os.fsdecode(path)).exists() for path in support.modules)
