"""Experts selected and what may predict them, as sparse arrays over the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.routing import dropped_id
from moe_probe.core.stats import labelled_documents
from moe_probe.features.firing import Firings, fire
from moe_probe.features.matching.co_counts import MatrixUnits, TokenBlock
from moe_probe.recording.trace import Trace
from moe_probe.recording.trace.chunks import iter_experts

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.features.matching.co_counts import ActiveUnits
    from moe_probe.sae import ActivationReader, Sae


@dataclass(frozen=True)
class Selections:
    """Experts that tokens select, in all layers; read from the trace when asked for, shard by shard.

    Attributes
    ----------
    source : Trace, or csr_array of int, shape (n_tokens, total experts)
        A trace, or 1 where an expert is selected; layers one after the other.
    layer, expert : ndarray of int, shape (total experts,)
    """

    source: Trace | sparse.csr_array
    layer: np.ndarray
    expert: np.ndarray

    def of_tokens(self, rows: np.ndarray) -> ActiveUnits:
        """Return the experts of all layers that some tokens select (rows of the trace, increasing)."""
        return _SelectedUnits(self, rows)

    def of_layer(self, layer: int, rows: np.ndarray) -> sparse.csr_array:
        """Return one layer's selections by some tokens.

        Parameters
        ----------
        layer : int
        rows : ndarray of int, shape (n_rows,)
            Rows of the trace, increasing.

        Returns
        -------
        csr_array of int, shape (n_rows, n_experts)
        """
        from scipy import sparse

        columns = np.flatnonzero(self.layer == layer)
        if not isinstance(self.source, Trace):
            return self.source[rows][:, columns]
        blocks = list(_stored_blocks(self.source, rows, [self.source.layer_index(layer)], np.zeros(1, dtype=np.int32)))
        units = np.concatenate([block.units for block in blocks])
        indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(block.indptr) for block in blocks]))])
        return sparse.csr_array((np.ones(len(units), dtype=np.int32), units, indptr), shape=(len(rows), len(columns)))


@dataclass(frozen=True)
class _SelectedUnits:
    """Experts of all layers as units of some tokens."""

    selections: Selections
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.selections.layer)

    def blocks(self) -> Iterator[TokenBlock]:
        source = self.selections.source
        if not isinstance(source, Trace):
            yield from MatrixUnits(source[self.rows]).blocks()
            return
        sizes = [item.num_experts for item in source.layers]
        first = np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.int32)
        yield from _stored_blocks(source, self.rows, list(range(len(sizes))), first)


def _stored_blocks(trace: Trace, rows: np.ndarray, layers: list[int], first_unit: np.ndarray) -> Iterator[TokenBlock]:
    """Read the selections of some layers (by index) by some tokens; a layer's experts are numbered from `first_unit` on."""
    start = 0
    for experts in iter_experts(trace.root, trace.manifest, layers):
        n_tokens = len(experts)
        part = slice(*np.searchsorted(rows, [start, start + n_tokens]))
        if part.start < part.stop:
            chosen = experts if part.stop - part.start == n_tokens else experts[rows[part] - start]
            filled = (chosen != dropped_id(chosen.dtype)).reshape(len(chosen), -1)
            units = (chosen + first_unit[:, None]).reshape(len(chosen), -1)
            indptr = np.concatenate([[0], np.cumsum(filled.sum(1))])
            yield TokenBlock(part.start, indptr, units.ravel() if filled.all() else units[filled])
        start += n_tokens


@dataclass(frozen=True)
class TokenTable:
    """What is known of every token of a trace beside its routing; arrays are (n_trace_tokens,).

    ``group`` is the unit of every test: the document, or the group it belongs to; ``topic`` is -1 where unlabelled.
    ``token`` and ``previous`` are codes; ``token_ids`` has the id of every code of ``token`` (without it codes are ids).
    """

    group: np.ndarray
    topic: np.ndarray
    token: np.ndarray
    previous: np.ndarray
    topics: tuple[str, ...]
    n_groups: int
    token_ids: np.ndarray | None = None


def read_selections(trace: Trace) -> Selections:
    """Give the experts of all layers of a trace their numbers; what tokens select is read when it is asked for."""
    sizes = [item.num_experts for item in trace.layers]
    layers = np.repeat([item.layer for item in trace.layers], sizes)
    return Selections(trace, layers, np.concatenate([np.arange(n) for n in sizes]))


