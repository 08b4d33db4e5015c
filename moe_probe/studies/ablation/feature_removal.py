"""Take what some features add to an activation away, leaving the rest of it as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_probe.features.spliced_loss import Splice

if TYPE_CHECKING:
    import torch

    from moe_probe.sae import Sae
    from moe_probe.sae.architectures.base import Sparse

#: Bytes of activations whose latents are remembered.
_ROOM = 2**28


class Remover:
    """Removes features of one SAE, one set after the other, from the same batches.

    Every set sees the activations that the sets before it saw, so that they are encoded once and remembered; an activation
    counts as known only where all of its numbers are the same.

    Parameters
    ----------
    name : str
        Folder of the SAE.
    sae : Sae
    """

    def __init__(self, name: str, sae: Sae) -> None:
        self.name, self._sae = name, sae
        self._known: list[tuple[torch.Tensor, Sparse]] = []
        self._room = _ROOM

    def without(self, members: tuple[int, ...]) -> Splice:
        """The splice that takes these features' share of the activation away; the SAE's error stays as it was."""
        import torch

        sae, gone = self._sae, torch.tensor(members)

        def replace(x: torch.Tensor) -> torch.Tensor:
            latents = self._encoded(x)
            hit = torch.isin(latents.indices, gone) & (latents.values > 0)
            token, slot = hit.nonzero(as_tuple=True)
            out = x.clone()
            share = latents.values[token, slot, None] * sae.W_dec[latents.indices[token, slot]] * sae.scale
            return out.index_add_(0, token.to(x.device), -share.to(x))

        return Splice(sae.config.layer, sae.config.hook, replace)

    def _encoded(self, x: torch.Tensor) -> Sparse:
        import torch

        for seen, latents in self._known:
            if seen.shape == x.shape and torch.equal(seen, x):
                return latents
        latents = self._sae.encode(x.float().cpu())
        if x.nbytes <= self._room:
            self._room -= x.nbytes
            self._known.append((x.detach().clone(), latents))
        return latents
