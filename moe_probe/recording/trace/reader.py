"""Reading a trace: opened at once, loaded only as far as it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import path_inside
from moe_probe.core.html import card_html, facts_html
from moe_probe.core.routing import Usage, dropped_id
from moe_probe.core.schema import Manifest, MoeLayer
from moe_probe.core.text import one_line, some_of
from moe_probe.recording.trace.annotated import documents_anndata, tokens_anndata
from moe_probe.recording.trace.chunks import RoutingChunk
from moe_probe.recording.trace.facts import trace_facts
from moe_probe.recording.trace.files import file_entries, find_root, read_manifest
from moe_probe.recording.trace.opened import check_manifest, open_routing, vectors_of
from moe_probe.recording.trace.rows import RoutingRows, read_routing_rows
from moe_probe.recording.trace.sampled import with_trace_rows
from moe_probe.recording.trace.tokens import TraceTokens
from moe_probe.recording.trace.usage import StoredUsage

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse


class Trace(TraceTokens):
    """A sealed record of routing decisions. Open with `Trace.open`.

    Attributes
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest
        What the trace says of itself.
    warnings : tuple of str
        What the importer guessed or omitted; not stored, so empty for a trace that was opened.

    Examples
    --------
    >>> trace = Trace.open("RUN/trace")
    >>> trace.documents.topic.value_counts()
    >>> usage = trace.usage()
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        super().__init__(root, manifest)
        self.warnings: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> Trace:
        """Open a trace directory, or a run directory with one in ``trace/``.

        Raises
        ------
        MoeProbeError
            When there is no trace, it is damaged beyond reading, or it was never sealed.
        """
        root = find_root(Path(path))
        manifest = read_manifest(root)
        if manifest.status != "sealed":
            raise MoeProbeError(
                f"the trace at {root} is unfinished",
                "its collection was interrupted",
                "run the same command (collect, import or merge) with --resume",
            )
        for entry in file_entries(manifest):
            path_inside(root, entry.path)
        check_manifest(root, manifest)
        return cls(root, manifest)

    @property
    def layers(self) -> tuple[MoeLayer, ...]:
        """The MoE layers, in the order of the arrays' second axis."""
        return self.manifest.layers

    @property
    def n_tokens(self) -> int:
        """Tokens recorded, special ones included."""
        return self.manifest.n_tokens

    def layer_index(self, layer: int) -> int:
        """Position of a layer on the layer axis of the arrays.

        Raises
        ------
        MoeProbeError
            When the model has no MoE layer of that number.
        """
        numbers = [item.layer for item in self.layers]
        if layer not in numbers:
            raise MoeProbeError(f"there is no MoE layer {layer}", f"the trace has {some_of(numbers, 12)}", "one of those")
        return numbers.index(layer)

    def usage(self) -> Usage:
        """Return selections and gate mass per document, layer and expert (special tokens left out).

        Computed once for a trace; the arrays are read-only, since everyone who asks gets the same ones.
        """
        return self._usage

    @cached_property
    def _usage(self) -> Usage:
        return StoredUsage(self.root, self.layers, self.documents, self.manifest.evidence)

    def iter_routing(
        self, layers: Sequence[int] | None = None, *, weights: bool = True, documents: np.ndarray | None = None
    ) -> Iterator[RoutingChunk]:
        """Yield the routing shard by shard.

        Parameters
        ----------
        layers : sequence of int, optional
            Numbers of the layers to read. Default: all.
        weights : bool
            Read gate weights, where the trace has them.
        documents : ndarray of bool, shape (n_documents,), optional
            Pass over the shards that have none of these documents.

        Yields
        ------
        RoutingChunk

        Raises
        ------
        MoeProbeError
            When only usage was kept, or a layer does not exist.
        """
        self.need_routing()
        indices = None if layers is None else [self.layer_index(layer) for layer in layers]
        names = ["document", "position", "token_id", "special"]
        for shard, chunk in self.iter_tokens(names, documents=documents):
            with open_routing(self.root, self.manifest, shard) as arrays:
                experts = arrays.experts(indices)
                gates = arrays.weights(indices) if weights and self.manifest.has_weights else None
            yield RoutingChunk(experts, gates, *(chunk.columns[name] for name in names))

    def routing_at(self, rows: np.ndarray, layers: slice = slice(None), *, weights: bool = False) -> RoutingRows:
        """Return the routing of some tokens.

        Parameters
        ----------
        rows : ndarray of int, shape (n_rows,)
            Rows of the tokens in the trace, in any order.
        layers : slice
            Positions on the layer axis.
        weights : bool
            Read gate weights too, where the trace has them.

        Returns
        -------
        RoutingRows
        """
        self.need_routing()
        return read_routing_rows(self.root, self.manifest, rows, layers=layers, weights=weights)

    def layer(self, layer: int) -> sparse.csr_array:
        """Return the selections of one layer as a sparse 0/1 matrix, shape (n_tokens, num_experts)."""
        from scipy import sparse

        experts = np.concatenate([c.experts[:, 0] for c in self.iter_routing([layer])])
        filled = experts != dropped_id(experts.dtype)
        indptr = np.concatenate([[0], np.cumsum(filled.sum(1))])
        size = (len(experts), self.layers[self.layer_index(layer)].num_experts)
        ones = np.ones(indptr[-1], dtype=np.int32)
        return sparse.csr_array((ones, experts[filled].astype(np.int32), indptr), shape=size)

    def iter_extras(self, folder: str) -> Iterator[dict[str, Any]]:
        """Yield the tensors of an optional part (``hidden/layer_07``, ``logits`` ...), shard by shard.

        ``rows``, beside vectors of sampled tokens, are rows of the trace.

        Raises
        ------
        MoeProbeError
            When the trace does not have that part.
        """
        first = np.cumsum([0, *(s.n_tokens for s in self.manifest.shards)]).tolist()
        paths = [
            (f.path, row)
            for s, row in zip(self.manifest.shards, first, strict=False)
            for f in s.files
            if f.path.rsplit("/", 1)[0] == folder
        ]
        if not paths:
            held = sorted({f.path.rsplit("/", 1)[0] for s in self.manifest.shards for f in s.files})
            raise MoeProbeError(
                f"the trace at {self.root} has no {folder}",
                f"it has {some_of(held, 12)}",
                "collect again with --keep hidden (or logits, expert_output_norms ...)",
            )
        for path, row in paths:
            yield with_trace_rows(vectors_of(self.root, path), row)

    def to_anndata(self, *, of: str = "documents", layer: int | None = None) -> AnnData:
        """Convert routing to an AnnData object, documents (or tokens) x experts, for scanpy and its relatives.

        Parameters
        ----------
        of : {"documents", "tokens"}
            Rows. Documents: ``X`` counts selections, ``layers["gate_mass"]`` sums gate weights where they are known. Tokens:
            ``X`` is 1 for a chosen expert, ``layers["weights"]`` its gate weight. Special tokens are left out of both.
        layer : int, optional
            One MoE layer; all of them side by side when left out.

        Returns
        -------
        anndata.AnnData
            ``X`` is a sparse float32 matrix. ``obs`` has the documents' labels (and, of tokens, ``document, position, token_id,
            token``), ``var`` the columns ``layer, expert``, ``uns["moe_probe"]`` where the numbers came from.

        Raises
        ------
        MoeProbeError
            Without the extra ``anndata``, without such a layer, or of tokens where only counts were kept.
        """
        if of not in ("documents", "tokens"):
            raise UsageError(f"unknown of='{of}'", "rows are documents or tokens", "of='documents'")
        indices = list(range(len(self.layers))) if layer is None else [self.layer_index(layer)]
        if of == "documents":
            return documents_anndata(self.manifest, self.usage(), indices)
        tokens = self.tokens(["document", "position", "token_id", "token", "special"])
        routing = self.iter_routing([self.layers[i].layer for i in indices])
        return tokens_anndata(self.manifest, self.documents, tokens, routing, indices)

    def _repr_html_(self) -> str:
        return card_html(f"Trace of {self.manifest.model.id}", facts_html(trace_facts(self.manifest, self.documents)))

    def __repr__(self) -> str:
        """Name the model and count what was recorded."""
        m = self.manifest
        experts = sorted({layer.num_experts for layer in m.layers})
        slots = sorted({layer.top_k for layer in m.layers})
        return one_line(
            f"Trace({m.model.id}: {m.n_documents:,} documents, {m.n_tokens:,} tokens, {len(m.layers)} MoE layers, "
            f"experts {experts}, top-k {slots}, kept {', '.join(m.kept)})"
        )
