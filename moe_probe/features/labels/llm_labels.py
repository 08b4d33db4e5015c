"""Evidence for a language model from a run, and its labels into the feature table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.progress import track
from moe_probe.features.describe import GOOD_SCORE
from moe_probe.features.evaluate import opened_saes
from moe_probe.features.firing import fire
from moe_probe.features.labels.excerpts import SILENT, Excerpts
from moe_probe.features.labels.llm import Endpoint, Estimate, Evidence, estimate, label_features
from moe_probe.sae.store import saes_of

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.recording.trace import Trace

#: Excerpts: to explain a feature by, and held-out ones, firing and silent, to try the label on.
_EXPLAIN, _TRY = 20, 15
#: Problems that are told one by one.
_TOLD = 5


def gather_evidence(run: Path, trace: Trace, cards: Result, *, seed: int = 0) -> tuple[Evidence, ...]:
    """Excerpts of the features that have cards: of training documents to explain, of held-out ones to try."""
    wanted = cards.table.groupby("sae", sort=False)["feature"].unique()
    found: list[Evidence] = []
    for item in track(opened_saes(run, trace), "gather excerpts", total=len(saes_of(run)), unit="SAEs"):
        if item.name not in wanted:
            continue
        train, held_out = (Excerpts(trace, fire(item.sae, r), seed=seed) for r in (item.train, item.held_out))
        for feature in wanted[item.name]:
            explain = train.of(int(feature), top=_EXPLAIN // 4, per_fifth=_EXPLAIN // 5, silent=0)
            tried = held_out.of(int(feature), top=0, per_fifth=_TRY // 5, silent=_TRY)
            silent = tuple(e for e in tried if max(e.activations) == 0)
            firing = tuple(e for e in tried if e.part != SILENT and max(e.activations) > 0)
            if explain and firing and silent:
                found.append(Evidence((item.name, int(feature)), tuple(explain), firing, silent))
    return tuple(found)


def cache_of(run: Path) -> Path:
    """Where a run keeps the answers of language models."""
    return run / "logs" / "llm_cache.jsonl"


def estimate_cost(run: Path, trace: Trace, cards: Result, endpoint: Endpoint, *, seed: int = 0) -> Estimate:
    """Requests, tokens and dollars of labelling the features that have cards."""
    return estimate(gather_evidence(run, trace, cards, seed=seed), endpoint, cache=cache_of(run), seed=seed)


def label_by_llm(run: Path, trace: Trace, features: Result, cards: Result, endpoint: Endpoint, *, seed: int = 0) -> Result:
    """Put a language model's labels in the place of rules, for the features that have cards.

    The score is the model's own detection score on held-out excerpts: excerpts, not tokens, so it is not to be compared
    with the score of a rule.

    Raises
    ------
    MoeProbeError
        As `label_features` does.
    """
    labels = label_features(gather_evidence(run, trace, cards, seed=seed), endpoint, cache=cache_of(run), seed=seed)
    table = features.table.copy()
    place = {key: i for i, key in enumerate(zip(table["sae"], table["feature"], strict=True))}
    given = [item for item in labels if item.label]
    for item in given:
        row = table.index[place[item.key]]
        table.loc[row, ["label", "label_rule", "label_source"]] = [item.label, "language model", "llm"]
        table.loc[row, "label_score"] = item.score
        table.loc[row, ["label_precision", "label_recall", "label_hard_score"]] = np.nan
        table.loc[row, "good"] = bool(item.score >= GOOD_SCORE)
    problems = [
        f"{endpoint.model} on feature {item.key[1]} of {item.key[0]}: {item.problem}." for item in labels if item.problem
    ]
    if len(problems) > _TOLD:
        problems = [
            *problems[:_TOLD],
            f"{len(problems) - _TOLD} further labels of {endpoint.model} are missing or unscored.",
        ]
    return replace(
        features,
        table=table,
        warnings=(*features.warnings, *problems),
        params=features.params | {"llm_model": endpoint.model, "llm_labels": len(given)},
    )
