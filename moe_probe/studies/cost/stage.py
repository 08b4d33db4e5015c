"""The stage `cost`: what the stages before took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from moe_probe.core.progress import Say
from moe_probe.core.stage import Stage
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.rundir import RunDirectory


@dataclass(frozen=True)
class CostStage(Stage):
    """Count operations, seconds and bytes of the run, beside what training the model took."""

    name = "cost"
    before: tuple[Stage, ...]
    model: ModelSettings

    @property
    @override
    def after(self) -> tuple[Stage, ...]:
        return tuple(stage for stage in self.before if stage.wanted())

    @override
    def settings(self) -> Any:
        return []

    @override
    def run(self, root: Path, say: Say) -> list[Path]:
        from moe_probe.studies.cost import measure_cost, save_cost

        run = RunDirectory.open(root)
        measured = measure_cost(run, model=self.model.name, revision=self.model.revision, say=say)
        return save_cost(run, measured)
