"""Work for several workers without a cluster: what fits where, who may write, and how outcomes travel."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_probe import __version__
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.progress import Bar, relayed
from moe_probe.core.workers.cluster import Cluster
from moe_probe.core.workers.lease import Lease
from moe_probe.core.workers.plan import Node, Plan, make_plan
from moe_probe.core.workers.pool import Pool, _Worker
from moe_probe.core.workers.settings import WorkerSettings
from moe_probe.core.workers.work import Outcome

LAPTOP, BOX, HEAD = Node(8, 0), Node(16, 8), Node(4, 0)


def settings(**values: Any) -> WorkerSettings:
    return WorkerSettings(ray=True, **values)


@pytest.mark.parametrize(
    ("given", "nodes", "plan"),
    [
        ({}, [LAPTOP], Plan(1, 8, 0)),  # a second model in memory has to be asked for
        ({"num_workers": 3}, [LAPTOP], Plan(3, 2, 0)),
        ({}, [LAPTOP, LAPTOP], Plan(2, 8, 0)),
        ({}, [BOX], Plan(8, 2, 1)),
        ({}, [BOX, BOX, HEAD], Plan(16, 2, 1)),
        ({"gpus_per_worker": 4}, [BOX, BOX, HEAD], Plan(4, 8, 4)),
        ({"gpus_per_worker": 3}, [BOX], Plan(2, 8, 3)),  # no worker spans two nodes, nor two halves of one
        ({"gpus_per_worker": 0.5, "num_workers": 16}, [BOX], Plan(16, 1, 0.5)),
        ({"gpus_per_worker": 0, "num_workers": 2}, [BOX], Plan(2, 8, 0)),
        ({"cpus_per_worker": 1, "num_workers": 2}, [LAPTOP], Plan(2, 1, 0)),
    ],
)
def test_workers_share_what_the_nodes_have(given: dict[str, float], nodes: list[Node], plan: Plan) -> None:
    assert make_plan(settings(**given), nodes, gpu=True) == plan


def test_no_worker_is_planned_that_would_have_no_task() -> None:
    assert make_plan(settings(num_workers=8), [LAPTOP], gpu=True, most=2) == Plan(2, 4, 0)


def test_work_on_the_cpu_takes_no_gpu() -> None:
    assert make_plan(settings(), [BOX], gpu=False) == Plan(1, 16, 0)


@pytest.mark.parametrize(
    ("given", "nodes", "said"),
    [
        ({"num_workers": 0}, [LAPTOP], "--num-workers 0 is invalid: the cluster has 8 CPUs and 0 GPUs"),
        ({"num_workers": -1}, [LAPTOP], "--num-workers -1 is invalid"),
        ({"gpus_per_worker": -1}, [BOX], "--gpus-per-worker -1 is invalid: the cluster has 16 CPUs and 8 GPUs"),
        ({"cpus_per_worker": 0}, [BOX], "--cpus-per-worker 0 is invalid"),
        ({"gpus_per_worker": 1.5}, [BOX], "--gpus-per-worker 1.5 is invalid: only a single GPU can be shared"),
        ({"gpus_per_worker": 1}, [LAPTOP], "room for 0 of 1 worker with 1 CPU and 1 GPU: it has 8 CPUs and 0 GPUs"),
        ({"gpus_per_worker": 16}, [BOX, BOX], "room for 0 of 1 worker .*: it has 2 nodes with 32 CPUs and 16 GPUs"),
        ({"num_workers": 9}, [BOX], "room for 8 of 9 workers with 1 CPU and 1 GPU each: .* Try: --num-workers 8"),
        ({"num_workers": 9}, [LAPTOP], "room for 8 of 9 workers with 1 CPU and 0 GPUs each"),
        ({"num_workers": 2, "cpus_per_worker": 5}, [LAPTOP], "room for 1 of 2 workers with 5 CPUs"),
    ],
)
def test_what_ray_would_wait_for_in_vain_is_refused(given: dict[str, float], nodes: list[Node], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_plan(settings(**given), nodes, gpu=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_workers": 2}, "--num-workers has no effect without --ray"),
        ({"ray_address": "auto"}, "--ray-address has no effect without --ray"),
        ({"ray": True, "ray_address": "ray://head:10001"}, "is an address of Ray Client"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        WorkerSettings(**given)


def test_a_lease_is_gone_when_the_work_is_done(tmp_path: Path) -> None:
    began = time.monotonic()
    with Lease(tmp_path / "part.lease") as lease:
        assert lease.path.exists()
    assert not lease.path.exists() and time.monotonic() - began < 1


_OWNER = """
import sys, time
from pathlib import Path
from moe_probe.core.workers.lease import Lease
with Lease(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["another takes it", "all is removed"])
def test_an_owner_that_was_cut_off_ends_before_another_begins(tmp_path: Path, how: str) -> None:
    path = tmp_path / "part.lease"
    with subprocess.Popen([sys.executable, "-c", _OWNER, str(path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "mine\n"
        if how == "another takes it":
            with Lease(path):
                assert owner.poll() == 1  # already: whoever enters has waited for it
        else:
            path.unlink()
            assert owner.wait(timeout=5) == 1


def test_a_refusal_travels_as_what_it_was() -> None:
    def refuse() -> None:
        raise MoeProbeError("what", "why", "hint", exit_code=2)

    with pytest.raises(MoeProbeError, match=r"^what: why. Try: hint.$") as caught:
        pickle.loads(pickle.dumps(Outcome.of(refuse))).result()
    assert caught.value.exit_code == 2


class Stubborn(Exception):
    """Cannot be unpickled: its constructor takes two arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def test_an_unforeseen_error_travels_with_its_traceback() -> None:
    def divide() -> float:
        return 1 / 0

    def insist() -> None:
        raise Stubborn("no", "way")

    with pytest.raises(ZeroDivisionError) as caught:
        pickle.loads(pickle.dumps(Outcome.of(divide))).result()
    assert "in divide" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="Stubborn: no") as other:
        pickle.loads(pickle.dumps(Outcome.of(insist))).result()
    assert "in insist" in str(other.value.__cause__)


def test_progress_is_handed_on_from_where_nobody_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_probe.core.progress._PATIENCE", 0.01)
    seen: list[tuple[int, int | None, str]] = []
    with relayed(lambda bar: seen.append((bar.n, bar.total, bar.note))), Bar("x", total=3) as bar:
        bar.update(2, note="half way")
        deadline = time.monotonic() + 5
        while (2, 3, "half way") not in seen and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (2, 3, "half way") in seen


def test_only_losses_in_a_row_say_that_workers_cannot_be_prepared() -> None:
    """On nodes that come and go, workers are lost while they load the model, now and then for days."""

    def get(call: Any) -> Any:
        if isinstance(call, Exception):
            raise call
        return call

    ray = SimpleNamespace(
        cloudpickle=pickle, get=get, exceptions=SimpleNamespace(RayTaskError=KeyError, RayError=ConnectionError)
    )
    pool = Pool(Cluster(ray, "a cluster"), Plan(4, 1, 0), None, say=lambda _: None)  # type: ignore[arg-type]
    lost, ready = ConnectionError("lost"), (__version__, Outcome.of(lambda: 1))
    for call in (lost, lost, ready, lost, lost):
        worker = _Worker(None, call)
        pool._workers.append(worker)
        pool._take(worker, lambda _: [])
    assert pool._n_workers == 4 and len(pool._workers) == 1
    for _ in range(2):
        worker = _Worker(None, lost)
        pool._workers.append(worker)
        pool._take(worker, lambda _: [])
    assert pool._n_workers == 1  # three in a row: on with the one that is ready
