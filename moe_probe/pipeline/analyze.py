"""The analyses of a trace, by name: a later one is one entry more in the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.results import Result

if TYPE_CHECKING:
    from moe_probe.trace import Trace


@dataclass(frozen=True)
class Settings:
    """What the analyses need from a run's settings."""

    by: str = "topic"
    strata: str | None = None
    permutations: int = 1000
    alpha: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Analysis:
    """One analysis: what it is called, what of the trace it needs, and what computes it.

    ``compute(trace, settings, done)`` gets the results of the analyses before it by name.
    """

    name: str
    needs: str
    compute: Callable[[Trace, Settings, Mapping[str, Result]], Result]


def _layers(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.usage import layer_usage

    return layer_usage(trace, label=settings.by, permutations=settings.permutations, strata=settings.strata,
                       seed=settings.seed)


def _experts(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.usage import expert_usage

    return expert_usage(trace)


def _coactivation(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.usage import coactivation_table

    return coactivation_table(trace)


def _expert_topics(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.alignment import expert_topics

    return expert_topics(trace, label=settings.by, permutations=settings.permutations, strata=settings.strata,
                         alpha=settings.alpha, seed=settings.seed)


def _verdicts(trace: Trace, settings: Settings, done: Mapping[str, Result]) -> Result:
    from moe_probe.verdicts import topic_verdicts

    return topic_verdicts(done["expert_topics"], alpha=settings.alpha)


#: In order; each may read the results of those above it.
ANALYSES = (
    Analysis("layers", "usage", _layers),
    Analysis("experts", "usage", _experts),
    Analysis("coactivation", "routing", _coactivation),
    Analysis("expert_topics", "usage", _expert_topics),
    Analysis("verdicts", "usage", _verdicts),
)


def analyze(
    trace: Trace, directory: str | Path, *, settings: Settings | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Result]:
    """Run every analysis that the trace allows and save its table.

    Parameters
    ----------
    directory : str or Path
        Where ``<name>.parquet`` and ``<name>.json`` go, usually ``RUN/results``.
    say : callable
        Told, in a sentence, what is being done.

    Returns
    -------
    dict of str to Result

    Raises
    ------
    MoeProbeError
        When an analysis cannot be done with this corpus (one topic only, say); results written
        before stay.
    """
    settings = settings or Settings()
    done: dict[str, Result] = {}
    for analysis in ANALYSES:
        if analysis.needs == "routing" and "routing" not in trace.manifest.kept:
            say(f"{analysis.name}: left out, the trace holds counts per document only")
            continue
        started = time.monotonic()
        result = analysis.compute(trace, settings, done)
        result.save(directory)
        done[analysis.name] = result
        say(f"{analysis.name}: {len(result.table):,} rows in {time.monotonic() - started:.1f} s")
        for warning in result.warnings:
            say(f"  note: {warning}")
    return done
