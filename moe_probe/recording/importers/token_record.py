"""One document as somebody recorded it, and the rows of the file that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import dropped_id

#: Numbers in an array of experts that are never too many, and how much larger than its lists a larger one may be.
_MOST_CELLS, _UNEVEN = 1 << 24, 8


@dataclass(frozen=True)
class SourceRows:
    """Rows of a file, for messages.

    Attributes
    ----------
    path : Path
    unit : str
        What a row is called: ``row``, ``line`` or ``entry``.
    numbers : ndarray of int, shape (n_rows,)
        Number of each row in the file, counted from 1.
    """

    path: Path
    unit: str
    numbers: np.ndarray

    def name(self, row: int) -> str:
        """Name one of the rows."""
        return f"{self.unit} {int(self.numbers[row])} of {self.path}"

    def error(self, row: int, what: str, why: str = "", hint: str = "") -> MoeProbeError:
        """Build the error for one of the rows.

        Parameters
        ----------
        row : int
            Position among these rows.
        what, why, hint : str
            What is wrong with it, why, and what to try.

        Returns
        -------
        MoeProbeError
        """
        return MoeProbeError(f"{self.name(row)} {what}", why, hint)

    def take(self, rows: np.ndarray | slice) -> SourceRows:
        """Return some of the rows, by a mask or a slice."""
        return replace(self, numbers=self.numbers[rows])


def check_lists(lengths: np.ndarray, n_layers: int, name: Callable[[int], str]) -> None:
    """Refuse lists of experts that are too long, or so unequal that the array of all of them would be mostly empty.

    Parameters
    ----------
    lengths : ndarray of int, shape (n_tokens,)
        Length of the longest list of each token.
    n_layers : int
        Layers that get as many slots.
    name : callable
        Names a token by its number.

    Raises
    ------
    MoeProbeError
        Before memory is taken for them.
    """
    if not len(lengths):
        return
    row = int(lengths.argmax())
    longest = int(lengths[row])
    most = dropped_id("uint16")
    if longest > most:
        raise MoeProbeError(
            f"{name(row)} selects {longest:,} experts", f"a layer has {most:,} at most, each selected once", "check the ids"
        )
    cells = longest * len(lengths) * n_layers
    if cells > _MOST_CELLS and cells > _UNEVEN * n_layers * max(int(lengths.sum()), 1):
        raise MoeProbeError(
            f"{name(row)} selects {longest:,} experts, and most tokens {int(np.median(lengths)):,}",
            f"an array with so many slots for each of {len(lengths):,} tokens and {n_layers:,} layers would be nearly empty",
            "check the ids of that token",
        )


class TokenRecord(NamedTuple):
    """One document as somebody recorded it.

    Attributes
    ----------
    labels : mapping of str to str
        ``document, topic`` and optionally ``subtopic, group, split`` and more.
    token_id, position : ndarray of int, shape (n_tokens,)
    tokens : sequence of str, length n_tokens, or None
        Texts of the tokens.
    experts : ndarray of int64, shape (n_tokens, n_layers, n_slots)
        Expert ids, -1 in slots that reached no expert.
    weights : ndarray of float64, same shape, or None
        Gate weights.
    special : ndarray of bool, shape (n_tokens,), or None
        Special tokens, where they are known.
    source : SourceRows or None
        The row of the file that each token comes from.
    """

    labels: Mapping[str, str]
    token_id: np.ndarray
    position: np.ndarray
    tokens: Sequence[str] | None
    experts: np.ndarray
    weights: np.ndarray | None
    special: np.ndarray | None = None
    source: SourceRows | None = None

    def where(self, token: int) -> str:
        """Name a token of the record: row or line, document, position."""
        inside = f"document '{self.labels.get('document')}', position {int(self.position[token])}"
        return inside if self.source is None else f"{self.source.name(token)} ({inside})"

    def take(self, mask: np.ndarray) -> TokenRecord:
        """Return the record with only those tokens that a mask, shape (n_tokens,), selects."""
        return self._replace(
            token_id=self.token_id[mask],
            position=self.position[mask],
            tokens=None if self.tokens is None else [t for t, keep in zip(self.tokens, mask, strict=True) if keep],
            experts=self.experts[mask],
            weights=None if self.weights is None else self.weights[mask],
            special=None if self.special is None else self.special[mask],
            source=None if self.source is None else self.source.take(mask),
        )


def widen(arrays: Sequence[np.ndarray], empty: float) -> list[np.ndarray]:
    """Give arrays of experts or weights equally many slots.

    Parameters
    ----------
    arrays : sequence of ndarray, shape (..., n_slots)
        `n_slots` may differ.
    empty : float
        Value of the slots that are added.

    Returns
    -------
    list of ndarray
    """
    slots = max(array.shape[-1] for array in arrays)
    return [
        np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, slots - array.shape[-1])], constant_values=empty)
        for array in arrays
    ]
