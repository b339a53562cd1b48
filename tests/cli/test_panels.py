"""`--help` shows every command, each in its group."""

from typer.testing import CliRunner

from oci2boot.cli.config import commands_of
from oci2boot.cli.main import app
from oci2boot.cli.panels import PANELS


def test_every_command_has_its_place_and_every_place_its_command() -> None:
    names = {name[0] for name, _ in commands_of(app)}
    placed = {name for panel in PANELS.values() for name in panel}
    assert names - placed == {"config"}
    assert placed - names == set()
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(f"│ {name} " in shown for name in names)
