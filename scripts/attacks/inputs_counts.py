"""Records of counts that a user brings: arrays, shares, long tables, sums of topics, recorders of engines."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attacks.inputs_records import LABELS, into, routing
from attacks.readers import Reader

_IMPORTS = (
    "moe_probe.recording.importers",
    "moe_probe.recording.importers.usage",
    "pyarrow.csv",
    "pyarrow.parquet",
    "torch",
)
_COUNTS = np.array(
    [[[2, 1, 1, 1, 1, 0], [0, 1, 1, 1, 2, 1]], [[1, 2, 1, 1, 0, 1], [1] * 6], [[2, 2, 1, 1, 0, 0], [1, 1, 2, 0, 1, 1]]]
)
_PASSES = np.array([[[0, 0, 0, 0], [3, 1, 0, 2], [0, 2, 2, 2]], [[0, 0, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]])
_RECORD = "expert_distribution_recorder_1.5.pt"


def _labelled(save: Callable[[Path], object]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        save(folder)
        (folder / "documents.csv").write_text(LABELS, encoding="utf-8")

    return prepare


def _shares(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"fractions": (_COUNTS / 6).astype(np.float32)}, folder / "u.safetensors")


def _usage(name: str, **more: Any) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from moe_probe.recording.importers import ImportOptions, import_usage

        import_usage(folder / name, into(folder), options=ImportOptions(top_k=2), **more)

    return read


def _long_rows() -> list[dict[str, Any]]:
    return [
        {"document": "xyz"[d], "topic": "aba"[d], "layer": int(at), "expert": int(e), "count": int(n), "gate": 0.5 * int(n)}
        for (d, at, e), n in np.ndenumerate(_COUNTS)
    ]


def _long_csv(folder: Path) -> None:
    rows = _long_rows()
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (folder / "u.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sums(folder: Path) -> None:
    counts = {"law": _COUNTS[0].tolist(), "chem": _COUNTS[1].tolist()}
    (folder / "u.json").write_text(json.dumps({"layers": [0, 7], "top_k": 2, "counts": counts}), encoding="utf-8")


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _imatrix(folder: Path) -> None:
    """Write an importance matrix by docs/gguf.md of ggml-org/ggml: header, metadata, descriptions, padding, data."""
    described = data = b""
    n = 0
    for layer, counts in {1: [7, 0, 3, 6], 2: [4, 4, 5, 3]}.items():
        for part, row in {"ffn_down_exps": counts, "ffn_up_exps": counts, "ffn_gate_inp": [8]}.items():
            for kind, array in {"in_sum2": np.ones((len(row), 3)), "counts": np.array(row)[:, None]}.items():
                data += bytes(-len(data) % 32)
                shape = array.shape[::-1]
                described += _text(f"blk.{layer}.{part}.weight.{kind}") + struct.pack("<I2QIQ", 2, *shape, 0, len(data))
                data += array.astype("<f4").tobytes()
                n += 1
    pairs = [
        _text("imatrix.chunk_count") + struct.pack("<II", 4, 1),
        _text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + _text("chem.txt"),
        _text("general.type") + struct.pack("<I", 8) + _text("imatrix"),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, n, len(pairs)) + b"".join(pairs) + described
    (folder / "i.gguf").write_bytes(head + bytes(-len(head) % 32) + data)


def _read_imatrix(folder: Path) -> None:
    from moe_probe.recording.importers import import_imatrix

    import_imatrix(folder / "i.gguf", into(folder), topic="law")


def _stat(folder: Path) -> None:
    import torch

    counts = torch.as_tensor(_PASSES, dtype=torch.int32)
    torch.save({"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}, folder / _RECORD)
    (folder / "documents.csv").write_text(f"file,topic,tokens\n{_RECORD},law,9\n", encoding="utf-8")


def _per_token(folder: Path) -> None:
    import torch

    record = {
        "forward_mode": 1,
        "input_ids": torch.tensor([1, 2, 3, 4, 5]),
        "positions": torch.tensor([0, 1, 2, 0, 1]),
        "extend_seq_lens": [3, 2],
        "topk_ids_of_layer": torch.as_tensor(routing(5).transpose(1, 0, 2).copy()),
    }
    torch.save({"records": [record], "last_physical_to_logical_map": torch.arange(6).repeat(2, 1)}, folder / _RECORD)


def _per_pass(folder: Path) -> None:
    import torch

    counts = torch.as_tensor(_COUNTS[0])
    records = [{"global_physical_count": counts}, {"global_physical_count": counts}]
    torch.save({"records": records, "last_physical_to_logical_map": torch.arange(6).repeat(2, 1)}, folder / _RECORD)


def _first_version(folder: Path) -> None:
    rows = [f"{layer},{expert},{_PASSES[0, layer, expert]}" for layer in range(3) for expert in range(4)]
    (folder / "c.csv").write_text("\n".join(["layer_id,expert_id,count", *rows]) + "\n", encoding="utf-8")


def _recorder(name: str, *, topic: str | None = "law", top_k: int | None = 2) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from moe_probe.recording.importers import ImportOptions, import_sglang_distribution

        import_sglang_distribution(folder / name, into(folder), topic=topic, options=ImportOptions(top_k=top_k))

    return read


READERS = (
    Reader(
        "usage-npz",
        _labelled(
            lambda f: np.savez(f / "u.npz", counts=_COUNTS, gate=_COUNTS * 0.5, layers=np.array([1, 2]), top_k=np.array(2))
        ),
        _usage("u.npz"),
        _IMPORTS,
    ),
    Reader(
        "fractions-npz",
        _labelled(lambda f: np.savez_compressed(f / "u.npz", fractions=_COUNTS / 6)),
        _usage("u.npz"),
        _IMPORTS,
    ),
    Reader("fractions-safetensors", _labelled(_shares), _usage("u.safetensors"), _IMPORTS),
    Reader("usage-csv", _long_csv, _usage("u.csv"), _IMPORTS),
    Reader(
        "usage-parquet",
        lambda f: pq.write_table(pa.Table.from_pylist(_long_rows()), f / "u.parquet"),
        _usage("u.parquet"),
        _IMPORTS,
    ),
    Reader("usage-json", _sums, _usage("u.json", sums=True), _IMPORTS),
    Reader("imatrix", _imatrix, _read_imatrix, _IMPORTS),
    Reader("recorder-stat", _stat, _recorder(_RECORD, topic=None), _IMPORTS),
    Reader("recorder-pass", _per_pass, _recorder(_RECORD), _IMPORTS),
    Reader("recorder-token", _per_token, _recorder(_RECORD, top_k=None), _IMPORTS),
    Reader(
        "recorder-json",
        lambda f: (f / "c.json").write_text(json.dumps({"logical_count": _PASSES.tolist()}), encoding="utf-8"),
        _recorder("c.json"),
        _IMPORTS,
    ),
    Reader("recorder-csv", _first_version, _recorder("c.csv"), _IMPORTS),
)
