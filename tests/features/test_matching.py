"""Predictors of topics and of routing: equal to independent implementations, plants found, noise at chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from moe_probe.core.results import Result
from moe_probe.core.stats import Resamples
from moe_probe.core.stats.auroc import weighted_auroc
from moe_probe.core.stats.information import effective_number
from moe_probe.features.matching.feature_experts import feature_experts
from moe_probe.features.matching.random_directions import compare_with_random
from moe_probe.features.matching.routing_prediction import RoutingData, RoutingPrediction, predict_routing
from moe_probe.features.matching.signals import shuffled
from moe_probe.features.matching.topic_units import Source, SplitSignals, choose_units, measure_unit
from moe_probe.studies.verdicts import complete_verdicts


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_auroc_of_histograms_is_sklearns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, truth = rng.integers(0, 6, 60), rng.random(60) < 0.4
    weight = rng.integers(1, 4, 60)
    bins = np.zeros((60, 6))
    bins[np.arange(60), score] = weight
    found = weighted_auroc((bins * truth[:, None]).sum(0)[None], (bins * ~truth[:, None]).sum(0)[None])[0]
    assert found == pytest.approx(roc_auc_score(truth, score, sample_weight=weight))


def side(seed: int, *, strength: float) -> SplitSignals:
    """Forty groups of two topics; unit 0 is active more on topic 1, units 1 to 9 follow habits of groups."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(40), 50)
    topic = group % 2
    habits = np.clip(0.2 * rng.lognormal(0, 0.5, (40, 10)), 0, 0.9)
    habits[:, 0] *= np.where(np.arange(40) % 2 == 1, 1 + strength, 1)
    active = rng.random((2000, 10)) < np.clip(habits, 0, 0.95)[group]
    return SplitSignals(group, topic, sparse.csr_array(active * rng.random((2000, 10)).astype(np.float32)))


def test_the_planted_carrier_is_chosen_and_its_interval_holds() -> None:
    units = choose_units(Source("expert", "layer 0", 0, 1), side(0, strength=3), 1)
    assert [u.members for u in units] == [(0,)]
    found = measure_unit(side(1, strength=3), (0,), 1, Resamples(np.arange(40) % 2, n=300, seed=0))
    area, low, high = found.document
    assert low > 0.85 and area > 0.95 and low < area < high <= 1
    assert 0.55 < found.token.low < found.token.value < area, "single tokens tell less than whole documents"


def test_the_best_of_noise_is_at_chance_on_other_documents() -> None:
    """Sets are grown on one half; the other half has none of it."""
    areas = []
    for seed in range(20):
        unit = choose_units(Source("feature", "sae", 0, 5), side(seed, strength=0), 1)[-1]
        assert unit.train_auroc > 0.5
        areas.append(
            measure_unit(
                side(1000 + seed, strength=0), unit.members, 1, Resamples(np.arange(40) % 2, n=2, seed=0)
            ).document.value
        )
    assert np.mean(areas) == pytest.approx(0.5, abs=0.06)


def test_predictions_agree_with_sklearn_and_noise_predicts_nothing() -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((6000, 30)) < 0.15) * rng.random((6000, 30))
    logits = x @ rng.normal(0, 6, (30, 5)) + rng.gumbel(size=(6000, 5))
    chosen = logits.argmax(1)
    y = sparse.csr_array((np.ones(6000), (np.arange(6000), chosen)), shape=(6000, 5))
    group = np.repeat(np.arange(60), 100)
    train, held = slice(0, 4000), slice(4000, 6000)
    features = sparse.csr_array(x.astype(np.float32))

    def predicted(x: sparse.csr_array) -> RoutingPrediction:
        return predict_routing(*(RoutingData(x[part], y[part], group[part]) for part in (train, held)), n_groups=60)

    found = predicted(features)
    theirs = LogisticRegression(C=100, max_iter=500).fit(x[train], chosen[train])
    assert found.hits.sum() / found.selections.sum() == pytest.approx(theirs.score(x[held], chosen[held]), abs=0.015)
    noise = sparse.csr_array(((rng.random((6000, 30)) < 0.15) * 1.0).astype(np.float32))
    empty = predicted(noise)
    assert empty.bits.sum() / empty.selections.sum() < 0.01
    assert found.bits.sum() / found.selections.sum() > 0.5
    chosen_held = np.asarray(y[held].sum(0)).ravel()
    assert found.expert_bits @ chosen_held == pytest.approx(found.bits.sum(), rel=1e-4), "experts add up to the layer"


