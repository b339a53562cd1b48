"""The units for unattended upgrades and for the shutdown. Witness: systemd-analyze."""

import subprocess
from importlib.resources import files
from pathlib import Path

from tests.witness import program


def test_the_units_are_what_systemd_takes_and_nothing_enables_them(tmp_path: Path) -> None:
    """P.11: a timer, off by default."""
    names = ("oci2boot-upgrade.service", "oci2boot-upgrade.timer", "oci2boot-finalize.service")
    for name in names:
        text = files("oci2boot").joinpath("systemd", name).read_text()
        # The program is not installed where the tests run.
        (tmp_path / name).write_text(text.replace("/usr/bin/oci2boot", "/bin/true"))
    argv = [program("systemd-analyze"), "verify", "--man=no", *(str(tmp_path / name) for name in names)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "oci2boot" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
