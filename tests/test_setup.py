"""`scripts/setup test` where Rust is too old: what it installs, and what it tells those for whom it cannot."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REAL = ("bash", "cat", "cut", "dirname", "env", "head", "mkdir", "mktemp", "mv", "rm", "sha256sum", "sort")
NO_PACKAGE = "echo 'rustup:'; echo '  Candidate: (none)'"
PACKAGE = "echo 'rustup:'; echo '  Candidate: 1.27.1-3'"
DOWNLOAD = "https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain 1.88"


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that has everything but Rust and what it builds. Its programs write down how they are called."""

    home: Path

    @property
    def calls(self) -> list[str]:
        return (self.home / "calls").read_text().splitlines()

    def add(self, name: str, script: str, folder: str = "bin") -> None:
        path = self.home / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.home}/calls"\n{script}\n')
        path.chmod(0o755)

    def setup(self) -> subprocess.CompletedProcess[str]:
        """Run scripts/setup test; no other program of this machine is found."""
        env = {"PATH": str(self.home / "bin"), "HOME": str(self.home)}
        argv = ["bash", str(self.home / "project/scripts/setup"), "test"]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    (tmp_path / "bin").mkdir()
    for name in REAL:
        found = shutil.which(name)
        assert found
        (tmp_path / "bin" / name).symlink_to(found)
    (tmp_path / "project/scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/setup", tmp_path / "project/scripts/setup")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "project/pyproject.toml")
    host.add("python", "", "project/.venv/bin")
    host.add("python3", "")
    host.add("dpkg-query", "case $* in *rustup) exit 1 ;; esac; printf installed")
    host.add("apt-get", "")
    host.add("id", "echo 0")
    host.add("cargo", "")
    return host


@pytest.mark.parametrize("rust", ["1.85.0", "1.9.0", None])
def test_rustup_of_the_distribution_brings_a_rust_that_is_new_enough(host: Host, rust: str | None) -> None:
    if rust:
        host.add("rustc", f"echo 'rustc {rust} (0123456789 2025-01-01)'")
    host.add("apt-cache", PACKAGE)
    host.add("rustup.deb", "")
    host.add("apt-get", f'case $* in *rustup) mv "{host.home}/bin/rustup.deb" "{host.home}/bin/rustup" ;; esac')
    done = host.setup()
    assert done.returncode == 0, done.stderr
    assert any(call.startswith("apt-get") and call.endswith("--no-install-recommends rustup") for call in host.calls)
    rustup = [call.split()[1:] for call in host.calls if call.startswith("rustup.deb ")]
    assert rustup[0] == ["toolchain", "install", "--profile", "minimal", "1.88"]
    assert [words[:5] for words in rustup[1:]] == [["run", "1.88", "cargo", "install", "--quiet"]] * 2
    assert not any(call.startswith("cargo ") for call in host.calls)


@pytest.mark.parametrize("policy", [NO_PACKAGE, "exit 1"])
def test_without_such_a_package_there_is_one_sentence_and_one_command(host: Host, policy: str) -> None:
    host.add("rustc", "echo 'rustc 1.63.0'")
    host.add("apt-cache", policy)
    done = host.setup()
    assert done.returncode == 1
    sentence, command = done.stderr.splitlines()
    assert "Rust 1.88 or newer (here: 1.63.0)" in sentence
    assert command.strip().startswith("curl ")
    assert command.endswith(DOWNLOAD)
    assert not any(call.startswith("cargo ") for call in host.calls)


def test_a_rustup_that_somebody_installed_is_taken(host: Host) -> None:
    """As after that command: it lies in the user's own folder, and an old rustc may come before its own."""
    host.add("rustc", "echo 'rustc 1.63.0'")
    host.add("rustup", "", ".cargo/bin")
    assert host.setup().returncode == 0
    assert "rustup toolchain install --profile minimal 1.88" in host.calls
    assert not any(call.startswith("apt-cache") for call in host.calls)


@pytest.mark.parametrize("rust", ["1.88.0", "1.100.0"])
def test_a_rust_that_is_new_enough_is_used(host: Host, rust: str) -> None:
    host.add("rustc", f"echo 'rustc {rust} (0123456789 2025-01-01)'")
    assert host.setup().returncode == 0
    assert len([call for call in host.calls if call.startswith("cargo install")]) == 2
    assert not any(call.startswith("rustup") for call in host.calls)
