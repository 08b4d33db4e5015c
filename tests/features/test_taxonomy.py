"""Tests of a tree against topics: planted trees are detected, and without one the error rate is the nominal one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moe_probe.core.results import Result
from moe_probe.features.tree import (
    KINDS,
    UNJUDGED,
    Ancestors,
    Labelling,
    NodePower,
    SameLabel,
    Subjects,
    TreeSettings,
    bundled,
    kind_of_node,
    node_power,
    parts_of_subject,
    purity,
    sibling_pairs,
    tree_distance,
)
from moe_probe.features.tree.nulls import rate_strata, shuffled_within
from moe_probe.report.sections.subjects import human_lines

TOPICS, SUBTOPICS, DOCUMENTS = 4, 3, 6
GROUPS = TOPICS * SUBTOPICS * DOCUMENTS
TOPIC = Labelling(np.repeat(np.arange(TOPICS), SUBTOPICS * DOCUMENTS), TOPICS)
SUBTOPIC = Labelling(np.repeat(np.arange(TOPICS * SUBTOPICS), DOCUMENTS), TOPICS * SUBTOPICS)


def by_hand(rates: np.ndarray, codes: np.ndarray, i: int, j: int) -> float:
    """Compute the chance of one label: draw a label, a group of it and a token, twice, from different groups."""
    weight = 1 / np.bincount(codes)[codes]
    p, q = (weight * rates[:, f] / (weight * rates[:, f]).sum() for f in (i, j))
    chance = np.outer(p, q) * ~np.eye(len(codes), dtype=bool)
    return float((chance * (codes[:, None] == codes)).sum() / chance.sum())


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_same_label_is_what_drawing_by_hand_gives(seed: int, even: bool) -> None:
    rng = np.random.default_rng(seed)
    rates = rng.random((12, 5)) * (rng.random((12, 5)) < 0.7) + 0.01
    codes = np.repeat([0, 1, 2], 4) if even else np.repeat([0, 1, 2], [2, 3, 7])
    same = SameLabel(rates, Labelling(codes, 3))
    first, second = np.triu_indices(5)
    expected = [by_hand(rates, codes, i, j) for i, j in zip(first.tolist(), second.tolist(), strict=True)]
    assert same.of(first, second) == pytest.approx(expected, abs=2e-4)
    assert same.matrix()[first, second] == pytest.approx(expected, abs=2e-4)
    other = Labelling(rng.permutation(codes), 3)
    expected = [by_hand(rates, other.codes, i, j) for i, j in zip(first.tolist(), second.tolist(), strict=True)]
    assert same.of(first, second, other) == pytest.approx(expected, abs=2e-4)


def test_two_features_of_one_document_share_no_subject() -> None:
    rates = np.zeros((4, 2))
    rates[0] = 1
    assert SameLabel(rates, Labelling(np.array([0, 0, 1, 1]), 2)).of(np.array([0]), np.array([1])) == pytest.approx(0.5)


def edges_of(parent: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"parent": parent, "child": np.arange(len(parent)), "relation": "part", "weight": 1.0})


def subjects(rates: np.ndarray, seed: int | None = None) -> Subjects:
    """Combine rates with the planted labels, or with labels permuted over groups."""
    order = np.arange(GROUPS) if seed is None else np.random.default_rng(seed).permutation(GROUPS)
    return Subjects(rates, (rates.sum(0) * 100).astype(int), TOPIC.permuted(order), SUBTOPIC.permuted(order))


def planted(*, siblings_alike: bool, seed: int = 0, by_parts: bool = False) -> tuple[Subjects, np.ndarray]:
    """Draw features of one topic each (and one subtopic); siblings are of one topic, or placed at random."""
    rng = np.random.default_rng(seed)
    topic = np.repeat(np.arange(TOPICS), 15)
    part = np.tile(np.arange(SUBTOPICS), 20) + SUBTOPICS * topic
    raised = 1 + 6 * (TOPIC.codes[:, None] == topic)
    if by_parts:
        raised = raised * (1 + 6 * (SUBTOPIC.codes[:, None] == part))
    rates = rng.gamma(2.0, 0.01, (GROUPS, len(topic))) * raised
    parent = np.repeat(np.arange(20), 3) if siblings_alike else rng.permutation(np.repeat(np.arange(20), 3))
    return subjects(rates), parent


def test_a_tree_along_subjects_is_found() -> None:
    made, parent = planted(siblings_alike=True)
    pairs = sibling_pairs(edges_of(parent), made.counts)
    assert pairs is not None and len(pairs.parents) == 20
    tested = purity(made, pairs, permutations=199)
    assert tested.tree.p_value == 0.005 and tested.tree.observed > tested.tree.expected + 0.15
    assert tested.shared == pytest.approx(1, abs=0.1) and (tested.q_value <= 0.05).mean() > 0.8
    far = tree_distance(made, Ancestors(parent, parent // 5), permutations=99)
    assert far is not None and far.test.p_value == 0.01 and far.siblings < far.strangers


def test_randomly_placed_topical_features_are_no_tree_of_subjects() -> None:
    """Every feature is about a topic; the tree is not."""
    results = []
    for seed in range(40):
        made, parent = planted(siblings_alike=False, seed=seed)
        pairs = sibling_pairs(edges_of(parent), made.counts, seed=seed)
        assert pairs is not None
        results.append(purity(made, pairs, permutations=99, seed=seed))
    rejected = sum(result.tree.p_value <= 0.05 for result in results)
    assert rejected <= stats.binom.ppf(0.995, len(results), 0.05)
    assert np.mean([(result.q_value <= 0.05).any() for result in results]) <= 0.2


def test_the_false_positive_rate_is_nominal() -> None:
    """Labels are random; siblings share documents, whatever these are about: the test must not detect a subject."""
    p_values, distances = [], []
    for seed in range(150):
        rng = np.random.default_rng(1000 + seed)
        parent = np.repeat(np.arange(12), 3)
        shared = rng.gamma(0.3, 1.0, (GROUPS, 12))[:, parent]  # every node has its own few documents
        made = subjects(shared * rng.gamma(1.0, 0.02, (GROUPS, 36)) + 1e-4, seed=seed)
        pairs = sibling_pairs(edges_of(parent), made.counts, seed=seed)
        assert pairs is not None
        p_values.append(purity(made, pairs, permutations=39, seed=seed).tree.p_value)
        far = tree_distance(made, Ancestors(parent, parent // 4), permutations=39, seed=seed, most=60)
        assert far is not None
        distances.append(far.test.p_value)
    low, high = stats.binom.ppf([0.005, 0.995], 150, 0.05)
    for rejected in (sum(p <= 0.05 for p in p_values), sum(p <= 0.05 for p in distances)):
        assert rejected <= high, rejected
    assert low <= sum(p <= 0.05 for p in p_values)  # and the test is not idle


def test_rounding_is_no_evidence() -> None:
    """A tree of two features has one arrangement: every permutation gives the observed value again."""
    for seed in range(20):
        made = subjects(np.random.default_rng(seed).gamma(2.0, 0.01, (GROUPS, 2)), seed=seed)
        pairs = sibling_pairs(edges_of(np.array([0, 0])), made.counts, seed=seed)
        assert pairs is not None
        tested = purity(made, pairs, permutations=20, seed=seed)
        assert tested.tree.p_features == 1 and (tested.p_value == 1).all()


def test_pairs_that_are_all_equally_far_apart_are_no_evidence() -> None:
    """Every feature fires in one and the same document: nothing is known of any pair."""
    rates = np.zeros((GROUPS, 12))
    rates[0] = 0.1
    far = tree_distance(subjects(rates), Ancestors(np.repeat(np.arange(4), 3), np.repeat([0, 1], 6)), permutations=20)
    assert far is not None and np.isnan(far.test.observed) and far.test.p_value == 1


@pytest.mark.parametrize("permutations", [20, 99])
def test_few_permutations_detect_no_nodes(permutations: int) -> None:
    """Randomly placed topical features: a twentieth of the nodes' p-values is below 0.05, and no q-value."""
    p_values, any_node = [], 0
    for seed in range(25):
        made, parent = planted(siblings_alike=False, seed=200 + seed)
        pairs = sibling_pairs(edges_of(parent), made.counts, seed=seed)
        assert pairs is not None
        tested = purity(made, pairs, permutations=permutations, seed=seed)
        p_values += list(tested.p_value)
        any_node += bool((tested.q_value <= 0.05).any())
    assert (np.array(p_values) <= 0.05).mean() <= stats.binom.ppf(0.995, len(p_values), 0.05) / len(p_values)
    assert any_node <= stats.binom.ppf(0.995, 25, 0.05)


