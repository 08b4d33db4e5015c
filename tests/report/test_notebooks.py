"""The notebooks: every template runs from top to bottom, repeats what the tables say, and shows hostile labels as text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from support.compared_runs import ADDED, add_saes, routing, write_run

from moe_probe.cli import main
from moe_probe.core.errors import MoeProbeError
from moe_probe.report import plots
from moe_probe.report.notebook import TEMPLATES, make_notebook, show, write_notebook
from moe_probe.report.notebook.show import escaped
from moe_probe.studies.compare import Comparison, compare_runs

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{1$ [y](javascript:z) \\(x\\) \x1b[31m"
NAMES = {
    "compare_runs": (["plain", "added"], []),
    "compare_labels": (["added"], ["topic", "mood"]),
    "compare_saes": (["added"], []),
}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project folder with two runs, one topic of which has a hostile name."""
    root = tmp_path_factory.mktemp("project")
    mood = np.random.default_rng(3).permutation(np.repeat(["calm", "merry"], 60))
    for name, planted in (("plain", ()), ("added", (ADDED,))):
        given = routing(*planted)
        topics = given.documents["topic"].replace("topic-1", EVIL)
        write_run(root / "runs" / name, replace(given, documents=given.documents.assign(topic=topics, mood=mood)))
    add_saes(root / "runs" / "added")
    (root / "reports").mkdir()
    return root


class Tables(HTMLParser):
    """Cells of every table of a page, the text outside of them, and the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.tables[-1][-1][-1] += data


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("template", TEMPLATES)
def test_notebook_runs_from_top_to_bottom(project: Path, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run by the function or, for labels, by the command; the checks share the one execution, which starts a kernel."""
    runs, by = NAMES[template]
    if template == "compare_labels":
        files = by_command(project, monkeypatch)
    else:
        values = {"root": "../runs", "runs": runs, "names": [], "by": by}
        files = write_notebook(template, values, project / "reports" / f"{template}.ipynb", title=f"{template} <b>&")
    comparison = compare_runs([project / "runs" / run for run in runs], by=by)
    notebook = nbformat.read(files[0], as_version=4)
    nbformat.validate(notebook)
    says_what_the_tables_say(notebook, comparison)
    obeys_no_label_and_fetches_nothing(files[1].read_text(encoding="utf-8"), hostile=template != "compare_saes")
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert str(project) not in text and f"{Path.home()}/" not in text
        assert not re.search(r"(?<![\w.:/<\"])/(?:home|tmp|root|usr|work|Users)/", text)
        assert path.stat().st_size < 400_000


