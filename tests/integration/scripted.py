"""Machines in QEMU that run a script at each boot; what they find they write to the second serial port."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from oci2boot.system.qemu import credential, unit_credentials
from tests import vm

STEP_SECONDS = 900
"""One boot and what is done in it. oci2boot itself takes some ten seconds to start under TCG."""
CANARY = "usr/share/demo/release"
UNITS = "usr/lib/systemd/system"
PRELUDE = r"""
exec >/dev/ttyS1 2>&1
say() { printf '%s=%s\n' "$1" "$(eval "$2" 2>&1 | tr '\n' ';')"; }
json() { printf '%s=%s\n' "$1" "$(eval "$2" 2>/run/errors | tr -d '\n')"; cat /run/errors; }
"""


def script(machine_disk: Path, text: str, **more: Any) -> Any:
    units = unit_credentials("oci2boot-report.service", vm.REPORT_UNIT, wanted_by="multi-user.target")
    return replace(
        vm.machine(machine_disk, *units, credential("oci2boot.report", (PRELUDE + text).encode())),
        keep_writes=True,
        memory=1024,
        **more,
    )
