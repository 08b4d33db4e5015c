"""Verdicts: rivals, groups and their members, grades, and what cannot be tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.core.results import Result
from moe_probe.experts.clusters import combinations, expert_groups
from moe_probe.experts.explain import CONTEXTS, expected_usage, topic_beyond_vocabulary
from moe_probe.experts.topics import expert_topics
from moe_probe.recording.trace import Trace
from moe_probe.report.sections.verdicts import count_sentence, question
from moe_probe.studies.verdicts import Rules, grades, topic_verdicts
from moe_probe.testing import PlantedExpert, planted_routing, planted_trace, write_routing

SMALL = {"topics": 5, "documents_per_topic": 30, "tokens": 120, "n_layers": 2, "num_experts": 8}
#: Thresholds of effect taken away: what is left are the tests.
TESTS_ONLY = Rules(min_log2_lift=0.0, tolerance=0.0, min_lower_bound=0.0, min_share=0.0, min_log2_beyond=0.0)


def judged(
    trace: Trace,
    *,
    strata: str | None = None,
    contexts: tuple[str, ...] = tuple(CONTEXTS),
    seed: int = 0,
    rules: Rules | None = None,
) -> pd.DataFrame:
    options: dict[str, Any] = {"permutations": 299, "seed": seed, "strata": strata}
    expected = [expected_usage(trace, given=given, seed=seed) for given in contexts]
    beyond = [topic_beyond_vocabulary(trace, given=e.given, usage=e, **options) for e in expected]
    return topic_verdicts(
        expert_topics(trace, **options),
        beyond=beyond,
        rules=rules,
        groups=expert_groups(trace, expected=expected, **options),
    ).table.set_index("topic")


@pytest.mark.parametrize(("kind", "lift"), [("previous", 3.0), ("pair", 4.5)])
def test_experts_of_previous_tokens_and_pairs_are_no_topic_experts(tmp_path: Path, kind: str, lift: float) -> None:
    """Words alone do not see them; the rival that is the truth does."""
    fooled = 0
    for seed in range(3):
        trace = planted_trace(
            tmp_path / str(seed),
            lift=lift,
            seed=seed,
            planted=(PlantedExpert(0, 3, kind, 1), PlantedExpert(1, 6, kind, 2)),
            **SMALL,
        )
        words = judged(trace, contexts=("token",), seed=seed, rules=TESTS_ONLY)
        fooled += int((words["verdict"] == "expert").sum())
        table = judged(trace, seed=seed, rules=TESTS_ONLY)
        assert not set(zip(table["layer"], table["expert"], table["verdict"], strict=True)) & {
            (0, 3, "expert"),
            (1, 6, "expert"),
        }
        assert set(judged(trace, seed=seed)["verdict"]) == {"none"}
    assert fooled >= 2


def test_the_right_expert_is_named_and_its_rivals_are_told(tmp_path: Path) -> None:
    trace = planted_trace(tmp_path / "t", planted=(PlantedExpert(1, 5, "topic", 2),), lift=3.0, seed=1, **SMALL)
    row = judged(trace).loc["topic-2"]
    assert (row["verdict"], row["layer"], row["expert"]) == ("expert", 1, 5)
    assert row["grade"] in ("clear", "likely")
    assert 0.2 < row["pairs_coverage"] < 0.9 and f"{row['pairs_coverage']:.0%} of the topic's tokens" in row["reason"]
    for rival in ("words", "previous", "pairs"):
        assert row[f"log2_beyond_{rival}"] > 0.25 and row[f"q_beyond_{rival}"] <= 0.05


def test_pairs_that_cannot_be_judged_are_said(tmp_path: Path) -> None:
    """With a large vocabulary hardly any pair occurs twice."""
    trace = planted_trace(
        tmp_path / "t", planted=(PlantedExpert(1, 5, "topic", 2),), lift=4.0, seed=1, vocabulary=8000, **SMALL
    )
    row = judged(trace).loc["topic-2"]
    assert row["verdict"] == "expert" and row["pairs_coverage"] < 0.2
    assert "Not ruled out: pairs of tokens (" in row["reason"] and "can be compared)" in row["reason"]
    assert row["grade"] == "likely"  # clear by its size, but a rival is left


def test_register_experts_under_strata_are_nothing(tmp_path: Path) -> None:
    """Two experts of a register that one topic prefers: claims without strata, none within them."""
    planted = (PlantedExpert(0, 3, "register", 1), PlantedExpert(0, 6, "register", 1))
    without = within = combined = 0
    for seed in range(4):
        trace = planted_trace(tmp_path / str(seed), planted=planted, lift=4.0, seed=seed, **SMALL)
        without += judged(trace, seed=seed, rules=TESTS_ONLY).loc["topic-1", "verdict"] != "none"
        within += judged(trace, strata="register", seed=seed, rules=TESTS_ONLY).loc["topic-1", "verdict"] != "none"
        combined += bool(combinations(trace, strata="register", permutations=199, seed=seed).table["significant"].any())
    assert without >= 3
    assert within == 0
    assert combined <= 1


def test_positions_of_topics_of_unequal_length(tmp_path: Path) -> None:
    for seed in range(3):
        trace = planted_trace(
            tmp_path / str(seed),
            planted=(PlantedExpert(0, 3, "position"), PlantedExpert(1, 6, "position")),
            lift=3.0,
            seed=seed,
            lengths=(40, 60, 80, 110, 150),
            positions=(24, 47),
            **(SMALL | {"documents_per_topic": 40}),
        )
        plain = expert_topics(trace, permutations=199, seed=seed).table
        assert plain[(plain["layer"] == 0) & (plain["expert"] == 3)]["significant"].any()
        beyond = topic_beyond_vocabulary(trace, permutations=199, seed=seed).table
        assert not beyond[(beyond["layer"] == 0) & (beyond["expert"] == 3)]["beyond"].any()


def test_a_lone_perfect_expert_among_forty_topics() -> None:
    """The pooled tail alone bounds q by about topics / permutations; q may not exceed the family-wise p."""
    usage = planted_routing(
        planted=(PlantedExpert(0, 3, "topic", 7),),
        topics=40,
        documents_per_topic=5,
        tokens=60,
        lift=30.0,
        n_layers=2,
        num_experts=8,
        vocabulary=900,
        seed=0,
    ).usage()
    table = expert_topics(usage, permutations=199).table
    assert (table["q_value"] <= table["p_familywise"] + 1e-12).all()
    row = table.set_index(["layer", "expert", "topic"]).loc[(0, 3, "topic-7")]
    assert row["auroc"] == 1.0 and row["significant"]


def test_an_expert_with_a_bystander_is_no_group(tmp_path: Path) -> None:
    """Nine sources a topic: the planted expert alone is named, or nothing; never a pair with an idle one."""
    named = 0
    for seed in range(4):
        routing = planted_routing(
            planted=(PlantedExpert(0, 3, "topic", 1), PlantedExpert(1, 6, "topic", 2)),
            topics=4,
            documents_per_topic=45,
            group_size=5,
            tokens=80,
            lift=3.0,
            n_layers=2,
            num_experts=8,
            seed=seed,
        )
        verdicts = judged(write_routing(tmp_path / str(seed), routing), seed=seed)
        assert "group" not in set(verdicts["verdict"])
        named += int((verdicts["verdict"] == "expert").sum())
    assert named >= 6  # of 8


def alignment(**columns: Any) -> Result:
    """A table of `expert_topics` with one expert that passes everything, changed as asked."""
    row = {
        "layer": 3,
        "expert": 7,
        "topic": "chemistry",
        "share": 0.1,
        "log2_lift": 1.5,
        "ci_low": 1.2,
        "ci_high": 1.8,
        "p_value": 1e-4,
        "q_value": 0.01,
        "replicated": True,
        "significant": True,
        "auroc": 0.95,
        "log2_lift_replication": 1.4,
        "detectable_log2_lift": 0.5,
    } | columns
    other = row | {
        "topic": "law",
        "log2_lift": 0.0,
        "ci_low": -0.2,
        "ci_high": 0.2,
        "significant": False,
        "replicated": False,
        "q_value": 0.9,
    }
    return Result(
        "expert_topics", pd.DataFrame([row, *(other | {"topic": topic} for topic in ("law", "art", "music", "logic"))])
    )


def rivals(**columns: Any) -> list[Result]:
    row = {"layer": 3, "expert": 7, "log2_ratio": 0.8, "p_value": 1e-4, "q_value": 0.01, "coverage": 0.6} | columns
    table = pd.DataFrame([row | {"topic": topic} for topic in ("chemistry", "law", "art", "music", "logic")])
    return [Result(name, table) for name in CONTEXTS.values()]


@pytest.mark.parametrize(
    ("low", "lift", "high", "verdict", "grade"),
    [
        (1.2, 1.5, 1.8, "expert", "clear"),
        (0.8, 1.5, 2.2, "expert", "likely"),
        (0.9, 1.0, 1.1, "expert", "near the threshold"),
        (0.85, 0.95, 1.05, "expert", "near the threshold"),
        (1.02, 1.1, 1.2, "expert", "near the threshold"),
        (0.55, 0.65, 0.75, "none", "weak"),
        (0.7, 0.9, 0.98, "none", "weak"),
        (0.3, 1.2, 2.1, "none", "weak"),
    ],
)
def test_grades(low: float, lift: float, high: float, verdict: str, grade: str) -> None:
    row = (
        topic_verdicts(alignment(ci_low=low, log2_lift=lift, ci_high=high), beyond=rivals())
        .table.set_index("topic")
        .loc["chemistry"]
    )
    assert (row["verdict"], row["grade"]) == (verdict, grade)
    if grade == "near the threshold":
        assert "near the threshold of 2" in row["reason"]
    if grade == "weak":
        assert row["reason"].startswith("Real but small")


def test_an_answer_does_not_turn_on_the_last_digit() -> None:
    """Lifts of 1.98 and 2.02 with the same interval width: the same verdict and the same grade."""
    rows = [
        topic_verdicts(alignment(log2_lift=x, ci_low=x - 0.15, ci_high=x + 0.15), beyond=rivals()).table.iloc[1]
        for x in np.log2([1.98, 1.999, 2.0, 2.02])
    ]
    assert {(r["verdict"], r["grade"]) for r in rows} == {("expert", "near the threshold")}


def test_q_of_rivals_is_over_experts_that_are_up_for_a_verdict() -> None:
    """One candidate among thousands of pairs is one test, and no number is given for those that were not asked."""
    table = topic_verdicts(alignment(), beyond=rivals(p_value=0.04, q_value=0.9)).table.set_index("topic")
    assert table.loc["chemistry", "q_beyond_words"] == pytest.approx(0.04)
    assert pd.isna(table.loc["law", "q_beyond_words"])
    assert "nan" not in " ".join(table["reason"])


def test_untestable_is_not_no() -> None:
    empty = alignment(ci_low=np.nan, q_value=np.nan)
    empty.table[["ci_low", "q_value"]] = np.nan
    table = topic_verdicts(empty).table
    assert set(table["grade"]) == {"untested"}
    assert count_sentence(table) == ("Nothing could be tested: none of 5 topics has enough independent documents.")
    # documents enough to compute, too few to find anything: an expert used for one of five topics alone has lift 5
    weak = alignment(significant=False, q_value=0.4, detectable_log2_lift=2.5)
    assert set(topic_verdicts(weak).table["grade"]) == {"untested"}
    powered = alignment(significant=False, q_value=0.4, detectable_log2_lift=0.5)
    assert set(topic_verdicts(powered).table["grade"]) == {"none"}


@pytest.mark.parametrize(("topics", "documents", "grade"), [(3, 3, "untested"), (3, 5, "untested"), (3, 6, "none")])
def test_what_no_half_can_confirm_is_untested(topics: int, documents: int, grade: str) -> None:
    """Five documents of three topics: even an expert of AUROC 1 has p of 1/21 on half of them, and twice that counts."""
    usage = planted_routing(
        planted=(PlantedExpert(0, 3, "topic", 1),),
        topics=topics,
        documents_per_topic=documents,
        tokens=60,
        lift=2.8,
        n_layers=1,
        num_experts=8,
        group_effect=0.1,
        document_effect=0.1,
        seed=0,
    ).usage()
    row = topic_verdicts(expert_topics(usage, permutations=499)).table.set_index("topic").loc["topic-2"]
    assert (row["verdict"], row["grade"]) == ("none", grade)
    assert row["reason"].startswith("Nothing can be said") == (grade == "untested")


def test_a_stricter_rate_than_the_tests_had_is_a_reason() -> None:
    rules = Rules(alpha=0.001)
    reason = topic_verdicts(alignment(), beyond=rivals(), rules=rules).table.set_index("topic").loc["chemistry", "reason"]
    assert "is not significant (q 0.01)" in reason


def test_experts_and_groups_are_counted_apart() -> None:
    table = pd.DataFrame(
        {
            "topic": ["art", "biology", "chemistry", "law", "music", "physics"],
            "verdict": ["group", "expert", "expert", "none", "none", "none"],
            "grade": ["clear", "clear", "near the threshold", "weak", "untested", "none"],
            "log2_lift": 1.0,
        }
    )
    assert count_sentence(table, names=True) == (
        "2 of 5 topics have an expert of their own: biology and chemistry (chemistry near the threshold). 1 has a group of "
        "experts: art. 1 has an expert that is real but too small to count: law. 1 could not be tested: too few independent "
        "documents."
    )
    assert question(table) == "Is there a chemistry expert?"
    assert question(table[table["topic"] != "chemistry"]) == "Do topics have experts of their own?"
    old = table.drop(columns="grade")
    assert grades(old).tolist() == ["likely", "likely", "likely", "none", "none", "none"]


def test_few_topics_have_a_threshold_that_can_be_reached() -> None:
    """An expert used twenty times as much for one of two topics has a lift of 1.9: the largest possible is 2."""
    for n, lift in ((2, 1.5), (3, 1.8), (4, 2.0), (12, 2.0)):
        assert 2 ** Rules().for_topics(n).min_log2_lift == pytest.approx(lift)
    assert Rules(min_log2_lift=0.1).for_topics(2).min_log2_lift == 0.1
    table = alignment(log2_lift=0.92, ci_low=0.9, ci_high=0.94).table
    two = Result("expert_topics", table[table["topic"].isin(["chemistry", "law"])])
    beyond = [Result(r.name, r.table[r.table["topic"].isin(["chemistry", "law"])]) for r in rivals()]
    row = topic_verdicts(two, beyond=beyond).table.set_index("topic").loc["chemistry"]
    assert (row["verdict"], row["grade"]) == ("expert", "clear")


def test_a_rival_that_explains_nearly_all_makes_an_answer_near() -> None:
    for ratio, verdict, grade in ((0.2, "none", "weak"), (0.3, "expert", "near the threshold"), (0.5, "expert", "clear")):
        row = topic_verdicts(alignment(), beyond=rivals(log2_ratio=ratio)).table.set_index("topic").loc["chemistry"]
        assert (row["verdict"], row["grade"]) == (verdict, grade)
    row = topic_verdicts(alignment(), beyond=rivals(log2_ratio=0.3)).table.set_index("topic").loc["chemistry"]
    assert row["reason"].startswith("Near the threshold because tokens predict nearly as much")
