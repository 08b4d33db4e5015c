"""The command that compares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import Out, Seed, command
from moe_probe.core.errors import UsageError
from moe_probe.core.files import OutputKind, check_output_folder

if TYPE_CHECKING:
    from moe_probe.studies.compare import Comparison


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "compare",
        "moe-probe compare runs/early runs/demo --out runs/compared",
        "Two labels of one run: moe-probe compare runs/demo --by topic --by register --out runs/labels",
        "SAEs of several widths: moe-probe compare runs/demo --out runs/saes",
    )(compare)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run directories; the others are compared with the first.", show_default=False
        ),
    ],
    *,
    out: Out,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            help="Label column of the documents (repeat to compare two) [default: the one that the runs were made for].",
            show_default=False,
        ),
    ] = None,
    names: Annotated[
        str,
        typer.Option(
            "--names",
            help="Names for what is compared, separated by commas [default: the folders, or the labels].",
            show_default=False,
        ),
    ] = "",
    notebook: Annotated[bool, typer.Option("--notebook/--no-notebook", help="Write compare.ipynb and compare.html.")] = True,
    resamples: Annotated[int, typer.Option("--resamples", min=99, help="Bootstrap resamples.")] = 1000,
    permutations: Annotated[
        int, typer.Option("--permutations", min=19, help="Permutations behind the null of matching.")
    ] = 199,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier comparison.")] = False,
    seed: Seed = 0,
    console: Console,
) -> None:
    """Ask the same questions of several runs: what changed, by how much, which expert is which; as tables and a notebook."""
    from moe_probe.core.files import disk_errors
    from moe_probe.studies.compare import TABLES, compare_runs

    if notebook:
        from moe_probe.report.notebook import need_notebook

        need_notebook()  # before anything is computed
    written = [out / f"{name}.{ending}" for name in TABLES for ending in ("parquet", "json")]
    written += [out / "compare.ipynb", out / "compare.html"]
    _prepare(out, force=force)
    named = [name.strip() for name in names.split(",")] if names else []
    found = compare_runs(
        runs, by=tuple(by or ()), names=named, resamples=resamples, permutations=permutations, seed=seed, say=console.say
    )
    with disk_errors(out):
        if force:
            for path in written:
                path.unlink(missing_ok=True)
        found.save(out)
    files = [out / f"{r.name}.parquet" for r in found.results]
    if notebook:
        files += _notebook(found, runs, tuple(by or ()), named, out, seed=seed, console=console)
    _tell(found, out, files, console)


def _prepare(out: Path, *, force: bool) -> None:
    kind = OutputKind("a comparison", "comparison_runs.parquet", "--force to replace it, or another --out")
    check_output_folder(out, "force" if force else "new", kind)
    if (out / "run.yaml").exists():
        raise UsageError(f"{out} is a run", "its results would be mixed with a comparison", "another --out")


def _notebook(
    found: Comparison, runs: list[Path], by: tuple[str, ...], names: list[str], out: Path, *, seed: int, console: Console
) -> list[Path]:
    import os

    from moe_probe.report.notebook import write_notebook

    template = (
        "compare_labels"
        if "comparison_experts" in found
        else "compare_runs"
        if "comparison_changes" in found
        else "compare_saes"
    )
    places = [Path(os.path.relpath(run, out)).as_posix() for run in runs]  # paths of this machine stay out of it
    console.say("running the notebook")
    values: dict[str, Any] = {"root": ".", "runs": places, "by": list(by), "names": names, "tables": ".", "seed": seed}
    return write_notebook(template, values, out / "compare.ipynb", title=" against ".join(found.sides))


def _tell(found: Comparison, out: Path, files: list[Path], console: Console) -> None:
    changed = found.table("comparison_changes").query("changed") if "comparison_changes" in found else None
    differences = found.table("comparison_differences")
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
    console.result(data, "\n".join([*found.headlines, *notes, last]))
