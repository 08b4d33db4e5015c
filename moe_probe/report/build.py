"""Write a report's files: HTML with everything inside, Markdown beside figures as PNG, SVG and PDF."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.files import disk_errors, write_text, write_whole
from moe_probe.core.generation import read_together
from moe_probe.core.lock import locked
from moe_probe.core.progress import track
from moe_probe.core.text import printable, quoted, sentences
from moe_probe.recording.trace import Trace
from moe_probe.report import links, svg
from moe_probe.report.compose import SECTIONS, compose
from moe_probe.report.content import Bar, Cards, Facts, Picture, Report, Section
from moe_probe.report.glossary import anchor_of, explained, question_mark
from moe_probe.report.plots import drawing
from moe_probe.report.plots.drawing import FigureFiles, figure_files

if TYPE_CHECKING:
    from jinja2 import Environment


#: Faces of the report.
FORMATS = ("html", "md")


@dataclass(frozen=True)
class ReportOptions:
    """What a report has, and where it goes.

    Attributes
    ----------
    sections : tuple of str
        Sections to write, by name (`moe_probe.report.compose.SECTIONS`); empty: all.
    title : str, optional
        In place of the one that names the model.
    out : Path, optional
        Folder for the files; None: the run's own.
    formats : tuple of str
        Of "html" and "md".
    appendix : bool
        Write the page once more, with all folds open, as ``report_appendix.html``: for printing everything.
    figures : tuple of str, optional
        Files of each figure: of "png", "svg" and "pdf"; Markdown always has "png". None: all beside Markdown, none without.
    """

    sections: tuple[str, ...] = ()
    title: str | None = None
    out: Path | None = None
    formats: tuple[str, ...] = FORMATS
    appendix: bool = False
    figures: tuple[str, ...] | None = None

    @property
    def figure_kinds(self) -> tuple[str, ...]:
        """Files that are written of each figure."""
        chosen = self.figures if self.figures is not None else drawing.WRITTEN if "md" in self.formats else ()
        return tuple(kind for kind in drawing.KINDS if kind in chosen or (kind == "png" and "md" in self.formats))

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        for name in self.figures or ():
            if name not in drawing.KINDS:
                raise UsageError(f"there is no format of figures '{name}'", "they are png, svg and pdf", "--figures svg,pdf")
        for name in self.formats:
            if name not in FORMATS:
                raise UsageError(f"there is no format '{name}'", did_you_mean(name, FORMATS), "--format html")
        if not self.formats:
            raise UsageError("no format was chosen", "nothing would be written", "--format html")
        if self.appendix and "html" not in self.formats:
            raise UsageError("--appendix needs the HTML page", "only Markdown was chosen", "--format html,md")
        if self.title is not None and not self.title.strip():
            raise UsageError("the title is empty", "a page needs one", 'omit --title, or pass --title "My model"')


def _written(run: str | Path, options: ReportOptions | None = None) -> Path | None:
    """Name the folder that a report is written to; None where there is no run."""
    return (options and options.out) or Path(run) if Path(run).is_dir() else None


@locked(_written)
def write_report(run: str | Path, options: ReportOptions | None = None) -> list[Path]:
    """Write ``report.html``; ``report.md`` with its files in ``report/``; and each figure as PNG, SVG and PDF.

    Parameters
    ----------
    run : str or Path
        Run directory with ``trace/`` and ``results/``.
    options : ReportOptions, optional
        What to write, and where.

    Returns
    -------
    list of Path
        The files written: figures, then pages.

    Raises
    ------
    MoeProbeError
        When trace or results are missing, results of one command come from different runs of it, a section does not exist,
        or the disk refuses.
    """
    root, chosen = Path(run), options or ReportOptions()
    if not root.is_dir():
        raise MoeProbeError(f"there is no run at {root}", "no such folder", "moe-probe run MODEL --corpus FILE --out RUN")
    trace = Trace.open(root)
    results = read_together(root / "results")
    if not results:
        raise MoeProbeError(
            f"{root} has no results", "a report shows what was analysed", f"moe-probe analyze {quoted(root)}"
        )
    import matplotlib

    # a notebook should not show the figures of a report, which are files; names with a $ in them are no formulas
    with matplotlib.rc_context({"interactive": False, "text.parse_math": False}):
        report = _printable(compose(trace, results, only=chosen.sections, title=chosen.title))
        pictures = [p for s in report.sections for p in s.blocks if isinstance(p, Picture)]
        tracked = track(pictures, "report", unit="figures", name=lambda p: p.name)
        in_page = "html" in chosen.formats
        images = {
            p.name: figure_files(p.figure, kinds=chosen.figure_kinds, in_page=in_page and not p.inline) for p in tracked
        }
    pages = {}
    if "html" in chosen.formats:
        pages["report.html"] = render_html(report, images)
    if chosen.appendix:
        pages["report_appendix.html"] = render_html(report, images, unfolded=True)
    if "md" in chosen.formats:
        pages |= markdown_files(report)
    out = chosen.out or root
    with disk_errors(out):
        return _write(out, images, pages)


def _write(root: Path, images: dict[str, FigureFiles], pages: dict[str, str]) -> list[Path]:
    earlier = any((root / page).is_file() for page in ("report.html", "report.md"))
    files = []
    for name, image in images.items():
        for kind in drawing.KINDS:
            path = root / "figures" / f"{name}.{kind}"
            if kind in image.files:
                write_whole(path, partial(Path.write_bytes, data=image.files[kind]))
                files.append(path)
            elif image.files and earlier:  # elsewhere a file of this name is somebody's own
                path.unlink(missing_ok=True)  # the new files would not fit beside it
    for name, text in pages.items():
        write_text(root / name, text)
        files.append(root / name)
    for name in _outdated(pages) if earlier else ():
        (root / name).unlink(missing_ok=True)
    return files


def _outdated(pages: Mapping[str, str]) -> set[str]:
    """Name what an earlier report may have left beside these pages: it would say what they no longer say."""
    of_page = {"report_appendix.html"} if "report.html" in pages else set[str]()
    of_markdown = {f"report/{key}.md" for key in SECTIONS} if "report.md" in pages else set[str]()
    return (of_page | of_markdown) - pages.keys()


def render_html(report: Report, images: Mapping[str, FigureFiles], *, unfolded: bool = False) -> str:
    """Render one page that fetches nothing and runs nothing but its own script; all text is escaped.

    Parameters
    ----------
    report : Report
    images : mapping of str to FigureFiles
        By the name of their picture.
    unfolded : bool
        Open all folds.

    Returns
    -------
    str
    """
    encoded = {name: [base64.b64encode(part).decode() for part in (f.light, f.dark)] for name, f in images.items()}
    templates = environment(autoescape=True)
    return templates.get_template("report.html.j2").render(
        report=report, images=encoded, opened=" open" if unfolded else "", **style_and_script(templates, "page")
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
    """Render the page of the report in Markdown; figures are files in ``figures/``."""
    return _markdown(report=report, sections=report.sections, whole=False, up="")


def markdown_files(report: Report) -> dict[str, str]:
    """Render the same content as Markdown: a page to read, and a file for each section with everything in it.

    Parameters
    ----------
    report : Report

    Returns
    -------
    dict
        Texts by path: ``report.md`` and ``report/SECTION.md``.
    """
    files = {
        f"report/{section.key}.md": _markdown(report=report, sections=(section,), whole=True, up="../")
        for section in report.sections
        if section.shown is not None
    }
    return {"report.md": render_markdown(report), **files}


def _markdown(**content: Any) -> str:
    text = environment(autoescape=False).get_template("report.md.j2").render(**content)
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
    templates.filters["explained"] = explained
    templates.filters["explained_in_heading"] = question_mark
    templates.filters["inside"] = inside
    templates.globals["nothing_seen"] = set
    templates.globals["anchor_of"] = anchor_of
    templates.filters["data_url"] = lambda text: f"data:text/plain;charset=utf-8,{quote(text)}"
    templates.tests["is_a"] = lambda block, name: type(block).__name__ == name
    return templates


def markdown_text(text: str) -> str:
    """Escape what Markdown or HTML inside Markdown would act on: labels and tokens are not markup."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)


