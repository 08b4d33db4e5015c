"""Standard: ReLU with an L1 penalty. Bricken et al. 2023 (Towards Monosemanticity); Conerly et al. 2024 (April update)."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_probe.sae.architectures.base import Sae, Sparse


class Standard(Sae):
    """``f = ReLU(W_enc (x - b_dec) + b_enc)``; the penalty weighs latents by the norm of their decoder row."""

    def choose(self, x: Tensor) -> Sparse:
        """Select all latents above 0; every latent has a slot."""
        values = torch.relu((x - self.b_dec) @ self.W_enc.T + self.b_enc)
        return Sparse(values, torch.arange(self.config.d_sae, device=x.device).expand(len(x), -1))

    def reconstruct(self, latents: Sparse) -> Tensor:
        """Multiply densely: every latent has a slot."""
        return latents.values @ self.W_dec + self.b_dec

    def loss(self, x: Tensor, latents: Sparse) -> tuple[Tensor, Tensor]:
        """Add the penalty, times `sparsity`, to the squared error.

        Parameters
        ----------
        x : Tensor, shape (n, d_in)
            Normalised activations.
        latents : Sparse
            From `choose`.

        Returns
        -------
        tuple of Tensor
            The loss, a scalar, and the normalised reconstruction, shape (n, d_in).
        """
        error, reconstruction = super().loss(x, latents)
        return error + self.config.sparsity * self._penalty(x, latents), reconstruction

    def _penalty(self, _x: Tensor, latents: Sparse) -> Tensor:
        """L1 norm of a token's latents, weighted by the norms of their decoder rows."""
        norms: Tensor = self.W_dec.norm(dim=1)
        return (latents.values * norms).sum(1).mean()
