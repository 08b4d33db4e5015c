"""Power of the test of every node: pure nodes made of the tree's own features, tested as its nodes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.progress import track
from moe_probe.core.stats import benjamini_hochberg
from moe_probe.features.tree.nulls import PooledNull, exchanged
from moe_probe.features.tree.same_label import Labelling, SameLabel
from moe_probe.features.tree.siblings import ALL_PAIRS

if TYPE_CHECKING:
    from moe_probe.features.tree.siblings import Pairs, Purity
    from moe_probe.features.tree.subjects import Subjects

#: Share of pure nodes that a test must find to be one, and share of them that lie above the bound of purity.
POWER, _ABOVE = 0.8, 0.95
#: Pure nodes made for every number of children and frequency of firing, and how many of them there must be.
_DRAWS, _FEWEST = 200, 40
#: Children that pure nodes have at most: of more, as many pairs are looked at.
_CHILDREN = 7
#: Classes of frequency within a number of children; features stand in for children that fire up to so many times as often.
_CLASSES, _FACTOR = 3, 4.0
_NEAREST = 5
#: Of labels, when features that keep to a topic are chosen; of those the clearest share, and at least so many.
_PERMUTATIONS, _CLEAR, _CLEAR_FEWEST = 99, 0.25, 24


@dataclass(frozen=True)
class NodePower:
    """Power of the test of every node; arrays are (n_nodes,).

    Attributes
    ----------
    power : ndarray of float
        Share of pure nodes, with as many children that fire about as often, that the test finds; NaN where none can be made.
    pure_low : ndarray of float
        Purity above which 95 % of those lie.
    judged : ndarray of bool
        The node passed the test, or `power` is 0.8 or more and its purity lies below `pure_low`.
    """

    power: np.ndarray
    pure_low: np.ndarray
    judged: np.ndarray


def node_power(subjects: Subjects, pairs: Pairs, tested: Purity, *, alpha: float = 0.05, seed: int = 0) -> NodePower:
    """Estimate at every node how often the test would pass if its children were of one topic.

    A pure node is put together from features of the tree that have one topic in common: the clearest quarter of those that
    keep to a topic by themselves (labels permuted, Benjamini-Hochberg over features), with the topic that most of their
    firings are from. It has as many children as the node, which fire about as often, and is tested under the node's own
    nulls, at the p-value that one node more would need to pass beside those that passed. A node that did not pass is known not
    to be pure only where pure nodes pass as a rule and where it is less pure than they are; otherwise it is not judged. Where
    no labels can be exchanged (every stratum has one topic), no node is judged.

    Parameters
    ----------
    subjects : Subjects
        Firing rates of the children's dictionary.
    pairs : Pairs
        From `sibling_pairs`.
    tested : Purity
        Of the same subjects and pairs.
    alpha : float
        False discovery rate of features and nodes.
    seed : int
        Seed of the pure nodes.

    Returns
    -------
    NodePower
    """
    rng = np.random.default_rng(seed)
    n_nodes = len(pairs.parents)
    passed = tested.q_value <= alpha
    if not subjects.exchangeable:
        return NodePower(np.full(n_nodes, np.nan), np.full(n_nodes, np.nan), passed)
    enough = alpha * (int(passed.sum()) + 1) / n_nodes
    counts = np.log(np.maximum(subjects.counts[pairs.features], 1).astype(float))
    by_topic, same = _topical(subjects, pairs, alpha, rng)
    table = same.matrix() if len(pairs.features) <= ALL_PAIRS else None
    children = _children(pairs)
    power, low = np.full(n_nodes, np.nan), np.full(n_nodes, np.nan)
    for nodes in track(_alike(children, counts), "power", unit="kinds of node"):
        drawn = rng.choice(nodes, _DRAWS)
        made = [_pure(counts[children[i]], by_topic, counts, rng) for i in drawn] if by_topic else []
        like = np.array([i for i, features in zip(drawn, made, strict=False) if len(features)], dtype=int)
        if len(like) < _FEWEST:
            continue
        purity = _purity([features for features in made if len(features)], same, table)
        power[nodes] = float((tested.node_p(purity, like) <= enough).mean())
        low[nodes] = float(np.quantile(purity, 1 - _ABOVE))
    with np.errstate(invalid="ignore"):
        judged = passed | ((power >= POWER) & (tested.observed < low))
    return NodePower(power, low, judged)


def _topical(subjects: Subjects, pairs: Pairs, alpha: float, rng: np.random.Generator) -> tuple[list[np.ndarray], SameLabel]:
    """Find features that clearly keep to a topic, topic by topic, where there are two or more; and chances to measure them by.

    Nearly all features of a wide dictionary keep to a topic a little: the clearest quarter is what a subject means here. They
    are chosen on half of the groups of documents, and what is measured of them comes from the other half: chosen and measured
    on the same ones, the luckiest would be taken for what a pure node is like.
    """
    codes = subjects.topic.codes
    first = np.zeros(len(codes), dtype=bool)
    for topic in range(subjects.topic.n):
        groups = rng.permutation(np.flatnonzero(codes == topic))
        first[groups[: (len(groups) + 1) // 2]] = True
    rates, alone = subjects.rates[:, pairs.features], np.arange(len(pairs.features))
    chosen, measured = (SameLabel(rates[half], Labelling(codes[half], subjects.topic.n)) for half in (first, ~first))
    n, strata = int(first.sum()), None if subjects.strata is None else subjects.strata[first]
    drawn = track(range(_PERMUTATIONS), "exchange topics", unit="permutations")
    null = np.stack([chosen.of(alone, alone, chosen.labelling.permuted(exchanged(n, strata, rng))) for _ in drawn])
    observed = chosen.of(alone, alone)
    keeps = np.flatnonzero(benjamini_hochberg(PooledNull(null).p_values(observed)) <= alpha)
    clear = keeps[np.argsort(-observed[keeps], kind="stable")][: max(int(_CLEAR * len(keeps)), _CLEAR_FEWEST)]
    own = (chosen.labelling.one_hot() @ chosen.shares).argmax(0)
    by_topic = [np.sort(clear[own[clear] == topic]) for topic in range(subjects.topic.n)]
    return [features for features in by_topic if len(features) > 1], measured


def _children(pairs: Pairs) -> list[np.ndarray]:
    """Children of every node, at most `_CHILDREN` of them."""
    both, node = np.concatenate([pairs.first, pairs.second]), np.tile(pairs.node, 2)
    return [np.unique(both[node == i])[:_CHILDREN] for i in range(len(pairs.parents))]


def _alike(children: list[np.ndarray], counts: np.ndarray) -> list[np.ndarray]:
    """Nodes with as many children that fire about as often."""
    size = np.array([len(c) for c in children])
    often = np.array([counts[c].mean() for c in children])
    out: list[np.ndarray] = []
    for n in np.unique(size):
        nodes = np.flatnonzero(size == n)
        out += [part for part in np.array_split(nodes[np.argsort(often[nodes], kind="stable")], _CLASSES) if len(part)]
    return out


def _pure(often: np.ndarray, by_topic: list[np.ndarray], counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Features of one topic drawn at random that fire about as often as given (logarithms); empty where it has too few."""
    left = by_topic[int(rng.integers(len(by_topic)))].tolist()
    chosen: list[int] = []
    for value in often:
        far = np.abs(counts[left] - value) if left else np.zeros(0)
        near = np.flatnonzero(far <= np.log(_FACTOR))
        if not len(near):
            return np.zeros(0, dtype=int)
        near = near[np.argsort(far[near], kind="stable")][:_NEAREST]
        chosen.append(left.pop(int(rng.choice(near))))
    return np.array(chosen)


def _purity(nodes: list[np.ndarray], same: SameLabel, table: np.ndarray | None) -> np.ndarray:
    """Mean chance over the pairs of every node's features, shape (n_nodes,)."""
    sides = [[features[side] for side in np.triu_indices(len(features), 1)] for features in nodes]
    which = np.repeat(np.arange(len(nodes)), [len(first) for first, _ in sides])
    first, second = (np.concatenate([pair[side] for pair in sides]) for side in (0, 1))
    values = table[first, second] if table is not None else same.of(first, second)
    return np.asarray(np.bincount(which, weights=values) / np.bincount(which))
