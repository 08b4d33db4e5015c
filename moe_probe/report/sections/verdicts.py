"""The section that everybody reads: one row per topic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from moe_probe.core.text import is_missing, listed
from moe_probe.experts.explain.rivals import RIVALS
from moe_probe.report import plots, svg
from moe_probe.report.cells import Cell, Row, lift_text, number, probability, table_of
from moe_probe.report.content import Bar, Picture, Section, Table
from moe_probe.report.plots.summary import answer_kinds, by_answer
from moe_probe.report.sections.unit_names import feature_name, readable, unit_of, where
from moe_probe.studies.verdicts import NEAR, NOTHING, ONLY_COUNTS, UNTESTED, WEAK, grades, power_sentences, words_open

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

#: Words of a sentence that counts topics and names them, at most; a few more say which are near the threshold.
_WORDS = 25
#: Log2 lifts that the drawn line spans at least; an interval that starts below is cut there, the number beside is not.
_AXIS = (-0.5, 2.0)


def verdicts_section(results: Mapping[str, Result]) -> Section:
    """Show the verdict of every topic, scannable, with all evidence under a fold."""
    result = results["verdicts"]
    table = by_answer(result.table.assign(grade=grades(result.table), kind=answer_kinds(result.table)))
    threshold = float(result.params.get("min_log2_lift", 1.0))
    return Section(
        title=question(table),
        finding=f"{count_sentence(table, names=True)}{words_sentence(table)}",
        blocks=(
            *_picture(table, threshold),
            *([power] if (power := power_sentences(result)) else []),
            _table(result, table, results),
        ),
        how=f"{result.caption} {' '.join(f'{name}: {text}' for name, text in _COLUMNS.items())}",
        limits="A verdict is about this corpus: a topic's documents share more than their subject (source, style). Words "
        "are ruled out one by one and in pairs, as far as the reason says; longer phrases are not. Where no expert "
        "passes, the candidate that meets most conditions is shown, chosen on the same documents. Others may have a higher lift, "
        "which does not repeat or which words explain.",
    )


def _table(result: Result, table: pd.DataFrame, results: Mapping[str, Result]) -> Table:
    """Write one row per topic."""
    tested, ablation = (results[name].table if name in results else None for name in ("expert_topics", "ablation"))
    known = table["ci_high"].notna().any()
    axis = _AXIS[0], max(_AXIS[1], math.ceil(float(table["ci_high"].max()))) if known else _AXIS[1]
    threshold = float(result.params.get("min_log2_lift", 1.0))
    least = float(result.params.get("min_coverage", 0.0))
    cells: dict[str, Cell] = {
        "topic": "topic",
        "verdict": ("kind", lambda kind: str(_VERDICTS.get(kind, kind))),
        "how sure": lambda row: _how_sure(row, threshold),
        "unit": unit_of,
        "lift [95 %]": lambda row: _lift(row, threshold, axis),
        "q": ("q_value", probability),
        "beyond words": lambda row: _times(_beyond(row, least)),
    }
    if "auroc_feature" in table and table["auroc_feature"].notna().any():
        cells["feature AUROC"] = ("auroc_feature", 2)
    if all(unit_of(row) == "–" for row in table.to_dict("records")):  # nothing was tested: the others would be empty
        cells = {name: cells[name] for name in ("topic", "verdict")}
    ablated = "causal" in table and bool((table["causal"] != "not tested").any())
    if ablated:
        cells["loss without the unit"] = lambda row: _causal(row, ablation)
    if "unit" in cells:
        cells["replicated"] = lambda row: _replicated(row, tested)
    shown = table_of(
        table,
        cells,
        heading="Verdicts: one row per topic",
        note=f"{_UNIT}{_LOSS * ablated}" if "unit" in cells else "",
    )
    details = tuple((short_reason(row), _evidence(row)) for row in table.to_dict("records"))
    return replace(shown, marks="verdict", details=details)


#: What is said under the table, and where units were switched off.
_UNIT = (
    "Unit: the expert, group or feature that passes, or the nearest expert. Lift: full mark, no difference; dashed mark, "
    "required for a verdict."
)
_LOSS = " Loss: mean change in nats per token with that unit switched off, on the topic and on other topics."
#: How the kinds of answers are called in the table.
_VERDICTS = {"weak": "weak: real but small"}


def _how_sure(row: Row, threshold: float) -> str:
    """Say how sure a verdict is, or, of a weak effect, that it is too small."""
    if row["grade"] == WEAK and not is_missing(row["ci_high"]):
        return "clearly below" if float(row["ci_high"]) < threshold else "may be larger"
    return "–" if row["grade"] in (WEAK, NOTHING, UNTESTED) else str(row["grade"])


def _picture(table: pd.DataFrame, threshold: float) -> tuple[Picture, ...]:
    """Draw the answer of every topic, where any has a lift."""
    if table["log2_lift"].isna().all():
        return ()
    return (
        Picture(
            "topics",
            plots.verdict_lifts(table, min_log2_lift=threshold),
            count_sentence(table, names=True),
            "How much more each topic's expert (or the nearest candidate) is used on it than on an average topic. An expert must "
            "reach the dashed line, or lie near it, repeat on other documents, and be more than words predict.",
            inline=svg.lifts(table, threshold, lambda row: f"{row['topic']}: {where(row)}, {lift_text(row)}"),
        ),
    )


#: What the columns mean, for the list under the fold.
_COLUMNS = {
    "Lift": "share of the topic's selections that go to the expert, over its share for an average topic.",
    "q": "false-discovery rate over all layers, experts and topics.",
    "Beyond words": "usage over what the topic's words, previous tokens or pairs of tokens predict, whichever predicts most.",
    "How sure": "clear, the whole interval is above the threshold; likely, it begins below; near the threshold, this corpus "
    "cannot decide. Of weak effects: clearly below, the whole interval is below the threshold.",
    "Weak": "the effect passes every test but is too small for a verdict.",
    "Feature AUROC": "of the best SAE feature, separating held-out documents of the topic; 0.5 is chance.",
    "Loss without the unit": "confirmed, if it rises on the topic, more than on other topics, and more than without units of "
    "the same load.",
    "Replicated": "discovered in one half of the documents and confirmed in the other.",
}


def question(table: pd.DataFrame) -> str:
    """Ask the question as this corpus allows it."""
    return (
        "Is there a chemistry expert?"
        if (table["topic"].str.lower() == "chemistry").any()
        else "Do topics have experts of their own?"
    )


def count_sentence(table: pd.DataFrame, *, names: bool = False) -> str:
    """Count the topics that have an expert, a group, a feature, a small effect or nothing, and those that were not tested.

    Parameters
    ----------
    table : pandas.DataFrame
        The table of verdicts.
    names : bool
        Name the topics too.

    Returns
    -------
    str
    """
    grade = grades(table)
    tested = table[(grade != UNTESTED) | (table["verdict"] != "none")]
    if tested.empty and table["reason"].astype(str).str.startswith(ONLY_COUNTS).all():
        return "Nothing could be tested: the record has sums by topic only."
    if tested.empty:
        return f"Nothing could be tested: none of {len(table)} topics has enough independent documents."
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
        near = sorted(part["topic"][grade[part.index] == NEAR])
        head = f"{len(part) or 'None'} of {len(tested)} topics" if "{own}" in what else str(len(part))
        own = "its" if len(part) == 1 else "their"
        text = f"{head} {'has' if len(part) == 1 else 'have'} {what.format(own=own)}"
        if names and len(part):
            text += f": {_within(sorted(part['topic']), _WORDS - len(text.split()))}"
        if near:
            every = "" if len(near) == 1 else "all " if len(near) == len(part) else f"{len(near)} of them "
            which = f"{every}near the threshold" if every or len(part) == 1 else f"{near[0]} near the threshold"
            text += f" ({which})"
        parts.append(f"{text}.")
    untested = len(table) - len(tested)
    if untested:
        parts.append(f"{untested} could not be tested: too few independent documents.")
    return " ".join(parts)


def _within(names: list[str], words: int) -> str:
    """Enumerate names, as many as fit into a number of words; at least two."""
    most = len(names)
    while most > 2 and len(listed(names, most).split()) > words:
        most -= 1
    return listed(names, most)


def words_sentence(table: pd.DataFrame) -> str:
    """Say where words are not ruled out as the reason of experts and groups; "" where they are.

    Parameters
    ----------
    table : pandas.DataFrame
        The table of verdicts.

    Returns
    -------
    str
        Begins with a space.
    """
    passing = [row for row in table.to_dict("records") if row["verdict"] in ("expert", "group")]
    n_open = sum(words_open(row) for row in passing)
    if not n_open:
        return ""
    if n_open == len(passing) == 1:
        return " Words are not ruled out: it may be of the topic or of its words."
    which = "they" if n_open == len(passing) else f"{n_open} of them"
    return f" Words are not ruled out: {which} may be of the topic or of its words."


def _lift(row: Row, threshold: float, axis: tuple[float, float]) -> str | Bar:
    if is_missing(row["log2_lift"]) or is_missing(row["ci_low"]):
        return lift_text(row)
    value, low, high = (float(row[name]) for name in ("log2_lift", "ci_low", "ci_high"))
    of = " (nearest expert)" if row["verdict"] == "feature only" else ""
    return Bar(f"{lift_text(row)}{of}", value, low, high, axis, 0.0, threshold)


def _beyond(row: Row, least: float) -> float:
    """Return the smallest ratio to what a rival predicts (log2), over the rivals that could be judged."""
    judged = [r.column for r in RIVALS if row.get(f"{r.column}_coverage", math.nan) >= least]
    if not judged and "words_coverage" not in row:  # a table of an earlier version
        judged = ["words"]
    ratios = [row.get(f"log2_beyond_{name}") for name in judged]
    return min((float(ratio) for ratio in ratios if ratio is not None and not is_missing(ratio)), default=math.nan)


def _times(log2: float) -> str:
    return "–" if is_missing(log2) else f"{number(float(2**log2))}×"


def _causal(row: Row, ablation: pd.DataFrame | None) -> str:
    """Say how the loss changed on the topic and on the others, and whether that confirms it; name a unit not the row's."""
    if is_missing(row["ablation_delta_nats"]):
        return "not tested"
    rise = float(row["ablation_delta_nats"])
    unit = feature_name(str(row["ablation_unit"]))
    text = _signed(rise) if unit == where(row) else f"{unit} off: {_signed(rise)}"
    if ablation is not None and "beyond_others" in ablation:
        same = ablation[(ablation["unit"] == row["ablation_unit"]) & (ablation["topic"] == row["topic"])]
        if len(same) and not is_missing(same["beyond_others"].iloc[0]):
            text += f" (others {_signed(rise - float(same['beyond_others'].iloc[0]))})"
    return f"{text}; {row['causal']}"


