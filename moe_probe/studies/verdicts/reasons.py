"""The sentences that say why a topic has its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.evidence import unknown_from
from moe_probe.core.schema import Evidence
from moe_probe.core.text import listed
from moe_probe.core.units import parse_members
from moe_probe.experts.explain.rivals import RIVALS

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.studies.verdicts.conditions import TopicConditions

TOO_FEW = "Nothing can be said: too few independent documents of this topic."
NOT_REPLICABLE = f"{TOO_FEW} Half of them could not even confirm a perfect expert."
NOT_DETECTABLE = f"{TOO_FEW} Not even a typical expert that is used for it alone would have been found."
ONLY_COUNTS = "No test is possible: the record has sums by topic only, and nothing says how much documents differ."


def reason_for_untested(conditions: TopicConditions, why: str, needed: int) -> str:
    """Say why a topic could not be tested, what it would take, and how large its largest effect is.

    Parameters
    ----------
    conditions : TopicConditions
    why : str
        One of the sentences of this module.
    needed : int
        Groups of every topic that can confirm an expert, at least.

    Returns
    -------
    str
    """
    parts, n = [why], conditions.n_groups
    if n is not None and why != ONLY_COUNTS:
        parts.append(
            f"The topic has {n} independent group{'s' * (n != 1)} of documents; {needed} of every topic are the least that can "
            "confirm an expert."
        )
    if np.isfinite(conditions.detectable):
        parts.append(
            f"A typical expert would have been significant with probability 0.8 from a lift of "
            f"{2**conditions.detectable:.2f} on, of at most {conditions.n_topics}."
        )
    best = conditions.largest
    if best is not None:
        parts.append(
            f"The largest effect, untested: expert {int(best['expert'])} of layer {int(best['layer'])} is used "
            f"{2 ** best['log2_lift']:.2f} times as much as on an average topic."
        )
    return " ".join(parts)


def reason_for_expert(conditions: TopicConditions, best: pd.Series, n_passing: int) -> str:
    """Say why an expert passes.

    Parameters
    ----------
    conditions : TopicConditions
    best : pandas.Series
        The expert's row.
    n_passing : int
        Experts of the topic that pass, this one included.

    Returns
    -------
    str
    """
    more = "" if n_passing == 1 else f" {n_passing - 1} further expert{'s pass' if n_passing > 2 else ' passes'} too."
    near = ""
    if conditions.near_lift(best):
        near = (
            f"The lift is near the threshold of {2**conditions.rules.min_log2_lift:g}, and this corpus cannot say on which "
            "side it lies. "
        )
    elif conditions.near_rival(best):
        near = (
            "Near the threshold because tokens predict nearly as much: a verdict asks for "
            f"{2**conditions.rules.min_log2_beyond:.2f} times what they predict. "
        )
    return (
        f"{near}Every test passes: on held-out documents the lift is {2 ** best['log2_lift_replication']:.2f}. "
        f"{_rivals(conditions, best)}{more}"
    )


def reason_for_group(conditions: TopicConditions, group: pd.Series) -> str:
    """Say why a group passes where none of its members does.

    Parameters
    ----------
    conditions : TopicConditions
    group : pandas.Series
        The group's row of ``expert_groups``.

    Returns
    -------
    str
    """
    if group["gain"] >= conditions.rules.min_group_gain:
        better = f"with a lower end of the interval {2 ** group['gain']:.2f} times that of the best member alone"
    else:
        better = (
            f"and taking {group['share'] / group['largest_member_share']:.1f} times as much of the topic's selections as the "
            "largest of them alone"
        )
    names = ", ".join(map(str, parse_members(group["experts"])))
    return (
        f"No single expert passes, but experts {names} of layer {int(group['layer'])} together do, used "
        f"{2 ** group['log2_lift']:.2f} times as much as on an average topic, {better}. "
        f"They were chosen on half of the documents and measured on the other. {_rivals(conditions, group)}"
    )


def reason_for_none(conditions: TopicConditions, best: pd.Series, *, weak: bool) -> str:
    """List every condition that the nearest candidate fails, and say what would have been found.

    Parameters
    ----------
    conditions : TopicConditions
    best : pandas.Series
        The candidate's row.
    weak : bool
        The candidate fails by its size only.

    Returns
    -------
    str
    """
    failed = [*_failed_tests(conditions, best), *_failed_sizes(conditions, best)]
    rivals = _failed_rivals(conditions, best)
    if rivals and not failed and not weak:
        rivals[-1] += ": an expert of tokens rather than of the topic"
    opening = "Real but small: an expert passes every test but" if weak else "The nearest candidate"
    power = (
        "With so few documents most experts would not be found even if they were used for this topic alone: a typical one is "
        f"found with probability 0.8 from a lift of {2**conditions.detectable:.2f} on."
        if conditions.too_few_documents
        else f"A typical expert of lift {2**conditions.detectable:.2f} or more would have been found with probability 0.8."
    )
    first, *others = [*failed, *rivals]
    return " ".join([f"{opening} {first}.", *(f"It also {other}." for other in others), power])


def _rivals(conditions: TopicConditions, row: pd.Series) -> str:
    """Say what the rivals predict, and which could not be judged."""
    predicted = [f"{2 ** row[f'log2_beyond_{r.column}']:.2f} times as much as {r.name} predict" for r in conditions.judged]
    text = f"Usage is {listed(predicted)}." if predicted else ""
    if not conditions.unjudged:
        return f"{text} Pairs could be judged on {conditions.coverage(RIVALS[-1]):.0%} of the topic's tokens."
    if conditions.evidence is not Evidence.WORDS:
        return f"{text} {unknown_from(conditions.evidence)}".strip()
    unseen = []
    for rival in conditions.unjudged:
        coverage = conditions.coverage(rival)
        seen = f"{coverage:.0%} of the topic's tokens can be compared" if np.isfinite(coverage) else "not tested"
        unseen.append(f"{rival.name} ({seen})")
    return f"{text} Not ruled out: {listed(unseen)}.".strip()


def _failed_tests(conditions: TopicConditions, best: pd.Series) -> list[str]:
    sure = best["significant"] and best["q_value"] <= conditions.rules.alpha
    failed = [] if sure else [f"is not significant (q {best['q_value']:.2g})"]
    return failed if best["replicated"] else [*failed, "was not replicated on held-out documents"]


def _failed_sizes(conditions: TopicConditions, best: pd.Series) -> list[str]:
    rules, failed = conditions.rules, []
    if best["log2_lift"] < rules.min_log2_lift - rules.tolerance or best["ci_high"] < rules.min_log2_lift:
        failed.append(f"has a lift of {2 ** best['log2_lift']:.2f}, under {2**rules.min_log2_lift:g}")
    elif best["ci_low"] <= rules.min_lower_bound:
        failed.append(f"has a lift that may be as low as {2 ** best['ci_low']:.2f}")
    if best["share"] < rules.min_share:
        failed.append(f"takes only {best['share']:.1%} of the topic's selections")
    return failed


def _failed_rivals(conditions: TopicConditions, best: pd.Series) -> list[str]:
    failed = []
    for rival in conditions.judged:
        q, ratio = best[f"q_beyond_{rival.column}"], best[f"log2_beyond_{rival.column}"]
        if ratio < conditions.rules.min_log2_beyond or q > conditions.rules.alpha:
            chance = f" (q {q:.2g})" if np.isfinite(q) else ""
            failed.append(f"is used {2**ratio:.2f} times as much as the topic's {rival.name} predict{chance}")
    return failed
