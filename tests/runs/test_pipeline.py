"""The way a user goes: run, resume, force, and what is said when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support.corpora import write_corpus
from support.quick import quick
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.publication import STAGED
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.settings import CorpusSettings
from moe_probe.runs.config import RunConfig, load_config
from moe_probe.runs.pipeline import run
from moe_probe.runs.stages import stages_of

#: With the other test that lays out maps: UMAP compiles itself for ten seconds in every process.
pytestmark = pytest.mark.xdist_group("umap")


def config(checkpoint: Path, corpus: Path, *, seed: int = 0, **more: object) -> RunConfig:
    """Settings of a small run; `more` are settings of the statistics."""
    return RunConfig.model_validate(
        {
            "model": str(checkpoint),
            "corpus": {"source": str(corpus), "label": ("register",)},
            "statistics": {"strata": "register", "permutations": 99} | more,
            "seed": seed,
        }
    )


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    corpus = write_corpus(folder / "corpus.jsonl")
    run(config(checkpoint, corpus), folder / "one")
    return folder


@pytest.fixture
def quickly() -> Iterator[None]:
    with quick():
        yield


def test_run_writes_what_it_promises(finished: Path) -> None:
    root = finished / "one"
    for name in (
        "run.yaml",
        "trace/trace.json",
        "report.html",
        "report.md",
        "logs/stages.json",
        "figures/load.png",
        *(
            f"results/{r}.{e}"
            for r in ("layers", "experts", "coactivation", "expert_topics", "verdicts")
            for e in ("parquet", "json")
        ),
    ):
        assert (root / name).stat().st_size > 0, name
    fixed = {
        "expert_topics": [
            "layer",
            "expert",
            "topic",
            "share",
            "lift",
            "log2_lift",
            "ci_low",
            "ci_high",
            "p_value",
            "q_value",
            "replicated",
            "significant",
        ],
        "layers": [
            "layer",
            "entropy_bits",
            "effective_experts",
            "load_cv",
            "mi_topic_bits",
            "mi_topic_null_bits",
            "mi_topic_p",
            "mi_token_bits",
            "mi_topic_given_token_bits",
            "decode_accuracy",
            "decode_baseline",
        ],
        "verdicts": [
            "topic",
            "verdict",
            "layer",
            "expert",
            "log2_lift",
            "ci_low",
            "ci_high",
            "q_value",
            "auroc_expert",
            "auroc_feature",
            "ablation_delta_nats",
            "reason",
        ],
    }
    for name, columns in fixed.items():
        assert set(columns) <= set(pd.read_parquet(root / "results" / f"{name}.parquet").columns)


@pytest.mark.usefixtures("quickly")
def test_the_type_of_weights_reaches_every_stage(finished: Path, checkpoint: Path) -> None:
    """Loaded in another type a model has another fingerprint: each stage has to load it as the trace did."""
    root = finished / "half"
    run(
        config(checkpoint, finished / "corpus.jsonl").model_copy(
            update={
                "model": ModelSettings(name=str(checkpoint), dtype="bfloat16"),
                "corpus": CorpusSettings(source=str(finished / "corpus.jsonl"), label=("register",), limit=24),
            }
        ),
        root,
    )
    assert (root / "results" / "weight_similarity.parquet").exists()
    (root / "results" / "weight_similarity.parquet").unlink()
    done = CliRunner().invoke(app, ["analyze", str(root), "--model", str(checkpoint), "--permutations", "99"])
    assert done.exit_code == 0, done.stderr
    assert (root / "results" / "weight_similarity.parquet").exists()


def test_twice_with_one_seed_gives_equal_bytes(finished: Path, checkpoint: Path) -> None:
    """Tables, figures and both reports: the same inputs and seed, the same bytes; what was measured in seconds aside."""
    run(config(checkpoint, finished / "corpus.jsonl"), finished / "two")
    files = sorted(
        p.relative_to(finished / "one")
        for p in (finished / "one").rglob("*")
        if p.suffix in (".parquet", ".json", ".png", ".html", ".md", ".safetensors") and "logs" not in p.parts
    )
    assert len(files) > 15
    for file in files:
        assert timeless(finished / "one" / file) == timeless(finished / "two" / file), file


def timeless(path: Path) -> object:
    """A file's bytes, without the seconds that stages took: they are in the tables of cost and in its section of the report."""
    if path.name == "costs.parquet":
        return pd.read_parquet(path).drop(columns="seconds").to_json()
    if path.name == "cost.json":
        return re.sub(r'"seconds": [\d.]+', "", path.read_text())
    if path.name in ("costs.json", "cost_projected.json"):  # checksum of that table, and the id that follows from it
        return re.sub(r'"(table_sha256|id)": "\w+"', "", path.read_text())
    if path.suffix in (".html", ".md"):
        return re.sub(r"\b[\d,]+\.\d s\b", "", path.read_text())
    return path.read_bytes()


def test_resume_skips_what_is_unchanged(finished: Path, checkpoint: Path) -> None:
    settings = config(checkpoint, finished / "corpus.jsonl")
    shutil.copytree(finished / "one", finished / "three")
    (finished / "three" / "results" / STAGED).mkdir()  # of an interrupted command; all stages are done
    assert run(settings, finished / "three", mode="resume").skipped == ("collect", "analyze", "cost", "report")
    assert not (finished / "three" / "results" / STAGED).exists()
    (finished / "three" / "results" / "layers.parquet").unlink()
    assert run(settings, finished / "three", mode="resume").skipped == ("collect", "cost", "report")
    more = config(checkpoint, finished / "corpus.jsonl", permutations=150)
    assert run(more, finished / "three", mode="resume").skipped == ("collect",)


