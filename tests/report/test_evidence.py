"""Runs on records of every level of evidence: what runs, what is left out and why, and what report and terminal say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.faces import html_of, markdown_of
from support.quick import leave_out_figures
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.schema import SUMS, WORDS, Evidence
from moe_probe.experts.clusters.units import token_units
from moe_probe.experts.contexts import expert_contexts
from moe_probe.experts.duplicates import near_duplicates
from moe_probe.experts.explain import (
    expert_token_classes,
    expert_tokens,
    explain_routing,
    topic_beyond_vocabulary,
    vocabulary_baseline,
)
from moe_probe.experts.published import vocabulary_experts
from moe_probe.recording.trace import Trace, TraceWriter, trace_facts
from moe_probe.recording.trace.checks import NO_ID
from moe_probe.report import write_report
from moe_probe.report.sections.answers import answers
from moe_probe.studies import analyses
from moe_probe.studies.analyses import ANALYSES, AnalysisSettings, analyze
from moe_probe.testing import PlantedExpert, planted_routing
from moe_probe.testing.traces import planted_manifest, shard

#: What needs the ids of tokens, what needs tokens, and what needs documents.
OF_WORDS = {
    *("explained", "beyond_vocabulary", "beyond_previous_token", "beyond_token_pairs", "vocabulary_baseline"),
    *("expert_token_classes", "expert_tokens", "expert_contexts", "near_duplicates"),
}
OF_TOKENS = {"coactivation", "expert_positions", "combinations", "published"}
OF_DOCUMENTS = {"expert_groups", "expert_similarity"}


@pytest.fixture(autouse=True)
def no_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the analysis that takes longer than all others; `test_every_analysis_is_expected_at_its_level` knows it.

    Figures are left out too: what is unknown is said in words.
    """
    leave_out_figures(monkeypatch)
    monkeypatch.setattr(analyses, "ANALYSES", tuple(a for a in ANALYSES if a.name != "clusters"))


def record(path: Path, evidence: Evidence, *, documents: int = 18, group: bool = False) -> Trace:
    """Write planted routing as a record of this level; `group`: three documents a source, named in a column."""
    routing = planted_routing(
        planted=(PlantedExpert(1, 5, "topic", 2),),
        topics=4,
        documents_per_topic=documents,
        group_size=3 if group else 1,
        tokens=60,
        n_layers=2,
        num_experts=8,
        lift=3.2,
        seed=1,
    )
    if group:
        routing = replace(routing, documents=routing.documents.assign(source=routing.documents["group"]))
    if evidence is Evidence.TOKENS:
        routing = replace(routing, token_id=np.full_like(routing.token_id, NO_ID))
    kept = ("routing",) if evidence in (Evidence.WORDS, Evidence.TOKENS) else ("usage",)
    facts = {Evidence.TOKENS: {WORDS: False}, Evidence.COUNTS: {SUMS: True}}.get(evidence, {})
    manifest = planted_manifest(routing, seed=1, kept=kept).model_copy(update={"settings": facts})
    writer = TraceWriter.create(path, manifest)
    n = len(routing.token_id)
    words = [""] * n if evidence is Evidence.TOKENS else [f" w{i}" for i in routing.token_id]
    writer.append(**shard(routing, np.arange(len(routing.documents)), words))
    return writer.seal()


def run(root: Path, evidence: Evidence, *, documents: int = 18, group: bool = False) -> dict[str, Result]:
    trace = record(root / "trace", evidence, documents=documents, group=group)
    assert trace.manifest.evidence is evidence
    results = analyze(trace, root / "results", settings=AnalysisSettings(permutations=99))
    write_report(root)
    return results


def left_out(results: dict[str, Result]) -> dict[str, str]:
    table = results["left_out"].table
    return dict(zip(table["analysis"], table["reason"], strict=True))


def faces(root: Path) -> tuple[str, str]:
    return html_of(root), markdown_of(root)


def test_every_analysis_is_expected_at_its_level() -> None:
    need = {a.name: a.needs for a in ANALYSES}
    assert {n for n, e in need.items() if e is Evidence.WORDS} == OF_WORDS
    assert {n for n, e in need.items() if e is Evidence.TOKENS} == OF_TOKENS
    assert {n for n, e in need.items() if e is Evidence.DOCUMENTS} == OF_DOCUMENTS | {"clusters"}
    assert all(need[a.name] is Evidence.COUNTS for a in ANALYSES if a.essential)


def test_tokens_without_ids(tmp_path: Path) -> None:
    results = run(tmp_path, Evidence.TOKENS)
    out = left_out(results)
    assert set(out) >= OF_WORDS and {out[name] for name in OF_WORDS} == {"the record has no token ids"}
    assert set(results) >= OF_TOKENS | OF_DOCUMENTS
    assert not results["published"].table["metric"].str.contains("vocabulary").any()
    assert any("the record has no token ids" in w for w in results["published"].warnings)
    assert set(token_units(Trace.open(tmp_path)).labels) == {"topic"}
    row = results["verdicts"].table.set_index("topic").loc["topic-2"]
    assert (row["verdict"], row["layer"], row["expert"]) == ("expert", 1, 5) and row["grade"] != "clear"
    assert "Words are not ruled out: the record has no token ids." in row["reason"]
    for page in faces(tmp_path):
        assert "One passage per topic" not in page
        assert "Words are not ruled out: the record has no token ids." in page
        assert "it may be of the topic or of its words." in page and "of the topic or of its words. It is used" in page
        assert "without token ids" in page


