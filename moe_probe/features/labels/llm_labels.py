"""Labels by a language model for the features of a run that have cards: evidence, cost, and the labelled table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.lock import locked
from moe_probe.core.progress import track
from moe_probe.features.describe import GOOD_SCORE
from moe_probe.features.firing import fire
from moe_probe.features.labels.excerpts import SILENT, Excerpts
from moe_probe.features.labels.llm import Evidence, estimate, label_features
from moe_probe.features.run_saes import RunSaes

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.features.labels.endpoint import Endpoint
    from moe_probe.features.labels.llm import Estimate
    from moe_probe.recording.rundir import RunDirectory

#: Excerpts to explain a feature by, and held-out ones, firing and silent, to test the label on.
_EXPLAIN, _TEST = 20, 15
#: Problems that are listed one by one.
_MAX_PROBLEMS = 5


def gather_evidence(run: RunDirectory, cards: Result, *, seed: int = 0) -> tuple[Evidence, ...]:
    """Draw excerpts of the features that have cards.

    Parameters
    ----------
    run : RunDirectory
    cards : Result
        ``feature_cards`` of the run.
    seed : int
        Of the choice of excerpts.

    Returns
    -------
    tuple of Evidence
        Excerpts of training documents to explain each feature by, and of held-out ones to test its label on.
    """
    wanted = cards.table.groupby("sae", sort=False)["feature"].unique()
    evidence: list[Evidence] = []
    for item in track(RunSaes(run), "gather excerpts", unit="SAEs"):
        if item.name not in wanted:
            continue
        train, held_out = (Excerpts(run, fire(item.sae, r), seed=seed) for r in (item.train, item.held_out))
        for feature in wanted[item.name]:
            explain = train.draw(int(feature), top=_EXPLAIN // 4, per_fifth=_EXPLAIN // 5, silent=0)
            tests = held_out.draw(int(feature), top=0, per_fifth=_TEST // 5, silent=_TEST)
            silent = tuple(e for e in tests if max(e.activations) == 0)
            firing = tuple(e for e in tests if e.part != SILENT and max(e.activations) > 0)
            if explain and firing and silent:
                evidence.append(Evidence((item.name, int(feature)), tuple(explain), firing, silent))
    return tuple(evidence)


def llm_cache(run: RunDirectory) -> Path:
    """Return the file in which a run keeps the answers of language models."""
    return run.path / "logs" / "llm_cache.jsonl"


def estimate_cost(run: RunDirectory, cards: Result, endpoint: Endpoint, *, seed: int = 0) -> Estimate:
    """Estimate requests, tokens and dollars of labelling the features that have cards.

    Parameters
    ----------
    run : RunDirectory
    cards : Result
        ``feature_cards`` of the run.
    endpoint : Endpoint
    seed : int

    Returns
    -------
    Estimate
    """
    return estimate(gather_evidence(run, cards, seed=seed), endpoint, cache=llm_cache(run), seed=seed)


@locked(lambda run, *_, **__: run.path)
def label_by_llm(run: RunDirectory, features: Result, cards: Result, endpoint: Endpoint, *, seed: int = 0) -> Result:
    """Replace rules by a language model's labels, for the features that have cards.

    The score is the model's own detection score on held-out excerpts: excerpts, not tokens, so that it is not comparable with
    the score of a rule.

    Parameters
    ----------
    run : RunDirectory
    features, cards : Result
        ``features`` and ``feature_cards`` of the run.
    endpoint : Endpoint
    seed : int

    Returns
    -------
    Result
        ``features`` with these labels.

    Raises
    ------
    MoeProbeError
        As `label_features` does.
    """
    labels = label_features(gather_evidence(run, cards, seed=seed), endpoint, cache=llm_cache(run), seed=seed)
    table = features.table.copy()
    row_of = {key: i for i, key in enumerate(zip(table["sae"], table["feature"], strict=True))}
    given = [item for item in labels if item.label]
    for item in given:
        row = table.index[row_of[item.key]]
        table.loc[row, ["label", "label_rule", "label_source"]] = [item.label, "language model", "llm"]
        table.loc[row, "label_score"] = item.score
        table.loc[row, ["label_precision", "label_recall", "label_hard_score"]] = np.nan
        table.loc[row, "good"] = bool(item.score >= GOOD_SCORE)
    problems = [
        f"{endpoint.model} on feature {item.key[1]} of {item.key[0]}: {item.problem}." for item in labels if item.problem
    ]
    if (more := len(problems) - _MAX_PROBLEMS) > 0:
        problems[_MAX_PROBLEMS:] = [f"{more} further labels of {endpoint.model} are missing or unscored."]
    return replace(
        features,
        table=table,
        warnings=(*features.warnings, *problems),
        params=features.params | {"llm_model": endpoint.model, "llm_labels": len(given)},
    )
