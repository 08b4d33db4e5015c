"""The files of a shard of an unfinished trace: what they are called, what is recorded of them, and how they are read."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_json
from moe_probe.core.schema import FileEntry, Manifest, ShardEntry
from moe_probe.recording.trace.files import DOCUMENTS, PARTS, TOKENS, USAGE
from moe_probe.recording.trace.tables import open_table


class PartEntry(ShardEntry):
    """A shard while its trace is being written: with its tables, which sealing joins."""

    #: The files of ``parts/NNNNN/``; none in what earlier versions wrote.
    tables: tuple[FileEntry, ...] = ()
    #: SHA-256 of the other fields: not every count follows from the tables.
    digest: str = ""

    def signed(self) -> PartEntry:
        """Return the entry with its digest."""
        return self.model_copy(update={"digest": sha256_json(self.model_dump(exclude={"digest"}))})

    def sealed(self) -> ShardEntry:
        """Return what a sealed trace's manifest has of the shard."""
        return ShardEntry(index=self.index, n_documents=self.n_documents, n_tokens=self.n_tokens, files=self.files)


class DamageError(Exception):
    """Why a shard does not count: the end of a sentence."""


def table_names(manifest: Manifest) -> tuple[str, ...]:
    """Name the tables of a trace, in the order in which they are written.

    Parameters
    ----------
    manifest : Manifest

    Returns
    -------
    tuple of str
    """
    return (DOCUMENTS, USAGE) + ((TOKENS,) if "routing" in manifest.kept else ())


def part_name(index: int) -> str:
    """Name the file that says what a shard of an unfinished trace has: once it is there, the shard counts.

    Parameters
    ----------
    index : int
        Number of the shard.

    Returns
    -------
    str
    """
    return f"{PARTS}/{index:05d}.json"


def plain_file(root: Path, relative: str) -> Path:
    """Path of a file of the trace, which has to be a file and to lie in the folder itself.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    relative : str
        Name of the file, with forward slashes.

    Returns
    -------
    Path

    Raises
    ------
    DamageError
        When it is missing, a link leads to it, or something else has its name.
    """
    parts, path = PurePosixPath(relative).parts, root
    for number, part in enumerate(parts, start=1):
        path = path / part
        try:
            mode = path.lstat().st_mode
        except PermissionError as error:
            raise MoeProbeError(f"{path} cannot be read", str(error.strerror), "change its permissions") from error
        except (OSError, ValueError) as error:  # ValueError: a name with NUL
            raise DamageError(f"{relative} is missing") from error
        if stat.S_ISLNK(mode):
            raise DamageError(f"{'/'.join(parts[:number])} is a link")
        if not (stat.S_ISREG if number == len(parts) else stat.S_ISDIR)(mode):
            raise DamageError(f"{'/'.join(parts[:number])} is no {'file' if number == len(parts) else 'folder'}")
    return path


def read_whole(root: Path, entry: FileEntry) -> bytes:
    """Read a table of a shard, and check the very bytes that are returned.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    entry : FileEntry

    Returns
    -------
    bytes

    Raises
    ------
    DamageError
        When they are not those that were written.
    """
    path = plain_file(root, entry.path)
    check_size(path, entry)
    data = read_errors(path, path.read_bytes)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DamageError(f"the checksum of {entry.path} differs")
    return bytes(data)


def read_table(root: Path, entry: FileEntry) -> pa.Table:
    """Read a table of a shard as it was written; what it declares is compared with its size before memory is taken.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    entry : FileEntry

    Returns
    -------
    pyarrow.Table
        Without missing values.

    Raises
    ------
    DamageError
        When its bytes are others than were written, or it is no such table.
    """
    data = read_whole(root, entry)
    try:
        table = open_table(root, entry.path, data=data)
        return table.whole(table.names).cast(table.schema)
    except MoeProbeError as error:
        raise DamageError(f"{entry.path} cannot be read ({error.why})") from error


def check_size(path: Path, entry: FileEntry) -> None:
    """Refuse a file of another size than it was written with.

    Parameters
    ----------
    path : Path
    entry : FileEntry
        What was written.

    Raises
    ------
    DamageError
    """
    size = path.stat().st_size
    if size != entry.size:
        raise DamageError(f"{entry.path} has {size:,} bytes instead of {entry.size:,}")


def read_errors(path: Path, read: Callable[..., Any], *given: Any) -> Any:
    """Read a file; one that must not be read may be whole, one that the disk cannot give any more is not.

    Parameters
    ----------
    path : Path
        For messages.
    read : callable
    *given
        What it is called with.

    Returns
    -------
    object
        What `read` returns.

    Raises
    ------
    MoeProbeError
        For want of permission.
    DamageError
        When the disk refuses for another reason.
    """
    try:
        return read(*given)
    except PermissionError as error:
        raise MoeProbeError(f"{path} cannot be read", str(error.strerror), "change its permissions") from error
    except OSError as error:
        raise DamageError(f"{path.name} cannot be read ({error.strerror or error})") from error
