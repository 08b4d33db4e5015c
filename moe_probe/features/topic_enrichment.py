"""Topics in whose documents features fire more; the test is that of experts, with documents as the unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.stats import (
    auroc,
    benjamini_hochberg,
    labelled_documents,
    log2_lift,
    one_value_per_group,
    permutation_p_values,
)
from moe_probe.core.stats.groups import need_column
from moe_probe.features.firing import binary

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.firing import Firings


class GroupRates(NamedTuple):
    """Share of a group's tokens on which each feature fires, (n_groups, n_features), with what is known of the groups.

    ``topic`` is an index into ``topics``; ``n_tokens, groups`` and ``strata`` are sizes, names and strata of the groups (None
    where topics are exchanged among all groups), (n_groups,) each.
    """

    rates: np.ndarray
    topic: np.ndarray
    topics: tuple[str, ...]
    n_tokens: np.ndarray
    groups: tuple[str, ...] = ()
    strata: np.ndarray | None = None


class Enrichment(NamedTuple):
    """The topic that each feature fires most for; arrays are (n_features,).

    ``topic`` is an index into ``topics``, -1 where no topic passes; ``best`` is the one of highest lift, passing or
    not. ``auroc`` is of documents of ``best`` against others, held-out ones.
    """

    topics: tuple[str, ...]
    topic: np.ndarray
    best: np.ndarray
    log2_lift: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    q_value: np.ndarray
    auroc: np.ndarray


def group_rates(
    documents: pd.DataFrame,
    document: np.ndarray,
    firings: Firings,
    *,
    label: str,
    strata: str | None = None,
) -> GroupRates:
    """Compute firing rates of groups of documents.

    Parameters
    ----------
    documents : pandas.DataFrame
        Of the trace.
    document : ndarray of int, shape (n_trace_tokens,)
        Document of every token of the trace.
    firings : Firings
    label : str
        Label column that serves as the topic.
    strata : str, optional
        Label column within which topics may be exchanged between groups, e.g. ``register``.

    Returns
    -------
    GroupRates

    Raises
    ------
    MoeProbeError
        When documents have no such labels, or a group lies in two values of one.
    """
    from scipy import sparse

    keep, labels, names = labelled_documents(documents, label=label)
    document_of = document[firings.rows]
    used = np.unique(document_of)
    used = used[keep[used]]
    topic_of = one_value_per_group(labels[used], names[used], what=label)
    groups = sorted(topic_of)
    number = {name: i for i, name in enumerate(groups)}
    group_of = np.array([number.get(name, -1) if kept else -1 for name, kept in zip(names, keep, strict=True)])[document_of]
    token = np.flatnonzero(group_of >= 0)
    one_hot = sparse.csr_array(
        (np.ones(len(token), dtype=np.float32), (group_of[token], token)), shape=(len(groups), len(document_of))
    )
    fired = binary(firings.matrix, np.float32)
    sizes = np.bincount(group_of[token], minlength=len(groups))
    topics = tuple(sorted(set(topic_of.values())))
    rates = (one_hot @ fired).toarray() / np.maximum(sizes, 1)[:, None]
    topic = np.array([topics.index(topic_of[g]) for g in groups], dtype=np.int64)
    return GroupRates(
        rates,
        topic,
        topics,
        sizes,
        tuple(groups),
        None if strata is None else _strata(documents, used, names, groups, column=strata),
    )


def _strata(
    documents: pd.DataFrame, used: np.ndarray, names: np.ndarray, groups: Sequence[str], *, column: str
) -> np.ndarray:
    """Stratum of every group, as a code; every group lies in one."""
    need_column(documents, column, " to stratify by")
    values = documents[column].fillna("").astype(str).to_numpy(dtype=object)
    value_of = one_value_per_group(values[used], names[used], what=column)
    return np.unique([value_of[g] for g in groups], return_inverse=True)[1]


def enrich(
    train: GroupRates,
    held_out: GroupRates,
    *,
    permutations: int = 1000,
    alpha: float = 0.05,
    seed: int = 0,
) -> Enrichment:
    """Find the topic that each feature fires most for, and test it.

    Welch's t of firing rates, topic against rest, under permutation of topics over groups, within the strata of `train` where
    it has some; Benjamini-Hochberg over features and topics. A topic passes with q at most alpha and a lift above 1. AUROC on
    held-out groups: those of a topic that no training group has are among the others; NaN for a topic without held-out groups.

    Parameters
    ----------
    train, held_out : GroupRates
    permutations : int
    alpha : float
        Largest q of a topic that passes.
    seed : int
        Of the permutations.

    Returns
    -------
    Enrichment

    Raises
    ------
    MoeProbeError
        When training groups have one topic only, or none, or no stratum has two.
    """
    n_topics = len(train.topics)
    if not n_topics:
        raise MoeProbeError(
            "no training document is labelled",
            "features are compared between topics of training documents",
            "label more documents",
        )
    if n_topics < 2:
        raise MoeProbeError(
            f"all documents are of one topic ('{train.topics[0]}')",
            "features are compared between topics",
            "a corpus of several topics",
        )
    t, p_values, familywise = permutation_p_values(
        train.rates, train.topic, n_topics=n_topics, permutations=permutations, seed=seed, strata=train.strata
    )
    # few permutations cannot resolve a lone perfect feature among many topics; the family-wise p can
    q_values = np.fmin(benjamini_hochberg(p_values), familywise)
    half = 0.5 / np.maximum(np.bincount(train.topic, weights=train.n_tokens, minlength=n_topics), 1)
    effect = log2_lift(train.rates, train.topic, n_topics=n_topics, pseudo=half[:, None])
    ranking = np.where((q_values <= alpha) & (t > 0), effect.log2_lift + 1000, np.nan_to_num(effect.log2_lift, nan=-999))
    best = ranking.argmax(0)
    columns = np.arange(train.rates.shape[1])
    passes = (q_values[best, columns] <= alpha) & (t[best, columns] > 0)
    number = {name: i for i, name in enumerate(train.topics)}
    held_out_topic = np.array([number.get(t, -1) for t in held_out.topics], dtype=np.int64)[held_out.topic]
    area = auroc(held_out.rates, held_out_topic, n_topics=n_topics)
    return Enrichment(
        train.topics,
        np.where(passes, best, -1),
        best,
        effect.log2_lift[best, columns],
        effect.ci_low[best, columns],
        effect.ci_high[best, columns],
        q_values[best, columns],
        area[best, columns],
    )
