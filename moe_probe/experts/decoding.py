"""Decoding of topics from a layer's usage: multinomial logistic regression, cross-validated over groups of documents."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.text import some_of
from moe_probe.experts.samples import MOST_DOCUMENTS, even_sample

if TYPE_CHECKING:
    from moe_probe.core.stats import GroupUsage

#: Folds of the cross-validation; fewer where a topic has fewer groups.
FOLDS = 5


class DecodingAccuracy(NamedTuple):
    """Share of held-out groups whose topic is decoded correctly (0 to 1); NaN where topics cannot be decoded.

    Attributes
    ----------
    accuracy : float
    baseline : float
        The same with topics shuffled over groups (within strata).
    majority : float
        Share of the commonest topic: the accuracy of always naming it.
    """

    accuracy: float = np.nan
    baseline: float = np.nan
    majority: float = np.nan


def decodable_groups(groups: GroupUsage, *, seed: int = 0) -> tuple[GroupUsage | None, tuple[str, ...]]:
    """Select the groups of topics with at least two groups; of a large corpus, a sample of them.

    Parameters
    ----------
    groups : GroupUsage
    seed : int
        Seed of the sample.

    Returns
    -------
    groups : GroupUsage or None
        None where that leaves fewer than two topics.
    warnings : tuple of str
        What is left out.
    """
    small = groups.groups_per_topic < 2
    if (~small).sum() < 2:
        return None, ("Topics could not be decoded: fewer than two topics have two groups of documents.",)
    usable = np.flatnonzero(~small[groups.topic])
    rows = usable[even_sample(groups.topic[usable], MOST_DOCUMENTS, seed=seed)]
    notes = []
    if small.any():
        left_out = some_of(groups.topics[t] for t in np.flatnonzero(small))
        notes.append(f"Topics of a single group were left out of the decoding: {left_out}.")
    if len(rows) < len(usable):
        notes.append(
            f"Topics were decoded from {len(rows):,} of {len(usable):,} groups of documents, drawn evenly over topics."
        )
    return groups if len(rows) == len(groups.topic) else groups.select(rows), tuple(notes)


def decoding_accuracy(groups: GroupUsage | None, layer_index: int, *, seed: int) -> DecodingAccuracy:
    """Measure how well usage of one layer predicts the topic of held-out groups.

    Parameters
    ----------
    groups : GroupUsage or None
        From `decodable_groups`.
    layer_index : int
        Ordinal of the layer.
    seed : int
        Seed of folds and of the shuffled topics.

    Returns
    -------
    DecodingAccuracy
    """
    if groups is None:
        return DecodingAccuracy()
    features = np.sqrt(groups.shares[:, groups.layer_index == layer_index])
    shuffled = groups.topic.copy()
    rng = np.random.default_rng([seed, layer_index])
    strata = np.zeros(len(shuffled), dtype=int) if groups.strata is None else groups.strata
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        shuffled[rows] = rng.permutation(shuffled[rows])
    return DecodingAccuracy(
        float(_hits(features, groups.topic, seed=seed).mean()),
        float(_hits(features, shuffled, seed=seed).mean()),
        float(np.bincount(groups.topic).max() / len(groups.topic)),
    )


def cross_validated_hits(groups: GroupUsage, layer_index: int, *, seed: int = 0) -> np.ndarray:
    """Mark the groups whose topic is decoded correctly, from usage of one layer, by a decoder trained on other groups.

    The mean over groups is the ``decode_accuracy`` of `moe_probe.experts.usage.layer_usage`.

    Parameters
    ----------
    groups : GroupUsage
    layer_index : int
        Ordinal of the layer.
    seed : int
        Seed of the folds.

    Returns
    -------
    ndarray of float, shape (n_groups,)
        1 where the topic is decoded correctly, else 0; NaN for groups of topics that have no other group.
    """
    out = np.full(len(groups.groups), np.nan)
    usable = (groups.groups_per_topic >= 2)[groups.topic]
    if len(np.unique(groups.topic[usable])) >= 2:
        part = groups.select(usable)
        out[usable] = _hits(np.sqrt(part.shares[:, part.layer_index == layer_index]), part.topic, seed=seed)
    return out


def _hits(features: np.ndarray, topic: np.ndarray, *, seed: int) -> np.ndarray:
    """Mark the groups (n_groups,) whose topic is predicted from features (n_groups, n_experts) by other groups."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    sizes = np.bincount(topic)
    folds = StratifiedKFold(min(FOLDS, int(sizes[sizes > 0].min())), shuffle=True, random_state=seed)
    hits = np.zeros(len(topic), dtype=bool)
    with threadpool_limits(1), warnings.catch_warnings():  # products this small are slower on many threads
        # scikit-learn takes many topics of few groups for a regression
        warnings.filterwarnings("ignore", message="The number of unique classes")
        for train, test in folds.split(features, topic):
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=1e-3))
            hits[test] = model.fit(features[train], topic[train]).predict(features[test]) == topic[test]
    return hits
