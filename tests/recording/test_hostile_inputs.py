"""Damaged and hostile inputs: refused in a sentence, before memory is taken; every reader gets damaged files."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from attacks.mutate import mutate
from attacks.readers_inputs import READERS

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.textfiles import open_text, read_csv, read_json, read_json_rows, read_text
from moe_probe.core.textfiles.limits import SETTING, json_memory
from moe_probe.recording.corpus.parquet import ParquetTable
from moe_probe.recording.importers import (
    import_arrays,
    import_fingerprints,
    import_sglang_distribution,
    import_table,
    import_usage,
)

FAST = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound input of every reader."""
    root = tmp_path_factory.mktemp("inputs")
    for reader in READERS:
        (root / reader.name).mkdir()
        reader.prepare(root / reader.name)
    return root


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
@FAST
@given(seed=st.integers(0, 10**6))
def test_damage_is_read_or_refused(reader, inputs: Path, tmp_path: Path, seed: int) -> None:
    copy = tmp_path / "copy" / "input"
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(inputs / reader.name, copy)
    names = [path.relative_to(copy).as_posix() for path in sorted(copy.rglob("*")) if path.is_file()]
    mutate(random.Random(seed), copy, names)
    try:
        reader.read(copy)
    except MoeProbeError as error:
        assert str(error).endswith((".", "?"))


def limited(monkeypatch: pytest.MonkeyPatch, megabytes: float) -> None:
    monkeypatch.setenv(SETTING, str(megabytes))


def test_a_line_that_unpacks_to_very_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0.1)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "short"}\n{"text": "' + b"x" * 300_000 + b'"}\n'))
    rows = read_json_rows(path)
    assert next(rows) == (1, {"text": "short"})
    with pytest.raises(MoeProbeError, match=rf"line 2 unpacks to more than 100,000 characters.*{SETTING} to more than 0.1"):
        next(rows)
    limited(monkeypatch, 1)
    assert [len(value["text"]) for _, value in read_json_rows(path)] == [5, 300_000]


def test_plain_files_have_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0.1)
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "x" * 300_000}), encoding="utf-8")
    assert len(next(read_json_rows(path))[1]["text"]) == 300_000


def test_a_text_that_is_read_whole_may_be_four_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0.1)
    for n, fits in ((390_000, True), (410_000, False)):
        path = tmp_path / f"{n}.txt.gz"
        path.write_bytes(gzip.compress(b"x\n" * (n // 2)))
        if fits:
            assert len(read_text(path)) == n
        else:
            with pytest.raises(MoeProbeError, match=r"more than 400,000 characters"):
                read_text(path)


def test_very_many_lines_of_a_small_file_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0.01)
    path = tmp_path / "lines.txt.gz"
    path.write_bytes(gzip.compress(b"x\n" * 2_000_000))
    with pytest.raises(MoeProbeError, match="unpacks to more than"), open_text(path) as lines:
        for _ in lines:
            pass


def test_a_row_of_csv_may_not_go_on_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0.01)
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b'a,b\n1,"' + b"x\n" * 20_000 + b'"\n'))
    with pytest.raises(MoeProbeError, match=r"a row of .* unpacks to more than 10,000"):
        read_csv(path)


def test_brackets_take_more_memory_than_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0.1)
    path = tmp_path / "brackets.json.gz"
    path.write_bytes(gzip.compress(b"[" + b"{}," * 60_000 + b"{}]"))
    with pytest.raises(MoeProbeError, match=r"would take 0\.0 GB of memory.*unpack the file first"):
        read_json(path)
    assert json_memory("[[1, 2], {}]") == json_memory(b"[[1, 2], {}]") > sys.getsizeof([[], {}]) + sys.getsizeof({})


@pytest.mark.parametrize("value", ["0", "-1", "nan", "many"])
def test_the_setting_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(SETTING, value)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"x"))
    with pytest.raises(UsageError, match=SETTING):
        read_text(path)


def test_a_compressed_array_that_is_read_whole_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    n = 40_000
    experts = np.stack([np.zeros(n, dtype=int), np.ones(n, dtype=int)], axis=1)[:, None]
    np.savez_compressed(path, experts=experts, document=np.zeros(n, dtype=int))
    limited(monkeypatch, 0.01)
    with pytest.raises(MoeProbeError, match=r"'document' of .* unpacks to more than 200,000 bytes"):
        import_arrays(path, tmp_path / "t", topic="law")


def test_one_long_list_does_not_make_a_huge_array(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"document": "d", "topic": "a", "position": i, "token_id": i, "experts_0": [i % 7]} for i in range(400)]
    rows[5]["experts_0"] = list(range(60_000))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(MoeProbeError, match=r"line 6 of .* selects 60,000 experts, and most tokens 1"):
        import_table(path, tmp_path / "t")


def test_fingerprints_with_one_long_list(tmp_path: Path) -> None:
    layers = {f"layer_{i}": {"selected_experts": [0, 1], "selected_probs": [0.5, 0.5]} for i in range(24)}
    router = [{f"token_{i}": dict(layers)} for i in range(20)]
    router[3]["token_3"]["layer_0"] = {"selected_experts": [0] * 70_000, "selected_probs": [0] * 70_000}
    data = {"dataset": "q", "category": "c", "original_prompt": "p", "full_text": ["a"] * 20, "router_data": router}
    (tmp_path / "a_examples.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(MoeProbeError, match=r"entry 4 of router_data in .* selects 70,000 experts"):
        import_fingerprints(tmp_path / "a_examples.json", tmp_path / "t")


def test_few_rows_may_not_name_very_many_layers_and_experts(tmp_path: Path) -> None:
    long = tmp_path / "u.csv"
    rows = "".join(f"d,a,{layer},65000,1\n" for layer in range(200))
    long.write_text(f"document,topic,layer,expert,count\n{rows}", encoding="utf-8")
    with pytest.raises(MoeProbeError, match=r"200 rows for 200 layers and 65,001 experts"):
        import_usage(long, tmp_path / "t")
    counts = tmp_path / "c.csv"
    counts.write_text("layer_id,expert_id,count\n" + "".join(f"{i},65000,1\n" for i in range(200)), encoding="utf-8")
    with pytest.raises(MoeProbeError, match="200 layers and expert 65,000"):
        import_sglang_distribution(counts, tmp_path / "t", topic="law")


def test_parquet_that_declares_millions_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"n": pa.repeat(pa.scalar(0, pa.int8()), 3_000_000)}), path)
    with pytest.raises(MoeProbeError, match="declares 3,000,000 values in a column"):
        ParquetTable(path)


def test_parquet_that_repeats_one_long_text(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    text = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), 200_000), pa.array(["x" * 1000]))
    pq.write_table(pa.table({"text": text}), path, store_schema=False)
    with pytest.raises(MoeProbeError, match=r"[\d,]+ bytes of text in its first 65,536 rows|200,000,000 bytes of text"):
        list(ParquetTable(path).batches(1 << 18))
    assert next(ParquetTable(path).batches(2)).to_pylist() == [{"text": "x" * 1000}] * 2


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    import os

    path = tmp_path / "c.jsonl"
    os.mkfifo(path)
    for read in (lambda: read_text(path), lambda: import_table(path, tmp_path / "t"), lambda: ParquetTable(path)):
        with pytest.raises(MoeProbeError, match="a pipe, a socket or a device"):
            read()
