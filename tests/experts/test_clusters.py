"""Clusters, groups and likeness of experts: planted structure is found, noise has none."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations as subsets
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score
from support.routing import RoutingShape

from moe_probe.core.errors import MoeProbeError
from moe_probe.experts.clusters import (
    Exchangeable,
    agreement,
    cluster_routing,
    cluster_units,
    combinations,
    expert_groups,
    expert_similarity,
    mantel,
    stability,
    weight_similarity,
)
from moe_probe.experts.clusters.chosen_sets import _expected_shares
from moe_probe.experts.explain import expected_usage, topic_beyond_vocabulary
from moe_probe.experts.explain.selections import layer_selections
from moe_probe.experts.topics import expert_topics
from moe_probe.experts.usage import coactivation_table
from moe_probe.studies.verdicts import topic_verdicts
from moe_probe.testing import PlantedExpert, null_trace, planted_routing, planted_trace
from moe_probe.testing.traces import write_routing

SMALL: RoutingShape = {"topics": 4, "documents_per_topic": 20, "tokens": 60, "n_layers": 2, "num_experts": 8}
#: One topic is carried by three experts, each with less than a fiftieth of the selections.
CARRIERS = tuple(PlantedExpert(0, e, "topic", 1) for e in (10, 50, 90))
WIDE = {"topics": 5, "documents_per_topic": 40, "tokens": 200, "n_layers": 1, "num_experts": 240, "lift": 2.6}


def blobs(k: int, *, seed: int = 0, n: int = 40, spread: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 3, (k, 12))
    truth = np.repeat(np.arange(k), n)
    return centres[truth] + rng.normal(0, spread, (k * n, 12)), truth


@pytest.mark.parametrize("k", [2, 4])
def test_planted_clusters_are_recovered(k: int) -> None:
    features, truth = blobs(k)
    found = cluster_units(features)
    assert found.k == k
    assert adjusted_rand_score(truth, found.cluster) == pytest.approx(1)
    assert found.silhouette > found.null_95
    assert stability(features, k) > 0.95


def test_noise_is_one_cluster() -> None:
    ones = [cluster_units(np.random.default_rng(seed).normal(size=(80, 10)), seed=seed).k for seed in range(5)]
    assert ones.count(1) >= 4
    assert np.isnan(stability(np.ones((5, 2)), 1))


def test_few_units_are_one_cluster() -> None:
    found = cluster_units(np.arange(6.0).reshape(3, 2))
    assert (found.k, found.cluster.tolist()) == (1, [0, 0, 0])


def test_agreement_equals_sklearn_and_its_null() -> None:
    _, truth = blobs(3, n=30)
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(90) < 0.3, rng.integers(0, 3, 90), truth)
    got = agreement(noisy, truth, Exchangeable(np.arange(90)))
    assert got.ami == pytest.approx(adjusted_mutual_info_score(truth, noisy))
    assert got.ari == pytest.approx(adjusted_rand_score(truth, noisy))
    assert got.v_measure == pytest.approx(v_measure_score(truth, noisy))
    assert got.ami_p == pytest.approx(0.01)
    assert abs(got.ami_null) < 0.02 < got.ami


def test_agreement_takes_groups_not_units_as_independent() -> None:
    """Clusters follow groups, labels mean nothing: units would be significant nearly always, groups rarely."""
    by_group = by_unit = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(12), 10)
        label = rng.permutation(np.repeat([0, 1, 2], 4))[group]
        cluster = rng.integers(0, 3, 12)[group]
        by_group += agreement(cluster, label, Exchangeable(group), permutations=39, seed=seed).ami_p <= 0.05
        by_unit += agreement(cluster, label, Exchangeable(np.arange(120)), permutations=39, seed=seed).ami_p <= 0.05
    assert by_unit > 10
    assert by_group <= scipy_stats.binom.ppf(0.999, 20, 0.05)


def test_agreement_within_strata_leaves_nothing_to_what_the_strata_explain() -> None:
    """Clusters follow the register, and topics lie unevenly in registers: of topics themselves the clusters know nothing."""
    free = within = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        register = np.repeat([0, 1], 40)
        label = np.where(rng.random(80) < 0.8, register, 1 - register)
        cluster = np.where(rng.random(80) < 0.9, register, 1 - register)
        one_by_one = Exchangeable(np.arange(80))
        free += agreement(cluster, label, one_by_one, permutations=39, seed=seed).ami_p <= 0.05
        stratified = one_by_one._replace(strata=register)
        within += agreement(cluster, label, stratified, permutations=39, seed=seed).ami_p <= 0.05
    assert free > 25
    assert within <= scipy_stats.binom.ppf(0.999, 30, 0.05)
    with pytest.raises(MoeProbeError, match="two strata"):
        agreement(cluster, label, Exchangeable(np.arange(80) // 80, register))


def test_clusters_of_registers_claim_nothing_of_topics_within_registers(tmp_path: Path) -> None:
    planted = tuple(PlantedExpert(layer, e, "topic", t) for layer in (0, 1) for e, t in ((0, 0), (1, 0), (2, 1), (3, 1)))
    routing = planted_routing(
        planted=planted, lift=1.8, seed=3, topics=2, documents_per_topic=40, tokens=60, n_layers=2, num_experts=8
    )
    rng = np.random.default_rng(0)
    register = np.repeat([0, 1], 40)
    topic = np.where(rng.random(80) < 0.75, register, 1 - register)
    documents = routing.documents.assign(register=np.array(["prose", "table"])[register], topic=np.array(["a", "b"])[topic])
    trace = write_routing(tmp_path / "t", replace(routing, documents=documents))
    found = {}
    for strata in (None, "register"):
        result = cluster_routing(trace, others=("register",), max_tokens=300, maps=False, strata=strata).agreement
        found[strata] = result.table.set_index(["unit", "label"])
        assert result.params["strata"] == strata and ("strata do not apply" in result.caption) == (strata is not None)
    assert found[None].loc[("document", "topic"), "ami_p"] == pytest.approx(0.01)
    assert found["register"].loc[("document", "topic"), "ami_p"] > 0.05
    assert found["register"].loc[("token", "topic"), "permuted_within"] == "register"
    assert found["register"].loc[("document", "register"), "ami_p"] == pytest.approx(0.01), (
        "it is not compared within itself"
    )
    assert found["register"].loc["expert", "permuted_within"].tolist() == ["", ""]
    with pytest.raises(MoeProbeError, match="no column 'source'"):
        cluster_routing(trace, max_tokens=300, maps=False, strata="source")


@pytest.mark.xdist_group("umap")
def test_routing_is_clustered_with_all_its_tables(tmp_path: Path) -> None:
    planted = tuple(PlantedExpert(layer, e, "topic", t) for layer in (0, 1) for e, t in ((0, 0), (1, 0), (2, 1), (3, 1)))
    trace = planted_trace(tmp_path / "t", planted=planted, lift=3.0, seed=1, **SMALL)
    found = cluster_routing(trace, max_tokens=300)
    assert [r.name for r in found] == ["clusters", "cluster_summary", "cluster_agreement", "maps"]
    assert list(found.summary.table["unit"]) == ["expert", "document", "token"]
    agreed = found.agreement.table.set_index(["unit", "label"])
    assert agreed.loc[("document", "topic"), "ami"] > 0.2
    assert agreed.loc[("document", "topic"), "ami_p"] == pytest.approx(0.01)
    assert set(found.maps.table["unit"]) == {"expert", "document", "token"}
    assert found.maps.table[["x", "y"]].notna().all(axis=None)
    plain = cluster_routing(trace, max_tokens=300, maps=False)
    pd.testing.assert_frame_equal(found.clusters.table, plain.clusters.table)
    assert plain.maps.table.empty


def test_routing_without_habits_or_topics_has_no_clusters(tmp_path: Path) -> None:
    trace = null_trace(tmp_path / "t", seed=2, group_effect=0.0, document_effect=0.0, **SMALL)
    found = cluster_routing(trace, max_tokens=300, maps=False)
    assert found.summary.table.set_index("unit").loc["document", "k"] == 1
    assert found.agreement.table["ami"].abs().max() < 0.1


def test_a_topic_carried_by_several_experts_gets_a_group_verdict(tmp_path: Path) -> None:
    """No single one takes a fiftieth of the topic's selections; together they are found on the other half."""
    right = 0
    for seed in range(4):
        trace = planted_trace(tmp_path / str(seed), planted=CARRIERS, seed=seed, **WIDE)
        expected = expected_usage(trace)
        groups = expert_groups(trace, expected=[expected], permutations=499)
        verdicts = topic_verdicts(
            expert_topics(trace, permutations=499),
            groups=groups,
            beyond=topic_beyond_vocabulary(trace, usage=expected, permutations=499),
        ).table.set_index("topic")
        assert (verdicts.drop("topic-1")["verdict"] == "none").all()
        row = verdicts.loc["topic-1"]
        if row["verdict"] == "group":
            members = {int(e) for e in row["experts"].split("+")}
            right += len(members & {10, 50, 90}) >= 2 and row["log2_beyond_words"] > 0.25
            assert pd.isna(row["expert"])
            assert row["layer"] == 0
    assert right >= 3


