"""Importance matrices of llama.cpp: counts of experts come back, and damaged files are refused by their entry."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.schema import Evidence
from moe_probe.recording.importers import ImportOptions, LabelColumns, import_imatrix
from moe_probe.recording.importers.gguf import read_gguf
from moe_probe.recording.importers.imatrix import read_imatrix
from moe_probe.recording.trace import Trace, verify

COUNTS = {1: [7, 0, 3, 6], 2: [4, 4, 5, 3]}  # two experts per token, eight tokens
TOKENS = 8
WIDTH = 3


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def gguf(
    tensors: Mapping[str | bytes, np.ndarray],
    *,
    kind: str | None = "imatrix",
    version: int = 3,
    alignment: int = 32,
    datasets: tuple[str, ...] = ("chem.txt",),
) -> bytes:
    """Write a GGUF file by docs/gguf.md of ggml-org/ggml: header, metadata, descriptions of tensors, padding, data."""
    pairs = [
        text("imatrix.chunk_count") + struct.pack("<II", 4, 1),
        text("numbers") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3),
    ]
    pairs.append(text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, len(datasets)) + b"".join(map(text, datasets)))
    if kind is not None:
        pairs.append(text("general.type") + struct.pack("<I", 8) + text(kind))
    if alignment != 32:
        pairs.append(text("general.alignment") + struct.pack("<II", 4, alignment))
    described, data = b"", b""
    for name, array in tensors.items():
        array = np.ascontiguousarray(array, dtype="<f4")
        data += bytes(-len(data) % alignment)
        described += text(name) + struct.pack(f"<I{array.ndim}Q", array.ndim, *array.shape[::-1])
        described += struct.pack("<IQ", 0, len(data))
        data += array.tobytes()
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + described
    return head + bytes(-len(head) % alignment) + data


def matrix(counts: Mapping[int, Sequence[float]] = COUNTS, *, in_sum: bool = False, tokens: int = TOKENS) -> dict:
    """Name the tensors as llama-imatrix does: sums and counts of every matrix that a text went through."""
    out: dict[str | bytes, np.ndarray] = {}
    for layer, numbers in counts.items():
        parts: dict[str, Sequence[float]] = {f"ffn_{part}_exps": numbers for part in ("down", "gate", "up")}
        for part, row in {"attn_q": [tokens], **parts, "ffn_gate_inp": [tokens]}.items():
            name = f"blk.{layer}.{part}.weight"
            out[f"{name}.in_sum2"] = np.ones((len(row), WIDTH))
            out[f"{name}.counts"] = np.array(row, dtype=float)[:, None]
            if in_sum:
                out[f"{name}.in_sum"] = np.zeros((len(row), WIDTH))
    return out


def legacy(names: list[bytes], *, values: int = 6, ending: bytes = b"") -> bytes:
    """Write the older format: entries of name, calls and values; calls; the data set."""
    out = struct.pack("<i", len(names))
    for name in names:
        out += struct.pack("<i", len(name)) + name + struct.pack("<ii", 3, values) + bytes(4 * values)
    return out + (ending or struct.pack("<ii", 3, 4) + b"text")


def save(folder: Path, data: bytes) -> Path:
    path = folder / "imatrix.gguf"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("in_sum", [False, True])
@pytest.mark.parametrize("alignment", [8, 32, 64])
def test_counts_come_back(tmp_path: Path, version: int, in_sum: bool, alignment: int) -> None:
    path = save(tmp_path, gguf(matrix(in_sum=in_sum), version=version, alignment=alignment))
    recording = read_imatrix(path)
    assert {layer: counts.tolist() for layer, counts in recording.selections.items()} == COUNTS
    assert recording.top_k == 2 and recording.empty == () == recording.notes


def test_an_independent_writer_agrees(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    path = tmp_path / "other.gguf"
    writer = package.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    tensors = matrix(in_sum=True)
    for name, array in tensors.items():
        writer.add_tensor(name, array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_gguf(path)
    assert {name: tensor.shape for name, tensor in read.tensors.items()} == {n: a.shape[::-1] for n, a in tensors.items()}
    assert all((read.array(name) == array.ravel()).all() for name, array in tensors.items())
    recording = read_imatrix(path)
    assert {layer: counts.tolist() for layer, counts in recording.selections.items()} == COUNTS
    assert "2 data sets are added up" in recording.notes[0]


def test_the_other_reader_agrees(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    path = save(tmp_path, gguf(matrix()))
    theirs = {tensor.name: np.asarray(tensor.data).ravel() for tensor in package.GGUFReader(path).tensors}
    ours = read_gguf(path)
    assert set(theirs) == set(ours.tensors)
    assert all((ours.array(name) == values).all() for name, values in theirs.items())


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(0, 2**24), min_size=5, max_size=5), min_size=1, max_size=4).filter(
        lambda rows: any(map(any, rows))
    )
)
def test_any_counts_come_back(tmp_path_factory: pytest.TempPathFactory, counts: list[list[float]]) -> None:
    path = save(tmp_path_factory.mktemp("any"), gguf(matrix(dict(enumerate(counts)))))
    recording = read_imatrix(path)
    assert {i: row.tolist() for i, row in recording.selections.items()} == {
        i: row for i, row in enumerate(counts) if any(row)
    }
    assert recording.empty == tuple(i for i, row in enumerate(counts) if not any(row))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damage_never_ends_in_anything_but_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = gguf(matrix())
    at = data.draw(st.integers(0, len(whole) - 8))
    spoilt = whole[:at] + data.draw(st.binary(min_size=1, max_size=8)) + whole[at + 8 :]
    path = save(tmp_path_factory.mktemp("bad"), spoilt if data.draw(st.booleans()) else whole[:at])
    try:
        recording = read_imatrix(path)
    except MoeProbeError:
        return
    assert all((counts >= 0).all() and counts.any() for counts in recording.selections.values())


def test_every_cut_is_refused_by_entry(tmp_path: Path) -> None:
    whole = gguf(matrix())
    for length in range(4, len(whole), 37):
        with pytest.raises(MoeProbeError, match=r"damaged at (the header|key|'|tensor|the name|4 pairs|[0-9,]+ pairs)"):
            read_imatrix(save(tmp_path, whole[:length]))


def changed(name: str, values: list[float] | None) -> dict:
    tensors = matrix()
    if values is None:
        del tensors[name]
    else:
        tensors[name] = np.array(values)[:, None]
    return tensors


def every(values: list[float]) -> dict:
    return matrix({1: values})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            changed("blk.1.ffn_up_exps.weight.counts", [7, 0, 4, 6]),
            "other counts in 'blk.1.ffn_up_exps.weight.counts' than in",
        ),
        (changed("blk.1.ffn_up_exps.weight.in_sum2", None), "'blk.1.ffn_up_exps.weight.counts' without its sums"),
        (changed("blk.1.ffn_up_exps.weight.in_sum2", [1] * 6), "its sums have 6 elements, no multiple"),
        (every([float("nan"), 1]), r"'blk.1.ffn_down_exps.weight.counts' of .* not finite"),
        (every([float("inf"), 1]), "not finite"),
        (every([-1, 3]), r"'blk.1.ffn_down_exps.weight.counts' of .* negative count: -1"),
        (every([0.5, 1]), "not whole: 0.5"),
        (every([1e38, 1e38]), "too large"),
        (every([5]), "one count for all experts in 'blk.1.ffn_down_exps.weight.counts': a file of the older .dat format"),
        (every([0, 0]), "no selection"),
        ({"blk.0.attn_q.weight.counts": np.ones((1, 1))}, "no counts of experts"),
        ({b"blk.1.ffn\n.counts": np.ones((1, 1))}, "control characters"),
        ({b"blk.1\x00.counts": np.ones((1, 1))}, "control characters"),
        ({b"blk\xff": np.ones((1, 1))}, "tensor 1 of 1: it is not UTF-8"),
        ({b"": np.ones((1, 1))}, "'' is no name"),
        ({"a": np.ones((1, 1, 1, 1, 1))}, "5 dimensions"),
    ],
)
def test_bad_entries(tmp_path: Path, tensors: dict, message: str) -> None:
    with pytest.raises(MoeProbeError, match=message):
        read_imatrix(save(tmp_path, gguf(tensors)))


def test_other_files(tmp_path: Path) -> None:
    for kind, named in (("model", "'model'"), (None, "'unknown'")):
        with pytest.raises(MoeProbeError, match=f"no importance matrix: it is a GGUF file of type {named}"):
            read_imatrix(save(tmp_path, gguf(matrix(), kind=kind)))
    with pytest.raises(MoeProbeError, match="version is 1"):
        read_imatrix(save(tmp_path, gguf(matrix(), version=1)))
    with pytest.raises(MoeProbeError, match="big-endian"):
        read_imatrix(save(tmp_path, gguf(matrix(), version=3 << 24)))
    with pytest.raises(MoeProbeError, match="neither GGUF nor"):
        read_imatrix(save(tmp_path, b"hello, world"))
    with pytest.raises(MoeProbeError, match="neither GGUF nor"):
        read_imatrix(save(tmp_path, b""))
    with pytest.raises(MoeProbeError, match=r"'general.alignment': it is 12"):
        read_imatrix(save(tmp_path, gguf(matrix(), alignment=12)))


def test_declared_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<I", 3)
    with pytest.raises(MoeProbeError, match=r"pairs and .* tensors"):
        read_imatrix(save(tmp_path, head + struct.pack("<QQ", 2**62, 0)))
    with pytest.raises(MoeProbeError, match=r"pairs and .* tensors"):
        read_imatrix(save(tmp_path, head + struct.pack("<QQ", 0, 2**63)))
    with pytest.raises(MoeProbeError, match="key 1 of the metadata"):
        read_imatrix(save(tmp_path, head + struct.pack("<QQQ", 0, 1, 2**60) + bytes(20)))
    for array, what in ((struct.pack("<IIQ", 9, 8, 2**60), "'a'"), (struct.pack("<IIQ", 9, 5, 2**62), "'a'")):
        with pytest.raises(MoeProbeError, match=f"{what} of the metadata: .* bytes are needed"):
            read_imatrix(save(tmp_path, head + struct.pack("<QQ", 0, 1) + text("a") + array))
    for array in (struct.pack("<IIQ", 9, 9, 1), struct.pack("<I", 99)):
        with pytest.raises(MoeProbeError, match="type"):
            read_imatrix(save(tmp_path, head + struct.pack("<QQ", 0, 1) + text("a") + array))
    huge = text("a") + struct.pack("<I2QIQ", 2, 2**40, 2**40, 0, 0)
    with pytest.raises(MoeProbeError, match="tensor 'a': its data would end at byte"):
        read_imatrix(save(tmp_path, head + struct.pack("<QQ", 1, 0) + huge + bytes(64)))
    odd = text("a") + struct.pack("<IQIQ", 1, 1, 0, 3)
    with pytest.raises(MoeProbeError, match="offset 3 is no multiple of 32"):
        read_imatrix(save(tmp_path, head + struct.pack("<QQ", 1, 0) + odd + bytes(64)))
    twice = 2 * (text("a") + struct.pack("<IQIQ", 1, 1, 0, 0))
    with pytest.raises(MoeProbeError, match="tensor 'a': it comes twice"):
        read_imatrix(save(tmp_path, head + struct.pack("<QQ", 2, 0) + twice + bytes(64)))
    again = 2 * (text("k") + struct.pack("<II", 4, 1))
    with pytest.raises(MoeProbeError, match="'k' comes twice"):
        read_imatrix(save(tmp_path, head + struct.pack("<QQ", 0, 2) + again))


def test_the_older_format_has_no_counts_and_says_so(tmp_path: Path) -> None:
    names = [b"blk.0.attn_q.weight", b"blk.0.ffn_gate_exps.weight"]
    with pytest.raises(MoeProbeError, match=r"older .dat format: it stores means by expert"):
        read_imatrix(save(tmp_path, legacy(names)))
    whole = legacy(names)
    for length in range(8, len(whole) - 12, 7):
        with pytest.raises(MoeProbeError, match=r"damaged at entry [12] of 2"):
            read_imatrix(save(tmp_path, whole[:length]))
    for name in (b"a\nb", b"a\x00b", b"\xff"):
        with pytest.raises(MoeProbeError, match=r"entry 1 of 1, its name|entry 1 of 1: its name"):
            read_imatrix(save(tmp_path, legacy([name])))
    with pytest.raises(MoeProbeError, match="entry 1 of 1, 'a': it would have -1 values"):
        read_imatrix(save(tmp_path, struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, -1) + bytes(9)))


def test_experts_per_token_need_agreeing_layers(tmp_path: Path) -> None:
    assert read_imatrix(save(tmp_path, gguf(matrix(tokens=7)))).top_k is None  # 16 selections of 7 tokens
    without = {name: array for name, array in matrix().items() if "gate_inp" not in str(name)}
    assert read_imatrix(save(tmp_path, gguf(without))).top_k is None
    rounded = read_imatrix(save(tmp_path, gguf(matrix({0: [2.0**25, 3]}))))
    assert "rounded to 24 bits" in rounded.notes[0]


def counts_of(seed: int, tokens: int) -> dict[int, list[float]]:
    """Count top-2 routing of some tokens over four experts in two layers."""
    rng = np.random.default_rng(seed)
    return {
        layer: np.bincount(np.concatenate([rng.choice(4, 2, replace=False) for _ in range(tokens)]), minlength=4).tolist()
        for layer in (1, 2)
    }


def topics(
    folder: Path, labels: str = "file,topic\nc1.gguf,chemistry\nc2.gguf,chemistry\nlaw.gguf,law\n"
) -> dict[str, list]:
    """Write a matrix for each of three texts, and the table of their topics."""
    written = {}
    for seed, (name, tokens) in enumerate({"c1": 300, "c2": 200, "law": 100}.items()):
        counts = counts_of(seed, tokens)
        (folder / f"{name}.gguf").write_bytes(gguf(matrix(counts, tokens=tokens)))
        written[name] = list(counts.values())
    (folder / "documents.csv").write_text(labels)
    return written


def test_one_row_per_topic_is_the_weakest_evidence(tmp_path: Path) -> None:
    written = topics(tmp_path)
    trace = import_imatrix(tmp_path, tmp_path / "trace", options=ImportOptions(model_id="mixtral"))
    assert trace.manifest.evidence is Evidence.COUNTS and trace.warnings == () and verify(trace.root) == []
    assert trace.documents["document"].tolist() == trace.documents["topic"].tolist() == ["chemistry", "law"]
    assert trace.documents["n_tokens"].tolist() == [500, 100]
    added = np.array([np.add(written["c1"], written["c2"]), written["law"]])
    assert (trace.usage().selections == added).all()
    assert [(layer.layer, layer.num_experts, layer.top_k) for layer in trace.layers] == [(1, 4, 2), (2, 4, 2)]
    assert (Trace.open(trace.root).usage().selections == added).all()


def test_files_are_documents_where_the_user_says_so(tmp_path: Path) -> None:
    written = topics(tmp_path)
    trace = import_imatrix(tmp_path, tmp_path / "trace", files_are_documents=True)
    assert trace.manifest.evidence is Evidence.DOCUMENTS
    assert trace.documents["document"].tolist() == ["c1", "c2", "law"] == trace.documents["group"].tolist()
    assert trace.documents["topic"].tolist() == ["chemistry", "chemistry", "law"]
    assert (trace.usage().selections == np.array(list(written.values()))).all()


def test_groups_and_further_labels(tmp_path: Path) -> None:
    topics(
        tmp_path, "file,topic,group,register\nlaw.gguf,law,g2,formal\nc1.gguf,chemistry,g1,exam\nc2.gguf,chemistry,g1,lab\n"
    )
    options = ImportOptions(labels=("register",))
    each = import_imatrix(tmp_path, tmp_path / "a", files_are_documents=True, options=options)
    assert each.documents["group"].tolist() == ["g1", "g1", "g2"]
    assert each.documents["register"].tolist() == ["exam", "lab", "formal"]
    added = import_imatrix(str(tmp_path / "*.gguf"), tmp_path / "b", options=options)
    assert added.documents["document"].tolist() == ["chemistry / exam", "chemistry / lab", "law / formal"]


def test_labels_of_elsewhere_and_columns_of_other_names(tmp_path: Path) -> None:
    topics(tmp_path)
    table = [{"name": f"{name}.gguf", "field": field, "tokens": n} for name, field, n in (("law", 3, 100), ("c1", "x", 300))]
    options = ImportOptions(columns=LabelColumns(document="name", topic="field"))
    files = tmp_path / "[cl][1a]*.gguf"
    trace = import_imatrix(files, tmp_path / "a", documents=table, options=options)
    assert trace.documents["topic"].tolist() == ["x", "3"] and trace.documents["n_tokens"].tolist() == [300, 100]
    for tokens in (299, 1.5, None, float("inf")):  # 300 tokens with two experts each are in the file
        wrong = [{**row, "tokens": tokens} for row in table]
        with pytest.raises(MoeProbeError, match=r"600 selections|no number of tokens for law"):
            import_imatrix(files, tmp_path / "b", documents=wrong, options=options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("file,topic\nc1.gguf,a\nc2.gguf,a\n", "do not name law.gguf"),
        ("file,topic\nc1.gguf,a\nc1.gguf,a\n", "names c1.gguf twice"),
        ("file,topic\nc1.gguf,\n", "has no topic"),
        ("file,subject\nc1.gguf,a\n", "no column 'topic'"),
        ("file,topic,tokens\nc1.gguf,a,-5\n", "no number of tokens for c1.gguf"),
    ],
)
def test_bad_tables_of_labels(tmp_path: Path, labels: str, message: str) -> None:
    topics(tmp_path, labels)
    with pytest.raises(MoeProbeError, match=message):
        import_imatrix(tmp_path, tmp_path / "trace")
    assert not (tmp_path / "trace").exists()


def test_what_does_not_go_together(tmp_path: Path) -> None:
    topics(tmp_path)
    law = tmp_path / "law.gguf"
    assert import_imatrix(law, tmp_path / "a", topic="law").documents["topic"].tolist() == ["law"]
    with pytest.raises(MoeProbeError, match="has 2 experts per token, not 3"):
        import_imatrix(law, tmp_path / "b", topic="law", options=ImportOptions(top_k=3))
    for options in (ImportOptions(tokenizer=tmp_path), ImportOptions(labels=("register",))):
        with pytest.raises(UsageError, match=r"cannot be used here|--topic excludes options"):
            import_imatrix(law, tmp_path / "b", topic="law", options=options)
    with pytest.raises(UsageError, match="--topic is empty"):
        import_imatrix(law, tmp_path / "b", topic=" ")
    (tmp_path / "c2.gguf").write_bytes((tmp_path / "c1.gguf").read_bytes())
    with pytest.raises(MoeProbeError, match=r"c2\.gguf has the same counts as .*c1\.gguf"):
        import_imatrix(tmp_path, tmp_path / "b")
    (tmp_path / "c2.gguf").write_bytes(gguf(matrix({1: [1, 1, 2]})))
    with pytest.raises(MoeProbeError, match=r"another model .*layer 1: 3 and 4 experts"):
        import_imatrix(tmp_path, tmp_path / "b")
    (tmp_path / "documents.csv").unlink()
    with pytest.raises(MoeProbeError, match="has no topic: there is no documents"):
        import_imatrix(tmp_path, tmp_path / "b")
    with pytest.raises(MoeProbeError, match="no recording"):
        import_imatrix(tmp_path / "a" / "shards" if (tmp_path / "a" / "shards").exists() else tmp_path / "a", tmp_path / "b")


def test_layers_with_different_sums_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, gguf(matrix({1: [7, 0, 3, 6], 2: [4, 4, 5, 1]})))
    with pytest.raises(MoeProbeError, match="14 selections in layer 2"):
        import_imatrix(path, tmp_path / "a", topic="law", options=ImportOptions(top_k=2))


def test_the_example_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(__file__).parents[2].joinpath("docs/formats.md").read_text(encoding="utf-8")
    example = text.partition("### Importance matrices")[2].partition("```python\n")[2].partition("```")[0]
    folder = tmp_path / "matrices"
    folder.mkdir()
    topics(folder)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    printed = capsys.readouterr().out
    assert "2 {1: [" in printed and "chemistry [0." in printed and "law [0." in printed
