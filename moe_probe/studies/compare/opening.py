"""Runs from folders, under the labels asked for, ready to be compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.progress import Say, silent
from moe_probe.core.results import Result
from moe_probe.core.stats.groups import need_column
from moe_probe.core.text import quoted
from moe_probe.recording.rundir import RunDirectory
from moe_probe.recording.trace import Trace
from moe_probe.studies.compare.compared_run import ComparedRun
from moe_probe.studies.compare.comparison import Comparison, compare_opened_runs
from moe_probe.studies.compare.settings import MOST_PERMUTATIONS, ComparisonSettings
from moe_probe.studies.compare.stored import check_stored

#: Settings of run.yaml that decide numbers and are not known from elsewhere.
_SETTINGS = {
    "limit": ("corpus", "limit"),
    "max length": ("recording", "max_length"),
    "sae epochs": ("sae", "epochs"),
    "ablate": ("ablation", "ablate"),
}


def compare_runs(  # noqa: PLR0913 (keyword options of a public analysis)
    runs: Sequence[str | Path],
    *,
    by: Sequence[str] = (),
    names: Sequence[str] = (),
    resamples: int = 1000,
    permutations: int = 199,
    seed: int = 0,
    say: Say = silent,
) -> Comparison:
    """Compare runs, or labels of one run, or its SAEs of several widths.

    Parameters
    ----------
    runs : sequence of str or Path
        Run directories; the others are compared with the first.
    by : sequence of str
        Labels of the documents. None: those that the runs were made for. One: all runs under it. Several: every run
        under every label.
    names : sequence of str
        Names of what is compared; by default the folders, the labels, or both.
    resamples : int
        Bootstrap resamples of groups of documents.
    permutations : int
        Permutations behind the null of matching experts.
    seed : int
    say : callable
        Gets a sentence on each step.

    Returns
    -------
    Comparison

    Raises
    ------
    MoeProbeError
        When a run has no results, or the runs cannot be compared.
    UsageError
        When names do not match what is compared.
    """
    settings = ComparisonSettings(resamples, permutations, seed)
    return compare_opened_runs(open_compared_runs(runs, by=by, names=names, say=say), settings=settings, say=say)


def open_compared_runs(
    runs: Sequence[str | Path], *, by: Sequence[str] = (), names: Sequence[str] = (), say: Say = silent
) -> list[ComparedRun]:
    """Open runs for a comparison; results that a run lacks under a label are computed from its trace.

    Parameters
    ----------
    runs, by, names, say
        As `compare_runs`.

    Returns
    -------
    list of ComparedRun
        Runs in order, each under every label.

    Raises
    ------
    MoeProbeError, UsageError
        As `compare_runs`.
    """
    if not runs:
        raise UsageError("no run was named", "", "moe-probe compare RUN RUN --out FOLDER")
    paths = [Path(run) for run in runs]
    wanted = [(path, label) for path in paths for label in (by or (None,))]
    called = list(names) or _names(paths, by)
    if len(called) != len(wanted):
        raise UsageError(
            f"{len(called)} names were given for {len(wanted)} sides",
            ", ".join(called),
            f"--names with {len(wanted)} names, separated by commas",
        )
    return [
        open_compared_run(path, label=label, name=name, say=say) for (path, label), name in zip(wanted, called, strict=True)
    ]


def _names(paths: list[Path], by: Sequence[str]) -> list[str]:
    resolved = [path.resolve() for path in paths]
    plain = [path.name for path in resolved]
    runs = plain if len(set(plain)) == len(plain) else [f"{path.parent.name}/{path.name}" for path in resolved]
    if len(by) < 2:
        return runs
    return list(by) if len(runs) == 1 else [f"{run}, {label}" for run in runs for label in by]


def open_compared_run(
    run: str | Path, *, label: str | None = None, name: str | None = None, say: Say = silent
) -> ComparedRun:
    """Open one run under a label.

    Parameters
    ----------
    run : str or Path
        Run directory.
    label : str, optional
        Label column; by default the one that the run was made for.
    name : str, optional
        By default the folder's name.
    say : callable
        Gets a sentence on each step.

    Returns
    -------
    ComparedRun

    Raises
    ------
    MoeProbeError
        When there is no run, it has no results, or its documents have no such label column.
    """
    root = Path(run)
    if not root.is_dir():
        raise MoeProbeError(f"there is no run at {root}", "no such folder", "moe-probe run MODEL --corpus FILE --out RUN")
    opened = RunDirectory(Trace.open(root), root)
    stored = {name: opened.results[name] for name in opened.results}
    missing = [n for n in ("expert_topics", "layers", "verdicts") if n not in stored]
    if missing:
        raise MoeProbeError(
            f"{root} has no result '{missing[0]}'",
            "a comparison starts from the results of its runs",
            f"moe-probe analyze {quoted(root)}",
        )
    check_stored(root, stored)
    own = stored["expert_topics"].param("label", str)
    label = label or own
    results = stored if label == own else _under(label, opened, stored, say=say)
    return ComparedRun(name or root.resolve().name, opened.manifest, results, label, opened.trace, _settings(root))


def _under(label: str, run: RunDirectory, stored: dict[str, Result], *, say: Say) -> dict[str, Result]:
    """Results under another label than the run's own, by the same tests with the same settings."""
    from moe_probe.experts.explain import CONTEXTS
    from moe_probe.studies.analyses import ANALYSES, AnalysisSettings, Context

    need_column(run.documents, label)
    own = stored["expert_topics"]
    strata = own.param("strata", str) if own.params.get("strata") is not None else None
    strata = own.param("label", str) if strata == label else strata  # within the other label
    permutations = own.param("permutations", int, least=0, most=MOST_PERMUTATIONS)
    alpha = own.param("alpha", float, least=0, most=1)
    settings = AnalysisSettings(by=label, strata=strata, permutations=permutations, alpha=alpha, seed=own.seed or 0)
    context = Context(run.trace, settings)
    started = time.monotonic()
    for analysis in ANALYSES:
        if analysis.name not in ("layers", "expert_topics", *CONTEXTS.values(), "expert_groups", "verdicts"):
            continue
        if analysis.missing(run.trace):
            continue
        try:
            made = analysis.compute(context)
        except MoeProbeError:
            if analysis.essential:
                raise
            continue  # as in a run, where what a corpus does not allow is left out; the table of verdicts says so
        context.done |= {r.name: r for r in (made if isinstance(made, tuple) else (made,))}
    say(f"{label}: analysed in {time.monotonic() - started:.1f} s")
    return {name: r for name, r in stored.items() if name == "sae_quality"} | context.done


def _settings(root: Path) -> dict[str, Any]:
    """Read further settings from run.yaml, where there is one that can be read; files from before had no sections."""
    from moe_probe.recording.run_model import read_settings

    try:
        read = read_settings(root / "run.yaml")
    except MoeProbeError:
        return {}  # runs from an imported trace have none
    flat = read | {"epochs": read.get("sae_epochs")}
    sections = {section: read.get(section) for section, _ in _SETTINGS.values()}
    return {
        name: values.get(field) if isinstance(values := sections[section], dict) else flat.get(field)
        for name, (section, field) in _SETTINGS.items()
    }
