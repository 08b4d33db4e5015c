"""What explains routing: planted reasons are told apart, noise is given none, gains are honest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from support.routing import RoutingShape, write

from moe_probe.core.errors import MoeProbeError
from moe_probe.experts.explain import (
    expected_usage,
    expert_positions,
    expert_token_classes,
    expert_tokens,
    explain_routing,
    token_class,
    topic_beyond_vocabulary,
    vocabulary_baseline,
)
from moe_probe.experts.explain.selections import load_layer
from moe_probe.experts.explain.stacking import SHRINKAGE, Stack, compact, position_bins, position_octaves, shared_pairs
from moe_probe.experts.explain.tokens import sample_tokens
from moe_probe.experts.topic_groups import other_labels
from moe_probe.experts.topics import expert_labels, expert_topics
from moe_probe.recording.trace import Trace
from moe_probe.studies.verdicts import Rules, topic_verdicts
from moe_probe.testing import PlantedExpert, null_trace, planted_routing, planted_trace

TOPIC, TOKEN, POSITION = PlantedExpert(0, 1, "topic", 0), PlantedExpert(0, 2, "token", 1), PlantedExpert(1, 3, "position")
SMALL: RoutingShape = {"topics": 5, "documents_per_topic": 40, "tokens": 120, "n_layers": 2, "num_experts": 12}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return planted_trace(tmp_path_factory.mktemp("mixed") / "t", planted=(TOPIC, TOKEN, POSITION), lift=2.2, seed=5, **SMALL)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return null_trace(tmp_path_factory.mktemp("noise") / "t", seed=3, **SMALL)


def row_of(table: pd.DataFrame, planted: PlantedExpert) -> pd.Series:
    return table[(table["layer"] == planted.layer) & (table["expert"] == planted.expert)].iloc[0]


def test_each_expert_is_explained_by_its_reason(mixed: Trace) -> None:
    table = explain_routing(mixed).experts.table
    assert [row_of(table, p)["explained_by"] for p in (TOPIC, TOKEN, POSITION)] == ["topic", "token", "position"]
    reasons = {(p.layer, p.expert) for p in (TOPIC, TOKEN, POSITION)}
    others = table[[key not in reasons for key in zip(table["layer"], table["expert"], strict=True)]]
    # an expert has a 2.5 % chance of an interval above zero for each of four factors
    assert (others["explained_by"] != "none").mean() < 0.25


def test_noise_is_explained_by_nothing(noise: Trace) -> None:
    found = explain_routing(noise)
    alone = found.layers.table[found.layers.table["order"] == "alone"]
    assert (alone["bits"] < 0.001).all()  # gains on unseen documents are not inflated by fitting
    assert (found.experts.table["explained_by"] == "none").mean() > 0.8


def test_parts_of_both_orders_add_up(mixed: Trace) -> None:
    """First parts equal the factor alone, and experts' bits add up to the layer's."""
    found = explain_routing(mixed)
    table = found.layers.table
    for order, first in (("token first", "token"), ("topic first", "topic")):
        part = table[(table["order"] == order) & (table["step"] == 0)].set_index("layer")["bits"]
        alone = table[(table["order"] == "alone") & (table["factor"] == first)].set_index("layer")["bits"]
        assert np.allclose(part, alone)
    usage = mixed.usage().selections.sum(0)
    for place, layer in enumerate(mixed.layers):
        experts = found.experts.table[found.experts.table["layer"] == layer.layer]
        whole = float((experts["bits_token"] * usage[place]).sum() / usage[place].sum())
        part = table[(table["order"] == "alone") & (table["factor"] == "token") & (table["layer"] == layer.layer)]
        assert whole == pytest.approx(float(part["bits"].iloc[0]), abs=1e-6)


def test_gain_of_a_factor_equals_a_plain_count(tmp_path: Path) -> None:
    """One factor from the base: the shrunken frequency of the other folds, computed here by hand."""
    routing = planted_routing(planted=(TOKEN,), seed=1, **SMALL)
    trace = write(tmp_path / "t", routing, np.ones(len(routing.document), dtype=bool))
    sample = sample_tokens(trace, folds=4)
    item = load_layer(trace, sample, trace.layers[0])
    stack = Stack(item, sample)
    got = stack.gain(stack.add(stack.base, sample.token)).sum()
    best = max(_by_hand(sample, item, strength) for strength in SHRINKAGE)
    assert got <= best + 1e-3  # the strength is not chosen on what it is scored on
    assert got == pytest.approx(best, rel=0.05)


def _by_hand(sample, item, strength: float) -> float:
    fold, token = sample.token_fold[item.token], sample.token[item.token]
    total = 0.0
    for f in range(sample.n_folds):
        train, test = fold != f, fold == f
        base = np.bincount(item.expert[train], minlength=item.num_experts) + 0.5
        base = base / base.sum()
        counts = np.zeros((sample.token.max() + 1, item.num_experts))
        np.add.at(counts, (token[train], item.expert[train]), 1)
        chance = (counts + strength * base) / (counts.sum(1, keepdims=True) + strength)
        total += np.log2(chance[token[test], item.expert[test]] / base[item.expert[test]]).sum()
    return total


def test_topic_beyond_vocabulary_tells_topic_from_token(mixed: Trace) -> None:
    table = topic_beyond_vocabulary(mixed).table.set_index(["layer", "expert", "topic"])
    assert table.loc[(0, 1, "topic-0"), "beyond"]
    assert not table.loc[(0, 2)]["beyond"].any()
    assert not table.loc[(1, 3)]["beyond"].any()
    assert table.loc[(0, 2, "topic-1"), "ci_low"] < 0 < table.loc[(0, 2, "topic-1"), "ci_high"]


def test_token_experts_are_not_called_topic_experts(tmp_path: Path) -> None:
    """At a lift where plain usage is fooled, over several corpora; and the topic expert beside them is found."""
    rules, fooled, wrong, found = Rules(min_log2_lift=0.5, min_lower_bound=0.2), 0, 0, 0
    for seed in range(6):
        trace = planted_trace(tmp_path / str(seed), planted=(TOPIC, TOKEN, POSITION), lift=3.0, seed=seed, **SMALL)
        usage = expert_topics(trace, permutations=299)
        naive = topic_verdicts(usage, rules=rules).table.set_index("topic")
        strict = topic_verdicts(usage, beyond=topic_beyond_vocabulary(trace, permutations=299), rules=rules).table.set_index(
            "topic"
        )
        fooled += naive.loc["topic-1", "verdict"] == "expert"
        wrong += int((strict.drop("topic-0")["verdict"] == "expert").sum())
        found += strict.loc["topic-0", "verdict"] == "expert"
    assert fooled >= 3
    assert wrong == 0
    assert found >= 5


def test_noise_has_nothing_beyond_vocabulary(tmp_path: Path) -> None:
    n = 30
    wrong = sum(
        bool(
            topic_beyond_vocabulary(
                null_trace(
                    tmp_path / str(seed), seed=seed, topics=4, documents_per_topic=16, tokens=60, n_layers=2, num_experts=8
                ),
                permutations=199,
            )
            .table["beyond"]
            .any()
        )
        for seed in range(n)
    )
    assert wrong <= scipy_stats.binom.ppf(0.999, n, 0.05)


def test_short_documents_do_not_make_a_position_expert_a_topic_expert(tmp_path: Path) -> None:
    """One topic's documents are a third as long, so that its tokens are early; words alone would not see it."""
    routing = planted_routing(
        planted=(PlantedExpert(0, 3, "position"),),
        lift=3.0,
        seed=2,
        topics=4,
        documents_per_topic=40,
        tokens=120,
        n_layers=1,
        num_experts=8,
    )
    short = (routing.documents["topic"] == "topic-2").to_numpy()[routing.document] & (routing.position >= 40)
    trace = write(tmp_path / "t", routing, keep=~short)
    plain = expert_topics(trace, permutations=299).table.set_index(["expert", "topic"])
    assert plain.loc[(3, "topic-2"), "significant"]
    beyond = topic_beyond_vocabulary(trace, permutations=299).table.set_index(["expert", "topic"])
    assert not beyond.loc[(3, "topic-2"), "beyond"]


