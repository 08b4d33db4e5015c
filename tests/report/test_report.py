"""The report: complete, self-contained, safe with hostile text, the same numbers in both faces, no torch."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.faces import html_of, markdown_of

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.report import ReportOptions, write_report
from moe_probe.report.build import markdown_text, render_html, render_markdown
from moe_probe.report.cells import number, probability
from moe_probe.report.compose import compose
from moe_probe.report.content import Node, Picture, Report, Section, Table, Tree
from moe_probe.report.sections.alerts import alerts_section
from moe_probe.runs.run import Run
from moe_probe.studies.analyses import AnalysisSettings, analyze
from moe_probe.testing import PlantedExpert, planted_results, planted_routing, planted_trace

EVIL = "<script>alert(1)</script>|*x* [y](javascript:z)$\\frac{1$\x1b[31m"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, quick_analyses_drawn: None) -> Path:
    root = tmp_path_factory.mktemp("run")
    trace = planted_trace(
        root / "trace",
        planted=(PlantedExpert(1, 5, "topic", 2),),
        topics=4,
        documents_per_topic=24,
        tokens=60,
        n_layers=2,
        num_experts=8,
        lift=3.0,
    )
    analyze(trace, root / "results", settings=AnalysisSettings(permutations=199))
    write_report(root)
    return root


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run with every table of features and causes, drawn at random."""
    root = tmp_path_factory.mktemp("planted")
    trace = planted_trace(root / "trace", planted=(), topics=3, documents_per_topic=6, tokens=20, n_layers=2, num_experts=8)
    planted_results(trace, root / "results")
    write_report(root)
    return root


