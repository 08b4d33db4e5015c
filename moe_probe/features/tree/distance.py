"""Agreement of distance in the tree with distance in the corpus's own taxonomy, with the two nulls of siblings."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.progress import track
from moe_probe.features.tree.nulls import EQUAL, exchanged, one_sided_p, rate_strata, shuffled_within
from moe_probe.features.tree.same_label import SameLabel
from moe_probe.features.tree.siblings import ALL_PAIRS, Verdict

if TYPE_CHECKING:
    from moe_probe.features.tree.subjects import Subjects


class Ancestors(NamedTuple):
    """Parent and grandparent of every leaf, -1 for none; arrays are (n_features,).

    Siblings share a parent, cousins a grandparent, strangers neither.
    """

    parent: np.ndarray
    grandparent: np.ndarray


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
    subjects: Subjects, ancestors: Ancestors, *, permutations: int = 500, seed: int = 0, most: int = 4000
) -> Distances | None:
    """Correlate distance in the tree with distance in the corpus's own taxonomy.

    Parameters
    ----------
    subjects : Subjects
        Firing rates of the leaves' dictionary.
    ancestors : Ancestors
        Of its features.
    permutations : int
        Of labels over groups, and as many of features over leaves.
    seed : int
        Seed of pairs and permutations.
    most : int
        Pairs of siblings, of cousins and of strangers that are looked at.

    Returns
    -------
    Distances or None
        None where fewer than two kinds of pairs exist.
    """
    rng = np.random.default_rng(seed)
    features = np.flatnonzero(ancestors.parent >= 0)
    if len(features) < 2:
        return None
    strata = rate_strata(subjects.counts[features])
    drawn = _drawn(Ancestors(*(codes[features] for codes in ancestors)), rng, most=most)
    if sum(len(i) > 0 for i, _ in drawn) < 2:
        return None
    first, second = (np.concatenate([pair[side] for pair in drawn]) for side in (0, 1))
    in_tree = np.repeat([0, 1, 2], [len(i) for i, _ in drawn]).astype(float)
    scales = [SameLabel(subjects.rates[:, features], labels) for labels in (subjects.topic, subjects.subtopic) if labels]

    def in_taxonomy(i: np.ndarray, j: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """Subtract the chances of one topic and of one subtopic from 2 (twice the first where there are no subtopics)."""
        chances = [s.of(i, j, None if order is None else s.labelling.permuted(order)) for s in scales]
        return np.asarray(2 - chances[0] - chances[-1])

    distance = in_taxonomy(first, second)
    observed = _correlation(in_tree, distance)
    n, null_labels, null_features = len(subjects.topic.codes), [], []
    for _ in track(range(permutations), "exchange topics", unit="permutations"):
        order = exchanged(n, subjects.strata, rng)
        null_labels.append(_correlation(in_tree, in_taxonomy(first, second, order)))
    table = 2 - scales[0].matrix() - scales[-1].matrix() if len(features) <= ALL_PAIRS else None
    for _ in track(range(permutations), "exchange features", unit="permutations"):
        swap = shuffled_within(strata, rng)
        i, j = swap[first], swap[second]
        null_features.append(_correlation(in_tree, in_taxonomy(i, j) if table is None else table[i, j]))
    p_labels, p_features = (float(one_sided_p(np.array(null), observed)) for null in (null_labels, null_features))
    kinds = [distance[in_tree == kind] for kind in (0, 1, 2)]
    siblings, cousins, strangers = (float(values.mean()) if len(values) else float("nan") for values in kinds)
    return Distances(siblings, cousins, strangers, Verdict(observed, float(np.mean(null_features)), p_labels, p_features))


def _correlation(in_tree: np.ndarray, in_taxonomy: np.ndarray) -> float:
    """Correlate after Pearson; NaN where nothing varies, instead of a quotient of roundings."""
    return float(np.corrcoef(in_tree, in_taxonomy)[0, 1]) if np.ptp(in_taxonomy) > EQUAL else float("nan")


def _drawn(ancestors: Ancestors, rng: np.random.Generator, *, most: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw pairs of siblings, of cousins and of strangers, at most `most` of each."""
    parent, grandparent = ancestors
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
    """Draw random pairs inside random sets, every pair alike."""
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
