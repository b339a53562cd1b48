"""What a stopped command left, seen from outside: by fsverity-utils, cfsctl, objcopy and systemd."""

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from functools import cache, cmp_to_key
from pathlib import Path

from tests.witness import program


def _run(*argv: str | Path) -> str:
    done = subprocess.run([*map(str, argv)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
    return done.stdout


def copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    _run("cp", "-a", "--reflink=auto", source, target)
    return target


def _timeless(path: Path) -> bytes:
    """Return a file's content; a deployment that is made again is younger."""
    content = path.read_bytes()
    return re.sub(rb'"deployed": \d+', b"", content) if path.name == "oci2boot.json" else content


def snapshot(top: Path, *, without: str = "") -> dict[str, str]:
    """Return everything beneath a folder but times and the lock: kind, mode, owner and content by path."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = Path(folder, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                content = f"-> {path.readlink()}"
            elif stat.S_ISREG(status.st_mode) and name != "lock":
                content = hashlib.sha256(_timeless(path)).hexdigest()
            else:
                content = ""
            where = str(path.relative_to(top))
            if not (without and re.search(without, where)):
                found[where] = f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {content}"
    return found


def check_objects(repo: Path) -> None:
    """Every object has its name for digest, whatever points at it."""
    objects = sorted(path for path in (repo / "objects").glob("*/*") if path.is_file())
    if objects:
        found = _run(program("fsverity"), "digest", "--compact", *objects).split()
        assert found == [path.parent.name + path.name for path in objects]


def check_repository(repo: Path) -> None:
    """The repository is whole for composefs-rs too, where there is one yet."""
    if not (repo / "meta.json").exists():
        assert not any(repo.glob("**/refs"))
        return
    check_objects(repo)
    assert "status: ok" in _run(program("cfsctl"), "--repo", repo, "--insecure", "fsck")


# ---- what a machine would boot


@cache
def section(uki: bytes, name: str, folder: Path) -> bytes:
    """Return a section of an executable, by objcopy."""
    source, target = folder / "section.efi", folder / "section"
    source.write_bytes(uki)
    _run(program("objcopy"), "--dump-section", f"{name}={target}", source, folder / "section.copy")
    return target.read_bytes().rstrip(b"\0")


@cache
def newer(first: str, second: str) -> int:
    """Compare two versions as systemd-boot does."""
    if first == second:
        return 0
    argv = [program("systemd-analyze"), "compare-versions", first, second]
    return {0: 0, 11: 1, 12: -1}[subprocess.run(argv, check=False, capture_output=True).returncode]


def _fields(osrel: bytes) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in osrel.decode().splitlines() if "=" in line)
    return {key: value.strip("\"'") for key, value in pairs}


def entries(esp: Path, folder: Path) -> Iterator[Path]:
    """Yield the UKIs of a boot directory in the order of systemd-boot(7) and the Boot Loader Specification."""

    def key(uki: Path) -> tuple[bool, str, str, str]:
        fields = _fields(section(uki.read_bytes(), ".osrel", folder))
        counter = re.search(r"\+(\d+)(-\d+)?\.efi$", uki.name)
        bad = counter is not None and int(counter[1]) == 0
        version = next((fields[name] for name in ("IMAGE_VERSION", "VERSION", "VERSION_ID") if name in fields), "")
        return (
            bad,
            fields.get("IMAGE_ID") or fields.get("ID", ""),
            version,
            re.sub(r"\+\d+(-\d+)?\.efi$", ".efi", uki.name),
        )

    def compare(first: Path, second: Path) -> int:
        one, other = key(first), key(second)
        if one[:2] != other[:2]:
            return -1 if one[:2] < other[:2] else 1
        return newer(other[2], one[2]) or newer(other[3], one[3])

    folder_of_ukis = esp / "EFI/Linux"
    names = [path for path in folder_of_ukis.glob("*.efi") if not path.name.startswith(".")] if esp.exists() else []
    yield from sorted(names, key=cmp_to_key(compare))


def promised(uki: Path, folder: Path) -> str:
    found: list[bytes] = re.findall(rb"composefs=\??([0-9a-f]{64})\b", section(uki.read_bytes(), ".cmdline", folder))
    assert len(found) == 1, found
    return found[0].decode()


def check_deployment(sysroot: Path, digest: str, folder: Path) -> None:
    """An image is there whole, with all its files and a place for its state."""
    repo = sysroot / "composefs"
    image = repo / "images" / digest
    assert _run(program("fsverity"), "digest", "--compact", image).strip() == digest
    info = folder / "composefs-info"
    if not info.exists():
        info.symlink_to(program("cfsctl"))
    for path in _run(info, "objects", image).split():
        assert (repo / "objects" / path).is_file(), path
    state = sysroot / "state/deploy" / digest
    for path in ("etc/upper", "etc/work", "var"):
        assert (state / path).is_dir(), state / path


def check_boots(sysroot: Path, esp: Path, folder: Path) -> str:
    """What the boot loader would start is whole, and so is its image; return that one's digest."""
    first = next(entries(esp, folder))
    digest = promised(first, folder)
    check_objects(sysroot / "composefs")
    check_deployment(sysroot, digest, folder)
    return digest
