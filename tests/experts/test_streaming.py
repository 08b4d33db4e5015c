"""Analyses of a trace read it shard by shard: memory follows one shard, or a sample of stated size, never the trace."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import Usage, coactivation
from moe_probe.core.stats import group_usage
from moe_probe.core.stats.shares import ShareTable
from moe_probe.experts.clusters import cluster_routing, expert_groups
from moe_probe.experts.clusters.units import expert_units
from moe_probe.experts.contexts import expert_contexts
from moe_probe.experts.explain.selections import layer_selections
from moe_probe.experts.explain.tokens import sample_tokens
from moe_probe.experts.published.choices import first_choices
from moe_probe.experts.samples import even_sample
from moe_probe.experts.topics import expert_topics
from moe_probe.experts.usage import layer_usage
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.recording.trace.ids import IdSet
from moe_probe.recording.trace.usage import StoredUsage
from moe_probe.studies.analyses import AnalysisSettings, analyze
from moe_probe.testing import PlantedExpert, planted_routing
from moe_probe.testing.traces import planted_manifest, shard

ROUTING = planted_routing(
    planted=(PlantedExpert(0, 3, "topic", 1),),
    topics=3,
    documents_per_topic=16,
    tokens=40,
    n_layers=2,
    num_experts=8,
    vocabulary=60,
)


def written(path: Path, *, documents_per_shard: int) -> Trace:
    """The same routing, cut into shards of so many documents, every ninth token special."""
    manifest = planted_manifest(ROUTING, seed=0).model_copy(update={"has_text": True})
    writer = TraceWriter.create(path, manifest)
    for first in range(0, len(ROUTING.documents), documents_per_shard):
        documents = np.arange(first, first + documents_per_shard)
        inside = np.isin(ROUTING.document, documents)
        words = [f"{' ' if i % 2 else ''}word{i}" for i in ROUTING.token_id[inside]]
        part = shard(ROUTING, documents, words)
        part["documents"] = [document | {"text": "not kept"} for document in part["documents"]]
        part["tokens"]["special"] = ROUTING.position[inside] % 9 == 0
        writer.append(**part)
    return writer.seal()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return written(tmp_path_factory.mktemp("many") / "trace", documents_per_shard=2)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return written(tmp_path_factory.mktemp("one") / "trace", documents_per_shard=48)


class WatchedTrace(Trace):
    """A trace that refuses to be read whole, and whose shards may not be kept while the next ones are read."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace.root, trace.manifest)
        self.alive: list[weakref.ref[np.ndarray]] = []

    def tokens(self, *_: Any) -> Any:
        raise AssertionError("the whole token table was asked for")

    def layer(self, *_: Any) -> Any:
        raise AssertionError("a whole layer was asked for")

    def usage(self) -> Usage:
        return WatchedUsage(self.root, self.layers, self.documents, self.manifest.evidence)

    def iter_tokens(self, *args: Any, **options: Any) -> Iterator[Any]:
        for entry, chunk in super().iter_tokens(*args, **options):
            self._watch(next(iter(chunk.columns.values())))
            yield entry, chunk

    def iter_routing(self, *args: Any, **options: Any) -> Iterator[Any]:
        for chunk in super().iter_routing(*args, **options):
            self._watch(chunk.experts)
            yield chunk

    def _watch(self, array: np.ndarray) -> None:
        while isinstance(array.base, np.ndarray):  # views keep what holds the memory
            array = array.base
        self.alive = [ref for ref in self.alive if ref() is not None]
        # the loop that reads holds the shard before this one, and each of two iterators one more
        assert len(self.alive) <= 4, "shards that were read are still held"
        self.alive.append(weakref.ref(array))


class WatchedUsage(StoredUsage):
    @property
    def selections(self) -> np.ndarray:
        raise AssertionError("counts of all documents, layers and experts were asked for")

    @property
    def gate_mass(self) -> np.ndarray:
        raise AssertionError("gate weights of all documents, layers and experts were asked for")


