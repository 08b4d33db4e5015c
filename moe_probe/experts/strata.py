"""The label within which a run's documents are permuted: later stages permute as the analysis did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.core.errors import UsageError, did_you_mean
from moe_probe.core.results import Result

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

#: What asks for permutations among all documents, whatever the run was analysed with.
NO_STRATA = "none"


def run_strata(run: Path) -> str | None:
    """Strata that the run was analysed with; None where it was analysed without, or not at all."""
    if not (run / "results" / "expert_topics.parquet").exists():
        return None
    strata = Result.load(run / "results", "expert_topics").params.get("strata")
    return str(strata) if strata else None


def choose_strata(run: Path, trace: Trace, *, by: str, given: str | None = None) -> str | None:
    """Strata of a stage that is run by itself: those given, else those of the run's analysis unless they are `by` itself.

    Parameters
    ----------
    given : str, optional
        A label column, or `NO_STRATA`.

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
            f"--strata {given} names no label of the documents",
            did_you_mean(given, labels),
            f"--strata with one of {', '.join(labels)}, or --strata {NO_STRATA}",
        )
    if given == by:
        raise UsageError(
            f"--strata {given} is the label that is tested",
            "within one value of it there is nothing to exchange",
            f"another label, or --strata {NO_STRATA}",
        )
    return given
