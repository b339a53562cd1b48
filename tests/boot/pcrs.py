"""PCR values by systemd-measure."""

import json
import subprocess
from pathlib import Path

from tests.boot.debian import systemd_measure


def measured(folder: Path, sections: dict[bytes, bytes], bank: str) -> dict[str, str]:
    """Return PCR 11 by phase."""
    words = []
    for name, content in sections.items():
        (folder / name.decode()).write_bytes(content)
        words.append(f"-{name.decode().replace('.', '-')}={folder / name.decode()}")
    argv = [str(systemd_measure()), "calculate", f"--bank={bank}", "--json=short", *words]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return {one["phase"]: one["hash"] for one in json.loads(done.stdout)[bank] if one["pcr"] == 11}
