"""What strangers may have written, opened: parameters and columns of results, sizes in a configuration, names in a trace."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attacks.readers_signed import sign_trace

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.untrusted import file_digest
from moe_probe.models.config_check import check_local
from moe_probe.recording.trace import merge_traces, verify
from moe_probe.recording.trace.tables import open_table
from moe_probe.studies.compare.stored import check_stored
from moe_probe.testing import null_trace

SMALL = {"topics": 3, "documents_per_topic": 2, "tokens": 6, "n_layers": 1, "num_experts": 4, "vocabulary": 30}


def result(**params: Any) -> Result:
    return Result("expert_topics", pd.DataFrame({"x": [1]}), params)


@pytest.mark.parametrize("value", [None, True, "5", [5], 1.5, -1, 10**400, 11])
def test_a_parameter_of_another_kind_is_refused(value: object) -> None:
    with pytest.raises(MoeProbeError, match="parameter 'permutations' of the result 'expert_topics' cannot be used"):
        result(permutations=value).param("permutations", int, least=0, most=10)


def test_parameters_that_fit_are_returned() -> None:
    made = result(label="topic", permutations=5, alpha=1)
    assert made.param("label", str) == "topic"
    assert made.param("permutations", int, least=0, most=10) == 5
    assert isinstance(made.param("alpha", float, least=0, most=1), float)
    with pytest.raises(MoeProbeError, match="it is missing"):
        made.param("strata", str)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"layer": [0, 0]}, "it has a layer twice"),
        ({"load_cv": ["a", "b"]}, "'load_cv' has other values than numbers"),
        ({"mi_topic_bits": None}, "'mi_topic_bits' is missing"),
    ],
)
def test_columns_are_checked_before_a_comparison(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    names = ("layer", "entropy_bits", "effective_experts", "load_cv", "mi_topic_bits")
    columns: dict[str, Any] = {name: [0, 1] for name in names}
    check_stored(tmp_path, {"layers": Result("layers", pd.DataFrame(columns))})
    changed = {name: values for name, values in {**columns, **changes}.items() if values is not None}
    with pytest.raises(MoeProbeError, match=what):
        check_stored(tmp_path, {"layers": Result("layers", pd.DataFrame(changed))})


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"num_hidden_layers": 10**9}, "its num_hidden_layers is 1e"),
        ({"text_config": {"n_routed_experts": 10**6}}, "its n_routed_experts is 1e"),
        ({"num_labels": 10**8}, "its num_labels is 1e"),
        ({"num_hidden_layers": 900, "num_local_experts": 60_000}, "900 layers of 60,000 experts"),
        ([], "it is no JSON object"),
    ],
)
def test_sizes_of_a_configuration_are_bounded(tmp_path: Path, config: object, what: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"num_hidden_layers": 94, "num_experts": 512, "vocab_size": 10**6}))
    check_local(tmp_path)
    path.write_text(json.dumps(config))
    with pytest.raises(MoeProbeError, match=what):
        check_local(tmp_path)


@pytest.mark.parametrize("text", ["{", "[" * 900 + "]" * 900, "[" * 100_000])
def test_a_configuration_that_is_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(MoeProbeError, match=r"configuration of .* could not be read"):
        check_local(tmp_path)


def test_a_pipe_beside_a_configuration_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(MoeProbeError, match="it is a pipe"):
        check_local(tmp_path)
    with pytest.raises(MoeProbeError, match="it is a pipe"):
        file_digest(tmp_path / "tokenizer.json")


def test_tables_that_fit_their_checksums_are_refused_all_the_same(tmp_path: Path) -> None:
    """A merge gets a table of another shape whose checksum somebody corrected, and verify a name that would forge lines."""
    for part in "01":
        trace = null_trace(tmp_path / part, seed=1, **SMALL)
        path = trace.root / "documents.parquet"
        table = pq.read_table(path)
        names = pa.array([f"{part}-{name}" for name in table["document"].to_pylist()])
        pq.write_table(table.set_column(0, "document", names), path)
        sign_trace(trace.root)
    assert merge_traces([tmp_path / "0", tmp_path / "1"], tmp_path / "whole").n_tokens == 72
    path = tmp_path / "1" / "usage.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "document", pa.array(["x"] * len(table))), path)
    sign_trace(tmp_path / "1")
    with pytest.raises(MoeProbeError, match=r"usage\.parquet cannot be read: its column 'document' has the type string"):
        merge_traces([tmp_path / "0", tmp_path / "1"], tmp_path / "again")
    path.write_bytes(b"")
    sign_trace(tmp_path / "1")
    assert any("usage.parquet cannot be read" in problem for problem in verify(tmp_path / "1"))
    manifest = json.loads((tmp_path / "1" / "trace.json").read_text())
    manifest["files"][0]["path"] = "a\nforged: all is well\x1b[2J"
    (tmp_path / "1" / "trace.json").write_text(json.dumps(manifest))
    assert all(len(problem.splitlines()) == 1 and "\x1b" not in problem for problem in verify(tmp_path / "1"))


def test_a_table_is_read_from_memory_as_from_its_file(tmp_path: Path) -> None:
    root = null_trace(tmp_path / "t", seed=1, **SMALL).root
    for name in ("documents.parquet", "tokens.parquet", "usage.parquet"):
        table = open_table(root, name, data=(root / name).read_bytes())
        assert table.whole(table.names).equals(pq.read_table(root / name, partitioning=None))
