"""The command `check`: whether a model's routing can be recorded, and what a corpus would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.model_choice import serve_first_process
from moe_probe.cli.options import command
from moe_probe.core.text import quoted
from moe_probe.models.settings import LoadOptions, ModelSettings

if TYPE_CHECKING:
    from moe_probe.models import CheckReport, LoadedModel


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    command(app, "check", "moe-probe check path/to/model --corpus-tokens 10000000")(check)


def check(
    model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or its name on a hub.", show_default=False)],
    *,
    tokens: Annotated[float, typer.Option("--corpus-tokens", help="Tokens of the corpus, for the estimates.")] = 1e6,
    options: LoadOptions,
    console: Console,
) -> None:
    """Prove that a model's routing can be recorded, and say what a corpus would cost."""
    from moe_probe.models import estimate, load_model, self_check

    serve_first_process(ModelSettings(name=model, **options.model_dump()))
    console.say(f"loading {model}")
    loaded = load_model(model, **options.model_dump())
    found = self_check(loaded)
    rate = _tokens_per_second(loaded)
    size = estimate(loaded.sites, int(tokens))
    data: dict[str, Any] = {
        "model": loaded.info.model_dump(),
        "ok": found.ok,
        "outputs_unchanged": found.outputs_unchanged,
        "layers": [
            site.info.model_dump()
            | {"relative_error": one.relative_error, "ok": one.ok, "top_logits_share": one.top_logits_share}
            for site, one in zip(loaded.sites, found.sites, strict=True)
        ],
        "tokens": int(tokens),
        "tokens_per_second": rate,
        "seconds": tokens / rate,
        "routing_bytes": size,
    }
    console.result(data, _check_lines(loaded, found, tokens, rate, size))
    found.raise_if_failed()


def _tokens_per_second(loaded: LoadedModel) -> float:
    """Rate of a recorded forward pass, the best of three, after one to warm up."""
    import time

    import torch

    from moe_probe.models import RoutingCapture, forward_inputs, input_device

    length = min(loaded.max_length, 256)
    ids: torch.Tensor = torch.arange(4 * length).reshape(4, length) % loaded.model.config.get_text_config().vocab_size
    inputs = forward_inputs(loaded.model, ids.to(input_device(loaded.model)))
    seconds = []
    with torch.inference_mode(), RoutingCapture(loaded.model, loaded.sites) as capture:
        for _ in range(4):
            started = time.perf_counter()
            loaded.model(**inputs)
            capture.take()  # copies to the CPU: nothing is still under way on a GPU
            seconds.append(time.perf_counter() - started)
    return ids.numel() / min(seconds[1:])


def _check_lines(loaded: LoadedModel, found: CheckReport, tokens: float, rate: float, size: int) -> list[str]:
    info = loaded.info
    lines = [
        (
            f"{info.id}: {info.architecture}, {(info.n_parameters or 0) / 1e6:,.1f} M parameters, {info.dtype}, "
            f"context {loaded.max_length:,} tokens"
        ),
        (
            f"{'layer':>5}  {'experts':>7}  {'top-k':>5}  {'shared':>6}  {'captured at':<16} {'error':>8}  "
            f"{'top-k of logits':>15}  router"
        ),
    ]
    for site, one in zip(loaded.sites, found.sites, strict=True):
        item = site.info
        share = "-" if one.top_logits_share != one.top_logits_share else f"{one.top_logits_share:.0%}"
        lines.append(
            f"{item.layer:>5}  {item.num_experts:>7}  {item.top_k:>5}  {item.shared_experts:>6}  "
            f"{item.capture:<16} {one.relative_error:>8.1e}  {share:>15}  {item.router}"
            + (f"  ({item.note})" if item.note else "")
        )
    if found.outputs_unchanged:
        lines.append("outputs are the same, bit for bit, with and without recording")
    lines.append(
        "error: gate weights x recomputed expert outputs against the block's own output"
        + ("; all within rounding" if found.ok else "")
    )
    lines.append(
        f"{tokens:,.0f} tokens: about {_duration(tokens / rate)} here ({rate:,.0f} tokens/s) and "
        f"{size / 1e6:,.1f} MB of routing, before the token table"
    )
    if found.ok:
        lines.append(f"Next: moe-probe run {quoted(info.id)} --corpus FILE --out RUN")
    return lines


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"
