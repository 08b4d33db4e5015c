"""How much effects differ between two runs: of the best expert of every topic, and of every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.routing import entropy_bits, load_cv
from moe_probe.core.stats import GroupUsage, Resamples, half_selection
from moe_probe.core.text import is_missing
from moe_probe.core.units import parse_members
from moe_probe.experts.usage import layer_usage, topics_told
from moe_probe.studies.compare.intervals import (
    COLUMNS,
    SOURCES,
    Difference,
    from_draws,
    from_intervals,
    no_difference,
    with_q,
)
from moe_probe.studies.compare.pairing import Pairing, pair_sides, resample
from moe_probe.studies.compare.sides import Side, matched_layers
from moe_probe.studies.compare.verdicts import best_units

if TYPE_CHECKING:
    import pandas as pd

_STORED = "stored intervals"


def compare_topics(
    a: Side, b: Side, *, pairing: Pairing | None = None, resamples: int = 1000, seed: int = 0, alpha: float = 0.05
) -> Result:
    """Compare, for every topic, the log2 lift of its best expert (or group) in one run with that in the other.

    The units are those that the runs' verdicts name, as they stand: where both have been picked as the best of many, both
    are somewhat too high.

    Parameters
    ----------
    a, b : Side
        Under one label.
    pairing : Pairing, optional
        From `pair_sides`, where it is at hand.
    resamples, seed : int
    alpha : float
        False discovery rate for ``beyond``.

    Returns
    -------
    Result
        ``comparison_topics``: ``side_a, side_b, topic, layer_a, experts_a, layer_b, experts_b, value_a, value_b`` (log2
        lifts on the documents compared), ``difference`` (b less a), ``ci_low, ci_high, p_value, q_value, beyond`` (q at
        most alpha), ``method``.

    Raises
    ------
    MoeProbeError
        When the sides differ in the label, or have fewer than two topics in common.
    """
    if a.label != b.label:
        raise MoeProbeError(
            f"topics of {a.name} and {b.name} cannot be compared",
            f"one is about {a.label}, the other about {b.label}",
            "compare the labels themselves",
        )
    notes: tuple[str, ...] = ()
    if a.trace is None or b.trace is None:
        rows, method = _stored_topics(a, b), _STORED
    else:
        pairing = pairing or pair_sides(a, b)
        method, notes = pairing.method, pairing.notes
        rows = _measured_topics(a, b, pairing, resamples=resamples, seed=seed)
    return _result(
        "comparison_topics",
        rows,
        a,
        b,
        method,
        alpha=alpha,
        resamples=resamples,
        seed=seed,
        notes=notes,
        caption=f"log2 lift of the best expert or group of every {a.label}, as each run's verdicts name it, second "
        "run less first. Both are the best of many, and so both a little too high.",
    )


def _measured_topics(a: Side, b: Side, pairing: Pairing, *, resamples: int, seed: int) -> list[dict[str, Any]]:
    drawn = resample(pairing, n=resamples, seed=seed)
    units = [best_units(side).reindex(pairing.topics) for side in (a, b)]
    lifts = [
        _lifts(groups, weights, unit, pairing.topics)
        for groups, weights, unit in zip(pairing.groups, drawn, units, strict=True)
    ]
    rows = []
    for i, topic in enumerate(pairing.topics):
        one, other = lifts[0][:, i], lifts[1][:, i]
        sizes = [int(g.groups_per_topic[g.topics.index(topic)]) for g in pairing.groups]
        found = from_draws(
            float(one[0]), float(other[0]), one[1:], other[1:], paired=pairing.paired, df=(sizes[0] - 1.0, sizes[1] - 1.0)
        )
        rows.append(_topic_row(topic, units, found) | {"n_groups": min(sizes)})
    return rows


def _stored_topics(a: Side, b: Side) -> list[dict[str, Any]]:
    units = [best_units(side) for side in (a, b)]
    topics = sorted(set(units[0].index) & set(units[1].index))
    if len(topics) < 2:
        raise MoeProbeError(
            f"{a.name} and {b.name} cannot be compared",
            f"they have {len(topics)} {a.label}s in common",
            f"runs with two {a.label}s in common or more",
        )
    units = [u.reindex(topics) for u in units]
    return [
        _topic_row(
            topic,
            units,
            from_intervals(
                *(
                    (float(u.loc[topic, "log2_lift"]), float(u.loc[topic, "ci_low"]), float(u.loc[topic, "ci_high"]))
                    for u in units
                )
            ),
        )
        for topic in topics
    ]


def _topic_row(topic: str, units: list[pd.DataFrame], found: Difference) -> dict[str, Any]:
    row: dict[str, Any] = {"topic": topic}
    for side, unit in zip("ab", units, strict=True):
        row |= {f"layer_{side}": unit.loc[topic, "layer"], f"experts_{side}": unit.loc[topic, "experts"]}
    return row | found._asdict()


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
    wanted = parse_members(unit.experts)
    return np.flatnonzero((groups.layer == int(unit.layer)) & np.isin(groups.expert, wanted))


def compare_layers(
    a: Side, b: Side, *, pairing: Pairing | None = None, resamples: int = 1000, seed: int = 0, alpha: float = 0.05
) -> Result:
    """Compare layers: how evenly experts are used, and how much routing tells of the label.

    Parameters
    ----------
    a, b : Side
        Under one label, or under two labels of the same documents.
    pairing, resamples, seed, alpha
        As `compare_topics`.

    Returns
    -------
    Result
        ``comparison_layers``: ``side_a, side_b, layer_a, layer_b, measure`` (``decode_accuracy``, of groups whose label is
        told from their usage; ``decode_skill``, the share of the way from always guessing the commonest label to no
        error, for sides of different labels; ``mi_bits``; ``entropy_bits``; ``effective_experts``; ``effective_share``,
        effective experts over experts; ``load_cv``), and the columns of differences as in `compare_topics`.

    Raises
    ------
    MoeProbeError
        As `pair_sides`.
    """
    pairs, how = matched_layers(a, b)
    notes: tuple[str, ...] = (
        () if how == "the same number" else (f"Layers of {a.name} and {b.name} differ in number and are matched by {how}.",)
    )
    if a.trace is None or b.trace is None:
        rows, method = _stored_layers(a, b, pairs), "no interval: stored results have none"
    else:
        pairing = pairing or pair_sides(a, b)
        notes, method = (*notes, *pairing.notes), pairing.method
        drawn = resample(pairing, n=resamples, seed=seed)
        same_label = a.label == b.label
        ours, theirs = (_layer_draws(side, pairing, i, drawn[i], same_label=same_label) for i, side in enumerate((a, b)))
        freedom = tuple(float(len(g.groups) - len(g.topics)) for g in pairing.groups)
        rows = [
            {"layer_a": i, "layer_b": j, "measure": measure}
            | from_draws(x, y, draws, theirs[j, measure][1], paired=pairing.paired, df=(freedom[0], freedom[1]))._asdict()
            for i, j in pairs
            for (layer, measure), (x, draws) in ours.items()
            if layer == i
            for y in [theirs[j, measure][0]]
        ]
    return _result(
        "comparison_layers",
        rows,
        a,
        b,
        method,
        alpha=alpha,
        resamples=resamples,
        seed=seed,
        notes=notes,
        caption="Layers of the second run less those of the first, on the documents compared. Bits about the label "
        "are less their mean under permuted labels; decoding: groups that the decoder did not see.",
    )


def _stored_layers(a: Side, b: Side, pairs: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    ours, theirs = (s.result("layers").table.set_index("layer") for s in (a, b))
    names = {
        "decode_accuracy": "decode_accuracy",
        "mi_topic_bits": "mi_bits",
        "entropy_bits": "entropy_bits",
        "effective_experts": "effective_experts",
        "load_cv": "load_cv",
    }
    return [
        {"layer_a": i, "layer_b": j, "measure": measure}
        | no_difference(float(ours.loc[i, column]), float(theirs.loc[j, column]))._asdict()
        for i, j in pairs
        for column, measure in names.items()
    ]


def _layer_draws(
    side: Side,
    pairing: Pairing,
    which: int,
    drawn: Resamples,
    *,
    same_label: bool,
) -> dict[tuple[int, str], tuple[float, np.ndarray]]:
    """Value and bootstrap draws of every (layer, measure) of one side."""
    groups, layers = pairing.groups[which], _layers_result(side, pairing, which).table.set_index("layer")
    out: dict[tuple[int, str], tuple[float, np.ndarray]] = {}
    for place, layer in enumerate(pairing.usage[which].layers):
        columns, number = groups.layer_index == place, layer.layer
        right = topics_told(groups, place, seed=side.result("layers").seed or 0)
        decoded = np.flatnonzero(np.isfinite(right))
        told = drawn.means(right, decoded)
        if same_label:
            out[number, "decode_accuracy"] = float(told[0]), told[1:]
        else:
            top = float(np.bincount(groups.topic[decoded]).max() / len(decoded)) if len(decoded) else np.nan
            out[number, "decode_skill"] = float((told[0] - top) / (1 - top)), (told[1:] - top) / (1 - top)
        out[number, "mi_bits"] = float(layers.loc[number, "mi_topic_bits"]), _divergence(groups, columns, drawn)[1:]
        if same_label:  # the load is the same whatever the label
            load = drawn.weights @ (groups.shares[:, columns] * groups.selections[:, [place]])
            entropy = entropy_bits(load)
            for measure, values in (
                ("entropy_bits", entropy),
                ("effective_experts", np.exp2(entropy)),
                ("effective_share", np.exp2(entropy) / layer.num_experts),
                ("load_cv", load_cv(load)),
            ):
                out[number, measure] = float(values[0]), values[1:]
    return out


def _layers_result(side: Side, pairing: Pairing, which: int) -> Result:
    """The stored result where it is about the same documents, else the same analysis of those compared."""
    stored = side.result("layers")
    if pairing.whole[which]:
        return stored
    return layer_usage(
        pairing.usage[which],
        label=side.label,
        permutations=int(stored.params["permutations"]),
        strata=stored.params["strata"],
        seed=stored.seed or 0,
    )


def _divergence(groups: GroupUsage, columns: np.ndarray, drawn: Resamples) -> np.ndarray:
    """Jensen-Shannon divergence of the topics' mean usage of one layer, in bits, for every resample."""
    own, total = np.zeros(len(drawn.weights)), np.zeros((len(drawn.weights), int(columns.sum())))
    present = np.unique(groups.topic)
    for t in present:
        mean = np.nan_to_num(drawn.means(groups.shares[:, columns], np.flatnonzero(groups.topic == t)))
        own += entropy_bits(mean)
        total += mean
    return np.asarray(entropy_bits(total) - own / len(present))


def _result(
    name: str,
    rows: list[dict[str, Any]],
    a: Side,
    b: Side,
    method: str,
    *,
    alpha: float,
    resamples: int,
    seed: int,
    notes: tuple[str, ...],
    caption: str,
) -> Result:
    import pandas as pd

    table = pd.DataFrame(rows)
    q_values, beyond = with_q(table["p_value"].to_numpy(), alpha=alpha)
    table = table.assign(side_a=a.name, side_b=b.name, q_value=q_values, beyond=beyond, method=method)
    first = ["side_a", "side_b", *(c for c in rows[0] if c not in COLUMNS and c != "n_groups")]
    rest = [*COLUMNS, "q_value", "beyond", "method", *(["n_groups"] if "n_groups" in table else [])]
    table = table[[*first, *rest]]
    for column in ("layer_a", "layer_b"):
        table[column] = table[column].astype("Int64")
    return Result(
        name,
        table,
        seed=seed,
        warnings=notes,
        citations=SOURCES,
        params={"alpha": alpha, "resamples": resamples, "label_a": a.label, "label_b": b.label},
        caption=f"{caption} 95 % intervals: {method} of documents. q: Benjamini-Hochberg over this table; beyond: q at "
        f"most {alpha:g}.",
    )
