"""Latents that have not fired for long: counted on the device, known on the host without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


class HostNumber:
    """One number that is computed on a device and read on the host somewhat later.

    The copy is queued behind the computation of the number; reading waits for that copy only, while the device goes on with
    what was queued after it.
    """

    def __init__(self) -> None:
        self._number: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    @property
    def known(self) -> bool:
        """Whether a number was sent."""
        return self._number is not None

    def send(self, number: Tensor) -> None:
        """Queue the copy of a number, shape ()."""
        if not number.is_cuda:
            self._number = number.cpu()
            return
        if self._event is None:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._number = torch.empty((), dtype=number.dtype, pin_memory=True)
        self._number.copy_(number, non_blocking=True)
        self._event.record(torch.cuda.current_stream(number.device))  # which may not be the current GPU

    def read(self) -> int:
        """Wait for the number that was sent last, and return it; there must be one."""
        assert self._number is not None
        if self._event is not None:
            self._event.synchronize()
        return int(self._number)


class Idle:
    """Tokens since each latent last fired.

    Parameters
    ----------
    d_sae : int
    patience : int
        Tokens without firing that make a latent dead.
    device : torch.device

    Attributes
    ----------
    tokens : Tensor of int, shape (d_sae,)
    """

    def __init__(self, d_sae: int, *, patience: int, device: torch.device) -> None:
        self.tokens = torch.zeros(d_sae, dtype=torch.long, device=device)
        self._patience = patience
        self._count = HostNumber()

    def dead(self, seen: int) -> Tensor | None:
        """Tell which latents are dead after `seen` tokens, shape (d_sae,); None when none is.

        Up to `patience` tokens none can be, and nobody is asked.
        """
        if seen <= self._patience:
            return None
        dead = self.tokens > self._patience
        if not self._count.known:  # the first time, and after a checkpoint was loaded
            self._count.send(dead.sum())
        return dead if self._count.read() else None

    def note(self, values: Tensor, indices: Tensor, *, seen: int) -> None:
        """Record the latents of a batch, after which `seen` tokens have been seen.

        Parameters
        ----------
        values, indices : Tensor, shape (n_tokens, slots)
            As `Sparse`; latents of a value above 0 have fired.
        seen : int
        """
        fired = torch.zeros(len(self.tokens), dtype=torch.int32, device=self.tokens.device)
        fired.index_add_(0, indices.reshape(-1), (values > 0).reshape(-1).int())
        self.tokens.add_(len(values)).masked_fill_(fired > 0, 0)
        if seen > self._patience:
            self._count.send((self.tokens > self._patience).sum())
