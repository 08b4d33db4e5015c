"""Whether the counts of a sealed trace agree: those of its manifest with those of its tables and arrays, shard by shard.

Checksums say that files are as they were written. They do not say that what was written belongs together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import path_inside
from moe_probe.core.schema import Manifest, ShardEntry
from moe_probe.core.untrusted import file_size, open_tensors
from moe_probe.recording.trace.files import DOCUMENTS, TOKENS, USAGE
from moe_probe.recording.trace.parts import fits_tokens
from moe_probe.recording.trace.tables import open_table


def count_problems(root: Path, manifest: Manifest) -> list[str]:
    """Compare the counts of a sealed trace's manifest with its tables and arrays.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest

    Returns
    -------
    list of str
        One sentence for each disagreement, naming the file.
    """
    n_documents, n_tokens = (sum(getattr(shard, name) for shard in manifest.shards) for name in ("n_documents", "n_tokens"))
    problems = []
    if (n_documents, n_tokens) != (manifest.n_documents, manifest.n_tokens):
        problems.append(
            f"the shards have {n_documents:,} documents and {n_tokens:,} tokens, "
            f"the trace {manifest.n_documents:,} and {manifest.n_tokens:,}"
        )
    try:
        lengths = _lengths(root, n_documents)
        if isinstance(lengths, str):
            return [*problems, lengths]
        problems += _usage_problems(root, manifest, lengths)
        if "routing" not in manifest.kept:
            if not fits_tokens(int(lengths.sum()), n_tokens, manifest):
                problems.append(f"{DOCUMENTS} has {lengths.sum():,} tokens, the shards {n_tokens:,}")
            return problems
        problems += _token_problems(root, manifest, lengths)
        for shard in manifest.shards:
            problems += _array_problems(root, manifest, shard)
    except MoeProbeError as error:
        problems.append(str(error))
    return problems


def _lengths(root: Path, n_documents: int) -> np.ndarray | str:
    """Read the number of tokens of every document, or say why it is not that of the shards' documents."""
    table = open_table(root, DOCUMENTS)
    if table.n_rows != n_documents:
        return f"{DOCUMENTS} has {table.n_rows:,} documents, the shards {n_documents:,}"
    lengths = table.whole(["n_tokens"])["n_tokens"].to_numpy()
    if len(lengths) and (lengths.min() < 0 or lengths.max() > 2**31 - 1):
        return f"{DOCUMENTS} has a document whose number of tokens is out of range"
    return np.asarray(lengths, dtype=np.int64)


def _usage_problems(root: Path, manifest: Manifest, lengths: np.ndarray) -> Iterator[str]:
    """Compare selections of documents with their tokens: none has more than its tokens allow."""
    file, numbers = open_table(root, USAGE), [layer.layer for layer in manifest.layers]
    for group in range(len(file.group_rows)):
        table = file.group(group, ["document", "layer"])
        document = table["document"].to_numpy()
        if not len(document):
            continue
        if document.min() < 0 or document.max() >= len(lengths):
            yield f"{USAGE} has document {document.max() if document.min() >= 0 else document.min()} of {len(lengths):,}"
            return
        if not lengths[np.unique(document)].all():
            yield f"{USAGE} has selections of a document that has no tokens in {DOCUMENTS}"
            return
        if not np.isin(table["layer"].to_numpy(), numbers).all():
            yield f"{USAGE} has a layer that the trace does not have"
            return


def _token_problems(root: Path, manifest: Manifest, lengths: np.ndarray) -> Iterator[str]:
    """Compare each shard's row group of tokens with its counts, and the tokens of every document with its length."""
    file, first = open_table(root, TOKENS), 0
    if len(file.group_rows) != len(manifest.shards):
        yield f"{TOKENS} has {len(file.group_rows)} row groups for {len(manifest.shards)} shards"
        return
    for index, shard in enumerate(manifest.shards):
        if shard.index != index:
            yield f"shard {index} of the manifest has the number {shard.index}"
            return
        if file.group_rows[index] != shard.n_tokens:
            yield f"{TOKENS} has {file.group_rows[index]:,} tokens in shard {index}, {shard.n_tokens:,} by the manifest"
            return
        named = next((entry.path for entry in shard.files if entry.path.startswith("routing/")), None)
        if named is not None and file_size(path_inside(root, named)) < shard.n_tokens:
            yield f"{TOKENS} has more tokens in shard {index} than its file of routing has bytes"
            return
        table = file.group(index, ["document", "special"])
        document, special = table["document"].to_numpy(), table["special"].to_numpy()
        last = first + shard.n_documents
        if len(document) and (document.min() < first or document.max() >= last):
            yield (
                f"{TOKENS} has documents {document.min():,} to {document.max():,} in shard {shard.index}, "
                f"{first:,} to {last - 1:,} by the manifest"
            )
            return
        if (
            np.bincount(document[~special].astype(np.int64) - first, minlength=shard.n_documents) != lengths[first:last]
        ).any():
            yield f"{TOKENS} has other tokens in the documents of shard {shard.index} than {DOCUMENTS} says"
            return
        first = last


def _array_problems(root: Path, manifest: Manifest, shard: ShardEntry) -> Iterator[str]:
    """Compare the shapes of a shard's routing with its counts."""
    paths = [file.path for file in shard.files if file.path.startswith("routing/")]
    if len(paths) != 1:
        yield f"shard {shard.index} has {len(paths)} files of routing instead of one"
    for path in paths:
        with open_tensors(path_inside(root, path)) as arrays:
            names = {"experts", "weights"} if manifest.has_weights else {"experts"}
            shapes = {name: list(arrays.shape(name)) for name in sorted(arrays.names)}
        if set(shapes) != names or any(s[:2] != [shard.n_tokens, len(manifest.layers)] for s in shapes.values()):
            yield f"{path} has arrays of shape {shapes} for {shard.n_tokens:,} tokens and {len(manifest.layers)} layers"
