"""The statistics against independent implementations, planted truth and pure noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.stats import (
    LabelPermuter,
    Resamples,
    StepDownMax,
    auroc,
    benjamini_hochberg,
    holm,
    log2_lift,
    macro_mutual_information,
    permutation_p,
    permutation_test,
)


def noise(seed: int, n_groups: int = 60, n_columns: int = 16, n_topics: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Shares of two layers of eight experts, with groups that differ, and labels that mean nothing."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 0.6, (n_groups, n_columns)) + rng.normal(0, 0.5, n_columns)
    shares = np.exp(logits).reshape(n_groups, 2, -1)
    return (shares / shares.sum(2, keepdims=True)).reshape(n_groups, -1), rng.permutation(np.arange(n_groups) % n_topics)


def test_t_is_welch() -> None:
    shares, topic = noise(0)
    found = permutation_test(shares, topic, n_topics=4, permutations=99)
    for t in range(4):
        expected = scipy_stats.ttest_ind(shares[topic == t], shares[topic != t], equal_var=False).statistic
        assert np.allclose(found.t[t], expected, rtol=1e-4)


def test_counts_match_a_plain_loop() -> None:
    """The matrix products give the p-values of the textbook loop over the same permutations."""
    shares, topic = noise(1, n_groups=24)
    permutations, seed = 200, 5
    found = permutation_test(shares, topic, n_topics=4, permutations=permutations, seed=seed)
    permuter = LabelPermuter(topic, n_topics=4, seed=seed)
    exceed, maxima = np.zeros_like(found.t), []
    for matrix in permuter.draw(permutations).toarray().reshape(permutations, 4, -1):
        t = np.array(
            [scipy_stats.ttest_ind(shares[row == 1], shares[row == 0], equal_var=False).statistic for row in matrix]
        )
        exceed += np.abs(t) >= np.abs(found.t) * (1 - 1e-5)
        maxima.append(np.abs(t).max())
    assert np.allclose(found.p_count, permutation_p(exceed, permutations), atol=2 / permutations)
    assert np.allclose(found.maxima, maxima, rtol=1e-3)


def test_step_down_matches_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    observed, permuted = np.abs(rng.normal(size=12)) * 1.5, np.abs(rng.normal(size=(300, 12)))
    family = StepDownMax(observed)
    family.add(permuted[:100])
    family.add(permuted[100:])
    order = np.argsort(-observed)
    adjusted, largest = np.empty(12), 0.0
    for rank, test in enumerate(order):
        exceed = (permuted[:, order[rank:]].max(1) >= observed[test]).sum()
        largest = max(largest, (1 + exceed) / 301)
        adjusted[test] = largest
    assert np.allclose(family.p_values(), adjusted)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40))
def test_multiplicity(p_values: list[float]) -> None:
    p = np.array(p_values)
    assert np.allclose(benjamini_hochberg(p), scipy_stats.false_discovery_control(p, method="bh"))
    adjusted, order = holm(p), np.argsort(p, kind="stable")
    running, plain = 0.0, np.empty(len(p))
    for rank, i in enumerate(order):
        running = max(running, min(1.0, p[i] * (len(p) - rank)))
        plain[i] = running
    assert np.allclose(adjusted, plain)
    assert (adjusted >= p - 1e-12).all()


def test_missing_tests_take_no_part() -> None:
    p = np.array([0.01, np.nan, 0.02])
    assert np.allclose(benjamini_hochberg(p)[[0, 2]], benjamini_hochberg(p[[0, 2]]))
    assert np.isnan(benjamini_hochberg(p)[1]) and np.isnan(holm(p)[1])


def test_auroc_is_sklearns() -> None:
    shares, topic = noise(2)
    shares = np.round(shares, 2)  # ties
    area = auroc(shares, topic, n_topics=4)
    for t in range(4):
        for column in range(shares.shape[1]):
            assert area[t, column] == pytest.approx(roc_auc_score(topic == t, shares[:, column]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_order_of_groups_does_not_matter(seed: int) -> None:
    shares, topic = noise(seed, n_groups=20)
    order = np.random.default_rng(seed).permutation(len(topic))
    one, other = (log2_lift(s, t, n_topics=4) for s, t in ((shares, topic), (shares[order], topic[order])))
    assert np.allclose(one.log2_lift, other.log2_lift) and np.allclose(one.ci_low, other.ci_low)


def test_interval_covers_and_agrees_with_the_bootstrap() -> None:
    """95 % intervals hold the truth in 93 to 97 % of 400 columns, and are as wide as resampling groups makes them."""
    rng = np.random.default_rng(3)
    topic = np.repeat(np.arange(4), 40)
    mean = np.array([0.1, 0.05, 0.05, 0.05])
    shares = mean[topic][:, None] * rng.gamma(4, 0.25, (160, 400))
    found = log2_lift(shares, topic, n_topics=4)
    truth = np.log2(mean / mean.mean())[:, None]
    covered = ((found.ci_low <= truth) & (truth <= found.ci_high)).mean()
    assert 0.93 <= covered <= 0.97
    drawn = Resamples(topic, n=400, seed=0)
    means = np.stack([drawn.means(shares[:, :50], np.flatnonzero(topic == t)) for t in range(4)])
    error = np.log2(means[0] / means.mean(0))[1:].std(0, ddof=1) / found.se[0, :50]
    assert 0.9 < np.median(error) < 1.1


def test_noise_claims_nothing() -> None:
    """Family-wise error and false discoveries over 150 null data sets, within what chance allows at 0.05."""
    layers, any_q, any_family = np.repeat([0, 1], 8), 0, 0
    layer_hits, n = 0, 150
    for seed in range(n):
        shares, topic = noise(seed)
        found = permutation_test(shares, topic, n_topics=4, layer_index=layers, permutations=199, seed=seed)
        any_family += bool((found.p_familywise <= 0.05).any())
        passes = found.layer_p <= 0.05
        any_q += bool(((benjamini_hochberg(found.p_value) <= 0.05) & passes[layers]).any())
        layer_hits += bool(passes.any())
    limit = scipy_stats.binom.ppf(0.999, n, 0.05)
    assert any_family <= limit
    assert any_q <= limit
    assert layer_hits <= limit


def test_small_topics_do_not_blunt_large_ones() -> None:
    """A topic of three groups has a heavy-tailed statistic; it must not cost a topic of forty its small p."""
    rng = np.random.default_rng(0)
    sizes = [40, 40, 40, 3, 3, 3]
    topic = np.repeat(np.arange(6), sizes)
    shares = rng.gamma(8, 1 / 8, (len(topic), 32))
    shares[topic == 0, 5] *= 2.0
    found = permutation_test(shares, topic, n_topics=6, permutations=500, seed=0)
    assert found.p_value[0, 5] < 1e-4
    assert benjamini_hochberg(found.p_value)[0, 5] < 0.02


def test_strata_restrict_permutations() -> None:
    """An effect of the stratum alone is no effect of the topic once labels stay within strata."""
    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1], 60)
    topic = np.where(rng.random(120) < np.where(strata == 0, 0.9, 0.1), 0, 1)
    shares = rng.normal(1, 0.1, (120, 4)) + strata[:, None]
    free = permutation_test(shares, topic, n_topics=2, permutations=199, seed=0)
    within = permutation_test(shares, topic, n_topics=2, permutations=199, seed=0, strata=strata)
    assert (free.p_value < 0.01).all() and (within.p_value > 0.01).all()


def test_labels_in_blocks_of_groups_are_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    topic = np.random.default_rng(0).integers(0, 3, 700)
    whole = LabelPermuter(topic, n_topics=3, seed=1).draw(5)
    monkeypatch.setattr("moe_probe.core.stats.labels.MOST_GROUPS_AT_ONCE", 100)
    monkeypatch.setattr("moe_probe.core.stats.labels._GROUP_BLOCK", 64)
    blocks = LabelPermuter(topic, n_topics=3, seed=1).draw(5)
    np.testing.assert_array_equal(blocks.toarray(), whole.toarray())
    values = np.random.default_rng(1).normal(size=(700, 4))
    np.testing.assert_allclose(blocks @ values, whole @ values)


def test_permutations_do_not_depend_on_blocks() -> None:
    topic = np.arange(12) % 3
    whole = LabelPermuter(topic, n_topics=3, seed=1).draw(10).toarray()
    permuter = LabelPermuter(topic, n_topics=3, seed=1)
    parts = np.concatenate([permuter.draw(4).toarray(), permuter.draw(6).toarray()])
    assert (whole == parts).all()


def test_one_topic_cannot_be_permuted() -> None:
    with pytest.raises(MoeProbeError, match="no labels can be exchanged"):
        LabelPermuter(np.zeros(5, dtype=int), n_topics=1)


def test_dead_and_constant_columns_are_not_tested() -> None:
    shares, topic = noise(4)
    shares[:, 0] = 0.0
    found = permutation_test(shares, topic, n_topics=4, permutations=99)
    assert np.isnan(found.p_value[:, 0]).all() and np.isfinite(found.p_value[:, 1:]).all()
    assert np.isnan(log2_lift(shares, topic, n_topics=4).log2_lift[:, 0]).all()


def test_information_of_labels_that_mean_nothing_and_everything() -> None:
    shares, topic = noise(5)
    layers = np.repeat([0, 1], 8)
    nothing = macro_mutual_information(shares, topic, n_topics=4, layer_index=layers, permutations=199, seed=0)
    assert (nothing.p_value > 0.01).all()
    assert (nothing.plugin < 2 * nothing.null).all() and (nothing.null > 0.001).all()  # the plug-in's bias shows
    certain = np.zeros((len(topic), 8))
    certain[np.arange(len(topic)), topic] = 1.0  # every topic has an expert of its own
    everything = macro_mutual_information(certain, topic, n_topics=4, layer_index=np.zeros(8, int), permutations=99, seed=0)
    assert everything.plugin[0] == pytest.approx(2.0)  # log2 of four topics


def test_welch_equals_a_robust_regression() -> None:
    """statsmodels: OLS of shares on membership with HC2 errors is Welch's t, exactly."""
    import statsmodels.api as sm

    from moe_probe.core.stats import permutation_test

    rng = np.random.default_rng(8)
    shares, topic = rng.dirichlet(np.ones(5), size=60), np.repeat([0, 1, 2], 20)
    t = permutation_test(shares, topic, n_topics=3, permutations=99).t
    for column in range(5):
        for k in range(3):
            fit = sm.OLS(shares[:, column], sm.add_constant((topic == k).astype(float))).fit(cov_type="HC2")
            assert t[k, column] == pytest.approx(fit.tvalues[1], rel=1e-5)


def test_group_means_equal_a_cluster_robust_regression() -> None:
    """Documents in groups: the same regression with errors clustered by group has the t of group means (groups alike)."""
    import statsmodels.api as sm

    from moe_probe.core.stats import permutation_test

    rng = np.random.default_rng(9)
    group = np.repeat(np.arange(30), 4)
    topic = np.repeat([0, 1], 60)
    share = rng.normal(size=30)[group] + 0.3 * rng.normal(size=120)
    means = share.reshape(30, 4).mean(1)
    t = permutation_test(means[:, None], np.repeat([0, 1], 15), n_topics=2, permutations=99).t[1, 0]
    fit = sm.OLS(share, sm.add_constant(topic.astype(float))).fit(
        cov_type="cluster", cov_kwds={"groups": group, "use_correction": False}
    )
    # the sandwich divides by n, Welch's variance by n - 1 in each of two samples of 15 groups
    assert t == pytest.approx(fit.tvalues[1] * np.sqrt(14 / 15), rel=1e-5)


def test_benjamini_hochberg_equals_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    from moe_probe.core.stats import benjamini_hochberg, holm

    p = np.random.default_rng(1).uniform(size=200) ** 3
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], abs=1e-12)
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
