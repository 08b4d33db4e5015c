"""What imported routing must hold: checked before anything is written, naming the row."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo, MoeLayer
from moe_probe.recording.importers import (
    ImportOptions,
    ImportSource,
    TokenRecord,
    import_fingerprints,
    import_records,
    import_table,
)
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.recording.trace.checks import check_order, check_repeats, check_weights, first_repeat

DOCUMENTS, TOKENS = 6, 9


def columns(num_experts: int = 8, k: int = 2, layers: tuple[str, ...] = ("0", "1"), seed: int = 0) -> dict[str, list[Any]]:
    rng = np.random.default_rng(seed)
    n = DOCUMENTS * TOKENS
    out: dict[str, list[Any]] = {
        "document": [f"d{i // TOKENS}" for i in range(n)],
        "topic": [f"t{i // TOKENS % 2}" for i in range(n)],
        "position": [i % TOKENS for i in range(n)],
        "token_id": rng.integers(0, 50, n).tolist(),
    }
    for layer in layers:
        out[f"experts_{layer}"] = [rng.permutation(num_experts)[:k].tolist() for _ in range(n)]
        out[f"weights_{layer}"] = [[0.6, 0.4][:k] for _ in range(n)]
    return out


def parquet(path: Path, table: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(table), path)
    return path


def jsonl(path: Path, table: dict[str, list[Any]], *, leave_out: tuple[int, str] | None = None) -> Path:
    rows = [
        {name: values[i] for name, values in table.items() if leave_out is None or (i, name) != leave_out}
        for i in range(len(table["document"]))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("experts_0", [5, 5], "selects expert 5 of layer 0 twice"),
        ("weights_1", [-0.5, 0.4], "gate weight -0.5 in layer 1"),
        ("weights_1", [1e6, 0.4], r"gate weight 1e\+06 in layer 1.*float16"),
        ("weights_0", [float("inf"), 0.1], "gate weight inf"),
        ("weights_0", [0.1, float("nan")], "gate weight nan"),
        ("weights_0", [0.6], "lists of unequal length in layer 0"),
        ("weights_0", [0.6, 0.3, 0.1], "lists of unequal length in layer 0"),
        ("experts_1", [0, 9], "layer 1 selects expert 9 of 8"),
        ("experts_1", [3, -1], "negative id"),
        ("experts_1", None, "no 'experts_1'"),
        ("experts_1", [1, None], "missing value"),
        ("position", 1, "does not come after"),
        ("position", -4, "has the position -4"),
        ("token_id", 2**40, "has the token_id"),
        ("token_id", None, "has no token_id"),
        ("topic", None, "has no topic"),
        ("topic", " ", "has no topic"),
        ("document", None, "has no document"),
        ("topic", "other", "another 'topic'"),
    ],
)
@pytest.mark.parametrize("kind", ["row", "line"])
def test_the_row_is_named(tmp_path: Path, name: str, value: Any, message: str, kind: str) -> None:
    table = columns()
    table[name][4] = value
    path = parquet(tmp_path / "t.parquet", table) if kind == "row" else jsonl(tmp_path / "t.jsonl", table)
    with pytest.raises(MoeProbeError, match=message) as error:
        import_table(path, tmp_path / "a", options=ImportOptions(num_experts=8))
    assert f"{kind} 5 of {path}" in str(error.value)
    assert not (tmp_path / "a").exists()


def test_rows_are_counted_over_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_probe.recording.importers.tablefile._ROWS", 7)
    table = columns()
    table["experts_0"][40] = [3, 3]
    with pytest.raises(MoeProbeError, match="row 41 of"):
        import_table(parquet(tmp_path / "t.parquet", table), tmp_path / "a", options=ImportOptions(num_experts=8))
    table["experts_0"][40] = [3, 4]
    trace = import_table(jsonl(tmp_path / "t.jsonl", table), tmp_path / "a", options=ImportOptions(num_experts=8))
    assert np.concatenate([c.experts for c in trace.iter_routing()])[:, 0].tolist() == table["experts_0"]


def test_late_columns_are_kept(tmp_path: Path) -> None:
    table = columns()
    path = tmp_path / "t.jsonl"
    rows = [{name: values[i] for name, values in table.items()} for i in range(len(table["document"]))]
    for i, row in enumerate(rows):
        if i >= 5:
            row["subtopic"] = f"s{i // TOKENS}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    trace = import_table(path, tmp_path / "a", options=ImportOptions(num_experts=8))
    assert list(trace.documents["subtopic"]) == [f"s{i}" for i in range(DOCUMENTS)]
    rows[30]["experts_7"] = [1, 2]
    rows[30]["weights_7"] = [0.5, 0.5]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(MoeProbeError, match=r"line 1 of .* has no 'experts_7'"):
        import_table(path, tmp_path / "b", options=ImportOptions(num_experts=8))
    with pytest.raises(MoeProbeError, match=r"line 5 of .* has no 'experts_1'"):
        import_table(jsonl(path, table, leave_out=(4, "experts_1")), tmp_path / "c", options=ImportOptions(num_experts=8))


def test_columns_and_layers_come_once(tmp_path: Path) -> None:
    table = pa.table(columns())
    pq.write_table(table.append_column("topic", table["topic"]), tmp_path / "t.parquet")
    with pytest.raises(MoeProbeError, match="2 columns called 'topic'"):
        import_table(tmp_path / "t.parquet", tmp_path / "a")
    both = columns(layers=("0", "00"))
    with pytest.raises(MoeProbeError, match="layer 0 is named twice"):
        import_table(parquet(tmp_path / "u.parquet", both), tmp_path / "a")
    padded = parquet(tmp_path / "v.parquet", columns(layers=("00", "01")))
    assert [x.layer for x in import_table(padded, tmp_path / "a", options=ImportOptions(num_experts=8)).layers] == [0, 1]


@pytest.mark.parametrize("empty", [[], [3, 3]])
def test_dense_layers_of_tables_are_left_out(tmp_path: Path, empty: list[int]) -> None:
    table = columns()
    table["experts_0"] = [empty] * len(table["document"])
    table["weights_0"] = [[0.5] * len(empty)] * len(table["document"])
    options = ImportOptions(num_experts=8)
    trace = import_table(parquet(tmp_path / "t.parquet", table), tmp_path / "a", options=options)
    assert [x.layer for x in trace.layers] == [1] and "left out as dense: 1 layer of 2 (0)" in trace.warnings[0]


@pytest.mark.parametrize("how", ["guess", "option", "column", "metadata"])
def test_layers_with_different_numbers_of_experts(tmp_path: Path, how: str) -> None:
    table = columns(num_experts=1, k=1, layers=("0",)) | {
        name: values for name, values in columns(num_experts=40, k=3, layers=("1",)).items() if name.endswith("_1")
    }
    table["weights_1"] = [[0.5, 0.3, 0.2]] * len(table["document"])
    options = ImportOptions(num_experts={0: 1, 1: 64} if how == "option" else None)
    if how == "column":
        table |= {"num_experts_0": [1] * len(table["document"]), "num_experts_1": [64] * len(table["document"])}
    data = pa.table(table)
    if how == "metadata":
        numbers = {"experts_0": "1", "experts_1": "64"}
        data = data.cast(
            pa.schema([f.with_metadata({"num_experts": numbers[f.name]}) if f.name in numbers else f for f in data.schema])
        )
    pq.write_table(data, tmp_path / "t.parquet")
    trace = import_table(tmp_path / "t.parquet", tmp_path / "a", options=options)
    largest = 1 + max(max(ids) for ids in table["experts_1"])
    assert [(x.num_experts, x.top_k) for x in trace.layers] == [(1, 1), (largest if how == "guess" else 64, 3)]
    assert bool(trace.warnings) is (how == "guess")
    with pytest.raises(MoeProbeError, match="names layer 5"):
        import_table(tmp_path / "t.parquet", tmp_path / "b", options=ImportOptions(num_experts={5: 4}))


def test_a_number_of_experts_that_changes_is_named(tmp_path: Path) -> None:
    table = columns() | {"num_experts_0": [8] * (DOCUMENTS * TOKENS)}
    table["num_experts_0"][3] = 9
    with pytest.raises(MoeProbeError, match=r"row 4 of .* gives layer 0 9 experts"):
        import_table(parquet(tmp_path / "t.parquet", table), tmp_path / "a")


def warm_up(share: float, *, spread: bool) -> dict[str, list[Any]]:
    table = columns(seed=1)
    documents = range(round(share * DOCUMENTS)) if not spread else range(DOCUMENTS)
    for d in documents:
        rows = range(d * TOKENS, (d + 1) * TOKENS) if not spread else range(d * TOKENS, d * TOKENS + 4)
        for row in rows:
            table["experts_0"][row], table["experts_1"][row] = [0, 1], [1, 0]
    return table


def test_warm_up_is_reported(tmp_path: Path) -> None:
    options = ImportOptions(num_experts=8)
    path = parquet(tmp_path / "t.parquet", warm_up(1 / 3, spread=False))
    trace = import_table(path, tmp_path / "a", options=options)
    assert trace.manifest.n_documents == DOCUMENTS
    assert trace.warnings[0].startswith("18 of 54 tokens (33%) have one and the same set of experts in every layer")
    options = ImportOptions(num_experts=8, drop_constant=True)
    trace = import_table(path, tmp_path / "b", options=options)
    assert list(trace.documents["document"]) == ["d2", "d3", "d4", "d5"] and "left out" in trace.warnings[0]


@pytest.mark.parametrize(("bos", "expected"), [(False, 18), (True, 0)])
def test_scattered_warm_up(tmp_path: Path, bos: bool, expected: int) -> None:
    table = columns(layers=("0", "1", "2", "3"), num_experts=16)
    for row in range(0, DOCUMENTS * TOKENS, 3):  # never two in a row; a BOS is one token with one set, and is no warm-up
        table["token_id"][row] = 1 if bos else row
        for layer in range(4):
            table[f"experts_{layer}"][row] = [0, 1]
    options = ImportOptions(num_experts=16)
    trace = import_table(parquet(tmp_path / "t.parquet", table), tmp_path / "a", options=options)
    assert [w.split(" of 54")[0] for w in trace.warnings] == [str(expected)] * bool(expected)


def test_a_record_that_is_mostly_warm_up_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", warm_up(5 / 6, spread=False))
    with pytest.raises(MoeProbeError, match=r"45 of 54 tokens \(83%\).*--drop-constant"):
        import_table(path, tmp_path / "a", options=ImportOptions(num_experts=8))
    assert not (tmp_path / "a").exists()
    done = CliRunner().invoke(
        app, ["import", str(path), "--out", str(tmp_path / "a"), "--num-experts", "8", "--drop-constant"]
    )
    assert done.exit_code == 0, done.output
    assert Trace.open(tmp_path / "a").n_tokens == TOKENS
    everything = parquet(tmp_path / "u.parquet", warm_up(1, spread=False))
    with pytest.raises(MoeProbeError, match="none is left without them"):
        import_table(everything, tmp_path / "b", options=ImportOptions(num_experts=8, drop_constant=True))


def test_routing_that_varies_or_cannot_vary_is_no_warm_up(tmp_path: Path) -> None:
    for name, table, n in (("a", columns(), 8), ("b", columns(num_experts=2, k=2), 2)):  # b: every token uses both experts
        path = parquet(tmp_path / f"{name}.parquet", table)
        assert import_table(path, tmp_path / name, options=ImportOptions(num_experts=n)).warnings == ()


def test_compressed_tables_and_folders(tmp_path: Path) -> None:
    table = columns()
    plain = jsonl(tmp_path / "t.jsonl", table)
    whole = import_table(plain, tmp_path / "a", options=ImportOptions(num_experts=8))
    packed = tmp_path / "T.JSONL.GZ"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain.read_bytes()))
    lines = plain.read_text(encoding="utf-8").splitlines(keepends=True)
    folder = tmp_path / "shards"
    (folder / "__MACOSX").mkdir(parents=True)
    (folder / "__MACOSX" / "1.jsonl").write_bytes(b"\0")
    (folder / "1.jsonl").write_text("".join(lines[:20]), encoding="utf-8")  # in the middle of a document
    (folder / "2.jsonl").write_text("".join(lines[20:]), encoding="utf-8")
    for number, source in enumerate((packed, folder)):
        trace = import_table(source, tmp_path / f"b{number}", options=ImportOptions(num_experts=8))
        assert (trace.usage().selections == whole.usage().selections).all()
    (tmp_path / "latin.jsonl").write_bytes(lines[0].replace("t0", "café").encode("latin-1"))
    with pytest.raises(MoeProbeError, match=r"line 1, byte .* is not UTF-8"):
        import_table(tmp_path / "latin.jsonl", tmp_path / "c")


def fingerprint(path: Path, change: dict[str, Any] | None = None) -> Path:
    entries = [{f"token_{i}": {"layer_0": {"selected_experts": [i % 3, 3], "selected_probs": [0.6, 0.4]}}} for i in (1, 2)]
    if change:
        entries[1]["token_2"]["layer_0"] |= change
    data = {
        "dataset": "q",
        "category": "optics",
        "original_prompt": "Why?",
        "full_text": ["a", "b", "c", "d"],
        "router_data": entries,
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selected_experts": [2, 2]}, "entry 2 of .* selects expert 2 of layer 0 twice"),
        ({"selected_probs": [0.5]}, "entry 2 .* unequal length"),
        ({"selected_probs": [0.5, -1]}, "entry 2 of .* gate weight -1"),
        ({"selected_experts": ["x", 1]}, "entry 2 .* cannot be read"),
        ({"selected_experts": [-1, 1]}, "entry 2 .* cannot be read"),
    ],
)
def test_fingerprint_entries_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    fingerprint(tmp_path / "x_examples.json", change)
    with pytest.raises(MoeProbeError, match=message):
        import_fingerprints(tmp_path, tmp_path / "t", options=ImportOptions(num_experts=4))


def test_fingerprints_and_topics_with_marks(tmp_path: Path) -> None:
    plain = fingerprint(tmp_path / "x_examples.json")
    (tmp_path / "Y_EXAMPLES.JSON.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + plain.read_bytes()))
    (tmp_path / "topics.csv").write_bytes(b"\xef\xbb\xbfdataset,category,topic\nq,optics,physics\n")
    trace = import_fingerprints(
        tmp_path, tmp_path / "t", topics=tmp_path / "topics.csv", options=ImportOptions(num_experts=4)
    )
    assert list(trace.documents["topic"]) == ["physics", "physics"]


def test_tokenizer_gives_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "acid": 1, "base": 2} | {f"w{i}": i for i in range(3, 50)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(tmp_path / "tokenizer")
    table = columns()
    table["token_id"][:3] = [0, 1, 2]
    path = parquet(tmp_path / "t.parquet", table)
    trace = import_table(path, tmp_path / "a", options=ImportOptions(num_experts=8, tokenizer=tmp_path / "tokenizer"))
    tokens = trace.tokens()
    assert tokens["token"].tolist()[1:3] == ["acid", "base"]
    assert tokens["special"].tolist()[:3] == [True, False, False] and trace.manifest.tokenizer_hash
    table["token_id"][7] = 99
    with pytest.raises(MoeProbeError, match=r"row 8 of .* has the token id 99: the tokenizer at .* has 50 tokens"):
        import_table(parquet(path, table), tmp_path / "b", options=ImportOptions(tokenizer=tmp_path / "tokenizer"))
    with pytest.raises(MoeProbeError, match="there is no tokenizer at"):
        import_table(path, tmp_path / "b", options=ImportOptions(tokenizer=tmp_path / "nowhere"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(MoeProbeError, match=r"the tokenizer at .* cannot be loaded"):
        import_table(path, tmp_path / "b", options=ImportOptions(tokenizer=tmp_path / "bare"))


def record(**changes: Any) -> TokenRecord:
    experts = np.array([[[0, 1]], [[1, 2]], [[2, 0]]])
    base = TokenRecord({"document": "d", "topic": "t"}, np.arange(3), np.arange(3), None, experts, None)
    return base._replace(**changes)


def test_arrays_of_ones_own(tmp_path: Path) -> None:
    trace = import_records(
        lambda: iter([record()]), tmp_path / "a", ImportSource([4], "arrays", ""), options=ImportOptions(num_experts=3)
    )
    assert [x.layer for x in trace.layers] == [4]
    with pytest.raises(MoeProbeError, match="document 'd', position 1 does not come after"):
        import_records(
            lambda: iter([record(position=np.array([1, 1, 2]))]),
            tmp_path / "b",
            ImportSource([4], "arrays", ""),
            options=ImportOptions(),
        )
    with pytest.raises(MoeProbeError, match="not text"):
        import_records(
            lambda: iter([record(labels={"document": "d", "topic": "a\0"})]),
            tmp_path / "b",
            ImportSource([4], "arrays", ""),
            options=ImportOptions(),
        )


@pytest.mark.parametrize("name", ["topic", "n_tokens", "token_id", "group"])
def test_a_label_that_the_trace_has_anyway_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--label {name} is not a further label"):
        ImportOptions(labels=(name,))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_first_repeat_is_the_first_row_with_a_repeat(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 5))
    rows = data.draw(st.lists(st.lists(st.integers(-1, 6), min_size=k, max_size=k), max_size=20))
    ids = np.array(rows, dtype=np.int64).reshape(-1, k)
    expected = next((i for i, row in enumerate(rows) if len(chosen := [x for x in row if x >= 0]) != len(set(chosen))), None)
    assert first_repeat(ids, -1) == expected
    if expected is None:
        check_repeats([3], ids[:, None], -1, str)
    else:
        with pytest.raises(MoeProbeError, match=f"^{expected} selects expert .* of layer 3 twice"):
            check_repeats([3], ids[:, None], -1, str)


@given(st.lists(st.floats(width=64), min_size=1, max_size=30), st.data())
@settings(max_examples=80, deadline=None)
def test_weights_pass_when_float16_can_hold_them(values: list[float], data: st.DataObject) -> None:
    filled = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    weights = np.array(values)
    bad = [i for i, (v, there) in enumerate(zip(values, filled, strict=True)) if there and not 0 <= v <= 65504]
    arrays = weights.reshape(-1, 1, 1), filled.reshape(-1, 1, 1)
    if bad:
        with pytest.raises(MoeProbeError, match=f"^row {bad[0]} has the gate weight"):
            check_weights([0], *arrays, lambda row: f"row {row}")
    else:
        check_weights([0], *arrays, str)
        with np.errstate(over="ignore", under="ignore"):
            assert np.isfinite(weights[filled].astype(np.float16)).all()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 5)), max_size=25))
@settings(max_examples=80, deadline=None)
def test_order_is_increasing_positions(rows: list[tuple[int, int]]) -> None:
    rows.sort(key=lambda row: row[0])
    document, position = (np.array([row[i] for row in rows], dtype=np.int64) for i in (0, 1))
    wrong = any(p < 0 for p in position) or any(a == b and q <= p for (a, p), (b, q) in itertools.pairwise(rows))
    if wrong:
        with pytest.raises(MoeProbeError, match=r"^row"):
            check_order(document, position, np.zeros(len(rows), dtype=int), lambda row: f"row {row}")
    else:
        check_order(document, position, np.zeros(len(rows), dtype=int), str)


@given(st.integers(1, 300), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_right_comes_back_as_it_was(tmp_path: Path, num_experts: int, k: int, seed: int) -> None:
    import shutil

    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    k, rng = min(k, num_experts), np.random.default_rng(seed)
    ids = np.stack([[rng.permutation(num_experts)[:k] for _ in range(2)] for _ in range(12)])
    weights = rng.random(ids.shape).astype(np.float16)
    made = record(token_id=np.arange(12), position=np.cumsum(rng.integers(1, 4, 12)), experts=ids, weights=weights)
    trace = import_records(
        lambda: iter([made]),
        tmp_path / "a",
        ImportSource([1, 5], "arrays", ""),
        options=ImportOptions(num_experts=num_experts),
    )
    chunk = next(trace.iter_routing())
    assert chunk.weights is not None and (chunk.weights == weights).all()
    assert (chunk.experts == ids).all() and (chunk.position == made.position).all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("experts", np.array([[[1, 1]], [[0, 1]]], dtype=np.uint8), "position 0 selects expert 1 of layer 2 twice"),
        (
            "experts",
            np.array([[[0, 1]], [[0, 4]]], dtype=np.uint8),
            "layer 2 selects expert 4 of 4: document 'd', position 1",
        ),
        ("weights", np.array([[[0.5, 0.5]], [[0.5, np.nan]]]), "position 1 has the gate weight nan in layer 2"),
        ("weights", np.array([[[0.5, 0.5]], [[0.5, 7e4]]]), "position 1 has the gate weight 70000 in layer 2"),
        ("position", [1, 0], "position 0 does not come after"),
        ("topic", "", "document 'd' has no topic"),
        ("document", [0, 1], "not in the order of its documents"),
    ],
)
def test_the_writer_refuses_the_same(tmp_path: Path, name: str, value: Any, message: str) -> None:
    layer = MoeLayer(layer=2, name="x", num_experts=4, top_k=2)
    manifest = Manifest(model=ModelInfo(id="m"), corpus=CorpusInfo(name="c", hash=""), layers=(layer,), has_text=False)
    writer = TraceWriter.create(tmp_path / "t", manifest)
    arrays: dict[str, Any] = {"experts": np.array([[[0, 1]], [[2, 3]]], dtype=np.uint8), "weights": np.full((2, 1, 2), 0.5)}
    tokens: dict[str, Any] = {
        "document": [0, 0],
        "position": [0, 1],
        "token_id": [1, 2],
        "token": ["a", "b"],
        "special": [False, False],
    }
    documents = [{"document": "d", "topic": "t"}]
    if name in arrays:
        arrays[name] = value
    elif name in tokens:
        tokens[name] = value
    else:
        documents[0][name] = value
    with pytest.raises(MoeProbeError, match=message):
        writer.append(documents=documents, tokens=tokens, **arrays)
    with pytest.raises(MoeProbeError, match="layer 2 is named twice"):
        TraceWriter.create(tmp_path / "u", manifest.model_copy(update={"layers": (layer, layer)}))
