"""The way through usage, alignment and verdicts on routing whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from support.routing import RoutingOptions, RoutingShape

from moe_probe.core.errors import MoeProbeError
from moe_probe.experts.topics import expert_topics
from moe_probe.experts.usage import coactivation_table, expert_usage, layer_usage
from moe_probe.studies.verdicts import topic_verdicts
from moe_probe.testing import PlantedExpert, null_trace, planted_routing, planted_trace
from moe_probe.testing.planted import PlantedRouting

CHEMIST = PlantedExpert(layer=1, expert=5, kind="topic", target=2)


def small(seed: int, planted: tuple[PlantedExpert, ...] = (), **more: Unpack[RoutingOptions]) -> PlantedRouting:
    settings: RoutingOptions = {"topics": 5, "documents_per_topic": 24, "tokens": 80, "n_layers": 2, "num_experts": 8}
    settings.update(more)
    return planted_routing(planted=planted, seed=seed, **settings)


def test_planted_lift_is_what_is_measured() -> None:
    """Over several draws the planted expert's measured lift is the one asked for."""
    lifts = []
    for seed in range(6):
        table = expert_topics(small(seed, (CHEMIST,), lift=2.0, documents_per_topic=40).usage(), permutations=99).table
        lifts.append(table.set_index(["layer", "expert", "topic"]).loc[(1, 5, "topic-2"), "log2_lift"])
    assert np.mean(lifts) == pytest.approx(1.0, abs=0.15)


def test_power_at_lift_two() -> None:
    """Forty documents a topic, lift 2: found in at least nine of ten corpora."""
    found = 0
    for seed in range(20):
        table = expert_topics(
            small(seed, (CHEMIST,), lift=2.0, documents_per_topic=40).usage(), permutations=199, seed=seed
        ).table
        row = table.set_index(["layer", "expert", "topic"]).loc[(1, 5, "topic-2")]
        found += bool(row["significant"])
    assert found >= 18


def test_noise_claims_nothing() -> None:
    """Documents with habits, topics that mean nothing: wrong claims stay within the error rate."""
    wrong, experts, n = 0, 0, 40
    for seed in range(n):
        result = expert_topics(small(seed, documents_per_topic=12).usage(), permutations=199, seed=seed)
        wrong += bool(result.table["significant"].any())
        experts += int((topic_verdicts(result).table["verdict"] == "expert").sum())
    assert wrong <= scipy_stats.binom.ppf(0.999, n, 0.05)
    assert experts == 0


def test_trace_of_noise_and_trace_with_an_expert(tmp_path: Path) -> None:
    """The same through sealed traces on disk."""
    settings = {"topics": 5, "documents_per_topic": 30, "tokens": 60, "n_layers": 2, "num_experts": 8, "seed": 3}
    nothing = topic_verdicts(expert_topics(null_trace(tmp_path / "null", **settings), permutations=199)).table
    assert set(nothing["verdict"]) == {"none"}
    trace = planted_trace(tmp_path / "planted", planted=(CHEMIST,), lift=3.0, **settings)
    found = topic_verdicts(expert_topics(trace, permutations=499)).table.set_index("topic")
    assert found.loc["topic-2", ["verdict", "layer", "expert"]].tolist() == ["expert", 1, 5]
    assert (found.drop("topic-2")["verdict"] == "none").all()
    assert "words" in found.loc["topic-2", "reason"]  # the rival that was not tested is named


def test_usage_of_trace_and_of_arrays_agree(tmp_path: Path) -> None:
    settings: RoutingShape = {"topics": 3, "documents_per_topic": 6, "tokens": 40, "n_layers": 2, "num_experts": 8}
    stored = planted_trace(tmp_path / "t", planted=(), seed=1, **settings).usage()
    usage = planted_routing(seed=1, **settings).usage()
    assert (stored.selections == usage.selections).all()
    assert stored.gate_mass is not None and usage.gate_mass is not None
    assert np.allclose(stored.gate_mass, usage.gate_mass, rtol=1e-3)


def test_relabelling_experts_permutes_results() -> None:
    usage = small(0, (CHEMIST,), lift=3.0).usage()
    assert usage.gate_mass is not None
    order = np.random.default_rng(0).permutation(8)
    moved = replace(usage, selections=usage.selections[:, :, order], gate_mass=usage.gate_mass[:, :, order])
    one, other = (expert_topics(u, permutations=99).table for u in (usage, moved))
    back = {int(e): i for i, e in enumerate(order)}
    one = one.assign(expert=one["expert"].map(back)).sort_values(["layer", "expert", "topic"], ignore_index=True)
    for column in ("log2_lift", "ci_low", "auroc", "p_value"):
        assert np.allclose(one[column], other[column], rtol=1e-5)


