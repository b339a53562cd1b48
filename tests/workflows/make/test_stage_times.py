"""A stage of a build as a directory, and the image that buildah makes of it: one digest, with cfsctl as the witness."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from oci2boot.errors import FormatError
from oci2boot.oci.reference import DirectoryReference, Reference
from oci2boot.tree.times import Times
from oci2boot.workflows.make.digest import measure
from oci2boot.workflows.progress import silent
from oci2boot.workflows.requests import DigestRequest, TreeOptions
from tests.witness import program

EPOCH = 1_700_000_000
OLD = EPOCH - 100_000_000
"""The base image's; a file of a package that a RUN unpacks is older than its build, too."""

BELOW = """\
FROM scratch
COPY busybox busybox.sh /usr/bin/
RUN ["/usr/bin/busybox", "sh", "/usr/bin/busybox.sh"]
"""
BASE = f"""\
cd /; b=/usr/bin/busybox
$b mkdir -p boot sysroot run usr/lib/gone usr/lib/replaced usr/lib/kept usr/share
echo one >usr/lib/one; $b ln usr/lib/one usr/lib/two; $b ln usr/lib/one usr/lib/three
echo kept >usr/lib/kept/file; echo gone >usr/lib/gone/file; echo old >usr/lib/replaced/old
$b ln -s one usr/lib/link; echo linked >usr/share/linked
$b rm usr/bin/busybox.sh
$b find usr -exec $b touch -h -d @{OLD} {{}} +
"""
STAGE = f"""\
cd /; b=/usr/bin/busybox
echo new >usr/lib/new; $b ln usr/lib/new usr/lib/new-too
$b rm -r usr/lib/gone; $b rm -r usr/lib/replaced; $b mkdir usr/lib/replaced; echo new >usr/lib/replaced/new
echo more >>usr/lib/two; $b chmod 600 usr/lib/three; $b ln usr/share/linked usr/share/linked-too
echo unpacked >usr/share/unpacked; $b touch -d @{OLD + 1000} usr/share/unpacked
$b ln -s new usr/lib/new-link
$b rm usr/bin/stage.sh
"""
LOOK = """\
/usr/bin/busybox cp -a /mnt/. /out/$1
cd /mnt && /usr/bin/busybox find . -exec /usr/bin/busybox stat -c '%n %y' {} + >/out/$1.times
"""
RECIPE = """\
FROM below AS base
COPY stage.sh /usr/bin/stage.sh
RUN ["/usr/bin/busybox", "sh", "/usr/bin/stage.sh"]
COPY file /usr/lib/file
RUN ["/usr/bin/busybox", "touch", "/usr/lib/last"]
FROM below AS look
COPY look.sh /
RUN --mount=type=bind,from=base,target=/mnt ["/usr/bin/busybox", "sh", "/look.sh", "stage"]
RUN --mount=type=bind,from=below,target=/mnt ["/usr/bin/busybox", "sh", "/look.sh", "below"]
RUN ["/usr/bin/busybox", "touch", "/uki.efi"]
FROM base
COPY --from=look /uki.efi /boot/EFI/Linux/uki.efi
"""


@dataclass(frozen=True, slots=True)
class Storage:
    """buildah's, of one test."""

    folder: Path
    context: Path

    def run(self, *words: str | Path) -> None:
        # Without root there is no overlayfs to count on.
        driver = "overlay" if os.geteuid() == 0 else "vfs"
        argv: list[str | Path] = [
            program("buildah"), "--root", self.folder / "root", "--runroot", self.folder / "run",
            "--storage-driver", driver, *words,
        ]  # fmt: skip
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    def build(self, tag: str, recipe: str, *words: str | Path) -> Path:
        """Return the image as an OCI layout."""
        (self.context / "Containerfile").write_text(recipe)
        self.run("bud", "--isolation", "chroot", "--pull-never", "--no-cache", "--tag", tag, *words, self.context)
        layout = self.folder / f"{tag}-layout"
        self.run("push", "--quiet", "--format", "oci", tag, f"oci:{layout}:latest")
        return layout


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    """Give a storage with the image `below`."""
    folder = Path(tempfile.mkdtemp(prefix="oci2boot-stages-"))
    try:
        made = Storage(folder, folder / "context")
        made.context.mkdir()
        busybox = made.context / "busybox"
        busybox.write_bytes(Path(program("busybox")).read_bytes())
        busybox.chmod(0o755)
        (made.context / "busybox.sh").write_text(BASE)
        (made.context / "stage.sh").write_text(STAGE)
        (made.context / "look.sh").write_text(LOOK)
        (made.context / "file").write_text("of the context\n")
        os.utime(made.context / "file", ns=(0, (OLD + 5) * 10**9 + 678_000_000))
        made.build("below", BELOW)
        yield made
    finally:
        # buildah leaves the bind-mounted stages mounted.
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for point in reversed([point for point in mounted if Path(point).is_relative_to(folder)]):
            subprocess.run([program("umount"), point], check=True)
        namespace = [] if os.geteuid() == 0 else [program("buildah"), "unshare"]
        subprocess.run([*namespace, "rm", "-rf", str(folder)], check=True)


