"""Documents with their routing as arrays -> a sealed trace: what every importer ends in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import check_output_folder
from moe_probe.core.lock import writing
from moe_probe.core.progress import track
from moe_probe.core.routing import dropped_id
from moe_probe.core.schema import IMPORTED_AS, WORDS, CorpusInfo, Manifest, ModelInfo
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.plan import ImportPlan, make_plan
from moe_probe.recording.importers.survey import Survey
from moe_probe.recording.importers.token_record import TokenRecord
from moe_probe.recording.importers.tokens import TokenTexts
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.recording.trace.checks import check_layers
from moe_probe.recording.trace.shard import DOCUMENT_COLUMNS


def import_records(
    records: Callable[[], Iterator[TokenRecord]],
    path: str | Path,
    source: ImportSource,
    *,
    options: ImportOptions,
    mode: str = "new",
) -> Trace:
    """Write records as a trace.

    Parameters
    ----------
    records : callable returning an iterator of TokenRecord
        Called twice, to look at everything before anything is written; documents come whole.
    path : str or Path
        Folder of the trace.
    source : ImportSource
    options : ImportOptions
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.

    Returns
    -------
    Trace
        Sealed; `Trace.warnings` says what was guessed or omitted.

    Raises
    ------
    MoeProbeError
        Naming the row: an expert twice in a token, an id past the layer's experts, gate weights that are no
        weights, positions that do not increase, a document that repeats. When most of the record is one and
        the same set of experts; when no layer has routing; when another process writes to the folder; when the disk refuses,
        whole shards are kept.
    """
    root = Path(path)
    with writing(root):
        return _import(records, root, source, options=options, mode=mode)


def _import(
    records: Callable[[], Iterator[TokenRecord]], root: Path, source: ImportSource, *, options: ImportOptions, mode: str
) -> Trace:
    check_output_folder(root, mode)
    check_layers(source.layers)
    texts = None if options.tokenizer is None else TokenTexts(options.tokenizer)

    def filled(stream: Iterator[TokenRecord]) -> Iterator[TokenRecord]:
        return stream if texts is None else map(texts.fill, stream)

    survey = Survey(source.layers, words=source.words)
    for record in filled(track(_unique(records()), "check", unit="documents")):
        survey.add(record)
    if not survey.n_tokens:
        raise MoeProbeError(f"{source.name} has no token with routing", "", "check what was recorded")
    plan = make_plan(survey, source, options)
    manifest = _manifest(survey, plan, source, options, texts)
    writer = TraceWriter.resume(root, manifest) if mode == "resume" else TraceWriter.create(root, manifest, mode=mode)
    if not writer.sealed:
        kept = _kept(filled(track(records(), "import", unit="documents")), plan, survey)
        _write(writer, kept, options)
    trace = writer.seal()
    trace.warnings = (*writer.notes, *plan.warnings)
    return trace


def _unique(records: Iterator[TokenRecord]) -> Iterator[TokenRecord]:
    seen: set[str] = set()
    for record in records:
        name = record.labels.get("document", "")
        if name in seen:
            where = f"{record.where(0)}: " if len(record.position) else ""
            raise MoeProbeError(
                f"{where}document '{name}' comes a second time",
                "the rows of a document follow each other, and every answer is a document of its own",
                "rows sorted by document and position, or another name for the document",
            )
        seen.add(name)
        yield record


def _manifest(
    survey: Survey, plan: ImportPlan, source: ImportSource, options: ImportOptions, texts: TokenTexts | None
) -> Manifest:
    return Manifest(
        model=ModelInfo(id=options.model_id),
        tokenizer_hash="" if texts is None else texts.hash,
        corpus=CorpusInfo(name=source.name, hash=source.hash, label_columns=options.labels),
        layers=plan.layers,
        expert_dtype="uint8" if max(layer.num_experts for layer in plan.layers) < 256 else "uint16",
        has_weights=bool(survey.has_weights),
        has_text=False,
        settings={
            "shard_tokens": options.shard_tokens,
            IMPORTED_AS: source.kind,
            **({} if source.words else {WORDS: False}),
            **({"drop_constant": True} if options.drop_constant else {}),
            **({} if texts is None else texts.settings),
        },
    )


def _kept(records: Iterator[TokenRecord], plan: ImportPlan, survey: Survey) -> Iterator[TokenRecord]:
    """Yield records with the kept layers, without the dropped tokens; documents without tokens vanish."""
    for record in records:
        kept = record.take(~np.isin(survey.patterns(record.experts), plan.dropped)) if len(plan.dropped) else record
        if len(kept.experts):
            yield kept._replace(
                experts=kept.experts[:, plan.columns],
                weights=None if kept.weights is None else kept.weights[:, plan.columns],
            )


def _write(writer: TraceWriter, records: Iterator[TokenRecord], options: ImportOptions) -> None:
    shard: list[TokenRecord] = []
    n_tokens, done = 0, writer.n_documents
    for ordinal, record in enumerate(records):
        if ordinal < done:
            continue
        shard.append(record)
        n_tokens += len(record.experts)
        if n_tokens >= options.shard_tokens:
            _append(writer, shard, options)
            shard, n_tokens = [], 0
    if shard:
        _append(writer, shard, options)


def _append(writer: TraceWriter, shard: Sequence[TokenRecord], options: ImportOptions) -> None:
    lengths = [len(record.experts) for record in shard]
    dtype = np.dtype(writer.manifest.expert_dtype)
    slots = max(layer.top_k for layer in writer.manifest.layers)
    experts = np.full((sum(lengths), len(writer.manifest.layers), slots), dropped_id(dtype), dtype=dtype)
    weights = np.zeros(experts.shape, dtype=np.float16) if writer.manifest.has_weights else None
    start = 0
    for record, n in zip(shard, lengths, strict=True):
        ids = record.experts[:, :, :slots]  # slots that no token of the kept layers fills may lie behind
        experts[start : start + n, :, : ids.shape[2]] = np.where(ids < 0, dropped_id(dtype), ids)
        if weights is not None and record.weights is not None:
            weights[start : start + n, :, : ids.shape[2]] = record.weights[:, :, :slots]
        start += n
    names = (*DOCUMENT_COLUMNS, *options.labels)
    documents = [{name: record.labels.get(name, "") for name in names} for record in shard]
    for document in documents:
        document["group"] = document["group"] or document["document"]
    tokens = {
        "document": np.repeat(np.arange(len(shard)), lengths),
        "position": np.concatenate([r.position for r in shard]),
        "token_id": np.concatenate([r.token_id for r in shard]),
        "token": [t for r in shard for t in (r.tokens if r.tokens is not None else map(str, r.token_id.tolist()))],
        "special": np.concatenate(
            [np.zeros(n, dtype=bool) if r.special is None else r.special for r, n in zip(shard, lengths, strict=True)]
        ),
    }
    writer.append(documents=documents, tokens=tokens, experts=experts, weights=weights)
