"""What ships in data/: the probe corpus keeps its promises, the model loads and routes."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from moe_probe.recording.corpus import Columns, Corpus

DATA = Path(__file__).resolve().parents[1] / "data"
TOPICS = {
    "chemistry",
    "physics",
    "astronomy",
    "biology",
    "mathematics",
    "programming",
    "history",
    "economics",
    "law and government",
    "psychology",
    "philosophy",
    "medicine",
}


@pytest.fixture(scope="module")
def documents() -> list:
    return list(Corpus(DATA / "probe_corpus.jsonl", columns=Columns(labels=("register",))))


def test_topics_subtopics_and_registers_are_balanced(documents: list) -> None:
    assert len(documents) >= 480
    assert {d.topic for d in documents} == TOPICS
    cells = Counter((d.topic, d.subtopic, d.labels["register"]) for d in documents)
    assert set(cells.values()) == {4} and len(cells) == 12 * 4 * 3
    assert {d.labels["register"] for d in documents} == {"textbook", "conversation", "qa"}
    with (DATA / "probe_corpus.jsonl").open(encoding="utf-8") as lines:
        assert {tuple(json.loads(line)) for line in lines} == {("id", "topic", "subtopic", "register", "text")}


def test_documents_are_short_and_open_differently(documents: list) -> None:
    lengths = [len(d.text.split()) for d in documents]
    assert min(lengths) >= 120 and max(lengths) <= 220
    openings = Counter(" ".join(d.text.split()[:3]).lower() for d in documents)
    assert max(openings.values()) <= 6


def test_no_two_documents_are_near_duplicates(documents: list) -> None:
    """No pair shares more than 3 in 100 of its four-word runs (of the shorter document)."""
    from scipy import sparse

    runs: dict[tuple[str, ...], int] = {}
    rows, columns = [], []
    for row, document in enumerate(documents):
        words = re.findall(r"\w+", document.text.lower())
        for run in {tuple(words[i : i + 4]) for i in range(len(words) - 3)}:
            rows.append(row)
            columns.append(runs.setdefault(run, len(runs)))
    matrix = sparse.csr_array((np.ones(len(rows), dtype=np.int32), (rows, columns)))
    shared = np.asarray((matrix @ matrix.T).todense(), dtype=float)
    size = shared.diagonal().copy()
    np.fill_diagonal(shared, 0)
    overlap = shared / np.minimum(size[:, None], size)
    worst = np.unravel_index(overlap.argmax(), overlap.shape)
    assert overlap.max() <= 0.03, [documents[i].id for i in worst]


def test_registers_can_be_told_from_topics(documents: list) -> None:
    """Knowing the register tells nothing of the topic: every topic has each equally often."""
    table = Counter((d.topic, d.labels["register"]) for d in documents)
    assert len(set(table.values())) == 1


@pytest.mark.parametrize("name", ["final", "early"])
def test_shipped_model_routes_as_recorded(name: str) -> None:
    from moe_probe.models import load_model, self_check

    loaded = load_model(DATA / "model" / name, progress=False)
    assert len(loaded.sites) == 6 and {(s.info.num_experts, s.info.top_k) for s in loaded.sites} == {(16, 2)}
    assert loaded.info.dtype == "bfloat16" and loaded.max_length == 512
    report = self_check(loaded)
    report.raise_if_failed()
    assert report.ok


def test_model_has_learned(documents: list) -> None:
    """The final model predicts the probe corpus better than the early one, and the early one better than chance."""
    import torch

    from moe_probe.models import load_model

    losses = {}
    for name in ("early", "final"):
        loaded = load_model(DATA / "model" / name, progress=False)
        total = []
        for document in documents[::48]:
            ids = torch.tensor([loaded.tokenizer(document.text)["input_ids"][:512]])
            with torch.inference_mode():
                total.append(float(loaded.model(input_ids=ids, labels=ids).loss))
        losses[name] = np.mean(total)
    assert losses["final"] < losses["early"] - 1 < np.log(4096) - 1


def test_data_stays_small() -> None:
    assert sum(p.stat().st_size for p in DATA.rglob("*") if p.is_file()) < 60e6
