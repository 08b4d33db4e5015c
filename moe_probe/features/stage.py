"""The stage `features`: SAEs and a trace in, labelled features out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from moe_probe.core.progress import Say
from moe_probe.core.settings import StatisticsSettings
from moe_probe.core.stage import Stage, save_results
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.rundir import RunDirectory
from moe_probe.sae.stage import SaeStage


@dataclass(frozen=True)
class FeaturesStage(Stage):
    """Measure the SAEs on held-out documents, label their features, and test these against topics."""

    name = "features"
    analyze: Stage
    sae: SaeStage
    statistics: StatisticsSettings
    model: ModelSettings
    seed: int

    @property
    @override
    def after(self) -> tuple[Stage, ...]:
        return (self.analyze,)

    @override
    def wanted(self) -> bool:
        return self.sae.wanted()

    @override
    def settings(self) -> Any:
        return self.model.model_dump(include={"experts_implementation"})  # the others are settings of the analysis

    @override
    def inputs(self, root: Path) -> Iterable[Path]:
        from moe_probe.sae.store import saes_of

        return [folder / "cfg.json" for folder in saes_of(root)]

    @override
    def run(self, root: Path, say: Say) -> list[Path]:
        from moe_probe.features.describe import LabelSettings
        from moe_probe.features.evaluate import EvaluateSettings, evaluate
        from moe_probe.features.label import label
        from moe_probe.features.run_saes import RunSaes
        from moe_probe.models import load_model

        run = RunDirectory.open(root)
        loaded = load_model(self.model.name, progress=False, **self.model.load_options())
        saes = RunSaes(run)
        quality = evaluate(run, EvaluateSettings(seed=self.seed), loaded=loaded, saes=saes, say=say)
        labels = label(run, LabelSettings(**self.statistics.model_dump(), seed=self.seed), saes=saes, say=say)
        return save_results(root, [quality, *labels], settings=self.statistics.model_dump() | {"seed": self.seed})
