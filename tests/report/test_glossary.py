"""Terms: one source for the page, its tips and the documentation; found where they stand, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moe_probe.report.glossary import TERMS, anchor_of, explained, glossary_page, question_mark

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_has_the_same_terms() -> None:
    assert (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8") == glossary_page(), "run python scripts/glossary.py"


def test_meanings_are_short_and_names_are_places_of_their_own() -> None:
    for term in TERMS:
        assert term.meaning.endswith(".") and len(term.meaning.split()) <= 30, term.name
    assert len({anchor_of(term.name) for term in TERMS}) == len(TERMS)
    assert [t.name for t in TERMS] == sorted((t.name for t in TERMS), key=str.lower)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Lift 2.1 (q 0.01, AUROC 0.9) on held-out documents", ["auroc", "held-out-documents", "lift", "q"]),
        ("The lift and the lifts of the load", ["lift", "load"]),
        ("0.01 bits, 0.2 nats per token; gate weights", ["bit", "gate-weight", "nat"]),
        ("facelifts, loaded, bitten, quick, p53, q-bert, unfired", []),
        ("load CV", ["load-cv"]),
        ("variance unexplained (FVU)", ["fvu"]),
    ],
)
def test_terms_are_found_once_and_as_words(text: str, names: list[str]) -> None:
    found = re.findall(r'href="#g-([^"]*)"', explained(text, set()))
    assert sorted(found) == names
    assert re.sub(r"<[^>]+>", "", explained(text, set())) == text


def test_text_around_terms_is_escaped() -> None:
    seen: set[str] = set()
    out = str(explained('<img src=x> lift "q 0.1" <b>lift</b>', seen))
    assert "<img" not in out and "<b>" not in out and out.count('class="term"') == 2 and seen == {"lift", "q"}
    assert "term" not in explained("lift", seen)


def test_headings_of_columns_have_a_mark() -> None:
    mark = question_mark("lift [95 %]")
    assert ">?</a>" in mark and 'aria-label="What is lift?"' in mark and 'aria-describedby="g-lift"' in mark
    assert question_mark("topic") == ""
