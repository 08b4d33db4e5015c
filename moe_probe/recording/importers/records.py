"""Documents with their routing as arrays -> a sealed trace: what every importer ends in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import check_output_folder
from moe_probe.core.progress import track
from moe_probe.core.routing import dropped_id
from moe_probe.core.schema import RESERVED_LABELS, CorpusInfo, Manifest, ModelInfo, MoeLayer
from moe_probe.recording.importers.survey import LayerSurvey, Survey, TokenRecord
from moe_probe.recording.importers.tokens import TokenTexts
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.recording.trace.checks import check_layers, id_past_end, repeated_expert

_MOST = 0.5  # a record that is constant for more than this share says nothing about a router
_MENTION = 0.01  # a smaller share of constant routing (a row of equal signs) is no warm-up


@dataclass(frozen=True)
class ImportOptions:
    """How a record is to be read.

    Attributes
    ----------
    num_experts : int or mapping of layer to int, optional
        Experts per layer. Where it does not say, the file's own metadata or columns are used, and failing
        that the largest id seen, with a warning: an expert that was never chosen does not show in ids.
    model_id : str
        Name of the model for captions.
    labels : tuple of str
        Further columns to keep with each document.
    shard_tokens : int
        Tokens after which a shard is written.
    layers : tuple of int, optional
        Layers to keep. Without it all are kept that hold routing; a dense layer is left out, with a warning.
    tokenizer : Path, optional
        Folder of the model's tokenizer, to give token ids their text and to know special tokens.
    drop_constant : bool
        Leave out tokens that share one set of experts in every layer with many others (warm-up requests).
    warnings : list of str
        Filled by the import.
    """

    num_experts: int | Mapping[int, int] | None = None
    model_id: str = "unknown"
    labels: tuple[str, ...] = ()
    shard_tokens: int = 65536
    layers: tuple[int, ...] | None = None
    tokenizer: Path | None = None
    drop_constant: bool = False
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.labels:
            if name in RESERVED_LABELS or not name.strip():
                raise UsageError(
                    f"--label {name} is not a further label",
                    "a trace has a column of that name anyway",
                    "omit it, or rename the column",
                )
        given = self.num_experts.values() if isinstance(self.num_experts, Mapping) else [self.num_experts]
        for n in given:
            if n is not None and not 1 <= n <= dropped_id("uint16"):
                raise UsageError(
                    f"--num-experts {n} is not a number of experts",
                    f"a layer has 1 to {dropped_id('uint16'):,}",
                    "--num-experts 64, or 0:8,1:64",
                )
        if self.shard_tokens < 1:
            raise UsageError(f"--shard-tokens {self.shard_tokens} is not a number of tokens", "", "--shard-tokens 65536")


@dataclass(frozen=True)
class Recording:
    """What is imported, beside the records themselves.

    Attributes
    ----------
    layers : sequence of int
        Layer number of every column of the records' arrays.
    source, source_hash : str
        Name and SHA-256 of what is imported.
    num_experts : mapping of layer to int
        What the file itself says, where it does.
    every_layer : bool
        Whether there is a column for every hidden layer, zeros in dense ones, as serving engines return it.
    """

    layers: Sequence[int]
    source: str
    source_hash: str
    num_experts: Mapping[int, int] = field(default_factory=dict)
    every_layer: bool = False


def some(values: Sequence[object], noun: str, rest: str = "") -> str:
    """Say how many values there are, and five of them.

    Examples
    --------
    >>> some([3, 1, 4, 1, 5, 9, 2], "layer")
    '7 layers (3, 1, 4, 1, 5, ...)'
    """
    shown = ", ".join(str(v) for v in values[:5]) + (", ..." if len(values) > 5 else "")
    return f"{len(values):,} {noun}{'' if len(values) == 1 else 's'}{rest} ({shown})"


def import_records(
    records: Callable[[], Iterator[TokenRecord]],
    path: str | Path,
    recording: Recording,
    *,
    options: ImportOptions,
    mode: str = "new",
) -> Trace:
    """Write records as a trace.

    Parameters
    ----------
    records : callable returning an iterator of TokenRecord
        Called twice, to look at everything before anything is written; documents come whole.
    recording : Recording
    mode : {"new", "resume", "force"}

    Returns
    -------
    Trace
        Sealed.

    Raises
    ------
    MoeProbeError
        Naming the row: an expert twice in a token, an id past the layer's experts, gate weights that are no
        weights, positions that do not increase, a document that repeats. When most of the record is one and
        the same set of experts; when no layer holds routing; when the disk refuses, whole shards are kept.
    """
    check_output_folder(Path(path), mode)
    check_layers(recording.layers)
    texts = None if options.tokenizer is None else TokenTexts(options.tokenizer)
    survey = Survey(recording.layers)
    for record in track(_unique(records()), "check", unit="documents"):
        survey.add(record if texts is None else texts.fill(record))
    if not survey.n_tokens:
        raise MoeProbeError(f"{recording.source} has no token with routing", "", "check what was recorded")
    columns = _columns(survey, recording, options)
    manifest = _manifest(survey, columns, recording, options)
    if texts is not None:
        manifest = manifest.model_copy(update={"tokenizer_hash": texts.hash, "settings": manifest.settings | texts.settings})
    dropped = _constant(survey, manifest, options)
    root = Path(path)
    if mode == "force" and (root / "trace.json").exists():
        shutil.rmtree(root)
    writer = TraceWriter.resume(root, manifest) if mode == "resume" else TraceWriter.create(root, manifest)
    if writer.sealed:
        return writer.seal()
    filled = (record if texts is None else texts.fill(record) for record in track(records(), "import", unit="documents"))
    _write(writer, _kept(filled, columns, dropped, survey), options)
    return writer.seal()


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


def _columns(survey: Survey, recording: Recording, options: ImportOptions) -> list[int]:
    """Columns to keep: those asked for, or all that are not dense; says which were left out."""
    layers = list(recording.layers)
    if options.layers is not None:
        missing = [layer for layer in options.layers if layer not in layers]
        if missing:
            raise MoeProbeError(
                f"{recording.source} has no layer {missing[0]}",
                f"it has {some(layers, 'layer')}",
                "--layers with some of them",
            )
        columns = [layers.index(layer) for layer in sorted(set(options.layers))]
        empty = [layers[c] for c in columns if survey.columns[c].dense]
        if empty:
            raise MoeProbeError(
                f"layer {empty[0]} of {recording.source} is dense: it holds no routing",
                "no token has an expert there, or all have the same one in several slots",
                "leave it out of --layers",
            )
    else:
        columns = [c for c, found in enumerate(survey.columns) if not found.dense and not _zeros(found, survey, recording)]
        out = [layer for c, layer in enumerate(layers) if c not in columns]
        if not columns:
            raise MoeProbeError(
                f"{recording.source} has no layer with routing",
                "every token has the same experts, or none",
                "record a mixture-of-experts model",
            )
        if out:
            options.warnings.append(
                f"left out as dense: {some(out, 'layer', f' of {len(layers)}')}, zeros or nothing for every "
                "token; --layers names layers to keep"
            )
    for c in columns:
        repeat = survey.columns[c].repeat
        if repeat is not None:
            raise repeated_expert(layers[c], repeat[1], repeat[0])
    return columns


def _zeros(found: LayerSurvey, survey: Survey, recording: Recording) -> bool:
    """Whether a layer of top-1 answers is expert 0 for every token, while others choose: a dense one."""
    return (
        recording.every_layer and found.largest == 0 and found.slots == 1 and any(other.sets > 1 for other in survey.columns)
    )


def _manifest(survey: Survey, columns: Sequence[int], recording: Recording, options: ImportOptions) -> Manifest:
    layers = [recording.layers[c] for c in columns]
    found = [survey.columns[c] for c in columns]
    num_experts = experts_of_layers(layers, found, options, recording.num_experts)
    dtype: Literal["uint8", "uint16"] = "uint8" if max(num_experts) < 256 else "uint16"
    settings: dict[str, str | int | float | bool | None] = {"shard_tokens": options.shard_tokens}
    if options.drop_constant:
        settings["drop_constant"] = True
    return Manifest(
        model=ModelInfo(id=options.model_id),
        corpus=CorpusInfo(name=recording.source, hash=recording.source_hash, label_columns=options.labels),
        layers=tuple(
            MoeLayer(layer=layer, name=f"layer {layer}", num_experts=n, top_k=item.slots, note="imported")
            for layer, n, item in zip(layers, num_experts, found, strict=True)
        ),
        expert_dtype=dtype,
        has_weights=bool(survey.has_weights),
        has_text=False,
        settings=settings,
    )


def experts_of_layers(
    layers: Sequence[int], found: Sequence[LayerSurvey], options: ImportOptions, declared: Mapping[int, int]
) -> list[int]:
    """Decide how many experts each layer has.

    Parameters
    ----------
    layers : sequence of int
    found : sequence of LayerSurvey
        What was seen in each layer.
    declared : mapping of layer to int
        What the file itself says, where it does.

    Raises
    ------
    MoeProbeError
        When an id does not fit the number that was given, naming the row.
    """
    given = options.num_experts
    if isinstance(given, Mapping):
        unknown = [layer for layer in given if layer not in layers]
        if unknown:
            raise UsageError(
                f"--num-experts names layer {unknown[0]}",
                f"the record has {some(list(layers), 'layer')}",
                "--num-experts with those layers",
            )
    out, guessed = [], []
    for layer, item in zip(layers, found, strict=True):
        n = given if isinstance(given, int) else (given or {}).get(layer)
        n = n or declared.get(layer)
        if n is None:
            n = item.largest + 1
            guessed.append(layer)
        if item.largest >= n:
            raise id_past_end(layer, item.largest, n, item.largest_at)
        out.append(n)
    if max(out) > dropped_id("uint16"):
        raise MoeProbeError(
            f"a layer would have {max(out):,} experts",
            f"{found[int(np.argmax(out))].largest_at} has the largest id; a trace holds {dropped_id('uint16'):,} at most",
            "check the ids",
        )
    if guessed:
        numbers = sorted({n for n, layer in zip(out, layers, strict=True) if layer in guessed})
        options.warnings.append(
            f"number of experts guessed from the largest id seen: {', '.join(map(str, numbers[:5]))}"
            f"{', ...' if len(numbers) > 5 else ''} in {some(guessed, 'layer')}; an expert that was never chosen is missing, "
            "--num-experts N says it (0:8,1:64 where layers differ)"
        )
    return out


def _constant(survey: Survey, manifest: Manifest, options: ImportOptions) -> set[int]:
    """Decide what becomes of tokens whose experts are one and the same set for many tokens."""
    if all(layer.top_k >= layer.num_experts for layer in manifest.layers):
        return set()  # every token uses every expert: there is no choice that could vary
    n, share = survey.n_constant(), survey.n_constant() / survey.n_tokens
    if share < _MENTION:
        return set()
    said = f"{n:,} of {survey.n_tokens:,} tokens ({share:.0%}) have one and the same set of experts in every layer"
    if options.drop_constant:
        if n >= survey.n_tokens:
            raise MoeProbeError(
                f"{said}, and none is left without them", "warm-up requests look like this", "record the answers again"
            )
        options.warnings.append(f"{said}, as warm-up requests have: left out (--drop-constant)")
        return survey.constant()
    if share > _MOST:
        raise MoeProbeError(
            said,
            "warm-up requests look like this, and they carry no information about topics",
            "--drop-constant, to leave these tokens out",
        )
    options.warnings.append(f"{said}, as warm-up requests have; --drop-constant leaves them out")
    return set()


def _kept(
    records: Iterator[TokenRecord], columns: Sequence[int], dropped: set[int], survey: Survey
) -> Iterator[TokenRecord]:
    """Records with the kept layers, without the dropped tokens; documents without tokens vanish."""
    constant = np.array(sorted(dropped), dtype=np.uint64)
    for record in records:
        kept = record.take(~np.isin(survey.patterns(record.experts), constant)) if len(constant) else record
        if len(kept.experts):
            yield kept._replace(
                experts=kept.experts[:, columns], weights=None if kept.weights is None else kept.weights[:, columns]
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
    lengths = [len(r.experts) for r in shard]
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
    names = ("document", "topic", "subtopic", "group", "split", *options.labels)
    rows = [{k: r.labels.get(k, "") for k in names} for r in shard]
    for row in rows:
        row["group"] = row["group"] or row["document"]
    tokens = {
        "document": np.repeat(np.arange(len(shard)), lengths),
        "position": np.concatenate([r.position for r in shard]),
        "token_id": np.concatenate([r.token_id for r in shard]),
        "token": [t for r in shard for t in (r.tokens if r.tokens is not None else map(str, r.token_id.tolist()))],
        "special": np.concatenate(
            [np.zeros(n, dtype=bool) if r.special is None else r.special for r, n in zip(shard, lengths, strict=True)]
        ),
    }
    writer.append(documents=rows, tokens=tokens, experts=experts, weights=weights)
