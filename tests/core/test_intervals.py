"""Intervals: they hold the truth as often as they say from five documents on, and agree with independent code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from scipy.optimize import brentq

from moe_probe.core.results import Result
from moe_probe.core.stats import (
    Resamples,
    auroc_interval,
    half_selection,
    log2_lift,
    log2_ratio,
    ratio_interval,
    student_interval,
)
from moe_probe.core.stats.bootstrap import satterthwaite
from moe_probe.experts.explain.bits import _bits
from moe_probe.features import quality
from moe_probe.features.matching.routing_prediction import RoutingPrediction
from moe_probe.features.matching.topic_units import SplitSignals, measure_unit
from moe_probe.features.spliced_loss import LossSample
from moe_probe.models import LoadedModel
from moe_probe.report import write_report
from moe_probe.studies.ablation import AblationBaseline, Unit, summary_lines
from moe_probe.studies.ablation.rises import RiseComparison
from moe_probe.studies.verdicts import complete_verdicts, confirmation
from moe_probe.testing import planted_trace
from moe_probe.testing.results import planted_results

TOPICS = 4
NO_MODEL = cast(LoadedModel, None)  # where losses are given, nothing reads the model


def baseline(n: int) -> AblationBaseline:
    """Documents of four topics and hardly different lengths, each a source of its own; no model."""
    topic = np.repeat(np.arange(TOPICS), n)
    sizes = np.random.default_rng(n).integers(90, 111, len(topic))
    sample = LossSample(tuple(np.zeros(s, dtype=int) for s in sizes), (), tuple(range(len(sizes))))
    return AblationBaseline(
        NO_MODEL,
        sample,
        np.zeros(len(topic)),
        topic,
        np.arange(len(topic)),
        tuple(f"topic-{t}" for t in range(TOPICS)),
        None,
    )


@pytest.mark.parametrize("n", [5, 12])
def test_knock_outs_cover_from_five_documents_on(n: int) -> None:
    """Rises are skewed as gamma(4). Percentiles of a bootstrap of n from n documents hold it in 85 % and 90 %."""
    rng, compare = np.random.default_rng(n), RiseComparison(baseline(n), resamples=200, seed=0)
    held = {"ci": 0, "beyond_control": 0, "beyond_others": 0}
    for _ in range(400):
        own, other = rng.gamma(4, 0.02, (2, TOPICS * n))
        row = compare.rows(Unit(0, (0,)), own, [other], "mask")[0]
        for name, truth in (("ci", 0.08), ("beyond_control", 0.0), ("beyond_others", 0.0)):
            held[name] += row[f"{name}_low"] <= truth <= row[f"{name}_high"]
    assert all(0.925 <= k / 400 <= 0.995 for k in held.values()), held


def test_one_document_confirms_nothing() -> None:
    compare = RiseComparison(baseline(1), resamples=50, seed=0)
    row = compare.rows(Unit(0, (0,)), np.full(TOPICS, 0.1) + np.arange(TOPICS)[::-1], [np.zeros(TOPICS)], "mask")[0]
    assert np.isnan(row["ci_low"]) and not row["confirmed"]
    assert row["confirmation"] == "cannot be confirmed (one group of documents)"


def test_a_topic_of_one_group_is_not_taken_for_certain() -> None:
    """The rise on topic-3, of one group, lies far off by chance: the comparison with other topics leaves it out."""
    made = baseline(6)
    made = replace(made, group=np.where(made.topic == 3, made.group.max(), made.group))
    rng = np.random.default_rng(0)
    rise = np.where(made.topic == 3, -9.0, rng.normal(0.1, 0.05, TOPICS * 6))
    rows = RiseComparison(made, resamples=200, seed=0).rows(Unit(0, (0,)), rise, [np.zeros(TOPICS * 6)], "mask")
    assert all(abs(row["beyond_others"]) < 0.2 and not row["confirmed"] for row in rows[:3])
    assert rows[3]["confirmation"] == "cannot be confirmed (one group of documents)"
    alone = replace(made, group=np.where(made.topic == 0, made.group, 100 + made.topic))
    row = RiseComparison(alone, resamples=200, seed=0).rows(Unit(0, (0,)), rise + 9, [np.zeros(TOPICS * 6)], "mask")[0]
    assert np.isnan(row["beyond_others_low"]) and row["ci_low"] > 0
    assert row["confirmation"] == "cannot be confirmed (every other topic has one group of documents)"


def side(rng: np.random.Generator, n: int, apart: float) -> SplitSignals:
    """Two units, the first active more on the first of four topics; documents have habits."""
    topic = np.repeat(np.arange(TOPICS), n)
    habit = rng.normal(size=(2, len(topic)))
    rate = np.clip(0.03 * np.exp(habit + np.array([[apart], [0.5]]) * (topic == 0)), 0, 0.95)
    active = rng.random((2, len(topic), 60)) < rate[:, :, None]
    return SplitSignals(
        np.repeat(np.arange(len(topic)), 60), np.repeat(topic, 60), sparse.csr_array(active.reshape(2, -1).T.astype(float))
    )


@pytest.mark.parametrize("n", [5, 12])
def test_areas_under_the_curve_cover_near_one(n: int) -> None:
    """AUROC of 0.99: percentiles of a bootstrap hold it in 26 % and 62 % of cases, paired differences in 88 % and 92 %."""
    rng = np.random.default_rng(n)
    population = side(np.random.default_rng(0), 3000, 3.5)
    drawn = Resamples(population.group_topics, n=2, seed=0)
    truth = [float(measure_unit(population, (i,), 0, drawn).document.value) for i in (0, 1)]
    assert 0.95 < truth[0] < 0.99
    area = difference = 0
    for i in range(400):
        found = side(rng, n, 3.5)
        drawn = Resamples(found.group_topics, n=100, seed=i)
        one, other = (measure_unit(found, (k,), 0, drawn) for k in (0, 1))
        area += bool(one.document.low <= truth[0] <= one.document.high)
        both = one.difference(other, "document")
        difference += bool(both.low <= truth[0] - truth[1] <= both.high)
    assert 0.93 <= area / 400 <= 0.995
    assert 0.93 <= difference / 400 <= 0.995


def test_an_area_of_one_may_be_less() -> None:
    """Against the equation of Newcombe's method 5, with Hanley and McNeil's Q1 and Q2, solved by scipy."""
    for area, m, n in ((1.0, 5, 25), (1.0, 8, 40), (0.9, 5, 25), (0.62, 20, 100)):

        def excess(x: float, sign: int, area: float = area, m: int = m, n: int = n) -> float:
            q1, q2 = x / (2 - x), 2 * x**2 / (1 + x)
            half = (m + n) / 2 - 1
            variance = (x * (1 - x) + half * (q1 - x**2) + half * (q2 - x**2)) / (m * n)
            return sign * (x - area) - stats.norm.ppf(0.975) * np.sqrt(variance)

        found = auroc_interval(area, m, n)
        assert found.low == pytest.approx(brentq(excess, 1e-6, area - 1e-9, args=(-1,)), abs=1e-6)
        assert found.high == pytest.approx(1.0 if area == 1 else brentq(excess, area, 1 - 1e-12, args=(1,)), abs=1e-6)
    assert 0.75 < auroc_interval(1.0, 5, 25).low < 0.8 < auroc_interval(1.0, 8, 40).low < 0.9
    assert np.isnan(auroc_interval(1.0, 1, 25).low)


@pytest.mark.parametrize("n", [5, 8])
def test_lifts_of_rare_experts_cover(n: int) -> None:
    """Two selections in a thousand: the linear part of the error alone holds the truth of other topics in 75 % and 84 %."""
    rng, topic = np.random.default_rng(n), np.repeat(np.arange(TOPICS), n)
    share = np.array([0.004, 0.001, 0.001, 0.001])
    chance = share[topic][:, None] * np.exp(rng.normal(0, 0.6, (len(topic), 2000)) - 0.18)
    selections = np.full(chance.shape, 300)
    values = rng.binomial(selections, chance) / selections
    found = log2_lift(values, topic, n_topics=TOPICS, pseudo=half_selection(selections, topic, n_topics=TOPICS))
    for t in (0, 1):
        truth = np.log2(share[t] / share.mean())
        assert 0.93 <= ((found.ci_low[t] <= truth) & (truth <= found.ci_high[t])).mean() <= 0.99
    never = values[topic == 1].sum(0) == 0
    assert never.any() and (found.ci_high[1, never] - found.ci_low[1, never] > 1).all()


def test_usage_beyond_words_covers() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        expected = 0.005 * np.exp(rng.normal(0, 0.4, (5, 1)))
        observed = rng.binomial(300, np.minimum(1.5 * expected * np.exp(rng.normal(0, 0.5, (5, 1)) - 0.125), 1)) / 300
        found = log2_ratio(observed, expected, half=0.5 / 1500)
        held.append(float(found.ci_low[0]) <= np.log2(1.5) <= float(found.ci_high[0]))
    assert 0.93 <= np.mean(held) <= 0.995


@pytest.mark.parametrize("n", [5, 12])
def test_bits_and_recall_cover(n: int) -> None:
    rng, bits, recall = np.random.default_rng(n), 0, 0
    drawn = Resamples.pooled(n, n=200, seed=0)
    for _ in range(400):
        tokens = rng.integers(90, 111, n).astype(float)
        gains = tokens * rng.gamma(4, 0.05, n)
        _, low, high = _bits(gains, tokens, drawn)
        bits += low <= 0.2 <= high
        row = RoutingPrediction(tokens * np.clip(rng.normal(0.5, 0.1, n), 0, 1), gains, tokens, np.zeros(1)).estimate(
            resamples=200
        )
        recall += row["recall_low"] <= 0.5 <= row["recall_high"]
    assert 0.925 <= bits / 400 <= 0.985 and 0.925 <= recall / 400 <= 0.985


def test_symmetric_values_have_students_interval_and_skew_stretches_its_own_side() -> None:
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    found = student_interval(Resamples.pooled(5, n=40_000, seed=0).means(values), 4)
    ends = stats.ttest_1samp(values, 0).confidence_interval()
    assert found.low == pytest.approx(ends.low, rel=0.05) and found.high == pytest.approx(ends.high, rel=0.05)
    skewed = student_interval(Resamples.pooled(5, n=40_000, seed=0).means(np.exp(values)), 4)
    ends = stats.ttest_1samp(np.exp(values), 0).confidence_interval()
    assert skewed.low == pytest.approx(ends.low, rel=0.05) and skewed.high > 1.5 * ends.high


def test_ratios_agree_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    below = rng.lognormal(3, 0.3, 80)
    above = below * rng.normal(1, 0.3, 80)
    theirs = stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=4000,
        method="BCa",
        random_state=0,
    ).confidence_interval
    ours = ratio_interval(Resamples.pooled(80, n=4000, seed=0), above, below)
    assert ours.high - ours.low == pytest.approx(theirs.high - theirs.low, rel=0.1)
    assert ours.low == pytest.approx(theirs.low, abs=0.01) and ours.high == pytest.approx(theirs.high, abs=0.01)


def test_degrees_of_freedom_are_welchs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 6), rng.normal(0, 3, 15)
    ours = satterthwaite(np.array([a.var(ddof=1) / 6, b.var(ddof=1) / 15]), np.array([5.0, 14.0]))
    assert ours == pytest.approx(stats.ttest_ind(a, b, equal_var=False).df)


def test_loss_recovered_resamples_sources_not_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten sources of four equal documents each: an interval over documents would be half as wide."""
    rng = np.random.default_rng(0)
    source = np.repeat(np.arange(10), 4)
    loss = rng.normal(3.3, 0.1, 10)[source]
    monkeypatch.setattr(quality, "losses", lambda *_: loss)
    ids = tuple(np.zeros(50, dtype=int) for _ in source)
    sae = type("Sae", (), {"config": type("Config", (), {"layer": 0, "hook": "residual"})()})()
    unspliced = {"plain": np.full(40, 3.0), "zero": np.full(40, 6.0), "mean": np.full(40, 5.0)}
    by_source, by_document = (
        quality.loss_recovered(NO_MODEL, sae, LossSample(ids, (), tuple(range(40)), group), unspliced)
        for group in (source, None)
    )
    width = by_source["ce_recovered_high"] - by_source["ce_recovered_low"]
    assert width > 1.7 * (by_document["ce_recovered_high"] - by_document["ce_recovered_low"])
    assert by_source["ce_recovered"] == pytest.approx(np.mean(6 - loss) / 3)


