"""Combinations: the sets of experts that tokens choose together, tested against topics as single experts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.stats import GroupUsage, strata_of_groups
from moe_probe.core.units import format_members
from moe_probe.experts.clusters.groups import CITATIONS
from moe_probe.experts.explain.selections import LayerSelections, map_layers
from moe_probe.experts.explain.tokens import TokenSample, sample_tokens
from moe_probe.experts.topic_groups import draw_halves
from moe_probe.experts.topic_tests import topic_effects

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace


class _LayerSets(NamedTuple):
    """Commonest combinations of one layer.

    Attributes
    ----------
    layer : int
    members : list of tuple of int
        Experts of every combination, in ascending order.
    tokens : ndarray of int, shape (n_sets,)
    counts : ndarray of int, shape (n_groups, n_sets)
        Tokens of every group of documents.
    expected : ndarray of float, shape (n_sets,)
        Share of tokens expected of independent experts.
    """

    layer: int
    members: list[tuple[int, ...]]
    tokens: np.ndarray
    counts: np.ndarray
    expected: np.ndarray


def combinations(  # noqa: PLR0913 (public analysis: keyword options with defaults)
    trace: Trace,
    *,
    label: str = "topic",
    top: int = 40,
    permutations: int = 1000,
    alpha: float = 0.05,
    strata: str | None = None,
    max_tokens: int | None = 300_000,
    seed: int = 0,
) -> Result:
    """Take the sets of experts that tokens choose together as units, and test them as experts are tested.

    Parameters
    ----------
    trace : Trace
        With routing, of top-k 2 or more.
    label : str
        Label column of the topics.
    top : int
        Number of combinations per layer: the commonest.
    permutations : int
        Number of permutations of topics over groups.
    alpha : float
        Error rate of ``significant`` and ``replicated``.
    strata : str, optional
        Label column within whose values topics are permuted.
    max_tokens : int, optional
        Number of tokens to measure on, about (whole documents).
    seed : int
        Seed of sample, halves and permutations.

    Returns
    -------
    Result
        ``combinations``: ``layer, experts`` ("3+7"), ``tokens, token_share, expected_share`` (expected if experts
        were drawn independently at their own odds, given how many are drawn: conditional Bernoulli sampling, Chen et
        al. 1994, DOI 10.1093/biomet/81.3.457), ``times_expected``; ``topic`` of the highest lower bound, with ``lift,
        log2_lift, ci_low, ci_high, q_value, replicated, significant``.

    Raises
    ------
    MoeProbeError
        As `expert_topics`, and when every token goes to one expert.
    """
    import pandas as pd

    if max(layer.top_k for layer in trace.layers) < 2:
        raise MoeProbeError("each token goes to one expert", "there are no combinations", "a model of top-k 2 or more")
    sample = sample_tokens(trace, label=label, folds=1, max_tokens=max_tokens, seed=seed)
    layers = list(map_layers(trace, sample, lambda item: _layer_sets(item, sample, top)))
    groups = _set_usage(layers, sample, strata_of_groups(trace.documents, sample.groups, column=strata))
    divisions, _ = draw_halves(trace.usage(), groups, seed=seed)
    effects = topic_effects(groups, divisions, permutations=permutations, seed=seed, alpha=alpha)
    best = effects.table.sort_values(["expert", "ci_low"], ascending=[True, False], kind="stable").drop_duplicates("expert")
    columns = ["topic", "lift", "log2_lift", "ci_low", "ci_high", "q_value", "replicated", "significant"]
    tokens, expected = (np.concatenate(x) for x in zip(*((item.tokens, item.expected) for item in layers), strict=True))
    share = tokens / len(sample.row)
    table = pd.DataFrame(
        {
            "layer": groups.layer,
            "experts": [format_members(members) for item in layers for members in item.members],
            "tokens": tokens,
            "token_share": share,
            "expected_share": expected,
            "times_expected": share / expected,
        }
    )
    return Result(
        "combinations",
        pd.concat([table, best[columns].reset_index(drop=True)], axis=1),
        seed=seed,
        warnings=(*sample.warnings, *effects.warnings),
        citations=CITATIONS,
        params={"label": label, "top": top, "strata": strata, "permutations": permutations, "alpha": alpha},
        caption=f"The {top} commonest sets of experts that tokens choose together in every layer, each with the {label} of its "
        "highest lower bound. Times expected: their tokens over the number expected if experts were drawn independently, "
        "as many as a token chooses. Sets are tested as experts are.",
    )


def _set_usage(layers: Sequence[_LayerSets], sample: TokenSample, strata: np.ndarray | None) -> GroupUsage:
    """Express the tokens of combinations as shares of a group's tokens; a column is one combination."""
    totals = sample.size
    sizes = [len(item.members) for item in layers]
    return GroupUsage(
        shares=np.concatenate([item.counts / totals[:, None] for item in layers], axis=1),
        layer=np.repeat([item.layer for item in layers], sizes),
        expert=np.arange(sum(sizes)),
        layer_index=np.repeat(np.arange(len(sizes)), sizes),
        selections=np.repeat(totals[:, None], len(sizes), axis=1),
        topic=sample.topic,
        topics=sample.topics,
        groups=sample.groups,
        strata=strata,
    )


def _layer_sets(item: LayerSelections, sample: TokenSample, top: int) -> _LayerSets:
    """Count the commonest combinations of one layer."""
    from scipy.sparse import csr_array

    chosen = csr_array(
        (np.ones(len(item.token), dtype=np.int32), (item.token, item.expert)), shape=(len(item.slots), item.num_experts)
    )
    chosen.sum_duplicates()
    # a random weight per expert, summed: equal sums are equal sets, but for a chance of about n^2 / 2^52
    key = chosen @ np.random.default_rng(0).integers(1, 2**44, item.num_experts)
    _, first, code, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    common = np.argsort(-count, kind="stable")[:top]
    members = [tuple(np.sort(chosen.indices[chosen.indptr[i] : chosen.indptr[i + 1]]).tolist()) for i in first[common]]
    number = np.full(len(count), -1)
    number[common] = np.arange(len(common))
    use = number[code] >= 0
    n_groups, cell = len(sample.groups), sample.group[use].astype(np.int64) * len(common) + number[code[use]]
    counts = np.bincount(cell, minlength=n_groups * len(common)).reshape(n_groups, len(common))
    return _LayerSets(item.layer, members, count[common], counts, _expected_shares(item, members))


def _expected_shares(item: LayerSelections, sets: Sequence[Sequence[int]]) -> np.ndarray:
    """Compute each set's probability under conditional Bernoulli sampling with the experts' own odds, shape (n_sets,)."""
    rate = np.bincount(item.expert, minlength=item.num_experts) / len(item.slots)
    odds = np.clip(rate, 1e-9, 1 - 1e-9)
    odds = odds / (1 - odds)
    size = int(item.slots.max())
    symmetric = np.zeros(size + 1)  # elementary symmetric polynomials of the odds
    symmetric[0] = 1.0
    for value in odds:
        symmetric[1:] += value * symmetric[:-1]
    return np.array([np.prod(odds[list(members)]) / symmetric[len(members)] for members in sets])