def read_tokens(trace: Trace, *, label: str = "topic") -> TokenTable:
    """Read group, topic and identity of every token.

    Parameters
    ----------
    trace : Trace
    label : str
        Label column that serves as the topic.

    Returns
    -------
    TokenTable

    Raises
    ------
    MoeProbeError
        When no document has such a label.
    """
    keep, labels, names = labelled_documents(trace.documents, label=label)
    groups, group_of = np.unique(names.astype(str), return_inverse=True)
    topics = tuple(sorted(set(labels[keep])))
    topic_of = np.array([topics.index(name) if kept else -1 for name, kept in zip(labels, keep, strict=True)])
    table = trace.tokens(["document", "token_id"])
    document, ids = table["document"].to_numpy().astype(np.int64), table["token_id"].to_numpy().astype(np.int64)
    before = np.full(len(ids), -1, dtype=np.int64)
    follows = document[1:] == document[:-1]
    before[1:][follows] = ids[:-1][follows]
    token_ids, token = np.unique(ids, return_inverse=True)
    _, previous = np.unique(before, return_inverse=True)
    group, topic = (codes[document].astype(np.int32) for codes in (group_of, topic_of))
    return TokenTable(group, topic, token.astype(np.int32), previous.astype(np.int32), topics, len(groups), token_ids)


def one_hot(codes: np.ndarray, n_columns: int) -> sparse.csr_array:
    """Spread codes over one column per value.

    Parameters
    ----------
    codes : ndarray of int, shape (n_tokens,)
        -1 is none of the values.
    n_columns : int

    Returns
    -------
    csr_array of float32, shape (n_tokens, n_columns)
    """
    from scipy import sparse

    known = np.flatnonzero(codes >= 0)
    return sparse.csr_array((np.ones(len(known), dtype=np.float32), (known, codes[known])), shape=(len(codes), n_columns))


def pair_codes(tokens: TokenTable, rows: np.ndarray, *, at_least: int = 8) -> tuple[np.ndarray, int]:
    """Give every pair of previous token and token a number.

    Parameters
    ----------
    tokens : TokenTable
    rows : ndarray of int, shape (n_rows,)
        Tokens that pairs are counted on.
    at_least : int
        Tokens of `rows` that a pair needs.

    Returns
    -------
    codes : ndarray of int, shape (n_trace_tokens,)
        -1 for rarer pairs.
    n_pairs : int
    """
    pair = tokens.previous.astype(np.int64) * (int(tokens.token.max()) + 1) + tokens.token
    names, counts = np.unique(pair[rows], return_counts=True)
    names = names[counts >= at_least]
    if len(names) == 0:
        return np.full(len(pair), -1), 0
    index = np.minimum(np.searchsorted(names, pair), len(names) - 1)
    return np.where(names[index] == pair, index, -1), len(names)


def shuffled(matrix: sparse.csr_array, group: np.ndarray, *, seed: int = 0) -> sparse.csr_array:
    """Give every token the row of a token of some other document, neighbours staying neighbours.

    Documents are put in random order, so that no topic meets the same topic throughout, and moved on by part of a document,
    so that positions do not meet either.

    Parameters
    ----------
    matrix : csr_array, shape (n_tokens, n_columns)
    group : ndarray of int, shape (n_tokens,)
        Group of documents of every token.
    seed : int

    Returns
    -------
    csr_array, shape (n_tokens, n_columns)
    """
    rng = np.random.default_rng(seed)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    blocks = np.split(np.arange(len(group)), starts[1:])
    order = np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])
    mean = max(len(group) // max(len(blocks), 1), 2)
    return matrix[np.roll(order, int(rng.integers(mean // 3 + 1, mean)))]


def ordered_firings(sae: Sae, reader: ActivationReader) -> Firings:
    """Encode the tokens of a reader and put them in the trace's order.

    Parameters
    ----------
    sae : Sae
    reader : ActivationReader

    Returns
    -------
    Firings
    """
    firings = fire(sae, reader)
    if (np.diff(firings.rows) > 0).all():
        return firings
    order = np.argsort(firings.rows, kind="stable")
    return Firings(firings.matrix[order], firings.rows[order])
