"""The files of a trace, opened: columns, types, shapes and values agree with the manifest, or one sentence says what does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import path_inside
from moe_probe.core.routing import dropped_id, past_highest
from moe_probe.core.schema import MANIFEST, Manifest, ShardEntry
from moe_probe.core.untrusted import TensorFile, file_size, open_tensors
from moe_probe.core.untrusted_tables import StrangeTable
from moe_probe.recording.trace.files import DOCUMENTS, TOKENS, USAGE
from moe_probe.recording.trace.tables import DOCUMENT_KINDS, TOKEN_KINDS, hint_of, open_table

#: Experts of all layers together, and of one layer: arrays of counts have a column for each.
_MOST_EXPERTS, _MOST_OF_LAYER = 1_000_000, 65_535
_TYPES = {"uint8": "U8", "uint16": "U16"}


def check_manifest(root: Path, manifest: Manifest) -> None:
    """Refuse a sealed manifest that contradicts itself, or whose arrays no memory could hold.

    Parameters
    ----------
    root : Path
        Folder of the trace, for messages.
    manifest : Manifest

    Raises
    ------
    MoeProbeError
        Naming what does not fit.
    """
    numbers = [layer.layer for layer in manifest.layers]
    experts = [layer.num_experts for layer in manifest.layers]
    shards = manifest.shards
    needed = {DOCUMENTS, USAGE, *([TOKENS] if "routing" in manifest.kept else [])}
    problems = (
        (not numbers, "it has no layers"),
        (len(set(numbers)) < len(numbers), "it has a layer twice"),
        (min(numbers, default=0) < 0 or max(numbers, default=0) > 2**31 - 1, "the number of a layer is out of range"),
        (
            max(experts, default=0) > _MOST_OF_LAYER or sum(experts) > _MOST_EXPERTS,
            "it names more experts than any model has",
        ),
        (any(shard.index != i for i, shard in enumerate(shards)), "its shards are not numbered from 0 on"),
        (sum(shard.n_documents for shard in shards) != manifest.n_documents, "its shards have another number of documents"),
        (sum(shard.n_tokens for shard in shards) != manifest.n_tokens, "its shards have another number of tokens"),
        (
            manifest.n_tokens > 2**62 or manifest.n_documents > 2**31 - 1,
            "it names more documents or tokens than can be read",
        ),
        (needed - {entry.path for entry in manifest.files}, "it does not list all tables"),
        (
            "routing" in manifest.kept and any(_routing_path(shard) is None for shard in shards),
            "a shard has no file of routing",
        ),
    )
    for wrong, why in problems:
        if wrong:
            raise MoeProbeError(f"{root / MANIFEST} contradicts itself", why, hint_of(root))


def open_documents(root: Path, manifest: Manifest) -> StrangeTable:
    """Open the table of documents.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest

    Returns
    -------
    StrangeTable

    Raises
    ------
    MoeProbeError
        When it is damaged, lacks a column, or has another number of rows than the manifest says.
    """
    kinds = DOCUMENT_KINDS | ({"text": "text"} if manifest.has_text else {})
    table = StrangeTable(root / DOCUMENTS, kinds, others="text", hint=hint_of(root))
    if table.n_rows != manifest.n_documents:
        raise table.damaged(f"it has {table.n_rows:,} rows, the manifest {manifest.n_documents:,} documents")
    return table


def documents_of(root: Path, manifest: Manifest) -> pa.Table:
    """Read the table of documents without text; see `open_documents`. Counts of tokens are checked.

    Parameters
    ----------
    root : Path
    manifest : Manifest

    Returns
    -------
    pyarrow.Table
    """
    table = open_documents(root, manifest)
    read = table.whole([name for name in table.names if name != "text"])
    n_tokens = read["n_tokens"].to_numpy()
    if len(n_tokens) and (int(n_tokens.min()) < 0 or int(n_tokens.max()) > 2**31 - 1):
        raise table.damaged("its column 'n_tokens' has a value out of range")
    return read.set_column(read.column_names.index("n_tokens"), "n_tokens", pa.array(n_tokens, pa.int32()))


class TokenTable:
    """The table of tokens, opened: a row group for each shard, with as many rows as the shard has tokens.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest

    Raises
    ------
    MoeProbeError
        When it is damaged, lacks a column, or its row groups are not the shards.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self._root, self._manifest = root, manifest
        self._table = StrangeTable(root / TOKENS, TOKEN_KINDS, hint=hint_of(root))
        if self._table.group_rows != [shard.n_tokens for shard in manifest.shards]:
            raise self._table.damaged("its row groups are not the shards of the manifest")
        self._first = np.cumsum([0, *(shard.n_documents for shard in manifest.shards)])

    def shard(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Read columns of a shard; documents are rows of the shard's own documents.

        Parameters
        ----------
        index : int
        columns : sequence of str

        Returns
        -------
        pyarrow.Table

        Raises
        ------
        MoeProbeError
            When it is damaged, a number is out of range, or it has more tokens than its file of routing has bytes.
        """
        shard = self._manifest.shards[index]
        named = _routing_path(shard)
        if named is not None and file_size(path_inside(self._root, named), hint=hint_of(self._root)) < shard.n_tokens:
            raise self._table.damaged(f"shard {index} has more tokens than its file of routing has bytes")
        unknown = [name for name in columns if name not in TOKEN_KINDS]
        if unknown:
            raise self._table.damaged(f"it has no column '{unknown[0]}'")
        read = self._table.group(index, columns)
        limits = {
            "document": (int(self._first[index]), int(self._first[index + 1]) - 1),
            "position": (0, 2**31 - 1),
            "token_id": (-1, 2**31 - 1),
        }
        for name, (low, high) in limits.items():
            if name in columns:
                values = read[name].to_numpy()
                if len(values) and (int(values.min()) < low or int(values.max()) > high):
                    raise self._table.damaged(f"the column '{name}' of shard {index} has a value out of range")
                at = read.column_names.index(name)
                read = read.set_column(at, name, pa.array(values, pa.int32()))
        if "document" in columns and len(read) and (np.diff(read["document"].to_numpy()) < 0).any():
            raise self._table.damaged(f"the documents of shard {index} are out of order")
        return read


def open_usage(root: Path) -> StrangeTable:
    """Open the table of counts.

    Parameters
    ----------
    root : Path
        Folder of the trace.

    Returns
    -------
    StrangeTable

    Raises
    ------
    MoeProbeError
        When it is damaged or lacks a column.
    """
    return open_table(root, USAGE)


@contextlib.contextmanager
def open_routing(root: Path, manifest: Manifest, shard: ShardEntry) -> Iterator[Routing]:
    """Open the routing of a shard: ids and weights have a row per token and a column per layer.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest
    shard : ShardEntry

    Yields
    ------
    Routing

    Raises
    ------
    MoeProbeError
        When the file is damaged, or its arrays have other types or shapes.
    """
    named = _routing_path(shard)
    if named is None:
        raise MoeProbeError(f"{root / MANIFEST} contradicts itself", "a shard has no file of routing", hint_of(root))
    with open_tensors(path_inside(root, named), hint=hint_of(root)) as file:
        shape = file.check("experts", [_TYPES[manifest.expert_dtype]], (shard.n_tokens, len(manifest.layers), None))
        if manifest.has_weights:
            file.check("weights", ["F16"], shape)
        yield Routing(file, manifest, hint_of(root))


class Routing:
    """Ids and gate weights of a shard; `open_routing` makes it."""

    def __init__(self, file: TensorFile, manifest: Manifest, hint: str) -> None:
        self._file, self._hint = file, hint
        self._num_experts = np.array([layer.num_experts for layer in manifest.layers])
        self._empty = dropped_id(manifest.expert_dtype)

    def experts(self, layers: Sequence[int] | slice | None = None, rows: slice = slice(None)) -> np.ndarray:
        """Read expert ids.

        Parameters
        ----------
        layers : sequence of int or slice, optional
            Positions on the layer axis; all by default.
        rows : slice
            Tokens of the shard.

        Returns
        -------
        ndarray of uint8 or uint16, shape (n_tokens, n_layers, n_slots)

        Raises
        ------
        MoeProbeError
            When an id is past the experts of its layer.
        """
        ids = self._read("experts", layers, rows)
        bound = self._num_experts if layers is None else self._num_experts[layers]
        highest = past_highest(ids)
        if (highest > bound).any():
            past = int(np.argmax(highest > bound))
            raise MoeProbeError(
                f"{self._file.path} is damaged",
                f"it names expert {int(highest[past]) - 1} of {int(bound[past])}",
                self._hint,
            )
        return ids

    def weights(self, layers: Sequence[int] | slice | None = None, rows: slice = slice(None)) -> np.ndarray:
        """Read gate weights.

        Parameters
        ----------
        layers, rows
            As `experts`.

        Returns
        -------
        ndarray of float16, shape (n_rows, n_layers, n_slots)
        """
        return self._read("weights", layers, rows)

    def _read(self, name: str, layers: Sequence[int] | slice | None, rows: slice) -> np.ndarray:
        every = layers is None or (not isinstance(layers, slice) and list(layers) == list(range(len(self._num_experts))))
        if every and rows == slice(None):
            return np.asarray(self._file.tensor(name))
        if every or isinstance(layers, slice):
            chosen = layers if isinstance(layers, slice) else slice(None)
            return np.asarray(self._file.part(name, (rows, chosen)))
        assert layers is not None
        return np.concatenate([self._file.part(name, (rows, slice(i, i + 1))) for i in layers], axis=1)


def open_vectors(root: Path, path: str) -> contextlib.AbstractContextManager[TensorFile]:
    """Open a file of vectors for torch.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    path : str
        The file, as the manifest names it.

    Returns
    -------
    context manager of TensorFile
        See `open_tensors`.
    """
    return open_tensors(path_inside(root, path), framework="pt", hint=hint_of(root))


def vectors_of(root: Path, path: str) -> dict[str, Any]:
    """Read the tensors of an optional part of a shard.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    path : str
        The file, as the manifest names it.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    MoeProbeError
        When the file is damaged.
    """
    with open_vectors(root, path) as file:
        return {name: file.tensor(name) for name in sorted(file.names)}


def _routing_path(shard: ShardEntry) -> str | None:
    return next((entry.path for entry in shard.files if entry.path.startswith("routing/")), None)
