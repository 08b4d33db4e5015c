"""Excerpts around a feature's firings of all strengths, and around tokens on which it stays silent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.pieces import whole_characters

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.features.firing import Firings
    from moe_probe.recording.trace import Trace

#: Tokens shown before and behind the one in question.
BEFORE, BEHIND = 20, 8
#: Names of the parts, by strength of firing; the silent ones last.
TOP, FIFTHS, HARD, SILENT = "strongest", ("fifth 5", "fifth 4", "fifth 3", "fifth 2", "fifth 1"), "nearest feature", "silent"


@dataclass(frozen=True)
class Excerpt:
    """Some tokens of a document, with a feature's activation on each (0: silent); `pieces.decode` gives their text.

    ``part`` says how it was drawn: the strongest firings, a fifth of the firings by strength (5 is the
    strongest), a token on which only the feature of nearest direction fires, or any silent token.
    ``row`` is the trace's row of the token in question.
    """

    part: str
    row: int
    document: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


class Excerpts:
    """Draws excerpts of features from held-out (or any) firings.

    Parameters
    ----------
    trace : Trace
    firings : Firings
    seed : int
    """

    def __init__(self, trace: Trace, firings: Firings, *, seed: int = 0) -> None:
        table = trace.tokens(["document", "token"])
        self._tokens = trace.spaced(table["token"].to_numpy(dtype=object))
        self._document = table["document"].to_numpy()
        self._rows = firings.rows
        self._columns: sparse.csc_array = firings.matrix.tocsc()
        self._seed = seed

    def draw(
        self,
        feature: int,
        *,
        neighbour: int | None = None,
        top: int = 3,
        per_fifth: int = 1,
        silent: int = 1,
    ) -> list[Excerpt]:
        """Draw excerpts of one feature, by falling strength, each from another document as far as possible.

        Parameters
        ----------
        feature : int
        neighbour : int, optional
            Feature of nearest direction: one token on which it fires and this feature does not is added.
        top, per_fifth, silent : int
            Excerpts of the strongest firings, of each fifth of the firings by strength, and of silent tokens.

        Returns
        -------
        list of Excerpt
        """
        rng = np.random.default_rng([self._seed, feature])
        token, value = self._firing(feature)
        order = np.argsort(-value, kind="stable")
        used: set[int] = set()
        excerpts = [self._cut(TOP, feature, t) for t in self._spread(token[order], top, used)]
        for name, fifth in zip(FIFTHS, np.array_split(order, len(FIFTHS)), strict=True):
            drawn = self._spread(token[rng.permutation(fifth)], per_fifth, used)
            excerpts += [self._cut(name, feature, t) for t in drawn]
        if neighbour is not None:
            only_neighbour = np.setdiff1d(self._firing(neighbour)[0], token)
            excerpts += [
                self._cut(HARD, feature, t) for t in self._spread(rng.permutation(only_neighbour), min(1, silent), used)
            ]
        others = rng.integers(len(self._rows), size=8 * silent + 8)
        others = others[~np.isin(others, token)]
        return excerpts + [self._cut(SILENT, feature, t) for t in self._spread(others, silent, used)]

    def _firing(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = self._columns.indptr[feature], self._columns.indptr[feature + 1]
        return self._columns.indices[start:end], self._columns.data[start:end]

    def _spread(self, tokens: Sequence[int] | np.ndarray, n: int, used: set[int]) -> Iterator[int]:
        """Take the first `n` tokens from documents that were not used yet; others only if these do not suffice."""
        chosen: list[int] = []
        spare: list[int] = []
        for token in tokens:
            document = int(self._document[self._rows[token]])
            if len(chosen) == n:
                break
            if document in used:
                spare.append(int(token))
            else:
                used.add(document)
                chosen.append(int(token))
        yield from (chosen + spare)[:n]

    def _cut(self, part: str, feature: int, token: int) -> Excerpt:
        row = int(self._rows[token])
        document = int(self._document[row])
        first, end = (int(np.searchsorted(self._document, document, side=side)) for side in ("left", "right"))
        low, high = whole_characters(self._tokens, max(first, row - BEFORE), min(end, row + 1 + BEHIND), within=(first, end))
        firing, value = self._firing(feature)
        strengths = np.zeros(high - low)
        near = slice(*np.searchsorted(self._rows[firing], [low, high]))
        strengths[self._rows[firing][near] - low] = value[near]
        return Excerpt(part, row, document, tuple(self._tokens[low:high].tolist()), tuple(strengths.tolist()))
