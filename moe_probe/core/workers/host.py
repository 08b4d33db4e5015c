"""The actor: a worker's process, with the work that it does and its progress."""

from __future__ import annotations

import contextlib
import os
import pickle
from typing import Any

from moe_probe.core.progress import Bar, relayed
from moe_probe.core.workers.lease import Lease
from moe_probe.core.workers.work import Outcome, Task, Work

#: Group of the calls that are answered while a task is being done.
PROGRESS = "progress"


class Host:
    """Does tasks one after the other. Its methods run in threads, so that progress is reported meanwhile.

    Parameters
    ----------
    work : bytes
        A pickled `Work`: it is read after the number of threads is set, since reading it may import torch.
    folder : str
        Current folder of the driver, from which relative paths start.
    threads : int
        Threads of a product of matrices, unless ``OMP_NUM_THREADS`` says otherwise.
    """

    def __init__(self, work: bytes, folder: str, threads: int) -> None:
        import ray

        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before torch is imported
        if not ray.get_runtime_context().get_accelerator_ids().get("GPU"):
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # without a GPU of its own it takes none of the others'
        with contextlib.suppress(OSError):  # absolute paths need no folder
            os.chdir(folder)
        self._pickled, self._done = work, (0, "")
        self._work: Work

    def prepare(self) -> tuple[str, Outcome]:
        """Load what every task needs; the version of the package comes with it."""
        from moe_probe import __version__

        def prepare() -> Any:
            self._work = pickle.loads(self._pickled)
            return self._work.prepare()

        return __version__, Outcome.of(prepare)

    def do(self, task: Task, again: bool) -> Outcome:
        """Do a task.

        Parameters
        ----------
        task : Task
        again : bool
            As in `Work.do`.

        Returns
        -------
        Outcome
        """

        def work() -> Any:
            with Lease(task.lease), relayed(self._note):
                return self._work.do(task.given, again=again)

        self._done = 0, ""
        return Outcome.of(work)

    def progress(self) -> tuple[int, str]:
        """Units of the current task that are done, and what its bar says beside them."""
        return self._done

    def _note(self, bar: Bar) -> None:
        self._done = bar.n, bar.note
