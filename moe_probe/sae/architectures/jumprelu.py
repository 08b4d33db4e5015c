"""JumpReLU: a learnt threshold for every latent. Rajamanoharan et al. 2024, arXiv:2407.14435."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moe_probe.sae.architectures.base import Sparse
from moe_probe.sae.architectures.standard import Standard
from moe_probe.sae.config import SaeConfig

#: Width of the kernel through which thresholds get gradients (their appendix; in units of normalised activations).
_BANDWIDTH = 0.03
#: Threshold at the start: from far lower ones, short runs never reach useful thresholds (measured).
_START = 0.05


class _Step(torch.autograd.Function):
    """Heaviside of pre-activation minus threshold, with the rectangle kernel's gradient to the threshold."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        pre, threshold = ctx.saved_tensors
        (grad,) = gradients
        near = ((pre - threshold).abs() < _BANDWIDTH / 2).to(grad.dtype)
        return torch.zeros_like(pre), -(near * grad).sum(0) / _BANDWIDTH


class JumpReLU(Standard):
    """``f = pre * 1[pre > threshold]``; the loss counts active latents (L0)."""

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.log_threshold = nn.Parameter(torch.full((config.d_sae,), _START).log())

    @property
    def threshold(self) -> Tensor:
        """Threshold of every latent, shape (d_sae,)."""
        return self.log_threshold.exp()

    def choose(self, x: Tensor) -> Sparse:
        """Select the latents above their threshold; every latent has a slot."""
        pre, step = self._gates(x)
        return Sparse(pre.relu() * step, torch.arange(self.config.d_sae, device=x.device).expand(len(x), -1))

    def _penalty(self, x: Tensor, _latents: Sparse) -> Tensor:
        """Active latents of a token (L0)."""
        return self._gates(x)[1].sum(1).mean()

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations and whether they are above their threshold (1 or 0), each of shape (n, d_sae)."""
        pre = (x - self.b_dec) @ self.W_enc.T + self.b_enc
        return pre, _Step.apply(pre, self.threshold)  # type: ignore[no-untyped-call]
