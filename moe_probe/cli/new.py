"""The command `new`: a settings file for `run`, with every setting explained."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import command
from moe_probe.core.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(app, "new", "moe-probe new path/to/model --corpus corpus.jsonl --out run.yaml")(new)


def new(
    model: Annotated[
        str | None, typer.Argument(help="Folder of a checkpoint, or its name on a hub.", show_default=False)
    ] = None,
    *,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="Labelled documents, as for run.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("run.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    console: Console,
) -> None:
    """Write a run.yaml with every setting of a run, its meaning and its default, to edit and to give to run --config."""
    from moe_probe.core.files import disk_errors, write_text
    from moe_probe.runs.template import settings_file

    if out.is_dir():
        raise UsageError(f"{out} is a folder", "the settings are one file", f"--out {out / 'run.yaml'}")
    if out.exists() and not force:
        raise UsageError(f"{out} exists already", "refusing to overwrite it", "--force, or another --out")
    with disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, settings_file(model, corpus))
    missing = "" if model else " MODEL"
    missing += "" if corpus else " --corpus FILE"
    console.result(
        {"settings": str(out)},
        f"Settings: {out}. Edit it. Next: moe-probe run{missing} --config {shlex.quote(str(out))} --out RUN",
    )
