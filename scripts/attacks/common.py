"""What all attacks share: their options, the table they give, and runs of the program as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes
    ----------
    work : Path
        Empty folder for everything that an attack writes.
    seed : int
        Seed of every random choice.
    number : int
        Trials, or mutations of each reader.
    only : tuple of str
        Stages or readers to attack; all where empty.
    short : bool
        The form that continuous integration runs: the same code, fewer places.
    """

    work: Path
    seed: int = 0
    number: int = 1
    only: tuple[str, ...] = ()
    short: bool = False


@dataclass
class Table:
    """What an attack found, a row for each place attacked.

    Attributes
    ----------
    title : str
    columns : tuple of str
        Headings, the first of what was attacked.
    rows : list of tuple
    failures : list of str
        A sentence for each thing that must not happen, with what repeats it. None: the attack failed.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return the table, then the failures."""
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in (self.columns, *self.rows)]
        lines.insert(1, "|" + "---|" * len(self.columns))
        return "\n".join(
            [f"### {self.title}", "", *lines, *(["", *(f"- {f}" for f in self.failures)] if self.failures else [])]
        )


def program(words: Sequence[str | Path], *, timeout: float = 600, **more: object) -> subprocess.CompletedProcess[str]:
    """Run ``moe-probe`` to its end, as a user would, and return its status, output and errors."""
    command = [sys.executable, "-m", "moe_probe", *map(str, words)]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False, **more)  # type: ignore[call-overload]
