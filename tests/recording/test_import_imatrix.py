"""Importance matrices of llama.cpp: counts of experts come back, and damaged files are refused by their entry."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.core.errors import MoeProbeError
from moe_probe.recording.importers.gguf import read_gguf
from moe_probe.recording.importers.imatrix import read_imatrix

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


def matrix(counts: Mapping[int, list[float]] = COUNTS, *, in_sum: bool = False, tokens: int = TOKENS) -> dict:
    """Name the tensors as llama-imatrix does: sums and counts of every matrix that a text went through."""
    out: dict[str | bytes, np.ndarray] = {}
    for layer, numbers in counts.items():
        parts = {f"ffn_{part}_exps": numbers for part in ("down", "gate", "up")}
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
    assert "adds up 2 data sets" in recording.notes[0]


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
