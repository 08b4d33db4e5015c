"""Labels of features: planted meanings are found and scored on other text, noise gets neither label nor topic."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.pieces import with_spaces
from moe_probe.features.describe import GOOD_SCORE, FeatureTables, LabelSettings, describe_features
from moe_probe.features.firing import Firings, SplitFirings, fire
from moe_probe.features.labels.context import Factor, token_context
from moe_probe.features.labels.excerpts import FIFTHS, HARD, SILENT, TOP, Excerpts
from moe_probe.features.labels.rule_labels import label_by_rules, nearest, strongest
from moe_probe.features.labels.rules import MAX_VALUES, detect, make_rules
from moe_probe.features.quality import decoder_redundancy, quality_row
from moe_probe.features.search.occurrences import occurrences
from moe_probe.features.topic_enrichment import enrich, group_rates
from moe_probe.recording.trace import Trace
from moe_probe.sae import ActivationReader, SaeConfig, make_sae
from moe_probe.sae.held_out import held_out_documents
from moe_probe.testing import PlantedFeature, planted_activations
from moe_probe.testing.activations import PlantedActivations

FEATURES = (
    PlantedFeature("word", 2),
    PlantedFeature("topic", 1),
    PlantedFeature("before", 1),
    *(PlantedFeature("noise"),) * 5,
)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> PlantedActivations:
    return planted_activations(
        tmp_path_factory.mktemp("planted") / "trace",
        features=FEATURES,
        topics=4,
        d_in=128,
        documents_per_topic=30,
        tokens=60,
        num_experts=4,
        vocabulary=200,
    )


def perfect_sae(planted: PlantedActivations) -> Any:
    """The planted dictionary itself: what a label says is then about the label and not about training."""
    import torch

    n, d_in = planted.directions.shape
    sae = make_sae(SaeConfig(architecture="standard", d_in=d_in, d_sae=n)).eval()
    with torch.no_grad():
        for parameter in (sae.W_enc, sae.W_dec):
            parameter.copy_(torch.from_numpy(planted.directions))
        sae.b_dec.copy_(torch.from_numpy(planted.mean))
        sae.b_enc.fill_(-0.75)
    return sae


@pytest.fixture(scope="module")
def found(planted: PlantedActivations) -> tuple[Any, FeatureTables, Firings]:
    trace = planted.trace
    held = held_out_documents(trace)
    train, other = (ActivationReader(trace, layer=0, documents=d) for d in (~held, held))
    sae = perfect_sae(planted)
    firings = fire(sae, other)
    settings = LabelSettings(finer=None, permutations=199)
    tables = describe_features(trace, sae, token_context(trace), SplitFirings(fire(sae, train), firings), settings)
    return sae, tables, firings


def test_planted_meanings_are_found(found) -> None:
    rows = found[1].features
    assert rows["label"][0] == "“word2”" and rows["label_rule"][0] == "word"
    assert rows["label"][1] == "topic: topic-1"
    assert rows["label"][2] == "after “word1”"
    assert (rows["label_score"][[0, 2]] > 0.95).all() and rows["good"][[0, 2]].all()
    # the topic's rule fires on every token of the topic, the feature on half of them
    assert rows["label_recall"][1] > 0.95 and 0.4 < rows["label_precision"][1] < 0.6
    assert rows["topic"][1] == "topic-1" and rows["auroc_topic"][1] == 1 and rows["topic_q"][1] < 0.01
    assert rows["top_tokens"][0] == "word2"


def test_noise_gets_no_topic_and_no_good_label(found) -> None:
    rows = found[1].features[3:]
    assert (rows["topic"] == "").all() and not rows["good"].any()
    assert (rows["label_score"] < 0.65).all()


def test_columns_of_the_contract(found) -> None:
    assert list(found[1].features.columns[:9]) == [
        "layer",
        "width",
        "feature",
        "label",
        "label_score",
        "topic",
        "auroc_topic",
        "density",
        "top_tokens",
    ]


def test_shuffled_firings_claim_nothing(planted: PlantedActivations) -> None:
    """Firings that have nothing to do with the text: a topic in about 5 % of data sets, hardly ever a good label."""
    trace, rng = planted.trace, np.random.default_rng(0)
    held, text = held_out_documents(trace), token_context(trace)
    document = text.document
    n, m = trace.n_tokens, 60
    matrix = sparse.random_array((n, m), density=0.03, rng=rng, dtype=np.float32).tocsr()
    every = Firings(matrix, np.arange(n))
    train, other = every.select(~held[document]), every.select(held[document])
    labels = label_by_rules(text, train, other, decoder=rng.normal(size=(m, 8)))
    assert np.nanmax(labels.detection.score) < GOOD_SCORE and np.nanmedian(labels.detection.score) < 0.55
    rates = [group_rates(trace.documents, document, f, label="topic") for f in (train, other)]
    assert (enrich(*rates, permutations=199).topic >= 0).sum() <= 1


def brute_detection(rules, factor: Factor, fired: np.ndarray, rows: np.ndarray, neighbour: np.ndarray) -> np.ndarray:
    out = []
    members = rules.members.toarray().astype(bool)
    for f in range(fired.shape[1]):
        said = np.array([c >= 0 and members[c, f] for c in factor.codes[rows]])
        on, hard = fired[:, f], fired[:, neighbour[f]] & ~fired[:, f]
        out.append(
            [
                said[on].mean() if on.any() else np.nan,
                said[~on].mean(),
                said[hard].mean() if hard.any() else np.nan,
                on[said].mean() if said.any() else np.nan,
            ]
        )
    return np.array(out)


@pytest.mark.parametrize("seed", range(5))
def test_detection_equals_a_loop(planted: PlantedActivations, seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = token_context(planted.trace)
    rows = np.sort(rng.choice(planted.trace.n_tokens, 400, replace=False))
    fired = rng.random((400, 7)) < rng.uniform(0, 0.3, 7)
    neighbour = rng.integers(0, 7, 7)
    for name in ("word", "words", "place", "topic"):
        rules = make_rules(text.factor(name), sparse.csr_array(fired.astype(np.float32)), rows)
        got = detect(rules, text, sparse.csr_array(fired.astype(np.float32)), rows, neighbour=neighbour)
        expected = brute_detection(rules, text.factor(name), fired, rows, neighbour)
        assert np.allclose(
            np.stack([got.recall, got.false_alarms, got.hard_alarms, got.precision], 1), expected, equal_nan=True, atol=1e-6
        )
        assert rules.members.sum(0).max() <= MAX_VALUES
        f1 = np.nan_to_num(2 * expected[:, 0] * expected[:, 3] / (expected[:, 0] + expected[:, 3]))
        assert np.allclose(rules.f1, f1, atol=1e-5)  # made and tried on the same tokens


def test_more_values_are_taken_only_where_they_help(planted: PlantedActivations) -> None:
    """No single value, and no shorter list in the same order, has a higher F1."""
    rng = np.random.default_rng(3)
    text, rows = token_context(planted.trace), np.arange(2000)
    factor = text.factor("word")
    fired = rng.random(2000) < np.isin(factor.codes[rows], [3, 4, 5]) * 0.6 + 0.02
    rules = make_rules(factor, sparse.csr_array(fired[:, None].astype(np.float32)), rows)
    values = rules.order[1]

    def f1(chosen: np.ndarray) -> float:
        said = np.isin(factor.codes[rows], chosen)
        return 2 * (said & fired).sum() / (said.sum() + fired.sum())

    assert rules.f1[0] == pytest.approx(f1(values))
    assert all(f1(values[:n]) <= rules.f1[0] + 1e-9 for n in range(1, len(values)))


def test_words_are_put_together_from_pieces() -> None:
    class Fake:
        documents, spaced = pd.DataFrame({"topic": ["a", "b"]}), staticmethod(with_spaces)

        def tokens(self, columns):
            pieces = [" Ph", "os", "ph", "ate", ",", " don", "'t", "\n", "The", " 3", "rd", " x", "yz"]
            return pd.DataFrame({"document": [0] * 11 + [1] * 2, "position": [*range(11), 0, 1], "token": pieces})

    text = token_context(cast(Trace, Fake()))
    word, before = text.factor("word"), text.factor("word before")
    read = [word.values[c] if c >= 0 else None for c in word.codes]
    assert read == ["phosphate"] * 4 + [None, "don't", "don't", None, "the", "3rd", "3rd", "xyz", "xyz"]
    assert [before.values[c] if c >= 0 else None for c in before.codes][8:] == ["", "the", "the", None, None]
    place = text.factor("place")
    assert [place.values[c] if c >= 0 else "" for c in place.codes][:9] == [
        "start of a document",
        "",
        "",
        "",
        "",
        "after a comma or bracket",
        "",
        "",
        "start of a line",
    ]


def test_rules_are_tried_on_documents_of_other_sources() -> None:
    """Two documents of each source stand one behind the other: by the parity of rows every source would be on both sides."""
    from moe_probe.features.labels.rule_labels import _first_half

    class Fake:
        documents = pd.DataFrame(
            {
                "document": [f"d{i}" for i in range(24)],
                "topic": ["a"] * 12 + ["b"] * 12,
                "group": [f"source {i // 2}" for i in range(24)],
            }
        )
        spaced = staticmethod(with_spaces)

        def tokens(self, columns):
            return pd.DataFrame(
                {"document": np.repeat(np.arange(24), 5), "position": np.tile(np.arange(5), 24), "token": [" word"] * 120}
            )

    trace: Any = Fake()
    text = token_context(trace)
    half = _first_half(text, np.arange(120))
    by_group = pd.DataFrame(
        {"group": np.repeat(Fake.documents["group"], 5), "topic": np.repeat(Fake.documents["topic"], 5), "half": half}
    )
    assert (by_group.groupby("group")["half"].nunique() == 1).all()
    assert by_group.groupby("topic")["half"].mean().tolist() == [0.5, 0.5]
    trace.documents = Fake.documents.assign(group="one source")  # nothing but documents is left to divide by
    assert 0 < _first_half(token_context(trace), np.arange(120)).mean() < 1
    trace.documents = Fake.documents.assign(topic=Fake.documents["document"], group="")  # topics of one document each
    assert _first_half(token_context(trace), np.arange(120)).mean() == 0.5


def test_strongest_firings_and_nearest_features() -> None:
    values = sparse.csr_array(np.array([[1.0, 0], [3, 0], [2, 5], [4, 0]], dtype=np.float32))
    assert strongest(values).toarray().tolist() == [[0, 0], [1, 0], [0, 1], [1, 0]]
    rows = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [1, 0.01]])
    assert nearest(rows, alive=np.array([True, True, True, False])).tolist() == [1, 0, 1, 0]


def test_excerpts_come_from_all_strengths(found, planted: PlantedActivations) -> None:
    _, tables, firings = found
    feature = 0
    drawn = Excerpts(planted.trace, firings).draw(feature, neighbour=int(tables.features["nearest"][feature]))
    parts = [e.part for e in drawn]
    assert parts == [TOP] * 3 + list(FIFTHS) + [HARD, SILENT]
    strength = [firings.matrix[np.flatnonzero(firings.rows == e.row)[0], feature] for e in drawn]
    assert strength[:3] == sorted(strength[:3], reverse=True) and strength[0] == firings.matrix[:, [feature]].max()
    assert strength[3] >= strength[4] >= strength[5] >= strength[6] >= strength[7] > 0 == strength[8] == strength[9]
    document = planted.trace.tokens(["document"])["document"].to_numpy()
    for excerpt, value in zip(drawn, strength, strict=True):
        assert document[excerpt.row] == excerpt.document and len(excerpt.tokens) == len(excerpt.activations)
        assert np.isclose(max(excerpt.activations), value) or value < max(excerpt.activations)
    assert len({e.document for e in drawn}) == len(drawn)


def test_cards_show_the_best_and_the_ordinary(found) -> None:
    chosen = found[1].cards.groupby("feature")["chosen"].first()
    assert set(chosen) == {"topic", "best", "drawn"} and len(chosen) == 8


def test_variance_and_sparsity_equal_a_direct_count(found, planted: PlantedActivations) -> None:
    sae, _, firings = found
    held = held_out_documents(planted.trace)
    reader = ActivationReader(planted.trace, layer=0, documents=held)
    row = quality_row(sae, reader, firings)
    x = np.concatenate([b.values.float().numpy() for b in reader.in_order()])
    import torch

    with torch.no_grad():
        y = sae(torch.from_numpy(x)).numpy()
    assert row["fvu"] == pytest.approx(((x - y) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-4)
    assert row["l0"] == pytest.approx((firings.matrix > 0).sum() / len(x))
    assert row["dead"] == (firings.counts == 0).mean() and row["dense"] == (firings.counts > 0.1 * len(x)).mean()
    rows = sae.W_dec.detach().numpy()
    cosine = rows @ rows.T - 2 * np.eye(len(rows))
    assert decoder_redundancy(sae, np.ones(8, dtype=bool))[0] == pytest.approx(cosine.max(1).mean(), abs=1e-5)


def test_an_experts_sae_is_asked_about_its_own_tokens(planted: PlantedActivations) -> None:
    sae = make_sae(SaeConfig(d_in=128, d_sae=8, k=2, experts=(1,))).eval()
    reader = ActivationReader(planted.trace, layer=0)
    assert len(fire(sae, reader).rows) == reader.expert_counts()[1]
    with pytest.raises(MoeProbeError, match="width 16"):
        fire(make_sae(SaeConfig(d_in=16, d_sae=8)), reader)


def test_words_are_found_however_they_were_cut() -> None:
    class Fake:
        manifest, spaced = SimpleNamespace(has_text=False), staticmethod(with_spaces)

        def tokens(self, columns):
            pieces = ["<s>", "An", "th", "rax", " and", " the", " an", "thracite", "An", "thrax", "!"]
            return pd.DataFrame({"document": [0] * 8 + [1] * 3, "token": pieces, "special": [True] + [False] * 10})

    trace: Any = Fake()
    assert occurrences(trace, "anthrax").tolist() == [1, 2, 3, 8, 9]
    assert occurrences(trace, "the an").tolist() == []
    assert occurrences(trace, "AND THE").tolist() == [4, 5]
    assert occurrences(trace, "an?th", regex=True).tolist() == [1, 2, 6, 7, 8, 9]
    assert occurrences(trace, "").tolist() == []
    with pytest.raises(UsageError, match="not a regular expression"):
        occurrences(trace, "(", regex=True)


def test_vocabularies_without_spaces_have_words_too() -> None:
    assert with_spaces(np.array(["the", "acid", "##ic", "##"], dtype=object)).tolist() == [" the", " acid", "ic", " ##"]
    kept = np.array([" a", "cid"], dtype=object)
    assert with_spaces(kept) is kept


def test_features_of_registers_have_no_topic_within_registers(planted: PlantedActivations) -> None:
    """Feature 0 fires by register, feature 1 by topic; topics lie unevenly in registers."""
    rng = np.random.default_rng(0)
    n = len(planted.trace.documents)
    register = np.arange(n) % 2
    topic = np.where(rng.random(n) < 0.8, register, 1 - register)
    documents = planted.trace.documents.assign(
        topic=np.array(["a", "b"])[topic], register=np.array(["prose", "table"])[register], group=[f"g{i}" for i in range(n)]
    )
    document = np.repeat(np.arange(n), 40)
    chance = np.stack([0.1 + 0.3 * register, 0.1 + 0.3 * topic], axis=1)[document]
    fired = rng.random(chance.shape) < chance
    firings = Firings(sparse.csr_array(fired.astype(np.float32)), np.arange(len(document)))
    passed = {}
    for strata in (None, "register"):
        rates = group_rates(documents, document, firings, label="topic", strata=strata)
        passed[strata] = (enrich(rates, rates, permutations=999).q_value <= 0.05).tolist()
    assert passed == {None: [True, True], "register": [False, True]}
    with pytest.raises(MoeProbeError, match="two values of register"):
        group_rates(documents.assign(group="one", topic="a"), document, firings, label="topic", strata="register")
    with pytest.raises(MoeProbeError, match="no column 'source' to stratify by"):
        group_rates(documents, document, firings, label="topic", strata="source")
    alone = group_rates(documents, document, firings, label="topic", strata="topic")
    with pytest.raises(MoeProbeError, match="every stratum holds a single topic"):
        enrich(alone, alone, permutations=99)


def test_one_topic_is_nothing_to_compare(planted: PlantedActivations, tmp_path: Path) -> None:
    document = planted.trace.tokens(["document"])["document"].to_numpy()
    firings = Firings(sparse.csr_array(np.ones((100, 2), dtype=np.float32)), np.arange(100))
    rates = group_rates(planted.trace.documents, document, firings, label="topic")
    with pytest.raises(MoeProbeError, match="of one topic"):
        enrich(rates, rates)
