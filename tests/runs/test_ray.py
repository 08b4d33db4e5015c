"""Two Ray workers on this machine: they make what one process makes, whoever is killed meanwhile.

All tests share one Ray and one file, so that it starts once (`make test` gives a group to one of its processes).
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import write_corpus
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import MANIFEST
from moe_probe.core.workers.cluster import Cluster, connected
from moe_probe.core.workers.plan import Plan
from moe_probe.core.workers.pool import Pool, State
from moe_probe.core.workers.settings import WorkerSettings
from moe_probe.core.workers.work import Task, Work
from moe_probe.models import load_model
from moe_probe.recording.collect import CollectOptions, collect_trace
from moe_probe.recording.collect.parts import Parts
from moe_probe.recording.collect.ray_collect import CollectWork
from moe_probe.recording.corpus import Corpus
from moe_probe.recording.trace import Trace, TraceWriter, verify
from moe_probe.sae.training.ray_layers import LayerWork

pytestmark = pytest.mark.xdist_group("ray")
WORKERS = ("--ray", "--num-workers", "2", "--cpus-per-worker", "1")
OPTIONS = CollectOptions(keep=("routing", "hidden"), hidden_share=0.5, hidden_layers=(0, 2), shard_tokens=60)
RECORDED = (
    *("--dtype", "float32", "--keep", "routing", "--keep", "hidden", "--hidden-share", "0.5"),
    *("--hidden-layers", "0,2", "--shard-tokens", "60"),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(WorkerSettings(ray=True)) as started:
            started.ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
            yield started
    assert not started.ray.is_initialized()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", documents=30)


@pytest.fixture(scope="module")
def alone(checkpoint: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The trace of one process."""
    path = tmp_path_factory.mktemp("alone") / "trace"
    return collect_trace(load_model(checkpoint, dtype="float32"), Corpus(str(corpus)), path, options=OPTIONS, progress=False)


def moe_probe(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(w) for w in words])
    return done.exit_code, done.stdout, done.stderr


