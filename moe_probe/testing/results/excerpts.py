"""Planted excerpts: two of every expert, a few of some features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.testing.results.run import PlantedRun

if TYPE_CHECKING:
    import pandas as pd

_TOKENS = 16


def excerpt_tables(run: PlantedRun) -> dict[str, pd.DataFrame]:
    """Draw ``expert_contexts`` and ``feature_cards``."""
    import pandas as pd

    contexts = [
        {
            "layer": int(layer),
            "expert": int(expert),
            "rank": rank,
            "document": "document-0000",
            "topic": run.topics[0],
            "position": 1,
            "weight": 0.5,
            **_excerpt(run, "weights"),
        }
        for layer, expert in run.experts
        for rank in (1, 2)
    ]
    cards = [
        {
            "layer": layer,
            "width": run.width,
            "feature": feature,
            "chosen": ("topic", "best", "drawn")[feature % 3],
            "part": part,
            "document": "document-0000",
            "row": 0,
            **_excerpt(run, "activations"),
            "sae": sae,
        }
        for layer, sae in run.saes
        for feature in range(min(run.width, 12))
        for part in ("strongest", "weak", "silent")
    ]
    return {"expert_contexts": pd.DataFrame(contexts), "feature_cards": pd.DataFrame(cards)}


def _excerpt(run: PlantedRun, strengths: str) -> dict[str, list[str] | list[float]]:
    """Draw tokens and, in the column `strengths`, their weights or activations."""
    values = np.where(run.rng.random(_TOKENS) < 0.3, run.rng.random(_TOKENS), 0.0)
    return {"tokens": [str(w) for w in run.choice(run.words, _TOKENS)], strengths: values.tolist()}
