"""Runs from folders, under the labels asked for, ready to be compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.progress import Say, silent
from moe_probe.core.results import Result
from moe_probe.recording.trace import Trace
from moe_probe.studies.compare import Comparison, Side, compare_sides

#: Settings of run.yaml that decide numbers and are not known from elsewhere.
_SETTINGS = ("limit", "max_length", "sae_epochs", "ablate")


def compare_runs(
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
        Run directories; the first is what the others are held against.
    by : sequence of str
        Labels of the documents. None: those that the runs were made for. One: all runs under it. Several: every run
        under every label.
    names : sequence of str
        What the sides are called; default: the folders, the labels, or both.
    resamples, permutations, seed : int
        As `moe_probe.studies.compare.compare_sides`.
    say : callable
        Told, in a sentence, what is being done.

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
    return compare_sides(
        open_sides(runs, by=by, names=names, say=say), resamples=resamples, permutations=permutations, seed=seed, say=say
    )


def open_sides(
    runs: Sequence[str | Path],
    *,
    by: Sequence[str] = (),
    names: Sequence[str] = (),
    say: Say = silent,
) -> list[Side]:
    """Open runs as sides of a comparison; what a run does not hold under a label is computed from its trace.

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
            f"--labels with {len(wanted)} names, separated by commas",
        )
    return [open_side(path, label=label, name=name, say=say) for (path, label), name in zip(wanted, called, strict=True)]


def _names(paths: list[Path], by: Sequence[str]) -> list[str]:
    resolved = [path.resolve() for path in paths]
    plain = [path.name for path in resolved]
    runs = plain if len(set(plain)) == len(plain) else [f"{path.parent.name}/{path.name}" for path in resolved]
    if len(by) < 2:
        return runs
    return list(by) if len(runs) == 1 else [f"{run}, {label}" for run in runs for label in by]


def open_side(run: str | Path, *, label: str | None = None, name: str | None = None, say: Say = silent) -> Side:
    """Open one run under a label.

    Parameters
    ----------
    run : str or Path
    label : str, optional
        Default: the one that the run was made for.
    name : str, optional
        Default: the folder's name.
    say : callable

    Raises
    ------
    MoeProbeError
        When there is no run, it has no results, or its documents have no such label.
    """
    root = Path(run)
    if not root.is_dir():
        raise MoeProbeError(f"there is no run at {root}", "no such folder", "moe-probe run MODEL --corpus FILE --out RUN")
    trace = Trace.open(root)
    stored = {p.stem: Result.load(root / "results", p.stem) for p in sorted((root / "results").glob("*.parquet"))}
    missing = [n for n in ("expert_topics", "layers", "verdicts") if n not in stored]
    if missing:
        raise MoeProbeError(
            f"{root} holds no result '{missing[0]}'",
            "a comparison starts from the results of its runs",
            f"moe-probe analyze {root}",
        )
    own = str(stored["expert_topics"].params["label"])
    wanted = label or own
    results = stored if wanted == own else _under(wanted, own, trace, stored, say=say)
    return Side(name or root.resolve().name, trace.manifest, results, wanted, trace, _settings(root))


def _under(label: str, own: str, trace: Trace, stored: dict[str, Result], *, say: Say) -> dict[str, Result]:
    """Results under another label than the run's own, by the same tests with the same settings."""
    from moe_probe.experts.explain import CONTEXTS
    from moe_probe.studies.analyses import ANALYSES, Context, Settings

    if label not in trace.documents.columns:
        raise MoeProbeError(
            f"documents have no column '{label}'",
            did_you_mean(label, list(trace.documents.columns)),
            "name a label column of the corpus",
        )
    params = stored["expert_topics"].params
    strata = params["strata"] if params["strata"] != label else own  # tests within the other of the two labels
    settings = Settings(
        by=label,
        strata=strata,
        permutations=int(params["permutations"]),
        alpha=float(params["alpha"]),
        seed=stored["expert_topics"].seed or 0,
    )
    context = Context(trace, settings)
    started = time.monotonic()
    for analysis in ANALYSES:
        if analysis.name not in ("layers", "expert_topics", *CONTEXTS.values(), "expert_groups", "verdicts"):
            continue
        if analysis.needs == "routing" and "routing" not in trace.manifest.kept:
            continue
        try:
            found = analysis.compute(context)
        except MoeProbeError:
            if analysis.essential:
                raise
            continue  # as in a run, where what a corpus does not allow is left out; the table of verdicts tells of it
        context.done |= {r.name: r for r in (found if isinstance(found, tuple) else (found,))}
    say(f"{label}: analysed in {time.monotonic() - started:.1f} s")
    return {name: r for name, r in stored.items() if name == "sae_quality"} | context.done


def _settings(root: Path) -> dict[str, Any]:
    """Further settings from run.yaml, where there is one that can be read."""
    import yaml

    try:
        read = yaml.safe_load((root / "run.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}  # runs from an imported trace have none
    return {name.replace("_", " "): read.get(name) for name in _SETTINGS} if isinstance(read, dict) else {}
