"""The command `merge`: traces that were collected apart become one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import Mode, Out, Seed, command
from moe_probe.core.text import quoted


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(app, "merge", "moe-probe merge traces/part-* --out traces/mine")(merge)


def merge(
    traces: Annotated[
        list[Path],
        typer.Argument(
            help="All parts of a corpus (collect --shard), in any order; or traces of several corpora through one model, in "
            "the order in which they are joined. A quoted glob stands for several.",
            show_default=False,
        ),
    ],
    *,
    out: Out,
    copy: Annotated[bool, typer.Option("--copy", help="Copy files of arrays, instead of linking them.")] = False,
    mode: Mode,
    seed: Seed = 0,  # noqa: ARG001 (every command takes it)
    console: Console,
) -> None:
    """Join the parts of a trace, or traces of several corpora, without copying their arrays."""
    from moe_probe.recording.trace import merge_traces

    paths = [path for given in traces for path in _expanded(given)]
    trace = merge_traces(paths, out, mode=mode, link=not copy)
    console.notes(trace.warnings)
    m = trace.manifest
    console.result(
        {
            "trace": str(out),
            "merged": [str(path) for path in paths],
            "documents": m.n_documents,
            "tokens": trace.n_tokens,
            "warnings": list(trace.warnings),
        },
        f"Trace: {out}, {len(paths)} traces with {m.n_documents:,} documents and {trace.n_tokens:,} tokens. "
        f"Next: moe-probe analyze {quoted(out)}",
    )


def _expanded(path: Path) -> list[Path]:
    """Folders that a quoted glob stands for; a path that is there, or no glob, is itself."""
    if path.exists() or not any(sign in str(path) for sign in "*?["):
        return [path]
    start = Path(path.anchor)
    return sorted(start.glob(str(path.relative_to(start)))) or [path]
