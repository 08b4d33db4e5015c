"""How often a comparison of two runs claims what is not there: two traces of pure noise, paired or not.

python scripts/compare_error_rates.py --simulations 200
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from scipy.stats import binomtest

from moe_probe.alignment import expert_topics
from moe_probe.compare import Side, align_experts, compare_layers, compare_topics, pair_sides, verdict_changes
from moe_probe.compare.verdicts import compare_verdicts
from moe_probe.testing import null_trace
from moe_probe.trace import Trace
from moe_probe.usage import layer_usage
from moe_probe.verdicts import topic_verdicts

SHAPE = {"topics": 6, "documents_per_topic": 20, "tokens": 150, "n_layers": 3, "num_experts": 16, "group_size": 1}


def side(trace: Trace, name: str, *, corpus: str, seed: int) -> Side:
    """Noise analysed as a run would be; one `corpus` hash makes two of them share their documents."""
    manifest = trace.manifest.model_copy(update={"corpus": trace.manifest.corpus.model_copy(update={"hash": corpus})})
    topics = expert_topics(trace, permutations=199, seed=seed)
    results = (topics, layer_usage(trace, permutations=199, seed=seed), topic_verdicts(topics))
    return Side(name, manifest, {r.name: r for r in results}, trace=trace)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=200)
    n = parser.parse_args().simulations
    hits = dict.fromkeys([(p, c) for p in ("paired", "independent") for c in (
        "an interval of a topic misses 0", "any topic beyond chance", "an interval of a layer misses 0",
        "any layer beyond chance", "any verdict changed", "any layer aligned (Bonferroni)")], (0, 0))

    def count(paired: str, claim: str, found: int, of: int) -> None:
        before = hits[paired, claim]
        hits[paired, claim] = (before[0] + found, before[1] + of)

    for i in range(n):
        paired = "paired" if i % 2 else "independent"
        with tempfile.TemporaryDirectory() as folder:
            a, b = (side(null_trace(Path(folder) / name, seed=10_000 + 2 * i + k, **SHAPE), name, seed=i,
                         corpus="same" if paired == "paired" else name) for k, name in enumerate("ab"))
            pairing = pair_sides(a, b)
            assert pairing.paired == (paired == "paired")
            topics = compare_topics(a, b, pairing=pairing, seed=i)
            layers = compare_layers(a, b, pairing=pairing, seed=i)
            bits = layers.table[layers.table["measure"].isin(["decode_accuracy", "mi_bits"])]  # loads do differ
            count(paired, "an interval of a topic misses 0", int((topics.table["p_value"] < 0.05).sum()), len(topics.table))
            count(paired, "any topic beyond chance", int(topics.table["beyond"].any()), 1)
            count(paired, "an interval of a layer misses 0", int((bits["p_value"] < 0.05).sum()), len(bits))
            count(paired, "any layer beyond chance", int(bits["beyond"].any()), 1)
            count(paired, "any verdict changed",
                  int(verdict_changes(a, b, compare_verdicts([a, b]), topics).table["changed"].any()), 1)
            if pairing.paired:
                found = align_experts(a, b, pairing=pairing, seed=i, permutations=99).layers.table
                mine = found[found["measure"] == "documents"]
                count(paired, "any layer aligned (Bonferroni)", int((mine["p_value"] <= 0.05 / len(mine)).any()), 1)
    print("| noise, documents | claim | rate [95 %] |\n|---|---|---|")
    for (paired, claim), (found, of) in hits.items():
        if of:
            ends = binomtest(found, of).proportion_ci()
            print(f"| {paired} | {claim} | {found / of:.3f} [{ends.low:.3f}, {ends.high:.3f}] ({found} of {of}) |")


if __name__ == "__main__":
    main()
