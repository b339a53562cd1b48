"""The commands in groups, as `--help` shows them: the order in which a newcomer meets them."""

from typing import Final

import typer

PANELS: Final = {
    "From an image to a machine": ("convert", "install", "build", "seal", "keys", "uki"),
    "What it is, and whether it is intact": ("inspect", "verify", "test", "digest", "explain"),
    "A machine that lives on": (
        *(
            "status",
            "upgrade",
            "switch",
            "rollback",
            "pin",
            "unpin",
            "delete",
            "finalize",
            "kargs",
            "etc-diff",
            "reset",
        ),
    ),
    "The store": ("images", "pull", "export", "sysupdate", "mount", "fsck", "gc"),
}
_OTHER: Final = "Further commands"


def arrange(app: typer.Typer) -> None:
    """Give each command its panel and place; one that is in none comes last."""
    panel_of = {name: panel for panel, names in PANELS.items() for name in names}
    order = list(panel_of)

    def place(name: str) -> int:
        return order.index(name) if name in panel_of else len(order)

    for command in app.registered_commands:
        command.rich_help_panel = panel_of.get(_name(command), _OTHER)
    app.registered_commands.sort(key=lambda command: place(_name(command)))
    for group in app.registered_groups:
        assert group.typer_instance
        group.rich_help_panel = panel_of.get(str(group.typer_instance.info.name), _OTHER)


def _name(command: typer.models.CommandInfo) -> str:
    assert command.callback
    return command.name or command.callback.__name__.replace("_", "-")
