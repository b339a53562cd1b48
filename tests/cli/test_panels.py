"""`--help` shows every command, each in its group."""

from typer.testing import CliRunner

from oci2boot.cli.config import commands_of
from oci2boot.cli.main import COMMANDS, app


def test_every_command_has_its_place() -> None:
    names = {name[0] for name, _ in commands_of(app)}
    assert len(names) == sum(len(commands) for commands in COMMANDS.values())
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(f"│ {name} " in shown for name in names)
    assert all(panel in shown for panel in COMMANDS)
