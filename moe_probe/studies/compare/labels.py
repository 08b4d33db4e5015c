"""Two labels of the same documents, and which of them an expert follows."""

from __future__ import annotations

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.stats import GroupUsage, Resamples
from moe_probe.studies.compare.compared_run import ComparedRun
from moe_probe.studies.compare.differences import SOURCES, Estimate, difference_table, from_draws
from moe_probe.studies.compare.pairing import Pairing, pair_runs, resample
from moe_probe.studies.compare.settings import ComparisonSettings

_EPSILON = "Kelley 1935, an unbiased correlation ratio (epsilon squared), DOI 10.1073/pnas.21.9.554"


def compare_labels(
    a: ComparedRun, b: ComparedRun, *, pairing: Pairing | None = None, settings: ComparisonSettings | None = None
) -> Result:
    """Compare how much of every expert's usage over documents two labels explain.

    ``value_a`` and ``value_b`` are epsilon squared: the share of the variance of an expert's usage between groups of
    documents that lies between the values of the label, less what so many values would explain by chance. It does not
    depend on the number of values, so that a label of three can be compared with one of twelve.

    Parameters
    ----------
    a, b : ComparedRun
        Of the same documents under different labels.
    pairing : Pairing, optional
        From `pair_runs`, where it is at hand.
    settings : ComparisonSettings, optional

    Returns
    -------
    Result
        ``comparison_experts``: ``side_a, side_b, layer, expert, value_a, value_b, difference, ci_low, ci_high, p_value,
        q_value, beyond, method, follows`` (the label that explains more beyond chance, or "neither").

    Raises
    ------
    MoeProbeError
        When the labels are the same, or the runs do not share documents.
    """
    if a.label == b.label:
        raise MoeProbeError(
            f"{a.name} and {b.name} are about the same label", f"both are about {a.label}", "two --by on one run"
        )
    settings = settings or ComparisonSettings()
    pairing = pairing or pair_runs(a, b)
    drawn = resample(pairing, n=settings.resamples, seed=settings.seed)[0]
    explained = [variance_explained(groups, drawn) for groups in pairing.groups]
    freedom = [float(len(g.groups) - len(np.unique(g.topic))) for g in pairing.groups]
    groups = pairing.groups[0]
    rows = []
    for c in range(groups.shares.shape[1]):
        one, other = (Estimate(float(x[0, c]), x[1:, c], df) for x, df in zip(explained, freedom, strict=True))
        unit = {"side_a": a.name, "side_b": b.name, "layer": int(groups.layer[c]), "expert": int(groups.expert[c])}
        rows.append(unit | from_draws(one, other, paired=True)._asdict() | {"method": pairing.method})
    table = difference_table(rows, alpha=settings.alpha)
    follows = np.where(~table["beyond"], "neither", np.where(table["difference"] > 0, b.name, a.name))
    return Result(
        "comparison_experts",
        table.assign(follows=follows),
        seed=settings.seed,
        warnings=pairing.notes,
        citations=(*SOURCES, _EPSILON),
        params=settings.params(a, b),
        caption=f"Share of the variance of an expert's usage between groups of documents that {a.label} and "
        f"{b.label} explain, less what chance would (epsilon squared); {b.label} less {a.label}. 95 % intervals: "
        f"{pairing.method} of documents. q: Benjamini-Hochberg over all experts.",
    )


def variance_explained(groups: GroupUsage, drawn: Resamples) -> np.ndarray:
    """Epsilon squared of every column for every resample, shape (n_resamples + 1, n_columns); 0 for constant columns.

    1 - (W / (n - K)) / (T / (n - 1)), with W and T the sums of squares within labels and in all (Kelley 1935, DOI
    10.1073/pnas.21.9.554).

    Parameters
    ----------
    groups : GroupUsage
    drawn : Resamples
        Of the groups.

    Returns
    -------
    ndarray
    """
    shares = np.asarray(groups.shares)
    values = shares - shares.mean(0)  # centred first: squares of small numbers stay exact
    total = drawn.means(values**2) - drawn.means(values) ** 2
    within = np.zeros_like(total)
    weight = drawn.weights.sum(1)
    present = np.unique(groups.topic)
    for t in present:
        rows = np.flatnonzero(groups.topic == t)
        share = (drawn.weights[:, rows].sum(1) / weight)[:, None]
        within += np.nan_to_num(share * (drawn.means(values**2, rows) - drawn.means(values, rows) ** 2))
    n, k = len(groups.groups), len(present)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = 1 - within / total * ((n - 1) / (n - k))
    return np.where(total > 1e-18, out, 0.0)
