"""An additive model of expert usage: contexts and positions together, learnt on other groups of documents."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from moe_probe.experts.explain.tokens import LayerSelections, TokenSample

#: Rounds of backfitting, and the number of tokens that positions, which have few values, are learnt from.
_ROUNDS, _POSITION_TOKENS = 5, 200_000


class AdditiveContexts:
    """Predictor of groups' usage from the context of every token (its id, say) and its position.

    The share of an expert in a token's selections is ``r[context] + p[bin]``. Both are least-squares means without
    shrinkage, so that the prediction of a router which depends on the context alone, or on the position alone, is
    unbiased. They are fitted jointly, by backfitting (Buja, Hastie and Tibshirani 1989, DOI 10.1214/aos/1176347115):
    where topics differ in length, words and positions are correlated, and the sum of what each predicts alone would
    count the same effect twice. Cross-fitted: a group is predicted from the folds that it is not in.

    More tokens are learnt from than are measured. Of a word that one document has 30 times and another once, only the
    one occurrence can be predicted, and only from the 30.

    Parameters
    ----------
    code, bins : ndarray of int, shape (n_tokens,)
        Context and bin of positions of every token; -1 in both for tokens that take no part.
    sample : TokenSample
    measured : ndarray of bool, shape (n_tokens,), optional
        Tokens whose usage is observed and predicted; the others are only learnt from. Default: all.
    seed : int
        Seed of the choice of groups that positions are learnt from.
    """

    def __init__(
        self, code: np.ndarray, bins: np.ndarray, sample: TokenSample, *, measured: np.ndarray | None = None, seed: int = 0
    ) -> None:
        self._sample = sample
        self._used = np.flatnonzero(code >= 0)
        self._code, self._bins = code[self._used], bins[self._used]
        self._group, self._fold = sample.group[self._used], sample.token_fold[self._used]
        self._n_codes, self._n_bins = int(self._code.max()) + 1, int(self._bins.max()) + 1
        self._measured = np.ones(len(self._used), dtype=bool) if measured is None else measured[self._used]
        self._every = np.ones(len(self._used), dtype=bool)
        self._few = self._position_tokens(seed)
        self._codes_of_groups = self._by_group(self._code, self._n_codes)
        self._bins_of_groups = self._by_group(self._bins, self._n_bins)
        # tokens of the other folds by context and bin: the same for every layer whose tokens all fill as many slots
        self._few_tokens = self._tokens_elsewhere(self._few)
        self._every_token = self._few_tokens if self._few.all() else self._tokens_elsewhere(self._every)

    def measure(self, item: LayerSelections) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observe and predict the usage of one layer.

        Returns
        -------
        observed, expected : ndarray of float, shape (n_groups, n_experts)
            Shares of the measured tokens' selections.
        selections : ndarray of int, shape (n_groups,)
        """
        counts = self._selections(item, self._group, len(self._sample.groups), self._measured)
        total = counts.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.nan_to_num(counts / total[:, None])
        if (item.slots == item.num_experts).all():
            return share, share, total  # every expert is always chosen: nothing to predict
        return share, self._expected(item), total

    def _expected(self, item: LayerSelections) -> np.ndarray:
        """Predict the shares of one layer, shape (n_groups, n_experts)."""
        few, all_few = self._few, bool(self._few.all())
        by_code = self._by_fold(item, self._code, self._n_codes, self._every)
        few_codes = by_code if all_few else self._by_fold(item, self._code, self._n_codes, few)
        few_bins = self._by_fold(item, self._bins, self._n_bins, few)
        slots = None if (item.slots == item.slots[0]).all() else item.slots[self._used].astype(np.float64)
        times = float(item.slots[0]) if slots is None else 1.0
        expected = np.zeros((len(self._sample.groups), item.num_experts))
        for fold in range(self._sample.n_folds):
            elsewhere = [x.sum(0) - x[fold] for x in (by_code, few_codes, few_bins)]
            small = self._slots_elsewhere(fold, few, slots) * times
            p = _position_effects(elsewhere[1], elsewhere[2], small)
            full = small if all_few else self._slots_elsewhere(fold, self._every, slots) * times
            r = (elsewhere[0] - full @ p) / np.maximum(np.asarray(full.sum(1)).ravel(), 1.0)[:, None]
            rows = np.flatnonzero(self._sample.fold == fold)
            expected[rows] = self._codes_of_groups[rows] @ r + self._bins_of_groups[rows] @ p
        return np.asarray(expected / np.maximum(np.asarray(self._codes_of_groups.sum(1)).ravel(), 1.0)[:, None])

    def _position_tokens(self, seed: int) -> np.ndarray:
        """Mark the used tokens of enough groups of every fold to learn positions from, shape (n_used,)."""
        if len(self._used) <= 2 * _POSITION_TOKENS:
            return self._every
        share = _POSITION_TOKENS / len(self._used)
        chosen = np.random.default_rng([seed, 5]).random(len(self._sample.groups)) < share
        covers_folds = len(set(self._sample.fold[chosen])) == self._sample.n_folds
        return np.asarray(chosen[self._group]) if covers_folds else self._every

    def _selections(self, item: LayerSelections, unit: np.ndarray, n_units: int, mask: np.ndarray) -> np.ndarray:
        """Count selections of the used tokens under a mask by unit and expert, shape (n_units, n_experts)."""
        of_token = np.full(len(item.slots), -1)
        of_token[self._used[mask]] = unit[mask]
        return item.counts(of_token, n_units)

    def _by_fold(self, item: LayerSelections, key: np.ndarray, n_keys: int, mask: np.ndarray) -> np.ndarray:
        """Count selections by fold, key and expert, shape (n_folds, n_keys, n_experts)."""
        counts = self._selections(item, self._fold * n_keys + key, self._sample.n_folds * n_keys, mask)
        return counts.reshape(self._sample.n_folds, n_keys, item.num_experts)

    def _tokens_elsewhere(self, mask: np.ndarray) -> list[sparse.csr_array]:
        return [self._elsewhere(fold, mask, np.ones(len(self._used))) for fold in range(self._sample.n_folds)]

    def _slots_elsewhere(self, fold: int, mask: np.ndarray, slots: np.ndarray | None) -> sparse.csr_array:
        """Sum the slots of the other folds' tokens by context and bin; without `slots`, count the tokens."""
        if slots is None:
            return (self._few_tokens if mask is self._few else self._every_token)[fold]
        return self._elsewhere(fold, mask, slots)

    def _elsewhere(self, fold: int, mask: np.ndarray, weight: np.ndarray) -> sparse.csr_array:
        """Sum the weights of the other folds' tokens under a mask by context and bin, shape (n_codes, n_bins)."""
        keep = mask & (self._fold != fold)
        shape = (self._n_codes, self._n_bins)
        return sparse.csr_array((weight[keep], (self._code[keep], self._bins[keep])), shape=shape)

    def _by_group(self, key: np.ndarray, n_keys: int) -> sparse.csr_array:
        """Count the measured tokens by group and key, shape (n_groups, n_keys)."""
        rows = self._measured
        shape = (len(self._sample.groups), n_keys)
        return sparse.csr_array((np.ones(int(rows.sum())), (self._group[rows], key[rows])), shape=shape)


def _position_effects(by_code: np.ndarray, by_bin: np.ndarray, joint: sparse.csr_array) -> np.ndarray:
    """Fit what positions add to contexts, in shares of selections, shape (n_bins, n_experts), by backfitting.

    Selections by context (n_codes, n_experts) and by bin (n_bins, n_experts), and slots by both (n_codes, n_bins).
    """
    n_code = np.maximum(np.asarray(joint.sum(1)).ravel(), 1.0)[:, None]
    n_bin = np.maximum(np.asarray(joint.sum(0)).ravel(), 1.0)[:, None]
    transposed = joint.T.tocsr()
    p = by_bin / n_bin
    for _ in range(_ROUNDS):
        r = (by_code - joint @ p) / n_code
        p = (by_bin - transposed @ r) / n_bin
    return np.asarray(p)
