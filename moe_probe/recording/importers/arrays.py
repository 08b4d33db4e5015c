"""Routing token by token in arrays: ``experts`` and ``document``, where they are known also weights, positions and token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import sha256_json
from moe_probe.recording.importers.arrayfile import StoredArray, layer_numbers, need_array, open_arrays
from moe_probe.recording.importers.labels import DocumentLabels, find_labels
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.plan import some
from moe_probe.recording.importers.records import import_records
from moe_probe.recording.importers.token_record import SourceRows, TokenRecord
from moe_probe.recording.trace import Trace
from moe_probe.recording.trace.checks import NO_ID

_ROWS = 1 << 16  # tokens read at a time
_PER_TOKEN = ("document", "position", "token_id")


def import_arrays(  # noqa: PLR0913 - public API: keyword-only options with defaults
    source: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    documents: Any = None,
    topic: str | None = None,
    options: ImportOptions | None = None,
    mode: str = "new",
) -> Trace:
    """Import arrays of routing as a trace.

    Parameters
    ----------
    source : path, or mapping of str to array
        ``.npz`` or ``.safetensors``, or arrays in memory: ``experts`` (token, layer, slot), whole numbers, -1 in slots without
        an expert; optionally ``weights`` of the same shape; ``document`` (token), the row of the document, the tokens of one
        after each other; optionally ``position`` and ``token_id`` (token), and ``layers`` (layer), the layers' numbers. Without
        ``position`` the tokens of a document are counted from 0.
    out : str or Path
        Folder of the trace.
    documents : path, DataFrame, mapping of columns, or sequence of mappings, optional
        Labels; row i is document i. Without it, ``documents.parquet`` or ``documents.csv`` beside the file.
    topic : str, optional
        One topic for all documents, in place of labels; they are named ``TOPIC/0000``, ``TOPIC/0001`` and so on.
    options : ImportOptions, optional
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.

    Returns
    -------
    Trace
        Sealed. Without ``token_id`` its level of evidence is "tokens": every ``token_id`` is -1 and every ``token`` is empty.

    Raises
    ------
    MoeProbeError
        Naming the token: an expert twice, an id past the layer's experts, weights that are no weights, positions that do not
        increase, a document that is not among the labels or comes in two places. When arrays differ in length.
    UsageError
        When there are no labels, or options exclude each other.

    Examples
    --------
    >>> arrays = {"experts": experts, "weights": weights, "document": document}
    >>> trace = import_arrays(arrays, "traces/mine", documents={"topic": ["law", "math"]}, options=ImportOptions(num_experts=64))
    """
    options = options or ImportOptions()
    path, arrays, digest = open_arrays(source)
    reader = _Reader.open(
        path, arrays, find_labels(None if isinstance(source, Mapping) else path, documents, topic, options)
    )
    words = "token_id" in arrays
    if options.tokenizer is not None and not words:
        raise UsageError("--tokenizer needs token ids", f"{path} has no array 'token_id'", "omit --tokenizer")
    layers = layer_numbers(arrays, reader.experts.shape[1], options.layers, path)
    labelled = sha256_json([digest, reader.labels.rows, reader.labels.topic])
    declared = {layer: arrays["num_experts"].number() for layer in layers} if "num_experts" in arrays else {}
    imported = ImportSource(layers, path.name, labelled, declared, words=words, kind="arrays of experts (arrays)")
    trace = import_records(reader.documents, out, imported, options=options, mode=mode)
    trace.warnings = (*trace.warnings, *reader.notes())
    return trace


@dataclass(frozen=True)
class _Reader:
    """Arrays and labels that fit each other."""

    path: Path
    experts: StoredArray
    weights: StoredArray | None
    columns: Mapping[str, np.ndarray]
    labels: DocumentLabels
    empty: list[int]

    @classmethod
    def open(cls, path: Path, arrays: Mapping[str, StoredArray], labels: DocumentLabels) -> _Reader:
        """Check the arrays against each other, and the documents against the labels."""
        experts = arrays[need_array(arrays, ("experts",), path)].need("whole", 3)
        need_array(arrays, ("document",), path)
        n_tokens = experts.shape[0]
        if 0 in experts.shape:
            raise MoeProbeError(f"{experts.name} has shape {experts.shape}", "it has no routing", "check what was recorded")
        weights = arrays.get("weights")
        if weights is not None and weights.shape != experts.shape:
            why = f"'experts' has {experts.shape}"
            raise MoeProbeError(f"{weights.name} has shape {weights.shape}", why, "one weight per slot")
        columns = {}
        for name in _PER_TOKEN:
            if name in arrays:
                array = arrays[name].need("whole", 1)
                if array.shape[0] != n_tokens:
                    why = f"'experts' has {n_tokens:,} tokens"
                    raise MoeProbeError(f"{array.name} has {array.shape[0]:,} values", why, "one value per token")
                columns[name] = _signed(array)
        reader = cls(path, experts, weights, columns, labels, [0])
        reader.check_documents()
        return reader

    def check_documents(self) -> None:
        """Refuse documents that are not among the labels, or whose tokens do not follow each other."""
        document = self.columns["document"]
        bad = document < 0
        if self.labels.rows is not None:
            bad |= document >= len(self.labels.rows)
        if bad.any():
            row = int(bad.argmax())
            n = f"{self.labels.name} has {len(self.labels.rows):,}" if self.labels.rows is not None else ""
            raise MoeProbeError(f"{self._where(row)} is of document {document[row]}", n, "rows of documents, counted from 0")
        starts = np.flatnonzero(np.diff(document, prepend=-1))
        _, first, count = np.unique(document[starts], return_index=True, return_counts=True)
        if (count > 1).any():
            again = starts[np.setdiff1d(np.arange(len(starts)), first)[0]]
            raise MoeProbeError(
                f"{self._where(int(again))} is of document {document[again]}, which ended before",
                "the tokens of a document follow each other",
                "arrays sorted by document and position",
            )

    def _where(self, token: int) -> str:
        return self._source(token, token + 1).name(0)

    def _source(self, start: int, stop: int) -> SourceRows:
        return SourceRows(self.path, "token index", np.arange(start, stop))

    def documents(self) -> Iterator[TokenRecord]:
        """Yield the documents in the order of their tokens; pieces of one are joined."""
        document = self.columns["document"]
        edges = np.append(np.flatnonzero(np.diff(document, prepend=-1)), len(document))
        pending: list[tuple[np.ndarray, np.ndarray | None]] = []
        begin, held, self.empty[0] = 0, 0, 0  # token that the pending pieces begin with, and how many they have
        for experts, weights in self._routing():
            pending.append((experts, weights))
            held += len(experts)
            whole = edges[(edges > begin) & (edges <= begin + held)]
            if not len(whole):
                continue
            joined = np.concatenate([ids for ids, _ in pending])
            gates = None if self.weights is None else np.concatenate([w for _, w in pending if w is not None])
            start = begin
            for stop in whole.tolist():
                part = slice(start - begin, stop - begin)
                yield self._record(start, stop, joined[part], None if gates is None else gates[part])
                start = stop
            pending = [(joined[start - begin :], None if gates is None else gates[start - begin :])]
            held, begin = begin + held - start, start

    def _routing(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        step = max(1, min(_ROWS, (1 << 23) // (self.experts.shape[1] * self.experts.shape[2])))
        weights = None if self.weights is None else self.weights.pieces(step)
        for number, piece in enumerate(self.experts.pieces(step)):
            experts = piece.astype(np.int64)
            bad = (piece < -1) | (piece > np.iinfo(np.int32).max)  # before the conversion, which may wrap
            if bad.any():
                row = int(bad.any(axis=(1, 2)).argmax())
                value = int(piece[row][bad[row]][0])
                why = "ids count from 0; -1 marks a slot without an expert"
                raise MoeProbeError(f"{self._where(number * step + row)} has the expert id {value}", why, "check 'experts'")
            self.empty[0] += int((experts == -1).sum())
            yield experts, None if weights is None else next(weights).astype(np.float64)

    def _record(self, start: int, stop: int, experts: np.ndarray, weights: np.ndarray | None) -> TokenRecord:
        n = stop - start
        known = {name: column[start:stop] for name, column in self.columns.items()}
        has_id = "token_id" in known
        return TokenRecord(
            self.labels.of(int(known["document"][0])),
            known["token_id"] if has_id else np.full(n, NO_ID, dtype=np.int64),
            known.get("position", np.arange(n)),
            None if has_id else [""] * n,
            experts,
            weights,
            source=self._source(start, stop),
        )

    def notes(self) -> Iterator[str]:
        """Say what the arrays lack."""
        if self.empty[0]:
            share = self.empty[0] / float(np.prod(self.experts.shape))
            yield f"{self.empty[0]:,} slots ({share:.2%}) have no expert (-1)"
        if self.labels.rows is not None:
            missing = np.setdiff1d(np.arange(len(self.labels.rows)), self.columns["document"])
            if len(missing):
                names = [self.labels.rows[row]["document"] for row in missing]
                yield f"left out: {some(names, 'document')} without a token"


def _signed(array: StoredArray) -> np.ndarray:
    values = array.whole()
    if values.dtype.kind == "u" and (values > np.iinfo(np.int64).max).any():
        raise MoeProbeError(f"{array.name} has the value {values.max()}", "it is too large", "whole numbers below 2**31")
    return values.astype(np.int64)
