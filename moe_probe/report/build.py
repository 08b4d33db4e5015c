"""Write a report's files: HTML with everything inside, Markdown beside figures as PNG, SVG and PDF."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import disk_errors, write_text, write_whole
from moe_probe.core.generation import read_together
from moe_probe.core.lock import locked
from moe_probe.core.progress import track
from moe_probe.core.text import printable
from moe_probe.recording.trace import Trace
from moe_probe.report import links, svg
from moe_probe.report.cells import sentences
from moe_probe.report.compose import compose
from moe_probe.report.content import Bar, Picture, Report
from moe_probe.report.plots.drawing import FigureFiles, figure_files

if TYPE_CHECKING:
    from jinja2 import Environment


@locked(lambda run: Path(run) if Path(run).is_dir() else None)
def write_report(run: str | Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and every figure as PNG, SVG and PDF from a run's trace and results.

    Parameters
    ----------
    run : str or Path
        Run directory with ``trace/`` and ``results/``.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    MoeProbeError
        When trace or results are missing, results of one command come from different runs of it, or the disk refuses.
    """
    root = Path(run)
    if not root.is_dir():
        raise MoeProbeError(f"there is no run at {root}", "no such folder", "moe-probe run MODEL --corpus FILE --out RUN")
    trace = Trace.open(root)
    results = read_together(root / "results")
    if not results:
        raise MoeProbeError(f"{root} has no results", "a report shows what was analysed", f"moe-probe analyze {root}")
    import matplotlib

    # a notebook should not show the figures of a report, which are files; names with a $ in them are no formulas
    with matplotlib.rc_context({"interactive": False, "text.parse_math": False}):
        report = _printable(compose(trace, results))
        pictures = [p for s in report.sections for p in s.blocks if isinstance(p, Picture)]
        tracked = track(pictures, "report", unit="figures", name=lambda p: p.name)
        images = {p.name: figure_files(p.figure, in_page=not p.inline) for p in tracked}
    pages = {"report.html": render_html(report, images), "report.md": render_markdown(report)}
    with disk_errors(root):
        return _write(root, images, pages)


def _write(root: Path, images: dict[str, FigureFiles], pages: dict[str, str]) -> list[Path]:
    files = []
    for name, image in images.items():
        for kind, data in image.files.items():
            path = root / "figures" / f"{name}.{kind}"
            write_whole(path, partial(Path.write_bytes, data=data))
            files.append(path)
    for name, text in pages.items():
        write_text(root / name, text)
        files.append(root / name)
    return files


def render_html(report: Report, images: Mapping[str, FigureFiles]) -> str:
    """Render one page that fetches nothing and runs nothing but its own script; all text is escaped.

    Parameters
    ----------
    report : Report
    images : mapping of str to FigureFiles
        By the name of their picture.

    Returns
    -------
    str
    """
    encoded = {name: [base64.b64encode(part).decode() for part in (f.light, f.dark)] for name, f in images.items()}
    templates = environment(autoescape=True)
    return templates.get_template("report.html.j2").render(
        report=report, images=encoded, **style_and_script(templates, "page")
    )


def style_and_script(templates: Environment, name: str) -> dict[str, Any]:
    """Read what is written into a page, with the hashes that its policy names.

    A browser runs and applies these very texts only: markup that slipped through the escaping would be dead.

    Parameters
    ----------
    templates : Environment
    name : str
        Of the files ``NAME.css`` and ``NAME.js`` among the templates.

    Returns
    -------
    dict
        ``css``, ``js`` and ``hashes`` of both (SHA-256 in base64, as a Content-Security-Policy takes them).
    """
    import hashlib

    inside = {kind: templates.get_template(f"{name}.{kind}").render(drawn=svg.colours()) for kind in ("css", "js")}
    hashes = {kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in inside.items()}
    return {**inside, "hashes": hashes}


def render_markdown(report: Report) -> str:
    """Render the same content as Markdown; figures are files in ``figures/``."""
    text = environment(autoescape=False).get_template("report.md.j2").render(report=report)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip() + "\n"


def environment(*, autoescape: bool) -> Environment:
    """Open the templates of reports and inspections, with the filters that they use."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=PackageLoader("moe_probe.report"),
        autoescape=autoescape,  # noqa: S701 (Markdown is escaped by its own filter, `md`)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["md"] = lambda text: markdown_text(links.plain(text))
    templates.filters["cell"] = links.plain
    templates.filters["rich"] = lambda text: Markup(links.html(text))  # noqa: S704 (escaped there)
    templates.filters["axis"] = lambda table, column: Markup(svg.axis_of(table, column))  # noqa: S704 (numbers alone)
    templates.filters["line"] = lambda cell: Markup(svg.interval(cell)) if isinstance(cell, Bar) else ""  # noqa: S704 (numbers alone)
    templates.filters["sentences"] = sentences
    templates.filters["data_url"] = lambda text: f"data:text/plain;charset=utf-8,{quote(text)}"
    templates.tests["is_a"] = lambda block, name: type(block).__name__ == name
    return templates


def markdown_text(text: str) -> str:
    """Escape what Markdown or HTML inside Markdown would act on: labels and tokens are not markup."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)


def _printable(report: Report) -> Report:
    """Replace control characters by their codes in every text of a report."""
    from dataclasses import fields, is_dataclass, replace

    def clean(value: object) -> object:
        if isinstance(value, str):
            return printable(value)
        if isinstance(value, tuple):
            return tuple(clean(v) for v in value)
        if isinstance(value, dict):
            return {clean(k): clean(v) for k, v in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            kept = {f.name: clean(getattr(value, f.name)) for f in fields(value) if f.name not in ("figure", "inline")}
            return replace(value, **kept)
        return value

    cleaned = clean(report)
    assert isinstance(cleaned, Report)
    return cleaned