def test_groups_of_token_experts_are_held_back(tmp_path: Path) -> None:
    tokens = tuple(PlantedExpert(0, e, "token", 1) for e in (10, 50, 90))
    rows = []
    for seed in range(4):
        trace = planted_trace(tmp_path / str(seed), planted=tokens, seed=seed, **(WIDE | {"lift": 4.0}))
        table = expert_groups(trace, expected=[expected_usage(trace)], permutations=299).table
        rows.append(table[(table["topic"] == "topic-1") & table["replicated"]])
    found = pd.concat(rows)
    assert len(found) and (found["q_beyond_words"] > 0.05).all()


def test_groups_of_noise_stay_within_the_error_rate(tmp_path: Path) -> None:
    n = 30
    wrong = sum(
        bool(
            expert_groups(planted_routing(seed=seed, **SMALL).usage(), permutations=199, seed=seed).table["replicated"].any()
        )
        for seed in range(n)
    )
    assert wrong <= scipy_stats.binom.ppf(0.999, n, 0.05)


def test_combinations_are_counted_and_expected_shares_add_up(tmp_path: Path) -> None:
    trace = planted_trace(tmp_path / "t", planted=(), seed=0, **SMALL)
    table = combinations(trace, top=5, permutations=99).table
    experts = np.concatenate([c.experts for c in trace.iter_routing()])
    for _, row in table.iterrows():
        pair = np.sort(np.array([int(e) for e in row["experts"].split("+")]))
        by_hand = (np.sort(experts[:, int(row["layer"])], axis=1) == pair).all(1).sum()
        assert row["tokens"] == by_hand
    item = layer_selections(experts[:, 0], layer=0, num_experts=8)
    assert _expected_shares(item, list(subsets(range(8), 2))).sum() == pytest.approx(1)
    assert table["times_expected"].between(0.7, 1.6).all()  # habits only


