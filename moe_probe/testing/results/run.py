"""What planted tables are drawn for: layers, experts, topics, words and SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace


@dataclass(frozen=True)
class PlantedRun:
    """A run whose tables are drawn at random.

    Attributes
    ----------
    rng : numpy.random.Generator
        Source of all numbers: the order of the tables decides them.
    trace : Trace
    experts : ndarray of int, shape (n_experts, 2)
        Layer and number of every expert.
    topics, words : list of str
    width : int
        Features of each SAE.
    """

    rng: np.random.Generator
    trace: Trace
    experts: np.ndarray
    topics: list[str]
    words: list[str]
    width: int

    @classmethod
    def of(cls, trace: Trace, words: Sequence[str], *, width: int, seed: int) -> PlantedRun:
        """Take layers, experts and topics from a trace.

        Parameters
        ----------
        trace : Trace
        words : sequence of str
            Tokens of all contexts and labels.
        width : int
            Features of each SAE.
        seed : int
            Seed of all numbers.

        Returns
        -------
        PlantedRun
        """
        experts = np.array([(m.layer, e) for m in trace.layers for e in range(m.num_experts)])
        return cls(
            np.random.default_rng(seed), trace, experts, sorted(trace.documents["topic"].unique()), list(words), width
        )

    @property
    def saes(self) -> list[tuple[int, str]]:
        """Layer and name of two SAEs."""
        return [(int(layer), f"layer_{int(layer):02d}/width_00064") for layer in np.unique(self.experts[:, 0])[:2]]

    def choice(self, values: Sequence[str], n: int) -> np.ndarray:
        """Draw texts.

        Parameters
        ----------
        values : sequence of str
            To draw from, with replacement.
        n : int
            How many.

        Returns
        -------
        ndarray of object, shape (n,)
        """
        return self.rng.choice(np.array(values, dtype=object), n)

    def interval(self, value: np.ndarray, names: tuple[str, str, str], spread: float = 0.1) -> dict[str, np.ndarray]:
        """Draw an interval about every value.

        Parameters
        ----------
        value : ndarray of float, shape (n,)
        names : tuple of str
            Columns of the value, the lower and the upper end.
        spread : float
            Half of the interval's width, about.

        Returns
        -------
        dict of str to ndarray, shape (n,) each
        """
        half = spread * self.rng.uniform(0.5, 1.5, len(value))
        return {names[0]: value, names[1]: value - half, names[2]: value + half}
