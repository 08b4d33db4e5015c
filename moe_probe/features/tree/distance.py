"""Does distance in the tree agree with distance in the corpus's own taxonomy? With the two nulls of siblings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_probe.features.tree.nulls import EQUAL, one_sided_p
from moe_probe.features.tree.same_label import SameLabel, exchanged, rate_strata, shuffled_within
from moe_probe.features.tree.siblings import ALL_PAIRS, Subjects, Verdict


class Distances(NamedTuple):
    """How far apart in human terms pairs of leaves are, by how far apart they hang.

    Attributes
    ----------
    siblings, cousins, strangers : float
        Mean taxonomy distance between two firings of the pairs, from different groups: 0 same subtopic, 1 same topic, 2
        different topics. NaN where there are no such pairs.
    test : Verdict
        Correlation of tree distance (0, 1, 2) with taxonomy distance over the pairs (Mantel 1967, Cancer Research 27,
        209-220, https://pubmed.ncbi.nlm.nih.gov/6018555/), against both nulls. NaN, with p-values of 1, where all pairs are
        equally far apart.
    """

    siblings: float
    cousins: float
    strangers: float
    test: Verdict


def tree_distance(
    subjects: Subjects,
    parent: np.ndarray,
    grandparent: np.ndarray,
    *,
    permutations: int = 500,
    seed: int = 0,
    most: int = 4000,
) -> Distances | None:
    """Does distance in the tree agree with distance in the corpus's own taxonomy?

    Parameters
    ----------
    parent, grandparent : ndarray of int, shape (n_features,)
        Of every leaf; -1 for none. Siblings share a parent, cousins a grandparent, strangers neither.
    most : int
        Pairs of each kind that are looked at.

    Returns
    -------
    Distances or None
        None where fewer than two kinds of pairs exist.
    """
    rng = np.random.default_rng(seed)
    features = np.flatnonzero(parent >= 0)
    if len(features) < 2:
        return None
    up, above = parent[features], grandparent[features]
    strata = rate_strata(subjects.counts[features])
    drawn = _drawn(up, above, rng, most=most)
    if sum(len(i) > 0 for i, _ in drawn) < 2:
        return None
    one, other = (np.concatenate([pair[side] for pair in drawn]) for side in (0, 1))
    far = np.repeat([0, 1, 2], [len(i) for i, _ in drawn]).astype(float)
    scales = [SameLabel(subjects.rates[:, features], labels) for labels in (subjects.topic, subjects.subtopic) if labels]

    def human(i: np.ndarray, j: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """2 less the chances of one topic and of one subtopic (twice the first where there are no subtopics)."""
        chances = [s.of(i, j, None if order is None else s.labelling.permuted(order)) for s in scales]
        return np.asarray(2 - chances[0] - chances[-1])

    found = human(one, other)
    observed = _correlation(far, found)
    n = len(subjects.topic.codes)
    labels = [_correlation(far, human(one, other, exchanged(n, subjects.strata, rng))) for _ in range(permutations)]
    table = 2 - scales[0].matrix() - scales[-1].matrix() if len(features) <= ALL_PAIRS else None
    swapped = []
    for _ in range(permutations):
        swap = shuffled_within(strata, rng)
        i, j = swap[one], swap[other]
        swapped.append(_correlation(far, human(i, j) if table is None else table[i, j]))
    test = Verdict(
        observed,
        float(np.mean(swapped)),
        float(one_sided_p(np.array(labels), observed)),
        float(one_sided_p(np.array(swapped), observed)),
    )
    near, next_to, apart = (float(found[far == kind].mean()) if (far == kind).any() else float("nan") for kind in (0, 1, 2))
    return Distances(near, next_to, apart, test)


def _correlation(far: np.ndarray, found: np.ndarray) -> float:
    """Pearson's; NaN where nothing varies, instead of a quotient of roundings."""
    return float(np.corrcoef(far, found)[0, 1]) if np.ptp(found) > EQUAL else float("nan")


def _drawn(
    parent: np.ndarray,
    grandparent: np.ndarray,
    rng: np.random.Generator,
    *,
    most: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of siblings, of cousins and of strangers, at most `most` of each."""
    i, j = rng.integers(len(parent), size=(2, 40 * most))
    near = [np.flatnonzero(parent == p) for p in np.unique(parent)]
    wider = [np.flatnonzero(grandparent == g) for g in np.unique(grandparent[grandparent >= 0])]
    pools = [_within(near, rng, most), _within(wider, rng, 4 * most), (i, j)]
    out = []
    for kind, (a, b) in enumerate(pools):
        apart = parent[a] != parent[b]
        related = (grandparent[a] == grandparent[b]) & (grandparent[a] >= 0)
        keep = (a != b) & (~apart if kind == 0 else apart & (related if kind == 1 else ~related))
        out.append((a[keep][:most], b[keep][:most]))
    return out


def _within(sets: list[np.ndarray], rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs inside random sets, every pair alike."""
    sets = [s for s in sets if len(s) > 1]
    if not sets:
        empty = np.zeros(0, dtype=int)
        return empty, empty
    weight = np.array([len(s) * (len(s) - 1.0) for s in sets])
    chosen = rng.choice(len(sets), size=n, p=weight / weight.sum())
    size = np.array([len(s) for s in sets])[chosen]
    starts = np.concatenate([[0], np.cumsum([len(s) for s in sets])])[chosen]
    flat = np.concatenate(sets)
    a, b = (rng.random((2, n)) * size).astype(int)
    return flat[starts + a], flat[starts + b]
