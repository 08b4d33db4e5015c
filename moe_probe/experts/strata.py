"""Strata of a run: the label column within which documents are permuted, the same in later stages as in the analysis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.results import Result

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

#: Value of --strata for permutations among all documents, whatever the run was analysed with.
NO_STRATA = "none"


def run_strata(run: Path) -> str | None:
    """Read the strata that a run was analysed with; None if it was analysed without, or not at all."""
    if not (run / "results" / "expert_topics.parquet").exists():
        return None
    strata = Result.load(run / "results", "expert_topics").params.get("strata")
    return str(strata) if strata else None


def choose_strata(run: Path, trace: Trace, *, by: str, given: str | None = None) -> str | None:
    """Choose the strata of a stage that runs by itself: those given, else those of the run's analysis.

    Parameters
    ----------
    run : Path
        Run directory.
    trace : Trace
        Of that run.
    by : str
        Label column that is tested; it is never its own strata.
    given : str, optional
        A label column, or `NO_STRATA`.

    Returns
    -------
    str or None
        Label column.

    Raises
    ------
    UsageError
        When the documents have no such label, or it is the label that is tested.
    """
    if given == NO_STRATA:
        return None
    if given is None:
        own = run_strata(run)
        return own if own in trace.documents.columns and own != by else None
    labels = [str(c) for c in trace.documents.columns if c not in ("document", "n_tokens")]
    if given not in labels:
        raise UsageError(
            f"--strata {given} is not a label column of the documents",
            did_you_mean(given, labels),
            f"--strata with one of {', '.join(labels)}, or --strata {NO_STRATA}",
        )
    if given == by:
        raise UsageError(
            f"--strata {given} is the label that is tested",
            "there is nothing to permute within one value of it",
            f"another label, or --strata {NO_STRATA}",
        )
    return given
