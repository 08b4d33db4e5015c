"""Names of a trace's files, and its manifest."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import sha256_file, sha256_text, write_text
from moe_probe.core.schema import MANIFEST, FileEntry, Manifest
from moe_probe.core.untrusted import file_digest, first_problem, read_bytes, read_json

CHECKSUM = "trace.json.sha256"
DOCUMENTS, TOKENS, USAGE = "documents.parquet", "tokens.parquet", "usage.parquet"
PARTS = "parts"


def find_root(path: Path) -> Path:
    """Return the folder of a trace: the path, or ``trace/`` in it, where the path is that of a run."""
    inner = path / "trace"
    return inner if not (path / MANIFEST).exists() and (inner / MANIFEST).exists() else path


def file_entries(manifest: Manifest) -> list[FileEntry]:
    """List all files that a manifest names."""
    return [*manifest.files, *(entry for shard in manifest.shards for entry in shard.files)]


def file_entry(root: Path, path: Path) -> FileEntry:
    """Describe a file of the trace for its manifest.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    path : Path
        The file.

    Returns
    -------
    FileEntry
    """
    return FileEntry(path=path.relative_to(root).as_posix(), size=path.stat().st_size, sha256=sha256_file(path))


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``trace.json`` and its checksum.

    Until the manifest is there the checksum has two lines, of the new one and of the one before: whatever moment the process
    is killed at, it fits the manifest.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest
    """
    text = manifest.model_dump_json(indent=1) + "\n"
    new = sha256_text(text) + "\n"
    before = sha256_file(root / MANIFEST) + "\n" if (root / MANIFEST).is_file() else ""
    write_text(root / CHECKSUM, new + before)
    write_text(root / MANIFEST, text)
    if before:
        write_text(root / CHECKSUM, new)


def tidy_checksum(root: Path) -> None:
    """Leave the one line of ``trace.json.sha256`` that counts, where a killed process left the one before behind it.

    Parameters
    ----------
    root : Path
        Folder of a trace; nothing is changed where its manifest does not fit the checksum.

    Raises
    ------
    OSError
        When the disk refuses.
    """
    recorded = (root / CHECKSUM).read_text(encoding="ascii", errors="replace").split()
    if len(recorded) > 1 and fits_checksum(root):
        write_text(root / CHECKSUM, sha256_file(root / MANIFEST) + "\n")


def fits_checksum(root: Path) -> bool:
    """Whether ``trace.json`` is as it was written: what ``trace.json.sha256`` says.

    Parameters
    ----------
    root : Path
        Folder of the trace.

    Returns
    -------
    bool

    Raises
    ------
    FileNotFoundError
        When one of the two is missing.
    MoeProbeError
        When one of the two cannot be read.
    """
    for name in (CHECKSUM, MANIFEST):
        if not os.path.lexists(root / name):
            raise FileNotFoundError(root / name)
    recorded = read_bytes(root / CHECKSUM, most=1 << 16).decode("ascii", errors="replace").split()
    return file_digest(root / MANIFEST) in recorded[:2]


def read_manifest(root: Path) -> Manifest:
    """Read ``trace.json``.

    Raises
    ------
    MoeProbeError
        When there is none, or it is damaged, or of a format this version does not know.
    """
    path = root / MANIFEST
    if not os.path.lexists(path):
        raise MoeProbeError(
            f"there is no trace at {root}", f"it has no {MANIFEST}", "run moe-probe collect or moe-probe import"
        )
    raw = read_json(path, hint="run moe-probe verify, or collect again")
    version = raw.get("version") if isinstance(raw, dict) else None
    if version != 1:
        raise MoeProbeError(f"{path} has format version {version}", "this moe_probe reads version 1", "a newer moe_probe")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise MoeProbeError(
            f"{path} is not a manifest of version 1", first_problem(error), "run moe-probe verify"
        ) from error
