"""Some documents of which only counts are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moe_probe.core.errors import MoeProbeError


@dataclass(frozen=True)
class UsageBlock:
    """Counts of some documents.

    Attributes
    ----------
    documents : sequence of mappings of str to str
        ``document, topic`` and optionally ``subtopic, group, split`` and more.
    counts : ndarray, shape (n_documents, n_layers, max_experts)
        Selections of each expert. Whole numbers, zero past a layer's own experts and in dense layers.
    tokens : ndarray of int, shape (n_documents,), optional
        Tokens of each document, where they are known.
    gate, saliency : ndarray of float, same shape as `counts`, optional
        Sums over these selections: of gate weights, and of gate weights times norms of the experts' outputs.
    source : str
        File and unit that messages name, such as ``row of usage.npz``; "" for documents by their name alone.
    first : int
        Number of the first document in that unit.

    Raises
    ------
    MoeProbeError
        When the arrays disagree in shape.
    """

    documents: Sequence[Mapping[str, str]]
    counts: np.ndarray
    tokens: np.ndarray | None = None
    gate: np.ndarray | None = None
    saliency: np.ndarray | None = None
    source: str = ""
    first: int = 0

    def __post_init__(self) -> None:
        """Refuse arrays of different shapes."""
        shape = self.counts.shape
        if len(shape) != 3 or shape[0] != len(self.documents) or not shape[2]:
            raise MoeProbeError(
                f"the counts have shape {shape} for {len(self.documents):,} documents",
                "their axes are document, layer and expert",
                "one row of counts per document",
            )
        for name in ("gate", "saliency"):
            values = getattr(self, name)
            if values is not None and values.shape != shape:
                raise MoeProbeError(f"{name} has shape {values.shape}, the counts have {shape}", "", "arrays of one shape")
        if self.tokens is not None and self.tokens.shape != shape[:1]:
            raise MoeProbeError(f"there are {self.tokens.shape} numbers of tokens for {shape[0]:,} documents")

    def where(self, row: int) -> str:
        """Name a document of the block."""
        name = f"document '{self.documents[row].get('document')}'"
        return f"{name} ({self.source} {self.first + row})" if self.source else name
