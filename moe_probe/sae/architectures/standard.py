"""Standard: ReLU with an L1 penalty. Bricken et al. 2023 (Towards Monosemanticity); Conerly et al. 2024 (April update)."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_probe.sae.architectures.base import Sae, Sparse


class Standard(Sae):
    """``f = ReLU(W_enc (x - b_dec) + b_enc)``; the penalty weighs latents by the norm of their decoder row."""

    def choose(self, x: Tensor) -> Sparse:
        """All latents above 0, as a full rectangle."""
        values = torch.relu((x - self.b_dec) @ self.W_enc.T + self.b_enc)
        return Sparse(values, torch.arange(self.config.d_sae, device=x.device).expand(len(x), -1))

    def reconstruct(self, latents: Sparse) -> Tensor:
        """Dense product: every latent has a slot."""
        return latents.values @ self.W_dec + self.b_dec

    def loss(self, x: Tensor, latents: Sparse) -> tuple[Tensor, Tensor]:
        """Squared error plus the weighted L1 norm."""
        error, found = super().loss(x, latents)
        penalty = (latents.values * self.W_dec.norm(dim=1)).sum(1).mean()
        return error + self.config.sparsity * penalty, found
