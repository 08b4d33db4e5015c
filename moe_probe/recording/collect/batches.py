"""The windows of a shard in batches: padded inputs, and where each of their rows goes in the shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moe_probe.recording.collect.windows import EncodedDocument, Window

#: Families whose padding or neighbours change the routing of real tokens: one window at a time.
ALONE = frozenset({"switch", "nllb", "product-keys"})


class Picked(NamedTuple):
    """Some rows of a batch, and where they go.

    Attributes
    ----------
    of_batch : Tensor of int64, shape (n,), or None
        Rows of the batch, ``[B * S]``; None for all of them, in order.
    of_target : ndarray of int64, shape (n,)
        Their rows in an array of the shard.
    """

    of_batch: Tensor | None
    of_target: np.ndarray


class Batch(NamedTuple):
    """What one forward pass reads.

    Attributes
    ----------
    ids, mask : Tensor of int64, shape (B, S)
        Padded on the right; 1 where the mask covers a token.
    recorded : Picked
        Rows of tokens that are recorded, and their rows in the shard.
    sampled : Picked or None
        Those whose vectors are kept, and their rows among the vectors; None where all tokens' vectors are kept.
    n_windows, n_tokens : int
        Padding is not counted.
    """

    ids: Tensor
    mask: Tensor
    recorded: Picked
    sampled: Picked | None
    n_windows: int
    n_tokens: int


@dataclass(frozen=True)
class Batching:
    """How windows become batches.

    Attributes
    ----------
    size : int
        Tokens of a batch at most, padding included; a single window may be longer.
    pad : int
        Token id of padding.
    alone : bool
        One window a batch.
    pinned : bool
        Make tensors from which a GPU copies without the host waiting.
    """

    size: int
    pad: int
    alone: bool = False
    pinned: bool = False

    def batches(self, documents: Sequence[EncodedDocument], sampled: np.ndarray | None) -> Iterator[Batch]:
        """Cut the windows of a shard into batches, longest first.

        So there is little padding, and if memory does not suffice that shows in the first batch.

        Parameters
        ----------
        documents : sequence of EncodedDocument
            Of the shard.
        sampled : ndarray of int, shape (n_tokens,), or None
            Row of each token among those whose vectors are kept, -1 where they are not.

        Yields
        ------
        Batch
        """
        windows = _windows(documents)
        windows.sort(key=lambda item: -len(item[0].ids))  # stable: equal lengths stay in the order of the corpus
        start = 0
        while start < len(windows):
            longest = max(1, len(windows[start][0].ids))
            stop = start + (1 if self.alone else max(1, self.size // longest))
            yield self._batch(windows[start:stop], sampled)
            start = stop

    def halved(self, batch: Batch) -> Batching:
        """Return batches of at most half as many tokens as one that did not fit."""
        return replace(self, size=max(1, min(self.size, batch.ids.numel()) // 2))

    def _batch(self, windows: Sequence[tuple[Window, int]], sampled: np.ndarray | None) -> Batch:
        length = len(windows[0][0].ids)
        ids = np.full((len(windows), length), self.pad, dtype=np.int64)
        mask = np.zeros((len(windows), length), dtype=np.int64)
        picked, rows = [], []
        for i, (window, row) in enumerate(windows):
            ids[i, : len(window.ids)] = window.ids
            mask[i, : len(window.ids)] = 1
            picked.append(np.arange(window.record.start, window.record.stop) + i * length)
            rows.append(np.arange(row, row + len(picked[-1])))
        of_batch, of_shard = np.concatenate(picked), np.concatenate(rows)
        vectors = None
        if sampled is not None:
            targets = sampled[of_shard]
            chosen = targets >= 0
            vectors = Picked(self._tensor(of_batch[chosen]), targets[chosen])
        every = len(of_batch) == ids.size  # in order then, since rows of a batch only rise
        recorded = Picked(None if every else self._tensor(of_batch), of_shard)
        return Batch(self._tensor(ids), self._tensor(mask), recorded, vectors, len(windows), int(mask.sum()))

    def _tensor(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self.pinned else tensor


def _windows(documents: Sequence[EncodedDocument]) -> list[tuple[Window, int]]:
    """List the windows of a shard, each with the shard's row of its first recorded token."""
    out, row = [], 0
    for document in documents:
        for window in document.windows:
            out.append((window, row))
            row += window.record.stop - window.record.start
    return out


def pad_id(tokenizer: Any) -> int:
    """Token id of padding: the tokenizer's own, else its end of text, else 0 (masked in any case)."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(value, int):
            return value
    return 0