class Page(HTMLParser):
    """Tags, what they fetch, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.details: list[str] = []
        self.more = self._in_cell = False
        self.feed(re.sub(r"<svg.*?</svg>", "", text, flags=re.S))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(v) for k, v in attrs if k in ("src", "href")]
        if tag == "td":
            self.cells.append("")
            self._in_cell = True
        if tag == "tr":
            self.more = ("class", "more") in attrs
        if tag == "td" and self.more:
            self.details.append(self.cells.pop())
            self._in_cell = False

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._in_cell = self.more = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data
        elif self.more:
            self.details[-1] += data


def test_page_stands_alone_and_opens_with_the_verdicts(run: Path) -> None:
    text = (run / "report.html").read_text()
    page = Page(text)
    assert len(text) < 3_000_000
    assert page.fetched and all(
        source.startswith(("data:image/png;base64,", "data:text/plain", "#")) for source in page.fetched
    )
    anchors, ids = {source[1:] for source in page.fetched if source.startswith("#")}, re.findall(r' id="(.*?)"', text)
    assert anchors <= set(ids) and len(ids) == len(set(ids))
    assert {"expert-1-5", "layers"} <= anchors and ">Evidence: Layers</a>" in text
    opening = ["<h2>Do topics", "<figure>", "What are experts mostly about?", "One passage per topic", "Verdicts: one row"]
    assert [text.index(part) for part in opening] == sorted(text.index(part) for part in opening)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[:2] == ["Do topics have experts of their own?", "Read with this in mind"]
    assert re.findall(r'<tr class="(expert|group|none|weak|feature only)"', text) == ["expert", "none", "none", "none"]
    assert not re.search(r'\sstyle="|\son[a-z]+="', text)  # the page's policy would not apply them


@pytest.mark.parametrize("made", ["run", "planted"])
def test_every_figure_says_what_it_shows_and_how_it_can_mislead(made: str, run: Path, planted: Path) -> None:
    root = {"run": run, "planted": planted}[made]
    report = compose(Trace.open(root), {p.stem: Result.load(p.parent, p.stem) for p in (root / "results").glob("*.parquet")})
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                assert block.alt.endswith(".") and len(block.alt) > 40 and block.caption, block.name
                assert section.how and section.limits, section.title
                assert len(block.caption.split()) <= 50, block.name
            if isinstance(block, Table):
                assert block.heading and all(len(row) == len(block.columns) for row in block.rows), section.title
                assert len(block.note.split()) <= 50, block.heading


def test_both_faces_hold_the_same_tables(run: Path) -> None:
    page = Page(html_of(run))
    cells = [c.strip() for c in page.cells]
    markdown = markdown_of(run)
    rows = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith("|---")]
    plain = [re.sub(r"\\(.)", r"\1", c).strip() for row in rows for c in re.split(r"(?<!\\)\|", row)[1:-1]]
    missing = [c for c in cells if c.replace("&amp;", "&") not in plain]
    assert len(cells) > 50 and not missing
    stories = re.sub(r"\s|\\", "", markdown)
    assert len(page.details) == 4 and all(
        re.sub(r"\s", "", html.escape(text, quote=False)) in stories for text in page.details
    )
    for path in (run / "report.md", *(run / "report").glob("*.md")):
        for name in re.findall(r"\]\(((?:\.\./)?(?:figures|report).*?)\)", path.read_text()):
            assert (path.parent / name).stat().st_size > 100


def verdict_rows(run: Path, face: str) -> dict[str, dict[str, str]]:
    """Read the table of verdicts as HTML or Markdown shows it."""
    text = re.sub(r"<svg.*?</svg>", "", html_of(run) if face == "html" else markdown_of(run), flags=re.S)
    if face == "md":
        lines = [
            [re.sub(r"\\(.)", r"\1", c).strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in text.splitlines()
            if line.startswith("|")
        ]
        start = next(i for i, line in enumerate(lines) if line[:2] == ["topic", "verdict"])
        heads, rows = lines[start], lines[start + 2 :]
    else:
        table = re.search(r'<table id="[^"]*" class="verdicts">.*?</table>', text, re.S)
        assert table is not None
        heads = re.findall(r"<th scope=\"col\"><button type=\"button\">(.*?)</button>", table[0])
        rows = [
            [html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.S)]
            for row in re.findall(r'<tr class="(?!more).*?">(.*?)</tr>', table[0], re.S)
        ]
    n = len(pd.read_parquet(run / "results" / "verdicts.parquet"))
    return {row[0]: dict(zip(heads, row, strict=True)) for row in rows[:n]}


@pytest.mark.parametrize("face", ["html", "md"])
@pytest.mark.parametrize("made", ["run", "planted"])
def test_verdicts_carry_the_numbers_of_the_table(made: str, face: str, run: Path, planted: Path) -> None:
    root = {"run": run, "planted": planted}[made]
    shown = verdict_rows(root, face)
    table = pd.read_parquet(root / "results" / "verdicts.parquet")
    assert sorted(shown) == sorted(table["topic"])
    for row in table.to_dict("records"):
        cells = shown[row["topic"]]
        weak = row["verdict"] == "none" and row["grade"] == "weak"
        assert cells["verdict"] == ("weak: real but small" if weak else row["verdict"])
        lift = [float(x) for x in re.findall(r"[\d.]+", cells["lift [95 %]"])]
        assert lift == pytest.approx([2 ** row[c] for c in ("log2_lift", "ci_low", "ci_high")], abs=0.0051)
        assert float(cells["q"]) == pytest.approx(row["q_value"], rel=0.5, abs=0.0005)
        assert cells["unit"] == f"layer {row['layer']}, expert {row['expert']}"
        if "feature AUROC" in cells:
            assert float(cells["feature AUROC"]) == pytest.approx(row["auroc_feature"], abs=0.0051)
            rise = re.fullmatch(r"(\S+) \(others (\S+)\); (.*)", cells["loss without the unit"])
            assert rise and rise[3] == row["causal"], "the unit is the row's, so that it is not named again"
            ablation = pd.read_parquet(root / "results" / "ablation.parquet").set_index(["unit", "topic"])
            own = ablation.loc[(row["ablation_unit"], row["topic"])]
            for text, nats in zip(
                (rise[1], rise[2]), (own["delta_nats"], own["delta_nats"] - own["beyond_others"]), strict=True
            ):
                assert float(text.replace("−", "-")) == pytest.approx(nats, abs=0.00051)


def test_answers_say_what_the_verdicts_say(run: Path) -> None:
    for face in ("html", "md"):
        assert "1 of 4 topics has an expert of its own: topic-2." in (run / f"report.{face}").read_text()


def test_run_plot_draws_every_figure_of_the_report(planted: Path) -> None:
    assert len(list((planted / "figures").glob("*.png"))) == len(repr(Run.open(planted).plot).split(","))


def test_formats_of_figures_are_chosen(planted: Path, tmp_path: Path) -> None:
    """PNG where Markdown shows it; no other files of an earlier report stay beside the new ones."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "topics.svg").write_text("of an earlier report")
    (tmp_path / "report.md").write_text("an earlier report")
    written = {
        path.suffix
        for path in write_report(planted, ReportOptions(sections=("verdicts",), out=tmp_path, figures=("pdf",)))
        if path.parent.name == "figures"
    }
    assert written == {".png", ".pdf"} and not (tmp_path / "figures" / "topics.svg").exists()
    assert ReportOptions(formats=("html",)).figure_kinds == ()
    assert ReportOptions(formats=("html",), figures=("pdf", "svg")).figure_kinds == ("svg", "pdf")
    with pytest.raises(MoeProbeError, match="no format of figures 'gif'"):
        ReportOptions(figures=("gif",))


