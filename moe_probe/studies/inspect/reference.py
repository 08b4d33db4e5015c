"""Pieces of the run's own documents, as long as a text, with which the text is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.routing import dropped_id
from moe_probe.core.stats import labelled_documents

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.recording.trace import Trace
    from moe_probe.sae import ActivationReader, Sae
    from moe_probe.studies.inspect.watched import Watched

#: Pieces a document gives at most, and all documents together.
_PER_DOCUMENT, _MOST = 4, 3000
#: Held-out documents whose beginnings are encoded.
_ENCODED = 400


def piece_length(n_tokens: int) -> int:
    """Length of the pieces that a text of `n_tokens` is compared with: the next power of two at or below it."""
    return n_tokens if n_tokens < 8 else 1 << (n_tokens.bit_length() - 1)


@dataclass(frozen=True)
class Pieces:
    """Runs of text tokens of the run's documents.

    Attributes
    ----------
    rows : ndarray of int64, shape (n_pieces, length)
        Rows of the trace.
    topic, group : ndarray of str, shape (n_pieces,)
    """

    rows: np.ndarray
    topic: np.ndarray
    group: np.ndarray


class Reference:
    """Pieces of the run's documents, of one length.

    Parameters
    ----------
    trace : Trace
        With routing kept token by token.
    length : int
        Tokens of a piece; shorter where a tenth of the documents is shorter still, since long ones alone may be about
        other things.
    saes : mapping of str to Sae
        Whose features may be asked for; the trace has to hold what they read.
    held_out : ndarray of bool, shape (n_documents,)
        Documents that neither SAEs nor labels have seen.
    """

    def __init__(self, trace: Trace, *, length: int, saes: Mapping[str, Sae], held_out: np.ndarray) -> None:
        self.trace, self.saes, self.held_out = trace, saes, held_out
        table = trace.tokens(["document", "special"])
        self._document = table["document"].to_numpy()
        self._text = np.flatnonzero(~table["special"].to_numpy())
        counts = np.bincount(self._document[self._text], minlength=len(trace.documents))
        self.length = min(length, piece_length(max(1, int(np.quantile(counts[counts > 0], 0.1)))))
        self.keep, self._topic, self._group = labelled_documents(trace.documents, label="topic")
        self._firings: dict[str, sparse.csr_array] = {}

    def _cut(self, rows: np.ndarray, documents: np.ndarray, *, per_document: int, most: int) -> Pieces:
        """Cut the rows of some documents into pieces; of too many documents, evenly spaced ones are taken."""
        of_row = self._document[rows]
        bounds = np.searchsorted(of_row, np.arange(len(documents) + 1))
        fitting = [d for d in np.flatnonzero(documents & self.keep) if bounds[d + 1] - bounds[d] >= self.length]
        step = max(1, -(-len(fitting) // most))
        out: list[np.ndarray] = []
        chosen: list[int] = []
        for d in fitting[::step]:
            for k in range(min(per_document, (bounds[d + 1] - bounds[d]) // self.length, max(1, most // len(fitting)))):
                start = bounds[d] + k * self.length
                out.append(rows[start : start + self.length])
                chosen.append(int(d))
        cut = np.array(chosen, dtype=np.int64)
        return Pieces(
            np.stack(out) if out else np.zeros((0, self.length), dtype=np.int64),
            self._topic[cut].astype(str),
            self._group[cut].astype(str),
        )

    @cached_property
    def pieces(self) -> Pieces:
        """Pieces of all labelled documents."""
        return self._cut(self._text, np.ones(len(self.keep), dtype=bool), per_document=_PER_DOCUMENT, most=_MOST)

    @cached_property
    def held_pieces(self) -> Pieces:
        """The beginning of every held-out document, of the tokens whose activations were kept."""
        rows = self._text
        for sae in self.saes.values():
            rows = np.intersect1d(rows, self._reader(sae).rows)
        return self._cut(rows, self.held_out, per_document=1, most=_ENCODED)

    def _reader(self, sae: Sae) -> ActivationReader:
        from moe_probe.sae import ActivationReader

        return ActivationReader(
            self.trace,
            layer=sae.config.layer,
            hook=sae.config.hook,
            documents=self.held_out,
            slots=sae.config.experts is not None,
        )

    def usage(self, pieces: Pieces) -> np.ndarray:
        """Share of every piece's selections of a layer that went to each expert, shape (n_pieces, n_layers * max_experts)."""
        layers = self.trace.layers
        counts = np.zeros((len(pieces.rows), len(layers), max(item.num_experts for item in layers)))
        order, piece_of = self._by_row(pieces)
        first = 0
        for chunk in self.trace.iter_routing():
            low, high = np.searchsorted(order, [first, first + len(chunk.experts)])
            chosen, piece = chunk.experts[order[low:high] - first], piece_of[low:high]
            for i in range(len(layers)):
                row, slot = np.nonzero(chosen[:, i] != dropped_id(chosen.dtype))
                np.add.at(counts[:, i], (piece[row], chosen[row, i, slot]), 1)
            first += len(chunk.experts)
        return shares(counts)

    @staticmethod
    def _by_row(pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
        """All rows of the pieces, increasing, and the piece of each."""
        flat = pieces.rows.ravel()
        order = np.argsort(flat, kind="stable")
        return flat[order], np.repeat(np.arange(len(pieces.rows)), pieces.rows.shape[1])[order]

    def firings(self, name: str) -> sparse.csr_array:
        """Activations of an SAE on the tokens of `held_pieces`, shape (n_pieces * length, width); positive entries only."""
        from scipy import sparse

        from moe_probe.features.firing import fire

        if name not in self._firings:
            sae, wanted = self.saes[name], self.held_pieces.rows.ravel()
            fired = fire(sae, self._reader(sae), only=wanted)
            # the row behind the last: tokens that an SAE of some experts does not see
            padded = sparse.vstack([fired.matrix, sparse.csr_array((1, sae.config.d_sae), dtype=np.float32)], format="csr")
            row_of = np.full(self.trace.n_tokens, len(fired.rows))
            row_of[fired.rows] = np.arange(len(fired.rows))
            self._firings[name] = padded[row_of[wanted]]
        return self._firings[name]

    def active(self, watched: Watched) -> np.ndarray:
        """Mean number of units active on a token, for every held-out piece, shape (n_pieces,)."""
        shape = self.held_pieces.rows.shape
        count = np.zeros(shape[0] * shape[1], dtype=np.int64)
        for sae, features in watched.features_by_sae.items():
            count += np.asarray((self.firings(sae)[:, features] > 0).sum(1)).ravel()
        for layer, expert in watched.experts:
            count += self._chosen(layer, expert)
        return np.asarray(count.reshape(shape).mean(1))

    def _chosen(self, layer: int, expert: int) -> np.ndarray:
        wanted = self.held_pieces.rows.ravel()
        out, first = np.zeros(len(wanted), dtype=bool), 0
        for chunk in self.trace.iter_routing([layer]):
            here = (wanted >= first) & (wanted < first + len(chunk.experts))
            out[here] = (chunk.experts[wanted[here] - first, 0] == expert).any(1)
            first += len(chunk.experts)
        return out


def shares(counts: np.ndarray) -> np.ndarray:
    """Divide counts (n, n_layers, n_experts) by their layer's total and flatten to (n, n_layers * n_experts)."""
    totals = counts.sum(2, keepdims=True)
    return np.asarray((counts / np.maximum(totals, 1)).reshape(len(counts), -1))