def test_expected_usage_is_unbiased_for_a_token_router(tmp_path: Path) -> None:
    """A router that is a function of the token: observed and expected differ by nothing at all."""
    routing = planted_routing(seed=4, topics=3, documents_per_topic=20, tokens=100, n_layers=1, num_experts=8)
    fixed = np.random.default_rng(0).integers(0, 8, (400, 1, 1)).astype(np.uint8)
    object.__setattr__(routing, "experts", fixed[routing.token_id])
    object.__setattr__(routing, "weights", np.ones(routing.experts.shape, dtype=np.float16))
    object.__setattr__(routing, "layers", tuple(x.model_copy(update={"top_k": 1}) for x in routing.layers))
    usage = expected_usage(write(tmp_path / "t", routing, np.ones(len(routing.document), dtype=bool)))
    # only the early positions' share of the vocabulary is left to chance
    assert np.abs(usage.observed - usage.expected).max() < 0.03


def test_random_routers_show_what_words_show(mixed: Trace, noise: Trace) -> None:
    table = vocabulary_baseline(noise, routers=10).table.set_index(["layer", "measure"])
    # routing that ignores words goes with topics less than any partition of the vocabulary
    assert (table.xs("mi_topic_bits", level=1)["observed"] < table.xs("mi_topic_bits", level=1)["random_low"]).all()
    again = vocabulary_baseline(noise, routers=10).table
    pd.testing.assert_frame_equal(table.reset_index(), again)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" the", "word start"),
        ("ing", "word continuation"),
        (" Paris", "capitalised word"),
        ("42", "digits"),
        (" 7", "digits"),
        (",", "punctuation"),
        (" (", "punctuation"),
        ("+", "symbol"),
        ("\n\n", "line break"),
        ("Ċ", "line break"),
        (" ", "space"),
        ("Ġword", "word start"),
        ("▁word", "word start"),
        ("λ", "other script"),
        (" чай", "other script"),
        ("<|end|>", "marker"),
        ("", "space"),
        ("iPhone", "word continuation"),
    ],
)
def test_token_class(text: str, kind: str) -> None:
    assert token_class(text) == kind