def test_pages_have_a_dark_version_of_every_figure(planted: Path) -> None:
    """Images have two sources; drawings have classes, and the style sheet has a colour for each, on both kinds of page."""
    page = (planted / "report.html").read_text()
    images = re.findall(r'<img class="day" alt="(.*?)" src="(.*?)"><img class="night" alt="(.*?)" src="(.*?)">', page)
    assert 2 * len(images) == page.count("<img ") > 10
    assert all(alt == other and dark != light for alt, light, other, dark in images)
    light, dark = page[: page.index("</style>")].split("@media screen and (prefers-color-scheme: dark) {\n.plate")
    assert ".plate img.night { display:none; }" in light and "img.day { display:none; }" in dark
    used = set(re.findall(r'<(?:rect|g|path) class="([adpv]\d+)\b', page))
    assert len(used) > 30
    for name in used:
        assert f".{name}{{fill:#" in light and (f".{name}{{fill:#" in dark or name[0] == "a"), name
    assert not re.search(r'<(?:rect|g|path|text)[^>]* (?:fill|stroke)="', page)


def test_the_snippet_of_the_documentation_draws_files(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "figures.md").read_text(encoding="utf-8")
    shutil.copytree(planted, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {})  # type: ignore[index]
    assert (tmp_path / "fig.pdf").read_bytes().startswith(b"%PDF") and b"/FontFile2" in (tmp_path / "fig.pdf").read_bytes()
    assert "<svg" in (tmp_path / "two.svg").read_text() and ">topic-0</text>" in (tmp_path / "slide.svg").read_text()


def test_same_results_same_bytes(planted: Path) -> None:
    before = {name: (planted / name).read_bytes() for name in ("report.html", "report.md", "figures/maps.png")}
    write_report(planted)
    assert before == {name: (planted / name).read_bytes() for name in before}


def test_alerts_fire_and_stay_silent(planted: Path) -> None:
    trace = Trace.open(planted)
    results = {p.stem: Result.load(p.parent, p.stem) for p in (planted / "results").glob("*.parquet")}

    def alerts(**changed: Result) -> str:
        section = alerts_section(trace, {**results, **changed})
        return section.finding

    assert "few documents" in alerts() and "unstable clusters" in alerts()
    assert not any(name in alerts() for name in ("dead experts", "router collapse", "weak SAEs"))
    experts = results["experts"].table
    one = experts.assign(load=np.where(experts["expert"] == 0, 0.5, 0.5 / 7))
    assert "router collapse" in alerts(experts=replace(results["experts"], table=one))
    narrow = results["layers"].table.assign(effective_experts=1.5)
    assert "router collapse" in alerts(layers=replace(results["layers"], table=narrow))
    dead = experts.assign(load=experts["load"].where(experts["expert"] > 0, 0.0))
    assert "dead experts" in alerts(experts=replace(results["experts"], table=dead))
    weak = results["sae_quality"].table.assign(ce_recovered=0.4)
    assert "weak SAEs" in alerts(sae_quality=replace(results["sae_quality"], table=weak))


