"""Units: documents of one source count once, sums by topic are never tested, and noise makes no claims."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from moe_probe.core.evidence import LEVELS, missing_evidence, unknown_from
from moe_probe.core.results import Result
from moe_probe.core.routing import Usage
from moe_probe.core.schema import Evidence
from moe_probe.core.stats import benjamini_hochberg, group_usage, permutation_test
from moe_probe.experts.clusters import expert_groups
from moe_probe.experts.topics import expert_labels, expert_topics
from moe_probe.experts.usage import layer_usage
from moe_probe.studies.verdicts import complete_verdicts, groups_needed, power_sentences, topic_verdicts
from moe_probe.studies.verdicts.power import enough_groups
from moe_probe.testing import collapsed_usage, source_usage

#: As many subjects as the 57 of MMLU, in 17 subcategories of 1 to 9.
SOURCES = (1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 6, 9)


def tables(usage: Usage, *, permutations: int = 99) -> dict[str, Result]:
    topics = expert_topics(usage, permutations=permutations)
    groups = expert_groups(usage, permutations=permutations)
    return {
        "expert_topics": topics,
        "layers": layer_usage(usage, permutations=permutations),
        "expert_groups": groups,
        "verdicts": complete_verdicts(topic_verdicts(topics, groups=groups)),
    }


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10_000), boost=st.sampled_from([0.0, 3.0]))
def test_documents_of_a_source_count_as_one_observation(seed: int, boost: float) -> None:
    """Tables of all documents are the tables of one summed row per source, digit by digit, in whatever order documents come."""
    usage = source_usage((5, 7, 6, 4), documents=(30, 3, 9, 12), n_layers=2, boost=boost, seed=seed)
    order = np.random.default_rng(seed).permutation(len(usage.documents))
    shuffled = Usage(usage.selections[order], None, usage.layers, usage.documents.iloc[order].reset_index(drop=True))
    many, one = tables(shuffled), tables(collapsed_usage(usage))
    for name, result in one.items():
        pd.testing.assert_frame_equal(many[name].table, result.table, check_exact=True)
        assert many[name].params == result.params
    assert set(one["expert_topics"].table["n_groups"]) == {4, 5, 6, 7}


def test_documents_as_units_would_find_effects_in_noise() -> None:
    """The planted correlation is real: without groups the same noise is significant."""
    usage = source_usage((4, 4, 4, 4), documents=30, n_layers=2, seed=3)
    alone = replace(usage, documents=usage.documents.drop(columns="group"))
    assert expert_topics(alone, permutations=199).table["significant"].mean() > 0.2
    assert not expert_topics(usage, permutations=199).table["significant"].any()


def test_noise_of_sources_stays_within_the_error_rate() -> None:
    """57 sources in 17 topics of 1 to 9, habits without a variance: errors over all tests as often as promised.

    ``scripts/error_rates.py --designs sources`` does the same at length, with replication and verdicts.
    """
    n, alpha = 40, 0.05
    errors = {"family-wise": 0, "discovery": 0, "model": 0}
    for seed in range(n):
        usage = source_usage(SOURCES, documents=[1 + i % 7 for i in range(len(SOURCES))], n_layers=2, tail=2.0, seed=seed)
        groups = group_usage(usage)
        test = permutation_test(
            groups.shares,
            groups.topic,
            n_topics=len(SOURCES),
            layer_index=groups.layer_index,
            permutations=99,
            seed=seed,
        )
        errors["family-wise"] += bool(np.nanmin(test.p_familywise) <= alpha)
        errors["discovery"] += bool(np.nanmin(benjamini_hochberg(test.p_value)) <= alpha)
        errors["model"] += test.model_p <= alpha
    assert all(count <= binom.ppf(0.999, n, alpha) for count in errors.values()), errors


def test_an_expert_of_enough_sources_is_found_and_its_words_stay_open() -> None:
    usage = source_usage((10, 10, 10, 10, 10), documents=6, boost=3.0, seed=1)
    result = tables(usage, permutations=499)["verdicts"]
    row = result.table.set_index("topic").loc["topic-00"]
    assert (row["verdict"], row["layer"], row["expert"], row["n_groups"]) == ("expert", 0, 1, 10)
    assert row["grade"] in ("likely", "near the threshold")  # at most likely: words may explain it
    assert "Words are not ruled out: the record has no tokens." in row["reason"]
    assert "Yes: expert 1 of layer 0, of the topic or of its words. " in row["sentence"]
    assert power_sentences(result).startswith("Units: 50 independent groups of documents, 10 a topic. Smallest lift")


def test_a_topic_that_is_one_source_is_not_tested() -> None:
    """Subject as topic and as group: lifts without intervals, p or q; information without a null; no decoding."""
    usage = source_usage((1,) * 12, documents=9, boost=3.0, seed=0)
    topics = expert_topics(usage, permutations=99)
    table = topics.table
    assert table[["lift", "log2_lift", "share"]].notna().all().all()
    unknown = ["ci_low", "ci_high", "p_value", "q_value", "p_familywise", "p_replication", "detectable_log2_lift"]
    assert table[unknown].isna().all().all()
    assert not table["significant"].any() and not table["replicated"].any()
    assert topics.params["model_p"] is None and any("No test is possible" in w for w in topics.warnings)
    layers = layer_usage(usage, permutations=99)
    assert (layers.table["mi_topic_bits"] > 0).all()
    assert layers.table[["mi_topic_null_bits", "mi_topic_p", "decode_accuracy"]].isna().all().all()
    assert any("has no null" in w for w in layers.warnings)
    verdicts = topic_verdicts(topics)
    assert set(verdicts.table["grade"]) == {"untested"} and set(verdicts.table["verdict"]) == {"none"}
    reason = verdicts.table["reason"].iloc[0]
    assert "has 1 independent group of documents; 4 of every topic are the least" in reason
    assert "The largest effect, untested: expert 1 of layer 0 is used" in reason
    assert "12 of 12 topics have too few groups" in power_sentences(verdicts)


def test_topics_of_one_or_two_sources_are_named_with_the_lift_that_would_have_been_found() -> None:
    result = topic_verdicts(expert_topics(source_usage((1, 2, 8, 9), seed=4), permutations=199))
    table = result.table.set_index("topic")
    assert list(table["grade"].iloc[:2]) == ["untested", "untested"]
    assert np.isnan(table.loc["topic-00", "detectable_log2_lift"])
    for topic in ("topic-01", "topic-02", "topic-03"):
        assert f"{2 ** table.loc[topic, 'detectable_log2_lift']:.2f}" in table.loc[topic, "reason"]
    said = power_sentences(result)
    assert "20 independent groups of documents, 1 to 9 a topic" in said and "No lift could be found for topic-00." in said
    assert f"2 of 4 topics have too few groups to confirm an expert on half of them; {groups_needed(4)} of every" in said


def test_sums_by_topic_are_effects_and_no_verdicts() -> None:
    """Even where a topic has several rows: they are no observations."""
    usage = source_usage((6, 6, 6, 6), documents=4, boost=4.0, seed=2)
    assert (topic_verdicts(expert_topics(usage, permutations=199)).table["verdict"] == "expert").any()
    sums = replace(collapsed_usage(usage), evidence=Evidence.COUNTS)
    topics = expert_topics(sums, permutations=199, strata="source")
    by_topic = collapsed_usage(replace(sums, documents=sums.documents.assign(group=sums.documents["topic"])))
    pd.testing.assert_frame_equal(topics.table, expert_topics(by_topic, permutations=199).table, check_exact=True)
    assert topics.table["q_value"].isna().all() and topics.table["ci_low"].isna().all()
    verdicts = topic_verdicts(topics)
    assert set(verdicts.table["verdict"]) == {"none"} and set(verdicts.table["grade"]) == {"untested"}
    assert verdicts.table["reason"].str.startswith("No test is possible: the record has sums by topic only").all()
    assert "expert 1 of layer 0 is used" in verdicts.table["reason"].iloc[0]
    assert power_sentences(verdicts) == ""
    labels = expert_labels(sums, ["source"], permutations=199)
    assert labels.table["q_value"].isna().all() and labels.table["lift"].notna().all()


@pytest.mark.parametrize("n_topics", range(2, 60))
def test_groups_needed_are_the_least_that_suffice(n_topics: int) -> None:
    n = groups_needed(n_topics)
    assert enough_groups(n, n * n_topics)
    assert not any(enough_groups(m, m * n_topics) for m in range(n))
    assert n == {2: 8, 3: 6}.get(n_topics, n) and 4 <= n <= 8


def test_levels_are_ordered() -> None:
    for i, record in enumerate(LEVELS):
        for j, needed in enumerate(LEVELS):
            assert bool(missing_evidence(record, needed)) == (i > j)
        assert bool(unknown_from(record)) == (record is not Evidence.WORDS)
        assert unknown_from(str(record)) == unknown_from(record)
