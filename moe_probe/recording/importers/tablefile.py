"""Files of the interchange table: which columns they have, and their rows in pieces."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import label_text, some_of
from moe_probe.core.textfiles import format_of, refuse_repeated
from moe_probe.recording.corpus.parquet import ParquetTable
from moe_probe.recording.importers.columns import column_of
from moe_probe.recording.importers.jsonrows import json_objects
from moe_probe.recording.importers.token_record import SourceRows
from moe_probe.recording.trace.checks import check_layers

_REQUIRED = ("document", "topic", "position", "token_id")
_FORMAT = "docs/formats.md describes the interchange table"
_ROWS = 16384
_JSON = (".jsonl", ".ndjson", ".json")
#: Endings of files that can be an interchange table.
TABLES = (".parquet", *_JSON)


@dataclass(frozen=True)
class TableFile:
    """A file of the interchange table.

    Attributes
    ----------
    path : Path
    columns : tuple of str
        All columns, of JSON those of any row.
    layers : mapping of int to str
        Layers and how the names of their columns end (``experts_07`` is layer 7).
    has_weights : bool
    num_experts : mapping of layer to int
        What the metadata of Parquet columns say.
    """

    path: Path
    columns: tuple[str, ...]
    layers: Mapping[int, str]
    has_weights: bool
    num_experts: Mapping[int, int]

    @property
    def unit(self) -> str:
        """What a row is called: JSON has lines."""
        return "row" if format_of(self.path) == ".parquet" else "line"

    @classmethod
    def open(cls, path: Path, labels: Sequence[str]) -> TableFile:
        """Read the names of the columns.

        Parameters
        ----------
        path : Path
        labels : sequence of str
            Label columns that have to be there.

        Returns
        -------
        TableFile

        Raises
        ------
        MoeProbeError
            When a needed column is missing, a column or a layer comes twice, or the file cannot be read.
        """
        fields: Mapping[str, pa.Field] = {}
        if format_of(path) == ".parquet":
            schema = ParquetTable(path).schema
            names, fields = schema.names, {field.name: field for field in schema}
        elif format_of(path) in _JSON:
            names = list(dict.fromkeys(name for _, row in json_objects(path, "token") for name in row))
            if not names:
                raise MoeProbeError(f"{path} is empty", "", "an interchange table")
        else:
            raise MoeProbeError(
                f"unknown format of {path}",
                f"its name ends in '{path.suffix}'",
                "an interchange table ending in .parquet or .jsonl",
            )
        refuse_repeated(path, names)
        for name in (*_REQUIRED, *labels):
            if name not in names:
                raise MoeProbeError(f"{path} has no column '{name}'", f"its columns are {some_of(names, 12)}", _FORMAT)
        endings = [name.removeprefix("experts_") for name in names if re.fullmatch(r"experts_[0-9]{1,6}", name)]
        if not endings:
            raise MoeProbeError(f"{path} has no routing", "no column is called experts_0, experts_1 ...", _FORMAT)
        check_layers([int(ending) for ending in endings])
        missing = [f"weights_{ending}" for ending in endings if f"weights_{ending}" not in names]
        if missing and len(missing) < len(endings):
            raise MoeProbeError(
                f"{path} has weights for some layers only", f"{missing[0]} is missing", "weights for every layer or for none"
            )
        declared = {int(e): _declared(fields[f"experts_{e}"], path) for e in endings if f"experts_{e}" in fields}
        return cls(
            path,
            tuple(names),
            {int(e): e for e in endings},
            not missing,
            {layer: n for layer, n in declared.items() if n is not None},
        )

    def pieces(self, labels: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Yield pieces of the table with the numbers of their rows (of JSON: lines), counted from 1.

        Parameters
        ----------
        labels : sequence of str
            Columns to read beside the needed ones, where they are there.

        Raises
        ------
        MoeProbeError
            When the file is damaged, or a column mixes types.
        """
        routing = {f"{kind}_{ending}" for ending in self.layers.values() for kind in ("experts", "weights", "num_experts")}
        names = [name for name in self.columns if name in {*_REQUIRED, "token", *labels, *routing}]
        if format_of(self.path) == ".parquet":
            row = 1
            for batch in ParquetTable(self.path).batches(_ROWS, names):
                if batch.num_rows:
                    yield np.arange(row, row + batch.num_rows), pa.Table.from_batches([batch])
                row += batch.num_rows
            return
        objects = json_objects(self.path, "token")
        while piece := list(itertools.islice(objects, _ROWS)):
            lines = np.array([line for line, _ in piece])
            yield lines, self._as_table([row for _, row in piece], names, lines)

    def _as_table(self, rows: list[dict[str, Any]], names: Sequence[str], lines: np.ndarray) -> pa.Table:
        source = SourceRows(self.path, self.unit, lines)
        return pa.table({name: column_of([_plain(name, row.get(name)) for row in rows], name, source) for name in names})


def _plain(name: str, value: Any) -> Any:
    """Labels as strings, whatever JSON wrote them as; lists and objects stay, to be refused."""
    numeric = name in ("position", "token_id") or name.startswith(("experts_", "weights_", "num_experts_"))
    return value if numeric or value is None or isinstance(value, list | dict) else label_text(value)


def _declared(field: pa.Field, path: Path) -> int | None:
    text = (field.metadata or {}).get(b"num_experts")
    if text is None:
        return None
    if not text.isdigit() or not int(text):
        raise MoeProbeError(
            f"column '{field.name}' of {path} declares {text.decode(errors='replace')} experts",
            "its metadata num_experts is a whole number, 1 or more",
            "--num-experts",
        )
    return int(text)
