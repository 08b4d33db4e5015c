"""The section that everybody reads: one row per topic."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_probe.experts.explain.rivals import RIVALS
from moe_probe.report.content import Bar, Section, Table, lift_text, number, probability, sae_name, some
from moe_probe.studies.verdicts import NEAR, UNTESTED, WEAK, grades

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

#: Log2 lifts that the drawn line spans at least; an interval that starts below is cut there, the number beside is not.
_ENDS = (-0.5, 2.0)


def verdicts_section(results: Mapping[str, Result]) -> Section:
    """Show the verdict of every topic, scannable, with the whole story under a fold."""
    result = results["verdicts"]
    table = result.table
    tested = results["expert_topics"].table if "expert_topics" in results else None
    by_cause = "causal" in table and bool((table["causal"] != "not tested").any())
    by_feature = "auroc_feature" in table and bool(table["auroc_feature"].notna().any())
    ends = _ENDS[0], max(_ENDS[1], math.ceil(float(table["ci_high"].max()))) if table["ci_high"].notna().any() else _ENDS[1]
    asked = float(result.params.get("min_log2_lift", 1.0))
    least = float(result.params.get("min_coverage", 0.0))
    heads = ["topic", "verdict", "grade", "expert or group", "lift [95 %]", "q", "beyond words"]
    heads += ["feature AUROC"] if by_feature else []
    heads += ["cause"] if by_cause else []
    rows, more = [], []
    for (_, row), grade in zip(table.iterrows(), grades(table), strict=True):
        cells: list[str | Bar] = [
            row["topic"],
            row["verdict"],
            grade,
            where(row),
            _lift(row, asked, ends),
            probability(row["q_value"]),
            _times(_beyond(row, least)),
        ]
        cells += [number(float(row["auroc_feature"]))] if by_feature else []
        cells += [_causal(row)] if by_cause else []
        rows.append((*cells, _replicated(row, tested)))
        more.append((short_reason(row), _story(row)))
    return Section(
        title=f"{question(table)} One row per topic",
        finding=count_sentence(table),
        blocks=(
            Table(
                (*heads, "replicated"),
                tuple(rows),
                marks="verdict",
                more=tuple(more),
                heading="Verdicts",
                note=_note(asked, ends, by_feature, by_cause),
            ),
        ),
        how=result.caption,
        limits="A verdict is about this corpus: a topic's documents share more than their subject (source, style). Words "
        "are ruled out one by one and in pairs (as far as the reason says); longer turns of phrase are not. The candidate "
        "with the strongest lift is shown, so that its "
        "lift is an upper end where nothing was found.",
    )


def question(table: pd.DataFrame) -> str:
    """The question as this corpus can put it."""
    return (
        "Is there a chemistry expert?"
        if (table["topic"].str.lower() == "chemistry").any()
        else "Do topics have experts of their own?"
    )


def count_sentence(table: pd.DataFrame, *, names: bool = False) -> str:
    """How many topics have an expert, a group, a feature, a small effect or nothing, and how many could not be tested.

    Parameters
    ----------
    table : pandas.DataFrame
        The table of verdicts.
    names : bool
        Name the topics too.
    """
    grade = grades(table)
    tested = table[(grade != UNTESTED) | (table["verdict"] != "none")]
    if tested.empty:
        return f"Nothing can be said: none of {len(table)} topics has enough independent documents to be tested."
    kinds = (
        (tested["verdict"] == "expert", "an expert of {own} own"),
        (tested["verdict"] == "group", "a group of experts"),
        (tested["verdict"] == "feature only", "a feature but no expert"),
        ((tested["verdict"] == "none") & (grade == WEAK), "an expert that is real but too small to count"),
    )
    parts = []
    for mask, what in kinds:
        part = tested[mask.loc[tested.index]]
        if not len(part) and "{own}" not in what:
            continue
        near = part["topic"][grade[part.index] == NEAR].tolist()
        verb = "has" if len(part) == 1 else "have"
        head = f"{len(part) or 'None'} of {len(tested)} topics" if "{own}" in what else str(len(part))
        said = f"{head} {verb} {what.format(own='its' if len(part) == 1 else 'their')}"
        said += f": {some(sorted(part['topic']))}" if names and len(part) else ""
        parts.append(said + (f" ({some(sorted(near))} near the threshold)" if near else "") + ".")
    untested = len(table) - len(tested)
    if untested:
        parts.append(f"{untested} could not be tested: too few independent documents.")
    return " ".join(parts)


def _note(asked: float, ends: tuple[float, float], by_feature: bool, by_cause: bool) -> str:
    text = (
        "Expert or group: what passes, or else the nearest candidate; lift and q are its own. Lift: how much more of the "
        f"topic's selections go to it than of an average topic's; the line is drawn from {2 ** ends[0]:.1f} to "
        f"{2 ** ends[1]:g} times, full mark at 1 (no difference), dashed at {2**asked:g} (what a verdict asks for). q: "
        "false-discovery rate over all layers, experts and topics. Beyond words: usage over what the topic's words, previous "
        "tokens or pairs of tokens predict, whichever predicts most. Grade: clear, the whole interval is above the "
        "threshold; near the threshold, too close to say; weak, real by every test but smaller."
    )
    if by_feature:
        text += " Feature AUROC: the best SAE feature, telling held-out documents of the topic; 0.5 is chance."
    if by_cause:
        text += (
            " Cause: rise of the loss on the topic without the expert or group, in nats; where the verdict is a feature, "
            "without that feature."
        )
    return text + " Replicated: found in one half of the documents and confirmed in the other."


def where(row: Any) -> str:
    """The expert or experts that a row of verdicts speaks of."""
    if missing(row["layer"]):
        return "–"
    several = "+" in str(row.get("experts", ""))
    return (
        f"layer {int(row['layer'])}, experts {str(row['experts']).replace('+', ', ')}"
        if several
        else f"layer {int(row['layer'])}, expert {int(row['expert'])}"
    )


def missing(value: Any) -> bool:
    """Whether a cell of a nullable column is empty."""
    import pandas as pd

    return bool(pd.isna(value))


def _lift(row: Any, asked: float, ends: tuple[float, float]) -> str | Bar:
    if missing(row["log2_lift"]) or missing(row["ci_low"]):
        return lift_text(row)
    return Bar(lift_text(row), float(row["log2_lift"]), float(row["ci_low"]), float(row["ci_high"]), ends, 0.0, asked)


def _beyond(row: Any, least: float) -> float:
    """Smallest ratio to what a rival predicts, over the rivals that could be judged."""
    import pandas as pd

    judged = [r.column for r in RIVALS if row.get(f"{r.column}_coverage", float("nan")) >= least]
    if not judged and "words_coverage" not in row:  # a table of an earlier version
        judged = ["words"]
    return float(pd.Series([row.get(f"log2_beyond_{name}", float("nan")) for name in judged], dtype=float).min())


def _times(log2: float) -> str:
    return "–" if missing(log2) else f"{number(float(2**log2))}×"


def _causal(row: Any) -> str:
    if missing(row["ablation_delta_nats"]):
        return "not tested"
    said, rise = str(row["causal"]), number(float(row["ablation_delta_nats"]), 3)
    return f"{said[:-1]}; {rise})" if said.endswith(")") else f"{said} ({rise})"


def _replicated(row: Any, tested: pd.DataFrame | None) -> str:
    if missing(row["layer"]):
        return "–"
    if row["verdict"] == "group":
        return "yes"  # its members were chosen on one half and measured on the other: no group passes otherwise
    if tested is None or missing(row["expert"]):
        return "–"
    one = tested[(tested["layer"] == row["layer"]) & (tested["expert"] == row["expert"]) & (tested["topic"] == row["topic"])]
    return "yes" if len(one) and bool(one["replicated"].iloc[0]) else "no"


def short_reason(row: Any) -> str:
    """First sentence of the reason, without numbers being torn apart at their points."""
    first, dot, _ = readable(str(row["reason"])).partition(". ")
    return first + "." if dot else first


def _story(row: Any) -> str:
    """Every number of a row in sentences."""
    told = [readable(str(row["sentence"]))] if row.get("sentence") else []
    if not missing(row["share"]):
        told.append(
            f"{where(row).capitalize()} takes {row['share']:.1%} of the topic's selections; on the half of the "
            f"documents that did not choose it the lift is {_times(row['log2_lift_replication'])}."
        )
    if not missing(row["auroc_expert"]):
        told.append(
            f"A document of the topic uses it more than another document does with probability "
            f"{number(float(row['auroc_expert']))} (0.5 is chance)."
        )
    if not missing(row.get("auroc_feature")) and not row.get("sentence"):
        told.append(
            f"Best feature: {feature_name(str(row['feature']))}, AUROC {number(float(row['auroc_feature']))} on held-out "
            f"documents, {number(float(row['feature_beyond_expert']))} more than the best expert."
        )
    if not missing(row.get("ablation_delta_nats")) and not row.get("sentence"):
        told.append(
            f"Without {feature_name(str(row['ablation_unit']))} the topic's loss changes by "
            f"{number(float(row['ablation_delta_nats']), 3)} nats [{number(float(row['ablation_low']), 3)}, "
            f"{number(float(row['ablation_high']), 3)}]."
        )
    rest = readable(str(row["reason"])).partition(". ")[2]
    return " ".join([*told, rest] if rest else told)


def feature_name(text: str) -> str:
    """``layer_03/width_01024:575`` as people say it; other text as it is."""
    found = re.fullmatch(r"(layer_\d+/width_[^: ]+)(?::| feature )(\d+)", text)
    return f"feature {found[2]} of the SAE of {sae_name(found[1])}" if found else text


def readable(text: str) -> str:
    """A sentence with "layer_03/width_01024" as people say it."""
    said = re.sub(r"(layer_\d+/width_\S*\w) feature (\d+)", lambda m: f"feature {m[2]} of {m[1]}", text)
    return re.sub(r"\blayer_\d+/width_\S*\w", lambda m: f"the SAE of {sae_name(m[0])}", said)
