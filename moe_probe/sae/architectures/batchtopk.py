"""BatchTopK: the n·k largest latents of a batch of n tokens. Bussmann et al. 2024, arXiv:2412.06410."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_probe.sae.architectures.base import Sae, Sparse
from moe_probe.sae.architectures.ops import decode, encode_chosen, filled
from moe_probe.sae.config import SaeConfig

#: Latents that one token can have active, in multiples of k: bounds the rectangle that holds them.
_SLOTS = 4


class BatchTopK(Sae):
    """Tokens of a batch share n·k active latents in training; at inference, a threshold fixed on held-out tokens decides."""

    uses_threshold = True

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.zeros(()))
        self.threshold: Tensor

    def choose(self, x: Tensor) -> Sparse:
        """Select latents among the batch's largest (training) or above the threshold, at most 4 k per token."""
        slots = min(_SLOTS * self.config.k, self.config.d_sae)
        values, indices = self.largest(x, slots)
        if not self.training:
            return Sparse(torch.where(values >= self.threshold, values, 0.0).relu(), indices)
        # as many as n·k, also among equal values: their number is known without asking the GPU
        kept = self._top(values).indices.sort().values
        chosen = torch.zeros_like(values, dtype=torch.bool).view(-1).index_fill_(0, kept, value=True).view_as(values)
        values = encode_chosen(x - self.b_dec.detach(), (self.W_enc, self.b_enc), values, indices, kept=kept)
        return Sparse(torch.where(chosen, values, 0.0).relu(), indices, kept)

    def reconstruct(self, latents: Sparse) -> Tensor:
        """Reconstruct normalised activations; most slots are empty and skipped."""
        kept = filled(latents.values) if latents.kept is None else latents.kept
        return decode(latents.values, latents.indices, self.W_dec, kept=kept) + self.b_dec

    def _top(self, values: Tensor) -> torch.return_types.topk:
        """Find the n·k largest values of the batch and their slots, counted token by token."""
        return values.reshape(-1).topk(min(len(values) * self.config.k, values.numel()), sorted=False)

    @torch.no_grad()
    def fix_threshold(self, x: Tensor) -> float:
        """Set the threshold so that held-out activations have k active latents per token on average; return that number.

        It is the quantile of the pre-activations themselves: running averages over training batches miss the target
        by tens of percent.
        """
        values, _ = self.largest(self.normalise(x), min(_SLOTS * self.config.k, self.config.d_sae))
        self.threshold.copy_(self._top(values).values.amin().clamp_min(1e-8))
        was, self.training = self.training, False
        active = float((self.encode(x).values > 0).sum() / len(x))
        self.training = was
        return active
