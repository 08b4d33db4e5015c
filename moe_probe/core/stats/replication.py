"""Discovered on one half of the groups, confirmed on the other: over several divisions into halves, not one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moe_probe.core.progress import track
from moe_probe.core.stats.effects import log2_lift
from moe_probe.core.stats.permutation import chosen_p_values
from moe_probe.core.stats.shares import Shares, column_blocks
from moe_probe.core.stats.welch import SE_FLOOR as _SE_FLOOR

#: Candidates of a topic and direction that one half may send to the other.
CANDIDATES = 32
#: Largest p on the discovery half of a candidate that is worth testing (or one by chance among all columns).
_WORTH_TESTING = 0.01
#: Divisions into halves, each used both ways; fewer (at least 3) for corpora whose halves are large anyway.
DIVISIONS, _GROUPS_AT_ALL_DIVISIONS = 10, 800


class Division(NamedTuple):
    """Groups that choose candidates, and groups that confirm them; boolean masks, shape (n_groups,)."""

    discovery: np.ndarray
    confirmation: np.ndarray


class _Candidates(NamedTuple):
    """Columns that one half proposes for a topic, in the order in which the other half tests them."""

    topic: int
    direction: int  # 1: used more for the topic, -1: less
    columns: np.ndarray


@dataclass(frozen=True)
class Replication:
    """Outcome of `replicate`. Arrays are [topic, column].

    Attributes
    ----------
    p_value : ndarray of float64
        Adjusted for the number of topics and for the choice of experts; 1 for pairs that were a candidate in fewer
        than half of the divisions.
    log2_lift : ndarray of float64
        Mean over the confirming halves of the divisions whose other half proposed the pair; NaN where none did.
    """

    p_value: np.ndarray
    log2_lift: np.ndarray


@dataclass(frozen=True)
class LabelledShares:
    """What is divided: usage shares, labels, and what labels are exchanged within.

    Attributes
    ----------
    shares : ndarray of float or ShareTable, shape (n_groups, n_columns)
    topic : ndarray of int, shape (n_groups,)
    n_topics : int
    pseudo : ndarray, shape (n_topics, n_columns)
        Half a selection as a share, from `half_selection`.
    strata : ndarray of int, shape (n_groups,), optional
    """

    shares: Shares
    topic: np.ndarray
    n_topics: int
    pseudo: np.ndarray
    strata: np.ndarray | None = None

    def part(self, rows: np.ndarray) -> LabelledShares:
        """Keep some groups (boolean mask); half a selection is a larger share of fewer selections."""
        return LabelledShares(
            self.shares[rows],
            self.topic[rows],
            self.n_topics,
            self.pseudo * (len(rows) / rows.sum()),
            None if self.strata is None else self.strata[rows],
        )


def draw_divisions(topic: np.ndarray, strata: np.ndarray | None = None, *, seed: int) -> list[Division]:
    """Divide groups into halves at random, evenly within each topic (and stratum); each division is used both ways.

    Parameters
    ----------
    topic : ndarray of int, shape (n_groups,)
    strata : ndarray of int, shape (n_groups,), optional
    seed : int

    Returns
    -------
    list of Division
    """
    rng = np.random.default_rng([seed, 71])
    cell = topic if strata is None else topic * (int(strata.max()) + 1) + strata
    n = int(np.clip(DIVISIONS * _GROUPS_AT_ALL_DIVISIONS / len(topic), 3, DIVISIONS))
    out = []
    for _ in range(n):
        first = np.zeros(len(topic), dtype=bool)
        spare = 0  # the odd group of a cell goes to either half in turn
        for value in np.unique(cell):
            rows = rng.permutation(np.flatnonzero(cell == value))
            first[rows[: (len(rows) + spare) // 2]] = True
            spare = (len(rows) + spare) % 2
        out += [Division(first, ~first), Division(~first, first)]
    return out


def replicate(
    sample: LabelledShares, divisions: Sequence[Division], *, permutations: int = 1000, seed: int = 0
) -> Replication:
    """Choose on one half and test on the other, in every division, and combine the p-values.

    The discovery half ranks a topic's columns by Student's t of square roots of shares, topic against rest (within
    strata), those of more and of less usage apart. A topic whose best column would be expected more than once by chance
    (Student's p times the number of columns above 1) proposes none.
    The confirmation half tests the candidates one-sided under permuted labels, in their order, each only if those
    before it passed: an order fixed beforehand needs no correction for its length (Maurer, Hothorn and Lehmacher 1995,
    in: Vollmar, Biometrie in der chemisch-pharmazeutischen Industrie; Westfall and Krishen 2001, DOI
    10.1016/S0378-3758(01)00077-5). Over the topics that proposed candidates the correction is Bonferroni's. More and less
    usage are a family each.

    The p-values of the divisions, 1 where a pair was no candidate, are combined by twice their median, which is valid
    however they depend on each other (Rueschendorf 1982, DOI 10.2307/3213520; Meinshausen, Meier and Buehlmann 2009,
    DOI 10.1198/jasa.2009.tm08647). A single division of nine sources leaves four or five to confirm by, and another
    division gives another answer; the median over divisions does better on both counts.

    Parameters
    ----------
    sample : LabelledShares
    divisions : sequence of Division
        From `draw_divisions`, or the corpus's own single one, whose p-values are taken as they are.
    permutations, seed : int

    Returns
    -------
    Replication

    Raises
    ------
    MoeProbeError
        When a confirmation half has no labels to exchange.
    """
    shape = (sample.n_topics, sample.shares.shape[1])
    p_values, lifts, times = [], np.zeros(shape), np.zeros(shape, dtype=int)
    for i, division in enumerate(track(divisions, "replicate", unit="divisions")):
        candidates = _propose(sample.part(division.discovery))
        other = sample.part(division.confirmation)
        p_values.append(_confirm(other, candidates, permutations=permutations, seed=seed + i))
        for topic, columns, effect in _lifts(other, candidates):
            lifts[topic, columns] += np.nan_to_num(effect)
            times[topic, columns] += np.isfinite(effect)
    combined = p_values[0] if len(p_values) == 1 else np.minimum(1.0, 2 * np.median(np.stack(p_values), axis=0))
    return Replication(combined, np.where(times > 0, lifts / np.maximum(times, 1), np.nan))


def _propose(sample: LabelledShares) -> list[_Candidates]:
    from scipy.stats import t as student

    total, n_columns = sample.shares.shape
    sizes = np.bincount(sample.topic, minlength=sample.n_topics)
    summed, squares, inside = np.empty(n_columns), np.empty(n_columns), np.empty((sample.n_topics, n_columns))
    for columns in column_blocks(sample.shares):
        # square roots make the spread alike, so that one of all groups serves: Welch's own of a few groups is so uncertain
        # that of thousands of columns the luckiest small ones would be proposed
        shares = np.maximum(sample.shares[:, columns], 0)
        np.sqrt(shares, out=shares)
        shares = shares if sample.strata is None else _centred(shares, sample.strata)
        summed[columns], squares[columns] = shares.sum(0), np.einsum("gc,gc->c", shares, shares)
        inside[:, columns] = [shares[sample.topic == topic].sum(0) for topic in range(sample.n_topics)]
    out = []
    for topic in np.flatnonzero((sizes > 1) & (total - sizes > 1)):
        n, rest = int(sizes[topic]), total - int(sizes[topic])
        own, other = inside[topic] / n, (summed - inside[topic]) / rest
        within = np.maximum(squares - n * own**2 - rest * other**2, 0) / (total - 2)
        # without spread within, as between a perfect expert's topic and the rest, a floor takes its place, as in `welch_t`
        within = np.maximum(within, _SE_FLOOR * np.maximum(squares / total - (summed / total) ** 2, 0)) * (1 / n + 1 / rest)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(within > 0, (own - other) / np.sqrt(within), 0.0)
        chance = student.sf(np.abs(t), total - 2)
        for direction in (1, -1):
            p = np.where(t * direction > 0, chance, 1.0)
            order = np.lexsort((-np.abs(t), p))[:CANDIDATES]
            order = order[p[order] <= max(_WORTH_TESTING, 1 / n_columns)]
            if len(order) and p[order[0]] * n_columns <= 1.0:
                out.append(_Candidates(int(topic), direction, order))
    return out


def _centred(shares: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Less the mean of the stratum: what differs between strata is not tested, and must not take the candidates' places."""
    out = shares.copy()
    for stratum in np.unique(strata):
        rows = strata == stratum
        out[rows] -= shares[rows].mean(0)
    return out


def _confirm(sample: LabelledShares, candidates: list[_Candidates], *, permutations: int, seed: int) -> np.ndarray:
    """Compute adjusted p-values of the candidates, 1 for all others, shape (n_topics, n_columns)."""
    p = np.ones((sample.n_topics, sample.shares.shape[1]))
    if not candidates:
        return p
    chosen = [(c.topic, c.columns, np.full(len(c.columns), float(c.direction))) for c in candidates]
    # Bonferroni over topics asks for p-values that few permutations cannot resolve
    p_values = chosen_p_values(
        sample.shares,
        sample.topic,
        chosen,
        n_topics=sample.n_topics,
        permutations=max(permutations, 20 * len(candidates)),
        seed=seed,
        strata=sample.strata,
    )
    for c, single in zip(candidates, p_values, strict=True):
        family = sum(other.direction == c.direction for other in candidates)
        p[c.topic, c.columns] = np.minimum(1.0, np.maximum.accumulate(np.nan_to_num(single, nan=1.0)) * family)
    return p


def _lifts(sample: LabelledShares, candidates: list[_Candidates]) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Topic, columns and log2 lifts of the candidates."""
    if not candidates:
        return []
    union = np.unique(np.concatenate([c.columns for c in candidates]))
    effect = log2_lift(sample.shares[:, union], sample.topic, n_topics=sample.n_topics, pseudo=sample.pseudo[:, union])
    return [(c.topic, c.columns, effect.log2_lift[c.topic, np.searchsorted(union, c.columns)]) for c in candidates]
