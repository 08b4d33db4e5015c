"""Labels, documents and tables that one side of something has and the other has not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from support.compared_runs import results_of
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.stats import auroc
from moe_probe.features.describe import choose_cards
from moe_probe.features.firing import Firings
from moe_probe.features.matching.routing_split import RoutingSplit
from moe_probe.features.matching.signals import Selections, TokenTable
from moe_probe.features.matching.topic_predictors import TopicPredictors
from moe_probe.features.topic_enrichment import GroupRates, enrich, group_rates
from moe_probe.models import load_model
from moe_probe.recording.collect import CollectOptions, collect_trace
from moe_probe.recording.corpus import Corpus
from moe_probe.recording.trace import Trace
from moe_probe.report.sections.units import carriers_section
from moe_probe.studies.compare import compare_runs


def rates(topics: list[str], seed: int) -> GroupRates:
    names = tuple(sorted(set(topics)))
    number = np.array([names.index(t) for t in topics])
    values = np.random.default_rng(seed).random((len(topics), 5)) + (number == 0)[:, None] * np.array([0.5, 0, 0, 0, 0])
    return GroupRates(values, number, names, np.full(len(topics), 50), tuple(map(str, range(len(topics)))))


def test_a_topic_of_held_out_documents_only_is_among_the_others() -> None:
    train, held_out = rates(["a", "b", "c"] * 5, 0), rates(["a"] * 3 + ["b"] * 3 + ["only here"] * 4, 1)
    found = enrich(train, held_out, permutations=99)
    best = found.topics.index("a")
    assert found.topics == ("a", "b", "c") and found.best[0] == best
    # AUROC by counting pairs: three documents of a against the seven others, whatever they are
    one, others = held_out.rates[:3, 0], held_out.rates[3:, 0]
    assert found.auroc[0] == pytest.approx(np.mean(one[:, None] > others[None]))
    assert np.isnan(auroc(held_out.rates, np.full(10, -1), n_topics=3)).all()


def test_no_held_out_document_of_any_topic_and_no_training_document() -> None:
    documents = pd.DataFrame({"document": ["x", "y", "z"], "topic": ["a", "b", ""]})
    part = [Firings(sparse.csr_array(np.ones((2, 3), dtype=np.float32)), np.array(rows)) for rows in ([0, 1], [2, 3])]
    first, second = (group_rates(documents, np.array([0, 1, 2, 2]), p, label="topic") for p in part)
    assert second.topics == () and second.rates.shape == (0, 3)
    assert np.isnan(enrich(first, second, permutations=99).auroc).all()
    with pytest.raises(MoeProbeError, match="no training document is labelled"):
        enrich(second, first)


def test_cards_of_a_dictionary_without_good_features() -> None:
    table = pd.DataFrame(
        {
            "feature": [0],
            "n_firings": [0],
            "label": [""],
            "topic": [""],
            "auroc_topic": [np.nan],
            "good": [False],
            "label_rule": [""],
            "label_score": [np.nan],
        }
    )
    assert choose_cards(table, n=8, seed=0) == []


def test_carriers_without_a_topic_of_two_documents_have_their_columns() -> None:
    chosen = sparse.csr_array(np.eye(4, dtype=np.int32))
    tokens = TokenTable(np.arange(4), np.arange(4), np.zeros(4, int), np.zeros(4, int), ("a", "b", "c", "d"), 4)
    selections = Selections(chosen, np.zeros(4, int), np.arange(4))
    split = RoutingSplit(selections, tokens, np.array([0, 1]), np.array([2, 3]))
    table = TopicPredictors(split).as_table({})
    assert table.empty and {"topic", "kind", "auroc_document", "beyond_expert_document"} <= set(table.columns)
    assert carriers_section({"carriers": Result("carriers", table)}) is None


def write_corpus(path: Path, prefix: str, *, documents: int = 30) -> Path:
    """Every document has a subtopic of its own, and one in six a topic of its own."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(documents):
            topic = f"rare-{i}" if i % 6 == 5 else f"topic-{i % 3}"
            file.write(
                json.dumps(
                    {
                        "id": f"{prefix}{i}",
                        "topic": topic,
                        "subtopic": f"of-{i}",
                        "text": " ".join(f"w{w}" for w in rng.integers(0, 90, 30)),
                    }
                )
                + "\n"
            )
    return path


