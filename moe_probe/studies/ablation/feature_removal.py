"""Removal of what some features add to an activation, leaving the rest of it as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_probe.features.spliced_loss import Splice

if TYPE_CHECKING:
    import torch

    from moe_probe.sae import Sae
    from moe_probe.sae.architectures.base import Sparse

#: Bytes of activations whose latents are kept.
_MEMORY_BYTES = 2**28


class FeatureRemoval:
    """Removes features of one SAE, one set after the other, from the same batches.

    Every set sees the activations that the sets before it saw, so that these are encoded once and kept; an activation counts
    as known only where all of its numbers are the same.

    Parameters
    ----------
    name : str
        Folder of the SAE.
    sae : Sae
    """

    def __init__(self, name: str, sae: Sae) -> None:
        self.name, self._sae = name, sae
        self._encodings: list[tuple[torch.Tensor, Sparse]] = []
        self._bytes_left = _MEMORY_BYTES

    def splice(self, members: tuple[int, ...]) -> Splice:
        """Make the splice that removes these features' share of the activation; the SAE's error stays as it was."""
        import torch

        sae, removed = self._sae, torch.tensor(members)

        def replace(x: torch.Tensor) -> torch.Tensor:
            latents = self._encode(x)
            hit = torch.isin(latents.indices, removed) & (latents.values > 0)
            token, slot = hit.nonzero(as_tuple=True)
            out = x.clone()
            share = latents.values[token, slot, None] * sae.W_dec[latents.indices[token, slot]] * sae.scale
            return out.index_add_(0, token.to(x.device), -share.to(x))

        return Splice(sae.config.layer, sae.config.hook, replace)

    def _encode(self, x: torch.Tensor) -> Sparse:
        import torch

        for seen, latents in self._encodings:
            if seen.shape == x.shape and torch.equal(seen, x):
                return latents
        latents = self._sae.encode(x.float().cpu())
        if x.nbytes <= self._bytes_left:
            self._bytes_left -= x.nbytes
            self._encodings.append((x.detach().clone(), latents))
        return latents
