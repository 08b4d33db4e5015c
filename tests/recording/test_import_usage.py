"""Counts, fractions, long tables and sums by topic: what is read, what is recovered, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.schema import Evidence
from moe_probe.recording.importers import ImportOptions, LabelColumns, import_usage
from moe_probe.recording.importers.fractions import precision_of, recover_selections, whole_counts
from moe_probe.recording.trace import verify

EXPERTS, N_LAYERS, TOP_K = 6, 3, 2
TOKENS = [5, 9, 20, 3, 41]
K = ImportOptions(top_k=TOP_K)


def selections(tokens: list[int], *, top_k: int = TOP_K, experts: int = EXPERTS, seed: int = 0) -> np.ndarray:
    """Counts of random routing, shape (n_documents, n_layers, n_experts)."""
    odds = np.random.default_rng(seed).random((sum(tokens), N_LAYERS, experts))
    chosen = odds >= np.sort(odds, axis=2)[:, :, -top_k, None]
    return np.add.reduceat(chosen.astype(np.int64), np.cumsum([0, *tokens[:-1]]), axis=0)


COUNTS = selections(TOKENS)
FRACTIONS = (COUNTS / COUNTS.sum(axis=2, keepdims=True)).astype(np.float32)
LABELS = pd.DataFrame({"document": [f"d{i}" for i in range(5)], "topic": ["law", "math", "law", "math", "law"]})


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_counts_in_files(tmp_path: Path, kind: str) -> None:
    values: dict[str, Any] = {
        "counts": COUNTS.astype(np.uint16),
        "gate": (COUNTS * 0.5).astype(np.float32),
        "layers": np.array([3, 4, 9]),
    }
    path = tmp_path / f"usage.{kind}"
    if kind == "npz":
        np.savez_compressed(path, **values, top_k=np.array(2))
    else:
        save_file(values, path)
    LABELS.assign(tokens=TOKENS).to_csv(tmp_path / "documents.csv", index=False)
    trace = import_usage(path, tmp_path / "t")
    gate = trace.usage().gate_mass
    assert gate is not None and np.array_equal(gate, COUNTS * 0.5) and np.array_equal(trace.usage().selections, COUNTS)
    assert [layer.layer for layer in trace.layers] == [3, 4, 9] and {layer.top_k for layer in trace.layers} == {TOP_K}
    assert trace.documents["n_tokens"].tolist() == TOKENS and trace.manifest.kept == ("usage",)
    assert trace.manifest.evidence is Evidence.DOCUMENTS and verify(trace.root) == [] and trace.warnings == ()


def test_any_column_is_a_label(tmp_path: Path) -> None:
    table = pd.DataFrame({"name": list("abcde"), "subject": list("vwxyz"), "field": ["s"] * 5, "part": ["t"] * 5})
    columns = LabelColumns(document="name", topic="field", subtopic="subject", group="subject")
    options = ImportOptions(top_k=2, columns=columns, labels=("part",))
    documents = import_usage({"counts": COUNTS}, tmp_path / "t", documents=table, options=options).documents
    assert documents[["document", "topic", "subtopic", "group", "part"]].iloc[2].tolist() == ["c", "s", "x", "x", "t"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tokens_are_recovered_from_fractions(tmp_path: Path, dtype: type) -> None:
    shares = (COUNTS / COUNTS.sum(axis=2, keepdims=True)).astype(dtype)
    trace = import_usage({"fractions": shares}, tmp_path / "t", documents=LABELS, options=K)
    assert (trace.usage().selections == COUNTS).all() and trace.documents["n_tokens"].tolist() == TOKENS
    assert "all 5 documents: 3 to 41, the smallest" in trace.warnings[0]


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=3), st.integers(1, 4), st.integers(5, 9), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_counts_come_back_from_their_fractions_or_a_divisor_does(
    tokens: list[int], top_k: int, experts: int, seed: int
) -> None:
    counts = selections(tokens, top_k=top_k, experts=experts, seed=seed)
    for kind in (np.float32, np.float64):
        shares = (counts / counts.sum(axis=2, keepdims=True)).astype(kind)
        found = recover_selections(shares.reshape(len(tokens), -1), top_k)
        true = np.array(tokens) * top_k
        assert (found > 0).all() and (true % found == 0).all() and (found % top_k == 0).all()
        factor = np.gcd.reduce(counts.reshape(len(tokens), -1), axis=1)
        assert (found[factor == 1] == true[factor == 1]).all()
        whole, moved = whole_counts(shares, found)
        assert (whole * (true // found)[:, None, None] == counts).all() and moved < 0.01


@given(st.integers(2, 9), st.integers(0, 999))
@settings(max_examples=4, deadline=None)
def test_shares_without_a_denominator_are_not_given_one(experts: int, seed: int) -> None:
    shares = np.random.default_rng(seed).dirichlet(np.ones(experts), (2, 4)).astype(np.float32)
    assert (recover_selections(shares.reshape(2, -1), 1) == -1).all()


@given(st.integers(1, 400), st.integers(1, 50))
@settings(deadline=None)
def test_rounded_counts_keep_their_sum(n: int, seed: int) -> None:
    shares = np.random.default_rng(seed).dirichlet(np.ones(5), (1, 3))
    counts, moved = whole_counts(shares, np.array([n]))
    assert (counts.sum(axis=2) == n).all() and (counts >= 0).all() and moved < 1


def test_precision_is_that_of_the_coarsest_type() -> None:
    values = np.array([0.1, 0.7])
    assert precision_of(values) == 2.0**-53
    assert precision_of(values.astype(np.float32).astype(np.float64)) == 2.0**-24
    assert precision_of(values.astype(np.float16).astype(np.float32)) == 2.0**-11


def test_fractions_with_their_tokens(tmp_path: Path) -> None:
    table = LABELS.assign(tokens=np.array(TOKENS) * 2)  # multiples, which fractions alone do not show
    trace = import_usage({"fractions": FRACTIONS}, tmp_path / "a", documents=table, options=K)
    assert (trace.usage().selections == 2 * COUNTS).all() and trace.warnings == ()
    rounded = {"fractions": FRACTIONS.round(3)}
    trace = import_usage(rounded, tmp_path / "b", documents=LABELS.assign(tokens=TOKENS), options=K)
    assert "counts were rounded" in trace.warnings[0] and (trace.usage().selections == COUNTS).all()
    with pytest.raises(MoeProbeError, match=r"'d\d' .* are no counts over a number of tokens.*column 'tokens'"):
        import_usage(
            {"fractions": np.random.default_rng(0).dirichlet(np.ones(6), (5, 3))},
            tmp_path / "c",
            documents=LABELS,
            options=K,
        )
    for bad in (0, np.nan, 1.5):
        with pytest.raises(MoeProbeError, match=r"'d1' .* tokens"):
            tokens = [*TOKENS[:1], bad, *TOKENS[2:]]
            import_usage({"fractions": FRACTIONS}, tmp_path / "d", documents=LABELS.assign(tokens=tokens), options=K)


def spoiled(at: tuple[int, ...], value: float) -> np.ndarray:
    shares = FRACTIONS.copy()
    shares[at] = value
    return shares


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fractions": spoiled((2, 1, 3), -0.1)}, r"'d2' .*row index of .*: 2\) has -0.1 in fractions of layer 1, expert 3"),
        ({"fractions": spoiled((2, 1, 3), np.nan)}, r"has nan in fractions of layer 1"),
        ({"fractions": spoiled((2, 1, 3), 0.9)}, r"the fractions of document 'd2' .* add up to .* in layer 1"),
        ({"fractions": spoiled((2, 1), 0)}, r"'d2' .* has 0 selections in layer 1 and 40 in layer 0"),
        ({"fractions": FRACTIONS, "counts": COUNTS}, "has counts and fractions"),
        ({"gate": FRACTIONS}, "no array 'counts or fractions'"),
        ({"counts": COUNTS, "gate": FRACTIONS[:, :2]}, "'gate' has shape"),
        ({"counts": COUNTS[0]}, "'counts' has shape"),
        ({"counts": COUNTS[:4]}, "has 4 documents, and .* has 5"),
        ({"counts": COUNTS, "layers": [1, 2]}, "2 numbers for 3 layers"),
        ({"counts": COUNTS * 1j}, "does not hold numbers"),
        ({"counts": COUNTS[:, :, :0]}, "has no counts"),
    ],
)
def test_refusals_name_document_and_layer(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        import_usage(values, tmp_path / "t", documents=LABELS, options=K)
    assert not (tmp_path / "t").exists()


def test_what_is_not_known_is_asked_for(tmp_path: Path) -> None:
    for name in ("counts", "fractions"):
        values = {name: COUNTS if name == "counts" else FRACTIONS}
        with pytest.raises(UsageError, match=r"experts per token is not known.*--top-k"):
            import_usage(values, tmp_path / "t", documents=LABELS)
    with pytest.raises(UsageError, match="--top-k 2 is not what the file says: it says 3"):
        import_usage({"counts": COUNTS, "top_k": 3}, tmp_path / "t", documents=LABELS, options=K)
    with pytest.raises(MoeProbeError, match="not one whole number"):
        import_usage({"counts": COUNTS, "top_k": [2, 2]}, tmp_path / "t", documents=LABELS)
    with pytest.raises(UsageError, match="not a number of experts"):
        ImportOptions(top_k=0)


def test_sums_by_topic(tmp_path: Path) -> None:
    labels = {"topic": ["github", "arxiv", "c4", "book", "wiki"]}
    trace = import_usage({"counts": COUNTS}, tmp_path / "a", documents=labels, sums=True, options=K)
    assert trace.manifest.evidence is Evidence.COUNTS and trace.documents["document"].tolist() == labels["topic"]
    stored = {topic: rows.tolist() for topic, rows in zip(labels["topic"], COUNTS, strict=True)}
    for layout in ({"counts": stored, "top_k": 2}, {"top_k": stored, "k": 2}):
        path = tmp_path / "counts.json"
        path.write_text(json.dumps({"layers": [0, 7, 15], **layout}))
        again = import_usage(path, tmp_path / "b", mode="force")
        assert again.manifest.evidence is Evidence.COUNTS and [layer.layer for layer in again.layers] == [0, 7, 15]
        assert (again.usage().selections == COUNTS).all() and (again.documents == trace.documents).all(axis=None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "no counts by topic"),
        ({"counts": {}}, "no counts by topic"),
        ({"counts": {"a": [[1, 2]], "b": [[1, 2, 3]]}, "top_k": 1}, "differ in shape"),
        ({"counts": {"a": [["x"]]}}, "no rectangle of numbers"),
        ({"counts": {"a": [[1, 1]]}, "layers": [1, 2], "top_k": 1}, "does not number 1 layers"),
        ({"counts": {"a": [[1, 1]]}, "top_k": "two"}, "no number of experts per token"),
        ({"counts": {"a": [[1, -1]]}, "top_k": 1}, "'a' has -1 in counts of layer 0, expert 1"),
    ],
)
def test_json_that_is_no_counts(tmp_path: Path, data: object, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(data))
    with pytest.raises(MoeProbeError, match=message):
        import_usage(path, tmp_path / "t")


def long_table(**changes: Any) -> pd.DataFrame:
    document, layer, expert = np.nonzero(COUNTS)
    table = pd.DataFrame({"document": LABELS["document"].to_numpy()[document], "layer": layer + 3, "expert": expert})
    table["count"] = COUNTS[document, layer, expert]
    return table.assign(**changes)


@pytest.mark.parametrize("kind", ["parquet", "csv", "memory"])
def test_long_tables(tmp_path: Path, kind: str) -> None:
    table = long_table(gate=long_table()["count"] * 0.25).sample(frac=1, random_state=0)
    documents = LABELS.iloc[::-1]  # in another order: found by name
    options = ImportOptions(top_k=2, num_experts=8)
    source: Any = table
    if kind != "memory":
        source = tmp_path / f"usage.{kind}"
        table.to_parquet(source) if kind == "parquet" else table.to_csv(source, index=False)
        documents.to_csv(tmp_path / "documents.csv", index=False)
    trace = import_usage(source, tmp_path / "t", documents=documents if kind == "memory" else None, options=options)
    order = [int(name[1:]) for name in trace.documents["document"]]
    assert order == list(dict.fromkeys(int(name[1:]) for name in table["document"]))
    assert (trace.usage().selections[:, :, :6] == COUNTS[order]).all()
    gate = trace.usage().gate_mass
    assert gate is not None and (gate[:, :, :6] == 0.25 * COUNTS[order]).all()
    assert trace.documents["topic"].tolist() == LABELS["topic"].iloc[order].tolist()
    assert [layer.layer for layer in trace.layers] == [3, 4, 5] and trace.layers[0].num_experts == 8


def test_long_tables_with_labels_inside(tmp_path: Path) -> None:
    topics = dict(zip(LABELS["document"], LABELS["topic"], strict=True))
    table = long_table(topic=lambda t: t["document"].map(topics))
    trace = import_usage(table, tmp_path / "t", options=K)
    assert trace.documents["topic"].tolist() == LABELS["topic"].tolist() and "guessed" in trace.warnings[0]
    table.loc[1, "topic"] = "other"
    with pytest.raises(MoeProbeError, match=r"row 2 .* changes the 'topic' of document 'd0'"):
        import_usage(table, tmp_path / "u", options=K)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("expert", -1, "row 5 .* has the expert -1"),
        ("expert", 2**31, "row 5 .* has the expert 2147483648"),
        ("layer", -1, "row 5 .* has the layer -1"),
        ("count", -3, "row 5 .* has -3 in 'count'"),
        ("count", 1.5, "row 5 .* has 1.5 in 'count'"),
        ("count", None, "row 5 .* has no count"),
        ("document", None, "row 5 .* has no document"),
        ("document", "nobody", "document 'nobody' .* has no labels"),
    ],
)
def test_rows_of_long_tables_that_are_wrong(tmp_path: Path, column: str, value: Any, message: str) -> None:
    table = long_table().astype({column: object})
    table.loc[4, column] = value
    table = table.infer_objects() if value is not None or column == "document" else table.astype({column: float})
    with pytest.raises(MoeProbeError, match=message):
        import_usage(table, tmp_path / "t", documents=LABELS, options=K)


def test_long_tables_that_are_wrong(tmp_path: Path) -> None:
    table = long_table()
    for spoil, message in (
        (pd.concat([table, table[:1]]), r"row \d+ .* a second time"),
        (table.drop(columns="count"), "no column 'count'"),
        (table.assign(selections=1), "count and selections"),
        (table[:0], "is empty"),
        (table.assign(gate="x"), "'gate' .* is not a number"),
    ):
        with pytest.raises(MoeProbeError, match=message):
            import_usage(spoil, tmp_path / "t", documents=LABELS, options=K)
    with pytest.raises(MoeProbeError, match="no file"):
        import_usage(tmp_path / "none.csv", tmp_path / "t", topic="x", options=K)
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(MoeProbeError, match="is not a Parquet file"):
        import_usage(tmp_path / "bad.parquet", tmp_path / "t", topic="x", options=K)


@given(st.permutations(range(5)))
@settings(max_examples=8, deadline=None)
def test_the_order_of_documents_does_not_matter(tmp_path_factory: Any, order: list[int]) -> None:
    out = tmp_path_factory.mktemp("t")
    trace = import_usage({"fractions": FRACTIONS[order]}, out / "t", documents=LABELS.iloc[order], options=K)
    assert (trace.usage().selections == COUNTS[order]).all()
    assert trace.documents["n_tokens"].tolist() == [TOKENS[i] for i in order]


def test_labels_that_would_be_guessed_are_refused(tmp_path: Path) -> None:
    """A document twice among the labels of a long table; labels beside a file that names its topics itself."""
    table = pd.DataFrame({"document": ["d0", "d1"], "layer": [0, 0], "expert": [0, 1], "count": [2, 2]})
    twice = pd.DataFrame({"document": ["d0", "d1", "d0"], "topic": ["law", "biology", "mathematics"]})
    with pytest.raises(MoeProbeError, match="'d0' comes"):
        import_usage(table, tmp_path / "t", documents=twice, options=ImportOptions(top_k=1, num_experts=2))
    (tmp_path / "c.json").write_text(json.dumps({"layers": [0], "top_k": 1, "counts": {"law": [[1, 2]], "code": [[2, 1]]}}))
    for more in ({"topic": "everything"}, {"documents": twice}, {"options": ImportOptions(labels=("x",))}):
        with pytest.raises(UsageError, match="names its topics itself"):
            import_usage(tmp_path / "c.json", tmp_path / "t", **more)
