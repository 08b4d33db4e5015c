"""Small runs to compare, with known differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
import pandas as pd

from moe_probe.core.results import Result
from moe_probe.experts.topics import expert_topics
from moe_probe.experts.usage import layer_usage
from moe_probe.recording.trace import Trace
from moe_probe.studies.compare import ComparedRun
from moe_probe.studies.verdicts import topic_verdicts
from moe_probe.testing import PlantedExpert, planted_routing, write_routing
from moe_probe.testing.planted import PlantedRouting
from support.routing import RoutingOptions

ADDED = PlantedExpert(1, 5, "topic", 2)


def routing(*planted: PlantedExpert, seed: int = 0, **settings: Unpack[RoutingOptions]) -> PlantedRouting:
    """Six topics of 20 documents, two layers of 8 experts; the same seed draws the same documents and tokens."""
    shape: RoutingOptions = {"documents_per_topic": 20, "tokens": 80, "n_layers": 2, "num_experts": 8, "lift": 3.0}
    shape.update(settings)
    return planted_routing(planted=planted, seed=seed, **shape)


def permuted(given: PlantedRouting, seed: int = 1) -> tuple[PlantedRouting, np.ndarray]:
    """The same routing with the experts of every layer renumbered; the numbers [layer, old] -> new."""
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(8) for _ in given.layers])
    experts = np.stack([order[i][given.experts[:, i]] for i in range(len(order))], axis=1)
    return replace(given, experts=experts.astype(given.experts.dtype)), order


def write_run(root: Path, given: PlantedRouting, *, permutations: int = 199, label: str = "topic") -> Path:
    """A run directory with its trace and the results that a comparison starts from."""
    trace = write_routing(root / "trace", given)
    for result in results_of(trace, permutations=permutations, label=label).values():
        result.save(root / "results")
    return root


def results_of(trace: Trace, *, permutations: int = 199, label: str = "topic") -> dict[str, Result]:
    """Lifts, layers and verdicts of a trace."""
    topics = expert_topics(trace, permutations=permutations, label=label)
    found = (topics, layer_usage(trace, permutations=permutations, label=label), topic_verdicts(topics))
    return {r.name: r for r in found}


def side(root: Path, name: str, given: PlantedRouting, *, label: str = "topic", **manifest: object) -> ComparedRun:
    """A side of a comparison; `manifest` changes what its trace says of itself."""
    trace = write_routing(root / name, given)
    changed = trace.manifest.model_copy(update=manifest)
    return ComparedRun(name, changed, results_of(trace, label=label), label, trace)


def add_saes(root: Path) -> None:
    """Measures of SAEs of two widths on one layer, and their features, as `sae eval` and `label` leave them."""
    rows = [
        {
            "sae": f"layer_01/width_{w:05d}",
            "layer": 1,
            "width": w,
            "hook": "router_input",
            "architecture": "topk",
            "k": 4,
            "experts": "",
            "fvu": fvu,
            "dead": 0.0,
            "ce_recovered": ce,
            "ce_recovered_low": ce - 0.02,
            "ce_recovered_high": ce + 0.02,
        }
        for w, fvu, ce in ((16, 0.4, 0.7), (64, 0.2, 0.9))
    ]
    Result("sae_quality", pd.DataFrame(rows)).save(root / "results")
    parts = []
    for width, good, carried in ((16, 4, 1), (64, 48, 2)):
        number = np.arange(width)
        parts.append(
            pd.DataFrame(
                {
                    "sae": f"layer_01/width_{width:05d}",
                    "feature": number,
                    "density": 0.1,
                    "good": number < good,
                    "topic": [f"topic-{i}" if i < 3 else "" for i in number],
                    "topic_ci_low": 0.5,
                    "auroc_topic": np.where(number < carried, 0.95, 0.7),
                }
            )
        )
    Result("features", pd.concat(parts, ignore_index=True)).save(root / "results")