def test_shuffling_gives_every_token_another_document() -> None:
    group = np.repeat(np.arange(30), 20)
    rows = sparse.csr_array(np.arange(600, dtype=float)[:, None] + 1)
    moved = shuffled(rows, group).toarray().ravel().astype(int) - 1
    assert sorted(moved.tolist()) == list(range(600))
    assert (group[moved] != group).mean() > 0.9


def test_effective_numbers() -> None:
    assert effective_number(np.array([5, 5, 5, 5])) == pytest.approx(4)
    assert effective_number(np.array([7, 0, 0])) == pytest.approx(1)


VERDICT = {
    "topic": "chemistry",
    "verdict": "none",
    "layer": 3,
    "expert": 2,
    "log2_lift": 0.9,
    "ci_low": 0.7,
    "ci_high": 1.1,
    "q_value": 0.001,
    "auroc_expert": 0.8,
    "auroc_feature": np.nan,
    "ablation_delta_nats": np.nan,
    "reason": "Near.",
    "experts": "2",
    "share": 0.1,
    "log2_lift_replication": 0.9,
    "log2_beyond_words": 0.5,
    "q_beyond_words": 0.01,
    "detectable_log2_lift": 0.3,
}
CARRIER = {
    "topic": "chemistry",
    "kind": "feature",
    "source": "layer_03/width_00016",
    "members": "7",
    "auroc_document": 0.95,
    "document_low": 0.9,
    "beyond_expert_document": 0.1,
    "beyond_expert_document_low": 0.02,
    "beyond_token_document": 0.3,
    "beyond_token_document_low": 0.2,
    "beyond_tokens_document": 0.1,
    "beyond_tokens_document_low": 0.01,
    "log2_beyond_words": 0.9,
    "log2_beyond_words_low": 0.5,
}
FEATURE = {"sae": "layer_03/width_00016", "feature": 7, "topic": "chemistry", "topic_q": 0.01}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "feature only"),
        ({"auroc_document": 0.87}, "none"),
        ({"document_low": 0.79}, "none"),
        ({"beyond_expert_document_low": -0.01}, "none"),
        ({"topic_q": 0.2}, "none"),
        ({"beyond_token_document_low": 0.0}, "none"),
        ({"beyond_tokens_document_low": -0.01}, "none"),
        ({"log2_beyond_words": 0.2}, "none"),
        ({"log2_beyond_words_low": -0.1}, "none"),
        ({"log2_beyond_words": np.nan}, "none"),
        ({"beyond_tokens_document": np.nan, "beyond_tokens_document_low": np.nan}, "feature only"),
    ],
)
def test_feature_only_needs_every_condition(change: dict[str, float], verdict: str) -> None:
    carriers = Result("carriers", pd.DataFrame([CARRIER | {k: v for k, v in change.items() if k in CARRIER}]))
    features = Result("features", pd.DataFrame([FEATURE | {k: v for k, v in change.items() if k in FEATURE}]))
    done = complete_verdicts(Result("verdicts", pd.DataFrame([VERDICT])), carriers=carriers, features=features).table.iloc[0]
    assert done["verdict"] == verdict
    assert done["verdict_usage"] == "none"
    assert done["auroc_feature"] == carriers.table["auroc_document"][0]


def test_a_feature_of_words_is_none_with_the_reason() -> None:
    for change, said in (
        ({"beyond_token_document_low": 0.0}, "best single token (AUROC 0.65)"),
        ({"beyond_tokens_document_low": 0.0}, "set of up to 8 tokens (AUROC 0.85)"),
        ({"log2_beyond_words": 0.0}, "1.00 times as much as the topic's words alone predict"),
    ):
        done = complete_verdicts(
            Result("verdicts", pd.DataFrame([VERDICT])), carriers=Result("carriers", pd.DataFrame([CARRIER | change]))
        ).table.iloc[0]
        assert done["verdict"] == "none" and said in done["reason"] and done["reason"].startswith("Near. ")
    assert done["feature_beyond_tokens_low"] == 0.01 and done["feature_log2_beyond_words"] == 0
    before = {k: v for k, v in CARRIER.items() if "token" not in k and "words" not in k}  # a table without tokens
    done = complete_verdicts(
        Result("verdicts", pd.DataFrame([VERDICT])), carriers=Result("carriers", pd.DataFrame([before]))
    ).table.iloc[0]
    assert done["verdict"] == "none" and "moe-probe match RUN" in done["reason"]


