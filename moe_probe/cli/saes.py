"""Commands on sparse autoencoders: `sae train`, `sae load` and `sae eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.model_choice import ModelChoice
from moe_probe.cli.options import Mode, RunPath, Seed, command, writes_run
from moe_probe.core.lock import locked
from moe_probe.core.text import quoted, table_lines
from moe_probe.core.workers.settings import WorkerSettings
from moe_probe.sae.settings import SaeSettings


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    sae = typer.Typer(
        no_args_is_help=True, rich_markup_mode="markdown", help="Sparse autoencoders: train, load and measure them."
    )
    command(sae, "train", "moe-probe sae train runs/mine --sae-layers 2 --widths 1024,4096")(train)
    command(sae, "load", "moe-probe sae load runs/mine path/to/sae --layer 2")(load)
    command(sae, "eval", "moe-probe sae eval runs/mine")(evaluate)
    app.add_typer(sae, name="sae")


def train(
    run: RunPath,
    *,
    mode: Mode,
    settings: SaeSettings,
    workers: WorkerSettings,
    device: Annotated[
        str, typer.Option("--device", help="Device: cpu, cuda, cuda:1 ...; auto takes the first GPU.")
    ] = "auto",
    seed: Seed = 0,
    console: Console,
) -> None:
    """Train SAEs on the activations of a trace: all widths and experts of a layer in one pass, resumable."""
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae.training.ray_layers import train_where
    from moe_probe.sae.training.request import TrainRequest

    request = TrainRequest(settings, seed=seed, device=device, mode=mode)
    folders = train_where(RunDirectory.open(run), request, workers=workers, say=console.say)
    console.result(
        {"saes": [str(f) for f in folders]},
        f"{len(folders)} SAEs in {run / 'sae'}. Next: moe-probe sae eval {quoted(run)}, moe-probe label {quoted(run)}",
    )


def load(
    run: RunPath,
    source: Annotated[Path, typer.Argument(help="Folder of SAELens, sparsify or dictionary_learning.", show_default=False)],
    *,
    layer: Annotated[int, typer.Option("--layer", help="MoE layer whose activations it reads.", show_default=False)],
    hook: Annotated[
        str, typer.Option("--hook", help="Activation site that it reads: router_input, expert_output, residual.")
    ] = (SaeSettings.model_fields["hook"].default),
    name: Annotated[str, typer.Option("--name", help="Ending of its folder's name.", show_default=False)] = "",
    ignore_field: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-field",
            metavar="FIELD",
            help="Unknown field of its configuration that does not change what it computes (repeat for more).",
            show_default=False,
        ),
    ] = None,
    console: Console,
) -> None:
    """Bring an SAE that was trained elsewhere into a run."""
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.sae.load_into import LoadSettings, load_into

    settings = LoadSettings(layer, hook, name, tuple(ignore_field or ()))
    folder = load_into(RunDirectory.open(run), source, settings, say=console.say)
    console.result(
        {"sae": str(folder)}, f"SAE: {folder}. Next: moe-probe sae eval {quoted(run)}, moe-probe label {quoted(run)}"
    )


@locked(writes_run)
def evaluate(
    run: RunPath,
    *,
    choice: ModelChoice,
    tokens: Annotated[
        int, typer.Option("--loss-tokens", min=64, help="Held-out tokens that losses are measured on.")
    ] = 8192,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Measure SAEs on held-out documents: variance, sparsity, dead latents, loss with reconstructions spliced in."""
    from moe_probe.features.evaluate import EvaluateSettings
    from moe_probe.features.evaluate import evaluate as measure
    from moe_probe.recording.rundir import RunDirectory

    opened = RunDirectory.open(run)
    loaded = choice.load(run, console, without="losses are not measured")
    result = measure(opened, EvaluateSettings(tokens, seed), loaded=loaded, say=console.say)
    opened.save([result], settings={"tokens": tokens, "seed": seed})
    console.notes(result.warnings)
    columns = ["sae", "fvu", "l0", "dead", "dense", "ce_recovered", "redundancy"]
    console.result(
        {"sae_quality": result.table.to_dict("records")},
        [*table_lines(result.table[columns].round(3)), f"Table: {opened.results_folder / 'sae_quality.parquet'}"],
    )
