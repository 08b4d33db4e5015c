"""The first pass over imported records: what is in them, and what is wrong with them, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.textfiles import is_unwritable
from moe_probe.recording.importers.token_record import TokenRecord
from moe_probe.recording.trace.checks import check_order, check_topics, check_weights, first_repeat

_RUN = 8  # tokens in a row with the same experts in every layer: no router of a trained model does that to a text
_PATTERNS = 4096  # sets of experts counted at a time
# Scattered rows: one set in several layers, a tenth of all tokens, different tokens (a BOS is one token and always first).
_SCATTERED, _LAYERS, _IDS = 0.1, 4, 8
_MIX = np.random.default_rng(0).integers(1, 2**63, 1 << 16, dtype=np.uint64)  # a random number per expert id


@dataclass
class LayerSurvey:
    """What is in one column of the records.

    Attributes
    ----------
    largest : int
        Largest expert id; -1 where no token has an expert.
    largest_at : str
        The row that has it.
    slots : int
        Most slots that a token fills.
    repeat : tuple of (str, ndarray) or None
        The first row that selects an expert twice, and its ids.
    sets : int
        Different sets of experts, counted to 2.
    """

    largest: int = -1
    largest_at: str = ""
    slots: int = 0
    repeat: tuple[str, np.ndarray] | None = None
    sets: int = 0
    first_set: int = 0

    @property
    def dense(self) -> bool:
        """Whether no token has an expert here, or all have one and the same set with an expert twice in it (zeros)."""
        return self.largest < 0 or (self.sets == 1 and self.repeat is not None)

    def add(self, record: TokenRecord, column: int, sets: np.ndarray) -> None:
        """Count one record's column.

        Parameters
        ----------
        record : TokenRecord
        column : int
            Position on its layer axis.
        sets : ndarray of uint64, shape (n_tokens,)
            A number that stands for each token's set of experts; 0 for no expert.
        """
        ids = record.experts[:, column]
        filled = ids >= 0
        if not filled.any():
            return
        if int(ids.max()) > self.largest:
            self.largest, self.largest_at = int(ids.max()), record.where(int(ids.max(axis=1).argmax()))
        self.slots = max(self.slots, int(np.flatnonzero(filled.any(axis=0))[-1]) + 1)
        if self.repeat is None and (row := first_repeat(ids, -1)) is not None:
            self.repeat = (record.where(row), ids[row][filled[row]])
        if self.sets < 2:
            present = sets[sets != 0]
            self.first_set = self.first_set if self.sets else int(present[0])
            self.sets = 1 if (present == self.first_set).all() else 2


class Survey:
    """Counts over all records, one column per layer; `add` refuses what no option can mend.

    Parameters
    ----------
    layers : sequence of int
        Number of each column's layer.
    words : bool
        Whether the ids of the tokens are known.
    """

    def __init__(self, layers: Sequence[int], *, words: bool = True) -> None:
        self.layers, self.words = list(layers), words
        self.columns = [LayerSurvey() for _ in layers]
        self.n_tokens = self.n_documents = 0
        self.has_weights: bool | None = None
        self._in_runs: set[int] = set()
        self._counts: dict[int, int] = {}
        self._ids: dict[int, set[int]] = {}
        self._run, self._last = 0, 0
        self._layer_mix = np.random.default_rng(1).integers(1, 2**63, len(self.layers), dtype=np.uint64) | np.uint64(1)

    def add(self, record: TokenRecord) -> None:
        """Look at one document.

        Raises
        ------
        MoeProbeError
            Naming the row: no topic, positions that do not increase, gate weights that are no weights.
        """
        name = record.labels.get("document")
        empty = [key for key in ("document", "topic") if not str(record.labels.get(key) or "").strip()]
        if empty and record.source is not None and len(record.source.numbers):
            raise MoeProbeError(
                f"{record.source.name(0)} has no {empty[0]}",
                f"its {empty[0]} is empty",
                "a document and a topic in every row",
            )
        check_topics([record.labels])
        for key, value in record.labels.items():
            if is_unwritable(value):
                raise MoeProbeError(
                    f"the {key} of document {name!r} has characters that are not text",
                    "NUL or half a surrogate pair",
                    "clean the file",
                )
        token_id = record.token_id if self.words else None
        check_order(np.zeros(len(record.position), dtype=int), record.position, token_id, record.where)
        if self.has_weights not in (None, record.weights is not None):
            raise MoeProbeError(
                f"document '{name}' has {'' if record.weights is not None else 'no '}gate weights",
                "the documents before differ",
                "weights for all documents or for none",
            )
        self.has_weights = record.weights is not None
        if record.weights is not None:
            check_weights(self.layers, record.weights, record.experts >= 0, record.where)
        per_layer = self._sets(record.experts)
        for column, layer in enumerate(self.columns):
            layer.add(record, column, per_layer[:, column])
        self._count(self._pattern(per_layer), record.token_id)
        self.n_tokens, self.n_documents = self.n_tokens + len(record.experts), self.n_documents + 1

    def patterns(self, experts: np.ndarray) -> np.ndarray:
        """Return a number that stands for each token's sets of experts over all layers, shape (n_tokens,)."""
        return self._pattern(self._sets(experts))

    def constant(self) -> set[int]:
        """Return the patterns that stay the same for many tokens: in a row, or scattered over a large share of the record."""
        if sum(column.sets > 1 for column in self.columns) < _LAYERS:
            return self._in_runs  # so few layers can agree by chance
        return self._in_runs | {
            pattern
            for pattern, ids in self._ids.items()
            if len(ids) >= _IDS and self._counts.get(pattern, 0) >= _SCATTERED * self.n_tokens
        }

    def n_constant(self) -> int:
        """Count the tokens with such a pattern."""
        return sum(self._counts.get(pattern, 0) for pattern in self.constant())

    @staticmethod
    def _sets(experts: np.ndarray) -> np.ndarray:
        """Return a number per token and layer, the same for the same experts in any order; 0 for no expert."""
        numbers = np.where(experts >= 0, _MIX[experts & 0xFFFF], np.uint64(0))
        return np.asarray(numbers.sum(axis=2, dtype=np.uint64))

    def _pattern(self, per_layer: np.ndarray) -> np.ndarray:
        return np.asarray((per_layer * self._layer_mix).sum(axis=1, dtype=np.uint64))

    def _count(self, patterns: np.ndarray, token_id: np.ndarray) -> None:
        if not len(patterns):
            return
        starts = np.flatnonzero(np.concatenate([[True], patterns[1:] != patterns[:-1]]))
        lengths = np.diff([*starts, len(patterns)])
        if int(patterns[0]) == self._last:  # warm-up requests may be of one token each: runs continue over documents
            lengths[0] += self._run
        self._in_runs.update(int(patterns[start]) for start in starts[lengths >= _RUN])
        self._run, self._last = int(lengths[-1]), int(patterns[-1])
        for pattern, n in zip(*np.unique(patterns, return_counts=True), strict=True):
            key, total = int(pattern), self._counts.get(int(pattern), 0) + int(n)
            self._counts[key] = total
            if total >= _IDS and len(ids := self._ids.setdefault(key, set())) < _IDS:
                ids.update(np.unique(token_id[patterns == pattern])[:_IDS].tolist())
        if len(self._counts) > 2 * _PATTERNS:  # the frequent ones stay: memory does not grow with the record
            common = sorted(self._counts, key=lambda p: (p in self._in_runs, self._counts[p]), reverse=True)[:_PATTERNS]
            self._counts = {pattern: self._counts[pattern] for pattern in common}
            self._ids = {pattern: ids for pattern, ids in self._ids.items() if pattern in self._counts}
