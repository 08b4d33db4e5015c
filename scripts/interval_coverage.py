"""Coverage of the 95 % intervals on simulated documents whose truth is known; docs/statistics.md quotes the table.

    python scripts/interval_coverage.py [--simulations 1000] [--seed 0] [--only TEXT]

Six topics of 5 to 40 documents, each its own source; where no topics are compared, so many documents in all. Documents are
over-dispersed as in `moe_probe.testing.planted`: usage is log-normal between them, 0.58 the standard deviation of the logarithm
(group effect 0.5, document effect 0.3), counts are drawn from it. Lengths are log-normal too. Every interval comes from the
function that the product calls.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from moe_probe.core.stats import Resamples, auroc_interval, half_selection, log2_lift, log2_ratio, ratio_interval
from moe_probe.features.matching.topic_units import SplitSignals, measure_unit
from moe_probe.features.spliced_loss import LossSample
from moe_probe.studies.ablation import AblationBaseline, Unit
from moe_probe.studies.ablation.rises import RiseComparison
from moe_probe.studies.compare import Estimate, from_draws

DOCUMENTS = (5, 8, 12, 20, 40)
TOPICS, HABIT, RESAMPLES = 6, 0.58, 200

#: Which intervals hold the truth: shape (n_simulations,), or (n_simulations, n_intervals) where several come at once.
Measure = Callable[[np.random.Generator, int, int], np.ndarray]


class Rows(NamedTuple):
    """Lines of the table that come from the same simulations; `decides` names the verdict that the intervals decide."""

    intervals: tuple[str, ...]
    documents: str
    measure: Measure
    decides: str = ""


def inside(low: np.ndarray, high: np.ndarray, truth: float) -> np.ndarray:
    return np.asarray((low <= truth + 1e-9) & (truth <= high + 1e-9))


def usage(
    rng: np.random.Generator,
    n: int,
    share: np.ndarray,
    *,
    columns: int,
    habit: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Usage shares of documents, their selections, (topics n, columns) each, and topics; expected shares by topic."""
    topic = np.repeat(np.arange(TOPICS), n)
    selections = np.maximum(rng.lognormal(np.log(300), 0.4, (len(topic), columns)), 40).astype(int)
    chance = share[topic][:, None] * np.exp(rng.normal(0, habit, selections.shape) - habit**2 / 2)
    return rng.binomial(selections, np.minimum(chance, 0.95)) / selections, selections, topic


def shares_of(base: float, lift: float) -> np.ndarray:
    """Shares by topic: the first has the lift over the mean over topics."""
    share = np.full(TOPICS, base)
    share[0] *= lift * (TOPICS - 1) / (TOPICS - lift)
    return share


def lift_covers(
    rng: np.random.Generator,
    n: int,
    simulations: int,
    *,
    base: float,
    lift: float,
    habit: float = HABIT,
) -> np.ndarray:
    share = shares_of(base, lift)
    values, selections, topic = usage(rng, n, share, columns=simulations, habit=habit)
    half = half_selection(selections, topic, n_topics=TOPICS)
    found = log2_lift(values, topic, n_topics=TOPICS, pseudo=half)
    return inside(found.ci_low[0], found.ci_high[0], float(np.log2(share[0] / share.mean())))


def words_cover(
    rng: np.random.Generator,
    n: int,
    simulations: int,
    *,
    share: float,
    ratio: float,
    selections: int,
) -> np.ndarray:
    """Observed usage over what words predict: both vary with the document's words, the observed one with habits besides."""
    predicted = share * np.exp(rng.normal(0, 0.4, (n, simulations)) - 0.08)
    chance = ratio * predicted * np.exp(rng.normal(0, HABIT, predicted.shape) - HABIT**2 / 2)
    drawn = rng.binomial(selections, np.minimum(chance, 0.95)) / selections
    held = []
    for i in range(simulations):
        found = log2_ratio(drawn[:, [i]], predicted[:, [i]], half=0.5 / (selections * n))
        held.append(inside(found.ci_low[0], found.ci_high[0], float(np.log2(ratio))))
    return np.array(held)


