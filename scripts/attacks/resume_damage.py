"""Damage between an interruption and ``--resume``: what is sealed must equal what was never disturbed, byte for byte.

Unfinished traces of three kinds (tokens with vectors, counts alone, an import) are copied, damaged in one to three places and
continued. Each file of the sealed trace is compared with that of an undisturbed one. Links lead into a folder outside, which
must stay as it is.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

from attacks.common import Options, Table
from attacks.damage import DAMAGE
from attacks.unfinished import Kind, kinds_of
from moe_probe.core.errors import MoeProbeError

#: What a sealed trace that equals the undisturbed one is counted as; then the refusals; then what must not happen.
NAMED, UNNAMED, REFUSED, WRONG, FOREIGN = "named", "nothing to name", "refused", "wrong seal", "foreign exception"


def attack(options: Options) -> Table:
    """Damage unfinished traces, continue them, and compare.

    Parameters
    ----------
    options : Options
        `number` trials in all.

    Returns
    -------
    Table
    """
    outcomes = {name: Counter[str]() for name in DAMAGE}
    failures = []
    kinds = [_Kind(kind, options.work / kind.name) for kind in kinds_of(options.work)]
    for trial in range(options.number):
        prepared = kinds[trial % len(kinds)]
        seed = options.seed * 1_000_000 + trial
        names, outcome, why = prepared.trial(random.Random(seed))
        for name in names:
            outcomes[name][outcome] += 1
        if outcome in (WRONG, FOREIGN):
            failures.append(f"trial {trial} ({prepared.kind.name}; {', '.join(names)}): {outcome}: {why}")
    columns = (NAMED, UNNAMED, REFUSED, WRONG, FOREIGN)
    rows = [(name, *(outcomes[name][column] for column in columns)) for name in DAMAGE]
    heading = ("damage", "named, recorded again", "as undisturbed, nothing to name", "refused in a sentence", WRONG, FOREIGN)
    return Table(f"Damage before --resume, {options.number} unfinished traces", heading, rows, failures)


class _Kind:
    """An unfinished trace to copy, and what it has to become."""

    def __init__(self, kind: Kind, work: Path) -> None:
        self.kind, self.work = kind, work
        kind.begin(work / "begun")
        shutil.copytree(work / "begun", work / "whole")
        trace, notes = kind.resume(work / "whole")
        if notes:
            raise AssertionError(f"an undisturbed trace is called damaged: {notes}")
        self.whole = contents(trace.root)

    def trial(self, rng: random.Random) -> tuple[list[str], str, str]:
        """Damage a copy and continue it; return what was done, what came of it, and why it is wrong."""
        root, outside = self.work / "trial", self.work / "outside"
        for folder in (root, outside):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.work / "begun", root)
        shutil.copytree(self.work / "begun", outside)
        names = rng.choices(list(DAMAGE), k=rng.choice((1, 1, 2, 3)))
        for name in names:
            DAMAGE[name](root, outside, rng)
        outcome, why = self._continued(root)
        if outcome == REFUSED:  # as the sentence asks, what stands in the way is moved; then it must go on
            for path in sorted(root.rglob("*")):
                if path.is_symlink():
                    path.unlink()
                elif path.name.endswith((".safetensors", ".parquet", ".json")) and path.is_dir():
                    path.rmdir()
            again, why = self._continued(root)
            outcome = outcome if again in (NAMED, UNNAMED) else again
        if contents(outside) != contents(self.work / "begun"):
            outcome, why = WRONG, "a file outside the trace was changed"
        return names, outcome, why

    def _continued(self, root: Path) -> tuple[str, str]:
        try:
            trace, notes = self.kind.resume(root)
        except MoeProbeError as error:
            return REFUSED, str(error)
        except Exception as error:
            return FOREIGN, f"{type(error).__name__}: {error}"
        got = contents(trace.root)
        if got != self.whole:
            different = sorted(name for name in {*got, *self.whole} if got.get(name) != self.whole.get(name))
            return WRONG, ", ".join(different)
        return (NAMED if notes else UNNAMED), ""


def contents(root: Path) -> dict[str, bytes]:
    """Read every file of a folder, links left out."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
