"""Activations of a trace for training: streamed from disk, shuffled by seed, readable from any batch on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import dropped_id
from moe_probe.core.sites import ActivationSite
from moe_probe.recording.trace.opened import open_routing, open_vectors
from moe_probe.recording.trace.sampled import rows_in_shard
from moe_probe.sae.config import SaeConfig, TrainOptions

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace


class Batch(NamedTuple):
    """Activations of some tokens.

    Attributes
    ----------
    values : Tensor, shape (n, d) or (n, slots, d)
        (n, slots, d) where the outputs of the selected experts are kept apart.
    experts : Tensor of int, shape (n, slots)
        Selected experts, -1 for an empty slot.
    rows : Tensor of int, shape (n,)
        Rows of the tokens in the trace.
    """

    values: Tensor
    experts: Tensor
    rows: Tensor


@dataclass(frozen=True)
class _Shard:
    index: int
    path: str
    #: Entries of the file that are used, and their rows in the trace.
    entries: np.ndarray
    rows: np.ndarray


class ActivationReader:
    """Batches of one layer's activations at one site, in an order that the seed decides.

    An epoch visits the shards in random order. As many as fit in the pool are read and their tokens shuffled
    together: memory is bounded by the pool (twice that in training), and a trace that fits in it is shuffled as a
    whole. The order of an epoch does not depend on reading the ones before: training resumes at any batch.

    Parameters
    ----------
    trace : Trace
        Collected with ``--keep hidden`` (router input), ``residual`` or ``expert_outputs``.
    layer : int
    hook : {"router_input", "expert_output", "residual"}
    documents : ndarray of bool, shape (n_documents,), optional
        Use the tokens of these only; all by default. Special tokens are never used.
    slots : bool
        Keep the outputs of the selected experts apart, instead of adding them up.
    batch_tokens : int
        Tokens of a batch; batches differ from it by less than half.
    pool_bytes : int
        Memory for activations that are shuffled together. Training reads the next pool while it uses one: two are in memory.
    seed : int

    Attributes
    ----------
    n_tokens : int
        Tokens that an epoch reads.
    d_in : int
        Width of the activations.

    Raises
    ------
    MoeProbeError
        When the trace does not have these activations, or no token is left.
    """

    def __init__(  # noqa: PLR0913 - public API: keyword-only options with defaults
        self,
        trace: Trace,
        *,
        layer: int,
        hook: str = "router_input",
        documents: np.ndarray | None = None,
        slots: bool = False,
        batch_tokens: int = TrainOptions.batch_tokens,
        pool_bytes: int = 2**30,
        seed: int = 0,
    ) -> None:
        self._site = ActivationSite.of_hook(hook)
        self.trace, self.layer, self.hook, self.seed = trace, layer, hook, seed
        self.slots = slots and hook == "expert_output"
        self._layer_index = trace.layer_index(layer)
        self.batch_tokens = batch_tokens
        self._shards = self._scan(documents)
        self.n_tokens = sum(len(s.rows) for s in self._shards)
        if not self.n_tokens:
            raise MoeProbeError(
                f"no token of layer {layer} has its {hook} kept",
                "the selected documents have none",
                "collect with a larger --hidden-share, or more documents",
            )
        self._shape = self._value_shape()
        self.d_in = self._shape[-1]
        width = 2 * int(np.prod(self._shape)) if self.slots or hook != "expert_output" else 2 * self.d_in
        self._pool_tokens = max(batch_tokens, pool_bytes // width)
        self._whole: Batch | None = None

    def _scan(self, documents: np.ndarray | None) -> list[_Shard]:
        keep, folder = self._site.keep, self._site.folder_of(self.layer)
        shards = []
        for shard, tokens in self.trace.iter_tokens(["document", "special"]):
            named = next((f.path for f in shard.files if f.path.rsplit("/", 1)[0] == folder), None)
            if named is None:
                raise MoeProbeError(
                    f"the trace at {self.trace.root} has no {folder}",
                    f"the {self.hook} of layer {self.layer} was not kept",
                    f"collect again with --keep {keep} (and --hidden-layers {self.layer})",
                )
            with open_vectors(self.trace.root, named) as file:
                sampled = rows_in_shard(file, tokens.first, shard.n_tokens)
                if sampled is None:
                    raise MoeProbeError(
                        f"{file.path} has no vectors",
                        "only norms of expert outputs were kept",
                        f"collect again with --keep {keep}",
                    )
            local = sampled.numpy()
            use = ~tokens.columns["special"][local]
            if documents is not None:
                use &= documents[tokens.columns["document"][local]]
            entries = np.flatnonzero(use)
            if len(entries):
                shards.append(_Shard(shard.index, named, entries, local[entries] + tokens.first))
        return shards

    def _value_shape(self) -> tuple[int, ...]:
        with open_vectors(self.trace.root, self._shards[0].path) as file:
            return file.shape("values")[1:]

    @property
    def rows(self) -> np.ndarray:
        """Rows in the trace of all tokens that are read, shape (n_tokens,), in the order of `in_order`."""
        return np.concatenate([s.rows for s in self._shards])

    def expert_counts(self) -> np.ndarray:
        """Count the tokens that selected each expert, shape (num_experts,)."""
        counts = np.zeros(self.trace.layers[self._layer_index].num_experts, dtype=np.int64)
        for shard in self._shards:
            experts = self._experts(shard)
            counts += np.bincount(experts[experts >= 0], minlength=len(counts))
        return counts

    def n_batches(self, epoch: int = 0) -> int:
        """Count the batches of an epoch."""
        return sum(self._pieces(group) for group in self._groups(epoch))

    def batches(self, *, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Read the batches of one epoch.

        Parameters
        ----------
        epoch : int
            Decides the order, with the seed.
        start : int
            First batch to read.

        Yields
        ------
        Batch
        """
        for pool, pieces in self.pools(epoch=epoch, start=start):
            for piece in pieces:
                yield gather(pool, piece)

    def pools(self, *, epoch: int = 0, start: int = 0) -> Iterator[tuple[Batch, tuple[Tensor, ...]]]:
        """Read the activations of one epoch that are shuffled together.

        Parameters
        ----------
        epoch, start : int
            As `batches`.

        Yields
        ------
        tuple of Batch and of tuple of Tensor
            A pool, and the entries of it that make each of its batches.
        """
        passed = 0
        for number, group in enumerate(self._groups(epoch)):
            pieces = self._pieces(group)
            if passed + pieces > start:
                pool = self._read(group)
                order = torch.from_numpy(np.random.default_rng([self.seed, epoch, number]).permutation(len(pool.rows)))
                yield pool, torch.tensor_split(order, pieces)[max(0, start - passed) :]
                del pool  # the next one is read without it
            passed += pieces

    def in_order(self) -> Iterator[Batch]:
        """Read all tokens shard by shard, in the order of the trace."""
        for shard in self._shards:
            yield self._read([shard], keep=False)

    def _groups(self, epoch: int) -> list[list[_Shard]]:
        """Shards of an epoch in random order, cut into groups that fit in the pool."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._shards))
        groups: list[list[_Shard]] = [[]]
        in_group = 0
        for shard in (self._shards[i] for i in order):
            if groups[-1] and in_group + len(shard.rows) > self._pool_tokens:
                groups.append([])
                in_group = 0
            groups[-1].append(shard)
            in_group += len(shard.rows)
        # one group is shuffled as a whole anyway: in the order of the trace it is read once for all epochs
        return groups if len(groups) > 1 else [list(self._shards)]

    def _pieces(self, group: Sequence[_Shard]) -> int:
        return max(1, round(sum(len(s.rows) for s in group) / self.batch_tokens))

    def _read(self, group: Sequence[_Shard], *, keep: bool = True) -> Batch:
        if self._whole is not None and len(group) == len(self._shards):
            return self._whole
        n = sum(len(shard.rows) for shard in group)
        stored, start = self._stored(group[0]), 0
        values = stored.new_empty((n, *stored.shape[1:]))
        for number, shard in enumerate(group):
            stored = self._stored(shard) if number else stored
            # from the file's pages into their place, by all threads: nothing is in memory twice
            into = values[start : start + len(shard.rows)]
            torch.index_select(stored, 0, torch.from_numpy(shard.entries), out=into)
            self._check(into, shard)
            start += len(into)
        experts = torch.from_numpy(np.concatenate([self._experts(shard) for shard in group]))
        pool = Batch(values, experts, torch.from_numpy(np.concatenate([shard.rows for shard in group])))
        if keep and len(group) == len(self._shards):
            self._whole = pool
        return pool

    def _stored(self, shard: _Shard) -> Tensor:
        """Activations of all kept tokens of a shard: the file's own pages, which are read when they are touched."""
        with open_vectors(self.trace.root, shard.path) as file:
            file.check("values", ["BF16", "F16", "F32"], (None, *self._shape))
            values: Tensor = file.tensor("values")
        if values.ndim == 3 and not self.slots:
            values = values.float().sum(1).to(values.dtype)
        return values

    def _check(self, values: Tensor, shard: _Shard) -> None:
        # a NaN or infinity anywhere makes the sum one
        if torch.isfinite(values.sum(dtype=torch.float32)):
            return
        bad = ~torch.isfinite(values.flatten(1)).all(1)
        if not bad.any():
            return
        row = int(shard.rows[int(bad.nonzero()[0])])
        document, position = self.trace.whereabouts(row)
        raise MoeProbeError(
            f"the {self.hook} of layer {self.layer} has NaN or infinite values in {int(bad.sum())} tokens",
            f"the first is in document '{document}', position {position}; one such row would spoil every latent",
            "collect in another precision (--dtype float32), or remove the document from the corpus",
        )

    def _experts(self, shard: _Shard) -> np.ndarray:
        """Read the experts that a shard's tokens selected, shape (n, slots), -1 where a slot is empty."""
        entry = self.trace.manifest.shards[shard.index]
        with open_routing(self.trace.root, self.trace.manifest, entry) as file:
            experts = file.experts([self._layer_index])[:, 0]
        first = sum(s.n_tokens for s in self.trace.manifest.shards[: shard.index])
        chosen = experts[shard.rows - first].astype(np.int32)
        return np.where(chosen == dropped_id(experts.dtype), -1, chosen)


