"""Join the features of a dictionary to those of a wider one: by decoder direction, and by the tokens they fire on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from moe_probe.features.matching.co_counts import ActiveUnits, count_blocks
from moe_probe.features.matching.counts import mutual_information

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


class StoredUnits(ActiveUnits, Protocol):
    """Features whose firings are encoded when they are asked for."""

    def matrix(self) -> sparse.csr_array:
        """Return all firings, (n_tokens, n_features)."""


@dataclass(frozen=True)
class Level:
    """One dictionary on some tokens.

    Attributes
    ----------
    directions : ndarray of float, shape (n_features, d)
        Decoder rows.
    firings : csr_array, shape (n_tokens, n_features), or StoredUnits
        Activations; the same tokens at every level.
    """

    directions: np.ndarray
    firings: sparse.csr_array | StoredUnits

    @property
    def matrix(self) -> sparse.csr_array:
        """The activations as a sparse array; held by no one else where firings are stored."""
        from scipy import sparse

        return self.firings if sparse.issparse(self.firings) else self.firings.matrix()

    @cached_property
    def counts(self) -> np.ndarray:
        """Tokens on which each feature fires, shape (n_features,)."""
        return np.bincount(self.matrix.indices, minlength=self.firings.shape[1])

    @property
    def living(self) -> np.ndarray:
        """Features that fire often enough to be joined, bool, shape (n_features,)."""
        return np.asarray(self.counts >= _MIN_FIRINGS)


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
        One row per edge: ``parent, child, cosine, inside`` (share of the child's tokens on which the parent fires), ``share``
        (of the parent's tokens that the child takes), ``lift, weight`` (mean of cosine, at least 0, and inside), ``joined_by``
        (both | direction | firing), ``relation`` (same | part | overlap: fires mostly inside and takes half of the parent's
        tokens; fires mostly inside and takes less; points along it but fires elsewhere too).
    """
    import pandas as pd

    edges = pd.concat(_edges(parent, child), ignore_index=True)
    edges = edges.astype({"parent": np.int64, "child": np.int64, "shared": np.float64})  # also where there are no edges
    ends = unit_rows(parent.directions)[edges["parent"]], unit_rows(child.directions)[edges["child"]]
    fired = parent.counts[edges["parent"]], child.counts[edges["child"]]
    edges["cosine"] = (ends[0] * ends[1]).sum(1)
    edges["inside"] = edges["shared"] / fired[1]
    edges["share"] = edges["shared"] / fired[0]
    edges["lift"] = edges["inside"] / (fired[0] / parent.firings.shape[0])
    edges["weight"] = (edges["cosine"].clip(lower=0) + edges["inside"]) / 2
    mostly_inside = np.where(edges["share"] >= SAME_FEATURE, "same", "part")
    edges["relation"] = np.where(edges["inside"] < INSIDE, "overlap", mostly_inside)
    return edges.drop(columns="shared").sort_values(["parent", "child"], ignore_index=True)


def _edges(parent: Level, child: Level) -> Iterator[pd.DataFrame]:
    """Yield ``parent, child, shared`` (tokens on which both fire) and ``joined_by``, some children at a time."""
    import pandas as pd

    nearest, cosine = _nearest(parent, child)
    by_direction, counts, living = np.where(cosine >= SAME_DIRECTION, nearest, -1), child.counts, child.living
    for block, both in count_blocks(parent.firings, child.matrix):
        direction, firing = by_direction[block], _most_informative(both, parent, counts[block])
        for best, use, joined_by in (
            (direction, direction >= 0, np.where(direction == firing, "both", "direction")),
            (firing, (firing >= 0) & (firing != direction), np.full(len(firing), "firing")),
        ):
            i = np.flatnonzero(use & living[block])
            columns = {"parent": best[i], "child": block.start + i, "shared": both[i, best[i]]}
            yield pd.DataFrame(columns | {"joined_by": joined_by[i]})


def _most_informative(both: np.ndarray, parent: Level, fired: np.ndarray) -> np.ndarray:
    """Find for every child the parent by firing, -1 for none: from shared tokens (child, parent) and the children's tokens."""
    n, counts = parent.firings.shape[0], parent.counts
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = both / fired[:, None]
        more_than_elsewhere = both * float(n) > fired[:, None] * counts
    bits = np.where(
        (inside >= INSIDE) & more_than_elsewhere & parent.living,
        mutual_information(both.astype(float), fired[:, None], counts[None], n),
        0.0,
    )
    return np.where(bits.max(1) > 0, bits.argmax(1), -1)


def splitting(parent: Level, child: Level, edges: pd.DataFrame) -> Splitting:
    """Sum a join up.

    Parameters
    ----------
    parent, child : Level
        The narrower and the wider dictionary on the same tokens.
    edges : pandas.DataFrame
        From `join` of the same levels.

    Returns
    -------
    Splitting
    """
    parts = edges[edges["relation"] == "part"].groupby("parent").size()
    split = parts[parts >= 2]
    kept = edges.loc[edges["relation"] == "same", "parent"].nunique()
    finer = np.flatnonzero(child.living)
    n, m = max(int(parent.living.sum()), 1), max(len(finer), 1)
    return Splitting(
        len(split) / n,
        kept / n,
        novel_share(parent, child),
        1 - edges["child"].nunique() / m if len(finer) else 0.0,
        float(split.mean()) if len(split) else 0.0,
    )


def novel_share(parent: Level, child: Level) -> float:
    """Compute the share of the child's living features whose direction no living feature of the parent has.

    Parameters
    ----------
    parent, child : Level

    Returns
    -------
    float
    """
    cosine = _nearest(parent, child)[1][child.living]
    return float((cosine < SAME_DIRECTION).sum() / max(len(cosine), 1))


def agreement(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """Measure how alike two coarse dictionaries of different seeds group the same fine features.

    A narrow dictionary has to put many features into each of its own, so that it always looks as if these split when it widens.
    Only groupings that another seed finds again are of the model. Adjusted mutual information of the children's parents (Vinh,
    Epps and Bailey 2010, https://jmlr.org/papers/v11/vinh10a.html) over children that have one in both.

    Parameters
    ----------
    first, second : pandas.DataFrame
        From `join`, of two parent levels with one child level.

    Returns
    -------
    float
        0 is chance, 1 the same grouping; NaN with fewer than two shared children.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    best = [edges.sort_values(["weight", "parent"]).groupby("child")["parent"].last() for edges in (first, second)]
    shared = best[0].index.intersection(best[1].index)
    if len(shared) < 2:
        return float("nan")
    return float(adjusted_mutual_info_score(best[0].loc[shared], best[1].loc[shared]))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale every row to length 1; rows of zeros stay zeros."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _nearest(parent: Level, child: Level) -> tuple[np.ndarray, np.ndarray]:
    """Find the living parent of largest cosine for every child, and the cosine."""
    unit, living = unit_rows(parent.directions), parent.living
    best, cosine = np.zeros(len(child.directions), dtype=int), np.full(len(child.directions), -1.0)
    if not living.any():
        return best, cosine
    for start in range(0, len(child.directions), 2048):
        piece = slice(start, start + 2048)
        cosines = np.where(living[None], unit_rows(child.directions[piece]) @ unit.T, -1.0)
        best[piece], cosine[piece] = cosines.argmax(1), cosines.max(1)
    return best, cosine
