"""`moe-probe report` with its options: chosen sections, a title, another folder, one format, all folds open."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.quick import leave_out_figures
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.testing import planted_results, planted_trace


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("options")
    trace = planted_trace(root / "trace", planted=(), topics=3, documents_per_topic=4, tokens=10, n_layers=1, num_experts=4)
    planted_results(trace, root / "results")
    return root


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_figures(monkeypatch)


def report(run: Path, *words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["report", str(run), *map(str, words)])
    return done.exit_code, " ".join(done.output.split())


def test_chosen_sections_title_folder_and_format(run: Path, tmp_path: Path) -> None:
    before = sorted(p for p in run.rglob("*"))
    words = ("--sections", "topics,layers", "--sections", "verdicts", "--title", "Ours <1>", "--format", "html")
    code, said = report(run, *words, "--out", tmp_path / "talk", "--json")
    assert code == 0, said
    assert json.loads(said)["files"] == [str(tmp_path / "talk" / "report.html")]
    page = (tmp_path / "talk" / "report.html").read_text()
    assert re.findall(r'<section id="(.*?)"', page) == ["verdicts", "topics", "layers", "glossary"]
    assert "<h1>Ours &lt;1&gt;</h1>" in page and "<title>Ours &lt;1&gt;</title>" in page
    anchors = set(re.findall(r'href="#(.*?)"', page))
    assert anchors - {"content"} <= set(re.findall(r' id="(.*?)"', page))
    assert sorted(p for p in run.rglob("*")) == before, "a report elsewhere leaves the run alone"


def test_markdown_alone_and_its_files(run: Path, tmp_path: Path) -> None:
    drawing = tmp_path / "figures" / "layers.pdf"
    drawing.parent.mkdir()
    drawing.write_text("of somebody else")
    code, said = report(run, "--format", "md", "--out", tmp_path)
    assert drawing.read_text() == "of somebody else"
    assert code == 0 and "report.md" in said and not (tmp_path / "report.html").exists()
    text = (tmp_path / "report.md").read_text()
    links = re.findall(r"\]\((report/.*?\.md)\)", text)
    assert len(links) > 10 and all((tmp_path / link).exists() for link in links)


def test_the_appendix_has_all_folds_open(run: Path, tmp_path: Path) -> None:
    assert report(run, "--appendix", "--out", tmp_path)[0] == 0
    folded, opened = ((tmp_path / name).read_text() for name in ("report.html", "report_appendix.html"))
    count = folded.count("<details")
    assert count > 20 and "<details open" not in folded and " open>" not in folded
    assert len(re.findall(r"<details[^>]* open>", opened)) == opened.count("<details") == count


def test_without_the_verdicts_the_page_still_answers_what_experts_are_about(run: Path, tmp_path: Path) -> None:
    asked = "What are experts mostly about?"
    for chosen, counted in (("explained", 1), ("verdicts,explained", 1), ("layers", 0)):
        assert report(run, "--sections", chosen, "--format", "html", "--out", tmp_path)[0] == 0
        assert (tmp_path / "report.html").read_text().count(f"<dt>{asked}") == counted


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--sections", "topcs"), "there is no section 'topcs': did you mean 'topics'?"),
        (("--sections", "tree"), "this run has no section 'tree': the result tree is missing. Try: moe-probe tree RUN."),
        (("--format", "pdf"), "there is no format 'pdf': choose from: html, md"),
        (("--format", "md", "--appendix"), "--appendix needs the HTML page"),
        (("--title", " "), "the title is empty"),
    ],
)
def test_wrong_words_are_refused_by_name(run: Path, words: tuple[str, ...], says: str) -> None:
    code, said = report(run, *words)
    assert code == 2 and says in said
    assert not (run / "report.html").exists()


def test_pages_of_an_earlier_report_do_not_stay_beside_others(run: Path, tmp_path: Path) -> None:
    """An appendix and files of sections that are not written again would show numbers of before."""
    out = tmp_path / "talk"
    assert report(run, "--out", out, "--appendix")[0] == 0
    (out / "report" / "notes.md").write_text("mine")
    assert report(run, "--out", out, "--sections", "verdicts", "--format", "md")[0] == 0
    assert {p.name for p in (out / "report").iterdir()} == {"verdicts.md", "glossary.md", "notes.md"}
    assert (out / "report_appendix.html").exists(), "only Markdown was written"
    assert report(run, "--out", out, "--sections", "verdicts")[0] == 0
    assert not (out / "report_appendix.html").exists()
