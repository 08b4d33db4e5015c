"""A run directory as every room sees it: a trace with a place for results, SAEs and logs beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from moe_probe.core.generation import save_together
from moe_probe.core.results import Result, Results
from moe_probe.core.routing import Usage
from moe_probe.recording.trace import Trace


class RunDirectory(Trace):
    """The trace of a run, and the folders in which a run keeps what is made from it.

    It is a `Trace`, so that every analysis takes it as one. Rooms that read or write results take a `RunDirectory`;
    `moe_probe.runs.Run` adds what a person at a notebook wants (verdicts, cards, SAEs, report).

    Attributes
    ----------
    path : Path
        The run directory; the trace itself is at ``root``.
    """

    def __init__(self, trace: Trace, path: Path) -> None:
        super().__init__(trace.root, trace.manifest)
        self.path = path

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run directory.

        Raises
        ------
        MoeProbeError
            When it has no trace, or one that is unfinished or damaged.
        """
        return cls(Trace.open(Path(path) / "trace"), Path(path))

    @cached_property
    def trace(self) -> Trace:
        """The trace alone."""
        return Trace(self.root, self.manifest)

    def usage(self) -> Usage:
        """Return the counts of the trace, which this run and `trace` share."""
        return self.trace.usage()

    @cached_property
    def results(self) -> Results:
        """Results by name, read when asked for: ``run.results.layers``, ``run.results["layers"]``."""
        return Results(self.results_folder)

    @property
    def results_folder(self) -> Path:
        """Folder of the result tables."""
        return self.path / "results"

    @property
    def sae_folder(self) -> Path:
        """Folder of the SAEs, ``layer_NN/width_WWWWW`` below it."""
        return self.path / "sae"

    def save(
        self, results: Iterable[Result], *, settings: Mapping[str, Any] | None = None, remove: Collection[str] = ()
    ) -> list[Path]:
        """Write results into the run, so that readers see all of them or none.

        Parameters
        ----------
        results : iterable of Result
        settings : mapping, optional
            What decides them beside their inputs (JSON values).
        remove : collection of str
            Names of results that must not stay beside them.

        Returns
        -------
        list of Path
            The files written.

        Raises
        ------
        MoeProbeError
            When the disk refuses; the results are as they were before.
        """
        return save_together(self.results_folder, results, settings=settings, remove=remove)
