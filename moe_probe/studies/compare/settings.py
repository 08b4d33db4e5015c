"""How runs are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_probe.studies.compare.compared_run import ComparedRun

#: Permutations that a stored result may ask for: computing them again must end.
MOST_PERMUTATIONS = 1_000_000


@dataclass(frozen=True)
class ComparisonSettings:
    """How runs are compared.

    Attributes
    ----------
    resamples : int
        Bootstrap resamples of groups of documents.
    permutations : int
        Permutations behind the null of the alignment.
    seed : int
    alpha : float
        False discovery rate of ``beyond``.
    """

    resamples: int = 1000
    permutations: int = 199
    seed: int = 0
    alpha: float = 0.05

    def params(self, a: ComparedRun, b: ComparedRun) -> dict[str, Any]:
        """List the parameters of a result on differences between two runs.

        Parameters
        ----------
        a, b : ComparedRun

        Returns
        -------
        dict
        """
        return {"alpha": self.alpha, "resamples": self.resamples, "label_a": a.label, "label_b": b.label}
