"""What all SAEs share: parameters, encoding, decoding and initialisation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_probe.core.errors import MoeProbeError
from moe_probe.sae.architectures.ops import decode, top_k
from moe_probe.sae.config import SaeConfig

#: Tokens whose pre-activations are computed at once on a CPU.
_CHUNK = 512
#: Pre-activations in bfloat16 that are computed at once: 1 GiB.
_AT_ONCE = 2**29


class Sparse(NamedTuple):
    """Active latents of every token.

    Attributes
    ----------
    values : Tensor of float, shape (n_tokens, slots)
        Non-negative; a slot of value 0 is empty.
    indices : Tensor of int, shape (n_tokens, slots)
        Latents.
    kept : Tensor of int, shape (n_kept,), optional
        Slots, counted token by token, that can have another value than 0; None for all.
    """

    values: Tensor
    indices: Tensor
    kept: Tensor | None = None


class Sae(nn.Module):
    """A sparse autoencoder; architectures differ in which latents can be active.

    Parameters
    ----------
    config : SaeConfig

    Attributes
    ----------
    W_enc : Parameter, shape (d_sae, d_in)
        Rows are latents. Starts as the decoder's rows times `ENCODER_SCALE`.
    W_dec : Parameter, shape (d_sae, d_in)
        Rows of unit norm.
    b_enc : Parameter, shape (d_sae,)
    b_dec : Parameter, shape (d_in,)
    scale : buffer, scalar
        Activations are divided by it first, so that their mean squared norm about `b_dec` is 1 (as Lieberum et al. 2024,
        Gemma Scope, arXiv:2408.05147): learning rates and penalties then mean the same on any layer, and biases,
        which Adam moves by the learning rate whatever their unit, can keep up.

    Notes
    -----
    Encoder as the transposed decoder: Gao et al. 2024, arXiv:2406.04093, appendix A.1.
    """

    #: Norm of the encoder's rows at the start; below 1, the decoder learns first (measured here).
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
            When all rows are the same: there is nothing to decompose.
        """
        mean = sample.float().mean(0)
        spread = (sample.float() - mean).square().sum(1).mean().sqrt()
        if not spread > 1e-6 * (mean.norm() + 1e-6):
            raise MoeProbeError(
                "the activations do not vary",
                f"all of {len(sample):,} rows are the same",
                "choose another layer or activation site, or more tokens",
            )
        self.scale.copy_(spread)
        self.b_dec.copy_(mean / self.scale)

    def normalise(self, x: Tensor) -> Tensor:
        """Scale activations to mean squared norm 1, shape (n, d_in)."""
        return x.float() / self.scale

    def pre_activations(self, x: Tensor) -> Tensor:
        """Compute the linear part of the encoder for normalised activations, shape (n, d_sae)."""
        return torch.addmm(self.b_enc - self.W_enc @ self.b_dec, x, self.W_enc.T)

    @torch.no_grad()
    def largest(self, x: Tensor, slots: int, *, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the largest pre-activations of every token, and which latents these are; no gradients.

        On a CPU, some hundred tokens at a time into one buffer: a fresh matrix of n x d_sae for every batch costs a
        quarter of its product in page faults alone. In low precision the matrix stays in bfloat16: bias and mean are
        part of the product, and the search reads half the bytes.

        Parameters
        ----------
        x : Tensor, shape (n, d_in)
            Normalised activations.
        slots : int
            Latents per token.
        among : Tensor of bool, shape (d_sae,), optional
            Latents to choose from; the pre-activations of others count as minus infinity. All by default.

        Returns
        -------
        tuple of Tensor
            Pre-activations and latents, each of shape (n, slots), in no order.
        """
        if self.low_precision:
            return self._largest_bfloat16(x, slots, among)
        bias = self.b_enc - self.W_enc @ self.b_dec
        if among is not None:
            bias = bias.masked_fill(~among, -torch.inf)
        on_cpu = x.device.type == "cpu"
        size = min(_CHUNK, len(x)) if on_cpu else len(x)
        buffer = torch.empty(size, self.config.d_sae, device=x.device)
        top = []
        for piece in torch.split(x, size):
            pre = torch.addmm(bias, piece, self.W_enc.T, out=buffer[: len(piece)])
            # the detour of `top_k` gains little on a CPU
            top.append(pre.topk(slots, dim=1, sorted=False) if on_cpu else top_k(pre, slots))
        values, indices = zip(*top, strict=True)
        return torch.cat(values), torch.cat(indices)

    def _largest_bfloat16(self, x: Tensor, slots: int, among: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, bias = self.W_enc.bfloat16(), self.b_enc.bfloat16()
        if among is not None:
            bias = bias.masked_fill(~among, -torch.inf)
        centred = (x - self.b_dec).bfloat16()
        size = max(1, _AT_ONCE // self.config.d_sae)
        values, indices = zip(
            *(top_k(functional.linear(piece, weight, bias), slots) for piece in torch.split(centred, size)), strict=True
        )
        return torch.cat(values).float(), torch.cat(indices)

    def choose(self, x: Tensor) -> Sparse:
        """Select the active latents of normalised activations; differentiable in training mode."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Sparse:
        """Compute the active latents of activations in the model's unit, shape (n, d_in)."""
        return self.choose(self.normalise(x))

    def reconstruct(self, latents: Sparse) -> Tensor:
        """Reconstruct normalised activations, shape (n, d_in)."""
        return decode(latents.values, latents.indices, self.W_dec) + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct activations in the model's unit, shape (n, d_in)."""
        return self.reconstruct(self.encode(x)) * self.scale

    def loss(self, x: Tensor, latents: Sparse) -> tuple[Tensor, Tensor]:
        """Compute the loss (here the squared error per token), and the reconstruction.

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
        reconstruction = self.reconstruct(latents)
        return (x - reconstruction).square().sum(1).mean(), reconstruction

    @torch.no_grad()
    def keep_unit_norm(self) -> None:
        """Scale decoder rows to unit norm, after a step."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Remove from the decoder's gradient what would only lengthen its rows."""
        if self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
            self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)