def ratio_covers(rng: np.random.Generator, n: int, simulations: int, *, shape: float) -> np.ndarray:
    """Sums over documents of a gain per token and of tokens: gains gamma (skewness 2 / root of the shape)."""
    held = []
    for i in range(simulations):
        tokens = rng.lognormal(5, 0.4, n)
        drawn = Resamples.pooled(n, n=RESAMPLES, seed=[i, n])
        found = ratio_interval(drawn, tokens * rng.gamma(shape, 1 / shape, n), tokens)
        held.append(inside(found.low, found.high, 1.0))
    return np.array(held)


def rises(rng: np.random.Generator, shape: tuple[int, ...], *, skewness: float, mean: float) -> np.ndarray:
    """Rises of the loss: gamma of a skewness about their mean (standard deviation 0.05 nats)."""
    form = 4 / skewness**2
    return mean + 0.05 * (rng.gamma(form, 1.0, shape) - form) / np.sqrt(form)


def ablation_covers(rng: np.random.Generator, n: int, simulations: int, *, skewness: float) -> np.ndarray:
    """Knock-outs: rise of 0.06 nats on the first topic, 0.01 on the others, 0.02 without either of two controls."""
    truth = {"ci": 0.06, "beyond_control": 0.04, "beyond_others": 0.05}
    topic = np.repeat(np.arange(TOPICS), n)
    names = tuple(f"topic-{t}" for t in range(TOPICS))
    held = []
    for i in range(simulations):
        sizes = np.maximum(rng.lognormal(5, 0.3, len(topic)), 8).astype(int)
        sample = LossSample(tuple(np.zeros(s, dtype=int) for s in sizes), (), tuple(range(len(sizes))))
        baseline = AblationBaseline(None, sample, np.zeros(len(topic)), topic, np.arange(len(topic)), names, None)  # type: ignore[arg-type]
        own = rises(rng, (len(topic),), skewness=skewness, mean=0.01) + 0.05 * (topic == 0)
        controls = [rises(rng, (len(topic),), skewness=skewness, mean=0.02) for _ in range(2)]
        row = RiseComparison(baseline, resamples=RESAMPLES, seed=i).rows(Unit(0, (0,), ("topic-0",)), own, controls, "mask")[
            0
        ]
        held.append([inside(row[f"{name}_low"], row[f"{name}_high"], value) for name, value in truth.items()])
    return np.array(held)


def firing(rng: np.random.Generator, n: int, apart: tuple[float, float], tokens: int = 100) -> SplitSignals:
    """Two units that are active more on the first topic, over habits of documents that they share in part."""
    topic = np.repeat(np.arange(TOPICS), n)
    common = rng.normal(size=len(topic))
    columns = []
    for distance in apart:
        habit = np.sqrt(0.3) * common + np.sqrt(0.7) * rng.normal(size=len(topic))
        rate = np.minimum(0.03 * np.exp(habit + distance * (topic == 0) + 0.2 * (topic - 2.5)), 0.95)
        active = rng.random((len(topic), tokens)) < rate[:, None]
        columns.append((active * rng.exponential(1 + rate[:, None], active.shape)).ravel())
    group = np.repeat(np.arange(len(topic)), tokens)
    return SplitSignals(group, np.repeat(topic, tokens), sparse.csr_array(np.stack(columns, axis=1)))


@cache
def true_areas(apart: tuple[float, float]) -> dict[str, np.ndarray]:
    """AUROC of the two units in the population, of documents and of tokens, from 4,000 documents a topic."""
    side = firing(np.random.default_rng(12345), 4000, apart)
    rates, topic = side.rates, side.group_topics

    def area(score: np.ndarray, own: np.ndarray) -> float:
        ranks, m = rankdata(score), int(own.sum())
        return float((ranks[own].sum() - m * (m + 1) / 2) / (m * (len(own) - m)))

    return {
        "document": np.array([area(rates[:, i], topic == 0) for i in (0, 1)]),
        "token": np.array([area(np.asarray(side.signals[:, [i]].todense()).ravel(), side.topic == 0) for i in (0, 1)]),
    }


