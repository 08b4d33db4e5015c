"""Imported traces: every format with token ids takes a tokenizer, and the run card says how a trace was made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.cli.importing import FORMATS
from moe_probe.recording.trace import Trace
from moe_probe.recording.trace.facts import is_imported, made_with, not_in_record, trace_facts
from moe_probe.report.sections.model_card import card_section

#: Words of the tests' checkpoint: 0 <bos>, 1 <pad>, 2 <unk>, then w0, w1, ...
IDS = [0, 3, 4, 5, 6, 7, 8, 9]
TEXTS = ["<bos>", *(f"w{i}" for i in range(7))]
N, LAYERS, K, EXPERTS = len(IDS), 2, 2, 8


def routing(document: int) -> np.ndarray:
    """Experts of every token, layer and slot."""
    rng = np.random.default_rng(document)
    return np.stack([[rng.choice(EXPERTS, K, replace=False) for _ in range(LAYERS)] for _ in IDS])


def table(folder: Path) -> list[str]:
    rows = [
        {"document": f"d{d}", "topic": "ab"[d], "position": i, "token_id": IDS[i]}
        | {f"experts_{layer}": routing(d)[i, layer].tolist() for layer in range(LAYERS)}
        for d in range(2)
        for i in range(N)
    ]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["t.jsonl", "--format", "table"]


def arrays(folder: Path) -> list[str]:
    experts = np.concatenate([routing(0), routing(1)])
    np.savez(folder / "a.npz", experts=experts, document=np.repeat([0, 1], N), token_id=np.tile(IDS, 2))
    pd.DataFrame({"document": ["d0", "d1"], "topic": ["a", "b"]}).to_csv(folder / "documents.csv", index=False)
    return ["a.npz", "--format", "arrays"]


def answers(engine: str) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        rows = [
            {"document": f"d{d}", "topic": "ab"[d], "token_ids": [*IDS, 3], "routed_experts": routing(d).tolist()}
            for d in range(2)
        ]
        (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return ["answers.jsonl", "--format", engine]

    return write


def distribution(folder: Path) -> list[str]:
    for d in range(2):
        chosen = np.full((LAYERS, N, 8), -1)
        chosen[:, :, :K] = routing(d).transpose(1, 0, 2)
        record = {
            "forward_pass_id": 1,
            "rank": 0,
            "input_ids": IDS,
            "positions": list(range(N)),
            "extend_seq_lens": [N],
            "forward_mode": 1,
            "topk_ids_of_layer": torch.tensor(chosen, dtype=torch.int32),
            "global_physical_count": torch.zeros((LAYERS, EXPERTS), dtype=torch.int32),
        }
        logical = torch.arange(EXPERTS, dtype=torch.int32).repeat(LAYERS, 1)
        torch.save({"records": [record], "last_physical_to_logical_map": logical}, folder / f"d{d}.pt")
    (folder / "documents.csv").write_text("file,topic\nd0.pt,a\nd1.pt,b\n")
    return ["*.pt", "--format", "sglang-distribution"]


WITH_IDS: dict[str, Callable[[Path], list[str]]] = {
    "table": table,
    "arrays": arrays,
    "vllm": answers("vllm"),
    "sglang": answers("sglang"),
    "sglang-distribution": distribution,
}


def run_import(folder: Path, words: list[str], *more: object) -> Any:
    source, *options = words
    given = ["import", folder / source, *options, "--out", folder / "trace", *more]
    return CliRunner().invoke(app, [str(word) for word in given])


@pytest.mark.parametrize("name", WITH_IDS)
def test_a_tokenizer_gives_the_ids_of_every_format_their_text(name: str, checkpoint: Path, tmp_path: Path) -> None:
    done = run_import(tmp_path, WITH_IDS[name](tmp_path), "--num-experts", EXPERTS, "--tokenizer", checkpoint)
    assert done.exit_code == 0, done.stderr
    trace = Trace.open(tmp_path / "trace")
    tokens = trace.tokens()
    assert [t.strip() for t in tokens["token"]] == TEXTS * 2 and tokens["token_id"].tolist() == IDS * 2
    assert tokens["special"].tolist() == [text == "<bos>" for text in TEXTS] * 2
    assert trace.manifest.tokenizer_hash and str(trace.manifest.evidence) == "tokens with words"


def test_every_format_either_has_ids_or_refuses_a_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    for name in set(FORMATS) - set(WITH_IDS):  # counts, and answers whose ids were not kept
        (tmp_path / "x_examples.json").write_text("{}")
        done = run_import(tmp_path, [".", "--format", name], "--tokenizer", checkpoint)
        assert done.exit_code == 2 and "--tokenizer cannot be used" in done.stderr, name


@pytest.mark.parametrize("name", WITH_IDS)
def test_the_run_card_says_how_an_imported_trace_was_made(name: str, tmp_path: Path) -> None:
    source = WITH_IDS[name](tmp_path)
    assert run_import(tmp_path, source, "--num-experts", EXPERTS).exit_code == 0
    trace = Trace.open(tmp_path / "trace")
    made = made_with(trace.manifest)
    assert made.startswith("moe-probe import, from ") and source[0] in made
    assert name in made.rpartition("(")[2]  # as --format calls it
    missing = " ".join(not_in_record(trace.manifest))
    assert all(what in missing for what in ("weights", "Gate weights", "texts", "Activations"))
    facts = dict(trace_facts(trace.manifest, trace.documents))
    assert facts["made with"] == made and facts["not in the record"] == missing
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "trace")]).stdout
    assert f"made with  {made}" in shown and f"not known  {missing}" in shown
    card = dict(card_section(trace.manifest, {}).blocks[0].items)  # type: ignore[union-attr]
    assert card["made with"] == made and card["not in the record"] == missing and "run.yaml" not in card["repeat with"]


def test_what_is_recorded_is_not_called_missing(tmp_path: Path) -> None:
    rows = [
        {"document": "d", "topic": "t", "position": i, "token_id": i, "experts_0": [i % 4, 5], "weights_0": [0.6, 0.4]}
        for i in IDS
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run_import(tmp_path, ["t.jsonl"], "--num-experts", EXPERTS).exit_code == 0
    manifest = Trace.open(tmp_path / "trace").manifest
    assert not any("Gate weights" in line for line in not_in_record(manifest))
    collected = manifest.model_copy(
        update={"model": manifest.model.model_copy(update={"fingerprint": "ab"}), "versions": {"torch": "2"}}
    )
    assert is_imported(manifest) and not is_imported(collected)
    assert not_in_record(collected) == [] and made_with(collected) == "torch 2; seed 0"
