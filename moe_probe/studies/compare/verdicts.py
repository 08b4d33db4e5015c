"""Verdicts of runs side by side, and which of them changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.text import figure
from moe_probe.core.units import parse_members
from moe_probe.experts.explain.rivals import RIVALS
from moe_probe.studies.compare.sides import Side
from moe_probe.studies.verdicts import NEAR, WEAK, grades

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("verdict", "grade", "layer", "experts", "log2_lift", "ci_low", "ci_high", "q_value", "reason")
_OWN = ("expert", "group")
_SAME = {"expert": "an expert", "group": "a group of experts", "feature only": "a feature only", "none": "none"}


def best_units(side: Side) -> pd.DataFrame:
    """Layer, experts (as text) and lift of every topic's best expert or group, indexed by topic, whatever the verdict."""
    name = "usage_verdicts" if "usage_verdicts" in side.results else "verdicts"
    return side.result(name).table.set_index("topic")[["layer", "experts", "log2_lift", "ci_low", "ci_high"]]


def has_features(side: Side) -> bool:
    """Whether the verdicts of a side know of SAE features."""
    verdicts = side.result("verdicts").table
    return "auroc_feature" in verdicts and bool(verdicts["auroc_feature"].notna().any())


def verdict_result(side: Side, *, features: bool) -> Result:
    """A side's verdicts, with features where every side has them, else by usage alone."""
    if not features and has_features(side) and "usage_verdicts" in side.results:
        return side.result("usage_verdicts")
    return side.result("verdicts")


def compare_verdicts(sides: Sequence[Side]) -> Result:
    """Put the verdicts of several sides side by side.

    Parameters
    ----------
    sides : sequence of Side

    Returns
    -------
    Result
        ``comparison_verdicts``: ``side, label, topic, verdict, told`` (with its grade and the place of its expert), ``grade,
        layer, experts, log2_lift, ci_low, ci_high, q_value, reason``. Verdicts are by usage alone where only some sides know
        of SAE features.

    Raises
    ------
    MoeProbeError
        When a side has no verdicts.
    """
    import pandas as pd

    known = [has_features(side) for side in sides]
    warnings = []
    if any(known) and not all(known):
        without = ", ".join(s.name for s, k in zip(sides, known, strict=True) if not k)
        warnings.append(f"Verdicts are by usage alone: {without} knows nothing of SAE features.")
    for what, values in _conditions(sides).items():
        if len(set(values)) > 1:
            told = ", ".join(f"{s.name}: {v}" for s, v in zip(sides, values, strict=True))
            warnings.append(f"Verdicts were reached under different conditions, {what} ({told}).")
    parts = []
    for side in sides:
        table = verdict_result(side, features=all(known)).table
        table = table.assign(grade=grades(table))
        parts.append(table[["topic", *_COLUMNS]].assign(side=side.name, label=side.label, told=_told(table)))
    table = pd.concat(parts, ignore_index=True)[["side", "label", "topic", "verdict", "told", *_COLUMNS[1:]]]
    return Result(
        "comparison_verdicts",
        table,
        warnings=tuple(warnings),
        params={"features": all(known)},
        caption="What each run says of every topic, by the same rules.",
    )


def _told(verdicts: pd.DataFrame) -> list[str]:
    return [
        str(row.verdict)
        + (f" ({row.grade})" if row.grade in (NEAR, WEAK) else "")
        + (f": layer {row.layer}, {str(row.experts).replace('+', ', ')}" if row.verdict in _OWN else "")
        for row in verdicts.itertuples()
    ]


def _conditions(sides: Sequence[Side]) -> dict[str, list[str]]:
    """What verdicts depend on beside the data."""
    tests = [s.results["expert_topics"].params if "expert_topics" in s.results else {} for s in sides]
    out = {name: [str(t.get(name)) for t in tests] for name in ("alpha", "permutations", "strata")}
    # two labels cannot be exchanged within the same strata
    if len({s.label for s in sides}) > 1:
        out.pop("strata")
    return out | {"rivals tested": [", ".join(r.name for r in RIVALS if r.result in s.results) or "none" for s in sides]}


