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
#: Where thresholds start: far too low, and short runs never get them up again (measured).
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
        """Latents above their threshold, as a full rectangle."""
        pre = (x - self.b_dec) @ self.W_enc.T + self.b_enc
        step = _Step.apply(pre, self.threshold)  # type: ignore[no-untyped-call]
        return Sparse(pre.relu() * step, torch.arange(self.config.d_sae, device=x.device).expand(len(x), -1))

    def loss(self, x: Tensor, latents: Sparse) -> tuple[Tensor, Tensor]:
        """Squared error plus the number of active latents."""
        found = self.reconstruct(latents)
        error = (x - found).square().sum(1).mean()
        pre = (x - self.b_dec) @ self.W_enc.T + self.b_enc
        active = _Step.apply(pre, self.threshold)  # type: ignore[no-untyped-call]
        return error + self.config.sparsity * active.sum(1).mean(), found
