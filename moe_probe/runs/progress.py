"""What was done in a run, and what comes next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import run_folder_of
from moe_probe.core.publication import Published
from moe_probe.core.results import Results
from moe_probe.core.text import quoted, some_of
from moe_probe.recording.run_model import model_settings_of
from moe_probe.studies.verdicts import WEAK, grades

if TYPE_CHECKING:
    from moe_probe.core.schema import Manifest


@dataclass(frozen=True)
class RunStep:
    """One step of a run.

    Attributes
    ----------
    name : str
        Command that does it: ``analyze``.
    made : str
        What it made, in words; "" where it is not done.
    command : str
        How it is done, as a line for the terminal; "" where the run does not allow it.
    """

    name: str
    made: str
    command: str


def steps_of(path: Path, manifest: Manifest) -> list[RunStep]:
    """List the steps of a run behind its trace, in their order, done or not.

    Parameters
    ----------
    path : Path
        Run directory or trace.
    manifest : Manifest
        Of the trace.

    Returns
    -------
    list of RunStep
    """
    run = run_folder_of(path)
    names = set(Results(run / "results"))
    found = (path.parent.relative_to(run / "sae").as_posix() for path in (run / "sae").glob("layer_*/width_*/cfg.json"))
    saes = sorted(found)
    activations = {"hidden", "residual", "expert_outputs"} & set(manifest.kept)
    several = len({sae.partition("/")[0] for sae in saes}) < len(saes)
    has_model = model_settings_of(run) is not None

    shown, of_trace = quoted(run), quoted(path if path != run / "trace" else run)

    def step(name: str, words: str, result: str, *, possible: object = True) -> RunStep:
        made = words if result in names else ""
        return RunStep(name, made, f"moe-probe {name} {shown}" if possible else "")

    verdicts = _verdicts(run) if "verdicts" in names else "tables"
    return [
        RunStep(
            "analyze",
            f"{len(names)} tables; {verdicts}" if {"verdicts", "expert_topics"} & names else "",
            f"moe-probe analyze {of_trace}",
        ),
        RunStep("sae train", some_of(saes, 6) if saes else "", f"moe-probe sae train {shown}" if activations else ""),
        step("sae eval", "quality of SAEs", "sae_quality", possible=saes),
        step("label", "labels of features", "features", possible=saes),
        step("match", "experts beside features", "matches", possible="features" in names),
        step("tree", "SAEs of rising width joined", "tree", possible=several and "features" in names),
        step("ablate", "losses without experts or features", "ablation", possible=has_model and "verdicts" in names),
        step("cost", "operations, seconds and bytes", "costs", possible=names),
        RunStep(
            "report", "report.html, report.md" if _has_report(run) else "", f"moe-probe report {shown}" if names else ""
        ),
    ]


def next_command(path: Path, manifest: Manifest) -> str:
    """Say what to do next with a run.

    Parameters
    ----------
    path : Path
        Run directory or trace.
    manifest : Manifest
        Of the trace.

    Returns
    -------
    str
        A command; for a run in which all is done, the report to open.
    """
    steps = {step.name: step for step in steps_of(path, manifest)}
    run = run_folder_of(path)
    if manifest.shard_of is not None:
        return f"moe-probe merge {quoted(path)} OTHER_PARTS --out TRACE"
    # what is half done comes before the report, what was not begun after it
    begun = ("analyze", *(("label", "match") if steps["sae train"].made else ()), "report", "sae train", "ablate")
    for step in (steps[name] for name in begun):
        if step.command and not step.made:
            return step.command
    return f"open {quoted(run / 'report.html')}"


def _verdicts(run: Path) -> str:
    try:
        table = Results(run / "results")["verdicts"].table
    except MoeProbeError:
        return "the verdicts cannot be read"
    weak = (table["verdict"] == "none") & (grades(table) == WEAK)
    counts = table["verdict"].mask(weak, "weak").value_counts(sort=False)
    return "verdicts: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())


def _has_report(run: Path) -> bool:
    """Tell whether there is a report that is no older than the results."""
    report, published = run / "report.html", Published.of(run / "results")
    if not report.exists():
        return False
    written = report.stat().st_mtime
    return all(published.path(name).stat().st_mtime <= written for name in published.names(".json"))
