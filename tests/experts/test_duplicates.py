"""Documents that share text though they count as independent: copies, near-copies, excerpts, boilerplate; and no false alarm."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

import moe_probe.experts.duplicates as module
from moe_probe.experts.duplicates import near_duplicates
from moe_probe.recording.trace import Trace
from moe_probe.report.sections.alerts import alerts_section
from moe_probe.studies.analyses import ANALYSES, AnalysisSettings, analyze
from moe_probe.testing import planted_routing, write_routing
from moe_probe.testing.planted import PlantedRouting

TOKENS = 120


@pytest.fixture(scope="module")
def plain() -> PlantedRouting:
    """Six topics of 20 documents: two tokens in three from one Zipf vocabulary."""
    return planted_routing(documents_per_topic=20, tokens=TOKENS, n_layers=1, num_experts=4, seed=3)


def trace_of(path: Path, given: PlantedRouting, ids: np.ndarray, **columns: list[str]) -> Trace:
    """A trace with these token ids, shape (n_documents, tokens), in two shards."""
    return write_routing(path, replace(given, token_id=ids.ravel(), documents=given.documents.assign(**columns)))


def cut_anew(given: PlantedRouting, ids: np.ndarray, document: np.ndarray) -> PlantedRouting:
    """The same tokens divided into documents of other lengths."""
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    position = np.arange(len(document)) - np.repeat(starts, np.diff(np.append(starts, len(document))))
    return replace(given, token_id=ids, document=document, position=position)


def ids_of(given: PlantedRouting) -> np.ndarray:
    return given.token_id.reshape(-1, TOKENS).copy()


def test_independent_texts_of_one_vocabulary_are_no_alarm(plain: PlantedRouting, tmp_path: Path) -> None:
    found = near_duplicates(trace_of(tmp_path, plain, ids_of(plain)))
    assert found.table.empty and found.warnings == () and found.params["copied"] == 0
    assert found.params["groups"] == found.params["groups_if_joined"] == 120


def test_copies_and_near_copies_are_found_and_counted(plain: PlantedRouting, tmp_path: Path) -> None:
    ids = ids_of(plain)
    ids[[1, 2]] = ids[0]  # copies within a topic, one of another topic, and across the two shards
    ids[110] = ids[30]
    rng = np.random.default_rng(0)
    for i in range(8):  # one token in ten replaced
        ids[50 + i] = np.where(rng.random(TOKENS) < 0.1, rng.integers(0, 400, TOKENS), ids[40 + i])
    found = near_duplicates(trace_of(tmp_path, plain, ids))
    table = found.table.set_index("document")
    exact = [f"document-{i:04d}" for i in (0, 1, 2, 30, 110)]
    assert (table.loc[exact, "overlap"] == 1).all() and table.loc["document-0110", "other"] == "document-0030"
    assert set(table.index) == {*exact, *(f"document-{i:04d}" for i in (*range(40, 48), *range(50, 58)))}
    # where r of the tokens are replaced, 8 in a row are left of them with probability (1 - r)^8
    assert table.loc[[f"document-{i:04d}" for i in range(50, 58)], "overlap"].mean() == pytest.approx(0.9**8, abs=0.1)
    assert found.params["copied"] == 21 and found.params["groups_if_joined"] == 120 - 2 - 1 - 8
    assert found.params["copied_across_labels"] == 2
    assert "21 of 120 documents share over a quarter" in found.warnings[0] and "--group-column" in found.warnings[0]
    assert "2 copies have another topic than the document that they copy" in found.warnings[0]


def test_common_passages_are_counted_one_by_one(plain: PlantedRouting, tmp_path: Path) -> None:
    ids = ids_of(plain)
    ids[7, :40] = ids[3, :40]  # of 113 passages 33 are common
    ids[8, :20] = ids[3, 60:80]  # 13 of 113: over a tenth, not a quarter
    found = near_duplicates(trace_of(tmp_path, plain, ids))
    table = found.table.set_index("document")
    for name, column, shared in (("0007", "overlap", 33), ("0008", "overlap", 13), ("0003", "common", 46)):
        assert table.loc[f"document-{name}", column] == pytest.approx(shared / 113, abs=0.03)
    assert found.params["copied"] == 2 and found.params["common"] == 1


def test_excerpts_are_contained_in_their_source_and_not_the_other_way_round(plain: PlantedRouting, tmp_path: Path) -> None:
    ids = ids_of(plain)
    of = np.repeat(np.arange(120), TOKENS)
    of[: TOKENS * 6] = np.repeat(np.arange(6), [620, 20, 20, 20, 20, 20])
    flat = ids.ravel()
    flat[620:720] = flat[:100]
    table = near_duplicates(write_routing(tmp_path, cut_anew(plain, flat, of))).table.set_index("document")
    cut_out = [f"document-{i:04d}" for i in range(1, 6)]
    assert (table.loc[cut_out, "overlap"] == 1).all() and (table.loc[cut_out, "other"] == "document-0000").all()
    assert table.loc["document-0000", "overlap"] < 0.05 and table.loc["document-0000", "common"] > 0.1


def test_a_shared_group_says_it_already(plain: PlantedRouting, tmp_path: Path) -> None:
    ids = ids_of(plain)
    ids[10:15] = ids[10]
    named = [("book" if 10 <= i < 15 else f"own-{i}") for i in range(120)]
    assert near_duplicates(trace_of(tmp_path / "a", plain, ids, group=named)).warnings == ()
    assert near_duplicates(trace_of(tmp_path / "b", plain, ids, group=[""] * 120)).params["copied"] == 5


def test_a_template_of_all_documents_is_none_and_boilerplate_of_a_source_is(plain: PlantedRouting, tmp_path: Path) -> None:
    ids = ids_of(plain)
    ids[:, :60] = ids[0, :60]  # a system prompt in front of everything
    assert near_duplicates(trace_of(tmp_path / "a", plain, ids)).table.empty
    ids = ids_of(plain)
    ids[20:40, -30:] = ids[20, -30:]  # a footer of one source: 23 of 113 passages
    found = near_duplicates(trace_of(tmp_path / "b", plain, ids))
    assert found.params["copied"] == 0 and found.params["common"] == 20
    assert "20 of 120 documents share over a tenth of their 8-token passages" in found.warnings[0]
    assert found.table["common"].to_numpy() == pytest.approx(23 / 113, abs=0.03)  # the token before may be the same too


def test_a_single_quotation_is_listed_and_not_warned_of(plain: PlantedRouting, tmp_path: Path) -> None:
    ids = ids_of(plain)
    ids[20, -22:] = ids[30, -22:]  # 15 of 113 passages: one document in 120 is below one in a hundred
    found = near_duplicates(trace_of(tmp_path, plain, ids, group=["one" if i == 30 else "" for i in range(120)]))
    assert found.params["common"] == 2 and len(found.warnings) == 1
    assert module._warnings(found.params | {"documents": 1000}) == ()


def test_documents_without_a_passage_are_compared_whole(plain: PlantedRouting, tmp_path: Path) -> None:
    of = np.repeat(np.arange(120), TOKENS)
    of[: 2 * TOKENS] = np.repeat(np.arange(2), [TOKENS * 2 - 5, 5])
    of[2 * TOKENS : 4 * TOKENS] = np.repeat(np.arange(2, 4), [TOKENS * 2 - 5, 5])
    flat = plain.token_id.copy()
    flat[4 * TOKENS - 5 : 4 * TOKENS] = flat[2 * TOKENS - 5 : 2 * TOKENS]
    table = near_duplicates(write_routing(tmp_path / "a", cut_anew(plain, flat, of))).table
    assert sorted(table["document"]) == ["document-0001", "document-0003"] and (table["overlap"] == 1).all()
    flat[2 * TOKENS - 5 : 2 * TOKENS] = flat[2 * TOKENS - 5 : 2 * TOKENS][::-1]  # the same tokens in another order
    assert near_duplicates(write_routing(tmp_path / "b", cut_anew(plain, flat, of))).table.empty


def test_a_sample_of_passages_finds_the_same_documents(plain: PlantedRouting, tmp_path: Path) -> None:
    ids = ids_of(plain)
    ids[60:70] = ids[80:90]
    trace = trace_of(tmp_path, plain, ids)
    some = near_duplicates(trace, max_passages=trace.n_tokens // 4)
    assert some.params["hashed_share"] == pytest.approx(0.25, abs=0.01)
    assert set(some.table["document"]) == set(near_duplicates(trace).table["document"])


def test_the_warning_ends_the_analysis_and_is_an_alert(
    plain: PlantedRouting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ANALYSES[-1].name == "near_duplicates"
    monkeypatch.setattr("moe_probe.studies.analyses.ANALYSES", [a for a in ANALYSES if a.essential or a is ANALYSES[-1]])
    ids = ids_of(plain)
    ids[5] = ids[4]
    trace = trace_of(tmp_path / "trace", plain, ids)
    messages: list[str] = []
    results = analyze(trace, tmp_path / "results", settings=AnalysisSettings(permutations=99), say=messages.append)
    assert "2 of 120 documents share over a quarter" in messages[-1] and messages[-1].startswith("  note: ")
    section = alerts_section(trace, results)
    assert str(section.blocks).count("share over a quarter") == 1 and "documents that share text" in section.finding


def test_twenty_thousand_documents_take_seconds() -> None:
    """A third of them with one boilerplate, a thousand copies."""
    rng = np.random.default_rng(0)
    n, tokens = 20_000, 100
    ids = rng.zipf(1.3, (n, tokens)) % 5_000
    ids[::3, :40] = ids[0, :40]
    ids[1:2000:2] = ids[::2][:1000]

    columns = {"document": np.repeat(np.arange(n), tokens), "token_id": ids.ravel(), "special": np.zeros(n * tokens, bool)}
    trace = SimpleNamespace(n_tokens=n * tokens, iter_tokens=lambda names: [(None, SimpleNamespace(columns=columns))])
    started = time.process_time()
    found = module._read(cast(Trace, trace), n, 8_000_000)
    overlap, *_ = module._compare(found, np.arange(n), n)
    assert time.process_time() - started < 30
    assert (overlap[1:2000:2] == 1).all()
