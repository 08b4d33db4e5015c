"""How much the lift of every topic's best expert differs between two runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.stats import GroupUsage, Resamples, half_selection
from moe_probe.core.text import is_missing
from moe_probe.core.units import parse_members
from moe_probe.studies.compare.compared_run import ComparedRun
from moe_probe.studies.compare.differences import (
    SOURCES,
    Difference,
    Estimate,
    difference_table,
    from_draws,
    from_intervals,
    interval_caption,
)
from moe_probe.studies.compare.pairing import Pairing, pair_runs, resample
from moe_probe.studies.compare.settings import ComparisonSettings
from moe_probe.studies.compare.verdicts import best_units

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


def compare_topics(
    a: ComparedRun, b: ComparedRun, *, pairing: Pairing | None = None, settings: ComparisonSettings | None = None
) -> Result:
    """Compare, for every topic, the log2 lift of its best expert (or group) in one run with that in the other.

    The units are those that the runs' verdicts name, as they stand: where both have been picked as the best of many, both
    are somewhat too high.

    Parameters
    ----------
    a, b : ComparedRun
        Under one label.
    pairing : Pairing, optional
        From `pair_runs`, where it is at hand.
    settings : ComparisonSettings, optional

    Returns
    -------
    Result
        ``comparison_topics``: ``side_a, side_b, topic, layer_a, experts_a, layer_b, experts_b, value_a, value_b`` (log2
        lifts on the documents compared), ``difference`` (b less a), ``ci_low, ci_high, p_value, q_value, beyond`` (q at
        most alpha), ``method``, ``n_groups`` (of the run with fewer; with traces only).

    Raises
    ------
    MoeProbeError
        When the runs differ in the label, or have fewer than two topics in common.
    """
    if a.label != b.label:
        raise MoeProbeError(
            f"topics of {a.name} and {b.name} cannot be compared",
            f"one is about {a.label}, the other about {b.label}",
            "compare the labels themselves",
        )
    settings = settings or ComparisonSettings()
    notes: tuple[str, ...] = ()
    if a.trace is None or b.trace is None:
        rows, method = _stored_topics(a, b), "stored intervals"
    else:
        pairing = pairing or pair_runs(a, b)
        rows, method, notes = _measured_topics(a, b, pairing, settings), pairing.method, pairing.notes
    return Result(
        "comparison_topics",
        difference_table(rows, alpha=settings.alpha).astype({"layer_a": "Int64", "layer_b": "Int64"}),
        seed=settings.seed,
        warnings=notes,
        citations=SOURCES,
        params=settings.params(a, b),
        caption=f"log2 lift of the best expert or group of every {a.label}, as each run's verdicts name it, second "
        f"run less first. Both are the best of many, and so both a little too high. {interval_caption(method, settings)}",
    )


def _measured_topics(a: ComparedRun, b: ComparedRun, pairing: Pairing, settings: ComparisonSettings) -> list[dict[str, Any]]:
    drawn = resample(pairing, n=settings.resamples, seed=settings.seed)
    units = [best_units(run).reindex(pairing.topics) for run in (a, b)]
    lifts = [
        _lifts(groups, weights, unit, pairing.topics)
        for groups, weights, unit in zip(pairing.groups, drawn, units, strict=True)
    ]
    rows = []
    for i, topic in enumerate(pairing.topics):
        sizes = [int(g.groups_per_topic[g.topics.index(topic)]) for g in pairing.groups]
        one, other = (Estimate(float(x[0, i]), x[1:, i], n - 1.0) for x, n in zip(lifts, sizes, strict=True))
        difference = from_draws(one, other, paired=pairing.paired)
        named = _named_units(a, b, topic, units)
        rows.append(named | difference._asdict() | {"method": pairing.method, "n_groups": min(sizes)})
    return rows


def _stored_topics(a: ComparedRun, b: ComparedRun) -> list[dict[str, Any]]:
    units = [best_units(run) for run in (a, b)]
    topics = sorted(set(units[0].index) & set(units[1].index))
    if len(topics) < 2:
        raise MoeProbeError(
            f"{a.name} and {b.name} cannot be compared",
            f"they have {len(topics)} {a.label}s in common",
            f"runs with two {a.label}s in common or more",
        )

    def difference(topic: str) -> Difference:
        one, other = ([float(u.loc[topic, name]) for name in ("log2_lift", "ci_low", "ci_high")] for u in units)
        return from_intervals(one, other)

    return [
        _named_units(a, b, topic, units) | difference(topic)._asdict() | {"method": "stored intervals"} for topic in topics
    ]


def _named_units(a: ComparedRun, b: ComparedRun, topic: str, units: Sequence[pd.DataFrame]) -> dict[str, Any]:
    row: dict[str, Any] = {"side_a": a.name, "side_b": b.name, "topic": topic}
    for letter, unit in zip("ab", units, strict=True):
        row |= {f"layer_{letter}": unit.loc[topic, "layer"], f"experts_{letter}": unit.loc[topic, "experts"]}
    return row


def _lifts(groups: GroupUsage, drawn: Resamples, units: pd.DataFrame, topics: tuple[str, ...]) -> np.ndarray:
    """log2 lift of every topic's unit for it, shape (n_resamples + 1, n_topics); NaN where a topic has no unit."""
    members = [_columns(groups, unit) for unit in units.itertuples()]
    shares = np.stack([groups.shares[:, m].sum(1) for m in members], axis=1)
    number = [groups.topics.index(t) for t in topics]
    means = np.stack([drawn.means(shares, np.flatnonzero(groups.topic == t)) for t in number], axis=1)
    half = half_selection(groups.selections, groups.topic, n_topics=len(groups.topics))
    out = np.full((len(means), len(topics)), np.nan)
    for i, (t, columns) in enumerate(zip(number, members, strict=True)):
        if len(columns):
            h = half[t, groups.layer_index[columns[0]]]
            out[:, i] = np.log2((means[:, i, i] + h) / (means[:, :, i].mean(1) + h))
    return out


def _columns(groups: GroupUsage, unit: Any) -> np.ndarray:
    """Columns of a unit's experts; none where the verdict names no unit."""
    if is_missing(unit.layer) or is_missing(unit.experts) or not str(unit.experts):
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero((groups.layer == int(unit.layer)) & np.isin(groups.expert, parse_members(unit.experts)))
