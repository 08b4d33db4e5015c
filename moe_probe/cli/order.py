"""The order in which ``moe-probe --help`` lists the commands: that of their use, under headings."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

import moe_probe

#: Commands by heading, in the order of use.
ORDER: dict[str, tuple[str, ...]] = {
    "Start here": ("demo", "check", "new", "run"),
    "Record routing": ("collect", "import", "merge", "verify"),
    "Experts": ("analyze", "report", "ablate", "inspect"),
    "Features": ("sae", "label", "match", "tree", "find"),
    "About runs": ("info", "compare", "models", "cost", "cite"),
}
_PLACE = {name: i for i, name in enumerate(name for names in ORDER.values() for name in names)}


class CommandsInOrder(TyperGroup):
    """The program's commands, listed in the order of `ORDER`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands, in the order of use."""
        return sorted(super().list_commands(ctx), key=lambda name: _PLACE.get(name, len(_PLACE)))


def arrange(app: typer.Typer) -> None:
    """Put every command under its heading.

    Parameters
    ----------
    app : typer.Typer
        With all its commands.
    """
    headings = {name: heading for heading, names in ORDER.items() for name in names}
    for command in app.registered_commands:
        command.rich_help_panel = headings[command.name or ""]
    for group in app.registered_groups:
        group.rich_help_panel = headings[str(group.name)]


def print_version(asked: bool) -> None:
    """Print the version and end the program, where ``--version`` was given.

    Parameters
    ----------
    asked : bool
    """
    if asked:
        typer.echo(f"moe-probe {moe_probe.__version__}")
        raise typer.Exit
