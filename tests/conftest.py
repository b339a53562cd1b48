"""What the slow tests share, whichever worker comes first: demo images, and disks installed from them."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import settings

from tests.vm import copy, oci2boot, users_folder

ROOT = Path(__file__).parent.parent

# Beside two virtual machines any example may take long.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

RUN = "OCI2BOOT_TEST_RUN"
Initramfs = Literal["dracut", "initramfs-tools"]


@dataclass(frozen=True, slots=True)
class Installed:
    """An image that an ordinary user converted, and the disk made from it. Tests change copies of the disk only."""

    repo: Path
    disk: Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also the tests that take long; a file that is named is run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless everything is asked for, or its file."""
    named = {Path(word.partition("::")[0]).name for word in config.args}
    if config.getoption("--all"):
        return
    long = [item for item in items if item.get_closest_marker("long") and item.path.name not in named]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


def pytest_configure() -> None:
    # The first process of a run names the folder, its workers inherit the name.
    os.environ.setdefault(RUN, str(Path(tempfile.gettempdir()) / f"oci2boot-tests-{os.getpid()}"))


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[RUN], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return a folder that all workers of this run see; an ordinary user may pass through it, unlike pytest's own."""
    folder = Path(os.environ[RUN])
    folder.mkdir(mode=0o711, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def demo_image() -> Callable[[Initramfs], Path]:
    """Return the OCI layout that `scripts/demo-image` made or kept; its tag is `latest`."""

    def layout(initramfs: Initramfs) -> Path:
        argv = ["scripts/demo-image", "--initramfs", initramfs]
        done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    return layout


@pytest.fixture(scope="session")
def installed(shared: Path, demo_image: Callable[[Initramfs], Path]) -> Callable[[Initramfs], Installed]:
    """Convert and install a demo image, once in a run, as an ordinary user."""

    def install(initramfs: Initramfs) -> Installed:
        home = shared / f"installed-{initramfs}"
        result = Installed(home / "repo", home / "disk.raw")
        with locked(shared / f"installed-{initramfs}.lock"):
            if not result.disk.exists():
                users_folder(home)
                oci2boot("convert", f"oci:{demo_image(initramfs)}:latest", "--repo", result.repo, home=home)
                oci2boot("install", "--target", result.disk, "--repo", result.repo, home=home)
        return result

    return install


@pytest.fixture
def changed(installed: Callable[[Initramfs], Installed], tmp_path: Path) -> Callable[[Initramfs], Path]:
    """Return a copy of a disk, to be changed."""
    return lambda initramfs: copy(installed(initramfs).disk, tmp_path / "disk.raw")
