"""The command that looks at single outputs."""

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
from moe_probe.core.text import some_of
from moe_probe.core.textfiles import read_stdin, read_text

if TYPE_CHECKING:
    from moe_probe.studies.inspect import Inspection


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    example = 'moe-probe inspect runs/mine "The derivative of x squared" --generate 20 --watch mathematics'
    command(app, "inspect", example)(inspect)


def inspect(
    run: RunPath,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts, one call each.", show_default=False)
    ] = None,
    *,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", help="A text from a file, - for stdin (repeat for more).", show_default=False),
    ] = None,
    generate: Annotated[
        int,
        typer.Option(
            "--generate",
            min=0,
            metavar="N",
            help="Let the model continue every text by up to N tokens, and inspect the whole.",
        ),
    ] = 0,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="Of drawn tokens; 0 takes the likeliest.")
    ] = 0.0,
    sae: Annotated[
        list[str] | None,
        typer.Option(
            "--sae",
            metavar="FOLDER",
            help="As layer_05/width_04096 (repeat for more) [default: the widest of the last layer].",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Features of each SAE to list (--html and --json have all).")] = 8,
    shade: Annotated[
        str | None,
        typer.Option(
            "--shade",
            metavar="UNIT",
            help="Shade tokens by a feature (FOLDER:FEATURE) or expert (LAYER:EXPERT) [default: the first feature listed].",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        list[str] | None,
        typer.Option(
            "--watch",
            metavar="WHAT",
            help="FOLDER:FEATURE, LAYER:EXPERT or a topic (repeat for more): exit status 3 when it fires.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="What is watched fires above it: activation of a "
            "feature, share of the tokens that choose an expert, units of a topic "
            "active a token [default: 0 for a feature; else what 5 % of the run's "
            "held-out texts about other things, as long, exceed].",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a page with shaded tokens; it fetches nothing.", show_default=False
        ),
    ] = None,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Measure the overhead over the bare forward pass.")
    ] = True,
    colour: Annotated[
        bool | None, typer.Option("--color/--no-color", help="Shade by colour [default: on a terminal].", show_default=False)
    ] = None,
    choice: ModelChoice,
    force_weights: Annotated[
        bool,
        typer.Option("--force-weights", help="Go on with weights that trace or SAEs were not made from; the view says so."),
    ] = False,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Show which experts and features single outputs use, what the run knows of these, and whether watched ones fire."""
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.recording.trace import Trace
    from moe_probe.studies.inspect import Inspector, Look

    named = [
        *((f"text {i + 1}" if len(texts or ()) > 1 else "text", text) for i, text in enumerate(texts or ())),
        *(_read(path) for path in file or ()),
    ]
    if not named:
        raise UsageError(
            "there is nothing to inspect", "no TEXT and no --file was given", 'moe-probe inspect RUN "some text"'
        )
    opened = RunDirectory(Trace.open(run), run)  # what is wrong with the run is said before a model is loaded
    console.say("loading the model")
    loaded = choice.need(run, "nothing can be run")
    look = Look(
        saes=tuple(sae or ()),
        generate=generate,
        temperature=temperature,
        watch=tuple(watch or ()),
        threshold=threshold,
        shade=shade,
        timing=timing,
        force_weights=force_weights,
        seed=seed,
    )
    inspector = Inspector(opened, loaded, look)
    seen = [inspector(text, name=name) for name, text in named]
    if html is not None:
        from moe_probe.report.inspection import write_inspections

        write_inspections(seen, html)
    _show(seen, run=run, top=top, html=html, colour=colour, console=console)
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


def _show(seen: list[Inspection], *, run: Path, top: int, html: Path | None, colour: bool | None, console: Console) -> None:
    from moe_probe.studies.inspect.terminal import Style, lines_of

    if console.as_json:
        console.result({"run": str(run), "texts": [s.as_dict() for s in seen]}, "")
        return
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    style = Style(colour=colour, width=min(shutil.get_terminal_size((110, 24)).columns, 140))
    for one in seen:
        # not console.result, which would escape the colours too: what is not ours was escaped word by word
        typer.echo("\n".join(lines_of(one, top=top, style=style)), color=colour)
        typer.echo()
    typer.echo(
        f"Page: {html}"
        if html is not None
        else f"Next: moe-probe inspect {run} --file FILE --html view.html, or --watch TOPIC to be told by exit status 3"
    )
