"""Corpora that a user brings, one for each form: folders of text, JSON, CSV, Parquet, Arrow, plain and compressed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attacks.readers import Reader

_IMPORTS = ("moe_probe.recording.corpus.stream", "pyarrow.parquet")
_ROWS: list[dict[str, Any]] = [
    {"id": f"d{i}", "text": f"text {i} ä", "topic": "ab"[i % 2], "group": f"g{i}", "register": 1.0, "spans": [[0, 2, "x"]]}
    for i in range(4)
]
_LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _ROWS)


def _zst(path: Path, data: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(data)


def _folder(folder: Path) -> None:
    for topic in ("law", "chem"):
        for part in ("a", "b"):
            (folder / topic / part).mkdir(parents=True)
            (folder / topic / part / "1.txt").write_text(f"Some words on {topic}.\nMöre of {part}.\n", encoding="utf-8")
    (folder / "law/a/2.txt.gz").write_bytes(gzip.compress(b"packed text\n" * 5, mtime=0))
    _zst(folder / "chem/a/3.txt.zst", b"more text\n" * 4)


def _table() -> pa.Table:
    columns = {name: [row[name] for row in _ROWS] for name in _ROWS[0]} | {
        "when": pa.array(range(4), pa.timestamp("us", "UTC"))
    }
    columns["spans"] = [json.dumps(spans) for spans in columns["spans"]]
    return pa.table(columns)


def _saved(folder: Path) -> None:
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), _table().schema) as file:
        file.write_table(_table())
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")


def _arrow(folder: Path) -> None:
    with pa.ipc.new_file(str(folder / "c.arrow"), _table().schema) as file:
        file.write_table(_table())


def _csv(folder: Path) -> None:
    rows = "".join(f'd{i},"te, ""{i}""\nx",{"ab"[i % 2]},r\n' for i in range(4))
    (folder / "c.csv").write_text("id,text,topic,register\n" + rows, encoding="utf-8")


def _reader(name: str, prepare: Callable[[Path], object], file: str = "") -> Reader:
    def read(folder: Path) -> None:
        from moe_probe.recording.corpus.document import Columns
        from moe_probe.recording.corpus.stream import Corpus

        for skip_bad in (False, True):  # strictly first: what is refused there is refused
            Corpus(folder / file, columns=Columns(labels=("register",) if file else ()), skip_bad=skip_bad).summarize()

    return Reader(name, prepare, read, _IMPORTS)


READERS = (
    _reader("corpus-folder", _folder),
    _reader("corpus-jsonl", lambda f: (f / "c.jsonl").write_text(_LINES, encoding="utf-8"), "c.jsonl"),
    _reader("corpus-gzip", lambda f: (f / "c.jsonl.gz").write_bytes(gzip.compress(_LINES.encode(), mtime=0)), "c.jsonl.gz"),
    _reader("corpus-zstd", lambda f: _zst(f / "c.jsonl.zst", _LINES.encode()), "c.jsonl.zst"),
    _reader("corpus-json", lambda f: (f / "c.json").write_text(json.dumps(_ROWS, indent=1), encoding="utf-8"), "c.json"),
    _reader("corpus-csv", _csv, "c.csv"),
    _reader("corpus-parquet", lambda f: pq.write_table(_table(), f / "c.parquet"), "c.parquet"),
    _reader("corpus-arrow", _arrow, "c.arrow"),
    _reader("corpus-saved", _saved, "."),
)
