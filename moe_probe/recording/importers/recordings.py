"""Recordings that are a file each: counts of selections by layer and expert, and the labels that the user gives to files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.routing import dropped_id
from moe_probe.core.textfiles import expand, read_csv

#: Table beside recordings that names the labels of each: columns ``file, topic`` and optionally more.
LABELS_FILE = "documents.csv"
_WHOLE = re.compile(r"\d{1,15}", re.ASCII)
#: Column of it with the tokens of each file, for records whose layers have different numbers of selections.
TOKENS = "tokens"
_COLUMNS = "columns file and topic, and optionally subtopic, group and further labels"


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
        What the user should know.
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
    files = [file for file in expand(source, endings).files if file.name != LABELS_FILE]
    if not files:
        raise MoeProbeError(f"there is no recording at {source}", f"none ends in {', '.join(endings)}", "check the path")
    return files


def labels_of_files(files: Sequence[Path], topic: str | None, further: Sequence[str] = ()) -> dict[Path, dict[str, str]]:
    """Read the labels of recordings: one topic for all, or ``documents.csv`` in the folder of each file.

    Parameters
    ----------
    files : sequence of Path
    topic : str, optional
        Topic of every file; without it the table is needed.
    further : sequence of str
        Further columns of the table that are kept.

    Returns
    -------
    dict of Path to dict of str to str
        ``topic``, ``subtopic``, ``group``, ``split``, ``tokens`` and the further columns of each file, as far as there are.

    Raises
    ------
    MoeProbeError
        When there is neither a topic nor a table, or the table does not name a file, names it twice or lacks a column.
    UsageError
        When there are both, or further labels without a table.
    """
    tables = {folder: folder / LABELS_FILE for folder in dict.fromkeys(file.parent for file in files)}
    if topic is not None:
        if not topic.strip():
            raise UsageError("--topic is empty", "", "--topic chemistry")
        if further:
            raise UsageError(
                f"--label {further[0]} cannot be used with --topic",
                "a recording has no labels of its own",
                f"{LABELS_FILE} beside the files, with {_COLUMNS}",
            )
        return {file: {"topic": topic.strip()} for file in files}
    out: dict[Path, dict[str, str]] = {}
    for folder, table in tables.items():
        rows = _rows(table, further)
        for file in files:
            if file.parent == folder:
                if file.name not in rows:
                    raise MoeProbeError(
                        f"{table} does not name {file.name}", "every recording needs a topic", "add a row, or move the file"
                    )
                out[file] = rows[file.name]
    return {file: out[file] for file in files}


def _rows(table: Path, further: Sequence[str]) -> dict[str, dict[str, str]]:
    if not table.is_file():
        raise MoeProbeError(
            f"recordings in {table.parent} have no topic",
            f"there is no {LABELS_FILE} beside them",
            f"--topic NAME, or {LABELS_FILE} with {_COLUMNS}",
        )
    names, rows = read_csv(table)
    if missing := [name for name in ("file", "topic", *further) if name not in names]:
        raise MoeProbeError(f"{table} has no column '{missing[0]}'", f"it has {', '.join(names) or 'none'}", _COLUMNS)
    out: dict[str, dict[str, str]] = {}
    keep = [name for name in ("topic", "subtopic", "group", "split", TOKENS, *further) if name in names]
    for row in rows:
        name = row["file"].strip()
        if name in out:
            raise MoeProbeError(f"{table} names {name} twice", "one row per file", "omit one of the rows")
        if not row["topic"].strip():
            raise MoeProbeError(f"{table} has no topic for {name}", "its field is empty", "a topic for every file")
        out[name] = {column: row[column].strip() for column in keep}
        if TOKENS in names and not _WHOLE.fullmatch(out[name][TOKENS]):
            raise MoeProbeError(f"{table} has no number of tokens for {name}", f"it is '{row[TOKENS]}'", "a whole number")
    return out


def whole_counts(values: np.ndarray, where: str) -> np.ndarray:
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
    """Refuse more experts in a layer than a trace stores."""
    most = dropped_id("uint16")
    if not 1 <= n <= most:
        raise MoeProbeError(f"{path} has {n:,} experts in a layer", f"a trace stores 1 to {most:,}", "check the file")
