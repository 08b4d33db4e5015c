"""The verdicts of a run, renewed with all evidence that its results have by now."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.generation import save_together
from moe_probe.core.lock import locked, run_of_results
from moe_probe.core.publication import settle
from moe_probe.core.results import Result
from moe_probe.recording.rundir import RunDirectory
from moe_probe.studies.verdicts.evidence import complete_verdicts

_EVIDENCE = ("usage_verdicts", "carriers", "features", "ablation")


def _readable(folder: Path, names: Iterable[str]) -> dict[str, Result]:
    """Read those results that are whole; the report refuses the others by name, with the command that renews them."""
    found = {}
    for name in names:
        with contextlib.suppress(MoeProbeError):
            found[name] = Result.load(folder, name)
    return found


@locked(lambda run, *_, **__: run_of_results(run if isinstance(run, Path) else run.results_folder))
def update_verdicts(
    run: RunDirectory | Path,
    new: Iterable[Result] = (),
    *,
    settings: Mapping[str, Any] | None = None,
    remove: Collection[str] = (),
) -> Result | None:
    """Save new results together with the verdicts that rest on them.

    Parameters
    ----------
    run : RunDirectory or Path
        A run, or the folder of its results.
    new : iterable of Result
        Results of a command; none to complete the verdicts with what is there.
    settings : mapping, optional
        Of that command (JSON values).
    remove : collection of str
        Results that must not stay.

    Returns
    -------
    Result or None
        The verdicts from usage completed with features and knock-outs; None where there are none yet.

    Raises
    ------
    MoeProbeError
        When another process writes to the run, or the disk refuses; the results are as they were before.
    """
    folder = run if isinstance(run, Path) else run.results_folder
    made = {result.name: result for result in new}
    settle(folder)  # this command writes: what an interrupted one left is finished before it is read
    results = _readable(folder, [name for name in _EVIDENCE if name not in made and name not in remove]) | made
    usage = results.get("usage_verdicts")
    if usage is None:
        if made or remove:
            save_together(folder, made.values(), settings=settings, remove=remove)
        return None
    verdicts = complete_verdicts(
        replace(usage, name="verdicts"),
        carriers=results.get("carriers"),
        features=results.get("features"),
        ablation=results.get("ablation"),
    )
    save_together(folder, [*made.values(), verdicts], settings=settings, remove=remove)
    return verdicts
