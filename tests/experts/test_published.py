"""Published metrics against hand-worked examples, brute force, and routers without preferences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.routing import RoutingShape

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import Usage
from moe_probe.core.schema import MoeLayer
from moe_probe.experts.published import (
    consecutive_repetition,
    domain_specialisation,
    esft_scores,
    first_choices,
    published_metrics,
    random_repetition,
    risk_difference,
    router_saturation,
    saliency,
    smallest_set,
    vocabulary_experts,
    vocabulary_specialisation,
)
from moe_probe.experts.published.choices import sampled_documents
from moe_probe.experts.published.domains import domain_table
from moe_probe.recording.trace import Trace
from moe_probe.report.sections.together import published_section
from moe_probe.testing import PlantedExpert, planted_routing, planted_trace

SMALL: RoutingShape = {"topics": 3, "documents_per_topic": 8, "tokens": 60, "n_layers": 2, "num_experts": 8, "top_k": 2}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return planted_trace(tmp_path_factory.mktemp("p") / "t", planted=(PlantedExpert(0, 3, "topic", 1),), seed=0, **SMALL)


def routing_of(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    chunks = list(trace.iter_routing())
    return (
        np.concatenate([c.experts for c in chunks]),
        np.concatenate([c.weights for c in chunks]),
        np.concatenate([c.document for c in chunks]),
        np.concatenate([c.token_id for c in chunks]),
    )


def test_domain_specialisation_by_hand(trace: Trace) -> None:
    assert domain_specialisation(np.array([[3, 1], [2, 2]]), np.array([2, 2])).tolist() == [[1.5, 0.5], [1, 1]]
    experts, _, document, _ = routing_of(trace)
    topics = trace.documents["topic"].to_numpy()[document]
    table = domain_table(trace).table.set_index(["layer", "expert", "domain"])
    for layer, expert, domain in ((0, 3, "topic-1"), (1, 0, "topic-2")):
        inside = topics == domain
        by_hand = (experts[inside, layer] == expert).any(1).mean()
        assert table.loc[(layer, expert, domain), "specialisation"] == pytest.approx(by_hand)
    assert (table["baseline"] == 0.25).all()


def test_repetition_of_random_choices() -> None:
    """Mixtral's own baselines for 8 experts: 12.5 % and 46 %."""
    assert random_repetition(8, 1) == pytest.approx(0.125)
    assert random_repetition(8, 2) == pytest.approx(0.464, abs=5e-4)


def test_repetition_equals_a_loop(trace: Trace) -> None:
    experts, weights, document, _ = routing_of(trace)
    order = np.argsort(-weights.astype(np.float32), axis=-1, kind="stable")
    best = np.take_along_axis(experts, order, axis=-1)
    same = shared = pairs = 0
    for i in range(1, len(best)):
        if document[i] == document[i - 1]:
            pairs += 1
            same += best[i, 1, 0] == best[i - 1, 1, 0]
            shared += bool(set(best[i, 1]) & set(best[i - 1, 1]))
    row = consecutive_repetition(trace).table.set_index(["layer", "domain"]).loc[(1, "all")]
    assert row["pairs"] == pairs
    assert row["first_choice"] == pytest.approx(same / pairs)
    assert row["first_or_second"] == pytest.approx(shared / pairs)
    assert 0 < row["first_or_second"] - row["first_or_second_random"] < 0.15  # habits of documents, nothing else


def test_first_choice_is_the_heaviest() -> None:
    experts = np.array([[[4, 255, 2]]], dtype=np.uint8)
    weights = np.array([[[0.1, 0.0, 0.6]]], dtype=np.float16)
    assert first_choices(experts, weights).tolist() == [[2]]
    assert first_choices(experts, None).tolist() == [[4]]


@given(arrays(np.float64, (3, 6), elements=st.floats(0, 1)), st.floats(0.05, 0.95))
def test_smallest_set_reaches_p_and_no_smaller_one_does(scores: np.ndarray, p: float) -> None:
    total = scores.sum(1)
    shares = np.divide(scores, total[:, None], out=np.zeros_like(scores), where=total[:, None] > 0)
    chosen = smallest_set(shares, p)
    for row, mark in zip(shares, chosen, strict=True):
        if row.sum() > 0:
            assert row[mark].sum() >= p - 1e-9
            assert row[mark].sum() - row[mark].min() < p
            assert row[mark].min() >= row[~mark].max(initial=0.0)