@given(st.text(max_size=8))
def test_every_text_has_a_class(text: str) -> None:
    from moe_probe.experts.explain import TOKEN_CLASSES

    assert token_class(text) in TOKEN_CLASSES


def test_token_classes_find_an_expert_of_a_class(tmp_path: Path) -> None:
    """Even token codes are spelled as word starts: an expert that takes them is found, others are not."""
    routing = planted_routing(seed=1, topics=3, documents_per_topic=20, tokens=80, n_layers=1, num_experts=8)
    takes = (routing.token_id % 2 == 1) & (np.random.default_rng(0).random(len(routing.token_id)) < 0.5)
    routing.experts[takes, 0, 0] = 5
    twin = takes & (routing.experts[:, 0, 1] == 5)
    routing.experts[twin, 0, 1] = 4
    trace = write_spelled(tmp_path / "t", routing)
    table = expert_token_classes(trace).table.set_index(["expert", "token_class"])
    assert table.loc[(5, "word start"), "significant"]
    assert table.loc[(5, "word start"), "log2_lift"] > 1
    assert table.loc[(5, "word start"), "share"] > table.loc[(5, "word continuation"), "share"]


def write_spelled(path: Path, routing) -> Trace:
    from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo
    from moe_probe.recording.trace import TraceWriter

    writer = TraceWriter.create(
        path,
        Manifest(model=ModelInfo(id="planted"), corpus=CorpusInfo(name="planted"), layers=routing.layers, has_text=False),
    )
    writer.append(
        documents=routing.documents.drop(columns="n_tokens").to_dict("records"),
        tokens={
            "document": routing.document,
            "position": routing.position,
            "token_id": routing.token_id,
            "token": [f"{' ' if i % 2 else ''}w{'ab'[i % 2]}" for i in routing.token_id],
            "special": np.zeros(len(routing.document), dtype=bool),
        },
        experts=routing.experts,
        weights=routing.weights,
    )
    return writer.seal()


def test_the_tokens_and_positions_of_an_expert_are_listed(tmp_path: Path) -> None:
    """One expert takes two words, another the start of every document; a word of one document is not listed."""
    routing = planted_routing(seed=2, topics=3, documents_per_topic=20, tokens=80, n_layers=1, num_experts=8)
    rng = np.random.default_rng(0)
    taken = np.isin(routing.token_id, (4, 9)) & (rng.random(len(routing.token_id)) < 0.8)
    early = (routing.position < 4) & (rng.random(len(routing.token_id)) < 0.7)
    lonely = (routing.document == 7) & (routing.position > 40)
    for place, expert in ((taken, 5), (early, 2), (lonely, 6)):
        routing.experts[place, 0, 0] = expert
        routing.experts[place & (routing.experts[:, 0, 1] == expert), 0, 1] = 0
    routing.token_id[lonely] = 10_001
    trace = write_spelled(tmp_path / "t", routing)
    tokens = expert_tokens(trace, per_expert=5).table.set_index(["expert", "rank"])
    assert {int(tokens.loc[(5, rank), "token_id"]) for rank in (1, 2)} == {4, 9}
    first = tokens.loc[(5, 1)]
    slots = routing.experts[routing.token_id == first["token_id"], 0]
    assert first["selections"] == (slots == 5).sum()
    assert first["taken"] == pytest.approx((slots == 5).mean())
    assert first["lift"] > 2
    assert 10_001 not in set(tokens["token_id"])
    places = expert_positions(trace).table.set_index(["expert", "positions"])
    assert all(
        places.loc[(2, where), "significant"] and places.loc[(2, where), "log2_lift"] > 1 for where in ("0", "1", "2–3")
    )
    assert not (places.loc[7, "significant"] & (places.loc[7, "log2_lift"] > 0.5)).any()


