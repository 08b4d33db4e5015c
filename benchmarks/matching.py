"""Matching at scale: synthetic sparse selections and firings, 6,144 experts against 65,536 features over a million tokens.

    python benchmarks/matching.py [--tokens 1000000] [--experts 6144] [--top-k 384] [--features 65536] [--active 64]

Pairs are chosen on half of the tokens and scored on the other. A hundred pairs are planted (a feature fires on nine in ten
of an expert's tokens) and have to be found. The floor is the additions that the sparse product must do, at the rate of one
pass of the same product over a small part of the tokens.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from scipy import sparse

from moe_probe.features.matching.counts import best_pairs, one_to_one, score_pairs


def drawn(rng: np.random.Generator, n_tokens: int, n_units: int, per_token: int) -> sparse.csr_array:
    """A boolean matrix with `per_token` distinct random units a token: one in each of as many equal parts of the units."""
    edges = np.linspace(0, n_units, per_token + 1).astype(np.int32)
    indices = np.empty((n_tokens, per_token), dtype=np.int32)
    for i in range(per_token):  # column by column: no second matrix of the same size
        indices[:, i] = rng.integers(edges[i], edges[i + 1], n_tokens, dtype=np.int32)
    return sparse.csr_array(
        (np.ones(indices.size, dtype=np.int8), indices.ravel(), np.arange(0, indices.size + 1, per_token, dtype=np.int32)),
        shape=(n_tokens, n_units),
    )


def plant(
    rng: np.random.Generator, experts: sparse.csr_array, features: sparse.csr_array, n: int
) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    """Let n features fire where n experts are chosen."""
    chosen = experts.tocsc()
    which = rng.choice(experts.shape[1], n, replace=False)
    what = rng.choice(features.shape[1], n, replace=False)
    rows = [chosen.indices[chosen.indptr[e] : chosen.indptr[e + 1]] for e in which]
    rows = [r[rng.random(len(r)) < 0.9] for r in rows]
    places = np.concatenate(rows), np.repeat(what, [len(r) for r in rows])
    more = sparse.csr_array((np.ones(len(places[0]), dtype=np.int8), places), shape=features.shape)
    keep = np.ones(features.shape[1], dtype=np.int8)
    keep[what] = 0
    out = (features.multiply(keep[None]) + more).tocsr()
    out.eliminate_zeros()
    return out, which, what


def main() -> None:
    """Run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("tokens", 1_000_000), ("experts", 6144), ("top-k", 384), ("features", 65_536), ("active", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    o = parser.parse_args()
    rng = np.random.default_rng(0)
    experts = drawn(rng, o.tokens, o.experts, o.top_k)
    features, which, what = plant(rng, experts, drawn(rng, o.tokens, o.features, o.active), 100)
    group = np.sort(rng.integers(0, 2000, o.tokens))
    half = o.tokens // 2
    held_experts, held_features, held_group = experts[half:], features[half:], group[half:] - group[half]
    experts, features = experts[:half], features[:half]
    print(
        f"{o.experts:,} experts ({o.top_k} chosen a token), {o.features:,} features ({o.active} firing), {o.tokens:,} tokens\n"
    )
    per_token = np.diff(experts.indptr).astype(float) @ np.diff(features.indptr)
    started = time.perf_counter()
    pairs = best_pairs(experts, features, per_expert=8)
    chosen_in = time.perf_counter() - started
    started = time.perf_counter()
    scores = score_pairs(held_experts, held_features, pairs[:2], held_group, n_groups=int(held_group.max()) + 1)
    scored_in = time.perf_counter() - started
    started = time.perf_counter()
    one_to_one(pairs, n_features=o.features)
    assigned_in = time.perf_counter() - started
    first = np.flatnonzero(np.diff(pairs.expert, prepend=-1))
    best = dict(zip(pairs.expert[first].tolist(), pairs.feature[first].tolist(), strict=True))
    found = sum(best.get(int(e)) == int(f) for e, f in zip(which, what, strict=True))
    planted = np.isin(pairs.expert[first], which)
    noise = scores.auroc[first][~planted]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("| step | seconds | |\n|---|---|---|")
    print(
        f"| choose on one half | {chosen_in:.1f} | {per_token / 1e9:.1f} G additions, {per_token / chosen_in / 1e6:,.0f} M/s |"
    )
    print(f"| score {len(pairs.expert):,} pairs on the other | {scored_in:.1f} | |")
    print(f"| one-to-one assignment | {assigned_in:.1f} | |")
    print(f"| **all** | **{chosen_in + scored_in + assigned_in:.1f}** | peak memory {peak:.1f} GiB, data included |\n")
    print(
        f"planted pairs found: {found} of 100; held-out AUROC of the best of noise: mean {noise.mean():.4f}, "
        f"largest {noise.max():.4f}; chosen at {pairs.auroc[first][~planted].mean():.4f}"
    )


if __name__ == "__main__":
    main()
