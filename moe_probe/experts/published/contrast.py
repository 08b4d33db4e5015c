"""The contrast of two sets of documents (prompts) by published work: differences of activation rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.stats.groups import need_column

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.routing import Usage
    from moe_probe.recording.trace import Trace

_STEER = "Fayyaz et al. 2025 (SteerMoE), contrast of two label values, arXiv:2509.09660"


def risk_difference(
    trace: Trace | Usage, *, column: str, positive: str, negative: str, paired_by: str | None = None
) -> Result:
    """Measure how much more often tokens of one set of documents activate an expert than those of another.

    SteerMoE, arXiv:2509.09660, equation 3: P(active | positive) - P(active | negative) over tokens, with the
    two-proportion z-test of its authors. That test treats tokens as independent; beside it stands a
    test that respects documents: t of the documents' rates (Welch, or of differences within pairs).

    Parameters
    ----------
    trace : Trace or Usage
    column : str
        Label column whose values name the two sets.
    positive, negative : str
        Values of the two sets.
    paired_by : str, optional
        Column that names the pair a document belongs to (one positive and one negative document each).

    Returns
    -------
    Result
        ``risk_difference``: ``layer, expert, positive_rate, negative_rate, difference, z, z_p_value``
        (tokens), ``document_t, document_p_value, documents``.

    Raises
    ------
    MoeProbeError
        When a column is missing, a set has fewer than two documents, or pairs are incomplete.
    """
    import pandas as pd

    usage = trace.usage()
    sets = _sets(usage.documents, column, (positive, negative))
    if paired_by is not None:
        sets = _paired(_values(usage.documents, paired_by), sets, paired_by)
    tokens = usage.documents["n_tokens"].to_numpy()
    of_sets = np.concatenate(sets)
    row = np.full(len(tokens), -1)
    row[of_sets] = np.arange(len(of_sets))
    counts, tokens = usage.summed(row, len(of_sets)), tokens[of_sets]
    sets = np.split(np.arange(len(of_sets)), [len(sets[0])])
    parts = []
    for layer, columns in zip(usage.layers, usage.columns, strict=True):
        rates = _rates(counts[:, columns], tokens, sets, paired=bool(paired_by))
        parts.append(pd.DataFrame({"layer": layer.layer, "expert": np.arange(layer.num_experts)} | rates))
    return Result(
        "risk_difference",
        pd.concat(parts, ignore_index=True),
        citations=(_STEER,),
        params={"column": column, "positive": positive, "negative": negative, "paired_by": paired_by},
        caption="Activation rate of every expert among tokens of the positive set, less that among tokens of the negative set. "
        "Trust the test over documents: the z-test treats tokens as independent, and so overstates significance.",
    )


def _rates(counts: np.ndarray, tokens: np.ndarray, sets: list[np.ndarray], *, paired: bool) -> dict[str, Any]:
    """Compare the rates of two sets, from counts (n_documents, n_experts) and tokens (n_documents,)."""
    from scipy import stats

    a, b = (counts[rows].sum(0) / tokens[rows].sum() for rows in sets)
    n, m = (tokens[rows].sum() for rows in sets)
    pooled = (a * n + b * m) / (n + m)
    rates = [counts[rows] / np.maximum(tokens[rows], 1)[:, None] for rows in sets]
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (a - b) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        by_document = stats.ttest_rel(*rates) if paired else stats.ttest_ind(*rates, equal_var=False)
    return {
        "positive_rate": a,
        "negative_rate": b,
        "difference": a - b,
        "z": z,
        "z_p_value": 2 * stats.norm.sf(np.abs(z)),
        "document_t": by_document.statistic,
        "document_p_value": by_document.pvalue,
        "documents": len(sets[0]) + len(sets[1]),
    }


def _values(documents: pd.DataFrame, column: str) -> np.ndarray:
    need_column(documents, column)
    return np.asarray(documents[column].astype(str))


def _sets(documents: pd.DataFrame, column: str, values: tuple[str, str]) -> list[np.ndarray]:
    """Find the rows of the documents of two values."""
    sets = [np.flatnonzero(_values(documents, column) == value) for value in values]
    for value, rows in zip(values, sets, strict=True):
        if len(rows) < 2:
            raise MoeProbeError(
                f"{len(rows)} documents have the {column} '{value}'",
                "two are the least to compare",
                "other values of the column",
            )
    return sets


def _paired(pair: np.ndarray, sets: list[np.ndarray], name: str) -> list[np.ndarray]:
    """Sort the rows of both sets by their pair."""
    keys = [pair[rows] for rows in sets]
    if any(len(set(k)) < len(k) for k in keys) or set(keys[0]) != set(keys[1]):
        raise MoeProbeError(
            f"documents cannot be paired by '{name}'",
            "every pair needs one document of either set",
            "a column with one value per pair, or no pairing",
        )
    return [rows[np.argsort(k, kind="stable")] for rows, k in zip(sets, keys, strict=True)]
