"""Pairs of binary signals that go together: experts' selections and features' firings, as sparse arrays.

Both are tokens by units. Counts of pairs come from sparse products over blocks of features, so that neither tokens x features
nor experts x features is ever a dense array in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.stats.auroc import sparse_auroc
from moe_probe.core.stats.labels import n_threads
from moe_probe.features.firing import binary

if TYPE_CHECKING:
    from scipy import sparse

_BLOCK = 512
#: Tokens on which both must be active for a pair to be considered.
MIN_TOGETHER = 8


class Pairs(NamedTuple):
    """Candidate pairs, best first within an expert; arrays are (n_pairs,)."""

    expert: np.ndarray
    feature: np.ndarray
    #: Mutual information in bits on the tokens that the pairs were chosen on.
    bits: np.ndarray
    auroc: np.ndarray


class Scores(NamedTuple):
    """Pairs measured on some tokens; arrays are (n_pairs,).

    Attributes
    ----------
    auroc : ndarray
        Area under the ROC curve of "the feature fires" for "the expert was chosen": (1 + hit rate - false-alarm rate) / 2.
    activation_auroc : ndarray
        The same for the activation's size.
    bits : ndarray
        Mutual information per token, signed: negative where the two avoid each other.
    lift : ndarray
        How much more often the expert is chosen where the feature fires than on all tokens.
    precision, recall : ndarray
        Share of firings on which the expert is chosen; share of the expert's tokens on which the feature fires.
    p_value : ndarray
        One-sided, of "more often together than independent", groups of documents being the unit.
    influence : ndarray, shape (n_pairs, n_groups)
        What each group adds to the estimate of `auroc`, for differences between pairs of one expert.
    """

    auroc: np.ndarray
    activation_auroc: np.ndarray
    bits: np.ndarray
    lift: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    p_value: np.ndarray
    influence: np.ndarray


def mutual_information(both: np.ndarray, first: np.ndarray, second: np.ndarray, n: float) -> np.ndarray:
    """Compute the mutual information of two binary signals from counts.

    Cover and Thomas 2006, eq. 2.28, DOI 10.1002/047174882X.

    Parameters
    ----------
    both, first, second : ndarray
        Tokens on which both, the first, and the second are active; shapes that broadcast.
    n : float
        Tokens.

    Returns
    -------
    ndarray
        Bits per token.
    """
    total = np.zeros(np.broadcast_shapes(both.shape, first.shape, second.shape))
    for cell, row, column in (
        (both, first, second),
        (first - both, first, n - second),
        (second - both, n - first, second),
        (n - first - second + both, n - first, n - second),
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            total += np.where(cell > 0, cell * np.log2(cell * (n / (row * column))), 0.0)
    return np.asarray(total / n)


def count_blocks(experts: sparse.csr_array, features: sparse.csr_array) -> Iterator[tuple[slice, np.ndarray]]:
    """Count the tokens on which both are active, a block of features at a time.

    Takes as many additions as the sum over tokens of (experts chosen x features firing), on all threads.

    Parameters
    ----------
    experts : csr_array, shape (n_tokens, n_experts)
    features : csr_array, shape (n_tokens, n_features)

    Yields
    ------
    slice
        Features of the block.
    ndarray of int32, shape (block, n_experts)
    """
    by_feature = binary(features).T.tocsr()  # scipy's products let go of the interpreter lock, so that threads pay
    chosen = binary(experts)

    def count(start: int) -> tuple[slice, np.ndarray]:
        block = slice(start, min(start + _BLOCK, by_feature.shape[0]))
        return block, np.asarray((by_feature[block] @ chosen).toarray())

    starts = range(0, by_feature.shape[0], _BLOCK)
    with ThreadPoolExecutor(n_threads()) as pool:
        for first in range(0, len(starts), n_threads()):  # as many blocks in memory as threads
            yield from pool.map(count, starts[first : first + n_threads()])


def best_pairs(experts: sparse.csr_array, features: sparse.csr_array, *, per_expert: int = 8) -> Pairs:
    """Choose, for every expert, the features that predict its selection best, among those that go with it.

    Ranked by mutual information, which neither favours rare features (as lift does) nor frequent ones.

    Parameters
    ----------
    experts : csr_array, shape (n_tokens, n_experts)
    features : csr_array, shape (n_tokens, n_features)
    per_expert : int

    Returns
    -------
    Pairs
        At most ``n_experts * per_expert``.
    """
    n, n_experts = experts.shape
    chosen = np.bincount(experts.indices, minlength=n_experts).astype(np.float64)
    fired = np.bincount(features.indices, minlength=features.shape[1]).astype(np.float64)
    best = _Best(np.zeros((per_expert, n_experts)), np.full((per_expert, n_experts), -1), np.zeros((per_expert, n_experts)))
    for block, both in count_blocks(experts, features):
        row, column = np.nonzero((both >= MIN_TOGETHER) & (both * float(n) > fired[block, None] * chosen))
        together = both[row, column].astype(np.float64)
        bits = mutual_information(together, fired[block][row], chosen[column], n)
        keep = bits > best.bits[-1, column]  # only what is better than an expert's worst so far
        _merge(best, _Best(bits[keep], row[keep] + block.start, together[keep]), column[keep])
    rank, expert = np.nonzero(best.feature >= 0)
    order = np.lexsort((rank, expert))
    rank, expert = rank[order], expert[order]
    feature, both = best.feature[rank, expert], best.both[rank, expert]
    hit = both / chosen[expert]
    false_alarm = (fired[feature] - both) / np.maximum(n - chosen[expert], 1)
    return Pairs(expert, feature, best.bits[rank, expert], (1 + hit - false_alarm) / 2)


class _Best(NamedTuple):
    """Candidates, (n,) each, or the best so far, (per_expert, n_experts) each, -1 for no feature."""

    bits: np.ndarray
    feature: np.ndarray
    both: np.ndarray


def _merge(best: _Best, new: _Best, expert: np.ndarray) -> None:
    """Add candidates in place: each expert keeps as many as there are rows; ties go to the earlier feature."""
    depth, n_experts = best.bits.shape
    affected = np.unique(expert)
    if len(affected) == 0:
        return
    old = np.repeat(np.arange(depth), len(affected)), np.tile(affected, depth)
    every = _Best(*(np.concatenate([n, b[old]]) for n, b in zip(new, best, strict=True)))
    owner = np.concatenate([expert, old[1]])
    order = np.lexsort((every.feature, -every.bits, owner))
    owner = owner[order]
    rank = np.arange(len(order)) - np.searchsorted(owner, np.arange(n_experts))[owner]
    kept = rank < depth
    for values, target in zip(every, best, strict=True):
        target[rank[kept], owner[kept]] = values[order][kept]


def score_pairs(
    experts: sparse.csr_array,
    features: sparse.csr_array,
    pairs: tuple[np.ndarray, np.ndarray],
    group: np.ndarray,
    *,
    n_groups: int,
) -> Scores:
    """Measure given pairs, on other tokens than they were chosen on.

    The unit of the test is the group of documents. With c, e and f the group's tokens on which both, the expert, and the
    feature are active, its contribution to the covariance is c - f E/N - e F/N + n EF/N^2. Their sum over its root of squares
    is compared with Student's t. Groups of unequal weight leave as many degrees of freedom as the squares have effective
    terms (Satterthwaite; Imbens and Kolesar 2016, DOI 10.1162/REST_a_00552).

    Parameters
    ----------
    experts : csr_array, shape (n_tokens, n_experts)
    features : csr_array, shape (n_tokens, n_features)
    pairs : tuple of ndarray of int, shape (n_pairs,) each
        Columns of `experts` and of `features`.
    group : ndarray of int, shape (n_tokens,)
    n_groups : int

    Returns
    -------
    Scores
        NaN where the expert or the feature never occurs, or always.
    """
    expert, feature = pairs
    chosen, fired = experts.tocsc(), features.tocsc()
    n = experts.shape[0]
    size = np.bincount(group, minlength=n_groups).astype(np.float64)
    out = np.full((7, len(expert)), np.nan)
    influence = np.zeros((len(expert), n_groups), dtype=np.float32)
    for e in np.unique(expert):
        rows = chosen.indices[chosen.indptr[e] : chosen.indptr[e + 1]]
        mask = np.zeros(n, dtype=bool)
        mask[rows] = True
        by_group = np.bincount(group[rows], minlength=n_groups).astype(np.float64)
        for i in np.flatnonzero(expert == e):
            column = slice(fired.indptr[feature[i]], fired.indptr[feature[i] + 1])
            token, value = fired.indices[column], fired.data[column]
            if 0 < len(rows) < n and len(token):
                out[:, i], influence[i] = _score(mask[token], value, group[token], by_group, size)
    return Scores._make([*out, influence])


def _score(
    hit: np.ndarray, value: np.ndarray, group: np.ndarray, e: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Score one pair: whether the expert is chosen where the feature fires, its activation and group there; (n_firing,) each."""
    from scipy.stats import t as student

    f = np.bincount(group, minlength=len(size)).astype(np.float64)
    c = np.bincount(group[hit], minlength=len(size)).astype(np.float64)
    n, chosen, fired, both = size.sum(), e.sum(), f.sum(), c.sum()
    recall, false_alarm = both / chosen, (fired - both) / (n - chosen)
    influence = 0.5 * ((c - recall * e) / chosen - ((f - c) - false_alarm * (size - e)) / (n - chosen))
    part = c - f * (chosen / n) - e * (fired / n) + size * (chosen * fired / n**2)
    squares = part**2
    spread = squares.sum()
    p_value = np.nan
    if spread > 0:
        freedom = max(spread**2 / (squares**2).sum() - 1, 1.0)
        p_value = student.sf(part.sum() / np.sqrt(spread), freedom)
    bits = mutual_information(np.array(both), np.array(chosen), np.array(fired), n)
    lift = (both / fired) / (chosen / n)
    auroc, of_activation = (1 + recall - false_alarm) / 2, sparse_auroc(hit, value, chosen, n)
    signed = np.copysign(bits, lift - 1)
    return np.array([auroc, of_activation, signed, lift, both / fired, recall, p_value]), influence


