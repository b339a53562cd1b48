"""fs-verity digests. Expected values come from `fsverity digest` of fsverity-utils, run on files with this content."""

import shutil
import subprocess
from pathlib import Path

import pytest

from oci2boot.digest import Hash
from oci2boot.formats import fsverity

EMPTY = "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"
HELLO = "1e2eaa4202d750a41174ee454970b92c1bc2f925b1e35076d8c7d5f56362ba64"


@pytest.mark.parametrize(("content", "digest"), [(b"", EMPTY), (b"hello world", HELLO)])
def test_measure_agrees_with_the_kernel(content: bytes, digest: str) -> None:
    assert str(fsverity.measure(content)) == digest


SIZES = [1, 4095, 4096, 4097, 65536, 128 * 4096, 128 * 4096 + 1, 3_000_001]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("size", SIZES)
def test_measure_agrees_with_fsverity_utils(size: int, algorithm: Hash, tmp_path: Path) -> None:
    program = shutil.which("fsverity")
    assert program, "fsverity is missing: scripts/test installs it"
    content = bytes(range(256)) * (size // 256 + 1)
    file = tmp_path / "file"
    file.write_bytes(content[:size])
    tree, descriptor = tmp_path / "tree", tmp_path / "descriptor"
    said = subprocess.run(
        [
            program,
            "digest",
            f"--hash-alg={algorithm}",
            f"--out-merkle-tree={tree}",
            f"--out-descriptor={descriptor}",
            file,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[0]
    assert f"{algorithm}:{fsverity.measure(content[:size], algorithm)}" == said
    hasher = fsverity.Hasher(algorithm)
    for at in range(0, size, 1000):
        hasher.update(content[at : min(at + 1000, size)])
    assert f"{algorithm}:{hasher.digest()}" == said
    assert hasher.metadata() == (tree.read_bytes(), descriptor.read_bytes())
