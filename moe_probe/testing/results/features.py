"""Planted tables on the features of two SAEs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.testing.results.run import PlantedRun

if TYPE_CHECKING:
    import pandas as pd

_QUALITY = {
    "hook": "router_input",
    "fvu": 0.2,
    "l0": 16.0,
    "dead": 0.05,
    "dense": 0.01,
    "redundancy": 0.3,
    "ce_recovered": 0.9,
    "ce_recovered_low": 0.85,
    "ce_recovered_high": 0.95,
    "ce_recovered_mean": 0.9,
    "train_seconds": 3.0,
}


def feature_tables(run: PlantedRun) -> dict[str, pd.DataFrame]:
    """Draw ``features, sae_quality`` and ``matches``."""
    import pandas as pd

    features, quality, matches = [], [], []
    for layer, sae in run.saes:
        features.append(_features(run, layer, sae))
        quality.append({"sae": sae, "layer": layer, "width": run.width, **_QUALITY})
        matches += [_matches(run, layer, sae, rank) for rank in (1, 2, 3)]
    return {
        "features": pd.concat(features, ignore_index=True),
        "sae_quality": pd.DataFrame(quality),
        "matches": pd.concat(matches, ignore_index=True),
    }


def _features(run: PlantedRun, layer: int, sae: str) -> pd.DataFrame:
    import pandas as pd

    rng, n = run.rng, run.width
    topic = run.choice([*run.topics, ""], n)
    return pd.DataFrame(
        {
            "layer": layer,
            "width": n,
            "feature": np.arange(n),
            "label": run.choice(run.words, n),
            "label_score": rng.uniform(0.5, 1, n),
            "topic": topic,
            "auroc_topic": rng.uniform(0.5, 1, n),
            "density": rng.uniform(0, 0.1, n),
            "top_tokens": " ".join(run.words),
            "label_rule": rng.choice(["token", "word"], n),
            "label_precision": 0.7,
            "label_recall": 0.4,
            "label_hard_score": 0.7,
            "good": rng.random(n) < 0.4,
            **run.interval(rng.uniform(0, 2, n), ("topic_log2_lift", "topic_ci_low", "topic_ci_high")),
            "topic_q": 0.01,
            "nearest": 0,
            "nearest_cosine": 0.3,
            "max_activation": 1.0,
            "sae": sae,
        }
    )


def _matches(run: PlantedRun, layer: int, sae: str, rank: int) -> pd.DataFrame:
    import pandas as pd

    rng, n = run.rng, len(run.experts)
    return pd.DataFrame(
        {
            "layer": run.experts[:, 0],
            "expert": run.experts[:, 1],
            "width": run.width,
            "feature": rng.integers(0, run.width, n),
            "rank": rank,
            "q_value": 0.01,
            "heldout_score": rng.uniform(0.5, 0.9, n),
            "heldout_bits": rng.uniform(0, 0.3, n),
            "heldout_lift": 3.0,
            "precision": 0.6,
            "recall": 0.2,
            "significant": rng.random(n) < 0.5,
            "router_cosine": 0.1,
            "sae": sae,
            "sae_layer": layer,
            "label": run.words[0],
        }
    )
