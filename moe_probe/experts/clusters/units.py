"""Experts, documents and tokens, described by their routing for clustering."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import Evidence
from moe_probe.core.stats import labelled_documents, topic_moments
from moe_probe.core.stats.groups import need_column
from moe_probe.experts.explain.classes import token_class
from moe_probe.experts.explain.selections import LayerSelections, map_layers
from moe_probe.experts.explain.tokens import sample_tokens
from moe_probe.experts.samples import MOST_DOCUMENTS, even_sample
from moe_probe.experts.topic_groups import topic_groups

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

_FLOOR = 0.1  # share of an even load below which an expert has no reliable profile


class Units(NamedTuple):
    """Experts, documents or tokens to cluster.

    Attributes
    ----------
    kind : {"expert", "document", "token"}
    features : ndarray of float, shape (n_units, n_features)
    layer : ndarray of int, shape (n_units,)
        Layer of an expert; -1 for units that span all layers.
    number : ndarray of int, shape (n_units,)
        Expert, or row of the document or token in the trace.
    group : ndarray, shape (n_units,)
        Group of documents that a unit belongs to; every expert is its own.
    labels : dict of str to ndarray of object, shape (n_units,)
    strata : ndarray of object, shape (n_units,), or None
        Strata of the units' documents.
    warnings : tuple of str
        What is left out.
    """

    kind: str
    features: np.ndarray
    layer: np.ndarray
    number: np.ndarray
    group: np.ndarray
    labels: dict[str, np.ndarray]
    strata: np.ndarray | None = None
    warnings: tuple[str, ...] = ()


def expert_units(trace: Trace, *, label: str = "topic") -> Units:
    """Describe experts of all layers by their log2 lift for every topic (cut at -3 and 3).

    Parameters
    ----------
    trace : Trace
    label : str
        Label column of the topics.

    Returns
    -------
    Units
        Without experts that are hardly used.

    Raises
    ------
    MoeProbeError
        When documents have no such label or only one topic.
    """
    groups = topic_groups(trace.usage(), label=label)
    mean, _, _ = topic_moments(groups.shares, groups.topic, n_topics=len(groups.topics))
    base = mean.mean(0)
    used = base >= _FLOOR / np.bincount(groups.layer_index)[groups.layer_index]
    with np.errstate(divide="ignore"):
        profile = np.clip(np.log2(mean[:, used] / base[used]), -3, 3).T
    best = np.array(groups.topics, dtype=object)[profile.argmax(1)]
    return Units(
        "expert",
        profile,
        groups.layer[used],
        groups.expert[used],
        np.arange(int(used.sum())),
        {f"best {label}": best, "layer": groups.layer[used].astype(str)},
    )


def document_units(trace: Trace, *, label: str = "topic", others: tuple[str, ...] = (), seed: int = 0) -> Units:
    """Describe documents by the square roots of their usage shares of all layers; of a large corpus, a sample of them.

    Parameters
    ----------
    trace : Trace
    label : str
        Label column; documents without a label are left out.
    others : tuple of str
        Further label columns that are kept.
    seed : int
        Seed of the sample.

    Returns
    -------
    Units

    Raises
    ------
    MoeProbeError
        When documents have no such label, or fewer than four have one.
    """
    usage = trace.usage()
    keep, topics, names = labelled_documents(usage.documents, label=label)
    every = np.flatnonzero(keep & (usage.document_totals() > 0))
    if len(every) < 4:
        raise MoeProbeError(f"{len(every)} labelled documents cannot be clustered", "four are the least", "a larger corpus")
    rows = every[even_sample(np.unique(topics[every], return_inverse=True)[1], MOST_DOCUMENTS, seed=seed)]
    unit = np.full(len(keep), -1)
    unit[rows] = np.arange(len(rows))
    features = usage.summed(unit, len(rows))
    for columns in usage.columns:
        part = features[:, columns]
        part[:] = np.sqrt(part / np.maximum(part.sum(1, keepdims=True), 1))
    labels = {name: usage.documents[name].fillna("").astype(str).to_numpy(dtype=object)[rows] for name in (label, *others)}
    warning = (
        ()
        if len(rows) == len(every)
        else (f"Clustered are {len(rows):,} of {len(every):,} documents, drawn evenly over topics.",)
    )
    return Units("document", features, np.full(len(rows), -1), rows, names[rows], labels, warnings=warning)


def token_units(trace: Trace, *, label: str = "topic", max_tokens: int = 1500, seed: int = 0) -> Units:
    """Describe tokens by the experts that they chose in every layer: one column of 0 and 1 per expert.

    Parameters
    ----------
    trace : Trace
        With routing.
    label : str
        Label column; documents without a label are left out.
    max_tokens : int
        Number of tokens, at most.
    seed : int
        Seed of the sample.

    Returns
    -------
    Units
    """
    sample = sample_tokens(trace, label=label, folds=1, max_tokens=100 * max_tokens, seed=seed)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(sample.row))[:max_tokens])
    unit = np.full(len(sample.row), -1)
    unit[chosen] = np.arange(len(chosen))

    def choices(item: LayerSelections) -> np.ndarray:
        use = unit[item.token] >= 0
        picked = np.zeros((len(chosen), item.num_experts), dtype=np.float32)
        picked[unit[item.token[use]], item.expert[use]] = 1
        return picked

    parts = list(map_layers(trace, sample, choices))
    topic = np.array(sample.topics, dtype=object)[sample.topic[sample.group[chosen]]]
    labels = {label: topic}
    if trace.manifest.evidence is Evidence.WORDS:
        strings = trace.token_strings()
        kinds = [token_class(strings[int(v)]) for v in sample.vocabulary[sample.token[chosen]]]
        labels["token class"] = np.array(kinds, dtype=object)
    return Units(
        "token",
        np.concatenate(parts, axis=1),
        np.full(len(chosen), -1),
        sample.row[chosen].astype(np.int64),
        sample.group[chosen].astype(np.int64),
        labels,
    )


def with_strata(trace: Trace, item: Units, strata: str) -> Units:
    """Add the strata of the units' documents; experts have none.

    Parameters
    ----------
    trace : Trace
    item : Units
        Of that trace.
    strata : str
        Label column.

    Returns
    -------
    Units

    Raises
    ------
    MoeProbeError
        When documents have no such column.
    """
    if item.kind == "expert":
        return item
    documents = trace.documents
    need_column(documents, strata, " to stratify by")
    values = documents[strata].fillna("").astype(str).to_numpy(dtype=object)
    rows = item.number if item.kind == "document" else trace.tokens_at(item.number, ["document"])["document"]
    return item._replace(strata=values[rows])
