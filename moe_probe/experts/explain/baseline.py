"""Random routers over the vocabulary as a baseline: token ids dealt to experts at random, at the observed loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.results import Result
from moe_probe.experts.explain.selections import LayerSelections, map_layers
from moe_probe.experts.explain.tokens import TokenSample, sample_tokens

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace


class _Association(NamedTuple):
    """How strongly usage depends on topics in one layer; units as in the result of `vocabulary_baseline`."""

    mi_topic_bits: float
    max_lift: float
    pairs_of_lift_2: float


def vocabulary_baseline(
    trace: Trace, *, label: str = "topic", routers: int = 20, max_tokens: int | None = 200_000, seed: int = 0
) -> Result:
    """Compare every layer with routers that know nothing but random lists of words.

    A random router deals the token ids to experts, in random order, until each has the load that it has
    in the layer; one deal for each of the layer's slots. Texts about different topics use different
    words, so even such a router depends on the topic. A layer must exceed it before its routing can be
    said to reflect meaning.

    Parameters
    ----------
    trace : Trace
        With routing.
    label : str
        Label column.
    routers : int
        Number of random routers per layer.
    max_tokens : int, optional
        Number of tokens to measure on, about (whole documents).
    seed : int
        Seed of the sample and of the random routers.

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

    trace.need_words()
    sample = sample_tokens(trace, label=label, folds=1, max_tokens=max_tokens, seed=seed)
    words = _words_of_topics(sample).astype(np.float32)
    frequency = np.bincount(sample.token, minlength=len(sample.vocabulary)).astype(np.float64)

    def measure(item: LayerSelections) -> list[dict[str, object]]:
        counts = item.counts(sample.group, len(sample.groups))
        rng = np.random.default_rng([seed, item.layer])
        slots = max(int(item.slots.max()), 1)
        random = [_association(_deal(words, frequency, counts.sum(0), slots, rng)) for _ in range(routers)]
        return _rows(item.layer, _association(_topic_means(counts, sample)), random)

    rows = [row for part in map_layers(trace, sample, measure) for row in part]
    return Result(
        "vocabulary_baseline",
        pd.DataFrame(rows),
        seed=seed,
        warnings=sample.warnings,
        params={"label": label, "routers": routers, "tokens": len(sample.row)},
        caption=f"Association of routing and {label} in every layer, compared with {routers} random routers that deal token "
        "ids to experts at the observed loads. A layer within the range of the random routers shows no more than any "
        "partition of the vocabulary would.",
    )


def _topic_means(counts: np.ndarray, sample: TokenSample) -> np.ndarray:
    """Average the usage shares of a topic's groups, shape (n_topics, n_experts), from counts (n_groups, n_experts)."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return np.stack([shares[sample.topic == t].mean(0) for t in range(len(sample.topics))])


def _rows(layer: int, observed: _Association, random: list[_Association]) -> list[dict[str, object]]:
    """Format one row per measure: the observed value beside mean and 95 % range of the random routers."""
    return [
        {
            "layer": layer,
            "measure": name,
            "observed": value,
            "random_mean": drawn.mean(),
            "random_low": np.quantile(drawn, 0.025),
            "random_high": np.quantile(drawn, 0.975),
        }
        for name, value, drawn in zip(_Association._fields, observed, np.array(random).T, strict=True)
    ]


def _words_of_topics(sample: TokenSample) -> np.ndarray:
    """Average the share of every word over a topic's groups, shape (n_topics, n_words)."""
    of_group = 1.0 / sample.size / np.bincount(sample.topic)[sample.topic]
    size = len(sample.topics) * len(sample.vocabulary)
    cell = sample.topic[sample.group] * len(sample.vocabulary) + sample.token
    return np.bincount(cell, weights=of_group[sample.group], minlength=size).reshape(len(sample.topics), -1)


def _deal(words: np.ndarray, frequency: np.ndarray, load: np.ndarray, slots: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a router that deals token ids at random; return its mean usage by topic, shape (n_topics, n_experts)."""
    ends = np.cumsum(load) / load.sum()
    partition = np.zeros((len(frequency), len(load)), dtype=np.float32)
    for _ in range(slots):
        order, experts = rng.permutation(len(frequency)), rng.permutation(len(load))
        # experts in random order too, so that a frequent word which overruns an end does not always go to the same expert
        middle = (np.cumsum(frequency[order]) - frequency[order] / 2) / frequency.sum()
        bounds = np.cumsum(np.diff(ends, prepend=0.0)[experts])[:-1]
        upto = np.searchsorted(middle, bounds, side="right")
        partition[order, np.repeat(experts, np.diff(upto, prepend=0, append=len(order)))] += 1 / slots
    return np.asarray(words @ partition, dtype=np.float64)


def _association(means: np.ndarray) -> _Association:
    """Measure the association of topics and experts from mean usage, shape (n_topics, n_experts)."""
    base = means.mean(0)
    used = base >= 0.1 / len(base)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(means > 0, means * np.log2(means / base), 0.0)
    lift = means[:, used] / base[used]
    return _Association(float(terms.sum(1).mean()), float(lift.max()), float((lift >= 2).mean()))
