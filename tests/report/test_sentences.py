"""The words of a whole run's report: short sentences, short captions, and one-line findings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_probe.core.results import Result
from moe_probe.core.text import sentences
from moe_probe.recording.trace import Trace
from moe_probe.report.compose import compose
from moe_probe.report.content import Facts, Passages, Picture, Report, Section, Table
from moe_probe.report.links import plain

#: Words of a sentence, and of a caption.
_SENTENCE, _CAPTION = 30, 50


@pytest.fixture(scope="module")
def report(split_run: Path) -> Report:
    names = (p.stem for p in (split_run / "results").glob("*.parquet"))
    return compose(Trace.open(split_run), {name: Result.load(split_run / "results", name) for name in names})


def prose(section: Section) -> Iterator[str]:
    """Texts of ours; what a card or a row lists (tokens, experts, numbers) is no sentence."""
    yield from (section.finding, section.how, section.limits)
    for block in section.blocks:
        if isinstance(block, str):
            yield block
        elif isinstance(block, Table | Passages):
            yield block.note
        elif isinstance(block, Picture):
            yield block.caption
        elif isinstance(block, Facts) and block.kind != "sources":
            yield from (plain(text) for _, text in block.items)


def test_no_sentence_is_long(report: Report) -> None:
    texts = [*report.summary, *(a.answer for a in report.answers), *(t for s in report.sections for t in prose(s))]
    long = [s for text in texts for s in sentences(text) if len(s.split()) > _SENTENCE]
    assert len(texts) > 100 and long == []


def test_captions_are_short(report: Report) -> None:
    captions = [b.caption for s in report.sections for b in s.blocks if isinstance(b, Picture)]
    captions += [b.note for s in report.sections for b in s.blocks if isinstance(b, Table | Passages)]
    assert captions and [c for c in captions if len(c.split()) > _CAPTION] == []


def test_every_heading_has_a_finding_of_one_line(report: Report) -> None:
    for section in report.sections:
        assert section.headline.endswith((".", "?", "!")) and len(section.headline) <= 170, section.title


def test_the_page_in_markdown_is_short(split_run: Path) -> None:
    text = (split_run / "report.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    lines = [re.sub(r"\\(.)", r"\1", line) for line in text.splitlines() if not line.startswith(("|", ">", "!", "["))]
    assert [s for line in lines for s in sentences(line) if len(s.split()) > _SENTENCE] == []
