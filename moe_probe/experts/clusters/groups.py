"""Groups of experts that predict a topic together better than any of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from moe_probe.core.stats.shares import Shares
from moe_probe.core.units import format_members
from moe_probe.experts.explain.rivals import RIVALS
from moe_probe.experts.topic_groups import split_halves
from moe_probe.recording.corpus.splits import DISCOVERY, REPLICATION

if TYPE_CHECKING:
    from moe_probe.core.routing import Usage
    from moe_probe.experts.explain.vocabulary import ExpectedUsage
    from moe_probe.recording.trace import Trace

_LARGEST = 6  # experts in a group, at most
_COLUMN_OF = {rival.given: rival.column for rival in RIVALS}
CITATIONS = (
    "Holm 1979, one candidate a topic, https://www.jstor.org/stable/4615733",
    "Welch 1947, the studentised difference of means, DOI 10.1093/biomet/34.1-2.28",
    "Chen et al. 1994, conditional Bernoulli sampling, DOI 10.1093/biomet/81.3.457",
)
_COLUMNS = [
    *("layer", "experts", "topic", "n_experts", "share", "lift", "log2_lift", "ci_low", "ci_high"),
    *("p_value", "p_holm", "q_value", "replicated", "best_member", "best_member_ci_low", "gain"),
    *("least_member_ci_low", "largest_member_share"),
    *(f"{what}_beyond_{rival}" for rival in _COLUMN_OF.values() for what in ("log2", "q")),
]


class _Candidate(NamedTuple):
    """The group of experts of one layer that is the best predictor of a topic on the discovery half.

    Attributes
    ----------
    topic : int
        Index of the topic.
    columns : ndarray of int, shape (n_members,)
        Columns of `GroupUsage`, in ascending order.
    """

    topic: int
    columns: np.ndarray


def expert_groups(  # noqa: PLR0913 (public analysis: keyword options with defaults)
    trace: Trace | Usage,
    *,
    label: str = "topic",
    expected: Sequence[ExpectedUsage] = (),
    strata: str | None = None,
    permutations: int = 1000,
    alpha: float = 0.05,
    seed: int = 0,
) -> Result:
    """Find, for every topic, experts of one layer that predict it together better than any of them alone.

    On half of the documents, experts are added to a group, those of the highest lift first, as long as the
    lower end of the interval of the group's log2 lift rises. A group that does not surpass its best member there is no
    candidate, and the best of several layers' groups is the topic's only candidate. It is measured on the other half,
    beside its best member: one-sided permutation test, Holm over the topics. So no group is measured on the documents
    that it was chosen on.

    Parameters
    ----------
    trace : Trace or Usage
    label : str
        Label column of the topics.
    expected : sequence of ExpectedUsage, optional
        Values of `moe_probe.experts.explain.expected_usage`, one per context: groups are also tested against these.
    strata : str, optional
        Label column within whose values topics are permuted.
    permutations : int
        Number of permutations of topics over groups of documents.
    alpha : float
        Family-wise error rate of ``replicated``.
    seed : int
        Seed of the halves and of the permutations.

    Returns
    -------
    Result
        ``expert_groups``, one row per topic that has a candidate of two experts or more: ``layer, experts``
        (such as "3+7"), ``topic, n_experts, share, lift, log2_lift, ci_low, ci_high`` (95 %), ``p_value, p_holm, q_value``
        (Benjamini-Hochberg), ``replicated`` (p_holm at most alpha), ``best_member`` (the member of the highest lower end
        on the same half) and ``best_member_ci_low``, ``gain`` (the group's lower end less that), ``least_member_ci_low``,
        ``largest_member_share`` (of the topic's selections), and for every rival ``words``, ``previous``, ``pairs``:
        ``log2_beyond_RIVAL`` (log2 of observed over expected usage) and ``q_beyond_RIVAL`` (of usage above the expected,
        Benjamini-Hochberg over the topics), NaN without `expected`.

    Raises
    ------
    MoeProbeError
        When a half has fewer than four groups of documents, or documents have no labels.
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
    confirmation = _Confirmation(other, _choose(first), permutations)
    table = pd.DataFrame(confirmation.rows(seed=seed + 2), columns=_COLUMNS)
    if len(table):
        table["p_holm"] = holm(table["p_value"].to_numpy())
        table["q_value"] = benjamini_hochberg(table["p_value"].to_numpy())
        table["replicated"] = table["p_holm"] <= alpha
        for usage_expected in expected:
            within = strata_of_groups(usage.documents, usage_expected.sample.groups, column=strata)
            ratio, p = confirmation.excess(usage_expected, within, seed=seed + 3)
            rival = _COLUMN_OF[usage_expected.given]
            table[f"log2_beyond_{rival}"], table[f"q_beyond_{rival}"] = ratio, benjamini_hochberg(p)
    within_strata = f" within {strata}" if strata else ""
    return Result(
        "expert_groups",
        table,
        seed=seed,
        citations=CITATIONS,
        warnings=groups.warnings,
        params={
            "label": label,
            "strata": strata,
            "permutations": permutations,
            "alpha": alpha,
            "halves": halves_from,
            "largest": _LARGEST,
        },
        caption=f"For every {label}, the experts of one layer that are its best predictor together: their summed usage has the "
        "highest lower bound of log2 lift on half of the documents, above that of the best of them alone. Gain: lower bound of "
        "the group less that of its best member. All numbers come from the other half: one-sided permutation "
        f"test{within_strata}, Holm over the {label}s (p_holm). q_beyond: the same test of usage above the rival's prediction, "
        f"Benjamini-Hochberg over the {label}s.",
    )


def _choose(groups: GroupUsage) -> list[_Candidate]:
    """Choose the best group of two experts or more over the layers for every topic that has one, by the lower bound."""
    pseudo = groups.half_selections()
    lifts = log2_lift(groups.shares, groups.topic, n_topics=len(groups.topics), pseudo=pseudo)
    out = []
    for topic in np.flatnonzero(groups.groups_per_topic >= 2):
        columns = _best_columns(groups, int(topic), lifts, pseudo)
        if len(columns):
            out.append(_Candidate(int(topic), columns))
    return out


def _best_columns(groups: GroupUsage, topic: int, lifts: Lift, pseudo: np.ndarray) -> np.ndarray:
    """Find the columns of the best group of a topic; none where no group surpasses its best member."""
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


@dataclass(frozen=True)
class _Confirmation:
    """Candidates, measured on the half of the documents that did not choose them.

    Attributes
    ----------
    groups : GroupUsage
        The groups of that half.
    candidates : list of _Candidate
    permutations : int
    """

    groups: GroupUsage
    candidates: list[_Candidate]
    permutations: int

    def rows(self, *, seed: int) -> list[dict[str, Any]]:
        """Measure every candidate beside its members; one row per candidate."""
        if not self.candidates:
            return []
        groups, n_topics = self.groups, len(self.groups.topics)
        sums, pseudo = self._summed(groups.shares), groups.half_selections()
        first = [c.columns[0] for c in self.candidates]
        effect = log2_lift(sums, groups.topic, n_topics=n_topics, pseudo=pseudo[:, first])
        alone = log2_lift(groups.shares, groups.topic, n_topics=n_topics, pseudo=pseudo)
        p = self._p_above(sums, groups.topic, n_topics, groups.strata, seed)
        rows = []
        for i, (topic, columns) in enumerate(self.candidates):
            lows = np.nan_to_num(alone.ci_low[topic, columns], nan=-np.inf)
            rows.append(
                {
                    "layer": int(groups.layer[columns[0]]),
                    "experts": format_members(groups.expert[columns]),
                    "topic": groups.topics[topic],
                    "n_experts": len(columns),
                    "share": effect.share[topic, i],
                    "lift": effect.lift[topic, i],
                    "log2_lift": effect.log2_lift[topic, i],
                    "ci_low": effect.ci_low[topic, i],
                    "ci_high": effect.ci_high[topic, i],
                    "p_value": p[topic, i],
                    "best_member": int(groups.expert[columns[lows.argmax()]]),
                    "best_member_ci_low": float(lows.max()),
                    "gain": float(effect.ci_low[topic, i] - lows.max()),
                    "least_member_ci_low": float(lows.min()),
                    "largest_member_share": float(alone.share[topic, columns].max()),
                }
            )
        return rows

    def excess(self, expected: ExpectedUsage, strata: np.ndarray | None, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Compare the candidates' usage with the usage that a rival of the topic predicts.

        Parameters
        ----------
        expected : ExpectedUsage
        strata : ndarray of int, shape (n_groups of `expected`,), optional
        seed : int

        Returns
        -------
        log2_ratio, p_value : ndarray of float, shape (n_candidates,)
            Of observed over expected usage; NaN where no group of the topic has a known context.
        """
        sample, unknown = expected.sample, np.full(len(self.candidates), np.nan)
        rows = np.flatnonzero(np.isin(sample.groups, self.groups.groups) & (expected.coverage > 0))
        topic, within = sample.topic[rows], None if strata is None else strata[rows]
        observed, predicted = (self._summed(x[rows]) for x in (expected.observed, expected.expected))
        try:
            p = self._p_above(observed - predicted, topic, len(sample.topics), within, seed)
        except MoeProbeError:  # too few of these groups have a known context: nothing can be ruled out
            return unknown, unknown.copy()
        ratio, p_value = unknown, unknown.copy()
        for i, candidate in enumerate(self.candidates):
            of_topic = topic == _index_of(sample.topics, self.groups.topics[candidate.topic])
            if of_topic.any():
                above, below = observed[of_topic, i].mean(), predicted[of_topic, i].mean()
                ratio[i] = float(np.log2(max(above, 1e-9) / below)) if below > 0 else np.nan
                p_value[i] = p[topic[of_topic][0], i]
        return ratio, p_value

    def _summed(self, values: Shares) -> np.ndarray:
        """Sum columns (n_groups, n_columns) over the members of every candidate, shape (n_groups, n_candidates)."""
        return np.stack([values[:, c.columns].sum(1) for c in self.candidates], axis=1)

    def _p_above(
        self, values: np.ndarray, topic: np.ndarray, n_topics: int, strata: np.ndarray | None, seed: int
    ) -> np.ndarray:
        """Test values above those of the other topics, one-sided; p of shape (n_topics, n_candidates)."""
        test = permutation_test(
            values,
            topic,
            n_topics=n_topics,
            permutations=self.permutations,
            seed=seed,
            strata=strata,
            sign=np.ones((n_topics, values.shape[1])),
        )
        return test.p_value


def _index_of(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else -1
