"""Held-out predictions of routing, one explaining factor after another.

A prediction says, for every token, which share of its selections each expert will get. A factor (the
token id, say) multiplies it by how much more often than predicted the expert was chosen wherever the
factor had this value in *other* groups of documents; then shares are made to add up to 1. Factors can
follow each other in any order, so that what one adds after the others is a difference of two scores.

Every prediction is made by groups that do not contain the token (cross-fitting), and the correction of a
factor is estimated on predictions that were themselves made out of fold (stacking: Wolpert 1992, DOI
10.1016/S0893-6080(05)80023-1). So a gain cannot be inflated by fitting; it may be negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_probe.experts.explain.tokens import LayerSelections, TokenSample

#: Pseudo-selections by which a correction is drawn towards 1; the best on the other folds is taken.
SHRINKAGE = (2.0, 16.0, 128.0, 1024.0)


@dataclass(frozen=True)
class Prediction:
    """Expected shares of a token's selections, made without its group's fold.

    Attributes
    ----------
    shares : ndarray of float32, shape (n_tokens, n_experts)
    chosen : ndarray of float32, shape (n_selections,)
        log2 of the share that was expected for each selection that happened.
    """

    shares: np.ndarray
    chosen: np.ndarray


class Stack:
    """Predicts one layer's selections by factors.

    Parameters
    ----------
    selections : LayerSelections
    sample : TokenSample
    """

    def __init__(self, selections: LayerSelections, sample: TokenSample) -> None:
        from scipy.sparse import csr_array

        self.selections, self.n_folds = selections, sample.n_folds
        self.n_experts, self.n_groups = selections.num_experts, len(sample.groups)
        self._fold = sample.token_fold
        self._group_of_selection = sample.group[selections.token]
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
            What the factors before it predict.
        key : ndarray of int, shape (n_tokens,)
            Value of the factor at every token; -1 where there is nothing to go by.
        """
        key, n_keys = compact(key)
        if n_keys == 0:
            return prediction
        observed = self._count(key, n_keys)
        elsewhere = observed.sum(0) - observed
        inside = self._sum(key, n_keys, prediction.shares)
        if prediction is self.base:  # what the other folds' own base rate expects of them: nothing is stacked yet  # noqa: SIM108
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

        Of an expert: the Poisson log likelihood ratio of its selections, log2(q/b) at each minus the
        selections that were expected beyond the base rate's. Over the experts of a layer these add up
        to the saving in cross-entropy of the selections, since shares add up to 1.
        """
        cell = self._group_of_selection * self.n_experts + self.selections.expert
        logs = np.bincount(cell, weights=prediction.chosen - self.base.chosen, minlength=self.n_groups * self.n_experts)
        penalty = (self._by_group @ prediction.shares - self._base_selections) / np.log(2)
        return np.asarray(logs.reshape(self.n_groups, self.n_experts) - penalty)

    def _predict(self, shares: np.ndarray) -> Prediction:
        return Prediction(shares, np.log2(shares[self.selections.token, self.selections.expert]))

    def _count(self, key: np.ndarray, n_keys: int) -> np.ndarray:
        """Selections by fold, key and expert."""
        token = self.selections.token
        known = key[token] >= 0
        cell = ((self._fold * n_keys + key)[token] * self.n_experts + self.selections.expert)[known]
        size = self.n_folds * n_keys * self.n_experts
        counts = np.bincount(cell, minlength=size).astype(np.float32)
        return counts.reshape(self.n_folds, n_keys, self.n_experts)

    def _sum(self, key: np.ndarray, n_keys: int, shares: np.ndarray) -> np.ndarray:
        """Expected selections by fold, key and expert."""
        from scipy.sparse import csr_array

        known = np.flatnonzero(key >= 0)
        rows = self._fold[known] * n_keys + key[known]
        picker = csr_array((self._slots[known], (rows, known)), shape=(self.n_folds * n_keys, len(key)))
        return np.asarray(picker @ shares).reshape(self.n_folds, n_keys, self.n_experts)

    def _strengths(
        self, observed: np.ndarray, elsewhere: np.ndarray, expected: np.ndarray, inside: np.ndarray
    ) -> np.ndarray:
        """Shrinkage for every fold: what serves the other folds best (Poisson likelihood of their tables).

        All by fold, key and expert: selections in the fold, in the others, and what is expected of the others
        and in the fold.
        """
        scores = np.zeros((len(SHRINKAGE), self.n_folds))
        for fold in range(self.n_folds):
            seen = np.nonzero(observed[fold])
            for i, strength in enumerate(SHRINKAGE):
                pseudo = strength * self._base[fold]
                ratio = (elsewhere[fold] + pseudo) / (expected[fold] + pseudo)
                scores[i, fold] = (observed[fold][seen] * np.log(ratio[seen])).sum() - np.vdot(inside[fold], ratio)
        others = scores.sum(1, keepdims=True) - scores
        return np.asarray(SHRINKAGE)[others.argmax(0)]


def compact(key: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the values of a factor 0, 1, ...; -1 stays."""
    values, code = np.unique(key, return_inverse=True)
    unknown = int(len(values) > 0 and values[0] < 0)
    return code - unknown, len(values) - unknown


def shared_pairs(first: np.ndarray, second: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Code pairs of values; -1 for those of a single group, from which nothing can be carried over."""
    _, pair = np.unique(first.astype(np.int64) * (int(second.max()) + 1) + second, return_inverse=True)
    lowest = np.full(pair.max() + 1, np.iinfo(np.int64).max)
    highest = np.full(pair.max() + 1, -1)
    np.minimum.at(lowest, pair, group)
    np.maximum.at(highest, pair, group)
    return np.where((lowest == highest)[pair], -1, pair)


def position_octaves(position: np.ndarray) -> np.ndarray:
    """Positions 0, 1, 2-3, 4-7, 8-15 ...: few enough for people to read."""
    return np.ceil(np.log2(position.astype(np.float64) + 1)).astype(np.int64)


def position_bins(position: np.ndarray, *, min_tokens: int = 64) -> np.ndarray:
    """Bins of positions as fine as the data bear, for comparing documents at equal positions.

    Every position for itself up to 63, then bins of a sixteenth of an octave or less; neighbours are joined until each
    holds `min_tokens` tokens. Octaves are too coarse: an expert of positions 24 to 47 lies in two of them, and topics
    whose documents end within one differ in it by their length alone.

    Parameters
    ----------
    position : ndarray of int, shape (n_tokens,)
    min_tokens : int

    Returns
    -------
    ndarray of int64, shape (n_tokens,)
        Numbers of bins, 0, 1, ..., never decreasing with position.
    """
    if not len(position):
        return np.zeros(0, dtype=np.int64)
    counts = np.bincount(position)
    number = np.empty(len(counts), dtype=np.int64)
    bin_, start, held = 0, 0, 0
    for place, count in enumerate(counts):
        if held >= min_tokens and place - start >= place // 32:
            bin_, start, held = bin_ + 1, place, 0
        number[place] = bin_
        held += int(count)
    if held < min_tokens and bin_:  # too few at the end: they go with their neighbours
        number[number == bin_] = bin_ - 1
    return np.asarray(number[position])
