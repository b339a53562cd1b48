"""A read-only mount, written to by one process alone. Witness: the kernel, in a user namespace."""

import subprocess
import sys
from pathlib import Path

from tests.witness import program

INSIDE = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
if touch "$1/outside" 2>/dev/null; then exit 3; fi
"$2" -c '
import sys
from pathlib import Path
from oci2boot.system.mounts import is_read_only, make_writable
path = Path(sys.argv[1])
assert is_read_only(path)
make_writable(path)
assert not is_read_only(path)
(path / "inside").write_text("written")
' "$1"
if touch "$1/outside" 2>/dev/null; then exit 4; fi
"""


def test_nobody_else_can_write(tmp_path: Path) -> None:
    """P.11: /sysroot stays read-only for the rest of the machine."""
    place = tmp_path / "sysroot"
    place.mkdir()
    argv = [program("unshare"), "--map-root-user", "--mount", "sh", "-c", INSIDE, "sh", str(place), sys.executable]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in place.iterdir()] == ["inside"]
