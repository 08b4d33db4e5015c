"""Every stage and every command that writes, killed at any moment, continued as it advises, compared with an undisturbed run.

Half of the kills come at a moment of the undisturbed processor time, drawn evenly; half at a change of a folder (a rename, a
removal, a new folder), before or behind it. The second kind repeats exactly under its seed. Clusters, maps and fits of routing
run with few draws: what is attacked is how files are written. A clock stands still where durations get into files, so that
files are compared byte by byte; the training of SAEs writes its state after every batch. Places are attacked in turns: an
attack that is interrupted (Ctrl-C) has killed all of them equally often.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from attacks.common import Options, Table
from attacks.forks import Kill, command, forked, import_what
from attacks.kill_places import PLACES, Place, chosen, with_starts, write_inputs

_PATIENCE = 3_600


@dataclass
class Counts:
    """What became of the trials of one place."""

    trials: int = 0
    killed: int = 0
    lost: int = 0
    wrong: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)


def attack(options: Options) -> Table:
    """Kill every place, as often as asked."""
    wanted = chosen(options.only, short=options.short)
    rngs = [np.random.default_rng([options.seed, PLACES.index(place)]) for place in wanted]
    counts = [Counts() for _ in wanted]
    with cheap_and_timeless(short=options.short):
        bench = _Bench(options, wanted)
        try:
            for trial in range(options.number):
                started = time.monotonic()
                for place, rng, count in zip(wanted, rngs, counts, strict=True):
                    bench.trial(place, bench.drawn(place, rng, trial), count)
                say(f"{trial + 1} of {options.number} rounds, the last in {time.monotonic() - started:.0f} s")
                if trial % 10 == 0:
                    say(_table(wanted, counts).markdown())
        except KeyboardInterrupt:
            say("interrupted: what follows are the trials so far")
    return _table(wanted, counts)


def _table(places: list[Place], counts: list[Counts]) -> Table:
    table = Table(
        "Killed at any moment", ("stage or command", "trials", "killed before the end", "lost", "wrong", "refused")
    )
    for place, c in zip(places, counts, strict=True):
        table.rows.append((place.name, c.trials, c.killed, c.lost, c.wrong, c.refused))
        table.failures += c.failures
    return table


def say(text: str) -> None:
    """Tell the one who watches how far the attack is."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def cheap_and_timeless(*, short: bool) -> Iterator[None]:
    """Cheap analyses, and a clock that stands still where durations get into files."""
    if short:  # imports alone, which need neither
        yield
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    import pytest
    from support.quick import quick

    checkpoints = itertools.count(step=1_000)  # seconds at which training asks whether to write its state
    with quick(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_probe.runs.pipeline.time", SimpleNamespace(monotonic=lambda: 0.0))
        clock = SimpleNamespace(perf_counter=lambda: 0.0, monotonic=lambda: float(next(checkpoints)))
        patch.setattr("moe_probe.sae.training.train.time", clock)
        yield


@dataclass(frozen=True)
class _Undisturbed:
    files: dict[str, str]
    results: dict[str, str]
    results_before: dict[str, str]
    seconds: float
    steps: int


class _Bench:
    """The folders of the attack: inputs, the outcome of each place, and the one trial that goes on."""

    def __init__(self, options: Options, wanted: list[Place]) -> None:
        self.work, self.inputs, self.folder = options.work, options.work / "inputs", options.work / "trial"
        self.log = options.work / "log.txt"
        self.known: dict[str, _Undisturbed] = {}
        self.inputs.mkdir()
        self._done(write_inputs(self.inputs, wanted))
        for place in with_starts(wanted):
            self.undisturbed(place)

    def _done(self, work: Callable[[], int]) -> float:
        outcome = forked(work, self.log, timeout=_PATIENCE)
        if outcome.status or outcome.killed:
            raise RuntimeError(f"an undisturbed command failed: {outcome.output}")
        import_what(self.log)  # the next fork starts with it
        return outcome.seconds

    def _start(self, place: Place) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if place.after:
            shutil.copytree(self.work / "states" / place.after, self.folder, symlinks=True)
        else:
            self.folder.mkdir()

    def _ask(self, question: Callable[[Path], Any]) -> Any:
        """Answer a question about the trial's folder in a fork: readers of tables start threads, which forks do not survive."""
        answer = self.work / "answer.json"

        def work() -> int:
            answer.write_text(json.dumps(question(self.folder)))
            return 0

        self._done(work)
        return json.loads(answer.read_text())

    def undisturbed(self, place: Place) -> None:
        """Run a place to its end, twice, and keep what it leaves; the places that start from it take it up."""
        self._start(place)
        before = self._ask(results_seen)
        self._done(command(place.words, self.folder))
        first = self._ask(digests)
        self._start(place)
        seconds = self._done(command(place.words, self.folder))
        steps = int(self.log.with_suffix(".steps").read_text())
        files = self._ask(digests)
        if files != first:
            raise RuntimeError(f"{place.name}: two undisturbed commands differ: {_difference(first, files)}")
        self.known[place.name] = _Undisturbed(files, self._ask(results_seen), before, seconds, steps)
        shutil.copytree(self.folder, self.work / "states" / place.name, symlinks=True)
        say(f"{place.name}: {seconds:.1f} s of processor time, {steps} changes of folders")

    def drawn(self, place: Place, rng: np.random.Generator, trial: int) -> Kill:
        """Draw the moment of a kill."""
        known = self.known[place.name]
        if trial % 2 == 0:
            return Kill(step=int(rng.integers(known.steps)), after=bool(rng.integers(2)))
        return Kill(seconds=float(rng.uniform(0, known.seconds)))

    def trial(self, place: Place, kill: Kill, counts: Counts) -> None:
        """Kill a place once, continue it, and compare."""
        known = self.known[place.name]
        self._start(place)
        first = forked(command(place.words, self.folder), self.log, kill=kill, timeout=_PATIENCE)
        counts.trials += 1
        counts.killed += first.killed
        where = f"{place.name}, killed {kill}"
        seen = self._ask(results_seen)
        if place.name != "run" and seen not in (known.results_before, known.results):
            counts.wrong += 1
            counts.failures.append(f"{where}: readers saw half of the results: {_difference(known.results, seen)}")
        if "" in seen:
            counts.wrong += 1
            counts.failures.append(f"{where}: {seen['']}")
        again = forked(command((*place.words, *place.again), self.folder), self.log, timeout=_PATIENCE)
        if again.status or again.killed:
            counts.refused += 1
            counts.failures.append(f"{where}: not continued, status {again.status}: {again.output.strip()[-400:]}")
            return
        files = self._ask(digests)
        if lost := sorted(set(known.files) - set(files)):
            counts.lost += 1
            counts.failures.append(f"{where}: lost {', '.join(lost[:4])}")
        elif files != known.files:
            counts.wrong += 1
            counts.failures.append(f"{where}: {_difference(known.files, files)}")


def _difference(expected: dict[str, str], found: dict[str, str]) -> str:
    changed = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    return (
        f"changed {changed[:4]}, more {sorted(found.keys() - expected.keys())[:4]}, "
        f"missing {sorted(expected.keys() - found.keys())[:4]}"
    )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but locks, which hold a process id."""
    from moe_probe.core.files import sha256_file
    from moe_probe.core.holder import HOLDER
    from moe_probe.core.lock import LOCK

    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (LOCK, HOLDER))
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(files)}


def results_seen(folder: Path) -> dict[str, str]:
    """What readers see of the results: the checksum of each table, or under the empty name why they refuse."""
    from moe_probe.core.errors import MoeProbeError
    from moe_probe.core.files import sha256_text
    from moe_probe.core.generation import read_together

    seen = {}
    for where in ("run/results", "compared"):
        try:
            for name, result in read_together(folder / where).items():
                seen[f"{where}/{name}"] = sha256_text(result.table.to_json())
        except MoeProbeError as error:
            seen[""] = str(error)
    return seen
