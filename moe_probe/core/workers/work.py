"""What a worker does: the base class, its tasks, and outcomes that travel between processes."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError


@dataclass(frozen=True)
class Task:
    """A piece of work that one worker does from begin to end.

    Attributes
    ----------
    name : str
        In messages: ``part 3 of 16``.
    lease : Path
        File that says which attempt at the task may write; beside what it writes, where all nodes see it.
    given : object
        What `Work.do` is called with.
    """

    name: str
    lease: Path
    given: Any


class Work(ABC):
    """What workers do, sent to each of them: its attributes must be picklable until `prepare` was called."""

    @abstractmethod
    def prepare(self) -> Any:
        """Load what every task needs; done once per worker.

        Returns
        -------
        object
            What the driver wants to know of it; picklable, the same from every worker.
        """

    @abstractmethod
    def do(self, given: Any, *, again: bool) -> Any:
        """Do a task.

        Parameters
        ----------
        given : object
            As in `Task`.
        again : bool
            Whether a worker was lost on it before, so that there may be something to go on with.

        Returns
        -------
        object
            Picklable and small: what is large is written to files.
        """


@dataclass(frozen=True)
class Outcome:
    """How a call in another process ended: with a value, a refusal in one sentence, or an error that nobody foresaw."""

    value: Any = None
    refusal: tuple[str, str, str, int] | None = None
    error: BaseException | None = None
    traceback: str = ""

    @classmethod
    def of(cls, call: Callable[[], Any]) -> Outcome:
        """Call a function, and keep what it returns or raises."""
        import pickle

        try:
            return cls(value=call())
        except MoeProbeError as error:
            return cls(refusal=(error.what, error.why, error.hint, error.exit_code))
        except Exception as error:
            text = traceback.format_exc()
            try:
                kept: BaseException = pickle.loads(pickle.dumps(error))
            except Exception:  # an exception that does not survive the journey: its words do
                kept = RuntimeError(f"{type(error).__name__}: {error}")
            return cls(error=kept, traceback=text)

    def result(self) -> Any:
        """Return the value, or raise what was raised.

        Raises
        ------
        MoeProbeError
            As it was raised.
        Exception
            One that nobody foresaw; its cause has the traceback of the worker.
        """
        if self.refusal is not None:
            what, why, hint, exit_code = self.refusal
            raise MoeProbeError(what, why, hint, exit_code=exit_code)
        if self.error is not None:
            raise self.error from _InWorkerError(self.traceback)
        return self.value


class _InWorkerError(Exception):
    """The traceback of another process, as the cause of what it raised."""

    def __str__(self) -> str:
        """On a line of its own."""
        return f"\n{self.args[0]}"
