"""A stage of a run: what it reads, what decides its output, and which files it writes.

Each room defines its own stage; `moe_probe.runs.stages` has their order. A stage is skipped when its key and the files
that it wrote are what they were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, ClassVar

from moe_probe.core.files import sha256_file, sha256_json
from moe_probe.core.progress import Say
from moe_probe.core.results import Result


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


def save_results(root: Path, results: Iterable[Result]) -> list[Path]:
    """Write results into a run.

    Parameters
    ----------
    root : Path
        Run directory.
    results : iterable of Result

    Returns
    -------
    list of Path
        The files written.
    """
    made = list(results)
    for result in made:
        result.save(root / "results")
    return result_files(root, [result.name for result in made])
