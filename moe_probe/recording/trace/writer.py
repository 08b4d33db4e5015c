"""Writing a trace: shard by shard, each either wholly there or not at all.

While it is being written a trace holds ``trace.json`` (status "writing"), the shards' arrays under
``routing/`` and their tables under ``parts/``. A shard counts once ``parts/NNNNN.json`` is there, which
is written last. Sealing joins the tables and removes ``parts/``. Whatever moment the process is killed
at, what counts is whole, and `TraceWriter.resume` goes on behind it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import check_output_folder, disk_errors, write_text, write_whole
from moe_probe.core.routing import count_selections, dropped_id
from moe_probe.core.schema import MANIFEST, Manifest, ShardEntry
from moe_probe.recording.trace.checks import check_ids, check_layers, check_order, check_repeats, check_topics, check_weights
from moe_probe.recording.trace.files import (
    CHECKSUM,
    DOCUMENTS,
    PARTS,
    TOKENS,
    USAGE,
    file_entry,
    read_manifest,
    write_manifest,
)

if TYPE_CHECKING:
    from moe_probe.recording.trace.reader import Trace

DOCUMENT_COLUMNS = ("document", "topic", "subtopic", "group", "split")
#: What must be equal for a trace to be gone on with: field of the manifest, and how to call it.
_IDENTITY = {
    "model.fingerprint": "weights",
    "tokenizer_hash": "tokenizer",
    "corpus.hash": "corpus",
    "layers": "MoE layers",
    "kept": "choice of what to keep",
    "hidden_share": "share of tokens with hidden states",
    "windowing": "windowing",
    "shard_of": "part of the corpus",
    "seed": "seed",
    "settings": "settings",
    "has_text": "choice to keep the text",
    "has_weights": "presence of gate weights",
    "expert_dtype": "type of the expert ids",
}


class TraceWriter:
    """Appends shards to a trace and seals it. Use `create` or `resume`."""

    def __init__(self, root: Path, manifest: Manifest, shards: list[ShardEntry]) -> None:
        self.root, self.manifest, self.shards = root, manifest, shards

    @classmethod
    def create(cls, path: str | Path, manifest: Manifest) -> TraceWriter:
        """Begin a trace in an empty or new folder.

        Raises
        ------
        MoeProbeError
            When the folder holds anything, or cannot be written, or a layer is named twice.
        """
        root = Path(path)
        check_layers([layer.layer for layer in manifest.layers])
        check_output_folder(root, "new")
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            manifest = manifest.model_copy(update={"status": "writing"})
            write_manifest(root, manifest)
        return cls(root, manifest, [])

    @classmethod
    def resume(cls, path: str | Path, manifest: Manifest) -> TraceWriter:
        """Go on with a trace behind its last whole shard.

        Parameters
        ----------
        manifest : Manifest
            What the continued run would write; must agree with what the trace was begun with.

        Raises
        ------
        MoeProbeError
            When weights, corpus, tokenizer or settings are not those the trace was begun with.
        """
        root = Path(path)
        if not (root / MANIFEST).exists():
            # killed while the very first files were written: they hold nothing yet
            for name in (CHECKSUM, f"{CHECKSUM}.partial", f"{MANIFEST}.partial"):
                with disk_errors(root):
                    (root / name).unlink(missing_ok=True)
            return cls.create(root, manifest)
        before = read_manifest(root)
        _refuse_change(root, before, manifest)
        with disk_errors(root):
            shards = list(before.shards) if before.status == "sealed" else _whole_shards(root)
            if before.status != "sealed":
                _remove_unfinished(root, shards)
        return cls(root, before, shards)

    @property
    def sealed(self) -> bool:
        """Whether there is nothing left to write."""
        return self.manifest.status == "sealed"

    @property
    def n_documents(self) -> int:
        """Documents in whole shards."""
        return sum(s.n_documents for s in self.shards)

    def append(
        self,
        *,
        documents: Sequence[Mapping[str, Any]],
        tokens: Mapping[str, Any],
        experts: np.ndarray,
        weights: np.ndarray | None = None,
        extras: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> ShardEntry:
        """Write one shard of whole documents.

        Parameters
        ----------
        documents : sequence of mappings
            ``document, topic, subtopic, group, split`` and further labels and ``text``, one per document.
        tokens : mapping of arrays, length n_tokens
            ``document`` (row in `documents`, not decreasing), ``position``, ``token_id``, ``token`` (str),
            ``special`` (bool). Padding is never handed over.
        experts : ndarray of the manifest's ``expert_dtype``, shape (n_tokens, n_layers, n_slots)
        weights : ndarray of float16, same shape, optional
        extras : mapping of folder (``logits``, ``hidden/layer_07`` ...) to named arrays or tensors

        Returns
        -------
        ShardEntry

        Raises
        ------
        MoeProbeError
            When arrays disagree in shape, an id is not of the layer's experts, a token selects an expert twice, a gate
            weight is negative, not finite or too large for float16, positions do not increase within a document, a
            document has no topic, or the disk refuses.
        """
        _check_shard(self.manifest, documents, tokens, experts, weights)
        index, offset = len(self.shards), self.n_documents
        with disk_errors(self.root, keeps=f"{index} whole shards are kept"):
            files = []
            if "routing" in self.manifest.kept:
                arrays = {"experts": experts} | ({} if weights is None else {"weights": weights.astype(np.float16)})
                files.append(self._save_arrays("routing", index, arrays))
            for folder, named in sorted((extras or {}).items()):
                files.append(self._save_arrays(folder, index, named))
            part = self.root / PARTS / f"{index:05d}"
            lengths = _tokens_per_document(tokens, len(documents))
            _write_table(part / DOCUMENTS, _documents_table(documents, lengths))
            _write_table(part / USAGE, _usage_table(self.manifest, tokens, experts, weights, len(documents), offset))
            if "routing" in self.manifest.kept:
                _write_table(part / TOKENS, _tokens_table(tokens, offset))
            entry = ShardEntry(
                index=index,
                n_documents=len(documents),
                n_tokens=len(experts),
                files=tuple(file_entry(self.root, f) for f in files),
            )
            text = entry.model_dump_json(indent=1)
            write_text(self.root / PARTS / f"{index:05d}.json", text)
        self.shards.append(entry)
        return entry

    def seal(self) -> Trace:
        """Join the shards' tables, write the final manifest, and open the trace.

        Raises
        ------
        MoeProbeError
            When no document was written, or the disk refuses; sealing can then be repeated.
        """
        from moe_probe.recording.trace.reader import Trace

        if not self.sealed:
            if not self.shards:
                raise MoeProbeError(f"{self.root} holds no document", "nothing was collected", "check the corpus")
            with disk_errors(self.root, keeps=f"{len(self.shards)} whole shards are kept"):
                names = (DOCUMENTS, USAGE) + ((TOKENS,) if "routing" in self.manifest.kept else ())
                for name in names:
                    _join_tables(self.root, name, len(self.shards))
                self.manifest = self.manifest.model_copy(
                    update={
                        "status": "sealed",
                        "shards": tuple(self.shards),
                        "n_documents": self.n_documents,
                        "n_tokens": sum(s.n_tokens for s in self.shards),
                        "files": tuple(file_entry(self.root, self.root / name) for name in names),
                    }
                )
                write_manifest(self.root, self.manifest)
        with disk_errors(self.root):
            shutil.rmtree(self.root / PARTS, ignore_errors=True)
        return Trace.open(self.root)

    def _save_arrays(self, folder: str, index: int, arrays: Mapping[str, Any]) -> Path:
        path = self.root / folder / f"{index:05d}.safetensors"
        if all(isinstance(a, np.ndarray) for a in arrays.values()):
            from safetensors.numpy import save_file

            named: dict[str, Any] = {k: np.ascontiguousarray(a) for k, a in arrays.items()}
        else:  # bfloat16 hidden states: numpy has no such type
            from safetensors.torch import save_file  # type: ignore[assignment]

            named = {k: a.contiguous() for k, a in arrays.items()}
        write_whole(path, lambda p: save_file(named, p))
        return path


def _refuse_change(root: Path, before: Manifest, now: Manifest) -> None:
    def field(manifest: Manifest, dotted: str) -> Any:
        value: Any = manifest
        for part in dotted.split("."):
            value = getattr(value, part)
        return value

    for dotted, called in _IDENTITY.items():
        old, new = field(before, dotted), field(now, dotted)
        if dotted == "settings" and "token_text" not in old:  # how tokens are written says nothing of what was run
            new = {k: v for k, v in new.items() if k != "token_text"}
        if old != new:
            detail = ""
            if isinstance(old, dict) and isinstance(new, dict):
                changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
                detail = "; ".join(f"{k} was {old.get(k)}, is {new.get(k)}" for k in changed)
            elif isinstance(old, str | int | float):
                detail = f"was {str(old)[:16]}, is {str(new)[:16]}"
            raise MoeProbeError(
                f"{root} cannot be resumed with another {called}",
                detail or "it has changed",
                "the original input, --force to start over, or another folder",
            )


def _whole_shards(root: Path) -> list[ShardEntry]:
    shards = []
    for index, path in enumerate(sorted((root / PARTS).glob("[0-9]*.json"))):
        entry = ShardEntry.model_validate(json.loads(path.read_text()))
        if entry.index != index:
            break  # a gap: whatever comes after it was not written by this program in order
        shards.append(entry)
    return shards


def _remove_unfinished(root: Path, shards: list[ShardEntry]) -> None:
    """Remove files of a shard that was being written when the process ended."""
    known = {f.path for s in shards for f in s.files} | {MANIFEST, CHECKSUM}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        relative = path.relative_to(root)
        if relative.parts[0] == PARTS:
            stem = relative.parts[1].split(".")[0]
            if stem.isdigit() and int(stem) < len(shards) and not path.name.endswith(".partial"):
                continue
        elif relative.as_posix() in known:
            continue
        path.unlink()


def _check_shard(
    manifest: Manifest, documents: Sequence[Any], tokens: Mapping[str, Any], experts: np.ndarray, weights: np.ndarray | None
) -> None:
    n, n_layers = len(experts), len(manifest.layers)
    lengths = {name: len(tokens[name]) for name in ("document", "position", "token_id", "token", "special")}
    if set(lengths.values()) != {n} or experts.ndim != 3 or experts.shape[1] != n_layers:
        raise MoeProbeError("a shard's arrays disagree", f"experts {experts.shape} for {n_layers} layers, tokens {lengths}")
    if str(experts.dtype) != manifest.expert_dtype:
        raise MoeProbeError(f"expert ids are {experts.dtype}", f"the trace holds {manifest.expert_dtype}")
    if (weights is not None) != manifest.has_weights or (weights is not None and weights.shape != experts.shape):
        raise MoeProbeError("gate weights do not fit the trace", f"has_weights is {manifest.has_weights}")
    check_topics(documents)
    document, position = np.asarray(tokens["document"]), np.asarray(tokens["position"])
    if n and ((np.diff(document) < 0).any() or document[0] < 0 or document[-1] >= len(documents)):
        raise MoeProbeError(
            "a shard's tokens are not in the order of its documents",
            "",
            "the tokens of a document after those of the document before",
        )

    def where(row: int) -> str:
        return f"document '{documents[int(document[row])]['document']}', position {int(position[row])}"

    numbers, empty = [layer.layer for layer in manifest.layers], dropped_id(experts.dtype)
    check_order(document, position, np.asarray(tokens["token_id"]), where)
    check_ids(numbers, [layer.num_experts for layer in manifest.layers], experts, empty, where)
    check_repeats(numbers, experts, empty, where)
    if weights is not None:
        check_weights(numbers, weights, experts != empty, where)


def _tokens_per_document(tokens: Mapping[str, Any], n_documents: int) -> np.ndarray:
    counted = np.asarray(tokens["document"])[~np.asarray(tokens["special"], dtype=bool)]
    return np.bincount(counted, minlength=n_documents)


def _documents_table(documents: Sequence[Mapping[str, Any]], lengths: np.ndarray) -> pa.Table:
    names = [*DOCUMENT_COLUMNS, *(k for k in documents[0] if k not in (*DOCUMENT_COLUMNS, "text"))]
    columns: dict[str, Any] = {k: pa.array([str(d.get(k, "")) for d in documents], pa.string()) for k in names}
    columns["n_tokens"] = pa.array(lengths, pa.int32())
    if "text" in documents[0]:
        columns["text"] = pa.array([d["text"] for d in documents], pa.string())
    return pa.table(columns)


def _tokens_table(tokens: Mapping[str, Any], offset: int) -> pa.Table:
    return pa.table(
        {
            "document": pa.array(np.asarray(tokens["document"], dtype=np.int64) + offset, pa.int32()),
            "position": pa.array(np.asarray(tokens["position"]), pa.int32()),
            "token_id": pa.array(np.asarray(tokens["token_id"]), pa.int32()),
            "token": pa.array(tokens["token"], pa.string()),
            "special": pa.array(np.asarray(tokens["special"], dtype=bool), pa.bool_()),
        }
    )


def _usage_table(
    manifest: Manifest,
    tokens: Mapping[str, Any],
    experts: np.ndarray,
    weights: np.ndarray | None,
    n_documents: int,
    offset: int,
) -> pa.Table:
    unit = np.where(np.asarray(tokens["special"], dtype=bool), -1, np.asarray(tokens["document"]))
    columns: dict[str, list[np.ndarray]] = {k: [] for k in ("document", "layer", "expert", "selections", "gate_mass")}
    for place, layer in enumerate(manifest.layers):
        count = partial(count_selections, experts[:, place], unit=unit, n_units=n_documents, num_experts=layer.num_experts)
        counts = count()
        rows, chosen = np.nonzero(counts)
        columns["document"].append(rows + offset)
        columns["layer"].append(np.full(len(rows), layer.layer))
        columns["expert"].append(chosen)
        columns["selections"].append(counts[rows, chosen])
        if weights is not None:
            mass = count(weights=weights[:, place])
            columns["gate_mass"].append(mass[rows, chosen])
    types = {
        "document": pa.int32(),
        "layer": pa.int32(),
        "expert": pa.int32(),
        "selections": pa.int32(),
        "gate_mass": pa.float32(),
    }
    if weights is None:
        del columns["gate_mass"]
    return pa.table({k: pa.array(np.concatenate(v), types[k]) for k, v in columns.items()})


def _write_table(path: Path, table: pa.Table) -> None:
    write_whole(path, lambda p: pq.write_table(table, p, compression="zstd"))


def _join_tables(root: Path, name: str, n_shards: int) -> None:
    """Join the parts one at a time, so memory stays that of one shard."""
    parts = [root / PARTS / f"{index:05d}" / name for index in range(n_shards)]

    def write(path: Path) -> None:
        with pq.ParquetWriter(path, pq.read_schema(parts[0]), compression="zstd") as writer:
            for part in parts:
                table = pq.read_table(part, partitioning=None)
                writer.write_table(table, row_group_size=max(1, table.num_rows))  # one row group a shard

    write_whole(root / name, write)
