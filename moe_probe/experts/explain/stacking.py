"""Held-out predictions of routing, one explaining factor after another.

A prediction gives, for every token, the share of its selections that each expert is expected to get. A factor
(the token id, say) multiplies it by a ratio: how much more often than predicted the expert was chosen wherever
the factor had this value in *other* groups of documents. Shares are then normalised to add up to 1. Factors can
follow each other in any order, so that what one adds to the others is a difference of two scores.

Every prediction is learnt from groups that do not contain the token (cross-fitting), and the correction of a
factor is estimated on predictions that were themselves made out of fold (stacking: Wolpert 1992, DOI
10.1016/S0893-6080(05)80023-1). So a gain cannot be inflated by fitting; it may be negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_probe.experts.explain.selections import LayerSelections
from moe_probe.experts.explain.tokens import TokenSample

#: Pseudo-selections that shrink a correction towards 1; the number that is best on the other folds is taken.
SHRINKAGE = (2.0, 16.0, 128.0, 1024.0)


@dataclass(frozen=True)
class Prediction:
    """Expected shares of tokens' selections, learnt without the token's own fold.

    Attributes
    ----------
    shares : ndarray of float32, shape (n_tokens, n_experts)
    chosen : ndarray of float32, shape (n_selections,)
        log2 of the share that was expected for each observed selection.
    """

    shares: np.ndarray
    chosen: np.ndarray


class Stack:
    """Predictor of one layer's selections by factors.

    Parameters
    ----------
    selections : LayerSelections
    sample : TokenSample
        The tokens of the selections.

    Attributes
    ----------
    base : Prediction
        Prediction by the experts' loads in the other folds alone.
    """

    def __init__(self, selections: LayerSelections, sample: TokenSample) -> None:
        from scipy.sparse import csr_array

        self.selections, self.n_folds = selections, sample.n_folds
        self.n_experts, self.n_groups = selections.num_experts, len(sample.groups)
        self._fold = sample.token_fold
        self._group_of_selection = sample.group[selections.token].astype(np.int64)
        self._slots = selections.slots.astype(np.float32)
        self._by_group = csr_array(
            (self._slots, (sample.group, np.arange(len(sample.group)))), shape=(self.n_groups, len(sample.group))
        )
        counts = self._count(np.zeros(len(self._fold), dtype=np.int64), 1)[:, 0]
        rest = counts.sum(0) - counts + 0.5  # half a selection, so that an expert the others never chose is possible
        self._base = (rest / rest.sum(1, keepdims=True)).astype(np.float32)
        self.base = self._predict(self._base[self._fold])
        self._base_selections = self._by_group @ self.base.shares

    def add(self, prediction: Prediction, key: np.ndarray) -> Prediction:
        """Correct a prediction by a factor.

        Parameters
        ----------
        prediction : Prediction
            By the factors before it.
        key : ndarray of int, shape (n_tokens,)
            Value of the factor at every token; -1 where it is unknown.

        Returns
        -------
        Prediction
        """
        key, n_keys = compact(key)
        if n_keys == 0:
            return prediction
        observed = self._count(key, n_keys)
        elsewhere = observed.sum(0) - observed
        inside = self._sum(key, n_keys, prediction.shares)
        if prediction is self.base:  # nothing is stacked yet: expect the other folds' own base rate  # noqa: SIM108
            expected = elsewhere.sum(2, keepdims=True) * self._base[:, None]
        else:
            expected = inside.sum(0) - inside
        ratio = np.ones((self.n_folds, n_keys + 1, self.n_experts), dtype=np.float32)  # the last row: no value
        strength = self._strengths(observed, elsewhere, expected, inside)
        for fold in range(self.n_folds):
            pseudo = strength[fold] * self._base[fold]
            ratio[fold, :-1] = (elsewhere[fold] + pseudo) / (expected[fold] + pseudo)
        rows = self._fold * (n_keys + 1) + np.where(key < 0, n_keys, key)
        shares = ratio.reshape(-1, self.n_experts)[rows]
        shares *= prediction.shares
        shares /= shares.sum(1, keepdims=True)
        return self._predict(shares)

    def gain(self, prediction: Prediction) -> np.ndarray:
        """Bits that a prediction saves over the base rate, shape (n_groups, n_experts).

        Of an expert: the Poisson log likelihood ratio of its selections, log2(q/b) at each, minus the
        excess of its expected selections over the base rate's. Over the experts of a layer these add up
        to the saving in cross-entropy of the selections, since shares add up to 1.
        """
        cell = self._group_of_selection * self.n_experts + self.selections.expert
        logs = np.bincount(cell, weights=prediction.chosen - self.base.chosen, minlength=self.n_groups * self.n_experts)
        penalty = (self._by_group @ prediction.shares - self._base_selections) / np.log(2)
        return np.asarray(logs.reshape(self.n_groups, self.n_experts) - penalty)

    def _predict(self, shares: np.ndarray) -> Prediction:
        return Prediction(shares, np.log2(shares[self.selections.token, self.selections.expert]))

    def _count(self, key: np.ndarray, n_keys: int) -> np.ndarray:
        """Count selections by fold, key and expert, shape (n_folds, n_keys, n_experts)."""
        unit = np.where(key < 0, -1, self._fold * n_keys + key)
        counts = self.selections.counts(unit, self.n_folds * n_keys).astype(np.float32)
        return counts.reshape(self.n_folds, n_keys, self.n_experts)

    def _sum(self, key: np.ndarray, n_keys: int, shares: np.ndarray) -> np.ndarray:
        """Sum expected selections by fold, key and expert, shape (n_folds, n_keys, n_experts)."""
        from scipy.sparse import csr_array

        known = np.flatnonzero(key >= 0)
        rows = self._fold[known] * n_keys + key[known]
        picker = csr_array((self._slots[known], (rows, known)), shape=(self.n_folds * n_keys, len(key)))
        return np.asarray(picker @ shares).reshape(self.n_folds, n_keys, self.n_experts)

    def _strengths(
        self, observed: np.ndarray, elsewhere: np.ndarray, expected: np.ndarray, inside: np.ndarray
    ) -> np.ndarray:
        """Choose the shrinkage of every fold, shape (n_folds,): the best on the other folds by Poisson likelihood.

        Arrays have shape (n_folds, n_keys, n_experts): selections in the fold (`observed`) and in the others
        (`elsewhere`), and those expected in the others (`expected`) and in the fold (`inside`).
        """
        scores = np.zeros((len(SHRINKAGE), self.n_folds))
        for fold in range(self.n_folds):
            seen = np.nonzero(observed[fold])
            for i, strength in enumerate(SHRINKAGE):
                pseudo = strength * self._base[fold]
                ratio = (elsewhere[fold] + pseudo) / (expected[fold] + pseudo)
                scores[i, fold] = (observed[fold][seen] * np.log(ratio[seen])).sum() - np.vdot(inside[fold], ratio)
        others = scores.sum(1, keepdims=True) - scores
        return np.asarray(np.array(SHRINKAGE)[others.argmax(0)])


def compact(key: np.ndarray) -> tuple[np.ndarray, int]:
    """Code the values of a factor as 0, 1, ... (-1 stays); return the codes and their number."""
    values, code = np.unique(key, return_inverse=True)
    unknown = int(len(values) > 0 and values[0] < 0)
    return code - unknown, len(values) - unknown


def shared_pairs(first: np.ndarray, second: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Code the pairs of two factors' values; pairs that occur in one group only cannot be carried over to others.

    Parameters
    ----------
    first, second : ndarray of int, shape (n_tokens,)
        Values of the two factors, none negative.
    group : ndarray of int, shape (n_tokens,)

    Returns
    -------
    ndarray of int64, shape (n_tokens,)
        -1 for pairs of a single group.
    """
    _, pair = np.unique(first.astype(np.int64) * (int(second.max()) + 1) + second, return_inverse=True)
    lowest = np.full(pair.max() + 1, np.iinfo(np.int64).max)
    highest = np.full(pair.max() + 1, -1)
    np.minimum.at(lowest, pair, group)
    np.maximum.at(highest, pair, group)
    return np.where((lowest == highest)[pair], -1, pair)