def test_trees_nest_in_both_faces() -> None:
    leaf = Node("leaf <i>", facts=("a *fact*",))
    report = Report(
        "t", (), (Section("q", "f", (Tree("Tree", (Node("top", children=(Node("middle", children=(leaf,)),)),)),)),)
    )
    page = render_html(report, {})
    assert "leaf &lt;i&gt;" in page and page.count("<details>") == 3 and '<ul class="facts"><li>a *fact*</li></ul>' in page
    lines = render_markdown(report).splitlines()
    items = [line for line in lines if line.lstrip().startswith("- ")]
    assert items == ["- top", "  - middle", "    - leaf &lt;i&gt;", r"      - a \*fact\*"]


def test_hostile_labels_are_shown_not_obeyed(tmp_path: Path) -> None:
    routing = planted_routing(topics=2, documents_per_topic=8, tokens=30, n_layers=1, num_experts=4, lift=1.0)
    planted_trace(
        tmp_path / "model", planted=(), topics=2, documents_per_topic=8, tokens=30, n_layers=1, num_experts=4, lift=1.0
    )
    manifest = Trace.open(tmp_path / "model").manifest.model_copy(
        update={"model": Trace.open(tmp_path / "model").manifest.model.model_copy(update={"id": EVIL})}
    )
    writer = TraceWriter.create(tmp_path / "run" / "trace", manifest)
    documents = routing.documents.assign(topic=[EVIL if t == "topic-0" else t for t in routing.documents["topic"]])
    writer.append(
        documents=documents.drop(columns="n_tokens").to_dict("records"),
        experts=routing.experts,
        weights=routing.weights,
        tokens={
            "document": routing.document,
            "position": routing.position,
            "token_id": routing.token_id,
            "token": [EVIL] * len(routing.document),
            "special": routing.position < 0,
        },
    )
    analyze(writer.seal(), tmp_path / "run" / "results", settings=AnalysisSettings(permutations=99))
    write_report(tmp_path / "run")
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert page.tags.count("script") == 1 and any("<script>alert(1)</script>" in c for c in page.cells)
    for text in (html_of(tmp_path / "run"), markdown := markdown_of(tmp_path / "run")):
        assert "\x1b" not in text and "<script>alert" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", markdown)  # no link


def test_markdown_escapes() -> None:
    assert markdown_text("a|b *c* <i> [x](y) `z`") == r"a\|b \*c\* &lt;i&gt; \[x\](y) \`z\`"


def test_report_needs_no_torch(run: Path) -> None:
    """Every section is composed; figures are made and not printed, for matplotlib is known to need none."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from moe_probe.report import build; from moe_probe.report.plots.drawing import FigureFiles\n"
        "build.figure_files = lambda *a, **k: FigureFiles({}); build.write_report(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)


def test_nothing_to_report(tmp_path: Path, run: Path) -> None:
    with pytest.raises(MoeProbeError, match="there is no run"):
        write_report(tmp_path / "none")
    (tmp_path / "trace").symlink_to(run / "trace")
    with pytest.raises(MoeProbeError, match="has no results"):
        write_report(tmp_path)


def test_numbers_for_reading() -> None:
    assert number(float("nan")) == "–" and number(1234.5, 1) == "1,234.5" and number(-0.5) == "−0.50"
    assert number(-0.001) == "0.00"
    assert number(1234) == "1,234" and probability(0.0002) == "2e-04" and probability(float("nan")) == "–"