def carriers_of(fires: np.ndarray, words: np.ndarray, topic: np.ndarray, group: np.ndarray) -> pd.DataFrame:
    """Table of carriers where features fire as given; experts at random; every fourth group of a topic is held out."""
    from moe_probe.features.firing import Firings, SplitFirings
    from moe_probe.features.matching.routing_split import RoutingSplit
    from moe_probe.features.matching.signals import Selections, TokenTable
    from moe_probe.features.matching.topic_predictors import TopicPredictors

    rng = np.random.default_rng(7)
    names = tuple(f"topic-{i}" for i in range(int(topic.max()) + 1))
    ids, code = np.unique(words, return_inverse=True)
    tokens = TokenTable(group, topic, code, np.zeros(len(group), dtype=int), names, int(group.max()) + 1, ids)
    chosen = np.eye(4, dtype=np.int32)[rng.integers(0, 4, len(group))]
    held = group % 4 == 0
    rows = np.flatnonzero(~held), np.flatnonzero(held)
    selections = Selections(sparse.csr_array(chosen), np.zeros(4, dtype=int), np.arange(4))
    made = TopicPredictors(RoutingSplit(selections, tokens, *rows), resamples=200)
    values = sparse.csr_array(fires.astype(np.float32))
    made.add_features("layer_00/width_00008", 0, SplitFirings(*(Firings(values[r], r) for r in rows)))
    return made.as_table({("tokens", int(i)): f"word {i}" for i in ids})


