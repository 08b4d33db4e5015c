"""Folders of strangers: nothing in them runs, nothing outside is touched, the network is silent; consent is words of the call."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attacks import hostile

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.links import refuse_links_out
from moe_probe.models import load_model
from moe_probe.models.checkpoint import check_weights
from moe_probe.recording.run_model import load_model_of, read_settings
from moe_probe.runs.config import RunConfig, dump_config, need_consent
from moe_probe.testing import planted_results, planted_trace

WATCH = hostile.Watch(Path("/nowhere"))
#: Folders whose settings must stop a command that loads the model.
REFUSED = ("code", "hub", "kernel", "pickled", "shards", "device_map", "offload", "yaml_objects", "pipe", "names")


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small analysed run, the checkpoint beside it, and the canary."""
    work = tmp_path_factory.mktemp("strangers")
    trace = planted_trace(work / "made" / "trace", planted=(), topics=3, documents_per_topic=2, tokens=12, n_layers=2)
    planted_results(trace, work / "made" / "results")
    for folder in ("logs", "figures", "sae/layer_01/width_00016"):
        (work / "made" / folder).mkdir(parents=True)
    (work / "made" / "report.html").write_text("a report")
    shutil.copytree(checkpoint, work / "checkpoint")
    made = RunConfig(model={"name": str(work / "checkpoint")}, corpus={"source": str(work / "corpus.jsonl")})  # type: ignore[arg-type]
    dump_config(made, work / "made" / "run.yaml")
    WATCH.outside = hostile.canary(work).resolve()
    return work


@pytest.fixture
def run(made: Path) -> Iterator[Path]:
    shutil.copytree(made / "made", made / "run")
    yield made / "run"
    for folder in ("run", "place"):
        shutil.rmtree(made / folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _watched() -> None:
    sys.addaudithook(WATCH)


def outcome(run: Path, command: str) -> tuple[int, str]:
    """Run a command; nothing that must not happen happens."""
    place = run.parent / "place"
    place.mkdir(exist_ok=True)
    words, before = dict(hostile.commands(run, place))[command], hostile.state(WATCH.outside)
    with WATCH.watching() as seen:
        status, out, err = hostile.call(*words)
    assert seen == [] and hostile.state(WATCH.outside) == before
    assert not hostile.FORGED.search(out) and not hostile.FORGED.search(err)
    assert "Traceback" not in err and "unexpected error" not in err, err
    return status, err


@pytest.mark.parametrize("name", [name for name in hostile.FOLDERS if not name.startswith("link")])
def test_settings_and_checkpoints_of_strangers(run: Path, name: str) -> None:
    hostile.FOLDERS[name](run, WATCH.outside)
    for command in ("ablate", "inspect", "cost", "run --config"):
        status, err = outcome(run, command)
        asked = "run --config" if name == "other_sections" else "ablate"
        if command == asked and name in (*REFUSED, "other_sections"):
            assert status in (1, 2), err
        if command == "ablate" and status == 0:
            assert f"loading the model {run}" in err, "what is loaded is shown"


@pytest.mark.parametrize("name", [name for name in hostile.FOLDERS if name.startswith("link")])
def test_links_that_lead_out_stop_every_command(run: Path, name: str) -> None:
    hostile.FOLDERS[name](run, WATCH.outside)
    for command, _ in hostile.commands(run, run):
        if command == "run --config" and name != "link run.yaml":
            continue  # is called with a file, and reads nothing else there
        status, err = outcome(run, command)
        assert status == 1 and "is a link that leads out of its folder" in err, (command, err)


def test_settings_of_ones_own_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "run.yaml").symlink_to(tmp_path / "mine.yaml")
    assert read_settings(tmp_path / "folder" / "run.yaml") == {"seed": 1}


def test_a_trace_may_lie_elsewhere_and_is_shown(run: Path) -> None:
    (run / "trace").rename(run.parent / "place")
    (run / "trace").symlink_to(run.parent / "place")
    status, _, err = hostile.call("info", run)
    assert status == 0 and err == f"note: the trace of {run} lies in {run.parent / 'place'}\n"
    (run.parent / "place" / "more").symlink_to(WATCH.outside)
    status, _, err = hostile.call("info", run)
    assert status == 1 and "more is a link that leads out" in err


def test_links_inside_and_of_the_hub_stay(tmp_path: Path) -> None:
    inside, cached = tmp_path / "folder", tmp_path / "models--a--b" / "snapshots" / "abc"
    for folder in (inside, cached, tmp_path / "models--a--b" / "blobs"):
        folder.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs" / "1").write_text("")
    (inside / "a").symlink_to(inside / "b")
    (cached / "config.json").symlink_to(Path("../../blobs/1"))
    (cached / "layers.10").mkdir()
    (cached / "layers.10" / "cfg.json").symlink_to(Path("../../../blobs/1"))
    for folder in (inside, cached, cached / "layers.10", tmp_path / "no"):
        assert refuse_links_out(folder) is None
    (cached / "other").symlink_to(inside)
    (inside / "itself").symlink_to(inside / "itself")
    for folder in (inside, cached):
        with pytest.raises(MoeProbeError, match="leads out"):
            refuse_links_out(folder)