#: Kinds of facts that are counted where they are folded.
_COUNTED = ("formulas", "sources", "glossary")


def inside(section: Section) -> str:
    """Say what is under the fold of a section: ``2 tables, 16 cards, method and limits``.

    Parameters
    ----------
    section : Section

    Returns
    -------
    str
        Empty where nothing is.
    """
    counts = Counter(type(block).__name__ for block in section.folded)
    cards = sum(len(block.cards) for block in section.folded if isinstance(block, Cards))
    kinds = (("Picture", "figure", 0), ("Table", "table", 0), ("Cards", "card", cards), ("Tree", "tree", 0))
    parts = [f"{n} {noun}{'s' if n > 1 else ''}" for kind, noun, many in kinds if (n := many or counts[kind])]
    facts = {block.kind: len(block.items) for block in section.folded if isinstance(block, Facts)}
    named = [f"{facts[kind]} {kind if facts[kind] != 1 else kind[:-1]}" for kind in _COUNTED if kind in facts]
    parts += [name.replace("glossary", "terms") for name in named]
    if facts.keys() - set(_COUNTED) or counts["str"] or counts["Verbatim"] or section.story:
        parts.append("details")
    if section.how or section.limits:
        parts.append("method and limits")
    text = ", ".join(parts)
    return text[:1].upper() + text[1:]


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
