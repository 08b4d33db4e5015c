"""One row per topic: does it have an expert, or a group of experts, of its own, and what speaks against it?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.stats import benjamini_hochberg
from moe_probe.experts.explain.rivals import RIVALS, Rival
from moe_probe.studies.verdicts.rules import CLEAR, LIKELY, NEAR, NOTHING, UNTESTED, WEAK, Rules, caption, grades

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CLEAR", "LIKELY", "NEAR", "NOTHING", "UNTESTED", "WEAK", "Rules", "grades", "topic_verdicts"]

_PAIRS = RIVALS[-1]
_NOT_TESTED = (
    "Vocabulary was not ruled out: an expert counted here may respond to a topic's words rather than to its subject."
)
_COLUMNS = (
    "topic",
    "verdict",
    "layer",
    "expert",
    "log2_lift",
    "ci_low",
    "ci_high",
    "q_value",
    "auroc_expert",
    "auroc_feature",
    "ablation_delta_nats",
    "reason",
    "grade",
    "experts",
    "share",
    "log2_lift_replication",
    *(f"{what}_beyond_{rival.column}" for rival in RIVALS for what in ("log2", "q")),
    *(f"{rival.column}_coverage" for rival in RIVALS),
    "detectable_log2_lift",
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
        that its test could see), ``detectable_log2_lift``.
    """
    import pandas as pd

    rules = (rules or Rules()).for_topics(int(expert_topics.table["topic"].nunique()))
    given = {r.name: r for r in ((beyond,) if isinstance(beyond, Result) else beyond)}
    table = expert_topics.table
    table = table.assign(real=_real(table, rules))
    for rival in RIVALS:
        table = _with_rival(table, given.get(rival.result), rival.column, rules)
    group_table = None if groups is None else groups.table
    topics = sorted(table["topic"].unique())
    replicable = _replicable(table, rules)
    rows = [
        _Judge(topic, table[table["topic"] == topic], rules, len(topics), replicable[topic]).judge(group_table)
        for topic in topics
    ]
    out = pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"layer": "Int64", "expert": "Int64"})
    others = (*given.values(), *(() if groups is None else (groups,)))
    citations = dict.fromkeys([*expert_topics.citations, *(c for r in others for c in r.citations)])
    return Result(
        "verdicts",
        out,
        params=dict(vars(rules)),
        seed=expert_topics.seed,
        warnings=() if "beyond_vocabulary" in given else (_NOT_TESTED,),
        caption=caption(rules, bool(given)),
        citations=tuple(citations),
    )


def _real(table: pd.DataFrame, rules: Rules) -> pd.Series:
    """Used more for the topic, more than chance allows and again on other documents."""
    return table["significant"] & table["replicated"] & (table["q_value"] <= rules.alpha) & (table["log2_lift"] > 0)


