"""The conditions of a verdict, checked for the experts and groups of one topic."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.schema import Evidence
from moe_probe.experts.explain.rivals import RIVALS, Rival

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.studies.verdicts.rules import Rules


class TopicConditions:
    """Which experts of one topic meet which condition of the rules.

    Parameters
    ----------
    table : pandas.DataFrame
        The topic's rows of ``expert_topics``, one per expert, with what every rival predicts and ``real`` (used more for the
        topic, beyond chance and again on held-out documents). Experts without an interval or a q-value are dropped.
    rules : Rules
    n_topics : int
        Topics of the corpus. An expert used for one of T topics alone has lift T.
    evidence : str
        Level of the record (`moe_probe.core.schema.Evidence`).

    Attributes
    ----------
    every : pandas.DataFrame
        All rows of the topic; `table` are those that could be tested.
    n_groups : int or None
        Independent groups of documents of the topic; None in results of an earlier version.
    judged, unjudged : list of Rival
        Rivals whose contexts cover enough of the topic's tokens, and the others.
    detectable : float
        Log2 lift at which the expert that a typical selection of the topic goes to would have been found.
    """

    def __init__(self, table: pd.DataFrame, rules: Rules, n_topics: int, evidence: str = Evidence.WORDS) -> None:
        self.every, self.evidence = table, Evidence(evidence)
        self.n_groups = int(table["n_groups"].iloc[0]) if "n_groups" in table else None
        self.table = table[table["ci_low"].notna() & table["q_value"].notna()]
        self.rules, self.n_topics = rules, n_topics
        self.judged = [r for r in RIVALS if self.coverage(r) >= rules.min_coverage]
        self.unjudged = [r for r in RIVALS if r not in self.judged]
        self.detectable = _detectable(self.table)

    def coverage(self, rival: Rival) -> float:
        """Share of the topic's tokens that the rival's test could compare, NaN where it was not tested."""
        known = self.table[f"{rival.column}_coverage"].dropna()
        return float(known.iloc[0]) if len(known) else np.nan

    @cached_property
    def too_few_documents(self) -> bool:
        """Whether most experts would be missed even if they were used for this topic alone."""
        return bool(self.detectable >= np.log2(self.n_topics))

    @cached_property
    def largest(self) -> pd.Series | None:
        """The expert whose lift takes the topic's usage furthest from the average, tested or not; None where none is above."""
        above = self.every[self.every["log2_lift"] > 0]
        return above.loc[(above["share"] * above["log2_lift"]).idxmax()] if len(above) else None

    def large(self, table: pd.DataFrame) -> pd.Series:
        """Rows with the lift and share that the rules ask for, or a lift that cannot be told from it."""
        rules = self.rules
        return (
            (table["log2_lift"] >= rules.min_log2_lift - rules.tolerance)
            & (table["ci_high"] >= rules.min_log2_lift)
            & (table["ci_low"] > rules.min_lower_bound)
            & (table["share"] >= rules.min_share)
        )

    def beyond_rivals(self, table: pd.DataFrame, *, weak: bool = False) -> pd.Series:
        """Rows used more than every judged rival predicts.

        Parameters
        ----------
        table : pandas.DataFrame
            Experts or groups.
        weak : bool
            Ask for half of `Rules.min_log2_beyond`.

        Returns
        -------
        pandas.Series of bool
        """
        least = self.rules.min_log2_beyond / (2 if weak else 1)
        holds = table["log2_lift"].notna()
        for column in (r.column for r in self.judged):
            if f"q_beyond_{column}" in table:
                holds &= (table[f"q_beyond_{column}"] <= self.rules.alpha) & (table[f"log2_beyond_{column}"] >= least)
        return holds

    def near_lift(self, row: pd.Series) -> bool:
        """Whether the lift is so near the threshold that this corpus cannot say on which side it lies."""
        return bool(row["log2_lift"] < self.rules.min_log2_lift + self.rules.tolerance)

    def near_rival(self, row: pd.Series) -> bool:
        """Whether some rival predicts nearly as much as would speak against the verdict."""
        least = self.rules.min_log2_beyond + self.rules.tolerance
        return any(row[f"log2_beyond_{r.column}"] < least for r in self.judged)

    def best_group(self, groups: pd.DataFrame) -> pd.Series | None:
        """Choose the smallest group that passes, None where none does; of equal sizes the one with the highest lower end."""
        rules = self.rules
        larger = (
            (groups["share"] >= rules.min_group_share * groups["largest_member_share"])
            & (groups["gain"] >= -rules.tolerance)
            & (groups["least_member_ci_low"] > rules.min_lower_bound)
        )
        passing = groups[groups["replicated"] & self.large(groups) & ((groups["gain"] >= rules.min_group_gain) | larger)]
        passing = passing[self.beyond_rivals(passing)]
        if passing.empty:
            return None
        return passing.sort_values(["n_experts", "ci_low", "layer"], ascending=[True, False, True], kind="stable").iloc[0]


def _detectable(table: pd.DataFrame) -> float:
    known = table[table["detectable_log2_lift"].notna() & (table["share"] > 0)].sort_values("detectable_log2_lift")
    if known.empty:
        return float(table["detectable_log2_lift"].median()) if len(table) else np.nan
    half = known["share"].cumsum() >= known["share"].sum() / 2
    return float(known.loc[half.idxmax(), "detectable_log2_lift"])