def test_analyze_reads_shard_by_shard(many: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = pq.read_table

    def watched(source: Any, *args: Any, **options: Any) -> Any:
        assert Path(source).name not in ("tokens.parquet", "usage.parquet"), f"{source} was read whole"
        return read(source, *args, **options)

    monkeypatch.setattr(pq, "read_table", watched)
    # the layout in the plane sees at most 600 units and would take longer than all else
    monkeypatch.setattr("moe_probe.experts.clusters.clustering._umap", lambda features, seed: features[:, :2])
    results = analyze(WatchedTrace(many), tmp_path, settings=AnalysisSettings(permutations=99))
    assert set(results["left_out"].table["analysis"]) == {"weight_similarity"}  # it asks for the model
    assert {"coactivation", "expert_contexts", "published", "near_duplicates", "maps"} <= set(results)


def test_the_watch_notices_what_it_is_for(many: Trace) -> None:
    watched = WatchedTrace(many)
    with pytest.raises(AssertionError, match="still held"):
        np.concatenate([chunk.experts[:, 0] for chunk in watched.iter_routing([0])])
    with pytest.raises(AssertionError, match="still held"):
        _ = [chunk.columns["token_id"][:3] for _, chunk in WatchedTrace(many).iter_tokens(["token_id"])]
    with pytest.raises(AssertionError, match="of all documents"):
        _ = WatchedTrace(many).usage().selections


def test_how_a_trace_is_cut_changes_nothing(one: Trace, many: Trace) -> None:
    pd.testing.assert_frame_equal(expert_contexts(one).table, expert_contexts(many).table)
    assert list(one.token_strings().items()) == list(many.token_strings().items())
    for most in (None, 700):
        a, b = (sample_tokens(trace, max_tokens=most) for trace in (one, many))
        for name in ("row", "group", "token", "previous", "position", "topic", "fold", "vocabulary"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_sample_is_what_the_whole_table_says(many: Trace) -> None:
    sample, table = sample_tokens(many), many.tokens()
    text = table[~table["special"]]
    before = table["token_id"].shift(1).where(table["document"].diff() == 0, -1).astype(int)
    assert sorted(sample.row) == text.index.tolist() and (np.diff(sample.group) >= 0).all()
    np.testing.assert_array_equal(sample.vocabulary[sample.token], table["token_id"].to_numpy()[sample.row])
    previous = np.unique(before[text.index])
    np.testing.assert_array_equal(previous[sample.previous], before.to_numpy()[sample.row])


def test_rows_are_read_in_the_order_they_are_asked_for(many: Trace) -> None:
    rows = np.random.default_rng(0).integers(0, many.n_tokens, 300)
    table, chunks = many.tokens(), list(many.iter_routing())
    found = many.tokens_at(rows, ["document", "token"])
    assert found["token"].tolist() == table["token"].to_numpy()[rows].tolist()
    np.testing.assert_array_equal(found["document"], table["document"].to_numpy()[rows])
    routing = many.routing_at(rows, slice(1, 2), weights=True)
    np.testing.assert_array_equal(routing.experts[:, 0], np.concatenate([c.experts[:, 1] for c in chunks])[rows])
    assert routing.weights is not None and many.routing_at(rows).weights is None
    weights = np.concatenate([c.weights[:, 1] for c in chunks if c.weights is not None])
    np.testing.assert_array_equal(routing.weights[:, 0], weights[rows])
    assert many.routing_at(rows[:0]).experts.shape[:2] == (0, 2) and not len(many.tokens_at(rows[:0], ["token"])["token"])
    with pytest.raises(IndexError, match="there is no row"):
        many.tokens_at(np.array([many.n_tokens]), ["document"])


@pytest.mark.parametrize("measure", ["selections", "gate_mass"])
def test_sums_while_reading_have_the_bits_of_sums_over_arrays(many: Trace, measure: str) -> None:
    stored = many.usage()
    dense = Usage(stored.selections, stored.gate_mass, stored.layers, stored.documents)
    code = np.random.default_rng(0).integers(-1, 5, len(stored.documents))
    assert stored.summed(code, 5, measure=measure).tobytes() == dense.summed(code, 5, measure=measure).tobytes()
    np.testing.assert_allclose(stored.document_totals(measure), dense.document_totals(measure))
    groups = [group_usage(usage, measure=measure) for usage in (stored, dense)]
    assert np.asarray(groups[0].shares).tobytes() == np.asarray(groups[1].shares).tobytes()
    assert groups[0].shares[:, :8].sum(1) == pytest.approx(1)


def _in_memory(stored: Usage, groups: list[str]) -> Usage:
    documents = stored.documents.assign(group=groups)
    return Usage(stored.selections, stored.gate_mass, stored.layers, documents)


@pytest.mark.parametrize("grouped", ["alone", "some together", "no tokens"])
def test_tables_of_shares_have_the_bits_of_arrays(many: Trace, monkeypatch: pytest.MonkeyPatch, grouped: str) -> None:
    stored = many.usage()
    names = stored.documents["document"].astype(str).tolist()
    if grouped == "some together":  # documents of one topic, two or three a group
        names = [
            f"{topic}-{i // 9}" if i % 2 else name
            for i, (name, topic) in enumerate(zip(names, stored.documents["topic"], strict=True))
        ]
    usage = _in_memory(stored, names) if grouped != "alone" else stored
    if grouped == "no tokens":  # a group without any in one layer has the mean of all, and counts exceed the tokens
        assert usage.gate_mass is not None
        selections, mass = usage.selections.copy(), usage.gate_mass.copy()
        selections[3, 1], mass[3, 1] = 0, 0
        usage = Usage(selections, mass, usage.layers, usage.documents.assign(n_tokens=1))

    def measured() -> dict[str, Any]:
        options: Any = {"permutations": 39, "seed": 0}
        return {
            "topics": expert_topics(usage, **options).table,
            "gate mass": expert_topics(usage, measure="gate_mass", **options).table,
            "layers": layer_usage(usage, **options).table,
            "groups": expert_groups(usage, **options).table,
            "experts": expert_units(usage).features,  # type: ignore[arg-type]
            "strata": expert_topics(usage, strata="split", **options).table if "split" in usage.documents else None,
        }

    arrays = measured()
    monkeypatch.setattr("moe_probe.core.stats.shares.DENSE_BYTES", 0)
    monkeypatch.setattr("moe_probe.core.stats.shares._WIDTH", 3)
    assert isinstance(group_usage(usage).shares, ShareTable)
    for name, table in measured().items():
        if isinstance(table, pd.DataFrame):
            pd.testing.assert_frame_equal(table, arrays[name], check_exact=True)
        else:
            np.testing.assert_array_equal(table, arrays[name])


def test_a_table_of_shares_is_read_like_an_array(many: Trace) -> None:
    usage = many.usage()
    code = np.arange(len(usage.documents)) // 2
    for measure in ("selections", "gate_mass"):
        table, filled = ShareTable.summed(usage, np.where(code > 20, -1, code), 21, measure=measure)
        array = np.asarray(table)
        assert filled == 0 and table.shape == array.shape == (21, 16) and array.sum(1) == pytest.approx(2)
        rows, columns = np.arange(21) % 3 == 0, np.array([5, 2, 9])
        for key in ((slice(None), columns), (rows, slice(2, 5)), (slice(None), 4), (slice(3, 9), columns)):
            picked = array[key[0]][:, key[1]]
            np.testing.assert_array_equal(table[key], picked)
        np.testing.assert_array_equal(np.asarray(table[rows][1:3]), array[rows][1:3])
        with pytest.raises(TypeError):
            _ = array - table


def test_counts_are_held_in_short_integers(many: Trace) -> None:
    usage = many.usage()
    documents = np.arange(len(usage.documents))
    sums = ShareTable.summed(usage, documents, len(documents))[0]._parts[0][1]
    assert sums.dtype == np.uint8 and sums.sum() == usage.document_totals().sum()
    masses = ShareTable.summed(usage, documents, len(documents), measure="gate_mass")[0]._parts
    assert len(masses) == 1 and masses[0][1].dtype == np.float32
    together = ShareTable.summed(usage, documents // 47, 2, measure="gate_mass")[0]._parts
    assert [part.dtype for _, part in together] == [np.float32, np.float64]


def test_chosen_documents_are_read_alone(many: Trace) -> None:
    usage, rows = many.usage(), np.array([7, 3, 3, 20])
    part = usage.select(rows, usage.documents.iloc[rows])
    assert part.gate_mass is not None and usage.gate_mass is not None
    np.testing.assert_array_equal(part.selections, usage.selections[rows])
    np.testing.assert_array_equal(part.gate_mass, usage.gate_mass[rows])


def test_documents_and_tokens_that_disagree_are_damage(many: Trace) -> None:
    damaged = Trace(many.root, many.manifest)
    damaged.documents.loc[3, "n_tokens"] += 1
    with pytest.raises(MoeProbeError, match="its documents have 1,681 text tokens, its token table has 1,680"):
        sample_tokens(damaged)


def test_below_the_limit_a_sample_is_everything() -> None:
    code = np.repeat([0, 1, 2], [50, 30, 3])
    assert even_sample(code, 83, seed=0).all()
    part = even_sample(code, 20, seed=0)
    assert np.bincount(code[part]).tolist() == [12, 7, 2] and (part == even_sample(code, 20, seed=0)).all()
    assert (part != even_sample(code, 20, seed=1)).any()


def test_decoding_from_a_sample_says_so(many: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = layer_usage(many, permutations=19)
    assert not whole.warnings
    monkeypatch.setattr("moe_probe.experts.decoding.MOST_DOCUMENTS", 48)
    pd.testing.assert_frame_equal(layer_usage(many, permutations=19).table, whole.table)
    monkeypatch.setattr("moe_probe.experts.decoding.MOST_DOCUMENTS", 24)
    part = layer_usage(many, permutations=19)
    assert part.warnings == ("Topics were decoded from 24 of 48 groups of documents, drawn evenly over topics.",)
    same = [c for c in whole.table if not c.startswith("decode")]
    pd.testing.assert_frame_equal(part.table[same], whole.table[same])


def test_clusters_of_a_sample_say_so(many: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_probe.experts.clusters.units.MOST_DOCUMENTS", 24)
    found = cluster_routing(many, maps=False, max_tokens=100)
    assert (found.clusters.table["unit"] == "document").sum() == 24
    assert found.clusters.warnings == ("Clustered are 24 of 48 documents, drawn evenly over topics.",)


@pytest.mark.parametrize(("num_experts", "slots"), [(8, 2), (40, 2), (64, 4), (255, 8)])
def test_coactivation_by_pairs_of_slots_is_the_product(num_experts: int, slots: int) -> None:
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((500, num_experts)), axis=1)[:, :slots].astype(np.uint8)
    experts[rng.random(experts.shape) < 0.1] = 255
    chosen = (experts[:, :, None] == np.arange(num_experts)).any(1).astype(int)
    np.testing.assert_array_equal(coactivation(experts, num_experts=num_experts), chosen.T @ chosen)


def test_first_choices_are_those_of_the_largest_weight() -> None:
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((400, 3, 9)), axis=2)[:, :, :4].astype(np.uint8)
    experts[rng.random(experts.shape) < 0.2] = 255
    weights = rng.integers(0, 4, experts.shape).astype(np.float16)  # many ties: the first slot of equal ones
    best = np.where(experts == 255, -1, weights).argmax(-1)
    expected = np.take_along_axis(experts, best[..., None], axis=-1)[..., 0]
    np.testing.assert_array_equal(first_choices(experts, weights), expected)


def test_counts_in_blocks_are_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_probe.experts.explain.selections._COUNTED", 1)
    rng = np.random.default_rng(0)
    experts = rng.integers(0, 5, (300, 3)).astype(np.uint8)
    unit = rng.integers(-1, 4, 300)
    for chosen in (experts, np.where(rng.random(experts.shape) < 0.2, 255, experts).astype(np.uint8)):
        item = layer_selections(chosen, layer=0, num_experts=5)
        expected = np.zeros((4, 5), dtype=int)
        for token, expert in zip(item.token, item.expert, strict=True):
            if unit[token] >= 0:
                expected[unit[token], expert] += 1
        np.testing.assert_array_equal(item.counts(unit, 4), expected)
        assert item.slots.sum() == len(item.expert) == (chosen != 255).sum()


def test_ids_of_any_size_are_collected() -> None:
    known = IdSet()
    assert known.add(np.array([5, 2**30, 5, -1])).tolist() == [0, 1, 3]
    assert known.add(np.array([7, 5, 2**30, 7, 2**31 - 1])).tolist() == [0, 4]
    assert known.add(np.array([], dtype=np.int64)).tolist() == [] and known.values().tolist() == [-1, 5, 7, 2**30, 2**31 - 1]
