"""Records of routing token by token that a user brings: interchange tables, arrays, answers of servers, fingerprints."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from attacks.readers import Reader

_IMPORTS = ("moe_probe.recording.importers", "moe_probe.recording.importers.table", "pyarrow.parquet", "safetensors.numpy")
_LAYERS, _K, _EXPERTS = 2, 2, 6
LABELS = "document,topic,subtopic,group,split,tokens\nx,a,s,g1,,3\ny,b,s,g2,,3\nz,a,s,g3,,3\n"


def into(folder: Path) -> Path:
    """Return where an import of a folder writes: an empty place."""
    out = folder.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    return out


def routing(n_tokens: int, seed: int = 0) -> np.ndarray:
    """Draw experts of shape (n_tokens, 2 layers, 2 slots)."""
    rng = np.random.default_rng(seed)
    return np.stack([[rng.permutation(_EXPERTS)[:_K] for _ in range(_LAYERS)] for _ in range(n_tokens)])


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _npy(ids: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, ids.astype(np.uint8))
    return base64.b64encode(file.getvalue()).decode()


def _int32(ids: np.ndarray) -> str:
    return base64.b64encode(ids.astype("<i4").tobytes()).decode()


def _vllm(folder: Path) -> None:
    rows: list[dict[str, Any]] = []
    for i in range(3):
        ids = routing(7, i)
        choice = {"token_ids": [5, 6, 7, 8], "routed_experts": _npy(ids) if i else ids.tolist()}
        usage = {"prompt_tokens": 4}
        rows.append(
            {
                "document": f"d{i}",
                "topic": "ab"[i % 2],
                "prompt_token_ids": [1, 2, 3, 4],
                "choices": [choice],
                "usage": usage,
            }
        )
    flat = {"topic": "a", "token_ids": [1, 2, 3]}
    rows.append({"document": "d3", "tokens": ["a", "b", "c"], "routed_experts": routing(2).tolist(), **flat})
    described = {"data": _int32(routing(2)), "shape": [2, _LAYERS, _K], "dtype": "int32", "start": 0}
    rows.append({"document": "d4", "routed_experts": described, **flat})
    _jsonl(folder / "answers.jsonl", rows)


def _sglang(folder: Path) -> None:
    logprobs = [[-1.0, 5, "a"], [-1.0, 6, None], [-1.0, 7, None], [-1.0, 8, None]]
    rows = [
        {
            "document": f"d{i}",
            "topic": "ab"[i % 2],
            "input_ids": [1, 2, 3, 4],
            "response": {
                "output_ids": [5, 6, 7, 8],
                "meta_info": {
                    "prompt_tokens": 4,
                    "routed_experts": _int32(routing(7, i)),
                    "output_token_logprobs": logprobs,
                },
            },
        }
        for i in range(3)
    ]
    _jsonl(folder / "answers.jsonl", rows)


def _answers(folder: Path, top_k: int | None) -> None:
    from moe_probe.recording.importers import import_responses

    import_responses(folder / "answers.jsonl", into(folder), top_k=top_k)


def _table_rows() -> list[dict[str, Any]]:
    rows = []
    for i, ids in enumerate(routing(12)):
        row: dict[str, Any] = {"document": f"d{i // 4}", "topic": "ab"[i // 4 % 2], "group": f"g{i // 4}"}
        row |= {"position": i % 4, "token_id": 7 * i % 50, "token": f"t{i}"}
        for layer in range(_LAYERS):
            row |= {
                f"experts_{layer}": ids[layer].tolist(),
                f"weights_{layer}": [0.75, 0.25],
                f"num_experts_{layer}": _EXPERTS,
            }
        rows.append(row)
    return rows


def _table(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from moe_probe.recording.importers import import_table

        import_table(folder / name, into(folder))

    return read


def arrays() -> dict[str, Any]:
    """Return the arrays of nine tokens of three documents."""
    return {
        "experts": routing(9),
        "weights": np.full((9, _LAYERS, _K), 0.5, dtype=np.float32),
        "document": np.repeat([0, 1, 2], 3),
        "position": np.tile([0, 1, 2], 3),
        "token_id": np.arange(9) * 5,
        "layers": np.array([3, 5]),
    }


def _arrays(save: Callable[[Path], object]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        save(folder)
        (folder / "documents.csv").write_text(LABELS, encoding="utf-8")

    return prepare


def _safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays().items()}, folder / "a.safetensors")


def _labels_parquet(folder: Path) -> None:
    np.savez(folder / "a.npz", **arrays())
    rows = [{"document": name, "topic": topic, "tokens": 3, "group": None} for name, topic in zip("xyz", "aba", strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "documents.parquet")


def _read_arrays(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from moe_probe.recording.importers import import_arrays

        import_arrays(folder / name, into(folder))

    return read


def _fingerprints(folder: Path) -> None:
    for i, category in enumerate(("optics", "poetry")):
        layers = [
            {f"layer_{j}": {"selected_experts": ids[j].tolist(), "selected_probs": [0.75, 0.25]} for j in range(_LAYERS)}
            for ids in routing(3, i)
        ]
        data = {
            "dataset": "quiz",
            "category": category,
            "original_prompt": "p",
            "full_text": ["<s>", "a", "b", "c", "d"],
            "generated_only": ["c", "d"],
            "router_data": [{f"token_{at + 1}": one} for at, one in enumerate(layers)],
        }
        (folder / "data" / category).mkdir(parents=True)
        (folder / "data" / category / f"{category}_examples.json").write_text(json.dumps(data), encoding="utf-8")
    (folder / "topics.csv").write_text(
        "dataset,category,topic\nquiz,optics,physics\nquiz,poetry,letters\n", encoding="utf-8"
    )


def _read_fingerprints(folder: Path) -> None:
    from moe_probe.recording.importers import import_fingerprints

    import_fingerprints(folder / "data", into(folder), topics=folder / "topics.csv")


READERS = (
    Reader("fingerprints", _fingerprints, _read_fingerprints, _IMPORTS),
    Reader("vllm", _vllm, lambda f: _answers(f, None), _IMPORTS),
    Reader("sglang", _sglang, lambda f: _answers(f, _K), _IMPORTS),
    Reader("table-jsonl", lambda f: _jsonl(f / "t.jsonl", _table_rows()), _table("t.jsonl"), _IMPORTS),
    Reader(
        "table-parquet",
        lambda f: pq.write_table(pa.Table.from_pylist(_table_rows()), f / "t.parquet"),
        _table("t.parquet"),
        _IMPORTS,
    ),
    Reader("arrays-npz", _arrays(lambda f: np.savez(f / "a.npz", **arrays())), _read_arrays("a.npz"), _IMPORTS),
    Reader(
        "arrays-npz-packed",
        _arrays(lambda f: np.savez_compressed(f / "a.npz", **arrays())),
        _read_arrays("a.npz"),
        _IMPORTS,
    ),
    Reader("arrays-safetensors", _arrays(_safetensors), _read_arrays("a.safetensors"), _IMPORTS),
    Reader("labels-parquet", _labels_parquet, _read_arrays("a.npz"), _IMPORTS, ("documents.parquet",)),
    Reader(
        "labels-csv",
        _arrays(lambda f: np.savez(f / "a.npz", **arrays())),
        _read_arrays("a.npz"),
        _IMPORTS,
        ("documents.csv",),
    ),
)
