"""The stage `verdicts`: what matching has shown completes the verdicts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from moe_probe.core.progress import Say
from moe_probe.core.stage import Stage
from moe_probe.recording.rundir import RunDirectory


@dataclass(frozen=True)
class VerdictsStage(Stage):
    """Complete the verdicts after features were matched with experts."""

    name = "verdicts"
    match: Stage

    @property
    @override
    def after(self) -> tuple[Stage, ...]:
        return (self.match,)

    @override
    def wanted(self) -> bool:
        return self.match.wanted()

    @override
    def settings(self) -> Any:
        return []

    @override
    def is_stale(self, redone: Collection[str]) -> bool:
        return bool({"analyze", "features", "match"} & set(redone))  # each of them leaves verdicts without the others' part

    @override
    def run(self, root: Path, say: Say) -> list[Path]:
        from moe_probe.studies.verdicts import update_verdicts

        update_verdicts(RunDirectory.open(root))
        return []  # knock-outs complete the same table later
