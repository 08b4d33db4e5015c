"""Sources: every method that a result names has a true entry, each work once, grouped by what it was used for."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pandas as pd
from typer.testing import CliRunner

import moe_probe
from moe_probe.cli import app
from moe_probe.core.results import Result
from moe_probe.report.references import CitedSource, bibtex, cited_sources, find_reference, plain_text, references

PACKAGE = Path(moe_probe.__file__).parent
RUN = Path(__file__).parents[1] / "data" / "run"
_CITATION = re.compile(r"^[A-Z][\w.,\- ]*? (?:18|19|20)\d\d\b")


def citations_of_the_package() -> list[tuple[str, str]]:
    """Strings that results are given as sources, with their file: constants of modules, and what is passed on the spot."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "presets.py":  # sizes of published models, which are no methods
            continue
        tree = ast.parse(path.read_text())
        values = [node.value for node in tree.body if isinstance(node, ast.Assign)]
        values += [
            k.value for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords if k.arg == "citations"
        ]
        for constant in (c for value in values for c in ast.walk(value) if isinstance(c, ast.Constant)):
            if isinstance(constant.value, str) and _CITATION.match(constant.value):
                found.append((path.name, constant.value))
    return found


def result(name: str, *citations: str) -> Result:
    return Result(name, pd.DataFrame({"a": [1]}), citations=citations)


def test_every_entry_says_who_what_when_and_where() -> None:
    for key in references():
        check_entry(key)


def check_entry(key: str) -> None:
    fields = references()[key].fields
    assert all(fields.get(name) for name in ("author", "title", "year")), fields
    assert re.fullmatch(r"(18|19|20)\d\d", fields["year"]) and key.startswith(key.rstrip("0123456789") + fields["year"])
    # ten works have neither DOI nor arXiv number: they have an address, an ISBN, or volume and pages
    found_by = {"doi", "eprint", "url", "isbn", "volume"} & set(fields)
    assert found_by and ("volume" not in found_by or "pages" in fields or "doi" in fields)
    assert re.fullmatch(r"10\.\d{4,}/\S+", fields.get("doi", "10.1234/x"))
    assert re.fullmatch(r"\d{4}\.\d{4,5}", fields.get("eprint", "1234.5678"))
    assert ("eprint" in fields) == (fields.get("archiveprefix") == "arXiv")
    entry = references()[key].entry
    assert entry.isascii() and entry.count("{") == entry.count("}")
    assert not set("{}\\") & set(plain_text(references()[key].sentence))


def test_each_work_is_there_once() -> None:
    text = (PACKAGE / "report" / "references.bib").read_text()
    assert len(references()) == text.count("@") > 50
    for name in ("doi", "eprint", "title"):
        values = [r.fields[name].lower() for r in references().values() if name in r.fields]
        assert len(set(values)) == len(values)
    without = [k for k, r in references().items() if not {"doi", "eprint"} & set(r.fields)]
    assert len(without) == 10


def test_whatever_the_package_cites_is_known_and_all_that_is_known_is_cited() -> None:
    cited = citations_of_the_package()
    assert len(cited) > 60
    found = {text: find_reference(text) for _, text in cited}
    assert not [text for text, reference in found.items() if reference is None]
    assert {r.key for r in found.values() if r is not None} == set(references())
    for text, reference in found.items():  # found by its number, a source is also the one whose author and year are named
        year, first = re.search(r"\b(18|19|20)\d\d\b", text), re.split(r"[ ,]", text)[0]
        assert reference is not None and year is not None and year[0] == reference.fields["year"], text
        assert first in plain_text(reference.fields["author"]) or first == "Meinshausen", text


def test_one_work_in_several_wordings_is_one_source() -> None:
    sources = cited_sources(
        {
            "matches": result("matches", "Benjamini and Hochberg 1995, DOI 10.1111/j.2517-6161.1995.tb02031.x"),
            "features": result(
                "features", "Westfall and Young 1993; Benjamini and Hochberg 1995, DOI 10.1111/J.2517-6161.1995.tb02031.x"
            ),
            "verdicts": result(
                "verdicts",
                "Benjamini and Hochberg 1995, false discovery rate",
                "Welch 1947, means, DOI 10.1093/biomet/34.1-2.28",
            ),
        }
    )
    assert [s.reference.key for s in sources if s.reference] == ["benjamini1995", "welch1947", "westfall1993"]
    assert sources[0].results == ["matches", "features", "verdicts"] and sources[0].purposes == ["false discovery rate"]
    assert "Benjamini and Hochberg 1995. Controlling the false discovery rate" in sources[0].text
    assert bibtex(sources).count("@") == 3


def test_a_source_that_is_not_known_is_kept_as_it_was_named() -> None:
    named = ("Doe et al. 2031, a method & more, DOI 10.9999/none", "Doe and Roe 2031, another", "somebody's notes")
    sources = cited_sources({"mine": result("mine", *named)})
    assert {s.text for s in sources} == set(named) and all(
        isinstance(s, CitedSource) and s.reference is None for s in sources
    )
    text = bibtex(sources)
    assert "author = {Doe and others}" in text and r"a method \& more" in text and "@misc{source," in text
    keys = re.findall(r"^@\w+\{(\w+),", text, re.MULTILINE)
    assert len(set(keys)) == len(keys)


def test_cite_groups_by_source_and_prints_bibtex() -> None:
    done = CliRunner().invoke(app, ["cite", str(RUN), "--json"])
    assert done.exit_code == 0, done.stderr
    sources = json.loads(done.stdout)["sources"]
    keys = [s["key"] for s in sources]
    assert len(set(keys)) == len(keys) > 20 and None not in keys
    # every table that names a source stands with it
    tables = {p.stem: json.loads(p.read_text()).get("citations", []) for p in (RUN / "results").glob("*.json")}
    for name, citations in tables.items():
        assert {r.key for c in citations for t in c.split("; ") if (r := find_reference(t))} == {
            s["key"] for s in sources if name in s["results"]
        }
    lines = CliRunner().invoke(app, ["cite", str(RUN)]).stdout.splitlines()
    assert len(lines) == 2 * len(keys) and all(line.startswith(("  used for ", "  tables: ")) for line in lines[1::2])
    text = CliRunner().invoke(app, ["cite", str(RUN), "--bibtex"]).stdout
    assert re.findall(r"^@\w+\{(\w+),", text, re.MULTILINE) == keys
    assert "doi = {10.1214/aoms/1177730491}" in text
