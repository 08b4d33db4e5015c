"""Predict the next token only where something changed: most knock-outs leave most tokens of the last layers alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moe_probe.models.discover import unwrap


class SuffixCache:
    """Remembers what the prediction head read, for every batch by its key, and from then on gives it changed tokens alone.

    The head maps every token by itself, so that tokens which read the same are predicted the same. Whoever uses it has to
    keep the losses of the first pass, and to compare a pass with some tokens forced to be predicted anew with it
    (`moe_probe.studies.ablation.knock_out` does): a model may do more with its predictions than one token at a time.

    Parameters
    ----------
    model : nn.Module
    max_bytes : int
        Beyond it, further batches are predicted as usual.

    Attributes
    ----------
    changed : Tensor of int or None
        After a pass: numbers of the tokens, batch and position flattened, that the model's ``logits`` speak of, which then
        have shape (1, n, vocabulary); None where they speak of all tokens as usual.
    force : bool
        Take every other token for changed.
    """

    def __init__(self, model: nn.Module, *, max_bytes: int = 2**30) -> None:
        self._head: Any = unwrap(model).get_output_embeddings()  # type: ignore[operator]
        self._read: dict[Hashable, Tensor] = {}
        self._room = max_bytes
        self.changed: Tensor | None = None
        self.force = False

    @property
    def usable(self) -> bool:
        """Whether the model has a head that can be given some tokens."""
        return isinstance(self._head, nn.Module) and "forward" not in vars(self._head)

    @contextmanager
    def using(self, key: Hashable, wanted: Tensor) -> Iterator[None]:
        """Run the model on the batch of this key inside the ``with`` block.

        Parameters
        ----------
        wanted : Tensor of bool, shape (B, S)
            Tokens whose predictions are needed.
        """
        self.changed = None
        if not self.usable:
            yield
            return
        plain, calls = self._head.forward, 0

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 1 or x.shape[:2] != wanted.shape:
                self.changed = None
                return plain(x, *args, **kwargs)
            before = self._read.get(key)
            if before is None:
                self._keep(key, x)
                return plain(x, *args, **kwargs)
            differs = (x != before).any(-1)
            if self.force:
                differs.view(-1)[::2] = True
            rows = (differs & wanted.to(x.device)).flatten().nonzero().flatten()
            self.changed = rows if len(rows) else torch.zeros(1, dtype=torch.long, device=x.device)
            return plain(x.flatten(0, 1)[self.changed][None], *args, **kwargs)

        self._head.forward = forward
        try:
            yield
        finally:
            del self._head.forward

    def _keep(self, key: Hashable, x: Tensor) -> None:
        if self._room >= x.nbytes:
            self._room -= x.nbytes
            self._read[key] = x.detach().clone()
