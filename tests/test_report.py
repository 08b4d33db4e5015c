"""The report: complete, self-contained, safe with hostile text, the same numbers in both faces, no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from moe_probe.errors import MoeProbeError
from moe_probe.pipeline.analyze import Settings, analyze
from moe_probe.report import write_report
from moe_probe.report.build import markdown_text
from moe_probe.report.content import number, probability
from moe_probe.testing import PlantedExpert, planted_routing, planted_trace
from moe_probe.trace import Trace, TraceWriter

EVIL = '<script>alert(1)</script>|*x* [y](javascript:z)\x1b[31m'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    trace = planted_trace(root / "trace", planted=(PlantedExpert(1, 5, "topic", 2),), topics=4, documents_per_topic=24,
                          tokens=60, n_layers=2, num_experts=8, lift=3.0)
    analyze(trace, root / "results", settings=Settings(permutations=199))
    write_report(root)
    return root


class Page(HTMLParser):
    """Tags, what they fetch, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(v) for k, v in attrs if k in ("src", "href")]
        if tag == "td":
            self.cells.append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


def test_page_stands_alone_and_opens_with_the_verdicts(run: Path) -> None:
    text = (run / "report.html").read_text()
    page = Page(text)
    assert len(text) < 3_000_000
    assert page.fetched and all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[:2] == ["Is there a chemistry expert? One row per topic", "Run card"]
    assert re.findall(r'<tr class="(\w+)"', text) == ["none", "none", "expert", "none"]
    assert all(alt for alt in re.findall(r'<img alt="(.*?)"', text))


def test_both_faces_hold_the_same_tables(run: Path) -> None:
    cells = [c.strip() for c in Page((run / "report.html").read_text()).cells]
    markdown = (run / "report.md").read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("|") and not line.startswith("|---")]
    plain = [re.sub(r"\\(.)", r"\1", c).strip() for row in rows for c in re.split(r"(?<!\\)\|", row)[1:-1]]
    missing = [c for c in cells if c.replace("&amp;", "&") not in plain]
    assert len(cells) > 50 and not missing
    for name in re.findall(r"\]\((figures/.*?)\)", markdown):
        assert (run / name).stat().st_size > 1000


def test_numbers_are_those_of_the_tables(run: Path) -> None:
    verdicts = pd.read_parquet(run / "results" / "verdicts.parquet").set_index("topic")
    text = (run / "report.md").read_text()
    row = verdicts.loc["topic-2"]
    assert f"layer 1, expert 5: lift {2 ** row['log2_lift']:.2f}×" in text
    assert "1 of 4 topics has an expert of its own" in text


def test_hostile_labels_are_shown_not_obeyed(tmp_path: Path) -> None:
    routing = planted_routing(topics=2, documents_per_topic=8, tokens=30, n_layers=1, num_experts=4, lift=1.0)
    planted_trace(tmp_path / "model", planted=(), topics=2, documents_per_topic=8, tokens=30, n_layers=1, num_experts=4,
                  lift=1.0)
    manifest = Trace.open(tmp_path / "model").manifest.model_copy(update={
        "model": Trace.open(tmp_path / "model").manifest.model.model_copy(update={"id": EVIL})})
    writer = TraceWriter.create(tmp_path / "run" / "trace", manifest)
    documents = routing.documents.assign(topic=[EVIL if t == "topic-0" else t for t in routing.documents["topic"]])
    writer.append(documents=documents.drop(columns="n_tokens").to_dict("records"), experts=routing.experts,
                  weights=routing.weights, tokens={
                      "document": routing.document, "position": routing.position, "token_id": routing.token_id,
                      "token": [EVIL] * len(routing.document), "special": routing.position < 0})
    analyze(writer.seal(), tmp_path / "run" / "results", settings=Settings(permutations=99))
    write_report(tmp_path / "run")
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert page.tags.count("script") == 1 and any("<script>alert(1)</script>" in c for c in page.cells)
    for name in ("report.html", "report.md"):
        text = (tmp_path / "run" / name).read_text()
        assert "\x1b" not in text and "<script>alert" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", (tmp_path / "run" / "report.md").read_text())  # no link


def test_markdown_escapes() -> None:
    assert markdown_text("a|b *c* <i> [x](y) `z`") == r"a\|b \*c\* &lt;i&gt; \[x\](y) \`z\`"


def test_report_needs_no_torch(run: Path) -> None:
    code = ("import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
            "from moe_probe.report import write_report; write_report(sys.argv[1])")
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)


def test_nothing_to_report(tmp_path: Path, run: Path) -> None:
    with pytest.raises(MoeProbeError, match="there is no run"):
        write_report(tmp_path / "none")
    (tmp_path / "trace").symlink_to(run / "trace")
    with pytest.raises(MoeProbeError, match="holds no results"):
        write_report(tmp_path)


def test_numbers_for_reading() -> None:
    assert number(float("nan")) == "–" and number(1234.5, 1) == "1,234.5" and number(-0.5) == "−0.50"
    assert number(1234) == "1,234" and probability(0.0002) == "2e-04" and probability(float("nan")) == "–"
