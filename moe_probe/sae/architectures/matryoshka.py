"""Matryoshka: nested dictionaries, each of which must do on its own. Bussmann et al. 2025, arXiv:2503.17547."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.sae.architectures.base import Sparse
from moe_probe.sae.architectures.batchtopk import BatchTopK
from moe_probe.sae.architectures.ops import decode
from moe_probe.sae.config import SaeConfig


def nested_widths(config: SaeConfig) -> tuple[int, ...]:
    """Widths of the nested dictionaries: as configured, or a sixteenth, an eighth, ... and all; those of a plain SAE are one."""
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
                f"they must rise and end with {config.d_sae}",
                "for example 1/16, 1/4 and all of the width",
            )

    def loss(self, x: Tensor, latents: Sparse) -> tuple[Tensor, Tensor]:
        """Mean squared error over the nested dictionaries, and the whole one's reconstruction."""
        total, found, narrower = x.new_zeros(()), self.b_dec.expand_as(x), 0
        for width in self.nested:  # each level adds its own latents to what the narrower ones gave
            inside = (latents.indices >= narrower) & (latents.indices < width)
            found = found + decode(torch.where(inside, latents.values, 0.0), latents.indices, self.W_dec, sparse=True)
            total, narrower = total + (x - found).square().sum(1).mean(), width
        return total / len(self.nested), found
