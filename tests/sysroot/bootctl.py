"""What Debian 13's bootctl sees in a directory, in a file system of its own, as it insists on."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

from tests.boot.debian import package
from tests.witness import program

LIBRARIES = (
    "libc6", "libsystemd-shared", "libacl1", "libaudit1", "libblkid1", "libcap2", "libcap-ng0", "libcrypt1",
    "libmount1", "libpam0g", "libpcre2-8-0", "libseccomp2", "libselinux1", "libssl3t64", "zlib1g", "libzstd1",
)  # fmt: skip
LIB = "usr/lib/x86_64-linux-gnu"


def listed(esp: Path) -> list[dict[str, Any]]:
    """Return the menu as `bootctl list` shows it."""
    library_path = ":".join(f"{package(name)}/{LIB}{below}" for name in LIBRARIES for below in ("", "/systemd"))
    argv = [
        package("libc6") / LIB / "ld-linux-x86-64.so.2",
        "--library-path",
        library_path,
        package("systemd-boot-tools") / "usr/bin/bootctl",
        "--esp-path=/mnt",
        "--json=short",
        "list",
    ]
    script = f"mount -t tmpfs none /mnt && cp -r {shlex.quote(str(esp))}/. /mnt && exec {shlex.join(map(str, argv))}"
    done = subprocess.run(
        [program("unshare"), "--map-root-user", "--mount", "sh", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env={"SYSTEMD_RELAX_ESP_CHECKS": "1", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [entry for entry in found if entry["type"] in ("type1", "type2")]
