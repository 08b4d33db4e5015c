"""A model that is named with --model is loaded in the run's own type, so that identical weights count as identical."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.corpora import write_corpus
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.core.schema import ModelInfo, need_same_weights, stored_dtype
from moe_probe.models import load_model
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.collect import collect_trace
from moe_probe.recording.corpus import Corpus
from moe_probe.recording.run_model import dtype_of, load_model_of
from moe_probe.recording.trace import Trace
from moe_probe.recording.trace.files import read_manifest, write_manifest
from moe_probe.studies.analyses import ANALYSES, AnalysisSettings, Context
from moe_probe.studies.inspect.inspector import _load


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collect a trace in bfloat16 of a checkpoint stored in float32, without run.yaml, as `collect` leaves it."""
    root = tmp_path_factory.mktemp("bf16")
    corpus = write_corpus(root / "corpus.jsonl", documents=12, longest=20)
    collect_trace(load_model(checkpoint, dtype="bfloat16"), Corpus(str(corpus)), root / "trace", progress=False)
    return root


def settings(run: Path, checkpoint: Path, to: Path, *, dtype: str, model: str | None = None) -> Path:
    """Give the same run a run.yaml."""
    (to / "trace").symlink_to(run / "trace")
    (to / "run.yaml").write_text(f"model: {model or checkpoint}\ncorpus: c.jsonl\ndtype: {dtype}\n")
    return to


def test_without_settings_the_type_is_the_traces(run: Path, checkpoint: Path) -> None:
    made_by = Trace.open(run).manifest.model
    assert made_by.dtype == "bfloat16" and dtype_of(run) == dtype_of(run / "trace") == "bfloat16"
    for loaded in (load_model_of(run, str(checkpoint)), _load(run, str(checkpoint))):
        assert loaded is not None and loaded.info.fingerprint == made_by.fingerprint
    assert load_model_of(run) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_with_settings_the_named_model_keeps_them(run: Path, checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    made_by = Trace.open(run).manifest.model
    shutil.copytree(checkpoint, tmp_path / "copy")
    root = tmp_path / "run"
    root.mkdir()
    settings(run, checkpoint, root, dtype=dtype)
    for name in (None, str(checkpoint), str(tmp_path / "copy")):
        loaded = load_model_of(root, name)
        assert loaded is not None and loaded.info.fingerprint == made_by.fingerprint, name


def test_traces_of_earlier_versions_go_on_and_serve_their_model(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "old")
    root, loaded = tmp_path / "old" / "trace", load_model(checkpoint, dtype="bfloat16")
    corpus, manifest = Corpus(str(run / "corpus.jsonl")), read_manifest(run / "trace")
    former = loaded.fingerprint_like("0" * 64)
    for fingerprint, fits in ((former, True), ("0" * 64, False)):
        old = manifest.model.model_copy(update={"fingerprint": fingerprint})
        write_manifest(root, manifest.model_copy(update={"model": old}))
        if fits:
            assert collect_trace(loaded, corpus, root, mode="resume", progress=False).manifest.model == old
            need_same_weights(loaded.like(old).info, old)
        else:
            with pytest.raises(MoeProbeError, match="another weights"):
                collect_trace(loaded, corpus, root, mode="resume", progress=False)


def test_the_model_is_placed_as_the_run_says_or_as_the_command_says(
    run: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trace").symlink_to(run / "trace")
    (tmp_path / "run.yaml").write_text(
        f"model: {{name: {checkpoint}, device_map: auto, max_memory: {{cpu: 1GiB}}}}\ncorpus: c.jsonl\n"
    )
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("moe_probe.models.load_model", lambda name, **options: given.append(options))
    load_model_of(tmp_path)
    load_model_of(tmp_path, placement={"device": "cpu"})
    assert (given[0]["device_map"], given[0]["max_memory"], given[0]["device"]) == ("auto", "cpu=1GiB", "auto")
    assert given[1]["device"] == "cpu" and "device_map" not in given[1]


def test_a_broken_run_yaml_matters_only_where_it_names_the_model(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    settings(run, checkpoint, tmp_path, dtype="bfloat16")
    (tmp_path / "run.yaml").write_text("unknown: 1\n")
    assert load_model_of(tmp_path, str(checkpoint)) is not None
    with pytest.raises(MoeProbeError, match="names no model"):
        load_model_of(tmp_path)


def test_analyze_compares_experts_by_weights(run: Path, checkpoint: Path) -> None:
    analysis = next(a for a in ANALYSES if a.name == "weight_similarity")

    def similarity(dtype: str) -> Result:
        settings = AnalysisSettings(model=ModelSettings(name=str(checkpoint), dtype=dtype))
        result = analysis.compute(Context(Trace.open(run), settings))
        assert isinstance(result, Result)
        return result

    for dtype in ("auto", dtype_of(run)):
        assert len(similarity(dtype).table)
    with pytest.raises(MoeProbeError, match="its weights were loaded as float32, those of the trace as bfloat16"):
        similarity("float32")


def test_find_runs_a_query_through_the_named_model(run: Path, checkpoint: Path) -> None:
    done = CliRunner().invoke(app, ["find", str(run), "w7 w8 w9 w7 w8 w9 w11", "--model", str(checkpoint)])
    assert done.exit_code == 0, done.stderr


def test_other_weights_are_refused_and_unknown_ones_are_not() -> None:
    one = ModelInfo(id="one", architecture="x", fingerprint="a", dtype="float32")
    with pytest.raises(MoeProbeError, match="other weights"):
        need_same_weights(one.model_copy(update={"fingerprint": "b"}), one)
    need_same_weights(one, one)
    need_same_weights(one, one.model_copy(update={"fingerprint": ""}))


@pytest.mark.parametrize(
    ("dtype", "quantization", "loaded"),
    [("float16", None, "float16"), ("float8_e4m3fn", None, "auto"), ("float16", "bitsandbytes", "auto"), ("", None, "auto")],
)
def test_the_type_to_load(dtype: str, quantization: str | None, loaded: str) -> None:
    assert stored_dtype(ModelInfo(id="m", architecture="x", dtype=dtype, quantization=quantization)) == loaded
