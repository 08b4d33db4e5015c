"""Who carries a topic best: an expert, a group of experts, a feature, a set of features, or words alone? Chosen on training
documents, and measured on held-out ones, of documents and of tokens, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.stats import Interval, Resamples, auroc, auroc_difference, auroc_interval, student_interval
from moe_probe.core.stats.bootstrap import correlation_of
from moe_probe.core.units import format_members
from moe_probe.features.matching.words import frequent_tokens, log2_beyond_own_words, token_signals

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from moe_probe.features.firing import Firings
    from moe_probe.features.matching.signals import Choices, Tokens

#: Sizes up to which groups of experts and sets of features grow, as long as a member adds `_WORTH` to the AUROC.
MAX_EXPERTS, MAX_FEATURES = 4, 8
#: Source of the units that are words: sets of token ids, as large as sets of features.
TOKENS = "tokens"
_WORTH = 0.002
_CANDIDATES = 40
_BINS = 32
#: Columns that the table has, whatever could be measured.
_COLUMNS = (
    "topic",
    "kind",
    "layer",
    "source",
    "members",
    "train_auroc",
    "label",
    "auroc_document",
    "document_low",
    "document_high",
    "auroc_token",
    "token_low",
    "token_high",
    "effective_experts",
    "effective_experts_all",
    "beyond_expert_document",
    "beyond_expert_document_low",
    "beyond_expert_document_high",
    "beyond_expert_token",
    "beyond_expert_token_low",
    "beyond_expert_token_high",
    *(f"beyond_{rival}_document{end}" for rival in ("token", "tokens") for end in ("", "_low", "_high")),
)


class Unit(NamedTuple):
    """A candidate: columns of one source (experts of a layer, features of an SAE)."""

    kind: str
    source: str
    layer: int
    members: tuple[int, ...]
    train_auroc: float


@dataclass(frozen=True)
class Side:
    """Tokens of one half with signals over them, and the rates of their groups.

    Attributes
    ----------
    group, topic : ndarray of int, shape (n_tokens,)
    signals : csr_array, shape (n_tokens, n_units)
    """

    group: np.ndarray
    topic: np.ndarray
    signals: sparse.csr_array
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def groups(self) -> np.ndarray:
        """Groups that have labelled tokens."""
        if "groups" not in self._kept:
            self._kept["groups"] = np.unique(self.group[self.topic >= 0])
        return np.asarray(self._kept["groups"])

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of a group's tokens on which each unit is active, (n_groups, n_units), and the groups' topics."""
        from scipy import sparse

        if "rates" not in self._kept:
            token = np.flatnonzero(self.topic >= 0)
            number = np.searchsorted(self.groups, self.group[token])
            sizes = np.bincount(number, minlength=len(self.groups))
            one = sparse.csr_array((1 / sizes[number], (number, token)), shape=(len(self.groups), len(self.group)))
            active = sparse.csr_array(
                (np.ones(self.signals.nnz), self.signals.indices, self.signals.indptr), shape=self.signals.shape
            )
            topic = np.zeros(len(self.groups), dtype=int)
            topic[number] = self.topic[token]
            self._kept["rates"] = np.asarray((one @ active).toarray()), topic
        rates, topic = self._kept["rates"]
        return rates, topic


def choose_units(kind: str, source: str, layer: int, side: Side, topic: int, *, largest: int) -> list[Unit]:
    """The best single unit of a source for a topic, and the best set that grows from it, on training documents.

    A set's rate is the sum of its members' rates. Ties in AUROC go to the larger difference in standard deviations.
    """
    rates, topics = side.rates()
    mine = (topics == topic).astype(int)
    if mine.sum() < 2 or (1 - mine).sum() < 2:
        return []
    area = np.nan_to_num(auroc(rates, mine, n_topics=2)[1], nan=0.5)
    apart = (rates[mine == 1].mean(0) - rates[mine == 0].mean(0)) / (rates.std(0) + 1e-12)
    order = np.lexsort((np.arange(len(area)), -apart, -np.round(area, 3)))[:_CANDIDATES]
    single = int(order[0])
    units = [Unit(kind, source, layer, (single,), float(area[single]))]
    members, best, total = [single], float(area[single]), rates[:, single].copy()
    while len(members) < largest:
        rest = [c for c in order if c not in members]
        if not rest:
            break
        tried = np.nan_to_num(auroc(total[:, None] + rates[:, rest], mine, n_topics=2)[1], nan=0.5)
        i = int(tried.argmax())
        if tried[i] < best + _WORTH:
            break
        members.append(int(rest[i]))
        best, total = float(tried[i]), total + rates[:, rest[i]]
    if len(members) > 1:
        units.append(Unit(f"{kind}s", source, layer, tuple(members), best))
    return units


