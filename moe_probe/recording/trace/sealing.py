"""Joining the shards of a trace: their tables one after the other, each checked in the very moment in which it is joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from moe_probe.core.errors import MoeProbeError
from moe_probe.recording.trace.part_files import DamageError, PartEntry, check_size, plain_file, read_table


def check_arrays(root: Path, shards: Sequence[PartEntry]) -> None:
    """Check that the arrays of all shards still lie where they were written.

    They are not read again: the sealed manifest has the checksums with which they were written or checked.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    shards : sequence of PartEntry

    Raises
    ------
    MoeProbeError
        Naming the shard.
    """
    for entry in shards:
        with _damage(root, entry):
            for file in entry.files:
                check_size(plain_file(root, file.path), file)


def join_tables(root: Path, shards: Sequence[PartEntry], name: str, path: Path) -> None:
    """Join a table of all shards, with one row group per shard; memory stays that of one shard.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    shards : sequence of PartEntry
    name : str
        Name of the table.
    path : Path
        File that is written.

    Raises
    ------
    MoeProbeError
        Naming the shard whose table is not as it was written.
    """
    writer: pq.ParquetWriter | None = None
    try:
        for entry in shards:
            with _damage(root, entry):
                file = next(file for file in entry.tables if file.path.endswith(f"/{name}"))
                table = read_table(root, file)
                if writer is None:
                    writer = pq.ParquetWriter(path, table.schema, compression="zstd")
                if table.schema != writer.schema:
                    raise DamageError(f"{file.path} has other columns than the shards before")
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _damage(root: Path, entry: PartEntry) -> Iterator[None]:
    """Say which shard was damaged since it was written or checked."""
    try:
        yield
    except DamageError as damage:
        raise MoeProbeError(
            f"shard {entry.index} of {root} was damaged",
            str(damage),
            "the same command with --resume, which records it again",
        ) from damage
