"""What a shard of an unfinished trace is made of, and whether all of it is there: nothing that ``parts/`` says is believed.

Files are checked by size and checksum, then the counts of ``parts/NNNNN.json`` against the tables and arrays. Shards that
earlier versions wrote have no checksums of their tables: those are computed anew from the arrays, as far as they follow
from them.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_file
from moe_probe.core.schema import FileEntry, Manifest
from moe_probe.core.sites import ActivationSite
from moe_probe.core.untrusted import open_tensors, read_json
from moe_probe.recording.trace.files import DOCUMENTS, PARTS, TOKENS, USAGE
from moe_probe.recording.trace.part_files import (
    DamageError,
    PartEntry,
    check_size,
    part_name,
    plain_file,
    read_errors,
    read_table,
    table_names,
)
from moe_probe.recording.trace.shard import Shard

#: Bytes of the largest ``parts/NNNNN.json`` that is read: such a file has some hundred bytes for each file of the shard.
_LARGEST = 16_000_000
_NUMBER = re.compile(r"[0-9]{5}|[1-9][0-9]{5,8}")
#: What reading a file that is not what its name says ends in.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError, pa.ArrowException)


def check_part(root: Path, manifest: Manifest, index: int, offset: int) -> PartEntry:
    """Check one shard of an unfinished trace.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest
    index : int
        Number of the shard.
    offset : int
        Documents in the shards before.

    Returns
    -------
    PartEntry
        With the checksums of its tables, whoever wrote it.

    Raises
    ------
    DamageError
        When anything of the shard is missing, changed or says something else than the rest.
    MoeProbeError
        When a file cannot be read for want of permission: it may be whole.
    """
    entry = _read_entry(root, index)
    if entry.n_documents < 1:
        raise DamageError(f"{part_name(index)} has no document")
    _check_names(entry, manifest)
    for file in entry.files:
        path = plain_file(root, file.path)
        check_size(path, file)
        if read_errors(path, sha256_file, path) != file.sha256:
            raise DamageError(f"the checksum of {file.path} differs")
    names = table_names(manifest)
    earlier = not entry.tables
    if earlier:
        entry = entry.model_copy(update={"tables": tuple(_described(root, f"{PARTS}/{index:05d}/{name}") for name in names)})
    tables = {name: read_table(root, file) for name, file in zip(names, entry.tables, strict=True)}
    try:
        _check_counts(entry, manifest, tables, offset)
        arrays = _check_arrays(root, entry, manifest, read=earlier)
        if earlier and arrays:
            _check_usage(manifest, tables, arrays, offset)
    except (*_UNREADABLE, MoeProbeError) as error:
        raise DamageError(f"shard {index} cannot be read ({_words(error)})") from error
    return entry


def counted_parts(root: Path) -> int:
    """Count the shards that an unfinished trace claims to have: one more than the largest number in ``parts/``.

    Parameters
    ----------
    root : Path
        Folder of the trace.

    Returns
    -------
    int
    """
    folder = root / PARTS
    if folder.is_symlink() or not folder.is_dir():
        return 0
    stems = (path.stem for path in read_errors(folder, lambda: list(folder.glob("*.json"))))
    return 1 + max((int(stem) for stem in stems if _NUMBER.fullmatch(stem)), default=-1)


def _read_entry(root: Path, index: int) -> PartEntry:
    name = part_name(index)
    path = plain_file(root, name)
    if path.stat().st_size > _LARGEST:
        raise DamageError(f"{name} is too large")
    read_errors(path, lambda: path.open("rb").close())  # without permission it may be whole
    try:
        entry = PartEntry.model_validate(read_json(path, most=_LARGEST))
    except (ValueError, MoeProbeError) as error:
        raise DamageError(f"{name} is not what was written") from error
    if (entry.tables or entry.digest) and entry != entry.signed():
        raise DamageError(f"{name} is not what was written")
    if entry.index != index:
        raise DamageError(f"{name} is that of shard {entry.index}")
    return entry


def _check_names(entry: PartEntry, manifest: Manifest) -> None:
    """Compare the names of a shard's files with those that it has to have."""
    name = part_name(entry.index)
    folders = [file.path.rpartition("/")[0] for file in entry.files]
    if [file.path for file in entry.files] != [f"{folder}/{entry.index:05d}.safetensors" for folder in folders] or len(
        set(folders)
    ) != len(folders):
        raise DamageError(f"{name} names the files of another shard")
    if any(PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts or not folder for folder in folders):
        raise DamageError(f"{name} names a file outside the trace")
    due = ["routing"] if "routing" in manifest.kept else []
    due += [site.folder for site in ActivationSite if site.keep in manifest.kept]
    missing = [part for part in due if not any(folder == part or folder.startswith(f"{part}/") for folder in folders)]
    if missing:
        raise DamageError(f"{name} does not name the file of {missing[0]}")
    tables = [f"{PARTS}/{entry.index:05d}/{table}" for table in table_names(manifest)]
    if entry.tables and [table.path for table in entry.tables] != tables:
        raise DamageError(f"{name} names other tables than the shard has")


def _described(root: Path, relative: str) -> FileEntry:
    path = plain_file(root, relative)
    return FileEntry(path=relative, size=path.stat().st_size, sha256=read_errors(path, sha256_file, path))


