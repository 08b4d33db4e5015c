"""Counts, or shares, of selections per document, layer and expert: arrays, long tables, and sums by topic."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import sha256_json
from moe_probe.recording.importers.arrayfile import StoredArray, layer_numbers, need_array, open_arrays
from moe_probe.recording.importers.fractions import check_shares, recover_selections, rounds_to_whole, whole_counts
from moe_probe.recording.importers.labels import DocumentLabels, find_labels
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.usage_block import UsageBlock
from moe_probe.recording.importers.usage_records import import_usage_records
from moe_probe.recording.importers.usage_table import is_usage_table, open_usage_table, read_topic_counts
from moe_probe.recording.trace import Trace
from moe_probe.recording.trace.checks import check_counts

_CELLS = 1 << 21  # counts of a block
_AT_ONCE = 256  # documents whose tokens are recovered together: the first that has none ends the import


def import_usage(  # noqa: PLR0913 - public API: keyword-only options with defaults
    source: str | Path | Mapping[str, Any] | Any,
    out: str | Path,
    *,
    documents: Any = None,
    topic: str | None = None,
    sums: bool = False,
    options: ImportOptions | None = None,
    mode: str = "new",
) -> Trace:
    """Import counts of selections as a trace without tokens.

    Parameters
    ----------
    source : path, mapping of str to array, or DataFrame
        ``.npz``, ``.safetensors`` or arrays in memory: ``counts``, or ``fractions`` that add up to 1 per document and layer,
        of shape (document, layer, expert); optionally ``gate`` (sums of gate weights) and ``saliency`` (sums of gate weight
        times norm of the expert's output) of that shape, ``layers`` (layer), ``top_k``. Or a long table (``.parquet``,
        ``.csv``, DataFrame) of ``document, layer, expert, count``, optionally ``gate, saliency``. Or ``.json`` with the sums
        of each topic.
    out : str or Path
        Folder of the trace.
    documents : path, DataFrame, mapping of columns, or sequence of mappings, optional
        Labels; row i is document i. Without it, ``documents.parquet`` or ``documents.csv`` beside the file. A column
        ``tokens`` has the numbers of tokens.
    topic : str, optional
        One topic for all documents, in place of labels.
    sums : bool
        Rows are sums over unnamed documents, one row per topic: effects can be computed, nothing can be tested.
    options : ImportOptions, optional
        `top_k` is needed where the file does not say it and it does not follow from numbers of tokens.
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.

    Returns
    -------
    Trace
        Sealed, with counts only; `Trace.warnings` says what was omitted or recovered.

    Raises
    ------
    MoeProbeError
        Naming document and layer: counts that are negative, missing or not whole; that do not add up; fractions without a
        number of tokens that explains them. When labels and arrays differ in their number of documents.
    UsageError
        When there are no labels, or the number of experts per token is not known.

    Examples
    --------
    >>> arrays = {"counts": counts, "layers": [3, 4, 5]}
    >>> trace = import_usage(arrays, "traces/mine", documents=table, options=ImportOptions(top_k=8))
    """
    options = options or ImportOptions()
    if is_usage_table(source):
        table = open_usage_table(source, documents, topic, options)
        imported = replace(table.source, sums=sums)
        trace = import_usage_records(table.blocks, out, imported, options=options, mode=mode)
        trace.warnings = (*table.notes, *trace.warnings)
        return trace
    if isinstance(source, str | Path) and Path(source).suffix.lower() == ".json":
        if documents is not None or topic is not None or options.labels:
            raise UsageError(
                f"{Path(source).name} names its topics itself",
                "its counts stand under them",
                "omit --documents, --topic and --label",
            )
        block, imported, top_k = read_topic_counts(Path(source))
        return import_usage_records([block], out, imported, options=_with_top_k(options, top_k), mode=mode)
    path, arrays, digest = open_arrays(source)
    labels = find_labels(None if isinstance(source, Mapping) else path, documents, topic, options, named_by_topic=sums)
    if "top_k" in arrays:
        options = _with_top_k(options, arrays["top_k"].number())
    reader = _Reader.open(path, arrays, labels, options)
    layers = layer_numbers(arrays, reader.values.shape[1], options.layers, path)
    tokens = None if labels.tokens is None else labels.tokens.tolist()
    labelled = sha256_json([digest, labels.rows, labels.topic, tokens, options.top_k])
    imported = ImportSource(layers, path.name, labelled, sums=sums, kind="counts of documents (usage)")
    trace = import_usage_records(lambda: reader.blocks(layers), out, imported, options=options, mode=mode)
    trace.warnings = (*trace.warnings, *reader.notes())
    return trace


def _with_top_k(options: ImportOptions, top_k: int | None) -> ImportOptions:
    if top_k is None:
        return options
    if options.top_k not in (None, top_k):
        raise UsageError(f"--top-k {options.top_k} is not what the file says", f"it says {top_k}", "omit --top-k")
    return replace(options, top_k=top_k)


@dataclass(frozen=True)
class _Reader:
    """Arrays of counts or fractions, and their labels."""

    path: Path
    values: StoredArray
    more: Mapping[str, StoredArray]
    labels: DocumentLabels
    top_k: int | None
    shares: bool
    found: dict[int, np.ndarray] = field(default_factory=dict)  # selections per layer, by the first document of a block
    rounded: dict[int, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, arrays: Mapping[str, StoredArray], labels: DocumentLabels, options: ImportOptions) -> _Reader:
        """Check the arrays against each other and the labels."""
        name = need_array(arrays, ("counts", "fractions"), path)
        values = arrays[name].need("number", 3)
        if 0 in values.shape:
            raise MoeProbeError(f"{values.name} has shape {values.shape}", "it has no counts", "check what was recorded")
        labels.check_number(values.shape[0], str(path))
        more = {part: arrays[part] for part in ("gate", "saliency") if part in arrays}
        for array in more.values():
            if array.shape != values.shape:
                raise MoeProbeError(f"{array.name} has shape {array.shape}", f"'{name}' has {values.shape}", "one shape")
        if name == "fractions" and options.top_k is None:
            raise UsageError("the number of experts per token is not known", "fractions do not say it", "--top-k K")
        return cls(path, values, more, labels, options.top_k, name == "fractions")

    def blocks(self, layers: list[int]) -> Iterator[UsageBlock]:
        """Yield the documents in blocks, fractions as counts."""
        step = max(1, _CELLS // prod(self.values.shape[1:]))
        streams = [array.pieces(step) for array in (self.values, *self.more.values())]
        for start, pieces in zip(itertools.count(0, step), zip(*streams, strict=True), strict=False):
            documents = [self.labels.of(start + row) for row in range(len(pieces[0]))]
            more = dict(zip(self.more, (piece.astype(np.float64) for piece in pieces[1:]), strict=True))
            tokens = None if self.labels.tokens is None else self.labels.tokens[start : start + len(documents)]
            block = UsageBlock(documents, pieces[0], tokens, source=f"row index of {self.path.name}:", first=start, **more)
            yield self._counted(block, layers) if self.shares else block

    def _counted(self, block: UsageBlock, layers: list[int]) -> UsageBlock:
        """Turn fractions into counts."""
        shares, top_k = block.counts, self.top_k or 1
        if block.first not in self.found:
            check_counts(layers, shares, "fractions", block.where)
            check_shares(layers, shares, block.where)
            if block.tokens is None:
                self.found[block.first] = _recovered(block, shares.reshape(len(shares), -1), top_k)
            else:
                self.found[block.first] = _given(block, top_k)
                whole = rounds_to_whole(shares, self.found[block.first])
                if not whole.all():
                    moved = whole_counts(shares[~whole], self.found[block.first][~whole])[1]
                    self.rounded[block.first] = (int((~whole).sum()), moved)
        counts, _ = whole_counts(shares, self.found[block.first])
        return replace(block, counts=counts, tokens=None)

    def notes(self) -> Iterator[str]:
        """Say what was recovered from fractions, or rounded."""
        if self.shares and self.labels.tokens is None:
            tokens = np.concatenate(list(self.found.values())) // (self.top_k or 1)
            yield (
                f"numbers of tokens recovered from the fractions of all {len(tokens):,} documents: {tokens.min():,} to "
                f"{tokens.max():,}, the smallest that make every count whole; multiples of them cannot be ruled out"
            )
        if self.rounded:
            n, moved = sum(n for n, _ in self.rounded.values()), max(moved for _, moved in self.rounded.values())
            yield (
                f"the fractions of {n:,} documents times their tokens are no whole numbers: counts were rounded, by at most "
                f"{moved:.2g} selections"
            )


def _recovered(block: UsageBlock, shares: np.ndarray, top_k: int) -> np.ndarray:
    found = np.zeros(len(shares), dtype=np.int64)
    for start in range(0, len(shares), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found[part] = recover_selections(shares[part], top_k)
        if (found[part] < 0).any():
            raise MoeProbeError(
                f"the fractions of {block.where(start + int((found[part] < 0).argmax()))} are no counts over a number of tokens",
                f"no number of tokens makes all of them whole, times --top-k {top_k}; they may be rounded, or means of means",
                "a column 'tokens' beside the labels, the right --top-k, or counts",
            )
    return found


def _given(block: UsageBlock, top_k: int) -> np.ndarray:
    tokens = np.asarray(block.tokens, dtype=np.float64)
    bad = ~((tokens >= 0) & (tokens < 2**31) & (tokens == np.floor(tokens)))
    if bad.any():
        row = int(bad.argmax())
        raise MoeProbeError(f"{block.where(row)} has {tokens[row]} tokens", "", "a whole number of tokens, 0 or more")
    empty = (tokens == 0) & block.counts.any(axis=(1, 2))
    if empty.any():
        raise MoeProbeError(f"{block.where(int(empty.argmax()))} has fractions and no tokens", "", "its number of tokens")
    return tokens.astype(np.int64) * top_k