def _replicable(table: pd.DataFrame, rules: Rules) -> dict[str, bool]:
    """Whether a topic's groups are enough to replicate at least a perfect expert on half of them.

    Its p in one half is one over the number of ways to deal the topic's labels there, and twice that counts
    (`moe_probe.core.stats.replicate`): with two topics it takes eight groups of each, with three six.
    """
    if "n_groups" not in table or "p_replication" not in table:  # results of an earlier version
        return dict.fromkeys(table["topic"], True)
    sizes = table.groupby("topic")["n_groups"].first()
    ways = {topic: math.comb(int(sizes.sum()) // 2, int(n) // 2) for topic, n in sizes.items()}
    tried = table["p_replication"].notna().groupby(table["topic"]).any()
    return {topic: bool(tried[topic]) and int(sizes[topic]) // 2 >= 2 and 2 / ways[topic] <= rules.alpha for topic in ways}


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


class _Judge:
    """Judges one topic: `table` holds its experts, with all rivals beside them."""

    def __init__(self, topic: str, table: pd.DataFrame, rules: Rules, n_topics: int, replicable: bool) -> None:
        self.topic, self.rules, self.n_topics, self.replicable = topic, rules, n_topics, replicable
        self.table = table[table["ci_low"].notna() & table["q_value"].notna()]
        self.judged = [r for r in RIVALS if self._coverage(r) >= rules.min_coverage]
        self.typical = _typical(self.table)

    def judge(self, groups: pd.DataFrame | None) -> dict[str, Any]:
        """Fill the topic's row."""
        row: dict[str, Any] = dict.fromkeys(_COLUMNS, np.nan) | {
            "topic": self.topic,
            "verdict": "none",
            "grade": UNTESTED,
            "layer": None,
            "expert": None,
            "experts": "",
            "detectable_log2_lift": self.typical,
        }
        if self.table.empty:
            return row | {"reason": "Nothing can be said: too few independent documents of this topic."}
        real = self.table["real"]
        beyond = self._beyond(self.table)
        passes = real & beyond & self._large(self.table)
        if not passes.any() and groups is not None:
            group = self._best_group(groups[groups["topic"] == self.topic])
            if group is not None:
                return row | self._of_group(group)
        if not real.any() and not self.replicable:
            return row | {
                "reason": "Nothing can be said: too few independent documents of this topic. Half of them could not "
                "even confirm a perfect expert."
            }
        weak = real & self._beyond(self.table, ratio=self.rules.min_log2_beyond / 2)
        significant = self.table["significant"] & (self.table["log2_lift"] > 0)
        if not significant.any() and self.typical >= np.log2(self.n_topics):
            return row | {
                "reason": "Nothing can be said: too few independent documents of this topic. Not even a typical "
                "expert that is used for it alone would have been found."
            }
        candidates = next((m for m in (passes, weak, real & self._large(self.table), significant) if m.any()), None)
        best = _most_bits(self.table if candidates is None else self.table[candidates])
        row |= {name: best[name] for name in _COLUMNS if name in best.index and name != "topic"}
        row |= {
            "layer": int(best["layer"]),
            "expert": int(best["expert"]),
            "experts": str(int(best["expert"])),
            "auroc_expert": best["auroc"],
        }
        if passes.any():
            return row | {"verdict": "expert", "grade": self._grade(best), "reason": self._why(best, int(passes.sum()))}
        return row | {"grade": WEAK if weak.any() else NOTHING, "reason": self._why_not(best, weak=bool(weak.any()))}

    def _coverage(self, rival: Rival) -> float:
        known = self.table[f"{rival.column}_coverage"].dropna()
        return float(known.iloc[0]) if len(known) else np.nan

    def _large(self, table: pd.DataFrame) -> pd.Series:
        """As large as asked for, or not to be told from it."""
        rules = self.rules
        return (
            (table["log2_lift"] >= rules.min_log2_lift - rules.tolerance)
            & (table["ci_high"] >= rules.min_log2_lift)
            & (table["ci_low"] > rules.min_lower_bound)
            & (table["share"] >= rules.min_share)
        )

    def _beyond(self, table: pd.DataFrame, *, ratio: float | None = None) -> pd.Series:
        """Used more than every rival that can be judged predicts."""
        least = self.rules.min_log2_beyond if ratio is None else ratio
        holds = table["log2_lift"].notna()
        for rival in self.judged:
            if f"q_beyond_{rival.column}" in table:
                holds &= (table[f"q_beyond_{rival.column}"] <= self.rules.alpha) & (
                    table[f"log2_beyond_{rival.column}"] >= least
                )
        return holds

    def _grade(self, best: pd.Series) -> str:
        if best["log2_lift"] < self.rules.min_log2_lift + self.rules.tolerance or self._near_a_rival(best):
            return NEAR
        every = len(self.judged) == len(RIVALS)
        return CLEAR if every and best["ci_low"] >= self.rules.min_log2_lift else LIKELY

    def _near_a_rival(self, best: pd.Series) -> bool:
        """Whether some rival predicts nearly as much as would speak against the verdict."""
        least = self.rules.min_log2_beyond + self.rules.tolerance
        return any(best[f"log2_beyond_{r.column}"] < least for r in self.judged)

    def _best_group(self, groups: pd.DataFrame) -> pd.Series | None:
        rules = self.rules
        larger = (
            (groups["share"] >= rules.min_group_share * groups["largest_member_share"])
            & (groups["gain"] >= -rules.tolerance)
            & (groups["least_member_ci_low"] > rules.min_lower_bound)
        )
        passing = groups[groups["replicated"] & self._large(groups) & ((groups["gain"] >= rules.min_group_gain) | larger)]
        passing = passing[self._beyond(passing)]
        if passing.empty:
            return None
        return passing.sort_values(["n_experts", "ci_low", "layer"], ascending=[True, False, True], kind="stable").iloc[0]

    def _of_group(self, group: pd.Series) -> dict[str, Any]:
        names = str(group["experts"]).replace("+", ", ")
        row = {name: group[name] for name in _COLUMNS if name in group.index and name != "topic"}
        return row | {
            "verdict": "group",
            "grade": self._grade(group),
            "layer": int(group["layer"]),
            "expert": None,
            "log2_lift_replication": group["log2_lift"],
            **{f"{r.column}_coverage": self._coverage(r) for r in RIVALS},
            "reason": f"No single expert passes, but experts {names} of layer {int(group['layer'])} together do, chosen on "
            f"half of the documents and measured on the other: used {2 ** group['log2_lift']:.2f} times as much as on an "
            f"average topic, {self._better(group)}. {self._rivals(group)}",
        }

    def _better(self, group: pd.Series) -> str:
        if group["gain"] >= self.rules.min_group_gain:
            return f"with a lower end of the interval {2 ** group['gain']:.2f} times that of the best member alone"
        return (
            f"and taking {group['share'] / group['largest_member_share']:.1f} times as much of the topic's selections as the "
            "largest of them alone"
        )

    def _rivals(self, row: pd.Series) -> str:
        """What the rivals predict, and which could not be judged."""
        said = [f"{2 ** row[f'log2_beyond_{r.column}']:.2f} times as much as {r.name} predict" for r in self.judged]
        text = f"Usage is {_listed(said)}." if said else ""
        missing = [r for r in RIVALS if r not in self.judged]
        if not missing:
            return f"{text} Pairs could be judged on {self._coverage(_PAIRS):.0%} of the topic's tokens."
        unseen = _listed(
            [
                r.name
                + (
                    f" ({self._coverage(r):.0%} of the topic's tokens can be compared)"
                    if np.isfinite(self._coverage(r))
                    else " (not tested)"
                )
                for r in missing
            ]
        )
        return f"{text} Not ruled out: {unseen}.".strip()

    def _why(self, best: pd.Series, n_passing: int) -> str:
        more = "" if n_passing == 1 else f" {n_passing - 1} further expert{'s pass' if n_passing > 2 else ' passes'} too."
        near = (
            f"The lift is near the threshold of {2**self.rules.min_log2_lift:g}, and this corpus cannot say on which "
            "side it lies. "
            if best["log2_lift"] < self.rules.min_log2_lift + self.rules.tolerance
            else f"Near the threshold because tokens predict nearly as much: a verdict asks for "
            f"{2**self.rules.min_log2_beyond:.2f} times what they predict. "
            if self._near_a_rival(best)
            else ""
        )
        return (
            f"{near}Every test passes: on held-out documents the lift is {2 ** best['log2_lift_replication']:.2f}. "
            f"{self._rivals(best)}{more}"
        )

    def _why_not(self, best: pd.Series, *, weak: bool) -> str:
        """Every condition that the nearest candidate fails, and what would have been found."""
        failed = [*self._failed_tests(best), *self._failed_sizes(best), *self._failed_rivals(best, alone=not weak)]
        opening = "Real but small: an expert passes every test but" if weak else "The nearest candidate"
        return f"{opening} {', '.join(failed)}. {self._power()}"

    def _power(self) -> str:
        if self.typical >= np.log2(self.n_topics):  # an expert used for one of T topics alone has lift T
            return "With so few documents most experts would not be found even if they were used for this topic alone."
        return f"A typical expert of lift {2**self.typical:.2f} or more would have been found with probability 0.8."

    def _failed_tests(self, best: pd.Series) -> list[str]:
        sure = best["significant"] and best["q_value"] <= self.rules.alpha
        failed = [] if sure else [f"is not significant (q {best['q_value']:.2g})"]
        return failed if best["replicated"] else [*failed, "was not replicated on held-out documents"]

    def _failed_sizes(self, best: pd.Series) -> list[str]:
        rules, failed = self.rules, []
        if best["log2_lift"] < rules.min_log2_lift - rules.tolerance or best["ci_high"] < rules.min_log2_lift:
            failed.append(f"has a lift of {2 ** best['log2_lift']:.2f}, under {2**rules.min_log2_lift:g}")
        elif best["ci_low"] <= rules.min_lower_bound:
            failed.append(f"has a lift that may be as low as {2 ** best['ci_low']:.2f}")
        if best["share"] < rules.min_share:
            failed.append(f"takes only {best['share']:.1%} of the topic's selections")
        return failed

    def _failed_rivals(self, best: pd.Series, *, alone: bool) -> list[str]:
        failed = []
        for rival in self.judged:
            q, ratio = best[f"q_beyond_{rival.column}"], best[f"log2_beyond_{rival.column}"]
            if ratio < self.rules.min_log2_beyond or q > self.rules.alpha:
                chance = f" (q {q:.2g})" if np.isfinite(q) else ""
                failed.append(f"is used {2**ratio:.2f} times as much as the topic's {rival.name} predict{chance}")
        if alone and failed and not self._failed_tests(best) and not self._failed_sizes(best):
            failed[-1] += ": an expert of tokens rather than of the topic"
        return failed


def _typical(table: pd.DataFrame) -> float:
    """Log2 lift that would have been found of the expert that a typical selection of the topic goes to."""
    known = table[table["detectable_log2_lift"].notna() & (table["share"] > 0)].sort_values("detectable_log2_lift")
    if known.empty:
        return float(table["detectable_log2_lift"].median()) if len(table) else np.nan
    half = known["share"].cumsum() >= known["share"].sum() / 2
    return float(known.loc[half.idxmax(), "detectable_log2_lift"])


def _most_bits(table: pd.DataFrame) -> pd.Series:
    """The expert that sets the topic's usage most apart: its share times the lower end of its log2 lift.

    That is its term in the divergence of the topic's usage from the average one (Kullback and Leibler 1951, DOI
    10.1214/aoms/1177729694). By the lower end alone experts that take hardly a fiftieth of the topic would stand for it.
    """
    ranked = table.assign(bits=table["share"] * table["ci_low"]).sort_values(
        ["bits", "layer", "expert"], ascending=[False, True, True], kind="stable"
    )
    return ranked.iloc[0]


def _listed(items: Sequence[str]) -> str:
    return " and ".join(([", ".join(items[:-1])] if len(items) > 1 else []) + list(items[-1:]))