def better_than(scores: Scores, others: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare AUROCs of pairs of the same experts, with the 95 % interval over groups of the difference.

    Parameters
    ----------
    scores, others : Scores
        On the same tokens.

    Returns
    -------
    difference, low, high : ndarray, shape (n_pairs,)
    """
    from scipy.stats import t as student

    difference = scores.auroc - others.auroc
    parts = scores.influence.astype(np.float64) - others.influence
    n_groups = parts.shape[1]
    error = np.sqrt((parts**2).sum(1) * n_groups / max(n_groups - 1, 1))
    margin = student.ppf(0.975, max(n_groups - 1, 1)) * error
    return difference, difference - margin, difference + margin


def one_to_one(pairs: Pairs, *, n_features: int) -> np.ndarray:
    """Give every expert a feature of its own, so that the sum of bits is largest.

    Jonker and Volgenant 1987, DOI 10.1007/BF02278710.

    Parameters
    ----------
    pairs : Pairs
    n_features : int

    Returns
    -------
    ndarray of bool, shape (n_pairs,)
        Pairs of the assignment; experts whose candidates all go to others have none.
    """
    from scipy import sparse
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    taken = np.zeros(len(pairs.expert), dtype=bool)
    if len(taken) == 0:
        return taken
    experts, row = np.unique(pairs.expert, return_inverse=True)
    own = n_features + np.arange(len(experts))  # a way out for each: next to nothing, so that a full matching exists
    weights = sparse.coo_array(
        (
            np.concatenate([pairs.bits, np.full(len(own), 1e-12)]),
            (np.concatenate([row, np.arange(len(own))]), np.concatenate([pairs.feature, own])),
        ),
        shape=(len(experts), n_features + len(experts)),
    ).tocsr()
    which = dict(zip(*min_weight_full_bipartite_matching(weights, maximize=True), strict=True))
    return np.array([which[r] == f for r, f in zip(row, pairs.feature, strict=True)])
