"""How many workers fit on the nodes of a cluster, and what each of them gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moe_probe.core.errors import UsageError
from moe_probe.core.workers.settings import WorkerSettings


class Node(NamedTuple):
    """What a machine of the cluster offers."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Plan:
    """Workers, and what each of them gets.

    Attributes
    ----------
    n_workers : int
    cpus : int
        Of a worker; also the number of its threads.
    gpus : float
        Of a worker.
    """

    n_workers: int
    cpus: int
    gpus: float

    def describe(self) -> str:
        """Say what is planned: ``2 workers with 8 CPUs and 1 GPU each``."""
        each = describe([Node(self.cpus, self.gpus)])
        return f"1 worker with {each}" if self.n_workers == 1 else f"{self.n_workers} workers with {each} each"


def make_plan(settings: WorkerSettings, nodes: Sequence[Node], *, gpu: bool, most: int | None = None) -> Plan:
    """Find out what each worker gets; Ray would wait forever for what no node has.

    Parameters
    ----------
    settings : WorkerSettings
    nodes : sequence of Node
        Of the cluster.
    gpu : bool
        Whether the work takes a GPU where there is one.
    most : int, optional
        Number of tasks, where it is known: no more workers than these by default, nor any that would have none.

    Returns
    -------
    Plan

    Raises
    ------
    UsageError
        When workers, CPUs or GPUs are less than one of them makes sense for, or more than the cluster has.
    """
    has = describe(nodes)
    for option, given, least in (
        ("--num-workers", settings.num_workers, 1),
        ("--gpus-per-worker", settings.gpus_per_worker, 0),
        ("--cpus-per-worker", settings.cpus_per_worker, 1),
    ):
        if given is not None and given < least:
            raise UsageError(f"{option} {given:g} is invalid", f"the cluster has {has}", f"{option} {max(least, 1)} or more")
    gpus = settings.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if gpu and any(node.gpus >= 1 for node in nodes) else 0.0
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(
            f"--gpus-per-worker {gpus:g} is invalid", "only a single GPU can be shared", "a whole number, or a share below 1"
        )
    n_workers = settings.num_workers or (_room(nodes, 1, gpus) if gpus else sum(node.cpus >= 1 for node in nodes))
    n_workers = max(1, n_workers if most is None else min(n_workers, most))
    cpus = settings.cpus_per_worker or _most_cpus(nodes, n_workers, gpus)
    room = _room(nodes, cpus, gpus)
    if room < n_workers:
        less = "fewer --cpus-per-worker or --gpus-per-worker"
        raise UsageError(
            f"the cluster has room for {room} of {Plan(n_workers, cpus, gpus).describe()}",
            f"it has {has}",
            f"--num-workers {room}, or {less}" if room else less,
        )
    return Plan(n_workers, cpus, gpus)


def describe(nodes: Sequence[Node]) -> str:
    """Say what nodes offer: ``2 nodes with 32 CPUs and 8 GPUs together``."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    text = f"{cpus:g} CPU{'' if cpus == 1 else 's'} and {gpus:g} GPU{'' if gpus == 1 else 's'}"
    return text if len(nodes) == 1 else f"{len(nodes)} nodes with {text} together"


def _room(nodes: Sequence[Node], cpus: int, gpus: float) -> int:
    """Count the workers that fit; none spans two nodes."""
    return sum(min(int(node.cpus // cpus), int(node.gpus / gpus + 1e-9) if gpus else int(node.cpus)) for node in nodes)


def _most_cpus(nodes: Sequence[Node], n_workers: int, gpus: float) -> int:
    """Find the largest number of CPUs with which so many workers fit; 1 where none does."""
    largest = int(max((node.cpus for node in nodes), default=1))
    return next((cpus for cpus in range(largest, 1, -1) if _room(nodes, cpus, gpus) >= n_workers), 1)
