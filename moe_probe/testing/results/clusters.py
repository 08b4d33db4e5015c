"""Planted clusters and maps of experts, documents and, where routing was kept, tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.testing.results.run import PlantedRun

if TYPE_CHECKING:
    import pandas as pd


def cluster_tables(run: PlantedRun) -> dict[str, pd.DataFrame]:
    """Draw ``clusters, maps, cluster_summary`` and ``cluster_agreement``."""
    import pandas as pd

    maps = _maps(run)
    sizes = maps["unit"].value_counts(sort=False)
    summary = pd.DataFrame(
        {
            "unit": list(sizes.index),
            "n": sizes.tolist(),
            "k": 3,
            "silhouette": 0.3,
            "silhouette_null_95": 0.1,
            "stability_ami": np.linspace(0.4, 0.9, len(sizes)),
        }
    )
    agreement = pd.DataFrame(
        {
            "unit": list(sizes.index),
            "label": "topic",
            "ami": 0.2,
            "ami_null": 0.0,
            "ami_p": 0.01,
            "ari": 0.1,
            "ari_null": 0.0,
            "v_measure": 0.2,
            "v_null": 0.01,
            "n": summary["n"],
        }
    )
    clusters = maps[["unit", "layer", "id", "cluster"]]
    return {"clusters": clusters, "maps": maps, "cluster_summary": summary, "cluster_agreement": agreement}


def _maps(run: PlantedRun) -> pd.DataFrame:
    import pandas as pd

    rng, documents = run.rng, run.trace.documents["topic"].to_numpy(dtype=object)
    labels = run.choice(run.topics, len(run.experts))
    parts = [
        pd.DataFrame({"unit": "expert", "layer": run.experts[:, 0], "id": run.experts[:, 1], "label": labels}),
        pd.DataFrame({"unit": "document", "layer": -1, "id": np.arange(len(documents)), "label": documents}),
    ]
    if "routing" in run.trace.manifest.kept:
        rows = np.sort(rng.permutation(run.trace.n_tokens)[:300])
        document = run.trace.tokens(["document"])["document"].to_numpy()[rows]
        parts.append(pd.DataFrame({"unit": "token", "layer": -1, "id": rows, "label": documents[document]}))
    maps = pd.concat(parts, ignore_index=True)
    layer = maps["layer"].where(maps["layer"] >= 0).astype("Int64")
    return maps.assign(layer=layer, x=rng.normal(size=len(maps)), y=rng.normal(size=len(maps)), cluster=0)
