"""Counts per document -> a sealed trace without tokens: what every importer of counts ends in.

`import_usage_records` takes blocks of documents and goes over them twice: `usage_survey` looks at everything before anything
is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from moe_probe.core.files import check_output_folder
from moe_probe.core.lock import writing
from moe_probe.core.progress import track
from moe_probe.core.schema import IMPORTED_AS, SUMS, CorpusInfo, Manifest, ModelInfo
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.usage_block import UsageBlock
from moe_probe.recording.importers.usage_survey import UsageSurvey, UsageTotals
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.recording.trace.checks import check_layers
from moe_probe.recording.trace.shard import DOCUMENT_COLUMNS

Blocks = Callable[[], Iterator[UsageBlock]]


def import_usage_records(
    blocks: Blocks | Sequence[UsageBlock],
    path: str | Path,
    source: ImportSource,
    *,
    options: ImportOptions | None = None,
    mode: str = "new",
) -> Trace:
    """Write counts of selections per document as a trace.

    Parameters
    ----------
    blocks : callable returning an iterator of UsageBlock, or sequence of UsageBlock
        Called twice, to look at everything before anything is written. A block is written as one shard.
    path : str or Path
        Folder of the trace.
    source : ImportSource
        Its `layers` number the columns of the blocks; its `sums` says that the rows are topics.
    options : ImportOptions, optional
        Without `top_k`, numbers of tokens have to be in the blocks.
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.

    Returns
    -------
    Trace
        Sealed, with counts only; `Trace.warnings` says what was omitted or recovered.

    Raises
    ------
    MoeProbeError
        Naming document and layer: counts that are negative, missing or not whole, that do not add up to top-k per token, or
        that so many tokens cannot have. When no layer has counts; when another process writes to the folder; when the
        disk refuses, whole shards are kept.
    UsageError
        When the number of experts per token is needed and missing.

    Examples
    --------
    >>> block = UsageBlock([{"document": "d0", "topic": "law"}], counts=np.array([[[3, 1, 2, 2]]]))
    >>> trace = import_usage_records([block], "traces/mine", ImportSource([0], "mine", ""), options=ImportOptions(top_k=2))
    >>> trace.documents.n_tokens.tolist()
    [4]
    """
    root = Path(path)
    stream = blocks if callable(blocks) else lambda: iter(blocks)
    with writing(root):
        return _import(stream, root, source, options=options or ImportOptions(), mode=mode)


def _import(
    stream: Callable[[], Iterator[UsageBlock]], root: Path, source: ImportSource, *, options: ImportOptions, mode: str
) -> Trace:
    check_output_folder(root, mode)
    check_layers(source.layers)
    survey = UsageSurvey(source)
    for block in track(stream(), "check", unit="blocks"):
        survey.add(block)
    totals = survey.finish(options)
    manifest = _manifest(totals, source, options)
    writer = TraceWriter.resume(root, manifest) if mode == "resume" else TraceWriter.create(root, manifest, mode=mode)
    if not writer.sealed:
        _write(writer, track(stream(), "import", unit="blocks"), totals, options)
    trace = writer.seal()
    trace.warnings = (*writer.notes, *totals.warnings)
    return trace


def _manifest(totals: UsageTotals, source: ImportSource, options: ImportOptions) -> Manifest:
    widest = max(layer.num_experts for layer in totals.layers)
    return Manifest(
        model=ModelInfo(id=options.model_id),
        corpus=CorpusInfo(name=source.name, hash=source.hash, label_columns=options.labels),
        layers=totals.layers,
        expert_dtype="uint8" if widest < 256 else "uint16",
        has_weights=totals.has_gate,
        has_text=False,
        kept=("usage",),
        settings={
            IMPORTED_AS: source.kind,
            **({SUMS: True} if source.sums else {}),
            **({"drop_constant": True} if options.drop_constant else {}),
        },
    )


def _write(writer: TraceWriter, blocks: Iterator[UsageBlock], totals: UsageTotals, options: ImportOptions) -> None:
    start, written, done = 0, 0, writer.n_documents
    names = (*DOCUMENT_COLUMNS, *options.labels)
    for block in blocks:
        rows = np.flatnonzero(totals.kept[start : start + len(block.documents)])
        n_tokens = totals.n_tokens[start : start + len(block.documents)]
        start += len(block.documents)
        new = rows[max(0, done - written) :]  # an interrupted import goes on behind its last whole shard
        written += len(rows)
        if not len(new):
            continue
        documents = [{name: str(block.documents[row].get(name) or "") for name in names} for row in new]
        for document in documents:
            document["group"] = document["group"] or document["document"]
        writer.append_usage(
            documents=documents,
            n_tokens=n_tokens[new],
            selections=_taken(block.counts, new, totals).astype(np.int64),
            gate_mass=None if block.gate is None else _taken(block.gate, new, totals),
            saliency=None if block.saliency is None else _taken(block.saliency, new, totals),
        )


def _taken(values: np.ndarray, rows: np.ndarray, totals: UsageTotals) -> np.ndarray:
    """Return the rows and layers that are kept, as wide as the widest of these layers."""
    widest = max(layer.num_experts for layer in totals.layers)
    taken = values[np.ix_(rows, totals.columns)][:, :, :widest]
    return np.pad(taken, [(0, 0), (0, 0), (0, widest - taken.shape[2])])
