"""Layers of one, a few and many experts in one trace: no rows for experts that do not exist, no claim without a choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.faces import markdown_of

from moe_probe.recording.importers import ImportOptions, ImportSource, TokenRecord, import_records
from moe_probe.recording.trace import Trace
from moe_probe.report import write_report
from moe_probe.studies import analyses as pipeline
from moe_probe.studies.analyses import AnalysisSettings, analyze

N_EXPERTS = {0: 1, 2: 8, 5: 64}
TOP_K = {0: 1, 2: 2, 5: 8}
TOPICS, DOCUMENTS, TOKENS = 3, 36, 60


def records(seed: int = 0) -> list[TokenRecord]:
    rng = np.random.default_rng(seed)
    of_topic = {layer: rng.normal(0, 1, (TOPICS, n)) for layer, n in N_EXPERTS.items()}
    of_token = {layer: rng.normal(0, 1, (80, n)) for layer, n in N_EXPERTS.items()}
    out = []
    for d in range(DOCUMENTS):
        ids = np.minimum(rng.zipf(1.4, TOKENS), 80) - 1
        experts = np.full((TOKENS, 3, 8), -1, dtype=np.int64)
        weights = np.zeros(experts.shape)
        for column, (layer, n) in enumerate(N_EXPERTS.items()):
            logits = of_topic[layer][d % TOPICS] + of_token[layer][ids] + rng.gumbel(size=(TOKENS, n))
            experts[:, column, : TOP_K[layer]] = np.argsort(-logits, axis=1)[:, : TOP_K[layer]]
            weights[:, column, : TOP_K[layer]] = 1 / TOP_K[layer]
        labels = {"document": f"d{d:02d}", "topic": f"t{d % TOPICS}", "subtopic": f"s{d % (2 * TOPICS)}"}
        out.append(TokenRecord(labels, ids, np.arange(TOKENS), [f" word{i}" for i in ids], experts, weights))
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    import_records(
        lambda: iter(records()),
        root / "trace",
        ImportSource(list(N_EXPERTS), "mixed", ""),
        options=ImportOptions(num_experts=N_EXPERTS),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "ANALYSES", tuple(a for a in pipeline.ANALYSES if a.name != "clusters"))  # UMAP takes long
        analyze(Trace.open(root), root / "results", settings=AnalysisSettings(permutations=99))
    return root


def tables(run: Path) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in sorted((run / "results").glob("*.parquet"))}


def test_no_expert_that_does_not_exist(run: Path) -> None:
    looked = 0
    for name, table in tables(run).items():
        for column in ("expert", "expert_a", "expert_b"):
            if "layer" in table and column in table:
                looked += 1
                assert (table[column] < table["layer"].map(N_EXPERTS)).all(), (name, column)
    assert looked > 8
    experts = tables(run)["experts"]
    assert experts.groupby("layer").size().to_dict() == N_EXPERTS


def test_one_expert_is_never_a_finding(run: Path) -> None:
    for name, table in tables(run).items():
        if "layer" not in table:
            continue
        alone = table[table["layer"] == 0]
        for column in ("significant", "beyond", "replicated"):
            if column in alone:
                assert not alone[column].any(), (name, column)
        if "p_value" in alone:
            assert not (alone["p_value"] < 0.05).any(), name
    assert (tables(run)["verdicts"]["layer"] != 0).all()
    layer = tables(run)["layers"].set_index("layer").loc[0]
    assert abs(layer["entropy_bits"]) < 1e-12 and layer["effective_experts"] == 1


def test_a_lone_expert_is_used_as_its_words_predict(run: Path) -> None:
    for name in ("beyond_vocabulary", "beyond_token_pairs"):
        alone = tables(run)[name].query("layer == 0")
        assert (alone["share"] == alone["expected_share"]).all() and (alone["log2_ratio"] == 0).all(), name


def test_the_report_is_written(run: Path) -> None:
    write_report(run)
    text = markdown_of(run)
    assert "Traceback" not in text and not any(word in text.split() for word in ("nan", "inf", "-inf"))


def test_experts_that_all_tokens_use_are_no_finding(tmp_path: Path) -> None:
    from moe_probe.experts.explain import expected_usage, topic_beyond_vocabulary

    made = [every_expert(record) for record in records(1)]
    trace = import_records(
        lambda: iter(made), tmp_path / "t", ImportSource([0], "all", ""), options=ImportOptions(num_experts=2)
    )
    assert not topic_beyond_vocabulary(trace, usage=expected_usage(trace), permutations=99).table["beyond"].any()


def every_expert(record: TokenRecord) -> TokenRecord:
    return record._replace(experts=np.tile(np.array([0, 1]), (TOKENS, 1, 1)), weights=None)
