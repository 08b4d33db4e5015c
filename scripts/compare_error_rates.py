"""Error rates of comparisons on simulated runs whose truth is known; docs/statistics.md quotes the table.

    python scripts/compare_error_rates.py [--simulations 200]

Noise: two traces without any topic expert, on the same documents or on others. Coverage: samples of 20 documents a topic from
a population of 500 whose lifts are known, one expert planted at lift 3 in one run and 2 in the other.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from moe_probe.core.stats import GroupUsage, Resamples, group_usage
from moe_probe.experts.topics import expert_topics
from moe_probe.experts.usage import layer_usage
from moe_probe.recording.trace import Trace
from moe_probe.studies.compare import (
    ComparedRun,
    ComparisonSettings,
    Estimate,
    align_experts,
    compare_layers,
    compare_topics,
    compare_verdicts,
    from_draws,
    pair_runs,
    verdict_changes,
)
from moe_probe.studies.verdicts import topic_verdicts
from moe_probe.testing import PlantedExpert, null_trace, planted_routing

SHAPE = {"topics": 6, "documents_per_topic": 20, "tokens": 150, "n_layers": 3, "num_experts": 16, "group_size": 1}


def side(trace: Trace, name: str, *, corpus: str, seed: int) -> ComparedRun:
    """Noise analysed as a run would be; one `corpus` hash makes two of them share their documents."""
    manifest = trace.manifest.model_copy(update={"corpus": trace.manifest.corpus.model_copy(update={"hash": corpus})})
    topics = expert_topics(trace, permutations=199, seed=seed)
    results = (topics, layer_usage(trace, permutations=199, seed=seed), topic_verdicts(topics))
    return ComparedRun(name, manifest, {r.name: r for r in results}, trace=trace)


def lifts(groups: GroupUsage, drawn: Resamples, column: int) -> np.ndarray:
    """log2 lift of one expert for the first topic, for every resample."""
    means = [drawn.means(groups.shares[:, column], np.flatnonzero(groups.topic == t)) for t in range(len(groups.topics))]
    return np.log2(means[0] / np.mean(means, axis=0))


def coverage(n: int) -> dict[str, tuple[int, int]]:
    """How many intervals of the difference of a planted expert's lifts hold the population's, paired and not."""
    whole = [
        group_usage(
            planted_routing(
                planted=(PlantedExpert(0, 1, "topic", 0),),
                lift=lift,
                documents_per_topic=500,
                tokens=100,
                n_layers=1,
                seed=4,
            ).usage()
        )
        for lift in (3.0, 2.0)
    ]
    truth = [float(lifts(g, Resamples(g.topic, n=0, seed=0), 1)[0]) for g in whole]
    rng, held = np.random.default_rng(0), {"paired": 0, "independent": 0}
    for i in range(n):
        for kind in held:
            rows = [
                np.concatenate([rng.choice(np.flatnonzero(whole[0].topic == t), 20, replace=False) for t in range(6)])
                for _ in range(2)
            ]
            parts = [g.select(rows[0 if kind == "paired" else k]) for k, g in enumerate(whole)]
            draws = [
                lifts(g, Resamples(g.topic, n=1000, seed=[i, 0 if kind == "paired" else k]), 1) for k, g in enumerate(parts)
            ]
            found = from_draws(*(Estimate(x[0], x[1:], 19) for x in draws), paired=kind == "paired")
            held[kind] += found.ci_low <= truth[1] - truth[0] <= found.ci_high
    return {kind: (k, n) for kind, k in held.items()}


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=200)
    n = parser.parse_args().simulations
    hits = dict.fromkeys(
        [
            (p, c)
            for p in ("paired", "independent")
            for c in (
                "an interval of a topic misses 0",
                "any topic beyond chance",
                "an interval of a layer misses 0",
                "share of false among layers beyond chance",
                "any verdict changed",
                "any layer aligned (Bonferroni)",
            )
        ],
        (0, 0),
    )

    def count(paired: str, claim: str, found: int, of: int) -> None:
        before = hits[paired, claim]
        hits[paired, claim] = (before[0] + found, before[1] + of)

    for i in range(n):
        paired = "paired" if i % 2 else "independent"
        with tempfile.TemporaryDirectory() as folder:
            a, b = (
                side(
                    null_trace(Path(folder) / name, seed=10_000 + 2 * i + k, **SHAPE),
                    name,
                    seed=i,
                    corpus="same" if paired == "paired" else name,
                )
                for k, name in enumerate("ab")
            )
            pairing = pair_runs(a, b)
            assert pairing.paired == (paired == "paired")
            topics = compare_topics(a, b, pairing=pairing, settings=ComparisonSettings(seed=i))
            layers = compare_layers(a, b, pairing=pairing, settings=ComparisonSettings(seed=i))
            bits = layers.table[
                layers.table["measure"].isin(["decode_accuracy", "mi_bits"])
            ]  # the loads of two noises do differ
            count(paired, "an interval of a topic misses 0", int((topics.table["p_value"] < 0.05).sum()), len(topics.table))
            count(paired, "any topic beyond chance", int(topics.table["beyond"].any()), 1)
            count(paired, "an interval of a layer misses 0", int((bits["p_value"] < 0.05).sum()), len(bits))
            count(
                paired,
                "share of false among layers beyond chance",
                int(bits["beyond"].sum()),
                int(layers.table["beyond"].sum()),
            )
            count(
                paired,
                "any verdict changed",
                int(verdict_changes(a, b, compare_verdicts([a, b]), topics).table["changed"].any()),
                1,
            )
            if pairing.paired:
                found = align_experts(
                    a, b, pairing=pairing, settings=ComparisonSettings(seed=i, permutations=99)
                ).layers.table
                mine = found[found["measure"] == "documents"]
                count(paired, "any layer aligned (Bonferroni)", int((mine["p_value"] <= 0.05 / len(mine)).any()), 1)
    hits |= {
        (kind, "an interval of a planted lift's difference holds the truth"): found
        for kind, found in coverage(5 * n).items()
    }
    print("| documents | claim | rate [95 %] |\n|---|---|---|")
    for (paired, claim), (found, of) in hits.items():
        if of:
            ends = binomtest(found, of).proportion_ci()
            print(f"| {paired} | {claim} | {found / of:.3f} [{ends.low:.3f}, {ends.high:.3f}] ({found} of {of}) |")


if __name__ == "__main__":
    main()
