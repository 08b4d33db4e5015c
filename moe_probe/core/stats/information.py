"""Bits that expert and topic share, never without what permuted labels give."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from moe_probe.core.stats.labels import LabelPermuter, for_each_column_block, n_threads, permutation_blocks
from moe_probe.core.stats.multiplicity import permutation_p
from moe_probe.core.stats.shares import Shares, ShareTable, column_blocks

_TIES = 1e-6  # relative slack for float32 sums


class MutualInformation(NamedTuple):
    """Information between expert and topic per layer, each an ndarray of shape (n_layers,), in bits.

    ``plugin`` from the shares as they are, ``null`` its mean under permuted labels, ``p_value``
    the share of permutations (and the observation) with at least as much.
    """

    plugin: np.ndarray
    null: np.ndarray
    p_value: np.ndarray


def macro_mutual_information(  # noqa: PLR0913 options are keyword-only with defaults
    shares: Shares,
    topic: np.ndarray,
    *,
    n_topics: int,
    layer_index: np.ndarray,
    permutations: int = 1000,
    seed: int = 0,
    strata: np.ndarray | None = None,
) -> MutualInformation:
    """Compute I(expert; topic) of every layer from macro-averaged shares, with its permutation null.

    Topics weigh the same: with p_t the mean share over topic t's groups and p their mean,
    I = mean over t of KL(p_t || p) = H(p) - mean of H(p_t) (the Jensen-Shannon divergence of the
    topics, Lin 1991, DOI 10.1109/18.61115). The plug-in value is biased upwards, by far more than
    for independent tokens since documents are clusters; its mean under permutation says by how much.

    Parameters
    ----------
    shares : ndarray or ShareTable, shape (n_groups, n_columns)
        The columns of one layer add up to 1.
    topic : ndarray of int, shape (n_groups,)
    n_topics : int
        Every topic needs a group.
    layer_index : ndarray of int, shape (n_columns,)
        Ordinal of the column's layer, never decreasing.
    permutations, seed, strata
        As in `permutation_test`.

    Returns
    -------
    MutualInformation

    Raises
    ------
    MoeProbeError
        When no labels can be exchanged.
    """
    permuter = LabelPermuter(topic, n_topics=n_topics, strata=strata, seed=seed)
    sizes = np.bincount(topic, minlength=n_topics)
    starts = np.flatnonzero(np.diff(layer_index, prepend=-1))
    held = None if isinstance(shares, ShareTable) else np.asarray(shares, dtype=np.float32)
    # the base moves with the labels where topics are unequal, so each permutation has its own
    observed = permuter.observed().astype(np.float64)
    means = np.concatenate([observed @ shares[:, columns] for columns in column_blocks(shares)], axis=1)
    plugin = _divergence(means, sizes, starts=starts)[0]
    total, exceed = np.zeros_like(plugin), np.zeros(len(plugin), dtype=np.int64)
    with ThreadPoolExecutor(n_threads()) as pool:
        for n in permutation_blocks(permutations, n_tests=n_topics * shares.shape[1]):
            labels = permuter.draw(n)
            sums = np.empty((n * n_topics, shares.shape[1]), dtype=np.float32)

            def work(columns: slice, labels: object = labels, sums: np.ndarray = sums) -> None:
                values = shares[:, columns].astype(np.float32) if held is None else np.ascontiguousarray(held[:, columns])
                sums[:, columns] = labels @ values  # type: ignore[operator]

            for_each_column_block(shares.shape[1], work, pool=pool)
            permuted = _divergence(sums, sizes, starts=starts)
            total += permuted.sum(0)
            exceed += (permuted >= plugin * (1 - _TIES)).sum(0)
    return MutualInformation(plugin, total / permutations, permutation_p(exceed, permutations))


def _divergence(sums: np.ndarray, sizes: np.ndarray, *, starts: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in bits per layer, shape (n_permutations, n_layers), from topic sums."""
    n_topics = len(sizes)
    shares = sums.reshape(-1, n_topics, sums.shape[-1]) / sizes.astype(sums.dtype)[:, None]
    base = shares.mean(1)
    gain = _x_log2_x(shares).mean(1) - _x_log2_x(base)
    return np.add.reduceat(gain.astype(np.float64), starts, axis=1)


def _x_log2_x(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * np.log2(np.maximum(x, np.finfo(x.dtype).tiny)))


def entropy_bits(load: np.ndarray) -> np.ndarray:
    """Compute the Shannon entropy of loads along the last axis, in bits (0 log 0 = 0; NaN where all are zero)."""
    load = np.asarray(load, dtype=np.float64)
    total = load.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = load / total
        terms = np.where(share > 0, share * np.log2(share), 0.0)
    return np.where(total[..., 0] > 0, -terms.sum(-1), np.nan)


# Effective numbers: how many equally used units would be as spread out (Hill 1973, DOI 10.2307/1934352). The three differ
# in what they read, and in the order of their sums, which the digits of tables depend on.


def effective_experts(load: np.ndarray) -> np.ndarray:
    """Compute the effective number of experts along the last axis of loads, ``2 ** entropy_bits(load)`` (Hill 1973)."""
    return np.asarray(np.exp2(entropy_bits(load)))


def effective_number(counts: np.ndarray) -> float:
    """Compute the effective number of units from their counts, shape (n_units,), of which one is above zero."""
    shares = counts[counts > 0] / counts.sum()
    return float(2 ** -(shares * np.log2(shares)).sum())


def effective_numbers(shares: np.ndarray) -> np.ndarray:
    """Compute the effective number of units in every row of shares that sum to 1, shape (n_rows, n_units)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(2 ** -np.where(shares > 0, shares * np.log2(shares), 0.0).sum(1))
