"""The unit that predicts each topic best: an expert, a group of experts, a feature, a set of features, or tokens alone.

Units are chosen on training documents and measured on held-out ones, by document and by token, with intervals and paired
differences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.progress import track
from moe_probe.core.stats import Resamples, student_interval
from moe_probe.core.stats.information import effective_number
from moe_probe.core.units import format_members
from moe_probe.features.matching.topic_units import Source, SplitSignals, Unit, UnitAuroc, choose_units, measure_unit
from moe_probe.features.matching.words import frequent_tokens, log2_beyond_own_words, token_signals

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from moe_probe.features.firing import SplitFirings
    from moe_probe.features.matching.routing_split import RoutingSplit

#: Sizes up to which groups of experts and sets of features grow.
MAX_EXPERTS, MAX_FEATURES = 4, 8
#: Source of the units that are words: sets of token ids, as large as sets of features.
TOKENS = "tokens"
#: Columns that the table has, whatever could be measured.
_COLUMNS = (
    *("topic", "kind", "layer", "source", "members", "train_auroc", "label"),
    *("auroc_document", "document_low", "document_high", "auroc_token", "token_low", "token_high"),
    *("effective_experts", "effective_experts_all"),
    *(f"beyond_expert_{level}{end}" for level in ("document", "token") for end in ("", "_low", "_high")),
    *(f"beyond_{rival}_document{end}" for rival in ("token", "tokens") for end in ("", "_low", "_high")),
)


class _Predictor(NamedTuple):
    """The best candidate so far of a kind, with its held-out AUROC, and further columns."""

    unit: Unit
    auroc: UnitAuroc
    columns: dict[str, float]


class TopicPredictors:
    """Gathers candidates source by source (one SAE at a time is in memory), then measures the best of each kind.

    Parameters
    ----------
    split : RoutingSplit
    resamples : int
        Of groups of documents, by the bootstrap.
    seed : int
    """

    def __init__(self, split: RoutingSplit, *, resamples: int = 500, seed: int = 0) -> None:
        self.split, self.tokens, self.resamples, self.seed = split, split.tokens, resamples, seed
        self._best: dict[tuple[int, str], _Predictor] = {}
        self._selected: tuple[int, sparse.csr_array] | None = None
        for layer in dict.fromkeys(split.selections.layer.tolist()):
            chosen = (split.selections.of_layer(layer, rows) for rows in (split.train, split.held_out))
            self._add(Source("expert", f"layer {layer}", layer, MAX_EXPERTS), *chosen)
        self._codes = frequent_tokens(self.tokens, split.train)
        if len(self._codes):
            words = (token_signals(self.tokens, rows, self._codes) for rows in (split.train, split.held_out))
            self._add(Source("token", TOKENS, -1, MAX_FEATURES), *words)

    def add_features(self, name: str, layer: int, firings: SplitFirings) -> None:
        """Add the features of an SAE to the candidates.

        Parameters
        ----------
        name : str
            Folder of the SAE below RUN/sae.
        layer : int
        firings : SplitFirings
            On the tokens of the split.
        """
        self._add(Source("feature", name, layer, MAX_FEATURES), *(f.matrix for f in firings))

    def _add(self, source: Source, *matrices: sparse.csr_array) -> None:
        train, held_out = (
            SplitSignals(self.tokens.group[rows], self.tokens.topic[rows], matrix)
            for rows, matrix in zip((self.split.train, self.split.held_out), matrices, strict=True)
        )
        drawn = Resamples(held_out.group_topics, n=self.resamples, seed=self.seed)
        for topic in track(range(len(self.tokens.topics)), source.name, unit="topics"):
            if (held_out.group_topics == topic).sum() < 2:
                continue
            for unit in choose_units(source, train, topic):
                best = self._best.get((topic, unit.kind))
                if best is None or unit.train_auroc > best.unit.train_auroc:
                    measured = measure_unit(held_out, unit.members, topic, drawn)
                    columns = self._of_features(train, held_out, unit, topic, drawn) if source.kind == "feature" else {}
                    self._best[topic, unit.kind] = _Predictor(unit, measured, columns)

    def _of_features(
        self, train: SplitSignals, held_out: SplitSignals, unit: Unit, topic: int, drawn: Resamples
    ) -> dict[str, float]:
        """Measure what features alone have: the experts of their tokens, and how much more often they fire than words predict.

        The effective number of experts is that of the SAE's layer.
        """
        columns: dict[str, float] = {}
        fires = [signals.activation(unit.members) > 0 for signals in (train, held_out)]
        chosen = self._held_out_experts(unit.layer)
        if fires[1].any() and chosen.shape[1]:
            columns["effective_experts"] = effective_number(np.asarray(chosen[np.flatnonzero(fires[1])].sum(0)).ravel())
            columns["effective_experts_all"] = effective_number(np.asarray(chosen.sum(0)).ravel())
        log2 = log2_beyond_own_words(
            self.tokens, (self.split.train, fires[0]), (self.split.held_out, fires[1]), drawn.weights, topic=topic
        )
        n_groups = int((held_out.group_topics == topic).sum())
        return columns | student_interval(log2, n_groups - 1).row("log2_beyond_words", "log2_beyond_words")

    def _held_out_experts(self, layer: int) -> sparse.csr_array:
        """Experts of a layer that held-out tokens select; those of the last layer are kept."""
        if self._selected is None or self._selected[0] != layer:
            self._selected = layer, self.split.selections.of_layer(layer, self.split.held_out)
        return self._selected[1]

    def as_table(self, labels: Mapping[tuple[str, int], str]) -> pd.DataFrame:
        """Write one row per topic and kind of unit.

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
        for (topic, kind), (unit, measured, columns) in sorted(self._best.items()):
            members = [self._name(unit, m) for m in unit.members]
            row: dict[str, Any] = {
                "topic": self.tokens.topics[topic],
                "kind": kind,
                "layer": unit.layer,
                "source": unit.source,
                "members": format_members(members),
                "train_auroc": unit.train_auroc,
                "label": "" if kind.startswith("expert") else "; ".join(labels.get((unit.source, m), "") for m in members),
                **measured.document.row("auroc_document", "document"),
                **measured.token.row("auroc_token", "token"),
                **columns,
            }
            for rival, levels in (("expert", ("document", "token")), ("token", ("document",)), ("tokens", ("document",))):
                other = self._best.get((topic, rival))
                if other is not None:
                    for level in levels:
                        name = f"beyond_{rival}_{level}"
                        row |= measured.difference(other.auroc, level).row(name, name)
            rows.append(row)
        # columns that no row has, or all where there is no row, are there all the same: readers ask for them
        table = pd.DataFrame(rows)
        return table.reindex(columns=[*table.columns, *(c for c in _COLUMNS if c not in table.columns)])

    def _name(self, unit: Unit, member: int) -> int:
        """Return the number of an expert or a feature, the id of a token."""
        if unit.kind not in ("token", "tokens"):
            return member
        code, ids = int(self._codes[member]), self.tokens.token_ids
        return code if ids is None else int(ids[code])


def effective_topics(shares: Iterable[np.ndarray]) -> np.ndarray:
    """Count the effective topics of every expert, from its share of each topic's selections, (n_experts, n_topics)."""
    return np.array([effective_number(row) if row.sum() > 0 else np.nan for row in shares])
