"""Clusters by k-means: their number, their stability and their agreement with labels, each beside its null."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import track

#: Candidate numbers of clusters.
K_RANGE = (2, 3, 4, 6, 8, 12, 16, 24)
#: Permuted data sets, which give a level of 0.05; and units that silhouettes are computed on, at most.
_NULLS, _SILHOUETTES = 19, 300


@dataclass(frozen=True)
class Partition:
    """A clustering beside its null.

    Attributes
    ----------
    cluster : ndarray of int, shape (n_units,)
        0, 1, ... in order of size; all 0 where no number of clusters exceeds the null.
    k : int
        Number of clusters.
    silhouette, null_95 : float
        Mean silhouette of the best number of clusters, and the 95th percentile of the same maximum on
        data whose columns were permuted independently.
    """

    cluster: np.ndarray
    k: int
    silhouette: float
    null_95: float


def cluster_units(features: np.ndarray, *, seed: int = 0) -> Partition:
    """Cluster rows by k-means; the number of clusters has the best silhouette, if that exceeds a null.

    The null permutes every column independently: the same margins without any grouping. Rousseeuw 1987,
    DOI 10.1016/0377-0427(87)90125-7; the comparison with structureless data follows the gap statistic,
    Tibshirani et al. 2001, DOI 10.1111/1467-9868.00293.

    Parameters
    ----------
    features : ndarray of float, shape (n_units, n_features)
    seed : int
        Seed of k-means and of the null.

    Returns
    -------
    Partition
    """
    rng = np.random.default_rng(seed)
    reduced = leading_components(features, seed)
    candidates = [k for k in K_RANGE if k < len(features) / 2]
    if not candidates:
        return Partition(np.zeros(len(features), dtype=int), 1, float("nan"), float("nan"))
    rows = np.sort(rng.permutation(len(reduced))[:_SILHOUETTES])
    best, k, labels = _best(reduced, candidates, rows, seed)
    drawn = []
    for _ in track(range(_NULLS), "clusters of permuted data", unit="draws"):
        shuffled = np.stack([rng.permutation(column) for column in features[rows].T], axis=1)
        fewer = [c for c in candidates if c < len(rows) / 2]
        drawn.append(_best(leading_components(shuffled, seed), fewer, np.arange(len(rows)), seed)[0])
    bound = float(np.max(drawn))
    if best <= bound:
        return Partition(np.zeros(len(features), dtype=int), 1, best, bound)
    return Partition(_by_size(labels), k, best, bound)


def leading_components(features: np.ndarray, seed: int) -> np.ndarray:
    """Reduce features to their leading 20 principal components: much the same geometry at a fraction of the cost.

    Parameters
    ----------
    features : ndarray of float, shape (n_units, n_features)
    seed : int
        Seed of the randomised decomposition.

    Returns
    -------
    ndarray of float, shape (n_units, 20 or fewer)
        Centred.
    """
    from sklearn.decomposition import PCA

    centred = features - features.mean(0)
    if features.shape[1] <= 20 or len(features) <= 20:
        return np.asarray(centred)
    return np.asarray(PCA(20, random_state=seed, svd_solver="randomized").fit_transform(centred))


def _kmeans(features: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(k, n_init=2, random_state=seed).fit_predict(features))


def _best(features: np.ndarray, candidates: list[int], rows: np.ndarray, seed: int) -> tuple[float, int, np.ndarray]:
    """Find the largest mean silhouette over the candidate numbers, with its number and labels."""
    from sklearn.metrics import pairwise_distances, silhouette_score

    distances = pairwise_distances(features[rows])
    best: tuple[float, int, np.ndarray] = (-1.0, 1, np.zeros(len(features), dtype=int))
    distinct = len(np.unique(features, axis=0))
    for k in (k for k in candidates if k <= distinct):
        labels = _kmeans(features, k, seed)
        if 2 <= len(np.unique(labels[rows])) < len(rows):
            score = float(silhouette_score(distances, labels[rows], metric="precomputed"))
            if score > best[0]:
                best = (score, k, labels)
    return best


def _by_size(labels: np.ndarray) -> np.ndarray:
    """Renumber clusters, the largest first."""
    names, counts = np.unique(labels, return_counts=True)
    order = names[np.argsort(-counts, kind="stable")]
    number = {name: i for i, name in enumerate(order)}
    return np.array([number[x] for x in labels])


def stability(features: np.ndarray, k: int, *, group: np.ndarray | None = None, resamples: int = 5, seed: int = 0) -> float:
    """Average the adjusted mutual information of clusterings of two random samples, on the units that both have.

    Parameters
    ----------
    features : ndarray of float, shape (n_units, n_features)
    k : int
        Number of clusters.
    group : ndarray, shape (n_units,), optional
        Units of one group stay together.
    resamples : int
        Number of pairs of samples of 80 % of the groups.
    seed : int
        Seed of samples and k-means.

    Returns
    -------
    float
        NaN where k is 1. Ben-Hur et al. 2002 (subsampling), DOI 10.1142/9789812799623_0002.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    if k < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    group = np.arange(len(features)) if group is None else np.unique(group, return_inverse=True)[1]
    n_groups, scores = group.max() + 1, []
    for _ in range(resamples):
        labels, kept = [], []
        for _ in range(2):
            chosen = np.zeros(n_groups, dtype=bool)
            chosen[rng.permutation(n_groups)[: max(2, int(0.8 * n_groups))]] = True
            rows = np.flatnonzero(chosen[group])
            all_labels = np.full(len(features), -1)
            all_labels[rows] = _kmeans(leading_components(features[rows], seed), min(k, len(rows)), int(rng.integers(2**31)))
            labels.append(all_labels)
            kept.append(rows)
        shared = np.intersect1d(kept[0], kept[1])
        scores.append(adjusted_mutual_info_score(labels[0][shared], labels[1][shared]))
    return float(np.mean(scores))


