"""Importing fingerprint files: what is in them arrives, and what is wrong with them is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moe_probe.core.errors import MoeProbeError
from moe_probe.recording.importers import ImportOptions, import_fingerprints


def answer(path: Path, *, category: str, prompt: str, tokens: list[str], first: int = 3, layers: int = 2) -> Path:
    rng = np.random.default_rng(len(prompt))
    routing = [
        {
            f"token_{first + i}": {
                f"layer_{layer}": {"selected_experts": rng.permutation(8)[:2].tolist(), "selected_probs": [0.75, 0.25]}
                for layer in range(layers)
            }
        }
        for i in range(len(tokens) - 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "dataset": "quiz",
                "category": category,
                "original_prompt": prompt,
                "full_text": ["<|start|>", "a", "b", *tokens],
                "generated_only": tokens,
                "router_data": routing,
            }
        ),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    answer(tmp_path / "data/x/one_examples.json", category="optics", prompt="Why?", tokens=["Be", "cause", "."])
    answer(tmp_path / "data/y/two_examples.json", category="optics", prompt="Why?", tokens=["Light", " bends", "."])
    answer(tmp_path / "data/y/three_examples.json", category="poetry", prompt="Rhyme", tokens=["cat", " hat"])
    return tmp_path / "data"


def test_answers_become_documents(folder: Path, tmp_path: Path) -> None:
    trace = import_fingerprints(folder, tmp_path / "t", options=ImportOptions(num_experts=8))
    documents = trace.documents.set_index("document")
    assert sorted(documents.index) == ["one", "three", "two"]
    assert documents.loc["one", "topic"] == "optics"
    assert documents.loc["one", "group"] == documents.loc["two", "group"] != documents.loc["three", "group"]
    assert trace.n_tokens == 2 + 2 + 1  # the last token of an answer was never routed
    chunk = next(trace.iter_routing())
    raw = json.loads((folder / "x/one_examples.json").read_text())
    rows = chunk.document == trace.documents.index[trace.documents["document"] == "one"][0]
    assert chunk.experts[rows][0, 1].tolist() == raw["router_data"][0]["token_3"]["layer_1"]["selected_experts"]
    assert chunk.weights is not None and chunk.weights[rows][0, 1].tolist() == [0.75, 0.25]
    assert chunk.position[rows].tolist() == [3, 4]
    assert trace.tokens(["token"])["token"].tolist()[:2] == ["Be", "cause"]


def test_topics_come_from_a_table(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "topics.csv").write_text("dataset,category,topic\nquiz,optics,physics\n", encoding="utf-8")
    options = ImportOptions(num_experts=8)
    trace = import_fingerprints(folder, tmp_path / "t", topics=tmp_path / "topics.csv", options=options)
    assert set(trace.documents["topic"]) == {"physics"}
    assert set(trace.documents["subtopic"]) == {"optics"}
    assert "1 of 3 answers left out" in trace.warnings[0]


def test_failures_are_sentences(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MoeProbeError, match="there is nothing at"):
        import_fingerprints(tmp_path / "nowhere", tmp_path / "t")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MoeProbeError, match="no fingerprint files"):
        import_fingerprints(tmp_path / "empty", tmp_path / "t")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(MoeProbeError, match="columns are a, b"):
        import_fingerprints(folder, tmp_path / "t", topics=tmp_path / "bad.csv")
    odd = answer(folder / "z/odd_examples.json", category="optics", prompt="x", tokens=["a", "b"], layers=3)
    with pytest.raises(MoeProbeError, match="layers"):
        import_fingerprints(folder, tmp_path / "t")
    odd.write_text("{")
    with pytest.raises(MoeProbeError, match="not JSON"):
        import_fingerprints(folder, tmp_path / "t")
    odd.write_text('{"dataset": "quiz"}')
    with pytest.raises(MoeProbeError, match="has no category"):
        import_fingerprints(folder, tmp_path / "t")
    assert not (tmp_path / "t").exists()
