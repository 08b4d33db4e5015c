"""Predict the next token only where something changed: most ablations leave most tokens of the last layer unchanged."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moe_probe.models.discover import unwrap
from moe_probe.models.hooks import replaced_forwards, runs_own_forward


class SuffixCache:
    """Cache of what the output head read for each batch; from the second pass on, the head reads changed tokens alone.

    The head maps every token by itself, so that an unchanged input gives an unchanged prediction. Whoever uses it must
    keep the losses of the first pass, and compare them with a pass in which some tokens are predicted again
    (`moe_probe.studies.ablation.Ablator` does): a model may do more with its predictions than one token at a time.

    Parameters
    ----------
    model : nn.Module
    max_bytes : int
        Size of the cache; batches beyond it are predicted as usual.

    Attributes
    ----------
    changed : Tensor of int or None
        After a pass: indices of the tokens, batch and position flattened, that the model's ``logits`` belong to, which
        then have shape (1, n, vocabulary); None where they belong to all tokens as usual.
    force : bool
        Treat every other token as changed.
    """

    def __init__(self, model: nn.Module, *, max_bytes: int = 2**30) -> None:
        self._head: Any = unwrap(model).get_output_embeddings()  # type: ignore[operator]
        self._read: dict[Hashable, Tensor] = {}
        self._room = max_bytes
        self.changed: Tensor | None = None
        self.force = False

    @property
    def usable(self) -> bool:
        """Whether the model has a head that can be given some of the tokens."""
        return isinstance(self._head, nn.Module) and runs_own_forward(self._head)

    @contextmanager
    def using(self, key: Hashable, wanted: Tensor) -> Iterator[None]:
        """Inside the ``with`` block, run the model on the batch of this key.

        Parameters
        ----------
        key : hashable
            Identifies the batch.
        wanted : Tensor of bool, shape (B, S)
            Tokens whose predictions are needed.

        Yields
        ------
        None
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

        with replaced_forwards([(self._head, forward)]):
            yield

    def _keep(self, key: Hashable, x: Tensor) -> None:
        if self._room >= x.nbytes:
            self._room -= x.nbytes
            self._read[key] = x.detach().clone()
