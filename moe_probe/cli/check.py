"""Commands that look: check, info, verify, cite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import Seed, command
from moe_probe.core.errors import MoeProbeError
from moe_probe.models.settings import LoadOptions

if TYPE_CHECKING:
    from moe_probe.models import CheckReport, LoadedModel
    from moe_probe.recording.trace import Trace


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "check", "moe-probe check path/to/model --tokens 10000000")(check)
    command(app, "info", "moe-probe info runs/mine")(info)
    command(app, "verify", "moe-probe verify runs/mine")(verify)
    command(app, "cite", "moe-probe cite runs/mine --bibtex")(cite)


def check(
    model: Annotated[str, typer.Argument(help="Folder of a checkpoint, or its name on a hub.", show_default=False)],
    *,
    tokens: Annotated[float, typer.Option("--tokens", help="Corpus size for the estimates.")] = 1e6,
    options: LoadOptions,
    console: Console,
) -> None:
    """Prove that a model's routing can be recorded, and say what a corpus would cost."""
    from moe_probe.models import estimate, load_model, self_check

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
    console.result(data, _check_text(loaded, found, tokens, rate, size))
    found.raise_if_failed()


def _tokens_per_second(loaded: LoadedModel) -> float:
    """Rate of a recorded forward pass, the best of three, after one to warm up."""
    import time

    import torch

    from moe_probe.models import RoutingCapture, forward_inputs, input_device

    length = min(loaded.max_length, 256)
    ids = torch.arange(4 * length).reshape(4, length) % loaded.model.config.get_text_config().vocab_size
    inputs = forward_inputs(loaded.model, ids.to(input_device(loaded.model)))
    seconds = []
    with torch.inference_mode(), RoutingCapture(loaded.model, loaded.sites) as capture:
        for _ in range(4):
            started = time.perf_counter()
            loaded.model(**inputs)
            capture.take()  # copies to the CPU: nothing is still under way on a GPU
            seconds.append(time.perf_counter() - started)
    return ids.numel() / min(seconds[1:])


def _check_text(loaded: LoadedModel, found: CheckReport, tokens: float, rate: float, size: int) -> str:
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
        lines.append(f"Next: moe-probe run {info.id} --corpus FILE --out RUN")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"


def info(
    path: Annotated[Path, typer.Argument(help="Trace or run directory.", show_default=False)],
    *,
    seed: Seed = 0,  # noqa: ARG001 (every command takes it)
    console: Console,
) -> None:
    """Say what a trace holds and where it came from."""
    from moe_probe.recording.trace import Trace

    trace = Trace.open(path)
    topics = trace.documents["topic"].value_counts(sort=False).to_dict()
    data = trace.manifest.model_dump(mode="json", exclude={"shards", "files"}) | {
        "n_shards": len(trace.manifest.shards),
        "topics": topics,
        "bytes": _size(trace),
    }
    console.result(data, _info_text(trace, topics))


def _size(trace: Trace) -> int:
    entries = [*trace.manifest.files, *(f for s in trace.manifest.shards for f in s.files)]
    return sum(e.size for e in entries)


def _info_text(trace: Trace, topics: dict[str, int]) -> str:
    m = trace.manifest
    experts = ", ".join(str(n) for n in sorted({x.num_experts for x in m.layers}))
    slots = ", ".join(str(n) for n in sorted({x.top_k for x in m.layers}))
    revision = f" at {m.model.revision}" if m.model.revision else ""
    weights = f"weights {m.model.fingerprint[:12]}, {m.model.dtype}" if m.model.fingerprint else "imported"
    lines = [
        f"model      {m.model.id}{revision} ({m.model.architecture}; {weights})",
        (
            f"layers     {len(m.layers)} MoE layers, experts {experts}, top-k {slots}; "
            f"gate weights {'kept' if m.has_weights else 'not known'}"
        ),
        f"corpus     {m.corpus.name}: {m.n_documents:,} documents, {m.n_tokens:,} tokens, {len(topics)} topics"
        + (f"; {m.corpus.skipped_rows} bad rows left out" if m.corpus.skipped_rows else ""),
        f"topics     {', '.join(f'{topic} ({n})' for topic, n in topics.items())}",
        (
            f"kept       {', '.join(m.kept)}; text {'kept' if m.has_text else 'not kept'}; {len(m.shards)} shards, "
            f"{_size(trace) / 1e6:,.1f} MB"
        ),
        f"made with  {', '.join(f'{k} {v}' for k, v in m.versions.items()) or 'an importer'}; seed {m.seed}",
        f"Next: moe-probe analyze {trace.root}",
    ]
    return "\n".join(lines)


def verify(
    path: Annotated[Path, typer.Argument(help="Trace or run directory.", show_default=False)],
    *,
    console: Console,
) -> None:
    """Check every byte of a trace against its checksums."""
    from moe_probe.recording.trace import verify as verify_trace

    problems = verify_trace(path)
    console.result(
        {"trace": str(path), "ok": not problems, "problems": problems},
        "\n".join(problems) if problems else f"{path} is whole",
    )
    if problems:
        raise MoeProbeError(f"{path} is damaged", problems[0], "a copy, or collect again with --force")


def cite(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    *,
    as_bibtex: Annotated[bool, typer.Option("--bibtex", help="As BibTeX entries.")] = False,
    console: Console,
) -> None:
    """List the sources of the methods that a run's results used."""
    from moe_probe.core.results import Result
    from moe_probe.report.sections.sources import all_citations, bibtex

    names = sorted(p.stem for p in (run_path / "results").glob("*.parquet"))
    if not names:
        raise MoeProbeError(f"{run_path} holds no results", "", f"moe-probe analyze {run_path}")
    results = {name: Result.load(run_path / "results", name) for name in names}
    sources = {name: list(result.citations) for name, result in results.items()}
    if as_bibtex:
        console.result({"bibtex": bibtex(all_citations(results))}, bibtex(all_citations(results)).rstrip())
        return
    lines = [f"{name}: {source}" for name, found in sources.items() for source in found]
    console.result(sources, "\n".join(lines) or "these results name no source")
