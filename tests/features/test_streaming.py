"""Counts, matches and trees from blocks of tokens: the same as from whole arrays, with one dictionary's firings in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from scipy import sparse

import moe_probe.features.tree.dictionary as dictionary_module
from moe_probe.core.progress import Bar, count_up
from moe_probe.core.stats import permutation_p_values
from moe_probe.features import firing, firing_cache
from moe_probe.features.matching import match as match_module
from moe_probe.features.matching import routing_prediction
from moe_probe.features.matching import signals as signals_module
from moe_probe.features.matching.co_counts import (
    MatrixUnits,
    TokenBlock,
    count_blocks,
    iter_hits,
    tokens_by_feature,
)
from moe_probe.features.matching.counts import best_pairs, score_pairs
from moe_probe.features.matching.match import match
from moe_probe.features.matching.match_features import MatchSettings
from moe_probe.features.matching.routing_prediction import RoutingData, predict_routing
from moe_probe.features.matching.signals import read_selections
from moe_probe.features.tree import TreeSettings, build_tree
from moe_probe.recording.rundir import RunDirectory
from moe_probe.sae import SaeConfig, make_sae, save_sae
from moe_probe.testing.activations import PlantedFeature, planted_activations


class InBlocks(MatrixUnits):
    """The columns of an array, read in blocks of uneven size."""

    def __init__(self, matrix: sparse.csr_array, sizes: tuple[int, ...]) -> None:
        super().__init__(matrix)
        self._sizes = sizes

    def blocks(self) -> Iterator[TokenBlock]:
        start = i = 0
        while start < self.shape[0]:
            part = self._matrix[start : start + self._sizes[i % len(self._sizes)]]
            yield TokenBlock(start, part.indptr, part.indices)
            start, i = start + part.shape[0], i + 1


def signals(n: int = 1500, experts: int = 11, features: int = 700) -> tuple[sparse.csr_array, sparse.csr_array, np.ndarray]:
    rng = np.random.default_rng(5)
    e = rng.random((n, experts)) < 0.3
    f = (rng.random((n, features)) < 0.05) * rng.random((n, features)).astype(np.float32)
    f[:, 3] = e[:, 2] * 0.5
    return sparse.csr_array(e.astype(np.int32)), sparse.csr_array(f), np.sort(rng.integers(0, 30, n))


@pytest.mark.parametrize("sizes", [(1500,), (1, 7, 333), (64,)])
@pytest.mark.parametrize("most", [1, 11 * 100, 1 << 26])
def test_counts_do_not_depend_on_blocks(sizes: tuple[int, ...], most: int) -> None:
    e, f, _ = signals()
    counts = np.concatenate([both.copy() for _, both in count_blocks(InBlocks(e, sizes), f[:, :300], most_counts=most)])
    assert np.array_equal(counts, ((f[:, :300] > 0).astype(int).T @ e).toarray())


@pytest.mark.parametrize("sizes", [(1500,), (1, 7, 333)])
@pytest.mark.parametrize("most", [1, 500, 1 << 28])
def test_hits_do_not_depend_on_blocks(sizes: tuple[int, ...], most: int) -> None:
    e, f, _ = signals()
    unit, feature = np.array([2, 0, 10, 2]), np.array([3, 3, 699, 40])
    hits = dict(iter_hits(InBlocks(e, sizes), tokens_by_feature(f), (unit, feature), most=most))
    for i, hit in hits.items():
        fires = np.flatnonzero(f[:, [int(feature[i])]].toarray())
        assert np.array_equal(hit, e.toarray()[fires, unit[i]] > 0)


def test_pairs_and_scores_do_not_depend_on_blocks() -> None:
    e, f, group = signals()
    streamed = InBlocks(e, (100, 3))
    pairs = best_pairs(e, f, per_expert=4)
    for one, other in zip(best_pairs(streamed, f, per_expert=4), pairs, strict=True):
        assert np.array_equal(one, other)
    assert pairs.feature[pairs.expert == 2][0] == 3
    for one, other in zip(*(score_pairs(x, f, pairs[:2], group, n_groups=30) for x in (e, streamed)), strict=True):
        assert np.array_equal(one, other, equal_nan=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with dictionaries of 8, 16 and 32 latents, not trained."""
    import torch

    root = tmp_path_factory.mktemp("streaming")
    made = planted_activations(
        root / "trace",
        features=(*(PlantedFeature("word", i) for i in range(6)), PlantedFeature("topic", 1)),
        topics=3,
        d_in=16,
        documents_per_topic=16,
        tokens=60,
        num_experts=4,
        vocabulary=40,
    )
    for width in (8, 16, 32):
        sae = make_sae(SaeConfig(architecture="topk", d_in=16, d_sae=width, k=3, seed=width))
        with torch.no_grad():
            sae.b_dec.copy_(torch.from_numpy(made.mean))
            sae.W_dec[:7].copy_(torch.from_numpy(made.directions))
            sae.W_enc[:7].copy_(torch.from_numpy(made.directions))
        save_sae(sae, root / "sae" / "layer_00" / f"width_{width:05}")
    return RunDirectory.open(root)


