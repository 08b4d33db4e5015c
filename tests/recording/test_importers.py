"""Importing what others recorded: the interchange table, vLLM's arrays, SGLang's strings."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.recording.importers import ImportOptions, import_responses, import_table
from moe_probe.recording.trace import Trace, verify
from moe_probe.testing import planted_routing

ROUTING = planted_routing(topics=3, documents_per_topic=4, tokens=30, n_layers=2, num_experts=8, lift=1.0)
LAYERS = (1, 3)  # a model whose first and third blocks are dense


def table(*, weights: bool = True) -> dict[str, list]:
    r = ROUTING
    columns: dict[str, list] = {
        "document": r.documents["document"].to_numpy()[r.document].tolist(),
        "topic": r.documents["topic"].to_numpy()[r.document].tolist(),
        "position": r.position.tolist(),
        "token_id": r.token_id.tolist(),
        "token": [f"t{i}" for i in r.token_id],
    }
    for i, layer in enumerate(LAYERS):
        columns[f"experts_{layer}"] = r.experts[:, i].tolist()
        if weights:
            columns[f"weights_{layer}"] = r.weights[:, i].astype(float).tolist()
    return columns


def write(path: Path, columns: dict[str, list]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        rows = zip(*columns.values(), strict=True)
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return path


def check(trace: Trace, *, weights: bool) -> None:
    experts = np.concatenate([c.experts for c in trace.iter_routing()])
    assert (experts == ROUTING.experts).all()
    assert [layer.layer for layer in trace.layers] == list(LAYERS)
    assert (trace.usage().selections == ROUTING.usage().selections).all()
    assert trace.manifest.has_weights is weights and verify(trace.root) == []


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
@pytest.mark.parametrize("weights", [True, False])
def test_table(tmp_path: Path, name: str, weights: bool) -> None:
    path = write(tmp_path / name, table(weights=weights))
    options = ImportOptions(num_experts=8, shard_tokens=100)
    trace = import_table(path, tmp_path / "trace", options=options)
    check(trace, weights=weights)
    assert trace.warnings == () == Trace.open(trace.root).warnings


def test_number_of_experts_is_guessed_aloud_or_read(tmp_path: Path) -> None:
    trace = import_table(write(tmp_path / "t.parquet", table()), tmp_path / "a")
    assert "guessed" in trace.warnings[0]
    plain = pa.table(table())
    schema = pa.schema(
        [f.with_metadata({"num_experts": "12"}) if f.name.startswith("experts_") else f for f in plain.schema]
    )
    pq.write_table(plain.cast(schema), tmp_path / "m.parquet")
    trace = import_table(tmp_path / "m.parquet", tmp_path / "b")
    assert trace.layers[0].num_experts == 12 and trace.warnings == ()


def test_short_lists_are_empty_slots(tmp_path: Path) -> None:
    columns = table(weights=False)
    columns["experts_1"][7] = columns["experts_1"][7][:1]
    trace = import_table(write(tmp_path / "t.jsonl", columns), tmp_path / "a", options=ImportOptions(num_experts=8))
    chunk = next(trace.iter_routing())
    assert chunk.experts[7, 0].tolist() == [columns["experts_1"][7][0], 255]


def spoil(columns: dict[str, list], what: str) -> dict[str, list]:
    if what == "no topic":
        del columns["topic"]
    elif what == "no routing":
        columns = {k: v for k, v in columns.items() if not k.startswith("experts")}
    elif what == "one weight":
        del columns["weights_3"]
    elif what == "scattered":
        columns["document"][-1] = columns["document"][0]
    elif what == "too large":
        columns["experts_1"][5] = [0, 9]
    elif what == "two topics":
        columns["topic"][1] = "other"
    elif what == "negative":
        columns["experts_1"][5] = [0, -1]
    elif what == "empty topic":
        columns["topic"][3] = ""
    elif what == "no integers":
        columns["position"] = [p + 0.5 for p in columns["position"]]
    return columns


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no topic", "no column 'topic'"),
        ("no routing", "has no routing"),
        ("one weight", "weights_3 is missing"),
        ("scattered", "comes a second time"),
        ("too large", "expert 9 of 8"),
        ("two topics", "changes its labels"),
        ("negative", "row 6 .* negative id"),
        ("empty topic", "row 4 .* has no topic"),
        ("no integers", "not a whole number"),
    ],
)
def test_bad_tables(tmp_path: Path, what: str, message: str) -> None:
    path = write(tmp_path / "t.parquet", spoil(table(), what))
    with pytest.raises(MoeProbeError, match=message):
        import_table(path, tmp_path / "a", options=ImportOptions(num_experts=8))


def responses(path: Path, *, sglang: bool) -> Path:
    with path.open("w") as file:
        for i, name in enumerate(ROUTING.documents["document"]):
            rows = ROUTING.document == i
            experts = ROUTING.experts[rows].astype("<i4")
            ids = ROUTING.token_id[rows].tolist() + ([5] if sglang else [])  # SGLang: nothing for the last token
            routed = base64.b64encode(experts.tobytes()).decode() if sglang else experts.tolist()
            file.write(
                json.dumps(
                    {"document": name, "topic": ROUTING.documents["topic"][i], "token_ids": ids, "routed_experts": routed}
                )
                + "\n"
            )
    return path


@pytest.mark.parametrize("sglang", [True, False])
def test_server_answers(tmp_path: Path, sglang: bool) -> None:
    path = responses(tmp_path / "answers.jsonl", sglang=sglang)
    trace = import_responses(path, tmp_path / "a", layers=LAYERS, top_k=2, options=ImportOptions(num_experts=8))
    check(trace, weights=False)
    if sglang:
        with pytest.raises(UsageError, match="base64"):
            import_responses(path, tmp_path / "b", options=ImportOptions(num_experts=8))


def test_refused_number_of_experts() -> None:
    with pytest.raises(UsageError, match="a layer has 1 to"):
        ImportOptions(num_experts=0)


def test_more_tokens_than_routing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"document": "d", "topic": "t", "token_ids": [1, 2, 3, 4], "routed_experts": [[[0, 1]]]}) + "\n"
    )
    with pytest.raises(MoeProbeError, match="4 tokens and routing for 1"):
        import_responses(path, tmp_path / "b")


@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_import_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    from moe_probe.recording.trace import TraceWriter

    path, options = write(tmp_path / "t.parquet", table()), ImportOptions(num_experts=8, shard_tokens=60)
    append, calls = TraceWriter.append, []

    def dying(self: TraceWriter, **arrays: Any) -> object:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return append(self, **arrays)

    monkeypatch.setattr(TraceWriter, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        import_table(path, tmp_path / "a", options=options)
    monkeypatch.undo()
    check(import_table(path, tmp_path / "a", options=options, mode="resume"), weights=True)
