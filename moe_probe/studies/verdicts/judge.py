"""Verdicts from usage: one row per topic, with its expert or group of experts, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.schema import Evidence
from moe_probe.core.stats import benjamini_hochberg
from moe_probe.experts.explain.rivals import RIVALS
from moe_probe.studies.verdicts.conditions import TopicConditions
from moe_probe.studies.verdicts.power import enough_groups, groups_needed
from moe_probe.studies.verdicts.reasons import (
    NOT_DETECTABLE,
    NOT_REPLICABLE,
    ONLY_COUNTS,
    TOO_FEW,
    reason_for_expert,
    reason_for_group,
    reason_for_none,
    reason_for_untested,
)
from moe_probe.studies.verdicts.rules import CLEAR, LIKELY, NEAR, NOTHING, UNTESTED, WEAK, Rules, verdict_caption

if TYPE_CHECKING:
    import pandas as pd

_NOT_TESTED = (
    "Vocabulary was not ruled out: an expert counted here may respond to a topic's words rather than to its subject."
)
_COLUMNS = (
    *("topic", "verdict", "layer", "expert", "log2_lift", "ci_low", "ci_high", "q_value", "auroc_expert", "auroc_feature"),
    *("ablation_delta_nats", "reason", "grade", "experts", "share", "log2_lift_replication"),
    *(f"{what}_beyond_{rival.column}" for rival in RIVALS for what in ("log2", "q")),
    *(f"{rival.column}_coverage" for rival in RIVALS),
    "detectable_log2_lift",
    "n_groups",
)


def topic_verdicts(
    expert_topics: Result,
    *,
    beyond: Result | Sequence[Result] = (),
    groups: Result | None = None,
    rules: Rules | None = None,
) -> Result:
    """Judge every topic by fixed rules.

    "expert": one expert is used more for the topic (q at most alpha in a layer that passes its omnibus test,
    replicated on held-out documents), takes its share of the topic's selections, is used more than the topic's words,
    previous tokens and pairs of tokens predict, and has the lift that `rules` ask for, or one that cannot be told from
    it. "group": no expert is, but some experts of one layer together are, and better than the best of them alone.
    Else "none", with the reason and the lift that a typical expert would have needed to be found.

    The grade says how sure that is: "clear" (the whole interval lies above the threshold), "near the threshold"
    (measured within the tolerance of it), "likely" (between the two), "weak" (verdict "none": an expert is really used
    more for the topic, but by less), "none" (tested, nothing of the kind), "untested" (too few documents to test).
    An answer that some rival could not be judged for is at most "likely".

    Parameters
    ----------
    expert_topics : Result
        From `moe_probe.experts.topics.expert_topics`.
    beyond : Result or sequence of Result, optional
        From `moe_probe.experts.explain.topic_beyond_vocabulary`, for one or several contexts; what is missing is not ruled out,
        and the result says so.
    groups : Result, optional
        From `moe_probe.experts.clusters.expert_groups`: candidates chosen on half of the documents, measured on the other.
    rules : Rules, optional

    Returns
    -------
    Result
        ``verdicts``: ``topic, verdict, layer, expert, log2_lift, ci_low, ci_high, q_value, auroc_expert,
        auroc_feature, ablation_delta_nats`` (the last two NaN: not measured), ``reason`` (sentences), ``grade``,
        ``experts`` (as text: several for a group), ``share, log2_lift_replication``; for every rival (``words``,
        ``previous``, ``pairs``) ``log2_beyond_RIVAL`` and ``q_beyond_RIVAL`` (over the pairs of expert and topic that are
        significant and replicated; NaN for others) and ``RIVAL_coverage`` (share of the topic's tokens
        that its test could see), ``detectable_log2_lift`` (of a typical
        expert of the topic), ``n_groups`` (its independent groups). ``params`` holds the
        level of ``evidence`` and ``groups_needed`` (of every topic, to confirm an expert). Of counts that are sums by topic
        every verdict is "none" and every grade "untested"; the reason names the largest effect.
    """
    import pandas as pd

    rules = (rules or Rules()).for_topics(int(expert_topics.table["topic"].nunique()))
    evidence = str(expert_topics.params.get("evidence", Evidence.WORDS))
    given = {r.name: r for r in ((beyond,) if isinstance(beyond, Result) else beyond)}
    table = expert_topics.table
    table = table.assign(real=_real(table, rules))
    for rival in RIVALS:
        table = _with_rival(table, given.get(rival.result), rival.column, rules)
    topics = sorted(table["topic"].unique())
    replicable = _replicable(table, rules)
    rows = []
    for topic in topics:
        conditions = TopicConditions(table[table["topic"] == topic], rules, len(topics), evidence)
        candidates = None if groups is None else groups.table[groups.table["topic"] == topic]
        rows.append(_verdict(conditions, candidates, replicable=replicable[topic]) | {"topic": topic})
    out = pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"layer": "Int64", "expert": "Int64", "n_groups": "Int64"})
    others = (*given.values(), *(() if groups is None else (groups,)))
    citations = dict.fromkeys([*expert_topics.citations, *(c for r in others for c in r.citations)])
    return Result(
        "verdicts",
        out,
        params=dict(vars(rules)) | {"evidence": evidence, "groups_needed": groups_needed(len(topics), alpha=rules.alpha)},
        seed=expert_topics.seed,
        warnings=() if "beyond_vocabulary" in given else (_NOT_TESTED,),
        caption=verdict_caption(rules, rivals_tested=bool(given)),
        citations=tuple(citations),
    )


def _real(table: pd.DataFrame, rules: Rules) -> pd.Series:
    """Mark experts used more for the topic, more than chance allows and again on other documents."""
    return table["significant"] & table["replicated"] & (table["q_value"] <= rules.alpha) & (table["log2_lift"] > 0)


def _replicable(table: pd.DataFrame, rules: Rules) -> dict[str, bool]:
    """Whether a topic's groups are enough to replicate at least a perfect expert on half of them (`enough_groups`)."""
    if "n_groups" not in table or "p_replication" not in table:  # results of an earlier version
        return dict.fromkeys(table["topic"], True)
    sizes = table.groupby("topic")["n_groups"].first()
    total = int(sizes.sum())
    tried = table["p_replication"].notna().groupby(table["topic"]).any()
    return {topic: bool(tried[topic]) and enough_groups(int(n), total, alpha=rules.alpha) for topic, n in sizes.items()}