def test_selections_of_a_trace_are_read_shard_by_shard(run: RunDirectory) -> None:
    whole = run.layer(0).toarray()
    rows = np.flatnonzero(np.random.default_rng(0).random(len(whole)) < 0.4)
    selections = read_selections(run)
    assert np.array_equal(selections.of_layer(0, rows).toarray(), whole[rows])
    blocks = list(selections.of_tokens(rows).blocks())
    assert len(blocks) == len(run.manifest.shards) == 3
    read = np.zeros((len(rows), whole.shape[1]), dtype=int)
    for block in blocks:
        for i, (a, b) in enumerate(zip(block.indptr[:-1], block.indptr[1:], strict=True)):
            read[block.start + i, block.units[a:b]] = 1
    assert np.array_equal(read, whole[rows])


def tables_of(run: RunDirectory) -> dict[str, str]:
    settings = TreeSettings(permutations=20, concepts=False, null=False)
    results = [
        *match(run, MatchSettings(n_random=2), say=lambda _: None),
        *build_tree(run, settings=settings, say=lambda _: None),
    ]
    return {result.name: result.table.to_csv() for result in results}


def test_match_and_tree_hold_the_firings_of_one_dictionary_at_a_time(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a dictionary is encoded, no firings of another one are alive; tables are those made with all of them kept."""
    for name in ("_EPOCHS", "_STEPS"):  # how well routing is fitted does not matter here
        monkeypatch.setattr(routing_prediction, name, 2)
    monkeypatch.setattr(match_module, "_RESAMPLES", 20)
    kept = tables_of(run)
    alive: list[tuple[int, weakref.ref[firing.Firings]]] = []
    encoded: list[int] = []
    plain = firing.iter_firings

    def watched(sae, reader, *, only=None):
        gc.collect()  # looks at what was made since the freeze below, not at all that is imported
        others = {name for name, made in alive if made() is not None and name != id(sae)}
        assert not others, "firings of another dictionary are still there"
        encoded.append(id(sae))
        yield from plain(sae, reader, only=only)

    class Watched(firing.Firings):
        def __init__(self, matrix: sparse.csr_array, rows: np.ndarray) -> None:
            super().__init__(matrix, rows)
            alive.append((encoded[-1], weakref.ref(self)))

    monkeypatch.setattr(firing_cache, "KEPT_BYTES", 0)
    firing_cache.OF_RUNS.clear()
    gc.collect()
    gc.freeze()
    monkeypatch.setattr(firing, "iter_firings", watched)
    for module in (firing, signals_module, dictionary_module):
        monkeypatch.setattr(module, "Firings", Watched)
    try:
        assert tables_of(run) == kept
    finally:
        gc.unfreeze()
    assert len(encoded) > 20 and alive
    assert all(made() is None for _, made in alive)


def test_the_cache_of_firings_keeps_to_its_memory() -> None:
    made = [firing.Firings(sparse.csr_array(np.ones((10, 4), dtype=np.float32)), np.arange(10)) for _ in range(3)]
    cache = firing_cache.FiringCache(2 * made[0].nbytes)
    for i in range(3):
        assert cache.get(i, partial(made.__getitem__, i)) is made[i]
    assert 0 not in cache and 1 in cache and 2 in cache
    assert cache.get(1, lambda: made[0]) is made[1]
    cache.get(0, lambda: made[0])
    assert 2 not in cache, "the one asked for longest ago is dropped"
    assert firing_cache.FiringCache(8).get(0, lambda: made[0]) is made[0]


def test_long_loops_say_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permutations, counts of pairs, fits and loops over tokens count block by block: no bar stands still until all is done."""
    counted: dict[str, list[int]] = {}
    plain = Bar.update

    def update(self: Bar, n: int = 1, **more: object) -> None:
        counted.setdefault(self.text, []).append(n)
        plain(self, n)

    monkeypatch.setattr(Bar, "update", update)
    rng = np.random.default_rng(0)
    permutation_p_values(rng.random((20, 30)), np.arange(20) % 2, n_topics=2, permutations=256)
    assert counted.pop("permute") == [1] * 4
    units = sparse.csr_array((rng.random((3000, 3)) < 0.5).astype(np.int32))
    fires = sparse.csr_array((rng.random((3000, 4)) < 0.5).astype(np.float32))
    assert len(list(count_blocks(units, fires, most_counts=6))) == 2
    assert sum(counted["count"]) == 2 * 3000 and len(counted.pop("count")) == 2
    data = RoutingData(fires, units, np.arange(3000) // 100)
    predict_routing(data, data, n_groups=30)
    assert len(counted.pop("fit routing")) > 3
    assert list(count_up(10, "tokens", unit="tokens", step=4)) == list(range(10))
    assert counted == {"tokens": [4, 4, 2]}
