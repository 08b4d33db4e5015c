"""Every reader gets damaged input: it reads it, or refuses it with the package's own error, soon and in little memory.

    python scripts/attack.py --fuzz 10000
    python scripts/attack.py --fuzz 10000 --only trace,manifest
    python scripts/attack.py --fuzz 1 --only trace@17       (mutation 17 again, with its traceback)

A reader's small valid input is made once. Each mutation damages a fresh copy (`attacks.mutate`), and the reader opens and uses it
as the program does. A forked process does so for some hundred mutations in turn. What counts as a failure:

- foreign: an exception that is not the package's own, or the end of the process by a signal;
- hang: more than 10 s, and again when the mutation is repeated alone;
- memory: the process needs 1 GB more than before, or asks for more than 4 GB.

A refusal has to fit on one line, without control characters: anything else counts as foreign.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fnmatch
import importlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacks.common import Options, Table
from attacks.mutate import mutate
from attacks.readers import Reader, readers

_SECONDS = 10
_MEMORY = 1 << 30
_ADDRESSES = 4 << 30
_BATCH = 500
#: Mutations of each reader in the short form.
_SHORT = 25


class _TooLongError(BaseException):
    """No `Exception`: a reader must not swallow it."""


@dataclass
class _Tally:
    """Outcomes of one reader, and of every kind of failure how often and where first."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[tuple[str, str], list[Any]] = field(default_factory=dict)

    def add(self, index: int, outcome: dict[str, str]) -> None:
        """Count an outcome."""
        self.counts[outcome["kind"]] += 1
        if outcome["kind"] not in ("read", "refused"):
            first = self.failures.setdefault((outcome["kind"], outcome["where"]), [0, index, outcome["done"]])
            first[0] += 1


