"""Planted tables on units: what predicts a topic, and what happens without the unit of its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.testing.results.run import PlantedRun

if TYPE_CHECKING:
    import pandas as pd

_SAE = "layer_00/width_00064"


def unit_tables(run: PlantedRun, verdicts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Draw ``carriers`` and ``ablation``.

    Parameters
    ----------
    run : PlantedRun
    verdicts : pandas.DataFrame
        Topics with the layer and number of their best expert.

    Returns
    -------
    dict of str to pandas.DataFrame
    """
    return {"carriers": _predictors(run, verdicts), "ablation": _ablation(run, verdicts)}


def _predictors(run: PlantedRun, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Draw how well experts, features and tokens, alone and together, predict every topic."""
    import pandas as pd

    rows = []
    for i, (topic, layer, expert) in enumerate(verdicts[["topic", "layer", "expert"]].itertuples(index=False)):
        for kind, source, members in (
            ("expert", f"layer {layer}", str(expert)),
            ("experts", f"layer {layer}", f"{expert}+0"),
            ("feature", _SAE, str(i)),
            ("features", _SAE, "1+2"),
            ("token", "tokens", "5"),
            ("tokens", "tokens", "5+7"),
        ):
            unit = {"kind": kind, "layer": layer, "source": source, "members": members}
            rows.append({"topic": topic, **unit, "label": topic})
    table, rng, n = pd.DataFrame(rows), run.rng, len(rows)
    single = table["kind"].eq("expert").to_numpy()
    for name, low, high, spread in (
        ("auroc_document", 0.6, 0.95, 0.03),
        ("auroc_token", 0.5, 0.7, 0.02),
        ("beyond_expert_document", 0.0, 0.2, 0.05),
        ("beyond_token_document", 0.1, 0.3, 0.05),
        ("beyond_tokens_document", 0.1, 0.2, 0.05),
        ("log2_beyond_words", 0.5, 1, 0.1),
    ):
        value, ends = rng.uniform(low, high, n), name.removeprefix("auroc_")
        value = np.where(single, 0.0, value) if name == "beyond_expert_document" else value
        table = table.assign(**run.interval(value, (name, f"{ends}_low", f"{ends}_high"), spread))
    return table


def _ablation(run: PlantedRun, verdicts: pd.DataFrame) -> pd.DataFrame:
    """Draw the rise of the loss on every topic without each verdict's expert, and without a feature."""
    import pandas as pd

    rows = []
    for i, (topic, layer, expert) in enumerate(verdicts[["topic", "layer", "expert"]].itertuples(index=False)):
        for unit, members, sae in (
            (f"layer {layer} expert {expert}", str(expert), ""),
            (f"{_SAE} feature {i}", str(i), _SAE),
        ):
            rows += [
                {
                    "layer": layer,
                    "unit": unit,
                    "topic": t,
                    "members": members,
                    "sae": sae,
                    "how": "mask",
                    "held_to": t == topic,
                    "control_nats": 0.001,
                    "confirmed": t == topic and i % 2 == 0,
                }
                for t in verdicts["topic"].tolist()
            ]
    # topics may share a unit: it is knocked out once, and tested for each of them
    table = pd.DataFrame(rows).sort_values("held_to", kind="stable").drop_duplicates(["unit", "topic"], keep="last")
    table = table.sort_index().reset_index(drop=True)
    for name, low, high in (
        ("delta_nats", "ci_low", "ci_high"),
        ("beyond_control", "beyond_control_low", "beyond_control_high"),
        ("beyond_others", "beyond_others_low", "beyond_others_high"),
    ):
        table = table.assign(**run.interval(run.rng.normal(0.01, 0.01, len(table)), (name, low, high), 0.005))
    return table
