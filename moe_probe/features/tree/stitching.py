"""Latents of a wider dictionary put into a narrower one: which add something, and which repeat what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse


def stitched_change(residual: np.ndarray, latents: sparse.csr_array, directions: np.ndarray) -> np.ndarray:
    """Compute the change of the narrower dictionary's squared error when one latent of the wider one is added to it.

    For latent j with activations z and direction d, and r the narrower dictionary's residual,

        mean over tokens of |r - z d|^2 - |r|^2 = mean of z^2 |d|^2 - 2 z d.r

    Below 0 the latent is novel: it carries what the narrower dictionary missed. Above 0 it is a reconstruction latent: it
    repeats what is there (Leask et al. 2025, arXiv:2502.04878, section 4).

    Parameters
    ----------
    residual : ndarray of float, shape (n_tokens, d)
        Activation less the narrower dictionary's reconstruction of it.
    latents : csr_array, shape (n_tokens, n_latents)
        The wider dictionary's activations, in the units of `residual` over `directions`.
    directions : ndarray of float, shape (n_latents, d)
        The wider dictionary's decoder rows.

    Returns
    -------
    ndarray of float, shape (n_latents,)
        Squared error per token; 0 for latents that never fire.
    """
    norms = np.square(directions).sum(1)
    change = np.zeros(latents.shape[1])
    for start in range(0, latents.shape[0], 4096):
        piece = latents[start : start + 4096].tocoo()
        token, latent = piece.coords
        along = np.einsum("nd,nd->n", residual[start + token], directions[latent])
        change += np.bincount(
            latent, weights=piece.data**2 * norms[latent] - 2 * piece.data * along, minlength=latents.shape[1]
        )
    return np.asarray(change / max(latents.shape[0], 1))
