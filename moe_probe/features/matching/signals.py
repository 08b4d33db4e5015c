"""The two sides of a match as sparse arrays over the same tokens: experts chosen, and what may tell them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.stats import labelled_documents
from moe_probe.features.firing import Firings

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.recording.trace import Trace
    from moe_probe.sae import ActivationReader, Sae


@dataclass(frozen=True)
class Choices:
    """Experts of all layers over some tokens.

    Attributes
    ----------
    matrix : csr_array of int32, shape (n_tokens, total experts)
        1 where chosen; layers one after the other.
    layer, expert : ndarray of int, shape (total experts,)
    """

    matrix: sparse.csr_array
    layer: np.ndarray
    expert: np.ndarray

    def of_layer(self, layer: int) -> sparse.csr_array:
        """One layer's columns."""
        return self.matrix[:, np.flatnonzero(self.layer == layer)]


@dataclass(frozen=True)
class Tokens:
    """What is known of every token of a trace beside its routing; arrays are (n_trace_tokens,).

    ``group`` is the unit of every test: the document, or the group it belongs to; ``topic`` is -1 where unlabelled.
    ``token_ids`` has the id of every code of ``token``; without it codes are ids.
    """

    group: np.ndarray
    topic: np.ndarray
    token: np.ndarray
    previous: np.ndarray
    topics: tuple[str, ...]
    n_groups: int
    token_ids: np.ndarray | None = None


def read_choices(trace: Trace) -> Choices:
    """Experts that every token of a trace chose, in all layers."""
    from scipy import sparse

    layers = [item.layer for item in trace.layers]
    sizes = [item.num_experts for item in trace.layers]
    matrix = sparse.hstack([trace.layer(layer) for layer in layers], format="csr", dtype=np.int32)
    return Choices(matrix, np.repeat(layers, sizes), np.concatenate([np.arange(n) for n in sizes]))


def read_tokens(trace: Trace, *, label: str = "topic") -> Tokens:
    """Group, topic and identity of every token.

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
    return Tokens(group_of[document], topic_of[document], token, previous, topics, len(groups), token_ids)


def one_hot(codes: np.ndarray, n_columns: int) -> sparse.csr_array:
    """A column a value; -1 is none of them."""
    from scipy import sparse

    known = np.flatnonzero(codes >= 0)
    return sparse.csr_array((np.ones(len(known), dtype=np.float32), (known, codes[known])), shape=(len(codes), n_columns))


def pair_codes(tokens: Tokens, rows: np.ndarray, *, at_least: int = 8) -> tuple[np.ndarray, int]:
    """Codes of (previous token, token) over the whole trace; -1 for pairs rarer than `at_least` on `rows`."""
    pair = tokens.previous.astype(np.int64) * (int(tokens.token.max()) + 1) + tokens.token
    names, counts = np.unique(pair[rows], return_counts=True)
    names = names[counts >= at_least]
    if len(names) == 0:
        return np.full(len(pair), -1), 0
    place = np.minimum(np.searchsorted(names, pair), len(names) - 1)
    return np.where(names[place] == pair, place, -1), len(names)


def random_dictionary(sae: Sae, *, l0: float, seed: int = 0) -> Sae:
    """An SAE of the same width and about the same sparsity whose dictionary is random directions.

    What it matches, any set of directions would match: activations are correlated with whatever is read from them.

    Parameters
    ----------
    l0 : float
        Active latents a token of the SAE that it stands beside.
    """
    import torch

    from moe_probe.sae import make_sae

    k = min(max(1, round(l0)), sae.config.d_sae)
    config = sae.config.model_copy(update={"architecture": "topk", "k": k, "seed": 1_000_003 + seed})
    null = make_sae(config)
    with torch.no_grad():
        null.b_dec.copy_(sae.b_dec)
        null.scale.copy_(sae.scale)
    return null.eval()


def shuffled(matrix: sparse.csr_array, group: np.ndarray, *, seed: int = 0) -> sparse.csr_array:
    """Give every token the row of a token of some other document, neighbours staying neighbours.

    Documents are put in random order, so that no topic meets the same topic throughout, and moved on by part of a document,
    so that positions do not meet either.
    """
    rng = np.random.default_rng(seed)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    blocks = np.split(np.arange(len(group)), starts[1:])
    order = np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])
    mean = max(len(group) // max(len(blocks), 1), 2)
    return matrix[np.roll(order, int(rng.integers(mean // 3 + 1, mean)))]


def fired(sae: Sae, reader: ActivationReader) -> Firings:
    """Firings of an SAE, with tokens in the trace's order."""
    from moe_probe.features.firing import fire

    found = fire(sae, reader)
    order = np.argsort(found.rows, kind="stable")
    return Firings(found.matrix[order], found.rows[order])
