"""What is on the partition that a machine under dm-verity writes to."""

from pathlib import Path

import pytest

from oci2boot.digest import VerityDigest
from oci2boot.errors import TargetError
from oci2boot.sysroot.nextroot import NEXT, mount_argvs
from oci2boot.sysroot.physical import Recorded, overlay_state, physical_root
from oci2boot.tree.model import SELINUX_XATTR, Directory, File, Metadata, find

DEPLOYMENT = Recorded(VerityDigest("sha256", bytes(32)), b"{}")


def labelled(label: str, **entries: Directory | File) -> Directory:
    meta = Metadata(mode=0o755, uid=len(label), xattrs={SELINUX_XATTR: label.encode() + b"\0"})
    return Directory(meta, {name.encode(): inode for name, inode in entries.items()})


TREE = labelled(
    "root_t",
    etc=labelled("etc_t", passwd=File(Metadata(mode=0o644), b"root")),
    srv=labelled("var_t", www=labelled("httpd_t"), file=File(Metadata(mode=0o644), b"")),
)


def test_upper_directories_have_the_labels_of_what_they_stand_for() -> None:
    """K0.4: with SELinux enforced, /etc and a place further down can be used as before."""
    written = labelled("etc_t", hostname=File(Metadata(mode=0o644), b"box"))
    state = overlay_state(DEPLOYMENT, TREE, ["/etc", "/srv/www"], {"/etc": written})
    assert find(state, b"/state/overlays/etc/upper") is written
    upper, lower = find(state, b"/state/overlays/srv/www/upper"), find(TREE, b"/srv/www")
    assert isinstance(upper, Directory)
    assert lower
    assert (upper.meta, upper.entries) == (lower.meta, {})
    overlays = (b"/state/overlays", b"/state/overlays/etc", b"/state/overlays/srv", b"/state/overlays/etc/work")
    for path in (*overlays, b"/state/deploy"):
        inode = find(state, path)
        assert inode
        assert inode.meta.xattrs == {SELINUX_XATTR: b"root_t\0"}


@pytest.mark.parametrize("place", ["/opt", "/srv/none", "/srv/file"])
def test_a_place_that_is_no_directory_is_refused(place: str) -> None:
    with pytest.raises(TargetError, match=f"{place} is not a directory of the image"):
        overlay_state(DEPLOYMENT, TREE, [place], {})


def test_the_physical_root_is_for_root_alone() -> None:
    """B.12: what lies there is reached by no account, whatever mode it has."""
    root = physical_root(DEPLOYMENT, [], {}, b"{}", TREE)
    assert root.meta.mode == 0o700
    composefs = find(root, b"/composefs")
    assert composefs
    assert composefs.meta.mode == 0o700


def test_a_soft_reboot_mounts_what_nothing_verifies_without_rights() -> None:
    """B.12: as the initramfs does."""
    calls = [list(map(str, argv)) for argv in mount_argvs(DEPLOYMENT.digest, Path("/image"), Path("/sysroot"))]
    options = {argv[-1]: argv[argv.index("-o") + 1] for argv in calls if "-o" in argv}
    for place in ("etc", "var", "sysroot"):
        assert {"nosuid", "nodev"} <= set(options[str(NEXT / place)].split(",")), place
    assert {"noexec", "ro"} <= set(options[str(NEXT / "sysroot")].split(","))
