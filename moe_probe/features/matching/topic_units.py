"""Units that may predict a topic: the best of a source on training documents, and its AUROC on held-out ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.stats import Interval, Resamples, auroc, auroc_difference, auroc_interval
from moe_probe.core.stats.auroc import weighted_auroc
from moe_probe.core.stats.bootstrap import correlation_of

if TYPE_CHECKING:
    from scipy import sparse

#: A set grows while a member adds as much to the AUROC; only so many units are candidates for it.
_WORTH, _CANDIDATES = 0.002, 40
_BINS = 32


class Source(NamedTuple):
    """Where units come from: the experts of a layer, the features of an SAE, or tokens; ``largest`` is the size of a set."""

    kind: str
    name: str
    layer: int
    largest: int


class Unit(NamedTuple):
    """A candidate: columns of one source (experts of a layer, features of an SAE)."""

    kind: str
    source: str
    layer: int
    members: tuple[int, ...]
    train_auroc: float


@dataclass(frozen=True)
class SplitSignals:
    """Signals over the training tokens or the held-out ones, and the rates of their groups.

    Attributes
    ----------
    group, topic : ndarray of int, shape (n_tokens,)
    signals : csr_array, shape (n_tokens, n_units)
    """

    group: np.ndarray
    topic: np.ndarray
    signals: sparse.csr_array

    @cached_property
    def groups(self) -> np.ndarray:
        """Groups that have labelled tokens."""
        return np.unique(self.group[self.topic >= 0])

    @cached_property
    def group_topics(self) -> np.ndarray:
        """Topics of the groups, shape (n_groups,)."""
        topics = np.zeros(len(self.groups), dtype=int)
        labelled = self.topic >= 0
        topics[np.searchsorted(self.groups, self.group[labelled])] = self.topic[labelled]
        return topics

    @cached_property
    def rates(self) -> np.ndarray:
        """Share of a group's tokens on which each unit is active, shape (n_groups, n_units)."""
        from scipy import sparse

        token = np.flatnonzero(self.topic >= 0)
        number = np.searchsorted(self.groups, self.group[token])
        sizes = np.bincount(number, minlength=len(self.groups))
        one = sparse.csr_array((1 / sizes[number], (number, token)), shape=(len(self.groups), len(self.group)))
        active = sparse.csr_array(
            (np.ones(self.signals.nnz), self.signals.indices, self.signals.indptr), shape=self.signals.shape
        )
        return np.asarray((one @ active).toarray())

    @cached_property
    def areas(self) -> np.ndarray:
        """AUROC of every unit's rate for every topic that groups have, against the other groups; (n_topics, n_units)."""
        topics = self.group_topics
        return np.asarray(np.nan_to_num(auroc(self.rates, topics, n_topics=int(topics.max(initial=-1)) + 1), nan=0.5))

    @cached_property
    def _columns(self) -> sparse.csc_array:
        return self.signals.tocsc()

    def activation(self, members: tuple[int, ...]) -> np.ndarray:
        """Sum the signals of some units, shape (n_tokens,)."""
        columns = self._columns
        total = np.zeros(columns.shape[0], dtype=np.int64 if columns.dtype.kind in "iub" else columns.dtype)
        for member in sorted(members):
            column = slice(columns.indptr[member], columns.indptr[member + 1])
            total[columns.indices[column]] += columns.data[column]
        return total


def choose_units(source: Source, signals: SplitSignals, topic: int) -> list[Unit]:
    """Choose the best single unit of a source for a topic, and the best set that grows from it, on training documents.

    A set's rate is the sum of its members' rates. Ties in AUROC go to the larger difference in standard deviations.

    Parameters
    ----------
    source : Source
    signals : SplitSignals
        Of the source's units.
    topic : int

    Returns
    -------
    list of Unit
        None, one or two.
    """
    rates = signals.rates
    of_topic = (signals.group_topics == topic).astype(int)
    if of_topic.sum() < 2 or (1 - of_topic).sum() < 2:
        return []
    area = signals.areas[topic]
    apart = (rates[of_topic == 1].mean(0) - rates[of_topic == 0].mean(0)) / (rates.std(0) + 1e-12)
    order = np.lexsort((np.arange(len(area)), -apart, -np.round(area, 3)))[:_CANDIDATES]
    single = int(order[0])
    units = [Unit(source.kind, source.name, source.layer, (single,), float(area[single]))]
    members, best, total = [single], float(area[single]), rates[:, single].copy()
    while len(members) < source.largest:
        rest = [c for c in order if c not in members]
        if not rest:
            break
        areas = np.nan_to_num(auroc(total[:, None] + rates[:, rest], of_topic, n_topics=2)[1], nan=0.5)
        i = int(areas.argmax())
        if areas[i] < best + _WORTH:
            break
        members.append(int(rest[i]))
        best, total = float(areas[i]), total + rates[:, rest[i]]
    if len(members) > 1:
        units.append(Unit(f"{source.kind}s", source.name, source.layer, tuple(members), best))
    return units


@dataclass(frozen=True)
class UnitAuroc:
    """AUROC of a unit for a topic.

    Attributes
    ----------
    document, token : Interval
        95 %.
    draws : dict
        By those names the draws over resamples of groups, the estimate first: (1 + n_resamples,).
    """

    document: Interval
    token: Interval
    draws: dict[str, np.ndarray]

    def difference(self, other: UnitAuroc, level: str) -> Interval:
        """Subtract another unit's AUROC for the same topic and documents.

        Parameters
        ----------
        other : UnitAuroc
        level : {"document", "token"}

        Returns
        -------
        Interval
        """
        correlation = correlation_of(self.draws[level], other.draws[level])
        return auroc_difference(getattr(self, level), getattr(other, level), correlation)


def measure_unit(signals: SplitSignals, members: tuple[int, ...], topic: int, drawn: Resamples) -> UnitAuroc:
    """Measure the AUROC of a unit for a topic on held-out documents, with intervals.

    Parameters
    ----------
    signals : SplitSignals
        Of the source's units.
    members : tuple of int
        Columns of `signals`.
    topic : int
    drawn : Resamples
        Of the groups of `signals` within topics.

    Returns
    -------
    UnitAuroc
    """
    of_topic, draws = signals.group_topics == topic, drawn.weights
    _, rank = np.unique(np.round(signals.rates[:, list(members)].sum(1), 12), return_inverse=True)
    bins = np.zeros((len(rank), rank.max() + 1))
    bins[np.arange(len(rank)), rank] = 1
    document = weighted_auroc((draws * of_topic) @ bins, (draws * ~of_topic) @ bins)
    score = signals.activation(members)
    token = np.flatnonzero(signals.topic >= 0)
    fired = score[score > 0]
    edges = np.unique(np.quantile(fired, np.linspace(0, 1, _BINS))) if len(fired) else np.zeros(1)
    bin_index = np.where(score > 0, np.searchsorted(edges, score) + 1, 0)[token]
    number = np.searchsorted(signals.groups, signals.group[token])
    width = int(bin_index.max()) + 1
    counts = np.bincount(number * width + bin_index, minlength=len(rank) * width).reshape(len(rank), width).astype(float)
    tokens = weighted_auroc((draws * of_topic) @ counts, (draws * ~of_topic) @ counts)
    sizes = int(of_topic.sum()), int((~of_topic).sum())
    return UnitAuroc(
        auroc_interval(float(document[0]), *sizes),
        auroc_interval(float(tokens[0]), *sizes, draws=tokens),
        {"document": document, "token": tokens},
    )
