"""Result tables as a run leaves them, drawn at random: for tests and benchmarks of what reads results.

In comes a trace, which gives layers, experts, topics and documents; out go tables with the names, columns and types of real
results (`planted_results`). No number in them was measured.

- `run` what all tables are drawn for: layers, experts, topics, words, SAEs, and the random numbers.
- `experts` tables on experts, layers and pairs; `features` on SAE features; `units` what predicts a topic, and knock-outs.
- `excerpts` excerpts of experts and features; `clusters` clusters and maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.results import Result
from moe_probe.testing.results.clusters import cluster_tables
from moe_probe.testing.results.excerpts import excerpt_tables
from moe_probe.testing.results.experts import pair_tables, usage_tables
from moe_probe.testing.results.features import feature_tables
from moe_probe.testing.results.run import PlantedRun
from moe_probe.testing.results.units import unit_tables

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

__all__ = ["planted_results"]

_CAPTION = "Planted: drawn at random, not measured."
_SOURCES = ("Mann and Whitney 1947, guessing power (AUROC), DOI 10.1214/aoms/1177730491",)


def planted_results(
    trace: Trace,
    directory: str | Path,
    *,
    words: Sequence[str] = ("one", " two", " three"),
    width: int = 64,
    seed: int = 0,
) -> list[Result]:
    """Write the tables of a whole run, features included, for the layers, experts and topics of a trace.

    Parameters
    ----------
    trace : Trace
        Gives layers, experts, topics and documents; its routing is not read.
    directory : str or Path
        Where tables go, ``RUN/results``.
    words : sequence of str
        Tokens of all contexts and labels.
    width : int
        Features of each of two SAEs.
    seed : int
        Seed of all numbers.

    Returns
    -------
    list of Result
    """
    from moe_probe.studies.verdicts import complete_verdicts, topic_verdicts

    run = PlantedRun.of(trace, words, width=width, seed=seed)
    params = _params(len(trace.documents), len(run.topics))

    def named(tables: Mapping[str, pd.DataFrame]) -> dict[str, Result]:
        return {
            name: Result(name, table, params.get(name, {}), seed, _CAPTION, citations=_SOURCES)
            for name, table in tables.items()
        }

    results = named(usage_tables(run))
    verdicts = topic_verdicts(results["expert_topics"])
    results |= named(pair_tables(run) | unit_tables(run, verdicts.table) | feature_tables(run))
    results |= named(excerpt_tables(run) | cluster_tables(run))
    results["verdicts"] = complete_verdicts(
        verdicts, carriers=results["carriers"], features=results["features"], ablation=results["ablation"]
    )
    for result in results.values():
        result.save(directory)
    return list(results.values())


def _params(n_documents: int, n_topics: int) -> dict[str, dict[str, Any]]:
    """Parameters of the results that readers ask for, by the name of the result."""
    return {
        "expert_topics": {
            "label": "topic",
            "strata": None,
            "permutations": 99,
            "alpha": 0.05,
            "groups": n_documents,
            "topics": n_topics,
            "halves": "drawn by seed",
            "model_p": 0.01,
        },
        "features": {"by": "topic", "finer": None, "good_score": 0.8, "good_hard_score": 0.7},
        "ablation": {"documents": 12, "tokens": 3000, "loss_nats": 2.5},
    }
