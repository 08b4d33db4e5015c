"""Unfinished traces of three kinds, tiny: tokens with vectors, counts alone, an import; begun, and continued to the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo, MoeLayer
from moe_probe.recording.importers import ImportOptions, import_table
from moe_probe.recording.trace import Trace, TraceWriter

#: Shards of an unfinished trace (one more is missing), documents of a shard, layers, experts, experts of a token.
N_SHARDS, N_DOCUMENTS, N_LAYERS, N_EXPERTS, K = 4, 3, 2, 6, 2


@dataclass(frozen=True)
class Kind:
    """A kind of unfinished trace.

    Attributes
    ----------
    name : str
    begin : callable
        Writes an unfinished trace into a folder.
    resume : callable
        Continues and seals it; returns the sealed trace and what was said of damage.
    """

    name: str
    begin: Callable[[Path], object]
    resume: Callable[[Path], tuple[Trace, tuple[str, ...]]]


def kinds_of(work: Path) -> list[Kind]:
    """Describe the kinds of traces that are attacked; the import needs a file in `work`."""
    table = work / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in _rows()))

    def imported(root: Path) -> tuple[Trace, tuple[str, ...]]:
        trace = import_table(table, root, options=_IMPORT, mode="resume")
        return trace, tuple(note for note in trace.warnings if "is damaged" in note)

    def begun(root: Path) -> None:
        try:
            with _Unsealed():
                import_table(table, root, options=_IMPORT)
        except KeyboardInterrupt:
            return
        raise AssertionError("the import was not interrupted")

    return [
        Kind(
            "tokens",
            lambda root: _write(root, tokens_manifest(), "append", N_SHARDS),
            _resumed(tokens_manifest(), "append"),
        ),
        Kind(
            "counts",
            lambda root: _write(root, counts_manifest(), "append_usage", N_SHARDS),
            _resumed(counts_manifest(), "append_usage"),
        ),
        Kind("import", begun, imported),
    ]


_IMPORT = ImportOptions(num_experts=N_EXPERTS, shard_tokens=12)


class _Unsealed:
    """An interruption in the moment in which a trace is sealed."""

    def __enter__(self) -> None:
        self._seal = TraceWriter.seal

        def interrupted(writer: TraceWriter) -> Trace:
            raise KeyboardInterrupt

        TraceWriter.seal = interrupted  # type: ignore[assignment,method-assign]

    def __exit__(self, *error: object) -> None:
        TraceWriter.seal = self._seal  # type: ignore[method-assign]


def _write(root: Path, manifest: Manifest, method: str, n: int) -> TraceWriter:
    writer = TraceWriter.create(root, manifest)
    for index in range(n):
        getattr(writer, method)(**_SHARDS[method](index))
    return writer


def _resumed(manifest: Manifest, method: str) -> Callable[[Path], tuple[Trace, tuple[str, ...]]]:
    def resume(root: Path) -> tuple[Trace, tuple[str, ...]]:
        writer = TraceWriter.resume(root, manifest)
        for index in range(len(writer.shards), N_SHARDS + 1):
            getattr(writer, method)(**_SHARDS[method](index))
        return writer.seal(), writer.notes

    return resume


def _layers() -> tuple[MoeLayer, ...]:
    return tuple(MoeLayer(layer=i, name=f"layers.{i}", num_experts=N_EXPERTS, top_k=K) for i in range(N_LAYERS))


def tokens_manifest() -> Manifest:
    model, corpus = ModelInfo(id="m", fingerprint="abc"), CorpusInfo(name="c", hash="def")
    return Manifest(model=model, corpus=corpus, layers=_layers(), kept=("routing", "hidden"), has_text=False)


def counts_manifest() -> Manifest:
    model, corpus = ModelInfo(id="m"), CorpusInfo(name="c", hash="def")
    return Manifest(model=model, corpus=corpus, layers=_layers(), kept=("usage",), has_text=False, has_weights=False)


def _documents(index: int) -> list[dict[str, str]]:
    return [
        {"document": f"d{index}-{i}", "topic": "ab"[i % 2], "subtopic": "", "group": f"g{index}-{i}", "split": ""}
        for i in range(N_DOCUMENTS)
    ]


def _routing(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths of a shard's documents; experts and gate weights of its tokens."""
    rng = np.random.default_rng(index)
    lengths = rng.integers(2, 6, N_DOCUMENTS)
    scores = rng.random((int(lengths.sum()), N_LAYERS, N_EXPERTS))
    experts = np.argsort(scores, axis=-1)[..., :K].astype(np.uint8)
    return lengths, experts, rng.random(experts.shape).astype(np.float16)


def tokens_shard(index: int) -> dict[str, Any]:
    lengths, experts, weights = _routing(index)
    n = len(experts)
    tokens = {
        "document": np.repeat(np.arange(N_DOCUMENTS), lengths),
        "position": np.concatenate([np.arange(m) for m in lengths]),
        "token_id": np.arange(n) + index,
        "token": [f"t{i}" for i in range(n)],
        "special": np.zeros(n, dtype=bool),
    }
    hidden = {"values": np.random.default_rng(index).random((n, 4)).astype(np.float32), "rows_in_shard": np.arange(n)}
    extras = {f"hidden/layer_{i:02d}": hidden for i in range(N_LAYERS)}
    return {"documents": _documents(index), "tokens": tokens, "experts": experts, "weights": weights, "extras": extras}


def _counts_shard(index: int) -> dict[str, Any]:
    lengths, experts, _ = _routing(index)
    document = np.repeat(np.arange(N_DOCUMENTS), lengths)
    selections = np.zeros((N_DOCUMENTS, N_LAYERS, N_EXPERTS), dtype=np.int64)
    for layer in range(N_LAYERS):
        np.add.at(selections[:, layer], (document[:, None], experts[:, layer]), 1)
    return {"documents": _documents(index), "n_tokens": lengths, "selections": selections}


_SHARDS: dict[str, Callable[[int], dict[str, Any]]] = {"append": tokens_shard, "append_usage": _counts_shard}


def _rows() -> list[dict[str, Any]]:
    rows = []
    for index in range(N_SHARDS + 1):
        shard, documents = tokens_shard(index), _documents(index)
        for row, document in enumerate(shard["tokens"]["document"]):
            routed = {f"experts_{i}": shard["experts"][row, i].tolist() for i in range(N_LAYERS)}
            known = {"position": int(shard["tokens"]["position"][row]), "token_id": int(shard["tokens"]["token_id"][row])}
            labels = {name: documents[document][name] for name in ("document", "topic")}
            rows.append({**labels, **known, **routed})
    return rows