def _signed(nats: float) -> str:
    text = number(abs(float(nats)), 3)
    return text if text == "0.000" else f"{'+' if nats > 0 else '−'}{text}"


def _replicated(row: Row, tested: pd.DataFrame | None) -> str:
    if is_missing(row["layer"]):
        return "–"
    if row["verdict"] == "group":
        return "yes"  # its members were chosen on one half and measured on the other: no group passes otherwise
    if tested is None or is_missing(row["expert"]):
        return "–"
    one = tested[(tested["layer"] == row["layer"]) & (tested["expert"] == row["expert"]) & (tested["topic"] == row["topic"])]
    return "yes" if len(one) and bool(one["replicated"].iloc[0]) else "no"


def short_reason(row: Row) -> str:
    """Return the first sentence of the reason, without tearing numbers apart at their points."""
    first, dot, _ = readable(str(row["reason"])).partition(". ")
    return first + "." if dot else first


def _evidence(row: Row) -> str:
    """Give every number of a row in sentences."""
    whole = bool(row.get("sentence"))
    parts = [readable(str(row["sentence"]))] if whole else []
    if not is_missing(row["share"]):
        parts.append(
            f"{where(row).capitalize()} takes {row['share']:.1%} of the topic's selections; on the half of the "
            f"documents that did not choose it the lift is {_times(row['log2_lift_replication'])}."
        )
    if not is_missing(row["auroc_expert"]):
        parts.append(
            f"A document of the topic uses it more than another document does with probability "
            f"{number(float(row['auroc_expert']))} (0.5 is chance)."
        )
    if not is_missing(row.get("auroc_feature")) and not whole:
        parts.append(
            f"Best feature: {feature_name(str(row['feature']))}, AUROC {number(float(row['auroc_feature']))} on held-out "
            f"documents, {number(float(row['feature_beyond_expert']))} more than the best expert."
        )
    if not is_missing(row.get("ablation_delta_nats")) and not whole:
        parts.append(
            f"Without {feature_name(str(row['ablation_unit']))} the topic's loss changes by "
            f"{number(float(row['ablation_delta_nats']), 3)} nats [{number(float(row['ablation_low']), 3)}, "
            f"{number(float(row['ablation_high']), 3)}]."
        )
    rest = readable(str(row["reason"])).partition(". ")[2]
    return " ".join([*parts, rest] if rest else parts)
