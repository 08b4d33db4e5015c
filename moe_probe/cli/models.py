"""The command `models`: the table of models, and rows of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_probe.cli.console import Console
from moe_probe.cli.options import command
from moe_probe.core.errors import MoeProbeError, UsageError

if TYPE_CHECKING:
    from moe_probe.studies.models_table import ModelRow

#: Formats of the figure.
_FIGURES = (".svg", ".png")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "models",
        "moe-probe models",
        "a row of your own: moe-probe models --add runs/mine --model-id my-model --corpus-note 'my corpus'",
        "as a page: moe-probe models --markdown models.md --figure models.svg",
    )(models)


def models(
    *,
    add: Annotated[
        Path | None,
        typer.Option("--add", metavar="RUN", help="Analysed run whose row is added to --records.", show_default=False),
    ] = None,
    name: Annotated[
        str, typer.Option("--model-id", help="Name of the model of --add [default: that of its trace].", show_default=False)
    ] = "",
    note: Annotated[
        str, typer.Option("--corpus-note", help="What the corpus of --add is, in a few words.", show_default=False)
    ] = "",
    records: Annotated[
        Path, typer.Option("--records", "--out", "-o", help="Folder of your own records, NAME.row.json.")
    ] = Path("models"),
    shipped: Annotated[
        bool, typer.Option("--shipped/--no-shipped", help="Show the records that ship with the package.")
    ] = True,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table as a page.", show_default=False)
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="Draw the figure, as .svg or .png.", show_default=False),
    ] = None,
    console: Console,
) -> None:
    """Print the table of models: which have experts of topics, and how sure that is; add rows of your own (--add)."""
    from moe_probe.core.files import disk_errors, write_text
    from moe_probe.studies.models_table import SHIPPED, answer_sentences, models_lines, models_page, read_rows

    if add is None and (name or note):
        raise UsageError("--model-id and --corpus-note describe a new row", "no run was named", "--add RUN")
    if figure is not None and figure.suffix.lower() not in _FIGURES:
        raise UsageError(f"--figure {figure} is invalid", "figures are .svg or .png", f"--figure {figure.stem}.svg")
    if add is None and records != Path("models") and not records.is_dir():
        raise UsageError(f"there is no folder {records}", "--records names a folder of records", "--add RUN makes it")
    added = None if add is None else _add(add, records, name=name, note=note)
    rows = read_rows(*([SHIPPED] if shipped else []), records)
    if not rows:
        raise MoeProbeError(f"there are no records in {records}", "", "moe-probe models --add RUN")
    written = []
    if figure is not None:
        with disk_errors(figure):
            _draw(rows, figure)
        written.append(figure)
    if markdown is not None:
        with disk_errors(markdown):
            write_text(markdown, models_page(rows, figure=None if figure is None else _address(figure, markdown)))
        written.append(markdown)
    data: dict[str, Any] = {
        "answer": answer_sentences(rows),
        "models": [row.model_dump(mode="json") for row in rows],
        "files": [str(path) for path in [*([] if added is None else [added]), *written]],
    }
    last = [*([] if added is None else [f"Added: {added}"]), *(f"Written: {path}" for path in written)]
    console.result(data, [*models_lines(rows), *([""] if last else []), *last])


def _add(run: Path, records: Path, *, name: str, note: str) -> Path:
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.studies.models_table import add_row, measure_row

    return add_row(measure_row(RunDirectory.open(run), name=name, note=note), records)


def _draw(rows: tuple[ModelRow, ...], path: Path) -> None:
    from moe_probe.core.files import write_whole
    from moe_probe.report.plots import topic_information
    from moe_probe.report.plots.drawing import png_bytes, svg_bytes

    drawn = topic_information(rows)
    content = svg_bytes(drawn) if path.suffix.lower() == ".svg" else png_bytes(drawn)
    write_whole(path, lambda partial: partial.write_bytes(content))


def _address(figure: Path, page: Path) -> str:
    """Address of the figure, as the page links to it."""
    import os

    return Path(os.path.relpath(figure, page.parent)).as_posix()
