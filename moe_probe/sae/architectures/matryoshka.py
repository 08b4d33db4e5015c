"""Matryoshka: nested dictionaries, each of which must reconstruct on its own. Bussmann et al. 2025, arXiv:2503.17547."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.sae.architectures.base import Sparse
from moe_probe.sae.architectures.batchtopk import BatchTopK
from moe_probe.sae.architectures.ops import decode, filled
from moe_probe.sae.config import SaeConfig


def nested_widths(config: SaeConfig) -> tuple[int, ...]:
    """List the widths of the nested dictionaries: as configured, or 1/16, 1/8, ... and all; a plain SAE has one."""
    if config.architecture != "matryoshka":
        return (config.d_sae,)
    return config.nested or tuple(max(1, config.d_sae >> shift) for shift in (4, 3, 2, 1, 0))


class Matryoshka(BatchTopK):
    """BatchTopK whose first ``nested[0]``, ``nested[1]`` ... latents reconstruct by themselves too."""

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.nested = nested_widths(config)
        if list(self.nested) != sorted(set(self.nested)) or self.nested[-1] != config.d_sae:
            raise MoeProbeError(
                f"{self.nested} are not nested widths",
                f"they must increase and end with {config.d_sae}",
                "use, for example, 1/16, 1/4 and all of the width",
            )

    def loss(self, x: Tensor, latents: Sparse) -> tuple[Tensor, Tensor]:
        """Compute the squared error, averaged over the nested dictionaries, and the reconstruction of the whole one.

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
        total, reconstruction, narrower = x.new_zeros(()), self.b_dec.expand_as(x), 0
        for width in self.nested:  # each level adds its own latents to the reconstruction of the narrower ones
            inside = (latents.indices >= narrower) & (latents.indices < width)
            values = torch.where(inside, latents.values, 0.0)
            reconstruction = reconstruction + decode(values, latents.indices, self.W_dec, kept=filled(values))
            total, narrower = total + (x - reconstruction).square().sum(1).mean(), width
        return total / len(self.nested), reconstruction
