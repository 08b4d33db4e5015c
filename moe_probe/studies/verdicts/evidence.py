"""Verdicts from usage completed with the evidence of features and of knock-outs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.text import is_missing
from moe_probe.studies.verdicts.causes import NOT_TESTED, cause_cells
from moe_probe.studies.verdicts.rules import CLEAR, LIKELY, NEAR, grades
from moe_probe.studies.verdicts.sentence import verdict_sentence

if TYPE_CHECKING:
    import pandas as pd


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

    "feature only" takes the place of "none" where the best feature for the topic detects its held-out documents with the AUROC
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
        With the topic that each feature is enriched for.
    ablation : Result, optional
        From `moe_probe.studies.ablation.knock_out`.
    rules : FeatureRules, optional

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
            row |= _feature_cells(row, carriers.table, None if features is None else features.table, rules)
        if ablation is not None:
            row |= cause_cells(row, ablation.table)
        rows.append(row | {"sentence": verdict_sentence(row)})
    extra = tuple(c for r in (carriers, features, ablation) if r is not None for c in r.citations)
    return Result(
        "verdicts",
        pd.DataFrame(rows).astype({"layer": "Int64", "expert": "Int64"}),
        seed=verdicts.seed,
        params=verdicts.params | {f"feature_{k}": v for k, v in vars(rules).items()},
        caption=verdicts.caption if carriers is None else f"{verdicts.caption} {_caption(rules)}",
        warnings=verdicts.warnings,
        citations=tuple(dict.fromkeys([*verdicts.citations, *extra])),
    )


def _caption(rules: FeatureRules) -> str:
    return (
        '"feature only": no expert or group passes, but one SAE feature does, chosen on training documents. It detects held-out '
        f"documents of the topic with an AUROC of at least {rules.min_auroc:g}, give or take {rules.tolerance:g} (interval "
        f"above {rules.min_lower_bound:g}). It does so better than the best expert, the best token and the best set of up to 8 "
        "tokens, chosen in the same way (paired intervals above 0). It fires at least "
        f"{2**rules.min_log2_beyond:.2f} times as much as their tokens predict."
    )


def _feature_cells(
    row: dict[str, Any], predictors: pd.DataFrame, features: pd.DataFrame | None, rules: FeatureRules
) -> dict[str, Any]:
    """Cells of a verdict on the topic's best feature, which may change the verdict."""
    candidates = predictors[(predictors["topic"] == row["topic"]) & (predictors["kind"] == "feature")]
    if candidates.empty:
        return {}
    best = candidates.iloc[0]
    cells = {"feature": f"{best['source']}:{best['members']}"}
    cells |= {column: best.get(stored, np.nan) for column, stored in _FEATURE_COLUMNS.items()}
    passes = (
        best["auroc_document"] >= rules.min_auroc - rules.tolerance
        and best["document_low"] >= rules.min_lower_bound
        and best["beyond_expert_document_low"] > 0
        and _enriched(best, features, rules)
    )
    if row["verdict"] != "none" or not passes:
        return cells
    opening = (
        f"Feature {best['members']} of {best['source']} separates held-out documents with AUROC {best['auroc_document']:.2f}"
    )
    words = _explained_by_words(best, rules)
    if words:
        return cells | {"reason": f"{row['reason']} {opening}. {words}."}
    reason = (
        f"{opening}, {best['beyond_expert_document']:.2f} more than the best expert. It fires "
        f"{2 ** best['log2_beyond_words']:.2f} times as much as the topic's words predict. {row['reason']}"
    )
    return cells | {"verdict": "feature only", "grade": _grade(best, rules), "reason": reason}


def _grade(best: pd.Series, rules: FeatureRules) -> str:
    if best["auroc_document"] < rules.min_auroc + rules.tolerance:
        return NEAR
    return CLEAR if best["document_low"] >= rules.min_auroc else LIKELY


def _explained_by_words(best: pd.Series, rules: FeatureRules) -> str:
    """Say which words do as well as the feature does; "" where it does better than all of them."""
    if "log2_beyond_words" not in best or is_missing(best["log2_beyond_words"]):
        return "Words were not ruled out (moe-probe match RUN compares features with tokens)"
    for rival, name in (("token", "the best single token"), ("tokens", "a set of up to 8 tokens")):
        difference, low = (best.get(f"beyond_{rival}_document{end}", np.nan) for end in ("", "_low"))
        if not is_missing(difference) and not low > 0:  # without a difference no such token or set was found
            return f"That is no better, by its interval, than {name} (AUROC {best['auroc_document'] - difference:.2f})"
    log2, low = best["log2_beyond_words"], best["log2_beyond_words_low"]
    if log2 < rules.min_log2_beyond or not low > 0:
        return f"It fires {2**log2:.2f} times as much as the topic's words alone predict (at least {2**low:.2f})"
    return ""


def _enriched(best: pd.Series, features: pd.DataFrame | None, rules: FeatureRules) -> bool:
    if features is None:
        return True
    rows = features[(features["sae"] == best["source"]) & (features["feature"] == int(best["members"]))]
    return bool(len(rows) and rows["topic"].iloc[0] == best["topic"] and rows["topic_q"].iloc[0] <= rules.alpha)
