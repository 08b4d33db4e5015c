"""How much layers differ between two runs: in how evenly experts are used, and in what routing tells of the label."""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.routing import load_cv
from moe_probe.core.stats import GroupUsage, Resamples
from moe_probe.core.stats.information import entropy_bits
from moe_probe.experts.decoding import cross_validated_hits
from moe_probe.experts.usage import layer_usage
from moe_probe.studies.compare.compared_run import ComparedRun, matched_layers
from moe_probe.studies.compare.differences import (
    SOURCES,
    Estimate,
    difference_table,
    from_draws,
    interval_caption,
    no_difference,
)
from moe_probe.studies.compare.pairing import Pairing, pair_runs, resample
from moe_probe.studies.compare.settings import MOST_PERMUTATIONS, ComparisonSettings

#: Measures whose values are stored, by column of ``layers``.
_STORED = {
    "decode_accuracy": "decode_accuracy",
    "mi_topic_bits": "mi_bits",
    "entropy_bits": "entropy_bits",
    "effective_experts": "effective_experts",
    "load_cv": "load_cv",
}


def compare_layers(
    a: ComparedRun, b: ComparedRun, *, pairing: Pairing | None = None, settings: ComparisonSettings | None = None
) -> Result:
    """Compare layers: how evenly experts are used, and how much routing tells of the label.

    Parameters
    ----------
    a, b : ComparedRun
        Under one label, or under two labels of the same documents.
    pairing : Pairing, optional
        From `pair_runs`, where it is at hand.
    settings : ComparisonSettings, optional

    Returns
    -------
    Result
        ``comparison_layers``: ``side_a, side_b, layer_a, layer_b, measure`` (``decode_accuracy``, of groups whose label is
        decoded from their usage; ``decode_skill``, the share of the way from always guessing the commonest label to no
        error, for runs of different labels; ``mi_bits``; ``entropy_bits``; ``effective_experts``; ``effective_share``,
        effective experts over experts; ``load_cv``), and the columns of differences as in `compare_topics`.

    Raises
    ------
    MoeProbeError
        As `pair_runs`.
    """
    settings = settings or ComparisonSettings()
    pairs, how = matched_layers(a, b)
    notes: tuple[str, ...] = ()
    if how != "the same number":
        notes = (f"Layers of {a.name} and {b.name} differ in number and are matched by {how}.",)
    if a.trace is None or b.trace is None:
        method = "no interval: stored results have none"
        differences = _stored_differences(a, b, pairs)
    else:
        pairing = pairing or pair_runs(a, b)
        notes, method = (*notes, *pairing.notes), pairing.method
        drawn = resample(pairing, n=settings.resamples, seed=settings.seed)
        estimates = [_layer_estimates(run, pairing, i, drawn[i]) for i, run in enumerate((a, b))]
        differences = [
            {"layer_a": i, "layer_b": j, "measure": measure}
            | from_draws(one, estimates[1][j, measure], paired=pairing.paired)._asdict()
            for i, j in pairs
            for (layer, measure), one in estimates[0].items()
            if layer == i
        ]
    rows = [{"side_a": a.name, "side_b": b.name} | row | {"method": method} for row in differences]
    return Result(
        "comparison_layers",
        difference_table(rows, alpha=settings.alpha).astype({"layer_a": "Int64", "layer_b": "Int64"}),
        seed=settings.seed,
        warnings=notes,
        citations=SOURCES,
        params=settings.params(a, b),
        caption="Layers of the second run less those of the first, on the documents compared. Bits about the label "
        "are less their mean under permuted labels; decoding: groups that the decoder did not see. "
        f"{interval_caption(method, settings)}",
    )


def _stored_differences(a: ComparedRun, b: ComparedRun, pairs: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
    layers_a, layers_b = (run.result("layers").table.set_index("layer") for run in (a, b))
    return [
        {"layer_a": i, "layer_b": j, "measure": measure}
        | no_difference(float(layers_a.loc[i, column]), float(layers_b.loc[j, column]))._asdict()
        for i, j in pairs
        for column, measure in _STORED.items()
    ]


def _layer_estimates(run: ComparedRun, pairing: Pairing, index: int, drawn: Resamples) -> dict[tuple[int, str], Estimate]:
    """Estimate of every (layer, measure) of one run, the first (`index` 0) or the second of the pairing."""
    groups, layers = pairing.groups[index], _layers_result(run, pairing, index).table.set_index("layer")
    df = float(len(groups.groups) - len(groups.topics))
    same_label = bool(pairing.topics)
    out: dict[tuple[int, str], Estimate] = {}
    for layer_index, layer in enumerate(pairing.usage[index].layers):
        columns, number = groups.layer_index == layer_index, layer.layer
        hits = cross_validated_hits(groups, layer_index, seed=run.result("layers").seed or 0)
        decoded = np.flatnonzero(np.isfinite(hits))
        accuracy = drawn.means(hits, decoded)
        values: dict[str, np.ndarray] = {}
        if same_label:
            values["decode_accuracy"] = accuracy
        else:
            top = float(np.bincount(groups.topic[decoded]).max() / len(decoded)) if len(decoded) else np.nan
            values["decode_skill"] = (accuracy - top) / (1 - top)
        bits = _divergence(groups, columns, drawn)
        bits[0] = float(layers.loc[number, "mi_topic_bits"])
        values["mi_bits"] = bits
        if same_label:  # the load is the same whatever the label
            load = drawn.weights @ (groups.shares[:, columns] * groups.selections[:, [layer_index]])
            entropy = entropy_bits(load)
            values["entropy_bits"] = entropy
            values["effective_experts"] = np.exp2(entropy)
            values["effective_share"] = np.exp2(entropy) / layer.num_experts
            values["load_cv"] = load_cv(load)
        out |= {(number, measure): Estimate(float(x[0]), x[1:], df) for measure, x in values.items()}
    return out


def _layers_result(run: ComparedRun, pairing: Pairing, index: int) -> Result:
    """Take the stored result where it is about the same documents, else the same analysis of those compared."""
    stored = run.result("layers")
    if pairing.whole[index]:
        return stored
    return layer_usage(
        pairing.usage[index],
        label=run.label,
        permutations=stored.param("permutations", int, least=0, most=MOST_PERMUTATIONS),
        strata=stored.param("strata", str) if stored.params.get("strata") is not None else None,
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
