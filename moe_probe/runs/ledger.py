"""Which stages are done, with what: a stage is skipped when its key and its files are what they were."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.textfiles import expand
from moe_probe.core.files import sha256_file, sha256_json, write_json


def stage_key(*parts: Any) -> str:
    """SHA-256 over inputs and parameters (JSON values)."""
    return sha256_json(parts)


def source_state(source: str) -> Any:
    """What tells whether a local file or folder changed: names, sizes and times; None for a hub name."""
    path = Path(source).expanduser()
    if path.exists():
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    else:
        try:
            files = list(expand(path).files)  # a glob
        except MoeProbeError:
            return None
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


class Ledger:
    """Stages done in a run directory, in ``logs/stages.json``.

    Parameters
    ----------
    root : Path
        Run directory.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / "logs" / "stages.json"
        try:
            self.stages: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            self.stages = {}  # no ledger, or half a one: every stage is done again, which costs only time

    def is_done(self, stage: str, key: str) -> bool:
        """Whether the stage ran with this key and its files are still the ones it wrote."""
        entry = self.stages.get(stage)
        if entry is None or entry["key"] != key:
            return False
        return all((self.root / name).is_file() and sha256_file(self.root / name) == digest
                   for name, digest in entry["files"].items())

    def record(self, stage: str, key: str, files: Iterable[Path], *, seconds: float) -> None:
        """Note that a stage is done and which files it wrote."""
        self.stages[stage] = {
            "key": key, "seconds": round(seconds, 2),
            "files": {p.relative_to(self.root).as_posix(): sha256_file(p) for p in sorted(files)},
        }
        write_json(self.path, self.stages)
