"""Which stages are done, with what: a stage is skipped when its key and its files are what they were."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moe_probe.core.files import sha256_file, write_json
from moe_probe.core.stage import LEDGER, StageEntry, read_stages


class Ledger:
    """Stages done in a run directory, in ``logs/stages.json``.

    Parameters
    ----------
    root : Path
        Run directory.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / LEDGER
        self.stages = read_stages(root)

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
        if entry is None or entry.key != key:
            return False
        return all(self._is_same(name, digest) for name, digest in entry.files.items())

    def _is_same(self, name: str, digest: str) -> bool:
        path = self.root / name
        try:
            return path.is_file() and sha256_file(path) == digest
        except OSError:  # not readable, or no name that a file can have: the stage that writes it says what is wrong
            return False

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
        self.stages[stage] = StageEntry(key, round(seconds, 2), digests)
        write_json(self.path, {name: entry._asdict() for name, entry in self.stages.items()})
