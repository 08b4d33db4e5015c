"""Two labels of the same documents: which of them does an expert follow?"""

from __future__ import annotations

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.stats import GroupUsage, Resamples
from moe_probe.studies.compare.intervals import COLUMNS, SOURCES, from_draws, with_q
from moe_probe.studies.compare.pairing import Pairing, pair_sides, resample
from moe_probe.studies.compare.sides import Side

_EPSILON = "Kelley 1935, an unbiased correlation ratio (epsilon squared), DOI 10.1073/pnas.21.9.554"


def compare_labels(
    a: Side, b: Side, *, pairing: Pairing | None = None, resamples: int = 1000, seed: int = 0, alpha: float = 0.05
) -> Result:
    """Compare how much of every expert's usage over documents two labels explain.

    ``value_a`` and ``value_b`` are epsilon squared: the share of the variance of an expert's usage between groups of
    documents that lies between the values of the label, less what so many values would explain by chance. It does not
    depend on the number of values, so that a label of three can be held against one of twelve.

    Parameters
    ----------
    a, b : Side
        Of the same documents under different labels.
    pairing, resamples, seed, alpha
        As `compare_topics`.

    Returns
    -------
    Result
        ``comparison_experts``: ``side_a, side_b, layer, expert, value_a, value_b, difference, ci_low, ci_high, p_value,
        q_value, beyond, method, follows`` (the label that explains more beyond chance, or "neither").

    Raises
    ------
    MoeProbeError
        When the labels are the same, or the sides do not share documents.
    """
    import pandas as pd

    if a.label == b.label:
        raise MoeProbeError(
            f"{a.name} and {b.name} are about the same label", f"both are about {a.label}", "two --by on one run"
        )
    pairing = pairing or pair_sides(a, b)
    drawn = resample(pairing, n=resamples, seed=seed)[0]
    explained = [variance_explained(groups, drawn) for groups in pairing.groups]
    groups = pairing.groups[0]
    freedom = tuple(float(len(g.groups) - len(np.unique(g.topic))) for g in pairing.groups)
    rows = [
        {"layer": int(groups.layer[c]), "expert": int(groups.expert[c])}
        | from_draws(
            float(explained[0][0, c]),
            float(explained[1][0, c]),
            explained[0][1:, c],
            explained[1][1:, c],
            paired=True,
            df=(freedom[0], freedom[1]),
        )._asdict()
        for c in range(groups.shares.shape[1])
    ]
    table = pd.DataFrame(rows)
    q_values, beyond = with_q(table["p_value"].to_numpy(), alpha=alpha)
    follows = np.where(~beyond, "neither", np.where(table["difference"] > 0, b.name, a.name))
    table = table.assign(
        side_a=a.name, side_b=b.name, q_value=q_values, beyond=beyond, method=pairing.method, follows=follows
    )
    table = table[["side_a", "side_b", "layer", "expert", *COLUMNS, "q_value", "beyond", "method", "follows"]]
    return Result(
        "comparison_experts",
        table,
        seed=seed,
        warnings=pairing.notes,
        citations=(*SOURCES, _EPSILON),
        params={"alpha": alpha, "resamples": resamples, "label_a": a.label, "label_b": b.label},
        caption=f"Share of the variance of an expert's usage between groups of documents that {a.label} and "
        f"{b.label} explain, less what chance would (epsilon squared); {b.label} less {a.label}. 95 % intervals: "
        f"{pairing.method} of documents. q: Benjamini-Hochberg over all experts.",
    )


def variance_explained(groups: GroupUsage, drawn: Resamples) -> np.ndarray:
    """Epsilon squared of every column for every resample, shape (n_resamples + 1, n_columns); 0 for constant columns.

    1 - (W / (n - K)) / (T / (n - 1)), with W and T the sums of squares within labels and in all.
    """
    values = groups.shares - groups.shares.mean(0)  # centred first: squares of small numbers stay exact
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
