"""Counts without tokens become traces: what is written, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.schema import Evidence
from moe_probe.recording.importers import ImportOptions, ImportSource, UsageBlock, import_usage_records
from moe_probe.recording.trace import Trace, merge_traces, verify

LAYERS, EXPERTS, TOP_K = (1, 3, 4), 6, 2
SOURCE = ImportSource(LAYERS, "mine.npz", "")
SUMS = replace(SOURCE, sums=True)
K = ImportOptions(top_k=TOP_K)


def selections(tokens: list[int], seed: int = 0) -> np.ndarray:
    """Counts of top-2 routing, shape (n_documents, n_layers, n_experts)."""
    rng = np.random.default_rng(seed)
    odds = rng.random((sum(tokens), len(LAYERS), EXPERTS))
    chosen = odds >= np.sort(odds, axis=2)[:, :, -TOP_K, None]
    document = np.repeat(np.arange(len(tokens)), tokens)
    return np.stack([chosen[document == d].sum(axis=0) for d in range(len(tokens))])


def labels(n: int, prefix: str = "d") -> list[dict[str, str]]:
    return [{"document": f"{prefix}{i}", "topic": "law" if i % 2 else "math"} for i in range(n)]


TOKENS = [5, 9, 20, 3]
COUNTS = selections(TOKENS)


def block(counts: np.ndarray = COUNTS, prefix: str = "d", **more: Any) -> UsageBlock:
    return UsageBlock(labels(len(counts), prefix), counts, **more)


def test_counts_become_a_trace_without_tokens(tmp_path: Path) -> None:
    gate = COUNTS * 0.25
    trace = import_usage_records(
        [
            block(COUNTS[:3], gate=gate[:3], saliency=2 * gate[:3]),
            UsageBlock(labels(4)[3:], COUNTS[3:], None, gate[3:], 2 * gate[3:]),
        ],
        tmp_path / "t",
        SOURCE,
        options=K,
    )
    usage = trace.usage()
    assert np.array_equal(usage.selections, COUNTS)
    assert usage.gate_mass is not None and np.array_equal(usage.gate_mass, gate)
    assert usage.saliency is not None and np.array_equal(usage.saliency, 2 * gate)
    assert trace.documents["n_tokens"].tolist() == TOKENS and trace.n_tokens == sum(TOKENS)
    assert trace.documents["group"].tolist() == trace.documents["document"].tolist()
    assert [layer.top_k for layer in trace.layers] == [TOP_K] * 3 and trace.manifest.evidence is Evidence.DOCUMENTS
    assert verify(trace.root) == [] and len(trace.manifest.shards) == 2
    code = np.array([0, 1, 0, 1])
    summed = usage.summed(code, 2, measure="saliency")
    assert np.allclose(summed.reshape(2, 3, EXPERTS)[1], 2 * (gate[1] + gate[3]))
    assert np.allclose(usage.document_totals("saliency"), 2 * gate.sum((1, 2)))


def test_sums_are_the_weakest_evidence(tmp_path: Path) -> None:
    trace = import_usage_records([block()], tmp_path / "t", SUMS, options=K)
    assert trace.manifest.evidence is Evidence.COUNTS


def test_top_k_follows_from_tokens_layer_by_layer(tmp_path: Path) -> None:
    counts = COUNTS.copy()
    counts[:, 1] = 0
    counts[:, 1, 4] = TOKENS  # one expert per token there
    trace = import_usage_records([block(counts, tokens=np.array(TOKENS))], tmp_path / "t", SOURCE)
    assert [layer.top_k for layer in trace.layers] == [2, 1, 2] and trace.warnings == ()


def test_dense_layers_and_empty_documents_are_left_out_aloud(tmp_path: Path) -> None:
    counts = COUNTS.copy()
    counts[:, 1] = 0
    counts[2] = 0
    trace = import_usage_records([block(counts)], tmp_path / "t", SOURCE, options=K)
    assert [layer.layer for layer in trace.layers] == [1, 4]
    assert trace.documents["document"].tolist() == ["d0", "d1", "d3"]
    assert "1 layer of 3 (3)" in trace.warnings[0] and "1 document (d2)" in trace.warnings[1]
    assert (trace.usage().selections == counts[[0, 1, 3]][:, [0, 2]]).all()


def test_dropped_tokens_need_both_numbers(tmp_path: Path) -> None:
    counts = COUNTS.copy()
    counts[1, 2, counts[1, 2].argmax()] -= 1
    with pytest.raises(MoeProbeError, match=r"'d1' has 17 selections in layer 4 and 18 in layer 1"):
        import_usage_records([block(counts)], tmp_path / "a", SOURCE, options=K)
    with pytest.raises(MoeProbeError, match=r"'d1' has 17 selections by 9 tokens in layer 4"):
        import_usage_records([block(counts, tokens=np.array(TOKENS))], tmp_path / "b", SOURCE)
    trace = import_usage_records([block(counts, tokens=np.array(TOKENS))], tmp_path / "c", SOURCE, options=K)
    assert "1 of 222 selections" in trace.warnings[0] and trace.documents["n_tokens"].tolist() == TOKENS


def spoiled(what: str) -> dict[str, Any]:
    """Arguments of a block that is wrong in one way."""
    counts, more = COUNTS.astype(float), {}
    gate = COUNTS * 0.5
    values = {"negative": -1, "missing": np.nan, "infinite": np.inf, "half": 0.5}
    if what in values:
        counts[2, 1, 3] = values[what]
    elif what == "odd":
        counts[2, :, 0] += 1
    elif what == "twice":
        counts[3] = 0
        counts[3, :, :2] = [[5, 1]] * 3
    elif what == "gate":
        gate[1, 0, 0] = np.nan
        more["gate"] = gate
    elif what == "gate of nothing":
        counts[0, 0] = [10, 0, 0, 0, 0, 0]
        more["gate"] = gate + 1
    elif what == "shape":
        more["saliency"] = gate[:, :2]
    elif what == "tokens":
        more["tokens"] = np.array([5, 9, 0, 3])
    return {"counts": counts, **more}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("negative", r"'d2' has -1 in counts of layer 3, expert 3"),
        ("missing", r"'d2' has nan in counts of layer 3.*missing"),
        ("infinite", r"'d2' has inf in counts"),
        ("half", r"whole numbers"),
        ("odd", r"'d2' has 41 selections in layer 1.*no multiple"),
        ("twice", r"'d3' has an expert with 5 selections in layer 1"),
        ("gate", r"'d1' has nan in gate of layer 1, expert 0"),
        ("gate of nothing", r"never selects"),
        ("shape", r"saliency has shape"),
        ("tokens", r"'d2' has selections and no tokens"),
    ],
)
def test_what_is_no_usage_is_refused_by_document(tmp_path: Path, what: str, message: str) -> None:
    arguments = spoiled(what)
    with pytest.raises(MoeProbeError, match=message):
        import_usage_records([block(**arguments)], tmp_path / "t", SOURCE, options=K)
    assert not (tmp_path / "t").exists()


def test_other_refusals(tmp_path: Path) -> None:
    def refused(message: str, blocks: list[UsageBlock], kind: type = MoeProbeError, **more: Any) -> None:
        with pytest.raises(kind, match=message):
            import_usage_records(blocks, tmp_path / "t", SOURCE, **({"options": K} | more))

    refused("--top-k K", [block()], UsageError, options=ImportOptions())
    refused("document 'd0' comes a second time", [block(), block()])
    refused("an expert with 21 selections", [block(COUNTS * 7, tokens=np.array(TOKENS))], options=ImportOptions())
    refused("selects expert 5 of 5", [block()], options=replace(K, num_experts=5))
    refused("no layer 2", [block()], options=replace(K, layers=(2,)))
    refused("names layer 9", [block()], UsageError, options=replace(K, num_experts={9: 6}))
    refused("no selection", [block(COUNTS * 0)])
    refused("has no topic", [UsageBlock([{"document": "d0", "topic": " "}], COUNTS[:1])])
    refused("other parts", [block(), block(prefix="e", gate=COUNTS * 0.1)])
    refused("counts for 2 layers", [block(COUNTS[:, :2])])


def test_documents_that_are_all_one_set(tmp_path: Path) -> None:
    tokens = [30, 10, 12, 9]
    counts = np.concatenate([selections(tokens), selections(tokens, 1)], axis=1)
    source = ImportSource(range(6), "mine.npz", "")
    counts[1] = 0
    counts[1, :, :2] = 10
    trace = import_usage_records([block(counts)], tmp_path / "a", source, options=K)
    assert "1 of 4 documents (16% of the tokens)" in trace.warnings[0]
    options = ImportOptions(drop_constant=True, top_k=TOP_K)
    trace = import_usage_records([block(counts)], tmp_path / "b", source, options=options)
    assert trace.documents["document"].tolist() == ["d0", "d2", "d3"]
    counts[0] = 0
    counts[0, :, 2:4] = 30
    with pytest.raises(MoeProbeError, match=r"2 of 4 documents \(66% of the tokens"):
        import_usage_records([block(counts)], tmp_path / "c", source, options=K)


def test_an_interrupted_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [block(COUNTS[:2]), block(COUNTS[2:], prefix="e")]
    whole = import_usage_records(blocks, tmp_path / "whole", SOURCE, options=K)

    calls = 0

    def stopping() -> Any:
        nonlocal calls
        calls += 1
        yield blocks[0]
        if calls == 2:
            raise KeyboardInterrupt
        yield blocks[1]

    with pytest.raises(KeyboardInterrupt):
        import_usage_records(stopping, tmp_path / "t", SOURCE, options=K)
    with pytest.raises(MoeProbeError, match="unfinished"):
        Trace.open(tmp_path / "t")
    with pytest.raises(MoeProbeError, match="already contains"):
        import_usage_records(blocks, tmp_path / "t", SOURCE, options=K)
    resumed = import_usage_records(blocks, tmp_path / "t", SOURCE, options=K, mode="resume")
    assert (resumed.root / "trace.json").read_bytes() == (whole.root / "trace.json").read_bytes()
    again = import_usage_records(blocks[:1], tmp_path / "t", SOURCE, options=K, mode="force")
    assert again.manifest.n_documents == 2 and verify(again.root) == []


def test_traces_of_counts_are_merged_where_they_are_of_a_kind(tmp_path: Path) -> None:
    one = import_usage_records([block()], tmp_path / "a", SOURCE, options=K)
    two = import_usage_records([block(prefix="e")], tmp_path / "b", SOURCE, options=K)
    merged = merge_traces([one.root, two.root], tmp_path / "m")
    assert (merged.usage().selections == np.concatenate([COUNTS, COUNTS])).all() and verify(merged.root) == []
    sums = import_usage_records([block(prefix="f")], tmp_path / "s", SUMS, options=K)
    with pytest.raises(MoeProbeError, match="level of evidence"):
        merge_traces([one.root, sums.root], tmp_path / "n")
    salient = import_usage_records([block(prefix="g", saliency=COUNTS * 2.0)], tmp_path / "g", SOURCE, options=K)
    with pytest.raises(MoeProbeError, match="measures"):
        merge_traces([one.root, salient.root], tmp_path / "o")


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 99), st.randoms())
def test_the_order_of_documents_does_not_matter(tmp_path_factory: Any, tokens: list[int], seed: int, random: Any) -> None:
    counts, order = selections(tokens, seed), list(range(len(tokens)))
    random.shuffle(order)
    names, out = labels(len(tokens)), tmp_path_factory.mktemp("t")
    straight = import_usage_records([UsageBlock(names, counts)], out / "a", SOURCE, options=K)
    shuffled = import_usage_records([UsageBlock([names[i] for i in order], counts[order])], out / "b", SOURCE, options=K)
    assert (straight.usage().selections[order] == shuffled.usage().selections).all()
    assert (straight.documents.iloc[order].reset_index(drop=True) == shuffled.documents).all(axis=None)