def test_documents_of_sources(tmp_path: Path) -> None:
    results = run(tmp_path, Evidence.DOCUMENTS, documents=24, group=True)
    assert set(results) >= OF_DOCUMENTS and not (OF_WORDS | OF_TOKENS) & set(results)
    assert {left_out(results)[n] for n in OF_WORDS | OF_TOKENS} == {
        "the record has counts per document only, without tokens"
    }
    said = "Words are not ruled out: the record has no tokens. The unit is the source: 96 documents count as 32."
    for page in faces(tmp_path):
        assert said in page
        assert "Units: 32 independent groups of documents, 8 a topic." in page
        assert "selections of each document were recorded" in page and "every routing decision was recorded" not in page


@pytest.mark.parametrize("documents", [1, 6])
def test_sums_by_topic(tmp_path: Path, documents: int) -> None:
    """One row a topic, or several: effects and no verdict, in every table and on the page."""
    results = run(tmp_path, Evidence.COUNTS, documents=documents)
    assert not (OF_WORDS | OF_TOKENS | OF_DOCUMENTS) & set(results)
    assert {"layers", "experts", "expert_topics", "expert_topics_gate_mass", "verdicts"} <= set(results)
    table = results["expert_topics"].table
    assert table["lift"].notna().all() and table[["q_value", "p_value", "ci_low"]].isna().all().all()
    assert (
        results["layers"].table["mi_topic_null_bits"].isna().all() and (results["layers"].table["mi_topic_bits"] > 0).all()
    )
    assert set(results["verdicts"].table["grade"]) == {"untested"}
    for page in faces(tmp_path):
        assert "No test is possible: the record has sums by topic only." in page
        assert "selections were recorded as sums by topic" in page
        assert "can be tested; lifts are shown without intervals" in page
        assert "Nothing could be tested: the record has sums by topic only." in page and "in 0 of 2 layers" not in page
    for name in results:
        json.loads((tmp_path / "results" / f"{name}.json").read_text(), parse_constant=pytest.fail)


def test_topics_that_are_their_own_groups(tmp_path: Path) -> None:
    results = run(tmp_path, Evidence.DOCUMENTS, documents=3, group=True)
    assert set(results["verdicts"].table["grade"]) == {"untested"}
    for page in faces(tmp_path):
        assert (
            "The unit is the source: 12 documents count as 4. No test is possible: every topic is a single source." in page
        )
        assert "4 of 4 topics have too few groups" in page


def test_the_terminal_says_it(tmp_path: Path) -> None:
    record(tmp_path / "trace", Evidence.DOCUMENTS, documents=12, group=True)
    said = "Words are not ruled out: the record has no tokens. The unit is the source: 48 documents count as 16."
    info = CliRunner().invoke(app, ["info", str(tmp_path / "trace")])
    assert info.exit_code == 0 and f"documents. {said}" in " ".join(info.output.split())
    told = CliRunner().invoke(app, ["info", str(tmp_path / "trace"), "--json"])
    assert " ".join(json.loads(told.output)["unknown"]) == said
    made = CliRunner().invoke(app, ["analyze", str(tmp_path / "trace"), "--permutations", "99"])
    assert made.exit_code == 0, made.output
    text = " ".join(made.output.split())
    assert said in text and "Units: 16 independent groups of documents, 4 a topic." in text


def test_words_known_says_nothing_of_it(tmp_path: Path) -> None:
    trace = record(tmp_path / "trace", Evidence.WORDS)
    assert dict(trace_facts(trace.manifest, trace.documents))["evidence"] == "tokens with words."


def test_the_best_layer_is_compared_with_the_best_of_shuffled_topics() -> None:
    """Of many layers one decodes best by chance too: the largest number of its own layer's null would flatter it."""
    table = pd.DataFrame(
        {"layer": [0, 1], "decode_accuracy": [0.30, 0.40], "decode_baseline": [0.25, 0.05], "mi_topic_bits": [0.0, 0.0]}
    )
    (answer,) = answers({"layers": Result("layers", table)})
    assert "From layer 1 alone, the best of 2" in answer.answer and "the topic of 40% of held-out documents" in answer.answer
    assert "the best layer reaches 25%" in answer.answer


def test_without_ids_nothing_is_said_of_words_from_python_either(tmp_path: Path) -> None:
    """The mark for an unknown id is no word: taken for one, all tokens would be equal and all documents copies."""
    trace = record(tmp_path / "trace", Evidence.TOKENS)
    for analysis in (
        *(near_duplicates, explain_routing, vocabulary_baseline, expert_tokens, expert_token_classes),
        *(topic_beyond_vocabulary, vocabulary_experts, expert_contexts),
    ):
        with pytest.raises(MoeProbeError, match="the record has no token ids"):
            analysis(trace)
    counts = record(tmp_path / "counts", Evidence.DOCUMENTS)
    with pytest.raises(MoeProbeError, match="counts per document only"):
        next(counts.iter_routing())
