"""A small table for every plot, and how it is drawn."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from moe_probe.report.plots import maps as plots_maps
from moe_probe.report.plots import routing as plots_routing
from moe_probe.report.plots import saes as plots_saes
from moe_probe.report.plots import summary as plots_summary
from moe_probe.report.plots import tree as plots_tree
from moe_probe.report.plots import units as plots_units

EVIL = "evil\x1b[31m"
LAYERS, EXPERTS, TOPICS = (2, 5), range(4), ("art", EVIL, "law")


def grid(**columns: object) -> pd.DataFrame:
    """Make a table of all layers, experts and topics, with further columns."""
    table = pd.DataFrame(itertools.product(LAYERS, EXPERTS, TOPICS), columns=["layer", "expert", "topic"])
    return table.assign(**columns)


def tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    lifts = grid(
        log2_lift=rng.normal(size=24), significant=[True, True, False] * 8, replicated=[True, False] * 12, q_value=0.01
    )
    pairs = pd.DataFrame(itertools.combinations(EXPERTS, 2), columns=["expert_a", "expert_b"])
    factors = pd.DataFrame(
        itertools.product(LAYERS, ("token first", "topic first"), (("token", 0.3), ("topic", -0.1))),
        columns=["layer", "order", "both"],
    )
    classes = pd.DataFrame(
        {
            "layer": [2, 5, 5],
            "expert": [3, 1, 0],
            "token_class": ["digits", "names", "names"],
            "log2_lift": [1.0, 2.0, 3.0],
            "significant": [False, True, False],
            "q_value": [0.5, 0.01, 0.2],
        }
    )
    load = pd.DataFrame(itertools.product(LAYERS, EXPERTS), columns=["layer", "expert"]).assign(
        load=[0, 0.5, 0.25, 0.25] * 2
    )
    half = np.full(2, 0.5)
    quality = pd.DataFrame(
        {
            "layer": [2, 5],
            "width": [64, 256],
            "l0": [16.0, 16.0],
            "fvu": [0.2, 0.1],
            "ce_recovered": half,
            "ce_recovered_low": half - 0.1,
            "ce_recovered_high": half + 0.1,
        }
    )
    carriers = pd.DataFrame(itertools.product(plots_units.KINDS, TOPICS), columns=["kind", "topic"])
    for name in ("document", "token"):
        carriers = carriers.assign(**{f"auroc_{name}": 0.8, f"{name}_low": 0.7, f"{name}_high": 0.9})
    ablation = (
        grid()[["topic"]]
        .drop_duplicates()
        .assign(
            unit="layer 2, expert 1",
            delta_nats=[0.1, -0.2, 0.0],
            ci_low=[0.05, -0.3, -0.1],
            ci_high=[0.15, -0.1, 0.1],
            held_to=[True, False, False],
            confirmed=[True, False, False],
        )
    )
    return {
        "load_heatmap": load,
        "token_class_heatmap": classes,
        "ablation_matrix": ablation,
        "sae_pareto": quality,
        "topic_heatmap": lifts,
        "coactivation_heatmap": pd.concat([pairs.assign(layer=layer, lift=2.0) for layer in LAYERS]),
        "layer_profile": pd.DataFrame(
            {
                "layer": LAYERS,
                **{
                    name: [0.1, 0.2]
                    for name in (
                        "effective_experts",
                        "mi_topic_bits",
                        "mi_topic_null_bits",
                        "decode_accuracy",
                        "decode_baseline",
                    )
                },
            }
        ),
        "explained_bars": factors.assign(
            factor=[b[0] for b in factors["both"]], bits=[b[1] for b in factors["both"]], step=0
        ),
        "maps": pd.DataFrame({"unit": ["expert", "document"], "x": [0.0, 1.0], "y": [0.0, 1.0], "label": [EVIL, "art"]}),
        "prediction_bars": pd.DataFrame(
            {
                "layer": LAYERS,
                "width": [0, 0],
                "inputs": ["topic", "topic"],
                "recall": half,
                "recall_low": half,
                "recall_high": half,
            }
        ),
        "carriers": carriers,
        "topic_panels": lifts,
        "verdict_lifts": pd.DataFrame(
            {
                "topic": TOPICS,
                "verdict": ["expert", "none", "none"],
                "grade": ["clear", "weak", "untested"],
                "log2_lift": [1.5, 0.4, np.nan],
                "ci_low": [1.2, 0.3, np.nan],
                "ci_high": [1.8, 0.5, np.nan],
            }
        ),
        "purity_bars": pd.DataFrame(
            {
                "layer": [5, 5],
                "parent_width": 16,
                "child_width": 64,
                "nodes": 3,
                "purity": 0.2,
                "tree": ["this run", "parents of another seed"],
                "expected": 0.1,
                "ceiling": 0.3,
            }
        ),
    }


TABLES = tables()
PUBLIC = {
    name: item
    for module in (plots_routing, plots_saes, plots_maps, plots_summary, plots_tree, plots_units)
    for name, item in inspect.getmembers(module, inspect.isfunction)
    if item.__module__ == module.__name__ and not name.startswith("_")
}
FUNCTIONS = {name: PUBLIC[name] for name in TABLES}
ONE_PANEL = [name for name, item in FUNCTIONS.items() if "ax" in inspect.signature(item).parameters]


def draw(name: str, **options: object) -> Axes | np.ndarray:
    if name == "topic_panels":
        options["topics"] = TOPICS
    if name in ("topic_heatmap", "coactivation_heatmap"):
        options["layers"] = LAYERS
    return FUNCTIONS[name](TABLES[name], **options)
