"""The arrays of one shard, filled batch by batch in whatever order the batches run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import dropped_id
from moe_probe.core.sites import ActivationSite
from moe_probe.models import SiteRecord
from moe_probe.recording.collect.batches import Batch, Picked
from moe_probe.recording.collect.packing import Part, as_array
from moe_probe.recording.trace.sampled import SHARD_ROWS

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel

#: A signed type of the size of each type of ids: -1, a slot without an expert, becomes the largest id of the unsigned one.
_SAME_SIZE = {"uint8": torch.uint8, "uint16": torch.int16}


class ShardArrays:
    """Arrays of one shard.

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

    def parts(self, records: Sequence[SiteRecord], batch: Batch) -> list[Part]:
        """List what is kept of a batch; nothing is copied yet.

        Parameters
        ----------
        records : sequence of SiteRecord, length n_layers
            Of a forward pass over the batch.
        batch : Batch

        Returns
        -------
        list of Part

        Raises
        ------
        MoeProbeError
            When a layer routed another number of rows than the batch has.
        """
        n_rows = batch.ids.numel()
        for site, record in zip(self.sites, records, strict=True):
            if len(record.experts) != n_rows:
                raise MoeProbeError(
                    f"{site.info.name} routed {len(record.experts)} rows for a batch of {n_rows} tokens",
                    "rows cannot be assigned to tokens",
                    "report this model family",
                )
        return [*self._routing(records, batch.recorded), *self._extras(records, batch)]

    def _routing(self, records: Sequence[SiteRecord], picked: Picked) -> Iterator[Part]:
        """Join the ids of the layers of each device, and their weights: two parts a device, whatever the number of layers."""
        n_tokens, _, slots = self.experts.shape
        for device in dict.fromkeys(record.experts.device for record in records):
            here = [(i, record) for i, record in enumerate(records) if record.experts.device == device]
            columns = np.concatenate([i * slots + np.arange(record.experts.shape[1]) for i, record in here])
            for target, values, dtype in (
                (self.experts, [record.experts for _, record in here], _SAME_SIZE[str(self.experts.dtype)]),
                (self.weights, [record.weights for _, record in here], torch.float16),
            ):
                flat = target.reshape(n_tokens, -1)

                def store(array: np.ndarray, flat: np.ndarray = flat, columns: np.ndarray = columns) -> None:
                    if len(columns) == flat.shape[1]:
                        flat[picked.of_target] = array.view(flat.dtype)
                    else:
                        flat[picked.of_target[:, None], columns] = array.view(flat.dtype)

                yield Part(torch.cat(values, dim=1), picked.of_batch, dtype, store)

    def _extras(self, records: Sequence[SiteRecord], batch: Batch) -> Iterator[Part]:
        for site in self.keep:
            vectors = site.sampled and batch.sampled is not None
            picked = batch.sampled if vectors and batch.sampled is not None else batch.recorded
            dtype = torch.bfloat16 if vectors else torch.float16 if site is ActivationSite.LOGITS else torch.float32
            for layer, record in zip(self.sites, records, strict=True):
                values = getattr(record, site.part)
                if values is None:  # a layer at which nothing but routing is kept
                    continue
                number = layer.info.layer
                target = self._target(site.folder_of(number), site.tensor_of(number), values.shape[1:], dtype)

                def store(array: np.ndarray, target: np.ndarray = target, rows: np.ndarray = picked.of_target) -> None:
                    target[rows] = array

                yield Part(values, picked.of_batch, dtype, store)

    def _target(self, folder: str, name: str, shape: Sequence[int], dtype: torch.dtype) -> np.ndarray:
        """Array of something kept beside routing, made when it is first needed."""
        named = self.extras.setdefault(folder, {})
        if name not in named:
            sampled = dtype is torch.bfloat16 and self.sampled is not None
            size = int(self.sampled.max()) + 1 if sampled and self.sampled is not None else len(self.experts)
            named[name] = torch.zeros((size, *shape), dtype=dtype)
        return as_array(named[name])

    def number_rows(self) -> None:
        """Store, beside sampled vectors, which rows of the shard they belong to."""
        if self.sampled is not None:
            rows = torch.from_numpy(np.flatnonzero(self.sampled >= 0))
            for named in self.extras.values():
                if "values" in named:
                    named[SHARD_ROWS] = rows