@pytest.fixture(scope="module")
def runs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs, with text, of corpora that share no document; the first has SAEs of two widths."""
    made = []
    for name in ("x", "y"):
        root = tmp_path_factory.mktemp(name)
        corpus = write_corpus(root / "corpus.jsonl", name)
        trace = collect_trace(
            load_model(checkpoint, dtype="float32"),
            Corpus(str(corpus)),
            root / "trace",
            progress=False,
            options=CollectOptions(keep=("routing", "hidden"), hidden_share=1.0, hidden_layers=(1,)),
        )
        for result in results_of(trace, permutations=99).values():
            result.save(root / "results")
        made.append(root)
    done = CliRunner().invoke(
        app,
        ["sae", "train", str(made[0]), "--layers", "1", "--widths", "8,16", "--k", "2", "--epochs", "1", "-q"],
    )
    assert done.exit_code == 0, done.stderr
    return made[0], made[1]


@pytest.mark.parametrize(
    "words", [["label", "--permutations", "99"], ["match"], ["tree", "--no-null", "--permutations", "99"]]
)
def test_labels_of_held_out_documents_only_end_no_stage(words: list[str], runs: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(app, [words[0], str(runs[0]), *words[1:], "-q"])
    assert done.exit_code == 0, done.stderr
    if words[0] == "label":
        assert "subtopic" in Result.load(runs[0] / "results", "features").table


def test_runs_that_share_no_document_are_compared_as_independent(runs: tuple[Path, Path]) -> None:
    assert Trace.open(runs[0]).texts([]) == []
    found = compare_runs(runs, resamples=99, permutations=19)
    assert found["comparison_topics"].table["method"].str.startswith("independent bootstrap").all()
    assert "aligned_experts" not in found
    assert any("cannot be aligned" in note for note in found.notes)


def test_saes_on_one_side_only(runs: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(app, ["sae", "eval", str(runs[0]), "-q"])
    assert done.exit_code == 0, done.stderr
    for pair in (runs, runs[::-1]):
        table = compare_runs(pair, resamples=99, permutations=19)["comparison_saes"].table
        assert set(table["side"]) == {runs[0].name}


def test_a_run_without_a_unit_to_knock_out_goes_on(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_probe.runs.config import RunConfig
    from moe_probe.runs.stages import stages_of

    Result("ablation", pd.DataFrame({"topic": ["a"]})).save(runs[1] / "results")  # of other settings
    monkeypatch.setattr("moe_probe.models.load_model", lambda *given, **options: None)
    said: list[str] = []
    config = RunConfig.model_validate({"model": "m", "corpus": "c", "ablation": {"ablate": "mask"}})
    ablate = next(stage for stage in stages_of(config) if stage.name == "ablate")

    def refuse(*given: object, **options: object) -> None:
        raise MoeProbeError("the held-out documents have one topic", "there is nothing to compare it with", "more documents")

    monkeypatch.setattr("moe_probe.studies.ablation.ablate_run", refuse)
    assert ablate.run(runs[1], said.append) == []
    assert said == [
        (
            "note: nothing was knocked out: the held-out documents have one topic: there is nothing to compare it with. "
            "Try: more documents."
        )
    ]
    assert not list((runs[1] / "results").glob("ablation.*"))


def test_documents_without_a_group_are_groups_of_their_own_everywhere() -> None:
    """Documents whose group is missing or empty are no single source: none held out as one, no alert of few documents."""
    from types import SimpleNamespace
    from typing import Any

    from moe_probe.core.schema import Evidence
    from moe_probe.core.stats import group_names
    from moe_probe.report.sections.alerts import _few
    from moe_probe.sae.held_out import held_out_documents

    documents = pd.DataFrame(
        {"document": [f"d{i}" for i in range(48)], "topic": ["a", "b"] * 24, "group": [None] * 24 + [""] * 24}
    )
    trace: Any = SimpleNamespace(documents=documents, manifest=SimpleNamespace(evidence=Evidence.WORDS))
    assert group_names(documents).tolist() == documents["document"].tolist()
    held_out = held_out_documents(trace)
    assert held_out.sum() == 12 and held_out[documents["topic"] == "a"].sum() == 6
    assert _few(trace) == ""
