"""Which stages are done, with what: a stage is skipped when its key and its files are what they were."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moe_probe.core.files import sha256_file, write_json


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
        """Check whether a stage ran with a key, and its files are still the ones that it wrote.

        Parameters
        ----------
        stage, key : str

        Returns
        -------
        bool
        """
        entry = self.stages.get(stage)
        if entry is None or entry["key"] != key:
            return False
        files = entry["files"].items()
        return all((self.root / name).is_file() and sha256_file(self.root / name) == digest for name, digest in files)

    def record(self, stage: str, key: str, files: Iterable[Path], *, seconds: float) -> None:
        """Note that a stage is done.

        Parameters
        ----------
        stage, key : str
        files : iterable of Path
            Files that it wrote.
        seconds : float
            Time that it took.
        """
        digests = {p.relative_to(self.root).as_posix(): sha256_file(p) for p in sorted(files)}
        self.stages[stage] = {"key": key, "seconds": round(seconds, 2), "files": digests}
        write_json(self.path, self.stages)
