"""Every stage and every command that writes, killed at any moment, continued as it advises, compared with an undisturbed run.

Half of the kills come at a moment of the undisturbed duration, drawn evenly; half at a change of a folder (a rename, a removal,
a new folder), before or behind it. The second kind repeats exactly under its seed. Clusters, maps and fits of routing run with
few draws: what is attacked is how files are written.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attacks.common import Options, Table
from attacks.forks import Kill, command, forked, import_everything
from attacks.kill_places import Place, chosen, with_starts, write_inputs

#: Times in files that hold some, and what follows from them.
_TIMES = (
    (re.compile(r"logs/stages\.json"), re.compile(r'"seconds": [\d.]+|"[0-9a-f]{64}"')),
    (re.compile(r"results/cost\.json"), re.compile(r'"seconds": [\d.]+')),
    (re.compile(r"results/(costs|cost_projected)\.json"), re.compile(r'"(table_sha256|id)": "\w+"')),
    (re.compile(r"report\.(html|md)"), re.compile(r"\b[\d,]+\.\d s\b|\b[\d.]+ seconds\b")),
)
_PATIENCE = 400


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
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from support.quick import quick

    table = Table(
        "Killed at any moment", ("stage or command", "trials", "killed before the end", "lost", "wrong", "refused")
    )
    with quick():
        import_everything()
        bench = _Bench(options)
        wanted = chosen(options.only, short=options.short)
        for number, place in enumerate(with_starts(wanted)):
            bench.undisturbed(place)
            if place not in wanted:
                continue
            rng = np.random.default_rng([options.seed, number])
            counts = Counts()
            for trial in range(options.number):
                bench.trial(place, bench.drawn(place, rng, trial), counts)
            table.rows.append((place.name, counts.trials, counts.killed, counts.lost, counts.wrong, counts.refused))
            table.failures += counts.failures
            print(f"{place.name}: {counts}", flush=True)
    return table


@dataclass(frozen=True)
class _Undisturbed:
    files: dict[str, str]
    results: dict[str, str]
    results_before: dict[str, str]
    seconds: float
    steps: int


class _Bench:
    """The folders of the attack: inputs, the outcome of each place, and the one trial that goes on."""

    def __init__(self, options: Options) -> None:
        self.work, self.inputs, self.folder = options.work, options.work / "inputs", options.work / "trial"
        self.log = options.work / "log.txt"
        self.known: dict[str, _Undisturbed] = {}
        self.inputs.mkdir()
        self._done(write_inputs(self.inputs))

    def _done(self, work: Callable[[], int]) -> float:
        outcome = forked(work, self.log, timeout=_PATIENCE)
        if outcome.status or outcome.killed:
            raise RuntimeError(f"an undisturbed command failed: {outcome.output}")
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
        """Run a place to its end, and keep what it leaves; the places that start from it take it up."""
        self._start(place)
        before = self._ask(results_seen)
        seconds = self._done(command(place.words, self.folder))
        steps = int(self.log.with_suffix(".steps").read_text())
        self.known[place.name] = _Undisturbed(self._ask(digests), self._ask(results_seen), before, seconds, steps)
        shutil.copytree(self.folder, self.work / "states" / place.name, symlinks=True)

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
    """SHA-256 of every file below a folder, without the times in it and without locks, which hold a process id."""
    from moe_probe.core.holder import HOLDER
    from moe_probe.core.lock import LOCK

    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (LOCK, HOLDER))
    return {
        path.relative_to(folder).as_posix(): _timeless(path, path.relative_to(folder).as_posix()) for path in sorted(files)
    }


def _timeless(path: Path, name: str) -> str:
    import pandas as pd

    from moe_probe.core.files import sha256_file, sha256_text

    if name.endswith("results/costs.parquet"):
        return sha256_text(pd.read_parquet(path).drop(columns="seconds").to_json())
    for files, times in _TIMES:
        if files.search(name):
            return sha256_text(times.sub("", path.read_text(encoding="utf-8")))
    return sha256_file(path)


def results_seen(folder: Path) -> dict[str, str]:
    """What readers see of the results: the checksum of each table, or under the empty name why they refuse."""
    from moe_probe.core.errors import MoeProbeError
    from moe_probe.core.files import sha256_text
    from moe_probe.core.generation import read_together

    seen = {}
    for where in ("run/results", "compared"):
        try:
            for name, result in read_together(folder / where).items():
                table = result.table.drop(columns="seconds") if name == "costs" else result.table
                seen[f"{where}/{name}"] = sha256_text(table.to_json())
        except MoeProbeError as error:
            seen[""] = str(error)
    return seen
