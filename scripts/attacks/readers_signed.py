"""Readers of what somebody damaged on purpose: checksums are made to fit, so that what lies behind them is reached.

Unfinished traces are continued as ``--resume`` does, once with the checksums that no longer fit and once with new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.readers import Reader, uses
from attacks.readers_runs import _results, _use_results
from attacks.readers_traces import _TRACE, _merge, _use_trace, _verify, _whole_two, planted

#: Bytes of a JSON file that is signed again; a larger one stays as it is.
_LARGEST = 1_000_000


def _object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object, where the damaged file still is one."""
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return None
    try:
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return None


def _sign(root: Path, entries: object) -> bool:
    """Correct the sizes and checksums of files that are listed; whether one was wrong."""
    changed = False
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            continue
        try:
            path = root / entry["path"]
            if ".." in path.parts or path.is_symlink() or not path.is_file():
                continue
            data = path.read_bytes()
        except (OSError, ValueError):
            continue
        new = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        changed |= any(entry.get(name) != value for name, value in new.items())
        entry |= new
    return changed


def sign_trace(root: Path) -> None:
    """Make the checksums of a sealed trace fit its files, as far as its manifest still names them."""
    path = root / "trace.json"
    manifest = _object(path)
    if manifest is None:
        return
    shards = manifest.get("shards")
    lists = (
        [manifest.get("files"), *(s.get("files") for s in shards if isinstance(s, dict))] if isinstance(shards, list) else []
    )
    signed = [_sign(root, entries) for entries in lists]
    if any(signed):
        path.write_text(json.dumps(manifest))
    checksum = root / "trace.json.sha256"
    if checksum.is_file() and not checksum.is_symlink():
        checksum.write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "\n")


def sign_parts(root: Path) -> None:
    """Make what ``parts/`` says of the shards of an unfinished trace fit their files, and sign it anew."""
    from moe_probe.recording.trace.part_files import PartEntry

    folder = root / "parts"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        entry = None if path.is_symlink() else _object(path)
        if entry is None:
            continue
        for name in ("files", "tables"):
            _sign(root, entry.get(name))
        try:
            path.write_text(PartEntry.model_validate(entry).signed().model_dump_json())
        except ValueError:  # no such entry: as it is
            continue


def _signed_two(folder: Path) -> None:
    for part in ("0", "1"):
        sign_trace(folder / part)
    _merge(folder)


def _signed_trace(folder: Path) -> None:
    sign_trace(folder)
    uses(lambda: _verify(folder), lambda: _use_trace(folder))


def _sign_results(results: Path) -> None:
    for path in sorted(results.glob("*.json")) if results.is_dir() else ():
        meta = None if path.is_symlink() else _object(path)
        if meta is not None and meta.pop("table_sha256", None) is not None:
            path.write_text(json.dumps(meta))


def _signed_results(folder: Path) -> None:
    _sign_results(folder / "results")
    _use_results(folder)


def _two_runs(folder: Path) -> None:
    from moe_probe.testing.results import planted_results

    for seed, run in enumerate("ab"):
        results = folder / run / "results"
        planted_results(planted(folder / run / "trace", seed=seed, documents_per_topic=6), results)
        for path in results.iterdir():
            if path.stem not in ("layers", "verdicts", "expert_topics"):
                path.unlink()


def _compare(folder: Path) -> None:
    from moe_probe.studies.compare import compare_runs

    runs = [folder / run for run in "ab"]
    for run in runs:
        _sign_results(run / "results")
    str(compare_runs(runs, resamples=20, permutations=9).headlines)


def _copied(source: str, target: str) -> str:
    """Copy a file; of a pipe, make another one."""
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copyfile(source, target)
    return target


def _begin(name: str) -> Callable[[Path], None]:
    def begin(folder: Path) -> None:
        from attacks.unfinished import kinds_of

        kinds = {kind.name: kind for kind in kinds_of(folder.parent)}
        kinds[name].begin(folder)

    return begin


def _resume(name: str, *, sign: bool) -> Callable[[Path], None]:
    def resume(folder: Path) -> None:
        """Continue a copy: sealing changes the folder."""
        from attacks.unfinished import kinds_of

        out = folder.parent / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder, out, symlinks=True, copy_function=_copied)
        if sign:
            sign_parts(out)
        kinds = {kind.name: kind for kind in kinds_of(folder.parent)}
        trace, _ = kinds[name].resume(out)
        uses(lambda: _verify(trace.root), lambda: trace.usage().selections)

    return resume


_UNFINISHED = (*_TRACE, "attacks.unfinished")

READERS: tuple[Reader, ...] = (
    Reader("trace-signed", planted, _signed_trace, _TRACE),
    Reader("merge-signed", _whole_two, _signed_two, _TRACE),
    Reader("results-signed", _results, _signed_results, ("moe_probe.core.results", "pandas", "pyarrow.parquet")),
    Reader("compare", _two_runs, _compare, (*_TRACE, "moe_probe.studies.compare.opening"), ("*/results/*",)),
    Reader("resume", _begin("tokens"), _resume("tokens", sign=False), _UNFINISHED),
    Reader("resume-signed", _begin("tokens"), _resume("tokens", sign=True), _UNFINISHED),
    Reader("resume-counts", _begin("counts"), _resume("counts", sign=True), _UNFINISHED),
    Reader("resume-import", _begin("import"), _resume("import", sign=True), _UNFINISHED),
)
