"""A stage of a run: what it reads, what decides its output, and which files it writes.

Each room defines its own stage; `moe_probe.runs.stages` has their order. A stage is skipped when its key and the files
that it wrote are what they were.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple

from moe_probe.core.files import sha256_file, sha256_json
from moe_probe.core.generation import save_together
from moe_probe.core.progress import Say
from moe_probe.core.publication import read_object
from moe_probe.core.results import Result

#: Where a run keeps which stages are done, below its directory.
LEDGER = "logs/stages.json"


def stage_key(*parts: Any) -> str:
    """SHA-256 over inputs and settings (JSON values)."""
    return sha256_json(parts)


class Stage(ABC):
    """One step of a run. A subclass is a frozen dataclass of the settings that it needs.

    Attributes
    ----------
    name : str
        As the ledger and the terminal call it.
    after : tuple of Stage
        Stages whose keys enter this one's: it is made again when one of them is.
    """

    name: ClassVar[str]

    @property
    def after(self) -> tuple[Stage, ...]:
        """Stages that this one builds on."""
        return ()

    def wanted(self) -> bool:
        """Whether the settings ask for this stage."""
        return True

    @abstractmethod
    def settings(self) -> Any:
        """Return what decides the output beside the inputs (JSON values)."""

    def inputs(self, root: Path) -> Iterable[Path]:  # noqa: ARG002 (of the base: no files)
        """Files below the run directory that are read, beside those of the stages before."""
        return ()

    def key(self, root: Path) -> str:
        """Digest of the version, the settings, the stages before and the input files: equal keys, equal output.

        Parameters
        ----------
        root : Path
            Run directory.

        Returns
        -------
        str
        """
        from moe_probe import __version__

        files = [[path.relative_to(root).as_posix(), sha256_file(path)] for path in self.inputs(root)]
        return stage_key(self.name, __version__, self.settings(), [stage.key(root) for stage in self.after], files)

    def is_stale(self, redone: Collection[str]) -> bool:  # noqa: ARG002 (of the base: the key says all)
        """Check whether stages that were done again in this call ask for this one, though its key is unchanged.

        Stages rewrite their own tables, so that only one that changes the table of another has to follow it.
        """
        return False

    @abstractmethod
    def run(self, root: Path, say: Say) -> list[Path]:
        """Do the work.

        Parameters
        ----------
        root : Path
            Run directory.
        say : callable
            Takes a sentence for the person at the terminal.

        Returns
        -------
        list of Path
            Files that this stage alone writes: when one changes, the stage is done again.

        Raises
        ------
        MoeProbeError
            In one sentence; what stages before wrote stays.
        """


def result_files(root: Path, names: Iterable[str]) -> list[Path]:
    """Files of results.

    Parameters
    ----------
    root : Path
        Run directory.
    names : iterable of str

    Returns
    -------
    list of Path
        Table and JSON of each.
    """
    return [root / "results" / f"{name}.{ending}" for name in names for ending in ("parquet", "json")]


def save_results(root: Path, results: Iterable[Result], *, settings: Mapping[str, Any] | None = None) -> list[Path]:
    """Write results into a run, so that readers see all of them or none.

    Parameters
    ----------
    root : Path
        Run directory.
    results : iterable of Result
    settings : mapping, optional
        What decides them beside their inputs (JSON values).

    Returns
    -------
    list of Path
        The files written.
    """
    return save_together(root / "results", results, settings=settings)


class StageEntry(NamedTuple):
    """What the ledger says of a stage that is done."""

    key: str
    seconds: float
    #: SHA-256 of each file that it wrote, by its path below the run directory.
    files: dict[str, str]

    @classmethod
    def from_json(cls, value: object) -> StageEntry | None:
        """Read an entry; None for one of another shape, or with files outside the run."""
        if not isinstance(value, dict):
            return None
        key, seconds, files = value.get("key"), value.get("seconds"), value.get("files")
        if not isinstance(key, str) or isinstance(seconds, bool) or not isinstance(seconds, int | float):
            return None
        if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
            return None
        if not 0 <= seconds < math.inf or any(_leads_out(name) for name in files):
            return None
        return cls(key, float(seconds), files)


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name


def read_stages(root: Path) -> dict[str, StageEntry]:
    """Read the ledger of a run, ``logs/stages.json``.

    Parameters
    ----------
    root : Path
        Run directory.

    Returns
    -------
    dict of str to StageEntry
        By the name of the stage. A stage whose entry is damaged is missing: it is done again, which costs only time.
    """
    try:
        read = read_object(root / LEDGER)
    except (OSError, ValueError):
        return {}  # no ledger, as after stages that were run one by one, or half a one
    entries = {name: StageEntry.from_json(value) for name, value in read.items()}
    return {name: entry for name, entry in entries.items() if entry is not None}
