"""Verdicts with all that is known: usage, words, features, and what happens without the unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.text import figure, is_missing
from moe_probe.core.units import UnitRef, format_members, parse_members
from moe_probe.studies.verdicts.rules import CLEAR, LIKELY, NEAR, UNTESTED, WEAK, grades

if TYPE_CHECKING:
    import pandas as pd

CONFIRMED, NOT_CONFIRMED, NOT_TESTED = "confirmed", "not confirmed", "not tested"
#: Knocked out, but without what a confirmation is compared with.
UNCONFIRMABLE = "cannot be confirmed"


@dataclass(frozen=True)
class FeatureRules:
    """What it takes for "feature only". All must hold, and no expert or group may have passed.

    Attributes
    ----------
    min_auroc, min_lower_bound : float
        Of held-out documents, and the lower end of its 95 % interval.
    tolerance : float
        A measured AUROC may lie this far below `min_auroc`; within it on either side the grade is "near the threshold".
    alpha : float
        Largest q of the feature's enrichment for the topic, where features were labelled.
    min_log2_beyond : float
        Smallest log2 ratio of the feature's firings to what the tokens of the topic's documents predict, as for experts; its
        interval must lie above 0.
    """

    min_auroc: float = 0.9
    tolerance: float = 0.02
    min_lower_bound: float = 0.8
    alpha: float = 0.05
    min_log2_beyond: float = 0.25


#: What a row says of its topic's best feature: column of the verdicts, column of the carriers.
_FEATURE_COLUMNS = {
    "auroc_feature": "auroc_document",
    "auroc_feature_low": "document_low",
    "feature_beyond_expert": "beyond_expert_document",
    "feature_beyond_expert_low": "beyond_expert_document_low",
    "feature_beyond_token": "beyond_token_document",
    "feature_beyond_token_low": "beyond_token_document_low",
    "feature_beyond_tokens": "beyond_tokens_document",
    "feature_beyond_tokens_low": "beyond_tokens_document_low",
    "feature_log2_beyond_words": "log2_beyond_words",
    "feature_log2_beyond_words_low": "log2_beyond_words_low",
}


def complete_verdicts(
    verdicts: Result,
    *,
    carriers: Result | None = None,
    features: Result | None = None,
    ablation: Result | None = None,
    rules: FeatureRules | None = None,
) -> Result:
    """Add the evidence of features and causes to verdicts from usage.

    "feature only" takes the place of "none" where the best feature for the topic tells its held-out documents with the AUROC
    that `rules` ask for, better than the best expert, the best single token and the best set of tokens do (paired intervals
    above 0), fires more in the topic's documents than their tokens predict, and is enriched for the topic. Where words do as
    well, the verdict stays "none" and the reason says so. Causes never change a verdict: they confirm it, or fail to, and the
    sentence says which.

    Parameters
    ----------
    verdicts : Result
        From `moe_probe.studies.verdicts.topic_verdicts`.
    carriers : Result, optional
        From `moe_probe.features.matching.match.match`.
    features : Result, optional
    ablation : Result, optional
        From `moe_probe.studies.ablation.knock_out`.

    Returns
    -------
    Result
        ``verdicts`` with ``auroc_feature``, ``ablation_delta_nats`` filled, and further columns: ``verdict_usage``
        (the verdict before features), ``feature`` (its SAE and number), ``auroc_feature_low,
        feature_beyond_expert, feature_beyond_token, feature_beyond_tokens`` (differences of AUROC),
        ``feature_log2_beyond_words`` (log2 of its firings over what tokens predict), each with ``_low``, ``ablation_low,
        ablation_high, ablation_unit``, ``causal`` (confirmed | not confirmed | cannot be confirmed (and
        why) | not tested), ``sentence``.
    """
    import pandas as pd

    rules = rules or FeatureRules()
    rows = []
    for row in verdicts.table.assign(grade=grades(verdicts.table)).to_dict("records"):
        row |= {"verdict_usage": row["verdict"], "causal": NOT_TESTED, "feature": "", "ablation_unit": ""}
        row |= dict.fromkeys((*_FEATURE_COLUMNS, "ablation_delta_nats", "ablation_low", "ablation_high"), np.nan)
        if carriers is not None:
            row |= _of_feature(row, carriers.table, None if features is None else features.table, rules)
        if ablation is not None:
            row |= _of_causes(row, ablation.table)
        rows.append(row | {"sentence": _sentence(row)})
    caption = verdicts.caption
    if carriers is not None:
        caption += (
            f' "feature only": no expert or group passes, but one SAE feature, chosen on training documents, '
            f"tells "
            f"held-out documents of the topic with an AUROC of at least {rules.min_auroc:g}, give or take "
            f"{rules.tolerance:g} (interval above {rules.min_lower_bound:g}), better than the best expert, the best "
            "token and the best set of up to 8 "
            "tokens, chosen in the same way, do (paired intervals above 0), and fires at least "
            f"{2**rules.min_log2_beyond:.2f} times as much as their tokens predict."
        )
    extra = tuple(c for r in (carriers, features, ablation) if r is not None for c in r.citations)
    return Result(
        "verdicts",
        pd.DataFrame(rows).astype({"layer": "Int64", "expert": "Int64"}),
        seed=verdicts.seed,
        params=verdicts.params | {f"feature_{k}": v for k, v in vars(rules).items()},
        caption=caption,
        warnings=verdicts.warnings,
        citations=tuple(dict.fromkeys([*verdicts.citations, *extra])),
    )


def _of_feature(
    row: dict[str, Any],
    carriers: pd.DataFrame,
    features: pd.DataFrame | None,
    rules: FeatureRules,
) -> dict[str, Any]:
    mine = carriers[(carriers["topic"] == row["topic"]) & (carriers["kind"] == "feature")]
    if mine.empty:
        return {}
    best = mine.iloc[0]
    out = {"feature": f"{best['source']}:{best['members']}"} | {
        to: best.get(of, np.nan) for to, of in _FEATURE_COLUMNS.items()
    }
    passes = (
        best["auroc_document"] >= rules.min_auroc - rules.tolerance
        and best["document_low"] >= rules.min_lower_bound
        and best["beyond_expert_document_low"] > 0
        and _enriched(best, features, rules)
    )
    if row["verdict"] == "none" and passes:
        said = (
            f"Feature {best['members']} of {best['source']} tells held-out documents with AUROC {best['auroc_document']:.2f}"
        )
        words = _explained_by_words(best, rules)
        if words:
            return out | {"reason": f"{said}, but {words}. {row['reason']}"}
        out |= {
            "verdict": "feature only",
            "grade": _grade(best, rules),
            "reason": f"{said}, {best['beyond_expert_document']:.2f} more than the best expert, and fires "
            f"{2 ** best['log2_beyond_words']:.2f} times as much as the topic's words predict. {row['reason']}",
        }
    return out


def _grade(best: pd.Series, rules: FeatureRules) -> str:
    if best["auroc_document"] < rules.min_auroc + rules.tolerance:
        return NEAR
    return CLEAR if best["document_low"] >= rules.min_auroc else LIKELY


def _explained_by_words(best: pd.Series, rules: FeatureRules) -> str:
    """What words do as well as the feature does, in words; "" where it does better than all of them."""
    if "log2_beyond_words" not in best or is_missing(best["log2_beyond_words"]):
        return "words were not ruled out (moe-probe match RUN compares features with tokens)"
    for rival, name in (("token", "the best single token"), ("tokens", "a set of up to 8 tokens")):
        difference, low = (best.get(f"beyond_{rival}_document{end}", np.nan) for end in ("", "_low"))
        if not is_missing(difference) and not low > 0:  # without a difference no such token or set was found
            return f"no better, by its interval, than {name} (AUROC {best['auroc_document'] - difference:.2f})"
    log2, low = best["log2_beyond_words"], best["log2_beyond_words_low"]
    if log2 < rules.min_log2_beyond or not low > 0:
        return f"it fires {2**log2:.2f} times as much as the topic's words alone predict (at least {2**low:.2f})"
    return ""


def _enriched(best: pd.Series, features: pd.DataFrame | None, rules: FeatureRules) -> bool:
    if features is None:
        return True
    mine = features[(features["sae"] == best["source"]) & (features["feature"] == int(best["members"]))]
    return bool(len(mine) and mine["topic"].iloc[0] == best["topic"] and mine["topic_q"].iloc[0] <= rules.alpha)


def _of_causes(row: dict[str, Any], ablation: pd.DataFrame) -> dict[str, Any]:
    """The rise without the unit of the verdict: its experts, or its feature where the verdict is that."""
    mine = ablation[ablation["topic"] == row["topic"]]
    if row["verdict"] == "feature only":
        unit = UnitRef.parse(row["feature"])
        mine = mine[(mine["sae"] == unit.sae) & (mine["members"] == format_members(unit.members))]
    elif not is_missing(row["layer"]):
        members = format_members(parse_members(row["experts"]))
        mine = mine[(mine["sae"] == "") & (mine["layer"] == int(row["layer"])) & (mine["members"] == members)]
    else:
        return {}
    if mine.empty:
        return {}
    found = mine.iloc[0]
    return {
        "ablation_delta_nats": found["delta_nats"],
        "ablation_low": found["ci_low"],
        "ablation_high": found["ci_high"],
        "ablation_unit": found["unit"],
        "causal": confirmation(found),
    }


def confirmation(row: Mapping[str, Any]) -> str:
    """Say whether a row of ``ablation`` is confirmed, and where it cannot be, why.

    Parameters
    ----------
    row : mapping
        ``confirmed, n_controls, ci_low, beyond_others_low``; of results without the second or the last nothing is said about
        controls or other topics.

    Returns
    -------
    str
        "confirmed", "not confirmed", or "cannot be confirmed (the reason)". Confirmed asks for a rise above that
        without control units, and for intervals, which take two groups of documents.
    """
    if row["confirmed"]:
        return CONFIRMED
    if np.isnan(row["ci_low"]):
        return f"{UNCONFIRMABLE} (one group of documents)"
    if row.get("n_controls") == 0:
        return f"{UNCONFIRMABLE} (no control units)"
    if is_missing(row.get("beyond_others_low", 0.0)):
        return f"{UNCONFIRMABLE} (every other topic has one group of documents)"
    return NOT_CONFIRMED


def rise_text(row: Mapping[str, Any], digits: int = 4) -> str:
    """Rise of the loss with its interval, in words where a topic of one group of documents has none."""
    value = f"{row['delta_nats']:+.{digits}f} nats"
    if np.isnan(row["ci_low"]):
        return f"{value} (no interval: one group of documents)"
    return f"{value} [{row['ci_low']:+.{digits}f}, {row['ci_high']:+.{digits}f}]"


def _sentence(row: dict[str, Any]) -> str:
    """All evidence in one sentence."""
    unit = _unit(row)
    known = not is_missing(row["layer"])
    no = {UNTESTED: "It cannot be said", WEAK: f"Hardly: {unit} is real but small"}.get(
        row["grade"], f"No; nearest is {unit}" if known else "No"
    )
    near = ", near the threshold" if row["grade"] == NEAR else ""
    parts = [
        {
            "expert": f"Yes: {unit}{near}",
            "group": f"No single one, but {unit} together{near}",
            "feature only": f"No expert, but {unit}{near}",
            "none": no,
        }[row["verdict"]]
    ]
    if known and not is_missing(row["log2_lift"]):
        who = "the nearest expert is " if row["verdict"] == "feature only" else ""
        parts.append(
            f"{who}used {2 ** row['log2_lift']:.2f} times as much as on an average topic "
            f"[{figure(2 ** row['ci_low'], '.2f', 'unknown')}, "
            f"{figure(2 ** row['ci_high'], '.2f', 'unknown')}]"
        )
        if not is_missing(row["log2_beyond_words"]):
            parts.append(f"{2 ** row['log2_beyond_words']:.2f} times as much as its words predict")
    if not is_missing(row["auroc_feature"]):
        difference = row["feature_beyond_expert"]
        against = (
            []
            if is_missing(difference)
            else [f"{abs(difference):.2f} {'more' if difference >= 0 else 'less'} than the best expert"]
        )
        words = (("feature_beyond_token", "the best token"), ("feature_beyond_tokens", "the best set of tokens"))
        against += [f"{row[column]:+.2f} on {name}" for column, name in words if not is_missing(row.get(column))]
        parts.append(
            f"the best feature tells its documents with AUROC {row['auroc_feature']:.2f} "
            f"({', '.join(against) or 'no expert to compare with'})"
        )
    if row["causal"] != NOT_TESTED:
        end = {
            CONFIRMED: "more than without others of the same load and more than on other topics: causally confirmed",
            NOT_CONFIRMED: "which does not set it apart: not causally confirmed",
        }.get(row["causal"], f"which {row['causal']}")
        rise = rise_text(
            {"delta_nats": row["ablation_delta_nats"], "ci_low": row["ablation_low"], "ci_high": row["ablation_high"]}, 3
        )
        parts.append(f"without it the loss on the topic changes by {rise}, {end}")
    return "; ".join(parts) + "."


def _unit(row: dict[str, Any]) -> str:
    if row["verdict"] == "feature only":
        unit = UnitRef.parse(row["feature"])
        return f"feature {format_members(unit.members)} of {unit.sae}"
    if is_missing(row["layer"]):
        return ""
    experts = parse_members(row["experts"])
    return f"expert{'s' * (len(experts) > 1)} {', '.join(map(str, experts))} of layer {int(row['layer'])}"