@dataclass(frozen=True)
class Agreement:
    """Agreement of clusters with labels.

    Attributes
    ----------
    ami, ari, v_measure : float
        Adjusted mutual information, adjusted Rand index and V-measure.
    ami_null, ari_null, v_null : float
        Their means over permuted labels.
    ami_p : float
        Share of permuted labels with an AMI as large.
    n : int
        Number of units.
    """

    ami: float
    ami_null: float
    ami_p: float
    ari: float
    ari_null: float
    v_measure: float
    v_null: float
    n: int


class Exchangeable(NamedTuple):
    """Units whose labels are permuted together, arrays of shape (n_units,).

    Attributes
    ----------
    group : ndarray
        Units of one group have one label, and keep having one.
    strata : ndarray or None
        Labels are permuted between groups of one stratum only; a group lies in one stratum.
    """

    group: np.ndarray
    strata: np.ndarray | None = None


def agreement(
    cluster: np.ndarray, label: np.ndarray, units: Exchangeable, *, permutations: int = 99, seed: int = 0
) -> Agreement:
    """Measure the agreement of clusters with labels by AMI, ARI and V-measure, beside labels permuted over groups.

    With strata, the null includes the agreement that is due to them: the p-value tests the agreement within strata.

    Vinh et al. 2010 (AMI), JMLR 11:2837; Hubert and Arabie 1985 (ARI), DOI 10.1007/BF01908075; Rosenberg
    and Hirschberg 2007 (V-measure), ACL D07-1043. ``ami_p = (1 + #) / (1 + B)``.

    Parameters
    ----------
    cluster, label : ndarray, shape (n_units,)
    units : Exchangeable
    permutations : int
        Number of permutations of the labels.
    seed : int
        Seed of the permutations.

    Returns
    -------
    Agreement

    Raises
    ------
    MoeProbeError
        When a group lies in two strata.
    """
    rng = np.random.default_rng(seed)
    _, first, of_unit = np.unique(units.group, return_index=True, return_inverse=True)
    names, code = np.unique(np.asarray(label), return_inverse=True)
    _, cluster = np.unique(cluster, return_inverse=True)
    of_group, shape = code[first], (len(names), int(cluster.max()) + 1)
    within = np.zeros(len(first), dtype=int) if units.strata is None else _strata_of_groups(units.strata, first, of_unit)
    parts = [np.flatnonzero(within == stratum) for stratum in np.unique(within)]

    def permuted() -> np.ndarray:
        out = of_group.copy()
        for part in parts:
            out[part] = rng.permutation(of_group[part])
        return out

    def measured(labels: np.ndarray) -> tuple[float, float, float]:
        cells = np.bincount(labels * shape[1] + cluster, minlength=shape[0] * shape[1]).reshape(shape)
        return _measures(cells[cells.any(1)])  # a permutation may leave a label without units

    observed = measured(code)
    drawn = np.array([measured(permuted()[of_unit]) for _ in range(permutations)])
    null = drawn.mean(0)
    p = (1 + int((drawn[:, 0] >= observed[0] - 1e-12).sum())) / (1 + permutations)
    return Agreement(observed[0], float(null[0]), p, observed[1], float(null[1]), observed[2], float(null[2]), len(code))


def _strata_of_groups(strata: np.ndarray, first: np.ndarray, of_unit: np.ndarray) -> np.ndarray:
    """Code every group's stratum, shape (n_groups,); `first` (n_groups,) is a unit of it, `of_unit` a unit's group."""
    names, code = np.unique(np.asarray(strata), return_inverse=True)
    other = np.flatnonzero(code != code[first][of_unit])
    if len(other):
        own = code[first][of_unit[other[0]]]
        raise MoeProbeError(
            f"documents of one group lie in two strata, '{names[own]}' and '{names[code[other[0]]]}'",
            "labels of groups are permuted within strata",
            "groups that lie in one stratum, or no --strata",
        )
    return np.asarray(code[first])


def _measures(cells: np.ndarray) -> tuple[float, float, float]:
    """Compute AMI (arithmetic mean of the entropies below), ARI and V-measure from counts (n_labels, n_clusters).

    The values are scikit-learn's, whose own functions take labels unit by unit and check them for every permutation.
    """
    from sklearn.metrics.cluster import expected_mutual_information

    n, rows, columns = int(cells.sum()), cells.sum(1), cells.sum(0)
    pairs, in_rows, in_columns = (int((x.astype(np.int64) ** 2).sum()) for x in (cells, rows, columns))
    fn, fp, tp = in_rows - pairs, in_columns - pairs, pairs - n
    tn = n * n - in_rows - in_columns + pairs
    ari = 1.0 if fn == fp == 0 else 2.0 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))
    entropy_rows, entropy_columns = (float(-(x / n * np.log(x / n)).sum()) for x in (rows, columns))
    if len(rows) == 1 or len(columns) == 1:
        # one label or one cluster: no information is shared, unless there is one of both (a perfect match)
        both = float(len(rows) == len(columns))
        return both, ari, both
    row, column = np.nonzero(cells)
    count = cells[row, column]
    mutual = max(float((count / n * np.log(count * (n / (rows[row] * columns[column])))).sum()), 0.0)
    expected = expected_mutual_information(cells.astype(np.int64), n)
    smallest = np.finfo(np.float64).eps
    above, below = mutual - expected, (entropy_rows + entropy_columns) / 2 - expected
    above, below = (min(x, -smallest) if x < 0 else max(x, smallest) for x in (above, below))
    return float(above / below), ari, 2 * mutual / (entropy_rows + entropy_columns)
