"""Pairs of binary signals that go together: experts' selections, read in blocks of tokens, and features' firings in memory.

Both are tokens by units. Counts of pairs come a block of features at a time, so that neither tokens x features nor
experts x features is ever a dense array in memory, and selections may stay on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.stats.auroc import sparse_auroc
from moe_probe.features.matching.co_counts import ActiveUnits, active_units, count_blocks, iter_hits, unit_counts

if TYPE_CHECKING:
    from scipy import sparse

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
    """

    auroc: np.ndarray
    activation_auroc: np.ndarray
    bits: np.ndarray
    lift: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    p_value: np.ndarray


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


def best_pairs(experts: sparse.csr_array | ActiveUnits, features: sparse.csr_array, *, per_expert: int = 8) -> Pairs:
    """Choose, for every expert, the features that predict its selection best, among those that go with it.

    Ranked by mutual information, which neither favours rare features (as lift does) nor frequent ones.

    Parameters
    ----------
    experts : csr_array or ActiveUnits, shape (n_tokens, n_experts)
    features : csr_array, shape (n_tokens, n_features)
    per_expert : int

    Returns
    -------
    Pairs
        At most ``n_experts * per_expert``.
    """
    units = active_units(experts)
    n, n_experts = units.shape
    chosen = unit_counts(units).astype(np.float64)
    fired = np.bincount(features.indices, minlength=features.shape[1]).astype(np.float64)
    best = _Best(np.zeros((per_expert, n_experts)), np.full((per_expert, n_experts), -1), np.zeros((per_expert, n_experts)))
    for block, both in count_blocks(units, features):
        row, column = _promising(both, fired[block], chosen, n, best.bits[-1])
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


def _promising(
    both: np.ndarray, fired: np.ndarray, chosen: np.ndarray, n: int, at_least: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the pairs that go together and whose mutual information may exceed an expert's worst so far.

    It is at most log2(1 + phi^2) bits, phi being the correlation of the two signals: a divergence of Kullback and Leibler is at
    most the logarithm of one plus that of chi square (Gibbs and Su 2002, DOI 10.1111/j.1751-5823.2002.tb00178.x).
    """
    expected = fired[:, None] * chosen
    covariance = both * float(n)
    more = covariance > expected
    covariance -= expected
    spread = np.sqrt(fired * (n - fired))[:, None] * np.sqrt(np.expm1(at_least * np.log(2)) * chosen * (n - chosen))
    row, column = np.nonzero(
        (both >= MIN_TOGETHER) & more & (covariance >= spread * (1 - 1e-6))
    )  # less than what rounding may do
    return row, column


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
    experts: sparse.csr_array | ActiveUnits,
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
    experts : csr_array or ActiveUnits, shape (n_tokens, n_experts)
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
    from scipy.stats import t as student

    expert, feature = pairs
    units, columns = active_units(experts), features.tocsc()
    n = units.shape[0]
    size = np.bincount(group, minlength=n_groups).astype(np.float64)
    scored, row = np.unique(expert, return_inverse=True)
    by_group = _counts_by_group(units, scored, group, n_groups)
    chosen = by_group.sum(1)
    out, t_value, freedom = np.full((6, len(expert)), np.nan), np.full(len(expert), np.nan), np.full(len(expert), np.nan)
    firings = columns.indptr.astype(np.int64), columns.indices
    for i, hit in iter_hits(units, firings, (expert, feature)):
        if 0 < chosen[row[i]] < n and len(hit):
            column = slice(columns.indptr[feature[i]], columns.indptr[feature[i] + 1])
            fires_in = group[columns.indices[column]]
            by_expert = by_group[row[i]].astype(np.float64)
            out[:, i], t_value[i], freedom[i] = _score(hit, columns.data[column], fires_in, by_expert, size)
    return Scores._make([*out, student.sf(t_value, freedom)])


def _counts_by_group(units: ActiveUnits, columns: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Count the tokens of every group on which each of some units is active, int32, shape (n_columns, n_groups)."""
    from moe_probe.features.matching.kernels import count_by_group

    row = np.full(units.shape[1], -1)
    row[columns] = np.arange(len(columns))
    counts = np.zeros((len(columns), n_groups), dtype=np.int32)
    for block in units.blocks():
        of_token = group[block.start : block.start + len(block.indptr) - 1]
        count_by_group(block.indptr, block.units, row, of_token, counts)
    return counts


def _score(
    hit: np.ndarray, value: np.ndarray, group: np.ndarray, e: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Score one pair: whether the expert is chosen where the feature fires, its activation and group there; (n_firing,) each.

    Returns all of `Scores` but the p-value, and the t of that with its degrees of freedom.
    """
    f = np.bincount(group, minlength=len(size)).astype(np.float64)
    c = np.bincount(group[hit], minlength=len(size)).astype(np.float64)
    n, chosen, fired, both = size.sum(), e.sum(), f.sum(), c.sum()
    recall, false_alarm = both / chosen, (fired - both) / (n - chosen)
    part = c - f * (chosen / n) - e * (fired / n) + size * (chosen * fired / n**2)
    squares = part**2
    spread = squares.sum()
    t_value = freedom = np.nan
    if spread > 0:
        freedom = max(spread**2 / (squares**2).sum() - 1, 1.0)
        t_value = part.sum() / np.sqrt(spread)
    bits = mutual_information(np.array(both), np.array(chosen), np.array(fired), n)
    lift = (both / fired) / (chosen / n)
    auroc, of_activation = (1 + recall - false_alarm) / 2, sparse_auroc(hit, value, chosen, n)
    signed = np.copysign(bits, lift - 1)
    return np.array([auroc, of_activation, signed, lift, both / fired, recall]), t_value, freedom


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