def test_order_of_documents_does_not_matter() -> None:
    usage = small(1, (CHEMIST,), lift=3.0).usage()
    assert usage.gate_mass is not None
    order = np.random.default_rng(0).permutation(len(usage.documents))
    moved = replace(
        usage,
        selections=usage.selections[order],
        gate_mass=usage.gate_mass[order],
        documents=usage.documents.iloc[order].reset_index(drop=True),
    )
    pd.testing.assert_frame_equal(*(expert_topics(u, permutations=99, seed=4).table for u in (usage, moved)))


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    usage = small(2, (CHEMIST,)).usage()
    for name in ("a", "b"):
        result = expert_topics(usage, permutations=99, seed=7)
        result.save(tmp_path / name)
        topic_verdicts(result).save(tmp_path / name)
        layer_usage(usage, permutations=99, seed=7).save(tmp_path / name)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_groups_are_the_unit() -> None:
    """Every document twice, in one group: nothing is gained by repeating it."""
    usage = small(3, (CHEMIST,), lift=3.0).usage()
    doubled = replace(
        usage,
        selections=np.repeat(usage.selections, 2, axis=0),
        gate_mass=None,
        documents=usage.documents.loc[np.repeat(np.arange(len(usage.documents)), 2)].reset_index(drop=True),
    )
    one, other = (expert_topics(u, permutations=99).table for u in (usage, doubled))
    assert np.allclose(one["p_value"], other["p_value"]) and (one["n_groups"] == other["n_groups"]).all()


def test_labels_that_cannot_be_tested() -> None:
    usage = small(0).usage()
    with pytest.raises(MoeProbeError, match="all documents have the topic"):
        expert_topics(replace(usage, documents=usage.documents.assign(topic="one")))
    with pytest.raises(MoeProbeError, match="did you mean 'topic'"):
        expert_topics(usage, label="topics")
    mixed = usage.documents.assign(group="shared")
    with pytest.raises(MoeProbeError, match="shared"):
        expert_topics(replace(usage, documents=mixed))


def test_topic_of_one_document_claims_nothing_and_says_so() -> None:
    usage = small(0).usage()
    documents = usage.documents.copy()
    documents.loc[0, "topic"] = "lonely"
    result = expert_topics(replace(usage, documents=documents), permutations=99)
    lonely = result.table[result.table["topic"] == "lonely"]
    assert lonely["p_value"].isna().all() and not lonely["significant"].any()
    assert any("lonely" in warning for warning in result.warnings)
    verdict = topic_verdicts(result).table.set_index("topic").loc["lonely"]
    assert verdict["verdict"] == "none" and pd.isna(verdict["layer"])
    assert "too few independent documents" in verdict["reason"]


def test_own_halves_are_used() -> None:
    usage = small(0, (CHEMIST,), lift=3.0).usage()
    split = np.where(np.arange(len(usage.documents)) % 2 == 0, "discovery", "replication")
    result = expert_topics(replace(usage, documents=usage.documents.assign(split=split)), permutations=199)
    assert result.params["halves"] == "the corpus's own split"
    assert result.table.set_index(["layer", "expert", "topic"]).loc[(1, 5, "topic-2"), "replicated"]


def test_layer_numbers() -> None:
    usage = small(0, (CHEMIST,), lift=4.0).usage()
    table = layer_usage(usage, permutations=199).table.set_index("layer")
    load = usage.selections.sum(0)
    for place in range(2):
        share = load[place] / load[place].sum()
        entropy = scipy_stats.entropy(share, base=2)
        assert table.loc[place, "entropy_bits"] == pytest.approx(entropy)
        assert table.loc[place, "effective_experts"] == pytest.approx(2**entropy)
        assert table.loc[place, "load_cv"] == pytest.approx(scipy_stats.variation(load[place]))
    assert table.loc[1, "mi_topic_p"] <= 0.01 and table.loc[1, "mi_topic_bits"] > table.loc[0, "mi_topic_bits"]
    assert table.loc[1, "decode_accuracy"] > table.loc[1, "decode_baseline"]
    assert table["mi_token_bits"].isna().all()  # not computed: no number is given
    experts = expert_usage(usage).table
    assert experts.groupby("layer")["load"].sum().tolist() == pytest.approx([1, 1])
    assert experts.groupby("layer")["gate_mass_share"].sum().tolist() == pytest.approx([1, 1])


def test_coactivation_matches_a_plain_loop(tmp_path: Path) -> None:
    settings = {"topics": 2, "documents_per_topic": 3, "tokens": 50, "n_layers": 2, "num_experts": 6, "top_k": 3}
    trace = planted_trace(tmp_path / "t", planted=(), seed=0, lift=1.0, **settings)
    table = coactivation_table(trace).table.set_index(["layer", "expert_a", "expert_b"])
    experts = np.concatenate([c.experts for c in trace.iter_routing()])
    for layer in range(2):
        chosen = [set(row) for row in experts[:, layer].tolist()]
        for a in range(6):
            for b in range(a + 1, 6):
                both = sum({a, b} <= s for s in chosen)
                n_a, n_b = (sum(e in s for s in chosen) for e in (a, b))
                row = table.loc[(layer, a, b)]
                assert row["tokens"] == both
                assert row["lift"] == pytest.approx(both * len(chosen) / (n_a * n_b))
                assert row["share_of_a"] == pytest.approx(both / n_a)


@pytest.mark.parametrize("bad", [PlantedExpert(9, 0, "topic"), PlantedExpert(0, 0, "mood")])
def test_what_cannot_be_planted(bad: PlantedExpert) -> None:
    with pytest.raises(MoeProbeError, match="cannot be planted"):
        small(0, (bad,))
    with pytest.raises(MoeProbeError, match="lift of 7"):
        small(0, lift=7.0)
