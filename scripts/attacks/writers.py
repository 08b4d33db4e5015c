"""Two writers of one folder, for every command that writes: one works, the other is told who does.

Both start at once or a moment apart, drawn by the seed. What they leave is compared with what the one that worked leaves alone;
where one had ended before the other came, with what both leave one after the other.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from attacks.common import Options, Table
from attacks.forks import command
from attacks.kill_places import PLACES, Place, write_inputs, write_routing
from attacks.kills import cheap_and_timeless, digests

_SENTENCE = "is being written by another process"
_TAKEN = "refusing to overwrite"
#: Trials of each pair: at once, and a moment apart.
_TRIALS, _SHORT = 2, 1
#: The same commands as others, with another beginning.
_VARIANTS = ("collect a part", "collect the other", "analyze again", "label again", "report of an analysis")
_TIMEOUT = 400
#: Modules that start a process of their own or need an extra when they are imported.
_LEFT_OUT = ("__main__", "testing", "notebook", "ray", "kernels")


class Pair(NamedTuple):
    """Two commands on one folder.

    Attributes
    ----------
    name : str
    start : str
        Place whose outcome they start from; an empty folder where empty.
    words : tuple of two tuples of str
    """

    name: str
    start: str
    words: tuple[tuple[str, ...], tuple[str, ...]]


@dataclass
class _Counts:
    trials: int = 0
    refused: int = 0
    in_turn: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass
class _Ended:
    status: int
    output: str
    at: float


def attack(options: Options) -> Table:
    """Start every pair as often as asked."""
    import moe_probe.cli
    import moe_probe.recording.importers  # noqa: F401 (forks start with it)

    table = Table("Two writers", ("commands", "trials", "the second was told", "in turn", "wrong"))
    with cheap_and_timeless(short=options.short):
        if not options.short:
            _import_everything()
        bench = _Bench(options.work, full=not options.short)
        for number, pair in enumerate(pairs(options)):
            rng = np.random.default_rng([options.seed, number])
            counts = _Counts()
            for trial in range(_SHORT if options.short else _TRIALS):
                bench.trial(pair, 0.0 if trial == 0 else float(rng.uniform(0, 0.5)), counts)
            table.rows.append((pair.name, counts.trials, counts.refused, counts.in_turn, len(counts.failures)))
            table.failures += counts.failures
            print(f"{pair.name}: {counts}", file=sys.stderr, flush=True)
    return table


def _import_everything() -> None:
    """Import the modules of the package, so that forks start at once."""
    import moe_probe

    for module in pkgutil.walk_packages(moe_probe.__path__, "moe_probe."):
        if not any(word in module.name for word in _LEFT_OUT):
            with contextlib.suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(module.name)


def pairs(options: Options) -> list[Pair]:
    """Every command with itself in its modes, and with another one that writes to the same run."""
    if unknown := set(options.only) - {place.name for place in PLACES}:
        raise SystemExit(f"unknown places {sorted(unknown)}: choose from {', '.join(place.name for place in PLACES)}")
    rng, made = np.random.default_rng(options.seed), []
    usual = ["import"] if options.short else [place.name for place in PLACES if place.name not in _VARIANTS]
    for place in PLACES:
        if place.name not in (options.only or usual):
            continue
        modes: list[tuple[str, ...]] = [(), ("--resume",), ("--force",)] if place.again else [()]
        modes = modes[::2] if options.short else modes
        for i, first in enumerate(modes):
            for second in modes[i:] if place.name == "import" and not options.short else [first]:
                title = " and ".join(" ".join((place.name, *mode)) for mode in (first, second))
                made.append(Pair(title, place.after, ((*place.words, *first), (*place.words, *second))))
        others = [other for other in PLACES if other is not place and other.after in _ancestors(place) and _of_run(other)]
        if _of_run(place) and others and not options.short:
            other = others[int(rng.integers(len(others)))]
            made.append(Pair(f"{place.name} and {other.name}", place.after, (place.words, other.words)))
    return made


def _of_run(place: Place) -> bool:
    """Whether a command works on the finished trace of a run and writes into the run."""
    return place.words[1:2] == ("run",) or place.words[2:3] == ("run",)


def _ancestors(place: Place) -> set[str]:
    by_name, names, name = {p.name: p for p in PLACES}, set[str](), place.after
    while name:
        names.add(name)
        name = by_name[name].after
    return names


class _Bench:
    """The folders of the attack: inputs, what each place starts from, and what commands leave alone."""

    def __init__(self, work: Path, *, full: bool) -> None:
        self.work, self.folder, self.full = work, work / "trial", full
        (work / "inputs").mkdir()
        self.alone: dict[tuple[str, tuple[tuple[str, ...], ...]], dict[str, str]] = {}
        if full:
            self._checked(write_inputs(work / "inputs", list(PLACES)))
        else:  # the short form imports a table, and loads no model
            write_routing(work / "inputs" / "routing.jsonl")

    def _checked(self, work: Callable[[], int]) -> None:
        ended = _wait([_fork(work, self.work / "log.txt")])[0]
        if ended.status:
            raise RuntimeError(f"an undisturbed command failed: {ended.output}")

    def _state(self, name: str) -> Path | None:
        """What a place leaves, made where it is asked for first."""
        if not name:
            return None
        path = self.work / "states" / name
        if not path.exists():
            place = next(p for p in PLACES if p.name == name)
            self._start(place.after)
            self._checked(command(place.words, self.folder))
            shutil.copytree(self.folder, path, symlinks=True)
        return path

    def _start(self, name: str) -> None:
        state = self._state(name)
        shutil.rmtree(self.folder, ignore_errors=True)
        if state is None:
            self.folder.mkdir()
        else:
            shutil.copytree(state, self.folder, symlinks=True)

    def expected(self, start: str, words: tuple[tuple[str, ...], ...]) -> dict[str, str]:
        """What commands leave one after the other, undisturbed."""
        key = start, words
        if key not in self.alone:
            self._start(start)
            for one in words:
                self._checked(command(one, self.folder))
            self.alone[key] = self._digests()
        return self.alone[key]

    def _digests(self) -> dict[str, str]:
        """Digests of the trial's files, found in a fork: readers of tables start threads, which forks do not survive."""
        answer = self.work / "answer.json"

        def work() -> int:
            answer.write_text(json.dumps(digests(self.folder)))
            return 0

        self._checked(work)
        found: dict[str, str] = json.loads(answer.read_text())
        return found

    def trial(self, pair: Pair, delay: float, counts: _Counts) -> None:
        """Start both, and look at what they say and leave."""
        self._start(pair.start)
        started = []
        for number, words in enumerate(pair.words):
            started.append(_fork(command(words, self.folder), self.work / f"log-{number}.txt"))
            if number == 0:
                time.sleep(delay)
        ended = _wait(started)
        left = self._digests()
        counts.trials += 1
        told = [e for e in ended if e.status == 1 and _SENTENCE in e.output and "Traceback" not in e.output]
        worked = [words for words, e in zip(pair.words, ended, strict=True) if e.status == 0]
        if len(worked) == 1 and (told or any(e.status == 1 and _TAKEN in e.output for e in ended)):
            counts.refused += bool(told)
            counts.in_turn += not told
            wanted = self.expected(pair.start, tuple(worked))
        elif len(worked) == 2:
            counts.in_turn += 1
            order = sorted(range(2), key=lambda number: ended[number].at)
            wanted = self.expected(pair.start, tuple(pair.words[number] for number in order))
        else:
            said = "; ".join(f"status {e.status}: {e.output.strip()[-300:]}" for e in ended)
            counts.failures.append(f"{pair.name}, {delay:.3f} s apart: {said}")
            return
        if left != wanted:
            changed = sorted(name for name in left.keys() | wanted.keys() if left.get(name) != wanted.get(name))
            counts.failures.append(f"{pair.name}, {delay:.3f} s apart: other files than undisturbed: {changed[:5]}")


def _fork(work: Callable[[], int], log: Path) -> tuple[int, Path]:
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for old, new in ((os.open(os.devnull, os.O_RDONLY), 0), (descriptor, 1), (descriptor, 2)):
                os.dup2(old, new)
            status = work()
        finally:
            os._exit(status)
    return pid, log


def _wait(started: list[tuple[int, Path]]) -> list[_Ended]:
    """Wait for processes, and say when each ended."""
    waiting, ended, end = dict(started), dict[int, _Ended](), time.monotonic() + _TIMEOUT
    while waiting:
        for pid, log in list(waiting.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[pid] = _Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), time.monotonic())
                del waiting[pid]
        if time.monotonic() > end:
            raise TimeoutError(f"no end after {_TIMEOUT} s: {[log.read_text()[-300:] for log in waiting.values()]}")
        time.sleep(0.002)
    return [ended[pid] for pid, _ in started]
