"""Join a dictionary's features to those of a wider one: by the direction they write, and by the tokens they fire on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.features.matching.counts import count_blocks, mutual_information

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

#: A child points along its parent from this cosine of decoder rows on (Paulo and Belrose 2025, arXiv:2501.16615).
SAME_DIRECTION = 0.7
#: A child fires inside its parent when the parent fires on at least this share of the child's tokens.
INSIDE = 0.5
#: A child that takes at least this share of its parent's tokens is the same feature again, not a part of it.
SAME_FEATURE = 0.5
_MIN_FIRINGS = 8


class Level(NamedTuple):
    """One dictionary on some tokens.

    Attributes
    ----------
    directions : ndarray of float, shape (n_features, d)
        Decoder rows.
    firings : csr_array, shape (n_tokens, n_features)
        Activations; the same tokens at every level.
    """

    directions: np.ndarray
    firings: sparse.csr_array


class Splitting(NamedTuple):
    """How one level divides the next coarser one; shares of living features.

    Attributes
    ----------
    split : float
        Parents with two or more children that are parts of them.
    kept : float
        Parents that are there again as one feature.
    novel : float
        Features of the finer level whose direction no parent has (Leask et al. 2025, arXiv:2502.04878, call those that
        add to a reconstruction novel; this is their cheap proxy).
    orphans : float
        Features of the finer level without a parent by direction or by firing.
    children : float
        Mean children of a split parent.
    """

    split: float
    kept: float
    novel: float
    orphans: float
    children: float


def join(parent: Level, child: Level) -> pd.DataFrame:
    """Find every child's parent.

    By direction: the parent of largest cosine, if that is at least `SAME_DIRECTION`. By firing: among the parents that fire on
    at least `INSIDE` of the child's tokens, the one that shares most information with it, if it fires there more often than
    on all tokens. Where both find one and differ, both edges are given.

    Parameters
    ----------
    parent, child : Level
        The narrower and the wider dictionary on the same tokens.

    Returns
    -------
    pandas.DataFrame
        An edge a row: ``parent, child, cosine, inside`` (share of the child's tokens on which the parent fires), ``share``
        (of the parent's tokens that the child takes), ``lift, weight`` (mean of cosine, at least 0, and inside), ``joined_by``
        (both | direction | firing), ``relation`` (same | part | overlap: fires mostly inside and takes half of the parent's
        tokens; fires mostly inside and takes less; points along it but fires elsewhere too).
    """
    import pandas as pd

    n = parent.firings.shape[0]
    fired = _counts(parent.firings), _counts(child.firings)
    cosine_best, cosine = _nearest(parent.directions, child.directions, alive=fired[0] >= _MIN_FIRINGS)
    edges: list[tuple[int, int, float, str]] = []
    for block, both in count_blocks(parent.firings, child.firings):
        mine = fired[1][block]
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = both / mine[:, None]
            more = both * float(n) > mine[:, None] * fired[0]
        bits = np.where(
            (inside >= INSIDE) & more & (fired[0] >= _MIN_FIRINGS),
            mutual_information(both.astype(float), mine[:, None], fired[0][None], n),
            0.0,
        )
        firing_best = np.where(bits.max(1) > 0, bits.argmax(1), -1)
        for i in range(len(mine)):
            c = block.start + i
            if mine[i] < _MIN_FIRINGS:
                continue
            by_direction = int(cosine_best[c]) if cosine[c] >= SAME_DIRECTION else -1
            for p in dict.fromkeys(x for x in (by_direction, int(firing_best[i])) if x >= 0):
                how = "both" if p == by_direction == firing_best[i] else "direction" if p == by_direction else "firing"
                edges.append((p, c, float(both[i, p]), how))
    table = pd.DataFrame(edges, columns=["parent", "child", "both", "joined_by"])
    table = table.astype({"parent": np.int64, "child": np.int64, "both": np.float64})  # also where there are no edges
    unit = _unit(parent.directions), _unit(child.directions)
    table["cosine"] = (unit[0][table["parent"]] * unit[1][table["child"]]).sum(1)
    table["inside"] = table["both"] / fired[1][table["child"]]
    table["share"] = table["both"] / fired[0][table["parent"]]
    table["lift"] = table["inside"] / (fired[0][table["parent"]] / n)
    table["weight"] = (table["cosine"].clip(lower=0) + table["inside"]) / 2
    table["relation"] = np.where(
        table["inside"] < INSIDE, "overlap", np.where(table["share"] >= SAME_FEATURE, "same", "part")
    )
    return table.drop(columns="both").sort_values(["parent", "child"], ignore_index=True)


def splitting(parent: Level, child: Level, edges: pd.DataFrame) -> Splitting:
    """Sum a join up.

    Parameters
    ----------
    edges : pandas.DataFrame
        From `join` of the same levels.
    """
    living = np.flatnonzero(_counts(parent.firings) >= _MIN_FIRINGS)
    finer = np.flatnonzero(_counts(child.firings) >= _MIN_FIRINGS)
    parts = edges[edges["relation"] == "part"].groupby("parent").size()
    split = parts[parts >= 2]
    kept = edges.loc[edges["relation"] == "same", "parent"].nunique()
    _, cosine = _nearest(parent.directions, child.directions, alive=_counts(parent.firings) >= _MIN_FIRINGS)
    n, m = max(len(living), 1), max(len(finer), 1)
    return Splitting(
        len(split) / n,
        kept / n,
        float((cosine[finer] < SAME_DIRECTION).sum() / m),
        1 - edges["child"].nunique() / m if len(finer) else 0.0,
        float(split.mean()) if len(split) else 0.0,
    )


def agreement(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """Do two coarse dictionaries of other seeds put the same fine features together? Chance is 0, sameness 1.

    A narrow dictionary has to put many features into each of its own, so that it always looks as if these split when it widens.
    Only groupings that another seed finds again are of the model. Adjusted mutual information of the children's parents (Vinh,
    Epps and Bailey 2010, https://jmlr.org/papers/v11/vinh10a.html) over children that have one in both.

    Parameters
    ----------
    first, second : pandas.DataFrame
        From `join`, of two parent levels with one child level.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    best = [edges.sort_values(["weight", "parent"]).groupby("child")["parent"].last() for edges in (first, second)]
    shared = best[0].index.intersection(best[1].index)
    if len(shared) < 2:
        return float("nan")
    return float(adjusted_mutual_info_score(best[0].loc[shared], best[1].loc[shared]))


def _counts(firings: sparse.csr_array) -> np.ndarray:
    return np.bincount(firings.indices, minlength=firings.shape[1])


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _nearest(parents: np.ndarray, children: np.ndarray, *, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Living parent of largest cosine for every child, and the cosine."""
    unit = _unit(parents)
    best, cosine = np.zeros(len(children), dtype=int), np.full(len(children), -1.0)
    if not alive.any():
        return best, cosine
    for start in range(0, len(children), 2048):
        piece = slice(start, start + 2048)
        found = np.where(alive[None], _unit(children[piece]) @ unit.T, -1.0)
        best[piece], cosine[piece] = found.argmax(1), found.max(1)
    return best, cosine
