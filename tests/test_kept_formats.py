"""What earlier releases wrote opens for ever: a trace and a run of version 1, and a trace that was not sealed (tests/data)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from attacks import unfinished

import moe_probe
from moe_probe.core.results import Result
from moe_probe.recording.trace import Trace, TraceWriter, merge_traces, verify
from moe_probe.report.build import render_markdown
from moe_probe.report.compose import compose
from moe_probe.runs.run import Run
from moe_probe.sae.formats.io import load_sae, read_trained_config, read_training

KEPT = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the kept run."""
    return Path(shutil.copytree(KEPT / "run", tmp_path_factory.mktemp("kept") / "run"))


def test_the_trace_is_whole_and_reads_as_it_did(run_folder: Path) -> None:
    assert verify(run_folder) == []
    trace = Trace.open(run_folder)
    manifest = trace.manifest
    assert (manifest.version, manifest.status, len(manifest.shards)) == (1, "sealed", 3)
    assert (manifest.n_documents, len(trace.layers), manifest.kept) == (24, 6, ("routing", "hidden"))
    assert trace.documents["topic"].value_counts().to_dict() == {"chemistry": 12, "physics": 12}
    assert trace.texts([0])[0].startswith("Nucleophilic substitution at a saturated carbon")
    tokens, usage = trace.tokens(), trace.usage()
    assert "".join(tokens.token[(tokens.document == 0) & ~tokens.special]).startswith("Nucleophilic substitution")
    counted, mass = np.zeros_like(usage.selections), np.zeros(usage.selections.shape)
    for chunk in trace.iter_routing():
        text = ~chunk.special
        assert chunk.weights is not None
        for layer in range(6):
            where = (chunk.document[text][:, None], layer, chunk.experts[text, layer])
            np.add.at(counted, where, 1)
            np.add.at(mass, where, chunk.weights[text, layer].astype(float))
    np.testing.assert_array_equal(counted, usage.selections)
    assert usage.gate_mass is not None
    np.testing.assert_allclose(mass, usage.gate_mass, rtol=1e-3)
    vectors = list(trace.iter_extras("hidden/layer_02"))
    assert len(vectors) == 3 and all(part["values"].shape == (len(part["rows"]), 256) for part in vectors)


def test_the_run_opens_with_its_results_and_its_sae(run_folder: Path) -> None:
    run = moe_probe.open(run_folder)
    assert isinstance(run, Run)
    assert set(run.verdicts.table.topic) == {"chemistry", "physics"}
    for path in sorted((run_folder / "results").glob("*.parquet")):
        result = Result.load(run_folder / "results", path.stem)
        assert len(result.table) and result.caption
    (name,) = run.saes()
    folder = run_folder / "sae" / name
    sae, trained = load_sae(folder, d_in=256, hook="router_input"), read_trained_config(folder)
    assert trained is not None and (trained.d_sae, trained.layer) == (8, 2) and sae.W_dec.shape == (8, 256)
    assert read_training(folder)


def test_a_report_is_composed_of_it(run_folder: Path) -> None:
    names = sorted(path.stem for path in (run_folder / "results").glob("*.parquet"))
    report = compose(Trace.open(run_folder), {name: Result.load(run_folder / "results", name) for name in names})
    page = render_markdown(report)
    assert "chemistry" in page and "physics" in page and len(report.sections) > 3


def test_traces_of_the_release_are_merged(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_probe.recording.trace.mergeable._check_disjoint", lambda traces: None)
    merged = merge_traces([run_folder, run_folder], tmp_path / "merged")
    assert merged.manifest.n_documents == 48 and verify(merged.root) == []


def test_an_unfinished_trace_is_continued_and_sealed(tmp_path: Path) -> None:
    root = Path(shutil.copytree(KEPT / "unfinished", tmp_path / "t"))
    writer = TraceWriter.resume(root, unfinished.tokens_manifest())
    assert (len(writer.shards), writer.notes) == (2, ())
    writer.append(**unfinished.tokens_shard(2))
    assert verify(writer.seal().root) == []


def test_an_unfinished_trace_of_the_release_is_checked_all_the_same(tmp_path: Path) -> None:
    root = Path(shutil.copytree(KEPT / "unfinished", tmp_path / "t"))
    path = root / "parts" / "00001.json"
    path.write_text(path.read_text().replace('"n_documents": 3', '"n_documents": 2'))
    writer = TraceWriter.resume(root, unfinished.tokens_manifest())
    assert len(writer.shards) == 1 and "has 3 documents, the shard 2" in writer.notes[0]
