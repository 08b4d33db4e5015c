"""Whether siblings share a topic, and divide it by its subtopics: tests with two nulls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.progress import track
from moe_probe.core.stats import benjamini_hochberg
from moe_probe.features.tree.nulls import PooledNull, exchanged, one_sided_p, rate_strata, shuffled_within
from moe_probe.features.tree.same_label import Labelling, SameLabel

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.tree.subjects import Subjects

#: Most pairs of siblings that are drawn at one node, and pairs of strangers in all.
_PAIRS_OF_NODE, _STRANGERS = 21, 4000
#: Most features of which all pairs are kept in memory; with more, pairs of permutations are formed one by one.
ALL_PAIRS = 6000


class Verdict(NamedTuple):
    """One statistic of a tree against both nulls.

    Attributes
    ----------
    observed, expected : float
        The statistic, and its mean when features are permuted over the tree.
    p_labels : float
        Labels permuted over groups of documents: the tree, all firings and documents stay as they are.
    p_features : float
        Features are permuted over the tree, among those that fire about as often: firings, documents and labels stay.
    """

    observed: float
    expected: float
    p_labels: float
    p_features: float

    @property
    def p_value(self) -> float:
        """The larger of both, since the tree must beat either null.

        An intersection-union test (Berger and Hsu 1996, DOI 10.1214/ss/1032280304).
        """
        return max(self.p_labels, self.p_features)


@dataclass(frozen=True)
class Pairs:
    """Pairs of siblings, and what they are compared with; features are numbered among the tree's own.

    Attributes
    ----------
    features : ndarray of int, shape (n_features,)
        The tree's features as their dictionary numbers them.
    first, second, node : ndarray of int, shape (n_pairs,)
        Node whose parts the two are, numbered from 0.
    parents : ndarray of int, shape (n_nodes,)
        Parent of every node, as its dictionary numbers it.
    strangers : tuple of ndarray of int, shape (n_strangers,) each
        Pairs of features that fire as often as pairs of siblings do, from anywhere in the tree.
    strata : ndarray of int, shape (n_features,)
        Features that fire about as often.
    """

    features: np.ndarray
    first: np.ndarray
    second: np.ndarray
    node: np.ndarray
    parents: np.ndarray
    strangers: tuple[np.ndarray, np.ndarray]
    strata: np.ndarray


def best_parents(edges: pd.DataFrame) -> pd.DataFrame:
    """Choose one parent per child, that of largest weight, among the edges of relation ``part``."""
    return edges[edges["relation"] == "part"].sort_values(["weight", "parent"]).groupby("child").tail(1)


def sibling_pairs(edges: pd.DataFrame, counts: np.ndarray, *, seed: int = 0) -> Pairs | None:
    """Pair the parts of every node that has two or more.

    Parameters
    ----------
    edges : pandas.DataFrame
        From `moe_probe.features.tree.join`.
    counts : ndarray of int, shape (n_children,)
        Tokens on which each feature of the children's level fires.
    seed : int
        Seed of the choice of pairs and strangers.

    Returns
    -------
    Pairs or None
        None where no node has two parts.
    """
    rng = np.random.default_rng(seed)
    nodes = [(int(parent), np.sort(rows["child"].to_numpy())) for parent, rows in best_parents(edges).groupby("parent")]
    nodes = [(parent, children) for parent, children in nodes if len(children) > 1]
    if not nodes:
        return None
    features = np.unique(np.concatenate([children for _, children in nodes]))
    first, second, node = [], [], []
    for number, (_, children) in enumerate(nodes):
        columns = np.searchsorted(features, children)
        i, j = np.triu_indices(len(columns), 1)
        chosen = rng.choice(len(i), min(len(i), _PAIRS_OF_NODE), replace=False)
        first.append(columns[i[chosen]])
        second.append(columns[j[chosen]])
        node.append(np.full(len(chosen), number))
    a, b = np.concatenate(first), np.concatenate(second)
    strata = rate_strata(counts[features])
    swaps = [shuffled_within(strata, rng) for _ in range(max(1, -(-_STRANGERS // len(a))))]
    x, y = (np.concatenate([swap[side] for swap in swaps]) for side in (a, b))
    return Pairs(features, a, b, np.concatenate(node), np.array([p for p, _ in nodes]), (x[x != y], y[x != y]), strata)


@dataclass(frozen=True)
class Purity:
    """Siblings about one topic: in the whole tree, and at every node.

    Attributes
    ----------
    tree : Verdict
    ceiling : float
        What a child has with itself (two of its own firings, from different documents): siblings cannot well share more.
    observed, expected, p_value, q_value : ndarray of float, shape (n_nodes,)
    nulls : tuple of PooledNull
        Of the nodes: labels permuted (purity less that of strangers), and features exchanged (purity).
    strangers : float
        Mean chance of pairs of strangers.
    """

    tree: Verdict
    ceiling: float
    observed: np.ndarray
    expected: np.ndarray
    p_value: np.ndarray
    q_value: np.ndarray
    nulls: tuple[PooledNull, PooledNull]
    strangers: float

    def node_p(self, values: np.ndarray, node: np.ndarray) -> np.ndarray:
        """Compute the p-values that nodes would have with another purity: the larger of both nulls.

        Parameters
        ----------
        values : ndarray of float, shape (n,)
            Purity, a chance from 0 to 1.
        node : ndarray of int, shape (n,)
            Node whose nulls each value is compared with.

        Returns
        -------
        ndarray of float, shape (n,)
        """
        return np.asarray(np.maximum(self.nulls[0].tail(values - self.strangers, node), self.nulls[1].tail(values, node)))

    @property
    def shared(self) -> float:
        """How far siblings share what a child has of a topic, from 0 (as strangers do) to 1 (all of it)."""
        room = self.ceiling - self.tree.expected
        return (self.tree.observed - self.tree.expected) / room if room > 0 else float("nan")


def purity(subjects: Subjects, pairs: Pairs, *, permutations: int = 500, seed: int = 0) -> Purity:
    """Test whether firings of siblings are about the same topic more often than those of strangers.

    The statistic is the mean over nodes of the siblings' `SameLabel`, less that of strangers. Nodes are tested one by one from
    the same permutations, with the larger p of both nulls and Benjamini-Hochberg over nodes; since that asks for far smaller
    p-values than so many permutations give, every node's null is studentised and the null of all nodes is pooled.

    Parameters
    ----------
    subjects : Subjects
        Firing rates of the children's dictionary.
    pairs : Pairs
        From `sibling_pairs`.
    permutations : int
        Of labels over groups, and as many of features over the tree.
    seed : int
        Seed of the permutations.

    Returns
    -------
    Purity
    """
    rng = np.random.default_rng(seed)
    same = SameLabel(subjects.rates[:, pairs.features], subjects.topic)
    n_nodes = len(pairs.parents)
    node_size = np.bincount(pairs.node, minlength=n_nodes)
    # the same arrays at every permutation: `SameLabel` remembers what does not change with labels
    first, second = np.concatenate([pairs.first, pairs.strangers[0]]), np.concatenate([pairs.second, pairs.strangers[1]])

    def by_node(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.bincount(pairs.node, weights=values, minlength=n_nodes) / node_size)

    def siblings_and_strangers(labelling: Labelling) -> tuple[np.ndarray, float]:
        values = same.of(first, second, labelling)
        return by_node(values[: len(pairs.node)]), float(values[len(pairs.node) :].mean())

    all_pairs = same.matrix() if len(pairs.features) <= ALL_PAIRS else None
    observed, base = siblings_and_strangers(subjects.topic)
    null_labels, null_features = np.empty((permutations, n_nodes)), np.empty((permutations, n_nodes))
    for row in track(null_labels, "exchange topics", unit="permutations"):
        order = exchanged(len(subjects.topic.codes), subjects.strata, rng)
        siblings, strangers = siblings_and_strangers(subjects.topic.permuted(order))
        row[:] = siblings - strangers
    for row in track(null_features, "exchange features", unit="permutations"):
        swap = shuffled_within(pairs.strata, rng)
        i, j = swap[pairs.first], swap[pairs.second]
        row[:] = by_node(same.of(i, j) if all_pairs is None else all_pairs[i, j])
    p_tree = [one_sided_p(null.mean(1), v.mean()) for null, v in ((null_labels, observed - base), (null_features, observed))]
    nulls = PooledNull(null_labels), PooledNull(null_features)
    p_value = np.maximum(nulls[0].p_values(observed - base), nulls[1].p_values(observed))
    tree = Verdict(float(observed.mean()), float(null_features.mean()), *(float(p) for p in p_tree))
    own = (same.of(pairs.first, pairs.first) + same.of(pairs.second, pairs.second)) / 2
    return Purity(
        tree, float(by_node(own).mean()), observed, null_features.mean(0), p_value, benjamini_hochberg(p_value), nulls, base
    )


def parts_of_subject(
    subjects: Subjects, pairs: Pairs, node_topic: np.ndarray, *, permutations: int = 500, seed: int = 0
) -> np.ndarray:
    """Test whether the children of a node of one topic divide it by its subtopics.

    Within the groups of the node's topic: how much children keep to a subtopic by themselves (`SameLabel` of a feature with
    itself), less how much two siblings do. Large where each child has a subtopic of its own. Null: subtopics permuted over
    the groups of the topic.

    Parameters
    ----------
    subjects : Subjects
        Firing rates of the children's dictionary.
    pairs : Pairs
        From `sibling_pairs`.
    node_topic : ndarray of int, shape (n_nodes,)
        Topic of every node; -1 for nodes that are left out.
    permutations : int
        Of subtopics, for every topic.
    seed : int
        Seed of the permutations.

    Returns
    -------
    ndarray of float, shape (n_nodes,)
        p-values; NaN for nodes left out, or topics with a single subtopic.
    """
    rng = np.random.default_rng(seed)
    out = np.full(len(pairs.parents), np.nan)
    if subjects.subtopic is None:
        return out
    for topic in np.unique(node_topic[node_topic >= 0]):
        groups = np.flatnonzero(subjects.topic.codes == topic)
        names, codes = np.unique(subjects.subtopic.codes[groups], return_inverse=True)
        if len(names) < 2 or len(groups) <= len(names):
            continue
        labelling, nodes = Labelling(codes, len(names)), np.flatnonzero(node_topic == topic)
        apart = _Apart(SameLabel(subjects.rates[np.ix_(groups, pairs.features)], labelling), pairs, nodes)
        strata = None if subjects.strata is None else subjects.strata[groups]
        drawn = track(range(permutations), "exchange subtopics", unit="permutations")
        null = np.stack([apart(labelling.permuted(exchanged(len(codes), strata, rng))) for _ in drawn])
        out[nodes] = one_sided_p(null, apart(labelling))
    return out


class _Apart:
    """How much children of some nodes keep to a label by themselves, less how much two siblings do."""

    def __init__(self, same: SameLabel, pairs: Pairs, nodes: np.ndarray) -> None:
        keep = np.isin(pairs.node, nodes)
        first, second = pairs.first[keep], pairs.second[keep]
        self._same, self._node = same, np.searchsorted(nodes, pairs.node[keep])
        self._first, self._second = np.concatenate([first, second, first]), np.concatenate([first, second, second])
        self._size = np.bincount(self._node, minlength=len(nodes))

    def __call__(self, labels: Labelling) -> np.ndarray:
        own_first, own_second, between = np.split(self._same.of(self._first, self._second, labels), 3)
        weights = (own_first + own_second) / 2 - between
        return np.asarray(np.bincount(self._node, weights=weights, minlength=len(self._size)) / self._size)
