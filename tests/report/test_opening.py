"""What the report opens with: passages of the topics' own documents, units with links to their cards, lifts on an axis."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moe_probe.core.results import Result
from moe_probe.core.units import UnitRef
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.report import svg
from moe_probe.report.content import Bar, Card, Cards, Link, Section, Table
from moe_probe.report.links import html, plain, unit_key
from moe_probe.report.passages import HIGHEST, LENGTH, LOWEST, MEDIAN, topic_passages
from moe_probe.report.sections.claims import opening_passages
from moe_probe.report.sections.experts import experts_section
from moe_probe.report.sections.features import features_section
from moe_probe.report.sections.verdicts import verdicts_section
from moe_probe.testing import PlantedExpert, planted_results, planted_routing, planted_trace
from moe_probe.testing.traces import planted_manifest, shard

SIZES: dict[str, Any] = {"topics": 3, "documents_per_topic": 9, "tokens": 80, "n_layers": 2, "num_experts": 8}
EXPERT, GROUP = UnitRef((5,), 1), UnitRef((2, 4), 0)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    planted = (PlantedExpert(1, 5, "topic", 2),)
    return planted_trace(tmp_path_factory.mktemp("opening") / "trace", planted=planted, lift=2.5, **SIZES)


@pytest.fixture(scope="module")
def results(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Tables of a run drawn at random, whose verdicts are an expert, a group and a feature."""
    folder = tmp_path_factory.mktemp("results")
    planted_results(trace, folder)
    made = {p.stem: Result.load(folder, p.stem) for p in folder.glob("*.parquet")}
    table = made["verdicts"].table.copy()
    sae, feature = made["features"].table[["sae", "feature"]].iloc[7]
    table["verdict"], table["grade"] = ["group", "feature only", "expert"], ["clear", "likely", "near the threshold"]
    table["layer"], table["expert"], table["experts"] = [0, 1, 1], [None, 3, 5], ["2+4", "3", "5"]
    table["feature"] = ["", f"{sae}:{feature}", ""]
    return made | {"verdicts": replace(made["verdicts"], table=table.astype({"layer": "Int64", "expert": "Int64"}))}


def test_passages_are_of_the_topics_own_documents(trace: Trace) -> None:
    claims = [("topic-2", EXPERT), ("topic-0", GROUP)]
    which = (HIGHEST, MEDIAN, LOWEST)
    made = topic_passages(trace, claims, which=which)
    assert [(p.topic, p.unit, p.which) for p in made] == [(*claim, name) for claim in claims for name in which]
    documents, tokens = trace.documents.reset_index().set_index("document"), trace.tokens()
    for p in made:
        assert documents.loc[p.document, "topic"] == p.topic
        own = tokens[(tokens["document"] == documents.loc[p.document, "index"]) & ~tokens["special"]]
        text = "".join(own["token"])
        shown = "".join(piece for piece, _ in p.pieces)
        assert shown in text and len(shown) < len(text)
        assert own["token"].str.len().nlargest(LENGTH).sum() >= len(shown.strip())
    shares = {p.which: p.share for p in made if p.topic == "topic-2"}
    assert shares[HIGHEST] >= shares[MEDIAN] >= shares[LOWEST]
    # the median is one of the documents, in the middle of the topic's
    usage = trace.usage().selections[(trace.documents["topic"] == "topic-2").to_numpy(), 1, 5]
    assert shares[MEDIAN] == pytest.approx(np.median(usage) / SIZES["tokens"])


def test_shades_are_the_gate_weights_of_the_unit(trace: Trace) -> None:
    (passage,) = topic_passages(trace, [("topic-0", GROUP)])
    document = int(np.flatnonzero(trace.documents["document"] == passage.document)[0])
    rows = np.flatnonzero((trace.tokens()["document"] == document) & ~trace.tokens()["special"])
    routing = trace.routing_at(rows, slice(0, 1), weights=True)
    assert routing.weights is not None
    weight = np.where(np.isin(routing.experts[:, 0], GROUP.members), routing.weights[:, 0].astype(float), 0).sum(1)
    words = trace.tokens()["token"].to_numpy()[rows].tolist()
    shown = "".join(text for text, _ in passage.pieces)
    first = next(i for i in range(len(words)) if "".join(words[i:]).lstrip().startswith(shown))
    words[first] = words[first].lstrip()
    inside = slice(first, next(i for i in range(first, len(words) + 1) if "".join(words[first:i]) == shown))
    assert weight[inside].sum() >= np.convolve(weight, np.ones(LENGTH), mode="valid").max() - 1e-6
    routed = [word for word, value in zip(words[inside], weight[inside], strict=True) if value > 0]
    assert "".join(text for text, strength in passage.pieces if strength) == "".join(routed) != ""
    strongest = words[inside][int(weight[inside].argmax())]
    assert (strongest, 4) in passage.pieces
    chosen = np.isin(routing.experts[:, 0], GROUP.members)
    assert passage.share == pytest.approx(chosen.any(1).mean())
    assert chosen.any(1).mean() < chosen.sum(1).mean()  # there are tokens of both, which count once


