"""The stage `analyze`: a trace in, result tables about experts and their verdicts out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from moe_probe.core.progress import Say
from moe_probe.core.settings import StatisticsSettings
from moe_probe.core.stage import Stage, result_files
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.rundir import RunDirectory


@dataclass(frozen=True)
class AnalyzeStage(Stage):
    """Run every analysis that the trace allows, and judge each topic."""

    name = "analyze"
    statistics: StatisticsSettings
    model: ModelSettings
    seed: int

    @override
    def settings(self) -> Any:
        return [self.statistics.model_dump(), self.model.model_dump(include={"name", "revision", "dtype"}), self.seed]

    @override
    def inputs(self, root: Path) -> Iterable[Path]:
        return [root / "trace" / "trace.json"]

    @override
    def run(self, root: Path, say: Say) -> list[Path]:
        from moe_probe.studies.analyses import AnalysisSettings, analyze

        settings = AnalysisSettings(**self.statistics.model_dump(), seed=self.seed, model=self.model)
        run = RunDirectory.open(root)
        results = analyze(run, run.results_folder, settings=settings, say=say)
        # what features and causes add to the verdicts later is no damage to this stage
        return result_files(root, [name for name in results if name != "verdicts"])