def test_one_kind_of_token_is_refused(tmp_path: Path) -> None:
    routing = planted_routing(seed=1, topics=3, documents_per_topic=6, tokens=20, n_layers=1, num_experts=4)
    trace = write(tmp_path / "t", routing, np.ones(len(routing.document), dtype=bool))
    with pytest.raises(MoeProbeError, match="word start"):
        expert_token_classes(trace)


def test_failures_are_sentences(mixed: Trace) -> None:
    with pytest.raises(MoeProbeError, match="unknown context"):
        expected_usage(mixed, given="sentence")
    with pytest.raises(MoeProbeError, match="times in other documents"):
        expected_usage(mixed, min_count=10**9)
    with pytest.raises(MoeProbeError, match="folds"):
        sample_tokens(mixed, folds=500)
    with pytest.raises(MoeProbeError, match="no column 'topics'"):
        explain_routing(mixed, label="topics")


def test_thinning_keeps_whole_documents(mixed: Trace) -> None:
    whole, part = sample_tokens(mixed), sample_tokens(mixed, max_tokens=6000)
    assert 4000 < len(part.row) < 9000
    assert set(part.fold) == set(whole.fold)
    assert "whole documents" in part.warnings[0]
    sizes = np.bincount(part.group)
    assert (sizes == 120).all()
    assert (np.diff(part.group) >= 0).all()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40))
def test_shared_pairs_are_those_of_two_groups(rows: list[tuple[int, int, int]]) -> None:
    first, second, group = (np.array(x) for x in zip(*rows, strict=True))
    code = shared_pairs(first, second, group)
    for i, (a, b, _) in enumerate(rows):
        groups = {g for x, y, g in rows if (x, y) == (a, b)}
        assert (code[i] >= 0) == (len(groups) > 1)
    numbered, n = compact(code)
    assert n == len(set(code[code >= 0].tolist()))
    assert ((numbered < 0) == (code < 0)).all()


def test_octaves_of_positions() -> None:
    assert position_octaves(np.array([0, 1, 2, 3, 4, 7, 8])).tolist() == [0, 1, 2, 2, 3, 3, 4]


def test_bins_of_positions_are_as_fine_as_the_data_bear() -> None:
    position = np.tile(np.arange(200), 100)
    bins = position_bins(position)
    assert bins[:32].tolist() == list(range(32))  # every early position for itself
    later = np.flatnonzero(np.diff(bins[:200]))
    assert np.diff(later[later >= 32]).max() <= 200 // 32 + 1 and (np.diff(bins[:200]) >= 0).all()
    few = position_bins(np.arange(200))
    assert np.bincount(few).min() >= 64 and few.max() == 2
    assert position_bins(np.array([0, 0, 1])).tolist() == [0, 0, 0]
    assert len(position_bins(np.zeros(0, dtype=int))) == 0


def test_other_labels_and_gate_mass(tmp_path: Path) -> None:
    routing = planted_routing(planted=(TOPIC,), lift=3.0, seed=0, **SMALL)
    usage = routing.usage()
    assert other_labels(usage) == []
    usage.documents["subtopic"] = usage.documents["topic"] + "-" + (np.arange(len(usage.documents)) % 2).astype(str)
    usage.documents["constant"] = "x"
    assert other_labels(usage) == ["subtopic"]
    found = expert_labels(usage, ["subtopic", "constant"], permutations=199)
    assert set(found.table["label"]) == {"subtopic"}
    assert "constant was left out" in found.warnings[0]
    hit = found.table.set_index(["layer", "expert", "value"])
    assert hit.loc[(0, 1, "topic-0-0"), "significant"]
    assert hit.loc[(0, 1, "topic-0-1"), "significant"]
    mass = expert_topics(usage, measure="gate_mass", permutations=199)
    assert mass.name == "expert_topics_gate_mass"
    assert mass.table.set_index(["layer", "expert", "topic"]).loc[(0, 1, "topic-0"), "significant"]
    with pytest.raises(MoeProbeError, match="measure"):
        expert_topics(usage, measure="mass")
