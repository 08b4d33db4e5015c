"""The command `compare`: how runs differ in model, checkpoint, corpus, label, seed or SAE width."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import Out, Seed, command
from moe_probe.core.errors import UsageError
from moe_probe.core.files import OutputKind, check_output_folder, disk_errors
from moe_probe.core.lock import locked
from moe_probe.core.publication import settle
from moe_probe.core.settings import Settings, setting
from moe_probe.studies.compare.settings import ComparisonSettings

if TYPE_CHECKING:
    from moe_probe.studies.compare import Comparison


#: What the command writes.
COMPARISON = OutputKind("a comparison", "comparison_runs.parquet", "--force to replace it, or another --out")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "compare",
        "moe-probe compare runs/early runs/demo --out runs/compared",
        "Two labels of one run: moe-probe compare runs/demo --by topic --by register --out runs/labels",
        "SAEs of several widths: moe-probe compare runs/demo --out runs/saes",
    )(compare)


class CompareOptions(Settings):
    """Options of the command."""

    by: tuple[str, ...] = setting(
        (), "label column of the documents (repeat to compare two); by default the one that the runs were made for"
    )
    names: str = setting("", "names for what is compared, separated by commas; by default the folders, or the label columns")
    notebook: bool = setting(True, "write compare.ipynb and compare.html")
    resamples: int = setting(ComparisonSettings.resamples, "bootstrap resamples", ge=99)
    permutations: int = setting(ComparisonSettings.permutations, "permutations behind the null of the alignment", ge=19)

    def list_of_names(self) -> list[str]:
        """Names, one for each run or label column; empty where none are given."""
        return [name.strip() for name in self.names.split(",")] if self.names else []


@locked(lambda *, out, **_: out, COMPARISON)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run directories; the others are compared with the first.", show_default=False
        ),
    ],
    *,
    out: Out,
    options: CompareOptions,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier comparison.")] = False,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Ask the same questions of several runs: what changed, by how much, which expert is which; as tables and a notebook."""
    from moe_probe.studies.compare import compare_runs

    if options.notebook:
        from moe_probe.report.notebook import need_notebook

        need_notebook()  # before anything is computed
    _prepare(out, force=force)
    by, names = options.by, options.list_of_names()
    comparison = compare_runs(
        runs,
        by=by,
        names=names,
        resamples=options.resamples,
        permutations=options.permutations,
        seed=seed,
        say=console.say,
    )
    with disk_errors(out):
        comparison.save(out)
    files = [out / f"{r.name}.parquet" for r in comparison.results]
    if options.notebook:
        console.say("running the notebook")
        places = [Path(os.path.relpath(run, out)).as_posix() for run in runs]  # paths of this machine stay out of it
        values: dict[str, Any] = {"root": ".", "runs": places, "by": list(by), "names": names, "tables": ".", "seed": seed}
        files += _notebook(comparison, values, out)
    _tell(comparison, out, files, console)


def _prepare(out: Path, *, force: bool) -> None:
    with disk_errors(out):
        settle(out)  # an interrupted comparison is finished or undone, so that the same command goes again
    check_output_folder(out, "force" if force else "new", COMPARISON)
    if (out / "run.yaml").exists():
        raise UsageError(f"{out} is a run", "its results would be mixed with a comparison", "another --out")


def _notebook(comparison: Comparison, values: dict[str, Any], out: Path) -> list[Path]:
    from moe_probe.report.notebook import write_notebook

    if "comparison_experts" in comparison:
        template = "compare_labels"
    else:
        template = "compare_runs" if "comparison_changes" in comparison else "compare_saes"
    return write_notebook(template, values, out / "compare.ipynb", title=" against ".join(comparison.sides))


def _tell(found: Comparison, out: Path, files: list[Path], console: Console) -> None:
    changed = found["comparison_changes"].table.query("changed") if "comparison_changes" in found else None
    differences = found["comparison_differences"].table
    data = {
        "sides": found.sides,
        "headlines": found.headlines,
        "notes": found.notes,
        "files": [str(f) for f in files],
        "changed": [] if changed is None else changed.to_dict("records"),
        "differences": differences[differences["beyond"]].to_dict("records"),
    }
    page = out / "compare.html"
    last = f"Page: {page}. Tables: {out}" if page in files else f"Tables: {out}/comparison_*.parquet"
    notes = [f"note: {note}" for note in found.notes]
    console.result(data, [*found.headlines, *notes, last])
