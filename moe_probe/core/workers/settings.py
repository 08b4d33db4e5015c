"""Settings of Ray: where work runs. They never decide what comes out of it."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from moe_probe.core.errors import UsageError
from moe_probe.core.settings import Settings, setting


class WorkerSettings(Settings):
    """Whether Ray workers share the work, and what each of them gets.

    Attributes
    ----------
    ray : bool
        Without it the work is done in this process.
    ray_address : str, optional
        Cluster, as ``ray.init`` takes it: ``auto`` for the one that this machine belongs to, or ``HOST:PORT``. None stands
        for the environment variable ``RAY_ADDRESS``; where that is unset too, Ray is started on this machine and stopped
        at the end.
    num_workers : int, optional
        None: as many as the GPUs suffice for, or one per node where there are none.
    gpus_per_worker : float, optional
        A share of a GPU, or a whole number. None: 1, or 0 where the cluster has no GPU.
    cpus_per_worker : int, optional
        None: what the nodes have, shared evenly. Also the number of a worker's threads.
    """

    panel: ClassVar[str] = "Ray"

    ray: bool = setting(False, "share the work among Ray workers; those that are lost are replaced")
    ray_address: str | None = setting(
        None, "cluster: auto or HOST:PORT (RAY_ADDRESS by default; without either Ray runs on this machine)"
    )
    num_workers: int | None = setting(None, "workers (by default one per GPU, or per node without GPUs)")
    gpus_per_worker: float | None = setting(None, "GPUs of a worker, also a share of one (by default 1 where there are any)")
    cpus_per_worker: int | None = setting(None, "CPUs and threads of a worker (by default all, shared evenly)")

    @model_validator(mode="after")
    def _check(self) -> WorkerSettings:
        given = [name for name in type(self).model_fields if name != "ray" and getattr(self, name) is not None]
        if given and not self.ray:
            raise UsageError(f"--{given[0].replace('_', '-')} has no effect without --ray", "", "add --ray")
        if self.ray_address is not None and self.ray_address.startswith("ray://"):
            raise UsageError(
                f"--ray-address {self.ray_address} is an address of Ray Client",
                "its driver need not see the files of the cluster, and this one writes there",
                "run on a node of the cluster with --ray-address auto, or by ray job submit",
            )
        return self


#: Work is done in the process that asks for it.
IN_THIS_PROCESS = WorkerSettings()
