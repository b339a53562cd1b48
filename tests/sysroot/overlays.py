"""Many rounds of a machine's life under the kernel's overlayfs, in a mount namespace: run by test_etc_kernel.py.

Each round makes an image's /etc, changes it at random through an overlay mount, reads the upper directory, merges it
with a changed image, writes the new upper directory, and mounts that. The kernel must show what the model says.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from oci2boot.digest import External
from oci2boot.sysroot.etc import EtcPolicy, diff_etc, plan_etc
from oci2boot.sysroot.etc_overlay import view
from oci2boot.sysroot.etc_upper import write_upper
from oci2boot.tree.model import Directory
from oci2boot.workflows.machine.etc import read_upper
from tests.sysroot.etc_model import LONG, NAMES, Flat, changed, flat, merge, random_tree

OPTIONS: Final = ("", "redirect_dir=on", "redirect_dir=on,metacopy=on")


@contextlib.contextmanager
def overlay(lower: Path, state: Path, at: Path, options: str) -> Iterator[Path]:
    (state / "work").mkdir(exist_ok=True)
    at.mkdir(exist_ok=True)
    words = f"lowerdir={lower},upperdir={state}/upper,workdir={state}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", ",".join(filter(None, (words, options))), "etc", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def read(path: Path) -> Directory:
    return read_upper(path, "sha256").tree


def shown(path: Path) -> Flat:
    return flat(read(path))


def act(chance: random.Random, top: Path) -> None:
    """Do one thing that an administrator does, if it can be done."""
    folders = [Path(folder) for folder, _, _ in os.walk(top)]
    folder = chance.choice(folders)
    path, other = (folder / os.fsdecode(chance.choice(NAMES)) for _ in range(2))
    other = chance.choice(folders) / other.name
    if path.is_fifo():  # whose writer would wait for a reader
        path.unlink()
    with contextlib.suppress(OSError, shutil.Error):
        match chance.randrange(16):
            case 0 | 1:
                path.write_bytes(chance.choice((b"x", b"new", *LONG)))
            case 2:
                path.unlink()
            case 3:
                path.mkdir()
            case 4 | 5:
                shutil.rmtree(path)
            case 6:
                shutil.rmtree(path)
                path.mkdir()
            case 7 | 8:
                path.rename(other)
            case 9:
                path.symlink_to("a")
            case 10:
                other.hardlink_to(path)
            case 11:
                path.chmod(chance.choice((0o600, 0o755, 0o2755)))
            case 12:
                os.chown(path, 3, 4, follow_symlinks=False)
            case 13:
                os.setxattr(path, b"user.note", b"of the administrator", follow_symlinks=False)
            case 14:
                os.mkfifo(path)
            case 15:
                with path.open("ab") as file:
                    file.write(b"more")


def a_round(seed: int, place: Path) -> None:
    chance = random.Random(seed)
    base = random_tree(chance)
    theirs = changed(chance, base)
    assert isinstance(theirs, Directory)
    write_upper(base, place / "base", nowhere)
    write_upper(theirs, place / "theirs", nowhere)
    assert shown(place / "base") == flat(base)
    (place / "old").mkdir()
    (place / "old/upper").mkdir()
    shutil.copystat(place / "base", place / "old/upper")
    options = chance.choice(OPTIONS)
    with overlay(place / "base", place / "old", place / "etc", options) as etc:
        os.chown(etc, base.meta.uid, base.meta.gid)
        for _ in range(chance.randrange(30)):
            act(chance, etc)
        ours = shown(etc)
    upper = read_upper(place / "old/upper", "sha256")
    assert flat(view(base, upper.tree)) == ours, (seed, options)
    choice = chance.choice(("ours", "theirs"))
    plan = plan_etc(base, theirs, upper.tree, EtcPolicy.parse((choice,)))
    (place / "new").mkdir()
    for _ in range(2):  # it may be written again
        write_upper(plan.upper, place / "new/upper", lambda content: upper.files[content.digest])
    assert [path.name for path in (place / "new").iterdir()] == ["upper"]
    with overlay(place / "theirs", place / "new", place / "etc", "") as etc:
        wanted = merge(flat(base), ours, flat(theirs), lambda _: choice)
        assert shown(etc) == wanted, (seed, options, choice)
    assert {one.path for one in diff_etc(base, upper.tree)} == set(differing(flat(base), ours)), seed


def differing(base: Flat, ours: Flat) -> Iterator[str]:
    """Yield what `diff -r` of the two would name."""
    for path in base.keys() | ours.keys():
        if base.get(path) != ours.get(path):
            parent = path.rpartition(b"/")[0] or b"/"
            gone = path not in ours and not (parent in ours and ours[parent][0] == "directory")
            if not gone:
                yield "/etc" + path.decode(errors="backslashreplace").rstrip("/")


def nowhere(content: External) -> Path:
    raise AssertionError(f"{content} is not in the image")


def main(seeds: int) -> None:
    place = Path("/mnt")
    subprocess.run(["mount", "-t", "tmpfs", "etc", place], check=True)
    for seed in range(seeds):
        a_round(seed, place)
        for path in place.iterdir():
            shutil.rmtree(path)
    print(f"{seeds} rounds")


if __name__ == "__main__":
    main(int(sys.argv[1]))