@pytest.mark.parametrize("name", ["snapshots/run", "models--a--b/snapshots/run"])
def test_only_blobs_of_a_repository_may_be_linked(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    run.mkdir(parents=True)
    (run.parents[1] / "secret").write_text("")
    (run / "run.yaml").symlink_to(Path("../../secret"))
    with pytest.raises(MoeProbeError, match="leads out"):
        refuse_links_out(run)


def test_advice_with_words_of_strangers_is_one_word_of_a_shell(tmp_path: Path, checkpoint: Path) -> None:
    words = "main; echo owned"
    (tmp_path / words).symlink_to("/etc")
    with pytest.raises(MoeProbeError, match=r"rm '.*main; echo owned'"):
        refuse_links_out(tmp_path)
    (tmp_path / "run.yaml").write_text(f"model: {{name: '{checkpoint}', revision: '{words}'}}\n")
    with pytest.raises(UsageError, match=f"--revision '{words}'"):
        load_model_of(tmp_path, trust_remote_code=True)
    (tmp_path / "run.yaml").write_text(f"model: {{name: '{words}'}}\ncorpus: x.jsonl\n")
    with pytest.raises(UsageError, match=f"moe-probe run '{words}'"):
        need_consent(tmp_path / "run.yaml", {})


def test_settings_are_small(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("a: " + "x " * 100_000)
    with pytest.raises(UsageError, match="200,003 bytes"):
        load_model_of(tmp_path)


@pytest.mark.parametrize("weights", ["adapter_model.bin", "sub/x.safetensors.index.json", "../x.safetensors"])
def test_a_configuration_names_no_other_weights(checkpoint: Path, tmp_path: Path, weights: str) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": weights}))
    with pytest.raises(MoeProbeError, match="names weights that are not read"):
        load_model(str(folder), device="cpu", progress=False)


@pytest.mark.parametrize("index", ["[" * 100_000, '{"weight_map": ' + "9" * 5000 + "}", "\udc80", '{"a": 1, "a": 2}'])
def test_a_damaged_index_of_weights_is_one_sentence(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index, errors="surrogateescape")
    with pytest.raises(MoeProbeError, match=r"index\.json cannot be read"):
        check_weights(tmp_path)


def test_the_command_line_can_allow_code(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The other tests could fail: with the flag the code of the checkpoint runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    hostile.more_code(run, WATCH.outside)
    status, _, err = hostile.call("ablate", run, "--expert", "0:1", "--trust-remote-code")
    assert (WATCH.outside / "ran").exists() and "with its own code" in err, (status, err)
    (WATCH.outside / "ran").unlink()


def test_what_the_command_names_may_come_from_the_hub(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("moe_probe.models.load_model", lambda name, **options: given.append({"name": name, **options}))
    hostile.settings(run, name="some/model", revision="v1", trust_remote_code=True)
    said: list[str] = []
    load_model_of(run, say=said.append)
    load_model_of(run, "some/model", say=said.append)
    load_model_of(run, "some/model", revision="v1", trust_remote_code=True, say=said.append)
    assert [one["download"] for one in given] == [False, True, True]
    assert [one["trust_remote_code"] for one in given] == [False, False, True]
    assert "some/model at revision v1, which" in said[0] and "run.yaml names" in said[0] and "run.yaml" not in said[1]
    with pytest.raises(UsageError, match="--revision v1"):
        load_model_of(run, "some/model", trust_remote_code=True)


@pytest.mark.parametrize(
    ("text", "given", "flag"),
    [
        ("model: {name: /, trust_remote_code: true}", {"model": {"trust_remote_code": True}}, "--trust-remote-code"),
        ("model: some/model", {"model": {"name": "some/model"}}, "moe-probe run some/model"),
        ("model: {name: /, offload_folder: /tmp}", {"model": {"offload_folder": "/tmp"}}, "--offload-folder /tmp"),
        ("model: /\ncorpus: datasets:a/b", {"corpus": {"source": "datasets:a/b"}}, "--corpus datasets:a/b"),
        ("model: /\nworkers: {ray: true}", {"workers": {"ray": True}}, "--ray"),
        ("model: /\nworkers: {ray_address: a:1}", {"workers": {"ray_address": "a:1"}}, "--ray-address a:1"),
        ("model: /\nray: true", {"workers": {"ray": True}}, "--ray"),
    ],
)
def test_a_settings_file_cannot_consent(tmp_path: Path, text: str, given: dict[str, Any], flag: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=f"Try: {flag}"):
        need_consent(tmp_path / "run.yaml", {})
    need_consent(tmp_path / "run.yaml", given)


def test_every_command_is_guarded() -> None:
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    callbacks = [info.callback for one in groups if one is not None for info in one.registered_commands]
    assert len(callbacks) >= 22
    assert all(callback is not None and callback.__code__.co_filename.endswith("guard.py") for callback in callbacks)
