"""Finding damage: every byte is under a checksum, and the tables must agree with the manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import path_inside
from moe_probe.core.own_files import LOCK_PREFIX
from moe_probe.core.progress import track
from moe_probe.core.schema import MANIFEST, FileEntry, Manifest
from moe_probe.core.text import one_line
from moe_probe.core.untrusted import file_digest, file_size
from moe_probe.recording.trace.agreement import count_problems
from moe_probe.recording.trace.files import CHECKSUM, file_entries, find_root, fits_checksum, read_manifest


def verify(path: str | Path) -> list[str]:
    """Check a trace against its manifest.

    Parameters
    ----------
    path : str or Path
        Trace directory, or a run directory with ``trace/`` in it.

    Returns
    -------
    list of str
        One sentence for each problem, naming the file; empty when the trace is whole.

    Raises
    ------
    MoeProbeError
        When there is no trace at all.
    """
    root = find_root(Path(path))
    if not (root / MANIFEST).exists():
        raise MoeProbeError(f"there is no trace at {root}", f"it has no {MANIFEST}", "pass the folder of a trace or run")
    problems = _checksum_problems(root)
    try:
        manifest = read_manifest(root)
    except MoeProbeError as error:
        return [one_line(text) for text in (*problems, str(error))]
    if manifest.status != "sealed":
        problems.append("the trace is unfinished: collect with --resume")
    problems += damage(root, manifest)
    if manifest.status == "sealed":
        known = {entry.path for entry in file_entries(manifest)} | {MANIFEST, CHECKSUM}
        files = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        problems += [
            f"{name} does not belong to the trace"
            for name in files
            if name not in known and not name.startswith(LOCK_PREFIX)
        ]
    return [one_line(text) for text in problems]  # names in a manifest may be anything


def damage(root: Path, manifest: Manifest) -> Iterator[str]:
    """Find the files of a trace that are not as its manifest says, then, where all are, counts that disagree with the tables.

    Parameters
    ----------
    root : Path
        Folder of the trace.
    manifest : Manifest

    Yields
    ------
    str
        One sentence for each problem, naming the file.
    """
    whole = True
    for entry in track(file_entries(manifest), "verify", unit="files", name=lambda entry: entry.path):
        for problem in _file_problems(root, entry):
            whole = False
            yield problem
    if whole and manifest.status == "sealed":
        yield from count_problems(root, manifest)


def _checksum_problems(root: Path) -> list[str]:
    try:
        if not fits_checksum(root):
            return [f"{MANIFEST} does not match {CHECKSUM}: one of the two was changed"]
    except FileNotFoundError:
        return [f"{CHECKSUM} is missing"]
    except MoeProbeError as error:
        return [str(error)]
    return []


def _file_problems(root: Path, entry: FileEntry) -> list[str]:
    try:
        file = path_inside(root, entry.path)
        if not os.path.lexists(file):
            return [f"{entry.path} is missing"]
        size = file_size(file)
        if size != entry.size:
            return [f"{entry.path} has {size} bytes instead of {entry.size}"]
        if file_digest(file) != entry.sha256:
            return [f"{entry.path} was changed: its checksum differs"]
    except MoeProbeError as error:
        return [str(error)]
    return []
