"""Packages of Debian 13, fetched by apt without touching the host's own, unpacked and kept in build/."""

import fcntl
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.witness import program

PROJECT = Path(__file__).parent.parent.parent
KEPT = PROJECT / "build" / "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@contextmanager
def _alone() -> Iterator[None]:
    """Keep other test processes away from what is kept."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def package(name: str) -> Path:
    """Return the directory with a package's files; the first call of a name fetches it."""
    made = KEPT / name
    with _alone():
        if not made.exists():
            options = _private_apt()
            with tempfile.TemporaryDirectory(dir=KEPT) as scratch:
                _run(program("apt-get"), *options, "download", name, cwd=Path(scratch))
                (archive,) = Path(scratch).glob("*.deb")
                _run(program("dpkg-deb"), "-x", archive, Path(scratch, "files"))
                Path(scratch, "files").rename(made)
    return made


def kernel() -> tuple[str, Path]:
    """Return the version of Debian's kernel for virtual machines and its files, modules.dep by depmod among them."""
    name = _dependency("linux-image-cloud-amd64")
    version, files = name.removeprefix("linux-image-"), package(name)
    with _alone():
        if not (files / "lib").exists():
            (files / "lib").symlink_to("usr/lib")
        if not (files / "usr/lib/modules" / version / "modules.dep").exists():
            _run(program("depmod"), "-b", files, version)
    return version, files


def wrapped(path: str, *names: str) -> Path:
    """Return a program of the first package named that runs here, with the libraries of the others and of libc6.

    Debian 12's C library is too old for the programs of Debian 13; it is a script in a folder with nothing else.
    """
    files = [package(name) for name in names]
    folders = [found / "usr/lib/x86_64-linux-gnu" for found in (package("libc6"), *files)]
    libraries = [*folders, *(folder / "systemd" for folder in folders)]
    script = KEPT / "bin" / names[0] / Path(path).name
    script.parent.mkdir(parents=True, exist_ok=True)
    words = [libraries[0] / "ld-linux-x86-64.so.2", "--library-path", ":".join(map(str, libraries)), files[0] / path]
    pending = script.with_name(f".{script.name}.{os.getpid()}")
    pending.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    pending.chmod(0o755)
    pending.rename(script)
    return script


def erofs_utils(name: str) -> Path:
    """Return mkfs.erofs, fsck.erofs or dump.erofs of Debian 13: they know tar streams, zstd and xattrs."""
    libraries = (
        "libselinux1", "libpcre2-8-0", "libuuid1", "liblz4-1", "liblzma5", "zlib1g", "libdeflate0", "libzstd1",
        "libxxhash0",
    )  # fmt: skip
    return wrapped(f"usr/bin/{name}", "erofs-utils", *libraries)


def systemd_measure() -> Path:
    """Return systemd-measure 257, which computes PCR 11 of a UKI's sections."""
    libraries = (
        "libsystemd-shared", "libssl3t64", "libacl1", "libblkid1", "libcap2", "libcrypt1", "libmount1", "libpam0g",
        "libseccomp2", "libselinux1", "libpcre2-8-0", "libaudit1", "libcap-ng0", "zlib1g", "libzstd1",
    )  # fmt: skip
    return wrapped("usr/lib/systemd/systemd-measure", "systemd", *libraries)


def systemd_repart() -> Path:
    """Return systemd-repart 257, which makes partitions in plain files without root."""
    libraries = (
        "libsystemd-shared", "systemd", "libssl3t64", "libacl1", "libblkid1", "libcap2", "libcrypt1", "libmount1",
        "libpam0g", "libseccomp2", "libselinux1", "libpcre2-8-0", "libaudit1", "libcap-ng0", "zlib1g", "libzstd1",
        "libfdisk1", "libuuid1", "libcryptsetup12", "libdevmapper1.02.1", "libudev1", "libjson-c5", "libargon2-1",
    )  # fmt: skip
    return wrapped("usr/bin/systemd-repart", "systemd-repart", *libraries)


def systemd_sysupdate() -> Path:
    """Return systemd-sysupdate 257, which matches definitions with partitions and files without root."""
    libraries = (
        "libsystemd-shared", "systemd", "libssl3t64", "libacl1", "libblkid1", "libcap2", "libcrypt1", "libmount1",
        "libpam0g", "libseccomp2", "libselinux1", "libpcre2-8-0", "libaudit1", "libcap-ng0", "zlib1g", "libzstd1",
        "libfdisk1", "libuuid1",
    )  # fmt: skip
    return wrapped("usr/lib/systemd/systemd-sysupdate", "systemd-container", *libraries)


def _dependency(name: str) -> str:
    """Return the first package that a metapackage depends on."""
    with _alone():
        shown = _run(program("apt-cache"), *_private_apt(), "depends", "--important", name)
    return next(line.split()[1] for line in shown.splitlines() if line.strip().startswith("Depends:"))


def _private_apt() -> list[str]:
    apt = KEPT / "apt"
    (apt / "lists/partial").mkdir(parents=True, exist_ok=True)
    (apt / "archives/partial").mkdir(parents=True, exist_ok=True)
    sources = apt / "sources.list"
    (apt / "status").touch()
    options = [
        f"Dir::Etc::SourceList={sources}", "Dir::Etc::SourceParts=-", f"Dir::State::Lists={apt / 'lists'}",
        f"Dir::State::Status={apt / 'status'}", f"Dir::Cache={apt}", f"Dir::Cache::Archives={apt / 'archives'}",
        "Acquire::Check-Valid-Until=false", "Acquire::Languages=none", "APT::Sandbox::User=root",
    ]  # fmt: skip
    words = [word for option in options for word in ("-o", option)]
    if not sources.exists():
        mirror = _run(PROJECT / "scripts/debian-mirror").strip()
        pending = apt / "sources.new"
        pending.write_text(f"deb [signed-by={KEYRING}] {mirror} trixie main\n")
        words_now = [word.replace(str(sources), str(pending)) for word in words]
        _run(program("apt-get"), *words_now, "update")
        pending.rename(sources)
    return words


def _run(*argv: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, check=False, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
