"""Error rates of the test of a tree against subjects, where the truth is known; docs/statistics.md quotes the table.

    python scripts/tree_error_rates.py [--simulations 400]

72 documents of 4 topics, 3 subtopics each. Noise: labels at random, and every node's features have a few documents of their
own, so that siblings fire together. Topical, hung at random: every feature has a topic, the tree has nothing to do with it.
Along subjects: siblings have one topic, 3 times as often as elsewhere. By number of children: as many nodes along subjects, how
many are found, how many the test is said to find, and how many are judged not to be of one subject, which all are.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from moe_probe.features.tree import (
    Ancestors,
    Labelling,
    Subjects,
    node_power,
    parts_of_subject,
    purity,
    sibling_pairs,
    tree_distance,
)

TOPICS, SUBTOPICS, DOCUMENTS, NODES, PARTS = 4, 3, 6, 20, 3
GROUPS = TOPICS * SUBTOPICS * DOCUMENTS
TOPIC = Labelling(np.repeat(np.arange(TOPICS), SUBTOPICS * DOCUMENTS), TOPICS)
SUBTOPIC = Labelling(np.repeat(np.arange(TOPICS * SUBTOPICS), DOCUMENTS), TOPICS * SUBTOPICS)
PARENT = np.repeat(np.arange(NODES), PARTS)


def rates_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Firing rates, shape (n_groups, n_features)."""
    if kind == "noise":
        shared = rng.gamma(0.3, 1.0, (GROUPS, NODES))[:, PARENT]
        return np.asarray(shared * rng.gamma(1.0, 0.02, (GROUPS, len(PARENT))) + 1e-4)
    topic = PARENT % TOPICS if kind == "tree" else rng.permutation(PARENT % TOPICS)
    return rng.gamma(2.0, 0.01, (GROUPS, len(PARENT))) * (1 + 2 * (TOPIC.codes[:, None] == topic))


def simulate(kind: str, seed: int, permutations: int) -> Counter[str]:
    """One tree: what was claimed of it."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(GROUPS) if kind == "noise" else np.arange(GROUPS)
    rates = rates_of(kind, rng)
    made = Subjects(rates, (rates.sum(0) * 100).astype(int), TOPIC.permuted(order), SUBTOPIC.permuted(order))
    edges = pd.DataFrame({"parent": PARENT, "child": np.arange(len(PARENT)), "relation": "part", "weight": 1.0})
    pairs = sibling_pairs(edges, made.counts, seed=seed)
    if pairs is None:
        raise AssertionError("every node has three parts")
    found = purity(made, pairs, permutations=permutations, seed=seed)
    far = tree_distance(made, Ancestors(PARENT, PARENT // 5), permutations=permutations, seed=seed, most=200)
    parts = parts_of_subject(made, pairs, pairs.parents % TOPICS, permutations=permutations, seed=seed)
    return Counter(
        {
            "tree": int(found.tree.p_value <= 0.05),
            "distance": int(far is not None and far.test.p_value <= 0.05),
            "nodes": int((found.p_value <= 0.05).sum()),
            "any node": int((found.q_value <= 0.05).any()),
            "nodes found": int((found.q_value <= 0.05).sum()),
            "parts": int((parts <= 0.05).sum()),
        }
    )


def nodes_of(children: int, seed: int) -> Counter[str]:
    """One tree along subjects of twice as many nodes of so many children: found, expected to be, wrongly judged, left open."""
    rng = np.random.default_rng(seed)
    parent = np.repeat(np.arange(2 * NODES), children)
    rates = rng.gamma(2.0, 0.01, (GROUPS, len(parent))) * (1 + 2 * (TOPIC.codes[:, None] == parent % TOPICS))
    made = Subjects(rates, (rates.sum(0) * 100).astype(int), TOPIC, SUBTOPIC)
    edges = pd.DataFrame({"parent": parent, "child": np.arange(len(parent)), "relation": "part", "weight": 1.0})
    pairs = sibling_pairs(edges, made.counts, seed=seed)
    if pairs is None:
        raise AssertionError("every node has two parts or more")
    found = purity(made, pairs, permutations=99, seed=seed)
    power, passed = node_power(made, pairs, found, seed=seed), found.q_value <= 0.05
    return Counter(
        {
            "nodes": len(passed),
            "found": int(passed.sum()),
            "wrong": int((power.judged & ~passed).sum()),
            "open": int((~power.judged).sum()),
            "power": round(float(np.nan_to_num(power.power).sum())),
        }
    )


def rate(k: int, n: int) -> str:
    """Share with its 95 % interval (Clopper-Pearson)."""
    low, high = binomtest(k, n).proportion_ci(0.95)
    return f"{k / n:.3f} [{low:.3f}, {high:.3f}] ({k:,} of {n:,})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=400)
    n = parser.parse_args().simulations
    print("| simulated | claim | rate [95 %] |\n|---|---|---|")
    for kind, name, permutations in (
        ("noise", "noise", 99),
        ("hung", "topical, hung at random", 99),
        ("hung", "topical, hung at random, 20 permutations", 20),
    ):
        found = sum((simulate(kind, s, permutations) for s in range(n)), Counter())
        for claim, text in (
            ("tree", "the tree follows topics (p ≤ 0.05)"),
            ("distance", "distances agree (p ≤ 0.05)"),
            ("any node", "any node of one subject (q ≤ 0.05)"),
        ):
            print(f"| {name} | {text} | {rate(found[claim], n)} |")
        print(f"| {name} | a node (p ≤ 0.05, uncorrected) | {rate(found['nodes'], n * NODES)} |")
        print(f"| {name} | a node's parts are subtopics (p ≤ 0.05, uncorrected) | {rate(found['parts'], n * NODES)} |")
    found = sum((simulate("tree", s, 99) for s in range(n // 4)), Counter())
    print(f"| along subjects | power: the tree follows topics | {rate(found['tree'], n // 4)} |")
    print(f"| along subjects | power: a node of one subject (q ≤ 0.05) | {rate(found['nodes found'], n // 4 * NODES)} |")
    print(
        "\n| children of a node | found | power said | judged not to be of one subject | could not be judged |\n"
        "|---|---|---|---|---|"
    )
    for children in (2, 3, 4, 5, 8):
        found = sum((nodes_of(children, s) for s in range(n // 4)), Counter())
        total = found["nodes"]
        print(
            f"| {children} | {rate(found['found'], total)} | {found['power'] / total:.2f} | {rate(found['wrong'], total)} | "
            f"{found['open'] / total:.3f} |"
        )


if __name__ == "__main__":
    main()
