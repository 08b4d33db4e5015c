"""Verdicts of runs side by side, and which of them changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.text import figure, is_missing
from moe_probe.core.units import parse_members
from moe_probe.experts.explain.rivals import RIVALS
from moe_probe.studies.compare.compared_run import ComparedRun
from moe_probe.studies.verdicts import NEAR, WEAK, grades

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("verdict", "grade", "layer", "experts", "log2_lift", "ci_low", "ci_high", "q_value", "reason")
_OWN = ("expert", "group")
_NOUNS = {"expert": "an expert", "group": "a group of experts", "feature only": "a feature only", "none": "none"}


def best_units(run: ComparedRun) -> pd.DataFrame:
    """Layer, experts (as text) and lift of every topic's best expert or group, indexed by topic, whatever the verdict."""
    name = "usage_verdicts" if "usage_verdicts" in run.results else "verdicts"
    return run.result(name).table.set_index("topic")[["layer", "experts", "log2_lift", "ci_low", "ci_high"]]


def _has_features(run: ComparedRun) -> bool:
    verdicts = run.result("verdicts").table
    return "auroc_feature" in verdicts and bool(verdicts["auroc_feature"].notna().any())


def _verdict_table(run: ComparedRun, *, features: bool) -> pd.DataFrame:
    """Look up a run's verdicts, with features where every run has them, else by usage alone."""
    if not features and _has_features(run) and "usage_verdicts" in run.results:
        return run.result("usage_verdicts").table
    return run.result("verdicts").table


def compare_verdicts(runs: Sequence[ComparedRun]) -> Result:
    """Put the verdicts of several runs side by side.

    Parameters
    ----------
    runs : sequence of ComparedRun

    Returns
    -------
    Result
        ``comparison_verdicts``: ``side, label, topic, verdict, told`` (with its grade, layer and expert), ``grade,
        layer, experts, log2_lift, ci_low, ci_high, q_value, reason``. Verdicts are by usage alone where only some runs know
        of SAE features.

    Raises
    ------
    MoeProbeError
        When a run has no verdicts.
    """
    import pandas as pd

    with_features = [_has_features(run) for run in runs]
    warnings = []
    if any(with_features) and not all(with_features):
        without = ", ".join(run.name for run, known in zip(runs, with_features, strict=True) if not known)
        warnings.append(f"Verdicts are by usage alone: {without} has no verdicts with SAE features.")
    for what, values in _conditions(runs).items():
        if len(set(values)) > 1:
            listed = ", ".join(f"{run.name}: {value}" for run, value in zip(runs, values, strict=True))
            warnings.append(f"Verdicts were reached under different conditions, {what} ({listed}).")
    parts = []
    for run in runs:
        table = _verdict_table(run, features=all(with_features))
        table = table.assign(grade=grades(table))
        parts.append(table[["topic", *_COLUMNS]].assign(side=run.name, label=run.label, told=_in_short(table)))
    table = pd.concat(parts, ignore_index=True)[["side", "label", "topic", "verdict", "told", *_COLUMNS[1:]]]
    return Result(
        "comparison_verdicts",
        table,
        warnings=tuple(warnings),
        params={"features": all(with_features)},
        caption="What each run says of every topic, by the same rules.",
    )


def _in_short(verdicts: pd.DataFrame) -> list[str]:
    return [
        str(row.verdict)
        + (f" ({row.grade})" if row.grade in (NEAR, WEAK) else "")
        + (f": layer {row.layer}, {str(row.experts).replace('+', ', ')}" if row.verdict in _OWN else "")
        for row in verdicts.itertuples()
    ]


def _conditions(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """List what verdicts depend on beside the data, by name: one text per run."""
    params = [run.results["expert_topics"].params if "expert_topics" in run.results else {} for run in runs]
    out = {name: [str(p.get(name)) for p in params] for name in ("alpha", "permutations", "strata")}
    # two labels cannot be exchanged within the same strata
    if len({run.label for run in runs}) > 1:
        out.pop("strata")
    rivals = [", ".join(r.name for r in RIVALS if r.result in run.results) or "none" for run in runs]
    return out | {"rivals tested": rivals}


def verdict_changes(
    a: ComparedRun, b: ComparedRun, verdicts: Result, topics: Result, aligned: Result | None = None
) -> Result:
    """Say which verdicts of two runs differ, and why.

    Parameters
    ----------
    a, b : ComparedRun
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

    verdicts_a, verdicts_b = (verdicts.table[verdicts.table["side"] == run.name].set_index("topic") for run in (a, b))
    shared = [topic for topic in verdicts_a.index if topic in verdicts_b.index]
    if not shared:
        raise MoeProbeError(
            f"{a.name} and {b.name} cannot be compared", f"they share no {a.label}", "runs with common topics"
        )
    differences = topics.table.set_index("topic")
    rows: list[dict[str, Any]] = []
    for topic in shared:
        one, other = verdicts_a.loc[topic], verdicts_b.loc[topic]
        changed = one["verdict"] != other["verdict"]
        difference = differences.loc[topic] if topic in differences.index else None
        rows.append(
            {
                "side_a": a.name,
                "side_b": b.name,
                "topic": topic,
                "verdict_a": one["verdict"],
                "verdict_b": other["verdict"],
                "changed": bool(changed),
                "beyond": bool(difference is not None and difference["beyond"]),
                "same_experts": _same_experts(one, other, aligned),
                "why": _why({a.name: one, b.name: other}, difference) if changed else "",
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
    experts, others = (set(parse_members(verdict["experts"])) for verdict in (one, other))
    same = set()
    for _, rows in aligned.table[aligned.table["layer"] == one["layer"]].groupby("measure"):
        partners = set(rows.loc[rows["expert"].isin(experts), "other_expert"].dropna().astype(int))
        same.add(bool((rows["other_layer"] == other["layer"]).any()) and partners == others)
    return "unclear" if len(same) > 1 else "yes" if same == {True} else "no"


def _why(verdicts: Mapping[str, pd.Series], difference: pd.Series | None) -> str:
    """Say what changed, and both reasons; `verdicts` by the name of the run."""
    kinds = ", ".join(f"{_NOUNS.get(v['verdict'], v['verdict'])} in {name}" for name, v in verdicts.items())
    sentences = [f"{kinds[0].upper()}{kinds[1:]}."]
    if difference is not None and not is_missing(difference["difference"]):
        sentences.append(
            f"Lift {2 ** difference['value_a']:.2f} against {2 ** difference['value_b']:.2f}, log2 difference "
            f"{difference['difference']:+.2f} [{figure(difference['ci_low'], '+.2f', 'unknown')}, "
            f"{figure(difference['ci_high'], '+.2f', 'unknown')}]"
            f"{'' if difference['beyond'] else ': no more than chance, so the topic lies near the threshold'}."
        )
    return " ".join([*sentences, *(f"{name}: {verdict['reason']}" for name, verdict in verdicts.items())])