def _check_counts(entry: PartEntry, manifest: Manifest, tables: dict[str, pa.Table], offset: int) -> None:
    """Compare a shard's tables with its counts, with each other, and with its place in the trace."""
    where = f"{PARTS}/{entry.index:05d}"
    documents, usage = tables[DOCUMENTS], tables[USAGE]
    if documents.num_rows != entry.n_documents:
        raise DamageError(f"{where}/{DOCUMENTS} has {documents.num_rows:,} documents, the shard {entry.n_documents:,}")
    n_tokens = _integers(documents, "n_tokens")
    if (n_tokens < 0).any():
        raise DamageError(f"{where}/{DOCUMENTS} has a negative number of tokens")
    check_range(_integers(usage, "document"), offset, entry.n_documents, f"{where}/{USAGE}")
    if TOKENS not in tables:
        if not fits_tokens(int(n_tokens.sum()), entry.n_tokens, manifest):
            raise DamageError(f"{where}/{DOCUMENTS} has {n_tokens.sum():,} tokens, the shard {entry.n_tokens:,}")
        return
    tokens = tables[TOKENS]
    if tokens.num_rows != entry.n_tokens:
        raise DamageError(f"{where}/{TOKENS} has {tokens.num_rows:,} tokens, the shard {entry.n_tokens:,}")
    document, special = _integers(tokens, "document"), tokens["special"].to_numpy()
    check_range(document, offset, entry.n_documents, f"{where}/{TOKENS}")
    if (np.diff(document) < 0).any():
        raise DamageError(f"{where}/{TOKENS} is not in the order of the documents")
    if (np.bincount(document[~special] - offset, minlength=entry.n_documents) != n_tokens).any():
        raise DamageError(f"{where}/{TOKENS} has other tokens than {DOCUMENTS} says")


def fits_tokens(counted: int, recorded: int, manifest: Manifest) -> bool:
    """Whether documents can have so many tokens in a record of counts: a collected one counts special tokens apart.

    Parameters
    ----------
    counted : int
        Tokens of the documents.
    recorded : int
        Tokens of the shards.
    manifest : Manifest

    Returns
    -------
    bool
    """
    return counted == recorded if manifest.windowing is None else counted <= recorded


def check_range(document: np.ndarray, offset: int, n_documents: int, where: str) -> None:
    """Refuse a table of a shard that numbers its documents as another shard would.

    Parameters
    ----------
    document : ndarray of int
        Rows of documents.
    offset, n_documents : int
        The shard's first document, and how many it has.
    where : str
        Names the table.

    Raises
    ------
    DamageError
    """
    if len(document) and (document.min() < offset or document.max() >= offset + n_documents):
        raise DamageError(
            f"{where} has documents {document.min():,} to {document.max():,} "
            f"instead of {offset:,} to {offset + n_documents - 1:,}"
        )


def _integers(table: pa.Table, name: str) -> np.ndarray:
    column = table[name]
    if column.null_count or not pa.types.is_integer(column.type):
        raise DamageError(f"the column {name} has other values than whole numbers")
    return np.asarray(column.to_numpy())


def _check_arrays(root: Path, entry: PartEntry, manifest: Manifest, *, read: bool) -> dict[str, Any]:
    """Compare the shapes of a shard's arrays with its counts; return the routing where it is asked for."""
    arrays: dict[str, Any] = {}
    for file in entry.files:
        with open_tensors(root / file.path) as opened:
            names = set(opened.names)
            if file.path.rpartition("/")[0] != "routing":
                continue
            if names != ({"experts", "weights"} if manifest.has_weights else {"experts"}):
                raise DamageError(f"{file.path} has the arrays {', '.join(sorted(names))}")
            for name in sorted(names):
                shape = opened.shape(name)
                if len(shape) != 3 or shape[:2] != (entry.n_tokens, len(manifest.layers)):
                    raise DamageError(f"{file.path} has {name} of shape {shape} for {entry.n_tokens:,} tokens")
                if read:
                    arrays[name] = opened.tensor(name)
    return arrays


def _check_usage(manifest: Manifest, tables: dict[str, pa.Table], arrays: dict[str, Any], offset: int) -> None:
    """Count the selections of a shard anew: its tables have no checksums."""
    tokens = {name: tables[TOKENS][name].to_numpy() for name in ("document", "position", "token_id", "token", "special")}
    tokens["document"] = tokens["document"] - offset
    shard = Shard(tables[DOCUMENTS].to_pylist(), tokens, arrays["experts"], arrays.get("weights"))
    try:
        shard.check(manifest)
    except MoeProbeError as error:
        raise DamageError(str(error)) from error
    usage, stored = shard.usage_table(manifest, offset), tables[USAGE]
    same = usage.column_names == stored.column_names and usage.num_rows == stored.num_rows
    counts = ("document", "layer", "expert", "selections")
    if not same or any(not usage[name].equals(stored[name]) for name in counts):
        raise DamageError(f"{USAGE} of a shard has other counts than its routing")
    if "gate_mass" in stored.column_names and not np.allclose(usage["gate_mass"], stored["gate_mass"], rtol=1e-5):
        raise DamageError(f"{USAGE} of a shard has another gate mass than its routing")


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:120] or type(error).__name__
