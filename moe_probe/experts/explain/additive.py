"""An additive model of expert usage: contexts and positions together, learnt on other groups of documents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from moe_probe.experts.explain.selections import LayerSelections
from moe_probe.experts.explain.tokens import TokenSample

#: Rounds of backfitting, and the number of tokens that positions, which have few values, are learnt from.
_ROUNDS, _POSITION_TOKENS = 5, 200_000
#: Tokens that are counted into a sparse table at a time.
_AT_ONCE = 1 << 18
#: Contexts whose tables are added up over folds at a time.
_CONTEXTS = 1 << 12


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
        self._sample, self._code, self._bins = sample, code, bins
        self._n_codes, self._n_bins = int(code.max()) + 1, int(bins.max()) + 1
        self._every = code >= 0
        self._measured = self._every if measured is None else measured & self._every
        self._few = self._position_tokens(seed)
        self._codes_of_groups = self._by_group(code, self._n_codes)
        self._bins_of_groups = self._by_group(bins, self._n_bins)
        # tokens by context and bin: the same for every layer whose tokens all fill as many slots
        self._few_tokens = self._by_context(self._few)
        self._every_token = self._few_tokens if self._few is self._every else self._by_context(self._every)

    def measure(self, item: LayerSelections) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observe and predict the usage of one layer.

        Returns
        -------
        observed, expected : ndarray of float, shape (n_groups, n_experts)
            Shares of the measured tokens' selections.
        selections : ndarray of int, shape (n_groups,)
        """
        counts = item.counts(self._unit(self._measured, 0, self._sample.group), len(self._sample.groups))
        total = counts.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.nan_to_num(counts / total[:, None])
        if (item.slots == item.num_experts).all():
            return share, share, total  # every expert is always chosen: nothing to predict
        return share, self._expected(item), total

    def _expected(self, item: LayerSelections) -> np.ndarray:
        """Predict the shares of one layer, shape (n_groups, n_experts)."""
        few, all_few = self._few, self._few is self._every
        by_code = self._by_fold(item, self._code, self._n_codes, self._every)
        few_codes = by_code if all_few else self._by_fold(item, self._code, self._n_codes, few)
        few_bins = self._by_fold(item, self._bins, self._n_bins, few)
        slots = None if (item.slots == item.slots[0]).all() else item.slots
        times = float(item.slots[0]) if slots is None else 1.0
        few_tokens = self._few_tokens if slots is None else self._by_context(few, slots)
        every_token = few_tokens if all_few else self._every_token if slots is None else self._by_context(self._every, slots)
        expected = np.zeros((len(self._sample.groups), item.num_experts))
        for fold in range(self._sample.n_folds):
            elsewhere = [x.sum(0) - x[fold] for x in (by_code, few_codes, few_bins)]
            small = _elsewhere(few_tokens, fold) * times
            p = _position_effects(elsewhere[1], elsewhere[2], small)
            r = elsewhere[0].astype(np.float64)
            for start in range(0, self._n_codes, _CONTEXTS):  # the rows of all contexts at once would be a large copy
                part = slice(start, start + _CONTEXTS)
                full = small[part] if all_few else _elsewhere([table[part] for table in every_token], fold) * times
                r[part] = (r[part] - full @ p) / np.maximum(np.asarray(full.sum(1)).ravel(), 1.0)[:, None]
            rows = np.flatnonzero(self._sample.fold == fold)
            expected[rows] = self._codes_of_groups[rows] @ r + self._bins_of_groups[rows] @ p
        return np.asarray(expected / np.maximum(np.asarray(self._codes_of_groups.sum(1)).ravel(), 1.0)[:, None])

    def _position_tokens(self, seed: int) -> np.ndarray:
        """Mark the used tokens of enough groups of every fold to learn positions from, shape (n_tokens,)."""
        n = int(self._every.sum())
        if n <= 2 * _POSITION_TOKENS:
            return self._every
        share = _POSITION_TOKENS / n
        chosen = np.random.default_rng([seed, 5]).random(len(self._sample.groups)) < share
        covers_folds = len(set(self._sample.fold[chosen])) == self._sample.n_folds
        return self._every & chosen[self._sample.group] if covers_folds else self._every

    def _unit(self, mask: np.ndarray, n_keys: int, key: np.ndarray) -> Callable[[slice], np.ndarray]:
        """Give a function from a slice of tokens to fold x `n_keys` + key of each, -1 outside of a mask."""
        sample = self._sample

        def unit(part: slice) -> np.ndarray:
            return np.where(mask[part], sample.fold[sample.group[part]] * n_keys + key[part], -1)

        return unit

    def _by_fold(self, item: LayerSelections, key: np.ndarray, n_keys: int, mask: np.ndarray) -> np.ndarray:
        """Count selections by fold, key and expert, shape (n_folds, n_keys, n_experts)."""
        counts = item.counts(self._unit(mask, n_keys, key), self._sample.n_folds * n_keys)
        return counts.reshape(self._sample.n_folds, n_keys, item.num_experts)

    def _by_context(self, mask: np.ndarray, slots: np.ndarray | None = None) -> list[sparse.csr_array]:
        """Sum the slots of every fold's tokens under a mask by context and bin, each (n_codes, n_bins); or count the tokens."""
        n, folds = self._n_codes, self._sample.n_folds
        whole = self._summed(self._unit(mask, n, self._code), folds * n, self._bins, self._n_bins, slots)
        return [whole[fold * n : (fold + 1) * n] for fold in range(folds)]

    def _by_group(self, key: np.ndarray, n_keys: int) -> sparse.csr_array:
        """Count the measured tokens by group and key, shape (n_groups, n_keys)."""
        rows = self._unit(self._measured, 0, self._sample.group)
        return self._summed(rows, len(self._sample.groups), key, n_keys)

    def _summed(
        self,
        rows: Callable[[slice], np.ndarray],
        n_rows: int,
        columns: np.ndarray,
        n_columns: int,
        weight: np.ndarray | None = None,
    ) -> sparse.csr_array:
        """Sum ones (or weights) of the tokens whose row is not negative, shape (n_rows, n_columns)."""
        out = sparse.csr_array((n_rows, n_columns))
        for start in range(0, len(columns), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            row = rows(part)
            use = row >= 0
            value = np.ones(int(use.sum())) if weight is None else weight[part][use].astype(np.float64)
            out = out + sparse.csr_array((value, (row[use], columns[part][use])), shape=out.shape)
        return out


def _elsewhere(of_folds: list[sparse.csr_array], fold: int) -> sparse.csr_array:
    """Add up the tables of the folds other than one."""
    return sum((table for number, table in enumerate(of_folds) if number != fold), start=sparse.csr_array(of_folds[0].shape))


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
