"""The command line, ``moe-probe COMMAND``: words in, calls of the other rooms out.

Files with commands:

- `runs`: ``demo``, ``run``, ``collect``, ``analyze``, ``report``; `importing`: ``import``; `merging`: ``merge``.
- `saes`: ``sae train``, ``sae load``, ``sae eval``; `features`: ``label``, ``find``.
- `match`, `ablate`, `tree`, `compare`, `inspect`, `check`, `models`, `new`: the command of that name; `costs`: ``cost``.
- `provenance`: ``info``, ``verify``, ``cite``.

What all commands share:

- `options` makes options from settings classes and annotations; `model_choice` the options that name a model.
- `console` prints results, ``--json`` and ``--quiet``, and checks label columns; `guard` turns a failure into one sentence
  and its exit status; `unexpected` logs the traceback of a fault.
- `order` the order of the commands in the help, and ``--version``; `former` names that options had before.
- `ending` the last lines of `run`, `demo` and `analyze`: the short answers of the report, and the next command.
- `usage` refuses unknown options and commands ("did you mean"), and ends every help with the exit status.

Nothing heavy is imported before a command runs, so that ``moe-probe --help`` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from moe_probe.cli import (
    ablate,
    check,
    compare,
    costs,
    features,
    importing,
    inspect,
    match,
    merging,
    models,
    new,
    provenance,
    runs,
    saes,
    tree,
)
from moe_probe.cli.order import CommandsInOrder, arrange, print_version
from moe_probe.cli.usage import document_exit_status, run_app

app = typer.Typer(
    name="moe-probe",
    cls=CommandsInOrder,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Finds out what the experts of a mixture-of-experts language model specialise in.\n\n"
    "Start with `moe-probe demo`, or `moe-probe run MODEL --corpus FILE --out RUN`.",
    epilog="Exit status: 0 done, 1 it could not be done, 2 wrong usage, 3 a gate failed (something watched fired), "
    "130 interrupted (--resume goes on).",
)
for module in (
    runs,
    new,
    importing,
    merging,
    saes,
    features,
    match,
    ablate,
    tree,
    costs,
    compare,
    check,
    provenance,
    inspect,
    models,
):
    module.register(app)
arrange(app)
document_exit_status(app)


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of ``moe-probe``."""
    sys.exit(run_app(app))


__all__ = ["app", "main"]
