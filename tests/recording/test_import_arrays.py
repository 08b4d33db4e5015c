"""Routing in arrays: .npz, .safetensors and memory; what is read, and what is refused by its token."""

from __future__ import annotations

import io
import zipfile
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
from moe_probe.recording.importers import ImportOptions, LabelColumns, arrays, import_arrays
from moe_probe.recording.importers.arrayfile import open_arrays
from moe_probe.recording.trace import Trace, merge_traces, verify
from moe_probe.testing import planted_routing

ROUTING = planted_routing(topics=3, documents_per_topic=4, tokens=30, n_layers=2, num_experts=8, lift=1.0)
EIGHT = ImportOptions(num_experts=8, shard_tokens=100)
LABELS = ROUTING.documents[["document", "topic", "subtopic"]]


def named(**changes: Any) -> dict[str, Any]:
    """The arrays of the planted routing; None removes one."""
    r = ROUTING
    values: dict[str, Any] = {
        "experts": r.experts.astype(np.int16),
        "weights": r.weights.astype(np.float32),
        "document": r.document.astype(np.int32),
        "position": r.position.astype(np.int32),
        "token_id": r.token_id.astype(np.int32),
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


def routing(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    chunks = list(trace.iter_routing())
    return np.concatenate([c.experts for c in chunks]), np.concatenate([c.weights for c in chunks])


def saved(folder: Path, kind: str) -> Path:
    values = named(layers=np.array([3, 7], dtype=np.int64))
    path = folder / f"routing.{kind}"
    if kind == "safetensors":
        save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, path)
    else:
        np.savez_compressed(path, **values)
    return path


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("labels", ["documents.parquet", "documents.csv"])
def test_files_with_labels_beside_them(tmp_path: Path, kind: str, labels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, kind)
    if labels.endswith("csv"):
        LABELS.to_csv(tmp_path / labels, index=False)
    else:
        LABELS.to_parquet(tmp_path / labels)
    monkeypatch.setattr(arrays, "_ROWS", 47)  # documents begin and end inside of pieces
    trace = import_arrays(path, tmp_path / "t", options=EIGHT)
    experts, weights = routing(trace)
    assert (experts == ROUTING.experts).all() and (weights == ROUTING.weights.astype(np.float16)).all()
    assert (trace.usage().selections == ROUTING.usage().selections).all()
    assert [layer.layer for layer in trace.layers] == [3, 7] and trace.manifest.evidence is Evidence.WORDS
    assert trace.documents["topic"].tolist() == LABELS["topic"].tolist()
    assert trace.documents["n_tokens"].tolist() == np.bincount(ROUTING.document).tolist()
    assert trace.tokens(["token_id"])["token_id"].tolist() == ROUTING.token_id.tolist()
    assert verify(trace.root) == [] and trace.warnings == ()


def test_without_ids_tokens_are_unknown_and_not_zero(tmp_path: Path) -> None:
    trace = import_arrays(named(token_id=None), tmp_path / "t", documents=LABELS, options=EIGHT)
    assert trace.manifest.evidence is Evidence.TOKENS
    table = trace.tokens()
    assert (table["token_id"] == -1).all() and (table["token"] == "").all()
    assert (trace.usage().selections == ROUTING.usage().selections).all() and verify(trace.root) == []


def test_one_topic_and_files_that_are_merged(tmp_path: Path) -> None:
    parts = []
    for topic in ("law", "intent"):
        options = ImportOptions(num_experts=8, model_id="one")
        few = named(token_id=None, position=None)
        parts.append(import_arrays(few, tmp_path / topic, topic=topic, options=options))
    merged = merge_traces([part.root for part in parts], tmp_path / "both")
    assert merged.documents["topic"].value_counts().to_dict() == {"law": 12, "intent": 12}
    assert merged.documents["document"].iloc[13] == "intent/0001" and merged.manifest.evidence is Evidence.TOKENS
    assert merged.tokens(["position"])["position"].tolist() == [*range(30)] * 24
    words = import_arrays(named(), tmp_path / "w", topic="x", options=ImportOptions(num_experts=8, model_id="one"))
    with pytest.raises(MoeProbeError, match="level of evidence"):
        merge_traces([parts[0].root, words.root], tmp_path / "no")


def test_columns_of_labels_are_named(tmp_path: Path) -> None:
    table = pd.DataFrame({"domain": LABELS["topic"], "part": range(12), "source": ["s0", "s1"] * 6, "author": "x"})
    columns = LabelColumns(topic="domain", subtopic="part", group="source")
    options = ImportOptions(num_experts=8, columns=columns, labels=("author",))
    documents = import_arrays(named(), tmp_path / "t", documents=table, options=options).documents
    assert documents["document"].tolist()[:2] == ["0000000", "0000001"] and documents["author"].eq("x").all()
    assert documents["group"].tolist() == ["s0", "s1"] * 6 and documents["subtopic"].tolist()[3] == "3"


def test_empty_slots_and_documents_without_tokens(tmp_path: Path) -> None:
    values = named()
    values["experts"][5, 0, 1] = -1
    values["weights"][5, 0, 1] = np.nan  # of no expert: not looked at
    table = pd.concat([LABELS, pd.DataFrame([{"document": "none", "topic": "law", "subtopic": ""}])])
    trace = import_arrays(values, tmp_path / "t", documents=table, options=EIGHT)
    assert routing(trace)[0][5, 0, 1] == 255 and trace.manifest.n_documents == 12
    assert "1 slots" in trace.warnings[0] and "1 document (none)" in trace.warnings[1]


@given(st.permutations(range(12)))
@settings(max_examples=8, deadline=None)
def test_documents_may_come_in_any_order(tmp_path_factory: Any, order: list[int]) -> None:
    rows = np.concatenate([np.flatnonzero(ROUTING.document == d) for d in order])
    shuffled = {name: value[rows] for name, value in named().items()}
    trace = import_arrays(shuffled, tmp_path_factory.mktemp("t") / "t", documents=LABELS, options=EIGHT)
    assert trace.documents["document"].tolist() == LABELS["document"].iloc[order].tolist()
    assert (routing(trace)[0] == ROUTING.experts[rows]).all()
    assert (trace.usage().selections == ROUTING.usage().selections[order]).all()


@given(st.data())
@settings(max_examples=8, deadline=None)
def test_a_trace_has_the_arrays_it_was_made_of(tmp_path_factory: Any, data: st.DataObject) -> None:
    n_experts, slots, n_layers = data.draw(st.integers(3, 300)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    tokens = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    experts = rng.permuted(np.tile(np.arange(n_experts), (sum(tokens), n_layers, 1)), axis=2)[:, :, :slots]
    weights = rng.random(experts.shape).astype(np.float16)
    document = np.repeat(np.arange(len(tokens)), tokens)
    values = {"experts": experts, "weights": weights, "document": document}
    options = ImportOptions(num_experts=n_experts, shard_tokens=5)
    try:
        trace = import_arrays(values, tmp_path_factory.mktemp("t") / "t", topic="x", options=options)
    except MoeProbeError as error:  # eight tokens in a row may have the same experts by chance where there are few
        assert "same set of experts" in str(error)
        return
    got = routing(trace)
    assert (
        (got[0] == experts).all()
        and (got[1] == weights).all()
        and got[0].dtype == ("uint8" if n_experts < 256 else "uint16")
    )


def changed(name: str, at: tuple[int, ...], value: float, kind: type | None = None) -> dict[str, np.ndarray]:
    values = named()
    values[name] = values[name].astype(kind) if kind else values[name].copy()
    values[name][at] = value
    return values


SPOILED: list[tuple[str, dict[str, np.ndarray], str]] = [
    (
        "twice",
        changed("experts", (7, 1), int(ROUTING.experts[7, 1, 0])),
        r"token index 7 of .* selects expert \d of layer 1 twice",
    ),
    ("past the end", changed("experts", (7, 1, 0), 8), r"layer 1 selects expert 8 of 8: token index 7"),
    ("negative id", changed("experts", (7, 1, 0), -2), r"token index 7 of .* has the expert id -2"),
    ("huge id", changed("experts", (7, 1, 0), 2**63 + 5, np.uint64), r"token index 7 of .* has the expert id"),
    ("negative weight", changed("weights", (7, 1, 0), -0.5), r"token index 7 of .* has the gate weight -0.5 in layer 1"),
    ("infinite weight", changed("weights", (7, 1, 0), np.inf), r"token index 7 of .* has the gate weight inf"),
    ("missing weight", changed("weights", (7, 1, 0), np.nan), r"token index 7 of .* has the gate weight nan"),
    ("position", changed("position", (7,), 6), r"token index 7 of .*position 6 follows position 6"),
    ("document", changed("document", (7,), 12), r"token index 7 of .* is of document 12: .* has 12"),
    ("negative document", changed("document", (0,), -1), r"token index 0 of .* is of document -1"),
    ("not grouped", changed("document", (59,), 0), r"token index 59 of .* is of document 0, which ended before"),
    ("negative token id", changed("token_id", (7,), -1), r"token index 7 of .* has the token_id -1"),
    ("one set", named(experts=np.broadcast_to(ROUTING.experts[:1], ROUTING.experts.shape)), "same set of experts"),
    ("no experts", named(experts=None), "no array 'experts'"),
    ("no document", named(document=None), "no array 'document'"),
    ("shape of weights", named(weights=ROUTING.weights[:, :1]), "'weights' has shape"),
    ("shape of experts", named(experts=ROUTING.experts[:, 0]), "'experts' has shape"),
    ("length", named(position=ROUTING.position[:-1]), r"'position' has \d+ values: 'experts' has \d+ tokens"),
    ("floats", named(experts=ROUTING.experts.astype(float)), "'experts' has values of type float64"),
    ("objects", named(experts=ROUTING.experts.astype(object)), "'experts' does not hold numbers: objects"),
    ("no token", {name: value[:0] for name, value in named().items()}, "has no routing"),
    ("layers", named(layers=np.array([1])), "1 numbers for 2 layers"),
    ("negative layers", named(layers=np.array([1, -1])), "-1 to 1"),
    ("same layers", named(layers=np.array([1, 1])), "layer 1 is named twice"),
]


@pytest.mark.parametrize(("values", "message"), [case[1:] for case in SPOILED], ids=[case[0] for case in SPOILED])
def test_what_is_no_routing_is_refused_by_token(tmp_path: Path, values: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        import_arrays(values, tmp_path / "t", documents=LABELS, options=EIGHT)
    assert not (tmp_path / "t").exists()


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    def refused(message: str, options: ImportOptions = EIGHT, kind: type = MoeProbeError, **more: Any) -> None:
        with pytest.raises(kind, match=message):
            import_arrays(named(), tmp_path / "t", options=options, **more)

    refused("no labels", kind=UsageError)
    refused("exclude each other", documents=LABELS, topic="x", kind=UsageError)
    refused("--topic excludes", ImportOptions(labels=("a",)), topic="x", kind=UsageError)
    refused("--topic is empty", topic=" ", kind=UsageError)
    refused("is of document 5", documents=LABELS[:5])
    refused("no column 'domain'.*--topic-column", ImportOptions(columns=LabelColumns(topic="domain")), documents=LABELS)
    refused("no column 'source'.*--group-column", ImportOptions(columns=LabelColumns(group="source")), documents=LABELS)
    refused("no column 'author'.*--label", ImportOptions(labels=("author",)), documents=LABELS)
    refused("document 2 has no topic", documents={"topic": ["a", "b", None] + ["c"] * 9})
    refused("'topic' that is a list", documents={"topic": [["a"]] * 12})
    refused("differ in length", documents={"topic": ["a"], "group": []})
    refused("has no document", documents=[])
    refused("comes a second time", documents={"document": ["a"] * 12, "topic": ["b"] * 12})
    refused("no table of documents", documents=tmp_path / "none.csv")
    path = saved(tmp_path, "npz")
    with pytest.raises(UsageError, match="no labels beside"):
        import_arrays(path, tmp_path / "t", options=EIGHT)
    LABELS.to_csv(tmp_path / "documents.csv")
    LABELS.to_parquet(tmp_path / "documents.parquet")
    with pytest.raises(UsageError, match="several tables beside"):
        import_arrays(path, tmp_path / "t", options=EIGHT)
    with pytest.raises(UsageError, match="--tokenizer needs token ids"):
        import_arrays(named(token_id=None), tmp_path / "t", topic="x", options=ImportOptions(tokenizer=tmp_path))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return path


def test_files_that_are_damaged_or_dangerous(tmp_path: Path) -> None:
    pickled = tmp_path / "p.npz"
    np.savez(pickled, experts=np.array([{"a": 1}], dtype=object))
    with pytest.raises(MoeProbeError, match="does not hold numbers: objects would be read by running code"):
        open_arrays(pickled)
    good = npy(ROUTING.experts)
    many = good.replace(b"(360, 2,", b"(999, 2,")
    assert many != good
    with pytest.raises(MoeProbeError, match=r"declares .* bytes"):
        open_arrays(archive(tmp_path / "h.npz", experts=many))
    with pytest.raises(MoeProbeError, match=r"declares .* bytes"):
        open_arrays(archive(tmp_path / "c.npz", experts=good[:-5]))
    with pytest.raises(MoeProbeError, match="does not hold numbers"):
        open_arrays(archive(tmp_path / "s.npz", experts=npy(np.array(["a"]))))
    with pytest.raises(MoeProbeError, match="cannot be read"):
        open_arrays(archive(tmp_path / "n.npz", experts=b"nothing"))
    for damaged in (b"{'descr': '<f4', 'shape': (2,3", b"{'descr': '<f4',\n 'shape':\n(2,):\n}"):  # no Python literal
        header = b"\x93NUMPY\x01\x00" + len(damaged).to_bytes(2, "little") + damaged
        with pytest.raises(MoeProbeError, match="cannot be read"):
            open_arrays(archive(tmp_path / "l.npz", experts=header))
    with pytest.raises(MoeProbeError, match=r"'layers' of .* has 1,000,000 numbers for 2 layers"):
        import_arrays(named(layers=np.zeros(1_000_000, int)), tmp_path / "t", documents=LABELS, options=EIGHT)
    whole = saved(tmp_path, "npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MoeProbeError, match="cannot be read"):
        open_arrays(tmp_path / "cut.npz")
    (tmp_path / "cut.safetensors").write_bytes(saved(tmp_path, "safetensors").read_bytes()[:-9])
    with pytest.raises(MoeProbeError, match="cannot be read"):
        open_arrays(tmp_path / "cut.safetensors")
    middle = bytearray(whole)
    middle[200:260] = bytes(60)
    (tmp_path / "bad.npz").write_bytes(bytes(middle))
    with pytest.raises(MoeProbeError, match="cannot be read"):
        import_arrays(tmp_path / "bad.npz", tmp_path / "t", topic="x", options=EIGHT)
    with pytest.raises(MoeProbeError, match="no file"):
        open_arrays(tmp_path / "none.npz")
    LABELS.to_csv(tmp_path / "documents.csv")
    with pytest.raises(MoeProbeError, match="unknown format"):
        open_arrays(tmp_path / "documents.csv")


def test_arrays_in_fortran_order_and_big_endian(tmp_path: Path) -> None:
    values = named(experts=np.asfortranarray(ROUTING.experts.astype(">i4")), weights=ROUTING.weights.astype(">f4"))
    np.savez(tmp_path / "r.npz", **values)
    trace = import_arrays(tmp_path / "r.npz", tmp_path / "t", documents=LABELS, options=EIGHT)
    assert (routing(trace)[0] == ROUTING.experts).all()


def test_an_interrupted_import_goes_on(tmp_path: Path) -> None:
    whole = import_arrays(named(), tmp_path / "a", documents=LABELS, options=EIGHT)
    again = import_arrays(named(), tmp_path / "a", documents=LABELS, options=EIGHT, mode="resume")
    assert again.manifest == whole.manifest
    with pytest.raises(MoeProbeError, match="another corpus"):
        import_arrays(named(), tmp_path / "a", documents=LABELS.assign(topic="x"), options=EIGHT, mode="resume")
    with pytest.raises(MoeProbeError, match="already contains"):
        import_arrays(named(), tmp_path / "a", documents=LABELS, options=EIGHT)
