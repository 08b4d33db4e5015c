"""Matching of sparse binary signals: counts, bits, assignment; noise finds nothing, plants are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import kstest
from sklearn.metrics import mutual_info_score, roc_auc_score

from moe_probe.features.matching.co_counts import count_blocks
from moe_probe.features.matching.counts import (
    Pairs,
    best_pairs,
    mutual_information,
    one_to_one,
    score_pairs,
)


def noise(n: int, experts: int, features: int, *, groups: int = 40, seed: int = 0):
    """Independent signals, each with habits of the group of documents."""
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, groups, n))
    e = rng.random((n, experts)) < np.clip(0.15 * rng.lognormal(0, 0.6, (groups, experts)), 0, 0.9)[group]
    f = rng.random((n, features)) < np.clip(0.05 * rng.lognormal(0, 0.6, (groups, features)), 0, 0.9)[group]
    return sparse.csr_array(e.astype(np.int32)), sparse.csr_array(f * rng.random(f.shape).astype(np.float32)), group


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9))
def test_equal_to_dense_and_sklearn(seed: int, n_experts: int, n_features: int) -> None:
    e, f, group = noise(200, n_experts, n_features, groups=5, seed=seed)
    dense_e, dense_f = e.toarray() > 0, f.toarray()
    counts = np.concatenate([both for _, both in count_blocks(e, f)])
    assert np.array_equal(counts, (dense_f > 0).T.astype(int) @ dense_e.astype(int))
    pairs = np.array([(i, j) for i in range(n_experts) for j in range(n_features)])
    scores = score_pairs(e, f, (pairs[:, 0], pairs[:, 1]), group, n_groups=5)
    for k, (i, j) in enumerate(pairs):
        if not 0 < dense_e[:, i].sum() < 200 or not (dense_f[:, j] > 0).any():
            assert np.isnan(scores.auroc[k])
            continue
        assert scores.auroc[k] == pytest.approx(roc_auc_score(dense_e[:, i], dense_f[:, j] > 0))
        assert scores.activation_auroc[k] == pytest.approx(roc_auc_score(dense_e[:, i], dense_f[:, j]))
        bits = mutual_info_score(dense_e[:, i], dense_f[:, j] > 0) / np.log(2)
        assert abs(scores.bits[k]) == pytest.approx(bits, abs=1e-9)


def test_the_best_are_the_best() -> None:
    """Against a full table, with more features than a block holds."""
    e, f, _ = noise(3000, 7, 1300, seed=3)
    n = 3000
    chosen, fired = e.sum(0), (f > 0).sum(0)
    both = ((f > 0).astype(np.int32).T @ e).toarray()
    bits = mutual_information(both, fired[:, None], chosen[None], n)
    bits[(both < 8) | (both * n <= fired[:, None] * chosen)] = 0
    pairs = best_pairs(e, f, per_expert=5)
    for i in range(7):
        assert pairs.feature[pairs.expert == i].tolist() == np.argsort(-bits[:, i], kind="stable")[:5].tolist()


def test_p_values_of_noise_are_uniform() -> None:
    """Groups have habits, tokens of a group are not independent; a test that took tokens for units would fail here."""
    e, f, group = noise(6000, 20, 30, groups=60, seed=5)
    pairs = np.array([(i, j) for i in range(20) for j in range(30)])
    p = score_pairs(e, f, (pairs[:, 0], pairs[:, 1]), group, n_groups=60).p_value
    assert kstest(p, "uniform").pvalue > 0.001
    assert (p < 0.05).mean() < 0.08


def test_the_luckiest_of_many_is_not_believed() -> None:
    """The best of 40,000 pairs looks good where it was chosen and is nothing on the other half."""
    e, f, group = noise(8000, 20, 2000, groups=80, seed=6)
    half = group < 40
    first, second = np.flatnonzero(half), np.flatnonzero(~half)
    pairs = best_pairs(e[first], f[first], per_expert=1)
    here = score_pairs(e[first], f[first], pairs[:2], group[first], n_groups=80)
    there = score_pairs(e[second], f[second], pairs[:2], group[second], n_groups=80)
    assert here.auroc.mean() > 0.52
    assert (there.p_value < 0.01).mean() < 0.15
    assert abs(np.nanmean(there.auroc) - 0.5) < 0.005


def test_a_planted_pair_is_found_and_beats_a_weaker_one() -> None:
    e, f, group = noise(6000, 10, 200, seed=7)
    rng = np.random.default_rng(0)
    planted = (e.toarray()[:, 4] > 0) & (rng.random(6000) < 0.7)
    weaker = (e.toarray()[:, 4] > 0) & (rng.random(6000) < 0.3)
    f = f.tolil()
    f[:, 17] = (planted * 2.0)[:, None]
    f[:, 18] = (weaker * 2.0)[:, None]
    f = f.tocsr()
    pairs = best_pairs(e, f, per_expert=3)
    assert pairs.feature[pairs.expert == 4][:2].tolist() == [17, 18]
    scores = score_pairs(e, f, (np.array([4]), np.array([17])), group, n_groups=40)
    assert scores.auroc[0] == pytest.approx(0.85, abs=0.02)
    assert scores.p_value[0] < 1e-4
    weaker_scores = score_pairs(e, f, (np.array([4]), np.array([18])), group, n_groups=40)
    assert scores.auroc[0] - weaker_scores.auroc[0] == pytest.approx(0.2, abs=0.03)


def test_assignment_is_one_to_one_and_gives_way() -> None:
    """Two experts want one feature: it goes where most bits are saved in all."""
    pairs = Pairs(np.array([0, 0, 1]), np.array([5, 6, 5]), np.array([0.5, 0.4, 0.3]), np.full(3, 0.5))
    assert one_to_one(pairs, n_features=10).tolist() == [False, True, True]
    alone = Pairs(np.array([0, 1]), np.array([5, 5]), np.array([0.5, 0.3]), np.full(2, 0.5))
    assert one_to_one(alone, n_features=10).tolist() == [True, False]