def gather(pool: Batch, piece: Tensor, out: Tensor | None = None) -> Batch:
    """Take entries of a pool, its values into `out` if given.

    Parameters
    ----------
    pool : Batch
    piece : Tensor of int, shape (n,)
        Entries.
    out : Tensor, shape (n, ...), optional

    Returns
    -------
    Batch
    """
    values, experts, rows = pool
    return pool._replace(values=torch.index_select(values, 0, piece, out=out), experts=experts[piece], rows=rows[piece])


def select(batch: Batch, config: SaeConfig) -> Tensor:
    """Select the activations that one SAE is trained on.

    All tokens; or, for an SAE of some experts, the tokens that selected one of them: what the router read, or
    what those experts added (not what the others added beside them).

    Parameters
    ----------
    batch : Batch
    config : SaeConfig

    Returns
    -------
    Tensor, shape (n_selected, d_in)
    """
    if config.experts is None:
        return batch.values if batch.values.ndim == 2 else batch.values.sum(1)
    of_experts = torch.isin(batch.experts, torch.tensor(config.experts, dtype=batch.experts.dtype))
    selected = of_experts.any(1)
    if batch.values.ndim == 2:
        return batch.values[selected]
    return (batch.values[selected] * of_experts[selected, :, None]).sum(1)
