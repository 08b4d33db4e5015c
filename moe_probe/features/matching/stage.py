"""The stage `match`: features and experts in, what each tells of the other out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from moe_probe.core.progress import Say
from moe_probe.core.stage import Stage, save_results
from moe_probe.features.stage import FeaturesStage
from moe_probe.recording.rundir import RunDirectory


@dataclass(frozen=True)
class MatchStage(Stage):
    """Match experts with features, and compare what predicts each topic."""

    name = "match"
    features: FeaturesStage

    @property
    @override
    def after(self) -> tuple[Stage, ...]:
        return (self.features,)

    @override
    def wanted(self) -> bool:
        return self.features.wanted()

    @override
    def settings(self) -> Any:
        return []

    @override
    def run(self, root: Path, say: Say) -> list[Path]:
        from moe_probe.features.matching.match import match
        from moe_probe.features.matching.match_features import MatchSettings
        from moe_probe.models import load_model

        of = self.features
        loaded = load_model(of.model.name, progress=False, **of.model.load_options())
        settings = MatchSettings(of.statistics.by, alpha=of.statistics.alpha, seed=of.seed)
        results = match(RunDirectory.open(root), settings, loaded=loaded, say=say)
        return save_results(root, results, settings=asdict(settings))
