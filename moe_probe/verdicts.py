"""One row per topic: does it have an expert, or a group of experts, of its own, and what speaks against it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.results import Result

if TYPE_CHECKING:
    import pandas as pd

_NOT_TESTED = ("Vocabulary was not ruled out: an expert counted here may answer to a topic's words rather than to its "
               "subject.")
_COLUMNS = ("topic", "verdict", "layer", "expert", "log2_lift", "ci_low", "ci_high", "q_value", "auroc_expert",
            "auroc_feature", "ablation_delta_nats", "reason", "experts", "share", "log2_lift_replication",
            "log2_beyond_words", "q_beyond_words", "detectable_log2_lift")


@dataclass(frozen=True)
class Rules:
    """What it takes to be called a topic's expert. All must hold.

    Attributes
    ----------
    alpha : float
        Largest q of the lift, and of usage beyond what words predict.
    min_log2_lift, min_lower_bound : float
        Smallest log2 lift and lower end of its 95 % interval.
    min_share : float
        Smallest share of the topic's selections.
    min_log2_beyond : float
        Smallest log2 ratio of the usage to what the topic's words predict.
    """

    alpha: float = 0.05
    min_log2_lift: float = 1.0
    min_lower_bound: float = 0.5
    min_share: float = 0.02
    min_log2_beyond: float = 0.25


def topic_verdicts(
    expert_topics: Result, *, beyond: Result | None = None, groups: Result | None = None, rules: Rules | None = None
) -> Result:
    """Judge every topic by fixed rules.

    "expert": one expert has the lift that `rules` ask for, q at most alpha in a layer that passes its
    omnibus test, was found again on held-out documents, takes its share of the topic's selections, and
    is used more than the topic's words predict. "group": no expert is, but some experts of one layer are
    together. Else "none", with the reason and the lift that a typical expert would have needed to be found.

    Parameters
    ----------
    expert_topics : Result
        From `moe_probe.alignment.expert_topics`.
    beyond : Result, optional
        From `moe_probe.explain.topic_beyond_vocabulary`; without it vocabulary is not ruled out, and the
        result says so.
    groups : Result, optional
        From `moe_probe.clusters.expert_groups`: candidates chosen on half of the documents, measured on the other.
    rules : Rules, optional

    Returns
    -------
    Result
        ``verdicts``: ``topic, verdict, layer, expert, log2_lift, ci_low, ci_high, q_value, auroc_expert,
        auroc_feature, ablation_delta_nats`` (the last two NaN: not measured), ``reason`` (a sentence),
        ``experts`` (as text: several for a group), ``share, log2_lift_replication, log2_beyond_words,
        q_beyond_words, detectable_log2_lift``.
    """
    import pandas as pd

    rules = rules or Rules()
    table = expert_topics.table
    if beyond is not None:
        words = beyond.table[["layer", "expert", "topic", "log2_ratio", "q_value"]]
        table = table.merge(words.rename(columns={"log2_ratio": "log2_beyond_words", "q_value": "q_beyond_words"}),
                            on=["layer", "expert", "topic"], how="left", validate="1:1")
    else:
        table = table.assign(log2_beyond_words=np.nan, q_beyond_words=np.nan)
    group_table = None if groups is None else groups.table
    rows = [_judge(topic, table[table["topic"] == topic], group_table, rules, tested=beyond is not None)
            for topic in sorted(table["topic"].unique())]
    out = pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"layer": "Int64", "expert": "Int64"})
    citations = dict.fromkeys([*expert_topics.citations, *(beyond.citations if beyond else ()),
                               *(groups.citations if groups else ())])
    return Result("verdicts", out, params=dict(vars(rules)), seed=expert_topics.seed,
                  warnings=() if beyond is not None else (_NOT_TESTED,), caption=_caption(rules, beyond is not None),
                  citations=tuple(citations))


def _caption(rules: Rules, tested: bool) -> str:
    words = (f", and used {2**rules.min_log2_beyond:.2f} times as much as the topic's words predict, q at most "
             f"{rules.alpha:g}" if tested else "")
    return (f"\"expert\" needs all of: lift at least {2**rules.min_log2_lift:g} with the lower end of its 95 % interval "
            f"above {2**rules.min_lower_bound:.2f}, q at most {rules.alpha:g} in a layer whose omnibus test passes, "
            f"confirmed on held-out documents, at least {rules.min_share:.0%} of the topic's selections{words}. \"group\": "
            "the same for some experts of one layer together, chosen on half of the documents and measured on the other. "
            "Shown is the expert that passes with the highest lower bound, or else the nearest candidate.")


def _judge(topic: str, table: pd.DataFrame, groups: pd.DataFrame | None, rules: Rules, *, tested: bool) -> dict[str, Any]:
    known = table[table["ci_low"].notna() & table["q_value"].notna()]
    typical = float(known["detectable_log2_lift"].median()) if len(known) else np.nan
    row: dict[str, Any] = dict.fromkeys(_COLUMNS, np.nan) | {
        "topic": topic, "verdict": "none", "layer": None, "expert": None, "experts": "", "detectable_log2_lift": typical}
    if known.empty:
        return row | {"reason": "Nothing can be said: too few independent documents of this topic."}
    aligned = _aligned(known, rules)
    passes = aligned & _beyond_words(known, rules) if tested else aligned
    found = passes.any()
    group = None if found or groups is None else _best_group(groups[groups["topic"] == topic], rules)
    if group is not None:
        return row | _of_group(group)
    if found:
        candidates = known[passes]
    elif aligned.any():
        candidates = known[aligned]
    else:
        candidates = known[known["significant"] & (known["log2_lift"] > 0)]
    best = (candidates if len(candidates) else known).sort_values(
        ["ci_low", "layer", "expert"], ascending=[False, True, True], kind="stable").iloc[0]
    row |= {name: best[name] for name in ("log2_lift", "ci_low", "ci_high", "q_value", "share", "log2_lift_replication",
                                          "log2_beyond_words", "q_beyond_words")}
    row |= {"layer": int(best["layer"]), "expert": int(best["expert"]), "experts": str(int(best["expert"])),
            "auroc_expert": best["auroc"]}
    if found:
        return row | {"verdict": "expert", "reason": _why(best, int(passes.sum()), tested)}
    return row | {"reason": _why_not(best, rules, typical, tested)}


def _aligned(table: pd.DataFrame, rules: Rules) -> pd.Series:
    """All conditions but the one on words."""
    return (table["significant"] & table["replicated"] & (table["q_value"] <= rules.alpha)
            & (table["log2_lift"] >= rules.min_log2_lift) & (table["ci_low"] > rules.min_lower_bound)
            & (table["share"] >= rules.min_share))


def _beyond_words(table: pd.DataFrame, rules: Rules) -> pd.Series:
    return (table["q_beyond_words"] <= rules.alpha) & (table["log2_beyond_words"] >= rules.min_log2_beyond)


def _best_group(groups: pd.DataFrame, rules: Rules) -> pd.Series | None:
    passing = groups[groups["replicated"] & (groups["log2_lift"] >= rules.min_log2_lift)
                     & (groups["ci_low"] > rules.min_lower_bound) & (groups["share"] >= rules.min_share)]
    if "log2_beyond_words" in passing:
        passing = passing[_beyond_words(passing, rules)]
    if passing.empty:
        return None
    return passing.sort_values(["n_experts", "ci_low", "layer"], ascending=[True, False, True], kind="stable").iloc[0]


def _of_group(group: pd.Series) -> dict[str, Any]:
    names = str(group["experts"]).replace("+", ", ")
    words = group.get("log2_beyond_words", np.nan)
    beyond = (f" and {2**words:.2f} times as much as the topic's words predict" if words == words else
              "; not ruled out: that they answer to the topic's words")
    return {
        "verdict": "group", "layer": int(group["layer"]), "experts": group["experts"], "share": group["share"],
        "log2_lift": group["log2_lift"], "ci_low": group["ci_low"], "ci_high": group["ci_high"],
        "q_value": group["p_holm"], "log2_lift_replication": group["log2_lift"], "log2_beyond_words": words,
        "q_beyond_words": group.get("q_beyond_words", np.nan),
        "reason": f"No single expert passes, but experts {names} of layer {int(group['layer'])} do together, chosen on "
        f"half of the documents and measured on the other: used {2 ** group['log2_lift']:.2f} times as much{beyond}."}


def _why(best: pd.Series, n_passing: int, tested: bool) -> str:
    more = "" if n_passing == 1 else f" {n_passing - 1} further expert{'s pass' if n_passing > 2 else ' passes'} too."
    words = (f"it is used {2 ** best['log2_beyond_words']:.2f} times as much as the topic's words predict" if tested else
             "not yet ruled out: that it answers to the topic's words")
    return (f"All conditions hold: on the held-out half alone the lift is {2 ** best['log2_lift_replication']:.2f}, and "
            f"{words}.{more}")


def _why_not(best: pd.Series, rules: Rules, typical: float, tested: bool) -> str:
    """Every condition that the nearest candidate fails, and what would have been found."""
    failed = []
    if not best["significant"]:
        failed.append(f"is not significant (q {best['q_value']:.2g})")
    if best["log2_lift"] < rules.min_log2_lift:
        failed.append(f"has a lift of {2 ** best['log2_lift']:.2f}, under {2 ** rules.min_log2_lift:g}")
    elif best["ci_low"] <= rules.min_lower_bound:
        failed.append(f"has a lift that may be as low as {2 ** best['ci_low']:.2f}")
    if not best["replicated"]:
        failed.append("was not confirmed on held-out documents")
    if best["share"] < rules.min_share:
        failed.append(f"takes only {best['share']:.1%} of the topic's selections")
    if tested and not (best["q_beyond_words"] <= rules.alpha and best["log2_beyond_words"] >= rules.min_log2_beyond):
        conclusion = "" if failed else ": a token expert rather than a topic expert"
        failed.append(f"is used {2 ** best['log2_beyond_words']:.2f} times as much as the topic's words alone predict "
                      f"(q {best['q_beyond_words']:.2g}){conclusion}")
    return (f"The nearest candidate {', '.join(failed)}. A typical expert of lift {2**typical:.2f} or more would have "
            "been found with probability 0.8.")