def areas_cover(rng: np.random.Generator, n: int, simulations: int, *, apart: tuple[float, float]) -> np.ndarray:
    """Of documents and of tokens each: AUROC of the first unit, and how much it is above the second's."""
    truth = true_areas(apart)
    held = []
    for i in range(simulations):
        side = firing(rng, n, apart)
        drawn = Resamples(side.group_topics, n=RESAMPLES, seed=i)
        first, second = (measure_unit(side, (k,), 0, drawn) for k in (0, 1))
        held.append(
            [
                inside(found.low, found.high, float(value))
                for unit in ("document", "token")
                for found, value in (
                    (getattr(first, unit), truth[unit][0]),
                    (first.difference(second, unit), truth[unit][0] - truth[unit][1]),
                )
            ]
        )
    return np.array(held)


def set_covers(rng: np.random.Generator, n: int, simulations: int) -> np.ndarray:
    """AUROC of a score for the tokens of an expert, over documents with habits of their own in score and choice."""

    def areas(documents: int) -> tuple[np.ndarray, np.ndarray]:
        habit = rng.normal(0, 0.5, (documents, 1))
        chosen = rng.random((documents, 100)) < 1 / (1 + np.exp(1.5 - habit))
        score = (1.2 + rng.normal(0, 0.5, habit.shape)) * chosen + 0.3 * habit + rng.normal(size=chosen.shape)
        return chosen, score

    chosen, score = areas(20_000)
    ranks, m = rankdata(score).reshape(score.shape), int(chosen.sum())
    truth = float((ranks[chosen].sum() - m * (m + 1) / 2) / (m * (chosen.size - m)))
    held = []
    for i in range(simulations):
        chosen, score = areas(n)
        weights = Resamples.pooled(n, n=RESAMPLES, seed=i).weights
        bins = np.searchsorted(np.quantile(score, np.linspace(0, 1, 64)), score)
        hits, misses = (
            np.stack([np.bincount(b[c == k], minlength=65) for b, c in zip(bins, chosen, strict=True)])
            for k in (True, False)
        )
        above, below = weights @ hits, weights @ misses
        draws = (above * (np.cumsum(below, 1) - below / 2)).sum(1) / (above.sum(1) * below.sum(1))
        found = auroc_interval(float(draws[0]), n, n, draws=draws)
        held.append(inside(found.low, found.high, truth))
    return np.array(held)


def comparison_covers(rng: np.random.Generator, n: int, simulations: int, *, paired: bool) -> np.ndarray:
    """Difference of the log2 lifts of an expert in two runs, 3 and 2, on the same documents or on others."""
    share = [shares_of(0.06, 3.0), shares_of(0.06, 2.0)]
    truth = float(np.subtract(*(np.log2(s[0] / s.mean()) for s in share[::-1])))
    topic = np.repeat(np.arange(TOPICS), n)
    held = []
    for i in range(simulations):
        common, draws = rng.normal(0, HABIT, len(topic)), []
        drawn = [Resamples(topic, n=RESAMPLES, seed=[i, 0 if paired else k]) for k in (0, 1)]
        for k in (0, 1):
            habit = (
                np.sqrt(0.7) * common + np.sqrt(0.3) * rng.normal(0, HABIT, len(topic))
                if paired
                else (rng.normal(0, HABIT, len(topic)))
            )
            values = rng.binomial(300, np.minimum(share[k][topic] * np.exp(habit - HABIT**2 / 2), 0.95)) / 300
            means = np.stack([drawn[k].means(values, np.flatnonzero(topic == t)) for t in range(TOPICS)])
            draws.append(np.log2((means[0] + 1 / 600 / n) / (means.mean(0) + 1 / 600 / n)))
        found = from_draws(*(Estimate(x[0], x[1:], n - 1) for x in draws), paired=paired)
        held.append(inside(found.ci_low, found.ci_high, truth))
    return np.array(held)