def built(storage: Storage, tag: str, *words: str) -> tuple[Path, Path]:
    """Return the image, and the folder with what its last but one stage saw: `stage` and `below`, to the nanosecond."""
    seen = storage.folder / f"{tag}-seen"
    for name in ("stage", "below"):
        (seen / name).mkdir(parents=True)
    layout = storage.build(tag, RECIPE, "--volume", f"{seen}:/out:rw", *words)
    for name in ("stage", "below"):
        for line in (seen / f"{name}.times").read_text().splitlines():
            # busybox's cp takes seconds, and leaves a symbolic link's time out.
            path, day, clock, _ = line.split()
            whole, _, fraction = clock.partition(".")
            second = int(datetime.fromisoformat(f"{day}T{whole}+00:00").timestamp())
            os.utime(seen / name / path, ns=(0, second * 10**9 + int(fraction)), follow_symlinks=False)
    return layout, seen


def by_cfsctl(layout: Path, folder: Path) -> str:
    argv = [program("cfsctl"), "--repo", str(folder), "--insecure"]
    init = [argv[0], "init", "--algorithm", "fsverity-sha256-12", "--insecure", str(folder)]
    subprocess.run(init, check=True, capture_output=True)
    subprocess.run([*argv, "oci", "pull", f"oci:{layout}:latest", "it"], check=True, capture_output=True)
    argv += ["--erofs-version=1", "oci", "compute-id", "--bootable", "it"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def digest(source: Path | Reference, times: str = "seconds", below: Path | None = None) -> str:
    reference = DirectoryReference(source) if isinstance(source, Path) else source
    tree = TreeOptions(times=Times.parse(times), times_below=below)
    return str(measure(DigestRequest(source=reference, tree=tree), silent).rootfs.digest)


BUILDS = {
    "layers": (["--layers=true"], "seconds"),
    "one-layer": (["--layers=false"], "seconds"),
    "squash": (["--squash"], "nearest"),
    "timestamp": (["--layers=false", "--timestamp", str(EPOCH)], str(EPOCH)),
    "timestamp-layers": (["--layers=true", "--timestamp", str(EPOCH)], str(EPOCH)),
    "timestamp-squash": (["--squash", "--timestamp", str(EPOCH)], str(EPOCH)),
}


@pytest.mark.parametrize("build", BUILDS)
def test_a_stage_has_the_digest_of_the_image_that_comes_of_it(build: str, storage: Storage, tmp_path: Path) -> None:
    """C.26, D.14: with RUN, COPY, hard links and whiteouts, and however buildah makes layers of it."""
    words, times = BUILDS[build]
    layout, seen = built(storage, build, *words)
    below = seen / "below" if times == str(EPOCH) and "squash" not in build else None
    expected = by_cfsctl(layout, tmp_path / "cfsctl")
    assert digest(seen / "stage", times, below) == expected
    assert digest(Reference.parse(f"oci:{layout}:latest")) == expected
    if build == "one-layer":  # else a stage may be one that buildah read back from its layers
        assert digest(seen / "stage", "exact") != expected


def test_what_another_build_adds_above_counts_or_not_as_cfsctl_has_it(storage: Storage, tmp_path: Path) -> None:
    """C.26, C.4: a layer with /boot alone leaves the digest as it is, one with more does not."""
    layout, seen = built(storage, "first", "--layers=false")
    stage = digest(seen / "stage")
    only_boot = storage.build("only-boot", "FROM first\nCOPY file /boot/loader/file\n")
    with_usr = storage.build("with-usr", "FROM first\nCOPY file /usr/lib/another\n")
    assert by_cfsctl(layout, tmp_path / "0") == stage
    assert by_cfsctl(only_boot, tmp_path / "1") == stage
    assert digest(Reference.parse(f"oci:{only_boot}:latest")) == stage
    assert by_cfsctl(with_usr, tmp_path / "2") == digest(Reference.parse(f"oci:{with_usr}:latest")) != stage


def test_times_that_are_of_no_use_to_a_source_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="times are chosen for a directory, and oci:x is none"):
        digest(Reference.parse("oci:x"), "exact")
    with pytest.raises(FormatError, match="matters to times of new layers alone"):
        digest(tmp_path, "seconds", tmp_path)