def test_a_feature_of_a_topics_words_is_not_feature_only_and_a_feature_of_its_documents_is() -> None:
    """Topic 0 has 24 words of its own, of which feature 0 fires on every one; feature 1 fires in topic-1 documents whatever the
    word is. 24 words are more than a set of tokens holds: a few tokens tell the documents worse than the feature does."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(160), 60)
    topic = (group // 4) % 4  # four groups of each topic in turn, so that the held-out ones are of all topics
    words = 100 + rng.integers(0, 80, len(group))
    own = (topic == 0) & (rng.random(len(group)) < 0.05)
    words[own] = rng.integers(0, 24, int(own.sum()))
    fires = np.zeros((len(group), 8), dtype=bool)
    fires[:, 0] = words < 40
    fires[:, 1] = (topic == 1) & (rng.random(len(group)) < 0.3)
    fires[:, 2:] = rng.random((len(group), 6)) < 0.1
    table = carriers_of(fires, words, topic, group)
    rows = table.set_index(["topic", "kind"])
    assert rows.loc[("topic-0", "feature"), "members"] == "0" and rows.loc[("topic-1", "feature"), "members"] == "1"
    assert abs(rows.loc[("topic-0", "feature"), "log2_beyond_words"]) < 0.05
    assert rows.loc[("topic-1", "feature"), "log2_beyond_words_low"] > 1.5
    assert all(int(i) < 40 for i in rows.loc[("topic-0", "tokens"), "members"].split("+"))
    assert rows.loc[("topic-0", "token"), "label"].startswith("word ")
    usage = pd.DataFrame([VERDICT | {"topic": f"topic-{t}"} for t in (0, 1)])
    done = complete_verdicts(Result("verdicts", usage), carriers=Result("carriers", table)).table.set_index("topic")
    assert rows.loc[("topic-0", "feature"), "auroc_document"] > 0.9, "it tells the documents"
    assert done["verdict"].to_dict() == {"topic-0": "none", "topic-1": "feature only"}
    assert "words alone predict" in done.loc["topic-0", "reason"]


def test_a_few_words_that_tell_a_topic_leave_nothing_to_a_feature() -> None:
    """Two words stand in every document of topic 0 and nowhere else: the feature fires on all text there, and tells no more."""
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(160), 60)
    topic = (group // 4) % 4
    words = 100 + rng.integers(0, 80, len(group))
    own = (topic == 0) & (rng.random(len(group)) < 0.2)
    words[own] = rng.integers(0, 2, int(own.sum()))
    fires = rng.random((len(group), 8)) < 0.1
    fires[:, 0] = (topic == 0) & (rng.random(len(group)) < 0.5)
    table = carriers_of(fires, words, topic, group)
    row = table.set_index(["topic", "kind"]).loc[("topic-0", "feature")]
    assert row["log2_beyond_words_low"] > 0.5 and row["beyond_token_document_low"] <= 0
    usage = pd.DataFrame([VERDICT | {"topic": "topic-0"}])
    done = complete_verdicts(Result("verdicts", usage), carriers=Result("carriers", table)).table.iloc[0]
    assert done["verdict"] == "none" and "no better, by its interval, than the best single token" in done["reason"]


def test_features_do_not_overrule_an_expert_and_causes_are_told() -> None:
    row = VERDICT | {"verdict": "expert"}
    ablation = Result(
        "ablation",
        pd.DataFrame(
            [
                {
                    "topic": "chemistry",
                    "layer": 3,
                    "sae": "",
                    "members": "2",
                    "unit": "layer 3 expert 2",
                    "delta_nats": 0.04,
                    "ci_low": 0.02,
                    "ci_high": 0.06,
                    "confirmed": True,
                }
            ]
        ),
    )
    done = complete_verdicts(
        Result("verdicts", pd.DataFrame([row])), carriers=Result("carriers", pd.DataFrame([CARRIER])), ablation=ablation
    ).table.iloc[0]
    assert (done["verdict"], done["causal"], done["ablation_delta_nats"]) == ("expert", "confirmed", 0.04)
    assert done["sentence"].startswith("Yes: expert 2 of layer 3")
    assert "causally confirmed" in done["sentence"]


def test_an_expert_of_two_features_is_told_better_by_both() -> None:
    from moe_probe.features.firing import Firings, SplitFirings
    from moe_probe.features.matching.feature_sets import feature_sets
    from moe_probe.features.matching.routing_split import RoutingSplit
    from moe_probe.features.matching.signals import Selections, TokenTable

    rng = np.random.default_rng(0)
    features = (rng.random((4000, 12)) < 0.1) * rng.random((4000, 12)).astype(np.float32)
    first = ((features[:, 3] > 0) | (features[:, 7] > 0)) & (rng.random(4000) < 0.9)
    chosen = np.stack([first, ~first & (rng.random(4000) < 0.5)], axis=1)
    group = np.repeat(np.arange(40), 100)
    tokens = TokenTable(group, group % 2, np.zeros(4000, dtype=int), np.zeros(4000, dtype=int), ("a", "b"), 40)
    selections = Selections(sparse.csr_array(chosen.astype(np.int32)), np.array([5, 5]), np.array([0, 1]))
    rows = np.arange(2000), np.arange(2000, 4000)
    split = RoutingSplit(selections, tokens, *rows)
    firings = SplitFirings(*(Firings(sparse.csr_array(features[r]), r) for r in rows))
    table = feature_sets(split, firings, split.best(firings.train.matrix, per_expert=6), layer=5).set_index("expert")
    assert set(table.loc[0, "features"].split("+")[:2]) == {"3", "7"}
    assert table.loc[0, "beyond_single_low"] > 0.1
    assert table.loc[0, "set_auroc"] > 0.9


def test_a_match_has_to_beat_what_random_dictionaries_differ_by() -> None:
    """Of two random dictionaries one is always better, and beyond doubt by its own interval: that is no match."""
    rng = np.random.default_rng(0)
    level = rng.normal(-6, 2, 60)
    rejected = []
    for _ in range(100):
        drawn = 2 ** (level + rng.normal(0, 0.3, (4, 60)))
        ratio, low, high, p = compare_with_random(drawn[0], np.arange(60), drawn[1:], n_tokens=10**6)
        assert (
            np.allclose(ratio, np.log2(drawn[0]) - np.log2(drawn[1:]).mean(0))
            and (low < ratio).all()
            and (ratio < high).all()
        )
        rejected.append((p < 0.05).mean())
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.015)
    better = compare_with_random(drawn[0] * 4, np.arange(60), drawn[1:], n_tokens=10**6)[3]
    assert (better < 0.05).mean() > 0.9
    nothing = compare_with_random(np.full(60, np.nan), np.arange(60), np.full((3, 60), np.nan), n_tokens=10**6)
    assert (nothing[0] == 0).all() and (nothing[3] >= 0.5).all()


def test_experts_that_a_feature_goes_through() -> None:
    rng = np.random.default_rng(0)
    chosen = (rng.random((2000, 6)) < 0.3).astype(np.int32)
    fires = rng.random((2000, 700)) < 0.05
    fires[:, 3] = chosen[:, 4] > 0
    fires[:, 5] = False
    fires[:10, 5] = True
    table = feature_experts(sparse.csr_array(chosen), sparse.csr_array(fires.astype(np.float32)), per_feature=2)
    assert 5 not in set(table["feature"]), "ten tokens say nothing"
    assert set(table["feature"]) == set(range(700)) - {5}
    for feature in (0, 3, 650):
        counts = chosen[fires[:, feature]].sum(0)
        mine = table[table["feature"] == feature]
        assert mine["expert"].tolist() == np.argsort(-counts, kind="stable")[:2].tolist()
        assert mine["share"].tolist() == pytest.approx((np.sort(counts)[::-1][:2] / counts.sum()).tolist())
        assert mine["effective_experts"].iloc[0] == pytest.approx(effective_number(counts))
    assert table[table["feature"] == 3]["effective_experts"].iloc[0] < table["effective_experts_all"].iloc[0]
