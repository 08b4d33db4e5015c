"""Commands on where a run comes from: `info` (model and corpus), `verify` (checksums), `cite` (sources of methods)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import Seed, command
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import quoted, some_of

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace
    from moe_probe.report.references import CitedSource
    from moe_probe.runs.progress import RunStep


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    command(app, "info", "moe-probe info runs/mine")(info)
    command(app, "verify", "moe-probe verify runs/mine")(verify)
    command(app, "cite", "moe-probe cite runs/mine --bibtex")(cite)


def info(
    path: Annotated[Path, typer.Argument(help="Trace or run directory.", show_default=False)],
    *,
    seed: Seed = 0,  # noqa: ARG001 (every command takes it)
    console: Console,
) -> None:
    """Say what a trace has, where it came from, what was done in its run, and what comes next."""
    from moe_probe.recording.trace import Trace
    from moe_probe.recording.trace.facts import unknowns
    from moe_probe.runs.progress import next_command, steps_of

    trace = Trace.open(path)
    topics = trace.documents["topic"].value_counts(sort=False).to_dict()
    data = trace.manifest.model_dump(mode="json", exclude={"shards", "files"}) | {
        "n_shards": len(trace.manifest.shards),
        "topics": topics,
        "evidence": str(trace.manifest.evidence),
        "unknown": unknowns(trace.manifest, trace.documents),
        "bytes": _size(trace),
    }
    steps, following = steps_of(path, trace.manifest), next_command(path, trace.manifest)
    data |= {"steps": [vars(step) for step in steps], "next": following}
    console.result(data, [*_info_lines(trace, topics), *_step_lines(steps), f"Next: {following}"])


def _size(trace: Trace) -> int:
    entries = [*trace.manifest.files, *(f for s in trace.manifest.shards for f in s.files)]
    return sum(e.size for e in entries)


def _info_lines(trace: Trace, topics: dict[str, int]) -> list[str]:
    from moe_probe.recording.trace.facts import left_out, made_with, not_in_record, unknowns, weights_source

    m = trace.manifest
    experts = ", ".join(str(n) for n in sorted({x.num_experts for x in m.layers}))
    slots = ", ".join(str(n) for n in sorted({x.top_k for x in m.layers}))
    revision = f" at {m.model.revision}" if m.model.revision else ""
    return [
        f"model      {m.model.id}{revision} ({m.model.architecture}; {weights_source(m)})",
        (
            f"layers     {len(m.layers)} MoE layers, experts {experts}, top-k {slots}; "
            f"gate weights {'kept' if m.has_weights else 'not known'}"
        ),
        f"corpus     {m.corpus.name}: {m.n_documents:,} documents, {m.n_tokens:,} tokens, {len(topics)} topics"
        + (f"; {m.corpus.skipped_rows} bad rows left out" if m.corpus.skipped_rows else "")
        + left_out(m, trace.documents),
        *(
            [f"part       {m.part} of the corpus's {m.corpus.n_documents:,} documents; moe-probe merge joins all parts"]
            if m.shard_of
            else []
        ),
        f"topics     {', '.join(f'{topic} ({n})' for topic, n in topics.items())}",
        (
            f"kept       {', '.join(m.kept)}; text {'kept' if m.has_text else 'not kept'}; {len(m.shards)} "
            f"{'shard' if len(m.shards) == 1 else 'shards'}, {_size(trace) / 1e6:,.1f} MB"
        ),
        f"evidence   {' '.join([f'{m.evidence}.', *unknowns(m, trace.documents)])}",
        f"made with  {made_with(m)}",
        *([f"not known  {' '.join(absent)}"] if (absent := not_in_record(m)) else []),
    ]


def _step_lines(steps: list[RunStep]) -> list[str]:
    """Lines on what was done, and on what could be."""
    lines = [f"{step.name:<10} {step.made}" for step in steps if step.made]
    open_steps = [step.name for step in steps if step.command and not step.made]
    return [*lines, *([f"not done   {', '.join(open_steps)}"] if open_steps else [])]


def verify(
    path: Annotated[Path, typer.Argument(help="Trace or run directory.", show_default=False)],
    *,
    console: Console,
) -> None:
    """Check every byte of a trace against its checksums."""
    from moe_probe.recording.trace import Trace
    from moe_probe.recording.trace import verify as verify_trace

    problems = verify_trace(path)
    manifest = None if problems else Trace.open(path).manifest
    part = manifest.shard_of if manifest else None
    console.result(
        {"trace": str(path), "ok": not problems, "problems": problems} | ({"shard_of": list(part)} if part else {}),
        problems if manifest is None else f"{path} is whole" + (f" ({manifest.part} of the corpus)" if part else ""),
    )
    if problems:
        raise MoeProbeError(f"{path} is damaged", problems[0], "a copy, or collect again with --force")


def cite(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    *,
    as_bibtex: Annotated[bool, typer.Option("--bibtex", help="As BibTeX entries.")] = False,
    console: Console,
) -> None:
    """List the sources of the methods that a run's results used, and what each was used for."""
    from moe_probe.core.results import Results
    from moe_probe.report.references import bibtex, cited_sources

    results = dict(Results(run_path / "results"))
    if not results:
        raise MoeProbeError(f"{run_path} has no results", "", f"moe-probe analyze {quoted(run_path)}")
    sources = cited_sources(results)
    if as_bibtex:
        entries = bibtex(sources)
        console.result({"bibtex": entries}, entries.rstrip().split("\n"))
        return
    data = [
        {
            "key": source.reference.key if source.reference else None,
            "source": source.text,
            "used_for": source.purposes,
            "results": source.results,
        }
        for source in sources
    ]
    lines = [line for source in sources for line in (source.text, f"  {_uses(source)}")]
    console.result({"sources": data}, lines or "these results name no source")


def _uses(source: CitedSource) -> str:
    """Say what a source was used for, and in which tables."""
    purposes, tables = "; ".join(source.purposes), some_of(source.results, 6)
    return f"used for {purposes} (tables: {tables})" if purposes else f"tables: {tables}"
