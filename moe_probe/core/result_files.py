"""The two files of a result, read and checked: they come from other people as well."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.files import sha256_bytes
from moe_probe.core.publication import Published, read_object, read_plain

if TYPE_CHECKING:
    import pandas as pd

#: Readings of a pair of files before a mismatch counts as damage: a writer may publish between the two.
_ATTEMPTS = 4
#: Bytes that a table may take in memory whatever the size of its file, and over each byte of a larger file.
_MEMORY, _PER_BYTE = 1_000_000_000, 200
#: What the JSON has to hold, and of which type.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "params": dict,
    "seed": (int, type(None)),
    "caption": str,
    "warnings": list,
    "citations": list,
}


@dataclass(frozen=True)
class Generation:
    """With which other results a result was published.

    Attributes
    ----------
    command : str
        Command that makes these results, such as ``analyze`` or ``sae eval``.
    key : str
        SHA-256 of the command and `settings`.
    id : str
        SHA-256 of the key and of every result that the command published: equal results, equal ids.
    settings : dict
        Settings of the command (JSON values).
    """

    command: str
    key: str
    id: str
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return what is written into the JSON of each result."""
        return {"command": self.command, "key": self.key, "id": self.id, "settings": self.settings}

    @classmethod
    def from_json(cls, value: object) -> Generation | None:
        """Read it again; None where a result has none, as those written before there were any, and those that were saved alone.

        Raises
        ------
        ValueError
            When it has another shape.
        """
        if value is None:
            return None
        if (
            not isinstance(value, dict)
            or not all(isinstance(value.get(name), str) for name in ("command", "key", "id"))
            or not isinstance(value.get("settings"), dict)
        ):
            raise ValueError("its generation is invalid")
        return cls(value["command"], value["key"], value["id"], value["settings"])


@dataclass(frozen=True)
class ResultFiles:
    """Table and JSON of a result.

    Attributes
    ----------
    directory : Path
    name : str
    """

    directory: Path
    name: str

    def read(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """Read both files, checked against each other.

        Returns
        -------
        meta : dict
        table : pandas.DataFrame

        Raises
        ------
        ValueError
            When one of them is damaged, or they do not belong together.
        OSError
            When one cannot be read; FileNotFoundError names a missing one.
        MoeProbeError
            When the folder has a journal that cannot be read.
        """
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            published = Published.of(self.directory)
            try:
                meta = checked_meta(read_object(published.path(f"{self.name}.json")), self.name)
                data = read_plain(published.path(f"{self.name}.parquet"))
            except FileNotFoundError as error:
                if last or not published.exists(f"{self.name}.parquet"):
                    raise FileNotFoundError(
                        error.errno, error.strerror, str(self.directory / Path(str(error.filename)).name)
                    ) from error
            else:
                if meta.get("table_sha256", digest := sha256_bytes(data)) == digest:
                    return meta, checked_table(data, meta)
                if last:
                    raise ValueError(f"{self.name}.parquet is not the table that {self.name}.json was written with")
            time.sleep(0.01 * (attempt + 1))
        raise AssertionError("the last attempt returns or raises")


def checked_meta(meta: dict[str, Any], name: str) -> dict[str, Any]:
    """Check the shape of a result's JSON.

    Parameters
    ----------
    meta : dict
    name : str
        Name of the result.

    Returns
    -------
    dict
        The same.

    Raises
    ------
    ValueError
        With what is wrong.
    """
    for key, kind in _FIELDS.items():
        if key not in meta:
            raise ValueError(f"its JSON has no '{key}'")
        if not isinstance(meta[key], kind) or isinstance(meta[key], bool):
            raise ValueError(f"'{key}' in its JSON is invalid")
    if not all(isinstance(text, str) for text in (*meta["warnings"], *meta["citations"])):
        raise ValueError("a warning or a citation in its JSON is no text")
    if meta["name"] != name:
        raise ValueError(f"its JSON is of the result {meta['name'][:80]!r}")
    Generation.from_json(meta.get("generation"))
    return meta


def checked_table(data: bytes, meta: dict[str, Any]) -> pd.DataFrame:
    """Read a table from the bytes of a Parquet file, if its JSON describes it.

    Parameters
    ----------
    data : bytes
    meta : dict
        From `checked_meta`.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    ValueError
        When it is no Parquet, would take far more memory than its file, or has other rows or columns than its JSON says.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    try:
        size = pq.read_metadata(io.BytesIO(data))
        # a column takes eight bytes a row at least, whatever its pages were compressed to
        declared = max(8 * size.num_rows * size.num_columns, _uncompressed(size))
        if declared > _MEMORY + _PER_BYTE * len(data):
            raise ValueError(f"it declares {declared / 1e9:,.2f} GB in a file of {len(data) / 1e6:,.3f} MB")
        table = pd.read_parquet(io.BytesIO(data))
    except Exception as error:
        # the reader of Parquet raises errors of many kinds for damaged bytes
        raise ValueError(" ".join(str(error).split())[:300] or type(error).__name__) from error
    if [str(column) for column in table.columns] != meta.get("columns", [str(column) for column in table.columns]):
        raise ValueError("its table has other columns than its JSON says")
    if len(table) != meta.get("rows", len(table)):
        raise ValueError(f"its table has {len(table):,} rows, its JSON says otherwise")
    return table


def _uncompressed(size: Any) -> int:
    return sum(size.row_group(i).total_byte_size for i in range(size.num_row_groups))