def test_esft_scores_add_up(trace: Trace) -> None:
    table = esft_scores(trace, p=0.3).table
    sums = table.groupby(["layer", "task"])[["token_selection_ratio", "gate_share"]].sum()
    assert np.allclose(sums, 1)
    hit = table.set_index(["layer", "expert", "task"]).loc[(0, 3, "topic-1")]
    assert hit["chosen_by_ratio"]
    assert hit["token_selection_ratio"] > 1.5 / 8


def test_esft_gate_scores_are_means_over_tokens_also_where_weights_do_not_add_up_to_one(trace: Trace) -> None:
    usage = trace.usage()
    assert usage.gate_mass is not None
    third = replace(usage, selections=usage.selections, gate_mass=usage.gate_mass / 3)
    table = esft_scores(third).table.set_index(["layer", "task", "expert"])
    experts, weights, document, _ = routing_of(trace)
    of_task = trace.documents["topic"].to_numpy()[document] == "topic-1"
    by_hand = [np.where(experts[of_task, 0] == e, weights[of_task, 0].astype(float), 0).sum(1).mean() / 3 for e in range(3)]
    assert table.loc[(0, "topic-1"), "average_gate_score"].to_numpy()[:3] == pytest.approx(by_hand, rel=1e-6)
    assert table.groupby(["layer", "task"])["gate_share"].sum().to_numpy() == pytest.approx(1)
    whole = esft_scores(usage).table
    assert (whole["chosen_by_gate"].to_numpy() == table["chosen_by_gate"].to_numpy()).all(), "p is a share of the gate mass"


def test_rounded_scores_leave_ties_to_the_order_of_experts() -> None:
    layers = (MoeLayer(layer=0, name="l", num_experts=3, top_k=1),)
    documents = pd.DataFrame({"document": ["a"], "topic": ["t"], "n_tokens": [100_000]})
    usage = Usage(np.array([[[30_001, 30_003, 39_996]]]), None, layers, documents)
    assert esft_scores(usage, p=0.6).table["chosen_by_ratio"].tolist() == [False, True, True]
    assert esft_scores(usage, p=0.6, digits=4).table["chosen_by_ratio"].tolist() == [True, False, True]


def test_risk_difference_and_its_z(trace: Trace) -> None:
    from statsmodels.stats.proportion import proportions_ztest

    table = risk_difference(trace, column="topic", positive="topic-1", negative="topic-0").table
    row = table.set_index(["layer", "expert"]).loc[(0, 3)]
    experts, _, document, _ = routing_of(trace)
    topics = trace.documents["topic"].to_numpy()[document]
    active = (experts[:, 0] == 3).any(1)
    counts = [active[topics == t].sum() for t in ("topic-1", "topic-0")]
    totals = [(topics == t).sum() for t in ("topic-1", "topic-0")]
    z, p = proportions_ztest(counts, totals)
    assert row["difference"] == pytest.approx(counts[0] / totals[0] - counts[1] / totals[1])
    assert (row["z"], row["z_p_value"]) == (pytest.approx(z), pytest.approx(p))
    assert abs(row["document_t"]) < abs(row["z"])  # documents differ more than their tokens would let them


def test_pairs_must_be_complete(trace: Trace) -> None:
    usage = planted_routing(seed=0, **SMALL).usage()
    usage.documents["pair"] = np.arange(len(usage.documents)) % 8
    paired = risk_difference(usage, column="topic", positive="topic-1", negative="topic-0", paired_by="pair")
    assert paired.table["documents"].iloc[0] == 16
    usage.documents.loc[0, "pair"] = 99
    with pytest.raises(MoeProbeError, match="cannot be paired"):
        risk_difference(usage, column="topic", positive="topic-1", negative="topic-0", paired_by="pair")
    with pytest.raises(MoeProbeError, match="'nothing'"):
        risk_difference(usage, column="topic", positive="nothing", negative="topic-0")


