"""The tokens that pairs of experts and features are chosen on, and those that they are scored on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.features.matching.counts import Pairs, Scores, best_pairs, score_pairs
from moe_probe.features.matching.signals import Selections, TokenTable, one_hot, pair_codes

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True)
class RoutingSplit:
    """Experts selected by training and by held-out tokens; `train` and `held_out` are rows of the trace, increasing."""

    selections: Selections
    tokens: TokenTable
    train: np.ndarray
    held_out: np.ndarray

    def score(self, features: sparse.csr_array, pairs: Pairs) -> Scores:
        """Measure pairs on the held-out tokens.

        Parameters
        ----------
        features : csr_array, shape (n_held_out, n_features)
        pairs : Pairs

        Returns
        -------
        Scores
        """
        group = self.tokens.group[self.held_out]
        chosen = self.selections.of_tokens(self.held_out)
        return score_pairs(chosen, features, pairs[:2], group, n_groups=self.tokens.n_groups)

    def best(self, features: sparse.csr_array, *, per_expert: int) -> Pairs:
        """Choose pairs on the training tokens.

        Parameters
        ----------
        features : csr_array, shape (n_train, n_features)
        per_expert : int
            Features kept of every expert.

        Returns
        -------
        Pairs
        """
        return best_pairs(self.selections.of_tokens(self.train), features, per_expert=per_expert)

    def best_scores(self, train: sparse.csr_array, held_out: sparse.csr_array) -> Scores:
        """Choose the best feature of every expert on training tokens and measure it on held-out ones.

        Parameters
        ----------
        train, held_out : csr_array, shape (n_tokens, n_features)

        Returns
        -------
        Scores
            Of all experts; without any match the AUROC is one half and the rest NaN.
        """
        pairs = self.best(train, per_expert=1)
        scores = self.score(held_out, pairs)
        missing = {"auroc": 0.5, "activation_auroc": 0.5}
        every = []
        for name, values in scores._asdict().items():
            full = np.full(len(self.selections.layer), missing.get(name, np.nan))
            full[pairs.expert] = values
            every.append(full)
        return Scores(*every)

    def baseline_scores(self) -> dict[str, Scores]:
        """Score the best ``token``, ``token pair`` and ``topic`` of every expert by the same procedure as features."""
        tokens = self.tokens
        pairs, n_pairs = pair_codes(tokens, self.train)
        columns = {
            "token": (tokens.token, int(tokens.token.max()) + 1),
            "token pair": (pairs, n_pairs),
            "topic": (tokens.topic, len(tokens.topics)),
        }
        signals = {name: one_hot(codes, max(n, 1)) for name, (codes, n) in columns.items()}
        return {name: self.best_scores(x[self.train], x[self.held_out]) for name, x in signals.items()}