def verdict_changes(a: Side, b: Side, verdicts: Result, topics: Result, aligned: Result | None = None) -> Result:
    """Say which verdicts of two runs differ, and why.

    Parameters
    ----------
    a, b : Side
        Under one label.
    verdicts : Result
        From `compare_verdicts`.
    topics : Result
        From `compare_topics`.
    aligned : Result, optional
        ``aligned_experts`` of the two.

    Returns
    -------
    Result
        ``comparison_changes``: ``side_a, side_b, topic, verdict_a, verdict_b, changed, beyond`` (whether the lifts differ
        beyond chance, q of `compare_topics`), ``same_experts`` (whether the experts of one are those that the other's are
        matched with: "yes", "no", "unclear" where documents and tokens disagree, "" where not both have any or nothing was
        matched), ``why`` (a sentence or two; "" where nothing changed).

    Raises
    ------
    MoeProbeError
        When no topic has a verdict in both.
    """
    import pandas as pd

    ours, theirs = (verdicts.table[verdicts.table["side"] == s.name].set_index("topic") for s in (a, b))
    shared = [t for t in ours.index if t in theirs.index]
    if not shared:
        raise MoeProbeError(
            f"{a.name} and {b.name} cannot be compared", f"they share no {a.label}", "runs with common topics"
        )
    gaps = topics.table.set_index("topic")
    rows: list[dict[str, Any]] = []
    for topic in shared:
        one, other = ours.loc[topic], theirs.loc[topic]
        changed = one["verdict"] != other["verdict"]
        gap = gaps.loc[topic] if topic in gaps.index else None
        beyond = bool(gap is not None and gap["beyond"])
        rows.append(
            {
                "side_a": a.name,
                "side_b": b.name,
                "topic": topic,
                "verdict_a": one["verdict"],
                "verdict_b": other["verdict"],
                "changed": bool(changed),
                "beyond": beyond,
                "same_experts": _same_experts(one, other, aligned),
                "why": _why(a, b, one, other, gap, beyond=beyond) if changed else "",
            }
        )
    return Result(
        "comparison_changes",
        pd.DataFrame(rows),
        warnings=verdicts.warnings,
        caption="A verdict is a threshold: one that changed while the lifts do not differ beyond chance says only "
        "that the topic lies near it.",
    )


def _same_experts(one: pd.Series, other: pd.Series, aligned: Result | None) -> str:
    if one["verdict"] not in _OWN or other["verdict"] not in _OWN or aligned is None:
        return ""
    said = set()
    for _, mine in aligned.table[aligned.table["layer"] == one["layer"]].groupby("measure"):
        partners = set(mine.loc[mine["expert"].isin(_numbers(one)), "other_expert"].dropna().astype(int))
        said.add(bool((mine["other_layer"] == other["layer"]).any()) and partners == _numbers(other))
    return "unclear" if len(said) > 1 else "yes" if said == {True} else "no"


def _numbers(verdict: pd.Series) -> set[int]:
    return set(parse_members(verdict["experts"]))


def _why(a: Side, b: Side, one: pd.Series, other: pd.Series, gap: pd.Series | None, *, beyond: bool) -> str:
    kinds = ", ".join(f"{_SAME.get(v['verdict'], v['verdict'])} in {side.name}" for side, v in ((a, one), (b, other)))
    said = f"{kinds[0].upper()}{kinds[1:]}."
    if gap is not None and gap["difference"] == gap["difference"]:
        said += (
            f" Lift {2 ** gap['value_a']:.2f} against {2 ** gap['value_b']:.2f}, log2 difference {gap['difference']:+.2f} "
            f"[{figure(gap['ci_low'], '+.2f', 'unknown')}, {figure(gap['ci_high'], '+.2f', 'unknown')}]"
            f"{'' if beyond else ': no more than chance, so the topic lies near the threshold'}."
        )
    return f"{said} {a.name}: {one['reason']} {b.name}: {other['reason']}"
