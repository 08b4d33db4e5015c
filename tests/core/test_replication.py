"""Replication over several divisions, and the one-sided tests behind it."""

from __future__ import annotations

import numpy as np
import pytest

from moe_probe.core.stats import Division, LabelledShares, draw_divisions, log2_lift, permutation_test, replicate
from moe_probe.core.stats.permutation import chosen_p_values, permutation_p_values


def test_chosen_p_values_are_those_of_the_whole_test() -> None:
    rng = np.random.default_rng(0)
    shares, topic = rng.random((60, 12)), np.repeat(np.arange(6), 10)
    shares[topic == 2, 5] += 0.4
    strata = np.tile([0, 1], 30)
    for within in (None, strata):
        whole = permutation_test(shares, topic, n_topics=6, permutations=600, seed=3, strata=within, sign=np.ones((6, 12)))
        chosen = chosen_p_values(
            shares,
            topic,
            [(2, np.array([7, 1]), np.ones(2)), (0, np.array([3]), np.ones(1))],
            n_topics=6,
            permutations=600,
            seed=3,
            strata=within,
        )
        # where the tail is not asked for, p-values are the same counts
        assert chosen[0] == pytest.approx(whole.p_value[2, [7, 1]])
        assert chosen[1] == pytest.approx(whole.p_value[0, [3]])
        assert whole.p_value[2, 5] < 0.01
        assert (
            chosen_p_values(
                shares, topic, [(2, np.array([5]), np.ones(1))], n_topics=6, permutations=600, seed=3, strata=within
            )[0][0]
            < 0.01
        )
        assert (
            chosen_p_values(
                shares, topic, [(2, np.array([5]), -np.ones(1))], n_topics=6, permutations=600, seed=3, strata=within
            )[0][0]
            > 0.9
        )


def labelled(rng: np.random.Generator, shift: float, n: int = 12) -> LabelledShares:
    shares, topic = rng.normal(1, 0.3, (5 * n, 20)).clip(0), np.repeat(np.arange(5), n)
    shares[topic == 2, 4] += shift
    shares[topic == 2, 9] += shift
    return LabelledShares(shares, topic, 5, np.full((5, 20), 1e-6))


def test_replication_finds_again_what_is_there_and_nothing_else() -> None:
    """Two equal experts of one topic are both replicated; noise hardly ever."""
    rng = np.random.default_rng(1)
    hits = wrong = 0
    for seed in range(20):
        sample = labelled(rng, 0.7)
        p = replicate(sample, draw_divisions(sample.topic, seed=seed), permutations=199, seed=seed).p_value
        hits += int((p[2, [4, 9]] <= 0.05).sum())
        noise = labelled(rng, 0.0)
        wrong += bool(
            (replicate(noise, draw_divisions(noise.topic, seed=seed), permutations=199, seed=seed).p_value <= 0.05).any()
        )
    assert hits >= 36
    assert wrong <= 4  # two families at 0.05 each


def test_one_expert_among_many_is_proposed() -> None:
    """1,000 experts of skewed usage, 12 documents a topic: one of lift 3 is not lost behind the luckiest of the others."""
    topic, hits = np.repeat(np.arange(6), 12), 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mean = 0.02 * rng.lognormal(0, 0.5, 1000) * rng.lognormal(0, 0.58, (72, 1000))
        mean[topic == 1, 7] *= 5  # five times as much as elsewhere is three times the mean over topics
        sample = LabelledShares(rng.poisson(300 * mean) / 300, topic, 6, np.full((6, 1000), 1e-4))
        hits += bool(replicate(sample, draw_divisions(topic, seed=seed), permutations=199, seed=seed).p_value[1, 7] <= 0.05)
    assert hits >= 4


def test_replication_by_the_corpus_own_halves_goes_one_way() -> None:
    sample = labelled(np.random.default_rng(2), 1.0)
    first = np.arange(60) % 2 == 0
    one = replicate(sample, [Division(first, ~first)], permutations=199)
    assert one.p_value[2, 4] <= 0.05
    other = log2_lift(sample.shares[~first], sample.topic[~first], n_topics=5)
    assert one.log2_lift[2, 4] == pytest.approx(other.log2_lift[2, 4], abs=1e-3)


def test_experts_of_a_stratum_do_not_take_the_places_of_a_topics_own() -> None:
    """Twenty experts of a register that one topic prefers stand before its own expert, unless strata are taken away."""
    topic, hits = np.repeat(np.arange(5), 40), 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        strata = np.where(rng.random(200) < np.where(topic == 1, 0.8, 0.2), 1, 0)
        shares = rng.normal(0.05 + 0.1 * strata[:, None], 0.03, (200, 21)).clip(0)
        shares[:, 20] = rng.normal(0.05 + 0.03 * (topic == 1), 0.03).clip(0)
        sample = LabelledShares(shares, topic, 5, np.full((5, 21), 1e-4), strata)
        p = replicate(sample, draw_divisions(topic, strata, seed=seed), permutations=199, seed=seed).p_value
        hits += bool(p[1, 20] <= 0.05)
        assert (p[:, :20] > 0.05).all()
    assert hits >= 4


def test_divisions_are_halves_within_topic_and_stratum() -> None:
    topic, strata = np.repeat([0, 1, 2], [9, 8, 7]), np.arange(24) % 2
    divisions = draw_divisions(topic, strata, seed=0)
    assert len(divisions) == 20
    for division in divisions:
        assert (division.discovery ^ division.confirmation).all()
        for t in range(3):
            for s in range(2):
                cell = (topic == t) & (strata == s)
                assert abs(2 * division.discovery[cell].sum() - cell.sum()) <= 1
    assert abs(2 * divisions[0].discovery.sum() - 24) <= 1


def test_p_values_alone_are_those_of_the_whole_test() -> None:
    rng = np.random.default_rng(3)
    shares, topic = rng.random((48, 30)), np.repeat(np.arange(4), 12)
    shares[topic == 1, 3] += 0.3
    whole = permutation_test(shares, topic, n_topics=4, permutations=400, seed=1)
    t, p, familywise = permutation_p_values(shares, topic, n_topics=4, permutations=400, seed=1)
    assert np.allclose(t, whole.t) and np.allclose(p, whole.p_value)
    assert np.allclose(familywise, whole.p_single_step)
