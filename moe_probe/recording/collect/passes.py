"""Forward passes over batches: what is recorded is on its way to the host when a pass returns, and nothing waited for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from moe_probe.core.errors import MoeProbeError
from moe_probe.models import RoutingCapture, forward_inputs, input_device
from moe_probe.models.parallel import leader_of
from moe_probe.recording.collect.arrays import ShardArrays
from moe_probe.recording.collect.batches import ALONE, Batch, Batching, pad_id
from moe_probe.recording.collect.memory import automatic_batch_tokens, is_out_of_memory, release
from moe_probe.recording.collect.packing import Copier, Packed
from moe_probe.recording.collect.windows import EncodedDocument, Window

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.recording.collect.windows import Encoder
    from moe_probe.recording.corpus import Document
    from moe_probe.recording.settings import CollectOptions


class Passes:
    """Runs batches of windows through a model.

    Parameters
    ----------
    loaded : LoadedModel
    capture : RoutingCapture
        Entered.
    options : CollectOptions
    expert_dtype : {"uint8", "uint16"}
        Type of ids in the trace.
    """

    def __init__(self, loaded: LoadedModel, capture: RoutingCapture, options: CollectOptions, *, expert_dtype: str) -> None:
        self.loaded, self.capture, self.options, self.expert_dtype = loaded, capture, options, expert_dtype
        self.device = input_device(loaded.model)
        self._copier = Copier()

    def batching(self, size: int) -> Batching:
        """Say how windows become batches for this model.

        Parameters
        ----------
        size : int
            Tokens of a batch at most.

        Returns
        -------
        Batching
        """
        return Batching(
            size,
            pad_id(self.loaded.tokenizer),
            alone=any(site.adapter in ALONE for site in self.loaded.sites),
            pinned=self.device.type == "cuda",
        )

    def arrays(self, n_tokens: int, sampled: np.ndarray | None) -> ShardArrays:
        """Make the empty arrays of a shard.

        Parameters
        ----------
        n_tokens : int
        sampled : ndarray of int, shape (n_tokens,), or None
            Row of each token among those whose vectors are kept, -1 where they are not.

        Returns
        -------
        ShardArrays
        """
        return ShardArrays(self.loaded, n_tokens, dtype=self.expert_dtype, keep=self.options.sites, sampled=sampled)

    def run(self, batch: Batch, arrays: ShardArrays) -> Packed | None:
        """Run a batch.

        Parameters
        ----------
        batch : Batch
        arrays : ShardArrays
            Of its shard; `Packed.store` fills them.

        Returns
        -------
        Packed or None
            None where memory did not suffice and the batch has several windows: fewer of them may fit.

        Raises
        ------
        MoeProbeError
            When a single window does not fit into memory, or any batch of a model that is split over processes; or when rows
            cannot be assigned to tokens.
        """
        packed = self._tried(batch, arrays)
        if isinstance(packed, Packed):
            return packed
        if batch.n_windows > 1:
            return None
        raise MoeProbeError(
            f"a window of {batch.n_tokens:,} tokens does not fit into memory",
            packed,
            "a smaller --max-length (longer documents are windowed), a smaller --dtype, or a machine with more memory",
        )

    def _tried(self, batch: Batch, arrays: ShardArrays) -> Packed | str:
        """Run a batch; return the allocator's words where memory did not suffice, and give back what it left behind."""
        try:
            with torch.inference_mode():
                ids, mask = (x.to(self.device, non_blocking=True) for x in (batch.ids, batch.mask))
                self.loaded.model(**forward_inputs(self.loaded.model, ids, mask, logits=False))
                return Packed(arrays.parts(self.capture.take(), batch), self._copier)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            why = str(error).strip().split("\n")[0]
        # only here is the error gone, and with it the tensors of the frames that it passed through
        self.capture.clear()
        release(self._devices())
        # the others have begun this pass, and would add their parts to the next
        if leader_of(self.loaded.model) is not None:
            raise MoeProbeError(
                f"a batch of {batch.n_tokens:,} tokens does not fit into memory",
                f"{why}; a model that is split over processes cannot try again with a smaller one",
                "--force with a smaller --batch-tokens",
            )
        return why

    def automatic_batch_tokens(self, encoder: Encoder, opening: Sequence[Document]) -> int:
        """Choose the tokens of a batch by the memory that is free.

        Parameters
        ----------
        encoder : Encoder
        opening : sequence of Document
            Some documents of the corpus: their tokens are run, over and over.

        Returns
        -------
        int
            As `moe_probe.recording.collect.memory.automatic_batch_tokens`.
        """
        length = encoder.max_length
        devices = () if self.batching(0).alone else self._devices()
        ids = np.resize(np.concatenate([document.ids for document in encoder.encode(opening)]), length)
        text = EncodedDocument(opening[0], ids, np.zeros(length, bool), (Window(ids, slice(0, length)),))

        def run(n_windows: int) -> None:
            n_tokens = n_windows * length
            sampled = np.arange(n_tokens) if self.options.samples_tokens else None
            (batch,) = self.batching(n_tokens).batches([text] * n_windows, sampled)
            packed = self._tried(batch, self.arrays(n_tokens, sampled))
            if not isinstance(packed, Packed):  # no reason to refuse: documents may be shorter than the longest window
                raise MemoryError
            packed.store()

        return automatic_batch_tokens(devices, run, length=length)

    def _devices(self) -> list[torch.device]:
        return list(dict.fromkeys([self.device, *(p.device for p in self.loaded.model.parameters() if not p.is_meta)]))
