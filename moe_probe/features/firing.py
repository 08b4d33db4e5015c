"""Firings of every latent of an SAE on the tokens of a trace: a sparse matrix of tokens by features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import track

if TYPE_CHECKING:
    from scipy import sparse

    from moe_probe.sae import ActivationReader, Sae

_CHUNK = 8192


@dataclass(frozen=True)
class Firings:
    """Activations of all latents over some tokens.

    Attributes
    ----------
    matrix : csr_array of float32, shape (n_tokens, d_sae)
        Positive entries only.
    rows : ndarray of int64, shape (n_tokens,)
        Rows of the tokens in the trace, increasing.
    """

    matrix: sparse.csr_array
    rows: np.ndarray

    def select(self, keep: np.ndarray) -> Firings:
        """Keep some tokens (boolean mask)."""
        return Firings(self.matrix[np.flatnonzero(keep)], self.rows[keep])

    @property
    def counts(self) -> np.ndarray:
        """Tokens on which each latent fires, shape (d_sae,)."""
        return np.bincount(self.matrix.indices, minlength=self.matrix.shape[1])

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return int(self.matrix.data.nbytes + self.matrix.indices.nbytes + self.matrix.indptr.nbytes + self.rows.nbytes)


class SplitFirings(NamedTuple):
    """Firings of an SAE on its training documents and on those held out."""

    train: Firings
    held_out: Firings


def binary(matrix: sparse.csr_array, dtype: type = np.int32) -> sparse.csr_array:
    """Replace all stored entries by ones.

    Parameters
    ----------
    matrix : csr_array
    dtype : type

    Returns
    -------
    csr_array of `dtype`
    """
    from scipy import sparse

    return sparse.csr_array((np.ones(matrix.nnz, dtype=dtype), matrix.indices, matrix.indptr), shape=matrix.shape)


def fire(sae: Sae, reader: ActivationReader, *, only: np.ndarray | None = None) -> Firings:
    """Encode all tokens of a reader, or some of them.

    For an SAE of some experts, tokens that chose none of them are left out.

    Parameters
    ----------
    sae : Sae
    reader : ActivationReader
    only : ndarray of int, optional
        Rows of the trace; other tokens are left out.

    Returns
    -------
    Firings
        In the reader's order.

    Raises
    ------
    MoeProbeError
        When the activations have another width, or hold NaN or infinite numbers.
    """
    from scipy import sparse

    data: list[np.ndarray] = []
    indices: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    for part in iter_firings(sae, reader, only=only):
        part.matrix.sort_indices()
        data.append(part.matrix.data)
        indices.append(part.matrix.indices)
        counts.append(np.diff(part.matrix.indptr))
        rows.append(part.rows)
    # one after the other, so that pieces and the whole of both are never there at once
    values, latents = _joined(data), _joined(indices)
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(latents.dtype)
    matrix = sparse.csr_array((values, latents, indptr), shape=(len(indptr) - 1, sae.config.d_sae))
    return Firings(matrix, np.concatenate(rows))


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    whole = np.concatenate(pieces)
    pieces.clear()
    return whole


def iter_firings(sae: Sae, reader: ActivationReader, *, only: np.ndarray | None = None) -> Iterator[Firings]:
    """Encode the tokens of a reader piece by piece; see `fire`.

    Parameters
    ----------
    sae : Sae
    reader : ActivationReader
    only : ndarray of int, optional
        Rows of the trace; other tokens are left out.

    Yields
    ------
    Firings
        Of some thousand tokens.

    Raises
    ------
    MoeProbeError
        When the activations have another width, or hold NaN or infinite numbers.
    """
    import torch
    from scipy import sparse

    from moe_probe.sae.activations import Batch, select

    if sae.config.d_in != reader.d_in:
        raise MoeProbeError(
            f"the SAE takes activations of width {sae.config.d_in}",
            f"the {reader.hook} of this trace has width {reader.d_in}",
            "an SAE of this model and hook",
        )
    for batch in track(reader.in_order(), "encode", unit="shards"):
        if only is not None:
            wanted = torch.from_numpy(np.isin(batch.rows.numpy(), only))
            batch = Batch(*(part[wanted] for part in batch))
        values, kept = select(batch, sae.config), batch.rows
        if sae.config.experts is not None:
            kept = kept[torch.isin(batch.experts, torch.tensor(sae.config.experts)).any(1)]
        for piece, rows in zip(torch.split(values, _CHUNK), torch.split(kept, _CHUNK), strict=True):
            with torch.inference_mode():
                latents = sae.encode(piece)
                token, slot = (latents.values > 0).nonzero(as_tuple=True)
                matrix = sparse.csr_array(
                    (latents.values[token, slot].numpy(), (token.numpy(), latents.indices[token, slot].numpy())),
                    shape=(len(piece), sae.config.d_sae),
                    dtype=np.float32,
                )
            yield Firings(matrix, rows.numpy())
