"""What any router over the vocabulary would show: token ids dealt to experts at random, loads as observed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.explain.tokens import TokenSample, iter_layers, sample_tokens
from moe_probe.results import Result

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from moe_probe.trace import Trace


class _Association(NamedTuple):
    """How strongly usage goes with topics in one layer."""

    mi_topic_bits: float
    max_lift: float
    pairs_of_lift_2: float


def vocabulary_baseline(
    trace: Trace, *, label: str = "topic", routers: int = 20, max_tokens: int | None = 10_000_000, seed: int = 0
) -> Result:
    """Compare every layer with routers that know nothing but random lists of words.

    A random router deals the token ids to experts, in random order, until each has the load that it has
    in the layer; one deal for each of the layer's slots. Texts about different topics use different
    words, so such a router goes with topics too: more than it is what a layer must show before meaning
    comes into question.

    Parameters
    ----------
    trace : Trace
    label : str
    routers : int
        Random routers per layer.
    max_tokens : int, optional
    seed : int

    Returns
    -------
    Result
        ``vocabulary_baseline``: ``layer, measure, observed, random_mean, random_low, random_high`` (2.5 and
        97.5 % of the random routers). Measures: ``mi_topic_bits`` (Jensen-Shannon divergence of the topics'
        mean usage, bits per selection), ``max_lift`` and ``pairs_of_lift_2`` (share of pairs of expert and
        topic with a lift of 2 or more, experts of a load of at least 1/(10 E) only).

    Raises
    ------
    MoeProbeError
        As `sample_tokens`.
    """
    import pandas as pd

    sample = sample_tokens(trace, label=label, folds=1, max_tokens=max_tokens, seed=seed)
    words = _words_of_groups(sample)
    frequency = np.asarray(words.sum(0)).ravel()
    rows = []
    for place, item in enumerate(iter_layers(trace, sample)):
        counts = np.bincount(sample.group[item.token] * item.num_experts + item.expert,
                             minlength=len(sample.groups) * item.num_experts).reshape(-1, item.num_experts)
        observed = _association(counts, sample)
        rng = np.random.default_rng([seed, place])
        slots = max(int(item.slots.max()), 1)
        random = [_association(_deal(words, frequency, counts.sum(0), slots, rng), sample) for _ in range(routers)]
        for measure, value in observed._asdict().items():
            drawn = np.array([getattr(r, measure) for r in random])
            rows.append({"layer": item.layer, "measure": measure, "observed": value, "random_mean": drawn.mean(),
                         "random_low": np.quantile(drawn, 0.025), "random_high": np.quantile(drawn, 0.975)})
    return Result(
        "vocabulary_baseline", pd.DataFrame(rows), seed=seed, warnings=sample.warnings,
        params={"label": label, "routers": routers, "tokens": len(sample.row)},
        caption=f"Each layer beside {routers} random routers: token ids dealt to experts in random order, to the loads "
        "observed. What such a router shows, any partition of the vocabulary would.")


def _words_of_groups(sample: TokenSample) -> csr_array:
    from scipy.sparse import csr_array

    shape = (len(sample.groups), len(sample.vocabulary))
    return csr_array((np.ones(len(sample.row)), (sample.group, sample.token)), shape=shape)


def _deal(words: csr_array, frequency: np.ndarray, load: np.ndarray, slots: int, rng: np.random.Generator) -> np.ndarray:
    """Usage of groups (n_groups, n_experts) by a router that deals token ids at random."""
    from scipy.sparse import csr_array

    ends = np.cumsum(load) / load.sum()
    usage = np.zeros((words.shape[0], len(load)))
    for _ in range(slots):
        order, experts = rng.permutation(len(frequency)), rng.permutation(len(load))
        # experts in random order too: a frequent word that overruns one end is not always the same expert's
        middle = (np.cumsum(frequency[order]) - frequency[order] / 2) / frequency.sum()
        bounds = np.cumsum(np.diff(ends, prepend=0.0)[experts])
        given = np.empty(len(frequency), dtype=np.int64)
        given[order] = experts[np.minimum(np.searchsorted(bounds, middle), len(load) - 1)]
        partition = csr_array((np.ones(len(given)), (np.arange(len(given)), given)), shape=(len(given), len(load)))
        usage += (words @ partition).toarray()
    return usage


def _association(counts: np.ndarray, sample: TokenSample) -> _Association:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    means = np.stack([shares[sample.topic == t].mean(0) for t in range(len(sample.topics))])
    base = means.mean(0)
    used = base >= 0.1 / len(base)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(means > 0, means * np.log2(means / base), 0.0)
    lift = means[:, used] / base[used]
    return _Association(float(terms.sum(1).mean()), float(lift.max()), float((lift >= 2).mean()))
