"""One shard of a trace: whole documents with their tokens and routing, or with counts alone, checked and turned into tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import count_codes, dropped_id, selection_codes
from moe_probe.core.schema import WORDS, Manifest
from moe_probe.recording.trace.checks import (
    NO_ID,
    check_counts,
    check_ids,
    check_order,
    check_repeats,
    check_tokens,
    check_topics,
    check_weights,
)

DOCUMENT_COLUMNS = ("document", "topic", "subtopic", "group", "split")
_USAGE_TYPES = {
    "document": pa.int32(),
    "layer": pa.int32(),
    "expert": pa.int32(),
    "selections": pa.int32(),
    "gate_mass": pa.float32(),
    "saliency": pa.float32(),
}


@dataclass(frozen=True)
class Shard:
    """Documents that are written together; attributes are the arguments of `TraceWriter.append`."""

    documents: Sequence[Mapping[str, Any]]
    tokens: Mapping[str, Any]
    experts: np.ndarray
    weights: np.ndarray | None = None
    extras: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def check(self, manifest: Manifest) -> None:
        """Refuse what does not fit the trace, or is no routing.

        Raises
        ------
        MoeProbeError
            As `TraceWriter.append`.
        """
        experts, n_layers = self.experts, len(manifest.layers)
        lengths = {name: len(self.tokens[name]) for name in ("document", "position", "token_id", "token", "special")}
        if set(lengths.values()) != {len(experts)} or experts.ndim != 3 or experts.shape[1] != n_layers:
            raise MoeProbeError(
                "a shard's arrays disagree", f"experts {experts.shape} for {n_layers} layers, tokens {lengths}"
            )
        if str(experts.dtype) != manifest.expert_dtype:
            raise MoeProbeError(f"expert ids are {experts.dtype}", f"the trace has {manifest.expert_dtype}")
        if (self.weights is not None) != manifest.has_weights or (
            self.weights is not None and self.weights.shape != experts.shape
        ):
            raise MoeProbeError("gate weights do not fit the trace", f"has_weights is {manifest.has_weights}")
        check_topics(self.documents)
        document, position = np.asarray(self.tokens["document"]), np.asarray(self.tokens["position"])
        if len(experts) and ((np.diff(document) < 0).any() or document[0] < 0 or document[-1] >= len(self.documents)):
            raise MoeProbeError(
                "a shard's tokens are not in the order of its documents",
                "",
                "the tokens of a document after those of the document before",
            )

        def where(row: int) -> str:
            return f"document '{self.documents[int(document[row])]['document']}', position {int(position[row])}"

        numbers, empty = [layer.layer for layer in manifest.layers], dropped_id(experts.dtype)
        token_id = np.asarray(self.tokens["token_id"])
        if not manifest.settings.get(WORDS, True) and len(token_id) and not (token_id == NO_ID).all():
            raise MoeProbeError("a shard has token ids", f"the trace says that none is known; each is {NO_ID} there")
        check_order(document, position, token_id if manifest.settings.get(WORDS, True) else None, where)
        check_ids({layer.layer: layer.num_experts for layer in manifest.layers}, experts, empty, where)
        check_repeats(numbers, experts, empty, where)
        if self.weights is not None:
            check_weights(numbers, self.weights, experts != empty, where)

    def documents_table(self) -> pa.Table:
        """Build the table of documents: labels, ``n_tokens`` (without special tokens) and text."""
        counted = np.asarray(self.tokens["document"])[~self._special]
        return _documents_table(self.documents, np.bincount(counted, minlength=len(self.documents)))

    def tokens_table(self, offset: int) -> pa.Table:
        """Build the table of tokens; `offset` is the trace's row of the shard's first document."""
        token = self.tokens["token"]
        return pa.table(
            {
                "document": pa.array(np.asarray(self.tokens["document"], dtype=np.int64) + offset, pa.int32()),
                "position": pa.array(np.asarray(self.tokens["position"]), pa.int32()),
                "token_id": pa.array(np.asarray(self.tokens["token_id"]), pa.int32()),
                "token": token if isinstance(token, pa.Array) else pa.array(token, pa.string()),
                "special": pa.array(self._special, pa.bool_()),
            }
        )

    def usage_table(self, manifest: Manifest, offset: int) -> pa.Table:
        """Build the table of counts per document, layer and expert.

        Parameters
        ----------
        manifest : Manifest
            Of the trace.
        offset : int
            The trace's row of the shard's first document.

        Returns
        -------
        pyarrow.Table
            Columns ``document, layer, expert, selections`` and, with weights, ``gate_mass``; rows with a selection only.
        """
        unit = np.where(self._special, -1, np.asarray(self.tokens["document"]))
        names = ["document", "layer", "expert", "selections", *(["gate_mass"] if self.weights is not None else [])]
        columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
        n = len(self.documents)
        for i, layer in enumerate(manifest.layers):
            codes = selection_codes(self.experts[:, i], unit=unit, n_units=n, num_experts=layer.num_experts)
            counts = count_codes(codes, n, layer.num_experts)
            rows, selected = np.nonzero(counts)
            columns["document"].append(rows + offset)
            columns["layer"].append(np.full(len(rows), layer.layer))
            columns["expert"].append(selected)
            columns["selections"].append(counts[rows, selected])
            if self.weights is not None:
                mass = count_codes(codes, n, layer.num_experts, self.weights[:, i])
                columns["gate_mass"].append(mass[rows, selected])
        return pa.table({name: pa.array(np.concatenate(parts), _USAGE_TYPES[name]) for name, parts in columns.items()})

    @property
    def _special(self) -> np.ndarray:
        return np.asarray(self.tokens["special"], dtype=bool)


@dataclass(frozen=True)
class UsageShard:
    """Documents of which only counts are known; attributes are the arguments of `TraceWriter.append_usage`."""

    documents: Sequence[Mapping[str, Any]]
    n_tokens: np.ndarray
    selections: np.ndarray
    gate_mass: np.ndarray | None = None
    saliency: np.ndarray | None = None

    def check(self, manifest: Manifest) -> None:
        """Refuse what does not fit the trace, or is no usage.

        Raises
        ------
        MoeProbeError
            As `TraceWriter.append_usage`.
        """
        n, widest = len(self.documents), max(layer.num_experts for layer in manifest.layers)
        measures = {"selections": self.selections, "gate_mass": self.gate_mass, "saliency": self.saliency}
        shapes = {name: array.shape for name, array in measures.items() if array is not None}
        if set(shapes.values()) != {(n, len(manifest.layers), widest)} or self.n_tokens.shape != (n,):
            raise MoeProbeError(
                "a shard's counts disagree", f"{shapes}, {n} documents, {len(manifest.layers)} layers, {widest} experts"
            )
        if "routing" in manifest.kept or (self.gate_mass is not None) != manifest.has_weights:
            raise MoeProbeError("counts do not fit the trace", f"it keeps {manifest.kept}")
        check_topics(self.documents)

        def where(row: int) -> str:
            return f"document '{self.documents[row]['document']}'"

        for name, array in measures.items():
            if array is not None:
                check_counts([layer.layer for layer in manifest.layers], array, name, where)
        for i, layer in enumerate(manifest.layers):
            check_tokens(layer.layer, self.selections[:, i], self.n_tokens, top_k=layer.top_k, where=where)
            if self.selections[:, i, layer.num_experts :].any():
                raise MoeProbeError(f"layer {layer.layer} has selections past its {layer.num_experts} experts")

    def documents_table(self) -> pa.Table:
        """Build the table of documents: labels and ``n_tokens``."""
        return _documents_table(self.documents, self.n_tokens)

    def usage_table(self, manifest: Manifest, offset: int) -> pa.Table:
        """Build the table of counts per document, layer and expert.

        Parameters
        ----------
        manifest : Manifest
            Of the trace.
        offset : int
            The trace's row of the shard's first document.

        Returns
        -------
        pyarrow.Table
            As that of `Shard.usage_table`; with saliency, where that is known.
        """
        # layer by layer, as a shard of tokens is written
        layer, document, expert = np.nonzero(self.selections.transpose(1, 0, 2))
        at = (document, layer, expert)
        numbers = np.array([item.layer for item in manifest.layers])
        columns = {
            "document": document + offset,
            "layer": numbers[layer],
            "expert": expert,
            "selections": self.selections[at],
        }
        if self.gate_mass is not None:
            columns["gate_mass"] = self.gate_mass[at]
        if self.saliency is not None:
            columns["saliency"] = self.saliency[at]
        return pa.table({name: pa.array(values, _USAGE_TYPES[name]) for name, values in columns.items()})


def _documents_table(documents: Sequence[Mapping[str, Any]], n_tokens: np.ndarray) -> pa.Table:
    first = documents[0]
    names = [*DOCUMENT_COLUMNS, *(name for name in first if name not in (*DOCUMENT_COLUMNS, "text"))]
    columns: dict[str, Any] = {k: pa.array([str(d.get(k, "")) for d in documents], pa.string()) for k in names}
    columns["n_tokens"] = pa.array(n_tokens, pa.int32())
    if "text" in first:
        columns["text"] = pa.array([d["text"] for d in documents], pa.string())
    return pa.table(columns)
