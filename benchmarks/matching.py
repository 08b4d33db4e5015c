"""Matching at scale: synthetic selections and firings, 6,144 experts against 65,536 features over a million tokens.

    python benchmarks/matching.py [--tokens 1000000] [--layers 48] [--experts 128] [--top-k 8] [--features 65536] [--active 64]

Routing lies on disk as a trace has it and is read shard by shard; firings of the one dictionary are in memory. Pairs are chosen
on half of the tokens and scored on the other. A hundred pairs are planted (a feature fires on nine in ten of an expert's tokens)
and have to be found. Peak memory includes the data.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy import sparse

from moe_probe.core.schema import CorpusInfo, FileEntry, Manifest, ModelInfo, MoeLayer, ShardEntry
from moe_probe.features.matching.counts import one_to_one
from moe_probe.features.matching.routing_split import RoutingSplit
from moe_probe.features.matching.signals import TokenTable, read_selections
from moe_probe.recording.trace import Trace

SHARD, PLANTED = 65_536, 100


def drawn(rng: np.random.Generator, n_tokens: int, n_units: int, per_token: int) -> np.ndarray:
    """Distinct random units of every token, (n_tokens, per_token): one in each of as many equal parts of the units."""
    edges = np.linspace(0, n_units, per_token + 1).astype(np.int32)
    return np.stack([rng.integers(a, b, n_tokens, dtype=np.int32) for a, b in itertools.pairwise(edges)], axis=1)


def write_shards(root: Path, o: argparse.Namespace) -> tuple[Trace, list[sparse.csr_array], np.ndarray, np.ndarray]:
    """Write the routing, and make the firings that go with it: of the two halves, planted pairs being (expert, feature)."""
    rng = np.random.default_rng(0)
    n_units, first = o.layers * o.experts, o.features - PLANTED
    which = rng.choice(n_units, PLANTED, replace=False)
    (root / "routing").mkdir()
    shards, firings = [], []
    for index, start in enumerate(range(0, o.tokens, SHARD)):
        n = min(SHARD, o.tokens - start)
        chosen = np.stack([drawn(rng, n, o.experts, o.top_k) for _ in range(o.layers)], axis=1)
        name = f"routing/{index:05}.safetensors"
        save_file({"experts": chosen.astype(np.uint8)}, root / name)
        shards.append(ShardEntry(index=index, n_documents=1, n_tokens=n, files=(FileEntry(path=name, size=0, sha256=""),)))
        active = np.zeros((n, PLANTED), dtype=np.float32)
        for i, unit in enumerate(which):
            layer, expert = divmod(int(unit), o.experts)
            active[:, i] = (chosen[:, layer] == expert).any(1) & (rng.random(n) < 0.9)
        noise = drawn(rng, n, first, o.active)
        indptr = np.arange(0, noise.size + 1, o.active, dtype=np.int32)
        values = rng.random(noise.size, dtype=np.float32) + 0.1
        plain = sparse.csr_array((values, noise.ravel(), indptr), shape=(n, first))
        firings.append(sparse.hstack([plain, sparse.csr_array(active)], format="csr"))
    manifest = Manifest(
        model=ModelInfo(id="synthetic"),
        corpus=CorpusInfo(name="synthetic"),
        layers=tuple(MoeLayer(layer=i, name=f"{i}", num_experts=o.experts, top_k=o.top_k) for i in range(o.layers)),
        shards=tuple(shards),
    )
    half = len(shards) // 2
    halves = []
    for part in (firings[:half], firings[half:]):
        halves.append(sparse.vstack(part, format="csr"))
        part.clear()
    return Trace(root, manifest), halves, which, np.arange(first, o.features)


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    options = {"tokens": 1_000_000, "layers": 48, "experts": 128, "top-k": 8, "features": 65_536, "active": 64}
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), o)


def measure(folder: Path, o: argparse.Namespace) -> None:
    """Choose, score and assign pairs; print what it took."""
    trace, (train, held_out), which, what = write_shards(folder, o)
    middle = train.shape[0]
    group = np.sort(np.random.default_rng(1).integers(0, 2000, o.tokens)).astype(np.int32)
    none = np.zeros(o.tokens, dtype=np.int32)
    tokens = TokenTable(group, none, none, none, ("all",), 2000)
    split = RoutingSplit(read_selections(trace), tokens, np.arange(middle), np.arange(middle, o.tokens))
    steps = [("", time.perf_counter(), time.process_time())]

    def done(step: str) -> None:
        steps.append((step, time.perf_counter(), time.process_time()))

    print(
        f"{o.layers * o.experts:,} experts ({o.layers * o.top_k} chosen a token), {o.features:,} features ({o.active} firing), "
        f"{o.tokens:,} tokens\n"
    )
    pairs = split.best(train, per_expert=8)
    additions = o.layers * o.top_k * train.nnz
    done(f"choose on one half ({additions / 1e9:.1f} G additions)")
    scores = split.score(held_out, pairs)
    done(f"score {len(pairs.expert):,} pairs on the other")
    one_to_one(pairs, n_features=o.features)
    done("one-to-one assignment")
    print("| step | seconds | CPU seconds |\n|---|---|---|")
    for (_, wall, cpu), (step, wall_then, cpu_then) in itertools.pairwise(steps):
        print(f"| {step} | {wall_then - wall:.1f} | {cpu_then - cpu:.1f} |")
    print(f"| **all** | **{steps[-1][1] - steps[0][1]:.1f}** | **{steps[-1][2] - steps[0][2]:.1f}** |\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.1f} GiB, firings included; routing on disk\n")
    first = np.flatnonzero(np.diff(pairs.expert, prepend=-1))
    best = dict(zip(pairs.expert[first].tolist(), pairs.feature[first].tolist(), strict=True))
    found = sum(best.get(int(e)) == int(f) for e, f in zip(which, what, strict=True))
    planted = np.isin(pairs.expert[first], which)
    noise = scores.auroc[first][~planted]
    print(
        f"planted pairs found: {found} of {PLANTED}; held-out AUROC of the best of noise: mean {noise.mean():.4f}, "
        f"largest {noise.max():.4f}; chosen at {pairs.auroc[first][~planted].mean():.4f}"
    )


if __name__ == "__main__":
    main()
