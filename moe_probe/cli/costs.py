"""The command `cost`: what a run cost, and what the same would cost for other models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import command, writes_run
from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.lock import locked
from moe_probe.core.settings import Settings, setting
from moe_probe.core.text import is_missing
from moe_probe.studies.cost.presets import PRESETS
from moe_probe.studies.cost.project import SaePlan, growth, project


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "cost", "moe-probe cost --preset deepseek-v3 --width 131072 --num-layers 61")(cost)


class CostOptions(Settings):
    """Options of the command: what is projected, and for the run itself."""

    panel: ClassVar[str] = "Projection for any model"

    preset: str | None = setting(None, f"a published model: {', '.join(PRESETS)}")
    params: float | None = setting(None, "parameters of a model to project for")
    active: float | None = setting(None, "parameters that a token passes through; --params if none")
    tokens: float | None = setting(None, "tokens that it was trained on")
    d_model: int | None = setting(None, "width of its residual stream")
    layers: int = setting(SaePlan.layers, "layers with an SAE", flag="--num-layers", ge=1)
    width: int = setting(SaePlan.width, "latents of an SAE", ge=1)
    sae_tokens: float = setting(SaePlan.tokens, "tokens that each SAE is trained on", gt=0)
    labeller: float = setting(SaePlan.labeller, "parameters of a language model that labels", gt=0)
    model: str | None = setting(None, "the run's model; by default that of run.yaml")
    train_tokens: float | None = setting(None, "tokens that the run's model was trained on")

    def sizes(self) -> dict[str, Any]:
        """Sizes of the model to project for.

        Raises
        ------
        UsageError
            When the preset is unknown, or the width of the residual stream is.
        """
        if self.preset is not None and self.preset not in PRESETS:
            raise UsageError(
                f"--preset {self.preset} is not known", did_you_mean(self.preset, list(PRESETS)), ", ".join(PRESETS)
            )
        known = PRESETS[self.preset] if self.preset is not None else None
        total = self.params or (known.parameters if known else self.active)
        width = self.d_model or (known.d_model if known else None)
        if width is None:
            raise UsageError(
                "no --d-model was given", "what SAEs cost grows with the width that they read", "--d-model 7168"
            )
        return {
            "name": self.preset or f"{total:.3g} parameters",
            "active": self.active or (self.params if self.params else (known.active if known else total)),
            "tokens": self.tokens or (known.tokens if known else None),
            "d_model": width,
            "source": known.source if known else "",
        }


@locked(lambda *, run, **_: None if run is None else writes_run(run=run))
def cost(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Run directory, for what its stages took.", show_default=False)
    ] = None,
    *,
    options: CostOptions,
    console: Console,
) -> None:
    """Compare what a run cost with training its model, and project the same for any other model."""
    data: dict[str, Any] = {}
    lines: list[str] = []
    if run is not None:
        from moe_probe.core.publication import settle
        from moe_probe.recording.run_model import model_settings_of
        from moe_probe.recording.rundir import RunDirectory
        from moe_probe.recording.trace import Trace
        from moe_probe.studies.cost import measure_cost, save_cost

        settle(run / "results")  # what an interrupted command left is finished before its bytes are counted
        opened, own = RunDirectory(Trace.open(run), run), model_settings_of(run) if options.model is None else None
        model, revision = (own.name, own.revision) if own is not None else (options.model, None)
        measured = measure_cost(
            opened,
            model=model,
            revision=revision,
            train_tokens=options.train_tokens,
            download=own is None,  # what a run folder names is not fetched
            say=console.say,
        )
        data["run"] = measured
        lines += [*_run_lines(measured), f"Table: {save_cost(opened, measured)[0]}", ""]
    if options.preset or options.params or options.active:
        data["projection"], projected = _projection(options)
        lines += [*projected, ""]
    if not data:
        raise UsageError(
            "nothing to count", "name a run, a --preset, or --params and --tokens", "moe-probe cost --preset deepseek-v3"
        )
    console.result(data, lines[:-1] if not lines[-1] else lines)


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


def _projection(options: CostOptions) -> tuple[dict[str, Any], list[str]]:
    sizes, layers, width = options.sizes(), options.layers, options.width
    plan = SaePlan(layers=layers, width=width, tokens=options.sae_tokens, labeller=options.labeller)
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
