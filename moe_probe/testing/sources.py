"""Usage of documents that come from few sources: all documents of a source share what is peculiar to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.routing import Usage
from moe_probe.core.schema import MoeLayer
from moe_probe.core.stats import group_names

if TYPE_CHECKING:
    import pandas as pd


def source_usage(  # noqa: PLR0913 - documented keyword options of a public function, all with defaults
    sources: Sequence[int],
    *,
    documents: Sequence[int] | int = 8,
    tokens: int = 100,
    n_layers: int = 3,
    num_experts: int = 8,
    effect: float = 0.5,
    tail: float = 3.0,
    boost: float = 0.0,
    seed: int = 0,
) -> Usage:
    """Draw selections of documents from sources, with habits that are far from normal.

    The habits of a source (logits by layer and expert) follow Student's t, scaled to `effect`; documents of one source
    differ by their tokens alone. The document is no unit here: whoever takes it for one finds effects in noise.

    Parameters
    ----------
    sources : sequence of int
        Number of sources of every topic.
    documents : int or sequence of int
        Number of documents of every source, or of every source of each topic.
    tokens : int
        Mean number of tokens of a document; lengths are between half and three halves of it.
    n_layers, num_experts : int
        MoE layers, and experts of each, one chosen per token.
    effect : float
        Scale of the habits.
    tail : float
        Degrees of freedom of Student's t: at 2 and less the habits have no variance.
    boost : float
        Added to the logit of expert 1 of layer 0 for topic 0: 0 is pure noise.
    seed : int

    Returns
    -------
    Usage
        Labels ``topic`` and ``group`` (the source), and ``source`` as a label of the same values.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    topic = np.repeat(np.arange(len(sources)), sources)
    each = np.broadcast_to(documents, len(sources))[topic]
    base = rng.normal(0, 0.3, (n_layers, num_experts))
    logits = base + effect * rng.standard_t(tail, (len(topic), n_layers, num_experts))
    logits[topic == 0, 0, 1] += boost
    odds = np.exp(logits - logits.max(2, keepdims=True))
    odds /= odds.sum(2, keepdims=True)
    source = np.repeat(np.arange(len(topic)), each)
    lengths = rng.integers(max(1, tokens // 2), tokens + tokens // 2 + 1, len(source))
    table = pd.DataFrame(
        {
            "document": [f"d{i}" for i in range(len(source))],
            "topic": [f"topic-{topic[s]:02d}" for s in source],
            "group": [f"source-{s:03d}" for s in source],
            "source": [f"source-{s:03d}" for s in source],
            "n_tokens": lengths,
        }
    )
    layers = tuple(MoeLayer(layer=i, name=f"layer {i}", num_experts=num_experts, top_k=1) for i in range(n_layers))
    return Usage(rng.multinomial(lengths[:, None], odds[source]), None, layers, table)


def collapsed_usage(usage: Usage) -> Usage:
    """Sum the documents of every group: one row per group, as if each were one observation.

    Parameters
    ----------
    usage : Usage

    Returns
    -------
    Usage
        Rows in the order of the groups' names.
    """
    names, code = np.unique(group_names(usage.documents).astype(str), return_inverse=True)
    counts = np.zeros((len(names), *usage.selections.shape[1:]), dtype=np.int64)
    np.add.at(counts, code, usage.selections)
    mass = None
    if usage.gate_mass is not None:
        mass = np.zeros(counts.shape)
        np.add.at(mass, code, usage.gate_mass)
    first = np.unique(code, return_index=True)[1]
    documents: pd.DataFrame = usage.documents.iloc[first].assign(
        document=names, n_tokens=np.bincount(code, usage.documents["n_tokens"]).astype(int)
    )
    return Usage(counts, mass, usage.layers, documents.reset_index(drop=True), evidence=usage.evidence)
