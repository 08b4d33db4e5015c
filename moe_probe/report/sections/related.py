"""Units that belong to an expert: those that it is most similar to, and features that go best with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def nearest_experts(table: pd.DataFrame, units: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """List the experts that are most similar to some experts, by each kind of similarity.

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``expert_similarity``.
    units : iterable of (int, int)
        Layers and experts.

    Returns
    -------
    list of (int, int)
        Each once.
    """
    units = list(units)
    pairs = ((layer, other) for layer, expert in units for _, other, _ in most_similar(table, layer, expert))
    return list(dict.fromkeys(pair for pair in pairs if pair not in units))


def most_similar(table: pd.DataFrame, layer: int, expert: int) -> list[tuple[str, int, float]]:
    """List the kinds of similarity, each with the nearest expert of the layer and how similar it is.

    Parameters
    ----------
    table : pandas.DataFrame
        Result ``expert_similarity``.
    layer, expert : int

    Returns
    -------
    list of (str, int, float)
    """
    pairs = table[(table["layer"] == layer) & ((table["expert_a"] == expert) | (table["expert_b"] == expert))]
    pairs = pairs[pairs["similarity"].notna()]  # of experts that are never selected it may be unknown
    out = []
    for kind, part in pairs.groupby("kind", sort=True):
        top = part.sort_values("similarity").iloc[-1]
        other = int(top["expert_b"] if top["expert_a"] == expert else top["expert_a"])
        out.append((str(kind), other, float(top["similarity"])))
    return out


def strongest_features(matches: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``matches`` with the features that go best with an expert, one per SAE.

    Parameters
    ----------
    matches : pandas.DataFrame
        Rows of one expert.

    Returns
    -------
    pandas.DataFrame
    """
    return matches[matches["significant"]].sort_values("heldout_bits", ascending=False).drop_duplicates("sae").head(3)
