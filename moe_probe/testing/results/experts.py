"""Planted tables on experts, layers and pairs of experts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.testing.results.run import PlantedRun

if TYPE_CHECKING:
    import pandas as pd

_CLASSES = ("word start", "word inside", "number", "punctuation", "space", "code", "other script")
_KINDS = ("topics", "documents", "coactivation", "router", "weights")
_BITS = ("token", "previous_token", "position", "topic", "topic_given_token")
_ORDERS = (
    ("alone", ("token", "previous token", "position", "topic")),
    ("token first", ("token", "previous token", "position", "topic")),
    ("topic first", ("topic", "position", "token", "previous token")),
    ("beyond token", ("previous token", "position", "topic", "word sense")),
)


def usage_tables(run: PlantedRun) -> dict[str, pd.DataFrame]:
    """Draw ``expert_topics, expert_token_classes, experts, layers`` and ``explained``."""
    import pandas as pd

    rng, experts, layers = run.rng, run.experts, [m.layer for m in run.trace.layers]
    size, n = len(experts), len(layers)
    load = rng.dirichlet(np.full(size // n, 3.0), n).ravel()
    table = {
        "layer": experts[:, 0],
        "expert": experts[:, 1],
        "load": load,
        "mean_gate_weight": 0.2,
        **{f"bits_{factor}": rng.uniform(0, 1, size) for factor in _BITS},
        "explained_by": rng.choice(["token", "topic", "none"], size),
    }
    profile = {
        "layer": layers,
        "entropy_bits": 3.0,
        "effective_experts": size / n * rng.uniform(0.6, 0.9, n),
        "load_cv": 0.3,
        "max_over_mean": 2.0,
        "dead_experts": 0,
        "mi_topic_bits": rng.uniform(0, 0.1, n),
        "mi_topic_null_bits": 0.01,
        "mi_topic_p": 0.01,
        "decode_accuracy": rng.uniform(0.2, 0.9, n),
        "decode_baseline": 0.1,
    }
    explained = _explained(run, layers)
    return {
        "expert_topics": _crossed(run, run.topics, "topic"),
        "expert_token_classes": _crossed(run, _CLASSES, "token_class"),
        "experts": pd.DataFrame(table),
        "layers": pd.DataFrame(profile),
        "explained": explained,
    }


def _explained(run: PlantedRun, layers: Sequence[int]) -> pd.DataFrame:
    """Draw the bits that every factor explains, in every order of factors."""
    import pandas as pd

    rows = []
    for layer in layers:
        for order, factors in _ORDERS:
            for step, factor in enumerate(factors):
                bits = float(run.rng.uniform(0, 1.5 / (step + 1)))
                where = {"layer": layer, "order": order, "step": step, "factor": factor}
                rows.append(where | {"bits": bits, "ci_low": bits - 0.01, "ci_high": bits + 0.01, "base_bits": 3.5})
    return pd.DataFrame(rows)


def _crossed(run: PlantedRun, values: Sequence[str], name: str) -> pd.DataFrame:
    """Draw a test of every expert with every value of a label."""
    import pandas as pd

    rng, n = run.rng, len(run.experts) * len(values)
    log2 = rng.normal(0, 0.4, n) + 1.5 * (rng.random(n) < 0.01)
    q = np.where(np.abs(log2) > 0.8, 1e-4, 0.4)
    return pd.DataFrame(
        {
            "layer": run.experts[:, 0].repeat(len(values)),
            "expert": run.experts[:, 1].repeat(len(values)),
            name: np.tile(np.array(values, dtype=object), len(run.experts)),
            "share": rng.uniform(0.02, 0.2, n),
            "lift": 2**log2,
            **run.interval(log2, ("log2_lift", "ci_low", "ci_high")),
            "p_value": q / 2,
            "q_value": q,
            "replicated": log2 > 0.9,
            "significant": q < 0.05,
            "p_familywise": q,
            "auroc": rng.uniform(0.4, 0.9, n),
            "log2_lift_replication": log2 - 0.05,
            "detectable_log2_lift": 0.3,
            "n_groups": 24,
        }
    )


def pair_tables(run: PlantedRun) -> dict[str, pd.DataFrame]:
    """Draw ``coactivation`` and ``expert_similarity``: every pair of experts of a layer."""
    import pandas as pd

    rng, layers = run.rng, run.trace.layers
    pairs = np.concatenate([[(m.layer, a, b) for a, b in combinations(range(m.num_experts), 2)] for m in layers])
    both = pd.DataFrame({"layer": pairs[:, 0], "expert_a": pairs[:, 1], "expert_b": pairs[:, 2]})
    together = both.assign(tokens=rng.integers(1, 500, len(both)), lift=2 ** rng.normal(0, 0.7, len(both)))
    alike = [both.assign(kind=kind, similarity=rng.normal(0, 0.3, len(both))) for kind in _KINDS]
    return {"coactivation": together, "expert_similarity": pd.concat(alike, ignore_index=True)}