@dataclass(frozen=True)
class Measured:
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

    def less(self, other: Measured, name: str) -> Interval:
        """Difference from another unit's AUROC for the same topic and documents."""
        return auroc_difference(
            getattr(self, name), getattr(other, name), correlation_of(self.draws[name], other.draws[name])
        )


def weighted_auroc(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """AUROC from histograms of scores, bins in increasing order; ties within a bin count half.

    Parameters
    ----------
    positive, negative : ndarray, shape (n_draws, n_bins)
    """
    below = np.cumsum(negative, axis=1) - 0.5 * negative
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((positive * below).sum(1) / (positive.sum(1) * negative.sum(1)))


def measure_unit(side: Side, members: tuple[int, ...], topic: int, drawn: Resamples) -> Measured:
    """AUROC of a unit for a topic on held-out documents, with intervals.

    Parameters
    ----------
    drawn : Resamples
        Of the side's groups within topics.
    """
    rates, topics = side.rates()
    mine, draws = topics == topic, drawn.weights
    _, rank = np.unique(np.round(rates[:, list(members)].sum(1), 12), return_inverse=True)
    bins = np.zeros((len(rank), rank.max() + 1))
    bins[np.arange(len(rank)), rank] = 1
    document = weighted_auroc((draws * mine) @ bins, (draws * ~mine) @ bins)
    score = np.asarray(side.signals[:, list(members)].sum(1)).ravel()
    token = np.flatnonzero(side.topic >= 0)
    fired = score[score > 0]
    edges = np.unique(np.quantile(fired, np.linspace(0, 1, _BINS))) if len(fired) else np.zeros(1)
    place = np.where(score > 0, np.searchsorted(edges, score) + 1, 0)[token]
    number = np.searchsorted(side.groups, side.group[token])
    width = int(place.max()) + 1
    counts = np.bincount(number * width + place, minlength=len(rank) * width).reshape(len(rank), width).astype(float)
    tokens = weighted_auroc((draws * mine) @ counts, (draws * ~mine) @ counts)
    sizes = int(mine.sum()), int((~mine).sum())
    return Measured(
        auroc_interval(float(document[0]), *sizes),
        auroc_interval(float(tokens[0]), *sizes, draws=tokens),
        {"document": document, "token": tokens},
    )


class Carriers:
    """Gathers candidates source by source (an SAE at a time is in memory), then measures the best of each kind.

    Parameters
    ----------
    choices : Choices
    tokens : Tokens
    train, held_out : ndarray of int
        Rows of the trace.
    """

    def __init__(
        self,
        choices: Choices,
        tokens: Tokens,
        train: np.ndarray,
        held_out: np.ndarray,
        *,
        resamples: int = 500,
        seed: int = 0,
    ) -> None:
        self.choices, self.tokens, self.train, self.held_out = choices, tokens, train, held_out
        self.resamples, self.seed = resamples, seed
        #: By topic and kind: the best candidate so far with its held-out AUROC, and what else is known of it.
        self.best: dict[tuple[int, str], tuple[Unit, Measured, dict[str, float]]] = {}
        for layer in dict.fromkeys(choices.layer.tolist()):
            chosen = choices.of_layer(layer)
            sides = self._side(chosen[train], train), self._side(chosen[held_out], held_out)
            self._offer("expert", f"layer {layer}", layer, *sides, largest=MAX_EXPERTS, spread=False)
        self._codes = frequent_tokens(tokens, train)
        if len(self._codes):
            words = (self._side(token_signals(tokens, rows, self._codes), rows) for rows in (train, held_out))
            self._offer("token", TOKENS, -1, *words, largest=MAX_FEATURES, spread=False)

    def add_features(self, name: str, layer: int, train: Firings, held_out: Firings) -> None:
        """Offer the features of an SAE."""
        self._offer(
            "feature",
            name,
            layer,
            self._side(train.matrix, self.train),
            self._side(held_out.matrix, self.held_out),
            largest=MAX_FEATURES,
            spread=True,
        )

    def _side(self, signals: sparse.csr_array, rows: np.ndarray) -> Side:
        return Side(self.tokens.group[rows], self.tokens.topic[rows], signals)

    def _offer(self, kind: str, source: str, layer: int, train: Side, held_out: Side, *, largest: int, spread: bool) -> None:
        _, topics = held_out.rates()
        drawn = Resamples(topics, n=self.resamples, seed=self.seed)
        for topic in range(len(self.tokens.topics)):
            if (topics == topic).sum() < 2:
                continue
            for unit in choose_units(kind, source, layer, train, topic, largest=largest):
                known = self.best.get((topic, unit.kind))
                if known is None or unit.train_auroc > known[0].train_auroc:
                    found = measure_unit(held_out, unit.members, topic, drawn)
                    more: dict[str, float] = {}
                    if spread:
                        more = self._passes(held_out, unit) | self._beyond_own_words(train, held_out, unit, topic, drawn)
                    self.best[topic, unit.kind] = unit, found, more

    def _beyond_own_words(
        self,
        train: Side,
        held_out: Side,
        unit: Unit,
        topic: int,
        drawn: Resamples,
    ) -> dict[str, float]:
        """How much more often the unit fires in the topic's documents than their tokens predict, with its interval."""
        fires = [np.asarray(side.signals[:, list(unit.members)].sum(1)).ravel() > 0 for side in (train, held_out)]
        log2 = log2_beyond_own_words(
            self.tokens, (self.train, fires[0]), (self.held_out, fires[1]), drawn.weights, topic=topic
        )
        groups = int((held_out.rates()[1] == topic).sum())
        return student_interval(log2, groups - 1).row("log2_beyond_words", "log2_beyond_words")

    def _passes(self, side: Side, unit: Unit) -> dict[str, float]:
        """Effective number of experts, of the SAE's layer, that the unit's tokens pass through, and that all tokens do."""
        active = np.flatnonzero(np.asarray(side.signals[:, list(unit.members)].sum(1)).ravel() > 0)
        chosen = self.choices.of_layer(unit.layer)[self.held_out]
        if not len(active) or not chosen.shape[1]:
            return {}
        return {
            "effective_experts": effective_number(np.asarray(chosen[active].sum(0)).ravel()),
            "effective_experts_all": effective_number(np.asarray(chosen.sum(0)).ravel()),
        }

    def table(self, labels: Mapping[tuple[str, int], str]) -> pd.DataFrame:
        """One row per topic and kind of unit.

        Parameters
        ----------
        labels : mapping
            Label of each (SAE, feature), and text of each (`TOKENS`, token id).

        Returns
        -------
        pandas.DataFrame
            ``topic, kind`` (expert | experts | feature | features | token | tokens), ``layer`` (-1 for tokens)``, source,
            members`` (as text; ids of tokens)``, label, train_auroc, auroc_document, document_low, document_high,
            auroc_token, token_low, token_high``, and the differences ``beyond_expert_document`` and ``beyond_expert_token``
            from the best expert, ``beyond_token_document`` and ``beyond_tokens_document`` from the best token and the best
            set of tokens, all with ``_low, _high``; of features ``effective_experts`` that the unit's tokens pass through,
            ``effective_experts_all`` that all tokens do, and ``log2_beyond_words`` with ``_low, _high``.
        """
        import pandas as pd

        rows = []
        for (topic, kind), (unit, found, more) in sorted(self.best.items()):
            members = [self._name(unit, m) for m in unit.members]
            row: dict[str, Any] = {
                "topic": self.tokens.topics[topic],
                "kind": kind,
                "layer": unit.layer,
                "source": unit.source,
                "members": format_members(members),
                "train_auroc": unit.train_auroc,
                "label": "" if kind.startswith("expert") else "; ".join(labels.get((unit.source, m), "") for m in members),
                **found.document.row("auroc_document", "document"),
                **found.token.row("auroc_token", "token"),
                **more,
            }
            for rival, levels in (("expert", ("document", "token")), ("token", ("document",)), ("tokens", ("document",))):
                other = self.best.get((topic, rival))
                if other is not None:
                    for name in levels:
                        row |= found.less(other[1], name).row(f"beyond_{rival}_{name}", f"beyond_{rival}_{name}")
            rows.append(row)
        # columns that no row has, or all where there is no row, are there all the same: readers ask for them
        table = pd.DataFrame(rows)
        return table.reindex(columns=[*table.columns, *(c for c in _COLUMNS if c not in table.columns)])

    def _name(self, unit: Unit, member: int) -> int:
        """Number of an expert or a feature, id of a token."""
        if unit.kind not in ("token", "tokens"):
            return member
        code, ids = int(self._codes[member]), self.tokens.token_ids
        return code if ids is None else int(ids[code])


def effective_number(counts: np.ndarray) -> float:
    """Two to the entropy of shares: how many equally used units would be as spread out (Hill 1973, DOI 10.2307/1934352)."""
    shares = counts[counts > 0] / counts.sum()
    return float(2 ** -(shares * np.log2(shares)).sum())


def topics_served(shares: Iterable[np.ndarray]) -> np.ndarray:
    """Effective number of topics of every expert, from its share of each topic's selections, (n_experts, n_topics)."""
    return np.array([effective_number(row) if row.sum() > 0 else np.nan for row in shares])
