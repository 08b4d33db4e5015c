"""Labels of the features of a run's SAEs, by rules."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from moe_probe.core.progress import Say, track
from moe_probe.core.results import Result
from moe_probe.features.describe import GOOD_HARD_SCORE, GOOD_SCORE, FeatureTables, LabelSettings, describe_features
from moe_probe.features.labels.context import token_context
from moe_probe.features.run_saes import RunSaes

if TYPE_CHECKING:
    from moe_probe.recording.rundir import RunDirectory

_SOURCES = (
    "Grootendorst 2022, c-TF-IDF (BERTopic), arXiv:2203.05794",
    "Paulo et al. 2024, detection scoring of feature labels, arXiv:2410.13928",
    "Westfall and Young 1993, step-down max-T",
    "Benjamini and Hochberg 1995, false discovery rate, DOI 10.1111/j.2517-6161.1995.tb02031.x",
)
_CARDS_CAPTION = (
    "Excerpts of held-out documents around firings of all strengths, and around tokens on which the feature is silent, with "
    "the activation on each token."
)


def label(
    run: RunDirectory,
    settings: LabelSettings | None = None,
    *,
    saes: RunSaes | None = None,
    say: Say = print,
) -> tuple[Result, Result]:
    """Label the features of all SAEs of a run by rules, and score the labels on held-out documents.

    Parameters
    ----------
    run : RunDirectory
    settings : LabelSettings, optional
    saes : RunSaes, optional
        Of the run; pass the same object to `evaluate` and `match` to encode its documents once.
    say : callable
        Takes a line of progress.

    Returns
    -------
    features, feature_cards : Result
        With the columns of `describe_features`, and ``sae``, the SAE's folder.

    Raises
    ------
    MoeProbeError
        When there are no SAEs.
    """
    import pandas as pd

    from moe_probe.experts.topic_groups import other_labels

    settings = settings or LabelSettings()
    columns = tuple(dict.fromkeys([settings.by, *other_labels(run.usage(), label=settings.by)]))
    settings = replace(settings, finer=settings.finer if settings.finer in columns else None)
    context = token_context(run, labels=columns)
    saes = saes or RunSaes(run)
    tables: dict[str, FeatureTables] = {}
    for item in track(saes, "label features", unit="SAEs"):
        started = time.monotonic()
        tables[item.name] = described = describe_features(run, item.sae, context, saes.firings(item), settings)
        say(
            f"{item.name}: {int(described.features['good'].sum()):,} of {len(described.features):,} features have a good label "
            f"({time.monotonic() - started:.1f} s)"
        )
    made_with = asdict(settings)
    shared: dict[str, Any] = {
        "seed": made_with.pop("seed"),
        "params": {key: made_with[key] for key in ("by", "finer", "strata", "permutations", "alpha")}
        | {"factors": [f.name for f in context.factors], "good_score": GOOD_SCORE, "good_hard_score": GOOD_HARD_SCORE},
    }
    features = Result(
        "features",
        pd.concat([t.features.assign(sae=name) for name, t in tables.items()], ignore_index=True),
        warnings=tuple(dict.fromkeys(warning for t in tables.values() for warning in t.warnings)),
        citations=_SOURCES,
        caption=_caption(settings.by, settings.strata),
        **shared,
    )
    cards = pd.concat([t.cards.assign(sae=name) for name, t in tables.items()], ignore_index=True)
    return features, Result("feature_cards", cards, caption=_CARDS_CAPTION, **shared)


def _caption(by: str, strata: str | None) -> str:
    within = f" within each {strata}" if strata else ""
    return (
        "Each label is a rule (words, pieces, the word before, kinds of token, positions, topics, words nearby), made on "
        "training documents and scored on held-out ones. Label score: balanced accuracy of telling firing tokens, of all "
        "strengths, from silent ones. Hard score: the same against tokens on which only the feature of nearest decoder "
        f"direction fires. Good: at least {GOOD_SCORE:g} and {GOOD_HARD_SCORE:g}. {by.capitalize()}: Welch's t of the "
        f"documents' firing rates, {by} against rest, labels permuted over groups of documents{within}; Benjamini-Hochberg over "
        "the features of an SAE. AUROC: of held-out documents."
    )
