"""A run under one label, and what two such runs have in common: documents, tokens, layers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.schema import Manifest

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.routing import Usage
    from moe_probe.recording.trace import Trace

#: Fewer shared documents than this say too little to be worth pairing.
FEWEST_SHARED = 8


@dataclass(frozen=True)
class ComparedRun:
    """A run under one label: one side of a comparison.

    Attributes
    ----------
    name : str
        Its name in every table.
    manifest : Manifest
        Of its trace.
    results : mapping of str to Result
        Under `label`: ``verdicts`` and ``layers`` at least.
    label : str
        Label column that its results are about.
    trace : Trace or None
        None where there are only results: differences then rest on their stored intervals.
    settings : mapping
        Further settings by name, for the table of what differs.
    """

    name: str
    manifest: Manifest
    results: Mapping[str, Result]
    label: str = "topic"
    trace: Trace | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def result(self, name: str) -> Result:
        """Look up a result by name.

        Raises
        ------
        MoeProbeError
            When the run holds no such result.
        """
        if name not in self.results:
            raise MoeProbeError(f"{self.name} has no result '{name}'", "a comparison needs it", "moe-probe analyze RUN")
        return self.results[name]

    @cached_property
    def usage(self) -> Usage | None:
        """Selections per document, or None without a trace."""
        return None if self.trace is None else self.trace.usage()

    def same_trace(self, other: ComparedRun) -> bool:
        """Whether both rest on one and the same trace."""
        return self.trace is not None and other.trace is not None and self.trace.root.resolve() == other.trace.root.resolve()


class SharedDocuments(NamedTuple):
    """Documents that two runs share.

    Attributes
    ----------
    rows_a, rows_b : ndarray of int64, shape (n_shared,)
        Their rows in either run.
    how : str
        Why they count as the same, or why none do.
    same_tokens : ndarray of bool, shape (n_shared,)
        Documents whose token ids and positions are equal one by one.
    no_tokens : str
        Why tokens cannot be compared, in a sentence; "" where some can.
    """

    rows_a: np.ndarray
    rows_b: np.ndarray
    how: str
    same_tokens: np.ndarray
    no_tokens: str

    @property
    def enough(self) -> bool:
        """Whether there are enough of them to pair."""
        return len(self.rows_a) >= FEWEST_SHARED


def shared_documents(a: ComparedRun, b: ComparedRun) -> SharedDocuments:
    """Find the documents that two runs share, by name and by what is in them.

    A name alone is not enough: the corpora must have the same hash, or a document the same text, or (where no text was
    kept) the same token ids.

    Parameters
    ----------
    a, b : ComparedRun

    Returns
    -------
    SharedDocuments
        Without rows where nothing shows that documents are the same.
    """
    none = np.zeros(0, dtype=np.int64)
    if a.trace is None or b.trace is None:
        return SharedDocuments(none, none, "one of the two has no trace", none.astype(bool), "One of the two has no trace.")
    rows_a, rows_b = _same_names(a.trace.documents, b.trace.documents)
    every = np.ones(len(rows_a), dtype=bool)
    no_tokens = _why_no_tokens(a, b)
    same = ~every
    if not no_tokens:
        digests_a, digests_b = token_digests(a.trace), token_digests(b.trace)
        same = np.array([digests_a[i] == digests_b[j] for i, j in zip(rows_a, rows_b, strict=True)], dtype=bool)
    hashes = a.manifest.corpus.hash, b.manifest.corpus.hash
    if a.same_trace(b):
        how, kept = "one trace", every
    elif hashes[0] and hashes[0] == hashes[1]:
        how, kept = "the same corpus", every
    elif a.manifest.has_text and b.manifest.has_text:
        texts = zip(a.trace.texts(rows_a.tolist()), b.trace.texts(rows_b.tolist()), strict=True)
        how, kept = "the same texts", np.array([x == y for x, y in texts], dtype=bool)
    else:
        how, kept = "the same token ids", same
    if not kept.any():
        how = "no document of one is shown to be one of the other"
    same = same[kept]
    if not no_tokens and not same.any():
        no_tokens = "No shared document has the same tokens in both."
    return SharedDocuments(rows_a[kept], rows_b[kept], how, same, no_tokens)


def _same_names(a: pd.DataFrame, b: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    row_of = {name: i for i, name in enumerate(b["document"].astype(str))}
    pairs = [(i, row_of[name]) for i, name in enumerate(a["document"].astype(str)) if name in row_of]
    rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _why_no_tokens(a: ComparedRun, b: ComparedRun) -> str:
    for run in (a, b):
        if "routing" not in run.manifest.kept:
            return f"{run.name} holds counts per document only, so tokens are not compared."
    hashes = a.manifest.tokenizer_hash, b.manifest.tokenizer_hash
    if all(hashes) and hashes[0] != hashes[1]:
        return f"{a.name} and {b.name} have different tokenizers, so that only documents are compared, not tokens."
    return ""


def token_digests(trace: Trace) -> list[bytes]:
    """Hash of the token ids and positions of every document of a trace: equal for documents of equal tokens."""
    digests = [hashlib.blake2b(digest_size=16) for _ in range(len(trace.documents))]
    for _, chunk in trace.iter_tokens(["document", "position", "token_id"]):
        document = chunk.columns["document"]
        starts = np.flatnonzero(np.diff(document, prepend=-1))
        for start, stop in zip(starts, np.append(starts[1:], len(document)), strict=True):
            for name in ("position", "token_id"):
                digests[document[start]].update(chunk.columns[name][start:stop].astype("<i8").tobytes())
    return [d.digest() for d in digests]


def matched_layers(a: ComparedRun, b: ComparedRun) -> tuple[tuple[tuple[int, int], ...], str]:
    """Match the layers of two models.

    Parameters
    ----------
    a, b : ComparedRun

    Returns
    -------
    pairs : tuple of (int, int)
        The same numbers where both have the same; else, for every layer of the first, the layer of the other that is
        nearest in relative depth.
    how : str
        "the same number" or "relative depth".
    """
    layers_a, layers_b = ([x.layer for x in run.manifest.layers] for run in (a, b))
    if layers_a == layers_b:
        return tuple((x, x) for x in layers_a), "the same number"
    depths_a, depths_b = (np.linspace(0, 1, len(x)) if len(x) > 1 else np.array([0.5]) for x in (layers_a, layers_b))
    nearest = [layers_b[int(np.abs(depths_b - depth).argmin())] for depth in depths_a]
    return tuple(zip(layers_a, nearest, strict=True)), "relative depth"


def same_shape(a: ComparedRun, b: ComparedRun) -> bool:
    """Tell whether both models have the same MoE layers with the same numbers of experts, as checkpoints of one model do.

    Parameters
    ----------
    a, b : ComparedRun

    Returns
    -------
    bool
    """
    shapes = [[(x.layer, x.num_experts, x.top_k) for x in run.manifest.layers] for run in (a, b)]
    return shapes[0] == shapes[1] and a.manifest.model.architecture == b.manifest.model.architecture
