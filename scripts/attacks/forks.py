"""Commands of the program in forked processes, which are killed where and when the attack says.

Importing torch takes seconds, so that one process imports everything once and each trial is a fork of it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Calls that change names in a folder: between any two of them the disk may be found.
_STEPS = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "link", "symlink", "truncate", "ftruncate")
#: Modules that start a process of their own or need an extra when they are imported.
_LEFT_OUT = ("__main__", "testing", "notebook", "ray")


def import_everything() -> None:
    """Import all modules of the package, so that forks start at once."""
    import moe_probe

    for module in pkgutil.walk_packages(moe_probe.__path__, "moe_probe."):
        if not any(word in module.name for word in _LEFT_OUT):
            with contextlib.suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(module.name)


@dataclass(frozen=True)
class Kill:
    """Where a process is killed.

    Attributes
    ----------
    seconds : float or None
        After its start.
    step : int or None
        At this change of a folder, counted from 0.
    after : bool
        Behind that change, not before it.
    """

    seconds: float | None = None
    step: int | None = None
    after: bool = False

    def __str__(self) -> str:
        """Say it in words."""
        if self.step is not None:
            return f"{'after' if self.after else 'before'} change {self.step} of a folder"
        return f"{self.seconds:.3f} s after the start"


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes
    ----------
    killed : bool
    status : int
        Exit status, where it was not killed.
    output : str
        What it wrote to the terminal.
    seconds : float
    """

    killed: bool
    status: int
    output: str
    seconds: float


class _Steps:
    """Counts the changes of folders in this process, and kills it at one of them."""

    def __init__(self, kill: Kill | None, counter: Path) -> None:
        self._kill, self._counter, self._done = kill, counter, 0

    def watch(self) -> None:
        for name in _STEPS:
            setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*words: Any, **named: Any) -> Any:
            at = self._done
            self._done += 1
            wanted = self._kill is not None and self._kill.step == at
            if wanted and self._kill is not None and not self._kill.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*words, **named)
            finally:
                if wanted:
                    os.kill(os.getpid(), signal.SIGKILL)

        return step

    def save(self) -> None:
        self._counter.write_text(str(self._done))


def forked(work: Callable[[], int], log: Path, *, kill: Kill | None = None, timeout: float = 300) -> Outcome:
    """Do work in a forked process.

    Parameters
    ----------
    work : callable
        Returns the exit status.
    log : Path
        File for what it writes to the terminal; beside it, with the ending .steps, a file gets how many changes of folders a
        process that came to its end has made.
    kill : Kill, optional
    timeout : float
        Seconds after which it is killed, whatever `kill` says; that is no outcome but a TimeoutError.
    """
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(work, log, kill)
    end = started + timeout
    at = started + kill.seconds if kill is not None and kill.seconds is not None else None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        now = time.monotonic()
        if done:
            break
        if now >= end or (at is not None and now >= at):
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if now >= end:
                raise TimeoutError(f"no end after {timeout:g} s: {log.read_text(errors='replace')[-500:]}")
            break
        time.sleep(0.002 if at is None else max(0.0, min(0.002, at - now)))
    text = log.read_text(errors="replace")
    killed = os.WIFSIGNALED(status)
    return Outcome(killed, 0 if killed else os.WEXITSTATUS(status), text, time.monotonic() - started)


def _child(work: Callable[[], int], log: Path, kill: Kill | None) -> None:
    status = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (descriptor, 1), (descriptor, 2)):
            os.dup2(old, new)
        steps = _Steps(kill, log.with_suffix(".steps"))
        steps.watch()
        status = work()
        steps.save()
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def command(words: Sequence[str], folder: Path) -> Callable[[], int]:
    """Return work that runs ``moe-probe`` with these words in a folder, as a user would."""

    def run() -> int:
        import sys

        from moe_probe.cli import main

        os.chdir(folder)
        sys.argv = ["moe-probe", *words]
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 (for the life of the process)
            for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        try:
            main()
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    return run
