"""One shard of documents through the model: batches of windows in, arrays per token out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import dropped_id
from moe_probe.core.sites import ActivationSite
from moe_probe.models import RoutingCapture, SiteRecord, forward_inputs, input_device
from moe_probe.recording.collect.windows import EncodedDocument, Window
from moe_probe.recording.trace.sampled import SHARD_ROWS

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel

#: Families whose padding or neighbours change the routing of real tokens: one window at a time.
ALONE = frozenset({"switch", "nllb", "product-keys"})


class ShardArrays:
    """Arrays of one shard, filled window by window in whatever order the batches run.

    Attributes
    ----------
    experts : ndarray of uint8 or uint16, shape (n_tokens, n_layers, n_slots)
        Rows are tokens in document order.
    weights : ndarray of float16, same shape
    sampled : ndarray of int, shape (n_tokens,), or None
        Row of each token among those whose vectors are kept, -1 where they are not.
    extras : dict of folder to dict of str to Tensor
        What is kept beside routing, by folder of the trace and name.
    """

    def __init__(
        self, loaded: LoadedModel, n_tokens: int, *, dtype: str, keep: Sequence[ActivationSite], sampled: np.ndarray | None
    ) -> None:
        slots = max(site.info.top_k for site in loaded.sites)
        shape = (n_tokens, len(loaded.sites), slots)
        self.experts = np.full(shape, dropped_id(dtype), dtype=dtype)
        self.weights = np.zeros(shape, dtype=np.float16)
        self.sites, self.keep = loaded.sites, keep
        self.sampled = sampled
        self.extras: dict[str, dict[str, Any]] = {}

    def put(self, records: Sequence[SiteRecord], picked: torch.Tensor, rows: np.ndarray) -> None:
        """Store some rows of a batch as rows of the shard.

        Parameters
        ----------
        records : sequence of SiteRecord, length n_layers
        picked : Tensor of int64, shape (n_picked,)
            Rows of the records: tokens that are recorded in this batch.
        rows : ndarray of int, shape (n_picked,)
            Their rows in the shard.
        """
        for i, (site, record) in enumerate(zip(self.sites, records, strict=True)):
            ids = record.experts[picked.to(record.experts.device)].cpu().numpy()
            self.experts[rows, i, : ids.shape[1]] = np.where(ids < 0, dropped_id(self.experts.dtype), ids)
            weights = record.weights[picked.to(record.weights.device)].cpu().numpy()
            self.weights[rows, i, : ids.shape[1]] = weights
            if self.keep:
                self._put_extras(site.info.layer, record, picked, rows)

    def _put_extras(self, layer: int, record: SiteRecord, picked: torch.Tensor, rows: np.ndarray) -> None:
        for site in self.keep:
            values = getattr(record, site.part)
            if values is None:  # a layer at which nothing but routing is kept
                continue
            values = values[picked.to(values.device)].cpu()
            where = site.folder_of(layer), site.tensor_of(layer)
            if site.sampled and self.sampled is not None:
                sample_rows = self.sampled[rows]
                chosen = torch.from_numpy(np.flatnonzero(sample_rows >= 0))
                size = int(self.sampled.max()) + 1
                self._store(where, values[chosen].to(torch.bfloat16), sample_rows[sample_rows >= 0], size)
            else:
                dtype = torch.float16 if site is ActivationSite.LOGITS else torch.float32
                self._store(where, values.to(dtype), rows, len(self.experts))

    def _store(self, where: tuple[str, str], values: torch.Tensor, rows: np.ndarray, size: int) -> None:
        folder, name = where
        named = self.extras.setdefault(folder, {})
        if name not in named:
            named[name] = torch.zeros((size, *values.shape[1:]), dtype=values.dtype)
        named[name][torch.from_numpy(rows)] = values

    def number_rows(self) -> None:
        """Store, beside sampled vectors, which rows of the shard they belong to."""
        if self.sampled is not None:
            rows = torch.from_numpy(np.flatnonzero(self.sampled >= 0))
            for named in self.extras.values():
                if "values" in named:
                    named[SHARD_ROWS] = rows


def run_shard(
    loaded: LoadedModel,
    capture: RoutingCapture,
    documents: Sequence[EncodedDocument],
    arrays: ShardArrays,
    *,
    batch_tokens: int,
) -> Iterator[int]:
    """Run every window of the documents, longest first, and fill `arrays`.

    Parameters
    ----------
    loaded : LoadedModel
    capture : RoutingCapture
        Entered.
    documents : sequence of EncodedDocument
        Of the shard.
    arrays : ShardArrays
        Of the shard.
    batch_tokens : int
        Tokens of a forward pass at most; a single window may be longer.

    Yields
    ------
    int
        Number of tokens of each batch, after it has been stored.
    """
    rows_of = _recorded_rows(documents)
    alone = any(site.adapter in ALONE for site in loaded.sites)
    device, pad = input_device(loaded.model), _pad_id(loaded.tokenizer)
    # longest first: little padding, and if memory does not suffice that shows in the first batch
    order = sorted(range(len(rows_of)), key=lambda i: (-len(rows_of[i][0].ids), i))
    for batch in _batches([rows_of[i] for i in order], batch_tokens=batch_tokens, alone=alone):
        length = max(len(window.ids) for window, _ in batch)
        ids = torch.full((len(batch), length), pad, dtype=torch.long)
        mask = torch.zeros((len(batch), length), dtype=torch.long)
        picked, rows = [], []
        for i, (window, window_rows) in enumerate(batch):
            ids[i, : len(window.ids)] = torch.from_numpy(window.ids)
            mask[i, : len(window.ids)] = 1
            picked.append(np.arange(window.record.start, window.record.stop) + i * length)
            rows.append(window_rows)
        with torch.inference_mode():
            loaded.model(**forward_inputs(loaded.model, ids.to(device), mask.to(device), logits=False))
        records = capture.take()
        _check_rows(loaded, records, len(batch) * length)
        arrays.put(records, torch.from_numpy(np.concatenate(picked)), np.concatenate(rows))
        yield int(mask.sum())


def _recorded_rows(documents: Sequence[EncodedDocument]) -> list[tuple[Window, np.ndarray]]:
    out, row = [], 0
    for document in documents:
        for window in document.windows:
            n = window.record.stop - window.record.start
            out.append((window, np.arange(row, row + n)))
            row += n
    return out


def _batches(
    windows: Sequence[tuple[Window, np.ndarray]], *, batch_tokens: int, alone: bool
) -> Iterator[list[tuple[Window, np.ndarray]]]:
    batch: list[tuple[Window, np.ndarray]] = []
    for item in windows:
        longest = len(batch[0][0].ids) if batch else 0
        if batch and (alone or longest * (len(batch) + 1) > batch_tokens):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _pad_id(tokenizer: Any) -> int:
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(value, int):
            return value
    return 0


def _check_rows(loaded: LoadedModel, records: Sequence[SiteRecord], n_rows: int) -> None:
    for site, record in zip(loaded.sites, records, strict=True):
        if len(record.experts) != n_rows:
            raise MoeProbeError(
                f"{site.info.name} routed {len(record.experts)} rows for a batch of {n_rows} tokens",
                "rows cannot be assigned to tokens",
                "report this model family",
            )