def _with_rival(table: pd.DataFrame, result: Result | None, name: str, rules: Rules) -> pd.DataFrame:
    """Add what a rival predicts, and the false discovery rate over the pairs that are up for a verdict.

    Whether words explain an expert is asked of experts that are used more for the topic, not of thousands that are not:
    these are the family (Benjamini-Hochberg after selection by another test).
    """
    columns = {"log2_ratio": f"log2_beyond_{name}", "p_value": f"p_beyond_{name}", "coverage": f"{name}_coverage"}
    if result is None:
        return table.assign(**dict.fromkeys([*columns.values(), f"q_beyond_{name}"], np.nan))
    keys = ["layer", "expert", "topic"]
    table = table.merge(result.table[[*keys, *columns]].rename(columns=columns), on=keys, how="left", validate="1:1")
    asked = table["real"] & (table[f"{name}_coverage"] >= rules.min_coverage)
    return table.assign(**{f"q_beyond_{name}": benjamini_hochberg(table[f"p_beyond_{name}"].where(asked).to_numpy())})


def _verdict(conditions: TopicConditions, groups: pd.DataFrame | None, *, replicable: bool) -> dict[str, Any]:
    """Verdict, grade, reason and unit of one topic; `groups` are its candidates."""
    table = conditions.table
    row: dict[str, Any] = dict.fromkeys(_COLUMNS, np.nan)
    row |= {"verdict": "none", "grade": UNTESTED, "layer": None, "expert": None, "experts": ""}
    row |= {"detectable_log2_lift": conditions.detectable, "n_groups": conditions.n_groups}
    needed = groups_needed(conditions.n_topics, alpha=conditions.rules.alpha)
    if conditions.evidence is Evidence.COUNTS or table.empty:
        why = ONLY_COUNTS if conditions.evidence is Evidence.COUNTS else TOO_FEW
        return row | {"reason": reason_for_untested(conditions, why, needed)}
    real, large = table["real"], conditions.large(table)
    passes = real & conditions.beyond_rivals(table) & large
    group = None if passes.any() or groups is None else conditions.best_group(groups)
    if group is not None:
        return row | _group_cells(conditions, group)
    if not real.any() and not replicable:
        return row | {"reason": reason_for_untested(conditions, NOT_REPLICABLE, needed)}
    weak = real & conditions.beyond_rivals(table, weak=True)
    significant = table["significant"] & (table["log2_lift"] > 0)
    if not significant.any() and conditions.too_few_documents:
        return row | {"reason": reason_for_untested(conditions, NOT_DETECTABLE, needed)}
    nearest = next((mask for mask in (passes, weak, real & large, significant) if mask.any()), None)
    best = _most_bits(table if nearest is None else table[nearest])
    row |= {name: best[name] for name in _COLUMNS if name in best.index and name not in ("topic", "detectable_log2_lift")}
    row |= {"layer": int(best["layer"]), "expert": int(best["expert"]), "experts": str(int(best["expert"]))}
    row["auroc_expert"] = best["auroc"]
    if passes.any():
        reason = reason_for_expert(conditions, best, int(passes.sum()))
        return row | {"verdict": "expert", "grade": _grade(conditions, best), "reason": reason}
    is_weak = bool(weak.any())
    return row | {"grade": WEAK if is_weak else NOTHING, "reason": reason_for_none(conditions, best, weak=is_weak)}


def _group_cells(conditions: TopicConditions, group: pd.Series) -> dict[str, Any]:
    return {
        **{name: group[name] for name in _COLUMNS if name in group.index and name != "topic"},
        "verdict": "group",
        "grade": _grade(conditions, group),
        "layer": int(group["layer"]),
        "expert": None,
        "log2_lift_replication": group["log2_lift"],
        **{f"{rival.column}_coverage": conditions.coverage(rival) for rival in RIVALS},
        "reason": reason_for_group(conditions, group),
    }


def _grade(conditions: TopicConditions, best: pd.Series) -> str:
    if conditions.near_lift(best) or conditions.near_rival(best):
        return NEAR
    return CLEAR if not conditions.unjudged and best["ci_low"] >= conditions.rules.min_log2_lift else LIKELY


def _most_bits(table: pd.DataFrame) -> pd.Series:
    """Choose the expert that sets the topic's usage most apart: its share times the lower end of its log2 lift.

    That is its term in the divergence of the topic's usage from the average one (Kullback and Leibler 1951, DOI
    10.1214/aoms/1177729694). By the lower end alone experts that take hardly a fiftieth of the topic would stand for it.
    """
    ranked = table.assign(bits=table["share"] * table["ci_low"]).sort_values(
        ["bits", "layer", "expert"], ascending=[False, True, True], kind="stable"
    )
    return ranked.iloc[0]
