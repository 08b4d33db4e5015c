"""One side of a comparison, and what two sides have in common: documents, tokens, layers."""

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
class Side:
    """A run under one label.

    Attributes
    ----------
    name : str
        What it is called in every table.
    manifest : Manifest
        Of its trace.
    results : mapping of str to Result
        Under `label`: ``verdicts`` and ``layers`` at least.
    label : str
        Column of labels that its results are about.
    trace : Trace or None
        None where only results are at hand: differences then rest on their stored intervals.
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
        """A result by name.

        Raises
        ------
        MoeProbeError
            When the run holds no such result.
        """
        if name not in self.results:
            raise MoeProbeError(
                f"{self.name} holds no result '{name}'", "it cannot be compared without", "moe-probe analyze RUN"
            )
        return self.results[name]

    @cached_property
    def usage(self) -> Usage | None:
        """Selections per document, or None without a trace."""
        return None if self.trace is None else self.trace.usage()

    def same_trace(self, other: Side) -> bool:
        """Whether both rest on one and the same trace."""
        return self.trace is not None and other.trace is not None and self.trace.root.resolve() == other.trace.root.resolve()


class Shared(NamedTuple):
    """Documents that two sides share: their rows in either (equal lengths), why they count as the same, or why none do.

    ``same_tokens`` marks those whose token ids and positions are equal one by one; ``no_tokens`` says, in a
    sentence, why tokens cannot be held against each other where none are ("" where some can).
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


def shared_documents(a: Side, b: Side) -> Shared:
    """Find the documents that two sides share, by name and by what is in them.

    A name alone is not enough: the corpora must have the same hash, or a document the same text, or (where no text was
    kept) the same token ids.

    Parameters
    ----------
    a, b : Side

    Returns
    -------
    Shared
        Without rows where nothing shows that documents are the same.
    """
    none = np.zeros(0, dtype=np.int64)
    if a.trace is None or b.trace is None:
        return Shared(none, none, "one of the two has no trace", none.astype(bool), "One of the two has no trace.")
    rows_a, rows_b = _by_name(a.trace.documents, b.trace.documents)
    no_tokens = _why_no_tokens(a, b)
    same = np.zeros(len(rows_a), dtype=bool)
    if not no_tokens:
        ours, theirs = token_digests(a.trace), token_digests(b.trace)
        same = np.array([ours[i] == theirs[j] for i, j in zip(rows_a, rows_b, strict=True)], dtype=bool)
    hashes = a.manifest.corpus.hash, b.manifest.corpus.hash
    if a.same_trace(b):
        how, kept = "one trace", np.ones(len(rows_a), dtype=bool)
    elif hashes[0] and hashes[0] == hashes[1]:
        how, kept = "the same corpus", np.ones(len(rows_a), dtype=bool)
    elif a.manifest.has_text and b.manifest.has_text:
        texts = zip(a.trace.texts(rows_a.tolist()), b.trace.texts(rows_b.tolist()), strict=True)
        how, kept = "the same texts", np.array([x == y for x, y in texts], dtype=bool)
    else:
        how, kept = "the same token ids", same
    if not kept.any():
        how = "no document of one is shown to be one of the other"
    rows_a, rows_b, same = rows_a[kept], rows_b[kept], same[kept]
    if not no_tokens and not same.any():
        no_tokens = "No shared document has the same tokens in both."
    return Shared(rows_a, rows_b, how, same, no_tokens)


def _by_name(a: pd.DataFrame, b: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    row_of = {name: i for i, name in enumerate(b["document"].astype(str))}
    pairs = [(i, row_of[name]) for i, name in enumerate(a["document"].astype(str)) if name in row_of]
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _why_no_tokens(a: Side, b: Side) -> str:
    for side in (a, b):
        if "routing" not in side.manifest.kept:
            return f"{side.name} holds counts per document only, so tokens are not compared."
    hashes = a.manifest.tokenizer_hash, b.manifest.tokenizer_hash
    if all(hashes) and hashes[0] != hashes[1]:
        return f"{a.name} and {b.name} have different tokenizers, so that only documents are compared, not tokens."
    return ""


def token_digests(trace: Trace) -> list[bytes]:
    """What tells documents of equal tokens: a hash over ids and positions, for every document of a trace."""
    digests = [hashlib.blake2b(digest_size=16) for _ in range(len(trace.documents))]
    for _, chunk in trace.iter_tokens(["document", "position", "token_id"]):
        document = chunk.columns["document"]
        starts = np.flatnonzero(np.diff(document, prepend=-1))
        for start, stop in zip(starts, np.append(starts[1:], len(document)), strict=True):
            for name in ("position", "token_id"):
                digests[document[start]].update(chunk.columns[name][start:stop].astype("<i8").tobytes())
    return [d.digest() for d in digests]


def matched_layers(a: Side, b: Side) -> tuple[tuple[tuple[int, int], ...], str]:
    """Say which layers of two models are held against each other, and how they were found.

    Returns
    -------
    pairs : tuple of (int, int)
        The same numbers where both have the same; else, for every layer of the first, the layer of the other that lies
        nearest in relative depth.
    how : str
    """
    ours, theirs = ([x.layer for x in s.manifest.layers] for s in (a, b))
    if ours == theirs:
        return tuple((x, x) for x in ours), "the same number"
    depth = np.linspace(0, 1, len(theirs)) if len(theirs) > 1 else np.array([0.5])
    own = np.linspace(0, 1, len(ours)) if len(ours) > 1 else np.array([0.5])
    return tuple((x, theirs[int(np.abs(depth - d).argmin())]) for x, d in zip(ours, own, strict=True)), "relative depth"


def same_shape(a: Side, b: Side) -> bool:
    """Whether both models have the same MoE layers with the same numbers of experts: checkpoints of one model do."""
    shapes = [[(x.layer, x.num_experts, x.top_k) for x in s.manifest.layers] for s in (a, b)]
    return shapes[0] == shapes[1] and a.manifest.model.architecture == b.manifest.model.architecture