def attack(options: Options) -> Table:
    """Mutate the input of every reader, or of those asked for."""
    columns = ("reader", "mutations", "read", "refused", "foreign", "hang", "memory")
    table = Table("Damaged and hostile files", columns)
    known = readers()
    asked = [word.partition("@") for word in options.only] or [(name, "", "") for name in known]
    number = min(options.number, _SHORT) if options.short else options.number
    for name, _, index in asked:
        if name not in known:
            raise SystemExit(f"there is no reader '{name}': choose from {', '.join(known)}")
        indices = [int(index)] if index else list(range(number))
        bench = Bench(known[name], options.work / name, options.seed, loud=bool(index))
        tally = _Tally()
        started = time.monotonic()
        for at, outcome in bench.outcomes(indices):
            tally.add(at, outcome)
        counts = tally.counts
        table.rows.append((name, len(indices), *(counts[kind] for kind in columns[2:])))
        print(f"{name}: {dict(counts)} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        for (kind, where), (n, first, done) in sorted(tally.failures.items(), key=lambda item: -item[1][0]):
            again = f"--fuzz 1 --seed {options.seed} --only {name}@{first}"
            table.failures.append(f"{name}: {kind}, {n} times: {where}; first after: {done} (`{again}`)")
    return table


class Bench:
    """One reader with its input, and the processes that read mutations of it.

    Parameters
    ----------
    reader : Reader
    work : Path
        Folder for its input and copies; made.
    seed : int
    loud : bool
        Print the traceback of what is raised.
    """

    def __init__(self, reader: Reader, work: Path, seed: int, *, loud: bool = False) -> None:
        self.reader, self.seed, self.loud = reader, seed, loud
        self.folder, self.stack = work / "input", work / "stack.txt"
        self.folder.mkdir(parents=True)
        for name in reader.imports:
            importlib.import_module(name)
        if self._forked(self._prepare) != 0:
            raise SystemExit(f"the input of {reader.name} could not be made or read")
        self.original = {
            p.relative_to(self.folder).as_posix(): p.read_bytes() for p in sorted(self.folder.rglob("*")) if p.is_file()
        }
        self.names = [n for n in self.original if any(fnmatch.fnmatch(n, pattern) for pattern in reader.damaged)]

    def _prepare(self) -> None:
        self.reader.prepare(self.folder)
        self.reader.read(self.folder)

    @staticmethod
    def _forked(work: Any) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def outcomes(self, indices: list[int]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the outcome of every mutation; each is ``kind``, ``where`` and what was ``done``."""
        left = list(indices)
        while left:
            batch = left[:_BATCH]
            for index, outcome in self._batch(batch):
                if outcome["kind"] == "hang" and len(batch) > 1:  # alone, in case that the machine was busy
                    outcome = next(self._batch([index]))[1]
                yield index, outcome
                left.remove(index)

    def _batch(self, indices: list[int]) -> Iterator[tuple[int, dict[str, str]]]:
        """Fork a process for some mutations; where one of them ends it, what comes after is not yielded."""
        receiver, sender = os.pipe()
        self.stack.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            os.close(receiver)
            try:
                self._child(indices, sender)
            except BaseException:  # a fault of this script: shown, not counted as the reader's
                os.write(sender, json.dumps({"broken": traceback.format_exc()}).encode() + b"\n")
            os._exit(0)
        os.close(sender)
        lines, line = _Lines(receiver), b""
        try:
            for index in indices:
                line = lines.next(2 * _SECONDS + 20)
                if not line:
                    break
                outcome = json.loads(line)
                if "broken" in outcome:
                    raise SystemExit(outcome["broken"])
                yield index, outcome
        finally:
            os.close(receiver)
            if line is None or not line:
                os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if line is None:
            yield index, {"kind": "hang", "where": f"inside a library{self._stuck()}", "done": "see the seed"}
        elif not line:
            yield index, {"kind": "foreign", "where": f"the process ended with status {status}", "done": "see the seed"}

    def _stuck(self) -> str:
        """Where Python was when a process had said nothing for long."""
        lines = self.stack.read_text(encoding="utf-8").splitlines() if self.stack.exists() else []
        return f" ({'; '.join(line.strip() for line in lines if line.strip().startswith('File'))[:600]})" if lines else ""

    def _child(self, indices: list[int], sender: int) -> None:
        if not self.loud:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
        warnings.simplefilter("ignore")
        stack = os.open(self.stack, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        faulthandler.dump_traceback_later(2 * _SECONDS, file=stack)
        signal.signal(signal.SIGALRM, _alarm)
        copy = self.folder.parent / f"copy-{os.getpid()}" / "input"
        shutil.copytree(self.folder, copy)
        self.reader.read(copy)
        limit = _status("VmSize") + _ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for index in indices:
            faulthandler.dump_traceback_later(2 * _SECONDS, file=stack)  # an alarm waits until a library returns
            outcome = self._one(index, copy)
            self._restore(copy)
            os.write(sender, json.dumps(outcome).encode() + b"\n")
        shutil.rmtree(copy.parent)

    def _one(self, index: int, copy: Path) -> dict[str, str]:
        rng = random.Random(f"{self.seed}/{self.reader.name}/{index}")
        done = mutate(rng, copy, self.names)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        kind, where = self._read(copy)
        used = _status("VmHWM") - before
        if used > _MEMORY and kind in ("read", "refused"):
            kind, where = "memory", f"{used / 2**30:.1f} GB more than before, then {kind}"
        return {"kind": kind, "where": where, "done": done}

    def _read(self, copy: Path) -> tuple[str, str]:
        error: BaseException | None = None
        try:
            signal.setitimer(signal.ITIMER_REAL, _SECONDS)
            try:
                self.reader.read(copy)
            except Exception as raised:
                error = raised
            signal.setitimer(signal.ITIMER_REAL, 0)
        except _TooLongError as late:
            return "hang", _last(late)
        if error is not None and self.loud:
            traceback.print_exception(error)
        return _judged(error)

    def _restore(self, copy: Path) -> None:
        for path in sorted(copy.rglob("*"), reverse=True):
            if path.relative_to(copy).as_posix() not in self.original or path.is_symlink() or not path.is_file():
                if path.is_dir() and not path.is_symlink():
                    with contextlib.suppress(OSError):  # not empty: a folder of the input
                        path.rmdir()
                else:
                    path.unlink()
        for name, data in self.original.items():
            path = copy / name
            if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def _judged(error: Exception | None) -> tuple[str, str]:
    """What came of a reading: ``read``, ``refused`` or a failure, and where."""
    from moe_probe.core.errors import MoeProbeError
    from moe_probe.core.text import printable

    if error is None:
        return "read", ""
    if isinstance(error, MoeProbeError):
        text = str(error)
        if len(text) > 4000 or len(text.splitlines()) > 1 or printable(text) != text:
            return "foreign", f"a message of several lines, control characters or great length: {_last(error)}"
        return "refused", ""
    kind = "memory" if isinstance(error, MemoryError) or "allocate" in str(error) else "foreign"
    return kind, f"{type(error).__name__} ({' '.join(str(error).split())[:80]!a}) at {_last(error)}"


def _alarm(*_: object) -> None:
    raise _TooLongError


class _Lines:
    """Lines of a pipe, with a limit of time for each."""

    def __init__(self, fd: int) -> None:
        self._fd, self._rest = fd, b""

    def next(self, seconds: float) -> bytes | None:
        """Return a line; empty where the other side ended, None where it says nothing for so long."""
        while b"\n" not in self._rest:
            if not select.select([self._fd], [], [], seconds)[0]:
                return None
            more = os.read(self._fd, 1 << 16)
            if not more:
                return b""
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _status(name: str) -> int:
    """Bytes of an entry of ``/proc/self/status``."""
    with Path("/proc/self/status").open(encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _last(error: BaseException) -> str:
    """The last line of the package that an exception came through, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/moe_probe/" in frame.filename]
    frame = (own or frames)[-1]
    return f"{frame.filename.rpartition('/moe_probe/')[2]}:{frame.lineno} {frame.name}"