def test_without_text_there_are_no_passages(trace: Trace, results: dict[str, Result], tmp_path: Path) -> None:
    assert len(opening_passages(trace, results)[0].passages) == 3
    routing = planted_routing(planted=(PlantedExpert(1, 5, "topic", 2),), lift=2.5, **SIZES)
    for name, kept, words in (("ids", ("routing",), True), ("counts", ("usage",), False)):
        writer = TraceWriter.create(tmp_path / name, planted_manifest(routing, seed=0, kept=kept))
        numbers = [str(i) if words else "" for i in routing.token_id]  # as importers write ids whose text is unknown
        writer.append(**shard(routing, np.arange(len(routing.documents)), numbers))
        assert opening_passages(writer.seal(), results) == ()


def cards_of(*sections: Section | None) -> dict[str, Card]:
    blocks = [block for section in sections if section is not None for block in section.blocks]
    return {card.key: card for block in blocks if isinstance(block, Cards) for card in block.cards}


def test_every_unit_of_a_verdict_has_a_card(trace: Trace, results: dict[str, Result]) -> None:
    table = next(block for block in verdicts_section(results).blocks if isinstance(block, Table))
    cards = cards_of(experts_section(trace, results), features_section(results))
    units = {str(row[0]): row[table.columns.index("unit")] for row in table.rows}
    assert {plain(unit) for unit in units.values()} == {
        *("layer 1, expert 5", "layer 0, experts 2, 4"),
        plain(next(unit for unit in units.values() if isinstance(unit, tuple))),
    }
    linked = [part for unit in units.values() for part in (unit if isinstance(unit, tuple) else (unit,))]
    keys = [part.key for part in linked if isinstance(part, Link)]
    assert len(keys) == 4 and set(keys) <= set(cards)  # the feature's row names the nearest expert as well
    assert unit_key(EXPERT) in keys and unit_key(GROUP) in keys
    members = dict(cards[unit_key(GROUP)].facts)["members"]
    assert html(members) == '<a href="#expert-0-2">expert 2</a>, <a href="#expert-0-4">expert 4</a>'
    for unit, topic in ((EXPERT, "topic-2"), (GROUP, "topic-0")):
        names = [plain(passage.name) for passage in cards[unit_key(unit)].passages]
        assert [name.startswith(f"{topic}, document of") for name in names[:3]] == [True] * 3
    assert "nearest experts" in dict(cards[unit_key(EXPERT)].facts)


def test_the_axis_of_lifts_has_numbers() -> None:
    bar = Bar("2×", 1.0, 0.5, 1.5, (-0.5, 3.0), 0.0, 1.0)
    header = svg.axis_of(Table(("topic", "lift"), (("a", "–"), ("b", bar))), 1)
    assert ">1×</text>" in header and ">2×</text>" in header and ">8×</text>" in header
    assert svg.axis_of(Table(("topic", "lift"), (("a", "–"), ("b", bar))), 0) == ""


def test_the_picture_has_a_mark_for_every_topic(results: dict[str, Result]) -> None:
    evil = "<script>alert(1)</script>"
    table = results["verdicts"].table.assign(kind=["group", "weak", "untested"], topic=[evil, "b", "c"])
    table.loc[table.index[2], ["log2_lift", "ci_low", "ci_high"]] = np.nan
    drawn = svg.lifts(table, 1.0, lambda row: f"{row['topic']}: {2 ** row['log2_lift']:.2f}")
    marks = re.findall(r"<title>(.*?): (.*?)</title>", drawn)
    lifts = [f"{2**value:.2f}" for value in table["log2_lift"].dropna()]
    assert sorted(marks) == sorted(zip(["&lt;script&gt;alert(1)&lt;/script&gt;", "b"], lifts, strict=True))
    assert evil not in drawn and "not tested" in drawn and "needed: 2×" in drawn
    assert "has a group of experts (1)" in drawn and "real but too small (1)" in drawn


def test_what_was_not_tested_has_no_empty_columns(results: dict[str, Result]) -> None:
    table = results["verdicts"].table.assign(verdict="none", grade="untested", layer=pd.NA, experts="", log2_lift=np.nan)
    kept = {name: result for name, result in results.items() if name != "ablation"}
    table = table.drop(columns=["auroc_feature", "causal"])
    section = verdicts_section(kept | {"verdicts": replace(results["verdicts"], table=table)})
    (shown,) = (block for block in section.blocks if isinstance(block, Table))
    assert shown.columns == ("topic", "verdict") and len(shown.rows) == 3 and not shown.note


def test_a_small_effect_is_not_called_none(results: dict[str, Result]) -> None:
    table = results["verdicts"].table.assign(verdict="none", grade=["weak", "none", "untested"])
    section = verdicts_section(results | {"verdicts": replace(results["verdicts"], table=table)})
    shown = next(block for block in section.blocks if isinstance(block, Table))
    assert [row[1] for row in shown.rows] == ["weak: real but small", "none", "untested"]
    assert pd.Index(shown.columns).is_unique
