"""The answer to "do features split along human lines?", in sentences with its numbers and nulls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.stats import holm
from moe_probe.core.text import figure, is_missing, sentences
from moe_probe.features.tree import KINDS
from moe_probe.report.cells import probability

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result


def human_lines(results: Mapping[str, Result], *, brief: bool = False) -> str:
    """Answer "human lines or not", with the number and its null.

    Parameters
    ----------
    results : mapping of str to Result
    brief : bool
        In two sentences.

    Returns
    -------
    str
        "" where it was not tested.
    """
    if "tree_subjects" not in results:
        return ""
    table = results["tree_subjects"].table
    own = table[(table["tree"] == "this run") & (table["nodes"] > 0)]
    if own.empty:
        return "No node has two parts, so nothing could be compared with subjects."
    p_values = holm(own["p_value"].to_numpy())
    rise = own["shared"] if own["shared"].notna().any() else own["purity"] - own["expected"]
    index = int(rise.fillna(-np.inf).to_numpy().argmax())
    best, tested = own.iloc[index], bool(np.isfinite(p_values).any())
    shared = (
        ""
        if is_missing(best["shared"])
        else f" siblings share {best['shared']:.0%} of the topic signal of a feature where they are most alike."
    )
    lead = f"{_lead(own, p_values)}{':' if shared else '.'}{shared}"
    if brief:
        return f"{lead} {sentences(_kinds(own, tested=tested))[0]}"
    holm_of = f", Holm over {len(own)} pairs of widths" if len(own) > 1 else ""
    return (
        f"{lead} Firings of two siblings, from different documents, are about "
        f"one topic {figure(best['purity'], '.1%', 'an unknown share')} of the time. Randomly placed features: "
        f"{figure(best['expected'], '.1%')}; a feature with itself: {figure(best['ceiling'], '.1%')} "
        f"(layer {int(best['layer'])}, width {int(best['parent_width']):,} to {int(best['child_width']):,}, "
        f"p {probability(float(p_values[index]))}{holm_of}).{_other_seed(table, best)} {_kinds(own, tested=tested)}"
    )


def _lead(own: pd.DataFrame, p_values: np.ndarray) -> str:
    """Answer in a word: from the share of judged nodes that keep to one subject, where the test passes."""
    if not np.isfinite(p_values).any():
        return "Not testable"
    if not (p_values <= 0.05).any():
        return "No"
    judged = int(own["judged"].sum()) if "judged" in own else 0
    if not judged:
        return "To some degree"
    human = float((own[list(KINDS[:2])].sum(axis=1) * own["judged"]).sum() / judged)
    return "Partly" if human > 0.5 else "Hardly" if human <= 0.5 else "To some degree"


def _kinds(own: pd.DataFrame, *, tested: bool) -> str:
    """Give the shares of the nodes that could be judged, and how many could not."""
    if "judged" not in own:
        return "This table does not say which nodes could be judged: run moe-probe tree RUN again."
    nodes, judged, beside = (int(own[column].sum()) for column in ("nodes", "judged", "found_beside"))
    why = (
        "the test would have missed nodes of one subject with so few or so rarely firing children"
        if tested
        else "every stratum has one topic, so that no labels can be exchanged"
    )
    all_the_same = f" Still, {beside:,} of them keep to one subject." if beside else ""
    if not judged:
        return f"None of {nodes:,} nodes that split could be judged one by one: {why}.{all_the_same}"
    parts, one, several, none = (float((own[kind].fillna(0.0) * own["judged"]).sum() / judged) for kind in KINDS)
    left = f" {nodes - judged:,} more could not be judged: {why}.{all_the_same}" if nodes > judged else ""
    return (
        f"Of {judged:,} nodes that split and could be judged, {parts + one:.0%} keep to one subject ({parts:.1%} dividing it "
        f"by its subtopics), {several:.0%} mix several, {none:.0%} show no subject of the corpus.{left}"
    )


def _other_seed(table: pd.DataFrame, best: pd.Series) -> str:
    """Say the same where only the seed changes; "" where that null was not made, or has no nodes."""
    same = table[
        (table["tree"] == "same width, another seed")
        & (table["layer"] == best["layer"])
        & (table["nodes"] > 0)
        & (table["parent_width"] == best["parent_width"])
        & (table["child_width"] == best["child_width"])
    ]
    if same.empty or same["shared"].isna().all() or is_missing(best["shared"]):
        return ""
    null = same.iloc[0]
    more = best["shared"] > null["shared"]
    return (
        f" Where no width is added and only the seed changes, {int(null['nodes']):,} "
        f"node{'s split' if null['nodes'] > 1 else ' splits'}, and siblings there share "
        f"{figure(null['shared'], '.0%', 'an unknown part')}"
        + ("." if more else ": widening need not be why siblings are about one subject.")
    )
