"""The verdicts of a run, renewed with all evidence that its results have by now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moe_probe.studies.verdicts.evidence import complete_verdicts

if TYPE_CHECKING:
    from moe_probe.core.results import Result
    from moe_probe.recording.rundir import RunDirectory


def update_verdicts(run: RunDirectory) -> Result | None:
    """Complete the run's verdicts from usage with features and knock-outs, and save them.

    Returns
    -------
    Result or None
        None where the run has no verdicts yet.
    """
    usage = run.results.get("usage_verdicts")
    if usage is None:
        return None
    verdicts = complete_verdicts(
        replace(usage, name="verdicts"),
        carriers=run.results.get("carriers"),
        features=run.results.get("features"),
        ablation=run.results.get("ablation"),
    )
    run.save([verdicts])
    return verdicts