def decoding_covers(rng: np.random.Generator, n: int, simulations: int) -> np.ndarray:
    """Difference of the shares of documents that two layers decode, 0.7 and 0.6, the same documents easy for both."""
    topic = np.repeat(np.arange(TOPICS), n)
    held = []
    for i in range(simulations):
        easy = rng.random(len(topic))
        right = [np.where(rng.random(len(topic)) < 0.5, easy, rng.random(len(topic))) < p for p in (0.6, 0.7)]
        drawn = Resamples(topic, n=RESAMPLES, seed=i)
        a, b = (drawn.means(r.astype(float)) for r in right)
        found = from_draws(*(Estimate(x[0], x[1:], len(topic) - TOPICS) for x in (a, b)), paired=True)
        held.append(inside(found.ci_low, found.ci_high, 0.1))
    return np.array(held)


def rows() -> list[Rows]:
    per_topic, altogether = "a topic", "in all"
    out = [
        Rows((f"log2 lift, {text}",), per_topic, partial(lift_covers, base=base, lift=lift, habit=habit), "expert, group")
        for text, base, lift, habit in (
            ("6 % of selections, lift 1", 0.06, 1.0, HABIT),
            ("6 %, lift 3", 0.06, 3.0, HABIT),
            ("0.2 %, lift 1", 0.002, 1.0, HABIT),
            ("0.2 %, lift 3", 0.002, 3.0, HABIT),
            ("1 %, lift 3, documents differ more (1.0)", 0.01, 3.0, 1.0),
        )
    ]
    out += [
        Rows((f"log2 usage over expected, {text}",), per_topic, partial(words_cover, share=s, ratio=r, selections=300))
        for text, s, r in (("6 %, ratio 1.3", 0.06, 1.3), ("0.5 %, ratio 1", 0.005, 1.0))
    ]
    out.append(
        Rows(
            ("log2 lift of a kind of token (1 token in 10)",),
            altogether,
            partial(words_cover, share=0.06, ratio=2.0, selections=30),
        )
    )
    out += [
        Rows(
            (f"bits, recall, loss recovered: ratio of sums, skewness {text}",),
            altogether,
            partial(ratio_covers, shape=shape),
        )
        for text, shape in (("1", 4.0), ("2", 1.0))
    ]
    out += [
        Rows(
            tuple(
                f"ablation: {text}, skewness {skewness:g}"
                for text in ("rise", "rise less controls", "rise less other topics")
            ),
            per_topic,
            partial(ablation_covers, skewness=skewness),
            "confirmed",
        )
        for skewness in (1.0, 2.0)
    ]
    for apart in ((1.0, 0.5), (2.2, 1.0), (3.4, 2.2)):
        names = tuple(
            name
            for unit, (one, other) in true_areas(apart).items()
            for name in (f"AUROC of {unit}s, {one:.3f}", f"AUROC of {unit}s, {one:.3f} less {other:.3f}")
        )
        out.append(Rows(names, per_topic, partial(areas_cover, apart=apart), "feature only"))
    out.append(Rows(("AUROC of a set of features for an expert's tokens",), altogether, set_covers))
    out += [
        Rows((f"compare: difference of log2 lifts, {text}",), per_topic, partial(comparison_covers, paired=paired))
        for text, paired in (("same documents", True), ("other documents", False))
    ]
    return [*out, Rows(("compare: difference of decoding accuracy",), per_topic, decoding_covers)]


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="lines whose name has this text, and those of the same simulations")
    asked = parser.parse_args()
    print("| interval | decides | documents | " + " | ".join(map(str, DOCUMENTS)) + " |\n|" + "---|" * (3 + len(DOCUMENTS)))
    for place, lines in enumerate(rows()):
        if not any(asked.only in name for name in lines.intervals):
            continue
        rates = np.array(
            [
                lines.measure(np.random.default_rng([asked.seed, place, n]), n, asked.simulations)
                .reshape(asked.simulations, -1)
                .mean(0)
                for n in DOCUMENTS
            ]
        )
        for i, name in enumerate(lines.intervals):
            decides = "" if "tokens" in name else lines.decides
            print(
                f"| {name} | {decides} | {lines.documents} | " + " | ".join(f"{r:.3f}" for r in rates[:, i]) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