def test_children_that_divide_a_topic_are_detected() -> None:
    apart, parent = planted(siblings_alike=True, by_parts=True)
    alike, _ = planted(siblings_alike=True)
    for made, divided in ((apart, True), (alike, False)):
        pairs = sibling_pairs(edges_of(parent), made.counts)
        assert pairs is not None
        p = parts_of_subject(made, pairs, pairs.parents // 5, permutations=199)
        assert ((p <= 0.05).mean() > 0.9) if divided else ((p <= 0.05).mean() < 0.25)


def test_kinds_of_nodes() -> None:
    assert kind_of_node(0.01, 0.01, ["a", "a"], alpha=0.05) == "one subject, by its parts"
    assert kind_of_node(0.01, float("nan"), ["a", "b"], alpha=0.05) == "one subject"
    assert kind_of_node(0.2, float("nan"), ["a", "b", ""], alpha=0.05) == "several subjects"
    assert kind_of_node(0.2, 0.01, ["a", "a", ""], alpha=0.05) == "no subject"
    assert kind_of_node(0.2, 0.01, ["a", "b", ""], alpha=0.05, judged=False) == UNJUDGED == "could not be judged"
    assert kind_of_node(0.01, 0.2, ["a", "b", ""], alpha=0.05, judged=False) == "one subject"


def tree_of(
    children: int, *, alike: bool, seed: int, raised: float = 6.0, shape: float = 2.0
) -> tuple[Subjects, np.ndarray]:
    """Draw forty nodes of so many features of one topic each; siblings are of one topic, or placed at random."""
    rng = np.random.default_rng(seed)
    topic = np.repeat(np.arange(TOPICS), children * 40 // TOPICS)
    rates = rng.gamma(shape, 0.02 / shape, (GROUPS, len(topic))) * (1 + raised * (TOPIC.codes[:, None] == topic))
    parent = np.repeat(np.arange(40), children)
    return subjects(rates), parent if alike else rng.permutation(parent)


def power_of(children: int, *, alike: bool, seed: int, **strength: float) -> tuple[np.ndarray, NodePower]:
    """Test a drawn tree: which nodes pass, and with which power."""
    made, parent = tree_of(children, alike=alike, seed=seed, **strength)
    pairs = sibling_pairs(edges_of(parent), made.counts, seed=seed)
    assert pairs is not None
    tested = purity(made, pairs, permutations=99, seed=seed)
    return tested.q_value <= 0.05, node_power(made, pairs, tested, seed=seed)


def test_power_is_the_share_of_pure_nodes_that_pass() -> None:
    """By number of children: pure nodes of two hardly ever pass, those of eight nearly always."""
    passing, power_of_nodes = {}, {}
    for children in (2, 3, 8):
        both = [power_of(children, alike=True, seed=seed) for seed in range(4)]
        passing[children] = float(np.mean([passed for passed, _ in both]))
        power_of_nodes[children] = float(np.mean([power.power for _, power in both]))
    assert passing[2] < 0.05 and power_of_nodes[2] < 0.05
    assert passing[2] < passing[3] < passing[8] and passing[8] > 0.95 and power_of_nodes[8] > 0.9
    assert power_of_nodes[3] == pytest.approx(passing[3], abs=0.2)


@pytest.mark.parametrize(("raised", "shape"), [(6.0, 2.0), (2.0, 2.0), (2.0, 0.3), (1.0, 0.5)])
def test_pure_nodes_of_two_children_are_not_called_mixed(raised: float, shape: float) -> None:
    """Every node is of one topic, down to features that hardly keep to one: nodes that do not pass stay unjudged."""
    for seed in range(4):
        passed, power = power_of(2, alike=True, seed=seed, raised=raised, shape=shape)
        assert not (power.judged & ~passed).any()
        kinds = {
            kind_of_node(1 - p, float("nan"), ["a", "b"], alpha=0.05, judged=bool(j))
            for p, j in zip(passed.astype(float), power.judged, strict=True)
        }
        assert kinds <= {UNJUDGED, "one subject"}


def test_nodes_of_high_power_are_judged() -> None:
    """Nodes of eight features of several topics: pure nodes of that size pass, these do not, and are judged."""
    passed, power = power_of(8, alike=False, seed=0)
    assert passed.mean() <= 0.05 and power.judged.mean() > 0.9 and (power.power >= 0.8).all()
    noise = tree_of(8, alike=True, seed=1, raised=0.0)
    pairs = sibling_pairs(edges_of(noise[1]), noise[0].counts)
    assert pairs is not None
    blind = node_power(noise[0], pairs, purity(noise[0], pairs, permutations=99))
    assert not blind.judged.any() and np.isnan(blind.power).all(), "without topical features nothing is known of pure nodes"


def of_registers(seed: int, *, strata: bool) -> tuple[Subjects, np.ndarray]:
    """Draw features that keep to registers, siblings to the same one; topics depend on registers and mean nothing beyond."""
    rng = np.random.default_rng(seed)
    register = np.repeat([0, 1, 2], 24)
    code = np.where(rng.random(72) < 0.75, register, rng.integers(0, 3, 72))
    own = np.repeat(np.arange(12) % 3, 6)
    rates = rng.gamma(2.0, 0.01, (72, len(own))) * (1 + 8 * (register[:, None] == own))
    part = np.unique(code * 3 + rng.integers(0, 3, 72), return_inverse=True)[1]
    made = Subjects(
        rates,
        (rates.sum(0) * 100).astype(int),
        Labelling(code, 3),
        Labelling(part, int(part.max()) + 1),
        register if strata else None,
    )
    return made, np.repeat(np.arange(12), 6)


def test_a_tree_of_registers_claims_no_topic_within_registers() -> None:
    claims = {False: np.zeros(3), True: np.zeros(3)}
    for seed in range(12):
        for strata in claims:
            made, parent = of_registers(seed, strata=strata)
            pairs = sibling_pairs(edges_of(parent), made.counts, seed=seed)
            assert pairs is not None
            tested = purity(made, pairs, permutations=99, seed=seed)
            far = tree_distance(made, Ancestors(parent, parent // 3), permutations=99, seed=seed, most=200)
            assert far is not None
            claims[strata] += np.array(
                [tested.tree.p_value <= 0.05, (tested.q_value <= 0.05).any(), far.test.p_value <= 0.05]
            )
            if strata:
                assert tested.tree.p_features <= 0.05, (
                    "features permuted over the tree: siblings do share topics, through registers"
                )
    assert (claims[False] >= 11).all()
    assert (claims[True] <= stats.binom.ppf(0.995, 12, 0.05)).all()


def test_strata_of_one_topic_each_leave_nothing_to_claim() -> None:
    made, parent = planted(siblings_alike=True)
    bound = Subjects(made.rates, made.counts, made.topic, made.subtopic, made.topic.codes)
    pairs = sibling_pairs(edges_of(parent), bound.counts)
    assert pairs is not None
    tested = purity(bound, pairs, permutations=99)
    assert tested.tree.p_labels == 1 and (tested.p_value == 1).all()
    power = node_power(bound, pairs, tested)
    assert not bound.exchangeable and made.exchangeable
    assert not power.judged.any() and np.isnan(power.power).all(), "a test that cannot pass judges no node"


def test_no_node_with_two_parts_is_no_test() -> None:
    assert sibling_pairs(edges_of(np.arange(5)), np.arange(5) + 1) is None
    made, _ = planted(siblings_alike=True)
    assert tree_distance(made, Ancestors(np.full(60, -1), np.full(60, -1))) is None


def test_long_corpora_are_bundled_within_subjects() -> None:
    names = [f"d{i}" for i in range(700)]
    registers = pd.DataFrame(
        {
            "document": names,
            "topic": [f"t{i % 3}" for i in range(700)],
            "group": names,
            "register": [f"r{i % 2}" for i in range(700)],
        }
    )
    made = bundled(registers, TreeSettings(strata="register"), most=60)
    assert (made.groupby("group")[["topic", "register"]].nunique() == 1).all(axis=None)
    documents = pd.DataFrame(
        {
            "document": names,
            "topic": [f"t{i % 3}" if i % 7 else "" for i in range(700)],
            "subtopic": [f"s{i % 2}" for i in range(700)],
            "group": names,
        }
    )
    assert bundled(documents, TreeSettings(), most=700) is documents
    made = bundled(documents, TreeSettings(), most=60)
    labelled = made[made["topic"] != ""]
    assert 50 <= labelled["group"].nunique() <= 60
    mixed = labelled.groupby("group")[["topic", "subtopic"]].nunique()
    assert (mixed == 1).all(axis=None)
    assert labelled.groupby(["topic", "subtopic"])["group"].nunique().min() >= 2
    whole = documents.assign(group=[f"g{i // 2}" for i in range(700)], topic=[f"t{i // 100}" for i in range(700)])
    made = bundled(whole, TreeSettings(), most=60)  # groups of two subtopics: bundled by topic, and never torn
    assert (made.groupby("group")["topic"].nunique() == 1).all()
    assert (made.assign(own=whole["group"]).groupby("own")["group"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("own", "null", "expected"),
    [((0.01, 0.04), 0.5, "widening need not be why"), ((0.01, 0.04), 0.1, "share 10%."), ((0.04, 0.03), 0.1, "No:")],
)
def test_the_answer_counts_its_rows_and_names_the_other_seed(own: tuple[float, float], null: float, expected: str) -> None:
    row = {
        "layer": 1,
        "parent_width": 4,
        "nodes": 10,
        "judged": 8,
        "found_beside": 1,
        "purity": 0.3,
        "expected": 0.2,
        "ceiling": 0.5,
        **dict.fromkeys(KINDS, 0.25),
    }
    table = pd.DataFrame(
        [
            {**row, "child_width": 8, "tree": "this run", "p_value": own[0], "shared": 0.4},
            {**row, "child_width": 8, "tree": "same width, another seed", "p_value": 0.03, "shared": null},
            {**row, "child_width": 16, "tree": "this run", "p_value": own[1], "shared": 0.2},
        ]
    )
    sentence = human_lines({"tree_subjects": Result("tree_subjects", table)})
    assert expected in sentence and "share 40% of the topic signal of a feature where they are most alike" in sentence
    assert "Holm over 2 pairs of widths" in sentence


def test_the_answer_counts_the_nodes_that_could_be_judged() -> None:
    row = {
        "layer": 1,
        "parent_width": 4,
        "child_width": 8,
        "tree": "this run",
        "purity": 0.3,
        "expected": 0.2,
        "ceiling": 0.5,
        "p_value": 0.01,
        "shared": 0.4,
        **dict(zip(KINDS, (0.1, 0.1, 0.2, 0.6), strict=True)),
    }

    def answer(**change: float) -> str:
        return human_lines({"tree_subjects": Result("tree_subjects", pd.DataFrame([row | change]))})

    text = answer(nodes=50, judged=20, found_beside=3)
    assert "Of 20 nodes that split and could be judged, 20% keep to one subject" in text and text.startswith("Hardly")
    assert (
        "60% show no subject of the corpus. 30 more could not be judged" in text
        and "Still, 3 of them keep to one subject." in text
    )
    none = answer(nodes=50, judged=0, found_beside=0, **dict.fromkeys(KINDS, np.nan))
    assert none.startswith("To some degree") and "None of 50 nodes that split could be judged" in none and "nan" not in none
    assert "moe-probe tree RUN" in answer(nodes=50), "a table of an earlier version has counted them all"
    untested = answer(nodes=50, judged=0, found_beside=0, p_value=np.nan, **dict.fromkeys(KINDS, np.nan))
    assert untested.startswith("Not testable") and "no labels can be exchanged" in untested and "nan" not in untested


@given(st.integers(1, 200), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_exchanges_stay_within_strata(n: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 50, n)
    strata = rate_strata(counts)
    swap = shuffled_within(strata, np.random.default_rng(seed))
    assert sorted(swap) == list(range(n)) and (strata[swap] == strata).all()
    assert all(counts[strata == a].max() <= counts[strata == a + 1].min() for a in range(strata.max()))
