"""What contexts and positions predict of expert usage together: an additive model, learnt on other groups of documents."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy import sparse

from moe_probe.experts.explain.tokens import LayerSelections, TokenSample

#: Rounds of backfitting, and how many tokens of other folds positions are learnt from: they have few values.
_ROUNDS, _POSITION_TOKENS = 5, 200_000


class AdditiveContexts:
    """Predicts usage of groups from the context of every token (its id, say) and its position.

    The share of an expert in a token's selections is ``r[context] + p[bin]``. Both are least-squares means without
    shrinkage, so that the prediction of a router which goes by the context alone, or by position alone, is unbiased. They
    are fitted jointly, by backfitting (Buja, Hastie and Tibshirani 1989, DOI 10.1214/aos/1176347115): where topics differ
    in length, words and positions go together, and the sum of what each predicts alone would count the same thing twice.
    Cross-fitted: a group is predicted from the folds that it is not in.

    Tokens that are learnt from are more than those that are measured: of a word that one document has 30 times and
    another once, only the one can be predicted, and only from the 30.

    Parameters
    ----------
    code, bins : ndarray of int, shape (n_tokens,)
        Context and bin of positions of every token; -1 in both for tokens that take no part.
    sample : TokenSample
    measured : ndarray of bool, shape (n_tokens,), optional
        Tokens whose usage is observed and predicted; the others are only learnt from. All when left out.
    seed : int
        Chooses the groups that positions are learnt from.
    """

    def __init__(
        self, code: np.ndarray, bins: np.ndarray, sample: TokenSample, *, measured: np.ndarray | None = None, seed: int = 0
    ) -> None:
        self.sample, self.used = sample, np.flatnonzero(code >= 0)
        self.code, self.bins = code[self.used], bins[self.used]
        self.measured = np.ones(len(self.used), dtype=bool) if measured is None else measured[self.used]
        self.group, self.fold = sample.group[self.used], sample.token_fold[self.used]
        self.n_codes, self.n_bins = int(self.code.max()) + 1, int(self.bins.max()) + 1
        self._few = self._some_groups(seed)

    def measure(self, item: LayerSelections) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observed and expected shares of one layer, (n_groups, n_experts) each, and selections, (n_groups,)."""
        counts = self._selections(item, self.group, len(self.sample.groups), self.measured)
        total = counts.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.nan_to_num(counts / total[:, None])
        if (item.slots == item.num_experts).all():
            return share, share, total  # every expert is always chosen: nothing to predict
        return share, self._expected(item), total

    def _expected(self, item: LayerSelections) -> np.ndarray:
        folds = self.sample.n_folds
        by_code = self._by_fold(item, self.code, self.n_codes)
        few = self._few
        few_codes = by_code if few.all() else self._by_fold(item, self.code, self.n_codes, few)
        few_bins = self._by_fold(item, self.bins, self.n_bins, few)
        slots = None if (item.slots == item.slots[0]).all() else item.slots[self.used].astype(np.float64)
        times = float(item.slots[0]) if slots is None else 1.0
        expected = np.zeros((len(self.sample.groups), item.num_experts))
        for fold in range(folds):
            elsewhere = [x.sum(0) - x[fold] for x in (by_code, few_codes, few_bins)]
            small = self._joint(fold, few, slots) * times
            p = _positions(elsewhere[1], elsewhere[2], small)
            full = small if few.all() else self._joint(fold, np.ones(len(few), dtype=bool), slots) * times
            r = (elsewhere[0] - full @ p) / np.maximum(np.asarray(full.sum(1)).ravel(), 1.0)[:, None]
            rows = np.flatnonzero(self.sample.fold == fold)
            expected[rows] = self._codes_of_groups[rows] @ r + self._bins_of_groups[rows] @ p
        return expected / np.maximum(np.asarray(self._codes_of_groups.sum(1)).ravel(), 1.0)[:, None]

    def _some_groups(self, seed: int) -> np.ndarray:
        """Tokens (mask) of enough groups of every fold to learn positions from."""
        if len(self.used) <= 2 * _POSITION_TOKENS:
            return np.ones(len(self.used), dtype=bool)
        share = _POSITION_TOKENS / len(self.used)
        chosen = np.random.default_rng([seed, 5]).random(len(self.sample.groups)) < share
        return (
            np.asarray(chosen[self.group])
            if len(set(self.sample.fold[chosen])) == self.sample.n_folds
            else np.ones(len(self.used), dtype=bool)
        )

    def _selections(
        self, item: LayerSelections, unit: np.ndarray, n_units: int, few: np.ndarray | None = None
    ) -> np.ndarray:
        """Selections by unit of the used tokens (or a few of them) and expert, shape (n_units, n_experts)."""
        of_token = np.full(len(item.slots), -1)
        keep = self.used if few is None else self.used[few]
        of_token[keep] = unit if few is None else unit[few]
        cell = of_token[item.token] * item.num_experts + item.expert
        cell = cell[cell >= 0]  # an expert's number is below num_experts, so unit -1 gives a negative cell
        return np.bincount(cell, minlength=n_units * item.num_experts).reshape(n_units, item.num_experts)

    def _by_fold(self, item: LayerSelections, key: np.ndarray, n_keys: int, few: np.ndarray | None = None) -> np.ndarray:
        """Selections by fold, key and expert."""
        counts = self._selections(item, self.fold * n_keys + key, self.sample.n_folds * n_keys, few)
        return counts.reshape(self.sample.n_folds, n_keys, item.num_experts)

    def _joint(self, fold: int, few: np.ndarray, slots: np.ndarray | None) -> sparse.csr_array:
        """Tokens (or their slots) of the other folds by context and bin of positions."""
        if slots is None:
            return self._joint_tokens[bool(few.all())][fold]
        return self._cross(few & (self.fold != fold), slots)

    @cached_property
    def _joint_tokens(self) -> dict[bool, list[sparse.csr_array]]:
        folds = range(self.sample.n_folds)
        every = [self._cross(self.fold != f) for f in folds]
        return {True: every, False: every if self._few.all() else [self._cross(self._few & (self.fold != f)) for f in folds]}

    def _cross(self, mask: np.ndarray, weight: np.ndarray | None = None) -> sparse.csr_array:
        value = np.ones(int(mask.sum())) if weight is None else weight[mask]
        return sparse.csr_array((value, (self.code[mask], self.bins[mask])), shape=(self.n_codes, self.n_bins))

    @cached_property
    def _codes_of_groups(self) -> sparse.csr_array:
        return self._of_groups(self.code, self.n_codes)

    @cached_property
    def _bins_of_groups(self) -> sparse.csr_array:
        return self._of_groups(self.bins, self.n_bins)

    def _of_groups(self, key: np.ndarray, n_keys: int) -> sparse.csr_array:
        rows = self.measured
        return sparse.csr_array(
            (np.ones(int(rows.sum())), (self.group[rows], key[rows])), shape=(len(self.sample.groups), n_keys)
        )


def _positions(by_code: np.ndarray, by_bin: np.ndarray, joint: sparse.csr_array) -> np.ndarray:
    """What positions add, in shares of selections, shape (n_bins, n_experts), by backfitting."""
    n_code = np.maximum(np.asarray(joint.sum(1)).ravel(), 1.0)[:, None]
    n_bin = np.maximum(np.asarray(joint.sum(0)).ravel(), 1.0)[:, None]
    transposed = joint.T.tocsr()
    p = by_bin / n_bin
    for _ in range(_ROUNDS):
        r = (by_code - joint @ p) / n_code
        p = (by_bin - transposed @ r) / n_bin
    return p
