"""Error rates of the verdicts on simulated traces whose truth is known; docs/statistics.md quotes the table.

    python scripts/error_rates.py [--simulations 200]

Documents are over-dispersed (group effect 0.5, document effect 0.3 on the expert logits), top-2 of 16, 3 layers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from scipy.stats import binomtest

from moe_probe.alignment import expert_topics
from moe_probe.clusters import expert_groups
from moe_probe.explain import expected_usage, topic_beyond_vocabulary
from moe_probe.testing import PlantedExpert, planted_trace
from moe_probe.verdicts import Rules, topic_verdicts

TOPIC = (PlantedExpert(0, 1, "topic", 0), PlantedExpert(2, 4, "topic", 3))
RIVALS = (PlantedExpert(0, 7, "token", 1), PlantedExpert(1, 2, "token", 2), PlantedExpert(1, 5, "position"))
#: Thresholds of effect taken away: what is left are the tests.
TESTS_ONLY = Rules(min_log2_lift=0.0, min_lower_bound=0.0, min_share=0.0, min_log2_beyond=0.0)


def simulate(seed: int, folder: Path, planted: tuple[PlantedExpert, ...], *, documents: int, lift: float) -> Counter[str]:
    """One trace: what was claimed, by kind of claim."""
    trace = planted_trace(folder / str(seed), planted=planted, topics=6, documents_per_topic=documents, tokens=150,
                          lift=lift, seed=seed)
    usage = expert_topics(trace, permutations=499, seed=seed)
    expected = expected_usage(trace, seed=seed)
    beyond = topic_beyond_vocabulary(trace, usage=expected, permutations=499, seed=seed)
    groups = expert_groups(trace, expected=expected, permutations=499, seed=seed)
    strict = topic_verdicts(usage, beyond=beyond, groups=groups, rules=Rules()).table
    tests = topic_verdicts(usage, beyond=beyond, rules=TESTS_ONLY).table
    true = {(p.layer, p.expert, f"topic-{p.target}") for p in planted if p.kind == "topic"}
    called = {(r.layer, r.expert, r.topic) for r in strict.itertuples() if r.verdict == "expert"}
    by_tests = {(r.layer, r.expert, r.topic) for r in tests.itertuples() if r.verdict == "expert"}
    table = usage.table
    hits = [bool(table[(table["layer"] == layer) & (table["expert"] == expert) & (table["topic"] == topic)][
        "significant"].iloc[0]) for layer, expert, topic in true]
    rivals = {(p.layer, p.expert) for p in planted if p.kind != "topic"}
    wrong_groups = strict[(strict["verdict"] == "group") & ~strict["topic"].isin({t for _, _, t in true})]
    claims = table[table["significant"]]
    return Counter({
        "significant": int(len(claims) > 0), "familywise": int((table["p_familywise"] <= 0.05).any()),
        "replicated": int(table["replicated"].any()), "beyond": int(beyond.table["beyond"].any()),
        "beyond_rival": int(any((r.layer, r.expert) in rivals for r in beyond.table[beyond.table["beyond"]].itertuples())),
        "group_test": int(groups.table["replicated"].any()), "group": int(len(wrong_groups) > 0),
        "wrong_expert": int(bool(called - true)), "wrong_by_tests": int(any(c[:2] in rivals for c in by_tests)),
        "found": sum(hits), "verdict": len(called & true), "planted": len(true)})


def rate(k: int, n: int) -> str:
    """Share with its 95 % interval (Clopper-Pearson)."""
    low, high = binomtest(k, n).proportion_ci(0.95)
    return f"{k / n:.3f} [{low:.3f}, {high:.3f}] ({k} of {n})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=200)
    n = parser.parse_args().simulations
    with tempfile.TemporaryDirectory() as folder:
        null = sum((simulate(s, Path(folder) / "null", (), documents=20, lift=2.0) for s in range(n)), Counter())
        rival = sum((simulate(s, Path(folder) / "rival", RIVALS, documents=40, lift=2.5) for s in range(n // 2)), Counter())
        power = sum((simulate(s, Path(folder) / "power", TOPIC, documents=40, lift=2.0) for s in range(n // 4)), Counter())
    print("| simulated | claim | rate [95 %] |\n|---|---|---|")
    for name, text in (("significant", "any pair of expert and topic significant"),
                       ("familywise", "any pair with family-wise p ≤ 0.05"), ("replicated", "any pair replicated"),
                       ("beyond", "any pair beyond vocabulary"), ("group_test", "any group of experts replicated"),
                       ("wrong_expert", "any verdict \"expert\"")):
        print(f"| noise | {text} | {rate(null[name], n)} |")
    for name, text in (("beyond_rival", "a token or position expert beyond vocabulary"),
                       ("wrong_by_tests", "one called topic expert by the tests alone, without thresholds of effect"),
                       ("wrong_expert", "any verdict \"expert\""), ("group", "any verdict \"group\"")):
        print(f"| token and position experts, lift 2.5 | {text} | {rate(rival[name], n // 2)} |")
    for name, text in (("found", "power: significant"), ("verdict", "called \"expert\" (lift measured 2 or more)")):
        print(f"| topic experts, lift 2, 40 documents a topic | {text} | {rate(power[name], power['planted'])} |")


if __name__ == "__main__":
    main()