def test_vocabulary_of_a_token_router(tmp_path: Path) -> None:
    """A router that is a function of the token is fully context independent; one that ignores it is not."""
    from support.routing import write

    routing = planted_routing(seed=0, topics=3, documents_per_topic=20, tokens=100, n_layers=1, num_experts=8)
    object.__setattr__(routing, "experts", (routing.token_id % 8).astype(np.uint8)[:, None, None])
    object.__setattr__(routing, "weights", np.ones(routing.experts.shape, dtype=np.float16))
    object.__setattr__(routing, "layers", tuple(x.model_copy(update={"top_k": 1}) for x in routing.layers))
    table = vocabulary_specialisation(write(tmp_path / "t", routing, np.ones(len(routing.document), bool))).table
    row = table[table["ids"] == "input"].iloc[0]
    assert row[["top1", "topk", "context_independence"]].tolist() == pytest.approx([1, 1, 1])
    assert row["entropy_bits"] == 0
    assert row["context_independence_shuffled"] < 0.5
    following = table[table["ids"] == "output"].iloc[0]
    assert following["context_independence"] < 0.6


def test_vocabulary_needs_occurrences(trace: Trace) -> None:
    with pytest.raises(MoeProbeError, match="occurs"):
        vocabulary_specialisation(trace, min_count=10**6)


def test_saturation(trace: Trace, tmp_path: Path) -> None:
    assert (router_saturation(trace, trace).table["saturation"] == 1).all()
    other = planted_trace(tmp_path / "other", planted=(), seed=0, **SMALL)  # same tokens, other routing
    found = router_saturation(other, trace).table
    a, b = routing_of(other)[0], routing_of(trace)[0]
    by_hand = np.mean([len(set(x) & set(y)) / 2 for x, y in zip(a[:, 0], b[:, 0], strict=True)])
    assert found["saturation"].iloc[0] == pytest.approx(by_hand)
    assert found["baseline"].iloc[0] == 0.25
    with pytest.raises(MoeProbeError, match="cannot be compared"):
        router_saturation(planted_trace(tmp_path / "more", planted=(), seed=1, **(SMALL | {"tokens": 50})), trace)


def test_saliency_needs_norms(trace: Trace) -> None:
    with pytest.raises(MoeProbeError, match="expert_output_norms"):
        saliency(trace)


def test_saliency_of_a_collected_trace(checkpoint: Path, tmp_path: Path) -> None:
    from support.corpora import write_corpus

    from moe_probe.models import load_model
    from moe_probe.recording.collect import CollectOptions, collect_trace
    from moe_probe.recording.corpus import Corpus

    trace = collect_trace(
        load_model(checkpoint, progress=False),
        Corpus(write_corpus(tmp_path / "c.jsonl")),
        tmp_path / "t",
        options=CollectOptions(keep=("routing", "expert_output_norms")),
    )
    table = saliency(trace).table
    assert table["tokens"].sum() == trace.usage().selections.sum()
    assert (table["saliency"].dropna() > 0).all()


def test_summary_holds_every_metric(trace: Trace) -> None:
    table = published_metrics(trace).table
    assert set(table["layer"]) == {0, 1}
    names = " ".join(table["metric"].unique())
    for word in ("domain specialisation", "ESFT", "repetition", "vocabulary", "context independence", "variation", "dead"):
        assert word in names
    again = published_metrics(trace).table
    pd.testing.assert_frame_equal(table, again)


