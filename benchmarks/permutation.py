"""The permutation test against the matrix products that it needs, and against scipy's.

    python benchmarks/permutation.py [--documents 10000] [--layers 48] [--experts 128] [--topics 20] [--permutations 1000]

The products are the same blocks of the same numbers: sparse one-hot labels of a block of permutations (permutations x
topics, documents) times shares and their squares (documents, 2 x columns), in float32, on the same threads, nothing kept.
"""

from __future__ import annotations

import argparse
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from moe_probe.core.stats import permutation_test
from moe_probe.core.stats.labels import LabelPermuter, for_each_column_block, n_threads, permutation_blocks


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("documents", 10_000), ("layers", 48), ("experts", 128), ("topics", 20), ("permutations", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def products(shares: np.ndarray, topic: np.ndarray, n_topics: int, permutations: int) -> float:
    """Seconds of the matrix products alone."""
    permuter = LabelPermuter(topic, n_topics=n_topics, strata=None, seed=0)
    values = shares.astype(np.float32)
    spent = 0.0
    with ThreadPoolExecutor(n_threads()) as pool:
        for n in permutation_blocks(permutations, n_tests=n_topics * shares.shape[1]):
            labels = permuter.draw(n)

            def work(columns: slice, labels: object = labels) -> None:
                both = np.concatenate([values[:, columns], values[:, columns] ** 2], axis=1)
                labels @ both  # type: ignore[operator]

            started = time.perf_counter()
            for_each_column_block(shares.shape[1], work, pool=pool)
            spent += time.perf_counter() - started
    return spent


def scipy_seconds(shares: np.ndarray, topic: np.ndarray, permutations: int) -> float:
    """Seconds of scipy's permutation test of one column and one topic."""
    from scipy.stats import permutation_test as peer

    def statistic(values: np.ndarray, chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        inside = (values * chosen).sum(axis) / chosen.sum(axis)
        return inside - (values * (1 - chosen)).sum(axis) / (1 - chosen).sum(axis)

    started = time.perf_counter()
    peer(
        (shares[:, 0], (topic == 0).astype(float)),
        statistic,
        permutation_type="pairings",
        n_resamples=permutations,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return time.perf_counter() - started


def main() -> None:
    o = arguments()
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.5, (o.documents, o.layers, o.experts)).astype(np.float32)
    shares = np.exp(logits, out=logits)
    shares /= shares.sum(2, keepdims=True)
    shares = shares.reshape(o.documents, -1)
    topic = np.arange(o.documents) % o.topics
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    permutation_test(
        shares, topic, n_topics=o.topics, layer_index=np.repeat(np.arange(o.layers), o.experts), permutations=o.permutations
    )
    engine = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    floor = products(shares, topic, o.topics, o.permutations)
    dense = 2.0 * o.permutations * o.topics * o.documents * 2 * shares.shape[1]
    one = scipy_seconds(shares, topic, o.permutations)
    tests = shares.shape[1] * o.topics
    print(
        f"{o.documents:,} documents, {shares.shape[1]:,} experts, {o.topics} topics, {o.permutations:,} permutations, "
        f"{n_threads()} threads\n\n| measure | value |\n|---|---|"
    )
    print(f"| engine | {engine:.1f} s |\n| its matrix products alone | {floor:.1f} s |\n| ratio | {engine / floor:.2f} |")
    print(f"| operations of dense products of that size | {dense / 1e12:.1f} TFLOP |")
    print(f"| peak memory | {peak:.2f} GiB ({before:.2f} before) |")
    print(
        f"| scipy.stats.permutation_test, one of {tests:,} tests | {one:.2f} s (all, extrapolated: "
        f"{one * tests / 3600:,.0f} h) |"
    )


if __name__ == "__main__":
    main()
