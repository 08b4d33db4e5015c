"""Recordings that are a file each: counts of selections by layer and expert, and the labels that the user gives to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import dropped_id
from moe_probe.core.schema import MANIFEST
from moe_probe.core.textfiles import expand
from moe_probe.recording.importers.label_columns import LabelColumns
from moe_probe.recording.importers.labels import BESIDE, DocumentLabels, find_labels
from moe_probe.recording.importers.options import ImportOptions

#: Column of the table of labels that has the names of files.
FILE = "file"
#: Key of a file's labels with its number of tokens, where the table has it.
TOKENS = "tokens"
_COLUMNS = f"columns {FILE} and topic, and optionally subtopic, group and further labels"


@dataclass(frozen=True)
class Recording:
    """What one file has counted.

    Attributes
    ----------
    path : Path
    selections : mapping of int to ndarray of int64, shape (n_experts,)
        By layer, how often each expert was selected; layers without any selection are not in it.
    top_k : int, optional
        Experts per token, where the file says it.
    empty : tuple of int
        Layers that the file has and that nobody selected an expert of: dense ones.
    notes : tuple of str
        What the user should know of the file; each says it without its name.
    """

    path: Path
    selections: Mapping[int, np.ndarray]
    top_k: int | None = None
    empty: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def find_recordings(source: str | Path, endings: Sequence[str]) -> list[Path]:
    """Find the files that a path, a folder or a glob stands for, without the table of labels.

    Parameters
    ----------
    source : str or Path
    endings : sequence of str
        Endings of the files to take from a folder.

    Returns
    -------
    list of Path
        Sorted.

    Raises
    ------
    MoeProbeError
        When there is none.
    """
    root = Path(source)
    files = [file for file in expand(source, endings).files if file.name not in BESIDE and not _in_trace(file, root)]
    if not files:
        raise MoeProbeError(f"there is no recording at {source}", f"none ends in {', '.join(endings)}", "check the path")
    return files


def _in_trace(file: Path, root: Path) -> bool:
    """Whether a file lies in a trace below the folder that is searched: its tables and lists are no recordings."""
    return any((folder / MANIFEST).is_file() for folder in file.parents if folder != root and root in folder.parents)


def labels_of_files(
    files: Sequence[Path], documents: Any, topic: str | None, options: ImportOptions
) -> dict[Path, dict[str, str]]:
    """Read the labels of recordings: one topic for all, a table, or a table in the folder of each file.

    Parameters
    ----------
    files : sequence of Path
    documents : path, DataFrame, mapping of columns, or sequence of mappings, optional
        Labels, in any order: the column ``file`` has the names of the files. Without it, ``documents.csv`` or
        ``documents.parquet`` beside them.
    topic : str, optional
        Topic of every file, in place of labels.
    options : ImportOptions
        Its `columns` and `labels` name columns.

    Returns
    -------
    dict of Path to dict of str to str
        ``topic``, ``subtopic``, ``group``, ``split``, further labels and, where the table has it, ``tokens`` of each file.

    Raises
    ------
    MoeProbeError
        When there is neither a topic nor a table, or the table does not name a file, names it twice or lacks a column.
    UsageError
        When there are both a topic and a table.
    """
    if topic is not None:
        name = find_labels(None, documents, topic, options).topic.strip()
        return {file: {"topic": name} for file in files}
    columns = options.columns
    if columns.document == LabelColumns().document:
        options = replace(options, columns=replace(columns, document=FILE))
    out: dict[Path, dict[str, str]] = {}
    tables: dict[Path, dict[str, dict[str, str]]] = {}
    for file in files:
        if documents is None and not any((file.parent / name).is_file() for name in BESIDE):
            raise MoeProbeError(
                f"{file} has no topic",
                f"there is no {' or '.join(BESIDE)} beside it",
                f"--topic NAME, or a table with {_COLUMNS}",
            )
        place = file.parent if documents is None else Path()
        if place not in tables:
            tables[place] = _by_file(find_labels(file, documents, None, options))
        if file.name not in tables[place]:
            raise MoeProbeError(
                f"the labels do not name {file.name}",
                "every recording needs a topic",
                f"a row for it in the table: {_COLUMNS}",
            )
        out[file] = tables[place][file.name]
    return out


def _by_file(labels: DocumentLabels) -> dict[str, dict[str, str]]:
    out: dict[str, dict[str, str]] = {}
    for number, row in enumerate(labels.rows or []):
        name = row["document"].strip()
        if name in out:
            raise MoeProbeError(f"{labels.name} names {name} twice", "one row per file", "omit one of the rows")
        out[name] = {key: value for key, value in row.items() if key != "document"}
        if labels.tokens is not None:
            tokens = float(labels.tokens[number])
            if tokens < 0 or not tokens.is_integer():  # NaN and infinity are not
                raise MoeProbeError(f"{labels.name} has no number of tokens for {name}", f"it is {tokens}", "a whole number")
            out[name][TOKENS] = str(int(tokens))
    return out


def checked_counts(values: np.ndarray, where: str) -> np.ndarray:
    """Check that numbers are counts, and return them as int64.

    Parameters
    ----------
    values : ndarray of int or float, any shape
    where : str
        Names the entry, for messages.

    Returns
    -------
    ndarray of int64, same shape

    Raises
    ------
    MoeProbeError
        When one is negative, not finite, not whole, or too large to be added up.
    """
    if values.dtype.kind not in "iuf":
        raise MoeProbeError(f"{where} has values of type {values.dtype}", "counts are numbers", "a record of counts")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise MoeProbeError(f"{where} has a count that is not finite", "NaN or infinity", "make the record again")
    if values.size and values.min() < 0:
        raise MoeProbeError(f"{where} has a negative count", f"{values.min()}", "make the record again")
    if values.dtype.kind == "f" and (values != np.floor(values)).any():
        raise MoeProbeError(
            f"{where} has a count that is not whole", f"{values[values != np.floor(values)][0]}", "counts, not shares"
        )
    if values.size and float(values.sum(dtype=np.float64)) > 2.0**53:
        raise MoeProbeError(f"{where} has counts that are too large", f"up to {values.max():,}", "make the record again")
    return values.astype(np.int64)


def by_layer(counts: np.ndarray, path: Path) -> tuple[dict[int, np.ndarray], tuple[int, ...]]:
    """Split counts of all layers into those of MoE layers, and the numbers of layers without any selection.

    Parameters
    ----------
    counts : ndarray of int64, shape (n_layers, n_experts)
    path : Path
        For messages.

    Returns
    -------
    selections : dict of int to ndarray
    empty : tuple of int

    Raises
    ------
    MoeProbeError
        When no layer has a selection, or there are more experts than a trace stores.
    """
    check_n_experts(counts.shape[1], path)
    total = counts.sum(axis=1)
    selections = {int(layer): counts[layer] for layer in np.flatnonzero(total)}
    if not selections:
        raise MoeProbeError(f"{path} has no selection", "all counts are zero", "record while requests are answered")
    return selections, tuple(int(layer) for layer in np.flatnonzero(total == 0))


def check_n_experts(n: int, path: Path) -> None:
    """Refuse more experts in a layer than a trace stores.

    Parameters
    ----------
    n : int
    path : Path
        File that has them.

    Raises
    ------
    MoeProbeError
    """
    most = dropped_id("uint16")
    if not 1 <= n <= most:
        raise MoeProbeError(f"{path} has {n:,} experts in a layer", f"a trace stores 1 to {most:,}", "check the file")
