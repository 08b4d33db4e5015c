"""Reading a trace: opened at once, loaded only as far as it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import path_inside
from moe_probe.core.html import card_html, facts_html
from moe_probe.core.pieces import SPACE_MARKS, with_spaces
from moe_probe.core.routing import Usage, dropped_id
from moe_probe.core.schema import Manifest, MoeLayer, ShardEntry
from moe_probe.core.text import some_of
from moe_probe.recording.trace.annotated import documents_anndata, tokens_anndata
from moe_probe.recording.trace.chunks import RoutingChunk, TokenChunk
from moe_probe.recording.trace.facts import trace_facts
from moe_probe.recording.trace.files import DOCUMENTS, TOKENS, USAGE, file_entries, find_root, read_manifest
from moe_probe.recording.trace.sampled import with_trace_rows
from moe_probe.recording.trace.stored import readable

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse


class Trace:
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
        self.root, self.manifest = root, manifest
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

    @cached_property
    def documents(self) -> pd.DataFrame:
        """Documents with their labels and token counts, without text; one row per document."""
        names = [n for n in pq.read_schema(self.root / DOCUMENTS).names if n != "text"]
        return pq.read_table(self.root / DOCUMENTS, columns=names).to_pandas()

    def texts(self, rows: Sequence[int] | None = None) -> list[str]:
        """Return the texts of documents (all, or those of the rows given).

        Raises
        ------
        MoeProbeError
            When the trace was made with ``--no-text``.
        """
        if not self.manifest.has_text:
            raise MoeProbeError(
                f"the trace at {self.root} has no text", "it was made with --no-text", "collect again without --no-text"
            )
        texts = pq.read_table(self.root / DOCUMENTS, columns=["text"])["text"]
        # typed, because pyarrow takes an empty list for one of nulls, which it cannot index with
        chosen = texts if rows is None else texts.take(pa.array(rows, type=pa.int64()))
        return list(chosen.to_pylist())

    def tokens(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the token table, or some of its columns: ``document, position, token_id, token, special``.

        ``token`` is text as `core.pieces` writes it, whatever the trace stores: parts of characters are marked (``⟨b2⟩``).
        """
        self._need_routing()
        wanted = ["document", "position", "token_id", "token", "special"] if columns is None else list(columns)
        more = ["token_id"] if "token" in wanted and "token_id" not in wanted and self._texts_of_tokens else []
        table = pq.read_table(self.root / TOKENS, columns=wanted + more).to_pandas()
        if "token" in wanted and self._texts_of_tokens:
            table["token"] = self._as_text(table["token_id"].to_numpy(), table["token"].to_numpy(dtype=object))
        return table[wanted]

    @cached_property
    def _texts_of_tokens(self) -> dict[tuple[int, str], str]:
        """Text of the tokens that are stored otherwise; empty for traces that store text."""
        if "token_text" in self.manifest.settings:
            return {}
        names = ["document", "token_id", "token", "special"]
        return readable(
            pq.read_table(self.root / TOKENS, columns=names).to_pandas(),
            self.texts if self.manifest.has_text else None,
        )

    def _as_text(self, ids: np.ndarray, strings: np.ndarray) -> np.ndarray:
        known = self._texts_of_tokens
        return np.array([known.get(key, key[1]) for key in zip(ids.tolist(), strings, strict=True)], dtype=object)

    def spaced(self, tokens: np.ndarray) -> np.ndarray:
        """Return token strings with the spaces between words, where the trace's vocabulary leaves these out (WordPiece, words).

        Parameters
        ----------
        tokens : ndarray of str
            From the column ``token`` of `tokens`, all that are to be read together.
        """
        return tokens if self._carries_spaces else with_spaces(tokens)

    @cached_property
    def _carries_spaces(self) -> bool:
        known = self.manifest.settings.get("token_text")
        if known is not None:
            return known == "with spaces"
        return any(t.startswith(SPACE_MARKS) for t in self.token_strings().values())

    def usage(self) -> Usage:
        """Return selections and gate mass per document, layer and expert (special tokens left out).

        Computed once for a trace; the arrays are read-only, since everyone who asks gets the same ones.
        """
        return self._usage

    @cached_property
    def _usage(self) -> Usage:
        table = pq.read_table(self.root / USAGE)
        numbers = [layer.layer for layer in self.layers]
        shape = (len(self.documents), len(self.layers), max(layer.num_experts for layer in self.layers))
        index_of = np.full(max(numbers) + 1, -1)
        index_of[numbers] = np.arange(len(numbers))
        where = (table["document"].to_numpy(), index_of[table["layer"].to_numpy()], table["expert"].to_numpy())

        def dense(column: str, dtype: type) -> np.ndarray:
            array: np.ndarray = np.zeros(shape, dtype=dtype)
            array[where] = table[column].to_numpy()
            array.flags.writeable = False
            return array

        mass = dense("gate_mass", np.float64) if "gate_mass" in table.column_names else None
        return Usage(dense("selections", np.int64), mass, self.layers, self.documents)

    def iter_routing(self, layers: Sequence[int] | None = None) -> Iterator[RoutingChunk]:
        """Yield the routing shard by shard; of some layers only, when they are named.

        Raises
        ------
        MoeProbeError
            When only usage was kept, or a layer does not exist.
        """
        self._need_routing()
        indices = None if layers is None else [self.layer_index(layer) for layer in layers]
        tokens = pq.ParquetFile(self.root / TOKENS)
        names = ["document", "position", "token_id", "special"]
        for shard in self.manifest.shards:
            path = next(f.path for f in shard.files if f.path.startswith("routing/"))
            with safe_open(path_inside(self.root, path), framework="numpy") as arrays:
                experts = _read_layers(arrays, "experts", indices)
                weights = _read_layers(arrays, "weights", indices) if self.manifest.has_weights else None
            table = tokens.read_row_group(shard.index, columns=names)  # one row group per shard
            yield RoutingChunk(experts, weights, *(table[n].to_numpy() for n in names))

    def iter_tokens(self, columns: Sequence[str]) -> Iterator[tuple[ShardEntry, TokenChunk]]:
        """Yield every shard with columns of its part of the token table.

        Raises
        ------
        MoeProbeError
            When only usage was kept.
        """
        self._need_routing()
        file, first = pq.ParquetFile(self.root / TOKENS), 0
        not_text = "token" in columns and bool(self._texts_of_tokens)
        for shard in self.manifest.shards:
            wanted = dict.fromkeys([*columns, "token_id"] if not_text else columns)
            table = file.read_row_group(shard.index, columns=list(wanted))
            arrays = {name: table[name].to_numpy() for name in columns}
            if not_text:
                arrays["token"] = self._as_text(table["token_id"].to_numpy(), arrays["token"])
            yield shard, TokenChunk(first, arrays)
            first += shard.n_tokens

    def whereabouts(self, row: int) -> tuple[str, int]:
        """Return document name and position of a token, by its row in the trace."""
        for shard, chunk in self.iter_tokens(["document", "position"]):
            if row < chunk.first + shard.n_tokens:
                document = int(chunk.columns["document"][row - chunk.first])
                return str(self.documents["document"].iloc[document]), int(chunk.columns["position"][row - chunk.first])
        raise IndexError(f"the trace has {self.n_tokens} tokens, there is no row {row}")

    def layer(self, layer: int) -> sparse.csr_array:
        """Return the selections of one layer as a sparse 0/1 matrix, shape (n_tokens, num_experts)."""
        from scipy import sparse

        experts = np.concatenate([c.experts[:, 0] for c in self.iter_routing([layer])])
        filled = experts != dropped_id(experts.dtype)
        indptr = np.concatenate([[0], np.cumsum(filled.sum(1))])
        size = (len(experts), self.layers[self.layer_index(layer)].num_experts)
        ones = np.ones(indptr[-1], dtype=np.int32)
        return sparse.csr_array((ones, experts[filled].astype(np.int32), indptr), shape=size)

    def token_strings(self) -> dict[int, str]:
        """Return the text of every token id that occurs."""
        table = self.tokens(["token_id", "token"]).drop_duplicates("token_id")
        return dict(zip(table["token_id"].tolist(), table["token"].tolist(), strict=True))

    def iter_extras(self, folder: str) -> Iterator[dict[str, Any]]:
        """Yield the tensors of an optional part (``hidden/layer_07``, ``logits`` ...), shard by shard.

        ``rows``, beside vectors of sampled tokens, are rows of the trace.

        Raises
        ------
        MoeProbeError
            When the trace does not have that part.
        """
        from safetensors.torch import load_file

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
            yield with_trace_rows(load_file(path_inside(self.root, path)), row)

    def _need_routing(self) -> None:
        if "routing" not in self.manifest.kept:
            raise MoeProbeError(
                f"the trace at {self.root} has document counts only",
                "it was collected with --keep usage",
                "collect again with --keep routing",
            )

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
        return (
            f"Trace({m.model.id}: {m.n_documents:,} documents, {m.n_tokens:,} tokens, {len(m.layers)} MoE layers, "
            f"experts {experts}, top-k {slots}, kept {', '.join(m.kept)})"
        )


def _read_layers(arrays: Any, name: str, indices: Sequence[int] | None) -> np.ndarray:
    if indices is None:
        return np.asarray(arrays.get_tensor(name))
    part = arrays.get_slice(name)
    return np.concatenate([part[:, i : i + 1] for i in indices], axis=1)