@pytest.mark.usefixtures("quickly")
def test_refusals_lose_nothing(finished: Path, checkpoint: Path, tmp_path: Path) -> None:
    settings = config(checkpoint, finished / "corpus.jsonl")
    shutil.copytree(finished / "one", tmp_path / "run")
    before = (tmp_path / "run" / "report.html").read_bytes()
    with pytest.raises(MoeProbeError, match="already contains a run"):
        run(settings, tmp_path / "run")
    other = config(checkpoint, write_corpus(tmp_path / "other.jsonl", seed=9))
    with pytest.raises(MoeProbeError, match="another corpus"):
        run(other, tmp_path / "run", mode="resume")
    assert (tmp_path / "run" / "report.html").read_bytes() == before
    (tmp_path / "run" / "mine.txt").write_text("keep me")
    run(other, tmp_path / "run", mode="force")
    assert (tmp_path / "run" / "mine.txt").read_text() == "keep me"
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "draft.txt").write_text("x")
    with pytest.raises(MoeProbeError, match="already contains other files"):
        run(settings, tmp_path / "papers")


def test_labels_are_checked_before_collecting(checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    with pytest.raises(MoeProbeError, match="add --label source"):
        run(config(checkpoint, corpus_file, strata="source"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_yaml_repeats_the_run(finished: Path) -> None:
    read = load_config(finished / "one" / "run.yaml", {})
    assert read.statistics.permutations == 99 and read.statistics.strata == "register"
    changed = load_config(finished / "one" / "run.yaml", {"statistics": {"permutations": 500}})
    assert changed.statistics.permutations == 500 and changed.statistics.strata == "register"
    assert set(yaml.safe_load((finished / "one" / "run.yaml").read_text())) == set(RunConfig.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("permutation: 5", "'permutation' is not a setting.*did you mean 'permutations'"),
        ("statistics: {permutations: 5}\nmodel: m\ncorpus: c", "--permutations 5 is invalid"),
        ("sae: 5\nmodel: m\ncorpus: c", "the section sae is not a mapping"),
        ("recording: {seed: 7}\nmodel: m\ncorpus: c", "'recording.seed' is not a setting.*top level"),
        ("1: x\nmodel: m\ncorpus: c", "'1' is not a setting"),
        ("model: [a]\ncorpus: c", "the section model is not a mapping"),
        ("model: {dtype: float32}\ncorpus: c", "no model was given"),
        ("model: m\ncorpus: {source: c, limitt: 3}", "'corpus.limitt' is not a setting.*did you mean 'limit'"),
        ("model: {name: m, dtype: [1]}\ncorpus: c", "--dtype .* is invalid"),
        ("model: m", "no corpus was given"),
        ("- a", "not a list of settings"),
        ("a: [", "cannot be read"),
    ],
)
def test_bad_settings(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_config(path, {})


@pytest.mark.usefixtures("quickly")
def test_ledger_survives_half_a_file(finished: Path, checkpoint: Path) -> None:
    shutil.copytree(finished / "one", finished / "four")
    (finished / "four" / "logs" / "stages.json").write_text('{"collect": ')
    outcome = run(config(checkpoint, finished / "corpus.jsonl"), finished / "four", mode="resume")
    assert outcome.skipped == ()
    assert set(json.loads((finished / "four" / "logs" / "stages.json").read_text())) == {
        "collect",
        "analyze",
        "cost",
        "report",
    }


def test_settings_are_read_as_people_write_them(tmp_path: Path) -> None:
    """An empty section, one value where several are possible, and files from before settings had sections."""
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ncorpus: c\nsae:\nrecording: {keep: hidden, hidden_layers: '0-2,5'}\n")
    read = load_config(path, {"sae": {"widths": [256]}, "model": {"revision": "abc"}})
    assert read.sae.widths == (256,) and read.model.revision == "abc" and read.model.name == "m"
    assert read.recording.parts() == ("routing", "hidden") and read.recording.hidden_layers == (0, 1, 2, 5)
    path.write_text(
        "model: m\ncorpus: c\nsae_widths: [64, 128]\nsae_k: 4\nno_text: true\ntree: false\ndtype: bfloat16\n"
        "permutations: 500\nkeep: []\nseed: 3\nablate: mask\n"
    )
    read = load_config(path, {})
    assert (read.sae.widths, read.sae.k, read.seed, read.ablation.ablate) == ((64, 128), 4, 3, "mask")
    assert not read.recording.text and not read.tree.tree
    assert read.model.dtype == "bfloat16" and read.statistics.permutations == 500
    assert read.collect_options().parts() == ("routing", "hidden")


def test_verdicts_follow_what_is_done_again() -> None:
    """Analysis and matching rewrite tables that verdicts are completed from, though no key changes."""
    config = RunConfig.model_validate({"model": "m", "corpus": "c", "sae": {"widths": (64,)}})
    stages = {stage.name: stage for stage in stages_of(config)}
    assert stages["verdicts"].is_stale({"match"}) and stages["verdicts"].is_stale({"analyze"})
    assert not stages["verdicts"].is_stale({"cost"}) and not stages["cost"].is_stale({"analyze"})
