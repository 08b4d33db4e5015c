"""What all SAEs share: parameters, encoding, decoding, and how they start."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_probe.core.errors import MoeProbeError
from moe_probe.sae.architectures.ops import decode
from moe_probe.sae.config import SaeConfig

#: Tokens whose pre-activations are held at once on a CPU.
_CHUNK = 512


class Sparse(NamedTuple):
    """Active latents of every token: ``values`` and ``indices``, shape (n_tokens, slots); value 0 is inactive."""

    values: Tensor
    indices: Tensor


class Sae(nn.Module):
    """A sparse autoencoder; architectures differ in which latents they let be active.

    Parameters
    ----------
    config : SaeConfig

    Attributes
    ----------
    W_enc : Parameter, shape (d_sae, d_in)
        Rows are latents. Starts at the decoder's rows times `ENCODER_SCALE`.
    W_dec : Parameter, shape (d_sae, d_in)
        Rows of unit norm.
    b_enc, b_dec : Parameter, shapes (d_sae,) and (d_in,)
    scale : buffer, scalar
        Activations are divided by it first, so that their mean squared norm about `b_dec` is 1 (as Lieberum et al. 2024,
        Gemma Scope, arXiv:2408.05147): learning rates and penalties then mean the same on any layer, and biases,
        which Adam moves by the learning rate whatever their unit, can keep up.

    Notes
    -----
    Encoder as the transposed decoder: Gao et al. 2024, arXiv:2406.04093, appendix A.1.
    """

    #: Norm of the encoder's rows at the start; below 1 it leaves the first steps to the decoder (measured here).
    ENCODER_SCALE = 0.577
    #: Whether the module's latents are chosen by a threshold outside training.
    uses_threshold = False
    #: Multiply the encoder in bfloat16 (GPUs; on CPUs it is no faster). Parameters stay float32.
    low_precision = False

    def __init__(self, config: SaeConfig) -> None:
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        rows = torch.randn(config.d_sae, config.d_in, generator=generator)
        rows /= rows.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.clone() * self.ENCODER_SCALE)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.register_buffer("scale", torch.ones(()))
        self.scale: Tensor

    @torch.no_grad()
    def start_from(self, sample: Tensor) -> None:
        """Set mean and scale from a sample of activations, shape (n, d_in).

        Raises
        ------
        MoeProbeError
            When all rows are the same: there is nothing to take apart.
        """
        mean = sample.float().mean(0)
        spread = (sample.float() - mean).square().sum(1).mean().sqrt()
        if not spread > 1e-6 * (mean.norm() + 1e-6):
            raise MoeProbeError(
                "the activations do not vary",
                f"all of {len(sample):,} rows are the same",
                "another layer or hook, or more tokens",
            )
        self.scale.copy_(spread)
        self.b_dec.copy_(mean / self.scale)

    def normalise(self, x: Tensor) -> Tensor:
        """Activations in the unit in which the SAE works, shape (n, d_in)."""
        return x.float() / self.scale

    def pre_activations(self, x: Tensor) -> Tensor:
        """Linear part of the encoder for normalised activations, shape (n, d_sae)."""
        return torch.addmm(self.b_enc - self.W_enc @ self.b_dec, x, self.W_enc.T)

    @torch.no_grad()
    def largest(self, x: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """The largest pre-activations of every token and their latents, each of shape (n, slots); no gradients.

        On a CPU some hundred tokens at a time into one buffer: a fresh matrix of n x d_sae for every batch costs a
        quarter of its product in page faults alone.
        """
        bias = self.b_enc - self.W_enc @ self.b_dec
        if self.low_precision:
            return ((x.bfloat16() @ self.W_enc.T.bfloat16()).float() + bias).topk(slots, dim=1, sorted=False)
        size = len(x) if x.is_cuda else min(_CHUNK, len(x))
        buffer = torch.empty(size, self.config.d_sae, device=x.device)
        found = [
            torch.addmm(bias, piece, self.W_enc.T, out=buffer[: len(piece)]).topk(slots, dim=1, sorted=False)
            for piece in x.split(size)
        ]
        return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])

    def choose(self, x: Tensor) -> Sparse:
        """Active latents of normalised activations; differentiable in training mode."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Sparse:
        """Active latents of activations as the model has them, shape (n, d_in)."""
        return self.choose(self.normalise(x))

    def reconstruct(self, latents: Sparse) -> Tensor:
        """Normalised reconstruction."""
        return decode(latents.values, latents.indices, self.W_dec) + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction in the unit of the activations."""
        return self.reconstruct(self.encode(x)) * self.scale

    def loss(self, x: Tensor, latents: Sparse) -> tuple[Tensor, Tensor]:
        """Loss of normalised activations (here the variance unexplained), and their reconstruction."""
        found = self.reconstruct(latents)
        return (x - found).square().sum(1).mean(), found

    @torch.no_grad()
    def keep_unit_norm(self) -> None:
        """Bring decoder rows back to unit norm after a step."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from the decoder's gradient what would only lengthen its rows."""
        if self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)
