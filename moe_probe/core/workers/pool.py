"""Hands tasks to workers one after the other, replaces workers that are lost, and stops at the first refusal."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import Say
from moe_probe.core.text import clipped
from moe_probe.core.workers.cluster import Cluster
from moe_probe.core.workers.host import PROGRESS, Host
from moe_probe.core.workers.plan import Plan, describe
from moe_probe.core.workers.work import Outcome, Task, Work

#: Workers that may be lost on one task, or one after the other while they are prepared.
_MOST_LOSSES = 3
#: Seconds between two looks at the progress, and without room for a single worker on what is left of a cluster.
_BEAT, _WAIT_FOR_NODES = 0.5, 120.0
#: What Ray says of a process that was killed, which is no more than that.
_UNKNOWN = (
    " Worker exit type: SYSTEM_ERROR"
    " Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file."
)


@dataclass
class State:
    """Where the work stands.

    Attributes
    ----------
    results : dict of int to object
        Of tasks that are done, by their number.
    running : dict of int to (int, str)
        Units done, and what the worker says beside them, by the number of the task.
    n_ready : int
        Workers that are prepared.
    """

    results: dict[int, Any] = field(default_factory=dict)
    running: dict[int, tuple[int, str]] = field(default_factory=dict)
    n_ready: int = 0


@dataclass(eq=False)
class _Worker:
    """An actor, the call that it is busy with, and the task of that call (none while it prepares)."""

    actor: Any
    call: Any
    task: int | None = None
    ready: bool = False
    asked: Any = None


class Pool:
    """Workers of one kind on a cluster.

    Parameters
    ----------
    cluster : Cluster
    plan : Plan
    work : Work
    say : callable
        Takes a sentence for the person at the terminal: on workers that were lost.
    """

    def __init__(self, cluster: Cluster, plan: Plan, work: Work, *, say: Say) -> None:
        self._cluster, self._ray, self._plan, self._say = cluster, cluster.ray, plan, say
        self._n_workers = plan.n_workers
        self._work = self._ray.cloudpickle.dumps(work)
        self._workers: list[_Worker] = []
        self._tasks: Sequence[Task] | None = None
        self._todo: deque[int] = deque()
        self._losses: Counter[int | None] = Counter()
        self._state = State()
        self._last_room = time.monotonic()

    def run(self, tasks_of: Callable[[Any], Sequence[Task]], show: Callable[[State], None]) -> list[Any]:
        """Do all tasks.

        Parameters
        ----------
        tasks_of : callable
            Makes the tasks from what the first worker tells when it is prepared.
        show : callable
            Called with the state twice a second.

        Returns
        -------
        list
            Results in the order of the tasks.

        Raises
        ------
        MoeProbeError
            The first refusal of a worker; or when a task, or preparing, ended three workers, when a worker has another
            version of this package, or when no node is left.
        """
        try:
            while self._tasks is None or len(self._state.results) < len(self._tasks):
                self._hire()
                calls = {worker.call: worker for worker in self._workers if worker.call is not None}
                done, _ = self._ray.wait(list(calls), num_returns=1, timeout=_BEAT)
                for call in done:
                    self._take(calls[call], tasks_of)
                self._hand_out()
                self._ask()
                show(self._state)
        finally:
            for worker in list(self._workers):
                self._dismiss(worker)
        return [self._state.results[number] for number in range(len(self._tasks))]

    def _hire(self) -> None:
        """Start workers that are missing: no more than there are tasks for."""
        unfinished = self._n_workers if self._tasks is None else len(self._tasks) - len(self._state.results)
        while len(self._workers) < min(self._n_workers, unfinished):
            host = self._ray.remote(concurrency_groups={PROGRESS: 1})(Host)
            actor = host.options(num_cpus=self._plan.cpus, num_gpus=self._plan.gpus, max_restarts=0).remote(
                self._work, str(Path.cwd()), self._plan.cpus
            )
            self._workers.append(_Worker(actor, actor.prepare.remote()))
        if any(worker.ready for worker in self._workers) or _fits(self._plan, self._cluster):
            self._last_room = time.monotonic()
        elif time.monotonic() - self._last_room > _WAIT_FOR_NODES:
            raise MoeProbeError(
                "no worker is left, and none can be started",
                f"the cluster has {describe(self._cluster.nodes())}",
                "the same command with --resume once it has more: what was written is kept",
            )

    def _take(self, worker: _Worker, tasks_of: Callable[[Any], Sequence[Task]]) -> None:
        """Take what a call returned, or notice that its worker is lost."""
        task, call = worker.task, worker.call
        worker.task = worker.call = worker.asked = None
        try:
            got = self._ray.get(call)
        except self._ray.exceptions.RayTaskError:
            raise  # a fault in the host itself, no loss
        except self._ray.exceptions.RayError as error:
            self._lose(worker, task, _reason(error))
            return
        if task is not None:
            self._state.results[task] = got.result()
            return
        info = _prepared(*got)
        worker.ready = True
        self._losses.pop(None, None)  # only losses in a row say that workers cannot be prepared
        if self._tasks is None:
            self._tasks = tasks_of(info)
            self._todo.extend(range(len(self._tasks)))

    def _lose(self, worker: _Worker, task: int | None, reason: str) -> None:
        """Let a worker go that was lost, and put its task back in front."""
        self._dismiss(worker)
        self._losses[task] += 1
        name = self._tasks[task].name if task is not None and self._tasks is not None else ""
        if task is None and self._losses[None] >= _MOST_LOSSES and any(other.ready for other in self._workers):
            self._n_workers = len(self._workers)  # a node that is too small for the model, or broken: without it
            self._say(
                f"note: {_MOST_LOSSES} workers ended while they were prepared; going on with {self._n_workers} ({reason})"
            )
            return
        if self._losses[task] >= _MOST_LOSSES:
            raise MoeProbeError(
                f"{name} ended {_MOST_LOSSES} workers" if name else f"{_MOST_LOSSES} workers ended while they were prepared",
                reason,
                "look for a lack of memory; the same command with --resume goes on",
            )
        if task is not None:
            self._todo.appendleft(task)
        self._say(f"note: a worker was lost {f'at {name}' if name else 'while it was prepared'} and is replaced ({reason})")

    def _hand_out(self) -> None:
        """Give every worker that is idle its next task; dismiss those for whom there is none."""
        for worker in [w for w in self._workers if w.ready and w.call is None]:
            if self._todo:
                assert self._tasks is not None
                worker.task = self._todo.popleft()
                again = self._losses[worker.task] > 0
                worker.call = worker.actor.do.remote(self._tasks[worker.task], again)
            elif len(self._workers) > len(self._tasks or ()) - len(self._state.results):
                self._dismiss(worker)

    def _ask(self) -> None:
        """Ask workers how far they are, and note what those tell that were asked before; never wait for it."""
        busy, running = {w.task: w for w in self._workers if w.task is not None}, self._state.running
        for number, worker in busy.items():
            if worker.asked is not None and self._ray.wait([worker.asked], timeout=0)[0]:
                with contextlib.suppress(self._ray.exceptions.RayError):  # its loss shows at the task
                    running[number] = self._ray.get(worker.asked)
                worker.asked = None
            if worker.asked is None:
                worker.asked = worker.actor.progress.options(concurrency_group=PROGRESS).remote()
        for number in {*running} - {*busy}:
            del running[number]
        self._state.n_ready = sum(worker.ready for worker in self._workers)

    def _dismiss(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with contextlib.suppress(Exception):  # it is gone already
            self._ray.kill(worker.actor, no_restart=True)


def _fits(plan: Plan, cluster: Cluster) -> bool:
    """Whether the nodes that are alive have room for a single worker, other work aside."""
    return any(node.cpus >= plan.cpus and node.gpus >= plan.gpus for node in cluster.nodes())


def _prepared(version: str, outcome: Outcome) -> Any:
    from moe_probe import __version__

    if version != __version__:
        raise MoeProbeError(
            f"a worker has moe-probe {version}, this process {__version__}",
            "parts written by two versions need not agree",
            "install the same version on all nodes",
        )
    return outcome.result()


def _reason(error: Exception) -> str:
    """Read what Ray says of a loss, without the identifiers that precede it and the advice that follows."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    text = " ".join(" ".join((lines[1:] or lines)[:4]).split("Some common causes")[0].split())
    text = text.removeprefix("The actor is dead because ").replace(_UNKNOWN, "")
    return clipped(text.rstrip(" ."), 240)
