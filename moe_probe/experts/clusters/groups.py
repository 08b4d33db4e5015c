"""Several experts as one carrier of a topic: groups chosen for a topic, and combinations chosen by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.stats import (
    GroupUsage,
    Lift,
    benjamini_hochberg,
    group_usage,
    holm,
    log2_lift,
    permutation_test,
    strata_of_groups,
)
from moe_probe.core.units import format_members, parse_members
from moe_probe.experts.explain.rivals import RIVALS
from moe_probe.experts.explain.tokens import map_layers, sample_tokens
from moe_probe.experts.topics import align, divide, split_halves
from moe_probe.recording.corpus.splits import DISCOVERY, REPLICATION

if TYPE_CHECKING:
    from moe_probe.core.routing import Usage
    from moe_probe.experts.explain.vocabulary import ExpectedUsage
    from moe_probe.recording.trace import Trace

_LARGEST = 6  # experts in a group
_COLUMN_OF = {rival.given: rival.column for rival in RIVALS}
_CITATIONS = (
    "Holm 1979, one candidate a topic, https://www.jstor.org/stable/4615733",
    "Welch 1947, the studentised difference of means, DOI 10.1093/biomet/34.1-2.28",
    "Chen et al. 1994, conditional Bernoulli sampling, DOI 10.1093/biomet/81.3.457",
)


class _Candidate(NamedTuple):
    """Columns of one layer that together were the best carrier of a topic on the discovery half."""

    topic: int
    columns: np.ndarray


def expert_groups(
    trace: Trace | Usage,
    *,
    label: str = "topic",
    expected: Sequence[ExpectedUsage] = (),
    strata: str | None = None,
    permutations: int = 1000,
    alpha: float = 0.05,
    seed: int = 0,
) -> Result:
    """Find, for every topic, experts of one layer that carry it together better than any of them alone.

    On half of the documents experts are added to a group, those of the highest lift first, as long as the
    lower end of the interval of the group's log2 lift rises; a group that does not surpass its best member there is no
    candidate, and of several layers' groups the best is the topic's only candidate. It is measured on the other half,
    beside its best member: one-sided permutation test, Holm over the topics. So nothing that was chosen is measured on
    what it was chosen by.

    Parameters
    ----------
    trace : Trace or Usage
    label : str
    expected : sequence of ExpectedUsage, optional
        From `moe_probe.experts.explain.expected_usage`, one a context: the group is then also tested against what these predict.
    strata : str, optional
        Column within whose values labels are exchanged.
    permutations, alpha, seed

    Returns
    -------
    Result
        ``expert_groups``, one row a topic that has a candidate of two experts or more: ``layer, experts``
        (such as "3+7"), ``topic, n_experts, share, lift, log2_lift, ci_low, ci_high`` (95 %), ``p_value, p_holm, q_value``
        (Benjamini-Hochberg), ``replicated`` (p_holm at most alpha), ``best_member`` (the member of the highest lower end
        on the same half) and ``best_member_ci_low``, ``gain`` (the group's lower end less that), ``least_member_ci_low``,
        ``largest_member_share`` (of the topic's selections), and for every rival
        ``words``, ``previous``, ``pairs``: ``log2_beyond_RIVAL, q_beyond_RIVAL`` (NaN without `expected`).

    Raises
    ------
    MoeProbeError
        When a half has fewer than two groups of some topics, or documents have no labels.
    """
    import pandas as pd

    usage = trace.usage()
    groups = group_usage(usage, label=label, strata=strata)
    halves, halves_from = split_halves(usage, groups, seed=seed)
    first, other = groups.select(halves == DISCOVERY), groups.select(halves == REPLICATION)
    if min(len(first.groups), len(other.groups)) < 4:
        raise MoeProbeError(
            "there are too few documents to choose experts on half of them and measure on the rest",
            f"the halves have {len(first.groups)} and {len(other.groups)} groups",
            "a larger corpus",
        )
    candidates = _choose(first)
    columns = [
        "layer",
        "experts",
        "topic",
        "n_experts",
        "share",
        "lift",
        "log2_lift",
        "ci_low",
        "ci_high",
        "p_value",
        "p_holm",
        "q_value",
        "replicated",
        "best_member",
        "best_member_ci_low",
        "gain",
        "least_member_ci_low",
        "largest_member_share",
    ]
    columns += [f"{what}_beyond_{rival}" for rival in _COLUMN_OF.values() for what in ("log2", "q")]
    table = pd.DataFrame(_measure(other, candidates, permutations=permutations, seed=seed + 2), columns=columns)
    if candidates:
        table["p_holm"] = holm(table["p_value"].to_numpy())
        table["q_value"] = benjamini_hochberg(table["p_value"].to_numpy())
        table["replicated"] = table["p_holm"] <= alpha
        for known in expected:
            rival = _COLUMN_OF[known.given]
            within = strata_of_groups(usage.documents, known.sample.groups, column=strata)
            ratio, p = _beyond(known, other, candidates, within, permutations=permutations, seed=seed + 3)
            table[f"log2_beyond_{rival}"], table[f"q_beyond_{rival}"] = ratio, benjamini_hochberg(p)
    return Result(
        "expert_groups",
        table,
        seed=seed,
        citations=_CITATIONS,
        warnings=groups.warnings,
        params={
            "label": label,
            "strata": strata,
            "permutations": permutations,
            "alpha": alpha,
            "halves": halves_from,
            "largest": _LARGEST,
        },
        caption=f"For every {label} the experts of one layer whose summed usage had the highest lower bound of log2 lift on "
        "half of the documents, and a higher one than the best of them alone; all numbers come from the other half "
        f"(one-sided permutation test{f' within {strata}' if strata else ''}, Holm over the {label}s). Gain: lower bound of "
        "the group less that of its best member, both on that other half.",
    )


def _choose(groups: GroupUsage) -> list[_Candidate]:
    """Best group of two experts or more over the layers for every topic that has one, by the lower bound on this half."""
    pseudo = groups.half_selections()
    lifts = log2_lift(groups.shares, groups.topic, n_topics=len(groups.topics), pseudo=pseudo)
    out = []
    for topic in np.flatnonzero(groups.groups_per_topic >= 2):
        columns = _best_columns(groups, int(topic), lifts, pseudo)
        if len(columns):
            out.append(_Candidate(int(topic), columns))
    return out


def _best_columns(groups: GroupUsage, topic: int, lifts: Lift, pseudo: np.ndarray) -> np.ndarray:
    """Columns of the best group of a topic; none where no group surpasses its best member."""
    ranked = []
    for layer in range(groups.n_layers):
        members = np.flatnonzero((groups.layer_index == layer) & (lifts.log2_lift[topic] > 0))
        first = members[np.argsort(-lifts.log2_lift[topic, members], kind="stable")][:_LARGEST]
        ranked += [first] if len(first) > 1 else []
    if not ranked:
        return np.empty(0, dtype=int)
    sums = np.concatenate([np.cumsum(groups.shares[:, r], axis=1) for r in ranked], axis=1)
    lows = log2_lift(sums, groups.topic, n_topics=len(groups.topics), pseudo=pseudo[:, np.concatenate(ranked)]).ci_low[topic]
    best: tuple[float, np.ndarray] = (0.0, np.empty(0, dtype=int))
    for members, low in zip(ranked, np.split(lows, np.cumsum([len(r) for r in ranked])[:-1]), strict=True):
        size = int(np.nan_to_num(low[1:], nan=-np.inf).argmax()) + 2
        if low[size - 1] > max(best[0], float(np.nanmax(lifts.ci_low[topic, members[:size]]))):
            best = (float(low[size - 1]), members[:size])
    return np.sort(best[1])


def _summed(values: np.ndarray, candidates: list[_Candidate]) -> np.ndarray:
    return np.stack([values[:, c.columns].sum(1) for c in candidates], axis=1)


def _measure(groups: GroupUsage, candidates: list[_Candidate], *, permutations: int, seed: int) -> list[dict[str, Any]]:
    if not candidates:
        return []
    n_topics = len(groups.topics)
    sums = _summed(groups.shares, candidates)
    every = groups.half_selections()
    effect = log2_lift(
        sums, groups.topic, n_topics=n_topics, pseudo=np.stack([every[:, c.columns[0]] for c in candidates], axis=1)
    )
    alone = log2_lift(groups.shares, groups.topic, n_topics=n_topics, pseudo=every)
    p = _one_sided(sums, groups.topic, n_topics, strata=groups.strata, permutations=permutations, seed=seed)
    rows = []
    for i, c in enumerate(candidates):
        lows = np.nan_to_num(alone.ci_low[c.topic, c.columns], nan=-np.inf)
        rows.append(
            {
                "layer": int(groups.layer[c.columns[0]]),
                "experts": format_members(groups.expert[c.columns]),
                "topic": groups.topics[c.topic],
                "n_experts": len(c.columns),
                "share": effect.share[c.topic, i],
                "lift": effect.lift[c.topic, i],
                "log2_lift": effect.log2_lift[c.topic, i],
                "ci_low": effect.ci_low[c.topic, i],
                "ci_high": effect.ci_high[c.topic, i],
                "p_value": p[c.topic, i],
                "best_member": int(groups.expert[c.columns[lows.argmax()]]),
                "best_member_ci_low": float(lows.max()),
                "gain": float(effect.ci_low[c.topic, i] - lows.max()),
                "least_member_ci_low": float(lows.min()),
                "largest_member_share": float(alone.share[c.topic, c.columns].max()),
            }
        )
    return rows


def _one_sided(
    values: np.ndarray, topic: np.ndarray, n_topics: int, *, strata: np.ndarray | None, permutations: int, seed: int
) -> np.ndarray:
    """p of usage above the rest's, shape (n_topics, n_columns)."""
    test = permutation_test(
        values,
        topic,
        n_topics=n_topics,
        permutations=permutations,
        seed=seed,
        strata=strata,
        sign=np.ones((n_topics, values.shape[1])),
    )
    return test.p_value


def _beyond(
    expected: ExpectedUsage,
    groups: GroupUsage,
    candidates: list[_Candidate],
    strata: np.ndarray | None,
    *,
    permutations: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """log2 of observed over expected usage of every candidate, and its p, on the groups given."""
    wanted = set(groups.groups)
    rows = np.array([i for i, g in enumerate(expected.sample.groups) if g in wanted and expected.coverage[i] > 0], dtype=int)
    topic, n_topics = expected.sample.topic[rows], len(expected.sample.topics)
    observed, predicted = (_summed(x[rows], candidates) for x in (expected.observed, expected.expected))
    try:
        p = _one_sided(
            observed - predicted,
            topic,
            n_topics,
            strata=None if strata is None else strata[rows],
            permutations=permutations,
            seed=seed,
        )
    except MoeProbeError:  # too few of these groups have a known context: nothing can be ruled out
        return np.full(len(candidates), np.nan), np.full(len(candidates), np.nan)
    number = {t: i for i, t in enumerate(expected.sample.topics)}
    ratios, chosen = [], []
    for i, c in enumerate(candidates):
        t = number.get(groups.topics[c.topic], -1)
        rows_of_topic = topic == t
        if not rows_of_topic.any():
            ratios.append(np.nan)
            chosen.append(np.nan)
            continue
        above, below = observed[rows_of_topic, i].mean(), predicted[rows_of_topic, i].mean()
        ratios.append(float(np.log2(max(above, 1e-9) / below)) if below > 0 else np.nan)
        chosen.append(p[t, i])
    return np.array(ratios), np.array(chosen)


def combinations(
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
    label : str
    top : int
        Commonest combinations of every layer.
    strata : str, optional
        Column within whose values labels are exchanged.
    permutations, alpha, max_tokens, seed

    Returns
    -------
    Result
        ``combinations``: ``layer, experts`` ("3+7"), ``tokens, token_share, expected_share`` (were experts
        drawn independently at their own odds, given how many are drawn: conditional Bernoulli sampling),
        ``times_expected``; ``topic`` of the highest lower bound, with ``lift, log2_lift, ci_low, ci_high, q_value,
        replicated, significant``.

    Raises
    ------
    MoeProbeError
        As `expert_topics`, and when every token goes to one expert.
    """
    import pandas as pd

    if max(layer.top_k for layer in trace.layers) < 2:
        raise MoeProbeError("each token goes to one expert", "there are no combinations", "a model of top-k 2 or more")
    sample = sample_tokens(trace, label=label, folds=1, max_tokens=max_tokens, seed=seed)
    parts, shares = [], []
    totals = np.bincount(sample.group)
    found_in = map_layers(trace, sample, lambda item: (item, *_combinations_of(item, sample.group, len(sample.groups), top)))
    for item, names, tokens, counts in found_in:
        parts.append(
            pd.DataFrame(
                {
                    "layer": item.layer,
                    "experts": names,
                    "tokens": tokens,
                    "token_share": tokens / len(sample.row),
                    "expected_share": _expected(item, names),
                }
            )
        )
        shares.append(counts / totals[:, None])
    table = pd.concat(parts, ignore_index=True)
    table["times_expected"] = table["token_share"] / table["expected_share"]
    sizes = [s.shape[1] for s in shares]
    groups = GroupUsage(
        shares=np.concatenate(shares, axis=1),
        layer=table["layer"].to_numpy(),
        expert=np.arange(len(table)),
        layer_index=np.repeat(np.arange(len(sizes)), sizes),
        selections=np.repeat(totals[:, None], len(sizes), axis=1),
        topic=sample.topic,
        topics=sample.topics,
        groups=sample.groups,
        strata=strata_of_groups(trace.documents, sample.groups, column=strata),
    )
    divisions, _ = divide(trace.usage(), groups, seed=seed)
    found = align(groups, divisions, permutations=permutations, seed=seed, alpha=alpha)
    best = found.table.sort_values(["expert", "ci_low"], ascending=[True, False], kind="stable").drop_duplicates("expert")
    columns = ["topic", "lift", "log2_lift", "ci_low", "ci_high", "q_value", "replicated", "significant"]
    table = pd.concat([table, best[columns].reset_index(drop=True)], axis=1)
    return Result(
        "combinations",
        table,
        seed=seed,
        warnings=(*sample.warnings, *found.warnings),
        citations=_CITATIONS,
        params={"label": label, "top": top, "strata": strata, "permutations": permutations, "alpha": alpha},
        caption=f"The {top} commonest sets of experts of every layer, tested as experts are. Expected: were experts drawn "
        f"independently, as many as a token chooses. Shown is the {label} of the highest lower bound.",
    )


def _combinations_of(item: Any, group: np.ndarray, n_groups: int, top: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names and token counts of the commonest combinations, and their counts by group (n_groups, n)."""
    from scipy.sparse import csr_array

    chosen = csr_array(
        (np.ones(len(item.token), dtype=np.int32), (item.token, item.expert)), shape=(len(item.slots), item.num_experts)
    )
    chosen.sum_duplicates()
    # a random weight per expert, summed: equal sums are equal sets, but for a chance of about n^2 / 2^52
    key = chosen @ np.random.default_rng(0).integers(1, 2**44, item.num_experts)
    _, first, code, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    common = np.argsort(-count, kind="stable")[:top]
    names = [format_members(np.sort(chosen.indices[chosen.indptr[i] : chosen.indptr[i + 1]])) for i in first[common]]
    place = np.full(len(count), -1)
    place[common] = np.arange(len(common))
    use = place[code] >= 0
    cell = group[use] * len(common) + place[code[use]]
    return names, count[common], np.bincount(cell, minlength=n_groups * len(common)).reshape(n_groups, len(common))


def _expected(item: Any, names: list[str]) -> np.ndarray:
    """Chance of each set under conditional Bernoulli sampling with the experts' own odds."""
    rate = np.bincount(item.expert, minlength=item.num_experts) / len(item.slots)
    odds = np.clip(rate, 1e-9, 1 - 1e-9)
    odds = odds / (1 - odds)
    size = int(item.slots.max())
    symmetric = np.zeros(size + 1)  # elementary symmetric polynomials of the odds
    symmetric[0] = 1.0
    for value in odds:
        symmetric[1:] += value * symmetric[:-1]
    sets = [list(parse_members(name)) for name in names]
    return np.array([np.prod(odds[s]) / symmetric[len(s)] for s in sets])
