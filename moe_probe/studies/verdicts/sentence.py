"""The sentence of a verdict, with all evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_probe.core.text import figure, is_missing
from moe_probe.core.units import UnitRef, format_members, parse_members
from moe_probe.studies.verdicts.causes import CONFIRMED, NOT_CONFIRMED, NOT_TESTED, rise_text
from moe_probe.studies.verdicts.rules import NEAR, UNTESTED, WEAK, Rules


def verdict_sentence(row: Mapping[str, Any]) -> str:
    """Put a completed verdict into a few sentences: the answer, the lift, the best feature, the loss without the unit."""
    parts = [_answer(row), *_lift(row)]
    if not is_missing(row["auroc_feature"]):
        parts.append(_feature(row))
    if row["causal"] != NOT_TESTED:
        parts.append(_rise(row))
    return ". ".join(parts) + "."


def words_open(row: Mapping[str, Any]) -> bool:
    """Whether words are not ruled out as the reason of a verdict: they were not tested, or cover too few of the tokens.

    Parameters
    ----------
    row : mapping
        Of the verdicts; one of an earlier version, without ``words_coverage``, is not doubted.

    Returns
    -------
    bool
    """
    coverage = row.get("words_coverage", 1.0)
    return is_missing(coverage) or coverage < Rules.min_coverage


def _answer(row: Mapping[str, Any]) -> str:
    unit = _unit(row)
    near = ", near the threshold" if row["grade"] == NEAR else ""
    words = ", of the topic or of its words" if words_open(row) else ""
    if row["verdict"] == "expert":
        return f"Yes: {unit}{near}{words}"
    if row["verdict"] == "group":
        return f"No single one, but {unit} together{near}{words}"
    if row["verdict"] == "feature only":
        return f"No expert, but {unit}{near}"
    if row["grade"] == UNTESTED:
        return "It cannot be said"
    if row["grade"] == WEAK:
        return f"Hardly: {unit} is real but small"
    return f"No; nearest is {unit}" if unit else "No"


def _unit(row: Mapping[str, Any]) -> str:
    if row["verdict"] == "feature only":
        unit = UnitRef.parse(row["feature"])
        return f"feature {format_members(unit.members)} of {unit.sae}"
    if is_missing(row["layer"]):
        return ""
    experts = parse_members(row["experts"])
    return f"expert{'s' * (len(experts) > 1)} {', '.join(map(str, experts))} of layer {int(row['layer'])}"


def _lift(row: Mapping[str, Any]) -> list[str]:
    if is_missing(row["layer"]) or is_missing(row["log2_lift"]):
        return []
    who = "The nearest expert is" if row["verdict"] == "feature only" else "It is"
    low, high = (figure(2 ** row[end], ".2f", "unknown") for end in ("ci_low", "ci_high"))
    lift = f"{who} used {2 ** row['log2_lift']:.2f} times as much as on an average topic [{low}, {high}]"
    if is_missing(row["log2_beyond_words"]):
        return [lift]
    return [f"{lift}, and {2 ** row['log2_beyond_words']:.2f} times as much as the topic's words predict"]


def _feature(row: Mapping[str, Any]) -> str:
    rivals = {
        "feature_beyond_expert": "the best expert",
        "feature_beyond_token": "the best token",
        "feature_beyond_tokens": "the best set of tokens",
    }
    differences = {name: float(row[column]) for column, name in rivals.items() if not is_missing(row.get(column))}
    compared = [f"{abs(d):.2f} {'more' if d >= 0 else 'less'} than {name}" for name, d in differences.items()]
    text = f"The best feature separates its documents with AUROC {row['auroc_feature']:.2f}"
    if is_missing(row["feature_beyond_expert"]):
        compared.insert(0, "no expert to compare with")
    return f"{text}: {', '.join(compared)}"


def _rise(row: Mapping[str, Any]) -> str:
    ends = {
        CONFIRMED: "That is more than without others of the same load and more than on other topics: causally confirmed",
        NOT_CONFIRMED: "That does not set it apart: not causally confirmed",
    }
    rise = {"delta_nats": row["ablation_delta_nats"], "ci_low": row["ablation_low"], "ci_high": row["ablation_high"]}
    end = ends.get(row["causal"], f"That {row['causal']}")
    return f"Without {_unit(row) or 'it'} the loss on the topic changes by {rise_text(rise, 3)}. {end}"
