"""The first pass over imported counts: what is wrong with them, and how many tokens and experts per token stand behind them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.routing import dropped_id
from moe_probe.core.schema import MoeLayer
from moe_probe.core.textfiles import is_unwritable
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.plan import some
from moe_probe.recording.importers.usage_block import UsageBlock
from moe_probe.recording.importers.usage_fit import TokenFit
from moe_probe.recording.trace.checks import check_counts, check_topics, id_past_end

_RUN = 8  # tokens of a document with one and the same set of experts in every layer: no router does that to a text
_LAYERS = 4  # so few layers can agree by chance
_MOST, _MENTION = 0.5, 0.01  # shares of such tokens that are refused, and mentioned


class UsageTotals(NamedTuple):
    """What is written, and what the user should know about it.

    Attributes
    ----------
    layers : tuple of MoeLayer
    columns : ndarray of int, shape (n_layers,)
        Columns of the blocks' layer axis that are kept.
    n_tokens : ndarray of int64, shape (n_documents,)
        Tokens of each document of the record.
    kept : ndarray of bool, shape (n_documents,)
        Documents that are written.
    has_gate : bool
    warnings : tuple of str
    """

    layers: tuple[MoeLayer, ...]
    columns: np.ndarray
    n_tokens: np.ndarray
    kept: np.ndarray
    has_gate: bool
    warnings: tuple[str, ...]


class UsageSurvey:
    """Totals over all blocks; `add` refuses what no option can mend.

    Parameters
    ----------
    source : ImportSource
        Its `layers` number the columns of the blocks.
    """

    def __init__(self, source: ImportSource) -> None:
        self.source, self.layers = source, list(source.layers)
        self._names: dict[str, str] = {}  # document and where it is
        self._sums: list[np.ndarray] = []
        self._largest: list[np.ndarray] = []
        self._used: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []
        self._kinds: tuple[bool, bool, bool] | None = None
        self._width = 0
        self._past = np.full(len(self.layers), -1)
        self._past_at = [""] * len(self.layers)

    def add(self, block: UsageBlock) -> None:
        """Look at some documents.

        Raises
        ------
        MoeProbeError
            Naming the document: no topic, a name that comes twice, counts that are no counts.
        """
        if block.counts.shape[1] != len(self.layers):
            raise MoeProbeError(
                f"{self.source.name} has counts for {block.counts.shape[1]} layers, and numbers for {len(self.layers)}",
                "",
                "one number per layer",
            )
        self._check_documents(block)
        kinds = (block.gate is not None, block.saliency is not None, block.tokens is not None)
        if self._kinds not in (None, kinds):
            raise MoeProbeError(
                f"{block.where(0)} has other parts than the documents before it",
                "gate, saliency or numbers of tokens are missing for some",
                "each of them for all documents or for none",
            )
        self._kinds = kinds
        check_counts(self.layers, block.counts, "counts", block.where)
        for name, values in (("gate", block.gate), ("saliency", block.saliency)):
            if values is not None:
                check_counts(self.layers, values, name, block.where)
                _check_empty(self.layers, block, values, name)
        selected = block.counts > 0
        self._sums.append(block.counts.sum(axis=2, dtype=np.float64).astype(np.int64))  # whole, up to 2**53 exact
        self._largest.append(block.counts.max(axis=2).astype(np.int64))
        self._used.append(selected.sum(axis=2))
        if block.tokens is not None:
            self._tokens.append(_whole_tokens(block))
        self._width = max(self._width, block.counts.shape[2])
        ids = np.where(selected.any(axis=0), np.arange(block.counts.shape[2]), -1).max(axis=1)
        for column in np.flatnonzero(ids > self._past):
            self._past_at[column] = block.where(int(selected[:, column, ids[column]].argmax()))
        self._past = np.maximum(self._past, ids)

    def _check_documents(self, block: UsageBlock) -> None:
        check_topics(block.documents)
        for row, labels in enumerate(block.documents):
            name = str(labels["document"])
            for key, value in labels.items():
                if is_unwritable(value):
                    raise MoeProbeError(
                        f"the {key} of document {name!r} has characters that are not text",
                        "NUL or half a surrogate pair",
                        "clean the file",
                    )
            if name in self._names:
                raise MoeProbeError(
                    f"document '{name}' comes a second time",
                    f"{block.where(row)}; before, {self._names[name]}",
                    "one row per document, or another name for it",
                )
            self._names[name] = block.where(row)

    def finish(self, options: ImportOptions) -> UsageTotals:
        """Decide which layers and documents are written, and find the numbers of tokens.

        Parameters
        ----------
        options : ImportOptions

        Returns
        -------
        UsageTotals

        Raises
        ------
        MoeProbeError
            When counts and tokens do not fit together, naming document and layer.
        UsageError
            When the number of experts per token cannot be known without the user.
        """
        if not self._sums or not (sums_of := np.concatenate(self._sums)).any():
            raise MoeProbeError(f"{self.source.name} has no selection", "every count is 0", "check what was recorded")
        warnings: list[str] = []
        columns = self._columns(sums_of, options, warnings)
        kept: np.ndarray = np.asarray(sums_of[:, columns].any(axis=1))
        self._note_empty(~kept, warnings)
        tokens = np.concatenate(self._tokens) if self._tokens else None
        fit = TokenFit(list(self._names.values()), [self.layers[c] for c in columns], sums_of[:, columns], kept)
        k, n_tokens = (
            fit.with_tokens(tokens, options.top_k, warnings) if tokens is not None else fit.without_tokens(options.top_k)
        )
        fit.check_most(np.concatenate(self._largest)[:, columns], n_tokens)
        layers = []
        for column, slots in zip(columns, k, strict=True):
            n = self._num_experts(column, options)
            if slots > n:
                what = f"layer {self.layers[column]} has {n} experts, and a token would select {slots}"
                raise MoeProbeError(what, "", "check --top-k and --num-experts")
            layers.append(
                MoeLayer(
                    layer=self.layers[column],
                    name=f"layer {self.layers[column]}",
                    num_experts=n,
                    top_k=slots,
                    note="imported",
                )
            )
        sets = (np.concatenate(self._used)[:, columns] == k).all(axis=1) & (n_tokens >= _RUN)
        sets &= sum(layer.num_experts > layer.top_k for layer in layers) >= _LAYERS
        kept &= ~_constant(kept & sets, n_tokens, options, warnings)
        return UsageTotals(
            tuple(layers), np.array(columns), n_tokens, kept, bool(self._kinds and self._kinds[0]), tuple(warnings)
        )

    def _columns(self, sums_of: np.ndarray, options: ImportOptions, warnings: list[str]) -> list[int]:
        """Columns to keep: those asked for, or all with a selection."""
        empty: np.ndarray = np.asarray(~sums_of.any(axis=0))
        if options.layers is None:
            if empty.any():
                omitted = [self.layers[c] for c in np.flatnonzero(empty)]
                warnings.append(
                    f"left out as dense: {some(omitted, 'layer', f' of {len(self.layers)}')}, without a selection in any "
                    "document; --layers names layers to keep"
                )
            columns = np.flatnonzero(~empty).tolist()
        else:
            if missing := [layer for layer in options.layers if layer not in self.layers]:
                why = f"it has {some(self.layers, 'layer')}"
                raise MoeProbeError(f"{self.source.name} has no layer {missing[0]}", why, "--layers with some of them")
            columns = [self.layers.index(layer) for layer in sorted(set(options.layers))]
            if without := [self.layers[c] for c in columns if empty[c]]:
                raise MoeProbeError(
                    f"layer {without[0]} of {self.source.name} has no selection", "it is dense", "omit it from --layers"
                )
        unknown = (
            []
            if isinstance(options.num_experts, int)
            else [layer for layer in options.num_experts or {} if layer not in [self.layers[c] for c in columns]]
        )
        if unknown:
            what = f"--num-experts names layer {unknown[0]}"
            raise UsageError(what, f"the record has {some(self.layers, 'layer')}", "--num-experts with those layers")
        return columns

    def _note_empty(self, empty: np.ndarray, warnings: list[str]) -> None:
        if empty.any():
            names = list(self._names)
            omitted = [names[row] for row in np.flatnonzero(empty)]
            warnings.append(f"left out: {some(omitted, 'document')} without a selection")

    def _num_experts(self, column: int, options: ImportOptions) -> int:
        """Experts of a layer: as the options say, or the source, or the width of the arrays."""
        layer = self.layers[column]
        n = options.experts_of(layer) or self.source.num_experts.get(layer) or self._width
        if self._past[column] >= n:
            raise id_past_end(layer, int(self._past[column]), n, self._past_at[column])
        if n > dropped_id("uint16"):
            raise MoeProbeError(f"a layer would have {n:,} experts", f"a trace stores {dropped_id('uint16'):,} at most")
        return n


def _check_empty(layers: list[int], block: UsageBlock, values: np.ndarray, name: str) -> None:
    bad = (block.counts == 0) & (values != 0)
    if bad.any():
        row, column, expert = (int(i) for i in np.argwhere(bad)[0])
        raise MoeProbeError(
            f"{block.where(row)} has {name} {float(values[row, column, expert]):g} for expert {expert} of layer "
            f"{layers[column]}, which it never selects",
            "",
            f"{name} summed over the selections that are counted",
        )


def _whole_tokens(block: UsageBlock) -> np.ndarray:
    values = np.asarray(block.tokens)
    with np.errstate(invalid="ignore"):
        bad = ~((values >= 0) & (values < 2**31) & (values == np.floor(values)))
    if bad.any():
        row = int(bad.argmax())
        raise MoeProbeError(f"{block.where(row)} has {values[row]} tokens", "", "a whole number of tokens, 0 or more")
    return values.astype(np.int64)


def _constant(sets: np.ndarray, n_tokens: np.ndarray, options: ImportOptions, warnings: list[str]) -> np.ndarray:
    """Decide what becomes of documents whose tokens all have one set of experts."""
    n, total = int(n_tokens[sets].sum()), int(n_tokens.sum())
    if n < _MENTION * total:
        return np.zeros(len(sets), dtype=bool)
    message = (
        f"{int(sets.sum()):,} of {len(sets):,} documents ({n / total:.0%} of the tokens) have one and the same set of experts "
        "for every token"
    )
    if options.drop_constant and n < total:
        warnings.append(f"{message}, as warm-up requests have: left out (--drop-constant)")
        return sets
    if n > _MOST * total:
        hint = "--drop-constant, to omit these documents" if n < total else "record the documents again"
        raise MoeProbeError(message, "warm-up requests look like this, and they carry no information about topics", hint)
    warnings.append(f"{message}, as warm-up requests have; --drop-constant omits them")
    return np.zeros(len(sets), dtype=bool)
