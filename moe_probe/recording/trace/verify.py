"""Finding damage: every byte is under a checksum, and the tables must agree with the manifest."""

from __future__ import annotations

from pathlib import Path

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import path_inside, sha256_file
from moe_probe.core.progress import track
from moe_probe.core.schema import MANIFEST
from moe_probe.recording.trace.files import CHECKSUM, read_manifest


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
    root = Path(path)
    if not (root / MANIFEST).exists() and (root / "trace" / MANIFEST).exists():
        root = root / "trace"
    if not (root / MANIFEST).exists():
        raise MoeProbeError(f"there is no trace at {root}", f"it holds no {MANIFEST}", "the folder of a trace or run")
    problems = []
    try:
        recorded = (root / CHECKSUM).read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        problems.append(f"{CHECKSUM} is missing")
        recorded = None
    if recorded is not None and recorded != sha256_file(root / MANIFEST):
        problems.append(f"{MANIFEST} does not match {CHECKSUM}: one of the two was changed")
    try:
        manifest = read_manifest(root)
    except MoeProbeError as error:
        return [*problems, str(error)]
    if manifest.status != "sealed":
        problems.append("the trace is unfinished: collect with --resume")
    entries = [*manifest.files, *(f for shard in manifest.shards for f in shard.files)]
    for entry in track(entries, "verify", unit="files", name=lambda entry: entry.path):
        try:
            file = path_inside(root, entry.path)
        except MoeProbeError as error:
            problems.append(str(error))
            continue
        if not file.exists():
            problems.append(f"{entry.path} is missing")
        elif file.stat().st_size != entry.size:
            problems.append(f"{entry.path} has {file.stat().st_size} bytes instead of {entry.size}")
        elif sha256_file(file) != entry.sha256:
            problems.append(f"{entry.path} was changed: its checksum differs")
    known = {e.path for e in entries} | {MANIFEST, CHECKSUM}
    problems += [
        f"{p} does not belong to the trace"
        for p in sorted(f.relative_to(root).as_posix() for f in root.rglob("*") if f.is_file())
        if p not in known and manifest.status == "sealed"
    ]
    return problems