def files_of(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def check_same(path: Path, alone: Trace) -> None:
    """Every byte of a trace is that of the trace of one process, and nothing else is left beside it."""
    assert verify(path) == []
    assert files_of(path) == files_of(alone.root)
    assert not Parts.of(path).root.exists()


class DyingCollectWork(CollectWork):
    """One worker kills itself once, behind its first whole shard."""

    marker: Path

    def do(self, given: Any, *, again: bool) -> Any:
        writers: Any = TraceWriter
        append = writers.append

        def append_and_die(writer: TraceWriter, **shard: Any) -> Any:
            entry = append(writer, **shard)
            if not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return entry

        writers.append = append_and_die
        try:
            return super().do(given, again=again)
        finally:
            writers.append = append


def test_two_workers_one_of_them_killed_collect_what_one_process_collects(
    cluster: Cluster, checkpoint: Path, corpus: Path, alone: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DyingCollectWork, "marker", tmp_path / "killed", raising=False)
    monkeypatch.setattr("moe_probe.recording.collect.ray_collect.CollectWork", DyingCollectWork)
    out = tmp_path / "trace"
    words = ("collect", checkpoint, "--corpus", corpus, "--out", out, *RECORDED, *WORKERS)
    status, printed, said = moe_probe(*words, "--json")
    assert status == 0, said
    assert json.loads(printed)["documents"] == 30  # nothing of Ray's is on stdout
    assert "2 workers with 1 CPU and 0 GPUs each" in said and "joining 8 parts" in said and "(pid=" not in said
    assert (tmp_path / "killed").exists() and said.count("is replaced (its worker process has died") == 1
    check_same(out, alone)
    Parts.of(out).begin().settle(8, 4096)  # as if the driver had been killed while it removed them
    status, _, said = moe_probe(*words, "--resume")
    assert status == 0 and "joining" not in said, said  # there was nothing to do
    check_same(out, alone)


_DRIVER = """
import sys, time
from pathlib import Path
import moe_probe.recording.collect.ray_collect as module
from moe_probe.cli import main
from moe_probe.recording.trace import TraceWriter

class StallingWork(module.CollectWork):
    def do(self, given, *, again):
        append = TraceWriter.append
        def append_and_stall(writer, **shard):
            entry = append(writer, **shard)
            if given[1][0] > 0:  # all but the first part stop behind their first shard
                time.sleep(600)
            return entry
        TraceWriter.append = append_and_stall
        try:
            return super().do(given, again=again)
        finally:
            TraceWriter.append = append

module.CollectWork = StallingWork
main()
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_ended_goes_on_where_it_was(
    cluster: Cluster, checkpoint: Path, corpus: Path, alone: Trace, tmp_path: Path, signum: signal.Signals
) -> None:
    out, parts = tmp_path / "trace", Parts.of(tmp_path / "trace")
    words = [str(w) for w in ("collect", checkpoint, "--corpus", corpus, "--out", out, *RECORDED, *WORKERS)]
    if signum == signal.SIGINT:  # one worker is enough to be interrupted
        words[words.index("--num-workers") + 1] = "1"
    address = {"RAY_ADDRESS": cluster.ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-c", _DRIVER, *words]
    with subprocess.Popen(command, env=os.environ | address, text=True, stderr=subprocess.PIPE) as driver:
        deadline = time.monotonic() + 120
        while not _is_half_done(parts.root) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        half_done = _is_half_done(parts.root)
        driver.send_signal(signum)
        _, said = driver.communicate(timeout=60)
    assert half_done, said
    assert driver.returncode == (-9 if signum == signal.SIGKILL else 130), said
    assert signum == signal.SIGKILL or ("interrupted" in said and "--ray" in said and "--resume" in said), said
    assert not (out / MANIFEST).exists()
    _check_workers_are_gone(cluster)
    if signum == signal.SIGINT:
        return
    sealed = parts.folder(0, 8) / "trace.json"
    before = sealed.stat().st_mtime_ns
    status, _, refused = moe_probe(*words)
    assert status == 1 and f"{parts.root} has parts of a trace: refusing to overwrite" in refused
    status, _, refused = moe_probe(*words[: words.index("--ray")], "--resume")
    assert status == 1 and "they were collected with --ray. Try: add --ray" in refused
    assert sealed.stat().st_mtime_ns == before  # a whole part is not made again
    # another number of workers: the parts stay those of the first call
    status, _, said = moe_probe(*words[: words.index("--num-workers")], "--num-workers", 1, "--resume")
    assert status == 0 and "joining 8 parts" in said, said
    check_same(out, alone)


def _check_workers_are_gone(cluster: Cluster) -> None:
    """The CPUs of a driver's workers are free again."""
    deadline = time.monotonic() + 60
    while cluster.ray.available_resources().get("CPU") != cluster.ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, cluster.ray.available_resources()
        time.sleep(0.2)


def _is_half_done(parts: Path) -> bool:
    """The first part is sealed, the second has a shard."""
    # not its lease, a file beside it that is called alike
    first, second = (next(filter(Path.is_dir, parts.glob(f"{i:05d}-of-*")), None) for i in (0, 1))
    if first is None or second is None or not (second / "parts" / "00000.json").exists():
        return False
    return '"sealed"' in (first / "trace.json").read_text()


def test_layers_are_trained_as_in_one_process(
    cluster: Cluster, alone: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copytree(alone.root, tmp_path / name / "trace")
    train = ("--widths", "16,32", "--layers", "0,2", "--device", "cpu")
    assert moe_probe("sae", "train", tmp_path / "one", *train)[0] == 0
    monkeypatch.setattr(DyingLayerWork, "marker", tmp_path / "killed", raising=False)
    monkeypatch.setattr("moe_probe.sae.training.ray_layers.LayerWork", DyingLayerWork)
    status, printed, said = moe_probe("sae", "train", tmp_path / "two", *train, *WORKERS, "--json")
    assert status == 0, said
    assert (tmp_path / "killed").exists() and said.count("a worker was lost at layer 2") == 1
    assert [Path(p).relative_to(tmp_path / "two" / "sae").as_posix() for p in json.loads(printed)["saes"]] == [
        f"layer_0{layer}/width_000{width}" for layer in (0, 2) for width in (16, 32)
    ]
    one, two = files_of(tmp_path / "one" / "sae"), files_of(tmp_path / "two" / "sae")
    assert one.keys() == two.keys() and len(one) == 8
    for name in one:
        if name.endswith(".safetensors"):
            assert one[name] == two[name], name
        else:  # all but the seconds that it took
            assert _config(one[name]) == _config(two[name]), name
    status, _, said = moe_probe("sae", "train", tmp_path / "two", *train, *WORKERS)
    assert status == 1 and "exists already: refusing to overwrite it" in said
    status, _, said = moe_probe("sae", "train", tmp_path / "two", *train, *WORKERS, "--resume")
    assert status == 0 and "layer 0: all 2 SAEs exist already" in said


class DyingLayerWork(LayerWork):
    """The worker of layer 2 is killed once, when the first of its two SAEs is saved."""

    marker: Path

    def do(self, given: int, *, again: bool) -> Any:
        if given == 2 and not self.marker.exists():
            layers: Any = importlib.import_module("moe_probe.sae.training.layers")
            save = layers.save_sae

            def save_and_die(*args: Any, **named: Any) -> None:
                save(*args, **named)
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

            layers.save_sae = save_and_die
        return super().do(given, again=again)


def _config(text: bytes) -> Any:
    config = json.loads(text)
    config["metadata"]["moe_probe_training"].pop("seconds")
    return config


class Squares(Work):
    """Squares numbers; some kill, refuse or fail."""

    def prepare(self) -> int:
        return 4

    def do(self, given: int, *, again: bool) -> int:
        if given == -1:
            os.kill(os.getpid(), signal.SIGKILL)
        if given == -2:
            raise MoeProbeError("document 'd7' is empty", "it has no text", "remove it", exit_code=2)
        return int(np.sqrt(given) if given != -3 else 1 / 0)


class Unready(Work):
    """Cannot be prepared."""

    def prepare(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def do(self, given: Any, *, again: bool) -> None:
        raise AssertionError


def run_pool(cluster: Cluster, work: Work, given: Sequence[int], folder: Path, said: list[str]) -> list[Any]:
    def tasks(info: Any) -> list[Task]:
        return [Task(f"part {i}", folder / f"{i}.lease", value) for i, value in enumerate(given)]

    def show(state: State) -> None:
        assert state.n_ready <= 1

    return Pool(cluster, Plan(1, 1, 0.0), work, say=said.append).run(tasks, show)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([4, -2, 9], "document 'd7' is empty: it has no text. Try: remove it."),
        ([-1, 9], "part 0 ended 3 workers: its worker process has died"),
    ],
)
def test_what_stops_the_work_is_said(cluster: Cluster, tmp_path: Path, given: list[int], expected: str) -> None:
    said: list[str] = []
    with pytest.raises(MoeProbeError) as caught:
        run_pool(cluster, Squares(), given, tmp_path, said)
    assert expected in str(caught.value)
    assert len(said) == (2 if -1 in given else 0)  # each loss but the last


def test_a_fault_of_ours_comes_with_the_traceback_of_the_worker(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        run_pool(cluster, Squares(), [4, -3], tmp_path, [])
    assert "in do" in str(caught.value.__cause__)


def test_workers_that_cannot_be_prepared_are_not_replaced_for_ever(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(MoeProbeError, match="3 workers ended while they were prepared: its worker process has died"):
        run_pool(cluster, Unready(), [4], tmp_path, [])


@pytest.mark.parametrize(
    ("words", "status", "expected"),
    [
        (["--num-workers", "0"], 2, "--num-workers 0 is invalid: the cluster has "),
        (["--gpus-per-worker", "64"], 2, "the cluster has room for 0 of 1 worker with 1 CPU and 64 GPUs: it has "),
        (["--num-workers", "100000"], 2, "of 100000 workers with 1 CPU and 0 GPUs each: it has "),
        (["--shard", "0/2"], 2, "--shard and --ray exclude each other"),
        (["--tp-plan", "auto"], 2, "--tp-plan and --ray exclude each other"),
    ],
)
def test_what_cannot_be_had_is_refused(
    cluster: Cluster, checkpoint: Path, corpus: Path, tmp_path: Path, words: list[str], status: int, expected: str
) -> None:
    found, _, said = moe_probe("collect", checkpoint, "--corpus", corpus, "--out", tmp_path / "trace", "--ray", *words)
    assert found == status and expected in said and len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_one_process_began_is_no_part(
    cluster: Cluster, checkpoint: Path, corpus: Path, alone: Trace, tmp_path: Path
) -> None:
    TraceWriter.create(tmp_path / "trace", alone.manifest)
    words = ("collect", checkpoint, "--corpus", corpus, "--out", tmp_path / "trace", *RECORDED, *WORKERS)
    status, _, said = moe_probe(*words, "--resume")
    assert status == 1 and "was begun without --ray" in said


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "there is no Ray cluster to connect to at 127.0.0.1:1: .*refused"), ("head", "cannot be read")],
)
def test_no_cluster_at_the_address(address: str, said: str) -> None:
    with pytest.raises(MoeProbeError, match=said), connected(WorkerSettings(ray=True, ray_address=address)):
        pytest.fail("connected")
