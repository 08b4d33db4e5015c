"""Documents with their routing as arrays -> a sealed trace: what every importer ends in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from moe_probe.errors import MoeProbeError, UsageError
from moe_probe.progress import track
from moe_probe.routing import dropped_id
from moe_probe.schema import CorpusInfo, Manifest, ModelInfo, MoeLayer
from moe_probe.trace import Trace, TraceWriter


class TokenRecord(NamedTuple):
    """One document as somebody recorded it.

    ``labels`` holds ``document, topic`` and optionally ``subtopic, group, split`` and more, all strings;
    ``experts`` (n_tokens, n_layers, n_slots) holds expert ids, -1 in slots that reached no expert;
    ``weights`` has the same shape or is None; ``tokens`` are strings or None.
    """

    labels: Mapping[str, str]
    token_id: np.ndarray
    position: np.ndarray
    tokens: Sequence[str] | None
    experts: np.ndarray
    weights: np.ndarray | None
    special: np.ndarray | None = None


@dataclass(frozen=True)
class ImportOptions:
    """How a record is to be read.

    Attributes
    ----------
    num_experts : int, optional
        Experts per layer. Without it the file's own metadata is used, and failing that the largest id
        seen, with a warning: an expert that was never chosen does not show in ids.
    model_id : str
        Name of the model for captions.
    labels : tuple of str
        Further columns to keep with each document.
    shard_tokens : int
        Tokens after which a shard is written.
    """

    num_experts: int | None = None
    model_id: str = "unknown"
    labels: tuple[str, ...] = ()
    shard_tokens: int = 65536
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.num_experts is not None and self.num_experts < 2:
            raise UsageError(f"--num-experts {self.num_experts} is not a number of experts", "there are at least two")


def experts_of_layers(
    layers: Sequence[int], largest: Sequence[int], options: ImportOptions, declared: Mapping[int, int]
) -> list[int]:
    """Decide how many experts each layer has.

    Parameters
    ----------
    layers, largest : sequence of int
        Layer numbers and the largest expert id seen in each.
    declared : mapping of layer to int
        What the file itself says, where it does.

    Raises
    ------
    MoeProbeError
        When an id does not fit the number that was given.
    """
    out = []
    guessed = False
    for layer, top in zip(layers, largest, strict=True):
        n = options.num_experts or declared.get(layer)
        if n is None:
            n, guessed = max(int(top) + 1, 2), True
        if top >= n:
            raise MoeProbeError(f"layer {layer} selects expert {top} of {n}", "ids count from 0 to one less than the "
                                "number of experts", "the right --num-experts")
        out.append(n)
    if guessed:
        shown = ", ".join(str(n) for n in sorted(set(out)))
        options.warnings.append(f"number of experts guessed from the largest id seen ({shown}): an expert that was "
                                "never chosen would be missing; --num-experts N says it")
    return out


def import_records(
    records: Callable[[], Iterator[TokenRecord]], path: str | Path, *, layers: Sequence[int],
    num_experts: Sequence[int], top_k: Sequence[int], source: str, source_hash: str, has_weights: bool,
    options: ImportOptions, mode: str = "new",
) -> Trace:
    """Write records as a trace.

    Parameters
    ----------
    records : callable returning an iterator of TokenRecord
        Called once; documents come whole.
    layers, num_experts, top_k : sequence of int, length n_layers
    source, source_hash : str
        Name and SHA-256 of what is imported.
    mode : {"new", "resume", "force"}

    Returns
    -------
    Trace
        Sealed.

    Raises
    ------
    MoeProbeError
        When a document repeats, an id is out of range or the disk refuses; whole shards are kept.
    """
    dtype: Literal["uint8", "uint16"] = "uint8" if max(num_experts) < 256 else "uint16"
    manifest = Manifest(
        model=ModelInfo(id=options.model_id), corpus=CorpusInfo(name=source, hash=source_hash,
                                                                label_columns=options.labels),
        layers=tuple(
            MoeLayer(layer=layer, name=f"layer {layer}", num_experts=n, top_k=k, note="imported")
            for layer, n, k in zip(layers, num_experts, top_k, strict=True)),
        expert_dtype=dtype, has_weights=has_weights, has_text=False,
        settings={"shard_tokens": options.shard_tokens},
    )
    root = Path(path)
    if mode == "force" and (root / "trace.json").exists():
        shutil.rmtree(root)
    writer = TraceWriter.resume(root, manifest) if mode == "resume" else TraceWriter.create(root, manifest)
    if writer.sealed:
        return writer.seal()
    shard: list[TokenRecord] = []
    n_tokens = 0
    for ordinal, record in enumerate(track(_unique(records()), "import", unit="documents")):
        if ordinal < writer.n_documents and not shard:
            continue
        shard.append(record)
        n_tokens += len(record.experts)
        if n_tokens >= options.shard_tokens:
            _append(writer, shard, options)
            shard, n_tokens = [], 0
    if shard:
        _append(writer, shard, options)
    return writer.seal()


def _unique(records: Iterator[TokenRecord]) -> Iterator[TokenRecord]:
    seen: set[str] = set()
    for record in records:
        name = record.labels["document"]
        if name in seen:
            raise MoeProbeError(f"document '{name}' comes back after another one",
                                "the rows of a document have to follow each other", "sort by document and position")
        seen.add(name)
        yield record


def _append(writer: TraceWriter, shard: Sequence[TokenRecord], options: ImportOptions) -> None:
    lengths = [len(r.experts) for r in shard]
    dtype = np.dtype(writer.manifest.expert_dtype)
    slots = max(layer.top_k for layer in writer.manifest.layers)
    experts = np.full((sum(lengths), len(writer.manifest.layers), slots), dropped_id(dtype), dtype=dtype)
    weights = np.zeros(experts.shape, dtype=np.float16) if writer.manifest.has_weights else None
    start = 0
    for record, n in zip(shard, lengths, strict=True):
        ids, width = record.experts, record.experts.shape[2]
        if ids.size and ids.max() >= dropped_id(dtype):
            raise MoeProbeError(f"document '{record.labels['document']}' selects expert {ids.max()}",
                                f"there are {max(x.num_experts for x in writer.manifest.layers)} experts",
                                "the right --num-experts")
        experts[start:start + n, :, :width] = np.where(ids < 0, dropped_id(dtype), ids)
        if weights is not None:
            if record.weights is None:
                raise MoeProbeError(f"document '{record.labels['document']}' has no gate weights",
                                    "other documents have them", "weights for all documents or for none")
            weights[start:start + n, :, :width] = record.weights
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
        "special": np.concatenate([np.zeros(n, dtype=bool) if r.special is None else r.special
                                   for r, n in zip(shard, lengths, strict=True)]),
    }
    writer.append(documents=rows, tokens=tokens, experts=experts, weights=weights)