def authors_vocabulary(ids: np.ndarray, choices: np.ndarray, min_count: int) -> tuple[float, dict[int, float]]:
    """OLMoE's own way: gather every id's experts in a list, take the commonest; mean over ids, and over each expert's."""
    lists: dict[int, list[int]] = {}
    for token, experts in zip(ids.tolist(), choices.tolist(), strict=True):
        lists.setdefault(token, []).extend(experts)
    shares: list[float] = []
    per_expert: dict[int, list[float]] = {}
    for experts in lists.values():
        if len(experts) // choices.shape[1] >= min_count:
            commonest = max(sorted(set(experts)), key=experts.count)
            shares.append(experts.count(commonest) / (len(experts) // choices.shape[1]))
            per_expert.setdefault(commonest, []).append(shares[-1])
    return float(np.mean(shares)), {e: float(np.mean(v)) for e, v in per_expert.items()}


@pytest.mark.parametrize("min_count", [1, 10])
def test_vocabulary_equals_the_authors_loop(trace: Trace, min_count: int) -> None:
    experts, weights, document, ids = routing_of(trace)
    first = np.take_along_axis(experts[:, 1], weights[:, 1].argmax(-1)[:, None], axis=-1)
    row = vocabulary_specialisation(trace, min_count=min_count).table.set_index(["layer", "ids"]).loc[(1, "input")]
    by_hand, per_expert = authors_vocabulary(ids, first, min_count)
    assert row["top1"] == pytest.approx(by_hand)
    assert row["topk"] == pytest.approx(authors_vocabulary(ids, experts[:, 1], min_count)[0])
    found = vocabulary_experts(trace, min_count=min_count).table.query("layer == 1 and ids == 'input'")
    assert dict(zip(found["expert"], found["specialisation"], strict=True)) == pytest.approx(
        {e: per_expert.get(e, np.nan) for e in range(8)}, nan_ok=True
    )
    follows = np.flatnonzero(document[1:] == document[:-1])
    row = vocabulary_specialisation(trace, min_count=min_count).table.set_index(["layer", "ids"]).loc[(1, "output")]
    assert row["top1"] == pytest.approx(authors_vocabulary(ids[follows + 1], first[follows], min_count)[0])


def test_an_id_seen_once_is_no_specialist(trace: Trace) -> None:
    """Planted experts ignore the id: what is above chance is chance, and the shuffled choices show as much."""
    table = vocabulary_specialisation(trace).table.query("layer == 1 and ids == 'input'").iloc[0]
    assert table["top1"] > 1.5 / 8
    assert table["top1"] == pytest.approx(table["top1_shuffled"], abs=0.04)
    assert table["topk"] == pytest.approx(table["topk_shuffled"], abs=0.05)


def test_shuffling_is_the_seeds(trace: Trace) -> None:
    one, same, other = (vocabulary_specialisation(trace, seed=s) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(one.table, same.table)
    assert (one.table["top1"] == other.table["top1"]).all()
    assert (one.table["top1_shuffled"] != other.table["top1_shuffled"]).any()
    assert other.seed == 1


def test_first_choices_of_domains(trace: Trace) -> None:
    experts, weights, document, _ = routing_of(trace)
    first = np.take_along_axis(experts[:, 0], weights[:, 0].argmax(-1)[:, None], axis=-1)[:, 0]
    inside = trace.documents["topic"].to_numpy()[document] == "topic-1"
    table = domain_table(trace, first=True).table.set_index(["layer", "expert", "domain"])
    assert table.loc[(0, 3, "topic-1"), "specialisation"] == pytest.approx((first[inside] == 3).mean())
    assert table.groupby(["layer", "domain"])["specialisation"].sum().to_numpy() == pytest.approx(np.ones(6))
    assert (table["baseline"] == 1 / 8).all()
    with pytest.raises(MoeProbeError, match="first choices cannot be counted"):
        domain_table(trace.usage(), first=True)


def rewritten(path: Path, routing, **changes: object) -> Trace:
    from support.routing import write

    for name, value in changes.items():
        object.__setattr__(routing, name, value)
    return write(path, routing, np.ones(len(routing.document), dtype=bool))


def test_empty_slots_do_not_shrink_a_domain(tmp_path: Path) -> None:
    """Half of one domain's tokens reach one expert instead of two: its tokens are still its tokens."""
    routing = planted_routing(seed=0, **SMALL)
    experts = routing.experts.copy()
    experts[::2, :, 1] = 255
    trace = rewritten(tmp_path / "t", routing, experts=experts)
    table = domain_table(trace).table.set_index(["layer", "expert", "domain"])
    inside = trace.documents["topic"].to_numpy()[routing.document] == "topic-0"
    assert table.loc[(0, 5, "topic-0"), "specialisation"] == pytest.approx((experts[inside, 0] == 5).any(1).mean())
    steer = risk_difference(trace, column="topic", positive="topic-0", negative="topic-1").table
    assert steer["positive_rate"].iloc[5] == pytest.approx((experts[inside, 0] == 5).any(1).mean())


def test_documents_without_a_label_are_no_domain(tmp_path: Path) -> None:
    routing = planted_routing(seed=0, **SMALL)
    documents = routing.documents.assign(subject=routing.documents["topic"].replace("topic-2", ""))
    trace = rewritten(tmp_path / "t", routing, documents=documents)
    domains, tasks = domain_table(trace, label="subject"), esft_scores(trace, label="subject")
    assert set(domains.table["domain"]) == set(tasks.table["task"]) == {"topic-0", "topic-1"}
    repeats = consecutive_repetition(trace, label="subject").table.query("layer == 0").set_index("domain")["pairs"]
    assert repeats.to_dict() == {"all": 24 * 59, "topic-0": 8 * 59, "topic-1": 8 * 59}
    for compute in (domain_table, esft_scores, consecutive_repetition):
        with pytest.raises(MoeProbeError, match="no column 'tpoic'"):
            compute(trace, label="tpoic")


def test_a_sample_holds_every_topic(tmp_path: Path) -> None:
    """Topics that take turns: every nth document would be of one topic."""
    routing = planted_routing(seed=0, topics=4, documents_per_topic=60, tokens=10, n_layers=1, num_experts=4)
    routing.documents["topic"] = [f"topic-{i % 4}" for i in range(240)]
    trace = rewritten(tmp_path / "t", routing)
    used = sampled_documents(trace, trace.n_tokens // 4)
    assert used.sum() == 60
    assert trace.documents["topic"][used].nunique() == 4
    assert sampled_documents(trace, trace.n_tokens).all()
    assert sampled_documents(trace, 1).sum() == 1


@pytest.fixture(scope="module")
def random_traces(tmp_path_factory: pytest.TempPathFactory) -> list[Trace]:
    """Two routers of 8 experts, top-2, that choose uniformly, independently of everything."""
    folder = tmp_path_factory.mktemp("random")
    made = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        routing = planted_routing(seed=0, topics=3, documents_per_topic=14, tokens=500, n_layers=1, num_experts=8)
        experts = rng.random((len(routing.document), 8)).argsort(1)[:, None, :2].astype(np.uint8)
        weights = rng.random(experts.shape).astype(np.float16)
        made.append(rewritten(folder / str(seed), routing, experts=experts, weights=weights))
    return made


def test_random_routers_meet_every_baseline(random_traces: list[Trace]) -> None:
    row = consecutive_repetition(random_traces[0]).table.query("domain == 'all'").iloc[0]
    error = np.sqrt(0.25 / row["pairs"])
    assert row["first_choice"] == pytest.approx(0.125, abs=4 * error)
    assert row["first_or_second"] == pytest.approx(13 / 28, abs=4 * error)
    found = router_saturation(*random_traces).table.iloc[0]
    assert found["saturation"] == pytest.approx(0.25, abs=4 * error)
    assert found["first_choice"] == pytest.approx(0.125, abs=4 * error)
    assert (domain_table(random_traces[0]).table["specialisation"] - 0.25).abs().max() < 8 * error


def test_saturation_wants_the_same_documents(trace: Trace, tmp_path: Path) -> None:
    routing = planted_routing(seed=0, planted=(PlantedExpert(0, 3, "topic", 1),), **SMALL)
    document, position = routing.document.copy(), routing.position.copy()
    document[60], position[60] = 0, 60  # one token over a border
    with pytest.raises(MoeProbeError, match="tokens differ"):
        router_saturation(rewritten(tmp_path / "t", routing, document=document, position=position), trace)


def test_a_sample_is_named_in_table_params_caption_and_report(trace: Trace) -> None:
    whole, part = published_metrics(trace), published_metrics(trace, max_tokens=trace.n_tokens // 3)
    assert "Measured on all 24 documents." in whole.caption and (whole.table["documents"] == 24).all()
    said = "random sample of 8 of 24 documents (480 of 1,440 tokens)"
    assert said in part.caption and part.params["sampled_documents"] == 8 and part.params["sampled_tokens"] == 480
    sampled = part.table["metric"].str.contains("repetition|vocabulary|context")
    assert (part.table.loc[sampled, "documents"] == 8).all() and (part.table.loc[~sampled, "documents"] == 24).all()
    assert any(said in str(block) for block in published_section({"published": part}).blocks)
    own = consecutive_repetition(trace, max_tokens=trace.n_tokens // 3).table.query("domain == 'all'")["first_choice"]
    named = part.table.query("metric == 'consecutive repetition, first choice'")["value"]
    assert named.to_numpy() == pytest.approx(own.to_numpy())


def test_every_metric_names_its_own_authors(trace: Trace) -> None:
    table = published_metrics(trace, top=3).table
    source = table.groupby("metric")["source"].first()
    assert "OpenMoE" in source["context independence"]
    assert "OLMoE" in source["vocabulary specialisation, input ids, first choice"]
    largest = table[table["metric"] == "largest domain specialisation"]
    assert largest.groupby("layer").size().tolist() == [3, 3]
    assert largest["unit"].iloc[0] == "expert 3, topic-1"