def position_octaves(position: np.ndarray) -> np.ndarray:
    """Bin positions as 0, 1, 2-3, 4-7, 8-15 ...: few enough bins to read."""
    return np.ceil(np.log2(position.astype(np.float64) + 1)).astype(np.int64)


def position_bins(position: np.ndarray, *, min_tokens: int = 64) -> np.ndarray:
    """Bin positions as finely as the data allow, to compare documents at equal positions.

    Every position up to 63 has a bin of its own, later bins span a sixteenth of an octave or less; neighbours are joined
    until each has `min_tokens` tokens. Octaves would be too coarse: an expert of positions 24 to 47 lies in two of them,
    and topics whose documents end within one differ in it by their length alone.

    Parameters
    ----------
    position : ndarray of int, shape (n_tokens,)
    min_tokens : int
        Number of tokens that a bin has at least.

    Returns
    -------
    ndarray of int32, shape (n_tokens,)
        Bins 0, 1, ..., in the order of positions.
    """
    if not len(position):
        return np.zeros(0, dtype=np.int32)
    counts = np.bincount(position)
    number = np.empty(len(counts), dtype=np.int32)
    bin_, start, held = 0, 0, 0
    for at, count in enumerate(counts):
        if held >= min_tokens and at - start >= at // 32:
            bin_, start, held = bin_ + 1, at, 0
        number[at] = bin_
        held += int(count)
    if held < min_tokens and bin_:  # too few at the end: join them to their neighbours
        number[number == bin_] = bin_ - 1
    return np.asarray(number[position])
