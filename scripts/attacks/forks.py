"""Commands of the program in forked processes, which are killed where and when the attack says.

Importing torch takes seconds, so that one process imports once what the commands need, and each trial is a fork of it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Calls that change names in a folder: between any two of them the disk may be found.
_STEPS = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "link", "symlink", "truncate", "ftruncate")


def import_what(log: Path) -> None:
    """Import the modules that the last fork had in the end, so that the next one starts at once."""
    for name in log.with_suffix(".modules").read_text().split("\n"):
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # of a module that is made while another is imported, or of no file
                importlib.import_module(name)


@dataclass(frozen=True)
class Kill:
    """Where a process is killed.

    Attributes
    ----------
    seconds : float or None
        When it has used so much processor time: unlike time on the clock this means the same on a busy machine.
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
        return f"after {self.seconds:.3f} s of processor time"


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
        Processor time, of all its threads.
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
        File for what it writes to the terminal. Beside it, a process that came to its end leaves two more: with the ending
        .steps how many changes of folders it has made, with .modules the names of its modules.
    kill : Kill, optional
    timeout : float
        Seconds after which it is killed, whatever `kill` says; that is no outcome but a TimeoutError.
    """
    pid = os.fork()
    if pid == 0:
        _child(work, log, kill)
    end = time.monotonic() + timeout
    while True:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            break
        late = time.monotonic() >= end
        if late or (kill is not None and kill.seconds is not None and _processor_time(pid) >= kill.seconds):
            os.kill(pid, signal.SIGKILL)
            _, status, used = os.wait4(pid, 0)
            if late:
                raise TimeoutError(f"no end after {timeout:g} s: {log.read_text(errors='replace')[-500:]}")
            break
        time.sleep(0.002)
    text = log.read_text(errors="replace")
    killed = os.WIFSIGNALED(status)
    return Outcome(killed, 0 if killed else os.WEXITSTATUS(status), text, used.ru_utime + used.ru_stime)


def _processor_time(pid: int) -> float:
    """Seconds of processor time of another process and its threads, by Linux's clock of that process."""
    return time.clock_gettime(~pid << 3 | 2)


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
        log.with_suffix(".modules").write_text("\n".join(sorted(sys.modules)))
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def command(words: Sequence[str], folder: Path) -> Callable[[], int]:
    """Return work that runs ``moe-probe`` with these words in a folder, as a user would."""

    def run() -> int:
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