def test_without_controls_nothing_is_confirmed_and_nothing_is_nan(tmp_path: Path) -> None:
    compare = RiseComparison(baseline(6), resamples=50, seed=0)
    rise = np.where(compare.baseline.topic == 0, 0.5, 0.0) + np.random.default_rng(0).normal(0, 0.01, TOPICS * 6)
    table = pd.DataFrame(compare.rows(Unit(0, (3,), ("topic-0",)), rise, [], "mask"))
    assert not table["confirmed"].any()
    assert set(table["confirmation"]) == {"cannot be confirmed (no control units)"}
    told = "\n".join(summary_lines(Result("ablation", table)))
    assert "no controls, cannot be confirmed" in told and "nan" not in told

    root = tmp_path / "run"
    trace = planted_trace(root / "trace", planted=(), topics=3, documents_per_topic=6, tokens=20, n_layers=2, num_experts=8)
    planted_results(trace, root / "results")
    known = Result.load(root / "results", "ablation")
    nothing = {name: np.nan for name in known.table.columns if name.startswith(("control_nats", "beyond_control"))}
    ablation = Result("ablation", known.table.assign(confirmed=False, n_controls=0, **nothing), params=known.params)
    ablation.save(root / "results")
    verdicts = Result.load(root / "results", "verdicts")
    done = complete_verdicts(verdicts, ablation=ablation)
    assert set(done.table["causal"]) <= {"cannot be confirmed (no control units)", "not tested"}
    assert not done.table["sentence"].str.contains("nan").any()
    done.save(root / "results")
    page = "".join(path.read_text(encoding="utf-8") for path in write_report(root) if path.suffix == ".html")
    assert "nothing can be confirmed" in page and "+nan" not in page and ">nan<" not in page


def test_confirmation_of_older_results_is_as_stored() -> None:
    assert confirmation({"confirmed": True, "ci_low": 0.1}) == "confirmed"
    assert confirmation({"confirmed": False, "ci_low": 0.1}) == "not confirmed"
