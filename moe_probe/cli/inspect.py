"""The command `inspect`: the experts and features of single outputs, and whether watched ones fire."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.model_choice import ModelChoice
from moe_probe.cli.options import RunPath, Seed, command
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.settings import Settings, setting
from moe_probe.core.text import quoted, some_of
from moe_probe.core.textfiles import read_stdin, read_text

if TYPE_CHECKING:
    from moe_probe.studies.inspect import Inspection, Look


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    example = 'moe-probe inspect runs/mine "The derivative of x squared" --generate 20 --watch mathematics'
    command(app, "inspect", example)(inspect)


class InspectOptions(Settings):
    """Options of the command."""

    file: tuple[Path, ...] = setting((), "a text from a file, - for stdin (repeat for more)")
    generate: int = setting(0, "let the model continue every text by up to so many tokens, and inspect the whole", ge=0)
    temperature: float = setting(0.0, "of drawn tokens; 0 takes the likeliest", ge=0)
    sae: tuple[str, ...] = setting((), "as layer_05/width_04096 (repeat for more); by default the widest of the last layer")
    top: int = setting(8, "features of each SAE to list (--html and --json have all)", ge=1)
    shade: str | None = setting(
        None, "shade tokens by a feature (FOLDER:FEATURE) or expert (LAYER:EXPERT); by default the first feature listed"
    )
    watch: tuple[str, ...] = setting(
        (), "FOLDER:FEATURE, LAYER:EXPERT or a topic (repeat for more): exit status 3 when it fires"
    )
    threshold: float | None = setting(
        None,
        "what is watched fires above it: activation of a feature, share of the tokens that choose an expert, units of a "
        "topic active per token; by default 0 for a feature, else what 5 % of the run's held-out texts about other topics, "
        "as long, exceed",
    )
    html: Path | None = setting(None, "write a page with shaded tokens to this file; it fetches nothing")
    timing: bool = setting(True, "measure the overhead over the bare forward pass")
    colour: bool | None = setting(None, "shade by colour; by default on a terminal", flag="--color/--no-color")
    force_weights: bool = setting(False, "go on with weights that trace or SAEs were not made from; the view says so")

    def look(self, seed: int) -> Look:
        """Say what is looked at, for the inspector."""
        from moe_probe.studies.inspect import Look

        return Look(
            saes=self.sae,
            generate=self.generate,
            temperature=self.temperature,
            watch=self.watch,
            threshold=self.threshold,
            shade=self.shade,
            timing=self.timing,
            force_weights=self.force_weights,
            seed=seed,
        )


def inspect(
    run: RunPath,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts, one call each.", show_default=False)
    ] = None,
    *,
    options: InspectOptions,
    choice: ModelChoice,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Show which experts and features single outputs use, what the run knows of these, and whether watched ones fire."""
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.recording.trace import Trace
    from moe_probe.studies.inspect import Inspector

    named = [
        *((f"text {i + 1}" if len(texts or ()) > 1 else "text", text) for i, text in enumerate(texts or ())),
        *(_read(path) for path in options.file),
    ]
    if not named:
        raise UsageError(
            "there is nothing to inspect", "no TEXT and no --file was given", 'moe-probe inspect RUN "some text"'
        )
    opened = RunDirectory(Trace.open(run), run)  # what is wrong with the run is said before a model is loaded
    loaded = choice.need(run, console, "nothing can be run")
    inspector = Inspector(opened, loaded, options.look(seed))
    seen = [inspector(text, name=name) for name, text in named]
    if options.html is not None:
        from moe_probe.report.inspection import write_inspections

        write_inspections(seen, options.html)
    _show(seen, run, options, console)
    fired = [f"{alarm.watched.name} in {s.name} ({len(alarm.tokens)} tokens)" for s in seen for alarm in s.fired]
    if fired:
        raise MoeProbeError(f"{len(fired)} of what was watched fired", some_of(fired), exit_code=3)


def _read(path: Path) -> tuple[str, str]:
    if str(path) == "-":
        return "stdin", read_stdin()
    try:
        return path.name, read_text(path)
    except MoeProbeError as error:
        raise UsageError(error.what, error.why, error.hint) from error


def _show(seen: list[Inspection], run: Path, options: InspectOptions, console: Console) -> None:
    from moe_probe.studies.inspect.terminal import terminal_text

    if console.as_json:
        console.result({"run": str(run), "texts": [s.as_dict() for s in seen]}, "")
        return
    colour, html = options.colour, options.html
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width = min(shutil.get_terminal_size((110, 24)).columns, 140)
    for one in seen:
        # not console.result, which would escape the colours too: what is not ours was escaped word by word
        typer.echo(terminal_text(one, top=options.top, width=width, colour=colour), color=colour)
        typer.echo()
    console.result(
        {},
        f"Page: {html}"
        if html is not None
        else f"Next: moe-probe inspect {quoted(run)} --file FILE --html view.html, or --watch TOPIC to be told by exit status 3",
    )
