"""The command on cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import command
from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.text import is_missing


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "cost", "moe-probe cost --preset deepseek-v3 --width 131072 --num-layers 61")(cost)


def cost(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Run directory, for what its stages took.", show_default=False)
    ] = None,
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="A published model: gpt-3, gemma-2-9b, olmoe-1b-7b, "
            "mixtral-8x7b, "
            "gpt-oss-20b, deepseek-v3, qwen3-30b-a3b, llama-3.1-405b.",
            show_default=False,
        ),
    ] = None,
    params: Annotated[
        float | None, typer.Option("--params", help="Parameters of a model to project for.", show_default=False)
    ] = None,
    active: Annotated[
        float | None,
        typer.Option("--active", help="Parameters a token passes through [default: --params].", show_default=False),
    ] = None,
    tokens: Annotated[float | None, typer.Option("--tokens", help="Tokens it was trained on.", show_default=False)] = None,
    d_model: Annotated[
        int | None, typer.Option("--d-model", help="Width of its residual stream.", show_default=False)
    ] = None,
    layers: Annotated[int, typer.Option("--num-layers", min=1, help="Layers with an SAE.")] = 1,
    width: Annotated[int, typer.Option("--width", min=1, help="Latents of an SAE.")] = 32_768,
    sae_tokens: Annotated[float, typer.Option("--sae-tokens", help="Tokens that SAEs learn from.")] = 5e8,
    labeller: Annotated[float, typer.Option("--labeller", help="Parameters of a language model that labels.")] = 70e9,
    model: Annotated[
        str | None, typer.Option("--model", help="The trace's model [default: that of run.yaml].", show_default=False)
    ] = None,
    train_tokens: Annotated[
        float | None, typer.Option("--train-tokens", help="Tokens that the run's model was trained on.", show_default=False)
    ] = None,
    console: Console,
) -> None:
    """What a run cost, beside training its model; and what the same would cost for any other model."""
    data: dict[str, Any] = {}
    lines: list[str] = []
    if run is not None:
        from moe_probe.recording.run_model import model_settings_of
        from moe_probe.recording.rundir import RunDirectory
        from moe_probe.recording.trace import Trace
        from moe_probe.studies.cost import measure_cost, save_cost

        opened, own = RunDirectory(Trace.open(run), run), model_settings_of(run) if model is None else None
        model, revision = (own.name, own.revision) if own is not None else (model, None)
        data["run"] = measure_cost(opened, model=model, revision=revision, train_tokens=train_tokens, say=console.say)
        lines += [*_run_lines(data["run"]), f"Table: {save_cost(opened, data['run'])[0]}", ""]
    if preset or params or active:
        sizes = _sizes(preset, params, active, tokens, d_model)
        data["projection"], said = _projection(sizes, layers=layers, width=width, sae_tokens=sae_tokens, labeller=labeller)
        lines += [*said, ""]
    if not data:
        raise UsageError(
            "nothing to count", "name a run, a --preset, or --params and --tokens", "moe-probe cost --preset deepseek-v3"
        )
    console.result(data, "\n".join(lines).rstrip())


def _run_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{'step':<28}{'paid':<14}{'tokens':>12}{'operations':>13}{'seconds':>10}{'MB':>9}{'of training':>13}"]
    for s in found["steps"]:
        flops = "-" if s["flops"] is None else f"{s['flops']:.2g}"
        share = "-" if s["of_training"] is None else f"{s['of_training']:.2g}"
        seconds = "-" if s["seconds"] is None else f"{s['seconds']:.1f}"
        lines.append(
            f"{s['step']:<28}{s['paid']:<14}{s['tokens']:>12,}{flops:>13}{seconds:>10}{s['bytes'] / 1e6:>9.1f}{share:>13}"
        )
        lines.append(f"  {s['note']}")
    if found["training_flops"]:
        lines.append(
            f"training the model: {found['training_flops']:.2g} operations (three times its forward, "
            f"{found['model']['train_tokens']:,.0f} tokens)"
        )
    return lines


def _sizes(
    preset: str | None,
    params: float | None,
    active: float | None,
    tokens: float | None,
    d_model: int | None,
) -> dict[str, Any]:
    from moe_probe.studies.cost import PRESETS

    if preset is not None and preset not in PRESETS:
        raise UsageError(f"--preset {preset} is not known", did_you_mean(preset, list(PRESETS)), ", ".join(PRESETS))
    known = PRESETS[preset] if preset is not None else None
    total = params or (known.parameters if known else active)
    width = d_model or (known.d_model if known else None)
    if width is None:
        raise UsageError("no --d-model was given", "what SAEs cost grows with the width that they read", "--d-model 7168")
    used = active or (params if params else (known.active if known else total))
    return {
        "name": preset or f"{total:.3g} parameters",
        "active": used,
        "tokens": tokens or (known.tokens if known else None),
        "d_model": width,
        "source": known.source if known else "",
    }


def _projection(
    sizes: dict[str, Any],
    *,
    layers: int,
    width: int,
    sae_tokens: float,
    labeller: float,
) -> tuple[dict[str, Any], list[str]]:
    from moe_probe.studies.cost import SaePlan, growth, project

    plan = SaePlan(layers=layers, width=width, tokens=sae_tokens, labeller=labeller)
    found = project(sizes["active"], sizes["d_model"], tokens=sizes["tokens"], saes=plan)
    shares = {name: None if is_missing(value) else value for name, value in found.fractions().items()}
    slopes = growth().groupby("rule")["exponent"].first().to_dict()
    named = {
        "capture": ("recording forward passes", found.capture),
        "sae": (f"training {layers} SAEs", found.sae),
        "labelling": (f"labelling {layers * width:,} features", found.labelling),
    }
    lines = [
        f"{sizes['name']}: {sizes['active']:.3g} parameters a token, "
        + (
            f"{sizes['tokens']:.3g} training tokens, {found.training:.2g} operations"
            if sizes["tokens"]
            else "training tokens not published: no fractions"
        )
    ]
    for name, (text, flops) in named.items():
        share = shares[name]
        lines.append(f"  once          {text:<34}{flops:>10.2g}" + ("" if share is None else f"   {share:.2g} of training"))
    lines.append(
        f"  every output  {'encoding a token with all SAEs':<34}{found.per_token_encode:>10.2g}   "
        f"{shares['per output']:.2g} of its forward pass"
    )
    lines.append(f"  on disk       {'activations, two bytes a number':<34}{found.activation_bytes / 1e9:>10,.0f} GB")
    lines.append(
        "A linear tax? With an SAE at every layer the SAEs' cost grows as training's to the power "
        + ", ".join(f"{v:.2f} ({k})" for k, v in slopes.items())
        + ": below 1 the tax falls as models grow."
    )
    return {
        "sizes": sizes,
        "operations": {k: v for k, (_, v) in named.items()},
        "fractions": shares,
        "training": None if is_missing(found.training) else found.training,
        "exponents": slopes,
    }, lines
