"""TopK: the k largest latents of every token. Gao et al. 2024, arXiv:2406.04093."""

from __future__ import annotations

from torch import Tensor

from moe_probe.sae.architectures.base import Sae, Sparse
from moe_probe.sae.architectures.ops import encode_chosen


class TopK(Sae):
    """``f = ReLU(top-k of W_enc (x - b_dec) + b_enc)``."""

    def choose(self, x: Tensor) -> Sparse:
        """Select the k largest latents; negative ones are set to 0."""
        values, indices = self.largest(x, min(self.config.k, self.config.d_sae))
        if self.training:
            values = encode_chosen(x - self.b_dec.detach(), (self.W_enc, self.b_enc), values, indices)
        return Sparse(values.relu(), indices)