def by_command(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Run `moe-probe compare` for two labels of one run: it writes a notebook that reads the tables beside it."""
    out = project / "compared"
    monkeypatch.setattr(
        "sys.argv",
        [
            "moe-probe",
            "compare",
            str(project / "runs" / "added"),
            "--by",
            "topic",
            "--by",
            "mood",
            "--out",
            str(out),
            "--quiet",
        ],
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code and "<title>topic against mood</title>" in (out / "compare.html").read_text(encoding="utf-8")
    cell = next(
        c for c in nbformat.read(out / "compare.ipynb", as_version=4).cells if "parameters" in c.metadata.get("tags", [])
    )
    assert "runs = ['../runs/added']" in cell.source and "tables = '.'" in cell.source
    return [out / "compare.ipynb", out / "compare.html"]


def says_what_the_tables_say(notebook: Any, comparison: Comparison) -> None:
    """Check that all cells ran in order; sentences and the last table, that of the differences, are the result's."""
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert not [o for o in outputs(notebook) if o.output_type in ("error", "stream")]
    assert codes[0].metadata.get("tags") == ["parameters"]
    first = Tables(next(o for o in outputs(notebook) if "text/html" in o.get("data", {})).data["text/html"])
    assert comparison.headlines and all(line in first.text for line in comparison.headlines if EVIL not in line)
    last = Tables(codes[-1].outputs[0].data["text/html"]).tables[0]
    table = comparison["comparison_differences"].table
    assert len(last) == len(table) + 1 and len(table) >= 5
    at = last[0].index("difference")
    for column, name in zip(range(at - 2, at + 3), ("value_a", "value_b", "difference", "ci_low", "ci_high"), strict=True):
        shown = [float(row[column].replace("−", "-").replace("–", "nan").replace(",", "")) for row in last[1:]]
        np.testing.assert_allclose(shown, table[name].astype(float), atol=6e-4)


def obeys_no_label_and_fetches_nothing(text: str, *, hostile: bool) -> None:
    """Check that the page shows hostile names as text, runs nothing, loads nothing, and describes its figures."""
    page = Tables(text)
    assert not {"script", "iframe", "link", "object"} & set(page.tags)
    assert not [k for k, _ in page.attributes if k.startswith("on")]
    sources = [v for k, v in page.attributes if k in ("src", "href") and not str(v).startswith("#")]
    assert sources and all(str(v).startswith("data:image/png;base64,") for v in sources)
    assert not re.search(r"url\((?!#)|@import", text) and "\x1b" not in text
    alts = [v for k, v in page.attributes if k == "alt"]
    assert alts and all(alt and alt != "figure" for alt in alts)
    if hostile:
        assert any(EVIL.replace("\x1b", "\\x1b") in cell for table in page.tables for row in table for cell in row)


def test_templates_take_other_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs, one of other documents, so that there are several pairs and experts of one cannot be matched."""
    write_run(project / "runs" / "else", routing(seed=9))
    monkeypatch.chdir(project / "reports")
    names: dict[str, Any] = {}
    values = {"root": "../runs", "runs": ["plain", "else", "added"], "names": ["a", "b", "c"]}
    for cell in make_notebook("compare_runs", values).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    comparison = names["comparison"]
    assert set(comparison["comparison_changes"].table["side_b"]) == {"b", "c"}
    assert set(comparison["aligned_layers"].table["side_b"]) == {"c"}
    assert sum("verdicts changed" in line or "no verdict" in line for line in comparison.headlines) == 1
    assert comparison.headlines[1].startswith("In the order given (a, b, c): ")


def test_parameters_take_the_place_of_defaults() -> None:
    notebook = make_notebook("compare_runs", {"runs": ["a", "it's"], "seed": 3, "tables": None})
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    names: dict[str, Any] = {}
    exec(cell.source, names)
    assert names["runs"] == ["a", "it's"] and names["seed"] == 3 and names["tables"] is None and names["by"] == []
    assert "# their names here" in cell.source
    assert make_notebook("compare_runs", {}) == make_notebook("compare_runs", {})
    with pytest.raises(MoeProbeError, match=r"no parameter 'run'.*did you mean 'runs'"):
        make_notebook("compare_runs", {"run": []})
    with pytest.raises(MoeProbeError, match="no notebook 'compare'"):
        make_notebook("compare", {})


def test_a_notebook_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(MoeProbeError, match="the notebook stopped: MoeProbeError: there is no run at none/x"):
        write_notebook("compare_saes", {"root": "none", "runs": ["x"]}, tmp_path / "n.ipynb", title="n")
    assert not (tmp_path / "n.ipynb").exists()


def test_text_is_shown_not_set() -> None:
    assert escaped("<b>$x$\\") == "&lt;b&gt;<span>&#36;</span>x<span>&#36;</span><span>&#92;</span>"
    shown = show(
        pd.DataFrame({"topic": [EVIL], "q_value": [0.00012], "value": [-0.5], "layer": pd.array([None], dtype="Int64")})
    )
    assert Tables(shown._repr_html_()).tables[0] == [
        ["topic", "q value", "value", "layer"],
        [EVIL.replace("\x1b", "\\x1b"), "1e-04", "−0.50", "–"],
    ]
    assert "\x1b" not in repr(shown)


def test_figures_take_any_name() -> None:
    """A name that would be a broken formula is drawn as it is."""
    table = pd.DataFrame(
        {
            "side_a": EVIL,
            "side_b": "$b$",
            "topic": [EVIL, "$\\x$"],
            "value_a": 0.1,
            "value_b": [0.3, np.nan],
            "difference": [0.2, np.nan],
            "ci_low": [0.1, np.nan],
            "ci_high": [0.3, np.nan],
            "beyond": [True, False],
        }
    )
    figure = plots.topic_differences(table)
    figure.canvas.draw()
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert "\\$\\x\\$" in labels


def test_a_run_may_be_called_as_a_column_is() -> None:
    from moe_probe.report.notebook.show import wide

    table = pd.DataFrame({"topic": ["law", "law"], "side": ["topic", "b"], "told": ["expert", "none"]})
    spread = wide(table, rows="topic", across="side", values="told")
    assert spread.to_dict("records") == [{"topic": "law", "topic (run)": "expert", "b": "none"}]