def test_mantel_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    a, b = (x + x.T for x in rng.normal(size=(2, 7, 7)))
    b = b + 2 * a
    upper = np.triu_indices(7, 1)
    rho, p = mantel(a, b, permutations=199, seed=4)
    assert rho == pytest.approx(np.corrcoef(a[upper], b[upper])[0, 1])
    drawn, order_of = [], np.random.default_rng(4)
    for _ in range(199):
        order = order_of.permutation(7)
        drawn.append(np.corrcoef(a[upper], b[np.ix_(order, order)][upper])[0, 1])
    assert p == pytest.approx((1 + np.sum(np.abs(drawn) >= abs(rho))) / 200)
    assert all(np.isnan(x) for x in mantel(np.ones((5, 5)), a[:5, :5]))


def test_senses_of_likeness(tmp_path: Path) -> None:
    trace = planted_trace(
        tmp_path / "t", planted=tuple(PlantedExpert(0, e, "topic", 1) for e in (0, 1)), lift=3.0, seed=0, **SMALL
    )
    found = expert_similarity(trace, coactivation=coactivation_table(trace))
    pairs = found.pairs.table
    assert list(pairs["kind"].unique()) == ["topics", "documents", "coactivation"]
    twins = pairs[(pairs["layer"] == 0) & (pairs["expert_a"] == 0) & (pairs["expert_b"] == 1)].set_index("kind")
    assert twins.loc["topics", "similarity"] > 0.9
    assert len(found.agreement.table) == 2 * 3
    assert found.agreement.table["p_value"].between(0.001, 1).all()


def test_weights_are_compared_directly(checkpoint: Path) -> None:
    """Equal to cosines of the flattened weights of every expert, taken from the module by hand."""
    import torch

    from moe_probe.models import load_model

    loaded = load_model(checkpoint, progress=False)
    table = weight_similarity(loaded).table.set_index(["layer", "kind", "expert_a", "expert_b"])
    site = loaded.sites[0]
    assert site.experts is not None and site.router is not None
    parameters = [p for p in site.experts.parameters() if p.ndim == 3]
    first, second = (torch.cat([p[e].detach().flatten() for p in parameters]).float() for e in (0, 1))
    cosine = float(torch.nn.functional.cosine_similarity(first, second, dim=0))
    assert table.loc[(site.info.layer, "weights", 0, 1), "similarity"] == pytest.approx(cosine, abs=1e-5)
    router = next(p.detach() for p in site.router.parameters() if p.ndim == 2)
    cosine = float(torch.nn.functional.cosine_similarity(router[0].float(), router[1].float(), dim=0))
    assert table.loc[(site.info.layer, "router", 0, 1), "similarity"] == pytest.approx(cosine, abs=1e-5)


def test_failures_are_sentences(tmp_path: Path) -> None:
    alone = planted_routing(seed=0, **(SMALL | {"documents_per_topic": 1})).usage()
    with pytest.raises(MoeProbeError, match="too few documents"):
        expert_groups(alone)
    single = planted_trace(tmp_path / "one", planted=(), seed=0, **(SMALL | {"top_k": 1}))
    with pytest.raises(MoeProbeError, match="no combinations"):
        combinations(single)
    usage = planted_routing(seed=0, **SMALL).usage()
    usage.documents["constant"] = "x"
    with pytest.raises(MoeProbeError, match="compared between topics"):
        expert_similarity(usage, label="constant")
